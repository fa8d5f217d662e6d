#include "lib/spiffeid.h"

#include <stdlib.h>
#include <string.h>

#define SCHEME "spiffe://"
enum { SCHEME_LEN = sizeof(SCHEME) - 1 };

/* SPIFFE-ID 2.1: "MUST only contain lowercase letters, numbers, dots, dashes, and underscores". */
static bool td_char(uint8_t c)
{
	return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';
}

/* SPIFFE-ID 2.2: a segment "MUST only contain letters, numbers, dots, dashes, and underscores". */
static bool path_char(uint8_t c)
{
	return td_char(c) || (c >= 'A' && c <= 'Z');
}

int trust_domain_check(struct bytes name, struct err *e)
{
	if (name.n == 0)
		return err_set(e, ERR_INVALID, "trust domain is missing");
	for (size_t i = 0; i < name.n; i++)
		if (!td_char(name.p[i]))
			return err_set(e, ERR_INVALID,
				"trust domain characters are limited to lowercase letters, "
				"numbers, dots, dashes, and underscores");
	if (name.n > TRUST_DOMAIN_MAX)
		return err_set(
			e, ERR_INVALID, "trust domain is longer than %d bytes", TRUST_DOMAIN_MAX);
	return 0;
}

static bool is_dots(struct bytes seg)
{
	return (seg.n == 1 && seg.p[0] == '.') || (seg.n == 2 && memcmp(seg.p, "..", 2) == 0);
}

/* seg ends at a slash, or (last) at the end of the path. */
static int segment_check(struct bytes seg, bool last, struct err *e)
{
	if (seg.n == 0)
		return err_set(e, ERR_INVALID, "%s",
			last ? "path cannot have a trailing slash"
			     : "path cannot contain empty segments");
	if (is_dots(seg))
		return err_set(e, ERR_INVALID, "path cannot contain dot segments");
	return 0;
}

/* SPIFFE-ID 2.2. path is empty or begins with a slash. */
static int path_check(struct bytes path, struct err *e)
{
	size_t start = 1;

	if (path.n == 0)
		return 0;
	if (path.p[0] != '/')
		return err_set(e, ERR_INVALID, "path must have a leading slash");
	for (size_t i = 1; i < path.n; i++) {
		int r;

		if (path.p[i] != '/') {
			if (path_char(path.p[i]))
				continue;
			return err_set(e, ERR_INVALID,
				"path segment characters are limited to letters, numbers, dots, "
				"dashes, and underscores");
		}
		r = segment_check(bytes_of(path.p + start, i - start), false, e);
		if (r)
			return r;
		start = i + 1;
	}
	return segment_check(bytes_of(path.p + start, path.n - start), true, e);
}

int spiffeid_parse(struct spiffeid *ret, struct bytes s, struct err *e)
{
	const uint8_t *slash;
	size_t td_len;
	int r;

	if (s.n == 0)
		return err_set(e, ERR_INVALID, "cannot be empty");
	if (s.n < SCHEME_LEN || memcmp(s.p, SCHEME, SCHEME_LEN) != 0)
		return err_set(e, ERR_INVALID, "scheme is missing or invalid");
	/* SPIFFE-ID 2.3: "implementations MUST NOT generate URIs of length greater than 2048
	 * bytes". */
	if (s.n > SPIFFEID_MAX)
		return err_set(e, ERR_INVALID, "SPIFFE ID is longer than %d bytes", SPIFFEID_MAX);
	s = bytes_of(s.p + SCHEME_LEN, s.n - SCHEME_LEN);
	slash = s.n ? memchr(s.p, '/', s.n) : NULL;
	td_len = slash ? (size_t)(slash - s.p) : s.n;
	r = trust_domain_check(bytes_of(s.p, td_len), e);
	if (!r)
		r = path_check(bytes_of(s.p + td_len, s.n - td_len), e);
	if (r)
		return r;
	ret->text = xstrndup((const char *)s.p - SCHEME_LEN, s.n + SCHEME_LEN);
	ret->td_len = td_len;
	return 0;
}

int spiffeid_parse_str(struct spiffeid *ret, const char *s, struct err *e)
{
	return spiffeid_parse(ret, bytes_str(s), e);
}

int spiffeid_make(struct spiffeid *ret, const char *td, const char *path, struct err *e)
{
	AUTO_BUF struct buf text = BUF_INIT;
	int r = trust_domain_check(bytes_str(td), e);

	if (!r)
		r = path_check(bytes_str(path), e);
	if (r)
		return r;
	buf_printf(&text, SCHEME "%s%s", td, path);
	return spiffeid_parse(ret, buf_view(&text), e);
}

void spiffeid_deinit(struct spiffeid *id)
{
	free(id->text);
	*id = SPIFFEID_INIT;
}

struct spiffeid spiffeid_dup(const struct spiffeid *id)
{
	return (struct spiffeid){
		.text = id->text ? xstrdup(id->text) : NULL,
		.td_len = id->td_len,
	};
}

struct bytes spiffeid_td(const struct spiffeid *id)
{
	return id->text ? bytes_of(id->text + SCHEME_LEN, id->td_len) : bytes_of(NULL, 0);
}

const char *spiffeid_path(const struct spiffeid *id)
{
	return id->text ? id->text + SCHEME_LEN + id->td_len : "";
}

bool spiffeid_equal(const struct spiffeid *a, const struct spiffeid *b)
{
	return a->text && b->text && strcmp(a->text, b->text) == 0;
}

bool spiffeid_member_of(const struct spiffeid *id, const char *td)
{
	return id->text && bytes_equal(spiffeid_td(id), bytes_str(td));
}

int trust_domain_parse(const char *s, char **ret, struct err *e)
{
	struct spiffeid id = SPIFFEID_INIT;
	struct bytes td;
	int r;

	/* Whatever looks like a URI is read as one, so that "spiffe:/td" gets the better message.
	 */
	if (!strstr(s, ":/")) {
		r = trust_domain_check(bytes_str(s), e);
		if (!r)
			*ret = xstrdup(s);
		return r;
	}
	r = spiffeid_parse_str(&id, s, e);
	if (r)
		return r;
	td = spiffeid_td(&id);
	*ret = xstrndup((const char *)td.p, td.n);
	spiffeid_deinit(&id);
	return 0;
}

/* The functions of sprig (github.com/Masterminds/sprig, version 3) that SPIRE allows in its
 * templates, as far as they always give the same for the same: here those on texts and paths. */
#include <ctype.h>
#include <stdlib.h>

#include "lib/crypto.h"
#include "lib/pattern.h"
#include "lib/template_args.h"
#include "lib/text.h"

/* ---- one text ---- */

static bool is_space(uint8_t c)
{
	return c == ' ' || (c >= '\t' && c <= '\r');
}

static struct bytes trimmed(struct bytes v, const char *set)
{
	while (v.n && (set ? v.p[0] && strchr(set, v.p[0]) != NULL : is_space(v.p[0])))
		v.p++, v.n--;
	while (v.n &&
		(set ? v.p[v.n - 1] && strchr(set, v.p[v.n - 1]) != NULL : is_space(v.p[v.n - 1])))
		v.n--;
	return v;
}

FN(fn_trim)
{
	int r = strings(x, a, n);

	return r ? r : give_bytes(x, trimmed(text(&a[0]), NULL), ret);
}

FN(fn_trim_all)
{
	int r = strings(x, a, n);

	return r ? r : give_bytes(x, trimmed(text(&a[1]), str(&a[0])), ret);
}

FN(fn_trim_prefix)
{
	int r = strings(x, a, n);
	struct bytes v = text(&a[1]), with = text(&a[0]);

	if (r)
		return r;
	if (starts(v, with))
		v = bytes_of(v.p + with.n, v.n - with.n);
	return give_bytes(x, v, ret);
}

FN(fn_trim_suffix)
{
	int r = strings(x, a, n);
	struct bytes v = text(&a[1]), with = text(&a[0]);

	if (r)
		return r;
	if (ends(v, with))
		v.n -= with.n;
	return give_bytes(x, v, ret);
}

static int each_byte(struct execution *x, const struct value *a, void (*fn)(struct buf *, uint8_t),
	struct value *ret)
{
	struct buf b = OUT_INIT;
	int r = strings(x, a, 1);
	struct bytes v = text(&a[0]);

	for (size_t i = 0; !r && i < v.n; i++)
		fn(&b, v.p[i]);
	return give_or(x, r, &b, ret);
}

/* ASCII alone: what SPIFFE IDs and DNS names are made of. */
static void to_upper(struct buf *b, uint8_t c)
{
	buf_byte(b, c >= 'a' && c <= 'z' ? (uint8_t)(c - 32) : c);
}

static void to_lower(struct buf *b, uint8_t c)
{
	buf_byte(b, c >= 'A' && c <= 'Z' ? (uint8_t)(c + 32) : c);
}

static void to_other(struct buf *b, uint8_t c)
{
	if (c >= 'a' && c <= 'z')
		to_upper(b, c);
	else
		to_lower(b, c);
}

static void no_space(struct buf *b, uint8_t c)
{
	if (!is_space(c))
		buf_byte(b, c);
}

FN(fn_upper)
{
	(void)n;
	return each_byte(x, a, to_upper, ret);
}

FN(fn_lower)
{
	(void)n;
	return each_byte(x, a, to_lower, ret);
}

FN(fn_swapcase)
{
	(void)n;
	return each_byte(x, a, to_other, ret);
}

FN(fn_nospace)
{
	(void)n;
	return each_byte(x, a, no_space, ret);
}

/* first: what becomes of a word's first letter. */
static int words(struct execution *x, const struct value *a, void (*first)(struct buf *, uint8_t),
	bool only_first, struct value *ret)
{
	struct buf b = OUT_INIT;
	int r = strings(x, a, 1);
	struct bytes v = text(&a[0]);
	bool inside = false;

	for (size_t i = 0; !r && i < v.n; i++) {
		bool letter = isalnum(v.p[i]) || v.p[i] == '_' || v.p[i] == '\'' || v.p[i] >= 0x80;

		if (letter && !inside)
			first(&b, v.p[i]);
		else if (!only_first)
			buf_byte(&b, v.p[i]);
		inside = letter;
	}
	return give_or(x, r, &b, ret);
}

static void as_is(struct buf *b, uint8_t c)
{
	buf_byte(b, c);
}

FN(fn_title)
{
	(void)n;
	return words(x, a, to_upper, false, ret);
}

FN(fn_untitle)
{
	(void)n;
	return words(x, a, to_lower, false, ret);
}

FN(fn_initials)
{
	(void)n;
	return words(x, a, as_is, true, ret);
}

FN(fn_trunc)
{
	struct bytes v = text(&a[1]);
	json_int_t c = json_integer_value(a[0].json);

	(void)n;
	if (!json_is_integer(a[0].json))
		return want(x, "int", &a[0]);
	if (!json_is_string(a[1].json))
		return want(x, "string", &a[1]);
	if (c < 0 && (json_int_t)v.n + c > 0)
		v = bytes_of(v.p + ((json_int_t)v.n + c), (size_t)-c);
	else if (c >= 0 && (json_int_t)v.n > c)
		v.n = (size_t)c;
	return give_bytes(x, v, ret);
}

FN(fn_abbrev)
{
	struct buf b = OUT_INIT;
	struct bytes v = text(&a[1]);
	json_int_t width = json_integer_value(a[0].json);

	(void)n;
	if (!json_is_integer(a[0].json))
		return want(x, "int", &a[0]);
	if (!json_is_string(a[1].json))
		return want(x, "string", &a[1]);
	if (width < 4 || (json_int_t)v.n <= width)
		return give_bytes(x, v, ret);
	buf_append(&b, v.p, (size_t)width - 3);
	buf_str(&b, "...");
	return template_own_buf(x, &b, ret);
}

FN(fn_substr)
{
	struct bytes v = text(&a[2]);
	json_int_t from = json_integer_value(a[0].json), to = json_integer_value(a[1].json);

	(void)n;
	if (!json_is_integer(a[0].json) || !json_is_integer(a[1].json))
		return want(x, "int", &a[json_is_integer(a[0].json)]);
	if (!json_is_string(a[2].json))
		return want(x, "string", &a[2]);
	if (from < 0)
		from = 0;
	if (to < 0 || to > (json_int_t)v.n)
		to = (json_int_t)v.n;
	if (from > to)
		return err_set(x->e, ERR_INVALID, "slice bounds out of range [%lld:%lld]",
			(long long)from, (long long)to);
	return give_bytes(x, bytes_of(v.p + from, (size_t)(to - from)), ret);
}

FN(fn_repeat)
{
	struct buf b = OUT_INIT;
	json_int_t count = json_integer_value(a[0].json);

	(void)n;
	if (!json_is_integer(a[0].json))
		return want(x, "int", &a[0]);
	if (!json_is_string(a[1].json))
		return want(x, "string", &a[1]);
	if (count < 0 || count > TEMPLATE_OUTPUT_MAX)
		return err_set(
			x->e, ERR_INVALID, "a count of %lld is out of range", (long long)count);
	for (json_int_t i = 0; i < count && !b.failed; i++)
		buf_bytes(&b, text(&a[1]));
	return template_own_buf(x, &b, ret);
}

FN(fn_replace)
{
	struct buf b = OUT_INIT;
	int r = strings(x, a, n);
	struct bytes old = text(&a[0]), v = text(&a[2]);

	if (!r && !old.n)
		r = err_set(x->e, ERR_INVALID, "the text to be replaced is empty");
	for (size_t i = 0; !r && i < v.n;) {
		if (starts(bytes_of(v.p + i, v.n - i), old)) {
			buf_bytes(&b, text(&a[1]));
			i += old.n;
		} else {
			buf_byte(&b, v.p[i++]);
		}
	}
	return give_or(x, r, &b, ret);
}

FN(fn_contains)
{
	int r = strings(x, a, n);
	struct bytes what = text(&a[0]), v = text(&a[1]);

	if (r)
		return r;
	return give_bool(x, !what.n || (v.n && memmem(v.p, v.n, what.p, what.n)), ret);
}

FN(fn_has_prefix)
{
	int r = strings(x, a, n);

	return r ? r : give_bool(x, starts(text(&a[1]), text(&a[0])), ret);
}

FN(fn_has_suffix)
{
	int r = strings(x, a, n);

	return r ? r : give_bool(x, ends(text(&a[1]), text(&a[0])), ret);
}

static int print_joined(
	struct execution *x, const struct value *a, size_t n, char quote, struct value *ret)
{
	struct buf b = OUT_INIT;
	int r = 0;
	bool some = false;

	for (size_t i = 0; !r && i < n; i++) {
		AUTO_BUF struct buf one = OUT_INIT;

		if (is_nil(&a[i]))
			continue;
		r = template_print(x, &one, &a[i]);
		if (some)
			buf_byte(&b, ' ');
		some = true;
		if (quote == '"') {
			AUTO(free) char *q = text_quote(buf_cstr(&one));

			buf_str(&b, q);
		} else {
			if (quote)
				buf_byte(&b, (uint8_t)quote);
			buf_bytes(&b, buf_view(&one));
			if (quote)
				buf_byte(&b, (uint8_t)quote);
		}
	}
	return give_or(x, r, &b, ret);
}

FN(fn_quote)
{
	return print_joined(x, a, n, '"', ret);
}

FN(fn_squote)
{
	return print_joined(x, a, n, '\'', ret);
}

FN(fn_cat)
{
	return print_joined(x, a, n, 0, ret);
}

static int indent(struct execution *x, const struct value *a, bool newline, struct value *ret)
{
	struct buf b = OUT_INIT;
	json_int_t spaces = json_integer_value(a[0].json);
	struct bytes v = text(&a[1]);

	if (!json_is_integer(a[0].json) || spaces < 0 || spaces > 1000)
		return err_set(x->e, ERR_INVALID, "a count of spaces is out of range");
	if (!json_is_string(a[1].json))
		return want(x, "string", &a[1]);
	if (newline)
		buf_byte(&b, '\n');
	for (size_t i = 0; i <= v.n && !b.failed; i++) {
		for (json_int_t k = 0; (i == 0 || v.p[i - 1] == '\n') && k < spaces; k++)
			buf_byte(&b, ' ');
		if (i < v.n)
			buf_byte(&b, v.p[i]);
	}
	return template_own_buf(x, &b, ret);
}

FN(fn_indent)
{
	(void)n;
	return indent(x, a, false, ret);
}

FN(fn_nindent)
{
	(void)n;
	return indent(x, a, true, ret);
}

FN(fn_plural)
{
	(void)n;
	if (!json_is_integer(a[2].json))
		return want(x, "int", &a[2]);
	*ret = a[json_integer_value(a[2].json) == 1 ? 0 : 1];
	return strings(x, a, 2);
}

FN(fn_to_string)
{
	struct buf b = OUT_INIT;

	(void)n;
	return give_or(x, template_print(x, &b, &a[0]), &b, ret);
}

/* ---- digests and encodings ---- */

static int digest(struct execution *x, const struct value *a, enum hash h, struct value *ret)
{
	struct buf b = OUT_INIT;
	uint8_t sum[HASH_MAX];
	int r = strings(x, a, 1);

	if (!r) {
		hash_of(h, text(&a[0]), sum);
		hex_encode(&b, bytes_of(sum, hash_size(h)));
	}
	return give_or(x, r, &b, ret);
}

FN(fn_sha1sum)
{
	(void)n;
	return digest(x, a, HASH_SHA1, ret);
}

FN(fn_sha256sum)
{
	(void)n;
	return digest(x, a, HASH_SHA256, ret);
}

FN(fn_adler32sum)
{
	struct buf b = OUT_INIT;
	int r = strings(x, a, n);
	struct bytes v = text(&a[0]);
	uint32_t s1 = 1, s2 = 0;

	for (size_t i = 0; !r && i < v.n; i++) {
		s1 = (s1 + v.p[i]) % 65521;
		s2 = (s2 + s1) % 65521;
	}
	buf_printf(&b, "%u", s2 << 16 | s1);
	return give_or(x, r, &b, ret);
}

FN(fn_b64enc)
{
	struct buf b = OUT_INIT;
	int r = strings(x, a, n);

	if (!r)
		base64_encode(&b, text(&a[0]));
	return give_or(x, r, &b, ret);
}

/* Gives the error's text in place of a result, as sprig does: here it is an error. */
FN(fn_b64dec)
{
	struct buf b = OUT_INIT;
	int r = strings(x, a, n);

	if (!r)
		r = base64_decode(&b, text(&a[0]), x->e);
	return give_or(x, r, &b, ret);
}

static const char b32[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"; /* RFC 4648 6 */

FN(fn_b32enc)
{
	struct buf b = OUT_INIT;
	int r = strings(x, a, n), bits = 0;
	struct bytes v = text(&a[0]);
	unsigned held = 0;

	for (size_t i = 0; !r && i < v.n; i++) {
		held = (held << 8 | v.p[i]) & 0xfff;
		for (bits += 8; bits >= 5; bits -= 5)
			buf_byte(&b, (uint8_t)b32[held >> (bits - 5) & 31]);
	}
	if (bits)
		buf_byte(&b, (uint8_t)b32[held << (5 - bits) & 31]);
	while (b.len % 8)
		buf_byte(&b, '=');
	return give_or(x, r, &b, ret);
}

FN(fn_b32dec)
{
	struct buf b = OUT_INIT;
	int r = strings(x, a, n), bits = 0;
	struct bytes v = text(&a[0]);
	unsigned held = 0;

	if (!r && v.n % 8)
		r = err_set(x->e, ERR_INVALID, "illegal base32 data");
	while (!r && v.n && v.p[v.n - 1] == '=')
		v.n--;
	for (size_t i = 0; !r && i < v.n; i++) {
		const char *at = v.p[i] ? strchr(b32, v.p[i]) : NULL;

		if (!at)
			r = err_set(x->e, ERR_INVALID, "illegal base32 data at input byte %zu", i);
		held = (held << 5 | (at ? (unsigned)(at - b32) : 0)) & 0xffff;
		bits += 5;
		if (!r && bits >= 8) {
			bits -= 8;
			buf_byte(&b, (uint8_t)(held >> bits));
		}
	}
	return give_or(x, r, &b, ret);
}

/* ---- values ---- */

FN(fn_default)
{
	*ret = n < 2 || !template_truth(&a[1]) ? a[0] : a[1];
	return template_steps(x, 1);
}

FN(fn_empty)
{
	(void)n;
	return give_bool(x, !template_truth(&a[0]), ret);
}

FN(fn_coalesce)
{
	for (size_t i = 0; i < n; i++)
		if (template_truth(&a[i])) {
			*ret = a[i];
			return 0;
		}
	return template_own(x, json_null(), ret);
}

FN(fn_all)
{
	bool all = true;

	for (size_t i = 0; i < n; i++)
		all &= template_truth(&a[i]);
	return give_bool(x, all, ret);
}

FN(fn_any)
{
	bool any = false;

	for (size_t i = 0; i < n; i++)
		any |= template_truth(&a[i]);
	return give_bool(x, any, ret);
}

FN(fn_ternary)
{
	(void)n;
	if (!json_is_boolean(a[2].json))
		return want(x, "bool", &a[2]);
	*ret = json_is_true(a[2].json) ? a[0] : a[1];
	return 0;
}

FN(fn_fail)
{
	int r = strings(x, a, n);

	(void)ret;
	return r ? r : err_set(x->e, ERR_INVALID, "%.300s", str(&a[0]));
}

FN(fn_regex_match)
{
	struct pattern *p;
	int r = strings(x, a, n);
	bool found;

	if (!r)
		r = pattern_new(str(&a[0]), &p, x->e);
	if (r)
		return r;
	found = pattern_matches(p, str(&a[1]));
	pattern_free(p);
	return give_bool(x, found, ret);
}

/* ---- paths, as Go's package path ---- */

FN(fn_base)
{
	int r = strings(x, a, n);
	struct bytes v = text(&a[0]);
	const uint8_t *slash;

	if (r)
		return r;
	if (!v.n)
		return template_own_str(x, ".", 1, ret);
	while (v.n > 1 && v.p[v.n - 1] == '/')
		v.n--;
	slash = memrchr(v.p, '/', v.n);
	if (slash && v.n > 1)
		v = bytes_of(slash + 1, v.n - (size_t)(slash + 1 - v.p));
	return give_bytes(x, v, ret);
}

/* path.Clean: no empty and no "." parts, ".." takes the one before it away. */
static void clean(struct buf *b, struct bytes v)
{
	bool root = v.n && v.p[0] == '/';
	size_t keep = root ? 1 : 0; /* what ".." may not take away */

	if (root)
		buf_byte(b, '/');
	for (size_t i = 0; i < v.n;) {
		const uint8_t *at = v.p + i, *end = memchr(at, '/', v.n - i);
		size_t len = end ? (size_t)(end - at) : v.n - i;

		i += len + 1;
		if (len == 0 || (len == 1 && at[0] == '.'))
			continue;
		if (len == 2 && at[0] == '.' && at[1] == '.' && (b->len > keep || root)) {
			if (b->len <= keep)
				continue;
			while (b->len > keep && b->p[b->len - 1] != '/')
				b->len--;
			if (b->len > keep)
				b->len--;
			continue;
		}
		if (b->len && b->p[b->len - 1] != '/')
			buf_byte(b, '/');
		buf_append(b, at, len);
		if (len == 2 && at[0] == '.' && at[1] == '.')
			keep = b->len;
	}
	if (!b->len)
		buf_byte(b, '.');
}

FN(fn_clean)
{
	struct buf b = OUT_INIT;
	int r = strings(x, a, n);

	if (!r)
		clean(&b, text(&a[0]));
	return give_or(x, r, &b, ret);
}

FN(fn_dir)
{
	struct buf b = OUT_INIT;
	int r = strings(x, a, n);
	struct bytes v = text(&a[0]);
	const uint8_t *slash = !r && v.n ? memrchr(v.p, '/', v.n) : NULL;

	if (!r)
		clean(&b, bytes_of(v.p, slash ? (size_t)(slash + 1 - v.p) : 0));
	return give_or(x, r, &b, ret);
}

FN(fn_ext)
{
	int r = strings(x, a, n);
	struct bytes v = text(&a[0]);
	size_t i = v.n;

	if (r)
		return r;
	while (i > 0 && v.p[i - 1] != '/' && v.p[i - 1] != '.')
		i--;
	if (i == 0 || v.p[i - 1] != '.')
		return template_own_str(x, "", 0, ret);
	return give_bytes(x, bytes_of(v.p + i - 1, v.n - i + 1), ret);
}

FN(fn_is_abs)
{
	int r = strings(x, a, n);

	return r ? r : give_bool(x, text(&a[0]).n && text(&a[0]).p[0] == '/', ret);
}

static const struct template_func funcs[] = {
	{ "abbrev", fn_abbrev, 2, 2 },
	{ "adler32sum", fn_adler32sum, 1, 1 },
	{ "all", fn_all, 0, -1 },
	{ "any", fn_any, 0, -1 },
	{ "b32dec", fn_b32dec, 1, 1 },
	{ "b32enc", fn_b32enc, 1, 1 },
	{ "b64dec", fn_b64dec, 1, 1 },
	{ "b64enc", fn_b64enc, 1, 1 },
	{ "base", fn_base, 1, 1 },
	{ "cat", fn_cat, 0, -1 },
	{ "clean", fn_clean, 1, 1 },
	{ "coalesce", fn_coalesce, 0, -1 },
	{ "contains", fn_contains, 2, 2 },
	{ "default", fn_default, 1, 2 },
	{ "dir", fn_dir, 1, 1 },
	{ "empty", fn_empty, 1, 1 },
	{ "ext", fn_ext, 1, 1 },
	{ "fail", fn_fail, 1, 1 },
	{ "hasPrefix", fn_has_prefix, 2, 2 },
	{ "hasSuffix", fn_has_suffix, 2, 2 },
	{ "indent", fn_indent, 2, 2 },
	{ "initials", fn_initials, 1, 1 },
	{ "isAbs", fn_is_abs, 1, 1 },
	{ "lower", fn_lower, 1, 1 },
	{ "mustRegexMatch", fn_regex_match, 2, 2 },
	{ "nindent", fn_nindent, 2, 2 },
	{ "nospace", fn_nospace, 1, 1 },
	{ "plural", fn_plural, 3, 3 },
	{ "quote", fn_quote, 0, -1 },
	{ "regexMatch", fn_regex_match, 2, 2 },
	{ "repeat", fn_repeat, 2, 2 },
	{ "replace", fn_replace, 3, 3 },
	{ "sha1sum", fn_sha1sum, 1, 1 },
	{ "sha256sum", fn_sha256sum, 1, 1 },
	{ "squote", fn_squote, 0, -1 },
	{ "substr", fn_substr, 3, 3 },
	{ "swapcase", fn_swapcase, 1, 1 },
	{ "ternary", fn_ternary, 3, 3 },
	{ "title", fn_title, 1, 1 },
	{ "toString", fn_to_string, 1, 1 },
	{ "trim", fn_trim, 1, 1 },
	{ "trimAll", fn_trim_all, 2, 2 },
	{ "trimPrefix", fn_trim_prefix, 2, 2 },
	{ "trimSuffix", fn_trim_suffix, 2, 2 },
	{ "trunc", fn_trunc, 2, 2 },
	{ "untitle", fn_untitle, 1, 1 },
	{ "upper", fn_upper, 1, 1 },
};

const struct template_func *template_sprig_find(const char *name)
{
	for (size_t i = 0; i < ARRAY_LEN(funcs); i++)
		if (strcmp(funcs[i].name, name) == 0)
			return &funcs[i];
	return template_list_find(name);
}

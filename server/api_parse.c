/* What clients of the server's API send, checked: ids, selectors, DNS names, entries, times. */
#include "server/api.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { DNS_NAME_MAX = 253, DNS_LABEL_MAX = 63 };

/* ---- ids ---- */

static int name_wrong(
	const struct spiffeid *id, const char *what, const char *td, const char *why, struct err *e)
{
	return err_set(
		e, ERR_INVALID, "\"%s\" is not %s trust domain \"%s\"%s", id->text, what, td, why);
}

static bool has_prefix(const char *path, const char *prefix)
{
	size_t n = strlen(prefix);

	return strncmp(path, prefix, n) == 0 && (path[n] == 0 || path[n] == '/');
}

int api_id_check(
	const struct spiffeid *id, enum api_id_kind k, const char *trust_domain, struct err *e)
{
	static const char *const what[] = { "", "a member of", "a workload in", "an agent in" };
	const char *path = spiffeid_path(id);

	if (k == API_ID_ANY)
		return 0;
	if (!spiffeid_member_of(id, trust_domain))
		return name_wrong(id, what[API_ID_MEMBER], trust_domain, "", e);
	if (!path[0])
		return name_wrong(id, what[k], trust_domain, "; path is empty", e);
	if (k == API_ID_WORKLOAD && has_prefix(path, "/spire"))
		return name_wrong(
			id, what[k], trust_domain, "; path is in the reserved namespace", e);
	if (k == API_ID_AGENT && strncmp(path, "/spire/agent/", 13) != 0)
		return name_wrong(
			id, what[k], trust_domain, "; path is not in the agent namespace", e);
	return 0;
}

int api_id_parse(struct spiffeid *ret, const Spire__Api__Types__SPIFFEID *m, enum api_id_kind k,
	const char *trust_domain, struct err *e)
{
	AUTO(free) char *td = NULL;
	struct spiffeid id = SPIFFEID_INIT;
	int r;

	if (!m)
		return err_set(e, ERR_INVALID, "request must specify SPIFFE ID");
	r = trust_domain_parse(m->trust_domain, &td, e);
	if (r == 0)
		r = spiffeid_make(&id, td, m->path, e);
	if (r)
		return r;
	r = api_id_check(&id, k, trust_domain, e);
	if (r) {
		spiffeid_deinit(&id);
		return r;
	}
	*ret = id;
	return 0;
}

/* ---- selectors ---- */

int api_selectors_parse(
	struct selectors *ret, Spire__Api__Types__Selector *const *v, size_t n, struct err *e)
{
	struct selectors s = { .n = 0 };

	if (n > API_SELECTORS_MAX)
		return err_set(e, ERR_INVALID, "too many selectors, at most %d are allowed",
			API_SELECTORS_MAX);
	for (size_t i = 0; i < n; i++) {
		const char *why = !v[i]->type[0]            ? "missing selector type"
				  : strchr(v[i]->type, ':') ? "selector type contains ':'"
				  : !v[i]->value[0]         ? "missing selector value"
							    : NULL;

		if (why) {
			selectors_deinit(&s);
			return err_set(e, ERR_INVALID, "%s", why);
		}
		selectors_add(&s, v[i]->type, v[i]->value);
	}
	*ret = s;
	return 0;
}

/* ---- DNS names ---- */

static int label_wrong(const char *label, size_t n, struct err *e)
{
	return err_set(e, ERR_INVALID, "idna error\nidna: invalid label \"%.*s\"", (int)n, label);
}

/* One label: letters, digits, hyphens and (as SPIRE takes them) underscores; no hyphen first, last,
 * or at 3 and 4 unless it is an A-label (RFC 5891 4.2.3.1). */
static int check_label(const char *label, size_t n, struct err *e)
{
	bool ace = n > 4 && strncmp(label, "xn--", 4) == 0;

	if (n > DNS_LABEL_MAX || label[0] == '-' || label[n - 1] == '-')
		return label_wrong(label, n, e);
	if (!ace && n >= 4 && label[2] == '-' && label[3] == '-')
		return label_wrong(label, n, e);
	for (size_t i = 0; i < n; i++)
		if (!isalnum((unsigned char)label[i]) && label[i] != '-' && label[i] != '_')
			return err_set(e, ERR_INVALID, "idna error\nidna: disallowed rune U+%04X",
				(unsigned)(unsigned char)label[i]);
	return 0;
}

static int check_plain(const char *s, struct err *e)
{
	size_t n = strlen(s);

	if (s[strspn(s, " \t\r\n\v\f")] == 0)
		return err_set(e, ERR_INVALID, "empty or only whitespace");
	if (s[n - 1] == '.')
		return err_set(e, ERR_INVALID, "domain ends with dot");
	if (n > DNS_NAME_MAX || s[0] == '.' || strstr(s, ".."))
		return label_wrong(s, n, e);
	for (;;) {
		size_t len = strcspn(s, ".");
		int r = check_label(s, len, e);

		if (r || !s[len])
			return r;
		s += len + 1;
	}
}

int api_dns_check(const char *name, struct err *e)
{
	const char *star = strchr(name, '*');

	for (const char *p = name; *p; p++)
		if ((unsigned char)*p >= 0x80)
			return err_set(e, ERR_INVALID, "name must be ascii");
	if (!star)
		return check_plain(name, e);
	if (strchr(star + 1, '*'))
		return err_set(e, ERR_INVALID, "too many wildcards");
	if (strncmp(name, "*.", 2) != 0)
		return err_set(e, ERR_INVALID, "wildcard must be first label");
	return check_plain(name + 2, e);
}

int api_dns_check_overlap(const struct strings *names, struct err *e)
{
	for (size_t i = 0; i < names->n; i++) {
		AUTO(free) char *wild = NULL;

		if (names->v[i][0] == '*')
			continue;
		wild = xasprintf("*%s", names->v[i] + strcspn(names->v[i], "."));
		if (strings_has(names, wild))
			return err_set(e, ERR_INVALID,
				"name \"%s\" overlaps with an existing wildcard name in the list: "
				"wildcard overlap",
				names->v[i]);
	}
	return 0;
}

/* ---- entries ---- */

unsigned api_entry_mask(const Spire__Api__Types__EntryMask *m)
{
	if (!m)
		return ENTRY_ALL;
	return (m->spiffe_id ? ENTRY_SPIFFE_ID : 0U) | (m->parent_id ? ENTRY_PARENT_ID : 0U) |
	       (m->selectors ? ENTRY_SELECTORS : 0U) | (m->x509_svid_ttl ? ENTRY_X509_TTL : 0U) |
	       (m->federates_with ? ENTRY_FEDERATES : 0U) | (m->admin ? ENTRY_ADMIN : 0U) |
	       (m->downstream ? ENTRY_DOWNSTREAM : 0U) | (m->expires_at ? ENTRY_EXPIRES : 0U) |
	       (m->dns_names ? ENTRY_DNS : 0U) | (m->store_svid ? ENTRY_STORE_SVID : 0U) |
	       (m->jwt_svid_ttl ? ENTRY_JWT_TTL : 0U) | (m->hint ? ENTRY_HINT : 0U) |
	       (m->additional_attributes ? ENTRY_ATTRIBUTES : 0U);
}

static int parse_id(char **ret, const Spire__Api__Types__SPIFFEID *m, enum api_id_kind k,
	const char *td, const char *what, struct err *e)
{
	struct spiffeid id;

	if (api_id_parse(&id, m, k, td, e))
		return err_wrap(e, "invalid %s", what);
	free(*ret);
	*ret = id.text;
	return 0;
}

static int parse_dns(struct entry *en, const Spire__Api__Types__Entry *m, struct err *e)
{
	for (size_t i = 0; i < m->n_dns_names; i++) {
		if (api_dns_check(m->dns_names[i], e))
			return err_wrap(e, "invalid DNS name");
		strings_add(&en->dns_names, m->dns_names[i]);
	}
	return 0;
}

static int parse_federates(struct entry *en, const Spire__Api__Types__Entry *m, struct err *e)
{
	for (size_t i = 0; i < m->n_federates_with; i++) {
		AUTO(free) char *td = NULL;

		if (trust_domain_parse(m->federates_with[i], &td, e))
			return err_wrap(e, "invalid federated trust domain");
		if (!strings_has(&en->federates_with, td))
			strings_add(&en->federates_with, td);
	}
	return 0;
}

static int parse_selectors(struct entry *en, const Spire__Api__Types__Entry *m, struct err *e)
{
	if (m->n_selectors == 0)
		return err_set(e, ERR_INVALID, "selector list is empty");
	return api_selectors_parse(&en->selectors, m->selectors, m->n_selectors, e);
}

/* Fields that have no wrong value. */
static void parse_plain(struct entry *en, const Spire__Api__Types__Entry *m, unsigned mask)
{
	if (mask & ENTRY_X509_TTL)
		en->x509_svid_ttl = m->x509_svid_ttl;
	if (mask & ENTRY_JWT_TTL)
		en->jwt_svid_ttl = m->jwt_svid_ttl;
	if (mask & ENTRY_ADMIN)
		en->admin = m->admin;
	if (mask & ENTRY_DOWNSTREAM)
		en->downstream = m->downstream;
	if (mask & ENTRY_EXPIRES)
		en->expires_at = m->expires_at;
	if (mask & ENTRY_STORE_SVID)
		en->store_svid = m->store_svid;
	if ((mask & ENTRY_ATTRIBUTES) && m->additional_attributes) {
		en->has_additional_attributes = true;
		en->disable_x509_svid_prefetch =
			m->additional_attributes->disable_x509_svid_prefetch;
		en->jwt_svid_include_jti = m->additional_attributes->jwt_svid_include_jti;
	}
}

static int parse_checked(struct entry *en, const Spire__Api__Types__Entry *m, unsigned mask,
	const char *td, struct err *e)
{
	int r = 0;

	if (mask & ENTRY_PARENT_ID)
		r = parse_id(&en->parent_id, m->parent_id, API_ID_MEMBER, td, "parent ID", e);
	if (r == 0 && (mask & ENTRY_SPIFFE_ID))
		r = parse_id(&en->spiffe_id, m->spiffe_id, API_ID_WORKLOAD, td, "spiffe ID", e);
	if (r == 0 && (mask & ENTRY_DNS))
		r = parse_dns(en, m, e);
	if (r == 0 && (mask & ENTRY_FEDERATES))
		r = parse_federates(en, m, e);
	if (r == 0 && (mask & ENTRY_SELECTORS))
		r = parse_selectors(en, m, e);
	if (r == 0 && (mask & ENTRY_HINT)) {
		if (strlen(m->hint) > API_HINT_MAX)
			return err_set(e, ERR_INVALID,
				"hint is too long, max length is %d characters", API_HINT_MAX);
		free(en->hint);
		en->hint = xstrdup(m->hint);
	}
	return r;
}

int api_entry_parse(struct entry *ret, const Spire__Api__Types__Entry *m,
	const Spire__Api__Types__EntryMask *mask, const char *trust_domain, struct err *e)
{
	struct entry en = { .id = xstrdup(m->id),
		.spiffe_id = xstrdup(""),
		.parent_id = xstrdup(""),
		.hint = xstrdup("") };
	unsigned bits = api_entry_mask(mask);
	int r = parse_checked(&en, m, bits, trust_domain, e);

	if (r) {
		entry_deinit(&en);
		return r;
	}
	parse_plain(&en, m, bits);
	*ret = en;
	return 0;
}

/* Letters, digits and the marks that SPIRE allows in an id chosen by the client. */
static bool is_id_char(unsigned char c)
{
	return isalnum(c) || c == '-' || c == '_' || c == '.';
}

static int check_id(const char *id, struct err *e)
{
	if (strlen(id) > API_ENTRY_ID_MAX)
		return err_set(e, ERR_INVALID, "invalid registration entry: entry ID too long");
	for (const char *p = id; *p; p++)
		if (!is_id_char((unsigned char)*p))
			return err_set(e, ERR_INVALID,
				"invalid registration entry: entry ID contains invalid characters");
	return 0;
}

static int check_store_svid(const struct entry *en, struct err *e)
{
	if (en->disable_x509_svid_prefetch)
		return err_set(e, ERR_INVALID,
			"specifying cache behaviour is incompatible with storable SVIDs");
	for (size_t i = 1; i < en->selectors.n; i++)
		if (strcmp(en->selectors.v[0].type, en->selectors.v[i].type) != 0)
			return err_set(e, ERR_INVALID,
				"invalid registration entry: selector types must be the same when "
				"store SVID is enabled");
	return 0;
}

int api_entry_check(const struct entry *en, unsigned mask, struct err *e)
{
	int r;

	if (en->store_svid && (mask & ENTRY_SELECTORS)) {
		r = check_store_svid(en, e);
		if (r)
			return r;
	}
	r = check_id(en->id, e);
	if (r)
		return r;
	if ((mask & ENTRY_X509_TTL) && en->x509_svid_ttl < 0)
		return err_set(
			e, ERR_INVALID, "invalid registration entry: X509SvidTtl is not set");
	if ((mask & ENTRY_JWT_TTL) && en->jwt_svid_ttl < 0)
		return err_set(e, ERR_INVALID, "invalid registration entry: JwtSvidTtl is not set");
	return 0;
}

int64_t api_time_parse(const char *s)
{
	struct tm tm = { .tm_sec = 0 };
	const char *rest = strptime(s, "%Y-%m-%d %H:%M:%S %z", &tm);
	long offset = tm.tm_gmtoff;

	if (!rest || rest[0] != ' ' || (rest[1] != '+' && rest[1] != '-'))
		return 0;
	tm.tm_gmtoff = 0;
	return (int64_t)timegm(&tm) - offset;
}

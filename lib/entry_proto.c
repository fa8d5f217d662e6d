#include "lib/entry.h"

#include <stdlib.h>
#include <string.h>

#include "lib/mem.h"
#include "spire/api/types/entry.pb-c.h"

/* proto3: "A string must always contain UTF-8 encoded text"; protobuf-c does not look, and a Go
 * client refuses a whole answer that holds one bad string. RFC 3629 4. */
static bool utf8_valid(const char *s)
{
	const uint8_t *p = (const uint8_t *)s;

	while (*p) {
		int more = *p < 0x80 ? 0 : *p >= 0xf0 ? 3 : *p >= 0xe0 ? 2 : 1;
		uint32_t cp = more == 0   ? *p
			      : more == 3 ? *p & 0x07
			      : more == 2 ? *p & 0x0f
					  : *p & 0x1f;
		static const uint32_t least[] = { 0, 0x80, 0x800, 0x10000 };

		if ((*p >= 0x80 && *p < 0xc2) || *p > 0xf4)
			return false;
		p++;
		for (int i = 0; i < more; i++, p++) {
			if ((*p & 0xc0) != 0x80)
				return false;
			cp = cp << 6 | (*p & 0x3f);
		}
		if (cp < least[more] || cp > 0x10ffff || (cp >= 0xd800 && cp <= 0xdfff))
			return false;
	}
	return true;
}

static int text_check(const char *s, const char *what, struct err *e)
{
	if (utf8_valid(s))
		return 0;
	return err_set(e, ERR_INVALID, "%s is not valid UTF-8", what);
}

static int texts_check(char *const *v, size_t n, const char *what, struct err *e)
{
	int r = 0;

	for (size_t i = 0; i < n && !r; i++)
		r = text_check(v[i], what, e);
	return r;
}

static int id_check(const Spire__Api__Types__SPIFFEID *id, const char *what, struct err *e)
{
	int r = 0;

	if (id)
		r = text_check(id->trust_domain, what, e);
	if (id && !r)
		r = text_check(id->path, what, e);
	return r;
}

static int shape_check(const Spire__Api__Types__Entry *m, struct err *e)
{
	int r = text_check(m->id, "entry ID", e);

	if (!r)
		r = text_check(m->hint, "hint", e);
	if (!r)
		r = id_check(m->spiffe_id, "SPIFFE ID", e);
	if (!r)
		r = id_check(m->parent_id, "parent ID", e);
	for (size_t i = 0; i < m->n_selectors && !r; i++) {
		r = text_check(m->selectors[i]->type, "selector type", e);
		if (!r)
			r = text_check(m->selectors[i]->value, "selector value", e);
	}
	if (!r)
		r = texts_check(
			m->federates_with, m->n_federates_with, "federated trust domain", e);
	if (!r)
		r = texts_check(m->dns_names, m->n_dns_names, "DNS name", e);
	return r;
}

/* A path without its leading slash, and a trust domain with the scheme, are accepted. An absent id
 * gives "". */
static char *id_text(const Spire__Api__Types__SPIFFEID *id)
{
	const char *td;

	if (!id)
		return xstrdup("");
	td = strncmp(id->trust_domain, "spiffe://", 9) == 0 ? id->trust_domain + 9
							    : id->trust_domain;
	return xasprintf(
		"spiffe://%s%s%s", td, id->path[0] && id->path[0] != '/' ? "/" : "", id->path);
}

int entry_from_proto(struct entry *ret, const Spire__Api__Types__Entry *m, struct err *e)
{
	struct entry en = { .id = NULL };
	int r = shape_check(m, e);

	if (r)
		return r;
	en.id = xstrdup(m->id);
	en.spiffe_id = id_text(m->spiffe_id);
	en.parent_id = id_text(m->parent_id);
	for (size_t i = 0; i < m->n_selectors; i++)
		selectors_add(&en.selectors, m->selectors[i]->type, m->selectors[i]->value);
	selectors_normalize(&en.selectors);
	en.x509_svid_ttl = m->x509_svid_ttl;
	en.jwt_svid_ttl = m->jwt_svid_ttl;
	for (size_t i = 0; i < m->n_federates_with; i++)
		strings_add(&en.federates_with, m->federates_with[i]);
	for (size_t i = 0; i < m->n_dns_names; i++)
		strings_add(&en.dns_names, m->dns_names[i]);
	en.admin = m->admin;
	en.downstream = m->downstream;
	en.store_svid = m->store_svid;
	if (m->additional_attributes) {
		en.has_additional_attributes = true;
		en.disable_x509_svid_prefetch =
			m->additional_attributes->disable_x509_svid_prefetch;
		en.jwt_svid_include_jti = m->additional_attributes->jwt_svid_include_jti;
	}
	en.expires_at = m->expires_at;
	en.revision_number = m->revision_number;
	en.created_at = m->created_at;
	en.hint = xstrdup(m->hint);
	*ret = en;
	return 0;
}

/* ---- to the wire ---- */

static Spire__Api__Types__SPIFFEID *id_message(const char *text)
{
	Spire__Api__Types__SPIFFEID *m;
	const char *slash;

	if (!text || strncmp(text, "spiffe://", 9) != 0)
		return NULL;
	text += 9;
	slash = strchrnul(text, '/');
	m = xmalloc(sizeof(*m));
	spire__api__types__spiffeid__init(m);
	m->trust_domain = xstrndup(text, (size_t)(slash - text));
	m->path = xstrdup(slash);
	return m;
}

static Spire__Api__Types__Selector *selector_message(const struct selector *s)
{
	Spire__Api__Types__Selector *m = xmalloc(sizeof(*m));

	spire__api__types__selector__init(m);
	m->type = xstrdup(s->type);
	m->value = xstrdup(s->value);
	return m;
}

static char **texts(const struct strings *s)
{
	return s->n ? strings_dup(s).v : NULL;
}

static Spire__Api__Types__Entry__AdditionalAttributes *attributes_message(const struct entry *en)
{
	Spire__Api__Types__Entry__AdditionalAttributes *m;

	if (!en->has_additional_attributes)
		return NULL;
	m = xmalloc(sizeof(*m));
	spire__api__types__entry__additional_attributes__init(m);
	m->disable_x509_svid_prefetch = en->disable_x509_svid_prefetch;
	m->jwt_svid_include_jti = en->jwt_svid_include_jti;
	return m;
}

Spire__Api__Types__Entry *entry_to_proto(const struct entry *en)
{
	Spire__Api__Types__Entry *m = xmalloc(sizeof(*m));

	spire__api__types__entry__init(m);
	m->id = xstrdup(en->id ? en->id : "");
	m->spiffe_id = id_message(en->spiffe_id);
	m->parent_id = id_message(en->parent_id);
	m->n_selectors = en->selectors.n;
	m->selectors = en->selectors.n ? xcalloc(en->selectors.n, sizeof(*m->selectors)) : NULL;
	for (size_t i = 0; i < en->selectors.n; i++)
		m->selectors[i] = selector_message(&en->selectors.v[i]);
	m->x509_svid_ttl = en->x509_svid_ttl;
	m->jwt_svid_ttl = en->jwt_svid_ttl;
	m->n_federates_with = en->federates_with.n;
	m->federates_with = texts(&en->federates_with);
	m->n_dns_names = en->dns_names.n;
	m->dns_names = texts(&en->dns_names);
	m->admin = en->admin;
	m->downstream = en->downstream;
	m->store_svid = en->store_svid;
	m->additional_attributes = attributes_message(en);
	m->expires_at = en->expires_at;
	m->revision_number = en->revision_number;
	m->created_at = en->created_at;
	m->hint = xstrdup(en->hint ? en->hint : "");
	return m;
}

/* The values of spire.h, and the blobs of a SPIRE datastore. */
#include "server/spire.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "lib/spiffeid.h"
#include "spire/private/server/stored.pb-c.h"

#define STORED(name) Spire__Private__Server__##name

enum { ROOTS_OF_ONE = 100 };

void spire_leave(struct strings *left, const char *fmt, ...)
{
	struct err line = ERR_INIT;
	va_list ap;

	va_start(ap, fmt);
	(void)err_setv(&line, ERR_UNKNOWN, fmt, ap);
	va_end(ap);
	strings_add(left, line.msg);
}

void spire_deinit(struct spire *s)
{
	for (size_t i = 0; i < s->n_bundles; i++)
		bundle_unref(s->bundles[i]);
	for (size_t i = 0; i < s->n_entries; i++)
		entry_deinit(&s->entries[i]);
	for (size_t i = 0; i < s->n_nodes; i++)
		node_deinit(&s->nodes[i]);
	for (size_t i = 0; i < s->n_tokens; i++)
		free(s->tokens[i].token);
	for (size_t i = 0; i < s->n_relationships; i++)
		relationship_deinit(&s->relationships[i]);
	for (size_t i = 0; i < s->n_journals; i++) {
		buf_deinit(&s->journals[i].data);
		free(s->journals[i].active_x509_id);
	}
	free(s->bundles);
	free(s->entries);
	free(s->nodes);
	free(s->tokens);
	free(s->relationships);
	free(s->journals);
	free(s->code_version);
	strings_deinit(&s->left);
	*s = (struct spire){ .schema = 0 };
}

struct bundle *spire_bundle(const struct spire *s, const char *trust_domain)
{
	for (size_t i = 0; i < s->n_bundles; i++)
		if (strcmp(s->bundles[i]->trust_domain, trust_domain) == 0)
			return s->bundles[i];
	return NULL;
}

static struct bytes blob(ProtobufCBinaryData v)
{
	return bytes_of(v.data, v.len);
}

static void take_root(struct bundle *b, const STORED(Certificate) * c, struct strings *left)
{
	struct x509_chain roots = { .n = 0 };
	struct err e = ERR_INIT;

	if (x509_chain_parse_der(&roots, blob(c->der_bytes), ROOTS_OF_ONE, &e))
		spire_leave(left, "a root of bundle %s: %s", b->trust_domain, e.msg);
	for (size_t i = 0; i < roots.n; i++)
		(void)bundle_add_root(b, roots.v[i], c->tainted_key);
	x509_chain_deinit(&roots);
}

static void take_jwt_key(struct bundle *b, const STORED(PublicKey) * k, struct strings *left)
{
	AUTO(pubkey_unref) struct pubkey *pub = NULL;
	struct err e = ERR_INIT;

	if (!k->kid[0])
		spire_leave(left, "a JWT key of bundle %s: it has no key id", b->trust_domain);
	else if (pubkey_from_spki(blob(k->pkix_bytes), &pub, &e))
		spire_leave(left, "JWT key %s of bundle %s: %s", k->kid, b->trust_domain, e.msg);
	else
		(void)bundle_add_jwt_key(b, k->kid, pub, k->not_after, k->tainted_key);
}

static int take_bundle(
	const STORED(Bundle) * m, struct bundle **ret, struct strings *left, struct err *e)
{
	AUTO(free) char *td = NULL;
	int r = trust_domain_parse(m->trust_domain_id, &td, e);

	if (r)
		return r;
	*ret = bundle_new(td);
	for (size_t i = 0; i < m->n_root_cas; i++)
		take_root(*ret, m->root_cas[i], left);
	for (size_t i = 0; i < m->n_jwt_signing_keys; i++)
		take_jwt_key(*ret, m->jwt_signing_keys[i], left);
	if (m->n_wit_signing_keys)
		spire_leave(left, "%zu WIT keys of bundle %s: this version has no WIT-SVIDs",
			m->n_wit_signing_keys, td);
	(*ret)->sequence = m->sequence_number;
	(*ret)->refresh_hint = m->refresh_hint > 0 ? m->refresh_hint : 0;
	return 0;
}

int spire_parse_bundle(struct bytes data, struct bundle **ret, struct strings *left, struct err *e)
{
	STORED(Bundle) *m = spire__private__server__bundle__unpack(NULL, data.n, data.p);
	int r;

	if (!m)
		return err_set(e, ERR_DATA_LOSS, "a bundle cannot be read");
	r = take_bundle(m, ret, left, e);
	spire__private__server__bundle__free_unpacked(m, NULL);
	return r;
}

int spire_parse_attributes(struct bytes data, struct entry *ret, struct err *e)
{
	STORED(AdditionalAttributes) * m;

	if (data.n == 0)
		return 0;
	m = spire__private__server__additional_attributes__unpack(NULL, data.n, data.p);
	if (!m)
		return err_set(e, ERR_DATA_LOSS, "its additional attributes cannot be read");
	ret->has_additional_attributes = true;
	ret->disable_x509_svid_prefetch = m->disable_x509_svid_prefetch;
	ret->jwt_svid_include_jti = m->jwt_svid_include_jti;
	spire__private__server__additional_attributes__free_unpacked(m, NULL);
	return 0;
}

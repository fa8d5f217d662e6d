#include "lib/bundle.h"

#include <stdlib.h>
#include <string.h>

#include "lib/mem.h"
#include "spire/api/types/bundle.pb-c.h"

static int read_root(struct bundle *b, const Spire__Api__Types__X509Certificate *m, struct err *e)
{
	struct x509_chain ch = { .n = 0 };
	int r = x509_chain_parse_der(&ch, bytes_of(m->asn1.data, m->asn1.len), X509_MAX_ROOTS, e);

	if (r)
		return err_wrap(e, "unable to parse X.509 authority");
	for (size_t i = 0; i < ch.n; i++)
		(void)bundle_add_root(b, ch.v[i], m->tainted);
	x509_chain_deinit(&ch);
	return 0;
}

/* A kind of key that we do not know is the caller's mistake too. */
static int err_code(struct err *e, int code)
{
	if (e)
		e->code = code;
	return code;
}

static int read_jwt_key(struct bundle *b, const Spire__Api__Types__JWTKey *m, struct err *e)
{
	AUTO(pubkey_unref) struct pubkey *k = NULL;
	int r = pubkey_from_spki(bytes_of(m->public_key.data, m->public_key.len), &k, e);

	if (!r && !m->key_id[0])
		r = err_set(e, ERR_INVALID, "missing key ID");
	if (r) {
		(void)err_wrap(e, "unable to parse JWT authority");
		return err_code(e, ERR_INVALID);
	}
	(void)bundle_add_jwt_key(b, m->key_id, k, m->expires_at, m->tainted);
	return 0;
}

static int read_all(struct bundle *b, const Spire__Api__Types__Bundle *m, struct err *e)
{
	int r = 0;

	if (m->n_x509_authorities > X509_MAX_ROOTS || m->n_jwt_authorities > X509_MAX_ROOTS)
		return err_set(e, ERR_INVALID, "bundle has more than %d authorities of a kind",
			X509_MAX_ROOTS);
	for (size_t i = 0; i < m->n_x509_authorities && !r; i++)
		r = read_root(b, m->x509_authorities[i], e);
	for (size_t i = 0; i < m->n_jwt_authorities && !r; i++)
		r = read_jwt_key(b, m->jwt_authorities[i], e);
	b->sequence = m->sequence_number;
	b->refresh_hint = m->refresh_hint;
	return r;
}

int bundle_from_proto(const Spire__Api__Types__Bundle *m, struct bundle **ret, struct err *e)
{
	AUTO(bundle_unref) struct bundle *b = NULL;
	AUTO(free) char *td = NULL;
	int r = trust_domain_parse(m->trust_domain, &td, e);

	if (r)
		return err_wrap(e, "invalid trust domain");
	b = bundle_new(td);
	r = read_all(b, m, e);
	if (r)
		return r;
	*ret = b;
	b = NULL;
	return 0;
}

static ProtobufCBinaryData copy(struct bytes v)
{
	return (ProtobufCBinaryData){ .len = v.n, .data = v.n ? xmemdup(v.p, v.n) : NULL };
}

static Spire__Api__Types__X509Certificate *root_message(const struct bundle_root *r)
{
	Spire__Api__Types__X509Certificate *m = xmalloc(sizeof(*m));

	spire__api__types__x509_certificate__init(m);
	m->asn1 = copy(x509_der(r->cert));
	m->tainted = r->tainted;
	return m;
}

static Spire__Api__Types__JWTKey *jwt_key_message(const struct bundle_jwt_key *k)
{
	Spire__Api__Types__JWTKey *m = xmalloc(sizeof(*m));

	spire__api__types__jwtkey__init(m);
	m->public_key = copy(pubkey_spki(k->key));
	m->key_id = xstrdup(k->key_id);
	m->expires_at = k->expires_at;
	m->tainted = k->tainted;
	return m;
}

Spire__Api__Types__Bundle *bundle_to_proto(const struct bundle *b)
{
	Spire__Api__Types__Bundle *m = xmalloc(sizeof(*m));

	spire__api__types__bundle__init(m);
	m->trust_domain = xstrdup(b->trust_domain);
	m->n_x509_authorities = b->n_roots;
	if (b->n_roots)
		m->x509_authorities = xcalloc(b->n_roots, sizeof(*m->x509_authorities));
	for (size_t i = 0; i < b->n_roots; i++)
		m->x509_authorities[i] = root_message(&b->roots[i]);
	m->n_jwt_authorities = b->n_jwt_keys;
	if (b->n_jwt_keys)
		m->jwt_authorities = xcalloc(b->n_jwt_keys, sizeof(*m->jwt_authorities));
	for (size_t i = 0; i < b->n_jwt_keys; i++)
		m->jwt_authorities[i] = jwt_key_message(&b->jwt_keys[i]);
	m->refresh_hint = b->refresh_hint;
	m->sequence_number = b->sequence;
	return m;
}

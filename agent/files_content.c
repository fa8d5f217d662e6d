#include "agent/files_content.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "lib/jwt.h"
#include "lib/x509.h"

#define SCHEME "spiffe://"

/* ---- X.509 ---- */

static bool fits(const struct files_set_options *o, const char *hint, const char *spiffe_id)
{
	return (!o->hint || strcmp(o->hint, hint) == 0) &&
	       (!o->spiffe_id || strcmp(o->spiffe_id, spiffe_id) == 0);
}

static int not_found(const struct files_set_options *o, const char *what, struct err *e)
{
	if (o->hint && !o->spiffe_id)
		return err_set(e, ERR_NOT_FOUND, "failed to find the hinted %s SVID: \"%s\"", what,
			o->hint);
	return err_set(e, ERR_NOT_FOUND, "there is no %s SVID for %s%s%s%s", what,
		o->spiffe_id ? o->spiffe_id : "this process", o->hint ? " with the hint \"" : "",
		o->hint ? o->hint : "", o->hint ? "\"" : "");
}

/* The certificates that go into a file; those expired are left out if so wanted. */
static void put_certs(const struct files_set_options *o, const struct x509_chain *from,
	size_t first, size_t end, struct wall now, struct buf *ret)
{
	for (size_t i = first; i < end && i < from->n; i++)
		if (!o->omit_expired || wall_sub_ns(x509_not_after(from->v[i]), now) >= 0)
			pem_write(ret, "CERTIFICATE", x509_der(from->v[i]));
}

static int put_federated(struct files_x509 *x, const struct files_set_options *o,
	const X509SVIDResponse *m, struct wall now, struct err *e)
{
	AUTO(free) size_t *order = xcalloc(m->n_federated_bundles + 1, sizeof(*order));
	size_t n = m->n_federated_bundles;

	/* by name, as the map has no order of its own */
	for (size_t i = 0; i < n; i++) {
		size_t k = i;

		for (; k && strcmp(m->federated_bundles[order[k - 1]]->key,
				    m->federated_bundles[i]->key) > 0;
			k--)
			order[k] = order[k - 1];
		order[k] = i;
	}
	for (size_t i = 0; i < n; i++) {
		const X509SVIDResponse__FederatedBundlesEntry *f = m->federated_bundles[order[i]];
		struct x509_chain roots = { NULL, 0 };
		int r = x509_chain_parse_der(
			&roots, bytes_of(f->value.data, f->value.len), X509_MAX_ROOTS, e);

		if (r)
			return err_wrap(
				e, "failed to parse bundle for federated domain \"%s\"", f->key);
		put_certs(o, &roots, 0, roots.n, now, &x->bundle);
		x509_chain_deinit(&roots);
	}
	return 0;
}

static int check_pair(
	const struct x509_chain *certs, struct bytes key_der, const char *spiffe_id, struct err *e)
{
	struct spiffeid id = SPIFFEID_INIT;
	AUTO(key_unref) struct key *key = NULL;
	struct pubkey *of_cert = x509_pubkey(certs->v[0]);
	int r = key_from_pkcs8(key_der, &key, e);

	if (r)
		return err_wrap(e, "failed to parse private key");
	if (!of_cert || !bytes_equal(pubkey_spki(key_public(key)), pubkey_spki(of_cert)))
		return err_set(e, ERR_INVALID, "the key is not the certificate's");
	r = x509_svid_id(certs->v[0], &id, e);
	if (!r && strcmp(id.text, spiffe_id) != 0)
		r = err_set(e, ERR_INVALID, "the certificate is for \"%s\"", id.text);
	spiffeid_deinit(&id);
	return r;
}

static int put_all(struct files_x509 *x, const struct files_set_options *o,
	const struct x509_chain *certs, const struct x509_chain *roots, const X509SVID *s,
	struct wall now)
{
	bool apart = o->add_intermediates;
	struct bytes key = bytes_of(s->x509_svid_key.data, s->x509_svid_key.len);

	put_certs(o, certs, 0, apart ? 1 : certs->n, now, &x->svid);
	pem_write(&x->key, "PRIVATE KEY", key);
	put_certs(o, roots, 0, roots->n, now, &x->bundle);
	if (apart)
		put_certs(o, certs, 1, certs->n, now, &x->bundle);
	put_certs(o, certs, 0, certs->n, now, &x->combined);
	pem_write(&x->combined, "PRIVATE KEY", key);
	x->spiffe_id = xstrdup(s->spiffe_id);
	x->expires = x509_not_after(certs->v[0]);
	return 0;
}

static int make(struct files_x509 *x, const struct files_set_options *o, const X509SVID *s,
	struct wall now, struct err *e)
{
	struct x509_chain certs = { NULL, 0 }, roots = { NULL, 0 };
	int r;

	if (!s->x509_svid.len)
		return err_set(e, ERR_INVALID, "no certificates found");
	r = x509_chain_parse_der(
		&certs, bytes_of(s->x509_svid.data, s->x509_svid.len), X509_MAX_CHAIN, e);
	if (!r && !s->bundle.len)
		r = err_set(e, ERR_INVALID, "no certificates in trust bundle");
	if (!r) {
		r = x509_chain_parse_der(
			&roots, bytes_of(s->bundle.data, s->bundle.len), X509_MAX_ROOTS, e);
		if (r)
			err_wrap(e, "failed to parse trust bundle");
	}
	if (!r)
		r = check_pair(&certs, bytes_of(s->x509_svid_key.data, s->x509_svid_key.len),
			s->spiffe_id, e);
	if (!r)
		r = put_all(x, o, &certs, &roots, s, now);
	x509_chain_deinit(&certs);
	x509_chain_deinit(&roots);
	return r;
}

int files_x509_make(struct files_x509 *ret, const struct files_set_options *o,
	const X509SVIDResponse *m, struct wall now, struct err *e)
{
	struct files_x509 x = { .svid = BUF_INIT,
		.key = BUF_INIT_SECRET,
		.bundle = BUF_INIT,
		.combined = BUF_INIT_SECRET };
	size_t i = 0;
	int r;

	while (i < m->n_svids && !fits(o, m->svids[i]->hint, m->svids[i]->spiffe_id))
		i++;
	if (i == m->n_svids)
		return not_found(o, "x509", e);
	r = make(&x, o, m->svids[i], now, e);
	if (!r && o->include_federated)
		r = put_federated(&x, o, m, now, e);
	if (r) {
		files_x509_deinit(&x);
		return err_wrap(e, "%s", m->svids[i]->spiffe_id);
	}
	*ret = x;
	return 0;
}

void files_x509_deinit(struct files_x509 *x)
{
	buf_deinit(&x->svid);
	buf_deinit(&x->key);
	buf_deinit(&x->bundle);
	buf_deinit(&x->combined);
	free(x->spiffe_id);
	x->spiffe_id = NULL;
}

/* ---- JWT ---- */

static int check_token(const struct jwt *t, const struct files_jwt *j, const char *spiffe_id,
	struct wall now, struct err *e)
{
	if (strcmp(t->sub.text, spiffe_id) != 0)
		return err_set(e, ERR_INVALID, "the token is for \"%s\"", t->sub.text);
	if (!strings_has(&t->aud, j->audience.v[0]))
		return err_set(
			e, ERR_INVALID, "the token lacks the audience \"%s\"", j->audience.v[0]);
	if (t->exp <= now.sec)
		return err_set(e, ERR_INVALID, "the token has expired");
	return 0;
}

int files_jwt_make(struct buf *ret, int64_t *ret_expires, const struct files_set_options *o,
	const struct files_jwt *j, const JWTSVIDResponse *m, struct wall now, struct err *e)
{
	struct jwt t = { .alg = NULL };
	const JWTSVID *s;
	size_t i = 0;
	int r;

	while (i < m->n_svids && !fits(o, m->svids[i]->hint, m->svids[i]->spiffe_id))
		i++;
	if (i == m->n_svids)
		return not_found(o, "JWT", e);
	s = m->svids[i];
	r = jwt_parse(bytes_str(s->svid), &t, e);
	if (!r) {
		r = check_token(&t, j, s->spiffe_id, now, e);
		if (!r) {
			buf_str(ret, s->svid);
			*ret_expires = t.exp;
		}
		jwt_deinit(&t);
	}
	return r ? err_wrap(e, "%s", s->spiffe_id) : 0;
}

/* A JWK Set without the blanks that it may have, as spiffe-helper writes it. */
static int put_jwks(struct buf *ret, struct bytes text, struct err *e)
{
	json_error_t why;
	json_t *j = json_loadb((const char *)text.p, text.n, JSON_REJECT_DUPLICATES, &why);
	char *compact;

	if (!j)
		return err_set(e, ERR_INVALID, "%s", why.text);
	compact = json_dumps(j, JSON_COMPACT);
	json_decref(j);
	if (!compact)
		return err_set(e, ERR_INTERNAL, "cannot write it");
	base64_encode(ret, bytes_str(compact));
	free(compact);
	return 0;
}

int files_jwt_bundle_make(struct buf *ret, const JWTBundlesResponse *m, struct err *e)
{
	json_t *all = json_object();
	char *text;
	int r;

	for (size_t i = 0; i < m->n_bundles; i++) {
		AUTO_BUF struct buf b64 = BUF_INIT;
		const char *td = m->bundles[i]->key;

		if (strncmp(td, SCHEME, strlen(SCHEME)) == 0)
			td += strlen(SCHEME);
		r = put_jwks(
			&b64, bytes_of(m->bundles[i]->value.data, m->bundles[i]->value.len), e);
		if (r) {
			json_decref(all);
			return err_wrap(e, "unable to parse the JWT bundle of \"%s\"", td);
		}
		if (json_object_set_new(all, td, json_string(buf_cstr(&b64))) != 0) {
			json_decref(all);
			return err_set(e, ERR_INVALID,
				"the name of a trust domain is no text: \"%s\"", td);
		}
	}
	text = json_dumps(all, JSON_COMPACT | JSON_SORT_KEYS);
	json_decref(all);
	if (!text)
		return err_set(e, ERR_INTERNAL, "cannot write the JWT bundle");
	buf_str(ret, text);
	free(text);
	return 0;
}

#include "server/ca_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/mem.h"

struct ca_issuer {
	int refs; /* atomic */
	struct keymgr_signer *signer;
	struct x509_cert *cert;
	struct x509_chain chain; /* n = 0: self-signed, and so not sent along */
	struct wall not_after;
	struct buf default_subject; /* C=US, O=SPIRE */
	char *trust_domain;
	int64_t ttl_ns, agent_ttl_ns, ca_ttl_ns;
	bool unique_id;
};

struct ca_jwt_issuer {
	int refs; /* atomic */
	struct keymgr_signer *signer;
	char *key_id;
	int64_t not_after;
	char *issuer;
	char *trust_domain;
	int64_t ttl_ns;
};

static int sign_x509(void *arg, enum hash h, struct bytes digest, struct buf *ret, struct err *e)
{
	return keymgr_sign(arg, h, digest, SIG_X509, ret, e);
}

static int sign_jws(void *arg, enum hash h, struct bytes digest, struct buf *ret, struct err *e)
{
	return keymgr_sign(arg, h, digest, SIG_JWS, ret, e);
}

/* ---- the X.509 issuer ---- */

struct ca_issuer *ca_issuer_new(const struct ca *ca, const struct ca_slot *s)
{
	struct ca_issuer *i = xcalloc(1, sizeof(*i));

	i->refs = 1;
	i->signer = keymgr_signer_ref(s->signer);
	i->cert = x509_ref(s->cert);
	i->chain = x509_chain_dup(&s->chain);
	i->ca_ttl_ns = ca->ca_ttl_ns;
	i->not_after = x509_not_after(s->cert);
	i->default_subject = BUF_INIT;
	x509_name_der(&(struct x509_name){ .country = "US", .organization = "SPIRE" },
		&i->default_subject);
	i->trust_domain = xstrdup(ca->trust_domain);
	i->unique_id = ca->unique_id;
	i->ttl_ns = ca->x509_svid_ttl_ns;
	i->agent_ttl_ns = ca->agent_ttl_ns > 0 ? ca->agent_ttl_ns : ca->x509_svid_ttl_ns;
	return i;
}

bool ca_issuer_is_of(const struct ca_issuer *i, const struct ca_slot *s)
{
	return i && i->signer == s->signer;
}

struct ca_issuer *ca_issuer_ref(struct ca_issuer *i)
{
	__atomic_add_fetch(&i->refs, 1, __ATOMIC_RELAXED);
	return i;
}

void ca_issuer_unref(struct ca_issuer *i)
{
	if (!i || __atomic_sub_fetch(&i->refs, 1, __ATOMIC_ACQ_REL) > 0)
		return;
	keymgr_signer_unref(i->signer);
	x509_unref(i->cert);
	x509_chain_deinit(&i->chain);
	buf_deinit(&i->default_subject);
	free(i->trust_domain);
	free(i);
}

void ca_serial_decimal(const uint8_t serial[16], char ret[48])
{
	unsigned __int128 v = 0;
	char digits[48];
	int n = 0;

	for (int i = 0; i < 16; i++)
		v = v << 8 | serial[i];
	do {
		digits[n++] = (char)('0' + (int)(v % 10));
		v /= 10;
	} while (v);
	for (int i = 0; i < n; i++)
		ret[i] = digits[n - 1 - i];
	ret[n] = 0;
}

enum { UNIQUE_ID_SIZE = 16 }; /* of the SHA-256; enough that nobody finds two alike */

static int add_unique_id(const char *spiffe_id, struct buf *subject, struct err *e)
{
	AUTO_BUF struct buf hex = BUF_INIT;
	AUTO_BUF struct buf with = BUF_INIT;
	uint8_t hash[HASH_MAX];
	int r;

	hash_of(HASH_SHA256, bytes_str(spiffe_id), hash);
	hex_encode(&hex, bytes_of(hash, UNIQUE_ID_SIZE));
	r = x509_name_with_unique_id(buf_view(subject), buf_cstr(&hex), &with, e);
	if (r)
		return r;
	buf_reset(subject);
	buf_bytes(subject, buf_view(&with));
	return 0;
}

/* SPIRE's rule: the default subject when none is asked for; the first DNS name becomes the CN. */
static int make_subject(
	const struct ca_issuer *i, const struct ca_x509_params *p, struct buf *ret, struct err *e)
{
	/* A Name without parts is two bytes. */
	struct bytes asked = p->subject_raw.n > 2 ? p->subject_raw : buf_view(&i->default_subject);
	int r = 0;

	if (p->n_dns_names == 0)
		buf_bytes(ret, asked);
	else
		r = x509_name_with_cn(asked, p->dns_names[0], ret, e);
	return !r && p->workload && i->unique_id ? add_unique_id(p->spiffe_id, ret, e) : r;
}

/* NotAfter = min(now + ttl, the issuer's own). */
static int pick_not_after(
	const struct ca_issuer *i, const struct ca_x509_params *p, struct wall *ret, struct err *e)
{
	int64_t left = wall_sub_ns(i->not_after, p->now);
	int64_t ttl = p->ttl_ns > 0 ? p->ttl_ns : p->agent ? i->agent_ttl_ns : i->ttl_ns;

	if (left <= 0)
		return err_set(e, ERR_UNAVAILABLE, "X509 CA has expired");
	*ret = ttl < left ? wall_of_sec(wall_add_ns(p->now, ttl).sec) : i->not_after;
	return 0;
}

static int check_id(const char *text, const char *trust_domain, struct err *e)
{
	struct spiffeid id = SPIFFEID_INIT;
	int r = spiffeid_parse_str(&id, text, e);

	if (r)
		return r;
	if (!spiffeid_member_of(&id, trust_domain))
		r = err_set(e, ERR_INVALID, "\"%.300s\" is not a member of trust domain \"%s\"",
			text, trust_domain);
	spiffeid_deinit(&id);
	return r;
}

static int build_checked(
	const struct ca_issuer *i, const struct x509_template *t, struct buf *ret, struct err *e)
{
	const struct x509_signer signer = {
		.type = keymgr_signer_type(i->signer), .sign = sign_x509, .arg = i->signer
	};
	const struct ca_expect x = {
		.issuer_raw = t->issuer_raw,
		.spki = t->spki,
		.spiffe_id = t->uris[0],
		.not_before = t->not_before,
		.not_after = t->not_after,
	};
	int r = x509_build(t, &signer, ret, e);

	return r ? r : ca_check_svid(buf_view(ret), &x, e);
}

int ca_sign_x509_svid(struct ca_issuer *i, const struct ca_x509_params *p, struct ca_x509_svid *ret,
	struct err *e)
{
	AUTO_BUF struct buf subject = BUF_INIT;
	AUTO_BUF struct buf der = BUF_INIT;
	struct wall not_after = { .sec = 0 };
	uint8_t serial[16];
	int r = check_id(p->spiffe_id, i->trust_domain, e);

	if (!r)
		r = pick_not_after(i, p, &not_after, e);
	if (!r)
		r = make_subject(i, p, &subject, e);
	if (r)
		return r;
	x509_random_serial(serial);
	r = build_checked(i,
		&(struct x509_template){
			.serial = bytes_of(serial, sizeof(serial)),
			.subject_raw = buf_view(&subject),
			.issuer_raw = x509_subject_raw(i->cert),
			.not_before = wall_of_sec(p->now.sec - CA_BACKDATE_S),
			.not_after = not_after,
			.spki = p->spki,
			.key_usage = KU_DIGITAL_SIGNATURE | KU_KEY_ENCIPHERMENT | KU_KEY_AGREEMENT,
			.eku_server_client = true,
			.aki = x509_ski(i->cert),
			.uris = &p->spiffe_id,
			.n_uris = 1,
			.dns_names = p->dns_names,
			.n_dns_names = p->n_dns_names,
		},
		&der, e);
	if (r)
		return r;
	*ret = (struct ca_x509_svid){ .chain = BUF_INIT, .leaf = der, .expires_at = not_after.sec };
	der = BUF_INIT;
	/* An issuer that is a self-signed root is left out. */
	buf_bytes(&ret->chain, buf_view(&ret->leaf));
	x509_chain_der(&i->chain, &ret->chain);
	ca_serial_decimal(serial, ret->serial);
	return 0;
}

void ca_x509_svid_deinit(struct ca_x509_svid *s)
{
	buf_deinit(&s->chain);
	buf_deinit(&s->leaf);
}

/* ---- CAs below this one ---- */

/* SPIRE's rule: the parent's subject, with an OU that tells how far down it is. */
static int downstream_subject(const struct ca_issuer *i, struct buf *ret, struct err *e)
{
	AUTO(free) char *ou = xasprintf("DOWNSTREAM-%zu", i->chain.n ? i->chain.n : 1);

	return x509_name_with_ou(x509_subject_raw(i->cert), ou, ret, e);
}

static int build_downstream(const struct ca_issuer *i, struct bytes spki, struct wall now,
	struct wall not_after, struct buf *ret, struct err *e)
{
	const struct x509_signer signer = {
		.type = keymgr_signer_type(i->signer), .sign = sign_x509, .arg = i->signer
	};
	AUTO(free) char *uri = xasprintf("spiffe://%s", i->trust_domain);
	const char *uris[] = { uri };
	AUTO_BUF struct buf subject = BUF_INIT;
	uint8_t serial[16];
	int r = downstream_subject(i, &subject, e);

	if (r)
		return r;
	x509_random_serial(serial);
	return x509_build(&(struct x509_template){ .serial = bytes_of(serial, sizeof(serial)),
				  .subject_raw = buf_view(&subject),
				  .issuer_raw = x509_subject_raw(i->cert),
				  .not_before = wall_of_sec(now.sec - CA_BACKDATE_S),
				  .not_after = not_after,
				  .spki = spki,
				  .is_ca = true,
				  .key_usage = KU_CERT_SIGN | KU_CRL_SIGN,
				  .aki = x509_ski(i->cert),
				  .uris = uris,
				  .n_uris = 1 },
		&signer, ret, e);
}

int ca_sign_downstream(struct ca_issuer *i, struct bytes spki, int64_t ttl_ns,
	struct x509_chain *ret, struct err *e)
{
	const struct ca_x509_params p = { .ttl_ns = ttl_ns > 0 ? ttl_ns : i->ca_ttl_ns,
		.now = clock_wall() };
	AUTO_BUF struct buf der = BUF_INIT_MAX(X509_MAX_DER);
	AUTO(x509_unref) struct x509_cert *c = NULL;
	struct wall not_after = { .sec = 0 };
	int r = pick_not_after(i, &p, &not_after, e);

	if (!r)
		r = build_downstream(i, spki, p.now, not_after, &der, e);
	if (!r)
		r = x509_parse(buf_view(&der), &c, e);
	if (!r)
		r = x509_signed_by(c, i->cert, e);
	if (r)
		return r;
	x509_chain_add(ret, c);
	for (size_t k = 0; k < i->chain.n; k++)
		x509_chain_add(ret, i->chain.v[k]);
	return 0;
}

int ca_self_test(struct ca *ca, struct err *e)
{
	struct ca_issuer *i = ca_issuer(ca);
	struct ca_x509_svid svid = { .chain = BUF_INIT, .leaf = BUF_INIT };
	AUTO(free) char *id = xasprintf("spiffe://%s/for/health/check/only", ca->trust_domain);
	int r;

	if (!i)
		return err_set(e, ERR_UNAVAILABLE, "X509 CA is not available for signing");
	r = ca_sign_x509_svid(i,
		&(struct ca_x509_params){ .spiffe_id = id,
			.spki = pubkey_spki(x509_pubkey(i->cert)),
			.now = clock_wall() },
		&svid, e);
	ca_x509_svid_deinit(&svid);
	ca_issuer_unref(i);
	return r;
}

/* ---- the JWT issuer ---- */

struct ca_jwt_issuer *ca_jwt_issuer_new(const struct ca *ca, const struct ca_slot *s)
{
	struct ca_jwt_issuer *i = xcalloc(1, sizeof(*i));

	i->refs = 1;
	i->signer = keymgr_signer_ref(s->signer);
	i->key_id = xstrdup(s->id);
	i->not_after = s->not_after;
	i->issuer = ca->jwt_issuer_name ? xstrdup(ca->jwt_issuer_name) : NULL;
	i->trust_domain = xstrdup(ca->trust_domain);
	i->ttl_ns = ca->jwt_svid_ttl_ns;
	return i;
}

bool ca_jwt_issuer_is_of(const struct ca_jwt_issuer *i, const struct ca_slot *s)
{
	return i && i->signer == s->signer;
}

struct ca_jwt_issuer *ca_jwt_issuer_ref(struct ca_jwt_issuer *i)
{
	__atomic_add_fetch(&i->refs, 1, __ATOMIC_RELAXED);
	return i;
}

void ca_jwt_issuer_unref(struct ca_jwt_issuer *i)
{
	if (!i || __atomic_sub_fetch(&i->refs, 1, __ATOMIC_ACQ_REL) > 0)
		return;
	keymgr_signer_unref(i->signer);
	free(i->key_id);
	free(i->issuer);
	free(i->trust_domain);
	free(i);
}

/* base64url of the 16 bytes of a random UUID (RFC 9562 5.4). */
static void make_jti(struct buf *ret)
{
	uint8_t uuid[16];

	crypto_random(uuid, sizeof(uuid));
	uuid[6] = (uint8_t)((uuid[6] & 0x0f) | 0x40);
	uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
	base64url_encode(ret, bytes_of(uuid, sizeof(uuid)));
}

/* What leaves is read again, as SPIRE does. */
static int check_jwt(struct bytes token, const struct jwt_claims *c, struct err *e)
{
	struct jwt j = { .signature = BUF_INIT };
	int r = jwt_parse(token, &j, e);

	if (r)
		return err_wrap(e, "invalid JWT-SVID");
	if (strcmp(j.sub.text, c->sub) != 0 || j.exp != c->exp || j.iat != c->iat ||
		j.aud.n != c->n_aud)
		r = err_set(e, ERR_INTERNAL, "invalid JWT-SVID: claims are not as asked for");
	jwt_deinit(&j);
	return r;
}

static int sign_claims(
	struct ca_jwt_issuer *i, const struct jwt_claims *c, struct buf *ret, struct err *e)
{
	const struct x509_signer signer = {
		.type = keymgr_signer_type(i->signer), .sign = sign_jws, .arg = i->signer
	};
	AUTO_BUF struct buf token = BUF_INIT_MAX(JWT_MAX);
	int r = jwt_sign(c, i->key_id, &signer, &token, e);

	if (!r)
		r = check_jwt(buf_view(&token), c, e);
	if (!r)
		buf_bytes(ret, buf_view(&token));
	return r;
}

static int64_t pick_exp(const struct ca_jwt_issuer *i, const struct ca_jwt_params *p)
{
	int64_t left = wall_sub_ns(wall_of_sec(i->not_after), p->now);
	int64_t ttl = p->ttl_ns > 0 ? p->ttl_ns : i->ttl_ns;

	return ttl < left ? wall_add_ns(p->now, ttl).sec : i->not_after;
}

int ca_sign_jwt_svid(struct ca_jwt_issuer *i, const struct ca_jwt_params *p, struct buf *ret,
	int64_t *ret_iat, int64_t *ret_exp, struct err *e)
{
	AUTO_BUF struct buf jti = BUF_INIT;
	const char *aud[JWT_MAX_AUDIENCES];
	struct jwt_claims c = { .sub = p->spiffe_id, .aud = aud, .iss = i->issuer };
	int r = check_id(p->spiffe_id, i->trust_domain, e);

	if (r)
		return r;
	for (size_t k = 0; k < p->n_aud; k++) {
		if (!p->aud[k][0])
			continue;
		if (c.n_aud == JWT_MAX_AUDIENCES)
			return err_set(e, ERR_INVALID, "more than %d audiences", JWT_MAX_AUDIENCES);
		aud[c.n_aud++] = p->aud[k];
	}
	if (c.n_aud == 0)
		return err_set(e, ERR_INVALID, "at least one audience is required");
	if (p->now.sec >= i->not_after)
		return err_set(e, ERR_UNAVAILABLE, "JWT key has expired");
	c.iat = p->now.sec;
	c.exp = pick_exp(i, p);
	if (p->jti) {
		make_jti(&jti);
		c.jti = buf_cstr(&jti);
	}
	r = sign_claims(i, &c, ret, e);
	if (r)
		return r;
	*ret_iat = c.iat;
	*ret_exp = c.exp;
	return 0;
}

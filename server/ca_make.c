#include "server/ca_internal.h"

#include <stdlib.h>
#include <string.h>

#include "lib/mem.h"

enum { KID_LEN = 32 };

void ca_slot_deinit(struct ca_slot *s)
{
	free(s->id);
	free(s->root_id);
	free(s->upstream_id);
	x509_unref(s->cert);
	x509_chain_deinit(&s->chain);
	x509_unref(s->anchor);
	pubkey_unref(s->pub);
	keymgr_signer_unref(s->signer);
	*s = (struct ca_slot){ .status = CA_UNUSED };
}

static int sign_x509(void *arg, enum hash h, struct bytes digest, struct buf *ret, struct err *e)
{
	return keymgr_sign(arg, h, digest, SIG_X509, ret, e);
}

/* The serial number in the subject gives every root a name of its own: verifiers try only the root
 * that signed. */
static void make_name(const struct ca *ca, const uint8_t serial[16], struct buf *ret)
{
	char decimal[48];

	ca_serial_decimal(serial, decimal);
	x509_name_der(&(struct x509_name){ .country = ca->country,
			      .organization = ca->organization,
			      .serial_number = decimal,
			      .common_name = ca->common_name },
		ret);
}

static int check_root(const struct x509_cert *c, const char *uri, struct err *e)
{
	const struct strings *uris = x509_uris(c);
	bool present = false;
	unsigned ku = x509_key_usage(c, &present);

	if (!x509_is_ca(c) || !present || ku != (KU_CERT_SIGN | KU_CRL_SIGN) || uris->n != 1 ||
		strcmp(uris->v[0], uri) != 0 || x509_ski(c).n == 0)
		return err_set(e, ERR_INTERNAL, "invalid X509 CA certificate");
	return x509_signed_by(c, c, e);
}

static int make_cert(const struct ca *ca, struct wall now, struct ca_slot *s, struct err *e)
{
	const struct x509_signer signer = {
		.type = keymgr_signer_type(s->signer), .sign = sign_x509, .arg = s->signer
	};
	AUTO(free) char *uri = xasprintf("spiffe://%s", ca->trust_domain);
	const char *uris[] = { uri };
	AUTO_BUF struct buf name = BUF_INIT;
	AUTO_BUF struct buf der = BUF_INIT;
	uint8_t serial[16];
	int r;

	x509_random_serial(serial);
	make_name(ca, serial, &name);
	r = x509_build(
		&(struct x509_template){
			.serial = bytes_of(serial, sizeof(serial)),
			.subject_raw = buf_view(&name),
			.issuer_raw = buf_view(&name),
			.not_before = wall_of_sec(now.sec - CA_BACKDATE_S),
			.not_after = wall_of_sec(s->not_after),
			.spki = pubkey_spki(s->pub),
			.is_ca = true,
			.key_usage = KU_CERT_SIGN | KU_CRL_SIGN,
			.uris = uris,
			.n_uris = 1,
		},
		&signer, &der, e);
	if (!r)
		r = x509_parse(buf_view(&der), &s->cert, e);
	return r ? r : check_root(s->cert, uri, e);
}

/* What an upstream is to sign. Its subject has a number of its own for the same reason. */
static int make_csr(const struct ca *ca, const struct ca_slot *s, struct buf *ret, struct err *e)
{
	const struct x509_signer signer = {
		.type = keymgr_signer_type(s->signer), .sign = sign_x509, .arg = s->signer
	};
	AUTO(free) char *uri = xasprintf("spiffe://%s", ca->trust_domain);
	AUTO_BUF struct buf name = BUF_INIT;
	uint8_t serial[16];

	x509_random_serial(serial);
	make_name(ca, serial, &name);
	return x509_csr_build(
		&(struct x509_csr_template){
			.subject_raw = buf_view(&name), .spki = pubkey_spki(s->pub), .uri = uri },
		&signer, ret, e);
}

/* 32 characters of [a-zA-Z0-9], each as likely as the others. */
static char *random_kid(void)
{
	static const char set[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
	char *kid = xcalloc(1, KID_LEN + 1);

	for (int i = 0; i < KID_LEN;) {
		uint8_t c;

		crypto_random(&c, 1);
		if (c < 4 * (sizeof(set) - 1))
			kid[i++] = set[c % (sizeof(set) - 1)];
	}
	return kid;
}

static int fill(const struct ca *ca, enum ca_kind k, const char *name, struct wall now,
	struct ca_slot *s, struct buf *ret_csr, struct err *e)
{
	int r = keymgr_generate(ca->keymgr, name, ca->key_type[k], &s->pub, e);

	if (!r)
		r = keymgr_signer(ca->keymgr, name, &s->signer, e);
	if (r)
		return r;
	s->status = CA_PREPARED;
	s->issued_at = now.sec;
	s->not_after = wall_add_ns(now, ca->ca_ttl_ns).sec;
	if (k == CA_JWT) {
		s->id = random_kid();
		return 0;
	}
	if (ca->upstream)
		return make_csr(ca, s, ret_csr, e);
	r = make_cert(ca, now, s, e);
	if (!r)
		s->id = ca_key_id_text(x509_ski(s->cert));
	return r;
}

int ca_make(const struct ca *ca, enum ca_kind k, int slot, struct wall now, struct ca_slot *ret,
	struct buf *ret_csr, struct err *e)
{
	struct ca_slot s = { .status = CA_UNUSED };
	int r = fill(ca, k, ca_key_name(k, slot), now, &s, ret_csr, e);

	if (r) {
		ca_slot_deinit(&s);
		return r;
	}
	*ret = s;
	return 0;
}

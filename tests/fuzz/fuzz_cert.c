/* A certificate that parses can be shown, verified and used as a root, and is its own bytes. */
#include <string.h>

#include "lib/x509.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

/* Either answer is right; what counts is that there is one. */
static void ignore(int r)
{
	(void)r;
}

static const struct wall now = { .sec = 1767225600 };

static int sign(void *arg, enum hash h, struct bytes digest, struct buf *ret, struct err *e)
{
	return key_sign(arg, h, digest, SIG_X509, ret, e);
}

/* Issued by "CN=root", with names for name constraints to look at. */
static struct x509_chain make_leaf(void)
{
	static const char *const uris[] = { "spiffe://example.org/a", "urn:x", "https://u@h:1/x" };
	static const char *const dns[] = { "a.example.org", "*.example.org" };
	struct x509_name name = { .common_name = "root" };
	struct buf issuer = BUF_INIT, der = BUF_INIT;
	struct x509_chain ch = { 0 };
	struct x509_cert *c = NULL;
	struct key *k = NULL;
	struct x509_signer s = { .type = KEY_EC_P256, .sign = sign };
	struct x509_template t = {
		.serial = bytes_of("\x01", 1),
		.not_before = now,
		.not_after = now,
		.key_usage = KU_DIGITAL_SIGNATURE,
		.uris = uris,
		.n_uris = 3,
		.dns_names = dns,
		.n_dns_names = 2,
	};
	struct err e;

	crypto_init();
	INVARIANT(key_generate(KEY_EC_P256, &k, &e) == 0);
	s.arg = k;
	x509_name_der(&name, &issuer);
	t.issuer_raw = buf_view(&issuer);
	t.spki = pubkey_spki(key_public(k));
	INVARIANT(x509_build(&t, &s, &der, &e) == 0);
	INVARIANT(x509_parse(buf_view(&der), &c, &e) == 0);
	x509_chain_add(&ch, c);
	x509_unref(c);
	key_unref(k);
	buf_deinit(&issuer);
	buf_deinit(&der);
	return ch;
}

static void use(struct x509_cert *c)
{
	static struct x509_chain leaf;
	struct x509_chain one = { 0 };
	struct spiffeid id = SPIFFEID_INIT;
	AUTO_BUF struct buf text = BUF_INIT, cn = BUF_INIT;
	struct err e;

	if (!leaf.n)
		leaf = make_leaf();
	x509_chain_add(&one, c);
	ignore(x509_verify(&leaf, &one, now, &e));
	ignore(x509_verify(&one, &leaf, x509_not_before(c), &e));
	ignore(x509_signed_by(c, c, &e));
	if (x509_svid_id(c, &id, &e) == 0)
		INVARIANT(!x509_is_ca(c) && x509_uris(c)->n == 1 &&
			  strcmp(id.text, x509_uris(c)->v[0]) == 0);
	spiffeid_deinit(&id);
	x509_subject_text(c, &text);
	x509_serial_decimal(c, &text);
	x509_serial_hex(c, &text);
	buf_str(&text, x509_subject_cn(c));
	INVARIANT(x509_name_with_cn(x509_subject_raw(c), "x", &cn, &e) == 0);
	x509_chain_deinit(&one);
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	struct x509_chain ch = { 0 };
	struct x509_cert *c = NULL;
	struct err e;

	if (x509_parse(bytes_of(p, n), &c, &e) == 0) {
		INVARIANT(bytes_equal(x509_der(c), bytes_of(p, n)));
		use(c);
		x509_unref(c);
	}
	if (x509_chain_parse_der(&ch, bytes_of(p, n), X509_MAX_CHAIN, &e) == 0) {
		ignore(x509_verify(&ch, &ch, now, &e));
		x509_chain_deinit(&ch);
	}
	return 0;
}

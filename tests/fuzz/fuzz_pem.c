/* PEM, base64 and private keys; what is read can be written and read again. */
#include <string.h>

#include "lib/x509.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

/* Either answer is right; what counts is that there is one. */
static void ignore(int r)
{
	(void)r;
}

static int again(void *arg, const char *label, struct bytes der, struct err *e)
{
	struct bytes *want = arg;

	(void)label;
	(void)e;
	INVARIANT(bytes_equal(der, *want));
	want->p = NULL;
	return 0;
}

static int each(void *arg, const char *label, struct bytes der, struct err *e)
{
	AUTO_BUF struct buf text = BUF_INIT;
	struct bytes want = der;
	const char *dashes = strstr(label, "-----");
	struct err inner;

	(void)arg;
	(void)e;
	pem_write(&text, label, der);
	if (!dashes && strlen(label) <= 50) {
		int r = pem_each(buf_view(&text), again, &want, &inner);

		INVARIANT(r == 0);
	}
	return 0;
}

static void keys(struct bytes in)
{
	struct buf der = BUF_INIT_SECRET;
	struct key *k = NULL, *k2 = NULL;
	struct err e;

	if (key_from_pem(in, &k, &e) && key_from_pkcs8(in, &k, &e))
		return;
	key_to_pkcs8(k, &der);
	INVARIANT(key_from_pkcs8(buf_view(&der), &k2, &e) == 0);
	INVARIANT(bytes_equal(pubkey_spki(key_public(k)), pubkey_spki(key_public(k2))));
	buf_deinit(&der);
	key_unref(k);
	key_unref(k2);
}

static void codec(struct bytes in)
{
	AUTO_BUF struct buf plain = BUF_INIT, text = BUF_INIT;
	struct err e;

	if (base64_decode(&plain, in, &e) == 0) {
		base64_encode(&text, buf_view(&plain));
		INVARIANT(bytes_equal(buf_view(&text), in));
	}
	buf_reset(&plain);
	buf_reset(&text);
	if (base64url_decode(&plain, in, &e) == 0) {
		base64url_encode(&text, buf_view(&plain));
		INVARIANT(bytes_equal(buf_view(&text), in));
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	struct x509_chain ch = { 0 };
	struct bytes in = bytes_of(p, n);
	struct err e;

	crypto_init();
	ignore(pem_each(in, each, NULL, &e));
	if (x509_chain_parse_pem(&ch, in, X509_MAX_CHAIN, &e) == 0)
		x509_chain_deinit(&ch);
	keys(in);
	codec(in);
	return 0;
}

/* x509pop: first byte 0: a payload, 1: a response to a challenge, 2: an agent path template. */
#include <string.h>

#include "lib/crypto.h"
#include "server/attest_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void payload(struct bytes v)
{
	static struct x509pop config;
	static const struct x509_chain no_roots;
	struct x509pop_state st = { .config = &config };
	AUTO_BUF struct buf out = BUF_INIT;
	struct err e;

	config.max_intermediates = 4;
	config.max_rsa_bits = 8192;
	INVARIANT(x509pop_challenge(&st, &no_roots, v, "192.0.2.1", wall_of_sec(1767225600), &out,
			  &e) != 0); /* nothing is trusted */
	x509pop_state_deinit(&st);
}

static int sign_with(void *arg, enum hash h, struct bytes digest, struct buf *ret, struct err *e)
{
	return key_sign(arg, h, digest, SIG_X509, ret, e);
}

/* A leaf that is there and valid, so that the response is what counts. */
static void response(struct bytes v)
{
	static struct x509_cert *leaf;
	static struct x509pop config = { .max_intermediates = 4, .max_rsa_bits = 8192 };
	struct x509pop_state st = { .config = &config };
	struct err e;

	if (!leaf) {
		AUTO(key_unref) struct key *k = NULL;
		AUTO_BUF struct buf der = BUF_INIT, name = BUF_INIT;
		struct x509_name cn = { .common_name = "fuzz" };
		static const uint8_t one = 1;
		struct x509_template t = { .serial = bytes_of(&one, 1),
			.not_after = wall_of_sec(2000000000),
			.key_usage = KU_DIGITAL_SIGNATURE };
		struct x509_signer s = { .type = KEY_EC_P256 };

		INVARIANT(key_generate(KEY_EC_P256, &k, &e) == 0);
		x509_name_der(&cn, &name);
		t.subject_raw = t.issuer_raw = buf_view(&name);
		t.spki = pubkey_spki(key_public(k));
		s.sign = sign_with;
		s.arg = k;
		INVARIANT(x509_build(&t, &s, &der, &e) == 0);
		INVARIANT(x509_parse(buf_view(&der), &leaf, &e) == 0);
	}
	x509_chain_add(&st.chain, leaf);
	INVARIANT(x509pop_verify(&st, v, &e) != 0);
	x509pop_state_deinit(&st);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct err e;
	char text[2000];

	crypto_init();
	if (n == 0)
		return 0;
	if (data[0] % 3 == 0)
		payload(bytes_of(data + 1, n - 1));
	else if (data[0] % 3 == 1)
		response(bytes_of(data + 1, n - 1));
	else if (n < sizeof(text)) {
		memcpy(text, data + 1, n - 1);
		text[n - 1] = 0;
		INVARIANT(attest_template_check(text, &x509pop_template_type, &e) != 0 ||
			  text[0] == '/');
	}
	return 0;
}

/* A token that parses holds what a JWT-SVID must; verification against a bundle refuses it. */
#include "lib/jwt.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	static struct bundle *b;
	struct err e = ERR_INIT;
	struct jwt j;

	if (!b) {
		struct key *k = NULL;

		crypto_init();
		INVARIANT(key_generate(KEY_EC_P256, &k, &e) == 0);
		b = bundle_new("td");
		(void)bundle_add_jwt_key(b, "k", key_public(k), 0, false);
		key_unref(k);
	}
	if (jwt_parse(bytes_of(p, n), &j, &e) != 0)
		return 0;
	INVARIANT(j.aud.n > 0 && j.sub.text && j.claims_json);
	INVARIANT(jwt_verify(&j, b, j.aud.v[0], wall_of_sec(1), &e) == ERR_INVALID);
	jwt_deinit(&j);
	return 0;
}

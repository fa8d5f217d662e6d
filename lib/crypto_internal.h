/* Inside of crypto and tls only: wolfCrypt's types. */
#ifndef ASSAY_LIB_CRYPTO_INTERNAL_H
#define ASSAY_LIB_CRYPTO_INTERNAL_H

#include <wolfssl/options.h>
#include <wolfssl/wolfcrypt/settings.h>

#include <wolfssl/wolfcrypt/asn_public.h>
#include <wolfssl/wolfcrypt/ecc.h>
#include <wolfssl/wolfcrypt/hash.h>
#include <wolfssl/wolfcrypt/random.h>
#include <wolfssl/wolfcrypt/rsa.h>

#include "lib/crypto.h"

enum {
	EC_MAX_SIZE = 66, /* bytes of a P-521 coordinate */
	RSA_MIN_BITS = 2048,
	RSA_MAX_BITS = 4096, /* what the pinned wolfSSL's numbers hold */
	RSA_MAX_BYTES = RSA_MAX_BITS / 8,
	DIGEST_INFO_MAX = 19 + HASH_MAX,
};

struct curve {
	enum key_type type;
	int id; /* wolfCrypt's */
	uint8_t size;
	int bits;
	struct bytes oid;
	struct bytes prime;
};
const struct curve *curve_of(enum key_type t); /* NULL when t is no curve */
const struct curve *curve_of_oid(struct bytes oid);

struct bytes crypto_oid_ec_key(void);  /* id-ecPublicKey, RFC 5480 2.1.1 */
struct bytes crypto_oid_rsa_key(void); /* rsaEncryption, RFC 8017 A.1 */

/* This thread's generator. */
WC_RNG *crypto_rng(void);
enum wc_HashType hash_wolf(enum hash h);
/* DigestInfo of RFC 8017 9.2; the size of what was written, 0 for a hash that may not sign. */
size_t digest_info(enum hash h, struct bytes digest, uint8_t ret[static DIGEST_INFO_MAX]);
/* Checks a digest handed in for signing or verifying. */
int digest_check(enum hash h, struct bytes digest, struct err *e);

/* A public key from an uncompressed point whose validity is known. */
struct pubkey *pubkey_of_point(const struct curve *c, const uint8_t *point);
const uint8_t *pubkey_point(const struct pubkey *p);

/* Ed25519, RFC 8032: crypto_private.c. */
enum { ED25519_SEED = 32, ED25519_PUBLIC = 32 };
bool ed25519_public(const uint8_t seed[static ED25519_SEED], uint8_t ret[static ED25519_PUBLIC]);
bool ed25519_sign(const uint8_t seed[static ED25519_SEED],
	const uint8_t public[static ED25519_PUBLIC], struct bytes message, struct buf *ret);
struct bytes pubkey_ed25519(const struct pubkey *p); /* its 32 bytes */

#endif

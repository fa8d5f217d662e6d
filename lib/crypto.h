/*
 * Keys, signatures, hashes, random numbers, PEM, base64 — on wolfCrypt, which nothing outside
 * crypto, x509, jwt and tls sees.
 *
 * A struct key is immutable and may be used by many threads at once: signing takes one of several
 * private copies inside (wolfCrypt's key objects must not be shared between threads). Private parts
 * are wiped when freed.
 */
#ifndef ASSAY_LIB_CRYPTO_H
#define ASSAY_LIB_CRYPTO_H

#include <stdbool.h>

#include "lib/buf.h"
#include "lib/err.h"

/* Once, before any thread, by every program and test. */
void crypto_init(void);

enum key_type {
	KEY_NONE,
	KEY_EC_P256,
	KEY_EC_P384,
	KEY_EC_P521,
	KEY_RSA_2048,
	KEY_RSA_4096,
	KEY_RSA_OTHER,
	KEY_ED25519
};

/* "ec-p256", "ec-p384", "rsa-2048", "rsa-4096" as in configuration files. ERR_INVALID names the
 * choices. */
int key_type_parse(const char *s, enum key_type *ret, struct err *e) MUST_USE;
const char *key_type_name(enum key_type t);

enum hash { HASH_SHA1, HASH_SHA256, HASH_SHA384, HASH_SHA512 };
enum { HASH_MAX = 64 };
size_t hash_size(enum hash h);
void hash_of(enum hash h, struct bytes data, uint8_t *ret);
struct hasher; /* incremental */
struct hasher *hasher_new(enum hash h);
void hasher_update(struct hasher *h, struct bytes data);
void hasher_final(struct hasher *h, uint8_t *ret); /* frees h */

/* How a signature is made and laid out. */
enum sig_scheme {
	SIG_X509,    /* ECDSA: DER r,s; RSA: PKCS#1 v1.5. As in certificates. */
	SIG_JWS,     /* ECDSA: fixed-width r||s (RFC 7518 3.4); RSA: PKCS#1 v1.5 */
	SIG_RSA_PSS, /* salt as long as the hash; verification finds the salt length */
};

/* Public keys. Immutable, any thread. */
struct pubkey;
/* From a DER SubjectPublicKeyInfo; the point is checked to be on the curve. ERR_INVALID when it is
 * malformed; ERR_UNIMPLEMENTED when its algorithm, curve or size (RSA: 2,048 to 4,096 bits are
 * known) is not. */
int pubkey_from_spki(struct bytes der, struct pubkey **ret, struct err *e) MUST_USE;
/* From JWK members (kty EC: x, y raw big-endian; kty RSA: n, e). */
int pubkey_from_ec(enum key_type curve, struct bytes x, struct bytes y, struct pubkey **ret,
	struct err *e) MUST_USE;
int pubkey_from_rsa(struct bytes n, struct bytes e_, struct pubkey **ret, struct err *e) MUST_USE;
struct pubkey *pubkey_ref(struct pubkey *p);
void pubkey_unref(struct pubkey *p);
enum key_type pubkey_type(const struct pubkey *p);
int pubkey_bits(const struct pubkey *p);
struct bytes pubkey_spki(const struct pubkey *p); /* DER, borrowed */
void pubkey_key_id(const struct pubkey *p,
	uint8_t ret[20]); /* SHA-1 of the public key bits: the SKI of RFC 5280 4.2.1.2 (1) */
void pubkey_ec_xy(const struct pubkey *p, struct buf *x, struct buf *y);   /* fixed width */
void pubkey_rsa_ne(const struct pubkey *p, struct buf *n, struct buf *e_); /* minimal */
/* ERR_INVALID when the signature is not good. digest is of the size of h. */
int pubkey_verify(const struct pubkey *p, enum hash h, struct bytes digest, enum sig_scheme s,
	struct bytes sig, struct err *e) MUST_USE;

/* The same over a message, hashed here; the only form that Ed25519 has (h and s are not looked at).
 */
int pubkey_verify_message(const struct pubkey *p, enum hash h, struct bytes message,
	enum sig_scheme s, struct bytes sig, struct err *e) MUST_USE;

/* RSA with SHA-1, PKCS#1 v1.5: only where nobody but the signer chose what was signed, so that
 * collisions do not matter (SSH's "ssh-rsa" in a challenge's answer). Not for certificates. */
int pubkey_verify_rsa_sha1(
	const struct pubkey *p, struct bytes message, struct bytes sig, struct err *e) MUST_USE;

/* Private keys. */
struct key;
int key_generate(enum key_type t, struct key **ret, struct err *e) MUST_USE;
int key_from_pkcs8(
	struct bytes der, struct key **ret, struct err *e) MUST_USE; /* also SEC1 and PKCS#1 */
int key_from_pem(struct bytes pem, struct key **ret,
	struct err *e) MUST_USE; /* refuses encrypted ones with a clear text */
/* From numbers, big-endian. key_sign() does not know Ed25519 (RFC 8032 signs messages, not
 * digests), nor do certificates and TLS: key_sign_message() does. */
int key_from_ed25519(struct bytes seed, struct key **ret, struct err *e) MUST_USE;
struct rsa_numbers {
	struct bytes n, e, d, p, q, q_inverse;
};
int key_from_rsa(const struct rsa_numbers *v, struct key **ret, struct err *e) MUST_USE;
struct key *key_ref(struct key *k);
void key_unref(struct key *k);
enum key_type key_get_type(const struct key *k);
struct pubkey *key_public(const struct key *k);          /* borrowed */
void key_to_pkcs8(const struct key *k, struct buf *ret); /* ret must be marked secret */
int key_sign(const struct key *k, enum hash h, struct bytes digest, enum sig_scheme s,
	struct buf *ret, struct err *e) MUST_USE;
/* As pubkey_verify_message(). */
int key_sign_message(const struct key *k, enum hash h, struct bytes message, enum sig_scheme s,
	struct buf *ret, struct err *e) MUST_USE;
enum hash key_type_hash(enum key_type t); /* SHA-384 for P-384, SHA-512 for P-521, else SHA-256:
					     what certificates and JWS use */

void crypto_random(void *ret, size_t n); /* never fails: aborts instead */

/* Authenticated encryption, AES-256-GCM: nonce (12) || ciphertext || tag (16). aad binds a context.
 */
int aead_seal(const uint8_t key[32], struct bytes aad, struct bytes plain, struct buf *ret,
	struct err *e) MUST_USE;
int aead_open(const uint8_t key[32], struct bytes aad, struct bytes sealed, struct buf *ret,
	struct err *e) MUST_USE;
/* HKDF-SHA-256 (RFC 5869). */
void hkdf_sha256(struct bytes secret, struct bytes salt, struct bytes info, uint8_t *ret, size_t n);

/* PEM (RFC 7468). Calls fn for each block; a block with RFC 1421 headers is an error. fn's non-zero
 * result ends the walk and is returned. Other text between blocks is skipped. */
int pem_each(struct bytes text,
	int (*fn)(void *arg, const char *label, struct bytes der, struct err *e), void *arg,
	struct err *e) MUST_USE;
void pem_write(struct buf *ret, const char *label, struct bytes der);

void base64_encode(struct buf *ret, struct bytes v);    /* RFC 4648 4, padded */
void base64url_encode(struct buf *ret, struct bytes v); /* RFC 4648 5, unpadded */
/* Strict: no white space, canonical trailing bits. base64: padding needed; base64url: none allowed.
 */
int base64_decode(struct buf *ret, struct bytes text, struct err *e) MUST_USE;
int base64url_decode(struct buf *ret, struct bytes text, struct err *e) MUST_USE;
void hex_encode(struct buf *ret, struct bytes v); /* lower case */

DEFINE_AUTO(key_unref, struct key *);
DEFINE_AUTO(pubkey_unref, struct pubkey *);

#endif

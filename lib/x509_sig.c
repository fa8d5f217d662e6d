/* Signature algorithms of certificates and CSRs: RFC 5758 3.2, RFC 4055, RFC 8410. */
#include <string.h>

#include "lib/x509_internal.h"

static const uint8_t oid_ecdsa[] = { 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03 }; /* and 2, 3, 4 */
static const uint8_t oid_pkcs1[] = { 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01 };
static const uint8_t oid_sha2[] = { 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02 };
static const uint8_t oid_ed25519[] = { 0x2b, 0x65, 0x70 };
enum { PKCS1_MGF1 = 8, PKCS1_PSS = 10, PKCS1_SHA256 = 11, PKCS1_SHA512 = 13 };

/* The last byte of an OID that begins with base, or -1. */
static int last_of(struct bytes oid, const uint8_t *base, size_t n)
{
	return oid.n == n + 1 && memcmp(oid.p, base, n) == 0 ? oid.p[n] : -1;
}

/* Takes an AlgorithmIdentifier off in: a SHA-2 hash with NULL or no parameters. */
static bool get_hash(struct bytes *in, enum hash *ret)
{
	static const enum hash hashes[] = { HASH_SHA256, HASH_SHA384, HASH_SHA512 };
	struct bytes seq, oid, none;
	int last;

	if (!der_get(in, DER_SEQUENCE, &seq) || !der_get(&seq, DER_OID, &oid))
		return false;
	if (seq.n && (!der_get(&seq, DER_NULL, &none) || none.n || seq.n))
		return false;
	last = last_of(oid, oid_sha2, sizeof(oid_sha2));
	if (last < 1 || last > 3)
		return false;
	*ret = hashes[last - 1];
	return true;
}

/* RSASSA-PSS-params, RFC 4055 3.1: hash and MGF1 hash equal; SHA-1, the default of both, is not
 * accepted. */
static bool parse_pss(struct bytes params, struct sig_alg *ret)
{
	struct bytes seq, field, mgf, oid;
	enum hash inner;
	unsigned n;

	if (!der_get(&params, DER_SEQUENCE, &seq) || params.n ||
		!der_get(&seq, DER_CONTEXT_CONSTRUCTED(0), &field) ||
		!get_hash(&field, &ret->hash) || field.n ||
		!der_get(&seq, DER_CONTEXT_CONSTRUCTED(1), &field) ||
		!der_get(&field, DER_SEQUENCE, &mgf) || field.n || !der_get(&mgf, DER_OID, &oid) ||
		last_of(oid, oid_pkcs1, sizeof(oid_pkcs1)) != PKCS1_MGF1 ||
		!get_hash(&mgf, &inner) || mgf.n || inner != ret->hash)
		return false;
	if (der_get(&seq, DER_CONTEXT_CONSTRUCTED(2), &field) &&
		(!der_get_small(&field, &n) || field.n))
		return false;
	if (der_get(&seq, DER_CONTEXT_CONSTRUCTED(3), &field) &&
		(!der_get_small(&field, &n) || field.n || n != 1))
		return false;
	ret->scheme = SIG_RSA_PSS;
	return seq.n == 0;
}

struct sig_alg sig_alg_parse(struct bytes whole)
{
	static const enum hash hashes[] = { HASH_SHA256, HASH_SHA384, HASH_SHA512 };
	struct sig_alg none = { .known = false }, a = { .known = true, .scheme = SIG_X509 };
	struct bytes seq, oid, null;
	int last;

	if (!der_get(&whole, DER_SEQUENCE, &seq) || whole.n || !der_get(&seq, DER_OID, &oid))
		return none;
	last = last_of(oid, oid_ecdsa, sizeof(oid_ecdsa));
	if (last >= 2 && last <= 4 && seq.n == 0) {
		a.for_ec = true;
		a.hash = hashes[last - 2];
		return a;
	}
	if (bytes_equal(oid, bytes_of(oid_ed25519, sizeof(oid_ed25519))) && seq.n == 0) {
		a.for_ed25519 = true;
		a.hash = HASH_SHA512;
		return a;
	}
	last = last_of(oid, oid_pkcs1, sizeof(oid_pkcs1));
	if (last == PKCS1_PSS)
		return parse_pss(seq, &a) ? a : none;
	if (last < PKCS1_SHA256 || last > PKCS1_SHA512)
		return none;
	if (seq.n && (!der_get(&seq, DER_NULL, &null) || null.n || seq.n))
		return none;
	a.hash = hashes[last - PKCS1_SHA256];
	return a;
}

void sig_alg_put(struct buf *b, enum key_type signer)
{
	enum hash h = key_type_hash(signer);
	uint8_t step = h == HASH_SHA256 ? 0 : h == HASH_SHA384 ? 1 : 2;
	bool ec = signer == KEY_EC_P256 || signer == KEY_EC_P384 || signer == KEY_EC_P521;
	size_t seq = der_open(b, DER_SEQUENCE);
	uint8_t oid[16];
	size_t n = ec ? sizeof(oid_ecdsa) : sizeof(oid_pkcs1);

	memcpy(oid, ec ? oid_ecdsa : oid_pkcs1, n);
	oid[n] = (uint8_t)((ec ? 2 : PKCS1_SHA256) + step);
	der_put(b, DER_OID, bytes_of(oid, n + 1));
	if (!ec)
		der_put(b, DER_NULL, bytes_of(NULL, 0));
	der_close(b, seq);
}

int signature_check(const struct pubkey *p, const struct sig_alg *alg, struct bytes message,
	struct bytes sig, struct err *e)
{
	enum key_type t;

	if (!p)
		return err_set(e, ERR_INVALID, "the signer's public key is of an unknown kind");
	if (!alg->known)
		return err_set(e, ERR_INVALID, "the signature algorithm is not supported");
	t = pubkey_type(p);
	if (alg->for_ec != (t == KEY_EC_P256 || t == KEY_EC_P384 || t == KEY_EC_P521) ||
		alg->for_ed25519 != (t == KEY_ED25519))
		return err_set(
			e, ERR_INVALID, "the signature algorithm does not fit the signer's key");
	return pubkey_verify_message(p, alg->hash, message, alg->scheme, sig, e);
}

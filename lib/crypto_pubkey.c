#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <wolfssl/options.h>
#include <wolfssl/wolfcrypt/ed25519.h>

#include "lib/crypto_internal.h"
#include "lib/der.h"

/*
 * Numbers only; wolfCrypt's key object is made anew for each verification. That costs about 1% of a
 * P-256 verification, keeps a key small (a certificate holds one), and no two threads can ever meet
 * in one object.
 */
struct pubkey {
	atomic_int refs;
	enum key_type type;
	int bits;
	struct bytes spki;  /* the rest points into this */
	struct bytes point; /* EC: 0x04, x, y; Ed25519: the 32 bytes */
	struct bytes n, e;  /* RSA, without leading zeros */
	uint8_t key_id[20];
};

struct bytes crypto_oid_ec_key(void)
{
	static const uint8_t oid[] = { 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01 };

	return bytes_of(oid, sizeof(oid));
}

struct bytes crypto_oid_rsa_key(void)
{
	static const uint8_t oid[] = { 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01 };

	return bytes_of(oid, sizeof(oid));
}

/* RFC 5480 2.1.1.1 and the primes of SEC 2. */
static const uint8_t oid_p256[] = { 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07 };
static const uint8_t oid_p384[] = { 0x2b, 0x81, 0x04, 0x00, 0x22 };
static const uint8_t oid_p521[] = { 0x2b, 0x81, 0x04, 0x00, 0x23 };
static const uint8_t prime_p256[] = { 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0,
	0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };
static const uint8_t prime_p384[] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
	0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
	0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0,
	0xff, 0xff, 0xff, 0xff };
static const uint8_t prime_p521[] = { 0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
	0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
	0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
	0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
	0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };
static const uint8_t oid_ed25519[] = { 0x2b, 0x65, 0x70 };

#define TABLE(t)                                                                                   \
	{                                                                                          \
		t, sizeof(t)                                                                       \
	}
static const struct curve curves[] = {
	{ KEY_EC_P256, ECC_SECP256R1, 32, 256, TABLE(oid_p256), TABLE(prime_p256) },
	{ KEY_EC_P384, ECC_SECP384R1, 48, 384, TABLE(oid_p384), TABLE(prime_p384) },
	{ KEY_EC_P521, ECC_SECP521R1, 66, 521, TABLE(oid_p521), TABLE(prime_p521) },
};

const struct curve *curve_of(enum key_type t)
{
	for (size_t i = 0; i < ARRAY_LEN(curves); i++)
		if (curves[i].type == t)
			return &curves[i];
	return NULL;
}

const struct curve *curve_of_oid(struct bytes oid)
{
	for (size_t i = 0; i < ARRAY_LEN(curves); i++)
		if (bytes_equal(curves[i].oid, oid))
			return &curves[i];
	return NULL;
}

struct pubkey *pubkey_ref(struct pubkey *p)
{
	atomic_fetch_add_explicit(&p->refs, 1, memory_order_relaxed);
	return p;
}

void pubkey_unref(struct pubkey *p)
{
	if (!p || atomic_fetch_sub_explicit(&p->refs, 1, memory_order_acq_rel) != 1)
		return;
	free(p);
}

enum key_type pubkey_type(const struct pubkey *p)
{
	return p->type;
}

int pubkey_bits(const struct pubkey *p)
{
	return p->bits;
}

struct bytes pubkey_spki(const struct pubkey *p)
{
	return p->spki;
}

struct bytes pubkey_ed25519(const struct pubkey *p)
{
	return p->point;
}

const uint8_t *pubkey_point(const struct pubkey *p)
{
	return p->point.p;
}

void pubkey_key_id(const struct pubkey *p, uint8_t ret[20])
{
	memcpy(ret, p->key_id, sizeof(p->key_id));
}

void pubkey_ec_xy(const struct pubkey *p, struct buf *x, struct buf *y)
{
	const struct curve *c = curve_of(p->type);

	INVARIANT(c);
	buf_append(x, p->point.p + 1, c->size);
	buf_append(y, p->point.p + 1 + c->size, c->size);
}

void pubkey_rsa_ne(const struct pubkey *p, struct buf *n, struct buf *e_)
{
	INVARIANT(p->n.n);
	buf_bytes(n, p->n);
	buf_bytes(e_, p->e);
}

/* One block of memory: the struct, then the SPKI. */
static struct pubkey *pubkey_new(enum key_type t, int bits, struct bytes spki)
{
	struct pubkey *p = xcalloc(1, sizeof(*p) + spki.n);
	uint8_t *copy = (uint8_t *)(p + 1);

	memcpy(copy, spki.p, spki.n);
	atomic_init(&p->refs, 1);
	p->type = t;
	p->bits = bits;
	p->spki = bytes_of(copy, spki.n);
	return p;
}

/* The same bytes in p's own copy; `of` lies in `spki`. */
static struct bytes own(const struct pubkey *p, struct bytes spki, struct bytes of)
{
	return bytes_of(p->spki.p + (of.p - spki.p), of.n);
}

/* SEC 1, 3.2.2.1. The curves have cofactor 1, so a point on the curve is in the right group. */
static int point_check(const struct curve *c, struct bytes point, struct err *e)
{
	ecc_key k;
	int r;

	if (point.n != 1 + 2 * (size_t)c->size || point.p[0] != 0x04)
		return err_set(e, ERR_INVALID, "the EC point is not in the uncompressed form");
	for (size_t i = 0; i < 2; i++)
		if (memcmp(point.p + 1 + i * c->size, c->prime.p, c->size) >= 0)
			return err_set(e, ERR_INVALID, "the EC point is not on the curve");
	wc_ecc_init(&k);
	r = wc_ecc_import_x963_ex2(point.p, (word32)point.n, &k, c->id, 1);
	wc_ecc_free(&k);
	if (r)
		return err_set(e, ERR_INVALID, "the EC point is not on the curve");
	return 0;
}

static int spki_ec(struct bytes spki, struct bytes params, struct bytes bits, struct pubkey **ret,
	struct err *e)
{
	const struct curve *c;
	struct bytes oid;

	if (!der_get(&params, DER_OID, &oid) || params.n)
		return err_set(e, ERR_INVALID, "the EC key's curve is not named");
	c = curve_of_oid(oid);
	if (!c)
		return err_set(e, ERR_UNIMPLEMENTED, "the EC key's curve is not supported");
	if (point_check(c, bits, e))
		return e ? e->code : ERR_INVALID;
	*ret = pubkey_new(c->type, c->bits, spki);
	(*ret)->point = own(*ret, spki, bits);
	return 0;
}

static int bit_length(struct bytes n)
{
	return n.n == 0 ? 0 : (int)(n.n * 8) - (__builtin_clz(n.p[0] | 1u) - 24);
}

static int rsa_check(struct bytes n, struct bytes exponent, struct err *e)
{
	int bits = bit_length(n);

	if (bits < RSA_MIN_BITS || bits > RSA_MAX_BITS)
		return err_set(e, ERR_UNIMPLEMENTED,
			"RSA keys of %d bits are not supported: %d to %d are", bits, RSA_MIN_BITS,
			RSA_MAX_BITS);
	if (!(n.p[n.n - 1] & 1))
		return err_set(e, ERR_INVALID, "the RSA modulus is even");
	if (exponent.n > 4 || !(exponent.p[exponent.n - 1] & 1) ||
		(exponent.n == 1 && exponent.p[0] < 3))
		return err_set(e, ERR_INVALID, "the RSA exponent is not acceptable");
	return 0;
}

static int spki_rsa(struct bytes spki, struct bytes params, struct bytes bits, struct pubkey **ret,
	struct err *e)
{
	struct bytes none, seq, n, exponent;

	/* RFC 3279 2.3.1: the parameters field MUST have ASN.1 type NULL. */
	if (!der_get(&params, DER_NULL, &none) || none.n || params.n)
		return err_set(e, ERR_INVALID, "the RSA key's parameters are not NULL");
	if (!der_get(&bits, DER_SEQUENCE, &seq) || bits.n || !der_get_uint(&seq, &n) ||
		!der_get_uint(&seq, &exponent) || seq.n)
		return err_set(e, ERR_INVALID, "malformed RSA public key");
	if (rsa_check(n, exponent, e))
		return e ? e->code : ERR_INVALID;
	*ret = pubkey_new(n.n == 256   ? KEY_RSA_2048
			  : n.n == 512 ? KEY_RSA_4096
				       : KEY_RSA_OTHER,
		bit_length(n), spki);
	(*ret)->n = own(*ret, spki, n);
	(*ret)->e = own(*ret, spki, exponent);
	return 0;
}

static int spki_ed25519(struct bytes spki, struct bytes params, struct bytes bits,
	struct pubkey **ret, struct err *e)
{
	if (params.n || bits.n != 32)
		return err_set(e, ERR_INVALID, "malformed Ed25519 public key");
	*ret = pubkey_new(KEY_ED25519, 256, spki);
	(*ret)->point = own(*ret, spki, bits);
	return 0;
}

int pubkey_from_spki(struct bytes der, struct pubkey **ret, struct err *e)
{
	struct err local = ERR_INIT;
	struct bytes in = der, seq, alg, oid, bits;
	struct pubkey *p = NULL;
	unsigned unused;
	int r;

	e = e ? e : &local;
	if (!der_get(&in, DER_SEQUENCE, &seq) || in.n || !der_get(&seq, DER_SEQUENCE, &alg) ||
		!der_get_bits(&seq, &bits, &unused) || seq.n || unused ||
		!der_get(&alg, DER_OID, &oid))
		return err_set(e, ERR_INVALID, "malformed public key");
	if (bytes_equal(oid, crypto_oid_ec_key()))
		r = spki_ec(der, alg, bits, &p, e);
	else if (bytes_equal(oid, crypto_oid_rsa_key()))
		r = spki_rsa(der, alg, bits, &p, e);
	else if (bytes_equal(oid, bytes_of(oid_ed25519, sizeof(oid_ed25519))))
		r = spki_ed25519(der, alg, bits, &p, e);
	else
		r = err_set(e, ERR_UNIMPLEMENTED, "the public key's algorithm is not supported");
	if (r)
		return r;
	hash_of(HASH_SHA1, bits, p->key_id);
	*ret = p;
	return 0;
}

static void spki_of_point(const struct curve *c, const uint8_t *point, struct buf *ret)
{
	size_t seq = der_open(ret, DER_SEQUENCE);
	size_t alg = der_open(ret, DER_SEQUENCE);

	der_put(ret, DER_OID, crypto_oid_ec_key());
	der_put(ret, DER_OID, c->oid);
	der_close(ret, alg);
	der_put_bits(ret, bytes_of(point, 1 + 2 * (size_t)c->size));
	der_close(ret, seq);
}

struct pubkey *pubkey_of_point(const struct curve *c, const uint8_t *point)
{
	AUTO_BUF struct buf spki = BUF_INIT;
	size_t n = 1 + 2 * (size_t)c->size;
	struct pubkey *p;

	spki_of_point(c, point, &spki);
	p = pubkey_new(c->type, c->bits, buf_view(&spki));
	p->point = bytes_of(p->spki.p + p->spki.n - n, n);
	hash_of(HASH_SHA1, p->point, p->key_id);
	return p;
}

int pubkey_from_ec(
	enum key_type curve, struct bytes x, struct bytes y, struct pubkey **ret, struct err *e)
{
	const struct curve *c = curve_of(curve);
	uint8_t point[1 + 2 * EC_MAX_SIZE] = { 0x04 };
	int r;

	if (!c)
		return err_set(e, ERR_INVALID, "the EC key's curve is not supported");
	/* RFC 7518 6.2.1.2: the length MUST be the full size of a coordinate. */
	if (x.n != c->size || y.n != c->size)
		return err_set(e, ERR_INVALID, "an EC coordinate has %zu bytes, not %d",
			x.n != c->size ? x.n : y.n, c->size);
	memcpy(point + 1, x.p, x.n);
	memcpy(point + 1 + x.n, y.p, y.n);
	r = point_check(c, bytes_of(point, 1 + x.n + y.n), e);
	if (r)
		return r;
	*ret = pubkey_of_point(c, point);
	return 0;
}

int pubkey_from_rsa(struct bytes n, struct bytes exponent, struct pubkey **ret, struct err *e)
{
	AUTO_BUF struct buf bits = BUF_INIT, spki = BUF_INIT;
	size_t seq, alg;

	if (n.n > RSA_MAX_BYTES + 1 || exponent.n > 8)
		return err_set(e, ERR_INVALID, "the RSA key is too large");
	seq = der_open(&bits, DER_SEQUENCE);
	der_put_uint(&bits, n);
	der_put_uint(&bits, exponent);
	der_close(&bits, seq);

	seq = der_open(&spki, DER_SEQUENCE);
	alg = der_open(&spki, DER_SEQUENCE);
	der_put(&spki, DER_OID, crypto_oid_rsa_key());
	der_put(&spki, DER_NULL, bytes_of(NULL, 0));
	der_close(&spki, alg);
	der_put_bits(&spki, buf_view(&bits));
	der_close(&spki, seq);
	return pubkey_from_spki(buf_view(&spki), ret, e);
}

/* ---- verification ---- */

static int bad_signature(struct err *e)
{
	return err_set(e, ERR_INVALID, "the signature does not verify");
}

/* Splits into r and s: strict DER (RFC 3279 2.2.3), or fixed width (RFC 7518 3.4). */
static bool split_rs(const struct curve *c, enum sig_scheme s, struct bytes sig,
	struct bytes *ret_r, struct bytes *ret_s)
{
	struct bytes seq;

	if (s == SIG_JWS) {
		*ret_r = bytes_of(sig.p, c->size);
		*ret_s = bytes_of(sig.p + c->size, c->size);
		return sig.n == 2 * (size_t)c->size;
	}
	return der_get(&sig, DER_SEQUENCE, &seq) && sig.n == 0 && der_get_uint(&seq, ret_r) &&
	       der_get_uint(&seq, ret_s) && seq.n == 0 && ret_r->n <= c->size &&
	       ret_s->n <= c->size;
}

static bool ec_verify(const struct curve *c, struct bytes point, struct bytes digest,
	struct bytes rb, struct bytes sb)
{
	mp_int r, s;
	ecc_key k;
	int good = 0;
	bool ok;

	wc_ecc_init(&k);
	mp_init(&r);
	mp_init(&s);
	ok = wc_ecc_import_x963_ex2(point.p, (word32)point.n, &k, c->id, 0) == 0 &&
	     mp_read_unsigned_bin(&r, rb.p, (word32)rb.n) == 0 &&
	     mp_read_unsigned_bin(&s, sb.p, (word32)sb.n) == 0 &&
	     wc_ecc_verify_hash_ex(&r, &s, digest.p, (word32)digest.n, &good, &k) == 0 && good == 1;
	wc_ecc_free(&k);
	return ok;
}

/* The public operation, sig^e mod n, into n.n bytes. */
static bool rsa_public(const struct pubkey *p, struct bytes sig, uint8_t *ret)
{
	RsaKey *k;
	word32 n = (word32)p->n.n;
	bool ok;

	/* RFC 8017 8.1.2, 8.2.2: of the modulus' length, and below it (5.2.2). */
	if (sig.n != p->n.n || memcmp(sig.p, p->n.p, sig.n) >= 0)
		return false;
	k = xmalloc(sizeof(*k));
	wc_InitRsaKey(k, NULL);
	ok = wc_RsaPublicKeyDecodeRaw(p->n.p, (word32)p->n.n, p->e.p, (word32)p->e.n, k) == 0 &&
	     wc_RsaFunction(sig.p, (word32)sig.n, ret, &n, RSA_PUBLIC_DECRYPT, k, NULL) == 0 &&
	     n == p->n.n;
	wc_FreeRsaKey(k);
	free(k);
	return ok;
}

/* RFC 8017 8.2.2 in its safe form: the one right encoding is made and compared. */
static bool pkcs1_is(struct bytes info, const uint8_t *em, size_t n)
{
	uint8_t want[RSA_MAX_BYTES];

	memset(want, 0xff, n);
	want[0] = 0;
	want[1] = 1;
	want[n - info.n - 1] = 0;
	memcpy(want + n - info.n, info.p, info.n);
	return info.n != 0 && memcmp(want, em, n) == 0;
}

static bool pkcs1_good(enum hash h, struct bytes digest, const uint8_t *em, size_t n)
{
	uint8_t info[DIGEST_INFO_MAX];

	return pkcs1_is(bytes_of(info, digest_info(h, digest, info)), em, n);
}

/* MGF1 of RFC 8017 B.2.1, xored onto data. */
static void mgf1_xor(enum hash h, const uint8_t *seed, size_t n_seed, uint8_t *data, size_t n)
{
	uint8_t in[HASH_MAX + 4];
	uint8_t mask[HASH_MAX];
	size_t size = hash_size(h);

	memcpy(in, seed, n_seed);
	for (size_t i = 0; i < n; i++) {
		if (i % size == 0) {
			size_t counter = i / size;

			in[n_seed] = in[n_seed + 1] = 0;
			in[n_seed + 2] = (uint8_t)(counter >> 8);
			in[n_seed + 3] = (uint8_t)counter;
			hash_of(h, bytes_of(in, n_seed + 4), mask);
		}
		data[i] ^= mask[i % size];
	}
}

/* EMSA-PSS-VERIFY, RFC 8017 9.1.2, with whatever salt length the signer chose. em is changed. */
static bool pss_good(enum hash h, struct bytes digest, uint8_t *em, size_t n, int bits)
{
	size_t size = hash_size(h);
	unsigned top = (unsigned)(bits - 1) % 8;
	struct hasher *hasher;
	uint8_t *db, *hash;
	uint8_t want[HASH_MAX];
	size_t n_db, i;

	if (top == 0) { /* emBits is a multiple of eight: one byte less than the modulus */
		if (em[0])
			return false;
		em++;
		n--;
	} else if (em[0] >> top) {
		return false;
	}
	if (n < 2 * size + 2 || em[n - 1] != 0xbc)
		return false;
	n_db = n - size - 1;
	db = em;
	hash = em + n_db;
	mgf1_xor(h, hash, size, db, n_db);
	if (top)
		db[0] &= (uint8_t)((1u << top) - 1);
	for (i = 0; i < n_db && db[i] == 0; i++)
		;
	if (i == n_db || db[i] != 1)
		return false;
	hasher = hasher_new(h);
	hasher_update(hasher, DER_BYTES(0, 0, 0, 0, 0, 0, 0, 0));
	hasher_update(hasher, digest);
	hasher_update(hasher, bytes_of(db + i + 1, n_db - i - 1));
	hasher_final(hasher, want);
	return memcmp(want, hash, size) == 0;
}

int pubkey_verify(const struct pubkey *p, enum hash h, struct bytes digest, enum sig_scheme s,
	struct bytes sig, struct err *e)
{
	const struct curve *c = curve_of(p->type);
	uint8_t em[RSA_MAX_BYTES];
	struct bytes rb, sb;
	bool good;
	int r = digest_check(h, digest, e);

	if (r)
		return r;
	if (c) {
		good = s != SIG_RSA_PSS && split_rs(c, s, sig, &rb, &sb) &&
		       ec_verify(c, p->point, digest, rb, sb);
		return good ? 0 : bad_signature(e);
	}
	if (p->type == KEY_ED25519)
		return err_set(e, ERR_INVALID, "Ed25519 signs messages, not digests");
	if (!rsa_public(p, sig, em))
		return bad_signature(e);
	good = s == SIG_RSA_PSS ? pss_good(h, digest, em, p->n.n, p->bits)
				: pkcs1_good(h, digest, em, p->n.n);
	return good ? 0 : bad_signature(e);
}

static bool ed25519_verify(const struct pubkey *p, struct bytes message, struct bytes sig)
{
	ed25519_key k;
	int good = 0;
	bool ok;

	wc_ed25519_init(&k);
	ok = sig.n == ED25519_SIG_SIZE &&
	     wc_ed25519_import_public(p->point.p, (word32)p->point.n, &k) == 0 &&
	     wc_ed25519_verify_msg(sig.p, (word32)sig.n, message.p, (word32)message.n, &good, &k) ==
		     0 &&
	     good == 1;
	wc_ed25519_free(&k);
	return ok;
}

int pubkey_verify_message(const struct pubkey *p, enum hash h, struct bytes message,
	enum sig_scheme s, struct bytes sig, struct err *e)
{
	uint8_t digest[HASH_MAX];

	if (p->type == KEY_ED25519)
		return message.n <= BUF_MAX_DEFAULT && ed25519_verify(p, message, sig)
			       ? 0
			       : bad_signature(e);
	hash_of(h, message, digest);
	return pubkey_verify(p, h, bytes_of(digest, hash_size(h)), s, sig, e);
}

int pubkey_verify_rsa_sha1(
	const struct pubkey *p, struct bytes message, struct bytes sig, struct err *e)
{
	/* SEQ { SEQ { OID 1.3.14.3.2.26, NULL }, OCTET STRING }, RFC 8017 9.2 note 1 */
	uint8_t info[15 + 20] = { 0x30, 0x21, 0x30, 0x09, 0x06, 0x05, 0x2b, 0x0e, 0x03, 0x02, 0x1a,
		0x05, 0x00, 0x04, 0x14 };
	uint8_t em[RSA_MAX_BYTES];

	hash_of(HASH_SHA1, message, info + 15);
	if (!p->n.n || !rsa_public(p, sig, em) ||
		!pkcs1_is(bytes_of(info, sizeof(info)), em, p->n.n))
		return bad_signature(e);
	return 0;
}

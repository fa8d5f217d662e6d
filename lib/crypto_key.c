#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/crypto_internal.h"
#include "lib/der.h"

/*
 * wolfCrypt's key objects must not be used by two threads at once. A key that signs often keeps a
 * few of them, each behind a flag: a thread takes the first free one, beginning at a place of its
 * own; when none is free it makes one for this signature. A key that signs once or twice (a
 * workload's: one CSR in its life) never pays the 4 to 9 kB.
 */
enum { POOL_MAX = 16, POOL_SPARE = 2, POOL_AFTER_USES = 4 };

union object {
	ecc_key ec;
	RsaKey rsa;
};

struct slot {
	atomic_bool busy;
	union object *o; /* NULL until first used */
};

struct key {
	atomic_int refs;
	atomic_uint uses;
	enum key_type type;
	const struct curve *curve; /* NULL: RSA */
	struct pubkey *pub;
	struct buf pkcs8;   /* secret */
	struct bytes inner; /* inside pkcs8: the EC scalar, or the RSAPrivateKey */
	struct slot slots[POOL_MAX];
};

static unsigned pool_size(void)
{
	static atomic_uint cached;
	unsigned n = atomic_load_explicit(&cached, memory_order_relaxed);

	if (n == 0) {
		long cpus = sysconf(_SC_NPROCESSORS_ONLN);

		n = (cpus < 1 ? 1 : cpus > POOL_MAX ? POOL_MAX : (unsigned)cpus) + POOL_SPARE;
		n = n > POOL_MAX ? POOL_MAX : n;
		atomic_store_explicit(&cached, n, memory_order_relaxed);
	}
	return n;
}

/* Spreads threads over the slots. */
static unsigned thread_number(void)
{
	static atomic_uint next;
	static _Thread_local unsigned number;

	if (number == 0)
		number = 1 + atomic_fetch_add_explicit(&next, 1, memory_order_relaxed);
	return number;
}

static void object_free(union object *o, bool ec)
{
	if (!o)
		return;
	if (ec)
		wc_ecc_free(&o->ec);
	else
		wc_FreeRsaKey(&o->rsa);
	mem_wipe(o, ec ? sizeof(o->ec) : sizeof(o->rsa));
	free(o);
}

static union object *object_alloc(bool ec)
{
	union object *o = xmalloc(ec ? sizeof(o->ec) : sizeof(o->rsa));

	if (ec)
		INVARIANT(wc_ecc_init(&o->ec) == 0);
	else
		INVARIANT(wc_InitRsaKey(&o->rsa, NULL) == 0);
	return o;
}

/* From bytes that were checked when the key was made. */
static union object *object_new(const struct key *k)
{
	union object *o = object_alloc(k->curve != NULL);
	word32 at = 0;
	int r;

	if (k->curve)
		r = wc_ecc_import_private_key_ex(k->inner.p, (word32)k->inner.n,
			pubkey_point(k->pub), 1 + 2 * (word32)k->curve->size, &o->ec, k->curve->id);
	else
		r = wc_RsaPrivateKeyDecode(k->inner.p, &at, &o->rsa, (word32)k->inner.n);
	INVARIANT(r == 0);
	return o;
}

struct loan {
	struct slot *slot; /* NULL: made for this once */
	union object *o;
};

static struct loan borrow(struct key *k)
{
	unsigned n = pool_size();
	unsigned uses = atomic_load_explicit(&k->uses, memory_order_relaxed);

	if (uses < POOL_AFTER_USES)
		atomic_store_explicit(&k->uses, uses + 1, memory_order_relaxed);
	for (unsigned i = 0; uses >= POOL_AFTER_USES && i < n; i++) {
		struct slot *s = &k->slots[(thread_number() + i) % n];

		if (atomic_exchange_explicit(&s->busy, true, memory_order_acquire))
			continue;
		if (!s->o)
			s->o = object_new(k);
		return (struct loan){ .slot = s, .o = s->o };
	}
	return (struct loan){ .o = object_new(k) };
}

static void give_back(struct key *k, struct loan l)
{
	if (l.slot)
		atomic_store_explicit(&l.slot->busy, false, memory_order_release);
	else
		object_free(l.o, k->curve != NULL);
}

struct key *key_ref(struct key *k)
{
	atomic_fetch_add_explicit(&k->refs, 1, memory_order_relaxed);
	return k;
}

void key_unref(struct key *k)
{
	if (!k || atomic_fetch_sub_explicit(&k->refs, 1, memory_order_acq_rel) != 1)
		return;
	for (size_t i = 0; i < POOL_MAX; i++)
		object_free(k->slots[i].o, k->curve != NULL);
	pubkey_unref(k->pub);
	buf_deinit(&k->pkcs8);
	free(k);
}

enum key_type key_get_type(const struct key *k)
{
	return k->type;
}

struct pubkey *key_public(const struct key *k)
{
	return k->pub;
}

void key_to_pkcs8(const struct key *k, struct buf *ret)
{
	INVARIANT(ret->secret);
	buf_bytes(ret, buf_view(&k->pkcs8));
}

static struct key *key_alloc(enum key_type t)
{
	struct key *k = xcalloc(1, sizeof(*k));

	atomic_init(&k->refs, 1);
	atomic_init(&k->uses, 0);
	for (size_t i = 0; i < POOL_MAX; i++)
		atomic_init(&k->slots[i].busy, false);
	k->type = t;
	k->curve = curve_of(t);
	k->pkcs8 = BUF_INIT_SECRET;
	return k;
}

/* PKCS#8 (RFC 5208) around an ECPrivateKey (RFC 5915) that carries its public key. */
static void pkcs8_ec(
	const struct curve *c, const uint8_t *scalar, const uint8_t *point, struct buf *ret)
{
	size_t all, alg, octets, seq, pub;

	all = der_open(ret, DER_SEQUENCE);
	der_put_small(ret, 0);
	alg = der_open(ret, DER_SEQUENCE);
	der_put(ret, DER_OID, crypto_oid_ec_key());
	der_put(ret, DER_OID, c->oid);
	der_close(ret, alg);
	octets = der_open(ret, DER_OCTET_STRING);
	seq = der_open(ret, DER_SEQUENCE);
	der_put_small(ret, 1);
	der_put(ret, DER_OCTET_STRING, bytes_of(scalar, c->size));
	pub = der_open(ret, DER_CONTEXT_CONSTRUCTED(1));
	der_put_bits(ret, bytes_of(point, 1 + 2 * (size_t)c->size));
	der_close(ret, pub);
	der_close(ret, seq);
	der_close(ret, octets);
	der_close(ret, all);
}

static void pkcs8_rsa(struct bytes pkcs1, struct buf *ret)
{
	size_t all, alg;

	all = der_open(ret, DER_SEQUENCE);
	der_put_small(ret, 0);
	alg = der_open(ret, DER_SEQUENCE);
	der_put(ret, DER_OID, crypto_oid_rsa_key());
	der_put(ret, DER_NULL, bytes_of(NULL, 0));
	der_close(ret, alg);
	der_put(ret, DER_OCTET_STRING, pkcs1);
	der_close(ret, all);
}

/* Both forms end with what is needed again: PKCS#1, or the scalar before a tail of known size. */
static struct key *key_of_ec(const struct curve *c, const uint8_t *scalar, const uint8_t *point)
{
	struct key *k = key_alloc(c->type);
	struct bytes in, seq, body, octets;
	unsigned version;

	buf_reserve(&k->pkcs8, 256);
	pkcs8_ec(c, scalar, point, &k->pkcs8);
	k->pub = pubkey_of_point(c, point);
	in = buf_view(&k->pkcs8);
	INVARIANT(der_get(&in, DER_SEQUENCE, &seq) && der_get_small(&seq, &version) &&
		  der_get(&seq, DER_SEQUENCE, &body) && der_get(&seq, DER_OCTET_STRING, &octets) &&
		  der_get(&octets, DER_SEQUENCE, &body) && der_get_small(&body, &version) &&
		  der_get(&body, DER_OCTET_STRING, &k->inner));
	return k;
}

static int key_of_rsa(struct bytes pkcs1, struct key **ret, struct err *e)
{
	struct bytes in = pkcs1, seq, n, exponent;
	struct pubkey *pub;
	unsigned version;
	struct key *k;
	int r;

	if (!der_get(&in, DER_SEQUENCE, &seq) || in.n || !der_get_small(&seq, &version) ||
		version != 0 || !der_get_uint(&seq, &n) || !der_get_uint(&seq, &exponent))
		return err_set(e, ERR_INVALID, "malformed RSA private key");
	r = pubkey_from_rsa(n, exponent, &pub, e);
	if (r)
		return r;
	k = key_alloc(pubkey_type(pub));
	k->pub = pub;
	buf_reserve(&k->pkcs8, pkcs1.n + 64);
	pkcs8_rsa(pkcs1, &k->pkcs8);
	k->inner = bytes_of(k->pkcs8.p + k->pkcs8.len - pkcs1.n, pkcs1.n);
	*ret = k;
	return 0;
}

/* ---- generation ---- */

static int generate_ec(const struct curve *c, struct key **ret, struct err *e)
{
	uint8_t scalar[EC_MAX_SIZE], point[1 + 2 * EC_MAX_SIZE];
	word32 n_scalar = c->size, n_point = sizeof(point);
	ecc_key k;
	int r;

	wc_ecc_init(&k);
	r = wc_ecc_make_key_ex(crypto_rng(), c->size, &k, c->id);
	if (!r)
		r = wc_ecc_export_private_only(&k, scalar, &n_scalar);
	if (!r)
		r = wc_ecc_export_x963(&k, point, &n_point);
	wc_ecc_free(&k);
	if (!r && n_scalar == c->size && n_point == 1 + 2 * (word32)c->size)
		*ret = key_of_ec(c, scalar, point);
	else
		r = err_set(e, ERR_INTERNAL, "cannot generate a key (wolfCrypt %d)", r);
	mem_wipe(scalar, sizeof(scalar));
	return r;
}

static int generate_rsa(int bits, struct key **ret, struct err *e)
{
	enum { PKCS1_MAX = RSA_MAX_BYTES * 5 };
	AUTO_BUF struct buf der = BUF_INIT_SECRET;
	union object *o = object_alloc(false);
	int r;

	buf_reserve(&der, PKCS1_MAX);
	r = wc_MakeRsaKey(&o->rsa, bits, 65537, crypto_rng());
	if (!r)
		r = wc_RsaKeyToDer(&o->rsa, der.p, PKCS1_MAX);
	object_free(o, false);
	if (r <= 0)
		return err_set(e, ERR_INTERNAL, "cannot generate an RSA key (wolfCrypt %d)", r);
	der.len = (size_t)r;
	return key_of_rsa(buf_view(&der), ret, e);
}

int key_generate(enum key_type t, struct key **ret, struct err *e)
{
	const struct curve *c = curve_of(t);

	if (c)
		return generate_ec(c, ret, e);
	if (t == KEY_RSA_2048 || t == KEY_RSA_4096)
		return generate_rsa(t == KEY_RSA_2048 ? 2048 : 4096, ret, e);
	return err_set(e, ERR_INVALID, "keys of type %s cannot be generated", key_type_name(t));
}

/* ---- reading ---- */

/* The scalar is in range and the public key belongs to it; gives the point. */
static int ec_public(const struct curve *c, const uint8_t *scalar, uint8_t *point, struct err *e)
{
	word32 n = 1 + 2 * (word32)c->size;
	ecc_key k;
	int r;

	wc_ecc_init(&k);
	wc_ecc_set_rng(&k, crypto_rng());
	r = wc_ecc_import_private_key_ex(scalar, c->size, NULL, 0, &k, c->id);
	if (!r)
		r = wc_ecc_make_pub_ex(&k, NULL, crypto_rng());
	if (!r)
		r = wc_ecc_check_key(&k);
	if (!r)
		r = wc_ecc_export_x963(&k, point, &n);
	wc_ecc_free(&k);
	return r ? err_set(e, ERR_INVALID, "the EC private key is not valid") : 0;
}

/* ECPrivateKey, RFC 5915 3. outer: the curve that PKCS#8 names, or NULL. */
static int parse_sec1(struct bytes der, const struct curve *outer, struct key **ret, struct err *e)
{
	uint8_t scalar[EC_MAX_SIZE] = { 0 }, point[1 + 2 * EC_MAX_SIZE];
	struct bytes seq, secret, params, oid, pub = { 0 }, bits = { 0 };
	const struct curve *c = outer;
	unsigned version, unused;
	int r;

	if (!der_get(&der, DER_SEQUENCE, &seq) || der.n || !der_get_small(&seq, &version) ||
		version != 1 || !der_get(&seq, DER_OCTET_STRING, &secret))
		return err_set(e, ERR_INVALID, "malformed EC private key");
	if (der_get(&seq, DER_CONTEXT_CONSTRUCTED(0), &params)) {
		if (!der_get(&params, DER_OID, &oid) || params.n)
			return err_set(e, ERR_INVALID, "the EC private key's curve is not named");
		c = curve_of_oid(oid);
		if (outer && c != outer)
			return err_set(e, ERR_INVALID, "the EC private key names two curves");
	}
	if (der_get(&seq, DER_CONTEXT_CONSTRUCTED(1), &pub) &&
		(!der_get_bits(&pub, &bits, &unused) || unused || pub.n))
		return err_set(e, ERR_INVALID, "malformed EC private key");
	if (seq.n)
		return err_set(e, ERR_INVALID, "malformed EC private key");
	if (!c)
		return err_set(e, ERR_INVALID, "the EC private key's curve is not supported");
	while (secret.n > c->size && secret.p[0] == 0) {
		secret.p++;
		secret.n--;
	}
	if (secret.n == 0 || secret.n > c->size)
		return err_set(e, ERR_INVALID, "the EC private key is of the wrong size");
	memcpy(scalar + c->size - secret.n, secret.p, secret.n);
	r = ec_public(c, scalar, point, e);
	if (!r && bits.n && !bytes_equal(bits, bytes_of(point, 1 + 2 * (size_t)c->size)))
		r = err_set(e, ERR_INVALID, "the EC private and public key do not belong together");
	if (!r)
		*ret = key_of_ec(c, scalar, point);
	mem_wipe(scalar, sizeof(scalar));
	return r;
}

/* RSA parts may be inconsistent in many ways; a signature that verifies shows that they are not. */
static int try_out(struct key *k, struct err *e)
{
	AUTO_BUF struct buf sig = BUF_INIT;
	uint8_t digest[32];
	struct bytes d = bytes_of(digest, sizeof(digest));

	hash_of(HASH_SHA256, bytes_str("assay"), digest);
	if (key_sign(k, HASH_SHA256, d, SIG_X509, &sig, e) ||
		pubkey_verify(k->pub, HASH_SHA256, d, SIG_X509, buf_view(&sig), e))
		return err_set(e, ERR_INVALID, "the private key's parts do not belong together");
	return 0;
}

static int parse_pkcs1(struct bytes der, struct key **ret, struct err *e)
{
	union object *o;
	struct key *k;
	word32 at = 0;
	int r = key_of_rsa(der, &k, e);

	if (r)
		return r;
	o = object_alloc(false);
	r = wc_RsaPrivateKeyDecode(k->inner.p, &at, &o->rsa, (word32)k->inner.n);
	object_free(o, false);
	if (r || at != k->inner.n)
		r = err_set(e, ERR_INVALID, "malformed RSA private key");
	else
		r = try_out(k, e);
	if (r)
		key_unref(k);
	else
		*ret = k;
	return r;
}

/* PrivateKeyInfo, RFC 5208 5; attributes and the public key of RFC 5958 are not needed. */
static int parse_pkcs8(struct bytes seq, struct key **ret, struct err *e)
{
	struct bytes alg, oid, octets, name;
	const struct curve *c;
	unsigned version;

	if (!der_get_small(&seq, &version) || version > 1 || !der_get(&seq, DER_SEQUENCE, &alg) ||
		!der_get(&alg, DER_OID, &oid) || !der_get(&seq, DER_OCTET_STRING, &octets))
		return err_set(e, ERR_INVALID, "malformed PKCS#8 private key");
	if (bytes_equal(oid, crypto_oid_rsa_key()))
		return parse_pkcs1(octets, ret, e);
	if (!bytes_equal(oid, crypto_oid_ec_key()))
		return err_set(e, ERR_INVALID, "the private key is neither RSA nor EC");
	if (!der_get(&alg, DER_OID, &name) || alg.n)
		return err_set(e, ERR_INVALID, "the EC private key's curve is not named");
	c = curve_of_oid(name);
	if (!c)
		return err_set(e, ERR_INVALID, "the EC private key's curve is not supported");
	return parse_sec1(octets, c, ret, e);
}

int key_from_pkcs8(struct bytes der, struct key **ret, struct err *e)
{
	struct bytes in = der, seq, look, body;
	unsigned version;

	if (!der_get(&in, DER_SEQUENCE, &seq) || in.n)
		return err_set(e, ERR_INVALID, "malformed private key");
	look = seq;
	if (der_get_small(&look, &version)) {
		if (der_peek(look, DER_OCTET_STRING))
			return parse_sec1(der, NULL, ret, e);
		if (der_get(&look, DER_INTEGER, &body))
			return parse_pkcs1(der, ret, e);
	}
	return parse_pkcs8(seq, ret, e);
}

struct pem_search {
	struct key *key;
};

static int take_key(void *arg, const char *label, struct bytes der, struct err *e)
{
	struct pem_search *s = arg;

	if (strcmp(label, "ENCRYPTED PRIVATE KEY") == 0)
		return err_set(
			e, ERR_INVALID, "the private key is encrypted, which is not supported");
	if (strcmp(label, "PRIVATE KEY") != 0 && strcmp(label, "EC PRIVATE KEY") != 0 &&
		strcmp(label, "RSA PRIVATE KEY") != 0)
		return 0;
	if (s->key)
		return err_set(e, ERR_INVALID, "there is more than one private key");
	return key_from_pkcs8(der, &s->key, e);
}

int key_from_pem(struct bytes pem, struct key **ret, struct err *e)
{
	struct pem_search s = { 0 };
	int r = pem_each(pem, take_key, &s, e);

	if (!r && !s.key)
		r = err_set(e, ERR_INVALID, "there is no PEM private key");
	if (r)
		key_unref(s.key);
	else
		*ret = s.key;
	return r;
}

int key_from_ed25519(struct bytes seed, struct key **ret, struct err *e)
{
	/* RFC 8410 section 4: the SPKI's head, and a PKCS#8 key's. */
	static const uint8_t spki_head[] = { 0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70,
		0x03, 0x21, 0x00 };
	static const uint8_t pkcs8_head[] = { 0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03,
		0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20 };
	uint8_t spki[sizeof(spki_head) + ED25519_PUBLIC];
	struct pubkey *pub;
	struct key *k;
	int r;

	memcpy(spki, spki_head, sizeof(spki_head));
	if (seed.n != ED25519_SEED || !ed25519_public(seed.p, spki + sizeof(spki_head)))
		return err_set(e, ERR_INVALID, "malformed Ed25519 private key");
	r = pubkey_from_spki(bytes_of(spki, sizeof(spki)), &pub, e);
	if (r)
		return r;
	k = key_alloc(KEY_ED25519);
	k->pub = pub;
	buf_append(&k->pkcs8, pkcs8_head, sizeof(pkcs8_head));
	buf_bytes(&k->pkcs8, seed);
	k->inner = bytes_of(k->pkcs8.p + sizeof(pkcs8_head), ED25519_SEED);
	*ret = k;
	return 0;
}

/* ---- signing ---- */

static int sign_ec(
	const struct curve *c, ecc_key *k, struct bytes digest, enum sig_scheme s, struct buf *ret)
{
	uint8_t out[2 * EC_MAX_SIZE + 16];
	word32 n = sizeof(out);
	mp_int a, b;
	int r;

	wc_ecc_set_rng(k, crypto_rng());
	if (s == SIG_X509) {
		r = wc_ecc_sign_hash(digest.p, (word32)digest.n, out, &n, crypto_rng(), k);
	} else {
		mp_init(&a);
		mp_init(&b);
		r = wc_ecc_sign_hash_ex(digest.p, (word32)digest.n, crypto_rng(), k, &a, &b);
		if (!r)
			r = mp_to_unsigned_bin_len(&a, out, c->size);
		if (!r)
			r = mp_to_unsigned_bin_len(&b, out + c->size, c->size);
		n = 2 * (word32)c->size;
	}
	if (!r)
		buf_append(ret, out, n);
	return r;
}

static int sign_rsa(RsaKey *k, enum hash h, struct bytes digest, enum sig_scheme s, struct buf *ret)
{
	static const int mgf[] = { [HASH_SHA256] = WC_MGF1SHA256, WC_MGF1SHA384, WC_MGF1SHA512 };
	uint8_t info[DIGEST_INFO_MAX];
	uint8_t out[RSA_MAX_BYTES];
	int r;

	wc_RsaSetRNG(k, crypto_rng());
	if (s == SIG_RSA_PSS)
		r = wc_RsaPSS_Sign_ex(digest.p, (word32)digest.n, out, sizeof(out), hash_wolf(h),
			mgf[h], (int)digest.n, k, crypto_rng());
	else
		r = wc_RsaSSL_Sign(info, (word32)digest_info(h, digest, info), out, sizeof(out), k,
			crypto_rng());
	if (r > 0)
		buf_append(ret, out, (size_t)r);
	return r > 0 ? 0 : r == 0 ? -1 : r;
}

int key_sign(const struct key *k, enum hash h, struct bytes digest, enum sig_scheme s,
	struct buf *ret, struct err *e)
{
	/* Immutable as seen from outside; what changes are the pool's flags. */
	struct key *mine = (struct key *)(uintptr_t)k;
	struct loan l;
	int r = digest_check(h, digest, e);

	if (r)
		return r;
	if (k->type == KEY_ED25519)
		return err_set(e, ERR_INVALID, "Ed25519 signs messages, not digests");
	if (k->curve && s == SIG_RSA_PSS)
		return err_set(e, ERR_INVALID, "an EC key makes no RSA-PSS signatures");
	l = borrow(mine);
	r = k->curve ? sign_ec(k->curve, &l.o->ec, digest, s, ret)
		     : sign_rsa(&l.o->rsa, h, digest, s, ret);
	give_back(mine, l);
	if (r)
		return err_set(e, ERR_INTERNAL, "signing failed (wolfCrypt %d)", r);
	return ret->failed ? err_set(e, ERR_EXHAUSTED, "no room for the signature") : 0;
}

int key_sign_message(const struct key *k, enum hash h, struct bytes message, enum sig_scheme s,
	struct buf *ret, struct err *e)
{
	uint8_t digest[HASH_MAX];

	if (k->type != KEY_ED25519) {
		hash_of(h, message, digest);
		return key_sign(k, h, bytes_of(digest, hash_size(h)), s, ret, e);
	}
	if (message.n > BUF_MAX_DEFAULT ||
		!ed25519_sign(k->inner.p, pubkey_ed25519(k->pub).p, message, ret))
		return err_set(e, ERR_INTERNAL, "signing with Ed25519 failed");
	return 0;
}

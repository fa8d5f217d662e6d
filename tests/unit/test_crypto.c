#include "tests/test.h"

#include <pthread.h>

#include "lib/crypto.h"

#include "tests/unit/crypto_vectors.inc"

static struct err e;

static struct bytes digest_of(const char *text, enum hash h)
{
	static uint8_t d[HASH_MAX];

	hash_of(h, bytes_str(text), d);
	return bytes_of(d, hash_size(h));
}

static void check_hex(struct bytes v, const char *want)
{
	AUTO_BUF struct buf b = BUF_INIT;

	hex_encode(&b, v);
	CHECK_STR(buf_cstr(&b), want);
}

static void test_hashes(void)
{
	uint8_t out[HASH_MAX];
	struct hasher *h;

	crypto_init();
	check_hex(digest_of("abc", HASH_SHA1), "a9993e364706816aba3e25717850c26c9cd0d89d");
	check_hex(digest_of("abc", HASH_SHA256),
		"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
	h = hasher_new(HASH_SHA256);
	hasher_update(h, bytes_str("a"));
	hasher_update(h, bytes_str(""));
	hasher_update(h, bytes_str("bc"));
	hasher_final(h, out);
	CHECK_BYTES(bytes_of(out, 32), digest_of("abc", HASH_SHA256));
	CHECK_INT(hash_size(HASH_SHA384), 48);
	CHECK_INT(hash_size(HASH_SHA512), 64);
}

static void test_key_types(void)
{
	enum key_type t = KEY_NONE;

	CHECK_OK(key_type_parse("rsa-4096", &t, &e));
	CHECK_INT(t, KEY_RSA_4096);
	CHECK_STR(key_type_name(KEY_EC_P384), "ec-p384");
	CHECK_ERR(key_type_parse("ec-p521", &t, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "ec-p256");
	CHECK_INT(t, KEY_RSA_4096);
}

/* RFC 5869 A.1 and A.3. */
static void test_hkdf(void)
{
	static const uint8_t salt[] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 };
	static const uint8_t info[] = { 0xf0, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8,
		0xf9 };
	uint8_t ikm[22], out[42];

	memset(ikm, 0x0b, sizeof(ikm));
	hkdf_sha256(bytes_of(ikm, 22), bytes_of(salt, 13), bytes_of(info, 10), out, 42);
	check_hex(bytes_of(out, 42),
		"3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
		"34007208d5b887185865");
	hkdf_sha256(bytes_of(ikm, 22), bytes_of(NULL, 0), bytes_of(NULL, 0), out, 42);
	check_hex(bytes_of(out, 42),
		"8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
		"9d201395faa4b61a96c8");
}

static void test_aead(void)
{
	static const uint8_t key[32] = { 1 }, other[32] = { 2 };
	AUTO_BUF struct buf sealed = BUF_INIT, plain = BUF_INIT;

	CHECK_OK(aead_seal(key, bytes_str("ctx"), bytes_str("secret"), &sealed, &e));
	CHECK_INT(sealed.len, 12 + 6 + 16);
	CHECK_OK(aead_open(key, bytes_str("ctx"), buf_view(&sealed), &plain, &e));
	CHECK_STR(buf_cstr(&plain), "secret");
	CHECK_ERR(aead_open(other, bytes_str("ctx"), buf_view(&sealed), &plain, &e), ERR_DATA_LOSS);
	CHECK_ERR(aead_open(key, bytes_str("xtc"), buf_view(&sealed), &plain, &e), ERR_DATA_LOSS);
	for (size_t i = 0; i < sealed.len; i++) {
		sealed.p[i] ^= 1;
		CHECK(aead_open(key, bytes_str("ctx"), buf_view(&sealed), &plain, &e) != 0);
		sealed.p[i] ^= 1;
		CHECK(aead_open(key, bytes_str("ctx"), bytes_of(sealed.p, i), &plain, &e) != 0);
	}
	CHECK_INT(plain.len, 6);
	buf_reset(&sealed);
	buf_reset(&plain);
	CHECK_OK(aead_seal(key, bytes_of(NULL, 0), bytes_of(NULL, 0), &sealed, &e));
	CHECK_OK(aead_open(key, bytes_of(NULL, 0), buf_view(&sealed), &plain, &e));
	CHECK_INT(plain.len, 0);
}

static void check_base64(const char *plain, const char *text)
{
	AUTO_BUF struct buf b = BUF_INIT, back = BUF_INIT;

	base64_encode(&b, bytes_str(plain));
	CHECK_STR(buf_cstr(&b), text);
	CHECK_OK(base64_decode(&back, bytes_str(text), &e));
	CHECK_STR(buf_cstr(&back), plain);
	while (b.len && b.p[b.len - 1] == '=')
		b.len--;
	buf_reset(&back);
	CHECK_OK(base64url_decode(&back, buf_view(&b), &e));
	CHECK_STR(buf_cstr(&back), plain);
}

static void test_base64(void)
{
	static const char *const bad[] = { "Zg", "Zg=", "Zh==", "Zm9=", "Zg==\n",
		" Zg==", "Z===", "====", "Zm9v=", "Zm-v", "Zg==Zg==" };
	static const char *const bad_url[] = { "Zg==", "Zh", "Zm9v+m9v", "Z", "Zm9vZ", "Zm 9" };
	AUTO_BUF struct buf b = BUF_INIT;

	/* RFC 4648 10 */
	check_base64("", "");
	check_base64("f", "Zg==");
	check_base64("fo", "Zm8=");
	check_base64("foo", "Zm9v");
	check_base64("foob", "Zm9vYg==");
	check_base64("fooba", "Zm9vYmE=");
	check_base64("foobar", "Zm9vYmFy");
	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		CHECK_ERR(base64_decode(&b, bytes_str(bad[i]), &e), ERR_INVALID);
	for (size_t i = 0; i < ARRAY_LEN(bad_url); i++)
		CHECK_ERR(base64url_decode(&b, bytes_str(bad_url[i]), &e), ERR_INVALID);
	CHECK_INT(b.len, 0);
	base64url_encode(&b, bytes_of("\xfb\xff", 2));
	CHECK_STR(buf_cstr(&b), "-_8");
}

struct seen {
	int n;
	char labels[4][32];
	size_t sizes[4];
};

static int see(void *arg, const char *label, struct bytes der, struct err *er)
{
	struct seen *s = arg;

	(void)er;
	if (s->n == 4)
		return ERR_EXHAUSTED;
	snprintf(s->labels[s->n], sizeof(s->labels[0]), "%s", label);
	s->sizes[s->n++] = der.n;
	return 0;
}

static void test_pem(void)
{
	static const char two[] = "text before\n-----BEGIN A B-----\r\nZm9v\r\nYmFy\r\n-----END A "
				  "B-----\r\nbetween\n-----BEGIN C-----\nZg==\n-----END C-----";
	static const char *const bad[] = { "-----BEGIN A-----\nZm9v\n", "-----BEGIN A-----\nZm9v",
		"-----BEGIN A-----\nZm9v\n-----END B-----\n",
		"-----BEGIN A-----\nProc-Type: 4,ENCRYPTED\n\nZm9v\n-----END A-----\n",
		"-----BEGIN A-----\nZm9\n-----END A-----\n",
		"-----BEGIN A-----\n-----BEGIN A-----\nZm9v\n-----END A-----\n" };
	AUTO_BUF struct buf b = BUF_INIT;
	struct seen s = { 0 };
	uint8_t der[100];

	CHECK_OK(pem_each(bytes_str(two), see, &s, &e));
	CHECK_INT(s.n, 2);
	CHECK_STR(s.labels[0], "A B");
	CHECK_INT(s.sizes[0], 6);
	CHECK_STR(s.labels[1], "C");
	CHECK_INT(s.sizes[1], 1);
	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		CHECK_ERR(pem_each(bytes_str(bad[i]), see, &s, &e), ERR_INVALID);
	s = (struct seen){ 0 };
	CHECK_OK(pem_each(bytes_str("nothing\n"), see, &s, &e));
	CHECK_OK(pem_each(bytes_str(""), see, &s, &e));
	CHECK_INT(s.n, 0);
	for (size_t n = 0; n <= sizeof(der); n++) {
		s = (struct seen){ 0 };
		crypto_random(der, n);
		buf_reset(&b);
		pem_write(&b, "CERTIFICATE", bytes_of(der, n));
		CHECK_OK(pem_each(buf_view(&b), see, &s, &e));
		CHECK_INT(s.n, 1);
		CHECK_INT(s.sizes[0], n);
	}
}

static void sign_and_check(struct key *k, enum hash h, enum sig_scheme s)
{
	struct bytes d = digest_of("hello", h);
	AUTO_BUF struct buf sig = BUF_INIT;

	CHECK_OK(key_sign(k, h, d, s, &sig, &e));
	CHECK_OK(pubkey_verify(key_public(k), h, d, s, buf_view(&sig), &e));
	for (size_t i = 0; i < sig.len; i += 7) {
		sig.p[i] ^= 0x10;
		CHECK_ERR(pubkey_verify(key_public(k), h, d, s, buf_view(&sig), &e), ERR_INVALID);
		sig.p[i] ^= 0x10;
	}
	CHECK_ERR(pubkey_verify(key_public(k), h, d, s, bytes_of(sig.p, sig.len - 1), &e),
		ERR_INVALID);
	CHECK_ERR(pubkey_verify(key_public(k), h, d, s, bytes_of(sig.p, 0), &e), ERR_INVALID);
	CHECK_ERR(pubkey_verify(key_public(k), h, digest_of("hellp", h), s, buf_view(&sig), &e),
		ERR_INVALID);
}

static void check_round_trip(const struct key *k)
{
	struct buf der = BUF_INIT_SECRET, again = BUF_INIT_SECRET;
	AUTO(key_unref) struct key *copy = NULL;
	AUTO(pubkey_unref) struct pubkey *p = NULL;

	key_to_pkcs8(k, &der);
	CHECK_OK(key_from_pkcs8(buf_view(&der), &copy, &e));
	key_to_pkcs8(copy, &again);
	CHECK_BYTES(buf_view(&der), buf_view(&again));
	CHECK_INT(key_get_type(copy), key_get_type(k));
	CHECK_BYTES(pubkey_spki(key_public(k)), pubkey_spki(key_public(copy)));
	CHECK_OK(pubkey_from_spki(pubkey_spki(key_public(k)), &p, &e));
	CHECK_INT(pubkey_type(p), key_get_type(k));
	CHECK_INT(pubkey_bits(p), pubkey_bits(key_public(k)));
	buf_deinit(&der);
	buf_deinit(&again);
}

static void test_ec_keys(void)
{
	static const enum key_type types[] = { KEY_EC_P256, KEY_EC_P384, KEY_EC_P521 };

	for (size_t i = 0; i < ARRAY_LEN(types); i++) {
		AUTO(key_unref) struct key *k = NULL;
		AUTO(pubkey_unref) struct pubkey *p = NULL;
		AUTO_BUF struct buf x = BUF_INIT, y = BUF_INIT, sig = BUF_INIT;
		uint8_t a[20], b[20];

		CHECK_OK(key_generate(types[i], &k, &e));
		for (int round = 0; round < 3; round++) {
			sign_and_check(k, HASH_SHA256, SIG_X509);
			sign_and_check(k, HASH_SHA384, SIG_JWS);
			sign_and_check(k, key_type_hash(types[i]), SIG_JWS);
		}
		check_round_trip(k);
		pubkey_ec_xy(key_public(k), &x, &y);
		CHECK_OK(pubkey_from_ec(types[i], buf_view(&x), buf_view(&y), &p, &e));
		CHECK_BYTES(pubkey_spki(p), pubkey_spki(key_public(k)));
		pubkey_key_id(p, a);
		pubkey_key_id(key_public(k), b);
		CHECK(memcmp(a, b, 20) == 0);
		CHECK_ERR(key_sign(k, HASH_SHA256, digest_of("x", HASH_SHA256), SIG_RSA_PSS, &sig,
				  &e),
			ERR_INVALID);
		CHECK_ERR(key_sign(k, HASH_SHA1, digest_of("x", HASH_SHA1), SIG_X509, &sig, &e),
			ERR_INVALID);
		CHECK_ERR(key_sign(k, HASH_SHA256, bytes_str("short"), SIG_X509, &sig, &e),
			ERR_INVALID);
		CHECK_INT(sig.len, 0);
	}
}

static void test_bad_points(void)
{
	AUTO(key_unref) struct key *k = NULL;
	struct pubkey *p = NULL;
	AUTO_BUF struct buf x = BUF_INIT, y = BUF_INIT, spki = BUF_INIT;
	uint8_t zero[32] = { 0 }, prime[32];

	CHECK_OK(key_generate(KEY_EC_P256, &k, &e));
	pubkey_ec_xy(key_public(k), &x, &y);
	CHECK_ERR(pubkey_from_ec(KEY_EC_P256, bytes_of(zero, 32), bytes_of(zero, 32), &p, &e),
		ERR_INVALID);
	CHECK_ERR(
		pubkey_from_ec(KEY_EC_P256, buf_view(&x), bytes_of(y.p, 31), &p, &e), ERR_INVALID);
	CHECK_ERR(pubkey_from_ec(KEY_EC_P384, buf_view(&x), buf_view(&y), &p, &e), ERR_INVALID);
	CHECK_ERR(pubkey_from_ec(KEY_RSA_2048, buf_view(&x), buf_view(&y), &p, &e), ERR_INVALID);
	memset(prime, 0xff, sizeof(prime));
	CHECK_ERR(pubkey_from_ec(KEY_EC_P256, bytes_of(prime, 32), buf_view(&y), &p, &e),
		ERR_INVALID);
	y.p[31] ^= 1;
	CHECK_ERR(pubkey_from_ec(KEY_EC_P256, buf_view(&x), buf_view(&y), &p, &e), ERR_INVALID);
	buf_bytes(&spki, pubkey_spki(key_public(k)));
	spki.p[spki.len - 1] ^= 1;
	CHECK_ERR(pubkey_from_spki(buf_view(&spki), &p, &e), ERR_INVALID);
	spki.p[spki.len - 1] ^= 1;
	buf_byte(&spki, 0);
	CHECK_ERR(pubkey_from_spki(buf_view(&spki), &p, &e), ERR_INVALID);
	for (size_t i = 0; i < spki.len - 1; i++)
		CHECK_ERR(pubkey_from_spki(bytes_of(spki.p, i), &p, &e), ERR_INVALID);
	CHECK(!p);
}

static void test_rsa_keys(void)
{
	AUTO(key_unref) struct key *k = NULL;
	AUTO(pubkey_unref) struct pubkey *p = NULL;
	AUTO_BUF struct buf n = BUF_INIT, x = BUF_INIT;

	CHECK_OK(key_generate(KEY_RSA_2048, &k, &e));
	for (int round = 0; round < 3; round++) {
		sign_and_check(k, HASH_SHA256, SIG_X509);
		sign_and_check(k, HASH_SHA384, SIG_JWS);
		sign_and_check(k, HASH_SHA512, SIG_RSA_PSS);
		sign_and_check(k, HASH_SHA256, SIG_RSA_PSS);
	}
	check_round_trip(k);
	pubkey_rsa_ne(key_public(k), &n, &x);
	CHECK_INT(n.len, 256);
	CHECK_OK(pubkey_from_rsa(buf_view(&n), buf_view(&x), &p, &e));
	CHECK_BYTES(pubkey_spki(p), pubkey_spki(key_public(k)));
	pubkey_unref(p);
	p = NULL;
	CHECK(pubkey_from_rsa(bytes_of(n.p, 128), buf_view(&x), &p, &e) != 0);
	CHECK(pubkey_from_rsa(buf_view(&n), bytes_of("\x01", 1), &p, &e) != 0);
	CHECK(pubkey_from_rsa(buf_view(&n), bytes_of(NULL, 0), &p, &e) != 0);
	CHECK(pubkey_from_rsa(bytes_of(NULL, 0), buf_view(&x), &p, &e) != 0);
	n.p[255] ^= 1;
	CHECK(pubkey_from_rsa(buf_view(&n), buf_view(&x), &p, &e) != 0);
}

static struct key *pem_key(const char *pem)
{
	struct key *k = NULL;

	CHECK_OK(key_from_pem(bytes_str(pem), &k, &e));
	return k;
}

static void check_foreign(const char *pem, const char *sig64, enum sig_scheme s)
{
	AUTO(key_unref) struct key *k = pem_key(pem);
	AUTO_BUF struct buf sig = BUF_INIT;

	CHECK_OK(base64_decode(&sig, bytes_str(sig64), &e));
	CHECK_OK(pubkey_verify(key_public(k), HASH_SHA256, digest_of("hello", HASH_SHA256), s,
		buf_view(&sig), &e));
	check_round_trip(k);
}

static void test_foreign(void)
{
	struct key *k = NULL;
	AUTO(key_unref) struct key *p384 = pem_key(p384_pem);
	AUTO(key_unref) struct key *p521 = pem_key(p521_pem);

	CHECK_INT(key_get_type(p384), KEY_EC_P384);
	CHECK_INT(key_get_type(p521), KEY_EC_P521);
	check_foreign(sec1_pem, ecdsa_sig, SIG_X509);
	check_foreign(rsa_pkcs1_pem, pkcs1_sig, SIG_X509);
	check_foreign(rsa_pkcs1_pem, pss_max_salt_sig, SIG_RSA_PSS);
	CHECK_ERR(key_from_pem(bytes_str(encrypted_pem), &k, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "encrypted");
	CHECK_ERR(key_from_pem(bytes_str(old_encrypted_pem), &k, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "encrypted");
	CHECK_ERR(key_from_pem(bytes_str(ed25519_pem), &k, &e), ERR_INVALID);
	CHECK_ERR(key_from_pem(bytes_str("nothing"), &k, &e), ERR_INVALID);
	CHECK(!k);
}

static void test_broken_keys(void)
{
	AUTO(key_unref) struct key *k = pem_key(p384_pem);
	struct buf der = BUF_INIT_SECRET;
	struct key *out;

	key_to_pkcs8(k, &der);
	for (size_t i = 0; i < der.len; i++) {
		out = NULL;
		CHECK_ERR(key_from_pkcs8(bytes_of(der.p, i), &out, &e), ERR_INVALID);
		der.p[i] ^= 1;
		if (key_from_pkcs8(buf_view(&der), &out, &e) == 0)
			key_unref(out);
		der.p[i] ^= 1;
	}
	/* The scalar's last byte: public and private key no longer fit. */
	der.p[35 + 47] ^= 1;
	CHECK_ERR(key_from_pkcs8(buf_view(&der), &out, &e), ERR_INVALID);
	buf_deinit(&der);
}

struct race {
	struct key *k;
	enum sig_scheme s;
	int bad;
};

static void *race(void *arg)
{
	struct race *r = arg;
	uint8_t d[32];
	struct err er;

	for (int i = 0; i < 60; i++) {
		AUTO_BUF struct buf sig = BUF_INIT;

		crypto_random(d, sizeof(d));
		if (key_sign(r->k, HASH_SHA256, bytes_of(d, 32), r->s, &sig, &er) ||
			pubkey_verify(key_public(r->k), HASH_SHA256, bytes_of(d, 32), r->s,
				buf_view(&sig), &er))
			r->bad++;
	}
	return NULL;
}

/* Many threads with one key: never a wrong answer. */
static void test_shared_by_threads(void)
{
	static const enum key_type types[] = { KEY_EC_P256, KEY_EC_P384, KEY_RSA_2048 };

	for (size_t t = 0; t < ARRAY_LEN(types); t++) {
		AUTO(key_unref) struct key *k = NULL;
		pthread_t threads[8];
		struct race r[8];

		CHECK_OK(key_generate(types[t], &k, &e));
		for (int i = 0; i < 8; i++) {
			r[i] = (struct race){ .k = k, .s = i % 2 ? SIG_JWS : SIG_X509 };
			CHECK(pthread_create(&threads[i], NULL, race, &r[i]) == 0);
		}
		for (int i = 0; i < 8; i++) {
			pthread_join(threads[i], NULL);
			CHECK_INT(r[i].bad, 0);
		}
	}
}

static void test_fork_differs(void)
{
	uint8_t mine[16], child[16];
	int fds[2];

	crypto_random(mine, sizeof(mine));
	CHECK(pipe(fds) == 0);
	if (fork() == 0) {
		crypto_random(child, sizeof(child));
		_exit(write(fds[1], child, sizeof(child)) != sizeof(child));
	}
	crypto_random(mine, sizeof(mine));
	CHECK(read(fds[0], child, sizeof(child)) == sizeof(child));
	CHECK(memcmp(mine, child, sizeof(mine)) != 0);
	wait(NULL);
}

/* RFC 8032 7.1, test 2. */
static void test_ed25519_key(void)
{
	static const uint8_t seed[32] = { 0x4c, 0xcd, 0x08, 0x9b, 0x28, 0xff, 0x96, 0xda, 0x9d,
		0xb6, 0xc3, 0x46, 0xec, 0x11, 0x4e, 0x0f, 0x5b, 0x8a, 0x31, 0x9f, 0x35, 0xab, 0xa6,
		0x24, 0xda, 0x8c, 0xf6, 0xed, 0x4f, 0xb8, 0xa6, 0xfb };
	struct bytes message = bytes_of("\x72", 1), spki;
	AUTO(key_unref) struct key *k = NULL;
	AUTO_BUF struct buf sig = BUF_INIT;
	uint8_t digest[32] = { 0 };

	CHECK_OK(key_from_ed25519(bytes_of(seed, 32), &k, &e));
	spki = pubkey_spki(key_public(k));
	check_hex(bytes_of(spki.p + spki.n - 32, 32),
		"3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c");
	CHECK_OK(key_sign_message(k, HASH_SHA256, message, SIG_X509, &sig, &e));
	check_hex(buf_view(&sig),
		"92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
		"085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00");
	CHECK_OK(pubkey_verify_message(
		key_public(k), HASH_SHA256, message, SIG_X509, buf_view(&sig), &e));
	CHECK_ERR(key_sign(k, HASH_SHA256, bytes_of(digest, 32), SIG_X509, &sig, &e), ERR_INVALID);
	CHECK_ERR(key_from_ed25519(bytes_of(seed, 31), &k, &e), ERR_INVALID);
}

TEST_MAIN(TEST(test_ed25519_key), TEST(test_hashes), TEST(test_key_types), TEST(test_hkdf),
	TEST(test_aead), TEST(test_base64), TEST(test_pem), TEST(test_ec_keys),
	TEST(test_bad_points), TEST(test_rsa_keys), TEST(test_foreign), TEST(test_broken_keys),
	TEST(test_shared_by_threads), TEST(test_fork_differs))

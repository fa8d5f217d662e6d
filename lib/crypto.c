#include "lib/crypto_internal.h"

#include <wolfssl/ssl.h>
#include <wolfssl/wolfcrypt/aes.h>
#include <wolfssl/wolfcrypt/hmac.h>

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { GCM_NONCE = 12, GCM_TAG = 16, CHUNK = 1 << 30 };

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t rng_owner;
static _Thread_local WC_RNG *thread_rng;

static void rng_free(void *p)
{
	wc_FreeRng(p);
	free(p);
	thread_rng = NULL;
}

static void init_once(void)
{
	INVARIANT(wolfSSL_Init() == WOLFSSL_SUCCESS);
	INVARIANT(pthread_key_create(&rng_owner, rng_free) == 0);
}

void crypto_init(void)
{
	pthread_once(&once, init_once);
}

/* wolfCrypt's generators must not be shared; one per thread costs 6 us once. It reseeds itself in
 * the child of a fork. */
WC_RNG *crypto_rng(void)
{
	if (!thread_rng) {
		WC_RNG *r;

		crypto_init();
		r = xcalloc(1, sizeof(*r));
		INVARIANT(wc_InitRng(r) == 0);
		pthread_setspecific(rng_owner, r);
		thread_rng = r;
	}
	return thread_rng;
}

void crypto_random(void *ret, size_t n)
{
	uint8_t *p = ret;

	while (n) {
		size_t part = n < RNG_MAX_BLOCK_LEN ? n : RNG_MAX_BLOCK_LEN;

		INVARIANT(wc_RNG_GenerateBlock(crypto_rng(), p, (word32)part) == 0);
		p += part;
		n -= part;
	}
}

static const struct {
	enum key_type type;
	const char *name;
} type_names[] = {
	{ KEY_EC_P256, "ec-p256" },
	{ KEY_EC_P384, "ec-p384" },
	{ KEY_RSA_2048, "rsa-2048" },
	{ KEY_RSA_4096, "rsa-4096" },
	{ KEY_EC_P521, "ec-p521" },
	{ KEY_RSA_OTHER, "rsa" },
	{ KEY_ED25519, "ed25519" },
};
enum { CONFIGURABLE_TYPES = 4 };

int key_type_parse(const char *s, enum key_type *ret, struct err *e)
{
	for (size_t i = 0; i < CONFIGURABLE_TYPES; i++)
		if (strcmp(s, type_names[i].name) == 0) {
			*ret = type_names[i].type;
			return 0;
		}
	return err_set(e, ERR_INVALID,
		"key type \"%.64s\" is unknown; must be one of [rsa-2048, rsa-4096, ec-p256, "
		"ec-p384]",
		s);
}

const char *key_type_name(enum key_type t)
{
	for (size_t i = 0; i < ARRAY_LEN(type_names); i++)
		if (type_names[i].type == t)
			return type_names[i].name;
	return "none";
}

enum hash key_type_hash(enum key_type t)
{
	return t == KEY_EC_P384 ? HASH_SHA384 : t == KEY_EC_P521 ? HASH_SHA512 : HASH_SHA256;
}

size_t hash_size(enum hash h)
{
	static const uint8_t sizes[] = { [HASH_SHA1] = 20, 32, 48, 64 };

	return sizes[h];
}

enum wc_HashType hash_wolf(enum hash h)
{
	static const enum wc_HashType types[] = { [HASH_SHA1] = WC_HASH_TYPE_SHA,
		WC_HASH_TYPE_SHA256,
		WC_HASH_TYPE_SHA384,
		WC_HASH_TYPE_SHA512 };

	return types[h];
}

struct hasher {
	enum hash hash;
	wc_HashAlg alg;
};

static void hasher_begin(struct hasher *h, enum hash hash)
{
	h->hash = hash;
	INVARIANT(wc_HashInit(&h->alg, hash_wolf(hash)) == 0);
}

static void hasher_end(struct hasher *h, uint8_t *ret)
{
	INVARIANT(wc_HashFinal(&h->alg, hash_wolf(h->hash), ret) == 0);
	wc_HashFree(&h->alg, hash_wolf(h->hash));
}

struct hasher *hasher_new(enum hash hash)
{
	struct hasher *h = xmalloc(sizeof(*h));

	hasher_begin(h, hash);
	return h;
}

void hasher_update(struct hasher *h, struct bytes data)
{
	while (data.n) {
		size_t part = data.n < CHUNK ? data.n : CHUNK;

		INVARIANT(wc_HashUpdate(&h->alg, hash_wolf(h->hash), data.p, (word32)part) == 0);
		data.p += part;
		data.n -= part;
	}
}

void hasher_final(struct hasher *h, uint8_t *ret)
{
	hasher_end(h, ret);
	free(h);
}

void hash_of(enum hash hash, struct bytes data, uint8_t *ret)
{
	struct hasher h;

	hasher_begin(&h, hash);
	hasher_update(&h, data);
	hasher_end(&h, ret);
}

int digest_check(enum hash h, struct bytes digest, struct err *e)
{
	if (h == HASH_SHA1)
		return err_set(e, ERR_INVALID, "signatures over SHA-1 are not accepted");
	if (digest.n != hash_size(h))
		return err_set(e, ERR_INVALID, "the digest is of the wrong size");
	return 0;
}

size_t digest_info(enum hash h, struct bytes digest, uint8_t ret[static DIGEST_INFO_MAX])
{
	/* SEQ { SEQ { OID 2.16.840.1.101.3.4.2.x, NULL }, OCTET STRING } */
	static const uint8_t base[19] = { 0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48,
		0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20 };

	if (h == HASH_SHA1)
		return 0;
	memcpy(ret, base, sizeof(base));
	ret[1] = (uint8_t)(17 + digest.n);
	ret[14] = h == HASH_SHA256 ? 1 : h == HASH_SHA384 ? 2 : 3;
	ret[18] = (uint8_t)digest.n;
	memcpy(ret + sizeof(base), digest.p, digest.n);
	return sizeof(base) + digest.n;
}

void hkdf_sha256(struct bytes secret, struct bytes salt, struct bytes info, uint8_t *ret, size_t n)
{
	INVARIANT(n <= (size_t)255 * 32); /* RFC 5869 2.3 */
	INVARIANT(wc_HKDF(WC_SHA256, secret.p, (word32)secret.n, salt.p, (word32)salt.n, info.p,
			  (word32)info.n, ret, (word32)n) == 0);
}

static void aes_deinit(Aes *a)
{
	wc_AesFree(a);
	mem_wipe(a, sizeof(*a));
}

static void aes_init(Aes *a, const uint8_t key[32])
{
	INVARIANT(wc_AesInit(a, NULL, INVALID_DEVID) == 0);
	INVARIANT(wc_AesGcmSetKey(a, key, 32) == 0);
}

int aead_seal(
	const uint8_t key[32], struct bytes aad, struct bytes plain, struct buf *ret, struct err *e)
{
	__attribute__((cleanup(aes_deinit))) Aes a;
	uint8_t *nonce, *out;

	aes_init(&a, key);
	if (plain.n > BUF_MAX_DEFAULT || !buf_reserve(ret, GCM_NONCE + plain.n + GCM_TAG))
		return err_set(e, ERR_EXHAUSTED, "too much to encrypt: %zu bytes", plain.n);
	nonce = ret->p + ret->len;
	out = nonce + GCM_NONCE;
	crypto_random(nonce, GCM_NONCE);
	if (wc_AesGcmEncrypt(&a, out, plain.p, (word32)plain.n, nonce, GCM_NONCE, out + plain.n,
		    GCM_TAG, aad.p, (word32)aad.n) != 0)
		return err_set(e, ERR_INTERNAL, "encryption failed");
	ret->len += GCM_NONCE + plain.n + GCM_TAG;
	ret->p[ret->len] = 0;
	return 0;
}

int aead_open(const uint8_t key[32], struct bytes aad, struct bytes sealed, struct buf *ret,
	struct err *e)
{
	__attribute__((cleanup(aes_deinit))) Aes a;
	size_t n;

	aes_init(&a, key);
	if (sealed.n < GCM_NONCE + GCM_TAG)
		return err_set(e, ERR_DATA_LOSS, "the sealed data is too short");
	n = sealed.n - GCM_NONCE - GCM_TAG;
	if (n > BUF_MAX_DEFAULT || !buf_reserve(ret, n))
		return err_set(e, ERR_EXHAUSTED, "too much to decrypt: %zu bytes", n);
	if (wc_AesGcmDecrypt(&a, ret->p + ret->len, sealed.p + GCM_NONCE, (word32)n, sealed.p,
		    GCM_NONCE, sealed.p + GCM_NONCE + n, GCM_TAG, aad.p, (word32)aad.n) != 0) {
		mem_wipe(ret->p + ret->len, n);
		return err_set(e, ERR_DATA_LOSS,
			"the sealed data does not open: it was changed, or the key is another");
	}
	ret->len += n;
	ret->p[ret->len] = 0;
	return 0;
}

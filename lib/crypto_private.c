/* Private keys from bare numbers, as SSH's files hold them, and Ed25519's own operations. */
#include <wolfssl/options.h>
#include <wolfssl/wolfcrypt/ed25519.h>

#include "lib/crypto_internal.h"
#include "lib/der.h"

bool ed25519_public(const uint8_t seed[static ED25519_SEED], uint8_t ret[static ED25519_PUBLIC])
{
	ed25519_key k;
	bool ok;

	wc_ed25519_init(&k);
	ok = wc_ed25519_import_private_only(seed, ED25519_SEED, &k) == 0 &&
	     wc_ed25519_make_public(&k, ret, ED25519_PUBLIC) == 0;
	wc_ed25519_free(&k);
	mem_wipe(&k, sizeof(k));
	return ok;
}

bool ed25519_sign(const uint8_t seed[static ED25519_SEED],
	const uint8_t public[static ED25519_PUBLIC], struct bytes message, struct buf *ret)
{
	uint8_t sig[ED25519_SIG_SIZE];
	word32 n = sizeof(sig);
	ed25519_key k;
	bool ok;

	wc_ed25519_init(&k);
	ok = wc_ed25519_import_private_key(seed, ED25519_SEED, public, ED25519_PUBLIC, &k) == 0 &&
	     wc_ed25519_sign_msg(message.p, (word32)message.n, sig, &n, &k) == 0 &&
	     n == sizeof(sig);
	wc_ed25519_free(&k);
	mem_wipe(&k, sizeof(k));
	return ok && buf_append(ret, sig, n);
}

static bool read_number(mp_int *m, struct bytes v)
{
	return v.n > 0 && v.n <= RSA_MAX_BYTES && mp_read_unsigned_bin(m, v.p, (word32)v.n) == 0;
}

/* ret = d mod (prime - 1), RFC 8017 3.2: what PKCS#1 has and SSH leaves out. */
static bool exponent_of(mp_int *d, struct bytes prime, uint8_t *ret, size_t cap, size_t *ret_n)
{
	mp_int m, x;
	bool ok;

	mp_init(&m);
	mp_init(&x);
	ok = read_number(&m, prime) && mp_sub_d(&m, 1, &m) == 0 && !mp_iszero(&m) &&
	     mp_mod(d, &m, &x) == 0 && (size_t)mp_unsigned_bin_size(&x) <= cap &&
	     mp_to_unsigned_bin(&x, ret) == 0;
	if (ok)
		*ret_n = (size_t)mp_unsigned_bin_size(&x);
	mp_forcezero(&m);
	mp_forcezero(&x);
	return ok;
}

int key_from_rsa(const struct rsa_numbers *v, struct key **ret, struct err *e)
{
	AUTO_BUF struct buf der = BUF_INIT_SECRET;
	uint8_t dp[RSA_MAX_BYTES], dq[RSA_MAX_BYTES];
	size_t n_dp, n_dq, seq;
	mp_int d;
	bool ok;
	int r;

	mp_init(&d);
	ok = read_number(&d, v->d) && exponent_of(&d, v->p, dp, sizeof(dp), &n_dp) &&
	     exponent_of(&d, v->q, dq, sizeof(dq), &n_dq) && v->n.n <= RSA_MAX_BYTES &&
	     v->e.n <= 4 && v->q_inverse.n <= RSA_MAX_BYTES;
	mp_forcezero(&d);
	if (!ok) {
		r = err_set(e, ERR_INVALID, "malformed RSA private key");
	} else {
		buf_reserve(&der, 5 * (size_t)RSA_MAX_BYTES);
		seq = der_open(&der, DER_SEQUENCE);
		der_put_small(&der, 0);
		der_put_uint(&der, v->n);
		der_put_uint(&der, v->e);
		der_put_uint(&der, v->d);
		der_put_uint(&der, v->p);
		der_put_uint(&der, v->q);
		der_put_uint(&der, bytes_of(dp, n_dp));
		der_put_uint(&der, bytes_of(dq, n_dq));
		der_put_uint(&der, v->q_inverse);
		der_close(&der, seq);
		r = key_from_pkcs8(buf_view(&der), ret, e);
	}
	mem_wipe(dp, sizeof(dp));
	mem_wipe(dq, sizeof(dq));
	return r;
}

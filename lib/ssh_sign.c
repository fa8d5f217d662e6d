/* SSH: signatures, and the files of private keys. */
#include <string.h>

#include "lib/der.h"
#include "lib/ssh_internal.h"

/* ---- signatures ---- */

/* A number of at most width bytes as one of exactly so many. */
static bool append_padded(struct buf *ret, struct bytes v, size_t width)
{
	if (v.n > width)
		return false;
	for (size_t i = v.n; i < width; i++)
		buf_byte(ret, 0);
	return buf_bytes(ret, v);
}

/* RFC 5656 3.1.2: mpint r, mpint s. */
static int verify_ecdsa(const struct ssh_type *t, const struct pubkey *k, struct bytes message,
	struct bytes sig, struct err *e)
{
	AUTO_BUF struct buf fixed = BUF_INIT;
	struct bytes r, s;

	if (!ssh_get_mpint(&sig, &r) || !ssh_get_mpint(&sig, &s) || sig.n ||
		!append_padded(&fixed, r, t->size) || !append_padded(&fixed, s, t->size))
		return err_set(e, ERR_INVALID, "the signature is malformed");
	return pubkey_verify_message(k, t->hash, message, SIG_JWS, buf_view(&fixed), e);
}

/* RFC 8332 section 3. An implementation may leave out leading zeros of the number. */
static int verify_rsa(const struct pubkey *k, struct bytes message, struct bytes format,
	struct bytes sig, bool sha1, struct err *e)
{
	AUTO_BUF struct buf whole = BUF_INIT;

	if (!append_padded(&whole, sig, ((size_t)pubkey_bits(k) + 7) / 8))
		return err_set(e, ERR_INVALID, "the signature is malformed");
	if (ssh_bytes_are(format, "rsa-sha2-256"))
		return pubkey_verify_message(
			k, HASH_SHA256, message, SIG_X509, buf_view(&whole), e);
	if (ssh_bytes_are(format, "rsa-sha2-512"))
		return pubkey_verify_message(
			k, HASH_SHA512, message, SIG_X509, buf_view(&whole), e);
	if (!ssh_bytes_are(format, "ssh-rsa"))
		return err_set(e, ERR_INVALID, "the signature's type is not that of the key");
	if (!sha1)
		return err_set(e, ERR_INVALID,
			"ssh-rsa (SHA-1) signatures are not accepted here; sign with rsa-sha2-512");
	return pubkey_verify_rsa_sha1(k, message, buf_view(&whole), e);
}

int ssh_verify(const struct pubkey *k, struct bytes message, struct bytes format, struct bytes sig,
	bool sha1, struct err *e)
{
	const struct ssh_type *t = ssh_type_of_key(pubkey_type(k));

	if (!t)
		return err_set(e, ERR_INVALID, "the key's type is not supported");
	if (t->key == KEY_RSA_OTHER)
		return verify_rsa(k, message, format, sig, sha1, e);
	if (!ssh_bytes_are(format, t->name))
		return err_set(e, ERR_INVALID, "the signature's type is not that of the key");
	if (t->curve)
		return verify_ecdsa(t, k, message, sig, e);
	return pubkey_verify_message(k, t->hash, message, SIG_X509, sig, e);
}

int ssh_sign(const struct key *k, struct bytes message, const char **ret_format, struct buf *ret,
	struct err *e)
{
	const struct ssh_type *t = ssh_type_of_key(key_get_type(k));
	AUTO_BUF struct buf sig = BUF_INIT;
	int r;

	if (!t)
		return err_set(e, ERR_INVALID, "the key's type is not supported");
	r = key_sign_message(k, t->hash, message, t->curve ? SIG_JWS : SIG_X509, &sig, e);
	if (r)
		return r;
	*ret_format = t->key == KEY_RSA_OTHER ? "rsa-sha2-512" : t->name;
	if (!t->curve) {
		buf_bytes(ret, buf_view(&sig));
		return 0;
	}
	ssh_put_mpint(ret, bytes_of(sig.p, t->size));
	ssh_put_mpint(ret, bytes_of(sig.p + t->size, t->size));
	return 0;
}

/* ---- private keys: OpenSSH's PROTOCOL.key ---- */

static int malformed(struct err *e)
{
	return err_set(e, ERR_INVALID, "malformed OpenSSH private key");
}

static int private_ed25519(struct bytes *in, struct key **ret, struct err *e)
{
	struct bytes pub, both;

	/* The second is the seed, then the public key again. */
	if (!ssh_get_string(in, &pub) || !ssh_get_string(in, &both) || pub.n != 32 ||
		both.n != 64 || !bytes_equal(pub, bytes_of(both.p + 32, 32)))
		return malformed(e);
	return key_from_ed25519(bytes_of(both.p, 32), ret, e);
}

static int private_rsa(struct bytes *in, struct key **ret, struct err *e)
{
	struct rsa_numbers v;

	if (!ssh_get_mpint(in, &v.n) || !ssh_get_mpint(in, &v.e) || !ssh_get_mpint(in, &v.d) ||
		!ssh_get_mpint(in, &v.q_inverse) || !ssh_get_mpint(in, &v.p) ||
		!ssh_get_mpint(in, &v.q) || !v.n.n || !v.e.n || !v.q_inverse.n)
		return malformed(e);
	return key_from_rsa(&v, ret, e);
}

/* By way of SEC 1's ECPrivateKey (RFC 5915). */
static int private_ecdsa(
	const struct ssh_type *t, struct bytes *in, struct key **ret, struct err *e)
{
	AUTO_BUF struct buf der = BUF_INIT_SECRET, scalar = BUF_INIT_SECRET;
	struct bytes curve, point, d;
	size_t seq, params;

	if (!ssh_get_string(in, &curve) || !ssh_bytes_are(curve, t->curve) ||
		!ssh_get_string(in, &point) || !ssh_get_mpint(in, &d) ||
		!append_padded(&scalar, d, t->size))
		return malformed(e);
	seq = der_open(&der, DER_SEQUENCE);
	der_put_small(&der, 1);
	der_put(&der, DER_OCTET_STRING, buf_view(&scalar));
	params = der_open(&der, DER_CONTEXT_CONSTRUCTED(0));
	der_put(&der, DER_OID, t->oid);
	der_close(&der, params);
	der_close(&der, seq);
	return key_from_pkcs8(buf_view(&der), ret, e);
}

static int private_fields(
	const struct ssh_type *t, struct bytes *in, struct key **ret, struct err *e)
{
	if (t->key == KEY_ED25519)
		return private_ed25519(in, ret, e);
	return t->curve ? private_ecdsa(t, in, ret, e) : private_rsa(in, ret, e);
}

/* "the private key ... padded with bytes 1, 2, 3 ..." */
static bool is_padding(struct bytes v)
{
	for (size_t i = 0; i < v.n; i++)
		if (v.p[i] != (uint8_t)(i + 1))
			return false;
	return true;
}

/* The list's only key, which is the one whose public half stands before it. */
static int private_list(struct bytes in, struct bytes public, struct key **ret, struct err *e)
{
	AUTO(pubkey_unref) struct pubkey *pub = NULL;
	AUTO(key_unref) struct key *k = NULL;
	const struct ssh_type *t;
	struct bytes name, comment;
	uint32_t a, b;
	int r = ssh_public_parse(public, &pub, e);

	if (r)
		return r;
	if (!ssh_get_u32(&in, &a) || !ssh_get_u32(&in, &b) || a != b || !ssh_get_string(&in, &name))
		return malformed(e);
	t = ssh_type_of(name);
	if (!t)
		return malformed(e);
	r = private_fields(t, &in, &k, e);
	if (r)
		return r;
	if (!ssh_get_string(&in, &comment) || !is_padding(in) ||
		!bytes_equal(pubkey_spki(pub), pubkey_spki(key_public(k))))
		return malformed(e);
	*ret = k;
	k = NULL;
	return 0;
}

static int parse_v1(struct bytes in, struct key **ret, struct err *e)
{
	static const char magic[] = "openssh-key-v1"; /* with its zero */
	struct bytes cipher, kdf, options, public, list;
	uint32_t n;

	if (in.n < sizeof(magic) || memcmp(in.p, magic, sizeof(magic)) != 0)
		return malformed(e);
	in = bytes_of(in.p + sizeof(magic), in.n - sizeof(magic));
	if (!ssh_get_string(&in, &cipher) || !ssh_get_string(&in, &kdf) ||
		!ssh_get_string(&in, &options) || !ssh_get_u32(&in, &n))
		return malformed(e);
	if (!ssh_bytes_are(cipher, "none") || !ssh_bytes_are(kdf, "none"))
		return err_set(
			e, ERR_INVALID, "the private key is encrypted, which is not supported");
	if (n != 1 || !ssh_get_string(&in, &public) || !ssh_get_string(&in, &list) || in.n)
		return malformed(e);
	return private_list(list, public, ret, e);
}

static int take_block(void *arg, const char *label, struct bytes der, struct err *e)
{
	struct key **ret = arg;

	if (strcmp(label, "OPENSSH PRIVATE KEY") != 0)
		return 0;
	if (*ret)
		return err_set(e, ERR_INVALID, "there is more than one private key");
	return parse_v1(der, ret, e);
}

int ssh_key_parse(struct bytes text, struct key **ret, struct err *e)
{
	struct key *k = NULL;
	int r = text.n > SSH_PRIVATE_FILE_MAX
			? err_set(e, ERR_INVALID, "the private key's file is too large")
			: pem_each(text, take_block, &k, e);

	if (r) {
		key_unref(k);
		return r;
	}
	if (!k)
		return key_from_pem(text, ret, e);
	*ret = k;
	return 0;
}

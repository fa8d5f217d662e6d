#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "agent/attest.h"

/*
 * x509pop: shows a certificate, then signs SHA-256(server's nonce || own nonce) with its key. ECDSA
 * as r and s, RSA as PSS. Wire format as SPIRE's plugin of that name.
 */

enum { PEM_MAX = 1 << 20, CHALLENGE_MAX = 64 << 10, NONCE = 32 };

static inline void auto_json_decref(json_t **p)
{
	json_decref(*p);
}

static int read_chain(const char *path, struct x509_chain *ret, struct err *e)
{
	AUTO_BUF struct buf pem = BUF_INIT_MAX(PEM_MAX);
	int r = buf_read_file(&pem, path, e);

	if (!r)
		r = x509_chain_parse_pem(ret, buf_view(&pem), X509_MAX_CHAIN, e);
	return r ? err_wrap(e, "%s", path) : 0;
}

static void add_chain(struct buf *out, const struct x509_chain *ch, const char **sep)
{
	for (size_t i = 0; i < ch->n; i++) {
		buf_printf(out, "%s\"", *sep);
		base64_encode(out, x509_der(ch->v[i]));
		buf_str(out, "\"");
		*sep = ",";
	}
}

static int x509pop_payload(const struct agent_options *o, struct buf *ret, struct err *e)
{
	struct x509_chain leaf = { 0 }, more = { 0 };
	const char *sep = "";
	int r = read_chain(o->x509pop_certificate_path, &leaf, e);

	if (!r && o->x509pop_intermediates_path && o->x509pop_intermediates_path[0])
		r = read_chain(o->x509pop_intermediates_path, &more, e);
	if (!r) {
		buf_str(ret, "{\"certificates\":[");
		add_chain(ret, &leaf, &sep);
		add_chain(ret, &more, &sep);
		buf_str(ret, "]}");
	}
	x509_chain_deinit(&leaf);
	x509_chain_deinit(&more);
	return r;
}

static int read_key(const struct agent_options *o, struct key **ret, struct err *e)
{
	AUTO_BUF struct buf pem = { .max = PEM_MAX, .secret = true };
	int r = buf_read_file(&pem, o->x509pop_private_key_path, e);

	if (!r)
		r = key_from_pem(buf_view(&pem), ret, e);
	return r ? err_wrap(e, "%s", o->x509pop_private_key_path) : 0;
}

/* The nonce out of {"rsa_signature":{"nonce"}|null,"ecdsa_signature":{"nonce"}|null}. */
static int parse_challenge(struct bytes text, bool *ret_rsa, struct buf *nonce, struct err *e)
{
	AUTO(json_decref) json_t *root = NULL;
	const json_t *rsa, *ec, *n;
	json_error_t je;

	if (text.n > CHALLENGE_MAX)
		return err_set(e, ERR_INVALID, "the challenge is too large");
	root = json_loadb((const char *)text.p, text.n, 0, &je);
	if (!json_is_object(root))
		return err_set(e, ERR_INVALID, "unable to unmarshal challenge: %s", je.text);
	rsa = json_object_get(root, "rsa_signature");
	ec = json_object_get(root, "ecdsa_signature");
	*ret_rsa = json_is_object(rsa);
	n = json_object_get(*ret_rsa ? rsa : ec, "nonce");
	if (!json_is_string(n))
		return err_set(e, ERR_INVALID, "the challenge has no nonce");
	return base64_decode(nonce, bytes_str(json_string_value(n)), e);
}

static void add_number(struct buf *out, const char *name, struct bytes big_endian)
{
	while (big_endian.n > 1 && big_endian.p[0] == 0)
		big_endian = bytes_of(big_endian.p + 1, big_endian.n - 1);
	buf_printf(out, ",\"%s\":\"", name);
	base64_encode(out, big_endian);
	buf_str(out, "\"");
}

static int answer(
	const struct key *k, bool rsa, struct bytes theirs, struct buf *ret, struct err *e)
{
	AUTO_BUF struct buf both = BUF_INIT, sig = BUF_INIT;
	uint8_t own[NONCE], digest[HASH_MAX];
	int r;

	crypto_random(own, sizeof(own));
	buf_bytes(&both, theirs);
	buf_append(&both, own, sizeof(own));
	hash_of(HASH_SHA256, buf_view(&both), digest);
	r = key_sign(k, HASH_SHA256, bytes_of(digest, hash_size(HASH_SHA256)),
		rsa ? SIG_RSA_PSS : SIG_JWS, &sig, e);
	if (r)
		return r;
	buf_str(ret, rsa ? "{\"rsa_signature\":{\"nonce\":\""
			 : "{\"rsa_signature\":null,\"ecdsa_signature\":{\"nonce\":\"");
	base64_encode(ret, bytes_of(own, sizeof(own)));
	buf_str(ret, "\"");
	if (rsa) {
		buf_str(ret, ",\"signature\":\"");
		base64_encode(ret, buf_view(&sig));
		buf_str(ret, "\"");
		buf_str(ret, "},\"ecdsa_signature\":null}");
		return 0;
	}
	add_number(ret, "r", bytes_of(sig.p, sig.len / 2));
	add_number(ret, "s", bytes_of(sig.p + sig.len / 2, sig.len / 2));
	buf_str(ret, "}}");
	return 0;
}

static int x509pop_respond(
	const struct agent_options *o, struct bytes challenge, struct buf *ret, struct err *e)
{
	AUTO(key_unref) struct key *k = NULL;
	AUTO_BUF struct buf nonce = BUF_INIT_MAX(CHALLENGE_MAX);
	enum key_type t;
	bool rsa = false;
	int r = read_key(o, &k, e);

	if (!r)
		r = parse_challenge(challenge, &rsa, &nonce, e);
	if (r)
		return r;
	t = key_get_type(k);
	if (rsa != (t == KEY_RSA_2048 || t == KEY_RSA_4096 || t == KEY_RSA_OTHER))
		return err_set(e, ERR_INVALID, "the challenge does not fit the key's kind");
	return answer(k, rsa, buf_view(&nonce), ret, e);
}

const struct node_attestor attest_x509pop = {
	.name = "x509pop", .payload = x509pop_payload, .respond = x509pop_respond
};

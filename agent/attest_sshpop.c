#include <jansson.h>
#include <string.h>

#include "agent/attest.h"
#include "lib/ssh.h"

/*
 * sshpop: shows an OpenSSH host certificate, then signs SHA-256(server's nonce || own nonce) with
 * its key. Wire format as SPIRE's plugin of that name.
 */

enum { CHALLENGE_MAX = 4 << 10, NONCE = 32 };

static int sshpop_payload(const struct agent_options *o, struct buf *ret, struct err *e)
{
	AUTO_BUF struct buf file = BUF_INIT_MAX(SSH_LINE_MAX), blob = BUF_INIT;
	struct ssh_cert cert;
	int r = buf_read_file(&file, o->sshpop_host_cert_path, e);

	if (!r)
		r = ssh_line_parse(buf_view(&file), &blob, e);
	if (!r)
		r = ssh_cert_parse(buf_view(&blob), &cert, e);
	if (r)
		return err_wrap(e, "%s", o->sshpop_host_cert_path);
	ssh_cert_deinit(&cert);
	buf_str(ret, "{\"Certificate\":\"");
	base64_encode(ret, buf_view(&blob));
	buf_str(ret, "\"}");
	return 0;
}

static int read_key(const struct agent_options *o, struct key **ret, struct err *e)
{
	AUTO_BUF struct buf file = { .max = SSH_PRIVATE_FILE_MAX, .secret = true };
	int r = buf_read_file(&file, o->sshpop_host_key_path, e);

	if (!r)
		r = ssh_key_parse(buf_view(&file), ret, e);
	return r ? err_wrap(e, "%s", o->sshpop_host_key_path) : 0;
}

static int parse_challenge(struct bytes text, struct buf *nonce, struct err *e)
{
	json_error_t je;
	json_t *root;
	const json_t *n;
	int r;

	if (text.n > CHALLENGE_MAX)
		return err_set(e, ERR_INVALID, "the challenge is too large");
	root = json_loadb((const char *)text.p, text.n, 0, &je);
	if (!root)
		return err_set(
			e, ERR_INVALID, "failed to unmarshal challenge request: %s", je.text);
	n = json_object_get(root, "Nonce");
	r = json_is_string(n) ? base64_decode(nonce, bytes_str(json_string_value(n)), e)
			      : err_set(e, ERR_INVALID, "the challenge has no nonce");
	json_decref(root);
	if (!r && nonce->len != NONCE)
		r = err_set(
			e, ERR_INVALID, "failed to combine nonces: invalid challenge nonce size");
	return r;
}

static int sshpop_respond(
	const struct agent_options *o, struct bytes challenge, struct buf *ret, struct err *e)
{
	AUTO(key_unref) struct key *k = NULL;
	AUTO_BUF struct buf nonce = BUF_INIT_MAX(CHALLENGE_MAX), sig = BUF_INIT;
	uint8_t both[2 * NONCE], digest[HASH_MAX];
	const char *format;
	int r = read_key(o, &k, e);

	if (!r)
		r = parse_challenge(challenge, &nonce, e);
	if (r)
		return r;
	memcpy(both, nonce.p, NONCE);
	crypto_random(both + NONCE, NONCE);
	hash_of(HASH_SHA256, bytes_of(both, sizeof(both)), digest);
	r = ssh_sign(k, bytes_of(digest, hash_size(HASH_SHA256)), &format, &sig, e);
	if (r)
		return err_wrap(e, "failed to sign data");
	buf_str(ret, "{\"Nonce\":\"");
	base64_encode(ret, bytes_of(both + NONCE, NONCE));
	buf_printf(ret, "\",\"Signature\":{\"Format\":\"%s\",\"Blob\":\"", format);
	base64_encode(ret, buf_view(&sig));
	buf_str(ret, "\",\"Rest\":null}}");
	return 0;
}

const struct node_attestor attest_sshpop = {
	.name = "sshpop", .payload = sshpop_payload, .respond = sshpop_respond
};

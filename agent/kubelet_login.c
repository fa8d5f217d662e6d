/* Where the kubelet is, what it is shown, and how it is known. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "agent/kubelet_internal.h"

enum { SECURE_PORT = 10250, FILE_MAX = 1 << 20 };

bool kubelet_secure(const struct k8s_options *o)
{
	return o->kubelet_read_only_port <= 0;
}

const char *kubelet_node_name(const struct k8s_options *o)
{
	const char *env = o->node_name_env ? o->node_name_env : "MY_NODE_NAME";
	const char *name = o->node_name ? o->node_name : getenv(env);

	return name && *name ? name : NULL;
}

char *kubelet_url(const struct k8s_options *o)
{
	const char *host = kubelet_node_name(o);
	int port = o->kubelet_secure_port > 0 ? o->kubelet_secure_port : SECURE_PORT;
	bool v6 = host && strchr(host, ':');

	if (!kubelet_secure(o))
		return xasprintf("http://127.0.0.1:%d", o->kubelet_read_only_port);
	return xasprintf(
		"https://%s%s%s:%d", v6 ? "[" : "", host ? host : "127.0.0.1", v6 ? "]" : "", port);
}

void kubelet_login_deinit(struct kubelet_login *l)
{
	x509_chain_deinit(&l->roots);
	tls_ctx_unref(l->tls);
	buf_deinit(&l->token);
	buf_deinit(&l->files);
	*l = KUBELET_LOGIN_INIT;
}

static int read_file(const char *path, struct buf *ret, const char *what, struct err *e)
{
	struct buf text = { .max = FILE_MAX, .secret = true };

	if (buf_read_file(&text, path, e)) {
		buf_deinit(&text);
		return err_wrap(e, "unable to load %s", what);
	}
	*ret = text;
	return 0;
}

static int read_token(const struct k8s_options *o, struct buf *ret, struct err *e)
{
	struct buf text = BUF_INIT_SECRET;
	size_t from = 0;
	int r = read_file(o->token_path, &text, "token", e);

	if (r)
		return r;
	while (from < text.len && isspace(text.p[from]))
		from++;
	while (text.len > from && isspace(text.p[text.len - 1]))
		text.len--;
	for (size_t i = from; i < text.len; i++)
		if (text.p[i] <= ' ' || text.p[i] >= 0x7f) {
			buf_deinit(&text);
			return err_set(e, ERR_INVALID, "unable to load token: %s is not a token",
				o->token_path);
		}
	*ret = BUF_INIT_SECRET;
	buf_append(ret, text.p ? text.p + from : NULL, text.len - from);
	buf_deinit(&text);
	return 0;
}

static int read_pair(
	const struct k8s_options *o, struct buf *ret_cert, struct buf *ret_key, struct err *e)
{
	int r;

	if (!o->private_key_path)
		return err_set(e, ERR_INVALID,
			"the private key path is required with the certificate path");
	if (!o->certificate_path)
		return err_set(e, ERR_INVALID,
			"the certificate path is required with the private key path");
	r = read_file(o->certificate_path, ret_cert, "certificate", e);
	return r ? r : read_file(o->private_key_path, ret_key, "private key", e);
}

static int make_tls(
	const struct buf *cert, const struct buf *key_pem, struct tls_ctx **ret, struct err *e)
{
	struct x509_chain chain = { 0 };
	struct key *key = NULL;
	struct tls_options o = { .allow_tls12 = true };
	int r = 0;

	if (cert->len) {
		r = x509_chain_parse_pem(&chain, buf_view(cert), X509_MAX_CHAIN, e);
		if (!r)
			r = key_from_pem(buf_view(key_pem), &key, e);
		o.chain = &chain;
		o.key = key;
	}
	if (!r)
		r = tls_ctx_new(&o, ret, e);
	if (r && cert->len)
		err_wrap(e, "unable to load keypair");
	x509_chain_deinit(&chain);
	key_unref(key);
	return r;
}

/* The files are in; what they make, when they are not those of before. */
static int renew(struct kubelet_login *l, const struct buf *ca, const struct buf *cert,
	const struct buf *key, struct buf *files, struct err *e)
{
	struct x509_chain roots = { 0 };
	struct tls_ctx *tls = NULL;
	int r = 0;

	if (ca->len && x509_chain_parse_pem(&roots, buf_view(ca), X509_MAX_ROOTS, e))
		r = err_wrap(e, "unable to parse kubelet CA");
	if (!r)
		r = make_tls(cert, key, &tls, e);
	if (r) {
		x509_chain_deinit(&roots);
		return r;
	}
	x509_chain_deinit(&l->roots);
	tls_ctx_unref(l->tls);
	buf_deinit(&l->files);
	l->roots = roots;
	l->tls = tls;
	l->files = *files;
	*files = BUF_INIT_SECRET;
	return 0;
}

int kubelet_login_read(
	const struct k8s_options *o, struct kubelet_login *l, bool *ret_renewed, struct err *e)
{
	AUTO_BUF struct buf ca = BUF_INIT, cert = BUF_INIT, key = BUF_INIT_SECRET;
	AUTO_BUF struct buf token = BUF_INIT_SECRET, files = BUF_INIT_SECRET;
	bool renewed;
	int r = 0;

	*ret_renewed = false;
	if (!kubelet_secure(o))
		return 0;
	if (!o->skip_kubelet_verification)
		r = read_file(o->kubelet_ca_path, &ca, "kubelet CA", e);
	if (!r && !o->use_anonymous_authentication) {
		if (o->certificate_path || o->private_key_path)
			r = read_pair(o, &cert, &key, e);
		else
			r = read_token(o, &token, e);
	}
	if (r)
		return r;
	buf_printf(&files, "%zu %zu\n", ca.len, cert.len);
	buf_bytes(&files, buf_view(&ca));
	buf_bytes(&files, buf_view(&cert));
	buf_bytes(&files, buf_view(&key));
	renewed = !bytes_equal(buf_view(&files), buf_view(&l->files));
	if (renewed)
		r = renew(l, &ca, &cert, &key, &files, e);
	if (r)
		return r;
	buf_deinit(&l->token);
	l->token = token;
	token = BUF_INIT_SECRET;
	*ret_renewed = renewed;
	return 0;
}

#include <ctype.h>
#include <jansson.h>
#include <stdlib.h>

#include "agent/attest.h"

/* k8s_psat: the payload is {"cluster","token"}, the token that the kubelet keeps fresh in a file;
 * there is no challenge. */

enum { TOKEN_MAX = 32 << 10 };

static int append(const char *p, size_t n, void *arg)
{
	return buf_append(arg, p, n) ? 0 : -1;
}

static int read_token(const char *path, struct buf *ret, struct err *e)
{
	int r = buf_read_file(ret, path, e);

	if (r)
		return r;
	while (ret->len && isspace(ret->p[ret->len - 1]))
		ret->p[--ret->len] = 0;
	return ret->len ? 0 : err_set(e, ERR_INVALID, "\"%s\" is empty", path);
}

static int psat_payload(const struct agent_options *o, struct buf *ret, struct err *e)
{
	AUTO_BUF struct buf token = { .max = TOKEN_MAX, .secret = true };
	json_t *text, *root;
	int r = read_token(o->psat_token_path, &token, e);

	if (r) {
		e->code = ERR_INVALID;
		return err_wrap(e, "unable to load token from %s", o->psat_token_path);
	}
	text = json_stringn((const char *)token.p, token.len);
	root = text ? json_pack("{s:s, s:o}", "cluster", o->psat_cluster, "token", text) : NULL;
	if (root)
		(void)json_dump_callback(root, append, ret, JSON_COMPACT);
	else
		r = err_set(e, ERR_INVALID, "unable to load token from %s: it is not text",
			o->psat_token_path);
	json_decref(root);
	return r;
}

const struct node_attestor attest_psat = { .name = "k8s_psat", .payload = psat_payload };

#include <ctype.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/attest.h"
#include "lib/http.h"

/*
 * http_challenge: names this host, and serves the server's nonce over HTTP until the conversation
 * is over. Wire format and path as SPIRE's plugin of that name.
 */

enum { CHALLENGE_MAX = 4 << 10, NONCE_MAX = 64, HOSTNAME_MAX = 256 };

struct listener {
	struct http_server *server;
	char *path;
	char nonce[NONCE_MAX + 1]; /* "": not known yet */
};

static void handle(void *arg, const struct http_request *rq, struct http_response *rs)
{
	const struct listener *l = arg;

	if (!l->nonce[0] || strcmp(rq->path, l->path) != 0) {
		rs->status = 404;
		buf_str(&rs->body, "not found\n");
		return;
	}
	buf_printf(&rs->body, "%s\n", l->nonce);
}

static void listener_close(void *state)
{
	struct listener *l = state;

	http_server_close(l->server);
	free(l->path);
	free(l);
}

/* On all addresses; hosts without IPv6 have no "::". */
static int listen_on(struct loop *loop, int port, struct listener *l, struct err *e)
{
	struct http_server_options o = { .host = "::", .port = port, .handle = handle, .arg = l };

	if (http_server_open(loop, &o, &l->server, e) == 0)
		return 0;
	o.host = "0.0.0.0";
	if (http_server_open(loop, &o, &l->server, e) == 0)
		return 0;
	return err_wrap(e, "could not listen on port %d", port);
}

static int write_payload(const struct agent_options *o, int port, struct buf *ret, struct err *e)
{
	char name[HOSTNAME_MAX + 1] = "";
	const char *host = o->http_challenge_hostname;
	AUTO(free) char *text = NULL;
	json_t *root;

	if (!host && gethostname(name, HOSTNAME_MAX))
		return err_set(e, ERR_INTERNAL, "unable to fetch hostname");
	root = json_pack("{s:s,s:s,s:i}", "hostname", host ? host : name, "agentname",
		o->http_challenge_agentname, "port",
		o->http_challenge_advertised_port ? o->http_challenge_advertised_port : port);
	text = root ? json_dumps(root, JSON_COMPACT) : NULL;
	json_decref(root);
	if (!text)
		return err_set(e, ERR_INVALID, "the hostname or agentname is not UTF-8");
	buf_str(ret, text);
	return 0;
}

static int listener_open(struct loop *loop, const struct agent_options *o, struct buf *ret,
	void **ret_state, struct err *e)
{
	struct listener *l = xcalloc(1, sizeof(*l));
	int r = listen_on(loop, o->http_challenge_port, l, e);

	if (r) {
		free(l);
		return r;
	}
	l->path = xasprintf("/.well-known/spiffe/nodeattestor/http_challenge/%s/challenge",
		o->http_challenge_agentname);
	r = write_payload(o, http_server_port(l->server), ret, e);
	if (r)
		listener_close(l);
	else
		*ret_state = l;
	return r;
}

/* The server reads no more than 64 bytes of an answer. */
static int take_nonce(struct listener *l, const char *s, struct err *e)
{
	size_t n = s ? strlen(s) : 0;
	bool ok = n > 0 && n <= NONCE_MAX;

	for (size_t i = 0; ok && i < n; i++)
		ok = isgraph((unsigned char)s[i]);
	if (!ok)
		return err_set(e, ERR_INVALID, "the challenge has no usable nonce");
	memcpy(l->nonce, s, n + 1);
	return 0;
}

static int listener_answer(void *state, struct bytes challenge, struct buf *ret, struct err *e)
{
	struct listener *l = state;
	json_error_t je;
	json_t *root;
	int r;

	if (challenge.n > CHALLENGE_MAX)
		return err_set(e, ERR_INVALID, "the challenge is too large");
	root = json_loadb((const char *)challenge.p, challenge.n, 0, &je);
	if (!root)
		return err_set(e, ERR_INVALID, "unable to unmarshal challenge: %s", je.text);
	r = take_nonce(l, json_string_value(json_object_get(root, "nonce")), e);
	json_decref(root);
	/* What is said does not matter, but SPIRE wants that something is. */
	if (!r)
		buf_str(ret, "\n");
	return r;
}

const struct node_attestor attest_http_challenge = { .name = "http_challenge",
	.open = listener_open,
	.answer = listener_answer,
	.close = listener_close };

#include <stdlib.h>
#include <string.h>

#include "lib/cli_internal.h"

enum {
	CALL_TIMEOUT_MS = 5 * 60 * 1000, /* a batch of many thousand entries takes a while */
	DIAL_TIMEOUT_MS = 5000,
	CLI_MESSAGE_MAX = 64 << 20, /* of an answer: a page of entries may pass gRPC's 4 MB */
};

static const char *first_env(const char *const names[2], const char **ret_name)
{
	for (int i = 0; i < 2; i++) {
		const char *v = names[i] ? getenv(names[i]) : NULL;

		if (v && *v) {
			*ret_name = names[i];
			return v;
		}
	}
	*ret_name = names[0] ? names[0] : names[1];
	return NULL;
}

static int from_template(
	const struct cli_socket *s, const char *instance, char **ret, struct err *e)
{
	const char *name, *tpl = first_env(s->env_template, &name);
	struct buf b = BUF_INIT;

	if (!tpl)
		return err_set(e, ERR_INVALID, "you must define %s to use the instance flag", name);
	if (!strstr(tpl, "%i"))
		return err_set(e, ERR_INVALID, "failed to find %%i in %s", name);
	for (const char *hit; (hit = strstr(tpl, "%i")); tpl = hit + 2) {
		buf_append(&b, tpl, (size_t)(hit - tpl));
		buf_str(&b, instance);
	}
	buf_str(&b, tpl);
	*ret = buf_take_str(&b);
	return 0;
}

int cli_socket_path(const struct cli *c, char **ret, struct err *e)
{
	const struct cli_socket *s =
		c->cmd->common & CLI_WITH_ADMIN ? &c->program->admin : &c->program->socket;
	const char *flag = cli_str(c, "socketPath"), *instance = cli_str(c, "instance"), *name;
	const char *env = first_env(s->env, &name), *path;
	AUTO(free) char *made = NULL;
	int r = *instance ? from_template(s, instance, &made, e) : 0;

	if (r)
		return r;
	/* A flag with the default's text counts as not given, as in SPIRE. */
	if (strcmp(flag, s->path) != 0)
		path = flag;
	else if (made)
		path = made;
	else
		path = env ? env : s->path;
	if (strncmp(path, "unix:", 5) == 0) {
		path += 5;
		if (strncmp(path, "//", 2) == 0)
			path += 2;
	}
	*ret = xstrdup(path);
	return 0;
}

static int fill_dial(void *arg, struct dial_options *o, struct err *e)
{
	struct cli *c = arg;

	(void)e;
	*o = (struct dial_options){ .unix_path = c->socket_path, .timeout_ms = DIAL_TIMEOUT_MS };
	return 0;
}

int cli_connect(
	struct cli *c, struct loop **ret_loop, struct rpc_client **ret_client, struct err *e)
{
	if (!c->client) {
		struct rpc_client_options o = {
			.dial = fill_dial, .arg = c, .message_max = CLI_MESSAGE_MAX, .lazy = true
		};
		int r = cli_socket_path(c, &c->socket_path, e);

		if (r)
			return r;
		c->loop = loop_new();
		c->client = rpc_client_new(c->loop, &o);
	}
	*ret_loop = c->loop;
	*ret_client = c->client;
	return 0;
}

int cli_call(struct cli *c, const char *method, const ProtobufCMessage *request,
	const ProtobufCMessageDescriptor *response, ProtobufCMessage **ret, struct err *e)
{
	struct rpc_unary_options o = {
		.method = method,
		.request = request,
		.response = response,
		.timeout_ms = CALL_TIMEOUT_MS,
		.fail_fast = true,
	};
	struct rpc_client *client;
	struct loop *l;
	int r = cli_connect(c, &l, &client, e);

	if (r)
		return r;
	r = rpc_unary_sync(l, client, &o, ret, e);
	if (r) {
		struct err plain = *e;

		return err_set(e, r, "rpc error: code = %s desc = %s", err_code_name(r), plain.msg);
	}
	return 0;
}

void cli_rpc_close(struct cli *c)
{
	if (c->client) {
		rpc_client_free(c->client);
		loop_run(c->loop); /* what was closed says so */
		loop_free(c->loop);
	}
	c->client = NULL;
	c->loop = NULL;
	free(c->socket_path);
	c->socket_path = NULL;
}

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
	if (!c->socket_path)
		return err_set(e, ERR_INTERNAL, "this command has no socket");
	if (!c->client) {
		struct rpc_client_options o = {
			.dial = fill_dial, .arg = c, .message_max = CLI_MESSAGE_MAX, .lazy = true
		};
		c->loop = loop_new();
		c->client = rpc_client_new(c->loop, &o);
	}
	*ret_loop = c->loop;
	*ret_client = c->client;
	return 0;
}

int cli_rpc_error(int code, const char *message, struct err *e)
{
	AUTO(free) char *copy = xstrdup(message ? message : "");

	return err_set(e, code, "rpc error: code = %s desc = %s", err_code_name(code), copy);
}

int cli_call_with(
	struct cli *c, const struct rpc_unary_options *o, ProtobufCMessage **ret, struct err *e)
{
	struct rpc_client *client;
	struct loop *l;
	int r = cli_connect(c, &l, &client, e);

	if (r)
		return r;
	r = rpc_unary_sync(l, client, o, ret, e);
	return r ? cli_rpc_error(r, e->msg, e) : 0;
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

	return cli_call_with(c, &o, ret, e);
}

/* ---- the first message of a stream ---- */

struct first {
	struct loop *loop;
	ProtobufCMessage *m;
	bool ended;
	int code;
	struct err e;
};

static ProtobufCMessage *copy_message(const ProtobufCMessage *m)
{
	AUTO_BUF struct buf b = BUF_INIT_SECRET;

	INVARIANT(buf_reserve(&b, protobuf_c_message_get_packed_size(m) + 1));
	b.len = protobuf_c_message_pack(m, b.p);
	return protobuf_c_message_unpack(m->descriptor, NULL, b.len, b.p);
}

static void on_message(void *arg, struct rpc_stream *s, const ProtobufCMessage *m)
{
	struct first *f = arg;

	if (!f->m)
		f->m = copy_message(m);
	rpc_stream_cancel(s);
}

static void on_ended(void *arg, struct rpc_stream *s, const struct rpc_status *st)
{
	struct first *f = arg;

	(void)s;
	f->ended = true;
	f->code = st->code;
	if (!f->m && st->code)
		cli_rpc_error(st->code, st->message, &f->e);
	loop_stop(f->loop);
}

int cli_stream_first(struct cli *c, const struct rpc_stream_options *o,
	const ProtobufCMessage *request, ProtobufCMessage **ret, struct err *e)
{
	struct rpc_stream_options mine = *o;
	struct first f = { .e = ERR_INIT };
	struct rpc_client *client;
	struct rpc_stream *s;
	int r = cli_connect(c, &f.loop, &client, e);

	if (r)
		return r;
	mine.message = on_message;
	mine.ended = on_ended;
	mine.arg = &f;
	s = rpc_stream_open(client, &mine);
	rpc_stream_send(s, request);
	rpc_stream_half_close(s);
	loop_run(f.loop);
	INVARIANT(f.ended);
	if (!f.m && f.code) {
		*e = f.e;
		return f.code;
	}
	if (!f.m)
		return err_set(e, ERR_INTERNAL, "EOF");
	*ret = f.m;
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

#include "lib/rpc_client_internal.h"

#include <stdlib.h>

struct unary {
	struct client_call base;
	struct rpc_tag tag;
	struct client_result result;
	grpc_slice request;
	grpc_byte_buffer *sent;
	grpc_byte_buffer *received;
	const ProtobufCMessageDescriptor *response;
	bool give;
	bool retried;
	void (*done)(void *arg, const struct rpc_status *st, const ProtobufCMessage *m);
	void *arg;
	ProtobufCMessage *m;
};

static void unary_begin(struct client_call *c)
{
	struct unary *u = container_of(c, struct unary, base);
	grpc_op ops[6] = {
		{ .op = GRPC_OP_SEND_INITIAL_METADATA },
		{ .op = GRPC_OP_SEND_MESSAGE },
		{ .op = GRPC_OP_SEND_CLOSE_FROM_CLIENT },
		{ .op = GRPC_OP_RECV_MESSAGE },
	};

	client_result_init(&u->result);
	ops[0].data.send_initial_metadata.count = c->n_metadata;
	ops[0].data.send_initial_metadata.metadata = c->metadata;
	u->sent = rpc_buffer_of(u->request);
	ops[1].data.send_message.send_message = u->sent;
	ops[3].data.recv_message.recv_message = &u->received;
	client_result_op_initial(&u->result, &ops[4]);
	client_result_op_status(&u->result, &ops[5]);
	client_call_batch(c, ops, ARRAY_LEN(ops), &u->tag);
}

static void unary_drop_result(struct unary *u)
{
	if (!u->sent)
		return;
	client_result_deinit(&u->result);
	grpc_byte_buffer_destroy(u->sent);
	u->sent = NULL;
	if (u->received)
		grpc_byte_buffer_destroy(u->received);
	u->received = NULL;
}

static void unary_tell(struct unary *u, struct rpc_status *st)
{
	struct err e = ERR_INIT;

	if (st->code == 0 && !u->received)
		err_set(&e, ERR_INTERNAL,
			"cardinality violation: received no response message from "
			"non-server-streaming RPC");
	else if (st->code == 0 && rpc_unpack_buffer(u->response, u->received,
					  client_message_max(u->base.client), &u->m, &e) != 0)
		err_wrap(&e, "grpc: failed to unmarshal the received message");
	if (e.code != 0)
		*st = (struct rpc_status){ .code = e.code, .message = e.msg };
	client_call_end(&u->base, st);
}

static void unary_done(struct rpc_tag *t, bool ok)
{
	struct unary *u = container_of(t, struct unary, tag);
	struct client_call *c = &u->base;
	AUTO(free) char *text = NULL;
	struct rpc_status st;

	(void)ok;
	st = client_result_status(c, &u->result, &text);
	if (!c->told && !u->retried && client_result_unprocessed(&u->result)) {
		u->retried = true;
		unary_drop_result(u);
		c->pending--;
		client_call_retry(c);
		return;
	}
	if (!c->told)
		unary_tell(u, &st);
	client_call_event(c);
}

static void unary_end(struct client_call *c, const struct rpc_status *st)
{
	struct unary *u = container_of(c, struct unary, base);
	ProtobufCMessage *m = u->m;

	u->m = NULL;
	u->done(u->arg, st, m);
	if (m && !u->give)
		protobuf_c_message_free_unpacked(m, NULL);
}

static void unary_free(struct client_call *c)
{
	struct unary *u = container_of(c, struct unary, base);

	unary_drop_result(u);
	grpc_slice_unref(u->request);
	free(u);
}

void client_unary(struct rpc_client *cl, const struct rpc_unary_options *o, bool give,
	void (*done)(void *arg, const struct rpc_status *st, const ProtobufCMessage *m), void *arg)
{
	struct unary *u = xcalloc(1, sizeof(*u));

	client_call_init(&u->base, cl, o->method, o->metadata, o->timeout_ms, o->fail_fast);
	u->base.begin = unary_begin;
	u->base.end = unary_end;
	u->base.free = unary_free;
	u->tag.fn = unary_done;
	u->request = rpc_pack(o->request);
	u->response = o->response;
	u->give = give;
	u->done = done;
	u->arg = arg;
	client_call_start(&u->base);
}

void rpc_unary(struct rpc_client *cl, const struct rpc_unary_options *o,
	void (*done)(void *arg, const struct rpc_status *st, const ProtobufCMessage *m), void *arg)
{
	client_unary(cl, o, false, done, arg);
}

/* ---- for commands ---- */

struct sync {
	struct loop *loop;
	struct err e;
	ProtobufCMessage *m;
	bool done;
	bool abandoned;
};

static void sync_done(void *arg, const struct rpc_status *st, const ProtobufCMessage *m)
{
	struct sync *s = arg;

	if (s->abandoned) {
		if (m)
			protobuf_c_message_free_unpacked((ProtobufCMessage *)(uintptr_t)m, NULL);
		free(s);
		return;
	}
	s->done = true;
	s->m = (ProtobufCMessage *)(uintptr_t)m;
	if (st->code != 0)
		err_set(&s->e, st->code, "%s", st->message);
	loop_stop(s->loop);
}

int rpc_unary_sync(struct loop *l, struct rpc_client *cl, const struct rpc_unary_options *o,
	ProtobufCMessage **ret, struct err *e)
{
	struct sync *s = xcalloc(1, sizeof(*s));
	int r;

	s->loop = l;
	client_unary(cl, o, true, sync_done, s);
	loop_run(l);
	if (!s->done) { /* something else stopped the loop */
		s->abandoned = true;
		return err_set(e, ERR_CANCELLED, "interrupted");
	}
	r = s->e.code;
	if (r == 0)
		*ret = s->m;
	else
		err_set(e, r, "%s", s->e.msg);
	free(s);
	return r;
}

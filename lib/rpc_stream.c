#include "lib/rpc_client_internal.h"

#include <stdlib.h>

struct queued {
	struct queued *next;
	grpc_slice slice;
};

struct rpc_stream {
	struct client_call base;
	struct rpc_tag initial_tag;
	struct rpc_tag send_tag;
	struct rpc_tag recv_tag;
	struct rpc_tag status_tag;
	struct client_result result;
	bool begun;
	bool sending;
	bool half_close; /* after what is queued */
	bool half_closed;
	bool cancelled; /* before it had begun */
	bool over;      /* the status is there */
	struct queued *first, **last;
	size_t queued_bytes;
	grpc_byte_buffer *sent;
	grpc_byte_buffer *received;
	bool first_recv;
	struct err broken; /* why we ended it ourselves */
	const ProtobufCMessageDescriptor *response;
	void (*message)(void *arg, struct rpc_stream *s, const ProtobufCMessage *m);
	void (*ended)(void *arg, struct rpc_stream *s, const struct rpc_status *st);
	void *arg;
};

static void stream_send_next(struct rpc_stream *s);
static void stream_recv(struct rpc_stream *s);

/* The caller hears of the end after the last message and when nothing is outstanding. */
static void stream_event(struct rpc_stream *s)
{
	struct client_call *c = &s->base;

	if (s->over && c->pending == 1 && !c->told) {
		AUTO(free) char *text = NULL;
		struct rpc_status st = client_result_status(c, &s->result, &text);

		if (s->broken.code != 0)
			st = (struct rpc_status){ s->broken.code, s->broken.msg, { 0 } };
		client_call_end(c, &st);
	}
	client_call_event(c);
}

static void stream_begin(struct client_call *c)
{
	struct rpc_stream *s = container_of(c, struct rpc_stream, base);
	grpc_op initial = { .op = GRPC_OP_SEND_INITIAL_METADATA }, status = { 0 };

	s->begun = true;
	client_result_init(&s->result);
	initial.data.send_initial_metadata.count = c->n_metadata;
	initial.data.send_initial_metadata.metadata = c->metadata;
	client_call_batch(c, &initial, 1, &s->initial_tag);
	client_result_op_status(&s->result, &status);
	client_call_batch(c, &status, 1, &s->status_tag);
	s->first_recv = true;
	stream_recv(s);
	stream_send_next(s);
}

static void initial_done(struct rpc_tag *t, bool ok)
{
	(void)ok;
	stream_event(container_of(t, struct rpc_stream, initial_tag));
}

static void status_done(struct rpc_tag *t, bool ok)
{
	struct rpc_stream *s = container_of(t, struct rpc_stream, status_tag);

	(void)ok;
	s->over = true;
	stream_event(s);
}

/* ---- receiving ---- */

static void stream_recv(struct rpc_stream *s)
{
	grpc_op ops[2] = { { .op = GRPC_OP_RECV_MESSAGE } };
	size_t n = 1;

	ops[0].data.recv_message.recv_message = &s->received;
	if (s->first_recv)
		client_result_op_initial(&s->result, &ops[n++]);
	s->first_recv = false;
	client_call_batch(&s->base, ops, n, &s->recv_tag);
}

static void stream_break(struct rpc_stream *s, int code, const char *msg)
{
	if (s->begun) {
		if (s->broken.code == 0)
			err_set(&s->broken, code, "%s", msg);
		grpc_call_cancel(s->base.call, NULL);
	} else if (!s->cancelled && s->base.pending == 0) {
		s->cancelled = true;
		client_call_fail_later(&s->base, code, msg);
	}
}

static void deliver(struct rpc_stream *s)
{
	ProtobufCMessage *m = NULL;
	struct err e = ERR_INIT;

	if (rpc_unpack_buffer(
		    s->response, s->received, client_message_max(s->base.client), &m, &e) != 0) {
		err_wrap(&e, "grpc: failed to unmarshal the received message");
		stream_break(s, e.code, e.msg);
		return;
	}
	s->message(s->arg, s, m);
	protobuf_c_message_free_unpacked(m, NULL);
}

static void recv_done(struct rpc_tag *t, bool ok)
{
	struct rpc_stream *s = container_of(t, struct rpc_stream, recv_tag);
	bool more = s->received != NULL;

	(void)ok;
	if (more)
		client_call_heard(&s->base);
	if (more && !s->base.told && s->broken.code == 0)
		deliver(s);
	if (more)
		grpc_byte_buffer_destroy(s->received);
	s->received = NULL;
	if (more)
		stream_recv(s);
	stream_event(s);
}

/* ---- sending ---- */

static void send_done(struct rpc_tag *t, bool ok)
{
	struct rpc_stream *s = container_of(t, struct rpc_stream, send_tag);

	s->sending = false;
	if (s->sent)
		grpc_byte_buffer_destroy(s->sent);
	s->sent = NULL;
	if (ok)
		stream_send_next(s);
	stream_event(s);
}

static struct queued *queue_take(struct rpc_stream *s)
{
	struct queued *q = s->first;

	if (!q)
		return NULL;
	s->first = q->next;
	if (!s->first)
		s->last = &s->first;
	s->queued_bytes -= GRPC_SLICE_LENGTH(q->slice);
	return q;
}

static void queue_drop(struct queued *q)
{
	grpc_slice_unref(q->slice);
	free(q);
}

static void stream_send_next(struct rpc_stream *s)
{
	grpc_op op = { 0 };
	struct queued *q;

	if (!s->begun || s->sending || s->over || s->half_closed)
		return;
	q = queue_take(s);
	if (q) {
		s->sent = rpc_buffer_of(q->slice);
		queue_drop(q);
		op.op = GRPC_OP_SEND_MESSAGE;
		op.data.send_message.send_message = s->sent;
	} else if (s->half_close) {
		s->half_closed = true;
		op.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
	} else {
		return;
	}
	s->sending = true;
	client_call_batch(&s->base, &op, 1, &s->send_tag);
}

void rpc_stream_send(struct rpc_stream *s, const ProtobufCMessage *m)
{
	struct queued *q;

	if (s->over || s->half_close || s->cancelled)
		return;
	q = xmalloc(sizeof(*q));
	q->next = NULL;
	q->slice = rpc_pack(m);
	if (s->first && s->queued_bytes + GRPC_SLICE_LENGTH(q->slice) > RPC_MESSAGE_MAX) {
		queue_drop(q);
		stream_break(s, ERR_EXHAUSTED, "the other side does not keep up");
		return;
	}
	s->queued_bytes += GRPC_SLICE_LENGTH(q->slice);
	*s->last = q;
	s->last = &q->next;
	stream_send_next(s);
}

void rpc_stream_half_close(struct rpc_stream *s)
{
	s->half_close = true;
	stream_send_next(s);
}

void rpc_stream_cancel(struct rpc_stream *s)
{
	stream_break(s, ERR_CANCELLED, "cancelled");
}

/* ---- life ---- */

static void stream_end(struct client_call *c, const struct rpc_status *st)
{
	struct rpc_stream *s = container_of(c, struct rpc_stream, base);

	s->ended(s->arg, s, st);
}

static void stream_free(struct client_call *c)
{
	struct rpc_stream *s = container_of(c, struct rpc_stream, base);
	struct queued *q;

	while ((q = queue_take(s)))
		queue_drop(q);
	if (s->begun)
		client_result_deinit(&s->result);
	free(s);
}

struct rpc_stream *rpc_stream_open(struct rpc_client *cl, const struct rpc_stream_options *o)
{
	struct rpc_stream *s = xcalloc(1, sizeof(*s));

	client_call_init(&s->base, cl, o->method, o->metadata, o->timeout_ms, o->fail_fast);
	s->base.begin = stream_begin;
	s->base.end = stream_end;
	s->base.free = stream_free;
	s->initial_tag.fn = initial_done;
	s->send_tag.fn = send_done;
	s->recv_tag.fn = recv_done;
	s->status_tag.fn = status_done;
	s->last = &s->first;
	s->response = o->response;
	s->message = o->message;
	s->ended = o->ended;
	s->arg = o->arg;
	client_call_start(&s->base);
	return s;
}

#include "lib/rpc_server_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "google/rpc/status.pb-c.h"

enum { MESSAGE_TEXT_MAX = 4000 /* of a status; must fit the peer's header limit */ };

static void call_recv(struct rpc_call *c);
static void drop_buffer(struct rpc_call *c);
static void call_send_done(struct rpc_tag *t, bool ok);
static void call_recv_done(struct rpc_tag *t, bool ok);
static void call_close_done(struct rpc_tag *t, bool ok);

struct rpc_call *rpc_call_new(struct rpc_slots *slots, void (*filled)(struct rpc_tag *t, bool ok))
{
	struct rpc_call *c = xcalloc(1, sizeof(*c));

	list_init(&c->node);
	c->refs = 1; /* the server's, until the end */
	c->slots = slots;
	c->entry = slots->entry;
	c->server = slots->server;
	c->loop = slots->server->loop;
	grpc_call_details_init(&c->details);
	grpc_metadata_array_init(&c->meta);
	c->new_tag.fn = filled;
	c->recv_tag.fn = call_recv_done;
	c->send_tag.fn = call_send_done;
	c->close_tag.fn = call_close_done;
	return c;
}

void rpc_call_drop_slot(struct rpc_call *c)
{
	rpc_call_unref(c);
}

struct rpc_call *rpc_call_ref(struct rpc_call *c)
{
	c->refs++;
	return c;
}

static void free_copies(struct rpc_copy *p)
{
	while (p) {
		struct rpc_copy *next = p->next;

		free(p);
		p = next;
	}
}

void rpc_call_unref(struct rpc_call *c)
{
	if (!c || --c->refs > 0)
		return;
	INVARIANT(!c->call);
	drop_buffer(c);
	grpc_call_details_destroy(&c->details);
	grpc_metadata_array_destroy(&c->meta);
	free_copies(c->copies);
	if (c->peer)
		peer_unref(c->peer);
	free(c->message);
	free((void *)(uintptr_t)c->detail.p);
	free(c);
}

/* ---- the end of a call ---- */

static bool deadline_over(const struct rpc_call *c)
{
	return rpc_call_deadline_ns(c) <= 0;
}

static void drop_request(struct rpc_call *c)
{
	if (c->request)
		protobuf_c_message_free_unpacked(c->request, NULL);
	c->request = NULL;
}

static void tell_end(struct rpc_call *c)
{
	const struct rpc_server_options *o = &c->server->o;

	if (c->on_end)
		c->on_end(c);
	if (!o->finished || !c->entry)
		return;
	if (!c->status_sent || c->cancelled) {
		bool late = deadline_over(c);

		o->finished(o->arg, c, c->entry->path, late ? ERR_DEADLINE : ERR_CANCELLED,
			late ? "context deadline exceeded" : "context canceled",
			clock_mono().ns - c->begun.ns);
		return;
	}
	o->finished(o->arg, c, c->entry->path, c->code, c->message ? c->message : "",
		clock_mono().ns - c->begun.ns);
}

/* Once RECV_CLOSE has come back and no batch is out, nothing can happen to the call any more. */
static void end_check(struct rpc_call *c)
{
	struct rpc_server *s = c->server;

	if (c->ended || !c->closed || c->pending > 0)
		return;
	c->ended = true;
	tell_end(c);
	drop_request(c);
	grpc_call_unref(c->call);
	c->call = NULL;
	c->server = NULL;
	list_remove(&c->node);
	rpc_call_unref(c);
	rpc_server_call_ended(s);
}

static void call_batch(struct rpc_call *c, const grpc_op *ops, size_t n, struct rpc_tag *t)
{
	INVARIANT(grpc_call_start_batch(c->call, ops, n, t, NULL) == GRPC_CALL_OK);
	c->pending++;
}

static void op_close(struct rpc_call *c, grpc_op *op)
{
	op->op = GRPC_OP_RECV_CLOSE_ON_SERVER;
	op->data.recv_close_on_server.cancelled = &c->cancelled;
	c->close_asked = true;
}

/* From now on we hear of cancellation at once. A call answered inside start() asks together with
 * its answer instead: one event less. */
static void ask_close(struct rpc_call *c)
{
	grpc_op op = { 0 };

	if (c->close_asked)
		return;
	op_close(c, &op);
	call_batch(c, &op, 1, &c->close_tag);
}

static void call_close_done(struct rpc_tag *t, bool ok)
{
	struct rpc_call *c = container_of(t, struct rpc_call, close_tag);

	(void)ok;
	c->pending--;
	c->closed = true;
	end_check(c);
}

/* ---- sending ---- */

static grpc_op *op_initial(struct rpc_call *c, grpc_op *op)
{
	if (c->initial_sent)
		return op;
	c->initial_sent = true;
	op->op = GRPC_OP_SEND_INITIAL_METADATA;
	return op + 1;
}

static grpc_op *op_message(struct rpc_call *c, grpc_op *op, grpc_slice s)
{
	c->send_buffer = rpc_buffer_of(s);
	op->op = GRPC_OP_SEND_MESSAGE;
	op->data.send_message.send_message = c->send_buffer;
	c->sending = true;
	return op + 1;
}

/* The last batch: with a message when slice is given. */
static void send_final(struct rpc_call *c, const grpc_slice *message)
{
	grpc_op ops[4] = { 0 }, *op = ops;
	grpc_slice text = grpc_empty_slice();
	grpc_metadata detail;

	op = op_initial(c, op);
	if (message)
		op = op_message(c, op, *message);
	op->op = GRPC_OP_SEND_STATUS_FROM_SERVER;
	op->data.send_status_from_server.status = (grpc_status_code)c->code;
	if (c->message && c->message[0]) {
		text = grpc_slice_from_copied_string(c->message);
		op->data.send_status_from_server.status_details = &text;
	}
	if (c->detail.n > 0) {
		detail.key = grpc_slice_from_static_string("grpc-status-details-bin");
		detail.value =
			grpc_slice_from_copied_buffer((const char *)c->detail.p, c->detail.n);
		op->data.send_status_from_server.trailing_metadata = &detail;
		op->data.send_status_from_server.trailing_metadata_count = 1;
	}
	op++;
	if (!c->close_asked) {
		op_close(c, op++);
		c->close_in_final = true;
	}
	c->status_sent = true;
	call_batch(c, ops, (size_t)(op - ops), &c->send_tag);
	grpc_slice_unref(text);
	if (c->detail.n > 0)
		grpc_slice_unref(detail.value);
}

static void call_send_done(struct rpc_tag *t, bool ok)
{
	struct rpc_call *c = container_of(t, struct rpc_call, send_tag);

	c->pending--;
	c->sending = false;
	if (c->send_buffer)
		grpc_byte_buffer_destroy(c->send_buffer);
	c->send_buffer = NULL;
	if (c->status_sent && c->close_in_final)
		c->closed = true;
	if (!c->status_sent && c->answered && !c->closed)
		send_final(c, NULL);
	else if (!c->answered && !c->closed && ok && c->on_writable)
		c->on_writable(c);
	end_check(c);
}

bool rpc_call_ended(const struct rpc_call *c)
{
	return c->answered || c->closed || c->ended;
}

/* Settles the final answer; the caller has filled code, message and detail. */
static void answer(struct rpc_call *c, const grpc_slice *message)
{
	c->answered = true;
	if (!c->sending) /* else its end sends the status */
		send_final(c, message);
}

void rpc_reply(struct rpc_call *c, const ProtobufCMessage *m)
{
	grpc_slice s;

	if (rpc_call_ended(c))
		return;
	s = rpc_pack(m);
	INVARIANT(!c->sending);
	answer(c, &s);
	grpc_slice_unref(s);
}

void rpc_reply_payload(struct rpc_call *c, struct rpc_payload *p)
{
	if (rpc_call_ended(c))
		return;
	INVARIANT(!c->sending);
	answer(c, &p->slice);
}

void rpc_finish(struct rpc_call *c)
{
	if (!rpc_call_ended(c))
		answer(c, NULL);
}

static void fail(struct rpc_call *c, int code, const char *msg)
{
	c->code = code == ERR_OK ? ERR_UNKNOWN : code;
	c->message = xstrndup(msg, MESSAGE_TEXT_MAX);
	answer(c, NULL);
}

void rpc_fail(struct rpc_call *c, int code, const char *fmt, ...)
{
	char msg[MESSAGE_TEXT_MAX + 1];
	va_list ap;

	if (rpc_call_ended(c))
		return;
	va_start(ap, fmt);
	vsnprintf(msg, sizeof(msg), fmt, ap);
	va_end(ap);
	fail(c, code, msg);
}

void rpc_fail_err(struct rpc_call *c, const struct err *e)
{
	if (!rpc_call_ended(c))
		fail(c, e->code, e->msg);
}

void rpc_fail_details(struct rpc_call *c, int code, const char *msg, const ProtobufCMessage *detail)
{
	Google__Protobuf__Any any = GOOGLE__PROTOBUF__ANY__INIT, *anys = &any;
	Google__Rpc__Status st = GOOGLE__RPC__STATUS__INIT;
	AUTO(free) char *url = NULL;
	AUTO(free) uint8_t *value = NULL;
	uint8_t *all;

	if (rpc_call_ended(c))
		return;
	url = xasprintf("type.googleapis.com/%s", detail->descriptor->name);
	value = xmalloc(protobuf_c_message_get_packed_size(detail) + 1);
	any.type_url = url;
	any.value.len = protobuf_c_message_pack(detail, value);
	any.value.data = value;
	st.code = code;
	st.message = (char *)(uintptr_t)msg;
	st.n_details = 1;
	st.details = &anys;
	all = xmalloc(protobuf_c_message_get_packed_size(&st.base) + 1);
	c->detail = bytes_of(all, protobuf_c_message_pack(&st.base, all));
	fail(c, code, msg);
}

bool rpc_writable(const struct rpc_call *c)
{
	return !rpc_call_ended(c) && !c->sending;
}

static void send_slice(struct rpc_call *c, grpc_slice s)
{
	grpc_op ops[2] = { 0 }, *op = ops;

	op = op_initial(c, op);
	op = op_message(c, op, s);
	call_batch(c, ops, (size_t)(op - ops), &c->send_tag);
}

void rpc_send(struct rpc_call *c, const ProtobufCMessage *m)
{
	grpc_slice s;

	if (rpc_call_ended(c))
		return;
	INVARIANT(!c->sending); /* ask rpc_writable() first */
	s = rpc_pack(m);
	send_slice(c, s);
	grpc_slice_unref(s);
}

void rpc_send_payload(struct rpc_call *c, struct rpc_payload *p)
{
	if (rpc_call_ended(c))
		return;
	INVARIANT(!c->sending);
	send_slice(c, p->slice);
}

void rpc_on_writable(struct rpc_call *c, void (*fn)(struct rpc_call *c))
{
	c->on_writable = fn;
}

/* ---- receiving ---- */

static void run_start(struct rpc_call *c, const ProtobufCMessage *req)
{
	rpc_call_ref(c);
	c->in_start = true;
	c->entry->impl->start(c, req);
	c->in_start = false;
	drop_request(c);
	if (!c->answered)
		ask_close(c);
	rpc_call_unref(c);
}

static int unpack(struct rpc_call *c, ProtobufCMessage **ret, struct err *e)
{
	int r = rpc_unpack_buffer(
		c->entry->desc->input, c->recv_buffer, c->server->message_max, ret, e);

	/* grpc-go's words */
	if (r == 0 || r == ERR_UNIMPLEMENTED)
		return r;
	return err_wrap(e, "%s",
		c->entry->impl->kind == RPC_UNARY
			? "grpc: error unmarshalling request"
			: "grpc: failed to unmarshal the received message");
}

static void deliver(struct rpc_call *c)
{
	void (*fn)(struct rpc_call * c, const ProtobufCMessage *m) = c->on_read;
	ProtobufCMessage *m = NULL;
	struct err e = ERR_INIT;

	c->on_read = NULL;
	if (!c->recv_buffer && c->entry->impl->kind == RPC_BIDI) {
		fn(c, NULL);
	} else if (!c->recv_buffer) {
		rpc_fail(c, ERR_INTERNAL,
			"cardinality violation: received no request message from "
			"non-client-streaming RPC");
	} else if (unpack(c, &m, &e) != 0) {
		rpc_fail_err(c, &e);
	} else if (c->entry->impl->kind == RPC_BIDI) {
		fn(c, m);
		protobuf_c_message_free_unpacked(m, NULL);
	} else {
		c->request = m;
		run_start(c, m);
	}
}

static void drop_buffer(struct rpc_call *c)
{
	if (c->recv_buffer)
		grpc_byte_buffer_destroy(c->recv_buffer);
	c->recv_buffer = NULL;
}

static void call_recv_done(struct rpc_tag *t, bool ok)
{
	struct rpc_call *c = container_of(t, struct rpc_call, recv_tag);

	(void)ok;
	/* Stays pending while the handler runs, so that the call cannot end below it. */
	c->in_recv = true;
	if (!rpc_call_ended(c))
		deliver(c);
	c->in_recv = false;
	drop_buffer(c);
	c->pending--;
	if (c->on_read && !rpc_call_ended(c))
		call_recv(c);
	end_check(c);
}

static void call_recv(struct rpc_call *c)
{
	grpc_op op = { .op = GRPC_OP_RECV_MESSAGE };

	op.data.recv_message.recv_message = &c->recv_buffer;
	call_batch(c, &op, 1, &c->recv_tag);
}

void rpc_read(struct rpc_call *c, void (*fn)(struct rpc_call *c, const ProtobufCMessage *m))
{
	if (rpc_call_ended(c))
		return;
	INVARIANT(c->entry->impl->kind == RPC_BIDI && !c->on_read);
	c->on_read = fn;
	if (!c->in_recv) /* else the buffer is still in use, and call_recv_done() goes on */
		call_recv(c);
}

/* The message that came with the call itself. */
static void deliver_first(struct rpc_call *c)
{
	deliver(c);
	drop_buffer(c);
}

/* ---- a new call ---- */

static struct peer *find_peer(struct rpc_call *c)
{
	struct rpc_server *s = c->server;
	char *name = grpc_call_get_peer(c->call); /* "fd:N" */
	long fd = -1;

	if (strncmp(name, "fd:", 3) == 0)
		fd = strtol(name + 3, NULL, 10);
	gpr_free(name);
	if (fd < 0 || (size_t)fd >= s->n_conns || !s->conns[fd])
		return NULL;
	return peer_ref(s->conns[fd]->peer);
}

static void unknown_method(struct rpc_call *c)
{
	struct bytes path = rpc_slice_bytes(&c->details.method);
	const uint8_t *slash = path.n > 1 ? memrchr(path.p + 1, '/', path.n - 1) : NULL;
	struct bytes svc;

	if (!slash) {
		rpc_fail(c, ERR_UNIMPLEMENTED, "malformed method name: \"%.*s\"", (int)path.n,
			(const char *)path.p);
		return;
	}
	svc = bytes_of(path.p + 1, (size_t)(slash - path.p) - 1);
	if (map_get(c->server->services, svc))
		rpc_fail(c, ERR_UNIMPLEMENTED, "unknown method %.*s for service %.*s",
			(int)(path.n - svc.n - 2), (const char *)slash + 1, (int)svc.n,
			(const char *)svc.p);
	else
		rpc_fail(c, ERR_UNIMPLEMENTED, "unknown service %.*s", (int)svc.n,
			(const char *)svc.p);
}

static void dispatch(struct rpc_call *c)
{
	const struct rpc_server_options *o = &c->server->o;

	if (!c->entry)
		c->entry = map_get(c->server->methods, rpc_slice_bytes(&c->details.method));
	if (!c->entry) {
		unknown_method(c);
		return;
	}
	if (c->server->stopping) {
		rpc_fail(c, ERR_UNAVAILABLE, "server is shutting down");
		return;
	}
	if (o->authorize && !o->authorize(o->arg, c, c->entry->path)) {
		if (!c->answered)
			rpc_fail(c, ERR_DENIED, "authorization denied for method %s",
				c->entry->path);
		return;
	}
	if (!c->entry->impl)
		rpc_fail(c, ERR_UNIMPLEMENTED, "method %s not implemented", c->entry->desc->name);
	else if (c->entry->impl->kind == RPC_BIDI)
		run_start(c, NULL);
	else
		deliver_first(c);
}

void rpc_call_begin(struct rpc_call *c)
{
	c->begun = clock_mono();
	list_append(&c->server->calls, &c->node);
	c->peer = find_peer(c);
	if (!c->slots->handle)
		c->deadline = c->details.deadline;
	if (c->peer) {
		dispatch(c);
		return;
	}
	/* Its connection has ended meanwhile, so nobody waits for an answer. */
	c->answered = true;
	ask_close(c);
	grpc_call_cancel(c->call, NULL);
}

void rpc_call_shutdown(struct rpc_call *c)
{
	if (c->entry && c->entry->impl && c->entry->impl->kind != RPC_UNARY)
		rpc_fail(c, ERR_UNAVAILABLE, "server is shutting down");
}

/* ---- what a handler may ask ---- */

struct peer *rpc_call_peer(const struct rpc_call *c)
{
	return c->peer;
}

struct loop *rpc_call_loop(const struct rpc_call *c)
{
	return c->loop;
}

void *rpc_call_data(const struct rpc_call *c)
{
	return c->entry->svc.data;
}

const char *rpc_call_method(const struct rpc_call *c)
{
	return c->entry->path;
}

size_t rpc_call_metadata_count(const struct rpc_call *c, const char *key)
{
	size_t n = 0;

	for (size_t i = 0; c->call && i < c->meta.count; i++) {
		if (bytes_equal(rpc_slice_bytes(&c->meta.metadata[i].key), bytes_str(key)))
			n++;
	}
	return n;
}

const char *rpc_call_metadata(const struct rpc_call *c, const char *key)
{
	struct rpc_call *own = (struct rpc_call *)(uintptr_t)c;

	if (!c->call) /* its slices went with it */
		return NULL;
	for (size_t i = 0; i < c->meta.count; i++) {
		struct bytes v;
		struct rpc_copy *p;

		if (!bytes_equal(rpc_slice_bytes(&c->meta.metadata[i].key), bytes_str(key)))
			continue;
		v = rpc_slice_bytes(&c->meta.metadata[i].value);
		p = xcalloc(1, sizeof(*p) + v.n + 1);
		if (v.n > 0)
			memcpy(p->text, v.p, v.n);
		p->next = c->copies;
		own->copies = p;
		return p->text;
	}
	return NULL;
}

int64_t rpc_call_deadline_ns(const struct rpc_call *c)
{
	gpr_timespec d = c->deadline, left;

	if (gpr_time_cmp(d, gpr_inf_future(d.clock_type)) == 0)
		return INT64_MAX;
	left = gpr_time_sub(d, gpr_now(d.clock_type));
	return left.tv_sec * NS_PER_SEC + left.tv_nsec;
}

void rpc_call_set_user(struct rpc_call *c, void *user)
{
	c->user = user;
}

void *rpc_call_user(const struct rpc_call *c)
{
	return c->user;
}

ProtobufCMessage *rpc_call_take_request(struct rpc_call *c)
{
	ProtobufCMessage *m = c->request;

	INVARIANT(c->in_start);
	c->request = NULL;
	return m;
}

void rpc_call_on_end(struct rpc_call *c, void (*fn)(struct rpc_call *c))
{
	c->on_end = fn;
}

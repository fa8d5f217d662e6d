#include "lib/rpc_client_internal.h"

#include <fcntl.h>
#include <grpc/grpc_posix.h>
#include <grpc/grpc_security.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#include "google/rpc/status.pb-c.h"

enum {
	BACKOFF_FIRST_MS = 200,
	BACKOFF_MAX_MS = 5000, /* as often as an agent of SPIRE asks a server that is there */
	KEEPALIVE_MS = 30000,  /* while calls are open; below that of any NAT on the way */
	KEEPALIVE_TIMEOUT_MS = 20000,
	METADATA_MAX = 16384,  /* as grpc-go's clients accept at least */
	GOOD_AFTER_MS = 10000, /* a connection that stood so long was a success */
};

/* A dialled connection. The client holds a reference while new calls go there, each call one. */
struct client_conn {
	int refs;
	struct rpc_client *client;
	grpc_channel *channel;
	struct conn_watch *watch;
	struct mono born;
	bool proved; /* the peer has answered a call */
};

/* A channel made from a descriptor never tells that it has died; a duplicate does. */
struct conn_watch {
	uv_poll_t poll;
	int fd;
	struct client_conn *conn; /* NULL: closing */
};

struct rpc_client {
	int refs; /* the owner's, and one per call */
	struct loop *loop;
	struct rpc_core *core;
	struct rpc_client_options o;
	char *authority;
	struct client_conn *conn;
	struct dial *dial;
	struct loop_timer *timer; /* until the next dial */
	struct backoff backoff;
	bool backing_off;
	bool dial_failed; /* the last attempt, or the connection it gave, came to nothing */
	bool freed;
	struct err reason; /* why there is no connection */
	struct list waiting;
	struct list running;
	struct rpc_tag begin_tag;
};

static void client_dial(struct rpc_client *cl);
static void client_back_off(struct rpc_client *cl);

/* The peer is there: the next failure is the first. */
static void client_alive(struct rpc_client *cl)
{
	cl->dial_failed = false;
	backoff_reset(&cl->backoff);
}

static struct rpc_client *client_ref(struct rpc_client *cl)
{
	cl->refs++;
	return cl;
}

static void client_unref(struct rpc_client *cl)
{
	if (--cl->refs > 0)
		return;
	rpc_core_put(cl->core);
	free(cl->authority);
	free(cl);
}

size_t client_message_max(const struct rpc_client *cl)
{
	return cl->o.message_max ? cl->o.message_max : RPC_MESSAGE_MAX;
}

/* ---- a connection ---- */

static void watch_closed(uv_handle_t *h)
{
	struct conn_watch *w = h->data;

	close(w->fd);
	free(w);
}

static void watch_free(struct client_conn *conn)
{
	struct conn_watch *w = conn->watch;

	if (!w)
		return;
	conn->watch = NULL;
	w->conn = NULL;
	uv_close((uv_handle_t *)&w->poll, watch_closed);
}

static void conn_unref(struct client_conn *conn)
{
	if (--conn->refs > 0)
		return;
	watch_free(conn);
	grpc_channel_destroy(conn->channel);
	free(conn);
}

/* New calls go elsewhere; those that run keep it until they are done. */
static void conn_retire(struct client_conn *conn)
{
	struct rpc_client *cl = conn->client;

	if (cl->conn != conn)
		return;
	cl->conn = NULL;
	watch_free(conn);
	conn_unref(conn);
}

static void conn_lost(struct client_conn *conn, const char *why)
{
	struct rpc_client *cl = conn->client;

	if (cl->conn != conn)
		return;
	/* One that was closed at once, for instance because our certificate is not liked, counts as
	 * a failed attempt. */
	if (conn->proved || clock_mono().ns - conn->born.ns > GOOD_AFTER_MS * NS_PER_MS)
		client_alive(cl);
	else
		cl->dial_failed = true;
	conn_retire(conn);
	err_set(&cl->reason, ERR_UNAVAILABLE, "connection lost: %s", why);
	if (!cl->o.lazy || cl->dial_failed)
		client_back_off(cl);
}

/* Without waiting for the loop to tell. */
static bool conn_hung_up(const struct client_conn *conn)
{
	struct pollfd p = { .events = POLLRDHUP };

	if (!conn->watch)
		return false;
	p.fd = conn->watch->fd;
	return poll(&p, 1, 0) > 0;
}

/* The peer has answered, unless gRPC itself made the status up. */
static void conn_proved(struct client_conn *conn, grpc_status_code code)
{
	if (code == GRPC_STATUS_CANCELLED || code == GRPC_STATUS_DEADLINE_EXCEEDED)
		return;
	conn->proved = true;
	if (conn->client->conn == conn)
		client_alive(conn->client);
}

void client_call_heard(struct client_call *c)
{
	if (!c->client->freed)
		conn_proved(c->conn, GRPC_STATUS_OK);
}

static void watch_ready(uv_poll_t *p, int status, int events)
{
	struct conn_watch *w = p->data;

	(void)status;
	(void)events;
	if (w->conn)
		conn_lost(w->conn, "closed by the other side");
}

static struct conn_watch *watch_new(struct client_conn *conn, int fd)
{
	struct conn_watch *w = xcalloc(1, sizeof(*w));

	w->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (w->fd < 0 || uv_poll_init(loop_uv(conn->client->loop), &w->poll, w->fd) != 0) {
		if (w->fd >= 0)
			close(w->fd);
		free(w);
		return NULL;
	}
	w->poll.data = w;
	w->conn = conn;
	uv_poll_start(&w->poll, UV_DISCONNECT, watch_ready);
	return w;
}

static grpc_channel *channel_new(const struct rpc_client *cl, int fd)
{
	grpc_arg args[] = {
		RPC_STRING_ARG(GRPC_ARG_DEFAULT_AUTHORITY, cl->authority),
		RPC_STRING_ARG(GRPC_ARG_PRIMARY_USER_AGENT_STRING, "assay/" ASSAY_VERSION),
		RPC_INT_ARG(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, client_message_max(cl)),
		RPC_INT_ARG(GRPC_ARG_MAX_METADATA_SIZE, METADATA_MAX),
		RPC_INT_ARG(GRPC_ARG_HTTP2_BDP_PROBE, 0),
		RPC_INT_ARG(GRPC_ARG_ENABLE_CHANNELZ, 0),
		RPC_INT_ARG(GRPC_ARG_KEEPALIVE_TIME_MS, KEEPALIVE_MS),
		RPC_INT_ARG(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, KEEPALIVE_TIMEOUT_MS),
		RPC_INT_ARG(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 0),
		RPC_INT_ARG(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
		RPC_INT_ARG(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1),
		RPC_INT_ARG(GRPC_ARG_ENABLE_PER_MESSAGE_COMPRESSION, 0),
		RPC_INT_ARG(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0),
	};
	grpc_channel_args all = { ARRAY_LEN(args), args };
	grpc_channel_credentials *creds = grpc_insecure_credentials_create();
	grpc_channel *ch;

	rpc_nonblocking(fd);
	ch = grpc_channel_create_from_fd(cl->authority, fd, creds, &all);
	grpc_channel_credentials_release(creds);
	return ch;
}

static void conn_begin_call(struct client_conn *conn, struct client_call *c);

static void client_connected(struct rpc_client *cl, int fd)
{
	struct client_conn *conn = xcalloc(1, sizeof(*conn));

	conn->refs = 1;
	conn->client = cl;
	conn->born = clock_mono();
	conn->watch = watch_new(conn, fd);
	conn->channel = channel_new(cl, fd);
	cl->conn = conn;
	conn->refs++;
	list_each (c, &cl->waiting, struct client_call, node)
		conn_begin_call(conn, c);
	conn_unref(conn);
}

/* ---- dialling ---- */

static void fail_waiting(struct rpc_client *cl)
{
	list_each (c, &cl->waiting, struct client_call, node) {
		if (c->fail_fast)
			client_call_fail_later(c, ERR_UNAVAILABLE, cl->reason.msg);
	}
}

static void client_dial_failed(struct rpc_client *cl, const struct err *e)
{
	cl->reason = *e;
	cl->dial_failed = true;
	fail_waiting(cl);
	client_back_off(cl);
}

static void dialled(void *arg, int fd, const struct err *e)
{
	struct rpc_client *cl = arg;

	cl->dial = NULL;
	if (fd < 0)
		client_dial_failed(cl, e);
	else
		client_connected(cl, fd);
}

static void client_dial(struct rpc_client *cl)
{
	struct dial_options d = { 0 };
	struct err e = ERR_INIT;

	if (cl->conn || cl->dial || cl->freed)
		return;
	cl->backing_off = false;
	loop_timer_stop(cl->timer);
	if (cl->o.dial(cl->o.arg, &d, &e) != 0)
		client_dial_failed(cl, &e);
	else
		cl->dial = door_dial(cl->loop, &d, dialled, cl);
}

static void back_off_over(void *arg)
{
	struct rpc_client *cl = arg;

	cl->backing_off = false;
	/* A lazy client has nothing to do until somebody calls. */
	if (!cl->o.lazy || !list_empty(&cl->waiting))
		client_dial(cl);
}

static void client_back_off(struct rpc_client *cl)
{
	if (cl->freed || cl->conn || cl->dial || cl->backing_off)
		return;
	cl->backing_off = true;
	loop_timer_set(cl->timer, backoff_next(&cl->backoff));
}

static void client_begin(struct rpc_tag *t, bool ok)
{
	struct rpc_client *cl = container_of(t, struct rpc_client, begin_tag);

	(void)ok;
	if (!cl->freed && !cl->backing_off)
		client_dial(cl);
	client_unref(cl);
}

struct rpc_client *rpc_client_new(struct loop *l, const struct rpc_client_options *o)
{
	struct rpc_client *cl = xcalloc(1, sizeof(*cl));

	cl->refs = 1;
	cl->loop = l;
	cl->core = rpc_core_get(l);
	cl->o = *o;
	cl->authority = xstrdup(o->authority ? o->authority : "localhost");
	cl->timer = loop_timer_new(l, back_off_over, cl);
	cl->backoff.first_ns = BACKOFF_FIRST_MS * NS_PER_MS;
	cl->backoff.max_ns = BACKOFF_MAX_MS * NS_PER_MS;
	err_set(&cl->reason, ERR_UNAVAILABLE, "not connected");
	list_init(&cl->waiting);
	list_init(&cl->running);
	cl->begin_tag.fn = client_begin;
	if (!o->lazy) {
		client_ref(cl);
		rpc_core_post(cl->core, &cl->begin_tag);
	}
	return cl;
}

bool rpc_client_connected(const struct rpc_client *cl)
{
	return cl->conn != NULL;
}

void rpc_client_reconnect(struct rpc_client *cl)
{
	if (cl->conn)
		conn_retire(cl->conn);
	if (cl->dial) { /* it may have begun with the old certificate */
		dial_cancel(cl->dial);
		cl->dial = NULL;
	}
	if (!cl->o.lazy || !list_empty(&cl->waiting))
		client_dial(cl);
}

static void cut_short(struct rpc_client *cl, struct list *calls)
{
	static const struct rpc_status st = { .code = ERR_CANCELLED, .message = "client closed" };

	while (!list_empty(calls)) {
		struct client_call *c = container_of(calls->next, struct client_call, node);

		list_remove(&c->node);
		c->pending++; /* stays until here whatever the callback does */
		client_call_end(c, &st);
		if (c->call)
			grpc_call_cancel(c->call, NULL);
		client_call_event(c);
	}
	(void)cl;
}

void rpc_client_free(struct rpc_client *cl)
{
	if (!cl)
		return;
	cl->freed = true;
	cl->backing_off = false;
	if (cl->dial)
		dial_cancel(cl->dial);
	cl->dial = NULL;
	loop_timer_free(cl->timer);
	cl->timer = NULL;
	cut_short(cl, &cl->waiting);
	cut_short(cl, &cl->running);
	if (cl->conn)
		conn_retire(cl->conn);
	client_unref(cl);
}

/* ---- a call ---- */

static void call_timed_out(void *arg)
{
	struct client_call *c = arg;
	struct err e;

	err_set(&e, ERR_DEADLINE, "no connection in time: %s", c->client->reason.msg);
	client_call_fail_later(c, e.code, e.msg);
}

static void call_failed(struct rpc_tag *t, bool ok)
{
	struct client_call *c = container_of(t, struct client_call, fail_tag);
	struct rpc_status st = { .code = c->failure.code, .message = c->failure.msg };

	(void)ok;
	client_call_end(c, &st);
	client_call_event(c);
}

void client_call_init(struct client_call *c, struct rpc_client *cl, const char *method,
	const char *const *metadata, int timeout_ms, bool fail_fast)
{
	size_t n = 0;

	list_init(&c->node);
	c->client = client_ref(cl);
	c->method = xstrdup(method);
	c->fail_fast = fail_fast;
	c->fail_tag.fn = call_failed;
	if (timeout_ms > 0)
		c->deadline.ns = clock_mono().ns + timeout_ms * NS_PER_MS;
	while (metadata && metadata[2 * n])
		n++;
	c->metadata = xcalloc(n + 1, sizeof(*c->metadata));
	c->n_metadata = n;
	for (size_t i = 0; i < n; i++) {
		c->metadata[i].key = grpc_slice_from_copied_string(metadata[2 * i]);
		c->metadata[i].value = grpc_slice_from_copied_string(metadata[2 * i + 1]);
	}
}

static void call_free(struct client_call *c)
{
	struct rpc_client *cl = c->client;

	list_remove(&c->node);
	loop_timer_free(c->timer);
	if (c->call)
		grpc_call_unref(c->call);
	if (c->conn)
		conn_unref(c->conn);
	for (size_t i = 0; i < c->n_metadata; i++) {
		grpc_slice_unref(c->metadata[i].key);
		grpc_slice_unref(c->metadata[i].value);
	}
	free(c->metadata);
	free(c->method);
	c->free(c);
	client_unref(cl);
}

static gpr_timespec call_deadline(const struct client_call *c)
{
	int64_t left;

	if (c->deadline.ns == 0)
		return gpr_inf_future(GPR_CLOCK_MONOTONIC);
	left = c->deadline.ns - clock_mono().ns;
	return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
		gpr_time_from_nanos(left > 0 ? left : 0, GPR_TIMESPAN));
}

static void conn_begin_call(struct client_conn *conn, struct client_call *c)
{
	struct rpc_client *cl = c->client;
	/* A copy: the transport remembers the paths it has sent longer than a call lives. */
	grpc_slice method = grpc_slice_from_copied_string(c->method);

	loop_timer_free(c->timer);
	c->timer = NULL;
	list_remove(&c->node);
	list_append(&cl->running, &c->node);
	conn->refs++;
	c->conn = conn;
	c->call = grpc_channel_create_call(conn->channel, NULL, GRPC_PROPAGATE_DEFAULTS,
		rpc_core_cq(cl->core), method, NULL, call_deadline(c), NULL);
	grpc_slice_unref(method);
	c->begin(c);
}

void client_call_fail_later(struct client_call *c, int code, const char *msg)
{
	struct rpc_client *cl = c->client;

	loop_timer_free(c->timer);
	c->timer = NULL;
	err_set(&c->failure, code, "%s", msg);
	list_remove(&c->node);
	list_append(&cl->running, &c->node);
	c->pending++;
	rpc_core_post(cl->core, &c->fail_tag);
}

void client_call_start(struct client_call *c)
{
	struct rpc_client *cl = c->client;

	INVARIANT(!cl->freed);
	if (cl->conn) {
		conn_begin_call(cl->conn, c);
		return;
	}
	if (c->fail_fast && cl->backing_off && cl->dial_failed) {
		client_call_fail_later(c, ERR_UNAVAILABLE, cl->reason.msg);
		return;
	}
	list_append(&cl->waiting, &c->node);
	if (c->deadline.ns != 0) {
		c->timer = loop_timer_new(cl->loop, call_timed_out, c);
		loop_timer_set(c->timer, c->deadline.ns - clock_mono().ns);
	}
	/* After a failure the back-off decides, else there is nothing to wait for. */
	if (!cl->dial && !(cl->backing_off && cl->dial_failed)) {
		cl->backing_off = true;
		loop_timer_set(cl->timer, 0);
	}
}

void client_call_retry(struct client_call *c)
{
	grpc_call_unref(c->call);
	c->call = NULL;
	conn_unref(c->conn);
	c->conn = NULL;
	list_remove(&c->node);
	client_call_start(c);
}

void client_call_batch(struct client_call *c, const grpc_op *ops, size_t n, struct rpc_tag *t)
{
	grpc_call_error r = grpc_call_start_batch(c->call, ops, n, t, NULL);

	INVARIANT(r == GRPC_CALL_OK);
	c->pending++;
}

bool client_call_event(struct client_call *c)
{
	if (--c->pending > 0 || !c->told)
		return false;
	call_free(c);
	return true;
}

void client_call_end(struct client_call *c, const struct rpc_status *st)
{
	if (c->told)
		return;
	c->told = true;
	loop_timer_free(c->timer);
	c->timer = NULL;
	c->end(c, st);
}

/* ---- results ---- */

void client_result_init(struct client_result *r)
{
	memset(r, 0, sizeof(*r));
	grpc_metadata_array_init(&r->initial);
	grpc_metadata_array_init(&r->trailing);
	r->message = grpc_empty_slice();
}

void client_result_deinit(struct client_result *r)
{
	grpc_metadata_array_destroy(&r->initial);
	grpc_metadata_array_destroy(&r->trailing);
	grpc_slice_unref(r->message);
}

void client_result_op_initial(struct client_result *r, grpc_op *op)
{
	op->op = GRPC_OP_RECV_INITIAL_METADATA;
	op->data.recv_initial_metadata.recv_initial_metadata = &r->initial;
}

void client_result_op_status(struct client_result *r, grpc_op *op)
{
	op->op = GRPC_OP_RECV_STATUS_ON_CLIENT;
	op->data.recv_status_on_client.trailing_metadata = &r->trailing;
	op->data.recv_status_on_client.status = &r->code;
	op->data.recv_status_on_client.status_details = &r->message;
}

/* gRPC 1.51's words for a call that it did not send any more because the peer had sent a GOAWAY.
 * The connection may live on for other calls, so nothing else tells. */
bool client_result_unprocessed(const struct client_result *r)
{
	return r->code == GRPC_STATUS_UNAVAILABLE &&
	       bytes_equal(rpc_slice_bytes(&r->message), bytes_str("GOAWAY received"));
}

struct rpc_status client_result_status(
	struct client_call *c, const struct client_result *r, char **text)
{
	struct rpc_status st = { .code = (int)r->code };

	for (size_t i = 0; i < r->trailing.count; i++)
		if (bytes_equal(rpc_slice_bytes(&r->trailing.metadata[i].key),
			    bytes_str("grpc-status-details-bin")))
			st.details = rpc_slice_bytes(&r->trailing.metadata[i].value);
	*text = rpc_slice_str(&r->message);
	st.message = *text;
	if (c->client->freed)
		return st;
	if (r->code != GRPC_STATUS_UNAVAILABLE) {
		conn_proved(c->conn, r->code);
	} else if (client_result_unprocessed(r) || conn_hung_up(c->conn)) {
		conn_lost(c->conn, *text);
	}
	return st;
}

ProtobufCMessage *rpc_status_detail(
	const struct rpc_status *st, const ProtobufCMessageDescriptor *d)
{
	ProtobufCMessage *base = NULL, *ret = NULL;
	Google__Rpc__Status *all;

	if (st->details.n == 0 || rpc_unpack(&google__rpc__status__descriptor, st->details,
					  METADATA_MAX, &base, NULL) != 0)
		return NULL;
	all = (Google__Rpc__Status *)base;
	for (size_t i = 0; i < all->n_details && !ret; i++) {
		const Google__Protobuf__Any *any = all->details[i];
		const char *name = strrchr(any->type_url, '/');

		if (name && strcmp(name + 1, d->name) == 0 &&
			rpc_unpack(d, bytes_of(any->value.data, any->value.len), METADATA_MAX, &ret,
				NULL) != 0)
			break;
	}
	protobuf_c_message_free_unpacked(base, NULL);
	return ret;
}

#include "lib/rpc_server_internal.h"

#include <grpc/grpc_posix.h>
#include <grpc/grpc_security.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	/* Calls of one method that gRPC may deliver between two turns of the loop; others wait. */
	SLOTS_FIRST = 2,
	SLOTS_MAX = 32,
	STREAMS_MAX = DOOR_STREAMS_MAX,
	READ_CHUNK = 8 << 10,
	READ_CHUNK_MAX = 64 << 10,
	QUOTA_LOCAL = 64 << 20,
	QUOTA = 256 << 20,
	PING_INTERVAL_MIN_MS = 9000, /* grpc-go may ping every 10 s */
	KEEPALIVE_MS = 120000,
	KEEPALIVE_TIMEOUT_MS = 20000,
};

int rpc_server_new(
	struct loop *l, const struct rpc_server_options *o, struct rpc_server **ret, struct err *e)
{
	struct rpc_server *s;

	if (o->message_max > INT32_MAX)
		return err_set(e, ERR_INVALID, "message limit of %zu bytes", o->message_max);
	s = xcalloc(1, sizeof(*s));
	s->loop = l;
	s->core = rpc_core_get(l);
	s->o = *o;
	s->message_max = o->message_max ? o->message_max : RPC_MESSAGE_MAX;
	s->methods = map_new();
	s->services = map_new();
	list_init(&s->calls);
	if (o->reflection_descriptors)
		s->reflection = rpc_reflection_new(
			s, o->reflection_descriptors, o->reflection_descriptors_len);
	*ret = s;
	return 0;
}

static const struct rpc_method *service_method(const struct rpc_service *svc, const char *name)
{
	for (size_t i = 0; i < svc->n_methods; i++)
		if (strcmp(svc->methods[i].name, name) == 0)
			return &svc->methods[i];
	return NULL;
}

static void check_names(const struct rpc_service *svc)
{
	for (size_t i = 0; i < svc->n_methods; i++) {
		bool known = false;

		for (unsigned k = 0; k < svc->desc->n_methods && !known; k++)
			known = strcmp(svc->methods[i].name, svc->desc->methods[k].name) == 0;
		INVARIANT(known);
	}
}

void rpc_server_add(struct rpc_server *s, const struct rpc_service *svc)
{
	INVARIANT(!s->srv);
	check_names(svc);
	for (unsigned i = 0; i < svc->desc->n_methods; i++) {
		struct rpc_entry *m = xcalloc(1, sizeof(*m));

		m->svc = *svc;
		m->desc = &svc->desc->methods[i];
		m->impl = service_method(svc, m->desc->name);
		m->path = xasprintf("/%s/%s", svc->desc->name, m->desc->name);
		m->next = s->entries;
		s->entries = m;
		INVARIANT(!map_put_str(s->methods, m->path, m));
		map_put_str(s->services, svc->desc->name, m);
	}
	s->names = xreallocarray(s->names, s->n_names + 1, sizeof(*s->names));
	s->names[s->n_names++] = svc->desc->name;
}

const char *rpc_server_service(const struct rpc_server *s, size_t i)
{
	return i < s->n_names ? s->names[i] : NULL;
}

/* ---- slots: calls that gRPC may fill ---- */

static void request_slots(struct rpc_slots *sl);

static void stop_check(struct rpc_server *s)
{
	void (*stopped)(void *arg) = s->stopped;

	if (!s->core_stopped || s->slots > 0 || !list_empty(&s->calls))
		return;
	loop_timer_free(s->grace);
	s->grace = NULL;
	grpc_server_destroy(s->srv);
	grpc_server_credentials_release(s->creds);
	s->srv = NULL;
	s->creds = NULL;
	s->stopped = NULL;
	if (s->free_after)
		rpc_server_free(s);
	else if (stopped)
		stopped(s->stopped_arg);
}

/* A method whose slots were all filled at once gets more. */
static void grow_slots(struct rpc_slots *sl, unsigned turn)
{
	sl->filled = sl->turn == turn ? sl->filled + 1 : 1;
	sl->turn = turn;
	if (sl->filled >= sl->target && sl->target < SLOTS_MAX)
		sl->target *= 2;
}

static void slot_filled(struct rpc_tag *t, bool ok)
{
	struct rpc_call *c = container_of(t, struct rpc_call, new_tag);
	struct rpc_server *s = c->server;
	struct rpc_slots *sl = c->slots;

	s->slots--;
	sl->free--;
	if (!ok) { /* the server shuts down */
		rpc_call_drop_slot(c);
		stop_check(s);
		return;
	}
	grow_slots(sl, rpc_core_turn(s->core));
	request_slots(sl);
	rpc_call_begin(c);
}

static bool takes_payload(const struct rpc_entry *m)
{
	return m->impl->kind != RPC_BIDI;
}

static void request_slots(struct rpc_slots *sl)
{
	struct rpc_server *s = sl->server;
	grpc_completion_queue *cq = rpc_core_cq(s->core);

	for (; sl->free < sl->target; sl->free++, s->slots++) {
		struct rpc_call *c = rpc_call_new(sl, slot_filled);
		grpc_call_error r =
			sl->handle ? grpc_server_request_registered_call(s->srv, sl->handle,
					     &c->call, &c->deadline, &c->meta,
					     takes_payload(sl->entry) ? &c->recv_buffer : NULL, cq,
					     cq, &c->new_tag)
				   : grpc_server_request_call(s->srv, &c->call, &c->details,
					     &c->meta, cq, cq, &c->new_tag);

		INVARIANT(r == GRPC_CALL_OK);
	}
}

static void register_method(struct rpc_server *s, struct rpc_entry *m)
{
	m->slots = (struct rpc_slots){ .server = s, .entry = m, .target = SLOTS_FIRST };
	m->slots.handle = grpc_server_register_method(s->srv, m->path, NULL,
		takes_payload(m) ? GRPC_SRM_PAYLOAD_READ_INITIAL_BYTE_BUFFER
				 : GRPC_SRM_PAYLOAD_NONE,
		0);
	INVARIANT(m->slots.handle);
}

static void open_slots(struct rpc_server *s)
{
	s->others = (struct rpc_slots){ .server = s, .target = SLOTS_FIRST };
	request_slots(&s->others);
	for (struct rpc_entry *m = s->entries; m; m = m->next)
		if (m->impl)
			request_slots(&m->slots);
}

void rpc_server_start(struct rpc_server *s)
{
	grpc_resource_quota *quota = grpc_resource_quota_create("rpc");
	int chunk = s->o.read_chunk ? s->o.read_chunk : READ_CHUNK;
	int chunk_max = s->o.read_chunk ? s->o.read_chunk : READ_CHUNK_MAX;
	grpc_arg args[] = {
		RPC_INT_ARG(GRPC_ARG_MAX_CONCURRENT_STREAMS, STREAMS_MAX),
		RPC_INT_ARG(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, s->message_max),
		RPC_INT_ARG(GRPC_ARG_MAX_METADATA_SIZE, RPC_METADATA_MAX),
		RPC_INT_ARG(GRPC_ARG_HTTP2_BDP_PROBE, 0),
		RPC_INT_ARG(GRPC_ARG_ENABLE_CHANNELZ, 0),
		RPC_INT_ARG(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
			PING_INTERVAL_MIN_MS),
		RPC_INT_ARG(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
		/* The kernel tells when a local peer goes. */
		RPC_INT_ARG(GRPC_ARG_KEEPALIVE_TIME_MS, s->o.local ? INT32_MAX : KEEPALIVE_MS),
		RPC_INT_ARG(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, KEEPALIVE_TIMEOUT_MS),
		RPC_INT_ARG(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
		/* A small compressed message may grow to gigabytes. */
		RPC_INT_ARG(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1),
		RPC_INT_ARG(GRPC_ARG_ENABLE_PER_MESSAGE_COMPRESSION, 0),
		RPC_INT_ARG(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0),
		/* A connection keeps as much ready for what comes next as came at once before. */
		RPC_INT_ARG(GRPC_ARG_TCP_READ_CHUNK_SIZE, chunk),
		RPC_INT_ARG(GRPC_ARG_TCP_MAX_READ_CHUNK_SIZE, chunk_max),
		{ .type = GRPC_ARG_POINTER,
			.key = (char *)(uintptr_t)GRPC_ARG_RESOURCE_QUOTA,
			.value.pointer = { quota, grpc_resource_quota_arg_vtable() } },
	};
	grpc_channel_args all = { ARRAY_LEN(args), args };

	INVARIANT(!s->srv && !s->stopping);
	grpc_resource_quota_resize(quota, s->o.local ? QUOTA_LOCAL : QUOTA);
	s->srv = grpc_server_create(&all, NULL);
	grpc_resource_quota_unref(quota);
	s->creds = grpc_insecure_server_credentials_create();
	grpc_server_register_completion_queue(s->srv, rpc_core_cq(s->core), NULL);
	for (struct rpc_entry *m = s->entries; m; m = m->next)
		if (m->impl)
			register_method(s, m);
	grpc_server_start(s->srv);
	open_slots(s);
}

/* ---- connections ---- */

static void conn_drop(struct rpc_server *s, int fd)
{
	struct rpc_conn *conn = s->conns[fd];

	s->conns[fd] = NULL;
	conn->peer->on_end = NULL;
	peer_unref(conn->peer);
	free(conn);
}

static void conn_ended(void *arg, struct peer *p)
{
	struct rpc_conn *conn = arg;

	(void)p;
	conn_drop(conn->server, conn->fd);
}

void rpc_server_conn(struct rpc_server *s, int fd, struct peer *peer)
{
	struct rpc_conn *conn;

	if (!s->srv || s->stopping) {
		close(fd);
		return;
	}
	if ((size_t)fd >= s->n_conns) {
		size_t n = (size_t)fd + 64;

		s->conns = xreallocarray(s->conns, n, sizeof(struct rpc_conn *));
		memset(s->conns + s->n_conns, 0, (n - s->n_conns) * sizeof(struct rpc_conn *));
		s->n_conns = n;
	}
	/* gRPC closes a descriptor only when its last stream is gone, so one that comes again
	 * belongs to no call any more. */
	if (s->conns[fd])
		conn_drop(s, fd);
	conn = xmalloc(sizeof(*conn));
	*conn = (struct rpc_conn){ .server = s, .peer = peer_ref(peer), .fd = fd };
	peer->on_end = conn_ended;
	peer->on_end_arg = conn;
	s->conns[fd] = conn;
	rpc_nonblocking(fd);
	grpc_server_add_channel_from_fd(s->srv, fd, s->creds);
}

/* ---- the end ---- */

static void core_stopped(struct rpc_tag *t, bool ok)
{
	struct rpc_server *s = container_of(t, struct rpc_server, stop_tag);

	(void)ok;
	s->core_stopped = true;
	stop_check(s);
}

static void grace_over(void *arg)
{
	struct rpc_server *s = arg;

	grpc_server_cancel_all_calls(s->srv);
}

static void stopped_unstarted(struct rpc_tag *t, bool ok)
{
	struct rpc_server *s = container_of(t, struct rpc_server, stop_tag);

	(void)ok;
	s->core_stopped = true;
	if (s->free_after)
		rpc_server_free(s);
	else if (s->stopped)
		s->stopped(s->stopped_arg);
}

void rpc_server_call_ended(struct rpc_server *s)
{
	if (s->stopping)
		stop_check(s);
}

void rpc_server_stop(struct rpc_server *s, int grace_ms, void (*done)(void *arg), void *arg)
{
	INVARIANT(!s->stopping);
	s->stopping = true;
	s->stopped = done;
	s->stopped_arg = arg;
	if (!s->srv) {
		s->stop_tag.fn = stopped_unstarted;
		rpc_core_post(s->core, &s->stop_tag);
		return;
	}
	s->stop_tag.fn = core_stopped;
	s->grace = loop_timer_new(s->loop, grace_over, s);
	/* Connections without a call get a moment to take the GOAWAY in. */
	loop_timer_set(s->grace, grace_ms * NS_PER_MS);
	grpc_server_shutdown_and_notify(s->srv, rpc_core_cq(s->core), &s->stop_tag);
	list_each (c, &s->calls, struct rpc_call, node)
		rpc_call_shutdown(c);
}

void rpc_server_free(struct rpc_server *s)
{
	struct rpc_entry *m;

	if (!s)
		return;
	if (s->srv || (s->stopping && !s->core_stopped)) { /* stops first */
		s->free_after = true;
		if (!s->stopping)
			rpc_server_stop(s, 0, NULL, NULL);
		return;
	}
	for (size_t i = 0; i < s->n_conns; i++)
		if (s->conns[i])
			conn_drop(s, (int)i);
	free(s->conns);
	while ((m = s->entries)) {
		s->entries = m->next;
		free(m->path);
		free(m);
	}
	map_free(s->methods);
	map_free(s->services);
	free(s->names);
	rpc_reflection_free(s->reflection);
	rpc_core_put(s->core);
	free(s);
}

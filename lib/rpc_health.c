#include "lib/rpc_health.h"

#include <stdlib.h>
#include <string.h>

#include "grpc/health/v1/health.pb-c.h"
#include "lib/list.h"
#include "lib/map.h"

struct service {
	enum rpc_serving st;
};

struct rpc_health {
	struct map *services;
	struct list watchers;
};

struct watcher {
	struct list node;
	struct rpc_call *call; /* has a reference */
	char *service;
	int sent;
};

enum { NOTHING_SENT = -1 };

/* The status as the wire has it. */
static int status_of(const struct rpc_health *h, const char *service)
{
	static const int wire[] = {
		[RPC_SERVING_UNKNOWN] =
			GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__UNKNOWN,
		[RPC_SERVING] = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING,
		[RPC_NOT_SERVING] =
			GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING,
	};
	const struct service *s = map_get_str(h->services, service);

	return s ? wire[s->st]
		 : GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN;
}

static void start_check(struct rpc_call *c, const ProtobufCMessage *req)
{
	const Grpc__Health__V1__HealthCheckRequest *rq =
		(const Grpc__Health__V1__HealthCheckRequest *)req;
	Grpc__Health__V1__HealthCheckResponse rs = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
	struct rpc_health *h = rpc_call_data(c);

	if (!map_get_str(h->services, rq->service)) {
		rpc_fail(c, ERR_NOT_FOUND, "unknown service");
		return;
	}
	rs.status = status_of(h, rq->service);
	rpc_reply(c, &rs.base);
}

static void start_list(struct rpc_call *c, const ProtobufCMessage *req)
{
	typedef Grpc__Health__V1__HealthListResponse__StatusesEntry item;
	Grpc__Health__V1__HealthListResponse rs = GRPC__HEALTH__V1__HEALTH_LIST_RESPONSE__INIT;
	struct rpc_health *h = rpc_call_data(c);
	size_t n = map_len(h->services), k = 0;
	AUTO(free) Grpc__Health__V1__HealthCheckResponse *st = xcalloc(n + 1, sizeof(*st));
	AUTO(free) item *items = xcalloc(n + 1, sizeof(*items));
	AUTO(free) item **ptrs = xcalloc(n + 1, sizeof(item *));
	AUTO_BUF struct buf names = BUF_INIT;
	struct bytes key;
	void *value;

	(void)req;
	for (size_t i = 0; map_next(h->services, &i, &key, &value);) {
		buf_bytes(&names, key);
		buf_byte(&names, 0);
	}
	for (size_t at = 0; at < names.len; k++) {
		char *name = (char *)names.p + at;

		grpc__health__v1__health_list_response__statuses_entry__init(&items[k]);
		grpc__health__v1__health_check_response__init(&st[k]);
		st[k].status = status_of(h, name);
		items[k].key = name;
		items[k].value = &st[k];
		ptrs[k] = &items[k];
		at += strlen(name) + 1;
	}
	rs.n_statuses = k;
	rs.statuses = ptrs;
	rpc_reply(c, &rs.base);
}

static void tell(struct rpc_call *c)
{
	Grpc__Health__V1__HealthCheckResponse rs = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
	struct watcher *w = rpc_call_user(c);

	rs.status = status_of(rpc_call_data(c), w->service);
	if ((int)rs.status == w->sent || !rpc_writable(c))
		return;
	w->sent = (int)rs.status;
	rpc_send(c, &rs.base);
}

static void watch_ended(struct rpc_call *c)
{
	struct watcher *w = rpc_call_user(c);

	list_remove(&w->node);
	free(w->service);
	free(w);
	rpc_call_unref(c);
}

static void start_watch(struct rpc_call *c, const ProtobufCMessage *req)
{
	const Grpc__Health__V1__HealthCheckRequest *rq =
		(const Grpc__Health__V1__HealthCheckRequest *)req;
	struct rpc_health *h = rpc_call_data(c);
	struct watcher *w = xcalloc(1, sizeof(*w));

	w->call = rpc_call_ref(c);
	w->service = xstrdup(rq->service);
	w->sent = NOTHING_SENT;
	list_append(&h->watchers, &w->node);
	rpc_call_set_user(c, w);
	rpc_call_on_end(c, watch_ended);
	rpc_on_writable(c, tell); /* a change that came while a message was in flight */
	tell(c);
}

static const struct rpc_method methods[] = {
	{ "Check", RPC_UNARY, start_check },
	{ "List", RPC_UNARY, start_list },
	{ "Watch", RPC_SERVER_STREAM, start_watch },
};

struct rpc_health *rpc_health_new(void)
{
	struct rpc_health *h = xcalloc(1, sizeof(*h));

	h->services = map_new();
	list_init(&h->watchers);
	return h;
}

void rpc_health_free(struct rpc_health *h)
{
	struct bytes key;
	void *value;

	if (!h)
		return;
	INVARIANT(list_empty(&h->watchers));
	for (size_t i = 0; map_next(h->services, &i, &key, &value);)
		free(value);
	map_free(h->services);
	free(h);
}

void rpc_health_set(struct rpc_health *h, const char *service, enum rpc_serving st)
{
	struct service *s = map_get_str(h->services, service);

	if (!s) {
		s = xcalloc(1, sizeof(*s));
		map_put_str(h->services, service, s);
	}
	s->st = st;
	list_each (w, &h->watchers, struct watcher, node)
		tell(w->call);
}

void rpc_health_add(struct rpc_health *h, struct rpc_server *s)
{
	struct rpc_service svc = {
		.desc = &grpc__health__v1__health__descriptor,
		.methods = methods,
		.n_methods = ARRAY_LEN(methods),
		.data = h,
	};

	rpc_server_add(s, &svc);
}

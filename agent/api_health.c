#include <stdlib.h>
#include <string.h>

#include "agent/api.h"
#include "grpc/health/v1/health.pb-c.h"
#include "lib/log.h"
#include "lib/metrics.h"

/* grpc.health.v1 on the public socket, and the numbers of the metrics page. */

static struct metric *calls, *call_seconds;

/* The agent is healthy while it can serve: it has entries and a bundle, from whenever. */
bool api_healthy(const struct api *a)
{
	struct sync_state st;

	sync_state(a->sync, &st);
	return a->options->disable_workload_api || st.ready;
}

static bool whole_program(struct rpc_call *c, const Grpc__Health__V1__HealthCheckRequest *rq)
{
	if (!rq->service[0])
		return true;
	rpc_fail(c, ERR_INVALID, "per-service health is not supported");
	return false;
}

static Grpc__Health__V1__HealthCheckResponse status_of(const struct api *a)
{
	Grpc__Health__V1__HealthCheckResponse rs = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;

	rs.status = api_healthy(a)
			    ? GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING
			    : GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING;
	return rs;
}

static void check(struct rpc_call *c, const ProtobufCMessage *req)
{
	Grpc__Health__V1__HealthCheckResponse rs = status_of(rpc_call_data(c));

	if (whole_program(c, (const Grpc__Health__V1__HealthCheckRequest *)req))
		rpc_reply(c, &rs.base);
}

/* Once healthy the agent stays so, and before that nobody can connect: one message, then silence
 * until the end. */
static void watch(struct rpc_call *c, const ProtobufCMessage *req)
{
	Grpc__Health__V1__HealthCheckResponse rs = status_of(rpc_call_data(c));

	if (whole_program(c, (const Grpc__Health__V1__HealthCheckRequest *)req))
		rpc_send(c, &rs.base);
}

static void list(struct rpc_call *c, const ProtobufCMessage *req)
{
	Grpc__Health__V1__HealthListResponse rs = GRPC__HEALTH__V1__HEALTH_LIST_RESPONSE__INIT;
	Grpc__Health__V1__HealthListResponse__StatusesEntry one;
	Grpc__Health__V1__HealthListResponse__StatusesEntry *v[] = { &one };
	Grpc__Health__V1__HealthCheckResponse st = status_of(rpc_call_data(c));
	char name[] = "";

	(void)req;
	grpc__health__v1__health_list_response__statuses_entry__init(&one);
	one.key = name;
	one.value = &st;
	rs.n_statuses = 1;
	rs.statuses = v;
	rpc_reply(c, &rs.base);
}

static const struct rpc_method methods[] = {
	{ "Check", RPC_UNARY, check },
	{ "List", RPC_UNARY, list },
	{ "Watch", RPC_SERVER_STREAM, watch },
};

void api_health_add(struct rpc_server *s, struct api *a)
{
	static struct rpc_service svc;

	svc = (struct rpc_service){ .desc = &grpc__health__v1__health__descriptor,
		.methods = methods,
		.n_methods = ARRAY_LEN(methods),
		.data = a };
	rpc_server_add(s, &svc);
}

/* ---- metrics ---- */

void api_finished(void *arg, struct rpc_call *c, const char *method, int code, const char *message,
	int64_t elapsed_ns)
{
	(void)arg;
	(void)c;
	if (calls)
		metric_add(calls, 1, method, err_code_name(code));
	if (call_seconds)
		metric_observe(call_seconds, (double)elapsed_ns / 1e9, method);
	if (code && code != ERR_CANCELLED)
		log_event(LOG_DEBUG, "api", "Call failed", "method", method, "code",
			err_code_name(code), "error", message, NULL);
}

static double entries(void *arg)
{
	return (double)cache_count(((struct api *)arg)->cache);
}

static double svids(void *arg)
{
	return (double)cache_count_svids(((struct api *)arg)->cache);
}

static double wanted(void *arg)
{
	return (double)cache_wanted(((struct api *)arg)->cache);
}

static double tokens(void *arg)
{
	return (double)jwtcache_count(((struct api *)arg)->jwt);
}

static double last_success(void *arg)
{
	struct sync_state st;

	sync_state(((struct api *)arg)->sync, &st);
	return (double)st.last_success;
}

static double connected(void *arg)
{
	struct sync_state st;

	sync_state(((struct api *)arg)->sync, &st);
	return st.connected && !st.error[0] ? 1 : 0;
}

static double own_expiry(void *arg)
{
	struct sync_state st;

	sync_state(((struct api *)arg)->sync, &st);
	return st.svid->n ? (double)x509_not_after(st.svid->v[0]).sec : 0;
}

void api_metrics(struct api *a)
{
	static const char *const call_labels[] = { "method", "code", NULL };
	static const char *const method_label[] = { "method", NULL };

	daemon_metrics(&a->options->daemon, "assay-agent", a->options->trust_domain);
	door_add_metrics();
	calls = metric_counter(
		"assay_agent_calls_total", "Calls served, by method and status", call_labels);
	call_seconds = metric_histogram("assay_agent_call_seconds",
		"Time from a call's start to its end (streams: their whole life)", method_label);
	metric_gauge_fn("assay_agent_entries", "Registration entries held", entries, a);
	metric_gauge_fn("assay_agent_x509_svids", "X509-SVIDs held", svids, a);
	metric_gauge_fn(
		"assay_agent_x509_svids_wanted", "X509-SVIDs waiting to be signed", wanted, a);
	metric_gauge_fn("assay_agent_jwt_svids", "JWT-SVIDs held", tokens, a);
	metric_gauge_fn("assay_agent_sync_last_success_seconds",
		"When the agent last knew itself in step with the server (Unix time)", last_success,
		a);
	metric_gauge_fn("assay_agent_in_step", "1 while in step with the server", connected, a);
	metric_gauge_fn("assay_agent_svid_expires_seconds",
		"When the agent's own SVID expires (Unix time)", own_expiry, a);
}

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/api.h"
#include "lib/log.h"
#include "lib/metrics.h"
#include "spiffe/workload/workload.pb-c.h"

/* The SPIFFE Workload API: streams. Each keeps only its latest state: what changed while its
 * message was under way is sent when it is writable again. */

#define WORKLOAD_PREFIX "/SpiffeWorkloadAPI/"

enum { LOGGED_SELECTORS_MAX = 4096 };

static struct metric *attest_seconds, *attest_failures, *no_identity, *limited;

bool api_public_authorize(void *arg, struct rpc_call *c, const char *method)
{
	const char *header;

	(void)arg;
	if (strncmp(method, WORKLOAD_PREFIX, strlen(WORKLOAD_PREFIX)) != 0)
		return true;
	/* SPIFFE Workload Endpoint, 3: the header is what a cross-protocol attacker cannot send. */
	header = rpc_call_metadata(c, "workload.spiffe.io");
	if (header && strcmp(header, "true") == 0 &&
		rpc_call_metadata_count(c, "workload.spiffe.io") == 1)
		return true;
	rpc_fail(c, ERR_INVALID, "security header missing from request");
	return false;
}

/* ---- attestation, then a view ---- */

struct attest_call {
	struct rpc_call *call;
	struct api *api;
	struct mono start;
	void (*fn)(void *arg, struct rpc_call *c, struct view *v);
	void *arg;
};

static bool over_limit(const struct api *a, struct rpc_call *c, const struct view *v)
{
	const char *method = rpc_call_method(c);

	if (!a->limits || limits_take(a->limits, limits_kind(method), bytes_of(v->key, v->key_len),
				  clock_mono()))
		return false;
	if (limited)
		metric_add(limited, 1);
	rpc_fail(c, ERR_UNAVAILABLE, "rate limit exceeded for %s", method);
	return true;
}

static void attested(void *arg, const struct attestation *a)
{
	static struct log_limit limit, partial;
	struct attest_call *t = arg;
	struct view *v = NULL;

	if (attest_seconds)
		metric_observe(attest_seconds, (double)(clock_mono().ns - t->start.ns) / 1e9);
	if (a->err.code) {
		if (attest_failures)
			metric_add(attest_failures, 1);
		if (log_allowed(&limit, 5))
			log_event(LOG_ERROR, "workload", "Workload attestation failed", "pid",
				log_fmt("%d", (int)a->pid), "error", a->err.msg, NULL);
		rpc_fail(t->call, ERR_UNAVAILABLE, "workload attestation failed");
	} else {
		if (a->part_err.code && log_allowed(&partial, 5))
			log_event(LOG_ERROR, "workload", "Failed to collect all selectors", "pid",
				log_fmt("%d", (int)a->pid), "error", a->part_err.msg, NULL);
		v = cache_view(t->api->cache, &a->selectors);
		if (over_limit(t->api, t->call, v)) {
			view_unref(v);
			v = NULL;
		}
	}
	t->fn(t->arg, t->call, v);
	rpc_call_unref(t->call);
	free(t);
}

void api_attest(
	struct rpc_call *c, void (*fn)(void *arg, struct rpc_call *c, struct view *v), void *arg)
{
	struct attest_call *t = xcalloc(1, sizeof(*t));

	t->call = rpc_call_ref(c);
	t->api = rpc_call_data(c);
	t->start = clock_mono();
	t->fn = fn;
	t->arg = arg;
	workload_attest(t->api->workload, rpc_call_peer(c), 0, false, attested, t);
}

/* Selector values may be private, so only those that the operator named stand in the log: "unix",
 * "k8s:ns". */
static bool may_log(const struct strings *allowed, const char *text)
{
	for (size_t i = 0; i < allowed->n; i++) {
		size_t n = strlen(allowed->v[i]);

		if (strncmp(text, allowed->v[i], n) == 0 && (text[n] == '\0' || text[n] == ':'))
			return true;
	}
	return false;
}

static char *loggable(const struct strings *allowed, const struct selectors *s)
{
	struct buf out = BUF_INIT_MAX(LOGGED_SELECTORS_MAX);

	for (size_t i = 0; allowed->n && i < s->n; i++) {
		AUTO(free) char *text = xasprintf("%s:%s", s->v[i].type, s->v[i].value);

		if (may_log(allowed, text))
			buf_printf(&out, "%s%s", out.len ? "," : "", text);
	}
	return out.len ? buf_take_str(&out) : NULL;
}

void api_no_identity(struct rpc_call *c, const struct view *v)
{
	static struct log_limit limit;
	const struct peer *p = rpc_call_peer(c);
	const struct api *a = rpc_call_data(c);

	if (no_identity)
		metric_add(no_identity, 1);
	if (p && p->pid != getpid() && log_allowed(&limit, 5)) {
		AUTO(free) char *shown = loggable(&a->options->log_selectors, &v->selectors);

		log_event(LOG_ERROR, "workload", "No identity issued", "method", rpc_call_method(c),
			"pid", log_fmt("%d", (int)p->pid), "uid", log_fmt("%u", (unsigned)p->uid),
			"explained_by", log_fmt("assay-agent explain -pid %d", (int)p->pid),
			"selectors", shown, NULL);
	}
	rpc_fail(c, ERR_DENIED, "no identity issued");
}

/* ---- streams ---- */

struct subscriber {
	struct view_watch watch;
	struct rpc_call *call;
	struct api *api;
	enum view_kind kind;
	struct view *view;
	struct rpc_payload *sent;
};

static void drop_view(struct subscriber *s)
{
	if (!s->view)
		return;
	list_remove(&s->watch.link);
	if (s->kind == VIEW_X509)
		view_unuse_x509(s->view);
	view_unref(s->view);
	s->view = NULL;
}

static void push(struct subscriber *s)
{
	bool anybody = s->kind != VIEW_X509 && s->api->options->allow_unauthenticated_verifiers;
	struct rpc_payload *p;

	if (!s->view || rpc_call_ended(s->call))
		return;
	if (s->view->n_matches == 0 && !anybody) {
		api_no_identity(s->call, s->view);
		return;
	}
	if (!rpc_writable(s->call))
		return;
	p = view_payload(s->view, s->kind);
	if (!p || p == s->sent)
		return;
	/* Own reference first: sending may end the call. */
	rpc_payload_ref(p);
	if (s->sent)
		rpc_payload_unref(s->sent);
	s->sent = p;
	rpc_send_payload(s->call, p);
}

static void on_changed(struct view_watch *w)
{
	push(container_of(w, struct subscriber, watch));
}

static void on_writable(struct rpc_call *c)
{
	push(rpc_call_user(c));
}

static void on_end(struct rpc_call *c)
{
	struct subscriber *s = rpc_call_user(c);

	drop_view(s);
	if (s->sent)
		rpc_payload_unref(s->sent);
	free(s);
}

static void subscribe(void *arg, struct rpc_call *c, struct view *v)
{
	struct subscriber *s = arg;

	if (!v || rpc_call_ended(c)) {
		if (v)
			view_unref(v);
		return;
	}
	s->view = v;
	list_append(&v->watchers, &s->watch.link);
	if (s->kind == VIEW_X509)
		view_use_x509(v);
	push(s);
}

static void start(struct rpc_call *c, enum view_kind k)
{
	struct subscriber *s = xcalloc(1, sizeof(*s));

	list_init(&s->watch.link);
	s->watch.changed = on_changed;
	s->call = c;
	s->api = rpc_call_data(c);
	s->kind = k;
	rpc_call_set_user(c, s);
	rpc_call_on_end(c, on_end);
	rpc_on_writable(c, on_writable);
	api_attest(c, subscribe, s);
}

static void fetch_x509(struct rpc_call *c, const ProtobufCMessage *req)
{
	(void)req;
	start(c, VIEW_X509);
}

static void fetch_x509_bundles(struct rpc_call *c, const ProtobufCMessage *req)
{
	(void)req;
	start(c, VIEW_X509_BUNDLES);
}

static void fetch_jwt_bundles(struct rpc_call *c, const ProtobufCMessage *req)
{
	(void)req;
	start(c, VIEW_JWT_BUNDLES);
}

static void fetch_wit(struct rpc_call *c, const ProtobufCMessage *req)
{
	(void)req;
	rpc_fail(c, ERR_UNIMPLEMENTED, "fetching WIT-SVIDs is not implemented");
}

static void fetch_wit_bundles(struct rpc_call *c, const ProtobufCMessage *req)
{
	(void)req;
	rpc_fail(c, ERR_UNIMPLEMENTED, "fetching WIT bundles is not implemented");
}

static const struct rpc_method methods[] = {
	{ "FetchX509SVID", RPC_SERVER_STREAM, fetch_x509 },
	{ "FetchX509Bundles", RPC_SERVER_STREAM, fetch_x509_bundles },
	{ "FetchJWTSVID", RPC_UNARY, api_fetch_jwt },
	{ "FetchJWTBundles", RPC_SERVER_STREAM, fetch_jwt_bundles },
	{ "ValidateJWTSVID", RPC_UNARY, api_validate_jwt },
	{ "FetchWITSVID", RPC_SERVER_STREAM, fetch_wit },
	{ "FetchWITBundles", RPC_SERVER_STREAM, fetch_wit_bundles },
};

void api_workload_add(struct rpc_server *s, struct api *a)
{
	static struct rpc_service svc;

	svc = (struct rpc_service){ .desc = &spiffe_workload_api__descriptor,
		.methods = methods,
		.n_methods = ARRAY_LEN(methods),
		.data = a };
	attest_seconds = metric_histogram("assay_agent_workload_attestation_seconds",
		"Time to attest a caller of the Workload API", NULL);
	attest_failures = metric_counter("assay_agent_workload_attestation_failures_total",
		"Callers that could not be attested", NULL);
	limited = metric_counter(
		"assay_agent_rate_limited_total", "Calls refused by experimental.ratelimit", NULL);
	no_identity = metric_counter("assay_agent_no_identity_total",
		"Calls answered with \"no identity issued\"", NULL);
	rpc_server_add(s, &svc);
}

/* Health and Prometheus over plain HTTP, for whoever watches the server. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "lib/http.h"
#include "lib/log.h"
#include "lib/metrics.h"
#include "server/federation.h"
#include "server/server.h"

struct server_http {
	const struct server_options *o;
	const struct api *api;
	struct http_server *health, *prometheus;
};

/* ---- health ---- */

/* The names are those of SPIRE's checks. upstream: what is wrong with the upstream authority, which
 * stops nobody yet; or NULL. */
static void details(struct http_response *rs, const char *error, const char *upstream)
{
	json_t *part = json_object(), *all = json_object();
	char *text;

	if (error)
		json_object_set_new(part, "get_bundle_err", json_string(error));
	json_object_set_new(all, "catalog.datastore", json_object());
	json_object_set_new(all, "server", part);
	json_object_set_new(all, "server.ca", json_object());
	json_object_set_new(all, "server.ca.rotator", json_object());
	if (upstream)
		json_object_set_new(
			all, "upstream_authority", json_pack("{s:s}", "error", upstream));
	text = json_dumps(all, JSON_COMPACT);
	buf_printf(&rs->body, "%s\n", text);
	free(text);
	json_decref(all);
	rs->content_type = "application/json";
	rs->status = error ? 500 : 200;
}

static void health(void *arg, const struct http_request *rq, struct http_response *rs)
{
	const struct server_http *h = arg;
	struct err e, up;
	bool ill = h->api->upstream && upstream_health(h->api->upstream, &up);

	if (strcmp(rq->path, h->o->daemon.health_live_path) == 0)
		details(rs, NULL, NULL); /* the loop answers: it lives */
	else if (strcmp(rq->path, h->o->daemon.health_ready_path) == 0)
		details(rs, api_ready(h->api, &e) ? NULL : e.msg, ill ? up.msg : NULL);
	else
		rs->status = 404;
}

/* ---- metrics ---- */

static double count_entries(void *arg)
{
	const struct api *a = arg;

	return (double)entries_count(a->entries);
}

static double count_agents(void *arg)
{
	const struct api *a = arg;

	return (double)entries_count_nodes(a->entries);
}

static double count_bundles(void *arg)
{
	const struct api *a = arg;

	return (double)map_len(a->bundles);
}

static double count_streams(void *arg)
{
	const struct api *a = arg;

	return (double)sync_hub_streams(a->sync);
}

static double count_behind(void *arg)
{
	const struct api *a = arg;

	return (double)sync_hub_behind(a->sync);
}

static double uptime(void *arg)
{
	const struct api *a = arg;

	return (double)(clock_mono().ns - a->started.ns) / NS_PER_MS;
}

static double store_value(void *arg, size_t which)
{
	const struct api *a = arg;
	struct store_stats st;

	store_stats(a->store, &st);
	return (double)(which == 0 ? st.statements : which == 1 ? st.transactions : st.changes);
}

static double count_statements(void *arg)
{
	return store_value(arg, 0);
}

static double count_transactions(void *arg)
{
	return store_value(arg, 1);
}

static double count_changes(void *arg)
{
	return store_value(arg, 2);
}

static double count_peers(void *arg)
{
	const struct api *a = arg;
	struct federation_stats st;

	federation_stats(a->federation, &st);
	return (double)st.peers;
}

static double count_failing(void *arg)
{
	const struct api *a = arg;
	struct federation_stats st;

	federation_stats(a->federation, &st);
	return (double)st.failing;
}

static double svid_expiry(void *arg)
{
	const struct api *a = arg;
	const struct x509_chain *ch = server_svid_chain(a->svid);

	return ch->n ? (double)x509_not_after(ch->v[0]).sec : 0;
}

static void add_gauges(const struct api *a)
{
	static const struct {
		const char *name, *help;
		double (*fn)(void *arg);
	} gauges[] = {
		{ "assay_server_entries", "Registration entries.", count_entries },
		{ "assay_server_agents", "Attested agents.", count_agents },
		{ "assay_server_bundles", "Trust bundles, the own one included.", count_bundles },
		{ "assay_server_sync_streams", "Agents' open push streams.", count_streams },
		{ "assay_server_sync_streams_behind",
			"Push streams whose agent has not acknowledged the present own bundle.",
			count_behind },
		{ "assay_server_federation_peers", "Trust domains whose bundle is polled.",
			count_peers },
		{ "assay_server_federation_failing", "Of these, those whose last fetch failed.",
			count_failing },
		{ "assay_server_uptime_in_ms", "Milliseconds since the start.", uptime },
		{ "assay_server_svid_expires_at", "End of the server's own SVID, Unix seconds.",
			svid_expiry },
	}, counters[] = {
		{ "assay_server_store_statements", "SQL statements run.", count_statements },
		{ "assay_server_store_transactions", "Transactions.", count_transactions },
		{ "assay_server_store_changes", "Changes applied.", count_changes },
	};

	for (size_t i = 0; i < ARRAY_LEN(gauges); i++)
		metric_gauge_fn(gauges[i].name, gauges[i].help, gauges[i].fn, (void *)(uintptr_t)a);
	for (size_t i = 0; i < ARRAY_LEN(counters); i++)
		metric_counter_fn(
			counters[i].name, counters[i].help, counters[i].fn, (void *)(uintptr_t)a);
	door_add_metrics();
}

static void prometheus(void *arg, const struct http_request *rq, struct http_response *rs)
{
	(void)arg;
	if (strcmp(rq->path, "/metrics") != 0 && strcmp(rq->path, "/") != 0) {
		rs->status = 404;
		return;
	}
	rs->content_type = "text/plain; version=0.0.4; charset=utf-8";
	metrics_write(&rs->body);
}

/* ---- opening ---- */

static int open_one(struct loop *l, struct http_server_options *o, const char *what,
	struct http_server **ret, struct err *e)
{
	if (http_server_open(l, o, ret, e))
		return err_wrap(e, "%s", what);
	log_event(LOG_INFO, "http", "listening", "for", what, "address", o->host, "port",
		log_fmt("%d", http_server_port(*ret)), NULL);
	return 0;
}

int server_http_open(struct loop *l, const struct server_options *o, const struct api *a,
	struct server_http **ret, struct err *e)
{
	struct server_http *h = xcalloc(1, sizeof(*h));
	struct http_server_options ho = { .arg = h };
	int r = 0;

	h->o = o;
	h->api = a;
	if (o->daemon.health_enabled) {
		ho.host = o->daemon.health_address;
		ho.port = o->daemon.health_port;
		ho.handle = health;
		r = open_one(l, &ho, "health checks", &h->health, e);
	}
	if (r == 0 && o->daemon.prometheus_enabled) {
		add_gauges(a);
		daemon_metrics(&o->daemon, "assay-server", o->trust_domain);
		ho.host = o->daemon.prometheus_host;
		ho.port = o->daemon.prometheus_port;
		ho.handle = prometheus;
		r = open_one(l, &ho, "metrics", &h->prometheus, e);
	}
	if (r) {
		server_http_close(h);
		return r;
	}
	*ret = h;
	return 0;
}

void server_http_close(struct server_http *h)
{
	if (!h)
		return;
	if (h->health)
		http_server_close(h->health);
	if (h->prometheus)
		http_server_close(h->prometheus);
	free(h);
}

#include "server/controller.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "lib/kube.h"
#include "lib/list.h"
#include "lib/metrics.h"
#include "server/controller_lease.h"
#include "server/controller_static.h"
#include "server/reconcile.h"

#define GROUP "/apis/spire.spiffe.io/v1alpha1/"
#define RESOLV_CONF "/etc/resolv.conf"

struct watcher {
	struct controller *c;
	enum reconcile_kind kind;
	struct kube_watch *watch;
	bool synced, restarting;
};

struct controller {
	const struct server_options *o;
	struct api *api;
	struct kube *kube;           /* NULL: static manifests */
	struct manifests *manifests; /* else NULL */
	struct reconcile *reconcile;
	struct watcher watchers[RECONCILE_KINDS];
	struct lease *lease;
	struct loop_timer *status_timer;
	struct list calls;
	int n_calls, n_events;
	int64_t events_since_ns;
	char *cluster_domain;
	bool started, stopped, status_armed;
	int posted;
	void (*done)(void *arg);
	void *done_arg;
};

static const char *const paths[RECONCILE_KINDS] = {
	[RECONCILE_NAMESPACE] = "/api/v1/namespaces",
	[RECONCILE_NODE] = "/api/v1/nodes",
	[RECONCILE_POD] = "/api/v1/pods",
	[RECONCILE_SLICE] = "/apis/discovery.k8s.io/v1/endpointslices",
	[RECONCILE_ID] = GROUP "clusterspiffeids",
	[RECONCILE_STATIC] = GROUP "clusterstaticentries",
	[RECONCILE_FEDERATED] = GROUP "clusterfederatedtrustdomains",
};

/* ---- calls: statuses and events ---- */

struct call {
	struct controller *c;
	struct kube_call *call;
	struct reconcile_status status; /* name NULL: an event */
	struct list node;
};

static void status_soon(struct controller *c, int ms)
{
	if (c->stopped || c->status_armed)
		return;
	c->status_armed = true;
	loop_timer_set(c->status_timer, ms * NS_PER_MS);
}

static void call_free(struct call *k)
{
	list_remove(&k->node);
	k->c->n_calls--;
	reconcile_status_deinit(&k->status);
	free(k);
}

static void call_done(void *arg, int status, json_t *object, const struct err *e)
{
	static struct log_limit limit;
	struct call *k = arg;
	struct controller *c = k->c;
	bool of_status = k->status.name != NULL;

	(void)status;
	(void)object;
	/* Not there any more, or another of that name: its own status will come. */
	if (e->code && (!of_status || (e->code != ERR_NOT_FOUND && e->code != ERR_EXISTS))) {
		if (log_allowed(&limit, 1))
			log_event(LOG_WARN, "controller",
				of_status ? "could not write a status" : "could not write an event",
				"object", k->status.name, "error", e->msg, NULL);
		if (of_status)
			reconcile_return_status(c->reconcile, &k->status);
	}
	call_free(k);
	status_soon(c, of_status && e->code ? CONTROLLER_STATUS_RETRY_MS : CONTROLLER_STATUS_MS);
}

static void call_begin(struct controller *c, struct call *k, const char *method, const char *path,
	const char *type, const json_t *body)
{
	struct kube_call_options o = { .method = method,
		.path = path,
		.content_type = type,
		.body = body,
		.done = call_done,
		.arg = k };

	k->c = c;
	c->n_calls++;
	list_append(&c->calls, &k->node);
	k->call = kube_call(c->kube, &o);
}

static void send_status(struct controller *c, const struct reconcile_status *s)
{
	AUTO(free) char *escaped = kube_path("%s", s->name);
	AUTO(free) char *path = xasprintf("%s/%s/status", paths[s->kind], escaped);
	struct call *k = xcalloc(1, sizeof(*k));
	json_t *body = json_pack("{s{ss} sO}", "metadata", "uid", s->uid, "status", s->status);

	k->status = *s;
	call_begin(c, k, "PATCH", path, "application/merge-patch+json", body);
	json_decref(body);
}

static void on_status_timer(void *arg)
{
	struct controller *c = arg;
	struct reconcile_status s;

	c->status_armed = false;
	while (!c->stopped && c->n_calls < CONTROLLER_CALLS_MAX &&
		reconcile_take_status(c->reconcile, &s))
		send_status(c, &s);
	/* Not all is known yet, or there are many pods to be looked at. */
	if (c->n_calls < CONTROLLER_CALLS_MAX && reconcile_status_waits(c->reconcile))
		status_soon(c, CONTROLLER_STATUS_MS);
}

static void on_status(void *arg)
{
	status_soon(arg, CONTROLLER_STATUS_MS);
}

static json_t *make_event(const struct reconcile_object *o, const char *reason, const char *message)
{
	struct wall w = clock_wall();
	time_t t = (time_t)w.sec;
	struct tm tm;
	char now[40];
	/* An Event's name is up to its maker; the time makes it another one. */
	AUTO(free)
	char *name = xasprintf("%.200s.%llx", reconcile_object_name(o),
		(unsigned long long)w.sec * 1000000000ULL + (unsigned long long)w.nsec);

	gmtime_r(&t, &tm);
	strftime(now, sizeof(now), "%Y-%m-%dT%H:%M:%SZ", &tm);
	return json_pack("{ss ss s{ss ss} s{ss ss ss ss} ss ss ss s{ss} ss ss si ss ss}",
		"apiVersion", "v1", "kind", "Event", "metadata", "name", name, "namespace",
		"default", "involvedObject", "apiVersion", "spire.spiffe.io/v1alpha1", "kind",
		reconcile_kind_name(reconcile_object_kind(o)), "name", reconcile_object_name(o),
		"uid", reconcile_object_uid(o), "reason", reason, "message", message, "type",
		"Warning", "source", "component", "assay-server", "firstTimestamp", now,
		"lastTimestamp", now, "count", 1, "reportingComponent", "assay-server",
		"reportingInstance", "assay-server");
}

static void on_event(
	void *arg, const struct reconcile_object *o, const char *reason, const char *message)
{
	struct controller *c = arg;
	int64_t now = clock_mono().ns;
	struct call *k;
	json_t *body;

	log_event(LOG_WARN, "controller", "an object has a problem", "kind",
		reconcile_kind_name(reconcile_object_kind(o)), "object", reconcile_object_name(o),
		"reason", reason, "error", message, NULL);
	if (now - c->events_since_ns > 60 * NS_PER_SEC) {
		c->events_since_ns = now;
		c->n_events = 0;
	}
	if (!c->kube || c->stopped || c->n_calls >= CONTROLLER_CALLS_MAX ||
		++c->n_events > CONTROLLER_EVENTS_PER_MINUTE)
		return;
	k = xcalloc(1, sizeof(*k));
	body = make_event(o, reason, message);
	call_begin(c, k, "POST", "/api/v1/namespaces/default/events", NULL, body);
	json_decref(body);
}

/* ---- watches ---- */

static void watch_begin(struct controller *c, enum reconcile_kind k);

static void on_object(void *arg, enum kube_event event, json_t *object)
{
	struct watcher *w = arg;

	if (event == KUBE_DELETED)
		reconcile_remove(w->c->reconcile, w->kind, object);
	else
		reconcile_put(w->c->reconcile, w->kind, object);
}

static void on_synced(void *arg)
{
	struct watcher *w = arg;
	struct controller *c = w->c;

	reconcile_synced(c->reconcile, w->kind);
	if (w->synced)
		return;
	w->synced = true;
	log_event(LOG_INFO, "controller", "synced", "kind", reconcile_kind_name(w->kind), NULL);
	/* What the objects need of the pods is known only now. */
	if (w->kind == RECONCILE_ID && !c->watchers[RECONCILE_POD].watch)
		watch_begin(c, RECONCILE_POD);
}

static void on_failed(void *arg, const struct err *e)
{
	const struct watcher *w = arg;
	bool no_crd = e->code == ERR_NOT_FOUND && w->kind >= RECONCILE_ID;

	log_event(LOG_WARN, "controller", "cannot watch", "kind", reconcile_kind_name(w->kind),
		"error", e->msg, "hint",
		no_crd                  ? "apply deploy/k8s/base/crds first"
		: e->code == ERR_DENIED ? "see docs/KUBERNETES.md for the rights that are needed"
					: NULL,
		NULL);
}

static void on_working(void *arg)
{
	const struct watcher *w = arg;

	log_event(LOG_INFO, "controller", "watching again", "kind", reconcile_kind_name(w->kind),
		NULL);
}

static void watch_begin(struct controller *c, enum reconcile_kind k)
{
	struct watcher *w = &c->watchers[k];
	struct kube_watch_options o = { .path = paths[k],
		.event = on_object,
		.synced = on_synced,
		.failed = on_failed,
		.working = on_working,
		.arg = w };

	w->watch = kube_watch(c->kube, &o);
}

static void restart(void *arg)
{
	struct watcher *w = arg;

	w->c->posted--;
	w->restarting = false;
	if (w->c->stopped)
		return;
	kube_watch_free(w->watch);
	reconcile_restart(w->c->reconcile, w->kind);
	watch_begin(w->c, w->kind);
}

/* Asked for from inside a watch's callback. */
static void on_want(void *arg, enum reconcile_kind k)
{
	struct controller *c = arg;
	struct watcher *w = &c->watchers[k];

	/* Pods that are not watched yet will come as they are wanted. */
	if ((k == RECONCILE_POD && !w->watch) || w->restarting || c->stopped)
		return;
	w->restarting = true;
	c->posted++;
	loop_post(c->api->loop, restart, w);
}

/* ---- metrics ---- */

static struct reconcile_stats stats_of(void *arg)
{
	const struct controller *c = arg;
	struct reconcile_stats s;

	reconcile_stats(c->reconcile, &s);
	return s;
}

#define GAUGE(field)                                                                               \
	static double get_##field(void *arg)                                                       \
	{                                                                                          \
		return (double)stats_of(arg).field;                                                \
	}
GAUGE(pods)
GAUGE(nodes)
GAUGE(objects)
GAUGE(entries)
GAUGE(waiting)
GAUGE(failed)
GAUGE(created)
GAUGE(updated)
GAUGE(deleted)
GAUGE(failures)

static double get_leading(void *arg)
{
	const struct controller *c = arg;

	return c->started && !c->stopped && (!c->lease || lease_leading(c->lease));
}

static void add_metrics(struct controller *c)
{
#define NAME(n) "assay_server_controller_" n
	metric_gauge_fn(NAME("leading"), "Is it this server's turn to write?", get_leading, c);
	metric_gauge_fn(NAME("pods"), "Pods known.", get_pods, c);
	metric_gauge_fn(NAME("nodes"), "Nodes known.", get_nodes, c);
	metric_gauge_fn(NAME("objects"),
		"ClusterSPIFFEIDs, ClusterStaticEntries, ClusterFederatedTrustDomains.",
		get_objects, c);
	metric_gauge_fn(NAME("entries"), "Entries that belong to the controller.", get_entries, c);
	metric_gauge_fn(NAME("waiting"), "Entries to be looked at or written.", get_waiting, c);
	metric_gauge_fn(NAME("failed"), "Entries that the store did not take, to be tried again.",
		get_failed, c);
	metric_counter_fn(NAME("created_total"), "Entries created.", get_created, c);
	metric_counter_fn(NAME("updated_total"), "Entries updated.", get_updated, c);
	metric_counter_fn(NAME("deleted_total"), "Entries deleted.", get_deleted, c);
	metric_counter_fn(NAME("failures_total"), "Writes that failed.", get_failures, c);
#undef NAME
}

/* ---- begin and end ---- */

/* A pod's resolver looks for names in "<namespace>.svc.<domain>", "svc.<domain>", "<domain>". */
static char *find_cluster_domain(const char *path)
{
	AUTO_BUF struct buf b = BUF_INIT_MAX(64 << 10);
	char *save = NULL, *word;
	struct err e;

	if (buf_read_file(&b, path, &e))
		return xstrdup("");
	for (word = strtok_r((char *)b.p, " \t\n", &save); word;
		word = strtok_r(NULL, " \t\n", &save))
		if (strncmp(word, "svc.", 4) == 0 && word[4])
			return xstrdup(word + 4);
	return xstrdup("");
}

static void on_lead(void *arg, bool leading)
{
	struct controller *c = arg;

	reconcile_lead(c->reconcile, leading);
}

static int make_reconcile(struct controller *c, struct err *e)
{
	const struct server_controller *o = &c->o->controller;
	struct reconcile_options ro = { .api = c->api,
		.cluster_name = o->cluster_name,
		.cluster_domain = c->cluster_domain,
		.class_name = o->class_name ? o->class_name : "",
		.watch_classless = o->watch_classless,
		.ignore_namespaces = &o->ignore_namespaces,
		.own_namespace = c->kube && !o->kubeconfig_path ? kube_namespace(c->kube) : NULL,
		.parent_id_template = o->parent_id_template,
		.entry_id_prefix = o->entry_id_prefix,
		.entry_id_prefix_cleanup = o->entry_id_prefix_cleanup,
		.gc_interval_ns = o->gc_interval_ns,
		.want = on_want,
		.status = c->kube ? on_status : NULL,
		.event = on_event,
		.arg = c };

	ro.kinds[RECONCILE_STATIC] = o->static_entries;
	ro.kinds[RECONCILE_FEDERATED] = o->federated;
	ro.kinds[RECONCILE_ID] = o->spiffe_ids;
	ro.kinds[RECONCILE_POD] = ro.kinds[RECONCILE_NODE] = o->spiffe_ids;
	ro.kinds[RECONCILE_NAMESPACE] = ro.kinds[RECONCILE_SLICE] = o->spiffe_ids;
	return reconcile_new(&ro, &c->reconcile, e);
}

int controller_new(
	const struct server_options *o, struct api *a, struct controller **ret, struct err *e)
{
	struct controller *c = xcalloc(1, sizeof(*c));
	struct kube_options ko = { .kubeconfig = o->controller.kubeconfig_path,
		.context = o->controller.kubeconfig_context };
	int r;

	c->o = o;
	c->api = a;
	list_init(&c->calls);
	for (int k = 0; k < RECONCILE_KINDS; k++)
		c->watchers[k] = (struct watcher){ .c = c, .kind = (enum reconcile_kind)k };
	c->status_timer = loop_timer_new(a->loop, on_status_timer, c);
	c->cluster_domain = o->controller.cluster_domain ? xstrdup(o->controller.cluster_domain)
							 : find_cluster_domain(RESOLV_CONF);
	r = o->controller.static_path ? 0 : kube_new(a->loop, &ko, &c->kube, e);
	if (!r)
		r = make_reconcile(c, e);
	if (r) {
		c->stopped = true;
		controller_free(c);
		return r;
	}
	add_metrics(c);
	*ret = c;
	return 0;
}

static void begin_lease(struct controller *c)
{
	const struct server_controller *o = &c->o->controller;
	struct lease_options lo = { .loop = c->api->loop,
		.kube = c->kube,
		.namespace = o->lease_namespace ? o->lease_namespace : kube_namespace(c->kube),
		.name = o->lease_name,
		.duration_ns = o->lease_duration_ns,
		.renew_deadline_ns = o->renew_deadline_ns,
		.retry_ns = o->retry_period_ns,
		.changed = on_lead,
		.arg = c };

	c->lease = lease_new(&lo);
}

void controller_start(struct controller *c)
{
	const struct server_controller *o = &c->o->controller;

	if (c->started || c->stopped)
		return;
	c->started = true;
	log_event(LOG_INFO, "controller", "starting", "server",
		c->kube ? kube_server(c->kube) : NULL, "static_manifest_path", o->static_path,
		"cluster", o->cluster_name, "cluster_domain", c->cluster_domain, "leader_election",
		o->leader_elect ? "on" : "off", NULL);
	if (!c->kube) {
		c->manifests = manifests_new(c->api->loop, c->reconcile, o->static_path,
			o->static_expand_env, o->gc_interval_ns, o->static_entries, o->federated);
		reconcile_lead(c->reconcile, true);
		return;
	}
	if (o->spiffe_ids) {
		watch_begin(c, RECONCILE_ID);
		watch_begin(c, RECONCILE_NAMESPACE);
		watch_begin(c, RECONCILE_NODE);
	}
	if (o->static_entries)
		watch_begin(c, RECONCILE_STATIC);
	if (o->federated)
		watch_begin(c, RECONCILE_FEDERATED);
	if (o->leader_elect)
		begin_lease(c);
	else
		reconcile_lead(c->reconcile, true);
}

static void finish(void *arg)
{
	struct controller *c = arg;

	list_each (k, &c->calls, struct call, node) {
		kube_call_cancel(k->call);
		call_free(k);
	}
	lease_free(c->lease);
	c->lease = NULL;
	manifests_free(c->manifests);
	c->manifests = NULL;
	for (int k = 0; k < RECONCILE_KINDS; k++) {
		kube_watch_free(c->watchers[k].watch);
		c->watchers[k].watch = NULL;
	}
	kube_free(c->kube);
	c->kube = NULL;
	c->done(c->done_arg);
}

void controller_stop(struct controller *c, void (*done)(void *arg), void *arg)
{
	INVARIANT(!c->stopped);
	c->stopped = true;
	c->done = done;
	c->done_arg = arg;
	loop_timer_stop(c->status_timer);
	reconcile_stop(c->reconcile);
	if (c->lease)
		lease_release(c->lease, finish, c);
	else
		loop_post(c->api->loop, finish, c);
}

void controller_free(struct controller *c)
{
	if (!c)
		return;
	INVARIANT(c->stopped && c->posted == 0);
	kube_free(c->kube);
	loop_timer_free(c->status_timer);
	reconcile_free(c->reconcile);
	free(c->cluster_domain);
	free(c);
}

void controller_entry(struct controller *c, const char *id, const struct entry *en)
{
	reconcile_entry(c->reconcile, id, en);
}

void controller_bundle(struct controller *c)
{
	reconcile_bundle(c->reconcile);
}

void controller_relationship(struct controller *c)
{
	reconcile_relationship(c->reconcile);
}

void controller_explain(struct controller *c, const char *namespace, const char *name,
	struct reconcile_explanation *ret)
{
	reconcile_explain(c->reconcile, namespace, name, ret);
}

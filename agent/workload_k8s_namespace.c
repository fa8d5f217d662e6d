/*
 * The labels of namespaces, by the Kubernetes API: each asked for when it is needed and used for
 * poll_retry_interval, all who wait sharing one call; or, with api_server.cache, all of them
 * followed by a watch.
 */
#include <stdlib.h>
#include <string.h>

#include "agent/workload_k8s_internal.h"
#include "lib/log.h"

struct namespace
{
	struct k8s *k;
	char *name;
	json_t *labels; /* NULL: not known */
	int64_t asked_ns;
	struct list waiting; /* struct k8s_labels_wait */
	struct kube_call *call;
};

struct k8s_labels_wait {
	struct list link;
	void (*done)(void *arg, const struct err *e, const json_t *labels);
	void *arg;
};

/* ---- the API ---- */

static int try_home(struct k8s *k, struct err *e)
{
	const char *home = getenv("HOME");
	AUTO(free) char *path = xasprintf("%s/.kube/config", home ? home : "");
	struct kube_options o = { .kubeconfig = path };
	struct err ignored;

	/* That this is no pod is the better word, if there is no such file either. */
	return kube_new(k->loop, &o, &k->kube, &ignored) ? e->code : 0;
}

int k8s_kube(struct k8s *k, struct kube **ret, struct err *e)
{
	const char *env = getenv("KUBECONFIG");
	AUTO(free) char *first = env && *env ? xstrndup(env, strcspn(env, ":")) : NULL;
	struct kube_options o = { .kubeconfig = first };
	int r;

	if (k->stopped)
		return err_set(e, ERR_UNAVAILABLE, "the agent is stopping");
	if (!k->kube) {
		r = kube_new(k->loop, &o, &k->kube, e);
		if (r == ERR_NOT_FOUND && !first)
			r = try_home(k, e);
		if (r)
			return err_wrap(e, "unable to load Kubernetes client config");
	}
	*ret = k->kube;
	return 0;
}

/* ---- one namespace ---- */

static void namespace_free(struct namespace *n)
{
	INVARIANT(list_empty(&n->waiting));
	kube_call_cancel(n->call);
	json_decref(n->labels);
	free(n->name);
	free(n);
}

static void forget(struct k8s *k, bool all)
{
	struct bytes key;
	void *v;

	for (size_t i = 0; map_next(k->namespaces, &i, &key, &v);) {
		struct namespace *n = v;

		if (all || (list_empty(&n->waiting) && !n->call)) {
			map_del(k->namespaces, key);
			namespace_free(n);
		}
	}
}

static struct namespace *namespace_of(struct k8s *k, const char *name)
{
	struct namespace *n = map_get_str(k->namespaces, name);

	if (n)
		return n;
	if (!k->watch && map_len(k->namespaces) >= NAMESPACES_MAX)
		forget(k, false);
	n = xcalloc(1, sizeof(*n));
	n->k = k;
	n->name = xstrdup(name);
	list_init(&n->waiting);
	map_put_str(k->namespaces, name, n);
	return n;
}

static void set_labels(struct namespace *n, json_t *object)
{
	json_t *labels = json_object_get(json_object_get(object, "metadata"), "labels");

	json_decref(n->labels);
	n->labels = json_is_object(labels) ? json_incref(labels) : json_object();
}

/* Those who come while these are told are not among them. */
static void tell(struct namespace *n, const struct err *e)
{
	struct list now;

	list_init(&now);
	while (!list_empty(&n->waiting)) {
		struct list *l = n->waiting.next;

		list_remove(l);
		list_append(&now, l);
	}
	while (!list_empty(&now)) {
		struct k8s_labels_wait *w = container_of(now.next, struct k8s_labels_wait, link);
		struct k8s_labels_wait copy = *w;

		k8s_labels_cancel(w);
		copy.done(copy.arg, e, n->labels);
	}
}

static int failed(struct err *e, const char *name)
{
	struct err why = *e;

	return err_set(
		e, ERR_INTERNAL, "unable to get namespace labels for \"%s\": %s", name, why.msg);
}

static void on_answer(void *arg, int status, json_t *object, const struct err *he)
{
	struct namespace *n = arg;
	struct err e = *he;

	(void)status;
	n->call = NULL;
	if (e.code) {
		json_decref(n->labels);
		n->labels = NULL;
		err_wrap(&e, "unable to get namespace \"%s\"", n->name);
		(void)failed(&e, n->name);
	} else {
		set_labels(n, object);
	}
	tell(n, &e);
}

static void ask(struct namespace *n, struct kube *kube)
{
	AUTO(free) char *path = kube_path("/api/v1/namespaces/%s", n->name);
	struct kube_call_options o = { .path = path, .done = on_answer, .arg = n };

	n->asked_ns = clock_mono().ns;
	n->call = kube_call(kube, &o);
}

/* ---- all of them ---- */

static void on_event(void *arg, enum kube_event event, json_t *object)
{
	struct k8s *k = arg;
	const char *name =
		json_string_value(json_object_get(json_object_get(object, "metadata"), "name"));
	struct namespace *n;

	if (!name)
		return;
	n = namespace_of(k, name);
	if (event != KUBE_DELETED) {
		set_labels(n, object);
	} else {
		json_decref(n->labels);
		n->labels = NULL;
	}
}

static void on_synced(void *arg)
{
	((struct k8s *)arg)->watch_whole = true;
}

static void on_failed(void *arg, const struct err *e)
{
	struct k8s *k = arg;

	/* What is known grows old from here: it is not used, each is asked for. */
	k->watch_whole = false;
	log_event(LOG_WARN, "workload_k8s", "Cannot follow the namespaces", "error", e->msg, NULL);
}

static void on_working(void *arg)
{
	struct k8s *k = arg;

	k->watch_whole = true;
	log_event(LOG_INFO, "workload_k8s", "Following the namespaces again", NULL);
}

static void watch(struct k8s *k, struct kube *kube)
{
	struct kube_watch_options o = { .path = "/api/v1/namespaces",
		.event = on_event,
		.synced = on_synced,
		.failed = on_failed,
		.working = on_working,
		.arg = k };

	if (k->o->api_server_cache && !k->watch)
		k->watch = kube_watch(kube, &o);
}

/* ---- for the others ---- */

bool k8s_labels_known(const struct k8s *k, const char *namespace, const json_t **ret)
{
	const struct namespace *n = k->namespaces ? map_get_str(k->namespaces, namespace) : NULL;

	if (!n || !n->labels ||
		!(k->watch_whole || (n->asked_ns && clock_mono().ns - n->asked_ns <
							    k->o->poll_retry_interval_ns)))
		return false;
	*ret = n->labels;
	return true;
}

void k8s_labels_add(const json_t *labels, struct selectors *ret)
{
	const char *key;
	json_t *v;

	json_object_foreach((json_t *)(uintptr_t)labels, key, v)
	{
		const char *text = json_string_value(v);
		AUTO(free) char *value = xasprintf("ns-label:%s:%s", key, text ? text : "");

		selectors_add(ret, "k8s", value);
	}
	selectors_normalize(ret);
}

struct k8s_labels_wait *k8s_labels_get(struct k8s *k, const char *name,
	void (*done)(void *arg, const struct err *e, const json_t *labels), void *arg)
{
	struct k8s_labels_wait *w;
	const json_t *known;
	struct namespace *n;
	struct kube *kube;
	struct err e = ERR_INIT;

	if (k8s_labels_known(k, name, &known)) {
		done(arg, &e, known);
		return NULL;
	}
	if (k8s_kube(k, &kube, &e)) {
		err_wrap(&e, "unable to set up kube client");
		(void)failed(&e, name);
		done(arg, &e, NULL);
		return NULL;
	}
	watch(k, kube);
	n = namespace_of(k, name);
	w = xmalloc(sizeof(*w));
	*w = (struct k8s_labels_wait){ .done = done, .arg = arg };
	list_append(&n->waiting, &w->link);
	if (!n->call)
		ask(n, kube);
	return w;
}

void k8s_labels_cancel(struct k8s_labels_wait *w)
{
	if (!w)
		return;
	list_remove(&w->link);
	free(w);
}

void k8s_labels_close(struct k8s *k)
{
	kube_watch_free(k->watch);
	k->watch = NULL;
	if (k->namespaces)
		forget(k, true);
	map_free(k->namespaces);
	k->namespaces = NULL;
}

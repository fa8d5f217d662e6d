#include "server/publisher.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/kube.h"
#include "lib/log.h"
#include "lib/metrics.h"

/* Who owns the field, as SPIRE's plugin names itself: servers of both kinds may follow each other.
 */
#define FIELD_MANAGER "spire-bundlepublisher-k8s_configmap"

struct target {
	struct publisher *publisher;
	const struct publish_target *o;
	struct kube *kube; /* NULL: not made yet */
	struct stat seen;  /* its kubeconfig file */
	struct kube_call *call;
	struct loop_timer *timer;
	struct backoff backoff;
	char *text;      /* to be published; NULL: nothing yet */
	char *sent;      /* under way */
	char *published; /* NULL: nothing yet */
	char *version;   /* of the ConfigMap after that */
	char *told;      /* the failure that was logged last */
};

struct publisher {
	struct loop *loop;
	struct metric *applies;
	int64_t again_ns;
	struct target *targets;
	size_t n;
};

static void replace(char **s, char *by)
{
	free(*s);
	*s = by;
}

/* ---- what is published ---- */

static char *text_of(const struct publish_target *o, const struct bundle *b)
{
	AUTO(bundle_unref) struct bundle *hinted = NULL;
	struct buf text = BUF_INIT;

	switch (o->format) {
	case PUBLISH_PEM:
		bundle_to_pem(b, &text);
		break;
	case PUBLISH_JWKS:
		bundle_to_jwks_all(b, &text);
		break;
	default:
		hinted = bundle_dup(b);
		if (o->refresh_hint_s)
			hinted->refresh_hint = o->refresh_hint_s;
		bundle_to_json(hinted, &text);
	}
	return buf_take_str(&text);
}

/* ---- the client ---- */

static bool same_file(const struct stat *a, const struct stat *b)
{
	return a->st_ino == b->st_ino && a->st_dev == b->st_dev && a->st_size == b->st_size &&
	       a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

static int client_ready(struct target *t, struct err *e)
{
	struct kube_options o = { .kubeconfig = t->o->kubeconfig };
	struct stat now = { 0 };
	struct kube *kube;

	if (t->o->kubeconfig)
		(void)stat(t->o->kubeconfig, &now);
	if (t->kube && same_file(&now, &t->seen))
		return 0;
	if (kube_new(t->publisher->loop, &o, &kube, e))
		return err_wrap(
			e, "failed to create Kubernetes client for cluster \"%s\"", t->o->cluster);
	kube_free(t->kube);
	t->kube = kube;
	t->seen = now;
	return 0;
}

/* ---- one apply ---- */

static const char *format_name(const struct target *t)
{
	static const char *const names[] = { "spiffe", "jwks", "pem" };

	return names[t->o->format];
}

static void failed(struct target *t, const struct err *e)
{
	metric_add(t->publisher->applies, 1, t->o->cluster, "error");
	if (!t->told || strcmp(t->told, e->msg) != 0)
		log_event(LOG_ERROR, "publisher", "Failed to publish bundle", "cluster_id",
			t->o->cluster, "namespace", t->o->namespace, "configmap", t->o->configmap,
			"error", e->msg, NULL);
	replace(&t->told, xstrdup(e->msg));
	loop_timer_set(t->timer, backoff_next(&t->backoff));
}

/* The ConfigMap is as it should be. */
static void succeeded(struct target *t, const char *version)
{
	bool changed = !t->published || strcmp(t->published, t->sent) != 0;
	bool mended = !changed && t->version && strcmp(t->version, version) != 0;

	metric_add(t->publisher->applies, 1, t->o->cluster, "ok");
	if (changed || mended || t->told)
		log_event(LOG_INFO, "publisher",
			mended ? "the ConfigMap had been changed by others; bundle published again"
			       : "bundle published",
			"cluster_id", t->o->cluster, "namespace", t->o->namespace, "configmap",
			t->o->configmap, "key", t->o->key, "format", format_name(t), NULL);
	replace(&t->published, t->sent);
	t->sent = NULL;
	replace(&t->version, xstrdup(version));
	replace(&t->told, NULL);
	backoff_reset(&t->backoff);
	/* The bundle may have changed meanwhile. */
	if (strcmp(t->published, t->text) != 0)
		loop_timer_set(t->timer, 0);
	else
		loop_timer_set(t->timer, loop_jitter(t->publisher->again_ns, 10));
}

static void on_applied(void *arg, int status, json_t *object, const struct err *e)
{
	struct target *t = arg;
	const char *version = json_string_value(
		json_object_get(json_object_get(object, "metadata"), "resourceVersion"));
	struct err why = *e;

	(void)status;
	t->call = NULL;
	if (e->code) {
		err_wrap(&why, "failed to apply ConfigMap for cluster \"%s\"", t->o->cluster);
		failed(t, &why);
	} else {
		succeeded(t, version ? version : "");
	}
}

static json_t *configmap(const struct target *t)
{
	json_t *data = json_object();

	json_object_set_new(data, t->o->key, json_string(t->sent));
	return json_pack("{s:s, s:s, s:{s:s, s:s}, s:o}", "apiVersion", "v1", "kind", "ConfigMap",
		"metadata", "name", t->o->configmap, "namespace", t->o->namespace, "data", data);
}

static bool same_text(const char *a, const char *b)
{
	return a && b ? strcmp(a, b) == 0 : a == b;
}

/* What an apply leaves out of its manager's fields is removed: so a further key of the same
 * ConfigMap has a manager of its own. */
static char *field_manager(const struct target *t)
{
	for (const struct target *other = t->publisher->targets; other < t; other++)
		if (same_text(other->o->kubeconfig, t->o->kubeconfig) &&
			strcmp(other->o->namespace, t->o->namespace) == 0 &&
			strcmp(other->o->configmap, t->o->configmap) == 0 &&
			strcmp(other->o->key, t->o->key) != 0)
			return xasprintf(FIELD_MANAGER "-%.64s", t->o->key);
	return xstrdup(FIELD_MANAGER);
}

/* force: whoever changed our key does not keep it. Other keys are none of ours. */
static void apply(struct target *t)
{
	AUTO(free) char *manager = field_manager(t);
	AUTO(free)
	char *path = kube_path("/api/v1/namespaces/%s/configmaps/%s?fieldManager=%s&force=true",
		t->o->namespace, t->o->configmap, manager);
	struct kube_call_options o = {
		.method = "PATCH",
		.path = path,
		.content_type = "application/apply-patch+yaml", /* of which JSON is a part */
		.repeatable = true,
		.done = on_applied,
		.arg = t,
	};
	json_t *body;

	replace(&t->sent, xstrdup(t->text));
	body = configmap(t);
	o.body = body;
	t->call = kube_call(t->kube, &o);
	json_decref(body);
}

static void target_step(void *arg)
{
	struct target *t = arg;
	struct err e = ERR_INIT;

	if (t->call || !t->text)
		return;
	if (client_ready(t, &e))
		failed(t, &e);
	else
		apply(t);
}

/* ---- all of them ---- */

struct publisher *publisher_new(struct loop *l, const struct server_options *o)
{
	static const char *const labels[] = { "cluster_id", "result", NULL };
	struct publisher *p = xcalloc(1, sizeof(*p));

	p->loop = l;
	p->again_ns = PUBLISH_AGAIN_S * NS_PER_SEC;
	p->n = o->n_publish_targets;
	p->targets = xcalloc(p->n + 1, sizeof(*p->targets));
	if (p->n)
		p->applies = metric_counter("assay_server_bundle_publish",
			"Times that the bundle was put into a ConfigMap.", labels);
	for (size_t i = 0; i < p->n; i++) {
		struct target *t = &p->targets[i];

		t->publisher = p;
		t->o = &o->publish_targets[i];
		t->timer = loop_timer_new(l, target_step, t);
		t->backoff.first_ns = PUBLISH_BACKOFF_FIRST_MS * NS_PER_MS;
		t->backoff.max_ns = PUBLISH_BACKOFF_MAX_MS * NS_PER_MS;
	}
	return p;
}

static void target_free(struct target *t)
{
	loop_timer_free(t->timer);
	kube_free(t->kube); /* and the call */
	free(t->text);
	free(t->sent);
	free(t->published);
	free(t->version);
	free(t->told);
}

void publisher_free(struct publisher *p)
{
	if (!p)
		return;
	for (size_t i = 0; i < p->n; i++)
		target_free(&p->targets[i]);
	free(p->targets);
	free(p);
}

void publisher_bundle_changed(struct publisher *p, struct bundle *b)
{
	for (size_t i = 0; b && i < p->n; i++) {
		struct target *t = &p->targets[i];
		char *text = text_of(t->o, b);

		if (t->text && strcmp(t->text, text) == 0) {
			free(text);
			continue;
		}
		replace(&t->text, text);
		loop_timer_set(t->timer, 0);
	}
}

void publisher_set_again_for_test(struct publisher *p, int64_t ns)
{
	p->again_ns = ns;
}

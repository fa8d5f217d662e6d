/* The cluster as it is known: namespaces, nodes, pods, and the services that lead to them. */
#include <stdlib.h>
#include <string.h>

#include "server/reconcile_internal.h"

const char *meta_text(const json_t *object, const char *key)
{
	const char *s =
		json_string_value(json_object_get(json_object_get(object, "metadata"), key));

	return s ? s : "";
}

static int64_t now_ns(void)
{
	return clock_mono().ns;
}

/* ---- namespaces ---- */

static bool is_ignored(const struct reconcile *r, const char *name)
{
	for (size_t i = 0; i < r->n_ignore; i++)
		if (pattern_matches(r->ignore[i], name))
			return true;
	return r->own_namespace && strcmp(r->own_namespace, name) == 0;
}

static struct namespace_info *namespace_get(struct reconcile *r, const char *name)
{
	struct namespace_info *ns = map_get_str(r->namespaces, name);

	if (ns)
		return ns;
	ns = xcalloc(1, sizeof(*ns));
	ns->name = xstrdup(name);
	ns->ignored = is_ignored(r, name);
	list_init(&ns->pods);
	map_put_str(r->namespaces, name, ns);
	return ns;
}

static void namespace_release(struct reconcile *r, struct namespace_info *ns)
{
	if (ns->exists || !list_empty(&ns->pods))
		return;
	map_del_str(r->namespaces, ns->name);
	free(ns->name);
	json_decref(ns->labels);
	free(ns);
}

void count_namespaces(struct reconcile *r, struct reconcile_object *o)
{
	size_t selected = 0, ignored = 0;
	struct bytes key;
	void *v;

	for (size_t i = 0; o->ours && !o->problem && map_next(r->namespaces, &i, &key, &v);) {
		const struct namespace_info *ns = v;

		if (!ns->exists || !label_selector_matches(&o->id.namespaces, ns->labels))
			continue;
		selected++;
		ignored += ns->ignored;
	}
	if (selected == o->namespaces_selected && ignored == o->namespaces_ignored)
		return;
	o->namespaces_selected = selected;
	o->namespaces_ignored = ignored;
	object_changed(r, o);
}

static void namespace_changed(struct reconcile *r, struct namespace_info *ns)
{
	struct bytes key;
	void *v;

	for (size_t i = 0; map_next(r->objects[RECONCILE_ID], &i, &key, &v);)
		count_namespaces(r, v);
	list_each (p, &ns->pods, struct pod, ns_node)
		pod_dirty(r, p);
}

void namespace_put(struct reconcile *r, const json_t *object)
{
	struct namespace_info *ns = namespace_get(r, meta_text(object, "name"));
	json_t *labels = json_object_get(json_object_get(object, "metadata"), "labels");

	ns->seen = true;
	if (ns->exists && json_equal(labels, ns->labels))
		return;
	if (ns->exists && !labels && !ns->labels)
		return;
	ns->exists = true;
	json_decref(ns->labels);
	ns->labels = json_deep_copy(labels);
	namespace_changed(r, ns);
}

void namespace_gone(struct reconcile *r, struct namespace_info *ns)
{
	ns->exists = false;
	namespace_changed(r, ns);
	namespace_release(r, ns);
}

/* ---- nodes ---- */

static struct node_info *node_get(struct reconcile *r, const char *name)
{
	struct node_info *n = map_get_str(r->nodes, name);

	if (n)
		return n;
	n = xcalloc(1, sizeof(*n));
	n->name = xstrdup(name);
	list_init(&n->pods);
	map_put_str(r->nodes, name, n);
	return n;
}

static void node_release(struct reconcile *r, struct node_info *n)
{
	if (n->json || !list_empty(&n->pods))
		return;
	map_del_str(r->nodes, n->name);
	free(n->name);
	free(n->parent);
	free(n->problem);
	free(n);
}

/* What templates may ask for; what changes all the time is left out. */
static json_t *meta_kept(const json_t *object, bool annotations)
{
	json_t *meta = json_copy(json_object_get(object, "metadata"));

	if (!meta)
		return json_object();
	json_object_del(meta, "managedFields");
	json_object_del(meta, "resourceVersion");
	if (!annotations)
		json_object_del(meta, "annotations");
	return meta;
}

static void node_changed(struct reconcile *r, struct node_info *n)
{
	struct err e;

	free(n->parent);
	n->parent = NULL;
	object_set_problem(&n->problem, NULL);
	if (n->json && render_parent(r, n->json, &n->parent, &e))
		object_set_problem(&n->problem, e.msg);
	list_each (p, &n->pods, struct pod, node_node)
		pod_dirty(r, p);
}

void node_put(struct reconcile *r, const json_t *object)
{
	struct node_info *n = node_get(r, meta_text(object, "name"));
	json_t *kept = json_object();
	char *text;

	n->seen = true;
	json_object_set_new(kept, "NodeMeta", meta_kept(object, true));
	json_object_set(kept, "NodeSpec", json_object_get(object, "spec"));
	text = json_dumps(kept, JSON_COMPACT | JSON_SORT_KEYS);
	json_decref(kept);
	if (!text || (n->json && strcmp(text, n->json) == 0)) {
		free(text);
		return;
	}
	free(n->json);
	n->json = text;
	node_changed(r, n);
}

void node_gone(struct reconcile *r, struct node_info *n)
{
	free(n->json);
	n->json = NULL;
	node_changed(r, n);
	node_release(r, n);
}

/* ---- pods ---- */

static char *pod_kept(const struct reconcile *r, const json_t *object)
{
	static const char *const always[] = { "serviceAccountName", "nodeName", "hostname",
		"subdomain" };
	json_t *spec = json_object_get(object, "spec"), *kept = json_object(), *some;
	char *text;

	json_object_set_new(kept, "PodMeta", meta_kept(object, r->needs_annotations));
	if (r->needs_spec && spec) {
		json_object_set(kept, "PodSpec", spec);
	} else {
		some = json_object();
		for (size_t i = 0; i < ARRAY_LEN(always); i++)
			json_object_set(some, always[i], json_object_get(spec, always[i]));
		json_object_set_new(kept, "PodSpec", some);
	}
	text = json_dumps(kept, JSON_COMPACT | JSON_SORT_KEYS);
	json_decref(kept);
	return text ? text : xstrdup("{}");
}

static void pod_set_node(struct reconcile *r, struct pod *p, const char *name)
{
	struct node_info *was = p->node, *is = *name ? node_get(r, name) : NULL;

	if (was == is)
		return;
	list_remove(&p->node_node);
	p->node = is;
	if (is)
		list_append(&is->pods, &p->node_node);
	if (was)
		node_release(r, was);
}

static struct pod *pod_new(struct reconcile *r, const json_t *object, const char *key)
{
	struct pod *p = xcalloc(1, sizeof(*p));

	p->key = xstrdup(key);
	p->uid = xstrdup(meta_text(object, "uid"));
	p->ns = namespace_get(r, meta_text(object, "namespace"));
	list_init(&p->node_node);
	list_init(&p->dirty_node);
	list_init(&p->decls);
	list_append(&p->ns->pods, &p->ns_node);
	map_put_str(r->pods, key, p);
	map_put_str(r->uids, p->uid, p);
	return p;
}

void pod_gone(struct reconcile *r, struct pod *p)
{
	list_each (d, &p->decls, struct decl, pod_node)
		pod_drop_decl(r, d);
	pod_set_node(r, p, "");
	list_remove(&p->ns_node);
	namespace_release(r, p->ns);
	list_remove(&p->dirty_node);
	map_del_str(r->pods, p->key);
	if (map_get_str(r->uids, p->uid) == p)
		map_del_str(r->uids, p->uid);
	free(p->key);
	free(p->uid);
	free(p->json);
	free(p);
	reconcile_work_soon(r);
}

char *object_key(const json_t *object)
{
	return xasprintf("%s/%s", meta_text(object, "namespace"), meta_text(object, "name"));
}

void pod_put(struct reconcile *r, const json_t *object)
{
	AUTO(free) char *key = object_key(object);
	struct pod *p = map_get_str(r->pods, key);
	const char *node =
		json_string_value(json_object_get(json_object_get(object, "spec"), "nodeName"));
	char *text = pod_kept(r, object);

	/* Deleted and made anew while nobody looked. */
	if (p && strcmp(p->uid, meta_text(object, "uid")) != 0) {
		pod_gone(r, p);
		p = NULL;
	}
	if (!p)
		p = pod_new(r, object, key);
	p->seen = true;
	if (p->json && strcmp(text, p->json) == 0) {
		free(text);
		return;
	}
	free(p->json);
	p->json = text;
	p->since_ns = now_ns();
	pod_set_node(r, p, node ? node : "");
	pod_dirty(r, p);
	/* Before those that a changed object made dirty. */
	list_remove(&p->dirty_node);
	list_append(r->dirty_pods.next, &p->dirty_node);
}

/* ---- services: which pods they lead to ---- */

static void service_changed(struct reconcile *r, const char *uid)
{
	struct pod *p = map_get_str(r->uids, uid);

	if (p)
		pod_dirty(r, p);
}

static void service_add(struct reconcile *r, const char *uid, const char *service)
{
	struct strings *s = map_get_str(r->services, uid);

	if (!s) {
		s = xcalloc(1, sizeof(*s));
		map_put_str(r->services, uid, s);
	}
	if (s->n < RECONCILE_SERVICES_MAX)
		strings_add(s, service);
}

/* One of them: a pod may be in several slices of one service. */
static void service_drop(struct reconcile *r, const char *uid, const char *service)
{
	struct strings *s = map_get_str(r->services, uid);
	size_t i = 0;

	while (s && i < s->n && strcmp(s->v[i], service) != 0)
		i++;
	if (!s || i == s->n)
		return;
	free(s->v[i]);
	memmove(&s->v[i], &s->v[i + 1], (s->n - i - 1) * sizeof(*s->v));
	if (--s->n)
		return;
	map_del_str(r->services, uid);
	strings_deinit(s);
	free(s);
}

static void slice_forget(struct reconcile *r, struct slice *s)
{
	for (size_t i = 0; i < s->uids.n; i++)
		service_drop(r, s->uids.v[i], s->service);
}

void slice_free(struct slice *s)
{
	free(s->service);
	strings_deinit(&s->uids);
	free(s);
}

static struct slice *slice_read(const json_t *object)
{
	const json_t *endpoints = json_object_get(object, "endpoints");
	const char *service = json_string_value(
		json_object_get(json_object_get(json_object_get(object, "metadata"), "labels"),
			"kubernetes.io/service-name"));
	struct slice *s = xcalloc(1, sizeof(*s));

	s->service = xstrdup(service ? service : "");
	for (size_t i = 0; *s->service && i < json_array_size(endpoints); i++) {
		const json_t *to = json_object_get(json_array_get(endpoints, i), "targetRef");
		const char *kind = json_string_value(json_object_get(to, "kind"));
		const char *uid = json_string_value(json_object_get(to, "uid"));

		if (kind && uid && strcmp(kind, "Pod") == 0 && !strings_has(&s->uids, uid))
			strings_add(&s->uids, uid);
	}
	return s;
}

/* Whose services differ between two states of one slice. */
static void slice_differs(struct reconcile *r, const struct slice *a, const struct slice *b)
{
	bool same = a && b && strcmp(a->service, b->service) == 0;

	for (size_t i = 0; a && i < a->uids.n; i++)
		if (!same || !strings_has(&b->uids, a->uids.v[i]))
			service_changed(r, a->uids.v[i]);
}

void slice_put(struct reconcile *r, const json_t *object)
{
	AUTO(free) char *key = object_key(object);
	struct slice *was = map_get_str(r->slices, key), *is = slice_read(object);

	is->seen = true;
	if (was)
		slice_forget(r, was);
	for (size_t i = 0; i < is->uids.n; i++)
		service_add(r, is->uids.v[i], is->service);
	slice_differs(r, was, is);
	slice_differs(r, is, was);
	map_put_str(r->slices, key, is);
	if (was)
		slice_free(was);
}

void slice_gone(struct reconcile *r, const char *key)
{
	struct slice *s = map_del_str(r->slices, key);

	if (!s)
		return;
	slice_forget(r, s);
	slice_differs(r, s, NULL);
	slice_free(s);
}

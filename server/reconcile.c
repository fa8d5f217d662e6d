/* Which pods have to be looked at again, and against which objects; begin and end. */
#include "server/reconcile.h"

#include <stdlib.h>
#include <string.h>

#include "server/reconcile_internal.h"

#define DEFAULT_PARENT                                                                             \
	"spiffe://{{ .TrustDomain }}/spire/agent/k8s_psat/{{ .ClusterName }}/{{ .NodeMeta.UID }}"

/* ---- work ---- */

static bool all_synced(const struct reconcile *r)
{
	for (int k = 0; k < RECONCILE_KINDS; k++)
		if (r->o.kinds[k] && !r->synced[k] && (k != RECONCILE_SLICE || r->needs_services))
			return false;
	return true;
}

bool reconcile_may_write(const struct reconcile *r)
{
	return r->leading && !r->stopped && all_synced(r);
}

static void order_objects(struct reconcile *r);
static void look_at(struct reconcile *r, struct pod *p);

static void work(void *arg)
{
	struct reconcile *r = arg;

	r->posted = false;
	if (--r->refs == 0 && r->stopped)
		return;
	if (r->stopped)
		return;
	if (r->order_stale)
		order_objects(r);
	for (int i = 0; i < RECONCILE_TURN_PODS && !list_empty(&r->dirty_pods); i++) {
		struct pod *p = container_of(r->dirty_pods.next, struct pod, dirty_node);

		p->dirty = false;
		list_remove(&p->dirty_node);
		look_at(r, p);
	}
	if (!list_empty(&r->dirty_pods))
		reconcile_work_soon(r);
	slot_flush(r);
}

void reconcile_work_soon(struct reconcile *r)
{
	if (r->posted || r->stopped)
		return;
	r->posted = true;
	r->refs++;
	loop_post(r->api->loop, work, r);
}

void pod_dirty(struct reconcile *r, struct pod *p)
{
	if (p->dirty)
		return;
	p->dirty = true;
	list_append(&r->dirty_pods, &p->dirty_node);
	reconcile_work_soon(r);
}

static void all_dirty(struct reconcile *r)
{
	struct bytes key;
	void *v;

	for (size_t i = 0; map_next(r->pods, &i, &key, &v);)
		pod_dirty(r, v);
}

/* ---- a pod and the objects ---- */

/* Fallbacks last; else the order does not matter. */
static void order_objects(struct reconcile *r)
{
	const struct map *m = r->objects[RECONCILE_ID];
	struct bytes key;
	void *v;

	r->order_stale = false;
	r->n_ordered = 0;
	r->ordered = xreallocarray(r->ordered, map_len(m) + 1, sizeof(struct reconcile_object *));
	for (int fallback = 0; fallback < 2; fallback++)
		for (size_t i = 0; map_next(m, &i, &key, &v);) {
			struct reconcile_object *o = v;

			if (o->ours && o->id.fallback == (fallback == 1))
				r->ordered[r->n_ordered++] = o;
		}
}

static struct decl *find_decl(struct pod *p, const struct reconcile_object *o)
{
	list_each (d, &p->decls, struct decl, pod_node)
		if (d->by == o)
			return d;
	return NULL;
}

static void render(struct reconcile *r, struct pod *p, struct decl *d)
{
	struct reconcile_object *o = d->by;
	struct entry *en = xcalloc(1, sizeof(*en));
	bool failed = d->failed;
	struct err e;
	int code = render_pod(r, o, p, en, &e);

	d->failed = code != 0;
	if (d->failed != failed) {
		o->render_failures += d->failed ? 1 : (size_t)-1;
		object_changed(r, o);
	}
	if (!code) {
		decl_set(r, d, en);
		return;
	}
	free(en);
	decl_unset(r, d);
	if (code != ERR_NOT_FOUND) { /* that is a pod without a node, which is no news */
		AUTO(free) char *text = xasprintf("pod %s: %s", p->key, e.msg);

		object_set_problem(&o->render_problem, text);
		object_changed(r, o);
	}
}

static void forget_problem(struct reconcile *r, struct reconcile_object *o)
{
	if (o->render_failures == 0 && o->render_problem) {
		object_set_problem(&o->render_problem, NULL);
		object_changed(r, o);
	}
}

void pod_drop_decl(struct reconcile *r, struct decl *d)
{
	struct reconcile_object *o = d->by;

	decl_free(r, d);
	forget_problem(r, o);
}

static bool selects(const struct reconcile_object *o, const struct pod *p, const json_t *labels)
{
	return !o->problem && p->ns->exists && !p->ns->ignored &&
	       label_selector_matches(&o->id.namespaces, p->ns->labels) &&
	       label_selector_matches(&o->id.pods, labels);
}

static void look_at(struct reconcile *r, struct pod *p)
{
	json_t *j = r->n_ordered && !p->ns->ignored ? json_loads(p->json, 0, NULL) : NULL;
	const json_t *labels = json_object_get(json_object_get(j, "PodMeta"), "labels");
	bool applied = false;

	for (size_t i = 0; i < r->n_ordered; i++) {
		struct reconcile_object *o = r->ordered[i];
		struct decl *d = find_decl(p, o);

		if (!selects(o, p, labels)) {
			if (d)
				pod_drop_decl(r, d);
			continue;
		}
		if (!d) {
			d = decl_new(o, p);
			o->selected++;
			object_changed(r, o);
		}
		if (o->id.fallback && applied) {
			if (d->failed) {
				d->failed = false;
				o->render_failures--;
				object_changed(r, o);
			}
			decl_unset(r, d);
		} else {
			render(r, p, d);
		}
		forget_problem(r, o);
		applied |= !o->id.fallback && !d->failed;
	}
	json_decref(j);
}

/* ---- objects ---- */

/* Do the objects need more of the cluster than is kept? */
static void check_needs(struct reconcile *r)
{
	bool spec = false, annotations = false, services = false;
	struct bytes key;
	void *v;

	for (size_t i = 0; map_next(r->objects[RECONCILE_ID], &i, &key, &v);) {
		const struct reconcile_object *o = v;

		spec |= o->id.needs_spec;
		annotations |= o->id.needs_annotations;
		services |= o->id.services;
	}
	if (services && !r->needs_services) {
		r->needs_services = true;
		r->synced[RECONCILE_SLICE] = false;
		r->o.want(r->o.arg, RECONCILE_SLICE);
	}
	if ((!spec || r->needs_spec) && (!annotations || r->needs_annotations))
		return;
	r->needs_spec |= spec;
	r->needs_annotations |= annotations;
	/* Until they are told anew, templates would see less than there is. */
	r->synced[RECONCILE_POD] = false;
	r->o.want(r->o.arg, RECONCILE_POD);
}

static void static_changed(struct reconcile *r, struct reconcile_object *o)
{
	struct decl *d =
		list_empty(&o->decls) ? NULL : container_of(o->decls.next, struct decl, by_node);
	struct entry *en;

	if (!o->ours || o->problem) {
		if (d)
			decl_free(r, d);
		return;
	}
	if (!d)
		d = decl_new(o, NULL);
	en = xmalloc(sizeof(*en));
	*en = entry_dup(&o->entry);
	decl_set(r, d, en);
}

static struct reconcile_object *object_new(
	struct reconcile *r, enum reconcile_kind k, const char *name)
{
	struct reconcile_object *o = xcalloc(1, sizeof(*o));

	o->kind = k;
	list_init(&o->decls);
	list_init(&o->status_node);
	map_put_str(r->objects[k], name, o);
	return o;
}

static void object_put(struct reconcile *r, enum reconcile_kind k, const json_t *j)
{
	struct reconcile_object *o = map_get_str(r->objects[k], meta_text(j, "name"));
	const char *uid = meta_text(j, "uid");
	json_int_t generation =
		json_integer_value(json_object_get(json_object_get(j, "metadata"), "generation"));
	bool same = o && strcmp(o->uid, uid) == 0 && generation && generation == o->generation &&
		    strcmp(o->deleted, meta_text(j, "deletionTimestamp")) == 0;

	if (same) { /* only its status, or its labels: most often what we wrote ourselves */
		o->seen = true;
		json_decref(o->shown);
		o->shown = json_deep_copy(json_object_get(j, "status"));
		object_changed(r, o);
		return;
	}
	if (o && strcmp(o->uid, uid) != 0) {
		memset(o->bundle_digest, 0, KEY_SIZE);
		object_set_problem(&o->told, NULL);
	}
	if (!o)
		o = object_new(r, k, meta_text(j, "name"));
	/* Declarations that are of another spec are drawn up again below. */
	object_read(r, o, j);
	o->seen = true;
	object_set_problem(&o->write_problem, NULL);
	object_changed(r, o);
	if (k == RECONCILE_ID) {
		r->order_stale = true;
		count_namespaces(r, o);
		if (!o->ours)
			list_each (d, &o->decls, struct decl, by_node)
				pod_drop_decl(r, d);
		check_needs(r);
		all_dirty(r);
	} else if (k == RECONCILE_STATIC) {
		static_changed(r, o);
	} else {
		federation_work(r);
	}
	reconcile_work_soon(r);
}

static void object_gone(struct reconcile *r, struct reconcile_object *o)
{
	list_each (d, &o->decls, struct decl, by_node)
		decl_free(r, d);
	map_del_str(r->objects[o->kind], o->name);
	if (o->kind == RECONCILE_ID) {
		r->order_stale = true;
		all_dirty(r); /* a fallback may have its turn */
	} else if (o->kind == RECONCILE_FEDERATED) {
		federation_work(r);
	}
	object_free(o);
	reconcile_work_soon(r);
}

/* ---- from outside ---- */

void reconcile_put(struct reconcile *r, enum reconcile_kind k, const json_t *object)
{
	if (r->stopped)
		return;
	switch (k) {
	case RECONCILE_NAMESPACE:
		namespace_put(r, object);
		break;
	case RECONCILE_NODE:
		node_put(r, object);
		break;
	case RECONCILE_POD:
		pod_put(r, object);
		break;
	case RECONCILE_SLICE:
		slice_put(r, object);
		break;
	default:
		object_put(r, k, object);
	}
}

void reconcile_remove(struct reconcile *r, enum reconcile_kind k, const json_t *object)
{
	AUTO(free) char *key = object_key(object);
	const char *name = meta_text(object, "name"), *uid = meta_text(object, "uid");
	void *v;

	if (r->stopped)
		return;
	if (k == RECONCILE_NAMESPACE && (v = map_get_str(r->namespaces, name)))
		namespace_gone(r, v);
	else if (k == RECONCILE_NODE && (v = map_get_str(r->nodes, name)))
		node_gone(r, v);
	else if (k == RECONCILE_POD && (v = map_get_str(r->pods, key))) {
		if (!*uid || strcmp(((struct pod *)v)->uid, uid) == 0)
			pod_gone(r, v);
	} else if (k == RECONCILE_SLICE)
		slice_gone(r, key);
	else if (k >= RECONCILE_ID && (v = map_get_str(r->objects[k], name)))
		object_gone(r, v);
}

void reconcile_restart(struct reconcile *r, enum reconcile_kind k)
{
	struct bytes key;
	void *v;

	r->synced[k] = false;
	if (k == RECONCILE_NAMESPACE)
		for (size_t i = 0; map_next(r->namespaces, &i, &key, &v);)
			((struct namespace_info *)v)->seen = false;
	else if (k == RECONCILE_NODE)
		for (size_t i = 0; map_next(r->nodes, &i, &key, &v);)
			((struct node_info *)v)->seen = false;
	else if (k == RECONCILE_POD)
		for (size_t i = 0; map_next(r->pods, &i, &key, &v);)
			((struct pod *)v)->seen = false;
	else if (k == RECONCILE_SLICE)
		for (size_t i = 0; map_next(r->slices, &i, &key, &v);)
			((struct slice *)v)->seen = false;
	else
		for (size_t i = 0; map_next(r->objects[k], &i, &key, &v);)
			((struct reconcile_object *)v)->seen = false;
}

/* Those that were not told again. */
static void sweep(struct reconcile *r, enum reconcile_kind k)
{
	struct bytes key;
	void *v;

	switch (k) {
	case RECONCILE_NAMESPACE:
		for (size_t i = 0; map_next(r->namespaces, &i, &key, &v);)
			if (!((struct namespace_info *)v)->seen &&
				((struct namespace_info *)v)->exists)
				namespace_gone(r, v);
		break;
	case RECONCILE_NODE:
		for (size_t i = 0; map_next(r->nodes, &i, &key, &v);)
			if (!((struct node_info *)v)->seen && ((struct node_info *)v)->json)
				node_gone(r, v);
		break;
	case RECONCILE_POD:
		for (size_t i = 0; map_next(r->pods, &i, &key, &v);)
			if (!((struct pod *)v)->seen)
				pod_gone(r, v);
		break;
	case RECONCILE_SLICE:
		for (size_t i = 0; map_next(r->slices, &i, &key, &v);)
			if (!((struct slice *)v)->seen) {
				AUTO(free) char *name = xstrndup((const char *)key.p, key.n);

				slice_gone(r, name);
			}
		break;
	default:
		for (size_t i = 0; map_next(r->objects[k], &i, &key, &v);)
			if (!((struct reconcile_object *)v)->seen)
				object_gone(r, v);
	}
}

void reconcile_synced(struct reconcile *r, enum reconcile_kind k)
{
	if (r->stopped || r->synced[k])
		return;
	r->synced[k] = true;
	sweep(r, k);
	federation_work(r); /* this may have been what it waited for */
	reconcile_work_soon(r);
}

static void show_all(struct reconcile *r)
{
	struct bytes key;
	void *v;

	for (int k = RECONCILE_ID; k < RECONCILE_KINDS; k++)
		for (size_t i = 0; map_next(r->objects[k], &i, &key, &v);)
			object_changed(r, v);
}

void reconcile_lead(struct reconcile *r, bool leading)
{
	if (r->leading == leading)
		return;
	r->leading = leading;
	if (!leading)
		return;
	show_all(r);
	if (r->o.status && reconcile_status_waits(r))
		r->o.status(r->o.arg);
	federation_work(r);
	reconcile_work_soon(r);
}

static void gc(void *arg)
{
	struct reconcile *r = arg;

	if (r->stopped)
		return;
	slot_retry(r);
	federation_retry(r);
	loop_timer_set(r->gc, loop_jitter(r->o.gc_interval_ns, 10));
}

void reconcile_bundle(struct reconcile *r)
{
	slot_retry(r);
}

void reconcile_stats(const struct reconcile *r, struct reconcile_stats *ret)
{
	*ret = r->stats;
	ret->pods = map_len(r->pods);
	ret->nodes = map_len(r->nodes);
	ret->objects = map_len(r->objects[RECONCILE_ID]) + map_len(r->objects[RECONCILE_STATIC]) +
		       map_len(r->objects[RECONCILE_FEDERATED]);
	ret->entries = map_len(r->currents);
	ret->waiting = r->n_waiting;
}

/* ---- begin and end ---- */

static int read_patterns(struct reconcile *r, struct err *e)
{
	const struct strings *s = r->o.ignore_namespaces;

	r->ignore = xcalloc(s->n + 1, sizeof(struct pattern *));
	for (; r->n_ignore < s->n; r->n_ignore++)
		if (pattern_new(s->v[r->n_ignore], &r->ignore[r->n_ignore], e))
			return err_wrap(e, "ignore_namespaces \"%.100s\"", s->v[r->n_ignore]);
	return 0;
}

static void make_maps(struct reconcile *r)
{
	r->namespaces = map_new();
	r->nodes = map_new();
	r->pods = map_new();
	r->uids = map_new();
	r->slices = map_new();
	r->services = map_new();
	r->slots = map_new();
	r->currents = map_new();
	for (int k = RECONCILE_ID; k < RECONCILE_KINDS; k++)
		r->objects[k] = map_new();
	list_init(&r->dirty_pods);
	list_init(&r->dirty_slots);
	list_init(&r->failed_slots);
	list_init(&r->changed_status);
}

int reconcile_new(const struct reconcile_options *o, struct reconcile **ret, struct err *e)
{
	struct reconcile *r = xcalloc(1, sizeof(*r));
	const char *parent = o->parent_id_template;
	int code;

	r->o = *o;
	r->api = o->api;
	r->prefix = xasprintf("%s.", o->entry_id_prefix);
	if (o->entry_id_prefix_cleanup)
		r->cleanup = xasprintf(
			"%s%s", o->entry_id_prefix_cleanup, *o->entry_id_prefix_cleanup ? "." : "");
	r->own_namespace = o->own_namespace ? xstrdup(o->own_namespace) : NULL;
	make_maps(r);
	code = read_patterns(r, e);
	if (!code && template_parse(parent ? parent : DEFAULT_PARENT, 0, &r->parent, e))
		code = err_wrap(e, "parent_id_template");
	if (!code)
		code = federation_owned_load(r, e);
	if (code) {
		reconcile_free(r);
		return code;
	}
	r->gc = loop_timer_new(r->api->loop, gc, r);
	loop_timer_set(r->gc, loop_jitter(r->o.gc_interval_ns, 10));
	slot_seed(r);
	*ret = r;
	return 0;
}

void reconcile_stop(struct reconcile *r)
{
	if (r)
		r->stopped = true;
}

static void free_objects(struct reconcile *r)
{
	struct bytes key;
	void *v;

	for (int k = RECONCILE_ID; k < RECONCILE_KINDS; k++) {
		for (size_t i = 0; map_next(r->objects[k], &i, &key, &v);) {
			struct reconcile_object *o = v;

			list_each (d, &o->decls, struct decl, by_node)
				decl_free(r, d);
			map_del(r->objects[k], key);
			object_free(o);
		}
	}
}

void reconcile_free(struct reconcile *r)
{
	struct bytes key;
	void *v;

	if (!r)
		return;
	r->stopped = true;
	INVARIANT(r->refs == 0 && r->batches == 0 && !r->federation_busy);
	loop_timer_free(r->gc);
	free_objects(r);
	for (size_t i = 0; map_next(r->pods, &i, &key, &v);)
		pod_gone(r, v);
	for (size_t i = 0; map_next(r->nodes, &i, &key, &v);)
		node_gone(r, v);
	for (size_t i = 0; map_next(r->namespaces, &i, &key, &v);)
		namespace_gone(r, v);
	for (size_t i = 0; map_next(r->slices, &i, &key, &v);)
		slice_free(v);
	for (size_t i = 0; map_next(r->services, &i, &key, &v);) {
		strings_deinit(v);
		free(v);
	}
	slot_free_all(r);
	for (int k = RECONCILE_ID; k < RECONCILE_KINDS; k++)
		map_free(r->objects[k]);
	map_free(r->namespaces);
	map_free(r->nodes);
	map_free(r->pods);
	map_free(r->uids);
	map_free(r->slices);
	map_free(r->services);
	for (size_t i = 0; i < r->n_ignore; i++)
		pattern_free(r->ignore[i]);
	free(r->ignore);
	free(r->ordered);
	template_free(r->parent);
	strings_deinit(&r->cleanups);
	strings_deinit(&r->owned);
	free(r->prefix);
	free(r->cleanup);
	free(r->own_namespace);
	free(r);
}

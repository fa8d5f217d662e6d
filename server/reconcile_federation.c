/* ClusterFederatedTrustDomains and the federation relationships of the store, one write at a time.
 * Which relationships are the cluster's is kept in a blob: a trust domain's name has no room for a
 * prefix. */
#include <stdlib.h>
#include <string.h>

#include "server/federation.h"
#include "server/reconcile_internal.h"

#define BLOB "controller_federation"
enum { BLOB_MAX = 1 << 20 };

/* ---- the list of ours ---- */

int federation_owned_load(struct reconcile *r, struct err *e)
{
	AUTO_BUF struct buf b = BUF_INIT_MAX(BLOB_MAX);
	int code = store_blob_get(r->api->store, BLOB, &b, e);
	json_t *j;

	if (code == ERR_NOT_FOUND)
		return 0;
	if (code)
		return code;
	j = json_loadb(buf_cstr(&b), b.len, 0, NULL);
	for (size_t i = 0; i < json_array_size(j); i++) {
		const char *td = json_string_value(json_array_get(j, i));

		if (td && !strings_has(&r->owned, td))
			strings_add(&r->owned, td);
	}
	json_decref(j);
	return 0;
}

static void owned_remove(struct reconcile *r, const char *td)
{
	for (size_t i = 0; i < r->owned.n; i++)
		if (strcmp(r->owned.v[i], td) == 0) {
			free(r->owned.v[i]);
			r->owned.v[i] = r->owned.v[--r->owned.n];
			return;
		}
}

static void next(struct reconcile *r);

static void saved(void *arg, int code, const char *msg)
{
	struct reconcile *r = arg;

	r->federation_busy = false;
	if (code) /* at worst one is left behind when its object goes */
		log_event(LOG_ERROR, "controller", "could not note whose relationships are ours",
			"error", msg, NULL);
	else
		next(r);
}

static void owned_save(struct reconcile *r)
{
	json_t *j = json_array();
	char *text;

	for (size_t i = 0; i < r->owned.n; i++)
		json_array_append_new(j, json_string(r->owned.v[i]));
	text = json_dumps(j, JSON_COMPACT);
	json_decref(j);
	r->federation_busy = true;
	store_blob_put(r->api->store, BLOB, bytes_str(text), saved, r);
	free(text);
}

/* ---- which object has which trust domain ---- */

static struct reconcile_object *wanted(struct reconcile *r, const char *td)
{
	struct reconcile_object *best = NULL;
	struct bytes key;
	void *v;

	for (size_t i = 0; map_next(r->objects[RECONCILE_FEDERATED], &i, &key, &v);) {
		struct reconcile_object *o = v;

		if (o->ours && !o->problem && strcmp(o->relationship.trust_domain, td) == 0 &&
			(!best || object_compare(o, best) < 0))
			best = o;
	}
	return best;
}

static void set_conflict(
	struct reconcile *r, struct reconcile_object *o, const struct reconcile_object *with)
{
	AUTO(free) char *text = NULL;

	if (with != o)
		text = xasprintf("trust domain \"%s\" is that of ClusterFederatedTrustDomain "
				 "\"%s\" too, which is older",
			o->relationship.trust_domain, with->name);
	if ((!text && !o->conflict) || (text && o->conflict && strcmp(text, o->conflict) == 0))
		return;
	object_set_problem(&o->conflict, text);
	object_changed(r, o);
}

/* ---- writes ---- */

struct work {
	struct reconcile *r;
	char *name, *trust_domain;
	bool deleting;
};

static void failed(
	struct reconcile *r, const struct work *w, struct reconcile_object *o, const char *msg)
{
	r->stats.failures++;
	log_event(LOG_ERROR, "controller", "could not write a federation relationship",
		"trust_domain", w->trust_domain, "object", w->name, "error", msg, NULL);
	if (o) {
		object_set_problem(&o->write_problem, msg);
		object_changed(r, o);
	}
}

static void written(void *arg, int code, const char *msg)
{
	struct work *w = arg;
	struct reconcile *r = w->r;
	struct reconcile_object *o =
		w->name ? map_get_str(r->objects[RECONCILE_FEDERATED], w->name) : NULL;

	r->federation_busy = false;
	if (w->deleting && code == ERR_NOT_FOUND)
		code = 0;
	if (code) {
		failed(r, w, o, msg);
	} else {
		log_event(LOG_INFO, "controller",
			w->deleting ? "deleted federation relationship"
				    : "set federation relationship",
			"trust_domain", w->trust_domain, NULL);
		if (o && o->write_problem) {
			object_set_problem(&o->write_problem, NULL);
			object_changed(r, o);
		}
		if (w->deleting)
			owned_remove(r, w->trust_domain);
	}
	if (w->deleting && !code && !r->stopped)
		owned_save(r);
	else if (!w->deleting)
		next(r);
	free(w->name);
	free(w->trust_domain);
	free(w);
}

static struct work *begin(struct reconcile *r, const struct reconcile_object *o, const char *td)
{
	struct work *w = xcalloc(1, sizeof(*w));

	w->r = r;
	w->name = o ? xstrdup(o->name) : NULL;
	w->trust_domain = xstrdup(td);
	w->deleting = !o;
	r->federation_busy = true;
	return w;
}

/* Does something for this object: true if a write was begun. */
static bool put(struct reconcile *r, struct reconcile_object *o)
{
	const struct relationship *rel = &o->relationship;
	const struct relationship *is = federation_get(r->api->federation, rel->trust_domain);
	bool same = is && strcmp(is->url, rel->url) == 0 &&
		    strcmp(is->endpoint_id, rel->endpoint_id) == 0;

	if (!strings_has(&r->owned, rel->trust_domain)) {
		strings_add(&r->owned, rel->trust_domain);
		owned_save(r);
		return true;
	}
	if (o->tried || (same && !o->bundle_new))
		return false;
	o->tried = true;
	if (is)
		store_relationship_update(r->api->store, rel,
			RELATIONSHIP_URL | RELATIONSHIP_PROFILE, o->bundle, written,
			begin(r, o, rel->trust_domain));
	else
		store_relationship_create(
			r->api->store, rel, o->bundle, written, begin(r, o, rel->trust_domain));
	o->bundle_new = false;
	return true;
}

static bool drop_one(struct reconcile *r)
{
	for (size_t i = 0; i < r->owned.n; i++)
		if (!wanted(r, r->owned.v[i])) {
			struct work *w = begin(r, NULL, r->owned.v[i]);

			store_relationship_delete(r->api->store, r->owned.v[i], written, w);
			return true;
		}
	return false;
}

static void next(struct reconcile *r)
{
	struct bytes key;
	void *v;

	if (r->federation_busy || !r->o.kinds[RECONCILE_FEDERATED] || !reconcile_may_write(r))
		return;
	if (drop_one(r))
		return;
	for (size_t i = 0; map_next(r->objects[RECONCILE_FEDERATED], &i, &key, &v);) {
		struct reconcile_object *o = v, *has;

		if (!o->ours || o->problem)
			continue;
		has = wanted(r, o->relationship.trust_domain);
		set_conflict(r, o, has);
		if (has == o && put(r, o))
			return;
	}
}

static void posted(void *arg)
{
	struct reconcile *r = arg;

	r->refs--;
	r->federation_posted = false;
	next(r);
}

void federation_work(struct reconcile *r)
{
	if (r->federation_posted || r->stopped)
		return;
	r->federation_posted = true;
	r->refs++;
	loop_post(r->api->loop, posted, r);
}

void federation_retry(struct reconcile *r)
{
	struct bytes key;
	void *v;

	for (size_t i = 0; map_next(r->objects[RECONCILE_FEDERATED], &i, &key, &v);)
		((struct reconcile_object *)v)->tried = false;
	federation_work(r);
}

void reconcile_relationship(struct reconcile *r)
{
	if (!r->federation_busy)
		federation_retry(r);
}

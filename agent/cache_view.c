#include "agent/cache_internal.h"

#include <stdlib.h>
#include <string.h>

struct matches {
	struct record **v;
	size_t n, cap;
};

static void match_add(void *arg, struct record *r)
{
	struct matches *m = arg;

	/* Entries with store_svid go to a store, never to the Workload API. */
	if (r->gone || r->entry.store_svid)
		return;
	if (m->n == m->cap) {
		m->cap = m->cap ? 2 * m->cap : 4;
		m->v = xreallocarray(m->v, m->cap, sizeof(struct record *));
	}
	m->v[m->n++] = r;
}

static int by_id(const void *a, const void *b)
{
	struct record *const *x = a, *const *y = b;

	return strcmp((*x)->entry.id, (*y)->entry.id);
}

static bool older(const struct record *a, const struct record *b)
{
	if (a->entry.created_at != b->entry.created_at)
		return a->entry.created_at < b->entry.created_at;
	return strcmp(a->entry.id, b->entry.id) < 0;
}

/* Two entries with the same hint: only the older is served. */
static bool hint_taken(const struct matches *m, size_t i)
{
	const char *hint = m->v[i]->entry.hint;

	for (size_t k = 0; hint[0] && k < m->n; k++) {
		if (k != i && strcmp(hint, m->v[k]->entry.hint) == 0 && older(m->v[k], m->v[i]))
			return true;
	}
	return false;
}

static void keep_one_per_hint(struct matches *m)
{
	struct matches kept = { 0 };

	for (size_t i = 0; i < m->n; i++) {
		if (!hint_taken(m, i))
			match_add(&kept, m->v[i]);
	}
	free(m->v);
	*m = kept;
}

static void trim_idle(struct cache *c)
{
	while (!c->telling && c->n_idle_views > CACHE_IDLE_VIEWS) {
		c->n_idle_views--;
		view_free(container_of(c->idle_views.next, struct view, idle));
	}
}

static void tell(struct view *v)
{
	v->cache->telling++;
	list_each (w, &v->watchers, struct view_watch, link)
		w->changed(w);
	v->cache->telling--;
}

static void stale(struct view *v, bool x509_only)
{
	v->fresh[VIEW_X509] = false;
	if (!x509_only)
		v->fresh[VIEW_X509_BUNDLES] = v->fresh[VIEW_JWT_BUNDLES] = false;
}

/* Finds the view's entries anew; true if they are others than before. */
static bool rematch(struct cache *c, struct view *v)
{
	struct matches m = { 0 };

	index_match(c, &v->selectors, match_add, &m);
	if (m.n)
		qsort(m.v, m.n, sizeof(m.v[0]), by_id);
	keep_one_per_hint(&m);
	if (m.n == v->n_matches &&
		(m.n == 0 || memcmp(m.v, v->matches, m.n * sizeof(m.v[0])) == 0)) {
		free(m.v);
		return false;
	}
	if (v->x509_users) {
		for (size_t i = 0; i < m.n; i++)
			sign_use(c, m.v[i]);
		for (size_t i = 0; i < v->n_matches; i++)
			sign_unuse(c, v->matches[i]);
	}
	free(v->matches);
	v->matches = m.v;
	v->n_matches = m.n;
	return true;
}

void views_rematch(struct cache *c)
{
	struct bytes key;
	void *p;

	c->telling++;
	for (size_t i = 0; map_next(c->views, &i, &key, &p);) {
		struct view *v = p;

		if (rematch(c, v)) {
			stale(v, false);
			tell(v);
		}
	}
	c->telling--;
	trim_idle(c);
}

static bool has(const struct view *v, const struct record *r)
{
	for (size_t i = 0; i < v->n_matches; i++) {
		if (v->matches[i] == r)
			return true;
	}
	return false;
}

void views_touch(struct cache *c, const struct record *r, bool x509_only)
{
	struct bytes key;
	void *p;

	c->telling++;
	for (size_t i = 0; map_next(c->views, &i, &key, &p);) {
		struct view *v = p;

		if (r && !has(v, r))
			continue;
		stale(v, x509_only);
		tell(v);
	}
	c->telling--;
	trim_idle(c);
}

/* ---- references ---- */

static void view_key(const struct selectors *s, struct buf *ret)
{
	for (size_t i = 0; i < s->n; i++) {
		buf_append(ret, s->v[i].type, strlen(s->v[i].type) + 1);
		buf_append(ret, s->v[i].value, strlen(s->v[i].value) + 1);
	}
}

struct view *cache_view(struct cache *c, const struct selectors *s)
{
	AUTO_BUF struct buf key = BUF_INIT;
	struct view *v;

	view_key(s, &key);
	v = map_get(c->views, buf_view(&key));
	if (v) {
		if (v->refs++ == 0) {
			list_remove(&v->idle);
			c->n_idle_views--;
		}
		return v;
	}
	v = xcalloc(1, sizeof(*v));
	v->refs = 1;
	v->cache = c;
	v->selectors = selectors_dup(s);
	v->key_len = key.len;
	v->key = buf_take_str(&key);
	list_init(&v->watchers);
	list_init(&v->idle);
	map_put(c->views, bytes_of(v->key, v->key_len), v);
	rematch(c, v);
	return v;
}

void view_free(struct view *v)
{
	for (int i = 0; i < VIEW_KINDS; i++) {
		if (v->payload[i])
			rpc_payload_unref(v->payload[i]);
	}
	map_del(v->cache->views, bytes_of(v->key, v->key_len));
	list_remove(&v->idle);
	selectors_deinit(&v->selectors);
	free(v->matches);
	free(v->key);
	free(v);
}

/* The last few views that nobody uses stay, so that a caller who comes back finds its answer
 * encoded. */
void view_unref(struct view *v)
{
	struct cache *c;

	if (!v || --v->refs)
		return;
	c = v->cache;
	list_append(&c->idle_views, &v->idle);
	c->n_idle_views++;
	trim_idle(c);
}

void view_use_x509(struct view *v)
{
	if (v->x509_users++)
		return;
	for (size_t i = 0; i < v->n_matches; i++)
		sign_use(v->cache, v->matches[i]);
}

void view_unuse_x509(struct view *v)
{
	INVARIANT(v->x509_users > 0);
	if (--v->x509_users)
		return;
	for (size_t i = 0; i < v->n_matches; i++)
		sign_unuse(v->cache, v->matches[i]);
}

bool view_ready(const struct view *v)
{
	size_t have = 0;

	for (size_t i = 0; i < v->n_matches; i++) {
		if (v->matches[i]->svid)
			have++;
		else if (!v->matches[i]->failed)
			return false;
	}
	return have > 0;
}

/* ---- near misses ---- */

static bool knows_type(const struct selectors *s, const char *type)
{
	for (size_t i = 0; i < s->n; i++) {
		if (strcmp(s->v[i].type, type) == 0)
			return true;
	}
	return false;
}

/* How many of an entry's selectors are not in s; *ret_rank orders entries: one that asks for what
 * no attestor of workloads says (a node alias, for instance) comes after all others. */
static size_t missing(const struct selectors *of, const struct selectors *in, size_t *ret_rank)
{
	size_t n = 0, foreign = 0;

	for (size_t i = 0; i < of->n; i++) {
		struct selectors one = { .v = &of->v[i], .n = 1 };

		if (selectors_subset(&one, in))
			continue;
		n++;
		foreign += !knows_type(in, of->v[i].type);
	}
	*ret_rank = n + foreign * 1000;
	return n;
}

size_t cache_nearest(struct cache *c, const struct selectors *s, struct near_miss *ret, size_t max)
{
	struct bytes key;
	void *p;
	size_t n = 0;

	for (size_t i = 0; map_next(c->records, &i, &key, &p);) {
		struct record *r = p;
		size_t rank, m = missing(&r->entry.selectors, s, &rank), at = n;

		if (m == 0 || r->entry.store_svid)
			continue;
		while (at > 0 && ret[at - 1].rank > rank)
			at--;
		if (at == max)
			continue;
		if (n < max)
			n++;
		memmove(&ret[at + 1], &ret[at], (n - at - 1) * sizeof(ret[0]));
		ret[at] = (struct near_miss){ .record = r, .missing = m, .rank = rank };
	}
	return n;
}

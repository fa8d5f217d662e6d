#include "agent/cache_internal.h"

#include <stdlib.h>
#include <string.h>

#include "agent/sealed.h"
#include "spire/api/types/bundle.pb-c.h"
#include "spire/api/types/entry.pb-c.h"

struct cache *cache_new(const struct cache_options *o)
{
	struct cache *c = xcalloc(1, sizeof(*c));

	c->o = *o;
	c->trust_domain = xstrdup(o->trust_domain);
	c->records = map_new();
	c->selectors = map_new();
	c->views = map_new();
	c->federated = map_new();
	list_init(&c->queue);
	list_init(&c->lru);
	list_init(&c->idle_views);
	c->timer = loop_timer_new(o->loop, sign_on_timer, c);
	return c;
}

void cache_stop(struct cache *c)
{
	loop_timer_stop(c->timer);
	c->stopped = true;
}

static void record_free(struct record *r)
{
	entry_deinit(&r->entry);
	free(r);
}

static void record_drop(struct cache *c, struct record *r)
{
	sign_forget(c, r);
	index_unanchor(r);
	index_drop_refs(c, &r->entry);
	map_del_str(c->records, r->entry.id);
}

void cache_free(struct cache *c)
{
	struct bytes key;
	void *p;

	if (!c)
		return;
	INVARIANT(c->trust_jobs == 0);
	list_each (v, &c->idle_views, struct view, idle)
		view_free(v);
	for (size_t i = 0; map_next(c->records, &i, &key, &p);) {
		record_drop(c, p);
		record_free(p);
	}
	for (size_t i = 0; map_next(c->federated, &i, &key, &p);)
		bundle_unref(p);
	if (c->bundle)
		bundle_unref(c->bundle);
	map_free(c->records);
	map_free(c->selectors);
	map_free(c->views);
	map_free(c->federated);
	loop_timer_free(c->timer);
	free(c->heap);
	free(c->trust_domain);
	free(c);
}

void cache_update_deinit(struct cache_update *u)
{
	for (size_t i = 0; i < u->n_entries; i++)
		entry_deinit(&u->entries[i]);
	for (size_t i = 0; i < u->n_federated; i++)
		bundle_unref(u->federated[i]);
	if (u->bundle)
		bundle_unref(u->bundle);
	free(u->entries);
	free(u->federated);
	strings_deinit(&u->removed);
	strings_deinit(&u->removed_federated);
	*u = (struct cache_update){ 0 };
}

/* ---- entries ---- */

static bool strings_same(const struct strings *a, const struct strings *b)
{
	if (a->n != b->n)
		return false;
	for (size_t i = 0; i < a->n; i++) {
		if (strcmp(a->v[i], b->v[i]) != 0)
			return false;
	}
	return true;
}

/* As far as an agent sees an entry. */
static bool entry_same(const struct entry *a, const struct entry *b)
{
	return a->revision_number == b->revision_number && a->created_at == b->created_at &&
	       strcmp(a->spiffe_id, b->spiffe_id) == 0 && strcmp(a->hint, b->hint) == 0 &&
	       a->store_svid == b->store_svid && a->admin == b->admin &&
	       a->downstream == b->downstream &&
	       a->disable_x509_svid_prefetch == b->disable_x509_svid_prefetch &&
	       a->jwt_svid_include_jti == b->jwt_svid_include_jti &&
	       strings_same(&a->federates_with, &b->federates_with) &&
	       selectors_equal(&a->selectors, &b->selectors);
}

/* What the server holds about an entry in its certificate but does not show to agents (DNS names,
 * TTL) changes with the revision, so a new revision means a new SVID. */
static void record_replace(struct cache *c, struct record *r, struct entry *en)
{
	bool other_id = strcmp(r->entry.spiffe_id, en->spiffe_id) != 0;

	index_unanchor(r);
	index_drop_refs(c, &r->entry);
	entry_deinit(&r->entry);
	r->entry = *en;
	*en = (struct entry){ 0 };
	index_add_refs(c, &r->entry);
	r->retry_ns = 0;
	/* An SVID of another id must not be served under this one. */
	if (other_id)
		sign_drop_svid(c, r);
	if (r->entry.store_svid)
		sign_forget(c, r);
	else if (r->svid || r->users)
		sign_want(c, r, r->users > 0);
}

static struct record *record_add(struct cache *c, struct entry *en)
{
	struct record *r = xcalloc(1, sizeof(*r));

	list_init(&r->link);
	r->entry = *en;
	*en = (struct entry){ 0 };
	index_add_refs(c, &r->entry);
	map_put_str(c->records, r->entry.id, r);
	return r;
}

/* An entry without an id or selectors is malformed; as SPIRE's agent, leave it out. */
static bool usable(const struct entry *en)
{
	return en->id && en->id[0] && en->spiffe_id && en->selectors.n > 0;
}

static bool put_entry(struct cache *c, struct entry *en, struct record **ret)
{
	struct record *r = map_get_str(c->records, en->id);

	*ret = r ? r : record_add(c, en);
	if (!r)
		return true;
	r->replaced = !entry_same(&r->entry, en);
	if (r->replaced)
		record_replace(c, r, en);
	return r->replaced;
}

static bool put_entries(struct cache *c, struct cache_update *u, struct map *named)
{
	struct record *r;
	struct bytes key;
	void *p;
	bool changed = false;

	for (size_t i = 0; i < u->n_entries; i++) {
		struct entry *en = &u->entries[i];

		if (!usable(en))
			continue;
		selectors_normalize(&en->selectors);
		changed |= put_entry(c, en, &r);
		map_put_str(named, r->entry.id, r);
	}
	/* Filed once all counts are known, so that the rarest selector is found. */
	for (size_t i = 0; changed && map_next(named, &i, &key, &p);) {
		r = p;
		if (!r->anchor)
			index_anchor(c, r);
	}
	return changed;
}

static void bury(struct cache *c, struct record *r, struct list *graves)
{
	r->gone = true;
	record_drop(c, r);
	list_append(graves, &r->link);
}

static void remove_entries(
	struct cache *c, const struct cache_update *u, struct map *named, struct list *graves)
{
	struct bytes key;
	void *p;

	for (size_t i = 0; i < u->removed.n; i++) {
		struct record *r = map_get_str(c->records, u->removed.v[i]);

		if (!r)
			continue;
		map_del_str(named, r->entry.id);
		bury(c, r, graves);
	}
	if (!u->full)
		return;
	for (size_t i = 0; map_next(c->records, &i, &key, &p);) {
		if (!map_get(named, key))
			bury(c, p, graves);
	}
}

/* ---- bundles ---- */

static bool root_trusted(const struct bundle *b, const struct x509_cert *cert)
{
	for (size_t i = 0; i < b->n_roots; i++) {
		if (bytes_equal(x509_der(b->roots[i].cert), x509_der(cert)))
			return !b->roots[i].tainted;
	}
	return false;
}

/* A root that was good is tainted or gone. */
static bool lost_root(const struct bundle *was, const struct bundle *is)
{
	for (size_t i = 0; i < was->n_roots; i++) {
		if (!was->roots[i].tainted && !root_trusted(is, was->roots[i].cert))
			return true;
	}
	return false;
}

static bool put_bundle(struct cache *c, struct bundle *b, bool *ret_lost_root)
{
	struct bundle *was = c->bundle;
	bool changed = !was || !bundle_equal_content(was, b);

	*ret_lost_root = was && changed && lost_root(was, b);
	c->bundle = bundle_ref(b);
	if (was)
		bundle_unref(was);
	return changed;
}

static bool put_federated(struct cache *c, const struct cache_update *u)
{
	struct map *named = map_new();
	struct bytes key;
	void *p;
	bool changed = false;

	for (size_t i = 0; i < u->n_federated; i++) {
		struct bundle *b = u->federated[i];
		struct bundle *was = map_get_str(c->federated, b->trust_domain);

		changed |= !was || !bundle_equal_content(was, b);
		map_put_str(c->federated, b->trust_domain, bundle_ref(b));
		if (was)
			bundle_unref(was);
		map_put_str(named, b->trust_domain, b);
	}
	for (size_t i = 0; i < u->removed_federated.n; i++) {
		struct bundle *was = map_del_str(c->federated, u->removed_federated.v[i]);

		if (was)
			bundle_unref(was);
		changed |= was != NULL;
	}
	for (size_t i = 0; u->full_federated && map_next(c->federated, &i, &key, &p);) {
		if (map_get(named, key))
			continue;
		map_del(c->federated, key);
		bundle_unref(p);
		changed = true;
	}
	map_free(named);
	return changed;
}

/* ---- applying ---- */

static void prefetch(struct cache *c, struct map *named)
{
	struct bytes key;
	void *p;

	for (size_t i = 0; map_next(named, &i, &key, &p);) {
		struct record *r = p;

		if (c->n_svids + c->n_queued + c->n_signing >= c->o.x509_max)
			return;
		if (r->svid || r->state != RECORD_IDLE || r->due || r->entry.store_svid ||
			r->entry.disable_x509_svid_prefetch)
			continue;
		sign_want(c, r, false);
	}
}

/* A changed hint or federation changes what a view says without changing what it matches. */
static void touch_replaced(struct cache *c, struct map *named)
{
	struct bytes key;
	void *p;

	for (size_t i = 0; map_next(named, &i, &key, &p);) {
		struct record *r = p;

		if (r->replaced)
			views_touch(c, r, false);
		r->replaced = false;
	}
}

void cache_apply(struct cache *c, struct cache_update *u)
{
	struct map *named = map_new();
	struct list graves;
	bool entries, bundles = false, lost = false;

	list_init(&graves);
	if (u->bundle)
		bundles = put_bundle(c, u->bundle, &lost);
	bundles |= put_federated(c, u);
	entries = put_entries(c, u, named);
	remove_entries(c, u, named, &graves);
	entries |= !list_empty(&graves);
	if (entries)
		views_rematch(c);
	touch_replaced(c, named);
	if (bundles)
		views_touch(c, NULL, false);
	list_each (r, &graves, struct record, link) {
		list_remove(&r->link);
		record_free(r);
	}
	prefetch(c, named);
	map_free(named);
	if (lost)
		cache_renew_untrusted(c);
	if ((entries || bundles) && c->o.changed)
		c->o.changed(c->o.arg);
}

/* ---- reading ---- */

size_t cache_count(const struct cache *c)
{
	return map_len(c->records);
}

size_t cache_count_svids(const struct cache *c)
{
	return c->n_svids;
}

const struct record *cache_find(const struct cache *c, const char *entry_id)
{
	return map_get_str(c->records, entry_id);
}

bool cache_next(const struct cache *c, size_t *cursor, const struct record **ret)
{
	struct bytes key;
	void *p;

	if (!map_next(c->records, cursor, &key, &p))
		return false;
	*ret = p;
	return true;
}

struct bundle *cache_bundle(const struct cache *c)
{
	return c->bundle;
}

struct bundle *cache_federated(const struct cache *c, const char *trust_domain)
{
	return map_get_str(c->federated, trust_domain);
}

bool cache_next_federated(const struct cache *c, size_t *cursor, struct bundle **ret)
{
	struct bytes key;
	void *p;

	if (!map_next(c->federated, cursor, &key, &p))
		return false;
	*ret = p;
	return true;
}

void cache_federates_with(const struct cache *c, struct strings *ret)
{
	struct map *seen = map_new();
	const struct record *r;

	for (size_t i = 0; cache_next(c, &i, &r);) {
		for (size_t k = 0; k < r->entry.federates_with.n; k++) {
			const char *td = r->entry.federates_with.v[k];

			if (!map_put_str(seen, td, c->views))
				strings_add(ret, td);
		}
	}
	map_free(seen);
}

/* ---- stored form ---- */

static void export_bundle(struct buf *plain, enum sealed_kind k, const struct bundle *b)
{
	Spire__Api__Types__Bundle *m = bundle_to_proto(b);
	AUTO_BUF struct buf rec = BUF_INIT;
	size_t n = spire__api__types__bundle__get_packed_size(m);

	if (buf_reserve(&rec, n)) {
		rec.len = spire__api__types__bundle__pack(m, rec.p);
		sealed_add(plain, k, buf_view(&rec));
	}
	spire__api__types__bundle__free_unpacked(m, NULL);
}

static void export_record(struct buf *plain, const struct record *r)
{
	Spire__Api__Types__Entry *m = entry_to_proto(&r->entry);
	AUTO_BUF struct buf rec = BUF_INIT_SECRET;

	if (buf_reserve(&rec, spire__api__types__entry__get_packed_size(m))) {
		rec.len = spire__api__types__entry__pack(m, rec.p);
		sealed_add(plain, SEALED_ENTRY, buf_view(&rec));
	}
	spire__api__types__entry__free_unpacked(m, NULL);
	if (!r->svid)
		return;
	buf_reset(&rec);
	sealed_add_part(&rec, bytes_str(r->entry.id));
	sealed_add_i64(&rec, r->entry.revision_number);
	sealed_add_part(&rec, buf_view(&r->svid->chain));
	sealed_add_part(&rec, buf_view(&r->svid->key));
	sealed_add(plain, SEALED_SVID, buf_view(&rec));
}

void cache_export(const struct cache *c, struct buf *plain)
{
	const struct record *r;
	struct bundle *b;

	if (c->bundle)
		export_bundle(plain, SEALED_BUNDLE, c->bundle);
	for (size_t i = 0; cache_next_federated(c, &i, &b);)
		export_bundle(plain, SEALED_FEDERATED, b);
	for (size_t i = 0; cache_next(c, &i, &r);)
		export_record(plain, r);
}

static void import_entry(struct bytes v, struct cache_update *u, size_t *cap)
{
	Spire__Api__Types__Entry *m = spire__api__types__entry__unpack(NULL, v.n, v.p);
	struct err e = ERR_INIT;

	if (!m)
		return;
	if (u->n_entries == *cap) {
		*cap = *cap ? 2 * *cap : 64;
		u->entries = xreallocarray(u->entries, *cap, sizeof(struct entry));
	}
	if (entry_from_proto(&u->entries[u->n_entries], m, &e) == 0)
		u->n_entries++;
	spire__api__types__entry__free_unpacked(m, NULL);
}

static void import_bundle(struct bytes v, bool own, struct cache_update *u)
{
	Spire__Api__Types__Bundle *m = spire__api__types__bundle__unpack(NULL, v.n, v.p);
	struct err e = ERR_INIT;
	struct bundle *b;

	if (!m)
		return;
	if (bundle_from_proto(m, &b, &e) == 0) {
		if (own && !u->bundle) {
			u->bundle = b;
		} else {
			u->federated = xreallocarray(
				u->federated, u->n_federated + 1, sizeof(struct bundle *));
			u->federated[u->n_federated++] = b;
		}
	}
	spire__api__types__bundle__free_unpacked(m, NULL);
}

/* An SVID is taken while it is valid and its entry is as it was when it was made. */
static void import_svid(struct cache *c, struct bytes v)
{
	struct bytes id, chain_der, key;
	struct x509_chain chain = { 0 };
	struct err e = ERR_INIT;
	struct svid *s = NULL;
	struct record *r;
	int64_t revision;

	if (!sealed_part(&v, &id) || !sealed_i64(&v, &revision) || !sealed_part(&v, &chain_der) ||
		!sealed_part(&v, &key))
		return;
	r = map_get(c->records, id);
	if (!r || r->entry.revision_number != revision)
		return;
	if (x509_chain_parse_der(&chain, chain_der, X509_MAX_CHAIN, &e) == 0) {
		struct bytes certs[X509_MAX_CHAIN];

		for (size_t i = 0; i < chain.n; i++)
			certs[i] = x509_der(chain.v[i]);
		if (svid_new(certs, chain.n, key, bytes_of(NULL, 0), r->entry.spiffe_id, &s, &e) ==
			0) {
			if (s->not_after > clock_wall().sec) {
				if (r->state == RECORD_QUEUED)
					sign_forget(c, r);
				sign_put(c, r, s);
			}
			svid_unref(s);
		}
	}
	x509_chain_deinit(&chain);
}

void cache_import(struct cache *c, struct bytes plain)
{
	struct cache_update u = { 0 };
	struct bytes rest = plain, v;
	enum sealed_kind k;
	size_t cap = 0;

	while (sealed_next(&rest, &k, &v)) {
		if (k == SEALED_ENTRY)
			import_entry(v, &u, &cap);
		if (k == SEALED_BUNDLE || k == SEALED_FEDERATED)
			import_bundle(v, k == SEALED_BUNDLE, &u);
	}
	cache_apply(c, &u);
	cache_update_deinit(&u);
	for (rest = plain; sealed_next(&rest, &k, &v);) {
		if (k == SEALED_SVID)
			import_svid(c, v);
	}
}

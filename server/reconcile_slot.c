/* What is declared against what the store has, entry by entry, and the writes that make them one.
 */
#include <stdlib.h>
#include <string.h>

#include "lib/metrics.h"
#include "server/reconcile_internal.h"

enum { READY_MAX = 4096 }; /* rendered entries that are kept until written; others are made again */

#define CONTENT_MASK                                                                               \
	(ENTRY_X509_TTL | ENTRY_JWT_TTL | ENTRY_FEDERATES | ENTRY_ADMIN | ENTRY_DOWNSTREAM |       \
		ENTRY_DNS | ENTRY_STORE_SVID | ENTRY_HINT)

static struct bytes key_of(const uint8_t key[KEY_SIZE])
{
	return bytes_of(key, KEY_SIZE);
}

/* ---- slots ---- */

static void slot_dirty(struct reconcile *r, struct slot *s)
{
	if (!s->dirty) {
		s->dirty = true;
		r->n_waiting++;
		list_append(&r->dirty_slots, &s->dirty_node);
	}
	reconcile_work_soon(r);
}

static void slot_clean(struct reconcile *r, struct slot *s)
{
	if (s->dirty)
		r->n_waiting--;
	s->dirty = false;
	list_remove(&s->dirty_node);
}

static void slot_fail(struct reconcile *r, struct slot *s, bool failed)
{
	if (s->failed == failed)
		return;
	s->failed = failed;
	r->stats.failed += failed ? 1 : (size_t)-1;
	list_remove(&s->failed_node);
	if (failed)
		list_append(&r->failed_slots, &s->failed_node);
}

static struct slot *slot_get(struct reconcile *r, const uint8_t key[KEY_SIZE])
{
	struct slot *s = map_get(r->slots, key_of(key));

	if (s)
		return s;
	s = xcalloc(1, sizeof(*s));
	memcpy(s->key, key, KEY_SIZE);
	list_init(&s->decls);
	list_init(&s->currents);
	list_init(&s->dirty_node);
	list_init(&s->failed_node);
	map_put(r->slots, key_of(key), s);
	return s;
}

static bool slot_release(struct reconcile *r, struct slot *s)
{
	if (s->busy || !list_empty(&s->decls) || !list_empty(&s->currents))
		return false;
	slot_clean(r, s);
	slot_fail(r, s, false);
	map_del(r->slots, key_of(s->key));
	free(s);
	return true;
}

/* The one that has the entry; NULL: nobody wants it. */
static struct decl *slot_winner(const struct slot *s)
{
	struct decl *best = NULL;

	list_each (d, &s->decls, struct decl, slot_node)
		if (!best || object_compare(d->by, best->by) < 0)
			best = d;
	return best;
}

static void set_flag(struct reconcile *r, struct decl *d, bool *flag, size_t *counter, bool v)
{
	if (*flag == v)
		return;
	*flag = v;
	*counter += v ? 1 : (size_t)-1;
	object_changed(r, d->by);
}

static void refuse(struct reconcile *r, struct decl *d, const char *why)
{
	set_flag(r, d, &d->refused, &d->by->failures, why != NULL);
	if (why || (d->by->failures == 0 && d->by->write_problem)) {
		object_set_problem(&d->by->write_problem, why);
		object_changed(r, d->by);
	}
}

static void slot_rank(struct reconcile *r, struct slot *s)
{
	struct decl *best = slot_winner(s);

	list_each (d, &s->decls, struct decl, slot_node) {
		set_flag(r, d, &d->set, &d->by->to_set, d == best);
		set_flag(r, d, &d->masked, &d->by->masked, d != best);
		if (d != best)
			refuse(r, d, NULL);
	}
}

/* ---- declarations ---- */

static void ready_drop(struct reconcile *r, struct decl *d)
{
	if (!d->ready)
		return;
	entry_deinit(d->ready);
	free(d->ready);
	d->ready = NULL;
	r->n_ready--;
}

static void ready_keep(struct reconcile *r, struct decl *d, struct entry *en)
{
	ready_drop(r, d);
	if (r->n_ready < READY_MAX) {
		d->ready = en;
		r->n_ready++;
		return;
	}
	entry_deinit(en);
	free(en);
}

struct decl *decl_new(struct reconcile_object *by, struct pod *p)
{
	struct decl *d = xcalloc(1, sizeof(*d));

	d->by = by;
	d->pod = p;
	list_init(&d->pod_node);
	list_init(&d->slot_node);
	list_append(&by->decls, &d->by_node);
	if (p)
		list_append(&p->decls, &d->pod_node);
	return d;
}

void decl_unset(struct reconcile *r, struct decl *d)
{
	struct slot *s = d->slot;

	ready_drop(r, d);
	if (!s)
		return;
	set_flag(r, d, &d->set, &d->by->to_set, false);
	set_flag(r, d, &d->masked, &d->by->masked, false);
	refuse(r, d, NULL);
	list_remove(&d->slot_node);
	d->slot = NULL;
	if (slot_release(r, s))
		return;
	slot_rank(r, s);
	slot_dirty(r, s);
}

void decl_set(struct reconcile *r, struct decl *d, struct entry *en)
{
	uint8_t key[KEY_SIZE], content[KEY_SIZE];
	struct slot *s;

	entry_key(en, key);
	entry_content(en, content);
	if (d->slot && memcmp(d->slot->key, key, KEY_SIZE) == 0 &&
		memcmp(d->content, content, KEY_SIZE) == 0 && !d->refused) {
		ready_keep(r, d, en);
		if (!d->slot->dirty)
			ready_drop(r, d);
		return;
	}
	if (d->slot && memcmp(d->slot->key, key, KEY_SIZE) != 0)
		decl_unset(r, d);
	memcpy(d->content, content, KEY_SIZE);
	ready_keep(r, d, en);
	s = slot_get(r, key);
	if (!d->slot) {
		d->slot = s;
		list_append(&s->decls, &d->slot_node);
	}
	s->took_over = false;
	slot_rank(r, s);
	slot_dirty(r, s);
}

void decl_free(struct reconcile *r, struct decl *d)
{
	struct reconcile_object *o = d->by;

	decl_unset(r, d);
	if (d->pod)
		o->selected--;
	if (d->failed)
		o->render_failures--;
	list_remove(&d->by_node);
	list_remove(&d->pod_node);
	free(d);
	object_changed(r, o);
}

/* Gives the winner's entry; false, and the reason told, when it cannot be made any more. */
static bool take_entry(struct reconcile *r, struct decl *d, struct entry *ret)
{
	struct err e;

	if (d->ready) {
		*ret = *d->ready;
		free(d->ready);
		d->ready = NULL;
		r->n_ready--;
		return true;
	}
	if (!d->pod) {
		*ret = entry_dup(&d->by->entry);
		return true;
	}
	if (render_pod(r, d->by, d->pod, ret, &e) == 0)
		return true;
	refuse(r, d, e.msg);
	return false;
}

/* ---- writes ---- */

enum write { WRITE_DELETE, WRITE_CREATE, WRITE_UPDATE };

struct batch {
	struct reconcile *r;
	enum write kind;
	struct slot **slots;
	struct entry *entries;
	char **ids;
	size_t n;
};

static struct batch *batch_new(struct reconcile *r, enum write kind)
{
	struct batch *b = xcalloc(1, sizeof(*b));

	b->r = r;
	b->kind = kind;
	b->slots = xcalloc(RECONCILE_BATCH, sizeof(struct slot *));
	b->entries = xcalloc(RECONCILE_BATCH, sizeof(*b->entries));
	b->ids = xcalloc(RECONCILE_BATCH, sizeof(char *));
	return b;
}

static void batch_free(struct batch *b)
{
	for (size_t i = 0; i < b->n; i++) {
		entry_deinit(&b->entries[i]);
		free(b->ids[i]);
	}
	free(b->slots);
	free(b->entries);
	free(b->ids);
	free(b);
}

/* s may be NULL: a delete that belongs to no slot. */
static void batch_add(struct batch *b, struct slot *s, const char *id, const struct entry *en)
{
	b->slots[b->n] = s;
	b->ids[b->n] = id ? xstrdup(id) : NULL;
	if (en)
		b->entries[b->n] = *en;
	b->n++;
	if (s)
		s->busy = true;
}

static const char *kind_name(enum write k)
{
	static const char *const names[] = { "deleted entry", "created entry", "updated entry" };

	return names[k];
}

static void count(struct reconcile *r, enum write k)
{
	r->stats.deleted += k == WRITE_DELETE;
	r->stats.created += k == WRITE_CREATE;
	r->stats.updated += k == WRITE_UPDATE;
}

static void note_ready(struct reconcile *r, const struct slot *s, enum write k)
{
	static struct metric *metric;
	const struct decl *d = slot_winner(s);

	if (!metric)
		metric = metric_histogram("assay_server_controller_ready_seconds",
			"From the event of a new or changed pod to its entry on the disk.", NULL);
	if (k == WRITE_DELETE || !d || !d->pod || !d->pod->since_ns)
		return;
	r->stats.last_ready_ns = clock_mono().ns - d->pod->since_ns;
	metric_observe(metric, (double)r->stats.last_ready_ns / NS_PER_SEC);
	d->pod->since_ns = 0;
}

/* An entry like it is there that does not bear our prefix: one that was made by hand or by another
 * controller for what the object declares too. It goes, and ours comes in its place. */
static bool take_over(
	struct reconcile *r, struct slot *s, const struct store_result *res, struct strings *ret)
{
	if (!res->similar || reconcile_owns(r, res->entry.id) || s->took_over)
		return false;
	s->took_over = true;
	log_event(LOG_INFO, "controller", "taking over an entry that an object declares",
		"entry_id", res->entry.id, "spiffe_id", res->entry.spiffe_id, NULL);
	strings_add(ret, res->entry.id);
	return true;
}

static void failed(
	struct reconcile *r, struct slot *s, enum write kind, const struct store_result *res)
{
	static struct log_limit limit;
	struct decl *d = slot_winner(s);
	AUTO(free)
	char *why = xasprintf("%s: %s", d && d->pod ? d->pod->key : "entry",
		res->similar ? "similar entry already exists" : res->message);

	r->stats.failures++;
	slot_fail(r, s, true);
	if (d)
		refuse(r, d, why);
	if (log_allowed(&limit, 5))
		log_event(LOG_ERROR, "controller", "could not write an entry", "not",
			kind_name(kind), "object", d ? d->by->name : NULL, "error", why, NULL);
}

static void one_done(
	struct batch *b, size_t i, const struct store_result *res, struct strings *taken)
{
	struct reconcile *r = b->r;
	struct slot *s = b->slots[i];
	bool gone = b->kind == WRITE_DELETE && res->code == ERR_NOT_FOUND;

	if (res->code == 0) {
		count(r, b->kind);
		log_event(LOG_DEBUG, "controller", kind_name(b->kind), "entry_id",
			res->entry.id ? res->entry.id : b->ids[i], "spiffe_id",
			res->entry.spiffe_id, "parent_id", res->entry.parent_id, NULL);
	}
	if (!s)
		return;
	s->busy = false;
	if (res->code == 0 || gone) {
		struct decl *d = slot_winner(s);

		note_ready(r, s, b->kind);
		slot_fail(r, s, false);
		if (d) {
			refuse(r, d, NULL);
			if (!d->pod)
				object_changed(r, d->by);
		}
	} else if (b->kind == WRITE_CREATE && take_over(r, s, res, taken)) {
		slot_dirty(r, s);
	} else {
		failed(r, s, b->kind, res);
	}
	slot_release(r, s);
}

static void taken_done(void *arg, struct store_result *res, size_t n)
{
	struct reconcile *r = arg;

	(void)res;
	(void)n;
	r->batches--;
	reconcile_work_soon(r);
}

static void batch_done(void *arg, struct store_result *res, size_t n)
{
	struct batch *b = arg;
	struct reconcile *r = b->r;
	struct strings taken = { .n = 0 };

	r->batches--;
	for (size_t i = 0; i < n; i++)
		one_done(b, i, &res[i], &taken);
	batch_free(b);
	if (taken.n && reconcile_may_write(r)) {
		/* Both writes go into one transaction, so that no agent sees the gap. */
		r->batches++;
		store_entries_delete(
			r->api->store, (const char *const *)taken.v, taken.n, taken_done, r);
		slot_flush(r);
	}
	strings_deinit(&taken);
	reconcile_work_soon(r);
}

static void batch_send(struct batch *b)
{
	struct reconcile *r = b->r;

	if (!b->n) {
		batch_free(b);
		return;
	}
	r->batches++;
	if (b->kind == WRITE_DELETE)
		store_entries_delete(
			r->api->store, (const char *const *)b->ids, b->n, batch_done, b);
	else if (b->kind == WRITE_CREATE)
		store_entries_create(r->api->store, b->entries, b->n, batch_done, b);
	else
		store_entries_update(r->api->store, b->entries, b->n, CONTENT_MASK, batch_done, b);
}

static void create(struct reconcile *r, struct batch *b, struct slot *s, struct decl *d)
{
	struct entry en;
	char id[37];

	if (!take_entry(r, d, &en)) {
		slot_fail(r, s, true);
		return;
	}
	entry_new_id(id);
	free(en.id);
	en.id = xasprintf("%s%s", r->prefix, id);
	batch_add(b, s, NULL, &en);
}

static void update(
	struct reconcile *r, struct batch *b, struct slot *s, struct decl *d, const char *id)
{
	struct entry en;

	if (!take_entry(r, d, &en)) {
		slot_fail(r, s, true);
		return;
	}
	free(en.id);
	en.id = xstrdup(id);
	batch_add(b, s, NULL, &en);
}

/* What is to be done about one slot goes into one of the batches. */
static void settle(struct reconcile *r, struct slot *s, struct batch *b[static 3])
{
	struct decl *d = slot_winner(s);
	struct current *c = list_empty(&s->currents)
				    ? NULL
				    : container_of(s->currents.next, struct current, slot_node);

	slot_clean(r, s);
	if (!d && c) {
		batch_add(b[WRITE_DELETE], s, c->id, NULL);
	} else if (d && !c) {
		create(r, b[WRITE_CREATE], s, d);
	} else if (d && memcmp(d->content, c->content, KEY_SIZE) != 0) {
		update(r, b[WRITE_UPDATE], s, d, c->id);
	} else if (d && c->slot_node.next != &s->currents) { /* two that became alike */
		batch_add(b[WRITE_DELETE], s,
			container_of(c->slot_node.next, struct current, slot_node)->id, NULL);
	} else if (d) {
		ready_drop(r, d);
		slot_fail(r, s, false);
		refuse(r, d, NULL);
	} else {
		slot_release(r, s);
	}
}

static void flush_some(struct reconcile *r)
{
	struct batch *b[3];
	size_t n = 0;

	for (int k = 0; k < 3; k++)
		b[k] = batch_new(r, (enum write)k);
	while (r->cleanups.n && n < RECONCILE_BATCH) {
		batch_add(b[WRITE_DELETE], NULL, r->cleanups.v[--r->cleanups.n], NULL);
		free(r->cleanups.v[r->cleanups.n]);
		n++;
	}
	list_each (s, &r->dirty_slots, struct slot, dirty_node) {
		/* What nobody wants may be wanted by a pod that was not looked at yet. */
		if (s->busy || (list_empty(&s->decls) && !list_empty(&r->dirty_pods)))
			continue;
		if (++n > RECONCILE_BATCH) {
			/* Those looked at may need no write whose end would call again. */
			reconcile_work_soon(r);
			break;
		}
		settle(r, s, b);
	}
	/* Deletes first, and all in a row: the store commits them together. */
	for (int k = 0; k < 3; k++)
		batch_send(b[k]);
}

void slot_flush(struct reconcile *r)
{
	if (!reconcile_may_write(r) || r->batches >= RECONCILE_BATCHES_MAX)
		return;
	if (!list_empty(&r->dirty_slots) || r->cleanups.n)
		flush_some(r);
}

void slot_retry(struct reconcile *r)
{
	list_each (s, &r->failed_slots, struct slot, failed_node) {
		s->took_over = false;
		slot_dirty(r, s);
	}
}

/* ---- what the store has ---- */

bool reconcile_owns(const struct reconcile *r, const char *entry_id)
{
	return strncmp(entry_id, r->prefix, strlen(r->prefix)) == 0;
}

static bool is_join_token(const struct entry *en)
{
	const char *path = strstr(en->parent_id, "/spire/agent/join_token/");

	for (size_t i = 0; path && i < en->selectors.n; i++)
		if (strcmp(en->selectors.v[i].type, "spiffe_id") == 0)
			return true;
	return false;
}

static bool to_clean_up(const struct reconcile *r, const struct entry *en)
{
	if (!r->cleanup || is_join_token(en))
		return false;
	if (!*r->cleanup)
		return !strchr(en->id, '.');
	return strncmp(en->id, r->cleanup, strlen(r->cleanup)) == 0;
}

static void current_detach(struct reconcile *r, struct current *c)
{
	struct slot *s = c->slot;

	if (!s)
		return;
	list_remove(&c->slot_node);
	c->slot = NULL;
	if (!slot_release(r, s))
		slot_dirty(r, s);
}

static void current_gone(struct reconcile *r, const char *id)
{
	struct current *c = map_del_str(r->currents, id);

	if (!c)
		return;
	current_detach(r, c);
	free(c->id);
	free(c);
}

void reconcile_entry(struct reconcile *r, const char *id, const struct entry *en)
{
	uint8_t key[KEY_SIZE];
	struct current *c;

	if (!reconcile_owns(r, id)) {
		if (en && to_clean_up(r, en)) {
			strings_add(&r->cleanups, id);
			reconcile_work_soon(r);
		}
		return;
	}
	if (!en) {
		current_gone(r, id);
		return;
	}
	c = map_get_str(r->currents, id);
	if (!c) {
		c = xcalloc(1, sizeof(*c));
		c->id = xstrdup(id);
		list_init(&c->slot_node);
		map_put_str(r->currents, id, c);
	}
	entry_key(en, key);
	entry_content(en, c->content);
	if (c->slot && memcmp(c->slot->key, key, KEY_SIZE) != 0)
		current_detach(r, c);
	if (!c->slot) {
		c->slot = slot_get(r, key);
		list_append(&c->slot->currents, &c->slot_node);
	}
	slot_dirty(r, c->slot);
}

static bool seed_one(void *arg, const struct entry *en)
{
	struct reconcile *r = arg;

	if (reconcile_owns(r, en->id) || r->cleanup)
		reconcile_entry(r, en->id, en);
	return true;
}

void slot_seed(struct reconcile *r)
{
	struct entries_filter all = { .downstream = -1 };
	char *token = NULL;
	struct err e;

	if (entries_list(r->api->entries, &all, "", seed_one, r, &token, &e))
		log_event(LOG_ERROR, "controller", "could not list entries", "error", e.msg, NULL);
	free(token);
}

void slot_free_all(struct reconcile *r)
{
	struct bytes key;
	void *v;

	for (size_t i = 0; map_next(r->currents, &i, &key, &v);) {
		struct current *c = v;

		current_detach(r, c);
		free(c->id);
		free(c);
	}
	INVARIANT(map_len(r->slots) == 0);
	map_free(r->currents);
	map_free(r->slots);
}

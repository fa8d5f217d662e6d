#include "server/store.h"

#include <stdlib.h>
#include <string.h>

#include "lib/log.h"
#include "server/store_internal.h"

struct store {
	struct loop *loop;
	struct lane *lane;
	struct db *db;
	struct store_observer observer;
	struct list ops; /* not ended, in order */
	uint64_t change;
	bool maintaining;
	bool closing;
};

/* ---- operations ---- */

static void effect_deinit(struct effect *f)
{
	if (f->entry && !f->entry_is_result) {
		entry_deinit(f->entry);
		free(f->entry);
	}
	if (f->node) {
		node_deinit(f->node);
		free(f->node);
	}
	if (f->bundle)
		bundle_unref(f->bundle);
	if (f->relationship) {
		relationship_deinit(f->relationship);
		free(f->relationship);
	}
	free(f->key);
}

static void op_free(struct op *o)
{
	for (size_t i = 0; i < o->n_effects; i++)
		effect_deinit(&o->effects[i]);
	for (size_t i = 0; i < o->n; i++) {
		entry_deinit(&o->results[i].entry);
		free(o->results[i].message);
	}
	free(o->effects);
	free(o->results);
	free(o->key);
	node_deinit(&o->node);
	free(o->expect_serial);
	free(o->token.token);
	entry_deinit(&o->alias);
	relationship_deinit(&o->relationship);
	if (o->bundle)
		bundle_unref(o->bundle);
	buf_deinit(&o->blob);
	free(o->message);
	free(o);
}

static void observe(struct store *s, const struct effect *f)
{
	const struct store_observer *o = &s->observer;

	INVARIANT(f->change == s->change + 1); /* the numbers have no gaps */
	s->change = f->change;
	switch (f->kind) {
	case CHANGE_ENTRY:
		if (o->entry)
			o->entry(o->arg, f->change, f->key, f->entry);
		break;
	case CHANGE_NODE:
		if (o->node)
			o->node(o->arg, f->change, f->key, f->node);
		break;
	case CHANGE_BUNDLE:
		if (o->bundle)
			o->bundle(o->arg, f->change, f->key, f->bundle);
		break;
	case CHANGE_RELATIONSHIP:
		if (o->relationship)
			o->relationship(o->arg, f->change, f->key, f->relationship);
		break;
	case CHANGE_TOKEN:
	default:
		break;
	}
}

static void maintain(struct store *s);

static void maintained(struct store *s, const struct op *o, const char *msg)
{
	s->maintaining = false;
	if (o->code)
		log_event(LOG_DEBUG, "store", "maintenance failed", "error", msg, NULL);
}

/* Ends an operation on the loop; the memory is freed by op_done, which the lane posted. */
static void op_end(struct op *o)
{
	struct store *s = o->store;
	const char *msg = o->message ? o->message : "";

	if (o->ended)
		return;
	o->ended = true;
	list_remove(&o->link);
	for (size_t i = 0; i < o->n_effects; i++)
		observe(s, &o->effects[i]);
	if (o->kind == OP_MAINTAIN)
		maintained(s, o, msg);
	/* A failed one is tried again after the next write. */
	if (s && !s->closing && !(o->kind == OP_MAINTAIN && o->code))
		maintain(s);
	if (o->done_results)
		o->done_results(o->arg, o->results, o->n);
	if (o->done_count)
		o->done_count(o->arg, o->code, msg, o->deleted);
	if (o->done)
		o->done(o->arg, o->code, msg);
}

static void op_done(void *arg)
{
	op_end(arg);
	op_free(arg);
}

static struct op *op_new(struct store *s, enum op_kind kind, void *arg)
{
	struct op *o = xcalloc(1, sizeof(*o));

	o->store = s;
	o->kind = kind;
	o->arg = arg;
	o->blob = BUF_INIT;
	return o;
}

void op_fail(struct op *o, int code, const char *msg)
{
	o->code = code;
	free(o->message);
	o->message = xstrdup(msg);
	for (size_t i = 0; i < o->n; i++) {
		o->results[i].code = code;
		free(o->results[i].message);
		o->results[i].message = xstrdup(msg);
	}
	for (size_t i = 0; i < o->n_effects; i++)
		effect_deinit(&o->effects[i]);
	o->n_effects = 0;
	o->deleted = 0;
}

static void op_submit(struct op *o)
{
	struct store *s = o->store;

	if (!s->closing) {
		list_append(&s->ops, &o->link);
		lane_job(s->lane, NULL, op_done, o);
		return;
	}
	/* Asked for by a done function while the store closes. */
	list_init(&o->link);
	op_fail(o, ERR_UNAVAILABLE, "the datastore is closed");
	o->store = NULL;
	loop_post(s->loop, op_done, o);
}

static void batch(void *ctx, void **args, int n)
{
	struct store *s = ctx;

	db_batch(s->db, (struct op **)args, n);
}

/* Trims the change log and moves the write-ahead log into the file: while nothing else waits, as
 * long as that is possible. */
static void maintain(struct store *s)
{
	enum db_wants want = db_wants(s->db);

	if (s->maintaining || want == DB_WANTS_NOTHING ||
		(want == DB_WANTS_REST && !list_empty(&s->ops)))
		return;
	s->maintaining = true;
	op_submit(op_new(s, OP_MAINTAIN, NULL));
}

/* ---- opening and closing ---- */

int store_open(struct loop *l, const char *path, const struct store_observer *o, struct store **ret,
	struct err *e)
{
	struct db *d = NULL;
	struct store *s;
	int r = db_open(path, &d, e);

	if (r)
		return r;
	s = xcalloc(1, sizeof(*s));
	s->loop = l;
	s->db = d;
	s->observer = *o;
	s->change = db_change(d);
	list_init(&s->ops);
	s->lane = lane_new_batch(l, "store", batch, s, STORE_BATCH_MAX);
	*ret = s;
	return 0;
}

int store_load(struct store *s, struct err *e)
{
	INVARIANT(list_empty(&s->ops));
	return db_load(s->db, &s->observer, e);
}

void store_close(struct store *s)
{
	if (!s)
		return;
	s->closing = true;
	lane_free(s->lane);
	list_each (o, &s->ops, struct op, link)
		op_end(o);
	db_close(s->db);
	free(s);
}

const char *store_epoch(const struct store *s)
{
	return db_epoch(s->db);
}

uint64_t store_change(const struct store *s)
{
	return s->change;
}

int store_blob_get(struct store *s, const char *name, struct buf *ret, struct err *e)
{
	INVARIANT(list_empty(&s->ops));
	return db_blob_get(s->db, name, ret, e);
}

void store_stats(const struct store *s, struct store_stats *ret)
{
	db_stats(s->db, ret);
}

/* ---- writes: copy, then off to the lane ---- */

static struct op *op_entries(struct store *s, enum op_kind kind, const struct entry *v, size_t n,
	void (*done)(void *arg, struct store_result *r, size_t n), void *arg)
{
	struct op *o = op_new(s, kind, arg);

	o->results = xcalloc(n, sizeof(o->results[0]));
	o->n = n;
	o->done_results = done;
	for (size_t i = 0; i < n; i++)
		o->results[i].entry = entry_dup(&v[i]);
	return o;
}

void store_entries_create(struct store *s, struct entry *v, size_t n,
	void (*done)(void *arg, struct store_result *r, size_t n), void *arg)
{
	op_submit(op_entries(s, OP_ENTRIES_CREATE, v, n, done, arg));
}

void store_entries_update(struct store *s, struct entry *v, size_t n, unsigned mask,
	void (*done)(void *arg, struct store_result *r, size_t n), void *arg)
{
	struct op *o = op_entries(s, OP_ENTRIES_UPDATE, v, n, done, arg);

	o->mask = mask;
	op_submit(o);
}

void store_entries_delete(struct store *s, const char *const *ids, size_t n,
	void (*done)(void *arg, struct store_result *r, size_t n), void *arg)
{
	struct op *o = op_entries(s, OP_ENTRIES_DELETE, NULL, 0, done, arg);

	o->results = xreallocarray(o->results, n, sizeof(o->results[0]));
	o->n = n;
	for (size_t i = 0; i < n; i++)
		o->results[i] = (struct store_result){ .entry = { .id = xstrdup(ids[i]) } };
	op_submit(o);
}

void store_entries_prune(struct store *s, int64_t now,
	void (*done)(void *arg, int code, const char *msg, size_t deleted), void *arg)
{
	struct op *o = op_new(s, OP_ENTRIES_PRUNE, arg);

	o->time = now;
	o->done_count = done;
	op_submit(o);
}

static struct op *op_simple(
	struct store *s, enum op_kind kind, const char *key, store_done *done, void *arg)
{
	struct op *o = op_new(s, kind, arg);

	o->key = key ? xstrdup(key) : NULL;
	o->done = done;
	return o;
}

void store_node_put(struct store *s, const struct node *n, store_done *done, void *arg)
{
	struct op *o = op_simple(s, OP_NODE_PUT, n->spiffe_id, done, arg);

	o->node = node_dup(n);
	selectors_normalize(&o->node.selectors);
	op_submit(o);
}

void store_node_update(struct store *s, const char *spiffe_id, const struct node_update *u,
	store_done *done, void *arg)
{
	struct op *o = op_simple(s, OP_NODE_UPDATE, spiffe_id, done, arg);

	o->node.serial = xstrdup(u->serial ? u->serial : "");
	o->node.new_serial = xstrdup(u->new_serial ? u->new_serial : "");
	o->node.agent_version = xstrdup(u->agent_version ? u->agent_version : "");
	o->node.expires_at = u->expires_at ? *u->expires_at : 0;
	o->node.new_expires_at = u->new_expires_at ? *u->new_expires_at : 0;
	o->node.can_reattest = u->can_reattest && *u->can_reattest;
	o->node_fields = (u->serial ? NODE_SERIAL : 0) | (u->new_serial ? NODE_NEW_SERIAL : 0) |
			 (u->agent_version ? NODE_AGENT_VERSION : 0) |
			 (u->expires_at ? NODE_EXPIRES_AT : 0) |
			 (u->new_expires_at ? NODE_NEW_EXPIRES_AT : 0) |
			 (u->can_reattest ? NODE_CAN_REATTEST : 0);
	o->expect_serial = u->expect_serial ? xstrdup(u->expect_serial) : NULL;
	op_submit(o);
}

void store_node_delete(struct store *s, const char *spiffe_id, store_done *done, void *arg)
{
	op_submit(op_simple(s, OP_NODE_DELETE, spiffe_id, done, arg));
}

void store_nodes_prune(struct store *s, int64_t expired_before, bool tofu_too, int limit,
	void (*done)(void *arg, int code, const char *msg, size_t deleted), void *arg)
{
	struct op *o = op_new(s, OP_NODES_PRUNE, arg);

	o->time = expired_before;
	o->flag = tofu_too;
	o->limit = limit;
	o->done_count = done;
	op_submit(o);
}

void store_token_create(struct store *s, const struct join_token *t, const struct entry *alias,
	store_done *done, void *arg)
{
	struct op *o = op_simple(s, OP_TOKEN_CREATE, t->token, done, arg);

	o->token = (struct join_token){ .token = xstrdup(t->token), .expires_at = t->expires_at };
	if (alias && alias->spiffe_id) {
		o->alias = entry_dup(alias);
		o->have_alias = true;
	}
	op_submit(o);
}

void store_token_take(struct store *s, const char *token, int64_t now, store_done *done, void *arg)
{
	struct op *o = op_simple(s, OP_TOKEN_TAKE, token, done, arg);

	o->time = now;
	op_submit(o);
}

void store_tokens_prune(struct store *s, int64_t now, store_done *done, void *arg)
{
	struct op *o = op_simple(s, OP_TOKENS_PRUNE, NULL, done, arg);

	o->time = now;
	op_submit(o);
}

void store_bundle_put(
	struct store *s, struct bundle *b, uint64_t expect_sequence, store_done *done, void *arg)
{
	struct op *o = op_simple(s, OP_BUNDLE_PUT, b->trust_domain, done, arg);

	o->bundle = bundle_ref(b);
	o->expect_sequence = expect_sequence;
	op_submit(o);
}

void store_bundle_delete(struct store *s, const char *trust_domain, enum bundle_delete mode,
	store_done *done, void *arg)
{
	struct op *o = op_simple(s, OP_BUNDLE_DELETE, trust_domain, done, arg);

	o->delete_mode = mode;
	op_submit(o);
}

static struct op *op_relationship(struct store *s, enum op_kind kind, const struct relationship *r,
	struct bundle *b, store_done *done, void *arg)
{
	struct op *o = op_simple(s, kind, r->trust_domain, done, arg);

	o->relationship = relationship_dup(r);
	o->bundle = b ? bundle_ref(b) : NULL;
	o->expect_sequence = STORE_SEQUENCE_GIVEN;
	return o;
}

void store_relationship_create(struct store *s, const struct relationship *r, struct bundle *b,
	store_done *done, void *arg)
{
	op_submit(op_relationship(s, OP_RELATIONSHIP_CREATE, r, b, done, arg));
}

void store_relationship_update(struct store *s, const struct relationship *r, unsigned mask,
	struct bundle *b, store_done *done, void *arg)
{
	struct op *o = op_relationship(s, OP_RELATIONSHIP_UPDATE, r, b, done, arg);

	o->mask = mask;
	op_submit(o);
}

void store_relationship_delete(
	struct store *s, const char *trust_domain, store_done *done, void *arg)
{
	op_submit(op_simple(s, OP_RELATIONSHIP_DELETE, trust_domain, done, arg));
}

void store_blob_put(struct store *s, const char *name, struct bytes v, store_done *done, void *arg)
{
	struct op *o = op_simple(s, OP_BLOB_PUT, name, done, arg);

	buf_bytes(&o->blob, v);
	op_submit(o);
}

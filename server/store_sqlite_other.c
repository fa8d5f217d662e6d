/* Nodes, join tokens, bundles and blobs in the SQLite store. */
#include <stdlib.h>
#include <string.h>

#include "server/store_sqlite.h"
#include "spire/api/types/bundle.pb-c.h"

enum { TOKENS_PRUNE_MAX = 10000, NODES_PRUNE_DEFAULT = 1000 };

static char *borrow(const char *s)
{
	return (char *)(uintptr_t)s;
}

/* ---- nodes ---- */

static int node_row(struct db *d, sqlite3_stmt *st, struct node *ret, struct err *e)
{
	int r = entry_unpack(&d->row, db_column_bytes(st, 8), e);

	if (r)
		return err_wrap(
			e, "datastore: %s is damaged: node %s", d->path, db_column_text(st, 0));
	*ret = (struct node){
		.num = sqlite3_column_int64(st, 9),
		.spiffe_id = borrow(db_column_text(st, 0)),
		.attestation_type = borrow(db_column_text(st, 1)),
		.serial = borrow(db_column_text(st, 2)),
		.expires_at = sqlite3_column_int64(st, 3),
		.new_serial = borrow(db_column_text(st, 4)),
		.new_expires_at = sqlite3_column_int64(st, 5),
		.can_reattest = sqlite3_column_int(st, 6) != 0,
		.agent_version = borrow(db_column_text(st, 7)),
		.selectors = d->row.en.selectors,
	};
	return 0;
}

static int node_read(struct db *d, const char *id, struct node *ret, bool *ret_found, struct err *e)
{
	sqlite3_stmt *st = db_statement(d, SQL_NODE_GET);
	struct node view;
	int r;

	*ret_found = false;
	if (!st)
		return db_error(d, e);
	db_text(st, 1, id);
	r = db_step(d, st);
	if (r == SQLITE_ROW) {
		r = node_row(d, st, &view, e);
		if (!r) {
			*ret = node_dup(&view);
			*ret_found = true;
		}
	} else {
		r = r == SQLITE_DONE ? 0 : db_error(d, e);
	}
	sqlite3_reset(st);
	return r;
}

/* The number that a node got. */
static int node_num(struct db *d, struct node *n, struct err *e)
{
	sqlite3_stmt *st = db_statement(d, SQL_NODE_NUM);
	int r;

	if (!st)
		return db_error(d, e);
	db_text(st, 1, n->spiffe_id);
	r = db_step(d, st) == SQLITE_ROW ? 0 : db_error(d, e);
	if (!r)
		n->num = sqlite3_column_int64(st, 0);
	sqlite3_reset(st);
	return r;
}

int db_node_insert(struct db *d, const struct node *n, struct err *e)
{
	struct bytes sel;

	buf_reset(&d->packed);
	selectors_pack(&n->selectors, &d->packed);
	sel = buf_view(&d->packed);
	return db_run(d, e, SQL_NODE_PUT, "tttitiitb", n->spiffe_id, n->attestation_type, n->serial,
		n->expires_at, n->new_serial, n->new_expires_at, (int64_t)n->can_reattest,
		n->agent_version, &sel);
}

/* The node moves into the effect. */
static int node_write(struct db *d, struct op *o, struct node *n, struct err *e)
{
	struct effect *f;
	int r = db_node_insert(d, n, e);

	if (!r && !n->num)
		r = node_num(d, n, e);
	if (r)
		return r;
	f = db_effect(d, o, CHANGE_NODE, n->spiffe_id, e);
	if (!f)
		return e->code;
	f->node = xmemdup(n, sizeof(*n));
	*n = (struct node){ .spiffe_id = NULL };
	return 0;
}

static void take_text(char **to, char **from)
{
	char *t = *to;

	*to = *from;
	*from = t;
}

static void node_merge(struct node *to, struct op *o)
{
	if (o->node_fields & NODE_SERIAL)
		take_text(&to->serial, &o->node.serial);
	if (o->node_fields & NODE_NEW_SERIAL)
		take_text(&to->new_serial, &o->node.new_serial);
	if (o->node_fields & NODE_AGENT_VERSION)
		take_text(&to->agent_version, &o->node.agent_version);
	if (o->node_fields & NODE_EXPIRES_AT)
		to->expires_at = o->node.expires_at;
	if (o->node_fields & NODE_NEW_EXPIRES_AT)
		to->new_expires_at = o->node.new_expires_at;
	if (o->node_fields & NODE_CAN_REATTEST)
		to->can_reattest = o->node.can_reattest;
}

static int node_update(struct db *d, struct op *o, struct err *e)
{
	struct node n = { .spiffe_id = NULL };
	bool found;
	int r = node_read(d, o->key, &n, &found, e);

	if (r)
		return r;
	if (!found)
		return db_refuse(o, ERR_NOT_FOUND, "agent not found");
	if (o->expect_serial && strcmp(o->expect_serial, n.serial) != 0 &&
		strcmp(o->expect_serial, n.new_serial) != 0) {
		node_deinit(&n);
		return db_refuse(o, ERR_ABORTED, "the agent's serial number has changed");
	}
	node_merge(&n, o);
	r = node_write(d, o, &n, e);
	node_deinit(&n);
	return r;
}

/* The alias that CreateJoinToken made for the node goes with it; entries that people made for it
 * stay. */
static int delete_token_aliases(struct db *d, struct op *o, const char *node_id, struct err *e)
{
	for (;;) {
		sqlite3_stmt *st = db_statement(d, SQL_ENTRY_TOKEN_ALIAS);
		AUTO(free) char *id = NULL;
		int64_t num = 0;
		int r;

		if (!st)
			return db_error(d, e);
		db_text(st, 1, node_id);
		r = db_step(d, st);
		if (r == SQLITE_ROW) {
			num = sqlite3_column_int64(st, 0);
			id = xstrdup(db_column_text(st, 1));
		}
		sqlite3_reset(st);
		if (r == SQLITE_DONE)
			return 0;
		r = r == SQLITE_ROW ? db_entry_delete(d, o, num, id, e) : db_error(d, e);
		if (r)
			return r;
	}
}

static int node_delete(struct db *d, struct op *o, const char *id, bool *ret_found, struct err *e)
{
	struct node n;
	int r = node_read(d, id, &n, ret_found, e);

	if (r || !*ret_found)
		return r;
	if (strcmp(n.attestation_type, "join_token") == 0)
		r = delete_token_aliases(d, o, id, e);
	node_deinit(&n);
	if (!r)
		r = db_run(d, e, SQL_NODE_DELETE, "t", id);
	if (!r && !db_effect(d, o, CHANGE_NODE, id, e))
		r = e->code;
	return r;
}

static int node_delete_op(struct db *d, struct op *o, struct err *e)
{
	bool found;
	int r = node_delete(d, o, o->key, &found, e);

	return r || found ? r : db_refuse(o, ERR_NOT_FOUND, "agent not found");
}

static int column_of_texts(struct db *d, sqlite3_stmt *st, struct strings *ret, struct err *e)
{
	int r;

	while ((r = db_step(d, st)) == SQLITE_ROW)
		strings_add(ret, db_column_text(st, 0));
	r = r == SQLITE_DONE ? 0 : db_error(d, e);
	sqlite3_reset(st);
	return r;
}

static int nodes_prune(struct db *d, struct op *o, struct err *e)
{
	sqlite3_stmt *st = db_statement(d, SQL_NODE_EXPIRED);
	struct strings ids = { .n = 0 };
	bool found;
	int r;

	if (!st)
		return db_error(d, e);
	sqlite3_bind_int64(st, 1, o->time);
	sqlite3_bind_int(st, 2, o->flag);
	sqlite3_bind_int(st, 3, o->limit > 0 ? o->limit : NODES_PRUNE_DEFAULT);
	r = column_of_texts(d, st, &ids, e);
	for (size_t i = 0; i < ids.n && !r; i++) {
		r = node_delete(d, o, ids.v[i], &found, e);
		o->deleted++;
	}
	strings_deinit(&ids);
	return r;
}

/* ---- join tokens ---- */

static int token_create(struct db *d, struct op *o, struct err *e)
{
	struct err refusal = ERR_INIT;
	int r = db_run(d, e, SQL_TOKEN_INSERT, "ti", o->token.token, o->token.expires_at);

	if (r && db_is_duplicate(d))
		return db_refuse(o, ERR_EXISTS, "join token already exists");
	if (!r && !db_effect(d, o, CHANGE_TOKEN, "", e))
		r = e->code;
	if (r || !o->have_alias)
		return r;
	r = db_entry_create(d, o, &o->alias, false, &refusal, e);
	if (r || !refusal.code)
		return r;
	/* Refused as a whole: without effects, the savepoint takes the token back. */
	free(o->effects[0].key);
	o->n_effects = 0;
	return db_refuse(o, refusal.code, "%s", refusal.msg);
}

/* The token itself stays out of the change log: the log may be read by more people. */
static int token_delete(struct db *d, struct op *o, const char *token, struct err *e)
{
	int r = db_run(d, e, SQL_TOKEN_DELETE, "t", token);

	if (!r && !db_effect(d, o, CHANGE_TOKEN, "", e))
		r = e->code;
	return r;
}

static int token_take(struct db *d, struct op *o, struct err *e)
{
	sqlite3_stmt *st = db_statement(d, SQL_TOKEN_GET);
	int64_t expires_at = 0;
	int r;

	if (!st)
		return db_error(d, e);
	db_text(st, 1, o->key);
	r = db_step(d, st);
	if (r == SQLITE_ROW)
		expires_at = sqlite3_column_int64(st, 0);
	sqlite3_reset(st);
	if (r == SQLITE_DONE)
		return db_refuse(
			o, ERR_INVALID, "join token does not exist or has already been used");
	if (r != SQLITE_ROW)
		return db_error(d, e);
	r = token_delete(d, o, o->key, e);
	if (!r && expires_at < o->time)
		return db_refuse(o, ERR_INVALID, "join token expired");
	return r;
}

static int tokens_prune(struct db *d, struct op *o, struct err *e)
{
	sqlite3_stmt *st = db_statement(d, SQL_TOKEN_EXPIRED);
	struct strings v = { .n = 0 };
	int r;

	if (!st)
		return db_error(d, e);
	sqlite3_bind_int64(st, 1, o->time);
	sqlite3_bind_int(st, 2, TOKENS_PRUNE_MAX);
	r = column_of_texts(d, st, &v, e);
	for (size_t i = 0; i < v.n && !r; i++)
		r = token_delete(d, o, v.v[i], e);
	strings_deinit(&v);
	return r;
}

/* ---- bundles ---- */

static int bundle_sequence(
	struct db *d, const char *td, uint64_t *ret, int64_t *ret_num, struct err *e)
{
	sqlite3_stmt *st = db_statement(d, SQL_BUNDLE_HAS);
	int r;

	if (!st)
		return db_error(d, e);
	db_text(st, 1, td);
	r = db_step(d, st);
	*ret_num = r == SQLITE_ROW ? sqlite3_column_int64(st, 1) : 0;
	*ret = r == SQLITE_ROW ? (uint64_t)sqlite3_column_int64(st, 0) : 0;
	r = r == SQLITE_ROW || r == SQLITE_DONE ? 0 : db_error(d, e);
	sqlite3_reset(st);
	return r;
}

static void bundle_pack(const struct bundle *b, struct buf *ret)
{
	Spire__Api__Types__Bundle *m = bundle_to_proto(b);
	size_t n = spire__api__types__bundle__get_packed_size(m);

	buf_reset(ret);
	if (buf_reserve(ret, n))
		ret->len = spire__api__types__bundle__pack(m, ret->p);
	INVARIANT(!ret->failed);
	spire__api__types__bundle__free_unpacked(m, NULL);
}

int db_bundle_insert(struct db *d, const struct bundle *b, struct err *e)
{
	struct bytes data;

	bundle_pack(b, &d->packed);
	data = buf_view(&d->packed);
	return db_run(d, e, SQL_BUNDLE_INSERT, "ibt", (int64_t)b->sequence, &data, b->trust_domain);
}

int db_bundle_put(struct db *d, struct op *o, struct err *e)
{
	bool given = o->expect_sequence == STORE_SEQUENCE_GIVEN;
	uint64_t was;
	int64_t num;
	struct bundle *b;
	struct bytes data;
	struct effect *f;
	int r = bundle_sequence(d, o->key, &was, &num, e);

	if (r)
		return r;
	if (o->expect_sequence && !given && o->expect_sequence != was)
		return db_refuse(o, ERR_ABORTED, "the bundle has changed meanwhile");
	b = bundle_dup(o->bundle);
	if (!given && (o->expect_sequence || b->sequence <= was))
		b->sequence = was + 1;
	bundle_pack(b, &d->packed);
	data = buf_view(&d->packed);
	r = db_run(d, e, num ? SQL_BUNDLE_UPDATE : SQL_BUNDLE_INSERT, "ibt", (int64_t)b->sequence,
		&data, o->key);
	b->num = num ? num : sqlite3_last_insert_rowid(d->h);
	f = r ? NULL : db_effect(d, o, CHANGE_BUNDLE, o->key, e);
	if (!f) {
		bundle_unref(b);
		return e->code;
	}
	f->bundle = b;
	return 0;
}

static void strings_drop(struct strings *s, const char *v)
{
	size_t kept = 0;

	for (size_t i = 0; i < s->n; i++)
		if (strcmp(s->v[i], v) == 0)
			free(s->v[i]);
		else
			s->v[kept++] = s->v[i];
	s->n = kept;
}

/* Takes the bundle's name out of the entries that federate with it, or deletes them. */
static int release_entries(struct db *d, struct op *o, struct err *e)
{
	for (;;) {
		sqlite3_stmt *st = db_statement(d, SQL_ENTRY_FEDERATED);
		struct entry view;
		struct entry en = { .id = NULL };
		int64_t num = 0;
		int r;

		if (!st)
			return db_error(d, e);
		db_text(st, 1, o->key);
		r = db_step(d, st);
		if (r == SQLITE_DONE) {
			sqlite3_reset(st);
			return 0;
		}
		r = r == SQLITE_ROW ? db_entry_row(d, st, &view, &num, e) : db_error(d, e);
		if (!r)
			en = entry_dup(&view);
		sqlite3_reset(st);
		if (r)
			return r;
		if (o->delete_mode == BUNDLE_DELETE_ENTRIES) {
			r = db_entry_delete(d, o, num, en.id, e);
			entry_deinit(&en);
		} else {
			strings_drop(&en.federates_with, o->key);
			en.revision_number++;
			r = db_entry_rewrite(d, o, num, &en, e);
		}
		if (r)
			return r;
	}
}

static int federated_count(struct db *d, const char *td, int64_t *ret, struct err *e)
{
	sqlite3_stmt *st = db_statement(d, SQL_FEDERATED_COUNT);
	int r;

	if (!st)
		return db_error(d, e);
	db_text(st, 1, td);
	r = db_step(d, st);
	*ret = r == SQLITE_ROW ? sqlite3_column_int64(st, 0) : 0;
	r = r == SQLITE_ROW ? 0 : db_error(d, e);
	sqlite3_reset(st);
	return r;
}

static int bundle_delete(struct db *d, struct op *o, struct err *e)
{
	uint64_t was;
	int64_t num;
	int64_t n = 0;
	int r = bundle_sequence(d, o->key, &was, &num, e);

	if (r)
		return r;
	if (!num)
		return db_refuse(o, ERR_NOT_FOUND, "bundle not found");
	r = federated_count(d, o->key, &n, e);
	if (!r && n && o->delete_mode == BUNDLE_RESTRICT)
		return db_refuse(o, ERR_PRECONDITION,
			"cannot delete bundle; federated with %lld registration entries",
			(long long)n);
	if (!r && n)
		r = release_entries(d, o, e);
	if (!r)
		r = db_run(d, e, SQL_BUNDLE_DELETE, "t", o->key);
	if (!r && !db_effect(d, o, CHANGE_BUNDLE, o->key, e))
		r = e->code;
	return r;
}

/* ---- all of them ---- */

static int blob_put(struct db *d, struct op *o, struct err *e)
{
	struct bytes v = buf_view(&o->blob);

	if (o->blob.failed)
		return db_refuse(o, ERR_EXHAUSTED, "too large to be stored");
	return db_run(d, e, SQL_BLOB_PUT, "tb", o->key, &v);
}

int db_other(struct db *d, struct op *o, struct err *e)
{
	switch (o->kind) {
	case OP_NODE_PUT:
		return node_write(d, o, &o->node, e);
	case OP_NODE_UPDATE:
		return node_update(d, o, e);
	case OP_NODE_DELETE:
		return node_delete_op(d, o, e);
	case OP_NODES_PRUNE:
		return nodes_prune(d, o, e);
	case OP_TOKEN_CREATE:
		return token_create(d, o, e);
	case OP_TOKEN_TAKE:
		return token_take(d, o, e);
	case OP_TOKENS_PRUNE:
		return tokens_prune(d, o, e);
	case OP_BUNDLE_PUT:
		return db_bundle_put(d, o, e);
	case OP_BUNDLE_DELETE:
		return bundle_delete(d, o, e);
	case OP_BLOB_PUT:
		return blob_put(d, o, e);
	case OP_RELATIONSHIP_CREATE:
	case OP_RELATIONSHIP_UPDATE:
	case OP_RELATIONSHIP_DELETE:
		return db_relationship(d, o, e);
	case OP_ENTRIES_CREATE:
	case OP_ENTRIES_UPDATE:
	case OP_ENTRIES_DELETE:
	case OP_ENTRIES_PRUNE:
	case OP_MAINTAIN:
	default:
		return err_set(e, ERR_INTERNAL, "datastore: unknown operation");
	}
}

/* ---- reading, at start ---- */

static int load_bundle(
	struct db *d, sqlite3_stmt *st, const struct store_observer *o, struct err *e)
{
	struct bytes data = db_column_bytes(st, 2);
	Spire__Api__Types__Bundle *m = spire__api__types__bundle__unpack(NULL, data.n, data.p);
	AUTO(bundle_unref) struct bundle *b = NULL;
	int r;

	if (!m)
		return err_set(e, ERR_DATA_LOSS, "datastore: %s is damaged: bundle %s", d->path,
			db_column_text(st, 0));
	r = bundle_from_proto(m, &b, e);
	spire__api__types__bundle__free_unpacked(m, NULL);
	if (r) {
		(void)err_wrap(e, "datastore: %s: bundle %s", d->path, db_column_text(st, 0));
		e->code = ERR_DATA_LOSS;
		return e->code;
	}
	b->sequence = (uint64_t)sqlite3_column_int64(st, 1);
	b->num = sqlite3_column_int64(st, 3);
	o->bundle(o->arg, 0, b->trust_domain, b);
	return 0;
}

int db_load_bundles(struct db *d, const struct store_observer *o, struct err *e)
{
	sqlite3_stmt *st = db_statement(d, SQL_BUNDLE_ALL);
	int step;
	int r = 0;

	if (!st)
		return db_error(d, e);
	while (!r && (step = db_step(d, st)) == SQLITE_ROW)
		r = load_bundle(d, st, o, e);
	if (!r && step != SQLITE_DONE)
		r = db_error(d, e);
	sqlite3_reset(st);
	return r;
}

int db_load_nodes(struct db *d, const struct store_observer *o, struct err *e)
{
	sqlite3_stmt *st = db_statement(d, SQL_NODE_ALL);
	int step;
	int r = 0;

	if (!st)
		return db_error(d, e);
	while (!r && (step = db_step(d, st)) == SQLITE_ROW) {
		struct node n;

		r = node_row(d, st, &n, e);
		if (!r)
			o->node(o->arg, 0, n.spiffe_id, &n);
	}
	if (!r && step != SQLITE_DONE)
		r = db_error(d, e);
	sqlite3_reset(st);
	return r;
}

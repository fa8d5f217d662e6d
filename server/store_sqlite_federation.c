/* Federation relationships in the SQLite store. */
#include <stdlib.h>

#include "server/store_sqlite.h"

static char *borrow(const char *s)
{
	return (char *)(uintptr_t)s;
}

static struct relationship row_of(sqlite3_stmt *st)
{
	return (struct relationship){
		.num = sqlite3_column_int64(st, 0),
		.trust_domain = borrow(db_column_text(st, 1)),
		.url = borrow(db_column_text(st, 2)),
		.endpoint_id = borrow(db_column_text(st, 3)),
	};
}

/* *ret is the caller's. */
static int find(
	struct db *d, const char *td, struct relationship *ret, bool *ret_found, struct err *e)
{
	sqlite3_stmt *st = db_statement(d, SQL_RELATIONSHIP_GET);
	int r;

	*ret_found = false;
	if (!st)
		return db_error(d, e);
	db_text(st, 1, td);
	r = db_step(d, st);
	if (r == SQLITE_ROW) {
		struct relationship view = row_of(st);

		*ret = relationship_dup(&view);
		*ret_found = true;
	}
	r = r == SQLITE_ROW || r == SQLITE_DONE ? 0 : db_error(d, e);
	sqlite3_reset(st);
	return r;
}

/* v moves into the effect. */
static int note(struct db *d, struct op *o, struct relationship *v, struct err *e)
{
	struct effect *f = db_effect(d, o, CHANGE_RELATIONSHIP, o->key, e);

	if (!f)
		return e->code;
	f->relationship = xmemdup(v, sizeof(*v));
	*v = (struct relationship){ .num = 0 };
	return 0;
}

/* The bundle given with a relationship, if there is one, goes first. */
static int put_bundle(struct db *d, struct op *o, struct err *e)
{
	return o->bundle ? db_bundle_put(d, o, e) : 0;
}

static int create(struct db *d, struct op *o, struct err *e)
{
	const struct relationship *v = &o->relationship;
	struct relationship stored = { .num = 0 };
	bool found;
	int r = find(d, o->key, &stored, &found, e);

	if (r)
		return r;
	if (found) {
		relationship_deinit(&stored);
		return db_refuse(o, ERR_EXISTS, "federation relationship already exists");
	}
	r = put_bundle(d, o, e);
	if (!r)
		r = db_run(d, e, SQL_RELATIONSHIP_INSERT, "ttt", o->key, v->url, v->endpoint_id);
	if (r)
		return r;
	stored = relationship_dup(v);
	stored.num = sqlite3_last_insert_rowid(d->h);
	r = note(d, o, &stored, e);
	relationship_deinit(&stored);
	return r;
}

static void replace(char **s, const char *v)
{
	free(*s);
	*s = xstrdup(v);
}

static int update(struct db *d, struct op *o, struct err *e)
{
	struct relationship v = { .num = 0 };
	bool found;
	int r = find(d, o->key, &v, &found, e);

	if (r)
		return r;
	if (!found)
		return db_refuse(o, ERR_NOT_FOUND, "federation relationship not found");
	if (o->mask & RELATIONSHIP_URL)
		replace(&v.url, o->relationship.url);
	if (o->mask & RELATIONSHIP_PROFILE)
		replace(&v.endpoint_id, o->relationship.endpoint_id);
	r = put_bundle(d, o, e);
	if (!r)
		r = db_run(d, e, SQL_RELATIONSHIP_UPDATE, "tti", v.url, v.endpoint_id, v.num);
	if (!r)
		r = note(d, o, &v, e);
	relationship_deinit(&v);
	return r;
}

static int delete_row(struct db *d, struct op *o, struct err *e)
{
	struct relationship v = { .num = 0 };
	bool found;
	int r = find(d, o->key, &v, &found, e);

	relationship_deinit(&v);
	if (r)
		return r;
	if (!found)
		return db_refuse(o, ERR_NOT_FOUND, "federation relationship not found");
	r = db_run(d, e, SQL_RELATIONSHIP_DELETE, "t", o->key);
	if (!r && !db_effect(d, o, CHANGE_RELATIONSHIP, o->key, e))
		r = e->code;
	return r;
}

int db_relationship(struct db *d, struct op *o, struct err *e)
{
	if (o->kind == OP_RELATIONSHIP_CREATE)
		return create(d, o, e);
	return o->kind == OP_RELATIONSHIP_UPDATE ? update(d, o, e) : delete_row(d, o, e);
}

int db_load_relationships(struct db *d, const struct store_observer *o, struct err *e)
{
	sqlite3_stmt *st = db_statement(d, SQL_RELATIONSHIP_ALL);
	int r;

	if (!st)
		return db_error(d, e);
	while ((r = db_step(d, st)) == SQLITE_ROW) {
		struct relationship v = row_of(st);

		o->relationship(o->arg, 0, v.trust_domain, &v);
	}
	r = r == SQLITE_DONE ? 0 : db_error(d, e);
	sqlite3_reset(st);
	return r;
}

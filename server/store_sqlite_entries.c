/* Entries in the SQLite store. */
#include <stdlib.h>
#include <string.h>

#include "server/store_sqlite.h"

enum { PRUNE_STEP = 500, PRUNE_MAX = 50000 };

/* ---- rows ---- */

/* A copy that the row may be asked for others after. */
static char *borrow(const char *s)
{
	return (char *)(uintptr_t)s;
}

int db_entry_row(struct db *d, sqlite3_stmt *st, struct entry *ret, int64_t *ret_num, struct err *e)
{
	int r = entry_unpack(&d->row, db_column_bytes(st, 7), e);

	if (r)
		return err_wrap(
			e, "datastore: %s is damaged: entry %s", d->path, db_column_text(st, 1));
	*ret = d->row.en;
	*ret_num = sqlite3_column_int64(st, 0);
	ret->num = *ret_num;
	ret->id = borrow(db_column_text(st, 1));
	ret->spiffe_id = borrow(db_column_text(st, 2));
	ret->parent_id = borrow(db_column_text(st, 3));
	ret->revision_number = sqlite3_column_int64(st, 4);
	ret->created_at = sqlite3_column_int64(st, 5);
	ret->expires_at = sqlite3_column_int64(st, 6);
	return 0;
}

/* Reads the one row of a statement whose parameters are bound, as a copy. 0 and *ret_num 0: none.
 */
static int read_one(
	struct db *d, sqlite3_stmt *st, struct entry *ret, int64_t *ret_num, struct err *e)
{
	struct entry view;
	int r = db_step(d, st);

	*ret_num = 0;
	if (r == SQLITE_ROW) {
		r = db_entry_row(d, st, &view, ret_num, e);
		if (!r)
			*ret = entry_dup(&view);
	} else {
		r = r == SQLITE_DONE ? 0 : db_error(d, e);
	}
	sqlite3_reset(st);
	return r;
}

static int read_by_id(
	struct db *d, const char *id, struct entry *ret, int64_t *ret_num, struct err *e)
{
	sqlite3_stmt *st = db_statement(d, SQL_ENTRY_BY_ID);

	if (!st)
		return db_error(d, e);
	db_text(st, 1, id);
	return read_one(d, st, ret, ret_num, e);
}

static bool is_token_alias(const struct entry *en)
{
	return en->selectors.n == 1 && strcmp(en->selectors.v[0].type, "spiffe_id") == 0 &&
	       strcmp(en->selectors.v[0].value, en->parent_id) == 0;
}

/* ---- what an entry must be ---- */

static int by_text(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Trust domains are a set, and kept in the order of their names, as SPIRE answers them. */
static void sort_names(struct strings *s)
{
	size_t kept = 0;

	if (s->n > 1)
		qsort(s->v, s->n, sizeof(s->v[0]), by_text);

	for (size_t i = 0; i < s->n; i++) {
		if (kept && strcmp(s->v[i], s->v[kept - 1]) == 0)
			free(s->v[i]);
		else
			s->v[kept++] = s->v[i];
	}
	s->n = kept;
}

static int check_federates(
	struct db *d, const struct strings *fed, struct err *refusal, struct err *e)
{
	for (size_t i = 0; i < fed->n; i++) {
		sqlite3_stmt *st = db_statement(d, SQL_BUNDLE_HAS);
		int r;

		if (!st)
			return db_error(d, e);
		db_text(st, 1, fed->v[i]);
		r = db_step(d, st);
		if (r == SQLITE_DONE)
			(void)err_set(refusal, ERR_INTERNAL,
				"unable to find federated bundle \"spiffe://%s\"", fed->v[i]);
		else if (r != SQLITE_ROW)
			return db_error(d, e);
		sqlite3_reset(st);
		if (refusal->code)
			break;
	}
	return 0;
}

static int check_entry(struct db *d, struct entry *en, struct err *refusal, struct err *e)
{
	for (size_t i = 1; en->store_svid && i < en->selectors.n; i++)
		if (strcmp(en->selectors.v[i].type, en->selectors.v[0].type) != 0) {
			(void)err_set(refusal, ERR_INVALID,
				"invalid registration entry: selector types must be the same when "
				"store SVID is enabled");
			return 0;
		}
	if (selectors_repeat(&en->selectors)) {
		(void)err_set(refusal, ERR_EXISTS, "a selector is given twice");
		return 0;
	}
	for (size_t i = 0; i < en->dns_names.n; i++)
		for (size_t j = 0; j < i; j++)
			if (strcmp(en->dns_names.v[i], en->dns_names.v[j]) == 0) {
				(void)err_set(refusal, ERR_EXISTS,
					"DNS name \"%.255s\" is given twice", en->dns_names.v[i]);
				return 0;
			}
	sort_names(&en->federates_with);
	return check_federates(d, &en->federates_with, refusal, e);
}

static int write_federated(struct db *d, const struct entry *en, int64_t num, struct err *e)
{
	int r = 0;

	for (size_t i = 0; i < en->federates_with.n && !r; i++)
		r = db_run(d, e, SQL_FEDERATED_INSERT, "ti", en->federates_with.v[i], num);
	return r;
}

static int note_entry(struct db *d, struct op *o, struct entry *en, bool is_result, struct err *e)
{
	struct effect *f = db_effect(d, o, CHANGE_ENTRY, en->id, e);

	if (!f)
		return e->code;
	f->entry = en;
	f->entry_is_result = is_result;
	if (!is_result) {
		f->entry = xmalloc(sizeof(*f->entry));
		*f->entry = entry_dup(en);
	}
	return 0;
}

/* ---- create ---- */

static int find_similar(struct db *d, struct entry *en, const struct bytes *identity,
	bool is_result, struct err *refusal, struct err *e)
{
	sqlite3_stmt *st = db_statement(d, SQL_ENTRY_BY_IDENTITY);
	struct entry other;
	int64_t num;
	int r;

	if (!st)
		return db_error(d, e);
	db_bytes(st, 1, *identity);
	r = read_one(d, st, &other, &num, e);
	if (r)
		return r;
	if (!num) {
		(void)err_set(
			refusal, ERR_EXISTS, "entry with ID \"%.255s\" already exists", en->id);
		return 0;
	}
	(void)err_set(refusal, ERR_EXISTS, "similar entry already exists");
	entry_deinit(en);
	*en = other;
	if (is_result)
		container_of(en, struct store_result, entry)->similar = true;
	return 0;
}

static void complete(struct entry *en)
{
	char id[37];

	if (!en->id || !en->id[0]) {
		entry_new_id(id);
		free(en->id);
		en->id = xstrdup(id);
	}
	if (!en->hint)
		en->hint = xstrdup("");
	en->created_at = clock_wall().sec;
	en->revision_number = 0;
}

int db_entry_insert(
	struct db *d, struct entry *en, bool is_result, struct err *refusal, struct err *e)
{
	uint8_t identity[STORE_IDENTITY] = { 0 };
	struct bytes key = bytes_of(identity, sizeof(identity));
	struct bytes data;
	int r = check_entry(d, en, refusal, e);

	if (r || refusal->code)
		return r;
	entry_identity(en, "", &d->scratch, identity);
	buf_reset(&d->packed);
	entry_pack(en, &d->packed);
	data = buf_view(&d->packed);
	r = db_run(d, e, SQL_ENTRY_INSERT, "tbttiiiib", en->id, &key, en->spiffe_id, en->parent_id,
		en->revision_number, en->created_at, en->expires_at, (int64_t)is_token_alias(en),
		&data);
	if (r && db_is_duplicate(d))
		return find_similar(d, en, &key, is_result, refusal, e);
	if (!r)
		en->num = sqlite3_last_insert_rowid(d->h);
	if (!r && en->federates_with.n)
		r = write_federated(d, en, en->num, e);
	return r;
}

int db_entry_create(struct db *d, struct op *o, struct entry *en, bool is_result,
	struct err *refusal, struct err *e)
{
	int r;

	complete(en);
	r = db_entry_insert(d, en, is_result, refusal, e);
	return r || refusal->code ? r : note_entry(d, o, en, is_result, e);
}

static void refuse_item(struct store_result *item, const struct err *refusal)
{
	item->code = refusal->code;
	free(item->message);
	item->message = xstrdup(refusal->code ? refusal->msg : "");
}

int db_entries_create(struct db *d, struct op *o, struct err *e)
{
	int r = 0;

	for (size_t i = 0; i < o->n && !r; i++) {
		struct err refusal = ERR_INIT;

		r = db_entry_create(d, o, &o->results[i].entry, true, &refusal, e);
		if (!r)
			refuse_item(&o->results[i], &refusal);
	}
	return r;
}

/* ---- update ---- */

static void swap(void *a, void *b, size_t n)
{
	uint8_t t[64];

	INVARIANT(n <= sizeof(t));
	memcpy(t, a, n);
	memcpy(a, b, n);
	memcpy(b, t, n);
}

/* The masked fields change places: what was stored goes away with the input. */
static void merge(struct entry *to, struct entry *in, unsigned mask)
{
#define TAKE(bit, field)                                                                           \
	if (mask & (bit))                                                                          \
	swap(&to->field, &in->field, sizeof(to->field))
	TAKE(ENTRY_SPIFFE_ID, spiffe_id);
	TAKE(ENTRY_PARENT_ID, parent_id);
	TAKE(ENTRY_SELECTORS, selectors);
	TAKE(ENTRY_X509_TTL, x509_svid_ttl);
	TAKE(ENTRY_FEDERATES, federates_with);
	TAKE(ENTRY_ADMIN, admin);
	TAKE(ENTRY_DOWNSTREAM, downstream);
	TAKE(ENTRY_EXPIRES, expires_at);
	TAKE(ENTRY_DNS, dns_names);
	TAKE(ENTRY_STORE_SVID, store_svid);
	TAKE(ENTRY_JWT_TTL, jwt_svid_ttl);
	TAKE(ENTRY_HINT, hint);
	TAKE(ENTRY_ATTRIBUTES, disable_x509_svid_prefetch);
	TAKE(ENTRY_ATTRIBUTES, jwt_svid_include_jti);
	TAKE(ENTRY_ATTRIBUTES, has_additional_attributes);
#undef TAKE
	if (!to->hint)
		to->hint = xstrdup("");
}

static int write_row_as(
	struct db *d, const struct entry *en, const char *salt, int64_t num, struct err *e)
{
	uint8_t identity[STORE_IDENTITY] = { 0 };
	struct bytes key = bytes_of(identity, sizeof(identity));
	struct bytes data;

	entry_identity(en, salt, &d->scratch, identity);
	buf_reset(&d->packed);
	entry_pack(en, &d->packed);
	data = buf_view(&d->packed);
	return db_run(d, e, SQL_ENTRY_UPDATE, "bttiiibi", &key, en->spiffe_id, en->parent_id,
		en->revision_number, en->expires_at, (int64_t)is_token_alias(en), &data, num);
}

/* Writes the row of an entry that is there. It may be like another: then the other is the one that
 * a new entry is compared with. */
static int write_row(struct db *d, const struct entry *en, int64_t num, struct err *e)
{
	int r = write_row_as(d, en, "", num, e);

	return r && db_is_duplicate(d) ? write_row_as(d, en, en->id, num, e) : r;
}

static int rewrite_federated(struct db *d, const struct entry *en, int64_t num, struct err *e)
{
	int r = db_run(d, e, SQL_FEDERATED_DELETE, "i", num);

	return r ? r : write_federated(d, en, num, e);
}

static int update_found(struct db *d, struct op *o, struct store_result *item, struct entry *to,
	int64_t num, struct err *refusal, struct err *e)
{
	struct entry was = *to;
	int r;

	merge(to, &item->entry, o->mask);
	to->revision_number = was.revision_number + 1;
	r = check_entry(d, to, refusal, e);
	if (r || refusal->code)
		return r;
	r = write_row(d, to, num, e);
	if (!r && (o->mask & ENTRY_FEDERATES))
		r = rewrite_federated(d, to, num, e);
	return r;
}

static int update_item(
	struct db *d, struct op *o, struct store_result *item, struct err *refusal, struct err *e)
{
	struct entry to = { .id = NULL };
	int64_t num;
	int r = read_by_id(d, item->entry.id ? item->entry.id : "", &to, &num, e);

	if (r)
		return r;
	if (!num) {
		(void)err_set(refusal, ERR_NOT_FOUND, "entry not found");
		return 0;
	}
	r = update_found(d, o, item, &to, num, refusal, e);
	if (r || refusal->code) {
		entry_deinit(&to);
		return r;
	}
	entry_deinit(&item->entry);
	item->entry = to;
	return note_entry(d, o, &item->entry, true, e);
}

int db_entries_update(struct db *d, struct op *o, struct err *e)
{
	int r = 0;

	for (size_t i = 0; i < o->n && !r; i++) {
		struct err refusal = ERR_INIT;

		r = update_item(d, o, &o->results[i], &refusal, e);
		if (!r)
			refuse_item(&o->results[i], &refusal);
	}
	return r;
}

int db_entry_rewrite(struct db *d, struct op *o, int64_t num, struct entry *en, struct err *e)
{
	int r = write_row(d, en, num, e);

	if (!r)
		r = rewrite_federated(d, en, num, e);
	if (!r)
		r = note_entry(d, o, en, false, e);
	entry_deinit(en);
	return r;
}

/* ---- delete ---- */

int db_entry_delete(struct db *d, struct op *o, int64_t num, const char *id, struct err *e)
{
	int r = db_run(d, e, SQL_ENTRY_DELETE, "i", num);

	if (!r)
		r = db_run(d, e, SQL_FEDERATED_DELETE, "i", num);
	if (!r && !db_effect(d, o, CHANGE_ENTRY, id, e))
		r = e->code;
	return r;
}

static int delete_item(
	struct db *d, struct op *o, struct store_result *item, struct err *refusal, struct err *e)
{
	struct entry was;
	int64_t num;
	int r = read_by_id(d, item->entry.id, &was, &num, e);

	if (r)
		return r;
	if (!num) {
		(void)err_set(refusal, ERR_NOT_FOUND, "entry not found");
		return 0;
	}
	entry_deinit(&item->entry);
	item->entry = was;
	return db_entry_delete(d, o, num, item->entry.id, e);
}

int db_entries_delete(struct db *d, struct op *o, struct err *e)
{
	int r = 0;

	for (size_t i = 0; i < o->n && !r; i++) {
		struct err refusal = ERR_INIT;

		r = delete_item(d, o, &o->results[i], &refusal, e);
		if (!r)
			refuse_item(&o->results[i], &refusal);
	}
	return r;
}

/* The rows are read first, as they are deleted then. */
static int expired_ids(struct db *d, int64_t now, int64_t *nums, struct strings *ids, struct err *e)
{
	sqlite3_stmt *st = db_statement(d, SQL_ENTRY_EXPIRED);
	int r;

	if (!st)
		return db_error(d, e);
	sqlite3_bind_int64(st, 1, now);
	sqlite3_bind_int64(st, 2, PRUNE_STEP);
	while ((r = db_step(d, st)) == SQLITE_ROW && ids->n < PRUNE_STEP) {
		nums[ids->n] = sqlite3_column_int64(st, 0);
		strings_add(ids, db_column_text(st, 1));
	}
	r = r == SQLITE_DONE || r == SQLITE_ROW ? 0 : db_error(d, e);
	sqlite3_reset(st);
	return r;
}

int db_entries_prune(struct db *d, struct op *o, struct err *e)
{
	int64_t nums[PRUNE_STEP];
	bool more = true;
	int r = 0;

	while (more && !r && o->deleted < PRUNE_MAX) {
		struct strings ids = { .n = 0 };

		r = expired_ids(d, o->time, nums, &ids, e);
		more = ids.n == PRUNE_STEP;
		for (size_t i = 0; i < ids.n && !r; i++) {
			r = db_entry_delete(d, o, nums[i], ids.v[i], e);
			o->deleted++;
		}
		strings_deinit(&ids);
	}
	return r;
}

/* ---- reading, at start ---- */

int db_load_entries(struct db *d, const struct store_observer *o, struct err *e)
{
	sqlite3_stmt *st = db_statement(d, SQL_ENTRY_ALL);
	int step;
	int r = 0;

	if (!st)
		return db_error(d, e);
	while (!r && (step = db_step(d, st)) == SQLITE_ROW) {
		struct entry en;
		int64_t num;

		r = db_entry_row(d, st, &en, &num, e);
		if (!r)
			o->entry(o->arg, 0, en.id, &en);
	}
	if (!r && step != SQLITE_DONE)
		r = db_error(d, e);
	sqlite3_reset(st);
	return r;
}

/* Filling an empty database with what a SPIRE server left behind. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server/spire.h"
#include "server/store_sqlite.h"

#define IMPORT_NAME "import"

/* Rows in all tables that hold somebody's data. */
#define COUNT_SQL                                                                                  \
	"SELECT (SELECT count(*) FROM entry) + (SELECT count(*) FROM node) + (SELECT count(*) "    \
	"FROM join_token) + (SELECT count(*) FROM bundle) + (SELECT count(*) FROM relationship) "  \
	"+ (SELECT count(*) FROM blob)"

static int count_rows(struct db *d, int64_t *ret, struct err *e)
{
	sqlite3_stmt *st = NULL;
	int r = 0;

	if (sqlite3_prepare_v2(d->h, COUNT_SQL, -1, &st, NULL) != SQLITE_OK)
		return db_error(d, e);
	if (sqlite3_step(st) == SQLITE_ROW)
		*ret = sqlite3_column_int64(st, 0);
	else
		r = db_error(d, e);
	sqlite3_finalize(st);
	return r;
}

static int state_of(
	struct db *d, const char *fingerprint, enum store_import_state *ret, struct err *e)
{
	AUTO_BUF struct buf note = BUF_INIT_MAX(SPIRE_FINGERPRINT);
	int64_t rows = 0;
	int r = db_blob_get(d, IMPORT_NAME, &note, e);

	if (!r) {
		*ret = strcmp(buf_cstr(&note), fingerprint) == 0 ? STORE_IMPORT_SAME
								 : STORE_IMPORT_OTHER;
		return 0;
	}
	if (r == ERR_NOT_FOUND)
		r = count_rows(d, &rows, e);
	if (!r)
		*ret = rows ? STORE_IMPORT_USED : STORE_IMPORT_EMPTY;
	return r;
}

int store_import_state(
	const char *path, const char *fingerprint, enum store_import_state *ret, struct err *e)
{
	struct db *d = NULL;
	int r = db_open(path, &d, e);

	if (!r)
		r = state_of(d, fingerprint, ret, e);
	db_close(d);
	return r;
}

/* ---- writing ---- */

static int note(struct db *d, enum change_kind kind, const char *key, struct err *e)
{
	int r = db_run(d, e, SQL_CHANGE, "iiti", (int64_t)d->change + 1, (int64_t)kind, key,
		clock_wall().sec);

	if (!r)
		d->change++;
	return r;
}

static int put_entries(
	struct db *d, const struct spire *s, struct strings *left, size_t *ret_n, struct err *e)
{
	int r = 0;

	*ret_n = 0;
	for (size_t i = 0; i < s->n_entries && !r; i++) {
		struct entry en = entry_dup(&s->entries[i]);
		struct err refusal = ERR_INIT;

		r = db_entry_insert(d, &en, false, &refusal, e);
		if (!r && refusal.code) {
			spire_leave(left, "entry %s (%s): %s%s%s", s->entries[i].id,
				s->entries[i].spiffe_id, refusal.msg,
				refusal.code == ERR_EXISTS ? ": " : "",
				refusal.code == ERR_EXISTS ? en.id : "");
		} else if (!r) {
			r = note(d, CHANGE_ENTRY, en.id, e);
			(*ret_n)++;
		}
		entry_deinit(&en);
	}
	return r;
}

static int put_others(struct db *d, const struct spire *s, struct err *e)
{
	int r = 0;

	for (size_t i = 0; i < s->n_nodes && !r; i++) {
		r = db_node_insert(d, &s->nodes[i], e);
		if (!r)
			r = note(d, CHANGE_NODE, s->nodes[i].spiffe_id, e);
	}
	for (size_t i = 0; i < s->n_tokens && !r; i++) {
		r = db_run(
			d, e, SQL_TOKEN_INSERT, "ti", s->tokens[i].token, s->tokens[i].expires_at);
		if (!r)
			r = note(d, CHANGE_TOKEN, "", e);
	}
	for (size_t i = 0; i < s->n_relationships && !r; i++) {
		const struct relationship *v = &s->relationships[i];

		r = db_run(d, e, SQL_RELATIONSHIP_INSERT, "ttt", v->trust_domain, v->url,
			v->endpoint_id);
		if (!r)
			r = note(d, CHANGE_RELATIONSHIP, v->trust_domain, e);
	}
	return r;
}

static int put_bundles(struct db *d, const struct spire *s, struct err *e)
{
	int r = 0;

	for (size_t i = 0; i < s->n_bundles && !r; i++) {
		r = db_bundle_insert(d, s->bundles[i], e);
		if (!r)
			r = note(d, CHANGE_BUNDLE, s->bundles[i]->trust_domain, e);
	}
	return r;
}

static int put_blobs(struct db *d, const struct spire *s, struct bytes journal, struct err *e)
{
	struct bytes print = bytes_str(s->fingerprint);
	int r = db_run(d, e, SQL_BLOB_PUT, "tb", STORE_CA_JOURNAL, &journal);

	return r ? r : db_run(d, e, SQL_BLOB_PUT, "tb", IMPORT_NAME, &print);
}

/* What is not committed is rolled back by closing. */
static int fill(struct db *d, const struct spire *s, struct bytes journal, struct strings *left,
	size_t *ret_entries, struct err *e)
{
	enum store_import_state state = STORE_IMPORT_USED;
	int r = db_run(d, e, SQL_BEGIN, "");

	if (!r)
		r = state_of(d, s->fingerprint, &state, e);
	if (!r && state != STORE_IMPORT_EMPTY)
		r = err_set(e, ERR_PRECONDITION, "datastore: %s is not empty", d->path);
	if (!r)
		r = put_bundles(d, s, e);
	if (!r)
		r = put_entries(d, s, left, ret_entries, e);
	if (!r)
		r = put_others(d, s, e);
	if (!r)
		r = put_blobs(d, s, journal, e);
	return r ? r : db_run(d, e, SQL_COMMIT, "");
}

int store_import(const char *path, const struct spire *s, struct bytes journal,
	struct strings *left, size_t *ret_entries, struct err *e)
{
	struct db *d = NULL;
	int r = db_open(path, &d, e);

	if (!r)
		r = fill(d, s, journal, left, ret_entries, e);
	db_close(d);
	return r;
}

/* ---- a database that is thrown away ---- */

int store_scratch_make(char **ret_dir, struct err *e)
{
	const char *tmp = getenv("TMPDIR");
	char *dir = xasprintf("%s/assay-import-XXXXXX", tmp && *tmp ? tmp : "/tmp");

	if (!mkdtemp(dir)) {
		int r = err_errno(e, errno, "making a temporary folder %s", dir);

		free(dir);
		return r;
	}
	*ret_dir = dir;
	return 0;
}

void store_scratch_remove(const char *dir)
{
	static const char *const suffixes[] = { "", "-wal", "-journal", "-shm" };

	for (size_t i = 0; i < ARRAY_LEN(suffixes); i++) {
		AUTO(free) char *name = xasprintf("%s/db%s", dir, suffixes[i]);

		unlink(name);
	}
	rmdir(dir);
}

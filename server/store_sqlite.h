/* Shared by the files of the SQLite store; the only header that sees sqlite3.h. Lane thread (or the
 * loop's, before the lane has work). */
#ifndef ASSAY_SERVER_STORE_SQLITE_H
#define ASSAY_SERVER_STORE_SQLITE_H

#include <sqlite3.h>

#include "server/store_internal.h"

enum sql { /* prepared at first use, kept; the texts are in store_sqlite.c */
	SQL_BEGIN,
	SQL_COMMIT,
	SQL_ROLLBACK,
	SQL_SAVEPOINT,
	SQL_RELEASE,
	SQL_ROLLBACK_TO,
	SQL_CHANGE,
	SQL_CHANGE_TRIM,
	SQL_ENTRY_INSERT,
	SQL_ENTRY_BY_ID,
	SQL_ENTRY_BY_IDENTITY,
	SQL_ENTRY_UPDATE,
	SQL_ENTRY_DELETE,
	SQL_ENTRY_EXPIRED,
	SQL_ENTRY_TOKEN_ALIAS,
	SQL_ENTRY_FEDERATED,
	SQL_ENTRY_ALL,
	SQL_FEDERATED_INSERT,
	SQL_FEDERATED_DELETE,
	SQL_FEDERATED_COUNT,
	SQL_BUNDLE_HAS,
	SQL_BUNDLE_INSERT,
	SQL_BUNDLE_UPDATE,
	SQL_BUNDLE_DELETE,
	SQL_BUNDLE_ALL,
	SQL_NODE_PUT,
	SQL_NODE_GET,
	SQL_NODE_NUM,
	SQL_NODE_DELETE,
	SQL_NODE_EXPIRED,
	SQL_NODE_ALL,
	SQL_TOKEN_INSERT,
	SQL_TOKEN_GET,
	SQL_TOKEN_DELETE,
	SQL_TOKEN_EXPIRED,
	SQL_BLOB_PUT,
	SQL_BLOB_GET,
	SQL_RELATIONSHIP_INSERT,
	SQL_RELATIONSHIP_UPDATE,
	SQL_RELATIONSHIP_DELETE,
	SQL_RELATIONSHIP_GET,
	SQL_RELATIONSHIP_ALL,
	SQL_COUNT
};

struct db {
	sqlite3 *h;
	char *path;
	char epoch[33];
	sqlite3_stmt *st[SQL_COUNT];
	uint64_t change;  /* of the last row */
	uint64_t trimmed; /* rows up to this are gone */
	struct unpacked row;
	struct buf packed, scratch;
	int wal_pages;
	uint64_t statements, transactions, changes; /* written here, read by any thread */
	enum db_wants wants;
};

/* The prepared statement, reset, without bindings. Preparing cannot fail but by damage: NULL. */
sqlite3_stmt *db_statement(struct db *d, enum sql which);
/* SQLITE_ROW, SQLITE_DONE or an error. */
int db_step(struct db *d, sqlite3_stmt *st);
/* Binds and runs a statement without rows. "t" text, "i" int64, "b" struct bytes *. 0, or the error
 * of db_error(). */
int db_run(struct db *d, struct err *e, enum sql which, const char *types, ...) MUST_USE;
/* Describes SQLite's last error; never 0. */
int db_error(struct db *d, struct err *e);
/* Was it a UNIQUE or PRIMARY KEY constraint? */
bool db_is_duplicate(const struct db *d);

void db_text(sqlite3_stmt *st, int at, const char *s);
void db_bytes(sqlite3_stmt *st, int at, struct bytes v);
const char *db_column_text(sqlite3_stmt *st, int at); /* never NULL */
struct bytes db_column_bytes(sqlite3_stmt *st, int at);

/* Writes the row of the change log and notes the effect, to be filled in. NULL: *e tells. */
struct effect *db_effect(
	struct db *d, struct op *o, enum change_kind kind, const char *key, struct err *e);

/*
 * Each does one operation, or refuses it (o->code, o->message, or those of the results). What they
 * return is the fate of the transaction: 0, or the error that dooms it. They may leave a refused
 * operation half done: db_batch() puts a savepoint around those with more than one write.
 */
int db_entries_create(struct db *d, struct op *o, struct err *e) MUST_USE;
int db_entries_update(struct db *d, struct op *o, struct err *e) MUST_USE;
int db_entries_delete(struct db *d, struct op *o, struct err *e) MUST_USE;
int db_entries_prune(struct db *d, struct op *o, struct err *e) MUST_USE;
int db_other(struct db *d, struct op *o, struct err *e) MUST_USE; /* store_sqlite_other.c */

int db_relationship(
	struct db *d, struct op *o, struct err *e) MUST_USE; /* store_sqlite_federation.c */
/* o->bundle, of the trust domain o->key. */
int db_bundle_put(struct db *d, struct op *o, struct err *e) MUST_USE;

/* For operations of other kinds. The entry becomes what is stored; refusal->code tells whether it
 * was refused. */
int db_entry_create(struct db *d, struct op *o, struct entry *en, bool is_result,
	struct err *refusal, struct err *e) MUST_USE;
/* The row alone, with the entry's own id, revision number and times. On refusal the entry becomes
 * the one that is there if they are similar. */
int db_entry_insert(struct db *d, struct entry *en, bool is_result, struct err *refusal,
	struct err *e) MUST_USE;
/* The rows alone (store_sqlite_other.c). */
int db_node_insert(struct db *d, const struct node *n, struct err *e) MUST_USE;
int db_bundle_insert(struct db *d, const struct bundle *b, struct err *e) MUST_USE;
int db_entry_delete(
	struct db *d, struct op *o, int64_t num, const char *id, struct err *e) MUST_USE;
/* The entry moves into the effect. */
int db_entry_rewrite(
	struct db *d, struct op *o, int64_t num, struct entry *en, struct err *e) MUST_USE;
/* Reads the row of a statement that selects ENTRY_COLUMNS. Borrowed. */
int db_entry_row(struct db *d, sqlite3_stmt *st, struct entry *ret, int64_t *ret_num,
	struct err *e) MUST_USE;

/* Refuses the operation: always 0. */
int db_refuse(struct op *o, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);

int db_load_bundles(struct db *d, const struct store_observer *o, struct err *e) MUST_USE;
int db_load_relationships(struct db *d, const struct store_observer *o, struct err *e) MUST_USE;
int db_load_nodes(struct db *d, const struct store_observer *o, struct err *e) MUST_USE;
int db_load_entries(struct db *d, const struct store_observer *o, struct err *e) MUST_USE;

#endif

/*
 * Inside of the store. An operation (struct op) is made on the loop with copies of its inputs, done
 * on the lane's thread in one transaction with others (store_sqlite*.c), and ended on the loop:
 * observers for each of its effects, then the caller's done function.
 */
#ifndef ASSAY_SERVER_STORE_INTERNAL_H
#define ASSAY_SERVER_STORE_INTERNAL_H

#include "lib/list.h"
#include "server/store.h"

enum {
	STORE_SCHEMA = 3,                  /* version of schema/ */
	STORE_CHANGES_KEPT = 100000,       /* rows of the change log */
	STORE_CHANGES_SLACK = 10000,       /* so many more before they are trimmed */
	STORE_TRIM_STEP = 5000,            /* rows that one background step deletes */
	STORE_WAL_PAGES = 4000,            /* a write-ahead log this long is moved into the file */
	STORE_WAL_PAGES_URGENT = 16000,    /* this long, whatever else waits */
	STORE_CACHE_KIB = 16 << 10,        /* SQLite's page cache */
	STORE_CACHE_KIB_LOADING = 1 << 10, /* what was read once is not read again */
	STORE_BATCH_MAX = 1000,            /* operations of one transaction */
	STORE_QUICK_CHECK_MAX = 8 << 20,   /* a larger file is checked by being loaded */
	STORE_IDENTITY = 16,
};

enum op_kind {
	OP_ENTRIES_CREATE,
	OP_ENTRIES_UPDATE,
	OP_ENTRIES_DELETE,
	OP_ENTRIES_PRUNE,
	OP_NODE_PUT,
	OP_NODE_UPDATE,
	OP_NODE_DELETE,
	OP_NODES_PRUNE,
	OP_TOKEN_CREATE,
	OP_TOKEN_TAKE,
	OP_TOKENS_PRUNE,
	OP_BUNDLE_PUT,
	OP_BUNDLE_DELETE,
	OP_BLOB_PUT,
	OP_RELATIONSHIP_CREATE,
	OP_RELATIONSHIP_UPDATE,
	OP_RELATIONSHIP_DELETE,
	OP_MAINTAIN,
};

enum change_kind {
	CHANGE_ENTRY = 1,
	CHANGE_NODE,
	CHANGE_BUNDLE,
	CHANGE_TOKEN,
	CHANGE_RELATIONSHIP
};

/* One row of the change log, for the observers. */
struct effect {
	uint64_t change;
	enum change_kind kind;
	char *key;
	/* What it became; all NULL: deleted (or a token). */
	struct entry *entry; /* owned unless it is one of the results' */
	bool entry_is_result;
	struct node *node;
	struct bundle *bundle;
	struct relationship *relationship;
};

struct op {
	struct list link; /* the store's operations, in order; loop thread */
	struct store *store;
	enum op_kind kind;
	bool ended;

	/* in */
	struct store_result *results; /* entries: in and out */
	size_t n;
	unsigned mask;
	char *key; /* SPIFFE ID of a node, token, trust domain, name of a blob */
	struct node node;
	unsigned node_fields; /* bits of enum node_field */
	char *expect_serial;
	struct join_token token;
	struct entry alias;
	bool have_alias;
	int64_t time;
	bool flag;
	int limit;
	struct bundle *bundle;
	uint64_t expect_sequence;
	enum bundle_delete delete_mode;
	struct relationship relationship;
	struct buf blob;

	/* out */
	int code;
	char *message;
	size_t deleted;
	struct effect *effects;
	size_t n_effects;

	void (*done_results)(void *arg, struct store_result *r, size_t n);
	void (*done_count)(void *arg, int code, const char *msg, size_t n);
	store_done *done;
	void *arg;
};

enum node_field {
	NODE_SERIAL = 1 << 0,
	NODE_NEW_SERIAL = 1 << 1,
	NODE_AGENT_VERSION = 1 << 2,
	NODE_EXPIRES_AT = 1 << 3,
	NODE_NEW_EXPIRES_AT = 1 << 4,
	NODE_CAN_REATTEST = 1 << 5,
};

/* Nothing of it was done. */
void op_fail(struct op *o, int code, const char *msg);

/* ---- packing (store_pack.c) ---- */

/* The fields of an entry that are not columns, as spire.api.types.Entry. */
void entry_pack(const struct entry *en, struct buf *ret);
void selectors_pack(const struct selectors *s, struct buf *ret);
/* salt: "" or, for an entry that may be similar to another, what makes it differ. */
void entry_identity(
	const struct entry *en, const char *salt, struct buf *scratch, uint8_t ret[STORE_IDENTITY]);
bool selectors_repeat(const struct selectors *s); /* is one in it twice? */

/* Reads what entry_pack wrote, without an allocation for each string: all point into `text`. Valid
 * until the next use of the struct. */
struct unpacked {
	struct entry en;
	char *text;
	size_t text_cap, text_len;
	struct selector *sel;
	size_t sel_cap;
	char **fed, **dns;
	size_t fed_cap, dns_cap;
};
int entry_unpack(struct unpacked *u, struct bytes data, struct err *e) MUST_USE;
void unpacked_deinit(struct unpacked *u);

/* ---- the database (store_sqlite*.c) ---- */

struct db;
int db_open(const char *path, struct db **ret, struct err *e) MUST_USE;
void db_close(struct db *d);
const char *db_epoch(const struct db *d);
uint64_t db_change(const struct db *d);
/* Does all of them in one transaction; each gets its outputs. */
void db_batch(struct db *d, struct op **v, int n);
enum db_wants { DB_WANTS_NOTHING, DB_WANTS_REST, DB_WANTS_IT_NOW };
enum db_wants db_wants(const struct db *d); /* maintenance; any thread */
int db_load(struct db *d, const struct store_observer *o, struct err *e) MUST_USE;
int db_blob_get(struct db *d, const char *name, struct buf *ret, struct err *e) MUST_USE;
void db_stats(const struct db *d, struct store_stats *ret);

#endif

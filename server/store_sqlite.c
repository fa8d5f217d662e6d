/* The SQLite store: opening, transactions, the change log. */
#include "server/store_sqlite.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/crypto.h"

extern const char schema_1_begin[] __asm__("_binary_server_schema_001_sql_start");
extern const char schema_1_end[] __asm__("_binary_server_schema_001_sql_end");
extern const char schema_2_begin[] __asm__("_binary_server_schema_002_sql_start");
extern const char schema_2_end[] __asm__("_binary_server_schema_002_sql_end");
extern const char schema_3_begin[] __asm__("_binary_server_schema_003_sql_start");
extern const char schema_3_end[] __asm__("_binary_server_schema_003_sql_end");

/* What makes version n + 1 of version n. */
static const struct {
	const char *begin, *end;
} migrations[STORE_SCHEMA] = {
	{ schema_1_begin, schema_1_end },
	{ schema_2_begin, schema_2_end },
	{ schema_3_begin, schema_3_end },
};

#define ENTRY_COLUMNS                                                                              \
	"SELECT num, id, spiffe_id, parent_id, revision, created_at, expires_at, data FROM entry "
#define NODE_COLUMNS                                                                               \
	"SELECT spiffe_id, attestation_type, serial, expires_at, new_serial, new_expires_at, "     \
	"can_reattest, agent_version, selectors, num FROM node "

#define RELATIONSHIP_COLUMNS "SELECT num, trust_domain, url, endpoint_id FROM relationship "

static const char *const texts[SQL_COUNT] = {
	[SQL_BEGIN] = "BEGIN IMMEDIATE",
	[SQL_COMMIT] = "COMMIT",
	[SQL_ROLLBACK] = "ROLLBACK",
	[SQL_SAVEPOINT] = "SAVEPOINT op",
	[SQL_RELEASE] = "RELEASE op",
	[SQL_ROLLBACK_TO] = "ROLLBACK TO op",
	[SQL_CHANGE] = "INSERT INTO change (seq, kind, object, at) VALUES (?, ?, ?, ?)",
	[SQL_CHANGE_TRIM] = "DELETE FROM change WHERE seq <= ?",
	[SQL_ENTRY_INSERT] =
		"INSERT INTO entry (id, identity, spiffe_id, parent_id, revision, created_at, "
		"expires_at, is_token_alias, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
	[SQL_ENTRY_BY_ID] = ENTRY_COLUMNS "WHERE id = ?",
	[SQL_ENTRY_BY_IDENTITY] = ENTRY_COLUMNS "WHERE identity = ?",
	[SQL_ENTRY_UPDATE] =
		"UPDATE entry SET identity = ?, spiffe_id = ?, parent_id = ?, revision = ?, "
		"expires_at = ?, is_token_alias = ?, data = ? WHERE num = ?",
	[SQL_ENTRY_DELETE] = "DELETE FROM entry WHERE num = ?",
	[SQL_ENTRY_EXPIRED] =
		"SELECT num, id FROM entry WHERE expires_at <> 0 AND expires_at < ? LIMIT ?",
	[SQL_ENTRY_TOKEN_ALIAS] =
		"SELECT num, id FROM entry WHERE is_token_alias <> 0 AND parent_id = ? LIMIT 1",
	[SQL_ENTRY_FEDERATED] = ENTRY_COLUMNS
	"WHERE num = (SELECT min(entry) FROM federated WHERE trust_domain = ?)",
	[SQL_ENTRY_ALL] = ENTRY_COLUMNS "ORDER BY num",
	[SQL_FEDERATED_INSERT] = "INSERT INTO federated (trust_domain, entry) VALUES (?, ?)",
	[SQL_FEDERATED_DELETE] = "DELETE FROM federated WHERE entry = ?",
	[SQL_FEDERATED_COUNT] = "SELECT count(*) FROM federated WHERE trust_domain = ?",
	[SQL_BUNDLE_HAS] = "SELECT sequence, num FROM bundle WHERE trust_domain = ?",
	[SQL_BUNDLE_INSERT] = "INSERT INTO bundle (sequence, data, trust_domain) VALUES (?, ?, ?)",
	[SQL_BUNDLE_UPDATE] = "UPDATE bundle SET sequence = ?, data = ? WHERE trust_domain = ?",
	[SQL_BUNDLE_DELETE] = "DELETE FROM bundle WHERE trust_domain = ?",
	[SQL_BUNDLE_ALL] = "SELECT trust_domain, sequence, data, num FROM bundle ORDER BY num",
	[SQL_NODE_PUT] =
		"INSERT INTO node (spiffe_id, attestation_type, serial, expires_at, new_serial, "
		"new_expires_at, can_reattest, agent_version, selectors, num) "
		"VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, "
		"(SELECT coalesce(max(num), 0) + 1 FROM node)) ON CONFLICT (spiffe_id) DO UPDATE "
		"SET "
		"attestation_type = excluded.attestation_type, serial = excluded.serial, "
		"expires_at = excluded.expires_at, new_serial = excluded.new_serial, "
		"new_expires_at = excluded.new_expires_at, can_reattest = excluded.can_reattest, "
		"agent_version = excluded.agent_version, selectors = excluded.selectors",
	[SQL_NODE_GET] = NODE_COLUMNS "WHERE spiffe_id = ?",
	[SQL_NODE_DELETE] = "DELETE FROM node WHERE spiffe_id = ?",
	[SQL_NODE_EXPIRED] = "SELECT spiffe_id FROM node WHERE expires_at < ? AND (serial <> '' OR "
			     "new_serial <> '') "
			     "AND (can_reattest <> 0 OR ? <> 0) LIMIT ?",
	[SQL_NODE_NUM] = "SELECT num FROM node WHERE spiffe_id = ?",
	[SQL_NODE_ALL] = NODE_COLUMNS "ORDER BY num",
	[SQL_TOKEN_INSERT] = "INSERT INTO join_token (token, expires_at) VALUES (?, ?)",
	[SQL_TOKEN_GET] = "SELECT expires_at FROM join_token WHERE token = ?",
	[SQL_TOKEN_DELETE] = "DELETE FROM join_token WHERE token = ?",
	[SQL_TOKEN_EXPIRED] = "SELECT token FROM join_token WHERE expires_at < ? LIMIT ?",
	[SQL_BLOB_PUT] = "INSERT INTO blob (name, data) VALUES (?, ?) "
			 "ON CONFLICT (name) DO UPDATE SET data = excluded.data",
	[SQL_BLOB_GET] = "SELECT data FROM blob WHERE name = ?",
	[SQL_RELATIONSHIP_INSERT] =
		"INSERT INTO relationship (trust_domain, url, endpoint_id) VALUES (?, ?, ?)",
	[SQL_RELATIONSHIP_UPDATE] =
		"UPDATE relationship SET url = ?, endpoint_id = ? WHERE num = ?",
	[SQL_RELATIONSHIP_DELETE] = "DELETE FROM relationship WHERE trust_domain = ?",
	[SQL_RELATIONSHIP_GET] = RELATIONSHIP_COLUMNS "WHERE trust_domain = ?",
	[SQL_RELATIONSHIP_ALL] = RELATIONSHIP_COLUMNS "ORDER BY num",
};

/* ---- statements ---- */

sqlite3_stmt *db_statement(struct db *d, enum sql which)
{
	sqlite3_stmt **st = &d->st[which];

	if (*st) {
		sqlite3_reset(*st);
		sqlite3_clear_bindings(*st);
		return *st;
	}
	if (sqlite3_prepare_v3(d->h, texts[which], -1, SQLITE_PREPARE_PERSISTENT, st, NULL) !=
		SQLITE_OK)
		return NULL;
	return *st;
}

int db_step(struct db *d, sqlite3_stmt *st)
{
	if (!st)
		return SQLITE_ERROR;
	__atomic_fetch_add(&d->statements, 1, __ATOMIC_RELAXED);
	errno = 0;
	return sqlite3_step(st);
}

/* SQLite says FULL for ENOSPC only, and does not keep the number of an error at COMMIT: errno is
 * that of the last call that failed. */
static bool is_disk_full(struct db *d, int last_errno)
{
	if ((sqlite3_errcode(d->h) & 0xff) == SQLITE_FULL)
		return true;
	return (sqlite3_errcode(d->h) & 0xff) == SQLITE_IOERR &&
	       (last_errno == ENOSPC || last_errno == EDQUOT || last_errno == EFBIG);
}

int db_error(struct db *d, struct err *e)
{
	int last_errno = errno;
	const char *text = sqlite3_errmsg(d->h);

	if (is_disk_full(d, last_errno))
		return err_set(e, ERR_EXHAUSTED, "datastore: no room to write %s", d->path);
	switch (sqlite3_errcode(d->h) & 0xff) {
	case SQLITE_CORRUPT:
	case SQLITE_NOTADB:
		return err_set(e, ERR_DATA_LOSS, "datastore: %s is damaged: %s", d->path, text);
	case SQLITE_BUSY:
	case SQLITE_LOCKED:
		return err_set(
			e, ERR_UNAVAILABLE, "datastore: %s is in use by another process", d->path);
	case SQLITE_READONLY:
	case SQLITE_PERM:
	case SQLITE_CANTOPEN:
		return err_set(e, ERR_DENIED, "datastore: cannot write %s: %s", d->path, text);
	default:
		return err_set(e, ERR_INTERNAL, "datastore: %s: %s", d->path, text);
	}
}

bool db_is_duplicate(const struct db *d)
{
	int code = sqlite3_extended_errcode(d->h);

	return code == SQLITE_CONSTRAINT_UNIQUE || code == SQLITE_CONSTRAINT_PRIMARYKEY;
}

/* What is bound lives until the statement was run. */
void db_text(sqlite3_stmt *st, int at, const char *s)
{
	sqlite3_bind_text(st, at, s, -1, SQLITE_STATIC);
}

void db_bytes(sqlite3_stmt *st, int at, struct bytes v)
{
	sqlite3_bind_blob64(st, at, v.n ? (const void *)v.p : "", v.n, SQLITE_STATIC);
}

const char *db_column_text(sqlite3_stmt *st, int at)
{
	const char *s = (const char *)sqlite3_column_text(st, at);

	return s ? s : "";
}

struct bytes db_column_bytes(sqlite3_stmt *st, int at)
{
	const void *p = sqlite3_column_blob(st, at);

	return bytes_of(p, p ? (size_t)sqlite3_column_bytes(st, at) : 0);
}

int db_run(struct db *d, struct err *e, enum sql which, const char *types, ...)
{
	sqlite3_stmt *st = db_statement(d, which);
	va_list ap;
	int r;

	if (!st)
		return db_error(d, e);
	va_start(ap, types);
	for (int i = 0; types[i]; i++) {
		if (types[i] == 't')
			db_text(st, i + 1, va_arg(ap, const char *));
		else if (types[i] == 'i')
			sqlite3_bind_int64(st, i + 1, va_arg(ap, int64_t));
		else
			db_bytes(st, i + 1, *va_arg(ap, const struct bytes *));
	}
	va_end(ap);
	r = db_step(d, st);
	if (r != SQLITE_DONE && r != SQLITE_ROW) {
		r = db_error(d, e);
		sqlite3_reset(st);
		return r;
	}
	sqlite3_reset(st);
	return 0;
}

/* For the few statements of opening. */
static int exec(struct db *d, const char *sql, struct err *e)
{
	if (sqlite3_exec(d->h, sql, NULL, NULL, NULL) != SQLITE_OK)
		return db_error(d, e);
	return 0;
}

/* The first column of the first row, or "" without a row. */
static int ask(struct db *d, const char *sql, char *ret, size_t cap, struct err *e)
{
	sqlite3_stmt *st = NULL;
	int r;

	if (sqlite3_prepare_v2(d->h, sql, -1, &st, NULL) != SQLITE_OK)
		return db_error(d, e);
	r = sqlite3_step(st);
	ret[0] = 0;
	if (r == SQLITE_ROW)
		snprintf(ret, cap, "%s", db_column_text(st, 0));
	if (r != SQLITE_ROW && r != SQLITE_DONE) {
		r = db_error(d, e);
		sqlite3_finalize(st);
		return r;
	}
	sqlite3_finalize(st);
	return 0;
}

/* ---- opening ---- */

static uint32_t be32(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static bool has_wal(const char *path)
{
	AUTO(free) char *wal = xasprintf("%s-wal", path);
	struct stat st;

	return stat(wal, &st) == 0 && st.st_size > 0;
}

/* SQLite takes a file that is cut short for an empty or shorter one in some cases, so the header is
 * looked at first (https://www.sqlite.org/fileformat.html, 1.3). What a write-ahead log is still to
 * put in order is left to SQLite. */
static int check_header(const char *path, int fd, struct err *e)
{
	uint8_t h[100];
	struct stat st;
	uint64_t page;

	if (fstat(fd, &st) < 0)
		return err_errno(e, errno, "datastore: cannot read %s", path);
	if (!S_ISREG(st.st_mode))
		return err_set(e, ERR_INVALID, "datastore: %s is not a file", path);
	if (st.st_size == 0 || has_wal(path))
		return 0;
	if (pread(fd, h, sizeof(h), 0) != (ssize_t)sizeof(h) ||
		memcmp(h, "SQLite format 3", 16) != 0)
		return err_set(e, ERR_DATA_LOSS,
			"datastore: %s is damaged: it does not begin as an SQLite database does",
			path);
	page = (uint64_t)h[16] << 8 | h[17];
	page = page == 1 ? 65536 : page;
	if ((uint64_t)st.st_size < page * be32(h + 28))
		return err_set(e, ERR_DATA_LOSS,
			"datastore: %s is damaged: it should have %llu bytes and has %llu", path,
			page * (unsigned long long)be32(h + 28), (unsigned long long)st.st_size);
	return 0;
}

/* Makes the file when it is missing, for nobody else's eyes. */
static int prepare_file(const char *path, struct err *e)
{
	AUTO(close_fd) int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	if (fd < 0)
		return err_errno(e, errno, "datastore: cannot open %s", path);
	return check_header(path, fd, e);
}

static int quick_check(struct db *d, struct err *e)
{
	char answer[300];
	struct stat st;
	int r;

	if (stat(d->path, &st) < 0 || st.st_size > STORE_QUICK_CHECK_MAX)
		return 0;
	r = ask(d, "PRAGMA quick_check(1)", answer, sizeof(answer), e);
	if (r)
		return r;
	if (strcmp(answer, "ok") != 0)
		return err_set(e, ERR_DATA_LOSS, "datastore: %s is damaged: %s", d->path, answer);
	return 0;
}

/* Brings a database of version `from` (0: empty) up to date, with the statement that notes it. All
 * or nothing. */
static int migrate(struct db *d, long from, const char *meta, struct err *e)
{
	int r = exec(d, "BEGIN", e);

	for (long i = from; !r && i < STORE_SCHEMA; i++) {
		AUTO(free)
		char *sql = xstrndup(
			migrations[i].begin, (size_t)(migrations[i].end - migrations[i].begin));

		r = exec(d, sql, e);
	}
	if (!r)
		r = exec(d, meta, e);
	if (!r)
		r = exec(d, "COMMIT", e);
	if (r && !sqlite3_get_autocommit(d->h))
		(void)sqlite3_exec(d->h, "ROLLBACK", NULL, NULL, NULL);
	return r;
}

static int create_schema(struct db *d, struct err *e)
{
	AUTO(free) char *meta = NULL;
	AUTO_BUF struct buf hex = BUF_INIT;
	uint8_t epoch[16];

	crypto_random(epoch, sizeof(epoch));
	hex_encode(&hex, bytes_of(epoch, sizeof(epoch)));
	meta = xasprintf("INSERT INTO meta VALUES ('schema', '%d'), ('epoch', '%s')", STORE_SCHEMA,
		buf_cstr(&hex));
	return migrate(d, 0, meta, e);
}

static int upgrade_schema(struct db *d, long from, struct err *e)
{
	AUTO(free)
	char *meta = xasprintf("UPDATE meta SET value = '%d' WHERE name = 'schema'", STORE_SCHEMA);

	return migrate(d, from, meta, e);
}

static int check_schema(struct db *d, struct err *e)
{
	char text[40];
	long version;
	int r = ask(d, "SELECT count(*) FROM sqlite_master", text, sizeof(text), e);

	if (r)
		return r;
	if (strcmp(text, "0") == 0) {
		r = create_schema(d, e);
		if (r)
			return r;
	}
	r = ask(d, "SELECT name FROM sqlite_master WHERE name = 'meta'", text, sizeof(text), e);
	if (!r && !text[0])
		return err_set(e, ERR_PRECONDITION,
			"datastore: %s is a database of another program", d->path);
	if (!r)
		r = ask(d, "SELECT value FROM meta WHERE name = 'schema'", text, sizeof(text), e);
	if (r)
		return r;
	version = strtol(text, NULL, 10);
	if (version > STORE_SCHEMA)
		return err_set(e, ERR_PRECONDITION,
			"datastore: %s was made by a newer version (schema %ld; this one knows "
			"up to %d)",
			d->path, version, STORE_SCHEMA);
	if (version < 1)
		return err_set(
			e, ERR_DATA_LOSS, "datastore: %s has no known schema version", d->path);
	r = version < STORE_SCHEMA ? upgrade_schema(d, version, e) : 0;
	return r ? r
		 : ask(d, "SELECT value FROM meta WHERE name = 'epoch'", d->epoch, sizeof(d->epoch),
			   e);
}

static int read_change(struct db *d, struct err *e)
{
	char text[40];
	int r = ask(d, "SELECT coalesce(max(seq), 0) FROM change", text, sizeof(text), e);

	if (r)
		return r;
	d->change = strtoull(text, NULL, 10);
	r = ask(d, "SELECT coalesce(min(seq), 1) FROM change", text, sizeof(text), e);
	if (!r)
		d->trimmed = strtoull(text, NULL, 10) - 1;
	return r;
}

static int on_wal(void *arg, sqlite3 *h, const char *name, int pages)
{
	struct db *d = arg;

	(void)h;
	(void)name;
	d->wal_pages = pages;
	return SQLITE_OK;
}

static int exec_all(struct db *d, const char *const *sql, struct err *e)
{
	int r = 0;

	for (; *sql && !r; sql++)
		r = exec(d, *sql, e);
	return r;
}

static int set_cache(struct db *d, int kib, struct err *e)
{
	char text[60];

	snprintf(text, sizeof(text), "PRAGMA cache_size = -%d", kib);
	return exec(d, text, e);
}

/* The exclusive lock is taken at once and kept: a second server is told so. Until the file is known
 * to be ours, nothing writes to it. */
static int set_up(struct db *d, struct err *e)
{
	static const char *const lock[] = {
		"PRAGMA locking_mode = EXCLUSIVE",
		"BEGIN EXCLUSIVE",
		"COMMIT",
		"PRAGMA trusted_schema = OFF",
		"PRAGMA temp_store = MEMORY",
		NULL,
	};
	static const char *const write[] = {
		"PRAGMA journal_mode = WAL",
		"PRAGMA synchronous = FULL",
		NULL,
	};
	int r;

	sqlite3_extended_result_codes(d->h, 1);
	sqlite3_busy_timeout(d->h, 1000);
	r = exec_all(d, lock, e);
	if (!r)
		r = set_cache(d, STORE_CACHE_KIB_LOADING, e);
	if (!r)
		r = quick_check(d, e);
	if (!r)
		r = check_schema(d, e);
	if (!r)
		r = exec_all(d, write, e);
	if (!r)
		r = read_change(d, e);
	sqlite3_wal_hook(d->h, on_wal, d);
	return r;
}

int db_open(const char *path, struct db **ret, struct err *e)
{
	struct db *d;
	int r = prepare_file(path, e);

	if (r)
		return r;
	d = xcalloc(1, sizeof(*d));
	d->path = xstrdup(path);
	d->packed = d->scratch = BUF_INIT;
	r = sqlite3_open_v2(path, &d->h,
		SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, NULL);
	r = r == SQLITE_OK ? set_up(d, e) : db_error(d, e);
	if (r) {
		db_close(d);
		return r;
	}
	*ret = d;
	return 0;
}

void db_close(struct db *d)
{
	if (!d)
		return;
	for (int i = 0; i < SQL_COUNT; i++)
		sqlite3_finalize(d->st[i]);
	sqlite3_close(d->h);
	unpacked_deinit(&d->row);
	buf_deinit(&d->packed);
	buf_deinit(&d->scratch);
	free(d->path);
	free(d);
}

const char *db_epoch(const struct db *d)
{
	return d->epoch;
}

uint64_t db_change(const struct db *d)
{
	return d->change;
}

void db_stats(const struct db *d, struct store_stats *ret)
{
	ret->statements = __atomic_load_n(&d->statements, __ATOMIC_RELAXED);
	ret->transactions = __atomic_load_n(&d->transactions, __ATOMIC_RELAXED);
	ret->changes = __atomic_load_n(&d->changes, __ATOMIC_RELAXED);
}

/* ---- effects ---- */

struct effect *db_effect(
	struct db *d, struct op *o, enum change_kind kind, const char *key, struct err *e)
{
	int64_t now = clock_wall().sec;
	struct effect *f;

	if (db_run(d, e, SQL_CHANGE, "iiti", (int64_t)d->change + 1, (int64_t)kind, key, now))
		return NULL;
	/* Doubles when the count is a power of two. */
	if ((o->n_effects & (o->n_effects - 1)) == 0)
		o->effects = xreallocarray(
			o->effects, o->n_effects ? o->n_effects * 2 : 1, sizeof(o->effects[0]));
	f = &o->effects[o->n_effects++];
	*f = (struct effect){ .change = ++d->change, .kind = kind, .key = xstrdup(key) };
	return f;
}

int db_refuse(struct op *o, int code, const char *fmt, ...)
{
	struct err e;
	va_list ap;

	va_start(ap, fmt);
	err_setv(&e, code, fmt, ap);
	va_end(ap);
	o->code = code;
	free(o->message);
	o->message = xstrdup(e.msg);
	return 0;
}

/* ---- transactions ---- */

static int trim(struct db *d, struct err *e)
{
	uint64_t upto;
	int r;

	if (d->change < d->trimmed + STORE_CHANGES_KEPT + STORE_CHANGES_SLACK)
		return 0;
	upto = d->change - STORE_CHANGES_KEPT;
	if (upto > d->trimmed + STORE_TRIM_STEP)
		upto = d->trimmed + STORE_TRIM_STEP;
	r = db_run(d, e, SQL_CHANGE_TRIM, "i", (int64_t)upto);
	if (!r)
		d->trimmed = upto;
	return r;
}

static int do_op(struct db *d, struct op *o, struct err *e)
{
	switch (o->kind) {
	case OP_ENTRIES_CREATE:
		return db_entries_create(d, o, e);
	case OP_ENTRIES_UPDATE:
		return db_entries_update(d, o, e);
	case OP_ENTRIES_DELETE:
		return db_entries_delete(d, o, e);
	case OP_ENTRIES_PRUNE:
		return db_entries_prune(d, o, e);
	case OP_MAINTAIN:
		return trim(d, e);
	case OP_NODE_PUT:
	case OP_NODE_UPDATE:
	case OP_NODE_DELETE:
	case OP_NODES_PRUNE:
	case OP_TOKEN_CREATE:
	case OP_TOKEN_TAKE:
	case OP_TOKENS_PRUNE:
	case OP_BUNDLE_PUT:
	case OP_BUNDLE_DELETE:
	case OP_BLOB_PUT:
	case OP_RELATIONSHIP_CREATE:
	case OP_RELATIONSHIP_UPDATE:
	case OP_RELATIONSHIP_DELETE:
	default:
		return db_other(d, o, e);
	}
}

/* Those with a result per item see to it themselves that a refused item leaves nothing. */
static bool has_items(const struct op *o)
{
	return o->done_results != NULL;
}

static int do_op_apart(struct db *d, struct op *o, struct err *e)
{
	uint64_t change = d->change;
	int r = db_run(d, e, SQL_SAVEPOINT, "");

	if (r)
		return r;
	r = do_op(d, o, e);
	if (r)
		return r;
	/* Taking an expired token is refused, and yet deletes it: refusals keep what has effects
	 * only when they say so by having them. */
	if (o->code && o->n_effects == 0) {
		r = db_run(d, e, SQL_ROLLBACK_TO, "");
		d->change = change;
	}
	return r ? r : db_run(d, e, SQL_RELEASE, "");
}

static int do_all(struct db *d, struct op **v, int n, struct err *e)
{
	int r = db_run(d, e, SQL_BEGIN, "");

	for (int i = 0; i < n && !r; i++)
		r = has_items(v[i]) ? do_op(d, v[i], e) : do_op_apart(d, v[i], e);
	return r ? r : db_run(d, e, SQL_COMMIT, "");
}

static void roll_back(struct db *d)
{
	for (int i = 0; i < SQL_COUNT; i++)
		if (d->st[i])
			sqlite3_reset(d->st[i]);
	if (!sqlite3_get_autocommit(d->h))
		(void)sqlite3_exec(d->h, "ROLLBACK", NULL, NULL, NULL);
}

static void look_after(struct db *d)
{
	enum db_wants w = DB_WANTS_NOTHING;
	uint64_t rows = d->change - d->trimmed;

	if (d->wal_pages >= STORE_WAL_PAGES || rows >= STORE_CHANGES_KEPT + STORE_CHANGES_SLACK)
		w = DB_WANTS_REST;
	if (d->wal_pages >= STORE_WAL_PAGES_URGENT || rows >= 2 * STORE_CHANGES_KEPT)
		w = DB_WANTS_IT_NOW;
	__atomic_store_n(&d->wants, w, __ATOMIC_RELAXED);
}

enum db_wants db_wants(const struct db *d)
{
	return __atomic_load_n(&d->wants, __ATOMIC_RELAXED);
}

static void checkpoint(struct db *d)
{
	int pages = 0;
	int moved = 0;

	if (d->wal_pages < STORE_WAL_PAGES)
		return;
	if (sqlite3_wal_checkpoint_v2(d->h, NULL, SQLITE_CHECKPOINT_PASSIVE, &pages, &moved) ==
			SQLITE_OK &&
		moved >= pages)
		d->wal_pages = 0;
}

/* A row of creates alone that all fail on one full disk must not keep one another from a smaller
 * one: but which would fit is not known before, so all get the error. */
void db_batch(struct db *d, struct op **v, int n)
{
	uint64_t change = d->change;
	uint64_t trimmed = d->trimmed;
	struct err e = ERR_INIT;
	int r = do_all(d, v, n, &e);

	if (r) {
		roll_back(d);
		d->change = change;
		d->trimmed = trimmed;
		for (int i = 0; i < n; i++)
			op_fail(v[i], r, e.msg);
	}
	__atomic_fetch_add(&d->transactions, 1, __ATOMIC_RELAXED);
	__atomic_fetch_add(&d->changes, d->change - change, __ATOMIC_RELAXED);
	for (int i = 0; i < n; i++)
		if (v[i]->kind == OP_MAINTAIN)
			checkpoint(d);
	look_after(d);
}

/* ---- reading, at start ---- */

int db_load(struct db *d, const struct store_observer *o, struct err *e)
{
	int r = 0;

	if (o->bundle)
		r = db_load_bundles(d, o, e);
	if (!r && o->relationship)
		r = db_load_relationships(d, o, e);
	if (!r && o->node)
		r = db_load_nodes(d, o, e);
	if (!r && o->entry)
		r = db_load_entries(d, o, e);
	return r ? r : set_cache(d, STORE_CACHE_KIB, e);
}

int db_blob_get(struct db *d, const char *name, struct buf *ret, struct err *e)
{
	sqlite3_stmt *st = db_statement(d, SQL_BLOB_GET);
	int r;

	if (!st)
		return db_error(d, e);
	db_text(st, 1, name);
	r = db_step(d, st);
	if (r == SQLITE_ROW) {
		r = buf_bytes(ret, db_column_bytes(st, 0))
			    ? 0
			    : err_set(e, ERR_EXHAUSTED, "datastore: %s is too large", name);
	} else {
		r = r == SQLITE_DONE ? err_set(e, ERR_NOT_FOUND, "%s is not stored", name)
				     : db_error(d, e);
	}
	sqlite3_reset(st);
	return r;
}

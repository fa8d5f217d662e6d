/* Reading a SPIRE server's SQLite datastore. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <sqlite3.h>

#include "lib/spiffeid.h"
#include "server/spire.h"

/* Where SQLite's own locks are (https://www.sqlite.org/fileformat.html, 1.4: the lock-byte page).
 */
#define LOCK_BYTES_AT INT64_C(0x40000000)

enum { LOCK_BYTES = 512, COPY_STEP = 1 << 16, SERIAL_MAX = 60 };

/* The rows of the tables that others point to by number, in the order of that number. */
struct rows {
	int64_t *v;
	size_t n, at;
};

struct reader {
	sqlite3 *h;
	const char *path, *trust_domain;
	struct spire *s;
	struct rows entry, node;
	struct hasher *sum;
};

/* ---- the file ---- */

/* F_GETLK only asks. A SPIRE that runs holds SQLite's shared lock for as long as it has the
 * database open. */
bool spire_in_use(const char *path)
{
	AUTO(close_fd) int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct flock l = { .l_type = F_WRLCK,
		.l_whence = SEEK_SET,
		.l_start = LOCK_BYTES_AT,
		.l_len = LOCK_BYTES };

	return fd >= 0 && fcntl(fd, F_GETLK, &l) == 0 && l.l_type != F_UNLCK;
}

static bool has_content(const char *path, const char *suffix)
{
	AUTO(free) char *name = xasprintf("%s%s", path, suffix);
	struct stat st;

	return stat(name, &st) == 0 && st.st_size > 0;
}

static int copy_all(int from, int to)
{
	AUTO(free) char *step = xmalloc(COPY_STEP);
	ssize_t n;

	while ((n = read(from, step, COPY_STEP)) > 0)
		for (ssize_t done = 0; done < n;) {
			ssize_t w = write(to, step + done, (size_t)(n - done));

			if (w < 0)
				return -1;
			done += w;
		}
	return n < 0 ? -1 : 0;
}

/* A file that is not there is not copied. */
static int copy_file(const char *path, const char *suffix, const char *dir, struct err *e)
{
	AUTO(free) char *from = xasprintf("%s%s", path, suffix);
	AUTO(free) char *to = xasprintf("%s/db%s", dir, suffix);
	AUTO(close_fd) int in = open(from, O_RDONLY | O_CLOEXEC);
	AUTO(close_fd) int out = -1;

	if (in < 0)
		return errno == ENOENT && suffix[0] ? 0 : err_errno(e, errno, "%s", from);
	out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (out < 0 || copy_all(in, out))
		return err_errno(e, errno, "copying %s to %s", from, to);
	return 0;
}

/* A database's files, but for -shm, which SQLite makes anew from the log. */
static const char *const suffixes[] = { "", "-wal", "-journal" };

/* SQLite's file names as URIs. */
static void put_escaped(struct buf *b, const char *path)
{
	for (; *path; path++)
		if (*path == '?' || *path == '#' || *path == '%')
			buf_printf(b, "%%%02x", (uint8_t)*path);
		else
			buf_byte(b, (uint8_t)*path);
}

static int database_error(struct reader *r, struct err *e)
{
	int code = sqlite3_errcode(r->h) & 0xff;
	bool damaged = code == SQLITE_CORRUPT || code == SQLITE_NOTADB;

	return err_set(e, damaged ? ERR_DATA_LOSS : ERR_INTERNAL, "SPIRE's datastore %s%s: %s",
		r->path, damaged ? " is damaged" : "", sqlite3_errmsg(r->h));
}

static int open_uri(struct reader *r, const char *path, const char *query, int flags, struct err *e)
{
	AUTO_BUF struct buf uri = BUF_INIT;

	buf_str(&uri, "file:");
	put_escaped(&uri, path);
	buf_str(&uri, query);
	if (sqlite3_open_v2(buf_cstr(&uri), &r->h, flags | SQLITE_OPEN_URI | SQLITE_OPEN_NOMUTEX,
		    NULL) != SQLITE_OK)
		return database_error(r, e);
	return 0;
}

/* ---- rows ---- */

static const char *text(sqlite3_stmt *st, int at)
{
	const char *s = (const char *)sqlite3_column_text(st, at);

	return s ? s : "";
}

static struct bytes data(sqlite3_stmt *st, int at)
{
	const void *p = sqlite3_column_blob(st, at);

	return bytes_of(p, p ? (size_t)sqlite3_column_bytes(st, at) : 0);
}

static void add_to_sum(struct reader *r, sqlite3_stmt *st)
{
	for (int i = 0; i < sqlite3_column_count(st); i++) {
		struct bytes v = data(st, i);
		uint64_t n = v.n;

		hasher_update(r->sum, bytes_of(&n, sizeof(n)));
		hasher_update(r->sum, v);
	}
}

typedef int row_fn(struct reader *r, sqlite3_stmt *st, struct err *e);

static int each(struct reader *r, const char *sql, row_fn *fn, struct err *e)
{
	sqlite3_stmt *st = NULL;
	int step;
	int code = 0;

	if (sqlite3_prepare_v2(r->h, sql, -1, &st, NULL) != SQLITE_OK)
		return database_error(r, e);
	hasher_update(r->sum, bytes_str("table"));
	while ((step = sqlite3_step(st)) == SQLITE_ROW && !code) {
		add_to_sum(r, st);
		code = fn(r, st, e);
	}
	if (!code && step != SQLITE_DONE)
		code = database_error(r, e);
	sqlite3_finalize(st);
	return code;
}

/* Doubles when the count is a power of two. */
static void *grow(void *v, size_t n, size_t size)
{
	return n & (n - 1) ? v : xreallocarray(v, n ? n * 2 : 1, size);
}

static void rows_add(struct rows *r, int64_t num)
{
	r->v = grow(r->v, r->n, sizeof(r->v[0]));
	r->v[r->n++] = num;
}

/* Rows that point to these come in the same order. SIZE_MAX: to none of them. */
static size_t rows_find(struct rows *r, int64_t num)
{
	while (r->at < r->n && r->v[r->at] < num)
		r->at++;
	return r->at < r->n && r->v[r->at] == num ? r->at : SIZE_MAX;
}

static int on_version(struct reader *r, sqlite3_stmt *st, struct err *e)
{
	(void)e;
	r->s->schema = sqlite3_column_int(st, 0);
	free(r->s->code_version);
	r->s->code_version = xstrdup(text(st, 1));
	return 0;
}

static int on_bundle(struct reader *r, sqlite3_stmt *st, struct err *e)
{
	struct spire *s = r->s;
	struct bundle *b = NULL;
	int code = spire_parse_bundle(data(st, 1), &b, &s->left, e);

	if (code)
		return err_wrap(e, "SPIRE's datastore %s: bundle %s", r->path, text(st, 0));
	s->bundles = grow(s->bundles, s->n_bundles, sizeof(*s->bundles));
	s->bundles[s->n_bundles++] = b;
	return 0;
}

static int on_entry(struct reader *r, sqlite3_stmt *st, struct err *e)
{
	struct spire *s = r->s;
	struct entry en = {
		.id = xstrdup(text(st, 1)),
		.spiffe_id = xstrdup(text(st, 2)),
		.parent_id = xstrdup(text(st, 3)),
		.x509_svid_ttl = sqlite3_column_int(st, 4),
		.admin = sqlite3_column_int(st, 5) != 0,
		.downstream = sqlite3_column_int(st, 6) != 0,
		.expires_at = sqlite3_column_int64(st, 7),
		.revision_number = sqlite3_column_int64(st, 8),
		.store_svid = sqlite3_column_int(st, 9) != 0,
		.hint = xstrdup(text(st, 10)),
		.jwt_svid_ttl = sqlite3_column_int(st, 11),
		.created_at = sqlite3_column_int64(st, 12),
	};
	struct err why = ERR_INIT;

	(void)e;
	if (spire_parse_attributes(data(st, 13), &en, &why))
		spire_leave(&s->left, "of entry %s: %s", en.id, why.msg);
	s->entries = grow(s->entries, s->n_entries, sizeof(*s->entries));
	s->entries[s->n_entries++] = en;
	rows_add(&r->entry, sqlite3_column_int64(st, 0));
	return 0;
}

static struct entry *entry_of(struct reader *r, sqlite3_stmt *st)
{
	size_t i = rows_find(&r->entry, sqlite3_column_int64(st, 0));

	return i == SIZE_MAX ? NULL : &r->s->entries[i];
}

static int on_selector(struct reader *r, sqlite3_stmt *st, struct err *e)
{
	struct entry *en = entry_of(r, st);

	(void)e;
	if (en)
		selectors_add(&en->selectors, text(st, 1), text(st, 2));
	return 0;
}

static int on_dns_name(struct reader *r, sqlite3_stmt *st, struct err *e)
{
	struct entry *en = entry_of(r, st);

	(void)e;
	if (en)
		strings_add(&en->dns_names, text(st, 1));
	return 0;
}

static int on_federates(struct reader *r, sqlite3_stmt *st, struct err *e)
{
	struct entry *en = entry_of(r, st);
	AUTO(free) char *td = NULL;
	int code = trust_domain_parse(text(st, 1), &td, e);

	if (code)
		return err_wrap(e, "SPIRE's datastore %s: a bundle's name", r->path);
	if (en && !strings_has(&en->federates_with, td))
		strings_add(&en->federates_with, td);
	return 0;
}

static int on_node(struct reader *r, sqlite3_stmt *st, struct err *e)
{
	struct spire *s = r->s;

	(void)e;
	s->nodes = grow(s->nodes, s->n_nodes, sizeof(*s->nodes));
	s->nodes[s->n_nodes++] = (struct node){
		.spiffe_id = xstrdup(text(st, 1)),
		.attestation_type = xstrdup(text(st, 2)),
		.serial = xstrdup(text(st, 3)),
		.expires_at = sqlite3_column_int64(st, 4),
		.new_serial = xstrdup(text(st, 5)),
		.new_expires_at = sqlite3_column_int64(st, 6),
		.can_reattest = sqlite3_column_int(st, 7) != 0,
		.agent_version = xstrdup(text(st, 8)),
	};
	rows_add(&r->node, sqlite3_column_int64(st, 0));
	return 0;
}

static int on_node_selector(struct reader *r, sqlite3_stmt *st, struct err *e)
{
	size_t i = rows_find(&r->node, sqlite3_column_int64(st, 0));

	(void)e;
	if (i != SIZE_MAX)
		selectors_add(&r->s->nodes[i].selectors, text(st, 1), text(st, 2));
	return 0;
}

static int on_token(struct reader *r, sqlite3_stmt *st, struct err *e)
{
	struct spire *s = r->s;

	(void)e;
	s->tokens = grow(s->tokens, s->n_tokens, sizeof(*s->tokens));
	s->tokens[s->n_tokens++] = (struct join_token){ .token = xstrdup(text(st, 0)),
		.expires_at = sqlite3_column_int64(st, 1) };
	return 0;
}

static int on_relationship(struct reader *r, sqlite3_stmt *st, struct err *e)
{
	struct spire *s = r->s;
	bool spiffe = strcmp(text(st, 2), "https_spiffe") == 0;
	char *td = NULL;
	struct err why = ERR_INIT;

	(void)e;
	if ((!spiffe && strcmp(text(st, 2), "https_web") != 0) || (spiffe && !text(st, 3)[0])) {
		spire_leave(&s->left, "federation with %s: unknown endpoint profile \"%s\"",
			text(st, 0), text(st, 2));
		return 0;
	}
	if (trust_domain_parse(text(st, 0), &td, &why)) {
		spire_leave(&s->left, "federation with \"%s\": %s", text(st, 0), why.msg);
		return 0;
	}
	s->relationships = grow(s->relationships, s->n_relationships, sizeof(*s->relationships));
	s->relationships[s->n_relationships++] = (struct relationship){ .trust_domain = td,
		.url = xstrdup(text(st, 1)),
		.endpoint_id = xstrdup(spiffe ? text(st, 3) : "") };
	return 0;
}

static int on_journal(struct reader *r, sqlite3_stmt *st, struct err *e)
{
	struct spire *s = r->s;
	struct spire_journal j = { .data = BUF_INIT, .active_x509_id = xstrdup(text(st, 1)) };

	(void)e;
	buf_bytes(&j.data, data(st, 0));
	s->journals = grow(s->journals, s->n_journals, sizeof(*s->journals));
	s->journals[s->n_journals++] = j;
	return 0;
}

/* ---- all of it ---- */

static int read_version(struct reader *r, struct err *e)
{
	int code =
		each(r, "SELECT version, code_version FROM migrations ORDER BY id", on_version, e);

	if (code == ERR_DATA_LOSS)
		return code;
	if (code || r->s->schema == 0)
		return err_set(
			e, ERR_PRECONDITION, "%s is not the datastore of a SPIRE server", r->path);
	if (r->s->schema < SPIRE_SCHEMA_MIN)
		return err_set(e, ERR_PRECONDITION,
			"SPIRE's datastore %s has schema version %d (SPIRE %s); versions %d to %d "
			"are known: start SPIRE 1.15 once on it",
			r->path, r->s->schema, r->s->code_version, SPIRE_SCHEMA_MIN,
			SPIRE_SCHEMA_MAX);
	if (r->s->schema > SPIRE_SCHEMA_MAX)
		return err_set(e, ERR_PRECONDITION,
			"SPIRE's datastore %s has schema version %d (SPIRE %s); versions %d to %d "
			"are known: a newer Assay is needed",
			r->path, r->s->schema, r->s->code_version, SPIRE_SCHEMA_MIN,
			SPIRE_SCHEMA_MAX);
	return 0;
}

#define SECONDS(column) "CAST(strftime('%s', " column ") AS INTEGER)"

/* The columns that came with versions 24 and 25. */
static int read_rows(struct reader *r, struct err *e)
{
	const struct {
		const char *sql;
		row_fn *fn;
		struct rows *of;
	} tables[] = {
		{ "SELECT trust_domain, data FROM bundles ORDER BY id", on_bundle, NULL },
		{ r->s->schema >= 25 ? "SELECT id, entry_id, spiffe_id, parent_id, ttl, admin, "
				       "downstream, expiry, revision_number, store_svid, hint, "
				       "jwt_svid_ttl, " SECONDS(
					       "created_at") ", additional_attributes "
							     "FROM registered_entries ORDER BY id"
				     : "SELECT id, entry_id, spiffe_id, parent_id, ttl, admin, "
				       "downstream, expiry, revision_number, store_svid, hint, "
				       "jwt_svid_ttl, " SECONDS(
					       "created_at") ", NULL "
							     "FROM registered_entries ORDER BY id",
			on_entry, NULL },
		{ "SELECT registered_entry_id, type, value FROM selectors "
		  "ORDER BY registered_entry_id, id",
			on_selector, &r->entry },
		{ "SELECT registered_entry_id, value FROM dns_names "
		  "ORDER BY registered_entry_id, id",
			on_dns_name, &r->entry },
		{ "SELECT f.registered_entry_id, b.trust_domain "
		  "FROM federated_registration_entries f JOIN bundles b ON b.id = f.bundle_id "
		  "ORDER BY f.registered_entry_id, b.id",
			on_federates, &r->entry },
		{ r->s->schema >= 24
				? "SELECT id, spiffe_id, data_type, serial_number, " SECONDS(
					  "expires_at") ", new_serial_number, " SECONDS("new_"
											"expires_"
											"at") ", "
											      "can_"
											      "reat"
											      "test"
											      ", "
											      "agen"
											      "t_"
											      "vers"
											      "ion "
											      "FROM"
											      " att"
											      "este"
											      "d_"
											      "node"
											      "_ent"
											      "ries"
											      " ORD"
											      "ER "
											      "BY "
											      "id"
				: "SELECT id, spiffe_id, data_type, serial_number, " SECONDS(
					  "expires_at") ", new_serial_number, " SECONDS("new_"
											"expires_"
											"at") ", "
											      "can_"
											      "reat"
											      "test"
											      ", "
											      "'' "
											      "FROM"
											      " att"
											      "este"
											      "d_"
											      "node"
											      "_ent"
											      "ries"
											      " ORD"
											      "ER "
											      "BY "
											      "id",
			on_node, NULL },
		{ "SELECT n.id, s.type, s.value FROM node_resolver_map_entries s "
		  "JOIN attested_node_entries n ON n.spiffe_id = s.spiffe_id ORDER BY n.id, s.id",
			on_node_selector, &r->node },
		{ "SELECT token, expiry FROM join_tokens ORDER BY id", on_token, NULL },
		{ "SELECT trust_domain, bundle_endpoint_url, bundle_endpoint_profile, "
		  "endpoint_spiffe_id FROM federated_trust_domains ORDER BY id",
			on_relationship, NULL },
		{ "SELECT data, active_x509_authority_id FROM ca_journals ORDER BY id", on_journal,
			NULL },
	};
	int code = 0;

	for (size_t i = 0; i < ARRAY_LEN(tables) && !code; i++) {
		if (tables[i].of)
			tables[i].of->at = 0;
		code = each(r, tables[i].sql, tables[i].fn, e);
	}
	return code;
}

/* ---- what is sound ---- */

static const char *unfit_id(const char *id, const char *td)
{
	struct spiffeid parsed = SPIFFEID_INIT;
	struct err e = ERR_INIT;
	const char *why = NULL;

	if (spiffeid_parse_str(&parsed, id, &e))
		return "is not a SPIFFE ID";
	if (!spiffeid_member_of(&parsed, td))
		why = "is of another trust domain";
	spiffeid_deinit(&parsed);
	return why;
}

static bool entry_fits(struct reader *r, struct entry *en)
{
	const char *id = unfit_id(en->spiffe_id, r->trust_domain);
	const char *parent = unfit_id(en->parent_id, r->trust_domain);

	if (!en->id[0])
		spire_leave(&r->s->left, "an entry of %s: it has no id", en->spiffe_id);
	else if (id)
		spire_leave(&r->s->left, "entry %s: \"%s\" %s", en->id, en->spiffe_id, id);
	else if (parent)
		spire_leave(
			&r->s->left, "entry %s: parent \"%s\" %s", en->id, en->parent_id, parent);
	else if (en->selectors.n == 0)
		spire_leave(&r->s->left, "entry %s: it has no selectors", en->id);
	else
		return true;
	return false;
}

static bool is_serial(const char *s)
{
	return strlen(s) <= SERIAL_MAX && s[strspn(s, "0123456789")] == 0;
}

static bool node_fits(struct reader *r, const struct node *n)
{
	const char *id = unfit_id(n->spiffe_id, r->trust_domain);

	if (id)
		spire_leave(&r->s->left, "agent \"%s\": it %s", n->spiffe_id, id);
	else if (!is_serial(n->serial) || !is_serial(n->new_serial))
		spire_leave(&r->s->left, "agent %s: the serial number of its SVID is none",
			n->spiffe_id);
	else
		return true;
	return false;
}

static void drop_unfit(struct reader *r)
{
	struct spire *s = r->s;
	size_t n = 0;

	for (size_t i = 0; i < s->n_entries; i++) {
		if (entry_fits(r, &s->entries[i]))
			s->entries[n++] = s->entries[i];
		else
			entry_deinit(&s->entries[i]);
	}
	s->n_entries = n;
	n = 0;
	for (size_t i = 0; i < s->n_nodes; i++) {
		selectors_normalize(&s->nodes[i].selectors);
		if (node_fits(r, &s->nodes[i]))
			s->nodes[n++] = s->nodes[i];
		else
			node_deinit(&s->nodes[i]);
	}
	s->n_nodes = n;
}

static int read_all(struct reader *r, struct err *e)
{
	AUTO_BUF struct buf hex = BUF_INIT;
	uint8_t sum[HASH_MAX];
	int code;

	sqlite3_extended_result_codes(r->h, 1);
	r->sum = hasher_new(HASH_SHA256);
	code = read_version(r, e);
	if (!code)
		code = read_rows(r, e);
	hasher_final(r->sum, sum);
	hex_encode(&hex, bytes_of(sum, hash_size(HASH_SHA256)));
	snprintf(r->s->fingerprint, sizeof(r->s->fingerprint), "%s", buf_cstr(&hex));
	if (!code)
		drop_unfit(r);
	return code;
}

static int read_copy(struct reader *r, struct err *e)
{
	AUTO(free) char *dir = NULL;
	AUTO(free) char *copy = NULL;
	int code = store_scratch_make(&dir, e);

	if (code)
		return code;
	for (size_t i = 0; i < ARRAY_LEN(suffixes) && !code; i++)
		code = copy_file(r->path, suffixes[i], dir, e);
	copy = xasprintf("%s/db", dir);
	if (!code)
		code = open_uri(r, copy, "", SQLITE_OPEN_READWRITE, e);
	if (!code)
		code = read_all(r, e);
	sqlite3_close(r->h);
	store_scratch_remove(dir);
	return code;
}

static int read_in_place(struct reader *r, struct err *e)
{
	int code = open_uri(r, r->path, "?mode=ro&immutable=1", SQLITE_OPEN_READONLY, e);

	if (!code)
		code = read_all(r, e);
	sqlite3_close(r->h);
	return code;
}

int spire_read(const char *path, const char *trust_domain, struct spire *ret, struct err *e)
{
	struct spire s = { .schema = 0 };
	struct reader r = { .path = path, .trust_domain = trust_domain, .s = &s };
	bool log = has_content(path, "-wal") || has_content(path, "-journal");
	int code = 0;

	if (access(path, R_OK) != 0)
		code = err_errno(e, errno, "SPIRE's datastore %s", path);
	if (!code)
		code = log ? read_copy(&r, e) : read_in_place(&r, e);
	free(r.entry.v);
	free(r.node.v);
	if (code) {
		spire_deinit(&s);
		return code;
	}
	*ret = s;
	return 0;
}

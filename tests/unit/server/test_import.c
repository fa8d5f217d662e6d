/*
 * Taking over a SPIRE server, whose datastore, journal and keys are made here.
 * Covers: server/import.c server/ca_import.c server/spire.c
 */
#include "server/import.h"

#include <sqlite3.h>
#include <sys/stat.h>

#include "lib/keymgr.h"
#include "server/ca.h"
#include "server/spire.h"
#include "spire/private/server/stored.pb-c.h"
#include "tests/unit/server/store_world.inc"
#include "tests/unit/x509_make.inc"

#define OWN "spiffe://" TD
#define STORED(name) Spire__Private__Server__##name
#define STATUS(name) SPIRE__PRIVATE__SERVER__AUTHORITY_STATUS__##name

/* The tables as SPIRE 1.15 makes them, with the columns that matter. */
static const char tables[] =
	"CREATE TABLE migrations (id integer primary key, version integer, code_version text);"
	"CREATE TABLE bundles (id integer primary key, trust_domain text, data blob);"
	"CREATE TABLE attested_node_entries (id integer primary key, spiffe_id text, data_type "
	"text, serial_number text, expires_at datetime, new_serial_number text, new_expires_at "
	"datetime, can_reattest bool, agent_version text);"
	"CREATE TABLE node_resolver_map_entries (id integer primary key, spiffe_id text, type "
	"text, value text);"
	"CREATE TABLE registered_entries (id integer primary key, created_at datetime, entry_id "
	"text, spiffe_id text, parent_id text, ttl integer, admin bool, downstream bool, expiry "
	"bigint, revision_number bigint, store_svid bool, hint text, jwt_svid_ttl integer, "
	"additional_attributes blob);"
	"CREATE TABLE selectors (id integer primary key, registered_entry_id integer, type text, "
	"value text);"
	"CREATE TABLE dns_names (id integer primary key, registered_entry_id integer, value text);"
	"CREATE TABLE federated_registration_entries (bundle_id integer, registered_entry_id "
	"integer, PRIMARY KEY (bundle_id, registered_entry_id));"
	"CREATE TABLE join_tokens (id integer primary key, token text, expiry bigint);"
	"CREATE TABLE federated_trust_domains (id integer primary key, trust_domain text, "
	"bundle_endpoint_url text, bundle_endpoint_profile text, endpoint_spiffe_id text);"
	"CREATE TABLE ca_journals (id integer primary key, data blob, active_x509_authority_id "
	"text);"
	"INSERT INTO migrations VALUES (1, 25, '1.15.3');";

static const char rows[] =
	"INSERT INTO registered_entries VALUES "
	"(1, '2026-01-02 03:04:05.123456789+00:00', 'e1', '" OWN "/web', '" OWN "/node', 77, 1, 0, "
	"2000000000, 5, 0, 'h1', 78, x'0801'),"
	"(3, '2026-01-02 05:04:05+02:00', 'e3', '" OWN "/web', '" OWN "/node', 0, 0, 1, 0, 0, 0, "
	"'', 0, NULL),"
	"(4, '2026-01-02 03:04:05+00:00', 'e4', '" OWN "/web', '" OWN "/node', 0, 0, 0, 0, 0, 0, "
	"'', 0, NULL),"
	"(5, '2026-01-02 03:04:05+00:00', 'e5', 'spiffe://else.org/web', '" OWN
	"/node', 0, 0, 0, 0, 0, 0, '', 0, NULL),"
	"(6, '2026-01-02 03:04:05+00:00', 'e6', '" OWN "/none', '" OWN "/node', 0, 0, 0, 0, 0, 0, "
	"'', 0, NULL);"
	"INSERT INTO selectors VALUES (1, 1, 'unix', 'uid:1'), (2, 3, 'unix', 'uid:3'), (3, 1, "
	"'unix', 'gid:1'), (4, 2, 'unix', 'of nobody'), (5, 4, 'unix', 'uid:3'), (6, 5, 'unix', "
	"'uid:5');"
	"INSERT INTO dns_names VALUES (1, 1, 'w2'), (2, 1, 'w1');"
	"INSERT INTO federated_registration_entries VALUES (2, 1);"
	"INSERT INTO attested_node_entries VALUES "
	"(1, '" OWN "/spire/agent/join_token/a', 'join_token', '123', '2033-05-18 "
	"03:33:20.5+00:00', '456', '2033-05-18 03:33:21+00:00', 0, '1.15.3'),"
	"(2, '" OWN "/spire/agent/x509pop/b', 'x509pop', '', '2033-05-18 03:33:20+00:00', '', "
	"NULL, 1, '');"
	"INSERT INTO node_resolver_map_entries VALUES (1, '" OWN "/spire/agent/x509pop/b', "
	"'x509pop', 'subject:cn:b'), (2, '" OWN "/spire/agent/gone', 'a', 'b');"
	"INSERT INTO join_tokens VALUES (1, 'tok', 2000000000);"
	"INSERT INTO federated_trust_domains VALUES (1, 'other.org', 'https://other.org/b', "
	"'https_spiffe', 'spiffe://other.org/spire/server'), (2, 'web.org', 'https://web.org/b', "
	"'https_web', ''), (3, 'odd.org', 'https://odd.org', 'carrier_pigeon', '');";

/* ---- the SPIRE server ---- */

static struct {
	char dir[100], db[120], keys[120];
	struct key *x509[2], *jwt;
	struct x509_cert *cert[2];
	char id[2][41];
	bool upstream; /* the second signs the first, and is not tainted */
} spire;

static struct server_options options;
static struct import_options io;
static struct buf report;

static sqlite3 *open_source(void)
{
	sqlite3 *h = NULL;

	CHECK_INT(sqlite3_open(spire.db, &h), SQLITE_OK);
	return h;
}

static void exec_source(const char *sql)
{
	sqlite3 *h = open_source();

	if (sqlite3_exec(h, sql, NULL, NULL, NULL) != SQLITE_OK)
		TEST_FAIL("%s: %s", sql, sqlite3_errmsg(h));
	sqlite3_close(h);
}

static void put_blob(const char *sql, const char *name, const ProtobufCMessage *m)
{
	AUTO_BUF struct buf b = BUF_INIT;
	sqlite3 *h = open_source();
	sqlite3_stmt *st = NULL;

	CHECK(buf_reserve(&b, protobuf_c_message_get_packed_size(m)));
	b.len = protobuf_c_message_pack(m, b.p);
	CHECK_INT(sqlite3_prepare_v2(h, sql, -1, &st, NULL), SQLITE_OK);
	sqlite3_bind_text(st, 1, name, -1, SQLITE_STATIC);
	sqlite3_bind_blob(st, 2, b.p, (int)b.len, SQLITE_STATIC);
	CHECK_INT(sqlite3_step(st), SQLITE_DONE);
	sqlite3_finalize(st);
	sqlite3_close(h);
}

static ProtobufCBinaryData binary(struct bytes v)
{
	return (ProtobufCBinaryData){ v.n, (uint8_t *)(uintptr_t)v.p };
}

static char *text_of(const char *s)
{
	return (char *)(uintptr_t)s;
}

static void put_bundle_row(const char *td)
{
	STORED(Certificate) a, b, *roots[] = { &a, &b };
	STORED(PublicKey) k, *keys[] = { &k };
	STORED(Bundle) m = SPIRE__PRIVATE__SERVER__BUNDLE__INIT;
	AUTO(free) char *id = xasprintf("spiffe://%s", td);

	spire__private__server__certificate__init(&a);
	spire__private__server__certificate__init(&b);
	spire__private__server__public_key__init(&k);
	a.der_bytes = binary(x509_der(spire.cert[0]));
	b.der_bytes = binary(x509_der(spire.cert[1]));
	b.tainted_key = !spire.upstream;
	k.pkix_bytes = binary(pubkey_spki(key_public(spire.jwt)));
	k.kid = text_of("kid1");
	k.not_after = 2000000000;
	m.trust_domain_id = id;
	m.root_cas = roots;
	m.n_root_cas = 2;
	m.jwt_signing_keys = keys;
	m.n_jwt_signing_keys = 1;
	m.refresh_hint = 300;
	m.sequence_number = 9;
	put_blob("INSERT INTO bundles (trust_domain, data) VALUES (?, ?)", id, &m.base);
}

static STORED(KeyAuthority) jwt_line(void)
{
	STORED(KeyAuthority) k;

	spire__private__server__key_authority__init(&k);
	k.slot_id = text_of("A");
	k.issued_at = clock_wall().sec - 100;
	k.not_after = clock_wall().sec + 3600;
	k.kid = text_of("kid1");
	k.public_key = binary(pubkey_spki(key_public(spire.jwt)));
	k.status = STATUS(ACTIVE);
	return k;
}

/* An active authority in slot B, an old one in A, one that ended long ago, and a JWT key. */
static void put_journal(void)
{
	STORED(X509Authority) v[3], *x[] = { &v[0], &v[1], &v[2] };
	STORED(KeyAuthority) k = jwt_line(), *jwt[] = { &k };
	STORED(Journal) m = SPIRE__PRIVATE__SERVER__JOURNAL__INIT;

	for (int i = 0; i < 3; i++) {
		spire__private__server__x509_authority__init(&v[i]);
		v[i].slot_id = text_of(i == 1 ? "A" : "B");
		v[i].issued_at = clock_wall().sec - 100;
		v[i].not_after = i ? clock_wall().sec + 3600 : 1000;
		v[i].certificate = binary(x509_der(spire.cert[i == 1]));
		if (i != 1) /* older SPIREs do not note it */
			v[i].authority_id = spire.id[0];
		v[i].status = i == 2 ? STATUS(ACTIVE) : STATUS(OLD);
	}
	m.x509_cas = x;
	m.n_x509_cas = 3;
	m.jwt_keys = jwt;
	m.n_jwt_keys = 1;
	put_blob("INSERT INTO ca_journals (active_x509_authority_id, data) VALUES (?, ?)",
		spire.id[0], &m.base);
}

static void put_keys(void)
{
	struct keymgr *m = NULL;

	CHECK_OK(keymgr_disk_new(spire.keys, &m, &e));
	CHECK_OK(keymgr_put(m, "x509-CA-B", spire.x509[0], &e));
	CHECK_OK(keymgr_put(m, "JWT-Signer-A", spire.jwt, &e));
	CHECK_OK(keymgr_generate(m, "WIT-Signer-A", KEY_EC_P256, NULL, &e));
	keymgr_free(m);
}

static void set_up(void)
{
	static char data[120], db[140], keys[140];

	crypto_init();
	snprintf(spire.dir, sizeof(spire.dir), "%s/spire", test_dir());
	snprintf(spire.db, sizeof(spire.db), "%s/datastore.sqlite3", spire.dir);
	snprintf(spire.keys, sizeof(spire.keys), "%s/keys.json", spire.dir);
	CHECK_INT(mkdir(spire.dir, 0700), 0);
	spire.jwt = test_key(KEY_EC_P256);
	for (int i = 0; i < 2; i++) {
		AUTO_BUF struct buf hex = BUF_INIT;

		spire.x509[i] = test_key(KEY_EC_P256);
		spire.cert[i] = test_cert(spire.x509[i], "ca", OWN, true, NULL, clock_wall());
		hex_encode(&hex, x509_ski(spire.cert[i]));
		snprintf(spire.id[i], sizeof(spire.id[i]), "%s", buf_cstr(&hex));
	}
	exec_source(tables);
	put_bundle_row(TD);
	put_bundle_row("other.org");
	put_journal();
	exec_source(rows);
	put_keys();
	snprintf(data, sizeof(data), "%s/assay", test_dir());
	snprintf(db, sizeof(db), "%s/store.db", test_dir()); /* as open_store() has it */
	snprintf(keys, sizeof(keys), "%s/keys.json", data);
	options = (struct server_options){ .trust_domain = text_of(TD),
		.data_dir = data,
		.db_connection_string = db,
		.keys_path = keys };
	io = (struct import_options){
		.server = &options, .data_dir = spire.dir, .datastore = "", .keys = ""
	};
	report = BUF_INIT;
}

static int import(void)
{
	buf_reset(&report);
	return import_run(&io, &report, &e);
}

static struct bytes digest_of(const char *path)
{
	static uint8_t sums[4][HASH_MAX];
	static int at;
	AUTO_BUF struct buf b = BUF_INIT;
	uint8_t *sum = sums[at++ % 4];

	CHECK_OK(buf_read_file(&b, path, &e));
	hash_of(HASH_SHA256, buf_view(&b), sum);
	return bytes_of(sum, hash_size(HASH_SHA256));
}

/* ---- what comes over ---- */

static void check_entries(void)
{
	const struct entry *en = entry_seen("e1");

	CHECK_INT(map_len(entries), 2);
	CHECK(en);
	CHECK_STR(en->spiffe_id, OWN "/web");
	CHECK_STR(en->parent_id, OWN "/node");
	CHECK_INT(en->x509_svid_ttl, 77);
	CHECK_INT(en->jwt_svid_ttl, 78);
	CHECK_INT(en->expires_at, 2000000000);
	CHECK_INT(en->revision_number, 5);
	CHECK_INT(en->created_at, 1767323045);
	CHECK_STR(en->hint, "h1");
	CHECK(en->admin && !en->downstream && !en->store_svid);
	CHECK(en->has_additional_attributes && en->disable_x509_svid_prefetch);
	CHECK(!en->jwt_svid_include_jti);
	CHECK_INT(en->selectors.n, 2);
	CHECK_STR(en->selectors.v[0].value, "uid:1");
	CHECK_INT(en->dns_names.n, 2);
	CHECK_STR(en->dns_names.v[0], "w2");
	CHECK_INT(en->federates_with.n, 1);
	CHECK_STR(en->federates_with.v[0], "other.org");
	en = entry_seen("e3");
	CHECK(en && en->downstream && !en->has_additional_attributes);
	CHECK_INT(en->created_at, 1767323045);
}

static void check_nodes(void)
{
	const struct node *n = map_get_str(nodes, OWN "/spire/agent/join_token/a");

	CHECK_INT(map_len(nodes), 2);
	CHECK(n && !n->can_reattest);
	CHECK_STR(n->attestation_type, "join_token");
	CHECK_STR(n->serial, "123");
	CHECK_STR(n->new_serial, "456");
	CHECK_INT(n->expires_at, 2000000000);
	CHECK_INT(n->new_expires_at, 2000000001);
	CHECK_STR(n->agent_version, "1.15.3");
	CHECK_INT(n->selectors.n, 0);
	n = map_get_str(nodes, OWN "/spire/agent/x509pop/b");
	CHECK(n && node_banned(n) && n->can_reattest);
	CHECK_INT(n->new_expires_at, 0);
	CHECK_INT(n->selectors.n, 1);
	CHECK_STR(n->selectors.v[0].value, "subject:cn:b");
}

static void check_bundle(void)
{
	const struct bundle *b = map_get_str(bundles, TD);

	CHECK(b && map_get_str(bundles, "other.org"));
	CHECK_INT(b->sequence, 9);
	CHECK_INT(b->refresh_hint, 300);
	CHECK_INT(b->n_roots, 2);
	CHECK(!b->roots[0].tainted && b->roots[1].tainted);
	CHECK_BYTES(x509_der(b->roots[0].cert), x509_der(spire.cert[0]));
	CHECK_STR(b->jwt_keys[0].key_id, "kid1");
	CHECK_INT(b->jwt_keys[0].expires_at, 2000000000);
}

static void on_ready(void *arg, const struct err *why)
{
	*(bool *)arg = !why->code;
	loop_stop(loop);
}

/* A CA of ours on what was taken; it stays. */
static struct ca *start_authorities(struct ca_state *ret)
{
	struct keymgr *m = NULL;
	struct ca *ca = NULL;
	bool ready = false;
	struct ca_options o = { .loop = loop,
		.store = store,
		.trust_domain = TD,
		.x509_key_type = KEY_EC_P256,
		.ca_ttl_ns = 3600 * NS_PER_SEC };

	CHECK_OK(keymgr_disk_new(options.keys_path, &m, &e));
	o.keymgr = m;
	CHECK_OK(ca_new(&o, on_ready, &ready, &ca, &e));
	ca_bundle_changed(ca, map_get_str(bundles, TD));
	loop_run(loop);
	CHECK(ready);
	CHECK_OK(ca_state(ca, CA_X509, ret, &e));
	return ca;
}

/* Our CA goes on with SPIRE's. */
static void check_authorities(void)
{
	struct ca_state st;
	struct ca *ca = start_authorities(&st);

	CHECK_STR(st.active.id, spire.id[0]);
	CHECK_STR(st.old.id, spire.id[1]);
	CHECK_OK(ca_state(ca, CA_JWT, &st, &e));
	CHECK_STR(st.active.id, "kid1");
}

/* A CA that an upstream signed comes with its way to the root. */
static void test_upstream(void)
{
	STORED(X509Authority) v, *x[] = { &v };
	STORED(KeyAuthority) k, *jwt[] = { &k };
	STORED(Journal) m = SPIRE__PRIVATE__SERVER__JOURNAL__INIT;
	struct test_ca root;
	struct x509_cert *c;
	ProtobufCBinaryData chain;
	struct ca_state st;

	spire.upstream = true;
	set_up();
	k = jwt_line();
	root = (struct test_ca){ .key = spire.x509[1], .cert = spire.cert[1] };
	c = test_cert(spire.x509[0], "mid", OWN, true, &root, clock_wall());
	chain = binary(x509_der(c));
	spire__private__server__x509_authority__init(&v);
	v.slot_id = text_of("B");
	v.issued_at = clock_wall().sec;
	v.not_after = v.issued_at + 3600;
	v.certificate = chain;
	v.upstream_chain = &chain;
	v.n_upstream_chain = 1;
	v.authority_id = spire.id[0];
	v.status = STATUS(ACTIVE);
	m.x509_cas = x;
	m.n_x509_cas = 1;
	m.jwt_keys = jwt;
	m.n_jwt_keys = 1;
	exec_source("DELETE FROM ca_journals");
	put_blob("INSERT INTO ca_journals (active_x509_authority_id, data) VALUES (?, ?)",
		spire.id[0], &m.base);
	CHECK_OK(import());
	open_store();
	start_authorities(&st);
	CHECK_STR(st.active.id, spire.id[0]);
	CHECK_STR(st.active.upstream_id, spire.id[1]);
	_exit(0);
}

static void test_import(void)
{
	struct bytes db, keys;

	set_up();
	db = digest_of(spire.db);
	keys = digest_of(spire.keys);
	CHECK_OK(import());
	CHECK_CONTAINS(buf_cstr(&report), "registration entries: 2\n");
	CHECK_CONTAINS(buf_cstr(&report), "attested agents: 2, 1 of them banned\n");
	CHECK_CONTAINS(buf_cstr(&report),
		"Not taken: entry e4 (" OWN "/web): similar entry already exists: e3\n");
	CHECK_CONTAINS(buf_cstr(&report),
		"Not taken: entry e5: \"spiffe://else.org/web\" is of another trust domain\n");
	CHECK_CONTAINS(buf_cstr(&report), "Not taken: entry e6: it has no selectors\n");
	CHECK_CONTAINS(buf_cstr(&report), "federation relationships: 2\n");
	CHECK_CONTAINS(
		buf_cstr(&report), "Not taken: federation with odd.org: unknown endpoint profile");
	CHECK_BYTES(digest_of(spire.db), db);
	CHECK_BYTES(digest_of(spire.keys), keys);
	open_store();
	check_entries();
	check_nodes();
	check_bundle();
	check_authorities();
	_exit(0); /* the CA still works on its next step */
}

/* ---- again, and where it must not ---- */

static void test_twice(void)
{
	struct bytes db, keys;

	set_up();
	CHECK_OK(import());
	db = digest_of(options.db_connection_string);
	keys = digest_of(options.keys_path);
	CHECK_OK(import());
	CHECK_CONTAINS(buf_cstr(&report), "taken over already");
	CHECK_BYTES(digest_of(options.db_connection_string), db);
	CHECK_BYTES(digest_of(options.keys_path), keys);
	exec_source("UPDATE join_tokens SET expiry = 1");
	CHECK_ERR(import(), ERR_PRECONDITION);
	CHECK_CONTAINS(e.msg, "from another state of a SPIRE server");
	CHECK_BYTES(digest_of(options.db_connection_string), db);
	buf_deinit(&report);
}

static void test_dry_run(void)
{
	set_up();
	io.dry_run = true;
	CHECK_OK(import());
	CHECK_CONTAINS(buf_cstr(&report), "To be taken from");
	CHECK_CONTAINS(buf_cstr(&report), "similar entry already exists: e3\n");
	CHECK(access(options.data_dir, F_OK) != 0);
	buf_deinit(&report);
}

static void test_used_target(void)
{
	struct keymgr *m = NULL;

	set_up();
	CHECK_INT(mkdir(options.data_dir, 0700), 0);
	open_store();
	CHECK_INT(create(entry_of("", "w", "unix:uid:0")), 0);
	CHECK_ERR(import(), ERR_UNAVAILABLE);
	close_store();
	CHECK_ERR(import(), ERR_PRECONDITION);
	CHECK_CONTAINS(e.msg, "holds other data");
	CHECK_INT(unlink(options.db_connection_string), 0);
	CHECK_OK(keymgr_disk_new(options.keys_path, &m, &e));
	CHECK_OK(keymgr_generate(m, "x509-CA-B", KEY_EC_P256, NULL, &e));
	CHECK_ERR(import(), ERR_PRECONDITION);
	CHECK_CONTAINS(e.msg, "is of another server: there is another key \"x509-CA-B\"");
	keymgr_free(m);
	buf_deinit(&report);
}

static void test_sources(void)
{
	set_up();
	options.trust_domain = text_of("else.org");
	CHECK_ERR(import(), ERR_PRECONDITION);
	CHECK_CONTAINS(e.msg, "it holds that of \"" TD "\"");
	options.trust_domain = text_of(TD);
	exec_source("UPDATE migrations SET version = 22");
	CHECK_ERR(import(), ERR_PRECONDITION);
	CHECK_CONTAINS(e.msg, "schema version 22");
	exec_source("UPDATE migrations SET version = 26");
	CHECK_ERR(import(), ERR_PRECONDITION);
	CHECK_CONTAINS(e.msg, "a newer Assay is needed");
	exec_source("DROP TABLE migrations");
	CHECK_ERR(import(), ERR_PRECONDITION);
	CHECK_CONTAINS(e.msg, "is not the datastore of a SPIRE server");
	io.datastore = "/nonexistent/db";
	CHECK_ERR(import(), ERR_NOT_FOUND);
	options.db_connection_string = spire.db;
	io.datastore = "";
	CHECK_ERR(import(), ERR_PRECONDITION);
	CHECK_CONTAINS(e.msg, "is SPIRE's own file");
	CHECK(access(options.data_dir, F_OK) != 0);
	buf_deinit(&report);
}

/* The columns that came later are not asked for. */
static void test_old_schema(void)
{
	set_up();
	exec_source("UPDATE migrations SET version = 23;"
		    "ALTER TABLE registered_entries DROP COLUMN additional_attributes;"
		    "ALTER TABLE attested_node_entries DROP COLUMN agent_version");
	CHECK_OK(import());
	CHECK_CONTAINS(buf_cstr(&report), "registration entries: 2\n");
	buf_deinit(&report);
}

static void test_no_keys(void)
{
	set_up();
	CHECK_INT(unlink(spire.keys), 0);
	CHECK_ERR(import(), ERR_PRECONDITION);
	CHECK_CONTAINS(e.msg, "cannot be taken over");
	CHECK_CONTAINS(buf_cstr(&report), "Not taken: private keys: there is no file");
	CHECK(access(options.data_dir, F_OK) != 0);
	io.without_authorities = true;
	CHECK_OK(import());
	CHECK_CONTAINS(buf_cstr(&report), "it signs no more");
	buf_deinit(&report);
}

/* A write-ahead log that nobody has moved into the file is read, and stays where it is. */
static void test_log_left(void)
{
	AUTO(free) char *log = NULL;
	pid_t pid;

	set_up();
	exec_source("PRAGMA journal_mode = WAL");
	pid = fork();
	if (pid == 0) {
		sqlite3 *h = open_source();

		(void)sqlite3_exec(h, "INSERT INTO join_tokens VALUES (2, 'late', 2000000000)",
			NULL, NULL, NULL);
		_exit(0);
	}
	CHECK_INT(waitpid(pid, NULL, 0), pid);
	log = xasprintf("%s-wal", spire.db);
	CHECK(!spire_in_use(spire.db));
	CHECK_OK(import());
	CHECK_CONTAINS(buf_cstr(&report), "join tokens: 2\n");
	CHECK_INT(access(log, F_OK), 0);
	buf_deinit(&report);
}

static void test_running(void)
{
	int go[2], ended[2];
	char c = 0;
	pid_t pid;

	set_up();
	exec_source("PRAGMA journal_mode = WAL");
	CHECK(pipe(go) == 0 && pipe(ended) == 0);
	pid = fork();
	if (pid == 0) {
		sqlite3 *h = open_source();

		(void)sqlite3_exec(h, "SELECT count(*) FROM bundles", NULL, NULL, NULL);
		(void)!write(go[1], "x", 1);
		(void)!read(ended[0], &c, 1);
		_exit(0);
	}
	CHECK_INT(read(go[0], &c, 1), 1);
	CHECK_ERR(import(), ERR_PRECONDITION);
	CHECK_CONTAINS(e.msg, "stop the SPIRE server first");
	io.dry_run = true;
	CHECK_OK(import());
	CHECK_CONTAINS(buf_cstr(&report), "The SPIRE server is running");
	CHECK_INT(write(ended[1], "x", 1), 1);
	CHECK_INT(waitpid(pid, NULL, 0), pid);
	buf_deinit(&report);
}

/* SPIRE has been away for longer than its authorities live. */
static void test_ended(void)
{
	STORED(X509Authority) v, *x[] = { &v };
	STORED(Journal) m = SPIRE__PRIVATE__SERVER__JOURNAL__INIT;

	set_up();
	spire__private__server__x509_authority__init(&v);
	v.slot_id = text_of("B");
	v.not_after = 1000;
	v.certificate = binary(x509_der(spire.cert[0]));
	v.authority_id = spire.id[0];
	v.status = STATUS(ACTIVE);
	m.x509_cas = x;
	m.n_x509_cas = 1;
	exec_source("DELETE FROM ca_journals");
	put_blob("INSERT INTO ca_journals (active_x509_authority_id, data) VALUES (?, ?)",
		spire.id[0], &m.base);
	CHECK_ERR(import(), ERR_PRECONDITION);
	CHECK_CONTAINS(buf_cstr(&report), "active: it has ended at 1970-01-01T00:16:40");
	exec_source("UPDATE ca_journals SET data = x'ff'");
	CHECK_ERR(import(), ERR_DATA_LOSS);
	buf_deinit(&report);
}

TEST_MAIN(TEST(test_upstream), TEST(test_ended), TEST(test_import), TEST(test_twice),
	TEST(test_dry_run), TEST(test_used_target), TEST(test_sources), TEST(test_old_schema),
	TEST(test_no_keys), TEST(test_log_left), TEST(test_running))

/* The store on a real file: what is written comes back, what is acknowledged survives kill -9, a
 * full disk loses nothing, a damaged file is not touched. */
#include "server/store.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>

#include "lib/crypto.h"
#include "lib/map.h"
#include "tests/test.h"

#define TD "example.org"

static struct loop *loop;
static struct store *store;
static char file[128];
static struct err e;

/* ---- what the observer has seen ---- */

static struct map *entries; /* id → struct entry * */
static struct map *nodes;
static struct map *bundles; /* trust domain → struct bundle * */
static uint64_t last_change;
static int calls;

static void saw_change(uint64_t change)
{
	calls++;
	if (change == 0)
		return;
	CHECK(change > last_change);
	last_change = change;
}

static void saw_entry(void *arg, uint64_t change, const char *id, const struct entry *en)
{
	struct entry *old = map_del_str(entries, id);

	(void)arg;
	saw_change(change);
	if (old)
		entry_deinit(old);
	free(old);
	if (!en)
		return;
	CHECK_STR(en->id, id);
	old = xmalloc(sizeof(*old));
	*old = entry_dup(en);
	map_put_str(entries, id, old);
}

static void saw_node(void *arg, uint64_t change, const char *id, const struct node *n)
{
	struct node *old = map_del_str(nodes, id);

	(void)arg;
	saw_change(change);
	if (old)
		node_deinit(old);
	free(old);
	if (!n)
		return;
	old = xmalloc(sizeof(*old));
	*old = node_dup(n);
	map_put_str(nodes, id, old);
}

static void saw_bundle(void *arg, uint64_t change, const char *td, struct bundle *b)
{
	struct bundle *old = map_del_str(bundles, td);

	(void)arg;
	saw_change(change);
	if (old)
		bundle_unref(old);
	if (b)
		map_put_str(bundles, td, bundle_ref(b));
}

static const struct store_observer observer = {
	.entry = saw_entry,
	.node = saw_node,
	.bundle = saw_bundle,
};

static void forget(void)
{
	struct bytes key;
	void *v;

	for (size_t i = 0; map_next(entries, &i, &key, &v);) {
		entry_deinit(v);
		free(v);
	}
	for (size_t i = 0; map_next(nodes, &i, &key, &v);) {
		node_deinit(v);
		free(v);
	}
	for (size_t i = 0; map_next(bundles, &i, &key, &v);)
		bundle_unref(v);
	map_free(entries);
	map_free(nodes);
	map_free(bundles);
}

static int try_open(void)
{
	entries = map_new();
	nodes = map_new();
	bundles = map_new();
	last_change = 0;
	calls = 0;
	loop = loop_new();
	return store_open(loop, file, &observer, &store, &e);
}

static void open_store(void)
{
	snprintf(file, sizeof(file), "%s/store.db", test_dir());
	crypto_init();
	CHECK_OK(try_open());
	CHECK_OK(store_load(store, &e));
	last_change = store_change(store);
}

static void close_store(void)
{
	store_close(store);
	store = NULL;
	loop_free(loop);
	forget();
}

static void reopen(void)
{
	close_store();
	open_store();
}

/* ---- calling and waiting ---- */

static struct store_result *got; /* a copy of the last results */
static size_t n_got;
static int code;
static char message[300];
static size_t count;

static void free_got(void)
{
	for (size_t i = 0; i < n_got; i++) {
		entry_deinit(&got[i].entry);
		free(got[i].message);
	}
	free(got);
	got = NULL;
	n_got = 0;
}

static void on_results(void *arg, struct store_result *r, size_t n)
{
	(void)arg;
	free_got();
	got = xcalloc(n, sizeof(got[0]));
	n_got = n;
	for (size_t i = 0; i < n; i++)
		got[i] = (struct store_result){
			.code = r[i].code,
			.message = xstrdup(r[i].message ? r[i].message : ""),
			.entry = entry_dup(&r[i].entry),
		};
	loop_stop(loop);
}

static void on_done(void *arg, int c, const char *msg)
{
	(void)arg;
	code = c;
	snprintf(message, sizeof(message), "%s", msg);
	loop_stop(loop);
}

static void on_count(void *arg, int c, const char *msg, size_t n)
{
	on_done(arg, c, msg);
	count = n;
}

static struct entry entry_of(const char *id, const char *spiffe, const char *sel)
{
	struct entry en = {
		.id = xstrdup(id),
		.spiffe_id = xasprintf("spiffe://" TD "/%s", spiffe),
		.parent_id = xstrdup("spiffe://" TD "/spire/agent/x/1"),
		.hint = xstrdup(""),
	};

	CHECK_OK(selectors_add_text(&en.selectors, sel, &e));
	return en;
}

static int create(struct entry en)
{
	store_entries_create(store, &en, 1, on_results, NULL);
	entry_deinit(&en);
	loop_run(loop);
	CHECK_INT(n_got, 1);
	return got[0].code;
}

static int update(struct entry en, unsigned mask)
{
	store_entries_update(store, &en, 1, mask, on_results, NULL);
	entry_deinit(&en);
	loop_run(loop);
	return got[0].code;
}

static int delete_one(const char *id)
{
	store_entries_delete(store, &id, 1, on_results, NULL);
	loop_run(loop);
	return got[0].code;
}

static int put_bundle(const char *td, uint64_t sequence, uint64_t expect)
{
	struct bundle *b = bundle_new(td);

	b->sequence = sequence;
	store_bundle_put(store, b, expect, on_done, NULL);
	bundle_unref(b);
	loop_run(loop);
	return code;
}

static const struct entry *entry_seen(const char *id)
{
	return map_get_str(entries, id);
}

static const struct node *node_seen(const char *id)
{
	return map_get_str(nodes, id);
}

/* ---- entries ---- */

static void test_create_and_load(void)
{
	struct entry en = entry_of("", "w", "unix:uid:0");
	char id[64];
	AUTO(free) char *epoch = NULL;

	open_store();
	epoch = xstrdup(store_epoch(store));
	CHECK_INT(strlen(epoch), 32);
	CHECK_INT(put_bundle("other.org", 0, 0), 0);
	en.x509_svid_ttl = 77;
	en.jwt_svid_ttl = 78;
	en.admin = en.downstream = true;
	en.has_additional_attributes = en.jwt_svid_include_jti = true;
	en.expires_at = 4000000000;
	free(en.hint);
	en.hint = xstrdup("h");
	strings_add(&en.federates_with, "other.org");
	strings_add(&en.federates_with, "other.org");
	strings_add(&en.dns_names, "b");
	strings_add(&en.dns_names, "a");
	CHECK_OK(selectors_add_text(&en.selectors, "unix:gid:0", &e));
	CHECK_INT(create(en), 0);
	snprintf(id, sizeof(id), "%s", got[0].entry.id);
	CHECK_INT(strlen(id), 36);
	CHECK_INT(id[14], '4');
	CHECK(llabs((long long)got[0].entry.created_at - (long long)time(NULL)) < 5);
	CHECK_INT(store_change(store), 2);
	reopen();
	CHECK_STR(store_epoch(store), epoch);
	CHECK_INT(store_change(store), 2);
	CHECK_INT(map_len(entries), 1);
	CHECK(entry_seen(id));
	en = entry_dup(entry_seen(id));
	CHECK_STR(en.spiffe_id, "spiffe://" TD "/w");
	CHECK_INT(en.x509_svid_ttl, 77);
	CHECK_INT(en.jwt_svid_ttl, 78);
	CHECK(en.admin && en.downstream && !en.store_svid && !en.disable_x509_svid_prefetch);
	CHECK(en.has_additional_attributes && en.jwt_svid_include_jti);
	CHECK_INT(en.expires_at, 4000000000);
	CHECK_STR(en.hint, "h");
	CHECK_INT(en.federates_with.n, 1);
	CHECK_STR(en.dns_names.v[0], "b");
	CHECK_STR(en.dns_names.v[1], "a");
	CHECK_INT(en.selectors.n, 2);
	CHECK_STR(en.selectors.v[0].value, "gid:0");
	entry_deinit(&en);
	close_store();
	free_got();
}

static void test_similar(void)
{
	open_store();
	CHECK_INT(create(entry_of("one", "w", "u:1")), 0);
	CHECK_INT(create(entry_of("two", "w", "u:1")), ERR_EXISTS);
	CHECK_STR(got[0].message, "similar entry already exists");
	CHECK_STR(got[0].entry.id, "one");
	CHECK_INT(create(entry_of("one", "w", "u:2")), ERR_EXISTS);
	CHECK_CONTAINS(got[0].message, "already exists");
	CHECK_STR(got[0].entry.selectors.v[0].value, "1");
	CHECK_INT(map_len(entries), 1);
	CHECK_INT(store_change(store), 1);
	close_store();
	free_got();
}

/* A batch in which some fail: the others are there, the numbers have no gap. */
static void test_partial_batch(void)
{
	struct entry v[4] = {
		entry_of("a", "w1", "u:1"),
		entry_of("b", "w1", "u:1"),
		entry_of("c", "w2", "u:1"),
		entry_of("d", "w3", "u:1"),
	};

	open_store();
	strings_add(&v[2].federates_with, "unknown.org");
	store_entries_create(store, v, 4, on_results, NULL);
	for (int i = 0; i < 4; i++)
		entry_deinit(&v[i]);
	loop_run(loop);
	CHECK_INT(got[0].code, 0);
	CHECK_INT(got[1].code, ERR_EXISTS);
	CHECK_INT(got[2].code, ERR_INTERNAL);
	CHECK_STR(got[2].message, "unable to find federated bundle \"spiffe://unknown.org\"");
	CHECK_INT(got[3].code, 0);
	CHECK_INT(store_change(store), 2);
	reopen();
	CHECK_INT(map_len(entries), 2);
	CHECK(entry_seen("a") && entry_seen("d"));
	close_store();
	free_got();
}

static void test_update(void)
{
	struct entry en;

	open_store();
	CHECK_INT(create(entry_of("a", "w", "u:1")), 0);
	CHECK_INT(create(entry_of("b", "w", "u:2")), 0);
	en = entry_of("a", "other", "u:3");
	en.x509_svid_ttl = 5;
	CHECK_INT(update(en, ENTRY_X509_TTL), 0);
	CHECK_STR(got[0].entry.spiffe_id, "spiffe://" TD "/w");
	CHECK_INT(got[0].entry.x509_svid_ttl, 5);
	CHECK_INT(got[0].entry.revision_number, 1);
	CHECK_INT(update(entry_of("a", "other", "u:9"), ENTRY_ALL), 0);
	CHECK_INT(got[0].entry.revision_number, 2);
	CHECK_INT(got[0].entry.x509_svid_ttl, 0);
	/* What it was may be made anew; what it would become may not. */
	CHECK_INT(create(entry_of("c", "w", "u:1")), 0);
	CHECK_INT(update(entry_of("a", "w", "u:2"), ENTRY_ALL), ERR_EXISTS);
	CHECK_INT(update(entry_of("zz", "w", "u:2"), ENTRY_ALL), ERR_NOT_FOUND);
	CHECK_STR(got[0].message, "entry not found");
	en = entry_of("a", "w", "u:1");
	CHECK_OK(selectors_add_text(&en.selectors, "v:1", &e));
	en.store_svid = true;
	CHECK_INT(update(en, ENTRY_STORE_SVID | ENTRY_SELECTORS), ERR_INVALID);
	en = entry_of("a", "w", "u:1");
	strings_add(&en.federates_with, "x.org");
	CHECK_INT(update(en, ENTRY_FEDERATES), ERR_INTERNAL);
	CHECK_INT(put_bundle("x.org", 0, 0), 0);
	en = entry_of("a", "w", "u:1");
	strings_add(&en.federates_with, "x.org");
	CHECK_INT(update(en, ENTRY_FEDERATES), 0);
	CHECK_INT(got[0].entry.revision_number, 3);
	reopen();
	CHECK_INT(entry_seen("a")->revision_number, 3);
	CHECK_STR(entry_seen("a")->selectors.v[0].value, "9");
	CHECK_STR(entry_seen("a")->federates_with.v[0], "x.org");
	close_store();
	free_got();
}

static void test_delete_and_prune(void)
{
	struct entry en;

	open_store();
	CHECK_INT(create(entry_of("a", "w", "u:1")), 0);
	CHECK_INT(delete_one("b"), ERR_NOT_FOUND);
	CHECK_INT(delete_one("a"), 0);
	CHECK_STR(got[0].entry.spiffe_id, "spiffe://" TD "/w");
	CHECK_INT(delete_one("a"), ERR_NOT_FOUND);
	CHECK_INT(map_len(entries), 0);
	for (int i = 0; i < 1200; i++) {
		AUTO(free) char *sel = xasprintf("u:%d", i);

		en = entry_of("", "w", sel);
		en.expires_at = i < 1100 ? 100 : i < 1150 ? 0 : 300;
		CHECK_INT(create(en), 0);
	}
	store_entries_prune(store, 200, on_count, NULL);
	loop_run(loop);
	CHECK_INT(code, 0);
	CHECK_INT(count, 1100);
	CHECK_INT(map_len(entries), 100);
	reopen();
	CHECK_INT(map_len(entries), 100);
	close_store();
	free_got();
}

/* ---- nodes and tokens ---- */

static void put_node(const char *id, const char *type, const char *serial, int64_t expires_at)
{
	struct node n = {
		.spiffe_id = xstrdup(id),
		.attestation_type = xstrdup(type),
		.serial = xstrdup(serial),
		.new_serial = xstrdup(""),
		.agent_version = xstrdup("1"),
		.expires_at = expires_at,
		.can_reattest = strcmp(type, "join_token") != 0,
	};

	CHECK_OK(selectors_add_text(&n.selectors, "x:2", &e));
	CHECK_OK(selectors_add_text(&n.selectors, "x:1", &e));
	store_node_put(store, &n, on_done, NULL);
	node_deinit(&n);
	loop_run(loop);
	CHECK_INT(code, 0);
}

static void test_nodes(void)
{
	int64_t until = 99;
	struct node_update u = { .new_serial = "8", .new_expires_at = &until };

	open_store();
	put_node("spiffe://" TD "/spire/agent/x/1", "x509pop", "7", 50);
	CHECK_INT(node_seen("spiffe://" TD "/spire/agent/x/1")->selectors.n, 2);
	store_node_update(store, "spiffe://" TD "/spire/agent/x/1", &u, on_done, NULL);
	loop_run(loop);
	CHECK_INT(code, 0);
	u = (struct node_update){ .serial = "8", .new_serial = "", .expect_serial = "8" };
	store_node_update(store, "spiffe://" TD "/spire/agent/x/1", &u, on_done, NULL);
	loop_run(loop);
	CHECK_INT(code, 0);
	u.expect_serial = "7";
	store_node_update(store, "spiffe://" TD "/spire/agent/x/1", &u, on_done, NULL);
	loop_run(loop);
	CHECK_INT(code, ERR_ABORTED);
	store_node_update(store, "spiffe://" TD "/spire/agent/x/2", &u, on_done, NULL);
	loop_run(loop);
	CHECK_INT(code, ERR_NOT_FOUND);
	reopen();
	const struct node *n = node_seen("spiffe://" TD "/spire/agent/x/1");

	CHECK_STR(n->serial, "8");
	CHECK_STR(n->new_serial, "");
	CHECK_INT(n->new_expires_at, 99);
	CHECK_INT(n->expires_at, 50);
	CHECK(n->can_reattest);
	CHECK_STR(n->attestation_type, "x509pop");
	CHECK_STR(n->selectors.v[0].value, "1");
	store_node_delete(store, "spiffe://" TD "/spire/agent/x/1", on_done, NULL);
	loop_run(loop);
	CHECK_INT(code, 0);
	CHECK_INT(map_len(nodes), 0);
	store_node_delete(store, "spiffe://" TD "/spire/agent/x/1", on_done, NULL);
	loop_run(loop);
	CHECK_INT(code, ERR_NOT_FOUND);
	close_store();
}

static void prune_nodes(int64_t before, bool tofu, int limit, size_t expect)
{
	store_nodes_prune(store, before, tofu, limit, on_count, NULL);
	loop_run(loop);
	CHECK_INT(code, 0);
	CHECK_INT(count, expect);
}

static void test_nodes_prune(void)
{
	open_store();
	put_node("spiffe://" TD "/a", "x509pop", "1", 50);
	put_node("spiffe://" TD "/b", "x509pop", "", 50); /* banned */
	put_node("spiffe://" TD "/c", "join_token", "1", 50);
	put_node("spiffe://" TD "/d", "x509pop", "1", 500);
	prune_nodes(20, true, 0, 0);
	prune_nodes(100, false, 0, 1);
	CHECK(!node_seen("spiffe://" TD "/a"));
	prune_nodes(1000, true, 1, 1);
	prune_nodes(1000, true, 10, 1);
	CHECK_INT(map_len(nodes), 1);
	CHECK(node_seen("spiffe://" TD "/b"));
	close_store();
}

static void take(const char *token, int64_t now)
{
	store_token_take(store, token, now, on_done, NULL);
	loop_run(loop);
}

static void test_tokens(void)
{
	char name[] = "secret";
	struct join_token t = { .token = name, .expires_at = 100 };
	struct entry alias = entry_of("", "w", "spiffe_id:x");

	open_store();
	store_token_create(store, &t, NULL, on_done, NULL);
	loop_run(loop);
	CHECK_INT(code, 0);
	store_token_create(store, &t, NULL, on_done, NULL);
	loop_run(loop);
	CHECK_INT(code, ERR_EXISTS);
	CHECK_STR(message, "join token already exists");
	reopen();
	take("secret", 50);
	CHECK_INT(code, 0);
	take("secret", 50);
	CHECK_INT(code, ERR_INVALID);
	CHECK_STR(message, "join token does not exist or has already been used");
	store_token_create(store, &t, NULL, on_done, NULL);
	loop_run(loop);
	take("secret", 101);
	CHECK_INT(code, ERR_INVALID);
	CHECK_STR(message, "join token expired");
	take("secret", 50);
	CHECK_STR(message, "join token does not exist or has already been used");
	/* With an alias that is refused, no token is made. */
	CHECK_INT(create(entry_of("taken", "w", "spiffe_id:x")), 0);
	store_token_create(store, &t, &alias, on_done, NULL);
	loop_run(loop);
	CHECK_INT(code, ERR_EXISTS);
	take("secret", 50);
	CHECK_INT(code, ERR_INVALID);
	/* The alias of a token goes with its node, other entries of the node stay. */
	free(alias.selectors.v[0].value);
	alias.selectors.v[0].value = xstrdup(alias.parent_id);
	store_token_create(store, &t, &alias, on_done, NULL);
	loop_run(loop);
	CHECK_INT(code, 0);
	CHECK_INT(map_len(entries), 2);
	put_node(alias.parent_id, "join_token", "1", 50);
	store_node_delete(store, alias.parent_id, on_done, NULL);
	loop_run(loop);
	CHECK_INT(code, 0);
	CHECK_INT(map_len(entries), 1);
	CHECK(entry_seen("taken"));
	store_tokens_prune(store, 200, on_done, NULL);
	loop_run(loop);
	CHECK_INT(code, 0);
	take("secret", 50);
	CHECK_INT(code, ERR_INVALID);
	entry_deinit(&alias);
	close_store();
	free_got();
}

static int winners;

static void on_race(void *arg, int c, const char *msg)
{
	int *left = arg;

	(void)msg;
	CHECK(c == 0 || c == ERR_INVALID);
	winners += c == 0;
	if (--*left == 0)
		loop_stop(loop);
}

static void test_token_race(void)
{
	char name[] = "secret";
	struct join_token t = { .token = name, .expires_at = 100 };
	int left = 20;

	open_store();
	store_token_create(store, &t, NULL, on_done, NULL);
	for (int i = 0; i < 20; i++)
		store_token_take(store, name, 50, on_race, &left);
	loop_run(loop);
	if (left)
		loop_run(loop);
	CHECK_INT(winners, 1);
	close_store();
}

/* ---- bundles and blobs ---- */

static uint64_t sequence(const char *td)
{
	const struct bundle *b = map_get_str(bundles, td);

	return b ? b->sequence : 0;
}

static int delete_bundle(const char *td, enum bundle_delete mode)
{
	store_bundle_delete(store, td, mode, on_done, NULL);
	loop_run(loop);
	return code;
}

static void test_bundles(void)
{
	struct entry en;

	open_store();
	CHECK_INT(put_bundle("a.org", 0, 0), 0);
	CHECK_INT(sequence("a.org"), 1);
	CHECK_INT(put_bundle("a.org", 1, 1), 0);
	CHECK_INT(sequence("a.org"), 2);
	CHECK_INT(put_bundle("a.org", 1, 1), ERR_ABORTED);
	CHECK_INT(put_bundle("a.org", 77, 0), 0);
	CHECK_INT(sequence("a.org"), 77);
	reopen();
	CHECK_INT(sequence("a.org"), 77);
	CHECK_INT(delete_bundle("b.org", BUNDLE_RESTRICT), ERR_NOT_FOUND);
	en = entry_of("e", "w", "u:1");
	strings_add(&en.federates_with, "a.org");
	CHECK_INT(create(en), 0);
	CHECK_INT(delete_bundle("a.org", BUNDLE_RESTRICT), ERR_PRECONDITION);
	CHECK_STR(message, "cannot delete bundle; federated with 1 registration entries");
	CHECK_INT(delete_bundle("a.org", BUNDLE_DISSOCIATE), 0);
	CHECK_INT(map_len(bundles), 0);
	CHECK_INT(entry_seen("e")->federates_with.n, 0);
	CHECK_INT(entry_seen("e")->revision_number, 1);
	CHECK_INT(put_bundle("a.org", 0, 0), 0);
	en = entry_of("f", "w", "u:2");
	strings_add(&en.federates_with, "a.org");
	CHECK_INT(create(en), 0);
	CHECK_INT(delete_bundle("a.org", BUNDLE_DELETE_ENTRIES), 0);
	CHECK(!entry_seen("f") && entry_seen("e"));
	reopen();
	CHECK(!entry_seen("f") && entry_seen("e"));
	CHECK_INT(map_len(bundles), 0);
	close_store();
	free_got();
}

static void test_blobs(void)
{
	AUTO_BUF struct buf b = BUF_INIT;

	open_store();
	CHECK_ERR(store_blob_get(store, "journal", &b, &e), ERR_NOT_FOUND);
	store_blob_put(store, "journal", bytes_str("one"), on_done, NULL);
	loop_run(loop);
	store_blob_put(store, "journal", bytes_of("t\0o", 3), on_done, NULL);
	loop_run(loop);
	CHECK_INT(code, 0);
	reopen();
	CHECK_OK(store_blob_get(store, "journal", &b, &e));
	CHECK_BYTES(buf_view(&b), bytes_of("t\0o", 3));
	close_store();
}

/* ---- closing with work under way ---- */

static int late;

static void on_late(void *arg, int c, const char *msg)
{
	(void)arg;
	(void)msg;
	late++;
	CHECK(c == 0 || c == ERR_UNAVAILABLE);
	if (late < 200) /* asks for more while the store closes */
		store_blob_put(store, "x", bytes_str("y"), on_late, NULL);
}

static void test_close_busy(void)
{
	open_store();
	for (int i = 0; i < 100; i++)
		store_blob_put(store, "x", bytes_str("y"), on_late, NULL);
	store_close(store);
	CHECK(late >= 100);
	store = NULL;
	/* Those that were refused hear of it from the loop. */
	late = 1000;
	loop_free(loop);
	forget();
}

/* ---- files that are not as they should be ---- */

static void copy_file(const char *from, const char *to)
{
	AUTO_BUF struct buf b = BUF_INIT;

	CHECK_OK(buf_read_file(&b, from, &e));
	CHECK_OK(buf_write_file(buf_view(&b), to, 0600, &e));
}

static void fill(int n)
{
	for (int i = 0; i < n; i++) {
		AUTO(free) char *sel = xasprintf("u:%d", i);

		CHECK_INT(create(entry_of("", "w", sel)), 0);
	}
}

static void expect_refused(int expected, const char *text)
{
	AUTO_BUF struct buf before = BUF_INIT;
	AUTO_BUF struct buf after = BUF_INIT;
	int r;

	CHECK_OK(buf_read_file(&before, file, &e));
	r = try_open();
	if (r == 0) {
		r = store_load(store, &e);
		store_close(store);
	}
	CHECK_INT(r, expected);
	CHECK_CONTAINS(e.msg, file);
	CHECK_CONTAINS(e.msg, text);
	CHECK_OK(buf_read_file(&after, file, &e));
	CHECK_BYTES(buf_view(&before), buf_view(&after));
	loop_free(loop);
	forget();
}

static void test_damaged(void)
{
	AUTO(free) char *good = NULL;
	struct stat st;
	int fd;

	open_store();
	good = xasprintf("%s.good", file);
	fill(400);
	close_store();
	copy_file(file, good);
	CHECK(stat(file, &st) == 0);
	CHECK_INT(st.st_mode & 0777, 0600);
	/* Cut short, at every kind of place. */
	for (off_t n = st.st_size - 1; n > 0; n = n * 2 / 3) {
		CHECK(truncate(file, n) == 0);
		expect_refused(ERR_DATA_LOSS, "damaged");
	}
	/* Overwritten in the middle. */
	copy_file(good, file);
	for (off_t at = 4096; at < st.st_size; at += 4096) {
		char junk[4096];

		memset(junk, 0xa5, sizeof(junk));
		fd = open(file, O_WRONLY);
		CHECK(pwrite(fd, junk, sizeof(junk), at) == (ssize_t)sizeof(junk));
		close(fd);
		expect_refused(ERR_DATA_LOSS, "damaged");
		copy_file(good, file);
	}
	CHECK_OK(buf_write_file(bytes_str("hello"), file, 0600, &e));
	expect_refused(ERR_DATA_LOSS, "damaged");
	copy_file(good, file);
	open_store();
	CHECK_INT(map_len(entries), 400);
	close_store();
	free_got();
}

static void run_sql(const char *sql)
{
	AUTO(free) char *cmd = xasprintf("sqlite3 '%s' \"%s\" 2>/dev/null >/dev/null", file, sql);

	if (system(cmd) != 0)
		SKIP("no sqlite3 command");
}

static void test_other_version(void)
{
	open_store();
	close_store();
	run_sql("UPDATE meta SET value = '2' WHERE name = 'schema'");
	expect_refused(ERR_PRECONDITION, "newer version");
	CHECK(unlink(file) == 0);
	run_sql("CREATE TABLE registered_entries (id INTEGER)");
	expect_refused(ERR_PRECONDITION, "another program");
}

static void test_in_use(void)
{
	pid_t pid;
	int status;

	open_store();
	pid = fork();
	if (pid == 0) {
		struct loop *l = loop_new();
		struct store *s;
		int r = store_open(l, file, &observer, &s, &e);

		_exit(r == ERR_UNAVAILABLE && strstr(e.msg, "in use by another process") ? 0 : 1);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK_INT(status, 0);
	CHECK_INT(create(entry_of("a", "w", "u:1")), 0);
	close_store();
	free_got();
}

static void test_cannot_open(void)
{
	snprintf(file, sizeof(file), "%s/no/such/store.db", test_dir());
	CHECK_ERR(try_open(), ERR_NOT_FOUND);
	CHECK_CONTAINS(e.msg, file);
	loop_free(loop);
	forget();
}

/* The disk is full (as far as this process is concerned): an error that names the file, nothing
 * applied, and life goes on when there is room again. */
static void test_full_disk(void)
{
	struct rlimit old;
	struct rlimit now;
	AUTO(free) char *big = xmalloc(1 << 20);
	size_t before;
	uint64_t change;

	signal(SIGXFSZ, SIG_IGN);
	open_store();
	fill(20);
	memset(big, 'x', (1 << 20) - 1);
	big[(1 << 20) - 1] = 0;
	before = map_len(entries);
	change = store_change(store);
	CHECK(getrlimit(RLIMIT_FSIZE, &old) == 0);
	now = old;
	now.rlim_cur = 256 << 10;
	CHECK(setrlimit(RLIMIT_FSIZE, &now) == 0);
	for (int i = 0; i < 3; i++) {
		struct entry v[2] = { entry_of("a", "small", "u:1"), entry_of("b", "big", "u:2") };

		strings_add(&v[1].dns_names, big);
		store_entries_create(store, v, 2, on_results, NULL);
		entry_deinit(&v[0]);
		entry_deinit(&v[1]);
		loop_run(loop);
		for (int k = 0; k < 2; k++) {
			CHECK_CONTAINS(got[k].message, file);
			CHECK_STR(err_code_name(got[k].code), "ResourceExhausted");
		}
		CHECK_INT(map_len(entries), before);
		CHECK_INT(store_change(store), change);
	}
	CHECK(setrlimit(RLIMIT_FSIZE, &old) == 0);
	CHECK_INT(create(entry_of("a", "small", "u:1")), 0);
	CHECK_INT(store_change(store), change + 1);
	reopen();
	CHECK_INT(map_len(entries), before + 1);
	close_store();
	free_got();
}

/* ---- the change log is trimmed, the log file does not grow for ever ---- */

static void test_maintenance(void)
{
	enum { N = 500, ROUNDS = 260 };
	struct entry *v = xcalloc(N, sizeof(v[0]));
	AUTO(free) char *wal = NULL;
	struct store_stats stats;
	struct stat st;

	open_store();
	wal = xasprintf("%s-wal", file);
	for (int i = 0; i < N; i++) {
		AUTO(free) char *sel = xasprintf("u:%d", i);
		AUTO(free) char *id = xasprintf("e%d", i);

		v[i] = entry_of(id, "w", sel);
	}
	store_entries_create(store, v, N, on_results, NULL);
	loop_run(loop);
	for (int i = 0; i < ROUNDS; i++) {
		store_entries_update(store, v, N, ENTRY_X509_TTL, on_results, NULL);
		loop_run(loop);
		CHECK_INT(got[N - 1].code, 0);
	}
	store_stats(store, &stats);
	CHECK(stats.changes == (ROUNDS + 1) * N);
	CHECK(stat(wal, &st) == 0);
	CHECK(st.st_size < 100 << 20);
	close_store();
	run_sql("CREATE TABLE t AS SELECT 1 FROM change WHERE (SELECT count(*) FROM change) > "
		"115000 "
		"OR (SELECT max(seq) FROM change) <> 130500; "
		"SELECT CASE count(*) WHEN 0 THEN 1 ELSE abs(-9223372036854775808) END FROM t; "
		"DROP TABLE t");
	open_store();
	CHECK_INT(store_change(store), (ROUNDS + 1) * N);
	CHECK_INT(entry_seen("e7")->revision_number, ROUNDS);
	close_store();
	for (int i = 0; i < N; i++)
		entry_deinit(&v[i]);
	free(v);
	free_got();
}

/* ---- what was acknowledged survives kill -9 ---- */

struct ack {                    /* shared with the child that writes */
	volatile int acked;     /* entries 0 … acked-1 were acknowledged */
	volatile int submitted; /* those from here on were never asked for */
};

static struct ack *ack;
static int next_entry;

static void write_more(void);

static void on_written(void *arg, struct store_result *r, size_t n)
{
	(void)arg;
	for (size_t i = 0; i < n; i++)
		CHECK_INT(r[i].code, 0);
	ack->acked += (int)n;
	write_more();
}

static void write_more(void)
{
	struct entry v[7];
	int n = 1 + next_entry % 7;

	for (int i = 0; i < n; i++) {
		AUTO(free) char *id = xasprintf("e%d", next_entry + i);

		v[i] = entry_of(id, id, "u:1");
	}
	next_entry += n;
	ack->submitted = next_entry;
	store_entries_create(store, v, (size_t)n, on_written, NULL);
	for (int i = 0; i < n; i++)
		entry_deinit(&v[i]);
}

static void child_writes(int from)
{
	open_store();
	next_entry = from;
	write_more();
	loop_run(loop);
	_exit(1);
}

static void test_kill(void)
{
	srandom((unsigned)time(NULL));
	ack = mmap(NULL, sizeof(*ack), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	snprintf(file, sizeof(file), "%s/store.db", test_dir());
	for (int round = 0; round < 25; round++) {
		int start = ack->acked;
		uint64_t n;
		pid_t pid = fork();
		int status;

		if (pid == 0)
			child_writes(start);
		nanosleep(&(struct timespec){ .tv_nsec = 10000000 + random() % 100000000 }, NULL);
		kill(pid, SIGKILL);
		CHECK(waitpid(pid, &status, 0) == pid);
		CHECK(WIFSIGNALED(status));
		open_store();
		for (int i = 0; i < ack->acked; i++) {
			AUTO(free) char *id = xasprintf("e%d", i);

			CHECK(entry_seen(id));
		}
		/* Transactions are whole: what is there beyond is all of the last one, or nothing.
		 */
		n = map_len(entries);
		CHECK(n == (uint64_t)ack->acked || n == (uint64_t)ack->submitted);
		CHECK_INT(store_change(store), n);
		ack->acked = (int)n;
		close_store();
	}
	CHECK(ack->acked > 0);
}

TEST_MAIN(TEST(test_create_and_load), TEST(test_similar), TEST(test_partial_batch),
	TEST(test_update), TEST(test_delete_and_prune), TEST(test_nodes), TEST(test_nodes_prune),
	TEST(test_tokens), TEST(test_token_race), TEST(test_bundles), TEST(test_blobs),
	TEST(test_close_busy), TEST(test_damaged), TEST(test_other_version), TEST(test_in_use),
	TEST(test_cannot_open), TEST(test_full_disk), TEST(test_maintenance), TEST(test_kill))

/* What is written comes back, through the observer and after a restart. */
#include <time.h>

#include "tests/unit/server/store_world.inc"

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
	CHECK_STR(en.selectors.v[0].value, "uid:0"); /* as given, not sorted */
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
	CHECK(got[0].similar);
	CHECK_INT(create(entry_of("one", "w", "u:2")), ERR_EXISTS);
	CHECK_STR(got[0].message, "entry with ID \"one\" already exists");
	CHECK(!got[0].similar);
	CHECK_INT(map_len(entries), 1);
	CHECK_INT(store_change(store), 1);
	close_store();
	free_got();
}

static struct entry with_selector(struct entry en, const char *text)
{
	CHECK_OK(selectors_add_text(&en.selectors, text, &e));
	return en;
}

/* The order of selectors is kept, but does not make an entry another. */
static void test_order_and_repeats(void)
{
	struct entry en;

	open_store();
	CHECK_INT(create(with_selector(entry_of("one", "w", "u:2"), "u:1")), 0);
	CHECK_INT(got[0].entry.num, 1);
	CHECK_INT(create(with_selector(entry_of("two", "w", "u:1"), "u:2")), ERR_EXISTS);
	CHECK(got[0].similar);
	CHECK_INT(create(with_selector(entry_of("two", "v", "u:1"), "u:1")), ERR_EXISTS);
	CHECK_STR(got[0].message, "a selector is given twice");
	CHECK(!got[0].similar);
	en = entry_of("two", "v", "u:1");
	strings_add(&en.dns_names, "a.org");
	strings_add(&en.dns_names, "a.org");
	CHECK_INT(create(en), ERR_EXISTS);
	CHECK_STR(got[0].message, "DNS name \"a.org\" is given twice");
	CHECK_INT(update(with_selector(entry_of("one", "w", "u:3"), "u:3"), ENTRY_SELECTORS),
		ERR_EXISTS);
	CHECK_INT(put_bundle("z.org", 0, 0), 0);
	CHECK_INT(put_bundle("a.org", 0, 0), 0);
	en = entry_of("two", "v", "u:1");
	strings_add(&en.federates_with, "z.org");
	strings_add(&en.federates_with, "a.org");
	strings_add(&en.federates_with, "z.org");
	CHECK_INT(create(en), 0);
	CHECK_INT(got[0].entry.num, 2);
	CHECK_INT(got[0].entry.federates_with.n, 2);
	CHECK_STR(got[0].entry.federates_with.v[0], "a.org");
	reopen();
	CHECK_STR(entry_seen("one")->selectors.v[0].value, "2");
	CHECK_INT(entry_seen("two")->num, 2);
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
	/* What it was may be made anew; it may become like another, which a new one may not be. */
	CHECK_INT(create(entry_of("c", "w", "u:1")), 0);
	CHECK_INT(update(entry_of("a", "w", "u:2"), ENTRY_ALL), 0);
	CHECK_INT(create(entry_of("d", "w", "u:2")), ERR_EXISTS);
	CHECK_STR(got[0].entry.id, "b");
	CHECK_INT(update(entry_of("a", "other", "u:9"), ENTRY_ALL), 0);
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
	CHECK_INT(got[0].entry.revision_number, 5);
	reopen();
	CHECK_INT(entry_seen("a")->revision_number, 5);
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
	put_node("spiffe://" TD "/spire/agent/x/0", "x509pop", "9", 50);
	CHECK_INT(node_seen("spiffe://" TD "/spire/agent/x/0")->num, 2);
	CHECK_INT(node_seen("spiffe://" TD "/spire/agent/x/1")->num, 1);
	reopen();
	CHECK_INT(node_seen("spiffe://" TD "/spire/agent/x/0")->num, 2);
	const struct node *n = node_seen("spiffe://" TD "/spire/agent/x/1");

	CHECK_INT(n->num, 1);
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
	CHECK_INT(map_len(nodes), 1);
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
	CHECK_INT(put_bundle("a.org", 5, STORE_SEQUENCE_GIVEN), 0);
	CHECK_INT(sequence("a.org"), 5);
	CHECK_INT(put_bundle("0.org", 0, 0), 0);
	CHECK_INT(put_bundle("a.org", 5, STORE_SEQUENCE_GIVEN), 0);
	reopen();
	CHECK_INT(((const struct bundle *)map_get_str(bundles, "a.org"))->num, 1);
	CHECK_INT(((const struct bundle *)map_get_str(bundles, "0.org"))->num, 2);
	CHECK_INT(delete_bundle("0.org", BUNDLE_RESTRICT), 0);
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

TEST_MAIN(TEST(test_create_and_load), TEST(test_similar), TEST(test_order_and_repeats),
	TEST(test_partial_batch), TEST(test_update), TEST(test_delete_and_prune), TEST(test_nodes),
	TEST(test_nodes_prune), TEST(test_tokens), TEST(test_token_race), TEST(test_bundles),
	TEST(test_blobs), TEST(test_close_busy))

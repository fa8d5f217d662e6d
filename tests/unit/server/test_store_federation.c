/* Federation relationships in the store: they come back, with the bundle given, and in order. */
#include "server/store.h"

#include "lib/crypto.h"
#include "tests/test.h"

static struct loop *loop;
static struct store *store;
static struct err e;
static int code = -1;
static struct relationship seen[8];
static size_t n_seen, deleted, bundles;
static uint64_t last_change;

static void saw(void *arg, uint64_t change, const char *td, const struct relationship *r)
{
	(void)arg;
	if (change)
		CHECK(change > last_change);
	last_change = change;
	if (!r) {
		deleted++;
		return;
	}
	CHECK_STR(r->trust_domain, td);
	CHECK(n_seen < ARRAY_LEN(seen));
	seen[n_seen++] = relationship_dup(r);
}

static void saw_bundle(void *arg, uint64_t change, const char *td, struct bundle *b)
{
	(void)arg;
	(void)td;
	last_change = change;
	bundles += b != NULL;
}

static void forget(void)
{
	for (size_t i = 0; i < n_seen; i++)
		relationship_deinit(&seen[i]);
	n_seen = deleted = bundles = 0;
}

static void open_store(void)
{
	struct store_observer o = { .bundle = saw_bundle, .relationship = saw };
	AUTO(free) char *file = xasprintf("%s/store.db", test_dir());

	loop = loop_new();
	last_change = 0;
	CHECK_OK(store_open(loop, file, &o, &store, &e));
	CHECK_OK(store_load(store, &e));
	last_change = store_change(store);
}

static void close_store(void)
{
	store_close(store);
	loop_free(loop);
}

static void on_done(void *arg, int c, const char *msg)
{
	(void)arg;
	(void)msg;
	code = c;
}

static struct relationship rel(const char *td, const char *url, const char *id)
{
	return (struct relationship){ .trust_domain = (char *)(uintptr_t)td,
		.url = (char *)(uintptr_t)url,
		.endpoint_id = (char *)(uintptr_t)id };
}

static int create(const char *td, const char *url, const char *id, struct bundle *b)
{
	struct relationship r = rel(td, url, id);

	store_relationship_create(store, &r, b, on_done, NULL);
	loop_run(loop);
	return code;
}

static void test_create_load(void)
{
	AUTO(bundle_unref) struct bundle *b = bundle_new("b.org");

	crypto_init();
	open_store();
	CHECK_INT(create("b.org", "https://b", "spiffe://b.org/s", b), 0);
	CHECK_INT(bundles, 1);
	CHECK_INT(create("a.org", "https://a", "", NULL), 0);
	CHECK_INT(create("a.org", "https://c", "", NULL), ERR_EXISTS);
	CHECK_INT(n_seen, 2);
	CHECK(seen[1].num > seen[0].num);
	CHECK_STR(seen[0].endpoint_id, "spiffe://b.org/s");
	CHECK_INT(store_change(store), 3);
	close_store();
	forget();
	open_store();
	CHECK_INT(n_seen, 2);
	CHECK_STR(seen[0].trust_domain, "b.org");
	CHECK_STR(seen[1].trust_domain, "a.org");
	CHECK_STR(seen[1].url, "https://a");
	CHECK_STR(seen[1].endpoint_id, "");
	close_store();
	forget();
}

static void test_update_delete(void)
{
	AUTO(bundle_unref) struct bundle *b = bundle_new("a.org");
	struct relationship r = rel("a.org", "https://new", "spiffe://a.org/s");

	crypto_init();
	open_store();
	CHECK_INT(create("a.org", "https://a", "", NULL), 0);
	store_relationship_update(store, &r, RELATIONSHIP_URL, b, on_done, NULL);
	loop_run(loop);
	CHECK_INT(code, 0);
	CHECK_INT(bundles, 1);
	CHECK_STR(seen[1].url, "https://new");
	CHECK_STR(seen[1].endpoint_id, "");
	CHECK_INT(seen[1].num, seen[0].num);
	store_relationship_update(store, &r, RELATIONSHIP_PROFILE, NULL, on_done, NULL);
	loop_run(loop);
	CHECK_STR(seen[2].endpoint_id, "spiffe://a.org/s");
	r.trust_domain = (char *)(uintptr_t) "b.org";
	store_relationship_update(store, &r, RELATIONSHIP_URL, b, on_done, NULL);
	loop_run(loop);
	CHECK_INT(code, ERR_NOT_FOUND);
	CHECK_INT(bundles, 1);
	store_relationship_delete(store, "b.org", on_done, NULL);
	loop_run(loop);
	CHECK_INT(code, ERR_NOT_FOUND);
	store_relationship_delete(store, "a.org", on_done, NULL);
	loop_run(loop);
	CHECK_INT(code, 0);
	CHECK_INT(deleted, 1);
	close_store();
	forget();
	open_store();
	CHECK_INT(n_seen, 0);
	close_store();
}

TEST_MAIN(TEST(test_create_load), TEST(test_update_delete))

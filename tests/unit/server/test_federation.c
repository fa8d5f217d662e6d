/* Covers: server/federation.c server/federation_url.c
 * Bundles fetched from a peer that is served in the same process. */
#include "server/federation.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include "lib/http.h"
#include "server/api.h"
#include "tests/test.h"
#include "tests/unit/x509_make.inc"

#define PEER "peer.test"

static struct api api;
static struct err e;
static struct http_server *server;
static struct tls_ctx *tls;
static struct test_ca ca;
static char *url;
static struct bundle *root; /* of the peer: its CA */

/* What the peer does. */
static int answer_status = 200;
static char *answer;
static int asked;

/* ---- around it ---- */

static void on_bundle(void *arg, uint64_t change, const char *td, struct bundle *b)
{
	(void)arg;
	(void)change;
	api_bundle_changed(&api, td, b);
	if (b)
		federation_bundle_changed(api.federation, td);
}

static void on_relationship(
	void *arg, uint64_t change, const char *td, const struct relationship *r)
{
	(void)arg;
	(void)change;
	federation_changed(api.federation, td, r);
}

static struct tls_ctx *give_tls(void *arg)
{
	(void)arg;
	return tls_ctx_ref(tls);
}

static void handle(void *arg, const struct http_request *rq, struct http_response *rs)
{
	(void)arg;
	(void)rq;
	asked++;
	rs->status = answer_status;
	buf_str(&rs->body, answer);
}

static void serve(void)
{
	struct key *key = test_key(KEY_EC_P256);
	struct x509_cert *cert;
	struct x509_chain chain = { &cert, 1 };
	struct tls_options t = { .server = true, .chain = &chain, .key = key, .alpn = "http/1.1" };
	struct http_server_options so = { .host = "127.0.0.1", .tls = give_tls, .handle = handle };

	ca.key = test_key(KEY_EC_P256);
	ca.cert = test_cert(ca.key, "ca", NULL, true, NULL, clock_wall());
	cert = test_cert(key, "peer", "spiffe://" PEER "/server", false, &ca, clock_wall());
	CHECK_OK(tls_ctx_new(&t, &tls, &e));
	CHECK_OK(http_server_open(api.loop, &so, &server, &e));
	url = xasprintf("https://127.0.0.1:%d/", http_server_port(server));
	x509_unref(cert);
	key_unref(key);
	root = bundle_new(PEER);
	bundle_add_root(root, ca.cert, false);
}

static void answer_with(const struct bundle *b)
{
	struct buf text = BUF_INIT;

	bundle_to_json(b, &text);
	free(answer);
	answer = buf_take_str(&text);
}

static void begin(void)
{
	struct store_observer o = { .bundle = on_bundle, .relationship = on_relationship };
	AUTO(free) char *file = xasprintf("%s/store.db", test_dir());

	crypto_init();
	signal(SIGPIPE, SIG_IGN); /* as the programs do */
	api.loop = loop_new();
	api.trust_domain = "own.test";
	api.bundles = map_new();
	api.federation = federation_new(&api);
	CHECK_OK(store_open(api.loop, file, &o, &api.store, &e));
	CHECK_OK(store_load(api.store, &e));
	serve();
	answer_with(root);
}

static void stop(void *arg)
{
	(void)arg;
	loop_stop(api.loop);
}

static void run_for(int64_t ms)
{
	struct loop_timer *t = loop_timer_new(api.loop, stop, NULL);

	loop_timer_set(t, ms * NS_PER_MS);
	loop_run(api.loop);
	loop_timer_free(t);
}

static void end(void)
{
	struct bytes key;
	void *b;

	federation_stop(api.federation);
	http_server_close(server);
	run_for(50);
	federation_free(api.federation);
	store_close(api.store);
	loop_run(api.loop);
	loop_free(api.loop);
	for (size_t i = 0; map_next(api.bundles, &i, &key, &b);)
		bundle_unref(b);
	map_free(api.bundles);
	bundle_unref(root);
	x509_unref(ca.cert);
	key_unref(ca.key);
	tls_ctx_unref(tls);
	free(answer);
	free(url);
}

static int code;
static char text[1200];
static int dones;

static void on_done(void *arg, int c, const char *msg)
{
	(void)arg;
	dones++;
	code = c;
	snprintf(text, sizeof(text), "%s", msg);
	loop_stop(api.loop);
}

static void relate(const char *id, struct bundle *b)
{
	struct relationship r = { .trust_domain = (char *)(uintptr_t)PEER,
		.url = url,
		.endpoint_id = (char *)(uintptr_t)id };

	store_relationship_create(api.store, &r, b, on_done, NULL);
	loop_run(api.loop);
	CHECK_INT(code, 0);
}

static int refresh(void)
{
	CHECK(federation_refresh(api.federation, PEER, on_done, NULL));
	loop_run(api.loop);
	return code;
}

/* ---- the tests ---- */

static void test_interval(void)
{
	struct bundle *b = bundle_new("x");
	static const struct {
		int64_t hint, want;
	} rows[] = { { 0, 300 }, { 1, 15 }, { 60, 15 }, { 61, 15 }, { 300, 75 },
		{ INT64_MAX, FEDERATION_POLL_MAX_S } };

	CHECK_INT(federation_interval(NULL), 300);
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		b->refresh_hint = rows[i].hint;
		CHECK_INT(federation_interval(b), rows[i].want);
	}
	bundle_unref(b);
}

static void test_fetch(void)
{
	struct bundle *more;
	struct key *key = test_key(KEY_EC_P256);
	uint64_t change;

	begin();
	federation_start(api.federation);
	relate("spiffe://" PEER "/server", root);
	CHECK_INT(refresh(), 0);
	CHECK(asked >= 1);
	/* the same again is no change */
	change = store_change(api.store);
	CHECK_INT(refresh(), 0);
	CHECK_INT(store_change(api.store), change);
	/* a key more, a hint */
	more = bundle_dup(root);
	bundle_add_jwt_key(more, "kid", key_public(key), 0, false);
	more->refresh_hint = 100;
	more->sequence = 50;
	answer_with(more);
	CHECK_INT(refresh(), 0);
	CHECK_INT(store_change(api.store), change + 1);
	CHECK_INT(api_bundle(&api, PEER)->n_jwt_keys, 1);
	CHECK_INT(api_bundle(&api, PEER)->refresh_hint, 100);
	CHECK_INT(api_bundle(&api, PEER)->sequence, 50);
	/* with no roots left it revokes them all, and the endpoint is not believed any more */
	free(answer);
	answer = xstrdup("{\"keys\":[]}");
	CHECK_INT(refresh(), 0);
	CHECK_INT(api_bundle(&api, PEER)->n_roots, 0);
	CHECK(refresh() != 0);
	end();
	bundle_unref(more);
	key_unref(key);
}

static void test_refused(void)
{
	struct bundle *none = bundle_new(PEER);

	begin();
	federation_start(api.federation);
	CHECK(!federation_refresh(api.federation, PEER, on_done, NULL));
	relate("spiffe://" PEER "/other", NULL);
	CHECK_INT(refresh(), ERR_PRECONDITION);
	CHECK_STR(text, "can't perform SPIFFE Authentication: local copy of bundle not found");
	store_bundle_put(api.store, root, 0, on_done, NULL);
	loop_run(api.loop);
	CHECK(refresh() != 0);
	CHECK_CONTAINS(text, "unexpected ID \"spiffe://" PEER "/server\"");
	store_bundle_put(api.store, none, 0, on_done, NULL);
	loop_run(api.loop);
	CHECK(refresh() != 0);
	CHECK_CONTAINS(text, "failed to fetch federated bundle from endpoint: failed to fetch "
			     "bundle: Get \"https://127.0.0.1:");
	CHECK_INT(asked, 0);
	end();
	bundle_unref(none);
}

static void test_lies(void)
{
	begin();
	federation_start(api.federation);
	relate("spiffe://" PEER "/server", root);
	CHECK_INT(refresh(), 0);
	answer_status = 503;
	CHECK(refresh() != 0);
	CHECK_CONTAINS(text, "unexpected status 503 fetching bundle: {");
	answer_status = 200;
	free(answer);
	answer = xstrdup("{\"keys\":[{\"use\":\"x509-svid\",\"x5c\":[\"AAAA\"]}]}");
	CHECK(refresh() != 0);
	free(answer);
	answer = xmalloc(FEDERATION_BODY_MAX + 2);
	memset(answer, ' ', FEDERATION_BODY_MAX + 1);
	answer[FEDERATION_BODY_MAX + 1] = 0;
	CHECK(refresh() != 0);
	CHECK_CONTAINS(text, "answer is too large");
	CHECK_INT(api_bundle(&api, PEER)->n_roots, 1);
	answer_with(root);
	CHECK_INT(refresh(), 0);
	end();
}

/* A peer that takes the connection and says nothing. */
static void hang(char **ret_url, int *ret_fd)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t n = sizeof(a);

	*ret_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	CHECK(bind(*ret_fd, (struct sockaddr *)&a, n) == 0 && listen(*ret_fd, 5) == 0);
	CHECK(getsockname(*ret_fd, (struct sockaddr *)&a, &n) == 0);
	*ret_url = xasprintf("https://127.0.0.1:%d/", ntohs(a.sin_port));
}

static void test_hangs(void)
{
	AUTO(close_fd) int fd = -1;
	struct relationship r;
	char *good;

	begin();
	good = url;
	hang(&url, &fd);
	federation_start(api.federation);
	relate("spiffe://" PEER "/server", root);
	dones = 0;
	CHECK(federation_refresh(api.federation, PEER, on_done, NULL));
	CHECK(federation_refresh(api.federation, PEER, on_done, NULL));
	run_for(100);
	CHECK_INT(dones, 0);
	/* another address: those who wait get that one's answer */
	r = (struct relationship){ .trust_domain = (char *)(uintptr_t)PEER,
		.url = good,
		.endpoint_id = (char *)(uintptr_t) "spiffe://" PEER "/server" };
	store_relationship_update(
		api.store, &r, RELATIONSHIP_URL | RELATIONSHIP_PROFILE, NULL, on_done, NULL);
	while (dones < 3)
		loop_run(api.loop);
	CHECK_INT(code, 0);
	CHECK_STR(federation_get(api.federation, PEER)->url, good);
	/* back again, and gone while it hangs */
	r.url = url;
	store_relationship_update(api.store, &r, RELATIONSHIP_URL, NULL, on_done, NULL);
	loop_run(api.loop);
	CHECK(federation_refresh(api.federation, PEER, on_done, NULL));
	store_relationship_delete(api.store, PEER, NULL, NULL);
	loop_run(api.loop);
	CHECK_INT(code, ERR_NOT_FOUND);
	relate("spiffe://" PEER "/server", NULL);
	CHECK(federation_refresh(api.federation, PEER, on_done, NULL));
	federation_stop(api.federation);
	CHECK_INT(code, ERR_UNAVAILABLE);
	free(good);
	end();
}

static void test_fixed(void)
{
	struct relationship r = { .trust_domain = (char *)(uintptr_t)PEER,
		.endpoint_id = (char *)(uintptr_t) "spiffe://" PEER "/server" };
	struct federation_stats st;
	size_t n;

	begin();
	r.url = url;
	federation_add_fixed(api.federation, &r);
	on_bundle(NULL, 0, PEER, root);
	federation_start(api.federation);
	CHECK_INT(refresh(), 0);
	/* a stored one beside it is listed, but not used */
	url = xstrdup("https://127.0.0.1:1/");
	relate("", NULL);
	CHECK_INT(refresh(), 0);
	free(federation_list(api.federation, 0, &n));
	CHECK_INT(n, 1);
	store_relationship_delete(api.store, PEER, on_done, NULL);
	loop_run(api.loop);
	free(federation_list(api.federation, 0, &n));
	CHECK_INT(n, 0);
	CHECK_INT(refresh(), 0);
	federation_stats(api.federation, &st);
	CHECK_INT(st.peers, 1);
	CHECK_INT(st.failing, 0);
	free(r.url);
	end();
}

/* The own bundle is never taken from elsewhere. */
static void test_own(void)
{
	struct relationship r = { .trust_domain = (char *)(uintptr_t) "own.test",
		.endpoint_id = (char *)(uintptr_t) "spiffe://" PEER "/server" };

	begin();
	r.url = url;
	federation_add_fixed(api.federation, &r);
	on_bundle(NULL, 0, PEER, root);
	federation_start(api.federation);
	CHECK(federation_refresh(api.federation, "own.test", on_done, NULL));
	loop_run(api.loop);
	CHECK_INT(code, ERR_INVALID);
	CHECK(!api_bundle(&api, "own.test"));
	end();
}

TEST_MAIN(TEST(test_interval), TEST(test_fetch), TEST(test_refused), TEST(test_lies),
	TEST(test_hangs), TEST(test_fixed), TEST(test_own))

/* The CA on the real store and the real key file, in real time: restarts in the midst of rotation,
 * and nothing that was signed ever fails to verify. */
#include "server/ca.h"

#include "lib/loop.h"
#include "lib/mem.h"
#include "tests/test.h"

enum { CA_TTL_S = 3, ROUNDS = 4, ROUND_MS = 2500, LIVE = 64 };

static struct loop *loop;
static struct store *store;
static struct keymgr *keymgr;
static struct bundle *bundle;
static struct ca *ca;
static bool ready;
static int activations;
static struct key *workload;
static struct {
	struct ca_x509_svid svid;
	struct buf token;
	int64_t exp;
	int64_t token_exp;
} live[LIVE];
static int issued, checked;

static void on_entry(void *arg, uint64_t change, const char *id, const struct entry *en)
{
	(void)arg, (void)change, (void)id, (void)en;
}

static void on_node(void *arg, uint64_t change, const char *id, const struct node *n)
{
	(void)arg, (void)change, (void)id, (void)n;
}

static void on_bundle(void *arg, uint64_t change, const char *td, struct bundle *b)
{
	(void)arg, (void)change;
	CHECK_STR(td, "td");
	bundle_unref(bundle);
	bundle = bundle_ref(b);
	if (ca)
		ca_bundle_changed(ca, b);
}

static void on_ready(void *arg, const struct err *e)
{
	(void)arg;
	if (e->code)
		TEST_FAIL("%s", e->msg);
	ready = true;
}

static void on_activate(void *arg)
{
	(void)arg;
	activations++;
}

static void begin(void)
{
	static const struct store_observer observer = { on_entry, on_node, on_bundle, NULL };
	AUTO(free) char *keys = xasprintf("%s/keys.json", test_dir());
	AUTO(free) char *db = xasprintf("%s/store.sqlite3", test_dir());
	struct err e = ERR_INIT;

	ready = false;
	loop = loop_new();
	CHECK_OK(keymgr_disk_new(keys, &keymgr, &e));
	CHECK_OK(store_open(loop, db, &observer, &store, &e));
	CHECK_OK(store_load(store, &e));
	CHECK_OK(ca_new(&(struct ca_options){ .loop = loop,
				.store = store,
				.keymgr = keymgr,
				.trust_domain = "td",
				.x509_key_type = KEY_EC_P256,
				.country = "US",
				.organization = "SPIFFE",
				.ca_ttl_ns = CA_TTL_S * NS_PER_SEC,
				.x509_svid_ttl_ns = 2 * NS_PER_SEC,
				.jwt_svid_ttl_ns = 2 * NS_PER_SEC },
		on_ready, NULL, &ca, &e));
	ca_on_activate(ca, on_activate, NULL);
	if (bundle)
		ca_bundle_changed(ca, bundle);
}

static void end(void)
{
	ca_free(ca);
	ca = NULL;
	store_close(store);
	loop_run(loop);
	loop_free(loop);
	keymgr_free(keymgr);
	bundle_unref(bundle);
	bundle = NULL;
}

static void issue(int at)
{
	static const char *const aud[] = { "a" };
	struct ca_issuer *i = ca_issuer(ca);
	struct ca_jwt_issuer *j = ca_jwt_issuer(ca);
	struct err e = ERR_INIT;
	int64_t iat;

	CHECK(i && j);
	ca_x509_svid_deinit(&live[at].svid);
	buf_deinit(&live[at].token);
	live[at].token = BUF_INIT;
	CHECK_OK(ca_sign_x509_svid(i,
		&(struct ca_x509_params){ .spiffe_id = "spiffe://td/w",
			.spki = pubkey_spki(key_public(workload)),
			.now = clock_wall() },
		&live[at].svid, &e));
	CHECK_OK(ca_sign_jwt_svid(j,
		&(struct ca_jwt_params){
			.spiffe_id = "spiffe://td/w", .aud = aud, .n_aud = 1, .now = clock_wall() },
		&live[at].token, &iat, &live[at].token_exp, &e));
	live[at].exp = live[at].svid.expires_at;
	ca_issuer_unref(i);
	ca_jwt_issuer_unref(j);
}

static void verify(int at, const struct x509_chain *roots)
{
	struct x509_chain chain = { .n = 0 };
	struct wall now = clock_wall();
	struct err e = ERR_INIT;
	struct jwt j;

	if (now.sec < live[at].exp) {
		CHECK_OK(x509_chain_parse_der(&chain, buf_view(&live[at].svid.chain), 10, &e));
		CHECK_OK(x509_verify(&chain, roots, now, &e));
		x509_chain_deinit(&chain);
		checked++;
	}
	if (now.sec < live[at].token_exp) {
		CHECK_OK(jwt_parse(buf_view(&live[at].token), &j, &e));
		CHECK_OK(jwt_verify(&j, bundle, "a", now, &e));
		jwt_deinit(&j);
	}
}

static struct loop_timer *timer;
static int rounds_left;

static void tick(void *arg)
{
	struct x509_chain roots;

	(void)arg;
	if (--rounds_left <= 0) {
		loop_stop(loop);
		return;
	}
	loop_timer_set(timer, 25 * NS_PER_MS);
	if (!ready)
		return;
	issue(issued++ % LIVE);
	roots = bundle_roots(bundle);
	for (int i = 0; i < LIVE && i < issued; i++)
		verify(i, &roots);
	x509_chain_deinit(&roots);
}

static void test_restarts_while_rotating(void)
{
	struct err e = ERR_INIT;

	crypto_init();
	CHECK_OK(key_generate(KEY_EC_P256, &workload, &e));
	for (int i = 0; i < LIVE; i++)
		live[i].svid.chain = live[i].svid.leaf = live[i].token = BUF_INIT;
	for (int r = 0; r < ROUNDS; r++) {
		begin();
		rounds_left = ROUND_MS / 25;
		timer = loop_timer_new(loop, tick, NULL);
		loop_timer_set(timer, 0);
		loop_run(loop);
		loop_timer_free(timer);
		CHECK(ready);
		CHECK(bundle->n_roots >= 1 && bundle->n_roots < 20);
		end();
	}
	CHECK(activations >= 3);
	CHECK(checked > 1000);
	for (int i = 0; i < LIVE; i++) {
		ca_x509_svid_deinit(&live[i].svid);
		buf_deinit(&live[i].token);
	}
	key_unref(workload);
}

TEST_MAIN(TEST(test_restarts_while_rotating))

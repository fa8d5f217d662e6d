#include "server/authz.h"

#include "tests/test.h"

#include "spire/api/types/status.pb-c.h"

#define TD "example.org"
#define AGENT_ID "spiffe://" TD "/spire/agent/x509pop/1"

static struct entries *entries;
static struct strings admin_ids;
static struct authz *authz;
static struct loop *loop;
static struct store *store;
static struct authz_verdict v;
static struct err e;

/* ---- a world with one of each ---- */

static void saw_node(void *arg, uint64_t change, const char *id, const struct node *n)
{
	(void)arg;
	entries_set_change(entries, change);
	if (n)
		entries_put_node(entries, n);
	else
		entries_remove_node(entries, id);
}

static void on_done(void *arg, int code, const char *msg)
{
	(void)arg;
	if (code)
		TEST_FAIL("%s", msg);
	loop_stop(loop);
}

static void put_node(const char *serial, const char *new_serial)
{
	struct node n = {
		.spiffe_id = xstrdup(AGENT_ID),
		.attestation_type = xstrdup("x509pop"),
		.serial = xstrdup(serial),
		.new_serial = xstrdup(new_serial),
		.new_expires_at = 77,
		.agent_version = xstrdup(""),
	};

	store_node_put(store, &n, on_done, NULL);
	loop_run(loop);
	node_deinit(&n);
}

static void put_entry(const char *id, bool admin, bool downstream)
{
	struct entry en = {
		.id = xasprintf("id of %s", id),
		.spiffe_id = xstrdup(id),
		.parent_id = xstrdup(AGENT_ID),
		.hint = xstrdup(""),
		.admin = admin,
		.downstream = downstream,
	};

	entries_put(entries, &en);
	entry_deinit(&en);
}

static void set_up(void)
{
	static const struct store_observer observer = { .node = saw_node };
	AUTO(free) char *file = xasprintf("%s/store.db", test_dir());
	struct authz_options o = { .admin_ids = &admin_ids };

	crypto_init();
	loop = loop_new();
	o.entries = entries = entries_new(TD, false);
	CHECK_OK(store_open(loop, file, &observer, &store, &e));
	o.store = store;
	strings_add(&admin_ids, "spiffe://foreign.org/admin");
	authz = authz_new(&o);
	put_entry("spiffe://" TD "/admin", true, false);
	put_entry("spiffe://" TD "/downstream", false, true);
	put_entry("spiffe://" TD "/workload", false, false);
	put_node("5", "");
}

static void tear_down(void)
{
	authz_free(authz);
	store_close(store);
	entries_free(entries);
	strings_deinit(&admin_ids);
	loop_free(loop);
}

static int sign(void *arg, enum hash h, struct bytes digest, struct buf *ret, struct err *err)
{
	return key_sign(arg, h, digest, SIG_X509, ret, err);
}

/* A caller with a certificate of that serial number, valid until then. The chain was verified when
 * it came in, so who signed it is of no matter here. */
static struct peer caller(const char *id, uint8_t serial, struct wall not_after)
{
	AUTO(key_unref) struct key *k = NULL;
	AUTO_BUF struct buf der = BUF_INIT;
	struct peer p = { .pidfd = -1 };
	struct x509_template t = {
		.serial = bytes_of(&serial, 1),
		.subject_raw = bytes_of("\x30\0", 2),
		.issuer_raw = bytes_of("\x30\0", 2),
		.not_before = wall_add_ns(not_after, -3600 * NS_PER_SEC),
		.not_after = not_after,
		.key_usage = KU_DIGITAL_SIGNATURE,
		.uris = &id,
		.n_uris = 1,
	};
	struct x509_signer s = { .type = KEY_EC_P256, .sign = sign };

	CHECK_OK(key_generate(KEY_EC_P256, &k, &e));
	t.spki = pubkey_spki(key_public(k));
	s.arg = k;
	CHECK_OK(x509_build(&t, &s, &der, &e));
	CHECK_OK(x509_chain_parse_der(&p.chain, buf_view(&der), 1, &e));
	CHECK_OK(spiffeid_parse_str(&p.id, id, &e));
	return p;
}

static struct wall later(void)
{
	return wall_add_ns(clock_wall(), 600 * NS_PER_SEC);
}

static void caller_deinit(struct peer *p)
{
	x509_chain_deinit(&p->chain);
	spiffeid_deinit(&p->id);
}

static int check(const struct peer *p, const char *method)
{
	return authz_check(authz, p, method, &v, &e);
}

#define RENEW "/spire.api.server.agent.v1.Agent/RenewAgent"
#define LIST "/spire.api.server.entry.v1.Entry/ListEntries"
#define REASON(name) SPIRE__API__TYPES__PERMISSION_DENIED_DETAILS__REASON__##name

/* ---- tests ---- */

/* Every class of caller against every method: what is allowed is what the table says. */
static void test_matrix(void)
{
	struct peer local = { .is_unix = true };
	struct peer nobody = { .is_unix = false };
	struct peer p[5];
	static const unsigned class[5] = { AUTHZ_ADMIN, AUTHZ_ADMIN, AUTHZ_DOWNSTREAM, AUTHZ_AGENT,
		0 };
	const struct authz_method *m;
	size_t n;

	set_up();
	p[0] = caller("spiffe://foreign.org/admin", 1, later());
	p[1] = caller("spiffe://" TD "/admin", 1, later());
	p[2] = caller("spiffe://" TD "/downstream", 1, later());
	p[3] = caller(AGENT_ID, 5, later());
	p[4] = caller("spiffe://" TD "/workload", 1, later());
	m = authz_table(&n);
	CHECK(n > 60);
	for (size_t i = 0; i < n; i++) {
		bool any = m[i].allowed & AUTHZ_ANY;

		CHECK(authz_find(m[i].method) == &m[i]);
		CHECK_ERR(check(&local, m[i].method),
			any || (m[i].allowed & AUTHZ_LOCAL) ? 0 : ERR_DENIED);
		CHECK_ERR(check(&nobody, m[i].method), any              ? 0
						       : m[i].unix_only ? ERR_UNIMPLEMENTED
									: ERR_DENIED);
		for (int k = 0; k < 5; k++)
			CHECK_ERR(check(&p[k], m[i].method), m[i].unix_only ? ERR_UNIMPLEMENTED
							     : any || (m[i].allowed & class[k])
								     ? 0
								     : ERR_DENIED);
	}
	for (int k = 0; k < 5; k++)
		caller_deinit(&p[k]);
	tear_down();
}

static void test_texts(void)
{
	struct peer nobody = { .is_unix = false };
	struct peer local = { .is_unix = true };

	set_up();
	CHECK_ERR(check(&nobody, LIST), ERR_DENIED);
	CHECK_STR(e.msg, "authorization denied for method " LIST);
	CHECK_INT(v.reason, 0);
	CHECK_ERR(check(&nobody, "/spire.api.server.debug.v1.Debug/GetInfo"), ERR_UNIMPLEMENTED);
	CHECK_STR(e.msg, "unknown service spire.api.server.debug.v1.Debug");
	CHECK_ERR(check(&local, "/spire.api.server.entry.v1.Entry/Nope"), ERR_UNIMPLEMENTED);
	CHECK_STR(e.msg, "unknown method Nope for service spire.api.server.entry.v1.Entry");
	CHECK_ERR(check(&local, "nonsense"), ERR_UNIMPLEMENTED);
	CHECK_ERR(check(&local, "/nonsense"), ERR_UNIMPLEMENTED);
	CHECK_ERR(check(&local, ""), ERR_UNIMPLEMENTED);
	CHECK_OK(check(&local, LIST));
	CHECK_STR(authz_class_name(v.as), "local");
	tear_down();
}

static void expect_reason(struct peer p, int reason)
{
	CHECK_ERR(check(&p, RENEW), reason ? ERR_DENIED : 0);
	CHECK_INT(v.reason, reason);
	if (reason)
		CHECK_STR(e.msg, "authorization denied for method " RENEW);
	caller_deinit(&p);
}

static void test_agents(void)
{
	set_up();
	expect_reason(caller(AGENT_ID, 5, later()), 0);
	expect_reason(caller(AGENT_ID, 6, later()), REASON(AGENT_NOT_ACTIVE));
	CHECK_STR(v.detail, "agent \"" AGENT_ID "\" expected to have serial number 5; has 6");
	expect_reason(
		caller(AGENT_ID, 5, wall_add_ns(clock_wall(), -NS_PER_SEC)), REASON(AGENT_EXPIRED));
	expect_reason(
		caller("spiffe://" TD "/spire/agent/x/2", 5, later()), REASON(AGENT_NOT_ATTESTED));
	put_node("", "");
	expect_reason(caller(AGENT_ID, 5, later()), REASON(AGENT_BANNED));
	tear_down();
}

/* The first use of the new SVID ends the old one, at once and for good. */
static void test_promotion(void)
{
	struct node n;

	set_up();
	put_node("5", "6");
	expect_reason(caller(AGENT_ID, 5, later()), 0);
	expect_reason(caller(AGENT_ID, 6, later()), 0);
	expect_reason(caller(AGENT_ID, 5, later()), REASON(AGENT_NOT_ACTIVE));
	expect_reason(caller(AGENT_ID, 6, later()), 0);
	do {
		loop_run(loop);
		CHECK_OK(entries_node_view(entries, AGENT_ID, &n, &e));
	} while (n.new_serial[0]);
	CHECK_STR(n.serial, "6");
	CHECK_INT(n.expires_at, 77);
	CHECK_INT(n.new_expires_at, 0);
	expect_reason(caller(AGENT_ID, 5, later()), REASON(AGENT_NOT_ACTIVE));
	expect_reason(caller(AGENT_ID, 6, later()), 0);
	/* Freed with one under way. */
	put_node("6", "7");
	expect_reason(caller(AGENT_ID, 7, later()), 0);
	tear_down();
}

/* Rights are read with each call. */
static void test_rights_go_at_once(void)
{
	struct peer p;

	set_up();
	p = caller("spiffe://" TD "/admin", 1, later());
	CHECK_OK(check(&p, LIST));
	put_entry("spiffe://" TD "/admin", false, false);
	CHECK_ERR(check(&p, LIST), ERR_DENIED);
	caller_deinit(&p);
	tear_down();
}

TEST_MAIN(TEST(test_matrix), TEST(test_texts), TEST(test_agents), TEST(test_promotion),
	TEST(test_rights_go_at_once))

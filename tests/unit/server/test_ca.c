/* The authorities over a store that the test holds in its hands: it can fail, be slow, be changed
 * by others, and outlive the CA. */
#include "server/ca_internal.h"

#include "lib/loop.h"
#include "lib/mem.h"
#include "tests/test.h"

#define T0 INT64_C(1800000000)
#define HOUR INT64_C(3600)
#define DAY (24 * HOUR)

/* ---- the store ---- */

struct store {
	struct bundle *bundle;
	struct buf journal;
	bool has_journal;
	int journal_writes, bundle_writes;
	int fail_journal, fail_bundle; /* how many of the next ones fail */
	bool intrude;                  /* once: another server changes the bundle first */
	char order[200];               /* "j" and "b" as they became durable */
};

static struct loop *loop;
static struct store store;
static struct keymgr *keymgr;
static struct ca *ca;
static struct ca_options options;
static int ready_calls, activations;
static struct err ready_err;

struct reply {
	store_done *done;
	void *arg;
	int code;
	const char *msg;
	struct bundle *changed;
};

static void deliver(void *arg)
{
	struct reply *r = arg;

	if (r->changed && ca)
		ca_bundle_changed(ca, r->changed);
	bundle_unref(r->changed);
	r->done(r->arg, r->code, r->msg);
	free(r);
}

static void answer(store_done *done, void *arg, int code, const char *msg, struct bundle *changed)
{
	struct reply *r = xcalloc(1, sizeof(*r));

	*r = (struct reply){ done, arg, code, msg, changed ? bundle_ref(changed) : NULL };
	loop_post(loop, deliver, r);
}

static void note(char what)
{
	size_t n = strlen(store.order);

	if (n + 1 < sizeof(store.order))
		store.order[n] = what;
}

void store_blob_put(struct store *s, const char *name, struct bytes v, store_done *done, void *arg)
{
	CHECK_STR(name, "ca_journal");
	s->journal_writes++;
	if (s->fail_journal > 0) {
		s->fail_journal--;
		answer(done, arg, ERR_EXHAUSTED, "disk full", NULL);
		return;
	}
	buf_reset(&s->journal);
	buf_bytes(&s->journal, v);
	s->has_journal = true;
	note('j');
	answer(done, arg, 0, "", NULL);
}

int store_blob_get(struct store *s, const char *name, struct buf *ret, struct err *e)
{
	if (!s->has_journal)
		return err_set(e, ERR_NOT_FOUND, "no blob %s", name);
	buf_bytes(ret, buf_view(&s->journal));
	return 0;
}

static void replace_bundle(struct store *s, const struct bundle *b)
{
	struct bundle *n = bundle_dup(b);

	n->sequence = s->bundle ? s->bundle->sequence + 1 : 1;
	bundle_unref(s->bundle);
	s->bundle = n;
}

static void add_foreign_key(struct store *s)
{
	struct bundle *b = bundle_dup(s->bundle);
	struct key *k = NULL;
	struct err e = ERR_INIT;

	CHECK_OK(key_generate(KEY_EC_P256, &k, &e));
	CHECK(bundle_add_jwt_key(b, "foreign", key_public(k), T0 + 1000 * DAY, false));
	replace_bundle(s, b);
	bundle_unref(b);
	key_unref(k);
}

void store_bundle_put(
	struct store *s, struct bundle *b, uint64_t expect_sequence, store_done *done, void *arg)
{
	s->bundle_writes++;
	if (s->fail_bundle > 0) {
		s->fail_bundle--;
		answer(done, arg, ERR_UNAVAILABLE, "no disk", NULL);
		return;
	}
	if (s->intrude && s->bundle) {
		s->intrude = false;
		add_foreign_key(s);
	}
	if (expect_sequence && expect_sequence != s->bundle->sequence) {
		answer(done, arg, ERR_ABORTED, "bundle changed", s->bundle);
		return;
	}
	replace_bundle(s, b);
	note('b');
	answer(done, arg, 0, "", s->bundle);
}

/* ---- driving ---- */

static void on_ready(void *arg, const struct err *e)
{
	(void)arg;
	ready_calls++;
	ready_err = *e;
}

static void on_activate(void *arg)
{
	(void)arg;
	activations++;
}

static bool (*wanted)(void);
static struct loop_timer *poll_timer;
static int polls_left;

static void poll(void *arg)
{
	(void)arg;
	if (wanted() || --polls_left <= 0)
		loop_stop(loop);
	else
		loop_timer_set(poll_timer, 5 * NS_PER_MS);
}

static bool run(bool (*until)(void), int at_most_ms)
{
	wanted = until;
	polls_left = at_most_ms / 5;
	poll_timer = loop_timer_new(loop, poll, NULL);
	loop_timer_set(poll_timer, 0);
	loop_run(loop);
	loop_timer_free(poll_timer);
	return until();
}

static bool never(void)
{
	return false;
}

static bool is_told(void)
{
	return ready_calls > 0;
}

static void set_clock(int64_t sec)
{
	struct wall t = wall_of_sec(sec);

	clock_set_wall_for_test(&t);
}

static void begin(int64_t ca_ttl_s)
{
	struct err e = ERR_INIT;

	crypto_init();
	loop = loop_new();
	store = (struct store){ .journal = BUF_INIT };
	CHECK_OK(keymgr_memory_new(&keymgr, &e));
	options = (struct ca_options){ .loop = loop,
		.store = &store,
		.keymgr = keymgr,
		.trust_domain = "td",
		.x509_key_type = KEY_EC_P256,
		.country = "US",
		.organization = "SPIFFE",
		.ca_ttl_ns = ca_ttl_s * NS_PER_SEC,
		.x509_svid_ttl_ns = HOUR * NS_PER_SEC,
		.jwt_svid_ttl_ns = 300 * NS_PER_SEC };
}

static void open_ca(void)
{
	struct err e = ERR_INIT;

	ready_calls = activations = 0;
	options.keymgr = keymgr;
	CHECK_OK(ca_new(&options, on_ready, NULL, &ca, &e));
	ca_on_activate(ca, on_activate, NULL);
	if (store.bundle)
		ca_bundle_changed(ca, store.bundle);
	CHECK(!ca_ready(ca));
	CHECK(ca_issuer(ca) == NULL && ca_jwt_issuer(ca) == NULL);
}

static void start(void)
{
	open_ca();
	CHECK(run(is_told, 10000));
	CHECK_INT(ready_calls, 1);
	CHECK_INT(ready_err.code, 0);
	CHECK(ca_ready(ca));
}

static void stop(void)
{
	ca_free(ca);
	ca = NULL;
	run(never, 50);
}

static void end(void)
{
	if (ca)
		stop();
	bundle_unref(store.bundle);
	buf_deinit(&store.journal);
	keymgr_free(keymgr);
	loop_free(loop);
}

static const struct ca_slot *slot(enum ca_kind k, enum ca_status status)
{
	for (int i = 0; i < CA_SLOTS; i++)
		if (ca->line[k].slot[i].status == status)
			return &ca->line[k].slot[i];
	return NULL;
}

static size_t n_keys(void)
{
	struct strings names = { .n = 0 };
	struct err e = ERR_INIT;
	size_t n;

	CHECK_OK(keymgr_list(keymgr, &names, &e));
	n = names.n;
	strings_deinit(&names);
	return n;
}

static struct key *workload_key(void)
{
	static struct key *k;
	struct err e = ERR_INIT;

	if (!k)
		CHECK_OK(key_generate(KEY_EC_P256, &k, &e));
	return k;
}

static struct ca_x509_svid sign_svid(const struct ca_x509_params *p)
{
	struct ca_issuer *i = ca_issuer(ca);
	struct ca_x509_svid svid = { .chain = BUF_INIT, .leaf = BUF_INIT };
	struct ca_x509_params q = *p;
	struct err e = ERR_INIT;

	CHECK(i != NULL);
	q.spki = pubkey_spki(key_public(workload_key()));
	q.now = clock_wall();
	if (!q.spiffe_id)
		q.spiffe_id = "spiffe://td/w";
	CHECK_OK(ca_sign_x509_svid(i, &q, &svid, &e));
	ca_issuer_unref(i);
	return svid;
}

static void check_svid(const struct ca_x509_svid *svid)
{
	struct x509_chain chain = { .n = 0 }, roots = bundle_roots(store.bundle);
	struct spiffeid id = SPIFFEID_INIT;
	struct err e = ERR_INIT;

	CHECK_OK(x509_chain_parse_der(&chain, buf_view(&svid->chain), 10, &e));
	CHECK_OK(x509_verify(&chain, &roots, clock_wall(), &e));
	CHECK_OK(x509_svid_id(chain.v[0], &id, &e));
	spiffeid_deinit(&id);
	x509_chain_deinit(&chain);
	x509_chain_deinit(&roots);
}

static struct buf sign_token(int64_t ttl_ns)
{
	static const char *const aud[] = { "z", "", "a" };
	struct ca_jwt_issuer *i = ca_jwt_issuer(ca);
	struct buf token = BUF_INIT;
	struct err e = ERR_INIT;
	int64_t iat = 0, exp = 0;

	CHECK(i != NULL);
	CHECK_OK(ca_sign_jwt_svid(i,
		&(struct ca_jwt_params){ .spiffe_id = "spiffe://td/w",
			.aud = aud,
			.n_aud = 3,
			.ttl_ns = ttl_ns,
			.jti = true,
			.now = clock_wall() },
		&token, &iat, &exp, &e));
	CHECK_INT(iat, clock_wall().sec);
	ca_jwt_issuer_unref(i);
	return token;
}

static struct jwt check_token(struct bytes token)
{
	struct err e = ERR_INIT;
	struct jwt j;

	CHECK_OK(jwt_parse(token, &j, &e));
	CHECK_OK(jwt_verify(&j, store.bundle, "a", clock_wall(), &e));
	return j;
}

/* ---- tests: starting ---- */

static void test_first_start(void)
{
	struct ca_x509_svid svid;
	struct buf token;
	struct jwt j;
	struct err e = ERR_INIT;

	begin(DAY);
	set_clock(T0);
	start();
	CHECK_INT(store.bundle->n_roots, 1);
	CHECK_INT(store.bundle->n_jwt_keys, 1);
	CHECK_INT(store.bundle->jwt_keys[0].expires_at, T0 + DAY);
	CHECK_INT(store.order[0], 'j');
	CHECK_INT(n_keys(), 2);
	CHECK_OK(ca_self_test(ca, &e));
	svid = sign_svid(&(struct ca_x509_params){ .ttl_ns = 0 });
	check_svid(&svid);
	ca_x509_svid_deinit(&svid);
	token = sign_token(0);
	j = check_token(buf_view(&token));
	CHECK_INT(strlen(j.kid), 32);
	CHECK_INT(j.aud.n, 2);
	CHECK_STR(j.aud.v[0], "z");
	CHECK_INT(j.exp, T0 + 300);
	CHECK(strstr(j.claims_json, "\"jti\":\"") && !strstr(j.claims_json, "iss"));
	jwt_deinit(&j);
	buf_deinit(&token);
	end();
}

static void test_root_profile(void)
{
	AUTO_BUF struct buf want = BUF_INIT, dec = BUF_INIT;
	const struct x509_cert *c;
	bool present;

	begin(DAY);
	set_clock(T0);
	start();
	c = store.bundle->roots[0].cert;
	CHECK(x509_is_ca(c));
	CHECK_INT(x509_key_usage(c, &present), KU_CERT_SIGN | KU_CRL_SIGN);
	CHECK_INT(x509_not_before(c).sec, T0 - 10);
	CHECK_INT(x509_not_after(c).sec, T0 + DAY);
	CHECK_INT(x509_uris(c)->n, 1);
	CHECK_STR(x509_uris(c)->v[0], "spiffe://td");
	CHECK_INT(x509_ski(c).n, 20);
	CHECK_INT(x509_aki(c).n, 0);
	x509_serial_decimal(c, &dec);
	x509_name_der(&(struct x509_name){ .country = "US",
			      .organization = "SPIFFE",
			      .serial_number = buf_cstr(&dec) },
		&want);
	CHECK_BYTES(x509_subject_raw(c), buf_view(&want));
	CHECK_BYTES(x509_issuer_raw(c), buf_view(&want));
	CHECK_INT(strlen(slot(CA_X509, CA_ACTIVE)->id), 40);
	end();
}

static void test_without_jwt(void)
{
	begin(DAY);
	set_clock(T0);
	options.disable_jwt = true;
	start();
	CHECK_INT(store.bundle->n_jwt_keys, 0);
	CHECK(ca_jwt_issuer(ca) == NULL);
	end();
}

static void test_key_types(void)
{
	struct ca_x509_svid svid;
	struct buf token;
	struct jwt j;

	begin(DAY);
	set_clock(T0);
	options.x509_key_type = KEY_RSA_2048;
	options.jwt_key_type = KEY_EC_P384;
	start();
	svid = sign_svid(&(struct ca_x509_params){ .ttl_ns = 0 });
	check_svid(&svid);
	ca_x509_svid_deinit(&svid);
	token = sign_token(0);
	j = check_token(buf_view(&token));
	CHECK_STR(j.alg, "ES384");
	jwt_deinit(&j);
	buf_deinit(&token);
	end();
}

static void test_start_fails(void)
{
	begin(DAY);
	set_clock(T0);
	store.fail_journal = 1;
	open_ca();
	CHECK(run(is_told, 10000));
	CHECK_INT(ready_err.code, ERR_EXHAUSTED);
	CHECK_STR(ready_err.msg, "Unable to write the CA journal: disk full");
	CHECK(store.bundle == NULL);
	stop();
	/* The keys that were made are cleared away by the next start. */
	CHECK_INT(n_keys(), 2);
	start();
	CHECK_INT(n_keys(), 2);
	CHECK_INT(store.bundle->n_roots, 1);
	end();
}

/* ---- tests: the schedule ---- */

static bool two_roots(void)
{
	return store.bundle->n_roots == 2 && store.bundle->n_jwt_keys == 2;
}

static bool both_activated(void)
{
	return activations == 1 && !slot(CA_JWT, CA_PREPARED) && slot(CA_JWT, CA_ACTIVE) &&
	       n_keys() == 2;
}

static void check_schedule(int64_t ttl, int64_t prepare_at, int64_t activate_at)
{
	AUTO(free) char *first = NULL, *second = NULL;
	struct ca_x509_svid old;

	begin(ttl);
	set_clock(T0);
	start();
	first = xstrdup(slot(CA_X509, CA_ACTIVE)->id);
	CHECK(!run(two_roots, 100));
	set_clock(T0 + prepare_at - 1);
	CHECK(!run(two_roots, 1500));
	set_clock(T0 + prepare_at);
	CHECK(run(two_roots, 3000));
	second = xstrdup(slot(CA_X509, CA_PREPARED)->id);
	CHECK_STR(slot(CA_X509, CA_ACTIVE)->id, first);
	old = sign_svid(&(struct ca_x509_params){ .ttl_ns = ttl * NS_PER_SEC });
	CHECK_INT(old.expires_at, T0 + ttl);
	set_clock(T0 + activate_at - 1);
	CHECK(!run(both_activated, 1500));
	set_clock(T0 + activate_at);
	CHECK(run(both_activated, 3000));
	CHECK_STR(slot(CA_X509, CA_ACTIVE)->id, second);
	CHECK_STR(slot(CA_X509, CA_OLD)->id, first);
	check_svid(&old);
	ca_x509_svid_deinit(&old);
	end();
}

static void test_schedule_of_a_day(void)
{
	check_schedule(DAY, 12 * HOUR, 20 * HOUR);
}

static void test_schedule_of_a_year(void)
{
	check_schedule(365 * DAY, 335 * DAY, 358 * DAY);
}

/* Prepared late: both steps at once, in order. */
static void test_clock_jump(void)
{
	begin(DAY);
	set_clock(T0);
	start();
	set_clock(T0 + 23 * HOUR);
	CHECK(run(both_activated, 5000));
	CHECK_INT(store.bundle->n_roots, 2);
	CHECK_INT(slot(CA_X509, CA_ACTIVE)->issued_at, T0 + 23 * HOUR);
	end();
}

static void test_expired_while_running(void)
{
	struct ca_issuer *i;
	struct ca_x509_svid svid;
	struct err e = ERR_INIT;

	begin(DAY);
	set_clock(T0);
	start();
	i = ca_issuer(ca);
	set_clock(T0 + 2 * DAY);
	CHECK_ERR(ca_sign_x509_svid(i,
			  &(struct ca_x509_params){ .spiffe_id = "spiffe://td/w",
				  .spki = pubkey_spki(key_public(workload_key())),
				  .now = clock_wall() },
			  &svid, &e),
		ERR_UNAVAILABLE);
	ca_issuer_unref(i);
	CHECK(run(both_activated, 5000));
	svid = sign_svid(&(struct ca_x509_params){ .ttl_ns = 0 });
	check_svid(&svid);
	ca_x509_svid_deinit(&svid);
	end();
}

static bool one_root_each(void)
{
	return store.bundle->n_roots == 1 && store.bundle->n_jwt_keys == 1;
}

static void test_prune(void)
{
	begin(60);
	set_clock(T0);
	start();
	set_clock(T0 + 55);
	CHECK(run(both_activated, 3000));
	CHECK(two_roots());
	set_clock(T0 + 60 + 300 - 1);
	run(never, 1500);
	CHECK(store.bundle->n_roots == 3); /* that of T0 + 55 expired meanwhile */
	set_clock(T0 + 60 + 300);
	run(never, 1500);
	CHECK_INT(store.bundle->n_roots, 2);
	set_clock(T0 + 10 * DAY);
	CHECK(run(one_root_each, 3000));
	end();
}

/* ---- tests: restarting ---- */

static void test_restart(void)
{
	char *x509_id, *kid;

	begin(DAY);
	set_clock(T0);
	start();
	set_clock(T0 + 12 * HOUR);
	CHECK(run(two_roots, 3000));
	x509_id = xstrdup(slot(CA_X509, CA_ACTIVE)->id);
	kid = xstrdup(slot(CA_JWT, CA_PREPARED)->id);
	stop();
	start();
	CHECK_STR(slot(CA_X509, CA_ACTIVE)->id, x509_id);
	CHECK_STR(slot(CA_JWT, CA_PREPARED)->id, kid);
	CHECK(two_roots());
	CHECK_INT(n_keys(), 4);
	set_clock(T0 + 20 * HOUR);
	CHECK(run(both_activated, 3000));
	CHECK_STR(slot(CA_JWT, CA_ACTIVE)->id, kid);
	stop();
	/* Of old ones only the public half is kept. */
	start();
	CHECK_STR(slot(CA_X509, CA_OLD)->id, x509_id);
	CHECK_INT(n_keys(), 2);
	free(x509_id);
	free(kid);
	end();
}

static void test_restart_after_a_long_pause(void)
{
	begin(DAY);
	set_clock(T0);
	start();
	stop();
	set_clock(T0 + 100 * DAY);
	start();
	CHECK_INT(slot(CA_X509, CA_ACTIVE)->issued_at, T0 + 100 * DAY);
	CHECK(run(one_root_each, 3000));
	CHECK_INT(n_keys(), 2);
	end();
}

/* Killed after the key was made and before the journal knew of it. */
static void test_killed_before_journal(void)
{
	char *id;
	struct err e = ERR_INIT;

	begin(DAY);
	set_clock(T0);
	CHECK_OK(keymgr_generate(keymgr, "x509-CA-A", KEY_EC_P256, NULL, &e));
	CHECK_OK(keymgr_generate(keymgr, "somebody's", KEY_EC_P256, NULL, &e));
	start();
	id = xstrdup(slot(CA_X509, CA_ACTIVE)->id);
	stop();
	CHECK_OK(keymgr_generate(keymgr, "x509-CA-B", KEY_EC_P256, NULL, &e));
	start();
	CHECK_STR(slot(CA_X509, CA_ACTIVE)->id, id);
	CHECK_INT(store.bundle->n_roots, 1);
	CHECK_INT(n_keys(), 3);
	free(id);
	end();
}

/* Killed after the journal and before the bundle. */
static void test_killed_before_bundle(void)
{
	begin(DAY);
	set_clock(T0);
	store.fail_bundle = 1;
	open_ca();
	CHECK(run(is_told, 10000));
	CHECK_INT(ready_err.code, ERR_UNAVAILABLE);
	CHECK(store.has_journal && !store.bundle);
	stop();
	start();
	CHECK(one_root_each());
	end();
}

static void lose(bool replace)
{
	struct ca_x509_svid svid;
	struct buf token;
	struct jwt j;
	struct err e = ERR_INIT;

	begin(DAY);
	set_clock(T0);
	start();
	svid = sign_svid(&(struct ca_x509_params){ .ttl_ns = 0 });
	token = sign_token(0);
	stop();
	keymgr_free(keymgr);
	CHECK_OK(keymgr_memory_new(&keymgr, &e));
	if (replace) {
		CHECK_OK(keymgr_generate(keymgr, "x509-CA-A", KEY_EC_P256, NULL, &e));
		CHECK_OK(keymgr_generate(keymgr, "JWT-Signer-A", KEY_EC_P256, NULL, &e));
	}
	start();
	CHECK(two_roots());
	CHECK_INT(n_keys(), 2);
	check_svid(&svid);
	j = check_token(buf_view(&token));
	jwt_deinit(&j);
	ca_x509_svid_deinit(&svid);
	buf_deinit(&token);
	svid = sign_svid(&(struct ca_x509_params){ .ttl_ns = 0 });
	check_svid(&svid);
	ca_x509_svid_deinit(&svid);
	end();
}

static void test_lost_keys(void)
{
	lose(false);
}

static void test_wrong_keys(void)
{
	lose(true);
}

/* A valid authority that is missing in the bundle is put back, before it signs. */
static void test_lost_bundle(void)
{
	char *id;

	begin(DAY);
	set_clock(T0);
	start();
	id = xstrdup(slot(CA_X509, CA_ACTIVE)->id);
	stop();
	bundle_unref(store.bundle);
	store.bundle = NULL;
	start();
	CHECK_STR(slot(CA_X509, CA_ACTIVE)->id, id);
	CHECK(one_root_each());
	CHECK(ca_in_bundle(ca, CA_X509, slot(CA_X509, CA_ACTIVE)));
	free(id);
	end();
}

static void test_other_trust_domain(void)
{
	begin(DAY);
	set_clock(T0);
	start();
	stop();
	bundle_unref(store.bundle);
	store.bundle = NULL;
	options.trust_domain = "other";
	start();
	CHECK_STR(x509_uris(store.bundle->roots[0].cert)->v[0], "spiffe://other");
	end();
}

static void test_bad_journal(void)
{
	static const struct {
		const char *text;
		int code;
	} cases[] = {
		{ "", ERR_DATA_LOSS },
		{ "{}", ERR_DATA_LOSS },
		{ "{\"version\":2,\"authorities\":[]}", ERR_PRECONDITION },
		{ "{\"version\":1}", ERR_DATA_LOSS },
		{ "{\"version\":1,\"authorities\":[{}]}", ERR_DATA_LOSS },
		{ "{\"version\":1,\"authorities\":[{\"kind\":\"x509\",\"slot\":\"A\",\"status\":"
		  "\"active\","
		  "\"id\":\"a\",\"certificate\":\"AAAA\"}]}",
			ERR_DATA_LOSS },
	};
	struct err e = ERR_INIT;

	begin(DAY);
	set_clock(T0);
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		buf_reset(&store.journal);
		buf_str(&store.journal, cases[i].text);
		store.has_journal = true;
		CHECK_ERR(ca_new(&options, on_ready, NULL, &ca, &e), cases[i].code);
		CHECK_CONTAINS(e.msg, "CA journal");
		CHECK(ca == NULL);
	}
	end();
}

/* ---- tests: troubles while running ---- */

static void test_store_fails_later(void)
{
	begin(DAY);
	set_clock(T0);
	start();
	store.fail_journal = 2;
	store.fail_bundle = 1;
	set_clock(T0 + 12 * HOUR);
	CHECK(run(two_roots, 20000));
	CHECK(store.fail_journal == 0 && store.fail_bundle == 0);
	end();
}

static void test_bundle_changed_by_others(void)
{
	begin(DAY);
	set_clock(T0);
	start();
	store.intrude = true;
	set_clock(T0 + 23 * HOUR);
	CHECK(run(both_activated, 5000));
	CHECK_INT(store.bundle->n_jwt_keys, 3);
	CHECK(bundle_find_jwt_key(store.bundle, "foreign") != NULL);
	end();
}

static void test_freed_under_way(void)
{
	begin(DAY);
	set_clock(T0);
	for (int ms = 0; ms < 20; ms += 5) {
		open_ca();
		run(never, ms);
		stop();
	}
	end();
}

/* ---- tests: signing ---- */

static const char *cn_of(const struct ca_x509_svid *svid)
{
	static char cn[100];
	struct x509_cert *c = NULL;
	struct err e = ERR_INIT;

	CHECK_OK(x509_parse(buf_view(&svid->leaf), &c, &e));
	snprintf(cn, sizeof(cn), "%s", x509_subject_cn(c));
	x509_unref(c);
	return cn;
}

static void test_svid_profile(void)
{
	static const char *const dns[] = { "b.example", "a.example" };
	AUTO(x509_unref) struct x509_cert *c = NULL;
	AUTO_BUF struct buf name = BUF_INIT, dec = BUF_INIT;
	struct ca_x509_svid svid;
	struct err e = ERR_INIT;
	bool present;

	begin(DAY);
	set_clock(T0);
	start();
	svid = sign_svid(&(struct ca_x509_params){ .ttl_ns = 0 });
	CHECK_STR(cn_of(&svid), "");
	CHECK_INT(svid.expires_at, T0 + HOUR);
	CHECK_BYTES(buf_view(&svid.leaf), buf_view(&svid.chain));
	CHECK_OK(x509_parse(buf_view(&svid.leaf), &c, &e));
	CHECK_INT(x509_not_before(c).sec, T0 - 10);
	CHECK_INT(x509_not_after(c).sec, T0 + HOUR);
	CHECK_INT(x509_key_usage(c, &present),
		KU_DIGITAL_SIGNATURE | KU_KEY_ENCIPHERMENT | KU_KEY_AGREEMENT);
	CHECK_BYTES(x509_aki(c), x509_ski(store.bundle->roots[0].cert));
	x509_name_der(&(struct x509_name){ .country = "US", .organization = "SPIRE" }, &name);
	CHECK_BYTES(x509_subject_raw(c), buf_view(&name));
	x509_serial_decimal(c, &dec);
	CHECK_STR(buf_cstr(&dec), svid.serial);
	ca_x509_svid_deinit(&svid);
	/* The first DNS name is the CN, even over one that was asked for. */
	svid = sign_svid(&(struct ca_x509_params){ .dns_names = dns, .n_dns_names = 2 });
	CHECK_STR(cn_of(&svid), "b.example");
	check_svid(&svid);
	ca_x509_svid_deinit(&svid);
	buf_reset(&name);
	x509_name_der(&(struct x509_name){ .organization = "Mine", .common_name = "me" }, &name);
	svid = sign_svid(&(struct ca_x509_params){ .subject_raw = buf_view(&name) });
	CHECK_STR(cn_of(&svid), "me");
	ca_x509_svid_deinit(&svid);
	svid = sign_svid(&(struct ca_x509_params){
		.subject_raw = buf_view(&name), .dns_names = dns, .n_dns_names = 1 });
	CHECK_STR(cn_of(&svid), "b.example");
	ca_x509_svid_deinit(&svid);
	end();
}

static void test_ttls(void)
{
	struct ca_x509_svid svid;
	struct buf token;
	struct jwt j;

	begin(DAY);
	set_clock(T0);
	options.agent_ttl_ns = 7 * NS_PER_SEC;
	options.jwt_issuer = "https://issuer";
	start();
	svid = sign_svid(&(struct ca_x509_params){ .agent = true });
	CHECK_INT(svid.expires_at, T0 + 7);
	ca_x509_svid_deinit(&svid);
	svid = sign_svid(&(struct ca_x509_params){ .ttl_ns = 5 * NS_PER_SEC });
	CHECK_INT(svid.expires_at, T0 + 5);
	ca_x509_svid_deinit(&svid);
	svid = sign_svid(&(struct ca_x509_params){ .ttl_ns = INT64_MAX });
	CHECK_INT(svid.expires_at, T0 + DAY);
	ca_x509_svid_deinit(&svid);
	token = sign_token(INT64_MAX);
	j = check_token(buf_view(&token));
	CHECK_INT(j.exp, T0 + DAY);
	CHECK_CONTAINS(j.claims_json, "\"iss\":\"https://issuer\"");
	jwt_deinit(&j);
	buf_deinit(&token);
	end();
}

static void test_refused(void)
{
	static const char *const empty[] = { "" };
	AUTO_BUF struct buf token = BUF_INIT;
	struct ca_issuer *i;
	struct ca_jwt_issuer *j;
	struct ca_x509_params p = { .spiffe_id = "spiffe://other/w" };
	struct ca_jwt_params q = { .spiffe_id = "spiffe://td/w", .aud = empty, .n_aud = 1 };
	struct ca_x509_svid svid;
	struct err e = ERR_INIT;
	int64_t iat, exp;

	begin(DAY);
	set_clock(T0);
	start();
	i = ca_issuer(ca);
	j = ca_jwt_issuer(ca);
	p.now = q.now = clock_wall();
	p.spki = pubkey_spki(key_public(workload_key()));
	CHECK_ERR(ca_sign_x509_svid(i, &p, &svid, &e), ERR_INVALID);
	CHECK_STR(e.msg, "\"spiffe://other/w\" is not a member of trust domain \"td\"");
	p.spiffe_id = "spiffe://td/a//b";
	CHECK_ERR(ca_sign_x509_svid(i, &p, &svid, &e), ERR_INVALID);
	CHECK_ERR(ca_sign_jwt_svid(j, &q, &token, &iat, &exp, &e), ERR_INVALID);
	CHECK_STR(e.msg, "at least one audience is required");
	q.now = wall_of_sec(T0 + DAY);
	q.aud = (const char *const[]){ "a" };
	CHECK_ERR(ca_sign_jwt_svid(j, &q, &token, &iat, &exp, &e), ERR_UNAVAILABLE);
	CHECK_INT(token.len, 0);
	ca_issuer_unref(i);
	ca_jwt_issuer_unref(j);
	end();
}

/* The last look finds each thing that must not leave. */
static void test_output_check(void)
{
	struct ca_x509_svid svid;
	struct ca_expect x;
	struct x509_cert *c = NULL;
	struct err e = ERR_INIT;
	int refused = 0;

	begin(DAY);
	set_clock(T0);
	start();
	svid = sign_svid(&(struct ca_x509_params){ .ttl_ns = 0 });
	CHECK_OK(x509_parse(buf_view(&svid.leaf), &c, &e));
	x = (struct ca_expect){ .issuer_raw = x509_subject_raw(store.bundle->roots[0].cert),
		.spki = pubkey_spki(key_public(workload_key())),
		.spiffe_id = "spiffe://td/w",
		.not_before = wall_of_sec(T0 - 10),
		.not_after = wall_of_sec(T0 + HOUR) };
	CHECK_OK(ca_check_svid(buf_view(&svid.leaf), &x, &e));
	x.spiffe_id = "spiffe://td/x";
	CHECK_ERR(ca_check_svid(buf_view(&svid.leaf), &x, &e), ERR_INTERNAL);
	x.spiffe_id = "spiffe://td/w";
	x.not_after.sec--;
	CHECK_ERR(ca_check_svid(buf_view(&svid.leaf), &x, &e), ERR_INTERNAL);
	x.not_after.sec++;
	x.spki = pubkey_spki(x509_pubkey(store.bundle->roots[0].cert));
	CHECK_ERR(ca_check_svid(buf_view(&svid.leaf), &x, &e), ERR_INTERNAL);
	x.spki = pubkey_spki(key_public(workload_key()));
	CHECK_ERR(ca_check_svid(x509_der(store.bundle->roots[0].cert), &x, &e), ERR_INTERNAL);
	/* Any byte changed, cut short, or one too many: never a crash, and nearly always refused.
	 */
	for (size_t i = 0; i < svid.leaf.len; i++) {
		svid.leaf.p[i] ^= 0x41;
		refused += ca_check_svid(buf_view(&svid.leaf), &x, &e) != 0;
		svid.leaf.p[i] ^= 0x41;
		CHECK(ca_check_svid(bytes_of(svid.leaf.p, i), &x, &e) != 0);
	}
	CHECK(refused > 250);
	x509_unref(c);
	ca_x509_svid_deinit(&svid);
	end();
}

/* ---- test: rotation in real time ---- */

enum { LIVE = 400, CA_TTL_S = 4, RUN_S = 20 };
static struct ca_x509_svid svids[LIVE];
static struct buf tokens[LIVE];
static int64_t token_exp[LIVE];
static int issued, checked;

/* Everything that was given out and has not expired verifies against the bundle of this moment. */
static bool one_round(void)
{
	int64_t now = clock_wall().sec;
	int at = issued++ % LIVE;

	if (tokens[at].p) {
		ca_x509_svid_deinit(&svids[at]);
		buf_deinit(&tokens[at]);
	}
	svids[at] = sign_svid(&(struct ca_x509_params){ .ttl_ns = 2 * NS_PER_SEC });
	tokens[at] = sign_token(2 * NS_PER_SEC);
	for (int i = 0; i < LIVE; i++) {
		struct jwt j;

		if (!tokens[i].p)
			continue;
		if (svids[i].expires_at > now + 1 && i % 7 == issued % 7) {
			check_svid(&svids[i]);
			checked++;
		}
		if (token_exp[i] == 0 || token_exp[i] > now + 1) {
			j = check_token(buf_view(&tokens[i]));
			token_exp[i] = j.exp;
			jwt_deinit(&j);
		}
	}
	token_exp[at] = 0;
	usleep(10000);
	return false;
}

static void test_rotation_in_real_time(void)
{
	begin(CA_TTL_S);
	start();
	CHECK(!run(one_round, RUN_S * 1000 / 4));
	CHECK(activations >= 2);
	CHECK(checked > 100);
	CHECK(store.bundle->n_roots < 20);
	for (int i = 0; i < LIVE; i++)
		if (tokens[i].p) {
			ca_x509_svid_deinit(&svids[i]);
			buf_deinit(&tokens[i]);
		}
	end();
}

TEST_MAIN(TEST(test_first_start), TEST(test_root_profile), TEST(test_without_jwt),
	TEST(test_key_types), TEST(test_start_fails), TEST(test_schedule_of_a_day),
	TEST(test_schedule_of_a_year), TEST(test_clock_jump), TEST(test_expired_while_running),
	TEST(test_prune), TEST(test_restart), TEST(test_restart_after_a_long_pause),
	TEST(test_killed_before_journal), TEST(test_killed_before_bundle), TEST(test_lost_keys),
	TEST(test_wrong_keys), TEST(test_lost_bundle), TEST(test_other_trust_domain),
	TEST(test_bad_journal), TEST(test_store_fails_later), TEST(test_bundle_changed_by_others),
	TEST(test_freed_under_way), TEST(test_svid_profile), TEST(test_ttls), TEST(test_refused),
	TEST(test_output_check), TEST(test_rotation_in_real_time))

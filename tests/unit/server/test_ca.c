/* The authorities: start, schedule, restart, troubles. */
#include "tests/unit/server/ca.inc"

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

TEST_MAIN(TEST(test_first_start), TEST(test_root_profile), TEST(test_without_jwt),
	TEST(test_key_types), TEST(test_start_fails), TEST(test_schedule_of_a_day),
	TEST(test_schedule_of_a_year), TEST(test_clock_jump), TEST(test_expired_while_running),
	TEST(test_prune), TEST(test_restart), TEST(test_restart_after_a_long_pause),
	TEST(test_killed_before_journal), TEST(test_killed_before_bundle), TEST(test_lost_keys),
	TEST(test_wrong_keys), TEST(test_lost_bundle), TEST(test_other_trust_domain),
	TEST(test_bad_journal), TEST(test_store_fails_later), TEST(test_bundle_changed_by_others),
	TEST(test_freed_under_way))

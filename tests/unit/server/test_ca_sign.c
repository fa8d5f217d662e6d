/* What the authorities sign. */
#include "tests/unit/server/ca.inc"

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

/* Only workloads, and only when asked for. The value is `printf spiffe://td/w | sha256sum`, half.
 */
static void test_unique_id(void)
{
	static const char id[] = "9ef9e914d0dc8bf9b25f386efdbdb65c";
	struct ca_x509_svid svid;

	begin(DAY);
	set_clock(T0);
	options.unique_id = true;
	start();
	svid = sign_svid(&(struct ca_x509_params){ .workload = true });
	CHECK(memmem(svid.leaf.p, svid.leaf.len, id, sizeof(id) - 1) != NULL);
	check_svid(&svid);
	ca_x509_svid_deinit(&svid);
	svid = sign_svid(&(struct ca_x509_params){ .agent = true });
	CHECK(memmem(svid.leaf.p, svid.leaf.len, id, sizeof(id) - 1) == NULL);
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

TEST_MAIN(TEST(test_svid_profile), TEST(test_unique_id), TEST(test_ttls), TEST(test_refused),
	TEST(test_output_check), TEST(test_rotation_in_real_time))

/* The authorities by an operator's word: prepare, activate, taint, revoke; and who must have seen
 * one before it signs. */
#include "tests/unit/server/ca.inc"

struct outcome {
	int calls, code;
	char id[64], msg[1000];
	int64_t expires_at;
};
static struct outcome last;

static void on_done(void *arg, const struct ca_authority *a, const struct err *e)
{
	struct outcome *o = arg;

	o->calls++;
	o->code = e->code;
	snprintf(o->msg, sizeof(o->msg), "%s", e->msg);
	snprintf(o->id, sizeof(o->id), "%s", a ? a->id : "");
	o->expires_at = a ? a->expires_at : 0;
}

static bool is_done(void)
{
	return last.calls > 0;
}

static struct outcome force(enum ca_force what, enum ca_kind k, const char *id, bool at_once)
{
	AUTO(free) char *copy = xstrdup(id); /* it may be the last one's */

	last = (struct outcome){ .calls = 0 };
	ca_force(ca, what, k, copy, at_once, on_done, &last);
	CHECK(run(is_done, 15000));
	CHECK_INT(last.calls, 1);
	return last;
}

static void check_refused(
	enum ca_force what, enum ca_kind k, const char *id, int code, const char *msg)
{
	struct outcome o = force(what, k, id, false);

	CHECK_INT(o.code, code);
	CHECK_STR(o.msg, msg);
}

static void check_done(enum ca_force what, enum ca_kind k, const char *id)
{
	AUTO(free) char *copy = xstrdup(id);
	struct outcome o = force(what, k, copy, false);

	CHECK_INT(o.code, 0);
	CHECK_STR(o.msg, "");
	if (copy[0])
		CHECK_STR(o.id, copy);
}

static char *id_of(enum ca_kind k, enum ca_status status)
{
	return slot(k, status) ? xstrdup(slot(k, status)->id) : xstrdup("");
}

static bool in_bundle(enum ca_kind k, const char *id, bool *tainted)
{
	return ca_bundle_has(ca, k, id, tainted);
}

static void restart(void)
{
	stop();
	start();
}

/* ---- the whole way ---- */

static void check_rotation(enum ca_kind k, bool restarts)
{
	AUTO(free) char *first = NULL, *second = NULL;
	struct ca_state st;
	struct err e = ERR_INIT;
	bool tainted = false;

	begin(DAY);
	set_clock(T0);
	start();
	first = id_of(k, CA_ACTIVE);
	check_done(CA_PREPARE, k, "");
	second = id_of(k, CA_PREPARED);
	CHECK_STR(last.id, second);
	CHECK_INT(last.expires_at, T0 + DAY);
	CHECK(in_bundle(k, second, &tainted));
	if (restarts)
		restart();
	CHECK_OK(ca_state(ca, k, &st, &e));
	CHECK_STR(st.active.id, first);
	CHECK_STR(st.prepared.id, second);
	CHECK(!st.old.id);
	check_done(CA_ACTIVATE, k, second);
	CHECK_INT(activations, k == CA_X509 ? 1 : 0);
	if (restarts)
		restart();
	CHECK_OK(ca_state(ca, k, &st, &e));
	CHECK_STR(st.active.id, second);
	CHECK_STR(st.old.id, first);
	check_done(CA_TAINT, k, first);
	CHECK(in_bundle(k, first, &tainted) && tainted);
	CHECK(in_bundle(k, second, &tainted) && !tainted);
	if (restarts)
		restart();
	CHECK(in_bundle(k, first, &tainted) && tainted);
	check_done(CA_REVOKE, k, first);
	CHECK(!in_bundle(k, first, &tainted));
	if (restarts)
		restart();
	run(never, 100);
	CHECK(!in_bundle(k, first, &tainted));
	CHECK(in_bundle(k, second, &tainted) && !tainted);
	CHECK_OK(ca_state(ca, k, &st, &e));
	CHECK_STR(st.old.id, first);
	CHECK_INT(n_keys(), 2);
	end();
}

static void test_rotation(void)
{
	check_rotation(CA_X509, false);
	check_rotation(CA_JWT, false);
}

static void test_rotation_with_restarts(void)
{
	check_rotation(CA_X509, true);
	check_rotation(CA_JWT, true);
}

static void test_signs_with_the_new_one(void)
{
	AUTO(free) char *second = NULL;
	struct ca_x509_svid svid;
	struct buf token;
	struct jwt j;

	begin(DAY);
	set_clock(T0);
	start();
	check_done(CA_PREPARE, CA_X509, "");
	check_done(CA_ACTIVATE, CA_X509, last.id);
	check_done(CA_PREPARE, CA_JWT, "");
	second = xstrdup(last.id);
	check_done(CA_ACTIVATE, CA_JWT, second);
	token = sign_token(0);
	j = check_token(buf_view(&token));
	CHECK_STR(j.kid, second);
	jwt_deinit(&j);
	buf_deinit(&token);
	CHECK(ca_issuer_is_of(ca->x509_issuer, slot(CA_X509, CA_ACTIVE)));
	svid = sign_svid(&(struct ca_x509_params){ .ttl_ns = 0 });
	check_svid(&svid);
	ca_x509_svid_deinit(&svid);
	end();
}

/* ---- prepared twice ---- */

static void check_prepared_twice(enum ca_kind k)
{
	AUTO(free) char *one = NULL, *two = NULL;
	bool tainted;

	begin(DAY);
	set_clock(T0);
	start();
	check_done(CA_PREPARE, k, "");
	one = xstrdup(last.id);
	check_done(CA_PREPARE, k, "");
	two = xstrdup(last.id);
	CHECK(strcmp(one, two) != 0);
	CHECK(!in_bundle(k, one, &tainted));
	CHECK(in_bundle(k, two, &tainted));
	run(never, 50);
	CHECK_INT(ca->line[k].leaving.n, 0);
	check_refused(CA_ACTIVATE, k, one, ERR_INVALID, "unexpected authority ID");
	check_done(CA_ACTIVATE, k, two);
	CHECK_INT(n_keys(), 2);
	end();
}

static void test_prepared_twice(void)
{
	check_prepared_twice(CA_X509);
	check_prepared_twice(CA_JWT);
}

/* The replaced root leaves although the server died before the bundle was written. */
static void test_leaving_survives(void)
{
	AUTO(free) char *one = NULL;
	bool tainted;

	begin(DAY);
	set_clock(T0);
	start();
	check_done(CA_PREPARE, CA_X509, "");
	one = xstrdup(last.id);
	store.fail_bundle = 1;
	check_refused(CA_PREPARE, CA_X509, "", ERR_INTERNAL,
		"failed to prepare X.509 authority: no disk");
	CHECK(in_bundle(CA_X509, one, &tainted));
	CHECK_INT(ca->line[CA_X509].leaving.n, 1);
	restart();
	run(never, 100);
	CHECK(!in_bundle(CA_X509, one, &tainted));
	CHECK_INT(ca->line[CA_X509].leaving.n, 0);
	CHECK(slot(CA_X509, CA_PREPARED) != NULL);
	end();
}

/* ---- refusals ---- */

static void check_refusals(enum ca_kind k)
{
	const bool x = k == CA_X509;
	AUTO(free) char *first = NULL, *second = NULL;

	begin(DAY);
	set_clock(T0);
	start();
	first = id_of(k, CA_ACTIVE);
	check_refused(CA_ACTIVATE, k, "", ERR_INVALID, "no authority ID provided");
	check_refused(CA_TAINT, k, "", ERR_INVALID, "no authority ID provided");
	check_refused(
		CA_REVOKE, k, "", ERR_INVALID, "invalid authority ID: no authority ID provided");
	check_refused(CA_ACTIVATE, k, first, ERR_INVALID, "unexpected authority ID");
	check_refused(CA_TAINT, k, first, ERR_INVALID, "unable to taint current local authority");
	check_refused(CA_TAINT, k, "x", ERR_INVALID, "unexpected authority ID");
	check_refused(CA_REVOKE, k, first, ERR_INVALID,
		"invalid authority ID: unable to use current authority");
	check_refused(CA_REVOKE, k, "x", ERR_INVALID,
		x ? "invalid authority ID: only Old local authority can be revoked"
		  : "invalid authority ID: no JWT authority found with provided authority ID");
	check_done(CA_PREPARE, k, "");
	second = xstrdup(last.id);
	check_refused(CA_TAINT, k, second, ERR_INVALID,
		"only Old local authorities can be tainted: unsupported local authority status: "
		"PREPARED");
	check_refused(CA_REVOKE, k, second, ERR_INVALID,
		x ? "invalid authority ID: only Old local authority can be revoked"
		  : "invalid authority ID: unable to use a prepared key");
	check_done(CA_ACTIVATE, k, second);
	check_refused(CA_ACTIVATE, k, first, ERR_INTERNAL,
		"only Prepared authorities can be activated: unsupported local authority status: "
		"OLD");
	check_refused(CA_REVOKE, k, first, ERR_INTERNAL,
		x ? "failed to revoke X.509 authority: it is not possible to revoke an untainted "
		    "root CA"
		  : "failed to revoke JWT authority: it is not possible to revoke an untainted "
		    "key");
	check_done(CA_TAINT, k, first);
	check_refused(CA_TAINT, k, first, ERR_INTERNAL,
		x ? "failed to taint X.509 authority: root CA is already tainted"
		  : "failed to taint JWT authority: key is already tainted");
	check_done(CA_REVOKE, k, first);
	check_refused(CA_REVOKE, k, first, ERR_INTERNAL,
		x ? "failed to revoke X.509 authority: no root CA found with provided subject key "
		    "ID"
		  : "failed to revoke JWT authority: no JWT Key found with provided key ID");
	end();
}

static void test_refusals(void)
{
	check_refusals(CA_X509);
	check_refusals(CA_JWT);
}

static void test_before_ready(void)
{
	struct ca_state st;
	struct err e = ERR_INIT;

	begin(DAY);
	set_clock(T0);
	open_ca();
	CHECK_ERR(ca_state(ca, CA_X509, &st, &e), ERR_UNAVAILABLE);
	CHECK_STR(e.msg, "server is initializing");
	check_refused(CA_PREPARE, CA_X509, "", ERR_UNAVAILABLE, "server is initializing");
	end();
}

/* A key of another server, tainted there. */
static void test_revoke_foreign_jwt_key(void)
{
	struct bundle *b;
	bool tainted;

	begin(DAY);
	set_clock(T0);
	start();
	add_foreign_key(&store);
	b = bundle_dup(store.bundle);
	b->jwt_keys[b->n_jwt_keys - 1].tainted = true;
	replace_bundle(&store, b);
	bundle_unref(b);
	ca_bundle_changed(ca, store.bundle);
	check_done(CA_REVOKE, CA_JWT, "foreign");
	CHECK(!in_bundle(CA_JWT, "foreign", &tainted));
	end();
}

/* ---- troubles ---- */

static void test_disk_full(void)
{
	AUTO(free) char *first = NULL;
	bool tainted = false;

	begin(DAY);
	set_clock(T0);
	start();
	first = id_of(CA_X509, CA_ACTIVE);
	check_done(CA_PREPARE, CA_X509, "");
	check_done(CA_ACTIVATE, CA_X509, last.id);
	store.fail_journal = 1;
	check_refused(CA_TAINT, CA_X509, first, ERR_INTERNAL,
		"failed to taint X.509 authority: disk full");
	/* It is not forgotten. */
	run(never, 2500);
	CHECK(in_bundle(CA_X509, first, &tainted) && tainted);
	end();
}

static void test_somebody_else_changes_the_bundle(void)
{
	AUTO(free) char *first = NULL;
	bool tainted = false;

	begin(DAY);
	set_clock(T0);
	start();
	first = id_of(CA_X509, CA_ACTIVE);
	check_done(CA_PREPARE, CA_X509, "");
	check_done(CA_ACTIVATE, CA_X509, last.id);
	store.intrude = true;
	check_done(CA_TAINT, CA_X509, first);
	CHECK(in_bundle(CA_X509, first, &tainted) && tainted);
	CHECK(in_bundle(CA_JWT, "foreign", &tainted));
	end();
}

static void test_stop_while_waiting(void)
{
	begin(DAY);
	set_clock(T0);
	start();
	last = (struct outcome){ .calls = 0 };
	ca_force(ca, CA_PREPARE, CA_X509, "", false, on_done, &last);
	stop();
	CHECK_INT(last.calls, 1);
	CHECK_INT(last.code, ERR_CANCELLED);
	end();
}

static void test_too_many(void)
{
	struct outcome o[17] = { { 0 } };

	begin(DAY);
	set_clock(T0);
	start();
	for (size_t i = 0; i < ARRAY_LEN(o); i++)
		ca_force(ca, CA_PREPARE, CA_JWT, "", false, on_done, &o[i]);
	CHECK_INT(o[15].calls, 0);
	CHECK_INT(o[16].code, ERR_EXHAUSTED);
	run(never, 500);
	CHECK_INT(o[15].calls, 1);
	CHECK_INT(o[15].code, 0);
	CHECK_STR(o[15].id, slot(CA_JWT, CA_PREPARED)->id);
	run(never, 50);
	CHECK_INT(store.bundle->n_jwt_keys, 2);
	end();
}

/* ---- who must have seen it ---- */

static size_t n_missing;
static uint64_t asked_for;

static size_t missing(void *arg, uint64_t sequence, struct strings *ret)
{
	(void)arg;
	asked_for = sequence;
	if (n_missing)
		strings_add(ret, "spiffe://td/spire/agent/slow");
	return n_missing;
}

static void start_watched(int64_t ttl)
{
	begin(ttl);
	set_clock(T0);
	start();
	ca_on_missing(ca, missing, NULL);
	n_missing = 2;
}

static void test_activation_waits(void)
{
	AUTO(free) char *second = NULL;

	start_watched(DAY);
	check_done(CA_PREPARE, CA_X509, "");
	second = xstrdup(last.id);
	CHECK_INT(ca_sequence_of(ca, second), store.bundle->sequence);
	last = (struct outcome){ .calls = 0 };
	ca_force(ca, CA_ACTIVATE, CA_X509, second, false, on_done, &last);
	CHECK(!run(is_done, 700));
	CHECK_INT(asked_for, store.bundle->sequence);
	CHECK(slot(CA_X509, CA_PREPARED) != NULL);
	n_missing = 0;
	ca_seen(ca);
	CHECK(run(is_done, 200));
	CHECK_INT(last.code, 0);
	CHECK_STR(slot(CA_X509, CA_ACTIVE)->id, second);
	end();
}

static void test_activation_gives_up(void)
{
	start_watched(DAY);
	check_done(CA_PREPARE, CA_JWT, "");
	check_refused(CA_ACTIVATE, CA_JWT, slot(CA_JWT, CA_PREPARED)->id, ERR_PRECONDITION,
		"2 agents have not seen this authority yet: spiffe://td/spire/agent/slow and 1 "
		"more; try again, or activate it with -force");
	CHECK_INT(force(CA_ACTIVATE, CA_JWT, slot(CA_JWT, CA_PREPARED)->id, true).code, 0);
	end();
}

static bool activated(void)
{
	return slot(CA_X509, CA_OLD) != NULL;
}

/* By schedule: until seen, or for half of what is left of the active one, 30 s at most. */
static void test_schedule_waits(void)
{
	start_watched(DAY);
	set_clock(T0 + 21 * HOUR);
	CHECK(!run(activated, 1500));
	n_missing = 0;
	ca_seen(ca);
	CHECK(run(activated, 1000));
	end();
}

static void test_schedule_has_a_bound(void)
{
	start_watched(60);
	set_clock(T0 + 30);
	run(never, 300);
	set_clock(T0 + 56);
	CHECK(!run(activated, 1200));
	CHECK(run(activated, 2500));
	end();
}

TEST_MAIN(TEST(test_rotation), TEST(test_rotation_with_restarts), TEST(test_signs_with_the_new_one),
	TEST(test_prepared_twice), TEST(test_leaving_survives), TEST(test_refusals),
	TEST(test_before_ready), TEST(test_revoke_foreign_jwt_key), TEST(test_disk_full),
	TEST(test_somebody_else_changes_the_bundle), TEST(test_stop_while_waiting),
	TEST(test_too_many), TEST(test_activation_waits), TEST(test_activation_gives_up),
	TEST(test_schedule_waits), TEST(test_schedule_has_a_bound))

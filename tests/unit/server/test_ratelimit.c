#include "server/ratelimit.h"

#include "tests/test.h"

static struct loop *loop;
static struct ratelimit *limit;
static struct err e;
static char trace[64];
static char letters[] = "a\0b\0c\0d";

static struct peer peer_at(const char *address)
{
	struct peer p = { .is_unix = false };

	snprintf(p.address, sizeof(p.address), "%s", address);
	return p;
}

static void note(void *arg)
{
	strncat(trace, arg, sizeof(trace) - strlen(trace) - 1);
}

static void start(void)
{
	loop = loop_new();
	limit = ratelimit_new(loop, true, true);
}

static void finish(void)
{
	ratelimit_free(limit);
	loop_free(loop);
}

static int take(const struct peer *p, enum ratelimit_kind k, size_t n, int64_t deadline, char *name,
	struct ratelimit_wait **ret)
{
	return ratelimit_take(limit, k, p, n, deadline, note, name, ret, &e);
}

static void test_burst(void)
{
	struct peer p = peer_at("10.0.0.1");
	struct peer other = peer_at("10.0.0.2");
	struct ratelimit_wait *w;

	start();
	CHECK_OK(take(&p, RATELIMIT_X509, 500, INT64_MAX, letters, &w));
	CHECK(!w);
	/* Renewal draws on the same bucket, JWT signing on another, as does another address. */
	CHECK_OK(take(&p, RATELIMIT_JWT, 1, INT64_MAX, letters, &w));
	CHECK(!w);
	CHECK_OK(take(&other, RATELIMIT_X509, 500, INT64_MAX, letters, &w));
	CHECK(!w);
	CHECK_OK(take(&p, RATELIMIT_RENEW, 100, INT64_MAX, letters, &w));
	CHECK(w);
	ratelimit_cancel(w);
	CHECK_ERR(take(&p, RATELIMIT_X509, 501, INT64_MAX, letters, &w), ERR_EXHAUSTED);
	CHECK_STR(e.msg, "rejecting request due to certificate signing rate limiting: rate (501) "
			 "exceeds burst size (500)");
	CHECK_INT(ratelimit_addresses(limit), 3);
	loop_run(loop);
	CHECK_STR(trace, "");
	finish();
}

static void test_wait_in_order(void)
{
	struct peer p = peer_at("10.0.0.1");
	struct ratelimit_wait *w;
	int64_t began = clock_mono().ns;
	int64_t took;

	start();
	CHECK_OK(take(&p, RATELIMIT_POST_STATUS, 10, INT64_MAX, letters, &w));
	CHECK(!w);
	for (int i = 0; i < 3; i++) {
		CHECK_OK(take(&p, RATELIMIT_POST_STATUS, 1, INT64_MAX, letters + 2 * i, &w));
		CHECK(w);
	}
	loop_run(loop);
	took = clock_mono().ns - began;
	CHECK_STR(trace, "abc");
	CHECK(took >= 290 * NS_PER_MS);
	finish();
}

/* Who would wait beyond its deadline is told at once, and takes nothing. */
static void test_deadline(void)
{
	struct peer p = peer_at("10.0.0.1");
	struct ratelimit_wait *w;

	start();
	CHECK_OK(take(&p, RATELIMIT_ATTEST, 1, INT64_MAX, letters, &w));
	CHECK(!w);
	for (int i = 0; i < 10; i++) {
		CHECK_ERR(
			take(&p, RATELIMIT_ATTEST, 1, 500 * NS_PER_MS, letters, &w), ERR_EXHAUSTED);
		CHECK_CONTAINS(e.msg, "attest agent rate limiting: rate: Wait(n=1) would exceed");
	}
	CHECK_OK(take(&p, RATELIMIT_ATTEST, 1, 2 * NS_PER_SEC, letters, &w));
	CHECK(w);
	loop_run(loop);
	CHECK_STR(trace, "a");
	finish();
}

static void test_cancel_gives_back(void)
{
	struct peer p = peer_at("10.0.0.1");
	struct ratelimit_wait *w;

	start();
	CHECK_OK(take(&p, RATELIMIT_ATTEST, 1, INT64_MAX, letters, &w));
	for (int i = 0; i < 1000; i++) {
		CHECK_OK(take(&p, RATELIMIT_ATTEST, 1, 2 * NS_PER_SEC, letters, &w));
		CHECK(w);
		ratelimit_cancel(w);
	}
	finish();
}

static void test_wait_is_bounded(void)
{
	struct peer p = peer_at("10.0.0.1");
	struct ratelimit_wait *w;
	int n = 0;

	start();
	while (take(&p, RATELIMIT_ATTEST, 1, INT64_MAX, letters, &w) == 0)
		n++;
	CHECK_INT(n, RATELIMIT_WAIT_MAX_S + 1);
	/* Those who wait are not called any more. */
	finish();
	CHECK_STR(trace, "");
}

static void test_unix_and_off(void)
{
	struct peer p = peer_at("10.0.0.1");
	struct peer local = { .is_unix = true };
	struct ratelimit_wait *w;

	start();
	for (int i = 0; i < 100; i++) {
		CHECK_OK(take(&local, RATELIMIT_ATTEST, 5000, 0, letters, &w));
		CHECK(!w);
	}
	ratelimit_free(limit);
	limit = ratelimit_new(loop, false, false);
	for (int i = 0; i < 100; i++) {
		CHECK_OK(take(&p, RATELIMIT_ATTEST, 1, 0, letters, &w));
		CHECK_OK(take(&p, RATELIMIT_X509, 5000, 0, letters, &w));
		CHECK_OK(take(&p, RATELIMIT_JWT, 500, 0, letters, &w));
		CHECK(!w);
	}
	CHECK_INT(ratelimit_addresses(limit), 0);
	CHECK_OK(take(&p, RATELIMIT_PUSH_KEY, 500, 0, letters, &w));
	CHECK_ERR(take(&p, RATELIMIT_PUSH_KEY, 500, 0, letters, &w), ERR_EXHAUSTED);
	finish();
}

/* However many addresses come, so many are tracked; the others share one bucket. */
static void test_addresses_bounded(void)
{
	struct ratelimit_wait *w;

	start();
	for (int i = 0; i < RATELIMIT_ADDRESSES_MAX; i++) {
		char address[32];
		struct peer p;

		snprintf(address, sizeof(address), "2001:db8::%x:%x", i >> 16, i & 0xffff);
		p = peer_at(address);
		CHECK_OK(take(&p, RATELIMIT_ATTEST, 1, 0, letters, &w));
	}
	for (int i = 0; i < 10; i++) {
		char address[32];
		struct peer p;

		snprintf(address, sizeof(address), "10.0.0.%d", i);
		p = peer_at(address);
		CHECK_ERR(
			take(&p, RATELIMIT_ATTEST, 1, 0, letters, &w), i == 0 ? 0 : ERR_EXHAUSTED);
	}
	CHECK_INT(ratelimit_addresses(limit), RATELIMIT_ADDRESSES_MAX);
	finish();
}

TEST_MAIN(TEST(test_burst), TEST(test_wait_in_order), TEST(test_deadline),
	TEST(test_cancel_gives_back), TEST(test_wait_is_bounded), TEST(test_unix_and_off),
	TEST(test_addresses_bounded))

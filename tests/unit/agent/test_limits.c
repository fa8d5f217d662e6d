#include "agent/limits.h"

#include "tests/test.h"

static const int rates[LIMIT_KINDS] = { [LIMIT_FETCH_X509_SVID] = 2, [LIMIT_FETCH_JWT_SVID] = 10 };

static struct mono at(double s)
{
	return (struct mono){ (int64_t)(s * 1e9) };
}

static bool take(struct limits *l, enum limit_kind k, const char *set, double s)
{
	return limits_take(l, k, bytes_str(set), at(s));
}

static void test_each_set_for_itself(void)
{
	struct limits *l = limits_new(rates);

	CHECK(take(l, LIMIT_FETCH_X509_SVID, "a", 100));
	CHECK(take(l, LIMIT_FETCH_X509_SVID, "a", 100));
	CHECK(!take(l, LIMIT_FETCH_X509_SVID, "a", 100));
	CHECK(take(l, LIMIT_FETCH_X509_SVID, "b", 100));
	CHECK(take(l, LIMIT_FETCH_JWT_SVID, "a", 100));
	CHECK(!take(l, LIMIT_FETCH_X509_SVID, "a", 100.4));
	CHECK(take(l, LIMIT_FETCH_X509_SVID, "a", 100.6));
	CHECK(!take(l, LIMIT_FETCH_X509_SVID, "a", 100.6));
	/* No more than a second's worth is saved up. */
	CHECK(take(l, LIMIT_FETCH_X509_SVID, "a", 130));
	CHECK(take(l, LIMIT_FETCH_X509_SVID, "a", 130));
	CHECK(!take(l, LIMIT_FETCH_X509_SVID, "a", 130));
	/* Callers without selectors are one set. */
	CHECK(take(l, LIMIT_FETCH_X509_SVID, "", 130));
	CHECK(take(l, LIMIT_FETCH_X509_SVID, "", 130));
	CHECK(!take(l, LIMIT_FETCH_X509_SVID, "", 130));
	limits_free(l);
}

static void test_off(void)
{
	struct limits *l = limits_new(rates);

	for (int i = 0; i < 1000; i++) {
		CHECK(take(l, LIMIT_FETCH_X509_BUNDLES, "a", 1));
		CHECK(take(l, LIMIT_KINDS, "a", 1));
	}
	limits_free(l);
	limits_free(NULL);
}

static void test_bounded(void)
{
	struct limits *l = limits_new(rates);

	for (int i = 0; i < LIMITS_SETS_MAX; i++) {
		AUTO(free) char *set = xasprintf("%d", i);

		CHECK(take(l, LIMIT_FETCH_X509_SVID, set, 1));
	}
	/* Now all newcomers share. */
	CHECK(take(l, LIMIT_FETCH_X509_SVID, "x", 1));
	CHECK(take(l, LIMIT_FETCH_X509_SVID, "y", 1));
	CHECK(!take(l, LIMIT_FETCH_X509_SVID, "z", 1));
	/* A set that is used stays known over the generations, others make room. */
	CHECK(take(l, LIMIT_FETCH_X509_SVID, "7", 61.5));
	CHECK(take(l, LIMIT_FETCH_X509_SVID, "x", 61.5));
	CHECK(take(l, LIMIT_FETCH_X509_SVID, "x", 61.5));
	CHECK(!take(l, LIMIT_FETCH_X509_SVID, "x", 61.5));
	CHECK(take(l, LIMIT_FETCH_X509_SVID, "y", 122.5));
	CHECK(take(l, LIMIT_FETCH_X509_SVID, "7", 122.5));
	limits_free(l);
}

static void test_names(void)
{
	CHECK_INT(limits_kind("/SpiffeWorkloadAPI/FetchX509SVID"), LIMIT_FETCH_X509_SVID);
	CHECK_INT(limits_kind("/SpiffeWorkloadAPI/FetchJWTBundles"), LIMIT_FETCH_JWT_BUNDLES);
	CHECK_INT(limits_kind("/SpiffeWorkloadAPI/ValidateJWTSVID"), LIMIT_KINDS);
}

TEST_MAIN(TEST(test_each_set_for_itself), TEST(test_off), TEST(test_bounded), TEST(test_names))

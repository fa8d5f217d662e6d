#include "lib/text.h"

#include "lib/clock.h"
#include "tests/test.h"

static void test_durations(void)
{
	static const struct {
		const char *text;
		int64_t ns;
		const char *back;
	} good[] = {
		{ "0", 0, "0s" },
		{ "5s", 5 * NS_PER_SEC, "5s" },
		{ "1h30m", 5400 * NS_PER_SEC, "1h30m0s" },
		{ "-1.5s", -1500 * NS_PER_MS, "-1.5s" },
		{ "+300ms", 300 * NS_PER_MS, "300ms" },
		{ "1.5us", 1500, "1.5\xc2\xb5s" },
		{ "1\xc2\xb5s", 1000, "1\xc2\xb5s" },
		{ "7ns", 7, "7ns" },
		{ "720h", 720 * 3600 * NS_PER_SEC, "720h0m0s" },
		{ ".5h", 1800 * NS_PER_SEC, "30m0s" },
		{ "1h0.5s", 3600 * NS_PER_SEC + 500 * NS_PER_MS, "1h0m0.5s" },
		{ "0.100000000000000000000h", 360 * NS_PER_SEC, "6m0s" },
	};
	struct err e;

	for (size_t i = 0; i < ARRAY_LEN(good); i++) {
		AUTO(free) char *back = NULL;
		int64_t ns = 77;

		CHECK_OK(duration_parse(good[i].text, &ns, &e));
		CHECK_INT(ns, good[i].ns);
		back = duration_format(ns);
		CHECK_STR(back, good[i].back);
	}
}

static void test_bad_durations(void)
{
	static const struct {
		const char *text, *msg;
	} bad[] = {
		{ "", "invalid duration \"\"" },
		{ "-", "invalid duration \"-\"" },
		{ "10", "missing unit in duration \"10\"" },
		{ "1x", "unknown unit \"x\" in duration \"1x\"" },
		{ "h", "invalid duration \"h\"" },
		{ ".s", "invalid duration \".s\"" },
		{ "1h-1m", "unknown unit \"h-\" in duration \"1h-1m\"" },
		{ "9999999999999999999h", "invalid duration" },
		{ "9223372036854775807h", "invalid duration" },
		{ "2562047h2562047h", "invalid duration" },
	};
	struct err e;

	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		int64_t ns = 77;

		CHECK_ERR(duration_parse(bad[i].text, &ns, &e), ERR_INVALID);
		CHECK_CONTAINS(e.msg, bad[i].msg);
		CHECK_INT(ns, 77);
	}
}

static void test_nearest(void)
{
	static const char *const names[] = { "spiffeID", "parentID", "selector", "ttl", "dns" };

	CHECK_STR(text_nearest("spifeID", names, 5), "spiffeID");
	CHECK_STR(text_nearest("spiffeid", names, 5), "spiffeID");
	CHECK_STR(text_nearest("slector", names, 5), "selector");
	CHECK_STR(text_nearest("tlt", names, 5), "ttl");
	CHECK(text_nearest("zzzzzz", names, 5) == NULL);
	CHECK(text_nearest("", names, 0) == NULL);
	CHECK(text_nearest(
		      "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
		      names, 5) == NULL);
}

static void test_quote(void)
{
	AUTO(free) char *a = text_quote("a\"b\\c\n\t\r\x01");

	CHECK_STR(a, "\"a\\\"b\\\\c\\n\\t\\r\\x01\"");
	CHECK_STR(text_plural(1, "entry", "entries"), "entry");
	CHECK_STR(text_plural(0, "entry", "entries"), "entries");
}

TEST_MAIN(TEST(test_durations), TEST(test_bad_durations), TEST(test_nearest), TEST(test_quote))

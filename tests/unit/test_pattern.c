/* Regular expressions in Go's syntax. */
#include "tests/test.h"

#include "lib/pattern.h"

static bool match(const char *pattern, const char *text)
{
	struct pattern *p;
	struct err e;
	bool yes;

	CHECK_OK(pattern_new(pattern, &p, &e));
	yes = pattern_matches(p, text);
	pattern_free(p);
	return yes;
}

static void test_matches(void)
{
	CHECK(match("p[0-9]\\.example\\.com", "p1.example.com"));
	CHECK(match("p[0-9]\\.example\\.com", "xp1.example.com.org")); /* not anchored */
	CHECK(!match("p[0-9]\\.example\\.com", "p1xexample.com"));
	CHECK(match("^p\\d+\\.(example|test)\\.com$", "p12.test.com"));
	CHECK(!match("^p\\d+\\.(example|test)\\.com$", "p12.test.com.org"));
	CHECK(match("\\A[\\w.-]+\\z", "a_b.c-d"));
	CHECK(!match("\\A[\\w.-]+\\z", "a/b"));
	CHECK(match("^[^.]+?\\.org$", "abc.org"));
	CHECK(!match("^[^.]+\\.org$", "a.b.org"));
	CHECK(match("(?i)^ABC$", "aBc"));
	CHECK(!match("^ABC$", "aBc"));
	CHECK(match("^(?:a|b){2,3}$", "aba"));
	CHECK(!match("^(?:a|b){2,3}$", "abab"));
	CHECK(match("^(?P<x>a)(?<y>b)$", "ab"));
	CHECK(match("^\\D\\W?$", "a"));
	CHECK(!match("^\\D$", "1"));
	CHECK(match("^[[:alpha:]]{2}$", "ab"));
	CHECK(match("", "anything"));
	CHECK(match("^a{2}$", "aa"));
	CHECK(match("^a{2,}$", "aaaa"));
	CHECK(match("^\\-\\_$", "-_"));
	CHECK(match("^.{3}$", "abc"));
}

static void test_sets(void)
{
	CHECK(match("^[]a]$", "]"));
	CHECK(match("^[\\^]$", "^"));
	CHECK(match("^[\\^-]$", "-"));
	CHECK(match("^[\\^-]$", "^"));
	CHECK(!match("^[\\^-]$", "a"));
	CHECK(match("^[\\[.:=]$", "["));
	CHECK(match("^[a\\]\\\\]$", "\\"));
	CHECK(match("^[a-]$", "-"));
	CHECK(!match("^[a-c]$", "-"));
	CHECK(match("^[^\\d]$", "x"));
	CHECK(!match("^[^\\d]$", "5"));
	/* A backslash in a bracket escapes, other than in POSIX. */
	CHECK(!match("^[\\.]$", "\\"));
}

static void test_refused(void)
{
	static const char *const bad[] = { "[", "(", ")", "a)", "*", "a**", "a|*", "\\", "\\b",
		"\\pL", "\\1", "[\\b]", "[b-a]", "(?s)a", "(?P<1>a)", "a{2", "a{3,2}", "{2}",
		"a{256}", "a\xc3\xa4", "[:alpha", "[[:nope:]]", "[^\\d\\D]", "(?i)*", "x(?i)y",
		"[]" };

	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		struct pattern *p;
		struct err e;

		if (pattern_new(bad[i], &p, &e) != ERR_INVALID)
			TEST_FAIL("%s is taken", bad[i]);
	}
}

TEST_MAIN(TEST(test_matches), TEST(test_sets), TEST(test_refused))

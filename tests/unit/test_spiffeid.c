#include "lib/spiffeid.h"

#include "tests/test.h"

static void test_good(void)
{
	struct spiffeid id = SPIFFEID_INIT;
	struct err e = ERR_INIT;

	CHECK_OK(spiffeid_parse_str(&id, "spiffe://ex-ample_1.org/a/B/..c/...", &e));
	CHECK_BYTES(spiffeid_td(&id), bytes_str("ex-ample_1.org"));
	CHECK_STR(spiffeid_path(&id), "/a/B/..c/...");
	CHECK(spiffeid_member_of(&id, "ex-ample_1.org"));
	CHECK(!spiffeid_member_of(&id, "ex-ample_1"));
	spiffeid_deinit(&id);
	CHECK_OK(spiffeid_parse_str(&id, "spiffe://td", &e));
	CHECK_STR(spiffeid_path(&id), "");
	spiffeid_deinit(&id);
	spiffeid_deinit(&id);
}

static void test_bad(void)
{
	static const struct {
		const char *text, *msg;
	} cases[] = {
		{ "", "cannot be empty" },
		{ "td/a", "scheme is missing or invalid" },
		{ "SPIFFE://td/a", "scheme is missing or invalid" },
		{ "spiffe:/td", "scheme is missing or invalid" },
		{ "spiffe://", "trust domain is missing" },
		{ "spiffe:///a", "trust domain is missing" },
		{ "spiffe://Td/a", "trust domain characters are limited" },
		{ "spiffe://td:80/a", "trust domain characters are limited" },
		{ "spiffe://u@td/a", "trust domain characters are limited" },
		{ "spiffe://td?x", "trust domain characters are limited" },
		{ "spiffe://td/", "path cannot have a trailing slash" },
		{ "spiffe://td/a/", "path cannot have a trailing slash" },
		{ "spiffe://td//a", "path cannot contain empty segments" },
		{ "spiffe://td/a//b", "path cannot contain empty segments" },
		{ "spiffe://td/.", "path cannot contain dot segments" },
		{ "spiffe://td/../a", "path cannot contain dot segments" },
		{ "spiffe://td/a/..", "path cannot contain dot segments" },
		{ "spiffe://td/a%20b", "path segment characters are limited" },
		{ "spiffe://td/a?b", "path segment characters are limited" },
		{ "spiffe://td/a#b", "path segment characters are limited" },
		{ "spiffe://td/\xc3\xa9", "path segment characters are limited" },
	};
	struct spiffeid id = SPIFFEID_INIT;
	struct err e = ERR_INIT;

	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		CHECK_ERR(spiffeid_parse_str(&id, cases[i].text, &e), ERR_INVALID);
		CHECK_CONTAINS(e.msg, cases[i].msg);
		CHECK(id.text == NULL);
	}
	CHECK_ERR(spiffeid_parse(&id, bytes_of("spiffe://td/a\0b", 15), &e), ERR_INVALID);
	CHECK_ERR(spiffeid_parse(&id, bytes_of("spiffe://t\0d", 12), &e), ERR_INVALID);
}

static void test_length(void)
{
	AUTO_BUF struct buf b = BUF_INIT;
	struct spiffeid id = SPIFFEID_INIT;
	struct err e = ERR_INIT;

	buf_str(&b, "spiffe://td/");
	while (b.len < SPIFFEID_MAX)
		buf_byte(&b, 'a');
	CHECK_OK(spiffeid_parse(&id, buf_view(&b), &e));
	spiffeid_deinit(&id);
	buf_byte(&b, 'a');
	CHECK_ERR(spiffeid_parse(&id, buf_view(&b), &e), ERR_INVALID);
	buf_reset(&b);
	for (int i = 0; i < TRUST_DOMAIN_MAX; i++)
		buf_byte(&b, 'a');
	CHECK_OK(trust_domain_check(buf_view(&b), &e));
	buf_byte(&b, 'a');
	CHECK_ERR(trust_domain_check(buf_view(&b), &e), ERR_INVALID);
}

static void test_make(void)
{
	struct spiffeid id = SPIFFEID_INIT, dup;
	struct err e = ERR_INIT;

	CHECK_OK(spiffeid_make(&id, "td", "/a/b", &e));
	CHECK_STR(id.text, "spiffe://td/a/b");
	dup = spiffeid_dup(&id);
	CHECK(spiffeid_equal(&dup, &id) && dup.text != id.text);
	spiffeid_deinit(&id);
	CHECK(!spiffeid_equal(&dup, &id));
	spiffeid_deinit(&dup);
	CHECK_ERR(spiffeid_make(&id, "td/x", "/a", &e), ERR_INVALID);
	CHECK_ERR(spiffeid_make(&id, "td", "a", &e), ERR_INVALID);
	CHECK_STR(e.msg, "path must have a leading slash");
}

static void test_trust_domain(void)
{
	static const char *const good[] = { "td", "spiffe://td", "spiffe://td/with/path" };
	static const char *const bad[] = { "", "td/path", "spiffe:/td", "TD", "spiffe://",
		"http://td" };
	struct err e = ERR_INIT;

	for (size_t i = 0; i < ARRAY_LEN(good); i++) {
		AUTO(free) char *td = NULL;

		CHECK_OK(trust_domain_parse(good[i], &td, &e));
		CHECK_STR(td, "td");
	}
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		char *td = NULL;

		CHECK_ERR(trust_domain_parse(bad[i], &td, &e), ERR_INVALID);
		CHECK(td == NULL);
	}
}

TEST_MAIN(TEST(test_good), TEST(test_bad), TEST(test_length), TEST(test_make),
	TEST(test_trust_domain))

#include "lib/jsonstream.h"

#include "tests/test.h"

struct rig {
	struct buf out;
	const char *skip, *stop; /* a key, or "{" or "[" at a begin */
};

static enum js_want note(void *arg, enum js_token t, struct bytes text, unsigned depth)
{
	static const char *const names[] = { "{", "}", "[", "]", "k", "s", "n", "true", "false",
		"null" };
	struct rig *r = arg;
	const char *word = t == JS_KEY ? (const char *)text.p : names[t];

	buf_printf(&r->out, "%u%s", depth, names[t]);
	if (t == JS_KEY || t == JS_STRING || t == JS_NUMBER)
		buf_printf(&r->out, "(%s)", text.p ? (const char *)text.p : "unfit");
	buf_byte(&r->out, ' ');
	if (word && r->skip && strcmp(word, r->skip) == 0)
		return JS_SKIP;
	return word && r->stop && strcmp(word, r->stop) == 0 ? JS_STOP : JS_ON;
}

/* In pieces of so many bytes; "" and the code for what is refused. */
static int run(struct rig *r, struct bytes doc, size_t piece, struct err *e)
{
	struct jsonstream_options o = {
		.string_max = 16, .document_max = 1000, .token = note, .arg = r
	};
	AUTO(jsonstream_free) struct jsonstream *s = jsonstream_new(&o);
	int c = 0;

	buf_reset(&r->out);
	for (size_t i = 0; i < doc.n && !c; i += piece)
		c = jsonstream_feed(
			s, bytes_of(doc.p + i, doc.n - i < piece ? doc.n - i : piece), e);
	return c ? c : jsonstream_end(s, e);
}

/* The same whatever the pieces. */
static void expect(const char *doc, const char *skip, const char *stop, const char *want)
{
	struct rig r = { .out = BUF_INIT, .skip = skip, .stop = stop };
	struct err e;

	for (size_t piece = 1; piece < 12; piece++) {
		CHECK_OK(run(&r, bytes_str(doc), piece, &e));
		CHECK_STR(buf_cstr(&r.out), want);
	}
	buf_deinit(&r.out);
}

static void test_tokens(void)
{
	expect("{}", NULL, NULL, "0{ 0} ");
	expect(" [ ] ", NULL, NULL, "0[ 0] ");
	expect("12", NULL, NULL, "0n(12) ");
	expect("{\"a\":1,\"b\":[true,false,null,-0.5e+3],\"c\":{\"d\":\"x\"}}", NULL, NULL,
		"0{ 1k(a) 1n(1) 1k(b) 1[ 2true 2false 2null 2n(-0.5e+3) 1] 1k(c) 1{ 2k(d) 2s(x) "
		"1} 0} ");
	expect("[[],[{}],\"\"]", NULL, NULL, "0[ 1[ 1] 1[ 2{ 2} 1] 1s() 0] ");
}

static void test_strings(void)
{
	expect("\"a\\n\\\"\\\\\\/\\t\\u0041\"", NULL, NULL, "0s(a\n\"\\/\tA) ");
	expect("\"\\u00e9\\u20AC\\ud83d\\ude00\"", NULL, NULL,
		"0s(\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80) ");
	expect("[\"0123456789abcdef\",\"0123456789abcdefg\"]", NULL, NULL,
		"0[ 1s(0123456789abcdef) 1s(unfit) 0] ");
	expect("[\"a\\u0000b\",\"\xff\",\"\xed\xa0\x80\",\"\xc0\xaf\",\"\xe2\x82\"]", NULL, NULL,
		"0[ 1s(unfit) 1s(unfit) 1s(unfit) 1s(unfit) 1s(unfit) 0] ");
	expect("{\"a\\u0000\":1,\"b\":2}", NULL, NULL, "0{ 1k(unfit) 1n(1) 1k(b) 1n(2) 0} ");
}

static void test_skip(void)
{
	const char *doc = "{\"a\":{\"x\":[1,{\"y\":\"]}\\\"\"}]},\"b\":2}";

	expect(doc, "a", NULL, "0{ 1k(a) 1k(b) 1n(2) 0} ");
	expect(doc, "[", NULL, "0{ 1k(a) 1{ 2k(x) 2[ 1} 1k(b) 1n(2) 0} ");
	expect(doc, "{", NULL, "0{ ");
	expect("[{\"a\":1},2]", "a", NULL, "0[ 1{ 2k(a) 1} 1n(2) 0] ");
	expect("{\"a\":\"long, but nobody looks at it\",\"b\":0}", "a", NULL,
		"0{ 1k(a) 1k(b) 1n(0) 0} ");
}

static void test_stop(void)
{
	expect("[1,{\"a\":2}, no more of it", NULL, "a", "0[ 1n(1) 1{ 2k(a) ");
	expect("[1,{} nonsense", NULL, "}", "0[ 1n(1) 1{ 1} ");
	expect("[\"x\"!", NULL, "s", "0[ 1s(x) ");
	expect("[1 !", NULL, "n", "0[ 1n(1) ");
	expect("[[[", NULL, "[", "0[ ");
}

static void test_refused(void)
{
	static const char *const bad[] = { "", "   ", "{", "[1,", "[1 2]", "{\"a\"}", "{\"a\":}",
		"{a:1}", "{\"a\":1,}", "[1,]", "[1}", "]", "{}{}", "{},", "01", "1.", "-", "1e",
		"+1", "tru", "nul", "True", ".5", "\"a", "\"\n\"", "\"\\x\"", "\"\\u12g4\"",
		"\"\\ud800\"", "\"\\ud800x\"", "\"\\ude00\"", "\"\\ud800\\n\"",
		"\"\\ud800\\u0041\"", "[1,,2]", "{\"a\" 1}", "{,}", "[\"a\":1]", "nullnull" };
	struct rig r = { .out = BUF_INIT }, skipping = { .out = BUF_INIT, .skip = "a" };
	struct err e;

	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		AUTO(free) char *inside = xasprintf("{\"a\":%s}", bad[i]);

		for (size_t piece = 1; piece < 8; piece++) {
			CHECK_ERR(run(&r, bytes_str(bad[i]), piece, &e), ERR_INVALID);
			CHECK_CONTAINS(e.msg, "cannot parse JSON: ");
		}
		/* Skipped is not unchecked. */
		if (strcmp(bad[i], "{},") != 0 && strcmp(bad[i], "{}{}") != 0)
			CHECK_ERR(run(&skipping, bytes_str(inside), 3, &e), ERR_INVALID);
	}
	buf_deinit(&r.out);
	buf_deinit(&skipping.out);
}

static void test_limits(void)
{
	struct rig r = { .out = BUF_INIT };
	char deep[3 * JS_DEPTH_MAX], long_one[1002];
	struct err e;

	memset(deep, '[', sizeof(deep));
	CHECK_ERR(run(&r, bytes_of(deep, JS_DEPTH_MAX + 1), 7, &e), ERR_EXHAUSTED);
	memset(deep + JS_DEPTH_MAX, ']', JS_DEPTH_MAX);
	CHECK_OK(run(&r, bytes_of(deep, 2 * JS_DEPTH_MAX), 7, &e));
	memset(long_one, ' ', sizeof(long_one));
	long_one[0] = '1';
	CHECK_OK(run(&r, bytes_of(long_one, 1000), 100, &e));
	CHECK_ERR(run(&r, bytes_of(long_one, 1001), 100, &e), ERR_EXHAUSTED);
	memset(long_one, '1', sizeof(long_one));
	CHECK_OK(run(&r, bytes_of(long_one, JS_NUMBER_MAX), 5, &e));
	CHECK_ERR(run(&r, bytes_of(long_one, JS_NUMBER_MAX + 1), 5, &e), ERR_INVALID);
	buf_deinit(&r.out);
}

TEST_MAIN(TEST(test_tokens), TEST(test_strings), TEST(test_skip), TEST(test_stop),
	TEST(test_refused), TEST(test_limits))

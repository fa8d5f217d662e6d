#include "tests/test.h"

#include "lib/yaml.h"

static char *dump(const char *text, enum yaml_scalars s)
{
	struct err e = ERR_INIT;
	json_t *v = NULL;
	char *r;

	CHECK_OK(yaml_parse(bytes_str(text), s, &v, &e));
	r = json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY);
	json_decref(v);
	return r;
}

static void gives(const char *text, const char *json)
{
	AUTO(free) char *r = dump(text, YAML_TYPED);

	CHECK_STR(r, json);
}

static void test_values(void)
{
	AUTO(free) char *strings = dump("{a: 1, b: true, c: , d: \"x\"}", YAML_STRINGS);

	CHECK_STR(strings, "{\"a\":\"1\",\"b\":\"true\",\"c\":\"\",\"d\":\"x\"}");
	gives("", "null");
	gives("a: [1, -2, +3, 0x1F, 0o17, 08]", "{\"a\":[1,-2,3,31,15,8]}");
	gives("[1.5, .5, 1e3, -1.]", "[1.5,0.5,1000.0,-1.0]");
	gives("[~, null, true, False, yes, .inf, 1e999, 1.2.3, 0x, '1', !!str 1]",
		"[null,null,true,false,\"yes\",\".inf\",\"1e999\",\"1.2.3\",\"0x\",\"1\",\"1\"]");
	gives("a: |\n  x\n  y\nb: >-\n  x\n  y\n", "{\"a\":\"x\\ny\\n\",\"b\":\"x y\"}");
	gives("a: &n {b: [1]}\nc: *n\n", "{\"a\":{\"b\":[1]},\"c\":{\"b\":[1]}}");
	gives("[&a 1, &a 2, *a]", "[1,2,2]");
	gives("'<<': 1", "{\"<<\":1}");
}

static void refused(const char *text, const char *why)
{
	struct err e = ERR_INIT;
	json_t *v = NULL;

	CHECK_ERR(yaml_parse(bytes_str(text), YAML_TYPED, &v, &e), ERR_INVALID);
	CHECK(!v);
	CHECK_CONTAINS(e.msg, why);
}

static void test_refused(void)
{
	AUTO_BUF struct buf b = BUF_INIT;

	refused("a: b\n c: d", "line 2: ");
	refused("a: 1\na: 2", "line 2: key \"a\" is there twice");
	refused("[a]: 1", "a key that is no string");
	refused("<<: {a: 1}", "merge keys");
	refused("a\n---\nb", "a second document");
	refused("!mine a", "a tag");
	refused("\"a\\0b\"", "a zero byte");
	refused("*a", "alias");
	refused("&a [*a]", "alias of nothing"); /* itself */
	refused("a\xff", "line 1: ");
	for (int i = 0; i <= YAML_DEPTH_MAX; i++)
		buf_str(&b, "[");
	refused(buf_cstr(&b), "nested too deeply");
	buf_reset(&b);
	for (int i = 0; i <= YAML_NODES_MAX; i++)
		buf_str(&b, "- a\n");
	refused(buf_cstr(&b), "too large");
	buf_reset(&b);
	for (int i = 0; i <= YAML_ANCHORS_MAX; i++)
		buf_printf(&b, "- &a%d x\n", i);
	refused(buf_cstr(&b), "too many anchors");
	buf_reset(&b);
	for (int i = 0; i <= YAML_TEXT_MAX; i++)
		buf_byte(&b, ' ');
	refused(buf_cstr(&b), "bytes of YAML");
}

/* Aliases of aliases grow without bound, unless they are counted. */
static void test_laughs(void)
{
	AUTO_BUF struct buf b = BUF_INIT;

	buf_str(&b, "- &a0 [x,x,x,x,x,x,x,x,x]\n");
	for (int i = 1; i < 12; i++) {
		buf_printf(&b, "- &a%d [", i);
		for (int j = 0; j < 9; j++)
			buf_printf(&b, "%s*a%d", j ? "," : "", i - 1);
		buf_str(&b, "]\n");
	}
	refused(buf_cstr(&b), "too large");
	buf_reset(&b);
	buf_str(&b, "- &a0 [x]\n");
	for (int i = 1; i < 40; i++)
		buf_printf(&b, "- &a%d [*a%d]\n", i, i - 1);
	refused(buf_cstr(&b), "nested too deeply");
}

TEST_MAIN(TEST(test_values), TEST(test_refused), TEST(test_laughs))

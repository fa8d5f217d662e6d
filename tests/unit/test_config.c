#include "lib/config.h"

#include "lib/clock.h"
#include "lib/crypto.h"
#include "lib/log.h"
#include "tests/test.h"

/* The tree on one line: key=value, lists in [], objects in {}. */
static void show(const struct config_node *n, struct buf *b)
{
	if (n->key)
		buf_printf(b, "%s=", n->key);
	if (n->kind == CONFIG_STRING)
		buf_printf(b, "'%s'", n->text);
	else if (n->kind == CONFIG_LIST || n->kind == CONFIG_OBJECT)
		buf_byte(b, n->kind == CONFIG_LIST ? '[' : '{');
	else
		buf_str(b, n->text);
	for (size_t i = 0; i < n->n; i++) {
		if (i)
			buf_byte(b, ' ');
		show(n->children[i], b);
	}
	if (n->kind == CONFIG_LIST || n->kind == CONFIG_OBJECT)
		buf_byte(b, n->kind == CONFIG_LIST ? ']' : '}');
}

static void good(const char *text, const char *want)
{
	AUTO_BUF struct buf b = BUF_INIT;
	struct config_node *n = NULL;
	struct err e;

	CHECK_OK(config_parse("f", bytes_str(text), &n, &e));
	show(n, &b);
	CHECK_STR(buf_cstr(&b), want);
	config_node_free(n);
}

static void bad(const char *text, const char *want)
{
	struct config_node *n = NULL;
	struct err e;

	CHECK_ERR(config_parse("f", bytes_str(text), &n, &e), ERR_INVALID);
	CHECK_STR(e.msg, want);
	CHECK(n == NULL);
}

static void test_hcl(void)
{
	good("", "{}");
	good("# only\n// comments\n/* of all\n kinds */", "{}");
	good("a = 1\nb=\"x\" c = true", "{a=1 b='x' c=true}");
	good("a { b = 1 }\na { c = -2 }", "{a={b=1} a={c=-2}}");
	good("KeyManager \"memory\" { plugin_data = {} }",
		"{KeyManager={memory={plugin_data={}}}}");
	good("\"quoted key\" \"b\" c { }", "{quoted key={b={c={}}}}");
	good("l = [\"a\", \"b\",]", "{l=['a' 'b']}");
	good("l = [ # first\n 1, 0x1F, 1.5e+3 /* x */ ]", "{l=[1 0x1F 1.5e+3]}");
	good("l = [{a = 1}, {a = 2 b = 3}]", "{l=[{a=1} {a=2 b=3}]}");
	good("m = { a = 1, b = 2 }", "{m={a=1 b=2}}");
	good("a = \"\\\"\\\\\\n\\t\\x41\\u00e9\\101\"", "{a='\"\\\n\tA\xc3\xa9"
							"A'}");
	good("a = \"x ${env(\"y\")} z\"", "{a='x ${env(\"y\")} z'}");
	good("a = <<EOF\nline 1\n  line 2\nEOF\nb = 1", "{a='line 1\n  line 2\n' b=1}");
	good("a = <<-EOF\n    one\n      two\n    EOF\n", "{a='one\n  two\n'}");
	good("\xef\xbb\xbf"
	     "a = 1",
		"{a=1}");
	good("a.b-c = 1", "{a.b-c=1}");
	good("a = \"\xc3\xa4\"\r\nb = 2\r\n", "{a='\xc3\xa4' b=2}");
}

static void test_hcl_errors(void)
{
	bad("a = ", "f:1: expected a value, found the end of the file");
	bad("\n\na = b", "f:3: \"b\" must stand in quotes");
	bad("a", "f:1: expected \"=\" or \"{\", found the end of the file");
	bad("a {\n\n", "f:3: the block that begins in line 1 is not closed");
	bad("a = 1\n}", "f:2: this \"}\" closes nothing");
	bad("a \"b\" = 1", "f:1: expected \"{\", found \"=\"");
	bad("a = [1 2]", "f:1: expected \",\" or \"]\", found \"2\"");
	bad("a = \"x\ny\"", "f:1: this string has no end");
	bad("a = \"\\q\"", "f:1: bad escape in a string");
	bad("a = \"\\x4\"", "f:1: bad escape in a string");
	bad("a = \"\\000\"", "f:1: bad character in a string");
	bad("\n/* never", "f:2: this comment has no end");
	bad("a = <<EOF\nx\n", "f:1: the text that begins here has no end");
	bad("a = <<\nx", "f:1: a word and the end of the line must follow \"<<\"");
	bad("a = 10s", "f:1: \"10s\" is no number; text stands in quotes");
	bad("= 1", "f:1: expected a name, found \"=\"");
	bad("a = 'x'", "f:1: unexpected \"'\"");
	bad("a : 1", "f:1: unexpected \":\"");
}

static void test_json(void)
{
	good("{}", "{}");
	good("  {\"a\": {\"b\": [1, \"x\", true, {}]}, \"c\": -1.5e3}",
		"{a={b=[1 'x' true {}]} c=-1.5e3}");
	good("{\"a\": \"\\u00e9\\ud83d\\ude00\\/\\n\"}", "{a='\xc3\xa9\xf0\x9f\x98\x80/\n'}");
	good("{\"a\": \"${x}\"}", "{a='${x}'}");
	bad("{\"a\": 1,}", "f:1: expected a name in quotes, found \"}\"");
	bad("{\"a\": [1,]}", "f:1: expected a value, found \"]\"");
	bad("{\"a\" 1}", "f:1: expected \":\", found \"1\"");
	bad("{\"a\": 1} x", "f:1: expected the end of the file, found \"x\"");
	bad("{\n\"a\": \"\\ud83d\"}", "f:2: half of a surrogate pair in a string");
	bad("{\"a\": 1 \"b\": 2}", "f:1: expected \",\" or \"}\", found \"b\"");
	bad("{\"a\": 1", "f:1: expected \",\" or \"}\", found the end of the file");
	bad("{a: 1}", "f:1: expected a name in quotes, found \"a\"");
}

static void test_limits(void)
{
	AUTO_BUF struct buf b = BUF_INIT;
	struct config_node *n = NULL;
	struct err e;

	for (int i = 0; i < 100; i++)
		buf_str(&b, "a = [");
	CHECK_ERR(config_parse("f", buf_view(&b), &n, &e), ERR_INVALID);
	buf_reset(&b);
	buf_str(&b, "a = ");
	for (int i = 0; i < 10000; i++)
		buf_byte(&b, '[');
	CHECK_ERR(config_parse("f", buf_view(&b), &n, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "nested deeper than");
	buf_reset(&b);
	for (int i = 0; i < 10000; i++)
		buf_str(&b, "a ");
	CHECK_ERR(config_parse("f", buf_view(&b), &n, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "too many words");
	buf_reset(&b);
	buf_str(&b, "a = [");
	for (int i = 0; i <= CONFIG_NODES_MAX; i++)
		buf_str(&b, "1,");
	CHECK_ERR(config_parse("f", buf_view(&b), &n, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "more than 100000 values");
	buf_reset(&b);
	for (int i = 0; i <= CONFIG_FILE_MAX; i++)
		buf_byte(&b, ' ');
	CHECK_ERR(config_parse("f", buf_view(&b), &n, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "larger than");
	CHECK_ERR(config_parse("f", bytes_of("a = \"\0\"", 7), &n, &e), ERR_INVALID);
	CHECK_OK(config_parse("f", bytes_of(NULL, 0), &n, &e));
	config_node_free(n);
}

static void test_lines(void)
{
	struct config_node *n = NULL;
	struct err e;

	CHECK_OK(config_parse(
		"f", bytes_str("a = 1\n\nb \"c\" {\n  d = <<X\n1\n2\nX\n  e = 1\n}"), &n, &e));
	CHECK_INT(n->children[0]->line, 1);
	CHECK_INT(n->children[1]->line, 3);
	CHECK_INT(n->children[1]->children[0]->children[0]->line, 4);
	CHECK_INT(n->children[1]->children[0]->children[1]->line, 8);
	config_node_free(n);
}

static void test_expand(void)
{
	AUTO_BUF struct buf b = BUF_INIT;
	struct strings unset = { NULL, 0 };

	setenv("A_1", "one", 1);
	unsetenv("NOPE");
	config_expand_env(bytes_str("$A_1 ${A_1}x $$ $NOPE.${NOPE} $- ${} a$"), &b, &unset);
	CHECK_STR(buf_cstr(&b), "one onex $ .   a$");
	CHECK_INT(unset.n, 2);
	CHECK_STR(unset.v[0], "NOPE");
	CHECK_STR(unset.v[1], "-");
	strings_deinit(&unset);
}

/* ---- the table ---- */

struct opts {
	char *name, *secret, *td;
	int port;
	int64_t big, ttl;
	bool on, json, present;
	struct strings ids;
	enum key_type key;
	enum log_level level;
	int mode;
};

#define AT(m) .offset = offsetof(struct opts, m)
static const struct config_option table[] = {
	{ .path = "s", .type = CONFIG_T_SECTION, .doc = "A section." },
	{ .path = "s.name",
		.type = CONFIG_T_STRING,
		.flags = CONFIG_REQUIRED,
		AT(name),
		.doc = "A name." },
	{ .path = "s.secret", .type = CONFIG_T_STRING, .flags = CONFIG_SECRET, AT(secret) },
	{ .path = "s.trust_domain", .type = CONFIG_T_STRING, .flags = CONFIG_TRUST_DOMAIN, AT(td) },
	{ .path = "s.port",
		.type = CONFIG_T_INT,
		AT(port),
		.value = "8081",
		.min = 1,
		.max = 65535 },
	{ .path = "s.big", .type = CONFIG_T_INT64, AT(big) },
	{ .path = "s.ttl",
		.type = CONFIG_T_DURATION,
		AT(ttl),
		.value = "1h",
		.min = NS_PER_SEC,
		.max = INT64_MAX },
	{ .path = "s.on", .type = CONFIG_T_BOOL, AT(on), .value = "true" },
	{ .path = "s.format",
		.type = CONFIG_T_CHOICE_BOOL,
		AT(json),
		.value = "text",
		.choices = "text|json" },
	{ .path = "s.mode", .type = CONFIG_T_CHOICE, AT(mode), .choices = "a|b|c" },
	{ .path = "s.ids", .type = CONFIG_T_STRINGS, AT(ids) },
	{ .path = "s.one_id", .type = CONFIG_T_STRINGS, .flags = CONFIG_APPEND, AT(ids) },
	{ .path = "s.key",
		.type = CONFIG_T_KEY_TYPE,
		AT(key),
		.value = "ec-p256",
		.choices = "ec-p256|rsa-2048" },
	{ .path = "s.level", .type = CONFIG_T_LOG_LEVEL, AT(level), .value = "INFO" },
	{ .path = "s.old", .type = CONFIG_T_IGNORED, .note = "it is gone" },
	{ .path = "s.fixed", .type = CONFIG_T_FIXED, .choices = "no|0", .note = "only no" },
	{ .path = "s.refused",
		.type = CONFIG_T_REFUSED,
		.flags = CONFIG_EMPTY_OK,
		.note = "never" },
	{ .path = "s.lenient", .type = CONFIG_T_SECTION, .flags = CONFIG_LENIENT },
	{ .path = "plugins", .type = CONFIG_T_SECTION },
	{ .path = "plugins.T", .type = CONFIG_T_SECTION },
	{ .path = "plugins.T.p",
		.type = CONFIG_T_SECTION,
		.flags = CONFIG_PLUGIN | CONFIG_PRESENT,
		AT(present) },
	{ .path = "plugins.T.p.mode", .type = CONFIG_T_CHOICE, AT(mode), .choices = "a|b|c" },
	{ .path = NULL },
};

/* What is wrong and what is warned of. */
static void load(const char *text, struct opts *o, const char *problems, const char *warnings)
{
	struct config c;

	*o = (struct opts){ 0 };
	config_init(&c, table, o);
	config_load_text(&c, "f", bytes_str(text));
	CHECK_STR(buf_cstr(&c.problems), problems);
	CHECK_STR(buf_cstr(&c.warnings), warnings);
	config_deinit(&c);
}

static void test_values(void)
{
	struct opts o;

	load("s { name = \"n\" port = \"9090\" big = -0x10 ttl = \"1m\" on = false format = "
	     "\"JSON\"\n"
	     "mode = \"b\" ids = [\"x\", \"y\"] one_id = \"z\" KEY = \"RSA-2048\" level = "
	     "\"debug\"\n"
	     "trust_domain = \"spiffe://example.org/x\" }\n"
	     "plugins { T \"p\" { plugin_data { mode = \"c\" } } }",
		&o, "", "");
	CHECK_STR(o.name, "n");
	CHECK_STR(o.td, "example.org");
	CHECK_INT(o.port, 9090);
	CHECK_INT(o.big, -16);
	CHECK_INT(o.ttl, 60 * NS_PER_SEC);
	CHECK(!o.on);
	CHECK(o.json);
	CHECK(o.present);
	CHECK_INT(o.mode, 2);
	CHECK_INT(o.ids.n, 3);
	CHECK_STR(o.ids.v[2], "z");
	CHECK_INT(o.key, KEY_RSA_2048);
	CHECK_INT(o.level, LOG_DEBUG);
	config_free_values(table, &o);
	CHECK(o.name == NULL);
}

static void test_defaults(void)
{
	struct opts o;

	load("s {}", &o, "", "");
	CHECK_INT(o.port, 8081);
	CHECK_INT(o.ttl, 3600 * NS_PER_SEC);
	CHECK(o.on);
	CHECK(!o.json);
	CHECK_INT(o.key, KEY_EC_P256);
	config_free_values(table, &o);
}

static void test_json_form(void)
{
	struct opts o;

	load("{\"s\": {\"name\": \"n\", \"port\": 1, \"level\": null},\n"
	     "\"plugins\": {\"T\": [{\"p\": [{\"plugin_data\": [{\"mode\": \"b\"}]}]}]}}",
		&o, "", "");
	CHECK_INT(o.port, 1);
	CHECK_INT(o.mode, 1);
	CHECK(o.present);
	config_free_values(table, &o);
}

static void test_problems(void)
{
	struct opts o;

	load("s {\n"
	     "port = \"x\"\n"
	     "port = 70000\n"
	     "on = \"true\"\n"
	     "ttl = \"5\"\n"
	     "ttl = \"10ms\"\n"
	     "ids = \"x\"\n"
	     "ids = [1]\n"
	     "format = \"xml\"\n"
	     "key = \"ec-p999\"\n"
	     "level = \"loud\"\n"
	     "trust_domain = \"a/b\"\n"
	     "fixed = \"yes\"\n"
	     "refused = \"x\"\n"
	     "nmae = 1\n"
	     "zzzzzz = 1\n"
	     "}\n"
	     "t {}\n"
	     "s = 1\n",
		&o,
		"f:2: \"port\" must be a whole number, not \"x\"\n"
		"f:3: \"port\" must be from 1 to 65535, not 70000\n"
		"f:4: \"on\" must be true or false, not a string (write it without quotes)\n"
		"f:5: \"ttl\": missing unit in duration \"5\"; write it like \"1h30m\" or \"10s\"\n"
		"f:6: \"ttl\" must be at least 1s, not 10ms\n"
		"f:7: \"ids\" must be a list of strings, not a string\n"
		"f:8: \"ids\" must hold strings, not a number\n"
		"f:9: \"format\" must be \"text\" or \"json\", not \"xml\"\n"
		"f:10: \"key\" must be \"ec-p256\" or \"rsa-2048\", not \"ec-p999\"\n"
		"f:11: \"level\": not a valid log level: \"loud\" (panic, fatal, error, warn, "
		"info, debug, trace)\n"
		"f:12: could not parse trust_domain \"a/b\": trust domain characters are limited "
		"to "
		"lowercase letters, numbers, dots, dashes, and underscores\n"
		"f:13: \"fixed\": only no\n"
		"f:14: \"refused\": never\n"
		"f:15: unknown key \"nmae\" in \"s\"; did you mean \"name\"?\n"
		"f:16: unknown key \"zzzzzz\" in \"s\"\n"
		"f:18: unknown key \"t\"; did you mean \"s\"?\n"
		"f:19: \"s\" must be a block, not a number\n",
		"f:3: \"port\" was given in line 2 already; the last one counts\n"
		"f:6: \"ttl\" was given in line 5 already; the last one counts\n"
		"f:8: \"ids\" was given in line 7 already; the last one counts\n");
	CHECK_INT(o.port, 8081);
	config_free_values(table, &o);
}

static void test_warnings(void)
{
	struct opts o;

	load("s {\n old = 1\n fixed = \"NO\"\n refused = []\n lenient {\n x = 1\n }\n}", &o, "",
		"f:2: \"old\" has no effect: it is gone\n"
		"f:6: unknown key \"x\" in \"s.lenient\"\n");
	config_free_values(table, &o);
}

static void test_plugins(void)
{
	struct opts o;

	load("plugins {\n"
	     "T \"q\" { plugin_data {} }\n"
	     "T \"own\" { plugin_cmd = \"/bin/own\" }\n"
	     "T \"off\" { enabled = false plugin_cmd = \"/bin/own\" }\n"
	     "U \"p\" {}\n"
	     "T \"p\" {\n"
	     "mode = \"a\"\n"
	     "plugin_data { mod = \"a\" }\n"
	     "plugin_checksum = \"x\"\n"
	     "}\n"
	     "T \"p\" {}\n"
	     "}",
		&o,
		"f:2: unknown T plugin \"q\"; did you mean \"p\"?\n"
		"f:3: T \"own\" is an external plugin (plugin_cmd); Assay has built-in plugins "
		"only\n"
		"f:5: unknown key \"U\" in \"plugins\"; did you mean \"T\"?\n"
		"f:7: unknown key \"mode\" in \"plugins.T.p\"; a plugin's own keys stand in "
		"plugin_data\n"
		"f:8: unknown key \"mod\" in \"plugins.T.p\"; did you mean \"mode\"?\n"
		"f:11: plugin \"T.p\" was given in line 6 already\n",
		"");
	config_free_values(table, &o);
}

static void test_plugin_file(void)
{
	AUTO(free) char *path = xasprintf("%s/data.hcl", test_dir());
	AUTO(free)
	char *text = xasprintf("plugins { T \"p\" { plugin_data_file = \"%s\" } }", path);
	AUTO(free) char *problem = xasprintf("%s:2: unknown key \"x\" in \"plugins.T.p\"\n", path);
	struct opts o;
	struct err e;

	CHECK_OK(buf_write_file(bytes_str("mode = \"b\"\n"), path, 0600, &e));
	load(text, &o, "", "");
	CHECK_INT(o.mode, 1);
	config_free_values(table, &o);
	CHECK_OK(buf_write_file(bytes_str("mode = \"b\"\nx = 1\n"), path, 0600, &e));
	load(text, &o, problem, "");
	config_free_values(table, &o);
	load("plugins { T \"p\" {\n plugin_data_file = \"/nonexistent/x\" } }", &o,
		"f:2: \"plugin_data_file\": cannot open /nonexistent/x: No such file or "
		"directory\n",
		"");
	config_free_values(table, &o);
	unlink(path);
	rmdir(test_dir());
}

static void test_override(void)
{
	struct opts o = { 0 };
	struct config c;

	config_init(&c, table, &o);
	config_load_text(&c, "f", bytes_str("s {\nport = 1 }"));
	CHECK(config_given(&c, "s.port"));
	CHECK(!config_given(&c, "s.on"));
	config_override(&c, "s.port", "2", "-port");
	config_override(&c, "s.on", "false", "-on");
	CHECK_INT(o.port, 2);
	CHECK(!o.on);
	config_override(&c, "s.port", "0", "-port");
	config_problem(&c, "s.on", "not now");
	config_problem(&c, "s.name", "missing %s", "it");
	config_check_required(&c);
	CHECK_STR(buf_cstr(&c.problems), "-port: \"port\" must be from 1 to 65535, not 0\n"
					 "-on: not now\n"
					 "f:1: missing it\n"
					 "f:1: name must be configured\n");
	CHECK_INT(c.n_problems, 4);
	config_deinit(&c);
	config_free_values(table, &o);
}

static void test_print(void)
{
	AUTO_BUF struct buf b = BUF_INIT;
	struct opts o;

	load("s { name = \"a\\\"b\" secret = \"s3cret\" ids = [\"x\", \"y\"] mode = \"c\" }", &o,
		"", "");
	config_print(table, &o, &b);
	CHECK_STR(buf_cstr(&b), "s.name = \"a\\\"b\"\n"
				"s.secret = \"(hidden)\"\n"
				"s.port = 8081\n"
				"s.big = 0\n"
				"s.ttl = \"1h0m0s\"\n"
				"s.on = true\n"
				"s.format = \"text\"\n"
				"s.mode = \"c\"\n"
				"s.ids = [\"x\", \"y\"]\n"
				"s.key = \"ec-p256\"\n"
				"s.level = \"info\"\n");
	config_free_values(table, &o);
}

static void test_describe(void)
{
	AUTO_BUF struct buf b = BUF_INIT;

	config_describe(table, &b);
	CHECK_CONTAINS(buf_cstr(&b), "\n## `s`\n\nA section.\n");
	CHECK_CONTAINS(buf_cstr(&b), "| `name` | string | (required) | A name. |\n");
	CHECK_CONTAINS(buf_cstr(&b), "| `port` | number | `8081` |");
	CHECK_CONTAINS(buf_cstr(&b), "| `format` | string | `text` | One of `text`, `json`. |\n");
	CHECK_CONTAINS(buf_cstr(&b), "| `fixed` | refused but for `no`, `0` | only no |\n");
	CHECK_CONTAINS(buf_cstr(&b), "\n## `T \"p\"`\n");
}

static void test_missing_file(void)
{
	struct opts o = { 0 };
	struct config c;
	struct err e;

	config_init(&c, table, &o);
	CHECK_ERR(config_load(&c, "/nonexistent/x.conf", false, &e), ERR_NOT_FOUND);
	CHECK_STR(e.msg,
		"could not find config file /nonexistent/x.conf: please use the -config flag");
	config_deinit(&c);
	config_free_values(table, &o);
}

static struct buf changes = BUF_INIT;

static void on_change(void *arg, const char *key, const char *was, const char *is)
{
	(void)arg;
	buf_printf(&changes, "%s: %s -> %s\n", key, was ? was : "none", is ? is : "none");
}

static void test_changes(void)
{
	config_changes("a = 1\nb = \"x = y\"\nc = [1]\n", "a = 1\nb = \"x = z\"\nd = 2\n",
		on_change, NULL);
	CHECK_STR(buf_cstr(&changes), "b: \"x = y\" -> \"x = z\"\nd: none -> 2\nc: [1] -> none\n");
	buf_reset(&changes);
	config_changes("a = 1\n", "a = 1\n", on_change, NULL);
	config_changes("", "", on_change, NULL);
	CHECK_INT(changes.len, 0);
	buf_deinit(&changes);
}

/* A list of objects, whichever way it is written. */
static void test_list(void)
{
	struct lists {
		struct config_blocks list;
	} o;
	static const struct config_option rows[] = {
		{ .path = "a", .type = CONFIG_T_SECTION },
		{ .path = "a.b", .type = CONFIG_T_LIST, .offset = offsetof(struct lists, list) },
		{ .path = NULL },
	};
	static const char *const same[] = { "a { b = [ { x = 1 }, { x = 2 } ] }",
		"a { b { x = 1 } b { x = 2 } }", "{\"a\":{\"b\":[{\"x\":1},{\"x\":2}]}}" };
	struct config c;

	for (size_t i = 0; i < ARRAY_LEN(same); i++) {
		o = (struct lists){ .list = { .n = 0 } };
		config_init(&c, rows, &o);
		config_load_text(&c, "f", bytes_str(same[i]));
		CHECK_STR(buf_cstr(&c.problems), "");
		CHECK_INT(o.list.n, 2);
		for (size_t k = 0; k < 2; k++) {
			CHECK_INT(o.list.v[k]->n, 1);
			CHECK_STR(o.list.v[k]->children[0]->key, "x");
			CHECK_STR(o.list.v[k]->children[0]->text, k ? "2" : "1");
		}
		config_deinit(&c);
		config_free_values(rows, &o);
	}
	o = (struct lists){ .list = { .n = 0 } };
	config_init(&c, rows, &o);
	config_load_text(&c, "f", bytes_str("a { b = [1] }"));
	CHECK_CONTAINS(buf_cstr(&c.problems), "a list of objects");
	config_deinit(&c);
	config_free_values(rows, &o);
}

TEST_MAIN(TEST(test_list), TEST(test_hcl), TEST(test_hcl_errors), TEST(test_json),
	TEST(test_limits), TEST(test_lines), TEST(test_expand), TEST(test_values),
	TEST(test_defaults), TEST(test_json_form), TEST(test_problems), TEST(test_warnings),
	TEST(test_plugins), TEST(test_plugin_file), TEST(test_override), TEST(test_print),
	TEST(test_describe), TEST(test_missing_file), TEST(test_changes))

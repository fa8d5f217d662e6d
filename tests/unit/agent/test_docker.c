#include "agent/docker.h"
#include "tests/test.h"

#define ID "6469646e742065787065637420616e796f6e6520746f20726561642074686973"
#define DIGEST "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static void test_addresses(void)
{
	static const struct {
		const char *text, *url, *unix_path;
	} rows[] = {
		{ DOCKER_SOCKET_DEFAULT, "http://localhost", "/var/run/docker.sock" },
		{ "unix:///x", "http://localhost", "/x" },
		{ "tcp://127.0.0.1:2375", "http://127.0.0.1:2375", NULL },
		{ "http://engine:2375/", "http://engine:2375", NULL },
		{ "/var/run/docker.sock", NULL, NULL },
		{ "unix://docker.sock", NULL, NULL },
		{ "unix://", NULL, NULL },
		{ "npipe:////./pipe/docker_engine", NULL, NULL },
		{ "https://engine:2376", NULL, NULL },
		{ "ssh://engine", NULL, NULL },
		{ "", NULL, NULL },
	};

	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		AUTO(free) char *url = NULL;
		AUTO(free) char *path = NULL;
		struct err e = ERR_INIT;
		int r = docker_address(rows[i].text, &url, &path, &e);

		CHECK_INT(r, rows[i].url ? 0 : ERR_INVALID);
		if (!rows[i].url)
			continue;
		CHECK_STR(url, rows[i].url);
		CHECK(rows[i].unix_path ? path && strcmp(path, rows[i].unix_path) == 0 : !path);
	}
}

static void test_versions(void)
{
	struct err e = ERR_INIT;

	CHECK_OK(docker_version_check("1.20", &e));
	CHECK_OK(docker_version_check("v1.41", &e));
	CHECK_ERR(docker_version_check("1", &e), ERR_INVALID);
	CHECK_ERR(docker_version_check("1.", &e), ERR_INVALID);
	CHECK_ERR(docker_version_check(".1", &e), ERR_INVALID);
	CHECK_ERR(docker_version_check("1.41/../x", &e), ERR_INVALID);
	CHECK_ERR(docker_version_check("1.41.2", &e), ERR_INVALID);
	CHECK_STR(e.msg, "invalid API version (1.41.2): must be formatted <major>.<minor>");
}

static void test_templates(void)
{
	struct err e = ERR_INIT;
	AUTO(free) char *path = docker_template_path(PODMAN_SOCKET_TEMPLATE_DEFAULT, 1000);
	AUTO(free) char *odd = docker_template_path("unix:///100%%/%d.sock", UINT32_MAX);

	CHECK_STR(path, "unix:///run/user/1000/podman/podman.sock");
	CHECK_STR(odd, "unix:///100%/4294967295.sock");
	CHECK_OK(docker_template_check(PODMAN_SOCKET_TEMPLATE_DEFAULT, &e));
	CHECK_OK(docker_template_check("unix:///100%%/%d.sock", &e));
	CHECK_ERR(docker_template_check("unix:///run/user/%s/podman/podman.sock", &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "invalid podman_socket_path_template: template only supports escaped "
			      "%% or the %d UID placeholder");
	CHECK_ERR(docker_template_check("unix:///run/user/%d/podman%", &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "trailing % at end of template");
	CHECK_ERR(docker_template_check("unix:///run/user/podman", &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "template must contain exactly one %d UID placeholder");
	CHECK_ERR(docker_template_check("unix:///%d/%d", &e), ERR_INVALID);
	CHECK_ERR(docker_template_check("/run/user/%d/x", &e), ERR_INVALID);
}

static void test_engines(void)
{
#define USER(uid) "0::/user.slice/user-" uid ".slice/user@" uid ".service/user.slice/"
	static const struct {
		const char *text;
		enum docker_engine engine;
		uint32_t uid;
	} rows[] = {
		{ "10:devices:/docker/" ID "\n", ENGINE_DOCKER, 0 },
		{ USER("1000") "docker-" ID ".scope\n", ENGINE_DOCKER, 0 },
		{ USER("1000") "libpod-" ID ".scope\n", ENGINE_PODMAN_ROOTLESS, 1000 },
		{ USER("2000") "libpod/" ID "\n", ENGINE_PODMAN_ROOTLESS, 2000 },
		{ USER("4294967295") "libpod/" ID "\n", ENGINE_PODMAN_ROOTLESS, UINT32_MAX },
		{ USER("4294967296") "libpod-" ID ".scope\n", ENGINE_PODMAN, 0 },
		{ USER("x") "libpod-" ID ".scope\n", ENGINE_PODMAN, 0 },
		{ "0::/machine.slice/libpod-" ID ".scope\n", ENGINE_PODMAN, 0 },
		{ "0::/user-7.slice\n1:x:/libpod_parent/libpod-" ID "\n", ENGINE_PODMAN, 0 },
		{ "0::/\n", ENGINE_DOCKER, 0 },
		{ "", ENGINE_DOCKER, 0 },
	};
	struct err e = ERR_INIT;
	enum docker_engine engine;
	uint32_t uid;

	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		uid = 0;
		CHECK_OK(docker_engine_of(bytes_str(rows[i].text), &engine, &uid, &e));
		CHECK_INT(engine, rows[i].engine);
		if (engine == ENGINE_PODMAN_ROOTLESS)
			CHECK_INT(uid, rows[i].uid);
	}
	CHECK_ERR(docker_engine_of(bytes_str("x\n"), &engine, &uid, &e), ERR_INTERNAL);
}

static void test_places(void)
{
	AUTO(free) char *v1 = docker_place_of(bytes_str("9:cpu:/\n3:x:/docker/" ID "/a\n"), ID);
	AUTO(free) char *scope = docker_place_of(bytes_str("0::/m.slice/docker-" ID ".scope"), ID);
	AUTO(free) char *twice = docker_place_of(bytes_str("0::/" ID "/" ID "/x"), ID);
	AUTO(free) char *none = docker_place_of(bytes_str("0::/\n"), ID);

	CHECK_STR(v1, "/docker/" ID);
	CHECK_STR(scope, "/m.slice/docker-" ID);
	CHECK_STR(twice, "/" ID "/" ID);
	CHECK(!none);
	CHECK(!docker_place_of(bytes_str("0::/x\n"), ""));
}

/* ---- patterns ---- */

static int check_patterns(const char *const *v, size_t n, struct err *e)
{
	struct strings s = { 0 };
	int r;

	for (size_t i = 0; i < n; i++)
		strings_add(&s, v[i]);
	r = docker_matchers_check(&s, e);
	strings_deinit(&s);
	return r;
}
#define CHECK_PATTERNS(e, ...)                                                                     \
	check_patterns((const char *const[]){ __VA_ARGS__ },                                       \
		sizeof((const char *const[]){ __VA_ARGS__ }) / sizeof(char *), e)

static void test_pattern_rules(void)
{
	struct err e = ERR_INIT;

	CHECK_OK(CHECK_PATTERNS(&e, "/docker/<id>"));
	CHECK_OK(CHECK_PATTERNS(&e, "/docker/<id>", "/my.slice/*/<id>/*"));
	CHECK_OK(CHECK_PATTERNS(&e, "/docker/*/<id>", "/docker/<id>"));
	CHECK_ERR(CHECK_PATTERNS(&e, "/noid"), ERR_INVALID);
	CHECK_STR(e.msg,
		"pattern \"/noid\" must contain the container id token \"<id>\" exactly once");
	CHECK_ERR(CHECK_PATTERNS(&e, "/<id>/<id>"), ERR_INVALID);
	CHECK_ERR(CHECK_PATTERNS(&e, "/docker/x<id>"), ERR_INVALID);
	CHECK_ERR(CHECK_PATTERNS(&e, "/docker/<id>", "/*/<id>"), ERR_INVALID);
	CHECK_STR(e.msg,
		"dockerfinder: patterns must not be ambiguous: [\"/docker/<id>\" \"/*/<id>\"]");
	CHECK_ERR(CHECK_PATTERNS(&e, "/docker/<id>", "/docker/<id>"), ERR_INVALID);
	CHECK_ERR(CHECK_PATTERNS(&e, "/a/b/*/d/<id>", "/x/<id>", "/<id>/*/*/*/*"), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "[\"/a/b/*/d/<id>\" \"/<id>/*/*/*/*\"]");
	{
		struct strings many = { 0 };

		for (int i = 0; i <= DOCKER_MATCHERS_MAX; i++)
			strings_add(&many, "/docker/<id>");
		CHECK_ERR(docker_matchers_check(&many, &e), ERR_INVALID);
		strings_deinit(&many);
	}
}

static void find(const char *pattern, const char *cgroup, const char *want)
{
	struct strings s = { 0 };
	AUTO(free) char *id = NULL;
	struct err e = ERR_INIT;

	strings_add(&s, "/never/<id>/to/be/seen");
	strings_add(&s, pattern);
	CHECK_OK(docker_matchers_find(&s, bytes_str(cgroup), &id, &e));
	if (want ? !id || strcmp(id, want) != 0 : id != NULL)
		TEST_FAIL("%s in %s: %s", pattern, cgroup, id ? id : "(none)");
	strings_deinit(&s);
}

static void find_err(const char *pattern, const char *cgroup, const char *want)
{
	struct strings s = { 0 };
	AUTO(free) char *id = NULL;
	struct err e = ERR_INIT;

	strings_add(&s, pattern);
	CHECK_ERR(docker_matchers_find(&s, bytes_str(cgroup), &id, &e), ERR_INTERNAL);
	CHECK_CONTAINS(e.msg, want);
	strings_deinit(&s);
}

static void test_patterns(void)
{
	AUTO(free) char *blanks = xasprintf("0::/docker/%0300d", 0);

	find("/docker/<id>", "1:a:/docker/foo\n0::/docker/foo\n", "foo");
	find("/docker/<id>", "0::/docker\n", NULL);
	find("/docker/<id>", "0::/dockerfoo\n", NULL);
	find("/docker/<id>", "0::/docker/foo/\n", NULL);
	find("/docker/<id>", "0::/docker/foo/bar\n", NULL);
	find("/docker/<id>", "0::\n", NULL);
	find("/long.slice/*/*/<id>/*", "0::/long.slice/foo/bar/baz/\n", "baz");
	find("/long.slice/*/*/<id>/*", "0::/long.slice/foo/bar/baz/qux\n", "baz");
	find("/long.slice/*/*/<id>/*", "0::/long.slice/foo/bar/baz/qux/qax\n", NULL);
	find("/a.b/<id>", "0::/a-b/foo\n", NULL);
	find_err("/docker/<id>", "10:cpu:/docker/\n",
		"a pattern matched, but no container id was found");
	find_err("/docker/<id>", "1:a:/docker/foo\n0::/docker/bar\n",
		"multiple container IDs found in cgroups (foo, bar)");
	find_err("/docker/<id>", blanks, "more than 255 characters");
	find_err("/docker/<id>", "nonsense\n", "invalid cgroup entry");
}

/* ---- answers ---- */

static bool has(const struct docker_facts *f, const char *value)
{
	for (size_t i = 0; i < f->selectors.n; i++)
		if (strcmp(f->selectors.v[i].value, value) == 0)
			return strcmp(f->selectors.v[i].type, "docker") == 0;
	return false;
}

static void test_facts(void)
{
	struct docker_facts f;
	struct err e = ERR_INIT;

	CHECK_OK(docker_facts_parse(
		bytes_str("{\"Id\":\"" ID "\",\"State\":{\"Running\":true,\"Pid\":42},"
			  "\"Image\":\"" DIGEST "\",\"Config\":{\"Image\":\"localhost:5000/app:1\","
			  "\"Labels\":{\"com.example.name\":\"foo:bar\",\"empty\":\"\"},"
			  "\"Env\":[\"VAR=val\",\"BARE\"]}}"),
		&f, &e));
	CHECK_INT(f.selectors.n, 5);
	CHECK(has(&f, "label:com.example.name:foo:bar"));
	CHECK(has(&f, "label:empty:"));
	CHECK(has(&f, "env:VAR=val"));
	CHECK(has(&f, "env:BARE"));
	CHECK(has(&f, "image_id:localhost:5000/app:1"));
	CHECK_STR(f.image, "localhost:5000/app:1");
	CHECK_STR(f.image_digest, DIGEST);
	CHECK_INT(f.pid, 42);
	CHECK(!f.stopped);
	docker_facts_deinit(&f);
	/* No more than SPIRE's agent needs; podman has the image's name where Docker has its id. */
	CHECK_OK(docker_facts_parse(bytes_str("{\"Config\":{\"Image\":\"\",\"Labels\":null,"
					      "\"Env\":null},\"Image\":\"app:1\",\"State\":"
					      "{\"Running\":false,\"Pid\":0}}"),
		&f, &e));
	CHECK_INT(f.selectors.n, 0);
	CHECK_STR(f.image, "");
	CHECK(!f.image_digest && f.pid == 0 && f.stopped);
	docker_facts_deinit(&f);
	CHECK_OK(docker_facts_parse(bytes_str("{\"Config\":{}}"), &f, &e));
	CHECK(!f.stopped);
	docker_facts_deinit(&f);
}

static void test_bad_answers(void)
{
	static const char *const rows[] = { "", "null", "[]", "{", "{}", "{\"Config\":null}",
		"{\"Config\":{\"Labels\":[]}}", "{\"Config\":{\"Labels\":{\"a\":1}}}",
		"{\"Config\":{\"Env\":{}}}", "{\"Config\":{\"Env\":[1]}}",
		"{\"Config\":{\"Image\":1}}" };
	struct docker_facts f;
	struct err e = ERR_INIT;

	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		CHECK_ERR(docker_facts_parse(bytes_str(rows[i]), &f, &e), ERR_INTERNAL);
		CHECK_CONTAINS(e.msg, "not understood");
	}
}

static void test_images_and_messages(void)
{
	AUTO(free) char *id = NULL;
	AUTO(free) char *none = NULL;
	AUTO(free) char *message = docker_message(bytes_str("{\"message\":\"No such container\"}"));
	AUTO(free) char *empty = docker_message(bytes_str("404 page not found"));
	AUTO(free) char *plain = docker_path(NULL, "containers", ID);
	AUTO(free) char *odd = docker_path("v1.20", "images", "a/b:c@sha256:0 ?#%");
	struct err e = ERR_INIT;

	CHECK_OK(docker_image_parse(bytes_str("{\"Id\":\"" DIGEST "\"}"), &id, &e));
	CHECK_STR(id, DIGEST);
	CHECK_OK(docker_image_parse(bytes_str("{}"), &none, &e));
	CHECK(!none);
	CHECK_ERR(docker_image_parse(bytes_str("x"), &none, &e), ERR_INTERNAL);
	CHECK_STR(message, "No such container");
	CHECK_STR(empty, "");
	CHECK_STR(plain, "/containers/" ID "/json");
	CHECK_STR(odd, "/v1.20/images/a/b:c@sha256:0%20%3F%23%25/json");
}

static void test_negotiated_version(void)
{
	static const char *const cases[][2] = {
		{ "1.41", "1.41" },
		{ "1.9", "1.9" },
		{ DOCKER_VERSION_MAX, DOCKER_VERSION_MAX },
		{ "1.999", DOCKER_VERSION_MAX },
		{ "2.0", DOCKER_VERSION_MAX },
		{ "", DOCKER_VERSION_MAX },
		{ "1.41/../..", DOCKER_VERSION_MAX },
		{ "1234.1", DOCKER_VERSION_MAX },
	};

	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		AUTO(free) char *v = docker_version_of(cases[i][0]);

		CHECK_STR(v, cases[i][1]);
	}
}

TEST_MAIN(TEST(test_addresses), TEST(test_negotiated_version), TEST(test_versions),
	TEST(test_templates), TEST(test_engines), TEST(test_places), TEST(test_pattern_rules),
	TEST(test_patterns), TEST(test_facts), TEST(test_bad_answers),
	TEST(test_images_and_messages))

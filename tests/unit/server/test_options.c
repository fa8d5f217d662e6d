#include "server/options.h"

#include "tests/unit/config_golden.inc"

static void golden_load(const char *file, struct buf *ret)
{
	struct server_flags f = { .config = file,
		.daemon.expand_env = strstr(file, "expand") != NULL };
	AUTO_BUF struct buf problems = BUF_INIT;
	struct server_options o;
	struct err e;

	if (server_options_load(&o, &f, &problems, &e)) {
		buf_printf(ret, "%s%s\n", buf_cstr(&problems), e.msg);
		return;
	}
	server_options_print(&o, ret);
	golden_warnings(&o.daemon.warnings, ret);
	server_options_deinit(&o);
}

static void test_golden(void)
{
	golden_all("tests/config/server");
}

static const char minimal[] = "server { trust_domain = \"example.org\" }\n"
			      "plugins { KeyManager \"memory\" {} }\n";

static char *write_conf(const char *text)
{
	char *path = xasprintf("%s/server.conf", test_dir());
	struct err e;

	CHECK_OK(buf_write_file(bytes_str(text), path, 0600, &e));
	return path;
}

static void done(const char *path)
{
	unlink(path);
	rmdir(test_dir());
}

/* What the flags say goes before what the file says. */
static void test_flags(void)
{
	AUTO(free) char *path = write_conf(minimal);
	struct server_flags f = { .config = path,
		.bind_address = "127.0.0.1",
		.server_port = 99,
		.socket_path = "/s",
		.trust_domain = "other.org",
		.data_dir = "/d",
		.daemon.log_file = "/l",
		.daemon.log_format = "json",
		.daemon.log_level = "warn",
		.daemon.log_source_location = true };
	AUTO_BUF struct buf problems = BUF_INIT;
	struct server_options o;
	struct err e;

	CHECK_OK(server_options_load(&o, &f, &problems, &e));
	CHECK_STR(o.bind_address, "127.0.0.1");
	CHECK_INT(o.bind_port, 99);
	CHECK_STR(o.socket_path, "/s");
	CHECK_STR(o.trust_domain, "other.org");
	CHECK_STR(o.db_connection_string, "/d/datastore.sqlite3");
	CHECK_STR(o.keys_path, "/d/keys.json");
	CHECK_STR(o.daemon.log_file, "/l");
	CHECK(o.daemon.log_json);
	CHECK_INT(o.daemon.log_level, LOG_WARN);
	CHECK(o.daemon.log_source_location);
	server_options_deinit(&o);
	f.server_port = 70000;
	f.daemon.log_level = "loud";
	CHECK_ERR(server_options_load(&o, &f, &problems, &e), ERR_INVALID);
	CHECK_CONTAINS(buf_cstr(&problems), "-serverPort: \"bind_port\" must be from 1 to 65535");
	CHECK_CONTAINS(buf_cstr(&problems), "-logLevel: \"log_level\": not a valid log level");
	done(path);
}

static void test_missing(void)
{
	struct server_flags f = { .config = "/nonexistent/server.conf" };
	AUTO_BUF struct buf problems = BUF_INIT;
	struct server_options o;
	struct err e;

	CHECK_ERR(server_options_load(&o, &f, &problems, &e), ERR_NOT_FOUND);
	CHECK_STR(e.msg,
		"could not find config file /nonexistent/server.conf: please use the -config flag");
	CHECK_INT(problems.len, 0);
}

static void test_describe(void)
{
	AUTO_BUF struct buf b = BUF_INIT;

	server_options_describe(&b);
	CHECK_CONTAINS(buf_cstr(&b), "## `server`");
	CHECK_CONTAINS(buf_cstr(&b), "| `trust_domain` | string | (required) |");
	CHECK_CONTAINS(buf_cstr(&b), "## `KeyManager \"disk\"`");
}

TEST_MAIN(TEST(test_golden), TEST(test_flags), TEST(test_missing), TEST(test_describe))

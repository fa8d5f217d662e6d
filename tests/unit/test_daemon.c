/* What both daemons begin with. */
#include "lib/daemon.h"

#include <stddef.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/mem.h"
#include "tests/test.h"

struct file {
	int before;
	struct daemon_options daemon;
};
static const struct config_option table[] = {
	{ .path = "server", .type = CONFIG_T_SECTION, .doc = "x" },
	DAEMON_LOG_ROWS("server", struct file, daemon),
	DAEMON_HEALTH_ROWS(struct file, daemon),
	DAEMON_TELEMETRY_ROWS(struct file, daemon),
	CONFIG_OPTIONS_END,
};

static void test_rows_and_flags(void)
{
	static const char text[] =
		"server { log_level = \"ERROR\" }\n"
		"health_checks { listener_enabled = true bind_port = 7 }\n"
		"telemetry { Prometheus { port = 9 } InMem = 1 MetricPrefix = \"x\" }\n";
	const struct daemon_flags flags = { .log_level = "debug", .log_source_location = true };
	AUTO_BUF struct buf problems = BUF_INIT;
	struct file f = { 0 };
	struct config c;
	struct err e = ERR_INIT;

	config_init(&c, table, &f);
	config_load_text(&c, "f", bytes_str(text));
	daemon_override(&c, "server", &flags);
	CHECK_OK(config_finish(&c, &problems, &e));
	config_take_warnings(&c, &f.daemon.warnings);
	config_deinit(&c);
	CHECK_INT(f.before, 0);
	CHECK_INT(f.daemon.log_level, LOG_DEBUG);
	CHECK(f.daemon.log_source_location && !f.daemon.log_json && !f.daemon.log_file);
	CHECK(f.daemon.health_enabled && f.daemon.prometheus_enabled);
	CHECK_INT(f.daemon.health_port, 7);
	CHECK_STR(f.daemon.health_ready_path, "/ready");
	CHECK_STR(f.daemon.prometheus_host, "localhost");
	CHECK_INT(f.daemon.prometheus_port, 9);
	CHECK_INT(f.daemon.warnings.n, 1);
	CHECK_CONTAINS(f.daemon.warnings.v[0], "f:3: ");
	config_free_values(table, &f);
	strings_deinit(&f.daemon.warnings);
}

static void test_problems(void)
{
	const struct daemon_flags flags = { .log_level = "loud" };
	AUTO_BUF struct buf problems = BUF_INIT;
	struct file f = { 0 };
	struct config c;
	struct err e = ERR_INIT;

	config_init(&c, table, &f);
	config_load_text(&c, "f", bytes_str("telemetry { Statsd {} }\n"));
	daemon_override(&c, "server", &flags);
	CHECK_ERR(config_finish(&c, &problems, &e), ERR_INVALID);
	CHECK_STR(e.msg, "2 problems in the configuration");
	CHECK_CONTAINS(buf_cstr(&problems), "-logLevel: ");
	CHECK_CONTAINS(buf_cstr(&problems), "f:1: ");
	config_deinit(&c);
	config_free_values(table, &f);
}

static void test_begin(void)
{
	char path[] = "/tmp/assay-test-daemon-XXXXXX";
	char line[200] = "";
	struct daemon_options o = { .log_level = LOG_INFO, .log_file = path };
	struct err e = ERR_INIT;
	FILE *f;

	CHECK(mkstemp(path) >= 0);
	strings_add(&o.warnings, "f:1: not as it seems");
	CHECK_OK(daemon_begin(&o, &e));
	CHECK_INT(umask(0) & 027, 027);
	f = fopen(path, "r");
	CHECK(f && fgets(line, sizeof(line), f));
	CHECK_CONTAINS(line, "f:1: not as it seems");
	fclose(f);
	unlink(path);
	o.log_file = (char[]){ "/nonexistent/folder/log" };
	CHECK(daemon_begin(&o, &e) != 0);
	CHECK_CONTAINS(e.msg, "/nonexistent/folder/log");
	strings_deinit(&o.warnings);
}

TEST_MAIN(TEST(test_rows_and_flags), TEST(test_problems), TEST(test_begin))

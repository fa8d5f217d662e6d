#include "lib/cli.h"

#include "lib/clock.h"
#include "spire/api/types/logger.pb-c.h"
#include "spire/api/types/spiffeid.pb-c.h"
#include "tests/test.h"

/* ---- a program with a few commands ---- */

static const struct cli_flag flags[] = {
	{ .name = "name", .type = CLI_STRING, .value = "anon", .help = "A name" },
	{ .name = "selector", .type = CLI_STRINGS, .help = "Repeatable" },
	{ .name = "audience", .type = CLI_COMMA, .help = "List" },
	{ .name = "node", .type = CLI_BOOL, .help = "A switch" },
	{ .name = "banned", .type = CLI_TRISTATE, .choices = "true|false", .help = "Three states" },
	{ .name = "ttl", .type = CLI_INT, .value = "600", .help = "Seconds" },
	{ .name = "for", .type = CLI_DURATION, .value = "720h0m0s", .help = "A while" },
	{ .name = "secret", .type = CLI_BOOL, .help = "Not shown", .hidden = true },
	{ .name = "format", .type = CLI_STRING, .hidden = true, .as_output = true },
	CLI_END,
};

/* Prints what it was given. */
static int show(struct cli *c)
{
	const struct strings *sel = cli_strings(c, "selector"), *aud = cli_strings(c, "audience");
	AUTO(free) char *span = duration_format(cli_duration_ns(c, "for"));

	cli_printf(c, "name=%s%s node=%d banned=%d ttl=%lld for=%s json=%d", cli_str(c, "name"),
		cli_given(c, "name") ? "!" : "", cli_bool(c, "node"), cli_tristate(c, "banned"),
		(long long)cli_int(c, "ttl"), span, cli_json(c));
	for (size_t i = 0; i < sel->n; i++)
		cli_printf(c, " sel=%s", sel->v[i]);
	for (size_t i = 0; i < aud->n; i++)
		cli_printf(c, " aud=%s", aud->v[i]);
	cli_printf(c, "\n");
	return 0;
}

static int boom(struct cli *c)
{
	struct err e;

	err_set(&e, ERR_INVALID, "no such luck");
	return cli_fail(c, &e);
}

static int socket_path(struct cli *c)
{
	char *path = NULL;
	struct err e;

	if (cli_socket_path(c, &path, &e))
		return cli_fail(c, &e);
	cli_printf(c, "%s\n", path);
	free(path);
	return 0;
}

static int logger(struct cli *c)
{
	Spire__Api__Types__Logger l = SPIRE__API__TYPES__LOGGER__INIT;

	l.current_level = SPIRE__API__TYPES__LOG_LEVEL__WARN;
	l.launch_level = SPIRE__API__TYPES__LOG_LEVEL__INFO;
	return cli_print_logger(c, &l);
}

static int echo(struct cli *c)
{
	AUTO_BUF struct buf b = BUF_INIT;
	struct err e;

	if (cli_read(c, "-", &b, &e))
		return cli_fail(c, &e);
	cli_printf(c, "%s", buf_cstr(&b));
	return 0;
}

static int call(struct cli *c)
{
	Spire__Api__Types__SPIFFEID rq = SPIRE__API__TYPES__SPIFFEID__INIT;
	ProtobufCMessage *m = NULL;
	struct err e;

	if (cli_call(c, "/x.Y/Z", &rq.base, &spire__api__types__spiffeid__descriptor, &m, &e))
		return cli_fail(c, &e);
	return 0;
}

static int health(struct cli *c)
{
	return cli_healthcheck(c, "Server");
}

static const struct cli_command entry_commands[] = {
	{ "entry show", "Shows", flags, CLI_WITH_SOCKET | CLI_WITH_OUTPUT, show },
	{ "entry create", "Creates", flags, 0, show },
	{ .name = NULL },
};
static const struct cli_command other_commands[] = {
	{ "api fetch", "Fetches", NULL, 0, echo },
	{ "api fetch jwt", "Fetches a JWT", flags, 0, show },
	{ "boom", "Fails", NULL, 0, boom },
	{ "socket", "Where", NULL, CLI_WITH_SOCKET, socket_path },
	{ "admin", "Where", NULL, CLI_WITH_ADMIN, socket_path },
	{ "logger get", "Levels", NULL, CLI_WITH_OUTPUT, logger },
	{ "call", "Calls", NULL, CLI_WITH_SOCKET, call },
	{ "healthcheck", "Health", cli_healthcheck_flags, CLI_WITH_SOCKET, health },
	{ "ghost", "Hidden", NULL, 0, boom, .hidden = true },
	{ "run", "Runs", flags, 0, show },
	{ .name = NULL },
};
static const struct cli_command *const commands[] = { entry_commands, other_commands, NULL };
static const struct cli_program program = {
	.name = "prog",
	.version = "1.2.3",
	.commands = commands,
	.socket = { .path = "/run/prog.sock",
		.help = "Socket",
		.env = { "PROG_SOCKET", "OLD_SOCKET" },
		.env_template = { "PROG_TEMPLATE", "OLD_TEMPLATE" } },
	.admin = { .path = "/run/admin.sock", .help = "Admin socket" },
};

struct result {
	int code;
	char out[8192], errs[8192];
};

/* Splits the line at blanks and runs it. */
static struct result run_in(const char *line, const char *in)
{
	struct result r = { 0 };
	AUTO(free) char *copy = xasprintf("prog %s", line);
	char *argv[40], *save = NULL;
	FILE *fin = fmemopen((void *)(uintptr_t)(*in ? in : " "), *in ? strlen(in) : 1, "r");
	FILE *out = fmemopen(r.out, sizeof(r.out), "w"),
	     *errs = fmemopen(r.errs, sizeof(r.errs), "w");
	int argc = 0;

	for (char *w = strtok_r(copy, " ", &save); w; w = strtok_r(NULL, " ", &save))
		argv[argc++] = w;
	argv[argc] = NULL;
	r.code = cli_main_to(&program, argc, argv, fin, out, errs);
	fclose(fin);
	fclose(out);
	fclose(errs);
	return r;
}

static struct result run(const char *line)
{
	return run_in(line, "");
}

#define DEFAULTS "name=anon node=0 banned=-1 ttl=600 for=720h0m0s json=0"

static void good(const char *line, const char *out)
{
	struct result r = run(line);

	if (r.code)
		TEST_FAIL("%s gives %d: %s", line, r.code, r.errs);
	CHECK_STR(r.out, out);
	CHECK_STR(r.errs, "");
}

static void bad(const char *line, int code, const char *errs)
{
	struct result r = run(line);

	CHECK_INT(r.code, code);
	CHECK_CONTAINS(r.errs, errs);
	CHECK_STR(r.out, "");
}

static void test_flags(void)
{
	good("entry show", DEFAULTS "\n");
	good("entry show -name x", "name=x! node=0 banned=-1 ttl=600 for=720h0m0s json=0\n");
	good("entry show --name=x=y", "name=x=y! node=0 banned=-1 ttl=600 for=720h0m0s json=0\n");
	good("entry show -name=", "name=! node=0 banned=-1 ttl=600 for=720h0m0s json=0\n");
	good("entry show -name -x", "name=-x! node=0 banned=-1 ttl=600 for=720h0m0s json=0\n");
	good("entry show -node -ttl 5", "name=anon node=1 banned=-1 ttl=5 for=720h0m0s json=0\n");
	good("entry show -node=false", DEFAULTS "\n");
	good("entry show -node=T -ttl=0x10",
		"name=anon node=1 banned=-1 ttl=16 for=720h0m0s json=0\n");
	good("entry show -ttl -7 -for 90s", "name=anon node=0 banned=-1 ttl=-7 for=1m30s json=0\n");
	good("entry show -banned true", "name=anon node=0 banned=1 ttl=600 for=720h0m0s json=0\n");
	good("entry show -banned false", "name=anon node=0 banned=0 ttl=600 for=720h0m0s json=0\n");
	good("entry show -banned maybe", DEFAULTS "\n");
	good("entry show -selector a:1 --selector=b:2", DEFAULTS " sel=a:1 sel=b:2\n");
	good("entry show -audience a,b -audience c,,d", DEFAULTS " aud=c aud= aud=d\n");
	good("entry show -format json", "name=anon node=0 banned=-1 ttl=600 for=720h0m0s json=1\n");
	good("entry show -format json -output json",
		"name=anon node=0 banned=-1 ttl=600 for=720h0m0s json=1\n");
	good("entry show -output json", "name=anon node=0 banned=-1 ttl=600 for=720h0m0s json=1\n");
	good("entry show -output PrettyPrint", DEFAULTS "\n");
	good("entry show extra -name x", DEFAULTS "\n");
	good("entry show -- -name x", DEFAULTS "\n");
	good("entry show - -name x", DEFAULTS "\n");
	good("entry show -secret", DEFAULTS "\n");
	good("api fetch jwt -name x", "name=x! node=0 banned=-1 ttl=600 for=720h0m0s json=0\n");
}

static void test_bad_flags(void)
{
	bad("entry show -nmae x", 1, "flag provided but not defined: -nmae; did you mean -name?\n");
	bad("entry show -zzzzz", 1, "flag provided but not defined: -zzzzz\n");
	bad("entry show -name", 1, "flag needs an argument: -name\nUsage of prog entry show:");
	bad("entry show -ttl x", 1, "invalid value \"x\" for flag -ttl: parse error\n");
	bad("entry show -ttl 1.5", 1, "invalid value \"1.5\" for flag -ttl: parse error\n");
	bad("entry show -ttl 99999999999999999999", 1, "value out of range");
	bad("entry show -for 5", 1, "invalid value \"5\" for flag -for: missing unit in duration");
	bad("entry show -node=perhaps", 1,
		"invalid boolean value \"perhaps\" for -node: parse error");
	bad("entry show ---name x", 1, "bad flag syntax: ---name");
	bad("entry show -=x", 1, "bad flag syntax: -=x");
	bad("entry show -output xml", 1, "bad formatter flag: unknown format option: \"xml\"");
	bad("entry show -output json -output pretty", 1, "has already been set to \"json\"");
	bad("entry show -output json -format pretty", 1,
		"invalid value \"pretty\" for flag -format: the output format has already been set "
		"to \"json\"");
	bad("entry show -format xml", 1,
		"invalid value \"xml\" for flag -format: bad formatter flag: unknown format "
		"option: "
		"\"xml\"");
	bad("entry create -output json", 1, "flag provided but not defined: -output");
	bad("entry show -secrets", 1, "flag provided but not defined: -secrets\n");
}

static void test_commands(void)
{
	bad("", 127, "Usage: prog [--version] [--help] <command>");
	bad("entrie", 127, "prog: unknown command \"entrie\"; did you mean \"entry\"?");
	bad("-name x", 127, "flags come after the command");
	bad("entry", 1, "Usage: prog entry <subcommand>");
	bad("entry shw", 1, "unknown command \"entry shw\"; did you mean \"entry show\"?");
	bad("entry zzzzzz", 1, "unknown command \"entry zzzzzz\"\n");
	bad("api", 1, "api fetch jwt");
	bad("boom", 1, "Error: no such luck\n");
	bad("ghost", 1, "Error: no such luck\n");
	good("--version", "1.2.3\n");
	good("-version", "1.2.3\n");
	/* Images begin with "run" already; of any other command it is an argument. */
	good("run -node", "name=anon node=1 banned=-1 ttl=600 for=720h0m0s json=0\n");
	good("run run -node", "name=anon node=1 banned=-1 ttl=600 for=720h0m0s json=0\n");
	good("run run run -node", DEFAULTS "\n");
	good("entry create create -node", DEFAULTS "\n");
}

static void test_help(void)
{
	struct result r = run("-h");

	CHECK_INT(r.code, 0);
	CHECK_CONTAINS(r.out, "    boom             Fails\n");
	CHECK(!strstr(r.out, "ghost"));
	r = run("entry -h");
	CHECK_INT(r.code, 0);
	CHECK_CONTAINS(r.out, "    entry create    Creates\n    entry show      Shows\n");
	r = run("entry show -name x --help");
	CHECK_INT(r.code, 0);
	CHECK_CONTAINS(r.out, "Usage of prog entry show:\n  -audience value\n    \tList\n");
	CHECK_CONTAINS(r.out, "  -for duration\n    \tA while (default 720h0m0s)\n");
	CHECK_CONTAINS(r.out,
		"  -name string\n    \tA name (default \"anon\")\n  -node\n    \tA switch\n");
	CHECK_CONTAINS(r.out, "  -socketPath string\n    \tSocket (default \"/run/prog.sock\")\n");
	CHECK(!strstr(r.out, "secret"));
}

static void test_table(void)
{
	struct result r = run("__table");

	CHECK_INT(r.code, 0);
	CHECK_CONTAINS(r.out, "command\tapi fetch jwt\tFetches a JWT\n");
	CHECK_CONTAINS(r.out, "flag\tentry show\t-banned\tvalue\ttrue|false\tThree states\n");
	CHECK_CONTAINS(r.out, "flag\tentry show\t-node\tbool\t\tA switch\n");
	CHECK(!strstr(r.out, "ghost"));
	CHECK(!strstr(r.out, "-secret"));
}

static void test_socket(void)
{
	unsetenv("PROG_SOCKET");
	unsetenv("OLD_SOCKET");
	unsetenv("PROG_TEMPLATE");
	unsetenv("OLD_TEMPLATE");
	good("socket", "/run/prog.sock\n");
	good("admin", "/run/admin.sock\n");
	good("socket -socketPath /x", "/x\n");
	good("socket -socketPath unix:///x", "/x\n");
	bad("socket -instance a", 1,
		"Error: you must define PROG_TEMPLATE to use the instance flag\n");
	setenv("OLD_SOCKET", "/old", 1);
	good("socket", "/old\n");
	setenv("PROG_SOCKET", "/new", 1);
	good("socket", "/new\n");
	good("socket -socketPath /x", "/x\n");
	setenv("OLD_TEMPLATE", "/run/none", 1);
	bad("socket -instance a", 1, "Error: failed to find %i in OLD_TEMPLATE\n");
	setenv("OLD_TEMPLATE", "/run/%i/%i.sock", 1);
	good("socket -instance a", "/run/a/a.sock\n");
	good("socket -instance a -socketPath /x", "/x\n");
}

static void test_output(void)
{
	struct result r = run_in("api fetch", "what is read");

	CHECK_STR(r.out, "what is read");
	good("logger get", "Logger Level : warning\nLaunch Level : info\n\n");
	good("logger get -output json", "{\"current_level\":\"WARN\",\"launch_level\":\"INFO\"}\n");
}

/* No server there: a reason, in time, and no leak. */
static void test_no_server(void)
{
	bad("call -socketPath /nonexistent/x.sock", 1,
		"Error: rpc error: code = Unavailable desc = ");
	bad("healthcheck -socketPath /nonexistent/x.sock", 1,
		"Error: server is unhealthy: unable to determine health\n");
}

static void test_texts(void)
{
	AUTO(free) char *utc = cli_time(1700000000, true);
	AUTO(free) char *rfc = cli_time_rfc3339(1700000000);
	AUTO(free) char *none = cli_id_text(NULL);
	struct err e;
	int l = 0;

	CHECK_STR(utc, "2023-11-14 22:13:20 +0000 UTC");
	CHECK_STR(rfc, "2023-11-14T22:13:20Z");
	CHECK_STR(none, "");
	CHECK_OK(cli_log_level("Warn", &l, &e));
	CHECK_INT(l, SPIRE__API__TYPES__LOG_LEVEL__WARN);
	CHECK_OK(cli_log_level("warning", &l, &e));
	CHECK_ERR(cli_log_level("", &l, &e), ERR_INVALID);
	CHECK_ERR(cli_log_level("loud", &l, &e), ERR_INVALID);
	CHECK_STR(e.msg, "the value \"loud\" is not a valid setting");
}

TEST_MAIN(TEST(test_flags), TEST(test_bad_flags), TEST(test_commands), TEST(test_help),
	TEST(test_table), TEST(test_socket), TEST(test_output), TEST(test_no_server),
	TEST(test_texts))

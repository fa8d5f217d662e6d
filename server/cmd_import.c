/* `import`: takes over a stopped SPIRE server. */
#include <sys/stat.h>

#include "server/cmd.h"
#include "server/import.h"

static const struct cli_flag import_flags[] = {
	{ .name = "spireDataDir",
		.type = CLI_STRING,
		.choices = "@dir",
		.help = "The data_dir of the stopped SPIRE server" },
	{ .name = "spireDatastore",
		.type = CLI_STRING,
		.choices = "@file",
		.help = "Its SQLite datastore. Not given: datastore.sqlite3 in -spireDataDir" },
	{ .name = "spireKeys",
		.type = CLI_STRING,
		.choices = "@file",
		.help = "The key file of its KeyManager \"disk\". Not given: keys.json in "
			"-spireDataDir" },
	{ .name = "config",
		.type = CLI_STRING,
		.value = SERVER_CONFIG_DEFAULT,
		.choices = "@file",
		.help = "Path to the config file of the server that takes over" },
	{ .name = "expandEnv",
		.type = CLI_BOOL,
		.help = "Expand environment variables in the config file" },
	{ .name = "dryRun", .type = CLI_BOOL, .help = "Only say what would be taken" },
	{ .name = "withoutAuthorities",
		.type = CLI_BOOL,
		.help = "Go on even if SPIRE's CA cannot be taken over: its agents then have to "
			"attest anew" },
	CLI_END,
};

static int load_options(struct cli *c, struct server_options *ret)
{
	AUTO_BUF struct buf problems = BUF_INIT;
	struct server_flags f = { .config = cli_str(c, "config"),
		.daemon.expand_env = cli_bool(c, "expandEnv") };
	struct err e;

	if (server_options_load(ret, &f, &problems, &e) == 0)
		return 0;
	if (problems.len)
		cli_errorf(c, "%s", buf_cstr(&problems));
	else
		cli_errorf(c, "%s\n", e.msg);
	return 1;
}

static int import(struct cli *c)
{
	AUTO_BUF struct buf report = BUF_INIT;
	struct server_options so;
	struct import_options o = {
		.server = &so,
		.data_dir = cli_str(c, "spireDataDir"),
		.datastore = cli_str(c, "spireDatastore"),
		.keys = cli_str(c, "spireKeys"),
		.dry_run = cli_bool(c, "dryRun"),
		.without_authorities = cli_bool(c, "withoutAuthorities"),
	};
	struct err e = ERR_INIT;
	int r;

	if (!*o.data_dir && (!*o.datastore || !*o.keys)) {
		cli_errorf(c, "Error: -spireDataDir is required\n");
		return 1;
	}
	if (load_options(c, &so))
		return 1;
	umask(umask(0) | 027);
	r = import_run(&o, &report, &e);
	cli_printf(c, "%s", buf_cstr(&report));
	server_options_deinit(&so);
	return r ? cli_fail(c, &e) : 0;
}

const struct cli_command cmd_import[] = {
	{ "import", "Takes over a stopped SPIRE server's datastore, authorities and keys",
		import_flags, 0, import },
	{ .name = NULL },
};

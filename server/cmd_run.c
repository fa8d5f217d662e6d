/* `run` and `validate`: the configuration, checked; then the daemon. And the table of all commands.
 */
#include "lib/log.h"
#include "server/cmd.h"

#define RUN_FLAGS                                                                                  \
	{ .name = "bindAddress",                                                                   \
		.type = CLI_STRING,                                                                \
		.help = "IP address or DNS name of the server" },                                  \
		{ .name = "serverPort", .type = CLI_INT, .help = "Port number of the server" },    \
		{ .name = "config",                                                                \
			.type = CLI_STRING,                                                        \
			.value = SERVER_CONFIG_DEFAULT,                                            \
			.choices = "@file",                                                        \
			.help = "Path to a config file" },                                         \
		{ .name = "dataDir",                                                               \
			.type = CLI_STRING,                                                        \
			.choices = "@dir",                                                         \
			.help = "Directory to store runtime data to" },                            \
		{ .name = "trustDomain",                                                           \
			.type = CLI_STRING,                                                        \
			.help = "The trust domain that this server belongs to" },                  \
		{ .name = "socketPath",                                                            \
			.type = CLI_STRING,                                                        \
			.choices = "@file",                                                        \
			.help = "Path to bind the server's API socket to" },                       \
		DAEMON_FLAGS

static const struct cli_flag run_flags[] = { RUN_FLAGS, CLI_END };
static const struct cli_flag validate_flags[] = {
	RUN_FLAGS,
	{ .name = "effective",
		.type = CLI_BOOL,
		.help = "Print the values in force, defaults included" },
	{ .name = "describe",
		.type = CLI_BOOL,
		.help = "Print every key that a config file may hold",
		.hidden = true },
	CLI_END,
};

static void read_flags(const struct cli *c, struct server_flags *f)
{
	*f = (struct server_flags){
		.config = cli_str(c, "config"),
		.bind_address = cli_str(c, "bindAddress"),
		.socket_path = cli_str(c, "socketPath"),
		.trust_domain = cli_str(c, "trustDomain"),
		.data_dir = cli_str(c, "dataDir"),
		.server_port = (int)cli_int(c, "serverPort"),
		.daemon = daemon_read_flags(c),
	};
	if (cli_int(c, "serverPort") > 65535)
		f->server_port = 65536; /* refused with the option's own words */
}

/* ---- run ---- */

static int run(struct cli *c)
{
	AUTO_BUF struct buf problems = BUF_INIT;
	struct server_options o;
	struct server_flags f;
	struct err e;
	int r;

	read_flags(c, &f);
	if (server_options_load(&o, &f, &problems, &e))
		return cli_invalid(c, "", &problems, &e);
	r = daemon_begin(&o.daemon, &e);
	if (r) {
		cli_errorf(c, "%s\n", e.msg);
		server_options_deinit(&o);
		return 1;
	}
	o.flags = &f;
	r = server_run(&o);
	server_options_deinit(&o);
	return r;
}

const struct cli_command cmd_run[] = {
	{ "run", "Runs the server", run_flags, 0, run },
	{ .name = NULL },
};

/* ---- validate ---- */

static int describe(struct cli *c)
{
	AUTO_BUF struct buf b = BUF_INIT;

	server_options_describe(&b);
	cli_printf(c, "%s", buf_cstr(&b));
	return 0;
}

static int validate(struct cli *c)
{
	AUTO_BUF struct buf problems = BUF_INIT;
	AUTO_BUF struct buf effective = BUF_INIT;
	struct server_options o;
	struct server_flags f;
	struct err e;

	if (cli_bool(c, "describe"))
		return describe(c);
	read_flags(c, &f);
	if (server_options_load(&o, &f, &problems, &e))
		return cli_invalid(c,
			problems.len ? "SPIRE server configuration file is invalid:\n"
				     : "SPIRE server configuration file is invalid: ",
			&problems, &e);
	for (size_t i = 0; i < o.daemon.warnings.n; i++)
		cli_errorf(c, "warning: %s\n", o.daemon.warnings.v[i]);
	if (cli_bool(c, "effective")) {
		server_options_print(&o, &effective);
		cli_printf(c, "%s", buf_cstr(&effective));
	}
	cli_printf(c, "SPIRE server configuration file is valid.\n");
	server_options_deinit(&o);
	return 0;
}

const struct cli_command cmd_validate[] = {
	{ "validate", "Validates a server configuration file", validate_flags, 0, validate },
	{ .name = NULL },
};

/* ---- all of them ---- */

static const struct cli_command *const commands[] = { cmd_run, cmd_validate, cmd_entry, cmd_agent,
	cmd_bundle, cmd_federation, cmd_token, cmd_x509, cmd_jwt, cmd_healthcheck, cmd_logger,
	cmd_debug, cmd_localauthority, cmd_upstreamauthority, cmd_import, cmd_controller, NULL };

const struct cli_program server_program = {
	.name = "assay-server",
	.version = ASSAY_VERSION,
	.commands = commands,
	.socket = {
		.path = SERVER_SOCKET_DEFAULT,
		.help = "Path to the server's API socket",
		.env = { "ASSAY_SERVER_PRIVATE_SOCKET", "SPIRE_SERVER_PRIVATE_SOCKET" },
		.env_template = { "ASSAY_SERVER_PRIVATE_SOCKET_TEMPLATE",
			"SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE" },
	},
};

/* `run` and `validate`: the configuration, checked; then the daemon. And the table of all commands.
 */
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>

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
		{ .name = "logFile",                                                               \
			.type = CLI_STRING,                                                        \
			.choices = "@file",                                                        \
			.help = "File to write logs to" },                                         \
		{ .name = "logFormat",                                                             \
			.type = CLI_STRING,                                                        \
			.choices = "text|json",                                                    \
			.help = "'text' or 'json'" },                                              \
		{ .name = "logSourceLocation",                                                     \
			.type = CLI_BOOL,                                                          \
			.help = "Include source file and line number in log lines" },              \
		{ .name = "logLevel",                                                              \
			.type = CLI_STRING,                                                        \
			.choices = "debug|info|warn|error",                                        \
			.help = "'debug', 'info', 'warn', or 'error'" },                           \
		{ .name = "trustDomain",                                                           \
			.type = CLI_STRING,                                                        \
			.help = "The trust domain that this server belongs to" },                  \
		{ .name = "socketPath",                                                            \
			.type = CLI_STRING,                                                        \
			.choices = "@file",                                                        \
			.help = "Path to bind the server's API socket to" },                       \
	{                                                                                          \
		.name = "expandEnv", .type = CLI_BOOL,                                             \
		.help = "Expand environment variables in the config file"                          \
	}

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
		.log_file = cli_str(c, "logFile"),
		.log_format = cli_str(c, "logFormat"),
		.log_level = cli_str(c, "logLevel"),
		.server_port = (int)cli_int(c, "serverPort"),
		.expand_env = cli_bool(c, "expandEnv"),
		.log_source_location = cli_bool(c, "logSourceLocation"),
	};
	if (cli_int(c, "serverPort") > 65535)
		f->server_port = 65536; /* refused with the option's own words */
}

/* ---- run ---- */

static int set_up_log(const struct server_options *o, struct err *e)
{
	log_set_level(o->log_level);
	log_set_json(o->log_json);
	log_set_source_location(o->log_source_location);
	return o->log_file ? log_set_file(o->log_file, e) : 0;
}

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
	r = set_up_log(&o, &e);
	if (r) {
		cli_errorf(c, "%s\n", e.msg);
		server_options_deinit(&o);
		return 1;
	}
	/* What the daemon writes is never for others, and a peer that goes away is no reason to
	 * die. */
	umask(umask(0) | 027);
	signal(SIGPIPE, SIG_IGN);
	for (size_t i = 0; i < o.warnings.n; i++)
		log_event(LOG_WARN, "config", o.warnings.v[i], NULL);
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
	for (size_t i = 0; i < o.warnings.n; i++)
		cli_errorf(c, "warning: %s\n", o.warnings.v[i]);
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
	cmd_debug, cmd_localauthority, cmd_upstreamauthority, cmd_import, NULL };

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

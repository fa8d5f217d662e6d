/* `files`: identities in files, as spiffe-helper keeps them. */
#include <signal.h>

#include "agent/cmd.h"
#include "agent/files.h"
#include "lib/log.h"

#define CONFIG_FLAG                                                                                \
	{ .name = "config",                                                                        \
		.type = CLI_STRING,                                                                \
		.value = FILES_CONFIG_DEFAULT,                                                     \
		.choices = "@file",                                                                \
		.help = "Path to the configuration file; spiffe-helper's keys are known" },        \
	{                                                                                          \
		.name = "daemon-mode", .type = CLI_BOOL, .value = "true",                          \
		.help = "Keep the files current, or write them once and end; goes before "         \
			"daemon_mode in the file"                                                  \
	}

static const struct cli_flag run_flags[] = {
	CONFIG_FLAG,
	{ .name = "version", .type = CLI_BOOL, .help = "Print the version" },
	CLI_END,
};
static const struct cli_flag validate_flags[] = {
	CONFIG_FLAG,
	{ .name = "effective",
		.type = CLI_BOOL,
		.help = "Print the values in force, defaults included" },
	{ .name = "describe",
		.type = CLI_BOOL,
		.help = "Print every key that a config file may hold",
		.hidden = true },
	CLI_END,
};

static int load(struct cli *c, struct files_options *ret, const char *prefix)
{
	AUTO_BUF struct buf problems = BUF_INIT;
	struct files_flags f = { .config = cli_str(c, "config"),
		.daemon = cli_given(c, "daemon-mode") ? cli_bool(c, "daemon-mode") : -1 };
	struct err e;

	return files_options_load(ret, &f, &problems, &e) ? cli_invalid(c, prefix, &problems, &e)
							  : 0;
}

static int run(struct cli *c)
{
	struct files_options o;
	int r;

	if (cli_bool(c, "version")) {
		cli_printf(c, "%s\n", cli_program(c)->version);
		return 0;
	}
	r = load(c, &o, "");
	if (r)
		return r;
	log_set_level(o.log_level);
	log_set_json(o.log_json);
	signal(SIGPIPE, SIG_IGN);
	for (size_t i = 0; i < o.warnings.n; i++)
		log_event(LOG_WARN, "config", o.warnings.v[i], NULL);
	r = files_run(&o);
	files_options_deinit(&o);
	return r;
}

static int validate(struct cli *c)
{
	AUTO_BUF struct buf text = BUF_INIT;
	struct files_options o;

	if (cli_bool(c, "describe")) {
		files_options_describe(&text);
		cli_printf(c, "%s", buf_cstr(&text));
		return 0;
	}
	if (load(c, &o, "The configuration file is invalid:\n"))
		return 1;
	for (size_t i = 0; i < o.warnings.n; i++)
		cli_errorf(c, "warning: %s\n", o.warnings.v[i]);
	if (cli_bool(c, "effective")) {
		files_options_print(&o, &text);
		cli_printf(c, "%s", buf_cstr(&text));
	}
	cli_printf(c, "The configuration file is valid.\n");
	files_options_deinit(&o);
	return 0;
}

const struct cli_command cmd_files[] = {
	{ "files", "Keeps identities and bundles in files, for programs that read files", run_flags,
		0, run },
	{ "files validate", "Validates a configuration file of files", validate_flags, 0,
		validate },
	{ .name = NULL },
};

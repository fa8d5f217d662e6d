/* `csi`: the CSI driver, a program of its own beside the agent. */
#include <stdlib.h>
#include <string.h>

#include "agent/cmd.h"
#include "agent/csi.h"
#include "lib/log.h"

/* Names and defaults of the first five: spiffe-csi-driver's; of the next two:
 * node-driver-registrar's. */
static const struct cli_flag csi_flags[] = {
	{ .name = "node-id",
		.type = CLI_STRING,
		.help = "Kubernetes Node ID. If unset, the node ID is obtained from the "
			"environment (i.e., -node-id-env)" },
	{ .name = "node-id-env",
		.type = CLI_STRING,
		.value = "MY_NODE_NAME",
		.help = "Envvar from which to obtain the node ID. Overridden by -node-id." },
	{ .name = "csi-socket-path",
		.type = CLI_STRING,
		.value = CSI_SOCKET_DEFAULT,
		.choices = "@file",
		.help = "Path to the CSI socket" },
	{ .name = "plugin-name",
		.type = CLI_STRING,
		.value = CSI_NAME_DEFAULT,
		.help = "Plugin name to register" },
	{ .name = "workload-api-socket-dir",
		.type = CLI_STRING,
		.choices = "@dir",
		.help = "Path to the Workload API socket directory" },
	{ .name = "kubelet-registration-path",
		.type = CLI_STRING,
		.choices = "@file",
		.help = "Where the kubelet finds the CSI socket on the host. If set, the driver "
			"registers itself with the kubelet" },
	{ .name = "plugin-registration-path",
		.type = CLI_STRING,
		.value = CSI_REGISTRATION_DEFAULT,
		.choices = "@dir",
		.help = "Path to the kubelet's directory of plugin sockets" },
	{ .name = "host-writable",
		.type = CLI_BOOL,
		.help = "Leave the mounts writable for the host, so that a container runtime can "
			"relabel them (SELinux). Pods still have them read-only" },
	{ .name = "logFormat",
		.type = CLI_STRING,
		.value = "text",
		.choices = "text|json",
		.help = "'text' or 'json'" },
	{ .name = "logLevel",
		.type = CLI_STRING,
		.value = "info",
		.choices = "debug|info|warn|error",
		.help = "'debug', 'info', 'warn', or 'error'" },
	CLI_END,
};

static const char *node_id(const struct cli *c)
{
	const char *env = getenv(cli_str(c, "node-id-env"));

	if (cli_str(c, "node-id")[0])
		return cli_str(c, "node-id");
	return env ? env : "";
}

static int set_up_log(const struct cli *c, struct err *e)
{
	const char *format = cli_str(c, "logFormat");
	enum log_level level;
	int r = log_level_parse(cli_str(c, "logLevel"), &level, e);

	if (r)
		return r;
	if (strcmp(format, "text") != 0 && strcmp(format, "json") != 0)
		return err_set(e, ERR_INVALID, "unknown log format: \"%s\"", format);
	log_set_level(level);
	log_set_json(strcmp(format, "json") == 0);
	return 0;
}

static int run(struct cli *c)
{
	struct csi_options o = {
		.node_id = node_id(c),
		.plugin_name = cli_str(c, "plugin-name"),
		.socket_path = cli_str(c, "csi-socket-path"),
		.workload_dir = cli_str(c, "workload-api-socket-dir"),
		.kubelet_path = cli_str(c, "kubelet-registration-path"),
		.registration_dir = cli_str(c, "plugin-registration-path"),
		.host_writable = cli_bool(c, "host-writable"),
	};
	struct err e;

	if (set_up_log(c, &e))
		return cli_fail(c, &e);
	return csi_run(&o);
}

const struct cli_command cmd_csi[] = {
	{ "csi", "Runs the CSI driver that gives pods the agent's socket", csi_flags, 0, run },
	{ .name = NULL },
};

/*
 * The operator's commands: one table per noun, one file each (cmd_<noun>.c). main.c hands
 * server_program to cli_main().
 */
#ifndef ASSAY_SERVER_CMD_H
#define ASSAY_SERVER_CMD_H

#include "lib/cli.h"
#include "server/options.h"

extern const struct cli_command cmd_run[], cmd_validate[], cmd_entry[], cmd_agent[], cmd_bundle[],
	cmd_federation[], cmd_token[], cmd_x509[], cmd_jwt[], cmd_healthcheck[], cmd_logger[],
	cmd_debug[], cmd_localauthority[], cmd_upstreamauthority[], cmd_import[], cmd_controller[];

/* All of them, and the sockets' defaults. */
extern const struct cli_program server_program;

/* The daemon: `run` loads and checks the options, sets up the log, then calls this (server.c).
 * Returns the exit code when told to stop, or after a failure that it has logged. */
int server_run(const struct server_options *o);

#endif

/*
 * The agent's commands: one table per noun, one file each (cmd_<noun>.c). main.c hands
 * agent_program to cli_main().
 */
#ifndef ASSAY_AGENT_CMD_H
#define ASSAY_AGENT_CMD_H

#include "agent/options.h"
#include "lib/cli.h"

extern const struct cli_command cmd_run[], cmd_validate[], cmd_api[], cmd_explain[], cmd_files[],
	cmd_healthcheck[], cmd_logger[], cmd_debug[], cmd_csi[];

/* All of them, and the sockets' defaults. */
extern const struct cli_program agent_program;

/* The daemon: `run` loads and checks the options, sets up the log, then calls this (agent.c).
 * Returns the exit code when told to stop, or after a failure that it has logged. */
int agent_run(struct agent_options *o);

#endif

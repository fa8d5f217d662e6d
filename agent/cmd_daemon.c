/* `healthcheck`, `logger`, `debug`: the running agent. */
#include <inttypes.h>
#include <stdlib.h>

#include "agent/cmd.h"
#include "lib/clock.h"
#include "spire/api/agent/debug/v1/debug.pb-c.h"

static int healthcheck(struct cli *c)
{
	return cli_healthcheck(c, "Agent");
}

const struct cli_command cmd_healthcheck[] = {
	{ "healthcheck", "Determines agent health status", cli_healthcheck_flags, CLI_WITH_SOCKET,
		healthcheck },
	{ .name = NULL },
};

/* ---- logger ---- */

#define LOGGER "spire.api.agent.logger.v1.Logger"

static int logger_get(struct cli *c)
{
	return cli_logger_get(c, LOGGER);
}

static int logger_set(struct cli *c)
{
	return cli_logger_set(c, LOGGER);
}

static int logger_reset(struct cli *c)
{
	return cli_logger_reset(c, LOGGER);
}

#define COMMON (CLI_WITH_ADMIN | CLI_WITH_OUTPUT)
const struct cli_command cmd_logger[] = {
	{ "logger get", "Gets the logger details", NULL, COMMON, logger_get },
	{ "logger reset", "Reset the logger details to launch level", NULL, COMMON, logger_reset },
	{ "logger set", "Sets the logger details", cli_logger_set_flags, COMMON, logger_set },
	{ .name = NULL },
};

/* ---- debug ---- */

static void print_info(struct cli *c, const Spire__Agent__Debug__V1__GetInfoResponse *i)
{
	AUTO(free) char *uptime = duration_format(i->uptime * NS_PER_SEC);
	AUTO(free)
	char *sync =
		i->last_sync_success ? cli_time_rfc3339(i->last_sync_success) : xstrdup("(never)");

	cli_printf(c, "Agent Debug Info:\n");
	cli_printf(c, "  Uptime:                          %s\n", uptime);
	cli_printf(c, "  Last Sync Success:               %s\n", sync);
	cli_printf(c, "  Cached X.509 SVIDs:              %d\n", (int)i->cached_x509_svids_count);
	cli_printf(c, "  Cached JWT SVIDs:                %d\n", (int)i->cached_jwt_svids_count);
	cli_printf(c, "  Cached SVID Store X.509 SVIDs:   %d\n",
		(int)i->cached_svidstore_x509_svids_count);
	if (i->n_svid_chain)
		cli_printf(c, "  SVID Chain:\n");
	for (size_t k = 0; k < i->n_svid_chain; k++) {
		AUTO(free) char *id = cli_id_text(i->svid_chain[k]->id);
		AUTO(free) char *expires = cli_time_rfc3339(i->svid_chain[k]->expires_at);

		cli_printf(c, "    [%zu] SPIFFE ID:  %s\n", k, *id ? id : "(none)");
		cli_printf(c, "        Subject:    %s\n", i->svid_chain[k]->subject);
		cli_printf(c, "        Expires At: %s\n", expires);
	}
}

static int getinfo(struct cli *c)
{
	Spire__Agent__Debug__V1__GetInfoRequest rq =
		SPIRE__AGENT__DEBUG__V1__GET_INFO_REQUEST__INIT;
	ProtobufCMessage *m = NULL;
	struct err e;

	if (cli_call(c, "/spire.agent.debug.v1.Debug/GetInfo", &rq.base,
		    &spire__agent__debug__v1__get_info_response__descriptor, &m, &e))
		return cli_fail(c, &e);
	if (cli_json(c)) {
		const ProtobufCMessage *one = m;

		cli_print_json(c, &one, 1);
	} else {
		print_info(c, (const Spire__Agent__Debug__V1__GetInfoResponse *)m);
	}
	protobuf_c_message_free_unpacked(m, NULL);
	return 0;
}

const struct cli_command cmd_debug[] = {
	{ "debug getinfo", "Prints debug information about the agent", NULL, COMMON, getinfo },
	{ .name = NULL },
};

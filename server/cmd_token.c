/* `token`: join tokens. */
#include "server/cmd.h"
#include "server/cmd_util.h"
#include "spire/api/server/agent/v1/agent.pb-c.h"

static const struct cli_flag generate_flags[] = {
	{ .name = "ttl", .type = CLI_INT, .value = "600", .help = "Token TTL in seconds" },
	{ .name = "spiffeID",
		.type = CLI_STRING,
		.help = "Additional SPIFFE ID to assign the token owner (optional)" },
	CLI_END,
};

static int fill(
	struct cli *c, Spire__Api__Server__Agent__V1__CreateJoinTokenRequest *rq, struct err *e)
{
	int r = 0;

	if (*cli_str(c, "spiffeID"))
		r = cmd_id(cli_str(c, "spiffeID"), &rq->agent_id, e);
	return r ? r : cmd_int32(cli_int(c, "ttl"), "TTL", &rq->ttl, e);
}

static int generate(struct cli *c)
{
	Spire__Api__Server__Agent__V1__CreateJoinTokenRequest rq =
		SPIRE__API__SERVER__AGENT__V1__CREATE_JOIN_TOKEN_REQUEST__INIT;
	AUTO(cmd_free_message) ProtobufCMessage *m = NULL;
	struct err e;
	int r = fill(c, &rq, &e);

	if (!r)
		r = cli_call(c, "/spire.api.server.agent.v1.Agent/CreateJoinToken", &rq.base,
			&spire__api__types__join_token__descriptor, &m, &e);
	if (rq.agent_id)
		spire__api__types__spiffeid__free_unpacked(rq.agent_id, NULL);
	if (r)
		return cli_fail(c, &e);
	if (cmd_printed_json(c, m))
		return 0;
	cli_printf(c, "Token: %s\n", ((const Spire__Api__Types__JoinToken *)m)->value);
	if (!*cli_str(c, "spiffeID"))
		cli_printf(c, "Warning: Missing SPIFFE ID.\n");
	return 0;
}

const struct cli_command cmd_token[] = {
	{ "token generate", "Generates a join token", generate_flags,
		CLI_WITH_SOCKET | CLI_WITH_OUTPUT, generate },
	{ .name = NULL },
};

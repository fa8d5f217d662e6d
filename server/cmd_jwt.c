/* `jwt mint`. */
#include <stdlib.h>
#include <string.h>

#include "lib/clock.h"
#include "server/cmd.h"
#include "server/cmd_util.h"
#include "spire/api/server/svid/v1/svid.pb-c.h"

static const struct cli_flag mint_flags[] = {
	{ .name = "spiffeID", .type = CLI_STRING, .help = "SPIFFE ID of the JWT-SVID" },
	{ .name = "ttl", .type = CLI_DURATION, .help = "TTL of the JWT-SVID" },
	{ .name = "audience",
		.type = CLI_STRINGS,
		.help = "Audience claim that will be included in the SVID. Can be used more than "
			"once." },
	{ .name = "write",
		.type = CLI_STRING,
		.choices = "@file",
		.help = "File to write token to instead of stdout" },
	CLI_END,
};

static int mint_svid(struct cli *c, ProtobufCMessage **ret, struct err *e)
{
	Spire__Api__Server__Svid__V1__MintJWTSVIDRequest rq =
		SPIRE__API__SERVER__SVID__V1__MINT_JWTSVIDREQUEST__INIT;
	const struct strings *audience = cli_strings(c, "audience");
	int r;

	if (!*cli_str(c, "spiffeID"))
		return err_set(e, ERR_INVALID, "spiffeID must be specified");
	if (!audience->n)
		return err_set(e, ERR_INVALID, "at least one audience must be specified");
	r = cmd_id(cli_str(c, "spiffeID"), &rq.id, e);
	if (!r)
		r = cmd_ttl(cli_duration_ns(c, "ttl"), &rq.ttl, e);
	if (!r) {
		rq.audience = audience->v;
		rq.n_audience = audience->n;
		r = cli_call(c, "/spire.api.server.svid.v1.SVID/MintJWTSVID", &rq.base,
			&spire__api__server__svid__v1__mint_jwtsvidresponse__descriptor, ret, e);
		if (r)
			err_wrap(e, "unable to mint SVID");
	}
	if (rq.id)
		spire__api__types__spiffeid__free_unpacked(rq.id, NULL);
	return r;
}

static int write_token(struct cli *c, const char *token, struct err *e)
{
	const char *path = cli_str(c, "write");
	int r = buf_write_file(bytes_str(token), path, 0600, e);

	if (r)
		return err_wrap(e, "unable to write token");
	cli_printf(c, "JWT-SVID written to %s\n", path);
	return 0;
}

static int mint(struct cli *c)
{
	AUTO(cmd_free_message) ProtobufCMessage *m = NULL;
	const Spire__Api__Types__JWTSVID *svid = NULL;
	struct err e;
	int r = mint_svid(c, &m, &e);

	if (!r) {
		svid = ((const Spire__Api__Server__Svid__V1__MintJWTSVIDResponse *)m)->svid;
		if (!svid || !*svid->token)
			r = err_set(&e, ERR_INTERNAL, "server response missing token");
	}
	if (r)
		return cli_fail(c, &e);
	if (wall_sub_ns(wall_of_sec(svid->expires_at), clock_wall()) < cli_duration_ns(c, "ttl")) {
		AUTO(free) char *when = cli_time_rfc3339(svid->expires_at);

		cli_errorf(c,
			"JWT-SVID lifetime was capped shorter than specified ttl; expires \"%s\"\n",
			when);
	}
	if (*cli_str(c, "write"))
		return write_token(c, svid->token, &e) ? cli_fail(c, &e) : 0;
	if (!cmd_printed_json(c, m))
		cli_printf(c, "%s\n", svid->token);
	return 0;
}

const struct cli_command cmd_jwt[] = {
	{ "jwt mint", "Mints a JWT-SVID", mint_flags, CLI_WITH_SOCKET | CLI_WITH_OUTPUT, mint },
	{ .name = NULL },
};

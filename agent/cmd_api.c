/* `api`: the Workload API, as a workload sees it. */
#include "agent/cmd_api.h"

#include <stdlib.h>
#include <string.h>

#include "agent/cmd.h"
#include "lib/clock.h"
#include "spiffe/workload/workload.pb-c.h"

/* Callers must send this (SPIFFE Workload API, 4.1: "workload.spiffe.io"). */
static const char *const metadata[] = { "workload.spiffe.io", "true", NULL };

const char *const *api_metadata(void)
{
	return metadata;
}

#define TIMEOUT_FLAG                                                                               \
	{                                                                                          \
		.name = "timeout", .type = CLI_DURATION, .value = "5s",                            \
		.help = "Time to wait for a response"                                              \
	}

static const struct cli_flag x509_flags[] = {
	TIMEOUT_FLAG,
	{ .name = "silent", .type = CLI_BOOL, .help = "Suppress stdout" },
	{ .name = "write",
		.type = CLI_STRING,
		.choices = "@dir",
		.help = "Write SVID data to the specified path (optional; only available for "
			"pretty "
			"output format)" },
	CLI_END,
};
static const struct cli_flag jwt_flags[] = {
	TIMEOUT_FLAG,
	{ .name = "audience",
		.type = CLI_COMMA,
		.help = "comma separated list of audience values" },
	{ .name = "spiffeID", .type = CLI_STRING, .help = "SPIFFE ID subject (optional)" },
	{ .name = "format",
		.type = CLI_STRING,
		.choices = "pretty|json",
		.help = "deprecated; use -output",
		.as_output = true },
	CLI_END,
};
static const struct cli_flag validate_flags[] = {
	TIMEOUT_FLAG,
	{ .name = "audience", .type = CLI_STRING, .help = "expected audience value" },
	{ .name = "svid", .type = CLI_STRING, .help = "JWT SVID" },
	CLI_END,
};

/* These commands say what went wrong without "Error: " before it. */
static int fail(struct cli *c, const struct err *e)
{
	cli_errorf(c, "%s\n", e->msg);
	return 1;
}

static int timeout_ms(const struct cli *c)
{
	int64_t ms = cli_duration_ns(c, "timeout") / NS_PER_MS;

	return ms <= 0 ? 0 : ms > INT32_MAX ? INT32_MAX : (int)ms;
}

static int first_of(struct cli *c, const char *method, const ProtobufCMessage *rq,
	const ProtobufCMessageDescriptor *response, ProtobufCMessage **ret, struct err *e)
{
	struct rpc_stream_options o = {
		.method = method,
		.response = response,
		.metadata = metadata,
		.timeout_ms = timeout_ms(c),
		.fail_fast = true,
	};

	return cli_stream_first(c, &o, rq, ret, e);
}

static int call(struct cli *c, const char *method, const ProtobufCMessage *rq,
	const ProtobufCMessageDescriptor *response, ProtobufCMessage **ret, struct err *e)
{
	struct rpc_unary_options o = {
		.method = method,
		.request = rq,
		.response = response,
		.metadata = metadata,
		.timeout_ms = timeout_ms(c) ? timeout_ms(c) : INT32_MAX,
		.fail_fast = true,
	};

	return cli_call_with(c, &o, ret, e);
}

/* ---- fetch x509 ---- */

static int fetch_x509(struct cli *c)
{
	X509SVIDRequest rq = X509_SVIDREQUEST__INIT;
	struct mono start = clock_mono();
	struct api_svids svids = { NULL, 0 };
	ProtobufCMessage *m = NULL;
	struct err e;
	int r = first_of(c, "/SpiffeWorkloadAPI/FetchX509SVID", &rq.base,
		&x509_svidresponse__descriptor, &m, &e);
	int64_t took = clock_mono().ns - start.ns;

	if (r)
		return fail(c, &e);
	if (cli_json(c)) {
		const ProtobufCMessage *one = m;

		cli_print_json(c, &one, 1);
	} else {
		r = api_svids_parse(&svids, (const X509SVIDResponse *)m, &e);
		if (!r && !cli_bool(c, "silent"))
			api_svids_print(c, &svids, took);
		if (!r && *cli_str(c, "write"))
			r = api_svids_write(c, &svids, cli_str(c, "write"), &e);
		api_svids_deinit(&svids);
	}
	api_free_x509((X509SVIDResponse *)m);
	return r ? fail(c, &e) : 0;
}

/* ---- fetch jwt ---- */

static void print_jwts(
	struct cli *c, const JWTSVIDResponse *svids, const JWTBundlesResponse *bundles)
{
	for (size_t i = 0; i < svids->n_svids; i++) {
		const JWTSVID *s = svids->svids[i];

		cli_printf(c, "token(%s):\n\t%s\n", s->spiffe_id, s->svid);
		if (*s->hint)
			cli_printf(c, "hint(%s):\n\t%s\n", s->spiffe_id, s->hint);
	}
	for (size_t i = 0; i < bundles->n_bundles; i++)
		cli_printf(c, "bundle(%s):\n\t%.*s\n", bundles->bundles[i]->key,
			(int)bundles->bundles[i]->value.len,
			(const char *)bundles->bundles[i]->value.data);
}

static int fetch_both(
	struct cli *c, ProtobufCMessage **ret_svids, ProtobufCMessage **ret_bundles, struct err *e)
{
	JWTBundlesRequest brq = JWTBUNDLES_REQUEST__INIT;
	JWTSVIDRequest rq = JWTSVIDREQUEST__INIT;
	const struct strings *audience = cli_strings(c, "audience");
	int r;

	if (!audience->n)
		return err_set(e, ERR_INVALID, "audience must be specified");
	rq.audience = audience->v;
	rq.n_audience = audience->n;
	rq.spiffe_id = (char *)(uintptr_t)cli_str(c, "spiffeID");
	r = first_of(c, "/SpiffeWorkloadAPI/FetchJWTBundles", &brq.base,
		&jwtbundles_response__descriptor, ret_bundles, e);
	if (r) /* SPIRE's words for an agent that is not there, and only for that */
		return strstr(e->msg, "dial unix ") ? err_wrap(e, "failed to receive JWT bundles")
						    : r;
	return call(c, "/SpiffeWorkloadAPI/FetchJWTSVID", &rq.base, &jwtsvidresponse__descriptor,
		ret_svids, e);
}

static int fetch_jwt(struct cli *c)
{
	ProtobufCMessage *svids = NULL, *bundles = NULL;
	struct err e;
	int r = fetch_both(c, &svids, &bundles, &e);

	if (!r && cli_json(c)) {
		const ProtobufCMessage *both[] = { svids, bundles };

		cli_print_json(c, both, 2);
	} else if (!r) {
		print_jwts(c, (const JWTSVIDResponse *)svids, (const JWTBundlesResponse *)bundles);
	}
	if (svids)
		protobuf_c_message_free_unpacked(svids, NULL);
	if (bundles)
		protobuf_c_message_free_unpacked(bundles, NULL);
	return r ? fail(c, &e) : 0;
}

/* ---- validate jwt ---- */

static int ask_valid(struct cli *c, ProtobufCMessage **ret, struct err *e)
{
	ValidateJWTSVIDRequest rq = VALIDATE_JWTSVIDREQUEST__INIT;
	const char *reason;
	int r;

	if (!*cli_str(c, "audience"))
		return err_set(e, ERR_INVALID, "audience must be specified");
	if (!*cli_str(c, "svid"))
		return err_set(e, ERR_INVALID, "svid must be specified");
	rq.audience = (char *)(uintptr_t)cli_str(c, "audience");
	rq.svid = (char *)(uintptr_t)cli_str(c, "svid");
	r = call(c, "/SpiffeWorkloadAPI/ValidateJWTSVID", &rq.base,
		&validate_jwtsvidresponse__descriptor, ret, e);
	if (r == ERR_INVALID) {
		AUTO(free) char *msg = xstrdup(e->msg);

		reason = strstr(msg, " desc = ");
		return err_set(
			e, r, "SVID is not valid: %s", reason ? reason + strlen(" desc = ") : msg);
	}
	return r ? err_wrap(e, "unable to validate JWT SVID") : 0;
}

static int validate_jwt(struct cli *c)
{
	AUTO_BUF struct buf claims = BUF_INIT;
	const ValidateJWTSVIDResponse *rs;
	ProtobufCMessage *m = NULL;
	struct err e;

	if (ask_valid(c, &m, &e))
		return fail(c, &e);
	rs = (const ValidateJWTSVIDResponse *)m;
	if (cli_json(c)) {
		const ProtobufCMessage *one = m;

		cli_print_json(c, &one, 1);
	} else {
		if (rs->claims)
			pbjson_write(&rs->claims->base, &claims);
		cli_printf(c, "SVID is valid.\nSPIFFE ID : %s\nClaims    : %s\n", rs->spiffe_id,
			rs->claims ? buf_cstr(&claims) : "{}");
	}
	protobuf_c_message_free_unpacked(m, NULL);
	return 0;
}

#define COMMON (CLI_WITH_SOCKET | CLI_WITH_OUTPUT)
const struct cli_command cmd_api[] = {
	{ "api fetch", "Fetches X509 SVIDs from the Workload API", x509_flags, COMMON, fetch_x509 },
	{ "api fetch jwt", "Fetches a JWT SVID from the Workload API", jwt_flags, COMMON,
		fetch_jwt },
	{ "api fetch x509", "Fetches X509 SVIDs from the Workload API", x509_flags, COMMON,
		fetch_x509 },
	{ "api validate jwt", "Validates a JWT SVID", validate_flags, COMMON, validate_jwt },
	{ "api watch", "Attaches to the Workload API and prints updates as they're received", NULL,
		CLI_WITH_SOCKET, api_watch },
	{ .name = NULL },
};

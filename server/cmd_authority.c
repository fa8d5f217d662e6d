/* `localauthority` and `upstreamauthority`: the authorities of this server, rotated by hand. */
#include <inttypes.h>
#include <stdlib.h>

#include "assay/server/v1/authority.pb-c.h"
#include "server/cmd.h"
#include "server/cmd_util.h"
#include "spire/api/server/localauthority/v1/localauthority.pb-c.h"

#define V1(name) Spire__Api__Server__Localauthority__V1__##name
#define METHOD(name) "/spire.api.server.localauthority.v1.LocalAuthority/" name
#define COMMON (CLI_WITH_SOCKET | CLI_WITH_OUTPUT)

/* A little more than the server waits for agents. */
enum { TIMEOUT_MS = 90 * 1000 };

struct kind {
	const char *text;
	bool upstream; /* the authority's upstream is worth a line */
};
static const struct kind x509 = { "X.509", true }, jwt = { "JWT", false };

/* ---- printing ---- */

static void print_state(struct cli *c, const struct kind *k, const V1(AuthorityState) * s)
{
	AUTO(free) char *when = cli_time(s->expires_at, true);

	cli_printf(c, "  Authority ID: %s\n", s->authority_id);
	cli_printf(c, "  Expires at: %s\n", when);
	if (!k->upstream)
		return;
	if (*s->upstream_authority_subject_key_id)
		cli_printf(c, "  Upstream authority Subject Key ID: %s\n",
			s->upstream_authority_subject_key_id);
	else
		cli_printf(c, "  Upstream authority ID: No upstream authority\n");
}

static void print_slot(struct cli *c, const struct kind *k, const char *name, const char *none,
	const V1(AuthorityState) * s)
{
	cli_printf(c, "%s %s authority:\n", name, k->text);
	if (s)
		print_state(c, k, s);
	else
		cli_printf(c, "  No %s %s authority found\n", none, k->text);
}

/* Ours alone: who would be waited for. A server that cannot tell is SPIRE's. */
static void print_missing(struct cli *c, const V1(AuthorityState) * prepared)
{
	Assay__Server__V1__GetDistributionRequest rq =
		ASSAY__SERVER__V1__GET_DISTRIBUTION_REQUEST__INIT;
	AUTO(cmd_free_message) ProtobufCMessage *m = NULL;
	const Assay__Server__V1__GetDistributionResponse *rs;
	struct err e;

	if (prepared)
		rq.authority_id = prepared->authority_id;
	if (cli_call(c, "/assay.server.v1.Authority/GetDistribution", &rq.base,
		    &assay__server__v1__get_distribution_response__descriptor, &m, &e))
		return;
	rs = (const Assay__Server__V1__GetDistributionResponse *)m;
	if (!rs->missing)
		return;
	cli_printf(c, "\nAgents that have not seen the %s yet: %" PRIu64 "\n",
		prepared ? "prepared authority" : "present bundle", rs->missing);
	for (size_t i = 0; i < rs->n_agent_ids; i++)
		cli_printf(c, "  %s\n", rs->agent_ids[i]);
	if (rs->missing > rs->n_agent_ids)
		cli_printf(c, "  and %" PRIu64 " more\n", rs->missing - rs->n_agent_ids);
}

/* ---- show ---- */

static int show(struct cli *c, const struct kind *k, const char *method,
	const ProtobufCMessageDescriptor *response)
{
	V1(GetX509AuthorityStateRequest)
	rq = SPIRE__API__SERVER__LOCALAUTHORITY__V1__GET_X509_AUTHORITY_STATE_REQUEST__INIT;
	AUTO(cmd_free_message) ProtobufCMessage *m = NULL;
	const V1(GetX509AuthorityStateResponse) * rs;
	struct err e;

	if (cli_call(c, method, &rq.base, response, &m, &e)) {
		err_wrap(&e, "could not get %s authorities", k->text);
		return cli_fail(c, &e);
	}
	if (cmd_printed_json(c, m))
		return 0;
	rs = (const void *)m; /* the JWT kind's has the same fields */
	print_slot(c, k, "Active", "active", rs->active);
	cli_printf(c, "\n");
	print_slot(c, k, "Prepared", "prepared", rs->prepared);
	cli_printf(c, "\n");
	print_slot(c, k, "Old", "old", rs->old);
	print_missing(c, rs->prepared);
	return 0;
}

#define DESCRIPTOR(name) &spire__api__server__localauthority__v1__##name##__descriptor

static int show_x509(struct cli *c)
{
	return show(c, &x509, METHOD("GetX509AuthorityState"),
		DESCRIPTOR(get_x509_authority_state_response));
}

static int show_jwt(struct cli *c)
{
	return show(c, &jwt, METHOD("GetJWTAuthorityState"),
		DESCRIPTOR(get_jwtauthority_state_response));
}

/* ---- prepare, activate, taint, revoke ---- */

struct verb {
	const char *name, *done;
	bool takes_id;
};
static const struct verb prepare = { "prepare", "Prepared", false },
			 activate = { "activate", "Activated", true },
			 taint = { "taint", "Tainted", true },
			 revoke = { "revoke", "Revoked", true };

/* All these requests are empty or hold the one string; all answers hold one AuthorityState. */
static int force(struct cli *c, const struct kind *k, const struct verb *v, const char *method,
	const ProtobufCMessageDescriptor *response)
{
	static const char *const at_once[] = { "assay-force", "true", NULL };
	V1(ActivateX509AuthorityRequest)
	rq = SPIRE__API__SERVER__LOCALAUTHORITY__V1__ACTIVATE_X509_AUTHORITY_REQUEST__INIT;
	struct rpc_unary_options o = { .method = method,
		.request = &rq.base,
		.response = response,
		.timeout_ms = TIMEOUT_MS,
		.fail_fast = true };
	AUTO(cmd_free_message) ProtobufCMessage *m = NULL;
	AUTO(free) char *id = xstrdup(v->takes_id ? cli_str(c, "authorityID") : "");
	struct err e = ERR_INIT;

	if (v->takes_id && !*id) {
		(void)err_set(&e, ERR_INVALID, "an authority ID is required");
		return cli_fail(c, &e);
	}
	rq.authority_id = id;
	if (v == &activate && cli_bool(c, "force"))
		o.metadata = at_once;
	if (cli_call_with(c, &o, &m, &e)) {
		err_wrap(&e, "could not %s %s authority", v->name, k->text);
		return cli_fail(c, &e);
	}
	if (cmd_printed_json(c, m))
		return 0;
	cli_printf(c, "%s %s authority:\n", v->done, k->text);
	if (!((const V1(ActivateX509AuthorityResponse) *)m)->activated_authority) {
		(void)err_set(&e, ERR_INTERNAL,
			"internal error: expected to have %s %s authority information", v->name,
			k->text);
		return cli_fail(c, &e);
	}
	print_state(c, k, ((const V1(ActivateX509AuthorityResponse) *)m)->activated_authority);
	return 0;
}

#define FORCE(fn, kind, verb, method, response)                                                    \
	static int fn(struct cli *c)                                                               \
	{                                                                                          \
		return force(c, &(kind), &(verb), METHOD(method), DESCRIPTOR(response));           \
	}
FORCE(prepare_x509, x509, prepare, "PrepareX509Authority", prepare_x509_authority_response)
FORCE(activate_x509, x509, activate, "ActivateX509Authority", activate_x509_authority_response)
FORCE(taint_x509, x509, taint, "TaintX509Authority", taint_x509_authority_response)
FORCE(revoke_x509, x509, revoke, "RevokeX509Authority", revoke_x509_authority_response)
FORCE(prepare_jwt, jwt, prepare, "PrepareJWTAuthority", prepare_jwtauthority_response)
FORCE(activate_jwt, jwt, activate, "ActivateJWTAuthority", activate_jwtauthority_response)
FORCE(taint_jwt, jwt, taint, "TaintJWTAuthority", taint_jwtauthority_response)
FORCE(revoke_jwt, jwt, revoke, "RevokeJWTAuthority", revoke_jwtauthority_response)

#define ID_FLAG(kind, verb)                                                                        \
	{                                                                                          \
		.name = "authorityID", .type = CLI_STRING,                                         \
		.help = "Which " kind " authority to " verb ", by the ID that show prints"         \
	}
#define FORCE_FLAG                                                                                 \
	{                                                                                          \
		.name = "force", .type = CLI_BOOL,                                                 \
		.help = "Activate it although not all agents have seen it yet"                     \
	}

static const struct cli_flag activate_x509_flags[] = { ID_FLAG("X.509", "activate"), FORCE_FLAG,
	CLI_END };
static const struct cli_flag activate_jwt_flags[] = { ID_FLAG("JWT", "activate"), FORCE_FLAG,
	CLI_END };
static const struct cli_flag taint_x509_flags[] = { ID_FLAG("X.509", "taint"), CLI_END };
static const struct cli_flag taint_jwt_flags[] = { ID_FLAG("JWT", "taint"), CLI_END };
static const struct cli_flag revoke_x509_flags[] = { ID_FLAG("X.509", "revoke"), CLI_END };
static const struct cli_flag revoke_jwt_flags[] = { ID_FLAG("JWT", "revoke"), CLI_END };

const struct cli_command cmd_localauthority[] = {
	{ "localauthority jwt show",
		"Shows this server's JWT authorities, and who has not seen them", NULL, COMMON,
		show_jwt },
	{ "localauthority jwt prepare",
		"Makes the next JWT authority and puts its key into the bundle", NULL, COMMON,
		prepare_jwt },
	{ "localauthority jwt activate", "Signs with the prepared JWT authority from now on",
		activate_jwt_flags, COMMON, activate_jwt },
	{ "localauthority jwt taint",
		"Taints the old JWT authority: agents hand out its tokens no more", taint_jwt_flags,
		COMMON, taint_jwt },
	{ "localauthority jwt revoke", "Takes the tainted JWT authority out of the bundle",
		revoke_jwt_flags, COMMON, revoke_jwt },
	{ "localauthority x509 show",
		"Shows this server's X.509 authorities, and who has not seen them", NULL, COMMON,
		show_x509 },
	{ "localauthority x509 prepare",
		"Makes the next X.509 authority and puts its certificate into the bundle", NULL,
		COMMON, prepare_x509 },
	{ "localauthority x509 activate", "Signs with the prepared X.509 authority from now on",
		activate_x509_flags, COMMON, activate_x509 },
	{ "localauthority x509 taint",
		"Taints the old X.509 authority: all its SVIDs are signed anew", taint_x509_flags,
		COMMON, taint_x509 },
	{ "localauthority x509 revoke", "Takes the tainted X.509 authority out of the bundle",
		revoke_x509_flags, COMMON, revoke_x509 },
	{ .name = NULL },
};

/* ---- upstreamauthority ---- */

static int upstream(struct cli *c, const struct verb *v, const char *method,
	const ProtobufCMessageDescriptor *response)
{
	V1(TaintX509UpstreamAuthorityRequest)
	rq = SPIRE__API__SERVER__LOCALAUTHORITY__V1__TAINT_X509_UPSTREAM_AUTHORITY_REQUEST__INIT;
	AUTO(cmd_free_message) ProtobufCMessage *m = NULL;
	AUTO(free) char *id = xstrdup(cli_str(c, "subjectKeyID"));
	struct err e = ERR_INIT;

	if (!*id) {
		(void)err_set(&e, ERR_INVALID,
			"the Subject Key ID of the X.509 upstream authority is required");
		return cli_fail(c, &e);
	}
	rq.subject_key_id = id;
	if (cli_call(c, method, &rq.base, response, &m, &e)) {
		err_wrap(&e, "could not %s X.509 upstream authority", v->name);
		return cli_fail(c, &e);
	}
	if (cmd_printed_json(c, m))
		return 0;
	cli_printf(c, "%s X.509 upstream authority:\n", v->done);
	cli_printf(c, "  Subject Key ID: %s\n",
		((const V1(TaintX509UpstreamAuthorityResponse) *)m)
			->upstream_authority_subject_key_id);
	return 0;
}

static int taint_upstream(struct cli *c)
{
	return upstream(c, &taint, METHOD("TaintX509UpstreamAuthority"),
		DESCRIPTOR(taint_x509_upstream_authority_response));
}

static int revoke_upstream(struct cli *c)
{
	return upstream(c, &revoke, METHOD("RevokeX509UpstreamAuthority"),
		DESCRIPTOR(revoke_x509_upstream_authority_response));
}

#define SKID_FLAG(verb)                                                                            \
	{                                                                                          \
		.name = "subjectKeyID", .type = CLI_STRING,                                        \
		.help = "Which upstream authority to " verb ", by its subject key id in hex"       \
	}
static const struct cli_flag taint_upstream_flags[] = { SKID_FLAG("taint"), CLI_END };
static const struct cli_flag revoke_upstream_flags[] = { SKID_FLAG("revoke"), CLI_END };

const struct cli_command cmd_upstreamauthority[] = {
	{ "upstreamauthority taint",
		"Taints an upstream authority: all SVIDs under it are signed anew",
		taint_upstream_flags, COMMON, taint_upstream },
	{ "upstreamauthority revoke", "Takes a tainted upstream authority out of the bundle",
		revoke_upstream_flags, COMMON, revoke_upstream },
	{ .name = NULL },
};

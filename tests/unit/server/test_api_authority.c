/* The LocalAuthority service over the server's socket, and what is ours beside it. */
#include "tests/test.h"

#include "server_run.inc"

#include "assay/server/v1/authority.pb-c.h"
#include "spire/api/server/localauthority/v1/localauthority.pb-c.h"

#define AUTHORITY "/spire.api.server.localauthority.v1.LocalAuthority/"
#define LA(n) Spire__Api__Server__Localauthority__V1__##n
#define D(n) &spire__api__server__localauthority__v1__##n##__descriptor

/* All answers that hold one AuthorityState look alike. */
static char *forced(const char *method, const ProtobufCMessageDescriptor *d, const char *id,
	const char *const *metadata, struct err *e)
{
	LA(ActivateX509AuthorityRequest)
	rq = SPIRE__API__SERVER__LOCALAUTHORITY__V1__ACTIVATE_X509_AUTHORITY_REQUEST__INIT;
	AUTO(free) char *path = xasprintf(AUTHORITY "%s", method);
	struct rpc_unary_options o = { .method = path,
		.request = &rq.base,
		.response = d,
		.metadata = metadata,
		.timeout_ms = 20000 };
	ProtobufCMessage *m;
	char *ret;

	*e = ERR_INIT;
	rq.authority_id = text(id);
	if (rpc_unary_sync(loop, local, &o, &m, e))
		return NULL;
	ret = xstrdup(((LA(ActivateX509AuthorityResponse) *)m)->activated_authority->authority_id);
	protobuf_c_message_free_unpacked(m, NULL);
	return ret;
}

static void check_done(const char *method, const ProtobufCMessageDescriptor *d, const char *id)
{
	struct err e;
	AUTO(free) char *got = forced(method, d, id, NULL, &e);

	CHECK_STR(e.msg, "");
	CHECK_STR(got, id);
}

static void check_refused(const char *method, const ProtobufCMessageDescriptor *d, const char *id,
	int code, const char *msg)
{
	struct err e;
	AUTO(free) char *got = forced(method, d, id, NULL, &e);

	CHECK(!got);
	CHECK_INT(e.code, code);
	CHECK_STR(e.msg, msg);
}

static LA(GetX509AuthorityStateResponse) * state(void)
{
	LA(GetX509AuthorityStateRequest)
	rq = SPIRE__API__SERVER__LOCALAUTHORITY__V1__GET_X509_AUTHORITY_STATE_REQUEST__INIT;
	LA(GetX509AuthorityStateResponse) * rs;
	struct err e;

	CHECK_OK(call_on(local, AUTHORITY "GetX509AuthorityState", &rq,
		D(get_x509_authority_state_response), &rs, &e));
	return rs;
}

static void test_rotation(void)
{
	LA(GetX509AuthorityStateResponse) * st;
	AUTO(free) char *old = NULL, *new = NULL;
	struct err e;

	serve();
	st = state();
	CHECK(st->active && !st->prepared && !st->old);
	CHECK(st->active->expires_at > clock_wall().sec);
	old = xstrdup(st->active->authority_id);
	FREE(st);
	new = forced("PrepareX509Authority", D(prepare_x509_authority_response), "", NULL, &e);
	CHECK_STR(e.msg, "");
	check_refused("ActivateX509Authority", D(activate_x509_authority_response), old,
		ERR_INVALID, "unexpected authority ID");
	check_done("ActivateX509Authority", D(activate_x509_authority_response), new);
	check_done("TaintX509Authority", D(taint_x509_authority_response), old);
	check_done("RevokeX509Authority", D(revoke_x509_authority_response), old);
	st = state();
	CHECK_STR(st->active->authority_id, new);
	CHECK_STR(st->old->authority_id, old);
	FREE(st);
	finish();
}

static void test_jwt(void)
{
	AUTO(free) char *one = NULL, *two = NULL;
	struct err e;

	serve();
	one = forced("PrepareJWTAuthority", D(prepare_jwtauthority_response), "", NULL, &e);
	CHECK_INT(strlen(one), 32);
	check_done("ActivateJWTAuthority", D(activate_jwtauthority_response), one);
	two = forced("PrepareJWTAuthority", D(prepare_jwtauthority_response), "", NULL, &e);
	check_done("ActivateJWTAuthority", D(activate_jwtauthority_response), two);
	check_done("TaintJWTAuthority", D(taint_jwtauthority_response), one);
	check_done("RevokeJWTAuthority", D(revoke_jwtauthority_response), one);
	finish();
}

static void test_what_there_is_not(void)
{
	LA(GetWITAuthorityStateRequest)
	rq = SPIRE__API__SERVER__LOCALAUTHORITY__V1__GET_WITAUTHORITY_STATE_REQUEST__INIT;
	ProtobufCMessage *rs;
	struct err e;

	serve();
	check_refused("TaintX509UpstreamAuthority", D(taint_x509_upstream_authority_response), "x",
		ERR_PRECONDITION, "upstream authority is not configured");
	check_refused("RevokeX509UpstreamAuthority", D(revoke_x509_upstream_authority_response),
		"x", ERR_PRECONDITION, "upstream authority is not configured");
	CHECK_ERR(call_on(local, AUTHORITY "GetWITAuthorityState", &rq,
			  D(get_witauthority_state_response), &rs, &e),
		ERR_UNIMPLEMENTED);
	CHECK_CONTAINS(e.msg, "WIT-SVID functionality is not yet implemented");
	/* Nobody without rights, by TCP. */
	connect_remote();
	CHECK_ERR(call_on(remote, AUTHORITY "GetX509AuthorityState", &rq,
			  D(get_x509_authority_state_response), &rs, &e),
		ERR_DENIED);
	finish();
}

static void check_distribution(const char *id, int code, size_t missing)
{
	Assay__Server__V1__GetDistributionRequest rq =
		ASSAY__SERVER__V1__GET_DISTRIBUTION_REQUEST__INIT;
	Assay__Server__V1__GetDistributionResponse *rs;
	struct err e = ERR_INIT;

	rq.authority_id = text(id);
	CHECK_INT(call_on(local, "/assay.server.v1.Authority/GetDistribution", &rq,
			  &assay__server__v1__get_distribution_response__descriptor, &rs, &e),
		code);
	if (code)
		return;
	CHECK(rs->bundle_sequence > 0);
	CHECK_INT(rs->missing, missing);
	CHECK_INT(rs->n_agent_ids, missing);
	FREE(rs);
}

static void test_distribution(void)
{
	static const char *const at_once[] = { "assay-force", "true", NULL };
	AUTO(free) char *new = NULL, *got = NULL;
	struct err e;

	serve();
	check_distribution("", 0, 0);
	check_distribution("x", ERR_NOT_FOUND, 0);
	new = forced("PrepareX509Authority", D(prepare_x509_authority_response), "", NULL, &e);
	check_distribution(new, 0, 0);
	got = forced(
		"ActivateX509Authority", D(activate_x509_authority_response), new, at_once, &e);
	CHECK_STR(got, new);
	finish();
}

TEST_MAIN(TEST(run_server), TEST(test_rotation), TEST(test_jwt), TEST(test_what_there_is_not),
	TEST(test_distribution))

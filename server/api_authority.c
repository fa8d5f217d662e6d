/* Service spire.api.server.localauthority.v1.LocalAuthority: the authorities of this server,
 * rotated by an operator's word; and assay.server.v1.Authority, what SPIRE's does not tell. */
#include "server/api.h"

#include <stdlib.h>
#include <string.h>

#include "assay/server/v1/authority.pb-c.h"
#include "spire/api/server/localauthority/v1/localauthority.pb-c.h"

#define V1(name) Spire__Api__Server__Localauthority__V1__##name
#define ASSAY(name) Assay__Server__V1__##name

/* "true": an authority is activated although not everybody has seen it. */
#define FORCE_KEY "assay-force"

enum { DISTRIBUTION_NAMED = 100 };

static bool jwt_is_off(struct rpc_call *c, enum ca_kind k)
{
	const struct api *a = rpc_call_data(c);

	if (k == CA_JWT && a->jwt_disabled)
		rpc_fail(c, ERR_UNIMPLEMENTED, "JWT functionality is disabled");
	return k == CA_JWT && a->jwt_disabled;
}

static V1(AuthorityState) * state(const char *id, int64_t expires_at, const char *upstream_id)
{
	V1(AuthorityState) *m =
		pb_new(&spire__api__server__localauthority__v1__authority_state__descriptor);

	m->authority_id = pb_str(id);
	m->expires_at = expires_at;
	if (upstream_id)
		m->upstream_authority_subject_key_id = pb_str(upstream_id);
	return m;
}

/* ---- state ---- */

static V1(AuthorityState) * state_of(const struct ca_authority *a)
{
	return a->id ? state(a->id, a->expires_at, a->upstream_id) : NULL;
}

static void get_state(struct rpc_call *c, enum ca_kind k, const ProtobufCMessageDescriptor *d)
{
	const struct api *a = rpc_call_data(c);
	/* Both kinds' messages have the same fields. */
	V1(GetX509AuthorityStateResponse) * rs;
	struct ca_state st;
	struct err e;

	if (jwt_is_off(c, k))
		return;
	if (ca_state(a->ca, k, &st, &e)) {
		rpc_fail_err(c, &e);
		return;
	}
	rs = pb_new(d);
	rs->active = state_of(&st.active);
	rs->prepared = state_of(&st.prepared);
	rs->old = state_of(&st.old);
	api_audit(a, c, 0, NULL, NULL);
	api_reply(c, rs);
}

static void get_x509_state(struct rpc_call *c, const ProtobufCMessage *req)
{
	(void)req;
	get_state(c, CA_X509,
		&spire__api__server__localauthority__v1__get_x509_authority_state_response__descriptor);
}

static void get_jwt_state(struct rpc_call *c, const ProtobufCMessage *req)
{
	(void)req;
	get_state(c, CA_JWT,
		&spire__api__server__localauthority__v1__get_jwtauthority_state_response__descriptor);
}

/* ---- prepare, activate, taint, revoke ---- */

struct forced {
	struct rpc_call *c;
	enum ca_force what;
	enum ca_kind kind;
	char *id;
	const ProtobufCMessageDescriptor *response;
};

/* SPIRE gives no expiry of what was revoked, nor of a tainted JWT key. */
static int64_t expiry_told(const struct forced *f, const struct ca_authority *a)
{
	if (f->what == CA_REVOKE || (f->what == CA_TAINT && f->kind == CA_JWT))
		return 0;
	return a->expires_at;
}

static void forced_done(void *arg, const struct ca_authority *a, const struct err *e)
{
	struct forced *f = arg;
	/* All these messages have one field: an AuthorityState. */
	V1(PrepareX509AuthorityResponse) * rs;

	if (rpc_call_ended(f->c)) {
		log_event(LOG_INFO, "api", "a caller left before its rotation was done", "code",
			err_code_name(e->code), NULL);
	} else if (!a) {
		rpc_fail_err(f->c, e);
	} else {
		rs = pb_new(f->response);
		rs->prepared_authority = state(a->id, expiry_told(f, a), a->upstream_id);
		api_audit(rpc_call_data(f->c), f->c, 0, NULL, "local_authority_id",
			f->id[0] ? f->id : NULL, NULL);
		api_reply(f->c, rs);
	}
	rpc_call_unref(f->c);
	free(f->id);
	free(f);
}

static void force(struct rpc_call *c, enum ca_force what, enum ca_kind k, const char *id,
	const ProtobufCMessageDescriptor *response)
{
	const struct api *a = rpc_call_data(c);
	const char *at_once = rpc_call_metadata(c, FORCE_KEY);
	struct forced *f;

	if (jwt_is_off(c, k))
		return;
	f = xcalloc(1, sizeof(*f));
	*f = (struct forced){ .c = rpc_call_ref(c),
		.what = what,
		.kind = k,
		.id = xstrdup(id),
		.response = response };
	ca_force(a->ca, what, k, id, at_once && strcmp(at_once, "true") == 0, forced_done, f);
}

#define RESPONSE(name) &spire__api__server__localauthority__v1__##name##_response__descriptor

static void prepare_x509(struct rpc_call *c, const ProtobufCMessage *req)
{
	(void)req;
	force(c, CA_PREPARE, CA_X509, "", RESPONSE(prepare_x509_authority));
}

static void activate_x509(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(ActivateX509AuthorityRequest) *rq = (const void *)req;

	force(c, CA_ACTIVATE, CA_X509, rq->authority_id, RESPONSE(activate_x509_authority));
}

static void taint_x509(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(TaintX509AuthorityRequest) *rq = (const void *)req;

	force(c, CA_TAINT, CA_X509, rq->authority_id, RESPONSE(taint_x509_authority));
}

static void revoke_x509(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(RevokeX509AuthorityRequest) *rq = (const void *)req;

	force(c, CA_REVOKE, CA_X509, rq->authority_id, RESPONSE(revoke_x509_authority));
}

static void prepare_jwt(struct rpc_call *c, const ProtobufCMessage *req)
{
	(void)req;
	force(c, CA_PREPARE, CA_JWT, "", RESPONSE(prepare_jwtauthority));
}

static void activate_jwt(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(ActivateJWTAuthorityRequest) *rq = (const void *)req;

	force(c, CA_ACTIVATE, CA_JWT, rq->authority_id, RESPONSE(activate_jwtauthority));
}

static void taint_jwt(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(TaintJWTAuthorityRequest) *rq = (const void *)req;

	force(c, CA_TAINT, CA_JWT, rq->authority_id, RESPONSE(taint_jwtauthority));
}

static void revoke_jwt(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(RevokeJWTAuthorityRequest) *rq = (const void *)req;

	force(c, CA_REVOKE, CA_JWT, rq->authority_id, RESPONSE(revoke_jwtauthority));
}

/* ---- upstream, WIT ---- */

struct upstream_forced {
	struct rpc_call *c;
	char *id;
	const ProtobufCMessageDescriptor *response;
};

static void upstream_forced_done(void *arg, const struct ca_authority *a, const struct err *e)
{
	struct upstream_forced *f = arg;
	/* Both messages have one field, the subject key id. */
	V1(TaintX509UpstreamAuthorityResponse) * rs;

	if (!a) {
		rpc_fail_err(f->c, e);
	} else {
		rs = pb_new(f->response);
		rs->upstream_authority_subject_key_id = pb_str(f->id);
		api_audit(rpc_call_data(f->c), f->c, 0, NULL, "subject_key_id", f->id, NULL);
		api_reply(f->c, rs);
	}
	rpc_call_unref(f->c);
	free(f->id);
	free(f);
}

static void force_upstream(struct rpc_call *c, enum ca_force what, const char *id,
	const ProtobufCMessageDescriptor *response)
{
	const struct api *a = rpc_call_data(c);
	struct upstream_forced *f = xcalloc(1, sizeof(*f));

	*f = (struct upstream_forced){
		.c = rpc_call_ref(c), .id = xstrdup(id), .response = response
	};
	for (char *s = f->id; *s; s++)
		if (*s >= 'A' && *s <= 'F')
			*s = (char)(*s - 'A' + 'a');
	ca_force_upstream(a->ca, what, f->id, upstream_forced_done, f);
}

static void taint_upstream(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(TaintX509UpstreamAuthorityRequest) *rq = (const void *)req;

	force_upstream(c, CA_TAINT, rq->subject_key_id, RESPONSE(taint_x509_upstream_authority));
}

static void revoke_upstream(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(RevokeX509UpstreamAuthorityRequest) *rq = (const void *)req;

	force_upstream(c, CA_REVOKE, rq->subject_key_id, RESPONSE(revoke_x509_upstream_authority));
}

static void no_wit(struct rpc_call *c, const ProtobufCMessage *req)
{
	(void)req;
	rpc_fail(c, ERR_UNIMPLEMENTED, "WIT-SVID functionality is not yet implemented");
}

/* ---- who has seen what ---- */

static void get_distribution(struct rpc_call *c, const ProtobufCMessage *req)
{
	const ASSAY(GetDistributionRequest) *rq = (const void *)req;
	const struct api *a = rpc_call_data(c);
	const struct bundle *own = api_bundle(a, a->trust_domain);
	ASSAY(GetDistributionResponse) rs = ASSAY__SERVER__V1__GET_DISTRIBUTION_RESPONSE__INIT;
	struct strings names = { .n = 0 };

	if (rq->authority_id[0])
		rs.bundle_sequence = ca_sequence_of(a->ca, rq->authority_id);
	else if (own)
		rs.bundle_sequence = own->sequence;
	if (!rs.bundle_sequence) {
		rpc_fail(c, ERR_NOT_FOUND, "no authority of this ID is in the bundle");
		return;
	}
	rs.missing = witness_missing(
		a->witness, rs.bundle_sequence, clock_mono(), &names, DISTRIBUTION_NAMED);
	rs.n_agent_ids = names.n;
	rs.agent_ids = names.v;
	rpc_reply(c, &rs.base);
	strings_deinit(&names);
}

/* ---- the tables ---- */

static const struct rpc_method methods[] = {
	{ "GetJWTAuthorityState", RPC_UNARY, get_jwt_state },
	{ "PrepareJWTAuthority", RPC_UNARY, prepare_jwt },
	{ "ActivateJWTAuthority", RPC_UNARY, activate_jwt },
	{ "TaintJWTAuthority", RPC_UNARY, taint_jwt },
	{ "RevokeJWTAuthority", RPC_UNARY, revoke_jwt },
	{ "GetX509AuthorityState", RPC_UNARY, get_x509_state },
	{ "PrepareX509Authority", RPC_UNARY, prepare_x509 },
	{ "ActivateX509Authority", RPC_UNARY, activate_x509 },
	{ "TaintX509Authority", RPC_UNARY, taint_x509 },
	{ "TaintX509UpstreamAuthority", RPC_UNARY, taint_upstream },
	{ "RevokeX509Authority", RPC_UNARY, revoke_x509 },
	{ "RevokeX509UpstreamAuthority", RPC_UNARY, revoke_upstream },
	{ "GetWITAuthorityState", RPC_UNARY, no_wit },
	{ "PrepareWITAuthority", RPC_UNARY, no_wit },
	{ "ActivateWITAuthority", RPC_UNARY, no_wit },
	{ "TaintWITAuthority", RPC_UNARY, no_wit },
	{ "RevokeWITAuthority", RPC_UNARY, no_wit },
};

static const struct rpc_method own_methods[] = {
	{ "GetDistribution", RPC_UNARY, get_distribution },
};

struct rpc_service api_local_authority_service(struct api *a)
{
	return (struct rpc_service){
		.desc = &spire__api__server__localauthority__v1__local_authority__descriptor,
		.methods = methods,
		.n_methods = ARRAY_LEN(methods),
		.data = a
	};
}

struct rpc_service api_authority_service(struct api *a)
{
	return (struct rpc_service){ .desc = &assay__server__v1__authority__descriptor,
		.methods = own_methods,
		.n_methods = ARRAY_LEN(own_methods),
		.data = a };
}

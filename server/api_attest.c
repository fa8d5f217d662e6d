/*
 * Service spire.api.server.agent.v1.Agent, the agent's half: AttestAgent and RenewAgent.
 *
 * Attested: the attestor names the agent, its SVID is signed on a worker, the node is stored, and
 * only then is the answer sent. A renewed SVID is stored beside the old one, which counts until the
 * new one is first used.
 */
#include "server/api.h"

#include <stdlib.h>
#include <string.h>

#include "spire/api/server/agent/v1/agent.pb-c.h"

#define V1(name) Spire__Api__Server__Agent__V1__##name

enum { CSR_MAX = 16 << 10 };

/* ---- signing an agent's SVID ---- */

/* Inputs are copies; done(arg of the job) finds r, e and svid. Embedded first in a caller's job. */
struct sign {
	struct ca_issuer *issuer;
	struct buf csr;
	char *id;
	struct ca_x509_svid svid;
	struct err e;
	int r;
};

static void sign_work(void *arg)
{
	struct sign *s = arg;
	struct ca_x509_params p = { .spiffe_id = s->id, .agent = true, .now = clock_wall() };
	struct x509_csr csr;

	/* Only the public key is used, so its signature proves nothing here: SPIRE does not check
	 * it either. */
	s->r = x509_csr_parse(buf_view(&s->csr), &csr, &s->e);
	if (s->r) {
		err_set(&s->e, ERR_INVALID, "failed to parse CSR");
		return;
	}
	p.spki = pubkey_spki(csr.pubkey);
	s->r = ca_sign_x509_svid(s->issuer, &p, &s->svid, &s->e);
	x509_csr_deinit(&csr);
	if (s->r) {
		s->e.code = ERR_INTERNAL;
		err_wrap(&s->e, "failed to sign X509 SVID");
	}
}

static int sign_init(struct sign *s, const struct api *a, const char *id,
	const ProtobufCBinaryData *csr, struct err *e)
{
	if (csr->len > CSR_MAX)
		return err_set(e, ERR_INVALID, "failed to parse CSR: too large");
	s->issuer = ca_issuer(a->ca);
	if (!s->issuer)
		return err_set(e, ERR_UNAVAILABLE, "server is initializing");
	s->csr = BUF_INIT_MAX(CSR_MAX);
	buf_bytes(&s->csr, bytes_of(csr->data, csr->len));
	s->id = xstrdup(id);
	return 0;
}

static void sign_deinit(struct sign *s)
{
	if (s->issuer)
		ca_issuer_unref(s->issuer);
	buf_deinit(&s->csr);
	ca_x509_svid_deinit(&s->svid);
	free(s->id);
}

/* ---- AttestAgent ---- */

/* One attestation, from the first message to the answer. */
struct attestation {
	struct sign sign; /* first: the job's argument */
	struct rpc_call *c;
	struct api *api;
	struct attest_session *session;
	char *type;
	ProtobufCBinaryData csr;
	struct selectors selectors;
	bool reattestable;
	bool first_use;
	V1(AttestAgentResponse) * out; /* waits until the message before it is on its way */
	bool ended;                    /* the call is over: finish what is under way, then go */
	bool working;                  /* a job or a write will call back */
};

static void attestation_free(struct attestation *at)
{
	attest_end(at->session);
	sign_deinit(&at->sign);
	free(at->type);
	free(at->csr.data);
	if (at->out)
		protobuf_c_message_free_unpacked(&at->out->base, NULL);
	selectors_deinit(&at->selectors);
	rpc_call_unref(at->c);
	free(at);
}

static void attest_call_ended(struct rpc_call *c)
{
	struct attestation *at = rpc_call_user(c);

	at->ended = true;
	if (!at->working)
		attestation_free(at);
}

/* The call's end (which follows from the answer) frees it. */
static void attest_fail_call(struct attestation *at, const struct err *e)
{
	log_event(LOG_DEBUG, "attest", "attestation refused", "type", at->type, "address",
		rpc_call_peer(at->c)->address, "error", e->msg, NULL);
	rpc_fail_err(at->c, e);
}

static bool is_banned(const struct api *a, const char *id)
{
	struct node n;
	struct err e;

	return entries_node_view(a->entries, id, &n, &e) == 0 && node_banned(&n);
}

/* What may still be said against an agent whose proof was good. */
static int check_standing(const struct attestation *at, const char *id, struct err *e)
{
	struct node known;
	struct err none;

	if (is_banned(at->api, id))
		return err_set(e, ERR_DENIED, "failed to attest: agent is banned");
	if (at->first_use && entries_node_view(at->api->entries, id, &known, &none) == 0)
		return err_set(e, ERR_DENIED,
			"nodeattestor(%s): attestation data has already been used to attest an "
			"agent",
			at->type);
	return 0;
}

static void on_challenge_response(struct rpc_call *c, const ProtobufCMessage *m);

/* Sends the message that waits; a challenge is followed by its response, a result by the end. */
static void flush(struct rpc_call *c)
{
	struct attestation *at = rpc_call_user(c);
	V1(AttestAgentResponse) *m = at->out;

	if (!m || !rpc_writable(c))
		return;
	at->out = NULL;
	rpc_send(c, &m->base);
	if (m->step_case == SPIRE__API__SERVER__AGENT__V1__ATTEST_AGENT_RESPONSE__STEP_RESULT)
		rpc_finish(c);
	else
		rpc_read(c, on_challenge_response);
	protobuf_c_message_free_unpacked(&m->base, NULL);
}

static V1(AttestAgentResponse) * response_new(struct attestation *at)
{
	at->out = pb_new(&spire__api__server__agent__v1__attest_agent_response__descriptor);
	return at->out;
}

static void send_challenge(struct attestation *at, struct bytes challenge)
{
	V1(AttestAgentResponse) *rs = response_new(at);

	rs->step_case = SPIRE__API__SERVER__AGENT__V1__ATTEST_AGENT_RESPONSE__STEP_CHALLENGE;
	pb_set_bytes(&rs->challenge, challenge);
	flush(at->c);
}

static void send_result(struct attestation *at)
{
	V1(AttestAgentResponse) *rs = response_new(at);

	rs->step_case = SPIRE__API__SERVER__AGENT__V1__ATTEST_AGENT_RESPONSE__STEP_RESULT;
	rs->result =
		pb_new(&spire__api__server__agent__v1__attest_agent_response__result__descriptor);
	rs->result->svid = pb_x509_svid(at->sign.id, &at->sign.svid);
	rs->result->reattestable = at->reattestable;
	flush(at->c);
}

static void node_stored(void *arg, int code, const char *msg)
{
	struct attestation *at = arg;
	struct err e;

	if (code) {
		err_set(&e, ERR_INTERNAL, "failed to update attested agent: %s", msg);
		attest_fail_call(at, &e);
	} else {
		log_event(LOG_INFO, "attest", "agent attested", "agent_id", at->sign.id, "type",
			at->type, "address", rpc_call_peer(at->c)->address, "serial",
			at->sign.svid.serial, "expires_at", log_time(at->sign.svid.expires_at),
			NULL);
		api_audit(at->api, at->c, 0, NULL, "node_attestor_type", at->type, "agent_id",
			at->sign.id, "serial", at->sign.svid.serial, NULL);
		send_result(at);
	}
	at->working = false;
	if (at->ended)
		attestation_free(at);
}

/* The node as it will be: a new one, or the known one with a new SVID and selectors. */
static void store_agent(struct attestation *at)
{
	struct node n = { .spiffe_id = at->sign.id,
		.attestation_type = at->type,
		.serial = at->sign.svid.serial,
		.new_serial = (char *)(uintptr_t) "",
		.expires_at = at->sign.svid.expires_at,
		.can_reattest = at->reattestable,
		.agent_version = (char *)(uintptr_t) "",
		.selectors = at->selectors };
	struct node known;
	struct err e;

	if (entries_node_view(at->api->entries, at->sign.id, &known, &e) == 0) {
		n.agent_version = known.agent_version;
		n.attestation_type = known.attestation_type;
	}
	at->working = true;
	store_node_put(at->api->store, &n, node_stored, at);
}

static void attest_signed(void *arg)
{
	struct attestation *at = arg;

	at->working = false;
	if (at->ended) {
		attestation_free(at);
		return;
	}
	/* Banned, or overtaken by another attempt, while we signed? */
	if (at->sign.r == 0)
		at->sign.r = check_standing(at, at->sign.id, &at->sign.e);
	if (at->sign.r)
		attest_fail_call(at, &at->sign.e);
	else
		store_agent(at);
}

/* An attestor must not name the server, nor anybody outside of the trust domain. */
static int check_agent_id(const struct api *a, const char *text, struct err *e)
{
	struct spiffeid id = SPIFFEID_INIT;
	int r = spiffeid_parse_str(&id, text, e);

	if (r == 0 && strcmp(spiffeid_path(&id), "/spire/server") == 0)
		r = err_set(e, ERR_INTERNAL, "agent ID cannot collide with the server ID");
	else if (r == 0)
		r = api_id_check(&id, API_ID_AGENT, a->trust_domain, e);
	spiffeid_deinit(&id);
	if (r) {
		e->code = ERR_INTERNAL;
		return err_wrap(e, "invalid agent ID");
	}
	return 0;
}

static void attested(struct attestation *at, const struct attest_step *st)
{
	struct err e;
	int r = check_agent_id(at->api, st->agent_id, &e);

	at->first_use = st->first_use;
	if (r == 0)
		r = check_standing(at, st->agent_id, &e);
	if (r == 0)
		r = sign_init(&at->sign, at->api, st->agent_id, &at->csr, &e);
	if (r) {
		attest_fail_call(at, &e);
		return;
	}
	at->reattestable = st->reattestable;
	at->selectors = selectors_dup(st->selectors);
	at->working = true;
	loop_job(at->api->loop, sign_work, attest_signed, &at->sign);
}

static void on_challenge_response(struct rpc_call *c, const ProtobufCMessage *m)
{
	const V1(AttestAgentRequest) *rq = (const void *)m;
	struct attestation *at = rpc_call_user(c);
	struct err e;

	if (!rq) {
		err_set(&e, ERR_INTERNAL, "failed to receive challenge from agent: EOF");
		attest_fail_call(at, &e);
		return;
	}
	if (rq->step_case ==
		SPIRE__API__SERVER__AGENT__V1__ATTEST_AGENT_REQUEST__STEP_CHALLENGE_RESPONSE)
		attest_respond(at->session,
			bytes_of(rq->challenge_response.data, rq->challenge_response.len));
	else
		attest_respond(at->session, bytes_of(NULL, 0));
}

static void on_step(void *arg, const struct attest_step *st, const struct err *e)
{
	struct attestation *at = arg;

	if (e->code)
		attest_fail_call(at, e);
	else if (st->challenge.n)
		send_challenge(at, st->challenge);
	else
		attested(at, st);
}

static const char *missing(const V1(AttestAgentRequest) * rq)
{
	const V1(AttestAgentRequest__Params) *p =
		rq->step_case == SPIRE__API__SERVER__AGENT__V1__ATTEST_AGENT_REQUEST__STEP_PARAMS
			? rq->params
			: NULL;

	if (!p)
		return "missing params";
	if (!p->data)
		return "missing attestation data";
	if (!p->params)
		return "missing X509-SVID parameters";
	if (p->params->csr.len == 0)
		return "missing CSR";
	if (!p->data->type[0])
		return "missing attestation data type";
	if (p->data->payload.len == 0)
		return "missing attestation data payload";
	return NULL;
}

static void on_params(struct rpc_call *c, const ProtobufCMessage *m)
{
	const V1(AttestAgentRequest) *rq = (const void *)m;
	struct api *a = rpc_call_data(c);
	const V1(AttestAgentRequest__Params) * p;
	struct attestation *at;
	struct err e;

	if (!rq) {
		rpc_fail(c, ERR_INVALID, "failed to receive request from stream: EOF");
		return;
	}
	if (missing(rq)) {
		rpc_fail(c, ERR_INVALID, "malformed param: %s", missing(rq));
		return;
	}
	p = rq->params;
	at = xcalloc(1, sizeof(*at));
	at->c = rpc_call_ref(c);
	at->api = a;
	at->type = xstrdup(p->data->type);
	pb_set_bytes(&at->csr, bytes_of(p->params->csr.data, p->params->csr.len));
	rpc_call_set_user(c, at);
	rpc_call_on_end(c, attest_call_ended);
	rpc_on_writable(c, flush);
	if (attest_begin(a->attest, at->type, bytes_of(p->data->payload.data, p->data->payload.len),
		    rpc_call_peer(c)->address, on_step, at, &at->session, &e))
		attest_fail_call(at, &e);
}

static void attest_agent(struct rpc_call *c, ProtobufCMessage *req)
{
	(void)req;
	rpc_read(c, on_params);
}

void api_attest_agent(struct rpc_call *c, const ProtobufCMessage *req)
{
	api_limited(c, req, RATELIMIT_ATTEST, 1, attest_agent);
}

/* ---- RenewAgent ---- */

struct renewal {
	struct sign sign; /* first: the job's argument */
	struct rpc_call *c;
	struct api *api;
};

static void renewal_free(struct renewal *r)
{
	sign_deinit(&r->sign);
	rpc_call_unref(r->c);
	free(r);
}

static void renew_stored(void *arg, int code, const char *msg)
{
	struct renewal *r = arg;
	V1(RenewAgentResponse) * rs;

	if (code == ERR_NOT_FOUND) {
		rpc_fail(r->c, ERR_NOT_FOUND, "agent not found");
	} else if (code) {
		rpc_fail(r->c, ERR_INTERNAL, "failed to update agent: %s", msg);
	} else {
		rs = pb_new(&spire__api__server__agent__v1__renew_agent_response__descriptor);
		rs->svid = pb_x509_svid(r->sign.id, &r->sign.svid);
		log_event(LOG_INFO, "attest", "agent SVID renewed", "agent_id", r->sign.id,
			"serial", r->sign.svid.serial, NULL);
		api_audit(r->api, r->c, 0, NULL, "agent_id", r->sign.id, "serial",
			r->sign.svid.serial, NULL);
		api_reply(r->c, rs);
	}
	renewal_free(r);
}

static void renew_signed(void *arg)
{
	struct renewal *r = arg;
	AUTO_BUF struct buf mine = BUF_INIT;
	struct node_update u = { .new_serial = r->sign.svid.serial,
		.new_expires_at = &r->sign.svid.expires_at };

	if (r->sign.r) {
		rpc_fail_err(r->c, &r->sign.e);
		renewal_free(r);
		return;
	}
	/* Only while the caller's SVID counts: a ban in between must not be undone. */
	x509_serial_decimal(rpc_call_peer(r->c)->chain.v[0], &mine);
	u.expect_serial = buf_cstr(&mine);
	store_node_update(r->api->store, r->sign.id, &u, renew_stored, r);
}

static void fail_with_reason(struct rpc_call *c, int reason, const char *msg)
{
	Spire__Api__Types__PermissionDeniedDetails d =
		SPIRE__API__TYPES__PERMISSION_DENIED_DETAILS__INIT;

	d.reason = (Spire__Api__Types__PermissionDeniedDetails__Reason)reason;
	rpc_fail_details(c, ERR_DENIED, msg, &d.base);
}

static int renew_check(const struct api *a, const struct rpc_call *c,
	const V1(RenewAgentRequest) * rq, bool *must_reattest, struct err *e)
{
	struct node n;

	*must_reattest = false;
	if (!api_caller(c)[0] || rpc_call_peer(c)->chain.n == 0)
		return err_set(e, ERR_INTERNAL, "caller ID missing from request context");
	if (entries_node_view(a->entries, api_caller(c), &n, e))
		return err_set(e, ERR_NOT_FOUND, "agent not found");
	*must_reattest = n.can_reattest;
	if (n.can_reattest)
		return err_set(e, ERR_DENIED, "agent must reattest instead of renew");
	if (!rq->params)
		return err_set(e, ERR_INVALID, "params cannot be nil");
	if (rq->params->csr.len == 0)
		return err_set(e, ERR_INVALID, "missing CSR");
	return 0;
}

static void renew_agent(struct rpc_call *c, ProtobufCMessage *req)
{
	V1(RenewAgentRequest) *rq = (void *)req;
	struct api *a = rpc_call_data(c);
	struct renewal *r;
	bool must_reattest;
	struct err e;

	if (renew_check(a, c, rq, &must_reattest, &e)) {
		if (must_reattest)
			fail_with_reason(c,
				SPIRE__API__TYPES__PERMISSION_DENIED_DETAILS__REASON__AGENT_MUST_REATTEST,
				e.msg);
		else
			rpc_fail_err(c, &e);
		goto out;
	}
	r = xcalloc(1, sizeof(*r));
	r->c = rpc_call_ref(c);
	r->api = a;
	if (sign_init(&r->sign, a, api_caller(c), &rq->params->csr, &e)) {
		rpc_fail_err(c, &e);
		renewal_free(r);
		goto out;
	}
	loop_job(a->loop, sign_work, renew_signed, &r->sign);
out:
	protobuf_c_message_free_unpacked(req, NULL);
}

void api_renew_agent(struct rpc_call *c, const ProtobufCMessage *req)
{
	api_limited(c, req, RATELIMIT_RENEW, 1, renew_agent);
}

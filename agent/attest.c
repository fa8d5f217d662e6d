#include "agent/attest.h"

#include <stdlib.h>
#include <string.h>

#include "lib/log.h"
#include "lib/rpc.h"
#include "spire/api/server/agent/v1/agent.pb-c.h"
#include "spire/api/server/bundle/v1/bundle.pb-c.h"

enum { ATTEST_TIMEOUT_MS = 30000, DIAL_TIMEOUT_MS = 10000, CHALLENGES_MAX = 16 };

#define ATTEST_AGENT "/spire.api.server.agent.v1.Agent/AttestAgent"
#define GET_BUNDLE "/spire.api.server.bundle.v1.Bundle/GetBundle"

const struct node_attestor *node_attestor_of(const struct agent_options *o)
{
	/* A token given to the agent wins over the configured attestor, as in SPIRE. */
	if ((o->join_token && o->join_token[0]) || (o->join_token_file && o->join_token_file[0]))
		return &attest_token;
	if (o->attest_x509pop)
		return &attest_x509pop;
	if (o->attest_sshpop)
		return &attest_sshpop;
	if (o->attest_http_challenge)
		return &attest_http_challenge;
	if (o->attest_psat)
		return &attest_psat;
	return o->attest_join_token ? &attest_token : NULL;
}

/* ---- the server's identity ---- */

char *server_authority(const struct agent_options *o)
{
	if (strchr(o->server_address, ':')) /* IPv6 */
		return xasprintf("[%s]:%d", o->server_address, o->server_port);
	return xasprintf("%s:%d", o->server_address, o->server_port);
}

int server_verify(void *arg, const struct x509_chain *peer, struct err *e)
{
	struct server_trust *t = arg;
	AUTO(free) char *want = xasprintf("spiffe://%s/spire/server", t->trust_domain);
	const struct strings *uris;
	struct x509_chain roots;
	int r;

	t->stranger = false;
	if (peer->n == 0)
		return err_set(e, ERR_DENIED, "the server sent no certificate");
	uris = x509_uris(peer->v[0]);
	if (uris->n != 1 || strcmp(uris->v[0], want) != 0)
		return err_set(e, ERR_DENIED, "unexpected ID \"%s\" of the server, expected \"%s\"",
			uris->n ? uris->v[0] : "", want);
	if (!t->bundle)
		return 0;
	/* Tainted ones too: until such a root is revoked the server may not have moved on. */
	roots = bundle_roots(t->bundle);
	r = x509_verify(peer, &roots, clock_wall(), e);
	x509_chain_deinit(&roots);
	t->stranger = r && strstr(e->msg, "certificate signed by unknown authority");
	return r ? err_wrap(e, "the server's certificate") : 0;
}

int attest_check_svid(const struct bytes *certs, size_t n, const char *trust_domain,
	const struct key *key, struct x509_chain *ret, struct err *e)
{
	struct x509_chain ch = { 0 };
	struct spiffeid id = SPIFFEID_INIT;
	int r = n && n <= X509_MAX_CHAIN
			? 0
			: err_set(e, ERR_INTERNAL, "the server sent %zu certificates", n);

	for (size_t i = 0; !r && i < n; i++) {
		struct x509_cert *c;

		r = x509_parse(certs[i], &c, e);
		if (!r) {
			x509_chain_add(&ch, c);
			x509_unref(c);
		}
	}
	if (!r)
		r = x509_svid_id(ch.v[0], &id, e);
	if (!r && !spiffeid_member_of(&id, trust_domain))
		r = err_set(e, ERR_INVALID, "%s is of another trust domain", id.text);
	if (!r && (!x509_pubkey(ch.v[0]) || !bytes_equal(pubkey_spki(x509_pubkey(ch.v[0])),
						    pubkey_spki(key_public(key)))))
		r = err_set(e, ERR_INVALID, "it is for another key");
	spiffeid_deinit(&id);
	if (r) {
		x509_chain_deinit(&ch);
		return err_wrap(e, "agent SVID from the server");
	}
	*ret = ch;
	return 0;
}

/* ---- the conversation ---- */

struct attest {
	struct loop *loop;
	const struct agent_options *o;
	const struct node_attestor *how;
	struct key *key;
	struct bundle *bundle;
	struct server_trust trust;
	struct tls_ctx *tls;
	struct rpc_client *client;
	struct rpc_stream *stream;
	struct attest_result result;
	void (*done)(void *arg, const struct attest_result *r, const struct err *e, bool definite);
	void *arg;
	/* a job's inputs and outputs */
	struct buf challenge, payload, csr;
	struct err job_err;
	bool job;       /* one is running */
	void *listener; /* the attestor's, of open() */
	bool got_result, cancelled;
	int challenges;
};

static void attest_free(struct attest *a)
{
	if (a->listener)
		a->how->close(a->listener);
	if (a->client)
		rpc_client_free(a->client);
	if (a->tls)
		tls_ctx_unref(a->tls);
	if (a->bundle)
		bundle_unref(a->bundle);
	if (a->result.bundle)
		bundle_unref(a->result.bundle);
	x509_chain_deinit(&a->result.svid);
	buf_deinit(&a->challenge);
	buf_deinit(&a->payload);
	buf_deinit(&a->csr);
	key_unref(a->key);
	free(a);
}

static void free_later(void *arg)
{
	attest_free(arg);
}

static void finish(struct attest *a, const struct err *e, bool definite)
{
	struct err ok = ERR_INIT;

	if (a->cancelled)
		return;
	a->cancelled = true;
	a->done(a->arg, e ? NULL : &a->result, e ? e : &ok, definite);
	/* A callback of the client may be on the stack: it is freed from the loop. */
	loop_post(a->loop, free_later, a);
}

void attest_cancel(struct attest *a)
{
	a->cancelled = true;
	if (!a->job)
		loop_post(a->loop, free_later, a);
}

bool attest_met_stranger(const struct attest *a)
{
	return a->trust.stranger;
}

static int dial(void *arg, struct dial_options *d, struct err *e)
{
	struct attest *a = arg;

	(void)e;
	d->tcp_host = a->o->server_address;
	d->tcp_port = a->o->server_port;
	d->tls = a->tls;
	d->verify = server_verify;
	d->verify_arg = &a->trust;
	d->timeout_ms = DIAL_TIMEOUT_MS;
	return 0;
}

static void got_bundle(void *arg, const struct rpc_status *st, const ProtobufCMessage *m)
{
	struct attest *a = arg;
	struct err e = ERR_INIT;

	if (a->cancelled)
		return;
	if (st->code)
		err_set(&e, st->code, "failed to get updated bundle: %s", st->message);
	else if (bundle_from_proto((const Spire__Api__Types__Bundle *)m, &a->result.bundle, &e))
		err_wrap(&e, "bundle from the server");
	else if (strcmp(a->result.bundle->trust_domain, a->o->trust_domain) != 0)
		err_set(&e, ERR_INTERNAL, "the server's bundle is of trust domain %s",
			a->result.bundle->trust_domain);
	finish(a, e.code ? &e : NULL, false);
}

static void ask_bundle(struct attest *a)
{
	Spire__Api__Server__Bundle__V1__GetBundleRequest rq =
		SPIRE__API__SERVER__BUNDLE__V1__GET_BUNDLE_REQUEST__INIT;
	struct rpc_unary_options u = { .method = GET_BUNDLE,
		.request = &rq.base,
		.response = &spire__api__types__bundle__descriptor,
		.timeout_ms = ATTEST_TIMEOUT_MS,
		.fail_fast = true };

	rpc_unary(a->client, &u, got_bundle, a);
}

static void take_result(struct attest *a,
	const Spire__Api__Server__Agent__V1__AttestAgentResponse__Result *res, struct rpc_stream *s)
{
	struct bytes certs[X509_MAX_CHAIN];
	struct err e = ERR_INIT;
	size_t n = res && res->svid ? res->svid->n_cert_chain : 0;

	for (size_t i = 0; i < n && i < X509_MAX_CHAIN; i++)
		certs[i] = bytes_of(res->svid->cert_chain[i].data, res->svid->cert_chain[i].len);
	if (attest_check_svid(certs, n, a->o->trust_domain, a->key, &a->result.svid, &e)) {
		finish(a, &e, false);
		return;
	}
	a->result.reattestable = res->reattestable;
	a->got_result = true;
	rpc_stream_half_close(s);
	ask_bundle(a);
}

static void respond_work(void *arg)
{
	struct attest *a = arg;

	a->payload.len = 0;
	(void)!a->how->respond(a->o, buf_view(&a->challenge), &a->payload, &a->job_err);
}

static void send_response(struct attest *a)
{
	Spire__Api__Server__Agent__V1__AttestAgentRequest rq =
		SPIRE__API__SERVER__AGENT__V1__ATTEST_AGENT_REQUEST__INIT;

	if (a->job_err.code) {
		finish(a, &a->job_err, false);
		return;
	}
	if (!a->stream) /* it ended meanwhile, and said why */
		return;
	rq.step_case = SPIRE__API__SERVER__AGENT__V1__ATTEST_AGENT_REQUEST__STEP_CHALLENGE_RESPONSE;
	rq.challenge_response =
		(ProtobufCBinaryData){ .data = a->payload.p, .len = a->payload.len };
	rpc_stream_send(a->stream, &rq.base);
}

static void respond_done(void *arg)
{
	struct attest *a = arg;

	a->job = false;
	if (a->cancelled)
		attest_free(a);
	else
		send_response(a);
}

static void take_challenge(struct attest *a, struct bytes challenge)
{
	struct err e = ERR_INIT;

	if ((!a->how->respond && !a->how->answer) || ++a->challenges > CHALLENGES_MAX || a->job) {
		err_set(&e, ERR_INTERNAL, "the server sent a challenge that %s does not expect",
			a->how->name);
		finish(a, &e, false);
		return;
	}
	if (a->how->answer) {
		a->payload.len = 0;
		(void)!a->how->answer(a->listener, challenge, &a->payload, &a->job_err);
		send_response(a);
		return;
	}
	buf_reset(&a->challenge);
	buf_bytes(&a->challenge, challenge);
	a->job = true;
	loop_job(a->loop, respond_work, respond_done, a);
}

static void on_message(void *arg, struct rpc_stream *s, const ProtobufCMessage *m)
{
	struct attest *a = arg;
	const Spire__Api__Server__Agent__V1__AttestAgentResponse *rs =
		(const Spire__Api__Server__Agent__V1__AttestAgentResponse *)m;
	struct err e = ERR_INIT;

	if (a->cancelled || a->got_result)
		return;
	switch (rs->step_case) {
	case SPIRE__API__SERVER__AGENT__V1__ATTEST_AGENT_RESPONSE__STEP_RESULT:
		take_result(a, rs->result, s);
		break;
	case SPIRE__API__SERVER__AGENT__V1__ATTEST_AGENT_RESPONSE__STEP_CHALLENGE:
		take_challenge(a, bytes_of(rs->challenge.data, rs->challenge.len));
		break;
	default:
		err_set(&e, ERR_INTERNAL, "the server's answer to AttestAgent is empty");
		finish(a, &e, false);
	}
}

/* A refusal that trying again cannot change: any PERMISSION_DENIED, as SPIRE's agent has it, and
 * a join token that is unknown, used or expired. */
static bool is_definite(const struct attest *a, int code)
{
	return code == ERR_DENIED || (code == ERR_INVALID && a->how == &attest_token);
}

static void on_ended(void *arg, struct rpc_stream *s, const struct rpc_status *st)
{
	struct attest *a = arg;
	struct err e = ERR_INIT;

	(void)s;
	a->stream = NULL;
	if (a->cancelled || a->got_result)
		return;
	err_set(&e, st->code ? st->code : ERR_INTERNAL, "%s",
		st->code ? st->message : "the server ended AttestAgent without a result");
	finish(a, &e, is_definite(a, st->code));
}

static void open_stream(struct attest *a)
{
	Spire__Api__Server__Agent__V1__AttestAgentRequest rq =
		SPIRE__API__SERVER__AGENT__V1__ATTEST_AGENT_REQUEST__INIT;
	Spire__Api__Server__Agent__V1__AttestAgentRequest__Params params =
		SPIRE__API__SERVER__AGENT__V1__ATTEST_AGENT_REQUEST__PARAMS__INIT;
	Spire__Api__Server__Agent__V1__AgentX509SVIDParams svid =
		SPIRE__API__SERVER__AGENT__V1__AGENT_X509_SVIDPARAMS__INIT;
	Spire__Api__Types__AttestationData data;
	AUTO(free) char *authority = server_authority(a->o);
	struct rpc_client_options co = {
		.dial = dial, .arg = a, .lazy = true, .authority = authority
	};
	struct rpc_stream_options so = { .method = ATTEST_AGENT,
		.response = &spire__api__server__agent__v1__attest_agent_response__descriptor,
		.timeout_ms = ATTEST_TIMEOUT_MS,
		.fail_fast = true,
		.message = on_message,
		.ended = on_ended,
		.arg = a };
	AUTO(free) char *type = xstrdup(a->how->name);

	a->client = rpc_client_new(a->loop, &co);
	a->stream = rpc_stream_open(a->client, &so);
	spire__api__types__attestation_data__init(&data);
	data.type = type;
	data.payload = (ProtobufCBinaryData){ .data = a->payload.p, .len = a->payload.len };
	svid.csr = (ProtobufCBinaryData){ .data = a->csr.p, .len = a->csr.len };
	params.data = &data;
	params.params = &svid;
	rq.step_case = SPIRE__API__SERVER__AGENT__V1__ATTEST_AGENT_REQUEST__STEP_PARAMS;
	rq.params = &params;
	rpc_stream_send(a->stream, &rq.base);
}

static void payload_work(void *arg)
{
	struct attest *a = arg;

	if (a->how->payload && a->how->payload(a->o, &a->payload, &a->job_err))
		return;
	if (x509_csr_make(a->key, NULL, &a->csr, &a->job_err))
		err_wrap(&a->job_err, "making a CSR");
}

static void payload_done(void *arg)
{
	struct attest *a = arg;
	struct tls_options t = {
		.server = false, .alpn = "h2", .require_pq = a->o->require_pq_kem
	};

	a->job = false;
	if (a->cancelled) {
		attest_free(a);
		return;
	}
	if (!a->job_err.code)
		(void)!tls_ctx_new(&t, &a->tls, &a->job_err);
	if (!a->job_err.code && a->how->open)
		(void)!a->how->open(a->loop, a->o, &a->payload, &a->listener, &a->job_err);
	if (a->job_err.code) {
		finish(a, &a->job_err, a->job_err.code == ERR_INVALID && a->how == &attest_token);
		return;
	}
	open_stream(a);
}

struct attest *attest_start(struct loop *l, const struct agent_options *o, struct key *key,
	struct bundle *bundle,
	void (*done)(void *arg, const struct attest_result *r, const struct err *e, bool definite),
	void *arg)
{
	struct attest *a = xcalloc(1, sizeof(*a));

	a->loop = l;
	a->o = o;
	a->how = node_attestor_of(o);
	a->key = key_ref(key);
	a->bundle = bundle ? bundle_ref(bundle) : NULL;
	a->trust = (struct server_trust){ .trust_domain = o->trust_domain, .bundle = a->bundle };
	a->challenge = BUF_INIT;
	a->payload = BUF_INIT_SECRET;
	a->csr = BUF_INIT;
	a->done = done;
	a->arg = arg;
	a->job = true;
	INVARIANT(a->how);
	if (!bundle)
		log_event(LOG_WARN, "attest",
			"Insecure bootstrap enabled; the server's certificate is not verified: "
			"whoever answers may hand this node any identity",
			"server", o->server_address, NULL);
	loop_job(l, payload_work, payload_done, a);
	return a;
}

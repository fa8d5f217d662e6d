/* The whole server over its sockets: agents, signing, the push stream, the process itself.
 * Covers: server/svid.c server/server_http.c server/server_prune.c */
#include "tests/test.h"

#include "server_run.inc"

/* Runs the loop until the condition holds; a call's own loop must not be stopped in between. */
static bool waiting;
#define WAIT_UNTIL(cond)                                                                           \
	do {                                                                                       \
		waiting = true;                                                                    \
		while (!(cond))                                                                    \
			loop_run(loop);                                                            \
		waiting = false;                                                                   \
	} while (0)

static void wake(void)
{
	if (waiting)
		loop_stop(loop);
}

struct conversation {
	struct rpc_status status;
	char message[400];
	int reason; /* of PermissionDeniedDetails */
	bool over;
	int n;
	struct x509_chain chain;
	char *id;
	/* Watch */
	size_t entries, removed;
	bool full, bundle;
	uint64_t change;
	char epoch[64];
	int want;      /* complete sets to wait for */
	int taken;     /* sets that the test has waited for */
	bool complete; /* the last page ended a set: the numbers are that set's */
};

static void on_attest(void *arg, struct rpc_stream *s, const ProtobufCMessage *m)
{
	const AG(AttestAgentResponse) *rs = (const void *)m;
	struct conversation *k = arg;

	(void)s;
	CHECK_INT(rs->step_case, SPIRE__API__SERVER__AGENT__V1__ATTEST_AGENT_RESPONSE__STEP_RESULT);
	for (size_t i = 0; i < rs->result->svid->n_cert_chain; i++) {
		struct x509_cert *c;
		struct err e;

		CHECK_OK(x509_parse(bytes_of(rs->result->svid->cert_chain[i].data,
					    rs->result->svid->cert_chain[i].len),
			&c, &e));
		x509_chain_add(&k->chain, c);
		x509_unref(c);
	}
	CHECK(!rs->result->reattestable);
	k->id = xasprintf(
		"spiffe://%s%s", rs->result->svid->id->trust_domain, rs->result->svid->id->path);
	k->n++;
}

static void on_ended(void *arg, struct rpc_stream *s, const struct rpc_status *st)
{
	Spire__Api__Types__PermissionDeniedDetails *d;
	struct conversation *k = arg;

	(void)s;
	k->status.code = st->code;
	snprintf(k->message, sizeof(k->message), "%s", st->message ? st->message : "");
	d = (void *)rpc_status_detail(
		st, &spire__api__types__permission_denied_details__descriptor);
	if (d) {
		k->reason = (int)d->reason;
		FREE(d);
	}
	k->over = true;
	wake();
}

static void make_csr(struct buf *ret)
{
	struct err e;

	if (!identity_key)
		CHECK_OK(key_generate(KEY_EC_P256, &identity_key, &e));
	CHECK_OK(x509_csr_make(identity_key, NULL, ret, &e));
}

static struct rpc_stream *attest_open(const char *token, struct conversation *k, int timeout_ms)
{
	struct rpc_stream_options o = { .method = AGENT "AttestAgent",
		.response = &spire__api__server__agent__v1__attest_agent_response__descriptor,
		.timeout_ms = timeout_ms,
		.message = on_attest,
		.ended = on_ended,
		.arg = k };
	AG(AttestAgentRequest) rq = SPIRE__API__SERVER__AGENT__V1__ATTEST_AGENT_REQUEST__INIT;
	AG(AttestAgentRequest__Params)
	p = SPIRE__API__SERVER__AGENT__V1__ATTEST_AGENT_REQUEST__PARAMS__INIT;
	AG(AgentX509SVIDParams) xp = SPIRE__API__SERVER__AGENT__V1__AGENT_X509_SVIDPARAMS__INIT;
	Spire__Api__Types__AttestationData d = SPIRE__API__TYPES__ATTESTATION_DATA__INIT;
	AUTO_BUF struct buf csr = BUF_INIT;
	struct rpc_stream *s;

	make_csr(&csr);
	xp.csr = (ProtobufCBinaryData){ .data = csr.p, .len = csr.len };
	d.type = text("join_token");
	d.payload = (ProtobufCBinaryData){ .data = (uint8_t *)text(token), .len = strlen(token) };
	p.data = &d;
	p.params = &xp;
	rq.step_case = SPIRE__API__SERVER__AGENT__V1__ATTEST_AGENT_REQUEST__STEP_PARAMS;
	rq.params = &p;
	*k = (struct conversation){ .n = 0 };
	connect_remote();
	s = rpc_stream_open(remote, &o);
	rpc_stream_send(s, &rq.base);
	return s;
}

static void attest_for(const char *token, struct conversation *k, int timeout_ms)
{
	attest_open(token, k, timeout_ms);
	WAIT_UNTIL(k->over);
}

static void attest(const char *token, struct conversation *k)
{
	attest_for(token, k, CALL_MS);
}

static void make_token(const char *token)
{
	AG(CreateJoinTokenRequest)
	rq = SPIRE__API__SERVER__AGENT__V1__CREATE_JOIN_TOKEN_REQUEST__INIT;
	Spire__Api__Types__JoinToken *rs;
	struct err e;

	rq.ttl = 600;
	rq.token = text(token);
	CHECK_OK(CALL(AGENT "CreateJoinToken", &rq, spire__api__types__join_token, &rs));
	CHECK_STR(rs->value, token);
	FREE(rs);
}

static void become(struct conversation *k)
{
	identity = k->chain;
	k->chain = (struct x509_chain){ .n = 0 };
	connect_remote();
}

static void drop_identity(struct conversation *k)
{
	free(k->id);
	x509_chain_deinit(&identity);
	identity = (struct x509_chain){ .n = 0 };
	key_unref(identity_key);
	identity_key = NULL;
	if (ctx)
		tls_ctx_unref(ctx);
	ctx = NULL;
}

static void create_for(const char *parent, const char *id, const char *path)
{
	Spire__Api__Types__Entry *m = entry(id, path, "uid:1");
	EN(BatchCreateEntryResponse) * rs;

	spire__api__types__spiffeid__free_unpacked(m->parent_id, NULL);
	m->parent_id = pb_id(parent);
	rs = create(m);
	CHECK_STR(rs->results[0]->status->message, "OK");
	FREE(rs);
}

static void test_attest(void)
{
	AG(RenewAgentRequest) rrq = SPIRE__API__SERVER__AGENT__V1__RENEW_AGENT_REQUEST__INIT;
	AG(BanAgentRequest) brq = SPIRE__API__SERVER__AGENT__V1__BAN_AGENT_REQUEST__INIT;
	EN(GetAuthorizedEntriesRequest)
	arq = SPIRE__API__SERVER__ENTRY__V1__GET_AUTHORIZED_ENTRIES_REQUEST__INIT;
	EN(GetAuthorizedEntriesResponse) * ars;
	AG(RenewAgentResponse) * rrs;
	struct conversation k, again;
	ProtobufCMessage *empty;
	struct err e;

	serve();
	make_token("tok-1");
	attest("tok-1", &k);
	CHECK_INT(k.status.code, 0);
	CHECK_INT(k.n, 1);
	CHECK_STR(k.id, "spiffe://example.org/spire/agent/join_token/tok-1");
	attest("tok-1", &again);
	CHECK_INT(again.status.code, ERR_INVALID);
	CHECK_STR(again.message,
		"failed to attest: join token does not exist or has already been used");
	attest("../x", &again);
	CHECK_INT(again.status.code, ERR_INVALID);
	become(&k);
	create_for(k.id, "w1", "/w");
	CHECK_OK(call_on(remote, ENTRY "GetAuthorizedEntries", &arq,
		&spire__api__server__entry__v1__get_authorized_entries_response__descriptor, &ars,
		&e));
	CHECK_INT(ars->n_entries, 1);
	FREE(ars);
	CHECK_ERR(
		call_on(remote, AGENT "RenewAgent", &rrq,
			&spire__api__server__agent__v1__renew_agent_response__descriptor, &rrs, &e),
		ERR_INVALID);
	CHECK_CONTAINS(e.msg, "params cannot be nil");
	CHECK_ERR(call_on(remote, ENTRY "CountEntries", &arq,
			  &spire__api__server__entry__v1__count_entries_response__descriptor, &ars,
			  &e),
		ERR_DENIED);
	brq.id = pb_id(k.id);
	CHECK_OK(CALL(AGENT "BanAgent", &brq, google__protobuf__empty, &empty));
	protobuf_c_message_free_unpacked(empty, NULL);
	FREE(brq.id);
	CHECK_ERR(
		call_on(remote, ENTRY "GetAuthorizedEntries", &arq,
			&spire__api__server__entry__v1__get_authorized_entries_response__descriptor,
			&ars, &e),
		ERR_DENIED);
	drop_identity(&k);
	finish();
}

static SV(NewX509SVIDParams) * param(const char *id, struct buf *csr)
{
	SV(NewX509SVIDParams) *p =
		pb_new(&spire__api__server__svid__v1__new_x509_svidparams__descriptor);

	p->entry_id = pb_str(id);
	pb_set_bytes(&p->csr, buf_view(csr));
	return p;
}

static void test_sign(void)
{
	SV(BatchNewX509SVIDRequest) *rq =
		pb_new(&spire__api__server__svid__v1__batch_new_x509_svidrequest__descriptor);
	SV(NewJWTSVIDRequest) jrq = SPIRE__API__SERVER__SVID__V1__NEW_JWTSVIDREQUEST__INIT;
	AUTO_BUF struct buf csr = BUF_INIT, bad = BUF_INIT, none = BUF_INIT;
	SV(BatchNewX509SVIDResponse) * rs;
	SV(NewJWTSVIDResponse) * jrs;
	char *aud = text("x");
	struct conversation k;
	struct err e;

	serve();
	make_token("tok-2");
	attest("tok-2", &k);
	CHECK_INT(k.status.code, 0);
	become(&k);
	create_for(k.id, "w1", "/w");
	make_csr(&csr);
	buf_bytes(&bad, buf_view(&csr));
	bad.p[bad.len - 1] ^= 1;
	pb_append(&rq->params, &rq->n_params, param("w1", &csr));
	pb_append(&rq->params, &rq->n_params, param("nope", &csr));
	pb_append(&rq->params, &rq->n_params, param("w1", &bad));
	pb_append(&rq->params, &rq->n_params, param("", &csr));
	pb_append(&rq->params, &rq->n_params, param("w1", &none));
	for (int i = 0; i < 100; i++)
		pb_append(&rq->params, &rq->n_params, param("w1", &csr));
	CHECK_OK(call_on(remote, SVID "BatchNewX509SVID", rq,
		&spire__api__server__svid__v1__batch_new_x509_svidresponse__descriptor, &rs, &e));
	CHECK_INT(rs->n_results, 105);
	CHECK_STR(rs->results[0]->status->message, "OK");
	CHECK_STR(rs->results[0]->svid->id->path, "/w");
	CHECK_INT(rs->results[0]->svid->n_cert_chain, 1);
	CHECK_INT(rs->results[1]->status->code, ERR_NOT_FOUND);
	CHECK_STR(rs->results[1]->status->message, "entry not found or not authorized");
	CHECK_INT(rs->results[2]->status->code, ERR_INVALID);
	CHECK_CONTAINS(rs->results[2]->status->message, "CSR");
	CHECK_STR(rs->results[3]->status->message, "missing entry ID");
	CHECK_STR(rs->results[4]->status->message, "missing CSR");
	for (size_t i = 5; i < rs->n_results; i++)
		CHECK_INT(rs->results[i]->status->code, 0);
	FREE(rs);
	FREE(rq);
	jrq.entry_id = text("w1");
	CHECK_ERR(call_on(remote, SVID "NewJWTSVID", &jrq,
			  &spire__api__server__svid__v1__new_jwtsvidresponse__descriptor, &jrs, &e),
		ERR_INVALID);
	CHECK_CONTAINS(e.msg, "at least one audience is required");
	jrq.n_audience = 1;
	jrq.audience = &aud;
	CHECK_OK(call_on(remote, SVID "NewJWTSVID", &jrq,
		&spire__api__server__svid__v1__new_jwtsvidresponse__descriptor, &jrs, &e));
	CHECK_INT(jrs->svid->expires_at - jrs->svid->issued_at, 300);
	FREE(jrs);
	drop_identity(&k);
	finish();
}

static void cancel_it(void *arg)
{
	rpc_stream_cancel(arg);
}

/* One attestation a second and address: the second one waits, and is forgotten when its caller
 * goes.
 */
static void test_rate_limit(void)
{
	struct conversation k;
	struct rpc_stream *st;
	struct loop_timer *t;
	int64_t from;

	limited = true;
	serve();
	attest("nope", &k);
	CHECK_INT(k.status.code, ERR_INVALID);
	from = clock_mono().ns;
	attest("nope", &k);
	CHECK_INT(k.status.code, ERR_INVALID);
	CHECK(clock_mono().ns - from > 500 * NS_PER_MS);
	attest_for("nope", &k, 100);
	CHECK_INT(k.status.code, ERR_EXHAUSTED);
	CHECK_CONTAINS(k.message, "rejecting request due to attest agent rate limiting: ");
	st = attest_open("nope", &k, CALL_MS);
	t = loop_timer_new(loop, cancel_it, st);
	loop_timer_set(t, 200 * NS_PER_MS);
	WAIT_UNTIL(k.over);
	CHECK_INT(k.status.code, ERR_CANCELLED);
	loop_timer_free(t);
	attest("nope", &k);
	CHECK_INT(k.status.code, ERR_INVALID);
	drop_identity(&k);
	finish();
}

/* ---- the push stream ---- */

static void on_watch(void *arg, struct rpc_stream *s, const ProtobufCMessage *m)
{
	const Assay__Agent__V1__WatchResponse *rs = (const void *)m;
	struct conversation *k = arg;

	(void)s;
	if (k->complete) {
		k->entries = k->removed = 0;
		k->full = k->bundle = k->complete = false;
	}
	k->entries += rs->n_entries;
	k->removed += rs->n_removed_entry_ids;
	k->full |= rs->full;
	k->bundle |= rs->bundle != NULL;
	k->change = rs->change;
	snprintf(k->epoch, sizeof(k->epoch), "%s", rs->epoch);
	if (rs->more)
		return;
	k->complete = true;
	k->n++;
	if (k->n >= k->want)
		wake();
}

static struct rpc_stream *watch(struct conversation *k, const char *epoch, uint64_t change)
{
	struct rpc_stream_options o = { .method = "/assay.agent.v1.Sync/Watch",
		.response = &assay__agent__v1__watch_response__descriptor,
		.message = on_watch,
		.ended = on_ended,
		.arg = k };
	Assay__Agent__V1__WatchRequest rq = ASSAY__AGENT__V1__WATCH_REQUEST__INIT;
	Assay__Agent__V1__WatchRequest__Start st = ASSAY__AGENT__V1__WATCH_REQUEST__START__INIT;
	struct rpc_stream *s = rpc_stream_open(remote, &o);

	st.epoch = text(epoch);
	st.change = change;
	st.agent_version = text("test");
	rq.step_case = ASSAY__AGENT__V1__WATCH_REQUEST__STEP_START;
	rq.start = &st;
	rpc_stream_send(s, &rq.base);
	return s;
}

/* A set may have come while another call was made. */
static void wait_sets(struct conversation *k, int n)
{
	k->want = k->taken + n;
	WAIT_UNTIL(k->n >= k->want || k->over);
	k->taken = k->want;
}

static void test_watch(void)
{
	AG(DeleteAgentRequest) drq = SPIRE__API__SERVER__AGENT__V1__DELETE_AGENT_REQUEST__INIT;
	struct conversation k, w = { .n = 0 };
	struct rpc_stream *s;
	ProtobufCMessage *empty;
	char epoch[64];
	uint64_t change;
	struct err e;

	serve();
	make_token("tok-3");
	attest("tok-3", &k);
	CHECK_INT(k.status.code, 0);
	become(&k);
	create_for(k.id, "w1", "/w1");
	s = watch(&w, "", 0);
	wait_sets(&w, 1);
	CHECK(w.full && w.bundle);
	CHECK_INT(w.entries, 1);
	create_for(k.id, "w2", "/w2");
	wait_sets(&w, 1);
	CHECK(!w.full && !w.bundle);
	CHECK_INT(w.entries, 1);
	change = w.change;
	snprintf(epoch, sizeof(epoch), "%s", w.epoch);
	rpc_stream_cancel(s);
	WAIT_UNTIL(w.over);
	create_for(k.id, "w3", "/w3");
	w = (struct conversation){ .n = 0 };
	watch(&w, epoch, change);
	wait_sets(&w, 1);
	CHECK(!w.full);
	CHECK_INT(w.entries, 1);
	drq.id = pb_id(k.id);
	CHECK_OK(CALL(AGENT "DeleteAgent", &drq, google__protobuf__empty, &empty));
	protobuf_c_message_free_unpacked(empty, NULL);
	FREE(drq.id);
	WAIT_UNTIL(w.over);
	CHECK_INT(w.status.code, ERR_DENIED);
	CHECK_INT(
		w.reason, SPIRE__API__TYPES__PERMISSION_DENIED_DETAILS__REASON__AGENT_NOT_ATTESTED);
	drop_identity(&k);
	finish();
}

/* ---- the process ---- */

static void test_second_server(void)
{
	pid_t second;
	AUTO_BUF struct buf b = BUF_INIT;
	struct err e;
	int first_port;

	serve();
	first_port = port;
	port = free_port();
	second = spawn("other.sock");
	CHECK_INT(wait_exit(second), 1);
	port = first_port;
	CHECK_OK(buf_read_file(&b, in_dir("log"), &e));
	CHECK_CONTAINS(buf_cstr(&b), "is in use by another server");
	finish();
}

/* What was acknowledged is there after kill -9; the authorities are the same ones. */
static void test_restart(void)
{
	BU(GetBundleRequest) grq = SPIRE__API__SERVER__BUNDLE__V1__GET_BUNDLE_REQUEST__INIT;
	EN(GetEntryRequest) erq = SPIRE__API__SERVER__ENTRY__V1__GET_ENTRY_REQUEST__INIT;
	Spire__Api__Types__Bundle *before, *after;
	Spire__Api__Types__Entry *m;
	struct err e;

	serve();
	create_ok("e1", "/a", "uid:1");
	CHECK_OK(CALL(BUNDLE "GetBundle", &grq, spire__api__types__bundle, &before));
	rpc_client_free(local);
	kill(server_pid, SIGKILL);
	CHECK_INT(wait_exit(server_pid), 1000 + SIGKILL);
	CHECK(unlink(in_dir("api.sock")) == 0); /* so that serve() waits for the new one */
	serve();
	erq.id = text("e1");
	CHECK_OK(CALL(ENTRY "GetEntry", &erq, spire__api__types__entry, &m));
	CHECK_STR(m->spiffe_id->path, "/a");
	FREE(m);
	CHECK_OK(CALL(BUNDLE "GetBundle", &grq, spire__api__types__bundle, &after));
	CHECK_INT(after->n_x509_authorities, 1);
	CHECK_BYTES(bytes_of(before->x509_authorities[0]->asn1.data,
			    before->x509_authorities[0]->asn1.len),
		bytes_of(after->x509_authorities[0]->asn1.data,
			after->x509_authorities[0]->asn1.len));
	FREE(before);
	FREE(after);
	finish();
}

TEST_MAIN(TEST(run_server), TEST(test_attest), TEST(test_sign), TEST(test_rate_limit),
	TEST(test_watch), TEST(test_second_server), TEST(test_restart))

#include "spiffe/workload/workload.pb-c.h"
#include "tests/unit/agent/api_rig.inc"

/* The Workload API. */

/* ---- a stream as a client sees it ---- */

struct seen {
	struct rig *r;
	int messages, stop_at;
	size_t svids;
	char *first_id;
	size_t roots;
	bool ended;
	int code;
	char text[200];
};

static void on_message(void *arg, struct rpc_stream *s, const ProtobufCMessage *m)
{
	struct seen *x = arg;

	(void)s;
	x->messages++;
	if (m->descriptor == &x509_svidresponse__descriptor) {
		const X509SVIDResponse *rs = (const X509SVIDResponse *)m;
		struct x509_chain roots = { 0 };
		struct err e = ERR_INIT;

		x->svids = rs->n_svids;
		free(x->first_id);
		x->first_id = xstrdup(rs->svids[0]->spiffe_id);
		CHECK_OK(x509_chain_parse_der(&roots,
			bytes_of(rs->svids[0]->bundle.data, rs->svids[0]->bundle.len), 10, &e));
		x->roots = roots.n;
		x509_chain_deinit(&roots);
	}
	if (x->messages == x->stop_at)
		loop_stop(x->r->loop);
}

static void on_ended(void *arg, struct rpc_stream *s, const struct rpc_status *st)
{
	struct seen *x = arg;

	(void)s;
	x->ended = true;
	x->code = st->code;
	snprintf(x->text, sizeof(x->text), "%s", st->message);
	loop_stop(x->r->loop);
}

static const char *const header[] = { "workload.spiffe.io", "true", NULL };

static struct rpc_stream *open_stream(struct rig *r, struct seen *x, const char *method,
	const ProtobufCMessageDescriptor *d, const char *const *metadata)
{
	struct rpc_stream_options o = { .method = method,
		.response = d,
		.metadata = metadata,
		.message = on_message,
		.ended = on_ended,
		.arg = x };
	X509SVIDRequest rq = X509_SVIDREQUEST__INIT;
	struct rpc_stream *s;

	x->r = r;
	s = rpc_stream_open(r->client, &o);
	rpc_stream_send(s, &rq.base);
	rpc_stream_half_close(s);
	return s;
}

static struct rpc_stream *open_x509(struct rig *r, struct seen *x)
{
	return open_stream(
		r, x, "/SpiffeWorkloadAPI/FetchX509SVID", &x509_svidresponse__descriptor, header);
}

static void run_to(struct rig *r, struct seen *x, int messages)
{
	x->stop_at = messages;
	if (x->messages < messages && !x->ended)
		loop_run(r->loop);
}

static void test_no_header(void)
{
	struct rig r;
	struct seen x = { 0 };
	static const char *const wrong[] = { "workload.spiffe.io", "True", NULL };
	static const char *const twice[] = { "workload.spiffe.io", "true", "workload.spiffe.io",
		"true", NULL };
	static const char *const *const all[] = { NULL, wrong, twice };

	rig_init(&r);
	put_entry(&r, "1", "a", own_uid());
	for (size_t i = 0; i < ARRAY_LEN(all); i++) {
		x = (struct seen){ 0 };
		open_stream(&r, &x, "/SpiffeWorkloadAPI/FetchX509SVID",
			&x509_svidresponse__descriptor, all[i]);
		loop_run(r.loop);
		CHECK_INT(x.code, ERR_INVALID);
		CHECK_STR(x.text, "security header missing from request");
	}
	rig_deinit(&r);
}

static void test_no_identity(void)
{
	struct rig r;
	struct seen x = { 0 };

	rig_init(&r);
	put_entry(&r, "1", "a", "unix:uid:4294967294");
	open_x509(&r, &x);
	loop_run(r.loop);
	CHECK_INT(x.code, ERR_DENIED);
	CHECK_STR(x.text, "no identity issued");
	x = (struct seen){ 0 };
	open_stream(&r, &x, "/SpiffeWorkloadAPI/FetchX509Bundles",
		&x509_bundles_response__descriptor, header);
	loop_run(r.loop);
	CHECK_INT(x.code, ERR_DENIED);
	/* Verifiers without an identity get the own bundle when that is allowed. */
	r.o.allow_unauthenticated_verifiers = true;
	x = (struct seen){ 0 };
	open_stream(&r, &x, "/SpiffeWorkloadAPI/FetchJWTBundles", &jwtbundles_response__descriptor,
		header);
	run_to(&r, &x, 1);
	CHECK_INT(x.messages, 1);
	rig_deinit(&r);
}

static void tick(void *arg)
{
	loop_stop(arg);
}

static void settle(struct rig *r)
{
	struct loop_timer *t = loop_timer_new(r->loop, tick, r->loop);

	loop_timer_set(t, 50 * NS_PER_MS);
	loop_run(r->loop);
	loop_timer_free(t);
}

static void test_stream_follows_changes(void)
{
	struct rig r;
	struct seen x = { 0 };

	rig_init(&r);
	put_entry(&r, "1", "a", own_uid());
	open_x509(&r, &x);
	run_to(&r, &x, 1);
	CHECK_INT(x.svids, 1);
	CHECK_STR(x.first_id, "spiffe://" TD "/a");
	CHECK_INT(x.roots, 1);
	/* What is not its own, and what changes nothing, is not sent. */
	put_entry(&r, "9", "z", "unix:uid:4294967294");
	put_entry(&r, "1", "a", own_uid());
	put_bundle(&r, false);
	settle(&r);
	CHECK_INT(x.messages, 1);
	put_entry(&r, "0", "b", own_uid());
	run_to(&r, &x, 2);
	CHECK_INT(x.svids, 2);
	CHECK_STR(x.first_id, "spiffe://" TD "/b");
	put_bundle(&r, true);
	run_to(&r, &x, 3);
	CHECK_INT(x.roots, 2);
	drop_entry(&r, "0");
	run_to(&r, &x, 4);
	CHECK_INT(x.svids, 1);
	drop_entry(&r, "1");
	loop_run(r.loop);
	CHECK(x.ended);
	CHECK_INT(x.code, ERR_DENIED);
	CHECK_STR(x.text, "no identity issued");
	free(x.first_id);
	rig_deinit(&r);
}

static void test_many_subscribers_share(void)
{
	enum { N = 20 };
	struct rig r;
	struct seen x[N] = { 0 };

	rig_init(&r);
	put_entry(&r, "1", "a", own_uid());
	for (int i = 0; i < N; i++)
		open_x509(&r, &x[i]);
	for (int i = 0; i < N; i++)
		run_to(&r, &x[i], 1);
	put_entry(&r, "2", "b", own_uid());
	for (int i = 0; i < N; i++)
		run_to(&r, &x[i], 2);
	settle(&r);
	for (int i = 0; i < N; i++) {
		CHECK_INT(x[i].messages, 2);
		CHECK_INT(x[i].svids, 2);
		free(x[i].first_id);
	}
	rig_deinit(&r);
}

/* ---- JWT ---- */

static int call(struct rig *r, const char *method, const ProtobufCMessage *rq,
	const ProtobufCMessageDescriptor *d, ProtobufCMessage **ret, struct err *e)
{
	struct rpc_unary_options o = { .method = method,
		.request = rq,
		.response = d,
		.metadata = header,
		.timeout_ms = 5000 };

	return rpc_unary_sync(r->loop, r->client, &o, ret, e);
}

static void test_jwt(void)
{
	struct rig r;
	char a1[] = "aud1", a2[] = "aud2", id[] = "spiffe://" TD "/b", none[] = "spiffe://" TD "/c",
	     bad[] = "x";
	char *aud[] = { a1, a2 };
	JWTSVIDRequest rq;
	ValidateJWTSVIDRequest vq;
	ValidateJWTSVIDResponse *vs;
	JWTSVIDResponse *rs;
	ProtobufCMessage *m = NULL;
	struct err e = ERR_INIT;

	rig_init(&r);
	jwtsvidrequest__init(&rq);
	put_entry(&r, "1", "a", own_uid());
	put_entry(&r, "2", "b", own_uid());
	CHECK_ERR(call(&r, "/SpiffeWorkloadAPI/FetchJWTSVID", &rq.base,
			  &jwtsvidresponse__descriptor, &m, &e),
		ERR_INVALID);
	CHECK_STR(e.msg, "audience must be specified");
	rq.audience = aud;
	rq.n_audience = 2;
	rq.spiffe_id = bad;
	CHECK_ERR(call(&r, "/SpiffeWorkloadAPI/FetchJWTSVID", &rq.base,
			  &jwtsvidresponse__descriptor, &m, &e),
		ERR_INVALID);
	rq.spiffe_id = none;
	CHECK_ERR(call(&r, "/SpiffeWorkloadAPI/FetchJWTSVID", &rq.base,
			  &jwtsvidresponse__descriptor, &m, &e),
		ERR_DENIED);
	CHECK_STR(e.msg, "no identity issued");
	rq.spiffe_id = id;
	CHECK_OK(call(&r, "/SpiffeWorkloadAPI/FetchJWTSVID", &rq.base, &jwtsvidresponse__descriptor,
		&m, &e));
	rs = (JWTSVIDResponse *)m;
	CHECK_INT(rs->n_svids, 1);
	CHECK_STR(rs->svids[0]->spiffe_id, id);
	validate_jwtsvidrequest__init(&vq);
	vq.audience = a2;
	vq.svid = rs->svids[0]->svid;
	CHECK_OK(call(&r, "/SpiffeWorkloadAPI/ValidateJWTSVID", &vq.base,
		&validate_jwtsvidresponse__descriptor, &m, &e));
	vs = (ValidateJWTSVIDResponse *)m;
	CHECK_STR(vs->spiffe_id, id);
	CHECK_INT(vs->claims->n_fields, 4);
	validate_jwtsvidresponse__free_unpacked(vs, NULL);
	vq.audience = bad;
	CHECK_ERR(call(&r, "/SpiffeWorkloadAPI/ValidateJWTSVID", &vq.base,
			  &validate_jwtsvidresponse__descriptor, &m, &e),
		ERR_INVALID);
	/* Validation needs no identity of one's own. */
	drop_entry(&r, "1");
	drop_entry(&r, "2");
	vq.audience = a1;
	CHECK_OK(call(&r, "/SpiffeWorkloadAPI/ValidateJWTSVID", &vq.base,
		&validate_jwtsvidresponse__descriptor, &m, &e));
	protobuf_c_message_free_unpacked(m, NULL);
	jwtsvidresponse__free_unpacked(rs, NULL);
	rig_deinit(&r);
}

TEST_MAIN(TEST(test_no_header), TEST(test_no_identity), TEST(test_stream_follows_changes),
	TEST(test_many_subscribers_share), TEST(test_jwt))

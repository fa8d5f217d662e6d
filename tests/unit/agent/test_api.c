#include "agent/api.h"
#include "lib/door.h"
#include "lib/jwt.h"
#include "spiffe/workload/workload.pb-c.h"
#include "tests/test.h"

/* The Workload API from its socket to the cache, with server and client on one loop. */

#define TD "example.org"

struct rig {
	struct loop *loop;
	struct agent_options o;
	struct api api;
	struct rpc_server *server;
	struct door *door;
	struct rpc_client *client;
	char *path;
	struct key *ca;
	struct x509_cert *root;
	int closing;
};

static int sign(void *arg, enum hash h, struct bytes d, struct buf *ret, struct err *e)
{
	return key_sign(arg, h, d, SIG_X509, ret, e);
}

static int sign_jws(void *arg, enum hash h, struct bytes d, struct buf *ret, struct err *e)
{
	return key_sign(arg, h, d, SIG_JWS, ret, e);
}

static void make_cert(struct rig *r, const char *uri, bool ca, struct key *k, struct buf *ret)
{
	struct buf name = BUF_INIT;
	struct err e = ERR_INIT;
	uint8_t serial[16];
	struct x509_name n = { .country = "US", .organization = "SPIFFE" };
	int64_t now = clock_wall().sec;
	struct x509_signer signer = { .type = KEY_EC_P256, .sign = sign, .arg = r->ca };
	struct x509_template t = { .not_before = wall_of_sec(now - 10),
		.not_after = wall_of_sec(now + 3600),
		.spki = pubkey_spki(key_public(k)),
		.is_ca = ca,
		.key_usage = ca ? KU_CERT_SIGN | KU_CRL_SIGN : KU_DIGITAL_SIGNATURE,
		.uris = &uri,
		.n_uris = 1 };

	x509_random_serial(serial);
	x509_name_der(&n, &name);
	t.serial = bytes_of(serial, 16);
	t.subject_raw = t.issuer_raw = buf_view(&name);
	CHECK_OK(x509_build(&t, &signer, ret, &e));
	buf_deinit(&name);
}

static void fetch(void *arg, const char *entry_id, const struct strings *audience, void *ticket)
{
	struct rig *r = arg;
	struct buf token = BUF_INIT;
	struct err e = ERR_INIT;
	int64_t now = clock_wall().sec;
	const struct record *rec = cache_find(r->api.cache, entry_id);
	struct x509_signer s = { .type = KEY_EC_P256, .sign = sign_jws, .arg = r->ca };
	struct jwt_claims c = { .sub = rec->entry.spiffe_id,
		.aud = (const char *const *)audience->v,
		.n_aud = audience->n,
		.exp = now + 300,
		.iat = now };
	struct jwt_svid j = { .issued_at = now, .expires_at = now + 300 };

	CHECK_OK(jwt_sign(&c, "kid1", &s, &token, &e));
	j.token = buf_take_str(&token);
	jwtcache_fetched(r->api.jwt, ticket, &j, NULL);
	free(j.token);
}

static void sign_wanted(void *arg)
{
	struct rig *r = arg;
	struct record *rec;

	while ((rec = cache_next_wanted(r->api.cache)) != NULL) {
		struct key *k;
		struct buf der = BUF_INIT, pkcs8 = BUF_INIT_SECRET;
		struct err e = ERR_INIT;
		struct svid *s;
		struct bytes cert;

		CHECK_OK(key_generate(KEY_EC_P256, &k, &e));
		make_cert(r, rec->entry.spiffe_id, false, k, &der);
		key_to_pkcs8(k, &pkcs8);
		cert = buf_view(&der);
		CHECK_OK(svid_new(&cert, 1, buf_view(&pkcs8), pubkey_spki(key_public(k)),
			rec->entry.spiffe_id, &s, &e));
		cache_signed(r->api.cache, rec->entry.id, rec->entry.revision_number, s);
		svid_unref(s);
		key_unref(k);
		buf_deinit(&der);
		buf_deinit(&pkcs8);
	}
}

static void on_wanted(void *arg)
{
	struct rig *r = arg;

	loop_post(r->loop, sign_wanted, r);
}

static void on_conn(void *arg, int fd, struct peer *p)
{
	struct rig *r = arg;

	rpc_server_conn(r->server, fd, p);
}

static int dial(void *arg, struct dial_options *d, struct err *e)
{
	struct rig *r = arg;

	(void)e;
	d->unix_path = r->path;
	d->timeout_ms = 5000;
	return 0;
}

static void put_bundle(struct rig *r, bool more)
{
	struct cache_update u = { 0 };
	struct buf der = BUF_INIT;
	struct err e = ERR_INIT;

	u.bundle = bundle_new(TD);
	bundle_add_root(u.bundle, r->root, false);
	if (more) {
		struct x509_cert *c;

		make_cert(r, "spiffe://" TD, true, r->ca, &der);
		CHECK_OK(x509_parse(buf_view(&der), &c, &e));
		bundle_add_root(u.bundle, c, false);
		x509_unref(c);
		buf_deinit(&der);
	}
	bundle_add_jwt_key(u.bundle, "kid1", key_public(r->ca), 0, false);
	cache_apply(r->api.cache, &u);
	cache_update_deinit(&u);
}

static void rig_init(struct rig *r)
{
	struct cache_options co = { .trust_domain = TD, .x509_max = 10, .wanted = on_wanted };
	struct rpc_server_options so = { .local = true, .authorize = api_public_authorize };
	struct rpc_client_options cl = { .dial = dial, .arg = r };
	struct door_options d = { .unix_mode = 0777, .on_conn = on_conn };
	struct buf der = BUF_INIT;
	struct err e = ERR_INIT;

	crypto_init();
	memset(r, 0, sizeof(*r));
	r->o = (struct agent_options){ .attestor_unix = true };
	r->o.trust_domain = xstrdup(TD);
	r->loop = co.loop = loop_new();
	co.arg = r;
	r->path = xasprintf("%s/api.sock", test_dir());
	CHECK_OK(key_generate(KEY_EC_P256, &r->ca, &e));
	make_cert(r, "spiffe://" TD, true, r->ca, &der);
	CHECK_OK(x509_parse(buf_view(&der), &r->root, &e));
	buf_deinit(&der);
	r->api = (struct api){ .loop = r->loop, .options = &r->o, .cache = cache_new(&co) };
	r->api.jwt = jwtcache_new(r->loop, 100, fetch, r);
	r->api.workload = workload_new(r->loop, &r->o);
	put_bundle(r, false);
	so.arg = &r->api;
	CHECK_OK(rpc_server_new(r->loop, &so, &r->server, &e));
	api_workload_add(r->server, &r->api);
	rpc_server_start(r->server);
	d.unix_path = r->path;
	d.arg = r;
	CHECK_OK(door_open(r->loop, &d, &r->door, &e));
	r->client = rpc_client_new(r->loop, &cl);
}

static void closed(void *arg)
{
	struct rig *r = arg;

	if (--r->closing == 0)
		loop_stop(r->loop);
}

static void rig_deinit(struct rig *r)
{
	rpc_client_free(r->client);
	cache_stop(r->api.cache);
	r->closing = 2;
	rpc_server_stop(r->server, 100, closed, r);
	door_close(r->door, 100, closed, r);
	loop_run(r->loop);
	rpc_server_free(r->server);
	loop_run(r->loop);
	jwtcache_free(r->api.jwt);
	workload_free(r->api.workload);
	cache_free(r->api.cache);
	key_unref(r->ca);
	x509_unref(r->root);
	loop_free(r->loop);
	free(r->path);
	free(r->o.trust_domain);
}

static void put_entry(struct rig *r, const char *id, const char *path, const char *selector)
{
	struct cache_update u = { 0 };
	struct entry *en = u.entries = xcalloc(1, sizeof(*en));
	struct err e = ERR_INIT;

	u.n_entries = 1;
	en->id = xstrdup(id);
	en->spiffe_id = xasprintf("spiffe://" TD "/%s", path);
	en->parent_id = xstrdup("");
	en->hint = xstrdup("");
	CHECK_OK(selectors_add_text(&en->selectors, selector, &e));
	cache_apply(r->api.cache, &u);
	cache_update_deinit(&u);
}

static void drop_entry(struct rig *r, const char *id)
{
	struct cache_update u = { 0 };

	strings_add(&u.removed, id);
	cache_apply(r->api.cache, &u);
	cache_update_deinit(&u);
}

static const char *own_uid(void)
{
	static char s[64];

	snprintf(s, sizeof(s), "unix:uid:%u", (unsigned)geteuid());
	return s;
}

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

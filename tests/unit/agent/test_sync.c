#include "agent/sync.h"
#include "assay/agent/v1/sync.pb-c.h"
#include "lib/door.h"
#include "spire/api/server/agent/v1/agent.pb-c.h"
#include "spire/api/server/bundle/v1/bundle.pb-c.h"
#include "spire/api/server/entry/v1/entry.pb-c.h"
#include "spire/api/server/svid/v1/svid.pb-c.h"
#include "spire/api/types/status.pb-c.h"
#include "tests/test.h"

/* The conversation with a server that does as it is told. */

#define TD "td"
#define AGENT_ID "spiffe://td/spire/agent/join_token/t1"

enum { ENTRIES_MAX = 32, REVISION_PAGE = 2, GRACE_MS = 100 };

struct fake {
	struct key *ca, *key;
	struct x509_cert *root;
	struct tls_ctx *tls;
	struct rpc_server *rpc;
	struct door *door;
	/* what it does */
	bool push;          /* has Sync/Watch */
	size_t batch_limit; /* more CSRs: RESOURCE_EXHAUSTED; 0: none */
	const char *refuse; /* AttestAgent fails so, INVALID_ARGUMENT */
	int64_t agent_ttl;
	int entries[ENTRIES_MAX]; /* numbers, 0: none */
	int revisions[ENTRIES_MAX];
	/* what it saw */
	int attests, renewals, batches, signed_, ids_asked;
	size_t largest_batch;
	char *start_epoch;
	uint64_t start_change, acked;
	struct rpc_call *watch; /* the open stream */
	uint64_t change;
};

struct rig {
	struct loop *loop;
	struct fake f;
	struct agent_options o;
	struct keymgr *keys;
	struct cache *cache;
	struct jwtcache *jwt;
	struct sync *sync;
	bool ready;
	char *fatal;
	int closing;
};

/* ---- certificates ---- */

static int sign(void *arg, enum hash h, struct bytes d, struct buf *ret, struct err *e)
{
	return key_sign(arg, h, d, SIG_X509, ret, e);
}

static void make_cert(
	struct fake *f, const char *uri, bool ca, struct bytes spki, int64_t ttl, struct buf *ret)
{
	struct buf name = BUF_INIT;
	struct err e = ERR_INIT;
	uint8_t serial[16];
	struct x509_name n = { .organization = "test" };
	struct wall now = clock_wall();
	struct x509_signer signer = { .type = KEY_EC_P256, .sign = sign, .arg = f->ca };
	struct x509_template t = { .not_before = wall_of_sec(now.sec - 10),
		.not_after = wall_of_sec(now.sec + ttl),
		.spki = spki,
		.is_ca = ca,
		.key_usage = ca ? KU_CERT_SIGN : KU_DIGITAL_SIGNATURE,
		.eku_server_client = !ca,
		.uris = &uri,
		.n_uris = 1 };

	x509_random_serial(serial);
	x509_name_der(&n, &name);
	t.serial = bytes_of(serial, 16);
	t.subject_raw = t.issuer_raw = buf_view(&name);
	CHECK_OK(x509_build(&t, &signer, ret, &e));
	buf_deinit(&name);
}

/* A chain of one for the key of a CSR. */
static void sign_csr(struct fake *f, const ProtobufCBinaryData *csr, const char *uri, int64_t ttl,
	struct buf *ret)
{
	struct x509_csr c = { 0 };
	struct err e = ERR_INIT;

	CHECK_OK(x509_csr_parse(bytes_of(csr->data, csr->len), &c, &e));
	CHECK_OK(x509_csr_check_signature(&c, &e));
	make_cert(f, uri, false, pubkey_spki(c.pubkey), ttl, ret);
	x509_csr_deinit(&c);
}

/* ---- services ---- */

static Spire__Api__Types__Bundle *bundle_msg(struct fake *f)
{
	struct bundle *b = bundle_new(TD);
	Spire__Api__Types__Bundle *m;

	bundle_add_root(b, f->root, false);
	b->sequence = 1;
	m = bundle_to_proto(b);
	bundle_unref(b);
	return m;
}

static void entry_msg(struct fake *f, int i, Spire__Api__Types__Entry **ret)
{
	AUTO(free) char *id = xasprintf("e%d", f->entries[i]);
	AUTO(free) char *uri = xasprintf("spiffe://" TD "/w%d", f->entries[i]);
	struct entry en = { .id = id, .spiffe_id = uri, .revision_number = f->revisions[i] };
	char none[] = "";

	en.parent_id = none;
	en.hint = none;
	selectors_add(&en.selectors, "unix", log_fmt("uid:%d", f->entries[i]));
	*ret = entry_to_proto(&en);
	selectors_deinit(&en.selectors);
}

static void on_attest(struct rpc_call *c, const ProtobufCMessage *m)
{
	struct fake *f = rpc_call_data(c);
	const Spire__Api__Server__Agent__V1__AttestAgentRequest *rq =
		(const Spire__Api__Server__Agent__V1__AttestAgentRequest *)m;
	Spire__Api__Server__Agent__V1__AttestAgentResponse rs;
	Spire__Api__Server__Agent__V1__AttestAgentResponse__Result res;
	Spire__Api__Types__X509SVID svid;
	ProtobufCBinaryData chain;
	AUTO_BUF struct buf der = BUF_INIT;

	if (!rq || rpc_call_ended(c))
		return;
	f->attests++;
	if (f->refuse) {
		rpc_fail(c, ERR_INVALID, "%s", f->refuse);
		return;
	}
	CHECK_STR(rq->params->data->type, "join_token");
	sign_csr(f, &rq->params->params->csr, AGENT_ID, f->agent_ttl, &der);
	spire__api__server__agent__v1__attest_agent_response__init(&rs);
	spire__api__server__agent__v1__attest_agent_response__result__init(&res);
	spire__api__types__x509_svid__init(&svid);
	chain = (ProtobufCBinaryData){ .data = der.p, .len = der.len };
	svid.n_cert_chain = 1;
	svid.cert_chain = &chain;
	res.svid = &svid;
	rs.step_case = SPIRE__API__SERVER__AGENT__V1__ATTEST_AGENT_RESPONSE__STEP_RESULT;
	rs.result = &res;
	rpc_send(c, &rs.base);
	rpc_finish(c);
}

static void attest_agent(struct rpc_call *c, const ProtobufCMessage *req)
{
	(void)req;
	rpc_read(c, on_attest);
}

static void renew_agent(struct rpc_call *c, const ProtobufCMessage *req)
{
	struct fake *f = rpc_call_data(c);
	const Spire__Api__Server__Agent__V1__RenewAgentRequest *rq =
		(const Spire__Api__Server__Agent__V1__RenewAgentRequest *)req;
	Spire__Api__Server__Agent__V1__RenewAgentResponse rs;
	Spire__Api__Types__X509SVID svid;
	ProtobufCBinaryData chain;
	AUTO_BUF struct buf der = BUF_INIT;

	CHECK_STR(rpc_call_peer(c)->id.text, AGENT_ID);
	f->renewals++;
	sign_csr(f, &rq->params->csr, AGENT_ID, f->agent_ttl, &der);
	spire__api__server__agent__v1__renew_agent_response__init(&rs);
	spire__api__types__x509_svid__init(&svid);
	chain = (ProtobufCBinaryData){ .data = der.p, .len = der.len };
	svid.n_cert_chain = 1;
	svid.cert_chain = &chain;
	rs.svid = &svid;
	rpc_reply(c, &rs.base);
}

static void get_bundle(struct rpc_call *c, const ProtobufCMessage *req)
{
	Spire__Api__Types__Bundle *m = bundle_msg(rpc_call_data(c));

	(void)req;
	rpc_reply(c, &m->base);
	spire__api__types__bundle__free_unpacked(m, NULL);
}

static void batch_new(struct rpc_call *c, const ProtobufCMessage *req)
{
	struct fake *f = rpc_call_data(c);
	const Spire__Api__Server__Svid__V1__BatchNewX509SVIDRequest *rq =
		(const Spire__Api__Server__Svid__V1__BatchNewX509SVIDRequest *)req;
	Spire__Api__Server__Svid__V1__BatchNewX509SVIDResponse *rs = xmalloc(sizeof(*rs));

	f->batches++;
	if (rq->n_params > f->largest_batch)
		f->largest_batch = rq->n_params;
	if (f->batch_limit && rq->n_params > f->batch_limit) {
		free(rs);
		rpc_fail(c, ERR_EXHAUSTED, "too many");
		return;
	}
	spire__api__server__svid__v1__batch_new_x509_svidresponse__init(rs);
	rs->results = xcalloc(rq->n_params,
		sizeof(Spire__Api__Server__Svid__V1__BatchNewX509SVIDResponse__Result *));
	for (size_t i = 0; i < rq->n_params; i++) {
		Spire__Api__Server__Svid__V1__BatchNewX509SVIDResponse__Result *r =
			xmalloc(sizeof(*r));
		AUTO(free)
		char *uri = xasprintf("spiffe://" TD "/w%s", rq->params[i]->entry_id + 1);
		struct buf der = BUF_INIT;

		spire__api__server__svid__v1__batch_new_x509_svidresponse__result__init(r);
		r->status = xmalloc(sizeof(*r->status));
		spire__api__types__status__init(r->status);
		r->svid = xmalloc(sizeof(*r->svid));
		spire__api__types__x509_svid__init(r->svid);
		sign_csr(f, &rq->params[i]->csr, uri, 3600, &der);
		r->svid->n_cert_chain = 1;
		r->svid->cert_chain = xmalloc(sizeof(ProtobufCBinaryData));
		r->svid->cert_chain[0].len = der.len;
		r->svid->cert_chain[0].data = xmemdup(der.p, der.len);
		buf_deinit(&der);
		rs->results[rs->n_results++] = r;
		f->signed_++;
	}
	rpc_reply(c, &rs->base);
	spire__api__server__svid__v1__batch_new_x509_svidresponse__free_unpacked(rs, NULL);
}

/* All entries in one full set of two pages, or the rest as one delta. */
static void send_set(struct fake *f, int from, int to, bool full, bool more)
{
	Assay__Agent__V1__WatchResponse *rs = xmalloc(sizeof(*rs));

	assay__agent__v1__watch_response__init(rs);
	rs->epoch = xstrdup("epoch1");
	rs->change = f->change;
	rs->full = full;
	rs->more = more;
	rs->entries = xcalloc(ENTRIES_MAX, sizeof(Spire__Api__Types__Entry *));
	for (int i = from; i < to; i++) {
		if (f->entries[i])
			entry_msg(f, i, &rs->entries[rs->n_entries++]);
	}
	if (full)
		rs->bundle = bundle_msg(f);
	rpc_send(f->watch, &rs->base);
	assay__agent__v1__watch_response__free_unpacked(rs, NULL);
}

static void second_page(struct rpc_call *c)
{
	struct fake *f = rpc_call_data(c);

	rpc_on_writable(c, NULL);
	send_set(f, 1, ENTRIES_MAX, false, false);
}

static void watch_ended(struct rpc_call *c)
{
	struct fake *f = rpc_call_data(c);

	if (f->watch == c)
		f->watch = NULL;
	rpc_call_unref(c);
}

static void on_watch(struct rpc_call *c, const ProtobufCMessage *m)
{
	struct fake *f = rpc_call_data(c);
	const Assay__Agent__V1__WatchRequest *rq = (const Assay__Agent__V1__WatchRequest *)m;

	if (!rq || rpc_call_ended(c))
		return;
	if (rq->step_case == ASSAY__AGENT__V1__WATCH_REQUEST__STEP_ACK) {
		f->acked = rq->ack->change;
	} else {
		free(f->start_epoch);
		f->start_epoch = xstrdup(rq->start->epoch);
		f->start_change = rq->start->change;
		f->watch = rpc_call_ref(c);
		rpc_call_on_end(c, watch_ended);
		rpc_on_writable(c, second_page);
		f->change++;
		send_set(f, 0, 1, true, true);
	}
	rpc_read(c, on_watch);
}

static void watch(struct rpc_call *c, const ProtobufCMessage *req)
{
	(void)req;
	rpc_read(c, on_watch);
}

/* Revisions, two to a page; then whatever ids are asked for. */
static void next_revisions(struct rpc_call *c)
{
	struct fake *f = rpc_call_data(c);
	Spire__Api__Server__Entry__V1__SyncAuthorizedEntriesResponse *rs;
	int at = (int)(intptr_t)rpc_call_user(c);

	if (at >= ENTRIES_MAX)
		return;
	rs = xmalloc(sizeof(*rs));
	spire__api__server__entry__v1__sync_authorized_entries_response__init(rs);
	rs->entry_revisions =
		xcalloc(REVISION_PAGE, sizeof(Spire__Api__Server__Entry__V1__EntryRevision *));
	for (; at < ENTRIES_MAX && rs->n_entry_revisions < REVISION_PAGE; at++) {
		Spire__Api__Server__Entry__V1__EntryRevision *r;

		if (!f->entries[at])
			continue;
		r = xmalloc(sizeof(*r));
		spire__api__server__entry__v1__entry_revision__init(r);
		r->id = xasprintf("e%d", f->entries[at]);
		r->revision_number = f->revisions[at];
		rs->entry_revisions[rs->n_entry_revisions++] = r;
	}
	for (int i = at; i < ENTRIES_MAX; i++)
		rs->more |= f->entries[i] != 0;
	rpc_call_set_user(c, (void *)(intptr_t)(rs->more ? at : ENTRIES_MAX));
	rpc_send(c, &rs->base);
	spire__api__server__entry__v1__sync_authorized_entries_response__free_unpacked(rs, NULL);
}

static void on_sync(struct rpc_call *c, const ProtobufCMessage *m)
{
	struct fake *f = rpc_call_data(c);
	const Spire__Api__Server__Entry__V1__SyncAuthorizedEntriesRequest *rq =
		(const Spire__Api__Server__Entry__V1__SyncAuthorizedEntriesRequest *)m;
	Spire__Api__Server__Entry__V1__SyncAuthorizedEntriesResponse *rs;

	if (!rq || rpc_call_ended(c))
		return;
	if (rq->n_ids == 0) {
		rpc_on_writable(c, next_revisions);
		next_revisions(c);
		rpc_read(c, on_sync);
		return;
	}
	CHECK(rq->n_ids <= REVISION_PAGE);
	f->ids_asked += (int)rq->n_ids;
	rs = xmalloc(sizeof(*rs));
	spire__api__server__entry__v1__sync_authorized_entries_response__init(rs);
	rs->entries = xcalloc(rq->n_ids, sizeof(Spire__Api__Types__Entry *));
	for (size_t k = 0; k < rq->n_ids; k++) {
		for (int i = 0; i < ENTRIES_MAX; i++) {
			if (f->entries[i] && strcmp(log_fmt("e%d", f->entries[i]), rq->ids[k]) == 0)
				entry_msg(f, i, &rs->entries[rs->n_entries++]);
		}
	}
	rpc_send(c, &rs->base);
	spire__api__server__entry__v1__sync_authorized_entries_response__free_unpacked(rs, NULL);
	rpc_read(c, on_sync);
}

static void sync_entries(struct rpc_call *c, const ProtobufCMessage *req)
{
	(void)req;
	rpc_read(c, on_sync);
}

static const struct rpc_method agent_methods[] = {
	{ "AttestAgent", RPC_BIDI, attest_agent },
	{ "RenewAgent", RPC_UNARY, renew_agent },
};
static const struct rpc_method bundle_methods[] = { { "GetBundle", RPC_UNARY, get_bundle } };
static const struct rpc_method svid_methods[] = { { "BatchNewX509SVID", RPC_UNARY, batch_new } };
static const struct rpc_method entry_methods[] = { { "SyncAuthorizedEntries", RPC_BIDI,
	sync_entries } };
static const struct rpc_method sync_methods[] = { { "Watch", RPC_BIDI, watch } };

/* ---- the fake, up and down ---- */

static struct tls_ctx *fake_tls(void *arg)
{
	struct rig *r = arg;

	return tls_ctx_ref(r->f.tls);
}

static int fake_verify(void *arg, const struct x509_chain *peer, struct err *e)
{
	struct rig *r = arg;
	struct x509_chain roots = { .v = &r->f.root, .n = 1 };

	return peer->n ? x509_verify(peer, &roots, clock_wall(), e) : 0;
}

static void fake_conn(void *arg, int fd, struct peer *p)
{
	struct rig *r = arg;

	rpc_server_conn(r->f.rpc, fd, p);
}

static void fake_up(struct rig *r)
{
	static struct rpc_service svc[5];
	struct fake *f = &r->f;
	struct rpc_server_options so = { 0 };
	struct door_options d = { .tcp_host = "127.0.0.1",
		.tcp_port = r->o.server_port,
		.tls = fake_tls,
		.verify = fake_verify,
		.on_conn = fake_conn,
		.arg = r };
	struct err e = ERR_INIT;

	svc[0] = (struct rpc_service){ &spire__api__server__agent__v1__agent__descriptor,
		agent_methods, ARRAY_LEN(agent_methods), f };
	svc[1] = (struct rpc_service){ &spire__api__server__bundle__v1__bundle__descriptor,
		bundle_methods, 1, f };
	svc[2] = (struct rpc_service){ &spire__api__server__svid__v1__svid__descriptor,
		svid_methods, 1, f };
	svc[3] = (struct rpc_service){ &spire__api__server__entry__v1__entry__descriptor,
		entry_methods, 1, f };
	svc[4] = (struct rpc_service){ &assay__agent__v1__sync__descriptor, sync_methods, 1, f };
	CHECK_OK(rpc_server_new(r->loop, &so, &f->rpc, &e));
	for (int i = 0; i < (f->push ? 5 : 4); i++)
		rpc_server_add(f->rpc, &svc[i]);
	rpc_server_start(f->rpc);
	CHECK_OK(door_open(r->loop, &d, &f->door, &e));
	r->o.server_port = door_port(f->door);
}

static void closed(void *arg)
{
	struct rig *r = arg;

	if (--r->closing == 0)
		loop_stop(r->loop);
}

static void fake_down(struct rig *r)
{
	if (!r->f.rpc)
		return;
	r->closing = 2;
	rpc_server_stop(r->f.rpc, GRACE_MS, closed, r);
	door_close(r->f.door, GRACE_MS, closed, r);
	while (r->closing)
		loop_run(r->loop);
	rpc_server_free(r->f.rpc);
	r->f.rpc = NULL;
}

/* ---- the agent, up and down ---- */

static void on_ready(void *arg)
{
	((struct rig *)arg)->ready = true;
}

static void on_fatal(void *arg, const char *msg)
{
	struct rig *r = arg;

	free(r->fatal);
	r->fatal = xstrdup(msg);
}

static void on_wanted(void *arg)
{
	struct rig *r = arg;

	if (r->sync)
		sync_wanted(r->sync);
}

static void on_changed(void *arg)
{
	struct rig *r = arg;

	if (r->sync)
		sync_changed(r->sync);
}

static void no_jwt(void *arg, const char *id, const struct strings *audience, void *ticket)
{
	(void)arg;
	(void)id;
	(void)audience;
	(void)ticket;
}

static void agent_up(struct rig *r)
{
	AUTO(free) char *keys = xasprintf("%s/keys.json", test_dir());
	struct cache_options co = { .loop = r->loop,
		.trust_domain = TD,
		.x509_max = 100,
		.wanted = on_wanted,
		.changed = on_changed,
		.arg = r };
	struct sync_options so = {
		.loop = r->loop, .options = &r->o, .ready = on_ready, .fatal = on_fatal, .arg = r
	};
	struct err e = ERR_INIT;

	r->ready = false;
	CHECK_OK(keymgr_disk_new(keys, &r->keys, &e));
	so.cache = r->cache = cache_new(&co);
	so.jwt = r->jwt = jwtcache_new(r->loop, 10, no_jwt, r);
	so.keys = r->keys;
	CHECK_OK(sync_new(&so, &r->sync, &e));
	sync_start(r->sync);
}

static void agent_down(struct rig *r)
{
	struct sync *s = r->sync;

	cache_stop(r->cache);
	sync_stop(s);
	r->sync = NULL;
	loop_drain(r->loop);
	jwtcache_free(r->jwt);
	sync_free(s);
	cache_free(r->cache);
	keymgr_free(r->keys);
}

static void rig_init(struct rig *r)
{
	struct buf der = BUF_INIT;
	struct x509_cert *leaf;
	struct x509_chain ch;
	struct tls_options t = {
		.server = true, .chain = &ch, .client_cert = TLS_CLIENT_CERT_OPTIONAL, .alpn = "h2"
	};
	struct err e = ERR_INIT;
	struct fake *f = &r->f;

	crypto_init();
	log_set_level(LOG_FATAL);
	memset(r, 0, sizeof(*r));
	r->loop = loop_new();
	f->agent_ttl = 3600;
	f->push = true;
	CHECK_OK(key_generate(KEY_EC_P256, &f->ca, &e));
	CHECK_OK(key_generate(KEY_EC_P256, &f->key, &e));
	make_cert(f, "spiffe://" TD, true, pubkey_spki(key_public(f->ca)), 86400, &der);
	CHECK_OK(x509_parse(buf_view(&der), &f->root, &e));
	buf_deinit(&der);
	make_cert(f, "spiffe://" TD "/spire/server", false, pubkey_spki(key_public(f->key)), 86400,
		&der);
	CHECK_OK(x509_parse(buf_view(&der), &leaf, &e));
	buf_deinit(&der);
	ch = (struct x509_chain){ .v = &leaf, .n = 1 };
	t.key = f->key;
	CHECK_OK(tls_ctx_new(&t, &f->tls, &e));
	x509_unref(leaf);
	r->o = (struct agent_options){ .insecure_bootstrap = true,
		.workload_key_type = KEY_EC_P256,
		.sync_interval_ns = 200 * NS_PER_MS,
		.use_sync_authorized_entries = true };
	r->o.trust_domain = xstrdup(TD);
	r->o.server_address = xstrdup("127.0.0.1");
	r->o.data_dir = xstrdup(test_dir());
	r->o.join_token = xstrdup("t1");
}

static void rig_deinit(struct rig *r)
{
	fake_down(r);
	tls_ctx_unref(r->f.tls);
	x509_unref(r->f.root);
	key_unref(r->f.ca);
	key_unref(r->f.key);
	free(r->f.start_epoch);
	free(r->o.trust_domain);
	free(r->o.server_address);
	free(r->o.data_dir);
	free(r->o.join_token);
	free(r->fatal);
	loop_drain(r->loop);
	loop_run(r->loop);
	loop_free(r->loop);
}

static void tick(void *arg)
{
	loop_stop(arg);
}

/* Turns the loop until it is so, for at most ten seconds. */
#define WAIT_FOR(r, cond)                                                                          \
	do {                                                                                       \
		struct loop_timer *t_ = loop_timer_new((r)->loop, tick, (r)->loop);                \
		int n_ = 0;                                                                        \
		while (!(cond)) {                                                                  \
			if (++n_ > 1000)                                                           \
				TEST_FAIL("did not come true: %s", #cond);                         \
			loop_timer_set(t_, 10 * NS_PER_MS);                                        \
			loop_run((r)->loop);                                                       \
		}                                                                                  \
		loop_timer_free(t_);                                                               \
	} while (0)

static struct sync_state state(struct rig *r)
{
	struct sync_state st;

	sync_state(r->sync, &st);
	return st;
}

/* ---- tests ---- */

static void test_attest_and_watch(void)
{
	struct rig r;

	rig_init(&r);
	r.f.entries[0] = 1;
	r.f.entries[1] = 2;
	fake_up(&r);
	agent_up(&r);
	WAIT_FOR(&r, r.ready && cache_count_svids(r.cache) == 2);
	CHECK_INT(r.f.attests, 1);
	CHECK_INT(state(&r).mode, SYNC_WATCH);
	CHECK_STR(state(&r).epoch, "epoch1");
	CHECK_STR(r.f.start_epoch, "");
	WAIT_FOR(&r, r.f.acked == 1);
	/* A change is pushed, applied, signed, acknowledged. */
	r.f.entries[2] = 3;
	r.f.change = 7;
	send_set(&r.f, 2, 3, false, false);
	WAIT_FOR(&r, cache_count_svids(r.cache) == 3 && r.f.acked == 7);
	/* The server goes and comes: the agent goes on from where it was. */
	fake_down(&r);
	WAIT_FOR(&r, state(&r).error[0]);
	CHECK_INT(cache_count(r.cache), 3);
	fake_up(&r);
	WAIT_FOR(&r, !state(&r).error[0]);
	CHECK_STR(r.f.start_epoch, "epoch1");
	CHECK_INT(r.f.start_change, 7);
	CHECK_INT(r.f.attests, 1);
	CHECK_INT(r.f.signed_, 3);
	agent_down(&r);
	rig_deinit(&r);
}

static void test_serves_from_the_sealed_store(void)
{
	struct rig r;
	struct wall later;
	int64_t last;

	rig_init(&r);
	for (int i = 0; i < 5; i++)
		r.f.entries[i] = i + 1;
	fake_up(&r);
	agent_up(&r);
	WAIT_FOR(&r, cache_count_svids(r.cache) == 5);
	agent_down(&r);
	fake_down(&r);
	agent_up(&r);
	CHECK(r.ready); /* at once */
	CHECK_INT(cache_count(r.cache), 5);
	CHECK_INT(cache_count_svids(r.cache), 5);
	CHECK_INT(state(&r).mode, SYNC_OFFLINE);
	last = state(&r).last_success;
	CHECK(last > 0);
	later = wall_add_ns(clock_wall(), 3 * NS_PER_SEC);
	clock_set_wall_for_test(&later);
	WAIT_FOR(&r, state(&r).error[0]);
	CHECK_INT(state(&r).last_success, last); /* an attempt is no success */
	clock_set_wall_for_test(NULL);
	fake_up(&r);
	WAIT_FOR(&r, state(&r).mode == SYNC_WATCH);
	CHECK_INT(r.f.attests, 1);
	CHECK_INT(r.f.signed_, 5);
	agent_down(&r);
	rig_deinit(&r);
}

static void test_damaged_store_is_kept(void)
{
	struct rig r;
	AUTO(free) char *path = xasprintf("%s/sealed.bin", test_dir());
	AUTO(free) char *kept = xasprintf("%s.damaged", path);
	AUTO_BUF struct buf b = BUF_INIT;
	struct err e = ERR_INIT;

	rig_init(&r);
	r.f.entries[0] = 1;
	fake_up(&r);
	agent_up(&r);
	WAIT_FOR(&r, cache_count_svids(r.cache) == 1);
	agent_down(&r);
	CHECK_OK(buf_write_file(bytes_str("assay sealed 1\nrubbish"), path, 0600, &e));
	agent_up(&r);
	CHECK_INT(cache_count(r.cache), 0);
	WAIT_FOR(&r, cache_count_svids(r.cache) == 1);
	CHECK_OK(buf_read_file(&b, kept, &e));
	CHECK_STR(buf_cstr(&b), "assay sealed 1\nrubbish");
	agent_down(&r);
	rig_deinit(&r);
}

static void test_polls_where_nothing_is_pushed(void)
{
	struct rig r;

	rig_init(&r);
	r.f.push = false;
	for (int i = 0; i < 5; i++)
		r.f.entries[i] = i + 1;
	fake_up(&r);
	agent_up(&r);
	WAIT_FOR(&r, cache_count_svids(r.cache) == 5);
	CHECK_INT(state(&r).mode, SYNC_POLL);
	CHECK_INT(r.f.ids_asked, 5);
	r.f.entries[1] = 0;
	r.f.entries[6] = 7;
	r.f.revisions[0] = 1;
	WAIT_FOR(&r, cache_find(r.cache, "e7") && !cache_find(r.cache, "e2"));
	CHECK_INT(cache_find(r.cache, "e1")->entry.revision_number, 1);
	/* Only what is new was asked for, and only that was signed. */
	CHECK_INT(r.f.ids_asked, 7);
	WAIT_FOR(&r, r.f.signed_ == 7);
	agent_down(&r);
	rig_deinit(&r);
}

static void test_smaller_batches(void)
{
	struct rig r;

	rig_init(&r);
	r.f.batch_limit = 4;
	for (int i = 0; i < 20; i++)
		r.f.entries[i] = i + 1;
	fake_up(&r);
	agent_up(&r);
	WAIT_FOR(&r, cache_count_svids(r.cache) == 20);
	CHECK(r.f.largest_batch > 4);
	CHECK_INT(r.f.signed_, 20);
	agent_down(&r);
	rig_deinit(&r);
}

static void test_renews(void)
{
	struct rig r;

	rig_init(&r);
	r.f.agent_ttl = 5;
	fake_up(&r);
	agent_up(&r);
	WAIT_FOR(&r, r.f.renewals >= 2);
	WAIT_FOR(&r, state(&r).mode == SYNC_WATCH && !state(&r).error[0]);
	CHECK_INT(r.f.attests, 1);
	CHECK(!r.fatal);
	agent_down(&r);
	rig_deinit(&r);
}

static void test_banned(void)
{
	struct rig r;
	Spire__Api__Types__PermissionDeniedDetails d =
		SPIRE__API__TYPES__PERMISSION_DENIED_DETAILS__INIT;
	struct strings names = { 0 };
	struct err e = ERR_INIT;
	AUTO(free) char *sealed = xasprintf("%s/sealed.bin", test_dir());

	rig_init(&r);
	r.f.entries[0] = 1;
	fake_up(&r);
	agent_up(&r);
	WAIT_FOR(&r, r.f.watch && r.f.acked && access(sealed, F_OK) == 0);
	d.reason = SPIRE__API__TYPES__PERMISSION_DENIED_DETAILS__REASON__AGENT_BANNED;
	rpc_fail_details(r.f.watch, ERR_DENIED, "banned", &d.base);
	WAIT_FOR(&r, r.fatal);
	CHECK_CONTAINS(r.fatal, "banned");
	CHECK_OK(keymgr_list(r.keys, &names, &e));
	CHECK_INT(names.n, 0);
	CHECK(access(sealed, F_OK) != 0);
	agent_down(&r);
	CHECK(access(sealed, F_OK) != 0);
	strings_deinit(&names);
	rig_deinit(&r);
}

static void test_evicted(void)
{
	struct rig r;
	Spire__Api__Types__PermissionDeniedDetails d =
		SPIRE__API__TYPES__PERMISSION_DENIED_DETAILS__INIT;

	rig_init(&r);
	fake_up(&r);
	agent_up(&r);
	WAIT_FOR(&r, r.f.watch && r.f.acked);
	d.reason = SPIRE__API__TYPES__PERMISSION_DENIED_DETAILS__REASON__AGENT_NOT_ATTESTED;
	rpc_fail_details(r.f.watch, ERR_DENIED, "evicted", &d.base);
	WAIT_FOR(&r, r.f.attests == 2 && r.f.watch);
	CHECK(!r.fatal);
	r.f.refuse = "failed to attest: join token does not exist or has already been used";
	rpc_fail_details(r.f.watch, ERR_DENIED, "evicted", &d.base);
	WAIT_FOR(&r, r.fatal);
	CHECK_CONTAINS(r.fatal, "join token does not exist");
	agent_down(&r);
	rig_deinit(&r);
}

static void test_waits_for_the_server(void)
{
	struct rig r;

	rig_init(&r);
	fake_up(&r);
	fake_down(&r); /* its port is known, and closed */
	agent_up(&r);
	WAIT_FOR(&r, state(&r).error[0]);
	CHECK(!r.ready);
	CHECK(!r.fatal);
	fake_up(&r);
	WAIT_FOR(&r, r.ready);
	agent_down(&r);
	rig_deinit(&r);
}

TEST_MAIN(TEST(test_attest_and_watch), TEST(test_serves_from_the_sealed_store),
	TEST(test_damaged_store_is_kept), TEST(test_polls_where_nothing_is_pushed),
	TEST(test_smaller_batches), TEST(test_renews), TEST(test_banned), TEST(test_evicted),
	TEST(test_waits_for_the_server))

#include "spire/api/agent/delegatedidentity/v1/delegatedidentity.pb-c.h"
#include "tests/unit/agent/api_rig.inc"

/* The Delegated Identity API: who may ask, for whom, and what is left out. */

#define SERVICE "/spire.api.agent.delegatedidentity.v1.DelegatedIdentity/"
#define DELEGATED(name) Spire__Api__Agent__Delegatedidentity__V1__##name

struct seen {
	struct rig *r;
	int messages, stop_at;
	size_t svids, bundles;
	char first[100];
	bool ended;
	int code;
	char text[200];
};

static void on_message(void *arg, struct rpc_stream *s, const ProtobufCMessage *m)
{
	struct seen *x = arg;

	(void)s;
	x->messages++;
	if (m->descriptor ==
		&spire__api__agent__delegatedidentity__v1__subscribe_to_x509_svids_response__descriptor) {
		const DELEGATED(SubscribeToX509SVIDsResponse) *rs =
			(const DELEGATED(SubscribeToX509SVIDsResponse) *)m;

		x->svids = rs->n_x509_svids;
		if (x->svids) {
			snprintf(x->first, sizeof(x->first), "%s",
				rs->x509_svids[0]->x509_svid->id->path);
			CHECK_INT(rs->x509_svids[0]->x509_svid->n_cert_chain, 1);
			CHECK(rs->x509_svids[0]->x509_svid->expires_at > clock_wall().sec);
			CHECK(rs->x509_svids[0]->x509_svid_key.len > 50);
		}
	} else if (
		m->descriptor ==
		&spire__api__agent__delegatedidentity__v1__subscribe_to_x509_bundles_response__descriptor) {
		x->bundles =
			((const DELEGATED(SubscribeToX509BundlesResponse) *)m)->n_ca_certificates;
	} else {
		x->bundles = ((const DELEGATED(SubscribeToJWTBundlesResponse) *)m)->n_bundles;
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

static struct rpc_stream *open_stream(struct rig *r, struct seen *x, const char *method,
	const ProtobufCMessageDescriptor *d, const ProtobufCMessage *rq)
{
	struct rpc_stream_options o = {
		.method = method, .response = d, .message = on_message, .ended = on_ended, .arg = x
	};
	struct rpc_stream *s;

	*x = (struct seen){ .r = r };
	s = rpc_stream_open(r->client, &o);
	rpc_stream_send(s, rq);
	rpc_stream_half_close(s);
	return s;
}

static struct rpc_stream *subscribe(
	struct rig *r, struct seen *x, const char *type, const char *value, int pid)
{
	Spire__Api__Types__Selector sel = SPIRE__API__TYPES__SELECTOR__INIT, *sels[] = { &sel };
	DELEGATED(SubscribeToX509SVIDsRequest) rq;

	spire__api__agent__delegatedidentity__v1__subscribe_to_x509_svids_request__init(&rq);
	sel.type = (char *)(uintptr_t)type;
	sel.value = (char *)(uintptr_t)value;
	rq.n_selectors = type != NULL;
	rq.selectors = sels;
	rq.pid = pid;
	return open_stream(r, x, SERVICE "SubscribeToX509SVIDs",
		&spire__api__agent__delegatedidentity__v1__subscribe_to_x509_svids_response__descriptor,
		&rq.base);
}

static void wait_for(struct seen *x, int messages)
{
	x->stop_at = messages;
	if (x->messages < messages && !x->ended)
		loop_run(x->r->loop);
	CHECK_INT(x->messages, messages);
}

static void check_refused(struct seen *x, int code, const char *text)
{
	if (!x->ended)
		loop_run(x->r->loop);
	CHECK_INT(x->code, code);
	CHECK_STR(x->text, text);
}

static void cancel(struct seen *x, struct rpc_stream *s)
{
	rpc_stream_cancel(s);
	while (!x->ended)
		loop_run(x->r->loop);
}

static void test_who(void)
{
	struct rig r;
	struct seen x;
	struct rpc_stream *s;

	rig_init(&r);
	subscribe(&r, &x, "a", "b", 0);
	check_refused(&x, ERR_DENIED, "no identity issued");
	put_entry(&r, "1", "web", own_uid());
	subscribe(&r, &x, "a", "b", 0);
	check_refused(&x, ERR_DENIED, "caller not configured as an authorized delegate");
	strings_add(&r.o.authorized_delegates, "spiffe://" TD "/web");
	s = subscribe(&r, &x, "a", "b", 0);
	wait_for(&x, 1);
	CHECK_INT(x.svids, 0);
	put_entry(&r, "2", "other", "a:b");
	wait_for(&x, 2);
	CHECK_INT(x.svids, 1);
	CHECK_STR(x.first, "/other");
	/* Whoever is no delegate any more is shown out. */
	drop_entry(&r, "1");
	check_refused(&x, ERR_DENIED, "no identity issued");
	(void)s;
	rig_deinit(&r);
}

static void test_whom(void)
{
	struct rig r;
	struct seen x;

	rig_init(&r);
	put_entry(&r, "1", "web", own_uid());
	strings_add(&r.o.authorized_delegates, "spiffe://" TD "/web");
	cancel(&x, (subscribe(&r, &x, NULL, NULL, (int)getpid())));
	struct rpc_stream *s = subscribe(&r, &x, NULL, NULL, (int)getpid());
	wait_for(&x, 1);
	CHECK_STR(x.first, "/web");
	cancel(&x, s);
	subscribe(&r, &x, "a", "b", 1);
	check_refused(
		&x, ERR_INVALID, "must provide either selectors or non-zero PID, but not both");
	subscribe(&r, &x, NULL, NULL, 0);
	check_refused(
		&x, ERR_INVALID, "must provide either selectors or non-zero PID, but not both");
	subscribe(&r, &x, "a:b", "c", 0);
	check_refused(&x, ERR_INVALID, "could not parse provided selectors");
	subscribe(&r, &x, "a", "", 0);
	check_refused(&x, ERR_INVALID, "could not parse provided selectors");
	subscribe(&r, &x, NULL, NULL, -7);
	check_refused(&x, ERR_UNAVAILABLE, "workload attestation failed");
	rig_deinit(&r);
}

static void test_bundles(void)
{
	DELEGATED(SubscribeToX509BundlesRequest) xq;
	DELEGATED(SubscribeToJWTBundlesRequest) jq;
	struct rig r;
	struct seen x, y;
	struct rpc_stream *s, *t;

	rig_init(&r);
	put_entry(&r, "1", "web", own_uid());
	strings_add(&r.o.authorized_delegates, "spiffe://" TD "/web");
	spire__api__agent__delegatedidentity__v1__subscribe_to_x509_bundles_request__init(&xq);
	spire__api__agent__delegatedidentity__v1__subscribe_to_jwtbundles_request__init(&jq);
	s = open_stream(&r, &x, SERVICE "SubscribeToX509Bundles",
		&spire__api__agent__delegatedidentity__v1__subscribe_to_x509_bundles_response__descriptor,
		&xq.base);
	t = open_stream(&r, &y, SERVICE "SubscribeToJWTBundles",
		&spire__api__agent__delegatedidentity__v1__subscribe_to_jwtbundles_response__descriptor,
		&jq.base);
	wait_for(&x, 1);
	wait_for(&y, 1);
	CHECK_INT(x.bundles, 1);
	CHECK_INT(y.bundles, 1);
	put_bundle(&r, true);
	wait_for(&x, 2);
	CHECK_INT(y.messages, 1); /* its keys are the same */
	cancel(&x, s);
	cancel(&y, t);
	rig_deinit(&r);
}

/* Entries for the selector a:b, one of each kind. */
static void put_special(struct rig *r)
{
	struct cache_update u = { .n_entries = 2 };
	struct err e = ERR_INIT;

	u.entries = xcalloc(2, sizeof(*u.entries));
	for (size_t i = 0; i < 2; i++) {
		struct entry *en = &u.entries[i];

		en->id = xasprintf("s%zu", i);
		en->spiffe_id = xasprintf("spiffe://" TD "/s%zu", i);
		en->parent_id = xstrdup("");
		en->hint = xstrdup("");
		en->admin = i == 0;
		en->downstream = i == 1;
		CHECK_OK(selectors_add_text(&en->selectors, "a:b", &e));
	}
	cache_apply(r->api.cache, &u);
	cache_update_deinit(&u);
}

static int fetch_tokens(struct rig *r, const char *value, size_t audiences, ProtobufCMessage **ret)
{
	Spire__Api__Types__Selector sel = SPIRE__API__TYPES__SELECTOR__INIT, *sels[] = { &sel };
	DELEGATED(FetchJWTSVIDsRequest) rq;
	static char aud[] = "aud", *auds[] = { aud }, type[] = "a";
	struct rpc_unary_options o = { .method = SERVICE "FetchJWTSVIDs",
		.request = &rq.base,
		.response =
			&spire__api__agent__delegatedidentity__v1__fetch_jwtsvids_response__descriptor,
		.timeout_ms = 5000 };
	struct err e = ERR_INIT;

	spire__api__agent__delegatedidentity__v1__fetch_jwtsvids_request__init(&rq);
	rq.n_audience = audiences;
	rq.audience = auds;
	sel.type = type;
	sel.value = (char *)(uintptr_t)value;
	rq.n_selectors = 1;
	rq.selectors = sels;
	return rpc_unary_sync(r->loop, r->client, &o, ret, &e);
}

static void test_jwt(void)
{
	struct rig r;
	struct seen x;
	ProtobufCMessage *m;
	DELEGATED(FetchJWTSVIDsResponse) * rs;

	rig_init(&r);
	put_entry(&r, "1", "web", own_uid());
	strings_add(&r.o.authorized_delegates, "spiffe://" TD "/web");
	CHECK_INT(fetch_tokens(&r, "b", 0, &m), ERR_INVALID);
	CHECK_INT(fetch_tokens(&r, "b", 1, &m), ERR_DENIED);
	/* Admin and downstream identities are not handed on. */
	put_special(&r);
	CHECK_INT(fetch_tokens(&r, "b", 1, &m), ERR_DENIED);
	struct rpc_stream *s = subscribe(&r, &x, "a", "b", 0);
	wait_for(&x, 1);
	CHECK_INT(x.svids, 0);
	cancel(&x, s);
	put_entry(&r, "2", "other", "a:b");
	CHECK_INT(fetch_tokens(&r, "b", 1, &m), 0);
	rs = (DELEGATED(FetchJWTSVIDsResponse) *)m;
	CHECK_INT(rs->n_svids, 1);
	CHECK_STR(rs->svids[0]->id->path, "/other");
	CHECK_INT(rs->svids[0]->expires_at - rs->svids[0]->issued_at, 300);
	protobuf_c_message_free_unpacked(m, NULL);
	rig_deinit(&r);
}

TEST_MAIN(TEST(test_who), TEST(test_whom), TEST(test_bundles), TEST(test_jwt))

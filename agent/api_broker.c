#include <stdlib.h>
#include <string.h>

#include "agent/api.h"
#include "agent/workload_reference.h"
#include "google/rpc/error_details.pb-c.h"
#include "lib/jwt.h"
#include "lib/log.h"
#include "spiffe/broker/broker.pb-c.h"

/*
 * The SPIFFE Broker API: a broker, known by the X509-SVID of its connection, fetches for a workload
 * that it refers to. What the reference means is the attestors' word, never the broker's.
 */

#define BROKER(name) Spiffe__Broker__##name
#define REFLECTION "/grpc.reflection."
#define HEADER "broker.spiffe.io"

enum kind { X509_SVIDS, X509_BUNDLES, JWT_SVIDS, JWT_BUNDLES };

struct ask {
	struct view_watch watch;
	struct rpc_call *call;
	struct api *api;
	enum kind kind;
	struct reference *reference;
	struct view *view; /* NULL before it is attested */
	struct rpc_payload *sent;
	/* JWT_SVIDS */
	struct strings audience;
	char *spiffe_id;
};

static void ask_free(struct ask *k)
{
	strings_deinit(&k->audience);
	free(k->spiffe_id);
	if (k->sent)
		rpc_payload_unref(k->sent);
	free(k);
}

/* SPIFFE Broker API, 4.8: the reason for programs, in google.rpc.ErrorInfo. */
static void refuse(struct rpc_call *c, int code, const char *reason, const char *msg)
{
	Google__Rpc__ErrorInfo info = GOOGLE__RPC__ERROR_INFO__INIT;

	info.reason = (char *)(uintptr_t)reason;
	info.domain = (char[]){ "spiffe.io" };
	rpc_fail_details(c, code, msg, &info.base);
}

/* ---- who may ask for what ---- */

bool api_broker_authorize(void *arg, struct rpc_call *c, const char *method)
{
	const char *header = rpc_call_metadata(c, HEADER);

	(void)arg;
	if (strncmp(method, REFLECTION, strlen(REFLECTION)) == 0 && !rpc_call_peer(c)->is_unix) {
		rpc_fail(c, ERR_DENIED, "server reflection is only available over Unix sockets");
		return false;
	}
	/* SPIFFE Broker Endpoint, 3: the header is what a cross-protocol attacker cannot send. */
	if (header && strcmp(header, "true") == 0 && rpc_call_metadata_count(c, HEADER) == 1)
		return true;
	rpc_fail(c, ERR_INVALID, "security header missing from request");
	return false;
}

static bool may_use(struct ask *k, const char *type_url)
{
	const struct peer *p = rpc_call_peer(k->call);
	const struct broker_peer *b;
	const struct broker_reference *t;

	if (!p->id.text) {
		rpc_fail(k->call, ERR_UNAUTHENTICATED, "unable to determine caller identity");
		return false;
	}
	if (!type_url || !*type_url) {
		refuse(k->call, ERR_INVALID, "WORKLOAD_REFERENCE_INVALID",
			"workload reference must be provided");
		return false;
	}
	b = options_broker_find(k->api->options, p->id.text);
	t = b ? options_broker_reference(b, type_url) : NULL;
	if (!t)
		rpc_fail(k->call, ERR_DENIED,
			"broker \"%s\" is not allowed to use reference type \"%s\"", p->id.text,
			type_url);
	else if (!p->is_unix && !t->over_tcp)
		rpc_fail(k->call, ERR_DENIED,
			"reference type \"%s\" is not allowed over TCP for broker \"%s\"", type_url,
			p->id.text);
	return t && (p->is_unix || t->over_tcp);
}

/* ---- answers ---- */

static ProtobufCBinaryData binary(const struct buf *b)
{
	return (ProtobufCBinaryData){ .data = b->p, .len = b->len };
}

/* Trust domain ID → bytes: the shape of all map fields here. */
struct pairs {
	const struct bundle *own; /* left out */
	bool jwks;
	char **ids;
	struct buf *values;
	size_t n;
};

static void add_pair(void *arg, const struct bundle *b)
{
	struct pairs *p = arg;

	if (b == p->own)
		return;
	p->ids = xreallocarray(p->ids, p->n + 1, sizeof(*p->ids));
	p->values = xreallocarray(p->values, p->n + 1, sizeof(*p->values));
	p->ids[p->n] = xasprintf("spiffe://%s", b->trust_domain);
	p->values[p->n] = BUF_INIT;
	if (p->jwks)
		bundle_to_jwks(b, &p->values[p->n]);
	else
		bundle_roots_der(b, &p->values[p->n]);
	p->n++;
}

static void pairs_deinit(struct pairs *p)
{
	for (size_t i = 0; i < p->n; i++) {
		free(p->ids[i]);
		buf_deinit(&p->values[i]);
	}
	free(p->ids);
	free(p->values);
}

/* Admin and downstream identities are the holder's own. */
static bool may_have(const struct record *r)
{
	return !r->entry.admin && !r->entry.downstream;
}

static struct rpc_payload *encode_x509(struct view *v)
{
	typedef BROKER(SubscribeToX509SVIDResponse__FederatedBundlesEntry) pair;
	BROKER(SubscribeToX509SVIDResponse)
	rs = SPIFFE__BROKER__SUBSCRIBE_TO_X509_SVIDRESPONSE__INIT;
	AUTO(free) BROKER(X509SVID) *svids = xcalloc(v->n_matches + 1, sizeof(*svids));
	AUTO(free) BROKER(X509SVID) **svidp = xcalloc(v->n_matches + 1, sizeof(*svidp));
	AUTO_BUF struct buf roots = BUF_INIT;
	struct pairs pairs = { .own = cache_bundle(v->cache) };
	struct rpc_payload *p;
	pair *fed, **fedp;

	bundle_roots_der(cache_bundle(v->cache), &roots);
	for (size_t i = 0; i < v->n_matches; i++) {
		const struct record *r = v->matches[i];
		BROKER(X509SVID) *s = &svids[rs.n_svids];

		if (!may_have(r) || !r->svid)
			continue;
		spiffe__broker__x509_svid__init(s);
		s->spiffe_id = r->entry.spiffe_id;
		s->x509_svid = binary(&r->svid->chain);
		s->x509_svid_key = binary(&r->svid->key);
		s->bundle = binary(&roots);
		s->hint = r->entry.hint;
		svidp[rs.n_svids++] = s;
	}
	view_each_bundle(v, add_pair, &pairs);
	fed = xcalloc(pairs.n + 1, sizeof(*fed));
	fedp = xcalloc(pairs.n + 1, sizeof(pair *));
	for (size_t i = 0; i < pairs.n; i++) {
		spiffe__broker__subscribe_to_x509_svidresponse__federated_bundles_entry__init(
			&fed[i]);
		fed[i].key = pairs.ids[i];
		fed[i].value = binary(&pairs.values[i]);
		fedp[i] = &fed[i];
	}
	rs.svids = svidp;
	rs.n_federated_bundles = pairs.n;
	rs.federated_bundles = fedp;
	p = rpc_payload_new(&rs.base);
	pairs_deinit(&pairs);
	free(fed);
	free(fedp);
	return p;
}

static struct rpc_payload *encode_x509_bundles(const struct pairs *pairs)
{
	typedef BROKER(SubscribeToX509BundlesResponse__BundlesEntry) pair;
	BROKER(SubscribeToX509BundlesResponse)
	rs = SPIFFE__BROKER__SUBSCRIBE_TO_X509_BUNDLES_RESPONSE__INIT;
	AUTO(free) pair *v = xcalloc(pairs->n + 1, sizeof(*v));
	AUTO(free) pair **vp = xcalloc(pairs->n + 1, sizeof(*vp));

	for (size_t i = 0; i < pairs->n; i++) {
		spiffe__broker__subscribe_to_x509_bundles_response__bundles_entry__init(&v[i]);
		v[i].key = pairs->ids[i];
		v[i].value = binary(&pairs->values[i]);
		vp[i] = &v[i];
	}
	rs.n_bundles = pairs->n;
	rs.bundles = vp;
	return rpc_payload_new(&rs.base);
}

static struct rpc_payload *encode_jwt_bundles(const struct pairs *pairs)
{
	typedef BROKER(SubscribeToJWTBundlesResponse__BundlesEntry) pair;
	BROKER(SubscribeToJWTBundlesResponse)
	rs = SPIFFE__BROKER__SUBSCRIBE_TO_JWTBUNDLES_RESPONSE__INIT;
	AUTO(free) pair *v = xcalloc(pairs->n + 1, sizeof(*v));
	AUTO(free) pair **vp = xcalloc(pairs->n + 1, sizeof(*vp));

	for (size_t i = 0; i < pairs->n; i++) {
		spiffe__broker__subscribe_to_jwtbundles_response__bundles_entry__init(&v[i]);
		v[i].key = pairs->ids[i];
		v[i].value = binary(&pairs->values[i]);
		vp[i] = &v[i];
	}
	rs.n_bundles = pairs->n;
	rs.bundles = vp;
	return rpc_payload_new(&rs.base);
}

/* All that the agent has, as SPIRE gives them: not only what some entry federates with. */
static struct rpc_payload *encode_bundles(const struct cache *c, bool jwks)
{
	struct pairs pairs = { .jwks = jwks };
	struct rpc_payload *p;
	struct bundle *b;

	add_pair(&pairs, cache_bundle(c));
	for (size_t i = 0; cache_next_federated(c, &i, &b);)
		add_pair(&pairs, b);
	p = jwks ? encode_jwt_bundles(&pairs) : encode_x509_bundles(&pairs);
	pairs_deinit(&pairs);
	return p;
}

/* ---- streams ---- */

static bool all_settled(const struct view *v)
{
	for (size_t i = 0; i < v->n_matches; i++) {
		if (may_have(v->matches[i]) && !v->matches[i]->svid && !v->matches[i]->failed)
			return false;
	}
	return true;
}

static void push(struct ask *k)
{
	struct rpc_payload *p;

	if (!k->view || rpc_call_ended(k->call) || !cache_bundle(k->api->cache) ||
		!rpc_writable(k->call))
		return;
	if (k->kind == X509_SVIDS && !all_settled(k->view))
		return;
	p = k->kind == X509_SVIDS ? encode_x509(k->view)
				  : encode_bundles(k->api->cache, k->kind == JWT_BUNDLES);
	if (k->sent && rpc_payload_equal(k->sent, p)) {
		rpc_payload_unref(p);
		return;
	}
	if (k->sent)
		rpc_payload_unref(k->sent);
	k->sent = p;
	rpc_send_payload(k->call, p);
}

static void on_changed(struct view_watch *w)
{
	push(container_of(w, struct ask, watch));
}

static void on_writable(struct rpc_call *c)
{
	push(rpc_call_user(c));
}

static void on_end(struct rpc_call *c)
{
	struct ask *k = rpc_call_user(c);

	reference_free(k->reference);
	k->reference = NULL;
	if (k->view) {
		list_remove(&k->watch.link);
		if (k->kind == X509_SVIDS)
			view_unuse_x509(k->view);
		view_unref(k->view);
		k->view = NULL;
	}
	ask_free(k);
}

/* ---- JWT-SVIDs ---- */

static void reply_tokens(struct rpc_call *c, const struct api_token *tokens, size_t n)
{
	BROKER(FetchJWTSVIDResponse) rs = SPIFFE__BROKER__FETCH_JWTSVIDRESPONSE__INIT;
	AUTO(free) BROKER(JWTSVID) *v = xcalloc(n, sizeof(*v));
	AUTO(free) BROKER(JWTSVID) **vp = xcalloc(n, sizeof(*vp));

	for (size_t i = 0; i < n; i++) {
		spiffe__broker__jwtsvid__init(&v[i]);
		v[i].spiffe_id = tokens[i].spiffe_id;
		v[i].svid = tokens[i].text;
		v[i].hint = tokens[i].hint;
		vp[i] = &v[i];
	}
	rs.svids = vp;
	rs.n_svids = n;
	rpc_reply(c, &rs.base);
}

/* ---- from the request to the workload ---- */

static void on_attested(void *arg, const struct selectors *s, const struct err *e)
{
	struct ask *k = arg;
	struct view *v;

	if (rpc_call_ended(k->call))
		return;
	if (!s) {
		log_event(LOG_ERROR, "broker", "Workload attestation failed", "broker_peer",
			rpc_call_peer(k->call)->id.text, "error", e->msg, NULL);
		rpc_fail_err(k->call, e);
		return;
	}
	v = cache_view(k->api->cache, s);
	if (k->kind == JWT_SVIDS) {
		struct api_tokens_wanted w = { .audience = &k->audience,
			.spiffe_id = k->spiffe_id };

		if (!api_tokens(k->call, k->api, v, &w, reply_tokens))
			refuse(k->call, ERR_DENIED, "WORKLOAD_NOT_ENTITLED", "no identity issued");
		view_unref(v);
		return;
	}
	k->view = v;
	list_append(&v->watchers, &k->watch.link);
	if (k->kind == X509_SVIDS)
		view_use_x509(v);
	push(k);
}

/* SPIFFE Broker API, 4.9: nothing is sent for a workload that has stopped. */
static void on_ended(void *arg)
{
	struct ask *k = arg;

	refuse(k->call, ERR_NOT_FOUND, "WORKLOAD_NOT_FOUND", "the workload has ended");
}

static struct ask *begin(struct rpc_call *c, enum kind kind)
{
	struct ask *k = xcalloc(1, sizeof(*k));

	list_init(&k->watch.link);
	k->watch.changed = on_changed;
	k->call = c;
	k->api = rpc_call_data(c);
	k->kind = kind;
	rpc_call_set_user(c, k);
	rpc_call_on_end(c, on_end);
	if (kind != JWT_SVIDS)
		rpc_on_writable(c, on_writable);
	return k;
}

static void look_up(struct ask *k, const BROKER(WorkloadReference) * ref)
{
	const Google__Protobuf__Any *any = ref ? ref->reference : NULL;
	struct reference_options o = { .loop = k->api->loop,
		.workload = k->api->workload,
		.options = k->api->options,
		.done = on_attested,
		.ended = on_ended,
		.arg = k };

	if (!may_use(k, any ? any->type_url : NULL))
		return;
	o.broker_id = rpc_call_peer(k->call)->id.text;
	o.type_url = any->type_url;
	o.value = bytes_of(any->value.data, any->value.len);
	k->reference = reference_open(&o);
}

static void subscribe_x509(struct rpc_call *c, const ProtobufCMessage *req)
{
	look_up(begin(c, X509_SVIDS), ((const BROKER(SubscribeToX509SVIDRequest) *)req)->reference);
}

static void subscribe_x509_bundles(struct rpc_call *c, const ProtobufCMessage *req)
{
	look_up(begin(c, X509_BUNDLES),
		((const BROKER(SubscribeToX509BundlesRequest) *)req)->reference);
}

static void subscribe_jwt_bundles(struct rpc_call *c, const ProtobufCMessage *req)
{
	look_up(begin(c, JWT_BUNDLES),
		((const BROKER(SubscribeToJWTBundlesRequest) *)req)->reference);
}

static void fetch_jwt(struct rpc_call *c, const ProtobufCMessage *req)
{
	const BROKER(FetchJWTSVIDRequest) *rq = (const BROKER(FetchJWTSVIDRequest) *)req;
	struct ask *k;

	if (!api_tokens_asked_well(c, rq->n_audience, rq->spiffe_id))
		return;
	k = begin(c, JWT_SVIDS);
	k->spiffe_id = xstrdup(rq->spiffe_id);
	for (size_t i = 0; i < rq->n_audience; i++)
		strings_add(&k->audience, rq->audience[i]);
	look_up(k, rq->reference);
}

static const struct rpc_method methods[] = {
	{ "SubscribeToX509SVID", RPC_SERVER_STREAM, subscribe_x509 },
	{ "SubscribeToX509Bundles", RPC_SERVER_STREAM, subscribe_x509_bundles },
	{ "FetchJWTSVID", RPC_UNARY, fetch_jwt },
	{ "SubscribeToJWTBundles", RPC_SERVER_STREAM, subscribe_jwt_bundles },
};

void api_broker_add(struct rpc_server *s, struct api *a)
{
	static struct rpc_service svc;

	svc = (struct rpc_service){ .desc = &spiffe__broker__api__descriptor,
		.methods = methods,
		.n_methods = ARRAY_LEN(methods),
		.data = a };
	rpc_server_add(s, &svc);
}

#include <stdlib.h>
#include <string.h>

#include "agent/api.h"
#include "lib/der.h"
#include "lib/jwt.h"
#include "lib/log.h"
#include "spire/api/agent/delegatedidentity/v1/delegatedidentity.pb-c.h"

/*
 * SPIRE's Delegated Identity API: a caller whose SPIFFE ID the configuration names fetches for
 * others, whom it tells by selectors or by pid. Whoever is no such caller any more loses its open
 * streams at the next change.
 */

#define DELEGATED(name) Spire__Api__Agent__Delegatedidentity__V1__##name

enum { SELECTORS_MAX = 1000 };

enum kind { X509_SVIDS, X509_BUNDLES, JWT_SVIDS, JWT_BUNDLES };

struct delegate {
	struct view_watch caller_watch, target_watch;
	struct rpc_call *call;
	struct api *api;
	enum kind kind;
	struct view *caller, *target; /* target: X509_SVIDS only */
	struct rpc_payload *sent;
	struct selectors selectors;
	pid_t pid;
	struct strings audience; /* JWT_SVIDS */
};

static void delegate_free(struct delegate *d)
{
	selectors_deinit(&d->selectors);
	strings_deinit(&d->audience);
	if (d->sent)
		rpc_payload_unref(d->sent);
	free(d);
}

/* ---- who may ask ---- */

static bool authorized(struct delegate *d)
{
	const struct view *v = d->caller;

	for (size_t i = 0; i < v->n_matches; i++) {
		if (strings_has(
			    &d->api->options->authorized_delegates, v->matches[i]->entry.spiffe_id))
			return true;
	}
	if (v->n_matches == 0) {
		api_no_identity(d->call, v);
		return false;
	}
	log_event(LOG_ERROR, "delegated", "The caller is not an authorized delegate", "method",
		rpc_call_method(d->call), "spiffe_id", v->matches[0]->entry.spiffe_id, NULL);
	rpc_fail(d->call, ERR_DENIED, "caller not configured as an authorized delegate");
	return false;
}

/* ---- X509-SVIDs ---- */

static Spire__Api__Types__SPIFFEID *id_msg(const char *text)
{
	Spire__Api__Types__SPIFFEID *m = xmalloc(sizeof(*m));
	struct spiffeid id = SPIFFEID_INIT;
	struct err e = ERR_INIT;

	spire__api__types__spiffeid__init(m);
	if (spiffeid_parse_str(&id, text, &e))
		return m;
	m->trust_domain = xstrndup((const char *)spiffeid_td(&id).p, spiffeid_td(&id).n);
	m->path = xstrdup(spiffeid_path(&id));
	spiffeid_deinit(&id);
	return m;
}

static ProtobufCBinaryData copy(struct bytes b)
{
	ProtobufCBinaryData d = { .data = xmalloc(b.n + 1), .len = b.n };

	if (b.n)
		memcpy(d.data, b.p, b.n);
	return d;
}

static Spire__Api__Types__X509SVID *svid_msg(const struct record *r)
{
	Spire__Api__Types__X509SVID *m = xmalloc(sizeof(*m));
	struct bytes in = buf_view(&r->svid->chain), body, whole;

	spire__api__types__x509_svid__init(m);
	m->id = id_msg(r->entry.spiffe_id);
	while (in.n && der_get_whole(&in, DER_SEQUENCE, &body, &whole)) {
		m->cert_chain =
			xreallocarray(m->cert_chain, m->n_cert_chain + 1, sizeof(*m->cert_chain));
		m->cert_chain[m->n_cert_chain++] = copy(whole);
	}
	m->expires_at = r->svid->not_after;
	m->hint = xstrdup(r->entry.hint);
	return m;
}

/* Admin and downstream identities are the holder's own. */
static bool may_delegate(const struct record *r)
{
	return !r->entry.admin && !r->entry.downstream;
}

static int by_text(const void *a, const void *b)
{
	char *const *x = a, *const *y = b;

	return strcmp(*x, *y);
}

struct federated {
	const struct bundle *own;
	DELEGATED(SubscribeToX509SVIDsResponse) * rs;
};

static void add_federated(void *arg, const struct bundle *b)
{
	struct federated *f = arg;

	if (b == f->own)
		return;
	f->rs->federates_with =
		xreallocarray(f->rs->federates_with, f->rs->n_federates_with + 1, sizeof(char *));
	f->rs->federates_with[f->rs->n_federates_with++] =
		xasprintf("spiffe://%s", b->trust_domain);
}

static void wipe_keys(DELEGATED(SubscribeToX509SVIDsResponse) * rs)
{
	for (size_t i = 0; i < rs->n_x509_svids; i++)
		mem_wipe(rs->x509_svids[i]->x509_svid_key.data,
			rs->x509_svids[i]->x509_svid_key.len);
}

static struct rpc_payload *encode_x509(struct view *v)
{
	DELEGATED(SubscribeToX509SVIDsResponse) *rs = xmalloc(sizeof(*rs));
	struct federated f = { .own = cache_bundle(v->cache), .rs = rs };
	struct rpc_payload *p;

	spire__api__agent__delegatedidentity__v1__subscribe_to_x509_svids_response__init(rs);
	rs->x509_svids = xcalloc(v->n_matches + 1, sizeof(void *));
	for (size_t i = 0; i < v->n_matches; i++) {
		DELEGATED(X509SVIDWithKey) * one;

		if (!may_delegate(v->matches[i]) || !v->matches[i]->svid)
			continue;
		one = xmalloc(sizeof(*one));
		spire__api__agent__delegatedidentity__v1__x509_svidwith_key__init(one);
		one->x509_svid = svid_msg(v->matches[i]);
		one->x509_svid_key = copy(buf_view(&v->matches[i]->svid->key));
		rs->x509_svids[rs->n_x509_svids++] = one;
	}
	view_each_bundle(v, add_federated, &f);
	if (rs->n_federates_with)
		qsort(rs->federates_with, rs->n_federates_with, sizeof(char *), by_text);
	p = rpc_payload_new(&rs->base);
	wipe_keys(rs);
	spire__api__agent__delegatedidentity__v1__subscribe_to_x509_svids_response__free_unpacked(
		rs, NULL);
	return p;
}

/* ---- bundles ---- */

typedef DELEGATED(SubscribeToX509BundlesResponse__CaCertificatesEntry) x509_pair;
typedef DELEGATED(SubscribeToJWTBundlesResponse__BundlesEntry) jwt_pair;

static struct rpc_payload *encode_x509_bundles(const struct bundle **v, size_t n)
{
	DELEGATED(SubscribeToX509BundlesResponse) *rs = xmalloc(sizeof(*rs));
	struct rpc_payload *p;

	spire__api__agent__delegatedidentity__v1__subscribe_to_x509_bundles_response__init(rs);
	rs->ca_certificates = xcalloc(n + 1, sizeof(void *));
	for (size_t i = 0; i < n; i++) {
		x509_pair *one = xmalloc(sizeof(*one));
		AUTO_BUF struct buf b = BUF_INIT;

		spire__api__agent__delegatedidentity__v1__subscribe_to_x509_bundles_response__ca_certificates_entry__init(
			one);
		bundle_roots_der(v[i], &b);
		one->key = xasprintf("spiffe://%s", v[i]->trust_domain);
		one->value = copy(buf_view(&b));
		rs->ca_certificates[rs->n_ca_certificates++] = one;
	}
	p = rpc_payload_new(&rs->base);
	spire__api__agent__delegatedidentity__v1__subscribe_to_x509_bundles_response__free_unpacked(
		rs, NULL);
	return p;
}

static struct rpc_payload *encode_jwt_bundles(const struct bundle **v, size_t n)
{
	DELEGATED(SubscribeToJWTBundlesResponse) *rs = xmalloc(sizeof(*rs));
	struct rpc_payload *p;

	spire__api__agent__delegatedidentity__v1__subscribe_to_jwtbundles_response__init(rs);
	rs->bundles = xcalloc(n + 1, sizeof(void *));
	for (size_t i = 0; i < n; i++) {
		jwt_pair *one = xmalloc(sizeof(*one));
		AUTO_BUF struct buf b = BUF_INIT;

		spire__api__agent__delegatedidentity__v1__subscribe_to_jwtbundles_response__bundles_entry__init(
			one);
		bundle_to_jwks(v[i], &b);
		one->key = xasprintf("spiffe://%s", v[i]->trust_domain);
		one->value = copy(buf_view(&b));
		rs->bundles[rs->n_bundles++] = one;
	}
	p = rpc_payload_new(&rs->base);
	spire__api__agent__delegatedidentity__v1__subscribe_to_jwtbundles_response__free_unpacked(
		rs, NULL);
	return p;
}

static int by_domain(const void *a, const void *b)
{
	const struct bundle *const *x = a, *const *y = b;

	return strcmp((*x)->trust_domain, (*y)->trust_domain);
}

/* All that the agent has, not only what some entry federates with. */
static struct rpc_payload *encode_bundles(const struct cache *c, bool jwks)
{
	AUTO(free) const struct bundle **v = xcalloc(1, sizeof(*v));
	struct bundle *b;
	size_t n = 0;

	v[n++] = cache_bundle(c);
	for (size_t i = 0; cache_next_federated(c, &i, &b);) {
		v = xreallocarray(v, n + 1, sizeof(*v));
		v[n++] = b;
	}
	qsort(v, n, sizeof(v[0]), by_domain);
	return jwks ? encode_jwt_bundles(v, n) : encode_x509_bundles(v, n);
}

/* ---- streams ---- */

static bool all_settled(const struct view *v)
{
	for (size_t i = 0; i < v->n_matches; i++) {
		if (may_delegate(v->matches[i]) && !v->matches[i]->svid && !v->matches[i]->failed)
			return false;
	}
	return true;
}

static void push(struct delegate *d)
{
	struct rpc_payload *p;

	if (rpc_call_ended(d->call) || !cache_bundle(d->api->cache))
		return;
	if (!authorized(d) || !rpc_writable(d->call))
		return;
	if (d->kind == X509_SVIDS && (!d->target || !all_settled(d->target)))
		return;
	p = d->kind == X509_SVIDS ? encode_x509(d->target)
				  : encode_bundles(d->api->cache, d->kind == JWT_BUNDLES);
	if (d->sent && rpc_payload_equal(d->sent, p)) {
		rpc_payload_unref(p);
		return;
	}
	if (d->sent)
		rpc_payload_unref(d->sent);
	d->sent = p;
	rpc_send_payload(d->call, p);
}

static void on_caller_changed(struct view_watch *w)
{
	push(container_of(w, struct delegate, caller_watch));
}

static void on_target_changed(struct view_watch *w)
{
	push(container_of(w, struct delegate, target_watch));
}

static void on_writable(struct rpc_call *c)
{
	push(rpc_call_user(c));
}

static void on_end(struct rpc_call *c)
{
	struct delegate *d = rpc_call_user(c);

	list_remove(&d->caller_watch.link);
	list_remove(&d->target_watch.link);
	if (d->target)
		view_unuse_x509(d->target);
	view_unref(d->target);
	view_unref(d->caller);
	d->target = d->caller = NULL;
	delegate_free(d);
}

/* ---- JWT-SVIDs ---- */

static void reply_tokens(struct rpc_call *c, const struct api_token *tokens, size_t n)
{
	DELEGATED(FetchJWTSVIDsResponse) *rs = xmalloc(sizeof(*rs));

	spire__api__agent__delegatedidentity__v1__fetch_jwtsvids_response__init(rs);
	rs->svids = xcalloc(n, sizeof(void *));
	for (size_t i = 0; i < n; i++) {
		Spire__Api__Types__JWTSVID *m = xmalloc(sizeof(*m));
		struct jwt j = { 0 };
		struct err e = ERR_INIT;

		spire__api__types__jwtsvid__init(m);
		m->token = xstrdup(tokens[i].text);
		m->id = id_msg(tokens[i].spiffe_id);
		m->hint = xstrdup(tokens[i].hint);
		if (jwt_parse(bytes_str(m->token), &j, &e) == 0) {
			m->expires_at = j.exp;
			m->issued_at = j.iat;
		}
		jwt_deinit(&j);
		rs->svids[rs->n_svids++] = m;
	}
	rpc_reply(c, &rs->base);
	for (size_t i = 0; i < rs->n_svids; i++)
		mem_wipe(rs->svids[i]->token, strlen(rs->svids[i]->token));
	spire__api__agent__delegatedidentity__v1__fetch_jwtsvids_response__free_unpacked(rs, NULL);
}

/* ---- from the request to its target ---- */

static void have_target(struct delegate *d, const struct selectors *s)
{
	struct view *v = cache_view(d->api->cache, s);

	if (d->kind == JWT_SVIDS) {
		struct api_tokens_wanted w = { .audience = &d->audience, .others = true };

		if (!api_tokens(d->call, d->api, v, &w, reply_tokens))
			api_no_identity(d->call, v);
		view_unref(v);
		return;
	}
	d->target = v;
	list_append(&v->watchers, &d->target_watch.link);
	view_use_x509(v);
	push(d);
}

static void pid_attested(void *arg, const struct attestation *a)
{
	struct rpc_call *c = arg;
	struct delegate *d = rpc_call_ended(c) ? NULL : rpc_call_user(c);

	if (d && a->err.code) {
		log_event(LOG_ERROR, "delegated", "Workload attestation failed", "pid",
			log_fmt("%d", (int)a->pid), "error", a->err.msg, NULL);
		rpc_fail(c, ERR_UNAVAILABLE, "workload attestation failed");
	} else if (d) {
		have_target(d, &a->selectors);
	}
	rpc_call_unref(c);
}

static void find_target(struct delegate *d)
{
	if ((d->selectors.n != 0) == (d->pid != 0)) {
		rpc_fail(d->call, ERR_INVALID,
			"must provide either selectors or non-zero PID, but not both");
	} else if (d->selectors.n) {
		for (size_t i = 0; i < d->selectors.n; i++) {
			const struct selector *s = &d->selectors.v[i];

			if (s->type[0] && s->value[0] && !strchr(s->type, ':'))
				continue;
			rpc_fail(d->call, ERR_INVALID, "could not parse provided selectors");
			return;
		}
		selectors_normalize(&d->selectors);
		have_target(d, &d->selectors);
	} else {
		workload_attest(
			d->api->workload, NULL, d->pid, false, pid_attested, rpc_call_ref(d->call));
	}
}

static void caller_attested(void *arg, struct rpc_call *c, struct view *v)
{
	struct delegate *d = arg;

	if (!v || rpc_call_ended(c)) {
		view_unref(v);
		return;
	}
	d->caller = v;
	if (!authorized(d))
		return;
	if (d->kind != JWT_SVIDS)
		list_append(&v->watchers, &d->caller_watch.link);
	if (d->kind == X509_SVIDS || d->kind == JWT_SVIDS)
		find_target(d);
	else
		push(d);
}

static bool take_selectors(
	struct rpc_call *c, struct delegate *d, Spire__Api__Types__Selector **v, size_t n)
{
	if (n > SELECTORS_MAX) {
		rpc_fail(c, ERR_INVALID, "more than %d selectors", SELECTORS_MAX);
		return false;
	}
	for (size_t i = 0; i < n; i++)
		selectors_add(&d->selectors, v[i]->type, v[i]->value);
	return true;
}

static struct delegate *begin(struct rpc_call *c, enum kind k)
{
	struct delegate *d = xcalloc(1, sizeof(*d));

	list_init(&d->caller_watch.link);
	list_init(&d->target_watch.link);
	d->caller_watch.changed = on_caller_changed;
	d->target_watch.changed = on_target_changed;
	d->call = c;
	d->api = rpc_call_data(c);
	d->kind = k;
	rpc_call_set_user(c, d);
	rpc_call_on_end(c, on_end);
	if (k != JWT_SVIDS)
		rpc_on_writable(c, on_writable);
	return d;
}

static void subscribe_x509(struct rpc_call *c, const ProtobufCMessage *req)
{
	const DELEGATED(SubscribeToX509SVIDsRequest) *rq =
		(const DELEGATED(SubscribeToX509SVIDsRequest) *)req;
	struct delegate *d = begin(c, X509_SVIDS);

	d->pid = rq->pid;
	if (take_selectors(c, d, rq->selectors, rq->n_selectors))
		api_attest(c, caller_attested, d);
}

static void fetch_jwt(struct rpc_call *c, const ProtobufCMessage *req)
{
	const DELEGATED(FetchJWTSVIDsRequest) *rq = (const DELEGATED(FetchJWTSVIDsRequest) *)req;
	struct delegate *d;

	if (!api_tokens_asked_well(c, rq->n_audience, ""))
		return;
	d = begin(c, JWT_SVIDS);
	d->pid = rq->pid;
	for (size_t i = 0; i < rq->n_audience; i++)
		strings_add(&d->audience, rq->audience[i]);
	if (take_selectors(c, d, rq->selectors, rq->n_selectors))
		api_attest(c, caller_attested, d);
}

static void subscribe_x509_bundles(struct rpc_call *c, const ProtobufCMessage *req)
{
	(void)req;
	api_attest(c, caller_attested, begin(c, X509_BUNDLES));
}

static void subscribe_jwt_bundles(struct rpc_call *c, const ProtobufCMessage *req)
{
	(void)req;
	api_attest(c, caller_attested, begin(c, JWT_BUNDLES));
}

static const struct rpc_method methods[] = {
	{ "SubscribeToX509SVIDs", RPC_SERVER_STREAM, subscribe_x509 },
	{ "SubscribeToX509Bundles", RPC_SERVER_STREAM, subscribe_x509_bundles },
	{ "FetchJWTSVIDs", RPC_UNARY, fetch_jwt },
	{ "SubscribeToJWTBundles", RPC_SERVER_STREAM, subscribe_jwt_bundles },
};

void api_delegated_add(struct rpc_server *s, struct api *a)
{
	static struct rpc_service svc;

	svc = (struct rpc_service){
		.desc = &spire__api__agent__delegatedidentity__v1__delegated_identity__descriptor,
		.methods = methods,
		.n_methods = ARRAY_LEN(methods),
		.data = a
	};
	rpc_server_add(s, &svc);
}

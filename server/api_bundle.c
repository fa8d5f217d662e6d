/* Service spire.api.server.bundle.v1.Bundle: the own bundle. The foreign ones are in
 * api_bundle_federated.c. */
#include "server/api.h"

#include <stdlib.h>
#include <string.h>

#include "spire/api/server/bundle/v1/bundle.pb-c.h"

#define V1(name) Spire__Api__Server__Bundle__V1__##name

enum { PUT_TRIES = 8 };

static void count_bundles(struct rpc_call *c, const ProtobufCMessage *req)
{
	const struct api *a = rpc_call_data(c);
	V1(CountBundlesResponse) rs = SPIRE__API__SERVER__BUNDLE__V1__COUNT_BUNDLES_RESPONSE__INIT;

	(void)req;
	rs.count = (int32_t)map_len(a->bundles);
	rpc_reply(c, &rs.base);
}

static void get_bundle(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(GetBundleRequest) *rq = (const void *)req;
	const struct api *a = rpc_call_data(c);
	const struct bundle *b = api_bundle(a, a->trust_domain);
	struct node n;

	if (!b) {
		rpc_fail(c, ERR_NOT_FOUND, "bundle not found");
		return;
	}
	api_reply(c, pb_bundle(b, rq->output_mask));
	/* An agent that polls, or a server below: this is how it sees a new authority. */
	if (api_caller(c)[0] &&
		((!entries_node_view(a->entries, api_caller(c), &n, NULL) && !node_banned(&n)) ||
			entries_is_downstream(a->entries, api_caller(c))))
		witness_polled(a->witness, api_caller(c), b->sequence, clock_mono());
}

/* ---- AppendBundle, PublishJWTAuthority ---- */

/* Authorities on their way into the own bundle: tried again when it changed meanwhile. */
struct append {
	struct rpc_call *c;
	struct api *api;
	struct bundle *add;
	bool has_mask, publish;
	Spire__Api__Types__BundleMask mask;
	int tries;
};

static void append_free(struct append *p)
{
	bundle_unref(p->add);
	rpc_call_unref(p->c);
	free(p);
}

static void append_answer(struct append *p)
{
	Spire__Api__Types__Bundle *m =
		pb_bundle(api_bundle(p->api, p->api->trust_domain), p->has_mask ? &p->mask : NULL);
	V1(PublishJWTAuthorityResponse) * rs;

	api_audit(p->api, p->c, 0, NULL, "trust_domain_id", p->api->trust_domain, NULL);
	if (!p->publish) {
		api_reply(p->c, m);
		return;
	}
	rs = pb_new(&spire__api__server__bundle__v1__publish_jwtauthority_response__descriptor);
	rs->jwt_authorities = m->jwt_authorities;
	rs->n_jwt_authorities = m->n_jwt_authorities;
	m->jwt_authorities = NULL;
	m->n_jwt_authorities = 0;
	protobuf_c_message_free_unpacked(&m->base, NULL);
	api_reply(p->c, rs);
}

static void append_try(struct append *p);

static void appended(void *arg, int code, const char *msg)
{
	struct append *p = arg;

	if (code == ERR_ABORTED && ++p->tries < PUT_TRIES) {
		append_try(p);
		return;
	}
	if (code)
		rpc_fail(p->c, ERR_INTERNAL, "failed to %s: %s",
			p->publish ? "publish JWT key" : "append bundle", msg);
	else
		append_answer(p);
	append_free(p);
}

static void append_try(struct append *p)
{
	const struct bundle *own = api_bundle(p->api, p->api->trust_domain);
	AUTO(bundle_unref) struct bundle *b = NULL;
	bool news = false;

	if (!own) {
		appended(p, ERR_NOT_FOUND, "bundle not found");
		return;
	}
	b = bundle_dup(own);
	for (size_t i = 0; i < p->add->n_roots; i++)
		news |= bundle_add_root(b, p->add->roots[i].cert, false);
	for (size_t i = 0; i < p->add->n_jwt_keys; i++) {
		const struct bundle_jwt_key *k = &p->add->jwt_keys[i];

		news |= bundle_add_jwt_key(b, k->key_id, k->key, k->expires_at, false);
	}
	if (news)
		store_bundle_put(p->api->store, b, own->sequence, appended, p);
	else
		appended(p, 0, "");
}

/* "unable to parse X.509 authority: " says again what the caller's text begins with. */
static void drop_beginning(struct err *e)
{
	static const char mark[] = " authority: ";
	const char *p = strstr(e->msg, mark);

	if (p && strncmp(e->msg, "unable to parse ", 16) == 0)
		memmove(e->msg, p + sizeof(mark) - 1, strlen(p + sizeof(mark) - 1) + 1);
}

/* Reads authorities as a bundle of the own trust domain that has nothing else. */
static int read_authorities(const struct api *a, Spire__Api__Types__X509Certificate **certs,
	size_t n_certs, Spire__Api__Types__JWTKey **keys, size_t n_keys, struct bundle **ret,
	struct err *e)
{
	Spire__Api__Types__Bundle *m = pb_new(&spire__api__types__bundle__descriptor);
	int r;

	m->trust_domain = pb_str(a->trust_domain);
	m->x509_authorities = certs;
	m->n_x509_authorities = n_certs;
	m->jwt_authorities = keys;
	m->n_jwt_authorities = n_keys;
	r = bundle_from_proto(m, ret, e);
	if (r)
		drop_beginning(e);
	m->x509_authorities = NULL;
	m->jwt_authorities = NULL;
	m->n_x509_authorities = m->n_jwt_authorities = 0;
	protobuf_c_message_free_unpacked(&m->base, NULL);
	return r;
}

static void append_start(struct rpc_call *c, struct bundle *add,
	const Spire__Api__Types__BundleMask *mask, bool publish)
{
	struct append *p = xcalloc(1, sizeof(*p));

	p->c = rpc_call_ref(c);
	p->api = rpc_call_data(c);
	p->add = add;
	p->publish = publish;
	p->has_mask = mask;
	if (mask)
		p->mask = *mask; /* booleans only */
	append_try(p);
}

static void append_bundle(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(AppendBundleRequest) *rq = (const void *)req;
	const struct api *a = rpc_call_data(c);
	struct bundle *both, *part;
	struct err e;

	if (rq->n_jwt_authorities == 0 && rq->n_x509_authorities == 0) {
		rpc_fail(c, ERR_INVALID, "no authorities to append");
		return;
	}
	if (read_authorities(a, NULL, 0, rq->jwt_authorities, rq->n_jwt_authorities, &part, &e)) {
		rpc_fail(c, ERR_INVALID, "failed to convert JWT authority: %s", e.msg);
		return;
	}
	bundle_unref(part);
	if (read_authorities(a, rq->x509_authorities, rq->n_x509_authorities, rq->jwt_authorities,
		    rq->n_jwt_authorities, &both, &e)) {
		rpc_fail(c, ERR_INVALID, "failed to convert X.509 authority: %s", e.msg);
		return;
	}
	append_start(c, both, rq->output_mask, false);
}

/* A key on its way to the server above, which passes it on to the whole tree. */
struct relay {
	struct rpc_call *c;
	struct bundle *add;
};

static void relayed(
	void *arg, const struct x509_chain *chain, struct bundle *b, const struct err *e)
{
	struct relay *p = arg;

	(void)chain;
	(void)b; /* the CA looks by itself */
	if (e->code && e->code != ERR_UNIMPLEMENTED)
		rpc_fail(p->c, ERR_INTERNAL, "failed to publish JWT key: %s", e->msg);
	else
		append_start(p->c, bundle_ref(p->add), NULL, true);
	bundle_unref(p->add);
	rpc_call_unref(p->c);
	free(p);
}

/* Takes over b, which has the one key. */
static void publish(struct rpc_call *c, struct bundle *b)
{
	const struct api *a = rpc_call_data(c);
	struct relay *p;

	if (!upstream_publishes(a->upstream) || b->n_jwt_keys == 0) {
		append_start(c, b, NULL, true);
		return;
	}
	p = xcalloc(1, sizeof(*p));
	*p = (struct relay){ .c = rpc_call_ref(c), .add = b };
	upstream_publish(a->upstream, &b->jwt_keys[0], relayed, p);
}

static void publish_jwt(struct rpc_call *c, ProtobufCMessage *req)
{
	V1(PublishJWTAuthorityRequest) *rq = (void *)req;
	struct bundle *b;
	struct err e;

	if (!rq->jwt_authority)
		rpc_fail(c, ERR_INVALID, "missing JWT authority");
	else if (read_authorities(rpc_call_data(c), NULL, 0, &rq->jwt_authority, 1, &b, &e))
		rpc_fail(c, ERR_INVALID, "invalid JWT authority: %s", e.msg);
	else
		publish(c, b);
	protobuf_c_message_free_unpacked(req, NULL);
}

static void start_publish_jwt(struct rpc_call *c, const ProtobufCMessage *req)
{
	api_limited(c, req, RATELIMIT_PUSH_KEY, 1, publish_jwt);
}

static void publish_wit(struct rpc_call *c, const ProtobufCMessage *req)
{
	(void)req;
	rpc_fail(c, ERR_UNIMPLEMENTED, "WIT-SVID functionality is not yet implemented");
}

static const struct rpc_method methods[] = {
	{ "CountBundles", RPC_UNARY, count_bundles },
	{ "GetBundle", RPC_UNARY, get_bundle },
	{ "AppendBundle", RPC_UNARY, append_bundle },
	{ "PublishJWTAuthority", RPC_UNARY, start_publish_jwt },
	{ "PublishWITAuthority", RPC_UNARY, publish_wit },
	{ "ListFederatedBundles", RPC_UNARY, api_list_federated },
	{ "GetFederatedBundle", RPC_UNARY, api_get_federated },
	{ "BatchCreateFederatedBundle", RPC_UNARY, api_create_federated },
	{ "BatchUpdateFederatedBundle", RPC_UNARY, api_update_federated },
	{ "BatchSetFederatedBundle", RPC_UNARY, api_set_federated },
	{ "BatchDeleteFederatedBundle", RPC_UNARY, api_delete_federated },
};

struct rpc_service api_bundle_service(struct api *a)
{
	return (struct rpc_service){ .desc = &spire__api__server__bundle__v1__bundle__descriptor,
		.methods = methods,
		.n_methods = ARRAY_LEN(methods),
		.data = a };
}

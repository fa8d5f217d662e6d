#include <stdlib.h>
#include <string.h>

#include "agent/api.h"
#include "agent/cache_internal.h"
#include "spiffe/workload/workload.pb-c.h"

/* The Workload API's answers, encoded once for all callers with the same selectors. */

/* Federated bundles of all matches, each once, in order of the entries. */
static void each_federated(struct view *v, void (*fn)(void *arg, const struct bundle *b), void *arg)
{
	struct strings seen = { 0 };

	for (size_t i = 0; i < v->n_matches; i++) {
		const struct strings *f = &v->matches[i]->entry.federates_with;

		for (size_t k = 0; k < f->n; k++) {
			struct bundle *b = cache_federated(v->cache, f->v[k]);

			if (!b || strings_has(&seen, f->v[k]))
				continue;
			strings_add(&seen, f->v[k]);
			fn(arg, b);
		}
	}
	strings_deinit(&seen);
}

void view_each_bundle(struct view *v, void (*fn)(void *arg, const struct bundle *b), void *arg)
{
	struct bundle *own = cache_bundle(v->cache);

	if (own)
		fn(arg, own);
	each_federated(v, fn, arg);
}

/* Trust domain ID → bytes: the shape of all map fields here. */
struct pair {
	char *id;
	struct buf value;
};
struct pairs {
	struct pair *v;
	size_t n;
	bool jwks;
};

static void add_pair(void *arg, const struct bundle *b)
{
	struct pairs *p = arg;
	struct pair *one;

	p->v = xreallocarray(p->v, p->n + 1, sizeof(*p->v));
	one = &p->v[p->n++];
	one->id = xasprintf("spiffe://%s", b->trust_domain);
	one->value = BUF_INIT;
	if (p->jwks)
		bundle_to_jwks(b, &one->value);
	else
		bundle_roots_der(b, &one->value);
}

static void pairs_deinit(struct pairs *p)
{
	for (size_t i = 0; i < p->n; i++) {
		free(p->v[i].id);
		buf_deinit(&p->v[i].value);
	}
	free(p->v);
}

static ProtobufCBinaryData binary(struct buf *b)
{
	return (ProtobufCBinaryData){ .data = b->p, .len = b->len };
}

static struct rpc_payload *encode_x509(struct view *v)
{
	X509SVIDResponse rs = X509_SVIDRESPONSE__INIT;
	AUTO(free) X509SVID *svids = xcalloc(v->n_matches + 1, sizeof(*svids));
	AUTO(free) X509SVID **svidp = xcalloc(v->n_matches + 1, sizeof(*svidp));
	X509SVIDResponse__FederatedBundlesEntry *fed, **fedp;
	AUTO_BUF struct buf roots = BUF_INIT;
	struct pairs pairs = { 0 };
	struct rpc_payload *p;

	bundle_roots_der(cache_bundle(v->cache), &roots);
	for (size_t i = 0; i < v->n_matches; i++) {
		struct record *r = v->matches[i];
		X509SVID *s = &svids[rs.n_svids];

		if (!r->svid)
			continue;
		x509_svid__init(s);
		s->spiffe_id = r->entry.spiffe_id;
		s->x509_svid = binary(&r->svid->chain);
		s->x509_svid_key = binary(&r->svid->key);
		s->bundle = binary(&roots);
		s->hint = r->entry.hint;
		svidp[rs.n_svids++] = s;
	}
	each_federated(v, add_pair, &pairs);
	fed = xcalloc(pairs.n + 1, sizeof(*fed));
	fedp = xcalloc(pairs.n + 1, sizeof(struct X509SVIDResponse__FederatedBundlesEntry *));
	for (size_t i = 0; i < pairs.n; i++) {
		x509_svidresponse__federated_bundles_entry__init(&fed[i]);
		fed[i].key = pairs.v[i].id;
		fed[i].value = binary(&pairs.v[i].value);
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
	X509BundlesResponse rs = X509_BUNDLES_RESPONSE__INIT;
	AUTO(free) X509BundlesResponse__BundlesEntry *v = xcalloc(pairs->n + 1, sizeof(*v));
	AUTO(free) X509BundlesResponse__BundlesEntry **vp = xcalloc(pairs->n + 1, sizeof(*vp));

	for (size_t i = 0; i < pairs->n; i++) {
		x509_bundles_response__bundles_entry__init(&v[i]);
		v[i].key = pairs->v[i].id;
		v[i].value = binary(&pairs->v[i].value);
		vp[i] = &v[i];
	}
	rs.n_bundles = pairs->n;
	rs.bundles = vp;
	return rpc_payload_new(&rs.base);
}

static struct rpc_payload *encode_jwt_bundles(const struct pairs *pairs)
{
	JWTBundlesResponse rs = JWTBUNDLES_RESPONSE__INIT;
	AUTO(free) JWTBundlesResponse__BundlesEntry *v = xcalloc(pairs->n + 1, sizeof(*v));
	AUTO(free) JWTBundlesResponse__BundlesEntry **vp = xcalloc(pairs->n + 1, sizeof(*vp));

	for (size_t i = 0; i < pairs->n; i++) {
		jwtbundles_response__bundles_entry__init(&v[i]);
		v[i].key = pairs->v[i].id;
		v[i].value = binary(&pairs->v[i].value);
		vp[i] = &v[i];
	}
	rs.n_bundles = pairs->n;
	rs.bundles = vp;
	return rpc_payload_new(&rs.base);
}

static struct rpc_payload *encode_bundles(struct view *v, bool jwks)
{
	struct pairs pairs = { .jwks = jwks };
	struct rpc_payload *p;

	view_each_bundle(v, add_pair, &pairs);
	p = jwks ? encode_jwt_bundles(&pairs) : encode_x509_bundles(&pairs);
	pairs_deinit(&pairs);
	return p;
}

struct rpc_payload *view_payload(struct view *v, enum view_kind k)
{
	struct rpc_payload *p;

	if (!cache_bundle(v->cache) || (k == VIEW_X509 && !view_ready(v)))
		return NULL;
	if (v->fresh[k])
		return v->payload[k];
	p = k == VIEW_X509 ? encode_x509(v) : encode_bundles(v, k == VIEW_JWT_BUNDLES);
	v->fresh[k] = true;
	/* The same bytes stay the same object, so that nobody is told twice. */
	if (v->payload[k] && rpc_payload_equal(v->payload[k], p)) {
		rpc_payload_unref(p);
		return v->payload[k];
	}
	if (v->payload[k])
		rpc_payload_unref(v->payload[k]);
	v->payload[k] = p;
	return p;
}

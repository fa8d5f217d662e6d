/* Service spire.api.server.trustdomain.v1.TrustDomain: federation relationships. */
#include "server/api.h"

#include <stdlib.h>
#include <string.h>

#include "lib/text.h"
#include "server/federation.h"
#include "spire/api/server/trustdomain/v1/trustdomain.pb-c.h"

#define V1(name) Spire__Api__Server__Trustdomain__V1__##name
#define DESCRIPTOR(name) spire__api__server__trustdomain__v1__##name##__descriptor
#define PROFILE(name) SPIRE__API__TYPES__FEDERATION_RELATIONSHIP__BUNDLE_ENDPOINT_PROFILE_##name

typedef Spire__Api__Types__FederationRelationship Relationship;
typedef Spire__Api__Types__FederationRelationshipMask Mask;

/* ---- out ---- */

/* b: its bundle, or NULL. */
static Relationship *pb_relationship(
	const struct relationship *r, const struct bundle *b, const Mask *mask)
{
	Relationship *m = pb_new(&spire__api__types__federation_relationship__descriptor);

	m->trust_domain = pb_str(r->trust_domain);
	if (!mask || mask->bundle_endpoint_url)
		m->bundle_endpoint_url = pb_str(r->url);
	if ((!mask || mask->bundle_endpoint_profile) && *r->endpoint_id) {
		m->bundle_endpoint_profile_case = PROFILE(HTTPS_SPIFFE);
		m->https_spiffe = pb_new(&spire__api__types__httpsspiffeprofile__descriptor);
		m->https_spiffe->endpoint_spiffe_id = pb_str(r->endpoint_id);
	} else if (!mask || mask->bundle_endpoint_profile) {
		m->bundle_endpoint_profile_case = PROFILE(HTTPS_WEB);
		m->https_web = pb_new(&spire__api__types__httpsweb_profile__descriptor);
	}
	if ((!mask || mask->trust_domain_bundle) && b)
		m->trust_domain_bundle = pb_bundle(b, NULL);
	return m;
}

/* ---- in ---- */

static int read_profile(struct relationship *ret, const Relationship *m, struct err *e)
{
	struct spiffeid id = SPIFFEID_INIT;

	switch (m->bundle_endpoint_profile_case) {
	case PROFILE(HTTPS_SPIFFE):
		if (spiffeid_parse_str(&id, m->https_spiffe->endpoint_spiffe_id, e))
			return err_wrap(e, "failed to parse endpoint SPIFFE ID");
		ret->endpoint_id = id.text;
		return 0;
	case PROFILE(HTTPS_WEB):
		ret->endpoint_id = xstrdup("");
		return 0;
	default:
		return err_set(e, ERR_INVALID, "unsupported bundle endpoint profile type: <nil>");
	}
}

static int read_bundle(const struct relationship *r, Spire__Api__Types__Bundle *m,
	struct bundle **ret, struct err *e)
{
	AUTO(free) char *td = NULL;

	if (trust_domain_parse(m->trust_domain, &td, e) || bundle_from_proto(m, ret, e))
		return err_wrap(e, "failed to parse bundle");
	if (strcmp(td, r->trust_domain) == 0)
		return 0;

	AUTO(free) char *a = text_quote(m->trust_domain);
	AUTO(free) char *b = text_quote(r->trust_domain);

	return err_set(e, ERR_INVALID,
		"trust domain bundle (%s) must match the trust domain of the federation "
		"relationship (%s)",
		a, b);
}

/* The bundle's own name may be given as "spiffe://…", which its reader does not take. */
static void bare_name(Spire__Api__Types__Bundle *m)
{
	char *td = NULL;

	if (m && trust_domain_parse(m->trust_domain, &td, NULL) == 0) {
		free(m->trust_domain);
		m->trust_domain = td;
	}
}

/* Outputs are to be freed also on failure. */
static int read_relationship(
	struct relationship *ret, struct bundle **ret_bundle, const Relationship *m, struct err *e)
{
	int r = trust_domain_parse(m->trust_domain, &ret->trust_domain, e);

	if (r)
		return err_wrap(e, "failed to parse trust domain");
	r = federation_url(m->bundle_endpoint_url, &ret->url, NULL, e);
	if (!r)
		r = read_profile(ret, m, e);
	if (!r && m->trust_domain_bundle) {
		bare_name(m->trust_domain_bundle);
		r = read_bundle(ret, m->trust_domain_bundle, ret_bundle, e);
	}
	return r;
}

/* ---- ListFederationRelationships, GetFederationRelationship ---- */

static bool read_token(const char *token, int64_t *ret)
{
	char *end;

	*ret = 0;
	if (!*token)
		return true;
	*ret = strtoll(token, &end, 10);
	return *end == 0 && *ret >= 0;
}

static void list(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(ListFederationRelationshipsRequest) *rq = (const void *)req;
	const struct api *a = rpc_call_data(c);
	V1(ListFederationRelationshipsResponse) * rs;
	const struct relationship **v;
	size_t n, i, bytes = 0, max = rq->page_size > 0 ? (size_t)rq->page_size : SIZE_MAX;
	int64_t after;

	if (!read_token(rq->page_token, &after)) {
		rpc_fail(c, ERR_INTERNAL,
			"failed to list federation relationships: could not parse token '%s'",
			rq->page_token);
		return;
	}
	rs = pb_new(&DESCRIPTOR(list_federation_relationships_response));
	v = federation_list(a->federation, after, &n);
	for (i = 0; i < n && i < max && bytes < API_REPLY_BYTES_MAX; i++) {
		Relationship *m =
			pb_relationship(v[i], api_bundle(a, v[i]->trust_domain), rq->output_mask);

		bytes += spire__api__types__federation_relationship__get_packed_size(m);
		pb_append(&rs->federation_relationships, &rs->n_federation_relationships, m);
	}
	if (i > 0 && i < n)
		rs->next_page_token = xasprintf("%lld", (long long)v[i - 1]->num);
	free(v);
	api_audit(a, c, 0, NULL, NULL);
	api_reply(c, rs);
}

static void get(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(GetFederationRelationshipRequest) *rq = (const void *)req;
	const struct api *a = rpc_call_data(c);
	const struct relationship *r;
	AUTO(free) char *td = NULL;
	struct err e;

	if (trust_domain_parse(rq->trust_domain, &td, &e)) {
		rpc_fail(c, ERR_INVALID, "failed to parse trust domain: %s", e.msg);
		return;
	}
	r = federation_get(a->federation, td);
	if (!r) {
		rpc_fail(c, ERR_NOT_FOUND, "federation relationship does not exist");
		return;
	}
	api_audit(a, c, 0, NULL, "trust_domain_id", td, NULL);
	api_reply(c, pb_relationship(r, api_bundle(a, td), rq->output_mask));
}

/* ---- BatchCreate, BatchUpdate ---- */

/* The two responses have one shape: results with a status and a relationship. */
struct batch {
	struct rpc_call *c;
	struct api *api;
	ProtobufCMessage *req;
	V1(BatchCreateFederationRelationshipResponse) * rs;
	const Mask *input, *output; /* in req */
	bool update;
	size_t pending;
};

struct item {
	struct batch *b;
	V1(BatchCreateFederationRelationshipResponse__Result) * result;
	struct relationship rel;
	struct bundle *bundle;
};

static void batch_release(struct batch *b)
{
	if (--b->pending)
		return;
	api_reply(b->c, b->rs);
	protobuf_c_message_free_unpacked(b->req, NULL);
	rpc_call_unref(b->c);
	free(b);
}

static void item_end(struct item *it)
{
	struct batch *b = it->b;
	const Spire__Api__Types__Status *st = it->result->status;

	api_audit(b->api, b->c, st->code, st->message, "trust_domain_id", it->rel.trust_domain,
		"bundle_endpoint_url", it->rel.url, "bundle_endpoint_profile",
		!it->rel.endpoint_id   ? NULL
		: *it->rel.endpoint_id ? "https_spiffe"
				       : "https_web",
		NULL);
	relationship_deinit(&it->rel);
	if (it->bundle)
		bundle_unref(it->bundle);
	free(it);
	batch_release(b);
}

/* SPIRE's words, which scripts that tell "there already" from other failures look for. */
static Spire__Api__Types__Status *store_status(bool update, int code, const char *msg)
{
	if (code == ERR_EXISTS)
		msg = "datastore-sql: UNIQUE constraint failed: "
		      "federated_trust_domains.trust_domain";
	else if (code == ERR_NOT_FOUND)
		msg = "unable to fetch federation relationship: record not found";
	return pb_status_wrap(ERR_INTERNAL,
		update ? "failed to update federation relationship"
		       : "failed to create federation relationship",
		msg);
}

static void warn_no_bundle(const struct api *a, const struct relationship *r)
{
	struct spiffeid id = SPIFFEID_INIT;

	if (!*r->endpoint_id || spiffeid_parse_str(&id, r->endpoint_id, NULL))
		return;

	struct bytes name = spiffeid_td(&id);
	AUTO(free) char *td = xstrndup((const char *)name.p, name.n);

	spiffeid_deinit(&id);
	if (!api_bundle(a, td))
		log_event(LOG_WARN, "federation",
			"bundle not found for the endpoint SPIFFE ID trust domain",
			"trust_domain_id", r->trust_domain, "endpoint_spiffe_id", r->endpoint_id,
			NULL);
}

static void item_done(void *arg, int code, const char *msg)
{
	struct item *it = arg;
	const struct batch *b = it->b;
	const struct relationship *now = &it->rel;
	const struct bundle *bundle = it->bundle;

	if (code) {
		it->result->status = store_status(b->update, code, msg);
	} else {
		if (b->update) {
			now = federation_get(b->api->federation, it->rel.trust_domain);
			bundle = api_bundle(b->api, it->rel.trust_domain);
		}
		it->result->status = pb_ok();
		if (now) { /* else deleted meanwhile */
			it->result->federation_relationship =
				pb_relationship(now, bundle, b->output);
			warn_no_bundle(b->api, now);
		}
	}
	item_end(it);
}

static unsigned mask_bits(const Mask *m)
{
	if (!m)
		return RELATIONSHIP_URL | RELATIONSHIP_PROFILE;
	return (m->bundle_endpoint_url ? RELATIONSHIP_URL : 0) |
	       (m->bundle_endpoint_profile ? RELATIONSHIP_PROFILE : 0);
}

static void item_start(struct batch *b, const Relationship *m)
{
	struct item *it = xcalloc(1, sizeof(*it));
	struct store *s = b->api->store;
	struct err e;

	it->b = b;
	it->result = pb_new(
		b->update ? &DESCRIPTOR(batch_update_federation_relationship_response__result)
			  : &DESCRIPTOR(batch_create_federation_relationship_response__result));
	pb_append(&b->rs->results, &b->rs->n_results, it->result);
	b->pending++;
	if (read_relationship(&it->rel, &it->bundle, m, &e))
		it->result->status = pb_status_wrap(
			ERR_INVALID, "failed to convert federation relationship", e.msg);
	else if (!b->update && strcmp(it->rel.trust_domain, b->api->trust_domain) == 0)
		it->result->status = pb_status(ERR_INVALID,
			"unable to create federation relationship for server trust domain");
	if (it->result->status)
		item_end(it);
	else if (b->update)
		store_relationship_update(s, &it->rel, mask_bits(b->input),
			!b->input || b->input->trust_domain_bundle ? it->bundle : NULL, item_done,
			it);
	else
		store_relationship_create(s, &it->rel, it->bundle, item_done, it);
}

static void batch_start(struct rpc_call *c, bool update, Relationship **v, size_t n,
	const Mask *input, const Mask *output, const ProtobufCMessageDescriptor *response)
{
	struct batch *b;

	if (n > API_BATCH_MAX) {
		rpc_fail(c, ERR_INVALID, "too many items in one batch, at most %d are allowed",
			API_BATCH_MAX);
		return;
	}
	b = xcalloc(1, sizeof(*b));
	*b = (struct batch){ .c = rpc_call_ref(c),
		.api = rpc_call_data(c),
		.req = rpc_call_take_request(c),
		.rs = pb_new(response),
		.input = input,
		.output = output,
		.update = update,
		.pending = 1 };
	for (size_t i = 0; i < n; i++)
		item_start(b, v[i]);
	batch_release(b);
}

static void batch_create(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(BatchCreateFederationRelationshipRequest) *rq = (const void *)req;

	batch_start(c, false, rq->federation_relationships, rq->n_federation_relationships, NULL,
		rq->output_mask, &DESCRIPTOR(batch_create_federation_relationship_response));
}

static void batch_update(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(BatchUpdateFederationRelationshipRequest) *rq = (const void *)req;

	batch_start(c, true, rq->federation_relationships, rq->n_federation_relationships,
		rq->input_mask, rq->output_mask,
		&DESCRIPTOR(batch_update_federation_relationship_response));
}

/* ---- BatchDelete ---- */

struct deletion {
	struct rpc_call *c;
	struct api *api;
	V1(BatchDeleteFederationRelationshipResponse) * rs;
	size_t pending;
};

struct deleted {
	struct deletion *d;
	V1(BatchDeleteFederationRelationshipResponse__Result) * result;
};

static void deletion_release(struct deletion *d)
{
	if (--d->pending)
		return;
	api_reply(d->c, d->rs);
	rpc_call_unref(d->c);
	free(d);
}

static void deleted_end(struct deleted *x, Spire__Api__Types__Status *st)
{
	const struct deletion *d = x->d;

	x->result->status = st;
	api_audit(d->api, d->c, st->code, st->message, "trust_domain_id", x->result->trust_domain,
		NULL);
	free(x);
}

static void deleted_done(void *arg, int code, const char *msg)
{
	struct deleted *x = arg;
	struct deletion *d = x->d;

	deleted_end(x, code == ERR_NOT_FOUND ? pb_status(code, "federation relationship not found")
		       : code                ? pb_status_wrap(ERR_INTERNAL,
						       "failed to delete federation relationship", msg)
					     : pb_ok());
	deletion_release(d);
}

static void delete_start(struct deletion *d, const char *name)
{
	struct deleted *x = xcalloc(1, sizeof(*x));
	char *td = NULL;
	struct err e;

	x->d = d;
	x->result = pb_new(&DESCRIPTOR(batch_delete_federation_relationship_response__result));
	x->result->trust_domain = pb_str(name);
	pb_append(&d->rs->results, &d->rs->n_results, x->result);
	if (!*name) {
		deleted_end(x, pb_status(ERR_INVALID, "missing trust domain"));
	} else if (trust_domain_parse(name, &td, &e)) {
		deleted_end(x, pb_status_wrap(ERR_INVALID, "failed to parse trust domain", e.msg));
	} else {
		free(x->result->trust_domain);
		x->result->trust_domain = td;
		d->pending++;
		store_relationship_delete(d->api->store, td, deleted_done, x);
	}
}

static void batch_delete(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(BatchDeleteFederationRelationshipRequest) *rq = (const void *)req;
	struct deletion *d;

	if (rq->n_trust_domains > API_BATCH_MAX) {
		rpc_fail(c, ERR_INVALID, "too many items in one batch, at most %d are allowed",
			API_BATCH_MAX);
		return;
	}
	d = xcalloc(1, sizeof(*d));
	*d = (struct deletion){ .c = rpc_call_ref(c),
		.api = rpc_call_data(c),
		.rs = pb_new(&DESCRIPTOR(batch_delete_federation_relationship_response)),
		.pending = 1 };
	for (size_t i = 0; i < rq->n_trust_domains; i++)
		delete_start(d, rq->trust_domains[i]);
	deletion_release(d);
}

/* ---- RefreshBundle ---- */

static void refreshed(void *arg, int code, const char *msg)
{
	struct rpc_call *c = arg;
	Google__Protobuf__Empty empty = GOOGLE__PROTOBUF__EMPTY__INIT;

	if (code)
		rpc_fail(c, ERR_INTERNAL, "failed to refresh bundle: %s", msg);
	else
		rpc_reply(c, &empty.base);
	rpc_call_unref(c);
}

static void refresh(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(RefreshBundleRequest) *rq = (const void *)req;
	const struct api *a = rpc_call_data(c);
	AUTO(free) char *td = NULL;
	struct err e;

	if (trust_domain_parse(rq->trust_domain, &td, &e)) {
		rpc_fail(c, ERR_INVALID, "failed to parse trust domain: %s", e.msg);
		return;
	}
	if (!federation_refresh(a->federation, td, refreshed, rpc_call_ref(c))) {
		rpc_call_unref(c);
		rpc_fail(c, ERR_NOT_FOUND, "no relationship with trust domain \"%s\"", td);
		return;
	}
	api_audit(a, c, 0, NULL, "trust_domain_id", td, NULL);
}

struct rpc_service api_trustdomain_service(struct api *a)
{
	static const struct rpc_method methods[] = {
		{ "ListFederationRelationships", RPC_UNARY, list },
		{ "GetFederationRelationship", RPC_UNARY, get },
		{ "BatchCreateFederationRelationship", RPC_UNARY, batch_create },
		{ "BatchUpdateFederationRelationship", RPC_UNARY, batch_update },
		{ "BatchDeleteFederationRelationship", RPC_UNARY, batch_delete },
		{ "RefreshBundle", RPC_UNARY, refresh },
	};

	return (struct rpc_service){
		.desc = &spire__api__server__trustdomain__v1__trust_domain__descriptor,
		.methods = methods,
		.n_methods = ARRAY_LEN(methods),
		.data = a,
	};
}

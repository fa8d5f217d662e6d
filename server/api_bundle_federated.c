/* Service spire.api.server.bundle.v1.Bundle, its foreign half: bundles of other trust domains. */
#include "server/api.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "spire/api/server/bundle/v1/bundle.pb-c.h"

#define V1(name) Spire__Api__Server__Bundle__V1__##name

enum { DELETE_MAX = 1000 }; /* trust domains in one call */

/* ---- ListFederatedBundles, GetFederatedBundle ---- */

static int by_num(const void *a, const void *b)
{
	const struct bundle *p = *(const struct bundle *const *)a;
	const struct bundle *q = *(const struct bundle *const *)b;

	return p->num < q->num ? -1 : p->num > q->num;
}

/* The foreign bundles after number `after`, in the order of creation. Caller frees the array and
 * *ret_n tells its length. */
static const struct bundle **foreign(const struct api *a, int64_t after, size_t *ret_n)
{
	const struct bundle **v = xcalloc(map_len(a->bundles), sizeof(struct bundle *));
	struct bytes key;
	void *value;
	size_t n = 0;

	for (size_t i = 0; map_next(a->bundles, &i, &key, &value);) {
		const struct bundle *b = value;

		if (strcmp(b->trust_domain, a->trust_domain) != 0 && b->num > after)
			v[n++] = b;
	}
	if (n)
		qsort(v, n, sizeof(struct bundle *), by_num);
	*ret_n = n;
	return v;
}

static bool read_token(const char *token, int64_t *ret)
{
	char *end;

	*ret = 0;
	if (!token[0])
		return true;
	if (token[0] < '0' || token[0] > '9')
		return false;
	errno = 0;
	*ret = strtoll(token, &end, 10);
	return !errno && !*end;
}

void api_list_federated(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(ListFederatedBundlesRequest) *rq = (const void *)req;
	const struct api *a = rpc_call_data(c);
	V1(ListFederatedBundlesResponse) * rs;
	size_t n, max = rq->page_size > 0 ? (size_t)rq->page_size : SIZE_MAX, bytes = 0, i;
	const struct bundle **v;
	int64_t after;

	if (!read_token(rq->page_token, &after)) {
		rpc_fail(c, ERR_INTERNAL, "failed to list bundles: could not parse token '%.100s'",
			rq->page_token);
		return;
	}
	v = foreign(a, after, &n);
	rs = pb_new(&spire__api__server__bundle__v1__list_federated_bundles_response__descriptor);
	for (i = 0; i < n && i < max && bytes < API_REPLY_BYTES_MAX; i++) {
		Spire__Api__Types__Bundle *m = pb_bundle(v[i], rq->output_mask);

		bytes += spire__api__types__bundle__get_packed_size(m);
		pb_append(&rs->bundles, &rs->n_bundles, m);
	}
	if (i > 0 && i < n)
		rs->next_page_token = xasprintf("%lld", (long long)v[i - 1]->num);
	free(v);
	api_reply(c, rs);
}

void api_get_federated(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(GetFederatedBundleRequest) *rq = (const void *)req;
	const struct api *a = rpc_call_data(c);
	AUTO(free) char *td = NULL;
	struct err e;

	if (trust_domain_parse(rq->trust_domain, &td, &e))
		rpc_fail(c, ERR_INVALID, "trust domain argument is not valid: %s", e.msg);
	else if (strcmp(td, a->trust_domain) == 0)
		rpc_fail(c, ERR_INVALID,
			"getting a federated bundle for the server's own trust domain is not "
			"allowed");
	else if (!api_bundle(a, td))
		rpc_fail(c, ERR_NOT_FOUND, "bundle not found");
	else
		api_reply(c, pb_bundle(api_bundle(a, td), rq->output_mask));
}

/* ---- BatchCreate, BatchUpdate, BatchSetFederatedBundle ---- */

enum op { OP_CREATE, OP_UPDATE, OP_SET };

static const struct {
	const char *own, *failed;
} texts[] = {
	[OP_CREATE] = { "creating", "unable to create bundle" },
	[OP_UPDATE] = { "updating", "failed to update bundle" },
	[OP_SET] = { "setting", "failed to set bundle" },
};

/* The three responses have one shape: results with a status and a bundle. */
struct batch {
	struct rpc_call *c;
	struct api *api;
	ProtobufCMessage *req;
	V1(BatchSetFederatedBundleResponse) * rs;
	const Spire__Api__Types__BundleMask *input, *output; /* in req */
	enum op op;
	size_t pending;
};

struct item {
	struct batch *b;
	V1(BatchSetFederatedBundleResponse__Result) * result;
	char *trust_domain;
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

static void item_done(void *arg, int code, const char *msg)
{
	struct item *it = arg;
	struct batch *b = it->b;
	const struct bundle *now = api_bundle(b->api, it->trust_domain);

	if (code) {
		it->result->status = pb_status_wrap(ERR_INTERNAL, texts[b->op].failed, msg);
	} else {
		it->result->status = pb_ok();
		if (now)
			it->result->bundle = pb_bundle(now, b->output);
		log_event(LOG_INFO, "bundle", "federated bundle stored", "trust_domain_id",
			it->trust_domain, NULL);
	}
	api_audit(b->api, b->c, code, msg, "trust_domain_id", it->trust_domain, NULL);
	free(it->trust_domain);
	free(it);
	batch_release(b);
}

/* old with the fields that the mask names taken from m. */
static struct bundle *merge(
	const struct bundle *old, const struct bundle *m, const Spire__Api__Types__BundleMask *mask)
{
	const struct bundle *roots = mask->x509_authorities ? m : old;
	const struct bundle *keys = mask->jwt_authorities ? m : old;
	struct bundle *b = bundle_new(old->trust_domain);

	for (size_t i = 0; i < roots->n_roots; i++)
		bundle_add_root(b, roots->roots[i].cert, roots->roots[i].tainted);
	for (size_t i = 0; i < keys->n_jwt_keys; i++) {
		const struct bundle_jwt_key *k = &keys->jwt_keys[i];

		bundle_add_jwt_key(b, k->key_id, k->key, k->expires_at, k->tainted);
	}
	b->refresh_hint = mask->refresh_hint ? m->refresh_hint : old->refresh_hint;
	b->sequence = mask->sequence_number ? m->sequence : old->sequence;
	return b;
}

/* Checks one item: its trust domain and bundle, or its status. */
static Spire__Api__Types__Status *item_read(
	const struct batch *b, Spire__Api__Types__Bundle *m, char **td, struct bundle **ret)
{
	const struct bundle *old;
	struct err e;

	if (trust_domain_parse(m->trust_domain, td, &e))
		return pb_status_wrap(ERR_INVALID, "trust domain argument is not valid", e.msg);
	if (strcmp(*td, b->api->trust_domain) == 0)
		return pb_status(ERR_INVALID,
			"%s a federated bundle for the server's own trust domain is not allowed",
			texts[b->op].own);
	if (strcmp(m->trust_domain, *td) != 0) { /* given as "spiffe://…" */
		free(m->trust_domain);
		m->trust_domain = xstrdup(*td);
	}
	old = api_bundle(b->api, *td);
	if (bundle_from_proto(m, ret, &e))
		return pb_status_wrap(ERR_INVALID, "failed to convert bundle", e.msg);
	if (b->op == OP_CREATE && old)
		return pb_status(ERR_EXISTS, "bundle already exists");
	if (b->op == OP_UPDATE && !old)
		return pb_status(ERR_NOT_FOUND, "bundle not found");
	if (b->op == OP_UPDATE && b->input) {
		struct bundle *merged = merge(old, *ret, b->input);

		bundle_unref(*ret);
		*ret = merged;
	}
	return NULL;
}

static void item_start(struct batch *b, Spire__Api__Types__Bundle *m)
{
	V1(BatchSetFederatedBundleResponse__Result) * r;
	AUTO(bundle_unref) struct bundle *bundle = NULL;
	char *td = NULL;
	struct item *it;

	r = pb_new(
		b->op == OP_CREATE
			? &spire__api__server__bundle__v1__batch_create_federated_bundle_response__result__descriptor
		: b->op == OP_UPDATE
			? &spire__api__server__bundle__v1__batch_update_federated_bundle_response__result__descriptor
			: &spire__api__server__bundle__v1__batch_set_federated_bundle_response__result__descriptor);
	pb_append(&b->rs->results, &b->rs->n_results, r);
	r->status = item_read(b, m, &td, &bundle);
	if (r->status) {
		api_audit(b->api, b->c, r->status->code, r->status->message, "trust_domain_id",
			m->trust_domain, NULL);
		free(td);
		return;
	}
	it = xmalloc(sizeof(*it));
	*it = (struct item){ .b = b, .result = r, .trust_domain = td };
	b->pending++;
	store_bundle_put(b->api->store, bundle, STORE_SEQUENCE_GIVEN, item_done, it);
}

static void batch_start(struct rpc_call *c, enum op op, Spire__Api__Types__Bundle **v, size_t n,
	const Spire__Api__Types__BundleMask *input, const Spire__Api__Types__BundleMask *output,
	const ProtobufCMessageDescriptor *response)
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
		.op = op,
		.pending = 1 };
	for (size_t i = 0; i < n; i++)
		item_start(b, v[i]);
	batch_release(b);
}

void api_create_federated(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(BatchCreateFederatedBundleRequest) *rq = (const void *)req;

	batch_start(c, OP_CREATE, rq->bundle, rq->n_bundle, NULL, rq->output_mask,
		&spire__api__server__bundle__v1__batch_create_federated_bundle_response__descriptor);
}

void api_update_federated(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(BatchUpdateFederatedBundleRequest) *rq = (const void *)req;

	batch_start(c, OP_UPDATE, rq->bundle, rq->n_bundle, rq->input_mask, rq->output_mask,
		&spire__api__server__bundle__v1__batch_update_federated_bundle_response__descriptor);
}

void api_set_federated(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(BatchSetFederatedBundleRequest) *rq = (const void *)req;

	batch_start(c, OP_SET, rq->bundle, rq->n_bundle, NULL, rq->output_mask,
		&spire__api__server__bundle__v1__batch_set_federated_bundle_response__descriptor);
}

/* ---- BatchDeleteFederatedBundle ---- */

/* One trust domain after the other. */
struct deletion {
	struct rpc_call *c;
	struct api *api;
	ProtobufCMessage *req;
	V1(BatchDeleteFederatedBundleResponse) * rs;
	size_t at;
	char *trust_domain;
};

static void deletion_next(struct deletion *d);

static void deletion_result(struct deletion *d, Spire__Api__Types__Status *st)
{
	const V1(BatchDeleteFederatedBundleRequest) *rq = (void *)d->req;
	V1(BatchDeleteFederatedBundleResponse__Result) *r = pb_new(
		&spire__api__server__bundle__v1__batch_delete_federated_bundle_response__result__descriptor);

	r->trust_domain = pb_str(rq->trust_domains[d->at]);
	r->status = st;
	pb_append(&d->rs->results, &d->rs->n_results, r);
	api_audit(d->api, d->c, st->code, st->message, "trust_domain_id", r->trust_domain, NULL);
	free(d->trust_domain);
	d->trust_domain = NULL;
	d->at++;
	deletion_next(d);
}

static void bundle_deleted(void *arg, int code, const char *msg)
{
	struct deletion *d = arg;

	if (code == 0)
		log_event(LOG_INFO, "bundle", "federated bundle deleted", "trust_domain_id",
			d->trust_domain, NULL);
	deletion_result(d, code == ERR_NOT_FOUND ? pb_status(code, "bundle not found")
			   : code ? pb_status_wrap(code, "failed to delete federated bundle", msg)
				  : pb_ok());
}

static enum bundle_delete mode_of(const V1(BatchDeleteFederatedBundleRequest) * rq)
{
	switch (rq->mode) {
	case SPIRE__API__SERVER__BUNDLE__V1__BATCH_DELETE_FEDERATED_BUNDLE_REQUEST__MODE__DELETE:
		return BUNDLE_DELETE_ENTRIES;
	case SPIRE__API__SERVER__BUNDLE__V1__BATCH_DELETE_FEDERATED_BUNDLE_REQUEST__MODE__DISSOCIATE:
		return BUNDLE_DISSOCIATE;
	default:
		return BUNDLE_RESTRICT;
	}
}

/* NULL: go on. */
static Spire__Api__Types__Status *deletion_check(struct deletion *d, const char *name)
{
	struct err e;

	if (trust_domain_parse(name, &d->trust_domain, &e))
		return pb_status_wrap(ERR_INVALID, "trust domain argument is not valid", e.msg);
	if (strcmp(d->trust_domain, d->api->trust_domain) == 0)
		return pb_status(ERR_INVALID,
			"removing the bundle for the server trust domain is not allowed");
	if (!api_bundle(d->api, d->trust_domain))
		return pb_status(ERR_NOT_FOUND, "bundle not found");
	return NULL;
}

static void deletion_next(struct deletion *d)
{
	const V1(BatchDeleteFederatedBundleRequest) *rq = (void *)d->req;
	Spire__Api__Types__Status *st;

	if (d->at == rq->n_trust_domains) {
		api_reply(d->c, d->rs);
		protobuf_c_message_free_unpacked(d->req, NULL);
		rpc_call_unref(d->c);
		free(d);
		return;
	}
	st = deletion_check(d, rq->trust_domains[d->at]);
	if (st)
		deletion_result(d, st);
	else
		store_bundle_delete(d->api->store, d->trust_domain, mode_of(rq), bundle_deleted, d);
}

void api_delete_federated(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(BatchDeleteFederatedBundleRequest) *rq = (const void *)req;
	struct deletion *d;

	if ((unsigned)rq->mode > 2) {
		rpc_fail(c, ERR_INVALID,
			"failed to parse deletion mode: unhandled delete mode \"%d\"",
			(int)rq->mode);
		return;
	}
	if (rq->n_trust_domains > DELETE_MAX) {
		rpc_fail(c, ERR_INVALID, "too many items in one batch, at most %d are allowed",
			DELETE_MAX);
		return;
	}
	d = xcalloc(1, sizeof(*d));
	d->c = rpc_call_ref(c);
	d->api = rpc_call_data(c);
	d->req = rpc_call_take_request(c);
	d->rs = pb_new(
		&spire__api__server__bundle__v1__batch_delete_federated_bundle_response__descriptor);
	deletion_next(d);
}

/* Service spire.api.server.entry.v1.Entry: registration entries, for operators and (the authorized
 * ones) for agents. */
#include "server/api.h"

#include <stdlib.h>
#include <string.h>

#include "spire/api/server/entry/v1/entry.pb-c.h"

#define V1(name) Spire__Api__Server__Entry__V1__##name

/* ---- filters ---- */

/* The filter of a list or count as memory has it; owns its parts. */
struct filter {
	struct entries_filter f;
	struct spiffeid spiffe_id, parent_id;
	struct selectors selectors;
	struct strings federates_with;
};

static void filter_deinit(struct filter *f)
{
	spiffeid_deinit(&f->spiffe_id);
	spiffeid_deinit(&f->parent_id);
	selectors_deinit(&f->selectors);
	strings_deinit(&f->federates_with);
}

/* Count and List have the same filter under two names. */
struct filter_parts {
	const Spire__Api__Types__SPIFFEID *by_spiffe_id, *by_parent_id;
	const Spire__Api__Types__SelectorMatch *by_selectors;
	const Spire__Api__Types__FederatesWithMatch *by_federates_with;
	const Google__Protobuf__StringValue *by_hint;
	const Google__Protobuf__BoolValue *by_downstream;
};
#define FILTER_PARTS(m)                                                                            \
	((struct filter_parts){ (m)->by_spiffe_id, (m)->by_parent_id, (m)->by_selectors,           \
		(m)->by_federates_with, (m)->by_hint, (m)->by_downstream })

/* The wire's enumerations have the same numbers. SPIRE calls an unknown one an internal error. */
static int match_of(enum match *ret, int wire, const char *what, struct err *e)
{
	switch (wire) {
	case SPIRE__API__TYPES__SELECTOR_MATCH__MATCH_BEHAVIOR__MATCH_EXACT:
		*ret = MATCH_EXACT;
		return 0;
	case SPIRE__API__TYPES__SELECTOR_MATCH__MATCH_BEHAVIOR__MATCH_SUBSET:
		*ret = MATCH_SUBSET;
		return 0;
	case SPIRE__API__TYPES__SELECTOR_MATCH__MATCH_BEHAVIOR__MATCH_SUPERSET:
		*ret = MATCH_SUPERSET;
		return 0;
	case SPIRE__API__TYPES__SELECTOR_MATCH__MATCH_BEHAVIOR__MATCH_ANY:
		*ret = MATCH_ANY;
		return 0;
	default:
		return err_set(e, ERR_INTERNAL, "unhandled %s match behavior %d", what, wire);
	}
}

static int filter_ids(struct filter *f, const struct filter_parts *p, const char *td, struct err *e)
{
	if (p->by_parent_id) {
		if (api_id_parse(&f->parent_id, p->by_parent_id, API_ID_MEMBER, td, e))
			return err_wrap(e, "malformed parent ID filter");
		f->f.parent_id = f->parent_id.text;
	}
	if (p->by_spiffe_id) {
		if (api_id_parse(&f->spiffe_id, p->by_spiffe_id, API_ID_WORKLOAD, td, e))
			return err_wrap(e, "malformed SPIFFE ID filter");
		f->f.spiffe_id = f->spiffe_id.text;
	}
	return 0;
}

static int filter_selectors(
	struct filter *f, const Spire__Api__Types__SelectorMatch *m, struct err *e)
{
	if (api_selectors_parse(&f->selectors, m->selectors, m->n_selectors, e))
		return err_wrap(e, "malformed selectors filter");
	if (f->selectors.n == 0)
		return err_set(e, ERR_INVALID, "malformed selectors filter: empty selector set");
	f->f.selectors = &f->selectors;
	return match_of(&f->f.selectors_match, (int)m->match, "selectors", e);
}

static int filter_federates(
	struct filter *f, const Spire__Api__Types__FederatesWithMatch *m, struct err *e)
{
	for (size_t i = 0; i < m->n_trust_domains; i++) {
		AUTO(free) char *td = NULL;

		if (trust_domain_parse(m->trust_domains[i], &td, e))
			return err_wrap(e, "malformed federates with filter");
		if (!strings_has(&f->federates_with, td))
			strings_add(&f->federates_with, td);
	}
	if (f->federates_with.n == 0)
		return err_set(
			e, ERR_INVALID, "malformed federates with filter: empty trust domain set");
	f->f.federates_with = &f->federates_with;
	return match_of(&f->f.federates_match, (int)m->match, "federates with", e);
}

static int filter_parse(
	struct filter *f, const struct filter_parts *p, const char *td, struct err *e)
{
	int r = filter_ids(f, p, td, e);

	if (r == 0 && p->by_selectors)
		r = filter_selectors(f, p->by_selectors, e);
	if (r == 0 && p->by_federates_with)
		r = filter_federates(f, p->by_federates_with, e);
	if (p->by_hint && p->by_hint->value[0]) /* an empty hint is no filter */
		f->f.hint = p->by_hint->value;
	if (p->by_downstream && p->by_downstream->value) /* false is no filter */
		f->f.downstream = 1;
	return r;
}

static struct filter filter_none(void)
{
	return (struct filter){ .f = { .downstream = -1 } };
}

static bool filter_is_empty(const struct entries_filter *f)
{
	return !f->spiffe_id && !f->parent_id && !f->hint && !f->selectors && !f->federates_with &&
	       f->downstream < 0;
}

/* ---- CountEntries, ListEntries, GetEntry ---- */

static bool count_one(void *arg, const struct entry *en)
{
	(void)en;
	++*(int32_t *)arg;
	return true;
}

/* What SPIRE's store finds wrong, not its API, is an internal error. */
static void list_failed(struct err *e, const char *doing)
{
	if (e->code == ERR_INTERNAL)
		err_wrap(e, "%s", doing);
}

static void count_entries(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(CountEntriesRequest) *rq = (const void *)req;
	struct api *a = rpc_call_data(c);
	V1(CountEntriesResponse) rs = SPIRE__API__SERVER__ENTRY__V1__COUNT_ENTRIES_RESPONSE__INIT;
	struct filter f = filter_none();
	char *token = NULL;
	struct err e;
	int r = 0;

	if (rq->filter)
		r = filter_parse(&f, &FILTER_PARTS(rq->filter), a->trust_domain, &e);
	if (r == 0 && filter_is_empty(&f.f))
		rs.count = (int32_t)entries_count(a->entries);
	else if (r == 0)
		r = entries_list(a->entries, &f.f, "", count_one, &rs.count, &token, &e);
	if (r) {
		list_failed(&e, "failed to count entries");
		rpc_fail_err(c, &e);
	} else {
		rpc_reply(c, &rs.base);
	}
	free(token);
	filter_deinit(&f);
}

/* A page being filled. */
struct page {
	V1(ListEntriesResponse) * rs;
	const Spire__Api__Types__EntryMask *mask;
	size_t max, bytes;
};

static bool list_one(void *arg, const struct entry *en)
{
	struct page *p = arg;
	Spire__Api__Types__Entry *m;

	if (p->rs->n_entries >= p->max || p->bytes >= API_REPLY_BYTES_MAX)
		return false;
	m = pb_entry(en, p->mask);
	p->bytes += spire__api__types__entry__get_packed_size(m) + 6;
	pb_append(&p->rs->entries, &p->rs->n_entries, m);
	return true;
}

static void list_entries(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(ListEntriesRequest) *rq = (const void *)req;
	struct api *a = rpc_call_data(c);
	struct page p = { .mask = rq->output_mask,
		.max = rq->page_size > 0 ? (size_t)rq->page_size : SIZE_MAX };
	struct filter f = filter_none();
	char *token = NULL;
	struct err e;
	int r = 0;

	p.rs = pb_new(&spire__api__server__entry__v1__list_entries_response__descriptor);
	if (rq->filter)
		r = filter_parse(&f, &FILTER_PARTS(rq->filter), a->trust_domain, &e);
	if (r == 0)
		r = entries_list(a->entries, &f.f, rq->page_token, list_one, &p, &token, &e);
	filter_deinit(&f);
	if (r) {
		list_failed(&e, "failed to list entries");
		rpc_fail_err(c, &e);
		protobuf_c_message_free_unpacked(&p.rs->base, NULL);
		return;
	}
	p.rs->next_page_token = pb_str(token);
	free(token);
	api_reply(c, p.rs);
}

static void get_entry(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(GetEntryRequest) *rq = (const void *)req;
	struct api *a = rpc_call_data(c);
	struct entry en;
	struct err e;

	if (!rq->id[0]) {
		rpc_fail(c, ERR_INVALID, "missing ID");
		return;
	}
	if (entries_get(a->entries, rq->id, &en, &e)) {
		rpc_fail(c, ERR_NOT_FOUND, "entry not found");
		return;
	}
	api_reply(c, pb_entry(&en, rq->output_mask));
	entry_deinit(&en);
}

/* ---- BatchCreateEntry, BatchUpdateEntry, BatchDeleteEntry ---- */

/* A batch under way. The results are made up front, those of bad items with their status; index
 * says whose the store's results are. */
struct batch {
	struct rpc_call *c;
	struct api *api;
	ProtobufCMessage *req;
	ProtobufCMessage *response;
	const Spire__Api__Types__EntryMask *output_mask; /* in req */
	size_t *index;
	struct entry *entries;
	size_t n;
};

static struct batch *batch_new(struct rpc_call *c, size_t items)
{
	struct batch *b = xcalloc(1, sizeof(*b));

	b->c = rpc_call_ref(c);
	b->api = rpc_call_data(c);
	b->req = rpc_call_take_request(c);
	b->index = xcalloc(items, sizeof(*b->index));
	b->entries = xcalloc(items, sizeof(*b->entries));
	return b;
}

static void batch_finish(struct batch *b)
{
	api_reply(b->c, b->response);
	for (size_t i = 0; i < b->n; i++)
		entry_deinit(&b->entries[i]);
	free(b->entries);
	free(b->index);
	protobuf_c_message_free_unpacked(b->req, NULL);
	rpc_call_unref(b->c);
	free(b);
}

static bool too_many(struct rpc_call *c, size_t n)
{
	if (n <= API_BATCH_MAX)
		return false;
	rpc_fail(c, ERR_INVALID, "too many items in one batch, at most %d are allowed",
		API_BATCH_MAX);
	return true;
}

static void audit_entry(struct batch *b, const Spire__Api__Types__Status *st,
	const Spire__Api__Types__Entry *asked, const struct entry *stored)
{
	AUTO(free) char *id = NULL;

	if (!b->api->audit)
		return;
	if (asked && asked->spiffe_id)
		id = xasprintf(
			"spiffe://%s%s", asked->spiffe_id->trust_domain, asked->spiffe_id->path);
	api_audit(b->api, b->c, st->code, st->message, "entry_id",
		stored && stored->id ? stored->id
		: asked              ? asked->id
				     : NULL,
		"spiffe_id", id, "parent_id", stored ? stored->parent_id : NULL, NULL);
}

static void log_entry(const char *what, const struct entry *en)
{
	log_event(LOG_DEBUG, "entry", what, "entry_id", en->id, "spiffe_id", en->spiffe_id,
		"parent_id", en->parent_id, NULL);
}

static int by_text(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* SPIRE answers what it has just written in the order of its database's indexes, and everything
 * else in the order given; scripts compare the output of both. */
static Spire__Api__Types__Entry *written(struct entry *en, const Spire__Api__Types__EntryMask *mask)
{
	selectors_normalize(&en->selectors);
	if (en->dns_names.n > 1)
		qsort(en->dns_names.v, en->dns_names.n, sizeof(*en->dns_names.v), by_text);
	return pb_entry(en, mask);
}

static void created(void *arg, struct store_result *r, size_t n)
{
	struct batch *b = arg;
	V1(BatchCreateEntryResponse) *rs = (void *)b->response;
	V1(BatchCreateEntryRequest) *rq = (void *)b->req;

	for (size_t i = 0; i < n; i++) {
		V1(BatchCreateEntryResponse__Result) *m = rs->results[b->index[i]];

		if (r[i].code == 0)
			m->entry = written(&r[i].entry, b->output_mask);
		else if (r[i].similar)
			m->entry = pb_entry(&r[i].entry, b->output_mask);
		if (r[i].code == 0)
			m->status = pb_ok();
		else if (r[i].similar)
			m->status = pb_status(ERR_EXISTS, "similar entry already exists");
		else
			m->status =
				pb_status_wrap(r[i].code, "failed to create entry", r[i].message);
		if (r[i].code == 0)
			log_entry("created", &r[i].entry);
		audit_entry(b, m->status, rq->entries[b->index[i]], &r[i].entry);
	}
	batch_finish(b);
}

/* The status of an entry that is not to reach the store, or NULL. */
static Spire__Api__Types__Status *parse_item(struct batch *b, const Spire__Api__Types__Entry *m,
	const Spire__Api__Types__EntryMask *mask, const char *doing)
{
	struct entry *en = &b->entries[b->n];
	struct err e;

	if (api_entry_parse(en, m, mask, b->api->trust_domain, &e))
		return pb_status_wrap(ERR_INVALID, "failed to convert entry", e.msg);
	if (api_entry_check(en, api_entry_mask(mask), &e)) {
		entry_deinit(en);
		*en = (struct entry){ .id = NULL };
		err_wrap(&e, "datastore-validation");
		return pb_status_wrap(ERR_INVALID, doing, e.msg);
	}
	return NULL;
}

static void batch_create(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(BatchCreateEntryRequest) *rq = (const void *)req;
	V1(BatchCreateEntryResponse) * rs;
	struct batch *b;

	if (too_many(c, rq->n_entries))
		return;
	b = batch_new(c, rq->n_entries);
	rs = pb_new(&spire__api__server__entry__v1__batch_create_entry_response__descriptor);
	b->response = &rs->base;
	b->output_mask = rq->output_mask;
	for (size_t i = 0; i < rq->n_entries; i++) {
		V1(BatchCreateEntryResponse__Result) *m = pb_new(
			&spire__api__server__entry__v1__batch_create_entry_response__result__descriptor);

		pb_append(&rs->results, &rs->n_results, m);
		m->status = parse_item(b, rq->entries[i], NULL, "failed to create entry");
		if (m->status)
			audit_entry(b, m->status, rq->entries[i], NULL);
		else
			b->index[b->n++] = i;
	}
	if (b->n == 0)
		batch_finish(b);
	else
		store_entries_create(b->api->store, b->entries, b->n, created, b);
}

static void updated(void *arg, struct store_result *r, size_t n)
{
	struct batch *b = arg;
	V1(BatchUpdateEntryResponse) *rs = (void *)b->response;
	V1(BatchUpdateEntryRequest) *rq = (void *)b->req;

	for (size_t i = 0; i < n; i++) {
		V1(BatchUpdateEntryResponse__Result) *m = rs->results[b->index[i]];

		if (r[i].code == 0) {
			m->entry = written(&r[i].entry, b->output_mask);
			m->status = pb_ok();
			log_entry("updated", &r[i].entry);
		} else {
			m->status =
				pb_status_wrap(r[i].code, "failed to update entry", r[i].message);
		}
		audit_entry(b, m->status, rq->entries[b->index[i]], &r[i].entry);
	}
	batch_finish(b);
}

static void batch_update(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(BatchUpdateEntryRequest) *rq = (const void *)req;
	V1(BatchUpdateEntryResponse) * rs;
	struct batch *b;

	if (too_many(c, rq->n_entries))
		return;
	b = batch_new(c, rq->n_entries);
	rs = pb_new(&spire__api__server__entry__v1__batch_update_entry_response__descriptor);
	b->response = &rs->base;
	b->output_mask = rq->output_mask;
	for (size_t i = 0; i < rq->n_entries; i++) {
		V1(BatchUpdateEntryResponse__Result) *m = pb_new(
			&spire__api__server__entry__v1__batch_update_entry_response__result__descriptor);

		pb_append(&rs->results, &rs->n_results, m);
		m->status = parse_item(b, rq->entries[i], rq->input_mask, "failed to update entry");
		if (m->status)
			audit_entry(b, m->status, rq->entries[i], NULL);
		else
			b->index[b->n++] = i;
	}
	if (b->n == 0)
		batch_finish(b);
	else
		store_entries_update(b->api->store, b->entries, b->n,
			api_entry_mask(rq->input_mask), updated, b);
}

static void deleted(void *arg, struct store_result *r, size_t n)
{
	struct batch *b = arg;
	V1(BatchDeleteEntryResponse) *rs = (void *)b->response;

	for (size_t i = 0; i < n; i++) {
		V1(BatchDeleteEntryResponse__Result) *m = rs->results[b->index[i]];

		if (r[i].code == 0)
			m->status = pb_ok();
		else if (r[i].code == ERR_NOT_FOUND)
			m->status = pb_status(ERR_NOT_FOUND, "entry not found");
		else
			m->status = pb_status_wrap(
				ERR_INTERNAL, "failed to delete entry", r[i].message);
		if (r[i].code == 0)
			log_event(LOG_DEBUG, "entry", "deleted", "entry_id", m->id, NULL);
		api_audit(
			b->api, b->c, m->status->code, m->status->message, "entry_id", m->id, NULL);
	}
	batch_finish(b);
}

static void batch_delete(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(BatchDeleteEntryRequest) *rq = (const void *)req;
	V1(BatchDeleteEntryResponse) * rs;
	const char **ids;
	struct batch *b;

	if (too_many(c, rq->n_ids))
		return;
	b = batch_new(c, rq->n_ids);
	ids = xcalloc(rq->n_ids, sizeof(*ids));
	rs = pb_new(&spire__api__server__entry__v1__batch_delete_entry_response__descriptor);
	b->response = &rs->base;
	for (size_t i = 0; i < rq->n_ids; i++) {
		V1(BatchDeleteEntryResponse__Result) *m = pb_new(
			&spire__api__server__entry__v1__batch_delete_entry_response__result__descriptor);

		pb_append(&rs->results, &rs->n_results, m);
		m->id = pb_str(rq->ids[i]);
		if (rq->ids[i][0]) {
			ids[b->n] = rq->ids[i];
			b->index[b->n++] = i;
		} else {
			m->status = pb_status(ERR_INVALID, "missing entry ID");
		}
	}
	if (b->n == 0)
		batch_finish(b);
	else
		store_entries_delete(b->api->store, ids, b->n, deleted, b);
	free(ids);
}

/* ---- GetAuthorizedEntries ---- */

struct collect {
	V1(GetAuthorizedEntriesResponse) * rs;
	const Spire__Api__Types__EntryMask *mask;
};

static void collect_one(void *arg, const struct entry *en)
{
	struct collect *k = arg;

	pb_append(&k->rs->entries, &k->rs->n_entries, pb_entry(en, k->mask));
}

static void get_authorized(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(GetAuthorizedEntriesRequest) *rq = (const void *)req;
	struct api *a = rpc_call_data(c);
	struct collect k = { .mask = rq->output_mask };

	k.rs = pb_new(&spire__api__server__entry__v1__get_authorized_entries_response__descriptor);
	entries_authorized(a->entries, api_caller(c), collect_one, &k);
	api_reply(c, k.rs);
}

static const struct rpc_method methods[] = {
	{ "CountEntries", RPC_UNARY, count_entries },
	{ "ListEntries", RPC_UNARY, list_entries },
	{ "GetEntry", RPC_UNARY, get_entry },
	{ "BatchCreateEntry", RPC_UNARY, batch_create },
	{ "BatchUpdateEntry", RPC_UNARY, batch_update },
	{ "BatchDeleteEntry", RPC_UNARY, batch_delete },
	{ "GetAuthorizedEntries", RPC_UNARY, get_authorized },
	{ "SyncAuthorizedEntries", RPC_BIDI, api_entry_sync },
};

struct rpc_service api_entry_service(struct api *a)
{
	return (struct rpc_service){ .desc = &spire__api__server__entry__v1__entry__descriptor,
		.methods = methods,
		.n_methods = ARRAY_LEN(methods),
		.data = a };
}

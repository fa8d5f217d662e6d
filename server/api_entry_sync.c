/*
 * Entry.SyncAuthorizedEntries: what SPIRE's agents poll with. A small set is answered whole; of a
 * larger one the agent first gets ids and revisions, then asks for those entries that are news to
 * it. One message is in flight; pages are made when the stream can take them.
 */
#include "server/api.h"

#include <stdlib.h>
#include <string.h>

#include "spire/api/server/entry/v1/entry.pb-c.h"

#define V1(name) Spire__Api__Server__Entry__V1__##name

struct revision {
	char *id;
	int64_t number, created_at;
};

struct sync {
	struct rpc_call *c;
	struct api *api;
	Spire__Api__Types__EntryMask mask; /* of the first request, for all that follows */
	bool has_mask;
	struct revision *revisions;
	size_t n_revisions, cap, sent;
	enum { IDLE, REVISIONS, ENTRIES } doing;   /* what pages are due */
	V1(SyncAuthorizedEntriesResponse) * whole; /* being collected: the small set */
	size_t bytes;
	char **ids; /* asked for, answered up to ids_at */
	size_t n_ids, ids_at;
};

static void forget_ids(struct sync *s)
{
	for (size_t i = 0; i < s->n_ids; i++)
		free(s->ids[i]);
	free(s->ids);
	s->ids = NULL;
	s->n_ids = s->ids_at = 0;
}

static void ended(struct rpc_call *c)
{
	struct sync *s = rpc_call_user(c);

	for (size_t i = 0; i < s->n_revisions; i++)
		free(s->revisions[i].id);
	free(s->revisions);
	if (s->whole)
		protobuf_c_message_free_unpacked(&s->whole->base, NULL);
	forget_ids(s);
	free(s);
}

static const Spire__Api__Types__EntryMask *mask_of(const struct sync *s)
{
	return s->has_mask ? &s->mask : NULL;
}

static void send_and_free(struct sync *s, V1(SyncAuthorizedEntriesResponse) * m)
{
	rpc_send(s->c, &m->base);
	protobuf_c_message_free_unpacked(&m->base, NULL);
}

static V1(SyncAuthorizedEntriesResponse) * response_new(void)
{
	return pb_new(&spire__api__server__entry__v1__sync_authorized_entries_response__descriptor);
}

/* ---- pages ---- */

/* True when it was the last. */
static bool send_revisions(struct sync *s)
{
	V1(SyncAuthorizedEntriesResponse) *m = response_new();
	bool more;

	while (s->sent < s->n_revisions && m->n_entry_revisions < API_SYNC_PAGE) {
		const struct revision *r = &s->revisions[s->sent++];
		V1(EntryRevision) *p =
			pb_new(&spire__api__server__entry__v1__entry_revision__descriptor);

		p->id = pb_str(r->id);
		p->revision_number = r->number;
		p->created_at = r->created_at;
		pb_append(&m->entry_revisions, &m->n_entry_revisions, p);
	}
	m->more = s->sent < s->n_revisions;
	more = m->more;
	send_and_free(s, m);
	return !more;
}

static bool send_entries(struct sync *s)
{
	V1(SyncAuthorizedEntriesResponse) *m = response_new();
	size_t bytes = 0;
	bool more;

	while (s->ids_at < s->n_ids && m->n_entries < API_SYNC_PAGE &&
		bytes < API_WATCH_PAGE_BYTES) {
		Spire__Api__Types__Entry *p;
		struct entry en;
		struct err e;

		if (entries_authorized_get(
			    s->api->entries, api_caller(s->c), s->ids[s->ids_at++], &en, &e))
			continue; /* unknown ids are left out */
		p = pb_entry(&en, mask_of(s));
		entry_deinit(&en);
		bytes += spire__api__types__entry__get_packed_size(p);
		pb_append(&m->entries, &m->n_entries, p);
	}
	m->more = s->ids_at < s->n_ids;
	more = m->more;
	send_and_free(s, m);
	return !more;
}

static void on_request(struct rpc_call *c, const ProtobufCMessage *m);

/* Sends what is due while the stream takes it; then listens for the next request. */
static void pump(struct rpc_call *c)
{
	struct sync *s = rpc_call_user(c);

	while (s->doing != IDLE && rpc_writable(c)) {
		bool last = s->doing == REVISIONS ? send_revisions(s) : send_entries(s);

		if (!last)
			continue;
		s->doing = IDLE;
		rpc_read(c, on_request);
	}
}

/* ---- requests ---- */

static int by_text(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static void on_request(struct rpc_call *c, const ProtobufCMessage *m)
{
	const V1(SyncAuthorizedEntriesRequest) *rq = (const void *)m;
	struct sync *s = rpc_call_user(c);

	if (!rq) { /* half-close */
		rpc_finish(c);
		return;
	}
	forget_ids(s);
	s->ids = xcalloc(rq->n_ids, sizeof(*s->ids));
	for (size_t i = 0; i < rq->n_ids; i++)
		s->ids[s->n_ids++] = xstrdup(rq->ids[i]);
	if (s->n_ids)
		qsort(s->ids, s->n_ids, sizeof(*s->ids), by_text);
	s->doing = ENTRIES;
	pump(c);
}

/* Both forms are collected in one walk, the whole entries only while the set is small. */
static void collect(void *arg, const struct entry *en)
{
	struct sync *s = arg;

	if (s->n_revisions == s->cap) {
		s->cap = s->cap ? 2 * s->cap : 64;
		s->revisions = xreallocarray(s->revisions, s->cap, sizeof(*s->revisions));
	}
	s->revisions[s->n_revisions++] = (struct revision){
		.id = xstrdup(en->id), .number = en->revision_number, .created_at = en->created_at
	};
	if (s->whole && s->n_revisions <= API_SYNC_PAGE && s->bytes < API_REPLY_BYTES_MAX) {
		Spire__Api__Types__Entry *p = pb_entry(en, mask_of(s));

		s->bytes += spire__api__types__entry__get_packed_size(p);
		pb_append(&s->whole->entries, &s->whole->n_entries, p);
	} else if (s->whole) {
		protobuf_c_message_free_unpacked(&s->whole->base, NULL);
		s->whole = NULL;
	}
}

static void on_first(struct rpc_call *c, const ProtobufCMessage *m)
{
	const V1(SyncAuthorizedEntriesRequest) *rq = (const void *)m;
	struct sync *s = rpc_call_user(c);

	if (!rq) {
		rpc_finish(c);
		return;
	}
	if (rq->n_ids) {
		rpc_fail(c, ERR_INVALID, "specifying IDs on initial request is not supported");
		return;
	}
	if (rq->output_mask && !rq->output_mask->revision_number) {
		rpc_fail(c, ERR_INVALID, "revision number cannot be masked");
		return;
	}
	s->has_mask = rq->output_mask;
	if (s->has_mask)
		s->mask = *rq->output_mask; /* booleans only */
	s->whole = response_new();
	entries_authorized(s->api->entries, api_caller(c), collect, s);
	if (s->whole) {
		rpc_send(c, &s->whole->base);
		rpc_finish(c);
		return;
	}
	s->doing = REVISIONS;
	pump(c);
}

void api_entry_sync(struct rpc_call *c, const ProtobufCMessage *req)
{
	struct sync *s = xcalloc(1, sizeof(*s));

	(void)req;
	s->c = c;
	s->api = rpc_call_data(c);
	rpc_call_set_user(c, s);
	rpc_call_on_end(c, ended);
	rpc_on_writable(c, pump);
	rpc_read(c, on_first);
}

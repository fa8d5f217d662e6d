#include <stdlib.h>
#include <string.h>

#include "agent/sync_internal.h"
#include "spire/api/server/agent/v1/agent.pb-c.h"
#include "spire/api/server/bundle/v1/bundle.pb-c.h"
#include "spire/api/server/entry/v1/entry.pb-c.h"

/*
 * Polling, as SPIRE's agent: entries by SyncAuthorizedEntries (revisions first, then whole entries
 * of what is new) or GetAuthorizedEntries, then the own bundle, then one foreign bundle after the
 * other. What a round brings is applied at its end, as a whole.
 */

#define SYNC_ENTRIES "/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries"
#define GET_ENTRIES "/spire.api.server.entry.v1.Entry/GetAuthorizedEntries"
#define GET_BUNDLE "/spire.api.server.bundle.v1.Bundle/GetBundle"
#define GET_FEDERATED "/spire.api.server.bundle.v1.Bundle/GetFederatedBundle"
#define POST_STATUS "/spire.api.server.agent.v1.Agent/PostStatus"

enum { POLL_JITTER_PERCENT = 10, POLL_BACKOFF_TIMES = 48, POLL_BACKOFF_MAX_S = 480 };

/* One round, from its first call to its end. Freed when its last callback has run. */
struct poll {
	struct sync *s; /* NULL: given up */
	struct loop_timer *timer;
	struct backoff backoff;
	bool posted_status, running;
	unsigned generation;
	enum sync_mode mode;
	struct rpc_stream *stream;
	struct cache_update update;
	size_t cap;
	struct strings federated; /* still to be asked for */
	size_t next_federated;
	/* SyncAuthorizedEntries */
	bool revisions; /* its first answer held revisions */
	bool have_all;  /* … and the last of them came */
	size_t page;
	struct map *seen;    /* ids of revisions */
	struct strings need; /* ids to be asked for */
	size_t next_need;
	int calls; /* under way */
};

static void begin_round(void *arg);

static void round_reset(struct poll *p)
{
	cache_update_deinit(&p->update);
	p->cap = 0;
	strings_deinit(&p->federated);
	p->federated = (struct strings){ 0 };
	strings_deinit(&p->need);
	p->need = (struct strings){ 0 };
	p->next_federated = p->next_need = 0;
	p->revisions = p->have_all = false;
	map_free(p->seen);
	p->seen = NULL;
}

static void poll_free(struct poll *p)
{
	round_reset(p);
	loop_timer_free(p->timer);
	free(p);
}

/* Called first by each callback. True: the poll was given up. */
static bool call_ended(struct poll *p)
{
	p->calls--;
	if (p->s)
		return false;
	if (p->calls == 0)
		poll_free(p);
	return true;
}

static void round_failed(struct poll *p, const struct rpc_status *st, const char *what)
{
	struct sync *s = p->s;

	p->running = false;
	round_reset(p);
	if (st && sync_refused(s, st, p->generation))
		return; /* attesting ends with a fresh start */
	sync_failed(s, st ? st->code : ERR_INTERNAL, what,
		st ? st->message : "the server's answer breaks the protocol");
	loop_timer_set(p->timer, backoff_next(&p->backoff));
}

static void round_done(struct poll *p)
{
	struct sync *s = p->s;
	bool bundle = p->update.bundle != NULL;

	p->update.full_federated = true;
	cache_apply(s->o.cache, &p->update);
	p->running = false;
	round_reset(p);
	backoff_reset(&p->backoff);
	if (bundle)
		sync_bundle_changed(s);
	loop_timer_set(p->timer, loop_jitter(s->o.options->sync_interval_ns, POLL_JITTER_PERCENT));
	sync_succeeded(s, p->mode);
}

/* ---- bundles ---- */

static void next_federated(struct poll *p);

static void keep_federated(struct poll *p, struct bundle *b)
{
	struct cache_update *u = &p->update;

	u->federated = xreallocarray(u->federated, u->n_federated + 1, sizeof(struct bundle *));
	u->federated[u->n_federated++] = b;
}

static void on_federated(void *arg, const struct rpc_status *st, const ProtobufCMessage *m)
{
	struct poll *p = arg;
	struct bundle *b;
	struct err e = ERR_INIT;

	if (call_ended(p))
		return;
	if (st->code && st->code != ERR_NOT_FOUND) {
		round_failed(p, st, "GetFederatedBundle");
		return;
	}
	if (!st->code) {
		if (bundle_from_proto((const Spire__Api__Types__Bundle *)m, &b, &e) == 0)
			keep_federated(p, b);
		else
			log_event(LOG_WARN, "sync", "Received a malformed federated bundle",
				"error", e.msg, NULL);
	}
	next_federated(p);
}

static void next_federated(struct poll *p)
{
	Spire__Api__Server__Bundle__V1__GetFederatedBundleRequest rq;
	struct rpc_unary_options u = { .method = GET_FEDERATED,
		.request = &rq.base,
		.response = &spire__api__types__bundle__descriptor,
		.timeout_ms = SYNC_CALL_MS,
		.fail_fast = true };

	if (p->next_federated == p->federated.n) {
		round_done(p);
		return;
	}
	spire__api__server__bundle__v1__get_federated_bundle_request__init(&rq);
	rq.trust_domain = p->federated.v[p->next_federated++];
	p->calls++;
	rpc_unary(p->s->client, &u, on_federated, p);
}

static void list_federated(struct poll *p)
{
	if (!p->update.full)
		cache_federates_with(p->s->o.cache, &p->federated);
	for (size_t i = 0; i < p->update.n_entries; i++) {
		const struct strings *f = &p->update.entries[i].federates_with;

		for (size_t k = 0; k < f->n; k++) {
			if (!strings_has(&p->federated, f->v[k]))
				strings_add(&p->federated, f->v[k]);
		}
	}
}

static void on_bundle(void *arg, const struct rpc_status *st, const ProtobufCMessage *m)
{
	struct poll *p = arg;
	struct err e = ERR_INIT;

	if (call_ended(p))
		return;
	if (!st->code &&
		bundle_from_proto((const Spire__Api__Types__Bundle *)m, &p->update.bundle, &e)) {
		log_event(LOG_WARN, "sync", "Received a malformed bundle", "error", e.msg, NULL);
		round_failed(p, NULL, "GetBundle");
		return;
	}
	if (st->code) {
		round_failed(p, st, "GetBundle");
		return;
	}
	list_federated(p);
	next_federated(p);
}

static void ask_bundle(struct poll *p)
{
	Spire__Api__Server__Bundle__V1__GetBundleRequest rq =
		SPIRE__API__SERVER__BUNDLE__V1__GET_BUNDLE_REQUEST__INIT;
	struct rpc_unary_options u = { .method = GET_BUNDLE,
		.request = &rq.base,
		.response = &spire__api__types__bundle__descriptor,
		.timeout_ms = SYNC_CALL_MS,
		.fail_fast = true };

	p->calls++;
	rpc_unary(p->s->client, &u, on_bundle, p);
}

/* ---- entries ---- */

static void take_entries(struct poll *p, Spire__Api__Types__Entry *const *v, size_t n)
{
	struct cache_update *u = &p->update;
	struct err e = ERR_INIT;

	for (size_t i = 0; i < n; i++) {
		if (u->n_entries == p->cap) {
			p->cap = p->cap ? 2 * p->cap : 16;
			u->entries = xreallocarray(u->entries, p->cap, sizeof(struct entry));
		}
		if (entry_from_proto(&u->entries[u->n_entries], v[i], &e) == 0)
			u->n_entries++;
		else
			log_event(LOG_WARN, "sync",
				"Received malformed entry from the server; are the server and "
				"agent "
				"versions compatible?",
				"entry_id", v[i]->id, "error", e.msg, NULL);
	}
}

/* What SPIRE's agents ask for, and the TTLs. */
static void set_mask(Spire__Api__Types__EntryMask *m)
{
	spire__api__types__entry_mask__init(m);
	m->spiffe_id = m->selectors = m->federates_with = m->admin = m->downstream = true;
	m->revision_number = m->store_svid = m->hint = m->created_at = true;
	m->additional_attributes = m->x509_svid_ttl = m->jwt_svid_ttl = true;
}

static bool revision_known(
	const struct poll *p, const Spire__Api__Server__Entry__V1__EntryRevision *rev)
{
	const struct record *r = cache_find(p->s->o.cache, rev->id);

	return r && r->entry.revision_number == rev->revision_number &&
	       (rev->created_at == 0 || r->entry.created_at == rev->created_at);
}

static void take_revisions(
	struct poll *p, const Spire__Api__Server__Entry__V1__SyncAuthorizedEntriesResponse *rs)
{
	for (size_t i = 0; i < rs->n_entry_revisions; i++) {
		const Spire__Api__Server__Entry__V1__EntryRevision *rev = rs->entry_revisions[i];

		if (!rev->id[0] || rev->revision_number < 0)
			continue;
		map_put_str(p->seen, rev->id, p);
		if (!revision_known(p, rev))
			strings_add(&p->need, rev->id);
	}
}

static int by_text(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static void end_stream(struct poll *p)
{
	struct rpc_stream *st = p->stream;

	p->stream = NULL;
	rpc_stream_cancel(st);
}

static void entries_complete(struct poll *p)
{
	const struct record *r;

	for (size_t i = 0; p->revisions && cache_next(p->s->o.cache, &i, &r);) {
		if (!map_get_str(p->seen, r->entry.id))
			strings_add(&p->update.removed, r->entry.id);
	}
	end_stream(p);
	ask_bundle(p);
}

/* The server answers each request for ids with one or more pages; a page is as long as its first
 * page of revisions was. */
static void ask_ids(struct poll *p)
{
	Spire__Api__Server__Entry__V1__SyncAuthorizedEntriesRequest rq =
		SPIRE__API__SERVER__ENTRY__V1__SYNC_AUTHORIZED_ENTRIES_REQUEST__INIT;
	size_t n = p->need.n - p->next_need;

	if (n == 0) {
		entries_complete(p);
		return;
	}
	rq.ids = p->need.v + p->next_need;
	rq.n_ids = n < p->page ? n : p->page;
	p->next_need += rq.n_ids;
	rpc_stream_send(p->stream, &rq.base);
}

static void broken(struct poll *p)
{
	end_stream(p);
	round_failed(p, NULL, "SyncAuthorizedEntries");
}

static void on_sync_message(void *arg, struct rpc_stream *st, const ProtobufCMessage *m)
{
	struct poll *p = arg;
	const Spire__Api__Server__Entry__V1__SyncAuthorizedEntriesResponse *rs =
		(const Spire__Api__Server__Entry__V1__SyncAuthorizedEntriesResponse *)m;

	if (!p->s || st != p->stream)
		return;
	if (p->have_all) {
		if (rs->n_entry_revisions) {
			broken(p);
			return;
		}
		take_entries(p, rs->entries, rs->n_entries);
		if (!rs->more)
			ask_ids(p);
		return;
	}
	if (!p->revisions && rs->n_entry_revisions == 0) {
		/* No revisions in the first answer: it is the complete list. */
		p->update.full = true;
		take_entries(p, rs->entries, rs->n_entries);
		if (!rs->more)
			entries_complete(p);
		return;
	}
	if (rs->n_entries) {
		broken(p);
		return;
	}
	if (!p->revisions) {
		p->revisions = true;
		p->page = rs->n_entry_revisions;
	}
	take_revisions(p, rs);
	if (rs->more)
		return;
	p->have_all = true;
	if (p->need.n)
		qsort(p->need.v, p->need.n, sizeof(p->need.v[0]), by_text);
	ask_ids(p);
}

static void on_sync_ended(void *arg, struct rpc_stream *st, const struct rpc_status *status)
{
	struct poll *p = arg;
	bool ours = p->s && st == p->stream;

	if (call_ended(p) || !ours)
		return;
	p->stream = NULL;
	round_failed(p, status->code ? status : NULL, "SyncAuthorizedEntries");
}

static void sync_entries(struct poll *p)
{
	Spire__Api__Server__Entry__V1__SyncAuthorizedEntriesRequest rq =
		SPIRE__API__SERVER__ENTRY__V1__SYNC_AUTHORIZED_ENTRIES_REQUEST__INIT;
	Spire__Api__Types__EntryMask mask;
	struct rpc_stream_options o = { .method = SYNC_ENTRIES,
		.response =
			&spire__api__server__entry__v1__sync_authorized_entries_response__descriptor,
		.timeout_ms = SYNC_CALL_MS,
		.fail_fast = true,
		.message = on_sync_message,
		.ended = on_sync_ended,
		.arg = p };

	set_mask(&mask);
	rq.output_mask = &mask;
	p->mode = SYNC_POLL;
	p->seen = map_new();
	p->calls++;
	p->stream = rpc_stream_open(p->s->client, &o);
	rpc_stream_send(p->stream, &rq.base);
}

static void on_entries(void *arg, const struct rpc_status *st, const ProtobufCMessage *m)
{
	struct poll *p = arg;
	const Spire__Api__Server__Entry__V1__GetAuthorizedEntriesResponse *rs =
		(const Spire__Api__Server__Entry__V1__GetAuthorizedEntriesResponse *)m;

	if (call_ended(p))
		return;
	if (st->code) {
		round_failed(p, st, "GetAuthorizedEntries");
		return;
	}
	p->update.full = true;
	take_entries(p, rs->entries, rs->n_entries);
	ask_bundle(p);
}

static void get_entries(struct poll *p)
{
	Spire__Api__Server__Entry__V1__GetAuthorizedEntriesRequest rq =
		SPIRE__API__SERVER__ENTRY__V1__GET_AUTHORIZED_ENTRIES_REQUEST__INIT;
	Spire__Api__Types__EntryMask mask;
	struct rpc_unary_options u = { .method = GET_ENTRIES,
		.request = &rq.base,
		.response =
			&spire__api__server__entry__v1__get_authorized_entries_response__descriptor,
		.timeout_ms = SYNC_CALL_MS,
		.fail_fast = true };

	set_mask(&mask);
	rq.output_mask = &mask;
	p->mode = SYNC_FETCH;
	p->calls++;
	rpc_unary(p->s->client, &u, on_entries, p);
}

/* ---- rounds ---- */

static void on_status_posted(void *arg, const struct rpc_status *st, const ProtobufCMessage *m)
{
	struct poll *p = arg;

	(void)m;
	if (st->code && p->s)
		log_event(LOG_DEBUG, "sync", "Failed to post status", "error", st->message, NULL);
	(void)call_ended(p);
}

static void post_status(struct poll *p)
{
	AUTO(free) char *version = xstrdup(ASSAY_VERSION);
	Spire__Api__Server__Agent__V1__PostStatusRequest rq;
	struct rpc_unary_options u = { .method = POST_STATUS,
		.request = &rq.base,
		.response = &spire__api__server__agent__v1__post_status_response__descriptor,
		.timeout_ms = SYNC_CALL_MS,
		.fail_fast = true };

	spire__api__server__agent__v1__post_status_request__init(&rq);
	rq.agent_version = version;
	p->posted_status = true;
	p->calls++;
	rpc_unary(p->s->client, &u, on_status_posted, p);
}

static void begin_round(void *arg)
{
	struct poll *p = arg;

	if (!p->s || p->running)
		return;
	if (p->s->attesting) {
		loop_timer_set(p->timer, backoff_next(&p->backoff));
		return;
	}
	p->running = true;
	p->generation = p->s->generation;
	if (!p->posted_status)
		post_status(p);
	if (p->s->o.options->use_sync_authorized_entries)
		sync_entries(p);
	else
		get_entries(p);
}

void poll_start(struct sync *s)
{
	struct poll *p;
	int64_t max = POLL_BACKOFF_TIMES * s->o.options->sync_interval_ns;

	if (s->poll)
		return;
	if (max > POLL_BACKOFF_MAX_S * NS_PER_SEC)
		max = POLL_BACKOFF_MAX_S * NS_PER_SEC;
	p = s->poll = xcalloc(1, sizeof(*p));
	p->s = s;
	p->timer = loop_timer_new(s->o.loop, begin_round, p);
	p->backoff = (struct backoff){ .first_ns = s->o.options->sync_interval_ns, .max_ns = max };
	begin_round(p);
}

void poll_stop(struct sync *s)
{
	struct poll *p = s->poll;

	if (!p)
		return;
	s->poll = NULL;
	loop_timer_stop(p->timer);
	p->s = NULL;
	if (p->stream) {
		struct rpc_stream *st = p->stream;

		p->stream = NULL;
		rpc_stream_cancel(st);
	}
	if (p->calls == 0)
		poll_free(p);
}

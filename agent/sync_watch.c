#include <stdlib.h>
#include <string.h>

#include "agent/sync_internal.h"
#include "assay/agent/v1/sync.pb-c.h"

/* assay.agent.v1.Sync/Watch: sets of changes, each applied as a whole. */

#define WATCH "/assay.agent.v1.Sync/Watch"

static uint64_t bundle_sequence(const struct sync *s)
{
	struct bundle *b = cache_bundle(s->o.cache);

	return b ? b->sequence : 0;
}

static void drop_set(struct sync *s)
{
	cache_update_deinit(&s->set);
	s->set_open = false;
	s->set_cap = 0;
}

static void add_entry(struct sync *s, const Spire__Api__Types__Entry *m)
{
	struct cache_update *u = &s->set;
	struct err e = ERR_INIT;

	if (u->n_entries == s->set_cap) {
		s->set_cap = s->set_cap ? 2 * s->set_cap : 16;
		u->entries = xreallocarray(u->entries, s->set_cap, sizeof(struct entry));
	}
	if (entry_from_proto(&u->entries[u->n_entries], m, &e) == 0)
		u->n_entries++;
	else
		log_event(LOG_WARN, "sync", "Received a malformed entry from the server",
			"entry_id", m->id, "error", e.msg, NULL);
}

static void add_federated(struct sync *s, const Spire__Api__Types__Bundle *m)
{
	struct cache_update *u = &s->set;
	struct bundle *b;
	struct err e = ERR_INIT;

	if (bundle_from_proto(m, &b, &e)) {
		log_event(LOG_WARN, "sync", "Received a malformed federated bundle", "trust_domain",
			m->trust_domain, "error", e.msg, NULL);
		return;
	}
	u->federated = xreallocarray(u->federated, u->n_federated + 1, sizeof(struct bundle *));
	u->federated[u->n_federated++] = b;
}

static void add_own(struct sync *s, const Spire__Api__Types__Bundle *m)
{
	struct bundle *b;
	struct err e = ERR_INIT;

	if (bundle_from_proto(m, &b, &e) == 0 &&
		strcmp(b->trust_domain, s->o.options->trust_domain) != 0) {
		err_set(&e, ERR_INVALID, "it is of trust domain %s", b->trust_domain);
		bundle_unref(b);
	}
	if (e.code) {
		log_event(LOG_WARN, "sync", "Received a malformed bundle", "error", e.msg, NULL);
		return;
	}
	if (s->set.bundle)
		bundle_unref(s->set.bundle);
	s->set.bundle = b;
}

static void add_page(struct sync *s, const Assay__Agent__V1__WatchResponse *rs)
{
	if (!s->set_open) {
		drop_set(s);
		s->set_open = true;
		s->set.full = s->set.full_federated = rs->full;
	}
	for (size_t i = 0; i < rs->n_entries; i++)
		add_entry(s, rs->entries[i]);
	for (size_t i = 0; i < rs->n_removed_entry_ids; i++)
		strings_add(&s->set.removed, rs->removed_entry_ids[i]);
	if (rs->bundle)
		add_own(s, rs->bundle);
	for (size_t i = 0; i < rs->n_federated_bundles; i++)
		add_federated(s, rs->federated_bundles[i]);
	for (size_t i = 0; i < rs->n_removed_federated_bundles; i++)
		strings_add(&s->set.removed_federated, rs->removed_federated_bundles[i]);
}

static void ack(struct sync *s)
{
	Assay__Agent__V1__WatchRequest rq = ASSAY__AGENT__V1__WATCH_REQUEST__INIT;
	Assay__Agent__V1__WatchRequest__Ack a = ASSAY__AGENT__V1__WATCH_REQUEST__ACK__INIT;

	a.change = s->change;
	a.bundle_sequence = bundle_sequence(s);
	rq.step_case = ASSAY__AGENT__V1__WATCH_REQUEST__STEP_ACK;
	rq.ack = &a;
	rpc_stream_send(s->watch, &rq.base);
}

static void apply(struct sync *s, const Assay__Agent__V1__WatchResponse *rs)
{
	bool bundle = s->set.bundle != NULL;

	cache_apply(s->o.cache, &s->set);
	drop_set(s);
	if (strcmp(s->epoch, rs->epoch) != 0) {
		free(s->epoch);
		s->epoch = xstrdup(rs->epoch);
	}
	s->change = rs->change;
	s->watch_live = true;
	if (bundle)
		sync_bundle_changed(s);
	ack(s);
	sync_succeeded(s, SYNC_WATCH);
	store_touch(s);
}

static void on_message(void *arg, struct rpc_stream *st, const ProtobufCMessage *m)
{
	struct sync *s = arg;
	const Assay__Agent__V1__WatchResponse *rs = (const Assay__Agent__V1__WatchResponse *)m;

	if (st != s->watch)
		return;
	add_page(s, rs);
	if (!rs->more)
		apply(s, rs);
}

static void on_ended(void *arg, struct rpc_stream *stream, const struct rpc_status *st)
{
	struct sync *s = arg;
	bool was_live = s->watch_live;

	if (stream != s->watch)
		return;
	s->watch = NULL;
	s->watch_live = false;
	drop_set(s);
	if (s->stopped)
		return;
	if (st->code == ERR_UNIMPLEMENTED) {
		if (!s->watch_unknown)
			log_event(LOG_INFO, "sync", "The server does not push changes; polling",
				NULL);
		s->watch_unknown = true;
		poll_start(s);
		return;
	}
	if (was_live)
		s->last_success = clock_wall().sec;
	/* A server ends the stream of an SVID that it has just replaced. */
	if ((s->renewing || s->attesting) && st->code == ERR_UNAVAILABLE) {
		loop_timer_set(s->watch_timer, backoff_next(&s->watch_backoff));
		return;
	}
	if (sync_refused(s, st, s->generation))
		return;
	sync_failed(s, st->code ? st->code : ERR_UNAVAILABLE, "watch",
		st->code ? st->message : "the server ended the stream");
	loop_timer_set(s->watch_timer, backoff_next(&s->watch_backoff));
}

void watch_open(void *arg)
{
	struct sync *s = arg;
	AUTO(free) char *version = xstrdup(ASSAY_VERSION);
	Assay__Agent__V1__WatchRequest rq = ASSAY__AGENT__V1__WATCH_REQUEST__INIT;
	Assay__Agent__V1__WatchRequest__Start start;
	struct rpc_stream_options o = { .method = WATCH,
		.response = &assay__agent__v1__watch_response__descriptor,
		.fail_fast = true,
		.message = on_message,
		.ended = on_ended,
		.arg = s };

	if (s->stopped || s->watch || !s->client)
		return;
	if (s->attesting) {
		/* Either it ends with a new identity, which opens the stream, or this comes by
		 * again. */
		loop_timer_set(s->watch_timer, backoff_next(&s->watch_backoff));
		return;
	}
	loop_timer_stop(s->watch_timer);
	assay__agent__v1__watch_request__start__init(&start);
	start.epoch = s->epoch;
	start.change = s->change;
	start.agent_version = version;
	start.bundle_sequence = bundle_sequence(s);
	rq.step_case = ASSAY__AGENT__V1__WATCH_REQUEST__STEP_START;
	rq.start = &start;
	s->watch = rpc_stream_open(s->client, &o);
	rpc_stream_send(s->watch, &rq.base);
}

void watch_close(struct sync *s)
{
	struct rpc_stream *w = s->watch;

	loop_timer_stop(s->watch_timer);
	s->watch = NULL;
	if (s->watch_live)
		s->last_success = clock_wall().sec;
	s->watch_live = false;
	drop_set(s);
	if (w)
		rpc_stream_cancel(w);
}

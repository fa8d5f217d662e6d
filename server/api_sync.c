/*
 * Service assay.agent.v1.Sync: the push stream of Assay's agents (proto/assay/agent/v1/sync.proto).
 *
 * A stream is touched by changes of its agent's entries and of bundles; touched streams are flushed
 * together, once per turn of the loop, so that a batch of changes becomes one set. A set is cut
 * into pages by bytes, each made when the stream can take it. An idle stream costs its memory and
 * nothing else.
 */
#include "server/api.h"

#include <stdlib.h>
#include <string.h>

#include "lib/list.h"

#include "assay/agent/v1/sync.pb-c.h"

#define V1(name) Assay__Agent__V1__##name

/* A set on its way; what has been sent of it. */
struct set {
	struct entries_delta delta;
	bool first;         /* no page was sent yet */
	struct bundle *own; /* NULL: not in the set, or sent */
	struct bundle **federated;
	size_t n_federated, federated_at;
	struct strings removed_federated;
	size_t put_at, removed_at;
};

struct stream {
	struct list link, touched;
	struct stream *same_next; /* the agent's other streams */
	struct sync_hub *hub;
	struct rpc_call *c;
	char *agent_id, *serial;
	struct loop_timer *expiry;   /* of the SVID that opened it */
	struct entries_watch *watch; /* NULL before Start */
	uint64_t since;
	bool have_since, answered, sending, touched_entries, touched_federated;
	uint64_t own_sent;     /* sequence of the own bundle that the agent has; 0: none */
	struct map *federated; /* trust domain → the bundle sent, one reference each */
	uint64_t acked_change, acked_bundle;
	struct set set;
};

struct sync_hub {
	struct api *api;
	struct list streams, touched;
	struct map *by_agent; /* agent id → struct stream */
	size_t n;
	bool posted, dead; /* dead: freed by the flush that is still to come */
};

static void pump(struct rpc_call *c);

/* ---- touching ---- */

static void flush(void *arg)
{
	struct sync_hub *h = arg;

	h->posted = false;
	if (h->dead) {
		free(h);
		return;
	}
	while (!list_empty(&h->touched)) {
		struct stream *st = container_of(h->touched.next, struct stream, touched);

		list_remove(&st->touched);
		pump(st->c);
	}
}

static void touch(struct stream *st)
{
	struct sync_hub *h = st->hub;

	if (!st->watch || !list_empty(&st->touched))
		return;
	list_append(&h->touched, &st->touched);
	if (!h->posted) {
		h->posted = true;
		loop_post(h->api->loop, flush, h);
	}
}

static void entries_changed(void *arg)
{
	struct stream *st = arg;

	st->touched_entries = true;
	touch(st);
}

/* ---- making a set ---- */

struct domains {
	struct strings names;
};

static void note_domains(void *arg, const struct entry *en)
{
	struct domains *d = arg;

	for (size_t i = 0; i < en->federates_with.n; i++)
		if (!strings_has(&d->names, en->federates_with.v[i]))
			strings_add(&d->names, en->federates_with.v[i]);
}

/* The foreign bundles that are news to the agent, and those it no longer needs. */
static void find_federated(struct stream *st, struct set *s)
{
	const struct api *a = st->hub->api;
	struct domains d = { .names = { .n = 0 } };
	struct bytes key;
	void *value;

	if (map_len(a->bundles) <= 1 && map_len(st->federated) == 0)
		return;
	entries_authorized(a->entries, st->agent_id, note_domains, &d);
	for (size_t i = 0; i < d.names.n; i++) {
		struct bundle *b = api_bundle(a, d.names.v[i]), *had;

		if (!b || strcmp(b->trust_domain, a->trust_domain) == 0)
			continue;
		had = map_get_str(st->federated, d.names.v[i]);
		if (!s->delta.full && had == b)
			continue;
		s->federated =
			xreallocarray(s->federated, s->n_federated + 1, sizeof(*s->federated));
		s->federated[s->n_federated++] = bundle_ref(b);
		bundle_unref(map_put_str(st->federated, d.names.v[i], bundle_ref(b)));
	}
	for (size_t i = 0; map_next(st->federated, &i, &key, &value);) {
		struct bundle *had = value;

		if (strings_has(&d.names, had->trust_domain) && api_bundle(a, had->trust_domain))
			continue;
		if (!s->delta.full)
			strings_add(&s->removed_federated, had->trust_domain);
		map_del(st->federated, key);
		bundle_unref(had);
	}
	strings_deinit(&d.names);
}

static void set_deinit(struct set *s)
{
	entries_delta_deinit(&s->delta);
	bundle_unref(s->own);
	for (size_t i = s->federated_at; i < s->n_federated; i++)
		bundle_unref(s->federated[i]);
	free(s->federated);
	strings_deinit(&s->removed_federated);
	*s = (struct set){ .first = false };
}

/* False when there is nothing to say. */
static bool set_make(struct stream *st)
{
	const struct api *a = st->hub->api;
	struct bundle *own = api_bundle(a, a->trust_domain);
	struct set *s = &st->set;
	bool news;

	*s = (struct set){ .first = true };
	entries_watch_take(st->watch, st->since, st->have_since, &s->delta);
	news = s->delta.full || s->delta.n_put || s->delta.removed.n;
	if (news || st->touched_federated || !st->answered)
		find_federated(st, s);
	if (own && (s->delta.full || own->sequence != st->own_sent)) {
		s->own = bundle_ref(own);
		st->own_sent = own->sequence;
	}
	st->touched_entries = st->touched_federated = false;
	st->since = s->delta.change;
	st->have_since = true;
	if (news || s->own || s->n_federated || s->removed_federated.n || !st->answered)
		return true;
	set_deinit(s);
	return false;
}

/* ---- pages ---- */

static const Spire__Api__Types__EntryMask *entry_mask(void)
{
	static Spire__Api__Types__EntryMask m;

	m = (Spire__Api__Types__EntryMask){ .spiffe_id = true,
		.selectors = true,
		.federates_with = true,
		.admin = true,
		.downstream = true,
		.revision_number = true,
		.store_svid = true,
		.hint = true,
		.created_at = true,
		.additional_attributes = true,
		.x509_svid_ttl = true,
		.jwt_svid_ttl = true };
	return &m;
}

static void page_bundles(V1(WatchResponse) * m, struct set *s, size_t *bytes)
{
	if (s->own) {
		m->bundle = bundle_to_proto(s->own);
		*bytes += protobuf_c_message_get_packed_size(&m->bundle->base);
		bundle_unref(s->own);
		s->own = NULL;
	}
	while (s->federated_at < s->n_federated && *bytes < API_WATCH_PAGE_BYTES) {
		struct bundle *b = s->federated[s->federated_at++];
		Spire__Api__Types__Bundle *p = bundle_to_proto(b);

		*bytes += protobuf_c_message_get_packed_size(&p->base);
		pb_append(&m->federated_bundles, &m->n_federated_bundles, p);
		bundle_unref(b);
	}
	for (size_t i = 0; i < s->removed_federated.n; i++)
		pb_append(&m->removed_federated_bundles, &m->n_removed_federated_bundles,
			pb_str(s->removed_federated.v[i]));
	strings_deinit(&s->removed_federated);
	s->removed_federated = (struct strings){ .n = 0 };
}

static void page_entries(V1(WatchResponse) * m, struct set *s, size_t *bytes)
{
	const struct entries_delta *d = &s->delta;

	while (s->put_at < d->n_put && *bytes < API_WATCH_PAGE_BYTES) {
		Spire__Api__Types__Entry *p = pb_entry(&d->put[s->put_at++], entry_mask());

		*bytes += spire__api__types__entry__get_packed_size(p) + 6;
		pb_append(&m->entries, &m->n_entries, p);
	}
	while (s->removed_at < d->removed.n && *bytes < API_WATCH_PAGE_BYTES) {
		const char *id = d->removed.v[s->removed_at++];

		*bytes += strlen(id) + 6;
		pb_append(&m->removed_entry_ids, &m->n_removed_entry_ids, pb_str(id));
	}
}

/* Sends one page; true when it was the set's last. */
static bool send_page(struct stream *st)
{
	struct set *s = &st->set;
	V1(WatchResponse) *m = pb_new(&assay__agent__v1__watch_response__descriptor);
	size_t bytes = 0;
	bool more;

	m->epoch = pb_str(store_epoch(st->hub->api->store));
	m->change = s->delta.change;
	m->full = s->delta.full && s->first;
	s->first = false;
	page_bundles(m, s, &bytes);
	page_entries(m, s, &bytes);
	m->more = s->federated_at < s->n_federated || s->put_at < s->delta.n_put ||
		  s->removed_at < s->delta.removed.n;
	more = m->more;
	rpc_send(st->c, &m->base);
	protobuf_c_message_free_unpacked(&m->base, NULL);
	return !more;
}

/* Sends what is due while the stream takes it. */
static void pump(struct rpc_call *c)
{
	struct stream *st = rpc_call_user(c);

	while (st->watch && rpc_writable(c)) {
		if (!st->sending) {
			if (st->answered && !st->touched_entries && !st->touched_federated)
				return;
			if (!set_make(st))
				return;
			st->sending = st->answered = true;
		}
		if (send_page(st)) {
			set_deinit(&st->set);
			st->sending = false;
		}
	}
}

/* ---- streams ---- */

static void stream_unlink(struct stream *st)
{
	struct map *m = st->hub->by_agent;
	struct stream *first = map_get_str(m, st->agent_id);

	list_remove(&st->link);
	list_remove(&st->touched);
	st->hub->n--;
	if (first == st) {
		if (st->same_next)
			map_put_str(m, st->agent_id, st->same_next);
		else
			map_del_str(m, st->agent_id);
		return;
	}
	for (; first; first = first->same_next)
		if (first->same_next == st) {
			first->same_next = st->same_next;
			return;
		}
}

static void ended(struct rpc_call *c)
{
	struct stream *st = rpc_call_user(c);
	struct bytes key;
	void *b;

	log_event(LOG_DEBUG, "sync", "agent's stream ended", "agent_id", st->agent_id, NULL);
	stream_unlink(st);
	if (st->watch)
		witness_closed(st->hub->api->witness, st->agent_id, clock_mono());
	if (st->sending)
		set_deinit(&st->set);
	entries_watch_free(st->watch);
	loop_timer_free(st->expiry);
	for (size_t i = 0; map_next(st->federated, &i, &key, &b);)
		bundle_unref(b);
	map_free(st->federated);
	free(st->agent_id);
	free(st->serial);
	free(st);
}

static void end_with_reason(struct stream *st,
	Spire__Api__Types__PermissionDeniedDetails__Reason reason, const char *why)
{
	Spire__Api__Types__PermissionDeniedDetails d =
		SPIRE__API__TYPES__PERMISSION_DENIED_DETAILS__INIT;
	AUTO(free) char *msg = xasprintf("agent \"%s\" %s", st->agent_id, why);

	d.reason = reason;
	rpc_fail_details(st->c, ERR_DENIED, msg, &d.base);
}

static void expired(void *arg)
{
	end_with_reason(arg, SPIRE__API__TYPES__PERMISSION_DENIED_DETAILS__REASON__AGENT_EXPIRED,
		"SVID is expired");
}

static void version_stored(void *arg, int code, const char *msg)
{
	(void)arg;
	if (code)
		log_event(
			LOG_WARN, "sync", "could not store an agent's version", "error", msg, NULL);
}

/* As PostStatus. */
static void take_version(const struct stream *st, const char *version)
{
	const struct api *a = st->hub->api;
	struct node_update u = { .agent_version = version };
	struct node n;
	struct err e;

	if (!version[0] || strlen(version) > API_AGENT_VERSION_MAX ||
		entries_node_view(a->entries, st->agent_id, &n, &e) ||
		strcmp(n.agent_version, version) == 0)
		return;
	store_node_update(a->store, st->agent_id, &u, version_stored, NULL);
}

static void on_ack(struct rpc_call *c, const ProtobufCMessage *m)
{
	const V1(WatchRequest) *rq = (const void *)m;
	struct stream *st = rpc_call_user(c);

	if (!rq) {
		rpc_finish(c);
		return;
	}
	if (rq->step_case != ASSAY__AGENT__V1__WATCH_REQUEST__STEP_ACK) {
		rpc_fail(c, ERR_INVALID, "an Ack is expected");
		return;
	}
	st->acked_change = rq->ack->change;
	st->acked_bundle = rq->ack->bundle_sequence;
	witness_acked(st->hub->api->witness, st->agent_id, st->acked_bundle, clock_mono());
	rpc_read(c, on_ack);
}

static void on_start(struct rpc_call *c, const ProtobufCMessage *m)
{
	const V1(WatchRequest) *rq = (const void *)m;
	struct stream *st = rpc_call_user(c);
	const struct api *a = st->hub->api;

	if (!rq) {
		rpc_finish(c);
		return;
	}
	if (rq->step_case != ASSAY__AGENT__V1__WATCH_REQUEST__STEP_START) {
		rpc_fail(c, ERR_INVALID, "a Start is expected");
		return;
	}
	st->have_since =
		rq->start->change > 0 && strcmp(rq->start->epoch, store_epoch(a->store)) == 0;
	st->since = rq->start->change;
	st->own_sent = st->have_since ? rq->start->bundle_sequence : 0;
	st->acked_change = st->have_since ? st->since : 0;
	st->acked_bundle = st->own_sent;
	take_version(st, rq->start->agent_version);
	log_event(LOG_DEBUG, "sync", "agent's stream started", "agent_id", st->agent_id, "address",
		rpc_call_peer(c)->address, "agent_version", rq->start->agent_version, NULL);
	witness_opened(a->witness, st->agent_id, st->acked_bundle, clock_mono());
	st->watch = entries_watch_new(a->entries, st->agent_id, entries_changed, st);
	pump(c);
	rpc_read(c, on_ack);
}

static void watch(struct rpc_call *c, const ProtobufCMessage *req)
{
	const struct api *a = rpc_call_data(c);
	struct sync_hub *h = a->sync;
	const struct peer *p = rpc_call_peer(c);
	AUTO_BUF struct buf serial = BUF_INIT;
	struct stream *st;

	(void)req;
	if (!p->id.text || p->chain.n == 0) {
		rpc_fail(c, ERR_INTERNAL, "caller ID missing from request context");
		return;
	}
	st = xcalloc(1, sizeof(*st));
	x509_serial_decimal(p->chain.v[0], &serial);
	st->hub = h;
	st->c = c;
	st->agent_id = xstrdup(p->id.text);
	st->serial = xstrdup(buf_cstr(&serial));
	st->federated = map_new();
	st->expiry = loop_timer_new(a->loop, expired, st);
	loop_timer_set_wall(st->expiry, x509_not_after(p->chain.v[0]));
	list_append(&h->streams, &st->link);
	list_init(&st->touched);
	st->same_next = map_put_str(h->by_agent, st->agent_id, st);
	h->n++;
	rpc_call_set_user(c, st);
	rpc_call_on_end(c, ended);
	rpc_on_writable(c, pump);
	rpc_read(c, on_start);
}

/* ---- the hub ---- */

struct sync_hub *sync_hub_new(struct api *a)
{
	struct sync_hub *h = xcalloc(1, sizeof(*h));

	h->api = a;
	h->by_agent = map_new();
	list_init(&h->streams);
	list_init(&h->touched);
	return h;
}

void sync_hub_free(struct sync_hub *h)
{
	if (!h)
		return;
	INVARIANT(list_empty(&h->streams));
	map_free(h->by_agent);
	h->dead = true;
	if (!h->posted)
		free(h);
}

void sync_hub_bundle_changed(struct sync_hub *h, const char *trust_domain)
{
	(void)trust_domain; /* each stream finds out whether it is its business */
	list_each (st, &h->streams, struct stream, link) {
		st->touched_federated = true;
		touch(st);
	}
}

/* What the node's new state means for a stream that was opened with this serial number. A newer
 * SVID of the same agent only makes it open a new stream; whether the old one may is for the
 * authorization of that. */
static void judge(struct stream *st, const struct node *n)
{
	if (!n)
		end_with_reason(st,
			SPIRE__API__TYPES__PERMISSION_DENIED_DETAILS__REASON__AGENT_NOT_ATTESTED,
			"is not attested");
	else if (node_banned(n))
		end_with_reason(st,
			SPIRE__API__TYPES__PERMISSION_DENIED_DETAILS__REASON__AGENT_BANNED,
			"is banned");
	else if (strcmp(n->serial, st->serial) != 0 && strcmp(n->new_serial, st->serial) != 0)
		rpc_fail(st->c, ERR_UNAVAILABLE, "agent SVID was renewed: open a new stream");
}

void sync_hub_node_changed(struct sync_hub *h, const char *spiffe_id, const struct node *n)
{
	struct stream *st = map_get_str(h->by_agent, spiffe_id), *next;

	if (!n || node_banned(n))
		witness_gone(h->api->witness, spiffe_id);
	for (; st; st = next) {
		next = st->same_next; /* the call may end at once */
		judge(st, n);
	}
}

size_t sync_hub_streams(const struct sync_hub *h)
{
	return h->n;
}

size_t sync_hub_behind(const struct sync_hub *h)
{
	const struct bundle *own = api_bundle(h->api, h->api->trust_domain);
	size_t n = 0;

	list_each (st, &h->streams, struct stream, link)
		if (own && st->acked_bundle != own->sequence)
			n++;
	return n;
}

static const struct rpc_method methods[] = { { "Watch", RPC_BIDI, watch } };

struct rpc_service api_sync_service(struct api *a)
{
	return (struct rpc_service){ .desc = &assay__agent__v1__sync__descriptor,
		.methods = methods,
		.n_methods = ARRAY_LEN(methods),
		.data = a };
}

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "agent/sds_files.h"
#include "envoy/service/secret/v3/sds.pb-c.h"
#include "lib/log.h"

/*
 * Envoy's SDS v3: StreamSecrets and FetchSecrets.
 *
 * Streams whose callers have the same view and who ask for the same are one set: they share one
 * encoded response, its version and nonce. It is encoded anew when the view changes, and sent only
 * if its content is another one. A stream for files (Istio's names) has its own, as these are the
 * caller's.
 */

typedef Envoy__Service__Discovery__V3__DiscoveryRequest request;

struct set {
	int refs;
	const struct agent_options *options;
	struct view *view;
	struct view_watch watch;
	char *key;
	struct sds_query query;
	struct list streams;
	struct rpc_payload *payload; /* as last encoded */
	bool fresh;                  /* payload is what the view says */
	uint64_t version;
	char nonce[SDS_NONCE_SIZE];
};

static struct map *sets; /* NULL while there are none */

struct stream {
	struct list link; /* in its set */
	struct rpc_call *call;
	struct api *api;
	struct view *view;
	struct set *set;          /* NULL before the first request */
	struct rpc_payload *sent; /* the set's that this stream has */
	uint64_t version;         /* of what was last sent */
	char nonce[SDS_NONCE_SIZE];
	bool plain;
	/* instead of the set, when it asks for files */
	struct sds_files *files;
	struct sds_query file_query;
	struct rpc_payload *file_payload; /* not sent yet; NULL: nothing new */
};

/* ---- sets ---- */

static struct rpc_payload *encode(const struct sds_query *q, const struct sds_secrets *s,
	const char *version, const char *nonce)
{
	Envoy__Service__Discovery__V3__DiscoveryResponse rs =
		ENVOY__SERVICE__DISCOVERY__V3__DISCOVERY_RESPONSE__INIT;
	AUTO(free) Google__Protobuf__Any *any = xcalloc(s->n + 1, sizeof(*any));
	AUTO(free) Google__Protobuf__Any **anyp = xcalloc(s->n + 1, sizeof(*anyp));

	for (size_t i = 0; i < s->n; i++) {
		any[i] = sds_any(&s->v[i]);
		anyp[i] = &any[i];
	}
	rs.version_info = (char *)(uintptr_t)version;
	rs.nonce = (char *)(uintptr_t)nonce;
	rs.type_url = q->type_url;
	rs.n_resources = s->n;
	rs.resources = anyp;
	return rpc_payload_new(&rs.base);
}

/* Compared in the old response's version and nonce, so that only the content counts. */
static void set_encode(struct set *s, const struct sds_secrets *secrets)
{
	if (s->payload) {
		struct rpc_payload *same =
			encode(&s->query, secrets, log_fmt("%" PRIu64, s->version), s->nonce);
		bool equal = rpc_payload_equal(same, s->payload);

		rpc_payload_unref(same);
		if (equal)
			return;
		rpc_payload_unref(s->payload);
	}
	s->version++;
	sds_nonce(s->nonce);
	s->payload = encode(&s->query, secrets, log_fmt("%" PRIu64, s->version), s->nonce);
}

/* *ret: NULL when it cannot be said yet. Borrowed. */
static int set_payload(struct set *s, struct rpc_payload **ret, struct err *e)
{
	AUTO_SDS_SECRETS struct sds_secrets secrets = { 0 };
	int r;

	*ret = NULL;
	if (!s->fresh) {
		if (!sds_ready(s->view, s->options, &s->query.names))
			return 0;
		r = sds_select(s->view, s->options, &s->query, &secrets, e);
		if (r)
			return r;
		set_encode(s, &secrets);
		s->fresh = true;
	}
	*ret = s->payload;
	return 0;
}

static void set_unref(struct set *s)
{
	if (--s->refs)
		return;
	map_del_str(sets, s->key);
	if (map_len(sets) == 0) {
		map_free(sets);
		sets = NULL;
	}
	list_remove(&s->watch.link);
	view_unuse_x509(s->view);
	view_unref(s->view);
	if (s->payload)
		rpc_payload_unref(s->payload);
	sds_query_deinit(&s->query);
	free(s->key);
	free(s);
}

static void push(struct stream *s);

static void set_changed(struct view_watch *w)
{
	struct set *s = container_of(w, struct set, watch);

	s->fresh = false;
	s->refs++; /* the last of its streams may end here */
	list_each (one, &s->streams, struct stream, link)
		push(one);
	set_unref(s);
}

/* Lengths in front of the parts: no name can be taken for two. */
static char *set_key(const struct view *v, const struct sds_query *q)
{
	struct buf key = BUF_INIT;

	buf_printf(
		&key, "%p %d %zu:%s", (const void *)v, q->plain, strlen(q->type_url), q->type_url);
	for (size_t i = 0; i < q->names.n; i++)
		buf_printf(&key, " %zu:%s", strlen(q->names.v[i]), q->names.v[i]);
	return buf_take_str(&key);
}

/* The set of those who ask this of this view; a new reference. Takes the query. */
static struct set *set_of(const struct agent_options *o, struct view *v, struct sds_query *q)
{
	AUTO(free) char *key = set_key(v, q);
	struct set *s;

	if (!sets)
		sets = map_new();
	s = map_get_str(sets, key);
	if (s) {
		s->refs++;
		sds_query_deinit(q);
		return s;
	}
	s = xcalloc(1, sizeof(*s));
	s->refs = 1;
	s->options = o;
	s->view = cache_view(v->cache, &v->selectors);
	s->key = key;
	key = NULL;
	s->query = *q;
	*q = (struct sds_query){ 0 };
	list_init(&s->streams);
	s->watch.changed = set_changed;
	list_append(&s->view->watchers, &s->watch.link);
	view_use_x509(s->view);
	map_put_str(sets, s->key, s);
	return s;
}

/* ---- StreamSecrets ---- */

static void leave_set(struct stream *s)
{
	struct set *old = s->set;

	sds_files_close(s->files);
	sds_query_deinit(&s->file_query);
	if (s->file_payload)
		rpc_payload_unref(s->file_payload);
	s->files = NULL;
	s->file_payload = NULL;
	list_remove(&s->link);
	s->set = NULL;
	if (s->sent)
		rpc_payload_unref(s->sent);
	s->sent = NULL;
	if (old)
		set_unref(old);
}

static void push(struct stream *s)
{
	struct err e = ERR_INIT;
	struct rpc_payload *p;

	if (!s->set || rpc_call_ended(s->call))
		return;
	if (set_payload(s->set, &p, &e)) {
		rpc_fail(s->call, e.code, "%s", e.msg);
		return;
	}
	if (!p || p == s->sent || !rpc_writable(s->call))
		return;
	rpc_payload_ref(p);
	if (s->sent)
		rpc_payload_unref(s->sent);
	s->sent = p;
	s->version = s->set->version;
	memcpy(s->nonce, s->set->nonce, sizeof(s->nonce));
	rpc_send_payload(s->call, p);
}

static void push_files(struct stream *s)
{
	struct rpc_payload *p = s->file_payload;

	if (!p || rpc_call_ended(s->call) || !rpc_writable(s->call))
		return;
	s->file_payload = NULL;
	rpc_send_payload(s->call, p);
	rpc_payload_unref(p);
}

static void files_changed(void *arg, const struct sds_secrets *secrets, const struct err *e)
{
	struct stream *s = arg;

	if (rpc_call_ended(s->call))
		return;
	if (!secrets) {
		rpc_fail_err(s->call, e);
		return;
	}
	s->version++;
	sds_nonce(s->nonce);
	if (s->file_payload)
		rpc_payload_unref(s->file_payload);
	s->file_payload =
		encode(&s->file_query, secrets, log_fmt("%" PRIu64, s->version), s->nonce);
	push_files(s);
}

/* Takes the query. Whoever has no identity here gets nothing, not even what is its own. */
static void join_files(struct stream *s, struct sds_query *q)
{
	struct sds_files_options o = { .loop = s->api->loop,
		.peer = rpc_call_peer(s->call),
		.changed = files_changed,
		.arg = s };

	s->file_query = *q;
	*q = (struct sds_query){ 0 };
	o.names = &s->file_query.names;
	if (s->view->n_matches == 0)
		api_no_identity(s->call, s->view);
	else
		s->files = sds_files_open(&o);
}

static char *names_text(const request *rq)
{
	struct buf b = BUF_INIT;

	for (size_t i = 0; i < rq->n_resource_names; i++)
		buf_printf(&b, "%s%s", i ? "," : "", rq->resource_names[i]);
	return buf_take_str(&b);
}

/* Whether the request counts: after the first response each must answer the last one. */
static bool in_turn(struct stream *s, const request *rq)
{
	AUTO(free) char *names = names_text(rq);
	bool ours = s->nonce[0] && strcmp(rq->response_nonce, s->nonce) == 0;
	bool other = ours && strcmp(rq->version_info, log_fmt("%" PRIu64, s->version)) != 0;

	if (rq->error_detail || other)
		sds_refused(s->call, names, rq->error_detail ? rq->error_detail->message : NULL);
	if (!s->nonce[0] || ours)
		return true;
	log_event(LOG_DEBUG, "sds", "Ignored a request that answers an older response", "nonce",
		rq->response_nonce, "expected", s->nonce, NULL);
	return false;
}

static bool same_names(const struct strings *a, const struct strings *b)
{
	if (a->n != b->n)
		return false;
	for (size_t i = 0; i < a->n; i++) {
		if (strcmp(a->v[i], b->v[i]) != 0)
			return false;
	}
	return true;
}

static void on_request(struct rpc_call *c, const ProtobufCMessage *m)
{
	const request *rq = (const request *)m;
	struct stream *s = rpc_call_user(c);
	struct sds_query q = { 0 };
	struct err e = ERR_INIT;

	if (!rq) {
		rpc_finish(c);
		return;
	}
	rpc_read(c, on_request);
	if (!in_turn(s, rq))
		return;
	if (sds_query_of(s->api->options, rq, s->plain, &q, &e)) {
		rpc_fail(c, e.code, "%s", e.msg);
		return;
	}
	s->plain = q.plain;
	if ((s->set && same_names(&s->set->query.names, &q.names)) ||
		(s->files && same_names(&s->file_query.names, &q.names))) {
		sds_query_deinit(&q);
		return;
	}
	leave_set(s);
	if (sds_are_files(&q.names)) {
		join_files(s, &q);
		return;
	}
	s->set = set_of(s->api->options, s->view, &q);
	list_append(&s->set->streams, &s->link);
	push(s);
}

static void on_writable(struct rpc_call *c)
{
	push(rpc_call_user(c));
	push_files(rpc_call_user(c));
}

static void on_end(struct rpc_call *c)
{
	struct stream *s = rpc_call_user(c);

	leave_set(s);
	view_unref(s->view);
	free(s);
}

static void stream_attested(void *arg, struct rpc_call *c, struct view *v)
{
	struct stream *s = arg;

	if (!v || rpc_call_ended(c)) {
		view_unref(v);
		return;
	}
	s->view = v;
	rpc_read(c, on_request);
}

static void stream_secrets(struct rpc_call *c, const ProtobufCMessage *req)
{
	struct stream *s = xcalloc(1, sizeof(*s));

	(void)req;
	list_init(&s->link);
	s->call = c;
	s->api = rpc_call_data(c);
	s->plain = s->api->options->sds_plain_ca;
	rpc_call_set_user(c, s);
	rpc_call_on_end(c, on_end);
	rpc_on_writable(c, on_writable);
	api_attest(c, stream_attested, s);
}

/* ---- FetchSecrets ---- */

struct fetch {
	struct view_watch watch;
	struct rpc_call *call;
	struct api *api;
	struct view *view;
	struct sds_query query;
	struct sds_files *files; /* NULL: none are asked for */
};

static void try_fetch(struct fetch *f)
{
	AUTO_SDS_SECRETS struct sds_secrets secrets = { 0 };
	const struct agent_options *o = f->api->options;
	struct err e = ERR_INIT;
	struct rpc_payload *p;

	if (rpc_call_ended(f->call) || !sds_ready(f->view, o, &f->query.names))
		return;
	if (sds_select(f->view, o, &f->query, &secrets, &e)) {
		rpc_fail(f->call, e.code, "%s", e.msg);
		return;
	}
	p = encode(&f->query, &secrets, "", "");
	rpc_reply_payload(f->call, p);
	rpc_payload_unref(p);
}

static void fetch_changed(struct view_watch *w)
{
	struct fetch *f = container_of(w, struct fetch, watch);

	if (!sds_are_files(&f->query.names))
		try_fetch(f);
}

static void fetch_end(struct rpc_call *c)
{
	struct fetch *f = rpc_call_user(c);

	sds_files_close(f->files);
	if (f->view) {
		list_remove(&f->watch.link);
		view_unuse_x509(f->view);
		view_unref(f->view);
	}
	sds_query_deinit(&f->query);
	free(f);
}

static void files_fetched(void *arg, const struct sds_secrets *secrets, const struct err *e)
{
	struct fetch *f = arg;
	struct rpc_payload *p;

	if (!secrets) {
		rpc_fail_err(f->call, e);
		return;
	}
	p = encode(&f->query, secrets, "", "");
	rpc_reply_payload(f->call, p);
	rpc_payload_unref(p);
}

static void fetch_files(struct fetch *f)
{
	struct sds_files_options o = { .loop = f->api->loop,
		.peer = rpc_call_peer(f->call),
		.names = &f->query.names,
		.look_ms = -1,
		.changed = files_fetched,
		.arg = f };

	if (f->view->n_matches == 0)
		api_no_identity(f->call, f->view);
	else
		f->files = sds_files_open(&o);
}

static void fetch_attested(void *arg, struct rpc_call *c, struct view *v)
{
	struct fetch *f = arg;

	if (!v || rpc_call_ended(c)) {
		view_unref(v);
		return;
	}
	f->view = v;
	list_append(&v->watchers, &f->watch.link);
	view_use_x509(v);
	if (sds_are_files(&f->query.names))
		fetch_files(f);
	else
		try_fetch(f);
}

static void fetch_secrets(struct rpc_call *c, const ProtobufCMessage *req)
{
	struct api *a = rpc_call_data(c);
	struct sds_query q = { 0 };
	struct err e = ERR_INIT;
	struct fetch *f;

	if (sds_query_of(a->options, (const request *)req, a->options->sds_plain_ca, &q, &e)) {
		rpc_fail(c, e.code, "%s", e.msg);
		return;
	}
	f = xcalloc(1, sizeof(*f));
	list_init(&f->watch.link);
	f->watch.changed = fetch_changed;
	f->call = c;
	f->api = a;
	f->query = q;
	rpc_call_set_user(c, f);
	rpc_call_on_end(c, fetch_end);
	api_attest(c, fetch_attested, f);
}

static const struct rpc_method methods[] = {
	{ "StreamSecrets", RPC_BIDI, stream_secrets },
	{ "DeltaSecrets", RPC_BIDI, sds_delta },
	{ "FetchSecrets", RPC_UNARY, fetch_secrets },
};

void api_sds_add(struct rpc_server *s, struct api *a)
{
	static struct rpc_service svc;

	svc = (struct rpc_service){
		.desc = &envoy__service__secret__v3__secret_discovery_service__descriptor,
		.methods = methods,
		.n_methods = ARRAY_LEN(methods),
		.data = a
	};
	sds_metrics();
	rpc_server_add(s, &svc);
}

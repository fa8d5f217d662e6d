#include <stdlib.h>
#include <string.h>

#include "agent/sds.h"

/*
 * Envoy's SDS v3: DeltaSecrets, which SPIRE does not have. xDS, "Incremental xDS": what changed is
 * sent, each secret with a version that follows from its content, so that a client that reconnects
 * is not sent what it has. A name that these callers may not have is "removed", not an error.
 */

typedef Envoy__Service__Discovery__V3__DeltaDiscoveryRequest request;

enum { VERSION_SIZE = 17 };
#define WILDCARD "*"
#define ABSENT "-" /* the client knows that there is none */

struct want {
	char *name;
	char version[VERSION_SIZE]; /* that the client has; "": none yet */
	bool named;                 /* asked for by name, not by the wildcard */
};

struct delta {
	struct view_watch watch;
	struct rpc_call *call;
	struct api *api;
	struct view *view;
	char *type_url;
	struct want *v;
	size_t n;
	bool plain, wildcard, started;
};

static struct want *find(struct delta *d, const char *name)
{
	for (size_t i = 0; i < d->n; i++) {
		if (strcmp(d->v[i].name, name) == 0)
			return &d->v[i];
	}
	return NULL;
}

static struct want *find_or_add(struct delta *d, const char *name)
{
	struct want *w = find(d, name);

	if (w)
		return w;
	d->v = xreallocarray(d->v, d->n + 1, sizeof(*d->v));
	w = &d->v[d->n++];
	*w = (struct want){ .name = xstrdup(name) };
	return w;
}

static void forget(struct delta *d, struct want *w)
{
	free(w->name);
	*w = d->v[--d->n];
}

/* ---- answers ---- */

static void version_of(const struct sds_secret *s, char ret[static VERSION_SIZE])
{
	static const char digits[] = "0123456789abcdef";
	uint8_t h[HASH_MAX];

	hash_of(HASH_SHA256, buf_view(&s->body), h);
	for (size_t i = 0; i < (VERSION_SIZE - 1) / 2; i++) {
		ret[2 * i] = digits[h[i] >> 4];
		ret[2 * i + 1] = digits[h[i] & 15];
	}
	ret[VERSION_SIZE - 1] = '\0';
}

/* All that the client may have of what it asked for. */
static void current(struct delta *d, struct sds_secrets *ret)
{
	const struct agent_options *o = d->api->options;
	const struct sds_query all = { .plain = d->plain };
	struct err e = ERR_INIT;

	if (d->wildcard && sds_select(d->view, o, &all, ret, &e))
		*ret = (struct sds_secrets){ 0 };
	for (size_t i = 0; i < d->n; i++) {
		bool have = false;

		for (size_t k = 0; k < ret->n; k++)
			have = have || strcmp(ret->v[k].name, d->v[i].name) == 0;
		if (!have)
			sds_pick(d->view, o, d->v[i].name, d->plain, ret);
	}
}

struct answer {
	Envoy__Service__Discovery__V3__DeltaDiscoveryResponse rs;
	Envoy__Service__Discovery__V3__Resource *v, **vp;
	Google__Protobuf__Any *any;
	char (*versions)[VERSION_SIZE];
	bool *seen; /* by want: it is there */
};

static void add_changed(struct delta *d, struct answer *a, const struct sds_secret *s)
{
	size_t k = a->rs.n_resources;
	struct want *w = find_or_add(d, s->name);
	bool twice = a->seen[w - d->v];

	a->seen[w - d->v] = true;
	version_of(s, a->versions[k]);
	if (twice || strcmp(w->version, a->versions[k]) == 0)
		return;
	memcpy(w->version, a->versions[k], VERSION_SIZE);
	a->any[k] = sds_any(s);
	envoy__service__discovery__v3__resource__init(&a->v[k]);
	a->v[k].name = s->name;
	a->v[k].version = a->versions[k];
	a->v[k].resource = &a->any[k];
	a->vp[a->rs.n_resources++] = &a->v[k];
}

/* Those that are no more; names that nobody asked for by name are forgotten. */
static void add_removed(struct delta *d, struct answer *a, struct strings *gone)
{
	for (size_t i = d->n; i-- > 0;) {
		struct want *w = &d->v[i];

		if (a->seen[i] || strcmp(w->version, ABSENT) == 0)
			continue;
		strings_add(gone, w->name);
		memcpy(w->version, ABSENT, sizeof(ABSENT));
		if (!w->named)
			forget(d, w);
	}
}

static void push(struct delta *d)
{
	AUTO_SDS_SECRETS struct sds_secrets s = { 0 };
	struct strings names = { 0 }, gone = { 0 };
	char nonce[SDS_NONCE_SIZE];
	struct answer a = { 0 };
	bool ready;

	if (!d->started || rpc_call_ended(d->call) || !rpc_writable(d->call))
		return;
	for (size_t i = 0; i < d->n; i++)
		strings_add(&names, d->v[i].name);
	ready = sds_ready(d->view, d->api->options, &names);
	strings_deinit(&names);
	if (!ready)
		return;
	current(d, &s);
	a.v = xcalloc(s.n + 1, sizeof(*a.v));
	a.vp = xcalloc(s.n + 1, sizeof(*a.vp));
	a.any = xcalloc(s.n + 1, sizeof(*a.any));
	a.versions = xcalloc(s.n + 1, sizeof(*a.versions));
	a.seen = xcalloc(d->n + s.n + 1, sizeof(*a.seen));
	envoy__service__discovery__v3__delta_discovery_response__init(&a.rs);
	for (size_t i = 0; i < s.n; i++)
		add_changed(d, &a, &s.v[i]);
	add_removed(d, &a, &gone);
	if (a.rs.n_resources || gone.n) {
		sds_nonce(nonce);
		a.rs.resources = a.vp;
		a.rs.removed_resources = gone.v;
		a.rs.n_removed_resources = gone.n;
		a.rs.type_url = d->type_url;
		a.rs.nonce = nonce;
		rpc_send(d->call, &a.rs.base);
	}
	strings_deinit(&gone);
	free(a.v);
	free(a.vp);
	free(a.any);
	free(a.versions);
	free(a.seen);
}

/* ---- requests ---- */

static void subscribe(struct delta *d, const request *rq)
{
	for (size_t i = 0; i < rq->n_resource_names_subscribe; i++) {
		const char *name = rq->resource_names_subscribe[i];
		struct want *w;

		if (strcmp(name, WILDCARD) == 0) {
			d->wildcard = true;
		} else if (name[0]) {
			/* Asked for again, it is sent again. */
			w = find_or_add(d, name);
			w->named = true;
			w->version[0] = '\0';
		}
	}
}

static void unsubscribe(struct delta *d, const request *rq)
{
	for (size_t i = 0; i < rq->n_resource_names_unsubscribe; i++) {
		const char *name = rq->resource_names_unsubscribe[i];
		struct want *w = find(d, name);

		if (strcmp(name, WILDCARD) == 0) {
			d->wildcard = false;
			for (size_t k = d->n; k-- > 0;) {
				if (!d->v[k].named)
					forget(d, &d->v[k]);
			}
		} else if (w) {
			forget(d, w);
		}
	}
}

/* What the client kept over a lost connection. */
static void remember(struct delta *d, const request *rq)
{
	for (size_t i = 0; i < rq->n_initial_resource_versions; i++) {
		const char *name = rq->initial_resource_versions[i]->key;
		const char *version = rq->initial_resource_versions[i]->value;
		struct want *w = d->wildcard ? find_or_add(d, name) : find(d, name);

		if (w && strlen(version) == VERSION_SIZE - 1)
			memcpy(w->version, version, VERSION_SIZE);
	}
}

static void first(struct delta *d, const request *rq)
{
	d->started = true;
	d->type_url = xstrdup(rq->type_url);
	/* No names in the first request: everything (xDS, "How the client specifies what
	 * resources to return"). */
	d->wildcard = d->wildcard || rq->n_resource_names_subscribe == 0;
	remember(d, rq);
}

static void refused(struct rpc_call *c, const struct delta *d, const request *rq)
{
	AUTO_BUF struct buf names = BUF_INIT;

	for (size_t i = 0; i < d->n; i++)
		buf_printf(&names, "%s%s", i ? "," : "", d->v[i].name);
	sds_refused(c, buf_cstr(&names), rq->error_detail->message);
}

static void on_request(struct rpc_call *c, const ProtobufCMessage *m)
{
	const request *rq = (const request *)m;
	struct delta *d = rpc_call_user(c);

	if (!rq) {
		rpc_finish(c);
		return;
	}
	rpc_read(c, on_request);
	if (rq->n_resource_names_subscribe + rq->n_initial_resource_versions + d->n >
		SDS_NAMES_MAX) {
		rpc_fail(c, ERR_INVALID, "more than %d resource names", SDS_NAMES_MAX);
		return;
	}
	if (rq->error_detail)
		refused(c, d, rq);
	if (rq->node)
		d->plain = sds_wants_plain(d->api->options, rq->node);
	subscribe(d, rq);
	if (!d->started)
		first(d, rq);
	unsubscribe(d, rq);
	push(d);
}

static void on_changed(struct view_watch *w)
{
	push(container_of(w, struct delta, watch));
}

static void on_writable(struct rpc_call *c)
{
	push(rpc_call_user(c));
}

static void on_end(struct rpc_call *c)
{
	struct delta *d = rpc_call_user(c);

	if (d->view) {
		list_remove(&d->watch.link);
		view_unuse_x509(d->view);
		view_unref(d->view);
	}
	for (size_t i = 0; i < d->n; i++)
		free(d->v[i].name);
	free(d->v);
	free(d->type_url);
	free(d);
}

static void attested(void *arg, struct rpc_call *c, struct view *v)
{
	struct delta *d = arg;

	if (!v || rpc_call_ended(c)) {
		view_unref(v);
		return;
	}
	d->view = v;
	list_append(&v->watchers, &d->watch.link);
	view_use_x509(v);
	rpc_read(c, on_request);
}

void sds_delta(struct rpc_call *c, const ProtobufCMessage *req)
{
	struct delta *d = xcalloc(1, sizeof(*d));

	(void)req;
	list_init(&d->watch.link);
	d->watch.changed = on_changed;
	d->call = c;
	d->api = rpc_call_data(c);
	d->plain = d->api->options->sds_plain_ca;
	rpc_call_set_user(c, d);
	rpc_call_on_end(c, on_end);
	rpc_on_writable(c, on_writable);
	api_attest(c, attested, d);
}

#include "server/federation.h"

#include <stdlib.h>
#include <string.h>

#include "lib/http.h"
#include "lib/list.h"
#include "lib/metrics.h"
#include "lib/text.h"
#include "server/api.h"

enum { JITTER_PERCENT = 10, STATUS_TEXT_MAX = 1024 };

struct waiter {
	struct list node;
	store_done *done;
	void *arg;
};

/* Another trust domain. */
struct foreign {
	struct federation *f;
	struct relationship stored, fixed; /* trust_domain NULL: not there */
	struct loop_timer *timer;
	struct fetch *fetch; /* NULL: none under way */
	struct list waiters;
	struct list queue; /* in federation.queue, while too many others are fetched */
	struct backoff backoff;
	bool failing;
	char *told; /* the failure that was logged last */
};

/* One attempt. Inputs are copies; owner NULL: nobody wants it any more. */
struct fetch {
	struct foreign *owner;
	struct api *api;
	struct relationship rel;
	char *host;
	struct http_get *get;
	struct buf body;
	struct bundle *bundle;
	struct err e;
};

struct federation {
	struct api *api;
	struct map *foreigns; /* trust domain → struct foreign */
	struct list queue;
	size_t running;
	bool started, stopped;
	struct metric *fetches;
};

static void fetch_begin(struct foreign *fo);

/* ---- when ---- */

int64_t federation_interval(const struct bundle *b)
{
	int64_t s;

	if (!b || !b->refresh_hint)
		return FEDERATION_POLL_S;
	s = b->refresh_hint < FEDERATION_HINT_MIN_S ? FEDERATION_HINT_MIN_S : b->refresh_hint;
	s /= FEDERATION_HINT_PART;
	return s < FEDERATION_POLL_MAX_S ? s : FEDERATION_POLL_MAX_S;
}

static const struct relationship *in_force(const struct foreign *fo)
{
	return fo->fixed.trust_domain ? &fo->fixed : &fo->stored;
}

/* A failure waits no longer than a success would. */
static void schedule(struct foreign *fo)
{
	const struct bundle *b = api_bundle(fo->f->api, in_force(fo)->trust_domain);
	int64_t ns = federation_interval(b) * NS_PER_SEC;

	if (fo->failing) {
		fo->backoff.max_ns = b ? ns : FEDERATION_RETRY_EMPTY_S * NS_PER_SEC;
		loop_timer_set(fo->timer, backoff_next(&fo->backoff));
		return;
	}
	backoff_reset(&fo->backoff);
	loop_timer_set(fo->timer, loop_jitter(ns, JITTER_PERCENT));
}

/* ---- an attempt ---- */

static void fetch_free(struct fetch *x)
{
	relationship_deinit(&x->rel);
	buf_deinit(&x->body);
	if (x->bundle)
		bundle_unref(x->bundle);
	free(x->host);
	free(x);
}

static void run_queue(struct federation *f)
{
	while (!list_empty(&f->queue) && f->running < FEDERATION_PARALLEL) {
		struct foreign *fo = container_of(f->queue.next, struct foreign, queue);

		list_remove(&fo->queue);
		fetch_begin(fo);
	}
}

/* The relationship has changed or gone: what is under way counts no more. */
static void fetch_abandon(struct foreign *fo)
{
	struct fetch *x = fo->fetch;

	list_remove(&fo->queue);
	if (!x)
		return;
	fo->fetch = NULL;
	fo->f->running--;
	x->owner = NULL;
	if (x->get) { /* else a job or the store gives it back */
		http_get_cancel(x->get);
		fetch_free(x);
	}
}

static void answer_waiters(struct foreign *fo, int code, const char *msg)
{
	list_each (w, &fo->waiters, struct waiter, node) {
		list_remove(&w->node);
		w->done(w->arg, code, msg);
		free(w);
	}
}

/* The first failure of its kind is news, the others are not. */
static void tell(struct foreign *fo, const struct err *e, bool news)
{
	const char *td = in_force(fo)->trust_domain;

	if (e->code == 0) {
		if (fo->told || news)
			log_event(LOG_INFO, "federation", "bundle refreshed", "trust_domain_id", td,
				NULL);
		free(fo->told);
		fo->told = NULL;
		return;
	}
	log_event(fo->told && strcmp(fo->told, e->msg) == 0 ? LOG_DEBUG : LOG_ERROR, "federation",
		"could not refresh the bundle", "trust_domain_id", td, "url", in_force(fo)->url,
		"error", e->msg, NULL);
	free(fo->told);
	fo->told = xstrdup(e->msg);
}

/* Frees x. */
static void fetch_end(struct fetch *x, bool news)
{
	struct foreign *fo = x->owner;
	struct federation *f;

	if (!fo) {
		fetch_free(x);
		return;
	}
	f = fo->f;
	fo->fetch = NULL;
	f->running--;
	fo->failing = x->e.code != 0;
	metric_add(f->fetches, 1, in_force(fo)->trust_domain, fo->failing ? "error" : "ok");
	tell(fo, &x->e, news);
	schedule(fo);
	answer_waiters(fo, x->e.code, x->e.msg);
	fetch_free(x);
	run_queue(f);
}

static void fetch_fail(struct fetch *x)
{
	err_wrap(&x->e, "failed to fetch federated bundle from endpoint");
	fetch_end(x, false);
}

static void stored(void *arg, int code, const char *msg)
{
	struct fetch *x = arg;

	if (code)
		err_set(&x->e, code, "failed to store fetched federated bundle: %s", msg);
	fetch_end(x, true);
}

/* A worker's part: a megabyte of certificates takes its time. */
static void parse(void *arg)
{
	struct fetch *x = arg;

	if (bundle_from_json(x->rel.trust_domain, buf_view(&x->body), &x->bundle, &x->e))
		x->bundle = NULL; /* x->e says why */
}

static void parsed(void *arg)
{
	struct fetch *x = arg;
	const struct bundle *now;

	if (!x->owner) {
		fetch_free(x);
		return;
	}
	if (!x->bundle) {
		fetch_fail(x);
		return;
	}
	x->e = ERR_INIT;
	now = api_bundle(x->api, x->rel.trust_domain);
	if (now && bundle_equal_content(now, x->bundle) && x->bundle->sequence <= now->sequence)
		fetch_end(x, false);
	else
		store_bundle_put(x->api->store, x->bundle, STORE_SEQUENCE_GIVEN, stored, x);
}

static void answered(void *arg, int status, struct bytes body, const struct err *e)
{
	struct fetch *x = arg;

	x->get = NULL;
	if (e->code) {
		AUTO(free) char *q = text_quote(x->rel.url);

		x->e = *e;
		err_wrap(&x->e, "failed to fetch bundle: Get %s", q);
		fetch_fail(x);
	} else if (status != 200) {
		err_set(&x->e, ERR_UNAVAILABLE, "unexpected status %d fetching bundle: %.*s",
			status, (int)(body.n < STATUS_TEXT_MAX ? body.n : STATUS_TEXT_MAX),
			body.n ? (const char *)body.p : "");
		fetch_fail(x);
	} else {
		buf_bytes(&x->body, body);
		loop_job(x->api->loop, parse, parsed, x);
	}
}

/* ---- who answers ---- */

static const struct bundle *endpoint_bundle(const struct fetch *x)
{
	struct spiffeid id = SPIFFEID_INIT;
	const struct bundle *b = NULL;

	if (spiffeid_parse_str(&id, x->rel.endpoint_id, NULL) == 0) {
		struct bytes name = spiffeid_td(&id);
		AUTO(free) char *td = xstrndup((const char *)name.p, name.n);

		b = api_bundle(x->api, td);
	}
	spiffeid_deinit(&id);
	return b;
}

/* SPIFFE Federation 5.2.2: the endpoint's SVID must verify by the bundle of its own trust domain,
 * and carry the id that was configured. */
static int verify_spiffe(void *arg, const struct x509_chain *peer, struct err *e)
{
	const struct fetch *x = arg;
	const struct bundle *b = endpoint_bundle(x);
	struct spiffeid id = SPIFFEID_INIT;
	struct x509_chain roots;
	int r;

	if (!b)
		return err_set(e, ERR_PRECONDITION,
			"can't perform SPIFFE Authentication: local copy of bundle not found");
	roots = bundle_roots(b);
	r = tls_verify_svid(peer, &roots, clock_wall(), &id, e);
	x509_chain_deinit(&roots);
	if (!r && strcmp(id.text, x->rel.endpoint_id) != 0)
		r = err_set(e, ERR_INVALID, "unexpected ID \"%s\"", id.text);
	spiffeid_deinit(&id);
	return r;
}

static int verify_web(void *arg, const struct x509_chain *peer, struct err *e)
{
	const struct fetch *x = arg;
	struct spiffeid id = SPIFFEID_INIT;
	int r = tls_verify_web(peer, x->host, clock_wall(), e);

	if (r && peer->n && x509_svid_id(peer->v[0], &id, NULL) == 0)
		err_wrap(e,
			"failed to authenticate bundle endpoint using web authentication but the "
			"server certificate contains SPIFFE ID \"%s\": maybe use https_spiffe "
			"instead of https_web",
			id.text);
	spiffeid_deinit(&id);
	return r;
}

static int fetch_prepare(struct fetch *x)
{
	if (federation_url(x->rel.url, NULL, &x->host, &x->e))
		return x->e.code;
	/* The own bundle is nobody else's to give. */
	if (strcmp(x->rel.trust_domain, x->api->trust_domain) == 0)
		return err_set(&x->e, ERR_INVALID, "a trust domain does not federate with itself");
	if (*x->rel.endpoint_id && !endpoint_bundle(x))
		return err_set(&x->e, ERR_PRECONDITION,
			"can't perform SPIFFE Authentication: local copy of bundle not found");
	return 0;
}

static void unprepared(void *arg)
{
	fetch_end(arg, false);
}

static void fetch_begin(struct foreign *fo)
{
	struct federation *f = fo->f;
	struct http_get_options o = { .timeout_ms = FEDERATION_FETCH_MS,
		.body_max = FEDERATION_BODY_MAX };
	struct fetch *x;

	if (fo->fetch || f->stopped || !list_empty(&fo->queue))
		return;
	loop_timer_stop(fo->timer);
	if (f->running >= FEDERATION_PARALLEL) {
		list_append(&f->queue, &fo->queue);
		return;
	}
	x = xcalloc(1, sizeof(*x));
	*x = (struct fetch){ .owner = fo,
		.api = f->api,
		.rel = relationship_dup(in_force(fo)),
		.body = BUF_INIT_MAX(FEDERATION_BODY_MAX) };
	fo->fetch = x;
	f->running++;
	if (fetch_prepare(x)) {
		loop_post(f->api->loop, unprepared, x);
		return;
	}
	o.url = x->rel.url;
	o.verify = *x->rel.endpoint_id ? verify_spiffe : verify_web;
	o.verify_arg = x;
	x->get = http_get(f->api->loop, &o, answered, x);
}

/* ---- relationships ---- */

static void due(void *arg)
{
	fetch_begin(arg);
}

static struct foreign *foreign_of(struct federation *f, const char *td)
{
	struct foreign *fo = map_get_str(f->foreigns, td);

	if (fo)
		return fo;
	fo = xcalloc(1, sizeof(*fo));
	fo->f = f;
	fo->backoff = (struct backoff){ .first_ns = FEDERATION_RETRY_S * NS_PER_SEC };
	fo->timer = loop_timer_new(f->api->loop, due, fo);
	list_init(&fo->waiters);
	list_init(&fo->queue);
	map_put_str(f->foreigns, td, fo);
	return fo;
}

static void foreign_free(struct foreign *fo)
{
	fetch_abandon(fo);
	loop_timer_free(fo->timer);
	relationship_deinit(&fo->stored);
	relationship_deinit(&fo->fixed);
	free(fo->told);
	free(fo);
}

static void managed(const struct relationship *r, const char *what)
{
	log_event(LOG_INFO, "federation", what, "trust_domain_id", r->trust_domain,
		"bundle_endpoint_url", r->url, "bundle_endpoint_profile",
		*r->endpoint_id ? "https_spiffe" : "https_web", NULL);
}

static void removed(struct federation *f, struct foreign *fo, const char *td)
{
	relationship_deinit(&fo->stored);
	if (fo->fixed.trust_domain)
		return;
	log_event(LOG_INFO, "federation", "trust domain is no longer polled", "trust_domain_id", td,
		NULL);
	map_del_str(f->foreigns, td);
	answer_waiters(fo, ERR_NOT_FOUND, "the federation relationship was deleted");
	foreign_free(fo);
	run_queue(f);
}

void federation_changed(
	struct federation *f, const char *trust_domain, const struct relationship *r)
{
	struct foreign *fo = map_get_str(f->foreigns, trust_domain);
	bool same = false;

	if (!r) {
		if (fo)
			removed(f, fo, trust_domain);
		return;
	}
	fo = foreign_of(f, trust_domain);
	if (fo->stored.trust_domain)
		same = strcmp(fo->stored.url, r->url) == 0 &&
		       strcmp(fo->stored.endpoint_id, r->endpoint_id) == 0;
	relationship_deinit(&fo->stored);
	fo->stored = relationship_dup(r);
	if (!f->started || f->stopped || same || fo->fixed.trust_domain)
		return;
	managed(r, "trust domain is polled");
	fetch_abandon(fo);
	backoff_reset(&fo->backoff);
	fetch_begin(fo);
}

void federation_bundle_changed(struct federation *f, const char *trust_domain)
{
	AUTO(free) char *prefix = xasprintf("spiffe://%s/", trust_domain);
	struct bytes key;
	void *v;

	for (size_t i = 0; map_next(f->foreigns, &i, &key, &v);) {
		struct foreign *fo = v;

		if (fo->failing && !fo->fetch &&
			strncmp(in_force(fo)->endpoint_id, prefix, strlen(prefix)) == 0) {
			backoff_reset(&fo->backoff);
			loop_timer_set(fo->timer, 0);
		}
	}
}

const struct relationship *federation_get(const struct federation *f, const char *trust_domain)
{
	const struct foreign *fo = map_get_str(f->foreigns, trust_domain);

	return fo && fo->stored.trust_domain ? &fo->stored : NULL;
}

static int by_num(const void *a, const void *b)
{
	int64_t x = (*(const struct relationship *const *)a)->num;
	int64_t y = (*(const struct relationship *const *)b)->num;

	return (x > y) - (x < y);
}

const struct relationship **federation_list(
	const struct federation *f, int64_t after, size_t *ret_n)
{
	const struct relationship **ret =
		xcalloc(map_len(f->foreigns) + 1, sizeof(struct relationship *));
	struct bytes key;
	void *v;
	size_t n = 0;

	for (size_t i = 0; map_next(f->foreigns, &i, &key, &v);) {
		const struct foreign *fo = v;

		if (fo->stored.trust_domain && fo->stored.num > after)
			ret[n++] = &fo->stored;
	}
	qsort(ret, n, sizeof(struct relationship *), by_num);
	*ret_n = n;
	return ret;
}

bool federation_refresh(struct federation *f, const char *trust_domain, store_done *done, void *arg)
{
	struct foreign *fo = map_get_str(f->foreigns, trust_domain);
	struct waiter *w;

	if (!fo || f->stopped)
		return false;
	w = xmalloc(sizeof(*w));
	*w = (struct waiter){ .done = done, .arg = arg };
	list_append(&fo->waiters, &w->node);
	fetch_begin(fo);
	return true;
}

void federation_stats(const struct federation *f, struct federation_stats *ret)
{
	struct bytes key;
	void *v;

	*ret = (struct federation_stats){ .peers = map_len(f->foreigns) };
	for (size_t i = 0; map_next(f->foreigns, &i, &key, &v);)
		ret->failing += ((const struct foreign *)v)->failing;
}

/* ---- all of it ---- */

struct federation *federation_new(struct api *a)
{
	static const char *const labels[] = { "trust_domain_id", "result", NULL };
	struct federation *f = xcalloc(1, sizeof(*f));

	f->api = a;
	f->foreigns = map_new();
	list_init(&f->queue);
	f->fetches = metric_counter("assay_server_federation_fetches",
		"Fetches of other trust domains' bundles.", labels);
	return f;
}

void federation_add_fixed(struct federation *f, const struct relationship *r)
{
	foreign_of(f, r->trust_domain)->fixed = relationship_dup(r);
}

void federation_start(struct federation *f)
{
	struct bytes key;
	void *v;

	if (f->started)
		return;
	f->started = true;
	for (size_t i = 0; map_next(f->foreigns, &i, &key, &v);) {
		managed(in_force(v), "trust domain is polled");
		fetch_begin(v);
	}
}

void federation_stop(struct federation *f)
{
	struct bytes key;
	void *v;

	f->stopped = true;
	for (size_t i = 0; map_next(f->foreigns, &i, &key, &v);) {
		struct foreign *fo = v;

		loop_timer_stop(fo->timer);
		fetch_abandon(fo);
		answer_waiters(fo, ERR_UNAVAILABLE, "the server is stopping");
	}
}

void federation_free(struct federation *f)
{
	struct bytes key;
	void *v;

	if (!f)
		return;
	federation_stop(f);
	for (size_t i = 0; map_next(f->foreigns, &i, &key, &v);)
		foreign_free(v);
	map_free(f->foreigns);
	free(f);
}

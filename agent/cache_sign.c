#include "agent/cache_internal.h"

#include <stdlib.h>
#include <string.h>

#include "lib/log.h"

/* Which records need an SVID, in which order, and when again. */

enum {
	BACKDATE_S = 10, /* SPIRE's and our servers set notBefore so far back */
	RENEW_JITTER_PERCENT = 10,
	RENEW_SOONEST_MS = 500, /* however short an SVID's life is */
	RETRY_FIRST_MS = 1000,
	RETRY_MAX_MS = 60 * 1000,
	AVAILABILITY_SPREAD_S = 600,
	AVAILABILITY_MIN_REST_S = 12 * 3600,
	DUE_TOGETHER_MS = 200, /* renewals this close go into one batch: fewer wakeups */
	/* After a taint all agents have everything signed anew: each begins at a moment of its own,
	 * and then asks for at most so many a second. */
	TAINT_SPREAD_MS = 3000,
	TAINT_PACE_MS = 5, /* for each SVID */
	TAINT_SPREAD_MAX_MS = 60 * 1000,
};

/* ---- SVIDs ---- */

int svid_new(const struct bytes *certs, size_t n_certs, struct bytes key_pkcs8, struct bytes spki,
	const char *id, struct svid **ret, struct err *e)
{
	AUTO(x509_unref) struct x509_cert *leaf = NULL;
	struct spiffeid got = SPIFFEID_INIT;
	AUTO_BUF struct buf serial = BUF_INIT;
	struct svid *s;
	int r;

	if (n_certs == 0 || n_certs > X509_MAX_CHAIN)
		return err_set(e, ERR_INVALID, "a chain of %zu certificates", n_certs);
	r = x509_parse(certs[0], &leaf, e);
	if (!r)
		r = x509_svid_id(leaf, &got, e);
	if (!r && strcmp(got.text, id) != 0)
		r = err_set(e, ERR_INVALID, "it is for %s, not %s", got.text, id);
	if (!r && spki.n &&
		(!x509_pubkey(leaf) || !bytes_equal(pubkey_spki(x509_pubkey(leaf)), spki)))
		r = err_set(e, ERR_INVALID, "it is for another key");
	spiffeid_deinit(&got);
	if (r)
		return err_wrap(e, "X509-SVID from the server");
	s = xcalloc(1, sizeof(*s));
	s->refs = 1;
	s->chain = BUF_INIT;
	s->key = BUF_INIT_SECRET;
	for (size_t i = 0; i < n_certs; i++)
		buf_bytes(&s->chain, certs[i]);
	buf_bytes(&s->key, key_pkcs8);
	x509_serial_decimal(leaf, &serial);
	s->serial = buf_take_str(&serial);
	s->not_before = x509_not_before(leaf).sec;
	s->not_after = x509_not_after(leaf).sec;
	*ret = s;
	return 0;
}

struct svid *svid_ref(struct svid *s)
{
	__atomic_add_fetch(&s->refs, 1, __ATOMIC_RELAXED);
	return s;
}

void svid_unref(struct svid *s)
{
	if (!s || __atomic_sub_fetch(&s->refs, 1, __ATOMIC_ACQ_REL))
		return;
	buf_deinit(&s->chain);
	buf_deinit(&s->key);
	free(s->serial);
	free(s);
}

/* ---- when ---- */

/* Half of the life that is left at issue, moved by up to 10 % at random; or, when an availability
 * target fits into the life, that long before the end. */
static int64_t renew_at(const struct cache *c, const struct svid *s, int64_t now)
{
	int64_t end = s->not_after * NS_PER_SEC;
	int64_t start = s->not_before * NS_PER_SEC;
	int64_t target = c->o.availability_target_ns;
	int64_t at, soonest;

	if (end - start > BACKDATE_S * NS_PER_SEC)
		start += BACKDATE_S * NS_PER_SEC;
	at = start + loop_jitter((end - start) / 2, RENEW_JITTER_PERCENT);
	if (target > 0 && end - start - target > AVAILABILITY_MIN_REST_S * NS_PER_SEC) {
		uint32_t spread;

		crypto_random(&spread, sizeof(spread));
		at = end - target - (int64_t)(spread % AVAILABILITY_SPREAD_S) * NS_PER_SEC;
	}
	/* A life cut short (the CA's own end is near) must not become a busy loop. */
	soonest = now + (end > now ? (end - now) / 4 : 0);
	if (soonest < now + RENEW_SOONEST_MS * NS_PER_MS)
		soonest = now + RENEW_SOONEST_MS * NS_PER_MS;
	return at > now ? at : soonest;
}

/* ---- the queue ---- */

void sign_want(struct cache *c, struct record *r, bool urgent)
{
	if (r->state == RECORD_SIGNING)
		return;
	due_clear(c, r);
	list_remove(&r->link);
	if (r->state == RECORD_IDLE) {
		r->state = RECORD_QUEUED;
		c->n_queued++;
	}
	list_append(urgent ? c->queue.next : &c->queue, &r->link);
	if (c->o.wanted)
		c->o.wanted(c->o.arg);
}

size_t cache_wanted(const struct cache *c)
{
	return c->n_queued;
}

struct record *cache_next_wanted(struct cache *c)
{
	struct record *r;

	if (list_empty(&c->queue))
		return NULL;
	r = container_of(c->queue.next, struct record, link);
	list_remove(&r->link);
	c->n_queued--;
	c->n_signing++;
	r->state = RECORD_SIGNING;
	return r;
}

/* Puts an idle record where it waits: among the evictable when it holds an SVID nobody uses. */
static void rest(struct cache *c, struct record *r)
{
	list_remove(&r->link);
	r->state = RECORD_IDLE;
	if (r->svid && r->users == 0)
		list_append(&c->lru, &r->link);
}

static void evict_over_limit(struct cache *c)
{
	while (c->n_svids > c->o.x509_max && !list_empty(&c->lru)) {
		struct record *r = container_of(c->lru.next, struct record, link);

		sign_drop_svid(c, r);
		due_clear(c, r);
	}
}

void sign_drop_svid(struct cache *c, struct record *r)
{
	if (!r->svid)
		return;
	svid_unref(r->svid);
	r->svid = NULL;
	c->n_svids--;
	if (r->state == RECORD_IDLE)
		list_remove(&r->link);
}

void sign_forget(struct cache *c, struct record *r)
{
	due_clear(c, r);
	if (r->state == RECORD_QUEUED)
		c->n_queued--;
	if (r->state == RECORD_SIGNING)
		c->n_signing--;
	list_remove(&r->link);
	r->state = RECORD_IDLE;
	sign_drop_svid(c, r);
}

void sign_use(struct cache *c, struct record *r)
{
	if (r->users++)
		return;
	if (r->state == RECORD_IDLE)
		list_remove(&r->link);
	if (!r->svid)
		sign_want(c, r, true);
}

void sign_unuse(struct cache *c, struct record *r)
{
	INVARIANT(r->users > 0);
	if (--r->users || r->gone || r->state != RECORD_IDLE)
		return;
	rest(c, r);
	evict_over_limit(c);
}

void sign_put(struct cache *c, struct record *r, struct svid *s)
{
	int64_t now = wall_ns(clock_wall());

	if (r->svid)
		svid_unref(r->svid);
	else
		c->n_svids++;
	r->svid = svid_ref(s);
	r->retry_ns = 0;
	r->failed = false;
	if (r->state == RECORD_SIGNING)
		c->n_signing--;
	rest(c, r);
	due_set(c, r, renew_at(c, s, now));
}

/* At some moment from now + from_ns on, within span_ns, unless it is due before that. */
static void sign_soon(struct cache *c, struct record *r, int64_t from_ns, int64_t span_ns)
{
	int64_t at;
	uint64_t x;

	r->again = r->state == RECORD_SIGNING;
	if (r->state != RECORD_IDLE || !r->svid)
		return;
	crypto_random(&x, sizeof(x));
	at = wall_ns(clock_wall()) + from_ns + (int64_t)(x % (uint64_t)(span_ns + 1));
	if (!r->due || r->due > at)
		due_set(c, r, at);
}

void cache_signed(struct cache *c, const char *entry_id, int64_t revision, struct svid *s)
{
	struct record *r = map_get_str(c->records, entry_id);

	if (!r || r->state != RECORD_SIGNING)
		return;
	if (r->entry.revision_number != revision) {
		/* The entry changed meanwhile: this is for its former self. */
		c->n_signing--;
		r->state = RECORD_IDLE;
		sign_want(c, r, r->users > 0);
		return;
	}
	sign_put(c, r, s);
	views_touch(c, r, true);
	evict_over_limit(c);
	if (r->again)
		sign_soon(c, r, 0, TAINT_SPREAD_MS * NS_PER_MS);
	if (c->o.changed)
		c->o.changed(c->o.arg);
}

void cache_sign_failed(struct cache *c, const char *entry_id, bool whole_call)
{
	struct record *r = map_get_str(c->records, entry_id);
	bool news;

	if (!r || r->state != RECORD_SIGNING)
		return;
	c->n_signing--;
	news = !r->failed && !r->svid;
	r->failed = true;
	rest(c, r);
	if (whole_call) {
		/* Nothing is wrong with this one: back to the queue's head; who signs waits. */
		list_remove(&r->link);
		r->state = RECORD_QUEUED;
		c->n_queued++;
		list_append(c->queue.next, &r->link);
	} else {
		r->retry_ns = r->retry_ns ? 2 * r->retry_ns : RETRY_FIRST_MS * NS_PER_MS;
		if (r->retry_ns > RETRY_MAX_MS * NS_PER_MS)
			r->retry_ns = RETRY_MAX_MS * NS_PER_MS;
		due_set(c, r, wall_ns(clock_wall()) + loop_jitter(r->retry_ns, 20));
	}
	if (news)
		views_touch(c, r, true);
}

void sign_on_timer(void *arg)
{
	struct cache *c = arg;
	int64_t until = wall_ns(clock_wall()) + DUE_TOGETHER_MS * NS_PER_MS;
	struct record *r;

	while ((r = due_pop(c, until)) != NULL)
		sign_want(c, r, r->users > 0);
	due_arm(c);
}

/* ---- taint ---- */

struct trust_item {
	char *entry_id;
	struct svid *svid;
	bool bad;
};
struct trust_job {
	struct cache *cache;
	struct x509_chain roots;
	struct trust_item *v;
	size_t n;
};

static void trust_work(void *arg)
{
	struct trust_job *j = arg;

	for (size_t i = 0; i < j->n; i++) {
		struct x509_chain ch = { 0 };
		struct err e = ERR_INIT;

		j->v[i].bad = x509_chain_parse_der(&ch, buf_view(&j->v[i].svid->chain),
				      X509_MAX_CHAIN, &e) != 0 ||
			      x509_verify(&ch, &j->roots, clock_wall(), &e) != 0;
		x509_chain_deinit(&ch);
	}
}

/* Those in use in the first half of the time. */
static void renew_bad(struct trust_job *j, size_t n_bad)
{
	struct cache *c = j->cache;
	int64_t span = TAINT_SPREAD_MS + (int64_t)n_bad * TAINT_PACE_MS;

	if (span > TAINT_SPREAD_MAX_MS)
		span = TAINT_SPREAD_MAX_MS;
	span = span * NS_PER_MS / 2;
	for (size_t i = 0; i < j->n; i++) {
		struct record *r = map_get_str(c->records, j->v[i].entry_id);

		if (r && j->v[i].bad && r->svid == j->v[i].svid)
			sign_soon(c, r, r->users ? 0 : span, span);
	}
}

static void trust_done(void *arg)
{
	struct trust_job *j = arg;
	size_t n_bad = 0;

	j->cache->trust_jobs--;
	for (size_t i = 0; i < j->n; i++)
		n_bad += j->v[i].bad;
	if (n_bad && !j->cache->stopped) {
		log_event(LOG_INFO, "cache", "Tainted X509-SVIDs are signed anew", "count",
			log_fmt("%zu", n_bad), NULL);
		renew_bad(j, n_bad);
	}
	for (size_t i = 0; i < j->n; i++) {
		svid_unref(j->v[i].svid);
		free(j->v[i].entry_id);
	}
	x509_chain_deinit(&j->roots);
	free(j->v);
	free(j);
}

void cache_renew_untrusted(struct cache *c)
{
	struct trust_job *j;
	struct bytes key;
	void *v;

	if (!c->bundle || (!c->n_svids && !c->n_signing))
		return;
	j = xcalloc(1, sizeof(*j));
	j->cache = c;
	for (size_t i = 0; i < c->bundle->n_roots; i++) {
		if (!c->bundle->roots[i].tainted)
			x509_chain_add(&j->roots, c->bundle->roots[i].cert);
	}
	j->v = xcalloc(c->n_svids + 1, sizeof(*j->v));
	for (size_t i = 0; map_next(c->records, &i, &key, &v);) {
		struct record *r = v;

		r->again = r->state == RECORD_SIGNING;
		if (!r->svid)
			continue;
		j->v[j->n].entry_id = xstrdup(r->entry.id);
		j->v[j->n++].svid = svid_ref(r->svid);
	}
	c->trust_jobs++;
	loop_job(c->o.loop, trust_work, trust_done, j);
}

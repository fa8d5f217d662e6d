/*
 * A bucket is kept as the moment at which it will be full again: taking n tokens moves that moment
 * by n / rate, and whoever takes more than there are waits until the moment is at most one burst
 * away. So callers are served in order, and giving back moves it back.
 */
#include "server/ratelimit.h"

#include <stdlib.h>
#include <string.h>

#include "lib/list.h"
#include "lib/map.h"

enum bucket_kind { B_ATTEST, B_X509, B_JWT, B_WIT, B_PUSH_KEY, B_POST_STATUS, B_COUNT };

struct bucket {
	int64_t full_at; /* monotonic */
	int64_t used_at;
	int waiting;
	struct list link; /* the longest unused first */
	char address[sizeof(((struct peer *)0)->address)];
};

struct buckets { /* of one kind */
	int per_s;
	bool off;
	struct map *by_address;
	struct list used;
	struct bucket overflow; /* of all addresses beyond the limit */
};

struct ratelimit {
	struct loop *loop;
	struct buckets kinds[B_COUNT];
	struct list waits;
	size_t n_waiting;
};

struct ratelimit_wait {
	struct ratelimit *limit;
	struct bucket *bucket;
	int64_t cost_ns;
	struct list link;
	struct loop_timer *timer;
	void (*done)(void *arg);
	void *arg;
};

static const struct {
	enum bucket_kind bucket;
	const char *what;
} kinds[RATELIMIT_KINDS] = {
	[RATELIMIT_ATTEST] = { B_ATTEST, "attest agent rate limiting" },
	[RATELIMIT_X509] = { B_X509, "certificate signing rate limiting" },
	[RATELIMIT_RENEW] = { B_X509, "renew agent rate limiting" },
	[RATELIMIT_DOWNSTREAM] = { B_X509, "downstream CA signing rate limit" },
	[RATELIMIT_JWT] = { B_JWT, "JWT signing request rate limiting" },
	[RATELIMIT_WIT] = { B_WIT, "certificate signing rate limiting" },
	[RATELIMIT_PUSH_KEY] = { B_PUSH_KEY, "key publishing rate limiting" },
	[RATELIMIT_POST_STATUS] = { B_POST_STATUS, "post status rate limiting" },
};

struct ratelimit *ratelimit_new(struct loop *l, bool attestation, bool signing)
{
	static const int per_s[B_COUNT] = {
		[B_ATTEST] = RATELIMIT_ATTEST_PER_S,
		[B_X509] = RATELIMIT_SIGN_PER_S,
		[B_JWT] = RATELIMIT_SIGN_PER_S,
		[B_WIT] = RATELIMIT_SIGN_PER_S,
		[B_PUSH_KEY] = RATELIMIT_PUSH_KEY_PER_S,
		[B_POST_STATUS] = RATELIMIT_POST_STATUS_PER_S,
	};
	struct ratelimit *r = xcalloc(1, sizeof(*r));

	r->loop = l;
	list_init(&r->waits);
	for (int i = 0; i < B_COUNT; i++) {
		r->kinds[i].per_s = per_s[i];
		r->kinds[i].by_address = map_new();
		list_init(&r->kinds[i].used);
		list_init(&r->kinds[i].overflow.link);
	}
	r->kinds[B_ATTEST].off = !attestation;
	r->kinds[B_X509].off = r->kinds[B_JWT].off = r->kinds[B_WIT].off = !signing;
	return r;
}

static void wait_free(struct ratelimit_wait *w)
{
	w->bucket->waiting--;
	w->limit->n_waiting--;
	list_remove(&w->link);
	loop_timer_free(w->timer);
	free(w);
}

void ratelimit_free(struct ratelimit *r)
{
	if (!r)
		return;
	list_each (w, &r->waits, struct ratelimit_wait, link)
		wait_free(w);
	for (int i = 0; i < B_COUNT; i++) {
		list_each (b, &r->kinds[i].used, struct bucket, link)
			free(b);
		map_free(r->kinds[i].by_address);
	}
	free(r);
}

/* Forgets those that have not been used for so long; a few per call, so that no call is slow. */
static void forget(struct buckets *k, int64_t now)
{
	for (int i = 0; i < 8 && !list_empty(&k->used); i++) {
		struct bucket *b = container_of(k->used.next, struct bucket, link);

		if (b->waiting || b->full_at > now ||
			now - b->used_at < RATELIMIT_FORGET_S * NS_PER_SEC)
			return;
		list_remove(&b->link);
		map_del_str(k->by_address, b->address);
		free(b);
	}
}

static struct bucket *bucket_of(struct buckets *k, const char *address, int64_t now)
{
	struct bucket *b = map_get_str(k->by_address, address);

	if (!b && map_len(k->by_address) >= RATELIMIT_ADDRESSES_MAX)
		return &k->overflow;
	if (!b) {
		b = xcalloc(1, sizeof(*b));
		b->full_at = now;
		list_init(&b->link);
		memcpy(b->address, address, strlen(address) + 1);
		map_put_str(k->by_address, address, b);
	}
	b->used_at = now;
	list_remove(&b->link);
	list_append(&k->used, &b->link);
	return b;
}

static void on_timer(void *arg)
{
	struct ratelimit_wait *w = arg;
	void (*done)(void *arg) = w->done;
	void *done_arg = w->arg;

	wait_free(w);
	done(done_arg);
}

static struct ratelimit_wait *wait_new(struct ratelimit *r, struct bucket *b, int64_t cost_ns,
	int64_t wait_ns, void (*done)(void *arg), void *arg)
{
	struct ratelimit_wait *w = xcalloc(1, sizeof(*w));

	w->limit = r;
	w->bucket = b;
	w->cost_ns = cost_ns;
	w->done = done;
	w->arg = arg;
	list_append(&r->waits, &w->link);
	r->n_waiting++;
	b->waiting++;
	w->timer = loop_timer_new(r->loop, on_timer, w);
	loop_timer_set(w->timer, wait_ns);
	return w;
}

int ratelimit_take(struct ratelimit *r, enum ratelimit_kind kind, const struct peer *p, size_t n,
	int64_t deadline_ns, void (*done)(void *arg), void *arg, struct ratelimit_wait **ret,
	struct err *e)
{
	struct buckets *k = &r->kinds[kinds[kind].bucket];
	const char *what = kinds[kind].what;
	int64_t now = clock_mono().ns;
	struct bucket *b;
	int64_t full_at;
	int64_t cost;
	int64_t wait;

	*ret = NULL;
	if (p->is_unix || k->off || n == 0)
		return 0;
	if (n > (size_t)k->per_s)
		return err_set(e, ERR_EXHAUSTED,
			"rejecting request due to %s: rate (%zu) exceeds burst size (%d)", what, n,
			k->per_s);
	forget(k, now);
	b = bucket_of(k, p->address, now);
	cost = (int64_t)n * NS_PER_SEC / k->per_s;
	full_at = (b->full_at > now ? b->full_at : now) + cost;
	wait = full_at - now - NS_PER_SEC; /* the burst is one second's worth */
	if (wait > deadline_ns || wait > RATELIMIT_WAIT_MAX_S * NS_PER_SEC)
		return err_set(e, ERR_EXHAUSTED,
			"rejecting request due to %s: rate: Wait(n=%zu) would exceed context "
			"deadline",
			what, n);
	if (wait > 0 && r->n_waiting >= RATELIMIT_WAITING_MAX)
		return err_set(e, ERR_EXHAUSTED,
			"rejecting request due to %s: too many callers are waiting", what);
	b->full_at = full_at;
	if (wait > 0)
		*ret = wait_new(r, b, cost, wait, done, arg);
	return 0;
}

void ratelimit_cancel(struct ratelimit_wait *w)
{
	if (!w)
		return;
	/* Those behind keep the time that they were told. */
	w->bucket->full_at -= w->cost_ns;
	wait_free(w);
}

size_t ratelimit_addresses(const struct ratelimit *r)
{
	size_t n = 0;

	for (int i = 0; i < B_COUNT; i++)
		n += map_len(r->kinds[i].by_address);
	return n;
}

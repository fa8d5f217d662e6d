#include "agent/limits.h"

#include <stdlib.h>
#include <string.h>

#include "lib/map.h"
#include "lib/mem.h"

struct bucket {
	double tokens;
	struct mono at;
};

/* Two generations: what was not looked up during one whole generation is gone. */
struct limiter {
	int rate;
	struct map *now, *before;
	struct mono born;
	struct bucket shared; /* of all sets that found no room */
};

struct limits {
	struct limiter v[LIMIT_KINDS];
};

static const char *const method_names[LIMIT_KINDS] = {
	[LIMIT_FETCH_X509_SVID] = "/SpiffeWorkloadAPI/FetchX509SVID",
	[LIMIT_FETCH_JWT_SVID] = "/SpiffeWorkloadAPI/FetchJWTSVID",
	[LIMIT_FETCH_X509_BUNDLES] = "/SpiffeWorkloadAPI/FetchX509Bundles",
	[LIMIT_FETCH_JWT_BUNDLES] = "/SpiffeWorkloadAPI/FetchJWTBundles",
	[LIMIT_STREAM_SECRETS] = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
	[LIMIT_FETCH_SECRETS] = "/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets",
};

enum limit_kind limits_kind(const char *method)
{
	int k = 0;

	while (k < LIMIT_KINDS && strcmp(method, method_names[k]) != 0)
		k++;
	return (enum limit_kind)k;
}

struct limits *limits_new(const int rates[LIMIT_KINDS])
{
	struct limits *l = xcalloc(1, sizeof(*l));

	for (int i = 0; i < LIMIT_KINDS; i++) {
		l->v[i].rate = rates[i];
		if (rates[i] <= 0)
			continue;
		l->v[i].now = map_new();
		l->v[i].before = map_new();
		l->v[i].shared.tokens = rates[i];
	}
	return l;
}

static void free_buckets(struct map *m)
{
	struct bytes key;
	void *p;

	for (size_t i = 0; m && map_next(m, &i, &key, &p);)
		free(p);
	map_free(m);
}

void limits_free(struct limits *l)
{
	if (!l)
		return;
	for (int i = 0; i < LIMIT_KINDS; i++) {
		free_buckets(l->v[i].now);
		free_buckets(l->v[i].before);
	}
	free(l);
}

static void age(struct limiter *m, struct mono now)
{
	if (now.ns - m->born.ns < LIMITS_FORGET_S * NS_PER_SEC)
		return;
	free_buckets(m->before);
	m->before = m->now;
	m->now = map_new();
	m->born = now;
}

static struct bucket *bucket_of(struct limiter *m, struct bytes selectors, struct mono now)
{
	struct bucket *b = map_get(m->now, selectors);

	if (b)
		return b;
	b = map_del(m->before, selectors);
	if (!b && map_len(m->now) >= LIMITS_SETS_MAX)
		return &m->shared;
	if (!b) {
		b = xmalloc(sizeof(*b));
		*b = (struct bucket){ .tokens = m->rate, .at = now };
	}
	map_put(m->now, selectors, b);
	return b;
}

bool limits_take(struct limits *l, enum limit_kind k, struct bytes selectors, struct mono now)
{
	struct limiter *m = k < LIMIT_KINDS ? &l->v[k] : NULL;
	struct bucket *b;

	if (!m || m->rate <= 0)
		return true;
	/* Callers without a selector are one set. */
	if (!selectors.n)
		selectors = bytes_of("", 1);
	age(m, now);
	b = bucket_of(m, selectors, now);
	b->tokens += (double)(now.ns - b->at.ns) / (double)NS_PER_SEC * m->rate;
	if (b->tokens > m->rate)
		b->tokens = m->rate;
	b->at = now;
	if (b->tokens < 1)
		return false;
	b->tokens -= 1;
	return true;
}

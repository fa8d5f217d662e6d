/*
 * Rate limits of the Workload API (experimental.ratelimit): so many calls of a method per second
 * for each set of selectors, the burst being one second's worth. Off by default. Loop thread.
 */
#ifndef ASSAY_AGENT_LIMITS_H
#define ASSAY_AGENT_LIMITS_H

#include <stdbool.h>

#include "lib/buf.h"
#include "lib/clock.h"

enum limit_kind {
	LIMIT_FETCH_X509_SVID,
	LIMIT_FETCH_JWT_SVID,
	LIMIT_FETCH_X509_BUNDLES,
	LIMIT_FETCH_JWT_BUNDLES,
	LIMIT_STREAM_SECRETS,
	LIMIT_FETCH_SECRETS,
	LIMIT_KINDS
};

enum {
	LIMITS_FORGET_S = 60,     /* a set unused for one to two times so long is forgotten */
	LIMITS_SETS_MAX = 10000,  /* per method; further ones share one bucket */
	LIMITS_RATE_MAX = 1 << 30 /* calls per second */
};

struct limits;
struct limits *limits_new(const int rates[LIMIT_KINDS]); /* 0: no limit */
void limits_free(struct limits *l);
/* May a caller with these selectors (as a view's key) go on? Takes a token if so. */
bool limits_take(struct limits *l, enum limit_kind k, struct bytes selectors, struct mono now);
/* By full method name; LIMIT_KINDS: one that is not limited. */
enum limit_kind limits_kind(const char *method);

#endif

/*
 * Rate limits per source address, with SPIRE's figures: token buckets whose burst is one second's
 * worth. Callers wait for their tokens, in order. Callers on the Unix socket are not limited. Loop
 * thread.
 */
#ifndef ASSAY_SERVER_RATELIMIT_H
#define ASSAY_SERVER_RATELIMIT_H

#include "lib/door.h"
#include "lib/loop.h"

enum ratelimit_kind {
	RATELIMIT_ATTEST,      /* AttestAgent: 1/s */
	RATELIMIT_X509,        /* BatchNewX509SVID, counted per CSR: 500/s */
	RATELIMIT_RENEW,       /* RenewAgent; shares the bucket of RATELIMIT_X509 */
	RATELIMIT_DOWNSTREAM,  /* NewDownstreamX509CA; shares the bucket of RATELIMIT_X509 */
	RATELIMIT_JWT,         /* NewJWTSVID: 500/s */
	RATELIMIT_WIT,         /* BatchNewWITSVID: 500/s */
	RATELIMIT_PUSH_KEY,    /* PublishJWTAuthority, PublishWITAuthority: 500/s */
	RATELIMIT_POST_STATUS, /* PostStatus: 10/s */
	RATELIMIT_KINDS
};

enum {
	RATELIMIT_ATTEST_PER_S = 1,
	RATELIMIT_SIGN_PER_S = 500,
	RATELIMIT_PUSH_KEY_PER_S = 500,
	RATELIMIT_POST_STATUS_PER_S = 10,
	RATELIMIT_FORGET_S = 120,         /* an address is forgotten after so long without a call */
	RATELIMIT_ADDRESSES_MAX = 100000, /* per bucket kind; later addresses share one bucket */
	RATELIMIT_WAIT_MAX_S = 60,        /* nobody waits longer: refused at once */
	RATELIMIT_WAITING_MAX = 10000,    /* callers that wait, over all addresses */
};

struct ratelimit;
struct ratelimit_wait;

/* attestation, signing: false switches those limits off (ratelimit{} in the configuration). */
struct ratelimit *ratelimit_new(struct loop *l, bool attestation, bool signing);
/* No callback of those that still wait is called. */
void ratelimit_free(struct ratelimit *r);

/*
 * Takes n tokens for the peer.
 * 0, *ret NULL: taken, go on.
 * 0, *ret set: wait; done(arg) follows from the loop when the tokens are there, unless
 *   ratelimit_cancel() came first (when the call ended), which gives the tokens back.
 * ERR_EXHAUSTED "rejecting request due to … rate limiting: …": more than the burst at once, or the
 *   wait would pass deadline_ns (time left; INT64_MAX: none) or RATELIMIT_WAIT_MAX_S.
 */
int ratelimit_take(struct ratelimit *r, enum ratelimit_kind k, const struct peer *p, size_t n,
	int64_t deadline_ns, void (*done)(void *arg), void *arg, struct ratelimit_wait **ret,
	struct err *e) MUST_USE;
void ratelimit_cancel(struct ratelimit_wait *w); /* NULL is fine; not after done */

size_t ratelimit_addresses(const struct ratelimit *r); /* tracked, all kinds together */

#endif

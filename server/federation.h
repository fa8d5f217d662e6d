/*
 * Trust between domains, the fetching side: for each federation relationship, stored or of the
 * configuration (which wins), the other domain's bundle is polled from its endpoint and stored.
 *
 * A relationship that is new or changed is polled at once; after that at a quarter of the bundle's
 * refresh hint. A failure is tried again with back-off. One peer has one fetch under way, of
 * bounded time and size, whose answer is parsed by a worker: whatever it sends, it harms itself
 * alone. Loop thread.
 */
#ifndef ASSAY_SERVER_FEDERATION_H
#define ASSAY_SERVER_FEDERATION_H

#include "server/store.h"

enum {
	FEDERATION_FETCH_MS = 30 * 1000, /* connect, handshake and answer together */
	FEDERATION_BODY_MAX = 1 << 20,   /* bytes of a bundle */
	FEDERATION_PARALLEL = 32,        /* fetches under way, others wait */
	FEDERATION_POLL_S = 300,         /* when the bundle has no refresh hint */
	FEDERATION_HINT_MIN_S = 60,      /* a shorter hint counts as this */
	FEDERATION_HINT_PART = 4,        /* polls within one hint */
	FEDERATION_POLL_MAX_S = 24 * 3600,
	FEDERATION_RETRY_S = 5,        /* after the first failure; doubles */
	FEDERATION_RETRY_EMPTY_S = 60, /* at most, while there is no bundle at all */
	FEDERATION_URL_MAX = 2048,
};

struct api;
struct federation;

struct federation *federation_new(struct api *a);
void federation_free(struct federation *f);
/* A relationship of the configuration; before federation_start(). */
void federation_add_fixed(struct federation *f, const struct relationship *r);
/* Nothing is fetched before. */
void federation_start(struct federation *f);
/* Ends what is under way, those who wait for a refresh with UNAVAILABLE. */
void federation_stop(struct federation *f);

/* The store's observer tells; NULL: deleted. */
void federation_changed(
	struct federation *f, const char *trust_domain, const struct relationship *r);
/* Another bundle: whoever could not be reached for want of it is tried again at once. */
void federation_bundle_changed(struct federation *f, const char *trust_domain);

/* Stored relationships; borrowed until the loop turns. NULL: none. */
const struct relationship *federation_get(const struct federation *f, const char *trust_domain);
/* Those created after that one, in order; the array is the caller's. */
const struct relationship **federation_list(
	const struct federation *f, int64_t after, size_t *ret_n);

/* Fetches now; done(arg, code, msg) once, later. False: there is no such relationship. */
bool federation_refresh(
	struct federation *f, const char *trust_domain, store_done *done, void *arg);

struct federation_stats {
	size_t peers, failing;
};
void federation_stats(const struct federation *f, struct federation_stats *ret);

/* Seconds to the next poll, before jitter. b may be NULL. */
int64_t federation_interval(const struct bundle *b);

/* Checks a bundle endpoint's URL as SPIRE does and gives it with its scheme in lower case, and its
 * host (either may be NULL). ERR_INVALID with SPIRE's text. */
int federation_url(const char *url, char **ret, char **ret_host, struct err *e) MUST_USE;

#endif

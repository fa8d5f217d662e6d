/*
 * The conversation with the server: attests, renews, keeps entries and bundles up to date, has
 * SVIDs signed.
 *
 * Against an Assay server one stream (assay.agent.v1.Sync/Watch) brings changes as they happen;
 * against a server that answers UNIMPLEMENTED the agent polls as SPIRE's agent does. A network or a
 * server that is away is waited for, for ever: what the cache holds goes on being served. Only a
 * definite refusal is fatal. Loop thread only.
 */
#ifndef ASSAY_AGENT_SYNC_H
#define ASSAY_AGENT_SYNC_H

#include "agent/cache.h"
#include "agent/jwtcache.h"
#include "agent/options.h"
#include "lib/keymgr.h"

enum sync_mode { SYNC_OFFLINE, SYNC_WATCH, SYNC_POLL, SYNC_FETCH };

/* Borrowed views, valid until the loop turns. */
struct sync_state {
	enum sync_mode mode;
	const char *epoch; /* "" when polling */
	uint64_t change;
	int64_t last_success;          /* Unix seconds; 0: never */
	const char *error;             /* "": none */
	const struct x509_chain *svid; /* the agent's own; n = 0: none */
	bool ready;                    /* there is something to serve from */
	bool connected;
};

struct sync_options {
	struct loop *loop;
	const struct agent_options *options;
	struct keymgr *keys;
	struct cache *cache;
	struct jwtcache *jwt;
	void (*ready)(void *arg);                  /* once: entries and a bundle are there */
	void (*fatal)(void *arg, const char *msg); /* refused for good: the agent must end */
	void *arg;
};
struct sync;
/* Reads what is stored. ERR_DATA_LOSS names the damaged file. */
int sync_new(const struct sync_options *o, struct sync **ret, struct err *e) MUST_USE;
void sync_start(struct sync *s);
/* Ends all calls and stores what is to be stored; the loop must turn until jobs are done, then
 * free. */
void sync_stop(struct sync *s);
void sync_free(struct sync *s);

/* A TLS server's context by the agent's own SVID, for brokers, who must show one too: a new
 * reference; NULL when there is none (yet). */
struct tls_ctx *sync_serving_tls(struct sync *s);

void sync_state(const struct sync *s, struct sync_state *ret);

/* For the cache and the JWT cache. */
void sync_wanted(struct sync *s);
void sync_changed(struct sync *s);
jwtcache_fetch_fn sync_fetch_jwt; /* arg: struct sync */

#endif

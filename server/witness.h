/*
 * Who has seen which version of the own bundle.
 *
 * An agent with a push stream acknowledges it. One that polls (SPIRE's) has seen what it was given
 * a moment ago; it counts as long as it keeps polling. An agent that is gone for longer than a
 * reconnection takes is not waited for: its own loss is the smaller harm. Loop thread.
 */
#ifndef ASSAY_SERVER_WITNESS_H
#define ASSAY_SERVER_WITNESS_H

#include "lib/clock.h"
#include "lib/entry.h"

struct witness;

struct witness *witness_new(void);
void witness_free(struct witness *w);
/* fn(arg) when somebody has seen more, or is gone for good. */
void witness_on_change(struct witness *w, void (*fn)(void *arg), void *arg);

/* The server has just started, and that agent may come back. */
void witness_expect(struct witness *w, const char *agent_id, struct mono now);
/* An agent's stream began with that sequence (0: none), acknowledged it, ended. */
void witness_opened(struct witness *w, const char *agent_id, uint64_t sequence, struct mono now);
void witness_acked(struct witness *w, const char *agent_id, uint64_t sequence, struct mono now);
void witness_closed(struct witness *w, const char *agent_id, struct mono now);
void witness_polled(struct witness *w, const char *agent_id, uint64_t sequence, struct mono now);
void witness_gone(struct witness *w, const char *agent_id); /* banned, evicted */

/* How many have not seen the bundle of that sequence; adds at most max names to ret. */
size_t witness_missing(
	struct witness *w, uint64_t sequence, struct mono now, struct strings *ret, size_t max);

#endif

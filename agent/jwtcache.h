/*
 * JWT-SVIDs that were fetched, by SPIFFE ID and set of audiences.
 *
 * A token past half of its life is fetched anew behind the caller's back; while the server is away
 * it is handed out until it expires. Callers who want the same token at once share one fetch. Loop
 * thread only.
 */
#ifndef ASSAY_AGENT_JWTCACHE_H
#define ASSAY_AGENT_JWTCACHE_H

#include "lib/bundle.h"
#include "lib/entry.h"
#include "lib/loop.h"

struct jwt_svid {
	char *token;
	int64_t issued_at, expires_at; /* Unix seconds */
};

struct jwtcache;
/* How a token is had from the server: answers exactly once by jwtcache_fetched(). */
typedef void jwtcache_fetch_fn(
	void *arg, const char *entry_id, const struct strings *audience, void *ticket);
struct jwtcache *jwtcache_new(struct loop *l, size_t max, jwtcache_fetch_fn *fetch, void *arg);
void jwtcache_free(struct jwtcache *c); /* waiting callers are answered CANCELLED */
size_t jwtcache_count(const struct jwtcache *c);

/* done(arg, token, e): token NULL on failure. May be called before this returns. unique: never
 * hands out the same token twice (entries with jwt_svid_include_jti). */
struct jwt_wait;
void jwtcache_get(struct jwtcache *c, const struct entry *en, const struct strings *audience,
	void (*done)(void *arg, const char *token, const struct err *e), void *arg);
void jwtcache_fetched(
	struct jwtcache *c, void *ticket, const struct jwt_svid *s, const struct err *e);
/* Forgets tokens signed by keys that the bundle calls tainted, or does not know. */
void jwtcache_drop_tainted(struct jwtcache *c, const struct bundle *b);

#endif

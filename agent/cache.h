/*
 * Entries → SVIDs → subscribers.
 *
 * Holds every entry the agent may have, the trust bundles, and an X509-SVID with its key for those
 * entries that are in use or kept warm. Callers with the same set of selectors share one view: the
 * entries they match and the encoded answers. A change of content tells the views it touches, and
 * no others. Who signs is told what is wanted by cache_next_wanted(). Loop thread only.
 */
#ifndef ASSAY_AGENT_CACHE_H
#define ASSAY_AGENT_CACHE_H

#include "lib/bundle.h"
#include "lib/entry.h"
#include "lib/list.h"
#include "lib/loop.h"
#include "lib/map.h"
#include "lib/rpc.h"

/* An X509-SVID as it is served. Immutable, counted. */
struct svid {
	int refs;
	struct buf chain;              /* DER, leaf first */
	struct buf key;                /* PKCS#8, secret */
	char *serial;                  /* decimal */
	int64_t not_before, not_after; /* Unix seconds */
};
/* Parses and checks the chain: the leaf is an X509-SVID of that id and (unless spki is empty) of
 * that key. Any thread. */
int svid_new(const struct bytes *certs, size_t n_certs, struct bytes key_pkcs8, struct bytes spki,
	const char *id, struct svid **ret, struct err *e) MUST_USE;
struct svid *svid_ref(struct svid *s);
void svid_unref(struct svid *s);

enum record_state { RECORD_IDLE, RECORD_QUEUED, RECORD_SIGNING };

/* An entry in the cache. Read only for others. */
struct record {
	struct entry entry;
	struct svid *svid; /* NULL: none held */
	enum record_state state;
	/* private */
	int users;   /* views with X.509 subscribers that match it */
	int64_t due; /* wall ns: queue it then; 0: not in the heap */
	size_t heap_at;
	int64_t retry_ns; /* back-off after a failure of this one */
	struct bucket *anchor;
	size_t anchor_at;
	struct list link; /* in queue, or in lru when idle, unused and with an SVID */
	bool gone, replaced;
	bool failed; /* the last attempt to have it signed failed */
	bool again;  /* what is being signed may be by a tainted authority */
};

struct cache;
struct cache_options {
	struct loop *loop;
	const char *trust_domain;
	size_t x509_max;
	int64_t availability_target_ns;
	void (*wanted)(void *arg);  /* something new is to be signed */
	void (*changed)(void *arg); /* contents worth storing changed */
	void *arg;
};
struct cache *cache_new(const struct cache_options *o);
void cache_stop(struct cache *c); /* nothing is renewed any more */
void cache_free(struct cache *c);

/* ---- what comes from the server ---- */

struct cache_update {
	bool full; /* entries and federated bundles that are not named are gone */
	struct entry *entries;
	size_t n_entries;
	struct strings removed;
	struct bundle *bundle; /* NULL: as before */
	bool full_federated;
	struct bundle **federated;
	size_t n_federated;
	struct strings removed_federated;
};
void cache_update_deinit(struct cache_update *u);
/* Takes the entries' contents out of u; what is left is the caller's to deinit. */
void cache_apply(struct cache *c, struct cache_update *u);

size_t cache_count(const struct cache *c);
size_t cache_count_svids(const struct cache *c);
const struct record *cache_find(const struct cache *c, const char *entry_id);
/* for (size_t i = 0; cache_next(c, &i, &r);) */
bool cache_next(const struct cache *c, size_t *cursor, const struct record **ret);
struct bundle *cache_bundle(const struct cache *c); /* borrowed; NULL before the first */
struct bundle *cache_federated(const struct cache *c, const char *trust_domain);
bool cache_next_federated(const struct cache *c, size_t *cursor, struct bundle **ret);
/* Trust domain names that any entry federates with. */
void cache_federates_with(const struct cache *c, struct strings *ret);

/* ---- signing ---- */

/* The next record that needs an SVID, now in RECORD_SIGNING; NULL when there is none. What
 * somebody waits for comes first. */
struct record *cache_next_wanted(struct cache *c);
size_t cache_wanted(const struct cache *c);
/* The outcome for an entry. revision: of the record when it was taken. */
void cache_signed(struct cache *c, const char *entry_id, int64_t revision, struct svid *s);
void cache_sign_failed(struct cache *c, const char *entry_id, bool whole_call);
/* SVIDs that no untainted root vouches for any more: has those signed anew, spread over a few
 * seconds, those in use first. */
void cache_renew_untrusted(struct cache *c);

/* ---- callers ---- */

enum view_kind { VIEW_X509, VIEW_X509_BUNDLES, VIEW_JWT_BUNDLES };
enum { VIEW_KINDS = 3 };

struct view {
	int refs;
	struct cache *cache;
	char *key;
	size_t key_len;
	struct selectors selectors;
	struct record **matches; /* by entry id; one per hint; without store_svid */
	size_t n_matches;
	int x509_users;
	struct list watchers;
	struct list idle;
	struct rpc_payload *payload[VIEW_KINDS]; /* as last encoded; NULL: none */
	bool fresh[VIEW_KINDS];                  /* payload is what the contents say */
};
/* A watcher is told once per change; it may remove itself. */
struct view_watch {
	struct list link;
	void (*changed)(struct view_watch *w);
};
struct view *cache_view(struct cache *c, const struct selectors *s); /* normalized; new reference */
void view_unref(struct view *v);
/* From now on the view's entries need SVIDs, and keep them. */
void view_use_x509(struct view *v);
void view_unuse_x509(struct view *v);
/* Every match has an SVID, or could not get one; and at least one has. */
bool view_ready(const struct view *v);

struct near_miss {
	const struct record *record;
	size_t missing, rank;
};
/* Entries that the selectors do not match, fewest missing first; at most max. */
size_t cache_nearest(struct cache *c, const struct selectors *s, struct near_miss *ret, size_t max);

/* ---- stored form ---- */

/* Appends SEALED_ENTRY, _BUNDLE, _FEDERATED and _SVID records. */
void cache_export(const struct cache *c, struct buf *plain);
/* Into an empty cache; unknown or damaged records are left out. */
void cache_import(struct cache *c, struct bytes plain);

#endif

/* Private to cache*.c. */
#ifndef ASSAY_AGENT_CACHE_INTERNAL_H
#define ASSAY_AGENT_CACHE_INTERNAL_H

#include "agent/cache.h"

enum { CACHE_IDLE_VIEWS = 64 };

/* All that is known of one selector: how many entries name it, and those filed under it. */
struct bucket {
	size_t refs;
	struct record **v;
	size_t n, cap;
};

struct cache {
	struct cache_options o;
	char *trust_domain;
	struct map *records;   /* entry id → struct record */
	struct map *selectors; /* type NUL value → struct bucket */
	struct map *views;     /* selector set → struct view */
	struct list idle_views;
	size_t n_idle_views;
	int telling; /* views are being walked: none may be freed */
	struct bundle *bundle;
	struct map *federated; /* trust domain → struct bundle */
	struct list queue;     /* records in RECORD_QUEUED */
	size_t n_queued, n_signing, n_svids;
	struct list lru; /* records with an SVID that nobody uses, oldest use first */
	struct record **heap;
	size_t n_heap, cap_heap;
	struct loop_timer *timer;
	int trust_jobs; /* that look at SVIDs after a taint */
	bool stopped;
};

/* cache_index.c: selector → records */
void index_add_refs(struct cache *c, const struct entry *en);
void index_drop_refs(struct cache *c, const struct entry *en);
void index_anchor(struct cache *c, struct record *r);
void index_unanchor(struct record *r);
/* Calls fn for each record whose selectors are all in s. */
void index_match(const struct cache *c, const struct selectors *s,
	void (*fn)(void *arg, struct record *r), void *arg);

/* cache_due.c: the heap of moments at which a record is to be signed anew */
void due_set(struct cache *c, struct record *r, int64_t wall_time_ns);
void due_clear(struct cache *c, struct record *r);
void due_arm(struct cache *c);
struct record *due_pop(struct cache *c, int64_t until_ns);

/* cache_sign.c */
void sign_want(struct cache *c, struct record *r, bool urgent);
void sign_drop_svid(struct cache *c, struct record *r);
void sign_forget(struct cache *c, struct record *r);
void sign_use(struct cache *c, struct record *r);
void sign_unuse(struct cache *c, struct record *r);
void sign_put(struct cache *c, struct record *r, struct svid *s);
void sign_on_timer(void *arg);

/* cache_view.c */
void views_rematch(struct cache *c);
void views_touch(struct cache *c, const struct record *r, bool x509_only); /* r NULL: all */
void view_free(struct view *v);

#endif

/*
 * Inside of the index of entries. Strings that repeat are kept once and known by number; so are
 * entries (records). Number 0 is nothing. Hash tables hold numbers with 32 bits of the hash beside
 * them, so that a probe seldom leaves the table.
 */
#ifndef ASSAY_SERVER_ENTRIES_INTERNAL_H
#define ASSAY_SERVER_ENTRIES_INTERNAL_H

#include "lib/list.h"
#include "server/entries.h"

enum {
	ENTRIES_TOMBSTONES = 65536,       /* removed entries remembered for watches */
	ENTRIES_PARKED_AGENTS = 20000,    /* agents that went away, whose set is remembered */
	ENTRIES_PARKED_ENTRIES = 2 << 20, /* and the sum of those sets */
};

/* ---- hash table of numbers (entries_intern.c) ---- */

struct table {
	uint64_t *slots; /* hash << 32 | number; 0 empty */
	uint32_t mask;
	uint32_t n;
};

/* Does the thing with this number have this key? */
typedef bool table_eq(const void *ctx, uint32_t num, struct bytes key);
uint32_t table_find(
	const struct table *t, uint32_t hash, table_eq *eq, const void *ctx, struct bytes key);
void table_add(struct table *t, uint32_t hash, uint32_t num);
void table_del(struct table *t, uint32_t hash, uint32_t num);
void table_deinit(struct table *t);

/* ---- numbered strings ---- */

struct istr { /* the beginning of what an interner keeps */
	uint32_t refs;
	uint32_t len;
};

struct intern {
	struct istr **v; /* by number; a free number holds the next free one << 1 | 1 */
	uint32_t n, cap; /* numbers given out so far, 0 included */
	uint32_t free;
	uint32_t head;    /* size of the head; the text follows, zero-terminated */
	uint64_t seed[2]; /* of the hash */
	struct table table;
};

void intern_init(struct intern *in, size_t head);
void intern_deinit(struct intern *in);
uint32_t intern_find(const struct intern *in, struct bytes text);
uint32_t intern_get(struct intern *in, struct bytes text); /* counts a reference */
void intern_ref(struct intern *in, uint32_t num);
void intern_unref(struct intern *in, uint32_t num);
static inline char *intern_text(const struct intern *in, uint32_t num)
{
	return (char *)in->v[num] + in->head;
}
uint32_t intern_hash(const struct intern *in, struct bytes text);

/* ---- numbers in order of their keys (entries_list.c) ---- */

struct sorted {
	struct sorted_chunk **v;
	size_t n, cap;
	bool valid; /* false: to be built anew at the next use */
};
typedef int64_t sorted_key(const struct entries *x, uint32_t num);
void sorted_deinit(struct sorted *s);
void sorted_add(struct sorted *s, const struct entries *x, sorted_key *key, uint32_t num);
void sorted_del(struct sorted *s, const struct entries *x, sorted_key *key, uint32_t num);

/* ---- what the index is made of ---- */

struct idstr { /* a SPIFFE ID */
	struct istr s;
	uint32_t child; /* first record whose parent it is (not of the server's id) */
	uint32_t n_child;
	uint32_t same;    /* first record that has it, no alias */
	uint32_t alias;   /* first record that has it, and is an alias */
	uint32_t n_alias; /* number of those */
	uint32_t mark;    /* visited in walk number … */
	uint32_t node;
	uint32_t agent; /* watched agent */
};

struct selstr { /* a selector: "type\0value" */
	struct istr s;
	uint32_t hook;
};

/* What a selector that aliases or watched agents have leads to. */
struct hook {
	uint32_t alias; /* first of the aliases posted under this selector */
	uint32_t n_alias;
	uint32_t *agents; /* watched agents that have it */
	uint32_t n_agents;
	bool used;
};

enum {
	REC_ADMIN = 1 << 0,
	REC_DOWNSTREAM = 1 << 1,
	REC_STORE_SVID = 1 << 2,
	REC_NO_PREFETCH = 1 << 3,
	REC_JTI = 1 << 4,
	REC_ATTRIBUTES = 1 << 5,
	REC_DEAD = 1 << 6, /* removed; kept for watches that have yet to tell */
};

struct rec {
	uint32_t spiffe, parent;
	uint32_t next, prev;           /* among the parent's children; of an alias: its postings */
	uint32_t same_next, same_prev; /* among those of the same SPIFFE ID */
	uint32_t version;              /* another with every change of the record */
	uint32_t posted;               /* of an alias: the selector that it is posted under */
	int64_t num;                   /* order of creation */
	int64_t revision, created_at, expires_at;
	int32_t x509_ttl, jwt_ttl;
	uint32_t n_sel, n_fed, n_dns, flags;
	uint32_t sel[]; /* in the order given; then: id, hint, federates_with, dns_names */
};

struct noderec {
	int64_t num; /* order of creation */
	uint32_t id;
	uint32_t n_sel;
	bool can_reattest;
	int64_t expires_at, new_expires_at;
	uint32_t *sel; /* in the order of their text */
	uint32_t n_match;
	uint32_t *match; /* in the order of their numbers, with the agent's id as selector */
	char *type, *serial, *new_serial, *agent_version; /* one allocation, type's */
};

struct sent { /* an entry that an agent has */
	uint32_t rec, version;
};

struct sent_set {
	bool known;
	struct sent *v; /* by record number */
	size_t n;
	uint64_t content_at; /* the change since which it is the same */
	uint64_t taken_at;
	uint64_t tombs; /* tombstones made until one of these entries may have died */
};

struct agent { /* a watched agent */
	uint32_t id;
	uint32_t n_sel;
	uint32_t *sel; /* by number: what it is posted under */
	struct list watches;
	struct sent_set parked;
	struct list parked_link;
};

struct entries_watch {
	struct entries *x;
	uint32_t agent;
	struct list link;    /* agent's watches */
	struct list pending; /* entries' pending */
	bool dirty;
	struct sent_set sent;
	void (*changed)(void *arg);
	void *arg;
};

struct numbers { /* a plain array of numbers */
	uint32_t *v;
	size_t n, cap;
};
void numbers_add(struct numbers *a, uint32_t num);
void numbers_deinit(struct numbers *a);

/* Room for the pointers of one borrowed entry. */
struct scratch {
	struct selector *sel;
	size_t sel_cap;
	char **text;
	size_t text_cap;
};
void scratch_deinit(struct scratch *s);

struct entries {
	uint64_t change;
	char *trust_domain;
	bool agent_id_as_selector;
	struct intern ids;
	struct intern selectors;
	uint32_t server_id;

	struct rec **recs;
	uint32_t n_recs, cap_recs, free_rec;
	struct table by_id;
	uint32_t n_live;
	uint32_t version;
	int64_t last_num; /* the greatest so far */
	struct sorted sorted;

	struct noderec **nodes;
	uint32_t n_node_slots, cap_nodes, free_node;
	uint32_t n_nodes;
	int64_t last_node_num;
	struct sorted sorted_nodes;

	struct hook *hooks;
	uint32_t n_hooks, cap_hooks, free_hook;

	struct agent **agents;
	uint32_t n_agent_slots, cap_agents, free_agent;
	uint32_t n_agents;
	struct list pending; /* watches to be told */
	struct list parked;  /* agents with a parked set, the oldest first */
	size_t n_parked, n_parked_entries;
	uint32_t *tombs; /* ring of ENTRIES_TOMBSTONES records */
	uint64_t n_tombs;

	uint32_t mark;
	struct scratch view;
	struct buf key; /* for looking up selectors */
};

static inline struct idstr *id_of(const struct entries *x, uint32_t num)
{
	return (struct idstr *)x->ids.v[num];
}

static inline char *rec_id(const struct rec *r)
{
	return (char *)(uintptr_t)&r->sel[r->n_sel];
}

static inline bool is_alias(const struct entries *x, const struct rec *r)
{
	return r->parent == x->server_id;
}

/* entries.c */
uint32_t rec_find(const struct entries *x, const char *id);
void rec_view(
	const struct entries *x, const struct rec *r, struct scratch *room, struct entry *ret);
void rec_free(struct entries *x, uint32_t num);
void node_view(
	const struct entries *x, const struct noderec *n, struct scratch *room, struct node *ret);
uint32_t selector_find(const struct entries *x, const struct selector *s);
struct hook *hook_of(struct entries *x, uint32_t selector); /* makes it */
void hook_release(struct entries *x, uint32_t selector);    /* frees it when empty */
struct hook *hook_find(const struct entries *x, uint32_t selector);
uint32_t walk_start(const struct entries *x);
/* Is every selector of the alias among these numbers? */
bool alias_matches(const struct rec *alias, const uint32_t *sel, size_t n);
/* All that an agent may have, in no order. */
void authorized_collect(const struct entries *x, const char *agent_id, struct numbers *ret);

/* entries_watch.c */
void watch_touch(struct entries *x, const struct rec *r); /* before and after a change of r */
void watch_flush(struct entries *x);                      /* tells who was touched */
void watch_bury(struct entries *x, uint32_t num); /* keeps a removed record as a tombstone */
void watch_node(struct entries *x, uint32_t id);  /* the node's selectors changed */
void watch_deinit(struct entries *x);

#endif

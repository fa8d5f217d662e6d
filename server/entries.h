/*
 * The server's memory: every registration entry, attested node and node selector, in one compact
 * index fed by the store's changes.
 *
 * Loop thread only. Nothing here reads the database. Strings that repeat (SPIFFE IDs, selectors)
 * are interned once. Target: 1 million entries in under 600 MB.
 */
#ifndef ASSAY_SERVER_ENTRIES_H
#define ASSAY_SERVER_ENTRIES_H

#include "lib/buf.h"
#include "lib/entry.h"
#include "server/store.h"

struct entries;

struct entries *entries_new(const char *trust_domain, bool agent_id_as_selector);
void entries_free(struct entries *x);

/* The number of the change that is applied next: the store's observer calls this before each put or
 * remove, and whoever loads calls it with store_change() afterwards. Watches hand the last one out.
 */
void entries_set_change(struct entries *x, uint64_t change);
uint64_t entries_change(const struct entries *x);

/* Applies one change, in order. */
void entries_put(struct entries *x, const struct entry *en);
void entries_remove(struct entries *x, const char *entry_id);
void entries_put_node(struct entries *x, const struct node *n);
void entries_remove_node(struct entries *x, const char *spiffe_id);

size_t entries_count(const struct entries *x);
size_t entries_count_nodes(const struct entries *x);
/* Copies; ERR_NOT_FOUND. */
int entries_get(
	const struct entries *x, const char *entry_id, struct entry *ret, struct err *e) MUST_USE;
int entries_get_node(
	const struct entries *x, const char *spiffe_id, struct node *ret, struct err *e) MUST_USE;

/* Borrowed pointers, selectors left out, valid until the next change of a node. ERR_NOT_FOUND. */
int entries_node_view(
	const struct entries *x, const char *spiffe_id, struct node *ret, struct err *e) MUST_USE;

/* The entries that an agent may have: descendants of its id and of every alias whose selectors are
 * a subset of the node's, recursively, cycles broken; store_svid too. fn(arg, entry) in no order;
 * the entry is borrowed, valid until fn returns; fn must not change the index. The time is that of
 * the answer. */
void entries_authorized(const struct entries *x, const char *agent_id,
	void (*fn)(void *arg, const struct entry *en), void *arg);
/* One entry, if the agent may have it (walks up from the entry: no set is built). ERR_NOT_FOUND. */
int entries_authorized_get(const struct entries *x, const char *agent_id, const char *entry_id,
	struct entry *ret, struct err *e) MUST_USE;
/* The same without copies of strings: what signing needs. The pointers in *ret are borrowed and
 * valid until the next call of any function of this module; nothing in it is to be freed. Selectors
 * are left out. ERR_NOT_FOUND. */
int entries_authorized_view(const struct entries *x, const char *agent_id, const char *entry_id,
	struct entry *ret, struct err *e) MUST_USE;
/* Has the id an entry that is admin / downstream? */
bool entries_is_admin(const struct entries *x, const char *spiffe_id);
bool entries_is_downstream(const struct entries *x, const char *spiffe_id);

/* A watch is touched by each change that concerns its agent: of an entry that the agent may have
 * before or after it, of what leads to such an entry, of the node's selectors. changed(arg) is
 * called once per row of changes, until the watch was taken from; the index may be used from it. A
 * new watch wants to be taken from at once. Several for one agent are fine. */
struct entries_watch; /* one per connected agent */
struct entries_watch *entries_watch_new(
	struct entries *x, const char *agent_id, void (*changed)(void *arg), void *arg);
void entries_watch_free(struct entries_watch *w);
/* What changed for this agent since the change number `since` (the last one it was given, by this
 * watch or an earlier one): new or changed entries, removed ids. Full without a number, or when it
 * is not known what the agent had then. */
struct entries_delta {
	bool full; /* forget all that was sent before */
	struct entry *put;
	size_t n_put;
	struct strings removed;
	uint64_t change; /* up to and including */
};
void entries_watch_take(
	struct entries_watch *w, uint64_t since, bool have_since, struct entries_delta *ret);
void entries_delta_deinit(struct entries_delta *d);

/* Lists, in the order of creation with the token being the number of the last one given ("" at the
 * start; ERR_INTERNAL, as in SPIRE, when it is none); all filters must hold. */
enum match { MATCH_EXACT, MATCH_SUBSET, MATCH_SUPERSET, MATCH_ANY };
struct entries_filter {
	const char *spiffe_id, *parent_id, *hint; /* NULL: any */
	const struct selectors *selectors;
	enum match selectors_match;
	const struct strings *federates_with;
	enum match federates_match;
	int downstream; /* -1: any */
};
/* fn returns false when it does not take this entry any more (page full by count or bytes); the
 * list ends before it, and *ret_token leads to the next page. NULL: that was all. Caller frees. */
int entries_list(const struct entries *x, const struct entries_filter *f, const char *token,
	bool (*fn)(void *arg, const struct entry *en), void *arg, char **ret_token,
	struct err *e) MUST_USE;

struct nodes_filter {
	const char *attestation_type;
	const struct selectors *selectors;
	enum match selectors_match;
	int banned, can_reattest; /* -1: any */
	int64_t expires_before;   /* 0: any */
};
int entries_list_nodes(const struct entries *x, const struct nodes_filter *f, const char *token,
	bool (*fn)(void *arg, const struct node *n), void *arg, char **ret_token,
	struct err *e) MUST_USE;

#endif

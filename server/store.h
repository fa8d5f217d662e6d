/*
 * The store: what must survive. SQL lives behind this header only (store_sqlite.c).
 *
 * Every change is acknowledged only when it is on disk, and commits together with one row in the
 * change log, whose numbers have no gaps. Writes that wait are committed together (group commit).
 * After the commit, and before the writer's done(), the store calls observer->* on the loop thread,
 * in the order of the change numbers: that is how the in-memory index follows. Reads other than
 * store_load() do not exist: the memory has it all.
 */
#ifndef ASSAY_SERVER_STORE_H
#define ASSAY_SERVER_STORE_H

#include "lib/bundle.h"
#include "lib/entry.h"
#include "lib/loop.h"

struct node {
	int64_t num; /* order of creation; the store's. 0: not known */
	char *spiffe_id;
	char *attestation_type;
	char *serial; /* decimal; "" when banned */
	int64_t expires_at;
	char *new_serial; /* second phase of a renewal: promoted on first use; "" none */
	int64_t new_expires_at;
	bool can_reattest;
	char *agent_version;
	struct selectors selectors;
};
void node_deinit(struct node *n);
struct node node_dup(const struct node *n);
static inline bool node_banned(const struct node *n)
{
	return n->serial[0] == 0 && n->new_serial[0] == 0;
}

struct join_token {
	char *token;
	int64_t expires_at;
};

/* A federation relationship: where the bundle of another trust domain is fetched from. */
struct relationship {
	int64_t num; /* order of creation; the store's */
	char *trust_domain;
	char *url;
	char *endpoint_id; /* SPIFFE ID of an https_spiffe endpoint; "" of an https_web one */
};
void relationship_deinit(struct relationship *r);
struct relationship relationship_dup(const struct relationship *r);

struct store_observer {
	/* change: number of the log row. At load, change is 0. */
	void (*entry)(void *arg, uint64_t change, const char *id,
		const struct entry *en); /* NULL: deleted */
	void (*node)(void *arg, uint64_t change, const char *spiffe_id,
		const struct node *n); /* NULL: deleted */
	void (*bundle)(void *arg, uint64_t change, const char *trust_domain,
		struct bundle *b); /* NULL: deleted */
	void (*relationship)(void *arg, uint64_t change, const char *trust_domain,
		const struct relationship *r); /* NULL: deleted */
	void *arg;
};

struct store;
/*
 * Opens (creates, migrates) the database. ERR_DATA_LOSS: damaged (names the file, nothing
 * overwritten); ERR_PRECONDITION: made by a newer version, or not ours; ERR_UNAVAILABLE: in use by
 * another process.
 *
 * Every write below may end with ERR_EXHAUSTED (disk full; names the file), ERR_DATA_LOSS (damaged)
 * or ERR_INTERNAL: nothing of that call was then applied, and the store goes on when the cause is
 * gone.
 */
int store_open(struct loop *l, const char *path, const struct store_observer *o, struct store **ret,
	struct err *e) MUST_USE;
/* Feeds every stored object to the observer. Blocking; at start only. */
int store_load(struct store *s, struct err *e) MUST_USE;
/* Waits for the writes under way, whose observers and done functions are called from here. */
void store_close(struct store *s);
const char *store_epoch(
	const struct store *s); /* random text made with the database: names this change log */
uint64_t store_change(const struct store *s); /* number of the last applied change */

/* Each write copies its inputs and calls done once on the loop. Batches are one transaction with a
 * result per item. */
struct store_result {
	int code;
	char *message;      /* "" when code is 0 */
	bool similar;       /* refused as one like it exists, which is then the entry here */
	struct entry entry; /* as stored (create, update), the existing one, the deleted one */
};

/* A UUID, version 4 (RFC 9562 5.4), as entries get for an id. */
void entry_new_id(char ret[37]);
/* create: the id "" (or NULL) gets a UUID; ERR_EXISTS "similar entry already exists" (same
 * spiffe_id, parent, selectors in any order: entry is the existing one), or the id is taken, or a
 * selector or DNS name is given twice. Selectors and names keep the order given. federates_with
 * naming an unknown bundle is ERR_INTERNAL (the own trust domain's is known, as it is stored too);
 * a stored SVID whose selectors are of several types is ERR_INVALID. created_at and revision_number
 * are set here. */
void store_entries_create(struct store *s, struct entry *v, size_t n,
	void (*done)(void *arg, struct store_result *r, size_t n), void *arg);
/* update: mask bits say which fields of v[i] are taken; revision_number + 1. ERR_NOT_FOUND;
 * and as create, but that it may become similar to another: so two can change places. */
enum entry_mask {
	ENTRY_SPIFFE_ID = 1 << 0,
	ENTRY_PARENT_ID = 1 << 1,
	ENTRY_SELECTORS = 1 << 2,
	ENTRY_X509_TTL = 1 << 3,
	ENTRY_FEDERATES = 1 << 4,
	ENTRY_ADMIN = 1 << 5,
	ENTRY_DOWNSTREAM = 1 << 6,
	ENTRY_EXPIRES = 1 << 7,
	ENTRY_DNS = 1 << 8,
	ENTRY_STORE_SVID = 1 << 9,
	ENTRY_JWT_TTL = 1 << 10,
	ENTRY_HINT = 1 << 11,
	ENTRY_ATTRIBUTES = 1 << 12,
	ENTRY_ALL = (1 << 13) - 1,
};
void store_entries_update(struct store *s, struct entry *v, size_t n, unsigned mask,
	void (*done)(void *arg, struct store_result *r, size_t n), void *arg);
void store_entries_delete(struct store *s, const char *const *ids, size_t n,
	void (*done)(void *arg, struct store_result *r, size_t n), void *arg);
/* Entries whose expires_at has passed. */
void store_entries_prune(struct store *s, int64_t now,
	void (*done)(void *arg, int code, const char *msg, size_t deleted), void *arg);

typedef void store_done(void *arg, int code, const char *msg);

/* Node: put replaces all. */
void store_node_put(struct store *s, const struct node *n, store_done *done, void *arg);
/* Read-modify-write in one transaction; each field only when its pointer is set. ERR_NOT_FOUND.
 * expect_serial: when set, it must be the node's serial or new_serial, else ERR_ABORTED. */
struct node_update {
	const char *serial, *new_serial, *agent_version;
	const int64_t *expires_at, *new_expires_at;
	const bool *can_reattest;
	const char *expect_serial;
};
void store_node_update(struct store *s, const char *spiffe_id, const struct node_update *u,
	store_done *done, void *arg);
/* The alias entry of a join token goes with its node. ERR_NOT_FOUND. */
void store_node_delete(struct store *s, const char *spiffe_id, store_done *done, void *arg);
/* Nodes whose SVID expired before that time, never banned ones; those that cannot attest again only
 * with tofu_too. */
void store_nodes_prune(struct store *s, int64_t expired_before, bool tofu_too, int limit,
	void (*done)(void *arg, int code, const char *msg, size_t deleted), void *arg);

/* ERR_EXISTS "join token already exists"; alias: when its spiffe_id is set, an entry created in the
 * same transaction. */
void store_token_create(struct store *s, const struct join_token *t, const struct entry *alias,
	store_done *done, void *arg);
/* Deletes the token and tells whether it was good: 0, or ERR_INVALID with "join token does not
 * exist or has already been used" / "join token expired". Exactly one caller of many gets 0. */
void store_token_take(struct store *s, const char *token, int64_t now, store_done *done, void *arg);
void store_tokens_prune(struct store *s, int64_t now, store_done *done, void *arg);

/* Bundle: whole replacement under the expected sequence (0: whatever); its sequence becomes the old
 * + 1, or with 0 its own when that is greater, or with STORE_SEQUENCE_GIVEN its own (that of
 * another trust domain counts there, not here). ERR_ABORTED when the sequence moved. */
#define STORE_SEQUENCE_GIVEN UINT64_MAX
void store_bundle_put(
	struct store *s, struct bundle *b, uint64_t expect_sequence, store_done *done, void *arg);
/* What becomes of the entries that federate with it. ERR_NOT_FOUND; ERR_PRECONDITION when there are
 * some and the mode is to refuse. */
enum bundle_delete { BUNDLE_RESTRICT, BUNDLE_DELETE_ENTRIES, BUNDLE_DISSOCIATE };
void store_bundle_delete(struct store *s, const char *trust_domain, enum bundle_delete mode,
	store_done *done, void *arg);

/* Federation relationships. A bundle (which may be NULL) that is given with one is stored in the
 * same transaction, whatever is there. create: ERR_EXISTS; update (mask: which fields are taken)
 * and delete: ERR_NOT_FOUND. */
enum relationship_mask { RELATIONSHIP_URL = 1 << 0, RELATIONSHIP_PROFILE = 1 << 1 };
void store_relationship_create(struct store *s, const struct relationship *r, struct bundle *b,
	store_done *done, void *arg);
void store_relationship_update(struct store *s, const struct relationship *r, unsigned mask,
	struct bundle *b, store_done *done, void *arg);
void store_relationship_delete(
	struct store *s, const char *trust_domain, store_done *done, void *arg);

/* Small named blobs: durable. */
#define STORE_CA_JOURNAL "ca_journal"
void store_blob_put(struct store *s, const char *name, struct bytes v, store_done *done, void *arg);
int store_blob_get(struct store *s, const char *name, struct buf *ret,
	struct err *e) MUST_USE; /* blocking; at start only; ERR_NOT_FOUND */

/* The one write without a running store: fills an empty database with what another server left
 * behind, in one transaction, with a note of where it came from. Blocking. Entries that are like
 * others, or that name unknown bundles, are left out with a line each in `left`. */
struct spire;
enum store_import_state {
	STORE_IMPORT_EMPTY, /* may be filled */
	STORE_IMPORT_SAME,  /* was filled from the very same */
	STORE_IMPORT_OTHER, /* was filled from something else of that kind, or from an earlier state
			       of it */
	STORE_IMPORT_USED,  /* holds other data */
};
int store_import_state(const char *path, const char *fingerprint, enum store_import_state *ret,
	struct err *e) MUST_USE;
int store_import(const char *path, const struct spire *s, struct bytes journal,
	struct strings *left, size_t *ret_entries, struct err *e) MUST_USE;

/* A new folder, below TMPDIR, for a database <folder>/db that is thrown away with it. Caller frees
 * the name. */
int store_scratch_make(char **ret_dir, struct err *e) MUST_USE;
void store_scratch_remove(const char *dir);

struct store_stats {
	uint64_t statements, transactions, changes;
};
void store_stats(const struct store *s, struct store_stats *ret);

#endif

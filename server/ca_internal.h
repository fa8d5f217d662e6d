/* Shared by ca*.c only. */
#ifndef ASSAY_SERVER_CA_INTERNAL_H
#define ASSAY_SERVER_CA_INTERNAL_H

#include "lib/list.h"
#include "server/ca.h"

/* SPIRE's cushion for clocks that are behind ours. */
enum { CA_BACKDATE_S = 10 };

enum ca_status { CA_UNUSED, CA_PREPARED, CA_ACTIVE, CA_OLD };
enum { CA_SLOTS = 2, CA_OPS_MAX = 16 };

/* One authority. An old one is kept for its public half alone: SVIDs that it signed are about. */
struct ca_slot {
	enum ca_status status;
	char *id;                     /* X.509: SKI in hex; JWT: kid */
	int64_t issued_at, not_after; /* Unix seconds */
	struct x509_cert *cert;       /* X.509 only */
	/* Signed upstream: the certificate and what leads from it to its root; that root. NULL: it
	 * is its own. */
	struct x509_chain chain;
	struct x509_cert *anchor;
	char *root_id, *upstream_id; /* key ids of that root, and of the direct signer */
	bool unfit;                  /* the upstream has given it up */
	struct pubkey *pub;
	struct keymgr_signer *signer; /* prepared and active only */
	bool drop_key;                /* the key is to leave the key manager */
	bool tainted, revoked;        /* old ones: what the bundle is to say of it */
	uint64_t sequence;            /* of the first bundle seen with it; 0: none */
	struct mono hold_until; /* its activation is due, and waits to be seen; 0: it is not */
};

struct ca_line {
	struct ca_slot slot[CA_SLOTS];
	bool busy;              /* a job works on one of the slots */
	bool preparing;         /* … and makes a new authority: nothing is activated meanwhile */
	struct strings leaving; /* ids that are to leave the bundle */
};

/* Something asked for by ca_force(). */
struct ca_op {
	struct list link;
	enum ca_force what;
	enum ca_kind kind;
	char *id; /* a preparation's: NULL until it is made */
	bool at_once, begun;
	struct mono until;
	ca_force_done *done;
	void *arg;
};

struct ca {
	struct loop *loop;
	struct store *store;
	struct keymgr *keymgr;
	char *trust_domain, *country, *organization, *common_name, *jwt_issuer_name;
	enum key_type key_type[CA_KINDS];
	int64_t ca_ttl_ns, x509_svid_ttl_ns, jwt_svid_ttl_ns, agent_ttl_ns;
	bool disable_jwt, unique_id;
	struct upstream *upstream;                        /* NULL: none */
	struct bundle *upstream_bundle;                   /* as last told; NULL: not yet */
	bool jwt_stays_here;                              /* the upstream takes no JWT keys */
	void (*ready_fn)(void *arg, const struct err *e); /* NULL once called */
	void *ready_arg;
	void (*activate_fn)(void *arg);
	void *activate_arg;
	ca_missing_fn *missing_fn;
	void *missing_arg;

	struct ca_line line[CA_KINDS];
	struct bundle *bundle; /* as stored; NULL: none yet */
	struct ca_issuer *x509_issuer;
	struct ca_jwt_issuer *jwt_issuer;
	bool ready;
	bool failed; /* could not begin; ready_fn was told */
	bool journal_dirty, journal_busy, bundle_busy;
	uint64_t expected_sequence; /* of the bundle write under way */
	struct loop_timer *timer;   /* the next thing to do */
	struct loop_timer *retry;   /* after a failure */
	struct loop_timer *look;    /* while somebody waits */
	struct list ops;
	size_t n_ops;
	bool waiting, looking; /* an activation waits to be seen; a step for it is posted */
	struct backoff backoff;
	bool holding; /* retry is set: nothing is begun before it fires */
	int pending;  /* callbacks to come; the memory goes with the last of them */
	bool closed;
};

/* ca.c, for ca_force.c */
struct ca_slot *ca_slot_of(struct ca_line *l, enum ca_status status);
void ca_step(void *ca);
void ca_prepare(struct ca *ca, enum ca_kind k);
void ca_activate(struct ca *ca, enum ca_kind k);
/* ca_force.c, for ca.c: the operations' part of a step, and the end of those that are done. */
void ca_ops_begin(struct ca *ca);
void ca_ops_finish(struct ca *ca);
void ca_ops_prepared(struct ca *ca, enum ca_kind k, const struct ca_slot *s);
/* Ends those begun, of that kind (CA_KINDS: any), with ERR_INTERNAL. */
void ca_ops_failed(struct ca *ca, enum ca_kind k, const char *why);
void ca_ops_cancel(struct ca *ca);
/* The activation of next, due by schedule, need not wait any longer. */
bool ca_may_activate(
	struct ca *ca, enum ca_kind k, struct ca_slot *next, const struct ca_slot *active);

const char *ca_key_name(enum ca_kind k, int slot);
const char *ca_kind_name(enum ca_kind k);
void ca_slot_deinit(struct ca_slot *s);

/* The journal: JSON. Decoding fills the lines and checks shape only. ERR_DATA_LOSS when it is
 * damaged, ERR_PRECONDITION when a newer version wrote it. */
void ca_journal_encode(const struct ca *ca, struct buf *ret);
int ca_journal_decode(struct ca *ca, struct bytes text, struct err *e) MUST_USE;
/* Brings the decoded journal and the key manager together. Blocking; at start only. */
int ca_reconcile(struct ca *ca, int64_t now, struct err *e) MUST_USE;

/* Makes the key and, for X.509, the certificate of an authority in that slot; any thread. With an
 * upstream it makes a CSR in place of the certificate. */
int ca_make(const struct ca *ca, enum ca_kind k, int slot, struct wall now, struct ca_slot *ret,
	struct buf *ret_csr, struct err *e) MUST_USE;

/* ca_upstream.c: the certificate of a slot whose key is made, after checks; what the upstream's
 * bundle says, and does to ours. */
int ca_take_minted(struct ca *ca, struct ca_slot *s, const struct x509_chain *chain,
	const struct bundle *b, struct err *e) MUST_USE;
void ca_take_upstream_bundle(struct ca *ca, struct bundle *b);
void ca_mark_unfit(struct ca *ca);
void ca_add_upstream(const struct ca *ca, int64_t now, struct bundle *ret);
bool ca_upstream_taints(const struct ca *ca, const struct x509_cert *root);
bool ca_signs_under(const struct ca *ca, const struct x509_cert *root);
int ca_check_upstream(struct ca *ca, enum ca_force what, const char *id, struct ca_slot **ret,
	struct err *e) MUST_USE;
struct x509_cert *ca_slot_root(const struct ca_slot *s); /* what the bundle holds of it */
char *ca_key_id_text(struct bytes id);                   /* as SPIRE names authorities */

struct ca_issuer *ca_issuer_new(const struct ca *ca, const struct ca_slot *s);
struct ca_jwt_issuer *ca_jwt_issuer_new(const struct ca *ca, const struct ca_slot *s);
struct ca_jwt_issuer *ca_jwt_issuer_ref(struct ca_jwt_issuer *i);
bool ca_issuer_is_of(const struct ca_issuer *i, const struct ca_slot *s);
bool ca_jwt_issuer_is_of(const struct ca_jwt_issuer *i, const struct ca_slot *s);

/* What must be true of an X509-SVID before it is given out. Reads the DER that is to leave. */
struct ca_expect {
	struct bytes issuer_raw, spki;
	const char *spiffe_id;
	struct wall not_before, not_after;
};
int ca_check_svid(struct bytes der, const struct ca_expect *x, struct err *e) MUST_USE;

/* The bundle as it ought to be: authorities long expired left out, ours that are missing put in.
 * NULL when the stored one is as it ought to be. */
struct bundle *ca_wanted_bundle(const struct ca *ca, int64_t now);
/* What operators, or the upstream, have said of an authority in the bundle: it is to leave, or it
 * is tainted (only ever set). */
bool ca_leaves(const struct ca *ca, enum ca_kind k, const char *id, bool *tainted);
/* What the bundle says of the authority of that id. */
bool ca_bundle_has(const struct ca *ca, enum ca_kind k, const char *id, bool *ret_tainted);
/* Forgets the ids that have left the bundle. */
void ca_forget_left(struct ca *ca);
/* Notes since when each authority is in the bundle. */
void ca_note_sequence(struct ca *ca);
bool ca_in_bundle(const struct ca *ca, enum ca_kind k, const struct ca_slot *s);
/* When the bundle next has something to lose; INT64_MAX: never. */
int64_t ca_next_prune(const struct ca *ca, int64_t now);

void ca_serial_decimal(const uint8_t serial[16], char ret[48]);

#endif

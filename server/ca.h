/*
 * The server's signing authorities: X.509 CA and JWT keys, prepared, activated and rotated by exact
 * timers; the journal of them; and the signing of X509-SVIDs and JWT-SVIDs.
 *
 * An authority is prepared when half of its predecessor's life is over (at most 30 days before the
 * end) and activated when one sixth of that is left (at most 7 days). It leaves the bundle some
 * time after its end: twice ca_ttl, at least 5 minutes, at most 24 hours (SPIRE: always 24 hours,
 * which with a ca_ttl of a minute leaves thousands of dead roots in every bundle). Nothing is
 * signed before the public half of the key is in the stored bundle. Key slots alternate:
 * x509-CA-A/B, JWT-Signer-A/B. Loop thread, except where a function says otherwise.
 */
#ifndef ASSAY_SERVER_CA_H
#define ASSAY_SERVER_CA_H

#include "lib/jwt.h"
#include "lib/keymgr.h"
#include "server/store.h"
#include "server/upstream.h"

struct ca;

enum ca_kind { CA_X509, CA_JWT, CA_KINDS };

struct ca_options {
	struct loop *loop;
	struct store *store;
	struct keymgr *keymgr;
	const char *trust_domain;
	enum key_type x509_key_type, jwt_key_type;
	const char *country, *organization, *common_name;
	int64_t ca_ttl_ns, x509_svid_ttl_ns, jwt_svid_ttl_ns, agent_ttl_ns;
	const char *jwt_issuer;
	bool disable_jwt;
	bool unique_id; /* workloads' subjects get one: see CredentialComposer "uniqueid" */
	struct upstream *upstream; /* who signs the CA; NULL: it signs itself. Outlives the CA */
};
/* Reads the journal (blocking). Work begins when the loop runs: until then the caller hands over
 * the stored bundle of the own trust domain, if there is one, by ca_bundle_changed(). ready(arg, e)
 * is called once: when an active authority of each kind is in the stored bundle, or when a first
 * start could not get there (the CA then does nothing more). ERR_DATA_LOSS: damaged journal;
 * ERR_PRECONDITION: made by a newer version. */
int ca_new(const struct ca_options *o, void (*ready)(void *arg, const struct err *e), void *arg,
	struct ca **ret, struct err *e) MUST_USE;
void ca_free(struct ca *ca); /* work under way ends by itself while the loop goes on */
bool ca_ready(const struct ca *ca);

/* The stored bundle of the own trust domain (borrowed; replaced with each store change); NULL when
 * there is none yet. */
struct bundle *ca_bundle(const struct ca *ca);
void ca_bundle_changed(
	struct ca *ca, struct bundle *b); /* the store's observer calls this; takes a reference */
/* fn(arg) after the active X.509 authority changed (the server renews its own SVID). */
void ca_on_activate(struct ca *ca, void (*fn)(void *arg), void *arg);
/* A counted snapshot of the active X.509 authority for signing on workers. */
struct ca_issuer;
struct ca_issuer *ca_issuer(struct ca *ca); /* a new reference; NULL before ready */
struct ca_issuer *ca_issuer_ref(struct ca_issuer *i);
void ca_issuer_unref(struct ca_issuer *i);

/* What an X509-SVID is made of. Borrowed. */
struct ca_x509_params {
	const char *spiffe_id;
	struct bytes spki;
	const char *const *dns_names;
	size_t n_dns_names;
	struct bytes subject_raw; /* n = 0: C=US, O=SPIRE, and CN = first DNS name if any */
	int64_t ttl_ns;           /* 0: the server's default for workloads */
	bool agent;               /* default is agent_ttl */
	bool workload;            /* the subject gets a unique id, if that is configured */
	struct wall now;
};
struct ca_x509_svid {
	struct buf chain; /* concatenated DER, leaf first, self-signed root left out */
	struct buf leaf;
	int64_t expires_at;
	char serial[48]; /* decimal */
};
/* Any thread. Checks its own output before it gives it out. ERR_UNAVAILABLE when the authority has
 * expired; ERR_INVALID for an id that is none, or of another trust domain. */
int ca_sign_x509_svid(struct ca_issuer *i, const struct ca_x509_params *p, struct ca_x509_svid *ret,
	struct err *e) MUST_USE;
void ca_x509_svid_deinit(struct ca_x509_svid *s);

/* Another server's CA under this one: for that key, ttl_ns 0 is ca_ttl; ret gets the certificate
 * and what leads from it to a root. Any thread. */
int ca_sign_downstream(struct ca_issuer *i, struct bytes spki, int64_t ttl_ns,
	struct x509_chain *ret, struct err *e) MUST_USE;

struct ca_jwt_issuer;
struct ca_jwt_issuer *ca_jwt_issuer(
	struct ca *ca); /* a new reference; NULL before ready or when JWT is disabled */
void ca_jwt_issuer_unref(struct ca_jwt_issuer *i);
struct ca_jwt_params {
	const char *spiffe_id;
	const char *const *aud;
	size_t n_aud;
	int64_t ttl_ns; /* 0: default */
	bool jti;
	struct wall now;
};
/* Any thread. Empty audiences are dropped; none left: ERR_INVALID. */
int ca_sign_jwt_svid(struct ca_jwt_issuer *i, const struct ca_jwt_params *p, struct buf *ret,
	int64_t *ret_iat, int64_t *ret_exp, struct err *e) MUST_USE;

/* ---- by force ---- */

/* An authority as operators see it; borrowed. id NULL: there is none. */
struct ca_authority {
	const char *id; /* X.509: subject key id in hex; JWT: key id */
	int64_t expires_at;
	const char *upstream_id; /* subject key id of who signed it; NULL: itself */
};
struct ca_state {
	struct ca_authority active, prepared, old;
};
/* ERR_UNAVAILABLE "server is initializing". */
int ca_state(const struct ca *ca, enum ca_kind k, struct ca_state *ret, struct err *e) MUST_USE;

/*
 * Beside the schedule: prepare (in place of a prepared one, which leaves the bundle), activate the
 * prepared one, taint or revoke the old one. Codes and texts are SPIRE's.
 *
 * An activation waits until all have seen the authority in the bundle, for CA_SEEN_WAIT_NS at most
 * (then ERR_PRECONDITION that names who has not), unless it is to be at once. done(arg, a, e) is
 * called exactly once, when the outcome is durable and in the stored bundle; perhaps before this
 * returns; it must not free the CA. a is NULL on failure. What failed for want of a disk is still
 * tried again.
 */
enum ca_force { CA_PREPARE, CA_ACTIVATE, CA_TAINT, CA_REVOKE };
typedef void ca_force_done(void *arg, const struct ca_authority *a, const struct err *e);
void ca_force(struct ca *ca, enum ca_force what, enum ca_kind k, const char *id, bool at_once,
	ca_force_done *done, void *arg);
/* The same (CA_TAINT, CA_REVOKE) for the upstream authority of that subject key id, which signed
 * the old authority, itself or by an intermediate. a->id is that of its root. */
void ca_force_upstream(
	struct ca *ca, enum ca_force what, const char *id, ca_force_done *done, void *arg);
#define CA_SEEN_WAIT_NS (10 * NS_PER_SEC)

/* No authority signs before its public half was seen by those who must verify it. missing: how many
 * have not seen the own bundle of that sequence; their names are added to ret, a handful at most.
 * Without one, or with no active authority, nobody is waited for. */
typedef size_t ca_missing_fn(void *arg, uint64_t sequence, struct strings *ret);
void ca_on_missing(struct ca *ca, ca_missing_fn *missing, void *arg);
void ca_seen(struct ca *ca); /* somebody has seen more */
/* The sequence of the first bundle that was known to hold that authority; 0: none. */
uint64_t ca_sequence_of(const struct ca *ca, const char *id);

/* For health: signs a throw-away SVID spiffe://td/for/health/check/only. */
int ca_self_test(struct ca *ca, struct err *e) MUST_USE;

#endif

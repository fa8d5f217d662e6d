/*
 * Node attestation: proves to the server which node this is, and comes back with the agent's SVID
 * and the trust bundle. Also where the first trust comes from, and how a server is told from an
 * impostor.
 *
 * Each attestor is a row of a table: what it says first, and how it answers challenges.
 */
#ifndef ASSAY_AGENT_ATTEST_H
#define ASSAY_AGENT_ATTEST_H

#include "agent/options.h"
#include "lib/bundle.h"
#include "lib/loop.h"
#include "lib/tls.h"

/* Both run on a worker and may read files. */
struct node_attestor {
	const char *name;
	int (*payload)(const struct agent_options *o, struct buf *ret, struct err *e);
	int (*respond)(const struct agent_options *o, struct bytes challenge, struct buf *ret,
		struct err *e); /* NULL: a challenge is an error */
	/* In place of both, for one that must listen while the conversation lasts. On the loop, and
	 * quick. open gives what is said first. */
	int (*open)(struct loop *l, const struct agent_options *o, struct buf *ret,
		void **ret_state, struct err *e);
	int (*answer)(void *state, struct bytes challenge, struct buf *ret, struct err *e);
	void (*close)(void *state);
};
extern const struct node_attestor attest_token, attest_x509pop, attest_sshpop,
	attest_http_challenge, attest_psat;
const struct node_attestor *node_attestor_of(const struct agent_options *o); /* NULL: none */

/* Who may call itself the server: the leaf has exactly the URI spiffe://<td>/spire/server, and
 * chains to the bundle. */
struct server_trust {
	const char *trust_domain;
	const struct bundle *bundle; /* NULL: only the URI is compared (insecure_bootstrap) */
	bool stranger; /* out: it has the right URI, but the bundle knows no such authority */
};
tls_verify_fn server_verify; /* arg: struct server_trust */

/* The path in "unix:///path"; NULL when it is no such address. */
const char *workload_api_path(const char *address);

/* "host:port", as ":authority" and logs have it; caller frees. */
char *server_authority(const struct agent_options *o);

/* The bundle to begin with: from the file or URL that the options name, or NULL with
 * insecure_bootstrap. done may not be called before this returns. */
struct bootstrap;
struct bootstrap *bootstrap_start(struct loop *l, const struct agent_options *o,
	void (*done)(void *arg, struct bundle *b, const struct err *e), void *arg);
/* The same, telling the source at trust_bundle_unix_socket who asks, as SPIRE's agent does. */
struct bootstrap_ask {
	bool again; /* not for the first time */
	int attempts;
	int64_t started; /* Unix seconds */
};
struct bootstrap *bootstrap_start_as(struct loop *l, const struct agent_options *o,
	const struct bootstrap_ask *ask,
	void (*done)(void *arg, struct bundle *b, const struct err *e), void *arg);
void bootstrap_cancel(struct bootstrap *b);

struct attest_result {
	struct x509_chain svid;
	bool reattestable;
	struct bundle *bundle;
};

/* One conversation: AttestAgent, then GetBundle on the same connection, which has no client
 * certificate. bundle: whom to trust, NULL for insecure. done gets a result (borrowed) or an error;
 * e->code is the server's. definite: the server has refused for good. */
struct attest;
struct attest *attest_start(struct loop *l, const struct agent_options *o, struct key *key,
	struct bundle *bundle,
	void (*done)(void *arg, const struct attest_result *r, const struct err *e, bool definite),
	void *arg);
void attest_cancel(struct attest *a);
/* In done(): it failed because the bundle does not vouch for the server. */
bool attest_met_stranger(const struct attest *a);

/* cert_chain of an answer; checks that it is an X509-SVID of the trust domain for this key. */
int attest_check_svid(const struct bytes *certs, size_t n, const char *trust_domain,
	const struct key *key, struct x509_chain *ret, struct err *e) MUST_USE;

#endif

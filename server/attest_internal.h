/* What the node attestors share among themselves. */
#ifndef ASSAY_SERVER_ATTEST_INTERNAL_H
#define ASSAY_SERVER_ATTEST_INTERNAL_H

#include "lib/http.h"
#include "lib/pattern.h"
#include "lib/ssh.h"
#include "lib/template.h"
#include "server/attest.h"

/* One kind of attestor. */
struct attestor {
	const char *type;
	/* Makes the session's state (s->state) and its first step. */
	void (*begin)(struct attest_session *s, struct bytes payload);
	void (*respond)(struct attest_session *s, struct bytes response); /* NULL: no challenges */
	void (*free_state)(void *state);
	/* Stops what is under way and would call attest_step_*(). False: it cannot be stopped.
	 * NULL: never can. */
	bool (*cancel)(struct attest_session *s);
};
extern const struct attestor attestor_join_token;
extern const struct attestor attestor_x509pop;
extern const struct attestor attestor_sshpop;
extern const struct attestor attestor_http_challenge;
extern const struct attestor attestor_k8s_psat;

struct x509pop;
struct sshpop;
struct http_challenge;
struct psat;

struct attest {
	struct attest_options o;
	bool join_token;
	struct x509pop *x509pop; /* NULL: not configured */
	struct sshpop *sshpop;
	struct http_challenge *http_challenge;
	struct psat *psat;
};

struct attest_session {
	struct attest *attest;
	const struct attestor *kind;
	char *address;
	attest_fn *fn; /* NULL once ended: what is under way then only frees the session */
	void *arg;
	void *state;
	bool first_use; /* see struct attest_step */
	bool busy;      /* a job or a write is under way that will call attest_step_*() */
};

/* The end of a step: exactly one of them for each begin and respond, never from inside those. */
void attest_step_challenge(struct attest_session *s, struct bytes challenge);
void attest_step_done(struct attest_session *s, const char *agent_id,
	const struct selectors *selectors, bool reattestable);
void attest_step_failed(struct attest_session *s, const struct err *e);

/* Calls fn(s) from the loop soon. */
void attest_later(struct attest_session *s, void (*fn)(struct attest_session *s));

/* ---- x509pop: what does not need a loop ---- */

struct x509pop {
	char *trust_domain;
	struct x509_chain roots;
	struct ca *ca; /* mode spiffe: not NULL */
	char *path_template;
	char *svid_prefix; /* mode spiffe */
	bool verify_client_ip;
	size_t max_intermediates;
	int max_rsa_bits;
};
int x509pop_new(const struct attest_options *o, struct x509pop **ret, struct err *e) MUST_USE;
void x509pop_free(struct x509pop *p);

struct x509pop_state {
	const struct x509pop *config;
	struct x509_chain chain; /* as presented */
	struct x509_chain path;  /* as verified, root last */
	uint8_t nonce[ATTEST_NONCE];
	/* result */
	char *agent_id;
	struct selectors selectors;
};
void x509pop_state_deinit(struct x509pop_state *st);
/* Any thread. The payload, checked against roots; gives the challenge. Errors carry the code and
 * text of the verdict. */
int x509pop_challenge(struct x509pop_state *st, const struct x509_chain *roots,
	struct bytes payload, const char *address, struct wall now, struct buf *ret_challenge,
	struct err *e) MUST_USE;
/* Any thread. The response to it; on success the result is in st. */
int x509pop_verify(struct x509pop_state *st, struct bytes response, struct err *e) MUST_USE;

/* ---- sshpop: what does not need a loop ---- */

struct sshpop {
	char *trust_domain;
	struct buf authorities; /* SHA-256 of each trusted key, one behind the other */
	char *canonical_domain; /* "": none */
	char *path_template;
};
int sshpop_new(const struct attest_options *o, struct sshpop **ret, struct err *e) MUST_USE;
void sshpop_free(struct sshpop *p);

struct sshpop_state {
	const struct sshpop *config;
	struct ssh_cert cert;
	char *hostname; /* the first principal, without the canonical domain */
	uint8_t nonce[ATTEST_NONCE];
	char *agent_id; /* the result */
};
void sshpop_state_deinit(struct sshpop_state *st);
/* As x509pop_challenge() and x509pop_verify(). */
int sshpop_challenge(struct sshpop_state *st, struct bytes payload, struct wall now,
	struct buf *ret_challenge, struct err *e) MUST_USE;
int sshpop_verify(struct sshpop_state *st, struct bytes response, struct err *e) MUST_USE;

/* ---- http_challenge: what does not need a loop ---- */

struct http_challenge {
	char *trust_domain;
	struct pattern **patterns; /* of host names; none: any */
	size_t n_patterns;
	int required_port; /* 0: any */
	bool allow_non_root_ports, tofu;
};
int http_challenge_new(
	const struct attest_options *o, struct http_challenge **ret, struct err *e) MUST_USE;
void http_challenge_free(struct http_challenge *h);

enum { HTTP_CHALLENGE_NONCE = 44 }; /* characters of base64url, padded */
struct http_challenge_state {
	const struct http_challenge *config;
	char *hostname;
	char *url;
	bool not_local; /* the name may not lead to this host */
	char nonce[HTTP_CHALLENGE_NONCE + 1];
	char *agent_id; /* the result, if the nonce is found */
	struct selectors selectors;
	struct http_get *get;
};
void http_challenge_state_deinit(struct http_challenge_state *st);
/* The payload; gives the challenge. Errors carry the code and text of the verdict. */
int http_challenge_begin(struct http_challenge_state *st, struct bytes payload,
	struct buf *ret_challenge, struct err *e) MUST_USE;
/* What the agent's HTTP server said. ERR_DENIED. */
int http_challenge_check(const struct http_challenge_state *st, int status, struct bytes body,
	struct err *e) MUST_USE;

/* ---- k8s_psat: what does not need a loop ---- */

void psat_new(const struct attest_options *o, struct psat **ret);
void psat_free(struct psat *p);
/* The cluster that an agent names, and its token (caller wipes and frees). */
int psat_payload(const struct psat *p, struct bytes payload, const struct psat_cluster **ret,
	char **ret_token, struct err *e) MUST_USE;

/* Agent path templates, in Go's text/template with sprig's functions; a missing key is an error.
 * type describes data. ERR_INVALID, ERR_EXHAUSTED. */
int attest_template_expand(const char *tmpl, json_t *data, const struct template_type *type,
	struct buf *ret, struct err *e) MUST_USE;
/* Begins with a slash, can be read, and names no field that there is not. ERR_INVALID. */
int attest_template_check(
	const char *tmpl, const struct template_type *type, struct err *e) MUST_USE;
/* What those of x509pop have: .PluginName, .Fingerprint, .TrustDomain, .SerialNumber,
 * .SerialNumberHex, .SVIDPathTrimmed, .Subject.CommonName, .DNSNames, .URISanSelectors.<key>. */
extern const struct template_type x509pop_template_type;

#endif

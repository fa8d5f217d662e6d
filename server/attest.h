/*
 * Node attestation: who is this agent? A table of attestors, each of which turns the payload of an
 * AttestAgent call, and the answers to its challenges, into an agent id and selectors.
 *
 * A session is one agent's attempt. Its callback is called on the loop, never from inside
 * attest_begin() or attest_respond(), once for each step.
 */
#ifndef ASSAY_SERVER_ATTEST_H
#define ASSAY_SERVER_ATTEST_H

#include "lib/entry.h"
#include "lib/loop.h"
#include "lib/x509.h"
#include "server/ca.h"
#include "server/options.h"
#include "server/store.h"

enum {
	ATTEST_PAYLOAD_MAX = 256 << 10,
	ATTEST_NONCE = 32,
	ATTEST_TEMPLATE_MAX = 1024,
};

struct attest;
struct attest_session;

struct attest_options {
	struct loop *loop;
	struct store *store;
	struct ca *ca; /* x509pop in mode "spiffe" trusts the own bundle */
	const char *trust_domain;
	const struct server_options *config;
};
/* Reads the attestors' files. ERR_INVALID, ERR_NOT_FOUND with the file's name. */
int attest_new(const struct attest_options *o, struct attest **ret, struct err *e) MUST_USE;
void attest_free(struct attest *a); /* sessions must have ended */

struct attest_step {
	struct bytes challenge; /* n > 0: to be answered by attest_respond() */
	/* else, with e->code 0, the result, borrowed */
	const char *agent_id;
	const struct selectors *selectors;
	bool reattestable;
	bool first_use; /* to be refused when the agent is known already */
};
typedef void attest_fn(void *arg, const struct attest_step *step, const struct err *e);

/* address: the agent's, without the port. ERR_PRECONDITION when the type is not configured. */
int attest_begin(struct attest *a, const char *type, struct bytes payload, const char *address,
	attest_fn *fn, void *arg, struct attest_session **ret, struct err *e) MUST_USE;
void attest_respond(struct attest_session *s, struct bytes response);
/* Also while a step is under way, whose callback then never comes. NULL is fine. */
void attest_end(struct attest_session *s);

#endif

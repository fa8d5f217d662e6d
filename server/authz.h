/*
 * Who may call what: one table of all methods of the server's API, and the check of a caller
 * against it.
 *
 * A caller is a peer of the front door: on the Unix socket it is local; over TCP it is whom its
 * X509-SVID names, or nobody. The checks run from cheap to dear: anybody, local, admin by
 * configuration, admin by entry, downstream by entry, agent. Everything is read from memory. Loop
 * thread.
 */
#ifndef ASSAY_SERVER_AUTHZ_H
#define ASSAY_SERVER_AUTHZ_H

#include "lib/door.h"
#include "lib/rpc.h"
#include "server/entries.h"
#include "server/store.h"

enum authz_class { /* bits: who may call a method */
	AUTHZ_ANY = 1 << 0,
	AUTHZ_LOCAL = 1 << 1,
	AUTHZ_ADMIN = 1 << 2,
	AUTHZ_DOWNSTREAM = 1 << 3,
	AUTHZ_AGENT = 1 << 4,
};

struct authz_method {
	const char *method; /* "/package.Service/Method" */
	unsigned allowed;   /* bits of enum authz_class */
	bool unix_only;     /* does not exist on TCP: UNIMPLEMENTED there */
};
/* NULL when the table does not know it. */
const struct authz_method *authz_find(const char *method);
/* All of it, for tests and documents. */
const struct authz_method *authz_table(size_t *ret_n);

struct authz_options {
	struct store *store; /* NULL: serials are never promoted (tests) */
	const struct entries *entries;
	const struct strings *admin_ids; /* SPIFFE IDs; borrowed */
};
struct authz;
struct authz *authz_new(const struct authz_options *o);
void authz_free(struct authz *a);

/* The verdict. as: the one class by which the caller came in, 0 when refused. reason: number of
 * spire.api.types.PermissionDeniedDetails.Reason, 0 when the refusal is not about the agent. detail
 * says why, for the log only (the caller gets e's text). */
struct authz_verdict {
	unsigned as;
	int reason;
	char detail[400];
};
/*
 * 0, or ERR_DENIED "authorization denied for method /…" (v->reason tells about agents),
 * ERR_UNIMPLEMENTED "unknown service …" / "unknown method … for service …". The first use of an
 * agent's renewed SVID makes it the agent's only one.
 */
int authz_check(struct authz *a, const struct peer *p, const char *method, struct authz_verdict *v,
	struct err *e) MUST_USE;
/* As rpc_server_options.authorize, arg being the struct authz: answers the call when refused, with
 * the details message where there is a reason. Logs refusals at debug; the caller may use
 * authz_check() and authz_answer() instead to log by itself. */
bool authz_rpc(void *authz, struct rpc_call *c, const char *method);
void authz_answer(struct rpc_call *c, const struct authz_verdict *v, const struct err *e);

/* "nobody", "local", "admin", "downstream", "agent": for logs and audit records. */
const char *authz_class_name(unsigned as);

#endif

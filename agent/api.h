/*
 * What the agent serves: the Workload API and health on the public socket, the operator's services
 * on the admin socket.
 */
#ifndef ASSAY_AGENT_API_H
#define ASSAY_AGENT_API_H

#include "agent/cache.h"
#include "agent/jwtcache.h"
#include "agent/limits.h"
#include "agent/options.h"
#include "agent/sync.h"
#include "agent/workload.h"

struct api {
	struct loop *loop;
	const struct agent_options *options;
	struct cache *cache;
	struct jwtcache *jwt;
	struct sync *sync;
	struct workload *workload;
	struct limits *limits; /* NULL: none */
	struct mono started;
	enum log_level launch_level;
};

/* Services to be added to a server; they live as long as the program. */
void api_workload_add(struct rpc_server *s, struct api *a);
void api_sds_add(struct rpc_server *s, struct api *a);
void api_delegated_add(struct rpc_server *s, struct api *a);
void api_broker_add(struct rpc_server *s, struct api *a);
void api_health_add(struct rpc_server *s, struct api *a);
void api_admin_add(struct rpc_server *s, struct api *a);

/* Hooks of the servers; arg: struct api. */
bool api_public_authorize(void *arg, struct rpc_call *c, const char *method);
bool api_admin_authorize(void *arg, struct rpc_call *c, const char *method);
bool api_broker_authorize(void *arg, struct rpc_call *c, const char *method);
void api_finished(void *arg, struct rpc_call *c, const char *method, int code, const char *message,
	int64_t elapsed_ns);

bool api_healthy(const struct api *a);
/* Gauges of entries, SVIDs, sync; counters of calls. */
void api_metrics(struct api *a);

/* The encoded answer for a view; NULL when it cannot be given yet. Borrowed. (api_payload.c) */
struct rpc_payload *view_payload(struct view *v, enum view_kind k);
/* For each bundle that a view's callers may have: own first, then federated. */
void view_each_bundle(struct view *v, void (*fn)(void *arg, const struct bundle *b), void *arg);

/* The Workload API's JWT half (api_jwt.c). */
void api_fetch_jwt(struct rpc_call *c, const ProtobufCMessage *req);
void api_validate_jwt(struct rpc_call *c, const ProtobufCMessage *req);
/* Attests, and gives a view; fails the call itself when that does not work. The view is the
 * callee's. c is held meanwhile. */
void api_attest(
	struct rpc_call *c, void (*fn)(void *arg, struct rpc_call *c, struct view *v), void *arg);
void api_no_identity(struct rpc_call *c, const struct view *v);

/* JWT-SVIDs for the caller of a unary call, one for each fitting entry of a view (api_tokens.c). */
struct api_token {
	char *spiffe_id, *hint, *text;
};
struct api_tokens_wanted {
	const struct strings *audience;
	const char *spiffe_id; /* NULL, "": all */
	bool others;           /* for somebody else, who gets no admin's and no downstream's */
};
typedef void api_tokens_reply(struct rpc_call *c, const struct api_token *v, size_t n);
/* False, and nothing done, when no entry fits. Else the call is answered by fn(), or failed, once
 * all are there; maybe before this returns. */
bool api_tokens(struct rpc_call *c, struct api *a, const struct view *v,
	const struct api_tokens_wanted *w, api_tokens_reply *fn);
/* Looks at the request; fails the call when it is no good. */
bool api_tokens_asked_well(struct rpc_call *c, size_t n_audience, const char *spiffe_id);

#endif

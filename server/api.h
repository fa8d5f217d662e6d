/*
 * What the server's gRPC services share: the parts that they work on, conversions between wire and
 * memory, masks, per-item status, audit records.
 *
 * Messages made here are made of malloc'ed parts, so that protobuf_c_message_free_unpacked() frees
 * them whole. Texts are those that SPIRE's clients see. Loop thread, except where a function says
 * otherwise.
 */
#ifndef ASSAY_SERVER_API_H
#define ASSAY_SERVER_API_H

#include "lib/bundle.h"
#include "lib/log.h"
#include "lib/map.h"
#include "lib/rpc.h"
#include "lib/spiffeid.h"
#include "server/attest.h"
#include "server/authz.h"
#include "server/ca.h"
#include "server/entries.h"
#include "server/ratelimit.h"
#include "server/store.h"
#include "server/svid.h"
#include "server/witness.h"

#include "spire/api/types/agent.pb-c.h"
#include "spire/api/types/bundle.pb-c.h"
#include "spire/api/types/entry.pb-c.h"
#include "spire/api/types/selector.pb-c.h"
#include "spire/api/types/spiffeid.pb-c.h"
#include "spire/api/types/status.pb-c.h"
#include "spire/api/types/x509svid.pb-c.h"

enum {
	API_HINT_MAX = 1024,
	API_ENTRY_ID_MAX = 255,
	API_AGENT_VERSION_MAX = 255,
	API_BATCH_MAX = 10000,          /* items of one batch call */
	API_SELECTORS_MAX = 1000,       /* of one entry or filter */
	API_SYNC_PAGE = 500,            /* entries of one page of SyncAuthorizedEntries */
	API_REPLY_BYTES_MAX = 3 << 20,  /* a list goes on in a further page beyond this */
	API_WATCH_PAGE_BYTES = 1 << 20, /* one page of Sync.Watch */
	API_AUDIT_FIELDS_MAX = 8,       /* pairs given to api_audit */
};

struct sync_hub;
struct federation;
struct controller;

/* The parts of the server that the services work on; all borrowed, set once by the composition
 * root. */
struct api {
	struct loop *loop;
	struct store *store;
	struct entries *entries;
	struct ca *ca;
	struct upstream *upstream; /* NULL: the CA signs itself */
	struct authz *authz;
	struct ratelimit *limits;
	struct attest *attest;
	struct server_svid *svid;
	struct sync_hub *sync;
	struct federation *federation;
	struct witness *witness;
	struct controller *controller; /* NULL: none */
	const char *trust_domain;
	struct map
		*bundles; /* trust domain name → struct bundle, one reference each; own included */
	bool audit;
	bool jwt_disabled;
	bool agent_id_as_selector;
	enum log_level launch_level;
	struct mono started;
};

/* The tables of the services; data of each is a struct api. */
struct rpc_service api_agent_service(struct api *a);
struct rpc_service api_entry_service(struct api *a);
struct rpc_service api_bundle_service(struct api *a);
struct rpc_service api_svid_service(struct api *a);
struct rpc_service api_sync_service(struct api *a);
struct rpc_service api_trustdomain_service(struct api *a);
struct rpc_service api_local_authority_service(struct api *a); /* SPIRE's */
struct rpc_service api_authority_service(struct api *a);       /* what is ours beside it */
struct rpc_service api_controller_service(struct api *a);      /* ours */
/* Methods of the agent service (api_attest.c). */
void api_attest_agent(struct rpc_call *c, const ProtobufCMessage *req);
void api_renew_agent(struct rpc_call *c, const ProtobufCMessage *req);
/* NewDownstreamX509CA, of the SVID service (api_downstream.c). */
void api_new_downstream(struct rpc_call *c, const ProtobufCMessage *req);
/* SyncAuthorizedEntries, of the entry service (api_entry_sync.c). */
void api_entry_sync(struct rpc_call *c, const ProtobufCMessage *req);
/* Methods of the bundle service (api_bundle_federated.c). */
void api_list_federated(struct rpc_call *c, const ProtobufCMessage *req);
void api_get_federated(struct rpc_call *c, const ProtobufCMessage *req);
void api_create_federated(struct rpc_call *c, const ProtobufCMessage *req);
void api_update_federated(struct rpc_call *c, const ProtobufCMessage *req);
void api_set_federated(struct rpc_call *c, const ProtobufCMessage *req);
void api_delete_federated(struct rpc_call *c, const ProtobufCMessage *req);
/* On the Unix socket only. */
struct rpc_service api_debug_service(struct api *a);
struct rpc_service api_logger_service(struct api *a);
struct rpc_service api_health_service(struct api *a);

/* The store's observer tells: another bundle, or (NULL) none any more. */
void api_bundle_changed(struct api *a, const char *trust_domain, struct bundle *b);
struct bundle *api_bundle(const struct api *a, const char *trust_domain); /* borrowed; NULL: none */

/* Ready to serve: bundle, CA and own SVID are there and the CA signs; else e says what is missing.
 */
bool api_ready(const struct api *a, struct err *e);

/* The push streams (api_sync.c). */
struct sync_hub *sync_hub_new(struct api *a);
void sync_hub_free(struct sync_hub *h); /* after the RPC server has stopped */
void sync_hub_bundle_changed(struct sync_hub *h, const char *trust_domain);
void sync_hub_node_changed(
	struct sync_hub *h, const char *spiffe_id, const struct node *n); /* NULL: deleted */
size_t sync_hub_streams(const struct sync_hub *h);
/* Agents with a stream that have not acknowledged the own bundle's present sequence. */
size_t sync_hub_behind(const struct sync_hub *h);

/* ---- calls ---- */

/* Answers with m and frees it. */
void api_reply(struct rpc_call *c, void *m);
/* Takes n tokens of the caller's; calls next(c, req) now or later, or answers the call itself. req
 * (NULL on a bidirectional call) is taken from the call and belongs to next; while the caller waits
 * the call's user and on_end are ours. */
void api_limited(struct rpc_call *c, const ProtobufCMessage *req, enum ratelimit_kind k, size_t n,
	void (*next)(struct rpc_call *c, ProtobufCMessage *req));
/* The agent (or other TLS client) that calls; "" on the Unix socket. */
const char *api_caller(const struct rpc_call *c);
/* An audit record, if they are on: service, method, caller, status, and pairs of strings ended by
 * NULL (a NULL value is left out). */
void api_audit(const struct api *a, struct rpc_call *c, int code, const char *message, ...)
	__attribute__((sentinel));
/* The RPC server's finished hook: metrics, log, audit of failures. arg: struct api. */
void api_finished(void *arg, struct rpc_call *c, const char *method, int code, const char *message,
	int64_t elapsed_ns);
/* SPIRE's metric key of a method: "/spire.api.server.agent.v1.Agent/AttestAgent" is
 * "agent_v1_agent_attest_agent". Caller frees. */
char *api_metric_key(const char *method);

/* ---- messages ---- */

void *pb_new(const ProtobufCMessageDescriptor *d);
char *pb_str(const char *s); /* NULL is "" */
void pb_set_bytes(ProtobufCBinaryData *ret, struct bytes v);
/* Appends to a repeated field of pointers. */
void pb_append(void *array, size_t *n, void *item);
Spire__Api__Types__SPIFFEID *pb_id(const char *spiffe_id);
Spire__Api__Types__Status *pb_status(int code, const char *fmt, ...) PRINTF_LIKE(2, 3);
Spire__Api__Types__Status *pb_ok(void);
/* "text: inner", but only text for NOT_FOUND, as SPIRE hides the inner error there. */
Spire__Api__Types__Status *pb_status_wrap(int code, const char *text, const char *inner);
Spire__Api__Types__X509SVID *pb_x509_svid(const char *spiffe_id, const struct ca_x509_svid *s);
Spire__Api__Types__Agent *pb_agent(const struct node *n, const Spire__Api__Types__AgentMask *m);
Spire__Api__Types__Entry *pb_entry(const struct entry *en, const Spire__Api__Types__EntryMask *m);
/* b may be NULL only with a panic. */
Spire__Api__Types__Bundle *pb_bundle(
	const struct bundle *b, const Spire__Api__Types__BundleMask *m);

/* ---- what clients send ---- */

enum api_id_kind { API_ID_ANY, API_ID_MEMBER, API_ID_WORKLOAD, API_ID_AGENT };
/* ERR_INVALID with SPIRE's text: the id is of the trust domain, has a path, and (a workload's) is
 * not under the reserved /spire, (an agent's) is under /spire/agent. */
int api_id_parse(struct spiffeid *ret, const Spire__Api__Types__SPIFFEID *m, enum api_id_kind k,
	const char *trust_domain, struct err *e) MUST_USE;
int api_id_check(const struct spiffeid *id, enum api_id_kind k, const char *trust_domain,
	struct err *e) MUST_USE;
/* Normalized. ERR_INVALID. */
int api_selectors_parse(struct selectors *ret, Spire__Api__Types__Selector *const *v, size_t n,
	struct err *e) MUST_USE;
/* A DNS name as an entry or a CSR may have it: labels of letters, digits, hyphens and underscores,
 * at most one wildcard, as the whole first label. ERR_INVALID. */
int api_dns_check(const char *name, struct err *e) MUST_USE;
/* No name is covered by a wildcard name beside it. ERR_INVALID. */
int api_dns_check_overlap(const struct strings *names, struct err *e) MUST_USE;
/* The entry that a client wants to create (mask NULL) or update; checks what SPIRE checks. The
 * fields that the mask leaves out are empty. ERR_INVALID. */
int api_entry_parse(struct entry *ret, const Spire__Api__Types__Entry *m,
	const Spire__Api__Types__EntryMask *mask, const char *trust_domain, struct err *e) MUST_USE;
/* What SPIRE's database layer refuses of an entry to be created (or, in a mask's bits, updated):
 * ids, TTLs, selectors of stored SVIDs. ERR_INVALID. */
int api_entry_check(const struct entry *en, unsigned mask, struct err *e) MUST_USE;
unsigned api_entry_mask(const Spire__Api__Types__EntryMask *m); /* NULL: ENTRY_ALL */
/* "2006-01-02 15:04:05 -0700 -07" as Unix seconds; 0 when it is anything else. */
int64_t api_time_parse(const char *s);

#endif

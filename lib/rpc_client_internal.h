/* What rpc_client.c (connections), rpc_unary.c and rpc_stream.c (calls) share. */
#ifndef ASSAY_LIB_RPC_CLIENT_INTERNAL_H
#define ASSAY_LIB_RPC_CLIENT_INTERNAL_H

#include "lib/rpc_internal.h"

struct client_conn;

/*
 * One call, unary or stream, from its request until its callback has run and no event is
 * outstanding. It waits for a connection, then runs on it; either may be cut short.
 */
struct client_call {
	struct list node; /* in the client's waiting or running */
	struct rpc_client *client;
	struct client_conn *conn;
	grpc_call *call;
	char *method;
	grpc_metadata *metadata;
	size_t n_metadata;
	struct mono deadline; /* ns 0: none */
	struct loop_timer *timer;
	bool fail_fast;
	bool told;   /* the caller has had its last callback */
	int pending; /* outstanding events */

	struct rpc_tag fail_tag; /* a failure that was settled before any batch */
	struct err failure;

	/* begin: there is a connection, call is made: start the batches.
	 * end: tell the caller; free: the memory. */
	void (*begin)(struct client_call *c);
	void (*end)(struct client_call *c, const struct rpc_status *st);
	void (*free)(struct client_call *c);
};

void client_call_init(struct client_call *c, struct rpc_client *cl, const char *method,
	const char *const *metadata, int timeout_ms, bool fail_fast);
/* Begins at once, or waits; failures come later, never from inside. */
void client_call_start(struct client_call *c);
void client_call_batch(struct client_call *c, const grpc_op *ops, size_t n, struct rpc_tag *t);
/* An event of it came in; true when it was the last and c is gone. */
bool client_call_event(struct client_call *c);
/* A message came: the connection is a good one, though the call goes on. */
void client_call_heard(struct client_call *c);
/* Tells the caller, once. */
void client_call_end(struct client_call *c, const struct rpc_status *st);
void client_call_fail_later(struct client_call *c, int code, const char *msg);

/* What gRPC fills in when a call is over. */
struct client_result {
	grpc_metadata_array initial;
	grpc_metadata_array trailing;
	grpc_status_code code;
	grpc_slice message;
};
void client_result_init(struct client_result *r);
void client_result_deinit(struct client_result *r);
void client_result_op_status(struct client_result *r, grpc_op *op);
void client_result_op_initial(struct client_result *r, grpc_op *op);
/* The status, as the peer or the transport gave it; text must be freed. Tells the client what it
 * means for the connection. */
struct rpc_status client_result_status(
	struct client_call *c, const struct client_result *r, char **text);
/* The peer did not look at this call: it may be made again on another connection. */
bool client_result_unprocessed(const struct client_result *r);
/* Puts a call back among those that wait, as new. */
void client_call_retry(struct client_call *c);

size_t client_message_max(const struct rpc_client *cl);

/* rpc_unary() with give: done owns m. */
void client_unary(struct rpc_client *cl, const struct rpc_unary_options *o, bool give,
	void (*done)(void *arg, const struct rpc_status *st, const ProtobufCMessage *m), void *arg);

#endif

/* What rpc_server.c (connections, slots, start and stop) and rpc_call.c (one call) share. */
#ifndef ASSAY_LIB_RPC_SERVER_INTERNAL_H
#define ASSAY_LIB_RPC_SERVER_INTERNAL_H

#include "lib/map.h"
#include "lib/rpc_internal.h"

/* Calls that gRPC may fill, of one method, or (handle NULL) of all that were not registered. A
 * registered call arrives with its first message: one event less. */
struct rpc_slots {
	struct rpc_server *server;
	struct rpc_entry *entry;
	void *handle;
	int free;
	int target;
	unsigned turn; /* rpc_core_turn() of the last one filled */
	int filled;    /* in that turn */
};

struct rpc_entry { /* one "/package.Service/Method" */
	struct rpc_entry *next;
	struct rpc_service svc;
	const struct rpc_method *impl; /* NULL: not implemented */
	const ProtobufCMethodDescriptor *desc;
	char *path;
	struct rpc_slots slots;
};

struct rpc_conn { /* a connection handed to gRPC, by descriptor number */
	struct rpc_server *server;
	struct peer *peer;
	int fd;
};

struct rpc_server {
	struct loop *loop;
	struct rpc_core *core;
	struct rpc_server_options o;
	size_t message_max;
	grpc_server *srv; /* NULL before start */
	grpc_server_credentials *creds;
	struct map *methods;       /* path -> struct rpc_entry */
	struct map *services;      /* full name -> any of its entries, or &no_methods */
	struct rpc_entry *entries; /* all, newest first */
	const char **names;
	size_t n_names;
	struct rpc_conn **conns; /* [fd] */
	size_t n_conns;
	struct list calls;
	struct rpc_slots others;
	int slots; /* outstanding, of all kinds */
	struct rpc_reflection *reflection;
	bool stopping;
	bool core_stopped; /* gRPC has no call and no connection left */
	bool free_after;
	struct rpc_tag stop_tag;
	struct loop_timer *grace;
	void (*stopped)(void *arg);
	void *stopped_arg;
};

struct rpc_copy { /* metadata given out as a string */
	struct rpc_copy *next;
	char text[];
};

struct rpc_call {
	struct list node; /* in server->calls once it was delivered */
	int refs;
	struct rpc_server *server; /* NULL after the end */
	struct loop *loop;
	grpc_call *call; /* NULL after the end */
	struct rpc_slots *slots;
	const struct rpc_entry *entry; /* NULL: unknown */
	struct peer *peer;
	grpc_call_details details; /* only of calls that were not registered */
	gpr_timespec deadline;
	grpc_metadata_array meta;
	struct rpc_copy *copies;
	struct mono begun;

	struct rpc_tag new_tag;
	struct rpc_tag recv_tag;
	struct rpc_tag send_tag;
	struct rpc_tag close_tag;
	int pending; /* outstanding batches */
	grpc_byte_buffer *recv_buffer;
	grpc_byte_buffer *send_buffer;
	int cancelled; /* written by gRPC */

	bool in_start;
	bool in_recv;     /* recv_buffer is in use */
	bool close_asked; /* RECV_CLOSE_ON_SERVER is out */
	bool close_in_final;
	bool closed; /* and has come back */
	bool initial_sent;
	bool sending;     /* a message is in flight */
	bool answered;    /* the final answer is decided */
	bool status_sent; /* and is out */
	bool ended;

	int code;
	char *message;       /* may be NULL */
	struct bytes detail; /* grpc-status-details-bin, owned */
	ProtobufCMessage *request;
	void *user;
	void (*on_end)(struct rpc_call *c);
	void (*on_writable)(struct rpc_call *c);
	void (*on_read)(struct rpc_call *c, const ProtobufCMessage *m);
};

/* A call in its slot, waiting to be filled by gRPC. */
struct rpc_call *rpc_call_new(struct rpc_slots *slots, void (*filled)(struct rpc_tag *t, bool ok));
/* It was filled: finds the method and goes on from there. */
void rpc_call_begin(struct rpc_call *c);
void rpc_call_drop_slot(struct rpc_call *c); /* it never will be */
/* The server stops: ends streams. */
void rpc_call_shutdown(struct rpc_call *c);
void rpc_server_call_ended(struct rpc_server *s);

#endif

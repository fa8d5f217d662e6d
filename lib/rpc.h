/*
 * RPC: gRPC over HTTP/2 by C-core, protobuf-c messages; every callback on the loop thread.
 *
 * Server: services are tables of methods; a handler gets a call and answers it now or later.
 * Client: one connection to one target, reconnecting with back-off. gRPC itself is seen nowhere
 * else.
 */
#ifndef ASSAY_LIB_RPC_H
#define ASSAY_LIB_RPC_H

#include <protobuf-c/protobuf-c.h>

#include "lib/buf.h"
#include "lib/door.h"
#include "lib/loop.h"

enum {
	RPC_MESSAGE_MAX = 4 << 20, /* received, as gRPC's default */
	RPC_METADATA_MAX = 8192,
	RPC_MESSAGE_MAX_WORKLOAD = 64 << 10, /* requests on the agent's public socket */
	RPC_MESSAGE_MAX_ENVOY = 256 << 10,   /* there, if Envoy may come: 1.40 lists 61 KB of
						its extensions in each stream's first request */
};

/* ---- server ---- */

struct rpc_server;
struct rpc_call; /* counted: the server holds one reference until on_end has run */

enum rpc_kind { RPC_UNARY, RPC_SERVER_STREAM, RPC_BIDI };

struct rpc_method {
	const char *name; /* as in the .proto service */
	enum rpc_kind kind;
	/* req is the unpacked request, valid until start returns (rpc_call_take_request() keeps
	 * it); NULL for RPC_BIDI. */
	void (*start)(struct rpc_call *c, const ProtobufCMessage *req);
};
struct rpc_service {
	const ProtobufCServiceDescriptor *desc;
	const struct rpc_method *methods; /* those implemented; the service's other methods answer
					     UNIMPLEMENTED "method X not implemented" */
	size_t n_methods;
	void *data; /* rpc_call_data() */
};

struct rpc_server_options {
	size_t message_max; /* 0: RPC_MESSAGE_MAX */
	bool local;         /* all peers come by Unix socket: no keepalive pings needed */
	int read_chunk;     /* bytes that an idle connection keeps ready to read into; 0: as many as
			       came at once before. For many connections that say little. */
	/* Before any handler, with "/package.Service/Method": answer the call oneself (rpc_fail …)
	 * and return false to refuse. NULL: all allowed. */
	bool (*authorize)(void *arg, struct rpc_call *c, const char *method);
	/* After the end of each call, for logs and metrics. */
	void (*finished)(void *arg, struct rpc_call *c, const char *method, int code,
		const char *message, int64_t elapsed_ns);
	void *arg;
	const char *reflection_descriptors; /* non-NULL: serve grpc.reflection (v1 and v1alpha) from
					       this FileDescriptorSet */
	size_t reflection_descriptors_len;
};
int rpc_server_new(struct loop *l, const struct rpc_server_options *o, struct rpc_server **ret,
	struct err *e) MUST_USE;
void rpc_server_add(struct rpc_server *s,
	const struct rpc_service *svc); /* before start; tables are borrowed */
void rpc_server_start(struct rpc_server *s);
/* A door's on_conn: takes the fd. */
void rpc_server_conn(struct rpc_server *s, int fd, struct peer *peer);
/* Ends streams with UNAVAILABLE, waits grace_ms for unary calls, then cancels. */
void rpc_server_stop(struct rpc_server *s, int grace_ms, void (*done)(void *arg), void *arg);
void rpc_server_free(struct rpc_server *s);

struct rpc_call *rpc_call_ref(struct rpc_call *c);
void rpc_call_unref(struct rpc_call *c);
struct peer *rpc_call_peer(const struct rpc_call *c);
struct loop *rpc_call_loop(const struct rpc_call *c);
void *rpc_call_data(const struct rpc_call *c);         /* the service's data */
const char *rpc_call_method(const struct rpc_call *c); /* "/package.Service/Method" */
const char *rpc_call_metadata(const struct rpc_call *c, const char *key);  /* first value or NULL */
size_t rpc_call_metadata_count(const struct rpc_call *c, const char *key); /* values of it */
int64_t rpc_call_deadline_ns(const struct rpc_call *c); /* time left; INT64_MAX: none */
bool rpc_call_ended(const struct rpc_call
		*c); /* cancelled or answered: answering is then harmless and does nothing */
void rpc_call_set_user(struct rpc_call *c, void *user);
void *rpc_call_user(const struct rpc_call *c);
/* The request, now owned by the caller (protobuf_c_message_free_unpacked). Only inside start. */
ProtobufCMessage *rpc_call_take_request(struct rpc_call *c);
/* fn(c) once when the call is over: answered and flushed, cancelled, deadline, or connection lost.
 */
void rpc_call_on_end(struct rpc_call *c, void (*fn)(struct rpc_call *c));

/* Answers. After any final one (rpc_reply, rpc_finish, rpc_fail*) the others do nothing. */
void rpc_reply(struct rpc_call *c, const ProtobufCMessage *m); /* unary: message + OK */
void rpc_fail(struct rpc_call *c, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);
void rpc_fail_err(struct rpc_call *c, const struct err *e);
/* With a google.rpc.Status in grpc-status-details-bin that holds one Any of that type URL. */
void rpc_fail_details(
	struct rpc_call *c, int code, const char *msg, const ProtobufCMessage *detail);

/* Streams. One message may be in flight: send only while rpc_writable(); on_writable is called when
 * it becomes so again. */
struct rpc_payload; /* an encoded message, counted, shared by any number of calls */
struct rpc_payload *rpc_payload_new(const ProtobufCMessage *m);
struct rpc_payload *rpc_payload_ref(struct rpc_payload *p);
void rpc_payload_unref(struct rpc_payload *p);
size_t rpc_payload_size(const struct rpc_payload *p);
bool rpc_payload_equal(const struct rpc_payload *a, const struct rpc_payload *b);
bool rpc_writable(const struct rpc_call *c);
void rpc_send(struct rpc_call *c, const ProtobufCMessage *m);
void rpc_send_payload(struct rpc_call *c, struct rpc_payload *p); /* takes its own reference */
void rpc_reply_payload(struct rpc_call *c, struct rpc_payload *p);
void rpc_on_writable(struct rpc_call *c, void (*fn)(struct rpc_call *c));
void rpc_finish(struct rpc_call *c); /* OK; a message in flight is delivered first */
/* RPC_BIDI: asks for the next message; fn(c, m) with m = NULL at half-close. m is valid until fn
 * returns. */
void rpc_read(struct rpc_call *c, void (*fn)(struct rpc_call *c, const ProtobufCMessage *m));

/* ---- client ---- */

struct rpc_client;
struct rpc_stream;

struct rpc_client_options {
	/* Fills the options of the next dial (called for each attempt, so that certificates and
	 * addresses may change). The strings must live until done. */
	int (*dial)(void *arg, struct dial_options *o, struct err *e);
	void *arg;
	const char *authority; /* ":authority"; NULL: "localhost" */
	size_t message_max;    /* 0: RPC_MESSAGE_MAX */
	bool lazy;             /* connect on the first call only */
};
struct rpc_client *rpc_client_new(struct loop *l, const struct rpc_client_options *o);
/* Outstanding calls end with UNAVAILABLE or CANCELLED; their callbacks run before this returns or
 * soon after. */
void rpc_client_free(struct rpc_client *c);
/* New calls use a fresh connection; running ones finish on the old (after a certificate was
 * rotated). */
void rpc_client_reconnect(struct rpc_client *c);
bool rpc_client_connected(const struct rpc_client *c);

struct rpc_status {
	int code;
	const char *message;
	struct bytes details; /* grpc-status-details-bin, raw */
};
/* The detail of that type in the status, unpacked (caller frees), or NULL. */
ProtobufCMessage *rpc_status_detail(
	const struct rpc_status *st, const ProtobufCMessageDescriptor *d);

/* Waits for a connection within the deadline (fails fast with UNAVAILABLE and the dial's reason
 * when fail_fast). method: "/package.Service/Method". done gets m = NULL unless st->code is 0; m is
 * valid until done returns. Metadata: NULL-terminated key, value pairs, or NULL. */
struct rpc_unary_options {
	const char *method;
	const ProtobufCMessage *request;
	const ProtobufCMessageDescriptor *response;
	const char *const *metadata;
	int timeout_ms;
	bool fail_fast;
};
void rpc_unary(struct rpc_client *c, const struct rpc_unary_options *o,
	void (*done)(void *arg, const struct rpc_status *st, const ProtobufCMessage *m), void *arg);

/* Bidi and server-streaming calls. message(arg, m) for each message; ended(arg, st) exactly once,
 * after which the stream is gone. */
struct rpc_stream_options {
	const char *method;
	const ProtobufCMessageDescriptor *response;
	const char *const *metadata;
	int timeout_ms; /* 0: none */
	bool fail_fast;
	void (*message)(void *arg, struct rpc_stream *s, const ProtobufCMessage *m);
	void (*ended)(void *arg, struct rpc_stream *s, const struct rpc_status *st);
	void *arg;
};
struct rpc_stream *rpc_stream_open(struct rpc_client *c, const struct rpc_stream_options *o);
void rpc_stream_send(struct rpc_stream *s,
	const ProtobufCMessage *m); /* queued; at most RPC_MESSAGE_MAX waiting */
void rpc_stream_half_close(struct rpc_stream *s);
void rpc_stream_cancel(struct rpc_stream *s); /* ended() follows with CANCELLED */

/* For commands: runs the loop until the one call is done. Returns its code; *ret (caller frees) on
 * success. */
int rpc_unary_sync(struct loop *l, struct rpc_client *c, const struct rpc_unary_options *o,
	ProtobufCMessage **ret, struct err *e) MUST_USE;

#endif

/*
 * Inside lib/rpc: the completion queue that all servers and clients of a loop share, and what turns
 * messages into gRPC's byte buffers and back.
 */
#ifndef ASSAY_LIB_RPC_INTERNAL_H
#define ASSAY_LIB_RPC_INTERNAL_H

#include <grpc/byte_buffer.h>
#include <grpc/grpc.h>
#include <grpc/support/alloc.h>

#include "lib/list.h"
#include "lib/rpc.h"
#include "lib/rpc_wire.h"

/*
 * One completion queue and one thread that waits on it, per loop. The thread does nothing but hand
 * events over; fn runs on the loop. A tag is embedded in the object that waits, which keeps a
 * reference to the core until the event has come.
 */
struct rpc_tag {
	void (*fn)(struct rpc_tag *t, bool ok);
};
struct rpc_core;
struct rpc_core *rpc_core_get(struct loop *l); /* a new reference */
void rpc_core_put(struct rpc_core *core);
grpc_completion_queue *rpc_core_cq(const struct rpc_core *core);
unsigned rpc_core_turn(const struct rpc_core *core); /* the same within one delivery of events */
void rpc_core_post(struct rpc_core *core, struct rpc_tag *t); /* t->fn(t, true) soon */

struct rpc_payload {
	int refs;
	grpc_slice slice;
};
grpc_slice rpc_pack(const ProtobufCMessage *m);
grpc_byte_buffer *rpc_buffer_of(grpc_slice s); /* takes a reference of its own */
/* bb may be NULL: ERR_INTERNAL "no message". */
int rpc_unpack_buffer(const ProtobufCMessageDescriptor *d, grpc_byte_buffer *bb, size_t message_max,
	ProtobufCMessage **ret, struct err *e) MUST_USE;

struct bytes rpc_slice_bytes(const grpc_slice *s);
char *rpc_slice_str(const grpc_slice *s); /* caller frees */
void rpc_nonblocking(int fd);

#define RPC_INT_ARG(k, v)                                                                          \
	{                                                                                          \
		.type = GRPC_ARG_INTEGER, .key = (char *)(uintptr_t)(k), .value.integer = (int)(v) \
	}
#define RPC_STRING_ARG(k, v)                                                                       \
	{                                                                                          \
		.type = GRPC_ARG_STRING, .key = (char *)(uintptr_t)(k),                            \
		.value.string = (char *)(uintptr_t)(v)                                             \
	}

/* grpc.reflection for the services of s (rpc_reflection.c). */
struct rpc_reflection;
struct rpc_reflection *rpc_reflection_new(struct rpc_server *s, const char *set, size_t len);
void rpc_reflection_free(struct rpc_reflection *r);
/* The server's service names in order of adding; NULL past the end. */
const char *rpc_server_service(const struct rpc_server *s, size_t i);

#endif

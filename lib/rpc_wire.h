/*
 * Protocol Buffers wire format, as far as it must be looked at before protobuf-c unpacks it.
 *
 * protobuf-c recurses without a limit, takes a whole struct for an empty sub-message (two bytes on
 * the wire), does not check UTF-8 and cuts strings at a NUL. So each message from outside is
 * walked once by rpc_wire_check() first; it allocates nothing.
 */
#ifndef ASSAY_LIB_RPC_WIRE_H
#define ASSAY_LIB_RPC_WIRE_H

#include <protobuf-c/protobuf-c.h>

#include "lib/buf.h"

enum {
	RPC_WIRE_DEPTH_MAX = 100, /* as Google's C++ parser */
	RPC_WIRE_AMPLIFICATION =
		16, /* memory of the unpacked form per byte of the largest message */
	RPC_WIRE_BUDGET_MIN = 1 << 20 /* but at least this much */
};

/* One field. bytes is set for length-delimited ones, number for varints. */
struct wire_field {
	uint32_t tag;
	unsigned type; /* 0 varint, 1 fixed64, 2 length-delimited, 5 fixed32 */
	uint64_t number;
	struct bytes bytes;
};
/* Takes the next field off *in. False when it is malformed (*in is then unchanged). */
bool wire_next(struct bytes *in, struct wire_field *ret);

/* May v be unpacked as a d? budget: how many bytes of memory that may take. ERR_INTERNAL:
 * malformed; ERR_INVALID: a NUL in a string; ERR_EXHAUSTED: nested too deep or takes too much
 * memory. */
int rpc_wire_check(
	const ProtobufCMessageDescriptor *d, struct bytes v, size_t budget, struct err *e) MUST_USE;

/* Checks and unpacks; protobuf_c_message_free_unpacked() frees. message_max decides the budget. */
int rpc_unpack(const ProtobufCMessageDescriptor *d, struct bytes v, size_t message_max,
	ProtobufCMessage **ret, struct err *e) MUST_USE;

#endif

/*
 * Protobuf messages as JSON, by their descriptors: the mapping of
 * https://protobuf.dev/programming-guides/json with original field names and defaults written, as
 * SPIRE's commands print it: absent messages are left out, keys stand in alphabetical order.
 */
#ifndef ASSAY_LIB_PBJSON_H
#define ASSAY_LIB_PBJSON_H

#include <protobuf-c/protobuf-c.h>

#include "lib/buf.h"

/* One line, without its end. */
void pbjson_write(const ProtobufCMessage *m, struct buf *ret);
/* [a, b, …] on one line. */
void pbjson_write_list(const ProtobufCMessage *const *m, size_t n, struct buf *ret);

#endif

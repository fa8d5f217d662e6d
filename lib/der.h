/*
 * DER (X.690): a strict, bounded reader and a writer. No recursion, no allocation in the reader; a
 * body that is read points into the input.
 *
 * A reader takes elements from the front of `in` and returns false, with `in` untouched, when what
 * is there is not the element asked for: wrong tag, length that is not minimal or passes the end.
 */
#ifndef ASSAY_LIB_DER_H
#define ASSAY_LIB_DER_H

#include <stdbool.h>

#include "lib/buf.h"

enum der_tag {
	DER_BOOLEAN = 0x01,
	DER_INTEGER = 0x02,
	DER_BIT_STRING = 0x03,
	DER_OCTET_STRING = 0x04,
	DER_NULL = 0x05,
	DER_OID = 0x06,
	DER_UTF8_STRING = 0x0c,
	DER_PRINTABLE_STRING = 0x13,
	DER_TELETEX_STRING = 0x14,
	DER_IA5_STRING = 0x16,
	DER_UTC_TIME = 0x17,
	DER_GENERALIZED_TIME = 0x18,
	DER_BMP_STRING = 0x1e,
	DER_SEQUENCE = 0x30,
	DER_SET = 0x31,
};
#define DER_CONTEXT(n) (0x80 | (n))             /* primitive */
#define DER_CONTEXT_CONSTRUCTED(n) (0xa0 | (n)) /* constructed */

/* A dotted OID's contents, as a struct bytes: DER_BYTES(0x55, 0x04, 0x03). */
#define DER_BYTES(...)                                                                             \
	bytes_of((const uint8_t[]){ __VA_ARGS__ }, sizeof((const uint8_t[]){ __VA_ARGS__ }))

/* Any element; tag numbers above 30 are refused. */
bool der_next(struct bytes *in, uint8_t *ret_tag, struct bytes *ret_body);
bool der_get(struct bytes *in, uint8_t tag, struct bytes *ret_body);
/* As der_get; also gives the whole element with its header. */
bool der_get_whole(struct bytes *in, uint8_t tag, struct bytes *ret_body, struct bytes *ret_whole);
bool der_peek(struct bytes in, uint8_t tag); /* the next element has this tag */
/* A non-negative INTEGER in minimal form; leading zero removed (zero itself: n = 1, value 0). */
bool der_get_uint(struct bytes *in, struct bytes *ret);
bool der_get_small(struct bytes *in, unsigned *ret); /* of at most 31 bits */
bool der_get_bool(struct bytes *in, bool *ret);      /* 0x00 or 0xff only, X.690 11.1 */
/* Padding bits must be zero (X.690 11.2.2). */
bool der_get_bits(struct bytes *in, struct bytes *ret, unsigned *ret_unused);

/* Writing, by appending. der_open() begins a constructed element, der_close() with its result ends
 * it. */
size_t der_open(struct buf *b, uint8_t tag);
void der_close(struct buf *b, size_t mark);
void der_put(struct buf *b, uint8_t tag, struct bytes body);
void der_put_uint(struct buf *b, struct bytes big_endian);
void der_put_small(struct buf *b, unsigned v);
void der_put_bool(struct buf *b, bool v);
void der_put_bits(struct buf *b, struct bytes bits); /* whole bytes */

#endif

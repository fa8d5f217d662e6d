/*
 * Byte buffer with a hard maximum, and the read-only view `struct bytes`.
 *
 * A buffer grows by itself up to its maximum; an append beyond it changes nothing but the buffer's
 * `failed` flag, which sticks, so that a row of appends needs one check at its end. A buffer marked
 * secret is wiped whenever its memory is given back.
 */
#ifndef ASSAY_LIB_BUF_H
#define ASSAY_LIB_BUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/err.h"
#include "lib/mem.h"

/* A view: borrows memory that somebody else owns. p may be NULL if n is 0. */
struct bytes {
	const uint8_t *p;
	size_t n;
};

struct bytes bytes_of(const void *p, size_t n);
struct bytes bytes_str(const char *s); /* without the final zero */
bool bytes_equal(struct bytes a, struct bytes b);
int bytes_compare(struct bytes a, struct bytes b); /* as memcmp; a prefix sorts first */

struct buf {
	uint8_t *p; /* owned; a zero byte always follows the contents once anything was written */
	size_t len;
	size_t cap;
	size_t max;
	bool secret;
	bool failed;
};

#define BUF_MAX_DEFAULT ((size_t)64 << 20)
#define BUF_INIT ((struct buf){ .max = BUF_MAX_DEFAULT })
#define BUF_INIT_MAX(m) ((struct buf){ .max = (m) })
#define BUF_INIT_SECRET ((struct buf){ .max = BUF_MAX_DEFAULT, .secret = true })

void buf_deinit(
	struct buf *b); /* frees (and wipes) the contents; b is then empty and may be used again */
void buf_reset(struct buf *b); /* empties, keeps the memory (wiped when secret), clears failed */

/* Each returns false, and sets b->failed, if the maximum would be passed (or failed is already
 * set). */
bool buf_reserve(struct buf *b, size_t more);
bool buf_append(struct buf *b, const void *p, size_t n);
bool buf_bytes(struct buf *b, struct bytes v);
bool buf_byte(struct buf *b, uint8_t c);
bool buf_str(struct buf *b, const char *s);
bool buf_printf(struct buf *b, const char *fmt, ...) PRINTF_LIKE(2, 3);

void buf_consume(struct buf *b, size_t n); /* drops the first n bytes */
struct bytes buf_view(const struct buf *b);
const char *buf_cstr(const struct buf *b); /* never NULL; valid until the buffer changes */
char *buf_take_str(
	struct buf *b); /* hands the memory over as a zero-terminated string; the caller frees */

/* Reads a whole regular file of at most b->max bytes into b. ERR_NOT_FOUND, ERR_DENIED,
 * ERR_EXHAUSTED (too large). */
int buf_read_file(struct buf *b, const char *path, struct err *e) MUST_USE;

/* Replaces path by the bytes in one step: temporary file in the same folder, fsync, rename, fsync
 * of the folder. A crash leaves the old file or the new one. ERR_EXHAUSTED when the disk is full;
 * the old file is untouched on every failure. */
int buf_write_file(struct bytes v, const char *path, unsigned mode, struct err *e) MUST_USE;

#define AUTO_BUF __attribute__((cleanup(buf_deinit)))

#endif

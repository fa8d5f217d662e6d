#include "lib/der.h"

#include <string.h>

enum { HIGH_TAG = 0x1f, LONG_FORM = 0x80, MAX_LENGTH_BYTES = 4 };

/* X.690 10.1: the definite form, in as few bytes as possible. */
static bool get_length(struct bytes *in, size_t *ret)
{
	size_t n = 0;
	size_t count;

	if (in->n == 0)
		return false;
	count = in->p[0];
	in->p++;
	in->n--;
	if (count < LONG_FORM) {
		*ret = count;
		return count <= in->n;
	}
	count &= 0x7f;
	if (count == 0 || count > MAX_LENGTH_BYTES || count > in->n || in->p[0] == 0)
		return false;
	for (size_t i = 0; i < count; i++)
		n = n << 8 | in->p[i];
	in->p += count;
	in->n -= count;
	*ret = n;
	return n >= LONG_FORM && n <= in->n;
}

bool der_next(struct bytes *in, uint8_t *ret_tag, struct bytes *ret_body)
{
	struct bytes at = *in;
	uint8_t tag;
	size_t n;

	if (at.n < 2 || (at.p[0] & HIGH_TAG) == HIGH_TAG)
		return false;
	tag = at.p[0];
	at.p++;
	at.n--;
	if (!get_length(&at, &n))
		return false;
	*ret_tag = tag;
	*ret_body = bytes_of(at.p, n);
	*in = bytes_of(at.p + n, at.n - n);
	return true;
}

bool der_peek(struct bytes in, uint8_t tag)
{
	return in.n != 0 && in.p[0] == tag;
}

bool der_get(struct bytes *in, uint8_t tag, struct bytes *ret_body)
{
	uint8_t got;

	return der_peek(*in, tag) && der_next(in, &got, ret_body);
}

bool der_get_whole(struct bytes *in, uint8_t tag, struct bytes *ret_body, struct bytes *ret_whole)
{
	const uint8_t *start = in->p;

	if (!der_get(in, tag, ret_body))
		return false;
	*ret_whole = bytes_of(start, (size_t)(in->p - start));
	return true;
}

bool der_get_uint(struct bytes *in, struct bytes *ret)
{
	struct bytes at = *in;
	struct bytes v;

	if (!der_get(&at, DER_INTEGER, &v) || v.n == 0 || v.p[0] & 0x80)
		return false;
	if (v.n > 1 && v.p[0] == 0) {
		v.p++;
		v.n--;
		if (!(v.p[0] & 0x80)) /* X.690 8.3.2: the first nine bits are not all zero */
			return false;
	}
	*ret = v;
	*in = at;
	return true;
}

bool der_get_small(struct bytes *in, unsigned *ret)
{
	struct bytes at = *in;
	struct bytes v;
	unsigned n = 0;

	if (!der_get_uint(&at, &v) || v.n > 4 || (v.n == 4 && v.p[0] & 0x80))
		return false;
	for (size_t i = 0; i < v.n; i++)
		n = n << 8 | v.p[i];
	*ret = n;
	*in = at;
	return true;
}

bool der_get_bool(struct bytes *in, bool *ret)
{
	struct bytes at = *in;
	struct bytes v;

	if (!der_get(&at, DER_BOOLEAN, &v) || v.n != 1 || (v.p[0] != 0 && v.p[0] != 0xff))
		return false;
	*ret = v.p[0] != 0;
	*in = at;
	return true;
}

bool der_get_bits(struct bytes *in, struct bytes *ret, unsigned *ret_unused)
{
	struct bytes at = *in;
	struct bytes v;

	if (!der_get(&at, DER_BIT_STRING, &v) || v.n == 0 || v.p[0] > 7)
		return false;
	if (v.p[0] && (v.n == 1 || v.p[v.n - 1] & ((1u << v.p[0]) - 1)))
		return false;
	*ret_unused = v.p[0];
	*ret = bytes_of(v.p + 1, v.n - 1);
	*in = at;
	return true;
}

static size_t put_length(uint8_t *p, size_t n)
{
	size_t count = 0;

	if (n < LONG_FORM) {
		p[0] = (uint8_t)n;
		return 1;
	}
	for (size_t v = n; v; v >>= 8)
		count++;
	INVARIANT(count <= MAX_LENGTH_BYTES);
	p[0] = (uint8_t)(LONG_FORM | count);
	for (size_t i = 0; i < count; i++)
		p[1 + i] = (uint8_t)(n >> (8 * (count - 1 - i)));
	return 1 + count;
}

size_t der_open(struct buf *b, uint8_t tag)
{
	buf_byte(b, tag);
	buf_byte(b, 0);
	return b->len;
}

void der_close(struct buf *b, size_t mark)
{
	uint8_t length[1 + MAX_LENGTH_BYTES];
	size_t body;
	size_t n;

	if (b->failed)
		return;
	body = b->len - mark;
	n = put_length(length, body);
	if (n > 1) {
		if (!buf_reserve(b, n - 1))
			return;
		memmove(b->p + mark + n - 1, b->p + mark, body);
		b->len += n - 1;
		b->p[b->len] = 0;
	}
	memcpy(b->p + mark - 1, length, n);
}

void der_put(struct buf *b, uint8_t tag, struct bytes body)
{
	uint8_t head[2 + MAX_LENGTH_BYTES];

	head[0] = tag;
	buf_append(b, head, 1 + put_length(head + 1, body.n));
	buf_bytes(b, body);
}

void der_put_uint(struct buf *b, struct bytes v)
{
	static const uint8_t zero[1];
	uint8_t head[3 + MAX_LENGTH_BYTES];
	size_t n;

	while (v.n > 1 && v.p[0] == 0) {
		v.p++;
		v.n--;
	}
	if (v.n == 0)
		v = bytes_of(zero, 1);
	if (!(v.p[0] & 0x80)) {
		der_put(b, DER_INTEGER, v);
		return;
	}
	head[0] = DER_INTEGER;
	n = 1 + put_length(head + 1, v.n + 1);
	head[n++] = 0;
	buf_append(b, head, n);
	buf_bytes(b, v);
}

void der_put_small(struct buf *b, unsigned v)
{
	uint8_t p[4] = { (uint8_t)(v >> 24), (uint8_t)(v >> 16), (uint8_t)(v >> 8), (uint8_t)v };

	der_put_uint(b, bytes_of(p, sizeof(p)));
}

void der_put_bool(struct buf *b, bool v)
{
	uint8_t c = v ? 0xff : 0;

	der_put(b, DER_BOOLEAN, bytes_of(&c, 1));
}

void der_put_bits(struct buf *b, struct bytes bits)
{
	uint8_t head[3 + MAX_LENGTH_BYTES];
	size_t n;

	head[0] = DER_BIT_STRING;
	n = 1 + put_length(head + 1, bits.n + 1);
	head[n++] = 0;
	buf_append(b, head, n);
	buf_bytes(b, bits);
}

#include "lib/rpc_wire.h"

#include <string.h>

/* What protobuf-c and malloc take beside the contents, roughly. */
enum { COST_ALLOC = 16, COST_FIELD = 48, COST_UNKNOWN = 40 };

struct walk {
	size_t budget;
	int depth;
	struct err *e;
};

static bool take_varint(struct bytes *in, size_t max, uint64_t *ret)
{
	uint64_t v = 0;

	for (size_t i = 0; i < in->n && i < max; i++) {
		v |= (uint64_t)(in->p[i] & 0x7f) << (7 * i);
		if (!(in->p[i] & 0x80)) {
			*in = bytes_of(in->p + i + 1, in->n - i - 1);
			*ret = v;
			return true;
		}
	}
	return false;
}

static bool take(struct bytes *in, uint64_t n, struct bytes *ret)
{
	if (n > in->n)
		return false;
	*ret = bytes_of(in->p, (size_t)n);
	*in = bytes_of(in->p + n, in->n - (size_t)n);
	return true;
}

bool wire_next(struct bytes *in, struct wire_field *ret)
{
	struct bytes rest = *in;
	struct wire_field f = { 0 };
	uint64_t v;
	bool ok = false;

	if (!take_varint(&rest, 5, &v) || v >> 35 || v >> 3 == 0)
		return false;
	f.tag = (uint32_t)(v >> 3);
	f.type = (unsigned)(v & 7);
	switch (f.type) {
	case 0:
		ok = take_varint(&rest, 10, &f.number);
		break;
	case 1:
		ok = take(&rest, 8, &f.bytes);
		break;
	case 2:
		ok = take_varint(&rest, 5, &v) && take(&rest, v, &f.bytes);
		break;
	case 5:
		ok = take(&rest, 4, &f.bytes);
		break;
	default: /* groups: not in proto3 */
		break;
	}
	if (!ok)
		return false;
	*in = rest;
	*ret = f;
	return true;
}

/* Length of the UTF-8 sequence at p (n > 0 bytes), 0 when it is none: RFC 3629 section 4. */
static size_t utf8_length(const uint8_t *p, size_t n)
{
	uint8_t lo = 0x80, hi = 0xbf;
	size_t len;

	if (p[0] < 0x80)
		return 1;
	if (p[0] >= 0xc2 && p[0] <= 0xdf)
		len = 2;
	else if ((p[0] & 0xf0) == 0xe0)
		len = 3;
	else if (p[0] >= 0xf0 && p[0] <= 0xf4)
		len = 4;
	else
		return 0;
	if (p[0] == 0xe0)
		lo = 0xa0;
	else if (p[0] == 0xed)
		hi = 0x9f;
	else if (p[0] == 0xf0)
		lo = 0x90;
	else if (p[0] == 0xf4)
		hi = 0x8f;
	if (n < len || p[1] < lo || p[1] > hi)
		return 0;
	for (size_t i = 2; i < len; i++)
		if ((p[i] & 0xc0) != 0x80)
			return 0;
	return len;
}

static int check_string(struct bytes v, struct err *e)
{
	for (size_t i = 0; i < v.n;) {
		size_t n = utf8_length(v.p + i, v.n - i);

		if (n == 0)
			return err_set(e, ERR_INTERNAL, "string field contains invalid UTF-8");
		if (v.p[i] == 0)
			return err_set(e, ERR_INVALID, "string field contains a NUL character");
		i += n;
	}
	return 0;
}

static int spend(struct walk *w, size_t n)
{
	if (n > w->budget)
		return err_set(
			w->e, ERR_EXHAUSTED, "message takes too much memory once it is unpacked");
	w->budget -= n;
	return 0;
}

static int walk_message(struct walk *w, const ProtobufCMessageDescriptor *d, struct bytes v);

static int walk_delimited(struct walk *w, const ProtobufCFieldDescriptor *fd, struct bytes v)
{
	switch (fd->type) {
	case PROTOBUF_C_TYPE_STRING:
		return spend(w, v.n + 1 + COST_ALLOC) || check_string(v, w->e) ? w->e->code : 0;
	case PROTOBUF_C_TYPE_BYTES:
		return spend(w, v.n + COST_ALLOC);
	case PROTOBUF_C_TYPE_MESSAGE: {
		const ProtobufCMessageDescriptor *d = fd->descriptor;

		if (spend(w, d->sizeof_message + COST_ALLOC) != 0)
			return w->e->code;
		return walk_message(w, d, v);
	}
	default: /* packed: a byte may become eight */
		return spend(w, v.n * 8 + COST_ALLOC);
	}
}

static int walk_message(struct walk *w, const ProtobufCMessageDescriptor *d, struct bytes v)
{
	int r = 0;

	if (++w->depth > RPC_WIRE_DEPTH_MAX)
		return err_set(w->e, ERR_EXHAUSTED, "message is nested too deep");
	while (r == 0 && v.n > 0) {
		const ProtobufCFieldDescriptor *fd;
		struct wire_field f;

		if (!wire_next(&v, &f))
			return err_set(
				w->e, ERR_INTERNAL, "proto: cannot parse invalid wire-format data");
		r = spend(w, COST_FIELD);
		if (r != 0)
			break;
		fd = protobuf_c_message_descriptor_get_field(d, f.tag);
		if (!fd)
			r = spend(w, COST_UNKNOWN + f.bytes.n);
		else if (f.type == 2)
			r = walk_delimited(w, fd, f.bytes);
	}
	w->depth--;
	return r;
}

int rpc_wire_check(
	const ProtobufCMessageDescriptor *d, struct bytes v, size_t budget, struct err *e)
{
	struct err scratch = ERR_INIT;
	struct walk w = { .budget = budget, .e = e ? e : &scratch };

	if (spend(&w, d->sizeof_message + COST_ALLOC) != 0)
		return w.e->code;
	return walk_message(&w, d, v);
}

int rpc_unpack(const ProtobufCMessageDescriptor *d, struct bytes v, size_t message_max,
	ProtobufCMessage **ret, struct err *e)
{
	size_t budget = message_max * RPC_WIRE_AMPLIFICATION;
	ProtobufCMessage *m;
	int r;

	r = rpc_wire_check(d, v, budget < RPC_WIRE_BUDGET_MIN ? RPC_WIRE_BUDGET_MIN : budget, e);
	if (r != 0)
		return r;
	m = protobuf_c_message_unpack(d, NULL, v.n, v.p);
	if (!m)
		return err_set(e, ERR_INTERNAL, "proto: cannot parse invalid wire-format data");
	*ret = m;
	return 0;
}

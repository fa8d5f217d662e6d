/*
 * Entries as bytes: the protobuf encoding of spire.api.types.Entry, written and read here by hand,
 * because protobuf-c makes some thirty allocations of one entry, and a start reads a million.
 */
#include <stdlib.h>
#include <string.h>

#include "lib/crypto.h"
#include "server/store_internal.h"

enum { /* field numbers of spire.api.types.Entry */
	F_SELECTORS = 4,
	F_X509_TTL = 5,
	F_FEDERATES = 6,
	F_ADMIN = 7,
	F_DOWNSTREAM = 8,
	F_DNS = 10,
	F_STORE_SVID = 12,
	F_JWT_TTL = 13,
	F_HINT = 14,
	F_ATTRIBUTES = 16,
};
enum { SELECTOR_TYPE = 1, SELECTOR_VALUE = 2 };
enum { ATTRIBUTES_NO_PREFETCH = 1, ATTRIBUTES_JTI = 2 };
enum { WIRE_VARINT = 0, WIRE_BYTES = 2 };

/* ---- writing ---- */

static void put_varint(struct buf *b, uint64_t v)
{
	while (v >= 0x80) {
		buf_byte(b, (uint8_t)(v | 0x80));
		v >>= 7;
	}
	buf_byte(b, (uint8_t)v);
}

static size_t varint_size(uint64_t v)
{
	size_t n = 1;

	while (v >= 0x80) {
		v >>= 7;
		n++;
	}
	return n;
}

static void put_number(struct buf *b, unsigned field, int64_t v)
{
	if (v == 0)
		return;
	put_varint(b, field << 3 | WIRE_VARINT);
	put_varint(b, (uint64_t)v);
}

static void put_text(struct buf *b, unsigned field, const char *s)
{
	size_t n = strlen(s);

	put_varint(b, field << 3 | WIRE_BYTES);
	put_varint(b, n);
	buf_append(b, s, n);
}

void selectors_pack(const struct selectors *s, struct buf *ret)
{
	for (size_t i = 0; i < s->n; i++) {
		size_t type = strlen(s->v[i].type);
		size_t value = strlen(s->v[i].value);

		put_varint(ret, F_SELECTORS << 3 | WIRE_BYTES);
		put_varint(ret, 2 + varint_size(type) + type + varint_size(value) + value);
		put_text(ret, SELECTOR_TYPE, s->v[i].type);
		put_text(ret, SELECTOR_VALUE, s->v[i].value);
	}
}

void entry_pack(const struct entry *en, struct buf *ret)
{
	selectors_pack(&en->selectors, ret);
	put_number(ret, F_X509_TTL, en->x509_svid_ttl);
	for (size_t i = 0; i < en->federates_with.n; i++)
		put_text(ret, F_FEDERATES, en->federates_with.v[i]);
	put_number(ret, F_ADMIN, en->admin);
	put_number(ret, F_DOWNSTREAM, en->downstream);
	for (size_t i = 0; i < en->dns_names.n; i++)
		put_text(ret, F_DNS, en->dns_names.v[i]);
	put_number(ret, F_STORE_SVID, en->store_svid);
	put_number(ret, F_JWT_TTL, en->jwt_svid_ttl);
	if (en->hint && en->hint[0])
		put_text(ret, F_HINT, en->hint);
	if (en->has_additional_attributes) {
		put_varint(ret, F_ATTRIBUTES << 3 | WIRE_BYTES);
		put_varint(ret, (en->disable_x509_svid_prefetch ? 2 : 0) +
					(en->jwt_svid_include_jti ? 2 : 0));
		put_number(ret, ATTRIBUTES_NO_PREFETCH, en->disable_x509_svid_prefetch);
		put_number(ret, ATTRIBUTES_JTI, en->jwt_svid_include_jti);
	}
}

static int compare_selectors(const void *a, const void *b)
{
	return selector_compare(a, b);
}

/* The same strings in the order of their text; the caller frees v alone. */
static struct selectors sorted(const struct selectors *s)
{
	struct selectors d = { .n = s->n };

	d.v = xreallocarray(NULL, s->n, sizeof(d.v[0]));
	if (s->n)
		memcpy(d.v, s->v, s->n * sizeof(d.v[0]));
	if (s->n > 1)
		qsort(d.v, d.n, sizeof(d.v[0]), compare_selectors);
	return d;
}

bool selectors_repeat(const struct selectors *s)
{
	struct selectors d;
	bool again = false;

	if (s->n < 2)
		return false;
	d = sorted(s);
	for (size_t i = 1; i < d.n && !again; i++)
		again = selector_compare(&d.v[i - 1], &d.v[i]) == 0;
	free(d.v);
	return again;
}

void entry_identity(
	const struct entry *en, const char *salt, struct buf *scratch, uint8_t ret[STORE_IDENTITY])
{
	uint8_t sum[HASH_MAX];
	struct selectors sel = sorted(&en->selectors);

	buf_reset(scratch);
	buf_append(scratch, en->spiffe_id, strlen(en->spiffe_id) + 1);
	buf_append(scratch, en->parent_id, strlen(en->parent_id) + 1);
	selectors_pack(&sel, scratch);
	free(sel.v);
	buf_append(scratch, salt, strlen(salt));
	hash_of(HASH_SHA256, buf_view(scratch), sum);
	memcpy(ret, sum, STORE_IDENTITY);
}

void entry_new_id(char ret[37])
{
	static const char digits[] = "0123456789abcdef";
	uint8_t r[16];
	char *p = ret;

	crypto_random(r, sizeof(r));
	r[6] = (uint8_t)((r[6] & 0x0f) | 0x40);
	r[8] = (uint8_t)((r[8] & 0x3f) | 0x80);
	for (size_t i = 0; i < sizeof(r); i++) {
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*p++ = '-';
		*p++ = digits[r[i] >> 4];
		*p++ = digits[r[i] & 15];
	}
	*p = 0;
}

/* ---- reading ---- */

static bool get_varint(struct bytes *b, uint64_t *ret)
{
	uint64_t v = 0;

	for (unsigned shift = 0; shift < 64 && b->n; shift += 7) {
		uint8_t c = *b->p++;

		b->n--;
		v |= (uint64_t)(c & 0x7f) << shift;
		if (!(c & 0x80)) {
			*ret = v;
			return true;
		}
	}
	return false;
}

struct field {
	unsigned number;
	uint64_t value;
	struct bytes bytes;
};

static bool get_field(struct bytes *b, struct field *f)
{
	uint64_t tag;
	uint64_t len;

	if (!get_varint(b, &tag) || tag >> 3 > UINT32_MAX)
		return false;
	*f = (struct field){ .number = (unsigned)(tag >> 3) };
	if ((tag & 7) == WIRE_VARINT)
		return get_varint(b, &f->value);
	if ((tag & 7) != WIRE_BYTES || !get_varint(b, &len) || len > b->n)
		return false;
	f->bytes = bytes_of(b->p, len);
	b->p += len;
	b->n -= len;
	return true;
}

/* The tag and length of a field leave room for the final zero of its text. */
static char *keep(struct unpacked *u, struct bytes v)
{
	char *s = u->text + u->text_len;

	if (v.n)
		memcpy(s, v.p, v.n);
	s[v.n] = 0;
	u->text_len += v.n + 1;
	return s;
}

static void *room(void *v, size_t *cap, size_t n, size_t size)
{
	if (n < *cap)
		return v;
	*cap = *cap ? *cap * 2 : 16;
	return xreallocarray(v, *cap, size);
}

static bool get_selector(struct unpacked *u, struct bytes b)
{
	static char empty[] = "";
	struct selector s = { .type = empty, .value = empty };
	struct field f;

	while (b.n) {
		if (!get_field(&b, &f))
			return false;
		if (f.number == SELECTOR_TYPE)
			s.type = keep(u, f.bytes);
		else if (f.number == SELECTOR_VALUE)
			s.value = keep(u, f.bytes);
	}
	u->sel = room(u->sel, &u->sel_cap, u->en.selectors.n, sizeof(u->sel[0]));
	u->sel[u->en.selectors.n++] = s;
	return true;
}

static bool get_attributes(struct unpacked *u, struct bytes b)
{
	struct field f;

	u->en.has_additional_attributes = true;
	while (b.n) {
		if (!get_field(&b, &f))
			return false;
		if (f.number == ATTRIBUTES_NO_PREFETCH)
			u->en.disable_x509_svid_prefetch = f.value != 0;
		else if (f.number == ATTRIBUTES_JTI)
			u->en.jwt_svid_include_jti = f.value != 0;
	}
	return true;
}

static bool take_field(struct unpacked *u, const struct field *f)
{
	struct entry *en = &u->en;

	switch (f->number) {
	case F_SELECTORS:
		return get_selector(u, f->bytes);
	case F_X509_TTL:
		en->x509_svid_ttl = (int32_t)f->value;
		break;
	case F_FEDERATES:
		u->fed = room(u->fed, &u->fed_cap, en->federates_with.n, sizeof(u->fed[0]));
		u->fed[en->federates_with.n++] = keep(u, f->bytes);
		break;
	case F_ADMIN:
		en->admin = f->value != 0;
		break;
	case F_DOWNSTREAM:
		en->downstream = f->value != 0;
		break;
	case F_DNS:
		u->dns = room(u->dns, &u->dns_cap, en->dns_names.n, sizeof(u->dns[0]));
		u->dns[en->dns_names.n++] = keep(u, f->bytes);
		break;
	case F_STORE_SVID:
		en->store_svid = f->value != 0;
		break;
	case F_JWT_TTL:
		en->jwt_svid_ttl = (int32_t)f->value;
		break;
	case F_HINT:
		en->hint = keep(u, f->bytes);
		break;
	case F_ATTRIBUTES:
		return get_attributes(u, f->bytes);
	default: /* of a later version */
		break;
	}
	return true;
}

int entry_unpack(struct unpacked *u, struct bytes data, struct err *e)
{
	static char empty[] = "";
	struct field f;

	u->en = (struct entry){ .hint = empty };
	u->text_len = 0;
	if (data.n + 1 > u->text_cap) {
		u->text_cap = (data.n + 1) * 2;
		u->text = xreallocarray(u->text, u->text_cap, 1);
	}
	while (data.n)
		if (!get_field(&data, &f) || !take_field(u, &f))
			return err_set(e, ERR_DATA_LOSS, "a row cannot be read");
	u->en.selectors.v = u->sel;
	u->en.federates_with.v = u->fed;
	u->en.dns_names.v = u->dns;
	return 0;
}

void unpacked_deinit(struct unpacked *u)
{
	free(u->text);
	free(u->sel);
	free(u->fed);
	free(u->dns);
	*u = (struct unpacked){ .text_cap = 0 };
}

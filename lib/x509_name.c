/* Distinguished names: RFC 5280 4.1.2.4, text as in RFC 4514. */
#include <stdlib.h>
#include <string.h>

#include "lib/x509_internal.h"

static const struct {
	uint8_t last; /* of 2.5.4.x */
	const char *text;
} attributes[] = {
	{ 3, "CN" },
	{ 5, "SERIALNUMBER" },
	{ 6, "C" },
	{ 7, "L" },
	{ 8, "ST" },
	{ 9, "STREET" },
	{ 10, "O" },
	{ 11, "OU" },
	{ 17, "POSTALCODE" },
};
enum { ATTR_CN = 3, ATTR_SERIAL = 5, ATTR_C = 6, ATTR_O = 10, ATTR_OU = 11, ATTR_UNIQUE = 45 };

struct attribute {
	struct bytes oid;
	uint8_t tag;
	struct bytes value;
	struct bytes whole_value;
};

/* Takes the next AttributeTypeAndValue off an RDN's body. */
static bool get_attribute(struct bytes *rdn, struct attribute *ret)
{
	struct bytes seq;

	if (!der_get(rdn, DER_SEQUENCE, &seq) || !der_get(&seq, DER_OID, &ret->oid))
		return false;
	ret->whole_value = seq;
	return der_next(&seq, &ret->tag, &ret->value) && seq.n == 0;
}

static bool is_attribute(struct bytes oid, uint8_t last)
{
	return oid.n == 3 && oid.p[0] == 0x55 && oid.p[1] == 0x04 && oid.p[2] == last;
}

bool name_check(struct bytes body)
{
	struct bytes rdn;
	struct attribute a;

	while (body.n) {
		if (!der_get(&body, DER_SET, &rdn) || rdn.n == 0)
			return false;
		while (rdn.n)
			if (!get_attribute(&rdn, &a))
				return false;
	}
	return true;
}

void oid_text(struct bytes oid, struct buf *ret)
{
	uint64_t v = 0;
	bool first = true;

	for (size_t i = 0; i < oid.n; i++) {
		v = v << 7 | (oid.p[i] & 0x7f);
		if (oid.p[i] & 0x80)
			continue;
		if (first) {
			unsigned top = v < 40 ? 0 : v < 80 ? 1 : 2;

			buf_printf(ret, "%u.%llu", top, (unsigned long long)(v - top * 40));
		} else {
			buf_printf(ret, ".%llu", (unsigned long long)v);
		}
		first = false;
		v = 0;
	}
}

static void put_utf8(struct buf *b, unsigned c)
{
	if (c < 0x80) {
		buf_byte(b, (uint8_t)c);
	} else if (c < 0x800) {
		buf_byte(b, (uint8_t)(0xc0 | c >> 6));
		buf_byte(b, (uint8_t)(0x80 | (c & 63)));
	} else {
		buf_byte(b, (uint8_t)(0xe0 | c >> 12));
		buf_byte(b, (uint8_t)(0x80 | (c >> 6 & 63)));
		buf_byte(b, (uint8_t)(0x80 | (c & 63)));
	}
}

/* As UTF-8 without control characters; false when it is no string. */
static bool value_text(const struct attribute *a, struct buf *ret)
{
	switch (a->tag) {
	case DER_UTF8_STRING:
	case DER_PRINTABLE_STRING:
	case DER_IA5_STRING:
		for (size_t i = 0; i < a->value.n; i++)
			buf_byte(ret, a->value.p[i] < 0x20 || a->value.p[i] == 0x7f
					      ? '?'
					      : a->value.p[i]);
		return true;
	case DER_TELETEX_STRING: /* in practice Latin-1 */
		for (size_t i = 0; i < a->value.n; i++)
			put_utf8(ret, a->value.p[i] < 0x20 ? '?' : a->value.p[i]);
		return true;
	case DER_BMP_STRING:
		for (size_t i = 0; i + 1 < a->value.n; i += 2) {
			unsigned c = (unsigned)a->value.p[i] << 8 | a->value.p[i + 1];

			put_utf8(ret, c < 0x20 || (c >= 0xd800 && c < 0xe000) ? '?' : c);
		}
		return true;
	default:
		return false;
	}
}

char *name_cn(struct bytes whole)
{
	AUTO_BUF struct buf text = BUF_INIT;
	struct bytes body, rdn;
	struct attribute a;

	if (!der_get(&whole, DER_SEQUENCE, &body))
		return xstrdup("");
	while (der_get(&body, DER_SET, &rdn))
		while (get_attribute(&rdn, &a))
			if (is_attribute(a.oid, ATTR_CN)) { /* the last one counts, as in Go */
				buf_reset(&text);
				(void)value_text(&a, &text);
			}
	return xstrdup(buf_cstr(&text));
}

/* RFC 4514 2.4. */
static void put_escaped(struct buf *ret, const struct buf *text)
{
	for (size_t i = 0; i < text->len; i++) {
		uint8_t c = text->p[i];
		bool edge = (c == ' ' && (i == 0 || i == text->len - 1)) || (c == '#' && i == 0);

		if (edge || strchr(",+\"\\<>;", c))
			buf_byte(ret, '\\');
		buf_byte(ret, c);
	}
}

static void attribute_text(const struct attribute *a, struct buf *ret)
{
	AUTO_BUF struct buf text = BUF_INIT;
	const char *name = NULL;

	for (size_t i = 0; i < ARRAY_LEN(attributes); i++)
		if (is_attribute(a->oid, attributes[i].last))
			name = attributes[i].text;
	if (name)
		buf_str(ret, name);
	else
		oid_text(a->oid, ret);
	buf_byte(ret, '=');
	if (name && value_text(a, &text)) {
		put_escaped(ret, &text);
		return;
	}
	buf_byte(ret, '#');
	hex_encode(ret, a->whole_value);
}

void x509_subject_text(const struct x509_cert *c, struct buf *ret)
{
	struct bytes whole = c->subject, body, rdn, *rdns = NULL;
	struct attribute a;
	size_t n = 0;

	if (!der_get(&whole, DER_SEQUENCE, &body))
		return;
	while (der_get(&body, DER_SET, &rdn)) {
		rdns = xreallocarray(rdns, n + 1, sizeof(*rdns));
		rdns[n++] = rdn;
	}
	for (size_t i = n; i-- > 0;) {
		for (bool first = true; get_attribute(&rdns[i], &a); first = false) {
			if (!first)
				buf_byte(ret, '+');
			attribute_text(&a, ret);
		}
		if (i)
			buf_byte(ret, ',');
	}
	free(rdns);
}

/* ---- writing ---- */

static uint8_t string_tag(const char *s)
{
	for (; *s; s++)
		if (!((*s >= 'A' && *s <= 'Z') || (*s >= 'a' && *s <= 'z') ||
			    (*s >= '0' && *s <= '9') || strchr(" '()+,-./:=?", *s)))
			return DER_UTF8_STRING;
	return DER_PRINTABLE_STRING;
}

static void put_rdn(struct buf *b, uint8_t last, const char *value)
{
	uint8_t oid[3] = { 0x55, 0x04, last };
	size_t set, seq;

	if (!value)
		return;
	set = der_open(b, DER_SET);
	seq = der_open(b, DER_SEQUENCE);
	der_put(b, DER_OID, bytes_of(oid, sizeof(oid)));
	der_put(b, string_tag(value), bytes_str(value));
	der_close(b, seq);
	der_close(b, set);
}

void x509_name_der(const struct x509_name *n, struct buf *ret)
{
	size_t all = der_open(ret, DER_SEQUENCE);

	put_rdn(ret, ATTR_C, n->country);
	put_rdn(ret, ATTR_O, n->organization);
	put_rdn(ret, ATTR_OU, n->organizational_unit);
	put_rdn(ret, ATTR_SERIAL, n->serial_number);
	put_rdn(ret, ATTR_CN, n->common_name);
	der_close(ret, all);
}

static bool has(struct bytes rdn, uint8_t attribute)
{
	struct attribute a;

	while (get_attribute(&rdn, &a))
		if (is_attribute(a.oid, attribute))
			return true;
	return false;
}

int x509_name_with_cn(struct bytes raw, const char *cn, struct buf *ret, struct err *e)
{
	struct bytes body, rdn, whole;
	bool done = false;
	size_t all;

	if (!der_get(&raw, DER_SEQUENCE, &body) || raw.n || !name_check(body))
		return err_set(e, ERR_INVALID, "malformed name");
	all = der_open(ret, DER_SEQUENCE);
	while (der_get_whole(&body, DER_SET, &rdn, &whole)) {
		if (!has(rdn, ATTR_CN)) {
			buf_bytes(ret, whole);
			continue;
		}
		if (!done)
			put_rdn(ret, ATTR_CN, cn);
		done = true;
	}
	if (!done)
		put_rdn(ret, ATTR_CN, cn);
	der_close(ret, all);
	return 0;
}

int x509_name_with_ou(struct bytes raw, const char *ou, struct buf *ret, struct err *e)
{
	struct bytes body, rdn, whole;
	bool done = false;
	size_t all;

	if (!der_get(&raw, DER_SEQUENCE, &body) || raw.n || !name_check(body))
		return err_set(e, ERR_INVALID, "malformed name");
	all = der_open(ret, DER_SEQUENCE);
	while (der_get_whole(&body, DER_SET, &rdn, &whole)) {
		bool replaced = has(rdn, ATTR_OU);

		if (!done && (replaced || has(rdn, ATTR_SERIAL) || has(rdn, ATTR_CN))) {
			put_rdn(ret, ATTR_OU, ou);
			done = true;
		}
		if (!replaced)
			buf_bytes(ret, whole);
	}
	if (!done)
		put_rdn(ret, ATTR_OU, ou);
	der_close(ret, all);
	return 0;
}

int x509_name_with_unique_id(struct bytes raw, const char *id, struct buf *ret, struct err *e)
{
	struct bytes body, rdn, whole;
	size_t all;

	if (!der_get(&raw, DER_SEQUENCE, &body) || raw.n || !name_check(body))
		return err_set(e, ERR_INVALID, "malformed name");
	all = der_open(ret, DER_SEQUENCE);
	while (der_get_whole(&body, DER_SET, &rdn, &whole))
		if (!has(rdn, ATTR_UNIQUE))
			buf_bytes(ret, whole);
	put_rdn(ret, ATTR_UNIQUE, id);
	der_close(ret, all);
	return 0;
}

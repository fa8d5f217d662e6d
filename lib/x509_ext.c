/* Extensions of certificates and CSRs, RFC 5280 4.2. */
#include <stdlib.h>
#include <string.h>

#include "lib/x509_internal.h"

enum {
	EXT_SKI = 14,
	EXT_KU = 15,
	EXT_SAN = 17,
	EXT_BC = 19,
	EXT_NC = 30,
	EXT_POLICIES = 32,
	EXT_AKI = 35,
	EXT_EKU = 37
};

enum {
	NAME_EMAIL = DER_CONTEXT(1),
	NAME_DNS = DER_CONTEXT(2),
	NAME_URI = DER_CONTEXT(6),
	NAME_IP = DER_CONTEXT(7)
};

struct bytes oid_extension(uint8_t last)
{
	/* Every id-ce OID that is used here, one after the other. */
	static const uint8_t all[][3] = { { 0x55, 0x1d, EXT_SKI }, { 0x55, 0x1d, EXT_KU },
		{ 0x55, 0x1d, EXT_SAN }, { 0x55, 0x1d, EXT_BC }, { 0x55, 0x1d, EXT_AKI },
		{ 0x55, 0x1d, EXT_EKU } };

	for (size_t i = 0; i < ARRAY_LEN(all); i++)
		if (all[i][2] == last)
			return bytes_of(all[i], 3);
	mem_panic(__FILE__, __LINE__, "no such extension");
}

static bool parse_basic_constraints(struct bytes v, struct extensions *ext)
{
	struct bytes seq;
	unsigned n;

	if (!der_get(&v, DER_SEQUENCE, &seq) || v.n)
		return false;
	if (der_peek(seq, DER_BOOLEAN) && !der_get_bool(&seq, &ext->is_ca))
		return false;
	if (der_peek(seq, DER_INTEGER)) {
		if (!der_get_small(&seq, &n))
			return false;
		ext->path_len = n > 1000 ? 1000 : (int)n;
	}
	ext->has_basic_constraints = true;
	return seq.n == 0;
}

static bool parse_key_usage(struct bytes v, struct extensions *ext)
{
	struct bytes bits;
	unsigned unused;

	if (!der_get_bits(&v, &bits, &unused) || v.n || bits.n > 2)
		return false;
	for (unsigned i = 0; i < 8 && bits.n; i++)
		if (bits.p[0] & 0x80 >> i)
			ext->key_usage |= 1u << i;
	ext->has_key_usage = true;
	return true;
}

static bool parse_eku(struct bytes v, struct extensions *ext)
{
	static const uint8_t kp[] = { 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03 }; /* id-kp */
	struct bytes seq, oid;

	if (!der_get(&v, DER_SEQUENCE, &seq) || v.n || seq.n == 0)
		return false;
	while (seq.n) {
		if (!der_get(&seq, DER_OID, &oid))
			return false;
		if (oid.n == sizeof(kp) + 1 && memcmp(oid.p, kp, sizeof(kp)) == 0) {
			ext->eku_server |= oid.p[sizeof(kp)] == 1;
			ext->eku_client |= oid.p[sizeof(kp)] == 2;
		}
		ext->eku_any |= bytes_equal(oid, DER_BYTES(0x55, 0x1d, 0x25, 0x00));
	}
	ext->has_eku = true;
	return true;
}

static bool parse_aki(struct bytes v, struct extensions *ext)
{
	struct bytes seq;

	if (!der_get(&v, DER_SEQUENCE, &seq) || v.n)
		return false;
	if (der_peek(seq, DER_CONTEXT(0)))
		return der_get(&seq, DER_CONTEXT(0), &ext->aki);
	return true;
}

/* IA5String, and nothing in it that a C string or a log line could stumble over. */
static bool add_text(struct strings *to, struct bytes v)
{
	char *s;

	for (size_t i = 0; i < v.n; i++)
		if (v.p[i] < 0x20 || v.p[i] > 0x7e)
			return false;
	s = xstrndup((const char *)v.p, v.n);
	strings_add(to, s);
	free(s);
	return true;
}

static bool parse_san(struct bytes v, struct extensions *ext)
{
	struct bytes seq, name;
	uint8_t tag;

	if (!der_get(&v, DER_SEQUENCE, &seq) || v.n || seq.n == 0)
		return false;
	while (seq.n) {
		bool ok = true;

		if (!der_next(&seq, &tag, &name))
			return false;
		if (tag == NAME_URI)
			ok = add_text(&ext->uris, name);
		else if (tag == NAME_DNS)
			ok = add_text(&ext->dns_names, name);
		else if (tag == NAME_EMAIL)
			ok = add_text(&ext->emails, name);
		else if (tag == NAME_IP) {
			ok = name.n == 4 || name.n == 16;
			ext->ips = xreallocarray(ext->ips, ext->n_ips + 1, sizeof(*ext->ips));
			ext->ips[ext->n_ips++] = name;
		}
		if (!ok)
			return false;
	}
	ext->has_san = true;
	return true;
}

static bool parse_ski(struct bytes v, struct extensions *ext)
{
	return der_get(&v, DER_OCTET_STRING, &ext->ski) && v.n == 0;
}

static bool parse_constraints(struct bytes v, struct extensions *ext)
{
	return der_get(&v, DER_SEQUENCE, &ext->constraints) && v.n == 0 && ext->constraints.n;
}

/* Nothing is asked of policies: the initial set is any-policy and none is required (RFC 5280
 * 6.1.1), so that the extension is understood even when critical. */
static bool parse_policies(struct bytes v, struct extensions *ext)
{
	struct bytes seq;

	(void)ext;
	return der_get(&v, DER_SEQUENCE, &seq) && v.n == 0;
}

static const struct {
	uint8_t last;
	const char *name;
	bool (*parse)(struct bytes v, struct extensions *ext);
} known[] = {
	{ EXT_SKI, "subjectKeyIdentifier", parse_ski },
	{ EXT_KU, "keyUsage", parse_key_usage },
	{ EXT_SAN, "subjectAltName", parse_san },
	{ EXT_BC, "basicConstraints", parse_basic_constraints },
	{ EXT_NC, "nameConstraints", parse_constraints },
	{ EXT_POLICIES, "certificatePolicies", parse_policies },
	{ EXT_AKI, "authorityKeyIdentifier", parse_aki },
	{ EXT_EKU, "extKeyUsage", parse_eku },
};

static int parse_one(
	struct bytes oid, bool critical, struct bytes value, struct extensions *ext, struct err *e)
{
	for (size_t i = 0; i < ARRAY_LEN(known); i++) {
		if (oid.n != 3 || oid.p[0] != 0x55 || oid.p[1] != 0x1d || oid.p[2] != known[i].last)
			continue;
		/* RFC 5280 4.2: MUST NOT include more than one instance of an extension. */
		if (ext->seen & 1u << i)
			return err_set(e, ERR_INVALID, "extension %s comes twice", known[i].name);
		ext->seen |= 1u << i;
		if (!known[i].parse(value, ext))
			return err_set(e, ERR_INVALID, "malformed extension %s", known[i].name);
		if (known[i].last == EXT_NC)
			ext->constraints_critical = critical;
		return 0;
	}
	if (critical && !ext->unknown_critical[0]) {
		AUTO_BUF struct buf text = BUF_INIT_MAX(sizeof(ext->unknown_critical) - 1);

		oid_text(oid, &text);
		memcpy(ext->unknown_critical, buf_cstr(&text), text.len + 1);
		if (text.len == 0)
			memcpy(ext->unknown_critical, "?", 2);
	}
	return 0;
}

int extensions_parse(struct bytes body, struct extensions *ext, struct err *e)
{
	while (body.n) {
		struct bytes one, oid, value;
		bool critical = false;
		int r;

		if (!der_get(&body, DER_SEQUENCE, &one) || !der_get(&one, DER_OID, &oid) ||
			(der_peek(one, DER_BOOLEAN) && !der_get_bool(&one, &critical)) ||
			!der_get(&one, DER_OCTET_STRING, &value) || one.n)
			return err_set(e, ERR_INVALID, "malformed extension");
		r = parse_one(oid, critical, value, ext, e);
		if (r)
			return r;
	}
	return 0;
}

void extensions_deinit(struct extensions *ext)
{
	strings_deinit(&ext->uris);
	strings_deinit(&ext->dns_names);
	strings_deinit(&ext->emails);
	free(ext->ips);
	*ext = EXTENSIONS_INIT;
}

void san_put(struct buf *b, bool critical, const char *const *uris, size_t n_uris,
	const char *const *dns, size_t n_dns)
{
	size_t all, value, seq;

	if (n_uris + n_dns == 0)
		return;
	all = der_open(b, DER_SEQUENCE);
	der_put(b, DER_OID, oid_extension(EXT_SAN));
	if (critical)
		der_put_bool(b, true);
	value = der_open(b, DER_OCTET_STRING);
	seq = der_open(b, DER_SEQUENCE);
	for (size_t i = 0; i < n_dns; i++)
		der_put(b, NAME_DNS, bytes_str(dns[i]));
	for (size_t i = 0; i < n_uris; i++)
		der_put(b, NAME_URI, bytes_str(uris[i]));
	der_close(b, seq);
	der_close(b, value);
	der_close(b, all);
}

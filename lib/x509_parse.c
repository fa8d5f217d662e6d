#include <stdlib.h>
#include <string.h>

#include "lib/x509_internal.h"

enum { SERIAL_MAX = 20 }; /* RFC 5280 4.1.2.2 */

/* Days since 1970-01-01 of a date in the Gregorian calendar. */
static int64_t days_of(int year, int month, int day)
{
	int y = month <= 2 ? year - 1 : year;
	int era = (y >= 0 ? y : y - 399) / 400;
	int of_era = y - era * 400;
	int of_year = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + day - 1;

	return (int64_t)era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
}

static bool digits(struct bytes *in, size_t n, int *ret)
{
	int v = 0;

	if (in->n < n)
		return false;
	for (size_t i = 0; i < n; i++) {
		if (in->p[i] < '0' || in->p[i] > '9')
			return false;
		v = v * 10 + in->p[i] - '0';
	}
	*in = bytes_of(in->p + n, in->n - n);
	*ret = v;
	return true;
}

/* RFC 5280 4.1.2.5: with seconds, in Zulu time, without fractions. */
static bool get_time(struct bytes *in, struct wall *ret)
{
	static const int month_days[] = { 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31 };
	int year, month, day, hour, minute, second, most;
	struct bytes v;

	if (der_get(in, DER_UTC_TIME, &v)) {
		if (!digits(&v, 2, &year))
			return false;
		year += year >= 50 ? 1900 : 2000;
	} else if (!der_get(in, DER_GENERALIZED_TIME, &v) || !digits(&v, 4, &year)) {
		return false;
	}
	if (!digits(&v, 2, &month) || !digits(&v, 2, &day) || !digits(&v, 2, &hour) ||
		!digits(&v, 2, &minute) || !digits(&v, 2, &second) || v.n != 1 || v.p[0] != 'Z')
		return false;
	if (month < 1 || month > 12 || hour > 23 || minute > 59 || second > 59)
		return false;
	most = month_days[month - 1];
	if (month == 2 && year % 4 == 0 && (year % 100 != 0 || year % 400 == 0))
		most = 29;
	if (day < 1 || day > most)
		return false;
	*ret = wall_of_sec(days_of(year, month, day) * 86400 + hour * 3600 + minute * 60 + second);
	return true;
}

static int bad(struct err *e, const char *what)
{
	return err_set(e, ERR_INVALID, "malformed certificate: %s", what);
}

static int parse_version(struct bytes *tbs, struct x509_cert *c, struct err *e)
{
	struct bytes field;
	unsigned v;

	c->version = 1;
	if (!der_peek(*tbs, DER_CONTEXT_CONSTRUCTED(0)))
		return 0;
	if (!der_get(tbs, DER_CONTEXT_CONSTRUCTED(0), &field) || !der_get_small(&field, &v) ||
		field.n || v < 1 || v > 2)
		return bad(e, "version");
	c->version = (int)v + 1;
	return 0;
}

static int parse_key(struct bytes spki, struct x509_cert *c, struct err *e)
{
	int r = pubkey_from_spki(spki, &c->pubkey, e);

	/* A kind of key that we do not know makes the certificate useless, not malformed. */
	if (r == ERR_UNIMPLEMENTED) {
		if (e)
			*e = ERR_INIT;
		c->pubkey = NULL;
		return 0;
	}
	return r ? err_wrap(e, "malformed certificate") : 0;
}

static int parse_extensions(struct bytes tbs, struct x509_cert *c, struct err *e)
{
	struct bytes field, seq;

	/* issuerUniqueID, subjectUniqueID */
	for (uint8_t i = 1; i <= 2; i++)
		if (der_peek(tbs, DER_CONTEXT(i)) && !der_get(&tbs, DER_CONTEXT(i), &field))
			return bad(e, "unique identifier");
	if (tbs.n == 0)
		return 0;
	if (c->version != 3 || !der_get(&tbs, DER_CONTEXT_CONSTRUCTED(3), &field) || tbs.n ||
		!der_get(&field, DER_SEQUENCE, &seq) || field.n || seq.n == 0)
		return bad(e, "extensions");
	if (extensions_parse(seq, &c->ext, e))
		return err_wrap(e, "malformed certificate");
	return 0;
}

static int parse_tbs(struct bytes tbs, struct bytes outer_alg, struct x509_cert *c, struct err *e)
{
	struct bytes body, alg, spki;
	int r = parse_version(&tbs, c, e);

	if (r)
		return r;
	if (!der_get_uint(&tbs, &c->serial) || c->serial.n > SERIAL_MAX)
		return bad(e, "serial number");
	/* RFC 5280 4.1.1.2: MUST contain the same algorithm identifier as the signature field. */
	if (!der_get_whole(&tbs, DER_SEQUENCE, &body, &alg) || !bytes_equal(alg, outer_alg))
		return bad(e, "the two signature algorithms differ");
	if (!der_get_whole(&tbs, DER_SEQUENCE, &body, &c->issuer) || !name_check(body))
		return bad(e, "issuer");
	if (!der_get(&tbs, DER_SEQUENCE, &body) || !get_time(&body, &c->not_before) ||
		!get_time(&body, &c->not_after) || body.n)
		return bad(e, "validity");
	if (!der_get_whole(&tbs, DER_SEQUENCE, &body, &c->subject) || !name_check(body))
		return bad(e, "subject");
	if (!der_get_whole(&tbs, DER_SEQUENCE, &body, &spki))
		return bad(e, "public key");
	r = parse_key(spki, c, e);
	return r ? r : parse_extensions(tbs, c, e);
}

static int parse(struct x509_cert *c, struct err *e)
{
	struct bytes in = c->der, seq, body, alg;
	unsigned unused;
	int r;

	if (!der_get(&in, DER_SEQUENCE, &seq))
		return bad(e, "not one DER element");
	if (in.n)
		return bad(e, "trailing data");
	if (!der_get_whole(&seq, DER_SEQUENCE, &body, &c->tbs) ||
		!der_get_whole(&seq, DER_SEQUENCE, &alg, &alg) ||
		!der_get_bits(&seq, &c->signature, &unused) || unused || seq.n)
		return bad(e, "outer structure");
	c->alg = sig_alg_parse(alg);
	r = parse_tbs(body, alg, c, e);
	if (!r)
		c->cn = name_cn(c->subject);
	return r;
}

int x509_parse(struct bytes der, struct x509_cert **ret, struct err *e)
{
	struct err local = ERR_INIT;
	struct x509_cert *c;
	int r;

	e = e ? e : &local;
	if (der.n > X509_MAX_DER)
		return err_set(e, ERR_INVALID, "malformed certificate: larger than %d bytes",
			X509_MAX_DER);
	c = xcalloc(1, sizeof(*c) + der.n);
	if (der.n)
		memcpy(c + 1, der.p, der.n);
	c->der = bytes_of(c + 1, der.n);
	c->ext = EXTENSIONS_INIT;
	atomic_init(&c->refs, 1);
	r = parse(c, e);
	if (r)
		x509_unref(c);
	else
		*ret = c;
	return r;
}

struct x509_cert *x509_ref(struct x509_cert *c)
{
	atomic_fetch_add_explicit(&c->refs, 1, memory_order_relaxed);
	return c;
}

void x509_unref(struct x509_cert *c)
{
	if (!c || atomic_fetch_sub_explicit(&c->refs, 1, memory_order_acq_rel) != 1)
		return;
	pubkey_unref(c->pubkey);
	extensions_deinit(&c->ext);
	free(c->cn);
	free(c);
}

struct bytes x509_der(const struct x509_cert *c)
{
	return c->der;
}

struct bytes x509_serial(const struct x509_cert *c)
{
	return c->serial;
}

void x509_serial_hex(const struct x509_cert *c, struct buf *ret)
{
	hex_encode(ret, c->serial);
}

void x509_serial_decimal(const struct x509_cert *c, struct buf *ret)
{
	uint8_t n[SERIAL_MAX];
	char out[SERIAL_MAX * 3];
	size_t at = sizeof(out);

	memcpy(n, c->serial.p, c->serial.n);
	for (size_t first = 0; first < c->serial.n;) {
		unsigned rest = 0;

		for (size_t i = first; i < c->serial.n; i++) {
			unsigned v = rest << 8 | n[i];

			n[i] = (uint8_t)(v / 10);
			rest = v % 10;
		}
		out[--at] = (char)('0' + rest);
		while (first < c->serial.n && n[first] == 0)
			first++;
	}
	buf_append(ret, out + at, sizeof(out) - at);
}

struct wall x509_not_before(const struct x509_cert *c)
{
	return c->not_before;
}

struct wall x509_not_after(const struct x509_cert *c)
{
	return c->not_after;
}

struct bytes x509_subject_raw(const struct x509_cert *c)
{
	return c->subject;
}

struct bytes x509_issuer_raw(const struct x509_cert *c)
{
	return c->issuer;
}

const char *x509_subject_cn(const struct x509_cert *c)
{
	return c->cn;
}

struct bytes x509_ski(const struct x509_cert *c)
{
	return c->ext.ski;
}

struct bytes x509_aki(const struct x509_cert *c)
{
	return c->ext.aki;
}

struct pubkey *x509_pubkey(const struct x509_cert *c)
{
	return c->pubkey;
}

bool x509_is_ca(const struct x509_cert *c)
{
	return c->ext.is_ca;
}

unsigned x509_key_usage(const struct x509_cert *c, bool *ret_present)
{
	if (ret_present)
		*ret_present = c->ext.has_key_usage;
	return c->ext.key_usage;
}

const struct strings *x509_uris(const struct x509_cert *c)
{
	return &c->ext.uris;
}

const struct strings *x509_dns_names(const struct x509_cert *c)
{
	return &c->ext.dns_names;
}

size_t x509_ips(const struct x509_cert *c, const struct bytes **ret)
{
	*ret = c->ext.ips;
	return c->ext.n_ips;
}

bool x509_self_issued(const struct x509_cert *c)
{
	return bytes_equal(c->issuer, c->subject);
}

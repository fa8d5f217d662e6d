/* The last look at an X509-SVID before it leaves: what the builder wrote is read again by other
 * code. */
#include "server/ca_internal.h"

#include <string.h>
#include <time.h>

#include "lib/der.h"

enum { SEEN_KU = 1, SEEN_EKU = 2, SEEN_BC = 4, SEEN_SAN = 8, SEEN_ALL = 15 };

static int bad(struct err *e, const char *what)
{
	return err_set(e, ERR_INTERNAL, "invalid X509-SVID: %s", what);
}

/* RFC 5280 4.1.2.5: UTCTime through 2049, GeneralizedTime from 2050. */
static bool time_is(struct bytes *in, struct wall want)
{
	time_t sec = want.sec;
	struct bytes body;
	char text[24];
	struct tm tm;
	bool utc;

	gmtime_r(&sec, &tm);
	utc = tm.tm_year < 150;
	strftime(text, sizeof(text), "%Y%m%d%H%M%SZ", &tm);
	return der_get(in, utc ? DER_UTC_TIME : DER_GENERALIZED_TIME, &body) &&
	       bytes_equal(body, bytes_str(utc ? text + 2 : text));
}

static bool validity_is(struct bytes *tbs, const struct ca_expect *x)
{
	struct bytes v;

	return der_get(tbs, DER_SEQUENCE, &v) && time_is(&v, x->not_before) &&
	       time_is(&v, x->not_after) && v.n == 0;
}

/* digitalSignature, keyEncipherment, keyAgreement. */
static bool key_usage_ok(struct bytes v, bool critical)
{
	return critical && bytes_equal(v, DER_BYTES(0x03, 0x02, 0x03, 0xa8));
}

static bool ext_key_usage_ok(struct bytes v)
{
	return bytes_equal(
		v, DER_BYTES(0x30, 0x14, 0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01,
			   0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02));
}

/* X509-SVID 2: "An X.509 SVID MUST contain exactly one URI SAN". */
static bool names_ok(struct bytes v, const char *spiffe_id)
{
	struct bytes names, name;
	uint8_t tag;
	int uris = 0;

	if (!der_get(&v, DER_SEQUENCE, &names) || v.n)
		return false;
	while (names.n) {
		if (!der_next(&names, &tag, &name))
			return false;
		if (tag == DER_CONTEXT(6)) {
			uris++;
			if (!bytes_equal(name, bytes_str(spiffe_id)))
				return false;
		} else if (tag != DER_CONTEXT(2)) {
			return false;
		}
	}
	return uris == 1;
}

/* One extension: the bit of what it is, 0 when it does not matter, -1 when it is not as it must be.
 */
static int extension(struct bytes *exts, const struct ca_expect *x)
{
	struct bytes ext, oid, v;
	bool critical = false;

	if (!der_get(exts, DER_SEQUENCE, &ext) || !der_get(&ext, DER_OID, &oid))
		return -1;
	if (der_peek(ext, DER_BOOLEAN) && !der_get_bool(&ext, &critical))
		return -1;
	if (!der_get(&ext, DER_OCTET_STRING, &v) || ext.n)
		return -1;
	if (oid.n != 3 || oid.p[0] != 0x55 || oid.p[1] != 0x1d)
		return critical ? -1 : 0;
	switch (oid.p[2]) {
	case 15:
		return key_usage_ok(v, critical) ? SEEN_KU : -1;
	case 17:
		return names_ok(v, x->spiffe_id) ? SEEN_SAN : -1;
	case 19: /* cA absent means FALSE */
		return critical && bytes_equal(v, DER_BYTES(0x30, 0x00)) ? SEEN_BC : -1;
	case 37:
		return ext_key_usage_ok(v) ? SEEN_EKU : -1;
	default:
		return critical ? -1 : 0;
	}
}

static bool extensions_ok(struct bytes *tbs, const struct ca_expect *x)
{
	struct bytes wrapped, exts;
	int seen = 0;

	if (!der_get(tbs, DER_CONTEXT_CONSTRUCTED(3), &wrapped) || tbs->n ||
		!der_get(&wrapped, DER_SEQUENCE, &exts) || wrapped.n)
		return false;
	while (exts.n) {
		int bit = extension(&exts, x);

		if (bit < 0 || (seen & bit))
			return false;
		seen |= bit;
	}
	return seen == SEEN_ALL;
}

int ca_check_svid(struct bytes der, const struct ca_expect *x, struct err *e)
{
	struct bytes cert, tbs, body, whole, sig;
	unsigned unused;

	if (!der_get(&der, DER_SEQUENCE, &cert) || der.n || !der_get(&cert, DER_SEQUENCE, &tbs) ||
		!der_get(&cert, DER_SEQUENCE, &body) || !der_get_bits(&cert, &sig, &unused) ||
		cert.n || sig.n == 0)
		return bad(e, "not a certificate");
	if (!der_get(&tbs, DER_CONTEXT_CONSTRUCTED(0), &body) || !der_get_uint(&tbs, &body) ||
		body.n > 20 || !der_get(&tbs, DER_SEQUENCE, &body))
		return bad(e, "version, serial number or algorithm");
	if (!der_get_whole(&tbs, DER_SEQUENCE, &body, &whole) || !bytes_equal(whole, x->issuer_raw))
		return bad(e, "issuer");
	if (!validity_is(&tbs, x))
		return bad(e, "validity");
	if (!der_get(&tbs, DER_SEQUENCE, &body) || body.n == 0)
		return bad(e, "subject");
	if (!der_get_whole(&tbs, DER_SEQUENCE, &body, &whole) || !bytes_equal(whole, x->spki))
		return bad(e, "public key");
	if (!extensions_ok(&tbs, x))
		return bad(e, "key usage, basic constraints or names");
	return 0;
}

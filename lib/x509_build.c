#include <stdlib.h>
#include <string.h>

#include "lib/x509_internal.h"

enum { EXT_SKI = 14, EXT_KU = 15, EXT_BC = 19, EXT_AKI = 35, EXT_EKU = 37, CERT_RESERVE = 1200 };

/* RFC 5280 4.1.2.5: UTCTime through 2049, GeneralizedTime after. */
static bool put_time(struct buf *b, struct wall t)
{
	int64_t days = t.sec >= 0 ? t.sec / 86400 : -((86399 - t.sec) / 86400);
	int second = (int)(t.sec - days * 86400);
	int64_t z = days + 719468;
	int64_t era = (z >= 0 ? z : z - 146096) / 146097;
	int of_era = (int)(z - era * 146097);
	int year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
	int of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
	int mp = (5 * of_year + 2) / 153;
	int day = of_year - (153 * mp + 2) / 5 + 1;
	int month = mp < 10 ? mp + 3 : mp - 9;
	int64_t year = year_of_era + era * 400 + (month <= 2);
	uint8_t text[15];
	size_t n = 0;
	int parts[] = { month, day, second / 3600, second / 60 % 60, second % 60 };

	if (year < 1950 || year > 9999)
		return false;
	if (year >= 2050) {
		text[n++] = (uint8_t)('0' + year / 1000);
		text[n++] = (uint8_t)('0' + year / 100 % 10);
	}
	text[n++] = (uint8_t)('0' + year / 10 % 10);
	text[n++] = (uint8_t)('0' + year % 10);
	for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
		text[n++] = (uint8_t)('0' + parts[i] / 10);
		text[n++] = (uint8_t)('0' + parts[i] % 10);
	}
	text[n++] = 'Z';
	der_put(b, year < 2050 ? DER_UTC_TIME : DER_GENERALIZED_TIME, bytes_of(text, n));
	return true;
}

static void put_extension(struct buf *b, uint8_t last, bool critical, struct bytes value)
{
	size_t all = der_open(b, DER_SEQUENCE);

	der_put(b, DER_OID, oid_extension(last));
	if (critical)
		der_put_bool(b, true);
	der_put(b, DER_OCTET_STRING, value);
	der_close(b, all);
}

/* A named bit list: trailing zero bits are left out (X.690 11.2.2). Our bits 0 to 6 fit one byte.
 */
static void put_key_usage(struct buf *b, unsigned ku)
{
	uint8_t v[4] = { DER_BIT_STRING, 2 };
	unsigned last = 0;

	for (unsigned i = 0; i < 8; i++)
		if (ku & 1u << i) {
			v[3] |= (uint8_t)(0x80 >> i);
			last = i;
		}
	v[2] = (uint8_t)(7 - last);
	if (ku)
		put_extension(b, EXT_KU, true, bytes_of(v, sizeof(v)));
}

static void put_key_id(struct buf *b, uint8_t last, uint8_t tag, struct bytes id)
{
	AUTO_BUF struct buf v = BUF_INIT;
	size_t seq;

	if (last == EXT_AKI) {
		seq = der_open(&v, DER_SEQUENCE);
		der_put(&v, tag, id);
		der_close(&v, seq);
	} else {
		der_put(&v, tag, id);
	}
	put_extension(b, last, false, buf_view(&v));
}

/* RFC 5280 4.2.1.2 (1): SHA-1 of the BIT STRING's contents. */
static bool put_ski(struct buf *b, struct bytes spki)
{
	struct bytes seq, alg, bits;
	uint8_t id[20];
	unsigned unused;

	if (!der_get(&spki, DER_SEQUENCE, &seq) || spki.n || !der_get(&seq, DER_SEQUENCE, &alg) ||
		!der_get_bits(&seq, &bits, &unused) || seq.n)
		return false;
	hash_of(HASH_SHA1, bits, id);
	put_key_id(b, EXT_SKI, DER_OCTET_STRING, bytes_of(id, sizeof(id)));
	return true;
}

static bool put_extensions(struct buf *b, const struct x509_template *t)
{
	static const uint8_t eku[] = { DER_SEQUENCE, 20, DER_OID, 8, 0x2b, 0x06, 0x01, 0x05, 0x05,
		0x07, 0x03, 0x01, DER_OID, 8, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02 };
	static const uint8_t ca[] = { DER_SEQUENCE, 3, DER_BOOLEAN, 1, 0xff };
	static const uint8_t leaf[] = { DER_SEQUENCE, 0 };
	size_t field = der_open(b, DER_CONTEXT_CONSTRUCTED(3));
	size_t seq = der_open(b, DER_SEQUENCE);
	bool ok;

	put_key_usage(b, t->key_usage);
	if (t->eku_server_client)
		put_extension(b, EXT_EKU, false, bytes_of(eku, sizeof(eku)));
	put_extension(b, EXT_BC, true, t->is_ca ? bytes_of(ca, sizeof(ca)) : bytes_of(leaf, 2));
	ok = put_ski(b, t->spki);
	if (t->aki.n)
		put_key_id(b, EXT_AKI, DER_CONTEXT(0), t->aki);
	/* RFC 5280 4.2.1.6: critical if the subject is an empty sequence. */
	san_put(b, t->subject_raw.n <= 2, t->uris, t->n_uris, t->dns_names, t->n_dns_names);
	der_close(b, seq);
	der_close(b, field);
	return ok;
}

static int check_template(const struct x509_template *t, struct err *e)
{
	bool zero = true;

	for (size_t i = 0; i < t->serial.n; i++)
		zero = zero && t->serial.p[i] == 0;
	if (zero || t->serial.n > 20)
		return err_set(e, ERR_INVALID, "the serial number must be of 1 to 20 bytes, not 0");
	if (t->issuer_raw.n == 0)
		return err_set(e, ERR_INVALID, "the certificate has no issuer");
	if (wall_sub_ns(t->not_after, t->not_before) < 0)
		return err_set(e, ERR_INVALID, "the certificate would end before it begins");
	for (size_t i = 0; i < t->n_uris + t->n_dns_names; i++) {
		const char *s = i < t->n_uris ? t->uris[i] : t->dns_names[i - t->n_uris];

		for (; *s; s++)
			if (*s < 0x20 || *s > 0x7e)
				return err_set(
					e, ERR_INVALID, "a name has characters beyond ASCII");
	}
	return 0;
}

static int put_tbs(
	struct buf *b, const struct x509_template *t, enum key_type signer, struct err *e)
{
	static const uint8_t v3[] = { DER_CONTEXT_CONSTRUCTED(0), 3, DER_INTEGER, 1, 2 };
	size_t all, validity;
	bool ok;

	all = der_open(b, DER_SEQUENCE);
	buf_append(b, v3, sizeof(v3));
	der_put_uint(b, t->serial);
	sig_alg_put(b, signer);
	buf_bytes(b, t->issuer_raw);
	validity = der_open(b, DER_SEQUENCE);
	ok = put_time(b, t->not_before) && put_time(b, t->not_after);
	der_close(b, validity);
	if (!ok)
		return err_set(e, ERR_INVALID, "the validity is out of what X.509 can express");
	if (t->subject_raw.n)
		buf_bytes(b, t->subject_raw);
	else
		der_put(b, DER_SEQUENCE, bytes_of(NULL, 0));
	buf_bytes(b, t->spki);
	if (!put_extensions(b, t))
		return err_set(e, ERR_INVALID, "malformed public key");
	der_close(b, all);
	return 0;
}

/* Appends SEQ { body, algorithm, signature over body }. */
static int put_signed(
	struct bytes body, const struct x509_signer *s, struct buf *ret, struct err *e)
{
	AUTO_BUF struct buf sig = BUF_INIT;
	uint8_t digest[HASH_MAX];
	enum hash h = key_type_hash(s->type);
	size_t all;
	int r;

	hash_of(h, body, digest);
	r = s->sign(s->arg, h, bytes_of(digest, hash_size(h)), &sig, e);
	if (r)
		return r;
	buf_reserve(ret, body.n + sig.len + 64);
	all = der_open(ret, DER_SEQUENCE);
	buf_bytes(ret, body);
	sig_alg_put(ret, s->type);
	der_put_bits(ret, buf_view(&sig));
	der_close(ret, all);
	return ret->failed ? err_set(e, ERR_EXHAUSTED, "the certificate is too large") : 0;
}

int x509_build(
	const struct x509_template *t, const struct x509_signer *s, struct buf *ret, struct err *e)
{
	AUTO_BUF struct buf tbs = BUF_INIT_MAX(X509_MAX_DER - 2048);
	int r = check_template(t, e);

	if (r)
		return r;
	buf_reserve(&tbs, CERT_RESERVE);
	r = put_tbs(&tbs, t, s->type, e);
	if (r)
		return r;
	if (tbs.failed)
		return err_set(e, ERR_INVALID, "the certificate would be too large");
	return put_signed(buf_view(&tbs), s, ret, e);
}

void x509_random_serial(uint8_t ret[16])
{
	static const uint8_t zero[16];

	do
		crypto_random(ret, 16);
	while (memcmp(ret, zero, 16) == 0);
}

/* ---- CSR ---- */

static void put_csr_attributes(struct buf *b, const char *uri, const char *const *dns, size_t n_dns)
{
	/* extensionRequest, RFC 2985 5.4.2 */
	static const uint8_t oid[] = { 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x0e };
	size_t field = der_open(b, DER_CONTEXT_CONSTRUCTED(0));
	size_t attr, set, seq;

	if (uri || n_dns) {
		attr = der_open(b, DER_SEQUENCE);
		der_put(b, DER_OID, bytes_of(oid, sizeof(oid)));
		set = der_open(b, DER_SET);
		seq = der_open(b, DER_SEQUENCE);
		san_put(b, false, &uri, uri != NULL, dns, n_dns);
		der_close(b, seq);
		der_close(b, set);
		der_close(b, attr);
	}
	der_close(b, field);
}

static int sign_with_key(
	void *arg, enum hash h, struct bytes digest, struct buf *ret, struct err *e)
{
	return key_sign(arg, h, digest, SIG_X509, ret, e);
}

int x509_csr_make(const struct key *k, const char *uri, struct buf *ret, struct err *e)
{
	return x509_csr_make_dns(k, uri, NULL, 0, ret, e);
}

int x509_csr_build(const struct x509_csr_template *t, const struct x509_signer *s, struct buf *ret,
	struct err *e)
{
	AUTO_BUF struct buf info = BUF_INIT_MAX(X509_MAX_DER - 2048);
	size_t all = der_open(&info, DER_SEQUENCE);

	der_put_small(&info, 0);
	buf_bytes(&info, t->subject_raw);
	buf_bytes(&info, t->spki);
	put_csr_attributes(&info, t->uri, t->dns_names, t->n_dns_names);
	der_close(&info, all);
	if (info.failed)
		return err_set(e, ERR_INVALID, "the CSR would be too large");
	return put_signed(buf_view(&info), s, ret, e);
}

int x509_csr_make_dns(const struct key *k, const char *uri, const char *const *dns, size_t n_dns,
	struct buf *ret, struct err *e)
{
	static const struct x509_name name = { .country = "US", .organization = "SPIRE" };
	AUTO_BUF struct buf subject = BUF_INIT;
	struct x509_signer s = {
		.type = key_get_type(k), .sign = sign_with_key, .arg = (void *)(uintptr_t)k
	};

	x509_name_der(&name, &subject);
	return x509_csr_build(&(struct x509_csr_template){ .subject_raw = buf_view(&subject),
				      .spki = pubkey_spki(key_public(k)),
				      .uri = uri,
				      .dns_names = dns,
				      .n_dns_names = n_dns },
		&s, ret, e);
}

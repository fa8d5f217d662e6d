#include <string.h>

#include "lib/x509_internal.h"

struct csr_parts {
	struct bytes info; /* whole: what is signed */
	struct bytes subject, spki, attributes;
	struct bytes alg, signature;
};

/* CertificationRequest, RFC 2986 4. */
static bool split(struct bytes der, struct csr_parts *ret)
{
	struct bytes seq, info, body, alg;
	unsigned version, unused;

	return der_get(&der, DER_SEQUENCE, &seq) && der.n == 0 &&
	       der_get_whole(&seq, DER_SEQUENCE, &info, &ret->info) &&
	       der_get_whole(&seq, DER_SEQUENCE, &alg, &ret->alg) &&
	       der_get_bits(&seq, &ret->signature, &unused) && unused == 0 && seq.n == 0 &&
	       der_get_small(&info, &version) && version == 0 &&
	       der_get_whole(&info, DER_SEQUENCE, &body, &ret->subject) && name_check(body) &&
	       der_get_whole(&info, DER_SEQUENCE, &body, &ret->spki) &&
	       /* Some leave an empty set of attributes out. */
	       (info.n == 0 || der_get(&info, DER_CONTEXT_CONSTRUCTED(0), &ret->attributes)) &&
	       info.n == 0;
}

static int parse_attributes(struct bytes in, struct extensions *ext, struct err *e)
{
	static const uint8_t request[] = { 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x0e };
	bool seen = false;

	while (in.n) {
		struct bytes attr, oid, set, seq;
		int r;

		if (!der_get(&in, DER_SEQUENCE, &attr) || !der_get(&attr, DER_OID, &oid) ||
			!der_get(&attr, DER_SET, &set) || attr.n)
			return err_set(e, ERR_INVALID, "attribute");
		if (!bytes_equal(oid, bytes_of(request, sizeof(request))))
			continue;
		if (seen || !der_get(&set, DER_SEQUENCE, &seq) || set.n)
			return err_set(e, ERR_INVALID, "requested extensions");
		seen = true;
		r = extensions_parse(seq, ext, e);
		if (r)
			return r;
	}
	return 0;
}

static int parse(struct bytes der, struct x509_csr *c, struct err *e)
{
	struct extensions ext = EXTENSIONS_INIT;
	struct csr_parts parts = { 0 };
	int r;

	if (der.n > X509_MAX_DER)
		return err_set(e, ERR_INVALID, "larger than %d bytes", X509_MAX_DER);
	if (!split(der, &parts))
		return err_set(e, ERR_INVALID, "not a PKCS#10 certification request");
	r = parse_attributes(parts.attributes, &ext, e);
	if (!r)
		r = pubkey_from_spki(parts.spki, &c->pubkey, e);
	if (!r) {
		buf_bytes(&c->subject_raw, parts.subject);
		buf_bytes(&c->raw, der);
		c->uris = strings_dup(&ext.uris);
		c->dns_names = strings_dup(&ext.dns_names);
	}
	extensions_deinit(&ext);
	return r;
}

int x509_csr_parse(struct bytes der, struct x509_csr *ret, struct err *e)
{
	struct x509_csr c = { .subject_raw = BUF_INIT, .raw = BUF_INIT };
	struct err local = ERR_INIT;

	e = e ? e : &local;
	if (parse(der, &c, e)) {
		x509_csr_deinit(&c);
		err_wrap(e, "malformed CSR");
		return e->code = ERR_INVALID;
	}
	*ret = c;
	return 0;
}

int x509_csr_check_signature(const struct x509_csr *c, struct err *e)
{
	struct csr_parts parts = { 0 };
	struct sig_alg alg;

	INVARIANT(split(buf_view(&c->raw), &parts));
	alg = sig_alg_parse(parts.alg);
	return signature_check(c->pubkey, &alg, parts.info, parts.signature, e);
}

void x509_csr_deinit(struct x509_csr *c)
{
	pubkey_unref(c->pubkey);
	c->pubkey = NULL;
	buf_deinit(&c->subject_raw);
	buf_deinit(&c->raw);
	strings_deinit(&c->uris);
	strings_deinit(&c->dns_names);
}

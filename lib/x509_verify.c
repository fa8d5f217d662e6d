/*
 * Path validation, RFC 5280 6.1, from the leaf up: a bounded search, so that intermediates may come
 * in any order and every root of the right name gets its chance. A candidate's cheap properties
 * are checked first, its signature last.
 */
#include <stdlib.h>
#include <string.h>

#include "lib/x509_internal.h"

enum {
	MAX_SIGNATURES = 256, /* one verification costs no more than that */
	MAX_COMPARISONS = 250000,
};

struct search {
	const struct x509_chain *presented, *roots;
	struct wall now;
	struct x509_cert *path[X509_MAX_CHAIN + 1];
	size_t n;
	int signatures, comparisons;
	struct err why; /* what was wrong with the first candidate that was refused */
};

static void describe(const struct x509_cert *c, char *ret, size_t cap)
{
	AUTO_BUF struct buf b = BUF_INIT;

	x509_subject_text(c, &b);
	if (b.len == 0 && c->ext.uris.n)
		buf_str(&b, c->ext.uris.v[0]);
	if (b.len >= cap)
		b.len = cap - 1;
	memcpy(ret, b.p ? (const char *)b.p : "", b.len);
	ret[b.len] = 0;
}

static int check_dates(const struct x509_cert *c, struct wall now, struct err *e)
{
	bool early = wall_sub_ns(now, c->not_before) < 0;
	char have[40], limit[40], who[120];

	/* "The certificate validity period includes the current time" (6.1.3 a 2), to the second.
	 */
	if (!early && now.sec <= c->not_after.sec)
		return 0;
	describe(c, who, sizeof(who));
	wall_format(now, have, sizeof(have));
	wall_format(early ? c->not_before : c->not_after, limit, sizeof(limit));
	if (early)
		return err_set(e, ERR_INVALID,
			"x509: certificate has expired or is not yet valid: current time %s is "
			"before %s (\"%s\")",
			have, limit, who);
	return err_set(e, ERR_INVALID,
		"x509: certificate has expired or is not yet valid: current time %s is after %s, "
		"expired %lld s ago (\"%s\")",
		have, limit, (long long)(now.sec - c->not_after.sec), who);
}

static int check_extensions(const struct x509_cert *c, struct err *e)
{
	if (c->ext.unknown_critical[0])
		return err_set(e, ERR_INVALID, "x509: unhandled critical extension (%s)",
			c->ext.unknown_critical);
	return 0;
}

/* How many certificates between the leaf and path[n] count against a path length (6.1.4 l). */
static int intermediates_below(const struct search *s)
{
	int n = 0;

	for (size_t i = 1; i < s->n; i++)
		n += !x509_self_issued(s->path[i]);
	return n;
}

/* ca may stand above what is on the path now; signature aside. */
static int check_issuer(struct search *s, const struct x509_cert *ca, struct err *e)
{
	int r = check_dates(ca, s->now, e);

	if (!r)
		r = check_extensions(ca, e);
	if (r)
		return r;
	if (ca->version == 3 ? !ca->ext.is_ca : ca->ext.has_basic_constraints && !ca->ext.is_ca)
		return err_set(e, ERR_INVALID,
			"x509: certificate is not authorized to sign other certificates: it is no "
			"CA");
	if (ca->ext.has_key_usage && !(ca->ext.key_usage & KU_CERT_SIGN))
		return err_set(e, ERR_INVALID,
			"x509: certificate is not authorized to sign other certificates: its key "
			"usage "
			"lacks keyCertSign");
	if (ca->ext.path_len >= 0 && intermediates_below(s) > ca->ext.path_len)
		return err_set(e, ERR_INVALID,
			"x509: too many intermediates for path length constraint (%d)",
			ca->ext.path_len);
	/* 6.1.3 b: also every intermediate that is not self-issued. */
	for (size_t i = 0; !r && i < s->n; i++)
		if (i == 0 || !x509_self_issued(s->path[i]))
			r = constraints_check(&ca->ext, s->path[i], &s->comparisons, e);
	return r;
}

static bool key_id_fits(const struct x509_cert *c, const struct x509_cert *ca)
{
	return c->ext.aki.n && bytes_equal(c->ext.aki, ca->ext.ski);
}

static bool on_path(const struct search *s, const struct x509_cert *c)
{
	for (size_t i = 0; i < s->n; i++)
		if (bytes_equal(s->path[i]->der, c->der))
			return true;
	return false;
}

static void remember(struct search *s, const struct err *e, const struct x509_cert *candidate)
{
	char who[200];

	if (s->why.code)
		return;
	describe(candidate, who, sizeof(who));
	err_set(&s->why, ERR_INVALID, "%.600s (candidate \"%s\")", e->msg, who);
}

/* Puts ca on the path if it may be there. */
static bool push(struct search *s, struct x509_cert *ca)
{
	const struct x509_cert *top = s->path[s->n - 1];
	struct err e = ERR_INIT;
	int r;

	if (s->n == ARRAY_LEN(s->path) || s->signatures == 0 || on_path(s, ca))
		return false;
	r = check_issuer(s, ca, &e);
	if (!r) {
		s->signatures--;
		r = x509_signed_by(top, ca, &e);
	}
	if (r) {
		remember(s, &e, ca);
		return false;
	}
	s->path[s->n++] = ca;
	return true;
}

static bool search_up(struct search *s);

/* Those whose key identifier fits are tried first, but it is only a hint (RFC 4158 3.5.12). */
static bool try_all(struct search *s, const struct x509_chain *set, size_t from, bool is_root)
{
	const struct x509_cert *top = s->path[s->n - 1];

	for (int pass = 0; pass < 2; pass++)
		for (size_t i = from; i < set->n; i++) {
			struct x509_cert *ca = set->v[i];

			if (key_id_fits(top, ca) != (pass == 0) ||
				!bytes_equal(ca->subject, top->issuer) || !push(s, ca))
				continue;
			if (is_root || search_up(s))
				return true;
			s->n--;
		}
	return false;
}

static bool search_up(struct search *s)
{
	return try_all(s, s->roots, 0, true) || try_all(s, s->presented, 1, false);
}

/* A leaf that is itself a trust anchor needs nobody else. */
static bool leaf_is_root(const struct search *s)
{
	for (size_t i = 0; i < s->roots->n; i++)
		if (bytes_equal(s->roots->v[i]->der, s->path[0]->der))
			return true;
	return false;
}

int x509_verify_path(const struct x509_chain *ch, const struct x509_chain *roots, struct wall now,
	struct x509_chain *ret, struct err *e)
{
	struct search s = { .presented = ch,
		.roots = roots,
		.now = now,
		.n = 1,
		.signatures = MAX_SIGNATURES,
		.comparisons = MAX_COMPARISONS,
		.why = ERR_INIT };
	int r;

	if (ch->n == 0)
		return err_set(e, ERR_INVALID, "x509: there is no certificate to verify");
	if (ch->n > X509_MAX_CHAIN)
		return err_set(e, ERR_INVALID, "x509: the chain has %zu certificates, more than %d",
			ch->n, X509_MAX_CHAIN);
	s.path[0] = ch->v[0];
	r = check_dates(ch->v[0], now, e);
	if (!r)
		r = check_extensions(ch->v[0], e);
	if (r)
		return r;
	if (!leaf_is_root(&s) && !search_up(&s)) {
		if (!s.why.code)
			return err_set(
				e, ERR_INVALID, "x509: certificate signed by unknown authority");
		return err_set(e, ERR_INVALID,
			"x509: certificate signed by unknown authority (possibly because of: %s)",
			s.why.msg);
	}
	if (ret) {
		*ret = (struct x509_chain){ 0 };
		for (size_t i = 0; i < s.n; i++)
			x509_chain_add(ret, s.path[i]);
	}
	return 0;
}

int x509_verify(
	const struct x509_chain *ch, const struct x509_chain *roots, struct wall now, struct err *e)
{
	return x509_verify_path(ch, roots, now, NULL, e);
}

int x509_signed_by(const struct x509_cert *c, const struct x509_cert *issuer, struct err *e)
{
	return signature_check(issuer->pubkey, &c->alg, c->tbs, c->signature, e);
}

int x509_svid_id(const struct x509_cert *leaf, struct spiffeid *ret, struct err *e)
{
	int r;

	/* X509-SVID 2: an SVID MUST contain exactly one URI SAN. */
	if (leaf->ext.uris.n == 0)
		return err_set(e, ERR_INVALID, "certificate contains no URI SAN");
	if (leaf->ext.uris.n > 1)
		return err_set(e, ERR_INVALID, "certificate contains more than one URI SAN");
	/* 4.1: leaf certificates MUST set the cA field to false. */
	if (leaf->ext.is_ca)
		return err_set(e, ERR_INVALID, "leaf certificate with CA flag set to true");
	/* 4.3: leaf SVIDs MUST set digitalSignature, MUST NOT set keyCertSign or cRLSign. */
	if (leaf->ext.key_usage & KU_CERT_SIGN)
		return err_set(e, ERR_INVALID, "leaf certificate with KeyCertSign key usage");
	if (leaf->ext.key_usage & KU_CRL_SIGN)
		return err_set(e, ERR_INVALID, "leaf certificate with KeyCrlSign key usage");
	if (!(leaf->ext.key_usage & KU_DIGITAL_SIGNATURE))
		return err_set(
			e, ERR_INVALID, "leaf certificate without DigitalSignature key usage");
	r = spiffeid_parse_str(ret, leaf->ext.uris.v[0], e);
	return r ? err_wrap(e, "certificate contains an invalid SPIFFE ID") : 0;
}

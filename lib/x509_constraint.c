/* Name constraints, RFC 5280 4.2.1.10. */
#include <string.h>
#include <strings.h>

#include "lib/x509_internal.h"

enum {
	BASE_EMAIL = DER_CONTEXT(1),
	BASE_DNS = DER_CONTEXT(2),
	BASE_URI = DER_CONTEXT(6),
	BASE_IP = DER_CONTEXT(7)
};

static bool equal_fold(struct bytes a, struct bytes b)
{
	return a.n == b.n &&
	       (a.n == 0 || strncasecmp((const char *)a.p, (const char *)b.p, a.n) == 0);
}

/* name is base, or base with labels in front. */
static bool in_domain(struct bytes name, struct bytes base)
{
	struct bytes tail;

	if (name.n < base.n)
		return false;
	tail = bytes_of(name.p + name.n - base.n, base.n);
	return equal_fold(tail, base) && (name.n == base.n || name.p[name.n - base.n - 1] == '.');
}

static struct bytes skip(struct bytes v, size_t n)
{
	return bytes_of(v.p + n, v.n - n);
}

/* A base that begins with a period stands for what is below it, not for itself. */
static bool below(struct bytes name, struct bytes base)
{
	base = skip(base, 1);
	return name.n > base.n && in_domain(name, base);
}

static bool match_dns(struct bytes name, struct bytes base, bool excluding)
{
	struct bytes rest;

	if (base.n == 0)
		return true;
	if (base.p[0] == '.')
		return below(name, base);
	if (in_domain(name, base))
		return true;
	/* "*.example.com" stands for a.example.com too, which may be what is excluded. */
	if (excluding && name.n > 2 && name.p[0] == '*' && name.p[1] == '.') {
		const uint8_t *dot = memchr(base.p, '.', base.n);

		rest = dot ? skip(base, (size_t)(dot - base.p) + 1) : bytes_of(NULL, 0);
		return dot && equal_fold(skip(name, 2), rest);
	}
	return false;
}

/* The host of a URI with an authority; n = 0 when there is none, or it is no name. */
static struct bytes uri_host(struct bytes uri)
{
	const uint8_t *p = memmem(uri.p, uri.n, "://", 3);
	struct bytes host = { 0 };
	const uint8_t *at;

	if (!p)
		return host;
	uri = skip(uri, (size_t)(p - uri.p) + 3);
	while (host.n < uri.n && !strchr("/?#", uri.p[host.n]))
		host.n++;
	host.p = uri.p;
	at = host.n ? memrchr(host.p, '@', host.n) : NULL;
	if (at)
		host = skip(host, (size_t)(at - host.p) + 1);
	if (host.n && host.p[0] == '[')
		return bytes_of(NULL, 0);
	at = host.n ? memchr(host.p, ':', host.n) : NULL;
	if (at)
		host.n = (size_t)(at - host.p);
	return host;
}

/* "When the constraint begins with a period, it MAY be expanded with one or more labels … When the
 * constraint does not begin with a period, it specifies a host." Others read the latter as the
 * domain under it too; what is excluded so is excluded here. */
static bool match_host(struct bytes host, struct bytes base, bool excluding)
{
	if (base.n && base.p[0] == '.')
		return below(host, base);
	return equal_fold(host, base) || (excluding && (base.n == 0 || in_domain(host, base)));
}

static bool match_email(struct bytes mail, struct bytes base, bool excluding)
{
	const uint8_t *at = mail.n ? memrchr(mail.p, '@', mail.n) : NULL;
	const uint8_t *base_at = base.n ? memrchr(base.p, '@', base.n) : NULL;
	size_t local = at ? (size_t)(at - mail.p) : 0;

	if (!at)
		return excluding;
	if (!base_at)
		return match_host(skip(mail, local + 1), base, excluding);
	return (size_t)(base_at - base.p) == local && memcmp(mail.p, base.p, local) == 0 &&
	       equal_fold(skip(mail, local + 1), skip(base, local + 1));
}

static bool match_ip(struct bytes ip, struct bytes base)
{
	if (base.n != ip.n * 2)
		return false;
	for (size_t i = 0; i < ip.n; i++)
		if ((ip.p[i] ^ base.p[i]) & base.p[ip.n + i])
			return false;
	return true;
}

static bool match(uint8_t kind, struct bytes name, struct bytes base, bool excluding)
{
	switch (kind) {
	case BASE_DNS:
		return match_dns(name, base, excluding);
	case BASE_URI:
		return match_host(uri_host(name), base, excluding);
	case BASE_EMAIL:
		return match_email(name, base, excluding);
	default:
		return match_ip(name, base);
	}
}

/* Takes the next GeneralSubtree off the list. "minimum MUST be zero, and maximum MUST be absent."
 */
static bool get_subtree(struct bytes *list, uint8_t *ret_kind, struct bytes *ret_base)
{
	struct bytes seq;

	return der_get(list, DER_SEQUENCE, &seq) && der_next(&seq, ret_kind, ret_base) &&
	       seq.n == 0;
}

static bool subtrees_known(struct bytes list)
{
	struct bytes base;
	uint8_t kind;

	while (list.n) {
		if (!get_subtree(&list, &kind, &base))
			return false;
		if (kind != BASE_DNS && kind != BASE_URI && kind != BASE_EMAIL && kind != BASE_IP)
			return false;
		if (kind == BASE_IP && base.n != 8 && base.n != 32)
			return false;
	}
	return true;
}

struct check {
	struct bytes permitted, excluded;
	int *budget;
};

static bool listed(struct bytes list, uint8_t kind, struct bytes name, bool excluding, int *budget,
	bool *ret_any)
{
	struct bytes base;
	uint8_t k;

	while (get_subtree(&list, &k, &base)) {
		--*budget;
		if (k != kind)
			continue;
		*ret_any = true;
		if (match(kind, name, base, excluding))
			return true;
	}
	return false;
}

static int check_name(const struct check *c, uint8_t kind, struct bytes name, struct err *e)
{
	bool any = false, dummy = false;
	int shown = kind == BASE_IP ? 0 : name.n > 200 ? 200 : (int)name.n;
	bool out = listed(c->excluded, kind, name, true, c->budget, &dummy) ||
		   (!listed(c->permitted, kind, name, false, c->budget, &any) && any);

	/* A URI without a host name cannot be held against constraints (RFC 5280: reject). */
	if (!out && kind == BASE_URI && (any || dummy) && uri_host(name).n == 0)
		out = true;
	if (*c->budget <= 0)
		return err_set(e, ERR_INVALID, "x509: too many name constraints to check");
	if (out)
		return err_set(e, ERR_INVALID,
			"x509: a name of the certificate (%s \"%.*s\") is not permitted by the "
			"name "
			"constraints of its issuer",
			kind == BASE_URI     ? "URI"
			: kind == BASE_DNS   ? "DNS"
			: kind == BASE_EMAIL ? "email"
					     : "IP address",
			shown, shown ? (const char *)name.p : "");
	return 0;
}

static int check_strings(
	const struct check *c, uint8_t kind, const struct strings *names, struct err *e)
{
	int r = 0;

	for (size_t i = 0; !r && i < names->n; i++)
		r = check_name(c, kind, bytes_str(names->v[i]), e);
	return r;
}

int constraints_check(const struct extensions *of_ca, const struct x509_cert *below_ca, int *budget,
	struct err *e)
{
	struct bytes body = of_ca->constraints;
	struct check c = { .budget = budget };
	bool ok = true;
	int r;

	if (!body.p)
		return 0;
	if (der_peek(body, DER_CONTEXT_CONSTRUCTED(0)))
		ok = der_get(&body, DER_CONTEXT_CONSTRUCTED(0), &c.permitted);
	if (ok && der_peek(body, DER_CONTEXT_CONSTRUCTED(1)))
		ok = der_get(&body, DER_CONTEXT_CONSTRUCTED(1), &c.excluded);
	if (!ok || body.n || !subtrees_known(c.permitted) || !subtrees_known(c.excluded))
		return err_set(e, ERR_INVALID,
			"x509: the issuer has name constraints that are not understood");
	r = check_strings(&c, BASE_URI, &below_ca->ext.uris, e);
	if (!r)
		r = check_strings(&c, BASE_DNS, &below_ca->ext.dns_names, e);
	if (!r)
		r = check_strings(&c, BASE_EMAIL, &below_ca->ext.emails, e);
	for (size_t i = 0; !r && i < below_ca->ext.n_ips; i++)
		r = check_name(&c, BASE_IP, below_ca->ext.ips[i], e);
	return r;
}

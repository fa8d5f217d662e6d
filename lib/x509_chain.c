/* Chains and sets of roots; their DER and PEM forms. */
#include <stdlib.h>
#include <string.h>

#include "lib/x509_internal.h"

void x509_chain_deinit(struct x509_chain *ch)
{
	for (size_t i = 0; i < ch->n; i++)
		x509_unref(ch->v[i]);
	free(ch->v);
	*ch = (struct x509_chain){ 0 };
}

void x509_chain_add(struct x509_chain *ch, struct x509_cert *c)
{
	ch->v = xreallocarray(ch->v, ch->n + 1, sizeof(struct x509_cert *));
	ch->v[ch->n++] = x509_ref(c);
}

struct x509_chain x509_chain_dup(const struct x509_chain *ch)
{
	struct x509_chain d = { 0 };

	for (size_t i = 0; i < ch->n; i++)
		x509_chain_add(&d, ch->v[i]);
	return d;
}

/* Adds the certificate that der is, which must be within max. */
static int add_der(struct x509_chain *ch, struct bytes der, size_t max, struct err *e)
{
	AUTO(x509_unref) struct x509_cert *c = NULL;
	int r;

	if (ch->n == max)
		return err_set(e, ERR_INVALID, "there are more than %zu certificates", max);
	r = x509_parse(der, &c, e);
	if (!r)
		x509_chain_add(ch, c);
	return r;
}

int x509_chain_parse_der(
	struct x509_chain *ret, struct bytes concatenated, size_t max, struct err *e)
{
	struct x509_chain ch = { 0 };
	int r = 0;

	if (concatenated.n == 0)
		return err_set(e, ERR_INVALID, "there is no certificate");
	while (!r && concatenated.n) {
		struct bytes body, whole;

		if (der_get_whole(&concatenated, DER_SEQUENCE, &body, &whole))
			r = add_der(&ch, whole, max, e);
		else
			r = err_set(e, ERR_INVALID, "malformed certificate: not one DER element");
	}
	if (r)
		x509_chain_deinit(&ch);
	else
		*ret = ch;
	return r;
}

struct pem_target {
	struct x509_chain chain;
	size_t max;
};

static int take_certificate(void *arg, const char *label, struct bytes der, struct err *e)
{
	struct pem_target *t = arg;

	return strcmp(label, "CERTIFICATE") == 0 ? add_der(&t->chain, der, t->max, e) : 0;
}

int x509_chain_parse_pem(struct x509_chain *ret, struct bytes pem, size_t max, struct err *e)
{
	struct pem_target t = { .max = max };
	int r = pem_each(pem, take_certificate, &t, e);

	if (!r && t.chain.n == 0)
		r = err_set(e, ERR_INVALID, "there is no PEM certificate");
	if (r)
		x509_chain_deinit(&t.chain);
	else
		*ret = t.chain;
	return r;
}

void x509_chain_der(const struct x509_chain *ch, struct buf *ret)
{
	for (size_t i = 0; i < ch->n; i++)
		buf_bytes(ret, ch->v[i]->der);
}

void x509_chain_pem(const struct x509_chain *ch, struct buf *ret)
{
	for (size_t i = 0; i < ch->n; i++)
		pem_write(ret, "CERTIFICATE", ch->v[i]->der);
}

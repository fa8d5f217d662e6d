/* What an X509SVIDResponse holds: checked, printed, written to files. */
#include <stdlib.h>
#include <string.h>

#include "agent/cmd_api.h"
#include "lib/clock.h"
#include "lib/spiffeid.h"

void api_free_x509(X509SVIDResponse *m)
{
	for (size_t i = 0; i < m->n_svids; i++)
		if (m->svids[i]->x509_svid_key.len)
			mem_wipe(m->svids[i]->x509_svid_key.data, m->svids[i]->x509_svid_key.len);
	x509_svidresponse__free_unpacked(m, NULL);
}

void api_svids_deinit(struct api_svids *s)
{
	for (size_t i = 0; i < s->n; i++) {
		free(s->v[i].spiffe_id);
		free(s->v[i].hint);
		x509_chain_deinit(&s->v[i].certs);
		x509_chain_deinit(&s->v[i].bundle);
		key_unref(s->v[i].key);
	}
	for (size_t i = 0; i < s->n_federated; i++) {
		free(s->federated[i].trust_domain);
		x509_chain_deinit(&s->federated[i].certs);
	}
	free(s->v);
	free(s->federated);
	*s = (struct api_svids){ NULL, 0 };
}

/* ---- parsing ---- */

static struct bytes view(const ProtobufCBinaryData *d)
{
	return bytes_of(d->data, d->len);
}

static int parse_svid(struct api_svid *ret, const X509SVID *m, struct err *e)
{
	int r;

	if (!m->x509_svid.len)
		return err_set(e, ERR_INVALID, "no certificates found");
	r = x509_chain_parse_der(&ret->certs, view(&m->x509_svid), X509_MAX_CHAIN, e);
	if (r)
		return r;
	r = key_from_pkcs8(view(&m->x509_svid_key), &ret->key, e);
	if (r)
		return err_wrap(e, "failed to parse private key");
	if (!m->bundle.len)
		return err_set(e, ERR_INVALID, "no certificates in trust bundle");
	r = x509_chain_parse_der(&ret->bundle, view(&m->bundle), X509_MAX_ROOTS, e);
	return r ? err_wrap(e, "failed to parse trust bundle") : 0;
}

static int verify_svid(const struct api_svid *s, struct err *e)
{
	struct spiffeid id = SPIFFEID_INIT;
	int r = x509_verify(&s->certs, &s->bundle, clock_wall(), e);

	if (!r)
		r = x509_svid_id(s->certs.v[0], &id, e);
	if (!r && strcmp(id.text, s->spiffe_id) != 0)
		r = err_set(e, ERR_INVALID, "the certificate is for \"%s\"", id.text);
	spiffeid_deinit(&id);
	return r ? err_wrap(e, "\"%s\" SVID failed verification against bundle", s->spiffe_id) : 0;
}

static int parse_federated(struct api_svids *ret, const X509SVIDResponse *m, struct err *e)
{
	ret->federated = xcalloc(m->n_federated_bundles + 1, sizeof(*ret->federated));
	for (size_t i = 0; i < m->n_federated_bundles; i++) {
		const X509SVIDResponse__FederatedBundlesEntry *f = m->federated_bundles[i];
		struct api_bundle *b = &ret->federated[ret->n_federated++];
		int r;

		b->trust_domain = xstrdup(f->key);
		if (!f->value.len)
			return err_set(e, ERR_INVALID,
				"no certificates in bundle for federated domain \"%s\"", f->key);
		r = x509_chain_parse_der(&b->certs, view(&f->value), X509_MAX_ROOTS, e);
		if (r)
			return err_wrap(
				e, "failed to parse bundle for federated domain \"%s\"", f->key);
	}
	return 0;
}

static int by_trust_domain(const void *a, const void *b)
{
	const struct api_bundle *x = a, *y = b;

	return strcmp(x->trust_domain, y->trust_domain);
}

int api_svids_parse(struct api_svids *ret, const X509SVIDResponse *m, struct err *e)
{
	int r;

	if (!m->n_svids)
		return err_set(e, ERR_INVALID, "workload response contains no svids");
	r = parse_federated(ret, m, e);
	if (r)
		return r;
	if (ret->n_federated)
		qsort(ret->federated, ret->n_federated, sizeof(*ret->federated), by_trust_domain);
	ret->v = xcalloc(m->n_svids, sizeof(*ret->v));
	for (size_t i = 0; i < m->n_svids; i++) {
		struct api_svid *s = &ret->v[ret->n++];

		s->spiffe_id = xstrdup(m->svids[i]->spiffe_id);
		s->hint = xstrdup(m->svids[i]->hint);
		r = parse_svid(s, m->svids[i], e);
		if (r)
			return err_wrap(e, "failed to parse svid entry %zu for spiffe id \"%s\"", i,
				s->spiffe_id);
	}
	for (size_t i = 0; !r && i < ret->n; i++)
		r = verify_svid(&ret->v[i], e);
	return r;
}

/* ---- printing ---- */

static void print_validity(struct cli *c, const char *what, const struct x509_cert *cert)
{
	AUTO(free) char *from = cli_time(x509_not_before(cert).sec, true);
	AUTO(free) char *to = cli_time(x509_not_after(cert).sec, true);

	cli_printf(c, "%s Valid After:\t%s\n", what, from);
	cli_printf(c, "%s Valid Until:\t%s\n", what, to);
}

static void print_svid(struct cli *c, const struct api_svid *s)
{
	cli_printf(c, "SPIFFE ID:\t\t%s\n", s->spiffe_id);
	if (*s->hint)
		cli_printf(c, "Hint:\t\t\t%s\n", s->hint);
	print_validity(c, "SVID", s->certs.v[0]);
	for (size_t i = 1; i < s->certs.n; i++) {
		AUTO(free) char *what = xasprintf("Intermediate #%zu", i);

		print_validity(c, what, s->certs.v[i]);
	}
	for (size_t i = 0; i < s->bundle.n; i++) {
		AUTO(free) char *what = xasprintf("CA #%zu", i + 1);

		print_validity(c, what, s->bundle.v[i]);
	}
}

static void print_federated(struct cli *c, const struct api_bundle *b)
{
	for (size_t i = 0; i < b->certs.n; i++) {
		AUTO(free) char *what = xasprintf("[%s] CA #%zu", b->trust_domain, i + 1);

		print_validity(c, what, b->certs.v[i]);
	}
}

void api_svids_print(struct cli *c, const struct api_svids *s, int64_t took_ns)
{
	AUTO(free) char *took = duration_format(took_ns);

	cli_printf(c, "Received %zu svid%s after %s\n", s->n, text_plural(s->n, "", "s"), took);
	for (size_t i = 0; i < s->n; i++) {
		cli_printf(c, "\n");
		print_svid(c, &s->v[i]);
		for (size_t k = 0; k < s->n_federated; k++)
			print_federated(c, &s->federated[k]);
	}
	cli_printf(c, "\n");
}

/* ---- files ---- */

static char *file_in(const char *dir, const char *name)
{
	size_t n = strlen(dir);

	return xasprintf("%s%s%s", dir, n && dir[n - 1] == '/' ? "" : "/", name);
}

static int write_certs(const char *path, const struct x509_chain *certs, struct err *e)
{
	AUTO_BUF struct buf pem = BUF_INIT;

	x509_chain_pem(certs, &pem);
	return buf_write_file(buf_view(&pem), path, 0644, e);
}

static int write_key(const char *path, const struct key *k, struct err *e)
{
	AUTO_BUF struct buf der = BUF_INIT_SECRET;
	AUTO_BUF struct buf pem = BUF_INIT_SECRET;

	key_to_pkcs8(k, &der);
	pem_write(&pem, "PRIVATE KEY", buf_view(&der));
	return buf_write_file(buf_view(&pem), path, 0600, e);
}

static int write_svid(
	struct cli *c, const struct api_svid *s, size_t i, const char *dir, struct err *e)
{
	AUTO(free) char *svid_name = xasprintf("svid.%zu.pem", i);
	AUTO(free) char *key_name = xasprintf("svid.%zu.key", i);
	AUTO(free) char *bundle_name = xasprintf("bundle.%zu.pem", i);
	AUTO(free) char *svid = file_in(dir, svid_name);
	AUTO(free) char *key = file_in(dir, key_name);
	AUTO(free) char *bundle = file_in(dir, bundle_name);
	int r;

	cli_printf(c, "Writing SVID #%zu to file %s.\n", i, svid);
	r = write_certs(svid, &s->certs, e);
	if (r)
		return r;
	cli_printf(c, "Writing key #%zu to file %s.\n", i, key);
	r = write_key(key, s->key, e);
	if (r)
		return r;
	cli_printf(c, "Writing bundle #%zu to file %s.\n", i, bundle);
	return write_certs(bundle, &s->bundle, e);
}

int api_svids_write(struct cli *c, const struct api_svids *s, const char *dir, struct err *e)
{
	int r = 0;

	for (size_t i = 0; !r && i < s->n; i++) {
		r = write_svid(c, &s->v[i], i, dir, e);
		for (size_t k = 0; !r && k < s->n_federated; k++) {
			AUTO(free) char *name = xasprintf("federated_bundle.%zu.%zu.pem", i, k);
			AUTO(free) char *path = file_in(dir, name);

			cli_printf(c,
				"Writing federated bundle #%zu for trust domain %s to file %s.\n",
				k, s->federated[k].trust_domain, path);
			r = write_certs(path, &s->federated[k].certs, e);
		}
	}
	return r;
}

/* Upstream authority "disk": its key, certificate and bundle are files. They are read again for
 * each CA; while they are broken, what was good last goes on signing. */
#include <stdlib.h>
#include <string.h>

#include "lib/log.h"
#include "lib/mem.h"
#include "server/upstream.h"

enum { FILE_MAX = 1 << 20, BACKDATE_S = 10 };

/* What the files held; counted, immutable. */
struct authority {
	int refs; /* atomic */
	struct key *key;
	struct x509_cert *cert;
	struct x509_chain chain; /* goes along with what it signs */
	struct bundle *bundle;
};

struct disk {
	struct upstream base;
	struct loop *loop;
	char *trust_domain, *cert_path, *key_path, *bundle_path;
	struct authority *good;
	struct err broken; /* why the files could not be used the last time */
	int jobs;
	bool closed;
};

static struct disk *disk_of(struct upstream *u)
{
	return container_of(u, struct disk, base);
}

static void authority_unref(struct authority *a)
{
	if (!a || __atomic_sub_fetch(&a->refs, 1, __ATOMIC_ACQ_REL) > 0)
		return;
	key_unref(a->key);
	x509_unref(a->cert);
	x509_chain_deinit(&a->chain);
	bundle_unref(a->bundle);
	free(a);
}

static struct authority *authority_ref(struct authority *a)
{
	__atomic_add_fetch(&a->refs, 1, __ATOMIC_RELAXED);
	return a;
}

/* ---- the files ---- */

static int read_key(const char *path, struct key **ret, struct err *e)
{
	AUTO_BUF struct buf pem = BUF_INIT_MAX(FILE_MAX);
	int r;

	pem.secret = true;
	r = buf_read_file(&pem, path, e);
	if (!r)
		r = key_from_pem(buf_view(&pem), ret, e);
	return r ? err_wrap(e, "unable to load upstream CA key: %s", path) : 0;
}

static int read_certs(const char *path, const char *what, struct x509_chain *ret, struct err *e)
{
	AUTO_BUF struct buf pem = BUF_INIT_MAX(FILE_MAX);
	int r = buf_read_file(&pem, path, e);

	if (!r)
		r = x509_chain_parse_pem(ret, buf_view(&pem), X509_MAX_ROOTS, e);
	return r ? err_wrap(e, "unable to load upstream CA %s: %s", what, path) : 0;
}

static int check(const struct authority *a, const struct x509_chain *certs, struct err *e)
{
	const struct pubkey *pub = x509_pubkey(a->cert);
	struct x509_chain roots;
	bool present = false;
	unsigned ku = x509_key_usage(a->cert, &present);
	int r;

	if (!pub || !bytes_equal(pubkey_spki(pub), pubkey_spki(key_public(a->key))))
		return err_set(e, ERR_INVALID,
			"unable to load upstream CA: certificate and private key do not match");
	if (!x509_is_ca(a->cert) || (present && !(ku & KU_CERT_SIGN)))
		return err_set(e, ERR_INVALID,
			"unable to load upstream CA: the certificate is not one of a CA");
	roots = bundle_roots(a->bundle);
	r = x509_verify(certs, &roots, clock_wall(), e);
	x509_chain_deinit(&roots);
	return r ? err_wrap(e,
			   "unable to load upstream CA: certificate cannot be validated with the "
			   "provided bundle or is not self-signed")
		 : 0;
}

static int read_bundle(
	const struct disk *d, const struct x509_chain *certs, struct bundle *ret, struct err *e)
{
	struct x509_chain roots = { .n = 0 };
	int r = 0;

	if (d->bundle_path)
		r = read_certs(d->bundle_path, "bundle", &roots, e);
	else if (certs->n == 1)
		roots = x509_chain_dup(certs);
	else
		r = err_set(e, ERR_INVALID,
			"with no bundle_file_path configured only self-signed CAs are supported");
	for (size_t i = 0; i < roots.n; i++)
		(void)bundle_add_root(ret, roots.v[i], false);
	x509_chain_deinit(&roots);
	return r;
}

static int fill(const struct disk *d, struct authority *a, struct x509_chain *certs, struct err *e)
{
	int r = read_key(d->key_path, &a->key, e);

	if (!r)
		r = read_certs(d->cert_path, "cert", certs, e);
	if (!r && certs->n > X509_MAX_CHAIN - 2)
		r = err_set(e, ERR_INVALID, "unable to load upstream CA cert: %s: too many",
			d->cert_path);
	if (r)
		return r;
	a->cert = x509_ref(certs->v[0]);
	a->bundle = bundle_new(d->trust_domain);
	r = read_bundle(d, certs, a->bundle, e);
	if (!r)
		r = check(a, certs, e);
	/* As SPIRE: what the file holds goes along, a self-signed root too; unless the certificate
	 * is the whole bundle. */
	if (!r && d->bundle_path)
		a->chain = x509_chain_dup(certs);
	return r;
}

static int authority_load(const struct disk *d, struct authority **ret, struct err *e)
{
	struct authority *a = xcalloc(1, sizeof(*a));
	struct x509_chain certs = { .n = 0 };
	int r;

	a->refs = 1;
	r = fill(d, a, &certs, e);
	x509_chain_deinit(&certs);
	if (r) {
		authority_unref(a);
		e->code = ERR_INVALID;
		return ERR_INVALID;
	}
	*ret = a;
	return 0;
}

/* ---- signing ---- */

static int sign(void *arg, enum hash h, struct bytes digest, struct buf *ret, struct err *e)
{
	return key_sign(arg, h, digest, SIG_X509, ret, e);
}

static int build(const struct authority *a, const struct x509_csr *csr, int64_t ttl_ns,
	struct buf *ret, struct err *e)
{
	const struct x509_signer signer = {
		.type = key_get_type(a->key), .sign = sign, .arg = a->key
	};
	struct wall now = clock_wall(), end = wall_add_ns(now, ttl_ns);
	uint8_t serial[16];

	if (wall_sub_ns(x509_not_after(a->cert), end) < 0)
		end = x509_not_after(a->cert);
	x509_random_serial(serial);
	return x509_build(
		&(struct x509_template){
			.serial = bytes_of(serial, sizeof(serial)),
			.subject_raw = buf_view(&csr->subject_raw),
			.issuer_raw = x509_subject_raw(a->cert),
			.not_before = wall_of_sec(now.sec - BACKDATE_S),
			.not_after = wall_of_sec(end.sec),
			.spki = pubkey_spki(csr->pubkey),
			.is_ca = true,
			.key_usage = KU_CERT_SIGN | KU_CRL_SIGN,
			.aki = x509_ski(a->cert),
			.uris = (const char *const *)csr->uris.v,
			.n_uris = csr->uris.n,
		},
		&signer, ret, e);
}

static int mint_chain(const struct authority *a, struct bytes request, int64_t ttl_ns,
	struct x509_chain *ret, struct err *e)
{
	AUTO_BUF struct buf der = BUF_INIT_MAX(X509_MAX_DER);
	struct x509_cert *c = NULL;
	struct x509_csr csr;
	int r = x509_csr_parse(request, &csr, e);

	if (r)
		return r;
	r = build(a, &csr, ttl_ns, &der, e);
	x509_csr_deinit(&csr);
	if (!r)
		r = x509_parse(buf_view(&der), &c, e);
	if (r)
		return err_wrap(e, "unable to sign CSR");
	x509_chain_add(ret, c);
	x509_unref(c);
	for (size_t i = 0; i < a->chain.n; i++)
		x509_chain_add(ret, a->chain.v[i]);
	return 0;
}

struct mint {
	struct disk *d;
	struct buf csr;
	int64_t ttl_ns;
	struct authority *use; /* the last good, until the files give another */
	struct x509_chain chain;
	upstream_done *done;
	void *arg;
	struct err broken, e;
	int r;
};

static void mint_work(void *arg)
{
	struct mint *m = arg;
	struct authority *a = NULL;

	m->broken = ERR_INIT;
	if (authority_load(m->d, &a, &m->broken) == 0) {
		authority_unref(m->use);
		m->use = a;
	}
	m->r = mint_chain(m->use, buf_view(&m->csr), m->ttl_ns, &m->chain, &m->e);
}

static void disk_destroy(struct disk *d)
{
	authority_unref(d->good);
	free(d->trust_domain);
	free(d->cert_path);
	free(d->key_path);
	free(d->bundle_path);
	free(d);
}

static void take(struct disk *d, struct mint *m)
{
	const struct x509_cert *c = m->use->cert;

	d->broken = m->broken;
	if (m->broken.code) {
		log_event(LOG_ERROR, "upstream_disk",
			"the upstream authority's files cannot be used; the one read last goes on "
			"signing",
			"error", m->broken.msg, NULL);
		return;
	}
	if (!bytes_equal(x509_der(c), x509_der(d->good->cert))) {
		AUTO_BUF struct buf id = BUF_INIT;

		hex_encode(&id, x509_ski(c));
		log_event(LOG_INFO, "upstream_disk", "another upstream authority is in the files",
			"subject_key_id", buf_cstr(&id), NULL);
	}
	authority_unref(d->good);
	d->good = authority_ref(m->use);
}

static void mint_done(void *arg)
{
	struct mint *m = arg;
	struct disk *d = m->d;
	struct err none = ERR_INIT;

	if (!d->closed)
		take(d, m);
	if (m->r)
		m->done(m->arg, NULL, NULL, &m->e);
	else
		m->done(m->arg, &m->chain, m->use->bundle, &none);
	x509_chain_deinit(&m->chain);
	authority_unref(m->use);
	buf_deinit(&m->csr);
	free(m);
	if (--d->jobs == 0 && d->closed)
		disk_destroy(d);
}

static void disk_mint(
	struct upstream *u, struct bytes csr, int64_t ttl_ns, upstream_done *done, void *arg)
{
	struct disk *d = disk_of(u);
	struct mint *m = xcalloc(1, sizeof(*m));

	*m = (struct mint){ .d = d,
		.csr = BUF_INIT_MAX(X509_MAX_DER),
		.ttl_ns = ttl_ns,
		.use = authority_ref(d->good),
		.done = done,
		.arg = arg };
	buf_bytes(&m->csr, csr);
	d->jobs++;
	loop_job(d->loop, mint_work, mint_done, m);
}

static int disk_health(struct upstream *u, struct err *e)
{
	const struct disk *d = disk_of(u);

	return d->broken.code ? err_set(e, d->broken.code, "%s", d->broken.msg) : 0;
}

static void disk_free(struct upstream *u)
{
	struct disk *d = disk_of(u);

	d->closed = true;
	if (d->jobs == 0)
		disk_destroy(d);
}

static const struct upstream_kind kind = {
	.name = "disk",
	.mint = disk_mint,
	.health = disk_health,
	.free = disk_free,
};

int upstream_disk_new(const struct upstream_disk_options *o, struct upstream **ret, struct err *e)
{
	struct disk *d = xcalloc(1, sizeof(*d));

	d->base.kind = &kind;
	d->loop = o->loop;
	d->trust_domain = xstrdup(o->trust_domain);
	d->cert_path = xstrdup(o->cert_path);
	d->key_path = xstrdup(o->key_path);
	d->bundle_path = o->bundle_path ? xstrdup(o->bundle_path) : NULL;
	d->broken = ERR_INIT;
	if (authority_load(d, &d->good, e)) {
		disk_destroy(d);
		return e->code;
	}
	*ret = &d->base;
	return 0;
}

/* The server's own X509-SVID. A renewal is one job: fresh key, certificate, TLS context. */
#include "server/svid.h"

#include <stdlib.h>
#include <string.h>

#include "lib/log.h"

struct server_svid {
	struct server_svid_options o;
	char *id;
	struct tls_ctx *tls; /* NULL before the first */
	struct tls_ctx *https;
	struct x509_chain chain;
	struct loop_timer *timer;
	struct backoff backoff;
	void (*ready)(void *arg);
	void *arg;
	struct renewal *running; /* NULL: none */
	bool again;              /* asked for while one was running */
};

/* Inputs are copies; s NULL: the owner is gone. */
struct renewal {
	struct server_svid *s;
	struct ca_issuer *issuer;
	enum key_type key_type;
	int64_t ttl_ns;
	bool require_pq;
	char *id;
	struct tls_ctx *tls, *https;
	struct x509_chain chain;
	struct ca_x509_svid svid;
	struct err e;
	int r;
};

static int sign(struct renewal *n, const struct key *k, struct err *e)
{
	struct ca_x509_params p = { .spiffe_id = n->id,
		.spki = pubkey_spki(key_public(k)),
		.ttl_ns = n->ttl_ns,
		.now = clock_wall() };
	int r = ca_sign_x509_svid(n->issuer, &p, &n->svid, e);

	if (r)
		return r;
	return x509_chain_parse_der(&n->chain, buf_view(&n->svid.chain), X509_MAX_CHAIN, e);
}

static void work(void *arg)
{
	struct renewal *n = arg;
	AUTO(key_unref) struct key *k = NULL;
	struct tls_options o = { .server = true,
		.chain = &n->chain,
		.client_cert = TLS_CLIENT_CERT_OPTIONAL,
		.alpn = "h2",
		.require_pq = n->require_pq };
	struct tls_options h = { .server = true,
		.chain = &n->chain,
		.alpn = "http/1.1",
		.allow_tls12 = true,
		.require_pq = n->require_pq };

	n->r = key_generate(n->key_type, &k, &n->e);
	if (n->r == 0)
		n->r = sign(n, k, &n->e);
	if (n->r)
		return;
	o.key = h.key = k;
	n->r = tls_ctx_new(&o, &n->tls, &n->e);
	if (n->r == 0)
		n->r = tls_ctx_new(&h, &n->https, &n->e);
}

static void schedule(struct server_svid *s)
{
	const struct x509_cert *leaf = s->chain.v[0];
	int64_t from = wall_ns(clock_wall()), to = wall_ns(x509_not_after(leaf));

	/* Half of what is left from now on: notBefore is in the past, which counts for short lives.
	 */
	loop_timer_set_wall(s->timer, wall_of_ns(from + (to - from) / 2));
}

static void take(struct server_svid *s, struct renewal *n)
{
	bool first = !s->tls;

	if (s->tls)
		tls_ctx_unref(s->tls);
	if (s->https)
		tls_ctx_unref(s->https);
	x509_chain_deinit(&s->chain);
	s->tls = n->tls;
	s->https = n->https;
	n->https = NULL;
	s->chain = n->chain;
	n->tls = NULL;
	n->chain = (struct x509_chain){ .n = 0 };
	backoff_reset(&s->backoff);
	log_event(LOG_INFO, "svid", first ? "server SVID signed" : "server SVID renewed", "serial",
		n->svid.serial, "expires_at", log_time(n->svid.expires_at), NULL);
	schedule(s);
	if (first)
		s->ready(s->arg);
}

static void renewal_free(struct renewal *n)
{
	if (n->tls)
		tls_ctx_unref(n->tls);
	if (n->https)
		tls_ctx_unref(n->https);
	x509_chain_deinit(&n->chain);
	ca_x509_svid_deinit(&n->svid);
	ca_issuer_unref(n->issuer);
	free(n->id);
	free(n);
}

static void done(void *arg)
{
	struct renewal *n = arg;
	struct server_svid *s = n->s;

	if (s) {
		bool again = s->again;

		s->running = NULL;
		s->again = false;
		if (n->r) {
			log_event(LOG_ERROR, "svid", "could not renew the server's SVID", "error",
				n->e.msg, NULL);
			loop_timer_set(s->timer, backoff_next(&s->backoff));
		} else {
			take(s, n);
		}
		if (again)
			server_svid_renew(s);
	}
	renewal_free(n);
}

void server_svid_renew(struct server_svid *s)
{
	struct ca_issuer *issuer;
	struct renewal *n;

	if (s->running) {
		s->again = true;
		return;
	}
	issuer = ca_issuer(s->o.ca);
	if (!issuer) {
		loop_timer_set(s->timer, backoff_next(&s->backoff));
		return;
	}
	n = xcalloc(1, sizeof(*n));
	n->s = s;
	n->issuer = issuer;
	n->key_type = s->o.key_type;
	n->ttl_ns = s->o.ttl_ns;
	n->require_pq = s->o.require_pq;
	n->id = xstrdup(s->id);
	s->running = n;
	loop_job(s->o.loop, work, done, n);
}

void server_svid_bundle_changed(struct server_svid *s, const struct bundle *b)
{
	struct x509_chain good = { .n = 0 };
	bool tainted = false;
	struct err e;

	for (size_t i = 0; i < b->n_roots; i++) {
		tainted |= b->roots[i].tainted;
		if (!b->roots[i].tainted)
			x509_chain_add(&good, b->roots[i].cert);
	}
	if (tainted && s->chain.n && x509_verify(&s->chain, &good, clock_wall(), &e)) {
		log_event(LOG_INFO, "svid", "server SVID is tainted: renewing it", NULL);
		server_svid_renew(s);
	}
	x509_chain_deinit(&good);
}

static void due(void *arg)
{
	server_svid_renew(arg);
}

struct server_svid *server_svid_new(
	const struct server_svid_options *o, void (*ready)(void *arg), void *arg)
{
	struct server_svid *s = xcalloc(1, sizeof(*s));

	s->o = *o;
	s->id = xasprintf("spiffe://%s/spire/server", o->trust_domain);
	s->ready = ready;
	s->arg = arg;
	s->backoff = (struct backoff){ .first_ns = NS_PER_SEC, .max_ns = (int64_t)60 * NS_PER_SEC };
	s->timer = loop_timer_new(o->loop, due, s);
	server_svid_renew(s);
	return s;
}

void server_svid_free(struct server_svid *s)
{
	if (!s)
		return;
	if (s->running)
		s->running->s = NULL;
	loop_timer_free(s->timer);
	if (s->tls)
		tls_ctx_unref(s->tls);
	if (s->https)
		tls_ctx_unref(s->https);
	x509_chain_deinit(&s->chain);
	free(s->id);
	free(s);
}

struct tls_ctx *server_svid_tls(void *svid)
{
	struct server_svid *s = svid;

	return s->tls ? tls_ctx_ref(s->tls) : NULL;
}

struct tls_ctx *server_svid_https_tls(void *svid)
{
	struct server_svid *s = svid;

	return s->https ? tls_ctx_ref(s->https) : NULL;
}

const struct x509_chain *server_svid_chain(const struct server_svid *s)
{
	return &s->chain;
}

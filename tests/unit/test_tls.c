#include "tests/test.h"

#include "lib/tls.h"
#include "tests/unit/x509_make.inc"

static struct err e;

struct judge {
	const struct x509_chain *roots;
	int calls, result;
	struct spiffeid id;
};

static int judge(void *arg, const struct x509_chain *peer, struct err *er)
{
	struct judge *j = arg;

	j->calls++;
	spiffeid_deinit(&j->id);
	j->result = tls_verify_svid(peer, j->roots, test_now, &j->id, er);
	return j->result;
}

/* A trust domain with one intermediate, a server and a client. */
struct world {
	struct test_ca root, middle;
	struct x509_chain roots, server, client;
	struct key *server_key, *client_key;
	struct judge of_server, of_client;
};

static void world_init(struct world *w, enum key_type ca, enum key_type leaf)
{
	struct x509_cert *c;

	*w = (struct world){ 0 };
	w->root = test_ca(ca, "root", NULL, test_now);
	w->middle = test_ca(ca, "middle", &w->root, test_now);
	x509_chain_add(&w->roots, w->root.cert);
	w->server_key = test_key(leaf);
	w->client_key = test_key(leaf);
	c = test_cert(
		w->server_key, NULL, "spiffe://example.org/server", false, &w->middle, test_now);
	x509_chain_add(&w->server, c);
	x509_unref(c);
	x509_chain_add(&w->server, w->middle.cert);
	c = test_cert(
		w->client_key, NULL, "spiffe://example.org/client", false, &w->middle, test_now);
	x509_chain_add(&w->client, c);
	x509_unref(c);
	x509_chain_add(&w->client, w->middle.cert);
	w->of_server.roots = w->of_client.roots = &w->roots;
}

static void world_deinit(struct world *w)
{
	test_ca_free(&w->root);
	test_ca_free(&w->middle);
	x509_chain_deinit(&w->roots);
	x509_chain_deinit(&w->server);
	x509_chain_deinit(&w->client);
	key_unref(w->server_key);
	key_unref(w->client_key);
	spiffeid_deinit(&w->of_server.id);
	spiffeid_deinit(&w->of_client.id);
}

struct pair {
	struct tls_ctx *sc, *cc;
	struct tls_conn *s, *c;
	int rs, rc;
	struct err es, ec;
};

static struct tls_options server_options(struct world *w, enum tls_client_cert mode)
{
	return (struct tls_options){ .server = true,
		.chain = &w->server,
		.key = w->server_key,
		.client_cert = mode,
		.alpn = "h2" };
}

static struct tls_options client_options(struct world *w)
{
	return (struct tls_options){ .chain = &w->client, .key = w->client_key, .alpn = "h2" };
}

static void pair_open(
	struct pair *p, struct world *w, const struct tls_options *so, const struct tls_options *co)
{
	*p = (struct pair){ 0 };
	CHECK_OK(tls_ctx_new(so, &p->sc, &e));
	CHECK_OK(tls_ctx_new(co, &p->cc, &e));
	p->s = tls_conn_new(
		p->sc, NULL, so->client_cert == TLS_CLIENT_CERT_NONE ? NULL : judge, &w->of_client);
	p->c = tls_conn_new(p->cc, "server.example.org", judge, &w->of_server);
}

/* Carries bytes both ways, `part` at a time, until nothing moves. */
static void shuttle(struct pair *p, size_t part)
{
	for (bool moved = true; moved;) {
		struct buf *out;
		size_t n;

		moved = false;
		p->rc = tls_step(p->c, &p->ec);
		out = tls_output(p->c);
		n = out->len < part ? out->len : part;
		if (n) {
			tls_feed(p->s, bytes_of(out->p, n));
			buf_consume(out, n);
			moved = true;
		}
		p->rs = tls_step(p->s, &p->es);
		out = tls_output(p->s);
		n = out->len < part ? out->len : part;
		if (n) {
			tls_feed(p->c, bytes_of(out->p, n));
			buf_consume(out, n);
			moved = true;
		}
	}
}

static void pair_close(struct pair *p)
{
	tls_conn_free(p->s);
	tls_conn_free(p->c);
	tls_ctx_unref(p->sc);
	tls_ctx_unref(p->cc);
}

static void say(struct tls_conn *from, struct tls_conn *to, size_t n)
{
	AUTO_BUF struct buf data = BUF_INIT, got = BUF_INIT;
	uint8_t chunk[5000];
	bool eof = false;
	size_t k;

	buf_reserve(&data, n);
	crypto_random(data.p, n);
	data.len = n;
	CHECK_OK(tls_write(from, buf_view(&data), &e));
	while (tls_output(from)->len) {
		struct buf *out = tls_output(from);
		size_t part = out->len < 30000 ? out->len : 30000;

		CHECK(tls_feed(to, bytes_of(out->p, part)));
		buf_consume(out, part);
		do {
			CHECK_OK(tls_read(to, chunk, sizeof(chunk), &k, &eof, &e));
			buf_append(&got, chunk, k);
		} while (k);
	}
	CHECK_BYTES(buf_view(&data), buf_view(&got));
	CHECK(!eof);
}

static void test_mutual(void)
{
	static const enum key_type types[] = { KEY_EC_P256, KEY_EC_P384, KEY_RSA_2048,
		KEY_EC_P521 };

	for (size_t i = 0; i < ARRAY_LEN(types); i++) {
		struct tls_options so, co;
		struct world w;
		struct pair p;
		uint8_t c;
		size_t k;
		bool eof;

		world_init(&w, types[i], types[i]);
		so = server_options(&w, TLS_CLIENT_CERT_OPTIONAL);
		co = client_options(&w);
		pair_open(&p, &w, &so, &co);
		shuttle(&p, i % 2 ? 100 : 100000);
		CHECK_OK((e = p.ec, p.rc));
		CHECK_OK((e = p.es, p.rs));
		CHECK(tls_established(p.c) && tls_established(p.s));
		CHECK_INT(w.of_client.calls, 1);
		CHECK_INT(w.of_server.calls, 1);
		CHECK_STR(w.of_client.id.text, "spiffe://example.org/client");
		CHECK_STR(w.of_server.id.text, "spiffe://example.org/server");
		CHECK_INT(tls_peer_chain(p.s)->n, 2);
		CHECK_BYTES(x509_der(tls_peer_chain(p.s)->v[0]), x509_der(w.client.v[0]));
		say(p.c, p.s, 10);
		say(p.s, p.c, 300000);
		say(p.c, p.s, 50000);
		tls_close_notify(p.c);
		tls_feed(p.s, buf_view(tls_output(p.c)));
		CHECK_OK(tls_read(p.s, &c, 1, &k, &eof, &e));
		CHECK(eof);
		CHECK_ERR(tls_write(p.c, bytes_str("x"), &e), ERR_PRECONDITION);
		pair_close(&p);
		world_deinit(&w);
	}
}

static void test_anonymous_client(void)
{
	struct tls_options so, co = { .alpn = "h2" };
	struct world w;
	struct pair p;

	world_init(&w, KEY_EC_P256, KEY_EC_P256);
	so = server_options(&w, TLS_CLIENT_CERT_OPTIONAL);
	pair_open(&p, &w, &so, &co);
	shuttle(&p, 100000);
	CHECK(tls_established(p.c) && tls_established(p.s));
	CHECK_INT(tls_peer_chain(p.s)->n, 0);
	CHECK_INT(w.of_client.calls, 0);
	say(p.s, p.c, 1000);
	pair_close(&p);

	so = server_options(&w, TLS_CLIENT_CERT_REQUIRED);
	pair_open(&p, &w, &so, &co);
	shuttle(&p, 100000);
	CHECK(p.rs != 0 && !tls_established(p.s));
	pair_close(&p);

	so = server_options(&w, TLS_CLIENT_CERT_NONE);
	co = client_options(&w);
	pair_open(&p, &w, &so, &co);
	shuttle(&p, 100000);
	CHECK(tls_established(p.c) && tls_established(p.s));
	CHECK_INT(tls_peer_chain(p.s)->n, 0);
	pair_close(&p);
	world_deinit(&w);
}

/* A client certificate that does not verify ends the handshake; the client learns why. */
static void test_refused(void)
{
	struct tls_options so, co;
	struct world w, other;
	struct pair p;
	uint8_t c;
	size_t k;
	bool eof;

	world_init(&w, KEY_EC_P256, KEY_EC_P256);
	world_init(&other, KEY_EC_P256, KEY_EC_P256);
	so = server_options(&w, TLS_CLIENT_CERT_OPTIONAL);
	co = client_options(&other);
	pair_open(&p, &w, &so, &co);
	shuttle(&p, 100000);
	CHECK(!tls_established(p.s));
	CHECK_INT(p.rs, ERR_INVALID);
	CHECK_CONTAINS(p.es.msg, "x509: certificate signed by unknown authority");
	CHECK_INT(w.of_client.calls, 1);
	CHECK_INT(tls_peer_chain(p.s)->n, 0);
	CHECK(tls_read(p.c, &c, 1, &k, &eof, &e) != 0);
	CHECK_CONTAINS(e.msg, "remote error: tls: ");
	pair_close(&p);

	/* and nothing that was sent is believed later */
	pair_open(&p, &w, &so, &co);
	shuttle(&p, 100000);
	CHECK(!tls_established(p.s));
	pair_close(&p);

	/* the other way round */
	w.of_client.calls = 0;
	so = server_options(&other, TLS_CLIENT_CERT_OPTIONAL);
	co = client_options(&w);
	pair_open(&p, &w, &so, &co);
	shuttle(&p, 100000);
	CHECK(!tls_established(p.c) && !tls_established(p.s));
	CHECK_CONTAINS(p.ec.msg, "unknown authority");
	CHECK_CONTAINS(p.es.msg, "remote error: tls: ");
	CHECK_INT(w.of_client.calls, 0);
	pair_close(&p);
	world_deinit(&w);
	world_deinit(&other);
}

static void test_alpn(void)
{
	struct tls_options so, co;
	struct world w;
	struct pair p;

	world_init(&w, KEY_EC_P256, KEY_EC_P256);
	so = server_options(&w, TLS_CLIENT_CERT_OPTIONAL);
	co = client_options(&w);
	co.alpn = "http/1.1";
	pair_open(&p, &w, &so, &co);
	shuttle(&p, 100000);
	CHECK(!tls_established(p.s) && !tls_established(p.c));
	pair_close(&p);
	co.alpn = NULL;
	pair_open(&p, &w, &so, &co);
	shuttle(&p, 100000);
	CHECK(!tls_established(p.s));
	CHECK_CONTAINS(p.es.msg, "ALPN");
	pair_close(&p);
	so.alpn = "http/1.1";
	pair_open(&p, &w, &so, &co);
	shuttle(&p, 100000);
	CHECK(tls_established(p.s) && tls_established(p.c));
	pair_close(&p);
	world_deinit(&w);
}

static void test_versions(void)
{
	struct tls_options so, co;
	struct world w;
	struct pair p;

	world_init(&w, KEY_EC_P256, KEY_EC_P256);
	so = server_options(&w, TLS_CLIENT_CERT_NONE);
	co = client_options(&w);
	so.allow_tls12 = co.allow_tls12 = true;
	pair_open(&p, &w, &so, &co);
	shuttle(&p, 100000);
	CHECK(tls_established(p.s) && tls_established(p.c));
	say(p.c, p.s, 1000);
	pair_close(&p);
	/* Either side may insist on the hybrid key exchange, which is always offered. */
	for (int i = 1; i < 4; i++) {
		so.require_pq = i & 1;
		co.require_pq = i & 2;
		pair_open(&p, &w, &so, &co);
		shuttle(&p, 100000);
		CHECK(tls_established(p.s) && tls_established(p.c));
		say(p.c, p.s, 1000);
		pair_close(&p);
	}
	world_deinit(&w);
}

static void test_bad_contexts(void)
{
	struct tls_ctx *c = NULL;
	struct tls_options o;
	struct world w;

	world_init(&w, KEY_EC_P256, KEY_EC_P256);
	o = server_options(&w, TLS_CLIENT_CERT_NONE);
	o.key = w.client_key;
	CHECK_ERR(tls_ctx_new(&o, &c, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "does not belong");
	o.key = NULL;
	CHECK_ERR(tls_ctx_new(&o, &c, &e), ERR_INVALID);
	o.chain = NULL;
	CHECK_ERR(tls_ctx_new(&o, &c, &e), ERR_INVALID);
	CHECK(!c);
	world_deinit(&w);
}

/* Rotation: the old context is let go while a connection made with it lives on. */
static void test_context_outlived(void)
{
	struct tls_options so, co;
	struct world w;
	struct pair p;

	world_init(&w, KEY_EC_P256, KEY_EC_P256);
	so = server_options(&w, TLS_CLIENT_CERT_OPTIONAL);
	co = client_options(&w);
	pair_open(&p, &w, &so, &co);
	tls_ctx_unref(p.sc);
	tls_ctx_unref(p.cc);
	p.sc = p.cc = NULL;
	shuttle(&p, 100000);
	CHECK(tls_established(p.s) && tls_established(p.c));
	say(p.c, p.s, 20000);
	pair_close(&p);
	world_deinit(&w);
}

static void test_garbage(void)
{
	struct tls_options so;
	struct world w;

	world_init(&w, KEY_EC_P256, KEY_EC_P256);
	so = server_options(&w, TLS_CLIENT_CERT_OPTIONAL);
	for (int round = 0; round < 50; round++) {
		struct tls_ctx *ctx;
		struct tls_conn *t;
		uint8_t junk[500];

		CHECK_OK(tls_ctx_new(&so, &ctx, &e));
		t = tls_conn_new(ctx, NULL, judge, &w.of_client);
		crypto_random(junk, sizeof(junk));
		junk[0] = 22;
		junk[1] = 3;
		junk[2] = 1;
		junk[3] = 1;
		junk[4] = 0;
		if (round % 2)
			junk[5] = 1;
		tls_feed(t, bytes_of(junk, sizeof(junk)));
		CHECK(tls_step(t, &e) != 0);
		CHECK(tls_step(t, &e) != 0);
		CHECK(!tls_established(t));
		tls_conn_free(t);
		tls_ctx_unref(ctx);
	}
	world_deinit(&w);
}

/* Whatever is changed on the way, neither side ends up with other bytes than were sent. */
static void test_tampered(void)
{
	struct tls_options so, co;
	struct world w;

	world_init(&w, KEY_EC_P256, KEY_EC_P256);
	so = server_options(&w, TLS_CLIENT_CERT_OPTIONAL);
	co = client_options(&w);
	for (int round = 0; round < 60; round++) {
		struct buf *out;
		struct pair p;
		uint8_t got[64];
		size_t k;
		bool eof;

		pair_open(&p, &w, &so, &co);
		shuttle(&p, 100000);
		CHECK_OK(tls_write(p.c, bytes_str("hello"), &e));
		out = tls_output(p.c);
		out->p[(size_t)round % out->len] ^= (uint8_t)(1 << round % 8);
		tls_feed(p.s, buf_view(out));
		if (tls_read(p.s, got, sizeof(got), &k, &eof, &e) == 0)
			CHECK_INT(k, 0);
		pair_close(&p);
	}
	world_deinit(&w);
}

static void test_input_limit(void)
{
	struct tls_options so;
	struct tls_ctx *ctx;
	struct tls_conn *t;
	uint8_t chunk[32768] = { 0 };
	struct world w;

	world_init(&w, KEY_EC_P256, KEY_EC_P256);
	so = server_options(&w, TLS_CLIENT_CERT_OPTIONAL);
	CHECK_OK(tls_ctx_new(&so, &ctx, &e));
	t = tls_conn_new(ctx, NULL, judge, &w.of_client);
	CHECK(tls_feed(t, bytes_of(chunk, sizeof(chunk))));
	CHECK(tls_feed(t, bytes_of(chunk, sizeof(chunk))));
	CHECK(!tls_feed(t, bytes_of(chunk, sizeof(chunk))));
	for (int i = 0; i < 40; i++)
		CHECK(!tls_feed(t, bytes_of(chunk, sizeof(chunk))));
	CHECK_ERR(tls_step(t, &e), ERR_EXHAUSTED);
	tls_conn_free(t);
	tls_ctx_unref(ctx);
	world_deinit(&w);
}

static struct x509_cert *web_cert(
	struct test_ca *ca, const char *const *dns, size_t n, struct wall now)
{
	struct key *k = test_key(KEY_EC_P256);
	struct x509_signer s = test_signer(ca->key);
	AUTO_BUF struct buf der = BUF_INIT;
	struct x509_cert *c;
	struct x509_template t = {
		.serial = bytes_of("\x01", 1),
		.not_before = wall_add_ns(now, -NS_PER_SEC),
		.not_after = wall_add_ns(now, 3600 * NS_PER_SEC),
		.spki = pubkey_spki(key_public(k)),
		.issuer_raw = x509_subject_raw(ca->cert),
		.key_usage = KU_DIGITAL_SIGNATURE,
		.eku_server_client = true,
		.dns_names = dns,
		.n_dns_names = n,
	};

	CHECK_OK(x509_build(&t, &s, &der, &e));
	CHECK_OK(x509_parse(buf_view(&der), &c, &e));
	key_unref(k);
	return c;
}

static void test_web(void)
{
	static const char *const dns[] = { "www.example.org", "*.example.com" };
	struct test_ca ca = test_ca(KEY_EC_P256, "web root", NULL, test_now);
	struct x509_cert *c = web_cert(&ca, dns, 2, test_now);
	AUTO(free) char *path = xasprintf("%s/roots.pem", test_dir());
	AUTO_BUF struct buf pem = BUF_INIT;
	struct x509_chain ch = { 0 }, roots = { 0 };

	x509_chain_add(&ch, c);
	x509_chain_add(&roots, ca.cert);
	setenv("SSL_CERT_FILE", path, 1);
	CHECK(tls_verify_web(&ch, "www.example.org", test_now, &e) != 0);
	x509_chain_pem(&roots, &pem);
	CHECK_OK(buf_write_file(buf_view(&pem), path, 0600, &e));
	CHECK_OK(tls_verify_web(&ch, "www.example.org", test_now, &e));
	CHECK_OK(tls_verify_web(&ch, "WWW.example.org.", test_now, &e));
	CHECK_OK(tls_verify_web(&ch, "a.example.com", test_now, &e));
	CHECK_ERR(tls_verify_web(&ch, "a.b.example.com", test_now, &e), ERR_INVALID);
	CHECK_ERR(tls_verify_web(&ch, "example.com", test_now, &e), ERR_INVALID);
	CHECK_ERR(tls_verify_web(&ch, ".example.com", test_now, &e), ERR_INVALID);
	CHECK_ERR(tls_verify_web(&ch, "*.example.com", test_now, &e), ERR_INVALID);
	CHECK_ERR(tls_verify_web(&ch, "127.0.0.1", test_now, &e), ERR_INVALID);
	CHECK_ERR(tls_verify_web(&ch, "", test_now, &e), ERR_INVALID);
	CHECK_ERR(tls_verify_web(
			  &ch, "www.example.org", wall_add_ns(test_now, 7200 * NS_PER_SEC), &e),
		ERR_INVALID);
	CHECK_CONTAINS(e.msg, "expired");
	CHECK_OK(buf_write_file(bytes_str("no certificates\n"), path, 0600, &e));
	CHECK_ERR(tls_verify_web(&ch, "www.example.org", test_now, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "unknown authority");
	unlink(path);
	rmdir(test_dir());
	x509_chain_deinit(&ch);
	x509_chain_deinit(&roots);
	x509_unref(c);
	test_ca_free(&ca);
}

TEST_MAIN(TEST(test_mutual), TEST(test_anonymous_client), TEST(test_refused), TEST(test_alpn),
	TEST(test_versions), TEST(test_bad_contexts), TEST(test_context_outlived),
	TEST(test_garbage), TEST(test_tampered), TEST(test_input_limit), TEST(test_web))

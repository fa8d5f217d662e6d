/* The CA under an upstream authority: one that the test plays, and the one of files.
 * Covers: server/ca_upstream.c server/api_downstream.c */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "tests/test.h"

/* Before ca.inc, whose names it would hide. */
#include "tests/unit/x509_make.inc"

#include "tests/unit/server/ca.inc"

/* ---- an upstream that the test plays ---- */

enum lie { HONEST, OTHER_KEY, NO_CA, OTHER_TD, OTHER_ROOT, TOO_MANY };

static struct fake {
	struct upstream base;
	struct test_ca ca[2]; /* two roots */
	int signs;            /* the one that signs */
	struct bundle *bundle;
	enum lie lie;
	int fail; /* how many of the next answers are failures */
	int minted, published, publish_code;
	upstream_news *news;
	void *news_arg;
} up;

struct answer {
	upstream_done *done;
	void *arg;
	struct x509_chain chain;
	struct bundle *b;
	struct err e;
};

static void say(void *arg)
{
	struct answer *a = arg;

	a->done(a->arg, a->chain.n ? &a->chain : NULL, a->b, &a->e);
	x509_chain_deinit(&a->chain);
	bundle_unref(a->b);
	free(a);
}

static struct answer *answer_new(upstream_done *done, void *arg)
{
	struct answer *a = xcalloc(1, sizeof(*a));

	*a = (struct answer){ .done = done, .arg = arg, .e = ERR_INIT };
	if (up.fail > 0) {
		up.fail--;
		(void)err_set(&a->e, ERR_UNAVAILABLE, "nobody is there");
	} else {
		a->b = bundle_ref(up.bundle);
	}
	return a;
}

static struct x509_cert *sign_csr(const struct x509_csr *csr, int64_t ttl_ns)
{
	const struct test_ca *by = &up.ca[up.lie == OTHER_ROOT ? !up.signs : up.signs];
	struct x509_signer s = test_signer(by->key);
	const char *uri = up.lie == OTHER_TD ? "spiffe://other" : csr->uris.v[0];
	AUTO_BUF struct buf der = BUF_INIT;
	struct x509_cert *c = NULL;
	uint8_t serial[16];
	struct err e;

	x509_random_serial(serial);
	CHECK_OK(x509_build(&(struct x509_template){ .serial = bytes_of(serial, sizeof(serial)),
				    .subject_raw = buf_view(&csr->subject_raw),
				    .issuer_raw = x509_subject_raw(by->cert),
				    .not_before = wall_add_ns(clock_wall(), -10 * NS_PER_SEC),
				    .not_after = wall_add_ns(clock_wall(), ttl_ns),
				    .spki = up.lie == OTHER_KEY ? pubkey_spki(key_public(by->key))
								: pubkey_spki(csr->pubkey),
				    .is_ca = up.lie != NO_CA,
				    .key_usage = KU_CERT_SIGN | KU_CRL_SIGN,
				    .aki = x509_ski(by->cert),
				    .uris = &uri,
				    .n_uris = 1 },
		&s, &der, &e));
	CHECK_OK(x509_parse(buf_view(&der), &c, &e));
	return c;
}

static void fake_mint(
	struct upstream *u, struct bytes request, int64_t ttl_ns, upstream_done *done, void *arg)
{
	struct answer *a = answer_new(done, arg);
	struct x509_csr csr;
	struct x509_cert *c;
	struct err e;

	(void)u;
	CHECK_OK(x509_csr_parse(request, &csr, &e));
	CHECK_OK(x509_csr_check_signature(&csr, &e));
	if (!a->e.code) {
		c = sign_csr(&csr, ttl_ns);
		up.minted++;
		for (int i = 0; i < (up.lie == TOO_MANY ? X509_MAX_CHAIN : 1); i++)
			x509_chain_add(&a->chain, c);
		x509_unref(c);
	}
	x509_csr_deinit(&csr);
	loop_post(loop, say, a);
}

static void set_bundle(struct bundle *b)
{
	bundle_unref(up.bundle);
	up.bundle = b;
}

static void fake_publish(
	struct upstream *u, const struct bundle_jwt_key *k, upstream_done *done, void *arg)
{
	struct bundle *b = bundle_dup(up.bundle);
	struct answer *a;

	(void)u;
	(void)bundle_add_jwt_key(b, k->key_id, k->key, k->expires_at, false);
	set_bundle(b);
	a = answer_new(done, arg);
	if (up.publish_code) {
		(void)err_set(&a->e, up.publish_code, "no JWT keys here");
		bundle_unref(a->b);
		a->b = NULL;
	}
	up.published++;
	loop_post(loop, say, a);
}

static void fake_on_bundle(struct upstream *u, upstream_news *fn, void *arg)
{
	(void)u;
	up.news = fn;
	up.news_arg = arg;
}

static int fake_health(struct upstream *u, struct err *e)
{
	(void)u;
	(void)e;
	return 0;
}

static void fake_free(struct upstream *u)
{
	(void)u;
}

static const struct upstream_kind follows = {
	.name = "fake",
	.follows = true,
	.mint = fake_mint,
	.publish = fake_publish,
	.on_bundle = fake_on_bundle,
	.health = fake_health,
	.free = fake_free,
};
static const struct upstream_kind plain = {
	.name = "plain", .mint = fake_mint, .health = fake_health, .free = fake_free
};

static void begin_under(const struct upstream_kind *k)
{
	begin(1800);
	set_clock(T0);
	up = (struct fake){ .base.kind = k };
	for (int i = 0; i < 2; i++)
		up.ca[i] = test_ca(KEY_EC_P256, i ? "second" : "first", NULL, clock_wall());
	set_bundle(bundle_new("td"));
	(void)bundle_add_root(up.bundle, up.ca[0].cert, false);
	options.upstream = &up.base;
}

static void end_under(void)
{
	end();
	bundle_unref(up.bundle);
	test_ca_free(&up.ca[0]);
	test_ca_free(&up.ca[1]);
}

static void tell(void)
{
	up.news(up.news_arg, up.bundle);
}

/* The upstream's bundle: roots with their taints (-1: left out), its JWT keys as they are. */
static void set_roots(int first, int second)
{
	struct bundle *b = bundle_new("td");

	if (first >= 0)
		(void)bundle_add_root(b, up.ca[0].cert, first);
	if (second >= 0)
		(void)bundle_add_root(b, up.ca[1].cert, second);
	for (size_t i = 0; i < up.bundle->n_jwt_keys; i++) {
		const struct bundle_jwt_key *k = &up.bundle->jwt_keys[i];

		(void)bundle_add_jwt_key(b, k->key_id, k->key, k->expires_at, k->tainted);
	}
	set_bundle(b);
}

static const struct bundle_root *stored(int i)
{
	for (size_t k = 0; k < store.bundle->n_roots; k++)
		if (store.bundle->roots[k].cert == up.ca[i].cert ||
			bytes_equal(x509_der(store.bundle->roots[k].cert), x509_der(up.ca[i].cert)))
			return &store.bundle->roots[k];
	return NULL;
}

static bool under(int i)
{
	const struct ca_slot *s = slot(CA_X509, CA_ACTIVE);

	return s && s->anchor && bytes_equal(x509_der(s->anchor), x509_der(up.ca[i].cert));
}

static bool under_second(void)
{
	return under(1) && activations > 0;
}

/* ---- tests ---- */

static void test_minted(void)
{
	AUTO(free) char *id = NULL;
	struct x509_chain chain = { .n = 0 };
	struct ca_x509_svid svid;
	struct ca_state st;
	struct err e;

	begin_under(&follows);
	start();
	CHECK_INT(store.bundle->n_roots, 1);
	CHECK(stored(0) && !stored(0)->tainted);
	CHECK_INT(store.bundle->n_jwt_keys, 1);
	CHECK_INT(up.published, 1);
	svid = sign_svid(&(struct ca_x509_params){ .ttl_ns = 0 });
	check_svid(&svid);
	CHECK_OK(x509_chain_parse_der(&chain, buf_view(&svid.chain), 10, &e));
	CHECK_INT(chain.n, 2);
	x509_chain_deinit(&chain);
	ca_x509_svid_deinit(&svid);
	CHECK_OK(ca_state(ca, CA_X509, &st, &e));
	CHECK_INT(strlen(st.active.upstream_id), 40);
	CHECK_OK(ca_self_test(ca, &e));
	/* The journal holds it all. */
	id = xstrdup(st.active.id);
	stop();
	start();
	CHECK_OK(ca_state(ca, CA_X509, &st, &e));
	CHECK_STR(st.active.id, id);
	CHECK_INT(up.minted, 1);
	svid = sign_svid(&(struct ca_x509_params){ .ttl_ns = 0 });
	CHECK(svid.chain.len > svid.leaf.len);
	check_svid(&svid);
	ca_x509_svid_deinit(&svid);
	end_under();
}

static void check_downstream(size_t n, const char *ou)
{
	struct ca_issuer *i = ca_issuer(ca);
	struct x509_chain ch = { .n = 0 }, roots = bundle_roots(store.bundle);
	AUTO_BUF struct buf text = BUF_INIT;
	bool present;
	struct err e;

	CHECK_OK(ca_sign_downstream(
		i, pubkey_spki(key_public(workload_key())), 60 * NS_PER_SEC, &ch, &e));
	CHECK_INT(ch.n, n);
	CHECK_OK(x509_verify(&ch, &roots, clock_wall(), &e));
	CHECK(x509_is_ca(ch.v[0]));
	CHECK_INT(x509_key_usage(ch.v[0], &present), KU_CERT_SIGN | KU_CRL_SIGN);
	CHECK_STR(x509_uris(ch.v[0])->v[0], "spiffe://td");
	CHECK_INT(x509_not_after(ch.v[0]).sec, T0 + 60);
	CHECK_BYTES(x509_aki(ch.v[0]), x509_ski(slot(CA_X509, CA_ACTIVE)->cert));
	x509_subject_text(ch.v[0], &text);
	CHECK_CONTAINS(buf_cstr(&text), ou);
	CHECK_CONTAINS(buf_cstr(&text), "SERIALNUMBER=");
	x509_chain_deinit(&ch);
	/* Not longer than its parent; 0 is ca_ttl. */
	CHECK_OK(ca_sign_downstream(
		i, pubkey_spki(key_public(workload_key())), 30 * DAY * NS_PER_SEC, &ch, &e));
	CHECK_INT(x509_not_after(ch.v[0]).sec, slot(CA_X509, CA_ACTIVE)->not_after);
	x509_chain_deinit(&ch);
	CHECK_OK(ca_sign_downstream(i, pubkey_spki(key_public(workload_key())), 0, &ch, &e));
	CHECK_INT(x509_not_after(ch.v[0]).sec, slot(CA_X509, CA_ACTIVE)->not_after);
	x509_chain_deinit(&ch);
	x509_chain_deinit(&roots);
	ca_issuer_unref(i);
}

static void test_downstream(void)
{
	begin(1800);
	set_clock(T0);
	start();
	check_downstream(1, "OU=DOWNSTREAM-1");
	end();
	begin_under(&follows);
	start();
	check_downstream(2, "OU=DOWNSTREAM-1");
	end_under();
}

static void test_waits(void)
{
	begin_under(&follows);
	up.fail = 3;
	open_ca();
	CHECK(!run(is_told, 300));
	CHECK(run(is_told, 15000));
	CHECK_INT(ready_err.code, 0);
	end_under();
	/* One that is not followed is there or it is not. */
	begin_under(&plain);
	up.fail = 1;
	open_ca();
	CHECK(run(is_told, 5000));
	CHECK_CONTAINS(ready_err.msg, "Unable to prepare X509 CA: nobody is there");
	end_under();
}

static void test_lies(void)
{
	static const struct {
		enum lie lie;
		const char *why;
	} cases[] = {
		{ OTHER_KEY, "it is for another key" },
		{ NO_CA, "it is not one of a CA" },
		{ OTHER_TD, "it is not of trust domain \"td\"" },
		{ OTHER_ROOT, "unknown authority" },
		{ TOO_MANY, "it has 10 certificates" },
	};

	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		begin_under(&plain);
		up.lie = cases[i].lie;
		open_ca();
		CHECK(run(is_told, 5000));
		CHECK(ready_err.code != 0);
		CHECK_CONTAINS(ready_err.msg, cases[i].why);
		CHECK(!store.bundle || store.bundle->n_roots == 0);
		end_under();
	}
}

static bool first_tainted(void)
{
	return stored(0) && stored(0)->tainted;
}

static bool first_gone(void)
{
	return !stored(0);
}

/* The taint goes on to those below when our own authority has moved, and the root when it is
 * revoked. */
static void test_taint_flows_down(void)
{
	begin_under(&follows);
	start();
	set_roots(0, 0);
	up.signs = 1;
	tell();
	run(never, 100);
	CHECK(stored(0) && stored(1) && under(0));
	set_roots(1, 0);
	tell();
	CHECK(run(under_second, 5000));
	CHECK(run(first_tainted, 2000));
	CHECK(!stored(1)->tainted);
	set_roots(-1, 0);
	tell();
	CHECK(run(first_gone, 2000));
	CHECK_INT(store.bundle->n_roots, 1);
	/* It stays away over a restart. */
	stop();
	start();
	run(never, 100);
	CHECK(first_gone() && under(1));
	end_under();
}

/* An upstream that taints what it signs with: nothing better is to be had, so no move, no taint. */
static void test_taint_too_early(void)
{
	begin_under(&follows);
	start();
	set_roots(1, 0);
	tell();
	CHECK(!run(first_tainted, 1500));
	CHECK(under(0) && activations == 0);
	up.signs = 1;
	CHECK(run(under_second, 20000));
	CHECK(run(first_tainted, 2000));
	end_under();
}

static bool second_key(void)
{
	return up.published == 2 && !slot(CA_JWT, CA_ACTIVE)->unfit &&
	       store.bundle->n_jwt_keys == 1;
}

/* Our JWT key was revoked above: another one is made, published, and takes its place. */
static void test_jwt_withdrawn(void)
{
	AUTO(free) char *id = NULL;

	begin_under(&follows);
	start();
	id = xstrdup(slot(CA_JWT, CA_ACTIVE)->id);
	set_bundle(bundle_new("td"));
	(void)bundle_add_root(up.bundle, up.ca[0].cert, false);
	tell();
	CHECK(run(second_key, 5000));
	CHECK(strcmp(store.bundle->jwt_keys[0].key_id, id) != 0);
	CHECK(strcmp(slot(CA_JWT, CA_ACTIVE)->id, id) != 0);
	end_under();
}

static void test_jwt_not_taken(void)
{
	begin_under(&follows);
	up.publish_code = ERR_UNIMPLEMENTED;
	start();
	CHECK_INT(store.bundle->n_jwt_keys, 1);
	set_roots(0, 0);
	tell();
	run(never, 100);
	CHECK_INT(up.published, 1);
	end_under();
}

static bool self_signed(void)
{
	const struct ca_slot *s = slot(CA_X509, CA_ACTIVE);

	return s && !s->anchor && activations > 0;
}

static bool upstream_signed(void)
{
	return under(0) && activations > 0;
}

/* The configuration gives or takes the upstream: the authority follows at once, the old one stays
 * known. */
static void test_origin_changes(void)
{
	begin_under(&plain);
	options.upstream = NULL;
	start();
	stop();
	options.upstream = &up.base;
	start();
	CHECK(run(upstream_signed, 5000));
	CHECK_INT(store.bundle->n_roots, 2);
	stop();
	options.upstream = NULL;
	start();
	CHECK(run(self_signed, 5000));
	end_under();
}

/* ---- an operator's word ---- */

static struct err op_err;
static int op_done;

static void on_op(void *arg, const struct ca_authority *a, const struct err *e)
{
	(void)arg;
	(void)a;
	op_err = *e;
	op_done++;
}

static bool op_is_done(void)
{
	return op_done > 0;
}

static int ask(enum ca_force what, const char *id)
{
	op_done = 0;
	ca_force_upstream(ca, what, id, on_op, NULL);
	CHECK(run(op_is_done, 5000));
	return op_err.code;
}

static void force(enum ca_force what, const char *id)
{
	op_done = 0;
	ca_force(ca, what, CA_X509, id, false, on_op, NULL);
	CHECK(run(op_is_done, 5000));
	CHECK_INT(op_err.code, 0);
}

static void test_operator(void)
{
	AUTO(free) char *first = NULL, *second = NULL;

	begin_under(&plain);
	start();
	first = ca_key_id_text(x509_ski(up.ca[0].cert));
	second = ca_key_id_text(x509_ski(up.ca[1].cert));
	CHECK_INT(ask(CA_TAINT, ""), ERR_INVALID);
	CHECK_STR(op_err.msg, "provided subject key id is not valid: no subject key ID provided");
	CHECK_INT(ask(CA_TAINT, first), ERR_INVALID);
	CHECK_CONTAINS(op_err.msg, "unable to use upstream authority singing current authority");
	CHECK_INT(ask(CA_REVOKE, "12"), ERR_INVALID);
	CHECK_STR(op_err.msg,
		"invalid subject key ID: upstream authority didn't sign the old local authority");
	set_roots(-1, 0);
	up.signs = 1;
	force(CA_PREPARE, "");
	CHECK(stored(0) && stored(1));
	CHECK_INT(ask(CA_TAINT, second), ERR_INVALID);
	CHECK_CONTAINS(op_err.msg, "only upstream authorities signing an old authority");
	force(CA_ACTIVATE, slot(CA_X509, CA_PREPARED)->id);
	CHECK_INT(ask(CA_REVOKE, first), ERR_INTERNAL);
	CHECK_CONTAINS(op_err.msg, "not possible to revoke an untainted root CA");
	CHECK_INT(ask(CA_TAINT, first), 0);
	CHECK(first_tainted());
	CHECK_INT(ask(CA_TAINT, first), ERR_INTERNAL);
	CHECK_CONTAINS(op_err.msg, "root CA is already tainted");
	CHECK_INT(ask(CA_REVOKE, first), 0);
	CHECK(first_gone() && stored(1) && !stored(1)->tainted);
	end_under();
	begin(DAY);
	set_clock(T0);
	start();
	CHECK_INT(ask(CA_TAINT, "12"), ERR_PRECONDITION);
	CHECK_STR(op_err.msg, "upstream authority is not configured");
	end();
}

/* ---- files ---- */

static struct upstream_disk_options files;
static char *dir;

static void write_cert(const char *name, const struct x509_cert *c)
{
	AUTO(free) char *path = xasprintf("%s/%s", dir, name);
	struct x509_chain ch = { .n = 0 };
	AUTO_BUF struct buf pem = BUF_INIT;
	struct err e;

	x509_chain_add(&ch, (struct x509_cert *)(uintptr_t)c);
	x509_chain_pem(&ch, &pem);
	x509_chain_deinit(&ch);
	CHECK_OK(buf_write_file(buf_view(&pem), path, 0600, &e));
}

static void write_key(const char *name, const struct key *k)
{
	AUTO(free) char *path = xasprintf("%s/%s", dir, name);
	AUTO_BUF struct buf der = BUF_INIT_SECRET, pem = BUF_INIT_SECRET;
	struct err e;

	key_to_pkcs8(k, &der);
	pem_write(&pem, "PRIVATE KEY", buf_view(&der));
	CHECK_OK(buf_write_file(buf_view(&pem), path, 0600, &e));
}

static void use(const struct test_ca *t)
{
	write_cert("cert.pem", t->cert);
	write_key("key.pem", t->key);
}

static void begin_disk(void)
{
	begin_under(&plain);
	dir = xstrdup("/tmp/assay-upstream-XXXXXX");
	CHECK(mkdtemp(dir) != NULL);
	files = (struct upstream_disk_options){ .loop = loop,
		.trust_domain = "td",
		.cert_path = xasprintf("%s/cert.pem", dir),
		.key_path = xasprintf("%s/key.pem", dir) };
}

static void end_disk(void)
{
	static const char *const names[] = { "cert.pem", "key.pem", "bundle.pem" };

	end_under();
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		AUTO(free) char *path = xasprintf("%s/%s", dir, names[i]);

		unlink(path);
	}
	rmdir(dir);
	free(dir);
	free((char *)(uintptr_t)files.cert_path);
	free((char *)(uintptr_t)files.key_path);
}

static void check_refused(const char *why)
{
	struct upstream *u = NULL;
	struct err e = ERR_INIT;

	CHECK_ERR(upstream_disk_new(&files, &u, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, why);
	CHECK(u == NULL);
}

static void test_disk_refused(void)
{
	AUTO(free) char *bundle = NULL;
	struct test_ca inter;
	struct x509_cert *leaf;

	begin_disk();
	bundle = xasprintf("%s/bundle.pem", dir);
	check_refused("unable to load upstream CA key");
	write_key("key.pem", up.ca[0].key);
	check_refused("unable to load upstream CA cert");
	write_cert("cert.pem", up.ca[1].cert);
	check_refused("certificate and private key do not match");
	leaf = test_cert(up.ca[0].key, "leaf", "spiffe://td/x", false, NULL, clock_wall());
	write_cert("cert.pem", leaf);
	x509_unref(leaf);
	check_refused("not one of a CA");
	inter = test_ca(KEY_EC_P256, "inter", &up.ca[0], clock_wall());
	use(&inter);
	files.bundle_path = bundle;
	check_refused("unable to load upstream CA bundle");
	write_cert("bundle.pem", up.ca[1].cert);
	check_refused("cannot be validated with the provided bundle");
	set_clock(T0 + 2 * HOUR);
	write_cert("bundle.pem", up.ca[0].cert);
	check_refused("expired");
	test_ca_free(&inter);
	end_disk();
}

static bool two_known(void)
{
	return store.bundle->n_roots == 2;
}

/* Read again each time; while the files are broken, what was good goes on. */
static void test_disk_swap(void)
{
	struct upstream *u = NULL;
	struct x509_chain chain = { .n = 0 };
	struct ca_x509_svid svid;
	struct err e = ERR_INIT;

	begin_disk();
	use(&up.ca[0]);
	CHECK_OK(upstream_disk_new(&files, &u, &e));
	options.upstream = u;
	start();
	CHECK(under(0));
	CHECK_INT(upstream_health(u, &e), 0);
	CHECK(!upstream_publishes(u) && !upstream_follows(u));
	write_key("key.pem", up.ca[1].key);
	force(CA_PREPARE, "");
	CHECK(upstream_health(u, &e) != 0);
	CHECK_CONTAINS(e.msg, "do not match");
	CHECK_INT(store.bundle->n_roots, 1);
	use(&up.ca[1]);
	force(CA_PREPARE, "");
	CHECK_INT(upstream_health(u, &e), 0);
	CHECK(run(two_known, 2000));
	force(CA_ACTIVATE, slot(CA_X509, CA_PREPARED)->id);
	CHECK(under(1));
	svid = sign_svid(&(struct ca_x509_params){ .ttl_ns = 0 });
	check_svid(&svid);
	CHECK_OK(x509_chain_parse_der(&chain, buf_view(&svid.chain), 10, &e));
	CHECK_INT(chain.n, 2);
	x509_chain_deinit(&chain);
	ca_x509_svid_deinit(&svid);
	stop();
	upstream_free(u);
	end_disk();
}

/* With a bundle the whole file goes along, as SPIRE does it; the CA ends with its signer. */
static void test_disk_intermediate(void)
{
	AUTO(free) char *bundle = NULL;
	struct upstream *u = NULL;
	struct x509_chain chain = { .n = 0 };
	struct test_ca inter;
	struct ca_x509_svid svid;
	struct err e = ERR_INIT;

	begin_disk();
	bundle = xasprintf("%s/bundle.pem", dir);
	files.bundle_path = bundle;
	write_cert("bundle.pem", up.ca[0].cert);
	inter = test_ca(KEY_EC_P384, "inter", &up.ca[0], clock_wall());
	use(&inter);
	options.ca_ttl_ns = DAY * NS_PER_SEC;
	CHECK_OK(upstream_disk_new(&files, &u, &e));
	options.upstream = u;
	start();
	CHECK(under(0) && stored(0) && store.bundle->n_roots == 1);
	CHECK_INT(slot(CA_X509, CA_ACTIVE)->not_after, T0 + HOUR);
	svid = sign_svid(&(struct ca_x509_params){ .ttl_ns = 0 });
	check_svid(&svid);
	CHECK_OK(x509_chain_parse_der(&chain, buf_view(&svid.chain), 10, &e));
	CHECK_INT(chain.n, 3);
	CHECK_BYTES(x509_der(chain.v[2]), x509_der(inter.cert));
	x509_chain_deinit(&chain);
	ca_x509_svid_deinit(&svid);
	check_downstream(3, "OU=DOWNSTREAM-2");
	stop();
	upstream_free(u);
	test_ca_free(&inter);
	end_disk();
}

TEST_MAIN(TEST(test_minted), TEST(test_downstream), TEST(test_waits), TEST(test_lies),
	TEST(test_taint_flows_down), TEST(test_taint_too_early), TEST(test_jwt_withdrawn),
	TEST(test_jwt_not_taken), TEST(test_origin_changes), TEST(test_operator),
	TEST(test_disk_refused), TEST(test_disk_swap), TEST(test_disk_intermediate))

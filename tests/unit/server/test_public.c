/* What anybody may read: the bundle endpoint with its certificate of files, and OIDC discovery.
 * Covers: server/bundle_endpoint.c server/certfile.c server/oidc.c */
#include "tests/test.h"

#include "lib/http.h"
#include "server/certfile.h"
#include "server_run.inc"
#include "tests/unit/x509_make.inc"

static struct err e;

/* ---- asking ---- */

static int status;
static char body[65536];
static char seen_cn[64];

static void on_answer(void *arg, int s, struct bytes b, const struct err *err)
{
	(void)arg;
	status = err->code ? -1 : s;
	snprintf(body, sizeof(body), "%.*s", err->code ? 0 : (int)b.n, (const char *)b.p);
	if (err->code)
		snprintf(body, sizeof(body), "%s", err->msg);
	loop_stop(loop);
}

static int note_cn(void *arg, const struct x509_chain *peer, struct err *er)
{
	(void)arg;
	(void)er;
	snprintf(seen_cn, sizeof(seen_cn), "%s", x509_subject_cn(peer->v[0]));
	return 0;
}

static int get(const char *scheme, int at, const char *path)
{
	AUTO(free) char *url = xasprintf("%s://127.0.0.1:%d%s", scheme, at, path);
	struct http_get_options o = { .url = url, .allow_plain = true, .verify = note_cn };

	http_get(loop, &o, on_answer, NULL);
	loop_run(loop);
	return status;
}

/* ---- certificates in files ---- */

static void write_pair(const char *cn, const char *what)
{
	struct key *key = test_key(KEY_EC_P256);
	struct x509_cert *cert = test_cert(key, cn, NULL, false, NULL, clock_wall());
	AUTO_BUF struct buf pem = BUF_INIT;
	AUTO_BUF struct buf der = BUF_INIT_SECRET;
	AUTO_BUF struct buf key_pem = BUF_INIT;

	pem_write(&pem, "CERTIFICATE", x509_der(cert));
	key_to_pkcs8(key, &der);
	pem_write(&key_pem, "PRIVATE KEY", buf_view(&der));
	if (strchr(what, 'c'))
		CHECK_OK(buf_write_file(buf_view(&pem), in_dir("cert.pem"), 0600, &e));
	if (strchr(what, 'k'))
		CHECK_OK(buf_write_file(buf_view(&key_pem), in_dir("key.pem"), 0600, &e));
	x509_unref(cert);
	key_unref(key);
}

static int open_certfile(struct certfile **ret)
{
	AUTO(free) char *cert = xstrdup(in_dir("cert.pem"));

	return certfile_open(loop, cert, in_dir("key.pem"), 20 * NS_PER_MS, ret, &e);
}

static void stop_run(void *arg)
{
	(void)arg;
	loop_stop(loop);
}

static void run_for(int64_t ms)
{
	struct loop_timer *t = loop_timer_new(loop, stop_run, NULL);

	loop_timer_set(t, ms * NS_PER_MS);
	loop_run(loop);
	loop_timer_free(t);
}

static const void *in_use(struct certfile *f)
{
	struct tls_ctx *c = certfile_tls(f);

	tls_ctx_unref(c);
	return c;
}

static void test_certfile(void)
{
	struct certfile *f = NULL;
	const void *first, *second;

	crypto_init();
	loop = loop_new();
	CHECK_ERR(open_certfile(&f), ERR_NOT_FOUND);
	CHECK_CONTAINS(e.msg, "failed to load certificate: ");
	CHECK_CONTAINS(e.msg, "cert.pem");
	write_pair("one", "ck");
	CHECK_OK(open_certfile(&f));
	first = in_use(f);
	run_for(100);
	CHECK(in_use(f) == first); /* nothing has changed */
	write_pair("two", "c");    /* the key of another */
	run_for(100);
	CHECK(in_use(f) == first);
	unlink(in_dir("key.pem"));
	run_for(100);
	CHECK(in_use(f) == first);
	write_pair("three", "ck");
	for (int i = 0; i < 100 && in_use(f) == first; i++)
		run_for(20);
	second = in_use(f);
	CHECK(second != first);
	CHECK_OK(buf_write_file(bytes_str("garbage"), in_dir("cert.pem"), 0600, &e));
	run_for(100);
	CHECK(in_use(f) == second);
	certfile_close(f);
	write_pair("four", "c");
	CHECK_ERR(open_certfile(&f), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "does not belong to the certificate");
	loop_run(loop);
	loop_free(loop);
}

/* ---- the endpoints of a whole server ---- */

static char config[2048];
static int endpoint, oidc;

static void serve_public(const char *profile, const char *oidc_lines)
{
	endpoint = free_port();
	do {
		oidc = free_port();
		port = free_port();
	} while (oidc == endpoint || port == oidc || port == endpoint);
	snprintf(config, sizeof(config),
		"federation { bundle_endpoint { address = \"127.0.0.1\"\nport = %d\n"
		"refresh_hint = \"7m\"\nprofile %s } }\n"
		"oidc { insecure_addr = \"127.0.0.1:%d\"\n%s }\n",
		endpoint, profile, oidc, oidc_lines);
	extra_config = config;
	serve();
}

static void test_bundle_endpoint(void)
{
	char first[sizeof(body)];

	serve_public("\"https_spiffe\" {}", "domains = [\"127.0.0.1\"]");
	CHECK_INT(get("https", endpoint, "/"), 200);
	CHECK_CONTAINS(body, "\"spiffe_refresh_hint\": 420");
	CHECK_CONTAINS(body, "\"spiffe_sequence\": ");
	CHECK_CONTAINS(body, "\"use\": \"x509-svid\"");
	CHECK_CONTAINS(body, "\"use\": \"jwt-svid\"");
	snprintf(first, sizeof(first), "%s", body);
	CHECK_INT(get("https", endpoint, "/"), 200);
	CHECK_STR(body, first);
	CHECK_INT(get("https", endpoint, "/x"), 404);
	CHECK_STR(body, "404 page not found\n");
	CHECK_INT(get("http", endpoint, "/"), -1);
	finish();
}

static void test_web_endpoint(void)
{
	AUTO(free) char *profile = NULL;

	write_pair("files", "ck");
	profile = xasprintf("\"https_web\" { serving_cert_file { cert_file_path = \"%s/cert.pem\"\n"
			    "key_file_path = \"%s/key.pem\" } }",
		test_dir(), test_dir());
	serve_public(profile, "domains = [\"127.0.0.1\"]");
	CHECK_INT(get("https", endpoint, "/"), 200);
	CHECK_STR(seen_cn, "files");
	finish();
}

static void test_oidc(void)
{
	AUTO(free) char *issuer = NULL;

	serve_public("\"https_spiffe\" {}",
		"domains = [\"127.0.0.1\"]\nallow_insecure_scheme = true\nset_key_use = true\n"
		"server_path_prefix = \"a/b/\"");
	CHECK_INT(get("http", oidc, "/a/b/.well-known/openid-configuration"), 200);
	issuer = xasprintf("{\n  \"issuer\": \"http://127.0.0.1:%d/a/b\",\n"
			   "  \"jwks_uri\": \"http://127.0.0.1:%d/a/b/keys\",\n"
			   "  \"authorization_endpoint\": \"\",\n",
		oidc, oidc);
	CHECK_CONTAINS(body, issuer);
	CHECK_INT(get("http", oidc, "/a/b/keys"), 200);
	CHECK_CONTAINS(body, "\"use\": \"sig\"");
	CHECK_CONTAINS(body, "\"alg\": \"ES256\"");
	CHECK(!strstr(body, "x5c"));
	CHECK_INT(get("http", oidc, "/keys"), 404);
	finish();
}

static void test_oidc_domain(void)
{
	serve_public("\"https_spiffe\" {}",
		"domains = [\"other.org\"]\njwt_issuer = \"https://i.org/x/\"\n"
		"jwks_uri = \"https://k.org/keys\"");
	CHECK_INT(get("http", oidc, "/.well-known/openid-configuration"), 400);
	CHECK_STR(body, "domain \"127.0.0.1\" is not allowed\n");
	CHECK_INT(get("http", oidc, "/keys"), 200);
	CHECK(!strstr(body, "\"use\""));
	finish();
}

TEST_MAIN(TEST(run_server), TEST(test_certfile), TEST(test_bundle_endpoint),
	TEST(test_web_endpoint), TEST(test_oidc), TEST(test_oidc_domain))

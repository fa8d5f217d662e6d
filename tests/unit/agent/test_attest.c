#include <jansson.h>
#include <signal.h>

#include "agent/attest.h"
#include "lib/http.h"
#include "lib/ssh.h"
#include "tests/test.h"
#include "tests/unit/ssh_vectors.inc"

static int sign(void *arg, enum hash h, struct bytes d, struct buf *ret, struct err *e)
{
	return key_sign(arg, h, d, SIG_X509, ret, e);
}

/* A certificate for `of`, signed by `by`. */
static struct x509_cert *cert(const char *uri, const char *cn, struct key *of, struct key *by,
	const char *issuer_cn, bool ca)
{
	struct buf subject = BUF_INIT, issuer = BUF_INIT, der = BUF_INIT;
	struct err e = ERR_INIT;
	uint8_t serial[16];
	struct x509_name s = { .common_name = cn }, i = { .common_name = issuer_cn };
	int64_t now = clock_wall().sec;
	struct x509_signer signer = { .type = key_get_type(by), .sign = sign, .arg = by };
	struct x509_template t = { .not_before = wall_of_sec(now - 10),
		.not_after = wall_of_sec(now + 3600),
		.spki = pubkey_spki(key_public(of)),
		.is_ca = ca,
		.key_usage = ca ? KU_CERT_SIGN | KU_CRL_SIGN : KU_DIGITAL_SIGNATURE,
		.uris = &uri,
		.n_uris = uri ? 1 : 0 };
	struct x509_cert *c;

	x509_random_serial(serial);
	x509_name_der(&s, &subject);
	x509_name_der(&i, &issuer);
	t.serial = bytes_of(serial, 16);
	t.subject_raw = buf_view(&subject);
	t.issuer_raw = buf_view(&issuer);
	CHECK_OK(x509_build(&t, &signer, &der, &e));
	CHECK_OK(x509_parse(buf_view(&der), &c, &e));
	buf_deinit(&subject);
	buf_deinit(&issuer);
	buf_deinit(&der);
	return c;
}

static struct key *new_key(enum key_type t)
{
	struct key *k;
	struct err e = ERR_INIT;

	crypto_init();
	CHECK_OK(key_generate(t, &k, &e));
	return k;
}

static char *write_file(const char *name, struct bytes v)
{
	char *path = xasprintf("%s/%s", test_dir(), name);
	struct err e = ERR_INIT;

	CHECK_OK(buf_write_file(v, path, 0600, &e));
	return path;
}

static void test_token(void)
{
	struct agent_options o = { .attest_join_token = true };
	AUTO_BUF struct buf b = BUF_INIT;
	struct err e = ERR_INIT;

	CHECK(node_attestor_of(&o) == &attest_token);
	CHECK_ERR(attest_token.payload(&o, &b, &e), ERR_INVALID);
	CHECK_STR(e.msg, "join token was not provided");
	o.join_token_file = xasprintf("%s/token", test_dir());
	CHECK_ERR(attest_token.payload(&o, &b, &e), ERR_NOT_FOUND);
	free(write_file("token", bytes_str(" \n")));
	CHECK_ERR(attest_token.payload(&o, &b, &e), ERR_PRECONDITION);
	free(write_file("token", bytes_str("abc-1\n")));
	CHECK_OK(attest_token.payload(&o, &b, &e));
	CHECK_STR(buf_cstr(&b), "abc-1");
	free(o.join_token_file);
	o = (struct agent_options){ .attest_x509pop = true };
	CHECK(node_attestor_of(&o) == &attest_x509pop);
	o = (struct agent_options){ 0 };
	CHECK(!node_attestor_of(&o));
}

static void from_base64(const json_t *obj, const char *name, struct buf *ret)
{
	struct err e = ERR_INIT;

	CHECK(json_is_string(json_object_get(obj, name)));
	CHECK_OK(base64_decode(ret, bytes_str(json_string_value(json_object_get(obj, name))), &e));
}

static void pad(struct buf *sig, struct bytes v, size_t width)
{
	while (width-- > v.n)
		buf_byte(sig, 0);
	buf_bytes(sig, v);
}

/* The other end's check, as the server makes it. */
static void check_response(
	const struct pubkey *pub, struct bytes theirs, struct bytes response, bool rsa)
{
	AUTO_BUF struct buf both = BUF_INIT, own = BUF_INIT, sig = BUF_INIT, r = BUF_INIT,
			    s = BUF_INIT;
	struct err e = ERR_INIT;
	uint8_t digest[HASH_MAX];
	json_error_t je;
	json_t *root = json_loadb((const char *)response.p, response.n, 0, &je);
	json_t *part = json_object_get(root, rsa ? "rsa_signature" : "ecdsa_signature");

	CHECK(json_is_object(part));
	CHECK(json_is_null(json_object_get(root, rsa ? "ecdsa_signature" : "rsa_signature")));
	from_base64(part, "nonce", &own);
	CHECK_INT(own.len, 32);
	buf_bytes(&both, theirs);
	buf_bytes(&both, buf_view(&own));
	hash_of(HASH_SHA256, buf_view(&both), digest);
	if (rsa) {
		from_base64(part, "signature", &sig);
	} else {
		size_t width = (size_t)pubkey_bits(pub) / 8;

		from_base64(part, "r", &r);
		from_base64(part, "s", &s);
		pad(&sig, buf_view(&r), width);
		pad(&sig, buf_view(&s), width);
	}
	CHECK_OK(pubkey_verify(pub, HASH_SHA256, bytes_of(digest, 32), rsa ? SIG_RSA_PSS : SIG_JWS,
		buf_view(&sig), &e));
	json_decref(root);
}

static void pop(enum key_type t)
{
	bool rsa = t == KEY_RSA_2048;
	struct key *k = new_key(t);
	struct x509_cert *c = cert(NULL, "node", k, k, "node", false);
	struct agent_options o = { .attest_x509pop = true };
	AUTO_BUF struct buf pem = BUF_INIT, der = BUF_INIT_SECRET, keypem = BUF_INIT_SECRET,
			    payload = BUF_INIT, answer = BUF_INIT, challenge = BUF_INIT;
	struct err e = ERR_INIT;
	char nonce[32] = "0123456789abcdef0123456789abcde";

	pem_write(&pem, "CERTIFICATE", x509_der(c));
	key_to_pkcs8(k, &der);
	pem_write(&keypem, "PRIVATE KEY", buf_view(&der));
	o.x509pop_certificate_path = write_file("cert.pem", buf_view(&pem));
	o.x509pop_private_key_path = write_file("key.pem", buf_view(&keypem));
	o.x509pop_intermediates_path = o.x509pop_certificate_path;
	CHECK_OK(attest_x509pop.payload(&o, &payload, &e));
	CHECK(strncmp(buf_cstr(&payload), "{\"certificates\":[\"MII", 21) == 0 ||
		strncmp(buf_cstr(&payload), "{\"certificates\":[\"MI", 20) == 0);
	CHECK_CONTAINS(buf_cstr(&payload), "\",\"MI");
	buf_printf(&challenge, rsa ? "{\"rsa_signature\":{\"nonce\":\""
				   : "{\"rsa_signature\":null,\"ecdsa_signature\":{\"nonce\":\"");
	base64_encode(&challenge, bytes_of(nonce, 32));
	buf_str(&challenge, rsa ? "\"},\"ecdsa_signature\":null}" : "\"}}");
	for (int i = 0; i < 20; i++) {
		buf_reset(&answer);
		CHECK_OK(attest_x509pop.respond(&o, buf_view(&challenge), &answer, &e));
		check_response(key_public(k), bytes_of(nonce, 32), buf_view(&answer), rsa);
	}
	CHECK_ERR(attest_x509pop.respond(&o, bytes_str("{}"), &answer, &e), ERR_INVALID);
	CHECK_ERR(attest_x509pop.respond(&o, bytes_str("nonsense"), &answer, &e), ERR_INVALID);
	CHECK_ERR(attest_x509pop.respond(&o,
			  bytes_str(rsa ? "{\"ecdsa_signature\":{\"nonce\":\"AAAA\"}}"
					: "{\"rsa_signature\":{\"nonce\":\"AAAA\"}}"),
			  &answer, &e),
		ERR_INVALID);
	free(o.x509pop_certificate_path);
	free(o.x509pop_private_key_path);
	x509_unref(c);
	key_unref(k);
}

static void test_x509pop_ec(void)
{
	pop(KEY_EC_P256);
	pop(KEY_EC_P384);
}

static void test_x509pop_rsa(void)
{
	pop(KEY_RSA_2048);
}

static void test_server_identity(void)
{
	struct key *ca = new_key(KEY_EC_P256), *other = new_key(KEY_EC_P256),
		   *k = new_key(KEY_EC_P256);
	struct x509_cert *root = cert("spiffe://td", "ca", ca, ca, "ca", true);
	struct x509_cert *good = cert("spiffe://td/spire/server", "s", k, ca, "ca", false);
	struct x509_cert *wrong_id = cert("spiffe://td/workload", "s", k, ca, "ca", false);
	struct x509_cert *forged = cert("spiffe://td/spire/server", "s", k, other, "ca", false);
	struct bundle *b = bundle_new("td");
	struct server_trust t = { .trust_domain = "td", .bundle = b }, blind = { "td", NULL };
	struct x509_chain ch = { 0 };
	struct err e = ERR_INIT;

	bundle_add_root(b, root, false);
	CHECK_ERR(server_verify(&t, &ch, &e), ERR_DENIED);
	ch = (struct x509_chain){ .v = &good, .n = 1 };
	CHECK_OK(server_verify(&t, &ch, &e));
	ch.v = &wrong_id;
	CHECK_ERR(server_verify(&t, &ch, &e), ERR_DENIED);
	CHECK_ERR(server_verify(&blind, &ch, &e), ERR_DENIED);
	ch.v = &forged;
	CHECK(server_verify(&t, &ch, &e) != 0);
	CHECK_OK(server_verify(&blind, &ch, &e));
	bundle_unref(b);
	x509_unref(root);
	x509_unref(good);
	x509_unref(wrong_id);
	x509_unref(forged);
	key_unref(ca);
	key_unref(other);
	key_unref(k);
}

static void test_svid_from_the_server(void)
{
	struct key *ca = new_key(KEY_EC_P256), *k = new_key(KEY_EC_P256);
	struct x509_cert *c = cert("spiffe://td/spire/agent/x/1", "a", k, ca, "ca", false);
	struct bytes der = x509_der(c), bad = bytes_str("nonsense");
	struct x509_chain ch = { 0 };
	struct err e = ERR_INIT;

	CHECK_OK(attest_check_svid(&der, 1, "td", k, &ch, &e));
	CHECK_INT(ch.n, 1);
	x509_chain_deinit(&ch);
	CHECK(attest_check_svid(&der, 0, "td", k, &ch, &e) != 0);
	CHECK(attest_check_svid(&bad, 1, "td", k, &ch, &e) != 0);
	CHECK_ERR(attest_check_svid(&der, 1, "other", k, &ch, &e), ERR_INVALID);
	CHECK_ERR(attest_check_svid(&der, 1, "td", ca, &ch, &e), ERR_INVALID);
	x509_unref(c);
	key_unref(ca);
	key_unref(k);
}

static struct err boot_err;
static size_t boot_roots;

static void on_bundle(void *arg, struct bundle *b, const struct err *e)
{
	(void)arg;
	boot_err = *e;
	boot_roots = b ? b->n_roots : 0;
}

static void test_bootstrap(void)
{
	struct key *ca = new_key(KEY_EC_P256);
	struct x509_cert *root = cert("spiffe://td", "ca", ca, ca, "ca", true);
	AUTO_BUF struct buf pem = BUF_INIT;
	char td[] = "td";
	struct agent_options o = { .trust_domain = td };
	struct loop *l = loop_new();

	o.trust_bundle_path = xasprintf("%s/bundle.pem", test_dir());
	bootstrap_start(l, &o, on_bundle, NULL);
	loop_run(l);
	CHECK_INT(boot_err.code, ERR_NOT_FOUND);
	CHECK_CONTAINS(boot_err.msg, "bundle.pem");
	free(write_file("bundle.pem", bytes_str("")));
	bootstrap_start(l, &o, on_bundle, NULL);
	loop_run(l);
	CHECK(boot_err.code != 0);
	pem_write(&pem, "CERTIFICATE", x509_der(root));
	free(write_file("bundle.pem", buf_view(&pem)));
	bootstrap_start(l, &o, on_bundle, NULL);
	loop_run(l);
	CHECK_INT(boot_err.code, 0);
	CHECK_INT(boot_roots, 1);
	bootstrap_cancel(bootstrap_start(l, &o, on_bundle, NULL));
	loop_run(l);
	free(o.trust_bundle_path);
	o.trust_bundle_path = NULL;
	o.insecure_bootstrap = true;
	bootstrap_start(l, &o, on_bundle, NULL);
	loop_run(l);
	CHECK_INT(boot_err.code, 0);
	CHECK_INT(boot_roots, 0);
	loop_free(l);
	x509_unref(root);
	key_unref(ca);
}

static char asked[512];

static void serve_bundle(void *arg, const struct http_request *rq, struct http_response *rs)
{
	CHECK_STR(rq->path, "/bundle");
	snprintf(asked, sizeof(asked), "%s", rq->query);
	buf_bytes(&rs->body, buf_view(arg));
}

static struct http_server *web;

static void on_fetched(void *arg, struct bundle *b, const struct err *e)
{
	on_bundle(arg, b, e);
	http_server_close(web);
}

static void test_bootstrap_by_url(void)
{
	struct key *ca = new_key(KEY_EC_P256);
	struct x509_cert *root = cert("spiffe://td", "ca", ca, ca, "ca", true);
	AUTO_BUF struct buf json = BUF_INIT;
	struct bundle *b = bundle_new("td");
	char td[] = "td", url[] = "http://localhost/bundle", host[] = "server";
	struct bootstrap_ask ask = { .again = true, .attempts = 3, .started = 1000000000 };
	struct agent_options o = {
		.trust_domain = td, .trust_bundle_url = url, .trust_bundle_spiffe_format = true
	};
	struct http_server_options h = { .handle = serve_bundle, .arg = &json };
	struct loop *l = loop_new();
	struct err e = ERR_INIT;

	bundle_add_root(b, root, false);
	bundle_to_json(b, &json);
	h.unix_path = o.trust_bundle_unix_socket = xasprintf("%s/web.sock", test_dir());
	CHECK_OK(http_server_open(l, &h, &web, &e));
	o.server_address = host;
	o.server_port = 8081;
	bootstrap_start_as(l, &o, &ask, on_fetched, NULL);
	loop_run(l);
	CHECK_STR(boot_err.msg, "");
	CHECK_INT(boot_roots, 1);
	/* Who serves a Unix socket is told what for, with SPIRE's names. */
	CHECK_STR(asked,
		"spiffe-trust-domain=td&spire-attest-mode=rebootstrap&"
		"spire-attest-start-time=2001-09-09T01%3A46%3A40Z&spire-connection-attempts=3&"
		"spire-server-address=server&spire-server-port=8081");
	/* Nobody there any more. */
	bootstrap_start(l, &o, on_bundle, NULL);
	loop_run(l);
	CHECK(boot_err.code != 0);
	CHECK_CONTAINS(boot_err.msg, "trust_bundle_url");
	loop_free(l);
	bundle_unref(b);
	x509_unref(root);
	key_unref(ca);
	free(o.trust_bundle_unix_socket);
}

/* ---- sshpop ---- */

static void test_sshpop(void)
{
	AUTO(free) char *key = write_file("host", bytes_str(ssh_vectors[0].key));
	AUTO(free) char *certificate = write_file("host-cert.pub", bytes_str(ssh_vectors[0].cert));
	struct agent_options o = { .attest_sshpop = true,
		.sshpop_host_key_path = key,
		.sshpop_host_cert_path = certificate };
	AUTO_BUF struct buf payload = BUF_INIT, answer = BUF_INIT, blob = BUF_INIT, own = BUF_INIT,
			    sig = BUF_INIT;
	uint8_t both[64], digest[HASH_MAX];
	struct ssh_cert c;
	struct err e;
	json_t *root, *part;

	CHECK(node_attestor_of(&o) == &attest_sshpop);
	CHECK_OK(attest_sshpop.payload(&o, &payload, &e));
	root = json_loadb((char *)payload.p, payload.len, 0, NULL);
	from_base64(root, "Certificate", &blob);
	json_decref(root);
	CHECK_OK(ssh_cert_parse(buf_view(&blob), &c, &e));

	CHECK_OK(attest_sshpop.respond(&o,
		bytes_str("{\"Nonce\":\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"}"), &answer,
		&e));
	root = json_loadb((char *)answer.p, answer.len, 0, NULL);
	from_base64(root, "Nonce", &own);
	CHECK_INT(own.len, 32);
	part = json_object_get(root, "Signature");
	from_base64(part, "Blob", &sig);
	memset(both, 0, 32);
	memcpy(both + 32, own.p, 32);
	hash_of(HASH_SHA256, bytes_of(both, sizeof(both)), digest);
	CHECK_OK(ssh_verify(c.key, bytes_of(digest, 32),
		bytes_str(json_string_value(json_object_get(part, "Format"))), buf_view(&sig),
		false, &e));
	json_decref(root);
	ssh_cert_deinit(&c);

	buf_reset(&answer);
	CHECK_ERR(attest_sshpop.respond(&o, bytes_str("{\"Nonce\":\"c2hvcnQK\"}"), &answer, &e),
		ERR_INVALID);
	CHECK_CONTAINS(e.msg, "invalid challenge nonce size");
	CHECK_ERR(attest_sshpop.respond(&o, bytes_str("{{"), &answer, &e), ERR_INVALID);
	CHECK_ERR(attest_sshpop.respond(&o, bytes_str("{}"), &answer, &e), ERR_INVALID);
	o.sshpop_host_cert_path = key;
	CHECK_ERR(attest_sshpop.payload(&o, &payload, &e), ERR_INVALID);
	o.sshpop_host_cert_path = (char *)(uintptr_t) "/none";
	CHECK_ERR(attest_sshpop.payload(&o, &payload, &e), ERR_NOT_FOUND);
}

/* ---- http_challenge ---- */

struct fetch {
	struct loop *loop;
	void *listener;
	char *url;
	int status[2];
	char *body;
	int n;
};

static void next_fetch(struct fetch *f);

static void fetched(void *arg, int status, struct bytes body, const struct err *failed)
{
	struct fetch *f = arg;
	AUTO_BUF struct buf answer = BUF_INIT;
	struct err e;

	CHECK_INT(failed->code, 0);
	f->status[f->n++] = status;
	free(f->body);
	f->body = xstrndup((const char *)body.p, body.n);
	if (f->n == 2) {
		attest_http_challenge.close(f->listener);
		return;
	}
	CHECK_OK(attest_http_challenge.answer(
		f->listener, bytes_str("{\"nonce\":\"abc-_=\"}"), &answer, &e));
	CHECK_STR(buf_cstr(&answer), "\n");
	next_fetch(f);
}

static void next_fetch(struct fetch *f)
{
	struct http_get_options o = { .url = f->url, .allow_plain = true };

	http_get(f->loop, &o, fetched, f);
}

/* The token is read each time, and never more of it than a token has. */
static void test_psat(void)
{
	AUTO(free) char *path = xasprintf("%s/token", test_dir());
	struct agent_options o = { .attest_psat = true,
		.psat_cluster = (char *)(uintptr_t) "c\"1",
		.psat_token_path = path };
	AUTO_BUF struct buf b = BUF_INIT, big = BUF_INIT;
	struct err e;

	CHECK(node_attestor_of(&o) == &attest_psat);
	CHECK_ERR(attest_psat.payload(&o, &b, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "unable to load token from ");
	CHECK_OK(buf_write_file(bytes_str("\n"), path, 0600, &e));
	CHECK_ERR(attest_psat.payload(&o, &b, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "/token\" is empty");
	CHECK_OK(buf_write_file(bytes_str("a\xff"), path, 0600, &e));
	CHECK_ERR(attest_psat.payload(&o, &b, &e), ERR_INVALID);
	for (int i = 0; i < 33 << 10; i++)
		buf_byte(&big, 'x');
	CHECK_OK(buf_write_file(buf_view(&big), path, 0600, &e));
	CHECK_ERR(attest_psat.payload(&o, &b, &e), ERR_INVALID);
	CHECK_OK(buf_write_file(bytes_str("a.b.c\n"), path, 0600, &e));
	buf_reset(&b);
	CHECK_OK(attest_psat.payload(&o, &b, &e));
	CHECK_STR(buf_cstr(&b), "{\"cluster\":\"c\\\"1\",\"token\":\"a.b.c\"}");
	CHECK_OK(buf_write_file(bytes_str("d"), path, 0600, &e));
	buf_reset(&b);
	CHECK_OK(attest_psat.payload(&o, &b, &e));
	CHECK_CONTAINS(buf_cstr(&b), "\"token\":\"d\"");
	unlink(path);
	rmdir(test_dir());
}

/* Nothing is served before the challenge has come, then the nonce. */
static void test_http_challenge(void)
{
	static const char *const bad[] = { "{{", "{}", "{\"nonce\":\"\"}", "{\"nonce\":\"a b\"}",
		"{\"nonce\":\"0123456789012345678901234567890123456789012345678901234567890123"
		"4\"}" };
	struct agent_options o = { .attest_http_challenge = true,
		.http_challenge_hostname = (char *)(uintptr_t) "node-1.example.org",
		.http_challenge_agentname = (char *)(uintptr_t) "one" };
	AUTO_BUF struct buf payload = BUF_INIT, answer = BUF_INIT;
	struct fetch f = { .loop = loop_new() };
	struct err e;
	json_t *root;

	signal(SIGPIPE, SIG_IGN);
	CHECK(node_attestor_of(&o) == &attest_http_challenge);
	CHECK_OK(attest_http_challenge.open(f.loop, &o, &payload, &f.listener, &e));
	root = json_loadb((char *)payload.p, payload.len, 0, NULL);
	CHECK_STR(json_string_value(json_object_get(root, "hostname")), "node-1.example.org");
	CHECK_STR(json_string_value(json_object_get(root, "agentname")), "one");
	f.url = xasprintf("http://127.0.0.1:%d/.well-known/spiffe/nodeattestor/http_challenge/one/"
			  "challenge",
		(int)json_integer_value(json_object_get(root, "port")));
	json_decref(root);
	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		CHECK_ERR(attest_http_challenge.answer(f.listener, bytes_str(bad[i]), &answer, &e),
			ERR_INVALID);
	next_fetch(&f);
	loop_run(f.loop);
	CHECK_INT(f.status[0], 404);
	CHECK_INT(f.status[1], 200);
	CHECK_STR(f.body, "abc-_=\n");
	loop_free(f.loop);
	free(f.url);
	free(f.body);
}

/* The port that the server is told is the proxy's. */
static void test_advertised_port(void)
{
	struct agent_options o = { .http_challenge_agentname = (char *)(uintptr_t) "default",
		.http_challenge_advertised_port = 80 };
	AUTO_BUF struct buf payload = BUF_INIT;
	struct loop *l = loop_new();
	void *listener;
	struct err e;

	CHECK_OK(attest_http_challenge.open(l, &o, &payload, &listener, &e));
	CHECK_CONTAINS(buf_cstr(&payload), "\"port\":80}");
	attest_http_challenge.close(listener);
	loop_run(l);
	loop_free(l);
}

TEST_MAIN(TEST(test_token), TEST(test_x509pop_ec), TEST(test_x509pop_rsa),
	TEST(test_server_identity), TEST(test_svid_from_the_server), TEST(test_bootstrap),
	TEST(test_bootstrap_by_url), TEST(test_sshpop), TEST(test_psat), TEST(test_http_challenge),
	TEST(test_advertised_port))

/* Node attestation: the path template and x509pop's pure halves. */
#include "tests/test.h"

#include <jansson.h>

#include "server/attest_internal.h"

#include "../x509_make.inc"

/* ---- templates ---- */

static int check(const char *text, struct err *e)
{
	return attest_template_check(text, &x509pop_template_type, e);
}

static void test_template(void)
{
	struct err e;

	CHECK_OK(check("/x509pop/{{ .Fingerprint }}", &e));
	CHECK_OK(check("/{{.PluginName}}/{{ .Subject.CommonName }}", &e));
	CHECK_OK(check("/a/{{ .URISanSelectors.zone }}", &e));
	CHECK_OK(check("/plain", &e));
	CHECK_OK(check("/{{ .Fingerprint | upper }}", &e));
	CHECK_OK(check("/{{ with .Subject }}{{ .CommonName }}{{ end }}", &e));
	CHECK_OK(check("/{{ index .DNSNames 3 }}", &e));
	CHECK_ERR(check("x509pop/{{ .Fingerprint }}", &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "must begin with \"/\"");
	CHECK_ERR(check("/{{ .Nope }}", &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, ".Nope");
	CHECK_ERR(check("/{{ .Fingerprint | nope }}", &e), ERR_INVALID);
	CHECK_ERR(check("/{{ if .X }}a{{ end }}", &e), ERR_INVALID);
	CHECK_ERR(check("/{{ .Fingerprint", &e), ERR_INVALID);
	CHECK_ERR(check("/{{}}", &e), ERR_INVALID);
	CHECK_ERR(check("/{{", &e), ERR_INVALID);
	CHECK_ERR(check("/{{ .URISanSelectors. }}", &e), ERR_INVALID);
}

/* ---- x509pop ---- */

struct pop {
	struct test_ca ca;
	struct key *key;
	struct x509_cert *leaf;
	struct x509_chain roots;
	struct x509pop config;
	struct x509pop_state st;
	struct buf payload, challenge, response;
};

static void add_cert(struct buf *b, const struct x509_cert *c)
{
	buf_str(b, "\"");
	base64_encode(b, x509_der(c));
	buf_str(b, "\"");
}

static struct pop setup(enum key_type t, const char *uri)
{
	struct pop p = { .payload = BUF_INIT, .challenge = BUF_INIT, .response = BUF_INIT };

	p.ca = test_ca(KEY_EC_P256, "root", NULL, test_now);
	p.key = test_key(t);
	p.leaf = test_cert(p.key, "node-1", uri, false, &p.ca, test_now);
	x509_chain_add(&p.roots, p.ca.cert);
	p.config = (struct x509pop){ .trust_domain = (char *)(uintptr_t) "example.org",
		.path_template = (char *)(uintptr_t) "/{{ .PluginName }}/{{ .Fingerprint }}",
		.svid_prefix = (char *)(uintptr_t) "/spire-exchange/",
		.max_intermediates = 4,
		.max_rsa_bits = 8192 };
	buf_str(&p.payload, "{\"certificates\":[");
	add_cert(&p.payload, p.leaf);
	buf_str(&p.payload, "]}");
	return p;
}

static void finish(struct pop *p)
{
	x509pop_state_deinit(&p->st);
	x509_chain_deinit(&p->roots);
	x509_unref(p->leaf);
	key_unref(p->key);
	test_ca_free(&p->ca);
	buf_deinit(&p->payload);
	buf_deinit(&p->challenge);
	buf_deinit(&p->response);
}

static int challenge(struct pop *p, struct err *e)
{
	p->st.config = &p->config;
	return x509pop_challenge(
		&p->st, &p->roots, buf_view(&p->payload), "192.0.2.1", test_now, &p->challenge, e);
}

static void quote(struct buf *b, const char *name, struct bytes v)
{
	buf_printf(b, "\"%s\":\"", name);
	base64_encode(b, v);
	buf_str(b, "\"");
}

/* Signs the nonces as SPIRE's agent does. */
static void answer(struct pop *p, bool rsa)
{
	json_t *root = json_loadb((char *)p->challenge.p, p->challenge.len, 0, NULL);
	const json_t *o = json_object_get(root, rsa ? "rsa_signature" : "ecdsa_signature");
	const char *text = json_string_value(json_object_get(o, "nonce"));
	AUTO_BUF struct buf nonce = BUF_INIT, both = BUF_INIT, sig = BUF_INIT;
	uint8_t mine[ATTEST_NONCE], digest[32];
	struct err e;

	CHECK(text != NULL);
	CHECK_OK(base64_decode(&nonce, bytes_str(text), &e));
	CHECK_INT(nonce.len, ATTEST_NONCE);
	json_decref(root);
	crypto_random(mine, sizeof(mine));
	buf_bytes(&both, buf_view(&nonce));
	buf_append(&both, mine, sizeof(mine));
	hash_of(HASH_SHA256, buf_view(&both), digest);
	CHECK_OK(key_sign(
		p->key, HASH_SHA256, bytes_of(digest, 32), rsa ? SIG_RSA_PSS : SIG_JWS, &sig, &e));
	buf_reset(&p->response);
	buf_printf(&p->response, "{\"%s\":{", rsa ? "rsa_signature" : "ecdsa_signature");
	quote(&p->response, "nonce", bytes_of(mine, sizeof(mine)));
	buf_str(&p->response, ",");
	if (rsa) {
		quote(&p->response, "signature", buf_view(&sig));
	} else {
		size_t half = sig.len / 2, skip = 0;

		/* Go's big.Int.Bytes() drops leading zeros. */
		while (skip < half && sig.p[skip] == 0)
			skip++;
		quote(&p->response, "r", bytes_of(sig.p + skip, half - skip));
		buf_str(&p->response, ",");
		quote(&p->response, "s", bytes_of(sig.p + half, half));
	}
	buf_str(&p->response, "},\"other\":null}");
}

static bool has(const struct selectors *s, const char *prefix)
{
	for (size_t i = 0; i < s->n; i++)
		if (strcmp(s->v[i].type, "x509pop") == 0 &&
			strncmp(s->v[i].value, prefix, strlen(prefix)) == 0)
			return true;
	return false;
}

static void attest_with(enum key_type t, bool rsa)
{
	struct pop p = setup(t, "x509pop://example.org/zone/a/b");
	struct err e;

	CHECK_OK(challenge(&p, &e));
	answer(&p, rsa);
	CHECK_OK(x509pop_verify(&p.st, buf_view(&p.response), &e));
	CHECK_CONTAINS(p.st.agent_id, "spiffe://example.org/spire/agent/x509pop/");
	CHECK_INT(strlen(p.st.agent_id), strlen("spiffe://example.org/spire/agent/x509pop/") + 40);
	CHECK(has(&p.st.selectors, "subject:cn:node-1"));
	CHECK(has(&p.st.selectors, "ca:fingerprint:"));
	CHECK(has(&p.st.selectors, "serialnumber:"));
	CHECK(has(&p.st.selectors, "san:zone:a/b"));
	CHECK_INT(p.st.selectors.n, 4);
	finish(&p);
}

static void test_ecdsa(void)
{
	attest_with(KEY_EC_P256, false);
	attest_with(KEY_EC_P384, false);
}

static void test_rsa(void)
{
	attest_with(KEY_RSA_2048, true);
}

static void test_wrong_ca(void)
{
	struct pop p = setup(KEY_EC_P256, NULL);
	struct test_ca other = test_ca(KEY_EC_P256, "other", NULL, test_now);
	struct err e;

	x509_chain_deinit(&p.roots);
	p.roots = (struct x509_chain){ .n = 0 };
	x509_chain_add(&p.roots, other.cert);
	CHECK_ERR(challenge(&p, &e), ERR_DENIED);
	CHECK_CONTAINS(e.msg, "certificate verification failed: ");
	test_ca_free(&other);
	finish(&p);
}

static void test_wrong_answer(void)
{
	struct pop p = setup(KEY_EC_P256, NULL);
	struct key *mine = p.key, *stolen = test_key(KEY_EC_P256);
	struct err e;

	CHECK_OK(challenge(&p, &e));
	p.key = stolen;
	answer(&p, false);
	CHECK_ERR(x509pop_verify(&p.st, buf_view(&p.response), &e), ERR_DENIED);
	CHECK_STR(e.msg, "challenge response verification failed: ECDSA signature verify failed");
	CHECK_ERR(x509pop_verify(&p.st, bytes_str("{}"), &e), ERR_DENIED);
	CHECK_CONTAINS(e.msg, "expecting ECDSA response");
	CHECK_ERR(x509pop_verify(&p.st, bytes_str("nonsense"), &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "unable to unmarshal challenge response");
	p.key = mine;
	key_unref(stolen);
	finish(&p);
}

static void test_payloads(void)
{
	static const struct {
		const char *text, *why;
	} bad[] = {
		{ "", "failed to unmarshal data" },
		{ "{}", "no certificate to attest" },
		{ "{\"certificates\":null}", "no certificate to attest" },
		{ "{\"certificates\":[1]}", "unable to parse leaf certificate" },
		{ "{\"certificates\":[\"AAAA\"]}", "unable to parse leaf certificate" },
		{ "{\"certificates\":[\"A\",\"A\",\"A\",\"A\",\"A\",\"A\"]}",
			"too many intermediate certificates" },
	};

	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		struct pop p = setup(KEY_EC_P256, NULL);
		struct err e;

		buf_reset(&p.payload);
		buf_str(&p.payload, bad[i].text);
		CHECK_ERR(challenge(&p, &e), ERR_INVALID);
		CHECK_CONTAINS(e.msg, bad[i].why);
		finish(&p);
	}
}

/* A CA's certificate has no digitalSignature. */
static void test_key_usage(void)
{
	struct pop p = setup(KEY_EC_P256, NULL);
	struct err e;

	buf_reset(&p.payload);
	buf_str(&p.payload, "{\"certificates\":[");
	add_cert(&p.payload, p.ca.cert);
	buf_str(&p.payload, "]}");
	CHECK_ERR(challenge(&p, &e), ERR_INTERNAL);
	CHECK_CONTAINS(e.msg, "certificate not intended for digital signature use");
	finish(&p);
}

static void test_client_ip(void)
{
	struct pop p = setup(KEY_EC_P256, NULL);
	struct err e;

	p.config.verify_client_ip = true;
	CHECK_ERR(challenge(&p, &e), ERR_DENIED);
	CHECK_STR(e.msg, "client IP 192.0.2.1 does not match any certificate IP SAN");
	finish(&p);
}

static void test_spiffe_mode(void)
{
	struct pop p = setup(KEY_EC_P256, "spiffe://example.org/spire-exchange/rack/7");
	struct err e;

	p.config.ca = (struct ca *)&p; /* only told from NULL here */
	p.config.path_template = (char *)(uintptr_t) "/{{ .PluginName }}/{{ .SVIDPathTrimmed }}";
	CHECK_OK(challenge(&p, &e));
	answer(&p, false);
	CHECK_OK(x509pop_verify(&p.st, buf_view(&p.response), &e));
	CHECK_STR(p.st.agent_id, "spiffe://example.org/spire/agent/x509pop/rack/7");
	p.config.svid_prefix = (char *)(uintptr_t) "/other/";
	answer(&p, false);
	free(p.st.agent_id);
	p.st.agent_id = NULL;
	CHECK_ERR(x509pop_verify(&p.st, buf_view(&p.response), &e), ERR_DENIED);
	CHECK_STR(e.msg, "x509 cert doesnt match SVID prefix");
	finish(&p);
}

static void test_missing_san(void)
{
	struct pop p = setup(KEY_EC_P256, NULL);
	struct err e;

	p.config.path_template = (char *)(uintptr_t) "/{{ .URISanSelectors.zone }}";
	CHECK_OK(challenge(&p, &e));
	answer(&p, false);
	CHECK_ERR(x509pop_verify(&p.st, buf_view(&p.response), &e), ERR_INTERNAL);
	CHECK_CONTAINS(e.msg, "failed to make spiffe id");
	finish(&p);
}

TEST_MAIN(TEST(test_template), TEST(test_ecdsa), TEST(test_rsa), TEST(test_wrong_ca),
	TEST(test_wrong_answer), TEST(test_payloads), TEST(test_key_usage), TEST(test_client_ip),
	TEST(test_spiffe_mode), TEST(test_missing_san))

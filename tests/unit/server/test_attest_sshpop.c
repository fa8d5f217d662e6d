/* Node attestor sshpop: payload, challenge and response, without a loop. */
#include "tests/test.h"

#include <jansson.h>

#include "server/attest_internal.h"

#include "../ssh_vectors.inc"

static const struct wall now = { .sec = 1767225600 };

struct pop {
	struct sshpop *config;
	struct sshpop_state st;
	struct key *key;
	struct buf payload, challenge, response;
};

static void payload_of(struct buf *ret, const char *line)
{
	AUTO_BUF struct buf blob = BUF_INIT;
	struct err e;

	CHECK_OK(ssh_line_parse(bytes_str(line), &blob, &e));
	buf_reset(ret);
	buf_str(ret, "{\"Certificate\":\"");
	base64_encode(ret, buf_view(&blob));
	buf_str(ret, "\"}");
}

static struct server_options config_of(const struct ssh_vector *v)
{
	struct server_options c = { .attest_sshpop = true };

	strings_add(&c.sshpop_cert_authorities, v->ca);
	return c;
}

static struct pop setup(size_t i, const char *domain, const char *template)
{
	const struct ssh_vector *v = &ssh_vectors[i];
	struct server_options c = config_of(v);
	struct attest_options o = { .trust_domain = "example.org", .config = &c };
	struct pop p = { .payload = BUF_INIT, .challenge = BUF_INIT, .response = BUF_INIT };
	struct err e;

	c.sshpop_canonical_domain = (char *)(uintptr_t)domain;
	c.sshpop_agent_path_template = (char *)(uintptr_t) template;
	CHECK_OK(sshpop_new(&o, &p.config, &e));
	strings_deinit(&c.sshpop_cert_authorities);
	p.st.config = p.config;
	CHECK_OK(ssh_key_parse(bytes_str(v->key), &p.key, &e));
	payload_of(&p.payload, v->cert);
	return p;
}

static void finish(struct pop *p)
{
	sshpop_state_deinit(&p->st);
	sshpop_free(p->config);
	key_unref(p->key);
	buf_deinit(&p->payload);
	buf_deinit(&p->challenge);
	buf_deinit(&p->response);
}

static int challenge(struct pop *p, struct err *e)
{
	return sshpop_challenge(&p->st, buf_view(&p->payload), now, &p->challenge, e);
}

/* Signs the nonces as SPIRE's agent does. */
static void answer(struct pop *p)
{
	json_t *root = json_loadb((char *)p->challenge.p, p->challenge.len, 0, NULL);
	const char *text = json_string_value(json_object_get(root, "Nonce"));
	AUTO_BUF struct buf both = BUF_INIT, sig = BUF_INIT;
	uint8_t mine[ATTEST_NONCE], digest[32];
	const char *format;
	struct err e;

	CHECK(text != NULL);
	CHECK_OK(base64_decode(&both, bytes_str(text), &e));
	CHECK_INT(both.len, ATTEST_NONCE);
	json_decref(root);
	crypto_random(mine, sizeof(mine));
	buf_append(&both, mine, sizeof(mine));
	hash_of(HASH_SHA256, buf_view(&both), digest);
	CHECK_OK(ssh_sign(p->key, bytes_of(digest, 32), &format, &sig, &e));
	buf_reset(&p->response);
	buf_str(&p->response, "{\"Nonce\":\"");
	base64_encode(&p->response, bytes_of(mine, sizeof(mine)));
	buf_printf(&p->response, "\",\"Signature\":{\"Format\":\"%s\",\"Blob\":\"", format);
	base64_encode(&p->response, buf_view(&sig));
	buf_str(&p->response, "\",\"Rest\":null}}");
}

static void test_all_types(void)
{
	static const char prefix[] = "spiffe://example.org/spire/agent/sshpop/";

	for (size_t i = 0; i < ARRAY_LEN(ssh_vectors); i++) {
		struct pop p = setup(i, NULL, NULL);
		struct err e;

		CHECK_OK(challenge(&p, &e));
		answer(&p);
		CHECK_OK(sshpop_verify(&p.st, buf_view(&p.response), &e));
		CHECK_CONTAINS(p.st.agent_id, prefix);
		/* SHA-256 in base64url without padding */
		CHECK_INT(strlen(p.st.agent_id), strlen(prefix) + 43);
		finish(&p);
	}
}

static void test_template(void)
{
	struct pop p = setup(
		0, "example.org", "/{{ .Hostname }}/{{ index .ValidPrincipals 1 }}/{{ .Serial }}");
	struct err e;

	CHECK_OK(challenge(&p, &e));
	answer(&p);
	CHECK_OK(sshpop_verify(&p.st, buf_view(&p.response), &e));
	CHECK_STR(p.st.agent_id, "spiffe://example.org/spire/agent/node-1/node-1/7");
	finish(&p);
	p = setup(0, NULL, "/x/{{ index .ValidPrincipals 2 }}");
	CHECK_OK(challenge(&p, &e));
	answer(&p);
	CHECK_ERR(sshpop_verify(&p.st, buf_view(&p.response), &e), ERR_INTERNAL);
	CHECK_CONTAINS(e.msg, "failed to create AgentID");
	finish(&p);
}

static void test_config(void)
{
	struct server_options c = config_of(&ssh_vectors[0]);
	struct attest_options o = { .trust_domain = "example.org", .config = &c };
	static const char *const bad[] = { "sshpop", "/{{ .Nope }}", "/{{ .KeyId.X }}",
		"/{{ nope .KeyId }}", "/{{ index .ValidPrincipals 0" };
	struct sshpop *p;
	struct err e;

	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		c.sshpop_agent_path_template = (char *)(uintptr_t)bad[i];
		CHECK_ERR(sshpop_new(&o, &p, &e), ERR_INVALID);
	}
	c.sshpop_agent_path_template = NULL;
	strings_add(&c.sshpop_cert_authorities, "bad authority");
	CHECK_ERR(sshpop_new(&o, &p, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "failed to parse public key \"bad authority\"");
	strings_deinit(&c.sshpop_cert_authorities);
	c.sshpop_cert_authorities = (struct strings){ 0 };
	CHECK_ERR(sshpop_new(&o, &p, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "at least one cert authority");
}

static void test_file(void)
{
	AUTO(free) char *path = xasprintf("%s/authorities", test_dir());
	AUTO(free) char *text = xasprintf("# ours\n\n%s\n%s", ssh_vectors[0].ca, ssh_vectors[1].ca);
	struct server_options c = { .sshpop_cert_authorities_path = path };
	struct attest_options o = { .trust_domain = "example.org", .config = &c };
	struct sshpop *p;
	struct err e;

	CHECK_OK(buf_write_file(bytes_str(text), path, 0600, &e));
	CHECK_OK(sshpop_new(&o, &p, &e));
	CHECK_INT(p->authorities.len, 64);
	sshpop_free(p);
	CHECK_OK(buf_write_file(bytes_str("\nnonsense\n"), path, 0600, &e));
	CHECK_ERR(sshpop_new(&o, &p, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "authorities:2: ");
	CHECK_OK(buf_write_file(bytes_str("\n"), path, 0600, &e));
	CHECK_ERR(sshpop_new(&o, &p, &e), ERR_INVALID);
	unlink(path);
	CHECK_ERR(sshpop_new(&o, &p, &e), ERR_NOT_FOUND);
	rmdir(test_dir());
}

static void test_strangers(void)
{
	struct pop p = setup(0, NULL, NULL);
	struct err e;

	payload_of(&p.payload, ssh_vectors[1].cert);
	CHECK_ERR(challenge(&p, &e), ERR_INTERNAL);
	CHECK_STR(
		e.msg, "failed to check host key: no authorities for hostname: node-1.example.org");
	finish(&p);
	p = setup(0, "other.org", NULL);
	CHECK_ERR(challenge(&p, &e), ERR_INTERNAL);
	CHECK_STR(e.msg, "failed to decanonicalize hostname: cert principal is not in domain "
			 "\".other.org\"");
	finish(&p);
	p = setup(0, NULL, NULL);
	payload_of(&p.payload, ssh_vectors[0].ca);
	CHECK_ERR(challenge(&p, &e), ERR_INTERNAL);
	CHECK_STR(e.msg, "pubkey in response is not a certificate");
	finish(&p);
}

static void test_payloads(void)
{
	static const struct {
		const char *text, *why;
	} bad[] = {
		{ "{{", "failed to unmarshal data" },
		{ "[]", "failed to unmarshal data" },
		{ "{}", "no certificate in response" },
		{ "{\"certificate\":\"aGVsbG8K\"}", "failed to parse public key" },
		{ "{\"Certificate\":1}", "failed to unmarshal data" },
	};

	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		struct pop p = setup(0, NULL, NULL);
		struct err e;

		buf_reset(&p.payload);
		buf_str(&p.payload, bad[i].text);
		CHECK_ERR(challenge(&p, &e), ERR_INTERNAL);
		CHECK_CONTAINS(e.msg, bad[i].why);
		finish(&p);
	}
}

static void test_wrong_answer(void)
{
	struct pop p = setup(0, NULL, NULL);
	struct key *mine = p.key;
	struct err e;

	CHECK_OK(challenge(&p, &e));
	CHECK_OK(key_from_ed25519(bytes_of("0123456789abcdef0123456789abcdef", 32), &p.key, &e));
	answer(&p);
	CHECK_ERR(sshpop_verify(&p.st, buf_view(&p.response), &e), ERR_INTERNAL);
	CHECK_CONTAINS(e.msg, "failed to verify signature");
	CHECK_ERR(sshpop_verify(&p.st, bytes_str("{{"), &e), ERR_INTERNAL);
	CHECK_CONTAINS(e.msg, "failed to unmarshal challenge response");
	CHECK_ERR(sshpop_verify(&p.st, bytes_str("{}"), &e), ERR_INTERNAL);
	CHECK_CONTAINS(e.msg, "invalid response nonce size");
	CHECK_ERR(sshpop_verify(&p.st,
			  bytes_str("{\"Nonce\":\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"}"),
			  &e),
		ERR_INTERNAL);
	CHECK_CONTAINS(e.msg, "there is no signature");
	CHECK(p.st.agent_id == NULL);
	key_unref(mine);
	finish(&p);
}

TEST_MAIN(TEST(test_all_types), TEST(test_template), TEST(test_config), TEST(test_file),
	TEST(test_strangers), TEST(test_payloads), TEST(test_wrong_answer))

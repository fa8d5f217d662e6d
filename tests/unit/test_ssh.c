/* SSH keys and host certificates, against files that ssh-keygen made. */
#include "tests/test.h"

#include "lib/ssh.h"

#include "ssh_vectors.inc"

static const struct wall now = { .sec = 1767225600 };

static struct buf blob_of(const char *line)
{
	struct buf b = BUF_INIT;
	struct err e;

	CHECK_OK(ssh_line_parse(bytes_str(line), &b, &e));
	return b;
}

static struct ssh_cert cert_of(const char *line)
{
	AUTO_BUF struct buf b = blob_of(line);
	struct ssh_cert c = { 0 };
	struct err e;

	CHECK_OK(ssh_cert_parse(buf_view(&b), &c, &e));
	return c;
}

static void test_certs(void)
{
	for (size_t i = 0; i < ARRAY_LEN(ssh_vectors); i++) {
		const struct ssh_vector *v = &ssh_vectors[i];
		AUTO_BUF struct buf ca = blob_of(v->ca);
		struct ssh_cert c = cert_of(v->cert);
		struct err e;

		CHECK(bytes_equal(c.authority_blob, buf_view(&ca)));
		CHECK_INT(c.serial, 7);
		CHECK_INT(c.type, SSH_CERT_HOST);
		CHECK_INT(c.principals.n, 2);
		CHECK_STR(c.principals.v[0], "node-1.example.org");
		CHECK_STR(c.principals.v[1], "node-1");
		CHECK_CONTAINS(c.key_id, "host ");
		CHECK_INT(c.valid_after, 0);
		CHECK(c.valid_before == UINT64_MAX);
		CHECK_OK(ssh_cert_check_host(&c, now, &e));
		ssh_cert_deinit(&c);
	}
}

/* Any byte changed: it no longer parses, or no longer verifies. */
static void test_tampered(void)
{
	AUTO_BUF struct buf b = blob_of(ssh_vectors[0].cert);

	for (size_t i = 0; i < b.len; i++) {
		struct ssh_cert c = { 0 };
		struct err e;

		b.p[i] ^= 1;
		if (ssh_cert_parse(buf_view(&b), &c, &e) == 0)
			CHECK(ssh_cert_check_host(&c, now, &e) != 0);
		ssh_cert_deinit(&c);
		b.p[i] ^= 1;
	}
	for (size_t n = 0; n < b.len; n++) {
		struct ssh_cert c = { 0 };
		struct err e;

		CHECK_ERR(ssh_cert_parse(bytes_of(b.p, n), &c, &e), ERR_INVALID);
	}
}

static void test_judgement(void)
{
	struct ssh_cert c = cert_of(ssh_vectors[0].cert);
	struct err e;

	c.type = SSH_CERT_USER;
	CHECK_ERR(ssh_cert_check_host(&c, now, &e), ERR_DENIED);
	CHECK_CONTAINS(e.msg, "has type 1");
	c.type = SSH_CERT_HOST;
	c.valid_after = (uint64_t)now.sec + 1;
	CHECK_ERR(ssh_cert_check_host(&c, now, &e), ERR_DENIED);
	CHECK_STR(e.msg, "cert is not yet valid");
	c.valid_after = 0;
	c.valid_before = (uint64_t)now.sec;
	CHECK_ERR(ssh_cert_check_host(&c, now, &e), ERR_DENIED);
	CHECK_STR(e.msg, "cert has expired");
	c.valid_before = UINT64_MAX;
	strings_add(&c.critical, "force-command");
	CHECK_ERR(ssh_cert_check_host(&c, now, &e), ERR_DENIED);
	CHECK_CONTAINS(e.msg, "force-command");
	ssh_cert_deinit(&c);
}

static void test_private(void)
{
	for (size_t i = 0; i < ARRAY_LEN(ssh_vectors); i++) {
		const struct ssh_vector *v = &ssh_vectors[i];
		struct ssh_cert c = cert_of(v->cert);
		AUTO_BUF struct buf sig = BUF_INIT;
		const char *format;
		struct key *k;
		struct err e;

		CHECK_OK(ssh_key_parse(bytes_str(v->key), &k, &e));
		CHECK(bytes_equal(pubkey_spki(key_public(k)), pubkey_spki(c.key)));
		CHECK_OK(ssh_sign(k, bytes_str("message"), &format, &sig, &e));
		CHECK_OK(ssh_verify(
			c.key, bytes_str("message"), bytes_str(format), buf_view(&sig), false, &e));
		CHECK_ERR(ssh_verify(c.key, bytes_str("massage"), bytes_str(format), buf_view(&sig),
				  true, &e),
			ERR_INVALID);
		CHECK_ERR(ssh_verify(c.key, bytes_str("message"), bytes_str("ssh-dss"),
				  buf_view(&sig), true, &e),
			ERR_INVALID);
		CHECK_ERR(ssh_verify(c.key, bytes_str("message"), bytes_str(format),
				  bytes_of(sig.p, sig.len - 1), true, &e),
			ERR_INVALID);
		key_unref(k);
		ssh_cert_deinit(&c);
	}
}

/* "ssh-rsa" is SHA-1, which Go's agents answer with: only when asked for, never in certificates. */
static void test_rsa_sha1(void)
{
	/* printf m | openssl dgst -sha1 -sign host_rsa */
	static const char text[] =
		"m9LLlBVoWyiLafKdoMW3/sOvqV9PxHcTFmvtjVtSQUXF38vkMBXtn+Rk/MBKBCOUvQpvm3J9JqEa7d9u"
		"nf8lZuisoHcspmbL3qddgOXuMQb15mu5Gl7lgohP27v0RGeJ9UM8Cv3i5C0OjBcRQffLMbcbP0wN1igY"
		"R7OOFh8MwWNV5mrGG3aWyz9MceBq+rVee4I3KWPYNX+Z0UuCiIBBDKVj10pj6XXaXmAS8WMLCeVirONy"
		"KPAtbCM8SK8DV7Yku2T4/rww3T9gsWRXOMlL8Kppw+UzrB1Jla54J+XMNwxa9KHgodUhzWbXK3OStxV0"
		"L27ny1xMP/CwjvwfUI4q/g==";
	struct ssh_cert c = cert_of(ssh_vectors[4].cert);
	AUTO_BUF struct buf sig = BUF_INIT;
	struct bytes format = bytes_str("ssh-rsa");
	struct err e;

	CHECK_OK(base64_decode(&sig, bytes_str(text), &e));
	CHECK_OK(ssh_verify(c.key, bytes_str("m"), format, buf_view(&sig), true, &e));
	CHECK_ERR(ssh_verify(c.key, bytes_str("n"), format, buf_view(&sig), true, &e), ERR_INVALID);
	CHECK_ERR(
		ssh_verify(c.key, bytes_str("m"), format, buf_view(&sig), false, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "SHA-1");
	CHECK_ERR(pubkey_verify_rsa_sha1(c.authority, bytes_str("m"), buf_view(&sig), &e),
		ERR_INVALID);
	ssh_cert_deinit(&c);
}

static void test_lines(void)
{
	AUTO(free)
	char *with = xasprintf(
		"cert-authority,from=\"a b,\\\"c\" %s  some comment \r\n", ssh_vectors[0].ca);
	AUTO_BUF struct buf a = blob_of(ssh_vectors[0].ca), b = blob_of(with), c = BUF_INIT;
	AUTO(pubkey_unref) struct pubkey *k = NULL;
	struct err e;

	CHECK(bytes_equal(buf_view(&a), buf_view(&b)));
	CHECK_OK(ssh_public_parse(buf_view(&a), &k, &e));
	CHECK_INT(pubkey_type(k), KEY_ED25519);
	CHECK_ERR(ssh_line_parse(bytes_str("# comment"), &c, &e), ERR_NOT_FOUND);
	CHECK_ERR(ssh_line_parse(bytes_str("  "), &c, &e), ERR_NOT_FOUND);
	CHECK_ERR(ssh_line_parse(bytes_str("bad authority"), &c, &e), ERR_INVALID);
	CHECK_ERR(ssh_line_parse(bytes_str("ssh-ed25519 !!!!"), &c, &e), ERR_INVALID);
	CHECK_ERR(ssh_line_parse(bytes_str("ssh-ed25519"), &c, &e), ERR_INVALID);
	CHECK_ERR(ssh_line_parse(bytes_str("ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIEAWPAsKJ/"
					   "qMYUIBeH7BLMRCE/bkUvMHX+7OZhANk45S"),
			  &c, &e),
		ERR_INVALID);
	CHECK_INT(c.len, 0);
}

static void test_not_a_cert(void)
{
	AUTO_BUF struct buf plain = blob_of(ssh_vectors[0].ca);
	AUTO_BUF struct buf cert = blob_of(ssh_vectors[0].cert);
	struct pubkey *k;
	struct ssh_cert c;
	struct err e;

	CHECK_ERR(ssh_cert_parse(buf_view(&plain), &c, &e), ERR_INVALID);
	CHECK_STR(e.msg, "pubkey in response is not a certificate");
	CHECK_ERR(ssh_public_parse(buf_view(&cert), &k, &e), ERR_UNIMPLEMENTED);
}

static void test_bad_private(void)
{
	AUTO(free) char *text = xstrdup(ssh_vectors[0].key);
	struct key *k;
	struct err e;

	CHECK_ERR(ssh_key_parse(bytes_str("nothing"), &k, &e), ERR_INVALID);
	for (size_t i = 40; i < strlen(text) - 40; i++) {
		char old = text[i];

		text[i] = old == 'A' ? 'B' : 'A';
		if (old != '\n' && ssh_key_parse(bytes_str(text), &k, &e) == 0)
			key_unref(k);
		text[i] = old;
	}
}

TEST_MAIN(TEST(test_certs), TEST(test_tampered), TEST(test_judgement), TEST(test_private),
	TEST(test_rsa_sha1), TEST(test_lines), TEST(test_not_a_cert), TEST(test_bad_private))

#include "lib/bundle.h"

#include <jansson.h>

#include "spire/api/types/bundle.pb-c.h"
#include "tests/test.h"

static int sign(void *arg, enum hash h, struct bytes digest, struct buf *ret, struct err *e)
{
	return key_sign(arg, h, digest, SIG_X509, ret, e);
}

static struct key *new_key(enum key_type t)
{
	struct key *k = NULL;
	struct err e = ERR_INIT;

	CHECK_OK(key_generate(t, &k, &e));
	return k;
}

static struct x509_cert *new_root(enum key_type t)
{
	AUTO(key_unref) struct key *k = new_key(t);
	const struct x509_signer s = { .type = t, .sign = sign, .arg = k };
	AUTO_BUF struct buf name = BUF_INIT, der = BUF_INIT;
	struct x509_cert *c = NULL;
	struct err e = ERR_INIT;
	uint8_t serial[16];

	x509_random_serial(serial);
	x509_name_der(&(struct x509_name){ .country = "US" }, &name);
	CHECK_OK(x509_build(&(struct x509_template){ .serial = bytes_of(serial, 16),
				    .subject_raw = buf_view(&name),
				    .issuer_raw = buf_view(&name),
				    .not_before = wall_of_sec(1700000000),
				    .not_after = wall_of_sec(1800000000),
				    .spki = pubkey_spki(key_public(k)),
				    .is_ca = true,
				    .key_usage = KU_CERT_SIGN },
		&s, &der, &e));
	CHECK_OK(x509_parse(buf_view(&der), &c, &e));
	return c;
}

static struct bundle *sample(void)
{
	struct bundle *b = bundle_new("td");
	AUTO(x509_unref) struct x509_cert *p256 = new_root(KEY_EC_P256);
	AUTO(x509_unref) struct x509_cert *rsa = new_root(KEY_RSA_2048);
	static const enum key_type types[] = { KEY_EC_P256, KEY_EC_P384, KEY_RSA_2048 };

	CHECK(bundle_add_root(b, p256, false));
	CHECK(bundle_add_root(b, rsa, true));
	CHECK(!bundle_add_root(b, p256, true));
	for (size_t i = 0; i < ARRAY_LEN(types); i++) {
		AUTO(key_unref) struct key *k = new_key(types[i]);
		char kid[] = { (char)('z' - (int)i), 0 };

		CHECK(bundle_add_jwt_key(b, kid, key_public(k), 100 + (int64_t)i, i == 1));
		CHECK(!bundle_add_jwt_key(b, kid, key_public(k), 1, false));
	}
	b->sequence = 7;
	b->refresh_hint = 300;
	return b;
}

static void test_values(void)
{
	AUTO(bundle_unref) struct bundle *b = NULL;
	AUTO(bundle_unref) struct bundle *d = NULL;
	AUTO_BUF struct buf der = BUF_INIT;
	struct x509_chain roots;

	crypto_init();
	b = sample();
	d = bundle_dup(b);
	CHECK(bundle_equal_content(b, d));
	d->sequence++;
	CHECK(bundle_equal_content(b, d));
	d->jwt_keys[0].tainted = true;
	CHECK(!bundle_equal_content(b, d));
	CHECK(bundle_find_jwt_key(b, "y")->expires_at == 101);
	CHECK(bundle_find_jwt_key(b, "none") == NULL);
	roots = bundle_roots(b);
	CHECK_INT(roots.n, 2);
	bundle_roots_der(b, &der);
	CHECK_INT(der.len, x509_der(roots.v[0]).n + x509_der(roots.v[1]).n);
	x509_chain_deinit(&roots);
	bundle_unref(bundle_ref(b));
}

static void test_json(void)
{
	AUTO(bundle_unref) struct bundle *b = NULL;
	AUTO(bundle_unref) struct bundle *back = NULL;
	AUTO_BUF struct buf text = BUF_INIT, again = BUF_INIT;
	struct err e = ERR_INIT;

	crypto_init();
	b = sample();
	bundle_to_json(b, &text);
	CHECK(strncmp(buf_cstr(&text),
		      "{\n    \"keys\": [\n        {\n            \"use\": \"x509-svid\",\n"
		      "            \"kty\": \"EC\",\n            \"crv\": \"P-256\",\n            "
		      "\"x\": \"",
		      120) == 0);
	CHECK_CONTAINS(
		buf_cstr(&text), "\"spiffe_sequence\": 7,\n    \"spiffe_refresh_hint\": 300\n}");
	CHECK_CONTAINS(buf_cstr(&text), "\"use\": \"jwt-svid\",\n            \"kty\": \"EC\",\n"
					"            \"kid\": \"z\",");
	CHECK_OK(bundle_from_json("td", buf_view(&text), &back, &e));
	CHECK_INT(back->n_roots, 2);
	CHECK_INT(back->n_jwt_keys, 3);
	CHECK_STR(back->jwt_keys[0].key_id, "z");
	CHECK_BYTES(pubkey_spki(back->jwt_keys[2].key), pubkey_spki(b->jwt_keys[2].key));
	bundle_to_json(back, &again);
	CHECK_STR(buf_cstr(&again), buf_cstr(&text));
}

static void test_jwks(void)
{
	AUTO(bundle_unref) struct bundle *b = NULL;
	AUTO(bundle_unref) struct bundle *empty = bundle_new("td");
	AUTO_BUF struct buf text = BUF_INIT, none = BUF_INIT;
	json_t *j;

	crypto_init();
	b = sample();
	bundle_to_jwks(b, &text);
	j = json_loads(buf_cstr(&text), 0, NULL);
	CHECK_INT(json_object_size(j), 1);
	CHECK_INT(json_array_size(json_object_get(j, "keys")), 3);
	CHECK(!strstr(buf_cstr(&text), "\"use\""));
	json_decref(j);
	bundle_to_jwks(empty, &none);
	CHECK_STR(buf_cstr(&none), "{\n    \"keys\": []\n}");
}

static void test_json_leniency(void)
{
	static const char *const good[] = {
		"{\"keys\":[]}",
		"{\"keys\":[{\"use\":\"wit-svid\",\"kid\":\"x\"},{\"kty\":\"EC\"}]}",
		"{\"keys\":[{\"use\":\"x509-svid\",\"kty\":\"EC\"}]}",
		"{\"keys\":[{\"use\":\"jwt-svid\",\"kid\":\"a\",\"kty\":\"OKP\",\"crv\":"
		"\"Ed25519\",\"x\":\"AA\"}]}",
		"{\"keys\":[{\"use\":\"jwt-svid\",\"kid\":\"a\",\"kty\":\"RSA\",\"n\":\"AQAB\","
		"\"e\":\"AQAB\"}]}",
		"{\"keys\":[],\"spiffe_sequence\":3,\"x\":{}}",
	};
	static const char *const bad[] = {
		"",
		"[]",
		"{}",
		"{\"keys\":{}}",
		"{\"keys\":[1]}",
		"{\"keys\":[],\"spiffe_sequence\":-1}",
		"{\"keys\":[],\"spiffe_refresh_hint\":\"5\"}",
		"{\"keys\":[{\"use\":\"jwt-svid\",\"kty\":\"EC\"}]}",
		"{\"keys\":[{\"use\":\"jwt-svid\",\"kid\":\"a\",\"kty\":\"EC\",\"crv\":\"P-256\","
		"\"x\":\"AA\",\"y\":\"AA\"}]}",
		"{\"keys\":[{\"use\":\"x509-svid\",\"x5c\":[\"AAAA\"]}]}",
		"{\"keys\":[{\"use\":\"x509-svid\",\"x5c\":[7]}]}",
		"{\"keys\":[{\"use\":\"x509-svid\",\"x5c\":\"AAAA\"}]}",
		"{\"keys\":[]} x",
	};
	struct err e = ERR_INIT;

	crypto_init();
	for (size_t i = 0; i < ARRAY_LEN(good); i++) {
		AUTO(bundle_unref) struct bundle *b = NULL;

		CHECK_OK(bundle_from_json("td", bytes_str(good[i]), &b, &e));
		CHECK_INT(b->n_roots + b->n_jwt_keys, 0);
	}
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		struct bundle *b = NULL;

		CHECK_ERR(bundle_from_json("td", bytes_str(bad[i]), &b, &e), ERR_INVALID);
		CHECK(b == NULL);
	}
}

static void test_jwks_all(void)
{
	AUTO(bundle_unref) struct bundle *b = NULL;
	AUTO_BUF struct buf text = BUF_INIT;
	json_t *doc, *keys, *first;

	crypto_init();
	b = sample();
	bundle_to_jwks_all(b, &text);
	doc = json_loadb((char *)text.p, text.len, 0, NULL);
	keys = json_object_get(doc, "keys");
	CHECK_INT(json_object_size(doc), 1);
	CHECK_INT(json_array_size(keys), b->n_roots + b->n_jwt_keys);
	first = json_array_get(keys, 0);
	CHECK(json_object_get(first, "x5c") && !json_object_get(first, "use"));
	CHECK(json_object_get(json_array_get(keys, b->n_roots), "kid"));
	json_decref(doc);
}

static void test_json_limits(void)
{
	AUTO_BUF struct buf text = BUF_INIT;
	struct bundle *b = NULL;
	struct err e = ERR_INIT;

	buf_str(&text, "{\"keys\":[{}");
	for (int i = 0; i < 1000; i++)
		buf_str(&text, ",{}");
	buf_str(&text, "]}");
	CHECK_ERR(bundle_from_json("td", buf_view(&text), &b, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "more than 1000 keys");
	while (text.len <= 1 << 20)
		buf_byte(&text, ' ');
	CHECK_ERR(bundle_from_json("td", buf_view(&text), &b, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "larger than");
	buf_reset(&text);
	for (int i = 0; i < 500000; i++)
		buf_byte(&text, '[');
	CHECK_ERR(bundle_from_json("td", buf_view(&text), &b, &e), ERR_INVALID);
}

static void test_pem(void)
{
	AUTO(bundle_unref) struct bundle *b = NULL;
	AUTO(bundle_unref) struct bundle *back = NULL;
	AUTO_BUF struct buf text = BUF_INIT;
	struct err e = ERR_INIT;

	crypto_init();
	b = sample();
	bundle_to_pem(b, &text);
	CHECK_OK(bundle_from_pem("td", buf_view(&text), &back, &e));
	CHECK_INT(back->n_roots, 2);
	CHECK_INT(back->n_jwt_keys, 0);
	CHECK_BYTES(x509_der(back->roots[1].cert), x509_der(b->roots[1].cert));
	bundle_unref(back);
	back = NULL;
	CHECK_ERR(bundle_from_pem("td", bytes_str("nothing"), &back, &e), ERR_INVALID);
}

static void test_proto(void)
{
	AUTO(bundle_unref) struct bundle *b = NULL;
	AUTO(bundle_unref) struct bundle *back = NULL;
	Spire__Api__Types__Bundle *m;
	struct err e = ERR_INIT;

	crypto_init();
	b = sample();
	m = bundle_to_proto(b);
	CHECK_OK(bundle_from_proto(m, &back, &e));
	CHECK(bundle_equal_content(b, back) && back->sequence == 7);
	bundle_unref(back);
	back = NULL;
	m->jwt_authorities[0]->key_id[0] = 0;
	CHECK_ERR(bundle_from_proto(m, &back, &e), ERR_INVALID);
	CHECK_STR(e.msg, "unable to parse JWT authority: missing key ID");
	m->x509_authorities[0]->asn1.data[0] ^= 1;
	CHECK_ERR(bundle_from_proto(m, &back, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "unable to parse X.509 authority: ");
	m->trust_domain[0] = '!';
	CHECK_ERR(bundle_from_proto(m, &back, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "invalid trust domain: ");
	spire__api__types__bundle__free_unpacked(m, NULL);
}

TEST_MAIN(TEST(test_values), TEST(test_json), TEST(test_jwks), TEST(test_jwks_all),
	TEST(test_json_leniency), TEST(test_json_limits), TEST(test_pem), TEST(test_proto))

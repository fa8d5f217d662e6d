#include "lib/jwt.h"

#include "tests/test.h"

static struct key *key;
static enum sig_scheme scheme = SIG_JWS;

static int sign(void *arg, enum hash h, struct bytes digest, struct buf *ret, struct err *e)
{
	return key_sign(arg, h, digest, scheme, ret, e);
}

static struct bundle *begin(enum key_type t)
{
	struct bundle *b = bundle_new("td");
	struct err e = ERR_INIT;

	crypto_init();
	CHECK_OK(key_generate(t, &key, &e));
	CHECK(bundle_add_jwt_key(b, "kid-1", key_public(key), 0, false));
	return b;
}

static void make(struct buf *ret, const struct jwt_claims *c, const char *kid)
{
	const struct x509_signer s = { .type = key_get_type(key), .sign = sign, .arg = key };
	struct err e = ERR_INIT;

	CHECK_OK(jwt_sign(c, kid, &s, ret, &e));
}

static const char *const two[] = { "b", "a \"quoted\"\n\xc3\xa9" };
static const struct jwt_claims claims = {
	.sub = "spiffe://td/w", .aud = two, .n_aud = 2, .exp = 1000, .iat = 900
};

static void round_trip(enum key_type t, const char *alg)
{
	AUTO(bundle_unref) struct bundle *b = begin(t);
	AUTO_BUF struct buf token = BUF_INIT;
	struct jwt_claims c = claims;
	struct err e = ERR_INIT;
	struct jwt j;

	c.iss = "https://issuer";
	c.jti = "x";
	make(&token, &c, "kid-1");
	CHECK_OK(jwt_parse(buf_view(&token), &j, &e));
	CHECK_STR(j.alg, alg);
	CHECK_STR(j.kid, "kid-1");
	CHECK_STR(j.sub.text, "spiffe://td/w");
	CHECK_INT(j.aud.n, 2);
	CHECK_STR(j.aud.v[1], two[1]);
	CHECK_INT(j.exp, 1000);
	CHECK_INT(j.iat, 900);
	CHECK_CONTAINS(j.claims_json, "\"iss\":\"https://issuer\",\"jti\":\"x\"");
	CHECK_OK(jwt_verify(&j, b, "b", wall_of_sec(950), &e));
	CHECK_OK(jwt_verify(&j, b, two[1], wall_of_sec(999), &e));
	CHECK_ERR(jwt_verify(&j, b, "c", wall_of_sec(2000), &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "expected audience in [\"c\"] (audience=[\"b\" \"");
	CHECK_ERR(jwt_verify(&j, b, "b", wall_of_sec(1000), &e), ERR_INVALID);
	CHECK_STR(e.msg, "token has expired");
	CHECK_OK(jwt_verify(&j, b, "b", wall_of_sec(890), &e));
	CHECK_ERR(jwt_verify(&j, b, "b", wall_of_sec(889), &e), ERR_INVALID);
	jwt_deinit(&j);
	key_unref(key);
}

static void test_algorithms(void)
{
	round_trip(KEY_EC_P256, "ES256");
	round_trip(KEY_EC_P384, "ES384");
	round_trip(KEY_RSA_2048, "RS256");
}

static void test_text(void)
{
	AUTO(bundle_unref) struct bundle *b = begin(KEY_EC_P256);
	AUTO_BUF struct buf token = BUF_INIT, plain = BUF_INIT;
	struct err e = ERR_INIT;
	const char *dot, *dot2;

	make(&token, &claims, "kid-1");
	dot = strchr(buf_cstr(&token), '.');
	dot2 = strchr(dot + 1, '.');
	CHECK_OK(base64url_decode(&plain, bytes_of(token.p, (size_t)(dot - buf_cstr(&token))), &e));
	CHECK_STR(buf_cstr(&plain), "{\"alg\":\"ES256\",\"kid\":\"kid-1\",\"typ\":\"JWT\"}");
	buf_reset(&plain);
	CHECK_OK(base64url_decode(&plain, bytes_of(dot + 1, (size_t)(dot2 - dot - 1)), &e));
	CHECK_STR(buf_cstr(&plain),
		"{\"aud\":[\"b\",\"a \\\"quoted\\\"\\u000a\xc3\xa9\"],\"exp\":1000,\"iat\":900,"
		"\"sub\":\"spiffe://td/w\"}");
	key_unref(key);
}

static void test_refused(void)
{
	AUTO(bundle_unref) struct bundle *b = begin(KEY_EC_P256);
	AUTO(bundle_unref) struct bundle *other = bundle_new("other");
	AUTO(bundle_unref) struct bundle *rsa = NULL;
	AUTO_BUF struct buf token = BUF_INIT, unknown = BUF_INIT;
	struct err e = ERR_INIT;
	struct jwt j;

	make(&token, &claims, "kid-1");
	make(&unknown, &claims, "kid-2");
	CHECK_OK(jwt_parse(buf_view(&unknown), &j, &e));
	CHECK_ERR(jwt_verify(&j, b, "b", wall_of_sec(950), &e), ERR_INVALID);
	CHECK_STR(e.msg, "public key \"kid-2\" not found in trust domain \"td\"");
	jwt_deinit(&j);
	CHECK_OK(jwt_parse(buf_view(&token), &j, &e));
	CHECK(bundle_add_jwt_key(other, "kid-1", key_public(key), 0, false));
	CHECK_ERR(jwt_verify(&j, other, "b", wall_of_sec(950), &e), ERR_INVALID);
	j.signature.p[5] ^= 1;
	CHECK_ERR(jwt_verify(&j, b, "b", wall_of_sec(950), &e), ERR_INVALID);
	CHECK_STR(e.msg, "token signature is not valid");
	j.signature.p[5] ^= 1;
	CHECK_OK(jwt_verify(&j, b, "b", wall_of_sec(950), &e));
	/* A key of another kind under the same kid. */
	key_unref(key);
	rsa = begin(KEY_RSA_2048);
	CHECK_ERR(jwt_verify(&j, rsa, "b", wall_of_sec(950), &e), ERR_INVALID);
	CHECK_STR(e.msg, "token algorithm ES256 does not fit its key");
	jwt_deinit(&j);
	key_unref(key);
}

/* Header and claims of the test's choice, with a signature that is none. */
static void raw(struct buf *ret, const char *header, const char *body)
{
	buf_reset(ret);
	base64url_encode(ret, bytes_str(header));
	buf_byte(ret, '.');
	base64url_encode(ret, bytes_str(body));
	buf_str(ret, ".AAAA");
}

#define OK_HEADER "{\"alg\":\"ES256\",\"kid\":\"k\"}"
#define OK_CLAIMS "{\"sub\":\"spiffe://td/a\",\"aud\":\"x\",\"exp\":5}"

static void test_shape(void)
{
	static const struct {
		const char *header, *claims, *msg; /* msg NULL: good */
	} cases[] = {
		{ OK_HEADER, OK_CLAIMS, NULL },
		{ "{\"alg\":\"PS512\",\"typ\":\"JOSE\"}", OK_CLAIMS, NULL },
		{ OK_HEADER, "{\"sub\":\"spiffe://td/a\",\"aud\":[\"x\"],\"exp\":5.9,\"nbf\":3}",
			NULL },
		{ "{\"alg\":\"none\"}", OK_CLAIMS, "unexpected signature algorithm \"none\"" },
		{ "{\"alg\":\"HS256\"}", OK_CLAIMS, "unexpected signature algorithm \"HS256\"" },
		{ "{\"alg\":\"EdDSA\"}", OK_CLAIMS, "expected [\"ES256\" \"ES384\"" },
		{ "{}", OK_CLAIMS, "unexpected signature algorithm \"\"" },
		{ "{\"alg\":\"ES256\",\"typ\":\"at+jwt\"}", OK_CLAIMS,
			"not equal to either JWT or JOSE" },
		{ "{\"alg\":\"ES256\",\"crit\":[\"b64\"],\"b64\":false}", OK_CLAIMS, "critical" },
		{ "[]", OK_CLAIMS, "unable to parse" },
		{ "{\"alg\":\"ES256\",\"alg\":\"ES256\"}", OK_CLAIMS, "unable to parse" },
		{ OK_HEADER, "{\"aud\":\"x\",\"exp\":5}", "token missing subject claim" },
		{ OK_HEADER, "{\"sub\":\"bob\",\"aud\":\"x\",\"exp\":5}",
			"token has an invalid subject claim: " },
		{ OK_HEADER, "{\"sub\":\"spiffe://td/a\\u0000\",\"aud\":\"x\",\"exp\":5}",
			"unable to parse" },
		{ OK_HEADER, "{\"sub\":\"spiffe://td/a\",\"exp\":5}", "token missing aud claim" },
		{ OK_HEADER, "{\"sub\":\"spiffe://td/a\",\"aud\":[],\"exp\":5}",
			"token missing aud claim" },
		{ OK_HEADER, "{\"sub\":\"spiffe://td/a\",\"aud\":[1],\"exp\":5}", "invalid aud" },
		{ OK_HEADER, "{\"sub\":\"spiffe://td/a\",\"aud\":\"x\"}",
			"token missing exp claim" },
		{ OK_HEADER, "{\"sub\":\"spiffe://td/a\",\"aud\":\"x\",\"exp\":\"5\"}",
			"invalid exp" },
		{ OK_HEADER, "{\"sub\":\"spiffe://td/a\",\"aud\":\"x\",\"exp\":1e300}",
			"invalid exp" },
		{ OK_HEADER, "{\"sub\":\"spiffe://td/a\",\"aud\":\"x\",\"exp\":-1}",
			"invalid exp" },
	};
	AUTO_BUF struct buf t = BUF_INIT;
	struct err e = ERR_INIT;
	struct jwt j;

	crypto_init();
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		raw(&t, cases[i].header, cases[i].claims);
		if (!cases[i].msg) {
			CHECK_OK(jwt_parse(buf_view(&t), &j, &e));
			CHECK_INT(j.exp, 5);
			jwt_deinit(&j);
			continue;
		}
		CHECK_ERR(jwt_parse(buf_view(&t), &j, &e), ERR_INVALID);
		CHECK_CONTAINS(e.msg, cases[i].msg);
	}
}

static void test_text_shape(void)
{
	static const char *const bad[] = { "", ".", "..", "a.b", "a.b.c", "e30.e30.e30.e30",
		"e30..e30", "e30.e30.", "e30=.e30.AAAA", "e3 0.e30.AAAA" };
	AUTO_BUF struct buf big = BUF_INIT;
	struct err e = ERR_INIT;
	struct jwt j;

	crypto_init();
	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		CHECK_ERR(jwt_parse(bytes_str(bad[i]), &j, &e), ERR_INVALID);
	while (big.len <= JWT_MAX)
		buf_str(&big, "AAAA");
	CHECK_ERR(jwt_parse(buf_view(&big), &j, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "larger than");
}

static void test_too_large(void)
{
	AUTO(bundle_unref) struct bundle *b = begin(KEY_EC_P256);
	AUTO_BUF struct buf big = BUF_INIT, token = BUF_INIT;
	const struct x509_signer s = { .type = KEY_EC_P256, .sign = sign, .arg = key };
	struct jwt_claims c = claims;
	struct err e = ERR_INIT;
	const char *aud[1];

	while (big.len < JWT_MAX)
		buf_str(&big, "AAAA");
	aud[0] = buf_cstr(&big);
	c.aud = aud;
	c.n_aud = 1;
	CHECK_ERR(jwt_sign(&c, "k", &s, &token, &e), ERR_EXHAUSTED);
	CHECK_INT(token.len, 0);
	key_unref(key);
}

TEST_MAIN(TEST(test_algorithms), TEST(test_text), TEST(test_refused), TEST(test_shape),
	TEST(test_text_shape), TEST(test_too_large))

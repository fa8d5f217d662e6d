#include "lib/jwt.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/mem.h"

enum { SKEW_S = 10 };

/* JWT-SVID 3.1: the algorithms that may be met. */
static const struct alg {
	const char *name;
	enum key_type curve; /* KEY_NONE: RSA */
	enum hash hash;
	enum sig_scheme scheme;
} algs[] = {
	{ "ES256", KEY_EC_P256, HASH_SHA256, SIG_JWS },
	{ "ES384", KEY_EC_P384, HASH_SHA384, SIG_JWS },
	{ "ES512", KEY_EC_P521, HASH_SHA512, SIG_JWS },
	{ "RS256", KEY_NONE, HASH_SHA256, SIG_JWS },
	{ "RS384", KEY_NONE, HASH_SHA384, SIG_JWS },
	{ "RS512", KEY_NONE, HASH_SHA512, SIG_JWS },
	{ "PS256", KEY_NONE, HASH_SHA256, SIG_RSA_PSS },
	{ "PS384", KEY_NONE, HASH_SHA384, SIG_RSA_PSS },
	{ "PS512", KEY_NONE, HASH_SHA512, SIG_RSA_PSS },
};

static const struct alg *alg_by_name(const char *name)
{
	for (size_t i = 0; i < ARRAY_LEN(algs); i++)
		if (strcmp(algs[i].name, name) == 0)
			return &algs[i];
	return NULL;
}

static bool is_rsa(enum key_type t)
{
	return t == KEY_RSA_2048 || t == KEY_RSA_4096 || t == KEY_RSA_OTHER;
}

/* The one that we sign with: ES256, ES384 or RS256. */
static const struct alg *alg_for_key(enum key_type t)
{
	if (is_rsa(t))
		return alg_by_name("RS256");
	return t == KEY_EC_P256 ? &algs[0] : t == KEY_EC_P384 ? &algs[1] : NULL;
}

/* ---- signing ---- */

/* RFC 8259 7. */
static void put_string(struct buf *b, const char *s)
{
	buf_byte(b, '"');
	for (; *s; s++) {
		uint8_t c = (uint8_t)*s;

		if (c == '"' || c == '\\')
			buf_printf(b, "\\%c", c);
		else if (c < 0x20)
			buf_printf(b, "\\u%04x", c);
		else
			buf_byte(b, c);
	}
	buf_byte(b, '"');
}

static void put_member(struct buf *b, const char *name, const char *value)
{
	buf_printf(b, ",\"%s\":", name);
	put_string(b, value);
}

static void put_claims(struct buf *b, const struct jwt_claims *c)
{
	buf_str(b, "{\"aud\":[");
	for (size_t i = 0; i < c->n_aud; i++) {
		buf_str(b, i ? "," : "");
		put_string(b, c->aud[i]);
	}
	buf_printf(b, "],\"exp\":%lld,\"iat\":%lld", (long long)c->exp, (long long)c->iat);
	if (c->iss)
		put_member(b, "iss", c->iss);
	if (c->jti)
		put_member(b, "jti", c->jti);
	put_member(b, "sub", c->sub);
	buf_byte(b, '}');
}

static void put_header(struct buf *b, const struct alg *a, const char *key_id)
{
	buf_printf(b, "{\"alg\":\"%s\"", a->name);
	put_member(b, "kid", key_id);
	buf_str(b, ",\"typ\":\"JWT\"}");
}

int jwt_sign(const struct jwt_claims *c, const char *key_id, const struct x509_signer *s,
	struct buf *ret, struct err *e)
{
	const struct alg *a = alg_for_key(s->type);
	AUTO_BUF struct buf header = BUF_INIT_MAX(JWT_MAX);
	AUTO_BUF struct buf claims = BUF_INIT_MAX(JWT_MAX);
	AUTO_BUF struct buf token = BUF_INIT_MAX(JWT_MAX);
	AUTO_BUF struct buf sig = BUF_INIT;
	uint8_t digest[HASH_MAX];
	int r;

	if (!a)
		return err_set(e, ERR_INVALID, "a key of type %s cannot sign a JWT",
			key_type_name(s->type));
	put_header(&header, a, key_id);
	put_claims(&claims, c);
	base64url_encode(&token, buf_view(&header));
	buf_byte(&token, '.');
	base64url_encode(&token, buf_view(&claims));
	hash_of(a->hash, buf_view(&token), digest);
	r = s->sign(s->arg, a->hash, bytes_of(digest, hash_size(a->hash)), &sig, e);
	if (r)
		return r;
	buf_byte(&token, '.');
	base64url_encode(&token, buf_view(&sig));
	if (header.failed || claims.failed || token.failed)
		return err_set(e, ERR_EXHAUSTED, "JWT would be larger than %d bytes", JWT_MAX);
	buf_bytes(ret, buf_view(&token));
	return 0;
}

/* ---- parsing ---- */

static int decode_json(
	struct bytes part, const char *what, json_t **ret, struct buf *text, struct err *e)
{
	json_t *j;
	int r = base64url_decode(text, part, e);

	if (r)
		return err_set(
			e, ERR_INVALID, "unable to parse JWT token: %s is not base64url", what);
	/* RFC 7519 4: duplicate claim names may be refused. */
	j = json_loadb((const char *)text->p, text->len, JSON_REJECT_DUPLICATES, NULL);
	if (!json_is_object(j)) {
		json_decref(j);
		return err_set(e, ERR_INVALID, "unable to parse JWT token: %s is not JSON", what);
	}
	*ret = j;
	return 0;
}

static int wrong_alg(const char *alg, struct err *e)
{
	AUTO_BUF struct buf all = BUF_INIT;

	for (size_t i = 0; i < ARRAY_LEN(algs); i++) {
		buf_str(&all, i ? " \"" : "\"");
		buf_str(&all, algs[i].name);
		buf_byte(&all, '"');
	}
	return err_set(e, ERR_INVALID,
		"unable to parse JWT token: unexpected signature algorithm \"%.32s\"; expected "
		"[%s]",
		alg, buf_cstr(&all));
}

static int read_header(const json_t *h, struct jwt *j, struct err *e)
{
	const char *alg = json_string_value(json_object_get(h, "alg"));
	const char *kid = json_string_value(json_object_get(h, "kid"));
	const json_t *typ = json_object_get(h, "typ");

	if (!alg || !alg_by_name(alg))
		return wrong_alg(alg ? alg : "", e);
	/* JWT-SVID 2.3: "If set, its value MUST be either JWT or JOSE." */
	if (typ && (!json_is_string(typ) || (strcmp(json_string_value(typ), "JWT") != 0 &&
						    strcmp(json_string_value(typ), "JOSE") != 0)))
		return err_set(e, ERR_INVALID, "token header type not equal to either JWT or JOSE");
	/* RFC 7515 4.1.11: extensions that must be understood; we know none. */
	if (json_object_get(h, "crit"))
		return err_set(e, ERR_INVALID, "token header has critical extensions");
	j->alg = xstrdup(alg);
	j->kid = xstrdup(kid ? kid : "");
	return 0;
}

/* NumericDate (RFC 7519 2): may have a fraction, which is cut. */
static int read_date(const json_t *c, const char *name, int64_t *ret, struct err *e)
{
	const json_t *v = json_object_get(c, name);
	double d = json_number_value(v);

	*ret = 0;
	if (!v)
		return 0;
	if (!json_is_number(v) || !isfinite(d) || d < 0 || d > 253402300799.0)
		return err_set(e, ERR_INVALID, "token has an invalid %s claim", name);
	*ret = json_is_integer(v) ? json_integer_value(v) : (int64_t)d;
	return 0;
}

static int read_audience(const json_t *c, struct jwt *j, struct err *e)
{
	const json_t *aud = json_object_get(c, "aud");

	if (json_is_string(aud)) {
		strings_add(&j->aud, json_string_value(aud));
		return 0;
	}
	if (json_array_size(aud) > JWT_MAX_AUDIENCES)
		return err_set(
			e, ERR_INVALID, "token has more than %d audiences", JWT_MAX_AUDIENCES);
	for (size_t i = 0; i < json_array_size(aud); i++) {
		const char *s = json_string_value(json_array_get(aud, i));

		if (!s)
			return err_set(e, ERR_INVALID, "token has an invalid aud claim");
		strings_add(&j->aud, s);
	}
	/* JWT-SVID 3.2: "The aud claim MUST be present". */
	return j->aud.n ? 0 : err_set(e, ERR_INVALID, "token missing aud claim");
}

static int read_subject(const json_t *c, struct jwt *j, struct err *e)
{
	const json_t *sub = json_object_get(c, "sub");
	int r;

	if (!json_string_length(sub))
		return err_set(e, ERR_INVALID, "token missing subject claim");
	r = spiffeid_parse(&j->sub, bytes_of(json_string_value(sub), json_string_length(sub)), e);
	return r ? err_wrap(e, "token has an invalid subject claim") : 0;
}

static int read_claims(const json_t *c, struct jwt *j, struct err *e)
{
	int r = read_subject(c, j, e);

	if (!r && !json_object_get(c, "exp"))
		r = err_set(e, ERR_INVALID, "token missing exp claim");
	if (!r)
		r = read_date(c, "exp", &j->exp, e);
	if (!r)
		r = read_date(c, "iat", &j->iat, e);
	if (!r)
		r = read_date(c, "nbf", &j->nbf, e);
	return r ? r : read_audience(c, j, e);
}

static int parse_header(struct bytes part, struct jwt *j, struct err *e)
{
	AUTO_BUF struct buf text = BUF_INIT;
	json_t *h = NULL;
	int r = decode_json(part, "the header", &h, &text, e);

	if (!r)
		r = read_header(h, j, e);
	json_decref(h);
	return r;
}

static int parse_claims(struct bytes part, struct jwt *j, struct err *e)
{
	AUTO_BUF struct buf text = BUF_INIT;
	json_t *c = NULL;
	int r = decode_json(part, "the payload", &c, &text, e);

	if (!r)
		r = read_claims(c, j, e);
	json_decref(c);
	if (!r)
		j->claims_json = buf_take_str(&text);
	return r;
}

/* RFC 7515 3.1: three parts between two dots. */
static bool split(struct bytes text, struct bytes part[static 3])
{
	int n = 0;

	part[0] = bytes_of(text.p, 0);
	for (size_t i = 0; i < text.n; i++) {
		if (text.p[i] != '.') {
			part[n].n++;
			continue;
		}
		if (++n > 2)
			return false;
		part[n] = bytes_of(text.p + i + 1, 0);
	}
	return n == 2;
}

int jwt_parse(struct bytes text, struct jwt *ret, struct err *e)
{
	struct jwt j = { .signature = BUF_INIT };
	struct bytes part[3];
	int r;

	if (text.n > JWT_MAX)
		return err_set(e, ERR_INVALID, "token is larger than %d bytes", JWT_MAX);
	if (!split(text, part))
		return err_set(e, ERR_INVALID,
			"unable to parse JWT token: compact JWS format must have three parts");
	r = parse_header(part[0], &j, e);
	if (!r)
		r = parse_claims(part[1], &j, e);
	if (!r && base64url_decode(&j.signature, part[2], e))
		r = err_set(e, ERR_INVALID,
			"unable to parse JWT token: the signature is not base64url");
	if (r) {
		jwt_deinit(&j);
		return r;
	}
	j.text = xstrndup((const char *)text.p, text.n);
	j.signing_input = bytes_of(j.text, part[0].n + 1 + part[1].n);
	*ret = j;
	return 0;
}

void jwt_deinit(struct jwt *j)
{
	free(j->alg);
	free(j->kid);
	spiffeid_deinit(&j->sub);
	strings_deinit(&j->aud);
	free(j->claims_json);
	buf_deinit(&j->signature);
	free(j->text);
	*j = (struct jwt){ .signature = BUF_INIT };
}

/* ---- verification ---- */

static int verify_signature(const struct jwt *j, const struct bundle *b, struct err *e)
{
	const struct alg *a = alg_by_name(j->alg);
	const struct bundle_jwt_key *k;
	uint8_t digest[HASH_MAX];
	bool fits;

	if (!j->kid[0])
		return err_set(e, ERR_INVALID, "token header missing key id");
	if (!spiffeid_member_of(&j->sub, b->trust_domain))
		return err_set(
			e, ERR_INVALID, "token is not of trust domain \"%s\"", b->trust_domain);
	k = bundle_find_jwt_key(b, j->kid);
	if (!k)
		return err_set(e, ERR_INVALID,
			"public key \"%.64s\" not found in trust domain \"%s\"", j->kid,
			b->trust_domain);
	/* RFC 7515 10.6 (algorithm protection): the algorithm must be one of the key's own. */
	fits = a->curve == KEY_NONE ? is_rsa(pubkey_type(k->key)) : pubkey_type(k->key) == a->curve;
	if (!fits)
		return err_set(e, ERR_INVALID, "token algorithm %s does not fit its key", a->name);
	hash_of(a->hash, j->signing_input, digest);
	if (pubkey_verify(k->key, a->hash, bytes_of(digest, hash_size(a->hash)), a->scheme,
		    buf_view(&j->signature), e))
		return err_set(e, ERR_INVALID, "token signature is not valid");
	return 0;
}

/* Clients match on SPIRE's text, which is this. */
static int wrong_audience(const struct jwt *j, const char *audience, struct err *e)
{
	AUTO_BUF struct buf all = BUF_INIT;

	for (size_t i = 0; i < j->aud.n; i++) {
		buf_str(&all, i ? " \"" : "\"");
		buf_str(&all, j->aud.v[i]);
		buf_byte(&all, '"');
	}
	return err_set(e, ERR_INVALID, "expected audience in [\"%.200s\"] (audience=[%.300s])",
		audience, buf_cstr(&all));
}

int jwt_verify(const struct jwt *j, const struct bundle *b, const char *audience, struct wall now,
	struct err *e)
{
	int r = verify_signature(j, b, e);

	if (r)
		return r;
	if (!strings_has(&j->aud, audience))
		return wrong_audience(j, audience, e);
	if (now.sec >= j->exp)
		return err_set(e, ERR_INVALID, "token has expired");
	if (j->nbf > now.sec + SKEW_S)
		return err_set(e, ERR_INVALID, "token is not valid yet");
	if (j->iat > now.sec + SKEW_S)
		return err_set(e, ERR_INVALID, "token was issued in the future");
	return 0;
}

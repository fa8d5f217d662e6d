/* The JSON form of the SPIFFE Trust Domain and Bundle standard, section 4: a JWK set (RFC 7517)
 * with two more members. */
#include "lib/bundle.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "lib/mem.h"

enum { BUNDLE_JSON_MAX = 1 << 20, BUNDLE_KEYS_MAX = 1000 };

#define USE_X509 "x509-svid"
#define USE_JWT "jwt-svid"

/* ---- writing ---- */

static json_t *base64url_string(struct bytes v)
{
	AUTO_BUF struct buf b = BUF_INIT;

	base64url_encode(&b, v);
	return json_string(buf_cstr(&b));
}

static const char *curve_name(enum key_type t)
{
	switch (t) {
	case KEY_EC_P256:
		return "P-256";
	case KEY_EC_P384:
		return "P-384";
	case KEY_EC_P521:
		return "P-521";
	default:
		return NULL;
	}
}

static bool is_rsa(enum key_type t)
{
	return t == KEY_RSA_2048 || t == KEY_RSA_4096 || t == KEY_RSA_OTHER;
}

/* RFC 7518 6.2, 6.3. Members stand in the order that Go's JOSE library writes. False for a kind of
 * key that a JWK of these standards cannot hold. */
static bool put_key(json_t *jwk, const struct pubkey *k, const char *kid)
{
	const char *curve = curve_name(pubkey_type(k));
	AUTO_BUF struct buf a = BUF_INIT;
	AUTO_BUF struct buf b = BUF_INIT;

	if (!curve && !is_rsa(pubkey_type(k)))
		return false;
	json_object_set_new(jwk, "kty", json_string(curve ? "EC" : "RSA"));
	if (kid)
		json_object_set_new(jwk, "kid", json_string(kid));
	if (curve) {
		pubkey_ec_xy(k, &a, &b);
		json_object_set_new(jwk, "crv", json_string(curve));
	} else {
		pubkey_rsa_ne(k, &a, &b);
	}
	json_object_set_new(jwk, curve ? "x" : "n", base64url_string(buf_view(&a)));
	json_object_set_new(jwk, curve ? "y" : "e", base64url_string(buf_view(&b)));
	return true;
}

static json_t *root_jwk(const struct x509_cert *c, bool with_use)
{
	AUTO_BUF struct buf b64 = BUF_INIT;
	json_t *jwk = json_object();
	const struct pubkey *k = x509_pubkey(c);

	if (with_use)
		json_object_set_new(jwk, "use", json_string(USE_X509));
	if (k)
		(void)put_key(jwk, k, NULL);
	base64_encode(&b64, x509_der(c));
	json_object_set_new(jwk, "x5c", json_pack("[s]", buf_cstr(&b64)));
	return jwk;
}

static void append_jwt_keys(json_t *keys, const struct bundle *b, bool with_use)
{
	for (size_t i = 0; i < b->n_jwt_keys; i++) {
		json_t *jwk = json_object();

		if (with_use)
			json_object_set_new(jwk, "use", json_string(USE_JWT));
		if (put_key(jwk, b->jwt_keys[i].key, b->jwt_keys[i].key_id))
			json_array_append_new(keys, jwk);
		else
			json_decref(jwk);
	}
}

static int append_text(const char *s, size_t n, void *arg)
{
	return buf_append(arg, s, n) ? 0 : -1;
}

static void dump(json_t *doc, struct buf *ret)
{
	json_dump_callback(doc, append_text, ret, JSON_INDENT(4));
	json_decref(doc);
}

void bundle_to_json(const struct bundle *b, struct buf *ret)
{
	json_t *doc = json_object();
	json_t *keys = json_array();

	for (size_t i = 0; i < b->n_roots; i++)
		json_array_append_new(keys, root_jwk(b->roots[i].cert, true));
	append_jwt_keys(keys, b, true);
	json_object_set_new(doc, "keys", keys);
	if (b->sequence)
		json_object_set_new(doc, "spiffe_sequence", json_integer((json_int_t)b->sequence));
	if (b->refresh_hint)
		json_object_set_new(doc, "spiffe_refresh_hint", json_integer(b->refresh_hint));
	dump(doc, ret);
}

void bundle_to_jwks(const struct bundle *b, struct buf *ret)
{
	json_t *doc = json_object();
	json_t *keys = json_array();

	append_jwt_keys(keys, b, false);
	json_object_set_new(doc, "keys", keys);
	dump(doc, ret);
}

void bundle_to_jwks_all(const struct bundle *b, struct buf *ret)
{
	json_t *doc = json_object();
	json_t *keys = json_array();

	for (size_t i = 0; i < b->n_roots; i++)
		json_array_append_new(keys, root_jwk(b->roots[i].cert, false));
	append_jwt_keys(keys, b, false);
	json_object_set_new(doc, "keys", keys);
	dump(doc, ret);
}

/* ---- reading ---- */

static const char *member(const json_t *o, const char *name)
{
	const char *s = json_string_value(json_object_get(o, name));

	return s ? s : "";
}

static int decode_member(const json_t *jwk, const char *name, struct buf *ret, struct err *e)
{
	const char *s = member(jwk, name);
	int r;

	if (!*s)
		return err_set(e, ERR_INVALID, "%s is missing", name);
	r = base64url_decode(ret, bytes_str(s), e);
	return r ? err_wrap(e, "%s", name) : 0;
}

static int read_ec(const json_t *jwk, struct pubkey **ret, struct err *e)
{
	static const enum key_type curves[] = { KEY_EC_P256, KEY_EC_P384, KEY_EC_P521 };
	AUTO_BUF struct buf x = BUF_INIT;
	AUTO_BUF struct buf y = BUF_INIT;
	const char *crv = member(jwk, "crv");
	int r = decode_member(jwk, "x", &x, e);

	if (!r)
		r = decode_member(jwk, "y", &y, e);
	if (r)
		return r;
	for (size_t i = 0; i < ARRAY_LEN(curves); i++)
		if (strcmp(crv, curve_name(curves[i])) == 0)
			return pubkey_from_ec(curves[i], buf_view(&x), buf_view(&y), ret, e);
	return err_set(e, ERR_UNIMPLEMENTED, "unknown curve \"%.32s\"", crv);
}

static int read_rsa(const json_t *jwk, struct pubkey **ret, struct err *e)
{
	AUTO_BUF struct buf n = BUF_INIT;
	AUTO_BUF struct buf exp = BUF_INIT;
	int r = decode_member(jwk, "n", &n, e);

	if (!r)
		r = decode_member(jwk, "e", &exp, e);
	return r ? r : pubkey_from_rsa(buf_view(&n), buf_view(&exp), ret, e);
}

/* ERR_UNIMPLEMENTED: a kind of key that the JWT-SVID standard has no algorithm for. */
static int read_key(const json_t *jwk, struct pubkey **ret, struct err *e)
{
	const char *kty = member(jwk, "kty");

	if (strcmp(kty, "EC") == 0)
		return read_ec(jwk, ret, e);
	if (strcmp(kty, "RSA") == 0)
		return read_rsa(jwk, ret, e);
	return err_set(e, ERR_UNIMPLEMENTED, "unknown key type \"%.32s\"", kty);
}

/* X509-SVID 6.1: the first value of x5c is the authority; an entry without x5c is ignored. */
static int read_x509(struct bundle *b, const json_t *jwk, struct err *e)
{
	const json_t *x5c = json_object_get(jwk, "x5c");
	AUTO(x509_unref) struct x509_cert *c = NULL;
	AUTO_BUF struct buf der = BUF_INIT;
	const char *first;
	int r;

	if (!x5c || json_array_size(x5c) == 0)
		return json_is_array(x5c) || !x5c ? 0
						  : err_set(e, ERR_INVALID, "x5c is not a list");
	first = json_string_value(json_array_get(x5c, 0));
	if (!first)
		return err_set(e, ERR_INVALID, "x5c holds no text");
	r = base64_decode(&der, bytes_str(first), e);
	if (!r)
		r = x509_parse(buf_view(&der), &c, e);
	if (r)
		return err_wrap(e, "x5c");
	(void)bundle_add_root(b, c, false);
	return 0;
}

static int read_jwt(struct bundle *b, const json_t *jwk, struct err *e)
{
	AUTO(pubkey_unref) struct pubkey *k = NULL;
	const char *kid = member(jwk, "kid");
	int r;

	if (!*kid)
		return err_set(e, ERR_INVALID, "missing key ID");
	r = read_key(jwk, &k, e);
	if (r == ERR_UNIMPLEMENTED)
		return 0;
	if (!r)
		(void)bundle_add_jwt_key(b, kid, k, 0, false);
	return r;
}

/* SPIFFE Trust Domain and Bundle 4.2.2: entries whose "use" is absent or unknown are ignored. */
static int read_entry(struct bundle *b, const json_t *jwk, struct err *e)
{
	const char *use = member(jwk, "use");

	if (!json_is_object(jwk))
		return err_set(e, ERR_INVALID, "not an object");
	if (strcmp(use, USE_X509) == 0)
		return read_x509(b, jwk, e);
	if (strcmp(use, USE_JWT) == 0)
		return read_jwt(b, jwk, e);
	return 0;
}

static int read_number(const json_t *doc, const char *name, int64_t *ret, struct err *e)
{
	const json_t *v = json_object_get(doc, name);

	*ret = 0;
	if (!v || json_is_null(v))
		return 0;
	if (!json_is_integer(v) || json_integer_value(v) < 0)
		return err_set(e, ERR_INVALID, "%s is not a number of zero or more", name);
	*ret = json_integer_value(v);
	return 0;
}

static int read_doc(struct bundle *b, const json_t *doc, struct err *e)
{
	const json_t *keys = json_object_get(doc, "keys");
	int64_t sequence = 0;
	int r;

	/* RFC 7517 5.1: the "keys" member must be there. */
	if (!json_is_array(keys))
		return err_set(e, ERR_INVALID, "bundle has no list of keys");
	if (json_array_size(keys) > BUNDLE_KEYS_MAX)
		return err_set(e, ERR_INVALID, "bundle has more than %d keys", BUNDLE_KEYS_MAX);
	for (size_t i = 0; i < json_array_size(keys); i++) {
		r = read_entry(b, json_array_get(keys, i), e);
		if (r)
			return err_wrap(e, "key %zu", i);
	}
	r = read_number(doc, "spiffe_sequence", &sequence, e);
	b->sequence = (uint64_t)sequence;
	return r ? r : read_number(doc, "spiffe_refresh_hint", &b->refresh_hint, e);
}

int bundle_from_json(
	const char *trust_domain, struct bytes json, struct bundle **ret, struct err *e)
{
	AUTO(bundle_unref) struct bundle *b = bundle_new(trust_domain);
	json_error_t why;
	json_t *doc;
	int r;

	if (json.n > BUNDLE_JSON_MAX)
		return err_set(e, ERR_INVALID, "bundle is larger than %d bytes", BUNDLE_JSON_MAX);
	doc = json_loadb((const char *)json.p, json.n, JSON_REJECT_DUPLICATES, &why);
	if (!doc)
		return err_set(e, ERR_INVALID, "failed to decode bundle: %s (line %d)", why.text,
			why.line);
	r = read_doc(b, doc, e);
	json_decref(doc);
	if (r)
		return r;
	*ret = b;
	b = NULL;
	return 0;
}

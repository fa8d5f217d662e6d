#include "lib/ssh.h"

#include <stdlib.h>
#include <string.h>

#include "lib/der.h"
#include "lib/ssh_internal.h"

#define CERT_SUFFIX "-cert-v01@openssh.com"

static const uint8_t oid_p256[] = { 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07 };
static const uint8_t oid_p384[] = { 0x2b, 0x81, 0x04, 0x00, 0x22 };
static const uint8_t oid_p521[] = { 0x2b, 0x81, 0x04, 0x00, 0x23 };

/* RFC 5656 6.2.1 says which hash goes with a curve. */
static const struct ssh_type types[] = {
	{ "ssh-ed25519", KEY_ED25519, NULL, { NULL, 0 }, 32, HASH_SHA512 },
	{ "ecdsa-sha2-nistp256", KEY_EC_P256, "nistp256", { oid_p256, sizeof(oid_p256) }, 32,
		HASH_SHA256 },
	{ "ecdsa-sha2-nistp384", KEY_EC_P384, "nistp384", { oid_p384, sizeof(oid_p384) }, 48,
		HASH_SHA384 },
	{ "ecdsa-sha2-nistp521", KEY_EC_P521, "nistp521", { oid_p521, sizeof(oid_p521) }, 66,
		HASH_SHA512 },
	{ "ssh-rsa", KEY_RSA_OTHER, NULL, { NULL, 0 }, 0, HASH_SHA512 },
};

bool ssh_bytes_are(struct bytes v, const char *text)
{
	return bytes_equal(v, bytes_str(text));
}

const struct ssh_type *ssh_type_of(struct bytes name)
{
	for (size_t i = 0; i < ARRAY_LEN(types); i++)
		if (ssh_bytes_are(name, types[i].name))
			return &types[i];
	return NULL;
}

const struct ssh_type *ssh_type_of_key(enum key_type t)
{
	for (size_t i = 0; i < ARRAY_LEN(types); i++)
		if (types[i].key == t)
			return &types[i];
	return t == KEY_RSA_2048 || t == KEY_RSA_4096 ? &types[ARRAY_LEN(types) - 1] : NULL;
}

/* ---- the wire form ---- */

bool ssh_get_u32(struct bytes *in, uint32_t *ret)
{
	if (in->n < 4)
		return false;
	*ret = (uint32_t)in->p[0] << 24 | (uint32_t)in->p[1] << 16 | (uint32_t)in->p[2] << 8 |
	       in->p[3];
	*in = bytes_of(in->p + 4, in->n - 4);
	return true;
}

bool ssh_get_u64(struct bytes *in, uint64_t *ret)
{
	uint32_t hi, lo;

	if (!ssh_get_u32(in, &hi) || !ssh_get_u32(in, &lo))
		return false;
	*ret = (uint64_t)hi << 32 | lo;
	return true;
}

bool ssh_get_string(struct bytes *in, struct bytes *ret)
{
	struct bytes at = *in;
	uint32_t n;

	if (!ssh_get_u32(&at, &n) || n > at.n)
		return false;
	*ret = bytes_of(at.p, n);
	*in = bytes_of(at.p + n, at.n - n);
	return true;
}

/* RFC 4251 section 5: "Unnecessary leading bytes with the value 0 or 255 MUST NOT be included." */
bool ssh_get_mpint(struct bytes *in, struct bytes *ret)
{
	struct bytes v;

	if (!ssh_get_string(in, &v) || (v.n && v.p[0] & 0x80))
		return false;
	if (v.n && v.p[0] == 0) {
		if (v.n == 1 || !(v.p[1] & 0x80))
			return false;
		v = bytes_of(v.p + 1, v.n - 1);
	}
	*ret = v;
	return true;
}

static void put_u32(struct buf *b, size_t v)
{
	uint8_t out[4] = { (uint8_t)(v >> 24), (uint8_t)(v >> 16), (uint8_t)(v >> 8), (uint8_t)v };

	buf_append(b, out, sizeof(out));
}

void ssh_put_mpint(struct buf *b, struct bytes v)
{
	bool pad;

	while (v.n && v.p[0] == 0)
		v = bytes_of(v.p + 1, v.n - 1);
	pad = v.n && v.p[0] & 0x80;
	put_u32(b, v.n + pad);
	if (pad)
		buf_byte(b, 0);
	buf_bytes(b, v);
}

/* ---- public keys ---- */

static int malformed(struct err *e)
{
	return err_set(e, ERR_INVALID, "malformed SSH public key");
}

static int parse_ed25519(struct bytes *in, struct pubkey **ret, struct err *e)
{
	/* RFC 8410 section 4: the head of an Ed25519 key's SubjectPublicKeyInfo */
	uint8_t spki[12 + 32] = { 0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21,
		0x00 };
	struct bytes v;

	if (!ssh_get_string(in, &v) || v.n != 32)
		return malformed(e);
	memcpy(spki + 12, v.p, v.n);
	return pubkey_from_spki(bytes_of(spki, sizeof(spki)), ret, e);
}

static int parse_rsa(struct bytes *in, struct pubkey **ret, struct err *e)
{
	struct bytes exponent, n;

	if (!ssh_get_mpint(in, &exponent) || !ssh_get_mpint(in, &n) || !exponent.n || !n.n)
		return malformed(e);
	return pubkey_from_rsa(n, exponent, ret, e);
}

static int parse_ecdsa(
	const struct ssh_type *t, struct bytes *in, struct pubkey **ret, struct err *e)
{
	struct bytes curve, point;

	/* RFC 5656 3.1: the curve is named twice. */
	if (!ssh_get_string(in, &curve) || !ssh_bytes_are(curve, t->curve) ||
		!ssh_get_string(in, &point) || point.n != 1 + 2 * t->size || point.p[0] != 4)
		return malformed(e);
	return pubkey_from_ec(t->key, bytes_of(point.p + 1, t->size),
		bytes_of(point.p + 1 + t->size, t->size), ret, e);
}

int ssh_fields_parse(const struct ssh_type *t, struct bytes *in, struct pubkey **ret, struct err *e)
{
	if (t->key == KEY_ED25519)
		return parse_ed25519(in, ret, e);
	return t->curve ? parse_ecdsa(t, in, ret, e) : parse_rsa(in, ret, e);
}

static int unknown_type(struct bytes name, struct err *e)
{
	return err_set(e, ERR_UNIMPLEMENTED, "SSH key type \"%.*s\" is not supported",
		(int)(name.n < 64 ? name.n : 64), (const char *)name.p);
}

int ssh_public_parse(struct bytes blob, struct pubkey **ret, struct err *e)
{
	const struct ssh_type *t;
	struct pubkey *k = NULL;
	struct bytes name;
	int r;

	if (blob.n > SSH_BLOB_MAX || !ssh_get_string(&blob, &name))
		return malformed(e);
	t = ssh_type_of(name);
	if (!t)
		return unknown_type(name, e);
	r = ssh_fields_parse(t, &blob, &k, e);
	if (r)
		return r;
	if (blob.n) {
		pubkey_unref(k);
		return err_set(e, ERR_INVALID, "trailing junk in SSH public key");
	}
	*ret = k;
	return 0;
}

/* ---- lines of files ---- */

static bool is_blank(uint8_t c)
{
	return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static struct bytes trim(struct bytes v)
{
	while (v.n && is_blank(v.p[0]))
		v = bytes_of(v.p + 1, v.n - 1);
	while (v.n && is_blank(v.p[v.n - 1]))
		v.n--;
	return v;
}

/* Up to white space that no double quotes surround (sshd(8), AUTHORIZED_KEYS FILE FORMAT). */
static struct bytes take_word(struct bytes *in)
{
	bool quoted = false;
	struct bytes word;
	size_t i = 0;

	for (; i < in->n && (quoted || !is_blank(in->p[i])); i++) {
		if (in->p[i] == '\\' && i + 1 < in->n && in->p[i + 1] == '"')
			i++;
		else if (in->p[i] == '"')
			quoted = !quoted;
	}
	word = bytes_of(in->p, i);
	*in = trim(bytes_of(in->p + i, in->n - i));
	return word;
}

/* A certificate's type without its suffix, else unchanged. */
static struct bytes plain_name(struct bytes name)
{
	size_t n = strlen(CERT_SUFFIX);

	if (name.n > n && memcmp(name.p + name.n - n, CERT_SUFFIX, n) == 0)
		name.n -= n;
	return name;
}

int ssh_line_parse(struct bytes line, struct buf *ret, struct err *e)
{
	AUTO_BUF struct buf blob = BUF_INIT_MAX(SSH_BLOB_MAX);
	struct bytes word, in, inner;

	line = trim(line);
	if (line.n > SSH_LINE_MAX)
		return err_set(e, ERR_INVALID, "the line is too long");
	if (!line.n || line.p[0] == '#')
		return err_set(e, ERR_NOT_FOUND, "no key found");
	word = take_word(&line);
	if (!ssh_type_of(plain_name(word)))
		word = take_word(&line); /* the first one was options */
	if (!ssh_type_of(plain_name(word)))
		return err_set(e, ERR_INVALID, "no key of a known type found");
	if (base64_decode(&blob, take_word(&line), e))
		return err_wrap(e, "malformed SSH public key");
	in = buf_view(&blob);
	if (!ssh_get_string(&in, &inner) || !bytes_equal(inner, word))
		return err_set(e, ERR_INVALID, "the line's key type is not that of its key");
	buf_bytes(ret, buf_view(&blob));
	return 0;
}

/* ---- certificates ---- */

static bool parse_principals(struct bytes in, struct strings *ret)
{
	struct bytes v;

	while (in.n) {
		AUTO(free) char *s = NULL;

		if (!ssh_get_string(&in, &v) || ret->n == SSH_PRINCIPALS_MAX || memchr(v.p, 0, v.n))
			return false;
		s = xstrndup((const char *)v.p, v.n);
		strings_add(ret, s);
	}
	return true;
}

/* Pairs of name and data, PROTOCOL.certkeys: "Names are ordered by sequence ... and must be
 * unique".
 */
static bool parse_options(struct bytes in, struct strings *ret)
{
	struct bytes name, data, last = { NULL, 0 };

	while (in.n) {
		AUTO(free) char *s = NULL;

		if (!ssh_get_string(&in, &name) || !ssh_get_string(&in, &data) ||
			(last.p && bytes_compare(last, name) >= 0))
			return false;
		last = name;
		s = xstrndup((const char *)name.p, name.n);
		if (ret)
			strings_add(ret, s);
	}
	return true;
}

static int parse_body(struct ssh_cert *c, const struct ssh_type *t, struct bytes *in, struct err *e)
{
	struct bytes nonce, id, principals, critical, extensions, reserved;
	int r;

	if (!ssh_get_string(in, &nonce))
		return err_set(e, ERR_INVALID, "malformed SSH certificate");
	r = ssh_fields_parse(t, in, &c->key, e);
	if (r)
		return r;
	if (!ssh_get_u64(in, &c->serial) || !ssh_get_u32(in, &c->type) ||
		!ssh_get_string(in, &id) || !ssh_get_string(in, &principals) ||
		!ssh_get_u64(in, &c->valid_after) || !ssh_get_u64(in, &c->valid_before) ||
		!ssh_get_string(in, &critical) || !ssh_get_string(in, &extensions) ||
		!ssh_get_string(in, &reserved) || !ssh_get_string(in, &c->authority_blob) ||
		!parse_principals(principals, &c->principals) ||
		!parse_options(critical, &c->critical) || !parse_options(extensions, NULL))
		return err_set(e, ERR_INVALID, "malformed SSH certificate");
	c->key_id = xstrndup((const char *)id.p, id.n);
	return 0;
}

static int parse_cert(struct ssh_cert *c, struct err *e)
{
	struct bytes in = buf_view(&c->blob), name;
	const struct ssh_type *t;
	int r;

	if (!ssh_get_string(&in, &name))
		return err_set(e, ERR_INVALID, "malformed SSH certificate");
	if (ssh_type_of(name))
		return err_set(e, ERR_INVALID, "pubkey in response is not a certificate");
	t = ssh_type_of(plain_name(name));
	if (!t)
		return unknown_type(name, e);
	r = parse_body(c, t, &in, e);
	if (r)
		return r;
	c->signed_part = bytes_of(c->blob.p, (size_t)(in.p - c->blob.p));
	if (!ssh_get_string(&in, &c->signature) || in.n)
		return err_set(e, ERR_INVALID, "malformed SSH certificate");
	/* PROTOCOL.certkeys: "certificates signed by certificates ... are not supported". */
	r = ssh_public_parse(c->authority_blob, &c->authority, e);
	return r ? err_wrap(e, "the certificate's signature key") : 0;
}

int ssh_cert_parse(struct bytes blob, struct ssh_cert *ret, struct err *e)
{
	struct ssh_cert c = { .blob = BUF_INIT_MAX(SSH_BLOB_MAX) };
	int r;

	if (!buf_bytes(&c.blob, blob))
		return err_set(e, ERR_INVALID, "the SSH certificate is too large");
	r = parse_cert(&c, e);
	if (r)
		ssh_cert_deinit(&c);
	else
		*ret = c;
	return r;
}

void ssh_cert_deinit(struct ssh_cert *c)
{
	buf_deinit(&c->blob);
	pubkey_unref(c->key);
	pubkey_unref(c->authority);
	strings_deinit(&c->principals);
	strings_deinit(&c->critical);
	free(c->key_id);
	*c = (struct ssh_cert){ 0 };
}

int ssh_cert_check_host(const struct ssh_cert *c, struct wall now, struct err *e)
{
	struct bytes in = c->signature, format, sig;
	uint64_t t = now.sec < 0 ? 0 : (uint64_t)now.sec;

	if (c->type != SSH_CERT_HOST)
		return err_set(e, ERR_DENIED, "certificate presented as a host key has type %u",
			(unsigned)c->type);
	/* None is defined for hosts, and "implementations MUST refuse" unknown ones. */
	if (c->critical.n)
		return err_set(e, ERR_DENIED,
			"unsupported critical option \"%.64s\" in certificate", c->critical.v[0]);
	if (t < c->valid_after)
		return err_set(e, ERR_DENIED, "cert is not yet valid");
	if (t >= c->valid_before)
		return err_set(e, ERR_DENIED, "cert has expired");
	if (!ssh_get_string(&in, &format) || !ssh_get_string(&in, &sig) || in.n)
		return err_set(e, ERR_DENIED, "certificate signature is malformed");
	if (ssh_verify(c->authority, c->signed_part, format, sig, false, e)) {
		e->code = ERR_DENIED;
		return err_wrap(e, "certificate signature does not verify");
	}
	return 0;
}

#include "agent/sealed.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define SEALED_MAGIC "assay sealed 1\n"
#define SEALED_INFO "assay agent sealed store"

enum { AGENT_DATA_MAX = 16 << 20, SEALED_SALT = 32, SEALED_KEY = 32 };

/* ---- agent-data.json ---- */

static inline void auto_json_decref(json_t **p)
{
	json_decref(*p);
}

void agent_data_deinit(struct agent_data *d)
{
	x509_chain_deinit(&d->svid);
	x509_chain_deinit(&d->bundle);
	d->reattestable = false;
}

static char *data_path(const char *dir)
{
	return xasprintf("%s/agent-data.json", dir);
}

/* SPIRE writes Go's [][]byte of PEM blocks: each one base64 over PEM. */
static int chain_from_json(const json_t *list, struct x509_chain *ret, struct err *e)
{
	size_t i;
	json_t *v;
	int r = 0;

	if (!list || json_is_null(list))
		return 0;
	if (!json_is_array(list) || json_array_size(list) > X509_MAX_ROOTS)
		return err_set(e, ERR_DATA_LOSS, "a list of certificates was expected");
	json_array_foreach(list, i, v)
	{
		AUTO_BUF struct buf pem = BUF_INIT_MAX(2 * X509_MAX_DER);
		struct x509_chain one = { 0 };

		if (!json_is_string(v))
			return err_set(e, ERR_DATA_LOSS, "a certificate is not a string");
		r = base64_decode(&pem, bytes_str(json_string_value(v)), e);
		if (!r)
			r = x509_chain_parse_pem(&one, buf_view(&pem), 1, e);
		if (r)
			return err_wrap(e, "certificate %zu", i);
		x509_chain_add(ret, one.v[0]);
		x509_chain_deinit(&one);
	}
	return 0;
}

static int data_parse(struct bytes text, struct agent_data *ret, struct err *e)
{
	json_error_t je;
	AUTO(json_decref)
	json_t *root = json_loadb((const char *)text.p, text.n, JSON_REJECT_DUPLICATES, &je);
	int r;

	if (!json_is_object(root))
		return err_set(e, ERR_DATA_LOSS, "not JSON: line %d: %s", je.line, je.text);
	r = chain_from_json(json_object_get(root, "svid"), &ret->svid, e);
	if (r)
		return err_wrap(e, "svid");
	r = chain_from_json(json_object_get(root, "bundle"), &ret->bundle, e);
	if (r)
		return err_wrap(e, "bundle");
	ret->reattestable = json_is_true(json_object_get(root, "reattestable"));
	return 0;
}

int agent_data_load(const char *dir, struct agent_data *ret, struct err *e)
{
	AUTO(free) char *path = data_path(dir);
	AUTO_BUF struct buf text = BUF_INIT_MAX(AGENT_DATA_MAX);
	struct agent_data d = { 0 };
	int r = buf_read_file(&text, path, e);

	if (r == ERR_NOT_FOUND) {
		*ret = d;
		return 0;
	}
	if (r)
		return r;
	r = data_parse(buf_view(&text), &d, e);
	if (r) {
		agent_data_deinit(&d);
		err_wrap(e,
			"%s is damaged (nothing was changed; restore it, or remove it to "
			"attest anew)",
			path);
		e->code = ERR_DATA_LOSS;
		return ERR_DATA_LOSS;
	}
	*ret = d;
	return 0;
}

static void chain_to_json(struct buf *out, const char *name, const struct x509_chain *ch)
{
	buf_printf(out, "\"%s\":", name);
	if (ch->n == 0) {
		buf_str(out, "null");
		return;
	}
	for (size_t i = 0; i < ch->n; i++) {
		AUTO_BUF struct buf pem = BUF_INIT;

		pem_write(&pem, "CERTIFICATE", x509_der(ch->v[i]));
		buf_str(out, i ? ",\"" : "[\"");
		base64_encode(out, buf_view(&pem));
		buf_str(out, "\"");
	}
	buf_str(out, "]");
}

int agent_data_store(const char *dir, const struct agent_data *d, struct err *e)
{
	AUTO(free) char *path = data_path(dir);
	AUTO_BUF struct buf out = BUF_INIT;

	buf_str(&out, "{");
	chain_to_json(&out, "svid", &d->svid);
	buf_str(&out, ",");
	chain_to_json(&out, "bundle", &d->bundle);
	buf_printf(&out,
		",\"reattestable\":%s,\"bootstrap_use\":0,"
		"\"bootstrap_start_time\":\"0001-01-01T00:00:00Z\",\"connection_attempts\":0}",
		d->reattestable ? "true" : "false");
	return buf_write_file(buf_view(&out), path, 0600, e);
}

/* ---- records ---- */

static void add_u32(struct buf *b, uint32_t v)
{
	uint8_t p[4] = { (uint8_t)(v >> 24), (uint8_t)(v >> 16), (uint8_t)(v >> 8), (uint8_t)v };

	buf_append(b, p, sizeof(p));
}

static bool get_u32(struct bytes *rest, uint32_t *ret)
{
	if (rest->n < 4)
		return false;
	*ret = (uint32_t)rest->p[0] << 24 | (uint32_t)rest->p[1] << 16 | (uint32_t)rest->p[2] << 8 |
	       rest->p[3];
	*rest = bytes_of(rest->p + 4, rest->n - 4);
	return true;
}

void sealed_add_part(struct buf *rec, struct bytes v)
{
	add_u32(rec, (uint32_t)v.n);
	buf_bytes(rec, v);
}

bool sealed_part(struct bytes *rest, struct bytes *ret)
{
	struct bytes r = *rest;
	uint32_t n;

	if (!get_u32(&r, &n) || n > r.n)
		return false;
	*ret = bytes_of(r.p, n);
	*rest = bytes_of(r.p + n, r.n - n);
	return true;
}

void sealed_add_i64(struct buf *rec, int64_t v)
{
	add_u32(rec, (uint32_t)((uint64_t)v >> 32));
	add_u32(rec, (uint32_t)v);
}

bool sealed_i64(struct bytes *rest, int64_t *ret)
{
	uint32_t hi, lo;

	if (!get_u32(rest, &hi) || !get_u32(rest, &lo))
		return false;
	*ret = (int64_t)((uint64_t)hi << 32 | lo);
	return true;
}

void sealed_add(struct buf *plain, enum sealed_kind k, struct bytes v)
{
	buf_byte(plain, (uint8_t)k);
	sealed_add_part(plain, v);
}

bool sealed_next(struct bytes *rest, enum sealed_kind *ret_kind, struct bytes *ret_v)
{
	struct bytes r = *rest;

	if (r.n < 1)
		return false;
	*ret_kind = (enum sealed_kind)r.p[0];
	r = bytes_of(r.p + 1, r.n - 1);
	if (!sealed_part(&r, ret_v))
		return false;
	*rest = r;
	return true;
}

/* ---- the sealed file: magic, salt, AES-256-GCM under HKDF(agent key, salt) ---- */

static void derive(const struct key *k, struct bytes salt, uint8_t ret[SEALED_KEY])
{
	AUTO_BUF struct buf der = BUF_INIT_SECRET;

	key_to_pkcs8(k, &der);
	hkdf_sha256(buf_view(&der), salt, bytes_str(SEALED_INFO), ret, SEALED_KEY);
}

int sealed_write(const char *path, const struct key *k, struct bytes plain, struct err *e)
{
	AUTO_BUF struct buf out = BUF_INIT_MAX(SEALED_MAX);
	AUTO_BUF struct buf box = BUF_INIT_MAX(SEALED_MAX);
	uint8_t salt[SEALED_SALT], secret[SEALED_KEY];
	int r;

	crypto_random(salt, sizeof(salt));
	derive(k, bytes_of(salt, sizeof(salt)), secret);
	r = aead_seal(secret, bytes_str(SEALED_MAGIC), plain, &box, e);
	mem_wipe(secret, sizeof(secret));
	if (r)
		return r;
	buf_str(&out, SEALED_MAGIC);
	buf_append(&out, salt, sizeof(salt));
	if (!buf_bytes(&out, buf_view(&box)))
		return err_set(e, ERR_EXHAUSTED, "more than %d bytes to store", SEALED_MAX);
	return buf_write_file(buf_view(&out), path, 0600, e);
}

int sealed_read(
	const char *path, struct key *const *keys, size_t n_keys, struct buf *ret, struct err *e)
{
	AUTO_BUF struct buf file = BUF_INIT_MAX(SEALED_MAX);
	const size_t magic = strlen(SEALED_MAGIC);
	struct bytes salt, box;
	int r = buf_read_file(&file, path, e);

	if (r)
		return r;
	if (file.len < magic + SEALED_SALT || memcmp(file.p, SEALED_MAGIC, magic) != 0)
		return err_set(e, ERR_DATA_LOSS, "%s is not a sealed store", path);
	salt = bytes_of(file.p + magic, SEALED_SALT);
	box = bytes_of(salt.p + SEALED_SALT, file.len - magic - SEALED_SALT);
	for (size_t i = 0; i < n_keys; i++) {
		uint8_t secret[SEALED_KEY];
		struct err ignored = ERR_INIT;

		derive(keys[i], salt, secret);
		r = aead_open(secret, bytes_str(SEALED_MAGIC), box, ret, &ignored);
		mem_wipe(secret, sizeof(secret));
		if (!r)
			return 0;
		buf_reset(ret);
	}
	return err_set(
		e, ERR_DATA_LOSS, "%s: no key of this agent opens it, or it is damaged", path);
}

/*
 * Node attestor x509pop: the agent shows a certificate of a CA that we know and signs a nonce with
 * its key. Payloads: reference section 2.4, JSON as SPIRE's agents write it.
 */
#include "server/attest_internal.h"

#include <arpa/inet.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "lib/bundle.h"

enum { CA_FILE_MAX = 4 << 20 };

/* ---- configuration ---- */

static int load_roots(struct x509pop *p, const struct strings *paths, struct err *e)
{
	for (size_t i = 0; i < paths->n; i++) {
		AUTO_BUF struct buf b = BUF_INIT_MAX(CA_FILE_MAX);
		struct x509_chain ch = { .n = 0 };
		int r = buf_read_file(&b, paths->v[i], e);

		if (r == 0)
			r = x509_chain_parse_pem(&ch, buf_view(&b), X509_MAX_ROOTS, e);
		if (r)
			return err_wrap(e, "unable to load trust bundle \"%s\"", paths->v[i]);
		for (size_t j = 0; j < ch.n; j++)
			x509_chain_add(&p->roots, ch.v[j]);
		x509_chain_deinit(&ch);
	}
	return 0;
}

int x509pop_new(const struct attest_options *o, struct x509pop **ret, struct err *e)
{
	const struct server_options *c = o->config;
	struct x509pop *p = xcalloc(1, sizeof(*p));
	const char *prefix = c->x509pop_svid_prefix ? c->x509pop_svid_prefix : "/spire-exchange/";
	const char *fallback = c->x509pop_mode_spiffe ? "/{{ .PluginName }}/{{ .SVIDPathTrimmed }}"
						      : "/{{ .PluginName }}/{{ .Fingerprint }}";
	size_t n = strlen(prefix);
	int r;

	p->trust_domain = xstrdup(o->trust_domain);
	p->verify_client_ip = c->x509pop_verify_client_ip;
	p->max_intermediates = (size_t)c->x509pop_max_intermediates;
	p->max_rsa_bits = c->x509pop_max_rsa_key_size;
	p->ca = c->x509pop_mode_spiffe ? o->ca : NULL;
	p->svid_prefix = xasprintf("%s%s", prefix, n && prefix[n - 1] == '/' ? "" : "/");
	p->path_template =
		xstrdup(c->x509pop_agent_path_template ? c->x509pop_agent_path_template : fallback);
	r = attest_template_check(p->path_template, &x509pop_template_type, e);
	if (r == 0 && !c->x509pop_mode_spiffe)
		r = load_roots(p, &c->x509pop_ca_bundle_paths, e);
	if (r) {
		x509pop_free(p);
		return err_wrap(e, "x509pop");
	}
	*ret = p;
	return 0;
}

void x509pop_free(struct x509pop *p)
{
	if (!p)
		return;
	x509_chain_deinit(&p->roots);
	free(p->trust_domain);
	free(p->path_template);
	free(p->svid_prefix);
	free(p);
}

void x509pop_state_deinit(struct x509pop_state *st)
{
	x509_chain_deinit(&st->chain);
	x509_chain_deinit(&st->path);
	selectors_deinit(&st->selectors);
	free(st->agent_id);
	st->agent_id = NULL;
}

/* ---- the payload ---- */

/* Bytes as Go's JSON has them: a string in base64. */
static int decode(const json_t *v, struct buf *ret, struct err *e)
{
	if (!json_is_string(v))
		return err_set(e, ERR_INVALID, "a string of base64 is missing");
	return base64_decode(ret, bytes_of(json_string_value(v), json_string_length(v)), e);
}

static int add_cert(struct x509_chain *ch, const json_t *v, struct err *e)
{
	AUTO_BUF struct buf der = BUF_INIT_MAX(X509_MAX_DER);
	struct x509_cert *c;
	int r = decode(v, &der, e);

	if (r == 0)
		r = x509_parse(buf_view(&der), &c, e);
	if (r)
		return r;
	x509_chain_add(ch, c);
	x509_unref(c);
	return 0;
}

static bool is_rsa(const struct pubkey *k)
{
	return pubkey_type(k) == KEY_RSA_2048 || pubkey_type(k) == KEY_RSA_4096 ||
	       pubkey_type(k) == KEY_RSA_OTHER;
}

static bool too_large(const struct x509pop *p, const struct x509_cert *c)
{
	const struct pubkey *k = x509_pubkey(c);

	return k && is_rsa(k) && pubkey_bits(k) > p->max_rsa_bits;
}

static int parse_chain(struct x509pop_state *st, const json_t *root, struct err *e)
{
	const json_t *v = json_object_get(root, "certificates");
	size_t n = json_array_size(v);

	if (n == 0)
		return err_set(e, ERR_INVALID, "no certificate to attest");
	if (n - 1 > st->config->max_intermediates || n > X509_MAX_CHAIN)
		return err_set(e, ERR_INVALID, "too many intermediate certificates");
	for (size_t i = 0; i < n; i++) {
		if (add_cert(&st->chain, json_array_get(v, i), e) == 0) {
			if (!too_large(st->config, st->chain.v[i]))
				continue;
			if (i == 0)
				return err_set(
					e, ERR_INVALID, "leaf certificate key size too large");
			return err_set(e, ERR_INVALID,
				"intermediate certificate %zu key size too large", i - 1);
		}
		e->code = ERR_INVALID;
		if (i == 0)
			return err_wrap(e, "unable to parse leaf certificate");
		return err_wrap(e, "unable to parse intermediate certificate %zu", i - 1);
	}
	return 0;
}

static int parse_json(struct bytes text, json_t **ret, const char *what, struct err *e)
{
	json_error_t je;

	*ret = json_loadb((const char *)text.p, text.n, 0, &je);
	if (!*ret)
		return err_set(e, ERR_INVALID, "%s: %s", what, je.text);
	return 0;
}

/* An IPv4 address in IPv6 clothes is that IPv4 address. */
static struct bytes parse_ip(const char *text, uint8_t ret[static 16])
{
	static const uint8_t mapped[12] = { [10] = 0xff, [11] = 0xff };

	if (inet_pton(AF_INET, text, ret) == 1)
		return bytes_of(ret, 4);
	if (inet_pton(AF_INET6, text, ret) != 1)
		return bytes_of(NULL, 0);
	if (memcmp(ret, mapped, sizeof(mapped)) == 0)
		return bytes_of(ret + 12, 4);
	return bytes_of(ret, 16);
}

static int check_ip(const struct x509_cert *leaf, const char *address, struct err *e)
{
	uint8_t store[16];
	struct bytes ip = parse_ip(address, store);
	const struct bytes *v;
	size_t n = x509_ips(leaf, &v);

	if (ip.n == 0)
		return err_set(e, ERR_INTERNAL, "client IP not available for verification");
	for (size_t i = 0; i < n; i++)
		if (bytes_equal(v[i], ip))
			return 0;
	return err_set(
		e, ERR_DENIED, "client IP %s does not match any certificate IP SAN", address);
}

static bool is_ec(const struct pubkey *k)
{
	return pubkey_type(k) == KEY_EC_P256 || pubkey_type(k) == KEY_EC_P384 ||
	       pubkey_type(k) == KEY_EC_P521;
}

static int make_challenge(struct x509pop_state *st, struct buf *ret, struct err *e)
{
	const struct x509_cert *leaf = st->chain.v[0];
	const struct pubkey *k = x509_pubkey(leaf);
	AUTO_BUF struct buf nonce = BUF_INIT;
	bool present;

	if (!(x509_key_usage(leaf, &present) & KU_DIGITAL_SIGNATURE) || !present)
		return err_set(e, ERR_INTERNAL,
			"unable to generate challenge: certificate not intended for digital "
			"signature use");
	if (!k || (!is_rsa(k) && !is_ec(k)))
		return err_set(e, ERR_INTERNAL,
			"unable to generate challenge: unsupported public key type");
	crypto_random(st->nonce, sizeof(st->nonce));
	base64_encode(&nonce, bytes_of(st->nonce, sizeof(st->nonce)));
	if (is_rsa(k))
		buf_printf(ret, "{\"rsa_signature\":{\"nonce\":\"%s\"},\"ecdsa_signature\":null}",
			buf_cstr(&nonce));
	else
		buf_printf(ret, "{\"rsa_signature\":null,\"ecdsa_signature\":{\"nonce\":\"%s\"}}",
			buf_cstr(&nonce));
	return 0;
}

int x509pop_challenge(struct x509pop_state *st, const struct x509_chain *roots,
	struct bytes payload, const char *address, struct wall now, struct buf *ret_challenge,
	struct err *e)
{
	json_t *root;
	int r = parse_json(payload, &root, "failed to unmarshal data", e);

	if (r)
		return r;
	r = parse_chain(st, root, e);
	json_decref(root);
	if (r)
		return r;
	if (x509_verify_path(&st->chain, roots, now, &st->path, e)) {
		e->code = ERR_DENIED;
		return err_wrap(e, "certificate verification failed");
	}
	if (st->config->verify_client_ip) {
		r = check_ip(st->chain.v[0], address, e);
		if (r)
			return r;
	}
	return make_challenge(st, ret_challenge, e);
}

/* ---- the response ---- */

static size_t coordinate_size(enum key_type t)
{
	return t == KEY_EC_P256 ? 32 : t == KEY_EC_P384 ? 48 : 66;
}

/* A big-endian number of any length as one of exactly width bytes. */
static bool append_padded(struct buf *ret, struct bytes v, size_t width)
{
	while (v.n && v.p[0] == 0)
		v = bytes_of(v.p + 1, v.n - 1);
	if (v.n > width)
		return false;
	for (size_t i = v.n; i < width; i++)
		buf_byte(ret, 0);
	return buf_bytes(ret, v);
}

static int ecdsa_signature(const json_t *o, enum key_type t, struct buf *ret, struct err *e)
{
	AUTO_BUF struct buf r = BUF_INIT, s = BUF_INIT;
	size_t width = coordinate_size(t);
	int code = decode(json_object_get(o, "r"), &r, e);

	if (code == 0)
		code = decode(json_object_get(o, "s"), &s, e);
	if (code)
		return code;
	if (!append_padded(ret, buf_view(&r), width) || !append_padded(ret, buf_view(&s), width))
		return err_set(e, ERR_INVALID, "ECDSA signature verify failed");
	return 0;
}

static int check_signature(struct x509pop_state *st, const json_t *o, bool rsa, struct err *e)
{
	const struct pubkey *k = x509_pubkey(st->chain.v[0]);
	AUTO_BUF struct buf nonce = BUF_INIT, sig = BUF_INIT;
	uint8_t both[2 * ATTEST_NONCE], digest[32];
	int r = decode(json_object_get(o, "nonce"), &nonce, e);

	if (r)
		return r;
	if (nonce.len != ATTEST_NONCE)
		return err_set(e, ERR_INVALID, "invalid response nonce");
	r = rsa ? decode(json_object_get(o, "signature"), &sig, e)
		: ecdsa_signature(o, pubkey_type(k), &sig, e);
	if (r)
		return r;
	memcpy(both, st->nonce, ATTEST_NONCE);
	memcpy(both + ATTEST_NONCE, nonce.p, ATTEST_NONCE);
	hash_of(HASH_SHA256, bytes_of(both, sizeof(both)), digest);
	r = pubkey_verify(k, HASH_SHA256, bytes_of(digest, sizeof(digest)),
		rsa ? SIG_RSA_PSS : SIG_JWS, buf_view(&sig), e);
	if (r)
		return err_set(e, ERR_INVALID, "%s signature verify failed", rsa ? "RSA" : "ECDSA");
	return 0;
}

static int check_response(struct x509pop_state *st, struct bytes text, struct err *e)
{
	bool rsa = is_rsa(x509_pubkey(st->chain.v[0]));
	const json_t *o;
	json_t *root;
	int r = parse_json(text, &root, "unable to unmarshal challenge response", e);

	if (r)
		return r;
	o = json_object_get(root, rsa ? "rsa_signature" : "ecdsa_signature");
	if (!json_is_object(o))
		r = err_set(e, ERR_INVALID, "expecting %s response", rsa ? "RSA" : "ECDSA");
	else
		r = check_signature(st, o, rsa, e);
	json_decref(root);
	if (r) {
		e->code = ERR_DENIED;
		return err_wrap(e, "challenge response verification failed");
	}
	return 0;
}

/* ---- the result ---- */

static void fingerprint(const struct x509_cert *c, struct buf *ret)
{
	uint8_t sum[20];

	hash_of(HASH_SHA1, x509_der(c), sum);
	hex_encode(ret, bytes_of(sum, sizeof(sum)));
}

/* URIs x509pop://<trust domain>/<key>/<value>, the last of a key winning: calls fn for each. */
static void each_san(const struct x509pop_state *st,
	void (*fn)(void *arg, struct bytes key, const char *value), void *arg)
{
	AUTO(free) char *prefix = xasprintf("x509pop://%s/", st->config->trust_domain);
	const struct strings *uris = x509_uris(st->chain.v[0]);

	for (size_t i = 0; i < uris->n; i++) {
		AUTO(free) char *path = NULL;
		char *slash;
		size_t n;

		if (strncmp(uris->v[i], prefix, strlen(prefix)) != 0)
			continue;
		path = xstrdup(uris->v[i] + strlen(prefix));
		path[strcspn(path, "?#")] = 0;
		for (n = strlen(path); n && path[n - 1] == '/'; n--)
			path[n - 1] = 0;
		slash = strchr(path, '/');
		if (slash && slash > path)
			fn(arg, bytes_of(path, (size_t)(slash - path)), slash + 1);
	}
}

#define FIELD(name, kind, type)                                                                    \
	{                                                                                          \
		name, name, kind, type                                                             \
	}
static const struct template_field subject_fields[] = { FIELD("CommonName", TEMPLATE_STRING, NULL),
	{ NULL, NULL, 0, NULL } };
static const struct template_type subject_type = { "pkix.Name", subject_fields, false };
static const struct template_field fields[] = { FIELD("PluginName", TEMPLATE_STRING, NULL),
	FIELD("Fingerprint", TEMPLATE_STRING, NULL), FIELD("TrustDomain", TEMPLATE_STRING, NULL),
	FIELD("SerialNumber", TEMPLATE_STRING, NULL),
	FIELD("SerialNumberHex", TEMPLATE_STRING, NULL),
	FIELD("SVIDPathTrimmed", TEMPLATE_STRING, NULL),
	FIELD("Subject", TEMPLATE_STRUCT, &subject_type), FIELD("DNSNames", TEMPLATE_LIST, NULL),
	FIELD("URISanSelectors", TEMPLATE_MAP, NULL), { NULL, NULL, 0, NULL } };
const struct template_type x509pop_template_type = { "x509pop.agentPathTemplateData", fields,
	false };

static void set_san(void *arg, struct bytes key, const char *value)
{
	json_t *map = arg;
	AUTO(free) char *name = xstrndup((const char *)key.p, key.n);

	json_object_set_new(map, name, json_string(value));
}

static void set_buf(json_t *j, const char *name, void (*fn)(const struct x509_cert *, struct buf *),
	const struct x509_cert *c)
{
	AUTO_BUF struct buf b = BUF_INIT_MAX(SPIFFEID_MAX);

	fn(c, &b);
	json_object_set_new(j, name, json_string(buf_cstr(&b)));
}

static json_t *template_data(const struct x509pop_state *st, const char *svid_path)
{
	const struct x509_cert *leaf = st->chain.v[0];
	const struct strings *names = x509_dns_names(leaf);
	json_t *j = json_object(), *sans = json_object(), *dns = json_array();

	each_san(st, set_san, sans);
	for (size_t i = 0; i < names->n; i++)
		json_array_append_new(dns, json_string(names->v[i]));
	json_object_set_new(j, "PluginName", json_string("x509pop"));
	json_object_set_new(j, "TrustDomain", json_string(st->config->trust_domain));
	json_object_set_new(j, "SVIDPathTrimmed", json_string(svid_path));
	json_object_set_new(j, "Subject", json_pack("{ss*}", "CommonName", x509_subject_cn(leaf)));
	json_object_set_new(j, "DNSNames", dns);
	json_object_set_new(j, "URISanSelectors", sans);
	set_buf(j, "Fingerprint", fingerprint, leaf);
	set_buf(j, "SerialNumberHex", x509_serial_hex, leaf);
	set_buf(j, "SerialNumber", x509_serial_decimal, leaf);
	return j;
}

/* Mode spiffe: what follows the prefix in the path of the leaf's first SPIFFE ID. */
static int svid_path(const struct x509pop_state *st, const char **ret, struct err *e)
{
	const struct strings *uris = x509_uris(st->chain.v[0]);
	const char *prefix = st->config->svid_prefix, *path;

	*ret = "";
	if (!st->config->ca)
		return 0;
	for (size_t i = 0; i < uris->n; i++) {
		if (strncmp(uris->v[i], "spiffe://", 9) != 0)
			continue;
		path = strchr(uris->v[i] + 9, '/');
		if (!path || strncmp(path, prefix, strlen(prefix)) != 0)
			return err_set(e, ERR_DENIED, "x509 cert doesnt match SVID prefix");
		*ret = path + strlen(prefix);
		return 0;
	}
	return err_set(e, ERR_DENIED, "valid SVID x509 cert not found");
}

static int make_id(struct x509pop_state *st, struct err *e)
{
	AUTO_BUF struct buf path = BUF_INIT_MAX(SPIFFEID_MAX);
	struct spiffeid id = SPIFFEID_INIT;
	const char *trimmed;
	json_t *data;
	int r = svid_path(st, &trimmed, e);

	if (r)
		return r;
	buf_str(&path, "/spire/agent");
	data = template_data(st, trimmed);
	r = attest_template_expand(
		st->config->path_template, data, &x509pop_template_type, &path, e);
	json_decref(data);
	if (r == 0)
		r = spiffeid_make(&id, st->config->trust_domain, buf_cstr(&path), e);
	if (r) {
		e->code = ERR_INTERNAL;
		return err_wrap(e, "failed to make spiffe id");
	}
	st->agent_id = id.text;
	return 0;
}

static void add_selector(struct selectors *s, const char *kind, const char *value)
{
	AUTO(free) char *v = xasprintf("%s:%s", kind, value);

	selectors_add(s, "x509pop", v);
}

static void add_san(void *arg, struct bytes key, const char *value)
{
	struct x509pop_state *st = arg;
	AUTO(free) char *kind = xasprintf("san:%.*s", (int)key.n, (const char *)key.p);
	size_t n = strlen(kind);

	/* A later URI of the same key replaces the earlier one's value. */
	for (size_t i = 0; i < st->selectors.n; i++) {
		struct selector *old = &st->selectors.v[i];

		if (strncmp(old->value, kind, n) == 0 && old->value[n] == ':') {
			free(old->value);
			old->value = xasprintf("%s:%s", kind, value);
			return;
		}
	}
	add_selector(&st->selectors, kind, value);
}

static void make_selectors(struct x509pop_state *st)
{
	const struct x509_cert *leaf = st->chain.v[0];
	AUTO_BUF struct buf b = BUF_INIT;

	each_san(st, add_san, st);
	if (x509_subject_cn(leaf)[0])
		add_selector(&st->selectors, "subject:cn", x509_subject_cn(leaf));
	for (size_t i = 1; i < st->path.n; i++) {
		buf_reset(&b);
		fingerprint(st->path.v[i], &b);
		add_selector(&st->selectors, "ca:fingerprint", buf_cstr(&b));
	}
	buf_reset(&b);
	x509_serial_hex(leaf, &b);
	add_selector(&st->selectors, "serialnumber", buf_cstr(&b));
	selectors_normalize(&st->selectors);
}

int x509pop_verify(struct x509pop_state *st, struct bytes response, struct err *e)
{
	int r = check_response(st, response, e);

	if (r == 0)
		r = make_id(st, e);
	if (r == 0)
		make_selectors(st);
	return r;
}

/* ---- on the loop ---- */

/* One step under way; inputs are copies. */
struct job {
	struct attest_session *s;
	struct x509pop_state *st;
	struct x509_chain roots;
	struct buf in, out;
	char *address;
	struct err e;
	int r;
};

static void free_state(void *state)
{
	x509pop_state_deinit(state);
	free(state);
}

static struct job *job_new(struct attest_session *s, struct bytes in)
{
	struct job *j = xcalloc(1, sizeof(*j));

	*j = (struct job){ .s = s, .st = s->state, .in = BUF_INIT, .out = BUF_INIT };
	buf_bytes(&j->in, in);
	return j;
}

static void job_free(struct job *j)
{
	x509_chain_deinit(&j->roots);
	buf_deinit(&j->in);
	buf_deinit(&j->out);
	free(j->address);
	free(j);
}

static void job_fail(struct job *j)
{
	err_wrap(&j->e, "nodeattestor(x509pop)");
	attest_step_failed(j->s, &j->e);
}

static void work_challenge(void *arg)
{
	struct job *j = arg;

	j->r = x509pop_challenge(
		j->st, &j->roots, buf_view(&j->in), j->address, clock_wall(), &j->out, &j->e);
}

static void done_challenge(void *arg)
{
	struct job *j = arg;

	if (j->r)
		job_fail(j);
	else
		attest_step_challenge(j->s, buf_view(&j->out));
	job_free(j);
}

static void begin(struct attest_session *s, struct bytes payload)
{
	const struct x509pop *p = s->attest->x509pop;
	struct x509pop_state *st = xcalloc(1, sizeof(*st));
	struct job *j;

	st->config = p;
	s->state = st;
	j = job_new(s, payload);
	j->roots = p->ca ? bundle_roots(ca_bundle(p->ca)) : x509_chain_dup(&p->roots);
	j->address = xstrdup(s->address);
	loop_job(s->attest->o.loop, work_challenge, done_challenge, j);
}

static void work_verify(void *arg)
{
	struct job *j = arg;

	j->r = x509pop_verify(j->st, buf_view(&j->in), &j->e);
}

static void done_verify(void *arg)
{
	struct job *j = arg;

	if (j->r)
		job_fail(j);
	else
		attest_step_done(j->s, j->st->agent_id, &j->st->selectors, true);
	job_free(j);
}

static void respond(struct attest_session *s, struct bytes response)
{
	loop_job(s->attest->o.loop, work_verify, done_verify, job_new(s, response));
}

const struct attestor attestor_x509pop = {
	.type = "x509pop", .begin = begin, .respond = respond, .free_state = free_state
};

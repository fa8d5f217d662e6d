/*
 * Node attestor sshpop: the agent shows an OpenSSH host certificate of a CA that we know and signs
 * a nonce with its key. Payloads and codes as SPIRE's plugin of that name has them.
 */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "server/attest_internal.h"

enum { AUTHORITIES_FILE_MAX = 1 << 20, FINGERPRINT = 32 };

#define DEFAULT_TEMPLATE "/{{ .PluginName }}/{{ .Fingerprint }}"

/* ---- configuration ---- */

static int add_authority(struct sshpop *p, struct bytes line, struct err *e)
{
	AUTO_BUF struct buf blob = BUF_INIT;
	struct pubkey *k;
	uint8_t sum[FINGERPRINT];
	int r = ssh_line_parse(line, &blob, e);

	if (r == 0)
		r = ssh_public_parse(buf_view(&blob), &k, e);
	if (r)
		return r;
	pubkey_unref(k);
	hash_of(HASH_SHA256, buf_view(&blob), sum);
	buf_append(&p->authorities, sum, sizeof(sum));
	return 0;
}

static int add_file(struct sshpop *p, const char *path, struct err *e)
{
	AUTO_BUF struct buf b = BUF_INIT_MAX(AUTHORITIES_FILE_MAX);
	struct bytes in;
	int r = buf_read_file(&b, path, e), line = 0;

	if (r)
		return err_wrap(e, "failed to get cert authorities from file \"%s\"", path);
	for (in = buf_view(&b); in.n;) {
		const uint8_t *end = memchr(in.p, '\n', in.n);
		size_t n = end ? (size_t)(end - in.p) : in.n;

		line++;
		r = add_authority(p, bytes_of(in.p, n), e);
		if (r && r != ERR_NOT_FOUND)
			return err_wrap(e, "%s:%d: failed to parse public key", path, line);
		n += end != NULL;
		in = bytes_of(in.p + n, in.n - n);
	}
	return 0;
}

#define FIELD(name, kind)                                                                          \
	{                                                                                          \
		name, name, kind, NULL                                                             \
	}
static const struct template_field fields[] = { FIELD("PluginName", TEMPLATE_STRING),
	FIELD("Fingerprint", TEMPLATE_STRING), FIELD("Hostname", TEMPLATE_STRING),
	FIELD("KeyId", TEMPLATE_STRING), FIELD("Serial", TEMPLATE_INT),
	FIELD("CertType", TEMPLATE_INT), FIELD("ValidAfter", TEMPLATE_INT),
	FIELD("ValidBefore", TEMPLATE_INT), FIELD("ValidPrincipals", TEMPLATE_LIST),
	{ NULL, NULL, 0, NULL } };
static const struct template_type type = { "sshpop.agentPathTemplateData", fields, false };

static int load(struct sshpop *p, const struct server_options *c, struct err *e)
{
	int r = attest_template_check(p->path_template, &type, e);

	for (size_t i = 0; r == 0 && i < c->sshpop_cert_authorities.n; i++) {
		r = add_authority(p, bytes_str(c->sshpop_cert_authorities.v[i]), e);
		if (r)
			err_wrap(e, "failed to parse public key \"%s\"",
				c->sshpop_cert_authorities.v[i]);
	}
	if (r == 0 && c->sshpop_cert_authorities_path)
		r = add_file(p, c->sshpop_cert_authorities_path, e);
	if (r == 0 && p->authorities.len == 0)
		r = err_set(e, ERR_INVALID, "must provide at least one cert authority");
	return r;
}

int sshpop_new(const struct attest_options *o, struct sshpop **ret, struct err *e)
{
	const struct server_options *c = o->config;
	struct sshpop *p = xcalloc(1, sizeof(*p));
	int r;

	p->trust_domain = xstrdup(o->trust_domain);
	p->authorities = BUF_INIT;
	p->canonical_domain = xstrdup(c->sshpop_canonical_domain ? c->sshpop_canonical_domain : "");
	p->path_template = xstrdup(
		c->sshpop_agent_path_template ? c->sshpop_agent_path_template : DEFAULT_TEMPLATE);
	r = load(p, c, e);
	if (r) {
		sshpop_free(p);
		return err_wrap(e, "sshpop");
	}
	*ret = p;
	return 0;
}

void sshpop_free(struct sshpop *p)
{
	if (!p)
		return;
	free(p->trust_domain);
	buf_deinit(&p->authorities);
	free(p->canonical_domain);
	free(p->path_template);
	free(p);
}

void sshpop_state_deinit(struct sshpop_state *st)
{
	ssh_cert_deinit(&st->cert);
	free(st->hostname);
	free(st->agent_id);
	st->hostname = st->agent_id = NULL;
}

/* ---- the payload ---- */

/* Go's JSON finds a member whatever the case of its name. */
static const json_t *member(const json_t *o, const char *name)
{
	const char *key;
	json_t *v;

	json_object_foreach(
		(json_t *)(uintptr_t)o, key, v) if (strcasecmp(key, name) == 0) return v;
	return NULL;
}

static int decode(const json_t *o, const char *name, struct buf *ret, struct err *e)
{
	const json_t *v = member(o, name);

	if (!v || json_is_null(v))
		return 0;
	if (!json_is_string(v))
		return err_set(e, ERR_INTERNAL, "%s is not a string of base64", name);
	return base64_decode(ret, bytes_of(json_string_value(v), json_string_length(v)), e);
}

static int parse_json(struct bytes text, json_t **ret, struct err *e)
{
	json_error_t je;
	json_t *root = json_loadb((const char *)text.p, text.n, 0, &je);

	if (!root)
		return err_set(e, ERR_INTERNAL, "%s", je.text);
	if (!json_is_object(root)) {
		json_decref(root);
		return err_set(e, ERR_INTERNAL, "not an object");
	}
	*ret = root;
	return 0;
}

static int parse_payload(struct bytes text, struct buf *ret, struct err *e)
{
	json_t *root;
	int r = parse_json(text, &root, e);

	if (r == 0) {
		r = decode(root, "Certificate", ret, e);
		json_decref(root);
	}
	if (r)
		return err_wrap(e, "failed to unmarshal data");
	return ret->len ? 0 : err_set(e, ERR_INTERNAL, "no certificate in response");
}

static bool is_authority(const struct sshpop *p, struct bytes key)
{
	uint8_t sum[FINGERPRINT];

	hash_of(HASH_SHA256, key, sum);
	for (size_t i = 0; i < p->authorities.len; i += FINGERPRINT)
		if (memcmp(p->authorities.p + i, sum, FINGERPRINT) == 0)
			return true;
	return false;
}

static int check_cert(const struct sshpop_state *st, struct wall now, struct err *e)
{
	const struct ssh_cert *c = &st->cert;

	/* ssh_cert_check_host() says whether it is a host's at all; whose it is comes first, so
	 * that nobody's signature is computed for a stranger. */
	if (c->type == SSH_CERT_HOST && !is_authority(st->config, c->authority_blob))
		return err_set(
			e, ERR_DENIED, "no authorities for hostname: %.255s", c->principals.v[0]);
	return ssh_cert_check_host(c, now, e);
}

static int find_hostname(struct sshpop_state *st, struct err *e)
{
	AUTO(free) char *suffix = xasprintf(".%s", st->config->canonical_domain);
	const char *fqdn = st->cert.principals.v[0];
	size_t n = strlen(fqdn), m = strlen(suffix);

	if (!st->config->canonical_domain[0])
		m = 0;
	else if (n < m || strcmp(fqdn + n - m, suffix) != 0)
		return err_set(e, ERR_INTERNAL,
			"failed to decanonicalize hostname: cert principal is not in domain \"%s\"",
			suffix);
	st->hostname = xstrndup(fqdn, n - m);
	return 0;
}

static int take_cert(struct sshpop_state *st, struct bytes blob, struct wall now, struct err *e)
{
	if (ssh_cert_parse(blob, &st->cert, e)) {
		e->code = ERR_INTERNAL;
		return strstr(e->msg, "is not a certificate")
			       ? ERR_INTERNAL
			       : err_wrap(e, "failed to parse public key");
	}
	if (!st->cert.principals.n)
		return err_set(e, ERR_INTERNAL, "cert has no valid principals");
	if (check_cert(st, now, e)) {
		e->code = ERR_INTERNAL;
		return err_wrap(e, "failed to check host key");
	}
	return find_hostname(st, e);
}

int sshpop_challenge(struct sshpop_state *st, struct bytes payload, struct wall now,
	struct buf *ret_challenge, struct err *e)
{
	AUTO_BUF struct buf blob = BUF_INIT;
	int r = parse_payload(payload, &blob, e);

	if (r == 0)
		r = take_cert(st, buf_view(&blob), now, e);
	if (r)
		return e->code = ERR_INTERNAL;
	crypto_random(st->nonce, sizeof(st->nonce));
	buf_str(ret_challenge, "{\"Nonce\":\"");
	base64_encode(ret_challenge, bytes_of(st->nonce, sizeof(st->nonce)));
	buf_str(ret_challenge, "\"}");
	return 0;
}

/* ---- the response ---- */

static int check_signature(
	const struct sshpop_state *st, struct bytes nonce, const json_t *sig, struct err *e)
{
	const json_t *format = member(sig, "Format");
	AUTO_BUF struct buf blob = BUF_INIT;
	uint8_t both[2 * ATTEST_NONCE], digest[HASH_MAX];
	int r;

	if (nonce.n != ATTEST_NONCE)
		return err_set(
			e, ERR_INTERNAL, "failed to combine nonces: invalid response nonce size");
	r = decode(sig, "Blob", &blob, e);
	if (r == 0 && !json_is_string(format))
		r = err_set(e, ERR_INTERNAL, "there is no signature");
	if (r == 0) {
		memcpy(both, st->nonce, ATTEST_NONCE);
		memcpy(both + ATTEST_NONCE, nonce.p, ATTEST_NONCE);
		hash_of(HASH_SHA256, bytes_of(both, sizeof(both)), digest);
		/* SPIRE's agents sign with SHA-1 when the host's key is RSA. */
		r = ssh_verify(st->cert.key, bytes_of(digest, hash_size(HASH_SHA256)),
			bytes_str(json_string_value(format)), buf_view(&blob), true, e);
	}
	return r ? err_wrap(e, "failed to verify signature") : 0;
}

static int check_response(struct sshpop_state *st, struct bytes text, struct err *e)
{
	AUTO_BUF struct buf nonce = BUF_INIT;
	json_t *root;
	int r = parse_json(text, &root, e);

	if (r)
		return err_wrap(e, "failed to unmarshal challenge response");
	r = decode(root, "Nonce", &nonce, e);
	if (r)
		err_wrap(e, "failed to unmarshal challenge response");
	else
		r = check_signature(st, buf_view(&nonce), member(root, "Signature"), e);
	json_decref(root);
	return r;
}

/* ---- the result ---- */

/* JSON's integers are signed; what is larger is a text, which prints the same. */
static json_t *number(uint64_t v)
{
	return v > INT64_MAX ? json_sprintf("%llu", (unsigned long long)v)
			     : json_integer((json_int_t)v);
}

static json_t *template_data(const struct sshpop_state *st)
{
	const struct ssh_cert *c = &st->cert;
	AUTO_BUF struct buf fingerprint = BUF_INIT;
	json_t *j = json_object(), *principals = json_array();
	uint8_t sum[FINGERPRINT];

	hash_of(HASH_SHA256, buf_view(&c->blob), sum);
	base64url_encode(&fingerprint, bytes_of(sum, sizeof(sum)));
	for (size_t i = 0; i < c->principals.n; i++)
		json_array_append_new(principals, json_string(c->principals.v[i]));
	json_object_set_new(j, "PluginName", json_string("sshpop"));
	json_object_set_new(j, "Fingerprint", json_string(buf_cstr(&fingerprint)));
	json_object_set_new(j, "Hostname", json_string(st->hostname));
	json_object_set_new(j, "KeyId", json_string(c->key_id));
	json_object_set_new(j, "Serial", number(c->serial));
	json_object_set_new(j, "CertType", number(c->type));
	json_object_set_new(j, "ValidAfter", number(c->valid_after));
	json_object_set_new(j, "ValidBefore", number(c->valid_before));
	json_object_set_new(j, "ValidPrincipals", principals);
	return j;
}

static int make_id(struct sshpop_state *st, struct err *e)
{
	AUTO_BUF struct buf path = BUF_INIT_MAX(SPIFFEID_MAX);
	struct spiffeid id = SPIFFEID_INIT;
	json_t *data = template_data(st);
	int r;

	buf_str(&path, "/spire/agent");
	r = attest_template_expand(st->config->path_template, data, &type, &path, e);
	json_decref(data);
	if (r == 0)
		r = spiffeid_make(&id, st->config->trust_domain, buf_cstr(&path), e);
	if (r)
		return err_wrap(e, "failed to create AgentID");
	st->agent_id = id.text;
	return 0;
}

int sshpop_verify(struct sshpop_state *st, struct bytes response, struct err *e)
{
	int r = check_response(st, response, e);

	if (r == 0)
		r = make_id(st, e);
	return r ? (e->code = ERR_INTERNAL) : 0;
}

/* ---- on the loop ---- */

/* One step under way; inputs are copies. */
struct job {
	struct attest_session *s;
	struct sshpop_state *st;
	struct buf in, out;
	struct err e;
	int r;
};

static void free_state(void *state)
{
	sshpop_state_deinit(state);
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
	buf_deinit(&j->in);
	buf_deinit(&j->out);
	free(j);
}

static void job_fail(struct job *j)
{
	err_wrap(&j->e, "nodeattestor(sshpop)");
	attest_step_failed(j->s, &j->e);
}

static void work_challenge(void *arg)
{
	struct job *j = arg;

	j->r = sshpop_challenge(j->st, buf_view(&j->in), clock_wall(), &j->out, &j->e);
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
	struct sshpop_state *st = xcalloc(1, sizeof(*st));

	st->config = s->attest->sshpop;
	s->state = st;
	loop_job(s->attest->o.loop, work_challenge, done_challenge, job_new(s, payload));
}

static void work_verify(void *arg)
{
	struct job *j = arg;

	j->r = sshpop_verify(j->st, buf_view(&j->in), &j->e);
}

static void done_verify(void *arg)
{
	static const struct selectors none = { .n = 0 };
	struct job *j = arg;

	if (j->r)
		job_fail(j);
	else
		attest_step_done(j->s, j->st->agent_id, &none, true);
	job_free(j);
}

static void respond(struct attest_session *s, struct bytes response)
{
	loop_job(s->attest->o.loop, work_verify, done_verify, job_new(s, response));
}

const struct attestor attestor_sshpop = {
	.type = "sshpop", .begin = begin, .respond = respond, .free_state = free_state
};

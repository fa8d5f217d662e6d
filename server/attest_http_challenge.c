/*
 * Node attestor http_challenge: the agent names its host, and serves there what the server asks
 * for. Payloads and texts as SPIRE's plugin of that name has them.
 *
 * Whoever can reach the server can have it send a GET to a host and port of his choice, so the name
 * must be one, the path is fixed, redirects are not followed, 64 bytes are read, what was read or
 * why it failed is only logged, and names that lead to the server itself or its link are refused
 * (an address of loopback can be meant only when allowed_dns_patterns match it as it stands).
 */
#include <arpa/inet.h>
#include <ctype.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "lib/log.h"
#include "server/attest_internal.h"

enum { FETCH_TIMEOUT_MS = 10000, BODY_MAX = 64, AGENT_NAME_MAX = 32, HOSTNAME_MAX = 253 };

/* ---- configuration ---- */

int http_challenge_new(const struct attest_options *o, struct http_challenge **ret, struct err *e)
{
	const struct server_options *c = o->config;
	const struct strings *texts = &c->http_challenge_allowed_dns_patterns;
	struct http_challenge *h = xcalloc(1, sizeof(*h));
	int r = 0;

	h->trust_domain = xstrdup(o->trust_domain);
	h->required_port = c->http_challenge_required_port;
	h->allow_non_root_ports = c->http_challenge_allow_non_root_ports;
	h->tofu = c->http_challenge_tofu;
	h->patterns = xcalloc(texts->n + 1, sizeof(*h->patterns));
	for (size_t i = 0; r == 0 && i < texts->n; i++) {
		r = pattern_new(texts->v[i], &h->patterns[i], e);
		if (r)
			err_wrap(e, "http_challenge: cannot compile allowed_dns_pattern: \"%s\"",
				texts->v[i]);
		else
			h->n_patterns++;
	}
	if (r)
		http_challenge_free(h);
	else
		*ret = h;
	return r;
}

void http_challenge_free(struct http_challenge *h)
{
	if (!h)
		return;
	for (size_t i = 0; i < h->n_patterns; i++)
		pattern_free(h->patterns[i]);
	free(h->patterns);
	free(h->trust_domain);
	free(h);
}

void http_challenge_state_deinit(struct http_challenge_state *st)
{
	http_get_cancel(st->get);
	free(st->hostname);
	free(st->url);
	free(st->agent_id);
	selectors_deinit(&st->selectors);
	*st = (struct http_challenge_state){ 0 };
}

/* ---- the payload ---- */

static int check_port(const struct http_challenge *h, long long port, struct err *e)
{
	if (h->required_port && port != h->required_port)
		return err_set(
			e, ERR_INVALID, "port %lld is not allowed to be used by this server", port);
	if (!h->allow_non_root_ports && port >= 1024)
		return err_set(e, ERR_INVALID, "port %lld is not allowed to be >= 1024", port);
	if (port < 1 || port > 65535)
		return err_set(e, ERR_INVALID, "port is invalid");
	return 0;
}

/* ^[a-zA-Z][a-zA-Z0-9-]*$ */
static int check_agent_name(const char *s, struct err *e)
{
	size_t n = strlen(s);
	bool ok = n > 0 && n <= AGENT_NAME_MAX && isalpha((unsigned char)s[0]);

	for (size_t i = 0; ok && i < n; i++)
		ok = isalnum((unsigned char)s[i]) || s[i] == '-';
	return ok ? 0 : err_set(e, ERR_INVALID, "agent name is not valid");
}

/* RFC 6761 section 6.3: names under "localhost." too lead to loopback. */
static bool is_localhost(const char *s)
{
	size_t n = strlen(s);

	n -= n && s[n - 1] == '.';
	return n >= 9 && strncasecmp(s + n - 9, "localhost", 9) == 0 &&
	       (n == 9 || s[n - 10] == '.');
}

static bool is_allowed(const struct http_challenge *h, const char *name)
{
	for (size_t i = 0; i < h->n_patterns; i++)
		if (pattern_matches(h->patterns[i], name))
			return true;
	return h->n_patterns == 0;
}

static int check_hostname(const struct http_challenge *h, const char *s, struct err *e)
{
	size_t n = strlen(s);
	bool ok = n > 0 && n <= HOSTNAME_MAX;

	for (size_t i = 0; ok && i < n; i++)
		ok = isalnum((unsigned char)s[i]) || strchr(".-_", s[i]);
	if (is_localhost(s))
		return err_set(e, ERR_DENIED, "you can not use localhost as a hostname");
	if (!ok)
		return err_set(e, ERR_INVALID, "hostname is not valid");
	return is_allowed(h, s)
		       ? 0
		       : err_set(e, ERR_DENIED, "the requested hostname is not allowed to connect");
}

static const char *text(const json_t *root, const char *name)
{
	const json_t *v = json_object_get(root, name);
	const char *s = json_string_value(v);

	return s && strlen(s) == json_string_length(v) ? s : "";
}

static int make_id(struct http_challenge_state *st, struct err *e)
{
	AUTO(free) char *path = xasprintf("/spire/agent/http_challenge/%s", st->hostname);
	AUTO(free) char *selector = xasprintf("hostname:%s", st->hostname);
	struct spiffeid id = SPIFFEID_INIT;
	int r = spiffeid_make(&id, st->config->trust_domain, path, e);

	if (r) {
		e->code = ERR_INTERNAL;
		return err_wrap(e, "failed to make spiffe id");
	}
	st->agent_id = id.text;
	selectors_add(&st->selectors, "http_challenge", selector);
	return 0;
}

static int take_payload(struct http_challenge_state *st, const json_t *root, struct err *e)
{
	const struct http_challenge *h = st->config;
	const json_t *port = json_object_get(root, "port");
	const char *host = text(root, "hostname"), *agent = text(root, "agentname");
	struct in_addr literal;
	int r;

	if (port && !json_is_integer(port))
		return err_set(e, ERR_INVALID, "failed to unmarshal data: port is not an integer");
	r = check_port(h, json_integer_value(port), e);
	if (r == 0)
		r = check_agent_name(agent, e);
	if (r == 0)
		r = check_hostname(h, host, e);
	if (r)
		return r;
	st->hostname = xstrdup(host);
	st->not_local = h->n_patterns == 0 || inet_pton(AF_INET, host, &literal) != 1;
	st->url = xasprintf(
		"http://%s:%lld/.well-known/spiffe/nodeattestor/http_challenge/%s/challenge", host,
		(long long)json_integer_value(port), agent);
	return make_id(st, e);
}

/* As Go's base64.URLEncoding, which pads. */
static void make_nonce(char ret[static HTTP_CHALLENGE_NONCE + 1])
{
	AUTO_BUF struct buf b = BUF_INIT;
	uint8_t raw[ATTEST_NONCE];

	crypto_random(raw, sizeof(raw));
	base64url_encode(&b, bytes_of(raw, sizeof(raw)));
	buf_str(&b, "=");
	INVARIANT(b.len == HTTP_CHALLENGE_NONCE);
	memcpy(ret, buf_cstr(&b), HTTP_CHALLENGE_NONCE + 1);
}

int http_challenge_begin(struct http_challenge_state *st, struct bytes payload,
	struct buf *ret_challenge, struct err *e)
{
	json_error_t je;
	json_t *root = json_loadb((const char *)payload.p, payload.n, 0, &je);
	int r;

	if (!json_is_object(root)) {
		json_decref(root);
		return err_set(e, ERR_INVALID, "failed to unmarshal data: %s",
			root ? "not an object" : je.text);
	}
	r = take_payload(st, root, e);
	json_decref(root);
	if (r)
		return r;
	make_nonce(st->nonce);
	buf_printf(ret_challenge, "{\"nonce\":\"%s\"}", st->nonce);
	return 0;
}

int http_challenge_check(
	const struct http_challenge_state *st, int status, struct bytes body, struct err *e)
{
	while (body.n && isspace(body.p[0]))
		body = bytes_of(body.p + 1, body.n - 1);
	while (body.n && isspace(body.p[body.n - 1]))
		body.n--;
	if (status != 200 || body.n != HTTP_CHALLENGE_NONCE ||
		!mem_equal_secret(body.p, st->nonce, HTTP_CHALLENGE_NONCE))
		return err_set(e, ERR_DENIED,
			"challenge verification failed: expected nonce was not found in HTTP "
			"response");
	return 0;
}

/* ---- on the loop ---- */

static void free_state(void *state)
{
	http_challenge_state_deinit(state);
	free(state);
}

static void fail(struct attest_session *s, struct err *e)
{
	err_wrap(e, "nodeattestor(http_challenge)");
	attest_step_failed(s, e);
}

struct begun {
	struct attest_session *s;
	struct buf challenge;
	struct err e;
	int r;
};

static void tell_begun(void *arg)
{
	struct begun *b = arg;

	if (b->r)
		fail(b->s, &b->e);
	else
		attest_step_challenge(b->s, buf_view(&b->challenge));
	buf_deinit(&b->challenge);
	free(b);
}

static void begin(struct attest_session *s, struct bytes payload)
{
	struct http_challenge_state *st = xcalloc(1, sizeof(*st));
	struct begun *b = xcalloc(1, sizeof(*b));

	st->config = s->attest->http_challenge;
	s->state = st;
	s->first_use = st->config->tofu;
	*b = (struct begun){ .s = s, .challenge = BUF_INIT };
	b->r = http_challenge_begin(st, payload, &b->challenge, &b->e);
	loop_post(s->attest->o.loop, tell_begun, b);
}

static void fetched(void *arg, int status, struct bytes body, const struct err *fetch_error)
{
	struct attest_session *s = arg;
	struct http_challenge_state *st = s->state;
	struct err e = ERR_INIT;
	int r;

	st->get = NULL;
	log_event(LOG_DEBUG, "attest", "challenge fetched", "url", st->url, "status",
		log_fmt("%d", status), "error", fetch_error->code ? fetch_error->msg : "none",
		NULL);
	if (fetch_error->code)
		r = err_set(&e, ERR_DENIED,
			"challenge verification failed: the challenge could not be fetched from "
			"the agent");
	else
		r = http_challenge_check(st, status, body, &e);
	if (r)
		fail(s, &e);
	else
		attest_step_done(s, st->agent_id, &st->selectors, !st->config->tofu);
}

/* What the agent says is nothing; that it said something means that it is ready. */
static void respond(struct attest_session *s, struct bytes response)
{
	struct http_challenge_state *st = s->state;
	struct http_get_options o = { .url = st->url,
		.allow_plain = true,
		.timeout_ms = FETCH_TIMEOUT_MS,
		.body_max = BODY_MAX,
		.not_local = st->not_local };

	(void)response;
	st->get = http_get(s->attest->o.loop, &o, fetched, s);
}

static bool cancel(struct attest_session *s)
{
	struct http_challenge_state *st = s->state;

	if (!st->get)
		return false;
	http_get_cancel(st->get);
	st->get = NULL;
	return true;
}

const struct attestor attestor_http_challenge = { .type = "http_challenge",
	.begin = begin,
	.respond = respond,
	.free_state = free_state,
	.cancel = cancel };

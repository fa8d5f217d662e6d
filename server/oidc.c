#include "server/oidc.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "lib/http.h"
#include "lib/text.h"
#include "server/certfile.h"

#define JSON_TYPE "application/json"
#define ANY_ORIGIN "Access-Control-Allow-Origin: *\r\n"
#define NO_CACHE                                                                                   \
	"Cache-Control: no-cache, no-store, must-revalidate\r\nPragma: no-cache\r\nExpires: 0\r\n"

struct oidc {
	const struct server_options *o;
	const struct api *api;
	struct http_server *http;
	struct certfile *cert; /* NULL: plain HTTP */
	char *prefix;          /* "" or "/a/b" */
	char *discovery_path, *keys_path;
	char *issuer_keys; /* jwks_uri that follows from jwt_issuer; NULL: there is none */
	struct bundle *of; /* what the keys are of */
	struct buf keys;
	size_t n_keys;
};

/* ---- parts of the configuration ---- */

int oidc_address(const char *s, char **ret_host, int *ret_port, struct err *e)
{
	const char *colon = strrchr(s, ':');
	char *end;
	long port = colon && colon[1] ? strtol(colon + 1, &end, 10) : -1;
	size_t n;

	if (port < 0 || port > 65535 || *end)
		return err_set(e, ERR_INVALID, "\"%s\" is not an address and a port", s);
	n = (size_t)(colon - s);
	if (n == 0)
		*ret_host = xstrdup("0.0.0.0");
	else if (s[0] == '[' && n > 2 && s[n - 1] == ']')
		*ret_host = xstrndup(s + 1, n - 2);
	else
		*ret_host = xstrndup(s, n);
	*ret_port = (int)port;
	return 0;
}

int oidc_url(const char *s, char **ret_origin, char **ret_path, struct err *e)
{
	size_t scheme = strcspn(s, ":/?#"), host, path;

	if (strpbrk(s, " \t\r\n\"<>"))
		return err_set(e, ERR_INVALID, "url could not be parsed");
	if (scheme == 0 || s[scheme] != ':')
		return err_set(e, ERR_INVALID, "url must contain a scheme");
	if (strncmp(s + scheme, "://", 3) != 0)
		return err_set(e, ERR_INVALID, "url must contain a host");
	host = strcspn(s + scheme + 3, "/?#");
	if (host == 0)
		return err_set(e, ERR_INVALID, "url must contain a host");
	s += scheme + 3 + host;
	path = strcspn(s, "?#");
	*ret_origin = xstrndup(s - host - 3 - scheme, scheme + 3 + host);
	while (path && s[path - 1] == '/')
		path--;
	*ret_path = xstrndup(s, path);
	return 0;
}

/* ---- who asks for which host ---- */

/* A proxy in front knows better. */
static const char *host_of(const struct http_request *rq)
{
	return *rq->forwarded_host ? rq->forwarded_host : rq->host;
}

static bool port_ok(const char *port)
{
	return *port == 0 || (*port == ':' && port[1 + strspn(port + 1, "0123456789")] == 0);
}

/* The host without its port must be one of the domains. */
static bool host_allowed(const struct oidc *d, const char *host)
{
	const char *port = host[0] == '[' ? strchr(host, ']') : NULL;
	AUTO(free) char *name = NULL;

	port = port ? port + 1 : host + strcspn(host, ":");
	name = xstrndup(host, (size_t)(port - host));
	return port_ok(port) && strings_has(&d->o->oidc_domains, name);
}

static const char *scheme_of(const struct oidc *d, const struct http_request *rq)
{
	bool plain = !d->cert && strcasecmp(rq->forwarded_proto, "https") != 0;

	return d->o->oidc_allow_insecure_scheme && plain ? "http" : "https";
}

/* ---- /.well-known/openid-configuration ---- */

static void put_json(struct buf *b, const char *s)
{
	json_t *v = json_string(s);
	char *text = v ? json_dumps(v, JSON_ENCODE_ANY) : NULL;

	buf_str(b, text ? text : "\"\"");
	free(text);
	json_decref(v);
}

/* OpenID Connect Discovery 1.0, section 3: what is REQUIRED of the metadata. */
static void put_discovery(struct buf *b, const char *issuer, const char *keys)
{
	buf_str(b, "{\n  \"issuer\": ");
	put_json(b, issuer);
	buf_str(b, ",\n  \"jwks_uri\": ");
	put_json(b, keys);
	buf_str(b, ",\n  \"authorization_endpoint\": \"\",\n"
		   "  \"response_types_supported\": [\n    \"id_token\"\n  ],\n"
		   "  \"subject_types_supported\": [\n    \"public\"\n  ],\n"
		   "  \"id_token_signing_alg_values_supported\": [\n    \"RS256\",\n"
		   "    \"ES256\",\n    \"ES384\"\n  ]\n}");
}

static void discovery(const struct oidc *d, const struct http_request *rq, struct http_response *rs)
{
	const char *host = host_of(rq), *scheme = scheme_of(d, rq);
	AUTO(free) char *issuer = xasprintf("%s://%s%s", scheme, host, d->prefix);
	AUTO(free) char *keys = xasprintf("%s://%s%s/keys", scheme, host, d->prefix);
	const char *jwks = d->o->oidc_jwks_uri ? d->o->oidc_jwks_uri
			   : d->issuer_keys    ? d->issuer_keys
					       : keys;

	if (!host_allowed(d, host)) {
		AUTO(free) char *name = xstrndup(host, strcspn(host, ":"));
		AUTO(free) char *q = text_quote(name);

		rs->status = 400;
		buf_printf(&rs->body, "domain %s is not allowed\n", q);
		return;
	}
	rs->content_type = JSON_TYPE;
	rs->headers = ANY_ORIGIN;
	put_discovery(&rs->body, d->o->oidc_jwt_issuer ? d->o->oidc_jwt_issuer : issuer, jwks);
}

/* ---- /keys ---- */

static const char *algorithm(const struct pubkey *k)
{
	switch (pubkey_type(k)) {
	case KEY_EC_P256:
		return "ES256";
	case KEY_EC_P384:
		return "ES384";
	case KEY_EC_P521:
		return "ES512";
	default:
		return "RS256";
	}
}

/* Members stand in the order that Go's JOSE library writes. */
static json_t *enriched(const struct oidc *d, const json_t *jwk, const struct bundle *b)
{
	static const char *const before[] = { "kty", "kid", "crv" };
	static const char *const after[] = { "x", "y", "n", "e" };
	const char *kid = json_string_value(json_object_get(jwk, "kid"));
	const struct bundle_jwt_key *k = bundle_find_jwt_key(b, kid);
	json_t *ret = json_object();

	if (d->o->oidc_set_key_use)
		json_object_set_new(ret, "use", json_string("sig"));
	for (size_t i = 0; i < ARRAY_LEN(before); i++)
		json_object_set(ret, before[i], json_object_get(jwk, before[i]));
	json_object_set_new(ret, "alg", json_string(algorithm(k->key)));
	for (size_t i = 0; i < ARRAY_LEN(after); i++)
		json_object_set(ret, after[i], json_object_get(jwk, after[i]));
	return ret;
}

/* Written anew only when the bundle has changed. */
static void refresh(struct oidc *d, struct bundle *b)
{
	AUTO_BUF struct buf jwks = BUF_INIT;
	json_t *doc, *keys, *out = json_array();
	char *text;

	if (d->of)
		bundle_unref(d->of);
	d->of = bundle_ref(b);
	bundle_to_jwks(b, &jwks);
	doc = json_loadb((const char *)jwks.p, jwks.len, 0, NULL);
	INVARIANT(doc);
	keys = json_object_get(doc, "keys");
	for (size_t i = 0; i < json_array_size(keys); i++)
		json_array_append_new(out, enriched(d, json_array_get(keys, i), b));
	d->n_keys = json_array_size(out);
	json_object_set_new(doc, "keys", out);
	text = json_dumps(doc, JSON_INDENT(2));
	buf_reset(&d->keys);
	buf_str(&d->keys, text);
	free(text);
	json_decref(doc);
}

static void keys(struct oidc *d, struct http_response *rs)
{
	struct bundle *b = api_bundle(d->api, d->api->trust_domain);

	if (b && b != d->of)
		refresh(d, b);
	if (!b) {
		rs->status = 500;
		buf_str(&rs->body, "document not available\n");
	} else if (d->n_keys == 0) {
		rs->status = 501;
		buf_str(&rs->body, "jwt not supported/enabled in this service\n");
	} else {
		rs->content_type = JSON_TYPE;
		rs->headers = NO_CACHE ANY_ORIGIN;
		buf_bytes(&rs->body, buf_view(&d->keys));
	}
}

/* ---- serving ---- */

static void handle(void *arg, const struct http_request *rq, struct http_response *rs)
{
	struct oidc *d = arg;
	bool is_discovery = strcmp(rq->path, d->discovery_path) == 0;
	bool is_keys = strcmp(rq->path, d->keys_path) == 0;

	if (!is_discovery && !is_keys) {
		rs->status = 404;
		buf_str(&rs->body, "404 page not found\n");
	} else if (strcmp(rq->method, "GET") != 0) {
		rs->status = 405;
		buf_str(&rs->body, "method not allowed\n");
		rs->headers = "Allow: GET\r\n";
	} else if (is_discovery) {
		discovery(d, rq, rs);
	} else {
		keys(d, rs);
	}
	if (d->o->oidc_log_requests)
		log_event(LOG_INFO, "oidc", "request", "method", rq->method, "path", rq->path,
			"host", host_of(rq), "status", log_fmt("%d", rs->status ? rs->status : 200),
			NULL);
}

static struct tls_ctx *tls(void *arg)
{
	struct oidc *d = arg;

	return certfile_tls(d->cert);
}

static void set_paths(struct oidc *d)
{
	const char *p = d->o->oidc_server_path_prefix ? d->o->oidc_server_path_prefix : "";
	AUTO(free) char *origin = NULL;
	AUTO(free) char *path = NULL;
	size_t n;

	while (*p == '/')
		p++;
	n = strlen(p);
	while (n && p[n - 1] == '/')
		n--;
	d->prefix = n ? xasprintf("/%.*s", (int)n, p) : xstrdup("");
	d->discovery_path = xasprintf("%s/.well-known/openid-configuration", d->prefix);
	d->keys_path = xasprintf("%s/keys", d->prefix);
	if (d->o->oidc_jwt_issuer && oidc_url(d->o->oidc_jwt_issuer, &origin, &path, NULL) == 0)
		d->issuer_keys = xasprintf("%s%s/keys", origin, path);
}

/* Which of the three ways to listen; `host` is to be freed. */
static int listen_at(
	struct oidc *d, struct loop *l, struct http_server_options *ho, char **host, struct err *e)
{
	const struct server_options *o = d->o;
	int r = 0;

	if (o->oidc_listen_socket_path) {
		ho->unix_path = o->oidc_listen_socket_path;
		return 0;
	}
	r = oidc_address(
		o->oidc_serving_cert ? o->oidc_addr : o->oidc_insecure_addr, host, &ho->port, e);
	ho->host = *host;
	if (!r && o->oidc_serving_cert) {
		ho->tls = tls;
		r = certfile_open(
			l, o->oidc_cert_file, o->oidc_key_file, o->oidc_file_sync_ns, &d->cert, e);
	}
	return r;
}

int oidc_open(struct loop *l, const struct server_options *o, const struct api *a,
	struct oidc **ret, struct err *e)
{
	struct oidc *d = xcalloc(1, sizeof(*d));
	struct http_server_options ho = { .handle = handle, .arg = d };
	AUTO(free) char *host = NULL;
	int r;

	d->o = o;
	d->api = a;
	d->keys = BUF_INIT;
	set_paths(d);
	r = listen_at(d, l, &ho, &host, e);
	if (!r)
		r = http_server_open(l, &ho, &d->http, e);
	if (r) {
		oidc_close(d);
		return err_wrap(e, "oidc");
	}
	log_event(LOG_INFO, "oidc", "listening", "address", ho.host, "port",
		ho.host ? log_fmt("%d", http_server_port(d->http)) : NULL, "socket", ho.unix_path,
		NULL);
	if (o->oidc_allow_insecure_scheme)
		log_event(LOG_WARN, "oidc",
			"allow_insecure_scheme is set: the documents may name http addresses; only "
			"for tests, or where the way to the clients is trusted",
			NULL);
	*ret = d;
	return 0;
}

int oidc_port(const struct oidc *d)
{
	return http_server_port(d->http);
}

void oidc_close(struct oidc *d)
{
	if (!d)
		return;
	http_server_close(d->http);
	certfile_close(d->cert);
	if (d->of)
		bundle_unref(d->of);
	buf_deinit(&d->keys);
	free(d->prefix);
	free(d->discovery_path);
	free(d->keys_path);
	free(d->issuer_keys);
	free(d);
}

/*
 * HTTP/1.1 on the loop, small and bounded: health, metrics, bundle endpoint and OIDC documents as a
 * server; bundle fetching (and later the kubelet, the Kubernetes API, the Docker socket) as a
 * client. Parser: libhttp-parser.
 */
#ifndef ASSAY_LIB_HTTP_H
#define ASSAY_LIB_HTTP_H

#include "lib/door.h"

enum {
	HTTP_HEAD_MAX = 16 << 10,
	HTTP_REQUEST_BODY_MAX = 64 << 10,
	HTTP_CONNS_MAX = 256, /* of one server; more take the place of those without a request */
	HTTP_IDLE_MS = 30000
};

struct http_request {
	const char *method, *path, *query, *host; /* path without the query */
	/* What a proxy in front says of the client's request; "" when it says nothing. */
	const char *forwarded_host, *forwarded_proto;
	struct bytes body;
};
struct http_response {
	int status;               /* 0 = 200 */
	const char *content_type; /* NULL: text/plain; charset=utf-8 */
	const char *headers;      /* further lines, each with its CRLF; static. NULL: none */
	struct buf body;          /* owned by the server after the handler */
};
struct http_server;
struct http_server_options {
	const char *host;
	int port;
	const char *unix_path;
	struct tls_ctx *(*tls)(void *arg); /* NULL: plain HTTP */
	void (*handle)(void *arg, const struct http_request *rq, struct http_response *rs);
	void *arg;
};
int http_server_open(struct loop *l, const struct http_server_options *o, struct http_server **ret,
	struct err *e) MUST_USE;
int http_server_port(const struct http_server *s);
/* At once. The loop must run on for the memory to come back. */
void http_server_close(struct http_server *s);

struct http_get_options {
	const char *url; /* https://host[:port]/path, or http:// with unix_path or allow_plain */
	const char *unix_path;
	bool allow_plain;
	tls_verify_fn *verify; /* NULL: WebPKI by the host name */
	void *verify_arg;
	int timeout_ms;
	size_t body_max;
	bool not_local; /* as dial_options */
};
struct http_get;
/* done(arg, status, body, e): once, never from inside http_get(), after which g is gone; e->code 0
 * on an answer of any status. No redirects. body_max 0: 1 MB; timeout_ms 0: 30 s. */
struct http_get *http_get(struct loop *l, const struct http_get_options *o,
	void (*done)(void *arg, int status, struct bytes body, const struct err *e), void *arg);
void http_get_cancel(struct http_get *g);

#endif

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

/*
 * A client of one origin, which keeps a few connections open between calls: the kubelet, the
 * Kubernetes API, a Docker socket. Loop thread only.
 */
enum {
	HTTP_CLIENT_IDLE_MAX = 4, /* connections kept open without a call */
	HTTP_CLIENT_IDLE_MS = 60000,
	HTTP_CLIENT_CALLS_MAX = 256, /* under way at once; further ones wait */
};
struct http_client;
struct http_client_options {
	const char *url; /* https://host[:port][/prefix]; http:// with unix_path or allow_plain */
	const char *unix_path; /* NULL: TCP */
	bool allow_plain;
	/* The context of the next connection: with a client certificate, or renewed. NULL: one
	 * without a certificate, TLS 1.2 allowed. */
	struct tls_ctx *(*tls)(void *arg);
	tls_verify_fn *verify; /* NULL: WebPKI by the host name. verify_arg outlives the client */
	void *verify_arg;
	const char *sni; /* NULL: the host of the URL; also the name that WebPKI asks for */
	void *arg;       /* of tls */
	bool not_local;  /* as dial_options */
	int connect_ms;  /* for connecting and the handshake; 0: 30 s */
	bool no_reuse;   /* a connection for each call */
	/* Under way at once, those with part() not counted: fewer connections in a rush, each used
	 * more often. 0: HTTP_CLIENT_CALLS_MAX, which is the most in any case. */
	int calls_max;
};
/* ERR_INVALID: the URL, which may have no query. Options are copied. */
int http_client_new(struct loop *l, const struct http_client_options *o, struct http_client **ret,
	struct err *e) MUST_USE;
/* Cancels what is under way. Free of NULL is fine. */
void http_client_free(struct http_client *c);
/* New connections from now on, for when certificates or tokens changed: those open are closed when
 * their call ends. */
void http_client_renew(struct http_client *c);
const char *http_client_host(const struct http_client *c); /* of the URL, without port */

struct http_answer {
	int status;
	const char *content_type; /* "" when there is none */
	int retry_after_s;        /* -1: the header is not there */
	const char *header;       /* the value of want_header; "" when it is not there */
	struct bytes body;        /* what part() did not take */
};
struct http_call_options {
	const char *method; /* NULL: GET */
	const char *path;   /* with the query; begins with a slash */
	/* Further header lines, each with its CRLF (authorization among them: wiped after use). Not
	 * those that frame the message: Host, Connection, Content-Length, Content-Type,
	 * Transfer-Encoding, TE, Upgrade, Expect, Trailer. */
	const char *headers;
	const char *content_type; /* of body */
	const char
		*want_header; /* one of the answer's, in any case; outlives the call. NULL: none */
	struct bytes body;    /* copied */
	int timeout_ms;       /* for the whole; 0: 30 s; -1: none */
	int idle_ms;          /* without a byte from the other side; 0: none */
	size_t body_max;      /* gathered; 0: 1 MB. Longer: ERR_EXHAUSTED */
	/* Takes the body of a 2xx as it comes, in place of gathering it. False: enough, the call
	 * ends as if the body did. The call may not be cancelled from inside. */
	bool (*part)(void *arg, struct bytes part);
	/* With part: the header of a 2xx is there. NULL is fine. */
	void (*begun)(void *arg);
	/* Doing it twice is like doing it once, whatever the method. A connection that was kept
	 * open may turn out to be closed when it is used again: then GET, HEAD, PUT, DELETE,
	 * OPTIONS and such calls are sent once more, others fail with ERR_UNAVAILABLE. */
	bool repeatable;
	/* Once, never from inside http_call(). e->code 0 on an answer of any status; else
	 * ERR_INVALID (the call), ERR_DEADLINE, ERR_EXHAUSTED (too large), ERR_UNAVAILABLE, or
	 * ERR_INTERNAL (what came is not HTTP). The client may be freed here. */
	void (*done)(void *arg, const struct http_answer *a, const struct err *e);
	void *arg;
};
struct http_call;
struct http_call *http_call(struct http_client *c, const struct http_call_options *o);
void http_call_cancel(struct http_call *c); /* done is not called. NULL is fine */

#endif

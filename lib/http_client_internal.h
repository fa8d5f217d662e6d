/* Inside of the HTTP client only. */
#ifndef ASSAY_LIB_HTTP_CLIENT_INTERNAL_H
#define ASSAY_LIB_HTTP_CLIENT_INTERNAL_H

#include <uv.h>

#include "lib/http_message.h"
#include "lib/list.h"

enum { HTTP_BODY_MAX_DEFAULT = 1 << 20, HTTP_TIMEOUT_MS_DEFAULT = 30000 };

struct http_url {
	bool https;
	char *host;
	int port;
	char *authority; /* as the Host header has it */
	char *path;      /* with the query; begins with a slash */
	bool has_query;
};
/* Plain http is for those who said so. url is untouched on failure. */
int http_url_parse(struct http_url *url, const char *text, bool plain, struct err *e) MUST_USE;
void http_url_deinit(struct http_url *url);
/* RFC 6066 section 3: literal addresses are not permitted in "HostName". */
bool http_host_is_address(const char *host);

struct http_client {
	struct loop *loop;
	struct http_url url;
	char *unix_path;
	char *sni;
	struct tls_ctx *(*tls)(void *arg);
	void *arg;
	struct tls_ctx *own_tls; /* without a certificate, when tls is NULL */
	tls_verify_fn *verify;
	void *verify_arg;
	bool not_local, no_reuse;
	int connect_ms;
	unsigned generation;
	struct list conns; /* each that is open, also those that close */
	struct list idle;  /* the one used last at the end */
	int n_idle;
	struct list active; /* calls */
	int n_active;
	int n_plain; /* of these, without part() */
	int calls_max;
	struct list waiting;
	struct list refused; /* calls that are told so soon */
};

/* A connection. It outlives its client until libuv has closed it. */
struct client_conn {
	struct list in_client;
	struct list in_idle;
	struct http_client *client; /* NULL: gone */
	struct http_call *call;     /* NULL: idle, or closing */
	struct loop *loop;
	unsigned generation;
	bool used;    /* before the call at hand */
	bool heard;   /* a byte of the answer came */
	bool writing; /* the request is not out yet */
	uv_pipe_t pipe;
	uv_write_t write;
	struct buf request;
	struct http_message message;
	struct loop_timer *idle_timer;
};

struct http_call {
	struct list node; /* active, waiting or refused */
	struct http_client *client;
	struct client_conn *conn;
	struct dial *dial;
	struct loop_timer *timer;
	struct loop_timer *idle_timer;
	bool posted; /* a function of ours is on its way */
	bool over;   /* done was called, or never will be */
	bool active; /* counted */
	bool repeatable, repeated;
	char *method;
	struct buf head; /* the request line and fields, secret */
	struct buf body; /* of the request */
	const char *want_header;
	size_t body_max;
	int idle_ms;
	bool (*part)(void *arg, struct bytes part);
	void (*begun)(void *arg);
	void (*done)(void *arg, const struct http_answer *a, const struct err *e);
	void *arg;
	struct err e;
};

/* ---- connections (http_client_conn.c), which tell calls (http_client.c) ---- */

/* Takes a connected fd over; NULL when that fails, and fd is closed. */
struct client_conn *client_conn_new(struct http_client *c, int fd);
/* Sends call's request. */
void client_conn_use(struct client_conn *conn, struct http_call *call);
/* One that waits for a call, or NULL. */
struct client_conn *client_conn_idle(struct http_client *c);
/* The call is over: kept for another one, if it is as good as new. */
void client_conn_keep(struct client_conn *conn);
void client_conn_close(struct client_conn *conn);
/* The answer is complete. */
void http_call_answered(struct http_call *call);
/* The connection is of no use any more. */
void http_call_broken(struct http_call *call, int code, const char *text);
void http_call_heard(struct http_call *call);

#endif

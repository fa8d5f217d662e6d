#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#include "lib/http_message.h"

enum { BODY_MAX_DEFAULT = 1 << 20, TIMEOUT_MS_DEFAULT = 30000 };

struct http_get {
	struct loop *loop;
	struct dial *dial;
	struct loop_timer *timer;
	struct tls_ctx *tls;
	char *host;
	char *authority; /* as the Host header has it */
	char *target;
	char *unix_path;
	int port;
	bool https;
	bool over; /* done was called, or never will be */
	bool posted;
	bool open; /* pipe is in use */
	tls_verify_fn *verify;
	void *verify_arg;
	uv_pipe_t pipe;
	uv_write_t write;
	struct buf request;
	struct http_message message;
	uint8_t in[8192];
	struct err e;
	void (*done)(void *arg, int status, struct bytes body, const struct err *e);
	void *arg;
};

static void get_free(struct http_get *g)
{
	http_message_deinit(&g->message);
	buf_deinit(&g->request);
	free(g->host);
	free(g->authority);
	free(g->target);
	free(g->unix_path);
	if (g->tls)
		tls_ctx_unref(g->tls);
	free(g);
}

static void get_closed(uv_handle_t *h)
{
	get_free(h->data);
}

/* Lets go of everything; memory follows when libuv is done with it. */
static void get_drop(struct http_get *g)
{
	g->over = true;
	if (g->dial)
		dial_cancel(g->dial);
	g->dial = NULL;
	loop_timer_free(g->timer);
	g->timer = NULL;
	if (g->open)
		uv_close((uv_handle_t *)&g->pipe, get_closed);
	else if (!g->posted) /* else when the post runs */
		get_free(g);
}

static void get_done(struct http_get *g)
{
	struct bytes none = { 0 };

	if (g->over)
		return;
	g->over = true;
	if (g->e.code != 0)
		g->done(g->arg, 0, none, &g->e);
	else
		g->done(g->arg, (int)g->message.parser.status_code, buf_view(&g->message.body),
			&g->e);
	get_drop(g);
}

static void get_fail(struct http_get *g, int code, const char *text)
{
	err_set(&g->e, code, "%s", text);
	get_done(g);
}

static void get_late(void *arg)
{
	get_fail(arg, ERR_DEADLINE, "no answer in time");
}

/* ---- the exchange ---- */

static void get_check(struct http_get *g, bool eof)
{
	if (eof)
		http_message_eof(&g->message);
	if (g->message.bad == 413)
		get_fail(g, ERR_EXHAUSTED, "answer is too large");
	else if (g->message.bad)
		get_fail(g, ERR_INTERNAL,
			eof ? "connection ended within the answer" : "answer is not HTTP");
	else if (g->message.complete)
		get_done(g);
}

static void on_alloc(uv_handle_t *h, size_t suggested, uv_buf_t *b)
{
	struct http_get *g = h->data;

	(void)suggested;
	*b = uv_buf_init((char *)g->in, sizeof(g->in));
}

static void on_data(uv_stream_t *st, ssize_t n, const uv_buf_t *b)
{
	struct http_get *g = st->data;

	(void)b;
	if (g->over)
		return;
	if (n == UV_EOF) {
		get_check(g, true);
	} else if (n < 0) {
		get_fail(g, ERR_UNAVAILABLE, uv_strerror((int)n));
	} else if (n > 0) {
		http_message_feed(&g->message, bytes_of(g->in, (size_t)n));
		get_check(g, false);
	}
}

static void on_written(uv_write_t *w, int status)
{
	struct http_get *g = w->data;

	/* A server may answer and close before it has read everything: reading decides. */
	(void)g;
	(void)status;
}

static void on_dialled(void *arg, int fd, const struct err *e)
{
	struct http_get *g = arg;
	uv_buf_t out;

	g->dial = NULL;
	if (fd < 0) {
		g->e = *e;
		get_done(g);
		return;
	}
	INVARIANT(uv_pipe_init(loop_uv(g->loop), &g->pipe, 0) == 0);
	g->pipe.data = g;
	g->open = true;
	if (uv_pipe_open(&g->pipe, fd) != 0) {
		close(fd);
		get_fail(g, ERR_INTERNAL, "cannot use the connection");
		return;
	}
	buf_printf(&g->request,
		"GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: assay/" ASSAY_VERSION
		"\r\nAccept: */*\r\nConnection: close\r\n\r\n",
		g->target, g->authority);
	out = uv_buf_init((char *)g->request.p, (unsigned)g->request.len);
	g->write.data = g;
	if (uv_write(&g->write, (uv_stream_t *)&g->pipe, &out, 1, on_written) != 0 ||
		uv_read_start((uv_stream_t *)&g->pipe, on_alloc, on_data) != 0)
		get_fail(g, ERR_UNAVAILABLE, "cannot write the request");
}

/* ---- the request ---- */

static int verify(void *arg, const struct x509_chain *peer, struct err *e)
{
	struct http_get *g = arg;

	if (g->verify)
		return g->verify(g->verify_arg, peer, e);
	return tls_verify_web(peer, g->host, clock_wall(), e);
}

static char *url_part(
	const char *url, const struct http_parser_url *u, enum http_parser_url_fields f)
{
	return xstrndup(url + u->field_data[f].off, u->field_data[f].len);
}

static bool has(const struct http_parser_url *u, enum http_parser_url_fields f)
{
	return (u->field_set & (1 << f)) != 0;
}

static void take_target(struct http_get *g, const char *url, const struct http_parser_url *u)
{
	AUTO(free) char *path = has(u, UF_PATH) ? url_part(url, u, UF_PATH) : xstrdup("/");
	AUTO(free) char *query = has(u, UF_QUERY) ? url_part(url, u, UF_QUERY) : NULL;
	bool v6;

	g->target = query ? xasprintf("%s?%s", path, query) : xstrdup(path);
	g->host = url_part(url, u, UF_HOST);
	g->port = has(u, UF_PORT) ? u->port : g->https ? 443 : 80;
	v6 = strchr(g->host, ':') != NULL;
	g->authority = has(u, UF_PORT) ? xasprintf(v6 ? "[%s]:%d" : "%s:%d", g->host, g->port)
				       : xasprintf(v6 ? "[%s]" : "%s", g->host);
}

static int take_url(struct http_get *g, const struct http_get_options *o, struct err *e)
{
	struct http_parser_url u;
	size_t n = strlen(o->url);

	http_parser_url_init(&u);
	if (n > HTTP_HEAD_MAX / 2 || strpbrk(o->url, " \t\r\n") ||
		http_parser_parse_url(o->url, n, 0, &u) != 0 || !has(&u, UF_HOST) ||
		!has(&u, UF_SCHEMA) || has(&u, UF_USERINFO))
		return err_set(e, ERR_INVALID, "not a URL: %s", o->url);
	g->https = strncmp(o->url, "https://", 8) == 0;
	if (!g->https && strncmp(o->url, "http://", 7) != 0)
		return err_set(e, ERR_INVALID, "not an https URL: %s", o->url);
	if (!g->https && !o->unix_path && !o->allow_plain)
		return err_set(e, ERR_INVALID, "plain http is not allowed here: %s", o->url);
	take_target(g, o->url, &u);
	return 0;
}

/* RFC 6066 section 3: literal addresses are not permitted in "HostName". */
static bool is_address(const char *host)
{
	unsigned char a[16];

	return uv_inet_pton(AF_INET, host, a) == 0 || uv_inet_pton(AF_INET6, host, a) == 0;
}

static int get_begin(struct http_get *g, const struct http_get_options *o, struct err *e)
{
	struct tls_options t = { .alpn = "http/1.1", .allow_tls12 = true };
	struct dial_options d = { 0 };
	int r = take_url(g, o, e);

	if (r != 0)
		return r;
	if (g->https && (r = tls_ctx_new(&t, &g->tls, e)) != 0)
		return r;
	g->unix_path = o->unix_path ? xstrdup(o->unix_path) : NULL;
	d.unix_path = g->unix_path;
	d.tcp_host = g->unix_path ? NULL : g->host;
	d.tcp_port = g->port;
	d.tls = g->tls;
	d.sni = g->tls && !is_address(g->host) ? g->host : NULL;
	d.verify = g->tls ? verify : NULL;
	d.verify_arg = g;
	d.not_local = o->not_local;
	d.timeout_ms = o->timeout_ms > 0 ? o->timeout_ms : TIMEOUT_MS_DEFAULT;
	loop_timer_set(g->timer, d.timeout_ms * NS_PER_MS);
	g->dial = door_dial(g->loop, &d, on_dialled, g);
	return 0;
}

static void get_refused(void *arg)
{
	struct http_get *g = arg;

	g->posted = false;
	if (g->over)
		get_free(g);
	else
		get_done(g);
}

struct http_get *http_get(struct loop *l, const struct http_get_options *o,
	void (*done)(void *arg, int status, struct bytes body, const struct err *e), void *arg)
{
	struct http_get *g = xcalloc(1, sizeof(*g));

	g->loop = l;
	g->request = BUF_INIT;
	g->done = done;
	g->arg = arg;
	g->verify = o->verify;
	g->verify_arg = o->verify_arg;
	http_message_init(&g->message, false, o->body_max ? o->body_max : BODY_MAX_DEFAULT);
	g->timer = loop_timer_new(l, get_late, g);
	if (get_begin(g, o, &g->e) != 0) {
		g->posted = true;
		loop_post(l, get_refused, g);
	}
	return g;
}

void http_get_cancel(struct http_get *g)
{
	if (g && !g->over)
		get_drop(g);
}

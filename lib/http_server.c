#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <uv.h>

#include "lib/http_message.h"
#include "lib/list.h"

enum {
	READ_SIZE = 8192,
	LINGER_MS = 2000, /* how long the rest of a refused request is taken in */
};

struct http_server {
	struct loop *loop;
	struct http_server_options o;
	struct door *door; /* NULL: closing */
	bool door_open;    /* until door_close() is done */
	struct list conns;
	size_t n_conns;
};

struct http_conn {
	struct list node;
	struct http_server *server;
	uv_pipe_t pipe;
	uv_write_t write;
	uv_shutdown_t shutdown;
	struct loop_timer *timer; /* a request, or an answer, must be through by then */
	struct http_message message;
	struct buf head;
	struct buf body;
	bool busy; /* an answer is being written */
	bool keep_alive;
	uint8_t in[READ_SIZE];
	size_t in_at;
	size_t in_len;
};

static void server_check(struct http_server *s)
{
	if (!s->door && !s->door_open && list_empty(&s->conns))
		free(s);
}

static void conn_closed(uv_handle_t *h)
{
	struct http_conn *c = h->data;
	struct http_server *s = c->server;

	list_remove(&c->node);
	s->n_conns--;
	http_message_deinit(&c->message);
	buf_deinit(&c->head);
	buf_deinit(&c->body);
	free(c);
	server_check(s);
}

static void conn_close(struct http_conn *c)
{
	if (uv_is_closing((uv_handle_t *)&c->pipe))
		return;
	loop_timer_free(c->timer);
	c->timer = NULL;
	uv_close((uv_handle_t *)&c->pipe, conn_closed);
}

static void conn_late(void *arg)
{
	conn_close(arg);
}

static void conn_go_on(struct http_conn *c);

static void on_alloc(uv_handle_t *h, size_t suggested, uv_buf_t *b)
{
	struct http_conn *c = h->data;

	(void)suggested;
	*b = uv_buf_init((char *)c->in, sizeof(c->in));
}

static void on_rest(uv_stream_t *st, ssize_t n, const uv_buf_t *b)
{
	(void)b;
	if (n < 0)
		conn_close(st->data);
}

static void conn_shut(uv_shutdown_t *r, int status)
{
	if (status != 0 && status != UV_ECANCELED)
		conn_close(r->data);
}

/* RFC 9112 section 9.6: closing with input unread would reset the connection, and the client might
 * never see the answer. So the write side goes first. */
static void conn_linger(struct http_conn *c)
{
	c->busy = false;
	c->shutdown.data = c;
	loop_timer_set(c->timer, LINGER_MS * NS_PER_MS);
	if (uv_shutdown(&c->shutdown, (uv_stream_t *)&c->pipe, conn_shut) != 0 ||
		uv_read_start((uv_stream_t *)&c->pipe, on_alloc, on_rest) != 0)
		conn_close(c);
}

static void conn_written(uv_write_t *w, int status)
{
	struct http_conn *c = w->data;

	if (status == UV_ECANCELED)
		return;
	if (status != 0 || !c->server->door) {
		conn_close(c);
		return;
	}
	if (!c->keep_alive) {
		conn_linger(c);
		return;
	}
	c->busy = false;
	buf_deinit(&c->body);
	buf_reset(&c->head);
	http_message_next(&c->message);
	loop_timer_set(c->timer, HTTP_IDLE_MS * NS_PER_MS);
	conn_go_on(c);
}

/* RFC 9110 section 6.6.1: an origin server with a clock MUST generate a Date. */
static void put_date(struct buf *b)
{
	time_t now = (time_t)clock_wall().sec;
	char text[64];
	struct tm tm;

	gmtime_r(&now, &tm);
	strftime(text, sizeof(text), "Date: %a, %d %b %Y %H:%M:%S GMT\r\n", &tm);
	buf_str(b, text);
}

static void conn_write(struct http_conn *c, struct http_response *rs, bool with_body)
{
	int status = rs->status ? rs->status : 200;
	uv_buf_t out[2];

	c->busy = true;
	c->body = rs->body;
	buf_printf(&c->head, "HTTP/1.1 %d %s\r\n", status, http_status_text(status));
	put_date(&c->head);
	buf_printf(&c->head, "Content-Type: %s\r\nContent-Length: %zu\r\n",
		rs->content_type ? rs->content_type : "text/plain; charset=utf-8", c->body.len);
	if (rs->headers)
		buf_str(&c->head, rs->headers);
	buf_str(&c->head, c->keep_alive ? "\r\n" : "Connection: close\r\n\r\n");
	out[0] = uv_buf_init((char *)c->head.p, (unsigned)c->head.len);
	out[1] = uv_buf_init((char *)c->body.p, with_body ? (unsigned)c->body.len : 0);
	loop_timer_set(c->timer, HTTP_IDLE_MS * NS_PER_MS);
	c->write.data = c;
	if (uv_write(&c->write, (uv_stream_t *)&c->pipe, out, with_body && c->body.len > 0 ? 2 : 1,
		    conn_written) != 0)
		conn_close(c);
}

static void conn_refuse(struct http_conn *c, int status)
{
	struct http_response rs = { .status = status, .body = BUF_INIT };

	buf_printf(&rs.body, "%s\n", http_status_text(status));
	c->keep_alive = false;
	conn_write(c, &rs, true);
}

static void conn_handle(struct http_conn *c)
{
	struct http_request rq = http_message_request(&c->message);
	struct http_response rs = { .body = BUF_INIT };

	c->keep_alive = c->message.keep_alive && c->server->door;
	c->server->o.handle(c->server->o.arg, &rq, &rs);
	conn_write(c, &rs, strcmp(rq.method, "HEAD") != 0);
}

static void on_data(uv_stream_t *st, ssize_t n, const uv_buf_t *b)
{
	struct http_conn *c = st->data;

	(void)b;
	if (n < 0) {
		conn_close(c);
		return;
	}
	c->in_at = 0;
	c->in_len = (size_t)n;
	if (n > 0)
		conn_go_on(c);
}

/* Takes one request from what was read; reads on only while none is being answered. */
static void conn_go_on(struct http_conn *c)
{
	c->in_at +=
		http_message_feed(&c->message, bytes_of(c->in + c->in_at, c->in_len - c->in_at));
	if (c->message.bad || c->message.complete) {
		uv_read_stop((uv_stream_t *)&c->pipe);
		if (c->message.bad)
			conn_refuse(c, c->message.bad);
		else
			conn_handle(c);
		return;
	}
	uv_read_start((uv_stream_t *)&c->pipe, on_alloc, on_data);
}

/* Whoever has waited longest without a request makes room: slow clients must not keep others out.
 */
static bool make_room(struct http_server *s)
{
	list_each (c, &s->conns, struct http_conn, node) {
		if (!c->busy && !uv_is_closing((uv_handle_t *)&c->pipe)) {
			conn_close(c);
			return true;
		}
	}
	return false;
}

static void on_conn(void *arg, int fd, struct peer *peer)
{
	struct http_server *s = arg;
	struct http_conn *c;

	(void)peer;
	if (s->n_conns >= 2 * HTTP_CONNS_MAX || (s->n_conns >= HTTP_CONNS_MAX && !make_room(s))) {
		close(fd);
		return;
	}
	c = xcalloc(1, sizeof(*c));
	c->server = s;
	INVARIANT(uv_pipe_init(loop_uv(s->loop), &c->pipe, 0) == 0);
	c->pipe.data = c;
	http_message_init(&c->message, true, HTTP_REQUEST_BODY_MAX);
	c->head = BUF_INIT;
	c->body = BUF_INIT;
	list_append(&s->conns, &c->node);
	s->n_conns++;
	c->timer = loop_timer_new(s->loop, conn_late, c);
	loop_timer_set(c->timer, HTTP_IDLE_MS * NS_PER_MS);
	if (uv_pipe_open(&c->pipe, fd) != 0) {
		close(fd);
		conn_close(c);
		return;
	}
	conn_go_on(c);
}

static struct tls_ctx *server_tls(void *arg)
{
	struct http_server *s = arg;

	return s->o.tls(s->o.arg);
}

int http_server_open(struct loop *l, const struct http_server_options *o, struct http_server **ret,
	struct err *e)
{
	struct http_server *s = xcalloc(1, sizeof(*s));
	struct door_options d = {
		.unix_path = o->unix_path,
		.unix_mode = 0777,
		.tcp_host = o->host,
		.tcp_port = o->port,
		.tls = o->tls ? server_tls : NULL,
		.raw = true,
		.on_conn = on_conn,
		.arg = s,
	};
	int r;

	s->loop = l;
	s->o = *o;
	list_init(&s->conns);
	r = door_open(l, &d, &s->door, e);
	if (r != 0) {
		free(s);
		return r;
	}
	s->door_open = true;
	*ret = s;
	return 0;
}

int http_server_port(const struct http_server *s)
{
	return door_port(s->door);
}

static void door_closed(void *arg)
{
	struct http_server *s = arg;

	s->door_open = false;
	server_check(s);
}

void http_server_close(struct http_server *s)
{
	struct door *d;

	if (!s)
		return;
	d = s->door;
	s->door = NULL;
	list_each (c, &s->conns, struct http_conn, node) {
		if (!c->busy) /* else once the answer is out */
			conn_close(c);
	}
	door_close(d, 0, door_closed, s);
}

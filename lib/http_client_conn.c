/* The connections of an HTTP client: one call at a time each, kept open between them. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/http_client_internal.h"

enum { READ_SIZE = 16 << 10 };

static void conn_closed(uv_handle_t *h)
{
	struct client_conn *c = h->data;

	http_message_deinit(&c->message);
	buf_deinit(&c->request);
	free(c);
}

static void leave_pool(struct client_conn *c)
{
	if (list_empty(&c->in_idle))
		return;
	list_remove(&c->in_idle);
	c->client->n_idle--;
}

void client_conn_close(struct client_conn *c)
{
	if (uv_is_closing((uv_handle_t *)&c->pipe))
		return;
	leave_pool(c);
	list_remove(&c->in_client);
	c->client = NULL;
	c->call = NULL;
	loop_timer_free(c->idle_timer);
	c->idle_timer = NULL;
	uv_close((uv_handle_t *)&c->pipe, conn_closed);
}

static void idle_over(void *arg)
{
	client_conn_close(arg);
}

static void on_alloc(uv_handle_t *h, size_t suggested, uv_buf_t *b)
{
	(void)h;
	(void)suggested;
	*b = uv_buf_init(xmalloc(READ_SIZE), READ_SIZE);
}

static void check(struct client_conn *c, bool all_used)
{
	struct http_message *m = &c->message;

	if (m->bad == 413) {
		http_call_broken(c->call, ERR_EXHAUSTED, "answer is too large");
	} else if (m->bad) {
		http_call_broken(c->call, ERR_INTERNAL, "answer is not HTTP");
	} else if (m->complete) {
		/* Bytes after the answer are nobody's; a switch of protocols was not asked for. */
		if (!all_used || m->parser.upgrade || m->parser.status_code == 101)
			m->keep_alive = false;
		http_call_answered(c->call);
	}
}

static void ended(struct client_conn *c)
{
	http_message_eof(&c->message);
	if (c->message.complete && !c->message.bad)
		http_call_answered(c->call);
	else
		http_call_broken(c->call, c->heard ? ERR_INTERNAL : ERR_UNAVAILABLE,
			"connection ended within the answer");
}

static void on_data(uv_stream_t *st, ssize_t n, const uv_buf_t *b)
{
	AUTO(free) char *input = b->base;
	struct client_conn *c = st->data;
	size_t used;

	if (n == 0 || uv_is_closing((uv_handle_t *)&c->pipe))
		return;
	if (!c->call) { /* the end, or an answer that nobody asked for */
		client_conn_close(c);
		return;
	}
	if (n == UV_EOF) {
		ended(c);
	} else if (n < 0) {
		http_call_broken(c->call, ERR_UNAVAILABLE, uv_strerror((int)n));
	} else {
		c->heard = true;
		http_call_heard(c->call);
		used = http_message_feed(&c->message, bytes_of((const uint8_t *)input, (size_t)n));
		check(c, used == (size_t)n);
	}
}

/* A server may answer and close before it has read everything: reading decides. */
static void on_written(uv_write_t *w, int status)
{
	struct client_conn *c = w->data;

	(void)status;
	c->writing = false;
	buf_deinit(&c->request);
}

struct client_conn *client_conn_new(struct http_client *client, int fd)
{
	struct client_conn *c = xcalloc(1, sizeof(*c));

	c->client = client;
	c->loop = client->loop;
	c->generation = client->generation;
	c->request = BUF_INIT_SECRET;
	list_init(&c->in_idle);
	list_append(&client->conns, &c->in_client);
	http_message_init(&c->message, false, 0);
	INVARIANT(uv_pipe_init(loop_uv(c->loop), &c->pipe, 0) == 0);
	c->pipe.data = c;
	c->write.data = c;
	c->idle_timer = loop_timer_new(c->loop, idle_over, c);
	if (uv_pipe_open(&c->pipe, fd) != 0)
		close(fd);
	else if (uv_read_start((uv_stream_t *)&c->pipe, on_alloc, on_data) == 0)
		return c;
	client_conn_close(c);
	return NULL;
}

static bool take_part(void *arg, struct bytes v)
{
	struct client_conn *c = arg;

	return c->call->part(c->call->arg, v);
}

static void head_came(void *arg)
{
	struct client_conn *c = arg;

	if (c->call->begun)
		c->call->begun(c->call->arg);
}

void client_conn_use(struct client_conn *c, struct http_call *call)
{
	uv_buf_t out;

	leave_pool(c);
	loop_timer_stop(c->idle_timer);
	c->call = call;
	call->conn = c;
	c->heard = false;
	http_message_deinit(&c->message);
	http_message_init(&c->message, false, call->body_max);
	c->message.no_body = strcmp(call->method, "HEAD") == 0;
	c->message.want = call->want_header;
	c->message.part = call->part ? take_part : NULL;
	c->message.begun = call->part ? head_came : NULL;
	c->message.part_arg = c;
	buf_reserve(&c->request, call->head.len + call->body.len);
	buf_bytes(&c->request, buf_view(&call->head));
	buf_bytes(&c->request, buf_view(&call->body));
	c->writing = true;
	out = uv_buf_init((char *)c->request.p, (unsigned)c->request.len);
	/* A failure shows when reading, too, and is told there. */
	if (uv_write(&c->write, (uv_stream_t *)&c->pipe, &out, 1, on_written) != 0)
		c->writing = false;
}

struct client_conn *client_conn_idle(struct http_client *c)
{
	return list_empty(&c->idle) ? NULL
				    : container_of(c->idle.prev, struct client_conn, in_idle);
}

void client_conn_keep(struct client_conn *c)
{
	struct http_client *client = c->client;

	c->call = NULL;
	if (!c->message.keep_alive || c->writing || client->no_reuse ||
		c->generation != client->generation || client->n_idle >= HTTP_CLIENT_IDLE_MAX) {
		client_conn_close(c);
		return;
	}
	http_message_deinit(&c->message);
	c->used = true;
	list_append(&client->idle, &c->in_idle);
	client->n_idle++;
	loop_timer_set(c->idle_timer, (int64_t)HTTP_CLIENT_IDLE_MS * NS_PER_MS);
}

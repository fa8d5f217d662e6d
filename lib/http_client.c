/* The calls of an HTTP client: checked, sent over a connection of the pool or a new one, bounded in
 * time, and told of once. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "lib/http_client_internal.h"

enum { RETRY_AFTER_MAX_S = 3600 };

/* ---- the call's request ---- */

/* RFC 9110 section 5.6.2 */
static size_t token_len(const char *s)
{
	size_t n = 0;

	while (s[n] && (isalnum((unsigned char)s[n]) || strchr("!#$%&'*+-.^_`|~", s[n])))
		n++;
	return n;
}

static bool frames_message(const char *name, size_t n)
{
	static const char *const ours[] = { "host", "connection", "content-length", "content-type",
		"transfer-encoding", "te", "upgrade", "expect", "trailer" };

	for (size_t i = 0; i < ARRAY_LEN(ours); i++)
		if (strlen(ours[i]) == n && strncasecmp(ours[i], name, n) == 0)
			return true;
	return false;
}

/* RFC 9110 section 5.5: CR, LF and NUL in a field's value are dangerous: whoever puts names of
 * others into a header must not be able to begin another one. */
static size_t value_len(const char *s)
{
	size_t n = 0;

	while ((unsigned char)s[n] >= ' ' && s[n] != 0x7f)
		n++;
	return n;
}

static bool headers_fine(const char *s)
{
	if (strlen(s) > HTTP_HEAD_MAX)
		return false;
	while (*s) {
		size_t name = token_len(s);

		if (name == 0 || s[name] != ':' || frames_message(s, name))
			return false;
		s += name + 1;
		s += value_len(s);
		if (s[0] != '\r' || s[1] != '\n')
			return false;
		s += 2;
	}
	return true;
}

static bool has_accept(const char *headers)
{
	return strncasecmp(headers, "accept:", 7) == 0 || strcasestr(headers, "\r\naccept:");
}

static bool path_fine(const char *path)
{
	size_t n = 0;

	while ((unsigned char)path[n] > ' ' && path[n] != 0x7f)
		n++;
	return path[0] == '/' && path[n] == 0 && n <= HTTP_HEAD_MAX / 2;
}

static int check_options(const struct http_call_options *o, struct err *e)
{
	const char *m = o->method ? o->method : "GET";

	if (!*m || token_len(m) != strlen(m))
		return err_set(e, ERR_INVALID, "not an HTTP method");
	if (!o->path || !path_fine(o->path))
		return err_set(e, ERR_INVALID, "not an HTTP path");
	if ((o->headers && !headers_fine(o->headers)) ||
		(o->content_type && o->content_type[value_len(o->content_type)]))
		return err_set(e, ERR_INVALID, "not HTTP header fields");
	return 0;
}

static bool idempotent(const char *m)
{
	/* RFC 9110 section 9.2.2 */
	return strcmp(m, "GET") == 0 || strcmp(m, "HEAD") == 0 || strcmp(m, "PUT") == 0 ||
	       strcmp(m, "DELETE") == 0 || strcmp(m, "OPTIONS") == 0;
}

static void write_head(
	struct http_call *c, const struct http_client *cl, const struct http_call_options *o)
{
	struct buf *b = &c->head;
	size_t prefix = strlen(cl->url.path);

	/* The prefix of the URL has no slash at its end. */
	while (prefix > 0 && cl->url.path[prefix - 1] == '/')
		prefix--;
	buf_printf(b, "%s %.*s%s HTTP/1.1\r\nHost: %s\r\nUser-Agent: assay/" ASSAY_VERSION "\r\n",
		c->method, (int)prefix, cl->url.path, o->path, cl->url.authority);
	if (!o->headers || !has_accept(o->headers))
		buf_str(b, "Accept: */*\r\n");
	if (o->headers)
		buf_str(b, o->headers);
	if (o->content_type)
		buf_printf(b, "Content-Type: %s\r\n", o->content_type);
	if (o->body.n > 0 || strcmp(c->method, "POST") == 0 || strcmp(c->method, "PUT") == 0)
		buf_printf(b, "Content-Length: %zu\r\n", o->body.n);
	buf_str(b, cl->no_reuse ? "Connection: close\r\n\r\n" : "\r\n");
}

/* ---- the end of a call ---- */

static void call_free(struct http_call *c)
{
	free(c->method);
	buf_deinit(&c->head);
	buf_deinit(&c->body);
	free(c);
}

/* Lets go of everything but the memory and the connection. */
static void call_release(struct http_call *c)
{
	c->over = true;
	if (c->active) {
		c->client->n_active--;
		c->client->n_plain -= !c->part;
	}
	c->active = false;
	list_remove(&c->node);
	dial_cancel(c->dial);
	c->dial = NULL;
	loop_timer_free(c->timer);
	loop_timer_free(c->idle_timer);
	c->timer = c->idle_timer = NULL;
}

static void call_start(struct http_call *c);

static void client_go_on(struct http_client *cl)
{
	list_each (c, &cl->waiting, struct http_call, node) {
		if (cl->n_active >= HTTP_CLIENT_CALLS_MAX)
			return;
		if (!c->part && cl->n_plain >= cl->calls_max)
			continue;
		list_remove(&c->node);
		list_append(&cl->active, &c->node);
		cl->n_active++;
		cl->n_plain += !c->part;
		c->active = true;
		call_start(c);
	}
}

static void call_fail(struct http_call *c)
{
	struct http_answer none = { .content_type = "", .retry_after_s = -1, .header = "" };
	struct http_client *cl = c->client;

	if (c->conn)
		client_conn_close(c->conn);
	c->conn = NULL;
	call_release(c);
	client_go_on(cl);
	c->done(c->arg, &none, &c->e);
	call_free(c);
}

static int retry_after(const char *s)
{
	int n = 0;

	if (!isdigit((unsigned char)*s))
		return -1; /* not there; or a date, of a clock that is not ours */
	for (; isdigit((unsigned char)*s) && n < RETRY_AFTER_MAX_S; s++)
		n = n * 10 + (*s - '0');
	return n < RETRY_AFTER_MAX_S ? n : RETRY_AFTER_MAX_S;
}

static struct buf take(struct buf *from)
{
	struct buf b = *from;

	*from = BUF_INIT_MAX(0);
	return b;
}

void http_call_answered(struct http_call *c)
{
	struct http_message *m = &c->conn->message;
	AUTO_BUF struct buf body = take(&m->body), type = take(&m->content_type),
			    header = take(&m->wanted);
	struct http_answer a = {
		.status = (int)m->parser.status_code,
		.content_type = buf_cstr(&type),
		.retry_after_s = retry_after(buf_cstr(&m->retry_after)),
		.header = buf_cstr(&header),
		.body = buf_view(&body),
	};
	struct http_client *cl = c->client;

	/* The connection is free before the caller hears of it, who may have a next call. */
	client_conn_keep(c->conn);
	c->conn = NULL;
	call_release(c);
	client_go_on(cl);
	c->done(c->arg, &a, &c->e);
	call_free(c);
}

/* RFC 9112 section 9.3.1: a connection that was closed while it was idle is no failure of the call;
 * it may be sent again if it is idempotent. */
void http_call_broken(struct http_call *c, int code, const char *text)
{
	bool stale = c->conn->used && !c->conn->heard && code == ERR_UNAVAILABLE;

	if (stale && c->repeatable && !c->repeated) {
		client_conn_close(c->conn);
		c->conn = NULL;
		c->repeated = true;
		call_start(c);
		return;
	}
	err_set(&c->e, code, "%s", text);
	call_fail(c);
}

void http_call_heard(struct http_call *c)
{
	if (c->idle_ms > 0)
		loop_timer_set(c->idle_timer, (int64_t)c->idle_ms * NS_PER_MS);
}

static void call_late(void *arg)
{
	struct http_call *c = arg;

	err_set(&c->e, ERR_DEADLINE, "no answer in time");
	call_fail(c);
}

static void call_silent(void *arg)
{
	struct http_call *c = arg;

	err_set(&c->e, ERR_DEADLINE, "nothing came for %d s", (c->idle_ms + 999) / 1000);
	call_fail(c);
}

static void call_refused(void *arg)
{
	struct http_call *c = arg;

	c->posted = false;
	if (c->over)
		call_free(c);
	else
		call_fail(c);
}

/* ---- its way ---- */

static int verify(void *arg, const struct x509_chain *peer, struct err *e)
{
	struct http_client *cl = arg;

	if (cl->verify)
		return cl->verify(cl->verify_arg, peer, e);
	return tls_verify_web(peer, cl->sni ? cl->sni : cl->url.host, clock_wall(), e);
}

static void on_dialled(void *arg, int fd, const struct err *e)
{
	struct http_call *c = arg;
	struct client_conn *conn;

	c->dial = NULL;
	if (fd < 0) {
		c->e = *e;
		call_fail(c);
		return;
	}
	conn = client_conn_new(c->client, fd);
	if (!conn) {
		err_set(&c->e, ERR_INTERNAL, "cannot use the connection");
		call_fail(c);
		return;
	}
	client_conn_use(conn, c);
	http_call_heard(c);
}

static struct tls_ctx *next_tls(struct http_client *cl)
{
	if (!cl->url.https)
		return NULL;
	return cl->tls ? cl->tls(cl->arg) : tls_ctx_ref(cl->own_tls);
}

static void call_dial(struct http_call *c)
{
	struct http_client *cl = c->client;
	struct tls_ctx *tls = next_tls(cl);
	const char *name = cl->sni ? cl->sni : cl->url.host;
	struct dial_options d = {
		.unix_path = cl->unix_path,
		.tcp_host = cl->unix_path ? NULL : cl->url.host,
		.tcp_port = cl->url.port,
		.tls = tls,
		.sni = tls && !http_host_is_address(name) ? name : NULL,
		.verify = tls ? verify : NULL,
		.verify_arg = cl,
		.not_local = cl->not_local,
		.timeout_ms = cl->connect_ms,
	};

	c->dial = door_dial(cl->loop, &d, on_dialled, c);
	tls_ctx_unref(tls);
}

static void call_start(struct http_call *c)
{
	struct client_conn *conn = c->repeated ? NULL : client_conn_idle(c->client);

	if (!conn) {
		call_dial(c);
		return;
	}
	client_conn_use(conn, c);
	http_call_heard(c);
}

static void set_timeout(struct http_call *c, int timeout_ms)
{
	if (timeout_ms < 0)
		return;
	c->timer = loop_timer_new(c->client->loop, call_late, c);
	loop_timer_set(
		c->timer, (timeout_ms ? timeout_ms : HTTP_TIMEOUT_MS_DEFAULT) * (int64_t)NS_PER_MS);
}

struct http_call *http_call(struct http_client *cl, const struct http_call_options *o)
{
	struct http_call *c = xcalloc(1, sizeof(*c));

	c->client = cl;
	c->head = BUF_INIT_SECRET;
	c->body = BUF_INIT_SECRET;
	c->body_max = o->body_max ? o->body_max : HTTP_BODY_MAX_DEFAULT;
	c->want_header = o->want_header;
	c->idle_ms = o->idle_ms;
	c->part = o->part;
	c->begun = o->begun;
	c->done = o->done;
	c->arg = o->arg;
	c->method = xstrdup(o->method ? o->method : "GET");
	c->repeatable = o->repeatable || idempotent(c->method);
	if (check_options(o, &c->e) != 0) {
		list_append(&cl->refused, &c->node);
		c->posted = true;
		loop_post(cl->loop, call_refused, c);
		return c;
	}
	write_head(c, cl, o);
	buf_bytes(&c->body, o->body);
	set_timeout(c, o->timeout_ms);
	if (c->idle_ms > 0)
		c->idle_timer = loop_timer_new(cl->loop, call_silent, c);
	list_append(&cl->waiting, &c->node);
	client_go_on(cl);
	return c;
}

static void call_drop(struct http_call *c)
{
	if (c->conn)
		client_conn_close(c->conn);
	c->conn = NULL;
	call_release(c);
	if (!c->posted) /* else when the post runs */
		call_free(c);
}

void http_call_cancel(struct http_call *c)
{
	struct http_client *cl;

	if (!c || c->over)
		return;
	cl = c->client;
	call_drop(c);
	client_go_on(cl);
}

/* ---- the client ---- */

static int make_tls(struct http_client *cl, struct err *e)
{
	struct tls_options t = { .alpn = "http/1.1", .allow_tls12 = true };

	return cl->url.https && !cl->tls ? tls_ctx_new(&t, &cl->own_tls, e) : 0;
}

int http_client_new(struct loop *l, const struct http_client_options *o, struct http_client **ret,
	struct err *e)
{
	struct http_client *cl = xcalloc(1, sizeof(*cl));
	int r = http_url_parse(&cl->url, o->url, o->unix_path || o->allow_plain, e);

	if (r == 0 && cl->url.has_query)
		r = err_set(e, ERR_INVALID, "a query is not allowed here: %s", o->url);
	cl->tls = o->tls;
	if (r == 0)
		r = make_tls(cl, e);
	if (r != 0) {
		http_url_deinit(&cl->url);
		free(cl);
		return r;
	}
	cl->loop = l;
	cl->arg = o->arg;
	cl->unix_path = o->unix_path ? xstrdup(o->unix_path) : NULL;
	cl->sni = o->sni ? xstrdup(o->sni) : NULL;
	cl->verify = o->verify;
	cl->verify_arg = o->verify_arg;
	cl->not_local = o->not_local;
	cl->no_reuse = o->no_reuse;
	cl->calls_max = o->calls_max ? o->calls_max : HTTP_CLIENT_CALLS_MAX;
	cl->connect_ms = o->connect_ms ? o->connect_ms : HTTP_TIMEOUT_MS_DEFAULT;
	list_init(&cl->conns);
	list_init(&cl->idle);
	list_init(&cl->active);
	list_init(&cl->waiting);
	list_init(&cl->refused);
	*ret = cl;
	return 0;
}

void http_client_renew(struct http_client *cl)
{
	cl->generation++;
	list_each (conn, &cl->idle, struct client_conn, in_idle)
		client_conn_close(conn);
}

const char *http_client_host(const struct http_client *cl)
{
	return cl->url.host;
}

static void drop_all(struct list *calls)
{
	while (!list_empty(calls))
		call_drop(container_of(calls->next, struct http_call, node));
}

void http_client_free(struct http_client *cl)
{
	if (!cl)
		return;
	drop_all(&cl->active);
	drop_all(&cl->waiting);
	drop_all(&cl->refused);
	list_each (conn, &cl->conns, struct client_conn, in_client)
		client_conn_close(conn);
	http_url_deinit(&cl->url);
	free(cl->unix_path);
	free(cl->sni);
	tls_ctx_unref(cl->own_tls);
	free(cl);
}

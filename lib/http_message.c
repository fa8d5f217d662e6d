#include "lib/http_message.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

static struct http_message *self(http_parser *p)
{
	return p->data;
}

static int refuse(struct http_message *m, int status)
{
	if (m->bad == 0)
		m->bad = status;
	return 1; /* ends the parser */
}

static int add_head(struct http_message *m, struct buf *to, const char *p, size_t n)
{
	return buf_append(to, p, n) ? 0 : refuse(m, 431);
}

static int on_url(http_parser *p, const char *at, size_t n)
{
	return add_head(self(p), &self(p)->url, at, n);
}

static int on_field(http_parser *p, const char *at, size_t n)
{
	struct http_message *m = self(p);

	if (m->in_value)
		m->field_len = 0;
	m->in_value = false;
	for (size_t i = 0; i < n; i++, m->field_len++)
		if (m->field_len < sizeof(m->field))
			m->field[m->field_len] = at[i];
	return 0;
}

static bool field_is(const struct http_message *m, const char *name)
{
	size_t n = strlen(name);

	return m->field_len == n && strncasecmp(m->field, name, n) == 0;
}

/* Where the value of the header at hand goes: of several alike the first counts. RFC 9110 6.5.1:
 * trailers are not merged into the header. */
static struct buf *value_of(struct http_message *m)
{
	if (m->head_done)
		return NULL;
	if (m->parser.type == HTTP_RESPONSE) {
		if (field_is(m, "content-type"))
			return m->content_type.len ? NULL : &m->content_type;
		if (field_is(m, "retry-after"))
			return m->retry_after.len ? NULL : &m->retry_after;
		if (m->want && field_is(m, m->want))
			return m->wanted.len ? NULL : &m->wanted;
		return NULL;
	}
	if (field_is(m, "host")) {
		m->hosts++;
		return &m->host;
	}
	if (field_is(m, "x-forwarded-host"))
		return m->forwarded_host.len ? NULL : &m->forwarded_host;
	if (field_is(m, "x-forwarded-proto"))
		return m->forwarded_proto.len ? NULL : &m->forwarded_proto;
	return NULL;
}

static int on_value(http_parser *p, const char *at, size_t n)
{
	struct http_message *m = self(p);

	if (!m->in_value) {
		m->in_value = true;
		m->value = value_of(m);
	}
	return m->value ? add_head(m, m->value, at, n) : 0;
}

static bool is_informational(const http_parser *p)
{
	return p->status_code / 100 == 1 && p->status_code != 101;
}

static bool has_part(const struct http_message *m)
{
	return m->part && m->parser.status_code / 100 == 2;
}

/* 1 tells the parser that no body follows. */
static int on_response_headers(struct http_message *m)
{
	const http_parser *p = &m->parser;

	if (is_informational(p))
		return ++m->informational > HTTP_INFORMATIONAL_MAX ? (refuse(m, 400), -1) : 1;
	/* RFC 9112 section 6.3, 1 */
	if (m->no_body || p->status_code == 204 || p->status_code == 304)
		return 1;
	if (has_part(m) && m->begun)
		m->begun(m->part_arg);
	if (!has_part(m) && p->content_length != UINT64_MAX && p->content_length > m->body.max)
		return refuse(m, 413), -1;
	return 0;
}

static int on_headers(http_parser *p)
{
	struct http_message *m = self(p);

	m->head_done = true;
	if (p->type != HTTP_REQUEST)
		return on_response_headers(m);
	/* RFC 9112 section 3.2: 400 to any HTTP/1.1 request that lacks a Host header field and to
	 * any that contains more than one. */
	if (m->hosts > 1 || (m->hosts == 0 && (p->http_major > 1 || p->http_minor >= 1)))
		return refuse(m, 400), -1;
	if (p->content_length != UINT64_MAX && p->content_length > m->body.max)
		return refuse(m, 413), -1;
	return 0;
}

static int on_body(http_parser *p, const char *at, size_t n)
{
	struct http_message *m = self(p);

	if (!has_part(m))
		return buf_append(&m->body, at, n) ? 0 : refuse(m, 413);
	if (m->part(m->part_arg, bytes_of(at, n)))
		return 0;
	m->enough = m->complete = true;
	return 1;
}

static int on_complete(http_parser *p)
{
	struct http_message *m = self(p);

	if (p->type == HTTP_RESPONSE && is_informational(p)) {
		m->head_done = false; /* the real one follows */
		buf_reset(&m->content_type);
		buf_reset(&m->retry_after);
		buf_reset(&m->wanted);
		return 0;
	}
	m->complete = true;
	m->keep_alive = http_should_keep_alive(p) != 0;
	http_parser_pause(p, 1);
	return 0;
}

static const http_parser_settings settings = {
	.on_url = on_url,
	.on_header_field = on_field,
	.on_header_value = on_value,
	.on_headers_complete = on_headers,
	.on_body = on_body,
	.on_message_complete = on_complete,
};

void http_message_init(struct http_message *m, bool request, size_t body_max)
{
	memset(m, 0, sizeof(*m));
	http_parser_set_max_header_size(HTTP_HEAD_MAX);
	http_parser_init(&m->parser, request ? HTTP_REQUEST : HTTP_RESPONSE);
	m->parser.data = m;
	m->url = m->host = BUF_INIT_MAX(HTTP_HEAD_MAX);
	m->forwarded_host = m->forwarded_proto = BUF_INIT_MAX(HTTP_HEAD_MAX);
	m->content_type = m->retry_after = m->wanted = BUF_INIT_MAX(HTTP_HEAD_MAX);
	m->body = BUF_INIT_MAX(body_max);
}

void http_message_deinit(struct http_message *m)
{
	buf_deinit(&m->url);
	buf_deinit(&m->host);
	buf_deinit(&m->forwarded_host);
	buf_deinit(&m->forwarded_proto);
	buf_deinit(&m->content_type);
	buf_deinit(&m->retry_after);
	buf_deinit(&m->wanted);
	buf_deinit(&m->body);
	free(m->path);
	free(m->query);
	m->path = m->query = NULL;
}

void http_message_next(struct http_message *m)
{
	bool request = m->parser.type == HTTP_REQUEST;
	size_t body_max = m->body.max;

	http_message_deinit(m);
	http_message_init(m, request, body_max);
}

/* Origin form "/path?query" or absolute form; "*" stays as it is. */
static void split_url(struct http_message *m)
{
	struct http_parser_url u;
	const char *s = buf_cstr(&m->url);

	http_parser_url_init(&u);
	if (strcmp(s, "*") == 0) {
		m->path = xstrdup("*");
		m->query = xstrdup("");
		return;
	}
	if (m->parser.method == HTTP_CONNECT || m->url.len > UINT16_MAX ||
		http_parser_parse_url(s, m->url.len, 0, &u) != 0) {
		refuse(m, 400);
		return;
	}
	m->path = (u.field_set & (1 << UF_PATH))
			  ? xstrndup(s + u.field_data[UF_PATH].off, u.field_data[UF_PATH].len)
			  : xstrdup("/");
	m->query = (u.field_set & (1 << UF_QUERY))
			   ? xstrndup(s + u.field_data[UF_QUERY].off, u.field_data[UF_QUERY].len)
			   : xstrdup("");
}

/* RFC 9112 section 5.1: white space after a field's value is no part of it. */
static void trim(struct buf *b)
{
	while (b->len > 0 && (b->p[b->len - 1] == ' ' || b->p[b->len - 1] == '\t'))
		b->p[--b->len] = 0;
}

static void finish(struct http_message *m)
{
	enum http_errno r = HTTP_PARSER_ERRNO(&m->parser);

	if (m->complete && m->bad == 0 && m->parser.type == HTTP_REQUEST) {
		if (m->parser.upgrade) /* there is nothing to upgrade to */
			m->keep_alive = false;
		trim(&m->host);
		trim(&m->forwarded_host);
		trim(&m->forwarded_proto);
		split_url(m);
	} else if (m->complete && m->parser.type == HTTP_RESPONSE) {
		trim(&m->content_type);
		trim(&m->retry_after);
		trim(&m->wanted);
	} else if (!m->complete && r != HPE_OK) {
		refuse(m, r == HPE_HEADER_OVERFLOW ? 431 : 400);
	}
}

size_t http_message_feed(struct http_message *m, struct bytes v)
{
	size_t n;

	if (m->complete || m->bad || v.n == 0)
		return 0;
	n = http_parser_execute(&m->parser, &settings, (const char *)v.p, v.n);
	if (m->enough)
		m->keep_alive = false;
	finish(m);
	return n < v.n ? n : v.n;
}

void http_message_eof(struct http_message *m)
{
	if (m->complete || m->bad)
		return;
	http_parser_execute(&m->parser, &settings, NULL, 0);
	finish(m);
	if (!m->complete)
		refuse(m, 400);
}

struct http_request http_message_request(const struct http_message *m)
{
	return (struct http_request){
		.method = http_method_str((enum http_method)m->parser.method),
		.path = m->path,
		.query = m->query,
		.host = buf_cstr(&m->host),
		.forwarded_host = buf_cstr(&m->forwarded_host),
		.forwarded_proto = buf_cstr(&m->forwarded_proto),
		.body = buf_view(&m->body),
	};
}

const char *http_status_text(int status)
{
	switch (status) {
#define XX(num, name, string)                                                                      \
	case num:                                                                                  \
		return #string;
		HTTP_STATUS_MAP(XX)
#undef XX
	default:
		return "Unknown";
	}
}

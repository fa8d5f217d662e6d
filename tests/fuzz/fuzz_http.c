/* An HTTP/1.1 request or response (streamed or not), in one piece and byte by byte, gives the same
 * result. */
#include "lib/http_message.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

static void drain(struct http_message *m, struct bytes v, size_t step)
{
	while (v.n > 0 && !m->complete && !m->bad) {
		size_t take = v.n < step ? v.n : step;

		http_message_feed(m, bytes_of(v.p, take));
		v = bytes_of(v.p + take, v.n - take);
	}
	http_message_eof(m);
	INVARIANT(m->complete || m->bad);
	if (m->complete && !m->bad && m->parser.type == HTTP_REQUEST) {
		struct http_request rq = http_message_request(m);

		INVARIANT(rq.path && rq.query && rq.host && rq.method);
		INVARIANT(rq.body.n <= m->body.max && strlen(rq.path) <= HTTP_HEAD_MAX);
	}
}

/* Up to 2000 bytes, of which the last is the end. */
static bool take(void *arg, struct bytes v)
{
	struct buf *b = arg;

	for (size_t i = 0; i < v.n && b->len < 2000; i++)
		buf_byte(b, v.p[i]);
	return b->len < 2000;
}

static void begin(struct http_message *m, uint8_t kind, struct buf *parts)
{
	http_message_init(m, kind & 1, 1000);
	m->no_body = kind & 4;
	m->part = kind & 2 ? take : NULL;
	m->part_arg = parts;
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	struct http_message whole, bytewise;
	AUTO_BUF struct buf parts = BUF_INIT, single = BUF_INIT;

	if (n < 1)
		return 0;
	/* requests know neither */
	begin(&whole, p[0] & 1 ? 1 : p[0], &parts);
	begin(&bytewise, p[0] & 1 ? 1 : p[0], &single);
	drain(&whole, bytes_of(p + 1, n - 1), n);
	drain(&bytewise, bytes_of(p + 1, n - 1), 1);
	INVARIANT(whole.complete == bytewise.complete && whole.bad == bytewise.bad);
	INVARIANT(!whole.complete || bytes_equal(buf_view(&whole.body), buf_view(&bytewise.body)));
	INVARIANT(!whole.complete || bytes_equal(buf_view(&parts), buf_view(&single)));
	http_message_next(&whole);
	http_message_deinit(&whole);
	http_message_deinit(&bytewise);
	return 0;
}

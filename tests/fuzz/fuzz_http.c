/* An HTTP/1.1 request or response, in one piece and byte by byte, gives the same result. */
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

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	struct http_message whole, bytewise;

	if (n < 1)
		return 0;
	http_message_init(&whole, p[0] & 1, 1000);
	http_message_init(&bytewise, p[0] & 1, 1000);
	drain(&whole, bytes_of(p + 1, n - 1), n);
	drain(&bytewise, bytes_of(p + 1, n - 1), 1);
	INVARIANT(whole.complete == bytewise.complete && whole.bad == bytewise.bad);
	INVARIANT(!whole.complete || bytes_equal(buf_view(&whole.body), buf_view(&bytewise.body)));
	http_message_next(&whole);
	http_message_deinit(&whole);
	http_message_deinit(&bytewise);
	return 0;
}

/* JSON as a stream: the same tokens whatever the pieces, and jansson's opinion of what is JSON. */
#include <jansson.h>
#include <string.h>

#include "lib/jsonstream.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

struct rig {
	struct buf tokens;
	bool unfit, number;
};

static enum js_want note(void *arg, enum js_token t, struct bytes text, unsigned depth)
{
	struct rig *r = arg;
	bool has_text = t == JS_KEY || t == JS_STRING || t == JS_NUMBER;

	r->unfit |= has_text && !text.p;
	r->number |= t == JS_NUMBER;
	buf_printf(&r->tokens, "%d %u ", (int)t, depth);
	buf_bytes(&r->tokens, text);
	return t == JS_KEY && text.n == 4 && memcmp(text.p, "skip", 4) == 0   ? JS_SKIP
	       : t == JS_KEY && text.n == 4 && memcmp(text.p, "stop", 4) == 0 ? JS_STOP
									      : JS_ON;
}

static int run(struct rig *r, struct bytes doc, size_t piece, bool *ret_stopped)
{
	struct jsonstream_options o = {
		.string_max = 1 << 16, .document_max = 1 << 20, .token = note, .arg = r
	};
	AUTO(jsonstream_free) struct jsonstream *s = jsonstream_new(&o);
	struct err e = ERR_INIT;
	int c = 0;

	for (size_t i = 0; i < doc.n && !c; i += piece)
		c = jsonstream_feed(
			s, bytes_of(doc.p + i, doc.n - i < piece ? doc.n - i : piece), &e);
	c = c ? c : jsonstream_end(s, &e);
	*ret_stopped = jsonstream_stopped(s);
	return c;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct rig whole = { .tokens = BUF_INIT }, pieces = { .tokens = BUF_INIT };
	bool stopped, stopped_too;
	int a, b;

	if (n > 1 << 16)
		return 0;
	a = run(&whole, bytes_of(data, n), n + 1, &stopped);
	b = run(&pieces, bytes_of(data, n), 1 + (n ? data[0] % 7 : 0), &stopped_too);
	INVARIANT(a == b && stopped == stopped_too);
	if (!a)
		INVARIANT(bytes_equal(buf_view(&whole.tokens), buf_view(&pieces.tokens)));
	/* jansson has no numbers beyond a double's or long's reach, and ends at a zero byte. */
	if (!stopped && n && !memmem(data, n, "skip", 4) && !memchr(data, 0, n)) {
		json_t *j = json_loadb((const char *)data, n, JSON_DECODE_ANY, NULL);

		if (j)
			INVARIANT(a == 0 || a == ERR_EXHAUSTED || n > JS_NUMBER_MAX);
		if (!a && !whole.unfit && !whole.number)
			INVARIANT(j);
		json_decref(j);
	}
	buf_deinit(&whole.tokens);
	buf_deinit(&pieces.tokens);
	return 0;
}

/*
 * JSON as a stream: bytes go in as they come from a network, tokens come out; nothing is kept but
 * the token that is being read. For documents that are long, of which little is wanted, and often
 * only as far as some point.
 *
 * The grammar is RFC 8259's, checked everywhere; what is skipped is not looked at further.
 */
#ifndef ASSAY_LIB_JSONSTREAM_H
#define ASSAY_LIB_JSONSTREAM_H

#include "lib/buf.h"

enum { JS_DEPTH_MAX = 64, JS_NUMBER_MAX = 128 };

enum js_token {
	JS_OBJECT,
	JS_OBJECT_END,
	JS_ARRAY,
	JS_ARRAY_END,
	JS_KEY,
	JS_STRING,
	JS_NUMBER,
	JS_TRUE,
	JS_FALSE,
	JS_NULL,
};

enum js_want {
	JS_ON,
	/* After a key: its value is skipped. After the begin of an object or array: the rest of it,
	 * the end included. */
	JS_SKIP,
	JS_STOP, /* what follows is not looked at */
};

struct jsonstream_options {
	size_t string_max;   /* of keys and strings that are not skipped, decoded */
	size_t document_max; /* of the whole */
	/* text: of keys, strings (decoded) and numbers; a final zero follows it. Its p is NULL if
	 * the string is longer than string_max, is no UTF-8, or has a U+0000 in it: what becomes of
	 * the document then is yours to say. depth: objects and arrays around the token. */
	enum js_want (*token)(void *arg, enum js_token t, struct bytes text, unsigned depth);
	void *arg;
};

struct jsonstream;
struct jsonstream *jsonstream_new(const struct jsonstream_options *o);
void jsonstream_free(struct jsonstream *s); /* NULL is fine */
/* ERR_INVALID: not JSON, with the offset; ERR_EXHAUSTED: over a limit. An error stays. */
int jsonstream_feed(struct jsonstream *s, struct bytes part, struct err *e) MUST_USE;
/* There is no more. ERR_INVALID: something is missing. 0 after a stop. */
int jsonstream_end(struct jsonstream *s, struct err *e) MUST_USE;
bool jsonstream_stopped(const struct jsonstream *s);

DEFINE_AUTO(jsonstream_free, struct jsonstream *);

#endif

#include "lib/jsonstream.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum state {
	VALUE,
	VALUE_OR_END, /* after '[' */
	KEY,          /* after ',' in an object */
	KEY_OR_END,   /* after '{' */
	COLON,
	COMMA_OR_END,
	STRING,
	ESCAPE,
	UNICODE,
	SCALAR, /* a number or word: goes on to the next delimiter */
	DONE,
	STOPPED,
};

struct jsonstream {
	struct jsonstream_options o;
	enum state state;
	uint64_t arrays; /* bit n: the container at depth n is an array */
	unsigned depth;
	bool skipping;
	unsigned skip_depth; /* skipping ends with a value at this depth */
	bool key;            /* the string that is being read is one */
	struct buf text;
	bool unfit;            /* text.p is not to be given */
	unsigned code, digits; /* of \u0041 */
	unsigned high;         /* first half of a surrogate pair, 0: none */
	uint64_t offset;
	struct err failed;
};

static_assert(JS_DEPTH_MAX <= 64, "a bit for each level");

struct jsonstream *jsonstream_new(const struct jsonstream_options *o)
{
	struct jsonstream *s = xcalloc(1, sizeof(*s));

	s->o = *o;
	s->text = BUF_INIT_MAX(o->string_max > JS_NUMBER_MAX ? o->string_max : JS_NUMBER_MAX);
	return s;
}

void jsonstream_free(struct jsonstream *s)
{
	if (!s)
		return;
	buf_deinit(&s->text);
	free(s);
}

bool jsonstream_stopped(const struct jsonstream *s)
{
	return s->state == STOPPED;
}

static int bad(struct jsonstream *s, const char *what)
{
	return err_set(&s->failed, ERR_INVALID, "cannot parse JSON: %s at offset %" PRIu64, what,
		s->offset);
}

static bool in_array(const struct jsonstream *s)
{
	return s->depth && s->arrays >> (s->depth - 1) & 1;
}

/* ---- tokens ---- */

static enum js_want tell(struct jsonstream *s, enum js_token t, struct bytes text)
{
	if (s->skipping)
		return JS_SKIP;
	return s->o.token(s->o.arg, t, text, s->depth);
}

/* A value is complete; depth is again what it was before it. */
static void after_value(struct jsonstream *s)
{
	if (s->skipping && s->depth == s->skip_depth)
		s->skipping = false;
	s->state = s->depth ? COMMA_OR_END : DONE;
}

static void skip_from(struct jsonstream *s, unsigned depth)
{
	if (s->skipping)
		return;
	s->skipping = true;
	s->skip_depth = depth;
}

static int open_container(struct jsonstream *s, bool array)
{
	enum js_want w = tell(s, array ? JS_ARRAY : JS_OBJECT, (struct bytes){ 0 });

	if (w == JS_STOP) {
		s->state = STOPPED;
		return 0;
	}
	if (w == JS_SKIP)
		skip_from(s, s->depth);
	if (s->depth == JS_DEPTH_MAX)
		return err_set(&s->failed, ERR_EXHAUSTED,
			"cannot parse JSON: more than %d levels at offset %" PRIu64, JS_DEPTH_MAX,
			s->offset);
	if (array)
		s->arrays |= UINT64_C(1) << s->depth;
	else
		s->arrays &= ~(UINT64_C(1) << s->depth);
	s->depth++;
	s->state = array ? VALUE_OR_END : KEY_OR_END;
	return 0;
}

static int close_container(struct jsonstream *s, bool array)
{
	bool skipped = s->skipping;

	if (!s->depth || in_array(s) != array)
		return bad(s, array ? "unexpected ']'" : "unexpected '}'");
	s->depth--;
	if (!skipped &&
		tell(s, array ? JS_ARRAY_END : JS_OBJECT_END, (struct bytes){ 0 }) == JS_STOP) {
		s->state = STOPPED;
		return 0;
	}
	after_value(s);
	return 0;
}

/* ---- strings ---- */

/* How many bytes of v at its begin are one well-formed character (RFC 3629); 0: none. */
static size_t utf8_char(const uint8_t *p, size_t n)
{
	size_t len = *p < 0x80 ? 1 : *p < 0xC2 ? 0 : *p < 0xE0 ? 2 : *p < 0xF0 ? 3 : 4;

	if (!len || *p > 0xF4 || len > n)
		return 0;
	for (size_t i = 1; i < len; i++)
		if ((p[i] & 0xC0) != 0x80)
			return 0;
	/* Overlong forms, surrogates, beyond U+10FFFF. */
	if ((*p == 0xE0 && p[1] < 0xA0) || (*p == 0xED && p[1] > 0x9F) ||
		(*p == 0xF0 && p[1] < 0x90) || (*p == 0xF4 && p[1] > 0x8F))
		return 0;
	return len;
}

static bool utf8_valid(struct bytes v)
{
	for (size_t i = 0, len; i < v.n; i += len) {
		len = utf8_char(v.p + i, v.n - i);
		if (!len)
			return false;
	}
	return true;
}

static enum js_want tell_string(struct jsonstream *s)
{
	struct bytes text = buf_view(&s->text);

	if (s->unfit || s->text.failed || text.n > s->o.string_max || !utf8_valid(text))
		text = (struct bytes){ 0 };
	else if (!text.p)
		text = bytes_str("");
	return tell(s, s->key ? JS_KEY : JS_STRING, text);
}

static void string_done(struct jsonstream *s)
{
	enum js_want w = s->skipping ? JS_SKIP : tell_string(s);

	if (w == JS_STOP) {
		s->state = STOPPED;
	} else if (!s->key) {
		after_value(s);
	} else {
		if (w == JS_SKIP)
			skip_from(s, s->depth);
		s->state = COLON;
	}
}

static void string_begin(struct jsonstream *s, bool key)
{
	if (!s->skipping)
		buf_reset(&s->text);
	s->key = key;
	s->high = 0;
	s->unfit = false;
	s->state = STRING;
}

static void keep(struct jsonstream *s, const void *p, size_t n)
{
	if (!s->skipping)
		buf_append(&s->text, p, n);
}

/* What stands for itself in a string. */
static const bool plain[256] = {
	[0x20 ... '"' - 1] = true,
	['"' + 1 ... '\\' - 1] = true,
	['\\' + 1 ... 0xFF] = true,
};

/* Takes what needs no thought, then the one character that ends it. */
static const uint8_t *in_string(struct jsonstream *s, const uint8_t *p, const uint8_t *end)
{
	const uint8_t *q = p;
	uint8_t c;

	while (q < end && plain[*q])
		q++;
	keep(s, p, (size_t)(q - p));
	s->offset += (uint64_t)(q - p);
	if (s->high && (q > p || (q < end && *q != '\\'))) {
		(void)bad(s, "half a surrogate pair");
		return q;
	}
	if (q == end)
		return q;
	c = *q++;
	s->offset++;
	if (c == '"')
		string_done(s);
	else if (c == '\\')
		s->state = ESCAPE;
	else
		(void)bad(s, "a control character in a string");
	return q;
}

static const char escapes[256] = {
	['"'] = '"',
	['\\'] = '\\',
	['/'] = '/',
	['b'] = '\b',
	['f'] = '\f',
	['n'] = '\n',
	['r'] = '\r',
	['t'] = '\t',
};

static void escape(struct jsonstream *s, uint8_t c)
{
	if (c == 'u') {
		s->code = s->digits = 0;
		s->state = UNICODE;
		return;
	}
	if (!escapes[c] || s->high) {
		(void)bad(s, "an unknown escape");
		return;
	}
	keep(s, &escapes[c], 1);
	s->state = STRING;
}

static void keep_code(struct jsonstream *s, unsigned c)
{
	uint8_t u[4];
	size_t n = 0;

	if (c < 0x80) {
		u[n++] = (uint8_t)c;
	} else if (c < 0x800) {
		u[n++] = (uint8_t)(0xC0 | c >> 6);
	} else if (c < 0x10000) {
		u[n++] = (uint8_t)(0xE0 | c >> 12);
		u[n++] = (uint8_t)(0x80 | (c >> 6 & 0x3F));
	} else {
		u[n++] = (uint8_t)(0xF0 | c >> 18);
		u[n++] = (uint8_t)(0x80 | (c >> 12 & 0x3F));
		u[n++] = (uint8_t)(0x80 | (c >> 6 & 0x3F));
	}
	if (c >= 0x80)
		u[n++] = (uint8_t)(0x80 | (c & 0x3F));
	keep(s, u, n);
}

/* RFC 8259 7: characters beyond the Basic Multilingual Plane are a pair of surrogates. */
static void unicode_done(struct jsonstream *s)
{
	bool high = s->code >= 0xD800 && s->code < 0xDC00;
	bool low = s->code >= 0xDC00 && s->code < 0xE000;

	if (low != (s->high != 0)) {
		(void)bad(s, "half a surrogate pair");
		return;
	}
	s->state = STRING;
	if (high) {
		s->high = s->code;
		return;
	}
	if (low)
		s->code = 0x10000 + ((s->high - 0xD800) << 10) + (s->code - 0xDC00);
	s->high = 0;
	s->unfit |= !s->code;
	keep_code(s, s->code);
}

static void unicode(struct jsonstream *s, uint8_t c)
{
	unsigned v;

	if (c >= '0' && c <= '9')
		v = c - '0';
	else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
		v = (unsigned)(c | 0x20) - 'a' + 10;
	else {
		(void)bad(s, "a bad \\u escape");
		return;
	}
	s->code = s->code << 4 | v;
	if (++s->digits == 4)
		unicode_done(s);
}

/* ---- numbers and words ---- */

static const char *digits(const char *p)
{
	while (*p >= '0' && *p <= '9')
		p++;
	return p;
}

static bool is_number(const char *p)
{
	const char *from;

	if (*p == '-')
		p++;
	from = p;
	p = digits(p);
	if (p == from || (*from == '0' && p - from > 1))
		return false;
	if (*p == '.') {
		from = ++p;
		p = digits(p);
		if (p == from)
			return false;
	}
	if ((*p | 0x20) == 'e') {
		p++;
		if (*p == '+' || *p == '-')
			p++;
		from = p;
		p = digits(p);
		if (p == from)
			return false;
	}
	return !*p;
}

static int scalar_done(struct jsonstream *s)
{
	const char *text = buf_cstr(&s->text);
	enum js_token t = JS_NUMBER;

	if (strcmp(text, "true") == 0)
		t = JS_TRUE;
	else if (strcmp(text, "false") == 0)
		t = JS_FALSE;
	else if (strcmp(text, "null") == 0)
		t = JS_NULL;
	else if (!is_number(text))
		return bad(s, "not a value");
	if (tell(s, t, bytes_str(t == JS_NUMBER ? text : "")) == JS_STOP) {
		s->state = STOPPED;
		return 0;
	}
	after_value(s);
	return 0;
}

static bool scalar_char(uint8_t c)
{
	return (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') || c == '-' ||
	       c == '+' || c == '.';
}

static const uint8_t *in_scalar(struct jsonstream *s, const uint8_t *p, const uint8_t *end)
{
	const uint8_t *q = p;

	while (q < end && scalar_char(*q))
		q++;
	if (s->text.len + (size_t)(q - p) > JS_NUMBER_MAX) {
		(void)bad(s, "not a value");
		return q;
	}
	buf_append(&s->text, p, (size_t)(q - p));
	s->offset += (uint64_t)(q - p);
	if (q < end)
		(void)scalar_done(s);
	return q;
}

/* ---- structure ---- */

static int value_begins(struct jsonstream *s, uint8_t c)
{
	if (c == '"') {
		string_begin(s, false);
		return 0;
	}
	if (c == '{' || c == '[')
		return open_container(s, c == '[');
	if (!scalar_char(c))
		return bad(s, "unexpected character");
	buf_reset(&s->text);
	buf_byte(&s->text, c);
	s->state = SCALAR;
	return 0;
}

static int structure(struct jsonstream *s, uint8_t c)
{
	switch (s->state) {
	case VALUE_OR_END:
		if (c == ']')
			return close_container(s, true);
		return value_begins(s, c);
	case VALUE:
		return value_begins(s, c);
	case KEY_OR_END:
		if (c == '}')
			return close_container(s, false);
		/* fall through */
	case KEY:
		if (c != '"')
			return bad(s, "a key is missing");
		string_begin(s, true);
		return 0;
	case COLON:
		if (c != ':')
			return bad(s, "':' is missing");
		s->state = VALUE;
		return 0;
	case COMMA_OR_END:
		if (c == ']' || c == '}')
			return close_container(s, c == ']');
		if (c != ',')
			return bad(s, "',' is missing");
		s->state = in_array(s) ? VALUE : KEY;
		return 0;
	default: /* DONE */
		return bad(s, "something follows the document");
	}
}

static bool is_space(uint8_t c)
{
	return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

static const uint8_t *step(struct jsonstream *s, const uint8_t *p, const uint8_t *end)
{
	if (s->state == STRING)
		return in_string(s, p, end);
	if (s->state == SCALAR)
		return in_scalar(s, p, end);
	s->offset++;
	if (s->state == ESCAPE)
		escape(s, *p);
	else if (s->state == UNICODE)
		unicode(s, *p);
	else if (!is_space(*p))
		(void)structure(s, *p);
	return p + 1;
}

int jsonstream_feed(struct jsonstream *s, struct bytes part, struct err *e)
{
	const uint8_t *p = part.p, *end = p ? p + part.n : p;

	if (s->state != STOPPED && !s->failed.code && part.n > s->o.document_max - s->offset)
		err_set(&s->failed, ERR_EXHAUSTED, "cannot parse JSON: more than %zu bytes",
			s->o.document_max);
	while (p < end && s->state != STOPPED && !s->failed.code)
		p = step(s, p, end);
	if (s->failed.code)
		return err_set(e, s->failed.code, "%s", s->failed.msg);
	return 0;
}

int jsonstream_end(struct jsonstream *s, struct err *e)
{
	if (s->state == SCALAR && !s->depth && !s->failed.code)
		(void)scalar_done(s);
	if (!s->failed.code && s->state != DONE && s->state != STOPPED)
		(void)bad(s, "unexpected end");
	if (s->failed.code)
		return err_set(e, s->failed.code, "%s", s->failed.msg);
	return 0;
}

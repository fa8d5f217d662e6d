/* Text to tokens, and the environment into text. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/config_internal.h"

int config_lex_fail(const struct config_lexer *x, int line, const char *fmt, ...)
{
	char text[500];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	return err_set(x->e, ERR_INVALID, "%s:%d: %s", x->file, line, text);
}

static int peek(const struct config_lexer *x, size_t ahead)
{
	return (size_t)(x->end - x->p) > ahead ? x->p[ahead] : -1;
}

static void advance(struct config_lexer *x, size_t n)
{
	for (; n && x->p < x->end; n--, x->p++)
		if (*x->p == '\n')
			x->line++;
}

static int skip_block_comment(struct config_lexer *x)
{
	int line = x->line;

	advance(x, 2);
	while (!(peek(x, 0) == '*' && peek(x, 1) == '/')) {
		if (x->p == x->end)
			return config_lex_fail(x, line, "this comment has no end");
		advance(x, 1);
	}
	advance(x, 2);
	return 0;
}

int config_lex_skip_blank(struct config_lexer *x)
{
	for (;;) {
		int c = peek(x, 0);
		int r = 0;

		if (c == ' ' || c == '\t' || c == '\n' || c == '\r') {
			advance(x, 1);
		} else if (!x->json && (c == '#' || (c == '/' && peek(x, 1) == '/'))) {
			while (x->p < x->end && *x->p != '\n')
				advance(x, 1);
		} else if (!x->json && c == '/' && peek(x, 1) == '*') {
			r = skip_block_comment(x);
		} else {
			return 0;
		}
		if (r)
			return r;
	}
}

static bool is_letter(int c)
{
	return c >= 0 && (isalpha(c) || c == '_' || c >= 0x80);
}

static bool is_word(int c)
{
	return is_letter(c) || (c >= 0 && isdigit(c)) || c == '-' || c == '.';
}

static void put_utf8(struct buf *b, uint32_t c)
{
	if (c < 0x80) {
		buf_byte(b, (uint8_t)c);
	} else if (c < 0x800) {
		buf_byte(b, (uint8_t)(0xc0 | c >> 6));
		buf_byte(b, (uint8_t)(0x80 | (c & 0x3f)));
	} else if (c < 0x10000) {
		buf_byte(b, (uint8_t)(0xe0 | c >> 12));
		buf_byte(b, (uint8_t)(0x80 | (c >> 6 & 0x3f)));
		buf_byte(b, (uint8_t)(0x80 | (c & 0x3f)));
	} else {
		buf_byte(b, (uint8_t)(0xf0 | c >> 18));
		buf_byte(b, (uint8_t)(0x80 | (c >> 12 & 0x3f)));
		buf_byte(b, (uint8_t)(0x80 | (c >> 6 & 0x3f)));
		buf_byte(b, (uint8_t)(0x80 | (c & 0x3f)));
	}
}

static int digit(int c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return 16;
}

static int read_digits(struct config_lexer *x, int base, int count, uint32_t *ret)
{
	uint32_t v = 0;

	for (int i = 0; i < count; i++) {
		int d = digit(peek(x, 0));

		if (d >= base)
			return config_lex_fail(x, x->line, "bad escape in a string");
		v = v * (uint32_t)base + (uint32_t)d;
		advance(x, 1);
	}
	*ret = v;
	return 0;
}

/* The second half of a JSON surrogate pair. */
static int read_surrogate(struct config_lexer *x, uint32_t *c)
{
	uint32_t low;
	int r;

	if (peek(x, 0) != '\\' || peek(x, 1) != 'u')
		return config_lex_fail(x, x->line, "half of a surrogate pair in a string");
	advance(x, 2);
	r = read_digits(x, 16, 4, &low);
	if (r)
		return r;
	if (low < 0xdc00 || low > 0xdfff)
		return config_lex_fail(x, x->line, "half of a surrogate pair in a string");
	*c = 0x10000 + ((*c - 0xd800) << 10) + (low - 0xdc00);
	return 0;
}

/* After the backslash. */
static int read_escape(struct config_lexer *x)
{
	static const char plain[] = "abfnrtv\\\"", means[] = "\a\b\f\n\r\t\v\\\"";
	static const char json_plain[] = "bfnrt\\\"/", json_means[] = "\b\f\n\r\t\\\"/";
	int c = peek(x, 0);
	const char *hit = c > 0 ? strchr(x->json ? json_plain : plain, c) : NULL;
	uint32_t v = 0;
	int r;

	if (hit) {
		advance(x, 1);
		buf_byte(&x->text,
			(uint8_t)(x->json ? json_means[hit - json_plain] : means[hit - plain]));
		return 0;
	}
	if (c == 'u' || (!x->json && (c == 'U' || c == 'x'))) {
		advance(x, 1);
		r = read_digits(x, 16, c == 'u' ? 4 : c == 'U' ? 8 : 2, &v);
	} else if (!x->json && c >= '0' && c <= '7') {
		r = read_digits(x, 8, 3, &v);
	} else {
		return config_lex_fail(x, x->line, "bad escape in a string");
	}
	if (!r && x->json && v >= 0xd800 && v <= 0xdbff)
		r = read_surrogate(x, &v);
	if (r)
		return r;
	if (v == 0 || v > 0x10ffff || (v >= 0xd800 && v <= 0xdfff))
		return config_lex_fail(x, x->line, "bad character in a string");
	put_utf8(&x->text, v);
	return 0;
}

/* "${" … "}" stands in a string as it is, quotes included. */
static int read_interpolation(struct config_lexer *x, int line)
{
	int braces = 0;

	do {
		int c = peek(x, 0);

		if (c < 0)
			return config_lex_fail(x, line, "this string has no end");
		if (c == 0)
			return config_lex_fail(x, x->line, "bad character in a string");
		braces += c == '{' ? 1 : c == '}' ? -1 : 0;
		buf_byte(&x->text, (uint8_t)c);
		advance(x, 1);
	} while (braces || x->text.p[x->text.len - 1] == '$');
	return 0;
}

static int read_string(struct config_lexer *x)
{
	int line = x->line, r = 0;

	advance(x, 1);
	while (!r) {
		int c = peek(x, 0);

		if (c < 0 || c == '\n')
			return config_lex_fail(x, line, "this string has no end");
		if (c == 0 || (x->json && c < 0x20))
			return config_lex_fail(x, x->line, "bad character in a string");
		if (c == '"') {
			advance(x, 1);
			return 0;
		}
		if (c == '\\') {
			advance(x, 1);
			r = read_escape(x);
		} else if (!x->json && c == '$' && peek(x, 1) == '{') {
			r = read_interpolation(x, line);
		} else {
			buf_byte(&x->text, (uint8_t)c);
			advance(x, 1);
		}
	}
	return r;
}

/* Is this line (n bytes, without its end) the anchor, blanks around it aside? */
static bool ends_heredoc(const uint8_t *line, size_t n, const uint8_t *anchor, size_t anchor_n)
{
	while (n && (*line == ' ' || *line == '\t')) {
		line++;
		n--;
	}
	while (n && line[n - 1] == '\r')
		n--;
	return n == anchor_n && memcmp(line, anchor, n) == 0;
}

/* <<- takes from every line the blanks that all of them have. */
static void unindent(struct buf *b)
{
	AUTO_BUF struct buf out = BUF_INIT;
	size_t least = SIZE_MAX;

	for (size_t i = 0; i < b->len;) {
		const uint8_t *nl = memchr(b->p + i, '\n', b->len - i);
		size_t n = nl ? (size_t)(nl - (b->p + i)) : b->len - i, k = 0;

		while (k < n && (b->p[i + k] == ' ' || b->p[i + k] == '\t'))
			k++;
		if (k < n && k < least)
			least = k;
		i += n + 1;
	}
	for (size_t i = 0; i < b->len;) {
		const uint8_t *nl = memchr(b->p + i, '\n', b->len - i);
		size_t n = nl ? (size_t)(nl - (b->p + i)) + 1 : b->len - i;
		size_t cut = n > least ? least : n - 1;

		buf_append(&out, b->p + i + cut, n - cut);
		i += n;
	}
	buf_reset(b);
	buf_bytes(b, buf_view(&out));
}

static int read_heredoc(struct config_lexer *x)
{
	int line = x->line;
	bool indented;
	const uint8_t *anchor;
	size_t anchor_n = 0;

	if (peek(x, 1) != '<')
		return config_lex_fail(x, line, "unexpected \"<\"");
	advance(x, 2);
	indented = peek(x, 0) == '-';
	advance(x, indented);
	anchor = x->p;
	while (is_letter(peek(x, 0)) || (peek(x, 0) >= 0 && isdigit(peek(x, 0)))) {
		advance(x, 1);
		anchor_n++;
	}
	if (peek(x, 0) == '\r')
		advance(x, 1);
	if (!anchor_n || peek(x, 0) != '\n')
		return config_lex_fail(
			x, line, "a word and the end of the line must follow \"<<\"");
	advance(x, 1);
	for (;;) {
		const uint8_t *start = x->p, *nl = memchr(start, '\n', (size_t)(x->end - start));
		size_t n = (size_t)((nl ? nl : x->end) - start);

		if (memchr(start, 0, n))
			return config_lex_fail(x, x->line, "bad character in a string");
		if (ends_heredoc(start, n, anchor, anchor_n)) {
			advance(x, n);
			break;
		}
		if (!nl)
			return config_lex_fail(x, line, "the text that begins here has no end");
		buf_append(&x->text, start, n + 1);
		advance(x, n + 1);
	}
	if (indented)
		unindent(&x->text);
	return 0;
}

static int read_number(struct config_lexer *x)
{
	while (is_word(peek(x, 0)) || peek(x, 0) == '+') {
		buf_byte(&x->text, *x->p);
		advance(x, 1);
	}
	/* The text is looked at again by whoever wants a number: here only its kind matters. */
	for (size_t i = 0; i < x->text.len; i++)
		if (!strchr("0123456789abcdefABCDEFxX+-.", x->text.p[i]))
			return config_lex_fail(x, x->tok_line,
				"\"%s\" is no number; text stands in quotes", buf_cstr(&x->text));
	return 0;
}

static void read_word(struct config_lexer *x)
{
	const char *w;

	while (is_word(peek(x, 0))) {
		buf_byte(&x->text, *x->p);
		advance(x, 1);
	}
	w = buf_cstr(&x->text);
	x->tok = T_IDENT;
	if (strcmp(w, "true") == 0 || strcmp(w, "false") == 0)
		x->tok = T_BOOL;
	else if (x->json && strcmp(w, "null") == 0)
		x->tok = T_NULL;
}

/* Reads the next token into x->tok. */
int config_lex_next(struct config_lexer *x)
{
	int c, r = config_lex_skip_blank(x);

	if (r)
		return r;
	buf_reset(&x->text);
	x->tok_line = x->line;
	c = peek(x, 0);
	if (c < 0) {
		x->tok = T_EOF;
		return 0;
	}
	if (is_letter(c)) {
		read_word(x);
		return 0;
	}
	if (isdigit(c) || (c == '-' && peek(x, 1) >= 0 && isdigit(peek(x, 1)))) {
		x->tok = T_NUMBER;
		return read_number(x);
	}
	if (c == '"') {
		x->tok = T_STRING;
		return read_string(x);
	}
	if (c == '<' && !x->json) {
		x->tok = T_STRING;
		return read_heredoc(x);
	}
	if (!strchr(x->json ? "{}[],:" : "{}[],=", c) || !c)
		return c >= 0x20 && c < 0x7f
			       ? config_lex_fail(x, x->line, "unexpected \"%c\"", c)
			       : config_lex_fail(x, x->line, "unexpected byte 0x%02x", c);
	x->tok = T_PUNCT;
	x->punct = (char)c;
	advance(x, 1);
	return 0;
}

/* ---- environment ---- */

static size_t name_length(const uint8_t *p, size_t n)
{
	size_t k = 0;

	if (n && strchr("*#$@!?-", *p) && *p)
		return 1; /* as the shell's special variables */
	if (n && isdigit(*p))
		return 1;
	while (k < n && (isalnum(p[k]) || p[k] == '_'))
		k++;
	return k;
}

static void expand_one(const char *name, struct buf *ret, struct strings *ret_unset)
{
	const char *v;

	if (strcmp(name, "$") == 0) {
		buf_byte(ret, '$');
		return;
	}
	v = getenv(name);
	if (v)
		buf_str(ret, v);
	else if (ret_unset && !strings_has(ret_unset, name))
		strings_add(ret_unset, name);
}

void config_expand_env(struct bytes text, struct buf *ret, struct strings *ret_unset)
{
	size_t i = 0;

	while (i < text.n) {
		const uint8_t *p = text.p + i + 1;
		size_t left = text.n - i - 1, n, used;
		AUTO(free) char *name = NULL;

		if (text.p[i] != '$' || !left) {
			buf_byte(ret, text.p[i++]);
			continue;
		}
		if (*p == '{') {
			n = name_length(p + 1, left - 1);
			used = n + 2;
			/* As os.Expand: bad syntax such as "${" or "${}" is eaten. */
			if (!n || left < used || p[n + 1] != '}') {
				const uint8_t *close = memchr(p, '}', left);

				i += close && !memchr(p, '\n', (size_t)(close - p))
					     ? (size_t)(close - p) + 2
					     : 2;
				continue;
			}
			name = xstrndup((const char *)p + 1, n);
		} else {
			n = name_length(p, left);
			used = n;
			if (!n) {
				buf_byte(ret, text.p[i++]);
				continue;
			}
			name = xstrndup((const char *)p, n);
		}
		expand_one(name, ret, ret_unset);
		i += 1 + used;
	}
}

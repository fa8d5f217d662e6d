#include "lib/pattern.h"

#include <ctype.h>
#include <regex.h>
#include <stdlib.h>
#include <string.h>

#include "lib/buf.h"

enum { CHARS = 128 };

struct pattern {
	regex_t re;
};

struct reader {
	const char *p;
	struct buf out;
	bool atom; /* what was read last may be repeated */
	bool fold;
};

/* ---- sets of characters ---- */

struct set {
	bool has[CHARS];
};

static void set_range(struct set *s, int from, int to)
{
	for (int c = from; c <= to; c++)
		s->has[c] = true;
}

static bool set_class(struct set *s, char name)
{
	switch (tolower((unsigned char)name)) {
	case 'd':
		set_range(s, '0', '9');
		break;
	case 'w':
		set_range(s, '0', '9');
		set_range(s, 'A', 'Z');
		set_range(s, 'a', 'z');
		s->has['_'] = true;
		break;
	case 's':
		for (const char *c = " \t\n\f\r"; *c; c++)
			s->has[(int)*c] = true;
		break;
	default:
		return false;
	}
	for (int c = 0; isupper((unsigned char)name) && c < CHARS; c++)
		s->has[c] = !s->has[c];
	return true;
}

static void set_add(struct set *to, const struct set *s)
{
	for (int c = 0; c < CHARS; c++)
		to->has[c] |= s->has[c];
}

/* As a bracket expression, POSIX 9.3.5: "]" comes first, "-" last, and "^" is not the first. */
static void set_write(const struct set *s, struct buf *out)
{
	size_t start;

	buf_byte(out, '[');
	start = out->len;
	if (s->has[']'])
		buf_byte(out, ']');
	for (int c = 1; c < CHARS; c++)
		if (s->has[c] && !strchr("]^-[", c))
			buf_byte(out, (uint8_t)c);
	if (s->has['['])
		buf_byte(out, '[');
	if (s->has['^'] && out->len == start && !s->has['-']) {
		out->len = start - 1;
		buf_str(out, "\\^");
		return;
	}
	if (s->has['-'] && out->len == start) {
		buf_str(out, s->has['^'] ? "-^" : "-");
	} else {
		if (s->has['^'])
			buf_byte(out, '^');
		if (s->has['-'])
			buf_byte(out, '-');
	}
	buf_byte(out, ']');
}

static int bad(struct err *e, const char *why)
{
	return err_set(e, ERR_INVALID, "%s", why);
}

static bool is_plain(char c)
{
	return c >= ' ' && c <= '~';
}

/* One member of a bracket: a character, or a whole class (*ret_char -1). */
static int read_member(struct reader *r, struct set *s, int *ret_char, struct err *e)
{
	static const struct {
		const char *name;
		int (*is)(int c);
	} named[] = { { "[:alnum:]", isalnum }, { "[:alpha:]", isalpha }, { "[:digit:]", isdigit },
		{ "[:lower:]", islower }, { "[:upper:]", isupper }, { "[:xdigit:]", isxdigit } };
	struct set class = { { false } };

	*ret_char = -1;
	for (size_t i = 0; i < ARRAY_LEN(named); i++)
		if (strncmp(r->p, named[i].name, strlen(named[i].name)) == 0) {
			for (int c = 0; c < CHARS; c++)
				s->has[c] |= named[i].is(c) != 0;
			r->p += strlen(named[i].name);
			return 0;
		}
	if (r->p[0] == '[' && r->p[1] == ':')
		return bad(e, "invalid or unknown character class");
	if (r->p[0] == '\\') {
		r->p++;
		if (set_class(&class, *r->p)) {
			set_add(s, &class);
			r->p++;
			return 0;
		}
		if (!ispunct((unsigned char)*r->p))
			return bad(e, "unsupported escape sequence in a character class");
	}
	if (!is_plain(*r->p))
		return bad(e, *r->p ? "unsupported character" : "missing closing ]");
	*ret_char = (unsigned char)*r->p++;
	return 0;
}

static int read_set(struct reader *r, struct err *e)
{
	struct set s = { { false } };
	bool negated = *r->p == '^', first = true, any = false;
	int from, to;

	r->p += negated;
	for (; *r->p != ']' || first; first = false) {
		if (read_member(r, &s, &from, e))
			return ERR_INVALID;
		if (from < 0)
			continue;
		to = from;
		if (r->p[0] == '-' && r->p[1] != ']') {
			r->p++;
			if (read_member(r, &s, &to, e))
				return ERR_INVALID;
			if (to < from)
				return bad(e, "invalid character class range");
		}
		set_range(&s, from, to);
	}
	r->p++;
	for (int c = 1; c < CHARS; c++) {
		s.has[c] ^= negated;
		any |= s.has[c];
	}
	if (!any)
		return bad(e, "a character class that matches nothing");
	set_write(&s, &r->out);
	r->atom = true;
	return 0;
}

/* ---- the rest ---- */

static int read_escape(struct reader *r, struct err *e)
{
	struct set s = { { false } };
	char c = *r->p++;

	if (c == 'A' || c == 'z') {
		buf_byte(&r->out, c == 'A' ? '^' : '$');
		r->atom = false;
		return 0;
	}
	r->atom = true;
	if (set_class(&s, c)) {
		set_write(&s, &r->out);
		return 0;
	}
	if (!ispunct((unsigned char)c))
		return bad(e, "unsupported escape sequence");
	/* POSIX leaves open what \< or \' mean, so only what is special is escaped. */
	if (strchr(".[]\\()*+?{}|^$", c))
		buf_byte(&r->out, '\\');
	buf_byte(&r->out, (uint8_t)c);
	return 0;
}

static int read_open(struct reader *r, struct err *e)
{
	if (*r->p == '?') {
		r->p++;
		if (*r->p == ':') {
			r->p++;
		} else {
			r->p += *r->p == 'P';
			if (*r->p != '<' || !isalpha((unsigned char)r->p[1]))
				return bad(e, "invalid or unsupported Perl syntax after (?");
			while (*++r->p != '>')
				if (!isalnum((unsigned char)*r->p) && *r->p != '_')
					return bad(e, "invalid named capture");
			r->p++;
		}
	}
	buf_byte(&r->out, '(');
	r->atom = false;
	return 0;
}

/* Nobody asks how long a match is, so a lazy operator is a greedy one. */
static int end_repeat(struct reader *r)
{
	r->p += *r->p == '?';
	r->atom = false;
	return 0;
}

static bool read_number(struct reader *r, int *ret)
{
	int v = 0, digits = 0;

	for (; isdigit((unsigned char)*r->p) && digits < 4; digits++)
		v = v * 10 + (*r->p++ - '0');
	*ret = v;
	return digits > 0 && v <= PATTERN_REPEAT_MAX;
}

static int read_count(struct reader *r, struct err *e)
{
	int from, to;

	if (!r->atom || !read_number(r, &from))
		return bad(e, "invalid repetition");
	to = from;
	if (*r->p == ',') {
		r->p++;
		to = -1;
		if (*r->p != '}' && (!read_number(r, &to) || to < from))
			return bad(e, "invalid repetition");
	}
	if (*r->p++ != '}')
		return bad(e, "invalid repetition");
	if (to < 0)
		buf_printf(&r->out, "{%d,}", from);
	else
		buf_printf(&r->out, "{%d,%d}", from, to);
	return end_repeat(r);
}

static int read_one(struct reader *r, struct err *e)
{
	char c = *r->p++;

	switch (c) {
	case '\\':
		return read_escape(r, e);
	case '[':
		return read_set(r, e);
	case '(':
		return read_open(r, e);
	case '{':
		return read_count(r, e);
	case '*':
	case '+':
	case '?':
		if (!r->atom)
			return bad(e, "missing argument to repetition operator");
		buf_byte(&r->out, (uint8_t)c);
		return end_repeat(r);
	case '|':
	case '^':
	case '$':
		buf_byte(&r->out, (uint8_t)c);
		r->atom = false;
		return 0;
	default:
		if (!is_plain(c))
			return bad(e, "unsupported character");
		if (c == ']' || c == '}')
			buf_byte(&r->out, '\\');
		buf_byte(&r->out, (uint8_t)c);
		r->atom = true;
		return 0;
	}
}

static int read_all(struct reader *r, struct err *e)
{
	int depth = 0, code;

	if (strncmp(r->p, "(?i)", 4) == 0) {
		r->fold = true;
		r->p += 4;
	}
	while (*r->p) {
		depth += *r->p == '(';
		if (*r->p == ')' && --depth < 0)
			return bad(e, "unexpected )");
		code = read_one(r, e);
		if (code)
			return code;
	}
	return depth ? bad(e, "missing closing )") : 0;
}

int pattern_new(const char *text, struct pattern **ret, struct err *e)
{
	struct reader r = { .p = text, .out = BUF_INIT_MAX(64 << 10) };
	struct pattern *p;
	int code = strlen(text) > PATTERN_MAX ? bad(e, "expression is too long") : read_all(&r, e);

	if (!code && r.out.failed)
		code = bad(e, "expression is too long");
	if (!code) {
		p = xcalloc(1, sizeof(*p));
		if (regcomp(&p->re, buf_cstr(&r.out),
			    REG_EXTENDED | REG_NOSUB | (r.fold ? REG_ICASE : 0)) == 0) {
			*ret = p;
		} else {
			free(p);
			code = bad(e, "not a regular expression");
		}
	}
	buf_deinit(&r.out);
	return code;
}

void pattern_free(struct pattern *p)
{
	if (!p)
		return;
	regfree(&p->re);
	free(p);
}

bool pattern_matches(const struct pattern *p, const char *text)
{
	return regexec(&p->re, text, 0, NULL, 0) == 0;
}

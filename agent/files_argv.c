#include "agent/files_argv.h"

#include <stdlib.h>
#include <string.h>

#include "lib/buf.h"

struct csv {
	const char *p, *end; /* what is not read yet */
	struct buf line;     /* with its "\n", if it had one */
	size_t at;           /* in the line */
	int number;
	struct err *e;
};

/* CR LF counts as LF, and a CR at the very end as nothing. */
static bool next_line(struct csv *c)
{
	const char *nl = memchr(c->p, '\n', (size_t)(c->end - c->p));
	size_t n = (size_t)((nl ? nl : c->end) - c->p);
	bool any = c->p < c->end;

	buf_reset(&c->line);
	c->at = 0;
	c->number++;
	buf_append(&c->line, c->p, n - (n && c->p[n - 1] == '\r'));
	if (nl)
		buf_byte(&c->line, '\n');
	c->p = nl ? nl + 1 : c->end;
	return any;
}

static size_t left(const struct csv *c)
{
	return c->line.len - c->at;
}

static const char *rest(const struct csv *c)
{
	return (const char *)c->line.p + c->at;
}

/* Only the line's end, or nothing, is left of it. */
static bool at_end(const struct csv *c)
{
	return !left(c) || (left(c) == 1 && *rest(c) == '\n');
}

static int fail(const struct csv *c, const char *what)
{
	return err_set(c->e, ERR_INVALID, "line %d, column %zu: %s", c->number, c->at + 1, what);
}

/* *ret_more: a blank follows, and so another field. */
static int plain_field(struct csv *c, struct buf *ret, bool *ret_more)
{
	const char *blank = left(c) ? memchr(rest(c), ' ', left(c)) : NULL;
	size_t n = blank ? (size_t)(blank - rest(c)) : left(c);

	if (!blank && n && rest(c)[n - 1] == '\n')
		n--;
	if (n && memchr(rest(c), '"', n)) {
		c->at += (size_t)((const char *)memchr(rest(c), '"', n) - rest(c));
		return fail(c, "bare \" in non-quoted-field");
	}
	buf_append(ret, rest(c), n);
	c->at += n + (blank != NULL);
	*ret_more = blank != NULL;
	return 0;
}

static int quoted_field(struct csv *c, struct buf *ret, bool *ret_more)
{
	c->at++;
	for (;;) {
		const char *quote = left(c) ? memchr(rest(c), '"', left(c)) : NULL;

		if (!quote) { /* goes on in the next line */
			buf_append(ret, rest(c), left(c));
			if (!next_line(c))
				return fail(c, "extraneous or missing \" in quoted-field");
			continue;
		}
		buf_append(ret, rest(c), (size_t)(quote - rest(c)));
		c->at += (size_t)(quote - rest(c)) + 1;
		if (left(c) && *rest(c) == '"') {
			buf_byte(ret, '"');
			c->at++;
		} else if (left(c) && *rest(c) == ' ') {
			c->at++;
			*ret_more = true;
			return 0;
		} else if (at_end(c)) {
			*ret_more = false;
			return 0;
		} else {
			return fail(c, "extraneous or missing \" in quoted-field");
		}
	}
}

static int record(struct csv *c, struct strings *ret)
{
	bool more = true;
	int r = 0;

	do { /* empty lines before the first field are skipped */
		if (!next_line(c))
			return fail(c, "there is nothing but line ends in it");
	} while (at_end(c));
	while (!r && more) {
		AUTO_BUF struct buf field = BUF_INIT_MAX(FILES_ARGV_MAX);

		if (ret->n == FILES_ARGS_MAX)
			return fail(c, "too many arguments");
		r = left(c) && *rest(c) == '"' ? quoted_field(c, &field, &more)
					       : plain_field(c, &field, &more);
		if (!r)
			strings_add(ret, buf_cstr(&field));
	}
	return r;
}

int files_argv_parse(const char *text, struct strings *ret, struct err *e)
{
	struct csv c = { .p = text, .end = text + strlen(text), .e = e };
	struct strings args = { NULL, 0 };
	int r;

	if (!*text) {
		*ret = args;
		return 0;
	}
	if (c.end - c.p > FILES_ARGV_MAX)
		return err_set(e, ERR_INVALID, "longer than %d bytes", FILES_ARGV_MAX);
	c.line = BUF_INIT_MAX(FILES_ARGV_MAX + 1);
	r = record(&c, &args);
	buf_deinit(&c.line);
	if (r) {
		strings_deinit(&args);
		return r;
	}
	*ret = args;
	return 0;
}

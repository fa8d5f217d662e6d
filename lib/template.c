/* From a template's text to its tree. */
#include "lib/template_internal.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { VARS_MAX = 100, NODES_MAX = 2000 };

struct parser {
	struct template *t;
	const char *p;
	int depth, loops;
	size_t n_nodes;
	const char *vars[VARS_MAX]; /* in scope */
	size_t n_vars;
	bool trim_next;
	struct err *e;
};

/* ---- memory ---- */

static void keep(struct template *t, void *p)
{
	t->memory = xreallocarray(t->memory, t->n_memory + 1, sizeof(*t->memory));
	t->memory[t->n_memory++] = p;
}

static void *make(struct parser *p, size_t n)
{
	void *v = xcalloc(1, n);

	keep(p->t, v);
	return v;
}

static char *make_str(struct parser *p, const char *s, size_t n)
{
	char *v = xstrndup(s, n);

	keep(p->t, v);
	return v;
}

/* Grows an array of the tree by one; the old one stays until the tree is freed. */
static void *grow(struct parser *p, const void *v, size_t n, size_t size)
{
	char *to = make(p, (n + 1) * size);

	if (n)
		memcpy(to, v, n * size);
	return to;
}

static json_t *constant(struct parser *p, json_t *j)
{
	json_array_append_new(p->t->constants, j);
	return j;
}

/* ---- small things ---- */

static int bad(struct parser *p, const char *fmt, ...) PRINTF_LIKE(2, 3);
static int bad(struct parser *p, const char *fmt, ...)
{
	va_list ap;
	int line = 1;

	for (const char *s = p->t->text; s < p->p && *s; s++)
		line += *s == '\n';
	va_start(ap, fmt);
	err_setv(p->e, ERR_INVALID, fmt, ap);
	va_end(ap);
	return err_wrap(p->e, "template line %d", line);
}

static bool is_space(char c)
{
	return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static bool is_word(char c)
{
	return isalnum((unsigned char)c) || c == '_';
}

static bool is_word_start(char c)
{
	return isalpha((unsigned char)c) || c == '_';
}

static void skip_space(struct parser *p)
{
	while (is_space(*p->p))
		p->p++;
}

/* Behind the action's content: "}}", or "-}}" after white space. */
static bool at_end(const struct parser *p)
{
	if (strncmp(p->p, "}}", 2) == 0)
		return true;
	return strncmp(p->p, "-}}", 3) == 0 && p->p > p->t->text && is_space(p->p[-1]);
}

static int take_end(struct parser *p)
{
	skip_space(p);
	if (!at_end(p)) {
		if (!*p->p)
			return bad(p, "unclosed action");
		return bad(p, "unexpected %.20s in action", p->p);
	}
	p->trim_next = *p->p == '-';
	p->p += p->trim_next ? 3 : 2;
	return 0;
}

static size_t word_len(const char *s)
{
	size_t n = 0;

	while (is_word(s[n]))
		n++;
	return n;
}

static bool take_word(struct parser *p, const char *word)
{
	size_t n = strlen(word);

	if (strncmp(p->p, word, n) != 0 || is_word(p->p[n]))
		return false;
	p->p += n;
	return true;
}

/* ---- constants ---- */

static bool take_rune(struct buf *b, unsigned long c)
{
	if (c < 0x80) {
		buf_byte(b, (uint8_t)c);
	} else if (c < 0x800) {
		buf_byte(b, (uint8_t)(0xc0 | c >> 6));
		buf_byte(b, (uint8_t)(0x80 | (c & 0x3f)));
	} else if (c < 0x10000) {
		if (c >= 0xd800 && c < 0xe000)
			return false;
		buf_byte(b, (uint8_t)(0xe0 | c >> 12));
		buf_byte(b, (uint8_t)(0x80 | (c >> 6 & 0x3f)));
		buf_byte(b, (uint8_t)(0x80 | (c & 0x3f)));
	} else if (c < 0x110000) {
		buf_byte(b, (uint8_t)(0xf0 | c >> 18));
		buf_byte(b, (uint8_t)(0x80 | (c >> 12 & 0x3f)));
		buf_byte(b, (uint8_t)(0x80 | (c >> 6 & 0x3f)));
		buf_byte(b, (uint8_t)(0x80 | (c & 0x3f)));
	} else {
		return false;
	}
	return true;
}

/* \x41, \u0041, \U00000041, \101: p behind the letter (octal: at the first digit). */
static bool take_coded(struct parser *p, struct buf *b, int digits, int base, bool byte)
{
	unsigned long c = 0;

	for (int i = 0; i < digits; i++, p->p++) {
		char d = *p->p;
		int v = isdigit((unsigned char)d)    ? d - '0'
			: isxdigit((unsigned char)d) ? tolower((unsigned char)d) - 'a' + 10
						     : 99;

		if (v >= base)
			return false;
		c = c * (unsigned long)base + (unsigned long)v;
	}
	if (!byte)
		return take_rune(b, c);
	return c < 256 && buf_byte(b, (uint8_t)c);
}

/* Go's escapes; p behind the backslash. */
static bool take_escape(struct parser *p, struct buf *b, char quote)
{
	static const char from[] = "abfnrtv\\", to[] = "\a\b\f\n\r\t\v\\";
	char c = *p->p;
	const char *at = c ? strchr(from, c) : NULL;

	if (c >= '0' && c <= '7')
		return take_coded(p, b, 3, 8, true);
	if (!c)
		return false;
	p->p++;
	if (at)
		return buf_byte(b, (uint8_t)to[at - from]);
	if (c == quote)
		return buf_byte(b, (uint8_t)c);
	if (c == 'x')
		return take_coded(p, b, 2, 16, true);
	if (c == 'u')
		return take_coded(p, b, 4, 16, false);
	return c == 'U' && take_coded(p, b, 8, 16, false);
}

static int read_quoted(struct parser *p, struct operand *o)
{
	AUTO_BUF struct buf b = BUF_INIT_MAX(TEMPLATE_TEXT_MAX);
	char quote = *p->p++;

	while (*p->p != quote) {
		if (!*p->p || *p->p == '\n')
			return bad(p, "unterminated quoted string");
		if (*p->p != '\\')
			buf_byte(&b, (uint8_t)*p->p++);
		else if (p->p++, !take_escape(p, &b, quote))
			return bad(p, "invalid escape in a quoted string");
	}
	p->p++;
	o->value = constant(p, json_stringn_nocheck(buf_cstr(&b), b.len));
	return 0;
}

static int read_raw(struct parser *p, struct operand *o)
{
	const char *end = strchr(p->p + 1, '`');

	if (!end)
		return bad(p, "unterminated raw quoted string");
	o->value = constant(p, json_stringn_nocheck(p->p + 1, (size_t)(end - p->p - 1)));
	p->p = end + 1;
	return 0;
}

/* One character's number. */
static int read_char(struct parser *p, struct operand *o)
{
	struct operand text = { 0 };
	const unsigned char *s;
	int r = read_quoted(p, &text);
	json_int_t c;
	size_t n;

	if (r)
		return r;
	s = (const unsigned char *)json_string_value(text.value);
	n = json_string_length(text.value);
	if (n == 1)
		c = s[0];
	else if (n == 2 && (s[0] & 0xe0) == 0xc0)
		c = (s[0] & 0x1f) << 6 | (s[1] & 0x3f);
	else if (n == 3 && (s[0] & 0xf0) == 0xe0)
		c = (s[0] & 0x0f) << 12 | (s[1] & 0x3f) << 6 | (s[2] & 0x3f);
	else if (n == 4 && (s[0] & 0xf8) == 0xf0)
		c = (s[0] & 0x07) << 18 | (s[1] & 0x3f) << 12 | (s[2] & 0x3f) << 6 | (s[3] & 0x3f);
	else
		return bad(p, "malformed character constant");
	o->value = constant(p, json_integer(c));
	return 0;
}

static int read_number(struct parser *p, struct operand *o)
{
	char text[64], *end;
	size_t n = 0;
	bool real = false, hex;

	if (*p->p == '+' || *p->p == '-')
		text[n++] = *p->p++;
	hex = p->p[0] == '0' && (p->p[1] == 'x' || p->p[1] == 'X');
	while (n < sizeof(text) - 1 &&
		(is_word(*p->p) || *p->p == '.' ||
			((*p->p == '+' || *p->p == '-') && !hex && n &&
				(text[n - 1] == 'e' || text[n - 1] == 'E')))) {
		real |= *p->p == '.' || (!hex && (*p->p == 'e' || *p->p == 'E'));
		if (*p->p != '_')
			text[n++] = *p->p;
		p->p++;
	}
	text[n] = 0;
	errno = 0;
	if (real) {
		double v = strtod(text, &end);

		o->value = constant(p, json_real(v));
		if (!o->value)
			o->value = constant(p, json_integer(0)), end = text;
	} else {
		const char *digits = text + (text[0] == '+' || text[0] == '-');
		int base = 0;

		/* 0b and 0o are Go's; strtoll knows neither. */
		if (digits[0] == '0' && strchr("bBoO", digits[1]) && digits[1]) {
			base = tolower((unsigned char)digits[1]) == 'b' ? 2 : 8;
			memmove(text + (digits - text), digits + 2, strlen(digits + 2) + 1);
		}
		o->value = constant(p, json_integer(strtoll(text, &end, base)));
	}
	if (*end || end == text || errno)
		return bad(p, "bad number syntax: \"%s\"", text);
	return 0;
}

/* ---- operands ---- */

static int read_pipe(struct parser *p, bool range, struct pipe **ret);

static void add_chain(struct parser *p, struct operand *o, const char *s, size_t n)
{
	const char **to = grow(p, o->chain, o->n_chain, sizeof(*o->chain));

	to[o->n_chain++] = make_str(p, s, n);
	o->chain = to;
}

/* .A.B: p at the dot. */
static int read_chain(struct parser *p, struct operand *o)
{
	while (*p->p == '.' && is_word_start(p->p[1])) {
		size_t n = word_len(p->p + 1);

		add_chain(p, o, p->p + 1, n);
		p->p += n + 1;
	}
	if (*p->p == '.')
		return bad(p, "unexpected <.> in operand");
	return 0;
}

static int read_variable(struct parser *p, struct operand *o)
{
	size_t n = word_len(p->p + 1) + 1;

	o->kind = OPERAND_VAR;
	o->name = make_str(p, p->p, n);
	for (size_t i = p->n_vars; i > 0; i--)
		if (strcmp(p->vars[i - 1], o->name) == 0) {
			p->p += n;
			return read_chain(p, o);
		}
	return bad(p, "undefined variable \"%s\"", o->name);
}

static int read_parens(struct parser *p, struct operand *o)
{
	int r;

	if (++p->depth > TEMPLATE_DEPTH_MAX)
		return bad(p, "too deep, at most %d levels are allowed", TEMPLATE_DEPTH_MAX);
	p->p++;
	o->kind = OPERAND_PIPE;
	r = read_pipe(p, false, &o->pipe);
	if (r)
		return r;
	skip_space(p);
	if (*p->p != ')')
		return bad(p, "unclosed left paren");
	p->p++;
	p->depth--;
	return read_chain(p, o);
}

static int read_name(struct parser *p, struct operand *o)
{
	size_t n = word_len(p->p);
	const char *name = make_str(p, p->p, n);

	p->p += n;
	if (strcmp(name, "nil") == 0) {
		o->kind = OPERAND_NIL;
		return 0;
	}
	if (strcmp(name, "true") == 0 || strcmp(name, "false") == 0) {
		o->kind = OPERAND_CONST;
		o->value = constant(p, json_boolean(name[0] == 't'));
		return 0;
	}
	o->kind = OPERAND_FUNC;
	o->func = template_func_find(name);
	if (!o->func)
		return bad(p, "function \"%s\" not defined", name);
	if (*p->p == '.')
		return bad(p, "unexpected <.> after function \"%s\"", name);
	return 0;
}

static int read_operand(struct parser *p, struct operand *o)
{
	const char *from = p->p;
	char c = *p->p;
	int r;

	o->kind = OPERAND_CONST;
	if (c == '.' && is_word_start(p->p[1])) {
		o->kind = OPERAND_FIELD;
		r = read_chain(p, o);
	} else if (c == '.' && !isdigit((unsigned char)p->p[1])) {
		o->kind = OPERAND_DOT;
		p->p++;
		r = 0;
	} else if (c == '$') {
		r = read_variable(p, o);
	} else if (c == '(') {
		r = read_parens(p, o);
	} else if (c == '"') {
		r = read_quoted(p, o);
	} else if (c == '`') {
		r = read_raw(p, o);
	} else if (c == '\'') {
		r = read_char(p, o);
	} else if (isdigit((unsigned char)c) || c == '+' || c == '-' || c == '.') {
		r = read_number(p, o);
	} else if (is_word_start(c)) {
		r = read_name(p, o);
	} else {
		return bad(
			p, c ? "unexpected %.10s in operand" : "unexpected end in operand", p->p);
	}
	o->source = bytes_of(from, (size_t)(p->p - from));
	if (!r && !*p->p)
		return bad(p, "unclosed action");
	if (!r && !is_space(*p->p) && *p->p != '|' && *p->p != ')' && *p->p != ',' && !at_end(p))
		return bad(p, "unexpected %.10s after an operand", p->p);
	return r;
}

/* ---- pipelines ---- */

static int read_command(struct parser *p, struct command *c)
{
	for (;;) {
		int r;

		skip_space(p);
		if (*p->p == '|' || *p->p == ')' || at_end(p))
			break;
		c->args = grow(p, c->args, c->n, sizeof(*c->args));
		r = read_operand(p, &c->args[c->n]);
		if (r)
			return r;
		c->n++;
	}
	if (c->n == 0)
		return bad(p, "missing value for command");
	if (c->n == 1 && c->args[0].kind == OPERAND_NIL)
		return bad(p, "nil is not a command");
	if (c->n > 1 && c->args[0].kind != OPERAND_FUNC)
		return bad(p, "can't give argument to non-function %.*s", (int)c->args[0].source.n,
			(const char *)c->args[0].source.p);
	return 0;
}

static int declare(struct parser *p, struct pipe *to, const char *name, size_t n)
{
	if (p->n_vars == VARS_MAX)
		return bad(p, "too many variables, at most %d are allowed", VARS_MAX);
	to->decl[to->n_decl++] = make_str(p, name, n);
	return 0;
}

static bool is_known(const struct parser *p, const char *name)
{
	for (size_t i = p->n_vars; i > 0; i--)
		if (strcmp(p->vars[i - 1], name) == 0)
			return true;
	return false;
}

/* `$a :=`, `$a =`, and of range `$i, $e :=`; else p does not move. */
static int read_decl(struct parser *p, bool range, struct pipe *to)
{
	const char *s = p->p, *first, *second = NULL;
	size_t n_first, n_second = 0;
	int r;

	if (*s != '$')
		return 0;
	first = s;
	n_first = word_len(s + 1) + 1;
	for (s += n_first; is_space(*s); s++)
		;
	if (range && *s == ',') {
		for (s++; is_space(*s); s++)
			;
		if (*s != '$')
			return bad(p, "range can only initialize variables");
		second = s;
		n_second = word_len(s + 1) + 1;
		for (s += n_second; is_space(*s); s++)
			;
	}
	if (strncmp(s, ":=", 2) != 0 && *s != '=')
		return second ? bad(p, "missing := in range") : 0;
	to->assign = *s == '=';
	p->p = s + (to->assign ? 1 : 2);
	r = declare(p, to, first, n_first);
	if (!r && second)
		r = declare(p, to, second, n_second);
	for (size_t i = 0; !r && to->assign && i < to->n_decl; i++)
		if (!is_known(p, to->decl[i]))
			r = bad(p, "undefined variable \"%s\"", to->decl[i]);
	return r;
}

static int read_pipe(struct parser *p, bool range, struct pipe **ret)
{
	struct pipe *pipe = make(p, sizeof(*pipe));
	int r;

	skip_space(p);
	r = read_decl(p, range, pipe);
	if (r)
		return r;
	for (;;) {
		pipe->commands = grow(p, pipe->commands, pipe->n, sizeof(*pipe->commands));
		r = read_command(p, &pipe->commands[pipe->n]);
		if (r)
			return r;
		/* What takes no arguments cannot stand behind a pipe. */
		if (pipe->n > 0 && pipe->commands[pipe->n].args[0].kind != OPERAND_FUNC)
			return bad(p, "non executable command in pipeline stage %zu", pipe->n + 1);
		pipe->n++;
		skip_space(p);
		if (*p->p != '|')
			break;
		p->p++;
	}
	for (size_t i = 0; !pipe->assign && i < pipe->n_decl; i++) {
		if (p->n_vars == VARS_MAX)
			return bad(p, "too many variables, at most %d are allowed", VARS_MAX);
		p->vars[p->n_vars++] = pipe->decl[i];
	}
	*ret = pipe;
	return 0;
}

/* ---- blocks ---- */

enum end { END_TEXT, END_END, END_ELSE };

static int read_nodes(struct parser *p, struct nodes *to, enum end *ret);

static int add_node(struct parser *p, struct nodes *to, const struct node *n)
{
	if (++p->n_nodes > NODES_MAX)
		return bad(p, "too many actions, at most %d are allowed", NODES_MAX);
	to->v = grow(p, to->v, to->n, sizeof(*to->v));
	to->v[to->n++] = *n;
	return 0;
}

/* Behind "else": `}}`, or another if (or with), which is a block of its own without an end. */
static int read_else(struct parser *p, struct node *n)
{
	static const struct {
		const char *word;
		enum node_kind kind;
	} rows[] = { { "if", NODE_IF }, { "with", NODE_WITH } };
	enum end end;
	int r;

	skip_space(p);
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		struct node inner = { .kind = rows[i].kind };
		size_t vars = p->n_vars;

		if (n->kind != rows[i].kind || !take_word(p, rows[i].word))
			continue;
		if (++p->depth > TEMPLATE_DEPTH_MAX)
			return bad(
				p, "too deep, at most %d levels are allowed", TEMPLATE_DEPTH_MAX);
		r = read_pipe(p, false, &inner.pipe);
		if (!r)
			r = take_end(p);
		if (!r)
			r = read_nodes(p, &inner.body, &end);
		if (!r && end == END_TEXT)
			r = bad(p, "unexpected EOF");
		if (!r && end == END_ELSE)
			r = read_else(p, &inner);
		p->depth--;
		p->n_vars = vars;
		return r ? r : add_node(p, &n->other, &inner);
	}
	r = take_end(p);
	if (!r)
		r = read_nodes(p, &n->other, &end);
	if (!r && end != END_END)
		r = bad(p, end == END_TEXT ? "unexpected EOF" : "expected end; found {{else}}");
	return r;
}

static int read_block(struct parser *p, enum node_kind kind, struct nodes *to)
{
	struct node n = { .kind = kind };
	size_t vars = p->n_vars;
	enum end end;
	int r;

	if (++p->depth > TEMPLATE_DEPTH_MAX)
		return bad(p, "too deep, at most %d levels are allowed", TEMPLATE_DEPTH_MAX);
	r = read_pipe(p, kind == NODE_RANGE, &n.pipe);
	if (!r)
		r = take_end(p);
	p->loops += kind == NODE_RANGE;
	if (!r)
		r = read_nodes(p, &n.body, &end);
	p->loops -= kind == NODE_RANGE;
	if (!r && end == END_TEXT)
		r = bad(p, "unexpected EOF");
	if (!r && end == END_ELSE)
		r = read_else(p, &n);
	p->depth--;
	p->n_vars = vars;
	return r ? r : add_node(p, to, &n);
}

static int read_jump(struct parser *p, enum node_kind kind, struct nodes *to)
{
	if (!p->loops)
		return bad(
			p, "{{%s}} outside {{range}}", kind == NODE_BREAK ? "break" : "continue");
	return take_end(p) ? p->e->code : add_node(p, to, &(struct node){ .kind = kind });
}

/* Behind "{{" and white space. *ret: END_TEXT when it was a plain action or a whole block. */
static int read_action(struct parser *p, struct nodes *to, enum end *ret)
{
	static const char *const refused[] = { "define", "template", "block" };
	struct node n = { .kind = NODE_ACTION };
	int r;

	*ret = END_TEXT;
	if (take_word(p, "if"))
		return read_block(p, NODE_IF, to);
	if (take_word(p, "with"))
		return read_block(p, NODE_WITH, to);
	if (take_word(p, "range"))
		return read_block(p, NODE_RANGE, to);
	if (take_word(p, "break"))
		return read_jump(p, NODE_BREAK, to);
	if (take_word(p, "continue"))
		return read_jump(p, NODE_CONTINUE, to);
	if (take_word(p, "end")) {
		*ret = END_END;
		return take_end(p);
	}
	if (take_word(p, "else")) {
		*ret = END_ELSE;
		return 0;
	}
	for (size_t i = 0; i < ARRAY_LEN(refused); i++)
		if (take_word(p, refused[i]))
			return bad(
				p, "{{%s}} is not supported: named templates are not", refused[i]);
	r = read_pipe(p, false, &n.pipe);
	if (!r)
		r = take_end(p);
	return r ? r : add_node(p, to, &n);
}

static int read_comment(struct parser *p)
{
	const char *end = strstr(p->p, "*/");

	if (!end)
		return bad(p, "unclosed comment");
	p->p = end + 2;
	if (is_space(*p->p) && strncmp(p->p + 1, "-}}", 3) == 0)
		p->p++;
	p->trim_next = *p->p == '-';
	if (strncmp(p->p + p->trim_next, "}}", 2) != 0)
		return bad(p, "comment ends before closing delimiter");
	p->p += p->trim_next ? 3 : 2;
	return 0;
}

/* Text up to the next "{{", with what its neighbours trim taken off. */
static int read_text(struct parser *p, struct nodes *to, const char *open)
{
	const char *from = p->p, *end = open ? open : from + strlen(from);
	struct node n = { .kind = NODE_TEXT };

	while (p->trim_next && from < end && is_space(*from))
		from++;
	p->trim_next = false;
	if (open && open[2] == '-' && is_space(open[3]))
		while (end > from && is_space(end[-1]))
			end--;
	p->p = open ? open : p->p + strlen(p->p);
	n.text = bytes_of(from, (size_t)(end - from));
	return n.text.n ? add_node(p, to, &n) : 0;
}

static int read_nodes(struct parser *p, struct nodes *to, enum end *ret)
{
	for (;;) {
		const char *open = strstr(p->p, "{{");
		int r = read_text(p, to, open);

		*ret = END_TEXT;
		if (r || !open)
			return r;
		p->p += open[2] == '-' && is_space(open[3]) ? 4 : 2;
		if (strncmp(p->p, "/*", 2) == 0) {
			r = read_comment(p);
		} else {
			skip_space(p);
			r = read_action(p, to, ret);
		}
		if (r || *ret != END_TEXT)
			return r;
	}
}

/* ---- from outside ---- */

int template_parse(const char *text, unsigned flags, struct template **ret, struct err *e)
{
	struct parser p = { .vars = { "$" }, .n_vars = 1 };
	struct err local = ERR_INIT;
	enum end end;
	int r;

	if (strlen(text) > TEMPLATE_TEXT_MAX)
		return err_set(e, ERR_INVALID, "template is too long, at most %d bytes are allowed",
			TEMPLATE_TEXT_MAX);
	p.t = xcalloc(1, sizeof(*p.t));
	p.t->text = xstrdup(text);
	p.t->flags = flags;
	p.t->constants = json_array();
	p.p = p.t->text;
	p.e = &local;
	r = read_nodes(&p, &p.t->root, &end);
	if (!r && end != END_TEXT)
		r = bad(&p, "unexpected {{%s}}", end == END_END ? "end" : "else");
	if (r) {
		template_free(p.t);
		return err_set(e, r, "%s", local.msg);
	}
	*ret = p.t;
	return 0;
}

void template_free(struct template *t)
{
	if (!t)
		return;
	for (size_t i = 0; i < t->n_memory; i++)
		free(t->memory[i]);
	free(t->memory);
	json_decref(t->constants);
	free(t->text);
	free(t);
}

/* ---- which fields ---- */

typedef void fields_fn(void *arg, const char *const *names, size_t n);

static void pipe_fields(const struct pipe *p, fields_fn *fn, void *arg)
{
	for (size_t i = 0; i < p->n; i++)
		for (size_t j = 0; j < p->commands[i].n; j++) {
			const struct operand *o = &p->commands[i].args[j];

			if (o->pipe)
				pipe_fields(o->pipe, fn, arg);
			if (o->n_chain)
				fn(arg, o->chain, o->n_chain);
		}
}

static void nodes_fields(const struct nodes *v, fields_fn *fn, void *arg)
{
	for (size_t i = 0; i < v->n; i++) {
		if (v->v[i].pipe)
			pipe_fields(v->v[i].pipe, fn, arg);
		nodes_fields(&v->v[i].body, fn, arg);
		nodes_fields(&v->v[i].other, fn, arg);
	}
}

void template_fields(const struct template *t, fields_fn *fn, void *arg)
{
	nodes_fields(&t->root, fn, arg);
}

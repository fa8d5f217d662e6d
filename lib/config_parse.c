/*
 * Text to tree. The language: https://github.com/hashicorp/hcl/tree/hcl1 (HCL, first version), and
 * JSON (RFC 8259) as another spelling of the same tree.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/config_internal.h"

static struct config_node *new_node(struct config_lexer *x, enum config_kind kind, int line)
{
	struct config_node *n = xcalloc(1, sizeof(*n));

	n->kind = kind;
	n->file = x->file;
	n->line = line;
	x->nodes++;
	return n;
}

static void node_free(struct config_node *n)
{
	for (size_t i = 0; i < n->n; i++)
		node_free(n->children[i]);
	free(n->children);
	free(n->key);
	free(n->text);
	free(n);
}

void config_node_free(struct config_node *n)
{
	void *file;

	if (!n)
		return;
	file = (void *)(uintptr_t)n->file;
	node_free(n);
	free(file);
}

static int add_child(struct config_lexer *x, struct config_node *to, struct config_node *n)
{
	if (!(to->n & (to->n - 1)))
		to->children =
			xreallocarray(to->children, to->n ? to->n * 2 : 1, sizeof(*to->children));
	to->children[to->n++] = n;
	if (x->nodes > CONFIG_NODES_MAX)
		return config_lex_fail(
			x, x->line, "the file has more than %d values", CONFIG_NODES_MAX);
	return 0;
}

static bool at(const struct config_lexer *x, char punct)
{
	return x->tok == T_PUNCT && x->punct == punct;
}

static const char *token_text(const struct config_lexer *x, char *scratch, size_t n)
{
	if (x->tok == T_EOF)
		return "the end of the file";
	if (x->tok == T_PUNCT)
		snprintf(scratch, n, "\"%c\"", x->punct);
	else
		snprintf(scratch, n, "\"%.60s\"", buf_cstr(&x->text));
	return scratch;
}

static int expected(const struct config_lexer *x, const char *what)
{
	char scratch[80];

	return config_lex_fail(x, x->tok_line, "expected %s, found %s", what,
		token_text(x, scratch, sizeof(scratch)));
}

static int parse_object(struct config_lexer *x, struct config_node *to, bool root, int depth);
static int parse_json_object(struct config_lexer *x, struct config_node *to, int depth);

/* The token is the first of a value; afterwards it is the value's last. */
static int parse_value(struct config_lexer *x, struct config_node **ret, int depth);

static int parse_list(struct config_lexer *x, struct config_node *to, int depth)
{
	int r = config_lex_next(x);

	while (!r && !at(x, ']')) {
		struct config_node *item = NULL;

		r = parse_value(x, &item, depth);
		if (r)
			return r;
		r = add_child(x, to, item);
		if (!r)
			r = config_lex_next(x);
		if (r)
			return r;
		if (at(x, ']'))
			return 0;
		if (!at(x, ','))
			return expected(x, "\",\" or \"]\"");
		r = config_lex_next(x);
		if (!r && x->json && at(x, ']'))
			return expected(x, "a value");
	}
	return r;
}

static int parse_value(struct config_lexer *x, struct config_node **ret, int depth)
{
	static const enum config_kind kinds[] = {
		[T_STRING] = CONFIG_STRING,
		[T_NUMBER] = CONFIG_NUMBER,
		[T_BOOL] = CONFIG_BOOL,
		[T_NULL] = CONFIG_NULL,
	};
	struct config_node *n;
	int r = 0;

	if (depth > CONFIG_DEPTH_MAX)
		return config_lex_fail(x, x->tok_line, "nested deeper than %d", CONFIG_DEPTH_MAX);
	if (x->tok == T_IDENT)
		return config_lex_fail(
			x, x->tok_line, "\"%.60s\" must stand in quotes", buf_cstr(&x->text));
	if (x->tok == T_EOF || (x->tok == T_PUNCT && !at(x, '{') && !at(x, '[')))
		return expected(x, "a value");
	if (x->tok != T_PUNCT) {
		n = new_node(x, kinds[x->tok], x->tok_line);
		n->text = xstrdup(buf_cstr(&x->text));
	} else if (at(x, '[')) {
		n = new_node(x, CONFIG_LIST, x->tok_line);
		r = parse_list(x, n, depth + 1);
	} else {
		n = new_node(x, CONFIG_OBJECT, x->tok_line);
		r = x->json ? parse_json_object(x, n, depth + 1)
			    : parse_object(x, n, false, depth + 1);
	}
	if (r) {
		node_free(n);
		return r;
	}
	*ret = n;
	return 0;
}

/* The keys before "=" or "{": all but the last become objects around it. *to moves inward. */
static int parse_keys(
	struct config_lexer *x, struct config_node **to, char **ret_key, int *ret_line)
{
	char *key = NULL;
	int n = 0, r = 0;

	while (x->tok == T_IDENT || x->tok == T_STRING || x->tok == T_BOOL) {
		if (key) {
			struct config_node *outer = new_node(x, CONFIG_OBJECT, *ret_line);

			outer->key = key;
			key = NULL;
			r = add_child(x, *to, outer);
			if (r)
				return r;
			*to = outer;
		}
		key = xstrdup(buf_cstr(&x->text));
		*ret_line = x->tok_line;
		n++;
		r = n > CONFIG_DEPTH_MAX
			    ? config_lex_fail(x, x->tok_line, "too many words before \"{\"")
			    : config_lex_next(x);
		if (r)
			break;
	}
	if (!r && !n)
		r = expected(x, "a name");
	else if (!r && at(x, '=') && n > 1)
		r = expected(x, "\"{\"");
	else if (!r && !at(x, '=') && !at(x, '{'))
		r = expected(x, n > 1 ? "\"{\"" : "\"=\" or \"{\"");
	if (r) {
		free(key);
		return r;
	}
	*ret_key = key;
	return 0;
}

static int parse_item(struct config_lexer *x, struct config_node *to, int depth)
{
	struct config_node *value = NULL;
	AUTO(free) char *key = NULL;
	int line = 0, r = parse_keys(x, &to, &key, &line);

	if (!r && at(x, '='))
		r = config_lex_next(x);
	if (!r)
		r = parse_value(x, &value, depth);
	if (r)
		return r;
	value->key = key;
	value->line = line;
	key = NULL;
	return add_child(x, to, value);
}

/* Items up to "}", or to the end of the file at the root. Commas between them may stand. */
static int parse_object(struct config_lexer *x, struct config_node *to, bool root, int depth)
{
	int r = config_lex_next(x);

	while (!r) {
		if (root && x->tok == T_EOF)
			return 0;
		if (!root && at(x, '}'))
			return 0;
		if (root && at(x, '}'))
			return config_lex_fail(x, x->tok_line, "this \"}\" closes nothing");
		if (!root && x->tok == T_EOF)
			return config_lex_fail(x, x->tok_line,
				"the block that begins in line %d is not closed", to->line);
		r = parse_item(x, to, depth);
		if (!r)
			r = config_lex_next(x);
		if (!r && at(x, ','))
			r = config_lex_next(x);
	}
	return r;
}

static int parse_json_object(struct config_lexer *x, struct config_node *to, int depth)
{
	int r = config_lex_next(x);

	if (!r && at(x, '}'))
		return 0;
	while (!r) {
		struct config_node *value = NULL;
		AUTO(free) char *key = NULL;
		int line = x->tok_line;

		if (x->tok != T_STRING)
			return expected(x, "a name in quotes");
		key = xstrdup(buf_cstr(&x->text));
		r = config_lex_next(x);
		if (!r && !at(x, ':'))
			return expected(x, "\":\"");
		if (!r)
			r = config_lex_next(x);
		if (!r)
			r = parse_value(x, &value, depth);
		if (r)
			return r;
		value->key = key;
		value->line = line;
		key = NULL;
		r = add_child(x, to, value);
		if (!r)
			r = config_lex_next(x);
		if (!r && at(x, '}'))
			return 0;
		if (!r && !at(x, ','))
			return expected(x, "\",\" or \"}\"");
		if (!r)
			r = config_lex_next(x);
	}
	return r;
}

static int parse_root(struct config_lexer *x, struct config_node *root)
{
	int r = config_lex_skip_blank(x);

	if (r)
		return r;
	x->json = x->p < x->end && *x->p == '{';
	if (!x->json)
		return parse_object(x, root, true, 0);
	r = config_lex_next(x);
	if (!r)
		r = parse_json_object(x, root, 0);
	if (!r)
		r = config_lex_next(x);
	if (!r && x->tok != T_EOF)
		return expected(x, "the end of the file");
	return r;
}

int config_parse(const char *file, struct bytes text, struct config_node **ret, struct err *e)
{
	struct config_lexer x = { .line = 1, .e = e };
	struct config_node *root;
	int r;

	if (text.n > CONFIG_FILE_MAX)
		return err_set(e, ERR_INVALID, "%s:1: the file is larger than %d bytes", file,
			CONFIG_FILE_MAX);
	x.p = text.n ? text.p : (const uint8_t *)"";
	x.end = x.p + text.n;
	if (text.n >= 3 && memcmp(text.p, "\xef\xbb\xbf", 3) == 0)
		x.p += 3; /* a byte order mark */
	x.text = BUF_INIT_MAX(CONFIG_FILE_MAX + 8);
	x.file = xstrdup(file);
	root = new_node(&x, CONFIG_OBJECT, 1);
	r = parse_root(&x, root);
	buf_deinit(&x.text);
	if (r) {
		config_node_free(root);
		return r;
	}
	*ret = root;
	return 0;
}

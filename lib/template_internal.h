/* Shared by lib/template*.c only: the tree of a template, and the values it works on. */
#ifndef ASSAY_LIB_TEMPLATE_INTERNAL_H
#define ASSAY_LIB_TEMPLATE_INTERNAL_H

#include "lib/template.h"

/* ---- the tree ---- */

enum node_kind {
	NODE_TEXT,
	NODE_ACTION,
	NODE_IF,
	NODE_WITH,
	NODE_RANGE,
	NODE_BREAK,
	NODE_CONTINUE
};
enum operand_kind {
	OPERAND_DOT,
	OPERAND_NIL,
	OPERAND_FIELD,
	OPERAND_VAR,
	OPERAND_CONST,
	OPERAND_FUNC,
	OPERAND_PIPE
};

struct operand {
	enum operand_kind kind;
	struct bytes source; /* in the template's text, for messages */
	char *name;          /* of a variable, with its $ */
	const char **chain;  /* .A.B */
	size_t n_chain;
	json_t *value; /* of a constant */
	const struct template_func *func;
	struct pipe *pipe;
};
struct command {
	struct operand *args;
	size_t n;
};
struct pipe {
	char *decl[2];
	size_t n_decl;
	bool assign; /* = and not := */
	struct command *commands;
	size_t n;
};
struct node {
	enum node_kind kind;
	struct bytes text;
	struct pipe *pipe;
	struct nodes {
		struct node *v;
		size_t n;
	} body, other;
};

struct template
{
	char *text;
	unsigned flags;
	struct nodes root;
	void **memory; /* all that the tree is made of */
	size_t n_memory;
	json_t *constants;
};

/* ---- values ---- */

struct value {
	json_t *json; /* NULL: no value. Owned by the execution, or by its data */
	const struct template_type *type; /* a struct's, or that of a list's elements */
};

struct execution {
	const struct template *t;
	struct buf out;
	json_t *made; /* list: what is to be freed */
	size_t bytes;
	int steps, depth;
	bool stop_loop, next_round;
	struct variable {
		const char *name;
		struct value v;
	} * vars;
	size_t n_vars;
	struct value dot;
	struct err *e;
};

struct template_func {
	const char *name;
	int (*fn)(struct execution *x, const struct value *args, size_t n, struct value *ret);
	int min, max; /* arguments; max -1: any number */
};
const struct template_func *template_func_find(const char *name);
const struct template_func *template_sprig_find(const char *name);
const struct template_func *template_list_find(const char *name);
bool template_func_lazy_or(const struct template_func *f, bool *ret_or); /* is it and/or? */

/* Takes over j. Gives false, and the error, beyond the bound. */
int template_own(struct execution *x, json_t *j, struct value *ret);
int template_own_str(struct execution *x, const char *s, size_t n, struct value *ret);
int template_own_buf(struct execution *x, struct buf *b, struct value *ret); /* empties b */
bool template_truth(const struct value *v);
const char *template_kind_name(const struct value *v); /* Go's name of the value's type */
/* As fmt's %v. */
int template_print(struct execution *x, struct buf *b, const struct value *v);
struct value template_element(const struct value *list, size_t i);
int template_steps(struct execution *x, size_t n); /* counts, and ends what takes too many */
/* Caller frees the array alone. */
const char **template_sorted_keys(const json_t *o, size_t *ret_n);

#endif

/* Shared by the files of lib/config only. */
#ifndef ASSAY_LIB_CONFIG_INTERNAL_H
#define ASSAY_LIB_CONFIG_INTERNAL_H

#include "lib/config.h"

enum config_token { T_EOF, T_IDENT, T_STRING, T_NUMBER, T_BOOL, T_NULL, T_PUNCT };

struct config_lexer {
	const char *file;
	const uint8_t *p, *end;
	int line;
	bool json;
	size_t nodes;

	enum config_token tok; /* the token read last */
	int tok_line;
	char punct;
	struct buf text; /* of an identifier, string (unquoted), number, bool */
	struct err *e;
};

/* Fills x->e with "file:line: text"; gives ERR_INVALID. */
int config_lex_fail(const struct config_lexer *x, int line, const char *fmt, ...) PRINTF_LIKE(3, 4);
/* Reads the next token into x->tok, x->text, x->punct. */
int config_lex_next(struct config_lexer *x);
int config_lex_skip_blank(struct config_lexer *x);

/* config.c */
struct config_where *config_where_of(const struct config *c, const struct config_option *o);
void config_warning_at(struct config *c, const struct config_node *n, const char *fmt, ...)
	PRINTF_LIKE(3, 4);
void config_load_section(struct config *c, const struct config_node *object, const char *prefix,
	const struct config_option *section);

/* config_value.c */
void config_set_value(struct config *c, const struct config_option *o, const struct config_node *n);
const char *config_key_of(const struct config_option *o); /* the last part of its path */
const char *config_kind_name(enum config_kind k);
bool config_is_empty(const struct config_node *n);

#endif

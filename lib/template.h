/*
 * Go's text/template as configuration files and Kubernetes objects have it, over JSON values: text,
 * {{ actions }} with trim markers and comments, fields, index, pipelines, variables, if, with and
 * range (else, else if, break, continue), the predefined functions, and most of sprig's functions
 * on texts and lists. Named templates (define, template, block) and methods are refused, each by
 * name.
 *
 * JSON knows no types, and Go's templates behave by them: a missing key of a map prints "<no
 * value>", an unset text of a struct prints nothing, an unknown field is an error. So an object may
 * be described by a struct template_type; one without is a map.
 *
 * Everything is bounded: the text, nesting, steps, and what comes out.
 */
#ifndef ASSAY_LIB_TEMPLATE_H
#define ASSAY_LIB_TEMPLATE_H

#include <jansson.h>
#include <stdbool.h>

#include "lib/buf.h"
#include "lib/err.h"

enum {
	TEMPLATE_TEXT_MAX = 16 << 10,
	TEMPLATE_DEPTH_MAX = 50,     /* of blocks and parentheses */
	TEMPLATE_STEPS_MAX = 100000, /* of one execution */
	TEMPLATE_OUTPUT_MAX = 64 << 10,
	TEMPLATE_VALUES_MAX = 1 << 20, /* bytes of texts made on the way */
};

enum template_kind { /* of a field that the object does not have */
	TEMPLATE_STRING,
	TEMPLATE_INT,
	TEMPLATE_BOOL,
	TEMPLATE_POINTER, /* nil; else as it is */
	TEMPLATE_MAP,
	TEMPLATE_LIST,
	TEMPLATE_STRUCT,
	TEMPLATE_TIME,   /* RFC 3339, printed as Go does */
	TEMPLATE_INLINE, /* embedded: the object itself */
};
struct template_type;
struct template_field {
	const char *name; /* Go's */
	const char *json; /* NULL: the name with its first capitals made small */
	enum template_kind kind;
	const struct template_type *type; /* of the struct, or of a list's elements */
};
struct template_type {
	const char *name;
	const struct template_field *fields; /* ends with a NULL name */
	/* Fields that are not listed are looked for by their JSON name; an absent one is nil. */
	bool open;
};

enum { TEMPLATE_MISSING_ERROR = 1 << 0 }; /* Option("missingkey=error") */

struct template;
/* ERR_INVALID says what is wrong, in Go's words where it has some. */
int template_parse(const char *text, unsigned flags, struct template **ret, struct err *e) MUST_USE;
void template_free(struct template *t); /* NULL is fine */
/* Appends to ret, which is untouched on failure. ERR_INVALID; ERR_EXHAUSTED beyond a bound. data is
 * borrowed and not changed. */
int template_execute(const struct template *t, json_t *data, const struct template_type *type,
	struct buf *ret, struct err *e) MUST_USE;
/* fn(arg, names, n) for every chain of fields in the text: `.A.B`, `$x.A`, `(…).A`. */
void template_fields(const struct template *t,
	void (*fn)(void *arg, const char *const *names, size_t n), void *arg);

DEFINE_AUTO(template_free, struct template *);

#endif

#include "lib/yaml.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

struct anchor {
	char *name;
	json_t *value;
	int nodes, depth;
};

struct reader {
	yaml_parser_t parser;
	enum yaml_scalars scalars;
	int nodes;
	struct anchor anchors[YAML_ANCHORS_MAX];
	int n_anchors;
};

static int bad(const yaml_mark_t *at, struct err *e, const char *what)
{
	return err_set(e, ERR_INVALID, "line %zu: %s", at->line + 1, what);
}

static int next(struct reader *r, yaml_event_t *ret, struct err *e)
{
	if (yaml_parser_parse(&r->parser, ret))
		return 0;
	return bad(&r->parser.problem_mark, e, r->parser.problem ? r->parser.problem : "not YAML");
}

/* ---- scalars ---- */

static bool any_of(const char *s, const char *const *words, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (strcmp(s, words[i]) == 0)
			return true;
	return false;
}

static bool is_null(const char *s)
{
	static const char *const words[] = { "", "~", "null", "Null", "NULL" };

	return any_of(s, words, ARRAY_LEN(words));
}

static bool is_true(const char *s)
{
	static const char *const words[] = { "true", "True", "TRUE" };

	return any_of(s, words, ARRAY_LEN(words));
}

static bool is_false(const char *s)
{
	static const char *const words[] = { "false", "False", "FALSE" };

	return any_of(s, words, ARRAY_LEN(words));
}

/* [-+]?[0-9]+, 0o[0-7]+, 0x[0-9a-fA-F]+ */
static json_t *as_integer(const char *s)
{
	const char *digits = s + (*s == '-' || *s == '+');
	int base = strncmp(s, "0o", 2) == 0 ? 8 : strncmp(s, "0x", 2) == 0 ? 16 : 10;
	long long v;
	char *end;

	if (base != 10)
		digits = s + 2;
	if (!isxdigit((unsigned char)*digits))
		return NULL;
	errno = 0;
	v = strtoll(base == 10 ? s : digits, &end, base);
	return *end || errno ? NULL : json_integer(v);
}

/* [-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)? */
static json_t *as_real(const char *s)
{
	const char *p = s + (*s == '-' || *s == '+');
	size_t n;
	char *end;
	double v;

	if (strspn(p, "0123456789.eE+-") != strlen(p))
		return NULL;
	n = strspn(p, "0123456789");
	if (n == 0 && !(p[0] == '.' && isdigit((unsigned char)p[1])))
		return NULL;
	v = strtod(s, &end);
	return *end ? NULL : json_real(v); /* NULL also for one that is too large */
}

static json_t *plain(const char *s)
{
	json_t *v;

	if (is_null(s))
		return json_null();
	if (is_true(s) || is_false(s))
		return json_boolean(is_true(s));
	v = as_integer(s);
	return v ? v : as_real(s);
}

static bool tag_is(const yaml_char_t *tag, const char *name)
{
	return tag && strcmp((const char *)tag, name) == 0;
}

static int read_scalar(struct reader *r, const yaml_event_t *ev, json_t **ret, struct err *e)
{
	const char *s = (const char *)ev->data.scalar.value;
	const yaml_char_t *tag = ev->data.scalar.tag;
	json_t *v = NULL;

	if (strlen(s) != ev->data.scalar.length)
		return bad(&ev->start_mark, e, "a zero byte");
	if (tag_is(tag, YAML_NULL_TAG))
		v = json_null();
	else if (tag && !tag_is(tag, YAML_STR_TAG) && !tag_is(tag, YAML_INT_TAG) &&
		 !tag_is(tag, YAML_FLOAT_TAG) && !tag_is(tag, YAML_BOOL_TAG) && !tag_is(tag, "!"))
		return bad(&ev->start_mark, e, "a tag that is not known here");
	else if (r->scalars == YAML_TYPED && ev->data.scalar.plain_implicit)
		v = plain(s);
	if (!v)
		v = json_string(s);
	if (!v)
		return bad(&ev->start_mark, e, "not UTF-8");
	*ret = v;
	return 0;
}

/* ---- structure ---- */

static int count(struct reader *r, int n, const yaml_mark_t *at, struct err *e)
{
	r->nodes += n;
	return r->nodes > YAML_NODES_MAX ? bad(at, e, "the document is too large") : 0;
}

static int read_alias(
	struct reader *r, const yaml_event_t *ev, int depth, json_t **ret, struct err *e)
{
	const char *name = (const char *)ev->data.alias.anchor;

	/* An anchor's name may be given anew: the last one counts (YAML 1.2, 7.1). */
	for (int i = r->n_anchors - 1; i >= 0; i--) {
		const struct anchor *a = &r->anchors[i];

		if (strcmp(a->name, name) != 0)
			continue;
		if (depth + a->depth > YAML_DEPTH_MAX)
			return bad(&ev->start_mark, e, "nested too deeply");
		if (count(r, a->nodes, &ev->start_mark, e))
			return e->code;
		*ret = json_deep_copy(a->value);
		return 0;
	}
	return bad(&ev->start_mark, e, "an alias of nothing");
}

static int depth_of(const json_t *v)
{
	const char *key;
	json_t *member;
	size_t i;
	int most = 0, d;

	json_object_foreach((json_t *)(uintptr_t)v, key, member) if ((d = depth_of(member)) > most)
		most = d;
	json_array_foreach(v, i, member) if ((d = depth_of(member)) > most) most = d;
	return most + 1;
}

static int keep_anchor(struct reader *r, const yaml_event_t *ev, const yaml_char_t *name,
	int nodes_before, json_t *v, struct err *e)
{
	if (!name)
		return 0;
	if (r->n_anchors == YAML_ANCHORS_MAX)
		return bad(&ev->start_mark, e, "too many anchors");
	r->anchors[r->n_anchors++] = (struct anchor){
		.name = xstrdup((const char *)name),
		.value = json_incref(v),
		.nodes = r->nodes - nodes_before,
		.depth = depth_of(v),
	};
	return 0;
}

static int read_node(
	struct reader *r, const yaml_event_t *ev, int depth, json_t **ret, struct err *e);

static int read_list(struct reader *r, int depth, json_t *list, struct err *e)
{
	for (;;) {
		yaml_event_t ev;
		json_t *v = NULL;
		int x = next(r, &ev, e);

		if (x)
			return x;
		if (ev.type == YAML_SEQUENCE_END_EVENT) {
			yaml_event_delete(&ev);
			return 0;
		}
		x = read_node(r, &ev, depth + 1, &v, e);
		yaml_event_delete(&ev);
		if (x)
			return x;
		json_array_append_new(list, v);
	}
}

static int read_key(const yaml_event_t *ev, json_t *map, char **ret, struct err *e)
{
	const char *s = (const char *)ev->data.scalar.value;

	if (ev->type != YAML_SCALAR_EVENT || strlen(s) != ev->data.scalar.length)
		return bad(&ev->start_mark, e, "a key that is no string");
	if (strcmp(s, "<<") == 0 && ev->data.scalar.style == YAML_PLAIN_SCALAR_STYLE)
		return bad(&ev->start_mark, e, "merge keys are not supported");
	if (json_object_get(map, s))
		return err_set(e, ERR_INVALID, "line %zu: key \"%.100s\" is there twice",
			ev->start_mark.line + 1, s);
	*ret = xstrdup(s);
	return 0;
}

static int read_member(
	struct reader *r, const yaml_event_t *key_event, int depth, json_t *map, struct err *e)
{
	AUTO(free) char *key = NULL;
	yaml_event_t ev;
	json_t *v = NULL;
	int x = read_key(key_event, map, &key, e);

	if (!x)
		x = next(r, &ev, e);
	if (x)
		return x;
	x = read_node(r, &ev, depth + 1, &v, e);
	if (!x && json_object_set_new(map, key, v) != 0)
		x = bad(&ev.start_mark, e, "not UTF-8");
	yaml_event_delete(&ev);
	return x;
}

static int read_map(struct reader *r, int depth, json_t *map, struct err *e)
{
	for (;;) {
		yaml_event_t ev;
		int x = next(r, &ev, e);

		if (x)
			return x;
		if (ev.type == YAML_MAPPING_END_EVENT) {
			yaml_event_delete(&ev);
			return 0;
		}
		x = read_member(r, &ev, depth, map, e);
		yaml_event_delete(&ev);
		if (x)
			return x;
	}
}

static int read_node(
	struct reader *r, const yaml_event_t *ev, int depth, json_t **ret, struct err *e)
{
	const yaml_char_t *anchor = NULL;
	int before = r->nodes;
	json_t *v = NULL;
	int x;

	if (depth > YAML_DEPTH_MAX)
		return bad(&ev->start_mark, e, "nested too deeply");
	if (count(r, 1, &ev->start_mark, e))
		return e->code;
	switch (ev->type) {
	case YAML_ALIAS_EVENT:
		return read_alias(r, ev, depth, ret, e);
	case YAML_SCALAR_EVENT:
		anchor = ev->data.scalar.anchor;
		x = read_scalar(r, ev, &v, e);
		break;
	case YAML_SEQUENCE_START_EVENT:
		anchor = ev->data.sequence_start.anchor;
		v = json_array();
		x = read_list(r, depth, v, e);
		break;
	case YAML_MAPPING_START_EVENT:
		anchor = ev->data.mapping_start.anchor;
		v = json_object();
		x = read_map(r, depth, v, e);
		break;
	default:
		return bad(&ev->start_mark, e, "not a value");
	}
	if (!x)
		x = keep_anchor(r, ev, anchor, before, v, e);
	if (x)
		json_decref(v);
	else
		*ret = v;
	return x;
}

/* From the start of the stream to its end. */
static int read_stream(struct reader *r, json_t **ret, struct err *e)
{
	json_t *v = NULL;
	bool ended = false;
	int x = 0;

	while (!x && !ended) {
		yaml_event_t ev;

		x = next(r, &ev, e);
		if (x)
			break;
		switch (ev.type) {
		case YAML_STREAM_START_EVENT:
		case YAML_DOCUMENT_END_EVENT:
			break;
		case YAML_DOCUMENT_START_EVENT:
			if (v)
				x = bad(&ev.start_mark, e, "a second document");
			break;
		case YAML_STREAM_END_EVENT:
			ended = true;
			break;
		default:
			x = read_node(r, &ev, 1, &v, e);
		}
		yaml_event_delete(&ev);
	}
	if (x)
		json_decref(v);
	else
		*ret = v ? v : json_null();
	return x;
}

int yaml_parse(struct bytes text, enum yaml_scalars scalars, json_t **ret, struct err *e)
{
	struct reader r = { .scalars = scalars };
	int x;

	if (text.n > YAML_TEXT_MAX)
		return err_set(e, ERR_INVALID, "more than %d bytes of YAML", YAML_TEXT_MAX);
	INVARIANT(yaml_parser_initialize(&r.parser));
	yaml_parser_set_input_string(&r.parser, text.p ? text.p : (const uint8_t *)"", text.n);
	x = read_stream(&r, ret, e);
	for (int i = 0; i < r.n_anchors; i++) {
		free(r.anchors[i].name);
		json_decref(r.anchors[i].value);
	}
	yaml_parser_delete(&r.parser);
	return x;
}

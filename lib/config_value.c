/* One value of a file into the struct. */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "lib/config_internal.h"
#include "lib/crypto.h"
#include "lib/log.h"
#include "lib/spiffeid.h"
#include "lib/text.h"

const char *config_key_of(const struct config_option *o)
{
	const char *dot = strrchr(o->path, '.');

	return dot ? dot + 1 : o->path;
}

const char *config_kind_name(enum config_kind k)
{
	static const char *const names[] = {
		[CONFIG_STRING] = "a string",
		[CONFIG_NUMBER] = "a number",
		[CONFIG_BOOL] = "true or false",
		[CONFIG_NULL] = "null",
		[CONFIG_LIST] = "a list",
		[CONFIG_OBJECT] = "a block",
	};

	return names[k];
}

static void wrong_kind(struct config *c, const struct config_option *o, const struct config_node *n,
	const char *want)
{
	config_problem_at(c, n, "\"%s\" must be %s, not %s%s", config_key_of(o), want,
		config_kind_name(n->kind),
		n->kind == CONFIG_STRING && o->type == CONFIG_T_BOOL ? " (write it without quotes)"
								     : "");
}

static void *slot(const struct config *c, const struct config_option *o)
{
	return (char *)c->base + o->offset;
}

/* Go's base 0: 0x…, 0…, decimal. */
static bool read_int(const char *text, int64_t *ret)
{
	char *end;

	errno = 0;
	*ret = strtoll(text, &end, 0);
	return *text && !*end && !errno && (*text == '-' || (*text >= '0' && *text <= '9'));
}

static bool in_range(const struct config_option *o, int64_t v)
{
	return (!o->min && !o->max) || (v >= o->min && v <= o->max);
}

static void set_int(struct config *c, const struct config_option *o, const struct config_node *n)
{
	int64_t v;
	bool small = o->type == CONFIG_T_INT;

	if (n->kind != CONFIG_NUMBER && n->kind != CONFIG_STRING)
		wrong_kind(c, o, n, "a number");
	else if (!read_int(n->text, &v))
		config_problem_at(c, n, "\"%s\" must be a whole number, not \"%s\"",
			config_key_of(o), n->text);
	else if (small && (v < INT_MIN || v > INT_MAX))
		config_problem_at(c, n, "\"%s\" is too large", config_key_of(o));
	else if (!in_range(o, v))
		config_problem_at(c, n, "\"%s\" must be from %lld to %lld, not %lld",
			config_key_of(o), (long long)o->min, (long long)o->max, (long long)v);
	else if (small)
		*(int *)slot(c, o) = (int)v;
	else
		*(int64_t *)slot(c, o) = v;
}

static void set_bool(struct config *c, const struct config_option *o, const struct config_node *n)
{
	if (n->kind != CONFIG_BOOL)
		wrong_kind(c, o, n, "true or false");
	else
		*(bool *)slot(c, o) = strcmp(n->text, "true") == 0;
}

static void set_duration(
	struct config *c, const struct config_option *o, const struct config_node *n)
{
	struct err e;
	int64_t v;

	if (n->kind != CONFIG_STRING && n->kind != CONFIG_NUMBER) {
		wrong_kind(c, o, n, "a duration such as \"1h30m\"");
	} else if (!*n->text) {
		/* as if it were not there */
	} else if (duration_parse(n->text, &v, &e)) {
		config_problem_at(c, n, "\"%s\": %s; write it like \"1h30m\" or \"10s\"",
			config_key_of(o), e.msg);
	} else if (!in_range(o, v)) {
		AUTO(free) char *min = duration_format(o->min);
		AUTO(free) char *max = duration_format(o->max);

		if (v < o->min)
			config_problem_at(c, n, "\"%s\" must be at least %s, not %s",
				config_key_of(o), min, n->text);
		else
			config_problem_at(c, n, "\"%s\" must be at most %s, not %s",
				config_key_of(o), max, n->text);
	} else {
		*(int64_t *)slot(c, o) = v;
	}
}

static void set_string(struct config *c, const struct config_option *o, const struct config_node *n)
{
	char **s = slot(c, o), *v = NULL;
	struct err e;

	if (n->kind != CONFIG_STRING && n->kind != CONFIG_NUMBER) {
		wrong_kind(c, o, n, "a string");
		return;
	}
	if (!*n->text && o->flags & (CONFIG_EMPTY_IS_UNSET | CONFIG_REQUIRED)) {
		config_where_of(c, o)->line = 0;
		free(config_where_of(c, o)->file);
		config_where_of(c, o)->file = NULL;
		return;
	}
	if (o->flags & CONFIG_TRUST_DOMAIN) {
		if (trust_domain_parse(n->text, &v, &e)) {
			config_problem_at(c, n, "could not parse %s \"%s\": %s", config_key_of(o),
				n->text, e.msg);
			return;
		}
	} else {
		v = xstrdup(n->text);
	}
	free(*s);
	*s = v;
}

static void set_strings(
	struct config *c, const struct config_option *o, const struct config_node *n)
{
	struct strings *s = slot(c, o);

	if (o->flags & CONFIG_APPEND && n->kind == CONFIG_STRING) {
		if (*n->text)
			strings_add(s, n->text);
		return;
	}
	if (n->kind != CONFIG_LIST) {
		wrong_kind(c, o, n, o->flags & CONFIG_APPEND ? "a string" : "a list of strings");
		return;
	}
	for (size_t i = 0; i < n->n; i++) {
		if (n->children[i]->kind == CONFIG_STRING)
			strings_add(s, n->children[i]->text);
		else
			config_problem_at(c, n->children[i], "\"%s\" must hold strings, not %s",
				config_key_of(o), config_kind_name(n->children[i]->kind));
	}
}

/* The place of text among "a|b|c", or -1. */
static int choice(const char *choices, const char *text)
{
	size_t len = strlen(text);

	for (int i = 0;; i++) {
		size_t n = strcspn(choices, "|");

		if (n == len && strncasecmp(choices, text, n) == 0)
			return i;
		if (!choices[n])
			return -1;
		choices += n + 1;
	}
}

/* "a, b or c" */
static char *choices_text(const char *choices)
{
	struct buf b = BUF_INIT;

	for (bool first = true;; first = false) {
		size_t n = strcspn(choices, "|");

		if (!first)
			buf_str(&b, choices[n] ? ", " : " or ");
		buf_printf(&b, "\"%.*s\"", (int)n, choices);
		if (!choices[n])
			return buf_take_str(&b);
		choices += n + 1;
	}
}

static void wrong_choice(
	struct config *c, const struct config_option *o, const struct config_node *n)
{
	AUTO(free) char *all = choices_text(o->choices);

	config_problem_at(c, n, "\"%s\" must be %s, not \"%s\"", config_key_of(o), all, n->text);
}

static void set_choice(struct config *c, const struct config_option *o, const struct config_node *n)
{
	struct err e;
	int i;

	if (n->kind != CONFIG_STRING) {
		wrong_kind(c, o, n, "a string");
		return;
	}
	if (!*n->text && o->value)
		return; /* the default stays */
	i = o->choices ? choice(o->choices, n->text) : 0;
	if (i < 0) {
		wrong_choice(c, o, n);
	} else if (o->type == CONFIG_T_KEY_TYPE) {
		AUTO(free) char *lower = xstrdup(n->text);

		for (char *p = lower; *p; p++)
			*p = (char)(*p | 0x20);
		if (key_type_parse(lower, slot(c, o), &e))
			config_problem_at(c, n, "\"%s\": %s", config_key_of(o), e.msg);
	} else if (o->type == CONFIG_T_LOG_LEVEL) {
		if (log_level_parse(n->text, slot(c, o), &e))
			config_problem_at(c, n, "\"%s\": %s", config_key_of(o), e.msg);
	} else if (o->type == CONFIG_T_CHOICE_BOOL) {
		*(bool *)slot(c, o) = i == 1;
	} else {
		*(int *)slot(c, o) = i;
	}
}

bool config_is_empty(const struct config_node *n)
{
	switch (n->kind) {
	case CONFIG_STRING:
		return !*n->text;
	case CONFIG_NUMBER:
		return strcmp(n->text, "0") == 0;
	case CONFIG_BOOL:
		return strcmp(n->text, "false") == 0;
	case CONFIG_LIST:
	case CONFIG_OBJECT:
		return n->n == 0;
	case CONFIG_NULL:
		break;
	}
	return true;
}

static void set_fixed(struct config *c, const struct config_option *o, const struct config_node *n)
{
	if (n->text && choice(o->choices, n->text) >= 0)
		return;
	config_problem_at(c, n, "\"%s\": %s", config_key_of(o), o->note);
}

static void set_section(
	struct config *c, const struct config_option *o, const struct config_node *n)
{
	if (n->kind == CONFIG_LIST) { /* JSON's and HCL's other way to repeat a block */
		for (size_t i = 0; i < n->n; i++)
			set_section(c, o, n->children[i]);
		return;
	}
	if (n->kind != CONFIG_OBJECT) {
		wrong_kind(c, o, n, "a block");
		return;
	}
	if (o->flags & CONFIG_PRESENT)
		*(bool *)slot(c, o) = true;
	config_load_section(c, n, o->path, o);
}

static void set_blocks(struct config *c, const struct config_option *o, const struct config_node *n)
{
	struct config_blocks *b = slot(c, o);

	if (n->kind != CONFIG_LIST && n->kind != CONFIG_OBJECT) {
		wrong_kind(c, o, n, "a block");
		return;
	}
	for (size_t i = 0; i < n->n; i++) {
		if (n->kind == CONFIG_LIST) {
			set_blocks(c, o, n->children[i]);
			continue;
		}
		b->v = xreallocarray(b->v, b->n + 1, sizeof(struct config_node *));
		b->v[b->n++] = n->children[i];
	}
}

static void set_list(struct config *c, const struct config_option *o, const struct config_node *n)
{
	struct config_blocks *b = slot(c, o);

	if (n->kind == CONFIG_LIST) {
		for (size_t i = 0; i < n->n; i++)
			set_list(c, o, n->children[i]);
		return;
	}
	if (n->kind != CONFIG_OBJECT) {
		wrong_kind(c, o, n, "a list of objects");
		return;
	}
	b->v = xreallocarray(b->v, b->n + 1, sizeof(struct config_node *));
	b->v[b->n++] = n;
}

/* A plugin is named with its type. */
static void refuse(struct config *c, const struct config_option *o, const struct config_node *n)
{
	const char *key = config_key_of(o), *type = o->path + strlen("plugins.");

	if (strncmp(o->path, "plugins.", 8) == 0 && strchr(type, '.') == key - 1)
		config_problem_at(
			c, n, "%.*s \"%s\": %s", (int)(key - 1 - type), type, key, o->note);
	else
		config_problem_at(c, n, "\"%s\": %s", key, o->note);
}

static void mark(struct config *c, const struct config_option *o, const struct config_node *n)
{
	struct config_where *w = config_where_of(c, o);

	if (!n || w->line)
		return;
	w->file = xstrdup(n->file);
	w->line = n->line;
}

void config_set_value(struct config *c, const struct config_option *o, const struct config_node *n)
{
	if (n->kind == CONFIG_NULL)
		return;
	if (config_where_of(c, o)->line > 0 && o->flags & CONFIG_PLUGIN)
		config_problem_at(c, n, "plugin \"%s\" was given in line %d already", o->path + 8,
			config_where_of(c, o)->line);
	else if (config_where_of(c, o)->line > 0 && o->type != CONFIG_T_SECTION &&
		 o->type != CONFIG_T_BLOCKS && o->type != CONFIG_T_LIST && n->line > 0)
		config_warning_at(c, n, "\"%s\" was given in line %d already; the last one counts",
			config_key_of(o), config_where_of(c, o)->line);
	mark(c, o, n);
	switch (o->type) {
	case CONFIG_T_STRING:
		set_string(c, o, n);
		break;
	case CONFIG_T_INT:
	case CONFIG_T_INT64:
		set_int(c, o, n);
		break;
	case CONFIG_T_BOOL:
		set_bool(c, o, n);
		break;
	case CONFIG_T_DURATION:
		set_duration(c, o, n);
		break;
	case CONFIG_T_STRINGS:
		set_strings(c, o, n);
		break;
	case CONFIG_T_KEY_TYPE:
	case CONFIG_T_LOG_LEVEL:
	case CONFIG_T_CHOICE:
	case CONFIG_T_CHOICE_BOOL:
		set_choice(c, o, n);
		break;
	case CONFIG_T_SECTION:
		set_section(c, o, n);
		break;
	case CONFIG_T_BLOCKS:
		set_blocks(c, o, n);
		break;
	case CONFIG_T_LIST:
		set_list(c, o, n);
		break;
	case CONFIG_T_IGNORED:
		if (!config_is_empty(n))
			config_warning_at(
				c, n, "\"%s\" has no effect: %s", config_key_of(o), o->note);
		break;
	case CONFIG_T_FIXED:
		set_fixed(c, o, n);
		break;
	case CONFIG_T_REFUSED:
		if (!(o->flags & CONFIG_EMPTY_OK && config_is_empty(n)))
			refuse(c, o, n);
		break;
	}
}

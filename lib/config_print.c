/* The option table the other way round: values as text, the table as a document. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "lib/config.h"
#include "lib/crypto.h"
#include "lib/log.h"
#include "lib/text.h"

static const void *slot(const struct config_option *o, const void *base)
{
	return (const char *)base + o->offset;
}

void config_free_values(const struct config_option *options, void *base)
{
	for (const struct config_option *o = options; o->path; o++) {
		if (o->type == CONFIG_T_STRING) {
			char **s = (char **)((char *)base + o->offset);

			if (*s && o->flags & CONFIG_SECRET)
				mem_wipe(*s, strlen(*s));
			free(*s);
			*s = NULL;
		} else if (o->type == CONFIG_T_STRINGS) {
			struct strings *s = (struct strings *)((char *)base + o->offset);

			strings_deinit(s);
			*s = (struct strings){ NULL, 0 };
		} else if (o->type == CONFIG_T_BLOCKS || o->type == CONFIG_T_LIST) {
			struct config_blocks *b =
				(struct config_blocks *)((char *)base + o->offset);

			free(b->v);
			*b = (struct config_blocks){ .n = 0 };
		}
	}
}

static void put_choice(struct buf *b, const char *choices, int i)
{
	for (; i > 0; i--)
		choices += strcspn(choices, "|") + 1;
	buf_printf(b, "\"%.*s\"", (int)strcspn(choices, "|"), choices);
}

static void put_quoted(struct buf *b, const char *s)
{
	AUTO(free) char *q = text_quote(s);

	buf_str(b, q);
}

static void put_strings(struct buf *b, const struct strings *s)
{
	buf_byte(b, '[');
	for (size_t i = 0; i < s->n; i++) {
		if (i)
			buf_str(b, ", ");
		put_quoted(b, s->v[i]);
	}
	buf_byte(b, ']');
}

/* False when there is nothing to print. */
static bool put_value(struct buf *b, const struct config_option *o, const void *base)
{
	const void *p = slot(o, base);
	const char *s;

	switch (o->type) {
	case CONFIG_T_STRING:
		s = *(char *const *)p;
		if (!s)
			return false;
		put_quoted(b, o->flags & CONFIG_SECRET ? "(hidden)" : s);
		return true;
	case CONFIG_T_INT:
		buf_printf(b, "%d", *(const int *)p);
		return true;
	case CONFIG_T_INT64:
		buf_printf(b, "%" PRId64, *(const int64_t *)p);
		return true;
	case CONFIG_T_BOOL:
		buf_str(b, *(const bool *)p ? "true" : "false");
		return true;
	case CONFIG_T_DURATION: {
		AUTO(free) char *text = duration_format(*(const int64_t *)p);

		buf_printf(b, "\"%s\"", text);
		return true;
	}
	case CONFIG_T_STRINGS:
		put_strings(b, p);
		return true;
	case CONFIG_T_KEY_TYPE:
		if (*(const enum key_type *)p == KEY_NONE)
			return false;
		buf_printf(b, "\"%s\"", key_type_name(*(const enum key_type *)p));
		return true;
	case CONFIG_T_LOG_LEVEL:
		buf_printf(b, "\"%s\"", log_level_name(*(const enum log_level *)p));
		return true;
	case CONFIG_T_CHOICE:
		put_choice(b, o->choices, *(const int *)p);
		return true;
	case CONFIG_T_CHOICE_BOOL:
		put_choice(b, o->choices, *(const bool *)p);
		return true;
	case CONFIG_T_SECTION:
		if (!(o->flags & CONFIG_PRESENT) || !(o->flags & CONFIG_PLUGIN))
			return false;
		buf_str(b, "present");
		return true;
	default:
		return false;
	}
}

void config_print(const struct config_option *options, const void *base, struct buf *ret)
{
	const char *absent = NULL; /* the section whose keys mean nothing, as it is not there */

	for (const struct config_option *o = options; o->path; o++) {
		AUTO_BUF struct buf b = BUF_INIT;

		if (absent && strncmp(o->path, absent, strlen(absent)) == 0 &&
			o->path[strlen(absent)] == '.')
			continue;
		absent = NULL;
		if (o->type == CONFIG_T_SECTION && o->flags & CONFIG_PRESENT &&
			!*(const bool *)slot(o, base))
			absent = o->path;
		else if (!(o->flags & (CONFIG_ALIAS | CONFIG_APPEND)) && put_value(&b, o, base))
			buf_printf(ret, "%s = %s\n", o->path, buf_cstr(&b));
	}
}

/* ---- docs/CONFIG ---- */

static const char *type_text(const struct config_option *o)
{
	switch (o->type) {
	case CONFIG_T_INT:
	case CONFIG_T_INT64:
		return "number";
	case CONFIG_T_BOOL:
		return "bool";
	case CONFIG_T_DURATION:
		return "duration";
	case CONFIG_T_STRINGS:
		return o->flags & CONFIG_APPEND ? "string" : "list of strings";
	case CONFIG_T_SECTION:
	case CONFIG_T_BLOCKS:
		return "block";
	case CONFIG_T_LIST:
		return "list of objects";
	default:
		return "string";
	}
}

/* The pipes of a choice would end a table's cell. */
static void put_choices(struct buf *b, const char *choices)
{
	for (;;) {
		size_t n = strcspn(choices, "|");

		buf_printf(b, "`%.*s`", (int)n, choices);
		if (!choices[n])
			return;
		buf_str(b, ", ");
		choices += n + 1;
	}
}

static void describe_key(const struct config_option *o, const char *key, struct buf *ret)
{
	buf_printf(ret, "| `%s` | %s | ", key, type_text(o));
	if (o->flags & CONFIG_REQUIRED && !o->value)
		buf_str(ret, "(required)");
	else if (o->value && *o->value)
		buf_printf(ret, "`%s`", o->value);
	buf_printf(ret, " | %s", o->doc ? o->doc : "");
	if (o->choices && o->type != CONFIG_T_FIXED) {
		buf_str(ret, o->doc && *o->doc ? " One of " : "One of ");
		put_choices(ret, o->choices);
		buf_byte(ret, '.');
	}
	buf_str(ret, " |\n");
}

static bool is_direct(const char *path, const char *prefix, const char **ret_key)
{
	size_t n = strlen(prefix);

	if (strncmp(path, prefix, n) != 0 || path[n] != '.' || strchr(path + n + 1, '.'))
		return false;
	*ret_key = path + n + 1;
	return true;
}

static bool refused(const struct config_option *o)
{
	return o->type == CONFIG_T_REFUSED || o->type == CONFIG_T_FIXED ||
	       o->type == CONFIG_T_IGNORED;
}

/* "plugins.KeyManager.disk" reads `KeyManager "disk"`. */
static void put_title(struct buf *ret, const struct config_option *s)
{
	const char *dot = strrchr(s->path, '.');

	if (s->flags & CONFIG_PLUGIN)
		buf_printf(ret, "\n## `%.*s \"%s\"`\n\n", (int)(dot - s->path - 8), s->path + 8,
			dot + 1);
	else
		buf_printf(ret, "\n## `%s`\n\n", s->path);
	if (s->doc)
		buf_printf(ret, "%s\n", s->doc);
}

static void describe_section(
	const struct config_option *options, const struct config_option *s, struct buf *ret)
{
	const char *key;
	bool head = false;

	put_title(ret, s);
	for (const struct config_option *o = options; o->path; o++) {
		if (!is_direct(o->path, s->path, &key) || refused(o) || o->type == CONFIG_T_SECTION)
			continue;
		if (!head)
			buf_str(ret, "\n| Key | Type | Default | Meaning |\n|---|---|---|---|\n");
		head = true;
		describe_key(o, key, ret);
	}
	head = false;
	for (const struct config_option *o = options; o->path; o++) {
		if (!is_direct(o->path, s->path, &key) || !refused(o))
			continue;
		if (!head)
			buf_str(ret, "\n| Key of SPIRE | Here | Why |\n|---|---|---|\n");
		head = true;
		buf_printf(ret, "| `%s` | %s", key,
			o->type == CONFIG_T_IGNORED ? "no effect" : "refused");
		if (o->type == CONFIG_T_FIXED) {
			buf_str(ret, " but for ");
			put_choices(ret, o->choices);
		}
		buf_printf(ret, " | %s |\n", o->note);
	}
}

void config_describe(const struct config_option *options, struct buf *ret)
{
	for (const struct config_option *o = options; o->path; o++)
		if (o->type == CONFIG_T_SECTION)
			describe_section(options, o, ret);
}

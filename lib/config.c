#include "lib/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "lib/config_internal.h"
#include "lib/text.h"

enum { NAMES_MAX = 256 }; /* keys of one section */

void config_init(struct config *c, const struct config_option *options, void *base)
{
	*c = (struct config){ .options = options, .base = base };
	c->problems = c->warnings = BUF_INIT;
	while (options[c->n_options].path)
		c->n_options++;
	c->where = xcalloc(c->n_options, sizeof(*c->where));
	for (size_t i = 0; i < c->n_options; i++)
		if (options[i].value)
			config_override(c, options[i].path, options[i].value, NULL);
}

void config_deinit(struct config *c)
{
	for (size_t i = 0; i < c->n_options; i++)
		free(c->where[i].file);
	free(c->where);
	for (size_t i = 0; i < c->n_trees; i++)
		config_node_free(c->trees[i]);
	free(c->trees);
	free(c->file);
	buf_deinit(&c->problems);
	buf_deinit(&c->warnings);
}

/* ---- places and messages ---- */

static const struct config_option *find(const struct config *c, const char *path)
{
	for (size_t i = 0; i < c->n_options; i++)
		if (strcasecmp(c->options[i].path, path) == 0)
			return &c->options[i];
	return NULL;
}

struct config_where *config_where_of(const struct config *c, const struct config_option *o)
{
	return &c->where[o - c->options];
}

bool config_given(const struct config *c, const char *path)
{
	const struct config_option *o = find(c, path);

	INVARIANT(o);
	return config_where_of(c, o)->line != 0;
}

/* The place of the key, or of the nearest section around it that was given. */
static const struct config_where *place(const struct config *c, const char *path)
{
	AUTO(free) char *p = xstrdup(path);

	for (;;) {
		const struct config_option *o = find(c, p);
		char *dot = strrchr(p, '.');

		if (o && config_where_of(c, o)->line)
			return config_where_of(c, o);
		if (!dot)
			return NULL;
		*dot = 0;
	}
}

static void put_place(struct config *c, struct buf *to, const char *path)
{
	const struct config_where *w = place(c, path);

	if (w && w->line > 0)
		buf_printf(to, "%s:%d: ", w->file, w->line);
	else if (w)
		buf_printf(to, "%s: ", w->file);
	else if (c->file)
		buf_printf(to, "%s: ", c->file);
}

static void putv(struct buf *to, const char *fmt, va_list ap)
{
	char text[1000];

	vsnprintf(text, sizeof(text), fmt, ap);
	buf_printf(to, "%s\n", text);
}

void config_problem(struct config *c, const char *path, const char *fmt, ...)
{
	va_list ap;

	put_place(c, &c->problems, path);
	va_start(ap, fmt);
	putv(&c->problems, fmt, ap);
	va_end(ap);
	c->n_problems++;
}

void config_warning(struct config *c, const char *path, const char *fmt, ...)
{
	va_list ap;

	put_place(c, &c->warnings, path);
	va_start(ap, fmt);
	putv(&c->warnings, fmt, ap);
	va_end(ap);
}

/* At a node of a file; n is NULL for a default, "-flag" stands in n->file for a flag. */
void config_problem_at(struct config *c, const struct config_node *n, const char *fmt, ...)
{
	va_list ap;

	INVARIANT(n);
	if (n->line > 0)
		buf_printf(&c->problems, "%s:%d: ", n->file, n->line);
	else
		buf_printf(&c->problems, "%s: ", n->file);
	va_start(ap, fmt);
	putv(&c->problems, fmt, ap);
	va_end(ap);
	c->n_problems++;
}

void config_warning_at(struct config *c, const struct config_node *n, const char *fmt, ...)
{
	va_list ap;

	if (n->line > 0)
		buf_printf(&c->warnings, "%s:%d: ", n->file, n->line);
	else
		buf_printf(&c->warnings, "%s: ", n->file);
	va_start(ap, fmt);
	putv(&c->warnings, fmt, ap);
	va_end(ap);
}

void config_override(struct config *c, const char *path, const char *value, const char *flag)
{
	const struct config_option *o = find(c, path);
	struct config_node n = { .kind = CONFIG_STRING, .file = flag ? flag : "default" };
	bool is_list;

	INVARIANT(o);
	is_list = o->type == CONFIG_T_STRINGS;
	INVARIANT(!is_list);
	if (o->type == CONFIG_T_BOOL)
		n.kind = CONFIG_BOOL;
	n.text = xstrdup(value);
	if (flag) {
		free(config_where_of(c, o)->file);
		config_where_of(c, o)->file = xstrdup(flag);
		config_where_of(c, o)->line = -1; /* given, but in no line of a file */
	}
	config_set_value(c, o, &n);
	if (!flag && config_where_of(c, o)->line == 0) {
		free(config_where_of(c, o)->file);
		config_where_of(c, o)->file = NULL;
	}
	free(n.text);
}

/* ---- sections ---- */

/* The keys that may stand in this section. */
static size_t known_keys(
	const struct config *c, const char *prefix, const char *ret[static NAMES_MAX])
{
	size_t len = strlen(prefix), n = 0;

	for (size_t i = 0; i < c->n_options && n < NAMES_MAX; i++) {
		const char *p = c->options[i].path;

		if (len) {
			if (strncasecmp(p, prefix, len) != 0 || p[len] != '.')
				continue;
			p += len + 1;
		}
		if (!strchr(p, '.'))
			ret[n++] = p;
	}
	return n;
}

static const struct config_node *child(const struct config_node *n, const char *key)
{
	for (size_t i = 0; n->kind == CONFIG_OBJECT && i < n->n; i++)
		if (strcasecmp(n->children[i]->key, key) == 0)
			return n->children[i];
	return NULL;
}

static void unknown_key(struct config *c, const struct config_node *n, const char *prefix,
	const struct config_option *section)
{
	const char *names[NAMES_MAX], *near;
	size_t count = known_keys(c, prefix, names);
	AUTO_BUF struct buf text = BUF_INIT;
	bool plugin = strncmp(prefix, "plugins.", 8) == 0 && !strchr(prefix + 8, '.');

	if (plugin && child(n, "plugin_cmd")) {
		config_problem_at(c, n,
			"%s \"%s\" is an external plugin (plugin_cmd); Assay has built-in plugins "
			"only",
			prefix + 8, n->key);
		return;
	}
	near = text_nearest(n->key, names, count);
	if (plugin)
		buf_printf(&text, "unknown %s plugin \"%s\"", prefix + 8, n->key);
	else if (*prefix)
		buf_printf(&text, "unknown key \"%s\" in \"%s\"", n->key, prefix);
	else
		buf_printf(&text, "unknown key \"%s\"", n->key);
	if (near)
		buf_printf(&text, "; did you mean \"%s\"?", near);
	if (section && section->flags & CONFIG_LENIENT)
		config_warning_at(c, n, "%s", buf_cstr(&text));
	else
		config_problem_at(c, n, "%s", buf_cstr(&text));
}

static void load_key(struct config *c, const struct config_node *n, const char *prefix,
	const struct config_option *section)
{
	AUTO(free) char *path = xasprintf("%s%s%s", prefix, *prefix ? "." : "", n->key);
	const struct config_option *o = strchr(n->key, '.') ? NULL : find(c, path);

	if (o)
		config_set_value(c, o, n);
	else
		unknown_key(c, n, prefix, section);
}

/* plugin_data_file: the same keys, in a file of their own. */
static void load_data_file(struct config *c, const struct config_node *n, const char *prefix,
	const struct config_option *section)
{
	AUTO_BUF struct buf text = BUF_INIT_MAX(CONFIG_FILE_MAX);
	struct config_node *tree;
	struct err e;

	if (n->kind != CONFIG_STRING) {
		config_problem_at(c, n, "\"plugin_data_file\" must be a string, not %s",
			config_kind_name(n->kind));
		return;
	}
	if (buf_read_file(&text, n->text, &e)) {
		config_problem_at(c, n, "\"plugin_data_file\": %s", e.msg);
		return;
	}
	if (config_parse(n->text, buf_view(&text), &tree, &e)) {
		buf_printf(&c->problems, "%s\n", e.msg);
		c->n_problems++;
		return;
	}
	c->trees = xreallocarray(c->trees, c->n_trees + 1, sizeof(*c->trees));
	c->trees[c->n_trees++] = tree;
	for (size_t i = 0; i < tree->n; i++)
		load_key(c, tree->children[i], prefix, section);
}

static bool plugin_off(struct config *c, const struct config_node *object)
{
	const struct config_node *n = child(object, "enabled");

	if (n && n->kind != CONFIG_BOOL)
		config_problem_at(c, n, "\"enabled\" must be true or false, not %s",
			config_kind_name(n->kind));
	return n && n->kind == CONFIG_BOOL && strcmp(n->text, "false") == 0;
}

static void load_data(struct config *c, const struct config_node *n, const char *prefix,
	const struct config_option *section)
{
	for (size_t i = 0; i < n->n; i++) {
		if (n->kind == CONFIG_LIST)
			load_data(c, n->children[i], prefix, section);
		else
			load_key(c, n->children[i], prefix, section);
	}
	if (n->kind != CONFIG_LIST && n->kind != CONFIG_OBJECT && n->kind != CONFIG_NULL)
		config_problem_at(
			c, n, "\"plugin_data\" must be a block, not %s", config_kind_name(n->kind));
}

static void load_plugin(struct config *c, const struct config_node *object, const char *prefix,
	const struct config_option *section)
{
	static const char *const names[] = { "plugin_cmd", "plugin_args", "plugin_checksum",
		"plugin_data", "plugin_data_file", "enabled" };

	if (child(object, "plugin_data") && child(object, "plugin_data_file"))
		config_problem_at(
			c, object, "only one of [plugin_data, plugin_data_file] can be used");
	for (size_t i = 0; i < object->n; i++) {
		const struct config_node *n = object->children[i];

		if (strcasecmp(n->key, "plugin_data") == 0) {
			load_data(c, n, prefix, section);
		} else if (strcasecmp(n->key, "plugin_data_file") == 0) {
			load_data_file(c, n, prefix, section);
		} else if (strcasecmp(n->key, "plugin_cmd") == 0 && !config_is_empty(n)) {
			config_problem_at(c, n,
				"\"plugin_cmd\": Assay has built-in plugins only; remove it to "
				"use the built-in \"%s\"",
				config_key_of(section));
		} else if (strncasecmp(n->key, "plugin_", 7) != 0 &&
			   strcasecmp(n->key, "enabled") != 0) {
			const char *near = text_nearest(n->key, names, ARRAY_LEN(names));

			config_problem_at(c, n, "unknown key \"%s\" in \"%s\"; %s%s%s", n->key,
				prefix,
				near ? "did you mean \""
				     : "a plugin's own keys stand in plugin_data",
				near ? near : "", near ? "\"?" : "");
		}
	}
}

void config_load_section(struct config *c, const struct config_node *object, const char *prefix,
	const struct config_option *section)
{
	if (section && section->flags & CONFIG_PLUGIN) {
		load_plugin(c, object, prefix, section);
		return;
	}
	for (size_t i = 0; i < object->n; i++) {
		const struct config_node *n = object->children[i];

		/* A plugin that is switched off is not looked at further, known or not. */
		if (strncmp(prefix, "plugins.", 8) == 0 && n->kind == CONFIG_OBJECT &&
			plugin_off(c, n))
			continue;
		load_key(c, n, prefix, section);
	}
}

/* ---- a whole file ---- */

void config_load_text(struct config *c, const char *file, struct bytes text)
{
	struct config_node *tree;
	struct err e;

	free(c->file);
	c->file = xstrdup(file);
	if (config_parse(file, text, &tree, &e)) {
		buf_printf(&c->problems, "%s\n", e.msg);
		c->n_problems++;
		c->broken = true;
		return;
	}
	c->trees = xreallocarray(c->trees, c->n_trees + 1, sizeof(*c->trees));
	c->trees[c->n_trees++] = tree;
	config_load_section(c, tree, "", NULL);
}

void config_load_object(struct config *c, const struct config_node *object)
{
	free(c->file);
	c->file = xasprintf("%s:%d", object->file, object->line);
	config_load_section(c, object, "", NULL);
}

static void load_expanded(struct config *c, const char *file, struct bytes raw)
{
	AUTO_BUF struct buf text = BUF_INIT_SECRET;
	struct strings unset = { NULL, 0 };

	config_expand_env(raw, &text, &unset);
	for (size_t i = 0; i < unset.n; i++)
		buf_printf(&c->warnings, "%s: the environment variable %s is not set\n", file,
			unset.v[i]);
	strings_deinit(&unset);
	config_load_text(c, file, buf_view(&text));
}

int config_load(struct config *c, const char *file, bool expand_env, struct err *e)
{
	AUTO_BUF struct buf raw = BUF_INIT_MAX(CONFIG_FILE_MAX);
	int r;

	raw.secret = true;
	r = buf_read_file(&raw, file, e);
	if (r == ERR_NOT_FOUND) {
		AUTO(free) char *cwd = file[0] == '/' ? NULL : getcwd(NULL, 0);

		return err_set(e, r,
			"could not find config file %s%s%s: please use the -config flag",
			cwd ? cwd : "", cwd ? "/" : "", file);
	}
	if (r)
		return err_wrap(e, "unable to read configuration at \"%s\"", file);
	if (expand_env)
		load_expanded(c, file, buf_view(&raw));
	else
		config_load_text(c, file, buf_view(&raw));
	return 0;
}

void config_check_required(struct config *c)
{
	for (size_t i = 0; i < c->n_options; i++)
		if (c->options[i].flags & CONFIG_REQUIRED && !c->where[i].line &&
			!c->options[i].value)
			config_problem(c, c->options[i].path, "%s must be configured",
				config_key_of(&c->options[i]));
}

int config_finish(const struct config *c, struct buf *problems, struct err *e)
{
	if (!c->n_problems)
		return 0;
	buf_bytes(problems, buf_view(&c->problems));
	return err_set(e, ERR_INVALID, "%zu %s in the configuration", c->n_problems,
		text_plural(c->n_problems, "problem", "problems"));
}

void config_take_warnings(const struct config *c, struct strings *ret)
{
	struct bytes rest = buf_view(&c->warnings);

	while (rest.n) {
		const uint8_t *end = memchr(rest.p, '\n', rest.n);
		size_t n = end ? (size_t)(end - rest.p) : rest.n;
		AUTO(free) char *line = xstrndup((const char *)rest.p, n);

		if (n)
			strings_add(ret, line);
		rest = bytes_of(rest.p + n + (end != NULL), rest.n - n - (end != NULL));
	}
}

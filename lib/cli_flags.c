#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "lib/cli_internal.h"

static const struct cli_flag output_flag = {
	.name = "output",
	.type = CLI_STRING,
	.value = "pretty",
	.help = "Desired output format (pretty, json)",
	.as_output = true,
	.choices = "pretty|json",
};

static void add_flag(struct cli *c, const struct cli_flag *f)
{
	INVARIANT(c->n_flags < CLI_FLAGS_MAX);
	c->flags[c->n_flags++] = *f;
}

static void add_socket(struct cli *c, const struct cli_socket *s)
{
	add_flag(c, &(struct cli_flag){ .name = "socketPath",
			    .type = CLI_STRING,
			    .value = s->path,
			    .help = s->help,
			    .choices = "@file" });
	add_flag(c, &(struct cli_flag){ .name = "instance",
			    .type = CLI_STRING,
			    .help = "Name that takes the place of %i in the socket's template, an "
				    "environment variable" });
}

static int64_t default_number(const struct cli_flag *f)
{
	struct err e;
	int64_t v = 0;

	if (!f->value)
		return 0;
	if (f->type == CLI_DURATION)
		INVARIANT(duration_parse(f->value, &v, &e) == 0);
	else if (f->type == CLI_INT)
		v = strtoll(f->value, NULL, 10);
	else if (f->type == CLI_BOOL)
		v = strcmp(f->value, "true") == 0;
	return v;
}

void cli_flags_init(struct cli *c)
{
	for (const struct cli_flag *f = c->cmd->flags; f && f->name; f++)
		add_flag(c, f);
	if (c->cmd->common & CLI_WITH_SOCKET)
		add_socket(c, &c->program->socket);
	if (c->cmd->common & CLI_WITH_ADMIN)
		add_socket(c, &c->program->admin);
	if (c->cmd->common & CLI_WITH_OUTPUT)
		add_flag(c, &output_flag);
	for (size_t i = 0; i < c->n_flags; i++) {
		c->values[i].str = c->flags[i].value ? c->flags[i].value : "";
		c->values[i].num =
			c->flags[i].type == CLI_TRISTATE ? -1 : default_number(&c->flags[i]);
	}
}

void cli_flags_deinit(struct cli *c)
{
	for (size_t i = 0; i < c->n_flags; i++)
		strings_deinit(&c->values[i].list);
	c->n_flags = 0;
}

struct cli_value *cli_value(const struct cli *c, const char *flag)
{
	for (size_t i = 0; i < c->n_flags; i++)
		if (strcmp(c->flags[i].name, flag) == 0)
			return (struct cli_value *)(uintptr_t)&c->values[i];
	return NULL;
}

/* As Go's strconv.ParseInt with base 0, without its underscores. */
static const char *set_int(struct cli_value *v, const char *text)
{
	const char *digits = *text == '-' || *text == '+' ? text + 1 : text;
	char *end;

	if (!isdigit((unsigned char)*digits))
		return "parse error";
	errno = 0;
	v->num = strtoll(text, &end, 0);
	if (errno == ERANGE)
		return "value out of range";
	return *end ? "parse error" : NULL;
}

static const char *set_bool(struct cli_value *v, const char *text)
{
	static const char *const yes[] = { "1", "t", "T", "true", "TRUE", "True" };
	static const char *const no[] = { "0", "f", "F", "false", "FALSE", "False" };

	for (size_t i = 0; i < ARRAY_LEN(yes); i++) {
		if (strcmp(text, yes[i]) == 0) {
			v->num = 1;
			return NULL;
		}
		if (strcmp(text, no[i]) == 0) {
			v->num = 0;
			return NULL;
		}
	}
	return "parse error";
}

static void set_comma(struct cli_value *v, const char *text)
{
	strings_deinit(&v->list);
	v->list = (struct strings){ NULL, 0 };
	for (;;) {
		size_t n = strcspn(text, ",");
		AUTO(free) char *one = xstrndup(text, n);

		strings_add(&v->list, one);
		if (!text[n])
			return;
		text += n + 1;
	}
}

static const char *set_output(struct cli *c, const char *text, struct err *e)
{
	bool json = strcasecmp(text, "json") == 0;

	if (!json && strcasecmp(text, "pretty") != 0 && strcasecmp(text, "prettyprint") != 0) {
		AUTO(free) char *q = text_quote(text);

		err_set(e, ERR_INVALID, "bad formatter flag: unknown format option: %s", q);
		return e->msg;
	}
	if (c->output_given && json != c->json) {
		err_set(e, ERR_INVALID, "the output format has already been set to \"%s\"",
			c->json ? "json" : "pretty");
		return e->msg;
	}
	c->json = json;
	c->output_given = true;
	return NULL;
}

/* NULL, or what is wrong with the text. */
static const char *set_value(struct cli *c, const struct cli_flag *f, const char *text)
{
	struct cli_value *v = cli_value(c, f->name);
	const char *wrong = NULL;
	static struct err e; /* its text outlives the call */

	switch (f->type) {
	case CLI_STRING:
		if (f->as_output)
			wrong = set_output(c, text, &e);
		break;
	case CLI_STRINGS:
		strings_add(&v->list, text);
		break;
	case CLI_COMMA:
		set_comma(v, text);
		break;
	case CLI_BOOL:
		wrong = set_bool(v, text);
		break;
	case CLI_TRISTATE:
		v->num = strcmp(text, "true") == 0 ? 1 : strcmp(text, "false") == 0 ? 0 : -1;
		break;
	case CLI_INT:
		wrong = set_int(v, text);
		break;
	case CLI_DURATION:
		if (duration_parse(text, &v->num, &e))
			wrong = e.msg;
		break;
	}
	v->str = text;
	v->given = true;
	return wrong;
}

static const struct cli_flag *find_flag(const struct cli *c, const char *name, size_t n)
{
	for (size_t i = 0; i < c->n_flags; i++)
		if (strlen(c->flags[i].name) == n && memcmp(c->flags[i].name, name, n) == 0)
			return &c->flags[i];
	return NULL;
}

static void say_unknown(const struct cli *c, const char *name, size_t n)
{
	AUTO(free) char *typed = xstrndup(name, n);
	const char *known[CLI_FLAGS_MAX], *near;
	size_t k = 0;

	for (size_t i = 0; i < c->n_flags; i++)
		if (!c->flags[i].hidden)
			known[k++] = c->flags[i].name;
	near = text_nearest(typed, known, k);
	fprintf(c->errs, "flag provided but not defined: -%s", typed);
	if (near)
		fprintf(c->errs, "; did you mean -%s?", near);
	fprintf(c->errs, "\n");
}

/* One argument that begins with "-". *args moves to the last one used. */
static enum cli_parsed parse_one(struct cli *c, char ***args)
{
	const char *arg = **args, *name = arg + (arg[1] == '-' ? 2 : 1);
	size_t n = strcspn(name, "=");
	const char *value = name[n] == '=' ? name + n + 1 : NULL, *wrong;
	const struct cli_flag *f;

	if (!n || *name == '-') {
		fprintf(c->errs, "bad flag syntax: %s\n", arg);
		return CLI_PARSED_WRONG;
	}
	f = find_flag(c, name, n);
	if (!f && !value && (strcmp(name, "h") == 0 || strcmp(name, "help") == 0))
		return CLI_PARSED_HELP;
	if (!f) {
		say_unknown(c, name, n);
		return CLI_PARSED_WRONG;
	}
	if (!value && f->type == CLI_BOOL)
		value = "true";
	if (!value)
		value = *++*args;
	if (!value) {
		fprintf(c->errs, "flag needs an argument: -%s\n", f->name);
		return CLI_PARSED_WRONG;
	}
	wrong = set_value(c, f, value);
	if (wrong) {
		AUTO(free) char *q = text_quote(value);

		fprintf(c->errs, "invalid %svalue %s for %s-%s: %s\n",
			f->type == CLI_BOOL ? "boolean " : "", q,
			f->type == CLI_BOOL ? "" : "flag ", f->name, wrong);
		return CLI_PARSED_WRONG;
	}
	return CLI_PARSED;
}

enum cli_parsed cli_flags_parse(struct cli *c, char **args)
{
	/* Go's flag package stops at the first argument that is no flag, and at "--"; SPIRE's
	 * commands ignore what follows. */
	for (; *args && (*args)[0] == '-' && (*args)[1] && strcmp(*args, "--") != 0; args++) {
		enum cli_parsed r = parse_one(c, &args);

		if (r != CLI_PARSED)
			return r;
	}
	return CLI_PARSED;
}

/* ---- values ---- */

static const struct cli_value *value(const struct cli *c, const char *flag)
{
	const struct cli_value *v = cli_value(c, flag);

	INVARIANT(v);
	return v;
}

const char *cli_str(const struct cli *c, const char *flag)
{
	return value(c, flag)->str;
}

bool cli_bool(const struct cli *c, const char *flag)
{
	return value(c, flag)->num != 0;
}

int cli_tristate(const struct cli *c, const char *flag)
{
	return (int)value(c, flag)->num;
}

int64_t cli_int(const struct cli *c, const char *flag)
{
	return value(c, flag)->num;
}

int64_t cli_duration_ns(const struct cli *c, const char *flag)
{
	return value(c, flag)->num;
}

const struct strings *cli_strings(const struct cli *c, const char *flag)
{
	return &value(c, flag)->list;
}

bool cli_given(const struct cli *c, const char *flag)
{
	return value(c, flag)->given;
}

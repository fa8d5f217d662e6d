#include <stdlib.h>
#include <string.h>

#include "lib/cli_internal.h"

static int by_name(const void *a, const void *b)
{
	const struct cli_command *const *x = a, *const *y = b;

	return strcmp((*x)->name, (*y)->name);
}

static size_t sorted(const struct cli_program *p, const struct cli_command *ret[CLI_COMMANDS_MAX])
{
	size_t n = cli_commands(p, ret);

	qsort(ret, n, sizeof(*ret), by_name);
	return n;
}

static int widest(const struct cli_command *const *all, size_t n, const char *words)
{
	size_t w = 0;

	for (size_t i = 0; i < n; i++)
		if (!all[i]->hidden && (!*words || cli_name_has_prefix(all[i]->name, words)) &&
			strlen(all[i]->name) > w)
			w = strlen(all[i]->name);
	return (int)w;
}

static void list_commands(const struct cli_program *p, const char *words, FILE *to)
{
	const struct cli_command *all[CLI_COMMANDS_MAX];
	size_t n = sorted(p, all);
	int w = widest(all, n, words);

	for (size_t i = 0; i < n; i++)
		if (!all[i]->hidden && (!*words || cli_name_has_prefix(all[i]->name, words)))
			fprintf(to, "    %-*s    %s\n", w, all[i]->name, all[i]->summary);
}

void cli_help_program(const struct cli_program *p, FILE *to)
{
	fprintf(to,
		"Usage: %s [--version] [--help] <command> [<flags>]\n\nAvailable commands are:\n",
		p->name);
	list_commands(p, "", to);
	fprintf(to, "\n%s <command> -h shows a command's flags.\n", p->name);
}

void cli_help_noun(const struct cli_program *p, const char *words, FILE *to)
{
	fprintf(to, "Usage: %s %s <subcommand> [<flags>]\n\nSubcommands:\n", p->name, words);
	list_commands(p, words, to);
}

static const char *type_name(enum cli_type t)
{
	switch (t) {
	case CLI_STRING:
		return "string";
	case CLI_INT:
		return "int";
	case CLI_DURATION:
		return "duration";
	case CLI_BOOL:
		return "";
	default:
		return "value";
	}
}

static int flag_by_name(const void *a, const void *b)
{
	const struct cli_flag *x = a, *y = b;

	return strcmp(x->name, y->name);
}

static void print_flag(const struct cli_flag *f, FILE *to)
{
	const char *type = type_name(f->type);

	fprintf(to, "  -%s%s%s\n    \t%s", f->name, *type ? " " : "", type, f->help);
	if (f->value && f->type == CLI_STRING)
		fprintf(to, " (default \"%s\")", f->value);
	else if (f->value)
		fprintf(to, " (default %s)", f->value);
	fprintf(to, "\n");
}

void cli_help_command(const struct cli *c, FILE *to)
{
	struct cli_flag all[CLI_FLAGS_MAX];

	memcpy(all, c->flags, c->n_flags * sizeof(*all));
	qsort(all, c->n_flags, sizeof(*all), flag_by_name);
	fprintf(to, "Usage of %s %s:\n", c->program->name, c->cmd->name);
	for (size_t i = 0; i < c->n_flags; i++)
		if (!all[i].hidden)
			print_flag(&all[i], to);
}

void cli_help_table(const struct cli_program *p, FILE *to)
{
	const struct cli_command *all[CLI_COMMANDS_MAX];
	size_t n = sorted(p, all);

	for (size_t i = 0; i < n; i++) {
		struct cli c = { .program = p, .cmd = all[i] };

		if (all[i]->hidden)
			continue;
		fprintf(to, "command\t%s\t%s\n", all[i]->name, all[i]->summary);
		cli_flags_init(&c);
		qsort(c.flags, c.n_flags, sizeof(*c.flags), flag_by_name);
		for (size_t k = 0; k < c.n_flags; k++)
			if (!c.flags[k].hidden)
				fprintf(to, "flag\t%s\t-%s\t%s\t%s\t%s\n", all[i]->name,
					c.flags[k].name,
					c.flags[k].type == CLI_BOOL ? "bool"
								    : type_name(c.flags[k].type),
					c.flags[k].choices ? c.flags[k].choices : "",
					c.flags[k].help);
		cli_flags_deinit(&c);
	}
}

#include "lib/cli.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/cli_internal.h"
#include "lib/pbjson.h"

enum { EXIT_NO_COMMAND = 127 };

size_t cli_commands(const struct cli_program *p, const struct cli_command *ret[CLI_COMMANDS_MAX])
{
	size_t n = 0;

	for (size_t t = 0; p->commands[t]; t++)
		for (const struct cli_command *cmd = p->commands[t]; cmd->name; cmd++) {
			INVARIANT(n < CLI_COMMANDS_MAX);
			ret[n++] = cmd;
		}
	return n;
}

bool cli_name_has_prefix(const char *name, const char *words)
{
	size_t n = strlen(words);

	return strncmp(name, words, n) == 0 && name[n] == ' ';
}

/* The command with the most words that the arguments begin with; *ret_used says how many. */
static const struct cli_command *find_command(
	const struct cli_program *p, int argc, char **argv, int *ret_used)
{
	const struct cli_command *all[CLI_COMMANDS_MAX];
	size_t n = cli_commands(p, all);
	AUTO_BUF struct buf words = BUF_INIT;
	const struct cli_command *found = NULL;

	for (int i = 0; i < argc && i < CLI_WORDS_MAX && argv[i][0] != '-'; i++) {
		buf_printf(&words, "%s%s", i ? " " : "", argv[i]);
		for (size_t k = 0; k < n; k++)
			if (strcmp(all[k]->name, buf_cstr(&words)) == 0) {
				found = all[k];
				*ret_used = i + 1;
			}
	}
	return found;
}

/* The words that stand at place `depth` of the commands that begin with `prefix`, each once. */
static size_t words_at(const struct cli_program *p, const char *prefix, struct strings *ret)
{
	const struct cli_command *all[CLI_COMMANDS_MAX];
	size_t n = cli_commands(p, all);

	for (size_t i = 0; i < n; i++) {
		const char *rest = all[i]->name;
		AUTO(free) char *word = NULL;

		if (all[i]->hidden || (*prefix && !cli_name_has_prefix(rest, prefix)))
			continue;
		rest += *prefix ? strlen(prefix) + 1 : 0;
		word = xstrndup(rest, strcspn(rest, " "));
		if (!strings_has(ret, word))
			strings_add(ret, word);
	}
	return ret->n;
}

static void say_nearest(
	const struct cli_program *p, const char *prefix, const char *typed, FILE *to)
{
	struct strings known = { NULL, 0 };
	const char *near;

	words_at(p, prefix, &known);
	near = text_nearest(typed, (const char *const *)known.v, known.n);
	fprintf(to, "%s: unknown command \"%s%s%s\"", p->name, prefix, *prefix ? " " : "", typed);
	if (near)
		fprintf(to, "; did you mean \"%s%s%s\"?", prefix, *prefix ? " " : "", near);
	fprintf(to, "\n\n");
	strings_deinit(&known);
}

/* The noun is known, the verb is missing or is not: the noun's help, exit code 1. */
static int no_verb(const struct cli_program *p, int argc, char **argv, FILE *out, FILE *errs)
{
	AUTO_BUF struct buf words = BUF_INIT;
	struct strings known = { NULL, 0 };
	int i = 0;

	buf_str(&words, argv[0]);
	for (i = 1; i < argc && argv[i][0] != '-'; i++) {
		AUTO(free) char *longer = xasprintf("%s %s", buf_cstr(&words), argv[i]);

		if (!words_at(p, longer, &known))
			break;
		strings_deinit(&known);
		known = (struct strings){ NULL, 0 };
		buf_printf(&words, " %s", argv[i]);
	}
	strings_deinit(&known);
	if (i < argc && argv[i][0] == '-' &&
		(!strcmp(argv[i], "-h") || !strcmp(argv[i], "-help") ||
			!strcmp(argv[i], "--help"))) {
		cli_help_noun(p, buf_cstr(&words), out);
		return 0;
	}
	if (i < argc && argv[i][0] != '-')
		say_nearest(p, buf_cstr(&words), argv[i], errs);
	cli_help_noun(p, buf_cstr(&words), errs);
	return 1;
}

static bool is_noun(const struct cli_program *p, const char *word)
{
	struct strings known = { NULL, 0 };
	size_t n = words_at(p, word, &known);

	strings_deinit(&known);
	return n > 0;
}

static int no_command(const struct cli_program *p, int argc, char **argv, FILE *out, FILE *errs)
{
	const char *first = argc ? argv[0] : "";

	if (!strcmp(first, "-h") || !strcmp(first, "-help") || !strcmp(first, "--help")) {
		cli_help_program(p, out);
		return 0;
	}
	if (!strcmp(first, "-v") || !strcmp(first, "-version") || !strcmp(first, "--version")) {
		fprintf(out, "%s\n", p->version);
		return 0;
	}
	if (!strcmp(first, "__table")) {
		cli_help_table(p, out);
		return 0;
	}
	if (argc && is_noun(p, first))
		return no_verb(p, argc, argv, out, errs);
	if (argc && first[0] == '-')
		fprintf(errs, "%s: flags come after the command\n\n", p->name);
	else if (argc)
		say_nearest(p, "", first, errs);
	cli_help_program(p, errs);
	return EXIT_NO_COMMAND;
}

static int run_command(struct cli *c, char **args)
{
	struct err e;
	int code = 1;

	cli_flags_init(c);
	switch (cli_flags_parse(c, args)) {
	case CLI_PARSED:
		/* Before the command's own checks, as in SPIRE. */
		if (c->cmd->common & (CLI_WITH_SOCKET | CLI_WITH_ADMIN) &&
			cli_socket_path(c, &c->socket_path, &e))
			code = cli_fail(c, &e);
		else
			code = c->cmd->run(c);
		break;
	case CLI_PARSED_HELP:
		cli_help_command(c, c->out);
		code = 0;
		break;
	case CLI_PARSED_WRONG:
		cli_help_command(c, c->errs);
		break;
	}
	cli_rpc_close(c);
	cli_flags_deinit(c);
	if ((fflush(c->out) || ferror(c->out)) && code == 0) {
		fprintf(c->errs, "Error: cannot write the output\n");
		code = 1;
	}
	return code;
}

int cli_main_to(const struct cli_program *p, int argc, char **argv, FILE *in, FILE *out, FILE *errs)
{
	struct cli c = { .program = p, .in = in, .out = out, .errs = errs };
	int used = 0;

	argc--;
	argv++;
	c.cmd = find_command(p, argc, argv, &used);
	if (!c.cmd)
		return no_command(p, argc, argv, out, errs);
	/* `run run -config F`: container images begin with `run`, as SPIRE's do now; manifests
	 * written for its older ones say it themselves. */
	if (used < argc && strcmp(c.cmd->name, "run") == 0 && strcmp(argv[used], "run") == 0)
		used++;
	return run_command(&c, argv + used);
}

int cli_main(const struct cli_program *p, int argc, char **argv)
{
	return cli_main_to(p, argc, argv, stdin, stdout, stderr);
}

/* ---- what commands use ---- */

const struct cli_program *cli_program(const struct cli *c)
{
	return c->program;
}

FILE *cli_in(const struct cli *c)
{
	return c->in;
}

FILE *cli_out(const struct cli *c)
{
	return c->out;
}

FILE *cli_err(const struct cli *c)
{
	return c->errs;
}

void cli_printf(const struct cli *c, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vfprintf(c->out, fmt, ap);
	va_end(ap);
}

void cli_errorf(const struct cli *c, const char *fmt, ...)
{
	va_list ap;

	fflush(c->out);
	va_start(ap, fmt);
	vfprintf(c->errs, fmt, ap);
	va_end(ap);
}

bool cli_json(const struct cli *c)
{
	return c->json;
}

int cli_fail(const struct cli *c, const struct err *e)
{
	cli_errorf(c, "Error: %s\n", e->msg);
	return 1;
}

void cli_print_json(const struct cli *c, const ProtobufCMessage *const *msgs, size_t n)
{
	AUTO_BUF struct buf b = BUF_INIT_SECRET;

	if (n == 1)
		pbjson_write(msgs[0], &b);
	else
		pbjson_write_list(msgs, n, &b);
	fwrite(b.p, 1, b.len, c->out);
	fputc('\n', c->out);
}

int cli_read(const struct cli *c, const char *path, struct buf *ret, struct err *e)
{
	uint8_t chunk[16384];
	size_t n;

	if (strcmp(path, "-") != 0)
		return buf_read_file(ret, path, e);
	while ((n = fread(chunk, 1, sizeof(chunk), c->in)) > 0)
		if (!buf_append(ret, chunk, n))
			return err_set(e, ERR_EXHAUSTED,
				"the standard input is larger than %zu bytes", ret->max);
	if (ferror(c->in))
		return err_set(e, ERR_INTERNAL, "cannot read the standard input");
	return 0;
}

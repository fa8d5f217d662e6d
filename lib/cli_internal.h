/* Shared by the files of lib/cli only. */
#ifndef ASSAY_LIB_CLI_INTERNAL_H
#define ASSAY_LIB_CLI_INTERNAL_H

#include "lib/cli.h"

enum {
	CLI_FLAGS_MAX = 40, /* of one command, the common ones included */
	CLI_WORDS_MAX = 3,  /* of a command's name */
	CLI_COMMANDS_MAX = 100,
};

struct cli_value {
	bool given;
	const char *str;
	int64_t num;
	struct strings list;
};

struct cli {
	const struct cli_program *program;
	const struct cli_command *cmd;
	struct cli_flag flags[CLI_FLAGS_MAX];
	struct cli_value values[CLI_FLAGS_MAX];
	size_t n_flags;
	FILE *in, *out, *errs;
	bool json, output_given;
	char *socket_path;
	struct loop *loop;
	struct rpc_client *client;
};

/* cli_flags.c: the command's own flags and the common ones, with their defaults. */
void cli_flags_init(struct cli *c);
void cli_flags_deinit(struct cli *c);
enum cli_parsed { CLI_PARSED, CLI_PARSED_HELP, CLI_PARSED_WRONG };
/* args ends with NULL. What is wrong has been printed to c->errs, without the usage. */
enum cli_parsed cli_flags_parse(struct cli *c, char **args);
struct cli_value *cli_value(const struct cli *c, const char *flag);

/* cli_help.c */
void cli_help_program(const struct cli_program *p, FILE *to);
void cli_help_noun(const struct cli_program *p, const char *words, FILE *to);
void cli_help_command(const struct cli *c, FILE *to);
/* For completion and lint: one tab-separated line per command and flag. */
void cli_help_table(const struct cli_program *p, FILE *to);

/* cli_rpc.c */
void cli_rpc_close(struct cli *c);

/* Is this word one of the program's nouns, or does this prefix of words begin a command? */
size_t cli_commands(const struct cli_program *p, const struct cli_command *ret[CLI_COMMANDS_MAX]);
/* Words of a command's name that `words` (zero-terminated, space-separated) is a proper prefix of.
 */
bool cli_name_has_prefix(const char *name, const char *words);

#endif

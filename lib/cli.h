/*
 * Command line: a table of commands, noun → verb, with Go's flag syntax as SPIRE's tools have it
 * (-flag, --flag, -flag=x, -flag x; a bool takes its value by "=" only; "--" ends flags; what
 * follows the first argument that is no flag is ignored).
 *
 * The table is the specification: help, completion scripts and manual pages are checked against it.
 * Exit codes: 0 success; 1 any failure, or an unknown verb or flag; 127 no command or an unknown
 * noun.
 */
#ifndef ASSAY_LIB_CLI_H
#define ASSAY_LIB_CLI_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "lib/entry.h"
#include "lib/rpc.h"
#include "lib/text.h"

enum cli_type {
	CLI_STRING,
	CLI_STRINGS,  /* repeatable */
	CLI_COMMA,    /* a,b,c; the last one given counts */
	CLI_BOOL,     /* -x, -x=true, -x=false */
	CLI_TRISTATE, /* -x true | -x false; anything else means "all" */
	CLI_INT,      /* 64 bits, decimal, 0x…, 0… */
	CLI_DURATION, /* Go's: 1h30m, 500ms */
};

struct cli_flag {
	const char *name;
	enum cli_type type;
	const char *value; /* the default, as text; NULL: "", 0, false */
	const char *help;
	const char *choices; /* "a|b|c" for completion; "@file", "@dir": a path; NULL: free */
	bool hidden;
	bool as_output; /* another name of -output */
};
#define CLI_END                                                                                    \
	{                                                                                          \
		.name = NULL                                                                       \
	}

struct cli;

struct cli_command {
	const char *name; /* "entry create"; up to three words */
	const char *summary;
	const struct cli_flag *flags; /* ended by CLI_END; NULL: none */
	unsigned common;              /* CLI_WITH_… */
	int (*run)(struct cli *c);    /* gives the exit code */
	bool hidden;
};
enum {
	CLI_WITH_SOCKET = 1 << 0, /* -socketPath, -instance of the program's main socket */
	CLI_WITH_ADMIN = 1 << 1,  /* the same for the program's admin socket */
	CLI_WITH_OUTPUT = 1 << 2, /* -output pretty|json */
};

struct cli_socket {
	const char *path; /* default */
	const char *help;
	const char *env[2];          /* variables that hold a path; the first that is set counts */
	const char *env_template[2]; /* variables that hold a template with %i, for -instance */
};

struct cli_program {
	const char *name; /* "assay-server" */
	const char *version;
	const struct cli_command *const
		*commands; /* tables, each ended by an empty command; NULL ends */
	struct cli_socket socket, admin;
};

/* For main(): finds the command, parses its flags, runs it; the exit code. */
int cli_main(const struct cli_program *p, int argc, char **argv);
/* The same with other streams, for tests. */
int cli_main_to(
	const struct cli_program *p, int argc, char **argv, FILE *in, FILE *out, FILE *errs);

/* Values; the flag must be in the command's table (INVARIANT). Borrowed until run returns. */
const char *cli_str(const struct cli *c, const char *flag); /* never NULL */
bool cli_bool(const struct cli *c, const char *flag);
int cli_tristate(const struct cli *c, const char *flag); /* -1 all, 0 false, 1 true */
int64_t cli_int(const struct cli *c, const char *flag);
int64_t cli_duration_ns(const struct cli *c, const char *flag);
const struct strings *cli_strings(const struct cli *c, const char *flag);
bool cli_given(const struct cli *c, const char *flag);
const struct cli_program *cli_program(const struct cli *c);

/* Output: stdout and stderr, or what the test gave. */
FILE *cli_in(const struct cli *c);
FILE *cli_out(const struct cli *c);
FILE *cli_err(const struct cli *c);
void cli_printf(const struct cli *c, const char *fmt, ...) PRINTF_LIKE(2, 3);
void cli_errorf(const struct cli *c, const char *fmt, ...) PRINTF_LIKE(2, 3);
bool cli_json(const struct cli *c); /* -output json */
/* "Error: <e->msg>" on stderr; gives 1, so `return cli_fail(c, &e)`. */
int cli_fail(const struct cli *c, const struct err *e);
/* A message as one line of JSON, as SPIRE's -output json: original field names in alphabetical
 * order, defaults written, 64-bit integers as strings, bytes in base64, enums by name, absent
 * messages left out. Several become one array. */
void cli_print_json(const struct cli *c, const ProtobufCMessage *const *msgs, size_t n);
/* Reads a whole file, or the standard input for "-". At most buf->max bytes. */
int cli_read(const struct cli *c, const char *path, struct buf *ret, struct err *e) MUST_USE;

/* The socket that flags and environment name. ERR_INVALID. */
int cli_socket_path(const struct cli *c, char **ret, struct err *e) MUST_USE;
/* One call to the socket, made on the command's own loop and connection (opened on first use,
 * closed after run). *ret is the caller's to free by protobuf_c_message_free_unpacked. Messages
 * read as SPIRE prints them: "rpc error: code = NotFound desc = …". */
int cli_call(struct cli *c, const char *method, const ProtobufCMessage *request,
	const ProtobufCMessageDescriptor *response, ProtobufCMessage **ret, struct err *e) MUST_USE;
/* The same with options of one's own (metadata, deadline). */
int cli_call_with(struct cli *c, const struct rpc_unary_options *o, ProtobufCMessage **ret,
	struct err *e) MUST_USE;
/* Opens a server stream, sends the request, and gives the first message. o's callbacks are not
 * used.
 */
int cli_stream_first(struct cli *c, const struct rpc_stream_options *o,
	const ProtobufCMessage *request, ProtobufCMessage **ret, struct err *e) MUST_USE;
/* "rpc error: code = X desc = Y" in e, from a status that is not OK; gives the code. */
int cli_rpc_error(int code, const char *message, struct err *e);
/* For streams that go on: the connection and its loop. */
int cli_connect(struct cli *c, struct loop **ret_loop, struct rpc_client **ret_client,
	struct err *e) MUST_USE;

/* ---- what both programs' commands do alike (cli_common.c) ---- */

/* `healthcheck` of the program's main socket. what: "Server", "Agent". */
extern const struct cli_flag cli_healthcheck_flags[];
int cli_healthcheck(struct cli *c, const char *what);
/* `logger get|set|reset` of a service ("spire.api.server.logger.v1.Logger"; the agent's has the
 * same messages). */
extern const struct cli_flag cli_logger_set_flags[];
int cli_logger_get(struct cli *c, const char *service);
int cli_logger_set(struct cli *c, const char *service);
int cli_logger_reset(struct cli *c, const char *service);
/* Their parts: prints an answer; a level's name into the API's number (ERR_INVALID). */
struct Spire__Api__Types__Logger;
int cli_print_logger(struct cli *c, const struct Spire__Api__Types__Logger *l);
int cli_log_level(const char *name, int *ret, struct err *e) MUST_USE;

/* A configuration that is refused: "<prefix><reason>", or every problem in a line of its own.
 * Gives 1. */
int cli_invalid(struct cli *c, const char *prefix, const struct buf *problems, const struct err *e);

/* "2026-01-02 03:04:05 +0000 UTC", as Go prints a time; local or UTC. Caller frees. */
char *cli_time(int64_t unix_seconds, bool utc);
/* RFC 3339 in UTC, whole seconds. Caller frees. */
char *cli_time_rfc3339(int64_t unix_seconds);
/* "spiffe://td/path"; "" for NULL. Caller frees. */
struct Spire__Api__Types__SPIFFEID;
char *cli_id_text(const struct Spire__Api__Types__SPIFFEID *id);

#endif

/*
 * Configuration files: HCL (the first version of the language, as SPIRE's files use it) or JSON,
 * read into a struct by an option table. One row per key yields parser, defaults, checks,
 * `validate`, what is printed back, and docs/CONFIG.
 *
 * Every problem is one line "file:line: text", and all of them are reported, not the first alone.
 */
#ifndef ASSAY_LIB_CONFIG_H
#define ASSAY_LIB_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/buf.h"
#include "lib/entry.h"

enum { /* bounds on what is read */
	CONFIG_FILE_MAX = 4 << 20,
	CONFIG_DEPTH_MAX = 32,
	CONFIG_NODES_MAX = 100000,
};

/* ---- the tree ---- */

enum config_kind {
	CONFIG_STRING,
	CONFIG_NUMBER,
	CONFIG_BOOL,
	CONFIG_NULL, /* JSON only */
	CONFIG_LIST,
	CONFIG_OBJECT,
};

/* `a "b" { c = 1 }` is the object a, with the object b, with the number c; JSON's {"a":{"b":…}}
 * gives the same tree. Keys may repeat. */
struct config_node {
	enum config_kind kind;
	const char *file; /* owned by the root */
	int line;
	char *key;  /* NULL in a list, and at the root */
	char *text; /* of a string, number or bool */
	struct config_node **children;
	size_t n;
};

/* ERR_INVALID with "file:line: what". Text that begins with "{" is JSON. */
int config_parse(
	const char *file, struct bytes text, struct config_node **ret, struct err *e) MUST_USE;
void config_node_free(struct config_node *n);
/* $NAME and ${NAME} by the environment, as Go's os.Expand; names that are not set become "" and are
 * added to *ret_unset (which may be NULL). */
void config_expand_env(struct bytes text, struct buf *ret, struct strings *ret_unset);

/* ---- the table ---- */

/* The blocks given under one key, each with its own name as its key, or the objects of a list. They
 * belong to the reading and are gone with it. */
struct config_blocks {
	const struct config_node **v;
	size_t n;
};

enum config_type {
	CONFIG_T_STRING, /* char * */
	CONFIG_T_INT,    /* int, within min..max when they are not both 0; may be quoted */
	CONFIG_T_INT64,
	CONFIG_T_BOOL,
	CONFIG_T_DURATION, /* int64_t, nanoseconds; min and max likewise */
	CONFIG_T_STRINGS,  /* struct strings */
	CONFIG_T_KEY_TYPE, /* enum key_type, one of choices */
	CONFIG_T_LOG_LEVEL,
	CONFIG_T_CHOICE,      /* int-sized enum: the index in choices, case not looked at */
	CONFIG_T_CHOICE_BOOL, /* bool: true for the second choice */
	CONFIG_T_SECTION,     /* an object; offset, if flagged, is a bool set when it is there */
	CONFIG_T_BLOCKS,      /* `key "any name" { … }`: struct config_blocks */
	CONFIG_T_LIST,        /* `key = [{ … }, …]`, or `key { … }` several times: the same */
	CONFIG_T_IGNORED,     /* accepted, no effect: a warning with the note */
	CONFIG_T_FIXED,       /* accepted only with one of choices; else an error with the note */
	CONFIG_T_REFUSED,     /* an error with the note */
};

enum {
	CONFIG_REQUIRED = 1 << 0,
	CONFIG_SECRET = 1 << 1,       /* not printed back */
	CONFIG_LENIENT = 1 << 2,      /* section: unknown keys are a warning */
	CONFIG_PRESENT = 1 << 3,      /* section: sets the bool at offset */
	CONFIG_EMPTY_OK = 1 << 4,     /* refused key: "", [], {} and false may stand */
	CONFIG_PLUGIN = 1 << 5,       /* section: has plugin_data, plugin_cmd, enabled … */
	CONFIG_APPEND = 1 << 6,       /* strings: a single string is added to the list at offset */
	CONFIG_TRUST_DOMAIN = 1 << 7, /* string: checked, and cut to the bare name */
	CONFIG_EMPTY_IS_UNSET = 1 << 8, /* string: "" counts as not given */
	CONFIG_ALIAS = 1 << 9,          /* another name of a key: not printed back */
};

struct config_option {
	const char *path; /* "server.bind_port", "plugins.KeyManager.disk.keys_path" */
	enum config_type type;
	unsigned flags;
	size_t offset;
	const char *value;   /* the default, as text; NULL: none */
	const char *choices; /* "a|b|c" */
	int64_t min, max;
	const char *doc;  /* one sentence or two */
	const char *note; /* why ignored or refused, and what to do */
};
#define CONFIG_OPTIONS_END                                                                         \
	{                                                                                          \
		.path = NULL                                                                       \
	}

/* A reading: the table, the struct, what was given where, what is wrong. */
struct config {
	const struct config_option *options;
	size_t n_options;
	void *base; /* the struct that is filled */
	char *file;
	struct config_where {
		char *file;
		int line; /* 0: not given */
	} * where;
	struct buf problems, warnings; /* one per line */
	size_t n_problems;
	bool broken;                /* a file could not be parsed: what is missing says nothing */
	struct config_node **trees; /* kept for their file names and for those that look further */
	size_t n_trees;
};

/* The struct at base is all zero; it gets the defaults. */
void config_init(struct config *c, const struct config_option *options, void *base);
void config_deinit(struct config *c); /* the struct at base stays the caller's */
/* Reads the file into base. ERR_NOT_FOUND and the like when it cannot be read at all; what is wrong
 * inside is added to problems, and the reading goes on. */
int config_load(struct config *c, const char *file, bool expand_env, struct err *e) MUST_USE;
void config_load_text(struct config *c, const char *file, struct bytes text);
/* A block or object of another reading, by a table of its own. */
void config_load_object(struct config *c, const struct config_node *object);

/* A command-line flag in place of the file: as if the key stood there. flag: "-serverPort". */
void config_override(struct config *c, const char *path, const char *value, const char *flag);

/* "file:line: text" at a node; one without a line (a flag) gives "-flag: text". */
void config_problem_at(struct config *c, const struct config_node *n, const char *fmt, ...)
	PRINTF_LIKE(3, 4);
bool config_given(const struct config *c, const char *path);
/* "file:line: text", the line that of the key (or of its section, if it was not given). */
void config_problem(struct config *c, const char *path, const char *fmt, ...) PRINTF_LIKE(3, 4);
void config_warning(struct config *c, const char *path, const char *fmt, ...) PRINTF_LIKE(3, 4);
/* Problems for CONFIG_REQUIRED options that were not given. */
void config_check_required(struct config *c);

/* The end of a reading: ERR_INVALID, with all problems, if there are any. */
int config_finish(const struct config *c, struct buf *problems, struct err *e) MUST_USE;
void config_take_warnings(const struct config *c, struct strings *ret);

/* Frees what the table put into base. */
void config_free_values(const struct config_option *options, void *base);

/* "path = value" for every option that has one, secrets hidden. */
void config_print(const struct config_option *options, const void *base, struct buf *ret);
/* fn(arg, key, was, is) for each line that differs between two such texts; NULL: not there. */
void config_changes(const char *was, const char *is,
	void (*fn)(void *arg, const char *key, const char *was, const char *is), void *arg);
/* Markdown: a table per section. */
void config_describe(const struct config_option *options, struct buf *ret);

#endif

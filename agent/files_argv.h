/*
 * The arguments of a command in one string, split as spiffe-helper splits them: as one record of
 * CSV (RFC 4180) with blanks in the place of commas. So two blanks in a row hold an empty argument
 * between them, an argument with blanks stands in double quotes, a double quote in it is doubled,
 * and single quotes mean nothing. What follows the first record (a line end outside of quotes) is
 * not looked at.
 */
#ifndef ASSAY_AGENT_FILES_ARGV_H
#define ASSAY_AGENT_FILES_ARGV_H

#include "lib/entry.h"
#include "lib/err.h"

enum { FILES_ARGV_MAX = 128 << 10, FILES_ARGS_MAX = 4096 };

/* "" gives no arguments. ERR_INVALID says where it cannot be read. */
int files_argv_parse(const char *text, struct strings *ret, struct err *e) MUST_USE;

#endif

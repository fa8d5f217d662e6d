/*
 * Regular expressions as configuration files of Go programs have them (RE2's syntax), matched by
 * the C library: each expression is read here, and written anew as a POSIX one. What cannot be said
 * there (\b, \pN, flags other than a leading (?i)) is refused rather than guessed.
 */
#ifndef ASSAY_LIB_PATTERN_H
#define ASSAY_LIB_PATTERN_H

#include <stdbool.h>

#include "lib/err.h"

enum { PATTERN_MAX = 1024, PATTERN_REPEAT_MAX = 255 };

struct pattern;
/* ERR_INVALID says what is wrong. */
int pattern_new(const char *text, struct pattern **ret, struct err *e) MUST_USE;
void pattern_free(struct pattern *p); /* NULL is fine */
/* Somewhere in the text, which should be ASCII, unless the expression is anchored. */
bool pattern_matches(const struct pattern *p, const char *text);

#endif

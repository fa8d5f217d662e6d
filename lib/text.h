/* Small things for text that people read or type: quoting, plurals, the nearest known word, Go's
 * notation for durations. */
#ifndef ASSAY_LIB_TEXT_H
#define ASSAY_LIB_TEXT_H

#include <stddef.h>
#include <stdint.h>

#include "lib/buf.h"
#include "lib/err.h"

/* The nearest of n names to a mistyped one, case not looked at, or NULL if more than a third of it
 * would have to change. */
const char *text_nearest(const char *typed, const char *const *names, size_t n);
/* one if n is 1, else many */
const char *text_plural(size_t n, const char *one, const char *many);
/* As Go's %q: double quotes, \n \t \" \\ \xNN. Caller frees. */
char *text_quote(const char *s);

/* Go's time.ParseDuration: "1h30m", "-1.5s", "300ms", "0". ERR_INVALID, in Go's words. */
int duration_parse(const char *s, int64_t *ret_ns, struct err *e) MUST_USE;
/* Go's Duration.String(): "1h30m0s", "1.5s", "0s". Caller frees. */
char *duration_format(int64_t ns);

#endif

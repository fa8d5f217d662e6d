/*
 * SPIFFE IDs and trust domain names (SPIFFE-ID standard, sections 2.1 to 2.4): scheme "spiffe",
 * trust domain of [a-z0-9._-], at most 255 bytes; path segments of [a-zA-Z0-9._-], not empty, not
 * "." or ".."; no trailing slash; at most 2,048 bytes in all.
 */
#ifndef ASSAY_LIB_SPIFFEID_H
#define ASSAY_LIB_SPIFFEID_H

#include <stdbool.h>
#include <stddef.h>

#include "lib/buf.h"
#include "lib/err.h"

enum { SPIFFEID_MAX = 2048, TRUST_DOMAIN_MAX = 255 };

/* A checked id. Small value, but its text is owned: spiffeid_deinit(). */
struct spiffeid {
	char *text;    /* "spiffe://td/path", zero-terminated */
	size_t td_len; /* of the trust domain name inside text (after "spiffe://") */
};
#define SPIFFEID_INIT ((struct spiffeid){ .text = NULL })

/* ERR_INVALID with the reason in go-spiffe's words ("scheme is missing or invalid", "trust domain
 * is missing", "trust domain characters are limited to lowercase letters, numbers, dots, dashes,
 * and underscores", "path cannot contain empty segments", "path cannot contain dot segments", "path
 * segment characters are limited to letters, numbers, dots, dashes, and underscores", "path cannot
 * have a trailing slash"). */
int spiffeid_parse(struct spiffeid *ret, struct bytes s, struct err *e) MUST_USE;
int spiffeid_parse_str(struct spiffeid *ret, const char *s, struct err *e) MUST_USE;
/* From a trust domain name and a path that is empty or begins with "/". */
int spiffeid_make(struct spiffeid *ret, const char *td, const char *path, struct err *e) MUST_USE;
void spiffeid_deinit(struct spiffeid *id);
struct spiffeid spiffeid_dup(const struct spiffeid *id);

struct bytes spiffeid_td(const struct spiffeid *id);  /* trust domain name */
const char *spiffeid_path(const struct spiffeid *id); /* "" or "/…", inside text */
bool spiffeid_equal(const struct spiffeid *a, const struct spiffeid *b);
bool spiffeid_member_of(const struct spiffeid *id, const char *td);

int trust_domain_check(struct bytes name, struct err *e) MUST_USE;
/* Accepts a name or a SPIFFE ID ("td", "spiffe://td", "spiffe://td/path") as SPIRE's configuration
 * does; gives the bare name. Caller frees. */
int trust_domain_parse(const char *s, char **ret, struct err *e) MUST_USE;

#endif

/*
 * Selectors and registration entries as values. The meaning of the fields: SPIRE's registration
 * API.
 */
#ifndef ASSAY_LIB_ENTRY_H
#define ASSAY_LIB_ENTRY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/err.h"

struct selector {
	char *type; /* no colon */
	char *value;
};

/* In the order given, or, once selectors_normalize() was called, sorted by (type, value) and
 * without duplicates. Owns its strings. */
struct selectors {
	struct selector *v;
	size_t n;
};

void selectors_deinit(struct selectors *s);
void selectors_add(struct selectors *s, const char *type, const char *value);
/* "type:value"; ERR_INVALID when the colon, the type or the value is missing. */
int selectors_add_text(struct selectors *s, const char *text, struct err *e) MUST_USE;
void selectors_normalize(struct selectors *s);
struct selectors selectors_dup(const struct selectors *s);
bool selectors_equal(const struct selectors *a, const struct selectors *b); /* both normalized */
bool selectors_subset(const struct selectors *a,
	const struct selectors *b); /* every one of a is in b; both normalized */
bool selectors_intersect(const struct selectors *a, const struct selectors *b);
int selector_compare(const struct selector *a, const struct selector *b);

struct strings {
	char **v;
	size_t n;
};
void strings_add(struct strings *s, const char *v);
void strings_deinit(struct strings *s);
struct strings strings_dup(const struct strings *s);
bool strings_has(const struct strings *s, const char *v);

struct entry {
	int64_t num; /* order of creation; the store's. 0: not known */
	char *id;
	char *spiffe_id; /* "spiffe://td/path" */
	char *parent_id;
	struct selectors selectors;
	int32_t x509_svid_ttl; /* seconds; 0: the server's default */
	int32_t jwt_svid_ttl;
	struct strings federates_with; /* trust domain names */
	struct strings dns_names;      /* in the given order: the first becomes the CN */
	bool admin;
	bool downstream;
	bool store_svid;
	bool disable_x509_svid_prefetch;
	bool jwt_svid_include_jti;
	bool has_additional_attributes; /* the message was present */
	int64_t expires_at;             /* Unix seconds; 0: never */
	int64_t revision_number;
	int64_t created_at;
	char *hint; /* "" when none */
};

void entry_deinit(struct entry *e);
struct entry entry_dup(const struct entry *e);

/* Conversion to and from the wire message; the pointer is a Spire__Api__Types__Entry. The result
 * owns all it holds. No checks beyond shape. */
struct Spire__Api__Types__Entry;
int entry_from_proto(
	struct entry *ret, const struct Spire__Api__Types__Entry *m, struct err *e) MUST_USE;
/* A message that the caller frees with spire__api__types__entry__free_unpacked(m, NULL). */
struct Spire__Api__Types__Entry *entry_to_proto(const struct entry *en);

#endif

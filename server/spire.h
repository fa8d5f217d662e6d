/*
 * What a stopped SPIRE server left behind in its SQLite datastore (schema version 23 to 25), as
 * values. Only read: a database that is in order is opened as immutable, one with a write-ahead log
 * is read from a copy in a temporary folder.
 */
#ifndef ASSAY_SERVER_SPIRE_H
#define ASSAY_SERVER_SPIRE_H

#include "server/store.h"

enum { SPIRE_SCHEMA_MIN = 23, SPIRE_SCHEMA_MAX = 25, SPIRE_FINGERPRINT = 65 };

struct spire_journal {
	struct buf data; /* spire.private.server.Journal */
	char *active_x509_id;
};

struct spire {
	int schema;
	char *code_version; /* of the SPIRE that wrote it */
	struct bundle **bundles;
	size_t n_bundles;
	struct entry *entries;
	size_t n_entries;
	struct node *nodes;
	size_t n_nodes;
	struct join_token *tokens;
	size_t n_tokens;
	struct relationship *relationships;
	size_t n_relationships;
	struct spire_journal *journals;
	size_t n_journals;
	struct strings left;                 /* what is not among the above, and why: a line each */
	char fingerprint[SPIRE_FINGERPRINT]; /* of all rows: SHA-256, hex */
};

/* ERR_NOT_FOUND; ERR_PRECONDITION: not SPIRE's, or of another schema version; ERR_DATA_LOSS:
 * damaged. */
int spire_read(
	const char *path, const char *trust_domain, struct spire *ret, struct err *e) MUST_USE;
void spire_deinit(struct spire *s);
/* Some process has the database open. */
bool spire_in_use(const char *path);
/* The bundle of that trust domain; NULL: none. */
struct bundle *spire_bundle(const struct spire *s, const char *trust_domain);

/* For the reader: bundles.data and registered_entries.additional_attributes. What of it cannot be
 * taken is added to left. */
int spire_parse_bundle(
	struct bytes data, struct bundle **ret, struct strings *left, struct err *e) MUST_USE;
int spire_parse_attributes(struct bytes data, struct entry *ret, struct err *e) MUST_USE;
/* Adds a line. */
void spire_leave(struct strings *left, const char *fmt, ...) PRINTF_LIKE(2, 3);

#endif

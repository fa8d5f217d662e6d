/*
 * Trust bundle: X.509 roots, JWT keys, sequence number, refresh hint of one trust domain (SPIFFE
 * Trust Domain and Bundle standard). Immutable once built, counted, shared between threads; a
 * change makes a new one.
 */
#ifndef ASSAY_LIB_BUNDLE_H
#define ASSAY_LIB_BUNDLE_H

#include <stdbool.h>

#include "lib/x509.h"

struct bundle_root {
	struct x509_cert *cert;
	bool tainted;
};

struct bundle_jwt_key {
	char *key_id;
	struct pubkey *key;
	int64_t expires_at; /* Unix seconds; 0: unknown */
	bool tainted;
};

struct bundle {
	int refs;           /* atomic */
	int64_t num;        /* order of creation; the store's. 0: not known */
	char *trust_domain; /* bare name */
	struct bundle_root *roots;
	size_t n_roots;
	struct bundle_jwt_key *jwt_keys; /* in order of insertion */
	size_t n_jwt_keys;
	uint64_t sequence;
	int64_t refresh_hint; /* seconds; 0: none */
};

/* Building: new, add, then treat as immutable. The add functions copy or take references; adding
 * what is there already changes nothing and gives false. */
struct bundle *bundle_new(const char *trust_domain);
struct bundle *bundle_dup(const struct bundle *b); /* a copy that may be changed */
bool bundle_add_root(struct bundle *b, struct x509_cert *c, bool tainted);
bool bundle_add_jwt_key(
	struct bundle *b, const char *key_id, struct pubkey *k, int64_t expires_at, bool tainted);
struct bundle *bundle_ref(struct bundle *b);
void bundle_unref(struct bundle *b);

bool bundle_equal_content(
	const struct bundle *a, const struct bundle *b); /* roots, keys, hint; not the sequence */
struct x509_chain bundle_roots(const struct bundle *b);  /* counted references */
const struct bundle_jwt_key *bundle_find_jwt_key(const struct bundle *b, const char *key_id);
void bundle_roots_der(
	const struct bundle *b, struct buf *ret); /* concatenated, as the Workload API sends them */

/* JSON of the standard: 4-space indent; x509-svid keys then jwt-svid keys in order; spiffe_sequence
 * and spiffe_refresh_hint left out when 0. */
void bundle_to_json(const struct bundle *b, struct buf *ret);
/* Plain JWKS of the JWT keys alone, without "use": the Workload API's form. */
void bundle_to_jwks(const struct bundle *b, struct buf *ret);
/* JWKS of the roots and the JWT keys, without anything that is SPIFFE's own: the form "jwks" of
 * SPIRE's publishers. */
void bundle_to_jwks_all(const struct bundle *b, struct buf *ret);
/* Unknown "use" is ignored; at most 1 MB and 1,000 keys. ERR_INVALID. */
int bundle_from_json(
	const char *trust_domain, struct bytes json, struct bundle **ret, struct err *e) MUST_USE;
int bundle_from_pem(
	const char *trust_domain, struct bytes pem, struct bundle **ret, struct err *e) MUST_USE;
void bundle_to_pem(const struct bundle *b, struct buf *ret);

struct Spire__Api__Types__Bundle;
int bundle_from_proto(
	const struct Spire__Api__Types__Bundle *m, struct bundle **ret, struct err *e) MUST_USE;
struct Spire__Api__Types__Bundle *bundle_to_proto(
	const struct bundle *b); /* caller frees with …__free_unpacked */

DEFINE_AUTO(bundle_unref, struct bundle *);

#endif

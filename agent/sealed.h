/*
 * What the agent keeps on disk across a restart.
 *
 * agent-data.json (SPIRE's name and shape): the agent's own SVID, the trust bundle, and whether it
 * may attest anew. sealed.bin: entries, bundles, workload SVIDs and their keys, encrypted under a
 * key that is derived from the agent's private key, so that the file alone is worth nothing and
 * dies with the agent's key. Both are replaced atomically, mode 0600.
 */
#ifndef ASSAY_AGENT_SEALED_H
#define ASSAY_AGENT_SEALED_H

#include "lib/x509.h"

struct agent_data {
	struct x509_chain svid; /* leaf first; n = 0: none */
	struct x509_chain bundle;
	bool reattestable;
};
void agent_data_deinit(struct agent_data *d);
/* Nothing stored: an empty *ret. ERR_DATA_LOSS names the file and changes nothing. */
int agent_data_load(const char *dir, struct agent_data *ret, struct err *e) MUST_USE;
int agent_data_store(const char *dir, const struct agent_data *d, struct err *e) MUST_USE;

/* The sealed file holds records: a kind and some bytes. */
enum sealed_kind {
	SEALED_STATE = 1,     /* epoch, change: how far the server's log was applied */
	SEALED_ENTRY = 2,     /* spire.api.types.Entry */
	SEALED_BUNDLE = 3,    /* spire.api.types.Bundle, own trust domain */
	SEALED_FEDERATED = 4, /* the same, foreign */
	SEALED_SVID = 5,
};
enum { SEALED_MAX = 256 << 20 };

/* Parts of a record, length first; sealed_part() is false at the end or when damaged. */
void sealed_add(struct buf *plain, enum sealed_kind k, struct bytes v);
bool sealed_next(struct bytes *rest, enum sealed_kind *ret_kind, struct bytes *ret_v);
void sealed_add_part(struct buf *rec, struct bytes v);
bool sealed_part(struct bytes *rest, struct bytes *ret);
void sealed_add_i64(struct buf *rec, int64_t v);
bool sealed_i64(struct bytes *rest, int64_t *ret);

/* Encrypts and replaces the file. Slow (disk): from a job. */
int sealed_write(const char *path, const struct key *k, struct bytes plain, struct err *e) MUST_USE;
/* Tries each key. *ret must be marked secret. ERR_NOT_FOUND; ERR_DATA_LOSS when no key opens it or
 * it is damaged. */
int sealed_read(const char *path, struct key *const *keys, size_t n_keys, struct buf *ret,
	struct err *e) MUST_USE;

#endif

/*
 * The authorities of a SPIRE server, taken out of its journal and key file, so that ours goes on
 * signing with them: the active one and the newest of the others, as SPIRE itself chooses at its
 * start.
 */
#ifndef ASSAY_SERVER_CA_IMPORT_H
#define ASSAY_SERVER_CA_IMPORT_H

#include "server/ca.h"
#include "server/spire.h"

struct ca_import;

/* keys may be NULL: there are none. What cannot be taken is added to left. ERR_DATA_LOSS: the
 * journal is damaged. */
int ca_import_new(const struct spire *s, const char *trust_domain, struct keymgr *keys, int64_t now,
	struct strings *left, struct ca_import **ret, struct err *e) MUST_USE;
void ca_import_free(struct ca_import *im);

/* There is an active X.509 authority, with its private key. */
bool ca_import_can_sign(const struct ca_import *im);
/* A line for each authority, for people. */
void ca_import_describe(const struct ca_import *im, struct buf *ret);
/* Our journal of them. */
void ca_import_journal(const struct ca_import *im, struct buf *ret);
/* ERR_EXISTS: the key manager holds another key under one of the names. */
int ca_import_check_keys(const struct ca_import *im, struct keymgr *m, struct err *e) MUST_USE;
int ca_import_put_keys(const struct ca_import *im, struct keymgr *m, struct err *e) MUST_USE;

DEFINE_AUTO(ca_import_free, struct ca_import *);

#endif

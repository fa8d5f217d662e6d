/*
 * Taking over a stopped SPIRE server: its datastore, its CA journal and its private keys become
 * ours, all at once or not at all; the source is never written to. Done twice, it changes nothing.
 */
#ifndef ASSAY_SERVER_IMPORT_H
#define ASSAY_SERVER_IMPORT_H

#include "server/options.h"

struct import_options {
	const struct server_options *server; /* where to: datastore, keys, trust domain */
	const char *data_dir;                /* SPIRE's */
	const char *datastore, *keys;        /* "": in data_dir, by their usual names */
	bool dry_run;
	bool without_authorities; /* go on though SPIRE's CA cannot be taken over */
};

/* Blocking. The report, for people, is added to ret in any case. ERR_PRECONDITION: the source is in
 * use, is not SPIRE's, or the target holds other data; ERR_NOT_FOUND. */
int import_run(const struct import_options *o, struct buf *ret, struct err *e) MUST_USE;

#endif

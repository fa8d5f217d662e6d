/*
 * This process as a workload: its X509-SVID and trust bundle by the Workload API of a local agent,
 * followed by push and asked for again when the agent goes away. Loop thread.
 */
#ifndef ASSAY_SERVER_UPSTREAM_WORKLOAD_H
#define ASSAY_SERVER_UPSTREAM_WORKLOAD_H

#include "lib/loop.h"
#include "lib/x509.h"

struct workload;

/* Borrowed until the next change. */
struct workload_identity {
	struct x509_chain svid;
	struct key *key;
	struct x509_chain roots; /* of the own trust domain */
};

/* changed(arg) for each new identity. */
struct workload *workload_new(struct loop *l, const char *socket_path, const char *trust_domain,
	void (*changed)(void *arg), void *arg);
void workload_free(struct workload *w);
const struct workload_identity *workload_identity(const struct workload *w); /* NULL: none yet */
/* 0, or why the agent gives nothing at present. */
int workload_error(const struct workload *w, struct err *e);

#endif

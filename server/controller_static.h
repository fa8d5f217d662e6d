/*
 * The controller without a cluster: ClusterStaticEntries and ClusterFederatedTrustDomains from YAML
 * files of a folder, one object each, read again and again. A round in which a file cannot be read
 * changes nothing. Loop thread.
 */
#ifndef ASSAY_SERVER_CONTROLLER_STATIC_H
#define ASSAY_SERVER_CONTROLLER_STATIC_H

#include "server/reconcile.h"

enum { CONTROLLER_STATIC_FILES_MAX = 10000 };

struct manifests;
/* Only those kinds of the two are given to r that are asked for. */
struct manifests *manifests_new(struct loop *l, struct reconcile *r, const char *path,
	bool expand_env, int64_t interval_ns, bool entries, bool federated);
void manifests_free(struct manifests *m); /* NULL is fine */

#endif

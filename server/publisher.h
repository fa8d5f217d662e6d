/*
 * Puts the server's own trust bundle where others read it: keys of ConfigMaps in Kubernetes
 * clusters (BundlePublisher "k8s_configmap", Notifier "k8sbundle"), by server-side apply. At each
 * change, again after a failure until it works, and now and then, since somebody may have edited
 * or deleted it. Loop thread.
 */
#ifndef ASSAY_SERVER_PUBLISHER_H
#define ASSAY_SERVER_PUBLISHER_H

#include "lib/bundle.h"
#include "lib/loop.h"
#include "server/options.h"

enum {
	PUBLISH_AGAIN_S = 60, /* ±10 % */
	PUBLISH_BACKOFF_FIRST_MS = 1000,
	PUBLISH_BACKOFF_MAX_MS = 60000,
};

struct publisher;
/* o stays as it is meanwhile. */
struct publisher *publisher_new(struct loop *l, const struct server_options *o);
void publisher_free(struct publisher *p); /* NULL is fine */
/* b: the own bundle as it is now; NULL: there is none yet. */
void publisher_bundle_changed(struct publisher *p, struct bundle *b);
/* In place of PUBLISH_AGAIN_S. */
void publisher_set_again_for_test(struct publisher *p, int64_t ns);

#endif

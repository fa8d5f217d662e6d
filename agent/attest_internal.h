/* Private to attest*.c. */
#ifndef ASSAY_AGENT_ATTEST_INTERNAL_H
#define ASSAY_AGENT_ATTEST_INTERNAL_H

#include "agent/attest.h"

/* One bundle from a Workload API (attest_workload.c). done is called once, from the loop, and not
 * after a cancel; the bundle is borrowed. */
struct bundle_fetch;
struct bundle_fetch *bundle_fetch_start(struct loop *l, const char *address,
	const char *trust_domain, void (*done)(void *arg, struct bundle *b, const struct err *e),
	void *arg);
void bundle_fetch_cancel(struct bundle_fetch *f);

#endif

/*
 * From the SPIFFE Broker API's reference to a workload (a type URL and bytes) to its selectors.
 *
 * A process is pinned from the first look on: when it ends, the workload has ended, and a later
 * process of that number is another one. Loop thread only.
 */
#ifndef ASSAY_AGENT_WORKLOAD_REFERENCE_H
#define ASSAY_AGENT_WORKLOAD_REFERENCE_H

#include "agent/workload.h"

#define REFERENCE_PID "type.googleapis.com/spiffe.broker.WorkloadPIDReference"
#define REFERENCE_OBJECT "type.googleapis.com/spiffe.broker.KubernetesObjectReference"

struct reference_options {
	struct loop *loop;
	struct workload *workload;
	const struct agent_options *options;
	const char *broker_id; /* who asks */
	const char *type_url;
	struct bytes value;
	/* Once, never before reference_open() has returned; e is set when s is NULL, in SPIRE's
	 * words. */
	void (*done)(void *arg, const struct selectors *s, const struct err *e);
	/* Once, after done with selectors: the workload is no more. */
	void (*ended)(void *arg);
	void *arg;
};
struct reference;
struct reference *reference_open(const struct reference_options *o); /* copies what it needs */
/* Nothing is called any more. NULL is fine. */
void reference_free(struct reference *r);

#endif

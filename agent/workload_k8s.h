/*
 * WorkloadAttestor "k8s": from a process to its container (agent/container), and from that to its
 * pod by the node's kubelet (agent/kubelet); with enable_namespace_labels, the labels of the
 * namespace by the Kubernetes API. For brokers also from a Kubernetes object to its selectors.
 */
#ifndef ASSAY_AGENT_WORKLOAD_K8S_H
#define ASSAY_AGENT_WORKLOAD_K8S_H

#include "agent/kubelet.h"
#include "agent/workload.h"

extern const struct attestor workload_k8s;

/* spiffe.broker.KubernetesObjectReference. */
struct k8s_reference {
	bool has_type;
	const char *plural, *group; /* group "core": of the core resources. Texts may be NULL */
	bool has_key;
	const char *namespace, *name; /* of the key */
	const char *uid;
};

/*
 * What a broker may know of an object: done(arg, selectors, e) once, never before this returns;
 * selectors are borrowed. Pods have those that their processes have, all else a set of its own.
 * Codes and texts are SPIRE's: ERR_INVALID the reference, ERR_NOT_FOUND, ERR_DENIED the broker is
 * not configured or, with access_policy "enforced", not allowed to by Kubernetes, ERR_PRECONDITION
 * it cannot be asked for with this configuration, ERR_INTERNAL, ERR_UNAVAILABLE. w has the
 * attestor.
 */
struct k8s_reference_op;
typedef void k8s_reference_fn(void *arg, const struct selectors *s, const struct err *e);
struct k8s_reference_op *k8s_attest_object(struct workload *w, const char *broker_id,
	const struct k8s_reference *r, k8s_reference_fn *done, void *arg);
/* The same question for a process that was attested already: may the broker know the pod that these
 * selectors of its speak of? Of one in no pod it may. done gets the same selectors. */
struct k8s_reference_op *k8s_review_process(struct workload *w, const char *broker_id,
	const struct selectors *s, k8s_reference_fn *done, void *arg);
void k8s_reference_cancel(struct k8s_reference_op *op); /* NULL is fine */

#endif

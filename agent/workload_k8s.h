/*
 * WorkloadAttestor "k8s": from a process to its container (agent/container), and from that to its
 * pod by the node's kubelet (agent/kubelet); with enable_namespace_labels, the labels of the
 * namespace by the Kubernetes API.
 */
#ifndef ASSAY_AGENT_WORKLOAD_K8S_H
#define ASSAY_AGENT_WORKLOAD_K8S_H

#include "agent/kubelet.h"
#include "agent/workload.h"

extern const struct attestor workload_k8s;

#endif

/* Shared by workload_k8s*.c only. */
#ifndef ASSAY_AGENT_WORKLOAD_K8S_INTERNAL_H
#define ASSAY_AGENT_WORKLOAD_K8S_INTERNAL_H

#include "agent/workload_k8s.h"
#include "lib/kube.h"
#include "lib/list.h"
#include "lib/map.h"

enum { NAMESPACES_MAX = 2000, RESOURCES_MAX = 200 };

struct k8s {
	struct loop *loop;
	const struct k8s_options *o;
	struct kubelet *kubelet; /* NULL: disable_kubelet_client */
	struct kube *kube;       /* NULL until it is needed */
	struct map *namespaces;  /* name → struct namespace */
	struct kube_watch *watch;
	bool watch_whole, watch_told; /* all namespaces are known; its failure was logged */
	struct map *resources;        /* "plural.group" → struct resource */
	struct list references;       /* struct k8s_reference_op */
	bool stopped;
};

/* The API, by KUBECONFIG, as the pod's service account, or by ~/.kube/config. */
int k8s_kube(struct k8s *k, struct kube **ret, struct err *e) MUST_USE;

/* The container by the old matchers; none is no error, as with container_find(). */
int k8s_legacy_container(const struct caller *c, struct container *ret, struct err *e) MUST_USE;
int k8s_legacy_from_cgroup(struct bytes text, struct container *ret, struct err *e) MUST_USE;

/* ---- labels of namespaces ---- */

/* The labels of a namespace, if they are known and fresh; valid until the loop goes on. */
bool k8s_labels_known(const struct k8s *k, const char *namespace, const json_t **ret);
void k8s_labels_add(const json_t *labels, struct selectors *ret);
struct k8s_labels_wait;
/* done(arg, e, labels) once, perhaps before this returns (it then returns NULL). Its error is
 * SPIRE's, ERR_INTERNAL. */
struct k8s_labels_wait *k8s_labels_get(struct k8s *k, const char *namespace,
	void (*done)(void *arg, const struct err *e, const json_t *labels), void *arg);
void k8s_labels_cancel(struct k8s_labels_wait *w); /* NULL is fine */
void k8s_labels_close(struct k8s *k);

/* ---- what brokers refer to ---- */

/* What the API knows a plural as. */
struct resource {
	char *version, *kind;
	bool namespaced;
	int64_t asked_ns;
};

struct k8s_reference_op {
	struct list link;
	struct k8s *k;
	const struct k8s_broker *broker;
	char *plural, *group, *namespace, *name, *uid; /* as asked for; "" where not */
	struct selectors selectors;
	char *found_uid, *found_namespace, *found_name; /* of the object; NULL: none */
	struct resource res;
	json_t *versions; /* of the group, still to be looked at, the preferred one first */
	char *go_on;      /* the list's next page */
	int pages;
	/* under way: at most one */
	struct kubelet_wait *wait;
	struct kube_call *call;
	struct k8s_labels_wait *labels;
	struct loop_timer *end;
	struct err err;
	k8s_reference_fn *done;
	void *arg;
};

/* Also from inside the call that began it: op->err says how it ended. */
void k8s_reference_end(struct k8s_reference_op *op);
/* All of them, since the agent is stopping. */
void k8s_references_stop(struct k8s *k);
/* The object is known, and its selectors are there. */
void k8s_reference_found(struct k8s_reference_op *op);
void k8s_reference_remember(
	struct k8s_reference_op *op, const char *namespace, const char *name, const char *uid);
void k8s_reference_get_pod(
	struct k8s_reference_op *op, struct kube *kube, const char *namespace, const char *name);
void k8s_object_begin(struct k8s_reference_op *op);
/* op->res is known. */
void k8s_object_list_for_uid(struct k8s_reference_op *op);
/* In the API's paths the core group has no name. */
const char *k8s_api_group(const struct k8s_reference_op *op);
bool k8s_is_pod(const struct k8s_reference_op *op);
void k8s_resource_deinit(struct resource *r);
void k8s_resources_free(struct map *resources);

#define FAIL(op, code, ...)                                                                        \
	do {                                                                                       \
		err_set(&(op)->err, code, __VA_ARGS__);                                            \
		k8s_reference_end(op);                                                             \
	} while (0)

#endif

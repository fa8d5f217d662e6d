/*
 * What the node's kubelet knows of its pods (GET /pods), asked for no more than is needed.
 *
 * All who wait share one request. It is read as a stream, answers each as soon as his pod has come
 * by, and ends there, unless others came shortly before: then it is read to its end, so that the
 * next ones find their pods in what is known already. While somebody waits for a container that the
 * last list did not have, requests begin poll_retry_interval apart; if that was not given, sooner
 * at first, as most are there within a second or two, within a budget that nobody can drive up.
 *
 * How old may what is given be? A list is used for poll_retry_interval (500 ms) after its request
 * began, as SPIRE does. A process that was attested in the same pod before is given what is known
 * for KUBELET_AGAIN_NS: it holds an identity made of it anyway, for far longer. Nothing else is
 * kept; whatever ended is forgotten with the list that does not name it.
 *
 * Loop thread only.
 */
#ifndef ASSAY_AGENT_KUBELET_H
#define ASSAY_AGENT_KUBELET_H

#include <sys/types.h>

#include "agent/options.h"
#include "agent/podlist.h"
#include "lib/loop.h"

#define KUBELET_AGAIN_NS (2 * NS_PER_SEC)
#define KUBELET_QUICK_NS (30 * NS_PER_MS) /* the first pause, then half as much again each time */
#define KUBELET_QUICK_MOST_NS (80 * NS_PER_MS) /* no longer than this for the young */
#define KUBELET_YOUNG_NS (3 * NS_PER_SEC)      /* the kubelet looks for changes once a second */
#define KUBELET_QUICK_REFILL_NS (200 * NS_PER_MS)
enum { KUBELET_QUICK_MAX = 40 }; /* requests sooner than the interval, and one more each refill */
enum { KUBELET_TIMEOUT_MS = 10000, KUBELET_AGAIN_MAX = 16 };

struct kubelet;
/* Reads its credentials: what is wrong with them is said in SPIRE's words. The options outlive it.
 */
int kubelet_new(
	struct loop *l, const struct k8s_options *o, struct kubelet **ret, struct err *e) MUST_USE;
/* Lets go of its connections: who asks from now on is told that the agent is stopping. Nobody
 * waits.
 */
void kubelet_stop(struct kubelet *k);
void kubelet_free(struct kubelet *k); /* nobody waits any more. NULL is fine */

/* Which pod: that of a container, with uid if it is known; else that of the uid; else that of the
 * names. Texts may be NULL or "". */
struct kubelet_want {
	const char *container_id, *uid;
	const char *namespace, *name;
	bool pod_will_do; /* of a container whose pod is known: it need not be ready */
	pid_t pid;        /* the process in the container */
	uint64_t start_time;
	/* How many lists are looked at before giving up, at least 1; with poll_quickly: for the
	 * time that so many would take. */
	unsigned attempts;
};

/* The pod, if it is known and fresh enough for this process. Valid until the loop goes on. */
const struct pod *kubelet_known(
	struct kubelet *k, const struct kubelet_want *w, const struct pod_item **ret_container);

/*
 * found() as soon as the pod is known, only to copy from it: nothing of this module may be called
 * from there. Then, or when it was given up, done(), never from inside kubelet_wait(). Its error:
 * ERR_DEADLINE: not among so many lists; ERR_UNAVAILABLE: the kubelet, or what it says of this pod;
 * ERR_INTERNAL: two pods claim the container; all texts SPIRE's. waited: for whom or what, for
 * people; NULL if a known list had it.
 */
struct kubelet_wait_options {
	struct kubelet_want want;
	void (*found)(void *arg, const struct pod *p, const struct pod_item *container);
	void (*done)(void *arg, const struct err *e, const char *waited);
	void *arg;
};
struct kubelet_wait;
struct kubelet_wait *kubelet_wait(struct kubelet *k, const struct kubelet_wait_options *o);
/* done is not called. The text of what was waited for so far; caller frees. */
char *kubelet_cancel(struct kubelet_wait *w);

/* ---- for tests ---- */
size_t kubelet_pods(const struct kubelet *k);
unsigned kubelet_requests(const struct kubelet *k);

#endif

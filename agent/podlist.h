/*
 * The kubelet's list of pods (GET /pods), read as a stream: of each pod only what selectors are
 * made of is kept, and the reading may end at any pod.
 *
 * A list of 110 pods is about 1 MB, most of which (managed fields, volumes, conditions) is skipped
 * without a copy.
 */
#ifndef ASSAY_AGENT_PODLIST_H
#define ASSAY_AGENT_PODLIST_H

#include "lib/buf.h"
#include "lib/entry.h"

enum {
	PODLIST_BYTES_MAX = 512 << 20,
	PODLIST_STRING_MAX = 16 << 10,
	PODLIST_PODS_MAX = 5000,
	PODLIST_ITEMS_MAX = 1000, /* labels, owners, containers of one kind, each */
	PODLIST_POD_TEXT_MAX = 1 << 20,
};

/* Texts of a pod are in one piece of memory; a name of one is its offset, 0 the empty text. */
struct pod_item {
	union {
		struct {
			uint32_t key, value;
		} label;
		struct {
			uint32_t kind, name, uid;
		} owner;
		struct {
			uint32_t name, image, image_id, id;
		} container;
	};
};
struct pod_items {
	struct pod_item *v;
	size_t n, cap;
};

struct pod {
	struct buf text;
	uint32_t uid, name, namespace, service_account, node_name;
	struct pod_items labels, owners;
	struct pod_items containers, init_containers, ephemeral_containers; /* their status */
	const char *broken; /* static; NULL: it is well. Not to be used when it is not */
};
static inline const char *pod_text(const struct pod *p, uint32_t name)
{
	return name ? (const char *)p->text.p + name : "";
}
void pod_free(struct pod *p); /* NULL is fine */

/* The container whose id is that of the runtime, without its scheme; NULL: none. */
const struct pod_item *pod_container(const struct pod *p, const char *container_id);
/* The selectors of SPIRE's attestor `k8s`: those of the pod, those of one of its containers. */
void pod_selectors(const struct pod *p, struct selectors *ret);
void pod_container_selectors(
	const struct pod *p, const struct pod_item *container, struct selectors *ret);

struct podlist;
/* pod() is given each pod, to keep; false: enough, what follows is not looked at. */
struct podlist *podlist_new(bool (*pod)(void *arg, struct pod *p), void *arg);
void podlist_free(struct podlist *l); /* NULL is fine */
/* ERR_INVALID, ERR_EXHAUSTED; SPIRE's words at the begin. */
int podlist_feed(struct podlist *l, struct bytes part, struct err *e) MUST_USE;
int podlist_end(struct podlist *l, struct err *e) MUST_USE;
bool podlist_stopped(const struct podlist *l);
size_t podlist_without_uid(const struct podlist *l); /* pods left out for that */

/* A single pod object, as the API server gives it. */
int pod_parse(struct bytes object, struct pod **ret, struct err *e) MUST_USE;

DEFINE_AUTO(podlist_free, struct podlist *);
DEFINE_AUTO(pod_free, struct pod *);

#endif

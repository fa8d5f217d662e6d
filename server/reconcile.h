/*
 * What a cluster's objects ask for, made true in the server's store: for each pod and
 * ClusterSPIFFEID that selects it an entry, for each ClusterStaticEntry an entry, for each
 * ClusterFederatedTrustDomain a federation relationship.
 *
 * Objects come in one by one, as JSON, from whoever watches the cluster (server/controller.c); the
 * entries that there are come from the store's observer. Nothing is listed: a change costs what it
 * touches. Nothing is written before all kinds are known whole, and only by the leader. An entry
 * belongs to this module by the prefix of its id, a relationship by a list kept in the store; what
 * does not belong to it is never changed or deleted, but for an entry that an object declares too,
 * which is taken over. Loop thread.
 */
#ifndef ASSAY_SERVER_RECONCILE_H
#define ASSAY_SERVER_RECONCILE_H

#include <jansson.h>

#include "lib/pattern.h"
#include "server/api.h"

enum {
	RECONCILE_BATCH = 500,         /* entries of one write */
	RECONCILE_BATCHES_MAX = 4,     /* writes under way */
	RECONCILE_TURN_PODS = 200,     /* pods looked at in one turn of the loop */
	RECONCILE_TEMPLATES_MAX = 100, /* of one object */
	RECONCILE_SERVICES_MAX = 1000, /* of one pod */
	RECONCILE_MESSAGE_MAX = 900,   /* of a condition or event */
};

enum reconcile_kind {
	RECONCILE_NAMESPACE,
	RECONCILE_NODE,
	RECONCILE_POD,
	RECONCILE_SLICE, /* EndpointSlice */
	RECONCILE_ID,    /* ClusterSPIFFEID */
	RECONCILE_STATIC,
	RECONCILE_FEDERATED,
	RECONCILE_KINDS
};

struct reconcile_object;
struct reconcile_options {
	struct api *api;
	const char *cluster_name, *cluster_domain; /* domain: "" not known */
	const char *class_name;                    /* "": all */
	bool watch_classless;
	const struct strings *ignore_namespaces; /* regular expressions, not anchored */
	const char *own_namespace;               /* ignored too; NULL: none */
	const char *parent_id_template;          /* NULL: SPIRE's layout of k8s_psat */
	const char *entry_id_prefix;             /* without its dot */
	const char *entry_id_prefix_cleanup;     /* NULL: none; "": ids without a dot */
	int64_t gc_interval_ns;                  /* failed writes are tried again */
	bool kinds[RECONCILE_KINDS];             /* which come at all */
	/* What is kept of pods is not enough any more, or EndpointSlices are needed now: the kind
	 * is to be told anew, whole. */
	void (*want)(void *arg, enum reconcile_kind kind);
	void (*status)(void *arg); /* reconcile_take_status() has something */
	void (*event)(void *arg, const struct reconcile_object *o, const char *reason,
		const char *message);
	void *arg;
};
struct reconcile;
/* ERR_INVALID: a pattern or the template. */
int reconcile_new(
	const struct reconcile_options *o, struct reconcile **ret, struct err *e) MUST_USE;
/* The store must have no write of ours under way: after loop_drain(). NULL is fine. */
void reconcile_free(struct reconcile *r);
/* No further writes, for good. */
void reconcile_stop(struct reconcile *r);

/* One object, new, changed or gone. Borrowed. */
void reconcile_put(struct reconcile *r, enum reconcile_kind k, const json_t *object);
void reconcile_remove(struct reconcile *r, enum reconcile_kind k, const json_t *object);
/* All of this kind were told. restart: they will be told again from the beginning, and those that
 * are then not among them are gone. */
void reconcile_synced(struct reconcile *r, enum reconcile_kind k);
void reconcile_restart(struct reconcile *r, enum reconcile_kind k);
void reconcile_lead(struct reconcile *r, bool leading);

/* The store's observer tells. */
void reconcile_entry(struct reconcile *r, const char *id, const struct entry *en);
void reconcile_bundle(struct reconcile *r);       /* there is another one: try again */
void reconcile_relationship(struct reconcile *r); /* another one, or one less */

/* An object whose status is another than the cluster has: gives it, and forgets that it changed. */
struct reconcile_status {
	enum reconcile_kind kind;
	char *name, *uid;
	json_t *status; /* whole */
};
bool reconcile_take_status(struct reconcile *r, struct reconcile_status *ret);
/* There will be some once all is known and looked at. */
bool reconcile_status_waits(const struct reconcile *r);
void reconcile_status_deinit(struct reconcile_status *s);
/* It could not be written: it is to be given again. */
void reconcile_return_status(struct reconcile *r, const struct reconcile_status *s);

const char *reconcile_object_name(const struct reconcile_object *o);
const char *reconcile_object_uid(const struct reconcile_object *o);
enum reconcile_kind reconcile_object_kind(const struct reconcile_object *o);
const char *reconcile_kind_name(enum reconcile_kind k); /* "ClusterSPIFFEID" */
bool reconcile_owns(const struct reconcile *r, const char *entry_id);

/* Why a pod has the entries that it has. */
struct reconcile_line {
	char *object;      /* name of the ClusterSPIFFEID */
	const char *state; /* "entry", "waiting", "masked", "not needed", "not selected", "failed",
			      "other class" */
	char *reason, *entry_id; /* "" when there is none */
};
struct reconcile_explanation {
	bool known;
	char *uid, *node, *parent_id; /* NULL when it is not known */
	struct strings notes;
	struct reconcile_line *lines;
	size_t n_lines;
};
void reconcile_explain(struct reconcile *r, const char *namespace, const char *name,
	struct reconcile_explanation *ret);
void reconcile_explanation_deinit(struct reconcile_explanation *x);

struct reconcile_stats {
	size_t pods, nodes, objects, entries, waiting, failed;
	uint64_t created, updated, deleted, failures;
	int64_t last_ready_ns; /* from a pod's event to its entry */
};
void reconcile_stats(const struct reconcile *r, struct reconcile_stats *ret);

#endif

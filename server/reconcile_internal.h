/* Shared by server/reconcile*.c only. */
#ifndef ASSAY_SERVER_RECONCILE_INTERNAL_H
#define ASSAY_SERVER_RECONCILE_INTERNAL_H

#include "lib/list.h"
#include "lib/template.h"
#include "server/reconcile.h"

enum { KEY_SIZE = 32 };

/* ---- label selectors (reconcile_select.c) ---- */

struct label_rule {
	char *key;
	enum { LABEL_IN, LABEL_NOT_IN, LABEL_EXISTS, LABEL_ABSENT } op;
	struct strings values;
};
struct label_selector { /* empty: selects everything */
	struct label_rule *v;
	size_t n;
};
/* j may be NULL. ERR_INVALID. */
int label_selector_parse(struct label_selector *ret, const json_t *j, struct err *e) MUST_USE;
void label_selector_deinit(struct label_selector *s);
bool label_selector_matches(const struct label_selector *s, const json_t *labels);

/* ---- objects (reconcile_object.c) ---- */

/* What a ClusterSPIFFEID says. */
struct id_spec {
	struct template *id;
	struct template **dns, **selectors;
	size_t n_dns, n_selectors;
	struct label_selector namespaces, pods;
	struct strings federates;
	int32_t ttl, jwt_ttl;
	bool admin, downstream, services, fallback;
	bool needs_spec, needs_annotations, needs_node; /* of the pods */
	char *hint;
};

struct reconcile_object {
	enum reconcile_kind kind;
	char *name, *uid, *created, *deleted; /* times as texts, which sort; deleted "": not */
	json_int_t generation;
	bool ours;     /* by its class */
	bool seen;     /* since the restart */
	char *problem; /* of the object itself; NULL: none */
	struct id_spec id;
	struct entry entry; /* of a static one; its id is "" */
	struct relationship relationship;
	struct bundle *bundle; /* of a federated one; NULL: none given */
	uint8_t bundle_digest[KEY_SIZE];
	bool bundle_new, tried; /* federated: see reconcile_federation.c */
	char *conflict;         /* federated: name of the object that has this trust domain */
	struct list decls;
	/* counters, kept as the declarations change */
	size_t namespaces_selected, namespaces_ignored;
	size_t selected, render_failures, masked, to_set, failures;
	char *render_problem, *write_problem; /* the last ones */
	json_t *shown;                        /* the status that the cluster has */
	bool status_changed;
	struct list status_node; /* in reconcile.changed_status */
	char *told;              /* last event */
};
/* Fills o from the object's JSON; what is wrong goes to o->problem. */
void object_read(struct reconcile *r, struct reconcile_object *o, const json_t *j);
void object_spec_deinit(struct reconcile_object *o);
void object_free(struct reconcile_object *o);
/* Which of two has the right to an entry. */
int object_compare(const struct reconcile_object *a, const struct reconcile_object *b);
void object_changed(struct reconcile *r, struct reconcile_object *o); /* its status */
json_t *object_status(const struct reconcile_object *o);
void object_set_problem(char **p, const char *text); /* NULL: none */

/* ---- the cluster (reconcile.c) ---- */

struct node_info {
	char *name, *json;
	char *parent; /* the entries' parent id; NULL: problem says why not */
	char *problem;
	bool seen;
	struct list pods;
};
struct namespace_info {
	char *name;
	json_t *labels;
	bool exists, ignored, seen;
	struct list pods;
};
struct pod {
	char *key; /* namespace/name */
	char *uid;
	char *json; /* what templates may ask for: {"PodMeta":…,"PodSpec":…} */
	struct namespace_info *ns;
	struct node_info *node; /* NULL: none yet */
	struct list ns_node, node_node, dirty_node, decls;
	bool dirty, seen;
	int64_t since_ns; /* of the event that is being worked on */
};
struct slice {
	char *service;
	struct strings uids;
	bool seen;
};

/* One object's claim to one entry. */
struct decl {
	struct reconcile_object *by;
	struct pod *pod;   /* NULL: a static entry */
	struct slot *slot; /* NULL: not rendered */
	uint8_t content[KEY_SIZE];
	bool failed;         /* could not be rendered */
	bool masked;         /* another has the entry */
	bool set;            /* counted in to_set */
	bool refused;        /* the store would not take it */
	struct entry *ready; /* rendered, until it is written */
	struct list by_node, pod_node, slot_node;
};

/* An entry that the store has. */
struct current {
	char *id;
	uint8_t content[KEY_SIZE];
	struct slot *slot;
	struct list slot_node;
};

/* All that is like one entry: same id, parent and selectors. */
struct slot {
	uint8_t key[KEY_SIZE];
	struct list decls, currents;
	bool dirty, busy, failed;
	bool took_over; /* an entry that was not ours; once between retries */
	struct list dirty_node, failed_node;
};

struct reconcile {
	struct reconcile_options o;
	struct api *api;
	char *prefix, *cleanup, *own_namespace; /* prefixes with their dot */
	struct pattern **ignore;
	size_t n_ignore;
	struct template *parent;
	struct map *namespaces, *nodes, *pods, *slices; /* by name */
	struct map *uids, *services; /* pod uid → struct pod; → struct strings */
	struct map *objects[RECONCILE_KINDS];
	struct reconcile_object **ordered; /* ClusterSPIFFEIDs, fallbacks last */
	size_t n_ordered;
	bool order_stale;
	struct map *slots, *currents; /* by key; by entry id */
	struct list dirty_pods, dirty_slots, failed_slots, changed_status;
	struct strings cleanups; /* ids to delete by the clean-up prefix */
	bool synced[RECONCILE_KINDS], leading, stopped;
	bool needs_spec, needs_annotations, needs_services;
	bool posted;
	int batches; /* under way */
	size_t n_ready, n_waiting;
	struct loop_timer *gc;
	/* federation */
	struct strings owned;
	bool federation_busy, federation_posted;
	struct reconcile_stats stats;
	int refs; /* posted callbacks */
};

/* ---- reconcile_cluster.c ---- */

const char *meta_text(const json_t *object, const char *key); /* "" when it is not there */
char *object_key(const json_t *object);                       /* namespace/name */
void namespace_put(struct reconcile *r, const json_t *object);
void namespace_gone(struct reconcile *r, struct namespace_info *ns);
void count_namespaces(struct reconcile *r, struct reconcile_object *o);
void node_put(struct reconcile *r, const json_t *object);
void node_gone(struct reconcile *r, struct node_info *n);
void pod_put(struct reconcile *r, const json_t *object);
void pod_gone(struct reconcile *r, struct pod *p);
void slice_put(struct reconcile *r, const json_t *object);
void slice_gone(struct reconcile *r, const char *key);
void slice_free(struct slice *s);

/* ---- reconcile.c ---- */

void pod_drop_decl(struct reconcile *r, struct decl *d);
void reconcile_work_soon(struct reconcile *r);
void pod_dirty(struct reconcile *r, struct pod *p);
bool reconcile_may_write(const struct reconcile *r);

/* ---- rendering (reconcile_render.c) ---- */

/* "" and 0 on success, else the error; *ret is to be deinited on success. */
int render_pod(struct reconcile *r, const struct reconcile_object *o, const struct pod *p,
	struct entry *ret, struct err *e) MUST_USE;
int render_parent(struct reconcile *r, const char *node_json, char **ret, struct err *e) MUST_USE;
/* As the API would check it, before it goes to the store. */
int render_check(struct reconcile *r, struct entry *en, struct err *e) MUST_USE;
void entry_key(const struct entry *en, uint8_t ret[KEY_SIZE]);
void entry_content(const struct entry *en, uint8_t ret[KEY_SIZE]);

/* ---- slots (reconcile_slot.c) ---- */

/* A rendered entry (taken over) for this declaration. */
void decl_set(struct reconcile *r, struct decl *d, struct entry *en);
void decl_unset(struct reconcile *r, struct decl *d); /* has none any more */
struct decl *decl_new(struct reconcile_object *by, struct pod *p);
void decl_free(struct reconcile *r, struct decl *d);
void slot_flush(struct reconcile *r);
void slot_seed(struct reconcile *r);
void slot_retry(struct reconcile *r);
void slot_free_all(struct reconcile *r);

/* ---- federation (reconcile_federation.c) ---- */

int federation_owned_load(struct reconcile *r, struct err *e) MUST_USE;
void federation_work(struct reconcile *r); /* soon */
void federation_retry(struct reconcile *r);

#endif

/*
 * What a broker refers to: pods, by the kubelet or the API (others: workload_k8s_object.c); then,
 * if the configuration asks for it, Kubernetes' own word on whether the broker may.
 */
#include <stdlib.h>
#include <string.h>

#include "agent/workload_k8s_internal.h"

#define REVIEW_VERB "impersonate-via-spire"

/* ---- begin and end ---- */

const char *k8s_api_group(const struct k8s_reference_op *op)
{
	return strcmp(op->group, "core") == 0 ? "" : op->group;
}

bool k8s_is_pod(const struct k8s_reference_op *op)
{
	return strcmp(op->plural, "pods") == 0 && strcmp(op->group, "core") == 0;
}

static void stop_waiting(struct k8s_reference_op *op)
{
	if (op->wait)
		free(kubelet_cancel(op->wait));
	kube_call_cancel(op->call);
	k8s_labels_cancel(op->labels);
	op->wait = NULL;
	op->call = NULL;
	op->labels = NULL;
}

void k8s_reference_cancel(struct k8s_reference_op *op)
{
	if (!op)
		return;
	stop_waiting(op);
	list_remove(&op->link);
	loop_timer_free(op->end);
	k8s_resource_deinit(&op->res);
	json_decref(op->versions);
	selectors_deinit(&op->selectors);
	free(op->go_on);
	free(op->plural);
	free(op->group);
	free(op->namespace);
	free(op->name);
	free(op->uid);
	free(op->found_uid);
	free(op->found_namespace);
	free(op->found_name);
	free(op);
}

static void on_end(void *arg)
{
	struct k8s_reference_op *op = arg;
	struct selectors s = op->selectors;
	struct err e = op->err;
	k8s_reference_fn *done = op->done;

	arg = op->arg;
	op->selectors = (struct selectors){ 0 };
	k8s_reference_cancel(op);
	if (e.code) {
		selectors_deinit(&s);
		s = (struct selectors){ 0 };
	}
	done(arg, &s, &e);
	selectors_deinit(&s);
}

/* op->err says how. Also from inside the call that began it. */
void k8s_reference_end(struct k8s_reference_op *op)
{
	loop_timer_set(op->end, 0);
}

void k8s_references_stop(struct k8s *k)
{
	list_each (op, &k->references, struct k8s_reference_op, link) {
		stop_waiting(op);
		if (!op->err.code)
			err_set(&op->err, ERR_UNAVAILABLE, "the agent is stopping");
		k8s_reference_end(op);
	}
}

static char *dup_text(const char *s)
{
	return xstrdup(s ? s : "");
}

static int find_broker(struct k8s_reference_op *op, const char *id)
{
	const struct k8s_options *o = op->k->o;

	if (!o->has_broker)
		return err_set(&op->err, ERR_INTERNAL, "broker configuration missing");
	for (size_t i = 0; i < o->n_brokers; i++)
		if (strcmp(o->brokers[i].id, id) == 0) {
			op->broker = &o->brokers[i];
			return 0;
		}
	return err_set(&op->err, ERR_DENIED, "broker \"%s\" is not configured", id);
}

static struct k8s_reference_op *op_new(struct workload *w, k8s_reference_fn *done, void *arg)
{
	struct k8s_reference_op *op = xcalloc(1, sizeof(*op));

	op->k = workload_state(w, &workload_k8s);
	INVARIANT(op->k);
	op->done = done;
	op->arg = arg;
	list_append(&op->k->references, &op->link);
	op->end = loop_timer_new(op->k->loop, on_end, op);
	return op;
}

/* ---- may the broker? ---- */

static void on_review(void *arg, int status, json_t *object, const struct err *e)
{
	struct k8s_reference_op *op = arg;
	const json_t *allowed = json_object_get(json_object_get(object, "status"), "allowed");

	(void)status;
	op->call = NULL;
	if (e->code)
		err_set(&op->err, ERR_INTERNAL,
			"unable to check Kubernetes authorization for broker: %s", e->msg);
	else if (!json_is_true(allowed))
		err_set(&op->err, ERR_DENIED,
			"Kubernetes authorizer does not allow the broker to use " REVIEW_VERB
			" for the referenced object");
	k8s_reference_end(op);
}

static void review(struct k8s_reference_op *op)
{
	const char *policy = op->k->o->broker_access_policy;
	struct kube_call_options o = { .method = "POST",
		.path = "/apis/authorization.k8s.io/v1/subjectaccessreviews",
		.repeatable = true,
		.done = on_review,
		.arg = op };
	struct kube *kube;
	struct err e = ERR_INIT;
	json_t *body;

	if (!op->found_name || !policy || strcmp(policy, "enforced") != 0) {
		k8s_reference_end(op);
		return;
	}
	if (k8s_kube(op->k, &kube, &e)) {
		FAIL(op, ERR_INTERNAL, "unable to set up Kubernetes client: %s", e.msg);
		return;
	}
	body = json_pack("{s:s, s:s, s:{s:s, s:{s:s, s:s, s:s, s:s, s:s}}}", "apiVersion",
		"authorization.k8s.io/v1", "kind", "SubjectAccessReview", "spec", "user",
		op->broker->id, "resourceAttributes", "group", k8s_api_group(op), "resource",
		op->plural, "namespace", op->found_namespace, "name", op->found_name, "verb",
		REVIEW_VERB);
	if (!body) {
		FAIL(op, ERR_INVALID, "the reference is not text");
		return;
	}
	o.body = body;
	op->call = kube_call(kube, &o);
	json_decref(body);
}

/* ---- the object is known ---- */

static void on_labels(void *arg, const struct err *e, const json_t *labels)
{
	struct k8s_reference_op *op = arg;

	op->labels = NULL;
	op->err = *e;
	if (e->code) {
		k8s_reference_end(op);
		return;
	}
	k8s_labels_add(labels, &op->selectors);
	review(op);
}

void k8s_reference_found(struct k8s_reference_op *op)
{
	struct k8s_labels_wait *w;

	selectors_normalize(&op->selectors);
	if (!op->k->o->enable_namespace_labels || !*op->found_namespace) {
		review(op);
		return;
	}
	w = k8s_labels_get(op->k, op->found_namespace, on_labels, op);
	if (w)
		op->labels = w;
}

void k8s_reference_remember(
	struct k8s_reference_op *op, const char *namespace, const char *name, const char *uid)
{
	free(op->found_namespace);
	free(op->found_name);
	free(op->found_uid);
	op->found_namespace = dup_text(namespace);
	op->found_name = dup_text(name);
	op->found_uid = dup_text(uid);
}

/* ---- pods ---- */

static void take_pod(struct k8s_reference_op *op, const struct pod *p)
{
	k8s_reference_remember(
		op, pod_text(p, p->namespace), pod_text(p, p->name), pod_text(p, p->uid));
	pod_selectors(p, &op->selectors);
}

static void pod_found(struct k8s_reference_op *op)
{
	if (*op->uid && strcmp(op->uid, op->found_uid) != 0)
		FAIL(op, ERR_NOT_FOUND, "pod %s/%s has UID %s, expected %s", op->found_namespace,
			op->found_name, op->found_uid, op->uid);
	else
		k8s_reference_found(op);
}

static void on_pod_answer(void *arg, int status, json_t *object, const struct err *e)
{
	struct k8s_reference_op *op = arg;
	AUTO(free) char *dump = NULL;
	AUTO(pod_free) struct pod *p = NULL;
	struct err bad = ERR_INIT;

	(void)status;
	op->call = NULL;
	if (e->code == ERR_NOT_FOUND) {
		FAIL(op, ERR_NOT_FOUND, "pod %s/%s not found",
			op->found_name ? op->found_namespace : op->namespace,
			op->found_name ? op->found_name : op->name);
		return;
	}
	if (e->code) {
		FAIL(op, ERR_INTERNAL, "unable to get pod from Kubernetes API: %s", e->msg);
		return;
	}
	dump = json_dumps(object, JSON_COMPACT);
	if (!dump || pod_parse(bytes_str(dump), &p, &bad) || p->broken) {
		FAIL(op, ERR_INTERNAL, "unable to get pod from Kubernetes API: %s",
			p && p->broken ? p->broken : bad.msg);
		return;
	}
	take_pod(op, p);
	pod_found(op);
}

void k8s_reference_get_pod(
	struct k8s_reference_op *op, struct kube *kube, const char *namespace, const char *name)
{
	AUTO(free) char *path = kube_path("/api/v1/namespaces/%s/pods/%s", namespace, name);
	struct kube_call_options o = { .path = path, .done = on_pod_answer, .arg = op };

	op->call = kube_call(kube, &o);
}

static void pod_by_api(struct k8s_reference_op *op)
{
	struct kube *kube;
	struct err e = ERR_INIT;

	if (k8s_kube(op->k, &kube, &e)) {
		FAIL(op, ERR_INTERNAL, "unable to create Kubernetes %sclient: %s",
			*op->name ? "" : "metadata ", e.msg);
	} else if (*op->name) {
		k8s_reference_get_pod(op, kube, op->namespace, op->name);
	} else {
		op->res.version = xstrdup("v1");
		op->res.kind = xstrdup("Pod");
		k8s_object_list_for_uid(op);
	}
}

static void on_pod_found(void *arg, const struct pod *p, const struct pod_item *container)
{
	(void)container;
	take_pod(arg, p);
}

static void on_pod_waited(void *arg, const struct err *e, const char *waited)
{
	static const char undecoded[] = "unable to decode pod info";
	struct k8s_reference_op *op = arg;

	(void)waited;
	op->wait = NULL;
	if (!e->code)
		pod_found(op);
	else if (strncmp(e->msg, undecoded, strlen(undecoded)) == 0)
		FAIL(op, ERR_INTERNAL, "%s", e->msg);
	else if (op->broker->cluster_scope)
		pod_by_api(op);
	else if (e->code != ERR_DEADLINE)
		FAIL(op, e->code, "%s", e->msg);
	else if (*op->name)
		FAIL(op, ERR_NOT_FOUND, "pod %s/%s not found on agent node", op->namespace,
			op->name);
	else
		FAIL(op, ERR_NOT_FOUND, "pod with UID %s not found on agent node", op->uid);
}

static void begin_pod(struct k8s_reference_op *op)
{
	struct kubelet_wait_options o = {
		.found = on_pod_found, .done = on_pod_waited, .arg = op, .want.attempts = 1
	};

	if (*op->name) {
		o.want.namespace = op->namespace;
		o.want.name = op->name;
	} else {
		o.want.uid = op->uid;
	}
	if (*op->name && !*op->namespace)
		FAIL(op, ERR_INVALID,
			"namespace is required when name is set for a namespaced resource");
	else if (op->k->kubelet)
		op->wait = kubelet_wait(op->k->kubelet, &o);
	else if (op->broker->cluster_scope)
		pod_by_api(op);
	else
		FAIL(op, ERR_PRECONDITION, "kubelet client is disabled");
}

/* ---- from outside ---- */

static int check_reference(const struct k8s_reference *r, struct err *e)
{
	const char *what = !r->has_type                            ? "is missing type"
			   : !r->plural || !*r->plural             ? "type is missing plural"
			   : !r->group || !*r->group               ? "type is missing group"
			   : !r->has_key && (!r->uid || !*r->uid)  ? "is missing key and UID"
			   : r->has_key && (!r->name || !*r->name) ? "key is missing name"
								   : NULL;

	return what ? err_set(e, ERR_INVALID, "object reference %s", what) : 0;
}

struct k8s_reference_op *k8s_attest_object(struct workload *w, const char *broker_id,
	const struct k8s_reference *r, k8s_reference_fn *done, void *arg)
{
	struct k8s_reference_op *op = op_new(w, done, arg);

	op->plural = dup_text(r->plural);
	op->group = dup_text(r->group);
	op->namespace = dup_text(r->has_key ? r->namespace : NULL);
	op->name = dup_text(r->has_key ? r->name : NULL);
	op->uid = dup_text(r->uid);
	if (find_broker(op, broker_id) || check_reference(r, &op->err))
		k8s_reference_end(op);
	else if (k8s_is_pod(op))
		begin_pod(op);
	else
		k8s_object_begin(op);
	return op;
}

/* The value of the selector "k8s:<name>:<value>"; NULL: there is none. */
static const char *value_of(const struct selectors *s, const char *name)
{
	size_t n = strlen(name);

	for (size_t i = 0; i < s->n; i++)
		if (strcmp(s->v[i].type, "k8s") == 0 && strncmp(s->v[i].value, name, n) == 0 &&
			s->v[i].value[n] == ':')
			return s->v[i].value + n + 1;
	return NULL;
}

struct k8s_reference_op *k8s_review_process(struct workload *w, const char *broker_id,
	const struct selectors *s, k8s_reference_fn *done, void *arg)
{
	struct k8s_reference_op *op = op_new(w, done, arg);
	const char *name = value_of(s, "pod-name");

	op->selectors = selectors_dup(s);
	op->plural = xstrdup("pods");
	op->group = xstrdup("core");
	if (name)
		k8s_reference_remember(op, value_of(s, "ns"), name, value_of(s, "pod-uid"));
	if (find_broker(op, broker_id))
		k8s_reference_end(op);
	else
		review(op);
	return op;
}

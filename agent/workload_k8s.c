#include <stdlib.h>

#include "agent/workload_k8s_internal.h"
#include "lib/log.h"

static bool k8s_enabled(const struct agent_options *o)
{
	return o->k8s.on;
}

static void k8s_stop(void *state)
{
	struct k8s *k = state;

	k->stopped = true;
	k8s_references_stop(k);
	if (k->kubelet)
		kubelet_stop(k->kubelet);
	k8s_labels_close(k);
	kube_free(k->kube);
	k->kube = NULL;
}

static void k8s_close(void *state)
{
	struct k8s *k = state;

	k8s_stop(k);
	INVARIANT(list_empty(&k->references));
	kubelet_free(k->kubelet);
	k8s_resources_free(k->resources);
	free(k);
}

static int k8s_open(struct loop *l, const struct agent_options *o, void **ret, struct err *e)
{
	struct k8s *k = xcalloc(1, sizeof(*k));

	k->loop = l;
	k->o = &o->k8s;
	k->namespaces = map_new();
	k->resources = map_new();
	list_init(&k->references);
	if (!k->o->disable_kubelet_client && kubelet_new(l, k->o, &k->kubelet, e)) {
		k8s_close(k);
		return e->code = ERR_INVALID; /* of the configuration, as SPIRE has it */
	}
	*ret = k;
	return 0;
}

/* ---- one attestation ---- */

static struct kubelet_want want_of(
	const struct k8s *k, const struct caller *c, const struct finding *f)
{
	return (struct kubelet_want){ .container_id = f->container.id,
		.uid = f->container.pod_uid,
		.pod_will_do = k->o->disable_container_selectors,
		.pid = c->pid,
		.start_time = c->start_time,
		.attempts = (unsigned)k->o->max_poll_attempts };
}

static void add_selectors(const struct k8s *k, const struct pod *p,
	const struct pod_item *container, struct finding *f)
{
	pod_selectors(p, &f->selectors);
	if (container && !k->o->disable_container_selectors)
		pod_container_selectors(p, container, &f->selectors);
}

/* ATTEST_WAITS: ret->container is known. */
static enum attest_next find_container(
	const struct k8s *k, const struct caller *c, bool blocking, struct finding *ret)
{
	int want = CONTAINER_POD;

	if (k->o->verbose_container_locator_logs)
		want |= CONTAINER_VERBOSE;
	if (k->o->use_new_container_locator)
		return attest_container(c, want, blocking, ret);
	if (k8s_legacy_container(c, &ret->container, &ret->err) || !ret->container.id[0])
		return ATTEST_DONE;
	return ATTEST_WAITS;
}

static enum attest_next k8s_attest(
	void *state, const struct caller *c, bool blocking, struct finding *ret)
{
	struct k8s *k = state;
	const struct pod_item *container;
	const struct pod *p;
	const json_t *labels = NULL;
	struct kubelet_want w;
	enum attest_next next;

	if (k->o->disable_kubelet_client) {
		err_set(&ret->err, ERR_PRECONDITION, "kubelet client is disabled");
		return ATTEST_DONE;
	}
	next = find_container(k, c, blocking, ret);
	if (next != ATTEST_WAITS || blocking)
		return next;
	w = want_of(k, c, ret);
	p = kubelet_known(k->kubelet, &w, &container);
	if (!p || (k->o->enable_namespace_labels &&
			  !k8s_labels_known(k, pod_text(p, p->namespace), &labels)))
		return ATTEST_WAITS;
	add_selectors(k, p, container, ret);
	if (labels)
		k8s_labels_add(labels, &ret->selectors);
	return ATTEST_DONE;
}

struct k8s_op {
	struct k8s *k;
	struct finding *f;
	void (*done)(void *arg);
	void *arg;
	struct kubelet_wait *wait;
	char *namespace; /* whose labels are wanted */
	struct k8s_labels_wait *labels;
};

static void on_found(void *arg, const struct pod *p, const struct pod_item *container)
{
	struct k8s_op *op = arg;

	add_selectors(op->k, p, container, op->f);
	if (op->k->o->enable_namespace_labels)
		op->namespace = xstrdup(pod_text(p, p->namespace));
}

static void op_done(struct k8s_op *op)
{
	void (*done)(void *arg) = op->done;
	void *arg = op->arg;

	free(op->namespace);
	free(op);
	done(arg);
}

static void on_labels(void *arg, const struct err *e, const json_t *labels)
{
	struct k8s_op *op = arg;

	op->labels = NULL;
	op->f->err = *e;
	if (!e->code)
		k8s_labels_add(labels, &op->f->selectors);
	op_done(op);
}

static void get_labels(struct k8s_op *op)
{
	AUTO(free) char *namespace = op->namespace;
	struct k8s_labels_wait *w;

	/* It may be over, and gone, before this returns. */
	op->namespace = NULL;
	w = k8s_labels_get(op->k, namespace, on_labels, op);
	if (w)
		op->labels = w;
}

static void on_waited(void *arg, const struct err *e, const char *waited)
{
	struct k8s_op *op = arg;
	struct finding *f = op->f;

	op->wait = NULL;
	f->err = *e;
	f->waited_for = waited ? xstrdup(waited) : NULL;
	if (e->code)
		log_event(LOG_WARN, "workload_k8s", "Container id not found; giving up", "pod_uid",
			f->container.pod_uid, "container_id", f->container.id, "error", e->msg,
			NULL);
	if (!e->code && op->namespace)
		get_labels(op);
	else
		op_done(op);
}

static void *k8s_start(void *state, const struct caller *c, struct finding *ret,
	void (*done)(void *arg), void *arg)
{
	struct k8s *k = state;
	struct k8s_op *op = xcalloc(1, sizeof(*op));
	struct kubelet_wait_options o = {
		.want = want_of(k, c, ret), .found = on_found, .done = on_waited, .arg = op
	};

	*op = (struct k8s_op){ .k = k, .f = ret, .done = done, .arg = arg };
	op->wait = kubelet_wait(k->kubelet, &o);
	return op;
}

static void k8s_cancel(void *arg)
{
	struct k8s_op *op = arg;

	if (op->wait)
		op->f->waited_for = kubelet_cancel(op->wait);
	k8s_labels_cancel(op->labels);
	free(op->namespace);
	free(op);
}

const struct attestor workload_k8s = {
	.name = "k8s",
	.enabled = k8s_enabled,
	.open = k8s_open,
	.close = k8s_close,
	.stop = k8s_stop,
	.attest = k8s_attest,
	.start = k8s_start,
	.cancel = k8s_cancel,
};

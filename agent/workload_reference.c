#include "agent/workload_reference.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/workload_k8s.h"
#include "lib/log.h"
#include "spiffe/broker/broker.pb-c.h"

struct reference {
	struct reference_options o;
	int refs; /* the user's, and one while it is being looked up */
	bool closed;
	char *broker_id, *type_url;
	struct buf value;
	struct err err;
	struct k8s_reference_op *op;
	/* of a process */
	pid_t pid;
	int pidfd; /* -1: none */
	struct loop_watch *watch;
	struct selectors selectors;
	bool others; /* attestors but k8s found something out */
};

static void unref(struct reference *r)
{
	if (--r->refs)
		return;
	if (r->pidfd >= 0)
		close(r->pidfd);
	selectors_deinit(&r->selectors);
	buf_deinit(&r->value);
	free(r->broker_id);
	free(r->type_url);
	free(r);
}

static void process_ended(void *arg)
{
	struct reference *r = arg;

	loop_watch_free(r->watch);
	r->watch = NULL;
	r->o.ended(r->o.arg);
}

/* s NULL: r->err says why. */
static void tell(struct reference *r, const struct selectors *s)
{
	if (!r->closed && s && r->pidfd >= 0)
		r->watch = loop_watch_readable(r->o.loop, r->pidfd, process_ended, r);
	if (!r->closed)
		r->o.done(r->o.arg, s, &r->err);
	unref(r);
}

/* ---- in SPIRE's words, and with its codes ---- */

static void failed(struct reference *r, const char *attestor, int code, const char *why)
{
	AUTO(free) char *text = xstrdup(why);

	err_set(&r->err, code,
		"workload attestor \"%s\" failed: rpc error: code = %s desc = "
		"workloadattestor(%s): %s",
		attestor, err_code_name(code), attestor, text);
}

static void no_process(struct reference *r, const char *why)
{
	const struct agent_options *o = r->o.options;

	failed(r,
		o->attestor_unix     ? "unix"
		: o->k8s.on          ? "k8s"
		: o->attestor_docker ? "docker"
				     : "systemd",
		ERR_INTERNAL, log_fmt("failed to get process: %s", why));
}

/* What no attestor but k8s would look at. */
static void not_handled(struct reference *r)
{
	const struct k8s_options *k = &r->o.options->k8s;
	bool known = false;

	for (size_t i = 0; i < k->n_brokers; i++)
		known |= strcmp(k->brokers[i].id, r->broker_id) == 0;
	if (!k->on)
		err_set(&r->err, ERR_UNIMPLEMENTED, "no workload attestor handled reference");
	else if (!k->has_broker)
		failed(r, "k8s", ERR_INTERNAL, "broker configuration missing");
	else if (!known)
		failed(r, "k8s", ERR_DENIED,
			log_fmt("broker \"%s\" is not configured", r->broker_id));
	else if (strcmp(r->type_url, REFERENCE_PID) == 0)
		failed(r, "k8s", ERR_INVALID, "unable to unmarshal PID reference");
	else if (strcmp(r->type_url, REFERENCE_OBJECT) == 0)
		failed(r, "k8s", ERR_INVALID, "unable to unmarshal object reference");
	else
		failed(r, "k8s", ERR_INVALID,
			log_fmt("unsupported reference type: %s", r->type_url));
}

/* ---- a process ---- */

static void drop_k8s(struct selectors *s)
{
	struct selectors rest = { 0 };

	for (size_t i = 0; i < s->n; i++)
		if (strcmp(s->v[i].type, "k8s") != 0)
			selectors_add(&rest, s->v[i].type, s->v[i].value);
	selectors_normalize(&rest);
	selectors_deinit(s);
	*s = rest;
}

/* As an attestor that fails: what the others found counts, what is the pod's does not. */
static void on_reviewed(void *arg, const struct selectors *s, const struct err *e)
{
	struct reference *r = arg;

	r->op = NULL;
	if (!e->code) {
		tell(r, s);
		return;
	}
	failed(r, "k8s", e->code, e->msg);
	if (!r->others) {
		tell(r, NULL);
		return;
	}
	log_event(LOG_ERROR, "broker", "Failed to collect all selectors", "broker_peer",
		r->broker_id, "error", r->err.msg, NULL);
	drop_k8s(&r->selectors);
	tell(r, &r->selectors);
}

static void on_attested(void *arg, const struct attestation *a)
{
	struct reference *r = arg;
	bool k8s = false;

	if (r->closed || a->err.code) {
		if (a->err.code == ERR_NOT_FOUND)
			no_process(r, "process does not exist");
		else
			r->err = a->err;
		tell(r, NULL);
		return;
	}
	r->selectors = selectors_dup(&a->selectors);
	for (size_t i = 0; i < a->n_findings; i++) {
		if (a->findings[i].err.code)
			continue;
		if (strcmp(a->findings[i].attestor, "k8s") == 0)
			k8s = true;
		else
			r->others = true;
	}
	if (k8s)
		r->op = k8s_review_process(
			r->o.workload, r->broker_id, &r->selectors, on_reviewed, r);
	else
		tell(r, &r->selectors);
}

static void look_up_process(struct reference *r)
{
	Spiffe__Broker__WorkloadPIDReference *m =
		spiffe__broker__workload_pidreference__unpack(NULL, r->value.len, r->value.p);
	struct peer p = { .is_unix = true };
	struct err e = ERR_INIT;

	if (!m) {
		not_handled(r);
		tell(r, NULL);
		return;
	}
	r->pid = m->pid;
	spiffe__broker__workload_pidreference__free_unpacked(m, NULL);
	if (r->pid <= 0)
		no_process(r, log_fmt("invalid pid %d", (int)r->pid));
	else if (caller_pidfd(r->pid, &r->pidfd, &e))
		no_process(r, "process does not exist");
	if (r->err.code) {
		tell(r, NULL);
		return;
	}
	p.pid = r->pid;
	p.pidfd = r->pidfd;
	workload_attest(r->o.workload, &p, r->pid, false, on_attested, r);
}

/* ---- a Kubernetes object ---- */

static void on_object(void *arg, const struct selectors *s, const struct err *e)
{
	struct reference *r = arg;

	r->op = NULL;
	if (e->code)
		failed(r, "k8s", e->code, e->msg);
	tell(r, e->code ? NULL : s);
}

static void look_up_object(struct reference *r)
{
	Spiffe__Broker__KubernetesObjectReference *m =
		spiffe__broker__kubernetes_object_reference__unpack(NULL, r->value.len, r->value.p);
	struct k8s_reference k = { 0 };

	if (!m) {
		not_handled(r);
		tell(r, NULL);
		return;
	}
	k.has_type = m->type != NULL;
	k.plural = m->type ? m->type->plural : NULL;
	k.group = m->type ? m->type->group : NULL;
	k.has_key = m->key != NULL;
	k.namespace = m->key ? m->key->namespace_ : NULL;
	k.name = m->key ? m->key->name : NULL;
	k.uid = m->uid;
	r->op = k8s_attest_object(r->o.workload, r->broker_id, &k, on_object, r);
	spiffe__broker__kubernetes_object_reference__free_unpacked(m, NULL);
}

/* ---- the beginning and the end ---- */

static void look_up(void *arg)
{
	struct reference *r = arg;

	if (r->closed) {
		unref(r);
	} else if (strcmp(r->type_url, REFERENCE_PID) == 0) {
		look_up_process(r);
	} else if (strcmp(r->type_url, REFERENCE_OBJECT) == 0 && r->o.options->k8s.on) {
		look_up_object(r);
	} else {
		not_handled(r);
		tell(r, NULL);
	}
}

struct reference *reference_open(const struct reference_options *o)
{
	struct reference *r = xcalloc(1, sizeof(*r));

	r->o = *o;
	r->refs = 2;
	r->pidfd = -1;
	r->broker_id = xstrdup(o->broker_id);
	r->type_url = xstrdup(o->type_url);
	r->value = BUF_INIT;
	buf_bytes(&r->value, o->value);
	r->o.broker_id = r->o.type_url = NULL;
	r->o.value = bytes_of(NULL, 0);
	loop_post(o->loop, look_up, r);
	return r;
}

void reference_free(struct reference *r)
{
	if (!r)
		return;
	r->closed = true;
	loop_watch_free(r->watch);
	r->watch = NULL;
	if (r->op) {
		k8s_reference_cancel(r->op);
		r->op = NULL;
		unref(r);
	}
	unref(r);
}

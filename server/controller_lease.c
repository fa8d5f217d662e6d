#include "server/controller_lease.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "lib/crypto.h"
#include "lib/log.h"

enum { JITTER_PERCENT = 20, RELEASE_MS = 1500 };

struct lease {
	struct lease_options o;
	char *namespace, *name, *identity;
	json_t *seen;       /* the object as it was last */
	int64_t changed_ns; /* when it was first seen so */
	int64_t renewed_ns; /* begin of our last good write */
	int64_t asked_ns;   /* begin of the write under way */
	bool leading, releasing;
	struct kube_call *call;
	struct loop_timer *retry, *deadline;
	char *failure; /* told last */
	void (*released)(void *arg);
	void *released_arg;
};

static int64_t now(void)
{
	return clock_mono().ns;
}

static void lead(struct lease *l, bool leading)
{
	if (l->leading == leading)
		return;
	l->leading = leading;
	log_event(LOG_INFO, "controller", leading ? "leading" : "not leading any more", "lease",
		l->name, "identity", l->identity, NULL);
	l->o.changed(l->o.arg, leading);
}

static void again(struct lease *l)
{
	if (!l->releasing)
		loop_timer_set(l->retry, loop_jitter(l->o.retry_ns, JITTER_PERCENT));
}

static void on_deadline(void *arg)
{
	struct lease *l = arg;

	lead(l, false);
}

static void renewed(struct lease *l)
{
	l->renewed_ns = l->asked_ns;
	loop_timer_set(l->deadline, l->renewed_ns + l->o.renew_deadline_ns - now());
	lead(l, true);
}

/* Once for each new text. */
static void tell(struct lease *l, const struct err *e)
{
	if (e && l->failure && strcmp(l->failure, e->msg) == 0)
		return;
	if (e)
		log_event(LOG_WARN, "controller", "could not get or renew the lease", "lease",
			l->name, "error", e->msg, NULL);
	free(l->failure);
	l->failure = e ? xstrdup(e->msg) : NULL;
}

/* ---- the object ---- */

static const json_t *spec_of(const json_t *object)
{
	return json_object_get(object, "spec");
}

static const char *holder_of(const json_t *object)
{
	const char *s = json_string_value(json_object_get(spec_of(object), "holderIdentity"));

	return s ? s : "";
}

static json_t *micro_time(void)
{
	struct wall w = clock_wall();
	time_t t = (time_t)w.sec;
	struct tm tm;
	char text[40];

	gmtime_r(&t, &tm);
	strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &tm);
	return json_sprintf("%s.%06dZ", text, (int)(w.nsec / 1000));
}

static void see(struct lease *l, json_t *object)
{
	const json_t *was = l->seen;

	if (was && json_equal(spec_of(was), spec_of(object)) &&
		strcmp(holder_of(was), holder_of(object)) == 0) {
		json_decref(l->seen);
		l->seen = json_incref(object);
		return;
	}
	json_decref(l->seen);
	l->seen = json_incref(object);
	l->changed_ns = now();
}

/* What we want it to be. holder "": given back. */
static json_t *make(const struct lease *l, const char *holder)
{
	bool ours = l->seen && strcmp(holder_of(l->seen), l->identity) == 0;
	json_int_t transitions =
		json_integer_value(json_object_get(spec_of(l->seen), "leaseTransitions"));
	json_t *spec = json_object(), *meta, *j;

	meta = l->seen ? json_copy(json_object_get(l->seen, "metadata"))
		       : json_pack("{ss ss}", "name", l->name, "namespace", l->namespace);
	if (meta)
		json_object_del(meta, "managedFields");
	json_object_set_new(spec, "holderIdentity", json_string(holder));
	json_object_set_new(spec, "leaseDurationSeconds",
		json_integer(*holder ? (l->o.duration_ns + NS_PER_SEC - 1) / NS_PER_SEC : 1));
	json_object_set_new(spec, "renewTime", micro_time());
	if (ours && json_object_get(spec_of(l->seen), "acquireTime"))
		json_object_set(
			spec, "acquireTime", json_object_get(spec_of(l->seen), "acquireTime"));
	else
		json_object_set_new(spec, "acquireTime", micro_time());
	json_object_set_new(spec, "leaseTransitions",
		json_integer(l->seen && !ours ? transitions + 1 : transitions));
	j = json_pack("{ss ss so so}", "apiVersion", "coordination.k8s.io/v1", "kind", "Lease",
		"metadata", meta ? meta : json_object(), "spec", spec);
	return j;
}

/* ---- calls ---- */

static void start(struct lease *l);

static void on_written(void *arg, int status, json_t *object, const struct err *e)
{
	struct lease *l = arg;

	(void)status;
	l->call = NULL;
	if (e->code == 0 && object) {
		see(l, object);
		tell(l, NULL);
		renewed(l);
	} else if (e->code == ERR_EXISTS || e->code == ERR_NOT_FOUND || e->code == ERR_ABORTED) {
		/* Somebody was faster, or it was deleted: look again. */
		json_decref(l->seen);
		l->seen = NULL;
	} else {
		tell(l, e);
	}
	again(l);
}

static char *path_of(const struct lease *l, bool one)
{
	if (one)
		return kube_path("/apis/coordination.k8s.io/v1/namespaces/%s/leases/%s",
			l->namespace, l->name);
	return kube_path("/apis/coordination.k8s.io/v1/namespaces/%s/leases", l->namespace);
}

static int timeout_ms(const struct lease *l)
{
	return (int)(l->o.renew_deadline_ns / NS_PER_MS / 2);
}

static void write_it(struct lease *l)
{
	bool create = !l->seen;
	AUTO(free) char *path = path_of(l, !create);
	json_t *body = make(l, l->identity);
	struct kube_call_options o = { .method = create ? "POST" : "PUT",
		.path = path,
		.body = body,
		.timeout_ms = timeout_ms(l),
		.done = on_written,
		.arg = l };

	l->asked_ns = now();
	l->call = kube_call(l->o.kube, &o);
	json_decref(body);
}

/* Has nobody it, or nobody who is alive? */
static bool is_free(const struct lease *l)
{
	json_int_t s =
		json_integer_value(json_object_get(spec_of(l->seen), "leaseDurationSeconds"));
	int64_t duration = s > 0 && s < 100000 ? s * NS_PER_SEC : l->o.duration_ns;

	return !*holder_of(l->seen) || now() - l->changed_ns > duration;
}

static void on_read(void *arg, int status, json_t *object, const struct err *e)
{
	struct lease *l = arg;

	(void)status;
	l->call = NULL;
	if (e->code == ERR_NOT_FOUND) {
		json_decref(l->seen);
		l->seen = NULL;
		write_it(l);
		return;
	}
	if (e->code || !object) {
		tell(l, e);
		again(l);
		return;
	}
	tell(l, NULL);
	see(l, object);
	if (strcmp(holder_of(object), l->identity) == 0 || is_free(l)) {
		write_it(l);
		return;
	}
	/* Another has it, so that our own time is over in any case. */
	loop_timer_stop(l->deadline);
	lead(l, false);
	again(l);
}

static void start(struct lease *l)
{
	AUTO(free) char *path = path_of(l, true);
	struct kube_call_options o = {
		.path = path, .timeout_ms = timeout_ms(l), .done = on_read, .arg = l
	};

	/* Who leads knows the object, and writes at once; a conflict shows if it does not. */
	if (l->leading && l->seen)
		write_it(l);
	else
		l->call = kube_call(l->o.kube, &o);
}

static void on_retry(void *arg)
{
	struct lease *l = arg;

	if (!l->call && !l->releasing)
		start(l);
}

/* ---- from outside ---- */

struct lease *lease_new(const struct lease_options *o)
{
	struct lease *l = xcalloc(1, sizeof(*l));
	char host[256] = "assay-server";
	AUTO_BUF struct buf hex = BUF_INIT;
	uint8_t random[8];

	l->o = *o;
	l->namespace = xstrdup(o->namespace);
	l->name = xstrdup(o->name);
	gethostname(host, sizeof(host) - 1);
	crypto_random(random, sizeof(random));
	hex_encode(&hex, bytes_of(random, sizeof(random)));
	l->identity = o->identity ? xstrdup(o->identity) : xasprintf("%s_%s", host, buf_cstr(&hex));
	l->retry = loop_timer_new(o->loop, on_retry, l);
	l->deadline = loop_timer_new(o->loop, on_deadline, l);
	loop_timer_set(l->retry, 0);
	return l;
}

bool lease_leading(const struct lease *l)
{
	return l->leading;
}

static void on_released(void *arg, int status, json_t *object, const struct err *e)
{
	struct lease *l = arg;

	(void)status;
	(void)object;
	l->call = NULL;
	if (e->code)
		log_event(LOG_WARN, "controller", "could not give the lease back", "error", e->msg,
			NULL);
	l->released(l->released_arg);
}

static void post_released(void *arg)
{
	struct lease *l = arg;

	l->released(l->released_arg);
}

void lease_release(struct lease *l, void (*done)(void *arg), void *arg)
{
	bool held = l->leading && l->seen;

	l->releasing = true;
	l->released = done;
	l->released_arg = arg;
	loop_timer_stop(l->retry);
	loop_timer_stop(l->deadline);
	kube_call_cancel(l->call);
	l->call = NULL;
	lead(l, false);
	if (!held) {
		loop_post(l->o.loop, post_released, l);
		return;
	}

	AUTO(free) char *path = path_of(l, true);
	json_t *body = make(l, "");
	struct kube_call_options o = { .method = "PUT",
		.path = path,
		.body = body,
		.timeout_ms = RELEASE_MS,
		.done = on_released,
		.arg = l };

	l->call = kube_call(l->o.kube, &o);
	json_decref(body);
}

void lease_free(struct lease *l)
{
	if (!l)
		return;
	kube_call_cancel(l->call);
	loop_timer_free(l->retry);
	loop_timer_free(l->deadline);
	json_decref(l->seen);
	free(l->namespace);
	free(l->name);
	free(l->identity);
	free(l->failure);
	free(l);
}

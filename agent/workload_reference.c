#include "agent/workload_reference.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/log.h"
#include "spiffe/broker/broker.pb-c.h"

struct reference {
	struct reference_options o;
	int refs; /* the user's, and one while something is under way */
	bool closed;
	int pidfd;
	pid_t pid;
	struct loop_watch *watch;
	struct err err; /* of the beginning */
};

static void unref(struct reference *r)
{
	if (--r->refs)
		return;
	if (r->pidfd >= 0)
		close(r->pidfd);
	free(r);
}

static void tell(struct reference *r, const struct selectors *s, const struct err *e)
{
	if (!r->closed)
		r->o.done(r->o.arg, s, e);
}

/* ---- a process ---- */

static void process_ended(void *arg)
{
	struct reference *r = arg;

	loop_watch_free(r->watch);
	r->watch = NULL;
	r->o.ended(r->o.arg);
}

/* As SPIRE's attestor "unix" says it. */
static void no_process(struct reference *r, const char *why)
{
	const char *who = r->o.options->attestor_unix     ? "unix"
			  : r->o.options->k8s.on          ? "k8s"
			  : r->o.options->attestor_docker ? "docker"
							  : "systemd";

	err_set(&r->err, ERR_INTERNAL,
		"workload attestor \"%s\" failed: rpc error: code = Internal desc = "
		"workloadattestor(%s): failed to get process: %s",
		who, who, why);
}

static void attested(void *arg, const struct attestation *a)
{
	struct reference *r = arg;

	if (!a->err.code && !r->closed)
		r->watch = loop_watch_readable(r->o.loop, r->pidfd, process_ended, r);
	if (a->err.code == ERR_NOT_FOUND)
		no_process(r, "process does not exist");
	else
		r->err = a->err;
	tell(r, r->err.code ? NULL : &a->selectors, &r->err);
	unref(r);
}

static void attest(void *arg)
{
	struct reference *r = arg;
	struct peer p = { .is_unix = true, .pid = r->pid, .pidfd = r->pidfd };

	if (r->closed || r->err.code) {
		tell(r, NULL, &r->err);
		unref(r);
		return;
	}
	workload_attest(r->o.workload, &p, r->pid, false, attested, r);
}

static bool open_process(struct reference *r)
{
	Spiffe__Broker__WorkloadPIDReference *m =
		spiffe__broker__workload_pidreference__unpack(NULL, r->o.value.n, r->o.value.p);
	struct err e = ERR_INIT;

	if (!m)
		return false;
	r->pid = m->pid;
	spiffe__broker__workload_pidreference__free_unpacked(m, NULL);
	if (r->pid <= 0)
		no_process(r, log_fmt("invalid pid %d", (int)r->pid));
	else if (caller_pidfd(r->pid, &r->pidfd, &e))
		no_process(r, "process does not exist");
	return true;
}

/* ---- the beginning and the end ---- */

struct reference *reference_open(const struct reference_options *o)
{
	struct reference *r = xcalloc(1, sizeof(*r));

	r->o = *o;
	r->refs = 2;
	r->pidfd = -1;
	if (strcmp(o->type_url, REFERENCE_PID) != 0 || !open_process(r))
		err_set(&r->err, ERR_UNIMPLEMENTED, "no workload attestor handled reference");
	/* Borrowed, and not needed later. */
	r->o.type_url = r->o.broker_id = NULL;
	r->o.value = bytes_of(NULL, 0);
	loop_post(o->loop, attest, r);
	return r;
}

void reference_free(struct reference *r)
{
	if (!r)
		return;
	r->closed = true;
	loop_watch_free(r->watch);
	r->watch = NULL;
	unref(r);
}

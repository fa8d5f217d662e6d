#include "agent/workload.h"

#include <stdlib.h>

struct workload {
	struct loop *loop;
	const struct agent_options *options;
	struct unix_cache *unix_cache;
	const struct attestor *attestors[WORKLOAD_ATTESTORS_MAX];
	size_t n_attestors;
};

struct workload *workload_new(struct loop *l, const struct agent_options *o)
{
	struct workload *w = xcalloc(1, sizeof(*w));

	w->loop = l;
	w->options = o;
	w->unix_cache = unix_cache_new();
	if (o->attestor_unix)
		w->attestors[w->n_attestors++] = &workload_unix;
	return w;
}

void workload_free(struct workload *w)
{
	if (!w)
		return;
	unix_cache_free(w->unix_cache);
	free(w);
}

const struct agent_options *workload_options(const struct workload *w)
{
	return w->options;
}

struct unix_cache *workload_unix_cache(const struct workload *w)
{
	return w->unix_cache;
}

struct attest_job {
	struct workload *w;
	struct caller caller;
	struct attestation a;
	void (*done)(void *arg, const struct attestation *a);
	void *arg;
};

static void finding_reset(struct finding *f)
{
	selectors_deinit(&f->selectors);
	f->selectors = (struct selectors){ 0 };
	f->err = ERR_INIT;
}

/* False: some attestor needs a job. */
static bool run_attestors(
	struct workload *w, const struct caller *c, bool blocking, struct attestation *a)
{
	a->n_findings = 0;
	for (size_t i = 0; i < w->n_attestors; i++) {
		struct finding *f = &a->findings[a->n_findings++];
		struct mono start = clock_mono();
		bool ran;

		finding_reset(f);
		f->attestor = w->attestors[i]->name;
		ran = w->attestors[i]->attest(w, c, blocking, f);
		f->elapsed_ns = clock_mono().ns - start.ns;
		if (!ran)
			return false;
	}
	return true;
}

/* After the fact: still the same process; then the whole is the sum of the parts. */
static void conclude(struct attest_job *j)
{
	struct attestation *a = &j->a;

	for (size_t i = 0; i < a->n_findings && !a->err.code; i++) {
		a->err = a->findings[i].err;
		if (a->err.code)
			err_wrap(&a->err, "workload attestor %s", a->findings[i].attestor);
	}
	if (!a->err.code)
		(void)!caller_check(&j->caller, &a->err);
	for (size_t i = 0; i < a->n_findings && !a->err.code; i++) {
		const struct selectors *s = &a->findings[i].selectors;

		for (size_t k = 0; k < s->n; k++)
			selectors_add(&a->selectors, s->v[k].type, s->v[k].value);
	}
	selectors_normalize(&a->selectors);
}

static void finish(struct attest_job *j)
{
	struct attestation *a = &j->a;

	j->done(j->arg, a);
	for (size_t i = 0; i < WORKLOAD_ATTESTORS_MAX; i++)
		selectors_deinit(&a->findings[i].selectors);
	selectors_deinit(&a->selectors);
	free(a->exe);
	free(a->groups);
	caller_deinit(&j->caller);
}

static void job_work(void *arg)
{
	struct attest_job *j = arg;

	run_attestors(j->w, &j->caller, true, &j->a);
	conclude(j);
}

static void job_done(void *arg)
{
	struct attest_job *j = arg;

	finish(j);
	free(j);
}

static int open_caller(struct attest_job *j, const struct peer *peer, pid_t pid, struct err *e)
{
	AUTO(close_fd) int fd = -1;
	int r;

	if (peer && peer->pidfd >= 0)
		return caller_open(&j->caller, peer->pid, peer->pidfd, e);
	r = caller_pidfd(peer ? peer->pid : pid, &fd, e);
	if (r)
		return r;
	return caller_open(&j->caller, peer ? peer->pid : pid, fd, e);
}

static void describe(struct attest_job *j, bool want_exe)
{
	struct err ignored = ERR_INIT;

	j->a.pid = j->caller.pid;
	j->a.uid = j->caller.uid;
	j->a.gid = j->caller.gid;
	j->a.start_time = j->caller.start_time;
	if (!want_exe)
		return;
	if (j->caller.n_groups)
		j->a.groups = xmemdup(j->caller.groups, j->caller.n_groups * sizeof(gid_t));
	j->a.n_groups = j->caller.n_groups;
	(void)!caller_exe(&j->caller, &j->a.exe, &ignored);
}

void workload_attest(struct workload *w, const struct peer *peer, pid_t pid, bool want_exe,
	void (*done)(void *arg, const struct attestation *a), void *arg)
{
	struct attest_job here = { .w = w, .caller = CALLER_INIT, .done = done, .arg = arg };
	struct attest_job *j;

	here.a.pid = peer ? peer->pid : pid;
	if (open_caller(&here, peer, pid, &here.a.err)) {
		finish(&here);
		return;
	}
	describe(&here, want_exe);
	if (run_attestors(w, &here.caller, false, &here.a)) {
		conclude(&here);
		finish(&here);
		return;
	}
	j = xmalloc(sizeof(*j));
	*j = here;
	loop_job(w->loop, job_work, job_done, j);
}

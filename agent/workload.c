#include "agent/workload.h"

#include <stdlib.h>

#include "agent/workload_k8s.h"
#include "lib/list.h"
#include "lib/metrics.h"

static const struct attestor *const table[] = { &workload_unix, &workload_k8s, &workload_docker,
	&workload_systemd };

struct row {
	const struct attestor *type;
	void *state;
};

struct workload {
	struct loop *loop;
	struct row rows[WORKLOAD_ATTESTORS_MAX];
	size_t n_rows;
	struct list running; /* struct attest_job */
	bool stopping;
};

static struct metric *attestor_seconds, *attestor_failures;

void workload_metrics(void)
{
	static const char *const labels[] = { "attestor", NULL };

	attestor_seconds = metric_histogram("assay_agent_workload_attestor_seconds",
		"Time that one workload attestor took", labels);
	attestor_failures = metric_counter("assay_agent_workload_attestor_failures_total",
		"Callers that one workload attestor could not attest", labels);
}

int workload_add(
	struct workload *w, const struct attestor *t, const struct agent_options *o, struct err *e)
{
	struct row *row = &w->rows[w->n_rows];
	int r;

	INVARIANT(w->n_rows < WORKLOAD_ATTESTORS_MAX);
	r = t->open ? t->open(w->loop, o, &row->state, e) : 0;

	if (r)
		return err_wrap(e, "WorkloadAttestor \"%s\"", t->name);
	row->type = t;
	w->n_rows++;
	return 0;
}

int workload_new(
	struct loop *l, const struct agent_options *o, struct workload **ret, struct err *e)
{
	struct workload *w = xcalloc(1, sizeof(*w));
	int r = 0;

	_Static_assert(ARRAY_LEN(table) <= WORKLOAD_ATTESTORS_MAX, "a row for each");
	w->loop = l;
	list_init(&w->running);
	for (size_t i = 0; i < ARRAY_LEN(table) && !r; i++)
		if (table[i]->enabled(o))
			r = workload_add(w, table[i], o, e);
	if (r)
		workload_free(w);
	else
		*ret = w;
	return r;
}

void workload_free(struct workload *w)
{
	if (!w)
		return;
	INVARIANT(list_empty(&w->running));
	for (size_t i = 0; i < w->n_rows; i++)
		if (w->rows[i].type->close)
			w->rows[i].type->close(w->rows[i].state);
	free(w);
}

void *workload_state(const struct workload *w, const struct attestor *t)
{
	for (size_t i = 0; i < w->n_rows; i++)
		if (w->rows[i].type == t)
			return w->rows[i].state;
	return NULL;
}

/* ---- one attestation ---- */

struct part {
	struct attest_job *job;
	size_t i; /* its row and its finding */
	enum attest_next next;
	struct mono start;
	void *op; /* started, under way */
};

struct attest_job {
	struct workload *w;
	struct caller caller;
	struct attestation a;
	struct part parts[WORKLOAD_ATTESTORS_MAX];
	void (*done)(void *arg, const struct attestation *a);
	void *arg;
	/* when it takes longer */
	struct list link;
	struct loop_watch *end; /* of the process */
	struct err cut;         /* why it was cut short */
	bool blocking;          /* a job is under way */
};

static void finding_deinit(struct finding *f)
{
	selectors_deinit(&f->selectors);
	free(f->waited_for);
	*f = (struct finding){ .attestor = f->attestor };
}

/* The attestor's word as it stands, anew: a second call begins at the beginning. */
static void run_part(struct attest_job *j, struct part *p, bool blocking)
{
	struct row *row = &j->w->rows[p->i];
	struct finding *f = &j->a.findings[p->i];

	finding_deinit(f);
	f->attestor = row->type->name;
	p->next = row->type->attest(row->state, &j->caller, blocking, f);
	f->elapsed_ns = clock_mono().ns - p->start.ns;
}

/* False: some need more. */
static bool run_parts(struct attest_job *j)
{
	bool all = true;

	j->a.n_findings = j->w->n_rows;
	for (size_t i = 0; i < j->w->n_rows; i++) {
		j->parts[i] = (struct part){ .i = i, .start = clock_mono() };
		run_part(j, &j->parts[i], false);
		all &= j->parts[i].next == ATTEST_DONE;
	}
	return all;
}

static void count(const struct attestation *a)
{
	for (size_t i = 0; i < a->n_findings; i++) {
		const struct finding *f = &a->findings[i];

		if (attestor_seconds)
			metric_observe(attestor_seconds, (double)f->elapsed_ns / 1e9, f->attestor);
		if (attestor_failures && f->err.code)
			metric_add(attestor_failures, 1, f->attestor);
	}
}

/* What the attestors that worked found counts: selectors only ever add identities, so one that
 * failed can withhold some and give none. When none worked, neither did the whole. */
static void add_up(struct attestation *a)
{
	size_t failed = 0;

	for (size_t i = 0; i < a->n_findings; i++) {
		const struct finding *f = &a->findings[i];

		for (size_t k = 0; k < f->selectors.n && !f->err.code; k++)
			selectors_add(
				&a->selectors, f->selectors.v[k].type, f->selectors.v[k].value);
		if (f->err.code && failed++ == 0) {
			a->part_err = f->err;
			err_wrap(&a->part_err, "workload attestor \"%s\" failed", f->attestor);
		}
	}
	if (failed && failed == a->n_findings)
		a->err = a->part_err;
}

/* After the fact: still the same process; then the whole is the sum of the parts. */
static void conclude(struct attest_job *j)
{
	struct attestation *a = &j->a;

	a->err = j->cut;
	if (!a->err.code)
		(void)!caller_check(&j->caller, &a->err);
	if (!a->err.code)
		add_up(a);
	selectors_normalize(&a->selectors);
	count(a);
}

static void finish(struct attest_job *j)
{
	struct attestation *a = &j->a;

	j->done(j->arg, a);
	for (size_t i = 0; i < WORKLOAD_ATTESTORS_MAX; i++)
		finding_deinit(&a->findings[i]);
	selectors_deinit(&a->selectors);
	free(a->exe);
	free(a->groups);
	caller_deinit(&j->caller);
}

/* ---- what takes longer ---- */

static void finish_if_over(struct attest_job *j)
{
	if (j->blocking)
		return;
	for (size_t i = 0; i < j->a.n_findings; i++)
		if (j->parts[i].op)
			return;
	list_remove(&j->link);
	loop_watch_free(j->end);
	conclude(j);
	finish(j);
	free(j);
}

static void part_done(void *arg)
{
	struct part *p = arg;

	p->op = NULL;
	p->job->a.findings[p->i].elapsed_ns = clock_mono().ns - p->start.ns;
	finish_if_over(p->job);
}

static void cut_short(struct attest_job *j, int code, const char *why)
{
	if (j->cut.code)
		return;
	err_set(&j->cut, code, "%s", why);
	for (size_t i = 0; i < j->a.n_findings; i++) {
		struct part *p = &j->parts[i];
		struct finding *f = &j->a.findings[i];

		if (!p->op)
			continue;
		j->w->rows[i].type->cancel(p->op);
		p->op = NULL;
		f->elapsed_ns = clock_mono().ns - p->start.ns;
		err_set(&f->err, code, "%s", why);
	}
	finish_if_over(j);
}

static void process_ended(void *arg)
{
	cut_short(arg, ERR_NOT_FOUND, "the process has ended");
}

static void start_parts(struct attest_job *j)
{
	for (size_t i = 0; i < j->a.n_findings; i++) {
		struct part *p = &j->parts[i];
		struct row *row = &j->w->rows[i];

		if (p->next != ATTEST_WAITS || j->cut.code)
			continue;
		p->next = ATTEST_DONE;
		p->op = row->type->start(row->state, &j->caller, &j->a.findings[i], part_done, p);
		INVARIANT(p->op);
		if (!j->end && j->caller.pidfd >= 0)
			j->end = loop_watch_readable(j->w->loop, j->caller.pidfd, process_ended, j);
	}
}

static void job_work(void *arg)
{
	struct attest_job *j = arg;

	for (size_t i = 0; i < j->a.n_findings; i++)
		if (j->parts[i].next == ATTEST_BLOCKS)
			run_part(j, &j->parts[i], true);
}

static void job_done(void *arg)
{
	struct attest_job *j = arg;

	j->blocking = false;
	start_parts(j);
	finish_if_over(j);
}

/* The parts that point to their job do so only here, where it stays. */
static void go_on(const struct attest_job *here)
{
	struct attest_job *j = xmemdup(here, sizeof(*here));
	struct workload *w = j->w;

	list_append(&w->running, &j->link);
	for (size_t i = 0; i < j->a.n_findings; i++) {
		j->parts[i].job = j;
		j->blocking |= j->parts[i].next == ATTEST_BLOCKS;
	}
	if (w->stopping)
		err_set(&j->cut, ERR_UNAVAILABLE, "the agent is stopping");
	start_parts(j);
	if (j->blocking)
		loop_job(w->loop, job_work, job_done, j);
	else
		finish_if_over(j);
}

void workload_stop(struct workload *w)
{
	struct list *next;

	if (!w)
		return;
	w->stopping = true;
	for (struct list *n = w->running.next; n != &w->running; n = next) {
		next = n->next;
		cut_short(container_of(n, struct attest_job, link), ERR_UNAVAILABLE,
			"the agent is stopping");
	}
	for (size_t i = 0; i < w->n_rows; i++)
		if (w->rows[i].type->stop)
			w->rows[i].type->stop(w->rows[i].state);
}

/* ---- the beginning ---- */

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

	here.a.pid = peer ? peer->pid : pid;
	if (open_caller(&here, peer, pid, &here.a.err)) {
		finish(&here);
		return;
	}
	describe(&here, want_exe);
	if (run_parts(&here)) {
		conclude(&here);
		finish(&here);
	} else {
		go_on(&here);
	}
}

enum attest_next attest_container(
	const struct caller *c, int want, bool blocking, struct finding *ret)
{
	if (!blocking)
		want |= CONTAINER_NO_MOUNTS;
	if (container_find(c, want, &ret->container, &ret->err))
		return ATTEST_DONE;
	if (ret->container.id[0])
		return ATTEST_WAITS;
	return blocking || container_sees_all() ? ATTEST_DONE : ATTEST_BLOCKS;
}

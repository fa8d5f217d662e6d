/*
 * Workload attestation: from a caller to its selectors.
 *
 * Every call attests anew, since a process may have become another program meanwhile. Attestors are
 * rows of a table; what one that fails does not find is missing, and when all fail the request
 * does. What only needs /proc and what is already known is done at once on the loop; what may block
 * (name services, hashing a program) is a job; what others must be asked for (a container runtime,
 * the kubelet, systemd) is waited for without holding anybody up. Loop thread only, but for the
 * attestors' blocking part.
 */
#ifndef ASSAY_AGENT_WORKLOAD_H
#define ASSAY_AGENT_WORKLOAD_H

#include "agent/caller.h"
#include "agent/container.h"
#include "agent/options.h"
#include "lib/door.h"
#include "lib/entry.h"
#include "lib/loop.h"

enum { WORKLOAD_ATTESTORS_MAX = 8 };

/* What one attestor found. */
struct finding {
	const char *attestor;
	struct selectors selectors;
	int64_t elapsed_ns;
	char *waited_for;           /* what took the time, for people; NULL: nothing. Owned. */
	struct err err;             /* code 0: it did not fail */
	struct container container; /* the attestor's own, from one step to the next */
};

struct attestation {
	pid_t pid;
	uid_t uid;
	gid_t gid;
	uint64_t start_time;
	gid_t *groups;
	size_t n_groups;
	char *exe; /* only when asked for; NULL: not to be seen */
	struct finding findings[WORKLOAD_ATTESTORS_MAX];
	size_t n_findings;
	struct selectors selectors; /* all of them, normalized; empty when it failed */
	struct err err;             /* of the whole: no attestor worked, or the process ended */
	struct err part_err;        /* of the first that failed; what others found counts */
};

struct workload;
/* Fails as an attestor's open does. */
int workload_new(struct loop *l, const struct agent_options *o, struct workload **ret,
	struct err *e) MUST_USE;
/* What is under way is answered at once with an error; what blocks is so when it has ended. For an
 * orderly end. */
void workload_stop(struct workload *w);
void workload_free(struct workload *w); /* after all attestations have been answered */

/* Attests the process at the other end, or (peer NULL) any process by pid. done gets a result that
 * is valid until it returns; it may be called before this returns. When the process ends, so does
 * what is waited for (ERR_NOT_FOUND). */
void workload_attest(struct workload *w, const struct peer *peer, pid_t pid, bool want_exe,
	void (*done)(void *arg, const struct attestation *a), void *arg);
/* "assay_agent_workload_attestor_seconds", by attestor. */
void workload_metrics(void);

/* ---- for the attestors ---- */

enum attest_next {
	ATTEST_DONE,   /* all is in the finding */
	ATTEST_BLOCKS, /* to be called again with blocking true, on a worker */
	ATTEST_WAITS,  /* to be started, on the loop */
};

/*
 * An attestor. `attest` does what needs neither waiting nor blocking and says what is still to be
 * done; all attestors go on at the same time from there. The caller and the finding stay valid
 * until the attestor is through; the process stays pinned, and whether it is still the same one is
 * checked after the last of them.
 */
struct attestor {
	const char *name;
	bool (*enabled)(const struct agent_options *o);
	/* The state of all its attestations, freed by close when none is left. open may be NULL
	 * (the state is then NULL), and close too. The options outlive it. */
	int (*open)(struct loop *l, const struct agent_options *o, void **ret, struct err *e);
	void (*close)(void *state);
	/* Nothing will be started any more, and nothing is under way: connections and timers are
	 * let go of, without which the loop would go on. May be NULL. */
	void (*stop)(void *state);
	/* blocking: on a worker, so only with what needs no loop; may still say ATTEST_WAITS. */
	enum attest_next (*attest)(
		void *state, const struct caller *c, bool blocking, struct finding *ret);
	/* Only for ATTEST_WAITS, on the loop. Asks whomever it must and calls done(arg) once, never
	 * before it has returned, when the finding is complete. Returns what cancel takes. */
	void *(*start)(void *state, const struct caller *c, struct finding *ret,
		void (*done)(void *arg), void *arg);
	/* done will not be called any more, and the caller and the finding not be touched. */
	void (*cancel)(void *op);
};
extern const struct attestor workload_unix, workload_docker, workload_systemd;

/* One more than the options enable. */
int workload_add(struct workload *w, const struct attestor *t, const struct agent_options *o,
	struct err *e) MUST_USE;

/* The state of one that is enabled; else NULL. */
void *workload_state(const struct workload *w, const struct attestor *t);

/* The common beginning of those that look for a container, as `attest` returns it: ATTEST_WAITS
 * when ret->container is known; ATTEST_DONE when there is none or ret->err says why not. */
enum attest_next attest_container(
	const struct caller *c, int want, bool blocking, struct finding *ret);

#endif

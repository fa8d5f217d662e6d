/*
 * Workload attestation: from a caller to its selectors.
 *
 * Every call attests anew, since a process may have become another program meanwhile. Attestors are
 * rows of a table; one that fails fails the request. What only needs /proc and names already known
 * is done at once on the loop; what may block (name services, hashing a program) is a job. Loop
 * thread only, but for the attestors' own work part.
 */
#ifndef ASSAY_AGENT_WORKLOAD_H
#define ASSAY_AGENT_WORKLOAD_H

#include "agent/caller.h"
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
	struct err err; /* code 0: it did not fail */
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
	struct err err;             /* of the whole */
};

struct workload;
struct workload *workload_new(struct loop *l, const struct agent_options *o);
void workload_free(struct workload *w); /* after all attestations have been answered */

/* Attests the process at the other end, or (peer NULL) any process by pid. done gets a result that
 * is valid until it returns; it may be called before this returns. */
void workload_attest(struct workload *w, const struct peer *peer, pid_t pid, bool want_exe,
	void (*done)(void *arg, const struct attestation *a), void *arg);

/* ---- for the attestors ---- */

/* Returns false when it needs a job: `blocking` is then true in the second call, on a worker. */
struct attestor {
	const char *name;
	bool (*attest)(
		struct workload *w, const struct caller *c, bool blocking, struct finding *ret);
};
extern const struct attestor workload_unix;

const struct agent_options *workload_options(const struct workload *w);

/* Names of uids and gids and hashes of programs, remembered; locks inside. */
struct unix_cache;
struct unix_cache *workload_unix_cache(const struct workload *w);
struct unix_cache *unix_cache_new(void);
void unix_cache_free(struct unix_cache *u);

#endif

/*
 * The loop: one thread that owns all state, and workers for what blocks or burns.
 *
 * Everything here is called on the loop's own thread except loop_post(). A job copies its inputs
 * in, runs its work part on a worker thread and its done part back on the loop. Callbacks are never
 * called from inside the function that registered them.
 */
#ifndef ASSAY_LIB_LOOP_H
#define ASSAY_LIB_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/clock.h"
#include "lib/err.h"

struct loop;
struct loop_timer;
struct lane;
struct uv_loop_s;

struct loop *loop_new(void);
/* Runs until loop_stop() was called, or nothing is left to wait for. */
void loop_run(struct loop *l);
void loop_stop(struct loop *l);
/* Closes what is left of the loop's own and asserts (INVARIANT) that no foreign handle is still
 * open. */
void loop_free(struct loop *l);

/* For an orderly end, outside of loop_run: runs until no job is under way and nothing posted is
 * left, whatever timers and handles there are. */
void loop_drain(struct loop *l);

struct uv_loop_s *loop_uv(struct loop *l);  /* for lib/door, lib/rpc, lib/http only */
bool loop_is_current(const struct loop *l); /* on the loop's thread? */

/* Calls fn(arg) on the loop thread soon; from any thread; in order of posting per thread. */
void loop_post(struct loop *l, void (*fn)(void *arg), void *arg);

/* A job on any free worker. done(arg) always follows work(arg), also while the loop is stopping. */
void loop_job(struct loop *l, void (*work)(void *arg), void (*done)(void *arg), void *arg);
int loop_workers(void); /* number of worker threads: one per core, at least 2 */

/* A lane is one thread of its own whose jobs run one after the other, in order (a database, a
 * device). batch(args, n) may be given instead of a work function per job: it gets all jobs that
 * wait, up to max, at once (group commit). */
struct lane *lane_new(struct loop *l, const char *thread_name);
struct lane *lane_new_batch(struct loop *l, const char *thread_name,
	void (*batch)(void *ctx, void **args, int n), void *ctx, int max);
void lane_job(struct lane *la, void (*work)(void *arg), void (*done)(void *arg), void *arg);
void lane_free(struct lane *la); /* waits for the job that runs and those queued, whose done parts
				    were posted before it returns */

/* Timers. A fired one-shot timer may be set again. The callback may free its timer. */
struct loop_timer *loop_timer_new(struct loop *l, void (*fn)(void *arg), void *arg);
void loop_timer_set(struct loop_timer *t,
	int64_t after_ns); /* once, after a monotonic span; replaces an earlier setting */
void loop_timer_set_wall(
	struct loop_timer *t, struct wall at); /* once, when the wall clock has reached `at`:
						  notices clock jumps within 1 s */
void loop_timer_stop(struct loop_timer *t);
void loop_timer_free(struct loop_timer *t); /* NULL is fine */

/* Something was done that may have needed much memory for a moment: once the loop has been quiet
 * for a while, what is free goes back to the system. Cheap. */
void loop_trim_soon(struct loop *l);

/* span moved by up to ±percent at random. */
int64_t loop_jitter(int64_t span_ns, int percent);

/* Exponential back-off with jitter: first, ×2 … up to max; ±20 %. */
struct backoff {
	int64_t first_ns;
	int64_t max_ns;
	int64_t next_ns;
};
int64_t backoff_next(struct backoff *b);
void backoff_reset(struct backoff *b);

/* fn(arg, signo) on the loop. */
void loop_on_signal(struct loop *l, int signo, void (*fn)(void *arg, int signo), void *arg);

/* fn(arg) once when the file descriptor (a pidfd, for instance) polls readable. The fd stays the
 * caller's and must outlive the watch. */
struct loop_watch;
struct loop_watch *loop_watch_readable(struct loop *l, int fd, void (*fn)(void *arg), void *arg);
void loop_watch_free(struct loop_watch *w);

#endif

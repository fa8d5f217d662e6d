/* What the files of lib/loop share. */
#ifndef ASSAY_LIB_LOOP_INTERNAL_H
#define ASSAY_LIB_LOOP_INTERNAL_H

#include <pthread.h>
#include <uv.h>

#include "lib/list.h"
#include "lib/loop.h"

/* A job, or a posted function (work is NULL). Owned by the queue it is in. */
struct task {
	struct task *next;
	struct loop *loop;
	void (*work)(void *arg);
	void (*done)(void *arg);
	void *arg;
	bool counted; /* keeps the loop running until done has run */
};

struct task_queue {
	struct task *first;
	struct task **last;
};

enum { LOOP_WORKERS_MAX = 64 };

struct loop {
	uv_loop_t uv;
	pthread_t thread; /* that made or last ran the loop */
	bool stop;
	bool in_span; /* a span timer's callback runs */

	/* posted functions, from any thread */
	uv_async_t wake;
	pthread_mutex_t lock;
	struct task_queue posts; /* under lock */
	unsigned pending;        /* jobs whose done part has not run; loop thread */

	/* jobs */
	pthread_mutex_t jobs_lock;
	pthread_cond_t jobs_cond;
	struct task_queue jobs; /* under jobs_lock, as the rest of the block */
	int n_workers;
	int n_idle;
	int n_queued;
	bool workers_stop;
	pthread_t workers[LOOP_WORKERS_MAX];

	void (*at_free)(void *arg);
	void *at_free_arg;
	struct list signals;
	unsigned n_timers;
	unsigned n_watches;

	/* timers on the wall clock: a heap by time, one timerfd for all */
	struct loop_timer **wall;
	size_t n_wall;
	size_t cap_wall;
	int wall_fd; /* -1 until the first one */
	uv_poll_t wall_poll;
	struct list all; /* among all loops, for the test clock */

	/* giving memory back */
	uv_timer_t trim;
	uint64_t trim_from_ms;
	long trim_pages; /* resident, after the last time */
	bool trim_again; /* something happened since the timer was set */
};

/* fn(arg) when the loop is freed, before it is checked that all is closed; one user, lib/door. */
void loop_at_free(struct loop *l, void (*fn)(void *arg), void *arg);
/* The timer alone does not keep the loop running. */
void loop_timer_unref(struct loop_timer *t);

void loop_trim_init(struct loop *l);
void loop_trim_close(struct loop *l);
void loop_wall_init(struct loop *l);
void loop_wall_close(struct loop *l); /* asserts that no timer is set */

#endif

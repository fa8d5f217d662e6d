#include "lib/loop.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "lib/loop_internal.h"
#include "lib/mem.h"

/* ---- queues ---- */

static void queue_init(struct task_queue *q)
{
	q->first = NULL;
	q->last = &q->first;
}

static void queue_put(struct task_queue *q, struct task *t)
{
	t->next = NULL;
	*q->last = t;
	q->last = &t->next;
}

static struct task *queue_get(struct task_queue *q)
{
	struct task *t = q->first;

	if (t) {
		q->first = t->next;
		if (!q->first)
			q->last = &q->first;
	}
	return t;
}

static struct task *task_new(
	struct loop *l, void (*work)(void *arg), void (*done)(void *arg), void *arg)
{
	struct task *t = xmalloc(sizeof(*t));

	*t = (struct task){ .loop = l, .work = work, .done = done, .arg = arg };
	return t;
}

/* ---- posting ---- */

static void post(struct loop *l, struct task *t)
{
	bool was_empty;

	pthread_mutex_lock(&l->lock);
	was_empty = !l->posts.first;
	queue_put(&l->posts, t);
	/* Under the lock, so that the loop cannot have been freed in between. */
	if (was_empty)
		uv_async_send(&l->wake);
	pthread_mutex_unlock(&l->lock);
}

void loop_post(struct loop *l, void (*fn)(void *arg), void *arg)
{
	post(l, task_new(l, NULL, fn, arg));
}

/* A loop with a job under way has something to wait for. */
static void pending_add(struct loop *l, struct task *t)
{
	t->counted = true;
	if (l->pending++ == 0)
		uv_ref((uv_handle_t *)&l->wake);
}

static void pending_sub(struct loop *l)
{
	INVARIANT(l->pending > 0);
	if (--l->pending == 0)
		uv_unref((uv_handle_t *)&l->wake);
}

/* Runs what was posted until now. True if there was anything. */
static bool run_posts(struct loop *l)
{
	struct task *t, *next;

	pthread_mutex_lock(&l->lock);
	t = l->posts.first;
	queue_init(&l->posts);
	pthread_mutex_unlock(&l->lock);
	if (!t)
		return false;
	for (; t; t = next) {
		next = t->next;
		if (t->counted)
			pending_sub(l);
		if (t->done)
			t->done(t->arg);
		free(t);
	}
	return true;
}

static void on_wake(uv_async_t *a)
{
	run_posts(a->data);
}

/* ---- threads ---- */

struct thread_start {
	void *(*fn)(void *arg);
	void *arg;
	char name[16];
};

static void *thread_main(void *arg)
{
	struct thread_start s = *(struct thread_start *)arg;

	free(arg);
	pthread_setname_np(pthread_self(), s.name);
	return s.fn(s.arg);
}

/* Signals are the loop thread's, so others are started with all of them blocked. */
static void thread_start(pthread_t *ret, const char *name, void *(*fn)(void *arg), void *arg)
{
	struct thread_start *s = xcalloc(1, sizeof(*s));
	sigset_t all, old;

	s->fn = fn;
	s->arg = arg;
	snprintf(s->name, sizeof(s->name), "%s", name);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	INVARIANT(pthread_create(ret, NULL, thread_main, s) == 0);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}

/* ---- jobs ---- */

int loop_workers(void)
{
	static int n; /* the same for ever, so that per-worker copies can be sized by it */
	int known = __atomic_load_n(&n, __ATOMIC_RELAXED);
	cpu_set_t set;

	if (known)
		return known;
	known = 2;
	if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > known)
		known = CPU_COUNT(&set);
	if (known > LOOP_WORKERS_MAX)
		known = LOOP_WORKERS_MAX;
	__atomic_store_n(&n, known, __ATOMIC_RELAXED);
	return known;
}

static void *worker_main(void *arg)
{
	struct loop *l = arg;
	struct task *t;

	pthread_mutex_lock(&l->jobs_lock);
	for (;;) {
		while (!(t = queue_get(&l->jobs)) && !l->workers_stop) {
			l->n_idle++;
			pthread_cond_wait(&l->jobs_cond, &l->jobs_lock);
			l->n_idle--;
		}
		if (!t)
			break;
		l->n_queued--;
		pthread_mutex_unlock(&l->jobs_lock);
		t->work(t->arg);
		post(l, t);
		pthread_mutex_lock(&l->jobs_lock);
	}
	pthread_mutex_unlock(&l->jobs_lock);
	return NULL;
}

void loop_job(struct loop *l, void (*work)(void *arg), void (*done)(void *arg), void *arg)
{
	struct task *t = task_new(l, work, done, arg);

	pending_add(l, t);
	pthread_mutex_lock(&l->jobs_lock);
	queue_put(&l->jobs, t);
	l->n_queued++;
	/* Threads are started when they are needed: a command that signs nothing has none. */
	if (l->n_queued > l->n_idle && l->n_workers < loop_workers())
		thread_start(&l->workers[l->n_workers++], "assay-worker", worker_main, l);
	else
		pthread_cond_signal(&l->jobs_cond);
	pthread_mutex_unlock(&l->jobs_lock);
}

static void workers_stop(struct loop *l)
{
	pthread_mutex_lock(&l->jobs_lock);
	l->workers_stop = true;
	pthread_cond_broadcast(&l->jobs_cond);
	pthread_mutex_unlock(&l->jobs_lock);
	for (int i = 0; i < l->n_workers; i++)
		pthread_join(l->workers[i], NULL);
}

/* ---- lanes ---- */

struct lane {
	struct loop *loop;
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t cond;
	struct task_queue queue;
	bool stop;
	void (*batch)(void *ctx, void **args, int n);
	void *ctx;
	int max;
	struct task **tasks; /* the batch that runs; lane thread */
	void **args;
};

static void lane_run(struct lane *la, int n)
{
	if (la->batch) {
		for (int i = 0; i < n; i++)
			la->args[i] = la->tasks[i]->arg;
		la->batch(la->ctx, la->args, n);
	} else {
		la->tasks[0]->work(la->tasks[0]->arg);
	}
	for (int i = 0; i < n; i++)
		post(la->loop, la->tasks[i]);
}

static void *lane_main(void *arg)
{
	struct lane *la = arg;

	pthread_mutex_lock(&la->lock);
	for (;;) {
		int n = 0;

		while (!la->queue.first && !la->stop)
			pthread_cond_wait(&la->cond, &la->lock);
		while (n < la->max && la->queue.first)
			la->tasks[n++] = queue_get(&la->queue);
		if (n == 0)
			break;
		pthread_mutex_unlock(&la->lock);
		lane_run(la, n);
		pthread_mutex_lock(&la->lock);
	}
	pthread_mutex_unlock(&la->lock);
	return NULL;
}

struct lane *lane_new_batch(struct loop *l, const char *thread_name,
	void (*batch)(void *ctx, void **args, int n), void *ctx, int max)
{
	struct lane *la = xcalloc(1, sizeof(*la));

	INVARIANT(max > 0);
	la->loop = l;
	la->batch = batch;
	la->ctx = ctx;
	la->max = max;
	la->tasks = xcalloc((size_t)max, sizeof(la->tasks[0]));
	la->args = xcalloc((size_t)max, sizeof(la->args[0]));
	queue_init(&la->queue);
	pthread_mutex_init(&la->lock, NULL);
	pthread_cond_init(&la->cond, NULL);
	thread_start(&la->thread, thread_name, lane_main, la);
	return la;
}

struct lane *lane_new(struct loop *l, const char *thread_name)
{
	return lane_new_batch(l, thread_name, NULL, NULL, 1);
}

void lane_job(struct lane *la, void (*work)(void *arg), void (*done)(void *arg), void *arg)
{
	struct task *t = task_new(la->loop, work, done, arg);

	INVARIANT(la->batch || work);
	pending_add(la->loop, t);
	pthread_mutex_lock(&la->lock);
	queue_put(&la->queue, t);
	pthread_cond_signal(&la->cond);
	pthread_mutex_unlock(&la->lock);
}

void lane_free(struct lane *la)
{
	if (!la)
		return;
	pthread_mutex_lock(&la->lock);
	la->stop = true;
	pthread_cond_signal(&la->cond);
	pthread_mutex_unlock(&la->lock);
	pthread_join(la->thread, NULL);
	pthread_mutex_destroy(&la->lock);
	pthread_cond_destroy(&la->cond);
	free(la->tasks);
	free(la->args);
	free(la);
}

/* ---- the loop ---- */

struct loop *loop_new(void)
{
	struct loop *l = xcalloc(1, sizeof(*l));

	/* libuv's own pool is only used to resolve names (uv_getaddrinfo). */
	setenv("UV_THREADPOOL_SIZE", "2", 0);
	INVARIANT(uv_loop_init(&l->uv) == 0);
	INVARIANT(uv_async_init(&l->uv, &l->wake, on_wake) == 0);
	l->uv.data = l;
	l->wake.data = l;
	uv_unref((uv_handle_t *)&l->wake);
	l->thread = pthread_self();
	queue_init(&l->posts);
	queue_init(&l->jobs);
	list_init(&l->signals);
	pthread_mutex_init(&l->lock, NULL);
	pthread_mutex_init(&l->jobs_lock, NULL);
	pthread_cond_init(&l->jobs_cond, NULL);
	loop_wall_init(l);
	loop_trim_init(l);
	return l;
}

void loop_run(struct loop *l)
{
	if (!pthread_equal(l->thread, pthread_self()))
		l->thread = pthread_self();
	for (;;) {
		bool more = false;

		if (!l->stop)
			more = uv_run(&l->uv, UV_RUN_DEFAULT) != 0;
		if (l->stop)
			break;
		/* What was posted counts, although the wake-up handle alone does not. */
		if (!run_posts(l) && !more)
			break;
	}
	l->stop = false;
}

void loop_stop(struct loop *l)
{
	l->stop = true;
	uv_stop(&l->uv);
}

struct uv_loop_s *loop_uv(struct loop *l)
{
	return &l->uv;
}

bool loop_is_current(const struct loop *l)
{
	return pthread_equal(l->thread, pthread_self());
}

void loop_at_free(struct loop *l, void (*fn)(void *arg), void *arg)
{
	l->at_free = fn;
	l->at_free_arg = arg;
}

static void complain_open(uv_handle_t *h, void *arg)
{
	unsigned *n = arg;

	if (uv_is_closing(h))
		return;
	fprintf(stderr, "loop: a handle of type %s is still open\n",
		uv_handle_type_name(uv_handle_get_type(h)));
	++*n;
}

static void signals_close(struct loop *l);

void loop_drain(struct loop *l)
{
	do {
		while (l->pending > 0)
			uv_run(&l->uv, UV_RUN_ONCE);
	} while (run_posts(l));
}

void loop_free(struct loop *l)
{
	unsigned n_open = 0;

	if (!l)
		return;
	loop_drain(l);
	workers_stop(l);
	if (l->at_free)
		l->at_free(l->at_free_arg);
	signals_close(l);
	INVARIANT(l->n_timers == 0);
	INVARIANT(l->n_watches == 0);
	loop_wall_close(l);
	loop_trim_close(l);
	uv_close((uv_handle_t *)&l->wake, NULL);
	uv_walk(&l->uv, complain_open, &n_open);
	INVARIANT(n_open == 0);
	while (uv_run(&l->uv, UV_RUN_DEFAULT))
		;
	INVARIANT(uv_loop_close(&l->uv) == 0);
	INVARIANT(!l->posts.first);
	pthread_mutex_destroy(&l->lock);
	pthread_mutex_destroy(&l->jobs_lock);
	pthread_cond_destroy(&l->jobs_cond);
	free(l);
}

/* ---- signals ---- */

struct on_signal {
	uv_signal_t uv;
	struct list link;
	void (*fn)(void *arg, int signo);
	void *arg;
};

static void on_signal(uv_signal_t *h, int signo)
{
	struct on_signal *s = h->data;

	s->fn(s->arg, signo);
}

void loop_on_signal(struct loop *l, int signo, void (*fn)(void *arg, int signo), void *arg)
{
	struct on_signal *s = xcalloc(1, sizeof(*s));

	s->fn = fn;
	s->arg = arg;
	INVARIANT(uv_signal_init(&l->uv, &s->uv) == 0);
	s->uv.data = s;
	INVARIANT(uv_signal_start(&s->uv, on_signal, signo) == 0);
	uv_unref((uv_handle_t *)&s->uv);
	list_append(&l->signals, &s->link);
}

static void signal_closed(uv_handle_t *h)
{
	free(h->data);
}

static void signals_close(struct loop *l)
{
	list_each (s, &l->signals, struct on_signal, link) {
		list_remove(&s->link);
		uv_close((uv_handle_t *)&s->uv, signal_closed);
	}
}

/* ---- descriptors ---- */

struct loop_watch {
	uv_poll_t uv;
	struct loop *loop;
	int own_fd; /* a duplicate, when the descriptor is watched already; else -1 */
	void (*fn)(void *arg);
	void *arg;
};

static void on_readable(uv_poll_t *h, int status, int events)
{
	struct loop_watch *w = h->data;

	(void)status; /* an error shows when the caller reads */
	(void)events;
	uv_poll_stop(h);
	w->fn(w->arg);
}

struct loop_watch *loop_watch_readable(struct loop *l, int fd, void (*fn)(void *arg), void *arg)
{
	struct loop_watch *w = xcalloc(1, sizeof(*w));
	int r = uv_poll_init(&l->uv, &w->uv, fd);

	w->loop = l;
	w->own_fd = -1;
	w->fn = fn;
	w->arg = arg;
	if (r == UV_EEXIST) {
		w->own_fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
		r = w->own_fd < 0 ? UV_EMFILE : uv_poll_init(&l->uv, &w->uv, w->own_fd);
	}
	if (r != 0) {
		if (w->own_fd >= 0)
			close(w->own_fd);
		free(w);
		return NULL;
	}
	w->uv.data = w;
	l->n_watches++;
	INVARIANT(uv_poll_start(&w->uv, UV_READABLE, on_readable) == 0);
	return w;
}

static void watch_closed(uv_handle_t *h)
{
	struct loop_watch *w = h->data;

	if (w->own_fd >= 0)
		close(w->own_fd);
	free(w);
}

void loop_watch_free(struct loop_watch *w)
{
	if (!w)
		return;
	w->loop->n_watches--;
	uv_close((uv_handle_t *)&w->uv, watch_closed);
}

/* ---- jitter ---- */

/* SplitMix64; spreads load, protects nothing. */
static uint64_t random64(void)
{
	static _Thread_local uint64_t state;
	uint64_t z;

	if (state == 0 && getrandom(&state, sizeof(state), GRND_NONBLOCK) != sizeof(state))
		state = (uint64_t)clock_mono().ns;
	z = (state += UINT64_C(0x9e3779b97f4a7c15));
	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

int64_t loop_jitter(int64_t span_ns, int percent)
{
	double unit = (double)(random64() >> 11) * 0x1.0p-53; /* [0, 1) */

	return span_ns + (int64_t)((double)span_ns * percent / 100.0 * (2.0 * unit - 1.0));
}

int64_t backoff_next(struct backoff *b)
{
	enum { JITTER_PERCENT = 20 };
	int64_t span = b->next_ns > 0 ? b->next_ns : b->first_ns;

	if (span > b->max_ns)
		span = b->max_ns;
	b->next_ns = span > b->max_ns / 2 ? b->max_ns : span * 2;
	return loop_jitter(span, JITTER_PERCENT);
}

void backoff_reset(struct backoff *b)
{
	b->next_ns = 0;
}

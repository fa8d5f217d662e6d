/*
 * Timers. Spans are uv timers. Points of wall time are a heap of our own behind one timerfd with
 * TFD_TIMER_CANCEL_ON_SET: the kernel says when the clock jumps, so that nothing wakes up just to
 * look at it.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "lib/loop_internal.h"
#include "lib/mem.h"

#define NOT_IN_HEAP SIZE_MAX
#define SPAN_MAX_NS (INT64_C(50) * 365 * 86400 * NS_PER_SEC)

struct loop_timer {
	uv_timer_t uv;
	struct loop *loop;
	void (*fn)(void *arg);
	void *arg;
	struct wall at; /* while in the heap */
	size_t index;
};

static void wall_arm(struct loop *l);

static void on_span(uv_timer_t *h)
{
	struct loop_timer *t = h->data;
	struct loop *l = t->loop;

	l->in_span = true;
	t->fn(t->arg);
	l->in_span = false;
}

struct loop_timer *loop_timer_new(struct loop *l, void (*fn)(void *arg), void *arg)
{
	struct loop_timer *t = xcalloc(1, sizeof(*t));

	t->loop = l;
	t->fn = fn;
	t->arg = arg;
	t->index = NOT_IN_HEAP;
	INVARIANT(uv_timer_init(&l->uv, &t->uv) == 0);
	t->uv.data = t;
	l->n_timers++;
	return t;
}

void loop_timer_set(struct loop_timer *t, int64_t after_ns)
{
	uint64_t due_ms, now_ms;

	loop_timer_stop(t);
	if (after_ns < 0)
		after_ns = 0;
	if (after_ns > SPAN_MAX_NS)
		after_ns = SPAN_MAX_NS;
	/* libuv counts in whole milliseconds from the loop's last look at the clock: round so that
	 * it is never early. */
	uv_update_time(&t->loop->uv);
	now_ms = uv_now(&t->loop->uv);
	due_ms = (uv_hrtime() + (uint64_t)after_ns + (uint64_t)NS_PER_MS - 1) / (uint64_t)NS_PER_MS;
	if (after_ns == 0 || due_ms < now_ms)
		due_ms = now_ms;
	/* libuv runs timers until none is due: one that sets itself to "now" would be alone for
	 * ever. */
	if (t->loop->in_span && due_ms == now_ms)
		due_ms++;
	INVARIANT(uv_timer_start(&t->uv, on_span, due_ms - now_ms, 0) == 0);
}

/* ---- the heap ---- */

static bool earlier(const struct loop_timer *a, const struct loop_timer *b)
{
	return wall_sub_ns(a->at, b->at) < 0;
}

static void heap_place(struct loop *l, size_t i, struct loop_timer *t)
{
	l->wall[i] = t;
	t->index = i;
}

static void heap_up(struct loop *l, size_t i)
{
	struct loop_timer *t = l->wall[i];

	for (; i > 0 && earlier(t, l->wall[(i - 1) / 2]); i = (i - 1) / 2)
		heap_place(l, i, l->wall[(i - 1) / 2]);
	heap_place(l, i, t);
}

static void heap_down(struct loop *l, size_t i)
{
	struct loop_timer *t = l->wall[i];

	for (size_t child; (child = 2 * i + 1) < l->n_wall; i = child) {
		if (child + 1 < l->n_wall && earlier(l->wall[child + 1], l->wall[child]))
			child++;
		if (!earlier(l->wall[child], t))
			break;
		heap_place(l, i, l->wall[child]);
	}
	heap_place(l, i, t);
}

static void heap_insert(struct loop *l, struct loop_timer *t)
{
	if (l->n_wall == l->cap_wall) {
		l->cap_wall = l->cap_wall ? l->cap_wall * 2 : 8;
		l->wall = xreallocarray(l->wall, l->cap_wall, sizeof(l->wall[0]));
	}
	heap_place(l, l->n_wall++, t);
	heap_up(l, t->index);
}

static void heap_remove(struct loop *l, struct loop_timer *t)
{
	struct loop_timer *last = l->wall[--l->n_wall];
	size_t i = t->index;

	t->index = NOT_IN_HEAP;
	if (last == t)
		return;
	heap_place(l, i, last);
	heap_up(l, i);
	heap_down(l, last->index);
}

/* ---- wall time ---- */

static void on_wall(uv_poll_t *h, int status, int events)
{
	struct loop *l = h->data;
	struct wall now = clock_wall();
	uint64_t count;

	(void)status;
	(void)events;
	/* Fails with ECANCELED after a jump, which is one more reason to look. */
	if (read(l->wall_fd, &count, sizeof(count)) < 0 && errno != ECANCELED && errno != EAGAIN)
		mem_panic(__FILE__, __LINE__, "timerfd read");
	/* A callback may set its timer again, to the past too. */
	for (size_t n = l->n_wall; n > 0 && l->n_wall > 0; n--) {
		struct loop_timer *t = l->wall[0];

		if (wall_sub_ns(t->at, now) > 0)
			break;
		heap_remove(l, t);
		t->fn(t->arg);
	}
	wall_arm(l);
}

static void wall_arm(struct loop *l)
{
	struct itimerspec its = { 0 };

	if (l->n_wall == 0) {
		if (l->wall_fd >= 0)
			uv_poll_stop(&l->wall_poll);
		return;
	}
	if (l->wall_fd < 0) {
		l->wall_fd = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK | TFD_CLOEXEC);
		INVARIANT(l->wall_fd >= 0);
		INVARIANT(uv_poll_init(&l->uv, &l->wall_poll, l->wall_fd) == 0);
		l->wall_poll.data = l;
	}
	/* One nanosecond past 1970 fires at once. A clock that a test has set does not advance, so
	 * what is not due then waits for the next setting. */
	if (wall_sub_ns(l->wall[0]->at, clock_wall()) <= 0)
		its.it_value.tv_nsec = 1;
	else if (!clock_is_set_for_test())
		its.it_value = (struct timespec){ .tv_sec = l->wall[0]->at.sec,
			.tv_nsec = l->wall[0]->at.nsec };
	INVARIANT(timerfd_settime(l->wall_fd, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &its,
			  NULL) == 0);
	INVARIANT(uv_poll_start(&l->wall_poll, UV_READABLE, on_wall) == 0);
}

void loop_timer_set_wall(struct loop_timer *t, struct wall at)
{
	loop_timer_stop(t);
	t->at = at;
	heap_insert(t->loop, t);
	if (t->index == 0)
		wall_arm(t->loop);
}

void loop_timer_stop(struct loop_timer *t)
{
	uv_timer_stop(&t->uv);
	if (t->index == NOT_IN_HEAP)
		return;
	heap_remove(t->loop, t);
	if (t->loop->n_wall == 0)
		wall_arm(t->loop);
}

void loop_timer_unref(struct loop_timer *t)
{
	uv_unref((uv_handle_t *)&t->uv);
}

static void timer_closed(uv_handle_t *h)
{
	free(h->data);
}

void loop_timer_free(struct loop_timer *t)
{
	if (!t)
		return;
	loop_timer_stop(t);
	t->loop->n_timers--;
	uv_close((uv_handle_t *)&t->uv, timer_closed);
}

/* ---- set-up, and the clock of tests ---- */

static pthread_mutex_t all_lock = PTHREAD_MUTEX_INITIALIZER;
static struct list all_loops = { &all_loops, &all_loops };

static void look_again(void *arg)
{
	wall_arm(arg);
}

static void test_clock_set(void)
{
	pthread_mutex_lock(&all_lock);
	list_each (l, &all_loops, struct loop, all)
		loop_post(l, look_again, l);
	pthread_mutex_unlock(&all_lock);
}

void loop_wall_init(struct loop *l)
{
	l->wall_fd = -1;
	pthread_mutex_lock(&all_lock);
	list_append(&all_loops, &l->all);
	clock_on_set_for_test(test_clock_set);
	pthread_mutex_unlock(&all_lock);
}

void loop_wall_close(struct loop *l)
{
	INVARIANT(l->n_wall == 0);
	pthread_mutex_lock(&all_lock);
	list_remove(&l->all);
	pthread_mutex_unlock(&all_lock);
	free(l->wall);
	l->wall = NULL;
	if (l->wall_fd < 0)
		return;
	uv_close((uv_handle_t *)&l->wall_poll, NULL);
	close(l->wall_fd);
	l->wall_fd = -1;
}

/*
 * The hub: one epoll set inside the loop's for all doors and connections, their deadlines and their
 * turns.
 *
 * A set of our own, because uv_poll costs 160 bytes per descriptor and three system calls to begin
 * with; edges, because then nothing has to be changed when a side is paused.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "lib/door_internal.h"
#include "lib/loop_internal.h"

struct door_times door_times = {
	.handshake_ms = DOOR_HANDSHAKE_MS,
	.idle_ms = DOOR_IDLE_MS,
	.stall_ms = DOOR_WRITE_STALL_MS,
	.linger_ms = DOOR_LINGER_MS,
	.penalty_ms = SHARE_PENALTY_MS,
	.young_ms = SHARE_YOUNG_MS,
};

static pthread_mutex_t hubs_lock = PTHREAD_MUTEX_INITIALIZER;
static struct list hubs = { &hubs, &hubs };

int64_t hub_now(const struct hub *h)
{
	return (int64_t)uv_now(&h->loop->uv);
}

static void on_again(uv_idle_t *idle);

/* ---- the dead ---- */

static void free_dead(struct hub *h)
{
	list_each (c, &h->dead, struct conn, in_hub) {
		list_remove(&c->in_hub);
		free(c);
		hub_unref(h);
	}
}

void hub_bury(struct hub *h, struct conn *c)
{
	list_remove(&c->in_hub);
	list_append(&h->dead, &c->in_hub);
	/* Whoever ended it may still look at it. */
	if (!h->dispatching)
		uv_idle_start(&h->again, on_again);
}

/* ---- turns ---- */

/* Only those that were there at the beginning. */
static void run_more(struct hub *h)
{
	struct list now;

	list_init(&now);
	list_each (c, &h->more, struct conn, turn) {
		list_remove(&c->turn);
		list_append(&now, &c->turn);
	}
	while (!list_empty(&now)) {
		struct conn *c = container_of(now.next, struct conn, turn);

		list_remove(&c->turn);
		conn_go(c);
	}
}

static void run_handshakes(struct hub *h)
{
	for (int i = 0; i < HUB_HANDSHAKES && !list_empty(&h->handshakes); i++) {
		struct conn *c = container_of(h->handshakes.next, struct conn, turn);

		list_remove(&c->turn);
		conn_begin(c);
	}
}

static void pace(struct hub *h)
{
	if (!h->pacing)
		loop_timer_set(h->pace, HUB_PACE_MS * NS_PER_MS);
	h->pacing = true;
}

void hub_opening(struct hub *h, struct conn *c, bool opening)
{
	if (opening == !list_empty(&c->opening))
		return;
	if (opening) {
		c->opening_ms = hub_now(h);
		list_append(&h->opening, &c->opening);
		h->n_opening++;
	} else {
		list_remove(&c->opening);
		h->n_opening--;
		if (h->blocked)
			uv_idle_start(&h->again, on_again);
		h->blocked = false;
	}
}

/* The server takes a connection on a thread of its own; a heap of them there would be a line in
 * which nobody has turns. */
static bool server_is_busy(struct hub *h)
{
	while (h->n_opening >= HUB_OPENING) {
		struct conn *c = container_of(h->opening.next, struct conn, opening);

		if (hub_now(h) - c->opening_ms < HUB_OPENING_MS)
			return true;
		hub_opening(h, c, false);
	}
	return false;
}

/* One connection of each holder after the other. */
static void run_waiting(struct hub *h)
{
	int left = HUB_OPENS;

	if (list_empty(&h->waiting))
		return;
	if (server_is_busy(h)) {
		h->blocked = true;
		pace(h); /* in case it never speaks */
		return;
	}

	while (left > 0 && !list_empty(&h->waiting) && h->n_opening < HUB_OPENING) {
		struct share_holder *holder =
			container_of(h->waiting.next, struct share_holder, turn);
		struct conn *c;

		list_remove(&holder->turn);
		if (list_empty(&holder->waiting))
			continue;
		if (!share_take_token(holder, hub_now(h))) {
			list_append(&h->paced, &holder->turn);
			pace(h);
			continue;
		}
		c = container_of(holder->waiting.next, struct conn, turn);
		list_remove(&c->turn);
		if (!list_empty(&holder->waiting))
			list_append(&h->waiting, &holder->turn);
		left -= c->handshaking ? HUB_OPENS / HUB_HANDSHAKES : 1;
		conn_begin(c);
	}
}

static void on_pace(void *arg)
{
	struct hub *h = arg;

	h->pacing = h->blocked = false;
	while (!list_empty(&h->paced)) {
		struct share_holder *holder =
			container_of(h->paced.next, struct share_holder, turn);

		list_remove(&holder->turn);
		list_append(&h->waiting, &holder->turn);
	}
	uv_idle_start(&h->again, on_again);
}

/* ---- events ---- */

static void on_events(uv_poll_t *p, int status, int what)
{
	struct hub *h = p->data;
	struct epoll_event ev[HUB_EVENTS];
	int n;

	(void)status;
	(void)what;
	n = epoll_wait(h->epfd, ev, HUB_EVENTS, 0);
	loop_trim_soon(h->loop);
	h->refs++;
	h->dispatching = true;
	h->opens_left = HUB_OPENS;
	for (int i = 0; i < n; i++) {
		struct source *s = ev[i].data.ptr;

		if (s->fd >= 0)
			s->ready(s, ev[i].events);
	}
	h->dispatching = false;
	free_dead(h);
	hub_unref(h);
}

static void on_again(uv_idle_t *idle)
{
	struct hub *h = idle->data;

	h->refs++;
	h->dispatching = true;
	run_more(h);
	run_handshakes(h);
	run_waiting(h);
	h->dispatching = false;
	free_dead(h);
	if (list_empty(&h->more) && list_empty(&h->handshakes) &&
		(h->blocked || list_empty(&h->waiting)))
		uv_idle_stop(&h->again);
	hub_unref(h);
}

void hub_more(struct hub *h, struct conn *c)
{
	if (!list_empty(&c->turn))
		return;
	list_append(&h->more, &c->turn);
	uv_idle_start(&h->again, on_again);
}

void hub_begin(struct hub *h, struct conn *c)
{
	struct share_holder *holder = c->holder;

	if (!list_empty(&c->turn))
		return;
	if (!holder && !c->handshaking) {
		conn_begin(c);
		return;
	}
	if (!holder) {
		list_append(&h->handshakes, &c->turn);
		uv_idle_start(&h->again, on_again);
		return;
	}
	/* The usual case: nobody is in line. */
	if (!c->handshaking && h->opens_left > 0 && h->n_opening < HUB_OPENING &&
		list_empty(&holder->turn) && list_empty(&h->waiting) &&
		share_take_token(holder, hub_now(h))) {
		h->opens_left--;
		conn_begin(c);
		return;
	}
	list_append(&holder->waiting, &c->turn);
	if (list_empty(&holder->turn))
		list_append(&h->waiting, &holder->turn);
	uv_idle_start(&h->again, on_again);
}

static void control(struct hub *h, int op, struct source *s, uint32_t events)
{
	struct epoll_event ev = { .events = events, .data.ptr = s };

	INVARIANT(epoll_ctl(h->epfd, op, s->fd, &ev) == 0);
}

void hub_add(struct hub *h, struct source *s, uint32_t events)
{
	control(h, EPOLL_CTL_ADD, s, events);
}

void hub_change(struct hub *h, struct source *s, uint32_t events)
{
	control(h, EPOLL_CTL_MOD, s, events);
}

void hub_remove(struct hub *h, struct source *s)
{
	if (s->fd >= 0)
		close(hub_release(h, s));
}

int hub_release(struct hub *h, struct source *s)
{
	int fd = s->fd;

	/* Not left to close(): a child between fork and exec has a copy. */
	control(h, EPOLL_CTL_DEL, s, 0);
	s->fd = -1;
	return fd;
}

/* ---- deadlines: all of a stage last equally long, so each list is in order ---- */

static void arm(struct hub *h, int64_t at_ms)
{
	int64_t span = at_ms - hub_now(h);

	h->armed_ms = at_ms;
	loop_timer_set(h->timer, (span > 0 ? span : 0) * NS_PER_MS);
}

static void on_deadline(void *arg)
{
	struct hub *h = arg;
	int64_t now = hub_now(h), next = 0;

	h->refs++;
	h->armed_ms = 0;
	for (int i = 0; i < STAGES; i++) {
		while (!list_empty(&h->stages[i])) {
			struct deadline *d = container_of(h->stages[i].next, struct deadline, link);

			if (d->at_ms > now) {
				if (next == 0 || d->at_ms < next)
					next = d->at_ms;
				break;
			}
			list_remove(&d->link);
			conn_timeout(i == STAGE_STALL ? container_of(d, struct conn, stall)
						      : container_of(d, struct conn, life),
				(enum stage)i);
		}
	}
	if (next != 0 && (h->armed_ms == 0 || next < h->armed_ms))
		arm(h, next);
	hub_unref(h);
}

void hub_deadline(struct hub *h, struct deadline *d, enum stage s, int ms)
{
	list_remove(&d->link);
	if (s == STAGE_NONE)
		return;
	d->at_ms = hub_now(h) + ms;
	list_append(&h->stages[s], &d->link);
	if (h->armed_ms == 0 || d->at_ms < h->armed_ms)
		arm(h, d->at_ms);
}

/* ---- from the first user to the last ---- */

static void hub_closed(uv_handle_t *handle)
{
	struct hub *h = handle->data;

	if (--h->n_open > 0)
		return;
	close(h->epfd);
	free(h);
}

void hub_unref(struct hub *h)
{
	INVARIANT(h->refs > 0);
	if (--h->refs > 0)
		return;
	INVARIANT(list_empty(&h->conns) && list_empty(&h->dead));
	pthread_mutex_lock(&hubs_lock);
	list_remove(&h->link);
	pthread_mutex_unlock(&hubs_lock);
	loop_at_free(h->loop, NULL, NULL);
	loop_timer_free(h->timer);
	loop_timer_free(h->pace);
	share_deinit(&h->share);
	uv_close((uv_handle_t *)&h->poll, hub_closed);
	uv_close((uv_handle_t *)&h->again, hub_closed);
}

/* Pumps whose users have closed their end, but whose loop was not run since. */
static void at_loop_free(void *arg)
{
	struct hub *h = arg;

	h->refs++;
	list_each (c, &h->conns, struct conn, in_hub)
		if (!c->door)
			conn_end(c);
	free_dead(h);
	hub_unref(h);
}

static struct hub *hub_new(struct loop *l)
{
	struct hub *h = xmalloc(sizeof(*h)); /* not zeroed: most of it is buffers */

	memset(h, 0, offsetof(struct hub, in));
	h->loop = l;
	h->epfd = epoll_create1(EPOLL_CLOEXEC);
	INVARIANT(h->epfd >= 0);
	INVARIANT(uv_poll_init(&l->uv, &h->poll, h->epfd) == 0);
	INVARIANT(uv_idle_init(&l->uv, &h->again) == 0);
	h->poll.data = h->again.data = h;
	h->n_open = 2;
	INVARIANT(uv_poll_start(&h->poll, UV_READABLE, on_events) == 0);
	list_init(&h->more);
	list_init(&h->handshakes);
	list_init(&h->waiting);
	list_init(&h->paced);
	list_init(&h->opening);
	list_init(&h->dead);
	list_init(&h->conns);
	for (int i = 0; i < STAGES; i++)
		list_init(&h->stages[i]);
	h->timer = loop_timer_new(l, on_deadline, h);
	loop_timer_unref(h->timer);
	h->pace = loop_timer_new(l, on_pace, h);
	share_init(&h->share);
	loop_at_free(l, at_loop_free, h);
	return h;
}

struct hub *hub_get(struct loop *l)
{
	struct hub *h = NULL;

	pthread_mutex_lock(&hubs_lock);
	list_each (old, &hubs, struct hub, link)
		if (old->loop == l)
			h = old;
	if (!h) {
		h = hub_new(l);
		list_append(&hubs, &h->link);
	}
	pthread_mutex_unlock(&hubs_lock);
	h->refs++;
	return h;
}

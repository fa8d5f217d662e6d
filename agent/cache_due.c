#include "agent/cache_internal.h"

#include <stdlib.h>

/* A binary heap over records, by the wall-clock moment at which each is to be signed anew. */

static void put_at(struct cache *c, size_t i, struct record *r)
{
	c->heap[i] = r;
	r->heap_at = i;
}

static void sift_up(struct cache *c, size_t i)
{
	struct record *r = c->heap[i];

	while (i > 0 && c->heap[(i - 1) / 2]->due > r->due) {
		put_at(c, i, c->heap[(i - 1) / 2]);
		i = (i - 1) / 2;
	}
	put_at(c, i, r);
}

static void sift_down(struct cache *c, size_t i)
{
	struct record *r = c->heap[i];

	for (;;) {
		size_t k = 2 * i + 1;

		if (k >= c->n_heap)
			break;
		if (k + 1 < c->n_heap && c->heap[k + 1]->due < c->heap[k]->due)
			k++;
		if (c->heap[k]->due >= r->due)
			break;
		put_at(c, i, c->heap[k]);
		i = k;
	}
	put_at(c, i, r);
}

void due_clear(struct cache *c, struct record *r)
{
	size_t i = r->heap_at;
	struct record *last;

	if (!r->due)
		return;
	r->due = 0;
	last = c->heap[--c->n_heap];
	if (last == r)
		return;
	put_at(c, i, last);
	sift_up(c, i);
	sift_down(c, last->heap_at);
}

void due_set(struct cache *c, struct record *r, int64_t wall_time_ns)
{
	due_clear(c, r);
	if (c->n_heap == c->cap_heap) {
		c->cap_heap = c->cap_heap ? 2 * c->cap_heap : 64;
		c->heap = xreallocarray(c->heap, c->cap_heap, sizeof(struct record *));
	}
	r->due = wall_time_ns > 0 ? wall_time_ns : 1;
	put_at(c, c->n_heap++, r);
	sift_up(c, r->heap_at);
	if (c->heap[0] == r)
		due_arm(c);
}

void due_arm(struct cache *c)
{
	if (c->n_heap && !c->stopped)
		loop_timer_set_wall(c->timer, wall_of_ns(c->heap[0]->due));
	else
		loop_timer_stop(c->timer);
}

struct record *due_pop(struct cache *c, int64_t until_ns)
{
	struct record *r;

	if (!c->n_heap || c->heap[0]->due > until_ns)
		return NULL;
	r = c->heap[0];
	due_clear(c, r);
	return r;
}

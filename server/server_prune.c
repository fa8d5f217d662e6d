/*
 * What expires: entries at the very time (a timer at the earliest of them), attested nodes and join
 * tokens now and then. A server where nothing expires does nothing here.
 */
#include <stdlib.h>

#include "lib/log.h"
#include "server/server.h"

enum {
	NODES_EVERY_S = 3600,
	TOKENS_EVERY_S = 3600,
	RETRY_S = 60,
	JITTER_PERCENT = 25,
	LEFTOVERS_MAX = 10000,
};

struct prune {
	struct loop *loop;
	struct store *store;
	const struct entries *entries;
	const struct server_options *o;
	struct loop_timer *entry_timer, *node_timer, *token_timer;
	/* Binary heap of every expires_at told, the earliest first. Those of entries that are gone
	 * or changed stay until their time: then a prune finds nothing, which is harmless. */
	int64_t *heap;
	size_t n, cap;
	bool running;
	int64_t pruned_until;
};

static void heap_push(struct prune *p, int64_t v)
{
	size_t i = p->n++;

	if (p->n > p->cap) {
		p->cap = p->cap ? 2 * p->cap : 64;
		p->heap = xreallocarray(p->heap, p->cap, sizeof(*p->heap));
	}
	for (; i > 0 && p->heap[(i - 1) / 2] > v; i = (i - 1) / 2)
		p->heap[i] = p->heap[(i - 1) / 2];
	p->heap[i] = v;
}

static void heap_pop(struct prune *p)
{
	int64_t v = p->heap[--p->n];
	size_t i = 0, child;

	for (; (child = 2 * i + 1) < p->n; i = child) {
		if (child + 1 < p->n && p->heap[child + 1] < p->heap[child])
			child++;
		if (p->heap[child] >= v)
			break;
		p->heap[i] = p->heap[child];
	}
	p->heap[i] = v;
}

static void arm(struct prune *p)
{
	if (p->n && !p->running)
		loop_timer_set_wall(p->entry_timer, wall_of_sec(p->heap[0] + 1));
}

static bool note_again(void *arg, const struct entry *en)
{
	if (en->expires_at)
		heap_push(arg, en->expires_at);
	return true;
}

/* Too many leftovers: begins anew from what there is. */
static void sweep(struct prune *p)
{
	struct entries_filter all = { .downstream = -1 };
	char *token = NULL;
	struct err e;

	p->n = 0;
	if (entries_list(p->entries, &all, "", note_again, p, &token, &e))
		log_event(LOG_ERROR, "prune", "could not look for expired entries", "error", e.msg,
			NULL);
	free(token);
}

void prune_note(struct prune *p, int64_t expires_at)
{
	bool earlier = p->n == 0 || expires_at < p->heap[0];

	if (expires_at == 0)
		return;
	heap_push(p, expires_at);
	if (p->n > 2 * entries_count(p->entries) + LEFTOVERS_MAX)
		sweep(p);
	if (earlier)
		arm(p);
}

static void entries_pruned(void *arg, int code, const char *msg, size_t deleted)
{
	struct prune *p = arg;

	p->running = false;
	if (code) {
		log_event(
			LOG_ERROR, "prune", "could not delete expired entries", "error", msg, NULL);
		loop_timer_set(p->entry_timer, RETRY_S * NS_PER_SEC);
		return;
	}
	if (deleted) { /* perhaps not all at once */
		log_event(LOG_INFO, "prune", "deleted expired entries", "count",
			log_fmt("%zu", deleted), NULL);
		loop_timer_set(p->entry_timer, 0);
		return;
	}
	while (p->n && p->heap[0] < p->pruned_until)
		heap_pop(p);
	arm(p);
}

static void entries_due(void *arg)
{
	struct prune *p = arg;

	if (p->running)
		return;
	p->running = true;
	p->pruned_until = clock_wall().sec;
	store_entries_prune(p->store, p->pruned_until, entries_pruned, p);
}

static void nodes_pruned(void *arg, int code, const char *msg, size_t deleted)
{
	(void)arg;
	if (code)
		log_event(
			LOG_ERROR, "prune", "could not delete expired agents", "error", msg, NULL);
	else if (deleted)
		log_event(LOG_INFO, "prune", "deleted expired agents", "count",
			log_fmt("%zu", deleted), NULL);
}

static void nodes_due(void *arg)
{
	struct prune *p = arg;
	int64_t before = clock_wall().sec - p->o->prune_attested_nodes_expired_for_ns / NS_PER_SEC;

	store_nodes_prune(p->store, before, p->o->prune_tofu_nodes,
		p->o->prune_attested_nodes_batch_size, nodes_pruned, p);
	loop_timer_set(p->node_timer, loop_jitter(NODES_EVERY_S * NS_PER_SEC, JITTER_PERCENT));
}

static void tokens_pruned(void *arg, int code, const char *msg)
{
	(void)arg;
	if (code)
		log_event(LOG_ERROR, "prune", "could not delete expired join tokens", "error", msg,
			NULL);
}

static void tokens_due(void *arg)
{
	struct prune *p = arg;

	store_tokens_prune(p->store, clock_wall().sec, tokens_pruned, p);
	loop_timer_set(p->token_timer, loop_jitter(TOKENS_EVERY_S * NS_PER_SEC, JITTER_PERCENT));
}

struct prune *prune_new(
	struct loop *l, struct store *s, const struct entries *x, const struct server_options *o)
{
	struct prune *p = xcalloc(1, sizeof(*p));

	*p = (struct prune){ .loop = l, .store = s, .entries = x, .o = o };
	p->entry_timer = loop_timer_new(l, entries_due, p);
	p->node_timer = loop_timer_new(l, nodes_due, p);
	p->token_timer = loop_timer_new(l, tokens_due, p);
	if (o->prune_attested_nodes_expired_for_ns > 0)
		loop_timer_set(
			p->node_timer, loop_jitter(NODES_EVERY_S * NS_PER_SEC, JITTER_PERCENT));
	loop_timer_set(p->token_timer, loop_jitter(TOKENS_EVERY_S * NS_PER_SEC, JITTER_PERCENT));
	return p;
}

void prune_free(struct prune *p)
{
	if (!p)
		return;
	loop_timer_free(p->entry_timer);
	loop_timer_free(p->node_timer);
	loop_timer_free(p->token_timer);
	free(p->heap);
	free(p);
}

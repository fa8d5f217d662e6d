/*
 * What expires: entries at the very time (a timer at the earliest of them), attested nodes and join
 * tokens now and then. A server where nothing expires does nothing here.
 */
#include <stdlib.h>

#include "lib/log.h"
#include "server/server.h"

enum { NODES_EVERY_S = 3600, TOKENS_EVERY_S = 3600, RETRY_S = 60, JITTER_PERCENT = 25 };

struct prune {
	struct loop *loop;
	struct store *store;
	const struct entries *entries;
	const struct server_options *o;
	struct loop_timer *entry_timer, *node_timer, *token_timer;
	int64_t next; /* earliest expires_at known; 0: none */
	bool running;
};

static void arm(struct prune *p)
{
	if (p->next && !p->running)
		loop_timer_set_wall(p->entry_timer, wall_of_sec(p->next));
}

void prune_note(struct prune *p, int64_t expires_at)
{
	if (expires_at == 0 || (p->next && p->next <= expires_at))
		return;
	p->next = expires_at;
	arm(p);
}

static bool earliest(void *arg, const struct entry *en)
{
	int64_t *next = arg;

	if (en->expires_at && (*next == 0 || en->expires_at < *next))
		*next = en->expires_at;
	return true;
}

static void look_again(struct prune *p)
{
	struct entries_filter all = { .downstream = -1 };
	char *token = NULL;
	struct err e;

	p->next = 0;
	if (entries_list(p->entries, &all, "", earliest, &p->next, &token, &e))
		log_event(LOG_ERROR, "prune", "could not look for expired entries", "error", e.msg,
			NULL);
	free(token);
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
	if (deleted)
		log_event(LOG_INFO, "prune", "deleted expired entries", "count",
			log_fmt("%zu", deleted), NULL);
	look_again(p);
}

static void entries_due(void *arg)
{
	struct prune *p = arg;

	if (p->running)
		return;
	p->running = true;
	store_entries_prune(p->store, clock_wall().sec, entries_pruned, p);
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
	free(p);
}

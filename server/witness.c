#include "server/witness.h"

#include <stdlib.h>

#include "lib/map.h"
#include "lib/mem.h"

#define RECONNECT_NS (30 * NS_PER_SEC) /* a lost stream's agent is waited for so long */
#define POLLING_NS (15 * NS_PER_SEC)   /* three intervals of SPIRE's agents */
#define POLL_TAKES_NS (1 * NS_PER_SEC) /* from our answer until it is what its workloads have */

struct agent {
	char *id;
	int streams;
	bool polls;
	uint64_t sequence; /* seen */
	struct mono since; /* has it been seen */
	struct mono last;  /* last heard of, without a stream */
};

struct witness {
	struct map *agents;
	void (*fn)(void *arg);
	void *arg;
};

struct witness *witness_new(void)
{
	struct witness *w = xcalloc(1, sizeof(*w));

	w->agents = map_new();
	return w;
}

static void agent_free(struct agent *a)
{
	free(a->id);
	free(a);
}

void witness_free(struct witness *w)
{
	struct bytes key;
	void *a;

	if (!w)
		return;
	for (size_t i = 0; map_next(w->agents, &i, &key, &a);)
		agent_free(a);
	map_free(w->agents);
	free(w);
}

void witness_on_change(struct witness *w, void (*fn)(void *arg), void *arg)
{
	w->fn = fn;
	w->arg = arg;
}

static void tell(struct witness *w)
{
	if (w->fn)
		w->fn(w->arg);
}

static struct agent *get(struct witness *w, const char *id)
{
	struct agent *a = map_get_str(w->agents, id);

	if (a)
		return a;
	a = xcalloc(1, sizeof(*a));
	a->id = xstrdup(id);
	map_put_str(w->agents, a->id, a);
	return a;
}

static void see(struct witness *w, struct agent *a, uint64_t sequence, struct mono now)
{
	if (a->sequence == sequence)
		return;
	a->sequence = sequence;
	a->since = now;
	tell(w);
}

void witness_expect(struct witness *w, const char *agent_id, struct mono now)
{
	get(w, agent_id)->last = now;
}

void witness_opened(struct witness *w, const char *agent_id, uint64_t sequence, struct mono now)
{
	struct agent *a = get(w, agent_id);

	a->streams++;
	a->polls = false;
	see(w, a, sequence, now);
}

void witness_acked(struct witness *w, const char *agent_id, uint64_t sequence, struct mono now)
{
	see(w, get(w, agent_id), sequence, now);
}

void witness_closed(struct witness *w, const char *agent_id, struct mono now)
{
	struct agent *a = map_get_str(w->agents, agent_id);

	if (!a || a->streams == 0)
		return;
	a->streams--;
	a->last = now;
}

void witness_polled(struct witness *w, const char *agent_id, uint64_t sequence, struct mono now)
{
	struct agent *a = get(w, agent_id);

	a->polls = true;
	a->last = now;
	see(w, a, sequence, now);
}

void witness_gone(struct witness *w, const char *agent_id)
{
	struct agent *a = map_get_str(w->agents, agent_id);

	if (!a)
		return;
	map_del_str(w->agents, agent_id);
	agent_free(a);
	tell(w);
}

static bool is_away(const struct agent *a, struct mono now)
{
	return a->streams == 0 && now.ns - a->last.ns > (a->polls ? POLLING_NS : RECONNECT_NS);
}

static bool has_seen(const struct agent *a, uint64_t sequence, struct mono now)
{
	if (a->sequence < sequence)
		return false;
	return !a->polls || a->streams || now.ns - a->since.ns >= POLL_TAKES_NS;
}

size_t witness_missing(
	struct witness *w, uint64_t sequence, struct mono now, struct strings *ret, size_t max)
{
	struct bytes key;
	void *value;
	size_t n = 0;

	for (size_t i = 0; map_next(w->agents, &i, &key, &value);) {
		struct agent *a = value;

		if (is_away(a, now)) {
			map_del(w->agents, key);
			agent_free(a);
			continue;
		}
		if (has_seen(a, sequence, now))
			continue;
		if (n++ < max)
			strings_add(ret, a->id);
	}
	return n;
}

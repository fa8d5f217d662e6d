/*
 * Watches: what each connected agent was last told, and who is touched by a change.
 *
 * A change touches the agents that may have the entry before or after it: those found by climbing
 * from the entry through its parents. A touched watch is only marked; when it is asked, its set is
 * computed anew and compared with what was sent. That is simple, and right also for what a change
 * of an alias, of an entry in the middle of a chain, or of a node's selectors does to others.
 */
#include <stdlib.h>
#include <string.h>

#include "server/entries_internal.h"

/* ---- agents ---- */

static struct agent *agent_find(const struct entries *x, uint32_t id)
{
	uint32_t a = id_of(x, id)->agent;

	return a ? x->agents[a] : NULL;
}

static void hook_drop(struct hook *h, uint32_t agent)
{
	for (uint32_t i = 0; i < h->n_agents; i++)
		if (h->agents[i] == agent) {
			h->agents[i] = h->agents[--h->n_agents];
			return;
		}
}

static void agent_unpost(struct entries *x, uint32_t num)
{
	struct agent *a = x->agents[num];

	for (uint32_t i = 0; i < a->n_sel; i++) {
		hook_drop(hook_find(x, a->sel[i]), num);
		hook_release(x, a->sel[i]);
		intern_unref(&x->selectors, a->sel[i]);
	}
	free(a->sel);
	a->sel = NULL;
	a->n_sel = 0;
}

/* Posts the agent under the selectors that its node has now. */
static void agent_post(struct entries *x, uint32_t num)
{
	struct agent *a = x->agents[num];
	uint32_t node = id_of(x, a->id)->node;

	if (!node)
		return;
	a->sel = xreallocarray(NULL, x->nodes[node]->n_match, sizeof(a->sel[0]));
	for (uint32_t i = 0; i < x->nodes[node]->n_match; i++) {
		uint32_t sel = x->nodes[node]->match[i];
		struct hook *h;

		if (a->n_sel && a->sel[a->n_sel - 1] == sel)
			continue;
		a->sel[a->n_sel++] = sel;
		intern_ref(&x->selectors, sel);
		h = hook_of(x, sel);
		/* Doubles when the count is a power of two. */
		if ((h->n_agents & (h->n_agents - 1)) == 0)
			h->agents = xreallocarray(
				h->agents, h->n_agents ? h->n_agents * 2 : 1, sizeof(h->agents[0]));
		h->agents[h->n_agents++] = num;
	}
}

static uint32_t agent_get(struct entries *x, const char *agent_id)
{
	uint32_t id = intern_get(&x->ids, bytes_str(agent_id)); /* the agent's reference */
	uint32_t num = id_of(x, id)->agent;

	if (num) {
		intern_unref(&x->ids, id);
		return num;
	}
	num = x->free_agent;
	if (num) {
		x->free_agent = (uint32_t)((uintptr_t)x->agents[num] >> 1);
	} else {
		if (x->n_agent_slots >= x->cap_agents) {
			x->cap_agents = x->cap_agents ? x->cap_agents * 2 : 64;
			x->agents = xreallocarray(x->agents, x->cap_agents, sizeof(x->agents[0]));
		}
		num = x->n_agent_slots++;
	}
	x->agents[num] = xcalloc(1, sizeof(*x->agents[num]));
	x->agents[num]->id = id;
	list_init(&x->agents[num]->watches);
	list_init(&x->agents[num]->parked_link);
	id_of(x, id)->agent = num;
	x->n_agents++;
	agent_post(x, num);
	return num;
}

static void unpark(struct entries *x, struct agent *a)
{
	if (!a->parked.known)
		return;
	list_remove(&a->parked_link);
	x->n_parked--;
	x->n_parked_entries -= a->parked.n;
	a->parked = (struct sent_set){ .known = false };
}

/* Forgets an agent that nobody watches and of which nothing is remembered. */
static void agent_release(struct entries *x, uint32_t num)
{
	struct agent *a = x->agents[num];

	if (!list_empty(&a->watches) || a->parked.known)
		return;
	agent_unpost(x, num);
	id_of(x, a->id)->agent = 0;
	intern_unref(&x->ids, a->id);
	free(a);
	x->agents[num] = (struct agent *)(((uintptr_t)x->free_agent << 1) | 1);
	x->free_agent = num;
	x->n_agents--;
}

/* ---- touching ---- */

static void touch_agent(struct entries *x, struct agent *a)
{
	list_each (w, &a->watches, struct entries_watch, link) {
		if (w->dirty)
			continue;
		w->dirty = true;
		w->sent.tombs = x->n_tombs; /* until now nothing of what was sent had died */
		list_append(&x->pending, &w->pending);
	}
}

/* The watched agents whose nodes meet an alias: looked up by the rarest of its selectors. */
static void touch_alias(struct entries *x, const struct rec *alias)
{
	const struct hook *best = NULL;

	for (uint32_t i = 0; i < alias->n_sel; i++) {
		const struct hook *h = hook_find(x, alias->sel[i]);

		if (!h || h->n_agents == 0)
			return;
		if (!best || h->n_agents < best->n_agents)
			best = h;
	}
	for (uint32_t i = 0; best && i < best->n_agents; i++) {
		struct agent *a = x->agents[best->agents[i]];

		if (!list_empty(&a->watches) && alias_matches(alias, a->sel, a->n_sel))
			touch_agent(x, a);
	}
}

static void climb(struct entries *x, struct numbers *stack, uint32_t id)
{
	if (id_of(x, id)->mark == x->mark)
		return;
	id_of(x, id)->mark = x->mark;
	numbers_add(stack, id);
}

void watch_touch(struct entries *x, const struct rec *r)
{
	struct numbers stack = { .n = 0 };

	if (x->n_agents == 0)
		return;
	if (is_alias(x, r)) {
		touch_alias(x, r);
		return;
	}
	walk_start(x);
	climb(x, &stack, r->parent);
	while (stack.n) {
		uint32_t id = stack.v[--stack.n];
		const struct idstr *s = id_of(x, id);

		if (s->agent)
			touch_agent(x, x->agents[s->agent]);
		for (uint32_t a = s->alias; a; a = x->recs[a]->same_next)
			touch_alias(x, x->recs[a]);
		for (uint32_t p = s->same; p; p = x->recs[p]->same_next)
			climb(x, &stack, x->recs[p]->parent);
	}
	numbers_deinit(&stack);
}

void watch_node(struct entries *x, uint32_t id)
{
	struct agent *a = agent_find(x, id);

	if (!a)
		return;
	agent_unpost(x, id_of(x, id)->agent);
	agent_post(x, id_of(x, id)->agent);
	touch_agent(x, a);
}

/* The callbacks may do what they like, so each is taken out of the list before it is called. */
void watch_flush(struct entries *x)
{
	while (!list_empty(&x->pending)) {
		struct entries_watch *w =
			container_of(x->pending.next, struct entries_watch, pending);

		list_remove(&w->pending);
		w->changed(w->arg);
	}
}

/* ---- tombstones ---- */

void watch_bury(struct entries *x, uint32_t num)
{
	uint32_t *place;

	if (x->n_agents == 0) {
		rec_free(x, num);
		return;
	}
	if (!x->tombs)
		x->tombs = xcalloc(ENTRIES_TOMBSTONES, sizeof(x->tombs[0]));
	place = &x->tombs[x->n_tombs % ENTRIES_TOMBSTONES];
	if (*place)
		rec_free(x, *place);
	*place = num;
	x->n_tombs++;
}

/* Records that were removed since may have been given to others when more than a ringful died. */
static bool too_old(const struct entries *x, const struct sent_set *s)
{
	return x->n_tombs - s->tombs > ENTRIES_TOMBSTONES;
}

/* ---- watches ---- */

struct entries_watch *entries_watch_new(
	struct entries *x, const char *agent_id, void (*changed)(void *arg), void *arg)
{
	struct entries_watch *w = xcalloc(1, sizeof(*w));
	struct agent *a;

	w->x = x;
	w->changed = changed;
	w->arg = arg;
	w->agent = agent_get(x, agent_id);
	w->dirty = true; /* until taken from for the first time */
	list_init(&w->pending);
	a = x->agents[w->agent];
	list_append(&a->watches, &w->link);
	w->sent = a->parked;
	unpark(x, a);
	return w;
}

static void evict(struct entries *x)
{
	while (x->n_parked > ENTRIES_PARKED_AGENTS ||
		x->n_parked_entries > ENTRIES_PARKED_ENTRIES) {
		struct agent *a = container_of(x->parked.next, struct agent, parked_link);
		uint32_t num = id_of(x, a->id)->agent;

		free(a->parked.v);
		unpark(x, a);
		agent_release(x, num);
	}
}

/* Remembers what the agent has, should it come back. */
static void park(struct entries *x, struct agent *a, struct sent_set *s)
{
	if (!s->known || too_old(x, s)) {
		free(s->v);
		return;
	}
	free(a->parked.v);
	unpark(x, a);
	a->parked = *s;
	list_append(&x->parked, &a->parked_link);
	x->n_parked++;
	x->n_parked_entries += s->n;
	*s = (struct sent_set){ .known = false };
}

void entries_watch_free(struct entries_watch *w)
{
	struct entries *x;
	uint32_t num;

	if (!w)
		return;
	x = w->x;
	num = w->agent;
	list_remove(&w->link);
	list_remove(&w->pending);
	if (!w->dirty)
		w->sent.tombs = x->n_tombs;
	park(x, x->agents[num], &w->sent);
	free(w);
	agent_release(x, num);
	evict(x);
}

void watch_deinit(struct entries *x)
{
	INVARIANT(list_empty(&x->pending));
	for (uint32_t i = 1; i < x->n_agent_slots; i++) {
		struct agent *a = x->agents[i];

		if ((uintptr_t)a & 1)
			continue;
		INVARIANT(list_empty(&a->watches));
		free(a->parked.v);
		unpark(x, a);
		agent_release(x, i);
	}
	free(x->agents);
	free(x->tombs);
}

static int compare_sent(const void *a, const void *b)
{
	const struct sent *p = a;
	const struct sent *q = b;

	return p->rec < q->rec ? -1 : p->rec > q->rec;
}

static void set_now(const struct entries *x, uint32_t agent_id, struct sent_set *ret)
{
	struct numbers found = { .n = 0 };

	authorized_collect(x, intern_text(&x->ids, agent_id), &found);
	ret->known = true;
	ret->n = found.n;
	ret->v = xreallocarray(NULL, found.n, sizeof(ret->v[0]));
	for (size_t i = 0; i < found.n; i++)
		ret->v[i] = (struct sent){
			.rec = found.v[i],
			.version = x->recs[found.v[i]]->version,
		};
	qsort(ret->v, ret->n, sizeof(ret->v[0]), compare_sent);
	numbers_deinit(&found);
}

static void delta_put(const struct entries *x, uint32_t num, struct scratch *room, size_t *cap,
	struct entries_delta *ret)
{
	struct entry view;

	if (ret->n_put == *cap) {
		*cap = *cap ? *cap * 2 : 16;
		ret->put = xreallocarray(ret->put, *cap, sizeof(ret->put[0]));
	}
	rec_view(x, x->recs[num], room, &view);
	ret->put[ret->n_put++] = entry_dup(&view);
}

static void delta_remove(const struct entries *x, uint32_t num, const struct sent_set *now,
	struct entries_delta *ret)
{
	const char *id = rec_id(x->recs[num]);
	struct sent again = { .rec = rec_find(x, id) };

	/* Removed and made anew under the same id: the new one says it all. */
	if (again.rec && bsearch(&again, now->v, now->n, sizeof(now->v[0]), compare_sent))
		return;
	strings_add(&ret->removed, id);
}

/* Both by record number. */
static void compare_sets(const struct entries *x, const struct sent_set *old,
	const struct sent_set *now, struct entries_delta *ret)
{
	struct scratch room = { .sel_cap = 0 };
	size_t cap = 0;
	size_t i = 0;
	size_t j = 0;

	while (i < old->n || j < now->n) {
		if (j == now->n || (i < old->n && old->v[i].rec < now->v[j].rec)) {
			delta_remove(x, old->v[i++].rec, now, ret);
		} else if (i == old->n || old->v[i].rec > now->v[j].rec) {
			delta_put(x, now->v[j++].rec, &room, &cap, ret);
		} else {
			if (old->v[i].version != now->v[j].version)
				delta_put(x, now->v[j].rec, &room, &cap, ret);
			i++;
			j++;
		}
	}
	scratch_deinit(&room);
}

/* Is what the agent says to have the set that we remember? */
static bool continues(const struct entries_watch *w, uint64_t since)
{
	const struct sent_set *s = &w->sent;

	return s->known && !(w->dirty && too_old(w->x, s)) && since >= s->content_at &&
	       since <= s->taken_at;
}

void entries_watch_take(
	struct entries_watch *w, uint64_t since, bool have_since, struct entries_delta *ret)
{
	static const struct sent_set nothing;
	const struct entries *x = w->x;
	bool on = have_since && continues(w, since);
	struct sent_set now = { .known = false };

	*ret = (struct entries_delta){ .change = x->change };
	if (on && !w->dirty) {
		w->sent.taken_at = x->change;
		return;
	}
	set_now(x, x->agents[w->agent]->id, &now);
	/* Without a remembered set, nothing has changed for sure only when nothing has changed. */
	if (!on && have_since && since == x->change) {
		now.content_at = x->change;
	} else {
		ret->full = !on;
		compare_sets(x, on ? &w->sent : &nothing, &now, ret);
		now.content_at =
			ret->full || ret->n_put || ret->removed.n ? x->change : w->sent.content_at;
	}
	now.taken_at = x->change;
	free(w->sent.v);
	w->sent = now;
	w->dirty = false;
	list_remove(&w->pending);
}

void entries_delta_deinit(struct entries_delta *d)
{
	for (size_t i = 0; i < d->n_put; i++)
		entry_deinit(&d->put[i]);
	free(d->put);
	strings_deinit(&d->removed);
	*d = (struct entries_delta){ .n_put = 0 };
}

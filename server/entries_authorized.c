/* Who may have what: down from an agent to its entries, and up from an entry to its agent. */
#include <stdlib.h>
#include <string.h>

#include "server/entries_internal.h"

/* From how many aliases of one id on it pays to look from the node's side. */
enum { ALIASES_FEW = 16 };

static struct entries *mutable(const struct entries *x)
{
	return (struct entries *)(uintptr_t)x;
}

uint32_t walk_start(const struct entries *x)
{
	struct entries *m = mutable(x);

	if (++m->mark == 0) { /* wrapped around: no old mark may look like a new one */
		for (uint32_t i = 1; i < m->ids.n; i++)
			if (!((uintptr_t)m->ids.v[i] & 1))
				id_of(m, i)->mark = 0;
		m->mark = 1;
	}
	return m->mark;
}

static void go_to(const struct entries *x, struct numbers *stack, uint32_t id)
{
	struct idstr *s = id_of(x, id);

	if (s->mark == x->mark)
		return;
	s->mark = x->mark;
	if (s->child)
		numbers_add(stack, id);
}

static void start_from_aliases(
	const struct entries *x, struct numbers *stack, const struct noderec *n)
{
	for (uint32_t i = 0; i < n->n_match; i++) {
		const struct hook *h = hook_find(x, n->match[i]);

		for (uint32_t a = h ? h->alias : 0; a; a = x->recs[a]->next)
			if (alias_matches(x->recs[a], n->match, n->n_match))
				go_to(x, stack, x->recs[a]->spiffe);
	}
}

void authorized_collect(const struct entries *x, const char *agent_id, struct numbers *ret)
{
	uint32_t agent = intern_find(&x->ids, bytes_str(agent_id));
	struct numbers stack = { .n = 0 };

	if (!agent)
		return;
	walk_start(x);
	go_to(x, &stack, agent);
	if (id_of(x, agent)->node)
		start_from_aliases(x, &stack, x->nodes[id_of(x, agent)->node]);
	while (stack.n) {
		const struct idstr *s = id_of(x, stack.v[--stack.n]);

		for (uint32_t c = s->child; c; c = x->recs[c]->next) {
			numbers_add(ret, c);
			go_to(x, &stack, x->recs[c]->spiffe);
		}
	}
	numbers_deinit(&stack);
}

void entries_authorized(const struct entries *x, const char *agent_id,
	void (*fn)(void *arg, const struct entry *en), void *arg)
{
	struct numbers found = { .n = 0 };
	struct scratch room = { .sel_cap = 0 };

	authorized_collect(x, agent_id, &found);
	for (size_t i = 0; i < found.n; i++) {
		struct entry view;

		rec_view(x, x->recs[found.v[i]], &room, &view);
		fn(arg, &view);
	}
	scratch_deinit(&room);
	numbers_deinit(&found);
}

/* Has the id an alias that the node's selectors meet? Looks from the side that has less to look at.
 */
static bool reached_by_alias(
	const struct entries *x, uint32_t id, const struct noderec *n, uint32_t *n_posted)
{
	const struct idstr *s = id_of(x, id);

	if (s->n_alias == 0 || !n)
		return false;
	if (s->n_alias > ALIASES_FEW && *n_posted == UINT32_MAX) {
		*n_posted = 0;
		for (uint32_t i = 0; i < n->n_match; i++) {
			const struct hook *h = hook_find(x, n->match[i]);

			*n_posted += h ? h->n_alias : 0;
		}
	}
	if (s->n_alias <= *n_posted) {
		for (uint32_t a = s->alias; a; a = x->recs[a]->same_next)
			if (alias_matches(x->recs[a], n->match, n->n_match))
				return true;
		return false;
	}
	for (uint32_t i = 0; i < n->n_match; i++) {
		const struct hook *h = hook_find(x, n->match[i]);

		for (uint32_t a = h ? h->alias : 0; a; a = x->recs[a]->next)
			if (x->recs[a]->spiffe == id &&
				alias_matches(x->recs[a], n->match, n->n_match))
				return true;
	}
	return false;
}

static void climb_to(const struct entries *x, struct numbers *stack, uint32_t id)
{
	struct idstr *s = id_of(x, id);

	if (s->mark == x->mark)
		return;
	s->mark = x->mark;
	numbers_add(stack, id);
}

static bool is_authorized(const struct entries *x, uint32_t agent, const struct rec *r)
{
	uint32_t node = id_of(x, agent)->node;
	const struct noderec *n = node ? x->nodes[node] : NULL;
	uint32_t n_posted = UINT32_MAX; /* aliases posted under the node's selectors: not counted */
	struct numbers stack = { .n = 0 };
	bool found = false;

	/* An alias itself is nobody's to have. */
	if (is_alias(x, r))
		return false;
	if (r->parent == agent || reached_by_alias(x, r->parent, n, &n_posted))
		return true;
	walk_start(x);
	climb_to(x, &stack, r->parent);
	while (stack.n && !found) {
		uint32_t id = stack.v[--stack.n];

		found = id == agent || reached_by_alias(x, id, n, &n_posted);
		for (uint32_t p = id_of(x, id)->same; p && !found; p = x->recs[p]->same_next)
			climb_to(x, &stack, x->recs[p]->parent);
	}
	numbers_deinit(&stack);
	return found;
}

static uint32_t authorized_find(const struct entries *x, const char *agent_id, const char *entry_id)
{
	uint32_t num = rec_find(x, entry_id);
	uint32_t agent = num ? intern_find(&x->ids, bytes_str(agent_id)) : 0;

	return agent && is_authorized(x, agent, x->recs[num]) ? num : 0;
}

int entries_authorized_get(const struct entries *x, const char *agent_id, const char *entry_id,
	struct entry *ret, struct err *e)
{
	uint32_t num = authorized_find(x, agent_id, entry_id);
	struct entry view;

	if (!num)
		return err_set(e, ERR_NOT_FOUND, "entry not found or not authorized");
	rec_view(x, x->recs[num], &mutable(x)->view, &view);
	*ret = entry_dup(&view);
	return 0;
}

int entries_authorized_view(const struct entries *x, const char *agent_id, const char *entry_id,
	struct entry *ret, struct err *e)
{
	uint32_t num = authorized_find(x, agent_id, entry_id);

	if (!num)
		return err_set(e, ERR_NOT_FOUND, "entry not found or not authorized");
	rec_view(x, x->recs[num], &mutable(x)->view, ret);
	return 0;
}

static bool has_flag(const struct entries *x, const char *spiffe_id, unsigned flag)
{
	uint32_t id = intern_find(&x->ids, bytes_str(spiffe_id));

	if (!id)
		return false;
	for (uint32_t r = id_of(x, id)->same; r; r = x->recs[r]->same_next)
		if (x->recs[r]->flags & flag)
			return true;
	for (uint32_t r = id_of(x, id)->alias; r; r = x->recs[r]->same_next)
		if (x->recs[r]->flags & flag)
			return true;
	return false;
}

bool entries_is_admin(const struct entries *x, const char *spiffe_id)
{
	return has_flag(x, spiffe_id, REC_ADMIN);
}

bool entries_is_downstream(const struct entries *x, const char *spiffe_id)
{
	return has_flag(x, spiffe_id, REC_DOWNSTREAM);
}

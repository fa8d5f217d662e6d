#include "agent/cache_internal.h"

#include <stdlib.h>
#include <string.h>

/*
 * Each entry is filed under one of its selectors only, the rarest at that time, so that a caller's
 * match looks at few entries however many share "unix:uid:0", and at none of them twice.
 */

enum { SELECTOR_KEY_STACK = 512 };

static struct bytes selector_key(const struct selector *s, char *stack, char **heap)
{
	size_t t = strlen(s->type), v = strlen(s->value), n = t + 1 + v;
	char *p = stack;

	if (n > SELECTOR_KEY_STACK)
		p = *heap = xmalloc(n);
	memcpy(p, s->type, t);
	p[t] = '\0';
	memcpy(p + t + 1, s->value, v);
	return bytes_of(p, n);
}

static struct bucket *bucket_get(const struct cache *c, const struct selector *s, bool make)
{
	char stack[SELECTOR_KEY_STACK];
	AUTO(free) char *heap = NULL;
	struct bytes key = selector_key(s, stack, &heap);
	struct bucket *b = map_get(c->selectors, key);

	if (!b && make) {
		b = xcalloc(1, sizeof(*b));
		map_put(c->selectors, key, b);
	}
	return b;
}

void index_add_refs(struct cache *c, const struct entry *en)
{
	for (size_t i = 0; i < en->selectors.n; i++)
		bucket_get(c, &en->selectors.v[i], true)->refs++;
}

void index_drop_refs(struct cache *c, const struct entry *en)
{
	for (size_t i = 0; i < en->selectors.n; i++) {
		char stack[SELECTOR_KEY_STACK];
		AUTO(free) char *heap = NULL;
		struct bytes key = selector_key(&en->selectors.v[i], stack, &heap);
		struct bucket *b = map_get(c->selectors, key);

		INVARIANT(b && b->refs > 0);
		if (--b->refs)
			continue;
		INVARIANT(b->n == 0);
		map_del(c->selectors, key);
		free(b->v);
		free(b);
	}
}

void index_anchor(struct cache *c, struct record *r)
{
	struct bucket *best = NULL;

	for (size_t i = 0; i < r->entry.selectors.n; i++) {
		struct bucket *b = bucket_get(c, &r->entry.selectors.v[i], false);

		if (!best || b->refs < best->refs)
			best = b;
	}
	if (!best) /* no selectors: it can match nobody */
		return;
	if (best->n == best->cap) {
		best->cap = best->cap ? 2 * best->cap : 1;
		best->v = xreallocarray(best->v, best->cap, sizeof(struct record *));
	}
	r->anchor = best;
	r->anchor_at = best->n;
	best->v[best->n++] = r;
}

void index_unanchor(struct record *r)
{
	struct bucket *b = r->anchor;

	if (!b)
		return;
	b->v[r->anchor_at] = b->v[--b->n];
	b->v[r->anchor_at]->anchor_at = r->anchor_at;
	r->anchor = NULL;
}

void index_match(const struct cache *c, const struct selectors *s,
	void (*fn)(void *arg, struct record *r), void *arg)
{
	for (size_t i = 0; i < s->n; i++) {
		struct bucket *b = bucket_get(c, &s->v[i], false);

		for (size_t k = 0; b && k < b->n; k++) {
			if (selectors_subset(&b->v[k]->entry.selectors, s))
				fn(arg, b->v[k]);
		}
	}
}

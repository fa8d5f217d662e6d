/* Lists in the order of creation, page by page. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "server/entries_internal.h"

/* ---- numbers in order of their keys: a row of chunks, each in order ---- */

enum { CHUNK = 512 };

struct sorted_chunk {
	uint32_t n;
	uint32_t v[CHUNK];
};

struct place { /* in a struct sorted */
	size_t chunk;
	uint32_t i;
};

void sorted_deinit(struct sorted *s)
{
	for (size_t i = 0; i < s->n; i++)
		free(s->v[i]);
	free(s->v);
	*s = (struct sorted){ .n = 0 };
}

static void chunk_insert(struct sorted *s, size_t at)
{
	if (s->n == s->cap) {
		s->cap = s->cap ? s->cap * 2 : 16;
		s->v = xreallocarray(s->v, s->cap, sizeof(s->v[0]));
	}
	memmove(s->v + at + 1, s->v + at, (s->n - at) * sizeof(s->v[0]));
	s->v[at] = xmalloc(sizeof(*s->v[at]));
	s->v[at]->n = 0;
	s->n++;
}

/* The first number whose key is not before `wanted` (or, with after, is behind it). */
static struct place seek(const struct sorted *s, const struct entries *x, sorted_key *key,
	int64_t wanted, bool after)
{
	struct place p = { .chunk = 0 };
	size_t lo = 0;
	size_t hi = s->n;
	uint32_t a = 0;
	uint32_t b;

	while (lo < hi) { /* the first chunk whose last key is not before it */
		size_t mid = lo + (hi - lo) / 2;
		const struct sorted_chunk *c = s->v[mid];
		int64_t k = key(x, c->v[c->n - 1]);

		if (k < wanted || (after && k == wanted))
			lo = mid + 1;
		else
			hi = mid;
	}
	p.chunk = lo;
	if (lo == s->n)
		return p;
	for (b = s->v[lo]->n; a < b;) {
		uint32_t mid = a + (b - a) / 2;
		int64_t k = key(x, s->v[lo]->v[mid]);

		if (k < wanted || (after && k == wanted))
			a = mid + 1;
		else
			b = mid;
	}
	p.i = a;
	return p;
}

static void put_at(struct sorted_chunk *c, uint32_t i, uint32_t num)
{
	memmove(c->v + i + 1, c->v + i, (c->n - i) * sizeof(c->v[0]));
	c->v[i] = num;
	c->n++;
}

void sorted_add(struct sorted *s, const struct entries *x, sorted_key *key, uint32_t num)
{
	struct place p;
	struct sorted_chunk *c;

	if (!s->valid)
		return;
	p = seek(s, x, key, key(x, num), false);
	if (p.chunk == s->n && s->n > 0) /* behind all others */
		p = (struct place){ .chunk = s->n - 1, .i = s->v[s->n - 1]->n };
	if (s->n == 0)
		chunk_insert(s, 0);
	c = s->v[p.chunk];
	if (c->n == CHUNK) {
		struct sorted_chunk *d;

		chunk_insert(s, p.chunk + 1);
		d = s->v[p.chunk + 1];
		d->n = CHUNK / 2;
		c->n = CHUNK - CHUNK / 2;
		memcpy(d->v, c->v + c->n, d->n * sizeof(d->v[0]));
		if (p.i > c->n) {
			p.i -= c->n;
			c = d;
		}
	}
	put_at(c, p.i, num);
}

void sorted_del(struct sorted *s, const struct entries *x, sorted_key *key, uint32_t num)
{
	struct place p;
	struct sorted_chunk *c;

	if (!s->valid)
		return;
	p = seek(s, x, key, key(x, num), false);
	INVARIANT(p.chunk < s->n && s->v[p.chunk]->v[p.i] == num);
	c = s->v[p.chunk];
	memmove(c->v + p.i, c->v + p.i + 1, (c->n - p.i - 1) * sizeof(c->v[0]));
	if (--c->n > 0)
		return;
	free(c);
	memmove(s->v + p.chunk, s->v + p.chunk + 1, (s->n - p.chunk - 1) * sizeof(s->v[0]));
	s->n--;
}

/* ---- building them at the first list, from all there is ---- */

struct item {
	int64_t key;
	uint32_t num;
};

static int compare_items(const void *a, const void *b)
{
	const struct item *p = a;
	const struct item *q = b;

	return p->key < q->key ? -1 : p->key > q->key;
}

static void sorted_build(struct sorted *s, struct item *v, size_t n)
{
	qsort(v, n, sizeof(v[0]), compare_items);
	for (size_t i = 0; i < n; i++) {
		/* Chunks begin three quarters full: room for what comes later. */
		if (i % (CHUNK / 4 * 3) == 0)
			chunk_insert(s, s->n);
		s->v[s->n - 1]->v[s->v[s->n - 1]->n++] = v[i].num;
	}
	s->valid = true;
}

static int64_t key_of_rec(const struct entries *x, uint32_t num)
{
	return x->recs[num]->num;
}

static int64_t key_of_node(const struct entries *x, uint32_t num)
{
	return x->nodes[num]->num;
}

static const struct sorted *sorted_recs(const struct entries *cx)
{
	struct entries *x = (struct entries *)(uintptr_t)cx;
	struct item *v;
	size_t n = 0;

	if (x->sorted.valid)
		return &x->sorted;
	v = xreallocarray(NULL, (size_t)x->n_live + 1, sizeof(v[0]));
	for (uint32_t i = 1; i < x->n_recs; i++)
		if (!((uintptr_t)x->recs[i] & 1) && !(x->recs[i]->flags & REC_DEAD))
			v[n++] = (struct item){ .key = key_of_rec(x, i), .num = i };
	INVARIANT(n == x->n_live);
	sorted_build(&x->sorted, v, n);
	free(v);
	return &x->sorted;
}

static const struct sorted *sorted_nodes(const struct entries *cx)
{
	struct entries *x = (struct entries *)(uintptr_t)cx;
	struct item *v;
	size_t n = 0;

	if (x->sorted_nodes.valid)
		return &x->sorted_nodes;
	v = xreallocarray(NULL, (size_t)x->n_nodes + 1, sizeof(v[0]));
	for (uint32_t i = 1; i < x->n_node_slots; i++)
		if (!((uintptr_t)x->nodes[i] & 1))
			v[n++] = (struct item){ .key = key_of_node(x, i), .num = i };
	sorted_build(&x->sorted_nodes, v, n);
	free(v);
	return &x->sorted_nodes;
}

/* ---- filters ---- */

/* Sets of sizes a (what the entry has) and b (what is asked for), of which `common` are in both. */
static bool match(enum match how, size_t a, size_t b, size_t common)
{
	switch (how) {
	case MATCH_EXACT:
		return common == a && common == b;
	case MATCH_SUBSET: /* of nothing is none: what has nothing does not match */
		return common == a && common > 0;
	case MATCH_SUPERSET:
		return common == b;
	case MATCH_ANY:
	default:
		return common > 0;
	}
}

struct wanted { /* a filter, with its selectors by number */
	const struct entries *x;
	const struct entries_filter *f;
	const struct nodes_filter *nf;
	uint32_t spiffe, parent;
	uint32_t *sel; /* 0: a selector that nothing has */
	size_t n_sel;
	bool none; /* names an id that nothing has */
};

static void want_selectors(struct wanted *w, const struct selectors *s)
{
	w->sel = xreallocarray(NULL, s->n, sizeof(w->sel[0]));
	for (size_t i = 0; i < s->n; i++) {
		bool again = false;

		for (size_t j = 0; j < i && !again; j++)
			again = selector_compare(&s->v[i], &s->v[j]) == 0;
		if (!again)
			w->sel[w->n_sel++] = selector_find(w->x, &s->v[i]);
	}
}

static bool selectors_match(const struct wanted *w, enum match how, const uint32_t *sel, uint32_t n)
{
	size_t common = 0;

	for (size_t i = 0; i < w->n_sel; i++)
		for (uint32_t j = 0; j < n; j++)
			if (w->sel[i] == sel[j]) {
				common++;
				break;
			}
	return match(how, n, w->n_sel, common);
}

static bool federates_match(const struct entries_filter *f, const struct entry *en)
{
	size_t common = 0;

	for (size_t i = 0; i < f->federates_with->n; i++)
		if (strings_has(&en->federates_with, f->federates_with->v[i]))
			common++;
	return match(f->federates_match, en->federates_with.n, f->federates_with->n, common);
}

/* All but what needs the texts. */
static bool rec_wanted(const struct wanted *w, const struct rec *r)
{
	const struct entries_filter *f = w->f;

	if (w->spiffe && r->spiffe != w->spiffe)
		return false;
	if (w->parent && r->parent != w->parent)
		return false;
	if (f->downstream >= 0 && (f->downstream != 0) != ((r->flags & REC_DOWNSTREAM) != 0))
		return false;
	return !f->selectors || selectors_match(w, f->selectors_match, r->sel, r->n_sel);
}

static bool entry_wanted(const struct entries_filter *f, const struct entry *en)
{
	if (f->hint && strcmp(f->hint, en->hint) != 0)
		return false;
	return !f->federates_with || federates_match(f, en);
}

static bool want_id(const struct entries *x, const char *text, uint32_t *ret)
{
	if (!text)
		return true;
	*ret = intern_find(&x->ids, bytes_str(text));
	return *ret != 0;
}

/* ---- entries ---- */

/* When a filter names an id, only its own records are looked at, unless they are so many that the
 * order of all is the better way. */
enum { GATHER_MAX = 4096 };

static bool gather_chain(const struct entries *x, uint32_t first, bool same, struct numbers *ret)
{
	for (uint32_t r = first; r; r = same ? x->recs[r]->same_next : x->recs[r]->next) {
		if (ret->n == GATHER_MAX)
			return false;
		numbers_add(ret, r);
	}
	return true;
}

static bool gather(const struct wanted *w, struct numbers *ret)
{
	const struct entries *x = w->x;

	if (w->spiffe && gather_chain(x, id_of(x, w->spiffe)->same, true, ret) &&
		gather_chain(x, id_of(x, w->spiffe)->alias, true, ret))
		return true;
	ret->n = 0;
	/* Aliases are not among the children of the server's id. */
	return w->parent && w->parent != x->server_id &&
	       gather_chain(x, id_of(x, w->parent)->child, false, ret);
}

struct pager {
	bool (*fn)(void *arg, const struct entry *en);
	void *arg;
	struct scratch room;
	uint32_t last;
	bool full;
};

static void page_rec(struct pager *p, const struct wanted *w, uint32_t num)
{
	struct entry view;

	if (!rec_wanted(w, w->x->recs[num]))
		return;
	rec_view(w->x, w->x->recs[num], &p->room, &view);
	if (!entry_wanted(w->f, &view))
		return;
	if (p->fn(p->arg, &view))
		p->last = num;
	else
		p->full = true;
}

static void list_gathered(
	struct pager *p, const struct wanted *w, const struct numbers *found, int64_t after)
{
	struct item *v = xreallocarray(NULL, found->n, sizeof(v[0]));

	for (size_t i = 0; i < found->n; i++)
		v[i] = (struct item){ .key = key_of_rec(w->x, found->v[i]), .num = found->v[i] };
	qsort(v, found->n, sizeof(v[0]), compare_items);
	for (size_t i = 0; i < found->n && !p->full; i++)
		if (v[i].key > after)
			page_rec(p, w, v[i].num);
	free(v);
}

static void list_all(struct pager *p, const struct wanted *w, int64_t after)
{
	const struct sorted *s = sorted_recs(w->x);
	struct place at = seek(s, w->x, key_of_rec, after, true);

	for (; at.chunk < s->n && !p->full; at.chunk++, at.i = 0)
		for (; at.i < s->v[at.chunk]->n && !p->full; at.i++)
			page_rec(p, w, s->v[at.chunk]->v[at.i]);
}

static int parse_token(const char *token, int64_t *ret, struct err *e)
{
	char *end;
	long long v;

	*ret = 0;
	if (!token || !token[0])
		return 0;
	errno = 0;
	v = strtoll(token, &end, 10);
	if (errno || *end || token[0] < '0' || token[0] > '9')
		return err_set(e, ERR_INTERNAL, "could not parse token '%.100s'", token);
	*ret = v;
	return 0;
}

static char *token_of(int64_t num)
{
	return xasprintf("%" PRId64, num);
}

int entries_list(const struct entries *x, const struct entries_filter *f, const char *token,
	bool (*fn)(void *arg, const struct entry *en), void *arg, char **ret_token, struct err *e)
{
	struct wanted w = { .x = x, .f = f };
	struct pager p = { .fn = fn, .arg = arg };
	struct numbers found = { .n = 0 };
	int64_t from;

	if (parse_token(token, &from, e))
		return e->code;
	if (want_id(x, f->spiffe_id, &w.spiffe) && want_id(x, f->parent_id, &w.parent)) {
		if (f->selectors)
			want_selectors(&w, f->selectors);
		if (gather(&w, &found))
			list_gathered(&p, &w, &found, from);
		else
			list_all(&p, &w, from);
	}
	*ret_token = NULL;
	if (p.full)
		*ret_token = token_of(p.last ? key_of_rec(x, p.last) : from);
	free(w.sel);
	numbers_deinit(&found);
	scratch_deinit(&p.room);
	return 0;
}

/* ---- nodes ---- */

static bool node_wanted(const struct wanted *w, const struct noderec *n)
{
	const struct nodes_filter *f = w->nf;
	bool banned = !n->serial[0] && !n->new_serial[0];

	if (f->attestation_type && strcmp(f->attestation_type, n->type) != 0)
		return false;
	if (f->banned >= 0 && (f->banned != 0) != banned)
		return false;
	if (f->can_reattest >= 0 && (f->can_reattest != 0) != n->can_reattest)
		return false;
	if (f->expires_before && n->expires_at >= f->expires_before)
		return false;
	return !f->selectors || selectors_match(w, f->selectors_match, n->sel, n->n_sel);
}

int entries_list_nodes(const struct entries *x, const struct nodes_filter *f, const char *token,
	bool (*fn)(void *arg, const struct node *n), void *arg, char **ret_token, struct err *e)
{
	const struct sorted *s = sorted_nodes(x);
	struct wanted w = { .x = x, .nf = f };
	struct scratch room = { .sel_cap = 0 };
	struct place at;
	int64_t last;
	bool full = false;

	if (parse_token(token, &last, e))
		return e->code;
	if (f->selectors)
		want_selectors(&w, f->selectors);
	at = seek(s, x, key_of_node, last, true);
	for (; at.chunk < s->n && !full; at.chunk++, at.i = 0)
		for (; at.i < s->v[at.chunk]->n && !full; at.i++) {
			const struct noderec *n = x->nodes[s->v[at.chunk]->v[at.i]];
			struct node view;

			if (!node_wanted(&w, n))
				continue;
			node_view(x, n, &room, &view);
			if (fn(arg, &view))
				last = n->num;
			else
				full = true;
		}
	*ret_token = full ? token_of(last) : NULL;
	free(w.sel);
	scratch_deinit(&room);
	return 0;
}

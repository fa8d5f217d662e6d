#include "server/entries.h"

#include <stdlib.h>
#include <string.h>

#include "server/entries_internal.h"

/* Marks of a walk and scratch room change while the index, seen from outside, does not. */
static struct entries *mutable(const struct entries *x)
{
	return (struct entries *)(uintptr_t)x;
}

static void *room(void *v, uint32_t *cap, uint32_t n, size_t size)
{
	if (n < *cap)
		return v;
	*cap = *cap ? *cap + *cap / 2 : 64;
	return xreallocarray(v, *cap, size);
}

/* ---- making and freeing ---- */

struct entries *entries_new(const char *trust_domain, bool agent_id_as_selector)
{
	struct entries *x = xcalloc(1, sizeof(*x));
	AUTO(free) char *server = xasprintf("spiffe://%s/spire/server", trust_domain);

	x->trust_domain = xstrdup(trust_domain);
	x->agent_id_as_selector = agent_id_as_selector;
	x->key = BUF_INIT;
	intern_init(&x->ids, sizeof(struct idstr));
	intern_init(&x->selectors, sizeof(struct selstr));
	x->server_id = intern_get(&x->ids, bytes_str(server));
	x->n_recs = x->n_node_slots = x->n_hooks = x->n_agent_slots = 1;
	x->tombs = NULL;
	list_init(&x->pending);
	list_init(&x->parked);
	return x;
}

static void noderec_free(struct noderec *n)
{
	if (!n)
		return;
	free(n->sel);
	free(n->match);
	free(n->type);
	free(n);
}

void entries_free(struct entries *x)
{
	if (!x)
		return;
	watch_deinit(x);
	for (uint32_t i = 1; i < x->n_recs; i++)
		if (!((uintptr_t)x->recs[i] & 1))
			free(x->recs[i]);
	for (uint32_t i = 1; i < x->n_node_slots; i++)
		if (!((uintptr_t)x->nodes[i] & 1))
			noderec_free(x->nodes[i]);
	for (uint32_t i = 1; i < x->n_hooks; i++)
		free(x->hooks[i].agents);
	free(x->recs);
	free(x->nodes);
	free(x->hooks);
	table_deinit(&x->by_id);
	sorted_deinit(&x->sorted);
	sorted_deinit(&x->sorted_nodes);
	intern_deinit(&x->ids);
	intern_deinit(&x->selectors);
	scratch_deinit(&x->view);
	buf_deinit(&x->key);
	free(x->trust_domain);
	free(x);
}

void entries_set_change(struct entries *x, uint64_t change)
{
	x->change = change;
}

uint64_t entries_change(const struct entries *x)
{
	return x->change;
}

size_t entries_count(const struct entries *x)
{
	return x->n_live;
}

size_t entries_count_nodes(const struct entries *x)
{
	return x->n_nodes;
}

/* ---- selectors by number ---- */

static struct bytes selector_key(struct entries *x, const struct selector *s)
{
	buf_reset(&x->key);
	buf_str(&x->key, s->type);
	buf_byte(&x->key, 0);
	buf_str(&x->key, s->value);
	INVARIANT(!x->key.failed);
	return buf_view(&x->key);
}

uint32_t selector_find(const struct entries *x, const struct selector *s)
{
	return intern_find(&x->selectors, selector_key(mutable(x), s));
}

static struct selector selector_view(const struct entries *x, uint32_t num)
{
	char *type = intern_text(&x->selectors, num);

	return (struct selector){ .type = type, .value = type + strlen(type) + 1 };
}

static struct selstr *sel_of(const struct entries *x, uint32_t num)
{
	return (struct selstr *)x->selectors.v[num];
}

struct hook *hook_find(const struct entries *x, uint32_t selector)
{
	uint32_t h = selector ? sel_of(x, selector)->hook : 0;

	return h ? &x->hooks[h] : NULL;
}

struct hook *hook_of(struct entries *x, uint32_t selector)
{
	struct selstr *s = sel_of(x, selector);

	if (!s->hook) {
		uint32_t h = x->free_hook;

		if (h) {
			x->free_hook = x->hooks[h].n_alias;
		} else {
			x->hooks = room(x->hooks, &x->cap_hooks, x->n_hooks, sizeof(x->hooks[0]));
			h = x->n_hooks++;
		}
		x->hooks[h] = (struct hook){ .used = true };
		s->hook = h;
	}
	return &x->hooks[s->hook];
}

void hook_release(struct entries *x, uint32_t selector)
{
	struct selstr *s = sel_of(x, selector);
	struct hook *h = &x->hooks[s->hook];

	if (h->n_alias || h->n_agents)
		return;
	free(h->agents);
	*h = (struct hook){ .n_alias = x->free_hook };
	x->free_hook = s->hook;
	s->hook = 0;
}

static int compare_numbers(const void *a, const void *b)
{
	uint32_t p = *(const uint32_t *)a;
	uint32_t q = *(const uint32_t *)b;

	return p < q ? -1 : p > q;
}

static bool has_number(const uint32_t *v, size_t n, uint32_t num)
{
	while (n) {
		size_t half = n / 2;

		if (v[half] == num)
			return true;
		if (v[half] < num) {
			v += half + 1;
			n -= half + 1;
		} else {
			n = half;
		}
	}
	return false;
}

bool alias_matches(const struct rec *alias, const uint32_t *sel, size_t n)
{
	if (alias->n_sel == 0 || alias->n_sel > n)
		return false;
	for (uint32_t i = 0; i < alias->n_sel; i++)
		if (!has_number(sel, n, alias->sel[i]))
			return false;
	return true;
}

/* ---- records ---- */

static bool rec_id_eq(const void *ctx, uint32_t num, struct bytes key)
{
	const struct entries *x = ctx;
	const char *id = rec_id(x->recs[num]);

	return strncmp(id, (const char *)key.p, key.n) == 0 && id[key.n] == 0;
}

static uint32_t id_hash(const struct entries *x, const char *id)
{
	return intern_hash(&x->ids, bytes_str(id));
}

uint32_t rec_find(const struct entries *x, const char *id)
{
	return table_find(&x->by_id, id_hash(x, id), rec_id_eq, x, bytes_str(id));
}

static size_t text_size(const struct entry *en)
{
	size_t n = strlen(en->id) + 1 + strlen(en->hint ? en->hint : "") + 1;

	for (size_t i = 0; i < en->federates_with.n; i++)
		n += strlen(en->federates_with.v[i]) + 1;
	for (size_t i = 0; i < en->dns_names.n; i++)
		n += strlen(en->dns_names.v[i]) + 1;
	return n;
}

static char *put_text(char *p, const char *s)
{
	size_t n = strlen(s) + 1;

	memcpy(p, s, n);
	return p + n;
}

static unsigned flags_of(const struct entry *en)
{
	return (en->admin ? REC_ADMIN : 0) | (en->downstream ? REC_DOWNSTREAM : 0) |
	       (en->store_svid ? REC_STORE_SVID : 0) |
	       (en->disable_x509_svid_prefetch ? REC_NO_PREFETCH : 0) |
	       (en->jwt_svid_include_jti ? REC_JTI : 0) |
	       (en->has_additional_attributes ? REC_ATTRIBUTES : 0);
}

static struct rec *rec_new(struct entries *x, const struct entry *en)
{
	size_t n_sel = en->selectors.n;
	struct rec *r = xmalloc(sizeof(*r) + n_sel * sizeof(r->sel[0]) + text_size(en));
	char *p;

	*r = (struct rec){
		.spiffe = intern_get(&x->ids, bytes_str(en->spiffe_id)),
		.parent = intern_get(&x->ids, bytes_str(en->parent_id)),
		.version = ++x->version,
		.revision = en->revision_number,
		.created_at = en->created_at,
		.expires_at = en->expires_at,
		.x509_ttl = en->x509_svid_ttl,
		.jwt_ttl = en->jwt_svid_ttl,
		.n_sel = (uint32_t)n_sel,
		.n_fed = (uint32_t)en->federates_with.n,
		.n_dns = (uint32_t)en->dns_names.n,
		.flags = flags_of(en),
	};
	for (size_t i = 0; i < n_sel; i++)
		r->sel[i] = intern_get(&x->selectors, selector_key(x, &en->selectors.v[i]));
	p = put_text(rec_id(r), en->id);
	p = put_text(p, en->hint ? en->hint : "");
	for (size_t i = 0; i < en->federates_with.n; i++)
		p = put_text(p, en->federates_with.v[i]);
	for (size_t i = 0; i < en->dns_names.n; i++)
		p = put_text(p, en->dns_names.v[i]);
	return r;
}

/* Gives back the strings; the record itself may live on as a tombstone. */
static void rec_release(struct entries *x, const struct rec *r)
{
	intern_unref(&x->ids, r->spiffe);
	intern_unref(&x->ids, r->parent);
	for (uint32_t i = 0; i < r->n_sel; i++)
		intern_unref(&x->selectors, r->sel[i]);
}

void rec_free(struct entries *x, uint32_t num)
{
	free(x->recs[num]);
	x->recs[num] = (struct rec *)(((uintptr_t)x->free_rec << 1) | 1);
	x->free_rec = num;
}

static uint32_t rec_number(struct entries *x)
{
	uint32_t num = x->free_rec;

	if (num) {
		x->free_rec = (uint32_t)((uintptr_t)x->recs[num] >> 1);
		return num;
	}
	x->recs = room(x->recs, &x->cap_recs, x->n_recs, sizeof(x->recs[0]));
	return x->n_recs++;
}

static void scratch_room(struct scratch *s, size_t n_sel, size_t n_text)
{
	if (n_sel > s->sel_cap) {
		s->sel_cap = n_sel * 2;
		s->sel = xreallocarray(s->sel, s->sel_cap, sizeof(s->sel[0]));
	}
	if (n_text > s->text_cap) {
		s->text_cap = n_text * 2;
		s->text = xreallocarray(s->text, s->text_cap, sizeof(s->text[0]));
	}
}

static void view_fields(const struct entries *x, const struct rec *r, struct entry *ret)
{
	*ret = (struct entry){
		.num = r->num,
		.id = rec_id(r),
		.spiffe_id = intern_text(&x->ids, r->spiffe),
		.parent_id = intern_text(&x->ids, r->parent),
		.x509_svid_ttl = r->x509_ttl,
		.jwt_svid_ttl = r->jwt_ttl,
		.admin = r->flags & REC_ADMIN,
		.downstream = r->flags & REC_DOWNSTREAM,
		.store_svid = r->flags & REC_STORE_SVID,
		.disable_x509_svid_prefetch = r->flags & REC_NO_PREFETCH,
		.jwt_svid_include_jti = r->flags & REC_JTI,
		.has_additional_attributes = r->flags & REC_ATTRIBUTES,
		.expires_at = r->expires_at,
		.revision_number = r->revision,
		.created_at = r->created_at,
	};
}

static void view_texts(const struct rec *r, struct scratch *s, struct entry *ret)
{
	char *p = ret->id + strlen(ret->id) + 1;

	scratch_room(s, 0, (size_t)r->n_fed + r->n_dns);
	ret->hint = p;
	for (uint32_t i = 0; i < r->n_fed + r->n_dns; i++) {
		p += strlen(p) + 1;
		s->text[i] = p;
	}
	ret->federates_with = (struct strings){ .v = s->text, .n = r->n_fed };
	ret->dns_names = (struct strings){
		.v = s->text ? s->text + r->n_fed : NULL,
		.n = r->n_dns,
	};
}

void rec_view(const struct entries *x, const struct rec *r, struct scratch *s, struct entry *ret)
{
	view_fields(x, r, ret);
	view_texts(r, s, ret);
	scratch_room(s, r->n_sel, 0);
	for (uint32_t i = 0; i < r->n_sel; i++)
		s->sel[i] = selector_view(x, r->sel[i]);
	ret->selectors = (struct selectors){ .v = s->sel, .n = r->n_sel };
}

/* ---- the lists that records are in ---- */

static void push(struct entries *x, uint32_t *head, uint32_t num)
{
	struct rec *r = x->recs[num];

	r->next = *head;
	r->prev = 0;
	if (*head)
		x->recs[*head]->prev = num;
	*head = num;
}

static void pull(struct entries *x, uint32_t *head, const struct rec *r)
{
	if (r->prev)
		x->recs[r->prev]->next = r->next;
	else
		*head = r->next;
	if (r->next)
		x->recs[r->next]->prev = r->prev;
}

static void push_same(struct entries *x, uint32_t *head, uint32_t num)
{
	struct rec *r = x->recs[num];

	r->same_next = *head;
	r->same_prev = 0;
	if (*head)
		x->recs[*head]->same_prev = num;
	*head = num;
}

static void pull_same(struct entries *x, uint32_t *head, const struct rec *r)
{
	if (r->same_prev)
		x->recs[r->same_prev]->same_next = r->same_next;
	else
		*head = r->same_next;
	if (r->same_next)
		x->recs[r->same_next]->same_prev = r->same_prev;
}

/* An alias is posted under the one of its selectors that has the fewest so far: looking up a node's
 * selectors then finds few that do not match. */
static void post_alias(struct entries *x, uint32_t num)
{
	struct rec *r = x->recs[num];
	uint32_t best = 0;
	uint32_t best_n = UINT32_MAX;
	struct hook *h;

	for (uint32_t i = 0; i < r->n_sel; i++) {
		const struct hook *c = hook_find(x, r->sel[i]);
		uint32_t n = c ? c->n_alias : 0;

		if (n < best_n) {
			best = r->sel[i];
			best_n = n;
		}
	}
	r->posted = best;
	if (!best)
		return;
	h = hook_of(x, best);
	h->n_alias++;
	push(x, &h->alias, num);
}

static void unpost_alias(struct entries *x, const struct rec *r)
{
	struct hook *h;

	if (!r->posted)
		return;
	h = hook_find(x, r->posted);
	pull(x, &h->alias, r);
	h->n_alias--;
	hook_release(x, r->posted);
}

static void rec_link(struct entries *x, uint32_t num)
{
	struct rec *r = x->recs[num];
	struct idstr *id = id_of(x, r->spiffe);

	if (is_alias(x, r)) {
		push_same(x, &id->alias, num);
		id->n_alias++;
		post_alias(x, num);
		return;
	}
	push_same(x, &id->same, num);
	push(x, &id_of(x, r->parent)->child, num);
	id_of(x, r->parent)->n_child++;
}

static void rec_unlink(struct entries *x, uint32_t num)
{
	const struct rec *r = x->recs[num];
	struct idstr *id = id_of(x, r->spiffe);

	if (is_alias(x, r)) {
		pull_same(x, &id->alias, r);
		id->n_alias--;
		unpost_alias(x, r);
		return;
	}
	pull_same(x, &id->same, r);
	pull(x, &id_of(x, r->parent)->child, r);
	id_of(x, r->parent)->n_child--;
}

static int64_t key_of_rec(const struct entries *x, uint32_t num)
{
	return x->recs[num]->num;
}

/* An object's place in the order of creation, which it keeps. */
static int64_t number(int64_t *last, int64_t known)
{
	if (!known)
		known = *last + 1;
	if (known > *last)
		*last = known;
	return known;
}

void entries_put(struct entries *x, const struct entry *en)
{
	uint32_t num = rec_find(x, en->id);
	struct rec *old = num ? x->recs[num] : NULL;
	struct rec *r = rec_new(x, en);

	r->num = number(&x->last_num, old ? old->num : en->num);
	if (old) {
		watch_touch(x, old);
		rec_unlink(x, num);
		rec_release(x, old);
		free(old);
		x->recs[num] = r;
	} else {
		num = rec_number(x);
		x->recs[num] = r;
		table_add(&x->by_id, id_hash(x, en->id), num);
		sorted_add(&x->sorted, x, key_of_rec, num);
		x->n_live++;
	}
	rec_link(x, num);
	watch_touch(x, r);
	watch_flush(x);
}

void entries_remove(struct entries *x, const char *entry_id)
{
	uint32_t num = rec_find(x, entry_id);
	struct rec *r;

	if (!num)
		return;
	r = x->recs[num];
	watch_touch(x, r);
	rec_unlink(x, num);
	table_del(&x->by_id, id_hash(x, entry_id), num);
	sorted_del(&x->sorted, x, key_of_rec, num);
	x->n_live--;
	rec_release(x, r);
	r->flags |= REC_DEAD;
	watch_bury(x, num);
	watch_flush(x);
}

int entries_get(const struct entries *x, const char *entry_id, struct entry *ret, struct err *e)
{
	uint32_t num = rec_find(x, entry_id);
	struct entry view;

	if (!num)
		return err_set(e, ERR_NOT_FOUND, "entry not found");
	rec_view(x, x->recs[num], &mutable(x)->view, &view);
	*ret = entry_dup(&view);
	return 0;
}

/* ---- nodes ---- */

static uint32_t node_number(struct entries *x)
{
	uint32_t num = x->free_node;

	if (num) {
		x->free_node = (uint32_t)((uintptr_t)x->nodes[num] >> 1);
		return num;
	}
	x->nodes = room(x->nodes, &x->cap_nodes, x->n_node_slots, sizeof(x->nodes[0]));
	return x->n_node_slots++;
}

static void node_match_numbers(struct entries *x, struct noderec *n)
{
	n->n_match = n->n_sel;
	n->match = xreallocarray(NULL, (size_t)n->n_sel + 1, sizeof(n->match[0]));
	if (n->n_sel)
		memcpy(n->match, n->sel, n->n_sel * sizeof(n->sel[0]));
	if (x->agent_id_as_selector) {
		char type[] = "spiffe_id";
		struct selector own = { .type = type, .value = intern_text(&x->ids, n->id) };

		n->match[n->n_match++] = intern_get(&x->selectors, selector_key(x, &own));
	}
	qsort(n->match, n->n_match, sizeof(n->match[0]), compare_numbers);
}

static struct noderec *noderec_new(struct entries *x, const struct node *src)
{
	struct noderec *n = xcalloc(1, sizeof(*n));
	char *p = xmalloc(strlen(src->attestation_type) + strlen(src->serial) +
			  strlen(src->new_serial) + strlen(src->agent_version) + 4);

	n->id = intern_get(&x->ids, bytes_str(src->spiffe_id));
	n->can_reattest = src->can_reattest;
	n->expires_at = src->expires_at;
	n->new_expires_at = src->new_expires_at;
	n->n_sel = (uint32_t)src->selectors.n;
	n->sel = xreallocarray(NULL, src->selectors.n, sizeof(n->sel[0]));
	for (size_t i = 0; i < src->selectors.n; i++)
		n->sel[i] = intern_get(&x->selectors, selector_key(x, &src->selectors.v[i]));
	node_match_numbers(x, n);
	n->type = p;
	n->serial = p = put_text(p, src->attestation_type);
	n->new_serial = p = put_text(p, src->serial);
	n->agent_version = p = put_text(p, src->new_serial);
	put_text(p, src->agent_version);
	return n;
}

static void noderec_release(struct entries *x, struct noderec *n)
{
	/* The agent's id as a selector is the one number of match that sel does not count, unless
	 * the node had it anyway: then it is in match twice, and counted twice. */
	for (uint32_t i = 0; i < n->n_match; i++)
		intern_unref(&x->selectors, n->match[i]);
	intern_unref(&x->ids, n->id);
	noderec_free(n);
}

static int64_t key_of_node(const struct entries *x, uint32_t num)
{
	return x->nodes[num]->num;
}

static bool same_numbers(const struct noderec *a, const struct noderec *b)
{
	return a->n_match == b->n_match &&
	       (a->n_match == 0 ||
		       memcmp(a->match, b->match, a->n_match * sizeof(a->match[0])) == 0);
}

void entries_put_node(struct entries *x, const struct node *src)
{
	struct noderec *n = noderec_new(x, src);
	uint32_t num = id_of(x, n->id)->node;
	bool changed = true;

	if (num) {
		struct noderec *old = x->nodes[num];

		n->num = old->num;
		changed = !same_numbers(old, n);
		x->nodes[num] = n;
		noderec_release(x, old);
	} else {
		n->num = number(&x->last_node_num, src->num);
		num = node_number(x);
		x->nodes[num] = n;
		id_of(x, n->id)->node = num;
		sorted_add(&x->sorted_nodes, x, key_of_node, num);
		x->n_nodes++;
	}
	if (changed)
		watch_node(x, n->id);
	watch_flush(x);
}

static uint32_t node_find(const struct entries *x, const char *spiffe_id)
{
	uint32_t id = intern_find(&x->ids, bytes_str(spiffe_id));

	return id ? id_of(x, id)->node : 0;
}

void entries_remove_node(struct entries *x, const char *spiffe_id)
{
	uint32_t num = node_find(x, spiffe_id);
	struct noderec *n;
	uint32_t id;

	if (!num)
		return;
	n = x->nodes[num];
	id = n->id;
	sorted_del(&x->sorted_nodes, x, key_of_node, num);
	id_of(x, id)->node = 0;
	x->n_nodes--;
	x->nodes[num] = (struct noderec *)(((uintptr_t)x->free_node << 1) | 1);
	x->free_node = num;
	intern_ref(&x->ids, id);
	noderec_release(x, n);
	watch_node(x, id);
	watch_flush(x);
	intern_unref(&x->ids, id);
}

static void node_fields(const struct entries *x, const struct noderec *n, struct node *ret)
{
	*ret = (struct node){
		.num = n->num,
		.spiffe_id = intern_text(&x->ids, n->id),
		.attestation_type = n->type,
		.serial = n->serial,
		.expires_at = n->expires_at,
		.new_serial = n->new_serial,
		.new_expires_at = n->new_expires_at,
		.can_reattest = n->can_reattest,
		.agent_version = n->agent_version,
	};
}

void node_view(
	const struct entries *x, const struct noderec *n, struct scratch *s, struct node *ret)
{
	node_fields(x, n, ret);
	scratch_room(s, n->n_sel, 0);
	for (uint32_t i = 0; i < n->n_sel; i++)
		s->sel[i] = selector_view(x, n->sel[i]);
	ret->selectors = (struct selectors){ .v = s->sel, .n = n->n_sel };
}

int entries_node_view(
	const struct entries *x, const char *spiffe_id, struct node *ret, struct err *e)
{
	uint32_t num = node_find(x, spiffe_id);

	if (!num)
		return err_set(e, ERR_NOT_FOUND, "agent not found");
	node_fields(x, x->nodes[num], ret);
	return 0;
}

int entries_get_node(
	const struct entries *x, const char *spiffe_id, struct node *ret, struct err *e)
{
	uint32_t num = node_find(x, spiffe_id);
	struct node view;

	if (!num)
		return err_set(e, ERR_NOT_FOUND, "agent not found");
	node_view(x, x->nodes[num], &mutable(x)->view, &view);
	*ret = node_dup(&view);
	return 0;
}

#include <stdlib.h>
#include <string.h>

#include "lib/crypto.h"
#include "server/entries_internal.h"

/* ---- hash table of numbers: open addressing, linear probing, deletion by shifting back ---- */

static uint32_t slot_hash(uint64_t slot)
{
	return (uint32_t)(slot >> 32);
}

static void table_grow(struct table *t)
{
	uint32_t cap = t->slots ? (t->mask + 1) * 2 : 64;
	uint64_t *slots = xcalloc(cap, sizeof(slots[0]));

	for (uint32_t i = 0; t->slots && i <= t->mask; i++) {
		uint32_t j;

		if (!t->slots[i])
			continue;
		j = slot_hash(t->slots[i]) & (cap - 1);
		while (slots[j])
			j = (j + 1) & (cap - 1);
		slots[j] = t->slots[i];
	}
	free(t->slots);
	t->slots = slots;
	t->mask = cap - 1;
}

uint32_t table_find(
	const struct table *t, uint32_t hash, table_eq *eq, const void *ctx, struct bytes key)
{
	if (!t->slots)
		return 0;
	for (uint32_t i = hash & t->mask; t->slots[i]; i = (i + 1) & t->mask)
		if (slot_hash(t->slots[i]) == hash && eq(ctx, (uint32_t)t->slots[i], key))
			return (uint32_t)t->slots[i];
	return 0;
}

void table_add(struct table *t, uint32_t hash, uint32_t num)
{
	uint32_t i;

	if (!t->slots || t->n >= t->mask - t->mask / 4)
		table_grow(t);
	i = hash & t->mask;
	while (t->slots[i])
		i = (i + 1) & t->mask;
	t->slots[i] = (uint64_t)hash << 32 | num;
	t->n++;
}

void table_del(struct table *t, uint32_t hash, uint32_t num)
{
	uint32_t hole = hash & t->mask;

	while (t->slots[hole] != ((uint64_t)hash << 32 | num)) {
		INVARIANT(t->slots[hole]);
		hole = (hole + 1) & t->mask;
	}
	/* What follows moves back unless it already is at home behind the hole. */
	for (uint32_t i = (hole + 1) & t->mask; t->slots[i]; i = (i + 1) & t->mask) {
		uint32_t home = slot_hash(t->slots[i]) & t->mask;

		if (((i - home) & t->mask) >= ((i - hole) & t->mask)) {
			t->slots[hole] = t->slots[i];
			hole = i;
		}
	}
	t->slots[hole] = 0;
	t->n--;
}

void table_deinit(struct table *t)
{
	free(t->slots);
	*t = (struct table){ .n = 0 };
}

/* ---- numbered strings ---- */

static uint64_t mix(uint64_t a, uint64_t b)
{
	__uint128_t p = (__uint128_t)a * b;

	return (uint64_t)p ^ (uint64_t)(p >> 64);
}

/* Multiply and fold, eight bytes at a time, under a secret seed: nobody outside can aim at one
 * slot. */
uint32_t intern_hash(const struct intern *in, struct bytes text)
{
	uint64_t h = in->seed[0] ^ text.n;
	uint64_t w;

	while (text.n >= sizeof(w)) {
		memcpy(&w, text.p, sizeof(w));
		h = mix(h ^ w, in->seed[1]);
		text.p += sizeof(w);
		text.n -= sizeof(w);
	}
	w = 0;
	if (text.n)
		memcpy(&w, text.p, text.n);
	h = mix(h ^ w, in->seed[1]);
	return (uint32_t)(h ^ h >> 32);
}

void intern_init(struct intern *in, size_t head)
{
	*in = (struct intern){ .n = 1, .head = (uint32_t)head };
	crypto_random(in->seed, sizeof(in->seed));
	in->seed[1] |= 1;
}

void intern_deinit(struct intern *in)
{
	for (uint32_t i = 1; i < in->n; i++)
		if (!((uintptr_t)in->v[i] & 1))
			free(in->v[i]);
	free(in->v);
	table_deinit(&in->table);
}

static bool text_eq(const void *ctx, uint32_t num, struct bytes key)
{
	const struct intern *in = ctx;

	return in->v[num]->len == key.n && memcmp(intern_text(in, num), key.p, key.n) == 0;
}

uint32_t intern_find(const struct intern *in, struct bytes text)
{
	return table_find(&in->table, intern_hash(in, text), text_eq, in, text);
}

static uint32_t number_new(struct intern *in)
{
	uint32_t num = in->free;

	if (num) {
		in->free = (uint32_t)((uintptr_t)in->v[num] >> 1);
		return num;
	}
	if (in->n >= in->cap) {
		in->cap = in->cap ? in->cap + in->cap / 2 : 64;
		in->v = xreallocarray(in->v, in->cap, sizeof(in->v[0]));
	}
	return in->n++;
}

uint32_t intern_get(struct intern *in, struct bytes text)
{
	uint32_t hash = intern_hash(in, text);
	uint32_t num = table_find(&in->table, hash, text_eq, in, text);
	struct istr *s;

	if (num) {
		in->v[num]->refs++;
		return num;
	}
	INVARIANT(text.n < UINT32_MAX);
	num = number_new(in);
	s = xmalloc(in->head + text.n + 1);
	memset(s, 0, in->head);
	s->refs = 1;
	s->len = (uint32_t)text.n;
	in->v[num] = s;
	if (text.n)
		memcpy(intern_text(in, num), text.p, text.n);
	intern_text(in, num)[text.n] = 0;
	table_add(&in->table, hash, num);
	return num;
}

void intern_ref(struct intern *in, uint32_t num)
{
	in->v[num]->refs++;
}

void intern_unref(struct intern *in, uint32_t num)
{
	struct istr *s = in->v[num];

	if (--s->refs > 0)
		return;
	table_del(&in->table, intern_hash(in, bytes_of(intern_text(in, num), s->len)), num);
	free(s);
	in->v[num] = (struct istr *)(((uintptr_t)in->free << 1) | 1);
	in->free = num;
}

/* ---- small helpers ---- */

void numbers_add(struct numbers *a, uint32_t num)
{
	if (a->n == a->cap) {
		a->cap = a->cap ? a->cap * 2 : 16;
		a->v = xreallocarray(a->v, a->cap, sizeof(a->v[0]));
	}
	a->v[a->n++] = num;
}

void numbers_deinit(struct numbers *a)
{
	free(a->v);
	*a = (struct numbers){ .n = 0 };
}

void scratch_deinit(struct scratch *s)
{
	free(s->sel);
	free(s->text);
	*s = (struct scratch){ .sel_cap = 0 };
}

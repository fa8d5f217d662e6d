#include "lib/map.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/* A key lives in memory of its own, its length in front, so that a slot stays at three words. */
struct map_key {
	size_t n;
	uint8_t p[];
};

struct slot {
	uint64_t hash;
	struct map_key *key; /* NULL: never used, or (value == GONE) deleted */
	void *value;
};

struct map {
	uint64_t seed[2];
	struct slot *slots;
	size_t n_slots; /* a power of two, or 0 */
	size_t n_used;
	size_t n_gone;
};

enum { FIRST_SLOTS = 8 };
static char gone_mark;
#define GONE ((void *)&gone_mark)

struct map *map_new(void)
{
	struct map *m = xcalloc(1, sizeof(*m));

	if (getrandom(m->seed, sizeof(m->seed), 0) != (ssize_t)sizeof(m->seed))
		mem_panic(__FILE__, __LINE__, "getrandom");
	return m;
}

void map_free(struct map *m)
{
	if (!m)
		return;
	for (size_t i = 0; i < m->n_slots; i++)
		free(m->slots[i].key);
	free(m->slots);
	free(m);
}

size_t map_len(const struct map *m)
{
	return m->n_used;
}

static uint64_t rotl(uint64_t x, int n)
{
	return x << n | x >> (64 - n);
}

struct sip {
	uint64_t a, b, c, d;
};

static void sip_round(struct sip *s)
{
	s->a += s->b;
	s->b = rotl(s->b, 13) ^ s->a;
	s->a = rotl(s->a, 32);
	s->c += s->d;
	s->d = rotl(s->d, 16) ^ s->c;
	s->a += s->d;
	s->d = rotl(s->d, 21) ^ s->a;
	s->c += s->b;
	s->b = rotl(s->b, 17) ^ s->c;
	s->c = rotl(s->c, 32);
}

static void sip_word(struct sip *s, uint64_t w)
{
	s->d ^= w;
	sip_round(s);
	s->a ^= w;
}

/* SipHash-1-3 (Aumasson, Bernstein). */
static uint64_t hash_of_key(const struct map *m, struct bytes key)
{
	struct sip s = { m->seed[0] ^ UINT64_C(0x736f6d6570736575),
		m->seed[1] ^ UINT64_C(0x646f72616e646f6d),
		m->seed[0] ^ UINT64_C(0x6c7967656e657261),
		m->seed[1] ^ UINT64_C(0x7465646279746573) };
	uint64_t w;
	size_t i = 0;

	for (; i + 8 <= key.n; i += 8) {
		memcpy(&w, key.p + i, 8);
		sip_word(&s, w);
	}
	w = 0;
	if (key.n > i)
		memcpy(&w, key.p + i, key.n - i);
	sip_word(&s, w | (uint64_t)key.n << 56);
	s.c ^= 0xff;
	for (int r = 0; r < 3; r++)
		sip_round(&s);
	return s.a ^ s.b ^ s.c ^ s.d;
}

static bool is_gone(const struct slot *s)
{
	return !s->key && s->value == GONE;
}

/* The slot of that key, or NULL. */
static struct slot *find(const struct map *m, uint64_t hash, struct bytes key)
{
	size_t mask = m->n_slots - 1;

	if (m->n_slots == 0)
		return NULL;
	for (size_t i = hash & mask;; i = (i + 1) & mask) {
		struct slot *s = &m->slots[i];

		if (s->key && s->hash == hash && bytes_equal(bytes_of(s->key->p, s->key->n), key))
			return s;
		if (!s->key && !is_gone(s))
			return NULL;
	}
}

static struct slot *find_free(struct slot *slots, size_t n_slots, uint64_t hash)
{
	size_t mask = n_slots - 1;
	size_t i = hash & mask;

	while (slots[i].key)
		i = (i + 1) & mask;
	return &slots[i];
}

/* Leaves at least half of the slots free, and none marked as deleted. */
static void rebuild(struct map *m)
{
	size_t n_slots = FIRST_SLOTS;
	struct slot *slots;

	while (n_slots < (m->n_used + 1) * 2)
		n_slots *= 2;
	slots = xcalloc(n_slots, sizeof(*slots));
	for (size_t i = 0; i < m->n_slots; i++)
		if (m->slots[i].key)
			*find_free(slots, n_slots, m->slots[i].hash) = m->slots[i];
	free(m->slots);
	m->slots = slots;
	m->n_slots = n_slots;
	m->n_gone = 0;
}

void *map_get(const struct map *m, struct bytes key)
{
	const struct slot *s = find(m, hash_of_key(m, key), key);

	return s ? s->value : NULL;
}

void *map_get_str(const struct map *m, const char *key)
{
	return map_get(m, bytes_str(key));
}

static struct map_key *key_copy(struct bytes key)
{
	struct map_key *k = xmalloc(sizeof(*k) + key.n);

	k->n = key.n;
	if (key.n)
		memcpy(k->p, key.p, key.n);
	return k;
}

void *map_put(struct map *m, struct bytes key, void *value)
{
	uint64_t hash = hash_of_key(m, key);
	struct slot *s = find(m, hash, key);

	INVARIANT(value);
	if (s) {
		void *old = s->value;

		s->value = value;
		return old;
	}
	if ((m->n_used + m->n_gone + 1) * 4 > m->n_slots * 3)
		rebuild(m);
	s = find_free(m->slots, m->n_slots, hash);
	if (is_gone(s))
		m->n_gone--;
	*s = (struct slot){ .hash = hash, .key = key_copy(key), .value = value };
	m->n_used++;
	return NULL;
}

void *map_put_str(struct map *m, const char *key, void *value)
{
	return map_put(m, bytes_str(key), value);
}

void *map_del(struct map *m, struct bytes key)
{
	struct slot *s = find(m, hash_of_key(m, key), key);
	void *old;

	if (!s)
		return NULL;
	old = s->value;
	/* key may be a view of this very copy (map_next), so the copy goes last. */
	free(s->key);
	*s = (struct slot){ .value = GONE };
	m->n_used--;
	m->n_gone++;
	return old;
}

void *map_del_str(struct map *m, const char *key)
{
	return map_del(m, bytes_str(key));
}

bool map_next(const struct map *m, size_t *cursor, struct bytes *ret_key, void **ret_value)
{
	while (*cursor < m->n_slots) {
		const struct slot *s = &m->slots[(*cursor)++];

		if (!s->key)
			continue;
		if (ret_key)
			*ret_key = bytes_of(s->key->p, s->key->n);
		if (ret_value)
			*ret_value = s->value;
		return true;
	}
	return false;
}

#include "agent/jwtcache.h"

#include <stdlib.h>
#include <string.h>

#include "lib/jwt.h"
#include "lib/list.h"
#include "lib/map.h"

enum {
	STALE_WAIT_MS = 1000, /* a usable token is not held back longer than this */
	USABLE_LEFT_S = 2,    /* less is of no use to anybody */
};

struct waiter {
	struct list link;
	void (*done)(void *arg, const char *token, const struct err *e);
	void *arg;
};

struct item {
	struct jwtcache *cache;
	char *key;
	size_t key_len;
	bool unique; /* not in the map, freed after its one answer */
	char *token;
	int64_t issued_at, expires_at;
	bool fetching;
	struct list waiters;
	struct list lru;
	struct loop_timer *patience; /* while waiters could be served the old token */
};

struct jwtcache {
	struct loop *loop;
	size_t max;
	jwtcache_fetch_fn *fetch;
	void *arg;
	struct map *items;
	struct list lru; /* least lately used first */
	struct list once;
};

struct jwtcache *jwtcache_new(struct loop *l, size_t max, jwtcache_fetch_fn *fetch, void *arg)
{
	struct jwtcache *c = xcalloc(1, sizeof(*c));

	c->loop = l;
	c->max = max ? max : 1;
	c->fetch = fetch;
	c->arg = arg;
	c->items = map_new();
	list_init(&c->lru);
	list_init(&c->once);
	return c;
}

static void answer(struct item *it, const char *token, const struct err *e)
{
	if (it->patience)
		loop_timer_stop(it->patience);
	while (!list_empty(&it->waiters)) {
		struct waiter *w = container_of(it->waiters.next, struct waiter, link);

		list_remove(&w->link);
		w->done(w->arg, token, e);
		free(w);
	}
}

static void item_free(struct item *it)
{
	if (!it->unique)
		map_del(it->cache->items, bytes_of(it->key, it->key_len));
	list_remove(&it->lru);
	loop_timer_free(it->patience);
	if (it->token)
		mem_wipe(it->token, strlen(it->token));
	free(it->token);
	free(it->key);
	free(it);
}

void jwtcache_free(struct jwtcache *c)
{
	struct err e = ERR_INIT;

	if (!c)
		return;
	err_set(&e, ERR_CANCELLED, "the agent is stopping");
	list_each (it, &c->lru, struct item, lru) {
		answer(it, NULL, &e);
		item_free(it);
	}
	list_each (it, &c->once, struct item, lru) {
		answer(it, NULL, &e);
		item_free(it);
	}
	map_free(c->items);
	free(c);
}

size_t jwtcache_count(const struct jwtcache *c)
{
	return map_len(c->items);
}

static int by_text(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The order and the number of times an audience is named do not matter. */
static void item_key(const char *spiffe_id, const struct strings *audience, struct buf *ret)
{
	struct strings s = strings_dup(audience);

	qsort(s.v, s.n, sizeof(s.v[0]), by_text);
	buf_append(ret, spiffe_id, strlen(spiffe_id) + 1);
	for (size_t i = 0; i < s.n; i++) {
		if (i == 0 || strcmp(s.v[i], s.v[i - 1]) != 0)
			buf_append(ret, s.v[i], strlen(s.v[i]) + 1);
	}
	strings_deinit(&s);
}

static bool usable(const struct item *it, int64_t now)
{
	return it->token && it->expires_at - now > USABLE_LEFT_S;
}

static void out_of_patience(void *arg)
{
	struct item *it = arg;
	struct err e = ERR_INIT;

	if (usable(it, clock_wall().sec))
		answer(it, it->token, &e);
}

static struct item *item_new(struct jwtcache *c, struct buf *key, bool unique)
{
	struct item *it = xcalloc(1, sizeof(*it));

	it->cache = c;
	it->unique = unique;
	it->key_len = key->len;
	it->key = buf_take_str(key);
	list_init(&it->waiters);
	list_init(&it->lru);
	if (unique) {
		list_append(&c->once, &it->lru);
		return it;
	}
	map_put(c->items, bytes_of(it->key, it->key_len), it);
	list_append(&c->lru, &it->lru);
	return it;
}

static void evict(struct jwtcache *c)
{
	list_each (it, &c->lru, struct item, lru) {
		if (map_len(c->items) <= c->max)
			return;
		if (!it->fetching)
			item_free(it);
	}
}

static void wait_for(
	struct item *it, void (*done)(void *arg, const char *token, const struct err *e), void *arg)
{
	struct waiter *w = xcalloc(1, sizeof(*w));

	w->done = done;
	w->arg = arg;
	list_append(&it->waiters, &w->link);
}

static void begin_fetch(struct item *it, const struct entry *en, const struct strings *audience)
{
	if (it->fetching)
		return;
	it->fetching = true;
	it->cache->fetch(it->cache->arg, en->id, audience, it);
}

void jwtcache_get(struct jwtcache *c, const struct entry *en, const struct strings *audience,
	void (*done)(void *arg, const char *token, const struct err *e), void *arg)
{
	AUTO_BUF struct buf key = BUF_INIT;
	struct err e = ERR_INIT;
	int64_t now = clock_wall().sec;
	struct item *it = NULL;

	item_key(en->spiffe_id, audience, &key);
	if (!en->jwt_svid_include_jti)
		it = map_get(c->items, buf_view(&key));
	if (!it)
		it = item_new(c, &key, en->jwt_svid_include_jti);
	if (!it->unique) {
		list_remove(&it->lru);
		list_append(&c->lru, &it->lru);
	}
	if (usable(it, now)) {
		int64_t left = it->expires_at - now, life = it->expires_at - it->issued_at;

		if (left <= life / 2)
			begin_fetch(it, en, audience);
		/* In its last quarter a caller waits a little for the new one. */
		if (left > life / 4 || !it->fetching) {
			done(arg, it->token, &e);
			return;
		}
		wait_for(it, done, arg);
		if (!it->patience)
			it->patience = loop_timer_new(c->loop, out_of_patience, it);
		loop_timer_set(it->patience, STALE_WAIT_MS * NS_PER_MS);
		return;
	}
	wait_for(it, done, arg);
	begin_fetch(it, en, audience);
	evict(c);
}

void jwtcache_fetched(
	struct jwtcache *c, void *ticket, const struct jwt_svid *s, const struct err *e)
{
	struct item *it = ticket;
	struct err ok = ERR_INIT;

	it->fetching = false;
	if (s) {
		if (it->token)
			mem_wipe(it->token, strlen(it->token));
		free(it->token);
		it->token = xstrdup(s->token);
		it->issued_at = s->issued_at;
		it->expires_at = s->expires_at;
		answer(it, it->token, &ok);
	} else if (usable(it, clock_wall().sec)) {
		answer(it, it->token, &ok);
	} else {
		answer(it, NULL, e);
	}
	if (it->unique || !it->token)
		item_free(it);
	else
		evict(c);
}

void jwtcache_drop_tainted(struct jwtcache *c, const struct bundle *b)
{
	list_each (it, &c->lru, struct item, lru) {
		struct jwt j = { 0 };
		struct err e = ERR_INIT;
		const struct bundle_jwt_key *k = NULL;
		bool parsed = it->token && jwt_parse(bytes_str(it->token), &j, &e) == 0;

		if (parsed)
			k = bundle_find_jwt_key(b, j.kid);
		/* A key that is gone was revoked: nobody takes the token any more. */
		if (parsed && (!k || k->tainted)) {
			mem_wipe(it->token, strlen(it->token));
			free(it->token);
			it->token = NULL;
			if (!it->fetching)
				item_free(it);
		}
		if (parsed)
			jwt_deinit(&j);
	}
}

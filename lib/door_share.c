/*
 * Who may hold how many descriptors. Whoever holds most pays.
 *
 * Connections are counted, in descriptors, for a holder: a process (Unix), an address (TCP, an IPv6
 * one by its /64) or, once its certificate was verified, a SPIFFE ID, so that agents behind one NAT
 * do not share a count. Holders stand in groups: a uid, all anonymous TCP clients, all
 * authenticated ones. The budget is the process's limit less a reserve.
 *
 * 1. No holder has more than half of the budget, anonymous TCP clients together not more than half,
 *    authenticated ones together not more than seven eighths (so that new ones can still come).
 * 2. When the budget is used up, the group that holds most gives, and in it the holder that holds
 *    most: first its oldest connection without a call, then the group's oldest such one (not one
 *    that has just come and may be about to call), then its newest connection with a call: that
 *    only if it holds at least twice as much as the newcomer, and more than a few. Else the
 *    newcomer is refused. An anonymous newcomer never takes from authenticated ones.
 *
 * 3. New connections' first input is taken in turns, one of each holder, and not faster than
 *    SHARE_OPENS_PER_SECOND of one; resets, control frames and open calls are counted over all
 *    connections of a holder; and one whose connection the guard has ended stays outside for a
 *    while. What a holder did is remembered for some seconds after its last connection.
 *
 * So a flood from one process ends at its own cost, also when it has the uid of honest callers; and
 * a flood from many processes of one uid leaves the other uids alone.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "lib/door_internal.h"

long door_limit_for_test;

/* The soft limit is raised as far as it goes: nothing here uses select(2). */
static unsigned descriptor_limit(void)
{
	enum { MOST = 1 << 20 };
	struct rlimit rl;

	if (door_limit_for_test > 0)
		return (unsigned)door_limit_for_test;
	if (getrlimit(RLIMIT_NOFILE, &rl) != 0)
		return 1024;
	if (rl.rlim_cur < rl.rlim_max && rl.rlim_cur < MOST) {
		struct rlimit more = rl;

		more.rlim_cur = rl.rlim_max < MOST ? rl.rlim_max : MOST;
		if (setrlimit(RLIMIT_NOFILE, &more) == 0)
			rl = more;
	}
	return rl.rlim_cur < MOST ? (unsigned)rl.rlim_cur : MOST;
}

void share_init(struct share *s)
{
	*s = (struct share){ .limit = descriptor_limit() };
	s->reserve = s->limit * 15 / 100;
	if (s->reserve < SHARE_RESERVE_MIN)
		s->reserve = SHARE_RESERVE_MIN;
	if (s->reserve > s->limit / 2)
		s->reserve = s->limit / 2;
	list_init(&s->groups);
	list_init(&s->remembered);
	s->holders = map_new();
}

static unsigned budget(const struct share *s)
{
	return s->limit - s->reserve;
}

/* ---- groups and holders come and go with their connections ---- */

static struct share_group *group_get(struct share *s, const char *key, int kind)
{
	struct share_group *g;

	list_each (old, &s->groups, struct share_group, link)
		if (strcmp(old->key, key) == 0)
			return old;
	g = xcalloc(1, sizeof(*g));
	snprintf(g->key, sizeof(g->key), "%s", key);
	g->kind = kind;
	list_init(&g->holders);
	list_init(&g->idle);
	list_append(&s->groups, &g->link);
	return g;
}

static void group_drop(struct share_group *g)
{
	if (!list_empty(&g->holders))
		return;
	INVARIANT(g->used == 0);
	list_remove(&g->link);
	free(g);
}

/* IPv6 hosts have 2^64 addresses, so their network counts. */
static void address_key(const struct peer *p, char *ret, size_t cap)
{
	struct in6_addr six;
	char text[INET6_ADDRSTRLEN];

	if (inet_pton(AF_INET6, p->address, &six) != 1) {
		snprintf(ret, cap, "a%s", p->address);
		return;
	}
	memset(&six.s6_addr[8], 0, 8);
	inet_ntop(AF_INET6, &six, text, sizeof(text));
	snprintf(ret, cap, "a%s", text);
}

static void holder_free(struct share *s, struct share_holder *h)
{
	INVARIANT(list_empty(&h->idle) && list_empty(&h->busy) && list_empty(&h->waiting));
	list_remove(&h->link);
	list_remove(&h->turn);
	map_del_str(s->holders, h->key);
	free(h->key);
	free(h);
}

static void forget(struct share *s, struct share_holder *h)
{
	s->n_remembered--;
	holder_free(s, h);
}

/* What has left long enough ago starts anew. */
static void forget_old(struct share *s, int64_t now_ms)
{
	list_each (h, &s->remembered, struct share_holder, link) {
		if (now_ms - h->left_ms < (int64_t)door_times.penalty_ms * SHARE_PENALTY_MAX &&
			s->n_remembered <= SHARE_REMEMBERED)
			return;
		forget(s, h);
	}
}

void share_deinit(struct share *s)
{
	INVARIANT(list_empty(&s->groups));
	list_each (h, &s->remembered, struct share_holder, link)
		forget(s, h);
	map_free(s->holders);
}

static struct share_holder *holder_new(struct share *s, const char *key, int64_t now_ms)
{
	struct share_holder *h = xcalloc(1, sizeof(*h));

	h->key = xstrdup(key);
	list_init(&h->link);
	list_init(&h->idle);
	list_init(&h->busy);
	list_init(&h->turn);
	list_init(&h->waiting);
	h->tokens = (int64_t)SHARE_OPENS_BURST * 1000;
	h->tokens_ms = now_ms;
	map_put_str(s->holders, key, h);
	return h;
}

static struct share_holder *holder_get(struct share *s, const struct peer *p, int64_t now_ms)
{
	char key[SPIFFEID_MAX + 8], group_key[16] = "anonymous";
	int kind = GROUP_ANONYMOUS;
	struct share_holder *h;

	if (p->is_unix) {
		kind = GROUP_UID;
		snprintf(group_key, sizeof(group_key), "%u", (unsigned)p->uid);
		snprintf(key, sizeof(key), "u%u/%d", (unsigned)p->uid, (int)p->pid);
	} else if (p->id.text) {
		kind = GROUP_AUTHENTICATED;
		snprintf(group_key, sizeof(group_key), "authenticated");
		snprintf(key, sizeof(key), "s%s", p->id.text);
	} else {
		address_key(p, key, sizeof(key));
	}
	forget_old(s, now_ms);
	h = map_get_str(s->holders, key);
	if (!h)
		h = holder_new(s, key, now_ms);
	else if (!h->group)
		s->n_remembered--;
	if (!h->group) {
		h->group = group_get(s, group_key, kind);
		list_remove(&h->link);
		list_append(&h->group->holders, &h->link);
	}
	return h;
}

/* Without connections it is remembered for a while, with what it did. */
static void holder_drop(struct share *s, struct share_holder *h, int64_t now_ms)
{
	struct share_group *g = h->group;

	if (h->used > 0)
		return;
	INVARIANT(h->conns == 0 && h->handshakes == 0 && h->streams == 0);
	h->group = NULL;
	h->left_ms = now_ms;
	list_remove(&h->link);
	list_append(&s->remembered, &h->link);
	s->n_remembered++;
	group_drop(g);
}

/* While somebody makes room for it, a holder without connections must stay. */
static void holder_hold(struct share_holder *h, unsigned cost)
{
	h->used += cost;
	h->group->used += cost;
}

static void holder_let(struct share_holder *h, unsigned cost)
{
	h->used -= cost;
	h->group->used -= cost;
}

/* ---- making room ---- */

static bool evict_oldest_idle(struct share_holder *h)
{
	if (list_empty(&h->idle))
		return false;
	conn_evict(container_of(h->idle.next, struct conn, holder_link));
	return true;
}

/* One that makes connections faster than it uses them gets no more, which is cheaper. */
static bool evict_own_idle(struct share_holder *h, int64_t now_ms)
{
	if (list_empty(&h->idle) ||
		now_ms - container_of(h->idle.next, struct conn, holder_link)->idle_since_ms <
			door_times.young_ms)
		return false;
	return evict_oldest_idle(h);
}

static bool evict_newest_busy(struct share_holder *h)
{
	if (list_empty(&h->busy))
		return false;
	conn_evict(container_of(h->busy.prev, struct conn, holder_link));
	return true;
}

static bool evict_group_idle(struct share_group *g)
{
	struct conn *c;

	if (list_empty(&g->idle))
		return false;
	c = container_of(g->idle.next, struct conn, group_link);
	if (hub_now(c->hub) - c->idle_since_ms < door_times.young_ms)
		return false;
	conn_evict(c);
	return true;
}

/* At equal counts the newcomer is the one that holds most. */
static struct share_holder *heaviest_holder(
	const struct share_group *g, const struct share_holder *newcomer)
{
	struct share_holder *most = NULL;

	list_each (h, &g->holders, struct share_holder, link)
		if (!most || h->used > most->used || (h->used == most->used && h == newcomer))
			most = h;
	return most;
}

static struct share_group *heaviest_group(
	const struct share *s, const struct share_holder *newcomer)
{
	bool anonymous = newcomer->group->kind == GROUP_ANONYMOUS;
	struct share_group *most = NULL;

	list_each (g, &s->groups, struct share_group, link) {
		if (anonymous && g->kind == GROUP_AUTHENTICATED)
			continue;
		if (!most || g->used > most->used ||
			(g->used == most->used && g == newcomer->group))
			most = g;
	}
	return most;
}

/* The newcomer's cost is counted already. */
static bool take_from(struct share_group *g, struct share_holder *newcomer, unsigned cost)
{
	struct share_holder *h = heaviest_holder(g, newcomer);

	if (evict_oldest_idle(h))
		return true;
	if (h == newcomer)
		return false;
	if (evict_group_idle(g))
		return true;
	if (g != newcomer->group && g->used > 2 * newcomer->group->used)
		return evict_newest_busy(h);
	if (h->used > 2 * newcomer->used && h->used > SHARE_FEW * cost)
		return evict_newest_busy(h);
	return false;
}

/* What its kind may have, in descriptors. */
static unsigned group_max(const struct share *s, const struct share_group *g)
{
	switch (g->kind) {
	case GROUP_ANONYMOUS:
		return budget(s) / 2;
	case GROUP_AUTHENTICATED:
		return budget(s) / 8 * 7;
	default:
		return budget(s);
	}
}

static bool make_room(struct share *s, struct share_holder *h, unsigned cost, int64_t now_ms)
{
	while (h->used > budget(s) / 2)
		if (!evict_own_idle(h, now_ms))
			return false;
	while (h->group->used > group_max(s, h->group))
		if (!take_from(h->group, h, cost))
			return false;
	while (s->used + cost > budget(s))
		if (!take_from(heaviest_group(s, h), h, cost))
			return false;
	return true;
}

/* Slow handshakes are the cheapest way to hold memory here, so they have limits of their own. */
static bool make_handshake_room(struct share *s, struct share_holder *h)
{
	struct share_holder *most;

	while (h->handshakes >= SHARE_HANDSHAKES)
		if (!evict_oldest_idle(h))
			return false;
	while (s->handshakes >= SHARE_HANDSHAKES_ALL) {
		most = heaviest_holder(h->group, h);
		if (!evict_oldest_idle(most))
			return false;
	}
	return true;
}

/* ---- joining and leaving ---- */

static bool privileged_room(struct share *s, unsigned cost)
{
	return s->privileged_used + cost <= s->reserve / 2;
}

bool share_admit(struct share *s, const struct peer *p, unsigned cost, bool handshaking,
	int64_t now_ms, struct share_holder **ret)
{
	struct share_holder *h;
	bool room;

	*ret = NULL;
	if (p->privileged)
		return privileged_room(s, cost);
	h = holder_get(s, p, now_ms);
	holder_hold(h, cost);
	/* Behind an address there may be others, who are known only after the handshake. */
	room = (handshaking || now_ms >= h->outside_until_ms) && make_room(s, h, cost, now_ms) &&
	       (!handshaking || make_handshake_room(s, h));
	holder_let(h, cost);
	if (room)
		*ret = h;
	else
		holder_drop(s, h, now_ms);
	return room;
}

void share_enter(struct share *s, struct share_holder *h, struct conn *c)
{
	if (!h) {
		s->privileged_used += c->cost;
		return;
	}
	c->holder = h;
	s->used += c->cost;
	holder_hold(h, c->cost);
	h->conns++;
	if (c->handshaking) {
		h->handshakes++;
		s->handshakes++;
	}
	c->idle_since_ms = hub_now(c->hub);
	list_append(&h->idle, &c->holder_link);
	list_append(&h->group->idle, &c->group_link);
}

static void count_streams(struct conn *c, uint32_t streams)
{
	struct share_holder *h = c->holder;

	h->streams += streams - c->streams_seen;
	h->group->streams += streams - c->streams_seen;
	c->streams_seen = streams;
}

void share_leave(struct share *s, struct conn *c)
{
	struct share_holder *h = c->holder;

	if (!h) {
		if (c->peer && c->peer->privileged)
			s->privileged_used -= c->cost;
		return;
	}
	count_streams(c, 0);
	c->holder = NULL;
	s->used -= c->cost;
	h->conns--;
	if (c->handshaking) {
		h->handshakes--;
		s->handshakes--;
	}
	list_remove(&c->holder_link);
	list_remove(&c->group_link);
	holder_let(h, c->cost);
	holder_drop(s, h, hub_now(c->hub));
}

void share_set_busy(struct conn *c, bool busy)
{
	struct share_holder *h = c->holder;

	if (!h)
		return;
	list_remove(&c->holder_link);
	list_remove(&c->group_link);
	list_append(busy ? &h->busy : &h->idle, &c->holder_link);
	if (busy)
		return;
	c->idle_since_ms = hub_now(c->hub);
	list_append(&h->group->idle, &c->group_link);
}

bool share_handshake_done(struct share *s, struct conn *c)
{
	struct share_holder *h = c->holder;
	int64_t now_ms = hub_now(c->hub);

	if (!h) {
		c->handshaking = false;
		return true;
	}
	if (!c->peer->id.text) {
		c->handshaking = false;
		h->handshakes--;
		s->handshakes--;
		return now_ms >= h->outside_until_ms;
	}
	share_leave(s, c);
	c->handshaking = false;
	if (!share_admit(s, c->peer, c->cost, false, now_ms, &h))
		return false;
	share_enter(s, h, c);
	return true;
}

/* ---- what they do ---- */

void share_fault(struct conn *c)
{
	struct share_holder *h = c->holder;

	if (!h)
		return;
	if (h->faults < SHARE_PENALTY_MAX)
		h->faults++;
	h->outside_until_ms = hub_now(c->hub) + (int64_t)h->faults * door_times.penalty_ms;
}

/* Too many calls in one group: whoever has most of them loses his newest connection. */
static void relieve_group(struct share_group *g)
{
	struct share_holder *most = NULL;

	list_each (h, &g->holders, struct share_holder, link)
		if (!most || h->streams > most->streams)
			most = h;
	if (most)
		evict_newest_busy(most);
}

bool share_watch(struct conn *c)
{
	struct share_holder *h = c->holder;
	uint32_t streams = guard_streams(&c->guard);
	uint32_t resets = c->guard.resets_ever - c->resets_seen;
	uint32_t control = c->guard.control_ever - c->control_seen;
	bool more = streams > c->streams_seen;
	int64_t second = hub_now(c->hub) / 1000;

	if (!h)
		return true;
	if (h->second != second) {
		h->second = second;
		h->resets = h->control = 0;
	}
	h->resets += resets;
	h->control += control;
	c->resets_seen = c->guard.resets_ever;
	c->control_seen = c->guard.control_ever;
	if (streams != c->streams_seen)
		count_streams(c, streams);
	/* Only one that adds to it: the others are innocent, or were counted. */
	if ((resets > 0 && h->resets > SHARE_RESETS_PER_SECOND) ||
		(control > 0 && h->control > SHARE_CONTROL_PER_SECOND) ||
		(more && h->streams > SHARE_STREAMS + h->conns))
		return false;
	if (more && h->group->streams > SHARE_GROUP_STREAMS + h->group->used / CONN_COST_TCP)
		relieve_group(h->group);
	return true;
}

bool share_take_token(struct share_holder *h, int64_t now_ms)
{
	h->tokens += (now_ms - h->tokens_ms) * SHARE_OPENS_PER_SECOND;
	h->tokens_ms = now_ms;
	if (h->tokens > (int64_t)SHARE_OPENS_BURST * 1000)
		h->tokens = (int64_t)SHARE_OPENS_BURST * 1000;
	if (h->tokens < 1000)
		return false;
	h->tokens -= 1000;
	return true;
}

void share_relieve(struct share *s)
{
	struct share_group *most = NULL;

	list_each (g, &s->groups, struct share_group, link)
		if (!most || g->used > most->used)
			most = g;
	if (most)
		evict_oldest_idle(heaviest_holder(most, NULL));
}

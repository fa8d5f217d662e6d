#include "server/upstream.h"

void upstream_mint(
	struct upstream *u, struct bytes csr, int64_t ttl_ns, upstream_done *done, void *arg)
{
	u->kind->mint(u, csr, ttl_ns, done, arg);
}

bool upstream_publishes(const struct upstream *u)
{
	return u && u->kind->publish;
}

void upstream_publish(
	struct upstream *u, const struct bundle_jwt_key *k, upstream_done *done, void *arg)
{
	u->kind->publish(u, k, done, arg);
}

void upstream_on_bundle(struct upstream *u, upstream_news *fn, void *arg)
{
	if (u->kind->on_bundle)
		u->kind->on_bundle(u, fn, arg);
}

bool upstream_follows(const struct upstream *u)
{
	return u && u->kind->follows;
}

int upstream_health(struct upstream *u, struct err *e)
{
	return u->kind->health(u, e);
}

void upstream_free(struct upstream *u)
{
	if (u)
		u->kind->free(u);
}

#include "server/ca_internal.h"

#include <string.h>

#include "lib/mem.h"

#define MINUTE_S INT64_C(60)
#define DAY_S (INT64_C(24) * 60 * 60)

/* How long an authority stays in the bundle after its end, for those whose clock is behind. */
static int64_t retention_s(const struct ca *ca)
{
	int64_t twice = ca->ca_ttl_ns / NS_PER_SEC * 2;

	if (twice < 5 * MINUTE_S)
		return 5 * MINUTE_S;
	return twice < DAY_S ? twice : DAY_S;
}

static bool has_root(const struct bundle *b, const struct x509_cert *c)
{
	for (size_t i = 0; i < b->n_roots; i++)
		if (bytes_equal(x509_der(b->roots[i].cert), x509_der(c)))
			return true;
	return false;
}

static bool has_jwt_key(const struct bundle *b, const struct ca_slot *s)
{
	const struct bundle_jwt_key *k = bundle_find_jwt_key(b, s->id);

	return k && bytes_equal(pubkey_spki(k->key), pubkey_spki(s->pub));
}

bool ca_in_bundle(const struct ca *ca, enum ca_kind k, const struct ca_slot *s)
{
	if (!ca->bundle)
		return false;
	return k == CA_X509 ? has_root(ca->bundle, s->cert) : has_jwt_key(ca->bundle, s);
}

static bool gone_by(int64_t end, int64_t keep_s, int64_t now)
{
	return end + keep_s <= now;
}

/* The stored bundle without what has expired long ago. */
static struct bundle *pruned(const struct ca *ca, int64_t now, bool *ret_changed)
{
	const struct bundle *old = ca->bundle;
	struct bundle *b = bundle_new(ca->trust_domain);
	int64_t keep_s = retention_s(ca);

	if (!old)
		return b;
	b->refresh_hint = old->refresh_hint;
	b->sequence = old->sequence;
	for (size_t i = 0; i < old->n_roots; i++)
		if (!gone_by(x509_not_after(old->roots[i].cert).sec, keep_s, now))
			(void)bundle_add_root(b, old->roots[i].cert, old->roots[i].tainted);
	for (size_t i = 0; i < old->n_jwt_keys; i++) {
		const struct bundle_jwt_key *k = &old->jwt_keys[i];

		if (k->expires_at == 0 || !gone_by(k->expires_at, keep_s, now))
			(void)bundle_add_jwt_key(b, k->key_id, k->key, k->expires_at, k->tainted);
	}
	*ret_changed = b->n_roots != old->n_roots || b->n_jwt_keys != old->n_jwt_keys;
	return b;
}

struct bundle *ca_wanted_bundle(const struct ca *ca, int64_t now)
{
	bool changed = false;
	struct bundle *b = pruned(ca, now, &changed);

	for (int k = 0; k < CA_KINDS; k++)
		for (int i = 0; i < CA_SLOTS; i++) {
			const struct ca_slot *s = &ca->line[k].slot[i];

			if (s->status == CA_UNUSED || s->not_after <= now)
				continue;
			if (k == CA_X509)
				changed |= bundle_add_root(b, s->cert, false);
			else
				changed |=
					bundle_add_jwt_key(b, s->id, s->pub, s->not_after, false);
		}
	if (changed)
		return b;
	bundle_unref(b);
	return NULL;
}

int64_t ca_next_prune(const struct ca *ca, int64_t now)
{
	int64_t keep_s = retention_s(ca);
	int64_t next = INT64_MAX;

	if (!ca->bundle)
		return next;
	for (size_t i = 0; i < ca->bundle->n_roots; i++) {
		int64_t t = x509_not_after(ca->bundle->roots[i].cert).sec + keep_s;

		if (t > now && t < next)
			next = t;
	}
	for (size_t i = 0; i < ca->bundle->n_jwt_keys; i++) {
		int64_t t = ca->bundle->jwt_keys[i].expires_at + keep_s;

		if (ca->bundle->jwt_keys[i].expires_at && t > now && t < next)
			next = t;
	}
	return next;
}

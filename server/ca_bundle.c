#include "server/ca_internal.h"

#include <stdlib.h>
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
	return k == CA_X509 ? has_root(ca->bundle, ca_slot_root(s)) : has_jwt_key(ca->bundle, s);
}

static bool gone_by(int64_t end, int64_t keep_s, int64_t now)
{
	return end + keep_s <= now;
}

bool ca_bundle_has(const struct ca *ca, enum ca_kind k, const char *id, bool *ret_tainted)
{
	const struct bundle_jwt_key *key;

	if (!ca->bundle)
		return false;
	if (k == CA_JWT) {
		key = bundle_find_jwt_key(ca->bundle, id);
		if (key)
			*ret_tainted = key->tainted;
		return key != NULL;
	}
	for (size_t i = 0; i < ca->bundle->n_roots; i++) {
		AUTO(free) char *root = ca_key_id_text(x509_ski(ca->bundle->roots[i].cert));

		if (strcmp(root, id) == 0) {
			*ret_tainted = ca->bundle->roots[i].tainted;
			return true;
		}
	}
	return false;
}

/* The slot that stands behind an authority in the bundle; one that signs, if there are two under
 * one root. */
static const struct ca_slot *slot_behind(const struct ca_line *l, const char *id)
{
	const struct ca_slot *old = NULL;

	for (int i = 0; i < CA_SLOTS; i++) {
		const struct ca_slot *s = &l->slot[i];

		if (s->status == CA_UNUSED || strcmp(s->root_id ? s->root_id : s->id, id) != 0)
			continue;
		if (s->status != CA_OLD)
			return s;
		old = s;
	}
	return old;
}

bool ca_leaves(const struct ca *ca, enum ca_kind k, const char *id, bool *tainted)
{
	const struct ca_line *l = &ca->line[k];
	const struct ca_slot *s = slot_behind(l, id);

	if (s && s->status != CA_OLD)
		return false;
	if (s)
		*tainted |= s->tainted;
	return (s && s->revoked) || strings_has(&l->leaving, id);
}

static void keep_roots(const struct ca *ca, int64_t now, struct bundle *b)
{
	for (size_t i = 0; i < ca->bundle->n_roots; i++) {
		struct x509_cert *c = ca->bundle->roots[i].cert;
		AUTO(free) char *id = ca_key_id_text(x509_ski(c));
		bool tainted = ca->bundle->roots[i].tainted || ca_upstream_taints(ca, c);

		if (!gone_by(x509_not_after(c).sec, retention_s(ca), now) &&
			!ca_leaves(ca, CA_X509, id, &tainted))
			(void)bundle_add_root(b, c, tainted);
	}
}

static void keep_jwt_keys(const struct ca *ca, int64_t now, struct bundle *b)
{
	for (size_t i = 0; i < ca->bundle->n_jwt_keys; i++) {
		const struct bundle_jwt_key *k = &ca->bundle->jwt_keys[i];
		const struct bundle_jwt_key *up =
			ca->upstream_bundle ? bundle_find_jwt_key(ca->upstream_bundle, k->key_id)
					    : NULL;
		bool tainted = k->tainted || (up && up->tainted);

		if (k->expires_at && gone_by(k->expires_at, retention_s(ca), now))
			continue;
		if (!ca_leaves(ca, CA_JWT, k->key_id, &tainted))
			(void)bundle_add_jwt_key(b, k->key_id, k->key, k->expires_at, tainted);
	}
}

static void add_ours(const struct ca *ca, int64_t now, struct bundle *b)
{
	for (int k = 0; k < CA_KINDS; k++)
		for (int i = 0; i < CA_SLOTS; i++) {
			const struct ca_slot *s = &ca->line[k].slot[i];

			if (s->status == CA_UNUSED || s->revoked || s->not_after <= now)
				continue;
			if (s->status == CA_OLD && s->anchor)
				continue;
			if (k == CA_X509)
				(void)bundle_add_root(b, ca_slot_root(s), s->tainted);
			else
				(void)bundle_add_jwt_key(
					b, s->id, s->pub, s->not_after, s->tainted);
		}
}

struct bundle *ca_wanted_bundle(const struct ca *ca, int64_t now)
{
	const struct bundle *old = ca->bundle;
	struct bundle *b = bundle_new(ca->trust_domain);
	bool changed;

	if (old) {
		b->refresh_hint = old->refresh_hint;
		b->sequence = old->sequence;
		keep_roots(ca, now, b);
		keep_jwt_keys(ca, now, b);
	}
	add_ours(ca, now, b);
	ca_add_upstream(ca, now, b);
	changed = old ? !bundle_equal_content(old, b) : b->n_roots || b->n_jwt_keys;
	if (changed)
		return b;
	bundle_unref(b);
	return NULL;
}

void ca_forget_left(struct ca *ca)
{
	if (ca->bundle_busy || !ca->bundle)
		return;
	for (int k = 0; k < CA_KINDS; k++) {
		struct strings *l = &ca->line[k].leaving, left = { .n = 0 };
		bool tainted;

		for (size_t i = 0; i < l->n; i++)
			if (ca_bundle_has(ca, (enum ca_kind)k, l->v[i], &tainted))
				strings_add(&left, l->v[i]);
		if (left.n != l->n)
			ca->journal_dirty = true;
		strings_deinit(l);
		*l = left;
	}
}

void ca_note_sequence(struct ca *ca)
{
	for (int k = 0; k < CA_KINDS; k++)
		for (int i = 0; i < CA_SLOTS; i++) {
			struct ca_slot *s = &ca->line[k].slot[i];

			if (s->status == CA_UNUSED || !ca_in_bundle(ca, (enum ca_kind)k, s))
				s->sequence = 0;
			else if (!s->sequence)
				s->sequence = ca->bundle->sequence;
		}
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

/*
 * Authorities that an upstream signs: what it gave is checked before it is taken; its bundle
 * becomes part of ours; an authority that it has given up is followed by another at once.
 */
#include <stdlib.h>
#include <string.h>

#include "lib/log.h"
#include "lib/mem.h"
#include "server/ca_internal.h"

#define SUBSYSTEM "ca_manager"

struct x509_cert *ca_slot_root(const struct ca_slot *s)
{
	return s->anchor ? s->anchor : s->cert;
}

/* ---- a CA from upstream ---- */

static int check_cert(
	const struct ca *ca, const struct ca_slot *s, const struct x509_cert *c, struct err *e)
{
	AUTO(free) char *uri = xasprintf("spiffe://%s", ca->trust_domain);
	const struct strings *uris = x509_uris(c);
	bool present = false;
	unsigned ku = x509_key_usage(c, &present);

	if (!x509_pubkey(c) || !bytes_equal(pubkey_spki(x509_pubkey(c)), pubkey_spki(s->pub)))
		return err_set(e, ERR_INTERNAL, "it is for another key");
	if (!x509_is_ca(c) || (present && !(ku & KU_CERT_SIGN)) || x509_ski(c).n == 0)
		return err_set(e, ERR_INTERNAL, "it is not one of a CA");
	if (uris->n != 1 || strcmp(uris->v[0], uri) != 0)
		return err_set(
			e, ERR_INTERNAL, "it is not of trust domain \"%s\"", ca->trust_domain);
	return 0;
}

/* An SVID of it, which nobody gets, must lead to a root: that finds path lengths and name
 * constraints too. */
static int find_anchor(const struct ca *ca, const struct ca_slot *s, const struct x509_chain *roots,
	struct x509_cert **ret, struct err *e)
{
	struct ca_issuer *i = ca_issuer_new(ca, s);
	AUTO(free) char *id = xasprintf("spiffe://%s/for/validation/only", ca->trust_domain);
	struct ca_x509_params p = {
		.spiffe_id = id, .spki = pubkey_spki(s->pub), .now = clock_wall()
	};
	struct ca_x509_svid svid = { .chain = BUF_INIT, .leaf = BUF_INIT };
	struct x509_chain ch = { .n = 0 }, path = { .n = 0 };
	int r = ca_sign_x509_svid(i, &p, &svid, e);

	if (!r)
		r = x509_chain_parse_der(&ch, buf_view(&svid.chain), X509_MAX_CHAIN, e);
	if (!r)
		r = x509_verify_path(&ch, roots, p.now, &path, e);
	if (!r)
		*ret = x509_ref(path.v[path.n - 1]);
	x509_chain_deinit(&path);
	x509_chain_deinit(&ch);
	ca_x509_svid_deinit(&svid);
	ca_issuer_unref(i);
	return r;
}

static struct x509_chain roots_of(const struct bundle *b, bool tainted)
{
	struct x509_chain ch = { .n = 0 };

	for (size_t i = 0; i < b->n_roots; i++)
		if (tainted || !b->roots[i].tainted)
			x509_chain_add(&ch, b->roots[i].cert);
	return ch;
}

/* A root that is not tainted, if there is a way to one. */
static int pick_anchor(struct ca *ca, const struct bundle *b, const struct ca_slot *s,
	struct x509_cert **ret, struct err *e)
{
	struct x509_chain all = roots_of(b, true), good = roots_of(b, false);
	int r = find_anchor(ca, s, &all, ret, e);

	if (!r && good.n < all.n) {
		struct x509_cert *better = NULL;

		if (find_anchor(ca, s, &good, &better, e) == 0) {
			x509_unref(*ret);
			*ret = better;
		} else if (ca_slot_of(&ca->line[CA_X509], CA_ACTIVE)) {
			x509_unref(*ret);
			*ret = NULL;
			r = err_set(e, ERR_UNAVAILABLE,
				"the upstream authority still signs with what it has tainted");
		}
	}
	x509_chain_deinit(&all);
	x509_chain_deinit(&good);
	return r;
}

int ca_take_minted(struct ca *ca, struct ca_slot *s, const struct x509_chain *chain,
	const struct bundle *b, struct err *e)
{
	int r = chain->n == 0 || chain->n > X509_MAX_CHAIN - 1
			? err_set(e, ERR_INTERNAL, "it has %zu certificates", chain->n)
			: check_cert(ca, s, chain->v[0], e);

	if (!r) {
		s->cert = x509_ref(chain->v[0]);
		s->chain = x509_chain_dup(chain);
		s->not_after = x509_not_after(s->cert).sec;
		r = pick_anchor(ca, b, s, &s->anchor, e);
	}
	if (r)
		return err_wrap(e, "X509 CA minted by upstream authority is invalid");
	s->id = ca_key_id_text(x509_ski(s->cert));
	s->root_id = ca_key_id_text(x509_ski(s->anchor));
	s->upstream_id = ca_key_id_text(x509_aki(s->cert));
	return 0;
}

char *ca_key_id_text(struct bytes id)
{
	struct buf b = BUF_INIT;

	hex_encode(&b, id);
	return buf_take_str(&b);
}

/* ---- the upstream's bundle ---- */

static const struct bundle_root *root_in(const struct bundle *b, const struct x509_cert *c)
{
	for (size_t i = 0; b && i < b->n_roots; i++)
		if (bytes_equal(x509_der(b->roots[i].cert), x509_der(c)))
			return &b->roots[i];
	return NULL;
}

bool ca_signs_under(const struct ca *ca, const struct x509_cert *root)
{
	for (int i = 0; i < CA_SLOTS; i++) {
		const struct ca_slot *s = &ca->line[CA_X509].slot[i];

		if (s->status == CA_ACTIVE &&
			bytes_equal(x509_der(ca_slot_root(s)), x509_der(root)))
			return true;
	}
	return false;
}

/* The taint is passed on when our own authority has left that root: those below would find
 * nothing else to move to. */
bool ca_upstream_taints(const struct ca *ca, const struct x509_cert *root)
{
	const struct bundle_root *up = root_in(ca->upstream_bundle, root);

	return up && up->tainted && !ca_signs_under(ca, root);
}

static void leave(struct ca *ca, enum ca_kind k, const char *id)
{
	for (int i = 0; i < CA_SLOTS; i++) {
		struct ca_slot *s = &ca->line[k].slot[i];

		if (s->status == CA_OLD && strcmp(s->root_id ? s->root_id : s->id, id) == 0)
			s->revoked = true;
	}
	if (strings_has(&ca->line[k].leaving, id))
		return;
	strings_add(&ca->line[k].leaving, id);
	ca->journal_dirty = true;
	log_event(LOG_INFO, SUBSYSTEM, "the upstream authority has withdrawn an authority", "kind",
		ca_kind_name(k), "authority_id", id, NULL);
}

static void stay(struct ca *ca, enum ca_kind k, const char *id)
{
	struct strings *l = &ca->line[k].leaving, left = { .n = 0 };

	if (!strings_has(l, id))
		return;
	for (size_t i = 0; i < l->n; i++)
		if (strcmp(l->v[i], id) != 0)
			strings_add(&left, l->v[i]);
	strings_deinit(l);
	*l = left;
	ca->journal_dirty = true;
}

/* What was there before and is no more, without having expired, was revoked. Of the time before
 * this start nothing is known but what was tainted. */
static void note_gone(struct ca *ca, const struct bundle *b, int64_t now)
{
	const struct bundle *old = ca->upstream_bundle ? ca->upstream_bundle : ca->bundle;

	for (size_t i = 0; old && i < old->n_roots; i++) {
		struct x509_cert *c = old->roots[i].cert;
		AUTO(free) char *id = ca_key_id_text(x509_ski(c));

		if (old != ca->upstream_bundle && !old->roots[i].tainted)
			continue;
		if (x509_not_after(c).sec > now && !root_in(b, c))
			leave(ca, CA_X509, id);
	}
	for (size_t i = 0; old && old == ca->upstream_bundle && i < old->n_jwt_keys; i++) {
		const struct bundle_jwt_key *k = &old->jwt_keys[i];

		if ((!k->expires_at || k->expires_at > now) && !bundle_find_jwt_key(b, k->key_id))
			leave(ca, CA_JWT, k->key_id);
	}
}

static void note_back(struct ca *ca, const struct bundle *b)
{
	for (size_t i = 0; i < b->n_roots; i++) {
		AUTO(free) char *id = ca_key_id_text(x509_ski(b->roots[i].cert));

		stay(ca, CA_X509, id);
	}
	for (size_t i = 0; i < b->n_jwt_keys; i++)
		stay(ca, CA_JWT, b->jwt_keys[i].key_id);
}

static bool given_up(const struct ca *ca, enum ca_kind k, const struct ca_slot *s)
{
	const struct bundle *b = ca->upstream_bundle;

	if (k == CA_X509) {
		const struct bundle_root *up = s->anchor ? root_in(b, s->anchor) : NULL;

		if (!s->anchor != !ca->upstream) /* signed as it is no longer configured */
			return true;
		return upstream_follows(ca->upstream) && b && (!up || up->tainted);
	}
	if (upstream_follows(ca->upstream) && b && !ca->jwt_stays_here) {
		const struct bundle_jwt_key *up = bundle_find_jwt_key(b, s->id);

		return !up || up->tainted;
	}
	return false;
}

void ca_mark_unfit(struct ca *ca)
{
	for (int k = 0; k < CA_KINDS; k++)
		for (int i = 0; i < CA_SLOTS; i++) {
			struct ca_slot *s = &ca->line[k].slot[i];
			bool signs = s->status == CA_ACTIVE || s->status == CA_PREPARED;

			if (!signs || s->unfit || !given_up(ca, (enum ca_kind)k, s))
				continue;
			s->unfit = true;
			log_event(LOG_WARN, SUBSYSTEM,
				"an authority is not what the upstream authority wants any more: "
				"replacing it",
				"kind", ca_kind_name((enum ca_kind)k), "local_authority_id", s->id,
				NULL);
		}
}

void ca_take_upstream_bundle(struct ca *ca, struct bundle *b)
{
	struct bundle *old = ca->upstream_bundle;

	if (old && bundle_equal_content(old, b))
		return;
	if (upstream_follows(ca->upstream))
		note_gone(ca, b, clock_wall().sec);
	note_back(ca, b);
	ca->upstream_bundle = bundle_ref(b);
	bundle_unref(old);
	ca_mark_unfit(ca);
}

void ca_add_upstream(const struct ca *ca, int64_t now, struct bundle *ret)
{
	const struct bundle *b = ca->upstream_bundle;
	bool tainted;

	for (size_t i = 0; b && i < b->n_roots; i++) {
		struct x509_cert *c = b->roots[i].cert;
		AUTO(free) char *id = ca_key_id_text(x509_ski(c));

		tainted = ca_upstream_taints(ca, c);
		if (x509_not_after(c).sec > now && !ca_leaves(ca, CA_X509, id, &tainted))
			(void)bundle_add_root(ret, c, tainted);
	}
	for (size_t i = 0; b && i < b->n_jwt_keys; i++) {
		const struct bundle_jwt_key *k = &b->jwt_keys[i];

		tainted = k->tainted;
		if ((!k->expires_at || k->expires_at > now) &&
			!ca_leaves(ca, CA_JWT, k->key_id, &tainted))
			(void)bundle_add_jwt_key(ret, k->key_id, k->key, k->expires_at, tainted);
	}
}

/* ---- an operator's word on an upstream authority: SPIRE's codes and texts ---- */

static bool is_of(const struct ca_slot *s, const char *id)
{
	return s && s->anchor && (strcmp(s->upstream_id, id) == 0 || strcmp(s->root_id, id) == 0);
}

static int check_id(struct ca *ca, const char *id, struct ca_slot **ret, struct err *e)
{
	struct ca_line *l = &ca->line[CA_X509];
	struct ca_slot *active = ca_slot_of(l, CA_ACTIVE), *old = ca_slot_of(l, CA_OLD);

	if (!id[0])
		return err_set(e, ERR_INVALID, "no subject key ID provided");
	if (is_of(active, id))
		return err_set(e, ERR_INVALID,
			"unable to use upstream authority singing current authority");
	if (is_of(ca_slot_of(l, CA_PREPARED), id))
		return err_set(e, ERR_INVALID,
			"only upstream authorities signing an old authority can be used");
	if (!is_of(old, id))
		return err_set(
			e, ERR_INVALID, "upstream authority didn't sign the old local authority");
	/* Another intermediate of one root: the root is what verifiers know. */
	if (strcmp(old->root_id, active->root_id ? active->root_id : "") == 0)
		return err_set(e, ERR_INVALID,
			"unable to use upstream authority singing current authority");
	*ret = old;
	return 0;
}

int ca_check_upstream(
	struct ca *ca, enum ca_force what, const char *id, struct ca_slot **ret, struct err *e)
{
	const char *text = what == CA_TAINT ? "failed to taint upstream authority"
					    : "failed to revoke X.509 upstream authority";
	bool tainted = false;

	if (!ca->upstream)
		return err_set(e, ERR_PRECONDITION, "upstream authority is not configured");
	if (!ca->ready || !ca_slot_of(&ca->line[CA_X509], CA_ACTIVE))
		return err_set(e, ERR_UNAVAILABLE, "server is initializing");
	if (ca->n_ops >= CA_OPS_MAX)
		return err_set(e, ERR_EXHAUSTED, "too many rotations are under way");
	if (check_id(ca, id, ret, e))
		return err_wrap(e, what == CA_TAINT ? "provided subject key id is not valid"
						    : "invalid subject key ID");
	if (!ca_bundle_has(ca, CA_X509, (*ret)->root_id, &tainted))
		return err_set(e, ERR_INTERNAL, "%s: no %s found with provided subject key ID",
			text, what == CA_TAINT ? "ca" : "root CA");
	if (what == CA_TAINT && tainted)
		return err_set(e, ERR_INTERNAL, "%s: root CA is already tainted", text);
	if (what == CA_REVOKE && !tainted)
		return err_set(e, ERR_INTERNAL,
			"%s: it is not possible to revoke an untainted root CA", text);
	return 0;
}

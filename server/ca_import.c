#include "server/ca_import.h"

#include <stdlib.h>
#include <string.h>

#include "lib/mem.h"
#include "server/ca_internal.h"
#include "spire/private/server/stored.pb-c.h"

#define STORED(name) Spire__Private__Server__##name
#define STATUS(name) SPIRE__PRIVATE__SERVER__AUTHORITY_STATUS__##name

struct ca_import {
	struct ca ca; /* its lines alone: what the journal is written from */
	struct key *key[CA_KINDS][CA_SLOTS];
};

/* One line of a SPIRE journal, of either kind. */
struct authority {
	enum ca_kind kind;
	const char *slot_id, *id;
	int64_t issued_at, not_after;
	struct bytes public; /* certificate, or SubjectPublicKeyInfo */
	STORED(AuthorityStatus) status;
	ProtobufCBinaryData *chain;
	size_t n_chain;
};

struct importer {
	struct ca_import *im;
	const struct bundle *bundle;
	struct keymgr *keys;
	int64_t now;
	struct strings *left;
};

static const char *kind_text(enum ca_kind k)
{
	return k == CA_X509 ? "X.509" : "JWT";
}

void ca_import_free(struct ca_import *im)
{
	if (!im)
		return;
	for (int k = 0; k < CA_KINDS; k++)
		for (int i = 0; i < CA_SLOTS; i++) {
			ca_slot_deinit(&im->ca.line[k].slot[i]);
			key_unref(im->key[k][i]);
		}
	free(im);
}

/* ---- which journal ---- */

/* As SPIRE: a datastore may hold the journals of several servers; that is ours whose active X.509
 * authority has its key in our key file. */
static bool has_key(struct keymgr *keys, const char *id)
{
	struct strings names = { .n = 0 };
	struct err e = ERR_INIT;
	bool found = false;

	if (!keys || keymgr_list(keys, &names, &e))
		return false;
	for (size_t i = 0; i < names.n && !found; i++) {
		AUTO(pubkey_unref) struct pubkey *pub = NULL;
		AUTO_BUF struct buf hex = BUF_INIT;
		uint8_t ski[20];

		if (keymgr_public(keys, names.v[i], &pub, &e))
			continue;
		pubkey_key_id(pub, ski);
		hex_encode(&hex, bytes_of(ski, sizeof(ski)));
		found = strcmp(buf_cstr(&hex), id) == 0;
	}
	strings_deinit(&names);
	return found;
}

static const struct spire_journal *choose(const struct spire *s, struct keymgr *keys)
{
	for (size_t i = s->n_journals; i-- > 0;)
		if (has_key(keys, s->journals[i].active_x509_id))
			return &s->journals[i];
	/* Only to say what is lost. */
	return s->n_journals ? &s->journals[s->n_journals - 1] : NULL;
}

/* ---- one authority ---- */

static int read_public(const struct authority *a, struct ca_slot *s, struct err *e)
{
	int r;

	if (a->kind == CA_JWT)
		return pubkey_from_spki(a->public, &s->pub, e);
	r = x509_parse(a->public, &s->cert, e);
	if (!r && !x509_pubkey(s->cert))
		r = err_set(e, ERR_INVALID, "its certificate has an unknown kind of key");
	if (!r)
		s->pub = pubkey_ref(x509_pubkey(s->cert));
	return r;
}

/* Signed upstream: its way to a root of the bundle. */
static int read_chain(
	const struct importer *m, const struct authority *a, struct ca_slot *s, struct err *e)
{
	struct x509_chain roots = bundle_roots(m->bundle), path = { .n = 0 };
	int r = 0;

	for (size_t i = 0; i < a->n_chain && !r; i++) {
		struct x509_cert *c = NULL;

		r = x509_parse(bytes_of(a->chain[i].data, a->chain[i].len), &c, e);
		if (!r)
			x509_chain_add(&s->chain, c);
		x509_unref(c);
	}
	if (!r && !bytes_equal(x509_der(s->chain.v[0]), x509_der(s->cert)))
		r = err_set(e, ERR_INVALID, "its upstream chain is of another certificate");
	if (!r)
		r = x509_verify_path(&s->chain, &roots, wall_of_sec(m->now), &path, e);
	if (!r) {
		s->anchor = x509_ref(path.v[path.n - 1]);
		s->root_id = ca_key_id_text(x509_ski(s->anchor));
		s->upstream_id = ca_key_id_text(x509_aki(s->cert));
	}
	x509_chain_deinit(&path);
	x509_chain_deinit(&roots);
	return r;
}

/* What SPIRE does not find in the stored bundle it forgets at its start; so nobody trusts it. */
static bool in_bundle(const struct importer *m, const struct authority *a, struct ca_slot *s)
{
	const struct bundle *b = m->bundle;
	const struct bundle_jwt_key *k;

	if (a->kind == CA_JWT) {
		k = bundle_find_jwt_key(b, s->id);
		s->tainted = k && k->tainted;
		return k && bytes_equal(pubkey_spki(k->key), pubkey_spki(s->pub));
	}
	for (size_t i = 0; i < b->n_roots; i++)
		if (bytes_equal(x509_der(b->roots[i].cert), x509_der(ca_slot_root(s)))) {
			s->tainted = b->roots[i].tainted;
			return true;
		}
	return false;
}

/* The private key must be the very one that the journal means. */
static void find_key(const struct importer *m, const struct authority *a, int i, struct ca_slot *s)
{
	struct key *k = NULL;
	struct err e = ERR_INIT;

	if (s->status == CA_OLD)
		return;
	if (m->keys && keymgr_key(m->keys, ca_key_name(a->kind, i), &k, &e) == 0 &&
		bytes_equal(pubkey_spki(key_public(k)), pubkey_spki(s->pub))) {
		m->im->key[a->kind][i] = k;
		return;
	}
	key_unref(k);
	s->status = CA_OLD;
	spire_leave(m->left,
		"private key of the %s authority %s: it is not in the key file; what it signed "
		"stays good, and it signs no more",
		kind_text(a->kind), s->id);
}

static int take(const struct importer *m, const struct authority *a, int i, struct err *e)
{
	struct ca_slot s = {
		.status = a->status == STATUS(ACTIVE)     ? CA_ACTIVE
			  : a->status == STATUS(PREPARED) ? CA_PREPARED
							  : CA_OLD,
		.id = xstrdup(a->id),
		.issued_at = a->issued_at,
		.not_after = a->not_after,
	};
	int r = read_public(a, &s, e);

	if (!r && a->kind == CA_X509 && !a->id[0]) {
		free(s.id);
		s.id = ca_key_id_text(x509_ski(s.cert)); /* older SPIREs do not note it */
	}
	if (!r && a->n_chain)
		r = read_chain(m, a, &s, e);
	if (!r && !in_bundle(m, a, &s))
		r = err_set(e, ERR_PRECONDITION, "it is not in the trust bundle");
	if (r) {
		ca_slot_deinit(&s);
		return r;
	}
	find_key(m, a, i, &s);
	m->im->ca.line[a->kind].slot[i] = s;
	return 0;
}

/* An old authority that has ended is of no use to anybody, and is not worth a word. */
static bool has_ended(const struct importer *m, const struct authority *a)
{
	char when[40];

	if (a->not_after > m->now)
		return false;
	wall_format(wall_of_sec(a->not_after), when, sizeof(when));
	if (a->status == STATUS(ACTIVE))
		spire_leave(m->left, "%s authority %s, active: it has ended at %s",
			kind_text(a->kind), a->id, when);
	return true;
}

static bool consider(const struct importer *m, const struct authority *a)
{
	int i = strcmp(a->slot_id, "B") == 0;
	struct err e = ERR_INIT;

	if (has_ended(m, a) || m->im->ca.line[a->kind].slot[i].status != CA_UNUSED)
		return false;
	if (strcmp(a->slot_id, i ? "B" : "A") != 0 || (a->kind == CA_JWT && !a->id[0]))
		(void)err_set(&e, ERR_INVALID, "its slot or its id is unknown");
	else if (take(m, a, i, &e) == 0)
		return true;
	spire_leave(m->left, "%s authority %s: %s", kind_text(a->kind), a->id, e.msg);
	return false;
}

/* ---- a kind ---- */

static struct authority x509_of(const STORED(X509Authority) * x)
{
	return (struct authority){ .kind = CA_X509,
		.slot_id = x->slot_id,
		.id = x->authority_id,
		.issued_at = x->issued_at,
		.not_after = x->not_after,
		.public = bytes_of(x->certificate.data, x->certificate.len),
		.status = x->status,
		.chain = x->upstream_chain,
		.n_chain = x->n_upstream_chain };
}

static struct authority jwt_of(const STORED(KeyAuthority) * k)
{
	return (struct authority){ .kind = CA_JWT,
		.slot_id = k->slot_id,
		.id = k->kid,
		.issued_at = k->issued_at,
		.not_after = k->not_after,
		.public = bytes_of(k->public_key.data, k->public_key.len),
		.status = k->status };
}

static struct authority at(const STORED(Journal) * j, enum ca_kind k, size_t i)
{
	return k == CA_X509 ? x509_of(j->x509_cas[i]) : jwt_of(j->jwt_keys[i]);
}

/* From the newest: the active one first, then the first that has the other slot. */
static void take_kind(const struct importer *m, const STORED(Journal) * j, enum ca_kind k)
{
	size_t n = k == CA_X509 ? j->n_x509_cas : j->n_jwt_keys;
	bool done = false;

	for (size_t i = n; i-- > 0 && !done;) {
		struct authority a = at(j, k, i);

		done = a.status == STATUS(ACTIVE) && consider(m, &a);
	}
	done = false;
	for (size_t i = n; i-- > 0 && !done;) {
		struct authority a = at(j, k, i);

		done = a.status != STATUS(ACTIVE) && consider(m, &a);
	}
}

int ca_import_new(const struct spire *s, const char *trust_domain, struct keymgr *keys, int64_t now,
	struct strings *left, struct ca_import **ret, struct err *e)
{
	const struct spire_journal *chosen = choose(s, keys);
	struct ca_import *im = xcalloc(1, sizeof(*im));
	struct importer m = { .im = im,
		.bundle = spire_bundle(s, trust_domain),
		.keys = keys,
		.now = now,
		.left = left };
	STORED(Journal) * j;

	if (!chosen || !m.bundle) {
		*ret = im;
		return 0;
	}
	j = spire__private__server__journal__unpack(NULL, chosen->data.len, chosen->data.p);
	if (!j) {
		free(im);
		return err_set(e, ERR_DATA_LOSS, "SPIRE's CA journal is damaged");
	}
	take_kind(&m, j, CA_X509);
	take_kind(&m, j, CA_JWT);
	if (j->n_wit_keys)
		spire_leave(
			left, "%zu WIT authorities: this version has no WIT-SVIDs", j->n_wit_keys);
	if (s->n_journals > 1)
		spire_leave(left, "%zu CA journals of other servers", s->n_journals - 1);
	spire__private__server__journal__free_unpacked(j, NULL);
	*ret = im;
	return 0;
}

/* ---- what comes of it ---- */

bool ca_import_can_sign(const struct ca_import *im)
{
	for (int i = 0; i < CA_SLOTS; i++)
		if (im->ca.line[CA_X509].slot[i].status == CA_ACTIVE)
			return true;
	return false;
}

void ca_import_describe(const struct ca_import *im, struct buf *ret)
{
	static const char *const names[] = { "unused", "prepared", "active", "old" };

	for (int k = 0; k < CA_KINDS; k++)
		for (int i = 0; i < CA_SLOTS; i++) {
			const struct ca_slot *s = &im->ca.line[k].slot[i];
			char until[40];

			if (s->status == CA_UNUSED)
				continue;
			wall_format(wall_of_sec(s->not_after), until, sizeof(until));
			buf_printf(ret, "  %s authority %s (slot %s), %s%s, until %s%s\n",
				kind_text((enum ca_kind)k), s->id, i ? "B" : "A", names[s->status],
				s->tainted ? ", tainted" : "", until,
				im->key[k][i] ? ", with its private key" : "");
		}
}

void ca_import_journal(const struct ca_import *im, struct buf *ret)
{
	ca_journal_encode(&im->ca, ret);
}

int ca_import_check_keys(const struct ca_import *im, struct keymgr *m, struct err *e)
{
	for (int k = 0; k < CA_KINDS; k++)
		for (int i = 0; i < CA_SLOTS; i++) {
			const char *name = ca_key_name((enum ca_kind)k, i);
			AUTO(pubkey_unref) struct pubkey *pub = NULL;
			struct err none = ERR_INIT;

			if (keymgr_public(m, name, &pub, &none))
				continue;
			if (!im->key[k][i] || !bytes_equal(pubkey_spki(pub),
						      pubkey_spki(key_public(im->key[k][i]))))
				return err_set(e, ERR_EXISTS, "there is another key \"%s\"", name);
		}
	return 0;
}

int ca_import_put_keys(const struct ca_import *im, struct keymgr *m, struct err *e)
{
	int r = 0;

	for (int k = 0; k < CA_KINDS && !r; k++)
		for (int i = 0; i < CA_SLOTS && !r; i++)
			if (im->key[k][i])
				r = keymgr_put(
					m, ca_key_name((enum ca_kind)k, i), im->key[k][i], e);
	return r;
}

/* The journal of authorities: which key of the key manager is what. Public data only. */
#include "server/ca_internal.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "lib/log.h"
#include "lib/mem.h"

enum { JOURNAL_VERSION = 1 };

static const char *const status_names[] = { "unused", "prepared", "active", "old" };

const char *ca_kind_name(enum ca_kind k)
{
	return k == CA_X509 ? "x509" : "jwt";
}

/* As SPIRE's key manager has them. */
const char *ca_key_name(enum ca_kind k, int slot)
{
	static const char *const names[CA_KINDS][CA_SLOTS] = {
		{ "x509-CA-A", "x509-CA-B" },
		{ "JWT-Signer-A", "JWT-Signer-B" },
	};

	return names[k][slot];
}

/* ---- writing ---- */

static json_t *base64_string(struct bytes v)
{
	AUTO_BUF struct buf b = BUF_INIT;

	base64_encode(&b, v);
	return json_string(buf_cstr(&b));
}

static json_t *slot_json(enum ca_kind k, int i, const struct ca_slot *s)
{
	json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:I, s:I, s:s}", "kind", ca_kind_name(k),
		"slot", i ? "B" : "A", "id", s->id, "status", status_names[s->status], "issued_at",
		(json_int_t)s->issued_at, "not_after", (json_int_t)s->not_after, "key",
		ca_key_name(k, i));

	if (k == CA_X509)
		json_object_set_new(o, "certificate", base64_string(x509_der(s->cert)));
	else
		json_object_set_new(o, "public_key", base64_string(pubkey_spki(s->pub)));
	if (s->anchor) {
		json_t *chain = json_array();

		for (size_t c = 0; c < s->chain.n; c++)
			json_array_append_new(chain, base64_string(x509_der(s->chain.v[c])));
		json_object_set_new(o, "chain", chain);
		json_object_set_new(o, "root", base64_string(x509_der(s->anchor)));
	}
	if (s->tainted)
		json_object_set_new(o, "tainted", json_true());
	if (s->revoked)
		json_object_set_new(o, "revoked", json_true());
	return o;
}

static int append_text(const char *text, size_t n, void *arg)
{
	return buf_append(arg, text, n) ? 0 : -1;
}

void ca_journal_encode(const struct ca *ca, struct buf *ret)
{
	json_t *list = json_array();
	json_t *leaving = json_object();
	json_t *doc = json_pack("{s:i, s:o, s:o}", "version", JOURNAL_VERSION, "authorities", list,
		"leaving", leaving);

	for (int k = 0; k < CA_KINDS; k++) {
		json_t *ids = json_array();

		for (size_t i = 0; i < ca->line[k].leaving.n; i++)
			json_array_append_new(ids, json_string(ca->line[k].leaving.v[i]));
		json_object_set_new(leaving, ca_kind_name((enum ca_kind)k), ids);
		for (int i = 0; i < CA_SLOTS; i++)
			if (ca->line[k].slot[i].status != CA_UNUSED)
				json_array_append_new(
					list, slot_json((enum ca_kind)k, i, &ca->line[k].slot[i]));
	}
	json_dump_callback(doc, append_text, ret, JSON_COMPACT);
	json_decref(doc);
}

/* ---- reading ---- */

static const char *member(const json_t *o, const char *name)
{
	const char *s = json_string_value(json_object_get(o, name));

	return s ? s : "";
}

static int read_status(const char *name, enum ca_status *ret)
{
	for (int i = CA_PREPARED; i <= CA_OLD; i++)
		if (strcmp(name, status_names[i]) == 0) {
			*ret = (enum ca_status)i;
			return 0;
		}
	return -1;
}

static int read_cert(const json_t *text, struct x509_cert **ret, struct err *e)
{
	AUTO_BUF struct buf der = BUF_INIT;
	const char *s = json_string_value(text);
	int r = base64_decode(&der, bytes_str(s ? s : ""), e);

	return r ? r : x509_parse(buf_view(&der), ret, e);
}

/* Of one that an upstream signed. */
static int read_chain(const json_t *o, struct ca_slot *s, struct err *e)
{
	const json_t *chain = json_object_get(o, "chain");
	int r = 0;

	if (!chain)
		return 0;
	for (size_t i = 0; !r && i < json_array_size(chain) && i < X509_MAX_CHAIN; i++) {
		struct x509_cert *c = NULL;

		r = read_cert(json_array_get(chain, i), &c, e);
		if (!r)
			x509_chain_add(&s->chain, c);
		x509_unref(c);
	}
	if (!r)
		r = read_cert(json_object_get(o, "root"), &s->anchor, e);
	if (!r && (s->chain.n == 0 || !bytes_equal(x509_der(s->chain.v[0]), x509_der(s->cert))))
		r = err_set(e, ERR_INVALID, "chain");
	if (r)
		return r;
	s->root_id = ca_key_id_text(x509_ski(s->anchor));
	s->upstream_id = ca_key_id_text(x509_aki(s->cert));
	return 0;
}

static int read_public(const json_t *o, enum ca_kind k, struct ca_slot *s, struct err *e)
{
	AUTO_BUF struct buf der = BUF_INIT;
	const char *name = k == CA_X509 ? "certificate" : "public_key";
	int r = base64_decode(&der, bytes_str(member(o, name)), e);

	if (r)
		return r;
	if (k == CA_JWT)
		return pubkey_from_spki(buf_view(&der), &s->pub, e);
	r = x509_parse(buf_view(&der), &s->cert, e);
	if (!r && !x509_pubkey(s->cert))
		r = err_set(e, ERR_INVALID, "certificate has an unknown kind of key");
	if (!r)
		s->pub = pubkey_ref(x509_pubkey(s->cert));
	return r ? r : read_chain(o, s, e);
}

static int read_slot(struct ca *ca, const json_t *o, struct err *e)
{
	enum ca_kind k = strcmp(member(o, "kind"), "jwt") == 0 ? CA_JWT : CA_X509;
	int i = strcmp(member(o, "slot"), "B") == 0;
	struct ca_slot *s = &ca->line[k].slot[i];

	if (strcmp(member(o, "kind"), ca_kind_name(k)) != 0 || s->status != CA_UNUSED ||
		read_status(member(o, "status"), &s->status) || !*member(o, "id"))
		return err_set(e, ERR_INVALID, "kind, slot, status or id");
	s->id = xstrdup(member(o, "id"));
	s->issued_at = json_integer_value(json_object_get(o, "issued_at"));
	s->not_after = json_integer_value(json_object_get(o, "not_after"));
	s->tainted = json_is_true(json_object_get(o, "tainted"));
	s->revoked = json_is_true(json_object_get(o, "revoked"));
	return read_public(o, k, s, e);
}

static int damaged(struct err *e, const char *what)
{
	return err_set(e, ERR_DATA_LOSS,
		"the CA journal in the data store is damaged (%s); restore the data store from a "
		"backup",
		what);
}

static void read_leaving(struct ca *ca, const json_t *o)
{
	for (int k = 0; k < CA_KINDS; k++) {
		const json_t *ids = json_object_get(o, ca_kind_name((enum ca_kind)k));

		for (size_t i = 0; i < json_array_size(ids); i++) {
			const char *id = json_string_value(json_array_get(ids, i));

			if (id)
				strings_add(&ca->line[k].leaving, id);
		}
	}
}

static int read_doc(struct ca *ca, const json_t *doc, struct err *e)
{
	const json_t *list = json_object_get(doc, "authorities");
	json_int_t version = json_integer_value(json_object_get(doc, "version"));

	if (version > JOURNAL_VERSION)
		return err_set(e, ERR_PRECONDITION,
			"the CA journal was written by a newer version (%lld) of this program",
			(long long)version);
	if (version < 1 || !json_is_array(list))
		return damaged(e, "no version, or no list");
	for (size_t i = 0; i < json_array_size(list); i++) {
		struct err why = ERR_INIT;

		if (read_slot(ca, json_array_get(list, i), &why))
			return damaged(e, why.msg);
	}
	read_leaving(ca, json_object_get(doc, "leaving"));
	return 0;
}

int ca_journal_decode(struct ca *ca, struct bytes text, struct err *e)
{
	json_t *doc = json_loadb((const char *)text.p, text.n, JSON_REJECT_DUPLICATES, NULL);
	int r;

	if (!doc)
		return damaged(e, "no JSON");
	r = read_doc(ca, doc, e);
	json_decref(doc);
	return r;
}

/* ---- reconciling ---- */

static bool same_trust_domain(const struct ca *ca, const struct ca_slot *s)
{
	const struct strings *uris;

	if (!s->cert)
		return true;
	uris = x509_uris(s->cert);
	return uris->n == 1 && strncmp(uris->v[0], "spiffe://", 9) == 0 &&
	       strcmp(uris->v[0] + 9, ca->trust_domain) == 0;
}

/* The key of the slot must be the very one that the journal means. A slot whose key is lost is old:
 * what it signed stays good, and it signs no more. */
static void take_key(struct ca *ca, enum ca_kind k, int i)
{
	struct ca_slot *s = &ca->line[k].slot[i];
	struct keymgr_signer *signer = NULL;
	struct err e = ERR_INIT;

	if (keymgr_signer(ca->keymgr, ca_key_name(k, i), &signer, &e) == 0 &&
		bytes_equal(pubkey_spki(keymgr_signer_public(signer)), pubkey_spki(s->pub))) {
		s->signer = signer;
		return;
	}
	keymgr_signer_unref(signer);
	s->status = CA_OLD;
	ca->journal_dirty = true;
	log_event(LOG_WARN, "ca_manager", "Private key of an authority is lost; a new one is made",
		"kind", ca_kind_name(k), "slot", i ? "B" : "A", "local_authority_id", s->id, NULL);
}

static void reconcile_slot(struct ca *ca, enum ca_kind k, int i, int64_t now)
{
	struct ca_slot *s = &ca->line[k].slot[i];

	if (s->status == CA_UNUSED)
		return;
	if (s->not_after <= now || !same_trust_domain(ca, s)) {
		log_event(LOG_INFO, "ca_manager",
			s->not_after <= now ? "Authority has expired"
					    : "Authority is of another trust domain",
			"kind", ca_kind_name(k), "slot", i ? "B" : "A", "local_authority_id", s->id,
			NULL);
		ca_slot_deinit(s);
		ca->journal_dirty = true;
		return;
	}
	if (s->status != CA_OLD)
		take_key(ca, k, i);
}

/* Of two active ones (no journal of ours has that) the younger stays. */
static void one_active(struct ca *ca, struct ca_line *l)
{
	struct ca_slot *a = &l->slot[0];
	struct ca_slot *b = &l->slot[1];

	if (a->status == b->status && (a->status == CA_ACTIVE || a->status == CA_PREPARED)) {
		struct ca_slot *older = a->not_after < b->not_after ? a : b;

		older->status = CA_OLD;
		keymgr_signer_unref(older->signer);
		older->signer = NULL;
		ca->journal_dirty = true;
	}
}

int ca_reconcile(struct ca *ca, int64_t now, struct err *e)
{
	struct strings names = { .n = 0 };
	int r;

	for (int k = 0; k < CA_KINDS; k++) {
		for (int i = 0; i < CA_SLOTS; i++)
			reconcile_slot(ca, (enum ca_kind)k, i, now);
		one_active(ca, &ca->line[k]);
	}
	r = keymgr_list(ca->keymgr, &names, e);
	/* Keys of a preparation that never got into the journal, and of authorities that sign no
	 * more. */
	for (int k = 0; k < CA_KINDS && !r; k++)
		for (int i = 0; i < CA_SLOTS && !r; i++)
			if (!ca->line[k].slot[i].signer &&
				strings_has(&names, ca_key_name((enum ca_kind)k, i)))
				r = keymgr_delete(ca->keymgr, ca_key_name((enum ca_kind)k, i), e);
	strings_deinit(&names);
	return r;
}

/*
 * The state machine of the authorities. Every event (timer, end of a job, of a journal write, of a
 * bundle write, a changed bundle) ends in ca_step(), which looks at the whole state and begins
 * whatever is due. So a clock that jumps, a start after a long pause and a failure half-way need no
 * paths of their own.
 *
 * Order of an authority's life, each durable before the next: key in the key manager; journal;
 * bundle; only then signatures.
 */
#include "server/ca_internal.h"

#include <stdlib.h>
#include <string.h>

#include "lib/log.h"
#include "lib/mem.h"

#define SUBSYSTEM "ca_manager"
#define DAY_NS (INT64_C(24) * 60 * 60 * NS_PER_SEC)
#define PREPARE_MAX_NS (30 * DAY_NS)
#define ACTIVATE_MAX_NS (7 * DAY_NS)
enum { JOURNAL_MAX = 1 << 20 };

/* ---- life ---- */

static void destroy(struct ca *ca)
{
	for (int k = 0; k < CA_KINDS; k++) {
		for (int i = 0; i < CA_SLOTS; i++)
			ca_slot_deinit(&ca->line[k].slot[i]);
		strings_deinit(&ca->line[k].leaving);
	}
	bundle_unref(ca->bundle);
	bundle_unref(ca->upstream_bundle);
	ca_issuer_unref(ca->x509_issuer);
	ca_jwt_issuer_unref(ca->jwt_issuer);
	free(ca->trust_domain);
	free(ca->country);
	free(ca->organization);
	free(ca->common_name);
	free(ca->jwt_issuer_name);
	free(ca);
}

/* At the beginning of each callback. False: the owner has let go, and ca may be gone. */
static bool arrived(struct ca *ca)
{
	ca->pending--;
	if (!ca->closed)
		return true;
	if (ca->pending == 0)
		destroy(ca);
	return false;
}

void ca_free(struct ca *ca)
{
	if (!ca)
		return;
	ca->closed = true;
	loop_timer_free(ca->timer);
	loop_timer_free(ca->retry);
	loop_timer_free(ca->look);
	ca->timer = ca->retry = ca->look = NULL;
	ca_ops_cancel(ca);
	if (ca->upstream)
		upstream_on_bundle(ca->upstream, NULL, NULL);
	ca->upstream = NULL;
	if (ca->pending == 0)
		destroy(ca);
}

static char *dup_text(const char *s)
{
	return s && *s ? xstrdup(s) : NULL;
}

static void on_retry(void *arg)
{
	struct ca *ca = arg;

	ca->holding = false;
	ca_step(ca);
}

static void on_begin(void *arg)
{
	struct ca *ca = arg;

	if (arrived(ca))
		ca_step(ca);
}

static void on_upstream_bundle(void *arg, struct bundle *b)
{
	struct ca *ca = arg;

	ca_take_upstream_bundle(ca, b);
	ca->pending++;
	loop_post(ca->loop, on_begin, ca);
}

static struct ca *ca_alloc(const struct ca_options *o)
{
	struct ca *ca = xcalloc(1, sizeof(*ca));

	list_init(&ca->ops);
	ca->loop = o->loop;
	ca->store = o->store;
	ca->keymgr = o->keymgr;
	ca->trust_domain = xstrdup(o->trust_domain);
	ca->country = dup_text(o->country);
	ca->organization = dup_text(o->organization);
	ca->common_name = dup_text(o->common_name);
	ca->jwt_issuer_name = dup_text(o->jwt_issuer);
	ca->key_type[CA_X509] = o->x509_key_type;
	ca->key_type[CA_JWT] = o->jwt_key_type == KEY_NONE ? o->x509_key_type : o->jwt_key_type;
	ca->ca_ttl_ns = o->ca_ttl_ns;
	ca->x509_svid_ttl_ns = o->x509_svid_ttl_ns;
	ca->jwt_svid_ttl_ns = o->jwt_svid_ttl_ns;
	ca->agent_ttl_ns = o->agent_ttl_ns;
	ca->disable_jwt = o->disable_jwt;
	ca->unique_id = o->unique_id;
	ca->upstream = o->upstream;
	ca->backoff = (struct backoff){ .first_ns = NS_PER_SEC, .max_ns = 15 * NS_PER_SEC };
	return ca;
}

static int read_journal(struct ca *ca, struct err *e)
{
	AUTO_BUF struct buf text = BUF_INIT_MAX(JOURNAL_MAX);
	int r = store_blob_get(ca->store, STORE_CA_JOURNAL, &text, e);

	if (r == ERR_NOT_FOUND)
		return 0;
	return r ? err_wrap(e, "unable to read the CA journal")
		 : ca_journal_decode(ca, buf_view(&text), e);
}

int ca_new(const struct ca_options *o, void (*ready)(void *arg, const struct err *e), void *arg,
	struct ca **ret, struct err *e)
{
	struct ca *ca = ca_alloc(o);
	int r = read_journal(ca, e);

	if (!r)
		r = ca_reconcile(ca, clock_wall().sec, e);
	if (r) {
		destroy(ca);
		return r;
	}
	ca->ready_fn = ready;
	ca->ready_arg = arg;
	ca->timer = loop_timer_new(ca->loop, ca_step, ca);
	ca->retry = loop_timer_new(ca->loop, on_retry, ca);
	ca->look = loop_timer_new(ca->loop, ca_step, ca);
	ca_mark_unfit(ca);
	if (ca->upstream)
		upstream_on_bundle(ca->upstream, on_upstream_bundle, ca);
	ca->pending++;
	loop_post(ca->loop, on_begin, ca);
	*ret = ca;
	return 0;
}

bool ca_ready(const struct ca *ca)
{
	return ca->ready;
}

struct bundle *ca_bundle(const struct ca *ca)
{
	return ca->bundle;
}

void ca_on_activate(struct ca *ca, void (*fn)(void *arg), void *arg)
{
	ca->activate_fn = fn;
	ca->activate_arg = arg;
}

struct ca_issuer *ca_issuer(struct ca *ca)
{
	return ca->ready ? ca_issuer_ref(ca->x509_issuer) : NULL;
}

struct ca_jwt_issuer *ca_jwt_issuer(struct ca *ca)
{
	return ca->ready && ca->jwt_issuer ? ca_jwt_issuer_ref(ca->jwt_issuer) : NULL;
}

/* ---- failures ---- */

/* Before the first authorities stand, a failure is the caller's to judge; later it is tried again.
 */
static void failed(struct ca *ca, enum ca_kind kind, const char *what, int code, const char *msg)
{
	struct err e = ERR_INIT;

	/* A server above that is not there, or does not know us yet, may come. */
	if (!ca->ready && !(kind != CA_KINDS && upstream_follows(ca->upstream))) {
		ca->failed = true;
		(void)err_set(&e, code, "%s: %s", what, msg);
		if (ca->ready_fn)
			ca->ready_fn(ca->ready_arg, &e);
		ca->ready_fn = NULL;
		return;
	}
	log_event(LOG_ERROR, SUBSYSTEM, what, "error", msg, NULL);
	ca->holding = true;
	loop_timer_set(ca->retry, backoff_next(&ca->backoff));
	ca_ops_failed(ca, kind, msg);
}

/* ---- one line of authorities ---- */

struct ca_slot *ca_slot_of(struct ca_line *l, enum ca_status status)
{
	for (int i = 0; i < CA_SLOTS; i++)
		if (l->slot[i].status == status)
			return &l->slot[i];
	return NULL;
}

static int64_t least(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

static int64_t lifetime_ns(const struct ca_slot *s)
{
	return (s->not_after - s->issued_at) * NS_PER_SEC;
}

static struct wall prepare_at(const struct ca_slot *active)
{
	return wall_add_ns(
		wall_of_sec(active->not_after), -least(lifetime_ns(active) / 2, PREPARE_MAX_NS));
}

static struct wall activate_at(const struct ca_slot *active)
{
	return wall_add_ns(
		wall_of_sec(active->not_after), -least(lifetime_ns(active) / 6, ACTIVATE_MAX_NS));
}

static bool reached(struct wall t, struct wall now)
{
	return wall_sub_ns(now, t) >= 0;
}

static void log_slot(const char *msg, enum ca_kind k, int i, const struct ca_slot *s)
{
	char issued[40], ends[40];

	wall_format(wall_of_sec(s->issued_at), issued, sizeof(issued));
	wall_format(wall_of_sec(s->not_after), ends, sizeof(ends));
	log_event(LOG_INFO, SUBSYSTEM, msg, "expiration", ends, "issued_at", issued,
		"local_authority_id", s->id, "slot", i ? "B" : "A", "self_signed",
		k != CA_X509 ? NULL
		: s->anchor  ? "false"
			     : "true",
		"upstream_authority_id", s->upstream_id, NULL);
}

/* ---- preparing, and dropping keys: jobs ---- */

struct job {
	struct ca *ca;
	enum ca_kind kind;
	int slot;
	struct wall now;
	struct ca_slot made;
	struct buf csr; /* for an upstream */
	int r;
	struct err e;
};

static struct job *job_new(struct ca *ca, enum ca_kind k, int slot)
{
	struct job *j = xcalloc(1, sizeof(*j));

	j->ca = ca;
	j->kind = k;
	j->slot = slot;
	j->now = clock_wall();
	j->csr = BUF_INIT_MAX(X509_MAX_DER);
	ca->pending++;
	ca->line[k].busy = true;
	return j;
}

static void prepare_work(void *arg)
{
	struct job *j = arg;

	j->r = ca_make(j->ca, j->kind, j->slot, j->now, &j->made, &j->csr, &j->e);
}

static void prepared(struct ca *ca, struct job *j)
{
	struct ca_slot *s = &ca->line[j->kind].slot[j->slot];

	ca->line[j->kind].busy = ca->line[j->kind].preparing = false;
	if (j->r) {
		failed(ca, j->kind,
			j->kind == CA_X509 ? "Unable to prepare X509 CA"
					   : "Unable to prepare JWT key",
			j->r, j->e.msg);
		return;
	}
	if (s->status == CA_PREPARED)
		strings_add(&ca->line[j->kind].leaving, s->id);
	ca_slot_deinit(s);
	*s = j->made;
	ca_ops_prepared(ca, j->kind, s);
	j->made = (struct ca_slot){ .status = CA_UNUSED };
	ca->journal_dirty = true;
	log_slot(j->kind == CA_X509 ? "X509 CA prepared" : "JWT key prepared", j->kind, j->slot, s);
	ca_step(ca);
}

static void prepare_end(struct job *j)
{
	if (arrived(j->ca))
		prepared(j->ca, j);
	ca_slot_deinit(&j->made);
	buf_deinit(&j->csr);
	free(j);
}

static void upstream_answered(
	void *arg, const struct x509_chain *chain, struct bundle *b, const struct err *e)
{
	struct job *j = arg;

	j->r = e->code;
	j->e = *e;
	if (j->kind == CA_JWT && e->code == ERR_UNIMPLEMENTED) {
		log_event(LOG_WARN, SUBSYSTEM,
			"the upstream authority takes no JWT keys: JWT-SVIDs of this server are "
			"good below it only",
			NULL);
		j->ca->jwt_stays_here = true;
		j->r = 0;
	}
	if (!j->r && !j->ca->closed && chain)
		j->r = ca_take_minted(j->ca, &j->made, chain, b, &j->e);
	if (!j->r && !j->ca->closed && b)
		ca_take_upstream_bundle(j->ca, b);
	prepare_end(j);
}

static void prepare_done(void *arg)
{
	struct job *j = arg;
	const struct bundle_jwt_key key = {
		.key_id = j->made.id, .key = j->made.pub, .expires_at = j->made.not_after
	};

	if (j->r || j->ca->closed || !j->ca->upstream)
		prepare_end(j);
	else if (j->kind == CA_X509)
		upstream_mint(
			j->ca->upstream, buf_view(&j->csr), j->ca->ca_ttl_ns, upstream_answered, j);
	else if (upstream_publishes(j->ca->upstream))
		upstream_publish(j->ca->upstream, &key, upstream_answered, j);
	else
		prepare_end(j);
}

static void drop_work(void *arg)
{
	struct job *j = arg;

	j->r = keymgr_delete(j->ca->keymgr, ca_key_name(j->kind, j->slot), &j->e);
}

static void drop_done(void *arg)
{
	struct job *j = arg;

	if (arrived(j->ca)) {
		/* Not tried again: the next key of this slot, or the next start, takes its place.
		 */
		if (j->r && j->r != ERR_NOT_FOUND)
			log_event(LOG_WARN, SUBSYSTEM,
				"Unable to delete the key of an old authority", "error", j->e.msg,
				NULL);
		j->ca->line[j->kind].busy = false;
		ca_step(j->ca);
	}
	free(j);
}

/* ---- journal and bundle ---- */

static void journal_done(void *arg, int code, const char *msg)
{
	struct ca *ca = arg;

	if (!arrived(ca))
		return;
	ca->journal_busy = false;
	if (code) {
		ca->journal_dirty = true;
		failed(ca, CA_KINDS, "Unable to write the CA journal", code, msg);
		return;
	}
	backoff_reset(&ca->backoff);
	ca_step(ca);
}

static void write_journal(struct ca *ca)
{
	AUTO_BUF struct buf text = BUF_INIT_MAX(JOURNAL_MAX);

	ca_journal_encode(ca, &text);
	ca->journal_dirty = false;
	ca->journal_busy = true;
	ca->pending++;
	store_blob_put(ca->store, STORE_CA_JOURNAL, buf_view(&text), journal_done, ca);
}

static void bundle_done(void *arg, int code, const char *msg)
{
	struct ca *ca = arg;

	if (!arrived(ca))
		return;
	ca->bundle_busy = false;
	/* Somebody else's change came first; the observer has told us of it before this. */
	if (code == ERR_ABORTED && ca->bundle && ca->bundle->sequence != ca->expected_sequence)
		code = 0;
	if (code) {
		failed(ca, CA_KINDS, "Unable to write the bundle", code, msg);
		return;
	}
	ca_step(ca);
}

static void write_bundle(struct ca *ca, struct bundle *b)
{
	ca->bundle_busy = true;
	ca->expected_sequence = ca->bundle ? ca->bundle->sequence : 0;
	ca->pending++;
	store_bundle_put(ca->store, b, ca->expected_sequence, bundle_done, ca);
}

void ca_bundle_changed(struct ca *ca, struct bundle *b)
{
	bundle_unref(ca->bundle);
	ca->bundle = b ? bundle_ref(b) : NULL;
	ca_note_sequence(ca);
	/* Deferred: an observer must not find the store written to from inside. */
	ca->pending++;
	loop_post(ca->loop, on_begin, ca);
}

/* ---- the steps ---- */

static void forget_expired(struct ca *ca, struct ca_line *l, int64_t now)
{
	for (int i = 0; i < CA_SLOTS; i++) {
		struct ca_slot *s = &l->slot[i];

		if (s->status != CA_PREPARED || (s->not_after > now && !s->unfit))
			continue;
		if (s->unfit && !s->anchor)
			strings_add(&l->leaving, s->id);
		ca_slot_deinit(s);
		ca->journal_dirty = true;
	}
}

static bool prepare_is_due(struct ca_line *l, struct wall now)
{
	const struct ca_slot *active = ca_slot_of(l, CA_ACTIVE);

	if (l->busy || ca_slot_of(l, CA_PREPARED))
		return false;
	return !active || active->unfit || reached(prepare_at(active), now);
}

void ca_prepare(struct ca *ca, enum ca_kind k)
{
	struct ca_line *l = &ca->line[k];
	int slot = l->slot[0].status == CA_ACTIVE ||
		   (l->slot[0].status == CA_OLD && l->slot[1].status == CA_UNUSED);
	struct job *j = job_new(ca, k, slot);

	l->preparing = true;
	loop_job(ca->loop, prepare_work, prepare_done, j);
}

static void drop_keys(struct ca *ca, enum ca_kind k)
{
	struct ca_line *l = &ca->line[k];

	for (int i = 0; i < CA_SLOTS && !l->busy; i++) {
		if (!l->slot[i].drop_key)
			continue;
		l->slot[i].drop_key = false;
		loop_job(ca->loop, drop_work, drop_done, job_new(ca, k, i));
	}
}

static bool activation_is_due(struct ca *ca, enum ca_kind k, struct wall now)
{
	struct ca_line *l = &ca->line[k];
	struct ca_slot *next = ca_slot_of(l, CA_PREPARED);
	const struct ca_slot *active = ca_slot_of(l, CA_ACTIVE);

	if (!next || l->preparing || !ca_in_bundle(ca, k, next))
		return false;
	if (!active)
		return true;
	return (active->unfit || reached(activate_at(active), now)) &&
	       ca_may_activate(ca, k, next, active);
}

void ca_activate(struct ca *ca, enum ca_kind k)
{
	struct ca_line *l = &ca->line[k];
	struct ca_slot *old = ca_slot_of(l, CA_ACTIVE);
	struct ca_slot *next = ca_slot_of(l, CA_PREPARED);

	if (old) {
		old->status = CA_OLD;
		old->revoked |= strings_has(&l->leaving, old->root_id ? old->root_id : old->id);
		old->drop_key = true;
		keymgr_signer_unref(old->signer);
		old->signer = NULL;
	}
	next->status = CA_ACTIVE;
	ca->journal_dirty = true;
	log_slot(k == CA_X509 ? "X509 CA activated" : "JWT key activated", k, (int)(next - l->slot),
		next);
}

/* An issuer is given out only for an authority that verifiers can know. True when the X.509 one
 * changed. */
static bool renew_issuers(struct ca *ca)
{
	const struct ca_slot *x = ca_slot_of(&ca->line[CA_X509], CA_ACTIVE);
	const struct ca_slot *j = ca_slot_of(&ca->line[CA_JWT], CA_ACTIVE);
	bool changed = false;

	if (x && !ca_issuer_is_of(ca->x509_issuer, x) && ca_in_bundle(ca, CA_X509, x)) {
		ca_issuer_unref(ca->x509_issuer);
		ca->x509_issuer = ca_issuer_new(ca, x);
		changed = true;
	}
	if (j && !ca_jwt_issuer_is_of(ca->jwt_issuer, j) && ca_in_bundle(ca, CA_JWT, j)) {
		ca_jwt_issuer_unref(ca->jwt_issuer);
		ca->jwt_issuer = ca_jwt_issuer_new(ca, j);
	}
	return changed;
}

static void check_ready(struct ca *ca)
{
	void (*fn)(void *arg, const struct err *e) = ca->ready_fn;
	const struct err none = ERR_INIT;

	if (ca->ready || !ca->x509_issuer || (!ca->jwt_issuer && !ca->disable_jwt))
		return;
	ca->ready = true;
	ca->ready_fn = NULL;
	if (fn)
		fn(ca->ready_arg, &none);
}

static struct wall earlier(struct wall a, struct wall b, struct wall now)
{
	if (reached(b, now)) /* due now: under way, and its end leads to a step */
		return a;
	return wall_sub_ns(a, b) < 0 ? a : b;
}

static void set_timer(struct ca *ca, struct wall now)
{
	int64_t prune = ca_next_prune(ca, now.sec);
	struct wall next = wall_add_ns(now, DAY_NS);

	if (prune != INT64_MAX)
		next = earlier(next, wall_of_sec(prune), now);
	for (int k = 0; k < CA_KINDS; k++) {
		const struct ca_slot *active = ca_slot_of(&ca->line[k], CA_ACTIVE);

		if (!active)
			continue;
		next = earlier(next, prepare_at(active), now);
		next = earlier(next, activate_at(active), now);
	}
	loop_timer_set_wall(ca->timer, next);
}

static void step_line(struct ca *ca, enum ca_kind k, struct wall now)
{
	struct ca_line *l = &ca->line[k];

	forget_expired(ca, l, now.sec);
	if (activation_is_due(ca, k, now))
		ca_activate(ca, k);
	if (!ca->journal_dirty && !ca->journal_busy)
		drop_keys(ca, k);
	if (prepare_is_due(l, now))
		ca_prepare(ca, k);
}

static void step_bundle(struct ca *ca, int64_t now)
{
	struct bundle *b;

	if (ca->journal_dirty || ca->journal_busy || ca->bundle_busy)
		return;
	b = ca_wanted_bundle(ca, now);
	if (!b)
		return;
	write_bundle(ca, b);
	bundle_unref(b);
}

void ca_step(void *arg)
{
	struct ca *ca = arg;
	struct wall now = clock_wall();
	bool changed;

	if (ca->failed || ca->holding)
		return;
	ca->waiting = false;
	step_line(ca, CA_X509, now);
	if (!ca->disable_jwt)
		step_line(ca, CA_JWT, now);
	ca_ops_begin(ca);
	ca_forget_left(ca);
	if (ca->journal_dirty && !ca->journal_busy)
		write_journal(ca);
	step_bundle(ca, now.sec);
	set_timer(ca, now);
	changed = renew_issuers(ca);
	ca_ops_finish(ca);
	/* Each of these calls may free ca. */
	if (!changed || !ca->ready)
		check_ready(ca);
	else if (ca->activate_fn)
		ca->activate_fn(ca->activate_arg);
}

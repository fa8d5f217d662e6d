/*
 * Rotation by an operator's word, and the rule that no authority signs before its public half was
 * seen. An operation sets what is wanted in the slots; the steps of ca.c bring journal and bundle
 * there, and each step's end looks which operations have come true.
 */
#include <stdlib.h>
#include <string.h>

#include "lib/log.h"
#include "lib/mem.h"
#include "server/ca_internal.h"

#define SUBSYSTEM "ca_manager"
#define LOOK_NS (250 * NS_PER_MS)
#define HOLD_MAX_NS (30 * NS_PER_SEC)
#define CARRY_OUT_NS (60 * NS_PER_SEC) /* a large RSA key takes a while */

static const char *const kind_texts[] = { [CA_X509] = "X.509", [CA_JWT] = "JWT" };
static const char *const verbs[] = {
	[CA_PREPARE] = "prepare",
	[CA_ACTIVATE] = "activate",
	[CA_TAINT] = "taint",
	[CA_REVOKE] = "revoke",
};

/* ---- reading ---- */

static struct ca_authority view(const struct ca_slot *s)
{
	if (!s)
		return (struct ca_authority){ .id = NULL };
	return (struct ca_authority){
		.id = s->id, .expires_at = s->not_after, .upstream_id = s->upstream_id
	};
}

int ca_state(const struct ca *ca, enum ca_kind k, struct ca_state *ret, struct err *e)
{
	struct ca_line *l = (struct ca_line *)(uintptr_t)&ca->line[k];
	const struct ca_slot *active = ca_slot_of(l, CA_ACTIVE);

	if (!ca->ready || !active)
		return err_set(e, ERR_UNAVAILABLE, "server is initializing");
	*ret = (struct ca_state){ .active = view(active),
		.prepared = view(ca_slot_of(l, CA_PREPARED)),
		.old = view(ca_slot_of(l, CA_OLD)) };
	return 0;
}

static struct ca_slot *find(struct ca_line *l, const char *id)
{
	for (int i = 0; i < CA_SLOTS; i++)
		if (l->slot[i].status != CA_UNUSED && strcmp(l->slot[i].id, id) == 0)
			return &l->slot[i];
	return NULL;
}

uint64_t ca_sequence_of(const struct ca *ca, const char *id)
{
	for (int k = 0; k < CA_KINDS; k++) {
		const struct ca_slot *s = find((struct ca_line *)(uintptr_t)&ca->line[k], id);

		if (s)
			return s->sequence;
	}
	return 0;
}

/* ---- who has seen it ---- */

void ca_on_missing(struct ca *ca, ca_missing_fn *missing, void *arg)
{
	ca->missing_fn = missing;
	ca->missing_arg = arg;
}

void ca_seen(struct ca *ca)
{
	if (ca->waiting && !ca->looking) {
		ca->looking = true;
		loop_timer_set(ca->look, 0);
	}
}

static size_t missing(const struct ca *ca, const struct ca_slot *s, struct strings *ret)
{
	return ca->missing_fn ? ca->missing_fn(ca->missing_arg, s->sequence, ret) : 0;
}

static void join(const struct strings *names, size_t n, struct buf *ret)
{
	for (size_t i = 0; i < names->n; i++)
		buf_printf(ret, "%s%s", i ? ", " : "", names->v[i]);
	if (n > names->n)
		buf_printf(ret, " and %zu more", n - names->n);
}

static bool passed(struct mono t)
{
	return clock_mono().ns >= t.ns;
}

/* An authority that is near its end must be followed by somebody: the wait has a bound. */
static void hold(enum ca_kind k, struct ca_slot *next, const struct ca_slot *active, size_t n)
{
	int64_t left = wall_sub_ns(wall_of_sec(active->not_after), clock_wall()) / 2;

	left = left > HOLD_MAX_NS ? HOLD_MAX_NS : left;
	next->hold_until.ns = clock_mono().ns + (left > 0 ? left : 0);
	log_event(LOG_INFO, SUBSYSTEM, "An authority waits to be seen before it signs", "kind",
		ca_kind_name(k), "local_authority_id", next->id, "agents_missing",
		log_fmt("%zu", n), NULL);
}

bool ca_may_activate(
	struct ca *ca, enum ca_kind k, struct ca_slot *next, const struct ca_slot *active)
{
	struct strings names = { .n = 0 };
	size_t n = missing(ca, next, &names);

	if (n && !next->hold_until.ns)
		hold(k, next, active, n);
	if (n && passed(next->hold_until)) {
		AUTO_BUF struct buf who = BUF_INIT_MAX(4096);

		join(&names, n, &who);
		log_event(LOG_WARN, SUBSYSTEM, "An authority signs that not all agents have seen",
			"kind", ca_kind_name(k), "local_authority_id", next->id, "agents_missing",
			buf_cstr(&who), NULL);
		n = 0;
	}
	strings_deinit(&names);
	ca->waiting |= n > 0;
	return n == 0;
}

/* ---- what may be asked for: SPIRE's codes and texts ---- */

static const char *status_text(enum ca_status s)
{
	switch (s) {
	case CA_PREPARED:
		return "PREPARED";
	case CA_ACTIVE:
		return "ACTIVE";
	case CA_OLD:
		return "OLD";
	default:
		return "UNKNOWN";
	}
}

static const struct ca_slot *next_of(const struct ca_line *l)
{
	for (int i = 0; i < CA_SLOTS; i++)
		if (l->slot[i].status == CA_PREPARED || l->slot[i].status == CA_OLD)
			return &l->slot[i];
	return NULL;
}

static bool is(const struct ca_slot *s, const char *id)
{
	return s && strcmp(s->id, id) == 0;
}

static int check_activate(struct ca_line *l, const char *id, struct err *e)
{
	const struct ca_slot *next = next_of(l);

	if (!is(next, id))
		return err_set(e, ERR_INVALID, "unexpected authority ID");
	if (next->status != CA_PREPARED)
		return err_set(e, ERR_INTERNAL,
			"only Prepared authorities can be activated: unsupported local authority "
			"status: %s",
			status_text(next->status));
	return 0;
}

static int check_taint(struct ca *ca, enum ca_kind k, const char *id, struct err *e)
{
	struct ca_line *l = &ca->line[k];
	const struct ca_slot *next = next_of(l);
	bool tainted = false;

	if (is(ca_slot_of(l, CA_ACTIVE), id))
		return err_set(e, ERR_INVALID, "unable to taint current local authority");
	if (!is(next, id))
		return err_set(e, ERR_INVALID, "unexpected authority ID");
	if (next->status != CA_OLD)
		return err_set(e, ERR_INVALID,
			"only Old local authorities can be tainted: unsupported local authority "
			"status: %s",
			status_text(next->status));
	if (!ca_bundle_has(ca, k, id, &tainted))
		return err_set(e, ERR_INTERNAL, "failed to taint %s authority: no %s",
			kind_texts[k],
			k == CA_X509 ? "ca found with provided subject key ID"
				     : "JWT Key found with provided key ID");
	if (tainted)
		return err_set(e, ERR_INTERNAL,
			"failed to taint %s authority: %s is already tainted", kind_texts[k],
			k == CA_X509 ? "root CA" : "key");
	return 0;
}

static int invalid_id(struct err *e, const char *why)
{
	return err_set(e, ERR_INVALID, "invalid authority ID: %s", why);
}

/* Which ids are fit to be revoked: of X.509 the old authority; of JWT any key of the bundle that
 * this server will not sign with. */
static int check_revocable(struct ca *ca, enum ca_kind k, const char *id, struct err *e)
{
	struct ca_line *l = &ca->line[k];
	const struct ca_slot *next = next_of(l);
	bool tainted;

	if (is(ca_slot_of(l, CA_ACTIVE), id))
		return invalid_id(e, "unable to use current authority");
	if (k == CA_X509)
		return is(next, id) && next->status == CA_OLD
			       ? 0
			       : invalid_id(e, "only Old local authority can be revoked");
	if (is(next, id))
		return next->status == CA_OLD ? 0 : invalid_id(e, "unable to use a prepared key");
	if (!ca_bundle_has(ca, k, id, &tainted))
		return invalid_id(e, "no JWT authority found with provided authority ID");
	return 0;
}

static int check_revoke(struct ca *ca, enum ca_kind k, const char *id, struct err *e)
{
	bool tainted = false;
	int r = check_revocable(ca, k, id, e);

	if (r)
		return r;
	if (!ca_bundle_has(ca, k, id, &tainted))
		return err_set(e, ERR_INTERNAL, "failed to revoke %s authority: no %s",
			kind_texts[k],
			k == CA_X509 ? "root CA found with provided subject key ID"
				     : "JWT Key found with provided key ID");
	if (!tainted)
		return err_set(e, ERR_INTERNAL,
			"failed to revoke %s authority: it is not possible to revoke an untainted "
			"%s",
			kind_texts[k], k == CA_X509 ? "root CA" : "key");
	return 0;
}

static int check(struct ca *ca, enum ca_force what, enum ca_kind k, const char *id, struct err *e)
{
	if (!ca->ready || !ca_slot_of(&ca->line[k], CA_ACTIVE))
		return err_set(e, ERR_UNAVAILABLE, "server is initializing");
	if (ca->n_ops >= CA_OPS_MAX)
		return err_set(e, ERR_EXHAUSTED, "too many rotations are under way");
	if (what == CA_PREPARE)
		return 0;
	if (k == CA_X509 && ca->upstream && what != CA_ACTIVATE)
		return err_set(e, ERR_PRECONDITION,
			"local authority can't be %s if there is an upstream authority",
			what == CA_TAINT ? "tainted" : "revoked");
	if (!id[0])
		return what == CA_REVOKE ? invalid_id(e, "no authority ID provided")
					 : err_set(e, ERR_INVALID, "no authority ID provided");
	if (what == CA_ACTIVATE)
		return check_activate(&ca->line[k], id, e);
	if (what == CA_TAINT)
		return check_taint(ca, k, id, e);
	return check_revoke(ca, k, id, e);
}

/* ---- operations ---- */

static void op_end(
	struct ca *ca, struct ca_op *op, const struct ca_authority *a, const struct err *e)
{
	list_remove(&op->link);
	ca->n_ops--;
	op->done(op->arg, a, e);
	free(op->id);
	free(op);
}

static void op_failed(struct ca *ca, struct ca_op *op, const char *why)
{
	struct err e = ERR_INIT;

	(void)err_set(&e, ERR_INTERNAL, "failed to %s %s authority: %s", verbs[op->what],
		kind_texts[op->kind], why);
	op_end(ca, op, NULL, &e);
}

void ca_ops_failed(struct ca *ca, enum ca_kind k, const char *why)
{
	list_each (op, &ca->ops, struct ca_op, link)
		if (op->begun && (k == CA_KINDS || k == op->kind))
			op_failed(ca, op, why);
}

void ca_ops_cancel(struct ca *ca)
{
	struct err e = ERR_INIT;

	(void)err_set(&e, ERR_CANCELLED, "the server is stopping");
	list_each (op, &ca->ops, struct ca_op, link)
		op_end(ca, op, NULL, &e);
}

void ca_ops_prepared(struct ca *ca, enum ca_kind k, const struct ca_slot *s)
{
	list_each (op, &ca->ops, struct ca_op, link)
		if (op->what == CA_PREPARE && op->kind == k && op->begun && !op->id)
			op->id = xstrdup(s->id);
}

static void begin_activate(struct ca *ca, struct ca_op *op)
{
	struct ca_slot *s = find(&ca->line[op->kind], op->id);
	struct strings names = { .n = 0 };
	size_t n;

	if (s && s->status == CA_ACTIVE) { /* the schedule was faster */
		op->begun = true;
		return;
	}
	if (!s || s->status != CA_PREPARED || ca->line[op->kind].preparing ||
		!ca_in_bundle(ca, op->kind, s))
		return;
	n = op->at_once ? 0 : missing(ca, s, &names);
	if (n == 0) {
		op->begun = true;
		ca_activate(ca, op->kind);
	}
	ca->waiting |= n > 0;
	strings_deinit(&names);
}

void ca_ops_begin(struct ca *ca)
{
	list_each (op, &ca->ops, struct ca_op, link) {
		if (op->begun)
			continue;
		if (op->what == CA_ACTIVATE)
			begin_activate(ca, op);
		if (op->what == CA_PREPARE && !ca->line[op->kind].busy && !ca->journal_dirty) {
			op->begun = true;
			ca_prepare(ca, op->kind);
		}
	}
}

/* Is what was asked for durable, and what the stored bundle says? */
static bool came_true(struct ca *ca, const struct ca_op *op, const struct ca_slot *s)
{
	bool tainted = false;

	if (!op->begun || !op->id || ca->journal_dirty || ca->journal_busy)
		return false;
	switch (op->what) {
	case CA_PREPARE:
		return s && ca_in_bundle(ca, op->kind, s);
	case CA_ACTIVATE:
		return s && s->status == CA_ACTIVE &&
		       (op->kind == CA_X509 ? ca_issuer_is_of(ca->x509_issuer, s)
					    : ca_jwt_issuer_is_of(ca->jwt_issuer, s));
	case CA_TAINT:
		return ca_bundle_has(ca, op->kind, op->id, &tainted) && tainted;
	default:
		return !ca_bundle_has(ca, op->kind, op->id, &tainted);
	}
}

static void too_late(struct ca *ca, struct ca_op *op, const struct ca_slot *s)
{
	AUTO_BUF struct buf who = BUF_INIT_MAX(4096);
	struct strings names = { .n = 0 };
	struct err e = ERR_INIT;
	size_t n;

	if (op->what != CA_ACTIVATE || op->begun || !s) {
		op_failed(ca, op, "it takes too long; look again later");
		return;
	}
	n = missing(ca, s, &names);
	join(&names, n, &who);
	(void)err_set(&e, ERR_PRECONDITION,
		"%zu agent%s not seen this authority yet: %s; try again, or activate it with "
		"-force",
		n, n == 1 ? " has" : "s have", buf_cstr(&who));
	strings_deinit(&names);
	op_end(ca, op, NULL, &e);
}

static void succeed(struct ca *ca, struct ca_op *op, const struct ca_slot *s)
{
	AUTO(free) char *id = xstrdup(op->id);
	struct ca_authority a = { .id = id,
		.expires_at = s ? s->not_after : 0,
		.upstream_id = s ? s->upstream_id : NULL };
	struct err none = ERR_INIT;

	log_event(LOG_INFO, SUBSYSTEM,
		op->what == CA_PREPARE    ? "Authority prepared by an operator"
		: op->what == CA_ACTIVATE ? "Authority activated by an operator"
		: op->what == CA_TAINT    ? "Authority tainted by an operator"
					  : "Authority revoked by an operator",
		"kind", ca_kind_name(op->kind), "local_authority_id", id, NULL);
	op_end(ca, op, &a, &none);
}

void ca_ops_finish(struct ca *ca)
{
	ca->looking = false;
	list_each (op, &ca->ops, struct ca_op, link) {
		const struct ca_slot *s = op->id ? find(&ca->line[op->kind], op->id) : NULL;

		if (came_true(ca, op, s))
			succeed(ca, op, s);
		else if (passed(op->until))
			too_late(ca, op, s);
	}
	if (ca->n_ops || ca->waiting)
		loop_timer_set(ca->look, LOOK_NS);
}

/* Taint and revocation are set here: the steps carry them out. */
static void set_wanted(struct ca *ca, struct ca_op *op)
{
	struct ca_line *l = &ca->line[op->kind];
	struct ca_slot *s = find(l, op->id);

	op->begun = true;
	if (!s) {
		strings_add(&l->leaving, op->id);
	} else {
		s->tainted = true;
		s->revoked |= op->what == CA_REVOKE;
	}
	ca->journal_dirty = true;
}

void ca_force(struct ca *ca, enum ca_force what, enum ca_kind k, const char *id, bool at_once,
	ca_force_done *done, void *arg)
{
	struct err e = ERR_INIT;
	struct ca_op *op;

	if (check(ca, what, k, id, &e)) {
		done(arg, NULL, &e);
		return;
	}
	op = xcalloc(1, sizeof(*op));
	*op = (struct ca_op){ .what = what,
		.kind = k,
		.id = what == CA_PREPARE ? NULL : xstrdup(id),
		.at_once = at_once,
		.until = { clock_mono().ns +
			   (what == CA_ACTIVATE ? CA_SEEN_WAIT_NS : CARRY_OUT_NS) },
		.done = done,
		.arg = arg };
	list_append(&ca->ops, &op->link);
	ca->n_ops++;
	if (what == CA_TAINT || what == CA_REVOKE)
		set_wanted(ca, op);
	loop_timer_set(ca->look, 0);
}

void ca_force_upstream(
	struct ca *ca, enum ca_force what, const char *id, ca_force_done *done, void *arg)
{
	struct err e = ERR_INIT;
	struct ca_slot *s;
	struct ca_op *op;

	if (ca_check_upstream(ca, what, id, &s, &e)) {
		done(arg, NULL, &e);
		return;
	}
	op = xcalloc(1, sizeof(*op));
	*op = (struct ca_op){ .what = what,
		.kind = CA_X509,
		.id = xstrdup(s->root_id),
		.begun = true,
		.until = { clock_mono().ns + CARRY_OUT_NS },
		.done = done,
		.arg = arg };
	list_append(&ca->ops, &op->link);
	ca->n_ops++;
	s->tainted = true;
	s->revoked |= what == CA_REVOKE;
	ca->journal_dirty = true;
	loop_timer_set(ca->look, 0);
}

/* Node attestation: the table of attestors, sessions, and the template of agent paths. */
#include "server/attest_internal.h"

#include <stdlib.h>
#include <string.h>

static const struct attestor *const attestors[] = { &attestor_join_token, &attestor_x509pop,
	&attestor_sshpop, &attestor_http_challenge, &attestor_k8s_psat };

static bool is_configured(const struct attest *a, const struct attestor *k)
{
	if (k == &attestor_join_token)
		return a->join_token;
	if (k == &attestor_sshpop)
		return a->sshpop != NULL;
	if (k == &attestor_http_challenge)
		return a->http_challenge != NULL;
	if (k == &attestor_k8s_psat)
		return a->psat != NULL;
	return k == &attestor_x509pop && a->x509pop;
}

int attest_new(const struct attest_options *o, struct attest **ret, struct err *e)
{
	struct attest *a = xcalloc(1, sizeof(*a));
	int r = 0;

	a->o = *o;
	a->join_token = o->config->attest_join_token;
	if (o->config->attest_x509pop)
		r = x509pop_new(o, &a->x509pop, e);
	if (!r && o->config->attest_sshpop)
		r = sshpop_new(o, &a->sshpop, e);
	if (!r && o->config->attest_http_challenge)
		r = http_challenge_new(o, &a->http_challenge, e);
	if (!r && o->config->attest_psat)
		psat_new(o, &a->psat);
	if (r)
		attest_free(a);
	else
		*ret = a;
	return r;
}

void attest_free(struct attest *a)
{
	if (!a)
		return;
	x509pop_free(a->x509pop);
	sshpop_free(a->sshpop);
	http_challenge_free(a->http_challenge);
	psat_free(a->psat);
	free(a);
}

/* ---- sessions ---- */

static void session_free(struct attest_session *s)
{
	if (s->state)
		s->kind->free_state(s->state);
	free(s->address);
	free(s);
}

static const struct attestor *find(const struct attest *a, const char *type)
{
	for (size_t i = 0; i < ARRAY_LEN(attestors); i++)
		if (strcmp(attestors[i]->type, type) == 0 && is_configured(a, attestors[i]))
			return attestors[i];
	return NULL;
}

int attest_begin(struct attest *a, const char *type, struct bytes payload, const char *address,
	attest_fn *fn, void *arg, struct attest_session **ret, struct err *e)
{
	const struct attestor *k = find(a, type);
	struct attest_session *s;

	if (!k)
		return err_set(e, ERR_PRECONDITION,
			"error getting node attestor: could not find node attestor type \"%.64s\"",
			type);
	if (payload.n > ATTEST_PAYLOAD_MAX)
		return err_set(e, ERR_INVALID, "malformed param: attestation payload too large");
	s = xcalloc(1, sizeof(*s));
	s->attest = a;
	s->kind = k;
	s->address = xstrdup(address);
	s->fn = fn;
	s->arg = arg;
	s->busy = true;
	k->begin(s, payload);
	*ret = s;
	return 0;
}

static void fail_no_challenge(struct attest_session *s)
{
	struct err e;

	err_set(&e, ERR_INVALID, "no challenge is open");
	attest_step_failed(s, &e);
}

void attest_respond(struct attest_session *s, struct bytes response)
{
	INVARIANT(!s->busy);
	s->busy = true;
	if (!s->kind->respond || response.n > ATTEST_PAYLOAD_MAX)
		attest_later(s, fail_no_challenge);
	else
		s->kind->respond(s, response);
}

void attest_end(struct attest_session *s)
{
	if (!s)
		return;
	s->fn = NULL;
	if (!s->busy || (s->kind->cancel && s->kind->cancel(s)))
		session_free(s);
}

/* The step is over. Ends the session when nobody listens any more. */
static void step(struct attest_session *s, const struct attest_step *st, const struct err *e)
{
	INVARIANT(s->busy);
	s->busy = false;
	if (s->fn)
		s->fn(s->arg, st, e);
	else
		session_free(s);
}

void attest_step_challenge(struct attest_session *s, struct bytes challenge)
{
	struct attest_step st = { .challenge = challenge };
	struct err ok = ERR_INIT;

	step(s, &st, &ok);
}

void attest_step_done(struct attest_session *s, const char *agent_id,
	const struct selectors *selectors, bool reattestable)
{
	struct attest_step st = { .agent_id = agent_id,
		.selectors = selectors,
		.reattestable = reattestable,
		.first_use = s->first_use };
	struct err ok = ERR_INIT;

	step(s, &st, &ok);
}

void attest_step_failed(struct attest_session *s, const struct err *e)
{
	struct attest_step st = { .agent_id = NULL };

	step(s, &st, e);
}

struct later {
	struct attest_session *s;
	void (*fn)(struct attest_session *s);
};

static void run_later(void *arg)
{
	struct later *l = arg;

	l->fn(l->s);
	free(l);
}

void attest_later(struct attest_session *s, void (*fn)(struct attest_session *s))
{
	struct later *l = xmalloc(sizeof(*l));

	*l = (struct later){ .s = s, .fn = fn };
	loop_post(s->attest->o.loop, run_later, l);
}

/* ---- the template of agent paths ---- */

int attest_template_expand(const char *tmpl, json_t *data, const struct template_type *type,
	struct buf *ret, struct err *e)
{
	struct template *t;
	int r = template_parse(tmpl, TEMPLATE_MISSING_ERROR, &t, e);

	if (r)
		return r;
	r = template_execute(t, data, type, ret, e);
	template_free(t);
	return r;
}

/* Any value does that has the field's shape. */
static json_t *sample(const struct template_type *type)
{
	json_t *j = json_object();

	for (const struct template_field *f = type->fields; f->name; f++) {
		const char *name = f->json ? f->json : f->name;

		if (f->kind == TEMPLATE_STRUCT)
			json_object_set_new(j, name, sample(f->type));
		else if (f->kind == TEMPLATE_MAP)
			json_object_set_new(j, name, json_object());
		else if (f->kind == TEMPLATE_LIST)
			json_object_set_new(j, name, json_pack("[s]", "x"));
		else
			json_object_set_new(j, name, json_string("x"));
	}
	return j;
}

int attest_template_check(const char *tmpl, const struct template_type *type, struct err *e)
{
	AUTO_BUF struct buf b = BUF_INIT;
	struct template *t;
	json_t *data;
	int r;

	if (tmpl[0] != '/')
		return err_set(e, ERR_INVALID, "agent path template must begin with \"/\"");
	r = template_parse(tmpl, 0, &t, e);
	if (r)
		return r;
	data = sample(type);
	r = template_execute(t, data, type, &b, e);
	json_decref(data);
	template_free(t);
	/* What else goes wrong may do so for the sample alone: another number of names, say. */
	return r && strstr(e->msg, "can't evaluate field") ? r : 0;
}

/* Node attestation: the table of attestors, sessions, and the template of agent paths. */
#include "server/attest_internal.h"

#include <ctype.h>
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

static const char *skip_space(const char *p)
{
	while (*p == ' ' || *p == '\t')
		p++;
	return p;
}

static bool is_field_char(char c)
{
	return isalnum((unsigned char)c) || c == '_' || c == '.';
}

static int unsupported(struct err *e)
{
	return err_set(e, ERR_INVALID,
		"template actions other than {{ .Field }} and {{ index .Field 0 }} are not "
		"supported");
}

/* One action, p behind its "{{": gives what follows "}}", and the field's dotted name without the
 * first dot; of {{ index .Field 3 }} "Field[3]". */
static int parse_action(
	const char *p, char name[static ATTEST_TEMPLATE_MAX], const char **ret, struct err *e)
{
	bool index = false;
	size_t n = 0;

	p = skip_space(p);
	if (strncmp(p, "index", 5) == 0 && (p[5] == ' ' || p[5] == '\t')) {
		index = true;
		p = skip_space(p + 5);
	}
	if (*p++ != '.')
		return unsupported(e);
	while (is_field_char(*p) && n < ATTEST_TEMPLATE_MAX - 8)
		name[n++] = *p++;
	if (n == 0)
		return unsupported(e);
	p = skip_space(p);
	if (index) {
		size_t start = n;

		name[n++] = '[';
		while (isdigit((unsigned char)*p) && n < start + 5)
			name[n++] = *p++;
		if (n == start + 1)
			return unsupported(e);
		name[n++] = ']';
		p = skip_space(p);
	}
	name[n] = 0;
	if (strncmp(p, "}}", 2) != 0)
		return unsupported(e);
	*ret = p + 2;
	return 0;
}

int attest_template_expand(const char *tmpl, const char *(*get)(void *arg, const char *name),
	void *arg, struct buf *ret, struct err *e)
{
	if (strlen(tmpl) >= ATTEST_TEMPLATE_MAX)
		return err_set(e, ERR_INVALID, "template is too long");
	while (*tmpl) {
		const char *open = strstr(tmpl, "{{"), *value;
		char name[ATTEST_TEMPLATE_MAX];
		int r;

		buf_append(ret, tmpl, open ? (size_t)(open - tmpl) : strlen(tmpl));
		if (!open)
			break;
		r = parse_action(open + 2, name, &tmpl, e);
		if (r)
			return r;
		value = get(arg, name);
		if (!value)
			return err_set(e, ERR_INVALID, "template has no field .%.100s", name);
		buf_str(ret, value);
	}
	return ret->failed ? err_set(e, ERR_INVALID, "path is too long") : 0;
}

/* For the check alone: any field that there may be has a value. */
static const char *sample(void *arg, const char *name)
{
	static const char *const known[] = { "PluginName", "Fingerprint", "TrustDomain",
		"SerialNumber", "SerialNumberHex", "SVIDPathTrimmed", "Subject.CommonName" };

	(void)arg;
	for (size_t i = 0; i < ARRAY_LEN(known); i++)
		if (strcmp(name, known[i]) == 0)
			return "x";
	return strncmp(name, "URISanSelectors.", 16) == 0 && name[16] ? "x" : NULL;
}

int attest_template_check(const char *tmpl, struct err *e)
{
	AUTO_BUF struct buf b = BUF_INIT_MAX(64 << 10);

	if (tmpl[0] != '/')
		return err_set(e, ERR_INVALID, "agent path template must begin with \"/\"");
	return attest_template_expand(tmpl, sample, NULL, &b, e);
}

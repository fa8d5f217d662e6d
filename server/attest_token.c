/* Node attestor join_token: a single-use secret that an operator made for one agent. */
#include "server/attest_internal.h"

#include <stdlib.h>
#include <string.h>

struct token_state {
	char *agent_id;
};

static void free_state(void *state)
{
	struct token_state *st = state;

	mem_wipe(st->agent_id, strlen(st->agent_id));
	free(st->agent_id);
	free(st);
}

static void taken(void *arg, int code, const char *msg)
{
	static const struct selectors none = { .n = 0 };
	struct attest_session *s = arg;
	const struct token_state *st = s->state;
	struct err e;

	if (code == 0) {
		attest_step_done(s, st->agent_id, &none, false);
		return;
	}
	/* SPIRE's texts: only the missing token has the prefix. */
	if (code == ERR_INVALID && !strstr(msg, "expired"))
		err_set(&e, code, "failed to attest: %s", msg);
	else if (code == ERR_INVALID)
		err_set(&e, code, "%s", msg);
	else
		err_set(&e, ERR_INTERNAL, "failed to fetch join token: %s", msg);
	attest_step_failed(s, &e);
}

static void unknown(struct attest_session *s)
{
	taken(s, ERR_INVALID, "join token does not exist or has already been used");
}

/* A token that cannot be part of a SPIFFE ID was never made. */
static void begin(struct attest_session *s, struct bytes payload)
{
	struct token_state *st = xcalloc(1, sizeof(*st));
	AUTO(free) char *token = xstrndup((const char *)payload.p, payload.n);
	AUTO(free) char *path = xasprintf("/spire/agent/join_token/%s", token);
	struct spiffeid id = SPIFFEID_INIT;
	struct err e;
	int r = strlen(token) == payload.n ? spiffeid_make(&id, s->attest->o.trust_domain, path, &e)
					   : ERR_INVALID;

	st->agent_id = r == 0 ? id.text : xstrdup("");
	s->state = st;
	if (r)
		attest_later(s, unknown);
	else
		store_token_take(s->attest->o.store, token, clock_wall().sec, taken, s);
	mem_wipe(token, strlen(token));
	mem_wipe(path, strlen(path));
}

const struct attestor attestor_join_token = {
	.type = "join_token", .begin = begin, .free_state = free_state
};

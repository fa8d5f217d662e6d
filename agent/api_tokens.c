/* JWT-SVIDs for a caller, of the Workload API and of those who ask for others. */
#include <stdlib.h>
#include <string.h>

#include "agent/api.h"
#include "lib/jwt.h"
#include "lib/log.h"

enum { LOG_LINES_PER_SECOND = 5 };

struct one {
	struct fetch *of;
	struct api_token token;
};

struct fetch {
	struct rpc_call *call;
	api_tokens_reply *reply;
	struct one *v;
	size_t n, pending;
	struct err err;     /* any failure but: */
	struct err missing; /* an entry that is no more */
};

bool api_tokens_asked_well(struct rpc_call *c, size_t n_audience, const char *spiffe_id)
{
	struct spiffeid id = SPIFFEID_INIT;
	struct err e = ERR_INIT;
	bool good = false;

	if (n_audience == 0)
		rpc_fail(c, ERR_INVALID, "audience must be specified");
	else if (n_audience > JWT_MAX_AUDIENCES)
		rpc_fail(c, ERR_INVALID, "more than %d audiences", JWT_MAX_AUDIENCES);
	else if (spiffe_id[0] && spiffeid_parse_str(&id, spiffe_id, &e))
		rpc_fail(c, ERR_INVALID, "invalid requested SPIFFE ID: %s", e.msg);
	else
		good = true;
	spiffeid_deinit(&id);
	return good;
}

static void fetch_free(struct fetch *f)
{
	for (size_t i = 0; i < f->n; i++) {
		struct api_token *t = &f->v[i].token;

		if (t->text)
			mem_wipe(t->text, strlen(t->text));
		free(t->text);
		free(t->spiffe_id);
		free(t->hint);
	}
	free(f->v);
	rpc_call_unref(f->call);
	free(f);
}

static void reply(struct fetch *f)
{
	AUTO(free) struct api_token *v = xcalloc(f->n, sizeof(*v));
	size_t n = 0;

	for (size_t i = 0; i < f->n; i++)
		if (f->v[i].token.text)
			v[n++] = f->v[i].token;
	if (!f->err.code && n == 0)
		f->err = f->missing;
	if (f->err.code)
		rpc_fail(f->call, ERR_UNAVAILABLE, "could not fetch JWT-SVID: %s", f->err.msg);
	else
		f->reply(f->call, v, n);
}

static void one_less(struct fetch *f)
{
	if (--f->pending)
		return;
	reply(f);
	fetch_free(f);
}

static void got_token(void *arg, const char *token, const struct err *e)
{
	static struct log_limit limit;
	struct one *one = arg;
	struct fetch *f = one->of;

	if (token) {
		one->token.text = xstrdup(token);
	} else if (e->code == ERR_NOT_FOUND) {
		/* Deleted between our match and the server's answer: the others still count. */
		f->missing = *e;
	} else {
		f->err = *e;
		if (log_allowed(&limit, LOG_LINES_PER_SECOND))
			log_event(LOG_ERROR, "workload", "Could not fetch a JWT-SVID", "spiffe_id",
				one->token.spiffe_id, "code", err_code_name(e->code), "error",
				e->msg, NULL);
	}
	one_less(f);
}

static bool wanted(const struct api_tokens_wanted *w, const struct entry *en)
{
	return (!w->spiffe_id || !w->spiffe_id[0] || strcmp(w->spiffe_id, en->spiffe_id) == 0) &&
	       (!w->others || (!en->admin && !en->downstream));
}

bool api_tokens(struct rpc_call *c, struct api *a, const struct view *v,
	const struct api_tokens_wanted *w, api_tokens_reply *fn)
{
	struct fetch *f = xcalloc(1, sizeof(*f));

	f->call = rpc_call_ref(c);
	f->reply = fn;
	f->v = xcalloc(v->n_matches + 1, sizeof(*f->v));
	/* All are set up before the first may answer. */
	for (size_t i = 0; i < v->n_matches; i++) {
		const struct entry *en = &v->matches[i]->entry;

		if (wanted(w, en))
			f->v[f->n++] = (struct one){ .of = f,
				.token = { .spiffe_id = xstrdup(en->spiffe_id),
					.hint = xstrdup(en->hint) } };
	}
	if (f->n == 0) {
		fetch_free(f);
		return false;
	}
	f->pending = f->n + 1;
	for (size_t i = 0, k = 0; i < v->n_matches; i++)
		if (wanted(w, &v->matches[i]->entry))
			jwtcache_get(
				a->jwt, &v->matches[i]->entry, w->audience, got_token, &f->v[k++]);
	one_less(f);
	return true;
}

#include <stdlib.h>
#include <string.h>

#include "agent/attest_internal.h"
#include "lib/http.h"

/* Where the first trust comes from. A missing file is no end: who asked tries again. */

enum { BUNDLE_MAX = 1 << 20, FETCH_TIMEOUT_MS = 30000 };

struct bootstrap {
	struct loop *loop;
	const struct agent_options *o;
	void (*done)(void *arg, struct bundle *b, const struct err *e);
	void *arg;
	struct http_get *get;
	struct bundle_fetch *fetch;
	struct bundle *bundle;
	struct err err;
	bool cancelled;
};

static int parse(
	const struct agent_options *o, struct bytes text, struct bundle **ret, struct err *e)
{
	int r = o->trust_bundle_spiffe_format ? bundle_from_json(o->trust_domain, text, ret, e)
					      : bundle_from_pem(o->trust_domain, text, ret, e);

	if (!r && (*ret)->n_roots == 0) {
		bundle_unref(*ret);
		*ret = NULL;
		r = err_set(e, ERR_INVALID, "no certificates in it");
	}
	return r;
}

static void file_work(void *arg)
{
	struct bootstrap *b = arg;
	AUTO_BUF struct buf text = BUF_INIT_MAX(BUNDLE_MAX);

	if (!b->o->trust_bundle_path)
		return; /* insecure_bootstrap */
	if (buf_read_file(&text, b->o->trust_bundle_path, &b->err) ||
		parse(b->o, buf_view(&text), &b->bundle, &b->err))
		err_wrap(&b->err, "trust_bundle_path %s", b->o->trust_bundle_path);
}

static void finish(void *arg)
{
	struct bootstrap *b = arg;

	if (!b->cancelled)
		b->done(b->arg, b->err.code ? NULL : b->bundle, &b->err);
	if (b->bundle)
		bundle_unref(b->bundle);
	free(b);
}

static void got_url(void *arg, int status, struct bytes body, const struct err *e)
{
	struct bootstrap *b = arg;

	b->get = NULL;
	if (e && e->code)
		b->err = *e;
	else if (status != 200)
		err_set(&b->err, ERR_UNAVAILABLE, "HTTP status %d", status);
	else
		(void)!parse(b->o, body, &b->bundle, &b->err);
	if (b->err.code)
		err_wrap(&b->err, "trust_bundle_url %s", b->o->trust_bundle_url);
	finish(b);
}

static void got_fetched(void *arg, struct bundle *bundle, const struct err *e)
{
	struct bootstrap *b = arg;

	b->fetch = NULL;
	b->err = *e;
	b->bundle = bundle ? bundle_ref(bundle) : NULL;
	finish(b);
}

static char *url_for(const struct agent_options *o, const struct bootstrap_ask *ask)
{
	char at[32];

	if (!o->trust_bundle_unix_socket || !ask)
		return xstrdup(o->trust_bundle_url);
	wall_format(wall_of_sec(ask->started), at, sizeof(at));
	/* RFC 3339 without the fraction, the colons escaped as in a query. */
	return xasprintf("%s%cspiffe-trust-domain=%s&spire-attest-mode=%s&spire-attest-start-time="
			 "%.13s%%3A%.2s%%3A%.2sZ&spire-connection-attempts=%d&spire-server-address="
			 "%s&spire-server-port=%d",
		o->trust_bundle_url, strchr(o->trust_bundle_url, '?') ? '&' : '?', o->trust_domain,
		ask->again ? "rebootstrap" : "bootstrap", at, at + 14, at + 17, ask->attempts,
		o->server_address, o->server_port);
}

struct bootstrap *bootstrap_start(struct loop *l, const struct agent_options *o,
	void (*done)(void *arg, struct bundle *b, const struct err *e), void *arg)
{
	return bootstrap_start_as(l, o, NULL, done, arg);
}

struct bootstrap *bootstrap_start_as(struct loop *l, const struct agent_options *o,
	const struct bootstrap_ask *ask,
	void (*done)(void *arg, struct bundle *b, const struct err *e), void *arg)
{
	struct bootstrap *b = xcalloc(1, sizeof(*b));

	b->loop = l;
	b->o = o;
	b->done = done;
	b->arg = arg;
	if (!o->insecure_bootstrap && o->trust_bundle_workload_api) {
		b->fetch = bundle_fetch_start(
			l, o->trust_bundle_workload_api, o->trust_domain, got_fetched, b);
		return b;
	}
	if (!o->insecure_bootstrap && o->trust_bundle_url) {
		AUTO(free) char *url = url_for(o, ask);
		struct http_get_options g = { .url = url,
			.unix_path = o->trust_bundle_unix_socket,
			.timeout_ms = FETCH_TIMEOUT_MS,
			.body_max = BUNDLE_MAX };

		b->get = http_get(l, &g, got_url, b);
		return b;
	}
	loop_job(l, file_work, finish, b);
	return b;
}

void bootstrap_cancel(struct bootstrap *b)
{
	b->cancelled = true;
	if (b->fetch) {
		bundle_fetch_cancel(b->fetch);
		free(b);
		return;
	}
	if (b->get) {
		http_get_cancel(b->get);
		free(b);
	}
}

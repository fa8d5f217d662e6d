/* One answer of one URL: a client that lives for one call. */
#include <stdlib.h>

#include "lib/http_client_internal.h"

struct http_get {
	struct loop *loop;
	struct http_client *client; /* NULL: the URL was refused */
	bool over;
	bool posted;
	struct err e;
	void (*done)(void *arg, int status, struct bytes body, const struct err *e);
	void *arg;
};

static void get_over(struct http_get *g)
{
	g->over = true;
	http_client_free(g->client);
	g->client = NULL;
	if (!g->posted) /* else when the post runs */
		free(g);
}

static void get_done(void *arg, const struct http_answer *a, const struct err *e)
{
	struct http_get *g = arg;

	g->over = true; /* may not be cancelled any more */
	g->done(g->arg, e->code ? 0 : a->status, a->body, e);
	get_over(g);
}

static void get_refused(void *arg)
{
	struct http_answer none = { 0 };
	struct http_get *g = arg;

	g->posted = false;
	if (g->over)
		free(g);
	else
		get_done(g, &none, &g->e);
}

static int get_begin(struct http_get *g, const struct http_get_options *o, struct err *e)
{
	struct http_client_options co = {
		.unix_path = o->unix_path,
		.allow_plain = o->allow_plain,
		.verify = o->verify,
		.verify_arg = o->verify_arg,
		.not_local = o->not_local,
		.connect_ms = o->timeout_ms > 0 ? o->timeout_ms : 0,
		.no_reuse = true,
	};
	struct http_call_options call = {
		.timeout_ms = o->timeout_ms > 0 ? o->timeout_ms : 0,
		.body_max = o->body_max,
		.done = get_done,
		.arg = g,
	};
	struct http_url url;
	AUTO(free) char *origin = NULL;
	int r = http_url_parse(&url, o->url, o->unix_path || o->allow_plain, e);

	if (r != 0)
		return r;
	origin = xasprintf("%s://%s", url.https ? "https" : "http", url.authority);
	co.url = origin;
	call.path = url.path;
	r = http_client_new(g->loop, &co, &g->client, e);
	if (r == 0)
		(void)http_call(g->client, &call);
	http_url_deinit(&url);
	return r;
}

struct http_get *http_get(struct loop *l, const struct http_get_options *o,
	void (*done)(void *arg, int status, struct bytes body, const struct err *e), void *arg)
{
	struct http_get *g = xcalloc(1, sizeof(*g));

	g->loop = l;
	g->done = done;
	g->arg = arg;
	if (get_begin(g, o, &g->e) != 0) {
		g->posted = true;
		loop_post(l, get_refused, g);
	}
	return g;
}

void http_get_cancel(struct http_get *g)
{
	if (g && !g->over)
		get_over(g);
}

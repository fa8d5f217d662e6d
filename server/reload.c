#include "server/reload.h"

#include <stdlib.h>
#include <string.h>

#include "lib/config.h"
#include "lib/log.h"

/* Attestors that were replaced may still have sessions, and their options are looked at by jobs:
 * both stay until the end. An operator does not reload a million times. */
struct former {
	struct former *next;
	struct attest *attest;
	struct server_options *options; /* of attest's successor */
};

struct reload {
	struct loop *loop;
	const struct server_options *o;
	struct api *api;
	struct buf current; /* as read last, printed */
	enum log_level level;
	struct former *former;
	bool running, again;
	/* of the job */
	struct attest_options with;
	struct attest *attest;
	struct server_options *read;
	struct buf problems;
	struct err err;
};

/* Whatever else changes has effect at the next start. */
static const char *const live[] = { "server.log_level", "server.log_format",
	"server.log_source_location", "plugins.NodeAttestor." };

struct reload *reload_new(struct loop *l, const struct server_options *o, struct api *a)
{
	struct reload *r = xcalloc(1, sizeof(*r));

	r->loop = l;
	r->o = o;
	r->api = a;
	r->level = o->daemon.log_level;
	r->current = BUF_INIT;
	r->problems = BUF_INIT;
	server_options_print(o, &r->current);
	return r;
}

static void options_free(struct server_options *o)
{
	server_options_deinit(o);
	free(o);
}

/* The attestors of the first start read what their successors do not. */
void reload_free(struct reload *r)
{
	struct former *next;

	if (!r)
		return;
	INVARIANT(!r->running);
	if (r->former) {
		attest_free(r->api->attest);
		r->api->attest = NULL;
	}
	for (struct former *f = r->former; f; f = f->next)
		attest_free(f->attest);
	for (struct former *f = r->former; f; f = next) {
		next = f->next;
		options_free(f->options);
		free(f);
	}
	buf_deinit(&r->current);
	buf_deinit(&r->problems);
	free(r);
}

static void tell(void *arg, const char *key, const char *was, const char *is)
{
	bool now = false;

	(void)arg;
	for (size_t i = 0; i < ARRAY_LEN(live); i++)
		now |= strncmp(key, live[i], strlen(live[i])) == 0;
	log_event(LOG_INFO, "config", "configuration changed", "key", key, "was", was, "is", is,
		"effect", now ? "now" : "at the next start", NULL);
}

static void apply(struct reload *r)
{
	struct former *f = xcalloc(1, sizeof(*f));

	log_set_json(r->read->daemon.log_json);
	log_set_source_location(r->read->daemon.log_source_location);
	/* A level that was set by the logger API stays, unless the file says another than before.
	 */
	if (r->read->daemon.log_level != r->level) {
		log_set_level(r->read->daemon.log_level);
		r->api->launch_level = r->level = r->read->daemon.log_level;
	}
	f->attest = r->api->attest;
	f->options = r->read;
	f->next = r->former;
	r->former = f;
	r->api->attest = r->attest;
	r->attest = NULL;
	r->read = NULL;
}

static void work(void *arg)
{
	struct reload *r = arg;

	r->err = ERR_INIT;
	buf_reset(&r->problems);
	if (server_options_load(r->read, r->o->flags, &r->problems, &r->err)) {
		free(r->read);
		r->read = NULL;
		return;
	}
	r->with.config = r->read;
	if (attest_new(&r->with, &r->attest, &r->err)) {
		options_free(r->read);
		r->read = NULL;
	}
}

static void done(void *arg)
{
	struct reload *r = arg;
	struct buf text = BUF_INIT;

	r->running = false;
	if (r->err.code) {
		log_event(LOG_ERROR, "config",
			"the configuration is not taken: the former one stays", "error", r->err.msg,
			"problems", r->problems.len ? buf_cstr(&r->problems) : NULL, NULL);
	} else {
		server_options_print(r->read, &text);
		config_changes(buf_cstr(&r->current), buf_cstr(&text), tell, r);
		for (size_t i = 0; i < r->read->daemon.warnings.n; i++)
			log_event(LOG_WARN, "config", r->read->daemon.warnings.v[i], NULL);
		apply(r);
		buf_deinit(&r->current);
		r->current = text;
		log_event(LOG_INFO, "config",
			"configuration and the files of the node attestors read again", NULL);
	}
	if (r->again)
		reload_start(r);
}

void reload_start(struct reload *r)
{
	r->again = r->running;
	if (r->running || !r->o->flags || !r->api->attest)
		return;
	r->running = true;
	r->read = xcalloc(1, sizeof(*r->read));
	r->with = (struct attest_options){ .loop = r->loop,
		.store = r->api->store,
		.ca = r->api->ca,
		.trust_domain = r->o->trust_domain };
	loop_job(r->loop, work, done, r);
}

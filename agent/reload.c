#include "agent/reload.h"

#include <stdlib.h>
#include <string.h>

#include "lib/config.h"
#include "lib/log.h"

struct reload {
	struct loop *loop;
	struct agent_options *o;
	struct api *api;
	struct buf current; /* as read last, printed */
	bool running, again;
	/* of the job */
	struct agent_options read;
	struct buf problems;
	struct err err;
};

/* Whatever else changes has effect at the next start. */
static const char *const live[] = { "agent.log_level", "agent.log_format",
	"agent.log_source_location", "agent.log_selectors", "agent.allowed_foreign_jwt_claims",
	"agent.allow_unauthenticated_verifiers", "agent.experimental.ratelimit." };

struct reload *reload_new(struct loop *l, struct agent_options *o, struct api *a)
{
	struct reload *r = xcalloc(1, sizeof(*r));

	r->loop = l;
	r->o = o;
	r->api = a;
	r->current = BUF_INIT;
	r->problems = BUF_INIT;
	agent_options_print(o, &r->current);
	return r;
}

void reload_free(struct reload *r)
{
	if (!r)
		return;
	INVARIANT(!r->running);
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
	log_event(LOG_INFO, "config", "Configuration changed", "key", key, "was", was, "is", is,
		"effect", now ? "now" : "at the next start", NULL);
}

static void swap_strings(struct strings *a, struct strings *b)
{
	struct strings t = *a;

	*a = *b;
	*b = t;
}

static void apply(struct reload *r)
{
	struct agent_options *o = r->o, *n = &r->read;

	log_set_json(n->daemon.log_json);
	log_set_source_location(n->daemon.log_source_location);
	/* A level that was set by the logger API stays, unless the file says another than before.
	 */
	if (n->daemon.log_level != o->daemon.log_level) {
		log_set_level(n->daemon.log_level);
		r->api->launch_level = n->daemon.log_level;
	}
	o->daemon.log_level = n->daemon.log_level;
	o->allow_unauthenticated_verifiers = n->allow_unauthenticated_verifiers;
	swap_strings(&o->log_selectors, &n->log_selectors);
	swap_strings(&o->allowed_foreign_jwt_claims, &n->allowed_foreign_jwt_claims);
	if (memcmp(o->rate_limits, n->rate_limits, sizeof(o->rate_limits)) != 0) {
		limits_free(r->api->limits);
		r->api->limits = limits_new(n->rate_limits);
		memcpy(o->rate_limits, n->rate_limits, sizeof(o->rate_limits));
	}
}

static void work(void *arg)
{
	struct reload *r = arg;

	r->err = ERR_INIT;
	buf_reset(&r->problems);
	(void)!agent_options_load(&r->read, r->o->flags, &r->problems, &r->err);
}

static void refused(const struct reload *r)
{
	log_event(LOG_ERROR, "config", "The configuration is not taken: the former one stays",
		"error", r->err.msg, "problems",
		r->problems.len ? buf_cstr((struct buf *)(uintptr_t)&r->problems) : NULL, NULL);
}

static void done(void *arg)
{
	struct reload *r = arg;
	struct buf text = BUF_INIT;

	r->running = false;
	if (r->err.code) {
		refused(r);
	} else {
		agent_options_print(&r->read, &text);
		config_changes(buf_cstr(&r->current), buf_cstr(&text), tell, r);
		for (size_t i = 0; i < r->read.daemon.warnings.n; i++)
			log_event(LOG_WARN, "config", r->read.daemon.warnings.v[i], NULL);
		apply(r);
		buf_deinit(&r->current);
		r->current = text;
		agent_options_deinit(&r->read);
		log_event(LOG_INFO, "config", "Configuration read again", NULL);
	}
	if (r->again)
		reload_start(r);
}

void reload_start(struct reload *r)
{
	r->again = r->running;
	if (r->running || !r->o->flags)
		return;
	r->running = true;
	loop_job(r->loop, work, done, r);
}

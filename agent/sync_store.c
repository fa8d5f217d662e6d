#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/sync_internal.h"

/* A change is on disk within a second; many changes make one write. */
enum { STORE_DELAY_MS = 300 };

/* ---- sealed.bin ---- */

struct store_job {
	struct sync *s;
	char *path;
	struct key *key;
	struct buf plain;
	struct err err;
};

static void store_work(void *arg)
{
	struct store_job *j = arg;

	(void)!sealed_write(j->path, j->key, buf_view(&j->plain), &j->err);
}

static void store_done(void *arg)
{
	struct store_job *j = arg;
	struct sync *s = j->s;

	s->jobs--;
	s->store_running = false;
	if (j->err.code)
		log_event(LOG_ERROR, "store",
			"Could not store the sealed state; a restart without "
			"the server would serve what was stored before",
			"error", j->err.msg, NULL);
	buf_deinit(&j->plain);
	key_unref(j->key);
	free(j->path);
	free(j);
	if (s->store_again && !s->stopped) {
		s->store_again = false;
		store_touch(s);
	} else if (s->store_again) {
		s->store_again = false;
		store_flush(s);
	}
}

static void export_state(const struct sync *s, struct buf *plain)
{
	AUTO_BUF struct buf rec = BUF_INIT;

	sealed_add_part(&rec, bytes_str(s->epoch));
	sealed_add_i64(&rec, (int64_t)s->change);
	sealed_add_i64(&rec, s->last_success);
	sealed_add(plain, SEALED_STATE, buf_view(&rec));
}

void store_flush(struct sync *s)
{
	struct store_job *j;

	loop_timer_stop(s->store_timer);
	s->store_armed = false;
	if (!s->sealed_path || !s->key)
		return;
	if (s->store_running) {
		s->store_again = true;
		return;
	}
	j = xcalloc(1, sizeof(*j));
	j->s = s;
	j->path = xstrdup(s->sealed_path);
	j->key = key_ref(s->key);
	j->plain = BUF_INIT_SECRET;
	j->plain.max = SEALED_MAX;
	export_state(s, &j->plain);
	cache_export(s->o.cache, &j->plain);
	s->store_running = true;
	s->jobs++;
	loop_job(s->o.loop, store_work, store_done, j);
}

static void on_timer(void *arg)
{
	store_flush(arg);
}

void store_touch(struct sync *s)
{
	if (!s->sealed_path || s->store_armed)
		return;
	if (!s->store_timer)
		s->store_timer = loop_timer_new(s->o.loop, on_timer, s);
	s->store_armed = true;
	loop_timer_set(s->store_timer, STORE_DELAY_MS * NS_PER_MS);
}

static void import_state(struct sync *s, struct bytes plain)
{
	struct bytes rest = plain, v, epoch;
	enum sealed_kind k;
	int64_t change, last;

	while (sealed_next(&rest, &k, &v)) {
		if (k != SEALED_STATE || !sealed_part(&v, &epoch) || !sealed_i64(&v, &change) ||
			!sealed_i64(&v, &last))
			continue;
		free(s->epoch);
		s->epoch = xstrndup((const char *)epoch.p, epoch.n);
		s->change = (uint64_t)change;
		s->last_success = last;
	}
}

/* Whoever wants to look into it finds it under another name. */
static void set_aside(const struct sync *s, const struct err *why)
{
	AUTO(free) char *kept = xasprintf("%s.damaged", s->sealed_path);
	bool moved = rename(s->sealed_path, kept) == 0;

	log_event(LOG_WARN, "store",
		"The sealed state cannot be used; starting without it. It is left aside", "error",
		why->msg, "kept_as", moved ? kept : NULL, NULL);
}

/* A sealed store that cannot be opened is no reason not to start: the server has it all. */
int store_load(struct sync *s, struct key *const *keys, char *const *names, size_t n, struct err *e)
{
	AUTO_BUF struct buf plain = { .max = SEALED_MAX, .secret = true };

	for (size_t i = 0; i < n; i++) {
		struct err why = ERR_INIT;
		int r = sealed_read(s->sealed_path, &keys[i], 1, &plain, &why);

		if (r == ERR_NOT_FOUND)
			return 0;
		if (r == 0) {
			import_state(s, buf_view(&plain));
			cache_import(s->o.cache, buf_view(&plain));
			if (!s->key_name)
				s->key_name = xstrdup(names[i]);
			return 0;
		}
		*e = why;
		buf_reset(&plain);
	}
	if (n)
		set_aside(s, e);
	return 0;
}

/* ---- agent-data.json ---- */

struct data_job {
	struct sync *s;
	char *dir;
	struct agent_data data;
	void (*then)(struct sync *s);
	struct err err;
};

static void data_work(void *arg)
{
	struct data_job *j = arg;

	(void)!agent_data_store(j->dir, &j->data, &j->err);
}

static void data_done(void *arg)
{
	struct data_job *j = arg;
	struct sync *s = j->s;

	s->jobs--;
	if (j->err.code)
		log_event(LOG_ERROR, "store", "Could not store the agent's SVID", "error",
			j->err.msg, NULL);
	if (j->then && !s->stopped)
		j->then(s);
	agent_data_deinit(&j->data);
	free(j->dir);
	free(j);
}

void store_data(struct sync *s, void (*then)(struct sync *s))
{
	struct data_job *j = xcalloc(1, sizeof(*j));

	j->s = s;
	j->dir = xstrdup(s->o.options->data_dir);
	j->data.svid = x509_chain_dup(&s->data.svid);
	j->data.bundle = x509_chain_dup(&s->data.bundle);
	j->data.reattestable = s->data.reattestable;
	j->then = then;
	s->jobs++;
	/* In order: two writes must not overtake each other. */
	lane_job(s->data_lane, data_work, data_done, j);
}

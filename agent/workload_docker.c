#include <stdlib.h>
#include <string.h>

#include "agent/docker.h"
#include "agent/workload.h"
#include "lib/http.h"
#include "lib/list.h"
#include "lib/log.h"
#include "lib/map.h"

/*
 * Selectors label, env, image_id and image_config_digest of the container that a process is in, as
 * Docker's or podman's API tells them; as SPIRE's attestor of that name.
 *
 * What an engine says of a container is remembered, since none of it can change: labels,
 * environment and image are set when a container is created, and its id is random and never given
 * away again. A stopped container that is started again has the same. So a fact that is remembered
 * too long costs memory and nothing else; it is dropped once the container's first process has
 * ended or, where that is not to be seen, the process that asked last.
 *
 * The kernel vouches for the name of the caller's control group, but whoever may make groups (root,
 * or a user to whom systemd delegated a subtree) chooses their names. So where the container's own
 * first process can be seen, the caller must be in the same group or below it; and a fact is
 * remembered for the place it was asked for only.
 *
 * The version of the API that stands in the paths is negotiated as Docker's own clients do: the
 * engine's, which its answer to /_ping names, but none that is newer than we know.
 */

enum {
	KNOWN_MAX = 1000,
	KNOWN_BYTES_MAX = 64 << 10, /* of one container; more is asked for again */
	SWEEP_S = 10,               /* how often those remembered are looked through, at most */
	TRIES = 4,                  /* to inspect a container, as SPIRE's agent does */
	RETRY_FIRST_MS = 100,
	REQUEST_TIMEOUT_MS = 5000,
	ENGINES_MAX = 256, /* sockets; those of further users are asked without a version */
};

struct docker {
	struct loop *loop;
	const struct agent_options *options;
	struct map *engines; /* address of its socket → struct engine */
	struct map *known;   /* key of a subject → struct known */
	struct map *asking;  /* the same → struct lookup */
	int64_t swept_ns;
};

/* What listens at a socket. */
struct engine {
	struct http_client *client;
	char *version; /* as it stands in paths; "": without one; NULL: not known yet */
};

/* Whose facts: a container, at a place among the control groups, of an engine. */
struct subject {
	char *id;     /* NULL: none */
	char *place;  /* NULL: known from mounts only */
	char *socket; /* the engine's address */
	const char *engine;
	char *key;
};

/* One process, for good. */
struct process {
	pid_t pid; /* 0: none */
	uint64_t start_time;
};

struct known {
	struct selectors selectors;
	struct process first, asked;
};

struct lookup {
	struct docker *d;
	struct subject subject;
	struct list waiters;
	struct engine *engine;
	struct http_call *call;
	struct loop_timer *timer;
	int tries;
	struct docker_facts facts;
	struct process first; /* of the container */
	bool by_name;         /* the image was asked for by its name */
	bool shared;          /* others may wait for it too; else it is answered at once */
	struct err failed;    /* before it began */
};

struct waiter {
	struct list link;
	struct lookup *lookup;
	struct finding *ret;
	struct process asked;
	void (*done)(void *arg);
	void *arg;
};

/* ---- the subject ---- */

static void subject_deinit(struct subject *s)
{
	free(s->id);
	free(s->place);
	free(s->socket);
	free(s->key);
	*s = (struct subject){ 0 };
}

static int choose_engine(
	const struct agent_options *o, struct bytes cgroup, struct subject *ret, struct err *e)
{
	enum docker_engine engine = ENGINE_DOCKER;
	uint32_t uid = 0;
	int r = docker_engine_of(cgroup, &engine, &uid, e);

	if (r)
		return r;
	ret->engine = engine == ENGINE_DOCKER ? "docker" : "podman";
	if (engine == ENGINE_DOCKER)
		ret->socket = xstrdup(o->docker_socket_path);
	else if (engine == ENGINE_PODMAN)
		ret->socket = xstrdup(o->docker_podman_socket_path);
	else
		ret->socket = docker_template_path(o->docker_podman_socket_path_template, uid);
	return 0;
}

/* id: of a container that was found otherwise; NULL: what the operator's patterns find. */
static int subject_of(const struct agent_options *o, const struct caller *c, const char *id,
	struct subject *ret, struct err *e)
{
	AUTO_BUF struct buf cgroup = BUF_INIT_MAX(CALLER_PROC_FILE_MAX);
	struct subject s = { 0 };
	int r = caller_read(c, "cgroup", &cgroup, e);

	if (!r && id)
		s.id = xstrdup(id);
	else if (!r)
		r = docker_matchers_find(&o->docker_cgroup_matchers, buf_view(&cgroup), &s.id, e);
	if (!r && s.id)
		r = choose_engine(o, buf_view(&cgroup), &s, e);
	if (r) {
		subject_deinit(&s);
		return r;
	}
	if (s.id) {
		s.place = docker_place_of(buf_view(&cgroup), s.id);
		s.key = xasprintf("%s\n%s\n%s", s.socket, s.id, s.place ? s.place : "");
	}
	*ret = s;
	return 0;
}

/* ---- what is known ---- */

static void known_free(struct known *k)
{
	selectors_deinit(&k->selectors);
	free(k);
}

static struct process process_of(const struct caller *c)
{
	return (struct process){ .pid = c->pid, .start_time = c->start_time };
}

static bool has_ended(const struct known *k)
{
	const struct process *p = k->first.pid ? &k->first : &k->asked;
	struct caller c = CALLER_INIT;
	struct err e;
	bool ended = caller_open(&c, p->pid, -1, &e) != 0 || c.start_time != p->start_time;

	caller_deinit(&c);
	return ended;
}

/* Without a timer: an agent that nobody asks may keep what it has. */
static void sweep(struct docker *d)
{
	int64_t now = wall_ns(clock_wall());
	struct bytes key;
	void *v;

	if (now >= d->swept_ns && now - d->swept_ns < SWEEP_S * NS_PER_SEC)
		return;
	d->swept_ns = now;
	for (size_t i = 0; map_next(d->known, &i, &key, &v);) {
		if (!has_ended(v))
			continue;
		map_del(d->known, key);
		known_free(v);
	}
}

static void forget_all(struct docker *d)
{
	struct bytes key;
	void *v;

	for (size_t i = 0; map_next(d->known, &i, &key, &v);)
		known_free(v);
	map_free(d->known);
	d->known = map_new();
}

static size_t bytes_in(const struct selectors *s)
{
	size_t n = 0;

	for (size_t i = 0; i < s->n; i++)
		n += strlen(s->v[i].value);
	return n;
}

static void learn(struct docker *d, const struct lookup *l, const struct waiter *w)
{
	struct known *k;

	if (bytes_in(&l->facts.selectors) > KNOWN_BYTES_MAX)
		return;
	k = xcalloc(1, sizeof(*k));
	k->selectors = selectors_dup(&l->facts.selectors);
	k->first = l->first;
	k->asked = w->asked;
	if (map_len(d->known) >= KNOWN_MAX)
		forget_all(d);
	k = map_put_str(d->known, l->subject.key, k);
	if (k)
		known_free(k);
}

/* ---- asking ---- */

static void unshare_lookup(struct lookup *l)
{
	if (l->shared)
		map_del_str(l->d->asking, l->subject.key);
	l->shared = false;
}

static void lookup_free(struct lookup *l)
{
	unshare_lookup(l);
	http_call_cancel(l->call);
	loop_timer_free(l->timer);
	docker_facts_deinit(&l->facts);
	subject_deinit(&l->subject);
	free(l);
}

static char *waited_for(const struct lookup *l)
{
	const struct subject *s = &l->subject;

	return xasprintf("%s at %s about container %.12s%s", s->engine, s->socket, s->id,
		l->tries > 1 ? log_fmt(", %d times", l->tries) : "");
}

/* Answers all who wait. Nobody can begin to wait for it any more meanwhile. */
static void answer(struct lookup *l, bool lasting, const struct err *e)
{
	unshare_lookup(l);
	while (!list_empty(&l->waiters)) {
		struct waiter *w = container_of(l->waiters.next, struct waiter, link);

		list_remove(&w->link);
		if (l->tries)
			w->ret->waited_for = waited_for(l);
		if (e->code)
			w->ret->err = *e;
		else
			w->ret->selectors = selectors_dup(&l->facts.selectors);
		if (!e->code && lasting)
			learn(l->d, l, w);
		w->done(w->arg);
		free(w);
	}
	lookup_free(l);
}

static struct engine *engine_new(struct docker *d, const char *address)
{
	struct engine *en = xcalloc(1, sizeof(*en));
	AUTO(free) char *url = NULL;
	AUTO(free) char *unix_path = NULL;
	struct http_client_options o = { .allow_plain = true };
	const char *fixed = d->options->docker_version;
	struct err e = ERR_INIT;
	int r = docker_address(address, &url, &unix_path, &e);

	o.url = url;
	o.unix_path = unix_path;
	r = r ? r : http_client_new(d->loop, &o, &en->client, &e);
	INVARIANT(r == 0); /* checked with the options */
	if (fixed && *fixed)
		en->version = xstrdup(fixed);
	else if (map_len(d->engines) >= ENGINES_MAX)
		en->version = xstrdup("");
	return en;
}

static void engine_free(struct engine *en)
{
	http_client_free(en->client);
	free(en->version);
	free(en);
}

static struct engine *engine_of(struct docker *d, const char *address)
{
	struct engine *en = map_get_str(d->engines, address);

	if (!en) {
		en = engine_new(d, address);
		map_put_str(d->engines, address, en);
	}
	return en;
}

typedef void answered_fn(void *arg, const struct http_answer *a, const struct err *e);

static void ask(struct lookup *l, const char *kind, const char *name, answered_fn *done)
{
	AUTO(free) char *path = docker_path(l->engine->version, kind, name);

	l->call = http_call(l->engine->client, &(struct http_call_options){ .path = path,
						       .timeout_ms = REQUEST_TIMEOUT_MS,
						       .body_max = DOCKER_ANSWER_MAX,
						       .done = done,
						       .arg = l });
}

static void ask_image(struct lookup *l);

/* Without an answer there is no selector, as in SPIRE; but that may be otherwise the next time. */
static void image_answered(void *arg, const struct http_answer *a, const struct err *e)
{
	struct lookup *l = arg;
	AUTO(free) char *digest = NULL;
	AUTO(free) char *text = NULL;
	struct err bad = ERR_INIT;
	bool lasting = !e->code && (a->status == 200 || a->status == 404);

	l->call = NULL;
	if (!e->code && a->status == 404 && !l->by_name) {
		l->by_name = true;
		ask_image(l);
		return;
	}
	if (!e->code && a->status == 200 && docker_image_parse(a->body, &digest, &bad) == 0 &&
		digest) {
		text = xasprintf("image_config_digest:%s", digest);
		selectors_add(&l->facts.selectors, "docker", text);
		selectors_normalize(&l->facts.selectors);
	}
	bad = ERR_INIT;
	answer(l, lasting, &bad);
}

/* By the image that the container has: its name may mean another one by now. */
static void ask_image(struct lookup *l)
{
	struct docker_facts *f = &l->facts;

	if (!f->image_digest)
		l->by_name = true;
	ask(l, "images", l->by_name ? f->image : f->image_digest, image_answered);
}

/* The container's first process is in the group that names it, if it can be seen at all: the
 * engine may number processes otherwise. */
static int check_place(struct lookup *l, struct err *e)
{
	const struct subject *s = &l->subject;
	AUTO_BUF struct buf cgroup = BUF_INIT_MAX(CALLER_PROC_FILE_MAX);
	AUTO(free) char *place = NULL;
	struct caller first = CALLER_INIT;
	struct err ignored;

	if (l->facts.stopped)
		return err_set(e, ERR_UNAVAILABLE, "container %s is not running", s->id);
	if (!l->facts.pid || caller_open(&first, l->facts.pid, -1, &ignored))
		return 0;
	if (caller_read(&first, "cgroup", &cgroup, &ignored) == 0)
		place = docker_place_of(buf_view(&cgroup), s->id);
	l->first = (struct process){ 0 };
	if (place && s->place && strcmp(place, s->place) == 0)
		l->first = process_of(&first);
	caller_deinit(&first);
	if (!place || l->first.pid)
		return 0;
	return err_set(e, ERR_DENIED,
		"the process claims container %s, whose control group is %s, but is in %s", s->id,
		place, s->place ? s->place : "another");
}

static int understand(
	struct lookup *l, const struct http_answer *a, const struct err *failed, struct err *e)
{
	AUTO(free) char *message = NULL;
	int r;

	if (failed->code) {
		*e = *failed;
		return e->code;
	}
	if (a->status != 200) {
		message = docker_message(a->body);
		return err_set(e, a->status == 404 ? ERR_NOT_FOUND : ERR_INTERNAL,
			"Error response from daemon: %s (HTTP status %d)", message, a->status);
	}
	docker_facts_deinit(&l->facts);
	r = docker_facts_parse(a->body, &l->facts, e);
	return r ? r : check_place(l, e);
}

/* Another engine, or another version of it, may be there the next time. */
static void forget_version(struct lookup *l)
{
	if (l->d->options->docker_version && *l->d->options->docker_version)
		return;
	free(l->engine->version);
	l->engine->version = NULL;
}

static void try_failed(struct lookup *l, struct err *e)
{
	if (e->code != ERR_DENIED)
		forget_version(l);
	if (l->tries < TRIES && e->code != ERR_DENIED) {
		/* 100, 200, 400 ms */
		loop_timer_set(l->timer, (int64_t)RETRY_FIRST_MS * NS_PER_MS << (l->tries - 1));
		return;
	}
	err_wrap(e, "asking %s at %s", l->subject.engine, l->subject.socket);
	answer(l, false, e);
}

static void container_answered(void *arg, const struct http_answer *a, const struct err *failed)
{
	struct lookup *l = arg;
	struct err e = ERR_INIT;

	l->call = NULL;
	if (understand(l, a, failed, &e))
		try_failed(l, &e);
	else if (l->facts.image[0])
		ask_image(l);
	else
		answer(l, true, &e);
}

static void pinged(void *arg, const struct http_answer *a, const struct err *failed)
{
	struct lookup *l = arg;
	struct err e = *failed;

	l->call = NULL;
	if (e.code) {
		try_failed(l, &e);
		return;
	}
	if (!l->engine->version) /* else somebody else was faster */
		l->engine->version = a->status == 200 ? docker_version_of(a->header) : xstrdup("");
	ask(l, "containers", l->subject.id, container_answered);
}

static void ask_container(void *arg)
{
	struct lookup *l = arg;

	l->tries++;
	if (l->engine->version) {
		ask(l, "containers", l->subject.id, container_answered);
		return;
	}
	l->call = http_call(l->engine->client, &(struct http_call_options){ .method = "HEAD",
						       .path = "/_ping",
						       .want_header = "api-version",
						       .timeout_ms = REQUEST_TIMEOUT_MS,
						       .done = pinged,
						       .arg = l });
}

/* ---- the attestor ---- */

static bool docker_enabled(const struct agent_options *o)
{
	return o->attestor_docker;
}

static int docker_open(struct loop *l, const struct agent_options *o, void **ret, struct err *e)
{
	struct docker *d = xcalloc(1, sizeof(*d));

	(void)e;
	d->loop = l;
	d->options = o;
	d->known = map_new();
	d->asking = map_new();
	d->engines = map_new();
	if (o->docker_cgroup_matchers.n)
		log_event(LOG_WARN, "docker",
			"Using the legacy container locator with custom cgroup matchers", NULL);
	*ret = d;
	return 0;
}

static void docker_close(void *state)
{
	struct docker *d = state;
	struct bytes key;
	void *v;

	INVARIANT(map_len(d->asking) == 0);
	forget_all(d);
	map_free(d->known);
	map_free(d->asking);
	for (size_t i = 0; map_next(d->engines, &i, &key, &v);)
		engine_free(v);
	map_free(d->engines);
	free(d);
}

static bool uses_patterns(const struct docker *d)
{
	return d->options->docker_cgroup_matchers.n > 0;
}

/* Loop thread: what is known is the loop's. */
static enum attest_next recall(struct docker *d, const struct caller *c, struct finding *ret)
{
	struct subject s = { 0 };
	struct known *k = NULL;
	bool none;

	sweep(d);
	if (subject_of(d->options, c, uses_patterns(d) ? NULL : ret->container.id, &s, &ret->err))
		return ATTEST_DONE;
	none = !s.id;
	if (s.id)
		k = map_get_str(d->known, s.key);
	subject_deinit(&s);
	if (none)
		return ATTEST_DONE;
	if (!k)
		return ATTEST_WAITS;
	k->asked = process_of(c);
	ret->selectors = selectors_dup(&k->selectors);
	return ATTEST_DONE;
}

static enum attest_next docker_attest(
	void *state, const struct caller *c, bool blocking, struct finding *ret)
{
	struct docker *d = state;
	int want = d->options->docker_verbose_container_locator_logs ? CONTAINER_VERBOSE : 0;
	enum attest_next next = ATTEST_WAITS;

	if (!uses_patterns(d))
		next = attest_container(c, want, blocking, ret);
	return next == ATTEST_WAITS && !blocking ? recall(d, c, ret) : next;
}

static struct lookup *lookup_new(struct docker *d, struct subject *s, void (*fn)(void *arg))
{
	struct lookup *l = xcalloc(1, sizeof(*l));

	l->d = d;
	l->subject = *s;
	list_init(&l->waiters);
	l->timer = loop_timer_new(d->loop, fn, l);
	return l;
}

/* What needs no asking after all is answered as what does: later. */
static void answer_now(void *arg)
{
	struct lookup *l = arg;
	struct err e = l->failed;

	answer(l, false, &e);
}

static struct lookup *lookup_of(struct docker *d, const struct caller *c, const char *id)
{
	struct subject s = { 0 };
	struct err e = ERR_INIT;
	struct lookup *l;
	struct known *k = NULL;

	if (subject_of(d->options, c, id, &s, &e) == 0 && s.id) {
		k = map_get_str(d->known, s.key);
		l = map_get_str(d->asking, s.key);
		if (l && !k) {
			subject_deinit(&s);
			return l;
		}
	}
	l = lookup_new(d, &s, s.id && !k ? ask_container : answer_now);
	if (k)
		l->facts.selectors = selectors_dup(&k->selectors);
	l->failed = e;
	l->shared = s.id && !k;
	if (l->shared) {
		l->engine = engine_of(d, l->subject.socket);
		map_put_str(d->asking, l->subject.key, l);
		ask_container(l);
	} else {
		loop_timer_set(l->timer, 0);
	}
	return l;
}

static void *docker_start(void *state, const struct caller *c, struct finding *ret,
	void (*done)(void *arg), void *arg)
{
	struct docker *d = state;
	struct waiter *w = xcalloc(1, sizeof(*w));

	*w = (struct waiter){ .ret = ret, .done = done, .arg = arg };
	w->asked = process_of(c);
	w->lookup = lookup_of(d, c, uses_patterns(d) ? NULL : ret->container.id);
	list_append(&w->lookup->waiters, &w->link);
	return w;
}

static void docker_cancel(void *op)
{
	struct waiter *w = op;
	struct lookup *l = w->lookup;

	list_remove(&w->link);
	free(w);
	if (list_empty(&l->waiters))
		lookup_free(l);
}

const struct attestor workload_docker = { .name = "docker",
	.enabled = docker_enabled,
	.open = docker_open,
	.close = docker_close,
	.attest = docker_attest,
	.start = docker_start,
	.cancel = docker_cancel };

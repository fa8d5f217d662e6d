/* Watches: a list in pages, then a stream of events, and again, for ever. */
#include <stdlib.h>
#include <string.h>

#include "lib/kube_internal.h"
#include "lib/map.h"

enum {
	BACKOFF_FIRST_MS = 200,
	BACKOFF_MAX_MS = 30000,
	BOOKMARK_IDLE_MS = 150000, /* two bookmarks and a half did not come */
	STALL_AFTER_MS = 30000,    /* after the server should have ended the stream */
	LIST_TIMEOUT_MS = 60000,
	STEADY_MS = 5000, /* a stream that lived so long was a good one */
};

/* What is known of one object. */
struct item {
	unsigned round;
	char *uid, *version;
	json_t *object; /* NULL unless whole ones are kept */
};

static void item_free(struct item *it)
{
	free(it->uid);
	free(it->version);
	json_decref(it->object);
	free(it);
}

static const char *member(const json_t *o, const char *key)
{
	const char *s = json_string_value(json_object_get(o, key));

	return s ? s : "";
}

/* ---- objects become events ---- */

static void tell(struct kube_watch *w, enum kube_event event, json_t *object)
{
	w->in_callback = true;
	w->o.event(w->o.arg, event, object);
	w->in_callback = false;
}

/* An object that is known by its key and versions alone. */
static json_t *shadow(const char *key, const struct item *it)
{
	const char *name = strchr(key, '/') + 1;
	AUTO(free) char *namespace = xstrndup(key, (size_t)(name - key - 1));
	json_t *o = json_object(), *meta = json_object();

	json_object_set_new(meta, "name", json_string(name));
	if (*namespace)
		json_object_set_new(meta, "namespace", json_string(namespace));
	json_object_set_new(meta, "uid", json_string(it->uid));
	json_object_set_new(meta, "resourceVersion", json_string(it->version));
	json_object_set_new(o, "metadata", meta);
	return o;
}

static void forget(struct kube_watch *w, const char *key, json_t *last)
{
	struct item *it = map_del_str(w->objects, key);
	json_t *o = last               ? json_incref(last)
		    : it && it->object ? json_incref(it->object)
		    : it               ? shadow(key, it)
				       : NULL;

	if (it)
		tell(w, KUBE_DELETED, o);
	json_decref(o);
	if (it)
		item_free(it);
}

static char *key_of(const json_t *object)
{
	const json_t *meta = json_object_get(object, "metadata");

	return *member(meta, "name")
		       ? xasprintf("%s/%s", member(meta, "namespace"), member(meta, "name"))
		       : NULL;
}

static void replace(char **s, const char *by)
{
	free(*s);
	*s = xstrdup(by);
}

static void take_object(struct kube_watch *w, json_t *object)
{
	const json_t *meta = json_object_get(object, "metadata");
	AUTO(free) char *key = key_of(object);
	struct item *it;
	bool added;

	if (!key)
		return;
	it = map_get_str(w->objects, key);
	/* Another one of the same name: that before is gone, whether we saw it go or not. */
	if (it && strcmp(it->uid, member(meta, "uid")) != 0) {
		forget(w, key, NULL);
		it = NULL;
	}
	added = !it;
	if (!it) {
		it = xcalloc(1, sizeof(*it));
		map_put_str(w->objects, key, it);
	}
	it->round = w->round;
	if (!added && strcmp(it->version, member(meta, "resourceVersion")) == 0)
		return;
	replace(&it->uid, member(meta, "uid"));
	replace(&it->version, member(meta, "resourceVersion"));
	if (w->o.keep) {
		json_decref(it->object);
		it->object = json_incref(object);
	}
	tell(w, added ? KUBE_ADDED : KUBE_MODIFIED, object);
}

/* ---- failures ---- */

static void watch_wait(struct kube_watch *w, int64_t ns)
{
	loop_timer_set(w->timer, ns);
}

static void watch_failed(struct kube_watch *w, const struct err *e)
{
	if (w->o.failed && (!w->failure || strcmp(w->failure, e->msg) != 0)) {
		w->in_callback = true;
		w->o.failed(w->o.arg, e);
		w->in_callback = false;
	}
	replace(&w->failure, e->msg);
	watch_wait(w, backoff_next(&w->backoff));
}

static void watch_works(struct kube_watch *w)
{
	if (w->failure && w->o.working) {
		w->in_callback = true;
		w->o.working(w->o.arg);
		w->in_callback = false;
	}
	free(w->failure);
	w->failure = NULL;
}

/* ---- the list ---- */

static void forget_unlisted(struct kube_watch *w)
{
	struct bytes key;
	void *value;

	for (size_t i = 0; map_next(w->objects, &i, &key, &value);) {
		AUTO(free) char *name = NULL;

		if (((struct item *)value)->round == w->round)
			continue;
		name = xstrndup((const char *)key.p, key.n);
		forget(w, name, NULL);
	}
}

static void list_done(struct kube_watch *w, const json_t *meta)
{
	replace(&w->version, member(meta, "resourceVersion"));
	if (!*w->version) /* not of an API server that can be watched */
		replace(&w->version, "0");
	free(w->go_on);
	w->go_on = NULL;
	forget_unlisted(w);
	if (w->o.synced) {
		w->in_callback = true;
		w->o.synced(w->o.arg);
		w->in_callback = false;
	}
	watch_wait(w, 0);
}

static void list_failed(struct kube_watch *w, int status, const struct err *e)
{
	if (status == 0 && e->code == ERR_EXHAUSTED && w->page > 1) {
		w->page /= 2; /* large objects */
		watch_wait(w, 0);
		return;
	}
	if (status == 410) { /* the rest of this list is not to be had any more */
		free(w->go_on);
		w->go_on = NULL;
	}
	watch_failed(w, e);
}

static void on_list(void *arg, int status, json_t *object, const struct err *e)
{
	struct kube_watch *w = arg;
	const json_t *meta = json_object_get(object, "metadata");
	struct err odd = ERR_INIT;
	json_t *it;
	size_t i;

	w->list = NULL;
	if (!e->code && !json_is_array(json_object_get(object, "items")) &&
		!json_is_null(json_object_get(object, "items")))
		e = (err_set(&odd, ERR_UNAVAILABLE, "the API server's answer is no list"), &odd);
	if (e->code) {
		list_failed(w, status, e);
		return;
	}
	watch_works(w);
	json_array_foreach(json_object_get(object, "items"), i, it) take_object(w, it);
	if (*member(meta, "continue")) {
		replace(&w->go_on, member(meta, "continue"));
		watch_wait(w, 0);
	} else {
		list_done(w, meta);
	}
}

static char *with_query(const struct kube_watch *w, const char *query)
{
	return xasprintf("%s%c%s", w->path, strchr(w->path, '?') ? '&' : '?', query);
}

static void list_begin(struct kube_watch *w)
{
	AUTO(free)
	char *query = w->go_on ? kube_path("limit=%d&continue=%s", w->page, w->go_on)
			       : kube_path("limit=%d", w->page);
	AUTO(free) char *path = with_query(w, query);
	struct kube_call_options o = {
		.path = path, .timeout_ms = LIST_TIMEOUT_MS, .done = on_list, .arg = w
	};

	if (!w->go_on)
		w->round++;
	w->list = kube_call(w->kube, &o);
}

/* ---- the stream ---- */

static void on_error_event(struct kube_watch *w, json_t *status)
{
	int code = (int)json_integer_value(json_object_get(status, "code"));

	if (code == 410 || strcmp(member(status, "reason"), "Expired") == 0 ||
		strcmp(member(status, "reason"), "Gone") == 0)
		w->gone = true;
	else
		kube_status_error(code ? code : 500, status, &w->stream_error);
}

/* False: the stream is of no further use. */
static bool on_event(struct kube_watch *w, json_t *event)
{
	const char *type = member(event, "type");
	json_t *object = json_object_get(event, "object");
	const char *version = member(json_object_get(object, "metadata"), "resourceVersion");
	AUTO(free) char *key = NULL;

	if (strcmp(type, "ERROR") == 0) {
		on_error_event(w, object);
		return false;
	}
	w->moved = true;
	if (*version)
		replace(&w->version, version);
	if (strcmp(type, "BOOKMARK") == 0) {
		w->bookmarked = true;
	} else if (strcmp(type, "DELETED") == 0) {
		key = key_of(object);
		if (key)
			forget(w, key, object);
	} else if (strcmp(type, "ADDED") == 0 || strcmp(type, "MODIFIED") == 0) {
		take_object(w, object);
	}
	return true;
}

static bool on_line(struct kube_watch *w)
{
	json_t *event;
	bool go_on;

	if (w->line.len == 0)
		return true;
	event = json_loadb((const char *)w->line.p, w->line.len, 0, NULL);
	buf_reset(&w->line);
	if (w->line.cap > 64 << 10) /* one large object is no reason to hold on to that much */
		buf_deinit(&w->line);
	if (!json_is_object(event)) {
		err_set(&w->stream_error, ERR_UNAVAILABLE, "the API server's event is not JSON");
		json_decref(event);
		return false;
	}
	go_on = on_event(w, event);
	json_decref(event);
	return go_on;
}

bool kube_watch_feed(struct kube_watch *w, struct bytes v)
{
	while (v.n > 0) {
		const uint8_t *end = memchr(v.p, '\n', v.n);
		size_t n = end ? (size_t)(end - v.p) : v.n;

		if (!buf_append(&w->line, v.p, n)) {
			err_set(&w->stream_error, ERR_EXHAUSTED, "an event of more than %d bytes",
				KUBE_EVENT_MAX);
			return false;
		}
		if (!end)
			return true;
		if (!on_line(w))
			return false;
		v = bytes_of(v.p + n + 1, v.n - n - 1);
	}
	return true;
}

static bool on_part(void *arg, struct bytes v)
{
	return kube_watch_feed(arg, v);
}

static void on_begun(void *arg)
{
	watch_works(arg);
}

/* A version that the server does not know, or not yet: etcd was put back, say. */
static bool version_is_refused(int status, const struct err *e)
{
	return status == 410 || status == 400 || status == 404 || status == 422 ||
	       strstr(e->msg, "Too large resource version") != NULL;
}

static void stream_refused(struct kube_watch *w, const struct http_answer *a)
{
	json_t *object = json_loadb((const char *)a->body.p, a->body.n, 0, NULL);
	struct err e = ERR_INIT;

	kube_status_error(a->status, object, &e);
	json_decref(object);
	if (a->status == 401)
		kube_distrust(w->kube);
	if (version_is_refused(a->status, &e)) {
		free(w->version);
		w->version = NULL;
	}
	if (a->status == 410) /* as it should be, if much time has gone by */
		watch_wait(w, backoff_next(&w->backoff));
	else
		watch_failed(w, &e);
}

static void on_stream_end(void *arg, const struct http_answer *a, const struct err *e)
{
	struct kube_watch *w = arg;

	w->stream = NULL;
	buf_deinit(&w->line);
	if (w->moved || clock_mono().ns - w->began.ns > STEADY_MS * NS_PER_MS)
		backoff_reset(&w->backoff);
	if (e->code) {
		watch_failed(w, e);
	} else if (a->status != 200) {
		stream_refused(w, a);
	} else if (w->gone) {
		free(w->version);
		w->version = NULL;
		watch_wait(w, w->moved ? 0 : backoff_next(&w->backoff));
	} else if (w->stream_error.code) {
		/* What the event was is in the next list. */
		if (w->stream_error.code == ERR_EXHAUSTED) {
			free(w->version);
			w->version = NULL;
		}
		watch_failed(w, &w->stream_error);
	} else { /* its time was up, or the server goes */
		watch_wait(w, w->moved ? 0 : backoff_next(&w->backoff));
	}
}

static void stream_begin(struct kube_watch *w)
{
	int seconds = w->o.watch_s ? w->o.watch_s : KUBE_WATCH_S;
	AUTO(free) char *query = NULL, *path = NULL;
	struct http_call_options o = {
		.headers = kube_headers(w->kube),
		.timeout_ms = -1,
		.part = on_part,
		.begun = on_begun,
		.done = on_stream_end,
		.arg = w,
	};

	seconds = (int)(loop_jitter(seconds * NS_PER_SEC, 20) / NS_PER_SEC);
	seconds = seconds < 1 ? 1 : seconds;
	query = kube_path("watch=1&allowWatchBookmarks=true&resourceVersion=%s&timeoutSeconds=%d",
		w->version, seconds);
	path = with_query(w, query);
	o.path = path;
	o.idle_ms = w->o.idle_ms    ? w->o.idle_ms
		    : w->bookmarked ? BOOKMARK_IDLE_MS
				    : seconds * 1000 + STALL_AFTER_MS;
	w->gone = w->moved = false;
	w->began = clock_mono();
	w->stream_error = ERR_INIT;
	w->line = BUF_INIT_MAX(KUBE_EVENT_MAX);
	w->stream = http_call(w->kube->http, &o);
}

static void watch_step(void *arg)
{
	struct kube_watch *w = arg;

	if (w->version)
		stream_begin(w);
	else
		list_begin(w);
}

/* ---- the whole ---- */

struct kube_watch *kube_watch(struct kube *k, const struct kube_watch_options *o)
{
	struct kube_watch *w = xcalloc(1, sizeof(*w));

	w->kube = k;
	w->o = *o;
	w->path = xstrdup(o->path);
	w->o.path = NULL;
	w->page = KUBE_LIST_PAGE;
	w->objects = map_new();
	w->backoff.first_ns = BACKOFF_FIRST_MS * NS_PER_MS;
	w->backoff.max_ns = BACKOFF_MAX_MS * NS_PER_MS;
	w->timer = loop_timer_new(k->loop, watch_step, w);
	list_append(&k->watches, &w->node);
	watch_wait(w, 0);
	return w;
}

void kube_watch_stop(struct kube_watch *w)
{
	if (!w->kube)
		return;
	INVARIANT(!w->in_callback);
	w->kube = NULL;
	list_remove(&w->node);
	kube_call_cancel(w->list);
	http_call_cancel(w->stream);
	w->list = NULL;
	w->stream = NULL;
	loop_timer_free(w->timer);
	w->timer = NULL;
}

void kube_watch_free(struct kube_watch *w)
{
	struct bytes key;
	void *value;

	if (!w)
		return;
	kube_watch_stop(w);
	for (size_t i = 0; map_next(w->objects, &i, &key, &value);)
		item_free(value);
	map_free(w->objects);
	buf_deinit(&w->line);
	free(w->path);
	free(w->go_on);
	free(w->version);
	free(w->failure);
	free(w);
}

#include "agent/kubelet_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "lib/http.h"
#include "lib/list.h"
#include "lib/log.h"
#include "lib/map.h"
#include "lib/metrics.h"

/* Somebody new so soon after the last request means that more will come: the next is read to its
 * end. */
#define RUSH_NS NS_PER_SEC

enum { ERROR_BODY_MAX = 64 << 10, ERROR_SHOWN = 800 };

/* A process that was attested in a pod. */
struct guest {
	pid_t pid;
	uint64_t start_time;
};

struct known {
	struct pod *pod;
	int64_t asked_ns; /* when the request that told of it began */
	unsigned request; /* its number */
	struct guest guests[KUBELET_AGAIN_MAX];
	unsigned n_guests; /* ever; the oldest gives way */
};

struct kubelet {
	struct loop *loop;
	const struct k8s_options *o;
	char *url;
	struct http_client *http;
	struct kubelet_login login;
	int64_t login_ns; /* when it was read; 0: never */
	struct map *pods; /* uid → struct known */
	int64_t whole_ns; /* when the last request began that was read to its end; 0: none */
	struct list waiting, ready; /* struct kubelet_wait */
	struct loop_timer *next, *deliver, *forget;
	/* the request */
	struct http_call *call; /* under way */
	struct podlist *list;
	bool to_the_end, body_came, stopped;
	unsigned request; /* its number */
	int64_t asked_ns; /* the last one's begin; 0: never */
	bool cut;         /* it ended early */
	struct err bad;   /* what was read is not what it should be */
	struct err told;  /* the failure that was logged */
	/* the pause before the next */
	int64_t took_ns, pause_ns; /* of the last request; 0: the first pause */
	int64_t quick_ns;          /* up to when the budget of quick ones was spent */
};

struct kubelet_wait {
	struct list link;
	struct kubelet *k;
	struct kubelet_wait_options o;
	unsigned attempts; /* lists that were looked at */
	unsigned seen;     /* request whose list had the pod, but not yet its container */
	int64_t since_ns, first_look_ns;
	unsigned first_request;
	struct err err, last; /* of the end; of the last request */
};

static struct metric *requests, *bytes_read;

static const char *text(const char *s)
{
	return s ? s : "";
}

/* ---- what is known ---- */

static void known_free(struct known *e)
{
	pod_free(e->pod);
	free(e);
}

/* All, or those that the last request did not tell of. */
static void forget_pods(struct kubelet *k, bool all)
{
	struct bytes key;
	void *v;

	for (size_t i = 0; map_next(k->pods, &i, &key, &v);) {
		struct known *e = v;

		if (all || e->request != k->request) {
			map_del(k->pods, key);
			known_free(e);
		}
	}
}

static void on_forget(void *arg)
{
	struct kubelet *k = arg;

	if (!k->call && list_empty(&k->waiting))
		forget_pods(k, true);
}

static bool is_guest(const struct known *e, const struct kubelet_want *w)
{
	for (unsigned i = 0; i < e->n_guests && i < KUBELET_AGAIN_MAX; i++)
		if (e->guests[i].pid == w->pid && e->guests[i].start_time == w->start_time)
			return true;
	return false;
}

static void add_guest(struct known *e, const struct kubelet_want *w)
{
	if (w->pid > 0 && !is_guest(e, w))
		e->guests[e->n_guests++ % KUBELET_AGAIN_MAX] =
			(struct guest){ w->pid, w->start_time };
}

static bool fresh(const struct kubelet *k, const struct known *e, const struct kubelet_want *w,
	int64_t asked_ns)
{
	int64_t age = clock_mono().ns - asked_ns;

	return asked_ns &&
	       (age < k->o->poll_retry_interval_ns || (age < KUBELET_AGAIN_NS && is_guest(e, w)));
}

enum sight {
	ABSENT,
	NOT_READY, /* the pod is there, its container is not */
	FOUND,
	WRONG, /* not to be waited for any longer */
};

static int decode_failed(const struct pod *p, struct err *e)
{
	return err_set(e, ERR_UNAVAILABLE,
		"unable to decode pod info from kubelet response: pod %s: %s", pod_text(p, p->uid),
		p->broken);
}

static enum sight look_at(const struct known *x, const struct kubelet_want *w,
	const struct pod_item **ret_container, struct err *e)
{
	const struct pod *p = x->pod;

	*ret_container = NULL;
	if (p->broken) {
		decode_failed(p, e);
		return WRONG;
	}
	if (!*text(w->container_id))
		return FOUND;
	*ret_container = pod_container(p, w->container_id);
	if (*ret_container)
		return FOUND;
	return *text(w->uid) && w->pod_will_do ? FOUND : NOT_READY;
}

static bool is_named(const struct pod *p, const struct kubelet_want *w)
{
	return strcmp(pod_text(p, p->namespace), text(w->namespace)) == 0 &&
	       strcmp(pod_text(p, p->name), text(w->name)) == 0;
}

/* By its container alone, so only in a whole list: no other may claim it. */
static enum sight look_for_container(struct kubelet *k, const struct kubelet_want *w,
	struct known **ret, const struct pod_item **ret_container, struct err *e)
{
	struct err ignored;
	struct bytes key;
	void *v;

	*ret = NULL;
	for (size_t i = 0; map_next(k->pods, &i, &key, &v);) {
		const struct pod_item *c;

		/* What is wrong with other pods must not be this one's trouble. */
		if (look_at(v, w, &c, &ignored) != FOUND)
			continue;
		if (*ret) {
			err_set(e, ERR_INTERNAL, "two pods found with same container Id");
			return WRONG;
		}
		*ret = v;
		*ret_container = c;
	}
	return *ret ? FOUND : ABSENT;
}

static struct known *known_named(struct kubelet *k, const struct kubelet_want *w)
{
	struct bytes key;
	void *v;

	for (size_t i = 0; map_next(k->pods, &i, &key, &v);)
		if (is_named(((struct known *)v)->pod, w))
			return v;
	return NULL;
}

/* Among what is known, whatever its age. */
static enum sight look(struct kubelet *k, const struct kubelet_want *w, struct known **ret,
	const struct pod_item **ret_container, struct err *e)
{
	*ret_container = NULL;
	if (!*text(w->uid) && *text(w->container_id))
		return look_for_container(k, w, ret, ret_container, e);
	*ret = *text(w->uid) ? map_get_str(k->pods, w->uid) : known_named(k, w);
	return *ret ? look_at(*ret, w, ret_container, e) : ABSENT;
}

static bool needs_whole(const struct kubelet_want *w)
{
	return !*text(w->uid) && *text(w->container_id);
}

const struct pod *kubelet_known(
	struct kubelet *k, const struct kubelet_want *w, const struct pod_item **ret_container)
{
	struct known *x = NULL;
	struct err e;

	if (look(k, w, &x, ret_container, &e) != FOUND ||
		!fresh(k, x, w, needs_whole(w) ? k->whole_ns : x->asked_ns))
		return NULL;
	add_guest(x, w);
	return x->pod;
}

/* ---- those who wait ---- */

static void on_deliver(void *arg)
{
	struct kubelet *k = arg;

	while (!list_empty(&k->ready)) {
		struct kubelet_wait *w = container_of(k->ready.next, struct kubelet_wait, link);
		struct kubelet_wait_options o = w->o;
		struct err e = w->err;
		AUTO(free) char *waited = kubelet_cancel(w);

		o.done(o.arg, &e, waited);
	}
}

static void end_wait(struct kubelet_wait *w)
{
	list_remove(&w->link);
	list_append(&w->k->ready, &w->link);
	loop_timer_set(w->k->deliver, 0);
}

static void found(struct kubelet_wait *w, struct known *x, const struct pod_item *container)
{
	add_guest(x, &w->o.want);
	w->o.found(w->o.arg, x->pod, container);
	end_wait(w);
}

/* True: it need wait no longer. */
static bool settle(struct kubelet_wait *w)
{
	const struct pod_item *c;
	struct known *x;

	switch (look(w->k, &w->o.want, &x, &c, &w->err)) {
	case FOUND:
		found(w, x, c);
		return true;
	case WRONG:
		end_wait(w);
		return true;
	case NOT_READY:
		w->seen = w->k->request;
		return false;
	case ABSENT:
		break;
	}
	return false;
}

static bool is_last(const struct kubelet_wait *w)
{
	const struct k8s_options *o = w->k->o;

	if (!o->poll_quickly)
		return w->attempts >= w->o.want.attempts;
	return clock_mono().ns - w->first_look_ns >=
	       (w->o.want.attempts - 1) * o->poll_retry_interval_ns;
}

/* One more list (failed NULL) or failure; the last one says what it was. */
static void count_attempt(struct kubelet_wait *w, const struct err *failed)
{
	if (!w->attempts++)
		w->first_look_ns = clock_mono().ns;
	w->last = failed ? *failed : ERR_INIT;
	if (!is_last(w))
		return;
	if (failed)
		err_set(&w->err, ERR_UNAVAILABLE, "%s", failed->msg);
	else
		err_set(&w->err, ERR_DEADLINE, "no selectors found after max poll attempts");
	end_wait(w);
}

static void schedule(struct kubelet *k);

char *kubelet_cancel(struct kubelet_wait *w)
{
	AUTO_BUF struct buf b = BUF_INIT;
	const struct kubelet_want *n = &w->o.want;
	unsigned asked = w->k->request - w->first_request;
	double s = (double)(clock_mono().ns - w->since_ns) / 1e9;

	buf_printf(&b, "the kubelet at %s", w->k->url);
	if (w->attempts && *text(n->container_id))
		buf_printf(&b, " to know container %.12s%s%.36s", n->container_id,
			*text(n->uid) ? " of pod " : "", text(n->uid));
	buf_printf(&b, ": %u %s, %.1f s", asked, asked == 1 ? "request" : "requests", s);
	if (w->last.code)
		buf_printf(&b, "; the last failed: %s", w->last.msg);
	list_remove(&w->link);
	free((char *)(uintptr_t)w->o.want.container_id);
	free((char *)(uintptr_t)w->o.want.uid);
	free((char *)(uintptr_t)w->o.want.namespace);
	free((char *)(uintptr_t)w->o.want.name);
	free(w);
	return asked ? buf_take_str(&b) : NULL;
}

/* What has come by of the request under way; else what is known counts as one list, if it is whole
 * and fresh. */
static void begin_wait(struct kubelet *k, struct kubelet_wait *w)
{
	const struct kubelet_want *n = &w->o.want;
	const struct pod_item *c;
	struct known *x = NULL;
	struct err ignored;

	if (kubelet_known(k, n, &c)) {
		settle(w);
		return;
	}
	if (k->call) {
		if (!needs_whole(n) && look(k, n, &x, &c, &ignored) != ABSENT &&
			x->request == k->request)
			settle(w);
		return;
	}
	if (k->whole_ns && clock_mono().ns - k->whole_ns < k->o->poll_retry_interval_ns &&
		!settle(w))
		count_attempt(w, NULL);
}

struct kubelet_wait *kubelet_wait(struct kubelet *k, const struct kubelet_wait_options *o)
{
	struct kubelet_wait *w = xcalloc(1, sizeof(*w));
	struct kubelet_want *n = &w->o.want;

	w->k = k;
	w->o = *o;
	n->container_id = xstrdup(text(o->want.container_id));
	n->uid = xstrdup(text(o->want.uid));
	n->namespace = xstrdup(text(o->want.namespace));
	n->name = xstrdup(text(o->want.name));
	w->since_ns = clock_mono().ns;
	/* A request under way is one that it waits for. */
	w->first_request = k->request - (k->call != NULL);
	list_append(&k->waiting, &w->link);
	k->pause_ns = 0;
	if (k->stopped) {
		err_set(&w->err, ERR_UNAVAILABLE, "the agent is stopping");
		end_wait(w);
		return w;
	}
	begin_wait(k, w);
	schedule(k);
	return w;
}

/* ---- the request ---- */

/* Everybody has either what he wants or seen that it is not ready. */
static bool enough(const struct kubelet *k)
{
	if (k->to_the_end)
		return false;
	list_each (w, &k->waiting, struct kubelet_wait, link)
		if (w->seen != k->request)
			return false;
	return true;
}

static bool on_pod(void *arg, struct pod *p)
{
	struct kubelet *k = arg;
	const char *uid = pod_text(p, p->uid);
	struct known *x = map_get_str(k->pods, uid);

	if (!x) {
		x = xcalloc(1, sizeof(*x));
		map_put_str(k->pods, uid, x);
	}
	pod_free(x->pod);
	x->pod = p;
	x->request = k->request;
	x->asked_ns = k->asked_ns;
	list_each (w, &k->waiting, struct kubelet_wait, link) {
		const struct kubelet_want *n = &w->o.want;

		if (!needs_whole(n) && (*text(n->uid) ? strcmp(n->uid, uid) == 0 : is_named(p, n)))
			settle(w);
	}
	return !enough(k);
}

static bool on_part(void *arg, struct bytes part)
{
	struct kubelet *k = arg;

	k->body_came = true;
	metric_add(bytes_read, (double)part.n);
	return podlist_feed(k->list, part, &k->bad) == 0 && !podlist_stopped(k->list);
}

static int request_outcome(
	struct kubelet *k, const struct http_answer *a, const struct err *he, struct err *e)
{
	int r;

	if (k->bad.code)
		return err_set(e, k->bad.code, "%s", k->bad.msg);
	if (he->code && k->body_came)
		return err_set(e, he->code, "unable to read pods response: %s", he->msg);
	if (he->code)
		return err_set(e, he->code, "unable to perform request: Get \"%s/pods\": %s",
			k->url, he->msg);
	if (a->status != 200)
		return err_set(e, ERR_UNAVAILABLE,
			"unexpected status code on pods response: %d %.*s", a->status,
			(int)(a->body.n < ERROR_SHOWN ? a->body.n : ERROR_SHOWN),
			a->body.n ? (const char *)a->body.p : "");
	r = podlist_end(k->list, e);
	if (!r && podlist_without_uid(k->list))
		log_event(LOG_WARN, "workload_k8s", "Pods without a UID in the kubelet's list",
			"count", log_fmt("%zu", podlist_without_uid(k->list)), NULL);
	return r;
}

/* A failure is told once, and again when it becomes another one. */
static void tell(struct kubelet *k, const struct err *e)
{
	if (e->code && (!k->told.code || strcmp(k->told.msg, e->msg) != 0))
		log_event(LOG_WARN, "workload_k8s", "Unable to get the pod list from the kubelet",
			"url", k->url, "error", e->msg, NULL);
	if (!e->code && k->told.code)
		log_event(
			LOG_INFO, "workload_k8s", "The kubelet answers again", "url", k->url, NULL);
	k->told = *e;
}

/* A bucket of KUBELET_QUICK_MAX, kept as the time at which it was empty. */
static bool may_be_quick(const struct kubelet *k, int64_t now)
{
	return now - k->quick_ns >= KUBELET_QUICK_REFILL_NS;
}

static void count_quick(struct kubelet *k, int64_t now)
{
	int64_t most = now - KUBELET_QUICK_MAX * KUBELET_QUICK_REFILL_NS;

	if (k->quick_ns < most)
		k->quick_ns = most;
	k->quick_ns += KUBELET_QUICK_REFILL_NS;
}

static bool somebody_young(const struct kubelet *k, int64_t now)
{
	list_each (w, &k->waiting, struct kubelet_wait, link)
		if (now - w->since_ns < KUBELET_YOUNG_NS)
			return true;
	return false;
}

/* Never so short that a slow kubelet would be asked for more than a third of the time. */
static int64_t pause_of(const struct kubelet *k)
{
	int64_t most = k->o->poll_retry_interval_ns, least = 2 * k->took_ns;
	int64_t pause = k->pause_ns, now = clock_mono().ns;

	if (!k->o->poll_quickly || pause >= most || !may_be_quick(k, now))
		return most;
	if (!pause)
		pause = KUBELET_QUICK_NS;
	if (pause > KUBELET_QUICK_MOST_NS && somebody_young(k, now))
		pause = KUBELET_QUICK_MOST_NS;
	if (pause < least)
		pause = least;
	return pause < most ? pause : most;
}

/* Longer each time; one that cannot answer is not pressed. */
static void lengthen_pause(struct kubelet *k, bool failed)
{
	k->took_ns = clock_mono().ns - k->asked_ns;
	k->pause_ns = failed ? k->o->poll_retry_interval_ns : pause_of(k) * 3 / 2;
}

static void request_over(struct kubelet *k, const struct err *e)
{
	bool whole = !e->code && !k->cut;

	tell(k, e);
	metric_add(requests, 1, e->code ? "failed" : k->cut ? "cut" : "whole");
	if (whole) {
		k->whole_ns = k->asked_ns;
		forget_pods(k, false);
	}
	list_each (w, &k->waiting, struct kubelet_wait, link) {
		if (e->code)
			count_attempt(w, e);
		else if (whole ? !settle(w) : w->seen == k->request)
			count_attempt(w, NULL);
	}
	lengthen_pause(k, e->code);
	loop_timer_set(k->forget, k->o->poll_retry_interval_ns > KUBELET_AGAIN_NS
					  ? k->o->poll_retry_interval_ns
					  : KUBELET_AGAIN_NS);
	schedule(k);
}

static void on_answer(void *arg, const struct http_answer *a, const struct err *he)
{
	struct kubelet *k = arg;
	struct err e = ERR_INIT;

	k->call = NULL;
	k->cut = !request_outcome(k, a, he, &e) && podlist_stopped(k->list);
	podlist_free(k->list);
	k->list = NULL;
	request_over(k, &e);
}

static int read_login(struct kubelet *k, struct err *e)
{
	int64_t now = clock_mono().ns;
	bool renewed;

	if (k->login_ns && now - k->login_ns < k->o->reload_interval_ns)
		return 0;
	if (kubelet_login_read(k->o, &k->login, &renewed, e))
		return e->code;
	if (renewed && k->http)
		http_client_renew(k->http);
	k->login_ns = now;
	return 0;
}

static bool somebody_new(const struct kubelet *k)
{
	list_each (w, &k->waiting, struct kubelet_wait, link)
		if (!w->attempts)
			return true;
	return false;
}

static void start_request(struct kubelet *k)
{
	AUTO_BUF struct buf headers = BUF_INIT_SECRET;
	struct http_call_options o = { .path = "/pods",
		.timeout_ms = KUBELET_TIMEOUT_MS,
		.body_max = ERROR_BODY_MAX,
		.part = on_part,
		.done = on_answer,
		.arg = k };
	int64_t now = clock_mono().ns;
	struct err e = ERR_INIT;

	k->to_the_end = k->asked_ns && now - k->asked_ns < RUSH_NS && somebody_new(k);
	list_each (w, &k->waiting, struct kubelet_wait, link)
		k->to_the_end |= needs_whole(&w->o.want);
	k->request++;
	if (k->asked_ns && now - k->asked_ns < k->o->poll_retry_interval_ns)
		count_quick(k, now);
	k->asked_ns = now;
	k->cut = k->body_came = false;
	k->bad = ERR_INIT;
	if (read_login(k, &e)) {
		request_over(k, &e);
		return;
	}
	if (k->login.token.len)
		buf_printf(&headers, "Authorization: Bearer %.*s\r\n", (int)k->login.token.len,
			(const char *)k->login.token.p);
	o.headers = headers.len ? buf_cstr(&headers) : NULL;
	k->list = podlist_new(on_pod, k);
	k->call = http_call(k->http, &o);
}

/* At once if nobody asked lately, or if the last list was cut short of what somebody new wants. */
static void schedule(struct kubelet *k)
{
	int64_t wait = 0;

	if (k->call || list_empty(&k->waiting))
		return;
	if (k->asked_ns && !(k->cut && somebody_new(k)))
		wait = k->asked_ns + pause_of(k) - clock_mono().ns;
	loop_timer_set(k->next, wait > 0 ? wait : 0);
}

static void on_next(void *arg)
{
	struct kubelet *k = arg;

	if (!k->call && !list_empty(&k->waiting))
		start_request(k);
}

/* ---- begin and end ---- */

static struct tls_ctx *next_tls(void *arg)
{
	struct kubelet *k = arg;

	return tls_ctx_ref(k->login.tls);
}

/* Without a name the kubelet is reached at 127.0.0.1, which its certificate need not name. */
static int verify(void *arg, const struct x509_chain *peer, struct err *e)
{
	const struct kubelet *k = arg;

	if (k->o->skip_kubelet_verification)
		return 0;
	return tls_verify_host(peer, &k->login.roots, kubelet_node_name(k->o), clock_wall(), e);
}

static void make_metrics(void)
{
	static const char *const labels[] = { "outcome", NULL };

	requests = metric_counter(
		"assay_agent_kubelet_requests_total", "Pod lists asked of the kubelet", labels);
	bytes_read = metric_counter(
		"assay_agent_kubelet_bytes_total", "Bytes of pod lists that were read", NULL);
}

int kubelet_new(struct loop *l, const struct k8s_options *o, struct kubelet **ret, struct err *e)
{
	struct kubelet *k = xcalloc(1, sizeof(*k));
	struct http_client_options h = {
		.allow_plain = true, .tls = next_tls, .verify = verify, .verify_arg = k, .arg = k
	};
	int r;

	k->loop = l;
	k->o = o;
	k->url = kubelet_url(o);
	k->login = KUBELET_LOGIN_INIT;
	k->pods = map_new();
	list_init(&k->waiting);
	list_init(&k->ready);
	k->next = loop_timer_new(l, on_next, k);
	k->deliver = loop_timer_new(l, on_deliver, k);
	k->forget = loop_timer_new(l, on_forget, k);
	make_metrics();
	h.url = k->url;
	r = read_login(k, e);
	if (!r)
		r = http_client_new(l, &h, &k->http, e);
	if (r)
		kubelet_free(k);
	else
		*ret = k;
	return r;
}

void kubelet_stop(struct kubelet *k)
{
	k->stopped = true;
	http_client_free(k->http);
	podlist_free(k->list);
	k->http = NULL;
	k->call = NULL;
	k->list = NULL;
	loop_timer_stop(k->next);
	loop_timer_stop(k->forget);
}

void kubelet_free(struct kubelet *k)
{
	if (!k)
		return;
	INVARIANT(list_empty(&k->waiting) && list_empty(&k->ready));
	kubelet_stop(k);
	forget_pods(k, true);
	map_free(k->pods);
	loop_timer_free(k->next);
	loop_timer_free(k->deliver);
	loop_timer_free(k->forget);
	kubelet_login_deinit(&k->login);
	free(k->url);
	free(k);
}

size_t kubelet_pods(const struct kubelet *k)
{
	return map_len(k->pods);
}

unsigned kubelet_requests(const struct kubelet *k)
{
	return k->request;
}

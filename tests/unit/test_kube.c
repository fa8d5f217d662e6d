/* The Kubernetes client against a stand-in. Covers: lib/kube.c lib/kube_config.c lib/kube_watch.c
 */
#include "tests/test.h"

#include <dirent.h>

#include "lib/kube_internal.h"
#include "lib/map.h"
#include "tests/unit/kube_api.inc"
#include "tests/unit/x509_make.inc"

static struct loop *loop;
static struct kube *kube;

static void clean(void)
{
	DIR *d = opendir(test_dir());

	for (struct dirent *f; (f = readdir(d));)
		if (f->d_name[0] != '.') {
			AUTO(free) char *p = xasprintf("%s/%s", test_dir(), f->d_name);

			unlink(p);
		}
	closedir(d);
	rmdir(test_dir());
}

static void begin(void (*handle)(struct api_request *rq), const char *user)
{
	AUTO(free) char *path = NULL;
	struct err e = ERR_INIT;
	struct kube_options o = { 0 };

	api_begin(0, handle);
	path = api_kubeconfig("kubeconfig", user);
	o.kubeconfig = path;
	loop = loop_new();
	CHECK_OK(kube_new(loop, &o, &kube, &e));
}

static void end(void)
{
	kube_free(kube);
	loop_run(loop);
	loop_free(loop);
	api_end();
	clean();
}

/* ---- configuration ---- */

static int read_config(const char *text, struct kube_config *c, struct err *e)
{
	AUTO(free) char *path = xasprintf("%s/config", test_dir());

	write_text(path, text);
	return kube_config_read(path, NULL, c, e);
}

#define HEAD                                                                                       \
	"apiVersion: v1\nkind: Config\ncurrent-context: c\n"                                       \
	"contexts:\n- name: other\n  context: {cluster: x}\n- name: c\n  context:\n"               \
	"    cluster: k\n    user: u\n    namespace: spire\n"

static void test_config(void)
{
	struct kube_config c;
	struct err e = ERR_INIT;

	CHECK_OK(
		read_config(HEAD "clusters:\n- name: k\n  cluster:\n    server: https://a:6443\n"
				 "    certificate-authority: pki/ca.crt\n"
				 "    tls-server-name: kubernetes\n"
				 "users:\n- name: u\n  user:\n    client-certificate-data: |\n"
				 "      QU\n      JD\n    client-certificate: ignored\n"
				 "    client-key: /abs/key\n    token: 12345\n    tokenFile: tok\n",
			&c, &e));
	CHECK_STR(c.server, "https://a:6443");
	CHECK_STR(c.namespace, "spire");
	CHECK_STR(c.tls_server_name, "kubernetes");
	CHECK_CONTAINS(c.ca.path, "/pki/ca.crt");
	CHECK(c.ca.path[0] == '/');
	CHECK(!c.cert.path);
	CHECK_BYTES(buf_view(&c.cert.data), bytes_str("ABC"));
	CHECK_STR(c.key.path, "/abs/key");
	CHECK_CONTAINS(c.token.path, "/tok");
	CHECK_BYTES(buf_view(&c.token_fallback), bytes_str("12345"));
	kube_config_deinit(&c);
	CHECK_OK(read_config("{\"current-context\":\"c\",\"contexts\":[{\"name\":\"c\",\"context\":"
			     "{\"cluster\":\"k\"}}],\"clusters\":[{\"name\":\"k\",\"cluster\":{"
			     "\"server\":\"https://a\",\"insecure-skip-tls-verify\":true}}]}",
		&c, &e));
	CHECK(c.insecure && !kube_source_is(&c.token));
	CHECK_STR(c.namespace, "default");
	kube_config_deinit(&c);
	clean();
}

static void config_refused(const char *text, const char *why)
{
	struct kube_config c;
	struct err e = ERR_INIT;

	CHECK_ERR(read_config(text, &c, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, why);
	CHECK_CONTAINS(e.msg, "/config: "); /* says which file */
}

#define CLUSTER "clusters: [{name: k, cluster: {server: 'https://a'}}]\n"

static void test_config_refused(void)
{
	struct kube_config c;
	struct err e = ERR_INIT;

	config_refused("a: b: c", "line 1: ");
	config_refused("[]", "not a kubeconfig file");
	config_refused("", "not a kubeconfig file");
	config_refused("contexts: []", "there is no current-context");
	config_refused("current-context: x", "there is no context \"x\"");
	config_refused(HEAD, "there is no cluster \"k\"");
	config_refused(HEAD CLUSTER, "there is no user \"u\"");
	config_refused(HEAD "clusters: [{name: k, cluster: {}}]\nusers: [{name: u, user: {}}]",
		"the cluster has no server");
	config_refused(HEAD "clusters: [{name: k, cluster: {server: a, proxy-url: b}}]\n"
			    "users: [{name: u, user: {}}]",
		"proxy-url is not supported");
	config_refused(HEAD "clusters: [{name: k, cluster: {server: a, insecure-skip-tls-verify: "
			    "true, certificate-authority: b}}]\nusers: [{name: u, user: {}}]",
		"contradicts");
	config_refused(HEAD CLUSTER "users: [{name: u, user: {exec: {command: aws}}}]",
		"exec is not supported");
	config_refused(
		HEAD CLUSTER "users: [{name: u, user: {client-certificate: a}}]", "one is missing");
	config_refused(
		HEAD CLUSTER "users: [{name: u, user: {client-key-data: '*'}}]", "client-key-data");
	CHECK_ERR(kube_config_read("/nonexistent", NULL, &c, &e), ERR_NOT_FOUND);
	clean();
}

static void test_pod(void)
{
	AUTO(free) char *ns = xasprintf("%s/namespace", test_dir());
	struct kube_config c;
	struct err e = ERR_INIT;

	unsetenv("KUBERNETES_SERVICE_HOST");
	CHECK_ERR(kube_config_pod(test_dir(), &c, &e), ERR_NOT_FOUND);
	setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1", 1);
	setenv("KUBERNETES_SERVICE_PORT", "443", 1);
	CHECK_OK(kube_config_pod(test_dir(), &c, &e));
	CHECK_STR(c.server, "https://10.96.0.1:443");
	CHECK_STR(c.namespace, "default");
	kube_config_deinit(&c);
	write_text(ns, "spire\n");
	setenv("KUBERNETES_SERVICE_HOST", "fd00::1", 1);
	CHECK_OK(kube_config_pod(test_dir(), &c, &e));
	CHECK_STR(c.server, "https://[fd00::1]:443");
	CHECK_STR(c.namespace, "spire");
	CHECK_CONTAINS(c.token.path, "/token");
	kube_config_deinit(&c);
	clean();
}

/* ---- calls ---- */

struct outcome {
	bool done;
	int status, code;
	char text[1000]; /* the member "a", or the error's */
	size_t n;        /* of the member "list" */
};

static void on_done(void *arg, int status, json_t *object, const struct err *e)
{
	struct outcome *o = arg;
	const char *a = json_string_value(json_object_get(object, "a"));

	o->done = true;
	o->status = status;
	o->code = e->code;
	o->n = json_array_size(json_object_get(object, "list"));
	snprintf(o->text, sizeof(o->text), "%s", e->code ? e->msg : a ? a : "");
	loop_stop(loop);
}

static struct outcome call(struct kube_call_options o)
{
	struct outcome r = { 0 };

	o.done = on_done;
	o.arg = &r;
	kube_call(kube, &o);
	CHECK(!r.done);
	loop_run(loop);
	CHECK(r.done);
	return r;
}

static char last_authorization[200];
static int busy;

static void answer(struct api_request *rq)
{
	const char *auth = strstr(rq->head, "Authorization: ");
	AUTO_BUF struct buf big = BUF_INIT;
	int status;

	snprintf(last_authorization, sizeof(last_authorization), "%.*s",
		auth ? (int)strcspn(auth, "\r") : 0, auth ? auth : "");
	CHECK_CONTAINS(rq->head, "Accept: application/json");
	if (sscanf(rq->target, "/status/%d", &status) == 1) {
		api_status(rq, status, "because of \\\"x\\\"");
	} else if (strcmp(rq->target, "/text") == 0) {
		api_say(rq, 200, "text");
	} else if (strcmp(rq->target, "/bare") == 0) {
		api_say(rq, 502, "<html>");
	} else if (strcmp(rq->target, "/busy") == 0 && busy-- > 0) {
		static const char wait[] =
			"HTTP/1.1 429 Wait\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n";

		api_send(rq->fd, wait, sizeof(wait) - 1);
	} else if (strcmp(rq->target, "/big") == 0) {
		buf_str(&big, "{\"list\":[0");
		for (int i = 1; i < 500000; i++)
			buf_printf(&big, ",%d", i);
		buf_str(&big, "],\"a\":\"big\"}");
		api_say(rq, 200, buf_cstr(&big));
	} else if (strcmp(rq->method, "POST") == 0) {
		CHECK_CONTAINS(rq->head, "Content-Type: application/json");
		CHECK_STR(rq->body, "{\"b\":\"c\"}");
		api_say(rq, 201, "{\"a\":\"made\"}");
	} else {
		api_say(rq, 200, "{\"a\":\"fine\"}");
	}
}

static void test_calls(void)
{
	static const struct {
		int status, code;
	} codes[] = { { 400, ERR_INVALID }, { 401, ERR_UNAUTHENTICATED }, { 403, ERR_DENIED },
		{ 404, ERR_NOT_FOUND }, { 409, ERR_EXISTS }, { 410, ERR_ABORTED },
		{ 422, ERR_INVALID }, { 500, ERR_UNAVAILABLE }, { 503, ERR_UNAVAILABLE },
		{ 418, ERR_INTERNAL } };
	json_t *body = json_pack("{s:s}", "b", "c");
	struct outcome o;

	begin(answer, "token: abc");
	o = call((struct kube_call_options){ .path = "/x" });
	CHECK_INT(o.code, 0);
	CHECK_INT(o.status, 200);
	CHECK_STR(o.text, "fine");
	CHECK_STR(last_authorization, "Authorization: Bearer abc");
	o = call((struct kube_call_options){ .method = "POST", .path = "/x", .body = body });
	CHECK_INT(o.status, 201);
	CHECK_STR(o.text, "made");
	for (size_t i = 0; i < ARRAY_LEN(codes); i++) {
		AUTO(free) char *path = kube_path("/status/%d", codes[i].status);

		o = call((struct kube_call_options){ .path = path });
		CHECK_INT(o.status, codes[i].status);
		CHECK_INT(o.code, codes[i].code);
		CHECK_STR(o.text, "because of \"x\"");
	}
	o = call((struct kube_call_options){ .path = "/text" });
	CHECK_INT(o.code, ERR_UNAVAILABLE);
	CHECK_STR(o.text, "the API server's answer is not JSON");
	o = call((struct kube_call_options){ .path = "/bare" });
	CHECK_STR(o.text, "the API server answered 502");
	busy = 2;
	o = call((struct kube_call_options){ .path = "/busy" });
	CHECK_STR(o.text, "fine");
	busy = 100;
	o = call((struct kube_call_options){ .path = "/busy" });
	CHECK_INT(o.code, ERR_EXHAUSTED);
	CHECK_INT(busy, 100 - KUBE_RETRIES_MAX - 1);
	o = call((struct kube_call_options){ .path = "/big" });
	CHECK_STR(o.text, "big");
	CHECK_INT(o.n, 500000);
	json_decref(body);
	end();
}

static void stop(void *arg)
{
	(void)arg;
	loop_stop(loop);
}

static void test_cancel(void)
{
	struct outcome r = { 0 };
	struct kube_call_options o = { .path = "/big", .done = on_done, .arg = &r };
	struct loop_timer *t;

	begin(answer, "token: abc");
	t = loop_timer_new(loop, stop, NULL);
	for (int ms = 0; ms < 60; ms += 3) { /* in all its stages */
		struct kube_call *c = kube_call(kube, &o);

		r.done = false;
		loop_timer_set(t, ms * NS_PER_MS);
		loop_run(loop);
		if (!r.done)
			kube_call_cancel(c);
	}
	kube_call_cancel(NULL);
	r.done = false;
	kube_call(kube, &o); /* under way at the end */
	loop_timer_free(t);
	end();
	CHECK(!r.done);
}

static void write_key(const char *path, const struct key *k)
{
	AUTO_BUF struct buf der = BUF_INIT_SECRET, pem = BUF_INIT_SECRET;

	key_to_pkcs8(k, &der);
	pem_write(&pem, "PRIVATE KEY", buf_view(&der));
	write_text(path, buf_cstr(&pem));
}

static void test_token_file(void)
{
	AUTO(free) char *path = xasprintf("%s/tok", test_dir());

	write_text(path, "one\n");
	begin(answer, "tokenFile: tok, token: fallback");
	call((struct kube_call_options){ .path = "/x" });
	CHECK_STR(last_authorization, "Authorization: Bearer one");
	write_text(path, "two\n");
	call((struct kube_call_options){ .path = "/x" }); /* not a minute old */
	CHECK_STR(last_authorization, "Authorization: Bearer one");
	call((struct kube_call_options){ .path = "/status/401" });
	call((struct kube_call_options){ .path = "/x" });
	CHECK_STR(last_authorization, "Authorization: Bearer two");
	write_text(path, "evil\r\nX: y\n"); /* the old one stays */
	kube_distrust(kube);
	call((struct kube_call_options){ .path = "/x" });
	CHECK_STR(last_authorization, "Authorization: Bearer two");
	unlink(path);
	kube_distrust(kube);
	call((struct kube_call_options){ .path = "/x" });
	CHECK_STR(last_authorization, "Authorization: Bearer fallback");
	end();
}

/* A certificate and its key are replaced one after the other: in between the former are used. */
static void test_certificates(void)
{
	AUTO(free) char *cert = xasprintf("%s/cert", test_dir());
	AUTO(free) char *path = xasprintf("%s/key", test_dir());
	struct key *key[2];
	struct buf pem[2] = { BUF_INIT, BUF_INIT };
	struct tls_ctx *before;

	for (int i = 0; i < 2; i++) {
		struct x509_cert *c;

		key[i] = test_key(KEY_EC_P256);
		c = test_cert(key[i], "x", NULL, false, NULL, clock_wall());
		pem_write(&pem[i], "CERTIFICATE", x509_der(c));
		x509_unref(c);
	}
	write_text(cert, buf_cstr(&pem[0]));
	write_key(path, key[0]);
	begin(answer, "client-certificate: cert, client-key: key");
	before = kube->tls;
	write_text(cert, buf_cstr(&pem[1]));
	kube_distrust(kube);
	call((struct kube_call_options){ .path = "/x" });
	CHECK(kube->tls == before);
	write_key(path, key[1]);
	kube_distrust(kube);
	call((struct kube_call_options){ .path = "/x" });
	CHECK(kube->tls != before);
	end();
	key_unref(key[0]);
	key_unref(key[1]);
	buf_deinit(&pem[0]);
	buf_deinit(&pem[1]);
}

static void test_away(void)
{
	struct outcome o;

	begin(answer, "username: a, password: b");
	o = call((struct kube_call_options){ .path = "/x" });
	CHECK_STR(last_authorization, "Authorization: Basic YTpi");
	api_end();
	o = call((struct kube_call_options){ .path = "/x" });
	CHECK_INT(o.code, ERR_UNAVAILABLE);
	CHECK_INT(o.status, 0);
	api_begin(api.port, answer);
	o = call((struct kube_call_options){ .path = "/x" });
	CHECK_STR(o.text, "fine");
	end();
}

static void test_path(void)
{
	AUTO(free) char *p = kube_path("/a/%s/b/%s?x=%s&n=%d%%", "n-1.x", "../e /", "a=b&c", 5);
	AUTO(free) char *dots = kube_path("/a/%s", "..");

	CHECK_STR(p, "/a/n-1.x/b/..%2Fe%20%2F?x=a%3Db%26c&n=5%");
	CHECK_STR(dots, "/a/%2E%2E");
}

/* ---- watches ---- */

/* The cluster: objects by name, with versions. */
static struct {
	const char *name;
	int uid, version;
} pods[10];
static int version = 10, n_lists, n_pages, n_streams, stream_fd = -1;
static int refuse_stream;         /* this status to the next one */
static bool expire_page;          /* 410 to the next page */
static char streamed_from[4][40]; /* resourceVersion of the last streams */
static char log_text[2000];
static pthread_cond_t streamed = PTHREAD_COND_INITIALIZER;

static char *pod_json(int i)
{
	return xasprintf("{\"metadata\":{\"name\":\"%s\",\"namespace\":\"n\",\"uid\":\"u%d\","
			 "\"resourceVersion\":\"%d\"}}",
		pods[i].name, pods[i].uid, pods[i].version);
}

/* Pages of two, however many are asked for. */
static void say_list(struct api_request *rq)
{
	const char *go_on = strstr(rq->target, "continue=");
	int from = go_on ? (int)strtol(go_on + 9, NULL, 10) : 0, n = 0, i;
	AUTO_BUF struct buf b = BUF_INIT;

	n_pages++;
	n_lists += from == 0;
	if (from && expire_page) {
		expire_page = false;
		api_status(rq, 410, "too old");
		return;
	}
	buf_str(&b, "{\"items\":[");
	for (i = from; i < 10 && n < 2; i++) {
		AUTO(free) char *pod = pods[i].name ? pod_json(i) : NULL;

		if (pod)
			buf_printf(&b, "%s%s", n++ ? "," : "", pod);
	}
	buf_printf(&b, "],\"metadata\":{\"resourceVersion\":\"%d\"", version);
	if (i < 10)
		buf_printf(&b, ",\"continue\":\"%d\"", i);
	buf_str(&b, "}}");
	api_say(rq, 200, buf_cstr(&b));
}

static void watch_api(struct api_request *rq)
{
	const char *from = strstr(rq->target, "resourceVersion=");

	CHECK_CONTAINS(rq->target, "/api/v1/pods?labelSelector=a&");
	if (!strstr(rq->target, "watch=1")) {
		say_list(rq);
		return;
	}
	CHECK(from && strstr(rq->target, "allowWatchBookmarks=true&") &&
		strstr(rq->target, "&timeoutSeconds="));
	snprintf(streamed_from[n_streams++ % 4], 40, "%.*s", (int)strcspn(from + 16, "&"),
		from + 16);
	if (refuse_stream) {
		api_status(rq, refuse_stream, "no stream");
		refuse_stream = 0;
	} else {
		if (stream_fd >= 0)
			close(stream_fd);
		stream_fd = api_keep(rq);
		api_stream(rq);
		rq->streaming = false; /* the thread waits for the other side to close */
	}
	pthread_cond_signal(&streamed);
}

static void note(const char *what, const char *name)
{
	size_t n = strlen(log_text);

	snprintf(log_text + n, sizeof(log_text) - n, "%s%s ", what, name);
}

static const char *until = "";

static void check_until(void)
{
	if (*until && strstr(log_text, until))
		loop_stop(loop);
}

static void on_event(void *arg, enum kube_event event, json_t *object)
{
	static const char *const names[] = { "+", "*", "-" };
	json_t *meta = json_object_get(object, "metadata");

	(void)arg;
	CHECK_STR(json_string_value(json_object_get(meta, "namespace")), "n");
	note(names[event], json_string_value(json_object_get(meta, "name")));
	check_until();
}

static void on_synced(void *arg)
{
	(void)arg;
	note("synced", "");
	check_until();
}

static void on_failed(void *arg, const struct err *e)
{
	(void)arg;
	(void)e;
	note("failed", "");
	check_until();
}

static void on_working(void *arg)
{
	(void)arg;
	note("working", "");
	check_until();
}

/* Runs until the log has that. */
static void run_until(const char *text)
{
	until = text;
	if (!strstr(log_text, text))
		loop_run(loop);
	until = "";
}

static void *wait_stream(void *arg)
{
	int n = *(int *)arg;

	pthread_mutex_lock(&api.lock);
	while (n_streams < n)
		pthread_cond_wait(&streamed, &api.lock);
	pthread_mutex_unlock(&api.lock);
	loop_post(loop, stop, NULL);
	return NULL;
}

/* Runs until that many streams were begun. */
static void run_until_stream(int n)
{
	pthread_t t;

	CHECK(pthread_create(&t, NULL, wait_stream, &n) == 0);
	loop_run(loop);
	pthread_join(t, NULL);
}

static void send_event(const char *type, int i)
{
	AUTO(free) char *pod = pod_json(i);
	AUTO(free) char *s = xasprintf("{\"type\":\"%s\",\"object\":%s}\n", type, pod);

	api_chunk(stream_fd, s);
}

static struct kube_watch *watch_begin(struct kube_watch_options o)
{
	struct kube_watch *w;

	o.path = "/api/v1/pods?labelSelector=a";
	o.event = on_event;
	o.synced = on_synced;
	o.failed = on_failed;
	o.working = on_working;
	begin(watch_api, "token: abc");
	w = kube_watch(kube, &o);
	w->backoff.max_ns = 300 * NS_PER_MS;
	return w;
}

static void watch_end(struct kube_watch *w)
{
	kube_watch_free(w);
	if (stream_fd >= 0)
		close(stream_fd);
	end();
}

static void set_pod(int i, const char *name, int uid)
{
	pthread_mutex_lock(&api.lock);
	pods[i].name = name;
	pods[i].uid = uid;
	pods[i].version = ++version;
	pthread_mutex_unlock(&api.lock);
}

static const char *last_from(void)
{
	return streamed_from[(n_streams - 1) % 4];
}

static void test_watch(void)
{
	struct kube_watch *w;

	for (int i = 0; i < 5; i++)
		set_pod(i, (const char *[]){ "a", "b", "c", "d", "e" }[i], i);
	w = watch_begin((struct kube_watch_options){ 0 });
	run_until("synced");
	CHECK_STR(log_text, "+a +b +c +d +e synced ");
	CHECK_INT(n_pages, 3);
	run_until_stream(1);
	CHECK_STR(last_from(), "15");
	set_pod(5, "f", 5);
	send_event("ADDED", 5);
	set_pod(5, "f", 5);
	send_event("MODIFIED", 5);
	send_event("MODIFIED", 5); /* the same again */
	send_event("DELETED", 5);
	run_until("-f");
	CHECK_STR(log_text, "+a +b +c +d +e synced +f *f -f ");
	/* a bookmark moves on where it is resumed, in pieces, after an empty line */
	api_chunk(stream_fd, "\n{\"type\":\"BOOKMARK\",\"object\":{\"metadata\":{\"resource");
	api_chunk(stream_fd, "Version\":\"99\"}}}\n");
	set_pod(6, "g", 6);
	pods[6].version = 100;
	send_event("ADDED", 6);
	run_until("+g");
	CHECK(w->bookmarked);
	/* broken off: goes on from there */
	shutdown(stream_fd, SHUT_RDWR);
	run_until_stream(2);
	CHECK_STR(last_from(), "100");
	CHECK_INT(n_lists, 1);
	api_chunk(stream_fd, "{\"type\":\"BOOKMARK\",\"object\":{\"metadata\":{"
			     "\"resourceVersion\":\"120\"}}}\n");
	/* ended as it should be: chunk 0 */
	api_send(stream_fd, "0\r\n\r\n", 5);
	run_until_stream(3);
	CHECK_STR(last_from(), "120");
	watch_end(w);
}

static void test_watch_gone(void)
{
	struct kube_watch *w;

	for (int i = 0; i < 4; i++)
		set_pod(i, (const char *[]){ "a", "b", "c", "d" }[i], i);
	w = watch_begin((struct kube_watch_options){ .keep = true });
	run_until("synced");
	run_until_stream(1);
	/* 410 as a status: lists again, and tells what has become of what */
	log_text[0] = 0;
	set_pod(0, NULL, 0);
	set_pod(1, "b", 1);
	set_pod(2, "c", 77); /* another one */
	set_pod(4, "x", 4);
	refuse_stream = 410;
	shutdown(stream_fd, SHUT_RDWR);
	run_until("synced");
	CHECK_STR(log_text, "failed working *b -c +c +x -a synced ");
	run_until_stream(3);
	CHECK_INT(n_lists, 2);
	/* 410 as an event; and the page of the list expires */
	log_text[0] = 0;
	set_pod(5, "y", 5);
	expire_page = true;
	api_chunk(
		stream_fd, "{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"code\":410}}\n");
	run_until("synced");
	CHECK_STR(log_text, "failed working +y synced ");
	CHECK_INT(n_lists, 4);
	run_until_stream(4);
	/* another error: goes on from where it was */
	log_text[0] = 0;
	api_chunk(stream_fd, "{\"type\":\"ERROR\",\"object\":{\"code\":500,\"message\":\"x\"}}\n");
	run_until("working");
	CHECK_STR(log_text, "failed working ");
	CHECK_INT(n_lists, 4);
	/* rubbish */
	log_text[0] = 0;
	api_chunk(stream_fd, "rubbish\n");
	run_until("working");
	CHECK_INT(n_lists, 4);
	watch_end(w);
}

static void test_watch_stall(void)
{
	struct kube_watch *w;

	set_pod(0, "a", 0);
	w = watch_begin((struct kube_watch_options){ .idle_ms = 300 });
	run_until("working"); /* the stream is silent: another one */
	CHECK_STR(log_text, "+a synced failed working ");
	CHECK(n_streams >= 2);
	CHECK_INT(n_lists, 1);
	watch_end(w);
}

static void *send_long_line(void *arg)
{
	AUTO_BUF struct buf b = BUF_INIT;
	int fd = dup(stream_fd);

	(void)arg;
	for (int i = 0; i < 64 << 10; i++)
		buf_byte(&b, 'x');
	for (int i = 0; i <= KUBE_EVENT_MAX / (64 << 10); i++)
		api_chunk(fd, buf_cstr(&b));
	close(fd);
	return NULL;
}

static void test_watch_restart(void)
{
	struct kube_watch *w;
	pthread_t t;

	set_pod(0, "a", 0);
	w = watch_begin((struct kube_watch_options){ 0 });
	run_until("synced");
	run_until_stream(1);
	api_end();
	run_until("failed");
	set_pod(1, "b", 1);
	api_begin(api.port, watch_api);
	run_until("working");
	send_event("ADDED", 1);
	run_until("+b");
	CHECK_INT(n_lists, 1);
	/* a line without end */
	log_text[0] = 0;
	CHECK(pthread_create(&t, NULL, send_long_line, NULL) == 0);
	run_until("synced");
	pthread_join(t, NULL);
	CHECK_STR(log_text, "failed working synced ");
	watch_end(w);
}

/* The client goes before its watches. */
static void test_watch_order(void)
{
	struct kube_watch *w;

	set_pod(0, "a", 0);
	w = watch_begin((struct kube_watch_options){ 0 });
	run_until("synced");
	run_until_stream(1);
	kube_free(kube);
	kube = NULL;
	watch_end(w);
}

TEST_MAIN(TEST(test_config), TEST(test_config_refused), TEST(test_pod), TEST(test_calls),
	TEST(test_cancel), TEST(test_token_file), TEST(test_certificates), TEST(test_away),
	TEST(test_path), TEST(test_watch), TEST(test_watch_gone), TEST(test_watch_stall),
	TEST(test_watch_restart), TEST(test_watch_order))

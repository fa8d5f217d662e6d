#include "agent/kubelet.h"

#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>

#include "agent/kubelet_internal.h"
#include "lib/crypto.h"
#include "tests/test.h"

/*
 * A kubelet of our own, on a thread: it answers each request by the script's next line, the last of
 * which counts for all that follow.
 */
struct line {
	int status;       /* 0: 200 */
	const char *body; /* sent at once */
	int pause_ms;     /* then nothing for so long, or until the other side has gone */
	const char *rest; /* then this */
	bool cut;         /* and the end, although more was announced */
};
static struct {
	pthread_t thread;
	int fd, port;
	const struct line *script;
	size_t n_lines;
	_Atomic unsigned requests;
	_Atomic unsigned gone; /* connections that ended within a pause */
	char seen[4096];       /* the last request's head */
} server;

static void send_all(int fd, const char *s)
{
	size_t n = strlen(s);

	while (n > 0) {
		ssize_t w = send(fd, s, n, MSG_NOSIGNAL);

		if (w <= 0)
			return;
		s += w;
		n -= (size_t)w;
	}
}

static bool read_head(int fd)
{
	size_t n = 0;

	memset(server.seen, 0, sizeof(server.seen));
	while (n < sizeof(server.seen) - 1 && !strstr(server.seen, "\r\n\r\n")) {
		ssize_t r = recv(fd, server.seen + n, sizeof(server.seen) - 1 - n, 0);

		if (r <= 0)
			return false;
		n += (size_t)r;
	}
	return true;
}

static void answer(int fd, const struct line *l)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	size_t n = strlen(l->body) + (l->rest ? strlen(l->rest) : 0);
	char head[200];

	snprintf(head, sizeof(head),
		"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n"
		"Connection: close\r\n\r\n",
		l->status ? l->status : 200, n);
	send_all(fd, head);
	send_all(fd, l->body);
	if (l->pause_ms && poll(&p, 1, l->pause_ms) == 1)
		server.gone++;
	else if (l->rest && !l->cut)
		send_all(fd, l->rest);
}

static void *serve(void *arg)
{
	for (;;) {
		int fd = accept(server.fd, NULL, NULL);
		unsigned i = server.requests;

		if (fd < 0)
			return arg;
		if (read_head(fd)) {
			server.requests++;
			answer(fd, &server.script[i < server.n_lines ? i : server.n_lines - 1]);
		}
		close(fd);
	}
}

static void start(const struct line *script, size_t n)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(a);

	server.script = script;
	server.n_lines = n;
	server.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	CHECK(bind(server.fd, (struct sockaddr *)&a, sizeof(a)) == 0);
	CHECK(listen(server.fd, 16) == 0);
	CHECK(getsockname(server.fd, (struct sockaddr *)&a, &len) == 0);
	server.port = ntohs(a.sin_port);
	CHECK(pthread_create(&server.thread, NULL, serve, NULL) == 0);
}

static void stop(void)
{
	shutdown(server.fd, SHUT_RDWR);
	pthread_join(server.thread, NULL);
	close(server.fd);
}

#define START(lines) start(lines, ARRAY_LEN(lines))

/* ---- the other side ---- */

static struct loop *loop;
static struct k8s_options options;
static struct kubelet *kubelet;

static void open_kubelet(int64_t interval_ms)
{
	struct err e = ERR_INIT;

	crypto_init();
	loop = loop_new();
	options = (struct k8s_options){ .kubelet_read_only_port = server.port,
		.poll_retry_interval_ns = interval_ms * NS_PER_MS,
		.reload_interval_ns = NS_PER_SEC };
	CHECK_OK(kubelet_new(loop, &options, &kubelet, &e));
}

static void close_kubelet(void)
{
	kubelet_free(kubelet);
	loop_drain(loop);
	loop_free(loop);
}

struct outcome {
	bool found, done;
	char name[64], container[64], waited[300];
	struct err e;
};

static void on_found(void *arg, const struct pod *p, const struct pod_item *c)
{
	struct outcome *o = arg;

	CHECK(!o->done && !o->found);
	o->found = true;
	snprintf(o->name, sizeof(o->name), "%s", pod_text(p, p->name));
	snprintf(o->container, sizeof(o->container), "%s", c ? pod_text(p, c->container.name) : "");
}

static void on_done(void *arg, const struct err *e, const char *waited)
{
	struct outcome *o = arg;

	CHECK(!o->done);
	o->done = true;
	o->e = *e;
	snprintf(o->waited, sizeof(o->waited), "%s", waited ? waited : "");
	loop_stop(loop);
}

static pid_t who = 7;
static unsigned attempts = 3;

static struct kubelet_wait *want(struct outcome *o, const char *uid, const char *container)
{
	struct kubelet_wait_options w = { .want = { .container_id = container,
						  .uid = uid,
						  .pid = who,
						  .start_time = 70,
						  .attempts = attempts },
		.found = on_found,
		.done = on_done,
		.arg = o };

	*o = (struct outcome){ .found = false };
	return kubelet_wait(kubelet, &w);
}

static void until(const struct outcome *o)
{
	while (!o->done)
		loop_run(loop);
}

static const struct pod *known(const char *uid, const char *container, pid_t pid)
{
	struct kubelet_want w = {
		.container_id = container, .uid = uid, .pid = pid, .start_time = 70
	};
	const struct pod_item *c;

	return kubelet_known(kubelet, &w, &c);
}

#define POD(n, c)                                                                                  \
	"{\"metadata\":{\"uid\":\"u" n "\",\"name\":\"p" n "\",\"namespace\":\"s\"},\"status\":{"  \
	"\"containerStatuses\":[{\"name\":\"c" n "\",\"containerID\":" c "}]}}"
#define READY(n) POD(n, "\"containerd://id" n "\"")
#define LIST(pods) "{\"items\":[" pods "]}"

/* The answer is there as soon as the pod has come by, and the rest is not waited for. */
static void test_only_as_far_as_needed(void)
{
	static const struct line script[] = {
		{ .body = "{\"items\":[" READY("1") "," READY("2") ",",
			.pause_ms = 20000,
			.rest = READY("3") "]}" },
	};
	struct outcome a;

	START(script);
	open_kubelet(500);
	want(&a, "u2", "id2");
	until(&a);
	CHECK_INT(a.e.code, 0);
	CHECK_STR(a.name, "p2");
	CHECK_STR(a.container, "c2");
	CHECK_CONTAINS(a.waited, "the kubelet at http://127.0.0.1:");
	CHECK_CONTAINS(a.waited, ": 1 request, ");
	CHECK_CONTAINS(server.seen, "GET /pods HTTP/1.1\r\n");
	close_kubelet();
	stop();
	CHECK_INT(server.requests, 1);
	CHECK_INT(server.gone, 1);
}

/* Who comes shortly after with another pod has a whole list read, from which all later ones live.
 */
static void test_rush(void)
{
	static const struct line script[] = {
		{ .body = LIST(READY("1") "," READY("2") "," READY("3") "," READY("4")) }
	};
	struct outcome a, b, c, d;

	START(script);
	open_kubelet(500);
	want(&a, "u1", "id1");
	until(&a);
	want(&b, "u2", "id2");
	want(&c, "u3", "id3");
	until(&b);
	until(&c);
	CHECK_STR(b.name, "p2");
	CHECK_STR(c.name, "p3");
	while (kubelet_pods(kubelet) < 4) {
		want(&d, "u4", "id4");
		until(&d);
	}
	CHECK(known("u4", "id4", 8));
	CHECK(known("", "id4", 8)); /* the list is whole */
	CHECK(!known("u4", "id3", 8));
	CHECK(!known("", "id5", 8));
	CHECK_INT(kubelet_requests(kubelet), 2);
	close_kubelet();
	stop();
}

static void test_waits_for_the_container(void)
{
	static const struct line script[] = {
		{ .body = LIST(READY("1")) },
		{ .body = LIST(READY("1") "," POD("2", "\"\"")) },
		{ .body = LIST(READY("1") "," READY("2")) },
	};
	struct outcome a, b;

	START(script);
	open_kubelet(50);
	want(&a, "u2", "id2");
	want(&b, "u1", "id1"); /* is not held up */
	until(&b);
	CHECK(!a.done);
	CHECK_INT(kubelet_requests(kubelet), 1);
	until(&a);
	CHECK_INT(a.e.code, 0);
	CHECK_STR(a.name, "p2");
	CHECK_CONTAINS(a.waited, " to know container id2 of pod u2: 3 requests, ");
	close_kubelet();
	stop();
}

/* Without a given interval: soon, and for so long as the attempts would take. */
static void test_quickly(void)
{
	static const struct line script[] = {
		{ .body = LIST(READY("1")) },
		{ .body = LIST(READY("1")) },
		{ .body = LIST(READY("1") "," POD("2", "\"\"")) },
		{ .body = LIST(READY("1") "," READY("2")) },
	};
	int64_t from = clock_mono().ns;
	struct outcome a;

	START(script);
	open_kubelet(20000);
	options.poll_quickly = true;
	want(&a, "u2", "id2");
	until(&a);
	CHECK_INT(a.e.code, 0);
	CHECK(clock_mono().ns - from < 20 * NS_PER_SEC);
	close_kubelet();
	open_kubelet(400);
	options.poll_quickly = true;
	from = clock_mono().ns;
	want(&a, "u3", "id3");
	until(&a);
	CHECK_INT(a.e.code, ERR_DEADLINE);
	CHECK(clock_mono().ns - from >= 800 * NS_PER_MS);
	close_kubelet();
	stop();
}

/* Whoever asks on and on for what is not there cannot drive the rate up. */
static void test_quick_budget(void)
{
	static const struct line script[] = { { .body = LIST(READY("1")) } };
	int64_t from = clock_mono().ns, s;
	struct outcome a;

	START(script);
	open_kubelet(500);
	options.poll_quickly = true;
	attempts = 100;
	while (clock_mono().ns - from < 3 * NS_PER_SEC) {
		struct kubelet_wait *w = want(&a, "u2", "id2");
		struct outcome b;

		attempts = 1;
		want(&b, "u3", "id3");
		until(&b);
		attempts = 100;
		free(kubelet_cancel(w));
	}
	s = (clock_mono().ns - from) / (NS_PER_SEC / 10);
	if (kubelet_requests(kubelet) > KUBELET_QUICK_MAX + 7 * s / 10 + 3)
		TEST_FAIL("%u requests in %lld.%lld s", kubelet_requests(kubelet),
			(long long)s / 10, (long long)s % 10);
	close_kubelet();
	stop();
}

/* The kubelet may need a second and more: the young are not made to wait for the long steps. */
static void test_quick_for_the_young(void)
{
	static const struct line script[] = { { .body = LIST(READY("1")) } };
	struct outcome a;

	START(script);
	open_kubelet(500);
	options.poll_quickly = true;
	attempts = 4;
	want(&a, "u2", "id2");
	until(&a);
	CHECK_INT(a.e.code, ERR_DEADLINE);
	CHECK(kubelet_requests(kubelet) >= 12);
	close_kubelet();
	stop();
}

static void test_gives_up(void)
{
	static const struct line script[] = { { .body = LIST(READY("1")) } };
	struct outcome a, b;

	START(script);
	open_kubelet(30);
	want(&a, "u2", "id2");
	want(&b, "u1", "other");
	until(&a);
	until(&b);
	CHECK_INT(a.e.code, ERR_DEADLINE);
	CHECK_STR(a.e.msg, "no selectors found after max poll attempts");
	CHECK_INT(b.e.code, ERR_DEADLINE);
	CHECK(!a.found && !b.found);
	CHECK_INT(kubelet_requests(kubelet), 3);
	close_kubelet();
	stop();
}

static void test_failures(void)
{
	static const struct line refused[] = { { .status = 401, .body = "Unauthorized" } };
	static const struct line cut[] = { { .body = LIST(READY("1")), .rest = "x", .cut = true } };
	static const struct line nonsense[] = { { .body = "{\"items\":[[[" } };
	static const struct line wrong[] = { { .body = "{\"items\":3}" } };
	static const struct {
		const struct line *line;
		const char *msg;
	} cases[] = {
		{ refused, "unexpected status code on pods response: 401 Unauthorized" },
		{ cut, "unable to read pods response: " },
		{ nonsense, "unable to parse kubelet response: cannot parse JSON: " },
		{ wrong, "invalid kubelet response: expected an items array" },
	};
	struct outcome a;

	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		server.requests = 0;
		start(cases[i].line, 1);
		open_kubelet(10);
		want(&a, "u2", "id2");
		until(&a);
		CHECK_INT(a.e.code, ERR_UNAVAILABLE);
		CHECK_CONTAINS(a.e.msg, cases[i].msg);
		CHECK_CONTAINS(a.waited, "; the last failed: ");
		CHECK_INT(kubelet_requests(kubelet), 3);
		close_kubelet();
		stop();
	}
	open_kubelet(10); /* nobody listens there any more */
	want(&a, "u2", "id2");
	until(&a);
	CHECK_INT(a.e.code, ERR_UNAVAILABLE);
	CHECK_CONTAINS(a.e.msg, "unable to perform request: Get \"http://127.0.0.1:");
	CHECK_CONTAINS(a.e.msg, "/pods\": ");
	close_kubelet();
}

/* What failed is tried again within the bound. */
static void test_recovers(void)
{
	static const struct line script[] = {
		{ .status = 503, .body = "" },
		{ .body = LIST(READY("1")) },
	};
	struct outcome a;

	START(script);
	open_kubelet(20);
	want(&a, "u1", "id1");
	until(&a);
	CHECK_INT(a.e.code, 0);
	CHECK_STR(a.name, "p1");
	close_kubelet();
	stop();
}

static void test_container_alone(void)
{
	static const struct line script[] = {
		{ .body = "{\"items\":[" READY("1") ",", .pause_ms = 50, .rest = READY("2") "]}" },
		{ .body = LIST(READY("1") "," POD("3", "\"docker://id1\"")) },
	};
	struct outcome a;

	START(script);
	open_kubelet(10);
	want(&a, "", "id1"); /* to the end: another pod could claim it too */
	until(&a);
	CHECK_INT(a.e.code, 0);
	CHECK_STR(a.name, "p1");
	CHECK_INT(server.gone, 0);
	usleep(20000);
	who = 8;
	want(&a, "", "id1");
	until(&a);
	CHECK_INT(a.e.code, ERR_INTERNAL);
	CHECK_STR(a.e.msg, "two pods found with same container Id");
	close_kubelet();
	stop();
}

static void test_pod_will_do(void)
{
	static const struct line script[] = { { .body = LIST(POD("1", "\"\"")) } };
	struct kubelet_wait_options w = {
		.want = { .uid = "u1", .container_id = "id1", .pod_will_do = true, .attempts = 1 },
		.found = on_found,
		.done = on_done
	};
	struct outcome a = { .found = false };

	START(script);
	open_kubelet(500);
	w.arg = &a;
	kubelet_wait(kubelet, &w);
	until(&a);
	CHECK(a.found);
	CHECK_STR(a.container, "");
	/* by name, from what is known */
	w.want = (struct kubelet_want){ .namespace = "s", .name = "p1", .attempts = 1 };
	a = (struct outcome){ .found = false };
	kubelet_wait(kubelet, &w);
	until(&a);
	CHECK(a.found);
	CHECK_STR(a.waited, "");
	w.want.name = "p2";
	a = (struct outcome){ .found = false };
	kubelet_wait(kubelet, &w);
	until(&a);
	CHECK_INT(a.e.code, ERR_DEADLINE);
	close_kubelet();
	stop();
}

static void test_broken_pod(void)
{
	static const struct line script[] = {
		{ .body = LIST("{\"metadata\":{\"uid\":\"u9\",\"labels\":7}}," READY("1")) }
	};
	struct outcome a, b;

	START(script);
	open_kubelet(500);
	want(&a, "u9", "id9");
	want(&b, "", "id1"); /* another's trouble */
	until(&a);
	until(&b);
	CHECK_INT(a.e.code, ERR_UNAVAILABLE);
	CHECK_CONTAINS(a.e.msg, "unable to decode pod info from kubelet response: ");
	CHECK_INT(b.e.code, 0);
	close_kubelet();
	stop();
}

/* For anybody as long as a list is used, for a process of before a little longer. */
static void test_age(void)
{
	static const struct line script[] = {
		{ .body = LIST(READY("1")) },
		{ .body = LIST("") },
	};
	struct outcome a;

	START(script);
	open_kubelet(300);
	want(&a, "u1", "id1");
	until(&a);
	CHECK(known("u1", "id1", 7));
	CHECK(known("u1", "id1", 8));
	CHECK(!known("u1", "id2", 8));
	usleep(350000);
	CHECK(known("u1", "id1", 7));
	CHECK(!known("u1", "id1", 9));
	usleep(1700000);
	CHECK(!known("u1", "id1", 7));
	/* Gone from the list, gone from memory. */
	want(&a, "", "id1");
	until(&a);
	CHECK_INT(a.e.code, ERR_DEADLINE);
	CHECK_INT(kubelet_pods(kubelet), 0);
	close_kubelet();
	stop();
}

static void test_cancel(void)
{
	static const struct line script[] = {
		{ .body = "{\"items\":[", .pause_ms = 200, .rest = "]}" }
	};
	struct outcome a, b;
	AUTO(free) char *text = NULL;
	struct kubelet_wait *w;

	START(script);
	open_kubelet(50);
	attempts = 30;
	w = want(&a, "u1", "id1");
	attempts = 3;
	want(&b, "u2", "id2");
	until(&b);
	text = kubelet_cancel(w);
	CHECK_CONTAINS(text, "the kubelet at ");
	CHECK(!a.done);
	w = want(&a, "u1", "id1");
	free(kubelet_cancel(w));
	close_kubelet();
	stop();
}

/* ---- credentials ---- */

static char *file(const char *name, const char *content)
{
	char *path = xasprintf("%s/%s", test_dir(), name);
	struct err e;

	CHECK_OK(buf_write_file(bytes_str(content), path, 0600, &e));
	return path;
}

static void test_urls(void)
{
	char env[] = "ASSAY_TEST_NODE", name[] = "fd00::1";
	struct k8s_options o = { .kubelet_secure_port = 0, .node_name_env = env };
	char *url = kubelet_url(&o);

	CHECK_STR(url, "https://127.0.0.1:10250");
	free(url);
	setenv("ASSAY_TEST_NODE", "node7", 1);
	o.kubelet_secure_port = 4711;
	url = kubelet_url(&o);
	CHECK_STR(url, "https://node7:4711");
	free(url);
	o.node_name = name;
	url = kubelet_url(&o);
	CHECK_STR(url, "https://[fd00::1]:4711");
	free(url);
	o.kubelet_read_only_port = 10255;
	url = kubelet_url(&o);
	CHECK_STR(url, "http://127.0.0.1:10255");
	free(url);
}

static void expect_login(const struct k8s_options *o, const char *msg)
{
	struct kubelet_login l = KUBELET_LOGIN_INIT;
	struct err e = ERR_INIT;
	bool renewed;

	CHECK(kubelet_login_read(o, &l, &renewed, &e) != 0);
	CHECK_CONTAINS(e.msg, msg);
	kubelet_login_deinit(&l);
}

static void test_login(void)
{
	AUTO(free) char *token = file("token", "  abc.def\n");
	AUTO(free) char *bad = file("bad", "two lines\nof it");
	AUTO(free) char *none = xasprintf("%s/none", test_dir());
	struct k8s_options o = { .kubelet_ca_path = none, .token_path = token };
	struct kubelet_login l = KUBELET_LOGIN_INIT;
	struct err e = ERR_INIT;
	bool renewed = false;

	crypto_init();
	expect_login(&o, "unable to load kubelet CA: ");
	o.kubelet_ca_path = token;
	expect_login(&o, "unable to parse kubelet CA: ");
	o.skip_kubelet_verification = true;
	CHECK_OK(kubelet_login_read(&o, &l, &renewed, &e));
	CHECK(renewed);
	CHECK_BYTES(buf_view(&l.token), bytes_str("abc.def"));
	CHECK_OK(kubelet_login_read(&o, &l, &renewed, &e));
	CHECK(!renewed);
	free(file("token", "other"));
	CHECK_OK(kubelet_login_read(&o, &l, &renewed, &e));
	CHECK_BYTES(buf_view(&l.token), bytes_str("other"));
	o.token_path = bad;
	expect_login(&o, "unable to load token: ");
	o.token_path = none;
	expect_login(&o, "unable to load token: ");
	o.use_anonymous_authentication = true;
	CHECK_OK(kubelet_login_read(&o, &l, &renewed, &e));
	CHECK_INT(l.token.len, 0);
	o.use_anonymous_authentication = false;
	o.certificate_path = none;
	expect_login(&o, "the private key path is required with the certificate path");
	o.private_key_path = none;
	expect_login(&o, "unable to load certificate: ");
	o.certificate_path = token;
	expect_login(&o, "unable to load private key: ");
	o.private_key_path = token;
	expect_login(&o, "unable to load keypair: ");
	o.certificate_path = NULL;
	expect_login(&o, "the certificate path is required with the private key path");
	kubelet_login_deinit(&l);
}

TEST_MAIN(TEST(test_only_as_far_as_needed), TEST(test_rush), TEST(test_waits_for_the_container),
	TEST(test_quickly), TEST(test_quick_budget), TEST(test_quick_for_the_young),
	TEST(test_gives_up), TEST(test_failures), TEST(test_recovers), TEST(test_container_alone),
	TEST(test_pod_will_do), TEST(test_broken_pod), TEST(test_age), TEST(test_cancel),
	TEST(test_urls), TEST(test_login))

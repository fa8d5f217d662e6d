/* The HTTP client that keeps connections, against servers that play by the rules and such that do
 * not. Covers: lib/http_client.c lib/http_client_conn.c lib/http_url.c lib/http_get.c */
#include "tests/test.h"
#include "tests/unit/x509_make.inc"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>

#include "lib/http.h"

static struct loop *loop;

/* ---- a server that says what it is told ---- */

enum { STEPS_MAX = 16 };

/* One per request, in the order of their coming; a NULL answer closes. */
struct step {
	const char *answer;
	const char *repeat; /* sent after it until the other side closes */
	int pause_ms;       /* before each of repeat */
	bool close;
	bool reset_first; /* closes before it reads the request */
};

struct script {
	struct step steps[STEPS_MAX];
	int at;
	int fd, port;
	int accepted;
	pthread_t thread;
	char seen[STEPS_MAX][4096]; /* the requests */
};

static struct script script;

static bool read_request(int fd, char *into, size_t cap)
{
	size_t n = 0;

	while (n < cap - 1) {
		ssize_t r = read(fd, into + n, cap - 1 - n);
		const char *end, *length;

		if (r <= 0)
			return false;
		n += (size_t)r;
		into[n] = 0;
		end = strstr(into, "\r\n\r\n");
		if (!end)
			continue;
		length = strstr(into, "Content-Length: ");
		if (!length || n >= (size_t)(end + 4 - into) + strtoul(length + 16, NULL, 10))
			return true;
	}
	return true;
}

static void say(int fd, const char *s)
{
	size_t n = strlen(s);

	while (n > 0) {
		ssize_t r = send(fd, s, n, MSG_NOSIGNAL);

		if (r <= 0)
			return;
		s += r;
		n -= (size_t)r;
	}
}

static void say_again(int fd, const struct step *s)
{
	char c;

	for (;;) {
		if (send(fd, s->repeat, strlen(s->repeat), MSG_NOSIGNAL) < 0 ||
			recv(fd, &c, 1, MSG_DONTWAIT) == 0)
			return;
		usleep((useconds_t)s->pause_ms * 1000);
	}
}

static void *script_run(void *arg)
{
	struct script *s = arg;

	while (s->at < STEPS_MAX && (s->steps[s->at].answer || s->steps[s->at].reset_first)) {
		int fd = accept(s->fd, NULL, NULL);

		if (fd < 0)
			break;
		s->accepted++;
		while (s->at < STEPS_MAX) {
			const struct step *st = &s->steps[s->at];

			if (st->reset_first) {
				s->at++;
				break;
			}
			if (!st->answer || !read_request(fd, s->seen[s->at], sizeof(s->seen[0])))
				break;
			s->at++;
			say(fd, st->answer);
			if (st->repeat)
				say_again(fd, st);
			if (st->close)
				break;
		}
		close(fd);
	}
	return NULL;
}

static void script_begin(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t n = sizeof(a);

	signal(SIGPIPE, SIG_IGN);
	loop = loop_new();
	script.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	CHECK(bind(script.fd, (struct sockaddr *)&a, sizeof(a)) == 0);
	CHECK(listen(script.fd, 64) == 0);
	CHECK(getsockname(script.fd, (struct sockaddr *)&a, &n) == 0);
	script.port = ntohs(a.sin_port);
	CHECK(pthread_create(&script.thread, NULL, script_run, &script) == 0);
}

/* ---- calls ---- */

struct outcome {
	bool done;
	int status, code, retry_after_s;
	char text[1000]; /* the body, or the error's */
	char type[100];
	size_t n;
	char parts[1000];
	size_t n_parts;
	size_t enough;
};

static int pending;

static void on_done(void *arg, const struct http_answer *a, const struct err *e)
{
	struct outcome *o = arg;

	CHECK(!o->done);
	o->done = true;
	o->status = a->status;
	o->code = e->code;
	o->retry_after_s = a->retry_after_s;
	o->n = a->body.n;
	snprintf(o->type, sizeof(o->type), "%s", a->content_type);
	snprintf(o->text, sizeof(o->text), "%.*s", (int)(e->code ? strlen(e->msg) : a->body.n),
		e->code ? e->msg : (const char *)a->body.p);
	if (--pending == 0)
		loop_stop(loop);
}

static bool on_part(void *arg, struct bytes v)
{
	struct outcome *o = arg;

	for (size_t i = 0; i < v.n && o->n_parts < sizeof(o->parts) - 1; i++)
		o->parts[o->n_parts++] = (char)v.p[i];
	return !o->enough || o->n_parts < o->enough;
}

static struct http_client *client_new(void)
{
	AUTO(free) char *url = xasprintf("http://127.0.0.1:%d/api/", script.port);
	struct http_client_options o = { .url = url, .allow_plain = true };
	struct http_client *c = NULL;
	struct err e = ERR_INIT;

	CHECK_OK(http_client_new(loop, &o, &c, &e));
	return c;
}

static struct http_call *begin(
	struct http_client *c, struct http_call_options o, struct outcome *ret)
{
	memset(ret, 0, offsetof(struct outcome, enough));
	pending++;
	o.done = on_done;
	o.arg = ret;
	if (!o.path)
		o.path = "/x?y";
	return http_call(c, &o);
}

static void call(struct http_client *c, struct http_call_options o, struct outcome *ret)
{
	begin(c, o, ret);
	CHECK(!ret->done);
	loop_run(loop);
	CHECK(ret->done);
}

static void script_end(struct http_client *c)
{
	http_client_free(c);
	shutdown(script.fd, SHUT_RDWR);
	close(script.fd);
	loop_drain(loop);
	loop_run(loop);
	pthread_join(script.thread, NULL);
	loop_free(loop);
}

#define GET ((struct http_call_options){ 0 })

static void test_keep_alive(void)
{
	struct outcome o = { 0 };
	struct http_client *c;

	script.steps[0].answer = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Type: "
				 "text/plain \r\nContent-Type: second\r\n\r\nabc";
	script.steps[1].answer =
		"HTTP/1.1 100 Continue\r\nContent-Type: bad\r\n\r\nHTTP/1.1 429 Too Many\r\n"
		"Retry-After: 7\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n"
		"0\r\nContent-Type: trailer\r\n\r\n";
	script.steps[2].answer = "HTTP/1.1 204 No\r\nContent-Length: 10\r\n\r\n";
	script.steps[3].answer = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"; /* HEAD */
	script.steps[4].answer = "HTTP/1.0 200 OK\r\n\r\nto the end";
	script.steps[4].close = true;
	script_begin();
	c = client_new();
	call(c, GET, &o);
	CHECK_INT(o.status, 200);
	CHECK_STR(o.text, "abc");
	CHECK_STR(o.type, "text/plain");
	CHECK_INT(o.retry_after_s, -1);
	CHECK_CONTAINS(script.seen[0], "GET /api/x?y HTTP/1.1\r\nHost: 127.0.0.1:");
	CHECK_CONTAINS(script.seen[0], "\r\nAccept: */*\r\n");
	CHECK(!strstr(script.seen[0], "Content-Length"));
	call(c,
		(struct http_call_options){ .method = "POST",
			.headers = "Authorization: Bearer x\r\naccept: a/b\r\n",
			.content_type = "application/json",
			.body = bytes_str("{}") },
		&o);
	CHECK_INT(o.status, 429);
	CHECK_STR(o.text, "abcde");
	CHECK_STR(o.type, "");
	CHECK_INT(o.retry_after_s, 7);
	CHECK_CONTAINS(script.seen[1], "\r\nAuthorization: Bearer x\r\naccept: a/b\r\n");
	CHECK_CONTAINS(script.seen[1],
		"\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}");
	CHECK(!strstr(script.seen[1], "*/*"));
	call(c, (struct http_call_options){ .method = "DELETE" }, &o);
	CHECK_INT(o.status, 204);
	call(c, (struct http_call_options){ .method = "HEAD" }, &o);
	CHECK_INT(o.status, 200);
	CHECK_INT(o.n, 0);
	call(c, GET, &o);
	CHECK_STR(o.text, "to the end");
	CHECK_INT(script.accepted, 1);
	script_end(c);
}

static void test_streamed(void)
{
	struct outcome o = { 0 };
	struct http_call_options s = { .part = on_part, .body_max = 4, .timeout_ms = -1 };
	struct http_client *c;

	script.steps[0].answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
				 "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n";
	script.steps[1].answer = "HTTP/1.1 404 No\r\nContent-Length: 4\r\n\r\nnone";
	script.steps[2].answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
	script.steps[2].repeat = "2\r\nab\r\n";
	script.steps[2].pause_ms = 1;
	script.steps[3].answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n";
	script.steps[3].repeat = ""; /* then silent */
	script.steps[3].pause_ms = 10;
	script_begin();
	c = client_new();
	call(c, s, &o);
	CHECK_INT(o.code, 0);
	CHECK_STR(o.parts, "hello world");
	CHECK_INT(o.n, 0);
	call(c, s, &o); /* the body of a refusal is gathered */
	CHECK_INT(o.status, 404);
	CHECK_STR(o.text, "none");
	CHECK_INT(o.n_parts, 0);
	o.enough = 9;
	call(c, s, &o);
	CHECK_INT(o.code, 0);
	CHECK(o.n_parts >= 9);
	o.enough = 0;
	s.idle_ms = 100;
	call(c, s, &o);
	CHECK_INT(o.code, ERR_DEADLINE);
	CHECK_STR(o.text, "nothing came for 1 s");
	CHECK_STR(o.parts, "ab");
	CHECK_INT(script.accepted, 2);
	script_end(c);
}

/* A connection that was closed while nobody looked is no failure of a call that may be repeated. */
static void test_stale(void)
{
	static const char ok[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
	struct outcome o = { 0 };
	struct http_client *c;

	script.steps[0].answer = ok;
	script.steps[1].answer = ""; /* reads the request and closes */
	script.steps[1].close = true;
	script.steps[2].answer = ok;
	script.steps[3].answer = "";
	script.steps[3].close = true;
	script.steps[4].answer = ok;
	script.steps[5].answer = "";
	script.steps[5].close = true;
	script.steps[6].answer = ok;
	script_begin();
	c = client_new();
	call(c, GET, &o);
	call(c, GET, &o);
	CHECK_STR(o.text, "ok");
	CHECK_INT(script.accepted, 2);
	/* not so a POST */
	call(c, (struct http_call_options){ .method = "POST" }, &o);
	CHECK_INT(o.code, ERR_UNAVAILABLE);
	CHECK_STR(o.text, "connection ended within the answer");
	call(c, GET, &o);
	CHECK_STR(o.text, "ok");
	/* unless it says so */
	call(c, (struct http_call_options){ .method = "POST", .repeatable = true }, &o);
	CHECK_STR(o.text, "ok");
	CHECK_INT(script.at, 7);
	script_end(c);
}

static void test_fresh_is_not_repeated(void)
{
	struct outcome o = { 0 };
	struct http_client *c;

	script.steps[0].reset_first = true;
	script.steps[1].answer = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nok";
	script.steps[1].close = true;
	script_begin();
	c = client_new();
	call(c, GET, &o);
	CHECK_INT(o.code, ERR_UNAVAILABLE);
	call(c, GET, &o);
	CHECK_INT(o.code, ERR_INTERNAL); /* within the body */
	script_end(c);
}

static void test_renew(void)
{
	static const char ok[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
	struct outcome o = { 0 };
	struct http_client *c;

	for (int i = 0; i < 4; i++)
		script.steps[i].answer = ok;
	script_begin();
	c = client_new();
	call(c, GET, &o);
	call(c, GET, &o);
	CHECK_INT(script.accepted, 1);
	http_client_renew(c);
	call(c, GET, &o);
	CHECK_INT(script.accepted, 2);
	begin(c, GET, &o);
	http_client_renew(c); /* closed when the call ends */
	loop_run(loop);
	CHECK_STR(o.text, "ok");
	script_end(c);
}

/* In a rush few connections are used often. */
static void test_calls_max(void)
{
	struct outcome o[9] = { 0 };
	struct http_client_options co = { .allow_plain = true, .calls_max = 1 };
	AUTO(free) char *url = NULL;
	struct http_client *c = NULL;
	struct err e = ERR_INIT;

	for (int i = 0; i < 9; i++)
		script.steps[i].answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
	script_begin();
	url = xasprintf("http://127.0.0.1:%d", script.port);
	co.url = url;
	CHECK_OK(http_client_new(loop, &co, &c, &e));
	for (int i = 0; i < 9; i++)
		begin(c, GET, &o[i]);
	loop_run(loop);
	for (int i = 0; i < 9; i++)
		CHECK_STR(o[i].text, "ok");
	CHECK_INT(script.accepted, 1);
	script_end(c);
}

static void test_unasked_bytes(void)
{
	struct outcome o = { 0 };
	struct http_client *c;

	/* a second answer behind the first must not become that of the next call */
	script.steps[0].answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
				 "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
	script.steps[0].close = true;
	script.steps[1].answer = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood";
	script_begin();
	c = client_new();
	call(c, GET, &o);
	CHECK_STR(o.text, "ok");
	call(c, GET, &o);
	CHECK_STR(o.text, "good");
	script_end(c);
}

/* ---- hostile servers ---- */

static void hostile(const char *answer, const char *repeat, int pause_ms, int code)
{
	struct outcome o = { 0 };
	struct http_client *c;

	script.steps[0] = (struct step){
		.answer = answer, .repeat = repeat, .pause_ms = pause_ms, .close = true
	};
	script_begin();
	c = client_new();
	call(c, (struct http_call_options){ .timeout_ms = 1500, .body_max = 1000 }, &o);
	if (o.code != code)
		TEST_FAIL("%s for \"%.60s\": %s", err_code_name(o.code), answer, o.text);
	script_end(c);
	memset(&script, 0, sizeof(script));
}

static void test_hostile(void)
{
	hostile("rubbish\r\n\r\n", NULL, 0, ERR_INTERNAL);
	hostile("", "X", 0, ERR_INTERNAL);
	hostile("HTTP/1.1 200 OK\r\n", "A: b\r\n", 0, ERR_INTERNAL); /* endless header */
	hostile("HTTP/1.1 200 OK\r\nA: ", "bbbbbbbbbbbbbbb", 0, ERR_INTERNAL);
	hostile("", "HTTP/1.1 100 Continue\r\n\r\n", 0, ERR_INTERNAL); /* 1xx flood */
	hostile("HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n", NULL, 0, ERR_EXHAUSTED);
	hostile("HTTP/1.1 200 OK\r\n\r\n", "aaaaaaaaaaa", 0, ERR_EXHAUSTED);
	hostile("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "2\r\nab\r\n", 0,
		ERR_EXHAUSTED);
	hostile("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", NULL,
		0, ERR_INTERNAL);
	hostile("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", "0",
		0, ERR_INTERNAL);
	hostile("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "0", 0,
		ERR_INTERNAL);
	hostile("HTTP/1.1 200 OK\r\n", "x", 50, ERR_DEADLINE); /* slow trickle */
	hostile("HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n", "x", 50, ERR_DEADLINE);
	hostile("", "", 50, ERR_DEADLINE);
	hostile("", NULL, 0, ERR_UNAVAILABLE);
}

/* ---- what is not sent ---- */

static void test_refused(void)
{
	static const struct http_call_options bad[] = {
		{ .method = "GET / HTTP/1.1\r\nX:" },
		{ .method = "" },
		{ .path = "x" },
		{ .path = "/x HTTP/1.1\r\nHost: evil" },
		{ .path = "/x\x7f" },
		{ .headers = "A: b" },
		{ .headers = "A b\r\n" },
		{ .headers = "A: b\r\n\r\nGET /evil" },
		{ .headers = "A: b\nC: d\r\n" },
		{ .headers = "A: b\r\n c\r\n" },
		{ .headers = "Host: evil\r\n" },
		{ .headers = "A: b\r\ntransfer-encoding: chunked\r\n" },
		{ .headers = "Content-length: 1\r\n" },
		{ .content_type = "a\r\nB: c" },
	};
	struct outcome o = { 0 };
	struct http_client *c;
	struct http_client_options co = { .url = "http://a/?b", .allow_plain = true };
	struct err e = ERR_INIT;

	script_begin();
	c = client_new();
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		call(c, bad[i], &o);
		if (o.code != ERR_INVALID)
			TEST_FAIL("call %zu was not refused: %s", i, o.text);
	}
	http_call_cancel(begin(c, bad[0], &o));
	begin(c, bad[0], &o);
	CHECK_INT(script.accepted, 0);
	script_end(c);
	c = NULL;
	CHECK_ERR(http_client_new(loop, &co, &c, &e), ERR_INVALID);
	co.url = "http://a/";
	co.allow_plain = false;
	CHECK_ERR(http_client_new(loop, &co, &c, &e), ERR_INVALID);
	co.url = "https://u:p@a/";
	CHECK_ERR(http_client_new(loop, &co, &c, &e), ERR_INVALID);
	CHECK(!c);
}

/* ---- many at once, and none ---- */

static struct http_server *server;

static void handle(void *arg, const struct http_request *rq, struct http_response *rs)
{
	(void)arg;
	buf_printf(&rs->body, "%s %.*s", rq->path, (int)rq->body.n, (const char *)rq->body.p);
}

static void test_many(void)
{
	enum { N = HTTP_CLIENT_CALLS_MAX + 50 };
	struct http_server_options so = { .handle = handle };
	AUTO(free) char *path = xasprintf("%s/s", test_dir());
	struct http_client_options co = { .url = "http://docker", .unix_path = path };
	static struct outcome o[N];
	struct http_call *calls[N];
	struct http_client *c = NULL;
	struct err e = ERR_INIT;

	signal(SIGPIPE, SIG_IGN);
	loop = loop_new();
	so.unix_path = path;
	CHECK_OK(http_server_open(loop, &so, &server, &e));
	CHECK_OK(http_client_new(loop, &co, &c, &e));
	for (int round = 0; round < 3; round++) {
		for (int i = 0; i < N; i++)
			calls[i] = begin(c, GET, &o[i]);
		if (round == 1) /* those that wait take the places of those cancelled */
			for (int i = 0; i < N; i += 2, pending--)
				http_call_cancel(calls[i]);
		loop_run(loop);
		for (int i = 0; i < N; i++)
			CHECK_INT(o[i].done, round != 1 || i % 2 == 1);
		for (int i = 1; i < N; i += 2)
			CHECK_STR(o[i].text, "/x ");
	}
	begin(c, GET, &o[0]);
	http_client_free(c); /* under way, and silent from now on */
	http_server_close(server);
	loop_run(loop);
	CHECK(!o[0].done);
	loop_free(loop);
	rmdir(test_dir());
}

static void free_in_done(void *arg, const struct http_answer *a, const struct err *e)
{
	CHECK_INT(e->code, 0);
	http_client_free(arg);
	CHECK_BYTES(a->body, bytes_str("/x "));
	loop_stop(loop);
}

static void test_free_in_done(void)
{
	struct http_server_options so = { .handle = handle, .host = "127.0.0.1" };
	struct http_client_options co = { .allow_plain = true };
	AUTO(free) char *url = NULL;
	struct http_call_options o = { .path = "/x", .done = free_in_done };
	struct http_client *c = NULL;
	struct err e = ERR_INIT;

	signal(SIGPIPE, SIG_IGN);
	loop = loop_new();
	CHECK_OK(http_server_open(loop, &so, &server, &e));
	url = xasprintf("http://127.0.0.1:%d", http_server_port(server));
	co.url = url;
	CHECK_OK(http_client_new(loop, &co, &c, &e));
	o.arg = c;
	http_call(c, &o);
	loop_run(loop);
	http_server_close(server);
	loop_run(loop);
	loop_free(loop);
}

/* ---- TLS, with a CA of its own and a certificate of ours ---- */

static struct tls_ctx *server_ctx, *client_ctx;
static struct x509_chain roots;

static struct tls_ctx *give(void *arg)
{
	return tls_ctx_ref(*(struct tls_ctx **)arg);
}

static struct tls_ctx *give_server(void *arg)
{
	(void)arg;
	return tls_ctx_ref(server_ctx);
}

static int judge_server(void *arg, const struct x509_chain *peer, struct err *e)
{
	return tls_verify_host(peer, &roots, arg, clock_wall(), e);
}

static struct x509_cert *dns_cert(struct key *k, const char *dns, const struct test_ca *ca)
{
	struct x509_signer s = test_signer(ca->key);
	AUTO_BUF struct buf der = BUF_INIT;
	struct x509_cert *c = NULL;
	uint8_t serial[16];
	struct err e;
	struct x509_template t = {
		.serial = bytes_of(serial, sizeof(serial)),
		.not_before = wall_add_ns(clock_wall(), -10 * NS_PER_SEC),
		.not_after = wall_add_ns(clock_wall(), 3600 * NS_PER_SEC),
		.spki = pubkey_spki(key_public(k)),
		.key_usage = KU_DIGITAL_SIGNATURE,
		.eku_server_client = true,
		.issuer_raw = x509_subject_raw(ca->cert),
		.dns_names = &dns,
		.n_dns_names = 1,
	};

	x509_random_serial(serial);
	CHECK_OK(x509_build(&t, &s, &der, &e));
	CHECK_OK(x509_parse(buf_view(&der), &c, &e));
	return c;
}

static void test_tls(void)
{
	struct test_ca ca = test_ca(KEY_EC_P256, "kubernetes", NULL, clock_wall());
	struct key *key = test_key(KEY_EC_P256);
	struct x509_cert *cert = dns_cert(key, "kubernetes.default", &ca);
	struct x509_chain chain = { &cert, 1 };
	struct tls_options t = { .server = true, .chain = &chain, .key = key, .alpn = "http/1.1" };
	struct http_server_options so = {
		.handle = handle, .host = "127.0.0.1", .tls = give_server
	};
	char name[] = "kubernetes.default", other[] = "kubernetes.other";
	struct http_client_options co = { .tls = give,
		.arg = &client_ctx,
		.verify = judge_server,
		.verify_arg = name,
		.sni = "kubernetes.default" };
	AUTO(free) char *url = NULL;
	struct http_client *c = NULL;
	struct outcome o = { 0 };
	struct err e = ERR_INIT;

	signal(SIGPIPE, SIG_IGN);
	loop = loop_new();
	x509_chain_add(&roots, ca.cert);
	CHECK_OK(tls_ctx_new(&t, &server_ctx, &e));
	t.server = false;
	CHECK_OK(tls_ctx_new(&t, &client_ctx, &e));
	CHECK_OK(http_server_open(loop, &so, &server, &e));
	url = xasprintf("https://127.0.0.1:%d", http_server_port(server));
	co.url = url;
	CHECK_OK(http_client_new(loop, &co, &c, &e));
	for (int i = 0; i < 3; i++) {
		call(c, GET, &o);
		CHECK_STR(o.text, "/x ");
	}
	http_client_free(c);
	co.verify_arg = other;
	CHECK_OK(http_client_new(loop, &co, &c, &e));
	call(c, GET, &o);
	CHECK_CONTAINS(o.text, "x509: certificate is not valid for \"kubernetes.other\"");
	http_client_free(c);
	co.verify_arg = name;
	x509_chain_deinit(&roots);
	CHECK_OK(http_client_new(loop, &co, &c, &e));
	call(c, GET, &o);
	CHECK_CONTAINS(o.text, "signed by unknown authority");
	http_client_free(c);
	http_server_close(server);
	loop_run(loop);
	loop_free(loop);
	tls_ctx_unref(server_ctx);
	tls_ctx_unref(client_ctx);
	x509_unref(cert);
	key_unref(key);
	test_ca_free(&ca);
}

TEST_MAIN(TEST(test_keep_alive), TEST(test_streamed), TEST(test_stale),
	TEST(test_fresh_is_not_repeated), TEST(test_renew), TEST(test_calls_max),
	TEST(test_unasked_bytes), TEST(test_hostile), TEST(test_refused), TEST(test_many),
	TEST(test_free_in_done), TEST(test_tls))

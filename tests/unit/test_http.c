/* The HTTP server and client over real sockets; a thread plays clients that no library would. */
#include "tests/test.h"
#include "tests/unit/x509_make.inc"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>

#include "lib/http.h"
#include "lib/tls.h"

static struct loop *loop;
static struct http_server *server;
static int handled;

static void handle(void *arg, const struct http_request *rq, struct http_response *rs)
{
	(void)arg;
	handled++;
	if (strcmp(rq->path, "/big") == 0) {
		buf_reserve(&rs->body, 1 << 20);
		for (int i = 0; i < 1 << 20; i++)
			buf_byte(&rs->body, 'x');
		return;
	}
	if (strcmp(rq->path, "/none") == 0)
		rs->status = 404;
	else
		rs->content_type = "application/json";
	buf_printf(&rs->body, "%s %s?%s %s %.*s", rq->method, rq->path, rq->query, rq->host,
		(int)rq->body.n, (const char *)rq->body.p);
	if (*rq->forwarded_host) {
		buf_printf(&rs->body, " [%s %s]", rq->forwarded_host, rq->forwarded_proto);
		rs->headers = "X-Extra: 1\r\n";
	}
}

static void server_begin(struct http_server_options *o)
{
	struct err e = ERR_INIT;

	signal(SIGPIPE, SIG_IGN); /* as the programs do */
	loop = loop_new();
	if (!o->unix_path)
		o->host = "127.0.0.1";
	o->handle = handle;
	CHECK_OK(http_server_open(loop, o, &server, &e));
}

static void server_end(void)
{
	http_server_close(server);
	loop_run(loop);
	loop_free(loop);
}

/* ---- a client that sends bytes ---- */

struct raw {
	const char *send;
	size_t send_len;
	int port;
	char got[8192];
	size_t n;
};

static void stop_loop(void *arg)
{
	(void)arg;
	loop_stop(loop);
}

/* Sends all, then reads until the other side closes. */
static void *raw_thread(void *arg)
{
	struct raw *r = arg;
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)r->port) };
	struct timeval tv = { .tv_sec = 20 };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	ssize_t n = 1;

	a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	CHECK(connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	for (size_t at = 0; at < r->send_len && n > 0; at += (size_t)n)
		n = send(fd, r->send + at, r->send_len - at, MSG_NOSIGNAL);
	while (r->n < sizeof(r->got) - 1 &&
		(n = read(fd, r->got + r->n, sizeof(r->got) - 1 - r->n)) > 0)
		r->n += (size_t)n;
	close(fd);
	loop_post(loop, stop_loop, NULL);
	return NULL;
}

static const char *exchange(const char *send_, size_t n)
{
	static struct raw r;
	pthread_t t;

	r = (struct raw){ .send = send_, .send_len = n, .port = http_server_port(server) };
	CHECK(pthread_create(&t, NULL, raw_thread, &r) == 0);
	loop_run(loop);
	pthread_join(t, NULL);
	r.got[r.n] = 0;
	return r.got;
}

static const char *ask(const char *s)
{
	return exchange(s, strlen(s));
}

#define CLOSE "Connection: close\r\n\r\n"

static void test_requests(void)
{
	struct http_server_options o = { 0 };
	const char *got;

	server_begin(&o);
	got = ask("GET /live?a=b HTTP/1.1\r\nHost: me\r\n" CLOSE);
	CHECK_CONTAINS(got, "HTTP/1.1 200 OK\r\n");
	CHECK_CONTAINS(got, "\r\nContent-Type: application/json\r\n");
	CHECK_CONTAINS(got, "\r\nConnection: close\r\n");
	CHECK_CONTAINS(got, "\r\nDate: ");
	CHECK_CONTAINS(got, "\r\n\r\nGET /live?a=b me ");
	got = ask("GET /f HTTP/1.1\r\nHost: me\r\nX-Forwarded-Host: you:1 \r\nx-forwarded-proto: "
		  "https\r\nX-Forwarded-Host: other\r\n" CLOSE);
	CHECK_CONTAINS(got, "\r\nX-Extra: 1\r\nConnection");
	CHECK_CONTAINS(got, "GET /f? me  [you:1 https]");
	got = ask("GET http://you/abs HTTP/1.0\r\n\r\n");
	CHECK_CONTAINS(got, "\r\n\r\nGET /abs? ");
	got = ask("POST /none HTTP/1.1\r\nhOsT:\t me \r\nTransfer-Encoding: chunked\r\n" CLOSE
		  "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
	CHECK_CONTAINS(got, "HTTP/1.1 404 Not Found\r\n");
	CHECK_CONTAINS(got, "POST /none? me abcde");
	got = ask("HEAD / HTTP/1.1\r\nHost: me\r\n" CLOSE);
	CHECK_CONTAINS(got, "\r\nContent-Length: 11\r\n");
	CHECK(strcmp(got + strlen(got) - 4, "\r\n\r\n") == 0);
	CHECK_INT(handled, 5);
	server_end();
}

static void test_keep_alive(void)
{
	struct http_server_options o = { 0 };
	const char *got, *second;

	server_begin(&o);
	got = ask("GET /1 HTTP/1.1\r\nHost: me\r\n\r\n"
		  "POST /2 HTTP/1.1\r\nHost: me\r\nContent-Length: 2\r\n\r\nok"
		  "GET /3 HTTP/1.1\r\nHost: me\r\n" CLOSE "GET /4 HTTP/1.1\r\nHost: me\r\n\r\n");
	second = strstr(got, "GET /1? me ");
	CHECK(second && strstr(second, "POST /2? me ok") && strstr(second, "GET /3? me "));
	CHECK_INT(handled, 3); /* what follows a close is not looked at */
	server_end();
}

static void test_refused(void)
{
	struct http_server_options o = { 0 };
	AUTO_BUF struct buf b = BUF_INIT;

	server_begin(&o);
	CHECK_CONTAINS(ask("rubbish\r\n\r\n"), "HTTP/1.1 400 Bad Request\r\n");
	CHECK_CONTAINS(ask("GET / HTTP/1.1\r\n\r\n"), " 400 ");
	CHECK_CONTAINS(ask("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"), " 400 ");
	CHECK_CONTAINS(ask("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"), " 400 ");
	CHECK_CONTAINS(ask("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n"
			   "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
		" 400 ");
	CHECK_CONTAINS(ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 65537\r\n\r\n"), " 413 ");
	buf_str(&b, "GET /");
	for (int i = 0; i < HTTP_HEAD_MAX; i++)
		buf_byte(&b, 'a');
	CHECK_CONTAINS(exchange((char *)b.p, b.len), " 431 ");
	buf_reset(&b);
	buf_str(&b, "GET / HTTP/1.1\r\nHost: a\r\n");
	for (int i = 0; i < HTTP_HEAD_MAX / 4; i++)
		buf_str(&b, "a: b\r\n");
	CHECK_CONTAINS(exchange((char *)b.p, b.len), " 431 ");
	buf_reset(&b);
	buf_str(&b, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n11000\r\n");
	for (int i = 0; i < 0x11000; i++)
		buf_byte(&b, 'a');
	CHECK_CONTAINS(exchange((char *)b.p, b.len), " 413 ");
	CHECK_INT(handled, 0);
	server_end();
}

/* Connections without a request do not keep others out. */
static void test_slow_clients(void)
{
	struct http_server_options o = { 0 };
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fds[HTTP_CONNS_MAX + 20];

	server_begin(&o);
	a.sin_port = htons((uint16_t)http_server_port(server));
	for (size_t i = 0; i < ARRAY_LEN(fds); i++) {
		fds[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		CHECK(connect(fds[i], (struct sockaddr *)&a, sizeof(a)) == 0);
		CHECK(send(fds[i], "GET / HT", 8, MSG_NOSIGNAL) == 8);
		if (i % 16 == 0) /* the door accepts in turns */
			CHECK_CONTAINS(ask("GET /x HTTP/1.1\r\nHost: me\r\n" CLOSE), " 200 ");
	}
	CHECK_CONTAINS(ask("GET /x HTTP/1.1\r\nHost: me\r\n" CLOSE), " 200 ");
	for (size_t i = 0; i < ARRAY_LEN(fds); i++)
		close(fds[i]);
	server_end();
}

/* ---- the client ---- */

static int got_status, got_code;
static char got_text[1000];
static size_t got_body;

static void on_done(void *arg, int status, struct bytes body, const struct err *e)
{
	(void)arg;
	got_status = status;
	got_code = e->code;
	got_body = body.n;
	snprintf(got_text, sizeof(got_text), "%.*s", (int)(e->code ? strlen(e->msg) : body.n),
		e->code ? e->msg : (const char *)body.p);
	loop_stop(loop);
}

static void get(const struct http_get_options *o)
{
	got_code = got_status = -1;
	CHECK(http_get(loop, o, on_done, NULL));
	CHECK_INT(got_code, -1); /* never from inside */
	loop_run(loop);
}

/* Whatever the spelling, nothing on this host or its link is dialled. */
static void test_not_local(void)
{
	static const char *const hosts[] = { "127.0.0.1", "127.1", "2130706433", "0x7f000001",
		"0.0.0.0", "localhost", "169.254.169.254", "224.0.0.1", "255.255.255.255", "[::1]",
		"[::]", "[::ffff:127.0.0.1]", "[::127.0.0.1]", "[fe80::1]", "[ff02::1]" };
	struct http_server_options so = { 0 };

	server_begin(&so);
	for (size_t i = 0; i < ARRAY_LEN(hosts); i++) {
		AUTO(free)
		char *url = xasprintf("http://%s:%d/x", hosts[i], http_server_port(server));
		struct http_get_options o = {
			.url = url, .allow_plain = true, .not_local = true, .timeout_ms = 5000
		};

		handled = 0;
		get(&o);
		CHECK_INT(got_code, ERR_UNAVAILABLE);
		CHECK_CONTAINS(got_text, "lookup ");
		CHECK_INT(handled, 0);
	}
	server_end();
}

static void test_get(void)
{
	struct http_server_options so = { 0 };
	AUTO(free) char *url = NULL, *big = NULL;
	struct http_get_options o = { .allow_plain = true };

	server_begin(&so);
	url = xasprintf("http://127.0.0.1:%d/x?y", http_server_port(server));
	big = xasprintf("http://127.0.0.1:%d/big", http_server_port(server));
	o.url = url;
	get(&o);
	CHECK_INT(got_code, 0);
	CHECK_INT(got_status, 200);
	CHECK_CONTAINS(got_text, "GET /x?y 127.0.0.1:");
	o.url = big;
	get(&o);
	CHECK_INT(got_code, 0);
	CHECK_INT(got_body, 1 << 20);
	o.body_max = 1000;
	get(&o);
	CHECK_INT(got_code, ERR_EXHAUSTED);
	http_get_cancel(http_get(loop, &o, on_done, NULL));
	server_end();
}

static void test_get_unix(void)
{
	AUTO(free) char *path = xasprintf("%s/http", test_dir());
	struct http_server_options so = { .unix_path = path };
	struct http_get_options o = { .url = "http://docker/info", .unix_path = path };

	server_begin(&so);
	get(&o);
	CHECK_INT(got_code, 0);
	CHECK_STR(got_text, "GET /info? docker ");
	server_end();
	rmdir(test_dir());
}

static void test_get_refused(void)
{
	struct http_server_options so = { 0 };
	struct http_get_options o = { .url = "http://127.0.0.1:1/" };

	server_begin(&so);
	get(&o);
	CHECK_INT(got_code, ERR_INVALID);
	CHECK_STR(got_text, "plain http is not allowed here: http://127.0.0.1:1/");
	o.url = "https://a b/";
	get(&o);
	CHECK_INT(got_code, ERR_INVALID);
	o.url = "ftp://a/";
	get(&o);
	CHECK_INT(got_code, ERR_INVALID);
	http_get_cancel(http_get(loop, &o, on_done, NULL));
	o.url = "http://127.0.0.1:1/";
	o.allow_plain = true;
	get(&o);
	CHECK_INT(got_code, ERR_UNAVAILABLE);
	server_end();
}

/* ---- https ---- */

static struct tls_ctx *server_ctx;

static struct tls_ctx *give_ctx(void *arg)
{
	(void)arg;
	return tls_ctx_ref(server_ctx);
}

static int judge(void *arg, const struct x509_chain *peer, struct err *e)
{
	CHECK(peer->n == 1);
	return *(bool *)arg ? 0 : err_set(e, ERR_UNAUTHENTICATED, "not that one");
}

static void test_https(void)
{
	struct key *key = test_key(KEY_EC_P256);
	struct x509_cert *cert = test_cert(key, "web", NULL, false, NULL, clock_wall());
	struct x509_chain chain = { &cert, 1 };
	struct tls_options t = {
		.server = true, .chain = &chain, .key = key, .alpn = "http/1.1", .allow_tls12 = true
	};
	struct http_server_options so = { .tls = give_ctx };
	struct http_get_options o = { .verify = judge };
	AUTO(free) char *url = NULL;
	struct err e = ERR_INIT;
	bool good = true;

	CHECK_OK(tls_ctx_new(&t, &server_ctx, &e));
	server_begin(&so);
	url = xasprintf("https://127.0.0.1:%d/bundle", http_server_port(server));
	o.url = url;
	o.verify_arg = &good;
	get(&o);
	CHECK_STR(got_code ? got_text : "", "");
	CHECK_INT(got_status, 200);
	CHECK_CONTAINS(got_text, "GET /bundle? 127.0.0.1");
	good = false;
	get(&o);
	CHECK(got_code != 0);
	CHECK_CONTAINS(got_text, "not that one");
	o.verify = NULL; /* the web's rules: nobody vouches for it */
	get(&o);
	CHECK(got_code != 0);
	server_end();
	tls_ctx_unref(server_ctx);
	x509_unref(cert);
	key_unref(key);
}

TEST_MAIN(TEST(test_not_local), TEST(test_requests), TEST(test_keep_alive), TEST(test_slow_clients),
	TEST(test_refused), TEST(test_get), TEST(test_get_unix), TEST(test_get_refused),
	TEST(test_https))

/* TLS through the front door, and dialling: both ends are ours. */
#include "tests/unit/door.inc"
#include "tests/unit/x509_make.inc"

/* ---- dialling, plain ---- */

static int dialled = -2;
static struct err dial_err;

static void on_dialled(void *arg, int fd, const struct err *err)
{
	CHECK(arg == &dialled);
	dialled = fd;
	if (fd < 0)
		dial_err = *err;
	else
		close(fd);
	loop_stop(loop);
}

static void dial_now(const struct dial_options *o)
{
	dialled = -2;
	door_dial(loop, o, on_dialled, &dialled);
	CHECK_INT(dialled, -2);
	loop_run(loop);
}

static int listen_tcp_somewhere(int *ret_port)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000001) };
	socklen_t len = sizeof(sa);
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	CHECK(bind(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0 && listen(fd, 5) == 0);
	getsockname(fd, (struct sockaddr *)&sa, &len);
	*ret_port = ntohs(sa.sin_port);
	return fd;
}

static void test_dial(void)
{
	struct dial_options o = { .tcp_host = "127.0.0.1", .timeout_ms = 5000 };
	struct dial *d;
	char text[100];
	int before, fd;

	warm_up();
	before = open_fds();
	fd = listen_tcp_somewhere(&o.tcp_port);
	loop = loop_new();
	dial_now(&o);
	CHECK(dialled >= 0);
	o.tcp_host = "localhost"; /* [::1] fails first, perhaps */
	dial_now(&o);
	CHECK(dialled >= 0);
	close(fd);
	o.tcp_host = "127.0.0.1";
	dial_now(&o);
	CHECK_INT(dialled, -1);
	CHECK_INT(dial_err.code, ERR_UNAVAILABLE);
	snprintf(text, sizeof(text), "dial tcp 127.0.0.1:%d: connect: connection refused",
		o.tcp_port);
	CHECK_STR(dial_err.msg, text);
	o.tcp_host = "no-such-host.invalid";
	dial_now(&o);
	CHECK_INT(dialled, -1);
	CHECK_CONTAINS(dial_err.msg, "lookup no-such-host.invalid");
	o = (struct dial_options){ .unix_path = "/nowhere/door.sock" };
	dial_now(&o);
	CHECK_INT(dialled, -1);
	CHECK_STR(dial_err.msg, "dial unix /nowhere/door.sock: connect: no such file or directory");
	/* cancelled: at once, and while it resolves */
	dialled = -2;
	d = door_dial(loop, &o, on_dialled, &dialled);
	dial_cancel(d);
	dial_cancel(NULL);
	o = (struct dial_options){ .tcp_host = "no-such-host.invalid", .tcp_port = 1 };
	d = door_dial(loop, &o, on_dialled, &dialled);
	uv_run(loop_uv(loop), UV_RUN_NOWAIT);
	dial_cancel(d);
	loop_run(loop);
	CHECK_INT(dialled, -2);
	loop_free(loop);
	CHECK_INT(open_fds(), before);
}

/* The loop may be freed while a name is still looked up for nobody. */
static void test_dial_left_behind(void)
{
	struct dial_options o = { .tcp_host = "no-such-host.invalid", .tcp_port = 1 };
	struct dial *d;

	loop = loop_new();
	d = door_dial(loop, &o, on_dialled, &dialled);
	uv_run(loop_uv(loop), UV_RUN_NOWAIT);
	dial_cancel(d);
	loop_free(loop);
}

static void test_dial_timeout(void)
{
	struct dial_options o = { .unix_path = NULL, .timeout_ms = 200 };
	char path[128];
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0), filler[3];

	/* a listener whose queue is full */
	snprintf(path, sizeof(path), "%s/full.sock", test_dir());
	memcpy(un.sun_path, path, strlen(path));
	CHECK(bind(fd, (struct sockaddr *)&un, sizeof(un)) == 0 && listen(fd, 0) == 0);
	for (int i = 0; i < 3; i++) {
		filler[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
		(void)!connect(filler[i], (struct sockaddr *)&un, sizeof(un));
	}
	o.unix_path = path;
	loop = loop_new();
	dial_now(&o);
	CHECK_INT(dialled, -1);
	CHECK_CONTAINS(dial_err.msg, "i/o timeout");
	loop_free(loop);
}
/* ---- TLS ---- */

static struct test_ca ca, other_ca;
static struct x509_chain roots, other_roots;
static struct tls_ctx *server_ctx, *client_ctx, *anonymous_ctx, *stranger_ctx;

static struct tls_ctx *server_context(void *arg)
{
	CHECK(arg == &door);
	return tls_ctx_ref(server_ctx);
}

static int judge(void *arg, const struct x509_chain *peer, struct err *err)
{
	struct spiffeid id = SPIFFEID_INIT;
	int r = tls_verify_svid(peer, arg == &other_ca ? &other_roots : &roots, test_now, &id, err);

	spiffeid_deinit(&id);
	return r;
}

static struct tls_ctx *context(const struct test_ca *by, const char *uri, bool server)
{
	struct key *k = test_key(KEY_EC_P256);
	struct x509_chain chain = { 0 };
	struct tls_ctx *ctx = NULL;
	struct tls_options o = {
		.server = server, .client_cert = TLS_CLIENT_CERT_OPTIONAL, .alpn = "h2"
	};

	if (uri) {
		struct x509_cert *c = test_cert(k, NULL, uri, false, by, test_now);

		x509_chain_add(&chain, c);
		x509_unref(c);
		o.chain = &chain;
		o.key = k;
	}
	CHECK_OK(tls_ctx_new(&o, &ctx, &e));
	x509_chain_deinit(&chain);
	key_unref(k);
	return ctx;
}

static struct door_options tls_world(void)
{
	ca = test_ca(KEY_EC_P256, "ca", NULL, test_now);
	other_ca = test_ca(KEY_EC_P256, "other", NULL, test_now);
	x509_chain_add(&roots, ca.cert);
	x509_chain_add(&other_roots, other_ca.cert);
	server_ctx = context(&ca, "spiffe://example.org/spire/server", true);
	client_ctx = context(&ca, "spiffe://example.org/agent", false);
	stranger_ctx = context(&other_ca, "spiffe://example.org/agent", false);
	anonymous_ctx = context(NULL, NULL, false);
	return (struct door_options){ .tcp_host = "127.0.0.1",
		.tls = server_context,
		.verify = judge,
		.on_conn = on_conn,
		.arg = &door };
}

static void tls_world_end(void)
{
	tls_ctx_unref(server_ctx);
	tls_ctx_unref(client_ctx);
	tls_ctx_unref(stranger_ctx);
	tls_ctx_unref(anonymous_ctx);
	x509_chain_deinit(&roots);
	x509_chain_deinit(&other_roots);
	test_ca_free(&ca);
	test_ca_free(&other_ca);
}

/* What a dial on the loop gave the client thread. */
struct call {
	struct dial_options o;
	struct tls_ctx *ctx;
	void *verify_arg;
	int fd;
	struct err err;
	bool done;
};

static void on_call_dialled(void *arg, int fd, const struct err *err)
{
	struct call *c = arg;

	c->fd = fd;
	if (fd < 0)
		c->err = *err;
	__atomic_store_n(&c->done, true, __ATOMIC_SEQ_CST);
}

static void start_call(void *arg)
{
	struct call *c = arg;

	c->o = (struct dial_options){ .tcp_host = "127.0.0.1",
		.tcp_port = door_port(door),
		.tls = c->ctx,
		.sni = "example.org",
		.verify = judge,
		.verify_arg = c->verify_arg,
		.timeout_ms = 10000 };
	door_dial(loop, &c->o, on_call_dialled, c);
}

static int tls_connect(struct tls_ctx *ctx, void *verify_arg)
{
	static struct call c;

	c = (struct call){ .ctx = ctx, .verify_arg = verify_arg };
	on_loop(start_call, &c);
	SOON(__atomic_load_n(&c.done, __ATOMIC_SEQ_CST));
	if (c.fd < 0)
		dial_err = c.err;
	return c.fd;
}

static int tls_hello(struct tls_ctx *ctx)
{
	int fd = tls_connect(ctx, &ca);

	if (fd < 0)
		TEST_FAIL("dial: %s", dial_err.msg);
	h2_hello(&out);
	CHECK(h2_flush(fd, &out));
	return fd;
}

static void check_agent(void *arg)
{
	(void)arg;
	CHECK(!last_peer->is_unix);
	CHECK_STR(last_peer->address, "127.0.0.1");
	CHECK_STR(last_peer->id.text, "spiffe://example.org/agent");
	CHECK_INT(last_peer->chain.n, 1);
}

static void check_anonymous(void *arg)
{
	(void)arg;
	CHECK(last_peer->id.text == NULL);
	CHECK_INT(last_peer->chain.n, 0);
}

static void tls_calls(void)
{
	int fd = tls_hello(client_ctx), held;
	static struct h2_got got;

	for (uint32_t id = 1; id < 100; id += 2)
		CHECK(call_on(fd, id));
	on_loop(check_agent, NULL);
	close(fd);
	SOON(stats().open == 0);
	/* without a certificate */
	fd = tls_hello(anonymous_ctx);
	CHECK(call_on(fd, 1));
	on_loop(check_anonymous, NULL);
	/* the guard stands behind TLS too, and its GOAWAY comes through */
	for (uint32_t id = 3; id < 2000; id += 2)
		h2_open(&out, id, 0, "/x/hold");
	h2_flush(fd, &out);
	do
		CHECK(h2_next(fd, &got, 10000));
	while (got.type != H2_GOAWAY);
	CHECK_INT(got.p[7], 0xb);
	CHECK(h2_closed(fd, 10000));
	close(fd);
	/* much in both directions */
	held = tls_hello(client_ctx);
	h2_open(&out, 1, 0, "/x/flood");
	CHECK(h2_flush(held, &out));
	for (int i = 0; i < 5000; i++) {
		CHECK(h2_next(held, &got, 10000));
		CHECK(got.type != H2_DATA || got.len == 1000);
	}
	close(held);
	SOON(stats().open == 0);
	CHECK_INT(stats().handshake_failed, 0);
}

/* What a load balancer says first. A client that is told nothing waits, so a door that gives up
 * closes. */
static void proxied(void)
{
	static const char *const bad[] = { "PROXY TCP4 nonsense\r\n\x16\x03\x01",
		"\r\n\r\nQUIT it is not \x16\x03\x01",
		"PROXY TCP4 198.51.100.7 10.0.0.1 1 2\r\nGET / HTTP/1.1" };
	int fd;

	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		fd = h2_connect(target);
		h2_write(fd, bad[i], strlen(bad[i]));
		CHECK(h2_closed(fd, 10000));
		close(fd);
		SOON(stats().handshake_failed == i + 1);
	}
	/* It may come in parts, and counts for the client then. */
	fd = h2_connect(target);
	h2_write(fd, "PROXY TCP4 198.51", 17);
	h2_sleep_ms(50);
	h2_write(fd, ".100.7 10.0.0.1 1 2\r\n", 21);
	SOON(stats().open == 1);
	h2_sleep_ms(50);
	CHECK_INT(stats().handshake_failed, ARRAY_LEN(bad));
	close(fd);
	SOON(stats().open == 0);
	/* A balancer that says nothing is a client like others. */
	fd = tls_hello(client_ctx);
	CHECK(call_on(fd, 1));
	on_loop(check_agent, NULL);
	close(fd);
	SOON(stats().open == 0);
}

static void not_proxied(void)
{
	static const char header[] = "PROXY TCP4 198.51.100.7 10.0.0.1 1 2\r\n";
	int fd = h2_connect(target);

	h2_write(fd, header, strlen(header));
	CHECK(h2_closed(fd, 10000));
	close(fd);
	SOON(stats().handshake_failed == 1);
}

static void test_proxied(void)
{
	struct door_options o = tls_world();
	struct network here, there;

	CHECK_OK(network_parse("127.0.0.0/8", &here, &e));
	CHECK_OK(network_parse("10.0.0.0/8", &there, &e));
	o.proxies = &here;
	o.n_proxies = 1;
	run_with(&o, proxied);
	o.proxies = &there;
	run_with(&o, not_proxied);
	tls_world_end();
}

static void test_tls_calls(void)
{
	struct door_options o = tls_world();

	run_with(&o, tls_calls);
	tls_world_end();
}

static void tls_strangers(void)
{
	int fd;
	static const char *const garbage[] = { "GET / HTTP/1.1\r\n\r\n",
		"\x16\x03\x01\x00\x05hello", "\x16\x02\x01\x00\x05hello", h2_preface };

	/* a client whose chain does not verify: in TLS 1.3 it hears of it only after its own part
	 */
	fd = tls_connect(stranger_ctx, &ca);
	CHECK(fd < 0 || h2_closed(fd, 10000));
	if (fd >= 0)
		close(fd);
	SOON(stats().handshake_failed == 1);
	/* a server that the client does not trust */
	CHECK(tls_connect(client_ctx, &other_ca) < 0);
	CHECK_CONTAINS(dial_err.msg, "dial tcp 127.0.0.1:");
	SOON(stats().handshake_failed == 2);
	for (size_t i = 0; i < ARRAY_LEN(garbage); i++) {
		fd = connect_now();
		CHECK(h2_write(fd, garbage[i], strlen(garbage[i])));
		CHECK(h2_closed(fd, 10000));
		close(fd);
	}
	SOON(stats().handshake_failed == 2 + ARRAY_LEN(garbage));
	fd = tls_hello(client_ctx);
	CHECK(call_on(fd, 1));
	close(fd);
}

static void test_tls_strangers(void)
{
	struct door_options o = tls_world();

	run_with(&o, tls_strangers);
	tls_world_end();
}

static void tls_slow(void)
{
	int fd = connect_now(), partial = connect_now(), anonymous;

	CHECK(h2_write(partial, "\x16\x03\x01\x02\x00\x01", 6));
	anonymous = tls_connect(anonymous_ctx, &ca); /* no preface */
	CHECK(h2_closed(fd, 10000));
	CHECK(h2_closed(partial, 10000));
	CHECK(h2_closed(anonymous, 10000));
	SOON(stats().handshake_failed == 3);
	close(fd);
	close(partial);
	close(anonymous);
}

static void test_tls_slow_handshake(void)
{
	struct door_options o = tls_world();

	door_times.handshake_ms = 300;
	run_with(&o, tls_slow);
	tls_world_end();
}

/* Handshakes that do not go on cost their address its oldest ones, not agents their place. */
static void tls_pending(void)
{
	enum { MANY = 1000 };
	static int fds[MANY];
	int agent = tls_hello(client_ctx), fd;

	for (int i = 0; i < MANY; i++) {
		fds[i] = connect_now();
		if (i % 2)
			CHECK(h2_write(fds[i], "\x16\x03\x01\x02\x00\x01", 6));
		if (i % 100 == 99)
			CHECK(call_on(agent, (uint32_t)i * 2 + 1));
	}
	SOON(stats().accepted == MANY + 1);
	CHECK_INT(stats().open, SHARE_HANDSHAKES + 1);
	CHECK(h2_closed(fds[0], 10000));
	fd = tls_hello(client_ctx);
	CHECK(call_on(fd, 1));
	CHECK(call_on(agent, 9999));
	for (int i = 0; i < MANY; i++)
		close(fds[i]);
	close(fd);
	close(agent);
}

static void test_tls_pending_handshakes(void)
{
	struct door_options o = tls_world();
	struct rlimit rl;

	getrlimit(RLIMIT_NOFILE, &rl);
	rl.rlim_cur = rl.rlim_max;
	setrlimit(RLIMIT_NOFILE, &rl);
	if (rl.rlim_cur < 4000)
		SKIP("needs 4,000 descriptors");
	run_with(&o, tls_pending);
	tls_world_end();
}

/* A loop that is freed while a dialled connection is still pumped ends it. */
static int kept = -1;

static void on_kept(void *arg, int fd, const struct err *err)
{
	(void)arg;
	if (fd < 0)
		TEST_FAIL("%s", err->msg);
	__atomic_store_n(&kept, fd, __ATOMIC_SEQ_CST);
}

static void keep_one(void *arg)
{
	struct call *c = arg;

	c->o = (struct dial_options){ .tcp_host = "127.0.0.1",
		.tcp_port = door_port(door),
		.tls = client_ctx,
		.verify = judge,
		.verify_arg = &ca };
	door_dial(loop, &c->o, on_kept, NULL);
}

static void keep_until_free(void)
{
	static struct call c;

	on_loop(keep_one, &c);
	SOON(__atomic_load_n(&kept, __ATOMIC_SEQ_CST) >= 0);
	h2_hello(&out);
	CHECK(h2_write(kept, out.p, out.len));
	SOON(stats().open == 1);
	close(kept);
}

static void test_loop_free_ends_pumps(void)
{
	struct door_options o = tls_world();

	run_with(&o, keep_until_free);
	tls_world_end();
}

TEST_MAIN(TEST(test_dial), TEST(test_dial_timeout), TEST(test_dial_left_behind),
	TEST(test_tls_calls), TEST(test_proxied), TEST(test_tls_strangers),
	TEST(test_tls_slow_handshake), TEST(test_tls_pending_handshakes),
	TEST(test_loop_free_ends_pumps))

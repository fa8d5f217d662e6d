/* Unary calls, and how connections begin and end, over real Unix sockets. */
#include "tests/unit/rpc_pair.inc"

static void call_async(const char *service, int timeout_ms, bool fail_fast,
	void (*done)(void *arg, const struct rpc_status *st, const ProtobufCMessage *m), void *arg)
{
	check_request rq = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
	struct rpc_unary_options o = {
		.method = HEALTH "Check",
		.request = &rq.base,
		.response = &grpc__health__v1__health_check_response__descriptor,
		.timeout_ms = timeout_ms,
		.fail_fast = fail_fast,
	};

	rq.service = text(service);
	rpc_unary(client, &o, done, arg);
}

static int statuses[64], n_statuses;

static void note_status(void *arg, const struct rpc_status *st, const ProtobufCMessage *m)
{
	(void)arg;
	(void)m;
	statuses[n_statuses++] = st->code;
	loop_stop(loop);
}

/* ---- unary ---- */

static void test_unary(void)
{
	static const char *const md[] = { "workload.spiffe.io", "true", NULL };
	struct err e = ERR_INIT;
	int st = 0;

	begin();
	CHECK_OK(check_with("", NULL, TIMEOUT_MS, &st, &e));
	CHECK_INT(st, 1);
	CHECK_OK(check_with("late", NULL, TIMEOUT_MS, &st, &e));
	CHECK_INT(st, 2);
	CHECK_OK(check("take", &e));
	CHECK_OK(check_with("metadata", md, TIMEOUT_MS, &st, &e));
	CHECK(rpc_client_connected(client));
	end();
	CHECK_INT(ended, 4);
	CHECK_INT(finished_code, 0);
	CHECK_STR(finished_method, HEALTH "Check");
}

static void test_failures(void)
{
	static const char *const md[] = { "forbid", "1", NULL };
	struct err e = ERR_INIT;

	begin();
	CHECK_ERR(check("fail", &e), ERR_PRECONDITION);
	CHECK_STR(e.msg, "it is bad: 100% übel\n");
	CHECK_ERR(check_with("", md, 1000, NULL, &e), ERR_DENIED);
	CHECK_STR(e.msg, "not you");
	CHECK_ERR(call_method("/a.B/C", &e), ERR_UNIMPLEMENTED);
	CHECK_STR(e.msg, "unknown service a.B");
	CHECK_ERR(call_method(HEALTH "Chuck", &e), ERR_UNIMPLEMENTED);
	CHECK_STR(e.msg, "unknown method Chuck for service grpc.health.v1.Health");
	CHECK_ERR(call_method(HEALTH "List", &e), ERR_UNIMPLEMENTED);
	CHECK_STR(e.msg, "method List not implemented");
	CHECK_ERR(call_method("/nothing", &e), ERR_UNIMPLEMENTED);
	CHECK_STR(e.msg, "malformed method name: \"/nothing\"");
	/* A failed call says nothing against the connection. */
	CHECK_INT(n_peers, 1);
	end();
}

static void on_details(void *arg, const struct rpc_status *st, const ProtobufCMessage *m)
{
	check_request *d;

	(void)arg;
	CHECK(!m);
	CHECK_INT(st->code, ERR_DENIED);
	CHECK_STR(st->message, "denied");
	d = (check_request *)rpc_status_detail(
		st, &grpc__health__v1__health_check_request__descriptor);
	CHECK(d);
	CHECK_STR(d->service, "the detail");
	protobuf_c_message_free_unpacked(&d->base, NULL);
	CHECK(!rpc_status_detail(st, &grpc__health__v1__health_check_response__descriptor));
	loop_stop(loop);
}

static void test_details(void)
{
	begin();
	call_async("details", TIMEOUT_MS, false, on_details, NULL);
	loop_run(loop);
	end();
}

static void test_deadline(void)
{
	struct err e = ERR_INIT;

	begin();
	CHECK_ERR(check_with("never", NULL, 100, NULL, &e), ERR_DEADLINE);
	if (held)
		run_for(2000);
	CHECK(!held);
	CHECK_INT(ended, 1);
	/* Whichever was first: our clock, or the reset that the client sent by its own. */
	CHECK(finished_code == ERR_DEADLINE || finished_code == ERR_CANCELLED);
	end();
}

static void test_sizes(void)
{
	AUTO(free) char *s = NULL;
	struct err e = ERR_INIT;

	begin();
	s = xcalloc(1, SERVER_MAX + 1);
	memset(s, 'a', SERVER_MAX);
	CHECK_ERR(check(s, &e), ERR_EXHAUSTED);
	s[SERVER_MAX - 100] = 0;
	CHECK_OK(check(s, &e));
	end();
}

static void test_bad_strings(void)
{
	struct err e = ERR_INIT;

	begin();
	CHECK_ERR(check("\xff\xfe", &e), ERR_INTERNAL);
	CHECK_STR(e.msg, "grpc: error unmarshalling request: string field contains invalid UTF-8");
	CHECK_OK(check("\xc3\xbc\xe2\x82\xac\xf0\x9f\x98\x80", &e));
	end();
}

/* ---- cancellation and the end of connections ---- */

static int cancelled_calls;

static void note_cancelled(void *arg, const struct rpc_status *st, const ProtobufCMessage *m)
{
	(void)arg;
	(void)m;
	CHECK_INT(st->code, ERR_CANCELLED);
	cancelled_calls++;
}

static void test_client_freed(void)
{
	begin();
	call_async("never", 0, false, note_cancelled, NULL);
	while (!held)
		run_for(20);
	call_async("", TIMEOUT_MS, false, note_cancelled, NULL);
	rpc_client_free(client);
	client = NULL;
	CHECK_INT(cancelled_calls, 2);
	run_for(2000);
	CHECK(!held);
	CHECK_INT(finished_code, ERR_CANCELLED);
	end();
}

static void test_server_stops(void)
{
	struct rpc_server_options o = { .finished = note_finished, .local = true };
	struct err e = ERR_INIT;

	begin();
	CHECK_OK(check("", &e));
	call_async("never", 0, false, note_status, NULL);
	while (!held)
		run_for(20);
	/* The handler never answers, so the grace runs out; then the client finds nobody. */
	listen_stop();
	rpc_server_stop(server, 200, note_stopped, NULL);
	while (!stopped)
		loop_run(loop);
	while (n_statuses < 1)
		loop_run(loop);
	CHECK(statuses[0] != 0);
	rpc_server_free(server);
	run_for(50);
	CHECK(!rpc_client_connected(client));
	call_async("", TIMEOUT_MS, true, note_status, NULL); /* fails fast, though not at once */
	CHECK_INT(n_statuses, 1);
	while (n_statuses < 2)
		loop_run(loop);
	CHECK_INT(statuses[1], ERR_UNAVAILABLE);
	CHECK_ERR(check_with("", NULL, 100, NULL, &e), ERR_DEADLINE);
	CHECK_CONTAINS(e.msg, "no connection in time: ");
	/* And it finds the next one by itself. */
	server_begin(&o);
	CHECK_OK(check("", &e));
	end();
}

static void test_reconnect(void)
{
	struct err e = ERR_INIT;

	begin();
	CHECK_OK(check("", &e));
	call_async("never", 0, false, note_status, NULL);
	while (!held)
		run_for(20);
	rpc_client_reconnect(client);
	CHECK_OK(check("", &e));
	CHECK_INT(n_peers, 2);
	/* The old call still runs on the old connection. */
	CHECK(held && !rpc_call_ended(held));
	CHECK_INT(n_statuses, 0);
	reply_status(held, 1);
	while (n_statuses < 1)
		loop_run(loop);
	CHECK_INT(statuses[0], 0);
	end();
}

/* A server that goes tells its clients; they move on while a call still runs there. */
static void test_goaway(void)
{
	struct rpc_server_options o = { 0 };
	struct rpc_server *old;
	struct err e = ERR_INIT;

	begin();
	CHECK_OK(check("", &e));
	call_async("never", 0, false, note_status, NULL);
	while (!held)
		run_for(20);
	old = server;
	listen_stop();
	rpc_server_stop(old, 60000, note_stopped, NULL);
	run_for(100); /* both GOAWAYs and the PING between them have passed */
	server_begin(&o);
	CHECK_OK(check("", &e));
	CHECK_INT(n_peers, 2);
	CHECK_INT(n_statuses, 0);
	reply_status(held, 1);
	while (n_statuses < 1 || !stopped)
		loop_run(loop);
	CHECK_INT(statuses[0], 0);
	rpc_server_free(old);
	end();
}

static void test_peer_ended(void)
{
	struct err e = ERR_INIT;
	struct peer *p;

	begin();
	CHECK_OK(check("", &e));
	p = peers[0];
	while (p->refs > 2) /* the call's end may come after its answer */
		run_for(10);
	p->on_end(p->on_end_arg, p); /* as the door does */
	CHECK_INT(p->refs, 1);
	CHECK(!p->on_end);
	end();
}

static void test_lazy(void)
{
	struct err e = ERR_INIT;

	begin();
	rpc_client_free(client);
	client_begin(true);
	run_for(30);
	CHECK(!rpc_client_connected(client));
	CHECK_OK(check("", &e));
	end();
}

static void test_many_calls(void)
{
	begin();
	for (int i = 0; i < 64; i++)
		call_async(i % 2 ? "" : "late", TIMEOUT_MS, false, note_status, NULL);
	while (n_statuses < 64)
		loop_run(loop);
	for (int i = 0; i < 64; i++)
		CHECK_INT(statuses[i], 0);
	while (ended < 64)
		run_for(10);
	end();
}

TEST_MAIN(TEST(test_unary), TEST(test_failures), TEST(test_details), TEST(test_deadline),
	TEST(test_sizes), TEST(test_bad_strings), TEST(test_client_freed), TEST(test_server_stops),
	TEST(test_reconnect), TEST(test_goaway), TEST(test_peer_ended), TEST(test_lazy),
	TEST(test_many_calls))

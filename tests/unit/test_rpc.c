/* Server and client talk over real Unix sockets; hostile input goes in as bytes. */
#include "tests/test.h"

#include <sys/socket.h>
#include <sys/un.h>

#include "google/protobuf/struct.pb-c.h"
#include "grpc/health/v1/health.pb-c.h"
#include "grpc/reflection/v1/reflection.pb-c.h"
#include "lib/descriptors.h"
#include "lib/list.h"
#include "lib/rpc.h"
#include "lib/rpc_health.h"
#include "lib/rpc_wire.h"

#define HEALTH "/grpc.health.v1.Health/"
#define REFLECTION "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"

enum { SERVER_MAX = 128 << 10, TIMEOUT_MS = 30000 /* sanitizers are slow */ };

typedef Grpc__Health__V1__HealthCheckRequest check_request;
typedef Grpc__Health__V1__HealthCheckResponse check_response;
typedef Grpc__Reflection__V1__ServerReflectionRequest info_request;
typedef Grpc__Reflection__V1__ServerReflectionResponse info_response;

/* protobuf-c's strings are not const. */
static char *text(const char *s)
{
	return (char *)(uintptr_t)s;
}

/* ---- a server on a Unix socket ---- */

static struct loop *loop;
static struct rpc_server *server;
static struct rpc_client *client;
static struct loop_watch *accept_watch;
static int listen_fd = -1;
static char path[100];
static struct peer *peers[64];
static int n_peers;

static int ended, finished_code, watch_sends, stopped;
static char finished_method[100], finished_message[200];
static struct rpc_call *held;

static void accept_one(void *arg)
{
	int fd;

	(void)arg;
	loop_watch_free(accept_watch);
	fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC); /* blocking: lib/rpc must see to it */
	if (fd >= 0) {
		struct peer *p = xcalloc(1, sizeof(*p));

		p->refs = 1;
		p->pidfd = -1;
		p->is_unix = true;
		p->pid = 4711;
		peers[n_peers++] = p;
		rpc_server_conn(server, fd, p);
	}
	accept_watch = loop_watch_readable(loop, listen_fd, accept_one, NULL);
}

static void listen_start(void)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };

	snprintf(path, sizeof(path), "%s/s", test_dir());
	snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
	unlink(path);
	listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	CHECK(bind(listen_fd, (struct sockaddr *)&a, sizeof(a)) == 0);
	CHECK(listen(listen_fd, 16) == 0);
	accept_watch = loop_watch_readable(loop, listen_fd, accept_one, NULL);
}

static void listen_stop(void)
{
	if (listen_fd < 0)
		return;
	loop_watch_free(accept_watch);
	accept_watch = NULL;
	close(listen_fd);
	listen_fd = -1;
	unlink(path);
}

static int dial_path(void *arg, struct dial_options *o, struct err *e)
{
	(void)arg;
	(void)e;
	o->unix_path = path;
	o->timeout_ms = 1000;
	return 0;
}

/* ---- the service ---- */

static void reply_status(struct rpc_call *c, int status)
{
	check_response rs = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;

	rs.status = status;
	rpc_reply(c, &rs.base);
}

static void reply_later(void *arg)
{
	reply_status(arg, 2);
	rpc_call_unref(arg);
}

static void count_end(struct rpc_call *c)
{
	ended++;
	if (held == c) {
		rpc_call_unref(held);
		held = NULL;
		loop_stop(loop);
	}
}

static void start_check(struct rpc_call *c, const ProtobufCMessage *req)
{
	const char *s = ((const check_request *)req)->service;

	CHECK(rpc_call_peer(c) && rpc_call_peer(c)->pid == 4711);
	CHECK(rpc_call_data(c) == &ended);
	rpc_call_on_end(c, count_end);
	if (strcmp(s, "fail") == 0) {
		rpc_fail(c, ERR_PRECONDITION, "it is %s: 100%% übel\n", "bad");
		reply_status(c, 1); /* does nothing any more */
	} else if (strcmp(s, "details") == 0) {
		check_request d = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;

		d.service = text("the detail");
		rpc_fail_details(c, ERR_DENIED, "denied", &d.base);
	} else if (strcmp(s, "late") == 0) {
		loop_post(loop, reply_later, rpc_call_ref(c));
	} else if (strcmp(s, "never") == 0) {
		held = rpc_call_ref(c);
	} else if (strcmp(s, "take") == 0) {
		ProtobufCMessage *m = rpc_call_take_request(c);

		CHECK_STR(((check_request *)m)->service, "take");
		protobuf_c_message_free_unpacked(m, NULL);
		reply_status(c, 1);
	} else if (strcmp(s, "metadata") == 0) {
		CHECK_STR(rpc_call_metadata(c, "workload.spiffe.io"), "true");
		CHECK(!rpc_call_metadata(c, "other"));
		CHECK(rpc_call_deadline_ns(c) <= (TIMEOUT_MS + 1000) * NS_PER_MS);
		reply_status(c, 1);
	} else {
		reply_status(c, 1);
	}
}

static void send_some(struct rpc_call *c)
{
	check_response rs = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;

	if (++watch_sends > 100) {
		rpc_finish(c);
		return;
	}
	rs.status = 1 + watch_sends % 3;
	rpc_send(c, &rs.base);
	CHECK(!rpc_writable(c));
	if (watch_sends == 100)
		rpc_finish(c); /* with one in flight */
}

static void start_watch(struct rpc_call *c, const ProtobufCMessage *req)
{
	rpc_call_on_end(c, count_end);
	if (((const check_request *)req)->service[0]) { /* stays open */
		check_response rs = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;

		rpc_send(c, &rs.base);
		return;
	}
	rpc_on_writable(c, send_some);
	send_some(c);
}

static const struct rpc_method health_methods[] = {
	{ "Check", RPC_UNARY, start_check },
	{ "Watch", RPC_SERVER_STREAM, start_watch },
};

static void echo(struct rpc_call *c, const ProtobufCMessage *m)
{
	info_response rs = GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__INIT;

	if (!m) {
		rpc_finish(c);
		return;
	}
	rs.valid_host = ((const info_request *)m)->host;
	rpc_send(c, &rs.base);
}

static void read_next(struct rpc_call *c)
{
	rpc_read(c, echo);
}

static void start_echo(struct rpc_call *c, const ProtobufCMessage *m)
{
	CHECK(!m);
	rpc_call_on_end(c, count_end);
	rpc_on_writable(c, read_next);
	rpc_read(c, echo);
}

static const struct rpc_method echo_methods[] = {
	{ "ServerReflectionInfo", RPC_BIDI, start_echo },
};

static const struct rpc_service health_service = {
	&grpc__health__v1__health__descriptor,
	health_methods,
	ARRAY_LEN(health_methods),
	&ended,
};
static const struct rpc_service echo_service = {
	&grpc__reflection__v1__server_reflection__descriptor,
	echo_methods,
	ARRAY_LEN(echo_methods),
	NULL,
};

static bool authorize(void *arg, struct rpc_call *c, const char *method)
{
	(void)arg;
	CHECK_STR(rpc_call_method(c), method);
	if (!rpc_call_metadata(c, "forbid"))
		return true;
	rpc_fail(c, ERR_DENIED, "not you");
	return false;
}

static void note_finished(void *arg, struct rpc_call *c, const char *method, int code,
	const char *message, int64_t elapsed_ns)
{
	(void)arg;
	(void)c;
	CHECK(elapsed_ns > 0);
	finished_code = code;
	snprintf(finished_method, sizeof(finished_method), "%s", method);
	snprintf(finished_message, sizeof(finished_message), "%s", message);
}

static void server_begin(const struct rpc_server_options *o)
{
	struct err e = ERR_INIT;

	CHECK_OK(rpc_server_new(loop, o, &server, &e));
	rpc_server_add(server, &health_service);
	if (!o->reflection_descriptors)
		rpc_server_add(server, &echo_service);
	rpc_server_start(server);
	listen_start();
}

static void client_begin(bool lazy)
{
	struct rpc_client_options o = { .dial = dial_path, .authority = "test", .lazy = lazy };

	client = rpc_client_new(loop, &o);
}

static void begin(void)
{
	struct rpc_server_options o = {
		.message_max = SERVER_MAX, .authorize = authorize, .finished = note_finished
	};

	loop = loop_new();
	server_begin(&o);
	client_begin(false);
}

static void note_stopped(void *arg)
{
	(void)arg;
	stopped++;
	loop_stop(loop);
}

static void server_end(void)
{
	listen_stop();
	stopped = 0;
	rpc_server_stop(server, 2000, note_stopped, NULL);
	while (!stopped)
		loop_run(loop);
	rpc_server_free(server);
	for (int i = 0; i < n_peers; i++)
		peer_unref(peers[i]);
	n_peers = 0;
}

static void end(void)
{
	rpc_client_free(client);
	server_end();
	loop_run(loop); /* until nothing is left */
	loop_free(loop);
}

/* One call; its code, with the message in e. */
static int check_with(const char *service, const char *const *metadata, int timeout_ms,
	int *ret_status, struct err *e)
{
	check_request rq = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
	struct rpc_unary_options o = {
		.method = HEALTH "Check",
		.request = &rq.base,
		.response = &grpc__health__v1__health_check_response__descriptor,
		.metadata = metadata,
		.timeout_ms = timeout_ms,
	};
	ProtobufCMessage *m = NULL;
	int r;

	rq.service = text(service);
	r = rpc_unary_sync(loop, client, &o, &m, e);
	if (r == 0) {
		if (ret_status)
			*ret_status = (int)((check_response *)m)->status;
		protobuf_c_message_free_unpacked(m, NULL);
	}
	return r;
}

static int check(const char *service, struct err *e)
{
	return check_with(service, NULL, TIMEOUT_MS, NULL, e);
}

static int call_method(const char *method, struct err *e)
{
	check_request rq = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
	struct rpc_unary_options o = { .method = method,
		.request = &rq.base,
		.response = &grpc__health__v1__health_check_response__descriptor,
		.timeout_ms = TIMEOUT_MS };
	ProtobufCMessage *m = NULL;
	int r = rpc_unary_sync(loop, client, &o, &m, e);

	if (r == 0)
		protobuf_c_message_free_unpacked(m, NULL);
	return r;
}

static void stop_loop(void *arg)
{
	(void)arg;
	loop_stop(loop);
}

/* Runs the loop for a while, or until something stops it. */
static void run_for(int ms)
{
	struct loop_timer *t = loop_timer_new(loop, stop_loop, NULL);

	loop_timer_set(t, ms * NS_PER_MS);
	loop_run(loop);
	loop_timer_free(t);
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

static int statuses[64], n_statuses;

static void note_status(void *arg, const struct rpc_status *st, const ProtobufCMessage *m)
{
	(void)arg;
	(void)m;
	statuses[n_statuses++] = st->code;
	loop_stop(loop);
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

/* ---- streams ---- */

static int n_messages, last_status, end_code = -1;
static char last_host[100];
static size_t n_files;
static int error_code;

static void on_message(void *arg, struct rpc_stream *s, const ProtobufCMessage *m)
{
	(void)arg;
	(void)s;
	CHECK_INT(end_code, -1);
	n_messages++;
	if (m->descriptor == &grpc__health__v1__health_check_response__descriptor) {
		last_status = (int)((const check_response *)m)->status;
	} else {
		const info_response *rs = (const info_response *)m;

		snprintf(last_host, sizeof(last_host), "%s", rs->valid_host);
		n_files = 0;
		error_code = 0;
		if (rs->message_response_case ==
			GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_FILE_DESCRIPTOR_RESPONSE)
			n_files = rs->file_descriptor_response->n_file_descriptor_proto;
		if (rs->message_response_case ==
			GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_LIST_SERVICES_RESPONSE)
			n_files = rs->list_services_response->n_service;
		if (rs->message_response_case ==
			GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ERROR_RESPONSE)
			error_code = rs->error_response->error_code;
	}
	loop_stop(loop);
}

static void on_ended(void *arg, struct rpc_stream *s, const struct rpc_status *st)
{
	(void)arg;
	(void)s;
	CHECK_INT(end_code, -1);
	end_code = st->code;
	loop_stop(loop);
}

static struct rpc_stream *open_stream(const char *method, const ProtobufCMessageDescriptor *d)
{
	struct rpc_stream_options o = {
		.method = method, .response = d, .message = on_message, .ended = on_ended
	};

	n_messages = 0;
	end_code = -1;
	return rpc_stream_open(client, &o);
}

static struct rpc_stream *open_watch(const char *service)
{
	check_request rq = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
	struct rpc_stream *s =
		open_stream(HEALTH "Watch", &grpc__health__v1__health_check_response__descriptor);

	rq.service = text(service);
	rpc_stream_send(s, &rq.base);
	rpc_stream_half_close(s);
	return s;
}

static void run_until_ended(void)
{
	while (end_code < 0)
		loop_run(loop);
}

static void test_server_stream(void)
{
	begin();
	open_watch("");
	run_until_ended();
	CHECK_INT(end_code, 0);
	CHECK_INT(n_messages, 100);
	CHECK_INT(last_status, 1 + 100 % 3);
	end();
}

static void test_stream_cancel(void)
{
	struct rpc_stream *s;

	begin();
	s = open_watch("open");
	while (n_messages < 1)
		loop_run(loop);
	rpc_stream_cancel(s);
	run_until_ended();
	CHECK_INT(end_code, ERR_CANCELLED);
	while (ended < 1)
		run_for(10);
	CHECK_INT(finished_code, ERR_CANCELLED);
	/* One that was never sent. */
	rpc_client_reconnect(client);
	s = open_watch("open");
	rpc_stream_cancel(s);
	CHECK_INT(end_code, -1);
	run_until_ended();
	CHECK_INT(end_code, ERR_CANCELLED);
	end();
}

static void test_stream_server_stops(void)
{
	begin();
	open_watch("open");
	while (n_messages < 1)
		loop_run(loop);
	listen_stop();
	rpc_server_stop(server, 60000, note_stopped, NULL);
	while (!stopped)
		loop_run(loop);
	run_until_ended();
	CHECK_INT(end_code, ERR_UNAVAILABLE);
	CHECK_INT(finished_code, ERR_UNAVAILABLE);
	rpc_client_free(client);
	rpc_server_free(server);
	loop_run(loop);
	loop_free(loop);
}

static void test_stream_client_freed(void)
{
	begin();
	open_watch("open");
	while (n_messages < 1)
		loop_run(loop);
	rpc_client_free(client);
	client = NULL;
	CHECK_INT(end_code, ERR_CANCELLED);
	end();
}

static void test_bidi(void)
{
	info_request rq = GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__INIT;
	struct rpc_stream *s;

	begin();
	s = open_stream(REFLECTION, &grpc__reflection__v1__server_reflection_response__descriptor);
	for (int i = 0; i < 200; i++) {
		char host[20];

		snprintf(host, sizeof(host), "host%d", i);
		rq.host = host;
		rpc_stream_send(s, &rq.base);
	}
	while (n_messages < 200)
		loop_run(loop);
	CHECK_STR(last_host, "host199");
	rpc_stream_half_close(s);
	run_until_ended();
	CHECK_INT(end_code, 0);
	end();
}

static void test_stream_flood(void)
{
	info_request rq = GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__INIT;
	struct rpc_stream *s;

	begin();
	s = open_stream(REFLECTION, &grpc__reflection__v1__server_reflection_response__descriptor);
	rq.host = xcalloc(1, SERVER_MAX / 2);
	memset(rq.host, 'x', SERVER_MAX / 2 - 1);
	for (int i = 0; i < 80; i++)
		rpc_stream_send(s, &rq.base);
	run_until_ended();
	CHECK_INT(end_code, ERR_EXHAUSTED);
	free(rq.host);
	end();
}

/* ---- reflection and health ---- */

static void ask_file(struct rpc_stream *s, const char *symbol)
{
	info_request rq = GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__INIT;

	rq.message_request_case =
		GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_SYMBOL;
	rq.file_containing_symbol = text(symbol);
	n_messages = 0;
	rpc_stream_send(s, &rq.base);
	while (n_messages < 1 && end_code < 0)
		loop_run(loop);
}

static void test_reflection(void)
{
	struct rpc_server_options o = { .reflection_descriptors = descriptors };
	info_request rq = GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__INIT;
	struct rpc_stream *s;

	o.reflection_descriptors_len = (size_t)(descriptors_end - descriptors);
	loop = loop_new();
	server_begin(&o);
	client_begin(false);
	for (int i = 0; i < 2; i++) {
		s = open_stream(i ? "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
				  : REFLECTION,
			&grpc__reflection__v1__server_reflection_response__descriptor);
		rq.message_request_case =
			GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_LIST_SERVICES;
		rq.list_services = text("*");
		rpc_stream_send(s, &rq.base);
		while (n_messages < 1)
			loop_run(loop);
		CHECK_INT(n_files, 3);
		ask_file(s, "spire.api.server.entry.v1.Entry");
		CHECK(n_files > 3);
		ask_file(s, "grpc.health.v1.HealthCheckResponse.ServingStatus");
		CHECK_INT(n_files, 1);
		ask_file(s, "grpc.health.v1.Health.Check");
		CHECK_INT(n_files, 1);
		ask_file(s, "no.such.Thing");
		CHECK_INT(error_code, ERR_NOT_FOUND);
		rpc_stream_half_close(s);
		run_until_ended();
		CHECK_INT(end_code, 0);
	}
	end();
}

static void test_health(void)
{
	struct rpc_server_options o = { 0 };
	struct rpc_health *h = rpc_health_new();
	struct err e = ERR_INIT;
	int st;

	loop = loop_new();
	CHECK_OK(rpc_server_new(loop, &o, &server, &e));
	rpc_health_add(h, server);
	rpc_server_start(server);
	listen_start();
	client_begin(false);
	rpc_health_set(h, "", RPC_NOT_SERVING);
	CHECK_OK(check_with("", NULL, TIMEOUT_MS, &st, &e));
	CHECK_INT(st, 2);
	CHECK_ERR(check("other", &e), ERR_NOT_FOUND);
	CHECK_STR(e.msg, "unknown service");
	open_watch("");
	while (n_messages < 1)
		loop_run(loop);
	CHECK_INT(last_status, 2);
	rpc_health_set(h, "", RPC_SERVING);
	rpc_health_set(h, "", RPC_SERVING);
	while (n_messages < 2)
		loop_run(loop);
	CHECK_INT(last_status, 1);
	end();
	rpc_health_free(h);
}

/* ---- wire format ---- */

static int wire_check(const ProtobufCMessageDescriptor *d, struct bytes v, struct err *e)
{
	return rpc_wire_check(d, v, 1 << 20, e);
}

static void test_wire(void)
{
	const ProtobufCMessageDescriptor *d = &grpc__health__v1__health_check_request__descriptor;
	struct err e = ERR_INIT;

	CHECK_OK(wire_check(d, bytes_of(NULL, 0), &e));
	CHECK_OK(wire_check(d, bytes_of("\x0a\x01x", 3), &e));
	CHECK_OK(wire_check(d, bytes_of("\x10\x01\x0a\x01x", 5), &e)); /* unknown field */
	CHECK_ERR(wire_check(d, bytes_of("\x0a\x01\x00", 3), &e), ERR_INVALID);
	CHECK_ERR(wire_check(d, bytes_of("\x0a\x02x", 3), &e), ERR_INTERNAL);
	CHECK_ERR(wire_check(d, bytes_of("\x0a", 1), &e), ERR_INTERNAL);
	CHECK_ERR(wire_check(d, bytes_of("\x00\x00", 2), &e), ERR_INTERNAL); /* field 0 */
	CHECK_ERR(wire_check(d, bytes_of("\x0b\x0c", 2), &e), ERR_INTERNAL); /* group */
	CHECK_ERR(wire_check(d, bytes_of("\xff\xff\xff\xff\xff\x01", 6), &e), ERR_INTERNAL);
	/* overlong, surrogate, beyond U+10FFFF, cut short */
	CHECK_ERR(wire_check(d, bytes_of("\x0a\x02\xc0\x80", 4), &e), ERR_INTERNAL);
	CHECK_ERR(wire_check(d, bytes_of("\x0a\x03\xed\xa0\x80", 5), &e), ERR_INTERNAL);
	CHECK_ERR(wire_check(d, bytes_of("\x0a\x04\xf4\x90\x80\x80", 6), &e), ERR_INTERNAL);
	CHECK_ERR(wire_check(d, bytes_of("\x0a\x02\xe2\x82", 4), &e), ERR_INTERNAL);
}

/* Nested google.protobuf.Value lists; protobuf-c alone would overflow the stack. */
static void test_wire_depth(void)
{
	AUTO_BUF struct buf b = BUF_INIT;
	struct err e = ERR_INIT;

	for (int i = 0; i < 60; i++) {
		AUTO_BUF struct buf list = BUF_INIT, value = BUF_INIT;
		size_t n = b.len;

		CHECK(n < 16000);
		buf_byte(&list, 0x0a); /* ListValue.values */
		buf_byte(&list, (uint8_t)(0x80 | (n & 0x7f)));
		buf_byte(&list, (uint8_t)(n >> 7));
		buf_bytes(&list, buf_view(&b));
		buf_byte(&value, 0x32); /* Value.list_value */
		buf_byte(&value, (uint8_t)(0x80 | (list.len & 0x7f)));
		buf_byte(&value, (uint8_t)(list.len >> 7));
		buf_bytes(&value, buf_view(&list));
		buf_reset(&b);
		buf_bytes(&b, buf_view(&value));
		if (i == 40)
			CHECK_OK(
				wire_check(&google__protobuf__value__descriptor, buf_view(&b), &e));
	}
	CHECK_ERR(
		wire_check(&google__protobuf__value__descriptor, buf_view(&b), &e), ERR_EXHAUSTED);
	CHECK_STR(e.msg, "message is nested too deep");
}

/* Two bytes on the wire are a whole struct in memory. */
static void test_wire_amplification(void)
{
	AUTO_BUF struct buf b = BUF_INIT;
	struct err e = ERR_INIT;
	ProtobufCMessage *m = NULL;

	for (int i = 0; i < 30000; i++)
		buf_append(&b, "\x0a\x00", 2);
	CHECK_ERR(rpc_unpack(&google__protobuf__list_value__descriptor, buf_view(&b), 64 << 10, &m,
			  &e),
		ERR_EXHAUSTED);
	CHECK(!m);
}

static void test_payload(void)
{
	check_request rq = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
	struct rpc_payload *a, *b;

	rq.service = text("a service with a longer name than fits inline");
	a = rpc_payload_new(&rq.base);
	b = rpc_payload_new(&rq.base);
	CHECK(rpc_payload_equal(a, b));
	CHECK_INT(rpc_payload_size(a), strlen(rq.service) + 2);
	rpc_payload_unref(b);
	rq.service = text("");
	b = rpc_payload_new(&rq.base);
	CHECK_INT(rpc_payload_size(b), 0);
	CHECK(!rpc_payload_equal(a, b));
	rpc_payload_unref(rpc_payload_ref(a));
	rpc_payload_unref(a);
	rpc_payload_unref(b);
}

TEST_MAIN(TEST(test_unary), TEST(test_failures), TEST(test_details), TEST(test_deadline),
	TEST(test_sizes), TEST(test_bad_strings), TEST(test_client_freed), TEST(test_server_stops),
	TEST(test_reconnect), TEST(test_goaway), TEST(test_peer_ended), TEST(test_lazy),
	TEST(test_many_calls), TEST(test_server_stream), TEST(test_stream_cancel),
	TEST(test_stream_server_stops), TEST(test_stream_client_freed), TEST(test_bidi),
	TEST(test_stream_flood), TEST(test_reflection), TEST(test_health), TEST(test_wire),
	TEST(test_wire_depth), TEST(test_wire_amplification), TEST(test_payload))

/* Streams, reflection and health, over real Unix sockets. */
#include "tests/unit/rpc_pair.inc"

#include "lib/descriptors.h"
#include "lib/rpc_health.h"

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

/* A connection on which a stream's message came was a good one: the next loss is the first, and
 * the pauses between attempts do not add up to more than a test may take. */
static void test_stream_lost_again_and_again(void)
{
	begin();
	for (int i = 0; i < 12; i++) {
		open_watch("open");
		while (n_messages < 1)
			loop_run(loop);
		shutdown(accepted_fd, SHUT_RDWR);
		run_until_ended();
		CHECK_INT(end_code, ERR_UNAVAILABLE);
	}
	CHECK_INT(n_peers, 12);
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

TEST_MAIN(TEST(test_server_stream), TEST(test_stream_cancel), TEST(test_stream_server_stops),
	TEST(test_stream_lost_again_and_again), TEST(test_stream_client_freed), TEST(test_bidi),
	TEST(test_stream_flood), TEST(test_reflection), TEST(test_health))

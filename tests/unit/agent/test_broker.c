/* The SPIFFE Broker API, behind mutual TLS: who may come, with which references, and what is given.
 * Covers: agent/api_broker.c, agent/workload_reference.c. */
#include "agent/broker.h"

#include <signal.h>
#include <sys/wait.h>

#include "agent/workload_k8s.h"
#include "agent/workload_reference.h"
#include "google/rpc/error_details.pb-c.h"
#include "spiffe/broker/broker.pb-c.h"
#include "tests/unit/agent/api_rig.inc"

#define SERVICE "/spiffe.broker.API/"
#define ME "spiffe://" TD "/broker"

static struct rig rig;
static struct broker *broker;
static struct tls_ctx *server_tls, *client_tls;
static struct rpc_client *client;

static struct tls_ctx *context(const char *id, bool server)
{
	struct x509_chain chain = { .n = 0 };
	struct tls_options o = { .server = server,
		.chain = &chain,
		.client_cert = TLS_CLIENT_CERT_REQUIRED,
		.alpn = "h2" };
	struct buf der = BUF_INIT;
	struct tls_ctx *ctx = NULL;
	struct x509_cert *c;
	struct err e;

	CHECK_OK(key_generate(KEY_EC_P256, &o.key, &e));
	make_cert(&rig, id, false, o.key, &der);
	CHECK_OK(x509_parse(buf_view(&der), &c, &e));
	x509_chain_add(&chain, c);
	CHECK_OK(tls_ctx_new(&o, &ctx, &e));
	x509_unref(c);
	x509_chain_deinit(&chain);
	key_unref(o.key);
	buf_deinit(&der);
	return ctx;
}

static struct tls_ctx *serve(void *arg)
{
	(void)arg;
	return server_tls ? tls_ctx_ref(server_tls) : NULL;
}

static int any(void *arg, const struct x509_chain *peer, struct err *e)
{
	(void)arg;
	(void)peer;
	(void)e;
	return 0;
}

static int dial_broker(void *arg, struct dial_options *d, struct err *e)
{
	(void)arg;
	(void)e;
	d->tcp_host = "127.0.0.1";
	d->tcp_port = broker_port(broker);
	d->tls = client_tls;
	d->verify = any;
	d->timeout_ms = 5000;
	return 0;
}

static void add_type(struct broker_peer *b, const char *url, bool over_tcp)
{
	b->types = xreallocarray(b->types, b->n_types + 1, sizeof(*b->types));
	b->types[b->n_types++] =
		(struct broker_reference){ .type_url = xstrdup(url), .over_tcp = over_tcp };
}

static void setup(const char *id)
{
	struct broker_options o = { .api = &rig.api, .tls = serve };
	struct rpc_client_options co = { .dial = dial_broker };
	struct err e;

	rig_init(&rig);
	rig.o.has_broker = true;
	rig.o.broker_bind_address = xstrdup("127.0.0.1:0");
	rig.o.broker_host = xstrdup("127.0.0.1");
	rig.o.brokers = xcalloc(1, sizeof(*rig.o.brokers));
	rig.o.n_brokers = 1;
	rig.o.brokers[0].id = xstrdup(ME);
	add_type(&rig.o.brokers[0], REFERENCE_PID, true);
	add_type(&rig.o.brokers[0], REFERENCE_OBJECT, true);
	add_type(&rig.o.brokers[0], "type.googleapis.com/x.Local", false);
	server_tls = context("spiffe://" TD "/spire/agent/x", true);
	client_tls = context(id, false);
	CHECK_OK(broker_open(&o, &broker, &e));
	client = rpc_client_new(rig.loop, &co);
}

static void stop(void *arg)
{
	loop_stop(arg);
}

static void teardown(void)
{
	rpc_client_free(client);
	broker_close(broker, 100, stop, rig.loop);
	loop_run(rig.loop);
	broker_free(broker);
	tls_ctx_unref(client_tls);
	if (server_tls)
		tls_ctx_unref(server_tls);
	for (size_t i = 0; i < rig.o.brokers[0].n_types; i++)
		free(rig.o.brokers[0].types[i].type_url);
	free(rig.o.brokers[0].types);
	free(rig.o.brokers[0].id);
	free(rig.o.brokers);
	free(rig.o.broker_bind_address);
	free(rig.o.broker_host);
	rig_deinit(&rig);
}

/* ---- questions ---- */

static struct seen {
	int messages, stop_at;
	size_t svids, bundles;
	char first[200];
	bool ended;
	int code;
	char text[400], reason[100];
} seen;

static void on_message(void *arg, struct rpc_stream *s, const ProtobufCMessage *m)
{
	(void)arg;
	(void)s;
	seen.messages++;
	if (m->descriptor == &spiffe__broker__subscribe_to_x509_svidresponse__descriptor) {
		const Spiffe__Broker__SubscribeToX509SVIDResponse *rs = (const void *)m;

		seen.svids = rs->n_svids;
		if (rs->n_svids) {
			snprintf(seen.first, sizeof(seen.first), "%s", rs->svids[0]->spiffe_id);
			CHECK(rs->svids[0]->x509_svid.len > 100);
			CHECK(rs->svids[0]->x509_svid_key.len > 50);
			CHECK(rs->svids[0]->bundle.len > 100);
		}
	} else if (m->descriptor ==
		   &spiffe__broker__subscribe_to_x509_bundles_response__descriptor) {
		const Spiffe__Broker__SubscribeToX509BundlesResponse *rs = (const void *)m;

		seen.bundles = rs->n_bundles;
		CHECK_STR(rs->bundles[0]->key, "spiffe://" TD);
		CHECK(rs->bundles[0]->value.len > 100);
	} else {
		const Spiffe__Broker__SubscribeToJWTBundlesResponse *rs = (const void *)m;

		seen.bundles = rs->n_bundles;
		CHECK(rs->bundles[0]->value.len > 20);
	}
	if (seen.messages == seen.stop_at)
		loop_stop(rig.loop);
}

static void take_status(const struct rpc_status *st)
{
	Google__Rpc__ErrorInfo *info =
		(void *)rpc_status_detail(st, &google__rpc__error_info__descriptor);

	seen.ended = true;
	seen.code = st->code;
	snprintf(seen.text, sizeof(seen.text), "%s", st->message);
	if (info) {
		CHECK_STR(info->domain, "spiffe.io");
		snprintf(seen.reason, sizeof(seen.reason), "%s", info->reason);
		protobuf_c_message_free_unpacked(&info->base, NULL);
	}
	loop_stop(rig.loop);
}

static void on_ended(void *arg, struct rpc_stream *s, const struct rpc_status *st)
{
	(void)arg;
	(void)s;
	take_status(st);
}

static const char *const header[] = { "broker.spiffe.io", "true", NULL };

static struct rpc_stream *ask(const char *method, const ProtobufCMessageDescriptor *d,
	const char *const *metadata, const char *type_url, struct bytes value)
{
	struct rpc_stream_options o = { .method = method,
		.response = d,
		.metadata = metadata,
		.fail_fast = true,
		.message = on_message,
		.ended = on_ended };
	Spiffe__Broker__SubscribeToX509SVIDRequest rq =
		SPIFFE__BROKER__SUBSCRIBE_TO_X509_SVIDREQUEST__INIT; /* all look alike */
	Spiffe__Broker__WorkloadReference ref = SPIFFE__BROKER__WORKLOAD_REFERENCE__INIT;
	Google__Protobuf__Any any_ref = GOOGLE__PROTOBUF__ANY__INIT;
	struct rpc_stream *s;

	seen = (struct seen){ 0 };
	if (type_url) {
		any_ref.type_url = (char *)(uintptr_t)type_url;
		any_ref.value.data = (uint8_t *)(uintptr_t)value.p;
		any_ref.value.len = value.n;
		ref.reference = &any_ref;
		rq.reference = &ref;
	}
	s = rpc_stream_open(client, &o);
	rpc_stream_send(s, &rq.base);
	rpc_stream_half_close(s);
	return s;
}

static struct rpc_stream *ask_x509(const char *type_url, struct bytes value)
{
	return ask(SERVICE "SubscribeToX509SVID",
		&spiffe__broker__subscribe_to_x509_svidresponse__descriptor, header, type_url,
		value);
}

static struct bytes pid_reference(int pid)
{
	static uint8_t packed[16];
	Spiffe__Broker__WorkloadPIDReference m = SPIFFE__BROKER__WORKLOAD_PIDREFERENCE__INIT;

	m.pid = pid;
	return bytes_of(packed, spiffe__broker__workload_pidreference__pack(&m, packed));
}

static void wait_for(int messages)
{
	seen.stop_at = messages;
	if (seen.messages < messages && !seen.ended)
		loop_run(rig.loop);
	CHECK_STR(seen.text, "");
	CHECK_INT(seen.messages, messages);
}

static void check_refused(int code, const char *text)
{
	if (!seen.ended)
		loop_run(rig.loop);
	CHECK_STR(seen.text, text);
	CHECK_INT(seen.code, code);
}

static void end(struct rpc_stream *s)
{
	rpc_stream_cancel(s);
	while (!seen.ended)
		loop_run(rig.loop);
}

/* ---- who ---- */

static void test_strangers(void)
{
	setup("spiffe://" TD "/other");
	ask_x509(REFERENCE_PID, pid_reference(getpid()));
	if (!seen.ended)
		loop_run(rig.loop);
	CHECK_INT(seen.code, ERR_UNAVAILABLE);
	teardown();
	setup("spiffe://elsewhere.test/broker");
	ask_x509(REFERENCE_PID, pid_reference(getpid()));
	if (!seen.ended)
		loop_run(rig.loop);
	CHECK_INT(seen.code, ERR_UNAVAILABLE);
	teardown();
}

/* The agent has no SVID yet. */
static void test_no_certificate(void)
{
	setup(ME);
	tls_ctx_unref(server_tls);
	server_tls = NULL;
	ask_x509(REFERENCE_PID, pid_reference(getpid()));
	if (!seen.ended)
		loop_run(rig.loop);
	CHECK_INT(seen.code, ERR_UNAVAILABLE);
	teardown();
}

static void test_header(void)
{
	static const char *const wrong[] = { "broker.spiffe.io", "yes", NULL };
	static const char *const workload[] = { "workload.spiffe.io", "true", NULL };
	const char *const *all[] = { NULL, wrong, workload };

	setup(ME);
	for (size_t i = 0; i < ARRAY_LEN(all); i++) {
		ask(SERVICE "SubscribeToX509SVID",
			&spiffe__broker__subscribe_to_x509_svidresponse__descriptor, all[i],
			REFERENCE_PID, pid_reference(getpid()));
		check_refused(ERR_INVALID, "security header missing from request");
	}
	teardown();
}

/* ---- references ---- */

static void test_references(void)
{
	setup(ME);
	ask_x509(NULL, bytes_str(""));
	check_refused(ERR_INVALID, "workload reference must be provided");
	CHECK_STR(seen.reason, "WORKLOAD_REFERENCE_INVALID");
	ask_x509("", bytes_str(""));
	check_refused(ERR_INVALID, "workload reference must be provided");
	ask_x509("type.googleapis.com/x.Y", bytes_str(""));
	check_refused(ERR_DENIED, "broker \"" ME "\" is not allowed to use reference type "
				  "\"type.googleapis.com/x.Y\"");
	ask_x509("type.googleapis.com/x.Local", bytes_str(""));
	check_refused(ERR_DENIED, "reference type \"type.googleapis.com/x.Local\" is not allowed "
				  "over TCP for broker \"" ME "\"");
	ask_x509(REFERENCE_OBJECT, bytes_str(""));
	check_refused(ERR_UNIMPLEMENTED, "no workload attestor handled reference");
	ask_x509(REFERENCE_PID, bytes_of("\xff\xff", 2));
	check_refused(ERR_UNIMPLEMENTED, "no workload attestor handled reference");
	ask_x509(REFERENCE_PID, bytes_str(""));
	check_refused(ERR_INTERNAL,
		"workload attestor \"unix\" failed: rpc error: code = Internal desc = "
		"workloadattestor(unix): failed to get process: invalid pid 0");
	ask_x509(REFERENCE_PID, pid_reference(INT32_MAX));
	check_refused(ERR_INTERNAL,
		"workload attestor \"unix\" failed: rpc error: code = Internal desc = "
		"workloadattestor(unix): failed to get process: process does not exist");
	rig.o.brokers[0].types[1].over_tcp = true;
	free(rig.o.brokers[0].types[1].type_url);
	rig.o.brokers[0].types[1].type_url = xstrdup("*");
	ask_x509("type.googleapis.com/x.Y", bytes_str(""));
	check_refused(ERR_UNIMPLEMENTED, "no workload attestor handled reference");
	teardown();
}

/* With the attestor for it: a pid may go on without what the pod would add. */
static void test_kubernetes(void)
{
	static char id[] = ME;
	static struct k8s_broker me[] = { { .id = id } };
	Spiffe__Broker__KubernetesObjectReference m =
		SPIFFE__BROKER__KUBERNETES_OBJECT_REFERENCE__INIT;
	uint8_t packed[64];
	struct rpc_stream *s;
	struct err e;

	setup(ME);
	rig.o.k8s = (struct k8s_options){ .on = true,
		.kubelet_read_only_port = 1,
		.max_poll_attempts = 1,
		.poll_retry_interval_ns = NS_PER_SEC,
		.reload_interval_ns = NS_PER_SEC,
		.use_new_container_locator = true };
	CHECK_OK(workload_add(rig.api.workload, &workload_k8s, &rig.o, &e));
	put_entry(&rig, "e1", "work", own_uid());
	s = ask_x509(REFERENCE_PID, pid_reference(getpid()));
	wait_for(1);
	CHECK_INT(seen.svids, 1);
	end(s);
	ask_x509(REFERENCE_OBJECT, bytes_str(""));
	check_refused(ERR_INTERNAL,
		"workload attestor \"k8s\" failed: rpc error: code = Internal desc = "
		"workloadattestor(k8s): broker configuration missing");
	rig.o.k8s.has_broker = true;
	ask_x509(REFERENCE_OBJECT, bytes_of("\xff", 1));
	check_refused(ERR_DENIED,
		"workload attestor \"k8s\" failed: rpc error: code = PermissionDenied desc = "
		"workloadattestor(k8s): broker \"" ME "\" is not configured");
	rig.o.k8s.brokers = me;
	rig.o.k8s.n_brokers = 1;
	rig.o.k8s.broker_access_policy = (char[]){ "permissive" };
	m.uid = (char[]){ "u1" };
	ask_x509(REFERENCE_OBJECT,
		bytes_of(packed, spiffe__broker__kubernetes_object_reference__pack(&m, packed)));
	check_refused(ERR_INVALID,
		"workload attestor \"k8s\" failed: rpc error: code = InvalidArgument desc = "
		"workloadattestor(k8s): object reference is missing type");
	rig.o.brokers[0].types[2].over_tcp = true;
	ask_x509("type.googleapis.com/x.Local", bytes_str(""));
	check_refused(ERR_INVALID,
		"workload attestor \"k8s\" failed: rpc error: code = InvalidArgument desc = "
		"workloadattestor(k8s): unsupported reference type: type.googleapis.com/x.Local");
	s = ask_x509(REFERENCE_PID, pid_reference(getpid()));
	wait_for(1);
	CHECK_INT(seen.svids, 1);
	end(s);
	teardown();
}

/* ---- what is given ---- */

static void test_x509(void)
{
	struct rpc_stream *s;

	setup(ME);
	s = ask_x509(REFERENCE_PID, pid_reference(getpid()));
	wait_for(1);
	CHECK_INT(seen.svids, 0);
	put_entry(&rig, "e1", "work", own_uid());
	wait_for(2);
	CHECK_INT(seen.svids, 1);
	CHECK_STR(seen.first, "spiffe://" TD "/work");
	end(s);
	s = ask(SERVICE "SubscribeToX509Bundles",
		&spiffe__broker__subscribe_to_x509_bundles_response__descriptor, header,
		REFERENCE_PID, pid_reference(getpid()));
	wait_for(1);
	CHECK_INT(seen.bundles, 1);
	put_bundle(&rig, true);
	wait_for(2);
	end(s);
	s = ask(SERVICE "SubscribeToJWTBundles",
		&spiffe__broker__subscribe_to_jwtbundles_response__descriptor, header,
		REFERENCE_PID, pid_reference(getpid()));
	wait_for(1);
	CHECK_INT(seen.bundles, 1);
	end(s);
	teardown();
}

/* 4.9: with the process ends what is sent for it. */
static void test_ends_with_process(void)
{
	pid_t pid = fork();

	if (pid == 0) {
		pause();
		_exit(0);
	}
	setup(ME);
	put_entry(&rig, "e1", "work", own_uid());
	ask_x509(REFERENCE_PID, pid_reference(pid));
	wait_for(1);
	CHECK_INT(seen.svids, 1);
	kill(pid, SIGKILL);
	check_refused(ERR_NOT_FOUND, "the workload has ended");
	CHECK_STR(seen.reason, "WORKLOAD_NOT_FOUND");
	waitpid(pid, NULL, 0);
	teardown();
}

/* ---- JWT-SVIDs ---- */

static size_t n_tokens;
static char token_id[200];

static void on_tokens(void *arg, const struct rpc_status *st, const ProtobufCMessage *m)
{
	const Spiffe__Broker__FetchJWTSVIDResponse *rs = (const void *)m;

	(void)arg;
	n_tokens = rs ? rs->n_svids : 0;
	if (n_tokens) {
		snprintf(token_id, sizeof(token_id), "%s", rs->svids[0]->spiffe_id);
		CHECK(strlen(rs->svids[0]->svid) > 100);
	}
	take_status(st);
}

static void ask_jwt(const char *audience, const char *id, int pid)
{
	Spiffe__Broker__FetchJWTSVIDRequest rq = SPIFFE__BROKER__FETCH_JWTSVIDREQUEST__INIT;
	Spiffe__Broker__WorkloadReference ref = SPIFFE__BROKER__WORKLOAD_REFERENCE__INIT;
	Google__Protobuf__Any any_ref = GOOGLE__PROTOBUF__ANY__INIT;
	struct bytes value = pid_reference(pid);
	char *aud = (char *)(uintptr_t)audience;
	struct rpc_unary_options o = { .method = SERVICE "FetchJWTSVID",
		.request = &rq.base,
		.response = &spiffe__broker__fetch_jwtsvidresponse__descriptor,
		.metadata = header,
		.timeout_ms = 10000 };

	any_ref.type_url = (char[]){ REFERENCE_PID };
	any_ref.value.data = (uint8_t *)(uintptr_t)value.p;
	any_ref.value.len = value.n;
	ref.reference = &any_ref;
	rq.reference = &ref;
	rq.audience = &aud;
	rq.n_audience = audience != NULL;
	rq.spiffe_id = (char *)(uintptr_t)id;
	seen = (struct seen){ 0 };
	n_tokens = 0;
	rpc_unary(client, &o, on_tokens, NULL);
	loop_run(rig.loop);
}

static void test_jwt(void)
{
	setup(ME);
	ask_jwt(NULL, "", getpid());
	check_refused(ERR_INVALID, "audience must be specified");
	ask_jwt("a", "", getpid());
	check_refused(ERR_DENIED, "no identity issued");
	CHECK_STR(seen.reason, "WORKLOAD_NOT_ENTITLED");
	ask_jwt("a", "nonsense", getpid());
	CHECK_INT(seen.code, ERR_INVALID);
	put_entry(&rig, "e1", "one", own_uid());
	put_entry(&rig, "e2", "two", own_uid());
	ask_jwt("a", "", getpid());
	CHECK_STR(seen.text, "");
	CHECK_INT(n_tokens, 2);
	ask_jwt("a", "spiffe://" TD "/two", getpid());
	CHECK_INT(n_tokens, 1);
	CHECK_STR(token_id, "spiffe://" TD "/two");
	ask_jwt("a", "spiffe://" TD "/three", getpid());
	check_refused(ERR_DENIED, "no identity issued");
	teardown();
}

TEST_MAIN(TEST(test_strangers), TEST(test_no_certificate), TEST(test_header), TEST(test_references),
	TEST(test_kubernetes), TEST(test_x509), TEST(test_ends_with_process), TEST(test_jwt))

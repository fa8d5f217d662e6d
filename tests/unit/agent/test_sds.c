#include "agent/sds.h"
#include "envoy/extensions/transport_sockets/tls/v3/secret.pb-c.h"
#include "envoy/extensions/transport_sockets/tls/v3/tls_spiffe_validator_config.pb-c.h"
#include "tests/unit/agent/api_rig.inc"

/* Envoy's SDS: names, versions, nonces, refusals, and who shares what. */

#define SERVICE "/envoy.service.secret.v3.SecretDiscoveryService/"
#define TYPE "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

typedef Envoy__Service__Discovery__V3__DiscoveryRequest request;
typedef Envoy__Service__Discovery__V3__DiscoveryResponse response;
typedef Envoy__Service__Discovery__V3__DeltaDiscoveryRequest delta_request;
typedef Envoy__Service__Discovery__V3__DeltaDiscoveryResponse delta_response;
typedef Envoy__Extensions__TransportSockets__Tls__V3__Secret secret;

struct seen {
	struct rig *r;
	int messages, stop_at;
	bool ended;
	int code;
	char text[300];
	ProtobufCMessage *last;
};

static void on_message(void *arg, struct rpc_stream *s, const ProtobufCMessage *m)
{
	struct seen *x = arg;
	size_t n = protobuf_c_message_get_packed_size(m);
	uint8_t *packed = xmalloc(n + 1);

	(void)s;
	x->messages++;
	if (x->last)
		protobuf_c_message_free_unpacked(x->last, NULL);
	protobuf_c_message_pack(m, packed);
	x->last = protobuf_c_message_unpack(m->descriptor, NULL, n, packed);
	free(packed);
	if (x->messages == x->stop_at)
		loop_stop(x->r->loop);
}

static void on_ended(void *arg, struct rpc_stream *s, const struct rpc_status *st)
{
	struct seen *x = arg;

	(void)s;
	x->ended = true;
	x->code = st->code;
	snprintf(x->text, sizeof(x->text), "%s", st->message);
	loop_stop(x->r->loop);
}

static struct rpc_stream *open_stream(
	struct rig *r, struct seen *x, const char *method, const ProtobufCMessageDescriptor *d)
{
	struct rpc_stream_options o = {
		.method = method, .response = d, .message = on_message, .ended = on_ended, .arg = x
	};

	*x = (struct seen){ .r = r };
	return rpc_stream_open(r->client, &o);
}

static struct rpc_stream *open_sds(struct rig *r, struct seen *x)
{
	return open_stream(r, x, SERVICE "StreamSecrets",
		&envoy__service__discovery__v3__discovery_response__descriptor);
}

static void seen_deinit(struct seen *x)
{
	if (x->last)
		protobuf_c_message_free_unpacked(x->last, NULL);
}

/* Lets the loop run until so many messages came, or the stream ended. */
static const response *wait_for(struct seen *x, int messages)
{
	x->stop_at = messages;
	if (x->messages < messages && !x->ended)
		loop_run(x->r->loop);
	CHECK_INT(x->messages, messages);
	return (const response *)x->last;
}

static void wake(void *arg)
{
	loop_stop(((struct rig *)arg)->loop);
}

/* Time enough for an answer that must not come. */
static void pause_for(struct rig *r, int ms)
{
	struct loop_timer *t = loop_timer_new(r->loop, wake, r);

	loop_timer_set(t, (int64_t)ms * 1000000);
	loop_run(r->loop);
	loop_timer_free(t);
}

static void ask(struct rpc_stream *s, const char *name, const char *nonce, const char *version)
{
	request rq = ENVOY__SERVICE__DISCOVERY__V3__DISCOVERY_REQUEST__INIT;
	char *names[1] = { (char *)(uintptr_t)name };

	rq.type_url = (char *)(uintptr_t)TYPE;
	rq.n_resource_names = name != NULL;
	rq.resource_names = names;
	rq.response_nonce = (char *)(uintptr_t)nonce;
	rq.version_info = (char *)(uintptr_t)version;
	rpc_stream_send(s, &rq.base);
}

static secret *secret_of(const Google__Protobuf__Any *any)
{
	CHECK_STR(any->type_url, TYPE);
	return envoy__extensions__transport_sockets__tls__v3__secret__unpack(
		NULL, any->value.len, any->value.data);
}

static char *text_of(const Envoy__Config__Core__V3__DataSource *d)
{
	return xstrndup((const char *)d->inline_bytes.data, d->inline_bytes.len);
}

static void check_identity(const Google__Protobuf__Any *any, const char *name)
{
	secret *s = secret_of(any);
	char *chain, *key;

	CHECK_STR(s->name, name);
	CHECK_INT(s->type_case,
		ENVOY__EXTENSIONS__TRANSPORT_SOCKETS__TLS__V3__SECRET__TYPE_TLS_CERTIFICATE);
	chain = text_of(s->tls_certificate->certificate_chain);
	key = text_of(s->tls_certificate->private_key);
	CHECK(strncmp(chain, "-----BEGIN CERTIFICATE-----\n", 28) == 0);
	CHECK(strncmp(key, "-----BEGIN PRIVATE KEY-----\n", 28) == 0);
	free(chain);
	free(key);
	envoy__extensions__transport_sockets__tls__v3__secret__free_unpacked(s, NULL);
}

static void check_bundle(const Google__Protobuf__Any *any, const char *name, bool plain)
{
	typedef Envoy__Extensions__TransportSockets__Tls__V3__SPIFFECertValidatorConfig config;
	secret *s = secret_of(any);
	Envoy__Config__Core__V3__TypedExtensionConfig *typed;
	config *c;

	CHECK_STR(s->name, name);
	CHECK_INT(s->type_case,
		ENVOY__EXTENSIONS__TRANSPORT_SOCKETS__TLS__V3__SECRET__TYPE_VALIDATION_CONTEXT);
	typed = s->validation_context->custom_validator_config;
	CHECK((s->validation_context->trusted_ca != NULL) == plain);
	CHECK((typed == NULL) == plain);
	if (typed) {
		CHECK_STR(typed->name, "envoy.tls.cert_validator.spiffe");
		c = envoy__extensions__transport_sockets__tls__v3__spiffecert_validator_config__unpack(
			NULL, typed->typed_config->value.len, typed->typed_config->value.data);
		CHECK_INT(c->n_trust_domains, 1);
		CHECK_STR(c->trust_domains[0]->name, TD);
		CHECK(c->trust_domains[0]->trust_bundle->inline_bytes.len > 100);
		envoy__extensions__transport_sockets__tls__v3__spiffecert_validator_config__free_unpacked(
			c, NULL);
	}
	envoy__extensions__transport_sockets__tls__v3__secret__free_unpacked(s, NULL);
}

static void test_names(void)
{
	static const char *const names[] = { "default", "spiffe://" TD "/web", "ROOTCA",
		"spiffe://" TD, "ALL" };
	struct rig r;

	rig_init(&r);
	put_entry(&r, "1", "web", own_uid());
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		struct seen x;
		struct rpc_stream *s = open_sds(&r, &x);
		const response *rs;

		ask(s, names[i], "", "");
		rs = wait_for(&x, 1);
		CHECK_INT(rs->n_resources, 1);
		CHECK_STR(rs->type_url, TYPE);
		CHECK_INT(strlen(rs->nonce), 8);
		CHECK(rs->version_info[0] != '\0');
		if (i < 2)
			check_identity(rs->resources[0], names[i]);
		else
			check_bundle(rs->resources[0], names[i], false);
		rpc_stream_half_close(s);
		if (!x.ended)
			loop_run(r.loop);
		CHECK_INT(x.code, 0);
		seen_deinit(&x);
	}
	rig_deinit(&r);
}

static void test_everything(void)
{
	struct rig r;
	struct seen x;
	struct rpc_stream *s;
	const response *rs;

	rig_init(&r);
	put_entry(&r, "1", "web", own_uid());
	put_entry(&r, "2", "db", own_uid());
	s = open_sds(&r, &x);
	ask(s, NULL, "", "");
	rs = wait_for(&x, 1);
	CHECK_INT(rs->n_resources, 3);
	check_bundle(rs->resources[0], "spiffe://" TD, false);
	check_identity(rs->resources[1], "spiffe://" TD "/web");
	check_identity(rs->resources[2], "spiffe://" TD "/db");
	rpc_stream_cancel(s);
	loop_run(r.loop);
	seen_deinit(&x);
	rig_deinit(&r);
}

static void test_not_authorized(void)
{
	struct rig r;
	struct seen x;

	rig_init(&r);
	put_entry(&r, "1", "web", "unix:uid:77777");
	ask(open_sds(&r, &x), "default", "", "");
	loop_run(r.loop);
	CHECK_INT(x.code, ERR_INVALID);
	CHECK_STR(x.text, "workload is not authorized for the requested identities [\"default\"]");
	CHECK_INT(x.messages, 0);
	/* The bundle is for whoever could be attested. */
	struct rpc_stream *s = open_sds(&r, &x);
	ask(s, "ROOTCA", "", "");
	check_bundle(wait_for(&x, 1)->resources[0], "ROOTCA", false);
	rpc_stream_cancel(s);
	loop_run(r.loop);
	seen_deinit(&x);
	rig_deinit(&r);
}

static void test_nonces(void)
{
	Google__Rpc__Status why = GOOGLE__RPC__STATUS__INIT;
	request rq = ENVOY__SERVICE__DISCOVERY__V3__DISCOVERY_REQUEST__INIT;
	char *root[] = { (char *)(uintptr_t) "ROOTCA" };
	struct rig r;
	struct seen x;
	struct rpc_stream *s;
	char nonce[9];

	rig_init(&r);
	put_entry(&r, "1", "web", own_uid());
	s = open_sds(&r, &x);
	ask(s, "ROOTCA", "", "");
	snprintf(nonce, sizeof(nonce), "%s", wait_for(&x, 1)->nonce);
	ask(s, "ROOTCA", nonce, ((response *)x.last)->version_info); /* ACK */
	ask(s, "default", "00000000", "1");                          /* of no response */
	why.code = 3;
	why.message = (char *)(uintptr_t) "no good";
	rq.response_nonce = nonce;
	rq.error_detail = &why;
	rq.n_resource_names = 1;
	rq.resource_names = root;
	rpc_stream_send(s, &rq.base); /* NACK */
	pause_for(&r, 200);
	CHECK_INT(x.messages, 1);
	/* The next right one counts, and new content is sent with another nonce. */
	put_bundle(&r, true);
	CHECK(strcmp(wait_for(&x, 2)->nonce, nonce) != 0);
	snprintf(nonce, sizeof(nonce), "%s", ((response *)x.last)->nonce);
	ask(s, "default", nonce, ((response *)x.last)->version_info);
	check_identity(wait_for(&x, 3)->resources[0], "default");
	/* Nothing that the names stand for changed. */
	put_entry(&r, "2", "other", "unix:uid:77777");
	put_bundle(&r, false);
	pause_for(&r, 200);
	CHECK_INT(x.messages, 3);
	drop_entry(&r, "1");
	while (!x.ended)
		loop_run(r.loop);
	CHECK_INT(x.code, ERR_INVALID);
	seen_deinit(&x);
	rig_deinit(&r);
}

static void test_shared(void)
{
	enum { STREAMS = 50 };
	struct rig r;
	struct seen x[STREAMS];
	struct rpc_stream *s[STREAMS];

	rig_init(&r);
	put_entry(&r, "1", "web", own_uid());
	for (size_t i = 0; i < STREAMS; i++) {
		s[i] = open_sds(&r, &x[i]);
		ask(s[i], "default", "", "");
		wait_for(&x[i], 1);
		CHECK_STR(((response *)x[i].last)->nonce, ((response *)x[0].last)->nonce);
	}
	for (size_t i = 0; i < STREAMS; i++) {
		rpc_stream_cancel(s[i]);
		while (!x[i].ended)
			loop_run(r.loop);
		seen_deinit(&x[i]);
	}
	rig_deinit(&r);
}

static void test_plain(void)
{
	struct agent_options o = { 0 };
	Envoy__Config__Core__V3__Node n = ENVOY__CONFIG__CORE__V3__NODE__INIT;
	Envoy__Config__Core__V3__BuildVersion b = ENVOY__CONFIG__CORE__V3__BUILD_VERSION__INIT;
	Envoy__Type__V3__SemanticVersion v = ENVOY__TYPE__V3__SEMANTIC_VERSION__INIT;
	Google__Protobuf__Struct m = GOOGLE__PROTOBUF__STRUCT__INIT;
	Google__Protobuf__Struct__FieldsEntry f = GOOGLE__PROTOBUF__STRUCT__FIELDS_ENTRY__INIT;
	Google__Protobuf__Struct__FieldsEntry *fp[] = { &f };
	Google__Protobuf__Value value = GOOGLE__PROTOBUF__VALUE__INIT;
	static char t[] = "T", what[] = "what", key[] = "disable_spiffe_cert_validation";

	CHECK(!sds_wants_plain(&o, NULL));
	CHECK(!sds_wants_plain(&o, &n));
	n.user_agent_version_type_case =
		ENVOY__CONFIG__CORE__V3__NODE__USER_AGENT_VERSION_TYPE_USER_AGENT_BUILD_VERSION;
	n.user_agent_build_version = &b;
	b.version = &v;
	v.major_number = 1;
	v.minor_number = 17;
	CHECK(sds_wants_plain(&o, &n));
	v.minor_number = 18;
	CHECK(!sds_wants_plain(&o, &n));
	n.metadata = &m;
	m.n_fields = 1;
	m.fields = fp;
	f.key = key;
	f.value = &value;
	value.kind_case = GOOGLE__PROTOBUF__VALUE__KIND_STRING_VALUE;
	value.string_value = what;
	CHECK(!sds_wants_plain(&o, &n));
	value.string_value = t;
	CHECK(sds_wants_plain(&o, &n));
	o.sds_plain_ca = true;
	CHECK(sds_wants_plain(&o, NULL));
	value.kind_case = GOOGLE__PROTOBUF__VALUE__KIND_BOOL_VALUE;
	value.bool_value = false;
	CHECK(!sds_wants_plain(&o, &n));
}

/* Istio's names: the caller's own files, in streams and calls of their own. */
static void test_files(void)
{
	static const char pem[] = "-----BEGIN CERTIFICATE-----\nAAAA\n";
	request rq = ENVOY__SERVICE__DISCOVERY__V3__DISCOVERY_REQUEST__INIT;
	AUTO(free) char *path = xasprintf("%s/roots.pem", test_dir());
	AUTO(free) char *name = xasprintf("file-root:%s", path);
	char *names[] = { name, (char *)(uintptr_t) "ROOTCA" };
	struct rpc_unary_options o = { .method = SERVICE "FetchSecrets",
		.request = &rq.base,
		.response = &envoy__service__discovery__v3__discovery_response__descriptor,
		.timeout_ms = 5000 };
	struct err e = ERR_INIT;
	ProtobufCMessage *m;
	struct rpc_stream *s;
	struct seen x;
	struct rig r;
	secret *got;

	rig_init(&r);
	CHECK_OK(buf_write_file(bytes_str(pem), path, 0644, &e));
	ask(open_sds(&r, &x), name, "", "");
	loop_run(r.loop);
	CHECK_INT(x.code, ERR_DENIED);
	CHECK_STR(x.text, "no identity issued");
	put_entry(&r, "1", "web", own_uid());
	s = open_sds(&r, &x);
	ask(s, name, "", "");
	got = secret_of(wait_for(&x, 1)->resources[0]);
	CHECK_STR(got->name, name);
	CHECK_INT(got->validation_context->trusted_ca->inline_bytes.len, strlen(pem));
	envoy__extensions__transport_sockets__tls__v3__secret__free_unpacked(got, NULL);
	/* The same stream may ask for something else, and come back. */
	ask(s, "default", ((response *)x.last)->nonce, ((response *)x.last)->version_info);
	check_identity(wait_for(&x, 2)->resources[0], "default");
	ask(s, name, ((response *)x.last)->nonce, ((response *)x.last)->version_info);
	CHECK_INT(wait_for(&x, 3)->n_resources, 1);
	ask(s, "file-root:/none", ((response *)x.last)->nonce, ((response *)x.last)->version_info);
	while (!x.ended)
		loop_run(r.loop);
	CHECK_INT(x.code, ERR_INVALID);
	CHECK_STR(x.text, "\"file-root:/none\": open /none: No such file or directory");
	seen_deinit(&x);
	rq.n_resource_names = 1;
	rq.resource_names = names;
	CHECK_OK(rpc_unary_sync(r.loop, r.client, &o, &m, &e));
	CHECK_INT(((response *)m)->n_resources, 1);
	protobuf_c_message_free_unpacked(m, NULL);
	rq.n_resource_names = 2;
	CHECK_ERR(rpc_unary_sync(r.loop, r.client, &o, &m, &e), ERR_INVALID);
	rig_deinit(&r);
}

static void test_fetch(void)
{
	request rq = ENVOY__SERVICE__DISCOVERY__V3__DISCOVERY_REQUEST__INIT;
	char *names[] = { (char *)(uintptr_t) "default", (char *)(uintptr_t) "ROOTCA",
		(char *)(uintptr_t) "", (char *)(uintptr_t) "default" };
	struct rpc_unary_options o = { .method = SERVICE "FetchSecrets",
		.request = &rq.base,
		.response = &envoy__service__discovery__v3__discovery_response__descriptor,
		.timeout_ms = 5000 };
	struct rig r;
	struct err e = ERR_INIT;
	ProtobufCMessage *m;
	response *rs;

	rig_init(&r);
	put_entry(&r, "1", "web", own_uid());
	rq.n_resource_names = ARRAY_LEN(names);
	rq.resource_names = names;
	CHECK_OK(rpc_unary_sync(r.loop, r.client, &o, &m, &e));
	rs = (response *)m;
	CHECK_INT(rs->n_resources, 2);
	CHECK_STR(rs->nonce, "");
	CHECK_STR(rs->version_info, "");
	check_bundle(rs->resources[0], "ROOTCA", false);
	check_identity(rs->resources[1], "default");
	protobuf_c_message_free_unpacked(m, NULL);
	names[0] = (char *)(uintptr_t) "ALL"; /* and ROOTCA: one of them only */
	rq.n_resource_names = 2;
	CHECK_ERR(rpc_unary_sync(r.loop, r.client, &o, &m, &e), ERR_INVALID);
	rig_deinit(&r);
}

static void delta_ask(struct rpc_stream *s, const char *subscribe, const char *drop,
	const char *kept, const char *version)
{
	delta_request rq = ENVOY__SERVICE__DISCOVERY__V3__DELTA_DISCOVERY_REQUEST__INIT;
	Envoy__Service__Discovery__V3__DeltaDiscoveryRequest__InitialResourceVersionsEntry
		v = ENVOY__SERVICE__DISCOVERY__V3__DELTA_DISCOVERY_REQUEST__INITIAL_RESOURCE_VERSIONS_ENTRY__INIT,
		*vp = &v;
	char *sub = (char *)(uintptr_t)subscribe, *un = (char *)(uintptr_t)drop;

	rq.n_resource_names_subscribe = subscribe != NULL;
	rq.resource_names_subscribe = &sub;
	rq.n_resource_names_unsubscribe = drop != NULL;
	rq.resource_names_unsubscribe = &un;
	v.key = (char *)(uintptr_t)kept;
	v.value = (char *)(uintptr_t)version;
	rq.n_initial_resource_versions = kept != NULL;
	rq.initial_resource_versions = &vp;
	rpc_stream_send(s, &rq.base);
}

static const delta_response *delta_wait(struct seen *x, int messages)
{
	wait_for(x, messages);
	return (const delta_response *)x->last;
}

static void test_delta(void)
{
	struct rig r;
	struct seen x, y;
	struct rpc_stream *s, *t;
	const delta_response *rs;
	char version[40];

	rig_init(&r);
	put_entry(&r, "1", "web", own_uid());
	s = open_stream(&r, &x, SERVICE "DeltaSecrets",
		&envoy__service__discovery__v3__delta_discovery_response__descriptor);
	delta_ask(s, "ROOTCA", NULL, NULL, NULL);
	rs = delta_wait(&x, 1);
	CHECK_INT(rs->n_resources, 1);
	CHECK_STR(rs->resources[0]->name, "ROOTCA");
	check_bundle(rs->resources[0]->resource, "ROOTCA", false);
	snprintf(version, sizeof(version), "%s", rs->resources[0]->version);
	/* Only what is new. */
	delta_ask(s, "default", NULL, NULL, NULL);
	rs = delta_wait(&x, 2);
	CHECK_INT(rs->n_resources, 1);
	check_identity(rs->resources[0]->resource, "default");
	delta_ask(s, "nobody", NULL, NULL, NULL);
	rs = delta_wait(&x, 3);
	CHECK_INT(rs->n_resources, 0);
	CHECK_INT(rs->n_removed_resources, 1);
	CHECK_STR(rs->removed_resources[0], "nobody");
	drop_entry(&r, "1");
	rs = delta_wait(&x, 4);
	CHECK_INT(rs->n_removed_resources, 1);
	CHECK_STR(rs->removed_resources[0], "default");
	put_entry(&r, "1", "web", own_uid());
	check_identity(delta_wait(&x, 5)->resources[0]->resource, "default");
	/* A client that comes back with what it has is sent the rest. */
	t = open_stream(&r, &y, SERVICE "DeltaSecrets",
		&envoy__service__discovery__v3__delta_discovery_response__descriptor);
	delta_ask(t, "ROOTCA", NULL, "ROOTCA", version);
	pause_for(&r, 200);
	CHECK_INT(y.messages, 0);
	delta_ask(s, NULL, "default", NULL, NULL);
	put_bundle(&r, true);
	CHECK_STR(delta_wait(&y, 1)->resources[0]->name, "ROOTCA");
	rpc_stream_cancel(s);
	rpc_stream_cancel(t);
	while (!x.ended || !y.ended)
		loop_run(r.loop);
	CHECK_INT(((delta_response *)x.last)->n_resources, 1);
	seen_deinit(&x);
	seen_deinit(&y);
	rig_deinit(&r);
}

static void test_delta_everything(void)
{
	struct rig r;
	struct seen x;
	struct rpc_stream *s;

	rig_init(&r);
	put_entry(&r, "1", "web", own_uid());
	s = open_stream(&r, &x, SERVICE "DeltaSecrets",
		&envoy__service__discovery__v3__delta_discovery_response__descriptor);
	delta_ask(s, NULL, NULL, NULL, NULL);
	CHECK_INT(delta_wait(&x, 1)->n_resources, 2);
	put_entry(&r, "2", "db", own_uid());
	CHECK_INT(delta_wait(&x, 2)->n_resources, 1);
	CHECK_STR(delta_wait(&x, 2)->resources[0]->name, "spiffe://" TD "/db");
	drop_entry(&r, "1");
	CHECK_STR(delta_wait(&x, 3)->removed_resources[0], "spiffe://" TD "/web");
	rpc_stream_cancel(s);
	while (!x.ended)
		loop_run(r.loop);
	seen_deinit(&x);
	rig_deinit(&r);
}

TEST_MAIN(TEST(test_names), TEST(test_everything), TEST(test_not_authorized), TEST(test_nonces),
	TEST(test_shared), TEST(test_plain), TEST(test_files), TEST(test_fetch), TEST(test_delta),
	TEST(test_delta_everything))

/* The whole server in a process of its own, driven over its Unix socket and its TLS port. */
#include "tests/test.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include "assay/agent/v1/sync.pb-c.h"
#include "grpc/health/v1/health.pb-c.h"
#include "server/api.h"
#include "server/cmd.h"
#include "spire/api/server/agent/v1/agent.pb-c.h"
#include "spire/api/server/bundle/v1/bundle.pb-c.h"
#include "spire/api/server/debug/v1/debug.pb-c.h"
#include "spire/api/server/entry/v1/entry.pb-c.h"
#include "spire/api/server/logger/v1/logger.pb-c.h"
#include "spire/api/server/svid/v1/svid.pb-c.h"
#include "spire/api/types/jointoken.pb-c.h"
#include "spire/api/types/logger.pb-c.h"

#define AGENT "/spire.api.server.agent.v1.Agent/"
#define BUNDLE "/spire.api.server.bundle.v1.Bundle/"
#define ENTRY "/spire.api.server.entry.v1.Entry/"
#define SVID "/spire.api.server.svid.v1.SVID/"
#define AG(n) Spire__Api__Server__Agent__V1__##n
#define BU(n) Spire__Api__Server__Bundle__V1__##n
#define EN(n) Spire__Api__Server__Entry__V1__##n
#define SV(n) Spire__Api__Server__Svid__V1__##n
#define PARENT "spiffe://example.org/spire/agent/x/y"

enum { CALL_MS = 20000, WAIT_STEPS = 500 };

static struct loop *loop;
static struct rpc_client *local, *remote; /* Unix socket; TLS */
static pid_t server_pid;
static int port;
static bool limited; /* attestation */

static char *text(const char *s)
{
	return (char *)(uintptr_t)s;
}

static const char *in_dir(const char *name)
{
	return log_fmt("%s/%s", test_dir(), name);
}

/* ---- the server ---- */

static int free_port(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET,
		.sin_addr = { .s_addr = htonl(INADDR_LOOPBACK) } };
	socklen_t n = sizeof(a);
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof(a)) == 0);
	CHECK(getsockname(fd, (struct sockaddr *)&a, &n) == 0);
	close(fd);
	return ntohs(a.sin_port);
}

static void write_config(const char *socket_name)
{
	AUTO_BUF struct buf b = BUF_INIT;
	struct err e;

	buf_printf(&b,
		"server {\n trust_domain = \"example.org\"\n bind_address = \"127.0.0.1\"\n"
		" bind_port = %d\n socket_path = \"%s/%s\"\n data_dir = \"%s/data\"\n"
		" ratelimit { attestation = %s }\n}\n"
		"plugins {\n DataStore \"sql\" { plugin_data {\n"
		"  database_type = \"sqlite3\"\n  connection_string = \"%s/data/db\" } }\n"
		" KeyManager \"disk\" { plugin_data { keys_path = \"%s/data/keys.json\" } }\n"
		" NodeAttestor \"join_token\" { plugin_data {} }\n}\n",
		port, test_dir(), socket_name, test_dir(), limited ? "true" : "false", test_dir(),
		test_dir());
	CHECK_OK(buf_write_file(buf_view(&b), in_dir("server.conf"), 0600, &e));
}

/* The server's process: this program anew, since gRPC does not survive a fork. As a test of its own
 * it does nothing. */
static void run_server(void)
{
	struct server_flags f = { .config = getenv("TEST_SERVER_CONFIG") };
	struct server_options o;
	AUTO_BUF struct buf problems = BUF_INIT;
	struct err e;

	if (!f.config)
		return;
	crypto_init();
	if (server_options_load(&o, &f, &problems, &e))
		TEST_FAIL("%s\n%s", e.msg, buf_cstr(&problems));
	CHECK_OK(log_set_file(getenv("TEST_SERVER_LOG"), &e));
	exit(server_run(&o));
}

static pid_t spawn(const char *socket_name)
{
	pid_t pid;

	write_config(socket_name);
	setenv("TEST_SERVER_CONFIG", in_dir("server.conf"), 1);
	setenv("TEST_SERVER_LOG", in_dir("log"), 1);
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		execl("/proc/self/exe", "test_server", "run_server", (char *)NULL);
		_exit(99);
	}
	return pid;
}

static int dial_local(void *arg, struct dial_options *o, struct err *e)
{
	(void)e;
	o->unix_path = arg;
	o->timeout_ms = CALL_MS;
	return 0;
}

static void serve(void)
{
	static char socket_path[200];
	struct rpc_client_options o = { .dial = dial_local, .arg = socket_path };

	if (!port)
		port = free_port();
	server_pid = spawn("api.sock");
	snprintf(socket_path, sizeof(socket_path), "%s/api.sock", test_dir());
	for (int i = 0; access(socket_path, F_OK) != 0; i++) {
		if (i == WAIT_STEPS)
			TEST_FAIL("the server does not start");
		usleep(20000);
	}
	if (!loop) {
		crypto_init();
		loop = loop_new();
	}
	local = rpc_client_new(loop, &o);
}

static int wait_exit(pid_t pid)
{
	int status;

	CHECK(waitpid(pid, &status, 0) == pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static void stop(void)
{
	if (remote)
		rpc_client_free(remote);
	rpc_client_free(local);
	remote = local = NULL;
	kill(server_pid, SIGTERM);
	CHECK_INT(wait_exit(server_pid), 0);
}

static void finish(void)
{
	stop();
	loop_run(loop);
	loop_free(loop);
}

static int call_on(struct rpc_client *c, const char *method, const void *req,
	const ProtobufCMessageDescriptor *d, void *ret, struct err *e)
{
	struct rpc_unary_options o = {
		.method = method, .request = req, .response = d, .timeout_ms = CALL_MS
	};

	return rpc_unary_sync(loop, c, &o, ret, e);
}
#define CALL(method, req, d, ret) call_on(local, method, req, &d##__descriptor, ret, &e)
#define FREE(m) protobuf_c_message_free_unpacked(&(m)->base, NULL)

/* ---- entries ---- */

static Spire__Api__Types__Entry *entry(const char *id, const char *path, const char *value)
{
	AUTO(free) char *spiffe_id = xasprintf("spiffe://example.org%s", path);
	struct entry en = { .id = xstrdup(id),
		.spiffe_id = xstrdup(spiffe_id),
		.parent_id = xstrdup(PARENT),
		.hint = xstrdup("") };
	Spire__Api__Types__Entry *m;

	selectors_add(&en.selectors, "unix", value);
	m = pb_entry(&en, NULL);
	entry_deinit(&en);
	return m;
}

static EN(BatchCreateEntryResponse) * create(Spire__Api__Types__Entry *m)
{
	EN(BatchCreateEntryRequest)
	rq = SPIRE__API__SERVER__ENTRY__V1__BATCH_CREATE_ENTRY_REQUEST__INIT;
	EN(BatchCreateEntryResponse) * rs;
	struct err e;

	rq.n_entries = 1;
	rq.entries = &m;
	CHECK_OK(CALL(ENTRY "BatchCreateEntry", &rq,
		spire__api__server__entry__v1__batch_create_entry_response, &rs));
	CHECK_INT(rs->n_results, 1);
	FREE(m);
	return rs;
}

static void create_ok(const char *id, const char *path, const char *value)
{
	EN(BatchCreateEntryResponse) *rs = create(entry(id, path, value));

	CHECK_STR(rs->results[0]->status->message, "OK");
	FREE(rs);
}

static void test_create(void)
{
	EN(BatchCreateEntryResponse) * rs;
	Spire__Api__Types__Entry *m;

	serve();
	rs = create(entry("", "/a", "uid:1"));
	CHECK_INT(rs->results[0]->status->code, 0);
	CHECK_INT(strlen(rs->results[0]->entry->id), 36);
	CHECK(rs->results[0]->entry->created_at > 0);
	m = entry("", "/a", "uid:1");
	FREE(rs);
	m->hint = xstrdup("other");
	rs = create(m);
	CHECK_INT(rs->results[0]->status->code, ERR_EXISTS);
	CHECK_STR(rs->results[0]->status->message, "similar entry already exists");
	CHECK_INT(strlen(rs->results[0]->entry->id), 36);
	CHECK_STR(rs->results[0]->entry->hint, "");
	FREE(rs);
	rs = create(entry("", "/spire/x", "uid:1"));
	CHECK_INT(rs->results[0]->status->code, ERR_INVALID);
	CHECK_CONTAINS(rs->results[0]->status->message,
		"failed to convert entry: invalid spiffe ID: \"spiffe://example.org/spire/x\" is");
	CHECK(!rs->results[0]->entry);
	FREE(rs);
	rs = create(entry("a b", "/b", "uid:1"));
	CHECK_STR(rs->results[0]->status->message, "failed to create entry: datastore-validation: "
						   "invalid registration entry: entry ID "
						   "contains invalid characters");
	FREE(rs);
	m = entry("", "/b", "uid:1");
	pb_append(&m->federates_with, &m->n_federates_with, pb_str("nowhere.org"));
	rs = create(m);
	CHECK(rs->results[0]->status->code != 0);
	CHECK_CONTAINS(rs->results[0]->status->message, "failed to create entry: ");
	FREE(rs);
	finish();
}

static void test_list(void)
{
	EN(ListEntriesRequest) rq = SPIRE__API__SERVER__ENTRY__V1__LIST_ENTRIES_REQUEST__INIT;
	EN(ListEntriesRequest__Filter)
	f = SPIRE__API__SERVER__ENTRY__V1__LIST_ENTRIES_REQUEST__FILTER__INIT;
	EN(CountEntriesRequest) crq = SPIRE__API__SERVER__ENTRY__V1__COUNT_ENTRIES_REQUEST__INIT;
	Spire__Api__Types__EntryMask mask = SPIRE__API__TYPES__ENTRY_MASK__INIT;
	Spire__Api__Types__SelectorMatch sm = SPIRE__API__TYPES__SELECTOR_MATCH__INIT;
	EN(CountEntriesResponse) * crs;
	EN(ListEntriesResponse) * rs;
	char token[100];
	struct err e;

	serve();
	create_ok("e1", "/a", "uid:1");
	create_ok("e2", "/b", "uid:2");
	create_ok("e3", "/c", "uid:3");
	CHECK_OK(CALL(ENTRY "CountEntries", &crq,
		spire__api__server__entry__v1__count_entries_response, &crs));
	CHECK_INT(crs->count, 3);
	FREE(crs);
	rq.page_size = 2;
	rq.output_mask = &mask;
	CHECK_OK(CALL(ENTRY "ListEntries", &rq,
		spire__api__server__entry__v1__list_entries_response, &rs));
	CHECK_INT(rs->n_entries, 2);
	CHECK_STR(rs->entries[0]->id, "e1");
	CHECK(!rs->entries[0]->spiffe_id);
	CHECK(rs->next_page_token[0]);
	snprintf(token, sizeof(token), "%s", rs->next_page_token);
	FREE(rs);
	rq.page_token = token;
	CHECK_OK(CALL(ENTRY "ListEntries", &rq,
		spire__api__server__entry__v1__list_entries_response, &rs));
	CHECK_INT(rs->n_entries, 1);
	CHECK_STR(rs->entries[0]->id, "e3");
	CHECK_STR(rs->next_page_token, "");
	FREE(rs);
	rq = (EN(ListEntriesRequest))SPIRE__API__SERVER__ENTRY__V1__LIST_ENTRIES_REQUEST__INIT;
	rq.filter = &f;
	f.by_spiffe_id = pb_id("spiffe://example.org/b");
	CHECK_OK(CALL(ENTRY "ListEntries", &rq,
		spire__api__server__entry__v1__list_entries_response, &rs));
	CHECK_INT(rs->n_entries, 1);
	CHECK_STR(rs->entries[0]->id, "e2");
	CHECK_STR(rs->entries[0]->spiffe_id->path, "/b");
	FREE(rs);
	FREE(f.by_spiffe_id);
	f.by_spiffe_id = NULL;
	f.by_selectors = &sm;
	CHECK_ERR(CALL(ENTRY "ListEntries", &rq,
			  spire__api__server__entry__v1__list_entries_response, &rs),
		ERR_INVALID);
	CHECK_CONTAINS(e.msg, "malformed selectors filter: empty selector set");
	finish();
}

static int count(void)
{
	EN(CountEntriesRequest) rq = SPIRE__API__SERVER__ENTRY__V1__COUNT_ENTRIES_REQUEST__INIT;
	EN(CountEntriesResponse) * rs;
	struct err e;
	int n;

	CHECK_OK(CALL(ENTRY "CountEntries", &rq,
		spire__api__server__entry__v1__count_entries_response, &rs));
	n = rs->count;
	FREE(rs);
	return n;
}

/* Expired entries go by themselves, each at its time, the later one too; also one that had expired
 * before. */
static void test_expiry(void)
{
	static const int spans[] = { 2, -5, 1, 3600 };

	serve();
	for (size_t i = 0; i < ARRAY_LEN(spans); i++) {
		Spire__Api__Types__Entry *m = entry("", log_fmt("/x%zu", i), "uid:1");
		EN(BatchCreateEntryResponse) * rs;

		m->expires_at = clock_wall().sec + spans[i];
		rs = create(m);
		FREE(rs);
	}
	for (int i = 0; count() > 1; i++) {
		if (i == WAIT_STEPS)
			TEST_FAIL("%d entries are left", count());
		usleep(20000);
	}
	finish();
}

static EN(BatchUpdateEntryResponse) *
	update(Spire__Api__Types__Entry *m, Spire__Api__Types__EntryMask *mask)
{
	EN(BatchUpdateEntryRequest)
	rq = SPIRE__API__SERVER__ENTRY__V1__BATCH_UPDATE_ENTRY_REQUEST__INIT;
	EN(BatchUpdateEntryResponse) * rs;
	struct err e;

	rq.n_entries = 1;
	rq.entries = &m;
	rq.input_mask = mask;
	CHECK_OK(CALL(ENTRY "BatchUpdateEntry", &rq,
		spire__api__server__entry__v1__batch_update_entry_response, &rs));
	FREE(m);
	return rs;
}

static void test_update_delete(void)
{
	Spire__Api__Types__EntryMask mask = SPIRE__API__TYPES__ENTRY_MASK__INIT;
	EN(BatchDeleteEntryRequest)
	rq = SPIRE__API__SERVER__ENTRY__V1__BATCH_DELETE_ENTRY_REQUEST__INIT;
	char *ids[] = { text("e1"), text(""), text("nope") };
	EN(BatchUpdateEntryResponse) * rs;
	EN(BatchDeleteEntryResponse) * ds;
	Spire__Api__Types__Entry *m;
	struct err e;

	serve();
	create_ok("e1", "/a", "uid:1");
	mask.admin = true;
	m = entry("e1", "/zzz", "uid:9");
	m->admin = true;
	rs = update(m, &mask);
	CHECK_STR(rs->results[0]->status->message, "OK");
	CHECK(rs->results[0]->entry->admin);
	CHECK_STR(rs->results[0]->entry->spiffe_id->path, "/a");
	CHECK_INT(rs->results[0]->entry->revision_number, 1);
	FREE(rs);
	rs = update(entry("nope", "/a", "uid:1"), NULL);
	CHECK_INT(rs->results[0]->status->code, ERR_NOT_FOUND);
	CHECK_STR(rs->results[0]->status->message, "failed to update entry");
	FREE(rs);
	rq.n_ids = 3;
	rq.ids = ids;
	CHECK_OK(CALL(ENTRY "BatchDeleteEntry", &rq,
		spire__api__server__entry__v1__batch_delete_entry_response, &ds));
	CHECK_INT(ds->results[0]->status->code, 0);
	CHECK_STR(ds->results[0]->id, "e1");
	CHECK_STR(ds->results[1]->status->message, "missing entry ID");
	CHECK_STR(ds->results[2]->status->message, "entry not found");
	FREE(ds);
	finish();
}

/* ---- agents over TLS ---- */

static struct x509_chain identity; /* the client's; n = 0: none */
static struct key *identity_key;
static struct tls_ctx *ctx;

static int trust_all(void *arg, const struct x509_chain *peer, struct err *e)
{
	struct spiffeid id = SPIFFEID_INIT;
	int r = x509_svid_id(peer->v[0], &id, e);

	(void)arg;
	if (r == 0)
		CHECK_STR(id.text, "spiffe://example.org/spire/server");
	spiffeid_deinit(&id);
	return r;
}

static int dial_remote(void *arg, struct dial_options *o, struct err *e)
{
	struct tls_options t = { .alpn = "h2" };
	int r;

	(void)arg;
	if (identity.n) {
		t.chain = &identity;
		t.key = identity_key;
	}
	if (ctx)
		tls_ctx_unref(ctx);
	ctx = NULL;
	r = tls_ctx_new(&t, &ctx, e);
	o->tcp_host = "127.0.0.1";
	o->tcp_port = port;
	o->tls = ctx;
	o->verify = trust_all;
	o->timeout_ms = CALL_MS;
	return r;
}

static void connect_remote(void)
{
	struct rpc_client_options o = { .dial = dial_remote };

	if (remote)
		rpc_client_free(remote);
	remote = rpc_client_new(loop, &o);
}

/* Runs the loop until the condition holds; a call's own loop must not be stopped in between. */
static bool waiting;
#define WAIT_UNTIL(cond)                                                                           \
	do {                                                                                       \
		waiting = true;                                                                    \
		while (!(cond))                                                                    \
			loop_run(loop);                                                            \
		waiting = false;                                                                   \
	} while (0)

static void wake(void)
{
	if (waiting)
		loop_stop(loop);
}

struct conversation {
	struct rpc_status status;
	char message[400];
	int reason; /* of PermissionDeniedDetails */
	bool over;
	int n;
	struct x509_chain chain;
	char *id;
	/* Watch */
	size_t entries, removed;
	bool full, bundle;
	uint64_t change;
	char epoch[64];
	int want; /* complete sets to wait for */
};

static void on_attest(void *arg, struct rpc_stream *s, const ProtobufCMessage *m)
{
	const AG(AttestAgentResponse) *rs = (const void *)m;
	struct conversation *k = arg;

	(void)s;
	CHECK_INT(rs->step_case, SPIRE__API__SERVER__AGENT__V1__ATTEST_AGENT_RESPONSE__STEP_RESULT);
	for (size_t i = 0; i < rs->result->svid->n_cert_chain; i++) {
		struct x509_cert *c;
		struct err e;

		CHECK_OK(x509_parse(bytes_of(rs->result->svid->cert_chain[i].data,
					    rs->result->svid->cert_chain[i].len),
			&c, &e));
		x509_chain_add(&k->chain, c);
		x509_unref(c);
	}
	CHECK(!rs->result->reattestable);
	k->id = xasprintf(
		"spiffe://%s%s", rs->result->svid->id->trust_domain, rs->result->svid->id->path);
	k->n++;
}

static void on_ended(void *arg, struct rpc_stream *s, const struct rpc_status *st)
{
	Spire__Api__Types__PermissionDeniedDetails *d;
	struct conversation *k = arg;

	(void)s;
	k->status.code = st->code;
	snprintf(k->message, sizeof(k->message), "%s", st->message ? st->message : "");
	d = (void *)rpc_status_detail(
		st, &spire__api__types__permission_denied_details__descriptor);
	if (d) {
		k->reason = (int)d->reason;
		FREE(d);
	}
	k->over = true;
	wake();
}

static void make_csr(struct buf *ret)
{
	struct err e;

	if (!identity_key)
		CHECK_OK(key_generate(KEY_EC_P256, &identity_key, &e));
	CHECK_OK(x509_csr_make(identity_key, NULL, ret, &e));
}

static struct rpc_stream *attest_open(const char *token, struct conversation *k, int timeout_ms)
{
	struct rpc_stream_options o = { .method = AGENT "AttestAgent",
		.response = &spire__api__server__agent__v1__attest_agent_response__descriptor,
		.timeout_ms = timeout_ms,
		.message = on_attest,
		.ended = on_ended,
		.arg = k };
	AG(AttestAgentRequest) rq = SPIRE__API__SERVER__AGENT__V1__ATTEST_AGENT_REQUEST__INIT;
	AG(AttestAgentRequest__Params)
	p = SPIRE__API__SERVER__AGENT__V1__ATTEST_AGENT_REQUEST__PARAMS__INIT;
	AG(AgentX509SVIDParams) xp = SPIRE__API__SERVER__AGENT__V1__AGENT_X509_SVIDPARAMS__INIT;
	Spire__Api__Types__AttestationData d = SPIRE__API__TYPES__ATTESTATION_DATA__INIT;
	AUTO_BUF struct buf csr = BUF_INIT;
	struct rpc_stream *s;

	make_csr(&csr);
	xp.csr = (ProtobufCBinaryData){ .data = csr.p, .len = csr.len };
	d.type = text("join_token");
	d.payload = (ProtobufCBinaryData){ .data = (uint8_t *)text(token), .len = strlen(token) };
	p.data = &d;
	p.params = &xp;
	rq.step_case = SPIRE__API__SERVER__AGENT__V1__ATTEST_AGENT_REQUEST__STEP_PARAMS;
	rq.params = &p;
	*k = (struct conversation){ .n = 0 };
	connect_remote();
	s = rpc_stream_open(remote, &o);
	rpc_stream_send(s, &rq.base);
	return s;
}

static void attest_for(const char *token, struct conversation *k, int timeout_ms)
{
	attest_open(token, k, timeout_ms);
	WAIT_UNTIL(k->over);
}

static void attest(const char *token, struct conversation *k)
{
	attest_for(token, k, CALL_MS);
}

static void make_token(const char *token)
{
	AG(CreateJoinTokenRequest)
	rq = SPIRE__API__SERVER__AGENT__V1__CREATE_JOIN_TOKEN_REQUEST__INIT;
	Spire__Api__Types__JoinToken *rs;
	struct err e;

	rq.ttl = 600;
	rq.token = text(token);
	CHECK_OK(CALL(AGENT "CreateJoinToken", &rq, spire__api__types__join_token, &rs));
	CHECK_STR(rs->value, token);
	FREE(rs);
}

static void become(struct conversation *k)
{
	identity = k->chain;
	k->chain = (struct x509_chain){ .n = 0 };
	connect_remote();
}

static void drop_identity(struct conversation *k)
{
	free(k->id);
	x509_chain_deinit(&identity);
	identity = (struct x509_chain){ .n = 0 };
	key_unref(identity_key);
	identity_key = NULL;
	if (ctx)
		tls_ctx_unref(ctx);
	ctx = NULL;
}

static void create_for(const char *parent, const char *id, const char *path)
{
	Spire__Api__Types__Entry *m = entry(id, path, "uid:1");
	EN(BatchCreateEntryResponse) * rs;

	spire__api__types__spiffeid__free_unpacked(m->parent_id, NULL);
	m->parent_id = pb_id(parent);
	rs = create(m);
	CHECK_STR(rs->results[0]->status->message, "OK");
	FREE(rs);
}

static void test_attest(void)
{
	AG(RenewAgentRequest) rrq = SPIRE__API__SERVER__AGENT__V1__RENEW_AGENT_REQUEST__INIT;
	AG(BanAgentRequest) brq = SPIRE__API__SERVER__AGENT__V1__BAN_AGENT_REQUEST__INIT;
	EN(GetAuthorizedEntriesRequest)
	arq = SPIRE__API__SERVER__ENTRY__V1__GET_AUTHORIZED_ENTRIES_REQUEST__INIT;
	EN(GetAuthorizedEntriesResponse) * ars;
	AG(RenewAgentResponse) * rrs;
	struct conversation k, again;
	ProtobufCMessage *empty;
	struct err e;

	serve();
	make_token("tok-1");
	attest("tok-1", &k);
	CHECK_INT(k.status.code, 0);
	CHECK_INT(k.n, 1);
	CHECK_STR(k.id, "spiffe://example.org/spire/agent/join_token/tok-1");
	attest("tok-1", &again);
	CHECK_INT(again.status.code, ERR_INVALID);
	CHECK_STR(again.message,
		"failed to attest: join token does not exist or has already been used");
	attest("../x", &again);
	CHECK_INT(again.status.code, ERR_INVALID);
	become(&k);
	create_for(k.id, "w1", "/w");
	CHECK_OK(call_on(remote, ENTRY "GetAuthorizedEntries", &arq,
		&spire__api__server__entry__v1__get_authorized_entries_response__descriptor, &ars,
		&e));
	CHECK_INT(ars->n_entries, 1);
	FREE(ars);
	CHECK_ERR(
		call_on(remote, AGENT "RenewAgent", &rrq,
			&spire__api__server__agent__v1__renew_agent_response__descriptor, &rrs, &e),
		ERR_INVALID);
	CHECK_CONTAINS(e.msg, "params cannot be nil");
	CHECK_ERR(call_on(remote, ENTRY "CountEntries", &arq,
			  &spire__api__server__entry__v1__count_entries_response__descriptor, &ars,
			  &e),
		ERR_DENIED);
	brq.id = pb_id(k.id);
	CHECK_OK(CALL(AGENT "BanAgent", &brq, google__protobuf__empty, &empty));
	protobuf_c_message_free_unpacked(empty, NULL);
	FREE(brq.id);
	CHECK_ERR(
		call_on(remote, ENTRY "GetAuthorizedEntries", &arq,
			&spire__api__server__entry__v1__get_authorized_entries_response__descriptor,
			&ars, &e),
		ERR_DENIED);
	drop_identity(&k);
	finish();
}

static SV(NewX509SVIDParams) * param(const char *id, struct buf *csr)
{
	SV(NewX509SVIDParams) *p =
		pb_new(&spire__api__server__svid__v1__new_x509_svidparams__descriptor);

	p->entry_id = pb_str(id);
	pb_set_bytes(&p->csr, buf_view(csr));
	return p;
}

static void test_sign(void)
{
	SV(BatchNewX509SVIDRequest) *rq =
		pb_new(&spire__api__server__svid__v1__batch_new_x509_svidrequest__descriptor);
	SV(NewJWTSVIDRequest) jrq = SPIRE__API__SERVER__SVID__V1__NEW_JWTSVIDREQUEST__INIT;
	AUTO_BUF struct buf csr = BUF_INIT, bad = BUF_INIT, none = BUF_INIT;
	SV(BatchNewX509SVIDResponse) * rs;
	SV(NewJWTSVIDResponse) * jrs;
	char *aud = text("x");
	struct conversation k;
	struct err e;

	serve();
	make_token("tok-2");
	attest("tok-2", &k);
	CHECK_INT(k.status.code, 0);
	become(&k);
	create_for(k.id, "w1", "/w");
	make_csr(&csr);
	buf_bytes(&bad, buf_view(&csr));
	bad.p[bad.len - 1] ^= 1;
	pb_append(&rq->params, &rq->n_params, param("w1", &csr));
	pb_append(&rq->params, &rq->n_params, param("nope", &csr));
	pb_append(&rq->params, &rq->n_params, param("w1", &bad));
	pb_append(&rq->params, &rq->n_params, param("", &csr));
	pb_append(&rq->params, &rq->n_params, param("w1", &none));
	for (int i = 0; i < 100; i++)
		pb_append(&rq->params, &rq->n_params, param("w1", &csr));
	CHECK_OK(call_on(remote, SVID "BatchNewX509SVID", rq,
		&spire__api__server__svid__v1__batch_new_x509_svidresponse__descriptor, &rs, &e));
	CHECK_INT(rs->n_results, 105);
	CHECK_STR(rs->results[0]->status->message, "OK");
	CHECK_STR(rs->results[0]->svid->id->path, "/w");
	CHECK_INT(rs->results[0]->svid->n_cert_chain, 1);
	CHECK_INT(rs->results[1]->status->code, ERR_NOT_FOUND);
	CHECK_STR(rs->results[1]->status->message, "entry not found or not authorized");
	CHECK_INT(rs->results[2]->status->code, ERR_INVALID);
	CHECK_CONTAINS(rs->results[2]->status->message, "CSR");
	CHECK_STR(rs->results[3]->status->message, "missing entry ID");
	CHECK_STR(rs->results[4]->status->message, "missing CSR");
	for (size_t i = 5; i < rs->n_results; i++)
		CHECK_INT(rs->results[i]->status->code, 0);
	FREE(rs);
	FREE(rq);
	jrq.entry_id = text("w1");
	CHECK_ERR(call_on(remote, SVID "NewJWTSVID", &jrq,
			  &spire__api__server__svid__v1__new_jwtsvidresponse__descriptor, &jrs, &e),
		ERR_INVALID);
	CHECK_CONTAINS(e.msg, "at least one audience is required");
	jrq.n_audience = 1;
	jrq.audience = &aud;
	CHECK_OK(call_on(remote, SVID "NewJWTSVID", &jrq,
		&spire__api__server__svid__v1__new_jwtsvidresponse__descriptor, &jrs, &e));
	CHECK_INT(jrs->svid->expires_at - jrs->svid->issued_at, 300);
	FREE(jrs);
	drop_identity(&k);
	finish();
}

static void test_mint(void)
{
	SV(MintX509SVIDRequest) rq = SPIRE__API__SERVER__SVID__V1__MINT_X509_SVIDREQUEST__INIT;
	SV(MintJWTSVIDRequest) jrq = SPIRE__API__SERVER__SVID__V1__MINT_JWTSVIDREQUEST__INIT;
	AUTO_BUF struct buf csr = BUF_INIT;
	SV(MintX509SVIDResponse) * rs;
	SV(MintJWTSVIDResponse) * jrs;
	char *aud = text("x");
	struct key *k;
	struct err e;

	serve();
	CHECK_OK(key_generate(KEY_EC_P256, &k, &e));
	CHECK_OK(x509_csr_make(k, "spiffe://example.org/m", &csr, &e));
	rq.csr = (ProtobufCBinaryData){ .data = csr.p, .len = csr.len };
	rq.ttl = 60;
	CHECK_OK(CALL(SVID "MintX509SVID", &rq,
		spire__api__server__svid__v1__mint_x509_svidresponse, &rs));
	CHECK_STR(rs->svid->id->path, "/m");
	CHECK(llabs((long long)(rs->svid->expires_at - clock_wall().sec) - 60) < 10);
	FREE(rs);
	buf_reset(&csr);
	CHECK_OK(x509_csr_make(k, "spiffe://other.org/m", &csr, &e));
	rq.csr = (ProtobufCBinaryData){ .data = csr.p, .len = csr.len };
	CHECK_ERR(CALL(SVID "MintX509SVID", &rq,
			  spire__api__server__svid__v1__mint_x509_svidresponse, &rs),
		ERR_INVALID);
	CHECK_CONTAINS(e.msg, "CSR URI SAN is invalid: \"spiffe://other.org/m\" is not a member");
	buf_reset(&csr);
	CHECK_OK(x509_csr_make(k, NULL, &csr, &e));
	rq.csr = (ProtobufCBinaryData){ .data = csr.p, .len = csr.len };
	CHECK_ERR(CALL(SVID "MintX509SVID", &rq,
			  spire__api__server__svid__v1__mint_x509_svidresponse, &rs),
		ERR_INVALID);
	CHECK_CONTAINS(e.msg, "CSR URI SAN is required");
	key_unref(k);
	jrq.id = pb_id("spiffe://example.org/m");
	jrq.audience = &aud;
	jrq.n_audience = 1;
	CHECK_OK(CALL(SVID "MintJWTSVID", &jrq, spire__api__server__svid__v1__mint_jwtsvidresponse,
		&jrs));
	CHECK_STR(jrs->svid->id->path, "/m");
	FREE(jrs);
	FREE(jrq.id);
	finish();
}

static void cancel_it(void *arg)
{
	rpc_stream_cancel(arg);
}

/* One attestation a second and address: the second one waits, and is forgotten when its caller
 * goes.
 */
static void test_rate_limit(void)
{
	struct conversation k;
	struct rpc_stream *st;
	struct loop_timer *t;
	int64_t from;

	limited = true;
	serve();
	attest("nope", &k);
	CHECK_INT(k.status.code, ERR_INVALID);
	from = clock_mono().ns;
	attest("nope", &k);
	CHECK_INT(k.status.code, ERR_INVALID);
	CHECK(clock_mono().ns - from > 500 * NS_PER_MS);
	attest_for("nope", &k, 100);
	CHECK_INT(k.status.code, ERR_EXHAUSTED);
	CHECK_CONTAINS(k.message, "rejecting request due to attest agent rate limiting: ");
	st = attest_open("nope", &k, CALL_MS);
	t = loop_timer_new(loop, cancel_it, st);
	loop_timer_set(t, 200 * NS_PER_MS);
	WAIT_UNTIL(k.over);
	CHECK_INT(k.status.code, ERR_CANCELLED);
	loop_timer_free(t);
	attest("nope", &k);
	CHECK_INT(k.status.code, ERR_INVALID);
	drop_identity(&k);
	finish();
}

/* ---- the push stream ---- */

static void on_watch(void *arg, struct rpc_stream *s, const ProtobufCMessage *m)
{
	const Assay__Agent__V1__WatchResponse *rs = (const void *)m;
	struct conversation *k = arg;

	(void)s;
	k->entries += rs->n_entries;
	k->removed += rs->n_removed_entry_ids;
	k->full |= rs->full;
	k->bundle |= rs->bundle != NULL;
	k->change = rs->change;
	snprintf(k->epoch, sizeof(k->epoch), "%s", rs->epoch);
	if (rs->more)
		return;
	k->n++;
	if (k->n >= k->want)
		wake();
}

static struct rpc_stream *watch(struct conversation *k, const char *epoch, uint64_t change)
{
	struct rpc_stream_options o = { .method = "/assay.agent.v1.Sync/Watch",
		.response = &assay__agent__v1__watch_response__descriptor,
		.message = on_watch,
		.ended = on_ended,
		.arg = k };
	Assay__Agent__V1__WatchRequest rq = ASSAY__AGENT__V1__WATCH_REQUEST__INIT;
	Assay__Agent__V1__WatchRequest__Start st = ASSAY__AGENT__V1__WATCH_REQUEST__START__INIT;
	struct rpc_stream *s = rpc_stream_open(remote, &o);

	st.epoch = text(epoch);
	st.change = change;
	st.agent_version = text("test");
	rq.step_case = ASSAY__AGENT__V1__WATCH_REQUEST__STEP_START;
	rq.start = &st;
	rpc_stream_send(s, &rq.base);
	return s;
}

static void wait_sets(struct conversation *k, int n)
{
	k->want = k->n + n;
	k->entries = k->removed = 0;
	k->full = k->bundle = false;
	WAIT_UNTIL(k->n >= k->want || k->over);
}

static void test_watch(void)
{
	AG(DeleteAgentRequest) drq = SPIRE__API__SERVER__AGENT__V1__DELETE_AGENT_REQUEST__INIT;
	struct conversation k, w = { .n = 0 };
	struct rpc_stream *s;
	ProtobufCMessage *empty;
	char epoch[64];
	uint64_t change;
	struct err e;

	serve();
	make_token("tok-3");
	attest("tok-3", &k);
	CHECK_INT(k.status.code, 0);
	become(&k);
	create_for(k.id, "w1", "/w1");
	s = watch(&w, "", 0);
	wait_sets(&w, 1);
	CHECK(w.full && w.bundle);
	CHECK_INT(w.entries, 1);
	create_for(k.id, "w2", "/w2");
	wait_sets(&w, 1);
	CHECK(!w.full && !w.bundle);
	CHECK_INT(w.entries, 1);
	change = w.change;
	snprintf(epoch, sizeof(epoch), "%s", w.epoch);
	rpc_stream_cancel(s);
	WAIT_UNTIL(w.over);
	create_for(k.id, "w3", "/w3");
	w = (struct conversation){ .n = 0 };
	watch(&w, epoch, change);
	wait_sets(&w, 1);
	CHECK(!w.full);
	CHECK_INT(w.entries, 1);
	drq.id = pb_id(k.id);
	CHECK_OK(CALL(AGENT "DeleteAgent", &drq, google__protobuf__empty, &empty));
	protobuf_c_message_free_unpacked(empty, NULL);
	FREE(drq.id);
	WAIT_UNTIL(w.over);
	CHECK_INT(w.status.code, ERR_DENIED);
	CHECK_INT(
		w.reason, SPIRE__API__TYPES__PERMISSION_DENIED_DETAILS__REASON__AGENT_NOT_ATTESTED);
	drop_identity(&k);
	finish();
}

/* ---- bundles, debug, logger, health ---- */

static void test_bundles(void)
{
	BU(GetBundleRequest) grq = SPIRE__API__SERVER__BUNDLE__V1__GET_BUNDLE_REQUEST__INIT;
	BU(BatchSetFederatedBundleRequest)
	srq = SPIRE__API__SERVER__BUNDLE__V1__BATCH_SET_FEDERATED_BUNDLE_REQUEST__INIT;
	BU(GetFederatedBundleRequest)
	frq = SPIRE__API__SERVER__BUNDLE__V1__GET_FEDERATED_BUNDLE_REQUEST__INIT;
	BU(BatchDeleteFederatedBundleRequest)
	drq = SPIRE__API__SERVER__BUNDLE__V1__BATCH_DELETE_FEDERATED_BUNDLE_REQUEST__INIT;
	BU(BatchSetFederatedBundleResponse) * srs;
	BU(BatchDeleteFederatedBundleResponse) * drs;
	Spire__Api__Types__Bundle *own, *other;
	char *names[] = { text("other.org"), text("gone.org"), text("example.org") };
	struct err e;

	serve();
	connect_remote();
	CHECK_OK(call_on(remote, BUNDLE "GetBundle", &grq, &spire__api__types__bundle__descriptor,
		&own, &e));
	CHECK_STR(own->trust_domain, "example.org");
	CHECK_INT(own->n_x509_authorities, 1);
	CHECK_INT(own->n_jwt_authorities, 1);
	frq.trust_domain = text("other.org");
	CHECK_ERR(CALL(BUNDLE "GetFederatedBundle", &frq, spire__api__types__bundle, &other),
		ERR_NOT_FOUND);
	free(own->trust_domain);
	own->trust_domain = xstrdup("other.org");
	srq.n_bundle = 1;
	srq.bundle = &own;
	CHECK_OK(CALL(BUNDLE "BatchSetFederatedBundle", &srq,
		spire__api__server__bundle__v1__batch_set_federated_bundle_response, &srs));
	CHECK_STR(srs->results[0]->status->message, "OK");
	CHECK_INT(srs->results[0]->bundle->n_x509_authorities, 1);
	FREE(srs);
	FREE(own);
	CHECK_OK(CALL(BUNDLE "GetFederatedBundle", &frq, spire__api__types__bundle, &other));
	FREE(other);
	drq.n_trust_domains = 3;
	drq.trust_domains = names;
	CHECK_OK(CALL(BUNDLE "BatchDeleteFederatedBundle", &drq,
		spire__api__server__bundle__v1__batch_delete_federated_bundle_response, &drs));
	CHECK_STR(drs->results[0]->status->message, "OK");
	CHECK_STR(drs->results[1]->status->message, "bundle not found");
	CHECK_STR(drs->results[2]->status->message,
		"removing the bundle for the server trust domain is not allowed");
	FREE(drs);
	finish();
}

static void test_small_services(void)
{
	Grpc__Health__V1__HealthCheckRequest hrq = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
	Spire__Api__Server__Debug__V1__GetInfoRequest drq =
		SPIRE__API__SERVER__DEBUG__V1__GET_INFO_REQUEST__INIT;
	Spire__Api__Server__Logger__V1__SetLogLevelRequest lrq =
		SPIRE__API__SERVER__LOGGER__V1__SET_LOG_LEVEL_REQUEST__INIT;
	Spire__Api__Server__Debug__V1__GetInfoResponse *drs;
	Grpc__Health__V1__HealthCheckResponse *hrs;
	Spire__Api__Types__Logger *lrs;
	struct err e;

	serve();
	CHECK_OK(CALL("/grpc.health.v1.Health/Check", &hrq, grpc__health__v1__health_check_response,
		&hrs));
	CHECK_INT(hrs->status, GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING);
	FREE(hrs);
	CHECK_OK(CALL("/spire.api.server.debug.v1.Debug/GetInfo", &drq,
		spire__api__server__debug__v1__get_info_response, &drs));
	CHECK_INT(drs->n_svid_chain, 2);
	CHECK_STR(drs->svid_chain[0]->id->path, "/spire/server");
	CHECK_INT(drs->federated_bundles_count, 1);
	FREE(drs);
	lrq.new_level = SPIRE__API__TYPES__LOG_LEVEL__DEBUG;
	CHECK_OK(CALL("/spire.api.server.logger.v1.Logger/SetLogLevel", &lrq,
		spire__api__types__logger, &lrs));
	CHECK_INT(lrs->current_level, SPIRE__API__TYPES__LOG_LEVEL__DEBUG);
	CHECK_INT(lrs->launch_level, SPIRE__API__TYPES__LOG_LEVEL__INFO);
	FREE(lrs);
	lrq.new_level = 0;
	CHECK_ERR(CALL("/spire.api.server.logger.v1.Logger/SetLogLevel", &lrq,
			  spire__api__types__logger, &lrs),
		ERR_INVALID);
	connect_remote();
	CHECK_ERR(call_on(remote, "/spire.api.server.debug.v1.Debug/GetInfo", &drq,
			  &spire__api__server__debug__v1__get_info_response__descriptor, &drs, &e),
		ERR_UNIMPLEMENTED);
	if (ctx)
		tls_ctx_unref(ctx);
	ctx = NULL;
	finish();
}

/* ---- the process ---- */

static void test_second_server(void)
{
	pid_t second;
	AUTO_BUF struct buf b = BUF_INIT;
	struct err e;
	int first_port;

	serve();
	first_port = port;
	port = free_port();
	second = spawn("other.sock");
	CHECK_INT(wait_exit(second), 1);
	port = first_port;
	CHECK_OK(buf_read_file(&b, in_dir("log"), &e));
	CHECK_CONTAINS(buf_cstr(&b), "is in use by another server");
	finish();
}

/* What was acknowledged is there after kill -9; the authorities are the same ones. */
static void test_restart(void)
{
	BU(GetBundleRequest) grq = SPIRE__API__SERVER__BUNDLE__V1__GET_BUNDLE_REQUEST__INIT;
	EN(GetEntryRequest) erq = SPIRE__API__SERVER__ENTRY__V1__GET_ENTRY_REQUEST__INIT;
	Spire__Api__Types__Bundle *before, *after;
	Spire__Api__Types__Entry *m;
	struct err e;

	serve();
	create_ok("e1", "/a", "uid:1");
	CHECK_OK(CALL(BUNDLE "GetBundle", &grq, spire__api__types__bundle, &before));
	rpc_client_free(local);
	kill(server_pid, SIGKILL);
	CHECK_INT(wait_exit(server_pid), 1000 + SIGKILL);
	CHECK(unlink(in_dir("api.sock")) == 0); /* so that serve() waits for the new one */
	serve();
	erq.id = text("e1");
	CHECK_OK(CALL(ENTRY "GetEntry", &erq, spire__api__types__entry, &m));
	CHECK_STR(m->spiffe_id->path, "/a");
	FREE(m);
	CHECK_OK(CALL(BUNDLE "GetBundle", &grq, spire__api__types__bundle, &after));
	CHECK_INT(after->n_x509_authorities, 1);
	CHECK_BYTES(bytes_of(before->x509_authorities[0]->asn1.data,
			    before->x509_authorities[0]->asn1.len),
		bytes_of(after->x509_authorities[0]->asn1.data,
			after->x509_authorities[0]->asn1.len));
	FREE(before);
	FREE(after);
	finish();
}

TEST_MAIN(TEST(run_server), TEST(test_create), TEST(test_list), TEST(test_expiry),
	TEST(test_update_delete), TEST(test_attest), TEST(test_sign), TEST(test_mint),
	TEST(test_rate_limit), TEST(test_watch), TEST(test_bundles), TEST(test_small_services),
	TEST(test_second_server), TEST(test_restart))

/*
 * The load generator of `make bench`: one measurement a call, one figure a line ("name value
 * unit").
 *
 *   load fresh   AGENT-SOCKET N             fresh connection to first SVID, bare HTTP/2
 *   load streams AGENT-SOCKET N AGENT-PID   memory per open stream, wakeups while idle
 *   load sds     AGENT-SOCKET N AGENT-PID EACH  memory per open stream of proxies,
 *                                           EACH on a connection, opened all at once
 *   load pods    AGENT-SOCKET N AGENT-PID PAUSE-MS CGROUP…  a new process each time, in one
 *                                           of the control groups after the other, fresh
 *                                           connection to first SVID; CPU of the agent
 *   load jwt     AGENT-SOCKET N             new JWT-SVID through the agent
 *   load create  SERVER-SOCKET N BATCH PARENT
 *   load push    SERVER-SOCKET AGENT-SOCKET N PARENT
 *   load sign    SERVER-SOCKET PORT BUNDLE.pem BATCH CALLS SERVER-PID
 *   load agents  SERVER-SOCKET PORT BUNDLE.pem N SECONDS SERVER-PID watch|poll
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "assay/agent/v1/sync.pb-c.h"
#include "envoy/service/discovery/v3/discovery.pb-c.h"
#include "lib/clock.h"
#include "lib/crypto.h"
#include "lib/loop.h"
#include "lib/rpc.h"
#include "lib/tls.h"
#include "lib/x509.h"
#include "spiffe/workload/workload.pb-c.h"
#include "spire/api/server/agent/v1/agent.pb-c.h"
#include "spire/api/server/entry/v1/entry.pb-c.h"
#include "spire/api/server/svid/v1/svid.pb-c.h"

enum { RPC_TIMEOUT_MS = 60000, FRAME_HEAD = 9 };

static struct loop *loop;

_Noreturn static void die(const char *fmt, ...) PRINTF_LIKE(1, 2);
_Noreturn static void die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fprintf(stderr, "load: ");
	vfprintf(stderr, fmt, ap);
	fprintf(stderr, "\n");
	va_end(ap);
	exit(1);
}

static int number(const char *s)
{
	return (int)strtol(s, NULL, 10);
}

/* ---- what is measured ---- */

struct samples {
	double *v;
	size_t n;
};

static void sample(struct samples *s, double v)
{
	s->v = xreallocarray(s->v, s->n + 1, sizeof(*s->v));
	s->v[s->n++] = v;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static void print_latency(const char *name, struct samples *s)
{
	if (s->n == 0)
		die("%s: no sample", name);
	qsort(s->v, s->n, sizeof(*s->v), by_value);
	printf("%s p50 %.3f ms\n", name, s->v[s->n / 2]);
	printf("%s p99 %.3f ms\n", name, s->v[s->n * 99 / 100]);
	free(s->v);
}

static double ms_since(struct mono t)
{
	return (double)(clock_mono().ns - t.ns) / 1e6;
}

/* Seconds of CPU, user and system, that a process has used. */
static double cpu_of(int pid)
{
	AUTO_BUF struct buf b = BUF_INIT;
	AUTO(free) char *path = xasprintf("/proc/%d/stat", pid);
	unsigned long u = 0, s = 0;
	const char *p;
	struct err e;

	if (buf_read_file(&b, path, &e))
		die("%s", e.msg);
	p = strrchr(buf_cstr(&b), ')');
	if (!p || sscanf(p, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &u, &s) != 2)
		die("%s: not understood", path);
	return (double)(u + s) / (double)sysconf(_SC_CLK_TCK);
}

static long status_of(int pid, const char *key)
{
	AUTO_BUF struct buf b = BUF_INIT;
	AUTO(free) char *path = xasprintf("/proc/%d/status", pid);
	const char *p;
	struct err e;

	if (buf_read_file(&b, path, &e))
		die("%s", e.msg);
	p = strstr(buf_cstr(&b), key);
	return p ? strtol(p + strlen(key), NULL, 10) : 0;
}

/* Context switches by own will, of all threads: wakeups. */
static long wakeups_of(int pid)
{
	AUTO(free) char *cmd = xasprintf("/proc/%d/task", pid);
	long total = 0;

	for (int tid = pid; tid < pid + 64; tid++) {
		AUTO(free) char *path = xasprintf("%s/%d/status", cmd, tid);
		AUTO_BUF struct buf b = BUF_INIT;
		const char *p;

		if (access(path, R_OK) || buf_read_file(&b, path, NULL))
			continue;
		p = strstr(buf_cstr(&b), "\nvoluntary_ctxt_switches:");
		total += p ? strtol(p + 25, NULL, 10) : 0;
	}
	return total;
}

/* ---- bare HTTP/2 ---- */

static void frame(struct buf *b, int type, int flags, int stream, struct bytes payload)
{
	uint8_t h[FRAME_HEAD] = { (uint8_t)(payload.n >> 16), (uint8_t)(payload.n >> 8),
		(uint8_t)payload.n, (uint8_t)type, (uint8_t)flags, (uint8_t)(stream >> 24),
		(uint8_t)(stream >> 16), (uint8_t)(stream >> 8), (uint8_t)stream };

	buf_append(b, h, sizeof(h));
	buf_bytes(b, payload);
}

/* RFC 7541 6.2.2: literal without indexing, new name; strings shorter than 127 bytes, not
 * Huffman-coded. */
static void header(struct buf *b, const char *name, const char *value)
{
	buf_byte(b, 0);
	buf_byte(b, (uint8_t)strlen(name));
	buf_str(b, name);
	buf_byte(b, (uint8_t)strlen(value));
	buf_str(b, value);
}

static int bare_connect(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
	if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0)
		die("cannot connect to %s", path);
	return fd;
}

static void bare_hello(struct buf *out)
{
	buf_str(out, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
	frame(out, 4, 0, 0, bytes_of(NULL, 0));
}

static void bare_call(struct buf *out, int stream, const char *method)
{
	AUTO_BUF struct buf h = BUF_INIT;

	header(&h, ":method", "POST");
	header(&h, ":scheme", "http");
	header(&h, ":path", method);
	header(&h, ":authority", "localhost");
	header(&h, "content-type", "application/grpc");
	header(&h, "te", "trailers");
	header(&h, "workload.spiffe.io", "true");
	frame(out, 1, 4, stream, buf_view(&h));
}

static void bare_write(int fd, const struct buf *out)
{
	if (write(fd, out->p, out->len) != (ssize_t)out->len)
		die("cannot write to the agent");
}

static int bare_open(const char *path)
{
	AUTO_BUF struct buf out = BUF_INIT;
	int fd = bare_connect(path);

	bare_hello(&out);
	bare_call(&out, 1, "/SpiffeWorkloadAPI/FetchX509SVID");
	frame(&out, 0, 1, 1, bytes_of("\0\0\0\0\0", 5));
	bare_write(fd, &out);
	return fd;
}

/* Reads until the first whole gRPC message of stream 1 is there. */
static size_t bare_first(int fd)
{
	uint8_t in[65536];
	size_t len = 0, at = 0, got = 0, want = 0;
	bool acked = false;

	for (;;) {
		ssize_t n = read(fd, in + len, sizeof(in) - len);

		if (n <= 0)
			die("the agent closed the connection");
		len += (size_t)n;
		while (len - at >= FRAME_HEAD) {
			size_t size = (size_t)in[at] << 16 | (size_t)in[at + 1] << 8 | in[at + 2];
			int type = in[at + 3], flags = in[at + 4];

			if (len - at < FRAME_HEAD + size)
				break;
			if (type == 4 && !(flags & 1) && !acked) {
				static const uint8_t ack[FRAME_HEAD] = { 0, 0, 0, 4, 1, 0, 0, 0,
					0 };

				acked = write(fd, ack, sizeof(ack)) == sizeof(ack);
			}
			if (type == 1 && (flags & 1))
				die("the agent refused the call");
			if (type == 0 && size >= 5 && want == 0)
				want = 5 + ((size_t)in[at + FRAME_HEAD + 1] << 24 |
						   (size_t)in[at + FRAME_HEAD + 2] << 16 |
						   (size_t)in[at + FRAME_HEAD + 3] << 8 |
						   in[at + FRAME_HEAD + 4]);
			if (type == 0)
				got += size;
			if (want && got >= want)
				return want;
			at += FRAME_HEAD + size;
		}
		if (len == sizeof(in))
			die("a first message over 64 KB");
	}
}

static void fresh(int argc, char **argv)
{
	struct samples s = { 0 };
	int n = argc > 3 ? number(argv[3]) : 1000;

	for (int i = 0; i < n; i++) {
		struct mono t = clock_mono();
		int fd = bare_open(argv[2]);

		bare_first(fd);
		sample(&s, ms_since(t));
		close(fd);
	}
	print_latency("fresh_connection_to_svid", &s);
}

#include "tests/bench/load_workloads.inc"

/* ---- gRPC clients ---- */

struct target {
	const char *unix_path;
	int port;
	struct x509_chain roots;
	struct tls_ctx *tls;
};

static int any_server(void *arg, const struct x509_chain *peer, struct err *e)
{
	struct target *t = arg;
	struct spiffeid id = SPIFFEID_INIT;
	int r = tls_verify_svid(peer, &t->roots, clock_wall(), &id, e);

	spiffeid_deinit(&id);
	return r;
}

static int dial(void *arg, struct dial_options *o, struct err *e)
{
	struct target *t = arg;

	(void)e;
	o->timeout_ms = 10000;
	if (t->unix_path) {
		o->unix_path = t->unix_path;
		return 0;
	}
	o->tcp_host = "127.0.0.1";
	o->tcp_port = t->port;
	o->tls = t->tls;
	o->verify = any_server;
	o->verify_arg = t;
	return 0;
}

static struct rpc_client *client_for(struct target *t)
{
	struct rpc_client_options o = { .dial = dial, .arg = t, .message_max = 64 << 20 };

	return rpc_client_new(loop, &o);
}

static ProtobufCMessage *must(struct rpc_client *c, const char *method, const ProtobufCMessage *rq,
	const ProtobufCMessageDescriptor *d)
{
	static const char *const metadata[] = { "workload.spiffe.io", "true", NULL };
	struct rpc_unary_options o = { .method = method,
		.request = rq,
		.response = d,
		.metadata = metadata,
		.timeout_ms = RPC_TIMEOUT_MS };
	ProtobufCMessage *m = NULL;
	struct err e;

	if (rpc_unary_sync(loop, c, &o, &m, &e))
		die("%s: %s", method, e.msg);
	return m;
}

static void jwt(int argc, char **argv)
{
	struct target t = { .unix_path = argv[2] };
	struct rpc_client *c = client_for(&t);
	struct samples s = { 0 };
	int n = argc > 3 ? number(argv[3]) : 500;

	for (int i = 0; i <= n; i++) {
		AUTO(free) char *aud = xasprintf("bench-%d-%d", (int)getpid(), i);
		JWTSVIDRequest rq = JWTSVIDREQUEST__INIT;
		struct mono from = clock_mono();

		rq.audience = &aud;
		rq.n_audience = 1;
		protobuf_c_message_free_unpacked(must(c, "/SpiffeWorkloadAPI/FetchJWTSVID",
							 &rq.base, &jwtsvidresponse__descriptor),
			NULL);
		if (i > 0)
			sample(&s, ms_since(from));
	}
	print_latency("new_jwt_svid", &s);
	rpc_client_free(c);
}

/* ---- entries ---- */

static Spire__Api__Types__SPIFFEID *id_message(const char *text)
{
	Spire__Api__Types__SPIFFEID *m = xcalloc(1, sizeof(*m));
	struct spiffeid id;
	struct err e;

	if (spiffeid_parse_str(&id, text, &e))
		die("%s: %s", text, e.msg);
	spire__api__types__spiffeid__init(m);
	m->trust_domain = xstrndup((const char *)spiffeid_td(&id).p, spiffeid_td(&id).n);
	m->path = xstrdup(spiffeid_path(&id));
	spiffeid_deinit(&id);
	return m;
}

static Spire__Api__Types__Entry *entry_message(
	const char *parent, const char *id, const char *type, const char *value)
{
	Spire__Api__Types__Entry *m = xcalloc(1, sizeof(*m));
	Spire__Api__Types__Selector *s = xcalloc(1, sizeof(*s));

	spire__api__types__entry__init(m);
	spire__api__types__selector__init(s);
	s->type = xstrdup(type);
	s->value = xstrdup(value);
	m->parent_id = id_message(parent);
	m->spiffe_id = id_message(id);
	m->selectors = xcalloc(1, sizeof(*m->selectors));
	m->selectors[0] = s;
	m->n_selectors = 1;
	return m;
}

struct creation {
	Spire__Api__Server__Entry__V1__BatchCreateEntryRequest rq;
	int left, batch, made, running;
	const char *parent;
	char *td;
	struct rpc_client *c;
	char run[32];
};

static void create_next(struct creation *k);

static void created(void *arg, const struct rpc_status *st, const ProtobufCMessage *m)
{
	const Spire__Api__Server__Entry__V1__BatchCreateEntryResponse *rs = (const void *)m;
	struct creation *k = arg;

	if (st->code)
		die("BatchCreateEntry: %s", st->message);
	for (size_t i = 0; i < rs->n_results; i++) {
		if (rs->results[i]->status->code)
			die("entry: %s", rs->results[i]->status->message);
	}
	k->running--;
	create_next(k);
}

static void create_next(struct creation *k)
{
	Spire__Api__Server__Entry__V1__BatchCreateEntryRequest rq =
		SPIRE__API__SERVER__ENTRY__V1__BATCH_CREATE_ENTRY_REQUEST__INIT;
	struct rpc_unary_options o = { .method =
					       "/spire.api.server.entry.v1.Entry/BatchCreateEntry",
		.request = &rq.base,
		.response = &spire__api__server__entry__v1__batch_create_entry_response__descriptor,
		.timeout_ms = RPC_TIMEOUT_MS };
	int n = k->left < k->batch ? k->left : k->batch;

	if (n == 0) {
		if (k->running == 0)
			loop_stop(loop);
		return;
	}
	rq.n_entries = (size_t)n;
	rq.entries = xcalloc((size_t)n, sizeof(*rq.entries));
	for (int i = 0; i < n; i++, k->made++) {
		AUTO(free) char *id = xasprintf("spiffe://%s/bench/%s/%d", k->td, k->run, k->made);
		AUTO(free) char *value = xasprintf("uid:%d", 100000 + k->made);

		rq.entries[i] = entry_message(k->parent, id, "unix", value);
	}
	k->left -= n;
	k->running++;
	rpc_unary(k->c, &o, created, k);
	for (int i = 0; i < n; i++)
		spire__api__types__entry__free_unpacked(rq.entries[i], NULL);
	free(rq.entries);
}

static char *td_of(const char *id)
{
	char *td = NULL;
	struct err e;

	if (trust_domain_parse(id, &td, &e))
		die("%s: %s", id, e.msg);
	return td;
}

static void create(int argc, char **argv)
{
	enum { IN_FLIGHT = 4 };
	struct target t = { .unix_path = argv[2] };
	struct creation k = { .left = number(argv[3]),
		.batch = number(argv[4]),
		.parent = argv[5],
		.c = client_for(&t) };
	struct mono from;

	(void)argc;
	k.td = td_of(argv[5]);
	snprintf(k.run, sizeof(k.run), "%d", (int)getpid());
	from = clock_mono();
	for (int i = 0; i < IN_FLIGHT; i++)
		create_next(&k);
	loop_run(loop);
	printf("entries_created_batches_of_%d %.0f per_s\n", k.batch,
		k.made / (ms_since(from) / 1000));
	free(k.td);
	rpc_client_free(k.c);
}

/* ---- entry create to SVID on an open stream ---- */

struct push {
	struct rpc_client *server, *agent;
	const char *parent;
	char *td, *want, *entry_id;
	int left, n;
	struct mono from;
	struct samples s;
	bool waiting, gone;
	struct loop_timer *next;
};

static void push_deleted(void *arg, const struct rpc_status *st, const ProtobufCMessage *m)
{
	struct push *p = arg;

	(void)m;
	if (st->code)
		die("BatchDeleteEntry: %s", st->message);
	loop_timer_set(p->next, 20 * NS_PER_MS);
}

static void push_delete(struct push *p)
{
	Spire__Api__Server__Entry__V1__BatchDeleteEntryRequest rq =
		SPIRE__API__SERVER__ENTRY__V1__BATCH_DELETE_ENTRY_REQUEST__INIT;
	struct rpc_unary_options o = { .method =
					       "/spire.api.server.entry.v1.Entry/BatchDeleteEntry",
		.request = &rq.base,
		.response = &spire__api__server__entry__v1__batch_delete_entry_response__descriptor,
		.timeout_ms = RPC_TIMEOUT_MS };

	rq.ids = &p->entry_id;
	rq.n_ids = 1;
	rpc_unary(p->server, &o, push_deleted, p);
}

static void push_done_if(struct push *p)
{
	if (p->waiting || !p->entry_id)
		return;
	push_delete(p);
	free(p->entry_id);
	p->entry_id = NULL;
}

static void push_message(void *arg, struct rpc_stream *s, const ProtobufCMessage *m)
{
	const X509SVIDResponse *rs = (const X509SVIDResponse *)m;
	struct push *p = arg;

	(void)s;
	for (size_t i = 0; p->waiting && i < rs->n_svids; i++) {
		if (strcmp(rs->svids[i]->spiffe_id, p->want) != 0)
			continue;
		sample(&p->s, ms_since(p->from));
		p->waiting = false;
		push_done_if(p);
	}
}

static void push_ended(void *arg, struct rpc_stream *s, const struct rpc_status *st)
{
	(void)arg;
	(void)s;
	die("the workload stream ended: %s", st->message);
}

static void push_created(void *arg, const struct rpc_status *st, const ProtobufCMessage *m)
{
	const Spire__Api__Server__Entry__V1__BatchCreateEntryResponse *rs = (const void *)m;
	struct push *p = arg;

	if (st->code || rs->results[0]->status->code)
		die("BatchCreateEntry: %s",
			st->code ? st->message : rs->results[0]->status->message);
	p->entry_id = xstrdup(rs->results[0]->entry->id);
	push_done_if(p);
}

static void push_next(void *arg)
{
	Spire__Api__Server__Entry__V1__BatchCreateEntryRequest rq =
		SPIRE__API__SERVER__ENTRY__V1__BATCH_CREATE_ENTRY_REQUEST__INIT;
	struct rpc_unary_options o = { .method =
					       "/spire.api.server.entry.v1.Entry/BatchCreateEntry",
		.request = &rq.base,
		.response = &spire__api__server__entry__v1__batch_create_entry_response__descriptor,
		.timeout_ms = RPC_TIMEOUT_MS };
	struct push *p = arg;
	AUTO(free) char *uid = xasprintf("uid:%d", (int)getuid());
	Spire__Api__Types__Entry *en;

	if (p->left-- == 0) {
		loop_stop(loop);
		return;
	}
	free(p->want);
	p->want = xasprintf("spiffe://%s/push/%d/%d", p->td, (int)getpid(), p->n++);
	en = entry_message(p->parent, p->want, "unix", uid);
	rq.entries = &en;
	rq.n_entries = 1;
	p->waiting = true;
	p->from = clock_mono();
	rpc_unary(p->server, &o, push_created, p);
	spire__api__types__entry__free_unpacked(en, NULL);
}

static void push(int argc, char **argv)
{
	static const char *const metadata[] = { "workload.spiffe.io", "true", NULL };
	struct target srv = { .unix_path = argv[2] }, ag = { .unix_path = argv[3] };
	struct push p = { .server = client_for(&srv),
		.agent = client_for(&ag),
		.left = number(argv[4]),
		.parent = argv[5] };
	struct rpc_stream_options o = { .method = "/SpiffeWorkloadAPI/FetchX509SVID",
		.response = &x509_svidresponse__descriptor,
		.metadata = metadata,
		.message = push_message,
		.ended = push_ended,
		.arg = &p };
	X509SVIDRequest rq = X509_SVIDREQUEST__INIT;
	struct rpc_stream *s;

	(void)argc;
	p.td = td_of(argv[5]);
	p.next = loop_timer_new(loop, push_next, &p);
	s = rpc_stream_open(p.agent, &o);
	rpc_stream_send(s, &rq.base);
	rpc_stream_half_close(s);
	loop_timer_set(p.next, 500 * NS_PER_MS);
	loop_run(loop);
	print_latency("entry_create_to_svid", &p.s);
	exit(0);
}

/* ---- agents ---- */

struct node_agent {
	struct target t;
	struct rpc_client *c;
	struct key *key;
	char *id;
	struct rpc_stream *watch;
	struct loop_timer *poll;
	struct agents *all;
};

struct agents {
	struct node_agent *v;
	int n, ready;
};

static void attest_message(void *arg, struct rpc_stream *s, const ProtobufCMessage *m)
{
	const Spire__Api__Server__Agent__V1__AttestAgentResponse *rs = (const void *)m;
	struct node_agent *a = arg;
	struct x509_chain chain = { 0 };
	struct tls_options o = { .alpn = "h2" };
	struct err e;

	(void)s;
	if (!rs->result || !rs->result->svid)
		die("AttestAgent: no result");
	for (size_t i = 0; i < rs->result->svid->n_cert_chain; i++) {
		struct x509_cert *c = NULL;

		if (x509_parse(bytes_of(rs->result->svid->cert_chain[i].data,
				       rs->result->svid->cert_chain[i].len),
			    &c, &e))
			die("%s", e.msg);
		x509_chain_add(&chain, c);
		x509_unref(c);
	}
	a->id = xasprintf(
		"spiffe://%s%s", rs->result->svid->id->trust_domain, rs->result->svid->id->path);
	o.chain = &chain;
	o.key = a->key;
	tls_ctx_unref(a->t.tls);
	if (tls_ctx_new(&o, &a->t.tls, &e))
		die("%s", e.msg);
	x509_chain_deinit(&chain);
}

static void attest_ended(void *arg, struct rpc_stream *s, const struct rpc_status *st)
{
	struct node_agent *a = arg;

	(void)s;
	if (!a->id)
		die("AttestAgent: %s", st->message);
	loop_stop(loop);
}

static void attest(struct node_agent *a, struct rpc_client *admin, int port, const char *bundle)
{
	Spire__Api__Server__Agent__V1__CreateJoinTokenRequest trq =
		SPIRE__API__SERVER__AGENT__V1__CREATE_JOIN_TOKEN_REQUEST__INIT;
	Spire__Api__Server__Agent__V1__AttestAgentRequest rq =
		SPIRE__API__SERVER__AGENT__V1__ATTEST_AGENT_REQUEST__INIT;
	Spire__Api__Server__Agent__V1__AttestAgentRequest__Params params =
		SPIRE__API__SERVER__AGENT__V1__ATTEST_AGENT_REQUEST__PARAMS__INIT;
	Spire__Api__Server__Agent__V1__AgentX509SVIDParams svid =
		SPIRE__API__SERVER__AGENT__V1__AGENT_X509_SVIDPARAMS__INIT;
	Spire__Api__Types__AttestationData data = SPIRE__API__TYPES__ATTESTATION_DATA__INIT;
	struct rpc_stream_options o = { .method = "/spire.api.server.agent.v1.Agent/AttestAgent",
		.response = &spire__api__server__agent__v1__attest_agent_response__descriptor,
		.timeout_ms = RPC_TIMEOUT_MS,
		.message = attest_message,
		.ended = attest_ended,
		.arg = a };
	struct tls_options anonymous = { .alpn = "h2" };
	Spire__Api__Types__JoinToken *token;
	AUTO_BUF struct buf csr = BUF_INIT;
	AUTO_BUF struct buf pem = BUF_INIT;
	struct rpc_client *c;
	struct rpc_stream *s;
	struct err e;

	trq.ttl = 600;
	token = (void *)must(admin, "/spire.api.server.agent.v1.Agent/CreateJoinToken", &trq.base,
		&spire__api__types__join_token__descriptor);
	a->t.port = port;
	if (buf_read_file(&pem, bundle, &e) ||
		x509_chain_parse_pem(&a->t.roots, buf_view(&pem), X509_MAX_ROOTS, &e) ||
		tls_ctx_new(&anonymous, &a->t.tls, &e) || key_generate(KEY_EC_P256, &a->key, &e) ||
		x509_csr_make(a->key, NULL, &csr, &e))
		die("%s", e.msg);
	data.type = (char[]){ "join_token" };
	data.payload.data = (uint8_t *)token->value;
	data.payload.len = strlen(token->value);
	svid.csr.data = csr.p;
	svid.csr.len = csr.len;
	params.data = &data;
	params.params = &svid;
	rq.step_case = SPIRE__API__SERVER__AGENT__V1__ATTEST_AGENT_REQUEST__STEP_PARAMS;
	rq.params = &params;
	c = client_for(&a->t);
	s = rpc_stream_open(c, &o);
	rpc_stream_send(s, &rq.base);
	rpc_stream_half_close(s);
	loop_run(loop);
	rpc_client_free(c);
	protobuf_c_message_free_unpacked(&token->base, NULL);
	a->c = client_for(&a->t);
}

/* ---- signing, end to end ---- */

struct signing {
	struct node_agent a;
	Spire__Api__Server__Svid__V1__BatchNewX509SVIDRequest rq;
	int left, running, signed_;
};

static void sign_next(struct signing *k);

static void signed_batch(void *arg, const struct rpc_status *st, const ProtobufCMessage *m)
{
	const Spire__Api__Server__Svid__V1__BatchNewX509SVIDResponse *rs = (const void *)m;
	struct signing *k = arg;

	if (st->code)
		die("BatchNewX509SVID: %s", st->message);
	for (size_t i = 0; i < rs->n_results; i++) {
		if (rs->results[i]->status->code)
			die("BatchNewX509SVID: %s", rs->results[i]->status->message);
	}
	k->signed_ += (int)rs->n_results;
	k->running--;
	sign_next(k);
}

static void sign_next(struct signing *k)
{
	struct rpc_unary_options o = { .method = "/spire.api.server.svid.v1.SVID/BatchNewX509SVID",
		.request = &k->rq.base,
		.response = &spire__api__server__svid__v1__batch_new_x509_svidresponse__descriptor,
		.timeout_ms = RPC_TIMEOUT_MS };

	if (k->left == 0) {
		if (k->running == 0)
			loop_stop(loop);
		return;
	}
	k->left--;
	k->running++;
	rpc_unary(k->a.c, &o, signed_batch, k);
}

static void sign(int argc, char **argv)
{
	enum { IN_FLIGHT = 8 };
	struct target t = { .unix_path = argv[2] };
	struct rpc_client *admin = client_for(&t);
	struct signing k = { .left = number(argv[6]) };
	int batch = number(argv[5]), pid = number(argv[7]);
	Spire__Api__Server__Entry__V1__BatchCreateEntryRequest crq =
		SPIRE__API__SERVER__ENTRY__V1__BATCH_CREATE_ENTRY_REQUEST__INIT;
	Spire__Api__Server__Entry__V1__BatchCreateEntryResponse *crs;
	AUTO(free) char *id = NULL;
	AUTO(free) char *td = NULL;
	AUTO_BUF struct buf csr = BUF_INIT;
	Spire__Api__Types__Entry *en;
	struct mono from;
	double cpu, wall;
	struct err e;

	(void)argc;
	attest(&k.a, admin, number(argv[3]), argv[4]);
	td = td_of(k.a.id);
	id = xasprintf("spiffe://%s/sign/%d", td, (int)getpid());
	en = entry_message(k.a.id, id, "unix", "uid:1");
	crq.entries = &en;
	crq.n_entries = 1;
	crs = (void *)must(admin, "/spire.api.server.entry.v1.Entry/BatchCreateEntry", &crq.base,
		&spire__api__server__entry__v1__batch_create_entry_response__descriptor);
	if (crs->results[0]->status->code)
		die("entry: %s", crs->results[0]->status->message);
	if (x509_csr_make(k.a.key, id, &csr, &e))
		die("%s", e.msg);
	spire__api__server__svid__v1__batch_new_x509_svidrequest__init(&k.rq);
	k.rq.n_params = (size_t)batch;
	k.rq.params = xcalloc((size_t)batch, sizeof(*k.rq.params));
	for (int i = 0; i < batch; i++) {
		Spire__Api__Server__Svid__V1__NewX509SVIDParams *p = xcalloc(1, sizeof(*p));

		spire__api__server__svid__v1__new_x509_svidparams__init(p);
		p->entry_id = crs->results[0]->entry->id;
		p->csr.data = csr.p;
		p->csr.len = csr.len;
		k.rq.params[i] = p;
	}
	sleep(argc > 8 ? (unsigned)number(argv[8]) : 0); /* SPIRE's entry cache needs 5 s */
	cpu = cpu_of(pid);
	from = clock_mono();
	for (int i = 0; i < IN_FLIGHT; i++)
		sign_next(&k);
	loop_run(loop);
	wall = ms_since(from) / 1000;
	cpu = cpu_of(pid) - cpu;
	printf("svids_signed_batches_of_%d %.0f per_server_cpu_s\n", batch, k.signed_ / cpu);
	printf("svids_signed_batches_of_%d %.0f per_s\n", batch, k.signed_ / wall);
	exit(0);
}

/* ---- idle agents ---- */

static void watch_message(void *arg, struct rpc_stream *s, const ProtobufCMessage *m)
{
	const Assay__Agent__V1__WatchResponse *rs = (const void *)m;
	struct node_agent *a = arg;

	(void)s;
	if (!rs->more && a->all->ready < a->all->n && ++a->all->ready == a->all->n)
		loop_stop(loop);
}

static void watch_ended(void *arg, struct rpc_stream *s, const struct rpc_status *st)
{
	(void)arg;
	(void)s;
	die("Watch ended: %s %s", err_code_name(st->code), st->message);
}

static void watch(struct node_agent *a)
{
	struct rpc_stream_options o = { .method = "/assay.agent.v1.Sync/Watch",
		.response = &assay__agent__v1__watch_response__descriptor,
		.message = watch_message,
		.ended = watch_ended,
		.arg = a };
	Assay__Agent__V1__WatchRequest rq = ASSAY__AGENT__V1__WATCH_REQUEST__INIT;
	Assay__Agent__V1__WatchRequest__Start start = ASSAY__AGENT__V1__WATCH_REQUEST__START__INIT;

	rq.step_case = ASSAY__AGENT__V1__WATCH_REQUEST__STEP_START;
	rq.start = &start;
	a->watch = rpc_stream_open(a->c, &o);
	rpc_stream_send(a->watch, &rq.base);
}

static void poll_again(void *arg);

static void polled(void *arg, const struct rpc_status *st, const ProtobufCMessage *m)
{
	struct node_agent *a = arg;

	(void)m;
	if (st->code)
		die("GetAuthorizedEntries: %s", st->message);
	if (a->all->ready < a->all->n && ++a->all->ready == a->all->n)
		loop_stop(loop);
	loop_timer_set(a->poll, loop_jitter(5 * NS_PER_SEC, 10));
}

static void poll_again(void *arg)
{
	struct node_agent *a = arg;
	Spire__Api__Server__Entry__V1__GetAuthorizedEntriesRequest rq =
		SPIRE__API__SERVER__ENTRY__V1__GET_AUTHORIZED_ENTRIES_REQUEST__INIT;
	struct rpc_unary_options o = {
		.method = "/spire.api.server.entry.v1.Entry/GetAuthorizedEntries",
		.request = &rq.base,
		.response =
			&spire__api__server__entry__v1__get_authorized_entries_response__descriptor,
		.timeout_ms = RPC_TIMEOUT_MS
	};

	rpc_unary(a->c, &o, polled, a);
}

static void agents(int argc, char **argv)
{
	struct target t = { .unix_path = argv[2] };
	struct rpc_client *admin = client_for(&t);
	struct agents all = { .n = number(argv[5]) };
	int seconds = number(argv[6]), pid = number(argv[7]);
	bool push_mode = strcmp(argv[8], "watch") == 0;
	struct loop_timer *end;
	double cpu;

	(void)argc;
	all.v = xcalloc((size_t)all.n, sizeof(*all.v));
	for (int i = 0; i < all.n; i++) {
		all.v[i].all = &all;
		attest(&all.v[i], admin, number(argv[3]), argv[4]);
		all.v[i].poll = loop_timer_new(loop, poll_again, &all.v[i]);
	}
	for (int i = 0; i < all.n; i++) {
		if (push_mode)
			watch(&all.v[i]);
		else
			poll_again(&all.v[i]);
	}
	loop_run(loop);
	cpu = cpu_of(pid);
	end = loop_timer_new(loop, (void (*)(void *))loop_stop, loop);
	loop_timer_set(end, seconds * NS_PER_SEC);
	loop_run(loop);
	printf("server_cpu_with_%d_idle_agents_%s %.2f percent_of_a_core\n", all.n, argv[8],
		(cpu_of(pid) - cpu) / seconds * 100);
	exit(0);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int args;
		void (*fn)(int argc, char **argv);
	} modes[] = { { "fresh", 4, fresh }, { "streams", 5, streams }, { "sds", 6, sds },
		{ "pods", 7, pods }, { "jwt", 4, jwt }, { "create", 6, create },
		{ "push", 6, push }, { "sign", 8, sign }, { "agents", 9, agents } };

	crypto_init();
	loop = loop_new();
	for (size_t i = 0; argc > 1 && i < ARRAY_LEN(modes); i++) {
		if (strcmp(argv[1], modes[i].name) == 0 && argc >= modes[i].args) {
			modes[i].fn(argc, argv);
			return 0;
		}
	}
	die("see the comment at the top of load.c for the modes and their arguments");
}

/*
 * A workload with code of its own: holds its identity by a FetchX509SVID stream on the agent's
 * socket, serves or calls a neighbour by mutual TLS, and says what it sees, one event a line.
 *
 *   workload -socket PATH -name NAME [-listen PORT|-connect PORT] [-expect SPIFFE-ID] [-every MS]
 * [-for S] [-once] [-timeout S]
 *
 * Lines: "NAME identity ID serial HEX expires RFC3339", "NAME federated TD roots N", "NAME refused
 * CODE MESSAGE", "NAME listening PORT", "NAME call N ok peer ID serial HEX", "NAME served peer ID
 * serial HEX", "NAME FAILED why". The exit status is 0 when no call failed (with -once: when an
 * identity came).
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/clock.h"
#include "lib/door.h"
#include "lib/loop.h"
#include "lib/map.h"
#include "lib/rpc.h"
#include "lib/tls.h"
#include "lib/x509.h"
#include "spiffe/workload/workload.pb-c.h"

enum { CALL_TIMEOUT_MS = 2000, LINE_MAX_BYTES = 4096 };

static struct {
	struct loop *loop;
	const char *socket, *name, *expect;
	int listen, connect, every_ms, for_s, timeout_s;
	bool once, serve;
	struct rpc_client *agent;
	struct rpc_stream *stream;
	struct tls_ctx *server_ctx, *client_ctx;
	struct x509_chain roots;
	char *own;           /* trust domain */
	struct map *foreign; /* trust domain → struct x509_chain */
	struct door *door;
	struct loop_timer *call_timer, *end_timer, *retry_timer;
	bool calling, ended;
	int calls, failures;
	struct mono refused_since;
} w;

static void say(const char *fmt, ...) PRINTF_LIKE(1, 2);
static void say(const char *fmt, ...)
{
	char when[40];
	va_list ap;

	wall_format(clock_wall(), when, sizeof(when));
	printf("%s %s ", when, w.name);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
	fflush(stdout);
}

static void end(void *arg)
{
	(void)arg;
	w.ended = true;
	loop_stop(w.loop);
}

/* ---- identity ---- */

static int peer_ok(void *arg, const struct x509_chain *peer, struct err *e)
{
	struct spiffeid id = SPIFFEID_INIT;
	const struct x509_chain *roots;
	int r = x509_svid_id(peer->v[0], &id, e);

	(void)arg;
	if (r)
		return r;
	roots = spiffeid_member_of(&id, w.own) ? &w.roots : map_get(w.foreign, spiffeid_td(&id));
	if (!roots) {
		r = err_set(e, ERR_DENIED, "no bundle for %s", id.text);
		spiffeid_deinit(&id);
		return r;
	}
	spiffeid_deinit(&id);
	r = tls_verify_svid(peer, roots, clock_wall(), &id, e);
	if (!r && w.expect && strcmp(id.text, w.expect) != 0)
		r = err_set(e, ERR_DENIED, "the peer is %s, not %s", id.text, w.expect);
	spiffeid_deinit(&id);
	return r;
}

static struct tls_ctx *server_ctx(void *arg)
{
	(void)arg;
	return tls_ctx_ref(w.server_ctx);
}

static void on_served(void *arg, int fd, struct peer *peer);

static void listen_once(void)
{
	struct err e = ERR_INIT;
	struct door_options o = { .tcp_host = "127.0.0.1",
		.tcp_port = w.listen,
		.tls = server_ctx,
		.verify = peer_ok,
		.raw = true,
		.on_conn = on_served };

	if (w.door || !w.serve)
		return;
	if (door_open(w.loop, &o, &w.door, &e)) {
		say("FAILED to listen: %s", e.msg);
		w.failures++;
		end(NULL);
		return;
	}
	say("listening %d", door_port(w.door));
}

static int take_svid(const X509SVID *s, struct err *e)
{
	struct x509_chain chain = { 0 };
	struct x509_chain roots = { 0 };
	struct key *key = NULL;
	struct tls_ctx *srv = NULL, *cli = NULL;
	struct tls_options o = { .client_cert = TLS_CLIENT_CERT_REQUIRED };
	char when[40];
	AUTO_BUF struct buf serial = BUF_INIT;
	int r;

	r = x509_chain_parse_der(
		&chain, bytes_of(s->x509_svid.data, s->x509_svid.len), X509_MAX_CHAIN, e);
	if (!r)
		r = x509_chain_parse_der(
			&roots, bytes_of(s->bundle.data, s->bundle.len), X509_MAX_ROOTS, e);
	if (!r)
		r = key_from_pkcs8(bytes_of(s->x509_svid_key.data, s->x509_svid_key.len), &key, e);
	o.chain = &chain;
	o.key = key;
	o.server = true;
	if (!r)
		r = tls_ctx_new(&o, &srv, e);
	o.server = false;
	if (!r)
		r = tls_ctx_new(&o, &cli, e);
	if (!r) {
		tls_ctx_unref(w.server_ctx);
		tls_ctx_unref(w.client_ctx);
		w.server_ctx = srv;
		w.client_ctx = cli;
		x509_chain_deinit(&w.roots);
		w.roots = roots;
		roots = (struct x509_chain){ 0 };
		x509_serial_hex(chain.v[0], &serial);
		wall_format(x509_not_after(chain.v[0]), when, sizeof(when));
		say("identity %s serial %.16s expires %s", s->spiffe_id, buf_cstr(&serial), when);
	}
	key_unref(key);
	x509_chain_deinit(&chain);
	x509_chain_deinit(&roots);
	return r;
}

/* The bundles of other trust domains, all of them each time. */
static void take_foreign(const X509SVIDResponse *rs)
{
	struct map *now = map_new();
	struct bytes key;
	void *v;

	for (size_t i = 0; i < rs->n_federated_bundles; i++) {
		const X509SVIDResponse__FederatedBundlesEntry *f = rs->federated_bundles[i];
		struct x509_chain *roots = xcalloc(1, sizeof(*roots));
		const char *td = strncmp(f->key, "spiffe://", 9) == 0 ? f->key + 9 : f->key;
		struct err e;

		if (x509_chain_parse_der(
			    roots, bytes_of(f->value.data, f->value.len), X509_MAX_ROOTS, &e)) {
			say("FAILED: bundle of %s: %s", td, e.msg);
			w.failures++;
		} else {
			say("federated %s roots %zu", td, roots->n);
		}
		map_put_str(now, td, roots);
	}
	for (size_t i = 0; w.foreign && map_next(w.foreign, &i, &key, &v);) {
		x509_chain_deinit(v);
		free(v);
	}
	map_free(w.foreign);
	w.foreign = now;
}

static void take_own(const char *spiffe_id)
{
	free(w.own);
	w.own = NULL;
	if (trust_domain_parse(spiffe_id, &w.own, NULL))
		w.own = xstrdup("");
}

static void on_message(void *arg, struct rpc_stream *s, const ProtobufCMessage *m)
{
	const X509SVIDResponse *rs = (const X509SVIDResponse *)m;
	struct err e = ERR_INIT;

	(void)arg;
	(void)s;
	if (rs->n_svids == 0 || take_svid(rs->svids[0], &e)) {
		say("FAILED: a response that does not hold an identity: %s", e.msg);
		w.failures++;
		return;
	}
	take_own(rs->svids[0]->spiffe_id);
	take_foreign(rs);
	w.refused_since = (struct mono){ 0 };
	if (w.once)
		end(NULL);
	listen_once();
	if (w.connect && !w.calling) {
		w.calling = true;
		loop_timer_set(w.call_timer, 0);
	}
}

static void open_stream(void *arg);

static void on_ended(void *arg, struct rpc_stream *s, const struct rpc_status *st)
{
	(void)arg;
	(void)s;
	w.stream = NULL;
	if (w.ended)
		return;
	say("refused %s %s", err_code_name(st->code), st->message);
	if (w.refused_since.ns == 0)
		w.refused_since = clock_mono();
	if (w.once || clock_mono().ns - w.refused_since.ns > w.timeout_s * NS_PER_SEC) {
		if (!w.client_ctx)
			w.failures++;
		if (w.once || !w.client_ctx) {
			end(NULL);
			return;
		}
	}
	loop_timer_set(w.retry_timer, 200 * NS_PER_MS);
}

static void open_stream(void *arg)
{
	static const char *const metadata[] = { "workload.spiffe.io", "true", NULL };
	struct rpc_stream_options o = { .method = "/SpiffeWorkloadAPI/FetchX509SVID",
		.response = &x509_svidresponse__descriptor,
		.metadata = metadata,
		.message = on_message,
		.ended = on_ended };
	X509SVIDRequest rq = X509_SVIDREQUEST__INIT;

	(void)arg;
	w.stream = rpc_stream_open(w.agent, &o);
	rpc_stream_send(w.stream, &rq.base);
	rpc_stream_half_close(w.stream);
}

static int dial_agent(void *arg, struct dial_options *o, struct err *e)
{
	(void)arg;
	(void)e;
	o->unix_path = w.socket;
	o->timeout_ms = CALL_TIMEOUT_MS;
	return 0;
}

/* ---- mutual TLS ---- */

struct conv {
	int fd;
	bool server;
	struct peer *peer;
	struct loop_watch *watch;
	struct loop_timer *timer;
	struct dial *dial;
	char peer_text[256];
	char in[LINE_MAX_BYTES];
	size_t len;
};

static void conv_free(struct conv *c)
{
	loop_watch_free(c->watch);
	loop_timer_free(c->timer);
	if (c->fd >= 0)
		close(c->fd);
	peer_unref(c->peer);
	free(c);
}

static void call_failed(struct conv *c, const char *why)
{
	w.failures++;
	say("FAILED call %d: %s", w.calls, why);
	conv_free(c);
	loop_timer_set(w.call_timer, w.every_ms * NS_PER_MS);
}

static void describe(const struct x509_chain *peer, char *ret, size_t cap)
{
	struct spiffeid id = SPIFFEID_INIT;
	AUTO_BUF struct buf serial = BUF_INIT;
	struct err e;

	snprintf(ret, cap, "(none)");
	if (peer->n == 0 || x509_svid_id(peer->v[0], &id, &e))
		return;
	x509_serial_hex(peer->v[0], &serial);
	snprintf(ret, cap, "%s serial %.16s", id.text, buf_cstr(&serial));
	spiffeid_deinit(&id);
}

static void conv_readable(void *arg);

static void conv_line(struct conv *c)
{
	char out[LINE_MAX_BYTES];
	int n;

	if (c->server) {
		say("served peer %s", c->peer_text);
		n = snprintf(out, sizeof(out), "%s", c->in);
		if (write(c->fd, out, (size_t)n) != n)
			say("FAILED to answer: %s", strerror(errno));
		conv_free(c);
		return;
	}
	say("call %d ok peer %s", w.calls, c->peer_text);
	conv_free(c);
	loop_timer_set(w.call_timer, w.every_ms * NS_PER_MS);
}

static void conv_readable(void *arg)
{
	struct conv *c = arg;
	ssize_t n = read(c->fd, c->in + c->len, sizeof(c->in) - 1 - c->len);

	loop_watch_free(c->watch);
	c->watch = NULL;
	if (n <= 0 && !(n < 0 && errno == EAGAIN)) {
		if (c->server)
			conv_free(c);
		else
			call_failed(
				c, n == 0 ? "the server closed the connection" : strerror(errno));
		return;
	}
	if (n > 0)
		c->len += (size_t)n;
	c->in[c->len] = 0;
	if (strchr(c->in, '\n'))
		conv_line(c);
	else
		c->watch = loop_watch_readable(w.loop, c->fd, conv_readable, c);
}

static void on_served(void *arg, int fd, struct peer *peer)
{
	struct conv *c = xcalloc(1, sizeof(*c));

	(void)arg;
	c->fd = fd;
	c->server = true;
	c->peer = peer_ref(peer);
	describe(&peer->chain, c->peer_text, sizeof(c->peer_text));
	c->watch = loop_watch_readable(w.loop, fd, conv_readable, c);
}

static int server_ok(void *arg, const struct x509_chain *peer, struct err *e)
{
	struct conv *c = arg;

	describe(peer, c->peer_text, sizeof(c->peer_text));
	return peer_ok(NULL, peer, e);
}

static void call_timeout(void *arg)
{
	call_failed(arg, "timed out");
}

static void on_dialled(void *arg, int fd, const struct err *e)
{
	struct conv *c = arg;
	char line[64];
	int n;

	c->dial = NULL;
	if (fd < 0) {
		call_failed(c, e->msg);
		return;
	}
	c->fd = fd;
	n = snprintf(line, sizeof(line), "hello %d\n", w.calls);
	if (write(fd, line, (size_t)n) != n) {
		call_failed(c, strerror(errno));
		return;
	}
	c->timer = loop_timer_new(w.loop, call_timeout, c);
	loop_timer_set(c->timer, CALL_TIMEOUT_MS * NS_PER_MS);
	c->watch = loop_watch_readable(w.loop, fd, conv_readable, c);
}

static void call(void *arg)
{
	struct conv *c = xcalloc(1, sizeof(*c));
	struct dial_options o = { .tcp_host = "127.0.0.1",
		.tcp_port = w.connect,
		.tls = w.client_ctx,
		.verify = server_ok,
		.verify_arg = c,
		.timeout_ms = CALL_TIMEOUT_MS };

	(void)arg;
	c->fd = -1;
	w.calls++;
	c->dial = door_dial(w.loop, &o, on_dialled, c);
}

/* ---- */

static void options(int argc, char **argv)
{
	static const struct option longs[] = { { "socket", 1, NULL, 's' }, { "name", 1, NULL, 'n' },
		{ "listen", 1, NULL, 'l' }, { "connect", 1, NULL, 'c' }, { "expect", 1, NULL, 'e' },
		{ "every", 1, NULL, 'm' }, { "for", 1, NULL, 'f' }, { "once", 0, NULL, 'o' },
		{ "timeout", 1, NULL, 't' }, { NULL, 0, NULL, 0 } };
	int c;

	w.name = "workload";
	w.every_ms = 500;
	w.timeout_s = 30;
	while ((c = getopt_long_only(argc, argv, "", longs, NULL)) != -1) {
		switch (c) {
		case 's':
			w.socket = optarg;
			break;
		case 'n':
			w.name = optarg;
			break;
		case 'l':
			w.serve = true;
			w.listen = (int)strtol(optarg, NULL, 10);
			break;
		case 'c':
			w.connect = (int)strtol(optarg, NULL, 10);
			break;
		case 'e':
			w.expect = optarg;
			break;
		case 'm':
			w.every_ms = (int)strtol(optarg, NULL, 10);
			break;
		case 'f':
			w.for_s = (int)strtol(optarg, NULL, 10);
			break;
		case 't':
			w.timeout_s = (int)strtol(optarg, NULL, 10);
			break;
		case 'o':
			w.once = true;
			break;
		default:
			exit(2);
		}
	}
	if (!w.socket) {
		fprintf(stderr, "workload: -socket is needed\n");
		exit(2);
	}
}

int main(int argc, char **argv)
{
	struct rpc_client_options o = { .dial = dial_agent };

	options(argc, argv);
	crypto_init();
	w.loop = loop_new();
	w.agent = rpc_client_new(w.loop, &o);
	w.call_timer = loop_timer_new(w.loop, call, NULL);
	w.end_timer = loop_timer_new(w.loop, end, NULL);
	w.retry_timer = loop_timer_new(w.loop, open_stream, NULL);
	if (w.for_s)
		loop_timer_set(w.end_timer, w.for_s * NS_PER_SEC);
	open_stream(NULL);
	loop_run(w.loop);
	say("done calls %d failures %d", w.calls, w.failures);
	return w.failures ? 1 : 0;
}

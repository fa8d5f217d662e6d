/*
 * Upstream authority "spire": the server above, Assay's or SPIRE's.
 *
 * What is asked for runs one after the other, each ending with GetBundle: so no answer can overtake
 * a newer one, and the bundle that is handed on always holds what was just published.
 */
#include <stdlib.h>
#include <string.h>

#include "lib/list.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "lib/rpc.h"
#include "server/upstream.h"
#include "server/upstream_workload.h"
#include "spire/api/server/bundle/v1/bundle.pb-c.h"
#include "spire/api/server/svid/v1/svid.pb-c.h"

#define NEW_CA "/spire.api.server.svid.v1.SVID/NewDownstreamX509CA"
#define PUBLISH "/spire.api.server.bundle.v1.Bundle/PublishJWTAuthority"
#define GET_BUNDLE "/spire.api.server.bundle.v1.Bundle/GetBundle"
#define POLL_NS (5 * NS_PER_SEC) /* as SPIRE's */
#define LOOK_NS (200 * NS_PER_MS)
#define IDENTITY_WAIT_NS (30 * NS_PER_SEC)
enum { CALL_MS = 15000, DIAL_MS = 10000, POLL_JITTER = 10 };

enum ask { ASK_BUNDLE, ASK_CA, ASK_PUBLISH };

struct op {
	struct list link;
	enum ask ask;
	struct buf csr;
	int32_t ttl;
	struct bundle *key; /* one JWT key */
	struct mono until;  /* an identity must be there by then */
	struct x509_chain chain;
	upstream_done *done; /* NULL: a poll */
	void *arg;
};

struct spire {
	struct upstream base;
	struct loop *loop;
	char *trust_domain, *server_id, *address, *authority;
	int port;
	struct workload *workload;
	bool require_pq;
	struct tls_ctx *tls;
	struct rpc_client *client;
	struct list ops;
	struct op *now; /* under way */
	struct loop_timer *poll_timer, *wait_timer;
	upstream_news *news;
	void *news_arg;
	struct err broken;
	bool closed;
};

static struct spire *spire_of(struct upstream *u)
{
	return container_of(u, struct spire, base);
}

/* ---- the connection ---- */

static int verify(void *arg, const struct x509_chain *peer, struct err *e)
{
	const struct spire *s = arg;
	const struct workload_identity *i = workload_identity(s->workload);
	const struct strings *uris;
	int r;

	if (peer->n == 0)
		return err_set(e, ERR_DENIED, "the upstream server sent no certificate");
	uris = x509_uris(peer->v[0]);
	if (uris->n != 1 || strcmp(uris->v[0], s->server_id) != 0)
		return err_set(e, ERR_DENIED,
			"unexpected ID \"%s\" of the upstream server, expected \"%s\"",
			uris->n ? uris->v[0] : "", s->server_id);
	r = x509_verify(peer, &i->roots, clock_wall(), e);
	return r ? err_wrap(e, "the upstream server's certificate") : 0;
}

static int dial(void *arg, struct dial_options *d, struct err *e)
{
	struct spire *s = arg;

	if (!s->tls)
		return err_set(e, ERR_UNAVAILABLE, "no identity yet");
	d->tcp_host = s->address;
	d->tcp_port = s->port;
	d->tls = s->tls;
	d->verify = verify;
	d->verify_arg = s;
	d->timeout_ms = DIAL_MS;
	return 0;
}

/* ---- operations ---- */

static void pump(struct spire *s);

static void op_free(struct op *op)
{
	buf_deinit(&op->csr);
	bundle_unref(op->key);
	x509_chain_deinit(&op->chain);
	free(op);
}

static void report(struct spire *s, const struct op *op, const struct err *e)
{
	if (e->code && !op->done && strcmp(e->msg, s->broken.msg) != 0)
		log_event(LOG_WARN, "upstream_spire",
			"could not get the upstream server's bundle; trying again", "error", e->msg,
			NULL);
	else if (!e->code && s->broken.code)
		log_event(LOG_INFO, "upstream_spire", "the upstream server answers again", NULL);
	s->broken = *e;
}

static void end(struct spire *s, struct op *op, struct bundle *b, const struct err *e)
{
	if (s->now == op)
		s->now = NULL;
	else
		list_remove(&op->link);
	if (!s->closed)
		report(s, op, e);
	if (op->done)
		op->done(op->arg, e->code || op->ask != ASK_CA ? NULL : &op->chain, b, e);
	else if (b && s->news)
		s->news(s->news_arg, b);
	op_free(op);
	if (!s->closed)
		pump(s);
}

static void end_failed(struct spire *s, const struct rpc_status *st, const char *what)
{
	struct err e = ERR_INIT;

	(void)err_set(&e, st->code, "%s: %s", what, st->message);
	end(s, s->now, NULL, &e);
}

static void got_bundle(void *arg, const struct rpc_status *st, const ProtobufCMessage *m)
{
	struct spire *s = arg;
	AUTO(bundle_unref) struct bundle *b = NULL;
	struct err e = ERR_INIT;

	if (st->code) {
		end_failed(s, st, "failed to get bundle");
		return;
	}
	if (bundle_from_proto((const Spire__Api__Types__Bundle *)m, &b, &e) == 0 &&
		strcmp(b->trust_domain, s->trust_domain) != 0) {
		(void)err_set(&e, ERR_INVALID,
			"the upstream server is of another trust domain, \"%s\"", b->trust_domain);
		bundle_unref(b);
		b = NULL;
	}
	end(s, s->now, b, &e);
}

static void call(struct spire *s, const char *method, const ProtobufCMessage *rq,
	const ProtobufCMessageDescriptor *response,
	void (*done)(void *arg, const struct rpc_status *st, const ProtobufCMessage *m))
{
	struct rpc_unary_options o = { .method = method,
		.request = rq,
		.response = response,
		.timeout_ms = CALL_MS,
		.fail_fast = true };

	if (!rpc_client_connected(s->client))
		rpc_client_reconnect(s->client);
	rpc_unary(s->client, &o, done, s);
}

static void get_bundle(struct spire *s)
{
	Spire__Api__Server__Bundle__V1__GetBundleRequest rq =
		SPIRE__API__SERVER__BUNDLE__V1__GET_BUNDLE_REQUEST__INIT;

	call(s, GET_BUNDLE, &rq.base, &spire__api__types__bundle__descriptor, got_bundle);
}

static int read_chain(const Spire__Api__Server__Svid__V1__NewDownstreamX509CAResponse *rs,
	struct x509_chain *ret, struct err *e)
{
	int r = 0;

	if (rs->n_ca_cert_chain == 0 || rs->n_ca_cert_chain > X509_MAX_CHAIN)
		return err_set(e, ERR_INTERNAL, "%zu certificates", rs->n_ca_cert_chain);
	for (size_t i = 0; !r && i < rs->n_ca_cert_chain; i++) {
		struct x509_cert *c = NULL;

		r = x509_parse(
			bytes_of(rs->ca_cert_chain[i].data, rs->ca_cert_chain[i].len), &c, e);
		if (!r)
			x509_chain_add(ret, c);
		x509_unref(c);
	}
	return r;
}

static void got_ca(void *arg, const struct rpc_status *st, const ProtobufCMessage *m)
{
	struct spire *s = arg;
	struct err e = ERR_INIT;

	if (st->code) {
		end_failed(s, st, "unable to request a new Downstream X509CA");
		return;
	}
	if (read_chain((const void *)m, &s->now->chain, &e)) {
		err_wrap(&e, "unable to parse CA cert chain");
		end(s, s->now, NULL, &e);
		return;
	}
	get_bundle(s);
}

static void ask_ca(struct spire *s)
{
	Spire__Api__Server__Svid__V1__NewDownstreamX509CARequest rq =
		SPIRE__API__SERVER__SVID__V1__NEW_DOWNSTREAM_X509_CAREQUEST__INIT;

	rq.csr = (ProtobufCBinaryData){ .data = s->now->csr.p, .len = s->now->csr.len };
	rq.preferred_ttl = s->now->ttl;
	call(s, NEW_CA, &rq.base,
		&spire__api__server__svid__v1__new_downstream_x509_caresponse__descriptor, got_ca);
}

static void published(void *arg, const struct rpc_status *st, const ProtobufCMessage *m)
{
	struct spire *s = arg;

	(void)m;
	if (st->code)
		end_failed(s, st, "failed to push JWT authority");
	else
		get_bundle(s);
}

static void ask_publish(struct spire *s)
{
	Spire__Api__Server__Bundle__V1__PublishJWTAuthorityRequest rq =
		SPIRE__API__SERVER__BUNDLE__V1__PUBLISH_JWTAUTHORITY_REQUEST__INIT;
	Spire__Api__Types__Bundle *b = bundle_to_proto(s->now->key);

	rq.jwt_authority = b->jwt_authorities[0];
	call(s, PUBLISH, &rq.base,
		&spire__api__server__bundle__v1__publish_jwtauthority_response__descriptor,
		published);
	protobuf_c_message_free_unpacked(&b->base, NULL);
}

/* ---- the queue ---- */

static struct op *first(struct spire *s)
{
	list_each (op, &s->ops, struct op, link)
		return op;
	return NULL;
}

/* Without an identity nothing can be asked; who waits too long is told why. */
static void wait_for_identity(struct spire *s)
{
	struct err e = ERR_INIT, why = ERR_INIT;
	struct op *op = first(s);

	if (clock_mono().ns >= op->until.ns) {
		(void)err_set(&e, ERR_UNAVAILABLE, "no X509-SVID from the Workload API: %s",
			workload_error(s->workload, &why) ? why.msg : "no answer");
		end(s, op, NULL, &e);
		return;
	}
	loop_timer_set(s->wait_timer, LOOK_NS);
}

static void pump(struct spire *s)
{
	static void (*const run[])(struct spire *) = {
		[ASK_BUNDLE] = get_bundle, [ASK_CA] = ask_ca, [ASK_PUBLISH] = ask_publish
	};

	if (s->now || s->closed || !first(s))
		return;
	if (!s->tls) {
		wait_for_identity(s);
		return;
	}
	s->now = first(s);
	list_remove(&s->now->link);
	run[s->now->ask](s);
}

static void on_wait(void *arg)
{
	pump(arg);
}

static void queue(struct spire *s, struct op *op)
{
	op->until.ns = clock_mono().ns + IDENTITY_WAIT_NS;
	list_append(&s->ops, &op->link);
	loop_timer_set(s->wait_timer, 0);
}

static struct op *op_new(enum ask ask, upstream_done *done, void *arg)
{
	struct op *op = xcalloc(1, sizeof(*op));

	*op = (struct op){
		.ask = ask, .csr = BUF_INIT_MAX(X509_MAX_DER), .done = done, .arg = arg
	};
	return op;
}

static void on_poll(void *arg)
{
	struct spire *s = arg;

	if (!s->now && !first(s) && s->tls)
		queue(s, op_new(ASK_BUNDLE, NULL, NULL));
	loop_timer_set(s->poll_timer, loop_jitter(POLL_NS, POLL_JITTER));
}

/* ---- the kind ---- */

static void spire_mint(
	struct upstream *u, struct bytes csr, int64_t ttl_ns, upstream_done *done, void *arg)
{
	struct op *op = op_new(ASK_CA, done, arg);
	int64_t ttl = ttl_ns / NS_PER_SEC;

	buf_bytes(&op->csr, csr);
	op->ttl = ttl > INT32_MAX ? INT32_MAX : (int32_t)ttl;
	queue(spire_of(u), op);
}

static void spire_publish(
	struct upstream *u, const struct bundle_jwt_key *k, upstream_done *done, void *arg)
{
	struct spire *s = spire_of(u);
	struct op *op = op_new(ASK_PUBLISH, done, arg);

	op->key = bundle_new(s->trust_domain);
	(void)bundle_add_jwt_key(op->key, k->key_id, k->key, k->expires_at, false);
	queue(s, op);
}

static void spire_on_bundle(struct upstream *u, upstream_news *fn, void *arg)
{
	struct spire *s = spire_of(u);

	s->news = fn;
	s->news_arg = arg;
}

static int spire_health(struct upstream *u, struct err *e)
{
	const struct spire *s = spire_of(u);

	if (workload_error(s->workload, e))
		return err_wrap(e, "no X509-SVID from the Workload API");
	return s->broken.code ? err_set(e, s->broken.code, "%s", s->broken.msg) : 0;
}

static void spire_free(struct upstream *u)
{
	struct spire *s = spire_of(u);
	struct err e = ERR_INIT;

	s->closed = true;
	(void)err_set(&e, ERR_CANCELLED, "the server is stopping");
	rpc_client_free(s->client); /* ends what is under way */
	list_each (op, &s->ops, struct op, link)
		end(s, op, NULL, &e);
	workload_free(s->workload);
	loop_timer_free(s->poll_timer);
	loop_timer_free(s->wait_timer);
	if (s->tls)
		tls_ctx_unref(s->tls);
	free(s->trust_domain);
	free(s->server_id);
	free(s->address);
	free(s->authority);
	free(s);
}

static const struct upstream_kind kind = {
	.name = "spire",
	.follows = true,
	.mint = spire_mint,
	.publish = spire_publish,
	.on_bundle = spire_on_bundle,
	.health = spire_health,
	.free = spire_free,
};

static void identity_changed(void *arg)
{
	struct spire *s = arg;
	const struct workload_identity *i = workload_identity(s->workload);
	struct tls_options o = {
		.chain = &i->svid, .key = i->key, .alpn = "h2", .require_pq = s->require_pq
	};
	struct tls_ctx *tls;
	struct err e = ERR_INIT;

	if (tls_ctx_new(&o, &tls, &e)) {
		log_event(LOG_ERROR, "upstream_spire", "cannot use the X509-SVID", "error", e.msg,
			NULL);
		return;
	}
	if (s->tls)
		tls_ctx_unref(s->tls);
	s->tls = tls;
	rpc_client_reconnect(s->client);
	pump(s);
}

struct upstream *upstream_spire_new(const struct upstream_spire_options *o)
{
	struct spire *s = xcalloc(1, sizeof(*s));
	struct rpc_client_options co = { .dial = dial, .arg = s, .lazy = true };

	s->base.kind = &kind;
	s->loop = o->loop;
	s->trust_domain = xstrdup(o->trust_domain);
	s->server_id = xasprintf("spiffe://%s/spire/server", o->trust_domain);
	s->address = xstrdup(o->server_address);
	s->port = o->server_port;
	s->authority = xasprintf(
		strchr(s->address, ':') ? "[%s]:%d" : "%s:%d", s->address, o->server_port);
	s->broken = ERR_INIT;
	s->require_pq = o->require_pq;
	list_init(&s->ops);
	co.authority = s->authority;
	s->client = rpc_client_new(o->loop, &co);
	s->workload =
		workload_new(o->loop, o->workload_api_socket, o->trust_domain, identity_changed, s);
	s->poll_timer = loop_timer_new(o->loop, on_poll, s);
	s->wait_timer = loop_timer_new(o->loop, on_wait, s);
	loop_timer_set(s->poll_timer, POLL_NS);
	return &s->base;
}

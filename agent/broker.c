#include "agent/broker.h"

#include <stdlib.h>
#include <string.h>

#include "lib/log.h"

enum {
	SOCKET_MODE = 0770,
	MESSAGE_MAX = 64 << 10,       /* a reference, and audiences */
	GUARD_MESSAGE_MAX = 256 << 10 /* so that most get a status */
};

struct broker {
	struct broker_options o;
	struct rpc_server *rpc;
	struct door *doors[2];
	int closing;
	void (*done)(void *arg);
	void *arg;
};

/* SPIFFE Broker Endpoint, 3.1 and 5: both sides by their X509-SVIDs, and the broker by its ID. */
static int verify(void *arg, const struct x509_chain *peer, struct err *e)
{
	struct broker *b = arg;
	struct cache *cache = b->o.api->cache;
	struct x509_chain roots = { .n = 0 };
	struct spiffeid id = SPIFFEID_INIT;
	AUTO(free) char *td = NULL;
	struct bundle *trust;
	int r;

	if (peer->n == 0)
		return err_set(e, ERR_UNAUTHENTICATED, "no certificate");
	r = x509_svid_id(peer->v[0], &id, e);
	if (r)
		return r;
	td = xstrndup((const char *)spiffeid_td(&id).p, spiffeid_td(&id).n);
	spiffeid_deinit(&id);
	trust = strcmp(td, b->o.api->options->trust_domain) == 0 ? cache_bundle(cache)
								 : cache_federated(cache, td);
	if (!trust)
		return err_set(e, ERR_UNAUTHENTICATED, "no bundle of trust domain \"%s\"", td);
	for (size_t i = 0; i < trust->n_roots; i++)
		x509_chain_add(&roots, trust->roots[i].cert);
	r = tls_verify_svid(peer, &roots, clock_wall(), &id, e);
	x509_chain_deinit(&roots);
	if (!r && !options_broker_find(b->o.api->options, id.text))
		r = err_set(e, ERR_DENIED, "unexpected ID \"%s\"", id.text);
	spiffeid_deinit(&id);
	return r;
}

static int verify_and_log(void *arg, const struct x509_chain *peer, struct err *e)
{
	static struct log_limit limit;
	int r = verify(arg, peer, e);

	if (r && log_allowed(&limit, 5))
		log_event(LOG_WARN, "broker", "Refused a caller of the Broker API", "error", e->msg,
			NULL);
	return r;
}

static struct tls_ctx *context(void *arg)
{
	struct broker *b = arg;

	return b->o.tls(b->o.tls_arg);
}

static void on_conn(void *arg, int fd, struct peer *p)
{
	struct broker *b = arg;

	rpc_server_conn(b->rpc, fd, p);
}

static int open_door(struct broker *b, struct door_options *d, struct door **ret, struct err *e)
{
	const char *address = d->unix_path ? d->unix_path : b->o.api->options->broker_bind_address;
	int r;

	d->tls = context;
	d->verify = verify_and_log;
	d->message_max = GUARD_MESSAGE_MAX;
	d->on_conn = on_conn;
	d->arg = b;
	r = door_open(b->o.api->loop, d, ret, e);
	if (r)
		return err_wrap(e, "failed to listen on broker address \"%s\"", address);
	log_event(LOG_INFO, "broker", "Starting SPIFFE Broker Endpoint", "network",
		d->unix_path ? "unix" : "tcp", "address", address, NULL);
	return 0;
}

static int open_all(struct broker *b, struct err *e)
{
	const struct agent_options *o = b->o.api->options;
	struct rpc_server_options ro = { .message_max = MESSAGE_MAX,
		.authorize = api_broker_authorize,
		.finished = api_finished,
		.arg = b->o.api,
		.reflection_descriptors = (const char *)b->o.descriptors.p,
		.reflection_descriptors_len = b->o.descriptors.n };
	struct door_options u = { .unix_path = o->broker_socket_path, .unix_mode = SOCKET_MODE };
	struct door_options t = { .tcp_host = o->broker_host, .tcp_port = o->broker_port };
	int r = rpc_server_new(b->o.api->loop, &ro, &b->rpc, e);

	if (r)
		return r;
	api_broker_add(b->rpc, b->o.api);
	rpc_server_start(b->rpc);
	if (o->broker_socket_path)
		r = open_door(b, &u, &b->doors[0], e);
	if (!r && o->broker_bind_address)
		r = open_door(b, &t, &b->doors[1], e);
	return r;
}

int broker_open(const struct broker_options *o, struct broker **ret, struct err *e)
{
	struct broker *b;

	*ret = NULL;
	if (!o->api->options->has_broker)
		return 0;
	b = xcalloc(1, sizeof(*b));
	b->o = *o;
	*ret = b;
	return open_all(b, e);
}

static void part_closed(void *arg)
{
	struct broker *b = arg;

	if (--b->closing == 0)
		b->done(b->arg);
}

void broker_close(struct broker *b, int grace_ms, void (*done)(void *arg), void *arg)
{
	b->done = done;
	b->arg = arg;
	b->closing = 1;
	if (b->rpc) {
		b->closing++;
		rpc_server_stop(b->rpc, grace_ms, part_closed, b);
	}
	for (size_t i = 0; i < ARRAY_LEN(b->doors); i++) {
		if (!b->doors[i])
			continue;
		b->closing++;
		door_close(b->doors[i], grace_ms, part_closed, b);
	}
	part_closed(b);
}

void broker_free(struct broker *b)
{
	if (b && b->rpc)
		rpc_server_free(b->rpc);
	free(b);
}

int broker_port(const struct broker *b)
{
	return b->doors[1] ? door_port(b->doors[1]) : 0;
}

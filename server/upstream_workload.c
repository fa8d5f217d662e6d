#include "server/upstream_workload.h"

#include <stdlib.h>
#include <string.h>

#include "lib/log.h"
#include "lib/mem.h"
#include "lib/rpc.h"
#include "spiffe/workload/workload.pb-c.h"

#define FETCH "/SpiffeWorkloadAPI/FetchX509SVID"
#define RETRY_FIRST_NS (500 * NS_PER_MS)
#define RETRY_MAX_NS (15 * NS_PER_SEC)
enum { DIAL_MS = 10000 };

struct workload {
	struct loop *loop;
	char *socket_path, *trust_domain;
	void (*changed)(void *arg);
	void *arg;
	struct rpc_client *client;
	struct rpc_stream *stream;
	struct loop_timer *timer;
	struct backoff backoff;
	struct workload_identity identity;
	bool has;
	struct err error;
};

static void identity_deinit(struct workload_identity *i)
{
	x509_chain_deinit(&i->svid);
	x509_chain_deinit(&i->roots);
	key_unref(i->key);
	*i = (struct workload_identity){ .key = NULL };
}

/* ---- what the agent sends ---- */

static struct bytes view(const ProtobufCBinaryData *d)
{
	return bytes_of(d->data, d->len);
}

static int check(const struct workload_identity *i, struct err *e)
{
	const struct pubkey *pub = x509_pubkey(i->svid.v[0]);

	if (!pub || !bytes_equal(pubkey_spki(pub), pubkey_spki(key_public(i->key))))
		return err_set(e, ERR_INVALID, "the key is not that of the certificate");
	return x509_verify(&i->svid, &i->roots, clock_wall(), e);
}

static int parse(const X509SVID *m, struct workload_identity *ret, struct err *e)
{
	struct workload_identity i = { .key = NULL };
	struct spiffeid id = SPIFFEID_INIT;
	int r = x509_chain_parse_der(&i.svid, view(&m->x509_svid), X509_MAX_CHAIN, e);

	if (!r)
		r = x509_chain_parse_der(&i.roots, view(&m->bundle), X509_MAX_ROOTS, e);
	if (!r)
		r = key_from_pkcs8(view(&m->x509_svid_key), &i.key, e);
	if (!r && i.svid.n == 0)
		r = err_set(e, ERR_INVALID, "no certificate");
	if (!r)
		r = x509_svid_id(i.svid.v[0], &id, e);
	if (!r)
		r = check(&i, e);
	spiffeid_deinit(&id);
	if (r) {
		identity_deinit(&i);
		return err_wrap(e, "X509-SVID from the Workload API");
	}
	*ret = i;
	return 0;
}

static bool is_current(const struct workload *w, const char *id)
{
	return w->has && strcmp(x509_uris(w->identity.svid.v[0])->v[0], id) == 0;
}

/* The one that was given before, as long as it is: entries that come later do not take the name
 * away that the server above knows. Else the first of the own trust domain, the default identity.
 */
static const X509SVID *pick(const struct workload *w, const X509SVIDResponse *m)
{
	const X509SVID *first = NULL;

	for (size_t i = 0; i < m->n_svids; i++) {
		const char *text = m->svids[i]->spiffe_id;
		struct spiffeid id = SPIFFEID_INIT;
		bool fits = spiffeid_parse_str(&id, text, NULL) == 0 &&
			    spiffeid_member_of(&id, w->trust_domain);

		spiffeid_deinit(&id);
		if (fits && is_current(w, text))
			return m->svids[i];
		if (fits && !first)
			first = m->svids[i];
	}
	return first;
}

static void failed(struct workload *w, const struct err *e)
{
	if (strcmp(w->error.msg, e->msg) != 0)
		log_event(LOG_WARN, "upstream_spire",
			"no identity by the Workload API; trying again", "error", e->msg, NULL);
	w->error = *e;
}

static void take(struct workload *w, const X509SVIDResponse *m)
{
	const X509SVID *s = pick(w, m);
	struct workload_identity i;
	struct err e = ERR_INIT;

	if (!s) {
		(void)err_set(&e, ERR_INVALID,
			"the Workload API gives no X509-SVID of trust domain \"%s\"",
			w->trust_domain);
		failed(w, &e);
		return;
	}
	if (parse(s, &i, &e)) {
		failed(w, &e);
		return;
	}
	identity_deinit(&w->identity);
	w->identity = i;
	w->has = true;
	w->error = ERR_INIT;
	backoff_reset(&w->backoff);
	log_event(LOG_DEBUG, "upstream_spire", "identity by the Workload API", "spiffe_id",
		s->spiffe_id, NULL);
	w->changed(w->arg);
}

/* ---- the stream ---- */

static void on_message(void *arg, struct rpc_stream *s, const ProtobufCMessage *m)
{
	const X509SVIDResponse *rs = (const void *)m;

	(void)s;
	take(arg, rs);
	for (size_t i = 0; i < rs->n_svids; i++)
		mem_wipe(rs->svids[i]->x509_svid_key.data, rs->svids[i]->x509_svid_key.len);
}

static void on_ended(void *arg, struct rpc_stream *s, const struct rpc_status *st)
{
	struct workload *w = arg;
	struct err e = ERR_INIT;

	(void)s;
	w->stream = NULL;
	if (!w->timer) /* being freed */
		return;
	(void)err_set(&e, st->code ? st->code : ERR_UNAVAILABLE, "%s",
		st->code ? st->message : "the agent ended the stream");
	failed(w, &e);
	loop_timer_set(w->timer, backoff_next(&w->backoff));
}

static void open_stream(void *arg)
{
	/* SPIFFE Workload API 4.1 */
	static const char *const metadata[] = { "workload.spiffe.io", "true", NULL };
	static const X509SVIDRequest rq = X509_SVIDREQUEST__INIT;
	struct workload *w = arg;
	struct rpc_stream_options o = { .method = FETCH,
		.response = &x509_svidresponse__descriptor,
		.metadata = metadata,
		.fail_fast = true,
		.message = on_message,
		.ended = on_ended,
		.arg = w };

	/* The agent's own back-off between connections would add to ours. */
	if (!rpc_client_connected(w->client))
		rpc_client_reconnect(w->client);
	w->stream = rpc_stream_open(w->client, &o);
	rpc_stream_send(w->stream, &rq.base);
	rpc_stream_half_close(w->stream);
}

static int dial(void *arg, struct dial_options *d, struct err *e)
{
	const struct workload *w = arg;

	(void)e;
	d->unix_path = w->socket_path;
	d->timeout_ms = DIAL_MS;
	return 0;
}

/* ---- life ---- */

struct workload *workload_new(struct loop *l, const char *socket_path, const char *trust_domain,
	void (*changed)(void *arg), void *arg)
{
	struct workload *w = xcalloc(1, sizeof(*w));
	struct rpc_client_options o = { .dial = dial, .arg = w };

	w->loop = l;
	/* SPIRE's files may have a URI here. */
	w->socket_path =
		xstrdup(strncmp(socket_path, "unix://", 7) == 0 ? socket_path + 7 : socket_path);
	w->trust_domain = xstrdup(trust_domain);
	w->changed = changed;
	w->arg = arg;
	w->error = ERR_INIT;
	w->backoff = (struct backoff){ .first_ns = RETRY_FIRST_NS, .max_ns = RETRY_MAX_NS };
	w->client = rpc_client_new(l, &o);
	w->timer = loop_timer_new(l, open_stream, w);
	loop_timer_set(w->timer, 0);
	return w;
}

void workload_free(struct workload *w)
{
	if (!w)
		return;
	loop_timer_free(w->timer);
	w->timer = NULL;
	rpc_client_free(w->client);
	identity_deinit(&w->identity);
	free(w->socket_path);
	free(w->trust_domain);
	free(w);
}

const struct workload_identity *workload_identity(const struct workload *w)
{
	return w->has ? &w->identity : NULL;
}

int workload_error(const struct workload *w, struct err *e)
{
	return w->error.code ? err_set(e, w->error.code, "%s", w->error.msg) : 0;
}

#include <stdlib.h>
#include <string.h>

#include "agent/sync_internal.h"
#include "lib/jwt.h"
#include "spire/api/server/svid/v1/svid.pb-c.h"

/*
 * Has SVIDs signed. Keys and CSRs are made ahead of need, on the workers: an entry that appears
 * costs one round trip. The server takes nothing but the public key from a CSR, so one made before
 * its entry is known will do.
 */

#define BATCH_NEW "/spire.api.server.svid.v1.SVID/BatchNewX509SVID"
#define NEW_JWT "/spire.api.server.svid.v1.SVID/NewJWTSVID"

enum {
	POOL_EC = 8, /* kept ready */
	POOL_RSA = 2,
	MAKE_CHUNK = 16, /* keys made by one job */
	INLINE_MAX = 4,  /* answers this small are parsed on the loop */
};

/* ---- keys made ahead ---- */

struct pooled_key {
	struct list link;
	struct buf pkcs8, csr, spki;
};

struct make_job {
	struct sync *s;
	enum key_type type;
	size_t n;
	struct list made;
	size_t n_made;
	struct err err;
};

static void pooled_free(struct pooled_key *k)
{
	buf_deinit(&k->pkcs8);
	buf_deinit(&k->csr);
	buf_deinit(&k->spki);
	free(k);
}

static void make_work(void *arg)
{
	struct make_job *j = arg;

	for (size_t i = 0; i < j->n; i++) {
		AUTO(key_unref) struct key *key = NULL;
		struct pooled_key *k = xcalloc(1, sizeof(*k));

		list_init(&k->link);
		k->pkcs8 = BUF_INIT_SECRET;
		k->csr = k->spki = BUF_INIT;
		if (key_generate(j->type, &key, &j->err) ||
			x509_csr_make(key, NULL, &k->csr, &j->err)) {
			pooled_free(k);
			return;
		}
		key_to_pkcs8(key, &k->pkcs8);
		buf_bytes(&k->spki, pubkey_spki(key_public(key)));
		list_append(&j->made, &k->link);
		j->n_made++;
	}
}

static void make_done(void *arg)
{
	struct make_job *j = arg;
	struct sync *s = j->s;

	s->jobs--;
	s->n_making -= j->n;
	if (j->err.code)
		log_event(LOG_ERROR, "sync", "Could not make a key", "error", j->err.msg, NULL);
	list_each (k, &j->made, struct pooled_key, link) {
		list_remove(&k->link);
		if (s->stopped) {
			pooled_free(k);
			continue;
		}
		list_append(&s->pool, &k->link);
		s->n_pool++;
	}
	free(j);
	if (!s->stopped)
		sign_pump(s);
}

/* So many keys are on the way or there: what is wanted now, and a few ahead. */
static void make_keys(struct sync *s)
{
	enum key_type t = s->o.options->workload_key_type;
	bool rsa = t == KEY_RSA_2048 || t == KEY_RSA_4096;
	size_t want = cache_wanted(s->o.cache) + (rsa ? POOL_RSA : POOL_EC);
	size_t workers = (size_t)loop_workers(), chunk = rsa ? 1 : MAKE_CHUNK;

	if (want > SIGN_BATCH_MAX)
		want = SIGN_BATCH_MAX;
	while (s->n_pool + s->n_making < want && s->n_making < workers * chunk) {
		size_t missing = want - s->n_pool - s->n_making;
		struct make_job *j = xcalloc(1, sizeof(*j));

		j->s = s;
		j->type = t;
		j->n = missing < chunk ? missing : chunk;
		list_init(&j->made);
		s->n_making += j->n;
		s->jobs++;
		loop_job(s->o.loop, make_work, make_done, j);
	}
}

/* ---- batches ---- */

struct sign_item {
	char *entry_id, *spiffe_id;
	int64_t revision;
	struct pooled_key *key;
	/* answer */
	int code;
	char *message;
	struct buf chain[X509_MAX_CHAIN];
	size_t n_chain;
	struct svid *svid;
	struct err err;
};

struct batch {
	struct sync *s;
	unsigned generation;
	struct mono start;
	struct sign_item *v;
	size_t n;
};

static void batch_free(struct batch *b)
{
	for (size_t i = 0; i < b->n; i++) {
		struct sign_item *it = &b->v[i];

		for (size_t k = 0; k < it->n_chain; k++)
			buf_deinit(&it->chain[k]);
		if (it->key)
			pooled_free(it->key);
		svid_unref(it->svid);
		free(it->entry_id);
		free(it->spiffe_id);
		free(it->message);
	}
	free(b->v);
	free(b);
}

static void wait_then_pump(struct sync *s)
{
	s->sign_waits = true;
	loop_timer_set(s->sign_timer, backoff_next(&s->sign_backoff));
}

static void batch_failed(struct batch *b, const struct rpc_status *st)
{
	static struct log_limit limit;
	struct sync *s = b->s;

	for (size_t i = 0; i < b->n; i++) {
		cache_sign_failed(s->o.cache, b->v[i].entry_id, true);
		list_append(&s->pool, &b->v[i].key->link);
		s->n_pool++;
		b->v[i].key = NULL;
	}
	if (st->code == ERR_EXHAUSTED)
		s->batch_max = b->n > 1 ? b->n / 2 : 1;
	if (log_allowed(&limit, 1))
		log_event(LOG_WARN, "sync", "Could not have X509-SVIDs signed; trying again",
			"count", log_fmt("%zu", b->n), "code", err_code_name(st->code), "error",
			st->message, NULL);
	/* When the server wants us to attest again, being online anew starts the pump. */
	(void)sync_refused(s, st, b->generation);
	wait_then_pump(s);
	batch_free(b);
}

static void batch_parse(void *arg)
{
	struct batch *b = arg;

	for (size_t i = 0; i < b->n; i++) {
		struct sign_item *it = &b->v[i];
		struct bytes certs[X509_MAX_CHAIN];

		if (it->code)
			continue;
		for (size_t k = 0; k < it->n_chain; k++)
			certs[k] = buf_view(&it->chain[k]);
		it->code = svid_new(certs, it->n_chain, buf_view(&it->key->pkcs8),
			buf_view(&it->key->spki), it->spiffe_id, &it->svid, &it->err);
		if (it->code)
			it->message = xstrdup(it->err.msg);
	}
}

static void batch_deliver(struct batch *b)
{
	static struct log_limit limit;
	struct sync *s = b->s;

	for (size_t i = 0; i < b->n; i++) {
		struct sign_item *it = &b->v[i];

		if (it->svid) {
			cache_signed(s->o.cache, it->entry_id, it->revision, it->svid);
			log_event(LOG_DEBUG, "sync", "X509-SVID issued", "spiffe_id", it->spiffe_id,
				"entry_id", it->entry_id, "serial", it->svid->serial, NULL);
			continue;
		}
		if (log_allowed(&limit, 5))
			log_event(LOG_WARN, "sync", "The server did not sign an X509-SVID",
				"entry_id", it->entry_id, "spiffe_id", it->spiffe_id, "code",
				err_code_name(it->code), "error", it->message, NULL);
		cache_sign_failed(s->o.cache, it->entry_id, false);
	}
	batch_free(b);
}

static void parsed_in_job(void *arg)
{
	struct batch *b = arg;
	struct sync *s = b->s;

	s->jobs--;
	if (s->stopped) {
		batch_free(b);
		return;
	}
	batch_deliver(b);
	sign_pump(s);
}

/* Results match the request by index; a server that answers fewer failed the rest. */
static void copy_results(
	struct batch *b, const Spire__Api__Server__Svid__V1__BatchNewX509SVIDResponse *rs)
{
	for (size_t i = 0; i < b->n; i++) {
		const Spire__Api__Server__Svid__V1__BatchNewX509SVIDResponse__Result *res =
			i < rs->n_results ? rs->results[i] : NULL;
		struct sign_item *it = &b->v[i];

		if (!res || (res->status && res->status->code) || !res->svid) {
			it->code = res && res->status && res->status->code ? res->status->code
									   : ERR_INTERNAL;
			it->message =
				xstrdup(res && res->status ? res->status->message : "no result");
			continue;
		}
		for (size_t k = 0; k < res->svid->n_cert_chain && k < X509_MAX_CHAIN; k++) {
			it->chain[k] = BUF_INIT_MAX(X509_MAX_DER);
			buf_append(&it->chain[k], res->svid->cert_chain[k].data,
				res->svid->cert_chain[k].len);
			it->n_chain++;
		}
	}
}

static void on_signed(void *arg, const struct rpc_status *st, const ProtobufCMessage *m)
{
	struct batch *b = arg;
	struct sync *s = b->s;

	s->batches--;
	if (s->stopped) {
		batch_free(b);
		return;
	}
	if (st->code) {
		batch_failed(b, st);
		return;
	}
	backoff_reset(&s->sign_backoff);
	if (s->batch_max < SIGN_BATCH_MAX)
		s->batch_max =
			2 * s->batch_max < SIGN_BATCH_MAX ? 2 * s->batch_max : SIGN_BATCH_MAX;
	copy_results(b, (const Spire__Api__Server__Svid__V1__BatchNewX509SVIDResponse *)m);
	if (b->n > INLINE_MAX) {
		s->jobs++;
		loop_job(s->o.loop, batch_parse, parsed_in_job, b);
	} else {
		batch_parse(b);
		batch_deliver(b);
	}
	sign_pump(s);
}

static void fill_item(struct sync *s, struct sign_item *it, const struct record *r,
	Spire__Api__Server__Svid__V1__NewX509SVIDParams *p)
{
	struct pooled_key *k = container_of(s->pool.next, struct pooled_key, link);

	list_remove(&k->link);
	s->n_pool--;
	it->entry_id = xstrdup(r->entry.id);
	it->spiffe_id = xstrdup(r->entry.spiffe_id);
	it->revision = r->entry.revision_number;
	it->key = k;
	it->err = ERR_INIT;
	spire__api__server__svid__v1__new_x509_svidparams__init(p);
	p->entry_id = it->entry_id;
	p->csr = (ProtobufCBinaryData){ .data = k->csr.p, .len = k->csr.len };
}

/* Somebody waits: the back-off between attempts to connect is cut short. */
static void kick(struct sync *s)
{
	struct mono now = clock_mono();

	if (rpc_client_connected(s->client) || now.ns - s->kicked.ns < SYNC_KICK_MS * NS_PER_MS)
		return;
	s->kicked = now;
	rpc_client_reconnect(s->client);
}

static void send_batch(struct sync *s, size_t n)
{
	Spire__Api__Server__Svid__V1__BatchNewX509SVIDRequest rq =
		SPIRE__API__SERVER__SVID__V1__BATCH_NEW_X509_SVIDREQUEST__INIT;
	struct rpc_unary_options u = { .method = BATCH_NEW,
		.request = &rq.base,
		.response = &spire__api__server__svid__v1__batch_new_x509_svidresponse__descriptor,
		.timeout_ms = SYNC_CALL_MS };
	AUTO(free) Spire__Api__Server__Svid__V1__NewX509SVIDParams *p = xcalloc(n, sizeof(*p));
	AUTO(free) Spire__Api__Server__Svid__V1__NewX509SVIDParams **pp = xcalloc(n, sizeof(*pp));
	struct batch *b = xcalloc(1, sizeof(*b));

	b->s = s;
	b->generation = s->generation;
	b->v = xcalloc(n, sizeof(*b->v));
	for (; b->n < n; b->n++) {
		struct record *r = cache_next_wanted(s->o.cache);

		if (!r)
			break;
		fill_item(s, &b->v[b->n], r, &p[b->n]);
		pp[b->n] = &p[b->n];
	}
	rq.n_params = b->n;
	rq.params = pp;
	s->batches++;
	kick(s);
	rpc_unary(s->client, &u, on_signed, b);
}

void sign_pump(void *arg)
{
	struct sync *s = arg;

	if (s->stopped || !s->client || s->sign_waits)
		return;
	while (s->batches < SIGN_BATCHES && s->n_pool && cache_wanted(s->o.cache)) {
		size_t n = cache_wanted(s->o.cache);

		n = n < s->n_pool ? n : s->n_pool;
		send_batch(s, n < s->batch_max ? n : s->batch_max);
	}
	make_keys(s);
}

static void on_timer(void *arg)
{
	struct sync *s = arg;

	s->sign_waits = false;
	sign_pump(s);
}

void sign_again(struct sync *s)
{
	loop_timer_stop(s->sign_timer);
	s->sign_waits = false;
	sign_pump(s);
}

void sign_init(struct sync *s)
{
	list_init(&s->pool);
	s->batch_max = SIGN_BATCH_MAX;
	s->sign_timer = loop_timer_new(s->o.loop, on_timer, s);
	s->sign_backoff =
		(struct backoff){ .first_ns = 500 * NS_PER_MS, .max_ns = 30 * NS_PER_SEC };
}

void sign_free(struct sync *s)
{
	loop_timer_stop(s->sign_timer);
	list_each (k, &s->pool, struct pooled_key, link) {
		list_remove(&k->link);
		pooled_free(k);
	}
	s->n_pool = 0;
}

/* ---- JWT-SVIDs ---- */

struct jwt_call {
	struct sync *s;
	void *ticket;
	unsigned generation;
	bool again; /* the second try */
	char *entry_id;
	struct strings audience;
};

static void fetch_jwt(struct jwt_call *c);

static void jwt_call_free(struct jwt_call *c)
{
	strings_deinit(&c->audience);
	free(c->entry_id);
	free(c);
}

/* A token that was on its way to us when its key was tainted. */
static bool is_tainted(const struct sync *s, const char *token)
{
	const struct bundle *b = cache_bundle(s->o.cache);
	const struct bundle_jwt_key *k = NULL;
	struct jwt j = { 0 };
	struct err e = ERR_INIT;

	if (b && jwt_parse(bytes_str(token), &j, &e) == 0) {
		k = bundle_find_jwt_key(b, j.kid);
		jwt_deinit(&j);
	}
	return k && k->tainted;
}

static void on_jwt(void *arg, const struct rpc_status *st, const ProtobufCMessage *m)
{
	struct jwt_call *c = arg;
	struct sync *s = c->s;
	const Spire__Api__Server__Svid__V1__NewJWTSVIDResponse *rs =
		(const Spire__Api__Server__Svid__V1__NewJWTSVIDResponse *)m;
	struct err e = ERR_INIT;

	if (st->code)
		err_set(&e, st->code, "failed to fetch JWT SVID: rpc error: code = %s desc = %s",
			err_code_name(st->code), st->message);
	else if (!rs->svid || !rs->svid->token[0] || rs->svid->expires_at <= 0 ||
		 rs->svid->issued_at <= 0 || rs->svid->issued_at > rs->svid->expires_at)
		err_set(&e, ERR_INTERNAL, "the server's answer is malformed");
	else if (is_tainted(s, rs->svid->token)) {
		if (!c->again && !s->stopped && s->client) {
			c->again = true;
			fetch_jwt(c);
			return;
		}
		err_set(&e, ERR_UNAVAILABLE, "the server signs with a tainted key");
	}
	if (rs && !e.code) {
		struct jwt_svid j = { .token = rs->svid->token,
			.issued_at = rs->svid->issued_at,
			.expires_at = rs->svid->expires_at };

		jwtcache_fetched(s->o.jwt, c->ticket, &j, NULL);
	} else {
		if (!s->stopped)
			(void)sync_refused(s, st, c->generation);
		jwtcache_fetched(s->o.jwt, c->ticket, NULL, &e);
	}
	jwt_call_free(c);
}

static void not_connected(void *arg)
{
	struct jwt_call *c = arg;
	struct rpc_status st = { .code = ERR_UNAVAILABLE,
		.message = "the agent is not connected to the server" };

	on_jwt(c, &st, NULL);
}

static void fetch_jwt(struct jwt_call *c)
{
	struct sync *s = c->s;
	Spire__Api__Server__Svid__V1__NewJWTSVIDRequest rq;
	struct rpc_unary_options u = { .method = NEW_JWT,
		.request = &rq.base,
		.response = &spire__api__server__svid__v1__new_jwtsvidresponse__descriptor,
		.timeout_ms = SYNC_JWT_MS };

	spire__api__server__svid__v1__new_jwtsvidrequest__init(&rq);
	rq.entry_id = c->entry_id;
	rq.n_audience = c->audience.n;
	rq.audience = c->audience.v;
	kick(s);
	rpc_unary(s->client, &u, on_jwt, c);
}

void sync_fetch_jwt(void *arg, const char *entry_id, const struct strings *audience, void *ticket)
{
	struct sync *s = arg;
	struct jwt_call *c = xcalloc(1, sizeof(*c));

	c->s = s;
	c->ticket = ticket;
	c->generation = s->generation;
	c->entry_id = xstrdup(entry_id);
	c->audience = strings_dup(audience);
	if (s->stopped || !s->client)
		loop_post(s->o.loop, not_connected, c);
	else
		fetch_jwt(c);
}

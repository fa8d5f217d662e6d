#include <stdlib.h>
#include <string.h>

#include "agent/sync_internal.h"
#include "spire/api/types/status.pb-c.h"

#define SECONDS(n) ((int64_t)(n)*NS_PER_SEC)

static void attest_timer_fired(void *arg)
{
	sync_begin_attest(arg);
}

int sync_new(const struct sync_options *o, struct sync **ret, struct err *e)
{
	struct sync *s = xcalloc(1, sizeof(*s));
	int r;

	s->o = *o;
	s->epoch = xstrdup("");
	s->attest_timer = loop_timer_new(o->loop, attest_timer_fired, s);
	s->rebootstrap_timer = loop_timer_new(o->loop, rebootstrap_due, s);
	s->renew_timer = loop_timer_new(o->loop, identity_renew, s);
	s->watch_timer = loop_timer_new(o->loop, watch_open, s);
	s->attest_backoff = (struct backoff){ .first_ns = SECONDS(1), .max_ns = SECONDS(60) };
	s->renew_backoff = (struct backoff){ .first_ns = SECONDS(1), .max_ns = SECONDS(60) };
	s->watch_backoff = (struct backoff){ .first_ns = 300 * NS_PER_MS, .max_ns = SECONDS(2) };
	s->data_lane = lane_new(o->loop, "store");
	if (!o->options->keymgr_memory)
		s->sealed_path = xasprintf("%s/sealed.bin", o->options->data_dir);
	sign_init(s);
	*ret = s;
	r = identity_load(s, e);
	if (r) {
		*ret = NULL;
		sync_stop(s);
		sync_free(s);
	}
	return r;
}

static void now_ready(struct sync *s)
{
	if (s->ready || !cache_bundle(s->o.cache))
		return;
	s->ready = true;
	s->o.ready(s->o.arg);
}

void sync_start(struct sync *s)
{
	s->started = true;
	/* What was stored before all was signed anew. */
	cache_renew_untrusted(s->o.cache);
	if (s->last_success && cache_bundle(s->o.cache)) {
		log_event(LOG_INFO, "agent",
			"Serving from the sealed store until the server is reached", "entries",
			log_fmt("%zu", cache_count(s->o.cache)), "svids",
			log_fmt("%zu", cache_count_svids(s->o.cache)), "stored_at",
			log_fmt("%lld", (long long)s->last_success), NULL);
		now_ready(s);
	}
	if (!rebootstrap_possible(s))
		return;
	if (s->key)
		sync_online(s);
	else
		sync_begin_attest(s);
}

/* ---- the connection ---- */

static int verify(void *arg, const struct x509_chain *peer, struct err *e)
{
	struct sync *s = arg;
	int r;

	s->trust = (struct server_trust){ .trust_domain = s->o.options->trust_domain,
		.bundle = cache_bundle(s->o.cache) };
	if (!s->trust.bundle)
		return err_set(e, ERR_INTERNAL, "no trust bundle");
	r = server_verify(&s->trust, peer, e);
	if (!r)
		rebootstrap_agreed(s);
	else if (s->trust.stranger)
		rebootstrap_stranger(s);
	return r;
}

static int dial(void *arg, struct dial_options *d, struct err *e)
{
	struct sync *s = arg;

	(void)e;
	d->tcp_host = s->o.options->server_address;
	d->tcp_port = s->o.options->server_port;
	d->tls = s->tls;
	d->verify = verify;
	d->verify_arg = s;
	d->timeout_ms = SYNC_DIAL_MS;
	return 0;
}

struct tls_ctx *sync_serving_tls(struct sync *s)
{
	struct tls_options t = { .server = true,
		.chain = &s->data.svid,
		.key = s->key,
		.client_cert = TLS_CLIENT_CERT_REQUIRED,
		.alpn = "h2",
		.require_pq = s->o.options->require_pq_kem };
	struct tls_ctx *fresh;
	struct err e = ERR_INIT;

	if (s->key && s->data.svid.n && (!s->serving || s->serving_generation != s->generation)) {
		if (tls_ctx_new(&t, &fresh, &e)) {
			log_event(LOG_ERROR, "agent", "The agent's SVID cannot be used", "error",
				e.msg, NULL);
		} else {
			if (s->serving)
				tls_ctx_unref(s->serving);
			s->serving = fresh;
			s->serving_generation = s->generation;
		}
	}
	return s->serving ? tls_ctx_ref(s->serving) : NULL;
}

/* There is a new identity: from here on calls are made with it. */
void sync_online(struct sync *s)
{
	struct tls_options t = { .server = false,
		.chain = &s->data.svid,
		.key = s->key,
		.alpn = "h2",
		.require_pq = s->o.options->require_pq_kem };
	AUTO(free) char *authority = server_authority(s->o.options);
	struct rpc_client_options co = { .dial = dial, .arg = s, .authority = authority };
	struct tls_ctx *ctx;
	struct err e = ERR_INIT;

	if (tls_ctx_new(&t, &ctx, &e)) {
		log_event(LOG_ERROR, "agent", "The agent's SVID cannot be used", "error", e.msg,
			NULL);
		sync_begin_attest(s);
		return;
	}
	if (s->tls)
		tls_ctx_unref(s->tls);
	s->tls = ctx;
	s->generation++;
	s->renew_due = false;
	identity_arm_renewal(s);
	identity_check_trust(s, false);
	if (s->client)
		rpc_client_reconnect(s->client);
	else
		s->client = rpc_client_new(s->o.loop, &co);
	backoff_reset(&s->watch_backoff);
	/* The server takes the former SVID for superseded from the first use of the new one. */
	watch_close(s);
	poll_stop(s);
	s->watch_unknown = false;
	watch_open(s);
	sign_again(s);
}

/* ---- what the server says about us ---- */

static const char *reason_name(int reason)
{
	switch (reason) {
	case SPIRE__API__TYPES__PERMISSION_DENIED_DETAILS__REASON__AGENT_EXPIRED:
		return "AGENT_EXPIRED";
	case SPIRE__API__TYPES__PERMISSION_DENIED_DETAILS__REASON__AGENT_NOT_ATTESTED:
		return "AGENT_NOT_ATTESTED";
	case SPIRE__API__TYPES__PERMISSION_DENIED_DETAILS__REASON__AGENT_NOT_ACTIVE:
		return "AGENT_NOT_ACTIVE";
	case SPIRE__API__TYPES__PERMISSION_DENIED_DETAILS__REASON__AGENT_MUST_REATTEST:
		return "AGENT_MUST_REATTEST";
	case SPIRE__API__TYPES__PERMISSION_DENIED_DETAILS__REASON__AGENT_BANNED:
		return "AGENT_BANNED";
	default:
		return NULL;
	}
}

static int reason_of(const struct rpc_status *st)
{
	Spire__Api__Types__PermissionDeniedDetails *d =
		(Spire__Api__Types__PermissionDeniedDetails *)rpc_status_detail(
			st, &spire__api__types__permission_denied_details__descriptor);
	int reason = d ? (int)d->reason : 0;

	if (d)
		spire__api__types__permission_denied_details__free_unpacked(d, NULL);
	return reason;
}

bool sync_refused(struct sync *s, const struct rpc_status *st, unsigned generation)
{
	int reason = st->code == ERR_DENIED ? reason_of(st) : 0;

	if (!reason_name(reason))
		return false;
	if (generation != s->generation)
		return false; /* of a former SVID of ours: no news */
	if (reason == SPIRE__API__TYPES__PERMISSION_DENIED_DETAILS__REASON__AGENT_BANNED) {
		identity_discard(s);
		s->o.fatal(s->o.arg, "this agent is banned by the server; its keys are deleted");
		return true;
	}
	if (!s->attesting)
		log_event(LOG_WARN, "agent", "The server wants this agent to attest again",
			"reason", reason_name(reason), NULL);
	sync_failed(s, st->code, reason_name(reason), st->message);
	sync_begin_attest(s);
	return true;
}

void sync_succeeded(struct sync *s, enum sync_mode m)
{
	if (s->error.code || s->mode != m)
		log_event(LOG_INFO, "sync", "In step with the server", "mode",
			m == SYNC_WATCH  ? "watch"
			: m == SYNC_POLL ? "sync"
					 : "fetch",
			"entries", log_fmt("%zu", cache_count(s->o.cache)), NULL);
	s->mode = m;
	s->error = ERR_INIT;
	s->last_success = clock_wall().sec;
	backoff_reset(&s->watch_backoff);
	now_ready(s);
	sign_again(s);
	if (s->renew_due)
		identity_renew(s);
}

void sync_failed(struct sync *s, int code, const char *what, const char *msg)
{
	struct err was = s->error;
	struct mono now = clock_mono();

	err_set(&s->error, code ? code : ERR_UNKNOWN, "%s: %s", what, msg);
	/* Another reason is news too, but two may take turns at each attempt. */
	if (was.code && (strcmp(was.msg, s->error.msg) == 0 ||
				now.ns - s->told.ns < TELL_AGAIN_S * NS_PER_SEC))
		return;
	s->told = now;
	if (s->ready)
		log_event(LOG_WARN, "sync",
			"Not in step with the server; going on with what is known", "error",
			s->error.msg, NULL);
}

/* Own bundle: what depends on it. */
void sync_bundle_changed(struct sync *s)
{
	struct bundle *b = cache_bundle(s->o.cache);
	struct x509_chain roots;
	bool same;

	if (!b)
		return;
	jwtcache_drop_tainted(s->o.jwt, b);
	roots = bundle_roots(b);
	same = roots.n == s->data.bundle.n;
	for (size_t i = 0; same && i < roots.n; i++)
		same = bytes_equal(x509_der(roots.v[i]), x509_der(s->data.bundle.v[i]));
	x509_chain_deinit(&s->data.bundle);
	s->data.bundle = roots;
	if (!same)
		store_data(s, NULL);
	identity_check_trust(s, true);
}

void sync_state(const struct sync *s, struct sync_state *ret)
{
	*ret = (struct sync_state){ .mode = s->mode,
		.epoch = s->mode == SYNC_WATCH || s->mode == SYNC_OFFLINE ? s->epoch : "",
		.change = s->mode == SYNC_WATCH || s->mode == SYNC_OFFLINE ? s->change : 0,
		.last_success = s->watch_live ? clock_wall().sec : s->last_success,
		.error = s->error.code ? s->error.msg : "",
		.svid = &s->data.svid,
		.ready = s->ready,
		.connected = s->client && rpc_client_connected(s->client) };
}

void sync_wanted(struct sync *s)
{
	sign_pump(s);
}

void sync_changed(struct sync *s)
{
	store_touch(s);
}

/* ---- the end ---- */

void sync_stop(struct sync *s)
{
	bool flush = s->store_armed;

	s->stopped = true;
	identity_stop(s);
	loop_timer_stop(s->attest_timer);
	loop_timer_stop(s->renew_timer);
	loop_timer_stop(s->rebootstrap_timer);
	loop_timer_stop(s->watch_timer);
	watch_close(s);
	poll_stop(s);
	if (s->client)
		rpc_client_free(s->client);
	s->client = NULL;
	sign_free(s);
	if (flush)
		store_flush(s);
}

void sync_free(struct sync *s)
{
	if (!s)
		return;
	INVARIANT(s->jobs == 0);
	lane_free(s->data_lane);
	loop_timer_free(s->attest_timer);
	loop_timer_free(s->renew_timer);
	loop_timer_free(s->rebootstrap_timer);
	loop_timer_free(s->watch_timer);
	loop_timer_free(s->store_timer);
	loop_timer_free(s->sign_timer);
	if (s->tls)
		tls_ctx_unref(s->tls);
	if (s->serving)
		tls_ctx_unref(s->serving);
	key_unref(s->key);
	key_unref(s->new_key);
	agent_data_deinit(&s->data);
	cache_update_deinit(&s->set);
	free(s->key_name);
	free(s->new_key_name);
	free(s->sealed_path);
	free(s->epoch);
	free(s);
}

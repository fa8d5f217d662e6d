#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/sync_internal.h"
#include "spire/api/server/agent/v1/agent.pb-c.h"

/* The agent's own key and SVID: loading, attesting, renewing, giving up. */

#define RENEW_AGENT "/spire.api.server.agent.v1.Agent/RenewAgent"
#define KEY_A "agent-svid-A"
#define KEY_B "agent-svid-B"

enum {
	RENEW_JITTER_PERCENT = 10,
	RENEW_TRIES_LEFT = 8,
	RENEW_SOONEST_MS = 250,
	BACKDATE_S = 10,
	EXPIRY_SKEW_S = 1,
	TAINT_SPREAD_MS = 3000, /* all agents renew after a taint */
};

static const struct x509_cert *leaf_of(const struct sync *s)
{
	return s->data.svid.n ? s->data.svid.v[0] : NULL;
}

static bool expired(const struct sync *s)
{
	return !leaf_of(s) || x509_not_after(leaf_of(s)).sec <= clock_wall().sec + EXPIRY_SKEW_S;
}

/* Two slots by turns, as SPIRE's agent: the old key stays until the next renewal, and with it what
 * was sealed under it. */
static const char *next_key_name(const struct sync *s)
{
	return s->key_name && strcmp(s->key_name, KEY_A) == 0 ? KEY_B : KEY_A;
}

/* ---- loading ---- */

static void take_stored_bundle(struct sync *s)
{
	struct cache_update u = { 0 };

	if (cache_bundle(s->o.cache) || !s->data.bundle.n)
		return;
	u.bundle = bundle_new(s->o.options->trust_domain);
	for (size_t i = 0; i < s->data.bundle.n; i++)
		bundle_add_root(u.bundle, s->data.bundle.v[i], false);
	cache_apply(s->o.cache, &u);
	cache_update_deinit(&u);
}

static void find_key_of_svid(
	struct sync *s, struct key *const *keys, const struct strings *names, size_t n)
{
	const struct x509_cert *leaf = leaf_of(s);

	for (size_t i = 0; leaf && x509_pubkey(leaf) && i < n; i++) {
		if (!bytes_equal(pubkey_spki(x509_pubkey(leaf)), pubkey_spki(key_public(keys[i]))))
			continue;
		s->key = key_ref(keys[i]);
		s->key_name = xstrdup(names->v[i]);
		return;
	}
}

static void judge_stored(struct sync *s, size_t n_keys)
{
	const char *why = NULL;

	if (s->key && !expired(s) && cache_bundle(s->o.cache)) {
		log_event(LOG_INFO, "agent", "SVID loaded", "spiffe_id",
			x509_uris(leaf_of(s))->v[0], NULL);
		return;
	}
	if (leaf_of(s) && !s->key)
		why = n_keys ? "SVID recovered, but no SVID key found"
			     : "SVID recovered, but no keys found";
	else if (leaf_of(s) && expired(s))
		why = "SVID key recovered, but SVID is expired";
	else if (!leaf_of(s) && n_keys)
		why = "Keys recovered, but no SVID found";
	if (why)
		log_event(LOG_WARN, "agent", why, NULL);
	key_unref(s->key);
	s->key = NULL;
	x509_chain_deinit(&s->data.svid);
}

int identity_load(struct sync *s, struct err *e)
{
	const struct agent_options *o = s->o.options;
	struct strings names = { 0 };
	struct key **keys = NULL;
	size_t n = 0;
	int r = agent_data_load(o->data_dir, &s->data, e);

	if (!r)
		r = keymgr_list(s->o.keys, &names, e);
	keys = xcalloc(names.n + 1, sizeof(*keys));
	for (size_t i = 0; !r && i < names.n; i++) {
		r = keymgr_key(s->o.keys, names.v[i], &keys[n], e);
		if (!r)
			n++;
	}
	if (!r) {
		find_key_of_svid(s, keys, &names, n);
		if (s->sealed_path)
			r = store_load(s, keys, names.v, n, e);
	}
	if (!r) {
		take_stored_bundle(s);
		judge_stored(s, n);
	}
	for (size_t i = 0; i < n; i++)
		key_unref(keys[i]);
	free(keys);
	strings_deinit(&names);
	return r;
}

/* Banned: keys, SVID and what was sealed are of no use to anybody any more. */
void identity_discard(struct sync *s)
{
	struct agent_data none = { .bundle = s->data.bundle };
	struct strings names = { 0 };
	struct err e = ERR_INIT;

	if (keymgr_list(s->o.keys, &names, &e) == 0) {
		for (size_t i = 0; i < names.n; i++)
			(void)!keymgr_delete(s->o.keys, names.v[i], &e);
	}
	strings_deinit(&names);
	if (agent_data_store(s->o.options->data_dir, &none, &e))
		log_event(LOG_ERROR, "store", "Could not remove the agent's SVID", "error", e.msg,
			NULL);
	if (s->sealed_path) {
		unlink(s->sealed_path);
		free(s->sealed_path);
		s->sealed_path = NULL;
	}
}

/* ---- a new key ---- */

struct key_job {
	struct sync *s;
	struct keymgr *keys;
	char *name;
	struct key *key;
	struct buf csr;
	struct err err;
	void (*then)(struct sync *s, struct key_job *j);
};

static void key_work(void *arg)
{
	struct key_job *j = arg;
	AUTO(pubkey_unref) struct pubkey *pub = NULL;

	if (keymgr_generate(j->keys, j->name, KEY_EC_P256, &pub, &j->err) ||
		keymgr_key(j->keys, j->name, &j->key, &j->err) ||
		x509_csr_make(j->key, NULL, &j->csr, &j->err))
		err_wrap(&j->err, "making a key");
}

static void key_done(void *arg)
{
	struct key_job *j = arg;

	j->s->jobs--;
	if (!j->s->stopped)
		j->then(j->s, j);
	key_unref(j->key);
	buf_deinit(&j->csr);
	free(j->name);
	free(j);
}

static void make_key(struct sync *s, void (*then)(struct sync *s, struct key_job *j))
{
	struct key_job *j = xcalloc(1, sizeof(*j));

	j->s = s;
	j->keys = s->o.keys;
	j->name = xstrdup(next_key_name(s));
	j->csr = BUF_INIT;
	j->then = then;
	s->jobs++;
	loop_job(s->o.loop, key_work, key_done, j);
}

static void take_new_key(struct sync *s)
{
	key_unref(s->key);
	free(s->key_name);
	s->key = s->new_key;
	s->key_name = s->new_key_name;
	s->new_key = NULL;
	s->new_key_name = NULL;
}

static void keep_new_key(struct sync *s, struct key_job *j)
{
	key_unref(s->new_key);
	free(s->new_key_name);
	s->new_key = key_ref(j->key);
	s->new_key_name = xstrdup(j->name);
}

/* ---- attesting ---- */

static void attest_again(struct sync *s, const struct err *e)
{
	int64_t wait = backoff_next(&s->attest_backoff);

	s->attesting = false;
	sync_failed(s, e->code, "attestation", e->msg);
	if (s->for_rebootstrap && !s->rebootstrap && !expired(s)) {
		/* The server is again one that the bundle vouches for. */
		s->for_rebootstrap = false;
		identity_arm_renewal(s);
		return;
	}
	log_event(LOG_WARN, "attest", "Node attestation failed; trying again", "error", e->msg,
		"code", err_code_name(e->code), "retry_in", log_fmt("%.1fs", (double)wait / 1e9),
		NULL);
	loop_timer_set(s->attest_timer, wait);
}

static void refused_for_good(struct sync *s, const struct err *e)
{
	AUTO(free) char *text = NULL;

	s->attesting = false;
	if (strstr(e->msg, "agent is banned")) {
		identity_discard(s);
		text = xasprintf(
			"this agent is banned by the server (%s); its keys are deleted", e->msg);
	} else if (node_attestor_of(s->o.options) == &attest_token) {
		text = xasprintf(
			"the server refuses the join token: %s. A token works once and for a "
			"limited time; generate a new one for this node",
			e->msg);
	} else {
		text = xasprintf("the server refuses this node: %s", e->msg);
	}
	s->o.fatal(s->o.arg, text);
}

static void attested_and_stored(struct sync *s)
{
	log_event(LOG_INFO, "attest", "Node attestation was successful", "spiffe_id",
		x509_uris(leaf_of(s))->v[0], "reattestable",
		s->data.reattestable ? "true" : "false", "expires_at",
		log_time(x509_not_after(leaf_of(s)).sec), NULL);
	s->attesting = false;
	if (rebootstrap_possible(s))
		sync_online(s);
}

static void on_attested(
	void *arg, const struct attest_result *res, const struct err *e, bool definite)
{
	struct sync *s = arg;
	struct cache_update u = { 0 };
	bool stranger = s->attest && attest_met_stranger(s->attest);

	s->attest = NULL;
	if (!res) {
		if (stranger && cache_bundle(s->o.cache))
			rebootstrap_stranger(s);
		if (definite)
			refused_for_good(s, e);
		else
			attest_again(s, e);
		return;
	}
	rebootstrap_agreed(s);
	s->for_rebootstrap = false;
	backoff_reset(&s->attest_backoff);
	take_new_key(s);
	x509_chain_deinit(&s->data.svid);
	s->data.svid = x509_chain_dup(&res->svid);
	s->data.reattestable = res->reattestable;
	u.bundle = bundle_ref(res->bundle);
	cache_apply(s->o.cache, &u);
	cache_update_deinit(&u);
	x509_chain_deinit(&s->data.bundle);
	s->data.bundle = bundle_roots(res->bundle);
	/* On disk before it is used: the first use makes the former SVID worthless. */
	store_data(s, attested_and_stored);
	store_touch(s);
}

static void attest_with(struct sync *s, struct bundle *b)
{
	s->attest = attest_start(s->o.loop, s->o.options, s->new_key, b, on_attested, s);
}

static void on_bootstrap(void *arg, struct bundle *b, const struct err *e)
{
	struct sync *s = arg;

	s->bootstrap = NULL;
	if (e->code)
		attest_again(s, e);
	else
		attest_with(s, b);
}

static void trust_then_attest(struct sync *s)
{
	struct bootstrap_ask ask = { .again = s->rebootstrap,
		.attempts = ++s->rebootstrap_tries,
		.started = s->strange_since ? s->strange_since : clock_wall().sec };

	if (cache_bundle(s->o.cache) && !s->rebootstrap)
		attest_with(s, cache_bundle(s->o.cache));
	else
		s->bootstrap = bootstrap_start_as(s->o.loop, s->o.options, &ask, on_bootstrap, s);
}

static void key_then_attest(struct sync *s, struct key_job *j)
{
	if (j->err.code) {
		attest_again(s, &j->err);
		return;
	}
	keep_new_key(s, j);
	trust_then_attest(s);
}

void sync_begin_attest(struct sync *s)
{
	if (s->attesting || s->stopped)
		return;
	s->attesting = true;
	loop_timer_stop(s->attest_timer);
	loop_timer_stop(s->renew_timer);
	if (s->new_key)
		trust_then_attest(s);
	else
		make_key(s, key_then_attest);
}

/* ---- renewing ---- */

void identity_arm_renewal(struct sync *s)
{
	int64_t start = x509_not_before(leaf_of(s)).sec, end = x509_not_after(leaf_of(s)).sec;
	int64_t now = wall_ns(clock_wall()), at, soonest;

	if (end - start > BACKDATE_S)
		start += BACKDATE_S;
	at = start * NS_PER_SEC + loop_jitter((end - start) * NS_PER_SEC / 2, RENEW_JITTER_PERCENT);
	soonest = now + (end * NS_PER_SEC > now ? (end * NS_PER_SEC - now) / 4 : 0);
	loop_timer_set_wall(s->renew_timer, wall_of_ns(at > now ? at : soonest));
}

void identity_check_trust(struct sync *s, bool or_gone)
{
	const struct bundle *b = cache_bundle(s->o.cache);
	struct x509_chain good = { 0 }, all = { 0 };
	struct err e = ERR_INIT;
	uint32_t spread;

	if (!b || !leaf_of(s) || s->renewing || s->attesting)
		return;
	all = bundle_roots(b);
	for (size_t i = 0; i < b->n_roots; i++) {
		if (!b->roots[i].tainted)
			x509_chain_add(&good, b->roots[i].cert);
	}
	if (x509_verify(&s->data.svid, &good, clock_wall(), &e) &&
		(or_gone || x509_verify(&s->data.svid, &all, clock_wall(), &e) == 0)) {
		log_event(LOG_INFO, "agent",
			"The bundle does not vouch for the agent's SVID any more; renewing it",
			NULL);
		crypto_random(&spread, sizeof(spread));
		loop_timer_set(s->renew_timer, (int64_t)(spread % TAINT_SPREAD_MS) * NS_PER_MS);
	}
	x509_chain_deinit(&good);
	x509_chain_deinit(&all);
}

/* The shorter the life that is left, the more often: an SVID that expires cannot be renewed. */
static int64_t retry_wait(struct sync *s)
{
	int64_t wait = backoff_next(&s->renew_backoff);
	int64_t left = x509_not_after(leaf_of(s)).sec * NS_PER_SEC - wall_ns(clock_wall());

	if (left > 0 && wait > left / RENEW_TRIES_LEFT)
		wait = left / RENEW_TRIES_LEFT;
	return wait > RENEW_SOONEST_MS * NS_PER_MS ? wait : RENEW_SOONEST_MS * NS_PER_MS;
}

static void renew_again(struct sync *s, const char *msg)
{
	int64_t wait = retry_wait(s);

	s->renewing = false;
	log_event(LOG_WARN, "agent", "Could not renew the agent's SVID; trying again", "error", msg,
		"retry_in", log_fmt("%.1fs", (double)wait / 1e9), "expires_at",
		log_time(x509_not_after(leaf_of(s)).sec), NULL);
	loop_timer_set(s->renew_timer, wait);
}

static void renewed_and_stored(struct sync *s)
{
	log_event(LOG_INFO, "agent", "Agent SVID renewed", "spiffe_id", x509_uris(leaf_of(s))->v[0],
		"expires_at", log_time(x509_not_after(leaf_of(s)).sec), NULL);
	s->renewing = false;
	sync_online(s);
}

static void on_renewed(void *arg, const struct rpc_status *st, const ProtobufCMessage *m)
{
	struct sync *s = arg;
	const Spire__Api__Server__Agent__V1__RenewAgentResponse *rs =
		(const Spire__Api__Server__Agent__V1__RenewAgentResponse *)m;
	struct bytes certs[X509_MAX_CHAIN];
	struct x509_chain chain = { 0 };
	struct err e = ERR_INIT;
	size_t n = rs && rs->svid ? rs->svid->n_cert_chain : 0;

	if (s->stopped)
		return;
	if (st->code) {
		if (sync_refused(s, st, s->generation))
			s->renewing = false;
		else
			renew_again(s, st->message);
		return;
	}
	for (size_t i = 0; i < n && i < X509_MAX_CHAIN; i++)
		certs[i] = bytes_of(rs->svid->cert_chain[i].data, rs->svid->cert_chain[i].len);
	if (attest_check_svid(certs, n, s->o.options->trust_domain, s->new_key, &chain, &e)) {
		renew_again(s, e.msg);
		return;
	}
	backoff_reset(&s->renew_backoff);
	take_new_key(s);
	x509_chain_deinit(&s->data.svid);
	s->data.svid = chain;
	store_data(s, renewed_and_stored);
	store_touch(s);
}

static void key_then_renew(struct sync *s, struct key_job *j)
{
	Spire__Api__Server__Agent__V1__RenewAgentRequest rq =
		SPIRE__API__SERVER__AGENT__V1__RENEW_AGENT_REQUEST__INIT;
	Spire__Api__Server__Agent__V1__AgentX509SVIDParams params =
		SPIRE__API__SERVER__AGENT__V1__AGENT_X509_SVIDPARAMS__INIT;
	struct rpc_unary_options u = { .method = RENEW_AGENT,
		.request = &rq.base,
		.response = &spire__api__server__agent__v1__renew_agent_response__descriptor,
		.timeout_ms = SYNC_CALL_MS,
		.fail_fast = true };

	if (j->err.code) {
		renew_again(s, j->err.msg);
		return;
	}
	keep_new_key(s, j);
	params.csr = (ProtobufCBinaryData){ .data = j->csr.p, .len = j->csr.len };
	rq.params = &params;
	/* Not to be put off by the back-off between connections. */
	if (!rpc_client_connected(s->client))
		rpc_client_reconnect(s->client);
	rpc_unary(s->client, &u, on_renewed, s);
}

void identity_renew(void *arg)
{
	struct sync *s = arg;

	if (s->attesting || s->renewing || s->stopped)
		return;
	s->renew_due = true;
	/* With an expired SVID no connection can be opened; attesting is all that is left. */
	if (s->data.reattestable || expired(s) || !s->client) {
		sync_begin_attest(s);
		return;
	}
	s->renewing = true;
	make_key(s, key_then_renew);
}

void identity_stop(struct sync *s)
{
	if (s->bootstrap)
		bootstrap_cancel(s->bootstrap);
	if (s->attest)
		attest_cancel(s->attest);
	s->bootstrap = NULL;
	s->attest = NULL;
}

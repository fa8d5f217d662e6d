#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/api.h"
#include "agent/attest.h"
#include "assay/agent/v1/admin.pb-c.h"
#include "lib/log.h"
#include "spire/api/agent/debug/v1/debug.pb-c.h"
#include "spire/api/agent/logger/v1/logger.pb-c.h"

/* The admin socket: Explain, GetInfo, the logger. */

enum { NEAREST_MAX = 5, VERDICT_MAX = 4096 };

/* The file mode lets the group in as well; who is asked for is root, or whom the agent runs as. */
#define DELEGATED_PREFIX "/spire.api.agent.delegatedidentity.v1."

bool api_admin_authorize(void *arg, struct rpc_call *c, const char *method)
{
	const struct peer *p = rpc_call_peer(c);

	(void)arg;
	/* There the caller's SPIFFE ID decides, and the socket's mode. */
	if (strncmp(method, DELEGATED_PREFIX, strlen(DELEGATED_PREFIX)) == 0)
		return true;
	if (p && p->is_unix && (p->uid == 0 || p->uid == geteuid()))
		return true;
	rpc_fail(c, ERR_DENIED, "the admin API is for root and the agent's own user");
	return false;
}

/* ---- explain ---- */

static Spire__Api__Types__Selector *selector_msg(const struct selector *s)
{
	Spire__Api__Types__Selector *m = xmalloc(sizeof(*m));

	spire__api__types__selector__init(m);
	m->type = xstrdup(s->type);
	m->value = xstrdup(s->value);
	return m;
}

static void put_selectors(
	const struct selectors *s, size_t *ret_n, Spire__Api__Types__Selector ***ret)
{
	*ret = xcalloc(s->n + 1, sizeof(struct Spire__Api__Types__Selector *));
	for (size_t i = 0; i < s->n; i++)
		(*ret)[(*ret_n)++] = selector_msg(&s->v[i]);
}

static Assay__Agent__V1__Caller *caller_msg(const struct attestation *a)
{
	Assay__Agent__V1__Caller *m = xmalloc(sizeof(*m));

	assay__agent__v1__caller__init(m);
	m->pid = a->pid;
	m->uid = a->uid;
	m->gid = a->gid;
	m->start_time = a->start_time;
	m->executable = xstrdup(a->exe ? a->exe : "");
	m->n_supplementary_gids = a->n_groups;
	m->supplementary_gids = xcalloc(a->n_groups + 1, sizeof(uint32_t));
	for (size_t i = 0; i < a->n_groups; i++)
		m->supplementary_gids[i] = a->groups[i];
	return m;
}

static Assay__Agent__V1__Attestor *attestor_msg(const struct finding *f)
{
	Assay__Agent__V1__Attestor *m = xmalloc(sizeof(*m));

	assay__agent__v1__attestor__init(m);
	m->name = xstrdup(f->attestor);
	put_selectors(&f->selectors, &m->n_selectors, &m->selectors);
	m->micros = f->elapsed_ns / 1000;
	m->error = xstrdup(f->err.code ? f->err.msg : "");
	m->waited_for = xstrdup(f->waited_for ? f->waited_for : "");
	return m;
}

static Assay__Agent__V1__Match *match_msg(const struct record *r)
{
	Assay__Agent__V1__Match *m = xmalloc(sizeof(*m));

	assay__agent__v1__match__init(m);
	m->entry = entry_to_proto(&r->entry);
	m->svid_serial = xstrdup(r->svid ? r->svid->serial : "");
	m->expires_at = r->svid ? r->svid->not_after : 0;
	return m;
}

static struct selectors missing_of(const struct record *r, const struct selectors *have)
{
	struct selectors ret = { 0 };

	for (size_t i = 0; i < r->entry.selectors.n; i++) {
		struct selectors one = { .v = &r->entry.selectors.v[i], .n = 1 };

		if (!selectors_subset(&one, have))
			selectors_add(&ret, one.v->type, one.v->value);
	}
	return ret;
}

static Assay__Agent__V1__NearMiss *near_msg(const struct record *r, const struct selectors *have)
{
	Assay__Agent__V1__NearMiss *m = xmalloc(sizeof(*m));
	struct selectors missing = missing_of(r, have);

	assay__agent__v1__near_miss__init(m);
	m->entry = entry_to_proto(&r->entry);
	put_selectors(&missing, &m->n_missing, &m->missing);
	selectors_deinit(&missing);
	return m;
}

static Assay__Agent__V1__SyncState *sync_msg(const struct api *a)
{
	Assay__Agent__V1__SyncState *m = xmalloc(sizeof(*m));
	struct bundle *b = cache_bundle(a->cache);
	struct sync_state st;

	sync_state(a->sync, &st);
	assay__agent__v1__sync_state__init(m);
	m->mode = (Assay__Agent__V1__SyncState__Mode)st.mode;
	m->server_address = xasprintf("%s:%d", a->options->server_address, a->options->server_port);
	m->epoch = xstrdup(st.epoch);
	m->change = st.change;
	m->bundle_sequence = b ? b->sequence : 0;
	m->entries = (uint32_t)cache_count(a->cache);
	m->last_success = st.last_success;
	m->error = xstrdup(st.error);
	return m;
}

static void say_matches(struct buf *out, const struct view *v)
{
	buf_printf(out, "%zu %s issued:", v->n_matches,
		v->n_matches == 1 ? "identity is" : "identities are");
	for (size_t i = 0; i < v->n_matches; i++)
		buf_printf(out, "%s %s%s", i ? "," : "", v->matches[i]->entry.spiffe_id,
			v->matches[i]->svid ? "" : " (X509-SVID not signed yet)");
}

static void say_nearest(struct buf *out, const struct record *r, const struct selectors *have)
{
	struct selectors missing = missing_of(r, have);

	buf_printf(out, "no identity issued: the nearest entry, %s (%s), also wants", r->entry.id,
		r->entry.spiffe_id);
	for (size_t i = 0; i < missing.n; i++)
		buf_printf(out, "%s %s:%s", i ? "," : "", missing.v[i].type, missing.v[i].value);
	selectors_deinit(&missing);
}

static char *verdict(const struct api *a, const struct attestation *at, const struct view *v,
	const struct near_miss *near, size_t n_near)
{
	struct buf out = BUF_INIT_MAX(VERDICT_MAX);

	if (at->err.code)
		buf_printf(&out, "workload attestation failed, so the request is refused: %s",
			at->err.msg);
	else if (v && v->n_matches)
		say_matches(&out, v);
	else if (cache_count(a->cache) == 0)
		buf_str(&out, "no identity issued: this agent has no registration entries");
	else if (n_near)
		say_nearest(&out, near[0].record, &at->selectors);
	else
		buf_str(&out, "no identity issued");
	return buf_take_str(&out);
}

struct explain_call {
	struct rpc_call *call;
	struct api *api;
};

static void explained(void *arg, const struct attestation *at)
{
	struct explain_call *x = arg;
	struct api *a = x->api;
	struct rpc_call *c = x->call;
	Assay__Agent__V1__ExplainResponse *rs = xmalloc(sizeof(*rs));
	struct near_miss near[NEAREST_MAX];
	struct view *v = NULL;
	size_t n_near = 0;

	free(x);
	assay__agent__v1__explain_response__init(rs);
	if (at->err.code == ERR_NOT_FOUND && !at->n_findings) {
		rpc_fail(c, ERR_NOT_FOUND, "%s", at->err.msg);
		free(rs);
		rpc_call_unref(c);
		return;
	}
	rs->caller = caller_msg(at);
	rs->attestors = xcalloc(at->n_findings + 1, sizeof(struct Assay__Agent__V1__Attestor *));
	for (size_t i = 0; i < at->n_findings; i++)
		rs->attestors[rs->n_attestors++] = attestor_msg(&at->findings[i]);
	if (!at->err.code) {
		v = cache_view(a->cache, &at->selectors);
		rs->matches = xcalloc(v->n_matches + 1, sizeof(struct Assay__Agent__V1__Match *));
		for (size_t i = 0; i < v->n_matches; i++)
			rs->matches[rs->n_matches++] = match_msg(v->matches[i]);
		n_near = cache_nearest(a->cache, &at->selectors, near, NEAREST_MAX);
		rs->nearest = xcalloc(n_near + 1, sizeof(struct Assay__Agent__V1__NearMiss *));
		for (size_t i = 0; i < n_near; i++)
			rs->nearest[rs->n_nearest++] = near_msg(near[i].record, &at->selectors);
	}
	rs->verdict = verdict(a, at, v, near, n_near);
	rs->sync = sync_msg(a);
	rpc_reply(c, &rs->base);
	view_unref(v);
	assay__agent__v1__explain_response__free_unpacked(rs, NULL);
	rpc_call_unref(c);
}

static void explain(struct rpc_call *c, const ProtobufCMessage *req)
{
	const Assay__Agent__V1__ExplainRequest *rq = (const Assay__Agent__V1__ExplainRequest *)req;
	struct explain_call *x;

	if (rq->pid <= 0) {
		rpc_fail(c, ERR_INVALID, "pid must be a positive number");
		return;
	}
	x = xmalloc(sizeof(*x));
	*x = (struct explain_call){ .call = rpc_call_ref(c), .api = rpc_call_data(c) };
	workload_attest(x->api->workload, NULL, rq->pid, true, explained, x);
}

/* ---- debug ---- */

static Spire__Agent__Debug__V1__GetInfoResponse__Cert *cert_msg(const struct x509_cert *c)
{
	Spire__Agent__Debug__V1__GetInfoResponse__Cert *m = xmalloc(sizeof(*m));
	const struct strings *uris = x509_uris(c);
	struct spiffeid id = SPIFFEID_INIT;
	struct err e = ERR_INIT;
	struct buf subject = BUF_INIT;

	spire__agent__debug__v1__get_info_response__cert__init(m);
	if (uris->n == 1 && spiffeid_parse_str(&id, uris->v[0], &e) == 0) {
		struct bytes td = spiffeid_td(&id);

		m->id = xmalloc(sizeof(*m->id));
		spire__api__types__spiffeid__init(m->id);
		m->id->trust_domain = xstrndup((const char *)td.p, td.n);
		m->id->path = xstrdup(spiffeid_path(&id));
		spiffeid_deinit(&id);
	}
	m->expires_at = x509_not_after(c).sec;
	x509_subject_text(c, &subject);
	m->subject = buf_take_str(&subject);
	return m;
}

static void get_info(struct rpc_call *c, const ProtobufCMessage *req)
{
	struct api *a = rpc_call_data(c);
	Spire__Agent__Debug__V1__GetInfoResponse *rs = xmalloc(sizeof(*rs));
	struct x509_chain roots = { 0 }, path = { 0 };
	struct sync_state st;
	struct err e = ERR_INIT;

	(void)req;
	sync_state(a->sync, &st);
	if (cache_bundle(a->cache))
		roots = bundle_roots(cache_bundle(a->cache));
	if (!st.svid->n || x509_verify_path(st.svid, &roots, clock_wall(), &path, &e)) {
		rpc_fail(c, ERR_INTERNAL, "failed to verify agent SVID: %s",
			st.svid->n ? e.msg : "the agent has none yet");
		x509_chain_deinit(&roots);
		free(rs);
		return;
	}
	spire__agent__debug__v1__get_info_response__init(rs);
	rs->svid_chain = xcalloc(
		path.n + 1, sizeof(struct Spire__Agent__Debug__V1__GetInfoResponse__Cert *));
	for (size_t i = 0; i < path.n; i++)
		rs->svid_chain[rs->n_svid_chain++] = cert_msg(path.v[i]);
	rs->uptime = (int32_t)((clock_mono().ns - a->started.ns) / NS_PER_SEC);
	rs->cached_x509_svids_count = (int32_t)cache_count_svids(a->cache);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
	rs->svids_count = rs->cached_x509_svids_count; /* older tools read this one */
#pragma GCC diagnostic pop
	rs->cached_jwt_svids_count = (int32_t)jwtcache_count(a->jwt);
	rs->last_sync_success = st.last_success;
	rpc_reply(c, &rs->base);
	spire__agent__debug__v1__get_info_response__free_unpacked(rs, NULL);
	x509_chain_deinit(&path);
	x509_chain_deinit(&roots);
}

/* ---- logger ---- */

static Spire__Api__Types__LogLevel level_msg(enum log_level l)
{
	return (Spire__Api__Types__LogLevel)((int)l + SPIRE__API__TYPES__LOG_LEVEL__PANIC);
}

static void reply_logger(struct rpc_call *c)
{
	const struct api *a = rpc_call_data(c);
	Spire__Api__Types__Logger rs = SPIRE__API__TYPES__LOGGER__INIT;

	rs.current_level = level_msg(log_level());
	rs.launch_level = level_msg(a->launch_level);
	rpc_reply(c, &rs.base);
}

static void get_logger(struct rpc_call *c, const ProtobufCMessage *req)
{
	(void)req;
	reply_logger(c);
}

static void set_log_level(struct rpc_call *c, const ProtobufCMessage *req)
{
	const Spire__Api__Agent__Logger__V1__SetLogLevelRequest *rq =
		(const Spire__Api__Agent__Logger__V1__SetLogLevelRequest *)req;
	int l = (int)rq->new_level;

	if (l < SPIRE__API__TYPES__LOG_LEVEL__PANIC || l > SPIRE__API__TYPES__LOG_LEVEL__TRACE) {
		rpc_fail(c, ERR_INVALID,
			l ? "unsupported log level"
			  : "newLevel value cannot be LogLevel_UNSPECIFIED");
		return;
	}
	log_set_level((enum log_level)(l - SPIRE__API__TYPES__LOG_LEVEL__PANIC));
	reply_logger(c);
}

static void reset_log_level(struct rpc_call *c, const ProtobufCMessage *req)
{
	const struct api *a = rpc_call_data(c);

	(void)req;
	log_set_level(a->launch_level);
	reply_logger(c);
}

static const struct rpc_method admin_methods[] = { { "Explain", RPC_UNARY, explain } };
static const struct rpc_method debug_methods[] = { { "GetInfo", RPC_UNARY, get_info } };
static const struct rpc_method logger_methods[] = {
	{ "GetLogger", RPC_UNARY, get_logger },
	{ "SetLogLevel", RPC_UNARY, set_log_level },
	{ "ResetLogLevel", RPC_UNARY, reset_log_level },
};

void api_admin_add(struct rpc_server *s, struct api *a)
{
	static struct rpc_service svc[3];

	svc[0] = (struct rpc_service){ .desc = &assay__agent__v1__admin__descriptor,
		.methods = admin_methods,
		.n_methods = ARRAY_LEN(admin_methods),
		.data = a };
	svc[1] = (struct rpc_service){ .desc = &spire__agent__debug__v1__debug__descriptor,
		.methods = debug_methods,
		.n_methods = ARRAY_LEN(debug_methods),
		.data = a };
	svc[2] = (struct rpc_service){ .desc = &spire__api__agent__logger__v1__logger__descriptor,
		.methods = logger_methods,
		.n_methods = ARRAY_LEN(logger_methods),
		.data = a };
	for (size_t i = 0; i < ARRAY_LEN(svc); i++)
		rpc_server_add(s, &svc[i]);
}

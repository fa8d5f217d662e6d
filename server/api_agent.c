/* Service spire.api.server.agent.v1.Agent, the operator's half: agents and join tokens. Attestation
 * and renewal are in api_attest.c. */
#include "server/api.h"

#include <stdlib.h>
#include <string.h>

#include "google/protobuf/empty.pb-c.h"
#include "spire/api/server/agent/v1/agent.pb-c.h"
#include "spire/api/types/jointoken.pb-c.h"

#define V1(name) Spire__Api__Server__Agent__V1__##name

/* ---- small writes: PostStatus, DeleteAgent, BanAgent, CreateJoinToken ---- */

struct write {
	struct rpc_call *c;
	struct api *api;
	char *id;
	struct join_token token;
	const char *what; /* "failed to …" */
	const char *log;  /* said at info; NULL: nothing */
};

static struct write *write_new(struct rpc_call *c, const char *what, const char *log)
{
	struct write *w = xcalloc(1, sizeof(*w));

	w->c = rpc_call_ref(c);
	w->api = rpc_call_data(c);
	w->what = what;
	w->log = log;
	return w;
}

static void write_free(struct write *w)
{
	if (w->token.token)
		mem_wipe(w->token.token, strlen(w->token.token));
	free(w->token.token);
	free(w->id);
	rpc_call_unref(w->c);
	free(w);
}

/* 0: the answer is the caller's. Else it was given. */
static int write_check(struct write *w, int code, const char *msg)
{
	if (code == ERR_NOT_FOUND)
		rpc_fail(w->c, ERR_NOT_FOUND, "agent not found");
	else if (code)
		rpc_fail(w->c, ERR_INTERNAL, "%s: %s", w->what, msg);
	else {
		if (w->log)
			log_event(LOG_INFO, "agent", w->log, "agent_id", w->id, NULL);
		api_audit(w->api, w->c, 0, NULL, "spiffe_id", w->id, NULL);
	}
	return code;
}

static void posted(void *arg, int code, const char *msg)
{
	struct write *w = arg;
	V1(PostStatusResponse) rs = SPIRE__API__SERVER__AGENT__V1__POST_STATUS_RESPONSE__INIT;

	if (write_check(w, code, msg) == 0)
		rpc_reply(w->c, &rs.base);
	write_free(w);
}

static void post_status(struct rpc_call *c, ProtobufCMessage *req)
{
	V1(PostStatusRequest) *rq = (void *)req;
	struct api *a = rpc_call_data(c);
	struct node_update u = { .agent_version = rq->agent_version };
	struct write *w;
	struct node n;
	struct err e;

	w = write_new(c, "failed to update agent", NULL);
	w->id = xstrdup(api_caller(c));
	if (!w->id[0]) {
		rpc_fail(c, ERR_INTERNAL, "caller ID missing from request context");
		write_free(w);
	} else if (strlen(rq->agent_version) > API_AGENT_VERSION_MAX) {
		rpc_fail(c, ERR_INVALID, "agent version is too long (max 255 characters)");
		write_free(w);
	} else if (!rq->agent_version[0] ||
		   (entries_node_view(a->entries, w->id, &n, &e) == 0 &&
			   strcmp(n.agent_version, rq->agent_version) == 0)) {
		posted(w, 0, ""); /* nothing new: nothing written */
	} else {
		store_node_update(a->store, w->id, &u, posted, w);
	}
	protobuf_c_message_free_unpacked(req, NULL);
}

static void start_post_status(struct rpc_call *c, const ProtobufCMessage *req)
{
	api_limited(c, req, RATELIMIT_POST_STATUS, 1, post_status);
}

static void replied_empty(void *arg, int code, const char *msg)
{
	struct write *w = arg;
	Google__Protobuf__Empty rs = GOOGLE__PROTOBUF__EMPTY__INIT;

	if (write_check(w, code, msg) == 0)
		rpc_reply(w->c, &rs.base);
	write_free(w);
}

/* The agent id of a request, or the call is answered. Caller frees. */
static char *agent_id_of(struct rpc_call *c, const Spire__Api__Types__SPIFFEID *m)
{
	const struct api *a = rpc_call_data(c);
	struct spiffeid id;
	struct err e;

	if (api_id_parse(&id, m, API_ID_AGENT, a->trust_domain, &e)) {
		rpc_fail(c, ERR_INVALID, "invalid agent ID: %s", e.msg);
		return NULL;
	}
	return id.text;
}

static void delete_agent(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(DeleteAgentRequest) *rq = (const void *)req;
	struct write *w;
	char *id = agent_id_of(c, rq->id);

	if (!id)
		return;
	w = write_new(c, "failed to remove agent", "agent evicted");
	w->id = id;
	store_node_delete(w->api->store, id, replied_empty, w);
}

static void ban_agent(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(BanAgentRequest) *rq = (const void *)req;
	struct node_update u = { .serial = "", .new_serial = "" };
	struct write *w;
	char *id = agent_id_of(c, rq->id);

	if (!id)
		return;
	w = write_new(c, "failed to ban agent", "agent banned");
	w->id = id;
	store_node_update(w->api->store, id, &u, replied_empty, w);
}

/* RFC 9562 5.4. */
static char *uuid4(void)
{
	uint8_t b[16];

	crypto_random(b, sizeof(b));
	b[6] = (uint8_t)((b[6] & 0x0f) | 0x40);
	b[8] = (uint8_t)((b[8] & 0x3f) | 0x80);
	return xasprintf("%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
		b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12],
		b[13], b[14], b[15]);
}

static void token_created(void *arg, int code, const char *msg)
{
	struct write *w = arg;
	Spire__Api__Types__JoinToken *rs;

	if (write_check(w, code, msg) == 0) {
		rs = pb_new(&spire__api__types__join_token__descriptor);
		rs->value = pb_str(w->token.token);
		rs->expires_at = w->token.expires_at;
		api_reply(w->c, rs);
	}
	write_free(w);
}

/* The entry that gives the agent of this token a further id (SPIRE's shape of it). */
static struct entry alias_of(const struct api *a, const char *token, const char *id)
{
	struct entry en = { .id = xstrdup(""), .spiffe_id = xstrdup(id), .hint = xstrdup("") };

	en.parent_id = xasprintf("spiffe://%s/spire/agent/join_token/%s", a->trust_domain, token);
	selectors_add(&en.selectors, "spiffe_id", en.parent_id);
	return en;
}

/* A token becomes a segment of the agent's id: not every text can be one. */
static int check_token(const struct api *a, const char *token, struct err *e)
{
	AUTO(free) char *path = xasprintf("/spire/agent/join_token/%s", token);
	struct spiffeid id = SPIFFEID_INIT;
	int r = strchr(token, '/') ? err_set(e, ERR_INVALID,
					     "path segment characters are limited to "
					     "letters, numbers, dots, "
					     "dashes, and underscores")
				   : spiffeid_make(&id, a->trust_domain, path, e);

	spiffeid_deinit(&id);
	return r ? err_wrap(e, "invalid join token") : 0;
}

static void create_join_token(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(CreateJoinTokenRequest) *rq = (const void *)req;
	struct api *a = rpc_call_data(c);
	struct write *w = write_new(c, "failed to create token", NULL);
	struct spiffeid id = SPIFFEID_INIT;
	struct entry alias = { .id = NULL };
	struct err e;
	int r = 0;

	w->token.token = rq->token[0] ? xstrdup(rq->token) : uuid4();
	w->token.expires_at = clock_wall().sec + rq->ttl;
	if (rq->ttl < 1)
		r = err_set(&e, ERR_INVALID, "ttl is required, you must provide one");
	if (r == 0 && rq->agent_id &&
		api_id_parse(&id, rq->agent_id, API_ID_WORKLOAD, a->trust_domain, &e))
		r = err_wrap(&e, "invalid agent ID");
	if (r == 0)
		r = check_token(a, w->token.token, &e);
	if (r) {
		rpc_fail_err(c, &e);
		write_free(w);
		spiffeid_deinit(&id);
		return;
	}
	w->id = id.text;
	if (id.text)
		alias = alias_of(a, w->token.token, id.text);
	store_token_create(a->store, &w->token, id.text ? &alias : NULL, token_created, w);
	if (id.text)
		entry_deinit(&alias);
}

/* ---- CountAgents, ListAgents, GetAgent ---- */

struct filter_parts {
	const char *type, *expires_before;
	const Spire__Api__Types__SelectorMatch *selectors;
	const Google__Protobuf__BoolValue *banned, *can_reattest;
};
#define FILTER_PARTS(m)                                                                            \
	((struct filter_parts){ (m)->by_attestation_type, (m)->by_expires_before,                  \
		(m)->by_selector_match, (m)->by_banned, (m)->by_can_reattest })

/* s holds what f points to. */
static int filter_parse(
	struct nodes_filter *f, struct selectors *s, const struct filter_parts *p, struct err *e)
{
	static const enum match matches[] = { [0] = MATCH_EXACT,
		[SPIRE__API__TYPES__SELECTOR_MATCH__MATCH_BEHAVIOR__MATCH_SUBSET] = MATCH_SUBSET,
		[SPIRE__API__TYPES__SELECTOR_MATCH__MATCH_BEHAVIOR__MATCH_SUPERSET] =
			MATCH_SUPERSET,
		[SPIRE__API__TYPES__SELECTOR_MATCH__MATCH_BEHAVIOR__MATCH_ANY] = MATCH_ANY };

	f->attestation_type = p->type[0] ? p->type : NULL;
	f->expires_before = p->expires_before[0] ? api_time_parse(p->expires_before) : 0;
	if (p->banned)
		f->banned = p->banned->value;
	if (p->can_reattest)
		f->can_reattest = p->can_reattest->value;
	if (!p->selectors)
		return 0;
	if (api_selectors_parse(s, p->selectors->selectors, p->selectors->n_selectors, e))
		return err_wrap(e, "failed to parse selectors");
	if (s->n == 0)
		return err_set(e, ERR_INTERNAL, "cannot list by empty selectors set");
	if ((size_t)p->selectors->match >= ARRAY_LEN(matches))
		return err_set(
			e, ERR_INTERNAL, "unhandled match behavior %d", (int)p->selectors->match);
	f->selectors = s;
	f->selectors_match = matches[p->selectors->match];
	return 0;
}

/* What SPIRE's store finds wrong, not its API, is an internal error. */
static void list_failed(struct err *e, const char *doing)
{
	if (e->code == ERR_INTERNAL)
		err_wrap(e, "%s", doing);
}

static bool count_one(void *arg, const struct node *n)
{
	(void)n;
	++*(int32_t *)arg;
	return true;
}

static void count_agents(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(CountAgentsRequest) *rq = (const void *)req;
	const struct api *a = rpc_call_data(c);
	V1(CountAgentsResponse) rs = SPIRE__API__SERVER__AGENT__V1__COUNT_AGENTS_RESPONSE__INIT;
	struct nodes_filter f = { .banned = -1, .can_reattest = -1 };
	struct selectors s = { .n = 0 };
	char *token = NULL;
	struct err e;
	int r = rq->filter ? filter_parse(&f, &s, &FILTER_PARTS(rq->filter), &e) : 0;

	if (r == 0)
		r = entries_list_nodes(a->entries, &f, "", count_one, &rs.count, &token, &e);
	if (r) {
		list_failed(&e, "failed to count agents");
		rpc_fail_err(c, &e);
	} else {
		rpc_reply(c, &rs.base);
	}
	free(token);
	selectors_deinit(&s);
}

struct page {
	V1(ListAgentsResponse) * rs;
	const Spire__Api__Types__AgentMask *mask;
	size_t max, bytes;
};

static bool list_one(void *arg, const struct node *n)
{
	struct page *p = arg;
	Spire__Api__Types__Agent *m;

	if (p->rs->n_agents >= p->max || p->bytes >= API_REPLY_BYTES_MAX)
		return false;
	m = pb_agent(n, p->mask);
	p->bytes += spire__api__types__agent__get_packed_size(m) + 6;
	pb_append(&p->rs->agents, &p->rs->n_agents, m);
	return true;
}

static void list_agents(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(ListAgentsRequest) *rq = (const void *)req;
	const struct api *a = rpc_call_data(c);
	struct nodes_filter f = { .banned = -1, .can_reattest = -1 };
	struct selectors s = { .n = 0 };
	struct page p = { .mask = rq->output_mask,
		.max = rq->page_size > 0 ? (size_t)rq->page_size : SIZE_MAX };
	char *token = NULL;
	struct err e;
	int r = rq->filter ? filter_parse(&f, &s, &FILTER_PARTS(rq->filter), &e) : 0;

	p.rs = pb_new(&spire__api__server__agent__v1__list_agents_response__descriptor);
	if (r == 0)
		r = entries_list_nodes(a->entries, &f, rq->page_token, list_one, &p, &token, &e);
	selectors_deinit(&s);
	if (r) {
		list_failed(&e, "failed to list agents");
		rpc_fail_err(c, &e);
		protobuf_c_message_free_unpacked(&p.rs->base, NULL);
		return;
	}
	p.rs->next_page_token = pb_str(token);
	free(token);
	api_reply(c, p.rs);
}

static void get_agent(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(GetAgentRequest) *rq = (const void *)req;
	const struct api *a = rpc_call_data(c);
	AUTO(free) char *id = agent_id_of(c, rq->id);
	struct node n;
	struct err e;

	if (!id)
		return;
	if (entries_get_node(a->entries, id, &n, &e)) {
		rpc_fail(c, ERR_NOT_FOUND, "agent not found");
		return;
	}
	api_reply(c, pb_agent(&n, rq->output_mask));
	node_deinit(&n);
}

static const struct rpc_method methods[] = {
	{ "CountAgents", RPC_UNARY, count_agents },
	{ "ListAgents", RPC_UNARY, list_agents },
	{ "GetAgent", RPC_UNARY, get_agent },
	{ "DeleteAgent", RPC_UNARY, delete_agent },
	{ "BanAgent", RPC_UNARY, ban_agent },
	{ "AttestAgent", RPC_BIDI, api_attest_agent },
	{ "RenewAgent", RPC_UNARY, api_renew_agent },
	{ "CreateJoinToken", RPC_UNARY, create_join_token },
	{ "PostStatus", RPC_UNARY, start_post_status },
};

struct rpc_service api_agent_service(struct api *a)
{
	return (struct rpc_service){ .desc = &spire__api__server__agent__v1__agent__descriptor,
		.methods = methods,
		.n_methods = ARRAY_LEN(methods),
		.data = a };
}

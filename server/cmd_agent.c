/* `agent`: attested agents. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "google/protobuf/wrappers.pb-c.h"
#include "lib/clock.h"
#include "server/cmd.h"
#include "server/cmd_util.h"
#include "spire/api/server/agent/v1/agent.pb-c.h"

enum { AGENT_PAGE = 1000 };

typedef Spire__Api__Server__Agent__V1__ListAgentsResponse ListResponse;

#define FILTER_FLAGS                                                                               \
	{ .name = "selector",                                                                      \
		.type = CLI_STRINGS,                                                               \
		.help = "A colon-delimited type:value selector. Can be used more than once" },     \
		{ .name = "attestationType",                                                       \
			.type = CLI_STRING,                                                        \
			.help = "Filter by attestation type, like join_token or x509pop." },       \
		{ .name = "canReattest",                                                           \
			.type = CLI_TRISTATE,                                                      \
			.choices = "true|false",                                                   \
			.help = "Filter based on string received, 'true': agents that can "        \
				"reattest, 'false': agents that can't reattest, other value will " \
				"return all." },                                                   \
		{ .name = "banned",                                                                \
			.type = CLI_TRISTATE,                                                      \
			.choices = "true|false",                                                   \
			.help = "Filter based on string received, 'true': banned agents, "         \
				"'false': not banned agents, other value will return all." },      \
		{ .name = "expiresBefore",                                                         \
			.type = CLI_STRING,                                                        \
			.help = "Filter by expiration time (format: \"2006-01-02 15:04:05 -0700 "  \
				"-07\")" },                                                        \
	{                                                                                          \
		.name = "matchSelectorsOn", .type = CLI_STRING, .value = "superset",               \
		.choices = "exact|any|superset|subset",                                            \
		.help = "The match mode used when filtering by selectors. Options: exact, any, "   \
			"superset and subset"                                                      \
	}

static const struct cli_flag filter_flags[] = { FILTER_FLAGS, CLI_END };

#define ID_FLAGS(verb)                                                                             \
	{                                                                                          \
		{ .name = "spiffeID",                                                              \
			.type = CLI_STRING,                                                        \
			.help = "The SPIFFE ID of the agent to " verb " (agent identity)" },       \
			CLI_END                                                                    \
	}
static const struct cli_flag show_flags[] = ID_FLAGS("show");
static const struct cli_flag ban_flags[] = ID_FLAGS("ban");
static const struct cli_flag evict_flags[] = ID_FLAGS("evict");

static const struct cli_flag purge_flags[] = {
	{ .name = "expiredFor",
		.type = CLI_DURATION,
		.value = "720h0m0s",
		.help = "Amount of time that has passed since the agent's SVID has expired. It is "
			"used to determine which agents to purge." },
	{ .name = "dryRun",
		.type = CLI_BOOL,
		.help = "Indicates that the command will not perform any action, but will print "
			"the "
			"agents that would be purged." },
	CLI_END,
};

/* ---- filters ---- */

struct filter {
	Spire__Api__Types__SelectorMatch selectors;
	Google__Protobuf__BoolValue banned, can_reattest;
	bool by_selectors, by_banned, by_can_reattest;
};

/* "2006-01-02 15:04:05 -0700 -07": a date, a time, the zone twice. */
static int check_date(const char *text, struct err *e)
{
	struct tm tm = { 0 };
	const char *p = strptime(text, "%Y-%m-%d %H:%M:%S ", &tm);
	int hours = 0, used = 0;

	if (p && (*p == '+' || *p == '-') && sscanf(p + 1, "%4d%n", &hours, &used) == 1 &&
		used == 4 && p[5] == ' ' && (p[6] == '+' || p[6] == '-') && strlen(p) == 9)
		return 0;
	return err_set(e, ERR_INVALID,
		"date is not valid: cannot parse \"%s\" as \"2006-01-02 15:04:05 -0700 -07\"",
		text);
}

static int fill_filter(struct cli *c, struct filter *f, struct err *e)
{
	const struct strings *sel = cli_strings(c, "selector");
	int match = 0, r = 0;

	spire__api__types__selector_match__init(&f->selectors);
	google__protobuf__bool_value__init(&f->banned);
	google__protobuf__bool_value__init(&f->can_reattest);
	if (sel->n) {
		if (cmd_match(cli_str(c, "matchSelectorsOn"), &match, e))
			return err_set(e, ERR_INVALID, "unsupported match behavior");
		r = cmd_selectors(sel, &f->selectors.selectors, &f->selectors.n_selectors, e);
		if (r)
			return err_wrap(e, "error parsing selector");
		f->selectors.match = (Spire__Api__Types__SelectorMatch__MatchBehavior)match;
		f->by_selectors = true;
	}
	if (*cli_str(c, "expiresBefore"))
		r = check_date(cli_str(c, "expiresBefore"), e);
	f->by_banned = cli_tristate(c, "banned") >= 0;
	f->banned.value = cli_tristate(c, "banned") == 1;
	f->by_can_reattest = cli_tristate(c, "canReattest") >= 0;
	f->can_reattest.value = cli_tristate(c, "canReattest") == 1;
	return r;
}

static void filter_deinit(struct filter *f)
{
	for (size_t i = 0; i < f->selectors.n_selectors; i++)
		spire__api__types__selector__free_unpacked(f->selectors.selectors[i], NULL);
	free(f->selectors.selectors);
}

/* Text of a flag as a field of a request that only borrows it. */
static char *borrow(const struct cli *c, const char *flag)
{
	return (char *)(uintptr_t)cli_str(c, flag);
}

/* ---- list, show, count ---- */

static int list_pages(struct cli *c, Spire__Api__Server__Agent__V1__ListAgentsRequest *rq,
	ListResponse *all, struct err *e)
{
	AUTO(free) char *token = xstrdup("");

	rq->page_size = AGENT_PAGE;
	do {
		AUTO(cmd_free_message) ProtobufCMessage *m = NULL;
		ListResponse *page;
		int r;

		rq->page_token = token;
		r = cli_call(c, "/spire.api.server.agent.v1.Agent/ListAgents", &rq->base,
			&spire__api__server__agent__v1__list_agents_response__descriptor, &m, e);
		if (r)
			return r;
		page = (ListResponse *)m;
		all->agents = xreallocarray(
			all->agents, all->n_agents + page->n_agents + 1, sizeof(*all->agents));
		for (size_t i = 0; i < page->n_agents; i++)
			all->agents[all->n_agents++] = page->agents[i];
		page->n_agents = 0;
		free(token);
		token = xstrdup(page->next_page_token);
	} while (*token);
	return 0;
}

static int list_filtered(struct cli *c, struct filter *f, ListResponse *all, struct err *e)
{
	Spire__Api__Server__Agent__V1__ListAgentsRequest__Filter rf =
		SPIRE__API__SERVER__AGENT__V1__LIST_AGENTS_REQUEST__FILTER__INIT;
	Spire__Api__Server__Agent__V1__ListAgentsRequest rq =
		SPIRE__API__SERVER__AGENT__V1__LIST_AGENTS_REQUEST__INIT;

	rf.by_attestation_type = borrow(c, "attestationType");
	rf.by_expires_before = borrow(c, "expiresBefore");
	rf.by_selector_match = f->by_selectors ? &f->selectors : NULL;
	rf.by_banned = f->by_banned ? &f->banned : NULL;
	rf.by_can_reattest = f->by_can_reattest ? &f->can_reattest : NULL;
	rq.filter = &rf;
	return list_pages(c, &rq, all, e);
}

static void print_agent(struct cli *c, const Spire__Api__Types__Agent *a)
{
	AUTO(free) char *id = cli_id_text(a->id);
	AUTO(free) char *expires = cli_time(a->x509svid_expires_at, false);

	cli_printf(c, "SPIFFE ID         : %s\n", id);
	cli_printf(c, "Attestation type  : %s\n", a->attestation_type);
	cli_printf(c, "Expiration time   : %s\n", expires);
	if (a->banned)
		cli_printf(c, "Banned            : true\n");
	else
		cli_printf(c, "Serial number     : %s\n", a->x509svid_serial_number);
	cli_printf(c, "Can re-attest     : %s\n", a->can_reattest ? "true" : "false");
	if (*a->agent_version)
		cli_printf(c, "Agent version     : %s\n", a->agent_version);
	cli_printf(c, "\n");
}

static void print_agents(struct cli *c, const ListResponse *all)
{
	if (cmd_printed_json(c, all))
		return;
	if (!all->n_agents) {
		cli_printf(c, "No attested agents found\n");
		return;
	}
	cli_printf(c, "Found %zu attested %s:\n\n", all->n_agents,
		text_plural(all->n_agents, "agent", "agents"));
	for (size_t i = 0; i < all->n_agents; i++)
		print_agent(c, all->agents[i]);
}

static int list(struct cli *c)
{
	ListResponse *all = xmalloc(sizeof(*all));
	struct filter f = { 0 };
	struct err e;
	int r = fill_filter(c, &f, &e);

	spire__api__server__agent__v1__list_agents_response__init(all);
	if (!r)
		r = list_filtered(c, &f, all, &e);
	filter_deinit(&f);
	if (!r)
		print_agents(c, all);
	spire__api__server__agent__v1__list_agents_response__free_unpacked(all, NULL);
	return r ? cli_fail(c, &e) : 0;
}

static int count_filtered(struct cli *c, struct filter *f, ProtobufCMessage **ret, struct err *e)
{
	Spire__Api__Server__Agent__V1__CountAgentsRequest__Filter rf =
		SPIRE__API__SERVER__AGENT__V1__COUNT_AGENTS_REQUEST__FILTER__INIT;
	Spire__Api__Server__Agent__V1__CountAgentsRequest rq =
		SPIRE__API__SERVER__AGENT__V1__COUNT_AGENTS_REQUEST__INIT;

	rf.by_attestation_type = borrow(c, "attestationType");
	rf.by_expires_before = borrow(c, "expiresBefore");
	rf.by_selector_match = f->by_selectors ? &f->selectors : NULL;
	rf.by_banned = f->by_banned ? &f->banned : NULL;
	rf.by_can_reattest = f->by_can_reattest ? &f->can_reattest : NULL;
	rq.filter = &rf;
	return cli_call(c, "/spire.api.server.agent.v1.Agent/CountAgents", &rq.base,
		&spire__api__server__agent__v1__count_agents_response__descriptor, ret, e);
}

static int count(struct cli *c)
{
	AUTO(cmd_free_message) ProtobufCMessage *m = NULL;
	struct filter f = { 0 };
	struct err e;
	int32_t n;
	int r = fill_filter(c, &f, &e);

	if (!r)
		r = count_filtered(c, &f, &m, &e);
	filter_deinit(&f);
	if (r)
		return cli_fail(c, &e);
	n = ((const Spire__Api__Server__Agent__V1__CountAgentsResponse *)m)->count;
	if (!cmd_printed_json(c, m))
		cli_printf(
			c, "%d attested %s\n", (int)n, text_plural((size_t)n, "agent", "agents"));
	return 0;
}

/* ---- one agent: show, ban, evict ---- */

static int wanted_id(struct cli *c, Spire__Api__Types__SPIFFEID **ret, struct err *e)
{
	if (!*cli_str(c, "spiffeID"))
		return err_set(e, ERR_INVALID, "a SPIFFE ID is required");
	return cmd_id(cli_str(c, "spiffeID"), ret, e);
}

static int show(struct cli *c)
{
	Spire__Api__Server__Agent__V1__GetAgentRequest rq =
		SPIRE__API__SERVER__AGENT__V1__GET_AGENT_REQUEST__INIT;
	AUTO(cmd_free_message) ProtobufCMessage *m = NULL;
	const Spire__Api__Types__Agent *a;
	struct err e;
	int r = wanted_id(c, &rq.id, &e);

	if (!r)
		r = cli_call(c, "/spire.api.server.agent.v1.Agent/GetAgent", &rq.base,
			&spire__api__types__agent__descriptor, &m, &e);
	if (rq.id)
		spire__api__types__spiffeid__free_unpacked(rq.id, NULL);
	if (r)
		return cli_fail(c, &e);
	if (cmd_printed_json(c, m))
		return 0;
	a = (const Spire__Api__Types__Agent *)m;
	cli_printf(c, "Found an attested agent given its SPIFFE ID\n\n");
	print_agent(c, a);
	for (size_t i = 0; i < a->n_selectors; i++)
		cli_printf(c, "Selectors         : %s:%s\n", a->selectors[i]->type,
			a->selectors[i]->value);
	return 0;
}

static int tell(struct cli *c, const char *method, const ProtobufCMessage *rq, const char *done)
{
	AUTO(cmd_free_message) ProtobufCMessage *m = NULL;
	struct err e;

	if (cli_call(c, method, rq, &google__protobuf__empty__descriptor, &m, &e))
		return cli_fail(c, &e);
	if (!cmd_printed_json(c, m))
		cli_printf(c, "%s\n", done);
	return 0;
}

static int ban(struct cli *c)
{
	Spire__Api__Server__Agent__V1__BanAgentRequest rq =
		SPIRE__API__SERVER__AGENT__V1__BAN_AGENT_REQUEST__INIT;
	struct err e;
	int r = wanted_id(c, &rq.id, &e);

	if (r)
		return cli_fail(c, &e);
	r = tell(c, "/spire.api.server.agent.v1.Agent/BanAgent", &rq.base,
		"Agent banned successfully");
	spire__api__types__spiffeid__free_unpacked(rq.id, NULL);
	return r;
}

static int evict(struct cli *c)
{
	Spire__Api__Server__Agent__V1__DeleteAgentRequest rq =
		SPIRE__API__SERVER__AGENT__V1__DELETE_AGENT_REQUEST__INIT;
	struct err e;
	int r = wanted_id(c, &rq.id, &e);

	if (r)
		return cli_fail(c, &e);
	r = tell(c, "/spire.api.server.agent.v1.Agent/DeleteAgent", &rq.base,
		"Agent evicted successfully");
	spire__api__types__spiffeid__free_unpacked(rq.id, NULL);
	return r;
}

/* ---- purge ---- */

struct purged {
	char *id;
	bool deleted;
	char *error;
};
struct purge {
	struct purged *v;
	size_t n;
};

static void purge_one(struct cli *c, const Spire__Api__Types__Agent *a, bool dry, struct purge *p)
{
	Spire__Api__Server__Agent__V1__DeleteAgentRequest rq =
		SPIRE__API__SERVER__AGENT__V1__DELETE_AGENT_REQUEST__INIT;
	AUTO(cmd_free_message) ProtobufCMessage *m = NULL;
	struct purged one = { .id = cli_id_text(a->id) };
	struct err e;

	rq.id = a->id;
	if (!dry) {
		if (cli_call(c, "/spire.api.server.agent.v1.Agent/DeleteAgent", &rq.base,
			    &google__protobuf__empty__descriptor, &m, &e))
			one.error = xstrdup(e.msg);
		else
			one.deleted = true;
	}
	p->v = xreallocarray(p->v, p->n + 1, sizeof(*p->v));
	p->v[p->n++] = one;
}

static int find_and_purge(struct cli *c, struct purge *p, struct err *e)
{
	Spire__Api__Server__Agent__V1__ListAgentsRequest__Filter rf =
		SPIRE__API__SERVER__AGENT__V1__LIST_AGENTS_REQUEST__FILTER__INIT;
	Spire__Api__Server__Agent__V1__ListAgentsRequest rq =
		SPIRE__API__SERVER__AGENT__V1__LIST_AGENTS_REQUEST__INIT;
	Google__Protobuf__BoolValue yes = GOOGLE__PROTOBUF__BOOL_VALUE__INIT;
	Spire__Api__Types__AgentMask mask = SPIRE__API__TYPES__AGENT_MASK__INIT;
	ListResponse *all = xmalloc(sizeof(*all));
	int64_t limit = cli_duration_ns(c, "expiredFor");
	int64_t now = wall_ns(clock_wall());
	int r;

	spire__api__server__agent__v1__list_agents_response__init(all);
	yes.value = 1;
	mask.x509svid_expires_at = 1;
	rf.by_can_reattest = &yes;
	rq.filter = &rf;
	rq.output_mask = &mask;
	r = list_pages(c, &rq, all, e);
	if (r)
		err_wrap(e, "failed to list agents");
	for (size_t i = 0; !r && i < all->n_agents; i++)
		if (now - wall_ns(wall_of_sec(all->agents[i]->x509svid_expires_at)) > limit)
			purge_one(c, all->agents[i], cli_bool(c, "dryRun"), p);
	spire__api__server__agent__v1__list_agents_response__free_unpacked(all, NULL);
	return r;
}

static void print_purged_json(struct cli *c, const struct purge *p)
{
	json_t *root = json_object(), *list = json_array();

	for (size_t i = 0; i < p->n; i++) {
		json_t *o = json_object();

		json_object_set_new(o, "agent_id", json_string(p->v[i].id));
		json_object_set_new(o, "deleted", json_boolean(p->v[i].deleted));
		if (p->v[i].error)
			json_object_set_new(o, "error", json_string(p->v[i].error));
		json_array_append_new(list, o);
	}
	json_object_set_new(root, "expired_agents", list);
	json_dumpf(root, cli_out(c), JSON_COMPACT);
	json_decref(root);
	cli_printf(c, "\n");
}

static void print_purged(struct cli *c, const struct purge *p, bool dry)
{
	bool head = false;

	if (!p->n) {
		cli_printf(c, "No agents to purge.\n");
		return;
	}
	cli_printf(c, "Found %zu expired %s\n\n", p->n, text_plural(p->n, "agent", "agents"));
	if (dry)
		cli_printf(c, "\nAgents that can be purged:\n");
	for (size_t i = 0; i < p->n; i++) {
		if (!dry && !p->v[i].deleted)
			continue;
		if (!dry && !head)
			cli_printf(c, "Agents purged:\n");
		head = true;
		cli_printf(c, "SPIFFE ID         : %s\n", p->v[i].id);
	}
	head = false;
	for (size_t i = 0; !dry && i < p->n; i++) {
		if (p->v[i].deleted)
			continue;
		if (!head)
			cli_printf(c, "Agents not purged:\n");
		head = true;
		cli_printf(c, "SPIFFE ID         : %s\n", p->v[i].id);
		cli_printf(c, "Error             : %s\n", p->v[i].error);
	}
}

static int purge(struct cli *c)
{
	struct purge p = { NULL, 0 };
	struct err e;
	int r = find_and_purge(c, &p, &e);

	if (!r && cli_json(c))
		print_purged_json(c, &p);
	else if (!r)
		print_purged(c, &p, cli_bool(c, "dryRun"));
	for (size_t i = 0; i < p.n; i++) {
		free(p.v[i].id);
		free(p.v[i].error);
	}
	free(p.v);
	return r ? cli_fail(c, &e) : 0;
}

#define COMMON (CLI_WITH_SOCKET | CLI_WITH_OUTPUT)
const struct cli_command cmd_agent[] = {
	{ "agent ban", "Ban an attested agent given its SPIFFE ID", ban_flags, COMMON, ban },
	{ "agent count", "Count attested agents", filter_flags, COMMON, count },
	{ "agent evict", "Evicts an attested agent given its SPIFFE ID", evict_flags, COMMON,
		evict },
	{ "agent list", "Lists attested agents and their SPIFFE IDs", filter_flags, COMMON, list },
	{ "agent purge",
		"Purge expired agents that were attested using a non-TOFU security model based on "
		"a "
		"given time",
		purge_flags, COMMON, purge },
	{ "agent show", "Shows the details of an attested agent given its SPIFFE ID", show_flags,
		COMMON, show },
	{ .name = NULL },
};

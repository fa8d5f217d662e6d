/* `entry show` and `entry count`. */
#include <stdlib.h>
#include <string.h>

#include "google/protobuf/wrappers.pb-c.h"
#include "server/cmd_entry.h"
#include "spire/api/types/federateswith.pb-c.h"

#define FILTER_FLAGS(verb)                                                                         \
	{ .name = "parentID",                                                                      \
		.type = CLI_STRING,                                                                \
		.help = "The Parent ID of the records to " verb },                                 \
		{ .name = "spiffeID",                                                              \
			.type = CLI_STRING,                                                        \
			.help = "The SPIFFE ID of the records to " verb },                         \
		{ .name = "downstream",                                                            \
			.type = CLI_BOOL,                                                          \
			.help = "A boolean value that, when set, indicates that the entry "        \
				"describes a downstream server" },                                 \
		{ .name = "selector",                                                              \
			.type = CLI_STRINGS,                                                       \
			.help = "A colon-delimited type:value selector. Can be used more than "    \
				"once" },                                                          \
		{ .name = "federatesWith",                                                         \
			.type = CLI_STRINGS,                                                       \
			.help = "SPIFFE ID of a trust domain an entry is federate with. Can be "   \
				"used more than once" },                                           \
		{ .name = "matchFederatesWithOn",                                                  \
			.type = CLI_STRING,                                                        \
			.value = "superset",                                                       \
			.choices = "exact|any|superset|subset",                                    \
			.help = "The match mode used when filtering by federates with. Options: "  \
				"exact, any, superset and subset" },                               \
		{ .name = "matchSelectorsOn",                                                      \
			.type = CLI_STRING,                                                        \
			.value = "superset",                                                       \
			.choices = "exact|any|superset|subset",                                    \
			.help = "The match mode used when filtering by selectors. Options: "       \
				"exact, any, superset and subset" },                               \
	{                                                                                          \
		.name = "hint", .type = CLI_STRING,                                                \
		.help = "The Hint of the records to " verb " (optional)"                           \
	}

const struct cli_flag entry_show_flags[] = {
	{ .name = "entryID", .type = CLI_STRING, .help = "The Entry ID of the records to show" },
	FILTER_FLAGS("show"),
	CLI_END,
};

const struct cli_flag entry_count_flags[] = {
	FILTER_FLAGS("count"),
	CLI_END,
};

/* The filter messages of List and Count are two types of the same shape; this is what both need. */
struct filter {
	Spire__Api__Types__SPIFFEID *spiffe_id, *parent_id;
	Spire__Api__Types__SelectorMatch selectors;
	Spire__Api__Types__FederatesWithMatch federates;
	Google__Protobuf__StringValue hint;
	Google__Protobuf__BoolValue downstream;
	bool by_selectors, by_federates, by_hint;
};

static int fill_ids(struct cli *c, struct filter *f, struct err *e)
{
	const char *parent = cli_str(c, "parentID"), *id = cli_str(c, "spiffeID");

	if (*parent && cmd_id(parent, &f->parent_id, e))
		return err_wrap(e, "error parsing parent ID \"%s\"", parent);
	if (*id && cmd_id(id, &f->spiffe_id, e))
		return err_wrap(e, "error parsing SPIFFE ID \"%s\"", id);
	return 0;
}

static int fill_filter(struct cli *c, struct filter *f, struct err *e)
{
	const struct strings *sel = cli_strings(c, "selector");
	const struct strings *fed = cli_strings(c, "federatesWith");
	int match = 0, r = fill_ids(c, f, e);

	spire__api__types__selector_match__init(&f->selectors);
	spire__api__types__federates_with_match__init(&f->federates);
	google__protobuf__string_value__init(&f->hint);
	google__protobuf__bool_value__init(&f->downstream);
	if (r)
		return r;
	if (sel->n) {
		r = cmd_match(cli_str(c, "matchSelectorsOn"), &match, e);
		if (r)
			return r;
		r = cmd_selectors(sel, &f->selectors.selectors, &f->selectors.n_selectors, e);
		if (r)
			return err_wrap(e, "error parsing selectors");
		f->selectors.match = (Spire__Api__Types__SelectorMatch__MatchBehavior)match;
		f->by_selectors = true;
	}
	if (fed->n) {
		r = cmd_match(cli_str(c, "matchFederatesWithOn"), &match, e);
		if (r)
			return r;
		cmd_strings(fed, &f->federates.trust_domains, &f->federates.n_trust_domains);
		f->federates.match = (Spire__Api__Types__FederatesWithMatch__MatchBehavior)match;
		f->by_federates = true;
	}
	f->hint.value = (char *)(uintptr_t)cli_str(c, "hint");
	f->by_hint = *f->hint.value;
	f->downstream.value = cli_bool(c, "downstream");
	return 0;
}

static void filter_deinit(struct filter *f)
{
	if (f->spiffe_id)
		spire__api__types__spiffeid__free_unpacked(f->spiffe_id, NULL);
	if (f->parent_id)
		spire__api__types__spiffeid__free_unpacked(f->parent_id, NULL);
	for (size_t i = 0; i < f->selectors.n_selectors; i++)
		spire__api__types__selector__free_unpacked(f->selectors.selectors[i], NULL);
	free(f->selectors.selectors);
	for (size_t i = 0; i < f->federates.n_trust_domains; i++)
		free(f->federates.trust_domains[i]);
	free(f->federates.trust_domains);
}

/* ---- show ---- */

typedef Spire__Api__Server__Entry__V1__ListEntriesResponse ListResponse;

/* Moves the entries of one page into the whole. */
static void merge_page(ListResponse *all, ListResponse *page)
{
	if (page->n_entries) {
		all->entries = xreallocarray(
			all->entries, all->n_entries + page->n_entries, sizeof(*all->entries));
		memcpy(all->entries + all->n_entries, page->entries,
			page->n_entries * sizeof(*all->entries));
		all->n_entries += page->n_entries;
	}
	page->n_entries = 0;
}

static int list_all(struct cli *c, struct filter *f, ListResponse *all, struct err *e)
{
	Spire__Api__Server__Entry__V1__ListEntriesRequest__Filter rf =
		SPIRE__API__SERVER__ENTRY__V1__LIST_ENTRIES_REQUEST__FILTER__INIT;
	Spire__Api__Server__Entry__V1__ListEntriesRequest rq =
		SPIRE__API__SERVER__ENTRY__V1__LIST_ENTRIES_REQUEST__INIT;
	AUTO(free) char *token = xstrdup("");

	rf.by_spiffe_id = f->spiffe_id;
	rf.by_parent_id = f->parent_id;
	rf.by_selectors = f->by_selectors ? &f->selectors : NULL;
	rf.by_federates_with = f->by_federates ? &f->federates : NULL;
	rf.by_hint = f->by_hint ? &f->hint : NULL;
	rf.by_downstream = f->downstream.value ? &f->downstream : NULL;
	rq.filter = &rf;
	rq.page_size = ENTRY_PAGE;
	do {
		AUTO(cmd_free_message) ProtobufCMessage *m = NULL;
		ListResponse *page;
		int r;

		rq.page_token = token;
		r = cli_call(c, "/spire.api.server.entry.v1.Entry/ListEntries", &rq.base,
			&spire__api__server__entry__v1__list_entries_response__descriptor, &m, e);
		if (r)
			return err_wrap(e, "error fetching entries");
		page = (ListResponse *)m;
		merge_page(all, page);
		free(token);
		token = xstrdup(page->next_page_token);
	} while (*token);
	return 0;
}

static int get_one(struct cli *c, const char *id, ListResponse *all, struct err *e)
{
	Spire__Api__Server__Entry__V1__GetEntryRequest rq =
		SPIRE__API__SERVER__ENTRY__V1__GET_ENTRY_REQUEST__INIT;
	ProtobufCMessage *m = NULL;
	int r;

	if (*cli_str(c, "parentID") || *cli_str(c, "spiffeID") || cli_strings(c, "selector")->n)
		return err_set(e, ERR_INVALID, "the -entryID flag can't be combined with others");
	rq.id = (char *)(uintptr_t)id;
	r = cli_call(c, "/spire.api.server.entry.v1.Entry/GetEntry", &rq.base,
		&spire__api__types__entry__descriptor, &m, e);
	if (r)
		return err_wrap(e, "error fetching entry ID %s", id);
	all->entries = xcalloc(1, sizeof(*all->entries));
	all->entries[all->n_entries++] = (Spire__Api__Types__Entry *)m;
	return 0;
}

static int compare_ids(const Spire__Api__Types__SPIFFEID *a, const Spire__Api__Types__SPIFFEID *b)
{
	int r = strcmp(a ? a->trust_domain : "", b ? b->trust_domain : "");

	return r ? r : strcmp(a ? a->path : "", b ? b->path : "");
}

static int compare_selectors(const void *a, const void *b)
{
	const Spire__Api__Types__Selector *const *x = a, *const *y = b;
	int r = strcmp((*x)->type, (*y)->type);

	return r ? r : strcmp((*x)->value, (*y)->value);
}

/* By SPIFFE ID, parent, TTLs, selectors. */
static int compare_entries(const void *a, const void *b)
{
	const Spire__Api__Types__Entry *x = *(Spire__Api__Types__Entry *const *)a;
	const Spire__Api__Types__Entry *y = *(Spire__Api__Types__Entry *const *)b;
	int r = compare_ids(x->spiffe_id, y->spiffe_id);

	if (!r)
		r = compare_ids(x->parent_id, y->parent_id);
	if (!r)
		r = (x->x509_svid_ttl > y->x509_svid_ttl) - (x->x509_svid_ttl < y->x509_svid_ttl);
	if (!r)
		r = (x->jwt_svid_ttl > y->jwt_svid_ttl) - (x->jwt_svid_ttl < y->jwt_svid_ttl);
	if (!r)
		r = (x->n_selectors > y->n_selectors) - (x->n_selectors < y->n_selectors);
	for (size_t i = 0; !r && i < x->n_selectors; i++)
		r = compare_selectors(&x->selectors[i], &y->selectors[i]);
	return r ? r : strcmp(x->id, y->id);
}

static void sort_entries(ListResponse *all)
{
	for (size_t i = 0; i < all->n_entries; i++)
		if (all->entries[i]->n_selectors)
			qsort(all->entries[i]->selectors, all->entries[i]->n_selectors,
				sizeof(*all->entries[i]->selectors), compare_selectors);
	if (all->n_entries)
		qsort(all->entries, all->n_entries, sizeof(*all->entries), compare_entries);
}

int entry_show(struct cli *c)
{
	ListResponse *all = xmalloc(sizeof(*all));
	struct filter f = { 0 };
	struct err e;
	int r;

	spire__api__server__entry__v1__list_entries_response__init(all);
	if (*cli_str(c, "entryID")) {
		r = get_one(c, cli_str(c, "entryID"), all, &e);
	} else {
		r = fill_filter(c, &f, &e);
		if (!r)
			r = list_all(c, &f, all, &e);
		filter_deinit(&f);
	}
	if (!r) {
		sort_entries(all);
		if (!cmd_printed_json(c, all)) {
			cli_printf(c, "Found %zu %s\n", all->n_entries,
				text_plural(all->n_entries, "entry", "entries"));
			for (size_t i = 0; i < all->n_entries; i++)
				entry_print(cli_out(c), all->entries[i]);
		}
	}
	spire__api__server__entry__v1__list_entries_response__free_unpacked(all, NULL);
	return r ? cli_fail(c, &e) : 0;
}

/* ---- count ---- */

static int count_all(struct cli *c, struct filter *f, ProtobufCMessage **ret, struct err *e)
{
	Spire__Api__Server__Entry__V1__CountEntriesRequest__Filter rf =
		SPIRE__API__SERVER__ENTRY__V1__COUNT_ENTRIES_REQUEST__FILTER__INIT;
	Spire__Api__Server__Entry__V1__CountEntriesRequest rq =
		SPIRE__API__SERVER__ENTRY__V1__COUNT_ENTRIES_REQUEST__INIT;

	rf.by_spiffe_id = f->spiffe_id;
	rf.by_parent_id = f->parent_id;
	rf.by_selectors = f->by_selectors ? &f->selectors : NULL;
	rf.by_federates_with = f->by_federates ? &f->federates : NULL;
	rf.by_hint = f->by_hint ? &f->hint : NULL;
	rf.by_downstream = f->downstream.value ? &f->downstream : NULL;
	rq.filter = &rf;
	return cli_call(c, "/spire.api.server.entry.v1.Entry/CountEntries", &rq.base,
		&spire__api__server__entry__v1__count_entries_response__descriptor, ret, e);
}

int entry_count(struct cli *c)
{
	AUTO(cmd_free_message) ProtobufCMessage *m = NULL;
	struct filter f = { 0 };
	struct err e;
	int32_t n;
	int r = fill_filter(c, &f, &e);

	if (!r)
		r = count_all(c, &f, &m, &e);
	filter_deinit(&f);
	if (r)
		return cli_fail(c, &e);
	n = ((const Spire__Api__Server__Entry__V1__CountEntriesResponse *)m)->count;
	if (!cmd_printed_json(c, m))
		cli_printf(c, "%d registration %s\n", (int)n,
			text_plural((size_t)n, "entry", "entries"));
	return 0;
}

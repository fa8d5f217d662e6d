/* `entry`: create, update, delete. */
#include "server/cmd_entry.h"

#include <stdlib.h>
#include <string.h>

#include "server/cmd.h"

typedef Spire__Api__Types__Entry Entry;
typedef Spire__Api__Server__Entry__V1__BatchCreateEntryResponse CreateResponse;
typedef Spire__Api__Server__Entry__V1__BatchUpdateEntryResponse UpdateResponse;
typedef Spire__Api__Server__Entry__V1__BatchDeleteEntryResponse DeleteResponse;

#define ENTRY_FLAGS                                                                                \
	{ .name = "parentID",                                                                      \
		.type = CLI_STRING,                                                                \
		.help = "The SPIFFE ID of this record's parent" },                                 \
		{ .name = "spiffeID",                                                              \
			.type = CLI_STRING,                                                        \
			.help = "The SPIFFE ID that this record represents" },                     \
		{ .name = "x509SVIDTTL",                                                           \
			.type = CLI_INT,                                                           \
			.help = "The lifetime, in seconds, for x509-SVIDs issued based on this "   \
				"registration entry." },                                           \
		{ .name = "jwtSVIDTTL",                                                            \
			.type = CLI_INT,                                                           \
			.help = "The lifetime, in seconds, for JWT-SVIDs issued based on this "    \
				"registration entry." },                                           \
		{ .name = "data",                                                                  \
			.type = CLI_STRING,                                                        \
			.choices = "@file",                                                        \
			.help = "Path to a file containing registration JSON (optional). If set "  \
				"to '-', read the JSON from stdin." },                             \
		{ .name = "selector",                                                              \
			.type = CLI_STRINGS,                                                       \
			.help = "A colon-delimited type:value selector. Can be used more than "    \
				"once" },                                                          \
		{ .name = "federatesWith",                                                         \
			.type = CLI_STRINGS,                                                       \
			.help = "SPIFFE ID of a trust domain to federate with. Can be used more "  \
				"than once" },                                                     \
		{ .name = "admin",                                                                 \
			.type = CLI_BOOL,                                                          \
			.help = "If set, the SPIFFE ID in this entry will be granted access to "   \
				"the server's management APIs" },                                  \
		{ .name = "downstream",                                                            \
			.type = CLI_BOOL,                                                          \
			.help = "A boolean value that, when set, indicates that the entry "        \
				"describes a downstream server" },                                 \
		{ .name = "storeSVID",                                                             \
			.type = CLI_BOOL,                                                          \
			.help = "A boolean value that, when set, indicates that the resulting "    \
				"issued SVID from this entry must be stored through an SVIDStore " \
				"plugin" },                                                        \
		{ .name = "entryExpiry",                                                           \
			.type = CLI_INT,                                                           \
			.help = "An expiry, from epoch in seconds, for the resulting "             \
				"registration entry to be pruned" },                               \
		{ .name = "dns",                                                                   \
			.type = CLI_STRINGS,                                                       \
			.help = "A DNS name that will be included in SVIDs issued based on this "  \
				"entry, where appropriate. Can be used more than once" },          \
		{ .name = "hint",                                                                  \
			.type = CLI_STRING,                                                        \
			.help = "The entry hint, used to disambiguate entries with the same "      \
				"SPIFFE ID" },                                                     \
		{ .name = "disableX509SVIDPrefetch",                                               \
			.type = CLI_BOOL,                                                          \
			.help = "A boolean value that, when set, disables prefetching X509 SVID "  \
				"for this entry" },                                                \
	{                                                                                          \
		.name = "jwtSVIDIncludeJTI", .type = CLI_BOOL,                                     \
		.help = "A boolean value that, when set, includes a unique 'jti' claim in "        \
			"JWT-SVIDs issued for this entry and bypasses the agent JWT-SVID cache"    \
	}

static const struct cli_flag create_flags[] = {
	{ .name = "entryID",
		.type = CLI_STRING,
		.help = "A custom ID for this registration entry (optional). If not set, a new "
			"entry "
			"ID will be generated" },
	{ .name = "node",
		.type = CLI_BOOL,
		.help = "If set, this entry will be applied to matching nodes rather than "
			"workloads" },
	ENTRY_FLAGS,
	CLI_END,
};

static const struct cli_flag update_flags[] = {
	{ .name = "entryID",
		.type = CLI_STRING,
		.help = "The Registration Entry ID of the record to update" },
	ENTRY_FLAGS,
	CLI_END,
};

static const struct cli_flag delete_flags[] = {
	{ .name = "entryID",
		.type = CLI_STRING,
		.help = "The Registration Entry ID of the record to delete." },
	{ .name = "file",
		.type = CLI_STRING,
		.choices = "@file",
		.help = "Path to a file containing a JSON structure for batch deletion (optional). "
			"If set to '-', read from stdin." },
	CLI_END,
};

/* ---- flags to an entry ---- */

static int check_common(struct cli *c, struct err *e)
{
	if (!*cli_str(c, "spiffeID"))
		return err_set(e, ERR_INVALID, "a SPIFFE ID is required");
	if (cli_int(c, "x509SVIDTTL") < 0)
		return err_set(e, ERR_INVALID, "a positive x509-SVID TTL is required");
	if (cli_int(c, "jwtSVIDTTL") < 0)
		return err_set(e, ERR_INVALID, "a positive JWT-SVID TTL is required");
	return 0;
}

static int check_create(struct cli *c, struct err *e)
{
	if (!cli_strings(c, "selector")->n)
		return err_set(e, ERR_INVALID, "at least one selector is required");
	if (cli_bool(c, "node") && cli_strings(c, "federatesWith")->n)
		return err_set(e, ERR_INVALID, "node entries can not federate");
	if (!*cli_str(c, "parentID") && !cli_bool(c, "node"))
		return err_set(
			e, ERR_INVALID, "a parent ID is required if the node flag is not set");
	return check_common(c, e);
}

static int check_update(struct cli *c, struct err *e)
{
	if (!*cli_str(c, "entryID"))
		return err_set(e, ERR_INVALID, "entry ID is required");
	if (!cli_strings(c, "selector")->n)
		return err_set(e, ERR_INVALID, "at least one selector is required");
	if (!*cli_str(c, "parentID"))
		return err_set(e, ERR_INVALID, "a parent ID is required");
	return check_common(c, e);
}

static Spire__Api__Types__SPIFFEID *server_id(const Spire__Api__Types__SPIFFEID *of)
{
	Spire__Api__Types__SPIFFEID *id = xmalloc(sizeof(*id));

	spire__api__types__spiffeid__init(id);
	id->trust_domain = xstrdup(of->trust_domain);
	id->path = xstrdup("/spire/server");
	return id;
}

static Spire__Api__Types__Entry__AdditionalAttributes *new_attributes(bool no_prefetch, bool jti)
{
	Spire__Api__Types__Entry__AdditionalAttributes *aa = xmalloc(sizeof(*aa));

	spire__api__types__entry__additional_attributes__init(aa);
	aa->disable_x509_svid_prefetch = no_prefetch;
	aa->jwt_svid_include_jti = jti;
	return aa;
}

static int fill_entry(struct cli *c, bool node, Entry *en, struct err *e)
{
	bool no_prefetch = cli_bool(c, "disableX509SVIDPrefetch");
	bool jti = cli_bool(c, "jwtSVIDIncludeJTI");
	int r = cmd_id(cli_str(c, "spiffeID"), &en->spiffe_id, e);

	if (!r && node)
		en->parent_id = server_id(en->spiffe_id);
	else if (!r)
		r = cmd_id(cli_str(c, "parentID"), &en->parent_id, e);
	if (!r)
		r = cmd_int32(cli_int(c, "x509SVIDTTL"), "X509 SVID TTL", &en->x509_svid_ttl, e);
	if (!r)
		r = cmd_int32(cli_int(c, "jwtSVIDTTL"), "JWT SVID TTL", &en->jwt_svid_ttl, e);
	if (!r)
		r = cmd_selectors(cli_strings(c, "selector"), &en->selectors, &en->n_selectors, e);
	if (r)
		return r;
	en->id = xstrdup(cli_str(c, "entryID"));
	en->hint = xstrdup(cli_str(c, "hint"));
	en->downstream = cli_bool(c, "downstream");
	en->admin = cli_bool(c, "admin");
	en->store_svid = cli_bool(c, "storeSVID");
	en->expires_at = cli_int(c, "entryExpiry");
	cmd_strings(cli_strings(c, "dns"), &en->dns_names, &en->n_dns_names);
	cmd_strings(cli_strings(c, "federatesWith"), &en->federates_with, &en->n_federates_with);
	if (no_prefetch || jti || cli_given(c, "disableX509SVIDPrefetch") ||
		cli_given(c, "jwtSVIDIncludeJTI"))
		en->additional_attributes = new_attributes(no_prefetch, jti);
	return 0;
}

static int entries_of(struct cli *c, int (*check)(struct cli *c, struct err *e), bool node,
	struct entry_list *ret, struct err *e)
{
	Entry *en;
	int r;

	if (*cli_str(c, "data"))
		return entry_read_data(c, cli_str(c, "data"), ret, e);
	r = check(c, e);
	if (r)
		return r;
	en = xmalloc(sizeof(*en));
	spire__api__types__entry__init(en);
	entry_list_add(ret, en);
	return fill_entry(c, node, en, e);
}

/* ---- results ---- */

/* A failed item comes back without its entry: the one that was asked for stands in. */
static void complete(Spire__Api__Types__Entry **got, const Spire__Api__Types__Status *st,
	struct entry_list *asked, size_t i)
{
	if (!st || !st->code || i >= asked->n)
		return;
	if (*got)
		spire__api__types__entry__free_unpacked(*got, NULL);
	*got = asked->v[i];
	asked->v[i] = NULL;
}

static void print_failed(
	struct cli *c, const char *verb, const Spire__Api__Types__Status *st, const Entry *en)
{
	AUTO(free) char *msg = text_quote(st->message);

	cli_errorf(c, "Failed to %s the following entry (code: %s, msg: %s):\n", verb,
		err_code_name(st->code), msg);
	entry_print(cli_err(c), en);
}

static bool is_ok(const Spire__Api__Types__Status *st)
{
	return !st || st->code == 0;
}

/* ---- create ---- */

static int create_batches(struct cli *c, struct entry_list *l, CreateResponse *all, struct err *e)
{
	for (size_t at = 0; at == 0 || at < l->n; at += ENTRY_BATCH) {
		Spire__Api__Server__Entry__V1__BatchCreateEntryRequest rq =
			SPIRE__API__SERVER__ENTRY__V1__BATCH_CREATE_ENTRY_REQUEST__INIT;
		AUTO(cmd_free_message) ProtobufCMessage *m = NULL;
		CreateResponse *got;
		int r;

		rq.entries = l->v + at;
		rq.n_entries = l->n - at < ENTRY_BATCH ? l->n - at : ENTRY_BATCH;
		r = cli_call(c, "/spire.api.server.entry.v1.Entry/BatchCreateEntry", &rq.base,
			&spire__api__server__entry__v1__batch_create_entry_response__descriptor, &m,
			e);
		if (r)
			return r;
		got = (CreateResponse *)m;
		all->results = xreallocarray(
			all->results, all->n_results + got->n_results + 1, sizeof(*all->results));
		for (size_t i = 0; i < got->n_results; i++) {
			complete(&got->results[i]->entry, got->results[i]->status, l, at + i);
			all->results[all->n_results++] = got->results[i];
		}
		got->n_results = 0;
	}
	return 0;
}

static int print_created(struct cli *c, const CreateResponse *all)
{
	struct err e;
	size_t failed = 0;

	if (cmd_printed_json(c, all))
		return 0;
	for (size_t i = 0; i < all->n_results; i++)
		if (is_ok(all->results[i]->status) && all->results[i]->entry)
			entry_print(cli_out(c), all->results[i]->entry);
	for (size_t i = 0; i < all->n_results; i++)
		if (!is_ok(all->results[i]->status)) {
			failed++;
			print_failed(c, "create", all->results[i]->status, all->results[i]->entry);
		}
	if (!failed)
		return 0;
	err_set(&e, ERR_UNKNOWN, "failed to create one or more entries");
	return cli_fail(c, &e);
}

static int create(struct cli *c)
{
	CreateResponse *all = xmalloc(sizeof(*all));
	struct entry_list l = { NULL, 0 };
	struct err e;
	int r = entries_of(c, check_create, cli_bool(c, "node"), &l, &e);

	spire__api__server__entry__v1__batch_create_entry_response__init(all);
	if (!r)
		r = create_batches(c, &l, all, &e);
	r = r ? cli_fail(c, &e) : print_created(c, all);
	spire__api__server__entry__v1__batch_create_entry_response__free_unpacked(all, NULL);
	entry_list_deinit(&l);
	return r;
}

/* ---- update ---- */

/* The attributes have no mask of their own: those that were not given stay as they are. */
static int merge_attributes(struct cli *c, Entry *en, struct err *e)
{
	Spire__Api__Server__Entry__V1__GetEntryRequest rq =
		SPIRE__API__SERVER__ENTRY__V1__GET_ENTRY_REQUEST__INIT;
	AUTO(cmd_free_message) ProtobufCMessage *m = NULL;
	const Spire__Api__Types__Entry__AdditionalAttributes *old;
	int r;

	rq.id = en->id;
	r = cli_call(c, "/spire.api.server.entry.v1.Entry/GetEntry", &rq.base,
		&spire__api__types__entry__descriptor, &m, e);
	if (r)
		return err_wrap(e, "failed to fetch existing entry to merge additional attributes");
	old = ((const Entry *)m)->additional_attributes;
	if (old && !cli_given(c, "disableX509SVIDPrefetch"))
		en->additional_attributes->disable_x509_svid_prefetch =
			old->disable_x509_svid_prefetch;
	if (old && !cli_given(c, "jwtSVIDIncludeJTI"))
		en->additional_attributes->jwt_svid_include_jti = old->jwt_svid_include_jti;
	return 0;
}

static int update_batches(struct cli *c, struct entry_list *l, UpdateResponse *all, struct err *e)
{
	for (size_t at = 0; at == 0 || at < l->n; at += ENTRY_BATCH) {
		Spire__Api__Server__Entry__V1__BatchUpdateEntryRequest rq =
			SPIRE__API__SERVER__ENTRY__V1__BATCH_UPDATE_ENTRY_REQUEST__INIT;
		AUTO(cmd_free_message) ProtobufCMessage *m = NULL;
		UpdateResponse *got;
		int r;

		rq.entries = l->v + at;
		rq.n_entries = l->n - at < ENTRY_BATCH ? l->n - at : ENTRY_BATCH;
		r = cli_call(c, "/spire.api.server.entry.v1.Entry/BatchUpdateEntry", &rq.base,
			&spire__api__server__entry__v1__batch_update_entry_response__descriptor, &m,
			e);
		if (r)
			return r;
		got = (UpdateResponse *)m;
		all->results = xreallocarray(
			all->results, all->n_results + got->n_results + 1, sizeof(*all->results));
		for (size_t i = 0; i < got->n_results; i++) {
			complete(&got->results[i]->entry, got->results[i]->status, l, at + i);
			all->results[all->n_results++] = got->results[i];
		}
		got->n_results = 0;
	}
	return 0;
}

static int print_updated(struct cli *c, const UpdateResponse *all)
{
	struct err e;
	size_t failed = 0;

	if (cmd_printed_json(c, all))
		return 0;
	for (size_t i = 0; i < all->n_results; i++)
		if (is_ok(all->results[i]->status) && all->results[i]->entry)
			entry_print(cli_out(c), all->results[i]->entry);
	for (size_t i = 0; i < all->n_results; i++)
		if (!is_ok(all->results[i]->status)) {
			failed++;
			print_failed(c, "update", all->results[i]->status, all->results[i]->entry);
		}
	if (!failed)
		return 0;
	err_set(&e, ERR_UNKNOWN, "failed to update one or more entries");
	return cli_fail(c, &e);
}

static int update(struct cli *c)
{
	UpdateResponse *all = xmalloc(sizeof(*all));
	struct entry_list l = { NULL, 0 };
	struct err e;
	int r = entries_of(c, check_update, false, &l, &e);

	spire__api__server__entry__v1__batch_update_entry_response__init(all);
	if (!r && !*cli_str(c, "data") && l.v[0]->additional_attributes)
		r = merge_attributes(c, l.v[0], &e);
	if (!r)
		r = update_batches(c, &l, all, &e);
	r = r ? cli_fail(c, &e) : print_updated(c, all);
	spire__api__server__entry__v1__batch_update_entry_response__free_unpacked(all, NULL);
	entry_list_deinit(&l);
	return r;
}

/* ---- delete ---- */

static int delete_batches(
	struct cli *c, const struct strings *ids, DeleteResponse *all, struct err *e)
{
	for (size_t at = 0; at == 0 || at < ids->n; at += ENTRY_BATCH) {
		Spire__Api__Server__Entry__V1__BatchDeleteEntryRequest rq =
			SPIRE__API__SERVER__ENTRY__V1__BATCH_DELETE_ENTRY_REQUEST__INIT;
		AUTO(cmd_free_message) ProtobufCMessage *m = NULL;
		DeleteResponse *got;
		int r;

		rq.ids = ids->v + at;
		rq.n_ids = ids->n - at < ENTRY_BATCH ? ids->n - at : ENTRY_BATCH;
		r = cli_call(c, "/spire.api.server.entry.v1.Entry/BatchDeleteEntry", &rq.base,
			&spire__api__server__entry__v1__batch_delete_entry_response__descriptor, &m,
			e);
		if (r)
			return r;
		got = (DeleteResponse *)m;
		all->results = xreallocarray(
			all->results, all->n_results + got->n_results + 1, sizeof(*all->results));
		if (got->n_results)
			memcpy(all->results + all->n_results, got->results,
				got->n_results * sizeof(*all->results));
		all->n_results += got->n_results;
		got->n_results = 0;
	}
	return 0;
}

static int print_deleted(struct cli *c, const DeleteResponse *all)
{
	struct err e;
	size_t ok = 0, failed = 0;

	if (cmd_printed_json(c, all))
		return 0;
	for (size_t i = 0; i < all->n_results; i++)
		if (is_ok(all->results[i]->status)) {
			ok++;
			cli_printf(c, "Deleted entry with ID: %s\n", all->results[i]->id);
		}
	if (ok)
		cli_printf(c, "\n\n");
	for (size_t i = 0; i < all->n_results; i++) {
		const Spire__Api__Types__Status *st = all->results[i]->status;
		AUTO(free) char *msg = is_ok(st) ? NULL : text_quote(st->message);

		if (is_ok(st))
			continue;
		failed++;
		cli_errorf(c, "Failed to delete entry with ID %s (code: %s, msg: %s)\n",
			all->results[i]->id, err_code_name(st->code), msg);
	}
	if (!failed) {
		cli_printf(c, "Deleted %zu entries successfully", ok);
		return 0;
	}
	if (ok)
		cli_printf(c,
			"\n\nDeleted %zu entries successfully, but failed to delete %zu entries",
			ok, failed);
	else
		cli_printf(c, "\n\nFailed to delete %zu entries", failed);
	err_set(&e, ERR_UNKNOWN, "failed to delete one or more entries");
	return cli_fail(c, &e);
}

static int delete_entries(struct cli *c)
{
	DeleteResponse *all = xmalloc(sizeof(*all));
	struct strings ids = { NULL, 0 };
	struct err e;
	int r = 0;

	spire__api__server__entry__v1__batch_delete_entry_response__init(all);
	if (*cli_str(c, "file"))
		r = entry_read_ids(c, cli_str(c, "file"), &ids, &e);
	else if (!*cli_str(c, "entryID"))
		r = err_set(&e, ERR_INVALID, "an entry ID is required");
	else
		strings_add(&ids, cli_str(c, "entryID"));
	if (!r)
		r = delete_batches(c, &ids, all, &e);
	r = r ? cli_fail(c, &e) : print_deleted(c, all);
	spire__api__server__entry__v1__batch_delete_entry_response__free_unpacked(all, NULL);
	strings_deinit(&ids);
	return r;
}

#define COMMON (CLI_WITH_SOCKET | CLI_WITH_OUTPUT)
const struct cli_command cmd_entry[] = {
	{ "entry count", "Count registration entries", entry_count_flags, COMMON, entry_count },
	{ "entry create", "Creates registration entries", create_flags, COMMON, create },
	{ "entry delete", "Deletes registration entries", delete_flags, COMMON, delete_entries },
	{ "entry show", "Displays configured registration entries", entry_show_flags, COMMON,
		entry_show },
	{ "entry update", "Updates registration entries", update_flags, COMMON, update },
	{ .name = NULL },
};

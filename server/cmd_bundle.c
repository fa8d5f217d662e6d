/* `bundle`: the server's own bundle, and those of other trust domains. */
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "lib/bundle.h"
#include "server/cmd.h"
#include "server/cmd_util.h"
#include "spire/api/server/bundle/v1/bundle.pb-c.h"

enum { BUNDLE_FILE_MAX = 4 << 20 };

#define FORMAT_FLAG(text)                                                                          \
	{                                                                                          \
		.name = "format", .type = CLI_STRING, .value = "pem", .choices = "pem|spiffe",     \
		.help = text " Either \"pem\" or \"spiffe\"."                                      \
	}
#define ID_FLAG                                                                                    \
	{                                                                                          \
		.name = "id", .type = CLI_STRING, .help = "SPIFFE ID of the trust domain"          \
	}

static const struct cli_flag show_flags[] = {
	FORMAT_FLAG(
		"The format to show the bundle (only pretty output format supports this flag)."),
	CLI_END,
};
static const struct cli_flag list_flags[] = {
	ID_FLAG,
	FORMAT_FLAG("The format to list federated bundles (only pretty output format supports this "
		    "flag)."),
	CLI_END,
};
static const struct cli_flag set_flags[] = {
	ID_FLAG,
	{ .name = "path",
		.type = CLI_STRING,
		.choices = "@file",
		.help = "Path to the bundle data (the standard input if not set)" },
	FORMAT_FLAG("The format of the bundle data."),
	CLI_END,
};
static const struct cli_flag delete_flags[] = {
	ID_FLAG,
	{ .name = "mode",
		.type = CLI_STRING,
		.value = "restrict",
		.choices = "restrict|delete|dissociate",
		.help = "Deletion mode: one of restrict, delete, or dissociate" },
	CLI_END,
};

static int wants_spiffe(struct cli *c, bool *ret, struct err *e)
{
	const char *f = cli_str(c, "format");

	*ret = strcasecmp(f, "spiffe") == 0;
	if (*f && !*ret && strcasecmp(f, "pem") != 0) {
		AUTO(free) char *q = text_quote(f);

		return err_set(e, ERR_INVALID, "invalid format: %s", q);
	}
	return 0;
}

/* ---- show, list ---- */

static int print_bundle(
	struct cli *c, const Spire__Api__Types__Bundle *m, bool spiffe, bool header, struct err *e)
{
	AUTO(bundle_unref) struct bundle *b = NULL;
	AUTO_BUF struct buf text = BUF_INIT;
	int r = bundle_from_proto(m, &b, e);

	if (r)
		return r;
	if (header)
		cli_printf(c,
			"****************************************\n* %s\n"
			"****************************************\n",
			m->trust_domain);
	if (spiffe)
		bundle_to_json(b, &text);
	else
		bundle_to_pem(b, &text);
	cli_printf(c, "%s%s", buf_cstr(&text), spiffe ? "\n" : "");
	return 0;
}

static int show(struct cli *c)
{
	Spire__Api__Server__Bundle__V1__GetBundleRequest rq =
		SPIRE__API__SERVER__BUNDLE__V1__GET_BUNDLE_REQUEST__INIT;
	AUTO(cmd_free_message) ProtobufCMessage *m = NULL;
	bool spiffe = false;
	struct err e;

	if (cli_call(c, "/spire.api.server.bundle.v1.Bundle/GetBundle", &rq.base,
		    &spire__api__types__bundle__descriptor, &m, &e))
		return cli_fail(c, &e);
	if (cmd_printed_json(c, m))
		return 0;
	if (wants_spiffe(c, &spiffe, &e) ||
		print_bundle(c, (const Spire__Api__Types__Bundle *)m, spiffe, false, &e))
		return cli_fail(c, &e);
	return 0;
}

static int list_one(struct cli *c, struct err *e)
{
	Spire__Api__Server__Bundle__V1__GetFederatedBundleRequest rq =
		SPIRE__API__SERVER__BUNDLE__V1__GET_FEDERATED_BUNDLE_REQUEST__INIT;
	AUTO(cmd_free_message) ProtobufCMessage *m = NULL;
	bool spiffe = false;
	int r;

	rq.trust_domain = (char *)(uintptr_t)cli_str(c, "id");
	r = cli_call(c, "/spire.api.server.bundle.v1.Bundle/GetFederatedBundle", &rq.base,
		&spire__api__types__bundle__descriptor, &m, e);
	if (r || cmd_printed_json(c, m))
		return r;
	r = wants_spiffe(c, &spiffe, e);
	return r ? r : print_bundle(c, (const Spire__Api__Types__Bundle *)m, spiffe, false, e);
}

typedef Spire__Api__Server__Bundle__V1__ListFederatedBundlesResponse ListResponse;

static int list_pages(struct cli *c, ListResponse *all, struct err *e)
{
	Spire__Api__Server__Bundle__V1__ListFederatedBundlesRequest rq =
		SPIRE__API__SERVER__BUNDLE__V1__LIST_FEDERATED_BUNDLES_REQUEST__INIT;
	AUTO(free) char *token = xstrdup("");

	rq.page_size = 100;
	do {
		AUTO(cmd_free_message) ProtobufCMessage *m = NULL;
		ListResponse *page;
		int r;

		rq.page_token = token;
		r = cli_call(c, "/spire.api.server.bundle.v1.Bundle/ListFederatedBundles", &rq.base,
			&spire__api__server__bundle__v1__list_federated_bundles_response__descriptor,
			&m, e);
		if (r)
			return r;
		page = (ListResponse *)m;
		all->bundles = xreallocarray(
			all->bundles, all->n_bundles + page->n_bundles + 1, sizeof(*all->bundles));
		for (size_t i = 0; i < page->n_bundles; i++)
			all->bundles[all->n_bundles++] = page->bundles[i];
		page->n_bundles = 0;
		free(token);
		token = xstrdup(page->next_page_token);
	} while (*token);
	return 0;
}

static int print_bundles(struct cli *c, const ListResponse *all, struct err *e)
{
	bool spiffe = false;
	int r = 0;

	if (cmd_printed_json(c, all))
		return 0;
	for (size_t i = 0; !r && i < all->n_bundles; i++) {
		if (i)
			cli_printf(c, "\n");
		r = wants_spiffe(c, &spiffe, e);
		if (!r)
			r = print_bundle(c, all->bundles[i], spiffe, true, e);
	}
	return r;
}

static int list(struct cli *c)
{
	ListResponse *all;
	struct err e;
	int r;

	if (*cli_str(c, "id"))
		return list_one(c, &e) ? cli_fail(c, &e) : 0;
	all = xmalloc(sizeof(*all));
	spire__api__server__bundle__v1__list_federated_bundles_response__init(all);
	r = list_pages(c, all, &e);
	if (!r)
		r = print_bundles(c, all, &e);
	spire__api__server__bundle__v1__list_federated_bundles_response__free_unpacked(all, NULL);
	return r ? cli_fail(c, &e) : 0;
}

/* ---- set, delete, count ---- */

/* The id may be a name or a SPIFFE ID, as the server takes both. */
static int read_bundle(struct cli *c, Spire__Api__Types__Bundle **ret, struct err *e)
{
	AUTO_BUF struct buf text = BUF_INIT_MAX(BUNDLE_FILE_MAX);
	AUTO(bundle_unref) struct bundle *b = NULL;
	AUTO(free) char *td = NULL;
	bool spiffe = false;
	int r = wants_spiffe(c, &spiffe, e);

	if (r)
		return r;
	r = cmd_read(c, *cli_str(c, "path") ? cli_str(c, "path") : "-", &text, e);
	if (r)
		return err_wrap(e, "unable to load bundle data");
	r = trust_domain_parse(cli_str(c, "id"), &td, e);
	if (r)
		return r;
	r = spiffe ? bundle_from_json(td, buf_view(&text), &b, e)
		   : bundle_from_pem(td, buf_view(&text), &b, e);
	if (r)
		return err_wrap(e, spiffe ? "unable to parse to spiffe bundle"
					  : "unable to parse bundle data");
	*ret = bundle_to_proto(b);
	return 0;
}

static int set(struct cli *c)
{
	Spire__Api__Server__Bundle__V1__BatchSetFederatedBundleRequest rq =
		SPIRE__API__SERVER__BUNDLE__V1__BATCH_SET_FEDERATED_BUNDLE_REQUEST__INIT;
	const Spire__Api__Server__Bundle__V1__BatchSetFederatedBundleResponse *rs;
	AUTO(cmd_free_message) ProtobufCMessage *m = NULL;
	Spire__Api__Types__Bundle *b = NULL;
	struct err e;
	int r;

	if (!*cli_str(c, "id")) {
		err_set(&e, ERR_INVALID, "id flag is required");
		return cli_fail(c, &e);
	}
	r = read_bundle(c, &b, &e);
	if (r)
		return cli_fail(c, &e);
	rq.bundle = &b;
	rq.n_bundle = 1;
	r = cli_call(c, "/spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle", &rq.base,
		&spire__api__server__bundle__v1__batch_set_federated_bundle_response__descriptor,
		&m, &e);
	spire__api__types__bundle__free_unpacked(b, NULL);
	if (r) {
		err_wrap(&e, "failed to set federated bundle");
		return cli_fail(c, &e);
	}
	rs = (const Spire__Api__Server__Bundle__V1__BatchSetFederatedBundleResponse *)m;
	if (cmd_printed_json(c, m))
		return 0;
	if (rs->n_results == 1 && rs->results[0]->status && rs->results[0]->status->code) {
		err_set(&e, rs->results[0]->status->code, "failed to set federated bundle: %s",
			rs->results[0]->status->message);
		return cli_fail(c, &e);
	}
	cli_printf(c, "bundle set.\n");
	return 0;
}

static int delete_mode(const char *text,
	Spire__Api__Server__Bundle__V1__BatchDeleteFederatedBundleRequest__Mode *ret, struct err *e)
{
#define MODE(x) SPIRE__API__SERVER__BUNDLE__V1__BATCH_DELETE_FEDERATED_BUNDLE_REQUEST__MODE__##x
	if (!*text || strcmp(text, "restrict") == 0)
		*ret = MODE(RESTRICT);
	else if (strcmp(text, "dissociate") == 0)
		*ret = MODE(DISSOCIATE);
	else if (strcmp(text, "delete") == 0)
		*ret = MODE(DELETE);
	else
		return err_set(e, ERR_INVALID, "unsupported mode \"%s\"", text);
	return 0;
}

static int delete_bundle(struct cli *c)
{
	Spire__Api__Server__Bundle__V1__BatchDeleteFederatedBundleRequest rq =
		SPIRE__API__SERVER__BUNDLE__V1__BATCH_DELETE_FEDERATED_BUNDLE_REQUEST__INIT;
	const Spire__Api__Server__Bundle__V1__BatchDeleteFederatedBundleResponse *rs;
	AUTO(cmd_free_message) ProtobufCMessage *m = NULL;
	char *id = (char *)(uintptr_t)cli_str(c, "id");
	struct err e;
	int r = *id ? delete_mode(cli_str(c, "mode"), &rq.mode, &e)
		    : err_set(&e, ERR_INVALID, "id is required");

	if (r)
		return cli_fail(c, &e);
	rq.trust_domains = &id;
	rq.n_trust_domains = 1;
	r = cli_call(c, "/spire.api.server.bundle.v1.Bundle/BatchDeleteFederatedBundle", &rq.base,
		&spire__api__server__bundle__v1__batch_delete_federated_bundle_response__descriptor,
		&m, &e);
	if (r) {
		err_wrap(&e, "failed to delete federated bundle");
		return cli_fail(c, &e);
	}
	rs = (const Spire__Api__Server__Bundle__V1__BatchDeleteFederatedBundleResponse *)m;
	if (cmd_printed_json(c, m))
		return 0;
	if (rs->n_results == 1 && rs->results[0]->status && rs->results[0]->status->code) {
		AUTO(free) char *td = text_quote(rs->results[0]->trust_domain);

		err_set(&e, rs->results[0]->status->code,
			"failed to delete federated bundle %s: %s", td,
			rs->results[0]->status->message);
		return cli_fail(c, &e);
	}
	cli_printf(c, "bundle deleted.\n");
	return 0;
}

static int count(struct cli *c)
{
	Spire__Api__Server__Bundle__V1__CountBundlesRequest rq =
		SPIRE__API__SERVER__BUNDLE__V1__COUNT_BUNDLES_REQUEST__INIT;
	AUTO(cmd_free_message) ProtobufCMessage *m = NULL;
	struct err e;
	int32_t n;

	if (cli_call(c, "/spire.api.server.bundle.v1.Bundle/CountBundles", &rq.base,
		    &spire__api__server__bundle__v1__count_bundles_response__descriptor, &m, &e))
		return cli_fail(c, &e);
	n = ((const Spire__Api__Server__Bundle__V1__CountBundlesResponse *)m)->count;
	if (!cmd_printed_json(c, m))
		cli_printf(c, "%d %s\n", (int)n, text_plural((size_t)n, "bundle", "bundles"));
	return 0;
}

#define COMMON (CLI_WITH_SOCKET | CLI_WITH_OUTPUT)
const struct cli_command cmd_bundle[] = {
	{ "bundle count", "Count bundles", NULL, COMMON, count },
	{ "bundle delete", "Deletes federated bundle data", delete_flags, COMMON, delete_bundle },
	{ "bundle list", "Lists federated bundle data", list_flags, COMMON, list },
	{ "bundle set", "Creates or updates federated bundle data", set_flags, COMMON, set },
	{ "bundle show", "Prints server CA bundle to stdout", show_flags, COMMON, show },
	{ .name = NULL },
};

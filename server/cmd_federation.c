/* `federation`: relationships with other trust domains. */
#include "server/cmd_federation.h"

#include <stdlib.h>
#include <string.h>

#include "server/cmd.h"
#include "spire/api/server/trustdomain/v1/trustdomain.pb-c.h"

#define V1(name) Spire__Api__Server__Trustdomain__V1__##name
#define INIT(name) SPIRE__API__SERVER__TRUSTDOMAIN__V1__##name##__INIT
#define DESCRIPTOR(name) spire__api__server__trustdomain__v1__##name##__descriptor
#define METHOD(name) "/spire.api.server.trustdomain.v1.TrustDomain/" name

typedef Spire__Api__Types__FederationRelationship Relationship;
/* Create's and update's responses have one shape. */
typedef V1(BatchCreateFederationRelationshipResponse) Response;

enum { PAGE = 500 };

static const struct cli_flag put_flags[] = {
	{ .name = "data",
		.type = CLI_STRING,
		.choices = "@file",
		.help = "Path to a file containing federation relationships in JSON format "
			"(optional). If set to '-', read the JSON from stdin." },
	{ .name = "trustDomain",
		.type = CLI_STRING,
		.help = "Name of the trust domain to federate with (e.g., example.org)" },
	{ .name = "bundleEndpointURL",
		.type = CLI_STRING,
		.help = "URL of the SPIFFE bundle endpoint that provides the trust bundle (must "
			"use the HTTPS protocol)" },
	{ .name = "bundleEndpointProfile",
		.type = CLI_STRING,
		.choices = "https_web|https_spiffe",
		.help = "Endpoint profile type (either \"https_web\" or \"https_spiffe\")" },
	{ .name = "endpointSpiffeID",
		.type = CLI_STRING,
		.help = "SPIFFE ID of the SPIFFE bundle endpoint server. Only used for 'spiffe' "
			"profile." },
	{ .name = "trustDomainBundlePath",
		.type = CLI_STRING,
		.choices = "@file",
		.help = "Path to the trust domain bundle data (optional)." },
	{ .name = "trustDomainBundleFormat",
		.type = CLI_STRING,
		.value = "pem",
		.choices = "pem|spiffe",
		.help = "The format of the bundle data (optional). Either \"pem\" or \"spiffe\"." },
	CLI_END,
};
static const struct cli_flag show_flags[] = {
	{ .name = "trustDomain",
		.type = CLI_STRING,
		.help = "The trust domain name of the federation relationship to show" },
	CLI_END,
};
static const struct cli_flag id_flags[] = {
	{ .name = "id", .type = CLI_STRING, .help = "SPIFFE ID of the trust domain" },
	CLI_END,
};

static char *borrow(const char *s)
{
	return (char *)(uintptr_t)s;
}

/* To stdout, or stderr when it has failed. */
static void print(FILE *to, const Relationship *m)
{
	fprintf(to, "Trust domain              : %s\n", m->trust_domain);
	fprintf(to, "Bundle endpoint URL       : %s\n", m->bundle_endpoint_url);
	switch (m->bundle_endpoint_profile_case) {
	case SPIRE__API__TYPES__FEDERATION_RELATIONSHIP__BUNDLE_ENDPOINT_PROFILE_HTTPS_WEB:
		fprintf(to, "Bundle endpoint profile   : https_web\n");
		break;
	case SPIRE__API__TYPES__FEDERATION_RELATIONSHIP__BUNDLE_ENDPOINT_PROFILE_HTTPS_SPIFFE:
		fprintf(to, "Bundle endpoint profile   : https_spiffe\n");
		fprintf(to, "Endpoint SPIFFE ID        : %s\n",
			m->https_spiffe->endpoint_spiffe_id);
		break;
	default:
		break;
	}
}

/* ---- create, update ---- */

static bool failed(const Response *rs, size_t i)
{
	return rs->results[i]->status && rs->results[i]->status->code;
}

static int print_results(
	struct cli *c, const Response *rs, const struct cmd_relationships *v, const char *verb)
{
	bool any = false;
	struct err e;

	for (size_t i = 0; i < rs->n_results; i++) {
		if (failed(rs, i) || !rs->results[i]->federation_relationship)
			continue;
		cli_printf(c, "\n");
		print(cli_out(c), rs->results[i]->federation_relationship);
	}
	for (size_t i = 0; i < rs->n_results; i++) {
		const Spire__Api__Types__Status *st = rs->results[i]->status;
		AUTO(free) char *q = NULL;

		if (!failed(rs, i))
			continue;
		any = true;
		q = text_quote(st->message);
		cli_printf(c, "\n");
		cli_errorf(c,
			"Failed to %s the following federation relationship (code: %s, msg: "
			"%s):\n",
			verb, err_code_name(st->code), q);
		print(cli_err(c), v->v[i]); /* the answer does not hold those that failed */
	}
	if (!any)
		return 0;
	err_set(&e, ERR_INTERNAL, "failed to %s one or more federation relationships", verb);
	return cli_fail(c, &e);
}

static int call_put(struct cli *c, bool update, const struct cmd_relationships *v,
	ProtobufCMessage **ret, struct err *e)
{
	V1(BatchCreateFederationRelationshipRequest)
	create = INIT(BATCH_CREATE_FEDERATION_RELATIONSHIP_REQUEST);
	V1(BatchUpdateFederationRelationshipRequest)
	change = INIT(BATCH_UPDATE_FEDERATION_RELATIONSHIP_REQUEST);

	create.federation_relationships = change.federation_relationships = v->v;
	create.n_federation_relationships = change.n_federation_relationships = v->n;
	if (update)
		return cli_call(c, METHOD("BatchUpdateFederationRelationship"), &change.base,
			&DESCRIPTOR(batch_update_federation_relationship_response), ret, e);
	return cli_call(c, METHOD("BatchCreateFederationRelationship"), &create.base,
		&DESCRIPTOR(batch_create_federation_relationship_response), ret, e);
}

static int put(struct cli *c, bool update)
{
	AUTO(cmd_free_message) ProtobufCMessage *m = NULL;
	struct cmd_relationships v = { .n = 0 };
	struct err e;
	int r = cmd_relationships_read(c, &v, &e);
	const Response *rs;

	if (!r && call_put(c, update, &v, &m, &e))
		r = err_wrap(&e, "request failed");
	rs = (const Response *)m;
	if (!r && rs->n_results > v.n)
		r = err_set(&e, ERR_INTERNAL, "the server answered more than it was asked");
	if (r)
		r = cli_fail(c, &e);
	else if (!cmd_printed_json(c, m))
		r = print_results(c, rs, &v, update ? "update" : "create");
	cmd_relationships_deinit(&v);
	return r;
}

static int create(struct cli *c)
{
	return put(c, false);
}

static int update(struct cli *c)
{
	return put(c, true);
}

/* ---- list, show ---- */

typedef V1(ListFederationRelationshipsResponse) ListResponse;

static int list_pages(struct cli *c, ListResponse *all, struct err *e)
{
	V1(ListFederationRelationshipsRequest)
	rq = INIT(LIST_FEDERATION_RELATIONSHIPS_REQUEST);
	AUTO(free) char *token = xstrdup("");

	rq.page_size = PAGE;
	do {
		AUTO(cmd_free_message) ProtobufCMessage *m = NULL;
		ListResponse *page;
		int r;

		rq.page_token = token;
		r = cli_call(c, METHOD("ListFederationRelationships"), &rq.base,
			&DESCRIPTOR(list_federation_relationships_response), &m, e);
		if (r)
			return err_wrap(e, "error listing federation relationship");
		page = (ListResponse *)m;
		all->federation_relationships = xreallocarray(all->federation_relationships,
			all->n_federation_relationships + page->n_federation_relationships + 1,
			sizeof(Relationship *));
		for (size_t i = 0; i < page->n_federation_relationships; i++)
			all->federation_relationships[all->n_federation_relationships++] =
				page->federation_relationships[i];
		page->n_federation_relationships = 0;
		free(token);
		token = xstrdup(page->next_page_token);
	} while (*token);
	return 0;
}

static int list(struct cli *c)
{
	ListResponse *all = xmalloc(sizeof(*all));
	struct err e;
	int r;

	spire__api__server__trustdomain__v1__list_federation_relationships_response__init(all);
	r = list_pages(c, all, &e);
	if (!r && !cmd_printed_json(c, all)) {
		cli_printf(c, "Found %zu %s\n", all->n_federation_relationships,
			text_plural(all->n_federation_relationships, "federation relationship",
				"federation relationships"));
		for (size_t i = 0; i < all->n_federation_relationships; i++) {
			cli_printf(c, "\n");
			print(cli_out(c), all->federation_relationships[i]);
		}
	}
	protobuf_c_message_free_unpacked(&all->base, NULL);
	return r ? cli_fail(c, &e) : 0;
}

static int show(struct cli *c)
{
	V1(GetFederationRelationshipRequest)
	rq = INIT(GET_FEDERATION_RELATIONSHIP_REQUEST);
	AUTO(cmd_free_message) ProtobufCMessage *m = NULL;
	struct err e;

	rq.trust_domain = borrow(cli_str(c, "trustDomain"));
	if (!*rq.trust_domain) {
		err_set(&e, ERR_INVALID, "a trust domain name is required");
		return cli_fail(c, &e);
	}
	if (cli_call(c, METHOD("GetFederationRelationship"), &rq.base,
		    &spire__api__types__federation_relationship__descriptor, &m, &e)) {
		err_wrap(&e, "error showing federation relationship");
		return cli_fail(c, &e);
	}
	if (cmd_printed_json(c, m))
		return 0;
	cli_printf(c, "Found a federation relationship with trust domain %s:\n\n", rq.trust_domain);
	print(cli_out(c), (const Relationship *)m);
	return 0;
}

/* ---- delete, refresh ---- */

static int delete_relationship(struct cli *c)
{
	V1(BatchDeleteFederationRelationshipRequest)
	rq = INIT(BATCH_DELETE_FEDERATION_RELATIONSHIP_REQUEST);
	const V1(BatchDeleteFederationRelationshipResponse) * rs;
	AUTO(cmd_free_message) ProtobufCMessage *m = NULL;
	char *id = borrow(cli_str(c, "id"));
	struct err e;

	if (!*id) {
		err_set(&e, ERR_INVALID, "id is required");
		return cli_fail(c, &e);
	}
	rq.trust_domains = &id;
	rq.n_trust_domains = 1;
	if (cli_call(c, METHOD("BatchDeleteFederationRelationship"), &rq.base,
		    &DESCRIPTOR(batch_delete_federation_relationship_response), &m, &e)) {
		err_wrap(&e, "failed to delete federation relationship");
		return cli_fail(c, &e);
	}
	if (cmd_printed_json(c, m))
		return 0;
	rs = (const void *)m;
	if (rs->n_results && rs->results[0]->status && rs->results[0]->status->code) {
		AUTO(free) char *q = text_quote(rs->results[0]->trust_domain);

		err_set(&e, rs->results[0]->status->code,
			"failed to delete federation relationship %s: %s", q,
			rs->results[0]->status->message);
		return cli_fail(c, &e);
	}
	cli_printf(c, "federation relationship deleted.\n");
	return 0;
}

static int refresh(struct cli *c)
{
	V1(RefreshBundleRequest) rq = INIT(REFRESH_BUNDLE_REQUEST);
	Spire__Api__Types__Status ok = SPIRE__API__TYPES__STATUS__INIT;
	AUTO(cmd_free_message) ProtobufCMessage *m = NULL;
	struct err e;
	int r;

	rq.trust_domain = borrow(cli_str(c, "id"));
	if (!*rq.trust_domain) {
		err_set(&e, ERR_INVALID, "id is required");
		return cli_fail(c, &e);
	}
	r = cli_call(
		c, METHOD("RefreshBundle"), &rq.base, &google__protobuf__empty__descriptor, &m, &e);
	if (r == ERR_NOT_FOUND) {
		AUTO(free) char *q = text_quote(rq.trust_domain);

		err_set(&e, r, "there is no federation relationship with trust domain %s", q);
		return cli_fail(c, &e);
	}
	if (r) {
		err_wrap(&e, "failed to refresh bundle");
		return cli_fail(c, &e);
	}
	ok.message = borrow("OK");
	if (!cmd_printed_json(c, &ok))
		cli_printf(c, "Bundle refreshed\n");
	return 0;
}

#define COMMON (CLI_WITH_SOCKET | CLI_WITH_OUTPUT)
const struct cli_command cmd_federation[] = {
	{ "federation create",
		"Creates a dynamic federation relationship with a foreign trust domain", put_flags,
		COMMON, create },
	{ "federation delete", "Deletes a dynamic federation relationship", id_flags, COMMON,
		delete_relationship },
	{ "federation list", "Lists all dynamic federation relationships", NULL, COMMON, list },
	{ "federation refresh", "Refreshes the bundle from the specified federated trust domain",
		id_flags, COMMON, refresh },
	{ "federation show", "Shows a dynamic federation relationship", show_flags, COMMON, show },
	{ "federation update",
		"Updates a dynamic federation relationship with a foreign trust domain", put_flags,
		COMMON, update },
	{ .name = NULL },
};

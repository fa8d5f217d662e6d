/* The TrustDomain service over the Unix socket: pages, masks, a batch whose items differ.
 * Covers: server/api_trustdomain.c server/store_sqlite_federation.c */
#include "tests/test.h"

#include "server_run.inc"
#include "spire/api/server/trustdomain/v1/trustdomain.pb-c.h"

#define TRUST "/spire.api.server.trustdomain.v1.TrustDomain/"
#define TD(n) Spire__Api__Server__Trustdomain__V1__##n
#define TD_INIT(n) SPIRE__API__SERVER__TRUSTDOMAIN__V1__##n##__INIT
#define ASK(method, req, n, ret)                                                                   \
	call_on(local, TRUST method, req,                                                          \
		&spire__api__server__trustdomain__v1__##n##_response__descriptor, ret, &e)

typedef Spire__Api__Types__FederationRelationship Relationship;

static struct err e;
static Spire__Api__Types__HTTPSWebProfile web;

static Relationship relationship(const char *td, const char *url)
{
	Relationship m = SPIRE__API__TYPES__FEDERATION_RELATIONSHIP__INIT;

	spire__api__types__httpsweb_profile__init(&web);
	m.trust_domain = text(td);
	m.bundle_endpoint_url = text(url);
	m.bundle_endpoint_profile_case =
		SPIRE__API__TYPES__FEDERATION_RELATIONSHIP__BUNDLE_ENDPOINT_PROFILE_HTTPS_WEB;
	m.https_web = &web;
	return m;
}

static TD(BatchCreateFederationRelationshipResponse) *
	create_all(Relationship *v, size_t n, Spire__Api__Types__FederationRelationshipMask *mask)
{
	TD(BatchCreateFederationRelationshipRequest)
	rq = TD_INIT(BATCH_CREATE_FEDERATION_RELATIONSHIP_REQUEST);
	TD(BatchCreateFederationRelationshipResponse) * rs;
	Relationship *p[8];

	for (size_t i = 0; i < n; i++)
		p[i] = &v[i];
	rq.federation_relationships = p;
	rq.n_federation_relationships = n;
	rq.output_mask = mask;
	CHECK_OK(ASK("BatchCreateFederationRelationship", &rq, batch_create_federation_relationship,
		&rs));
	CHECK_INT(rs->n_results, n);
	return rs;
}

static void test_create(void)
{
	Spire__Api__Types__FederationRelationshipMask mask =
		SPIRE__API__TYPES__FEDERATION_RELATIONSHIP_MASK__INIT;
	Relationship v[] = { relationship("b.org", "https://127.0.0.1:1"),
		relationship("spiffe://a.org", "https://127.0.0.1:1"),
		relationship("b.org", "https://127.0.0.1:1"),
		relationship("example.org", "https://127.0.0.1:1"), relationship("c.org", "x"),
		relationship("", "https://127.0.0.1:1") };
	static const char *const messages[] = { "OK", "OK",
		"failed to create federation relationship: datastore-sql: UNIQUE constraint "
		"failed: federated_trust_domains.trust_domain",
		"unable to create federation relationship for server trust domain",
		"failed to convert federation relationship: bundle endpoint URL must use the https "
		"scheme",
		"failed to convert federation relationship: failed to parse trust domain: trust "
		"domain is missing" };
	static const int codes[] = { 0, 0, ERR_INTERNAL, ERR_INVALID, ERR_INVALID, ERR_INVALID };
	TD(BatchCreateFederationRelationshipResponse) * rs;
	Relationship unset = relationship("d.org", "https://x");

	serve();
	rs = create_all(v, ARRAY_LEN(v), NULL);
	for (size_t i = 0; i < ARRAY_LEN(v); i++) {
		CHECK_STR(rs->results[i]->status->message, messages[i]);
		CHECK_INT(rs->results[i]->status->code, codes[i]);
		CHECK(!!rs->results[i]->federation_relationship == (codes[i] == 0));
	}
	CHECK_STR(rs->results[1]->federation_relationship->trust_domain, "a.org");
	FREE(rs);
	unset.bundle_endpoint_profile_case =
		SPIRE__API__TYPES__FEDERATION_RELATIONSHIP__BUNDLE_ENDPOINT_PROFILE__NOT_SET;
	unset.https_web = NULL;
	rs = create_all(&unset, 1, NULL);
	CHECK_CONTAINS(
		rs->results[0]->status->message, "unsupported bundle endpoint profile type: <nil>");
	FREE(rs);
	v[0] = relationship("e.org", "https://127.0.0.1:1");
	rs = create_all(v, 1, &mask);
	CHECK_STR(rs->results[0]->federation_relationship->bundle_endpoint_url, "");
	CHECK_INT(rs->results[0]->federation_relationship->bundle_endpoint_profile_case, 0);
	FREE(rs);
	finish();
}

static TD(ListFederationRelationshipsResponse) * list(int size, const char *token)
{
	TD(ListFederationRelationshipsRequest)
	rq = TD_INIT(LIST_FEDERATION_RELATIONSHIPS_REQUEST);
	TD(ListFederationRelationshipsResponse) *rs = NULL;

	rq.page_size = size;
	rq.page_token = text(token);
	if (ASK("ListFederationRelationships", &rq, list_federation_relationships, &rs))
		return NULL;
	return rs;
}

static void test_pages(void)
{
	Relationship v[] = { relationship("c.org", "https://127.0.0.1:1"),
		relationship("a.org", "https://127.0.0.1:1"),
		relationship("b.org", "https://127.0.0.1:1") };
	TD(ListFederationRelationshipsResponse) * rs, *next;

	serve();
	FREE(create_all(v, 3, NULL));
	rs = list(2, "");
	CHECK_INT(rs->n_federation_relationships, 2);
	CHECK_STR(rs->federation_relationships[0]->trust_domain, "c.org");
	CHECK_STR(rs->federation_relationships[1]->trust_domain, "a.org");
	next = list(2, rs->next_page_token);
	CHECK_INT(next->n_federation_relationships, 1);
	CHECK_STR(next->federation_relationships[0]->trust_domain, "b.org");
	CHECK_STR(next->next_page_token, "");
	FREE(rs);
	FREE(next);
	rs = list(0, "");
	CHECK_INT(rs->n_federation_relationships, 3);
	CHECK_STR(rs->next_page_token, "");
	FREE(rs);
	CHECK(!list(1, "x"));
	CHECK_INT(e.code, ERR_INTERNAL);
	CHECK_CONTAINS(e.msg, "failed to list federation relationships: could not parse token 'x'");
	finish();
}

static void test_update(void)
{
	Spire__Api__Types__FederationRelationshipMask mask =
		SPIRE__API__TYPES__FEDERATION_RELATIONSHIP_MASK__INIT;
	TD(BatchUpdateFederationRelationshipRequest)
	rq = TD_INIT(BATCH_UPDATE_FEDERATION_RELATIONSHIP_REQUEST);
	TD(BatchUpdateFederationRelationshipResponse) * rs;
	Relationship v = relationship("a.org", "https://127.0.0.1:1"), none, *p[2] = { &v, &none };
	Spire__Api__Types__HTTPSSPIFFEProfile spiffe = SPIRE__API__TYPES__HTTPSSPIFFEPROFILE__INIT;

	serve();
	FREE(create_all(&v, 1, NULL));
	none = relationship("b.org", "https://127.0.0.1:1");
	v.bundle_endpoint_url = text("https://127.0.0.1:2");
	v.bundle_endpoint_profile_case =
		SPIRE__API__TYPES__FEDERATION_RELATIONSHIP__BUNDLE_ENDPOINT_PROFILE_HTTPS_SPIFFE;
	v.https_spiffe = &spiffe;
	spiffe.endpoint_spiffe_id = text("spiffe://a.org/s");
	mask.bundle_endpoint_profile = true;
	rq.federation_relationships = p;
	rq.n_federation_relationships = 2;
	rq.input_mask = &mask;
	CHECK_OK(ASK("BatchUpdateFederationRelationship", &rq, batch_update_federation_relationship,
		&rs));
	CHECK_INT(rs->results[0]->status->code, 0);
	CHECK_STR(rs->results[0]->federation_relationship->bundle_endpoint_url,
		"https://127.0.0.1:1");
	CHECK_STR(rs->results[0]->federation_relationship->https_spiffe->endpoint_spiffe_id,
		"spiffe://a.org/s");
	CHECK_INT(rs->results[1]->status->code, ERR_INTERNAL);
	CHECK_STR(rs->results[1]->status->message,
		"failed to update federation relationship: unable to fetch federation "
		"relationship: record not found");
	FREE(rs);
	finish();
}

static void test_delete_refresh(void)
{
	TD(BatchDeleteFederationRelationshipRequest)
	rq = TD_INIT(BATCH_DELETE_FEDERATION_RELATIONSHIP_REQUEST);
	TD(BatchDeleteFederationRelationshipResponse) * rs;
	TD(RefreshBundleRequest) refresh = TD_INIT(REFRESH_BUNDLE_REQUEST);
	Relationship v = relationship("a.org", "https://127.0.0.1:1");
	char *names[] = { text("spiffe://a.org"), text("a.org"), text(""), text("A") };
	static const char *const messages[] = { "OK", "federation relationship not found",
		"missing trust domain",
		"failed to parse trust domain: trust domain characters are limited to lowercase "
		"letters, numbers, dots, dashes, and underscores" };
	Google__Protobuf__Empty *empty;

	serve();
	FREE(create_all(&v, 1, NULL));
	refresh.trust_domain = text("a.org");
	CHECK_ERR(CALL(TRUST "RefreshBundle", &refresh, google__protobuf__empty, &empty),
		ERR_INTERNAL);
	CHECK_CONTAINS(e.msg, "connection refused");
	rq.trust_domains = names;
	rq.n_trust_domains = ARRAY_LEN(names);
	CHECK_OK(ASK("BatchDeleteFederationRelationship", &rq, batch_delete_federation_relationship,
		&rs));
	for (size_t i = 0; i < ARRAY_LEN(names); i++)
		CHECK_STR(rs->results[i]->status->message, messages[i]);
	CHECK_STR(rs->results[0]->trust_domain, "a.org");
	FREE(rs);
	CHECK_ERR(CALL(TRUST "RefreshBundle", &refresh, google__protobuf__empty, &empty),
		ERR_NOT_FOUND);
	CHECK_CONTAINS(e.msg, "no relationship with trust domain \"a.org\"");
	finish();
}

TEST_MAIN(TEST(run_server), TEST(test_create), TEST(test_pages), TEST(test_update),
	TEST(test_delete_refresh))

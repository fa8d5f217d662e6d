/* The API over the Unix socket: entries, minting, bundles, the small services. */
#include "tests/test.h"

#include "server_run.inc"

static void test_create(void)
{
	EN(BatchCreateEntryResponse) * rs;
	Spire__Api__Types__Entry *m;

	serve();
	rs = create(entry("", "/a", "uid:1"));
	CHECK_INT(rs->results[0]->status->code, 0);
	CHECK_INT(strlen(rs->results[0]->entry->id), 36);
	CHECK(rs->results[0]->entry->created_at > 0);
	m = entry("", "/a", "uid:1");
	FREE(rs);
	m->hint = xstrdup("other");
	rs = create(m);
	CHECK_INT(rs->results[0]->status->code, ERR_EXISTS);
	CHECK_STR(rs->results[0]->status->message, "similar entry already exists");
	CHECK_INT(strlen(rs->results[0]->entry->id), 36);
	CHECK_STR(rs->results[0]->entry->hint, "");
	FREE(rs);
	rs = create(entry("", "/spire/x", "uid:1"));
	CHECK_INT(rs->results[0]->status->code, ERR_INVALID);
	CHECK_CONTAINS(rs->results[0]->status->message,
		"failed to convert entry: invalid spiffe ID: \"spiffe://example.org/spire/x\" is");
	CHECK(!rs->results[0]->entry);
	FREE(rs);
	rs = create(entry("a b", "/b", "uid:1"));
	CHECK_STR(rs->results[0]->status->message, "failed to create entry: datastore-validation: "
						   "invalid registration entry: entry ID "
						   "contains invalid characters");
	FREE(rs);
	m = entry("", "/b", "uid:1");
	pb_append(&m->federates_with, &m->n_federates_with, pb_str("nowhere.org"));
	rs = create(m);
	CHECK(rs->results[0]->status->code != 0);
	CHECK_CONTAINS(rs->results[0]->status->message, "failed to create entry: ");
	FREE(rs);
	finish();
}

static void add_selector(Spire__Api__Types__Entry *m, const char *value)
{
	Spire__Api__Types__Selector *s = pb_new(&spire__api__types__selector__descriptor);

	s->type = pb_str("unix");
	s->value = pb_str(value);
	pb_append(&m->selectors, &m->n_selectors, s);
}

/* As SPIRE: sorted in the answer to a write, as given when read; what is there twice, and an id in
 * use, are refused without an entry. */
static void test_create_order(void)
{
	EN(GetEntryRequest) grq = SPIRE__API__SERVER__ENTRY__V1__GET_ENTRY_REQUEST__INIT;
	Spire__Api__Types__Entry *m = entry("e1", "/a", "uid:1");
	EN(BatchCreateEntryResponse) * rs;
	Spire__Api__Types__Entry *got;
	struct err e;

	serve();
	add_selector(m, "gid:1");
	pb_append(&m->dns_names, &m->n_dns_names, pb_str("b"));
	pb_append(&m->dns_names, &m->n_dns_names, pb_str("a"));
	rs = create(m);
	CHECK_STR(rs->results[0]->entry->selectors[0]->value, "gid:1");
	CHECK_STR(rs->results[0]->entry->dns_names[0], "a");
	FREE(rs);
	grq.id = text("e1");
	CHECK_OK(CALL(ENTRY "GetEntry", &grq, spire__api__types__entry, &got));
	CHECK_STR(got->selectors[0]->value, "uid:1");
	CHECK_STR(got->dns_names[0], "b");
	FREE(got);
	m = entry("", "/b", "uid:1");
	add_selector(m, "uid:1");
	rs = create(m);
	CHECK_INT(rs->results[0]->status->code, ERR_EXISTS);
	CHECK_STR(rs->results[0]->status->message,
		"failed to create entry: a selector is given twice");
	CHECK(!rs->results[0]->entry);
	FREE(rs);
	rs = create(entry("e1", "/b", "uid:1"));
	CHECK_INT(rs->results[0]->status->code, ERR_EXISTS);
	CHECK(!rs->results[0]->entry);
	FREE(rs);
	finish();
}

/* Filters that are none, or that nobody can apply. */
static void test_list_odd(void)
{
	EN(ListEntriesRequest) rq = SPIRE__API__SERVER__ENTRY__V1__LIST_ENTRIES_REQUEST__INIT;
	EN(ListEntriesRequest__Filter)
	f = SPIRE__API__SERVER__ENTRY__V1__LIST_ENTRIES_REQUEST__FILTER__INIT;
	Spire__Api__Types__SelectorMatch sm = SPIRE__API__TYPES__SELECTOR_MATCH__INIT;
	Google__Protobuf__BoolValue no = GOOGLE__PROTOBUF__BOOL_VALUE__INIT;
	Spire__Api__Types__Entry *m = entry("e1", "/a", "uid:1");
	EN(ListEntriesResponse) * rs;
	EN(BatchCreateEntryResponse) * crs;
	struct err e;

	serve();
	m->downstream = true;
	crs = create(m);
	FREE(crs);
	rq.filter = &f;
	f.by_downstream = &no;
	CHECK_OK(CALL(ENTRY "ListEntries", &rq,
		spire__api__server__entry__v1__list_entries_response, &rs));
	CHECK_INT(rs->n_entries, 1);
	FREE(rs);
	m = entry("", "/a", "uid:1");
	sm.n_selectors = 1;
	sm.selectors = m->selectors;
	sm.match = 9;
	f.by_selectors = &sm;
	CHECK_ERR(CALL(ENTRY "ListEntries", &rq,
			  spire__api__server__entry__v1__list_entries_response, &rs),
		ERR_INTERNAL);
	CHECK_STR(e.msg, "failed to list entries: unhandled selectors match behavior 9");
	FREE(m);
	rq.filter = NULL;
	rq.page_token = text("garbage");
	CHECK_ERR(CALL(ENTRY "ListEntries", &rq,
			  spire__api__server__entry__v1__list_entries_response, &rs),
		ERR_INTERNAL);
	CHECK_STR(e.msg, "failed to list entries: could not parse token 'garbage'");
	finish();
}

static void test_list(void)
{
	EN(ListEntriesRequest) rq = SPIRE__API__SERVER__ENTRY__V1__LIST_ENTRIES_REQUEST__INIT;
	EN(ListEntriesRequest__Filter)
	f = SPIRE__API__SERVER__ENTRY__V1__LIST_ENTRIES_REQUEST__FILTER__INIT;
	EN(CountEntriesRequest) crq = SPIRE__API__SERVER__ENTRY__V1__COUNT_ENTRIES_REQUEST__INIT;
	Spire__Api__Types__EntryMask mask = SPIRE__API__TYPES__ENTRY_MASK__INIT;
	Spire__Api__Types__SelectorMatch sm = SPIRE__API__TYPES__SELECTOR_MATCH__INIT;
	EN(CountEntriesResponse) * crs;
	EN(ListEntriesResponse) * rs;
	char token[100];
	struct err e;

	serve();
	create_ok("e1", "/a", "uid:1");
	create_ok("e2", "/b", "uid:2");
	create_ok("e3", "/c", "uid:3");
	CHECK_OK(CALL(ENTRY "CountEntries", &crq,
		spire__api__server__entry__v1__count_entries_response, &crs));
	CHECK_INT(crs->count, 3);
	FREE(crs);
	rq.page_size = 2;
	rq.output_mask = &mask;
	CHECK_OK(CALL(ENTRY "ListEntries", &rq,
		spire__api__server__entry__v1__list_entries_response, &rs));
	CHECK_INT(rs->n_entries, 2);
	CHECK_STR(rs->entries[0]->id, "e1");
	CHECK(!rs->entries[0]->spiffe_id);
	CHECK(rs->next_page_token[0]);
	snprintf(token, sizeof(token), "%s", rs->next_page_token);
	FREE(rs);
	rq.page_token = token;
	CHECK_OK(CALL(ENTRY "ListEntries", &rq,
		spire__api__server__entry__v1__list_entries_response, &rs));
	CHECK_INT(rs->n_entries, 1);
	CHECK_STR(rs->entries[0]->id, "e3");
	CHECK_STR(rs->next_page_token, "");
	FREE(rs);
	rq = (EN(ListEntriesRequest))SPIRE__API__SERVER__ENTRY__V1__LIST_ENTRIES_REQUEST__INIT;
	rq.filter = &f;
	f.by_spiffe_id = pb_id("spiffe://example.org/b");
	CHECK_OK(CALL(ENTRY "ListEntries", &rq,
		spire__api__server__entry__v1__list_entries_response, &rs));
	CHECK_INT(rs->n_entries, 1);
	CHECK_STR(rs->entries[0]->id, "e2");
	CHECK_STR(rs->entries[0]->spiffe_id->path, "/b");
	FREE(rs);
	FREE(f.by_spiffe_id);
	f.by_spiffe_id = NULL;
	f.by_selectors = &sm;
	CHECK_ERR(CALL(ENTRY "ListEntries", &rq,
			  spire__api__server__entry__v1__list_entries_response, &rs),
		ERR_INVALID);
	CHECK_CONTAINS(e.msg, "malformed selectors filter: empty selector set");
	finish();
}

static int count(void)
{
	EN(CountEntriesRequest) rq = SPIRE__API__SERVER__ENTRY__V1__COUNT_ENTRIES_REQUEST__INIT;
	EN(CountEntriesResponse) * rs;
	struct err e;
	int n;

	CHECK_OK(CALL(ENTRY "CountEntries", &rq,
		spire__api__server__entry__v1__count_entries_response, &rs));
	n = rs->count;
	FREE(rs);
	return n;
}

/* Expired entries go by themselves, each at its time, the later one too; also one that had expired
 * before. */
static void test_expiry(void)
{
	static const int spans[] = { 2, -5, 1, 3600 };

	serve();
	for (size_t i = 0; i < ARRAY_LEN(spans); i++) {
		Spire__Api__Types__Entry *m = entry("", log_fmt("/x%zu", i), "uid:1");
		EN(BatchCreateEntryResponse) * rs;

		m->expires_at = clock_wall().sec + spans[i];
		rs = create(m);
		FREE(rs);
	}
	for (int i = 0; count() > 1; i++) {
		if (i == WAIT_STEPS)
			TEST_FAIL("%d entries are left", count());
		usleep(20000);
	}
	finish();
}

static EN(BatchUpdateEntryResponse) *
	update(Spire__Api__Types__Entry *m, Spire__Api__Types__EntryMask *mask)
{
	EN(BatchUpdateEntryRequest)
	rq = SPIRE__API__SERVER__ENTRY__V1__BATCH_UPDATE_ENTRY_REQUEST__INIT;
	EN(BatchUpdateEntryResponse) * rs;
	struct err e;

	rq.n_entries = 1;
	rq.entries = &m;
	rq.input_mask = mask;
	CHECK_OK(CALL(ENTRY "BatchUpdateEntry", &rq,
		spire__api__server__entry__v1__batch_update_entry_response, &rs));
	FREE(m);
	return rs;
}

static void test_update_delete(void)
{
	Spire__Api__Types__EntryMask mask = SPIRE__API__TYPES__ENTRY_MASK__INIT;
	EN(BatchDeleteEntryRequest)
	rq = SPIRE__API__SERVER__ENTRY__V1__BATCH_DELETE_ENTRY_REQUEST__INIT;
	char *ids[] = { text("e1"), text(""), text("nope") };
	EN(BatchUpdateEntryResponse) * rs;
	EN(BatchDeleteEntryResponse) * ds;
	Spire__Api__Types__Entry *m;
	struct err e;

	serve();
	create_ok("e1", "/a", "uid:1");
	mask.admin = true;
	m = entry("e1", "/zzz", "uid:9");
	m->admin = true;
	rs = update(m, &mask);
	CHECK_STR(rs->results[0]->status->message, "OK");
	CHECK(rs->results[0]->entry->admin);
	CHECK_STR(rs->results[0]->entry->spiffe_id->path, "/a");
	CHECK_INT(rs->results[0]->entry->revision_number, 1);
	FREE(rs);
	rs = update(entry("nope", "/a", "uid:1"), NULL);
	CHECK_INT(rs->results[0]->status->code, ERR_NOT_FOUND);
	CHECK_STR(rs->results[0]->status->message, "failed to update entry");
	FREE(rs);
	rq.n_ids = 3;
	rq.ids = ids;
	CHECK_OK(CALL(ENTRY "BatchDeleteEntry", &rq,
		spire__api__server__entry__v1__batch_delete_entry_response, &ds));
	CHECK_INT(ds->results[0]->status->code, 0);
	CHECK_STR(ds->results[0]->id, "e1");
	CHECK_STR(ds->results[1]->status->message, "missing entry ID");
	CHECK_STR(ds->results[2]->status->message, "entry not found");
	FREE(ds);
	finish();
}

static void test_mint(void)
{
	SV(MintX509SVIDRequest) rq = SPIRE__API__SERVER__SVID__V1__MINT_X509_SVIDREQUEST__INIT;
	SV(MintJWTSVIDRequest) jrq = SPIRE__API__SERVER__SVID__V1__MINT_JWTSVIDREQUEST__INIT;
	AUTO_BUF struct buf csr = BUF_INIT;
	SV(MintX509SVIDResponse) * rs;
	SV(MintJWTSVIDResponse) * jrs;
	char *aud = text("x");
	struct key *k;
	struct err e;

	serve();
	CHECK_OK(key_generate(KEY_EC_P256, &k, &e));
	CHECK_OK(x509_csr_make(k, "spiffe://example.org/m", &csr, &e));
	rq.csr = (ProtobufCBinaryData){ .data = csr.p, .len = csr.len };
	rq.ttl = 60;
	CHECK_OK(CALL(SVID "MintX509SVID", &rq,
		spire__api__server__svid__v1__mint_x509_svidresponse, &rs));
	CHECK_STR(rs->svid->id->path, "/m");
	CHECK(llabs((long long)(rs->svid->expires_at - clock_wall().sec) - 60) < 10);
	FREE(rs);
	buf_reset(&csr);
	CHECK_OK(x509_csr_make(k, "spiffe://other.org/m", &csr, &e));
	rq.csr = (ProtobufCBinaryData){ .data = csr.p, .len = csr.len };
	CHECK_ERR(CALL(SVID "MintX509SVID", &rq,
			  spire__api__server__svid__v1__mint_x509_svidresponse, &rs),
		ERR_INVALID);
	CHECK_CONTAINS(e.msg, "CSR URI SAN is invalid: \"spiffe://other.org/m\" is not a member");
	buf_reset(&csr);
	CHECK_OK(x509_csr_make(k, NULL, &csr, &e));
	rq.csr = (ProtobufCBinaryData){ .data = csr.p, .len = csr.len };
	CHECK_ERR(CALL(SVID "MintX509SVID", &rq,
			  spire__api__server__svid__v1__mint_x509_svidresponse, &rs),
		ERR_INVALID);
	CHECK_CONTAINS(e.msg, "CSR URI SAN is required");
	key_unref(k);
	jrq.id = pb_id("spiffe://example.org/m");
	jrq.audience = &aud;
	jrq.n_audience = 1;
	CHECK_OK(CALL(SVID "MintJWTSVID", &jrq, spire__api__server__svid__v1__mint_jwtsvidresponse,
		&jrs));
	CHECK_STR(jrs->svid->id->path, "/m");
	FREE(jrs);
	FREE(jrq.id);
	finish();
}

/* ---- bundles, debug, logger, health ---- */

static void test_bundles(void)
{
	BU(GetBundleRequest) grq = SPIRE__API__SERVER__BUNDLE__V1__GET_BUNDLE_REQUEST__INIT;
	BU(BatchSetFederatedBundleRequest)
	srq = SPIRE__API__SERVER__BUNDLE__V1__BATCH_SET_FEDERATED_BUNDLE_REQUEST__INIT;
	BU(GetFederatedBundleRequest)
	frq = SPIRE__API__SERVER__BUNDLE__V1__GET_FEDERATED_BUNDLE_REQUEST__INIT;
	BU(BatchDeleteFederatedBundleRequest)
	drq = SPIRE__API__SERVER__BUNDLE__V1__BATCH_DELETE_FEDERATED_BUNDLE_REQUEST__INIT;
	BU(BatchSetFederatedBundleResponse) * srs;
	BU(BatchDeleteFederatedBundleResponse) * drs;
	Spire__Api__Types__Bundle *own, *other;
	char *names[] = { text("other.org"), text("gone.org"), text("example.org") };
	struct err e;

	serve();
	connect_remote();
	CHECK_OK(call_on(remote, BUNDLE "GetBundle", &grq, &spire__api__types__bundle__descriptor,
		&own, &e));
	CHECK_STR(own->trust_domain, "example.org");
	CHECK_INT(own->n_x509_authorities, 1);
	CHECK_INT(own->n_jwt_authorities, 1);
	frq.trust_domain = text("other.org");
	CHECK_ERR(CALL(BUNDLE "GetFederatedBundle", &frq, spire__api__types__bundle, &other),
		ERR_NOT_FOUND);
	free(own->trust_domain);
	own->trust_domain = xstrdup("other.org");
	srq.n_bundle = 1;
	srq.bundle = &own;
	CHECK_OK(CALL(BUNDLE "BatchSetFederatedBundle", &srq,
		spire__api__server__bundle__v1__batch_set_federated_bundle_response, &srs));
	CHECK_STR(srs->results[0]->status->message, "OK");
	CHECK_INT(srs->results[0]->bundle->n_x509_authorities, 1);
	FREE(srs);
	FREE(own);
	CHECK_OK(CALL(BUNDLE "GetFederatedBundle", &frq, spire__api__types__bundle, &other));
	FREE(other);
	drq.n_trust_domains = 3;
	drq.trust_domains = names;
	CHECK_OK(CALL(BUNDLE "BatchDeleteFederatedBundle", &drq,
		spire__api__server__bundle__v1__batch_delete_federated_bundle_response, &drs));
	CHECK_STR(drs->results[0]->status->message, "OK");
	CHECK_STR(drs->results[1]->status->message, "bundle not found");
	CHECK_STR(drs->results[2]->status->message,
		"removing the bundle for the server trust domain is not allowed");
	FREE(drs);
	finish();
}

static void test_small_services(void)
{
	Grpc__Health__V1__HealthCheckRequest hrq = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
	Spire__Api__Server__Debug__V1__GetInfoRequest drq =
		SPIRE__API__SERVER__DEBUG__V1__GET_INFO_REQUEST__INIT;
	Spire__Api__Server__Logger__V1__SetLogLevelRequest lrq =
		SPIRE__API__SERVER__LOGGER__V1__SET_LOG_LEVEL_REQUEST__INIT;
	Spire__Api__Server__Debug__V1__GetInfoResponse *drs;
	Grpc__Health__V1__HealthCheckResponse *hrs;
	Spire__Api__Types__Logger *lrs;
	struct err e;

	serve();
	CHECK_OK(CALL("/grpc.health.v1.Health/Check", &hrq, grpc__health__v1__health_check_response,
		&hrs));
	CHECK_INT(hrs->status, GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING);
	FREE(hrs);
	CHECK_OK(CALL("/spire.api.server.debug.v1.Debug/GetInfo", &drq,
		spire__api__server__debug__v1__get_info_response, &drs));
	CHECK_INT(drs->n_svid_chain, 2);
	CHECK_STR(drs->svid_chain[0]->id->path, "/spire/server");
	CHECK_INT(drs->federated_bundles_count, 1);
	FREE(drs);
	lrq.new_level = SPIRE__API__TYPES__LOG_LEVEL__DEBUG;
	CHECK_OK(CALL("/spire.api.server.logger.v1.Logger/SetLogLevel", &lrq,
		spire__api__types__logger, &lrs));
	CHECK_INT(lrs->current_level, SPIRE__API__TYPES__LOG_LEVEL__DEBUG);
	CHECK_INT(lrs->launch_level, SPIRE__API__TYPES__LOG_LEVEL__INFO);
	FREE(lrs);
	lrq.new_level = 0;
	CHECK_ERR(CALL("/spire.api.server.logger.v1.Logger/SetLogLevel", &lrq,
			  spire__api__types__logger, &lrs),
		ERR_INVALID);
	connect_remote();
	CHECK_ERR(call_on(remote, "/spire.api.server.debug.v1.Debug/GetInfo", &drq,
			  &spire__api__server__debug__v1__get_info_response__descriptor, &drs, &e),
		ERR_UNIMPLEMENTED);
	if (ctx)
		tls_ctx_unref(ctx);
	ctx = NULL;
	finish();
}

TEST_MAIN(TEST(run_server), TEST(test_create), TEST(test_create_order), TEST(test_list),
	TEST(test_list_odd), TEST(test_expiry), TEST(test_update_delete), TEST(test_mint),
	TEST(test_bundles), TEST(test_small_services))

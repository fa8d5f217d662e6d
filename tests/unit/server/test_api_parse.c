/* What clients send: ids, selectors, DNS names, entries, times, with SPIRE's texts. */
#include "tests/test.h"

#include "server/api.h"

#define TD "example.org"

static int parse_id(const char *td, const char *path, enum api_id_kind k, struct err *e)
{
	Spire__Api__Types__SPIFFEID m = SPIRE__API__TYPES__SPIFFEID__INIT;
	struct spiffeid id = SPIFFEID_INIT;
	int r;

	m.trust_domain = (char *)(uintptr_t)td;
	m.path = (char *)(uintptr_t)path;
	r = api_id_parse(&id, &m, k, TD, e);
	spiffeid_deinit(&id);
	return r;
}

static void test_ids(void)
{
	struct spiffeid id = SPIFFEID_INIT;
	struct err e;

	CHECK_OK(parse_id(TD, "/a/b", API_ID_WORKLOAD, &e));
	CHECK_OK(parse_id(TD, "/spire/server", API_ID_MEMBER, &e));
	CHECK_OK(parse_id(TD, "/spirelike", API_ID_WORKLOAD, &e));
	CHECK_OK(parse_id(TD, "/spire/agent/join_token/x", API_ID_AGENT, &e));
	CHECK_OK(parse_id("other.org", "", API_ID_ANY, &e));
	CHECK_ERR(parse_id("other.org", "/a", API_ID_MEMBER, &e), ERR_INVALID);
	CHECK_STR(
		e.msg, "\"spiffe://other.org/a\" is not a member of trust domain \"example.org\"");
	CHECK_ERR(parse_id(TD, "", API_ID_WORKLOAD, &e), ERR_INVALID);
	CHECK_STR(e.msg, "\"spiffe://example.org\" is not a workload in trust domain "
			 "\"example.org\"; path is empty");
	CHECK_ERR(parse_id(TD, "/spire/agent/x", API_ID_WORKLOAD, &e), ERR_INVALID);
	CHECK_STR(e.msg, "\"spiffe://example.org/spire/agent/x\" is not a workload in trust domain "
			 "\"example.org\"; path is in the reserved namespace");
	CHECK_ERR(parse_id(TD, "/a", API_ID_AGENT, &e), ERR_INVALID);
	CHECK_STR(e.msg, "\"spiffe://example.org/a\" is not an agent in trust domain "
			 "\"example.org\"; path is not in the agent namespace");
	CHECK_ERR(parse_id("", "/a", API_ID_MEMBER, &e), ERR_INVALID);
	CHECK_STR(e.msg, "trust domain is missing");
	CHECK_ERR(api_id_parse(&id, NULL, API_ID_MEMBER, TD, &e), ERR_INVALID);
	CHECK_STR(e.msg, "request must specify SPIFFE ID");
}

static void test_selectors(void)
{
	Spire__Api__Types__Selector one = SPIRE__API__TYPES__SELECTOR__INIT;
	Spire__Api__Types__Selector *v[] = { &one, &one };
	struct selectors s = { .n = 0 };
	struct err e;

	one.type = (char *)(uintptr_t) "unix";
	one.value = (char *)(uintptr_t) "uid:0";
	CHECK_OK(api_selectors_parse(&s, v, 2, &e));
	CHECK_INT(s.n, 2); /* as given: what is given twice is for the store to refuse */
	selectors_deinit(&s);
	one.value = (char *)(uintptr_t) "";
	CHECK_ERR(api_selectors_parse(&s, v, 1, &e), ERR_INVALID);
	CHECK_STR(e.msg, "missing selector value");
	one.type = (char *)(uintptr_t) "a:b";
	CHECK_ERR(api_selectors_parse(&s, v, 1, &e), ERR_INVALID);
	CHECK_STR(e.msg, "selector type contains ':'");
	one.type = (char *)(uintptr_t) "";
	CHECK_ERR(api_selectors_parse(&s, v, 1, &e), ERR_INVALID);
	CHECK_STR(e.msg, "missing selector type");
	CHECK_ERR(api_selectors_parse(&s, v, API_SELECTORS_MAX + 1, &e), ERR_INVALID);
}

static void test_dns(void)
{
	static const char *const good[] = { "a", "a.b", "a-b.example.org", "*.example.org", "1.2",
		"xn--bcher-kva.example", "A.b", "a_b" };
	static const struct {
		const char *name, *why;
	} bad[] = { { "", "empty or only whitespace" }, { " ", "empty or only whitespace" },
		{ "a.", "domain ends with dot" }, { "*", "wildcard must be first label" },
		{ "a.*.b", "wildcard must be first label" }, { "*.*.b", "too many wildcards" },
		{ "a b", "idna: disallowed rune U+0020" },
		{ "a@b", "idna: disallowed rune U+0040" },
		{ "bad_dns..x", "idna: invalid label \"bad_dns..x\"" },
		{ "a..b", "idna: invalid label" }, { "-a", "idna: invalid label" },
		{ "a-", "idna: invalid label" }, { "ab--c", "idna: invalid label" },
		{ "\xc3\xa9", "name must be ascii" }, { "*.", "empty or only whitespace" } };
	char label[80];
	struct err e;

	for (size_t i = 0; i < ARRAY_LEN(good); i++)
		CHECK_OK(api_dns_check(good[i], &e));
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		CHECK_ERR(api_dns_check(bad[i].name, &e), ERR_INVALID);
		CHECK_CONTAINS(e.msg, bad[i].why);
	}
	memset(label, 'a', 64);
	label[64] = 0;
	CHECK_ERR(api_dns_check(label, &e), ERR_INVALID);
	label[63] = 0;
	CHECK_OK(api_dns_check(label, &e));
}

static void test_dns_overlap(void)
{
	struct strings s = { .n = 0 };
	struct err e;

	strings_add(&s, "*.example.org");
	strings_add(&s, "a.b.example.org");
	CHECK_OK(api_dns_check_overlap(&s, &e));
	strings_add(&s, "a.example.org");
	CHECK_ERR(api_dns_check_overlap(&s, &e), ERR_INVALID);
	CHECK_STR(e.msg, "name \"a.example.org\" overlaps with an existing wildcard name in the "
			 "list: wildcard overlap");
	strings_deinit(&s);
}

/* A good entry as a message, made from a value. */
static Spire__Api__Types__Entry *sample(void)
{
	struct entry en = { .id = xstrdup("id-1"),
		.spiffe_id = xstrdup("spiffe://example.org/w"),
		.parent_id = xstrdup("spiffe://example.org/spire/agent/x/y"),
		.x509_svid_ttl = 60,
		.hint = xstrdup("h"),
		.expires_at = 5 };
	Spire__Api__Types__Entry *m;

	selectors_add(&en.selectors, "unix", "uid:1");
	strings_add(&en.dns_names, "a.b");
	strings_add(&en.federates_with, "spiffe://other.org");
	m = pb_entry(&en, NULL);
	entry_deinit(&en);
	return m;
}

static void test_entry(void)
{
	Spire__Api__Types__Entry *m = sample();
	struct entry en;
	struct err e;

	CHECK_OK(api_entry_parse(&en, m, NULL, TD, &e));
	CHECK_STR(en.spiffe_id, "spiffe://example.org/w");
	CHECK_STR(en.federates_with.v[0], "other.org");
	CHECK_INT(en.x509_svid_ttl, 60);
	CHECK_INT(en.expires_at, 5);
	CHECK_STR(en.hint, "h");
	CHECK_OK(api_entry_check(&en, ENTRY_ALL, &e));
	en.jwt_svid_ttl = -1;
	CHECK_ERR(api_entry_check(&en, ENTRY_ALL, &e), ERR_INVALID);
	CHECK_STR(e.msg, "invalid registration entry: JwtSvidTtl is not set");
	CHECK_OK(api_entry_check(&en, ENTRY_ALL & ~ENTRY_JWT_TTL, &e));
	en.jwt_svid_ttl = 0;
	free(en.id);
	en.id = xstrdup("a b");
	CHECK_ERR(api_entry_check(&en, ENTRY_ALL, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "entry ID contains invalid characters");
	en.store_svid = true;
	selectors_add(&en.selectors, "k8s", "ns:x");
	CHECK_ERR(api_entry_check(&en, ENTRY_ALL, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "selector types must be the same when store SVID is enabled");
	en.disable_x509_svid_prefetch = true;
	CHECK_ERR(api_entry_check(&en, ENTRY_ALL, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "specifying cache behaviour is incompatible with storable SVIDs");
	entry_deinit(&en);
	spire__api__types__entry__free_unpacked(m, NULL);
}

static void test_entry_refused(void)
{
	Spire__Api__Types__Entry *m = sample();
	char hint[API_HINT_MAX + 2];
	struct entry en;
	struct err e;

	memset(hint, 'x', sizeof(hint) - 1);
	hint[sizeof(hint) - 1] = 0;
	free(m->hint);
	m->hint = xstrdup(hint);
	CHECK_ERR(api_entry_parse(&en, m, NULL, TD, &e), ERR_INVALID);
	CHECK_STR(e.msg, "hint is too long, max length is 1024 characters");
	for (size_t i = 0; i < m->n_selectors; i++)
		spire__api__types__selector__free_unpacked(m->selectors[i], NULL);
	m->n_selectors = 0;
	CHECK_ERR(api_entry_parse(&en, m, NULL, TD, &e), ERR_INVALID);
	CHECK_STR(e.msg, "selector list is empty");
	free(m->federates_with[0]);
	m->federates_with[0] = xstrdup("Nope");
	CHECK_ERR(api_entry_parse(&en, m, NULL, TD, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "invalid federated trust domain: trust domain characters");
	free(m->dns_names[0]);
	m->dns_names[0] = xstrdup("no-");
	CHECK_ERR(api_entry_parse(&en, m, NULL, TD, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "invalid DNS name: idna error");
	free(m->spiffe_id->path);
	m->spiffe_id->path = xstrdup("/spire/x");
	CHECK_ERR(api_entry_parse(&en, m, NULL, TD, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "invalid spiffe ID: \"spiffe://example.org/spire/x\" is not a");
	spire__api__types__spiffeid__free_unpacked(m->parent_id, NULL);
	m->parent_id = NULL;
	CHECK_ERR(api_entry_parse(&en, m, NULL, TD, &e), ERR_INVALID);
	CHECK_STR(e.msg, "invalid parent ID: request must specify SPIFFE ID");
	spire__api__types__entry__free_unpacked(m, NULL);
}

/* An update may leave out what its mask leaves out. */
static void test_entry_masked(void)
{
	Spire__Api__Types__Entry m = SPIRE__API__TYPES__ENTRY__INIT;
	Spire__Api__Types__EntryMask mask = SPIRE__API__TYPES__ENTRY_MASK__INIT;
	struct entry en;
	struct err e;

	m.admin = true;
	m.downstream = true;
	mask.admin = true;
	CHECK_OK(api_entry_parse(&en, &m, &mask, TD, &e));
	CHECK(en.admin);
	CHECK(!en.downstream);
	CHECK_INT(api_entry_mask(&mask), ENTRY_ADMIN);
	CHECK_INT(api_entry_mask(NULL), ENTRY_ALL);
	entry_deinit(&en);
}

static void test_output_mask(void)
{
	Spire__Api__Types__Entry *m = sample();
	Spire__Api__Types__EntryMask mask = SPIRE__API__TYPES__ENTRY_MASK__INIT;
	struct entry en;
	struct err e;

	CHECK_OK(api_entry_parse(&en, m, NULL, TD, &e));
	spire__api__types__entry__free_unpacked(m, NULL);
	m = pb_entry(&en, &mask);
	CHECK_STR(m->id, "id-1");
	CHECK(!m->spiffe_id && !m->parent_id && !m->n_selectors && !m->n_dns_names);
	CHECK_INT(m->x509_svid_ttl, 0);
	spire__api__types__entry__free_unpacked(m, NULL);
	entry_deinit(&en);
}

static void test_times(void)
{
	CHECK_INT(api_time_parse("2026-01-01 00:00:00 +0000 +00"), 1767225600);
	CHECK_INT(api_time_parse("2026-01-01 02:00:00 +0200 +02"), 1767225600);
	CHECK_INT(api_time_parse("2026-01-01 00:00:00"), 0);
	CHECK_INT(api_time_parse("soon"), 0);
}

static void check_key(const char *method, const char *want)
{
	char *key = api_metric_key(method);

	CHECK_STR(key, want);
	free(key);
}

static void test_metric_keys(void)
{
	check_key("/spire.api.server.agent.v1.Agent/AttestAgent", "agent_v1_agent_attest_agent");
	check_key("/spire.api.server.svid.v1.SVID/BatchNewX509SVID",
		"svid_v1_svid_batch_new_x509svid");
	check_key("/spire.api.server.svid.v1.SVID/NewJWTSVID", "svid_v1_svid_new_jwtsvid");
	check_key("/grpc.health.v1.Health/Check", "health_check");
}

static void test_status(void)
{
	Spire__Api__Types__Status *s = pb_status_wrap(ERR_INVALID, "text", "inner");

	CHECK_STR(s->message, "text: inner");
	spire__api__types__status__free_unpacked(s, NULL);
	s = pb_status_wrap(ERR_NOT_FOUND, "text", "inner");
	CHECK_STR(s->message, "text");
	spire__api__types__status__free_unpacked(s, NULL);
	s = pb_ok();
	CHECK_INT(s->code, 0);
	CHECK_STR(s->message, "OK");
	spire__api__types__status__free_unpacked(s, NULL);
}

TEST_MAIN(TEST(test_ids), TEST(test_selectors), TEST(test_dns), TEST(test_dns_overlap),
	TEST(test_entry), TEST(test_entry_refused), TEST(test_entry_masked), TEST(test_output_mask),
	TEST(test_times), TEST(test_metric_keys), TEST(test_status))

#include "lib/pbjson.h"

#include "google/protobuf/wrappers.pb-c.h"
#include "spiffe/workload/workload.pb-c.h"
#include "spire/api/server/agent/v1/agent.pb-c.h"
#include "spire/api/server/entry/v1/entry.pb-c.h"
#include "spire/api/types/logger.pb-c.h"
#include "tests/test.h"

static void check(const void *m, const char *want)
{
	AUTO_BUF struct buf b = BUF_INIT;

	pbjson_write(m, &b);
	CHECK_STR(buf_cstr(&b), want);
}

/* As SPIRE 1.15 prints an entry: defaults there, 64-bit integers as strings, no null. */
static void test_entry(void)
{
	char td[] = "example.org", path[] = "/w", id[] = "e1", type[] = "unix", value[] = "uid:0";
	Spire__Api__Types__Entry en = SPIRE__API__TYPES__ENTRY__INIT;
	Spire__Api__Types__SPIFFEID sid = SPIRE__API__TYPES__SPIFFEID__INIT;
	Spire__Api__Types__Selector sel = SPIRE__API__TYPES__SELECTOR__INIT, *sels[] = { &sel };

	sid.trust_domain = td;
	sid.path = path;
	sel.type = type;
	sel.value = value;
	en.id = id;
	en.spiffe_id = &sid;
	en.n_selectors = 1;
	en.selectors = sels;
	en.x509_svid_ttl = 60;
	en.created_at = 1700000000;
	check(&en,
		"{\"admin\":false,\"created_at\":\"1700000000\",\"dns_names\":[],\"downstream\":"
		"false,\"expires_at\":\"0\",\"federates_with\":[],\"hint\":\"\",\"id\":\"e1\","
		"\"jwt_svid_ttl\":0,\"revision_number\":\"0\",\"selectors\":[{\"type\":\"unix\","
		"\"value\":\"uid:0\"}],\"spiffe_id\":{\"path\":\"/w\",\"trust_domain\":\"example."
		"org\"},\"store_svid\":false,\"x509_svid_ttl\":60}");
}

static void test_enum_and_empty(void)
{
	Spire__Api__Types__Logger l = SPIRE__API__TYPES__LOGGER__INIT;
	Google__Protobuf__Empty empty = GOOGLE__PROTOBUF__EMPTY__INIT;

	l.current_level = SPIRE__API__TYPES__LOG_LEVEL__DEBUG;
	l.launch_level = 99;
	check(&l, "{\"current_level\":\"DEBUG\",\"launch_level\":99}");
	check(&empty, "{}");
}

static void test_bytes_and_map(void)
{
	char svid[] = "spiffe://a/b", fed[] = "spiffe://c";
	uint8_t der[] = { 1, 2, 3, 0xff };
	X509SVIDResponse r = X509_SVIDRESPONSE__INIT;
	X509SVID s = X509_SVID__INIT, *svids[] = { &s };
	X509SVIDResponse__FederatedBundlesEntry
		f = X509_SVIDRESPONSE__FEDERATED_BUNDLES_ENTRY__INIT,
		*feds[] = { &f };

	s.spiffe_id = svid;
	s.x509_svid = (ProtobufCBinaryData){ .len = 4, .data = der };
	f.key = fed;
	f.value = (ProtobufCBinaryData){ .len = 2, .data = der };
	r.n_svids = 1;
	r.svids = svids;
	r.n_federated_bundles = 1;
	r.federated_bundles = feds;
	check(&r, "{\"crl\":[],\"federated_bundles\":{\"spiffe://"
		  "c\":\"AQI=\"},\"svids\":[{\"bundle\":"
		  "\"\",\"hint\":\"\",\"spiffe_id\":\"spiffe://a/b\",\"x509_svid\":\"AQID/w==\","
		  "\"x509_svid_key\":\"\"}]}");
}

static void test_struct(void)
{
	char id[] = "spiffe://a/b", k1[] = "exp", k2[] = "aud", k3[] = "x", s1[] = "me";
	ValidateJWTSVIDResponse r = VALIDATE_JWTSVIDRESPONSE__INIT;
	Google__Protobuf__Struct st = GOOGLE__PROTOBUF__STRUCT__INIT;
	Google__Protobuf__Value n = GOOGLE__PROTOBUF__VALUE__INIT,
				s = GOOGLE__PROTOBUF__VALUE__INIT,
				l = GOOGLE__PROTOBUF__VALUE__INIT,
				z = GOOGLE__PROTOBUF__VALUE__INIT;
	Google__Protobuf__Value *items[] = { &s };
	Google__Protobuf__ListValue list = GOOGLE__PROTOBUF__LIST_VALUE__INIT;
	Google__Protobuf__Struct__FieldsEntry f[3] = { GOOGLE__PROTOBUF__STRUCT__FIELDS_ENTRY__INIT,
		GOOGLE__PROTOBUF__STRUCT__FIELDS_ENTRY__INIT,
		GOOGLE__PROTOBUF__STRUCT__FIELDS_ENTRY__INIT };
	Google__Protobuf__Struct__FieldsEntry *fields[] = { &f[0], &f[1], &f[2] };

	n.kind_case = GOOGLE__PROTOBUF__VALUE__KIND_NUMBER_VALUE;
	n.number_value = 1700000000;
	s.kind_case = GOOGLE__PROTOBUF__VALUE__KIND_STRING_VALUE;
	s.string_value = s1;
	l.kind_case = GOOGLE__PROTOBUF__VALUE__KIND_LIST_VALUE;
	l.list_value = &list;
	list.n_values = 1;
	list.values = items;
	z.kind_case = GOOGLE__PROTOBUF__VALUE__KIND_NULL_VALUE;
	f[0].key = k1;
	f[0].value = &n;
	f[1].key = k2;
	f[1].value = &l;
	f[2].key = k3;
	f[2].value = &z;
	st.n_fields = 3;
	st.fields = fields;
	r.spiffe_id = id;
	r.claims = &st;
	check(&r, "{\"claims\":{\"aud\":[\"me\"],\"exp\":1700000000,\"x\":null},\"spiffe_id\":"
		  "\"spiffe://a/b\"}");
}

static void test_oneof_and_wrapper(void)
{
	Spire__Api__Server__Agent__V1__AttestAgentResponse a =
		SPIRE__API__SERVER__AGENT__V1__ATTEST_AGENT_RESPONSE__INIT;
	Google__Protobuf__BoolValue yes = GOOGLE__PROTOBUF__BOOL_VALUE__INIT;
	uint8_t c[] = "hi";

	check(&a, "{}");
	a.step_case = SPIRE__API__SERVER__AGENT__V1__ATTEST_AGENT_RESPONSE__STEP_CHALLENGE;
	a.challenge = (ProtobufCBinaryData){ .len = 2, .data = c };
	check(&a, "{\"challenge\":\"aGk=\"}");
	yes.value = 1;
	check(&yes, "true");
}

static void test_list(void)
{
	Google__Protobuf__Empty a = GOOGLE__PROTOBUF__EMPTY__INIT;
	const ProtobufCMessage *two[] = { &a.base, &a.base };
	AUTO_BUF struct buf b = BUF_INIT;

	pbjson_write_list(two, 2, &b);
	CHECK_STR(buf_cstr(&b), "[{},{}]");
}

TEST_MAIN(TEST(test_entry), TEST(test_enum_and_empty), TEST(test_bytes_and_map), TEST(test_struct),
	TEST(test_oneof_and_wrapper), TEST(test_list))

/* Covers: server/reconcile_object.c server/reconcile_federation.c server/reconcile_explain.c
 * Static entries, federation, and what is said of a pod. */
#include "reconcile_world.inc"

static void static_entry(const char *name, const char *spec)
{
	static int generation;
	AUTO(free)
	char *s = xasprintf("{\"metadata\":{\"name\":\"%s\",\"uid\":\"u-%s\",\"generation\":%d,"
			    "\"creationTimestamp\":\"2026-01-01T00:%02d:00Z\"},\"spec\":{%s}}",
		name, name, ++generation, made++, spec);

	put(RECONCILE_STATIC, s);
}

#define STATIC                                                                                     \
	"\"spiffeID\":\"spiffe://" TD "/w\",\"parentID\":\"spiffe://" TD                           \
	"/spire/server\",\"selectors\":[\"unix:uid:0\",\"unix:gid:0\"]"

static void check_static(const char *name, const char *want_status)
{
	json_t *j = status_of(name);
	AUTO(free) char *got = NULL;

	CHECK(j);
	json_object_del(j, "conditions");
	got = json_dumps(j, JSON_COMPACT);
	CHECK_STR(got, want_status);
	json_decref(j);
}

static void test_static(void)
{
	begin();
	sync_all();
	static_entry("s", STATIC ",\"x509SVIDTTL\":\"2h\",\"jwtSVIDTTL\":\"1m\",\"dnsNames\":["
				 "\"a.org\"],\"hint\":\"h\",\"admin\":true,\"storeSVID\":true");
	CHECK_STR(only()->spiffe_id, "spiffe://" TD "/w");
	CHECK_INT(found[0].x509_svid_ttl, 7200);
	CHECK_INT(found[0].selectors.n, 2);
	CHECK(found[0].store_svid && found[0].admin);
	check_static("s", "{\"rendered\":true,\"masked\":false,\"set\":true}");
	static_entry("t", STATIC);
	check_static("t", "{\"rendered\":true,\"masked\":true,\"set\":false}");
	static_entry("bad", "\"spiffeID\":\"x\",\"parentID\":\"y\",\"selectors\":[]");
	check_static("bad", "{\"rendered\":false,\"masked\":false,\"set\":false}");
	gone(RECONCILE_STATIC, NULL, "s");
	CHECK_INT(only()->x509_svid_ttl, 0);
	check_static("t", "{\"rendered\":true,\"masked\":false,\"set\":true}");
	static_entry("t", STATIC ",\"hint\":\"new\"");
	CHECK_STR(only()->hint, "new");
	gone(RECONCILE_STATIC, NULL, "t");
	CHECK_INT(count(), 0);
	end();
}

static void federated(const char *name, const char *td, const char *url, const char *more)
{
	static int generation;
	AUTO(free)
	char *s = xasprintf("{\"metadata\":{\"name\":\"%s\",\"uid\":\"u-%s\",\"generation\":%d,"
			    "\"creationTimestamp\":\"2026-01-01T00:%02d:00Z\"},\"spec\":{"
			    "\"trustDomain\":\"%s\","
			    "\"bundleEndpointURL\":\"%s\",\"bundleEndpointProfile\":{%s}}}",
		name, name, ++generation, made++, td, url, more);

	put(RECONCILE_FEDERATED, s);
}

#define WEB "\"type\":\"https_web\""

static void relationship_done(void *arg, int code, const char *msg)
{
	(void)arg;
	if (code)
		TEST_FAIL("%s", msg);
}

static void test_federation(void)
{
	char td[] = "hand.org", url[] = "https://h/", none_[] = "";
	struct relationship hand = { .trust_domain = td, .url = url, .endpoint_id = none_ };

	begin();
	store_relationship_create(api.store, &hand, NULL, relationship_done, NULL);
	settle();
	federated("p", "peer.org", "https://peer.org/b", WEB);
	reconcile_synced(rec, RECONCILE_FEDERATED);
	settle();
	CHECK(!federation_get(api.federation, "peer.org")); /* pods are not known yet */
	sync_all();
	CHECK_STR(federation_get(api.federation, "peer.org")->url, "https://peer.org/b");
	check_condition("p", "Applied", "");
	federated("p", "peer.org", "https://peer.org/c",
		"\"type\":\"https_spiffe\",\"endpointSPIFFEID\":\"spiffe://peer.org/e\"");
	CHECK_STR(federation_get(api.federation, "peer.org")->url, "https://peer.org/c");
	CHECK_STR(federation_get(api.federation, "peer.org")->endpoint_id, "spiffe://peer.org/e");
	federated("younger", "peer.org", "https://peer.org/d", WEB);
	check_condition("younger", "Conflict", "ClusterFederatedTrustDomain \"p\"");
	CHECK_STR(federation_get(api.federation, "peer.org")->url, "https://peer.org/c");
	federated("own", TD, "https://x/", WEB);
	check_condition("own", "InvalidSpec", "server trust domain");
	federated("url", "u.org", "http://x/", WEB);
	check_condition("url", "InvalidSpec", "invalid bundleEndpointURL value");
	federated(
		"prof", "v.org", "https://x/", "\"type\":\"https_web\",\"endpointSPIFFEID\":\"a\"");
	check_condition("prof", "InvalidSpec", "not applicable to the \"https_web\" profile");

	/* Restarted, with the object gone: ours goes, the one made by hand stays. */
	stop_reconcile();
	start_reconcile();
	reconcile_lead(rec, true);
	sync_all();
	CHECK(!federation_get(api.federation, "peer.org"));
	CHECK(federation_get(api.federation, "hand.org"));

	/* Deleted behind our back: back again. */
	federated("p", "peer.org", "https://peer.org/b", WEB);
	CHECK(federation_get(api.federation, "peer.org"));
	store_relationship_delete(api.store, "peer.org", relationship_done, NULL);
	settle();
	CHECK(federation_get(api.federation, "peer.org"));
	gone(RECONCILE_FEDERATED, NULL, "p");
	CHECK(!federation_get(api.federation, "peer.org"));
	end();
}

static void check_line(const struct reconcile_explanation *x, const char *object, const char *state,
	const char *reason)
{
	for (size_t i = 0; i < x->n_lines; i++)
		if (strcmp(x->lines[i].object, object) == 0) {
			CHECK_STR(x->lines[i].state, state);
			CHECK_CONTAINS(x->lines[i].reason, reason);
			CHECK((*x->lines[i].entry_id != 0) == (strcmp(state, "entry") == 0));
			return;
		}
	TEST_FAIL("nothing of %s", object);
}

static void test_explain(void)
{
	struct reconcile_explanation x;

	begin();
	cluster();
	put_id("main", NS_SA);
	put_id("twin", NS_SA);
	put_id("fb", "\"spiffeIDTemplate\":\"spiffe://" TD "/f\",\"fallback\":true");
	put_id("web", NS_SA ",\"podSelector\":{\"matchLabels\":{\"app\":\"web\"}}");
	put_id("team", NS_SA ",\"namespaceSelector\":{\"matchExpressions\":[{\"key\":\"team\","
			     "\"operator\":\"NotIn\",\"values\":[\"a\",\"b\"]}]}");
	put_id("bad", "\"spiffeIDTemplate\":\"{{\"");
	put_id("wrong", "\"spiffeIDTemplate\":\"spiffe://other.org/x\"");
	put_id("else", NS_SA ",\"className\":\"other\"");
	put_pod("default", "p1", "\"app\":\"db\"", "n1");
	reconcile_explain(rec, "default", "p1", &x);
	CHECK_CONTAINS(x.notes.v[0], "Namespace");
	check_line(&x, "main", "waiting", "");
	reconcile_explanation_deinit(&x);
	sync_all();
	reconcile_explain(rec, "default", "p1", &x);
	CHECK(x.known && x.notes.n == 0);
	CHECK_STR(x.uid, "uid-p1");
	CHECK_STR(x.node, "n1");
	CHECK_CONTAINS(x.parent_id, "uid-n1");
	CHECK_INT(x.n_lines, 8);
	check_line(&x, "main", "entry", "");
	check_line(&x, "twin", "masked", "main declares the same entry");
	check_line(&x, "fb", "not needed", "fallback");
	check_line(&x, "web", "not selected", "podSelector: app In [web], but it is \"db\"");
	check_line(&x, "team", "not selected",
		"namespaceSelector: team NotIn [a, b], but it is \"a\"");
	check_line(&x, "bad", "failed", "invalid SPIFFEID template");
	check_line(&x, "wrong", "failed", "expected trust domain");
	check_line(&x, "else", "other class", "");
	reconcile_explanation_deinit(&x);
	put_pod("kube-system", "p2", "", "n1");
	reconcile_explain(rec, "kube-system", "p2", &x);
	check_line(&x, "main", "not selected", "the namespace kube-system is ignored");
	reconcile_explanation_deinit(&x);
	put_pod("default", "p3", "", "");
	reconcile_explain(rec, "default", "p3", &x);
	check_line(&x, "main", "failed", "not on a node yet");
	reconcile_explanation_deinit(&x);
	reconcile_lead(rec, false);
	reconcile_explain(rec, "default", "nobody", &x);
	CHECK(!x.known);
	CHECK_CONTAINS(x.notes.v[0], "another server leads");
	reconcile_explanation_deinit(&x);
	end();
}

TEST_MAIN(TEST(test_static), TEST(test_federation), TEST(test_explain))

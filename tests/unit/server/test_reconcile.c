/* Covers: server/reconcile.c server/reconcile_cluster.c server/reconcile_select.c
 * server/reconcile_render.c server/reconcile_slot.c
 * Objects of a cluster go in, entries of a real store come out. */
#include "reconcile_world.inc"

/* ---- tests ---- */

static void test_pod(void)
{
	begin();
	cluster();
	put_id("all", NS_SA
		",\"ttl\":\"1h\",\"jwtTtl\":\"90s\",\"hint\":\"h\",\"admin\":true,"
		"\"downstream\":true,\"federatesWith\":[\"" TD "\"],\"dnsNameTemplates\":["
		"\"{{ .PodMeta.Name }}.{{ .ClusterDomain }}\"],\"workloadSelectorTemplates\":["
		"\"k8s:ns:{{ .PodMeta.Namespace }}\"]");
	put_pod("default", "p1", "", "n1");
	CHECK_INT(count(), 0); /* not all kinds are known yet */
	sync_all();
	CHECK_STR(only()->spiffe_id, "spiffe://" TD "/ns/default/sa/sa");
	CHECK_STR(found[0].parent_id, "spiffe://" TD "/spire/agent/k8s_psat/demo/uid-n1");
	CHECK_INT(found[0].selectors.n, 2);
	CHECK_STR(found[0].selectors.v[0].value, "pod-uid:uid-p1");
	CHECK_STR(found[0].selectors.v[1].value, "ns:default");
	CHECK_INT(found[0].x509_svid_ttl, 3600);
	CHECK_INT(found[0].jwt_svid_ttl, 90);
	CHECK_STR(found[0].hint, "h");
	CHECK_STR(found[0].dns_names.v[0], "p1.cluster.local");
	CHECK(found[0].admin && found[0].downstream && found[0].federates_with.n == 1);
	CHECK(strncmp(found[0].id, "k8s.", 4) == 0);
	check_stats("all", "{\"namespacesSelected\":2,\"namespacesIgnored\":1,\"podsSelected\":1,"
			   "\"podEntryRenderFailures\":0,\"entriesMasked\":0,\"entriesToSet\":1,"
			   "\"entryFailures\":0}");
	CHECK(!status_of("all")); /* nothing new */

	put_pod("kube-system", "p2", "", "n1");
	CHECK_INT(count(), 1);
	put_pod("default", "p3", "", "n1");
	CHECK_INT(count(), 2);
	gone(RECONCILE_POD, "default", "p1");
	CHECK_STR(only()->selectors.v[0].value, "pod-uid:uid-p3");
	gone(RECONCILE_ID, NULL, "all");
	CHECK_INT(count(), 0);
	end();
}

static void test_selectors(void)
{
	begin();
	cluster();
	put_ns("other", "\"team\":\"b\"");
	sync_all();
	put_id("s", NS_SA
		",\"podSelector\":{\"matchLabels\":{\"app\":\"web\"},\"matchExpressions\":["
		"{\"key\":\"tier\",\"operator\":\"NotIn\",\"values\":[\"db\"]},"
		"{\"key\":\"old\",\"operator\":\"DoesNotExist\"}]},\"namespaceSelector\":{"
		"\"matchExpressions\":[{\"key\":\"team\",\"operator\":\"In\",\"values\":[\"a\"]},"
		"{\"key\":\"team\",\"operator\":\"Exists\"}]}");
	put_pod("default", "p1", "\"app\":\"web\"", "n1");
	put_pod("default", "p2", "\"app\":\"web\",\"tier\":\"db\"", "n1");
	put_pod("default", "p3", "\"app\":\"web\",\"old\":\"\"", "n1");
	put_pod("default", "p4", "\"app\":\"api\"", "n1");
	put_pod("other", "p5", "\"app\":\"web\"", "n1");
	CHECK_STR(only()->selectors.v[0].value, "pod-uid:uid-p1");
	put_pod("default", "p4", "\"app\":\"web\"", "n1"); /* labels change */
	CHECK_INT(count(), 2);
	put_pod("default", "p1", "\"app\":\"no\"", "n1");
	CHECK_STR(only()->selectors.v[0].value, "pod-uid:uid-p4");
	put_ns("other", "\"team\":\"a\"");
	CHECK_INT(count(), 2);
	gone(RECONCILE_NAMESPACE, NULL, "other");
	CHECK_INT(count(), 1);
	end();
}

/* Nodes: none yet, another uid. */
static void test_node(void)
{
	begin();
	cluster();
	sync_all();
	put_id("all", NS_SA);
	put_pod("default", "p1", "", "");
	CHECK_INT(count(), 0);
	check_stats("all", "{\"namespacesSelected\":2,\"namespacesIgnored\":1,\"podsSelected\":1,"
			   "\"podEntryRenderFailures\":1,\"entriesMasked\":0,\"entriesToSet\":0,"
			   "\"entryFailures\":0}");
	CHECK_INT(events, 0); /* a pod that waits for a node is no news */
	put_pod("default", "p1", "", "n2");
	CHECK_INT(count(), 0);
	put_node("n2");
	CHECK_STR(only()->parent_id, "spiffe://" TD "/spire/agent/k8s_psat/demo/uid-n2");
	check_stats("all", "{\"namespacesSelected\":2,\"namespacesIgnored\":1,\"podsSelected\":1,"
			   "\"podEntryRenderFailures\":0,\"entriesMasked\":0,\"entriesToSet\":1,"
			   "\"entryFailures\":0}");
	put(RECONCILE_NODE, "{\"metadata\":{\"name\":\"n2\",\"uid\":\"other\"},\"spec\":{}}");
	CHECK_STR(only()->parent_id, "spiffe://" TD "/spire/agent/k8s_psat/demo/other");
	gone(RECONCILE_NODE, NULL, "n2");
	CHECK_INT(count(), 0);
	end();
}

/* An object's change updates the entry in place; a changed id makes another one. */
static void test_update(void)
{
	AUTO(free) char *id = NULL;

	begin();
	cluster();
	sync_all();
	put_id("a", NS_SA);
	put_pod("default", "p1", "", "n1");
	id = xstrdup(only()->id);
	put_id("a", NS_SA ",\"ttl\":\"30m\",\"dnsNameTemplates\":[\"x.org\",\"x.org\"]");
	CHECK_STR(only()->id, id);
	CHECK_INT(found[0].x509_svid_ttl, 1800);
	CHECK_INT(found[0].dns_names.n, 1);
	put_id("a", "\"spiffeIDTemplate\":\"spiffe://" TD "/x\"");
	CHECK_STR(only()->spiffe_id, "spiffe://" TD "/x");
	CHECK(strcmp(found[0].id, id) != 0);
	end();
}

static void test_fallback_and_mask(void)
{
	begin();
	cluster();
	sync_all();
	put_id("fb", "\"spiffeIDTemplate\":\"spiffe://" TD "/fallback\",\"fallback\":true");
	put_pod("default", "p1", "", "n1");
	CHECK_STR(only()->spiffe_id, "spiffe://" TD "/fallback");
	put_id("main", NS_SA);
	CHECK_STR(only()->spiffe_id, "spiffe://" TD "/ns/default/sa/sa");
	/* A younger one with the same id is masked, until the older goes. */
	put_id("twin", NS_SA ",\"hint\":\"twin\"");
	CHECK_STR(only()->hint, "");
	check_stats("twin", "{\"namespacesSelected\":2,\"namespacesIgnored\":1,\"podsSelected\":1,"
			    "\"podEntryRenderFailures\":0,\"entriesMasked\":1,\"entriesToSet\":0,"
			    "\"entryFailures\":0}");
	gone(RECONCILE_ID, NULL, "main");
	CHECK_STR(only()->hint, "twin");
	gone(RECONCILE_ID, NULL, "twin");
	CHECK_STR(only()->spiffe_id, "spiffe://" TD "/fallback");
	end();
}

static void test_invalid(void)
{
	static const struct {
		const char *spec, *reason, *message;
	} rows[] = {
		{ "\"spiffeIDTemplate\":\"\"", "InvalidSpec", "empty SPIFFEID template" },
		{ "\"spiffeIDTemplate\":\"{{ .Foo\"", "InvalidSpec", "invalid SPIFFEID template" },
		{ "\"spiffeIDTemplate\":\"{{ nope }}\"", "InvalidSpec",
			"function \"nope\" not defined" },
		{ NS_SA ",\"podSelector\":{\"matchExpressions\":[{\"key\":\"a\",\"operator\":"
			"\"Is\"}]}",
			"InvalidSpec", "not a valid label selector operator" },
		{ NS_SA ",\"podSelector\":{\"matchExpressions\":[{\"key\":\"a\",\"operator\":"
			"\"In\"}]}",
			"InvalidSpec", "values set can't be empty" },
		{ NS_SA ",\"federatesWith\":[\"Bad Name\"]", "InvalidSpec",
			"invalid federatesWith value" },
		{ NS_SA ",\"ttl\":\"1x\"", "InvalidSpec", "invalid ttl value" },
		{ NS_SA ",\"dnsNameTemplates\":[\"{{\"]", "InvalidSpec",
			"invalid dnsNameTemplate value" },
		{ "\"spiffeIDTemplate\":\"spiffe://other.org/x\"", "RenderFailed",
			"expected trust domain \"" TD "\" but got \"other.org\"" },
		{ "\"spiffeIDTemplate\":\"spiffe://" TD "/{{ .PodMeta.Foo }}\"", "RenderFailed",
			"can't evaluate field Foo" },
		{ "\"spiffeIDTemplate\":\"spiffe://" TD "/spire/x\"", "RenderFailed",
			"reserved namespace" },
		{ NS_SA ",\"dnsNameTemplates\":[\"-bad-\"]", "RenderFailed", "invalid DNS name" },
		{ NS_SA ",\"workloadSelectorTemplates\":[\"k8s\"]", "RenderFailed",
			"invalid workload selector \"k8s\"" },
		{ NS_SA ",\"federatesWith\":[\"unknown.org\"]", "WriteFailed", "" },
	};

	begin();
	cluster();
	put_pod("default", "p1", "", "n1");
	sync_all();
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		int before = events;

		put_id("bad", rows[i].spec);
		CHECK_INT(count(), 0);
		check_condition("bad", rows[i].reason, rows[i].message);
		CHECK_INT(events, before + 1);
		CHECK_CONTAINS(last_event, rows[i].message);
	}
	put_id("good", "\"spiffeIDTemplate\":\"spiffe://" TD "/good\""); /* others go on */
	CHECK_INT(count(), 1);
	check_condition("good", "Applied", "");
	end();
}

/* A write that failed for want of a bundle succeeds when the bundle comes. */
static void test_retry(void)
{
	struct bundle *b = bundle_new("peer.org");

	begin();
	cluster();
	sync_all();
	put_id("a", NS_SA ",\"federatesWith\":[\"peer.org\"]");
	put_pod("default", "p1", "", "n1");
	CHECK_INT(count(), 0);
	check_condition("a", "WriteFailed", "default/p1");
	store_bundle_put(api.store, b, 0, NULL, NULL);
	settle();
	CHECK_STR(only()->federates_with.v[0], "peer.org");
	check_condition("a", "Applied", "");
	bundle_unref(b);
	end();
}

static void test_class(void)
{
	begin();
	stop_reconcile();
	options.class_name = "mine";
	start_reconcile();
	reconcile_lead(rec, true);
	cluster();
	put_pod("default", "p1", "", "n1");
	sync_all();
	put_id("none", NS_SA);
	put_id("other", NS_SA ",\"className\":\"other\"");
	CHECK_INT(count(), 0);
	CHECK(!status_of("none"));
	put_id("other", NS_SA ",\"className\":\"mine\"");
	CHECK_INT(count(), 1);
	put_id("other", NS_SA ",\"className\":\"other\"");
	CHECK_INT(count(), 0);
	stop_reconcile();
	options.watch_classless = true;
	start_reconcile();
	reconcile_lead(rec, true);
	cluster();
	put_pod("default", "p1", "", "n1");
	sync_all();
	put_id("none", NS_SA);
	CHECK_INT(count(), 1);
	end();
}

static void none(void *arg, struct store_result *r, size_t n)
{
	(void)arg;
	for (size_t i = 0; i < n; i++)
		if (r[i].code)
			TEST_FAIL("%s", r[i].message);
}

static void foreign(const char *id, const char *spiffe_id, const char *parent, const char *value)
{
	AUTO(free) char *p = xstrdup(parent);
	struct entry en = { .id = xstrdup(id),
		.spiffe_id = xstrdup(spiffe_id),
		.parent_id = xstrdup(parent),
		.hint = xstrdup("") };

	selectors_add(&en.selectors, "k8s", value);
	store_entries_create(api.store, &en, 1, none, NULL);
	settle();
	entry_deinit(&en);
}

/* What is not ours stays, what is ours and nobody wants goes, also after a restart. */
static void test_ownership(void)
{
	begin();
	cluster();
	sync_all();
	foreign("by-hand", "spiffe://" TD "/hand", "spiffe://" TD "/p", "a");
	put_id("a", NS_SA);
	put_pod("default", "p1", "", "n1");
	put_pod("default", "p2", "", "n1");
	CHECK_INT(count(), 3);
	stop_reconcile();

	start_reconcile(); /* p2 went meanwhile */
	reconcile_lead(rec, true);
	cluster();
	put_id("a", NS_SA);
	put_pod("default", "p1", "", "n1");
	CHECK_INT(count(), 3);
	sync_all();
	CHECK_INT(count(), 2);
	gone(RECONCILE_ID, NULL, "a");
	CHECK_STR(only()->id, "by-hand");
	end();
}

/* An entry of ours that an operator deletes or changes comes back. */
static void test_drift(void)
{
	const char *id;
	struct entry en;

	begin();
	cluster();
	sync_all();
	put_id("a", NS_SA);
	put_pod("default", "p1", "", "n1");
	id = only()->id;
	store_entries_delete(api.store, &id, 1, none, NULL);
	settle();
	CHECK_INT(count(), 1);
	en = entry_dup(only());
	free(en.hint);
	en.hint = xstrdup("changed");
	store_entries_update(api.store, &en, 1, ENTRY_HINT, none, NULL);
	settle();
	CHECK_STR(only()->hint, "");
	entry_deinit(&en);
	end();
}

/* What another controller made for the same pod is taken over. */
static void test_take_over(void)
{
	begin();
	cluster();
	foreign("0b9e5f5c-aaaa", "spiffe://" TD "/ns/default/sa/sa",
		"spiffe://" TD "/spire/agent/k8s_psat/demo/uid-n1", "pod-uid:uid-p1");
	put_id("a", NS_SA ",\"hint\":\"x\"");
	put_pod("default", "p1", "", "n1");
	sync_all();
	CHECK(strncmp(only()->id, "k8s.", 4) == 0);
	CHECK_STR(found[0].hint, "x");
	check_condition("a", "Applied", "");
	end();
}

static void test_cleanup(void)
{
	begin();
	stop_reconcile();
	foreign("old.1", "spiffe://" TD "/a", "spiffe://" TD "/p", "a");
	foreign("plain", "spiffe://" TD "/b", "spiffe://" TD "/p", "a");
	options.entry_id_prefix_cleanup = "old";
	start_reconcile();
	reconcile_lead(rec, true);
	sync_all();
	CHECK_STR(only()->id, "plain");
	stop_reconcile();
	options.entry_id_prefix_cleanup = "";
	start_reconcile();
	reconcile_lead(rec, true);
	sync_all();
	CHECK_INT(count(), 0);
	end();
}

/* Without the lease everything is known, and nothing written. */
static void test_lead(void)
{
	begin();
	reconcile_lead(rec, false);
	cluster();
	put_id("a", NS_SA);
	put_pod("default", "p1", "", "n1");
	sync_all();
	CHECK_INT(count(), 0);
	CHECK(!status_of("a"));
	reconcile_lead(rec, true);
	settle();
	CHECK_INT(count(), 1);
	check_condition("a", "Applied", "");
	reconcile_lead(rec, false);
	gone(RECONCILE_POD, "default", "p1");
	CHECK_INT(count(), 1);
	end();
}

/* A list anew: what is not told again is gone; nothing goes before the list has ended. */
static void test_restart(void)
{
	begin();
	cluster();
	sync_all();
	put_id("a", NS_SA);
	put_pod("default", "p1", "", "n1");
	put_pod("default", "p2", "", "n1");
	CHECK_INT(count(), 2);
	reconcile_restart(rec, RECONCILE_POD);
	put_pod("default", "p1", "", "n1");
	CHECK_INT(count(), 2);
	reconcile_synced(rec, RECONCILE_POD);
	settle();
	CHECK_STR(only()->selectors.v[0].value, "pod-uid:uid-p1");
	/* The same name, another pod. */
	put(RECONCILE_POD,
		"{\"metadata\":{\"name\":\"p1\",\"namespace\":\"default\",\"uid\":\"new\"},"
		"\"spec\":{\"serviceAccountName\":\"sa\",\"nodeName\":\"n1\"}}");
	CHECK_STR(only()->selectors.v[0].value, "pod-uid:new");
	end();
}

/* Templates that look deeper ask for the pods anew, and nothing is written until they came. */
static void test_needs(void)
{
	begin();
	cluster();
	sync_all();
	put_pod("default", "p1", "", "n1");
	put_id("a", "\"spiffeIDTemplate\":\"spiffe://" TD
		    "/{{ (index .PodSpec.Containers 0).Image }}/{{ .PodMeta.Annotations.a }}/{{ "
		    ".NodeSpec.ProviderID }}\"");
	CHECK_INT(wanted[RECONCILE_POD], 1);
	CHECK_INT(count(), 0);
	reconcile_restart(rec, RECONCILE_POD);
	put_pod("default", "p1", "", "n1");
	CHECK_INT(count(), 0);
	reconcile_synced(rec, RECONCILE_POD);
	settle();
	CHECK_STR(only()->spiffe_id, "spiffe://" TD "/img/note/p-n1");
	CHECK_INT(wanted[RECONCILE_SLICE], 0);
	end();
}

#define SLICE(name, service, uid)                                                                  \
	"{\"metadata\":{\"name\":\"" name "\",\"namespace\":\"default\",\"labels\":{"              \
	"\"kubernetes.io/service-name\":\"" service "\"}},\"endpoints\":[{\"targetRef\":{"         \
	"\"kind\":\"Pod\",\"name\":\"p1\",\"uid\":\"" uid "\"}}]}"

static void test_services(void)
{
	AUTO(free) char *names = NULL;

	begin();
	cluster();
	sync_all();
	put_id("a",
		NS_SA ",\"autoPopulateDNSNames\":true,\"dnsNameTemplates\":[\"z.org\",\"web\"]");
	CHECK_INT(wanted[RECONCILE_SLICE], 1);
	put_pod("default", "p1", "", "n1");
	CHECK_INT(count(), 0);
	put(RECONCILE_SLICE, SLICE("web-1", "web", "uid-p1"));
	reconcile_synced(rec, RECONCILE_SLICE);
	settle();
	CHECK_INT(only()->dns_names.n, 5);
	CHECK_STR(found[0].dns_names.v[0], "z.org");
	CHECK_STR(found[0].dns_names.v[1], "web");
	CHECK_STR(found[0].dns_names.v[2], "web.default");
	CHECK_STR(found[0].dns_names.v[3], "web.default.svc");
	CHECK_STR(found[0].dns_names.v[4], "web.default.svc.cluster.local");
	put(RECONCILE_SLICE, SLICE("api-1", "api", "uid-p1"));
	CHECK_INT(only()->dns_names.n, 9);
	CHECK_STR(found[0].dns_names.v[2], "api");
	put(RECONCILE_SLICE, SLICE("api-2", "api", "uid-p1")); /* a second slice of it */
	gone(RECONCILE_SLICE, "default", "api-1");
	CHECK_INT(only()->dns_names.n, 9);
	gone(RECONCILE_SLICE, "default", "api-2");
	CHECK_INT(only()->dns_names.n, 5);
	put(RECONCILE_SLICE, SLICE("web-1", "web", "uid-other"));
	CHECK_INT(only()->dns_names.n, 2);
	end();
}

/* Status: only what differs, and again when it could not be written. */
static void test_status(void)
{
	struct reconcile_status s;

	begin();
	cluster();
	sync_all();
	put(RECONCILE_ID,
		"{\"metadata\":{\"name\":\"x\",\"uid\":\"u\",\"generation\":7},\"spec\":{" NS_SA
		"}}");
	CHECK(reconcile_take_status(rec, &s));
	CHECK_STR(s.name, "x");
	CHECK_INT(json_integer_value(json_object_get(
			  json_array_get(json_object_get(s.status, "conditions"), 0),
			  "observedGeneration")),
		7);
	reconcile_return_status(rec, &s);
	reconcile_status_deinit(&s);
	CHECK(reconcile_take_status(rec, &s));
	reconcile_status_deinit(&s);
	CHECK(!reconcile_take_status(rec, &s));
	end();
}

/* 3,000 pods at once, in batches, none of which is left over; one object's change goes to all of
 * them. */
static void test_many(void)
{
	struct reconcile_stats stats;

	begin();
	cluster();
	put_id("a", NS_SA);
	for (int i = 0; i < 3000; i++) {
		AUTO(free)
		char *s =
			xasprintf("{\"metadata\":{\"name\":\"m%d\",\"namespace\":\"default\","
				  "\"uid\":\"m%d\"},"
				  "\"spec\":{\"serviceAccountName\":\"s%d\",\"nodeName\":\"n1\"}}",
				i, i, i);
		json_t *j = json_loads(s, 0, NULL);

		reconcile_put(rec, RECONCILE_POD, j);
		json_decref(j);
	}
	sync_all();
	CHECK_INT(count(), 3000);
	put_id("a", NS_SA ",\"hint\":\"x\"");
	settle();
	CHECK_INT(count(), 3000);
	CHECK_STR(found[5].hint, "x");
	reconcile_stats(rec, &stats);
	CHECK_INT(stats.created, 3000);
	CHECK_INT(stats.updated, 3000);
	CHECK_INT(stats.waiting, 0);
	CHECK_INT(stats.entries, 3000);
	end();
}

TEST_MAIN(TEST(test_pod), TEST(test_selectors), TEST(test_node), TEST(test_update),
	TEST(test_fallback_and_mask), TEST(test_invalid), TEST(test_retry), TEST(test_class),
	TEST(test_ownership), TEST(test_drift), TEST(test_take_over), TEST(test_cleanup),
	TEST(test_lead), TEST(test_restart), TEST(test_needs), TEST(test_services),
	TEST(test_status), TEST(test_many))

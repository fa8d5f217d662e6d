/* WorkloadAttestor "k8s" against a stand-in that is both kubelet and API server. Covers:
 * agent/workload_k8s.c agent/workload_k8s_namespace.c agent/workload_k8s_object.c
 * agent/workload_k8s_reference.c agent/workload_k8s_legacy.c */
#include "tests/test.h"

#include "agent/workload_k8s_internal.h"
#include "lib/crypto.h"
#include "tests/unit/kube_api.inc"

static struct loop *loop;
static struct agent_options options;
static struct workload *workload;

/* ---- the other side ---- */

static _Atomic int lists, namespaces, reviews, discoveries;
static bool denied, review_fails, kubelet_down, namespaces_fail;
static char reviewed[2000];

#define META(ns, name, uid)                                                                        \
	"\"metadata\":{\"namespace\":\"" ns "\",\"name\":\"" name "\",\"uid\":\"" uid "\""
#define LOCAL                                                                                      \
	"{" META("shop", "web", "u1") ",\"labels\":{\"app\":\"web\"}},\"spec\":{"                  \
				      "\"serviceAccountName\":\"sa\",\"nodeName\":\"n1\"}}"
#define REMOTE "{" META("far", "db", "u2") "},\"spec\":{\"nodeName\":\"n2\"}}"

static void say_review(struct api_request *rq)
{
	reviews++;
	snprintf(reviewed, sizeof(reviewed), "%s", rq->body);
	if (review_fails)
		api_status(rq, 500, "no review today");
	else
		api_say(rq, 201,
			denied ? "{\"status\":{\"allowed\":false}}"
			       : "{\"status\":{\"allowed\":true}}");
}

static const struct {
	const char *target, *json;
} answers[] = {
	{ "/api/v1/namespaces/far/pods/db", REMOTE },
	{ "/api/v1", "{\"resources\":[{\"name\":\"pods\",\"kind\":\"Pod\",\"namespaced\":true},{"
		     "\"name\":\"nodes\",\"kind\":\"Node\",\"namespaced\":false},{\"name\":"
		     "\"nodes/status\",\"kind\":\"Node\"}]}" },
	{ "/apis/apps", "{\"preferredVersion\":{\"version\":\"v2\"},\"versions\":[{\"version\":"
			"\"v2\"},{\"version\":\"v1\"}]}" },
	{ "/apis/apps/v2", "{\"resources\":[]}" },
	{ "/apis/apps/v1",
		"{\"resources\":[{\"name\":\"deployments/scale\",\"kind\":\"Scale\",\"namespaced\":"
		"true},{\"name\":\"deployments\",\"kind\":\"Deployment\",\"namespaced\":true}]}" },
	{ "/apis/apps/v1/namespaces/shop/deployments/web",
		"{" META("shop", "web", "d1") ",\"labels\":{\"app\":\"web\"},\"ownerReferences\":[{"
					      "\"apiVersion\":\"example.org/"
					      "v1\",\"kind\":\"App\",\"name\":\"a\",\"uid\":\"o1\","
					      "\"controller\":true},{\"apiVersion\":\"v1\","
					      "\"kind\":\"ConfigMap\",\"name\":\"c\","
					      "\"uid\":\"o2\"}]}}" },
	{ "/apis/apps/v1/deployments?limit=100",
		"{\"metadata\":{\"continue\":\"more/here\"},\"items\":[{" META(
			"x", "y", "d9") "}}]}" },
	{ "/apis/apps/v1/deployments?limit=100&continue=more%2Fhere",
		"{\"metadata\":{},\"items\":[{" META("shop", "web", "d1") "}}]}" },
	{ "/api/v1/nodes/n1", "{\"metadata\":{\"name\":\"n1\",\"uid\":\"nu1\"}}" },
	{ "/api/v1/pods?limit=100", "{\"metadata\":{},\"items\":[" LOCAL "," REMOTE "]}" },
};

static void handle(struct api_request *rq)
{
	if (strcmp(rq->target, "/pods") == 0) {
		lists++;
		if (kubelet_down)
			api_status(rq, 503, "down");
		else
			api_say(rq, 200, "{\"items\":[" LOCAL "]}");
		return;
	}
	if (strcmp(rq->target, "/api/v1/namespaces/shop") == 0) {
		namespaces++;
		if (namespaces_fail)
			api_status(rq, 403, "no namespaces for you");
		else
			api_say(rq, 200,
				"{\"metadata\":{\"name\":\"shop\",\"labels\":{\"team\":"
				"\"a\",\"tier\":\"\"}}}");
		return;
	}
	if (strcmp(rq->target, "/apis/authorization.k8s.io/v1/subjectaccessreviews") == 0) {
		say_review(rq);
		return;
	}
	discoveries += strcmp(rq->target, "/apis/apps") == 0;
	for (size_t i = 0; i < ARRAY_LEN(answers); i++)
		if (strcmp(rq->target, answers[i].target) == 0) {
			api_say(rq, 200, answers[i].json);
			return;
		}
	api_status(rq, 404, "there is no such thing");
}

/* ---- our side ---- */

static char enforced[] = "enforced", permissive[] = "permissive";
static char near_id[] = "spiffe://example.org/near", far_id[] = "spiffe://example.org/far";
static struct k8s_broker brokers[] = { { .id = near_id }, { .id = far_id, .cluster_scope = true } };

static void begin(void)
{
	AUTO(free) char *path = NULL;
	struct err e = ERR_INIT;

	crypto_init();
	api_begin(0, handle);
	path = api_kubeconfig("kubeconfig", "token: t");
	setenv("KUBECONFIG", path, 1);
	loop = loop_new();
	options = (struct agent_options){ .k8s = { .on = true,
						  .kubelet_read_only_port = api.port,
						  .poll_retry_interval_ns = 300 * NS_PER_MS,
						  .reload_interval_ns = NS_PER_SEC,
						  .max_poll_attempts = 2,
						  .use_new_container_locator = true,
						  .has_broker = true,
						  .broker_access_policy = permissive,
						  .brokers = brokers,
						  .n_brokers = ARRAY_LEN(brokers) } };
	CHECK_OK(workload_new(loop, &options, &workload, &e));
}

static void reopen(void)
{
	struct err e = ERR_INIT;

	workload_free(workload);
	CHECK_OK(workload_new(loop, &options, &workload, &e));
}

static void end(void)
{
	workload_free(workload);
	loop_drain(loop);
	loop_run(loop);
	loop_free(loop);
	api_end();
}

static struct selectors got;
static struct err got_err;
static bool done;

static void on_done(void *arg, const struct selectors *s, const struct err *e)
{
	(void)arg;
	CHECK(!done);
	done = true;
	selectors_deinit(&got);
	got = selectors_dup(s);
	got_err = *e;
	loop_stop(loop);
}

static void until_done(void)
{
	while (!done)
		loop_run(loop);
}

static void refer(const char *broker, const struct k8s_reference *r)
{
	done = false;
	k8s_attest_object(workload, broker, r, on_done, NULL);
	CHECK(!done);
	until_done();
}

static bool has(const char *value)
{
	for (size_t i = 0; i < got.n; i++)
		if (strcmp(got.v[i].value, value) == 0 && strcmp(got.v[i].type, "k8s") == 0)
			return true;
	return false;
}

static void expect_err(int code, const char *msg)
{
	if (got_err.code != code)
		TEST_FAIL("%s, not %s: %s", err_code_name(got_err.code), err_code_name(code),
			got_err.msg);
	CHECK_CONTAINS(got_err.msg, msg);
	CHECK_INT(got.n, 0);
}

#define POD .has_type = true, .plural = "pods", .group = "core"
#define DEPLOYMENT .has_type = true, .plural = "deployments", .group = "apps"
#define KEY(ns, n) .has_key = true, .namespace = ns, .name = n

static void test_validation(void)
{
	static const struct {
		struct k8s_reference r;
		const char *msg;
	} bad[] = {
		{ { .uid = "u" }, "object reference is missing type" },
		{ { .has_type = true, .group = "core" },
			"object reference type is missing plural" },
		{ { .has_type = true, .plural = "pods" },
			"object reference type is missing group" },
		{ { POD }, "object reference is missing key and UID" },
		{ { POD, KEY("shop", "") }, "object reference key is missing name" },
		{ { POD, .uid = "u", KEY("shop", NULL) }, "object reference key is missing name" },
		{ { POD, KEY("", "web") },
			"namespace is required when name is set for a namespaced resource" },
		{ { DEPLOYMENT, KEY("", "web") },
			"namespace is required when name is set for a namespaced resource" },
		{ { .has_type = true, .plural = "nodes", .group = "core", KEY("x", "n1") },
			"namespace must be empty for cluster-scoped resource" },
		{ { .has_type = true, .plural = "things", .group = "apps", KEY("x", "n1") },
			"unknown Kubernetes resource things.apps: no matches for apps/, "
			"Resource=things" },
		{ { .has_type = true, .plural = "x", .group = "nowhere", KEY("x", "n1") },
			"unknown Kubernetes resource x.nowhere: no matches for nowhere/, "
			"Resource=x" },
		{ { .has_type = true, .plural = "nodes/status", .group = "core", KEY("", "n") },
			"unknown Kubernetes resource nodes/status.core: no matches for /, " },
	};

	begin();
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		refer(far_id, &bad[i].r);
		expect_err(ERR_INVALID, bad[i].msg);
	}
	refer("spiffe://example.org/other", &(struct k8s_reference){ POD, .uid = "u1" });
	expect_err(ERR_DENIED, "broker \"spiffe://example.org/other\" is not configured");
	options.k8s.has_broker = false;
	refer(far_id, &(struct k8s_reference){ POD, .uid = "u1" });
	expect_err(ERR_INTERNAL, "broker configuration missing");
	end();
}

static void test_local_pods(void)
{
	begin();
	refer(near_id, &(struct k8s_reference){ POD, KEY("shop", "web") });
	CHECK_INT(got_err.code, 0);
	CHECK(has("pod-name:web") && has("ns:shop") && has("sa:sa") && has("pod-label:app:web"));
	CHECK(!has("kind:Pod"));
	refer(near_id, &(struct k8s_reference){ POD, .uid = "u1" });
	CHECK(has("pod-uid:u1"));
	refer(near_id, &(struct k8s_reference){ POD, .uid = "u1", KEY("shop", "web") });
	CHECK(has("pod-uid:u1"));
	refer(near_id, &(struct k8s_reference){ POD, .uid = "u7", KEY("shop", "web") });
	expect_err(ERR_NOT_FOUND, "pod shop/web has UID u1, expected u7");
	CHECK(lists <= 2);
	refer(near_id, &(struct k8s_reference){ POD, KEY("far", "db") });
	expect_err(ERR_NOT_FOUND, "pod far/db not found on agent node");
	refer(near_id, &(struct k8s_reference){ POD, .uid = "u2" });
	expect_err(ERR_NOT_FOUND, "pod with UID u2 not found on agent node");
	kubelet_down = true;
	usleep(350000);
	refer(near_id, &(struct k8s_reference){ POD, .uid = "u1" });
	expect_err(ERR_UNAVAILABLE, "unexpected status code on pods response: 503");
	end();
}

static void test_remote_pods(void)
{
	begin();
	refer(far_id, &(struct k8s_reference){ POD, KEY("far", "db") });
	CHECK_INT(got_err.code, 0);
	CHECK(has("pod-name:db") && has("node-name:n2"));
	refer(far_id, &(struct k8s_reference){ POD, .uid = "u2" });
	CHECK(has("pod-uid:u2"));
	refer(far_id, &(struct k8s_reference){ POD, KEY("far", "none") });
	expect_err(ERR_NOT_FOUND, "pod far/none not found");
	refer(far_id, &(struct k8s_reference){ POD, .uid = "u3" });
	expect_err(ERR_NOT_FOUND, "Pod with UID u3 not found");
	refer(far_id, &(struct k8s_reference){ POD, .uid = "u3", KEY("far", "db") });
	expect_err(ERR_NOT_FOUND, "pod far/db has UID u2, expected u3");
	/* No kubelet is no hindrance. */
	kubelet_down = true;
	usleep(350000);
	refer(far_id, &(struct k8s_reference){ POD, KEY("far", "db") });
	CHECK(has("pod-name:db"));
	options.k8s.disable_kubelet_client = true;
	reopen();
	refer(far_id, &(struct k8s_reference){ POD, .uid = "u2" });
	CHECK(has("pod-uid:u2"));
	refer(near_id, &(struct k8s_reference){ POD, .uid = "u2" });
	expect_err(ERR_PRECONDITION, "kubelet client is disabled");
	end();
}

static void test_objects(void)
{
	static const char *const want[] = { "uid:d1", "resource:deployments.apps",
		"plural:deployments", "group:apps", "version:v1", "apiVersion:apps/v1",
		"kind:Deployment", "name:web", "namespace:shop", "key:shop/web", "label:app:web",
		"owner-key:example.org/App/a", "owner-uid:example.org/App/o1",
		"controller-key:example.org/App/a", "controller-uid:example.org/App/o1",
		"owner-key:core/ConfigMap/c", "owner-uid:core/ConfigMap/o2" };
	static const char *const of_node[] = { "uid:nu1", "resource:nodes.core", "plural:nodes",
		"group:core", "version:v1", "apiVersion:v1", "kind:Node", "name:n1", "key:n1" };

	begin();
	refer(near_id, &(struct k8s_reference){ DEPLOYMENT, KEY("shop", "web") });
	CHECK_INT(got_err.code, 0);
	for (size_t i = 0; i < ARRAY_LEN(want); i++)
		if (!has(want[i]))
			TEST_FAIL("no %s", want[i]);
	CHECK_INT(got.n, ARRAY_LEN(want));
	refer(near_id, &(struct k8s_reference){ DEPLOYMENT, .uid = "d1" });
	CHECK(has("key:shop/web"));
	CHECK_INT(discoveries, 1);
	refer(near_id, &(struct k8s_reference){ DEPLOYMENT, .uid = "d2" });
	expect_err(ERR_NOT_FOUND, "Deployment with UID d2 not found");
	refer(near_id, &(struct k8s_reference){ DEPLOYMENT, KEY("shop", "x") });
	expect_err(ERR_NOT_FOUND, "Deployment shop/x not found");
	refer(near_id, &(struct k8s_reference){ DEPLOYMENT, .uid = "d2", KEY("shop", "web") });
	expect_err(ERR_NOT_FOUND, "deployments.apps shop/web has UID d1, expected d2");
	refer(near_id,
		&(struct k8s_reference){
			.has_type = true, .plural = "nodes", .group = "core", KEY("", "n1") });
	for (size_t i = 0; i < ARRAY_LEN(of_node); i++)
		if (!has(of_node[i]))
			TEST_FAIL("no %s", of_node[i]);
	CHECK_INT(got.n, ARRAY_LEN(of_node));
	end();
}

static void test_review(void)
{
	struct selectors none = { 0 }, some = { 0 };

	selectors_add(&some, "k8s", "ns:shop");
	selectors_add(&some, "k8s", "pod-name:web");
	selectors_add(&some, "k8s", "pod-uid:u1");
	begin();
	options.k8s.broker_access_policy = enforced;
	refer(near_id, &(struct k8s_reference){ POD, .uid = "u1" });
	CHECK_INT(got_err.code, 0);
	CHECK_INT(reviews, 1);
	CHECK_CONTAINS(reviewed, "\"user\":\"spiffe://example.org/near\"");
	CHECK_CONTAINS(reviewed, "\"verb\":\"impersonate-via-spire\"");
	CHECK_CONTAINS(reviewed, "\"resource\":\"pods\"");
	CHECK_CONTAINS(reviewed, "\"group\":\"\"");
	CHECK_CONTAINS(reviewed, "\"namespace\":\"shop\"");
	CHECK_CONTAINS(reviewed, "\"name\":\"web\"");
	refer(near_id, &(struct k8s_reference){ DEPLOYMENT, .uid = "d1" });
	CHECK_CONTAINS(reviewed, "\"group\":\"apps\"");
	denied = true;
	refer(near_id, &(struct k8s_reference){ POD, .uid = "u1" });
	expect_err(ERR_DENIED, "Kubernetes authorizer does not allow the broker to use "
			       "impersonate-via-spire for the referenced object");
	/* a process that was attested */
	done = false;
	k8s_review_process(workload, near_id, &some, on_done, NULL);
	until_done();
	expect_err(ERR_DENIED, "impersonate-via-spire");
	done = false;
	k8s_review_process(workload, near_id, &none, on_done, NULL);
	until_done();
	CHECK_INT(got_err.code, 0); /* in no pod */
	done = false;
	k8s_review_process(workload, "spiffe://x/y", &none, on_done, NULL);
	until_done();
	expect_err(ERR_DENIED, "is not configured");
	denied = false;
	review_fails = true;
	refer(near_id, &(struct k8s_reference){ POD, .uid = "u1" });
	expect_err(ERR_INTERNAL, "unable to check Kubernetes authorization for broker: ");
	options.k8s.broker_access_policy = permissive;
	done = false;
	k8s_review_process(workload, near_id, &some, on_done, NULL);
	until_done();
	CHECK_INT(got_err.code, 0);
	CHECK_INT(got.n, 3);
	selectors_deinit(&some);
	end();
}

static void test_namespace_labels(void)
{
	begin();
	options.k8s.enable_namespace_labels = true;
	refer(near_id, &(struct k8s_reference){ POD, .uid = "u1" });
	CHECK_INT(got_err.code, 0);
	CHECK(has("ns-label:team:a") && has("ns-label:tier:"));
	refer(near_id, &(struct k8s_reference){ DEPLOYMENT, .uid = "d1" });
	CHECK(has("ns-label:team:a"));
	CHECK_INT(namespaces, 1);
	namespaces_fail = true;
	usleep(350000);
	refer(near_id, &(struct k8s_reference){ POD, .uid = "u1" });
	expect_err(ERR_INTERNAL, "unable to get namespace labels for \"shop\": unable to get "
				 "namespace \"shop\": no namespaces for you");
	setenv("KUBECONFIG", "/nowhere", 1);
	reopen();
	refer(near_id, &(struct k8s_reference){ POD, .uid = "u1" });
	expect_err(ERR_INTERNAL, "unable to get namespace labels for \"shop\": unable to set up "
				 "kube client: unable to load Kubernetes client config: ");
	end();
}

static void test_cancel(void)
{
	begin();
	options.k8s.enable_namespace_labels = true;
	options.k8s.broker_access_policy = enforced;
	for (int ms = 0; ms < 30; ms += 3) {
		struct k8s_reference r = { DEPLOYMENT, .uid = "d1" };
		struct k8s_reference_op *op =
			k8s_attest_object(workload, far_id, &r, on_done, NULL);
		struct k8s_reference p = { POD, .uid = "u1" };
		struct k8s_reference_op *pop =
			k8s_attest_object(workload, far_id, &p, on_done, NULL);
		struct k8s_reference q = { POD, KEY("far", "db") };

		k8s_reference_cancel(op);
		k8s_reference_cancel(pop);
		done = false;
		k8s_attest_object(workload, far_id, &q, on_done, NULL);
		until_done();
		usleep((unsigned)ms * 1000);
	}
	k8s_reference_cancel(NULL);
	/* The agent's end is theirs. */
	done = false;
	k8s_attest_object(workload, far_id, &(struct k8s_reference){ DEPLOYMENT, .uid = "d1" },
		on_done, NULL);
	workload_stop(workload);
	until_done();
	expect_err(ERR_UNAVAILABLE, "the agent is stopping");
	refer(far_id, &(struct k8s_reference){ POD, .uid = "u1" });
	CHECK_INT(got_err.code, ERR_INTERNAL);
	CHECK_CONTAINS(got_err.msg, "the agent is stopping");
	refer(near_id, &(struct k8s_reference){ POD, .uid = "u1" });
	expect_err(ERR_UNAVAILABLE, "the agent is stopping");
	loop_run(loop); /* nothing keeps it going */
	end();
}

static struct attestation seen;
static void attested(void *arg, const struct attestation *a)
{
	(void)arg;
	seen.err = a->err;
	seen.n_findings = a->n_findings;
	CHECK_INT(a->selectors.n, 0);
	done = true;
	loop_stop(loop);
}

/* A process in no pod has nothing, and nobody is asked. */
static void test_no_pod(void)
{
	begin();
	done = false;
	workload_attest(workload, NULL, getpid(), false, attested, NULL);
	until_done();
	CHECK_INT(seen.err.code, 0);
	CHECK_INT(seen.n_findings, 1);
	CHECK_INT(lists, 0);
	options.k8s.disable_kubelet_client = true;
	reopen();
	done = false;
	workload_attest(workload, NULL, getpid(), false, attested, NULL);
	until_done();
	CHECK_INT(seen.err.code, ERR_PRECONDITION);
	CHECK_CONTAINS(seen.err.msg, "kubelet client is disabled");
	end();
}

#define ID "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define ID2 "f123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define POD_UID "2c48913c-b29f-11e7-9350-020968147796"

static void test_legacy_locator(void)
{
	static const struct {
		const char *path, *id, *uid;
	} paths[] = {
		{ "/", "", "" },
		{ "/docker/" ID, "", "" },
		{ "/user.slice/user-1000.slice/session-1.scope", "", "" },
		{ "/kubepods/burstable/pod" POD_UID "/" ID, ID, POD_UID },
		{ "/docker/" ID2 "/kubepods/besteffort/pod" POD_UID "/" ID, ID, POD_UID },
		{ "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" POD_UID
		  ".slice/docker-" ID ".scope",
			ID, POD_UID },
		{ "/kubepods-besteffort-pod2c48913c_b29f_11e7_9350_020968147796.slice:cri-"
		  "containerd:" ID,
			ID, POD_UID },
		{ "/../../pod" POD_UID "/" ID, ID, POD_UID },
		{ "/kubepods/pod2c48913cb29f11e79350020968147796/" ID, ID,
			"2c48913cb29f11e79350020968147796" },
		{ "/../crio-" ID ".scope", ID, "" },
		{ "/kubepods/pod" POD_UID "/crio-" ID ".scope", ID, POD_UID },
		{ "/kubepods/pod" POD_UID "/" ID "0", "", "" },
		{ "/kubepods/pod" POD_UID "//" ID, "", "" },
		{ "/kubepods/pod" POD_UID ID, "", "" },
		{ "/kubepods/xpod" POD_UID "/" ID, "", "" },
		{ "/kubepods/pod" POD_UID "/" ID "/nested", "", "" },
		{ "/kubepods/pod" POD_UID, "", "" },
	};
	struct container c;
	struct err e;

	for (size_t i = 0; i < ARRAY_LEN(paths); i++) {
		AUTO(free) char *text = xasprintf("4:pids:/\n0::%s\n", paths[i].path);

		CHECK_OK(k8s_legacy_from_cgroup(bytes_str(text), &c, &e));
		CHECK_STR(c.id, paths[i].id);
		CHECK_STR(c.pod_uid, paths[i].uid);
	}
	CHECK_ERR(k8s_legacy_from_cgroup(
			  bytes_str("2:a:/pod" POD_UID "/" ID "\n1:b:/pod" POD_UID "/" ID2 "\n"),
			  &c, &e),
		ERR_PRECONDITION);
	CHECK_STR(e.msg, "multiple container IDs found in cgroups (" ID ", " ID2 ")");
	CHECK_ERR(k8s_legacy_from_cgroup(
			  bytes_str("2:a:/pod" POD_UID "/" ID "\n1:b:/crio-" ID "\n"), &c, &e),
		ERR_PRECONDITION);
	CHECK_STR(e.msg, "multiple pod UIDs found in cgroups (" POD_UID ", )");
	CHECK_ERR(k8s_legacy_from_cgroup(bytes_str("nonsense\n"), &c, &e), ERR_INTERNAL);
	CHECK_CONTAINS(e.msg, "unable to obtain cgroups: ");
}

TEST_MAIN(TEST(test_legacy_locator), TEST(test_validation), TEST(test_local_pods),
	TEST(test_remote_pods), TEST(test_objects), TEST(test_review), TEST(test_namespace_labels),
	TEST(test_cancel), TEST(test_no_pod))

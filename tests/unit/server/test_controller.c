/* Covers: server/controller.c server/controller_lease.c server/controller_static.c
 * server/options_controller.c
 * The controller and leader election against a stand-in for the API server. */
#include "tests/test.h"

#include <sys/stat.h>

#include "server/controller.h"

#include "lib/crypto.h"
#include "lib/map.h"
#include "server/controller_lease.h"
#include "server/federation.h"
#include "server/store.h"

/* Its name is taken there. */
#define api stand_in
#include "tests/unit/kube_api.inc"
#undef api

#define TD "example.org"

static struct api parts;
static struct controller *controller;
static struct server_options options;
static struct err e;

/* What the stand-in holds and was told; under its lock. */
static char pods[8192], ids[8192];
static int watches, missing;
static struct buf statuses = { .max = 1 << 20 }, events = { .max = 1 << 20 };

static void copy_text(char *to, size_t size, const char *s)
{
	pthread_mutex_lock(&stand_in.lock);
	snprintf(to, size, "%s", s);
	pthread_mutex_unlock(&stand_in.lock);
}

static void list(struct api_request *rq, const char *items)
{
	AUTO(free)
	char *s = xasprintf("{\"kind\":\"List\",\"metadata\":{\"resourceVersion\":\"5\"},"
			    "\"items\":[%s]}",
		items);

	api_say(rq, 200, s);
}

static void handle(struct api_request *rq)
{
	const char *t = rq->target;

	if (strcmp(rq->method, "PATCH") == 0 && strstr(t, "/status")) {
		buf_printf(&statuses, "%s %s\n", t, rq->body);
		api_say(rq, 200, "{}");
	} else if (strcmp(rq->method, "POST") == 0 && strstr(t, "/events")) {
		buf_printf(&events, "%s\n", rq->body);
		api_say(rq, 201, "{}");
	} else if (strstr(t, "watch=")) {
		watches++;
		api_stream(rq);
		/* An open watch: nothing happens. */
		api_keep(rq);
	} else if (strstr(t, "clusterspiffeids")) {
		if (missing)
			api_status(rq, 404, "not here");
		else
			list(rq, ids);
	} else if (strstr(t, "/pods")) {
		list(rq, pods);
	} else if (strstr(t, "/nodes")) {
		list(rq, "{\"metadata\":{\"name\":\"n1\",\"uid\":\"nu\",\"resourceVersion\":\"1\"},"
			 "\"spec\":{}}");
	} else if (strstr(t, "/namespaces")) {
		list(rq, "{\"metadata\":{\"name\":\"default\",\"uid\":\"du\","
			 "\"resourceVersion\":\"1\"}}");
	} else {
		list(rq, "");
	}
}

static void on_entry(void *arg, uint64_t change, const char *id, const struct entry *en)
{
	(void)arg;
	entries_set_change(parts.entries, change);
	if (en)
		entries_put(parts.entries, en);
	else
		entries_remove(parts.entries, id);
	if (controller)
		controller_entry(controller, id, en);
}

static void on_node(void *arg, uint64_t change, const char *id, const struct node *n)
{
	(void)arg;
	(void)change;
	(void)id;
	(void)n;
}

static void on_bundle(void *arg, uint64_t change, const char *td, struct bundle *b)
{
	(void)arg;
	(void)change;
	api_bundle_changed(&parts, td, b);
	if (controller)
		controller_bundle(controller);
}

static void on_relationship(
	void *arg, uint64_t change, const char *td, const struct relationship *r)
{
	(void)arg;
	(void)change;
	federation_changed(parts.federation, td, r);
	if (controller)
		controller_relationship(controller);
}

/* ---- the loop, until something is so ---- */

static bool (*awaited)(void);
static struct loop_timer *poll_timer;
static int polls;

static void on_poll(void *arg)
{
	(void)arg;
	if (awaited() || ++polls > 2000)
		loop_stop(parts.loop);
	else
		loop_timer_set(poll_timer, 10 * NS_PER_MS);
}

static void until(bool (*fn)(void))
{
	awaited = fn;
	polls = 0;
	loop_timer_set(poll_timer, 0);
	loop_run(parts.loop);
	CHECK(fn());
}

static bool told(const struct buf *b, const char *text)
{
	bool ret;

	pthread_mutex_lock(&stand_in.lock);
	ret = b->len && strstr(buf_cstr(b), text) != NULL;
	pthread_mutex_unlock(&stand_in.lock);
	return ret;
}

/* ---- begin and end ---- */

static void open_store(void)
{
	struct store_observer o = { .entry = on_entry,
		.node = on_node,
		.bundle = on_bundle,
		.relationship = on_relationship };
	AUTO(free) char *file = xasprintf("%s/store.db", test_dir());

	crypto_init();
	parts.loop = loop_new();
	parts.trust_domain = TD;
	parts.bundles = map_new();
	parts.entries = entries_new(TD, false);
	parts.federation = federation_new(&parts);
	poll_timer = loop_timer_new(parts.loop, on_poll, NULL);
	CHECK_OK(store_open(parts.loop, file, &o, &parts.store, &e));
	CHECK_OK(store_load(parts.store, &e));
}

static char name[] = "demo", domain[] = "cluster.local", prefix[] = "k8s", lease_name[] = "l";

static void begin(void)
{
	open_store();
	api_begin(0, handle);
	options.controller = (struct server_controller){ .enabled = true,
		.kubeconfig_path = api_kubeconfig("kubeconfig", ""),
		.cluster_name = name,
		.cluster_domain = domain,
		.entry_id_prefix = prefix,
		.gc_interval_ns = NS_PER_SEC,
		.spiffe_ids = true,
		.static_entries = true,
		.federated = true,
		.lease_name = lease_name };
	CHECK_OK(controller_new(&options, &parts, &controller, &e));
	controller_start(controller);
}

static bool stopped_flag;

static void on_stopped(void *arg)
{
	(void)arg;
	stopped_flag = true;
}

static bool stopped(void)
{
	return stopped_flag;
}

static void end(void)
{
	struct bytes key;
	void *b;

	controller_stop(controller, on_stopped, NULL);
	until(stopped);
	loop_drain(parts.loop);
	controller_free(controller);
	controller = NULL;
	loop_timer_free(poll_timer);
	federation_stop(parts.federation);
	federation_free(parts.federation);
	store_close(parts.store);
	loop_drain(parts.loop);
	loop_run(parts.loop);
	for (size_t i = 0; map_next(parts.bundles, &i, &key, &b);)
		bundle_unref(b);
	map_free(parts.bundles);
	entries_free(parts.entries);
	loop_free(parts.loop);
	api_end();
	free(options.controller.kubeconfig_path);
	buf_deinit(&statuses);
	buf_deinit(&events);
}

/* ---- tests ---- */

#define POD(n)                                                                                     \
	"{\"metadata\":{\"name\":\"" n "\",\"namespace\":\"default\",\"uid\":\"u-" n               \
	"\",\"resourceVersion\":\"2\"},\"spec\":{\"nodeName\":\"n1\",\"serviceAccountName\":"      \
	"\"sa\",\"containers\":[{\"image\":\"img\"}]}}"
#define ID(n, template)                                                                            \
	"{\"metadata\":{\"name\":\"" n "\",\"uid\":\"i-" n                                         \
	"\",\"generation\":1,\"resourceVersion\":\"3\"},\"spec\":{\"spiffeIDTemplate\":"           \
	"\"" template "\"}}"

static bool has_entry(void)
{
	return entries_count(parts.entries) == 1;
}

static bool has_status(void)
{
	return told(&statuses, "/clusterspiffeids/a/status") &&
	       told(&statuses, "\"entriesToSet\":1") && told(&statuses, "\"uid\":\"i-a\"");
}

/* Pods are listed once, though the template looks into their containers: objects are known first.
 */
static void test_watch(void)
{
	copy_text(pods, sizeof(pods), POD("p1"));
	copy_text(ids, sizeof(ids),
		ID("a", "spiffe://" TD "/{{ (index .PodSpec.Containers 0).Image }}"));
	begin();
	until(has_entry);
	until(has_status);
	end();
}

static bool has_event(void)
{
	return told(&events, "RenderFailed") && told(&events, "\"kind\":\"ClusterSPIFFEID\"") &&
	       told(&events, "expected trust domain") && told(&statuses, "\"status\":\"False\"");
}

static void test_event(void)
{
	copy_text(pods, sizeof(pods), POD("p1"));
	copy_text(ids, sizeof(ids), ID("a", "spiffe://other.org/x"));
	begin();
	until(has_event);
	CHECK_INT(entries_count(parts.entries), 0);
	end();
}

/* Without the CRDs nothing is written, and it goes on when they come. */
static bool waited(void)
{
	return polls > 30;
}

static void test_no_crd(void)
{
	copy_text(pods, sizeof(pods), POD("p1"));
	copy_text(ids, sizeof(ids), ID("a", "spiffe://" TD "/x"));
	missing = 1;
	begin();
	until(waited);
	CHECK_INT(entries_count(parts.entries), 0);
	pthread_mutex_lock(&stand_in.lock);
	missing = 0;
	pthread_mutex_unlock(&stand_in.lock);
	until(has_entry);
	until(has_status);
	end();
}

static void test_no_config(void)
{
	char path[] = "/no/such/file";

	open_store();
	options.controller = (struct server_controller){ .enabled = true,
		.kubeconfig_path = path,
		.entry_id_prefix = prefix,
		.cluster_name = name };
	CHECK_ERR(controller_new(&options, &parts, &controller, &e), ERR_NOT_FOUND);
	CHECK_CONTAINS(e.msg, path);
	exit(0);
}

/* ---- without a cluster ---- */

static void write_manifest(const char *file, const char *text)
{
	AUTO(free) char *path = xasprintf("%s/manifests/%s", test_dir(), file);

	if (text)
		write_text(path, text);
	else
		unlink(path);
}

static bool has_two(void)
{
	return entries_count(parts.entries) == 2;
}

static bool has_relationship(void)
{
	return federation_get(parts.federation, "peer.org") != NULL;
}

#define STATIC(name, path, more)                                                                   \
	"apiVersion: spire.spiffe.io/v1alpha1\nkind: ClusterStaticEntry\nmetadata: {name: " name   \
	"}\nspec:\n  spiffeID: spiffe://" TD path "\n  parentID: spiffe://" TD                     \
	"/spire/server\n  selectors: [\"a:b\"]\n" more

static void test_static(void)
{
	AUTO(free) char *path = xasprintf("%s/manifests", test_dir());

	CHECK(mkdir(path, 0700) == 0);
	write_manifest("a.yaml", STATIC("a", "/a", ""));
	write_manifest("b.yaml", STATIC("b", "/${NAME_OF_B}", "  x509SVIDTTL: 1h\n"));
	write_manifest("other.yaml", "apiVersion: v1\nkind: ConfigMap\n");
	write_manifest("readme.txt", "{");
	setenv("NAME_OF_B", "b", 1);
	open_store();
	options.controller = (struct server_controller){ .enabled = true,
		.cluster_name = name,
		.cluster_domain = domain,
		.entry_id_prefix = prefix,
		.gc_interval_ns = 20 * NS_PER_MS,
		.static_entries = true,
		.federated = true,
		.static_path = path,
		.static_expand_env = true };
	CHECK_OK(controller_new(&options, &parts, &controller, &e));
	controller_start(controller);
	until(has_two);
	/* A file that cannot be read stops all changes. */
	write_manifest("a.yaml", NULL);
	write_manifest("bad.yaml", "{");
	until(waited);
	CHECK(has_two());
	write_manifest("bad.yaml", NULL);
	until(has_entry);
	write_manifest("peer.yaml",
		"apiVersion: spire.spiffe.io/v1alpha1\nkind: ClusterFederatedTrustDomain\n"
		"metadata: {name: p}\nspec: {trustDomain: peer.org, bundleEndpointURL: "
		"\"https://127.0.0.1:1/\", bundleEndpointProfile: {type: https_web}}\n");
	until(has_relationship);
	write_manifest("b.yaml", NULL);
	write_manifest("peer.yaml", NULL);
	write_manifest("other.yaml", NULL);
	write_manifest("readme.txt", NULL);
	until(waited);
	CHECK_INT(entries_count(parts.entries), 0);
	CHECK(!has_relationship());
	rmdir(path);
	api_begin(0, handle); /* which end() ends */
	end();
}

/* ---- leases ---- */

static json_t *lease_object; /* of the stand-in */
static int lease_version, puts_;
static bool deaf; /* the API server answers nothing good */

static void handle_lease(struct api_request *rq)
{
	json_t *j = *rq->body ? json_loads(rq->body, 0, NULL) : NULL;
	const char *have = json_string_value(
		json_object_get(json_object_get(lease_object, "metadata"), "resourceVersion"));
	const char *given = json_string_value(
		json_object_get(json_object_get(j, "metadata"), "resourceVersion"));

	if (deaf) {
		api_status(rq, 500, "deaf");
	} else if (strcmp(rq->method, "GET") == 0) {
		if (!lease_object) {
			api_status(rq, 404, "no lease");
		} else {
			AUTO(free) char *s = json_dumps(lease_object, 0);

			api_say(rq, 200, s);
		}
	} else if (strcmp(rq->method, "POST") == 0 && lease_object) {
		api_status(rq, 409, "already exists");
	} else if (strcmp(rq->method, "PUT") == 0 && (!given || !have || strcmp(given, have))) {
		api_status(rq, 409, "conflict");
	} else {
		AUTO(free) char *version = xasprintf("%d", ++lease_version);
		AUTO(free) char *s = NULL;

		puts_++;
		json_decref(lease_object);
		lease_object = json_incref(j);
		json_object_set_new(json_object_get(lease_object, "metadata"), "resourceVersion",
			json_string(version));
		s = json_dumps(lease_object, 0);
		api_say(rq, 200, s);
	}
	json_decref(j);
}

static struct kube *kube;
static struct lease *one, *two;
static int changes;

static void on_changed(void *arg, bool leading)
{
	(void)arg;
	(void)leading;
	changes++;
}

static struct lease *make_lease(const char *identity)
{
	struct lease_options o = { .loop = parts.loop,
		.kube = kube,
		.namespace = "ns",
		.name = "l",
		.identity = identity,
		.duration_ns = NS_PER_SEC,
		.renew_deadline_ns = 600 * NS_PER_MS,
		.retry_ns = 50 * NS_PER_MS,
		.changed = on_changed };

	return lease_new(&o);
}

static void begin_lease(void)
{
	AUTO(free) char *path = NULL;
	struct kube_options o = { 0 };

	api_begin(0, handle_lease);
	path = api_kubeconfig("kubeconfig", "");
	o.kubeconfig = path;
	crypto_init();
	parts.loop = loop_new();
	poll_timer = loop_timer_new(parts.loop, on_poll, NULL);
	CHECK_OK(kube_new(parts.loop, &o, &kube, &e));
}

static void end_lease(void)
{
	lease_free(one);
	lease_free(two);
	kube_free(kube);
	loop_timer_free(poll_timer);
	loop_run(parts.loop);
	loop_free(parts.loop);
	api_end();
	json_decref(lease_object);
}

static bool one_leads(void)
{
	return lease_leading(one);
}

static bool two_leads(void)
{
	return lease_leading(two);
}

static bool one_lost(void)
{
	return !lease_leading(one);
}

static bool renewed_often(void)
{
	return puts_ >= 5;
}

static void test_lease(void)
{
	begin_lease();
	one = make_lease("one");
	until(one_leads);
	two = make_lease("two");
	until(renewed_often);
	CHECK(one_leads() && !two_leads());
	CHECK_STR(json_string_value(
			  json_object_get(json_object_get(lease_object, "spec"), "holderIdentity")),
		"one");
	CHECK_INT(json_integer_value(json_object_get(
			  json_object_get(lease_object, "spec"), "leaseDurationSeconds")),
		1);
	/* Given back: the other need not wait. */
	lease_release(one, on_stopped, NULL);
	CHECK(!one_leads());
	until(stopped);
	until(two_leads);
	CHECK_INT(json_integer_value(json_object_get(
			  json_object_get(lease_object, "spec"), "leaseTransitions")),
		1);
	end_lease();
}

/* Who cannot renew stops by himself; nobody takes it who has not waited for its whole time. */
static void test_lease_lost(void)
{
	begin_lease();
	one = make_lease("one");
	until(one_leads);
	pthread_mutex_lock(&stand_in.lock);
	deaf = true;
	pthread_mutex_unlock(&stand_in.lock);
	until(one_lost);
	pthread_mutex_lock(&stand_in.lock);
	deaf = false;
	pthread_mutex_unlock(&stand_in.lock);
	lease_free(one); /* as if it was killed */
	one = NULL;
	two = make_lease("two");
	until(two_leads);
	one = make_lease("three");
	until(renewed_often);
	CHECK(!one_leads() && two_leads());
	/* Somebody writes over it. */
	pthread_mutex_lock(&stand_in.lock);
	json_object_set_new(
		json_object_get(lease_object, "spec"), "holderIdentity", json_string("other"));
	json_object_set_new(
		json_object_get(lease_object, "metadata"), "resourceVersion", json_string("x"));
	pthread_mutex_unlock(&stand_in.lock);
	while (two_leads())
		until(waited);
	end_lease();
}

TEST_MAIN(TEST(test_watch), TEST(test_event), TEST(test_no_crd), TEST(test_no_config),
	TEST(test_static), TEST(test_lease), TEST(test_lease_lost))

/* Bundles in ConfigMaps, against a stand-in API server. */
#include "tests/test.h"

#include <jansson.h>

#include "server/publisher.h"

#include "../kube_api.inc"
#include "../x509_make.inc"

static struct loop *loop;
static struct publish_target targets[2];
static struct server_options options;
static struct publisher *publisher;

static int applies, refuse;
static int managers[2]; /* applies by the usual manager, and by the second key's */
static char last_target[4100], last_text[8192];
static int version;

static void stop(void *arg)
{
	(void)arg;
	loop_stop(loop);
}

static void handle(struct api_request *rq)
{
	AUTO(free) char *answer = NULL;
	json_t *o;
	const char *key;
	json_t *v;

	applies++;
	CHECK_STR(rq->method, "PATCH");
	CHECK_CONTAINS(rq->head, "Content-Type: application/apply-patch+yaml\r\n");
	snprintf(last_target, sizeof(last_target), "%s", rq->target);
	managers[strstr(rq->target, "k8s_configmap-k2&") != NULL]++;
	o = json_loads(rq->body, 0, NULL);
	CHECK_STR(json_string_value(json_object_get(o, "kind")), "ConfigMap");
	json_object_foreach(json_object_get(o, "data"), key, v)
		snprintf(last_text, sizeof(last_text), "%s=%s", key, json_string_value(v));
	json_decref(o);
	if (refuse) {
		refuse--;
		api_status(rq, 403, "configmaps is forbidden");
	} else {
		answer = xasprintf("{\"metadata\":{\"resourceVersion\":\"%d\"}}", ++version);
		api_say(rq, 200, answer);
	}
	loop_post(loop, stop, NULL);
}

static void begin(size_t n)
{
	api_begin(0, handle);
	loop = loop_new();
	for (size_t i = 0; i < n; i++)
		targets[i].kubeconfig = api_kubeconfig("kubeconfig", "token: x");
	options.publish_targets = targets;
	options.n_publish_targets = n;
	publisher = publisher_new(loop, &options);
}

static void end(bool leave)
{
	publisher_free(publisher);
	loop_free(loop);
	api_end();
	unlink(targets[0].kubeconfig);
	free(targets[0].kubeconfig);
	free(targets[1].kubeconfig);
	if (leave)
		rmdir(test_dir());
}

static struct bundle *bundle(int roots)
{
	struct bundle *b = bundle_new("example.org");

	for (int i = 0; i < roots; i++) {
		struct test_ca ca = test_ca(KEY_EC_P256, "root", NULL, test_now);

		bundle_add_root(b, ca.cert, false);
		if (i == 0)
			bundle_add_jwt_key(b, "kid-1", key_public(ca.key), 0, false);
		test_ca_free(&ca);
	}
	b->refresh_hint = 7;
	b->sequence = 3;
	return b;
}

#define TARGET(f)                                                                                  \
	((struct publish_target){ .cluster = (char *)(uintptr_t) "c",                              \
		.namespace = (char *)(uintptr_t) "spire",                                          \
		.configmap = (char *)(uintptr_t) "bundle",                                         \
		.key = (char *)(uintptr_t) "k",                                                    \
		.format = f })

static void test_formats(void)
{
	static const enum publish_format formats[] = { PUBLISH_SPIFFE, PUBLISH_JWKS, PUBLISH_PEM };
	static const char *const has[] = { "\"spiffe_refresh_hint\": 60", "\"kid-1\"",
		"k=-----BEGIN CERTIFICATE-----" };
	static const char *const lacks[] = { "CERTIFICATE", "spiffe", "kid-1" };
	struct bundle *b = bundle(2);

	for (size_t i = 0; i < ARRAY_LEN(formats); i++) {
		targets[0] = TARGET(formats[i]);
		targets[0].refresh_hint_s = 60;
		begin(1);
		publisher_bundle_changed(publisher, NULL);
		publisher_bundle_changed(publisher, b);
		loop_run(loop);
		CHECK_CONTAINS(last_text, has[i]);
		CHECK(!strstr(last_text, lacks[i]));
		CHECK_STR(last_target, "/api/v1/namespaces/spire/configmaps/bundle?fieldManager="
				       "spire-bundlepublisher-k8s_configmap&force=true");
		end(i == 2);
		targets[0].kubeconfig = NULL;
	}
	bundle_unref(b);
}

/* Runs until there were so many applies. */
static void run_until(int n)
{
	while (applies < n)
		loop_run(loop);
}

static void nap_over(void *arg)
{
	*(bool *)arg = true;
	loop_stop(loop);
}

/* An apply ends loop_run() too. */
static void nap(int ms)
{
	bool over = false;
	struct loop_timer *t = loop_timer_new(loop, nap_over, &over);

	loop_timer_set(t, ms * NS_PER_MS);
	while (!over)
		loop_run(loop);
	loop_timer_free(t);
}

static void test_changes(void)
{
	struct bundle *one = bundle(1), *two = bundle(2), *same = bundle_dup(two);

	targets[0] = TARGET(PUBLISH_PEM);
	targets[1] = TARGET(PUBLISH_PEM);
	targets[1].key = (char *)(uintptr_t) "k2";
	begin(2);
	publisher_bundle_changed(publisher, one);
	run_until(2);
	nap(50);
	CHECK(managers[0] == 1 && managers[1] == 1);
	/* twice at once: the last counts; what is the same already is not sent */
	publisher_bundle_changed(publisher, two);
	nap(5);
	publisher_bundle_changed(publisher, one);
	publisher_bundle_changed(publisher, two);
	nap(100);
	CHECK(applies >= 4 && applies <= 8);
	applies = 0;
	same->sequence = 9;
	publisher_bundle_changed(publisher, same);
	nap(50);
	CHECK_INT(applies, 0);
	/* a refusal is tried again */
	refuse = 2;
	publisher_bundle_changed(publisher, one);
	run_until(4);
	CHECK_INT(refuse, 0);
	nap(50);
	/* as if the kubeconfig was not there at first, or is broken */
	write_text(targets[0].kubeconfig, "rubbish");
	publisher_bundle_changed(publisher, two);
	nap(50);
	CHECK_INT(applies, 4);
	free(api_kubeconfig("kubeconfig", "token: y"));
	run_until(6);
	end(true);
	bundle_unref(one);
	bundle_unref(two);
	bundle_unref(same);
}

/* Somebody may have changed it: it is put there again and again. */
static void test_again(void)
{
	struct bundle *one = bundle(1);

	targets[0] = TARGET(PUBLISH_PEM);
	begin(1);
	publisher_set_again_for_test(publisher, 20 * NS_PER_MS);
	publisher_bundle_changed(publisher, one);
	run_until(4);
	end(true);
	bundle_unref(one);
}

/* Under way at the end. */
static void test_end(void)
{
	struct bundle *one = bundle(1);

	targets[0] = TARGET(PUBLISH_PEM);
	begin(1);
	publisher_bundle_changed(publisher, one);
	nap(0);
	end(true);
	bundle_unref(one);
}

TEST_MAIN(TEST(test_formats), TEST(test_changes), TEST(test_again), TEST(test_end))

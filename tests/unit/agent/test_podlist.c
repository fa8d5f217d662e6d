#include "agent/podlist.h"

#include <time.h>

#include "tests/test.h"

/* Two pods as a kubelet tells them, shortened where nothing is read. */
#include "tests/unit/agent/podlist.inc"

struct rig {
	struct pod *pods[200];
	size_t n, enough; /* 0: all of them */
};

static bool take(void *arg, struct pod *p)
{
	struct rig *r = arg;

	CHECK(r->n < ARRAY_LEN(r->pods));
	r->pods[r->n++] = p;
	return r->n != r->enough;
}

static void forget(struct rig *r)
{
	for (size_t i = 0; i < r->n; i++)
		pod_free(r->pods[i]);
	r->n = 0;
}

static int read_list(struct rig *r, struct bytes doc, size_t piece, struct err *e)
{
	AUTO(podlist_free) struct podlist *l = podlist_new(take, r);
	int c = 0;

	for (size_t i = 0; i < doc.n && !c; i += piece)
		c = podlist_feed(l, bytes_of(doc.p + i, doc.n - i < piece ? doc.n - i : piece), e);
	return c ? c : podlist_end(l, e);
}

static void check_selectors(const struct selectors *s, const char *const *want, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		bool there = false;

		for (size_t k = 0; k < s->n; k++) {
			CHECK_STR(s->v[k].type, "k8s");
			there |= strcmp(s->v[k].value, want[i]) == 0;
		}
		if (!there)
			TEST_FAIL("no selector k8s:%s", want[i]);
	}
	CHECK_INT(s->n, n);
}

#define ID(c)                                                                                      \
	c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c  \
		c c c c c c c c c c c c c c c c c c c

static void test_real_list(void)
{
	static const char *const of_pod[] = { "sa:web", "ns:shop", "node-name:node1",
		"pod-uid:6c2a5cf5-8c0e-4a2a-9a3e-0f5a3c1d8a01", "pod-name:web-7d9c4b-x2x8k",
		"pod-image-count:2", "pod-init-image-count:1",
		"pod-image:docker.io/library/nginx:1.27",
		"pod-image:docker.io/library/nginx@sha256:"
		"1111111111111111111111111111111111111111111111111111111111111111",
		"pod-image:docker.io/envoyproxy/envoy:v1.31",
		"pod-image:docker.io/envoyproxy/envoy@sha256:"
		"2222222222222222222222222222222222222222222222222222222222222222",
		"pod-init-image:docker.io/library/busybox:1.36",
		"pod-init-image:docker.io/library/busybox@sha256:"
		"3333333333333333333333333333333333333333333333333333333333333333",
		"pod-label:app:web", "pod-label:tier:front \xe2\x82\xac",
		"pod-label:pod-template-hash:7d9c4b",
		"pod-label:empty:", "pod-owner:ReplicaSet:web-7d9c4b",
		"pod-owner-uid:ReplicaSet:0e9c1b1a-2a4b-4f0e-8a77-9a1f1b2c3d4e" };
	static const char *const of_container[] = { "container-name:envoy",
		"container-image:docker.io/envoyproxy/envoy:v1.31",
		"container-image:docker.io/envoyproxy/envoy@sha256:"
		"2222222222222222222222222222222222222222222222222222222222222222" };
	struct rig r = { .enough = 0 };
	struct err e;

	for (size_t piece = 1; piece < 5000; piece = piece * 3 + 1) {
		struct selectors s = { 0 }, c = { 0 };
		const struct pod_item *envoy;

		CHECK_OK(read_list(&r, bytes_str(two_pods), piece, &e));
		CHECK_INT(r.n, 2);
		CHECK(!r.pods[0]->broken && !r.pods[1]->broken);
		pod_selectors(r.pods[0], &s);
		check_selectors(&s, of_pod, ARRAY_LEN(of_pod));
		envoy = pod_container(r.pods[0], ID("b"));
		CHECK(envoy);
		pod_container_selectors(r.pods[0], envoy, &c);
		check_selectors(&c, of_container, ARRAY_LEN(of_container));
		CHECK(pod_container(r.pods[0], ID("a")));
		CHECK(pod_container(r.pods[0], ID("c"))); /* init */
		CHECK(pod_container(r.pods[1], ID("e"))); /* ephemeral */
		CHECK(!pod_container(r.pods[1], ID("a")));
		CHECK(!pod_container(r.pods[1], ""));
		CHECK(!pod_container(r.pods[0], "bbbb"));
		selectors_deinit(&s);
		selectors_deinit(&c);
		forget(&r);
	}
}

/* As a kubelet 1.35 said it: pods that run, one with an init container that fails again and again
 * and a debug container beside it. */
static void test_real_kubelet(void)
{
	static const char *const of_web[] = { "sa:default", "ns:shop", "node-name:node1",
		"pod-uid:43d4b1e8-c95d-4fd9-b9bd-73df0ce5a516", "pod-name:web-64674975f8-pdkz9",
		"pod-image-count:1", "pod-init-image-count:0", "pod-label:app:web",
		"pod-image:docker.io/local/busybox:1",
		"pod-image:sha256:9255b9762b0049fb7618ec2e7b3744b1793252be6d05cd649a4ed8c760135731",
		"pod-label:pod-template-hash:64674975f8", "pod-owner:ReplicaSet:web-64674975f8",
		"pod-owner-uid:ReplicaSet:07d9e626-6d8a-4afb-8ac0-cbe66a98ba45" };
	AUTO_BUF struct buf text = BUF_INIT;
	struct rig r = { .enough = 0 };
	struct selectors s = { 0 };
	struct err e;

	CHECK_OK(buf_read_file(&text, "tests/fuzz/corpus/podlist/kubelet-1.35", &e));
	CHECK_OK(read_list(&r, buf_view(&text), 1000, &e));
	CHECK_INT(r.n, 3);
	CHECK_STR(pod_text(r.pods[0], r.pods[0]->name), "many");
	CHECK_INT(r.pods[0]->containers.n, 2);
	CHECK_INT(r.pods[0]->init_containers.n, 1);
	CHECK_INT(r.pods[0]->ephemeral_containers.n, 1);
	CHECK_STR(pod_text(r.pods[0], r.pods[0]->containers.v[0].container.id), "");
	pod_selectors(r.pods[1], &s);
	check_selectors(&s, of_web, ARRAY_LEN(of_web));
	CHECK(pod_container(
		r.pods[1], "1c0f9ab3693dad9a27c61778c5f07f308032c6f9b82cdb42895a797d7ffd698b"));
	selectors_deinit(&s);
	forget(&r);
}

/* What stands beyond the wanted pod is not looked at. */
static void test_enough(void)
{
	struct rig r = { .enough = 1 };
	AUTO(free) char *cut = xstrndup(two_pods, strlen(two_pods) - 200);
	AUTO(podlist_free) struct podlist *l = podlist_new(take, &r);
	struct err e;

	CHECK_OK(podlist_feed(l, bytes_str(cut), &e));
	CHECK(podlist_stopped(l));
	CHECK_OK(podlist_end(l, &e));
	CHECK_STR(pod_text(r.pods[0], r.pods[0]->name), "web-7d9c4b-x2x8k");
	forget(&r);
	r.enough = 0;
	CHECK_ERR(read_list(&r, bytes_str(cut), 100, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "unable to parse kubelet response: cannot parse JSON: ");
	CHECK_INT(r.n, 1);
	forget(&r);
}

static void test_refused(void)
{
	static const struct {
		const char *doc, *msg;
	} bad[] = {
		{ "[]", "invalid kubelet response: expected an object" },
		{ "1", "invalid kubelet response: expected an object" },
		{ "{}", "invalid kubelet response: expected an items array" },
		{ "{\"items\":{}}", "invalid kubelet response: expected an items array" },
		{ "{\"items\":\"x\"}", "invalid kubelet response: expected an items array" },
		{ "{\"items\":[}", "unable to parse kubelet response: cannot parse JSON: " },
		{ "<html>", "unable to parse kubelet response: cannot parse JSON: " },
		{ "", "unable to parse kubelet response: cannot parse JSON: " },
	};
	struct rig r = { .enough = 0 };
	struct err e;

	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		CHECK_ERR(read_list(&r, bytes_str(bad[i].doc), 3, &e), ERR_INVALID);
		CHECK_CONTAINS(e.msg, bad[i].msg);
	}
	CHECK_OK(read_list(&r, bytes_str("{\"items\":null}"), 3, &e));
	CHECK_OK(read_list(&r, bytes_str("{\"items\":[]}"), 3, &e));
	CHECK_INT(r.n, 0);
}

/* What one pod has in it must not shut out the others. */
static void test_broken_pods(void)
{
	static const char doc[] =
		"{\"items\":[1,null,\"x\",[],{},{\"metadata\":{\"name\":\"no uid\"}},"
		"{\"metadata\":{\"uid\":\"a\",\"labels\":[]}},"
		"{\"metadata\":{\"uid\":\"b\",\"labels\":{\"x\":1}}},"
		"{\"metadata\":{\"uid\":\"c\",\"name\":7}},"
		"{\"metadata\":{\"uid\":\"d\"},\"status\":{\"containerStatuses\":{}}},"
		"{\"metadata\":{\"uid\":\"e\"},\"status\":{\"containerStatuses\":[\"x\"]}},"
		"{\"metadata\":{\"uid\":\"f\",\"name\":\"a\\u0000b\"}},"
		"{\"metadata\":{\"uid\":\"g\",\"labels\":{\"a\\u0000b\":\"x\"}}},"
		"{\"metadata\":{\"uid\":\"h\",\"ownerReferences\":[[]]}},"
		"{\"metadata\":{\"uid\":\"i\",\"ownerReferences\":null,\"labels\":null},"
		"\"spec\":null,\"status\":{\"containerStatuses\":null}},"
		"{\"metadata\":{\"uid\":\"j\",\"labels\":{\"x\":null}},\"spec\":{},"
		"\"status\":{\"containerStatuses\":[null,{\"name\":null}]}}"
		"]}";
	struct rig r = { .enough = 0 };
	AUTO(podlist_free) struct podlist *l = podlist_new(take, &r);
	struct err e;

	CHECK_OK(podlist_feed(l, bytes_str(doc), &e));
	CHECK_OK(podlist_end(l, &e));
	CHECK_INT(podlist_without_uid(l), 6);
	CHECK_INT(r.n, 10);
	for (size_t i = 0; i < 8; i++)
		if (!r.pods[i]->broken)
			TEST_FAIL("pod %zu is not broken", i);
	CHECK(!r.pods[8]->broken && !r.pods[9]->broken);
	CHECK_INT(r.pods[9]->containers.n, 2);
	CHECK_INT(r.pods[9]->labels.n, 1);
	forget(&r);
}

static void test_limits(void)
{
	AUTO_BUF struct buf doc = BUF_INIT;
	struct rig r = { .enough = 0 };
	struct err e;

	buf_str(&doc, "{\"items\":[{\"metadata\":{\"uid\":\"a\",\"labels\":{");
	for (int i = 0; i <= PODLIST_ITEMS_MAX; i++)
		buf_printf(&doc, "%s\"l%d\":\"\"", i ? "," : "", i);
	buf_str(&doc, "}}},{\"metadata\":{\"uid\":\"b\",\"name\":\"");
	for (int i = 0; i <= PODLIST_STRING_MAX; i++)
		buf_byte(&doc, 'x');
	buf_str(&doc, "\"}},{\"metadata\":{\"uid\":\"c\",\"labels\":{");
	for (int i = 0; i < PODLIST_POD_TEXT_MAX / 10000 + 1; i++) {
		buf_printf(&doc, "%s\"l%d\":\"", i ? "," : "", i);
		for (int k = 0; k < 10000; k++)
			buf_byte(&doc, 'y');
		buf_str(&doc, "\"");
	}
	buf_str(&doc, "}}},{\"metadata\":{\"uid\":\"d\"}}]}");
	CHECK_OK(read_list(&r, buf_view(&doc), 4096, &e));
	CHECK_INT(r.n, 4);
	for (size_t i = 0; i < 3; i++)
		CHECK(r.pods[i]->broken);
	CHECK(!r.pods[3]->broken);
	forget(&r);
}

static bool drop(void *arg, struct pod *p)
{
	++*(size_t *)arg;
	pod_free(p);
	return true;
}

static void test_pods_max(void)
{
	AUTO_BUF struct buf doc = BUF_INIT;
	size_t n = 0;
	AUTO(podlist_free) struct podlist *l = podlist_new(drop, &n);
	struct err e;

	buf_str(&doc, "{\"items\":[");
	for (int i = 0; i <= PODLIST_PODS_MAX; i++)
		buf_printf(&doc, "%s{\"metadata\":{\"uid\":\"u%d\"}}", i ? "," : "", i);
	buf_str(&doc, "]}");
	CHECK_ERR(podlist_feed(l, buf_view(&doc), &e), ERR_EXHAUSTED);
	CHECK_INT(n, PODLIST_PODS_MAX);
}

static void test_one_pod(void)
{
	struct pod *p = NULL;
	struct err e;

	CHECK_OK(pod_parse(bytes_str("{\"metadata\":{\"uid\":\"u\",\"name\":\"n\"}}"), &p, &e));
	CHECK_STR(pod_text(p, p->name), "n");
	pod_free(p);
	CHECK_ERR(pod_parse(bytes_str("{\"metadata\":{}}"), &p, &e), ERR_INVALID);
	CHECK_ERR(pod_parse(bytes_str("["), &p, &e), ERR_INVALID);
}

/* 110 pods of some 9 kB each, as large as they are in life. Prints how fast they are read. */
static void test_large_list(void)
{
	AUTO_BUF struct buf doc = BUF_INIT;
	struct rig r = { .enough = 0 };
	struct timespec a, b;
	const char *open = strstr(two_pods, "{\"metadata\":{\"name\":\"web");
	size_t n = (size_t)(strstr(two_pods, ",\n{\"metadata\"") - open);
	struct err e;

	buf_str(&doc, "{\"kind\":\"PodList\",\"apiVersion\":\"v1\",\"metadata\":{},\"items\":[");
	for (int i = 0; i < 110; i++) {
		buf_printf(&doc, "%s", i ? "," : "");
		buf_append(&doc, open, n - 1);
		buf_str(&doc, ",\"filler\":[");
		for (int k = 0; k < 30; k++)
			buf_printf(&doc,
				"%s{\"f:type\":{\".\":{},\"f:lastProbeTime\":{},\"k:{\\\"port\\\":"
				"80}\":"
				"{\"f:containerPort\":{},\"f:protocol\":\"volume projected with a "
				"token and more text of this kind\"}},\"n\":%d}",
				k ? "," : "", k);
		buf_str(&doc, "]}");
	}
	buf_str(&doc, "]}");
	clock_gettime(CLOCK_MONOTONIC, &a);
	CHECK_OK(read_list(&r, buf_view(&doc), 16384, &e));
	clock_gettime(CLOCK_MONOTONIC, &b);
	CHECK_INT(r.n, 110);
	fprintf(stderr, "%zu bytes in %.2f ms\n", doc.len,
		(double)(b.tv_sec - a.tv_sec) * 1e3 + (double)(b.tv_nsec - a.tv_nsec) / 1e6);
	forget(&r);
}

TEST_MAIN(TEST(test_real_list), TEST(test_real_kubelet), TEST(test_enough), TEST(test_refused),
	TEST(test_broken_pods), TEST(test_limits), TEST(test_pods_max), TEST(test_one_pod),
	TEST(test_large_list))

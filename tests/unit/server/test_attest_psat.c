/* Node attestor k8s_psat against a stand-in API server. */
#include "tests/test.h"

#include <jansson.h>

#include "server/attest_internal.h"

#include "../kube_api.inc"

static struct loop *loop;
static struct attest *attest;
static struct server_options config;
static struct psat_cluster clusters[2];

/* What the API server says. */
static const char *review = "";          /* status of a TokenReview */
static const char *pod = "", *node = ""; /* NULL: not found */
static int reviews, delay_ms;
static char last_audiences[200];

#define EXTRA "authentication.kubernetes.io/"
#define USER(name, extra)                                                                          \
	"{\"authenticated\":true,\"audiences\":[\"spire-server\"],\"user\":{\"username\":\"" name  \
	"\",\"extra\":{" extra "}}}"
#define POD_EXTRA "\"" EXTRA "pod-name\":[\"p-1\"],\"" EXTRA "pod-uid\":[\"pu\"]"
#define GOOD USER("system:serviceaccount:spire:agent", POD_EXTRA)
#define POD(uid, node)                                                                             \
	"{\"metadata\":{\"uid\":\"" uid "\",\"labels\":{\"app\":\"x\",\"other\":\"y\"}},"          \
	"\"spec\":{\"nodeName\":\"" node "\"},\"status\":{\"hostIP\":\"192.0.2.7\"}}"
#define NODE(uid) "{\"metadata\":{\"uid\":\"" uid "\",\"labels\":{\"zone\":\"a:b\",\"n\":\"m\"}}}"

static void handle_review(struct api_request *rq)
{
	AUTO(free) char *answer = NULL;
	json_t *root = json_loads(rq->body, 0, NULL);
	const json_t *spec = json_object_get(root, "spec"), *aud;
	AUTO(free) char *text = NULL;

	reviews++;
	CHECK_STR(rq->method, "POST");
	CHECK_STR(json_string_value(json_object_get(root, "kind")), "TokenReview");
	CHECK_STR(json_string_value(json_object_get(spec, "token")), "tok");
	aud = json_object_get(spec, "audiences");
	text = aud ? json_dumps(aud, JSON_COMPACT) : xstrdup("none");
	snprintf(last_audiences, sizeof(last_audiences), "%s", text);
	json_decref(root);
	if (!review) {
		api_status(rq, 403, "tokenreviews is forbidden");
		return;
	}
	answer = xasprintf("{\"kind\":\"TokenReview\",\"status\":%s}", review);
	api_say(rq, 201, answer);
}

static void handle(struct api_request *rq)
{
	if (delay_ms)
		usleep((useconds_t)delay_ms * 1000);
	if (strcmp(rq->target, "/apis/authentication.k8s.io/v1/tokenreviews") == 0)
		handle_review(rq);
	else if (strcmp(rq->target, "/api/v1/namespaces/spire/pods/p-1") == 0 && pod)
		api_say(rq, 200, pod);
	else if (strcmp(rq->target, "/api/v1/nodes/n-1") == 0 && node)
		api_say(rq, 200, node);
	else
		api_status(rq, 404, "not found");
}

static void begin(void)
{
	struct attest_options o = { .trust_domain = "example.org", .config = &config };
	struct err e = ERR_INIT;

	api_begin(0, handle);
	loop = loop_new();
	o.loop = loop;
	clusters[0] = (struct psat_cluster){ .name = (char *)(uintptr_t) "one",
		.kubeconfig = api_kubeconfig("kubeconfig", "token: server") };
	strings_add(&clusters[0].service_accounts, "spire:agent");
	strings_add(&clusters[0].audience, "spire-server");
	clusters[1] = (struct psat_cluster){ .name = (char *)(uintptr_t) "two",
		.kubeconfig = xstrdup(clusters[0].kubeconfig),
		.use_pod_uid = true };
	strings_add(&clusters[1].service_accounts, "spire:other");
	strings_add(&clusters[1].service_accounts, "spire:agent");
	strings_add(&clusters[1].node_labels, "zone");
	strings_add(&clusters[1].node_labels, "absent");
	strings_add(&clusters[1].pod_labels, "app");
	config = (struct server_options){
		.attest_psat = true, .psat_clusters = clusters, .n_psat_clusters = 2
	};
	CHECK_OK(attest_new(&o, &attest, &e));
	review = GOOD;
	pod = POD("pu", "n-1");
	node = NODE("nu");
}

static void end(void)
{
	attest_free(attest);
	loop_free(loop); /* as the server does: whatever is open still */
	api_end();
	unlink(clusters[0].kubeconfig);
	rmdir(test_dir());
	for (size_t i = 0; i < 2; i++) {
		free(clusters[i].kubeconfig);
		strings_deinit(&clusters[i].service_accounts);
		strings_deinit(&clusters[i].audience);
		strings_deinit(&clusters[i].node_labels);
		strings_deinit(&clusters[i].pod_labels);
	}
}

struct outcome {
	struct attest_session *s;
	bool done;
	int code;
	char text[1000]; /* the id, or the error's */
	char selectors[2000];
	bool reattestable;
};
static int pending;

static void on_step(void *arg, const struct attest_step *st, const struct err *e)
{
	struct outcome *o = arg;

	o->done = true;
	o->code = e->code;
	o->reattestable = st->reattestable;
	snprintf(o->text, sizeof(o->text), "%s", e->code ? e->msg : st->agent_id);
	for (size_t i = 0; !e->code && i < st->selectors->n; i++) {
		size_t n = strlen(o->selectors);

		CHECK_STR(st->selectors->v[i].type, "k8s_psat");
		snprintf(o->selectors + n, sizeof(o->selectors) - n, "%s ",
			st->selectors->v[i].value);
	}
	if (--pending == 0)
		loop_stop(loop);
}

static void start(struct outcome *o, const char *payload)
{
	struct err e = ERR_INIT;

	*o = (struct outcome){ 0 };
	pending++;
	CHECK_OK(attest_begin(
		attest, "k8s_psat", bytes_str(payload), "192.0.2.1", on_step, o, &o->s, &e));
	CHECK(!o->done);
}

static struct outcome try(const char *payload)
{
	static struct outcome o;

	start(&o, payload);
	loop_run(loop);
	CHECK(o.done);
	attest_end(o.s);
	return o;
}

#define ONE "{\"cluster\":\"one\",\"token\":\"tok\"}"
#define TWO "{\"cluster\":\"two\",\"token\":\"tok\"}"

static void test_good(void)
{
	struct outcome o;

	begin();
	o = try(ONE);
	CHECK_STR(o.text, "spiffe://example.org/spire/agent/k8s_psat/one/nu");
	CHECK(o.reattestable);
	CHECK_STR(o.selectors, "cluster:one agent_ns:spire agent_sa:agent agent_pod_name:p-1 "
			       "agent_pod_uid:pu agent_node_ip:192.0.2.7 agent_node_name:n-1 "
			       "agent_node_uid:nu ");
	CHECK_STR(last_audiences, "[\"spire-server\"]");
	review = "{\"authenticated\":true,\"user\":{\"username\":\"system:serviceaccount:spire:"
		 "agent\",\"extra\":{" POD_EXTRA ",\"" EXTRA "node-name\":[\"n-1\"],\"" EXTRA
		 "node-uid\":[\"nu\"]}}}";
	o = try(TWO);
	CHECK_STR(o.text, "spiffe://example.org/spire/agent/k8s_psat/two/pod/pu");
	CHECK_CONTAINS(o.selectors, "agent_node_label:zone:a:b ");
	CHECK_CONTAINS(o.selectors, "agent_pod_label:app:x ");
	CHECK(!strstr(o.selectors, "other") && !strstr(o.selectors, "absent"));
	CHECK_STR(last_audiences, "none");
	CHECK_INT(api.n_conns, 2); /* one for each cluster */
	end();
}

static void refused(const char *payload, int code, const char *text)
{
	struct outcome o = try(payload);

	if (o.code != code || strncmp(o.text, "nodeattestor(k8s_psat): ", 24) != 0 ||
		strcmp(o.text + 24, text) != 0)
		TEST_FAIL("%s: %s, in place of %s: %s", err_code_name(o.code), o.text,
			err_code_name(code), text);
}

static void test_payload(void)
{
	AUTO_BUF struct buf b = BUF_INIT;

	begin();
	refused("", ERR_INVALID, "missing attestation payload");
	CHECK_CONTAINS(try("{").text, "failed to unmarshal data payload: ");
	refused("[]", ERR_INVALID, "failed to unmarshal data payload: not an object");
	refused("{}", ERR_INVALID, "missing cluster in attestation data");
	refused("{\"cluster\":1}", ERR_INVALID, "missing cluster in attestation data");
	refused("{\"cluster\":\"one\"}", ERR_INVALID, "missing token in attestation data");
	refused("{\"cluster\":\"x\",\"token\":\"tok\"}", ERR_INVALID,
		"not configured for cluster \"x\"");
	buf_str(&b, "{\"cluster\":\"one\",\"token\":\"");
	for (int i = 0; i < 33 << 10; i++)
		buf_byte(&b, 'x');
	buf_str(&b, "\"}");
	refused(buf_cstr(&b), ERR_INVALID, "the token in attestation data is too large");
	CHECK_INT(reviews, 0);
	end();
}

#define VALIDATE "unable to validate token with TokenReview API for cluster \"one\": "
#define NAMES "failed to parse username from token review status for cluster \"one\": "

static void test_review(void)
{
	begin();
	review = NULL;
	refused(ONE, ERR_INTERNAL,
		VALIDATE "unable to query token review API: tokenreviews is forbidden");
	review = "{\"error\":\"expired\"}";
	refused(ONE, ERR_INTERNAL, VALIDATE "token review API response contains an error: expired");
	review = "{\"authenticated\":true,\"audiences\":[\"a\",\"b\"]}";
	refused(ONE, ERR_INTERNAL,
		VALIDATE "token review API did not validate audience: wanted one of "
			 "[\"spire-server\"] but got [\"a\" \"b\"]");
	review = "{\"authenticated\":true}";
	refused(ONE, ERR_INTERNAL,
		VALIDATE "token review API did not validate audience: wanted one of "
			 "[\"spire-server\"] but got []");
	review = "{\"authenticated\":false}";
	refused(ONE, ERR_DENIED,
		"token not authenticated according to TokenReview API for cluster \"one\"");
	review = "{}";
	refused(ONE, ERR_DENIED,
		"token not authenticated according to TokenReview API for cluster \"one\"");
	review = USER("", POD_EXTRA);
	refused(ONE, ERR_INTERNAL, NAMES "empty username");
	review = USER("system:node:n-1", POD_EXTRA);
	refused(ONE, ERR_INTERNAL, NAMES "unexpected username format: system:node:n-1");
	review = USER("x:serviceaccount:spire:agent", POD_EXTRA);
	refused(ONE, ERR_INTERNAL,
		NAMES "unexpected username format: x:serviceaccount:spire:agent");
	review = USER("system:serviceaccount:a:b:c", POD_EXTRA);
	refused(ONE, ERR_INTERNAL, NAMES "unexpected username format: system:serviceaccount:a:b:c");
	review = USER("system:serviceaccount::b", POD_EXTRA);
	refused(ONE, ERR_INTERNAL, NAMES "missing namespace");
	review = USER("system:serviceaccount:b:", POD_EXTRA);
	refused(ONE, ERR_INTERNAL, NAMES "missing service account name");
	review = USER("system:serviceaccount:spire:other", POD_EXTRA);
	refused(ONE, ERR_DENIED,
		"\"spire:other\" is not an allowed service account for cluster \"one\"");
	end();
}

#define NAME "failed to get pod name from token review status for cluster \"one\": "
#define UID "failed to get pod UID from token review status for cluster \"one\": "
#define AGENT(extra) USER("system:serviceaccount:spire:agent", extra)

static void test_extra(void)
{
	begin();
	review = AGENT("");
	refused(ONE, ERR_INTERNAL, NAME "missing pod name");
	review = AGENT("\"" EXTRA "pod-name\":[]");
	refused(ONE, ERR_INTERNAL, NAME "expected 1 name but got: 0");
	review = AGENT("\"" EXTRA "pod-name\":[\"\"]");
	refused(ONE, ERR_INTERNAL, NAME "pod name is empty");
	review = AGENT("\"" EXTRA "pod-name\":[\"p\"]");
	refused(ONE, ERR_INTERNAL, UID "missing pod UID");
	review = AGENT("\"" EXTRA "pod-name\":[\"p\"],\"" EXTRA "pod-uid\":[\"a\",\"b\"]");
	refused(ONE, ERR_INTERNAL, UID "expected 1 UID but got: 2");
	review = AGENT("\"" EXTRA "pod-name\":[\"p\"],\"" EXTRA "pod-uid\":[\"\"]");
	refused(ONE, ERR_INTERNAL, UID "pod UID is empty");
	end();
}

#define GET_NODE "failed to get node from k8s API server for cluster \"one\": "

static void test_pod_and_node(void)
{
	begin();
	pod = NULL;
	refused(ONE, ERR_INTERNAL,
		"failed to get pod from k8s API server for cluster \"one\": unable to query pods "
		"API: not found");
	pod = POD("another", "n-1");
	refused(ONE, ERR_DENIED,
		"pod UID mismatch for pod \"p-1\" in cluster \"one\": token bound to pod UID "
		"\"pu\"");
	pod = POD("pu", "");
	refused(ONE, ERR_INTERNAL, GET_NODE "empty node name");
	pod = POD("pu", "n-1");
	node = NULL;
	refused(ONE, ERR_INTERNAL, GET_NODE "unable to query nodes API: not found");
	node = NODE("");
	refused(ONE, ERR_INTERNAL, "node UID is empty for cluster \"one\"");
	node = NODE("a/b");
	CHECK_CONTAINS(try(ONE).text, "failed to make spiffe id");
	node = NODE("nu");
	review = AGENT(POD_EXTRA ",\"" EXTRA "node-name\":[\"n-2\"]");
	refused(ONE, ERR_DENIED,
		"node mismatch for pod \"p-1\" in cluster \"one\": token bound to node \"n-2\"");
	review = AGENT(POD_EXTRA ",\"" EXTRA "node-uid\":[\"xu\"]");
	refused(ONE, ERR_DENIED,
		"node UID mismatch for pod \"p-1\" in cluster \"one\": token bound to node UID "
		"\"xu\"");
	end();
}

static void test_client(void)
{
	AUTO(free) char *path = NULL;
	struct outcome o;

	begin();
	unlink(clusters[0].kubeconfig);
	o = try(ONE);
	CHECK_INT(o.code, ERR_INTERNAL);
	CHECK_CONTAINS(
		o.text, VALIDATE "unable to get clientset: unable to create client config: ");
	path = api_kubeconfig("kubeconfig", "token: server");
	CHECK_INT(try(ONE).code, 0);
	for (int i = 0; i < 5; i++)
		CHECK_INT(try(ONE).code, 0);
	CHECK_INT(api.n_conns, 1);
	/* another file: another client, while the old one is in use */
	write_text(path, "rubbish");
	CHECK_INT(try(ONE).code, ERR_INTERNAL);
	free(api_kubeconfig("kubeconfig", "token: other"));
	CHECK_INT(try(ONE).code, 0);
	api_end();
	o = try(ONE);
	CHECK_INT(o.code, ERR_INTERNAL);
	CHECK_CONTAINS(o.text, VALIDATE "unable to query token review API: ");
	api_begin(api.port, handle);
	CHECK_INT(try(ONE).code, 0);
	end();
}

static void stop(void *arg)
{
	(void)arg;
	loop_stop(loop);
}

static void test_many(void)
{
	enum { N = 40 };
	static struct outcome o[N];
	struct loop_timer *t;

	begin();
	for (int i = 0; i < N; i++)
		start(&o[i], i % 2 ? ONE : TWO);
	loop_run(loop);
	for (int i = 0; i < N; i++) {
		CHECK_INT(o[i].code, ERR_INTERNAL * (i % 2 == 0 && o[i].code));
		attest_end(o[i].s);
	}
	/* ended in any of their stages, and at the end of all */
	t = loop_timer_new(loop, stop, NULL);
	delay_ms = 2;
	for (int i = 0; i < 10; i++) {
		start(&o[i], i == 3 ? "{}" : ONE);
		loop_timer_set(t, i * NS_PER_MS);
		loop_run(loop);
		attest_end(o[i].s);
	}
	loop_timer_free(t);
	end();
}

TEST_MAIN(TEST(test_good), TEST(test_payload), TEST(test_review), TEST(test_extra),
	TEST(test_pod_and_node), TEST(test_client), TEST(test_many))

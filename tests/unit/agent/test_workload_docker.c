/* The docker attestor against an engine of the test's own, on a Unix socket. */
#include <sys/stat.h>

#include "agent/docker.h"
#include "agent/workload.h"
#include "lib/crypto.h"
#include "lib/http.h"
#include "tests/test.h"

#define ID "6469646e742065787065637420616e796f6e6520746f20726561642074686973"
#define OTHER "7654321089abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define DIGEST "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define CONFIG "\"Config\":{\"Image\":\"app:1\",\"Labels\":{\"role\":\"web\"},\"Env\":[\"A=b\"]}"

struct rig {
	struct loop *loop;
	struct agent_options o;
	struct http_server *server;
	void *state;
	struct caller caller;
	char *dir; /* for /proc/PID */
	struct finding finding;
	int answers, containers, images; /* requests seen */
	/* the engine */
	char last[200];
	const char *version; /* NULL: what /_ping says is 404 */
	int pings;
	int fail; /* so many requests for a container fail first */
	int image_status;
	char *container, *image;
};

static void serve(void *arg, const struct http_request *rq, struct http_response *rs)
{
	struct rig *r = arg;

	if (strcmp(rq->path, "/_ping") != 0)
		snprintf(r->last, sizeof(r->last), "%s", rq->path);
	rs->content_type = "application/json";
	if (strcmp(rq->path, "/_ping") == 0) {
		r->pings++;
		CHECK_STR(rq->method, "HEAD");
		rs->status = r->version ? 200 : 404;
		rs->headers = r->version;
	} else if (strstr(rq->path, "/containers/")) {
		r->containers++;
		if (r->fail-- > 0) {
			rs->status = 404;
			buf_str(&rs->body, "{\"message\":\"No such container: it\"}");
		} else {
			buf_str(&rs->body, r->container);
		}
	} else {
		r->images++;
		rs->status = r->image_status;
		buf_str(&rs->body, r->image);
	}
}

static void put_cgroup(struct rig *r, const char *text)
{
	AUTO(free) char *path = xasprintf("%s/cgroup", r->dir);
	struct err e = ERR_INIT;

	CHECK_OK(buf_write_file(bytes_str(text), path, 0644, &e));
}

static void rig_init(struct rig *r)
{
	AUTO(free) char *socket = xasprintf("%s/engine.sock", test_dir());
	struct http_server_options so = { .unix_path = socket, .handle = serve, .arg = r };
	struct caller self;
	struct err e = ERR_INIT;

	crypto_init();
	memset(r, 0, sizeof(*r));
	r->loop = loop_new();
	r->o.attestor_docker = true;
	r->o.docker_socket_path = xasprintf("unix://%s", socket);
	r->o.docker_podman_socket_path = xstrdup("unix:///nowhere/podman.sock");
	r->o.docker_podman_socket_path_template = xasprintf("unix://%s%%%%%%d", socket);
	r->o.docker_use_new_container_locator = true;
	r->container =
		xstrdup("{\"State\":{\"Running\":true},\"Image\":\"" DIGEST "\"," CONFIG "}");
	r->image = xstrdup("{\"Id\":\"" DIGEST "\"}");
	CHECK_OK(http_server_open(r->loop, &so, &r->server, &e));
	CHECK_OK(workload_docker.open(r->loop, &r->o, &r->state, &e));
	r->dir = xasprintf("%s/proc", test_dir());
	CHECK(mkdir(r->dir, 0755) == 0);
	CHECK_OK(caller_open(&self, getpid(), -1, &e));
	r->caller = CALLER_INIT;
	r->caller.pid = self.pid;
	r->caller.start_time = self.start_time;
	r->caller.dir = open(r->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	caller_deinit(&self);
	put_cgroup(r, "0::/docker/" ID "\n");
}

static void rig_deinit(struct rig *r)
{
	selectors_deinit(&r->finding.selectors);
	free(r->finding.waited_for);
	workload_docker.close(r->state);
	http_server_close(r->server);
	caller_deinit(&r->caller);
	free(r->dir);
	free(r->container);
	free(r->image);
	free(r->o.docker_socket_path);
	free(r->o.docker_podman_socket_path);
	free(r->o.docker_podman_socket_path_template);
	strings_deinit(&r->o.docker_cgroup_matchers);
	loop_run(r->loop);
	loop_free(r->loop);
}

static void on_done(void *arg)
{
	struct rig *r = arg;

	r->answers++;
	loop_stop(r->loop);
}

static enum attest_next begin(struct rig *r)
{
	selectors_deinit(&r->finding.selectors);
	free(r->finding.waited_for);
	r->finding = (struct finding){ .attestor = "docker" };
	return workload_docker.attest(r->state, &r->caller, false, &r->finding);
}

/* To the end; true when it had to be waited for. */
static bool attest(struct rig *r)
{
	int before = r->answers;
	enum attest_next next = begin(r);

	if (next == ATTEST_BLOCKS)
		next = workload_docker.attest(r->state, &r->caller, true, &r->finding);
	if (next != ATTEST_WAITS)
		return false;
	CHECK(workload_docker.start(r->state, &r->caller, &r->finding, on_done, r));
	CHECK_INT(r->answers, before);
	while (r->answers == before)
		loop_run(r->loop);
	return true;
}

static bool has(const struct rig *r, const char *value)
{
	for (size_t i = 0; i < r->finding.selectors.n; i++)
		if (strcmp(r->finding.selectors.v[i].value, value) == 0)
			return strcmp(r->finding.selectors.v[i].type, "docker") == 0;
	return false;
}

static void check_all(const struct rig *r)
{
	CHECK_INT(r->finding.err.code, 0);
	CHECK_INT(r->finding.selectors.n, 4);
	CHECK(has(r, "label:role:web"));
	CHECK(has(r, "env:A=b"));
	CHECK(has(r, "image_id:app:1"));
	CHECK(has(r, "image_config_digest:" DIGEST));
}

static void test_selectors(void)
{
	struct rig r;

	rig_init(&r);
	CHECK(attest(&r));
	check_all(&r);
	CHECK_STR(r.last, "/images/" DIGEST "/json");
	CHECK_CONTAINS(r.finding.waited_for, "docker at unix://");
	CHECK_CONTAINS(r.finding.waited_for, "container 6469646e7420");
	/* Once is enough. */
	CHECK(!attest(&r));
	check_all(&r);
	CHECK(!r.finding.waited_for);
	CHECK_INT(r.containers, 1);
	CHECK_INT(r.images, 1);
	/* A group below the container's is its own; the same id elsewhere is another question. */
	put_cgroup(&r, "0::/docker/" ID "/below\n");
	CHECK(!attest(&r));
	put_cgroup(&r, "0::/elsewhere/" ID "\n");
	CHECK(attest(&r));
	CHECK_INT(r.containers, 2);
	/* No container: nothing found, nobody asked. */
	put_cgroup(&r, "0::/user.slice\n");
	CHECK(!attest(&r));
	CHECK_INT(r.finding.err.code, 0);
	CHECK_INT(r.finding.selectors.n, 0);
	put_cgroup(&r, "nonsense\n");
	CHECK(!attest(&r));
	CHECK_INT(r.finding.err.code, ERR_INTERNAL);
	CHECK_INT(r.containers, 2);
	rig_deinit(&r);
}

static void test_what_is_known_is_dropped(void)
{
	struct wall later;
	struct rig r;

	rig_init(&r);
	r.caller.start_time++; /* of a process that has ended */
	CHECK(attest(&r));
	CHECK(!attest(&r));
	CHECK_INT(r.containers, 1);
	later = wall_add_ns(clock_wall(), 11 * NS_PER_SEC);
	clock_set_wall_for_test(&later);
	CHECK(attest(&r));
	CHECK_INT(r.containers, 2);
	r.caller.start_time--; /* this one lives */
	CHECK(!attest(&r));
	later = wall_add_ns(later, 11 * NS_PER_SEC);
	clock_set_wall_for_test(&later);
	CHECK(!attest(&r));
	CHECK_INT(r.containers, 2);
	rig_deinit(&r);
}

static void test_retries(void)
{
	struct rig r;
	int64_t start;

	rig_init(&r);
	r.fail = 3;
	start = clock_mono().ns;
	CHECK(attest(&r));
	check_all(&r);
	CHECK_INT(r.containers, 4);
	CHECK(clock_mono().ns - start >= 700 * NS_PER_MS);
	CHECK_CONTAINS(r.finding.waited_for, "4 times");
	put_cgroup(&r, "0::/docker/" OTHER "\n");
	r.fail = 4;
	CHECK(attest(&r));
	CHECK_INT(r.finding.err.code, ERR_NOT_FOUND);
	CHECK_CONTAINS(r.finding.err.msg, "Error response from daemon: No such container: it");
	CHECK_INT(r.finding.selectors.n, 0);
	CHECK_INT(r.containers, 8);
	/* A failure is not remembered. */
	CHECK(attest(&r));
	check_all(&r);
	rig_deinit(&r);
}

static void test_image(void)
{
	struct rig r;

	rig_init(&r);
	/* Gone by its id, known by its name: as podman 4 and others that do not say the id. */
	r.image_status = 500;
	CHECK(attest(&r));
	CHECK_INT(r.finding.selectors.n, 3);
	CHECK_INT(r.finding.err.code, 0);
	CHECK(attest(&r)); /* not remembered without it */
	r.image_status = 404;
	CHECK(attest(&r));
	CHECK_STR(r.last, "/images/app:1/json");
	CHECK_INT(r.finding.selectors.n, 3);
	CHECK(!attest(&r));
	put_cgroup(&r, "0::/docker/" OTHER "\n");
	r.image_status = 0;
	free(r.container);
	r.container = xstrdup("{\"Image\":\"app:1\"," CONFIG "}");
	CHECK(attest(&r));
	CHECK_STR(r.last, "/images/app:1/json");
	check_all(&r);
	rig_deinit(&r);
}

static void test_engines(void)
{
	struct rig r;
	AUTO(free) char *version = xstrdup("v1.30");

	rig_init(&r);
	r.o.docker_version = version;
	CHECK(attest(&r));
	CHECK_STR(r.last, "/v1.30/images/" DIGEST "/json");
	put_cgroup(&r, "0::/machine.slice/libpod-" ID ".scope\n");
	CHECK(attest(&r));
	CHECK_CONTAINS(r.finding.err.msg, "asking podman at unix:///nowhere/podman.sock");
	put_cgroup(&r, "0::/user.slice/user-1000.slice/user@1000.service/libpod-" ID ".scope\n");
	CHECK(attest(&r));
	CHECK_CONTAINS(r.finding.err.msg, "engine.sock%1000");
	CHECK_CONTAINS(r.finding.waited_for, "podman at ");
	rig_deinit(&r);
}

/* As Docker's clients: the engine's version, but none that is newer than what is known. */
static void test_negotiation(void)
{
	struct rig r;

	rig_init(&r);
	r.version = "Api-Version: 1.41\r\n";
	r.fail = 1; /* after a failure it is asked for again */
	CHECK(attest(&r));
	check_all(&r);
	CHECK_STR(r.last, "/v1.41/images/" DIGEST "/json");
	CHECK_INT(r.pings, 2);
	put_cgroup(&r, "0::/docker/" OTHER "\n");
	CHECK(attest(&r));
	CHECK_STR(r.last, "/v1.41/images/" DIGEST "/json");
	CHECK_INT(r.pings, 2);
	rig_deinit(&r);
}

static void test_too_much_to_remember(void)
{
	AUTO(free) char *value = xcalloc(1, 70000);
	struct rig r;

	rig_init(&r);
	memset(value, 'x', 69999);
	free(r.container);
	r.container =
		xasprintf("{\"Config\":{\"Image\":\"app:1\",\"Labels\":{\"role\":\"%s\"}}}", value);
	CHECK(attest(&r));
	CHECK_INT(r.finding.selectors.n, 3);
	CHECK(attest(&r));
	CHECK_INT(r.containers, 2);
	rig_deinit(&r);
}

/* A container that is not running, and a process whose group only has a container's name. */
static void test_impostors(void)
{
	struct rig r;

	rig_init(&r);
	free(r.container);
	r.container = xstrdup("{\"State\":{\"Running\":false,\"Pid\":0}," CONFIG "}");
	CHECK(attest(&r));
	CHECK_INT(r.finding.err.code, ERR_UNAVAILABLE);
	CHECK_CONTAINS(r.finding.err.msg, "is not running");
	/* This process is in no container, so it tells nothing about one. */
	free(r.container);
	r.container =
		xasprintf("{\"State\":{\"Running\":true,\"Pid\":%d}," CONFIG "}", (int)getpid());
	CHECK(attest(&r));
	check_all(&r);
	rig_deinit(&r);
}

static void test_together_and_cancelled(void)
{
	struct rig r;
	struct finding f[3] = { 0 };
	void *op[3];

	rig_init(&r);
	for (int i = 0; i < 3; i++) {
		CHECK_INT(workload_docker.attest(r.state, &r.caller, false, &f[i]), ATTEST_WAITS);
		op[i] = workload_docker.start(r.state, &r.caller, &f[i], on_done, &r);
	}
	workload_docker.cancel(op[1]);
	while (r.answers < 2)
		loop_run(r.loop);
	CHECK_INT(r.containers, 1);
	CHECK_INT(f[0].selectors.n, 4);
	CHECK_INT(f[1].selectors.n, 0);
	CHECK_INT(f[2].selectors.n, 4);
	for (int i = 0; i < 3; i++) {
		selectors_deinit(&f[i].selectors);
		free(f[i].waited_for);
	}
	/* All cancelled: nobody is asked any more. */
	put_cgroup(&r, "0::/docker/" OTHER "\n");
	CHECK_INT(begin(&r), ATTEST_WAITS);
	workload_docker.cancel(workload_docker.start(r.state, &r.caller, &r.finding, on_done, &r));
	CHECK_INT(r.answers, 2);
	rig_deinit(&r);
}

static void test_patterns(void)
{
	struct rig r;

	rig_init(&r);
	r.o.docker_use_new_container_locator = false;
	strings_add(&r.o.docker_cgroup_matchers, "/mine/<id>");
	CHECK(!attest(&r));
	CHECK_INT(r.finding.selectors.n, 0);
	put_cgroup(&r, "0::/mine/web 1\n");
	CHECK(attest(&r));
	check_all(&r);
	CHECK(!attest(&r));
	check_all(&r);
	put_cgroup(&r, "1:x:/mine/a\n0::/mine/b\n");
	CHECK(!attest(&r));
	CHECK_CONTAINS(r.finding.err.msg, "multiple container IDs");
	rig_deinit(&r);
}

TEST_MAIN(TEST(test_selectors), TEST(test_what_is_known_is_dropped), TEST(test_retries),
	TEST(test_image), TEST(test_engines), TEST(test_negotiation), TEST(test_impostors),
	TEST(test_together_and_cancelled), TEST(test_too_much_to_remember), TEST(test_patterns))

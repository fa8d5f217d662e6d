#include <sched.h>
#include <sys/stat.h>

#include "agent/container.h"
#include "tests/test.h"

/* Two containers, and three pods; A, B and so on in the tables below. */
#define A "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define B "7654321089abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define POD_A "00000000-1111-2222-3333-444444444444"
#define POD_A_ "00000000_1111_2222_3333_444444444444"
#define POD_B "76543210-89ab-cdef-0123-456789abcdef"
#define POD_B_ "76543210_89ab_cdef_0123_456789abcdef"
#define STATIC_POD "0a1b2c3d4e5f60718293a4b5c6d7e8f9"
#define NONE ""

struct fixture {
	const char *what, *text;
	const char *id;          /* with and without the pod; NULL: an error without it */
	const char *pod;         /* NULL: an error with it */
	const char *id_with_pod; /* NULL: id */
};

/* Names as the runtimes document or show them. */
static const struct fixture cgroups[] = {
	{ "docker, cgroup v1",
		"12:pids:/docker/" A "\n11:memory:/docker/" A "\n1:name=systemd:/docker/" A
		"\n0::/docker/" A "\n",
		A, NONE },
	{ "docker, v1, older hosts leave the unified hierarchy at the daemon",
		"2:cpu,cpuacct:/docker/" A "\n1:name=systemd:/docker/" A
		"\n0::/system.slice/containerd.service\n",
		A, NONE },
	{ "docker, hybrid, the unified hierarchy empty", "1:name=systemd:/docker/" A "\n0::/\n", A,
		NONE },
	{ "docker, hybrid, only some controllers", "3:cpuset:/\n2:memory:/docker/" A "\n0::/\n", A,
		NONE },
	{ "docker, v2, cgroupfs driver", "0::/docker/" A "\n", A, NONE },
	{ "docker, v2, systemd driver", "0::/system.slice/docker-" A ".scope\n", A, NONE },
	{ "docker, v1, systemd driver",
		"4:devices:/system.slice/docker-" A ".scope\n"
		"1:name=systemd:/system.slice/docker-" A ".scope\n",
		A, NONE },
	{ "docker, with a cgroup parent", "0::/mine.slice/mine-apps.slice/docker-" A ".scope\n", A,
		NONE },
	{ "docker, a process that made groups of its own below (cgroup namespace of the host)",
		"0::/docker/" A "/init.scope\n", A, NONE },
	{ "docker, rootless, v2",
		"0::/user.slice/user-1000.slice/user@1000.service/user.slice/docker-" A ".scope\n",
		A, NONE },
	{ "docker for desktop, a container in a container",
		"6:devices:/docker/" B "/docker/" A "/system.slice/containerd.service\n", A, NONE },
	{ "seen from a cgroup namespace beside it", "0::/../" A "\n", A, NONE },
	{ "systemd's name, without the runtime's", "4:devices:/system.slice/" A ".scope\n", A,
		NONE },
	{ "containerd with ctr", "0::/k8s.io/" A "\n", A, NONE },
	{ "containerd with ctr, a name instead of an id", "0::/default/redis\n", NONE, NONE },
	{ "nerdctl", "0::/system.slice/nerdctl-" A ".scope\n", A, NONE },
	{ "podman, v2, systemd driver", "0::/machine.slice/libpod-" A ".scope\n", A, NONE },
	{ "podman, v2, split container group", "0::/machine.slice/libpod-" A ".scope/container\n",
		A, NONE },
	{ "podman's monitor", "0::/machine.slice/libpod-conmon-" A ".scope\n", A, NONE },
	{ "podman, v1, cgroupfs driver", "3:pids:/libpod_parent/libpod-" A "\n0::/\n", A, NONE },
	{ "podman, rootless, v2",
		"0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" A
		".scope/container\n",
		A, NONE },
	{ "podman, rootless, cgroupfs driver",
		"0::/user.slice/user-2000.slice/user@2000.service/user.slice/libpod/" A "\n", A,
		NONE },
	{ "podman pod, its slice has an id of its own",
		"0::/machine.slice/machine-libpod_pod_" B ".slice/libpod-" A ".scope\n", A, NONE },
	{ "cri-o, systemd driver",
		"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" POD_A_
		".slice/crio-" A ".scope\n",
		A, POD_A },
	{ "cri-o, a group below the container's",
		"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" POD_A_
		".slice/crio-" A ".scope/container\n",
		A, POD_A },
	{ "cri-o, v1, cgroupfs driver", "9:memory:/kubepods/besteffort/pod" POD_A "/crio-" A "\n",
		A, POD_A },
	{ "cri-o's monitor",
		"0::/kubepods.slice/kubepods-pod" POD_A_ ".slice/crio-conmon-" A ".scope\n", A,
		POD_A },
	{ "kubelet, cgroupfs driver, best effort",
		"4:memory:/kubepods/besteffort/pod" POD_A "/" A "\n0::/\n", A, POD_A },
	{ "kubelet, cgroupfs driver, burstable", "0::/kubepods/burstable/pod" POD_A "/" A "\n", A,
		POD_A },
	{ "kubelet, cgroupfs driver, guaranteed", "0::/kubepods/pod" POD_A "/" A "\n", A, POD_A },
	{ "kubelet, systemd driver, containerd, best effort",
		"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" POD_A_
		".slice/cri-containerd-" A ".scope\n",
		A, POD_A },
	{ "kubelet, systemd driver, docker",
		"1:name=systemd:/kubepods.slice/kubepods-pod" POD_A_ ".slice/docker-" A ".scope\n",
		A, POD_A },
	{ "containerd with a colon between slice, runtime and container",
		"0::/system.slice/containerd.service/kubepods-burstable-pod" POD_A_
		".slice:cri-containerd:" A "\n",
		A, POD_A },
	{ "containerd with the uid in dashes and a colon",
		"0::/kubepods-besteffort-pod" POD_A ":cri-containerd:" A "\n", A, POD_A },
	{ "a static pod has a uid without dashes",
		"0::/kubepods/burstable/pod" STATIC_POD "/" A "\n", A, NONE },
	{ "a static pod, systemd driver",
		"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" STATIC_POD
		".slice/cri-containerd-" A ".scope\n",
		A, NONE },
	{ "kind: pods in a docker container, v2",
		"0::/docker/" B "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" POD_A_
		".slice/cri-containerd-" A ".scope\n",
		A, POD_A },
	{ "kind on v1: some hierarchies name only the outer container",
		"2:cpuset:/docker/" B "/kubepods/besteffort/pod" POD_A "/" A "\n0::/docker/" B
		"/system.slice/containerd.service\n",
		NULL, POD_A, A },
	{ "the same, the outer one first",
		"2:memory:/docker/" B "/system.slice/containerd.service\n1:cpuset:/docker/" B
		"/kubepods/besteffort/pod" POD_A "/" A "\n",
		NULL, POD_A, A },
	{ "k3s, rootless",
		"0::/user.slice/user-1000.slice/user@1000.service/k3s.service/kubepods/besteffort/"
		"pod" POD_A "/" A "\n",
		A, POD_A },
	{ "nested docker in a pod", "0::/kubepods/besteffort/pod" POD_A "/" B "/docker/" A "\n", A,
		POD_A },
	{ "microk8s, names of the kubelet's unit before it",
		"0::/system.slice/snap.microk8s.service/kubepods/pod" POD_A "/" A "\n", A, POD_A },
	{ "Amazon ECS", "9:perf_event:/ecs/9c2b1a3d-1111-2222-3333-abcdefabcdef/" A "\n", A, NONE },
	{ "Amazon ECS, the task's id has 32 digits", "1:cpu:/ecs/mine/" STATIC_POD "/" A "\n", A,
		NONE },
	{ "AWS Fargate: 32 digits and a number are no container's id as runtimes have it",
		"1:cpu:/ecs/" STATIC_POD "/" STATIC_POD "-3062012345\n", NONE, NONE },
	{ "Cloud Foundry's garden names them otherwise",
		"7:memory:/garden/b0cfd4ac-1d31-4d4a-6b3c-1f4a\n", NONE, NONE },
	{ "LXC names them as people do", "0::/lxc/web01/init.scope\n", NONE, NONE },
	{ "LXC, as of 4.0", "0::/lxc.payload.web01/system.slice/ssh.service\n", NONE, NONE },
	{ "systemd-nspawn", "0::/machine.slice/systemd-nspawn@deb.service/payload\n", NONE, NONE },
	{ "Mesos", "3:memory:/mesos/b1c2d3e4-1111-2222-3333-444444444444\n", NONE, NONE },
	{ "buildkit", "0::/docker/buildkit/s5uzv8qkkqzz7zv4t4xgy0p8r\n", NONE, NONE },
	{ "Nomad with docker", "0::/nomad.slice/share.slice/docker-" A ".scope\n", A, NONE },
	{ "a login session", "1:name=systemd:/user.slice/user-1000.slice/session-2.scope\n", NONE,
		NONE },
	{ "a host whose paths end in 32 digits",
		"9:name=systemd:/\n4:memory:/process_api/" STATIC_POD "\n0::/\n", NONE, NONE },
	{ "inside of a cgroup namespace", "0::/\n", NONE, NONE },
	{ "no hierarchy at all", "", NONE, NONE },
	{ "digits that go on are no id", "0::/docker/" A "0\n", NONE, NONE },
	{ "nor do they after an underscore", "0::/docker/x_" A "\n", NONE, NONE },
	{ "63 digits",
		"0::/docker/123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n",
		NONE, NONE },
	{ "the id is the last one in the path", "0::/" B "/" A "\n", A, NONE },
	{ "but the first one in its segment", "0::/" A "-" B "\n", A, NONE },
	{ "capitals",
		"0::/docker/0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF\n",
		"0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF", NONE },
	{ "a pod's uid after the container counts for nothing",
		"0::/docker/" A "/kubepods/pod" POD_A "\n", A, NONE },
	{ "a word that ends in pod is none", "0::/kubepods/xpod" POD_A "/" A "\n", A, NONE },
	{ "a uid that goes on is none", "0::/kubepods/pod" POD_A "0/" A "\n", A, NONE },
	{ "a uid cut short is none", "0::/kubepods/pod00000000-1111-2222-3333-44444444444/" A "\n",
		A, NONE },
	{ "an empty segment ends the search", "0::/docker/" A "//\n", NONE, NONE },
	{ "colons in the path are the path's", "1:name=systemd:/a:b/" A "\n", A, NONE },
	{ "no new line at the end", "0::/docker/" A, A, NONE },
	{ "two containers", "2:memory:/docker/" A "\n1:cpu:/docker/" B "\n", NULL, NULL },
	{ "two containers of one pod",
		"2:memory:/kubepods/pod" POD_A "/" A "\n1:cpu:/kubepods/pod" POD_A "/" B "\n", NULL,
		NULL },
	{ "one container in two pods",
		"2:memory:/kubepods/pod" POD_A "/" A "\n1:cpu:/kubepods/pod" POD_B "/" A "\n", A,
		NULL },
	{ "a line of two fields", "11:hugetlb\n", NULL, NULL },
	{ "a line of none", "0::/docker/" A "\n\n", NULL, NULL },
};

static void check_one(const struct fixture *f, bool failed, const struct container *c,
	const char *id, const char *pod)
{
	bool want_failure = !id || !pod;

	if (failed == want_failure && strcmp(c->id, failed ? "untouched" : id) == 0 &&
		strcmp(c->pod_uid, failed ? "" : pod) == 0)
		return;
	TEST_FAIL("%s: %s, container \"%s\", pod \"%s\"", f->what,
		failed ? "failed" : "did not fail", c->id, c->pod_uid);
}

static void check_fixtures(const struct fixture *f, size_t n,
	int (*parse)(struct bytes text, int want, struct container *ret, struct err *e))
{
	for (size_t i = 0; i < n; i++) {
		struct container c = { .id = "untouched" };
		struct err e = ERR_INIT;
		int r = parse(bytes_str(f[i].text), 0, &c, &e);

		check_one(&f[i], r != 0, &c, f[i].id, "");
		c = (struct container){ .id = "untouched" };
		r = parse(bytes_str(f[i].text), CONTAINER_POD, &c, &e);
		check_one(
			&f[i], r != 0, &c, f[i].id_with_pod ? f[i].id_with_pod : f[i].id, f[i].pod);
	}
}

static void test_cgroup(void)
{
	check_fixtures(cgroups, ARRAY_LEN(cgroups), container_from_cgroup);
}

#define MOUNT(root) "1543 1542 0:32 " root " /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n"
#define MOUNT1(root, at)                                                                           \
	"33 32 0:37 " root " /sys/fs/cgroup/" at " ro master:16 - cgroup cgroup rw\n"

static const struct fixture mounts[] = {
	{ "docker, v1",
		"572 571 0:63 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n" MOUNT1(
			"/docker/" A, "systemd") MOUNT1("/docker/" A, "memory"),
		A, NONE },
	{ "docker, v2", MOUNT("/../" A), A, NONE },
	{ "docker, v2, the whole tree mounted too",
		MOUNT("/some.slice/docker-" A ".scope") MOUNT("/") MOUNT1("/", "unified"), A,
		NONE },
	{ "a source that is empty",
		MOUNT("/../" A) "119 206 0:68 / /local rw,relatime - tmpfs  rw,size=8192k\n", A,
		NONE },
	{ "kubelet, v1, systemd driver",
		MOUNT1("/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" POD_A_
		       ".slice/cri-containerd-" A ".scope",
			"cpu,cpuacct"),
		A, POD_A },
	{ "kubelet, v2, a pod beside the agent's",
		MOUNT("/../../kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-"
		      "pod" POD_A_ ".slice/cri-containerd-" A ".scope"),
		A, POD_A },
	{ "the agent's own pod", MOUNT("/../cri-containerd-" A ".scope"), A, NONE },
	{ "not a cgroup", "1 2 0:30 /docker/" A " /x ro - tmpfs cgroup rw\n", NONE, NONE },
	{ "podman, named as a whole tree only", MOUNT("/"), NONE, NONE },
	{ "no such name", MOUNT("/not-a-match"), NONE, NONE },
	{ "a pod beats none",
		MOUNT("/kubepods-pod" POD_A_ ".slice/cri-containerd-" A ".scope")
			MOUNT("/fake/cri-containerd-" B ".scope"),
		NULL, POD_A, A },
	{ "two pods",
		MOUNT("/kubepods-pod" POD_A_ ".slice/cri-containerd-" A ".scope")
			MOUNT("/kubepods-pod" POD_B_ ".slice/cri-containerd-" A ".scope"),
		A, NULL },
	{ "two containers", MOUNT("/../" A) MOUNT("/../" B), NULL, NULL },
	{ "empty lines", "\n\n" MOUNT("/../" A) "\n", A, NONE },
	{ "nothing", "", NONE, NONE },
	{ "no separator", "1543 1542 0:32 /x /sys/fs/cgroup ro cgroup2 cgroup rw\n", NULL, NULL },
	{ "too few fields before it", "1543 1542 0:32 - cgroup2 cgroup rw\n", NULL, NULL },
	{ "no type after it", "1543 1542 0:32 /x /sys/fs/cgroup rw - \n", NULL, NULL },
	{ "nothing after it", "1543 1542 0:32 /x /sys/fs/cgroup rw -\n", NULL, NULL },
	{ "escaped names", "1 2 0:3 /a\\040" A " /x\\040y rw shared:1 master:2 - cgroup2 c rw\n",
		NONE, NONE },
};

static void test_mountinfo(void)
{
	check_fixtures(mounts, ARRAY_LEN(mounts), container_from_mountinfo);
}

static void test_errors(void)
{
	struct container c;
	struct err e = ERR_INIT;

	CHECK_ERR(container_from_cgroup(bytes_str("1:a:/docker/" A "\n0::/docker/" B), 0, &c, &e),
		ERR_PRECONDITION);
	CHECK_STR(e.msg, "multiple container IDs found (\"" A "\", \"" B "\")");
	CHECK_ERR(container_from_cgroup(bytes_str("1:a:/pod" POD_A "/" A "\n0::/pod" POD_B "/" A),
			  CONTAINER_POD, &c, &e),
		ERR_PRECONDITION);
	CHECK_STR(e.msg, "multiple pod UIDs found (\"" POD_A "\", \"" POD_B "\")");
	CHECK_ERR(container_from_cgroup(bytes_str("x"), 0, &c, &e), ERR_INTERNAL);
	CHECK_CONTAINS(e.msg, "unable to obtain cgroups");
	CHECK_ERR(container_from_cgroup(bytes_of("0::/a\0b\n", 8), 0, &c, &e), ERR_INTERNAL);
	CHECK_ERR(container_from_mountinfo(bytes_str("x"), 0, &c, &e), ERR_INTERNAL);
	CHECK_CONTAINS(e.msg, "failed to parse mount info");
}

/* ---- a process, with a folder that stands for /proc/PID ---- */

static void put(const char *dir, const char *name, const char *text)
{
	AUTO(free) char *path = xasprintf("%s/%s", dir, name);
	struct err e = ERR_INIT;

	CHECK_OK(buf_write_file(bytes_str(text), path, 0644, &e));
}

static void test_process(void)
{
	AUTO(free) char *dir = xasprintf("%s/123", test_dir());
	struct caller c = CALLER_INIT;
	struct container got;
	struct err e = ERR_INIT;

	CHECK(mkdir(dir, 0755) == 0);
	c.pid = 123;
	c.dir = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	put(dir, "cgroup", "0::/\n");
	put(dir, "mountinfo", MOUNT("/../" A));
	/* In the initial cgroup namespace mounts count for nothing: anybody can make such. */
	CHECK_OK(container_find(&c, 0, &got, &e));
	CHECK_STR(got.id, container_sees_all() ? "" : A);
	if (container_sees_all() && unshare(CLONE_NEWCGROUP) != 0)
		SKIP("no cgroup namespace can be made: %s", strerror(errno));
	CHECK(!container_sees_all());
	CHECK_OK(container_find(&c, 0, &got, &e));
	CHECK_STR(got.id, A);
	CHECK_OK(container_find(&c, CONTAINER_NO_MOUNTS, &got, &e));
	CHECK_STR(got.id, "");
	/* A process may mount another's cgroup where it likes: its own is what counts. */
	put(dir, "cgroup", "0::/../" B "\n");
	CHECK_OK(container_find(&c, CONTAINER_VERBOSE, &got, &e));
	CHECK_STR(got.id, B);
	put(dir, "cgroup", "1:x:/docker/" A "\n0::/docker/" B "\n");
	CHECK_ERR(container_find(&c, 0, &got, &e), ERR_PRECONDITION);
	caller_deinit(&c);
	/* This process: in no container, or in one that shows. */
	CHECK_OK(caller_open(&c, getpid(), -1, &e));
	CHECK_OK(container_find(&c, 0, &got, &e));
	caller_deinit(&c);
}

TEST_MAIN(TEST(test_cgroup), TEST(test_mountinfo), TEST(test_errors), TEST(test_process))

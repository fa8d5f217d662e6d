/* Covers: agent/csi.c, agent/csi_node.c, agent/csi_mount.c. The mounts are real ones, in a mount
 * namespace of the test's own. The calls over gRPC are tests/integration/csi.sh's. */
#include "tests/test.h"

#include <limits.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "agent/csi.h"

static char source[200], pods[200], target[300];

static struct csi_options options(void)
{
	return (struct csi_options){ .node_id = "node1",
		.plugin_name = CSI_NAME_DEFAULT,
		.socket_path = CSI_SOCKET_DEFAULT,
		.workload_dir = source,
		.kubelet_path = "",
		.registration_dir = CSI_REGISTRATION_DEFAULT };
}

static void begin(void)
{
	snprintf(source, sizeof(source), "%s/agent", test_dir());
	snprintf(pods, sizeof(pods), "%s/pods", test_dir());
	snprintf(target, sizeof(target), "%s/mount", pods);
	CHECK(mkdir(source, 0755) == 0);
	CHECK(mkdir(pods, 0750) == 0);
}

static void begin_mounts(void)
{
	if (geteuid() != 0 || unshare(CLONE_NEWNS) != 0 ||
		mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
		SKIP("mounting needs root and a mount namespace");
	begin();
}

/* ---- requests ---- */

struct publish {
	Csi__V1__NodePublishVolumeRequest rq;
	Csi__V1__VolumeCapability capability;
	Csi__V1__VolumeCapability__MountVolume mount;
	Csi__V1__VolumeCapability__AccessMode mode;
	Csi__V1__NodePublishVolumeRequest__VolumeContextEntry context, *contexts[1];
};

static char *text(const char *s)
{
	return (char *)(uintptr_t)s;
}

static struct publish *good(void)
{
	struct publish *p = xcalloc(1, sizeof(*p));

	csi__v1__node_publish_volume_request__init(&p->rq);
	csi__v1__volume_capability__init(&p->capability);
	csi__v1__volume_capability__mount_volume__init(&p->mount);
	csi__v1__volume_capability__access_mode__init(&p->mode);
	csi__v1__node_publish_volume_request__volume_context_entry__init(&p->context);
	p->mode.mode = CSI__V1__VOLUME_CAPABILITY__ACCESS_MODE__MODE__SINGLE_NODE_WRITER;
	p->capability.access_type_case = CSI__V1__VOLUME_CAPABILITY__ACCESS_TYPE_MOUNT;
	p->capability.mount = &p->mount;
	p->capability.access_mode = &p->mode;
	p->context.key = text("csi.storage.k8s.io/ephemeral");
	p->context.value = text("true");
	p->contexts[0] = &p->context;
	p->rq.volume_id = text("csi-1");
	p->rq.target_path = target;
	p->rq.volume_capability = &p->capability;
	p->rq.readonly = true;
	p->rq.n_volume_context = 1;
	p->rq.volume_context = p->contexts;
	return p;
}

static void refused(struct publish *p, const char *why)
{
	struct csi_options o = options();
	struct err e = ERR_INIT;

	CHECK_ERR(csi_publish(&o, &p->rq, &e), ERR_INVALID);
	CHECK_STR(e.msg, why);
	free(p);
	CHECK(access(target, F_OK) != 0);
}

static int publish(struct err *e)
{
	struct csi_options o = options();
	AUTO(free) struct publish *p = good();

	return csi_publish(&o, &p->rq, e);
}

static int unpublish(const char *path, struct err *e)
{
	Csi__V1__NodeUnpublishVolumeRequest rq = CSI__V1__NODE_UNPUBLISH_VOLUME_REQUEST__INIT;
	struct csi_options o = options();

	rq.volume_id = text("csi-1");
	rq.target_path = text(path);
	return csi_unpublish(&o, &rq, e);
}

static int condition(const char *path, struct err *e)
{
	Csi__V1__NodeGetVolumeStatsRequest rq = CSI__V1__NODE_GET_VOLUME_STATS_REQUEST__INIT;
	struct csi_options o = options();

	rq.volume_path = text(path);
	return csi_condition(&o, &rq, e);
}

/* ---- what is refused ---- */

/* In the order of the checks: each is the only thing wrong. */
static void test_refused(void)
{
	struct publish *p;

	begin();
	p = good();
	p->rq.volume_id = text("");
	refused(p, "request missing required volume id");
	p = good();
	p->rq.target_path = text("");
	refused(p, "request missing required target path");
	p = good();
	p->rq.volume_capability = NULL;
	refused(p, "request missing required volume capability");
	p = good();
	p->capability.access_type_case = CSI__V1__VOLUME_CAPABILITY__ACCESS_TYPE__NOT_SET;
	refused(p, "request missing required volume capability access type");
	p = good();
	p->capability.access_type_case = CSI__V1__VOLUME_CAPABILITY__ACCESS_TYPE_BLOCK;
	refused(p, "request volume capability access type must be a simple mount");
	p = good();
	p->mount.fs_type = text("ext4");
	refused(p, "request volume capability access type must be a simple mount");
	p = good();
	p->mount.n_mount_flags = 1;
	refused(p, "request volume capability access type must be a simple mount");
	p = good();
	p->capability.access_mode = NULL;
	refused(p, "request missing required volume capability access mode");
	p = good();
	p->mode.mode = CSI__V1__VOLUME_CAPABILITY__ACCESS_MODE__MODE__SINGLE_NODE_READER_ONLY;
	refused(p, "request volume capability access mode is not valid");
	p = good();
	p->rq.readonly = false;
	refused(p, "pod.spec.volumes[].csi.readOnly must be set to 'true'");
	p = good();
	p->context.value = text("false");
	refused(p, "only ephemeral volumes are supported");
	p = good();
	p->rq.n_volume_context = 0;
	refused(p, "only ephemeral volumes are supported");
}

static void test_paths(void)
{
	static const char *const bad[] = { "", "a", "a/b", "/", "/a/", "/a//b", "//a", "/a/../b",
		"/..", "/a/.", "/./a", "../a" };
	static const char *const fine[] = { "/a", "/a/b", "/a/..b", "/a/.b", "/a/...",
		"/var/lib/kubelet/pods/x/volumes/kubernetes.io~csi/spiffe/mount" };
	AUTO(free) char *longest = xmalloc(PATH_MAX + 1);
	struct err e = ERR_INIT;

	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		if (csi_path_check(bad[i], "target", &e) != ERR_INVALID)
			TEST_FAIL("not refused: %s", bad[i]);
	for (size_t i = 0; i < ARRAY_LEN(fine); i++)
		CHECK_OK(csi_path_check(fine[i], "target", &e));
	memset(longest, 'a', PATH_MAX);
	longest[0] = '/';
	longest[PATH_MAX] = '\0';
	CHECK_ERR(csi_path_check(longest, "target", &e), ERR_INVALID);
	CHECK_STR(e.msg, "target path is longer than 4096 bytes");
	longest[PATH_MAX - 1] = '\0';
	CHECK_OK(csi_path_check(longest, "target", &e));

	begin();
	CHECK_ERR(unpublish("relative", &e), ERR_INVALID);
	CHECK_STR(e.msg, "target path must be absolute");
	CHECK_ERR(unpublish("", &e), ERR_INVALID);
	CHECK_STR(e.msg, "request missing required target path");
	CHECK_ERR(condition("", &e), ERR_INVALID);
}

static void wrong(struct csi_options o, int code, const char *why)
{
	struct err e = ERR_INIT;

	CHECK_ERR(csi_options_check(&o, &e), code);
	CHECK_CONTAINS(e.msg, why);
}

static void test_options(void)
{
	struct csi_options o;
	struct err e = ERR_INIT;
	char file[300];

	begin();
	o = options();
	CHECK_OK(csi_options_check(&o, &e));
	o.node_id = "";
	wrong(o, ERR_INVALID, "node ID is required");
	o = options();
	o.workload_dir = "";
	wrong(o, ERR_INVALID, "workload API socket directory is required");
	o.workload_dir = "/nowhere/at/all";
	wrong(o, ERR_NOT_FOUND, "workload API socket directory /nowhere/at/all");
	snprintf(file, sizeof(file), "%s/file", test_dir());
	CHECK(close(open(file, O_CREAT | O_WRONLY, 0600)) == 0);
	o.workload_dir = file;
	wrong(o, ERR_INVALID, "is no directory");
	o = options();
	o.socket_path = "";
	wrong(o, ERR_INVALID, "CSI socket path is required");
	o = options();
	o.kubelet_path = "plugins/csi.sock";
	wrong(o, ERR_INVALID, "kubelet registration path must be absolute");
	o = options();
	o.plugin_name = "a/b";
	wrong(o, ERR_INVALID, "plugin-name");
	o.plugin_name = ".csi";
	wrong(o, ERR_INVALID, "plugin-name");
	o.plugin_name = "";
	wrong(o, ERR_INVALID, "plugin-name");
	o.plugin_name = "a23456789012345678901234567890123456789012345678901234567890123";
	CHECK_OK(csi_options_check(&o, &e));
	o.plugin_name = "a234567890123456789012345678901234567890123456789012345678901234";
	wrong(o, ERR_INVALID, "plugin-name");
}

static void test_without_mounts(void)
{
	struct err e = ERR_INIT;
	char path[400];

	begin();
	CHECK_OK(unpublish(target, &e)); /* was never there */
	CHECK(condition(target, &e) != 0);
	CHECK_STR(e.msg, "volume path is not mounted");
	CHECK(mkdir(target, 0750) == 0);
	CHECK(condition(target, &e) != 0);
	CHECK_STR(e.msg, "volume path is not mounted");
	/* What is in the way, and not ours to remove. */
	snprintf(path, sizeof(path), "%s/file", target);
	CHECK(close(open(path, O_CREAT | O_WRONLY, 0600)) == 0);
	CHECK_ERR(unpublish(target, &e), ERR_INTERNAL);
	CHECK_CONTAINS(e.msg, "unable to remove target path \"");
	CHECK_CONTAINS(e.msg, ": directory not empty");
	CHECK(unlink(path) == 0);
	CHECK_OK(unpublish(target, &e));
	CHECK(access(target, F_OK) != 0);
	/* A link goes; what it leads to stays. */
	CHECK(symlink(source, target) == 0);
	CHECK_OK(unpublish(target, &e));
	CHECK(access(source, F_OK) == 0);
	CHECK(rmdir(pods) == 0);
	CHECK_ERR(publish(&e), ERR_INTERNAL);
	CHECK_CONTAINS(e.msg, "unable to create target path \"");
	CHECK_CONTAINS(e.msg, "/mount: no such file or directory");
}

/* ---- real mounts ---- */

static void check_closed(const char *path)
{
	const unsigned long want = ST_RDONLY | ST_NOSUID | ST_NODEV | ST_NOEXEC;
	struct statvfs st;

	CHECK(statvfs(path, &st) == 0);
	CHECK_INT(st.f_flag & want, want);
}

static void test_mounts(void)
{
	struct err e = ERR_INIT;
	char path[400];
	struct statvfs st;

	begin_mounts();
	CHECK_OK(publish(&e));
	check_closed(target);
	/* The source is as it was, and what appears there is seen. */
	snprintf(path, sizeof(path), "%s/api.sock", source);
	CHECK(close(open(path, O_CREAT | O_WRONLY, 0600)) == 0);
	snprintf(path, sizeof(path), "%s/api.sock", target);
	CHECK(access(path, F_OK) == 0);
	CHECK(open(path, O_WRONLY) < 0 && errno == EROFS);
	CHECK(statvfs(source, &st) == 0 && !(st.f_flag & ST_RDONLY));
	CHECK_OK(condition(target, &e));

	CHECK_OK(publish(&e)); /* nothing happens: one unpublish is enough */
	CHECK_OK(unpublish(target, &e));
	CHECK(access(target, F_OK) != 0);
	CHECK_OK(unpublish(target, &e));
	CHECK(condition(target, &e) != 0);

	/* Stacked by two drivers. */
	CHECK_OK(publish(&e));
	CHECK_OK(csi_mount_bind(source, target, false, &e));
	CHECK_OK(unpublish(target, &e));
	CHECK(access(target, F_OK) != 0);
}

static void test_writable(void)
{
	struct csi_options o = options();
	AUTO(free) struct publish *p = NULL;
	struct err e = ERR_INIT;
	struct statvfs st;

	begin_mounts();
	o = options();
	o.host_writable = true;
	p = good();
	CHECK_OK(csi_publish(&o, &p->rq, &e));
	CHECK(statvfs(target, &st) == 0 && !(st.f_flag & ST_RDONLY));
	CHECK_OK(unpublish(target, &e));
}

static void test_links(void)
{
	struct err e = ERR_INIT;
	char elsewhere[300];

	begin_mounts();
	snprintf(elsewhere, sizeof(elsewhere), "%s/elsewhere", test_dir());
	CHECK(mkdir(elsewhere, 0755) == 0);
	CHECK(symlink(elsewhere, target) == 0);
	CHECK_ERR(publish(&e), ERR_INTERNAL);
	CHECK_CONTAINS(e.msg, "unable to mount \"");
	/* A mount behind a link is not ours to end. */
	CHECK_OK(csi_mount_bind(source, elsewhere, false, &e));
	CHECK_OK(unpublish(target, &e));
	check_closed(elsewhere);
	CHECK(umount(elsewhere) == 0);
	CHECK(symlink(elsewhere, target) == 0);
	CHECK(condition(target, &e) != 0);
	CHECK_STR(e.msg, "volume path is not mounted");
}

static void test_stale(void)
{
	struct csi_options o = options();
	struct err e = ERR_INIT;

	begin_mounts();
	o = options();
	CHECK_OK(publish(&e));
	CHECK(!csi_source_is_gone(&o));
	CHECK(rmdir(source) == 0);
	CHECK(csi_source_is_gone(&o));
	CHECK(condition(target, &e) != 0);
	CHECK_CONTAINS(e.msg, "was deleted");
	CHECK_ERR(publish(&e), ERR_INTERNAL);
	CHECK_CONTAINS(e.msg, "the Workload API socket directory was deleted");
	/* There again, another one: the old mount is of use to nobody. */
	CHECK(mkdir(source, 0755) == 0);
	CHECK(condition(target, &e) != 0);
	CHECK_OK(publish(&e));
	CHECK_OK(condition(target, &e));
	check_closed(target);
	CHECK_OK(unpublish(target, &e));
}

static void test_foreign(void)
{
	struct err e = ERR_INIT;

	begin_mounts();
	CHECK(mkdir(target, 0750) == 0);
	CHECK(mount("tmpfs", target, "tmpfs", 0, NULL) == 0);
	CHECK_ERR(publish(&e), ERR_INTERNAL);
	CHECK_CONTAINS(e.msg, "something else is mounted there");
	CHECK(condition(target, &e) != 0);
	CHECK_CONTAINS(e.msg, "not a mount of the Workload API socket directory");
	CHECK_OK(unpublish(target, &e));
	CHECK(access(target, F_OK) != 0);
}

/* Where the target propagates, as from a driver in a container to its host, the copy is read-only
 * too. */
static void test_propagates(void)
{
	struct err e = ERR_INIT;
	char host[300];

	begin_mounts();
	CHECK(mount(pods, pods, NULL, MS_BIND, NULL) == 0);
	CHECK(mount(NULL, pods, NULL, MS_SHARED, NULL) == 0);
	snprintf(host, sizeof(host), "%s/host", test_dir());
	CHECK(mkdir(host, 0755) == 0);
	CHECK(mount(pods, host, NULL, MS_BIND, NULL) == 0);
	CHECK_OK(publish(&e));
	snprintf(host, sizeof(host), "%s/host/mount", test_dir());
	check_closed(host);
	CHECK_OK(unpublish(target, &e));
	CHECK(access(host, F_OK) != 0);
}

TEST_MAIN(TEST(test_refused), TEST(test_paths), TEST(test_options), TEST(test_without_mounts),
	TEST(test_mounts), TEST(test_writable), TEST(test_links), TEST(test_stale),
	TEST(test_foreign), TEST(test_propagates))

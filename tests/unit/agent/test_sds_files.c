/* Istio's names for secrets in files: read in the caller's place, and read again. */
#include "agent/sds_files.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "agent/caller.h"
#include "tests/test.h"

#define PEM "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
#define KEY "-----BEGIN PRIVATE KEY-----\nBBBB\n-----END PRIVATE KEY-----\n"

static struct loop *loop;
static struct peer peer;
static int calls;
static struct err got_err;
static struct sds_secrets got; /* copies of bodies */

static void on_changed(void *arg, const struct sds_secrets *s, const struct err *e)
{
	(void)arg;
	calls++;
	got_err = *e;
	CHECK(!s == (e->code != 0));
	sds_secrets_deinit(&got);
	for (size_t i = 0; s && i < s->n; i++) {
		got.v = xreallocarray(got.v, got.n + 1, sizeof(*got.v));
		got.v[got.n] =
			(struct sds_secret){ .name = xstrdup(s->v[i].name), .body = BUF_INIT };
		buf_bytes(&got.v[got.n++].body, buf_view(&s->v[i].body));
	}
	loop_stop(loop);
}

static char *in_dir(const char *name)
{
	return xasprintf("%s/%s", test_dir(), name);
}

static void put(const char *name, const char *text, unsigned mode)
{
	AUTO(free) char *path = in_dir(name);
	struct err e = ERR_INIT;

	CHECK_OK(buf_write_file(bytes_str(text), path, mode, &e));
	CHECK(chmod(path, mode) == 0);
}

static struct sds_files *open_files(const char *name, int look_ms)
{
	char *names[] = { (char *)(uintptr_t)name };
	struct strings list = { .v = names, .n = 1 };
	struct sds_files_options o = { .loop = loop,
		.peer = &peer,
		.names = &list,
		.look_ms = look_ms,
		.changed = on_changed };

	calls = 0;
	return sds_files_open(&o);
}

static void look_once(const char *fmt, const char *file)
{
	AUTO(free) char *path = in_dir(file);
	AUTO(free) char *name = NULL;
	struct sds_files *f;

	name = xasprintf("%s%s", fmt, path);
	f = open_files(name, -1);
	loop_run(loop);
	CHECK_INT(calls, 1);
	sds_files_close(f);
}

static bool body_has(const char *text)
{
	return got.n == 1 && memmem(got.v[0].body.p, got.v[0].body.len, text, strlen(text)) != NULL;
}

static void setup(pid_t pid)
{
	struct err e = ERR_INIT;

	loop = loop_new();
	peer = (struct peer){ .is_unix = true, .pid = pid, .pidfd = -1 };
	CHECK_OK(caller_pidfd(pid, &peer.pidfd, &e));
	CHECK(chmod(test_dir(), 0755) == 0);
}

static void teardown(void)
{
	sds_secrets_deinit(&got);
	close(peer.pidfd);
	loop_drain(loop);
	loop_run(loop);
	loop_free(loop);
}

static void test_names(void)
{
	struct strings s = { 0 };

	CHECK(sds_is_file("file-cert:/a~/b"));
	CHECK(sds_is_file("file-root:system"));
	CHECK(!sds_is_file("default"));
	CHECK(!sds_is_file("file"));
	CHECK(!sds_are_files(&s));
	strings_add(&s, "file-root:/a");
	CHECK(sds_are_files(&s));
	strings_add(&s, "ROOTCA");
	CHECK(!sds_are_files(&s));
	strings_deinit(&s);
}

/* A name that names both files; NAME is cut at "~" into two paths of the test's folder. */
static void test_pair(void)
{
	AUTO(free) char *cert = in_dir("cert.pem");
	AUTO(free) char *key = in_dir("key.pem");
	AUTO(free) char *name = xasprintf("file-cert:%s~%s", cert, key);
	struct sds_files *f;

	setup(getpid());
	put("cert.pem", PEM, 0644);
	put("key.pem", KEY, 0600);
	f = open_files(name, -1);
	loop_run(loop);
	CHECK_STR(got_err.msg, "");
	CHECK(body_has("AAAA") && body_has("BBBB"));
	CHECK_STR(got.v[0].name, name);
	sds_files_close(f);
	look_once("file-root:", "cert.pem");
	CHECK(body_has("AAAA"));
	teardown();
}

static void test_refused(void)
{
	static const struct {
		const char *kind, *file, *why;
	} rows[] = {
		{ "file-root:", "none.pem", "No such file or directory" },
		{ "file-root:", "text.pem", "holds nothing in PEM" },
		{ "file-root:", "empty.pem", "holds nothing in PEM" },
		{ "file-root:", "folder", "is not a file" },
		{ "file-root:", "pipe", "is not a file" },
		{ "file-root:", "large.pem", "is larger than 1048576 bytes" },
		{ "file-root:", "a~b", "one file is wanted" },
		{ "file-cert:", "cert.pem", "a certificate and a key are wanted, as A~B" },
		{ "file-cert:", "a~b~c", "a certificate and a key are wanted, as A~B" },
	};
	AUTO(free) char *folder = in_dir("folder");
	AUTO(free) char *pipe = in_dir("pipe");
	AUTO(free) char *large = in_dir("large.pem");

	setup(getpid());
	put("text.pem", "hello", 0644);
	put("empty.pem", "", 0644);
	put("large.pem", PEM, 0644);
	CHECK(truncate(large, SDS_FILE_MAX + 1) == 0);
	CHECK(mkdir(folder, 0755) == 0);
	CHECK(mkfifo(pipe, 0666) == 0);
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		look_once(rows[i].kind, rows[i].file);
		CHECK_INT(got_err.code, ERR_INVALID);
		CHECK_CONTAINS(got_err.msg, rows[i].why);
	}
	teardown();
}

/* ---- somebody else ---- */

/* A process of that user, in that root folder (NULL: ours). */
static pid_t other_process(unsigned uid, const char *root)
{
	int ready[2];
	char c;
	pid_t pid;

	CHECK(pipe(ready) == 0);
	pid = fork();
	if (pid == 0) {
		if ((root && (chroot(root) || chdir("/"))) || syscall(SYS_setgroups, 0, NULL) ||
			syscall(SYS_setresgid, uid, uid, uid) ||
			syscall(SYS_setresuid, uid, uid, uid) || write(ready[1], "r", 1) != 1)
			_exit(1);
		pause();
		_exit(0);
	}
	CHECK(read(ready[0], &c, 1) == 1);
	close(ready[0]);
	close(ready[1]);
	return pid;
}

static void end_process(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

enum { NOBODY = 65534 };

/* The caller gets what he may read himself, and no more. */
static void test_permissions(void)
{
	pid_t pid;

	if (geteuid() != 0)
		SKIP("needs root");
	pid = other_process(NOBODY, NULL);
	setup(pid);
	put("open.pem", PEM, 0644);
	put("closed.pem", PEM, 0600);
	look_once("file-root:", "open.pem");
	CHECK_STR(got_err.msg, "");
	look_once("file-root:", "closed.pem");
	CHECK_INT(got_err.code, ERR_INVALID);
	CHECK_CONTAINS(got_err.msg, "Permission denied");
	{
		AUTO(free) char *path = in_dir("closed.pem");

		CHECK(chown(path, NOBODY, 0) == 0);
	}
	look_once("file-root:", "closed.pem");
	CHECK_STR(got_err.msg, "");
	end_process(pid);
	look_once("file-root:", "open.pem");
	CHECK_CONTAINS(got_err.msg, "has ended");
	/* The worker that read is still who it was. */
	CHECK_INT(geteuid(), 0);
	teardown();
}

/* Below the caller's root folder, whatever the links say. */
static void test_root_folder(void)
{
	AUTO(free) char *root = in_dir("root");
	AUTO(free) char *deep = in_dir("root/etc");
	AUTO(free) char *link = in_dir("root/link.pem");
	AUTO(free) char *out = in_dir("root/out.pem");
	AUTO(free) char *up = in_dir("root/up.pem");
	AUTO(free) char *outside = in_dir("outside.pem");
	struct sds_files *f;
	pid_t pid;

	if (geteuid() != 0)
		SKIP("needs root");
	CHECK(chmod(test_dir(), 0755) == 0);
	CHECK(mkdir(root, 0755) == 0 && mkdir(deep, 0755) == 0);
	put("outside.pem", PEM, 0644);
	put("root/etc/a.pem", PEM, 0644);
	CHECK(symlink("/etc/a.pem", link) == 0);
	CHECK(symlink(outside, out) == 0);
	CHECK(symlink("../outside.pem", up) == 0);
	pid = other_process(NOBODY, root);
	setup(pid);
	f = open_files("file-root:/link.pem", -1);
	loop_run(loop);
	CHECK_STR(got_err.msg, "");
	sds_files_close(f);
	f = open_files("file-root:/out.pem", -1);
	loop_run(loop);
	CHECK_CONTAINS(got_err.msg, "No such file");
	sds_files_close(f);
	f = open_files("file-root:/up.pem", -1);
	loop_run(loop);
	CHECK_CONTAINS(got_err.msg, "No such file");
	sds_files_close(f);
	/* its own roots */
	f = open_files("file-root:system", -1);
	loop_run(loop);
	CHECK_CONTAINS(got_err.msg, "No such file");
	sds_files_close(f);
	end_process(pid);
	teardown();
}

/* ---- again ---- */

static void stop(void *arg)
{
	(void)arg;
	loop_stop(loop);
}

static void test_changes(void)
{
	AUTO(free) char *path = in_dir("roots.pem");
	AUTO(free) char *name = xasprintf("file-root:%s", path);
	struct loop_timer *t;
	struct sds_files *f;

	setup(getpid());
	t = loop_timer_new(loop, stop, NULL);
	put("roots.pem", PEM, 0644);
	f = open_files(name, 10);
	loop_run(loop);
	CHECK_INT(calls, 1);
	loop_timer_set(t, 100 * NS_PER_MS);
	loop_run(loop);
	CHECK_INT(calls, 1); /* the same content is not told again */
	put("roots.pem", KEY, 0644);
	loop_run(loop);
	CHECK_INT(calls, 2);
	CHECK(body_has("BBBB"));
	loop_timer_free(t);
	sds_files_close(f);
	f = open_files(name, 10);
	sds_files_close(f); /* while it is being read */
	loop_drain(loop);
	CHECK_INT(calls, 0);
	teardown();
}

TEST_MAIN(TEST(test_names), TEST(test_pair), TEST(test_refused), TEST(test_permissions),
	TEST(test_root_folder), TEST(test_changes))

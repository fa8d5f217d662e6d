#include <grp.h>
#include <pwd.h>
#include <sys/syscall.h>

#include "agent/workload.h"
#include "tests/test.h"

static struct attestation got;
static bool answered;

static void on_done(void *arg, const struct attestation *a)
{
	got = *a;
	got.selectors = selectors_dup(&a->selectors);
	got.exe = a->exe ? xstrdup(a->exe) : NULL;
	answered = true;
	if (arg)
		loop_stop(arg);
}

static bool has(const char *text)
{
	for (size_t i = 0; i < got.selectors.n; i++) {
		AUTO(free)
		char *s = xasprintf("%s:%s", got.selectors.v[i].type, got.selectors.v[i].value);

		if (strcmp(s, text) == 0)
			return true;
	}
	return false;
}

static void attest(struct workload *w, struct loop *l, const struct peer *p, pid_t pid)
{
	selectors_deinit(&got.selectors);
	free(got.exe);
	got.exe = NULL;
	answered = false;
	workload_attest(w, p, pid, true, on_done, l);
	if (!answered)
		loop_run(l);
	CHECK(answered);
}

static void test_unix_selectors(void)
{
	struct agent_options o = { .attestor_unix = true };
	struct loop *l;
	struct workload *w;
	struct passwd *pw = getpwuid(geteuid());
	AUTO(free) char *uid = xasprintf("unix:uid:%u", (unsigned)geteuid());
	AUTO(free) char *gid = xasprintf("unix:gid:%u", (unsigned)getegid());
	AUTO(free) char *user = xasprintf("unix:user:%s", pw ? pw->pw_name : "");

	crypto_init();
	l = loop_new();
	w = workload_new(l, &o);
	attest(w, l, NULL, getpid());
	CHECK_INT(got.err.code, 0);
	CHECK(has(uid));
	CHECK(has(gid));
	CHECK(!pw || has(user));
	CHECK(got.exe && strstr(got.exe, "test_workload"));
	for (size_t i = 0; i < got.selectors.n; i++)
		CHECK(strncmp(got.selectors.v[i].value, "path:", 5) != 0);
	/* Names are known now: no job. */
	selectors_deinit(&got.selectors);
	free(got.exe);
	answered = false;
	workload_attest(w, NULL, getpid(), false, on_done, NULL);
	CHECK(answered);
	workload_free(w);
	loop_free(l);
}

static void test_path_and_hash(void)
{
	struct agent_options o = { .attestor_unix = true, .unix_discover_workload_path = true };
	struct loop *l;
	struct workload *w;
	AUTO(free) char *exe = realpath("/proc/self/exe", NULL);
	AUTO(free) char *path = xasprintf("unix:path:%s", exe);
	AUTO_BUF struct buf file = BUF_INIT, hex = BUF_INIT;
	uint8_t digest[HASH_MAX];
	struct err e = ERR_INIT;

	crypto_init();
	CHECK_OK(buf_read_file(&file, exe, &e));
	hash_of(HASH_SHA256, buf_view(&file), digest);
	buf_str(&hex, "unix:sha256:");
	hex_encode(&hex, bytes_of(digest, 32));
	l = loop_new();
	w = workload_new(l, &o);
	attest(w, l, NULL, getpid());
	CHECK_INT(got.err.code, 0);
	CHECK(has(path));
	CHECK(has(buf_cstr(&hex)));
	attest(w, l, NULL, getpid()); /* from the cache */
	CHECK(has(buf_cstr(&hex)));
	o.unix_workload_size_limit = 10;
	attest(w, l, NULL, getpid());
	CHECK(got.err.code != 0);
	CHECK_CONTAINS(got.err.msg, "workload_size_limit");
	CHECK_INT(got.selectors.n, 0);
	o.unix_workload_size_limit = -1;
	attest(w, l, NULL, getpid());
	CHECK_INT(got.err.code, 0);
	CHECK(has(path));
	CHECK(!has(buf_cstr(&hex)));
	workload_free(w);
	loop_free(l);
}

/* A caller that has ended gets nothing, though its pid may be another's by now. */
static void test_ended_caller(void)
{
	struct agent_options o = { .attestor_unix = true };
	struct loop *l;
	struct workload *w;
	struct peer p = { .is_unix = true };
	int pipefd[2];
	char c;

	crypto_init();
	CHECK(pipe(pipefd) == 0);
	p.pid = fork();
	if (p.pid == 0) {
		close(pipefd[1]);
		_exit(read(pipefd[0], &c, 1) < 0);
	}
	p.pidfd = (int)syscall(SYS_pidfd_open, p.pid, 0);
	CHECK(p.pidfd >= 0);
	l = loop_new();
	w = workload_new(l, &o);
	attest(w, l, &p, 0);
	CHECK_INT(got.err.code, 0);
	close(pipefd[1]);
	/* Ended, not yet waited for: the pid cannot have been given away, /proc still has it. */
	while (peer_alive(&p))
		usleep(1000);
	attest(w, l, &p, 0);
	CHECK_INT(got.err.code, ERR_NOT_FOUND);
	CHECK_INT(got.selectors.n, 0);
	CHECK(waitpid(p.pid, NULL, 0) == p.pid);
	attest(w, l, &p, 0);
	CHECK_INT(got.err.code, ERR_NOT_FOUND);
	/* The pid is another process now: the pidfd knows better. */
	p.pid = getpid();
	attest(w, l, &p, 0);
	CHECK_INT(got.err.code, ERR_NOT_FOUND);
	CHECK_INT(got.selectors.n, 0);
	close(p.pidfd);
	workload_free(w);
	loop_free(l);
}

static void test_no_such_process(void)
{
	struct agent_options o = { .attestor_unix = true };
	struct loop *l;
	struct workload *w;

	crypto_init();
	l = loop_new();
	w = workload_new(l, &o);
	attest(w, l, NULL, 0x3ffffff);
	CHECK_INT(got.err.code, ERR_NOT_FOUND);
	attest(w, l, NULL, 0);
	CHECK_INT(got.err.code, ERR_NOT_FOUND);
	workload_free(w);
	loop_free(l);
}

TEST_MAIN(TEST(test_unix_selectors), TEST(test_path_and_hash), TEST(test_ended_caller),
	TEST(test_no_such_process))

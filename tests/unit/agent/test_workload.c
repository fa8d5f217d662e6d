#include <grp.h>
#include <pwd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>

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
	while (!answered)
		loop_run(l);
	CHECK(answered);
}

static void test_unix_selectors(void)
{
	struct agent_options o = { .attestor_unix = true };
	struct loop *l;
	struct workload *w;
	struct err e = ERR_INIT;
	struct passwd *pw = getpwuid(geteuid());
	AUTO(free) char *uid = xasprintf("unix:uid:%u", (unsigned)geteuid());
	AUTO(free) char *gid = xasprintf("unix:gid:%u", (unsigned)getegid());
	AUTO(free) char *user = xasprintf("unix:user:%s", pw ? pw->pw_name : "");

	crypto_init();
	l = loop_new();
	CHECK_OK(workload_new(l, &o, &w, &e));
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
	CHECK_OK(workload_new(l, &o, &w, &e));
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
	struct err e = ERR_INIT;
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
	CHECK_OK(workload_new(l, &o, &w, &e));
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
	struct err e = ERR_INIT;

	crypto_init();
	l = loop_new();
	CHECK_OK(workload_new(l, &o, &w, &e));
	attest(w, l, NULL, 0x3ffffff);
	CHECK_INT(got.err.code, ERR_NOT_FOUND);
	attest(w, l, NULL, 0);
	CHECK_INT(got.err.code, ERR_NOT_FOUND);
	workload_free(w);
	loop_free(l);
}

/* ---- attestors that wait for others ---- */

/* Answers after a while, or never; blocks first when told so. */
struct slow {
	struct loop *loop;
	int open, started, cancelled, blocked;
	bool blocks, never, fails, no_answer;
};
static struct slow slow;

struct slow_op {
	struct loop_timer *timer;
	struct finding *ret;
	void (*done)(void *arg);
	void *arg;
};

static int slow_open(struct loop *l, const struct agent_options *o, void **ret, struct err *e)
{
	(void)o;
	if (slow.fails)
		return err_set(e, ERR_INVALID, "cannot");
	slow.open++;
	slow.loop = l;
	*ret = &slow;
	return 0;
}

static void slow_close(void *state)
{
	CHECK(state == &slow);
	slow.open--;
}

static enum attest_next slow_attest(
	void *state, const struct caller *c, bool blocking, struct finding *ret)
{
	struct slow *s = state;

	CHECK(c->pid > 0);
	CHECK_INT(blocking, !loop_is_current(s->loop));
	selectors_add(&ret->selectors, "slow", "so far");
	if (s->blocks && !blocking)
		return ATTEST_BLOCKS;
	s->blocked += blocking;
	return ATTEST_WAITS;
}

static void slow_answer(void *arg)
{
	struct slow_op *op = arg;

	selectors_add(&op->ret->selectors, "slow", "answer");
	if (slow.no_answer)
		err_set(&op->ret->err, ERR_INTERNAL, "no answer");
	op->ret->waited_for = xstrdup("a slow answer");
	op->done(op->arg);
	loop_timer_free(op->timer);
	free(op);
}

static void *slow_start(void *state, const struct caller *c, struct finding *ret,
	void (*done)(void *arg), void *arg)
{
	struct slow *s = state;
	struct slow_op *op = xcalloc(1, sizeof(*op));

	CHECK(c->pid > 0);
	s->started++;
	*op = (struct slow_op){ .ret = ret, .done = done, .arg = arg };
	op->timer = loop_timer_new(s->loop, slow_answer, op);
	if (!s->never)
		loop_timer_set(op->timer, 20 * 1000000LL);
	return op;
}

static void slow_cancel(void *arg)
{
	struct slow_op *op = arg;

	slow.cancelled++;
	loop_timer_free(op->timer);
	free(op);
}

static bool slow_enabled(const struct agent_options *o)
{
	return o != NULL;
}

static const struct attestor slow_attestor = { .name = "slow",
	.enabled = slow_enabled,
	.open = slow_open,
	.close = slow_close,
	.attest = slow_attest,
	.start = slow_start,
	.cancel = slow_cancel };

static void test_waiting(void)
{
	struct agent_options o = { .attestor_unix = true, .unix_discover_workload_path = true };
	struct loop *l;
	struct workload *w;
	struct err e = ERR_INIT;

	crypto_init();
	l = loop_new();
	CHECK_OK(workload_new(l, &o, &w, &e));
	CHECK_OK(workload_add(w, &slow_attestor, &o, &e));
	for (int i = 0; i < 2; i++) {
		slow.blocks = i == 1;
		attest(w, l, NULL, getpid());
		CHECK_INT(got.err.code, 0);
		CHECK(has("slow:answer") && has("slow:so far"));
		CHECK_INT(got.findings[1].elapsed_ns >= 20 * 1000000LL, 1);
		CHECK_INT(slow.started, i + 1);
		CHECK_INT(slow.blocked, i);
	}
	/* What the others found counts. */
	slow.no_answer = true;
	attest(w, l, NULL, getpid());
	CHECK_INT(got.err.code, 0);
	CHECK_STR(got.part_err.msg, "workload attestor \"slow\" failed: no answer");
	CHECK(got.selectors.n > 0 && !has("slow:answer") && !has("slow:so far"));
	slow.fails = true;
	CHECK_ERR(workload_add(w, &slow_attestor, &o, &e), ERR_INVALID);
	CHECK_STR(e.msg, "WorkloadAttestor \"slow\": cannot");
	workload_free(w);
	CHECK_INT(slow.open, 0);
	loop_free(l);
}

static void close_end(void *arg)
{
	close(*(int *)arg);
}

/* The end of the process ends the waiting, with the rest of it. */
static void test_process_ends_while_waiting(void)
{
	struct agent_options o = { .attestor_unix = true };
	struct loop *l;
	struct workload *w;
	struct err e = ERR_INIT;
	struct loop_timer *t;
	int pipefd[2];
	char c;
	pid_t pid;

	crypto_init();
	CHECK(pipe(pipefd) == 0);
	pid = fork();
	if (pid == 0) {
		close(pipefd[1]);
		_exit(read(pipefd[0], &c, 1) < 0);
	}
	l = loop_new();
	slow.never = true;
	CHECK_OK(workload_new(l, &o, &w, &e));
	CHECK_OK(workload_add(w, &slow_attestor, &o, &e));
	t = loop_timer_new(l, close_end, &pipefd[1]);
	loop_timer_set(t, 20 * 1000000LL);
	attest(w, l, NULL, pid);
	CHECK_INT(got.err.code, ERR_NOT_FOUND);
	CHECK_INT(got.selectors.n, 0);
	CHECK_INT(slow.started, 1);
	CHECK_INT(slow.cancelled, 1);
	CHECK(waitpid(pid, NULL, 0) == pid);
	loop_timer_free(t);
	workload_free(w);
	loop_free(l);
}

static void stop_it(void *arg)
{
	workload_stop(arg);
}

static void test_stop_while_waiting(void)
{
	struct agent_options o = { .attestor_unix = true };
	struct loop *l;
	struct workload *w;
	struct err e = ERR_INIT;
	struct loop_timer *t;

	crypto_init();
	l = loop_new();
	slow.never = true;
	CHECK_OK(workload_new(l, &o, &w, &e));
	CHECK_OK(workload_add(w, &slow_attestor, &o, &e));
	t = loop_timer_new(l, stop_it, w);
	loop_timer_set(t, 20 * 1000000LL);
	attest(w, l, NULL, getpid());
	CHECK_INT(got.err.code, ERR_UNAVAILABLE);
	CHECK_CONTAINS(got.err.msg, "stopping");
	CHECK_INT(slow.cancelled, 1);
	/* And nothing begins any more. */
	slow.started = 0;
	attest(w, l, NULL, getpid());
	CHECK_INT(got.err.code, ERR_UNAVAILABLE);
	CHECK_INT(slow.started, 0);
	slow.blocks = true;
	attest(w, l, NULL, getpid());
	CHECK_INT(got.err.code, ERR_UNAVAILABLE);
	CHECK_INT(slow.started, 0);
	loop_timer_free(t);
	workload_free(w);
	loop_free(l);
}

/* Without a bus, and with one that says nothing: the others' selectors count, and an end does not
 * wait for it. */
static void test_systemd_without_bus(void)
{
	struct agent_options o = { .attestor_unix = true, .attestor_systemd = true };
	AUTO(free) char *path = xasprintf("%s/bus", test_dir());
	AUTO(free) char *address = xasprintf("unix:path=%s", path);
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	struct loop *l;
	struct workload *w;
	struct loop_timer *t;
	struct err e = ERR_INIT;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	crypto_init();
	CHECK(setenv("DBUS_SYSTEM_BUS_ADDRESS", address, 1) == 0);
	l = loop_new();
	CHECK_OK(workload_new(l, &o, &w, &e));
	attest(w, l, NULL, getpid());
	CHECK_INT(got.err.code, 0);
	CHECK_CONTAINS(got.part_err.msg,
		"workload attestor \"systemd\" failed: failed to open dbus connection");
	CHECK(got.selectors.n > 0);
	snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
	CHECK(bind(fd, (struct sockaddr *)&a, sizeof(a)) == 0 && listen(fd, 5) == 0);
	t = loop_timer_new(l, stop_it, w);
	loop_timer_set(t, 20 * 1000000LL);
	attest(w, l, NULL, getpid());
	CHECK_INT(got.err.code, ERR_UNAVAILABLE);
	close(fd); /* so that it need not be waited for */
	loop_timer_free(t);
	loop_drain(l);
	workload_free(w);
	loop_free(l);
}

TEST_MAIN(TEST(test_unix_selectors), TEST(test_path_and_hash), TEST(test_ended_caller),
	TEST(test_no_such_process), TEST(test_waiting), TEST(test_process_ends_while_waiting),
	TEST(test_stop_while_waiting), TEST(test_systemd_without_bus))

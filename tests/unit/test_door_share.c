/* Whoever holds most descriptors pays. */
#include <math.h>

#include "tests/unit/door.inc"

static void raise_limit(void)
{
	struct rlimit rl;

	getrlimit(RLIMIT_NOFILE, &rl);
	rl.rlim_cur = rl.rlim_max;
	setrlimit(RLIMIT_NOFILE, &rl);
	if (rl.rlim_cur < 4000)
		SKIP("needs 4,000 descriptors, the limit is %ld", (long)rl.rlim_cur);
}

/* Another process of the same uid; true when its call succeeds. */
static bool other_process(bool (*fn)(void))
{
	pid_t pid = fork();
	int status;

	if (pid == 0)
		_exit(fn() ? 0 : 1);
	waitpid(pid, &status, 0);
	return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

enum { LIMIT = 1000, BUDGET = 850, MANY = 1000 };

static void idle_flood(void)
{
	static int fds[MANY];
	struct door_stats s;

	for (int i = 0; i < MANY; i++) {
		fds[i] = hello();
		if (i % 100 == 99)
			CHECK(other_process(fresh_call));
	}
	SOON((s = stats()).accepted == MANY + 10);
	CHECK_INT(s.open, BUDGET / 2 / 4);
	CHECK_INT(s.refused_full, 0);
	CHECK(s.evicted_idle >= MANY - BUDGET / 2 / 4);
	/* the oldest went, the newest are there */
	CHECK(h2_closed(fds[0], 10000));
	CHECK(call_on(fds[MANY - 1], 1));
	for (int i = 0; i < MANY; i++)
		close(fds[i]);
}

static void test_share_idle_flood_of_one_process(void)
{
	raise_limit();
	door_limit_for_test = LIMIT;
	door_times.young_ms = 0;
	run(idle_flood);
}

static void busy_flood(void)
{
	static int fds[MANY];
	uint64_t want = BUDGET / 2 / 4;
	int kept = 0;
	int idle = hello();

	CHECK(call_on(idle, 1));
	for (int i = 0; i < MANY; i++)
		fds[i] = holding_if_let_in();
	SOON(stats().accepted == MANY + 1);
	/* calls are not ended for newcomers of the same process; the idle one was */
	CHECK_INT(stats().open, want);
	CHECK_INT(stats().refused_full + stats().evicted_idle, MANY + 1 - want);
	CHECK(h2_closed(idle, 10000));
	/* One whose call had not been read yet may have gone as idle; those with a call stay. */
	while (kept < MANY && h2_closed(fds[kept], 0))
		kept++;
	CHECK(kept < MANY);
	for (int i = 0; i < 20; i++)
		CHECK(other_process(fresh_call));
	CHECK(!h2_closed(fds[kept], 0));
	for (int i = 0; i < MANY; i++)
		close(fds[i]);
	close(idle);
}

static void test_share_busy_flood_of_one_process(void)
{
	raise_limit();
	door_limit_for_test = LIMIT;
	door_times.young_ms = 0;
	run(busy_flood);
}

/* Ten processes of one uid with many calls each fill the budget; an eleventh still comes in. */
static void many_processes(void)
{
	enum { PROCESSES = 10, EACH = 60 };
	pid_t pids[PROCESSES];
	int ready[2];
	char c;

	CHECK(pipe(ready) == 0);
	for (int i = 0; i < PROCESSES; i++) {
		pids[i] = fork();
		if (pids[i] == 0) {
			for (int j = 0; j < EACH; j++) {
				int fd = h2_connect(target);

				h2_hello(&out);
				h2_call(&out, 1, "/x/hold");
				h2_flush(fd, &out);
			}
			CHECK_INT(write(ready[1], "x", 1), 1);
			pause();
		}
	}
	for (int i = 0; i < PROCESSES; i++)
		CHECK_INT(read(ready[0], &c, 1), 1);
	SOON(stats().accepted == PROCESSES * EACH);
	CHECK(stats().open <= BUDGET / 4);
	for (int i = 0; i < 50; i++)
		CHECK(other_process(fresh_call));
	for (int i = 0; i < PROCESSES; i++) {
		kill(pids[i], SIGKILL);
		waitpid(pids[i], NULL, 0);
	}
	SOON(stats().open == 0);
	close(ready[0]);
	close(ready[1]);
}

static void test_share_many_processes_of_one_uid(void)
{
	raise_limit();
	door_limit_for_test = LIMIT;
	door_times.young_ms = 0;
	run(many_processes);
}

static bool as_nobody(void)
{
	if (setgid(65534) != 0 || setuid(65534) != 0)
		return false;
	for (int i = 0; i < 20; i++)
		if (!fresh_call())
			return false;
	return true;
}

/* A hundred processes of one uid with a few calls each: nobody else is shut out. */
static void many_small_processes(void)
{
	enum { PROCESSES = 100 };
	pid_t pids[PROCESSES];
	int ready[2];
	char c;

	if (getuid() != 0)
		SKIP("needs root, for a second uid");
	CHECK(chmod(test_dir(), 0755) == 0);
	CHECK(pipe(ready) == 0);
	for (int i = 0; i < PROCESSES; i++) {
		pids[i] = fork();
		if (pids[i] == 0) {
			for (int j = 0; j < 4; j++) {
				int fd = h2_connect(target);

				h2_hello(&out);
				h2_call(&out, 1, "/x/hold");
				h2_flush(fd, &out);
			}
			CHECK_INT(write(ready[1], "x", 1), 1);
			pause();
		}
	}
	for (int i = 0; i < PROCESSES; i++)
		CHECK_INT(read(ready[0], &c, 1), 1);
	SOON(stats().accepted == PROCESSES * 4);
	CHECK(other_process(as_nobody));
	for (int i = 0; i < PROCESSES; i++) {
		kill(pids[i], SIGKILL);
		waitpid(pids[i], NULL, 0);
	}
	close(ready[0]);
	close(ready[1]);
}

static void test_share_other_uid(void)
{
	raise_limit();
	door_limit_for_test = LIMIT;
	door_times.young_ms = 0;
	run(many_small_processes);
}

/* One that connects faster than it uses its connections is refused, and loses none. */
static void hasty(void)
{
	static int fds[MANY];
	uint64_t want = BUDGET / 2 / 4;

	for (int i = 0; i < MANY; i++)
		fds[i] = connect_now();
	SOON(stats().accepted == MANY);
	CHECK_INT(stats().open, want);
	CHECK_INT(stats().refused_full, MANY - want);
	CHECK_INT(stats().evicted_idle, 0);
	CHECK(other_process(fresh_call));
	for (int i = 0; i < MANY; i++)
		close(fds[i]);
}

static void test_share_hasty(void)
{
	raise_limit();
	door_limit_for_test = LIMIT;
	door_times.young_ms = 60000;
	run(hasty);
}

static bool misbehave(void)
{
	int fd = hello();

	h2_frame(&out, H2_DATA, 0, 1, "x", 1); /* no such stream */
	CHECK(h2_flush(fd, &out));
	CHECK(h2_closed(fd, 10000));
	close(fd);
	return true;
}

/* After a fault the process stays outside for a while, others not. */
static void penalty(void)
{
	double begun = h2_now();

	CHECK(fresh_call());
	CHECK(misbehave());
	CHECK(!fresh_call());
	CHECK(other_process(fresh_call));
	CHECK(!fresh_call());
	SOON(fresh_call());
	CHECK(h2_now() - begun > 0.25);
	CHECK(misbehave()); /* again: twice as long */
	begun = h2_now();
	SOON(fresh_call());
	CHECK(h2_now() - begun > 0.5);
}

static void test_penalty(void)
{
	door_times.penalty_ms = 300;
	run(penalty);
}

/* Limits of one connection are not multiplied by many of them. */
static void spread_resets(void)
{
	enum { CONNS = 20, EACH = 100 };
	int fds[CONNS];

	h2_sleep_ms((long)(1000 - fmod(h2_now(), 1) * 1000)); /* all within one second */
	for (int i = 0; i < CONNS; i++) {
		fds[i] = connect_now();
		h2_hello(&out);
		for (uint32_t id = 1; id < 2 * EACH; id += 2) {
			h2_open(&out, id, 0, "/x/hold");
			h2_zeros(&out, H2_RST_STREAM, 0, id, 4);
		}
		h2_flush(fds[i], &out);
	}
	SOON(stats().guard_killed > 0);
	CHECK(stats().open >= SHARE_RESETS_PER_SECOND / EACH - 1);
	CHECK(other_process(fresh_call));
	for (int i = 0; i < CONNS; i++)
		close(fds[i]);
}

static void test_resets_over_many_connections(void)
{
	run(spread_resets);
}

static void spread_streams(void)
{
	enum { CONNS = SHARE_STREAMS / DOOR_STREAMS_MAX + 5 };
	int fds[CONNS];

	for (int i = 0; i < CONNS; i++) {
		fds[i] = connect_now();
		h2_hello(&out);
		for (uint32_t id = 1; id < 2 * DOOR_STREAMS_MAX; id += 2)
			h2_open(&out, id, 0, "/x/hold");
		h2_flush(fds[i], &out);
		SOON(stats().accepted == (uint64_t)i + 1);
	}
	SOON(stats().guard_killed + stats().refused_full == 5);
	CHECK_INT(stats().open, CONNS - 5);
	CHECK(other_process(fresh_call));
	for (int i = 0; i < CONNS; i++)
		close(fds[i]);
}

static void test_streams_over_many_connections(void)
{
	run(spread_streams);
}

/* Many new connections of one process wait for each other, not for those of another. */
static void paced(void)
{
	static int fds[SHARE_OPENS_BURST + 500];
	enum { N = SHARE_OPENS_BURST + 500 };

	for (int i = 0; i < N; i++) {
		fds[i] = hello();
		close(fds[i]);
	}
	CHECK(other_process(fresh_call));
	CHECK(fresh_call());
	SOON(stats().open == 0);
}

static void test_openings_are_paced(void)
{
	raise_limit();
	run(paced);
}

static void privileged(void)
{
	enum { MOST = (LIMIT - BUDGET) / 2 / 4 };
	static int fds[MOST + 5];

	for (int i = 0; i < MOST + 5; i++)
		fds[i] = holding_if_let_in();
	SOON(stats().accepted == MOST + 5);
	CHECK_INT(stats().open, MOST);
	for (int i = 0; i < MOST + 5; i++)
		close(fds[i]);
	SOON(stats().open == 0);
	CHECK(fresh_call());
}

static void test_privileged_has_the_reserve(void)
{
	struct door_options o = options();

	raise_limit();
	door_limit_for_test = LIMIT;
	door_times.young_ms = 0;
	o.privileged = true;
	run_with(&o, privileged);
}

/* accept() fails for want of descriptors: no spinning, and it goes on afterwards. */
static void emfile(void)
{
	struct rlimit rl, old;
	struct rusage a, b;
	int fds[20];
	bool ok;
	pid_t pid;

	CHECK(fresh_call());
	for (int i = 0; i < 20; i++)
		fds[i] = h2_connect(target);
	SOON(stats().accepted == 21);
	getrlimit(RLIMIT_NOFILE, &old);
	rl = old;
	rl.rlim_cur = (rlim_t)open_fds() - 3;
	pid = fork();
	if (pid == 0) {
		h2_sleep_ms(100);
		ok = fresh_call();
		h2_sleep_ms(100);
		_exit(ok ? 0 : 1);
	}
	setrlimit(RLIMIT_NOFILE, &rl);
	getrusage(RUSAGE_SELF, &a);
	h2_sleep_ms(400);
	getrusage(RUSAGE_SELF, &b);
	CHECK((b.ru_utime.tv_sec - a.ru_utime.tv_sec) * 1000000 + b.ru_utime.tv_usec -
			a.ru_utime.tv_usec <
		100000);
	setrlimit(RLIMIT_NOFILE, &old);
	CHECK(waitpid(pid, &(int){ 0 }, 0) == pid);
	CHECK(fresh_call());
	for (int i = 0; i < 20; i++)
		close(fds[i]);
}

static void test_no_descriptors(void)
{
	run(emfile);
}

static void churn(void)
{
	int start = open_fds();

	for (int i = 0; i < 20000; i++) {
		int fd = connect_now();

		if (i % 3 != 0) {
			h2_hello(&out);
			if (i % 3 == 1)
				h2_call(&out, 1, i % 2 ? "/x/quick" : "/x/hold");
			CHECK(h2_flush(fd, &out));
		}
		if (i % 5 == 0)
			shutdown(fd, SHUT_RDWR);
		close(fd);
	}
	SOON(stats().accepted == 20000 && stats().open == 0);
	SOON(__atomic_load_n(&stub_conns, __ATOMIC_SEQ_CST) == 0);
	SOON(open_fds() <= start + 1); /* the last peer's pidfd */
}

static void test_churn_leaves_nothing(void)
{
	run(churn);
}

TEST_MAIN(TEST(test_share_idle_flood_of_one_process), TEST(test_share_busy_flood_of_one_process),
	TEST(test_share_many_processes_of_one_uid), TEST(test_share_other_uid),
	TEST(test_share_hasty), TEST(test_penalty), TEST(test_resets_over_many_connections),
	TEST(test_streams_over_many_connections), TEST(test_openings_are_paced),
	TEST(test_privileged_has_the_reserve), TEST(test_no_descriptors),
	TEST(test_churn_leaves_nothing))

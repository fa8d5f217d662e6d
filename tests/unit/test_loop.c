#include "lib/loop.h"

#include <pthread.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>

#include "tests/test.h"

static struct loop *loop;
static int count;
static char trace[64];
static char letters[] = "abcdefghijklmnopqrstuvwxyz";
static char letters_apart[] = "a\0b\0c";
static char text[] = "text";

static void note(void *arg)
{
	strncat(trace, arg, sizeof(trace) - strlen(trace) - 1);
}

static void stop(void *arg)
{
	(void)arg;
	loop_stop(loop);
}

static void sleep_ms(long ms)
{
	nanosleep(&(struct timespec){ .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 }, NULL);
}

static void test_empty(void)
{
	loop = loop_new();
	CHECK(loop_is_current(loop));
	loop_run(loop);
	loop_free(loop);
}

static void test_stop_before_run(void)
{
	struct loop_timer *t;

	loop = loop_new();
	t = loop_timer_new(loop, note, text);
	loop_timer_set(t, 3600 * NS_PER_SEC);
	loop_stop(loop);
	loop_run(loop);
	CHECK_STR(trace, "");
	loop_timer_free(t);
	loop_free(loop);
}

/* ---- posting ---- */

static void post_more(void *arg)
{
	note(arg);
	loop_post(loop, note, &letters_apart[4]);
	CHECK_STR(trace, "ab");
}

static void test_post_in_order(void)
{
	loop = loop_new();
	loop_post(loop, note, &letters_apart[0]);
	loop_post(loop, post_more, &letters_apart[2]);
	CHECK_STR(trace, "");
	loop_run(loop);
	CHECK_STR(trace, "abc");
	loop_free(loop);
}

enum { POSTERS = 4, POSTS = 20000 };
static int last_seen[POSTERS];

static void on_post(void *arg)
{
	int who = (int)((intptr_t)arg % POSTERS), n = (int)((intptr_t)arg / POSTERS);

	CHECK(loop_is_current(loop));
	CHECK_INT(n, last_seen[who] + 1);
	last_seen[who] = n;
	if (++count == POSTERS * POSTS)
		loop_stop(loop);
}

static void *poster(void *arg)
{
	CHECK(!loop_is_current(loop));
	for (intptr_t i = 1; i <= POSTS; i++) {
		loop_post(loop, on_post, (void *)(i * POSTERS + (intptr_t)arg));
	}
	return NULL;
}

static void test_post_from_threads(void)
{
	pthread_t threads[POSTERS];
	struct loop_timer *alive;

	loop = loop_new();
	alive = loop_timer_new(loop, stop, NULL);
	loop_timer_set(alive, 50 * NS_PER_SEC);
	for (intptr_t i = 0; i < POSTERS; i++)
		pthread_create(&threads[i], NULL, poster, (void *)i);
	loop_run(loop);
	CHECK_INT(count, POSTERS * POSTS);
	for (int i = 0; i < POSTERS; i++)
		pthread_join(threads[i], NULL);
	loop_timer_free(alive);
	loop_free(loop);
}

/* ---- jobs ---- */

struct sum {
	int n;
	int result;
};

static void sum_work(void *arg)
{
	struct sum *s = arg;

	for (int i = 1; i <= s->n; i++)
		s->result += i;
}

static void sum_done(void *arg)
{
	struct sum *s = arg;

	CHECK(loop_is_current(loop));
	CHECK_INT(s->result, s->n * (s->n + 1) / 2);
	count++;
}

static void test_jobs(void)
{
	static struct sum sums[1000];

	loop = loop_new();
	CHECK(loop_workers() >= 2);
	for (int i = 0; i < 1000; i++) {
		sums[i].n = i;
		loop_job(loop, sum_work, sum_done, &sums[i]);
	}
	CHECK_INT(count, 0);
	loop_run(loop);
	CHECK_INT(count, 1000);
	loop_free(loop);
}

static void slow_work(void *arg)
{
	(void)arg;
	sleep_ms(20);
}

static void count_up(void *arg)
{
	(void)arg;
	count++;
}

/* "done always follows work, also while the loop is stopping". */
static void test_jobs_end_at_free(void)
{
	loop = loop_new();
	for (int i = 0; i < 8; i++)
		loop_job(loop, slow_work, count_up, NULL);
	loop_free(loop);
	CHECK_INT(count, 8);
}

/* ---- lanes ---- */

static void lane_work(void *arg)
{
	CHECK(!loop_is_current(loop));
	strncat(trace, arg, 1);
}

static void test_lane_in_order(void)
{
	struct lane *la;

	loop = loop_new();
	la = lane_new(loop, "test-lane");
	for (int i = 0; i < 26; i++)
		lane_job(la, lane_work, count_up, &letters[i]);
	loop_run(loop);
	CHECK_STR(trace, "abcdefghijklmnopqrstuvwxyz");
	CHECK_INT(count, 26);
	lane_free(la);
	loop_free(loop);
}

static int batches, batch_most;

static void batch(void *ctx, void **args, int n)
{
	CHECK(ctx == text);
	if (batches++ == 0)
		sleep_ms(50); /* the others gather meanwhile */
	if (n > batch_most)
		batch_most = n;
	for (int i = 0; i < n; i++)
		strncat(trace, args[i], 1);
}

static void test_lane_batch(void)
{
	struct lane *la;

	loop = loop_new();
	la = lane_new_batch(loop, "test-lane", batch, text, 10);
	for (int i = 0; i < 26; i++)
		lane_job(la, NULL, count_up, &letters[i]);
	lane_free(la); /* waits; the done parts come later */
	CHECK_INT(count, 0);
	CHECK_STR(trace, "abcdefghijklmnopqrstuvwxyz");
	CHECK_INT(batch_most, 10);
	CHECK(batches <= 26 / 2);
	loop_run(loop);
	CHECK_INT(count, 26);
	loop_free(loop);
}

/* ---- timers ---- */

static struct mono started;
static struct loop_timer *timer;

static void check_late_enough(void *arg)
{
	CHECK(clock_mono().ns - started.ns >= (intptr_t)arg);
	count++;
}

static void test_timer_is_never_early(void)
{
	int64_t spans[] = { 0, 1, 999999, 1000000, 1500000, 7300001, 30000000 };
	struct loop_timer *timers[ARRAY_LEN(spans)];

	loop = loop_new();
	sleep_ms(3); /* the loop's idea of now is stale */
	started = clock_mono();
	for (size_t i = 0; i < ARRAY_LEN(spans); i++) {
		timers[i] = loop_timer_new(loop, check_late_enough, (void *)(intptr_t)spans[i]);
		loop_timer_set(timers[i], spans[i]);
	}
	loop_run(loop);
	CHECK_INT(count, ARRAY_LEN(spans));
	for (size_t i = 0; i < ARRAY_LEN(spans); i++)
		loop_timer_free(timers[i]);
	loop_free(loop);
}

static void again(void *arg)
{
	(void)arg;
	if (++count < 5)
		loop_timer_set(timer, 0);
	else
		loop_timer_free(timer);
}

static void test_timer_again_and_free_inside(void)
{
	loop = loop_new();
	timer = loop_timer_new(loop, again, NULL);
	loop_timer_set(timer, 1000);
	CHECK_INT(count, 0);
	loop_run(loop);
	CHECK_INT(count, 5);
	loop_timer_free(NULL);
	loop_free(loop);
}

static void test_timer_stop(void)
{
	loop = loop_new();
	timer = loop_timer_new(loop, count_up, NULL);
	loop_timer_set(timer, NS_PER_MS);
	loop_timer_stop(timer);
	loop_timer_set_wall(timer, wall_add_ns(clock_wall(), NS_PER_MS));
	loop_timer_stop(timer);
	loop_run(loop);
	CHECK_INT(count, 0);
	loop_timer_set(timer, INT64_MAX);
	loop_timer_free(timer);
	loop_free(loop);
}

static void test_wall_timers_in_order(void)
{
	static char names[26][2];
	struct loop_timer *timers[26];
	struct wall now = clock_wall();

	loop = loop_new();
	for (int i = 0; i < 26; i++) {
		int n = i * 7 % 26;

		names[n][0] = (char)('a' + n);
		timers[n] = loop_timer_new(loop, note, names[n]);
		loop_timer_set_wall(timers[n], wall_add_ns(now, n * NS_PER_MS));
	}
	loop_timer_stop(timers[3]);
	loop_timer_set_wall(timers[5], wall_add_ns(now, 30 * NS_PER_MS));
	loop_timer_set_wall(timers[20], wall_of_sec(-5));
	loop_run(loop);
	CHECK_STR(trace, "uabceghijklmnopqrstvwxyzf");
	CHECK(wall_sub_ns(clock_wall(), now) >= 30 * NS_PER_MS);
	for (int i = 0; i < 26; i++)
		loop_timer_free(timers[i]);
	loop_free(loop);
}

static void jump(void *arg)
{
	struct wall t = wall_of_sec(2000000000);

	(void)arg;
	CHECK_INT(count, 0);
	clock_set_wall_for_test(&t);
	CHECK_INT(count, 0);
}

static void wall_again(void *arg)
{
	(void)arg;
	if (++count < 3)
		loop_timer_set_wall(timer, wall_of_sec(count));
}

static void test_wall_timer_follows_test_clock(void)
{
	struct wall t = wall_of_sec(1000000000);
	struct loop_timer *j;

	loop = loop_new();
	clock_set_wall_for_test(&t);
	timer = loop_timer_new(loop, wall_again, NULL);
	loop_timer_set_wall(timer, wall_of_sec(1000000001));
	j = loop_timer_new(loop, jump, NULL);
	loop_timer_set(j, 10 * NS_PER_MS);
	loop_run(loop);
	CHECK_INT(count, 3);
	loop_timer_free(timer);
	loop_timer_free(j);
	clock_set_wall_for_test(NULL);
	loop_free(loop);
}

/* A loop that only waits is not woken: no use of the processor, no voluntary context switch. */
static void test_idle_makes_no_wakeups(void)
{
	struct rusage a, b;
	struct loop_timer *s, *w;

	loop = loop_new();
	w = loop_timer_new(loop, count_up, NULL);
	loop_timer_set_wall(w, wall_add_ns(clock_wall(), 3600 * NS_PER_SEC));
	loop_on_signal(loop, SIGUSR1, NULL, NULL);
	s = loop_timer_new(loop, stop, NULL);
	loop_timer_set(s, 1500 * NS_PER_MS);
	getrusage(RUSAGE_THREAD, &a);
	loop_run(loop);
	getrusage(RUSAGE_THREAD, &b);
	CHECK(b.ru_nvcsw - a.ru_nvcsw <= 3);
	CHECK_INT(count, 0);
	loop_timer_free(w);
	loop_timer_free(s);
	loop_free(loop);
}

/* ---- signals, descriptors ---- */

static void on_signal(void *arg, int signo)
{
	CHECK(arg == text);
	CHECK_INT(signo, SIGUSR1);
	loop_stop(loop);
	count++;
}

static void raise_it(void *arg)
{
	(void)arg;
	kill(getpid(), SIGUSR1);
}

static void test_signal(void)
{
	struct loop_timer *t;

	loop = loop_new();
	loop_on_signal(loop, SIGUSR1, on_signal, text);
	loop_run(loop); /* a handler alone is nothing to wait for */
	t = loop_timer_new(loop, stop, NULL);
	loop_timer_set(t, 20 * NS_PER_SEC);
	loop_post(loop, raise_it, NULL);
	loop_run(loop);
	CHECK_INT(count, 1);
	loop_timer_free(t);
	loop_free(loop);
}

static void test_watch_pidfd(void)
{
	struct loop_watch *a, *b;
	int pidfd;
	pid_t pid = fork();

	if (pid == 0) {
		sleep_ms(30);
		_exit(0);
	}
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	CHECK(pidfd >= 0);
	loop = loop_new();
	a = loop_watch_readable(loop, pidfd, count_up, NULL);
	b = loop_watch_readable(loop, pidfd, count_up, NULL); /* two may watch the same */
	CHECK(a && b);
	loop_run(loop);
	CHECK_INT(count, 2);
	loop_watch_free(a);
	loop_watch_free(b);
	close(pidfd);
	loop_watch_free(NULL);
	loop_free(loop);
	waitpid(pid, NULL, 0);
}

static void test_watch_freed_before(void)
{
	struct loop_watch *w;
	int p[2];

	CHECK(pipe(p) == 0);
	loop = loop_new();
	w = loop_watch_readable(loop, p[0], count_up, NULL);
	CHECK_INT(write(p[1], "x", 1), 1);
	loop_watch_free(w);
	close(p[0]);
	loop_run(loop);
	CHECK_INT(count, 0);
	loop_free(loop);
	close(p[1]);
}

/* ---- memory ---- */

enum { PIECES = 2000, PIECE = 16 << 10 };

static long resident_kb(void)
{
	char line[128];
	long kb = 0;
	FILE *f = fopen("/proc/self/status", "r");

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "VmRSS: %ld", &kb) == 1)
			break;
	if (f)
		fclose(f);
	return kb;
}

static struct loop_timer *look;
static long filled_kb;

static void look_at_memory(void *arg)
{
	(void)arg;
	if (resident_kb() < filled_kb / 2)
		loop_stop(loop);
	else
		loop_timer_set(look, 20 * NS_PER_MS);
}

/* What is freed between pieces that stay does not go back by itself. */
static void test_memory_goes_back(void)
{
	static void *stays[PIECES], *goes[PIECES];

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	return;
#endif
	for (int i = 0; i < PIECES; i++) {
		goes[i] = xmalloc(PIECE);
		memset(goes[i], 1, PIECE);
		stays[i] = xmalloc(16);
	}
	filled_kb = resident_kb();
	for (int i = 0; i < PIECES; i++)
		free(goes[i]);
	loop = loop_new();
	look = loop_timer_new(loop, look_at_memory, NULL);
	loop_trim_soon(loop);
	loop_trim_soon(loop);
	loop_timer_set(look, 0);
	loop_run(loop);
	CHECK(resident_kb() < filled_kb / 2);
	loop_timer_free(look);
	loop_free(loop);
	for (int i = 0; i < PIECES; i++)
		free(stays[i]);
}

/* It does not keep a loop running. */
static void test_memory_is_no_work(void)
{
	loop = loop_new();
	loop_trim_soon(loop);
	loop_run(loop);
	loop_free(loop);
}

/* ---- jitter ---- */

static void test_jitter(void)
{
	int64_t least = INT64_MAX, most = 0;

	for (int i = 0; i < 10000; i++) {
		int64_t v = loop_jitter(1000000, 10);

		CHECK(v >= 900000 && v <= 1100000);
		least = v < least ? v : least;
		most = v > most ? v : most;
	}
	CHECK(least < 905000 && most > 1095000);
	CHECK_INT(loop_jitter(1000, 0), 1000);
}

static void test_backoff(void)
{
	struct backoff b = { .first_ns = 1000, .max_ns = 6000 };
	int64_t want[] = { 1000, 2000, 4000, 6000, 6000 };

	for (int round = 0; round < 2; round++) {
		for (size_t i = 0; i < ARRAY_LEN(want); i++) {
			int64_t v = backoff_next(&b);

			CHECK(v >= want[i] * 8 / 10 && v <= want[i] * 12 / 10);
		}
		backoff_reset(&b);
	}
}

TEST_MAIN(TEST(test_empty), TEST(test_stop_before_run), TEST(test_post_in_order),
	TEST(test_post_from_threads), TEST(test_jobs), TEST(test_jobs_end_at_free),
	TEST(test_lane_in_order), TEST(test_lane_batch), TEST(test_timer_is_never_early),
	TEST(test_timer_again_and_free_inside), TEST(test_timer_stop),
	TEST(test_wall_timers_in_order), TEST(test_wall_timer_follows_test_clock),
	TEST(test_idle_makes_no_wakeups), TEST(test_signal), TEST(test_watch_pidfd),
	TEST(test_watch_freed_before), TEST(test_memory_goes_back), TEST(test_memory_is_no_work),
	TEST(test_jitter), TEST(test_backoff))

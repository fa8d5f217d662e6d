/*
 * The whole unit test harness. A test file lists its tests and calls TEST_MAIN:
 *
 *   static void test_parse(void) { CHECK_INT(parse("1"), 1); }
 *   TEST_MAIN(TEST(test_parse), TEST(test_other))
 *
 * Each test runs in a process of its own with a time limit, so that a crash or a hang fails that
 * one. `test_x name` runs one test in this process (for a debugger). The last line is "N passed, N
 * failed, N skipped".
 */
#ifndef ASSAY_TESTS_TEST_H
#define ASSAY_TESTS_TEST_H

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/buf.h"

struct test {
	const char *name;
	void (*fn)(void);
};
#define TEST(fn)                                                                                   \
	{                                                                                          \
#fn, fn                                                                            \
	}

#define TEST_TIMEOUT_S 60
enum { TEST_SKIPPED = 77 };

#define TEST_FAIL(...)                                                                             \
	do {                                                                                       \
		fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);                                    \
		fprintf(stderr, __VA_ARGS__);                                                      \
		fprintf(stderr, "\n");                                                             \
		fflush(NULL);                                                                      \
		_exit(1);                                                                          \
	} while (0)

#define SKIP(...)                                                                                  \
	do {                                                                                       \
		fprintf(stderr, "SKIPPED: " __VA_ARGS__);                                          \
		fprintf(stderr, "\n");                                                             \
		exit(TEST_SKIPPED);                                                                \
	} while (0)

#define CHECK(cond)                                                                                \
	do {                                                                                       \
		if (!(cond))                                                                       \
			TEST_FAIL("not true: %s", #cond);                                          \
	} while (0)

#define CHECK_INT(a, b)                                                                            \
	do {                                                                                       \
		long long a_ = (long long)(a), b_ = (long long)(b);                                \
		if (a_ != b_)                                                                      \
			TEST_FAIL("%s is %lld, not %lld (%s)", #a, a_, b_, #b);                    \
	} while (0)

#define CHECK_STR(a, b)                                                                            \
	do {                                                                                       \
		const char *a_ = (a), *b_ = (b);                                                   \
		if (!a_ || !b_ || strcmp(a_, b_) != 0)                                             \
			TEST_FAIL("%s is \"%s\", not \"%s\"", #a, a_ ? a_ : "(null)",              \
				b_ ? b_ : "(null)");                                               \
	} while (0)

#define CHECK_CONTAINS(a, b)                                                                       \
	do {                                                                                       \
		const char *a_ = (a), *b_ = (b);                                                   \
		if (!strstr(a_, b_))                                                               \
			TEST_FAIL("%s is \"%s\", without \"%s\"", #a, a_, b_);                     \
	} while (0)

#define CHECK_BYTES(a, b)                                                                          \
	do {                                                                                       \
		struct bytes a_ = (a), b_ = (b);                                                   \
		if (!bytes_equal(a_, b_))                                                          \
			TEST_FAIL("%s (%zu bytes) and %s (%zu bytes) differ", #a, a_.n, #b, b_.n); \
	} while (0)

/* The call succeeds, or fails with this code; on surprise the error's text is shown. Uses a
 * variable `struct err e`. */
#define CHECK_OK(call)                                                                             \
	do {                                                                                       \
		if ((call) != 0)                                                                   \
			TEST_FAIL("%s: %s", #call, e.msg);                                         \
	} while (0)
#define CHECK_ERR(call, expected)                                                                  \
	do {                                                                                       \
		int r_ = (call);                                                                   \
		if (r_ != (expected))                                                              \
			TEST_FAIL("%s gives %s, not %s: %s", #call, err_code_name(r_),             \
				err_code_name(expected), r_ ? e.msg : "");                         \
	} while (0)

/* A temporary folder that is removed when the test ends well; created on first use. */
static inline const char *test_dir(void)
{
	static char dir[64];

	if (!dir[0]) {
		snprintf(dir, sizeof(dir), "/tmp/assay-test-XXXXXX");
		if (!mkdtemp(dir))
			TEST_FAIL("mkdtemp: %s", strerror(errno));
	}
	return dir;
}

static inline void test_run_here(const struct test *t)
{
	t->fn();
	fflush(NULL);
}

static inline int test_run_apart(const struct test *t)
{
	int status;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		alarm(TEST_TIMEOUT_S);
		test_run_here(t);
		exit(0);
	}
	if (waitpid(pid, &status, 0) != pid)
		return 1;
	if (WIFEXITED(status) && WEXITSTATUS(status) == TEST_SKIPPED)
		return TEST_SKIPPED;
	if (WIFSIGNALED(status))
		fprintf(stderr, "%s: %s\n", t->name,
			WTERMSIG(status) == SIGALRM ? "timed out" : strsignal(WTERMSIG(status)));
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : 1;
}

static inline int test_main(const struct test *tests, size_t n, int argc, char **argv)
{
	int passed = 0, failed = 0, skipped = 0;

	for (size_t i = 0; i < n; i++) {
		int r;

		if (argc > 1) {
			if (strcmp(argv[1], tests[i].name) == 0)
				test_run_here(&tests[i]);
			continue;
		}
		r = test_run_apart(&tests[i]);
		if (r == 0)
			passed++;
		else if (r == TEST_SKIPPED)
			skipped++;
		else {
			failed++;
			fprintf(stderr, "FAILED: %s\n", tests[i].name);
		}
	}
	if (argc <= 1)
		printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
	return failed != 0;
}

#define TEST_MAIN(...)                                                                             \
	int main(int argc, char **argv)                                                            \
	{                                                                                          \
		static const struct test tests[] = { __VA_ARGS__ };                                \
		return test_main(tests, sizeof(tests) / sizeof(tests[0]), argc, argv);             \
	}

#endif

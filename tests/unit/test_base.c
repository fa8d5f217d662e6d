/* Covers: lib/err.c lib/mem.c lib/buf.c lib/clock.c */
#include "tests/test.h"

#include <sys/stat.h>

#include "lib/clock.h"
#include "lib/err.h"
#include "lib/mem.h"

static void test_err_wraps_and_cuts(void)
{
	struct err e = ERR_INIT;
	char longer[3000];

	CHECK_INT(err_set(&e, ERR_NOT_FOUND, "no %s", "key"), ERR_NOT_FOUND);
	CHECK_INT(err_wrap(&e, "slot %d", 3), ERR_NOT_FOUND);
	CHECK_STR(e.msg, "slot 3: no key");
	memset(longer, 'x', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = 0;
	CHECK_INT(err_set(&e, ERR_INVALID, "%s", longer), ERR_INVALID);
	CHECK_INT(strlen(e.msg), sizeof(e.msg) - 1);
	CHECK_INT(err_wrap(&e, "%s", longer), ERR_INVALID);
	CHECK_INT(strlen(e.msg), sizeof(e.msg) - 1);
	CHECK_INT(err_set(NULL, ERR_ABORTED, "unread"), ERR_ABORTED);
}

static void test_err_of_errno(void)
{
	struct err e = ERR_INIT;

	CHECK_INT(err_errno(&e, ENOENT, "open %s", "f"), ERR_NOT_FOUND);
	CHECK_STR(e.msg, "open f: No such file or directory");
	CHECK_INT(err_errno(&e, EACCES, "x"), ERR_DENIED);
	CHECK_INT(err_errno(&e, ENOSPC, "x"), ERR_EXHAUSTED);
	CHECK_INT(err_errno(&e, EIO, "x"), ERR_INTERNAL);
	CHECK_STR(err_code_name(ERR_PRECONDITION), "FailedPrecondition");
	CHECK_STR(err_code_name(999), "Unknown");
	CHECK_STR(err_code_name(-1), "Unknown");
}

static void test_buf_stops_at_its_maximum(void)
{
	AUTO_BUF struct buf b = BUF_INIT_MAX(10);

	CHECK(buf_str(&b, "12345"));
	CHECK(buf_printf(&b, "%d", 67890));
	CHECK(!buf_byte(&b, 'x'));
	CHECK(b.failed);
	CHECK(!buf_str(&b, ""));
	CHECK_STR(buf_cstr(&b), "1234567890");
	buf_reset(&b);
	CHECK(!b.failed && buf_append(&b, "a\0b", 3));
	CHECK_INT(b.len, 3);
}

static void test_buf_consume_and_take(void)
{
	AUTO_BUF struct buf b = BUF_INIT;
	AUTO(free) char *s = NULL;
	AUTO(free) char *none = NULL;

	buf_str(&b, "header:rest");
	buf_consume(&b, 7);
	CHECK_STR(buf_cstr(&b), "rest");
	s = buf_take_str(&b);
	CHECK_STR(s, "rest");
	CHECK_INT(b.len, 0);
	none = buf_take_str(&b);
	CHECK_STR(none, "");
}

static void test_buf_secret_moves_without_a_copy(void)
{
	struct buf b = BUF_INIT_SECRET;

	for (int i = 0; i < 1000; i++)
		CHECK(buf_str(&b, "secret "));
	CHECK_INT(b.len, 7000);
	buf_consume(&b, 6993);
	CHECK_STR(buf_cstr(&b), "secret ");
	for (size_t i = b.len; i < 7000; i++)
		CHECK_INT(b.p[i], 0);
	buf_deinit(&b);
	CHECK(b.p == NULL);
}

static void test_files(void)
{
	AUTO(free) char *path = xasprintf("%s/f", test_dir());
	AUTO(free) char *gone = xasprintf("%s/no/f", test_dir());
	AUTO_BUF struct buf b = BUF_INIT_MAX(100);
	struct err e = ERR_INIT;
	struct stat st;

	CHECK_OK(buf_write_file(bytes_str("one"), path, 0600, &e));
	CHECK_OK(buf_write_file(bytes_str("two"), path, 0640, &e));
	CHECK(stat(path, &st) == 0);
	CHECK_INT(st.st_mode & 0777, 0640);
	CHECK_OK(buf_read_file(&b, path, &e));
	CHECK_STR(buf_cstr(&b), "two");
	buf_reset(&b);
	b.max = 2;
	CHECK_ERR(buf_read_file(&b, path, &e), ERR_EXHAUSTED);
	CHECK_CONTAINS(e.msg, path);
	CHECK_ERR(buf_read_file(&b, gone, &e), ERR_NOT_FOUND);
	CHECK_ERR(buf_read_file(&b, test_dir(), &e), ERR_INVALID);
	CHECK_ERR(buf_write_file(bytes_str("x"), gone, 0600, &e), ERR_NOT_FOUND);
	unlink(path);
	rmdir(test_dir());
}

static void test_bytes_order(void)
{
	CHECK(bytes_compare(bytes_str("a"), bytes_str("ab")) < 0);
	CHECK(bytes_compare(bytes_str("b"), bytes_str("ab")) > 0);
	CHECK(bytes_compare(bytes_of(NULL, 0), bytes_str("")) == 0);
	CHECK(bytes_equal(bytes_of(NULL, 0), bytes_str("")));
	CHECK(mem_equal_secret("same", "same", 4) && !mem_equal_secret("same", "sane", 4));
}

static void test_time(void)
{
	struct wall t = wall_of_ns(-1);
	struct wall fixed = { .sec = 1767225600, .nsec = 5000000 };
	char text[40];

	CHECK_INT(t.sec, -1);
	CHECK_INT(t.nsec, 999999999);
	CHECK_INT(wall_ns(t), -1);
	CHECK_INT(wall_sub_ns(wall_add_ns(t, 10), t), 10);
	clock_set_wall_for_test(&fixed);
	wall_format(clock_wall(), text, sizeof(text));
	clock_set_wall_for_test(NULL);
	CHECK_STR(text, "2026-01-01T00:00:00.005Z");
	CHECK(clock_mono().ns <= clock_mono().ns);
}

static void break_an_invariant(void)
{
	INVARIANT(1 + 1 == 3);
}

static void test_invariant_aborts(void)
{
	pid_t pid = fork();
	int status = 0;

	if (pid == 0) {
		close(STDERR_FILENO);
		break_an_invariant();
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

TEST_MAIN(TEST(test_err_wraps_and_cuts), TEST(test_err_of_errno),
	TEST(test_buf_stops_at_its_maximum), TEST(test_buf_consume_and_take),
	TEST(test_buf_secret_moves_without_a_copy), TEST(test_files), TEST(test_bytes_order),
	TEST(test_time), TEST(test_invariant_aborts))

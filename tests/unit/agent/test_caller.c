#include <sys/prctl.h>

#include "agent/caller.h"
#include "tests/test.h"

static void test_self(void)
{
	struct caller c;
	AUTO(free) char *exe = NULL;
	AUTO_BUF struct buf b = BUF_INIT_MAX(16);
	struct err e = ERR_INIT;

	/* A name made to mislead whoever reads stat and status by eye. */
	prctl(PR_SET_NAME, "x) Uid:\n9 (");
	CHECK_OK(caller_open(&c, getpid(), -1, &e));
	CHECK_INT(c.uid, geteuid());
	CHECK_INT(c.gid, getegid());
	CHECK(c.start_time > 0);
	CHECK_INT(c.n_groups, getgroups(0, NULL));
	CHECK_OK(caller_exe(&c, &exe, &e));
	CHECK_CONTAINS(exe, "test_caller");
	CHECK_OK(caller_check(&c, &e));
	CHECK_ERR(caller_read(&c, "status", &b, &e), ERR_EXHAUSTED);
	c.start_time++; /* as if the pid had been given away */
	CHECK_ERR(caller_check(&c, &e), ERR_NOT_FOUND);
	caller_deinit(&c);
	CHECK_INT(c.dir, -1);
}

static void test_gone(void)
{
	struct caller c;
	struct err e = ERR_INIT;
	int fd, pipefd[2];
	char x;
	pid_t pid;

	CHECK(pipe(pipefd) == 0);
	pid = fork();
	if (pid == 0) {
		close(pipefd[1]);
		_exit(read(pipefd[0], &x, 1) < 0);
	}
	CHECK_OK(caller_pidfd(pid, &fd, &e));
	CHECK_OK(caller_open(&c, pid, fd, &e));
	CHECK_OK(caller_check(&c, &e));
	close(pipefd[1]);
	CHECK(waitpid(pid, NULL, 0) == pid);
	CHECK_ERR(caller_check(&c, &e), ERR_NOT_FOUND);
	caller_deinit(&c);
	CHECK_ERR(caller_open(&c, pid, fd, &e), ERR_NOT_FOUND);
	/* Another process under that number would not be believed either. */
	CHECK_ERR(caller_open(&c, getpid(), fd, &e), ERR_NOT_FOUND);
	CHECK_ERR(caller_pidfd(pid, &fd, &e), ERR_NOT_FOUND);
	CHECK_ERR(caller_pidfd(0, &fd, &e), ERR_NOT_FOUND);
	CHECK_ERR(caller_open(&c, 0, -1, &e), ERR_NOT_FOUND);
	CHECK_CONTAINS(e.msg, "namespace");
}

TEST_MAIN(TEST(test_self), TEST(test_gone))

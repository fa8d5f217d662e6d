#include "agent/caller.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "lib/mem.h"

static int gone(struct err *e, pid_t pid)
{
	return err_set(e, ERR_NOT_FOUND, "process %d has ended", (int)pid);
}

static bool pidfd_alive(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	return poll(&p, 1, 0) == 0;
}

int caller_pidfd(pid_t pid, int *ret_fd, struct err *e)
{
	int fd = pid > 0 ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;

	if (fd < 0 && (pid <= 0 || errno == ESRCH || errno == EINVAL))
		return err_set(e, ERR_NOT_FOUND, "there is no process %d", (int)pid);
	if (fd < 0)
		return err_errno(e, errno, "opening process %d", (int)pid);
	*ret_fd = fd;
	return 0;
}

int caller_read(const struct caller *c, const char *name, struct buf *ret, struct err *e)
{
	AUTO(close_fd) int fd = openat(c->dir, name, O_RDONLY | O_CLOEXEC);

	if (fd < 0 && (errno == ENOENT || errno == ESRCH))
		return gone(e, c->pid);
	if (fd < 0)
		return err_errno(e, errno, "/proc/%d/%s", (int)c->pid, name);
	for (;;) {
		size_t room = 4096;
		ssize_t n;

		if (!buf_reserve(ret, room))
			return err_set(
				e, ERR_EXHAUSTED, "/proc/%d/%s is too large", (int)c->pid, name);
		n = read(fd, ret->p + ret->len, room);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == ESRCH
				       ? gone(e, c->pid)
				       : err_errno(e, errno, "/proc/%d/%s", (int)c->pid, name);
		if (n == 0)
			break;
		ret->len += (size_t)n;
	}
	ret->p[ret->len] = '\0';
	return 0;
}

/* Field 22 of stat; field 2, the name in parentheses, may hold anything, so count from its end. */
static int read_start_time(const struct caller *c, uint64_t *ret, struct err *e)
{
	AUTO_BUF struct buf b = BUF_INIT_MAX(CALLER_PROC_FILE_MAX);
	const char *p;
	char *end;
	int r = caller_read(c, "stat", &b, e);

	if (r)
		return r;
	p = strrchr(buf_cstr(&b), ')');
	for (int field = 2; p && field < 22; field++) {
		p = strchr(p, ' ');
		p = p ? p + 1 : NULL;
	}
	if (!p)
		return err_set(e, ERR_INTERNAL, "/proc/%d/stat is not understood", (int)c->pid);
	*ret = strtoull(p, &end, 10);
	if (end == p)
		return err_set(e, ERR_INTERNAL, "/proc/%d/stat is not understood", (int)c->pid);
	return 0;
}

/* "Uid:\t<real>\t<effective>\t…": the second number, as SPIRE's agent takes it. */
static bool second_number(const char *line, uint32_t *ret)
{
	char *end;

	strtoul(line, &end, 10);
	if (end == line)
		return false;
	line = end;
	*ret = (uint32_t)strtoul(line, &end, 10);
	return end != line;
}

static void read_groups(const char *line, struct caller *c)
{
	const char *end = strchrnul(line, '\n');
	size_t cap = 0;

	while (line < end) {
		char *after;
		unsigned long v = strtoul(line, &after, 10);

		if (after == line || after > end)
			break;
		if (c->n_groups == cap) {
			cap = cap ? 2 * cap : 8;
			c->groups = xreallocarray(c->groups, cap, sizeof(gid_t));
		}
		c->groups[c->n_groups++] = (gid_t)v;
		line = after;
	}
}

static int read_status(struct caller *c, struct err *e)
{
	AUTO_BUF struct buf b = BUF_INIT_MAX(CALLER_PROC_FILE_MAX);
	const char *text, *uid, *gid, *groups;
	int r = caller_read(c, "status", &b, e);

	if (r)
		return r;
	text = buf_cstr(&b);
	/* The first line is the process's own choice of name, with newlines escaped. */
	uid = strstr(text, "\nUid:");
	gid = strstr(text, "\nGid:");
	groups = strstr(text, "\nGroups:");
	if (!uid || !gid || !second_number(uid + 5, &c->uid) || !second_number(gid + 5, &c->gid))
		return err_set(e, ERR_INTERNAL, "/proc/%d/status is not understood", (int)c->pid);
	if (groups)
		read_groups(groups + 8, c);
	return 0;
}

int caller_open(struct caller *ret, pid_t pid, int pidfd, struct err *e)
{
	struct caller c = CALLER_INIT;
	char path[32];
	int r;

	if (pid <= 0)
		return err_set(e, ERR_NOT_FOUND,
			"the caller is in another PID namespace, which the agent cannot see");
	c.pid = pid;
	if (pidfd >= 0) {
		c.pidfd = fcntl(pidfd, F_DUPFD_CLOEXEC, 0);
		if (c.pidfd < 0)
			return err_errno(e, errno, "holding process %d", (int)pid);
	}
	snprintf(path, sizeof(path), "/proc/%d", (int)pid);
	c.dir = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (c.dir < 0) {
		r = errno == ENOENT ? gone(e, pid) : err_errno(e, errno, "%s", path);
		caller_deinit(&c);
		return r;
	}
	/* Alive now, so that the folder opened before is its own and no later process's. */
	r = c.pidfd >= 0 && !pidfd_alive(c.pidfd) ? gone(e, pid) : 0;
	if (!r)
		r = read_start_time(&c, &c.start_time, e);
	if (!r)
		r = read_status(&c, e);
	if (r) {
		caller_deinit(&c);
		return r;
	}
	*ret = c;
	return 0;
}

int caller_check(const struct caller *c, struct err *e)
{
	uint64_t start;
	int r;

	if (c->pidfd >= 0 && !pidfd_alive(c->pidfd))
		return gone(e, c->pid);
	r = read_start_time(c, &start, e);
	if (r)
		return r;
	if (start != c->start_time)
		return gone(e, c->pid);
	return 0;
}

int caller_exe(const struct caller *c, char **ret, struct err *e)
{
	char path[PATH_MAX];
	ssize_t n = readlinkat(c->dir, "exe", path, sizeof(path) - 1);

	if (n < 0 && (errno == ENOENT || errno == ESRCH))
		return gone(e, c->pid);
	if (n < 0)
		return err_errno(e, errno, "/proc/%d/exe", (int)c->pid);
	*ret = xstrndup(path, (size_t)n);
	return 0;
}

void caller_deinit(struct caller *c)
{
	if (c->pidfd >= 0)
		close(c->pidfd);
	if (c->dir >= 0)
		close(c->dir);
	free(c->groups);
	*c = CALLER_INIT;
}

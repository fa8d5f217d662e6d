/*
 * Tries to get an identity by a pid that now belongs to somebody else.
 *
 *   reuse SOCKET VICTIM-UID ATTACKER-UID ROUNDS
 *
 * Run as root in a pid namespace that the agent can see into. Each round: a process of the attacker
 * connects to the agent's socket, hands the connection to us and ends; a process of the victim then
 * takes the very same pid (ns_last_pid); we ask on the old connection. Nothing may come but an
 * error. Prints "N rounds, R pids reused, K answered with an identity"; the exit status is 0 when K
 * is 0 and R is not.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/buf.h"
#include "tests/h2.h"

enum { ANSWER_TIMEOUT_S = 2 };

static int connect_to(const char *path)
{
	AUTO(free) char *target = xasprintf("unix:%s", path);
	int fd = h2_connect(target);

	if (fd < 0) {
		perror("connect");
		exit(2);
	}
	return fd;
}

static void hand_over(int channel, int fd)
{
	char byte = 0, control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec io = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr m = { .msg_iov = &io,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	if (sendmsg(channel, &m, 0) < 0)
		_exit(1);
}

static int take_over(int channel)
{
	char byte, control[CMSG_SPACE(sizeof(int))];
	struct iovec io = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr m = { .msg_iov = &io,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control) };
	int fd = -1;

	if (recvmsg(channel, &m, 0) == 1 && CMSG_FIRSTHDR(&m))
		memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(fd));
	return fd;
}

/* The attacker's process: connects, hands over, ends. Gives its pid, which is free again then. */
static pid_t attacker(const char *path, uid_t uid, int *ret_fd)
{
	int pair[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		exit(2);
	pid = fork();
	if (pid == 0) {
		if (setgid(uid) || setuid(uid))
			_exit(1);
		hand_over(pair[1], connect_to(path));
		_exit(0);
	}
	close(pair[1]);
	*ret_fd = take_over(pair[0]);
	waitpid(pid, NULL, 0);
	close(pair[0]);
	return pid;
}

static pid_t victim_with_pid(pid_t want, uid_t uid)
{
	AUTO(free) char *text = xasprintf("%d", (int)want - 1);
	int fd = open("/proc/sys/kernel/ns_last_pid", O_WRONLY | O_CLOEXEC);
	pid_t pid;

	if (fd < 0 || write(fd, text, strlen(text)) < 0) {
		perror("ns_last_pid");
		exit(77);
	}
	close(fd);
	pid = fork();
	if (pid == 0) {
		if (setgid(uid) || setuid(uid))
			_exit(1);
		pause();
		_exit(0);
	}
	return pid;
}

/* Is an identity in what comes back? */
static bool answered(int fd)
{
	struct timeval wait = { .tv_sec = ANSWER_TIMEOUT_S };
	AUTO_BUF struct buf in = BUF_INIT_MAX(1 << 20);
	uint8_t part[16384];
	ssize_t n;
	AUTO_BUF struct buf out = BUF_INIT;

	h2_hello(&out);
	h2_call(&out, 1, "/SpiffeWorkloadAPI/FetchX509SVID");
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait));
	if (write(fd, out.p, out.len) != (ssize_t)out.len)
		return false;
	while ((n = read(fd, part, sizeof(part))) > 0) {
		buf_append(&in, part, (size_t)n);
		if (memmem(in.p, in.len, "spiffe://", 9) && memmem(in.p, in.len, "\x30\x82", 2))
			return true;
		if (memmem(in.p, in.len, "grpc-message", 12))
			return false;
	}
	return false;
}

int main(int argc, char **argv)
{
	int rounds, reused = 0, bad = 0;
	uid_t victim, hostile;

	if (argc != 5)
		return 2;
	victim = (uid_t)strtoul(argv[2], NULL, 10);
	hostile = (uid_t)strtoul(argv[3], NULL, 10);
	rounds = (int)strtol(argv[4], NULL, 10);
	for (int i = 0; i < rounds; i++) {
		int fd = -1;
		pid_t old = attacker(argv[1], hostile, &fd);
		pid_t now = victim_with_pid(old, victim);

		reused += now == old;
		if (now == old && fd >= 0)
			bad += answered(fd);
		kill(now, SIGKILL);
		waitpid(now, NULL, 0);
		close(fd);
	}
	printf("%d rounds, %d pids reused, %d answered with an identity\n", rounds, reused, bad);
	return bad || !reused;
}

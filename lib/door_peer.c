/* Who is on the other side of a socket. */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "lib/door_internal.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* Linux 6.5; the C library of Debian 12 does not name it */
#endif

bool door_no_peerpidfd_for_test;

struct peer *peer_new(void)
{
	struct peer *p = xcalloc(1, sizeof(*p));

	p->refs = 1;
	p->pidfd = -1;
	return p;
}

struct peer *peer_ref(struct peer *p)
{
	p->refs++;
	return p;
}

void peer_unref(struct peer *p)
{
	if (!p)
		return;
	INVARIANT(p->refs > 0);
	if (--p->refs > 0)
		return;
	if (p->pidfd >= 0)
		close(p->pidfd);
	spiffeid_deinit(&p->id);
	x509_chain_deinit(&p->chain);
	free(p);
}

bool peer_alive(const struct peer *p)
{
	struct pollfd pfd = { .fd = p->pidfd, .events = POLLIN };

	if (!p->is_unix)
		return true;
	if (p->pidfd < 0)
		return p->pid > 0 && (kill(p->pid, 0) == 0 || errno == EPERM);
	return poll(&pfd, 1, 0) == 0;
}

/* ---- kernels before 6.5: open by number, then make sure that it is no successor ---- */

/* When the process started, in nanoseconds since boot; -1 when it is gone. */
static int64_t start_time(pid_t pid)
{
	char path[32], text[1024], *p;
	unsigned long long ticks = 0;
	size_t n;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	f = fopen(path, "re");
	if (!f)
		return -1;
	n = fread(text, 1, sizeof(text) - 1, f);
	fclose(f);
	text[n] = '\0';
	/* proc(5): starttime is field 22, the name in field 2 ends at the last parenthesis. */
	p = strrchr(text, ')');
	for (int field = 2; p && field < 22; field++)
		p = strchr(p + 1, ' ');
	if (!p)
		return -1;
	ticks = strtoull(p + 1, NULL, 10);
	return (int64_t)(ticks * ((uint64_t)NS_PER_SEC / (uint64_t)sysconf(_SC_CLK_TCK)));
}

static int pin_by_number(pid_t pid)
{
	struct timespec now;
	int64_t started;
	int fd;

	/* The connection exists already, so whoever made it had started before now. */
	clock_gettime(CLOCK_BOOTTIME, &now);
	fd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (fd < 0)
		return errno == ENOSYS ? 0 : -1;
	started = start_time(pid);
	if (started < 0 || started > now.tv_sec * NS_PER_SEC + now.tv_nsec) {
		close(fd);
		return -1;
	}
	return fd;
}

int peer_pin(struct peer *p, int fd)
{
	socklen_t len = sizeof(int);
	int pidfd = -1, r = -1;

	if (p->pidfd >= 0)
		return 0;
	errno = ENOPROTOOPT;
	if (!door_no_peerpidfd_for_test)
		r = getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &len);
	if (r == 0) {
		p->pidfd = pidfd;
		return 0;
	}
	if (errno != ENOPROTOOPT)
		return -1;
	/* By number it must be done while the process cannot have been replaced unnoticed: at once
	 * after accept, see peer_of_unix(). */
	pidfd = pin_by_number(p->pid);
	if (pidfd > 0)
		p->pidfd = pidfd;
	return pidfd < 0 ? -1 : 0;
}

static bool kernel_pins_later(int fd)
{
	static int known = -1;
	int pidfd;
	socklen_t len = sizeof(pidfd);

	if (door_no_peerpidfd_for_test)
		return false;
	if (known < 0) {
		int r = getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &len);

		if (r == 0)
			close(pidfd);
		known = r == 0 || errno != ENOPROTOOPT;
	}
	return known == 1;
}

int peer_of_unix(int fd, struct peer **ret)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);
	struct peer *p;

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) != 0)
		return -1;
	p = peer_new();
	p->is_unix = true;
	p->pid = cred.pid;
	p->uid = cred.uid;
	p->gid = cred.gid;
	if (!kernel_pins_later(fd) && peer_pin(p, fd) != 0) {
		peer_unref(p);
		return -1;
	}
	*ret = p;
	return 0;
}

void peer_address(struct peer *p, const struct sockaddr *sa)
{
	const struct sockaddr_in6 *six = (const void *)sa;
	const struct sockaddr_in *four = (const void *)sa;

	if (sa->sa_family == AF_INET)
		inet_ntop(AF_INET, &four->sin_addr, p->address, sizeof(p->address));
	else if (sa->sa_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&six->sin6_addr))
		inet_ntop(AF_INET, &six->sin6_addr.s6_addr[12], p->address, sizeof(p->address));
	else if (sa->sa_family == AF_INET6)
		inet_ntop(AF_INET6, &six->sin6_addr, p->address, sizeof(p->address));
}

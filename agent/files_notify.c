#include "agent/files_notify.h"

#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/log.h"

enum { PID_FILE_MAX = 64 };

struct files_notify {
	struct loop *loop;
	const struct files_set_options *o;
	pid_t child;
	int pidfd; /* -1: none runs */
	struct loop_watch *watch;
	bool missed; /* a change that the running program was not told of */
	struct loop_timer *retry;
	struct backoff backoff;
	int tries;
};

extern char **environ;

static const char *signal_name(int signo)
{
	return log_fmt("SIG%s", sigabbrev_np(signo));
}

/* ---- the program ---- */

static void start(struct files_notify *n);

static void on_exit_of_child(void *arg)
{
	struct files_notify *n = arg;
	siginfo_t info = { .si_pid = 0 };

	if (waitid(P_PIDFD, (id_t)n->pidfd, &info, WEXITED | WNOHANG) == 0 && info.si_pid == 0) {
		/* not yet: cannot be, but then it is looked at again */
		loop_watch_free(n->watch);
		n->watch = loop_watch_readable(n->loop, n->pidfd, on_exit_of_child, n);
		return;
	}
	log_event(info.si_code == CLD_EXITED && info.si_status == 0 ? LOG_DEBUG : LOG_WARN, "files",
		"The program has ended", "cmd", n->o->cmd, "pid", log_fmt("%d", (int)n->child),
		info.si_code == CLD_EXITED ? "exit_status" : "signal",
		info.si_code == CLD_EXITED ? log_fmt("%d", info.si_status)
					   : signal_name(info.si_status),
		NULL);
	loop_watch_free(n->watch);
	n->watch = NULL;
	close(n->pidfd);
	n->pidfd = -1;
	if (n->missed)
		start(n);
}

/* Signals as a program expects them: this one ignores SIGPIPE, and libuv blocks some for a while.
 */
static void clean_signals(posix_spawnattr_t *a)
{
	sigset_t none, all;

	sigemptyset(&none);
	sigfillset(&all);
	posix_spawnattr_setsigmask(a, &none);
	posix_spawnattr_setsigdefault(a, &all);
	posix_spawnattr_setflags(a, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
}

static void start(struct files_notify *n)
{
	size_t n_args = n->o->argv.n;
	char **argv = xcalloc(n_args + 1, sizeof(*argv));
	posix_spawnattr_t a;
	int r;

	n->missed = false;
	for (size_t i = 0; i < n_args; i++)
		argv[i] = n->o->argv.v[i];
	posix_spawnattr_init(&a);
	clean_signals(&a);
	r = posix_spawnp(&n->child, n->o->cmd, NULL, &a, argv, environ);
	posix_spawnattr_destroy(&a);
	free(argv);
	if (r) {
		log_event(LOG_ERROR, "files", "Unable to start the program", "cmd", n->o->cmd,
			"error", strerror(r), NULL);
		return;
	}
	/* Nobody else waits for it, so the number is still its own. */
	n->pidfd = (int)syscall(SYS_pidfd_open, n->child, 0);
	if (n->pidfd < 0) {
		log_event(LOG_ERROR, "files", "Unable to watch the program", "cmd", n->o->cmd,
			"error", strerror(errno), NULL);
		return;
	}
	log_event(LOG_INFO, "files", "Program started", "cmd", n->o->cmd, "pid",
		log_fmt("%d", (int)n->child), NULL);
	n->watch = loop_watch_readable(n->loop, n->pidfd, on_exit_of_child, n);
}

static void tell_child(struct files_notify *n)
{
	if (n->pidfd < 0) {
		start(n);
		return;
	}
	if (!n->o->signo) {
		n->missed = true;
		return;
	}
	if (syscall(SYS_pidfd_send_signal, n->pidfd, n->o->signo, NULL, 0) < 0) {
		n->missed = errno == ESRCH; /* it has just ended */
		if (!n->missed)
			log_event(LOG_ERROR, "files", "Unable to signal the program", "cmd",
				n->o->cmd, "error", strerror(errno), NULL);
		return;
	}
	log_event(LOG_INFO, "files", "Program signalled", "cmd", n->o->cmd, "signal",
		signal_name(n->o->signo), NULL);
}

/* ---- the file with a number ---- */

static int read_pid(const char *path, pid_t *ret, struct err *e)
{
	AUTO_BUF struct buf text = BUF_INIT_MAX(PID_FILE_MAX);
	char *s, *end;
	long v;
	int r = buf_read_file(&text, path, e);

	if (r)
		return err_wrap(e, "failed to read pid file \"%s\"", path);
	s = (char *)(uintptr_t)buf_cstr(&text);
	while (*s && strchr(" \t\r\n", *s))
		s++;
	errno = 0;
	v = strtol(s, &end, 10);
	while (*end && strchr(" \t\r\n", *end))
		end++;
	/* 0 and less would be whole groups of processes. */
	if (end == s || *end || errno || v <= 0 || v > INT32_MAX)
		return err_set(e, ERR_INVALID,
			"failed to parse pid file \"%s\": it must hold the number of a process",
			path);
	*ret = (pid_t)v;
	return 0;
}

int files_signal_pid_file(const char *path, int signo, pid_t *ret_pid, struct err *e)
{
	AUTO(close_fd) int fd = -1;
	pid_t pid;
	int r = read_pid(path, &pid, e);

	if (r)
		return r;
	fd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (fd < 0 && errno == ESRCH)
		return err_set(e, ERR_NOT_FOUND, "pid file \"%s\": there is no process %d", path,
			(int)pid);
	if (fd < 0)
		return err_errno(e, errno, "pid file \"%s\": process %d", path, (int)pid);
	if (syscall(SYS_pidfd_send_signal, fd, signo, NULL, 0) < 0)
		return err_errno(
			e, errno, "cannot signal process %d of pid file \"%s\"", (int)pid, path);
	*ret_pid = pid;
	return 0;
}

static void tell_pid_file(void *arg)
{
	struct files_notify *n = arg;
	struct err e = ERR_INIT;
	pid_t pid = 0;

	if (!files_signal_pid_file(n->o->pid_file, n->o->signo, &pid, &e)) {
		log_event(LOG_INFO, "files", "Process signalled", "pid", log_fmt("%d", (int)pid),
			"signal", signal_name(n->o->signo), NULL);
		return;
	}
	if (++n->tries < FILES_PID_TRIES) {
		loop_timer_set(n->retry, backoff_next(&n->backoff));
		return;
	}
	log_event(LOG_ERROR, "files", "Unable to signal PID file", "error", e.msg, NULL);
}

/* ---- systemd ---- */

void files_say_ready(void)
{
	static const char text[] = "READY=1";
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	AUTO(close_fd) int fd = -1;
	size_t n = path ? strlen(path) : 0;

	if (n < 2 || n >= sizeof(sa.sun_path) || !strchr("/@", path[0]))
		return;
	memcpy(sa.sun_path, path, n);
	if (path[0] == '@') /* a name without a file */
		sa.sun_path[0] = 0;
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || sendto(fd, text, strlen(text), MSG_NOSIGNAL, (struct sockaddr *)&sa,
			      (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n)) < 0)
		log_event(LOG_WARN, "files", "Unable to tell systemd", "error", strerror(errno),
			NULL);
	/* The programs that are started must not speak for this one. */
	unsetenv("NOTIFY_SOCKET");
}

/* ---- both ---- */

struct files_notify *files_notify_new(struct loop *l, const struct files_set_options *o)
{
	struct files_notify *n = xcalloc(1, sizeof(*n));

	n->loop = l;
	n->o = o;
	n->pidfd = -1;
	n->retry = loop_timer_new(l, tell_pid_file, n);
	return n;
}

void files_notify(struct files_notify *n)
{
	if (n->o->cmd)
		tell_child(n);
	if (n->o->pid_file) {
		loop_timer_stop(n->retry);
		n->tries = 0;
		n->backoff =
			(struct backoff){ .first_ns = 100 * NS_PER_MS, .max_ns = 60 * NS_PER_SEC };
		tell_pid_file(n);
	}
}

void files_notify_free(struct files_notify *n)
{
	if (!n)
		return;
	loop_timer_free(n->retry);
	loop_watch_free(n->watch);
	if (n->pidfd >= 0)
		close(n->pidfd);
	free(n);
}

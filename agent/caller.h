/*
 * The caller of the Workload API, pinned: whatever is read about a process is about the very one
 * that connected.
 *
 * The kernel's pidfd from the socket names that process for good. /proc/PID is opened while the
 * pidfd says that it lives, so the folder is its own; reading through the folder fails once it has
 * gone. A check afterwards (still alive, same start time, same program) catches an end or an exec
 * in between. Where the kernel gives no pidfd, the start time has to do.
 */
#ifndef ASSAY_AGENT_CALLER_H
#define ASSAY_AGENT_CALLER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "lib/buf.h"
#include "lib/err.h"

enum { CALLER_PROC_FILE_MAX = 1 << 20 };

struct caller {
	pid_t pid;
	int pidfd;           /* owned; -1: the kernel has none */
	int dir;             /* /proc/PID, owned */
	uint64_t start_time; /* clock ticks since boot */
	/* from /proc/PID/status, effective */
	uid_t uid;
	gid_t gid;
	gid_t *groups; /* owned */
	size_t n_groups;
};
#define CALLER_INIT ((struct caller){ .pidfd = -1, .dir = -1 })

/* pidfd is borrowed (a copy is kept) and may be -1. ERR_NOT_FOUND: the process is gone. Reads /proc
 * only: does not block. */
int caller_open(struct caller *ret, pid_t pid, int pidfd, struct err *e) MUST_USE;
/* It still is that process, and it still lives. ERR_NOT_FOUND when not. */
int caller_check(const struct caller *c, struct err *e) MUST_USE;
void caller_deinit(struct caller *c);

/* A file below /proc/PID, at most ret->max bytes. */
int caller_read(const struct caller *c, const char *name, struct buf *ret, struct err *e) MUST_USE;
/* The path of its program as the link exe says; caller frees. */
int caller_exe(const struct caller *c, char **ret, struct err *e) MUST_USE;
/* For explain: a pidfd for any process. ERR_NOT_FOUND. */
int caller_pidfd(pid_t pid, int *ret_fd, struct err *e) MUST_USE;

#endif

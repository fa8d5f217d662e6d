/* Mounting the socket's folder, and telling what is mounted where. */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/csi.h"
#include "lib/mem.h"

enum { FDINFO_MAX = 512, STACKED_MAX = 16 };

#define CLOSED_ATTRS (MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)
#define CLOSED_FLAGS (MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)

/* As Go writes what went wrong with a path: "open /a: no such file or directory". */
static int path_failed(struct err *e, int errnum, const char *op, const char *path)
{
	char why[200];
	int code = errnum == ENOENT ? ERR_NOT_FOUND : ERR_INTERNAL;

	snprintf(why, sizeof(why), "%s", strerror(errnum));
	why[0] = (char)tolower((unsigned char)why[0]);
	return err_set(e, code, "%s %s: %s", op, path, why);
}

/* ---- what is there ---- */

/* Which mount a descriptor is on: the kernel's own answer, good on every kernel since 3.15, and
 * independent of how many mounts the host has. */
static int mount_id(int fd, long *ret, struct err *e)
{
	AUTO(close_fd) int info = -1;
	char name[64], text[FDINFO_MAX];
	const char *at;
	ssize_t n;

	snprintf(name, sizeof(name), "/proc/self/fdinfo/%d", fd);
	info = open(name, O_RDONLY | O_CLOEXEC);
	if (info < 0)
		return path_failed(e, errno, "open", name);
	n = read(info, text, sizeof(text) - 1);
	if (n < 0)
		return path_failed(e, errno, "read", name);
	text[n] = '\0';
	at = strstr(text, "mnt_id:");
	if (!at)
		return err_set(e, ERR_INTERNAL, "%s does not tell the mount", name);
	*ret = strtol(at + strlen("mnt_id:"), NULL, 10);
	return 0;
}

/* Opens the folder that a path without a trailing slash is in. */
static int open_parent(const char *path, struct err *e)
{
	AUTO(free) char *dir = xstrdup(path);
	char *slash = strrchr(dir, '/');
	int fd;

	slash[slash == dir] = '\0';
	fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		path_failed(e, errno, "open", dir);
	return fd;
}

static int open_end(const char *path, struct err *e)
{
	int fd = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);

	if (fd < 0)
		path_failed(e, errno, "open", path);
	return fd;
}

static int is_mount(const char *path, int fd, bool *ret, struct err *e)
{
	AUTO(close_fd) int parent = open_parent(path, e);
	long here = 0, above = 0;

	if (parent < 0 || mount_id(fd, &here, e) || mount_id(parent, &above, e))
		return e->code;
	*ret = here != above;
	return 0;
}

int csi_mount_look(const char *path, const char *source, enum csi_mounted *ret, struct err *e)
{
	AUTO(close_fd) int fd = open_end(path, e);
	struct stat there, ours;
	bool mounted = false;

	if (fd < 0 || is_mount(path, fd, &mounted, e))
		return e->code;
	if (!mounted) {
		*ret = CSI_NOT_MOUNTED;
		return 0;
	}
	if (fstat(fd, &there) != 0) {
		*ret = CSI_MOUNTED_STALE;
		return 0;
	}
	if (there.st_nlink == 0)
		*ret = CSI_MOUNTED_STALE;
	else if (stat(source, &ours) == 0 && ours.st_dev == there.st_dev &&
		 ours.st_ino == there.st_ino)
		*ret = CSI_MOUNTED;
	else
		*ret = CSI_MOUNTED_OTHER;
	return 0;
}

int csi_mount_read(const char *path, struct err *e)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *d;
	int failed;

	if (fd < 0)
		return path_failed(e, errno, "open", path);
	d = fdopendir(fd);
	if (!d) {
		failed = errno;
		close(fd);
		return path_failed(e, failed, "open", path);
	}
	errno = 0;
	while (readdir(d))
		errno = 0;
	failed = errno;
	closedir(d);
	return failed ? path_failed(e, failed, "readdirent", path) : 0;
}

/* ---- changing it ---- */

/* The mount is made read-only before it is put in its place. That matters: where it propagates to
 * the host, as it must from a driver in a container, the host's copy gets the flags that the mount
 * has at that moment and follows no later remount. ERR_UNIMPLEMENTED: the kernel is older than
 * 5.12. */
static int bind_new(const char *source, int target, bool writable, struct err *e)
{
	struct mount_attr attr = { .attr_set = writable ? 0 : CLOSED_ATTRS };
	AUTO(close_fd) int tree = open_tree(AT_FDCWD, source, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);

	if (tree < 0 && errno == ENOSYS)
		return err_set(e, ERR_UNIMPLEMENTED, "no open_tree");
	if (tree < 0)
		return path_failed(e, errno, "open_tree", source);
	if (mount_setattr(tree, "", AT_EMPTY_PATH, &attr, sizeof(attr)) != 0)
		return errno == ENOSYS ? err_set(e, ERR_UNIMPLEMENTED, "no mount_setattr")
				       : path_failed(e, errno, "mount_setattr", source);
	if (move_mount(tree, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH))
		return path_failed(e, errno, "move_mount", source);
	return 0;
}

/* In two steps; read-only for the host too if the source is (volumeMounts[].readOnly). */
static int bind_old(const char *source, int target, const char *path, bool writable, struct err *e)
{
	char by_fd[64];
	int failed;

	snprintf(by_fd, sizeof(by_fd), "/proc/self/fd/%d", target);
	if (mount(source, by_fd, NULL, MS_BIND, NULL) != 0)
		return path_failed(e, errno, "mount", source);
	if (writable || mount(NULL, path, NULL, MS_BIND | MS_REMOUNT | CLOSED_FLAGS, NULL) == 0)
		return 0;
	failed = errno;
	umount2(path, UMOUNT_NOFOLLOW);
	return path_failed(e, failed, "remount", path);
}

int csi_mount_bind(const char *source, const char *target, bool writable, struct err *e)
{
	AUTO(close_fd) int fd = open(target, O_PATH | O_NOFOLLOW | O_DIRECTORY | O_CLOEXEC);
	int r;

	if (fd < 0)
		return path_failed(e, errno, "open", target);
	r = bind_new(source, fd, writable, e);
	return r == ERR_UNIMPLEMENTED ? bind_old(source, fd, target, writable, e) : r;
}

/* All that is mounted there: two drivers in a moment of overlap may have mounted twice. */
int csi_mount_release(const char *target, struct err *e)
{
	for (int i = 0; i < STACKED_MAX; i++) {
		bool mounted = false;
		int fd = open_end(target, e);

		if (fd < 0)
			return e->code;
		if (is_mount(target, fd, &mounted, e)) {
			close(fd);
			return e->code;
		}
		close(fd); /* else it were busy by us */
		if (!mounted)
			return 0;
		if (umount2(target, UMOUNT_NOFOLLOW) != 0)
			return path_failed(e, errno, "umount", target);
	}
	return err_set(e, ERR_INTERNAL, "more than %d mounts on %s", STACKED_MAX, target);
}

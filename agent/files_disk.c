#include "agent/files_disk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/clock.h"
#include "lib/crypto.h"

enum { STAMP = 16 }; /* hexadecimal digits */

struct files_disk {
	char *dir;
	char *data; /* "..data", "..data-web" */
	int fd;     /* of the folder */
	int lock;
	char *present; /* name of the set, or NULL */
	struct former {
		char *name;
		struct mono since; /* when another took its place */
	} former[FILES_DISK_KEPT]; /* oldest first */
	size_t n_former;
};

/* ---- names ---- */

static bool is_stamped(const struct files_disk *d, const char *name)
{
	size_t n = strlen(d->data);

	return strncmp(name, d->data, n) == 0 && name[n] == '.' && strlen(name + n + 1) == STAMP &&
	       strspn(name + n + 1, "0123456789abcdef") == STAMP;
}

static char *new_stamp(const struct files_disk *d)
{
	AUTO_BUF struct buf hex = BUF_INIT;
	uint8_t raw[STAMP / 2];

	crypto_random(raw, sizeof(raw));
	hex_encode(&hex, bytes_of(raw, sizeof(raw)));
	return xasprintf("%s.%s", d->data, buf_cstr(&hex));
}

/* The name inside of a set, where there are no folders. */
static char *flat(const char *name)
{
	char *s = xstrdup(name);

	for (char *p = s; *p; p++)
		*p = *p == '/' ? '_' : *p;
	return s;
}

/* Where the link of that name leads: as many folders up as it is deep. */
static char *link_target(const struct files_disk *d, const char *name)
{
	AUTO(free) char *inside = flat(name);
	struct buf b = BUF_INIT;

	for (const char *p = name; *p; p++)
		if (*p == '/')
			buf_str(&b, "../");
	buf_printf(&b, "%s/%s", d->data, inside);
	return buf_take_str(&b);
}

/* What a link says, or NULL if there is none. */
static char *read_link(int dir, const char *name)
{
	char text[512];
	ssize_t n = readlinkat(dir, name, text, sizeof(text));

	return n <= 0 || n == (ssize_t)sizeof(text) ? NULL : xstrndup(text, (size_t)n);
}

/* ---- sets ---- */

static void remove_set(const struct files_disk *d, const char *name)
{
	int fd = openat(d->fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
	struct dirent *entry;

	if (!dir) {
		if (fd >= 0)
			close(fd);
		return;
	}
	while ((entry = readdir(dir)) != NULL)
		if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
			unlinkat(fd, entry->d_name, 0);
	closedir(dir);
	unlinkat(d->fd, name, AT_REMOVEDIR);
}

static void remove_oldest(struct files_disk *d)
{
	remove_set(d, d->former[0].name);
	free(d->former[0].name);
	memmove(d->former, d->former + 1, --d->n_former * sizeof(d->former[0]));
}

bool files_disk_sweep(struct files_disk *d, int64_t older_ns)
{
	int64_t now = clock_mono().ns;

	while (d->n_former && now - d->former[0].since.ns >= older_ns)
		remove_oldest(d);
	return d->n_former > 0;
}

/* What a process that was killed has left: sets that are not the present one. */
static void clean(const struct files_disk *d)
{
	AUTO(free) char *new_link = xasprintf("%s.new", d->data);
	int fd = openat(d->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
	struct dirent *entry;

	unlinkat(d->fd, new_link, 0);
	if (!dir) {
		if (fd >= 0)
			close(fd);
		return;
	}
	while ((entry = readdir(dir)) != NULL)
		if (is_stamped(d, entry->d_name) &&
			(!d->present || strcmp(entry->d_name, d->present) != 0))
			remove_set(d, entry->d_name);
	closedir(dir);
}

static int take_lock(struct files_disk *d, struct err *e)
{
	AUTO(free) char *name = xasprintf("%s.lock", d->data);

	d->lock = openat(d->fd, name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
	if (d->lock < 0)
		return err_errno(e, errno, "cannot create %s/%s", d->dir, name);
	if (flock(d->lock, LOCK_EX | LOCK_NB) == 0)
		return 0;
	if (errno != EWOULDBLOCK)
		return err_errno(e, errno, "cannot lock %s/%s", d->dir, name);
	return err_set(e, ERR_PRECONDITION,
		"another process keeps files in %s: give one of the two a cert_dir of its own, or "
		"put its keys into an identity block with a name",
		d->dir);
}

int files_disk_open(const char *dir, const char *tag, struct files_disk **ret, struct err *e)
{
	struct files_disk *d = xcalloc(1, sizeof(*d));
	int r = 0;

	d->dir = xstrdup(dir);
	d->data = *tag ? xasprintf("..data-%s", tag) : xstrdup("..data");
	d->lock = -1;
	d->fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (d->fd < 0 && errno == ENOENT && mkdir(dir, 0755) == 0)
		d->fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (d->fd < 0)
		r = err_errno(e, errno, "cannot use the folder %s", dir);
	if (!r)
		r = take_lock(d, e);
	if (r) {
		files_disk_close(d);
		return r;
	}
	d->present = read_link(d->fd, d->data);
	if (d->present && !is_stamped(d, d->present)) {
		free(d->present);
		d->present = NULL;
	}
	clean(d);
	*ret = d;
	return 0;
}

void files_disk_close(struct files_disk *d)
{
	if (!d)
		return;
	if (d->lock >= 0)
		close(d->lock);
	if (d->fd >= 0)
		close(d->fd);
	free(d->dir);
	free(d->data);
	free(d->present);
	for (size_t i = 0; i < d->n_former; i++)
		free(d->former[i].name);
	free(d);
}

/* ---- reading ---- */

static bool has_link(const struct files_disk *d, const char *name)
{
	AUTO(free) char *want = link_target(d, name);
	AUTO(free) char *is = read_link(d->fd, name);

	return is && strcmp(is, want) == 0;
}

static int open_set(const struct files_disk *d, const char *set)
{
	return set ? openat(d->fd, set, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : -1;
}

/* A regular file with no other name: what somebody has linked into the folder is not read. */
static bool read_own(int fd, struct stat *ret_st, struct buf *ret)
{
	char chunk[8192];
	ssize_t n = -1;

	if (fd < 0 || fstat(fd, ret_st) < 0 || !S_ISREG(ret_st->st_mode) || ret_st->st_nlink != 1 ||
		ret_st->st_size > FILES_DISK_MAX)
		return false;
	while (ret->len <= FILES_DISK_MAX && (n = read(fd, chunk, sizeof(chunk))) > 0)
		buf_append(ret, chunk, (size_t)n);
	mem_wipe(chunk, sizeof(chunk));
	if (n == 0 && (off_t)ret->len == ret_st->st_size)
		return true;
	buf_reset(ret);
	return false;
}

bool files_disk_read(struct files_disk *d, const char *name, unsigned mode, uid_t uid, gid_t gid,
	struct buf *ret)
{
	AUTO(free) char *inside = flat(name);
	AUTO(close_fd) int set = open_set(d, d->present);
	AUTO(close_fd) int fd = -1;
	struct stat st;

	if (set >= 0)
		fd = openat(set, inside, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	return read_own(fd, &st, ret) && (st.st_mode & 07777) == mode &&
	       (uid == (uid_t)-1 || st.st_uid == uid) && (gid == (gid_t)-1 || st.st_gid == gid) &&
	       has_link(d, name);
}

/* ---- writing ---- */

static int write_all(int fd, struct bytes v)
{
	while (v.n) {
		ssize_t n = write(fd, v.p, v.n);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno;
		v.p += n;
		v.n -= (size_t)n;
	}
	return 0;
}

static int write_item(int set, const struct files_item *it, uid_t uid, gid_t gid, struct err *e)
{
	AUTO(free) char *inside = flat(it->name);
	AUTO(close_fd)
	int fd = openat(set, inside, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	int r;

	if (fd < 0)
		return err_errno(e, errno, "cannot create %s", it->name);
	r = write_all(fd, it->data);
	if (!r && (uid != (uid_t)-1 || gid != (gid_t)-1) && fchown(fd, uid, gid) < 0)
		return err_errno(e, errno, "cannot give %s to its owner", it->name);
	if (!r && fchmod(fd, it->mode) < 0)
		r = errno;
	if (!r && fsync(fd) < 0)
		r = errno;
	return r ? err_errno(e, r, "cannot write %s", it->name) : 0;
}

/* Makes an empty set; *ret_fd is open in it. */
static int make_set(const struct files_disk *d, char **ret_name, int *ret_fd, struct err *e)
{
	AUTO(free) char *name = new_stamp(d);
	struct stat st;
	int fd;

	if (mkdirat(d->fd, name, 0700) < 0)
		return err_errno(e, errno, "cannot create a folder in %s", d->dir);
	fd = open_set(d, name);
	/* The folder may belong to somebody who put another one in its place meanwhile. */
	if (fd < 0 || fstat(fd, &st) < 0 || st.st_uid != geteuid()) {
		int r = err_errno(e, fd < 0 ? errno : EACCES, "cannot open %s/%s", d->dir, name);

		if (fd >= 0)
			close(fd);
		unlinkat(d->fd, name, AT_REMOVEDIR);
		return r;
	}
	*ret_name = name;
	name = NULL;
	*ret_fd = fd;
	return 0;
}

static int close_set(int set, uid_t uid, gid_t gid, struct err *e)
{
	if ((uid != (uid_t)-1 || gid != (gid_t)-1) && fchown(set, uid, gid) < 0)
		return err_errno(e, errno, "cannot give a folder to its owner");
	if (fchmod(set, 0755) < 0)
		return err_errno(e, errno, "cannot write a folder");
	/* Some file systems know no fsync of a folder. */
	if (fsync(set) < 0 && errno != EINVAL && errno != ENOTSUP)
		return err_errno(e, errno, "cannot write a folder");
	return 0;
}

/* The one step in which everything changes. */
static int make_present(struct files_disk *d, char *name, struct err *e)
{
	AUTO(free) char *new_link = xasprintf("%s.new", d->data);

	unlinkat(d->fd, new_link, 0);
	if (symlinkat(name, d->fd, new_link) < 0)
		return err_errno(e, errno, "cannot create a link in %s", d->dir);
	if (renameat(d->fd, new_link, d->fd, d->data) < 0) {
		int r = err_errno(e, errno, "cannot replace %s/%s", d->dir, d->data);

		unlinkat(d->fd, new_link, 0);
		return r;
	}
	fsync(d->fd);
	if (d->n_former == FILES_DISK_KEPT)
		remove_oldest(d);
	if (d->present)
		d->former[d->n_former++] =
			(struct former){ .name = d->present, .since = clock_mono() };
	d->present = xstrdup(name);
	return 0;
}

static int put_link(const struct files_disk *d, const char *name, struct err *e)
{
	AUTO(free) char *target = link_target(d, name);
	AUTO(free) char *tmp = xasprintf("%s.new", name);
	const char *slash = strrchr(name, '/');

	/* beside its place, and by a name that nobody looks for */
	if (slash)
		snprintf(
			tmp, strlen(tmp) + 1, "%.*s..%s", (int)(slash + 1 - name), name, slash + 1);
	else
		snprintf(tmp, strlen(tmp) + 1, "..%s", name);
	unlinkat(d->fd, tmp, 0);
	if (symlinkat(target, d->fd, tmp) < 0)
		return err_errno(e, errno, "cannot create a link in %s", d->dir);
	if (renameat(d->fd, tmp, d->fd, name) < 0) {
		int r = err_errno(e, errno, "cannot replace %s/%s", d->dir, name);

		unlinkat(d->fd, tmp, 0);
		return r;
	}
	return 0;
}

static bool exists(const struct files_disk *d, const char *name)
{
	struct stat st;

	return fstatat(d->fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0;
}

/* Links that are not there yet. Before the first set, and for a name that is new, they lead nowhere
 * until it is the present one. Names that something else has are left for later. */
static int make_links(
	const struct files_disk *d, const struct files_item *v, size_t n, bool all, struct err *e)
{
	int r = 0;

	for (size_t i = 0; !r && i < n; i++)
		if (!has_link(d, v[i].name) && (all || !exists(d, v[i].name)))
			r = put_link(d, v[i].name, e);
	return r;
}

/* Links into the present set that lead nowhere, as the configuration names those files no more. */
static void drop_links(const struct files_disk *d)
{
	AUTO(free) char *prefix = xasprintf("%s/", d->data);
	int fd = openat(d->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
	struct dirent *entry;
	struct stat st;

	if (!dir) {
		if (fd >= 0)
			close(fd);
		return;
	}
	while ((entry = readdir(dir)) != NULL) {
		AUTO(free) char *target = read_link(d->fd, entry->d_name);

		if (target && strncmp(target, prefix, strlen(prefix)) == 0 &&
			fstatat(d->fd, entry->d_name, &st, 0) < 0 && errno == ENOENT)
			unlinkat(d->fd, entry->d_name, 0);
	}
	closedir(dir);
}

static int link_item(const struct files_disk *d, int set, const char *name, struct err *e)
{
	AUTO(free) char *inside = flat(name);
	AUTO_BUF struct buf copy = BUF_INIT_SECRET;
	AUTO(close_fd) int fd = -1;
	struct files_item it = { .name = name };
	bool root = geteuid() == 0;
	struct stat st;

	if (fstatat(d->fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(st.st_mode) ||
		linkat(d->fd, name, set, inside, 0) == 0)
		return 0;
	/* Of somebody else (protected_hardlinks), or a file system without hard links. */
	fd = openat(d->fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (!read_own(fd, &st, &copy))
		return 0; /* it is missing until the second set is there */
	it.mode = st.st_mode & 0777;
	it.data = buf_view(&copy);
	return write_item(set, &it, root ? st.st_uid : (uid_t)-1, root ? st.st_gid : (gid_t)-1, e);
}

/* Plain files of our names, such as spiffe-helper has written them: they become the first set, so
 * that the links can take their places one by one and nothing changes until the second. */
static int take_over(struct files_disk *d, const struct files_item *v, size_t n, struct err *e)
{
	AUTO(free) char *name = NULL;
	bool any = false;
	int set, r = 0;

	for (size_t i = 0; i < n; i++)
		any = any || (exists(d, v[i].name) && !has_link(d, v[i].name));
	if (!any || d->present)
		return 0;
	r = make_set(d, &name, &set, e);
	if (r)
		return r;
	for (size_t i = 0; !r && i < n; i++)
		r = link_item(d, set, v[i].name, e);
	if (!r)
		r = close_set(set, (uid_t)-1, (gid_t)-1, e);
	close(set);
	if (!r)
		r = make_present(d, name, e);
	if (r) {
		remove_set(d, name);
		return r;
	}
	for (size_t i = 0; !r && i < n; i++)
		if (exists(d, v[i].name) && !has_link(d, v[i].name))
			r = put_link(d, v[i].name, e);
	return r;
}

static int write_set(struct files_disk *d, const struct files_item *v, size_t n, uid_t uid,
	gid_t gid, struct err *e)
{
	AUTO(free) char *name = NULL;
	int set, r = take_over(d, v, n, e);

	if (!r)
		r = make_links(d, v, n, false, e);
	if (!r)
		r = make_set(d, &name, &set, e);
	if (r)
		return err_wrap(e, "%s", d->dir);
	for (size_t i = 0; !r && i < n; i++)
		r = write_item(set, &v[i], uid, gid, e);
	if (!r)
		r = close_set(set, uid, gid, e);
	close(set);
	if (!r)
		r = make_present(d, name, e);
	if (r) {
		remove_set(d, name);
		return err_wrap(e, "%s", d->dir);
	}
	/* The set is the present one; a name that is still something else is mended here. */
	r = make_links(d, v, n, true, e);
	drop_links(d);
	return r ? err_wrap(e, "%s", d->dir) : 0;
}

int files_disk_write(struct files_disk *d, const struct files_item *v, size_t n, uid_t uid,
	gid_t gid, struct err *e)
{
	int r = write_set(d, v, n, uid, gid, e);

	/* Former sets are a courtesy. */
	if (r == ERR_EXHAUSTED && d->n_former) {
		files_disk_sweep(d, 0);
		r = write_set(d, v, n, uid, gid, e);
	}
	return r;
}

#include "lib/buf.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct bytes bytes_of(const void *p, size_t n)
{
	return (struct bytes){ .p = p, .n = n };
}

struct bytes bytes_str(const char *s)
{
	return bytes_of(s, strlen(s));
}

bool bytes_equal(struct bytes a, struct bytes b)
{
	return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}

int bytes_compare(struct bytes a, struct bytes b)
{
	size_t n = a.n < b.n ? a.n : b.n;
	int c = n ? memcmp(a.p, b.p, n) : 0;

	if (c)
		return c;
	return a.n < b.n ? -1 : a.n > b.n;
}

void buf_deinit(struct buf *b)
{
	if (b->secret && b->p)
		mem_wipe(b->p, b->cap);
	free(b->p);
	b->p = NULL;
	b->len = b->cap = 0;
	b->failed = false;
}

void buf_reset(struct buf *b)
{
	if (b->secret && b->p)
		mem_wipe(b->p, b->cap);
	if (b->p)
		b->p[0] = 0;
	b->len = 0;
	b->failed = false;
}

/* realloc would leave a copy of a secret behind. */
static void move_to(struct buf *b, size_t cap)
{
	uint8_t *p;

	if (!b->secret) {
		b->p = xreallocarray(b->p, cap, 1);
		b->cap = cap;
		return;
	}
	p = xmalloc(cap);
	if (b->p) {
		memcpy(p, b->p, b->len);
		mem_wipe(b->p, b->cap);
		free(b->p);
	}
	b->p = p;
	b->cap = cap;
}

bool buf_reserve(struct buf *b, size_t more)
{
	size_t need;
	size_t cap;

	if (b->failed || more > b->max || b->len > b->max - more) {
		b->failed = true;
		return false;
	}
	need = b->len + more + 1;
	if (need <= b->cap)
		return true;
	cap = b->cap ? b->cap * 2 : 64;
	move_to(b, cap > need ? cap : need);
	return true;
}

bool buf_append(struct buf *b, const void *p, size_t n)
{
	if (!buf_reserve(b, n))
		return false;
	if (n)
		memcpy(b->p + b->len, p, n);
	b->len += n;
	b->p[b->len] = 0;
	return true;
}

bool buf_bytes(struct buf *b, struct bytes v)
{
	return buf_append(b, v.p, v.n);
}

bool buf_byte(struct buf *b, uint8_t c)
{
	return buf_append(b, &c, 1);
}

bool buf_str(struct buf *b, const char *s)
{
	return buf_append(b, s, strlen(s));
}

bool buf_printf(struct buf *b, const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(NULL, 0, fmt, ap);
	va_end(ap);
	INVARIANT(n >= 0);
	if (!buf_reserve(b, (size_t)n))
		return false;
	va_start(ap, fmt);
	vsnprintf((char *)b->p + b->len, (size_t)n + 1, fmt, ap);
	va_end(ap);
	b->len += (size_t)n;
	return true;
}

void buf_consume(struct buf *b, size_t n)
{
	INVARIANT(n <= b->len);
	if (n == 0)
		return;
	memmove(b->p, b->p + n, b->len - n);
	if (b->secret)
		mem_wipe(b->p + b->len - n, n);
	b->len -= n;
	b->p[b->len] = 0;
}

struct bytes buf_view(const struct buf *b)
{
	return bytes_of(b->p, b->len);
}

const char *buf_cstr(const struct buf *b)
{
	return b->p ? (const char *)b->p : "";
}

char *buf_take_str(struct buf *b)
{
	char *s;

	buf_reserve(b, 0);
	s = b->p ? (char *)b->p : xstrdup("");
	s[b->len] = 0;
	b->p = NULL;
	b->len = b->cap = 0;
	return s;
}

static int read_all(struct buf *b, int fd, const char *path, struct err *e)
{
	for (;;) {
		size_t room = b->max - b->len;
		ssize_t n;

		if (room > 65536)
			room = 65536;
		if (room == 0 || !buf_reserve(b, room)) {
			uint8_t extra;

			if (read(fd, &extra, 1) == 0)
				return 0;
			return err_set(
				e, ERR_EXHAUSTED, "%s is larger than %zu bytes", path, b->max);
		}
		n = read(fd, b->p + b->len, room);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return err_errno(e, errno, "cannot read %s", path);
		b->len += (size_t)n;
		b->p[b->len] = 0;
		if (n == 0)
			return 0;
	}
}

int buf_read_file(struct buf *b, const char *path, struct err *e)
{
	AUTO(close_fd) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;

	if (fd < 0)
		return err_errno(e, errno, "cannot open %s", path);
	if (fstat(fd, &st) < 0)
		return err_errno(e, errno, "cannot stat %s", path);
	if (S_ISDIR(st.st_mode))
		return err_set(e, ERR_INVALID, "%s is a folder, not a file", path);
	return read_all(b, fd, path, e);
}

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

static void sync_folder_of(const char *path)
{
	AUTO(free) char *copy = xstrdup(path);
	AUTO(close_fd) int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd >= 0)
		(void)fsync(fd);
}

int buf_write_file(struct bytes v, const char *path, unsigned mode, struct err *e)
{
	AUTO(free) char *tmp = xasprintf("%s.tmp-XXXXXX", path);
	AUTO(close_fd) int fd = mkostemp(tmp, O_CLOEXEC);
	int r;

	if (fd < 0)
		return err_errno(e, errno, "cannot create a file beside %s", path);
	r = fchmod(fd, mode) < 0 ? errno : write_all(fd, v);
	if (!r && fsync(fd) < 0)
		r = errno;
	if (!r && rename(tmp, path) < 0)
		r = errno;
	if (r) {
		unlink(tmp);
		return err_errno(e, r, "cannot write %s", path);
	}
	sync_folder_of(path);
	return 0;
}

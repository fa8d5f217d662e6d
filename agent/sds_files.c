#include "agent/sds_files.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/caller.h"
#include "lib/text.h"

#define FILE_CERT "file-cert:"
#define FILE_ROOT "file-root:"
#define SEPARATOR '~'
#define SYSTEM "system"

/* Where Linux has its roots, as Istio looks for them. */
static const char *const system_roots[] = {
	"/etc/ssl/certs/ca-certificates.crt",
	"/etc/pki/tls/certs/ca-bundle.crt",
	"/etc/ssl/ca-bundle.pem",
	"/etc/pki/tls/cacert.pem",
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
	"/etc/ssl/cert.pem",
};

/* ---- names ---- */

static bool has_prefix(const char *s, const char *prefix)
{
	return strncmp(s, prefix, strlen(prefix)) == 0;
}

bool sds_is_file(const char *name)
{
	return has_prefix(name, FILE_CERT) || has_prefix(name, FILE_ROOT);
}

bool sds_are_files(const struct strings *names)
{
	for (size_t i = 0; i < names->n; i++)
		if (!sds_is_file(names->v[i]))
			return false;
	return names->n > 0;
}

/* ---- in the caller's place ---- */

struct look {
	struct sds_files *of; /* NULL: nobody waits any more */
	pid_t pid;
	int pidfd;
	struct strings names;
	struct caller caller;
	int root; /* the caller's root folder */
	struct sds_secrets secrets;
	struct err err;
};

/*
 * By system calls, since the C library's functions change all threads. Without capabilities the
 * kernel judges by owner, group and mode alone; the user ID goes last, as with it goes the right to
 * set the others.
 */
static int become(const struct caller *c, struct err *e)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = { { 0 } };
	const unsigned keep = (unsigned)-1;

	if (syscall(SYS_setgroups, c->n_groups, c->groups) != 0 ||
		syscall(SYS_setresgid, keep, c->gid, keep) != 0 ||
		syscall(SYS_setresuid, keep, c->uid, keep) != 0 ||
		syscall(SYS_capset, &head, none) != 0)
		return err_errno(e, errno, "reading files as user %u", (unsigned)c->uid);
	return 0;
}

/* Links are followed, within the root folder. A pipe must not hold us up. */
static int read_below(int root, const char *path, struct buf *ret, struct err *e)
{
	struct open_how how = { .flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY,
		.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS };
	AUTO(close_fd) int fd = (int)syscall(SYS_openat2, root, path, &how, sizeof(how));
	struct stat st;

	if (fd < 0)
		return err_errno(e, errno, "open %s", path);
	if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
		return err_set(e, ERR_INVALID, "%s is not a file", path);
	if (st.st_size > SDS_FILE_MAX)
		return err_set(
			e, ERR_INVALID, "%s is larger than %d bytes", path, (int)SDS_FILE_MAX);
	for (;;) {
		ssize_t n;

		if (!buf_reserve(ret, 4096))
			return err_set(e, ERR_INVALID, "%s is larger than %d bytes", path,
				(int)SDS_FILE_MAX);
		n = read(fd, ret->p + ret->len, 4096);
		if (n < 0)
			return err_errno(e, errno, "read %s", path);
		if (n == 0)
			break;
		ret->len += (size_t)n;
	}
	if (!ret->len || !memmem(ret->p, ret->len, "-----BEGIN ", 11))
		return err_set(e, ERR_INVALID, "%s holds nothing in PEM", path);
	return 0;
}

static int read_roots(int root, const char *path, struct buf *ret, struct err *e)
{
	int r = ERR_NOT_FOUND;

	if (strcmp(path, SYSTEM) != 0)
		return read_below(root, path, ret, e);
	for (size_t i = 0; r && i < ARRAY_LEN(system_roots); i++) {
		buf_reset(ret);
		r = read_below(root, system_roots[i], ret, e);
	}
	return r;
}

static int read_one(struct look *k, const char *name, struct err *e)
{
	AUTO_BUF struct buf first = BUF_INIT_MAX(SDS_FILE_MAX + 4096);
	AUTO_BUF struct buf second = { .max = SDS_FILE_MAX + 4096, .secret = true };
	AUTO(free) char *path = xstrdup(name + strlen(FILE_CERT));
	char *key = strchr(path, SEPARATOR);
	int r;

	_Static_assert(sizeof(FILE_CERT) == sizeof(FILE_ROOT), "one length for both");
	if (has_prefix(name, FILE_ROOT)) {
		r = key ? err_set(e, ERR_INVALID, "one file is wanted")
			: read_roots(k->root, path, &first, e);
		if (!r)
			sds_add_roots(&k->secrets, name, buf_view(&first));
		return r;
	}
	if (!key || strchr(key + 1, SEPARATOR))
		return err_set(e, ERR_INVALID, "a certificate and a key are wanted, as A~B");
	*key++ = '\0';
	r = read_below(k->root, path, &first, e);
	if (!r)
		r = read_below(k->root, key, &second, e);
	if (!r)
		sds_add_certificate(&k->secrets, name, buf_view(&first), buf_view(&second));
	return r;
}

static void *look_as_caller(void *arg)
{
	struct look *k = arg;

	if (become(&k->caller, &k->err))
		return NULL;
	for (size_t i = 0; i < k->names.n; i++) {
		if (read_one(k, k->names.v[i], &k->err)) {
			AUTO(free) char *quoted = text_quote(k->names.v[i]);

			err_wrap(&k->err, "%s", quoted);
			k->err.code = ERR_INVALID;
			return NULL;
		}
	}
	return NULL;
}

static void look_work(void *arg)
{
	struct look *k = arg;
	pthread_t thread;

	if (caller_open(&k->caller, k->pid, k->pidfd, &k->err))
		return;
	k->root = openat(k->caller.dir, "root", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (k->root < 0) {
		err_errno(&k->err, errno, "/proc/%d/root", (int)k->pid);
		return;
	}
	if (pthread_create(&thread, NULL, look_as_caller, k) != 0) {
		err_set(&k->err, ERR_EXHAUSTED, "no thread to read files with");
		return;
	}
	pthread_join(thread, NULL);
	if (!k->err.code)
		(void)!caller_check(&k->caller, &k->err);
}

static void look_free(struct look *k)
{
	sds_secrets_deinit(&k->secrets);
	strings_deinit(&k->names);
	caller_deinit(&k->caller);
	if (k->root >= 0)
		close(k->root);
	if (k->pidfd >= 0)
		close(k->pidfd);
	free(k);
}

/* ---- again and again ---- */

struct sds_files {
	struct sds_files_options o;
	struct strings names;
	pid_t pid;
	int pidfd;
	struct sds_secrets last;
	bool told;
	struct look *look; /* under way */
	struct loop_timer *timer;
};

static bool same(const struct sds_secrets *a, const struct sds_secrets *b)
{
	if (a->n != b->n)
		return false;
	for (size_t i = 0; i < a->n; i++)
		if (!bytes_equal(buf_view(&a->v[i].body), buf_view(&b->v[i].body)))
			return false;
	return true;
}

static void look_done(void *arg)
{
	struct look *k = arg;
	struct sds_files *f = k->of;

	if (!f) {
		look_free(k);
		return;
	}
	f->look = NULL;
	if (f->o.look_ms >= 0 && !k->err.code)
		loop_timer_set(f->timer, loop_jitter(f->o.look_ms * NS_PER_MS, 10));
	if (k->err.code) {
		f->o.changed(f->o.arg, NULL, &k->err);
	} else if (!f->told || !same(&f->last, &k->secrets)) {
		struct sds_secrets now = k->secrets;

		k->secrets = f->last;
		f->last = now;
		f->told = true;
		f->o.changed(f->o.arg, &f->last, &k->err);
	}
	look_free(k);
}

static void look(void *arg)
{
	struct sds_files *f = arg;
	struct look *k = xcalloc(1, sizeof(*k));

	k->of = f;
	k->pid = f->pid;
	k->pidfd = f->pidfd >= 0 ? fcntl(f->pidfd, F_DUPFD_CLOEXEC, 0) : -1;
	k->root = -1;
	k->caller = CALLER_INIT;
	for (size_t i = 0; i < f->names.n; i++)
		strings_add(&k->names, f->names.v[i]);
	f->look = k;
	loop_job(f->o.loop, look_work, look_done, k);
}

struct sds_files *sds_files_open(const struct sds_files_options *o)
{
	struct sds_files *f = xcalloc(1, sizeof(*f));

	f->o = *o;
	if (!f->o.look_ms)
		f->o.look_ms = SDS_FILES_LOOK_MS;
	for (size_t i = 0; i < o->names->n; i++)
		strings_add(&f->names, o->names->v[i]);
	f->pid = o->peer->pid;
	f->pidfd = o->peer->pidfd >= 0 ? fcntl(o->peer->pidfd, F_DUPFD_CLOEXEC, 0) : -1;
	f->timer = loop_timer_new(o->loop, look, f);
	look(f);
	return f;
}

void sds_files_close(struct sds_files *f)
{
	if (!f)
		return;
	if (f->look)
		f->look->of = NULL;
	loop_timer_free(f->timer);
	if (f->pidfd >= 0)
		close(f->pidfd);
	strings_deinit(&f->names);
	sds_secrets_deinit(&f->last);
	free(f);
}

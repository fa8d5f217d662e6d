#include "agent/container.h"

#include <ctype.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/log.h"

/* ---- one path ---- */

static bool is_word(uint8_t c)
{
	return isalnum(c) || c == '_';
}

/* A place where a word begins or ends, as regular expressions understand \b. */
static bool at_boundary(struct bytes s, size_t i)
{
	bool before = i > 0 && is_word(s.p[i - 1]);
	bool after = i < s.n && is_word(s.p[i]);

	return before != after;
}

static bool is_hex(struct bytes s, size_t at, size_t n)
{
	if (at + n > s.n)
		return false;
	for (size_t i = 0; i < n; i++)
		if (!isxdigit(s.p[at + i]))
			return false;
	return true;
}

/* Where 64 hexadecimal digits stand alone; s.n: nowhere. */
static size_t find_id(struct bytes s)
{
	for (size_t i = 0; i + CONTAINER_ID_LEN <= s.n; i++)
		if (at_boundary(s, i) && is_hex(s, i, CONTAINER_ID_LEN) &&
			at_boundary(s, i + CONTAINER_ID_LEN))
			return i;
	return s.n;
}

static bool is_pod_uid(struct bytes s, size_t at)
{
	static const size_t groups[] = { 8, 4, 4, 4, 12 };
	size_t end = at + CONTAINER_POD_UID_LEN;

	if (end > s.n || !at_boundary(s, end))
		return false;
	for (size_t g = 0; g < ARRAY_LEN(groups); g++) {
		if (g && s.p[at] != '-' && s.p[at] != '_')
			return false;
		at += g ? 1 : 0;
		if (!is_hex(s, at, groups[g]))
			return false;
		at += groups[g];
	}
	return true;
}

/* "pod<uid>" somewhere in the segment; systemd's names have _ where the uid has -. */
static bool find_pod_uid(struct bytes s, char ret[static CONTAINER_POD_UID_LEN + 1])
{
	for (size_t i = 0; i + 3 + CONTAINER_POD_UID_LEN <= s.n; i++) {
		if (memcmp(s.p + i, "pod", 3) != 0 || !at_boundary(s, i) || !is_pod_uid(s, i + 3))
			continue;
		for (size_t k = 0; k < CONTAINER_POD_UID_LEN; k++) {
			char c = (char)s.p[i + 3 + k];

			ret[k] = c == '_' ? '-' : c;
		}
		ret[CONTAINER_POD_UID_LEN] = '\0';
		return true;
	}
	return false;
}

/* Takes the last segment off a path. Empty: there is none left. */
static struct bytes take_segment(struct bytes *path)
{
	size_t i = path->n;
	struct bytes ret;

	while (i > 0 && path->p[i - 1] != '/')
		i--;
	ret = bytes_of(path->p + i, path->n - i);
	path->n = i ? i - 1 : 0;
	return ret;
}

/* From the path's end: what looks like a container's id first (some runtimes put more below it),
 * then, in what stands before it, a pod's uid. Some put both into one segment, with a colon. */
static struct container read_path(struct bytes path, int want)
{
	struct container ret = { 0 };
	struct bytes seg = take_segment(&path);

	for (; seg.n; seg = take_segment(&path)) {
		size_t at = find_id(seg);

		if (at == seg.n)
			continue;
		memcpy(ret.id, seg.p + at, CONTAINER_ID_LEN);
		seg.n = at;
		break;
	}
	if (!ret.id[0] || !(want & CONTAINER_POD))
		return ret;
	if (!seg.n)
		seg = take_segment(&path);
	for (; seg.n; seg = take_segment(&path))
		if (find_pod_uid(seg, ret.pod_uid))
			break;
	return ret;
}

/* ---- several paths ---- */

/*
 * A path with a pod beats one without: in a cluster inside a container (kind), some hierarchies
 * name only the outer one. A path that names no container says nothing: on a hybrid host the
 * unified hierarchy has no limits and often leaves everybody where the daemon was started. Any
 * other difference means that no answer is safe.
 */
static int join(struct container *ret, const struct container *one, struct err *e)
{
	if (!one->id[0] || (ret->pod_uid[0] && !one->pod_uid[0]))
		return 0;
	if (!ret->id[0] || (!ret->pod_uid[0] && one->pod_uid[0])) {
		*ret = *one;
		return 0;
	}
	if (strcmp(ret->pod_uid, one->pod_uid) != 0)
		return err_set(e, ERR_PRECONDITION, "multiple pod UIDs found (\"%s\", \"%s\")",
			ret->pod_uid, one->pod_uid);
	if (strcmp(ret->id, one->id) != 0)
		return err_set(e, ERR_PRECONDITION, "multiple container IDs found (\"%s\", \"%s\")",
			ret->id, one->id);
	return 0;
}

static void log_path(const char *msg, struct bytes path, int want)
{
	if (want & CONTAINER_VERBOSE)
		log_event(LOG_DEBUG, "container", msg, "path",
			log_fmt("%.*s", (int)(path.n < 4096 ? path.n : 4096), (const char *)path.p),
			NULL);
}

/* The next line, without its end; false at the end of the text. */
static bool next_line(struct bytes *text, struct bytes *ret)
{
	const uint8_t *nl;
	size_t n;

	if (!text->n)
		return false;
	nl = memchr(text->p, '\n', text->n);
	n = nl ? (size_t)(nl - text->p) : text->n;
	*ret = bytes_of(text->p, n);
	n += nl ? 1 : 0;
	text->p += n;
	text->n -= n;
	return true;
}

/* What stands before the next separator; the text goes on behind it. False: there is none, and ret
 * is the rest. */
static bool next_field(struct bytes *text, char sep, struct bytes *ret)
{
	const uint8_t *p = text->n ? memchr(text->p, sep, text->n) : NULL;

	*ret = bytes_of(text->p, p ? (size_t)(p - text->p) : text->n);
	text->p += p ? ret->n + 1 : ret->n;
	text->n -= p ? ret->n + 1 : ret->n;
	return p != NULL;
}

static struct bytes shown(struct bytes line)
{
	return bytes_of(line.p, line.n < 256 ? line.n : 256);
}

/* cgroups(7): "hierarchy-ID:controller-list:cgroup-path". */
int container_each_path(
	struct bytes cgroup, bool (*fn)(void *arg, struct bytes path), void *arg, struct err *e)
{
	struct bytes line, id, controllers;

	while (next_line(&cgroup, &line)) {
		struct bytes path = line;

		/* No name in a file system has a zero byte. */
		if (!next_field(&path, ':', &id) || !next_field(&path, ':', &controllers) ||
			memchr(line.p, '\0', line.n))
			return err_set(e, ERR_INTERNAL,
				"unable to obtain cgroups: invalid cgroup entry, not of the form "
				"id:controllers:path: \"%.*s\"",
				(int)shown(line).n, (const char *)line.p);
		if (!fn(arg, path))
			break;
	}
	return 0;
}

struct joining {
	int want;
	struct container container;
	struct err *e;
	int r;
};

static bool join_path(void *arg, struct bytes path)
{
	struct joining *j = arg;
	struct container one = read_path(path, j->want);

	log_path("PID cgroup enumerated", path, j->want);
	j->r = join(&j->container, &one, j->e);
	return j->r == 0;
}

int container_from_cgroup(struct bytes text, int want, struct container *ret, struct err *e)
{
	struct joining j = { .want = want, .e = e };
	int r = container_each_path(text, join_path, &j, e);

	if (!r)
		r = j.r;
	if (!r)
		*ret = j.container;
	return r;
}

enum { MOUNT_ROOT = 3, MOUNT_FIXED = 6 };

/*
 * proc(5): id, parent, major:minor, root, mount point, options, any number of further fields, "-",
 * type, source, super options; one space between them. The source may be empty, the kernel writes
 * spaces in names as \040.
 */
static int read_mount(
	struct bytes line, struct bytes *ret_root, struct bytes *ret_type, struct err *e)
{
	struct bytes rest = line, field, root = { 0 };
	size_t n = 0;
	bool more = true;

	for (; more; n++) {
		more = next_field(&rest, ' ', &field);
		if (field.n == 1 && field.p[0] == '-')
			break;
		if (n == MOUNT_ROOT)
			root = field;
	}
	if (!more || n < MOUNT_FIXED)
		goto bad;
	next_field(&rest, ' ', &field);
	if (!field.n)
		goto bad;
	*ret_root = root;
	*ret_type = field;
	return 0;
bad:
	return err_set(e, ERR_INTERNAL,
		"failed to parse mount info: a line is not as proc(5) has it: \"%.*s\"",
		(int)shown(line).n, (const char *)line.p);
}

/* Where the whole of /sys/fs/cgroup is mounted, its root says nothing. */
static bool tells(struct bytes root, struct bytes type)
{
	return (bytes_equal(type, bytes_str("cgroup")) ||
		       bytes_equal(type, bytes_str("cgroup2"))) &&
	       !bytes_equal(root, bytes_str("/"));
}

int container_from_mountinfo(struct bytes text, int want, struct container *ret, struct err *e)
{
	struct container all = { 0 };
	struct bytes line, root, type;
	int r = 0;

	while (!r && next_line(&text, &line)) {
		struct container one;

		if (!line.n)
			continue;
		r = read_mount(line, &root, &type, e);
		if (r || !tells(root, type))
			continue;
		log_path("PID mount enumerated", root, want);
		one = read_path(root, want);
		r = join(&all, &one, e);
	}
	if (!r)
		*ret = all;
	return r;
}

/* A kernel without control groups has no such file: it names no container. */
static int read_file(const struct caller *c, const char *name, struct buf *ret, struct err *e)
{
	struct err ignored;
	int r = caller_read(c, name, ret, e);

	return r == ERR_NOT_FOUND && caller_check(c, &ignored) == 0 ? 0 : r;
}

/* PROC_CGROUP_INIT_INO of the kernel's include/linux/proc_ns.h: fixed, as for all initial
 * namespaces. */
static const ino_t initial_cgroup_namespace = 0xEFFFFFFB;

bool container_sees_all(void)
{
	struct stat st;

	return stat("/proc/self/ns/cgroup", &st) == 0 && st.st_ino == initial_cgroup_namespace;
}

int container_find(const struct caller *c, int want, struct container *ret, struct err *e)
{
	AUTO_BUF struct buf cgroup = BUF_INIT_MAX(CALLER_PROC_FILE_MAX);
	AUTO_BUF struct buf mounts = BUF_INIT_MAX(CONTAINER_MOUNTINFO_MAX);
	struct container found = { 0 };
	int r = read_file(c, "cgroup", &cgroup, e);

	if (!r)
		r = container_from_cgroup(buf_view(&cgroup), want, &found, e);
	if (!r && !found.id[0] && !(want & CONTAINER_NO_MOUNTS) && !container_sees_all()) {
		r = read_file(c, "mountinfo", &mounts, e);
		if (!r)
			r = container_from_mountinfo(buf_view(&mounts), want, &found, e);
	}
	if (!r)
		*ret = found;
	return r;
}

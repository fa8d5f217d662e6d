#include "agent/workload.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <pthread.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/crypto.h"
#include "lib/map.h"

/*
 * Selectors uid, user, gid, group, supplementary_gid, supplementary_group; with
 * discover_workload_path also path and sha256, as SPIRE's attestor of that name.
 */

enum {
	NAME_TTL_S = 60, /* how long the answer of the name service is believed */
	NAMES_MAX = 10000,
	HASHES_MAX = 1000,
	HASH_CHUNK = 1 << 16,
	NAME_BUF_FIRST = 1024,
	NAME_BUF_MAX = 1 << 20,
};

enum { KIND_USER = 'u', KIND_GROUP = 'g' };

struct name {
	char *text; /* NULL: there is none */
	int64_t until_ns;
};

/* Names of uids and gids and hashes of programs, remembered. */
struct unix_cache {
	pthread_mutex_t lock;
	struct map *names;  /* kind, id → struct name */
	struct map *hashes; /* dev, ino, size, mtime, ctime → hex */
	const struct agent_options *options;
};

static bool unix_enabled(const struct agent_options *o)
{
	return o->attestor_unix;
}

static int unix_open(struct loop *l, const struct agent_options *o, void **ret, struct err *e)
{
	struct unix_cache *u = xcalloc(1, sizeof(*u));

	(void)l;
	(void)e;
	pthread_mutex_init(&u->lock, NULL);
	u->names = map_new();
	u->hashes = map_new();
	u->options = o;
	*ret = u;
	return 0;
}

static void forget_names(struct unix_cache *u)
{
	struct bytes key;
	void *v;

	for (size_t i = 0; map_next(u->names, &i, &key, &v);) {
		struct name *n = v;

		free(n->text);
		free(n);
	}
	map_free(u->names);
	u->names = map_new();
}

static void forget_hashes(struct unix_cache *u)
{
	struct bytes key;
	void *v;

	for (size_t i = 0; map_next(u->hashes, &i, &key, &v);)
		free(v);
	map_free(u->hashes);
	u->hashes = map_new();
}

static void unix_close(void *state)
{
	struct unix_cache *u = state;

	forget_names(u);
	forget_hashes(u);
	map_free(u->names);
	map_free(u->hashes);
	pthread_mutex_destroy(&u->lock);
	free(u);
}

/* ---- names ---- */

struct name_key {
	uint32_t kind, id;
};

/* True when known (*ret is then a copy or NULL for "has none"). */
static bool name_known(struct unix_cache *u, struct name_key k, char **ret)
{
	struct name *n;
	bool known;

	pthread_mutex_lock(&u->lock);
	n = map_get(u->names, bytes_of(&k, sizeof(k)));
	known = n && n->until_ns > clock_mono().ns;
	if (known)
		*ret = n->text ? xstrdup(n->text) : NULL;
	pthread_mutex_unlock(&u->lock);
	return known;
}

static void name_learn(struct unix_cache *u, struct name_key k, const char *text)
{
	struct name *n = xcalloc(1, sizeof(*n));

	n->text = text ? xstrdup(text) : NULL;
	n->until_ns = clock_mono().ns + NAME_TTL_S * NS_PER_SEC;
	pthread_mutex_lock(&u->lock);
	if (map_len(u->names) >= NAMES_MAX)
		forget_names(u);
	n = map_put(u->names, bytes_of(&k, sizeof(k)), n);
	pthread_mutex_unlock(&u->lock);
	if (n) {
		free(n->text);
		free(n);
	}
}

/* Asks the name service: may block. */
static char *name_ask(struct name_key k)
{
	AUTO_BUF struct buf b = BUF_INIT_MAX(NAME_BUF_MAX);

	for (size_t room = NAME_BUF_FIRST; buf_reserve(&b, room); room *= 4) {
		struct passwd pw, *pwp = NULL;
		struct group gr, *grp = NULL;
		int r;

		if (k.kind == KIND_USER)
			r = getpwuid_r(k.id, &pw, (char *)b.p, room, &pwp);
		else
			r = getgrgid_r(k.id, &gr, (char *)b.p, room, &grp);
		if (r == ERANGE)
			continue;
		if (pwp)
			return xstrdup(pw.pw_name);
		return grp ? xstrdup(gr.gr_name) : NULL;
	}
	return NULL;
}

/* Adds "<id_word>:<id>" and, when the id has a name, "<name_word>:<name>". False: must block. */
static bool add_id(struct unix_cache *u, struct name_key k, const char *id_word,
	const char *name_word, bool blocking, struct selectors *ret)
{
	AUTO(free) char *name = NULL;
	AUTO(free) char *text = NULL;
	char id[64];

	if (!name_known(u, k, &name)) {
		if (!blocking)
			return false;
		name = name_ask(k);
		name_learn(u, k, name);
	}
	snprintf(id, sizeof(id), "%s:%" PRIu32, id_word, k.id);
	selectors_add(ret, "unix", id);
	if (name) {
		text = xasprintf("%s:%s", name_word, name);
		selectors_add(ret, "unix", text);
	}
	return true;
}

static bool add_ids(
	struct unix_cache *u, const struct caller *c, bool blocking, struct selectors *ret)
{
	struct name_key user = { KIND_USER, c->uid }, group = { KIND_GROUP, c->gid };

	if (!add_id(u, user, "uid", "user", blocking, ret) ||
		!add_id(u, group, "gid", "group", blocking, ret))
		return false;
	for (size_t i = 0; i < c->n_groups; i++) {
		struct name_key k = { KIND_GROUP, c->groups[i] };

		if (!add_id(u, k, "supplementary_gid", "supplementary_group", blocking, ret))
			return false;
	}
	return true;
}

/* ---- the program ---- */

struct file_key {
	uint64_t dev, ino, size;
	int64_t mtime_s, mtime_ns, ctime_s, ctime_ns;
};

static struct file_key file_key(const struct stat *st)
{
	return (struct file_key){ .dev = st->st_dev,
		.ino = st->st_ino,
		.size = (uint64_t)st->st_size,
		.mtime_s = st->st_mtim.tv_sec,
		.mtime_ns = st->st_mtim.tv_nsec,
		.ctime_s = st->st_ctim.tv_sec,
		.ctime_ns = st->st_ctim.tv_nsec };
}

static int hash_fd(int fd, struct buf *ret_hex, struct err *e)
{
	AUTO(free) uint8_t *chunk = xmalloc(HASH_CHUNK);
	struct hasher *h = hasher_new(HASH_SHA256);
	uint8_t digest[HASH_MAX];
	ssize_t n;

	while ((n = read(fd, chunk, HASH_CHUNK)) != 0) {
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			int err = errno;

			hasher_final(h, digest);
			return err_errno(e, err, "reading the program");
		}
		hasher_update(h, bytes_of(chunk, (size_t)n));
	}
	hasher_final(h, digest);
	hex_encode(ret_hex, bytes_of(digest, hash_size(HASH_SHA256)));
	return 0;
}

/* Opened through the link, so that it is the program that runs even if its path means another file
 * now or lies in another mount namespace. */
static int hash_program(struct unix_cache *u, const struct caller *c, int64_t limit,
	struct buf *ret_hex, struct err *e)
{
	AUTO(close_fd) int fd = openat(c->dir, "exe", O_RDONLY | O_CLOEXEC);
	struct file_key k;
	struct stat st;
	char *known;
	int r;

	if (fd < 0 || fstat(fd, &st))
		return err_errno(e, errno, "opening the program of process %d", (int)c->pid);
	if (limit > 0 && st.st_size > limit)
		return err_set(e, ERR_INTERNAL,
			"workload size (%lld bytes) exceeds workload_size_limit (%lld)",
			(long long)st.st_size, (long long)limit);
	k = file_key(&st);
	pthread_mutex_lock(&u->lock);
	known = map_get(u->hashes, bytes_of(&k, sizeof(k)));
	if (known)
		buf_str(ret_hex, known);
	pthread_mutex_unlock(&u->lock);
	if (known)
		return 0;
	r = hash_fd(fd, ret_hex, e);
	if (r)
		return r;
	pthread_mutex_lock(&u->lock);
	if (map_len(u->hashes) >= HASHES_MAX)
		forget_hashes(u);
	known = map_put(u->hashes, bytes_of(&k, sizeof(k)), xstrdup(buf_cstr(ret_hex)));
	pthread_mutex_unlock(&u->lock);
	free(known);
	return 0;
}

static int add_program(struct unix_cache *u, const struct caller *c, int64_t limit,
	struct selectors *ret, struct err *e)
{
	AUTO(free) char *path = NULL;
	AUTO(free) char *after = NULL;
	AUTO(free) char *text = NULL;
	AUTO_BUF struct buf hex = BUF_INIT;
	int r = caller_exe(c, &path, e);

	if (r)
		return err_wrap(e, "path lookup");
	if (limit >= 0)
		r = hash_program(u, c, limit, &hex, e);
	if (!r)
		r = caller_exe(c, &after, e);
	if (r)
		return r;
	/* An exec in between: path and hash would be of two programs. */
	if (strcmp(path, after) != 0)
		return err_set(
			e, ERR_UNAVAILABLE, "process %d became another program", (int)c->pid);
	text = xasprintf("path:%s", path);
	selectors_add(ret, "unix", text);
	if (limit >= 0) {
		free(text);
		text = xasprintf("sha256:%s", buf_cstr(&hex));
		selectors_add(ret, "unix", text);
	}
	return 0;
}

static enum attest_next unix_attest(
	void *state, const struct caller *c, bool blocking, struct finding *ret)
{
	struct unix_cache *u = state;
	const struct agent_options *o = u->options;

	/* Reading a program's file may block. */
	if (o->unix_discover_workload_path && !blocking)
		return ATTEST_BLOCKS;
	if (!add_ids(u, c, blocking, &ret->selectors))
		return ATTEST_BLOCKS;
	if (o->unix_discover_workload_path &&
		add_program(u, c, o->unix_workload_size_limit, &ret->selectors, &ret->err))
		return ATTEST_DONE;
	selectors_normalize(&ret->selectors);
	return ATTEST_DONE;
}

const struct attestor workload_unix = { .name = "unix",
	.enabled = unix_enabled,
	.open = unix_open,
	.close = unix_close,
	.attest = unix_attest };

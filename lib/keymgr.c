#include "lib/keymgr.h"

#include <errno.h>
#include <jansson.h>
#include <malloc.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/map.h"
#include "lib/mem.h"

enum { KEY_FILE_MAX = 1 << 20, KEYS_MAX = 1000, NAME_MAX_BYTES = 255 };

struct keymgr {
	pthread_mutex_t lock;
	struct map *keys; /* name → struct key, one reference each */
	char *path;       /* NULL: memory */
};

struct keymgr_signer {
	int refs; /* atomic */
	struct key *key;
};

static struct keymgr *keymgr_new(const char *path)
{
	struct keymgr *m = xcalloc(1, sizeof(*m));

	pthread_mutex_init(&m->lock, NULL);
	m->keys = map_new();
	m->path = path ? xstrdup(path) : NULL;
	return m;
}

void keymgr_free(struct keymgr *m)
{
	void *k;

	if (!m)
		return;
	for (size_t i = 0; map_next(m->keys, &i, NULL, &k);)
		key_unref(k);
	map_free(m->keys);
	pthread_mutex_destroy(&m->lock);
	free(m->path);
	free(m);
}

int keymgr_memory_new(struct keymgr **ret, struct err *e)
{
	(void)e;
	*ret = keymgr_new(NULL);
	return 0;
}

/* ---- the file ---- */

static void wiping_free(void *p)
{
	if (p)
		mem_wipe(p, malloc_usable_size(p));
	free(p);
}

/* Strings that jansson has read hold private keys, and it frees them by itself. */
static void wipe_json_memory(void)
{
	json_set_alloc_funcs(xmalloc, wiping_free);
}

static int mode_check(const char *path, struct err *e)
{
	struct stat st;

	if (stat(path, &st) != 0)
		return err_errno(e, errno, "key file %s", path);
	if (st.st_uid != geteuid() && st.st_uid != 0)
		return err_set(e, ERR_DENIED,
			"key file %s belongs to uid %u, not to the running user: chown %u %s", path,
			st.st_uid, geteuid(), path);
	if (st.st_mode & 077)
		return err_set(e, ERR_DENIED,
			"key file %s can be reached by others (mode %04o): chmod 600 %s", path,
			st.st_mode & 07777, path);
	return 0;
}

static int damaged(const char *path, const char *what, struct err *e)
{
	return err_set(e, ERR_DATA_LOSS,
		"key file %s is damaged: %s; restore it, or move it away to begin with new keys",
		path, what);
}

static int read_key(struct keymgr *m, const char *name, const json_t *v, struct err *e)
{
	AUTO_BUF struct buf der = BUF_INIT_SECRET;
	struct key *k = NULL;
	AUTO(free) char *what = NULL;

	if (!json_is_string(v)) {
		what = xasprintf("key \"%.64s\" is not text", name);
		return damaged(m->path, what, e);
	}
	if (base64_decode(&der, bytes_of(json_string_value(v), json_string_length(v)), e) ||
		key_from_pkcs8(buf_view(&der), &k, e)) {
		what = xasprintf("key \"%.64s\": %.400s", name, e ? e->msg : "");
		return damaged(m->path, what, e);
	}
	map_put_str(m->keys, name, k);
	return 0;
}

static int read_keys(struct keymgr *m, json_t *doc, struct err *e)
{
	json_t *keys = json_object_get(doc, "keys");
	const char *name;
	json_t *v;
	int r;

	if (!json_is_object(doc) || (keys && !json_is_object(keys) && !json_is_null(keys)))
		return damaged(m->path, "no object \"keys\"", e);
	if (json_object_size(keys) > KEYS_MAX)
		return damaged(m->path, "too many keys", e);
	json_object_foreach(keys, name, v)
	{
		r = read_key(m, name, v, e);
		if (r)
			return r;
	}
	return 0;
}

static int load(struct keymgr *m, struct err *e)
{
	AUTO_BUF struct buf text = BUF_INIT_SECRET;
	json_error_t why;
	json_t *doc;
	int r;

	text.max = KEY_FILE_MAX;
	r = buf_read_file(&text, m->path, e);
	if (r)
		return r;
	doc = json_loadb((const char *)text.p, text.len, JSON_REJECT_DUPLICATES, &why);
	if (!doc)
		/* The position only: jansson's text quotes what it met. */
		return err_set(e, ERR_DATA_LOSS,
			"key file %s is damaged: no JSON (line %d, column %d); restore it, or move "
			"it away to begin with new keys",
			m->path, why.line, why.column);
	r = read_keys(m, doc, e);
	json_decref(doc);
	return r;
}

static struct keymgr *keymgr_of_file(const char *path)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, wipe_json_memory);
	return keymgr_new(path);
}

int keymgr_disk_new(const char *path, struct keymgr **ret, struct err *e)
{
	struct err why = ERR_INIT;
	struct keymgr *m = keymgr_of_file(path);
	int r = mode_check(path, &why);

	if (!r)
		r = load(m, &why);
	else if (r == ERR_NOT_FOUND)
		r = 0;
	if (r) {
		keymgr_free(m);
		return err_set(e, r, "%s", why.msg);
	}
	*ret = m;
	return 0;
}

int keymgr_file_read(const char *path, struct keymgr **ret, struct err *e)
{
	struct err why = ERR_INIT;
	struct keymgr *m = keymgr_of_file(path);
	int r = load(m, &why);

	if (r) {
		keymgr_free(m);
		return err_set(e, r, "%s", why.msg);
	}
	free(m->path);
	m->path = NULL;
	*ret = m;
	return 0;
}

/* Only names that need no escape are ever generated; others may come from a file. */
static void put_name(struct buf *b, const char *name)
{
	buf_byte(b, '"');
	for (; *name; name++) {
		if (*name == '"' || *name == '\\' || (uint8_t)*name < 0x20)
			buf_printf(b, "\\u%04x", (uint8_t)*name);
		else
			buf_byte(b, (uint8_t)*name);
	}
	buf_byte(b, '"');
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static struct strings sorted_names(const struct keymgr *m)
{
	struct strings names = { .n = 0 };
	struct bytes name;

	for (size_t i = 0; map_next(m->keys, &i, &name, NULL);) {
		AUTO(free) char *s = xstrndup((const char *)name.p, name.n);

		strings_add(&names, s);
	}
	if (names.n)
		qsort(names.v, names.n, sizeof(*names.v), compare_names);
	return names;
}

static void put_key(struct buf *b, const char *name, const struct key *k, bool first)
{
	AUTO_BUF struct buf der = BUF_INIT_SECRET;

	key_to_pkcs8(k, &der);
	buf_str(b, first ? "\n\t\t" : ",\n\t\t");
	put_name(b, name);
	buf_str(b, ": \"");
	base64_encode(b, buf_view(&der));
	buf_byte(b, '"');
}

/* The whole file as it is to be, with the lock held. */
static int save(struct keymgr *m, struct err *e)
{
	AUTO_BUF struct buf text = BUF_INIT_SECRET;
	struct strings names;
	int r;

	if (!m->path)
		return 0;
	names = sorted_names(m);
	buf_str(&text, "{\n\t\"keys\": {");
	for (size_t i = 0; i < names.n; i++)
		put_key(&text, names.v[i], map_get_str(m->keys, names.v[i]), i == 0);
	buf_str(&text, "\n\t}\n}\n");
	strings_deinit(&names);
	r = buf_write_file(buf_view(&text), m->path, 0600, e);
	return r ? err_wrap(e, "unable to save keys") : 0;
}

/* ---- keys ---- */

static void put_back(struct keymgr *m, const char *name, struct key *old)
{
	if (old)
		map_put_str(m->keys, name, old);
	else
		map_del_str(m->keys, name);
}

int keymgr_put(struct keymgr *m, const char *name, struct key *k, struct err *e)
{
	struct key *old;
	int r;

	INVARIANT(name[0] && strlen(name) <= NAME_MAX_BYTES);
	pthread_mutex_lock(&m->lock);
	old = map_put_str(m->keys, name, key_ref(k));
	r = save(m, e);
	if (r)
		put_back(m, name, old);
	pthread_mutex_unlock(&m->lock);
	key_unref(r ? k : old);
	return r;
}

int keymgr_generate(
	struct keymgr *m, const char *name, enum key_type t, struct pubkey **ret, struct err *e)
{
	AUTO(key_unref) struct key *k = NULL;
	int r = key_generate(t, &k, e);

	if (!r)
		r = keymgr_put(m, name, k, e);
	if (!r && ret)
		*ret = pubkey_ref(key_public(k));
	return r;
}

int keymgr_key(struct keymgr *m, const char *name, struct key **ret, struct err *e)
{
	struct key *k;

	pthread_mutex_lock(&m->lock);
	k = map_get_str(m->keys, name);
	if (k)
		*ret = key_ref(k);
	pthread_mutex_unlock(&m->lock);
	return k ? 0 : err_set(e, ERR_NOT_FOUND, "no key \"%s\"", name);
}

int keymgr_public(struct keymgr *m, const char *name, struct pubkey **ret, struct err *e)
{
	struct key *k = NULL;
	int r = keymgr_key(m, name, &k, e);

	if (r)
		return r;
	*ret = pubkey_ref(key_public(k));
	key_unref(k);
	return 0;
}

int keymgr_list(struct keymgr *m, struct strings *ret, struct err *e)
{
	(void)e;
	pthread_mutex_lock(&m->lock);
	*ret = sorted_names(m);
	pthread_mutex_unlock(&m->lock);
	return 0;
}

int keymgr_delete(struct keymgr *m, const char *name, struct err *e)
{
	struct key *old;
	int r;

	pthread_mutex_lock(&m->lock);
	old = map_del_str(m->keys, name);
	r = old ? save(m, e) : err_set(e, ERR_NOT_FOUND, "no key \"%s\"", name);
	if (r && old)
		put_back(m, name, old);
	pthread_mutex_unlock(&m->lock);
	if (!r)
		key_unref(old);
	return r;
}

/* ---- signing ---- */

int keymgr_signer(struct keymgr *m, const char *name, struct keymgr_signer **ret, struct err *e)
{
	struct key *k = NULL;
	struct keymgr_signer *s;
	int r = keymgr_key(m, name, &k, e);

	if (r)
		return r;
	s = xcalloc(1, sizeof(*s));
	s->refs = 1;
	s->key = k;
	*ret = s;
	return 0;
}

int keymgr_sign(struct keymgr_signer *s, enum hash h, struct bytes digest, enum sig_scheme scheme,
	struct buf *ret, struct err *e)
{
	return key_sign(s->key, h, digest, scheme, ret, e);
}

enum key_type keymgr_signer_type(const struct keymgr_signer *s)
{
	return key_get_type(s->key);
}

struct pubkey *keymgr_signer_public(const struct keymgr_signer *s)
{
	return key_public(s->key);
}

struct keymgr_signer *keymgr_signer_ref(struct keymgr_signer *s)
{
	__atomic_add_fetch(&s->refs, 1, __ATOMIC_RELAXED);
	return s;
}

void keymgr_signer_unref(struct keymgr_signer *s)
{
	if (!s || __atomic_sub_fetch(&s->refs, 1, __ATOMIC_ACQ_REL) > 0)
		return;
	key_unref(s->key);
	free(s);
}

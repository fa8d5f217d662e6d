#include "server/controller_static.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lib/config.h"
#include "lib/crypto.h"
#include "lib/yaml.h"

struct manifests {
	struct reconcile *reconcile;
	char *path;
	bool expand_env;
	bool kinds[RECONCILE_KINDS];
	int64_t interval_ns;
	struct loop_timer *timer;
	char *failure; /* told last */
};

static bool is_yaml(const char *name)
{
	size_t n = strlen(name);

	return n > 5 && strcmp(name + n - 5, ".yaml") == 0;
}

/* Sorted, so that of two objects of one name the same one wins each time. */
static int list_files(const char *path, struct strings *ret, struct err *e)
{
	struct dirent **v;
	int n = scandir(path, &v, NULL, alphasort), r = 0;

	if (n < 0)
		return err_errno(e, errno, "%s", path);
	for (int i = 0; i < n; i++) {
		if (!r && is_yaml(v[i]->d_name)) {
			AUTO(free) char *file = xasprintf("%s/%s", path, v[i]->d_name);

			strings_add(ret, file);
			if (ret->n > CONTROLLER_STATIC_FILES_MAX)
				r = err_set(e, ERR_EXHAUSTED, "%s: more than %d files", path,
					CONTROLLER_STATIC_FILES_MAX);
		}
		free(v[i]);
	}
	free(v);
	return r;
}

/* What the API server would add: who it is, and a number that changes with the text. */
static int complete(json_t *j, struct bytes text, struct err *e)
{
	json_t *meta = json_object_get(j, "metadata");
	const char *name = json_string_value(json_object_get(meta, "name"));
	uint8_t sum[HASH_MAX];
	json_int_t generation = 1;

	if (!name || !*name)
		return err_set(e, ERR_INVALID, "metadata.name is missing");
	hash_of(HASH_SHA256, text, sum);
	for (int i = 0; i < 7; i++)
		generation = generation << 8 | sum[i];
	json_object_set_new(meta, "uid", json_string(name));
	json_object_set_new(meta, "generation", json_integer(generation));
	return 0;
}

static int read_file(
	const struct manifests *m, const char *file, json_t *lists[RECONCILE_KINDS], struct err *e)
{
	AUTO_BUF struct buf raw = BUF_INIT_MAX(YAML_TEXT_MAX);
	AUTO_BUF struct buf text = BUF_INIT_MAX(YAML_TEXT_MAX);
	const char *version, *kind;
	json_t *j = NULL;
	int r = buf_read_file(&raw, file, e);

	if (!r && m->expand_env)
		config_expand_env(buf_view(&raw), &text, NULL);
	else if (!r)
		buf_bytes(&text, buf_view(&raw));
	if (!r && text.failed)
		r = err_set(e, ERR_EXHAUSTED, "it is too long");
	if (!r)
		r = yaml_parse(buf_view(&text), YAML_TYPED, &j, e);
	if (r)
		return err_wrap(e, "%s", file);
	version = json_string_value(json_object_get(j, "apiVersion"));
	kind = json_string_value(json_object_get(j, "kind"));
	/* Others may share the folder. */
	for (int k = RECONCILE_STATIC; !r && k < RECONCILE_KINDS; k++) {
		if (!m->kinds[k] || !version || !kind ||
			strcmp(version, "spire.spiffe.io/v1alpha1") != 0 ||
			strcmp(kind, reconcile_kind_name((enum reconcile_kind)k)) != 0)
			continue;
		r = complete(j, buf_view(&text), e);
		if (r)
			err_wrap(e, "%s", file);
		else
			json_array_append(lists[k], j);
	}
	json_decref(j);
	return r;
}

static int read_all(const struct manifests *m, json_t *lists[RECONCILE_KINDS], struct err *e)
{
	struct strings files = { .n = 0 };
	int r = list_files(m->path, &files, e);

	for (size_t i = 0; !r && i < files.n; i++)
		r = read_file(m, files.v[i], lists, e);
	strings_deinit(&files);
	return r;
}

static void hand_over(struct manifests *m, json_t *lists[RECONCILE_KINDS])
{
	for (int k = RECONCILE_STATIC; k < RECONCILE_KINDS; k++) {
		if (!m->kinds[k])
			continue;
		reconcile_restart(m->reconcile, (enum reconcile_kind)k);
		for (size_t i = 0; i < json_array_size(lists[k]); i++)
			reconcile_put(
				m->reconcile, (enum reconcile_kind)k, json_array_get(lists[k], i));
		reconcile_synced(m->reconcile, (enum reconcile_kind)k);
	}
}

static void tell(struct manifests *m, const struct err *e)
{
	if (e && (!m->failure || strcmp(m->failure, e->msg) != 0))
		log_event(LOG_ERROR, "controller",
			"could not read the static manifests; nothing is changed", "error", e->msg,
			NULL);
	free(m->failure);
	m->failure = e ? xstrdup(e->msg) : NULL;
}

static void on_timer(void *arg)
{
	struct manifests *m = arg;
	json_t *lists[RECONCILE_KINDS] = { NULL };
	struct err e;

	lists[RECONCILE_STATIC] = json_array();
	lists[RECONCILE_FEDERATED] = json_array();
	if (read_all(m, lists, &e)) {
		tell(m, &e);
	} else {
		tell(m, NULL);
		hand_over(m, lists);
	}
	json_decref(lists[RECONCILE_STATIC]);
	json_decref(lists[RECONCILE_FEDERATED]);
	loop_timer_set(m->timer, m->interval_ns);
}

struct manifests *manifests_new(struct loop *l, struct reconcile *r, const char *path,
	bool expand_env, int64_t interval_ns, bool entries, bool federated)
{
	struct manifests *m = xcalloc(1, sizeof(*m));

	m->reconcile = r;
	m->path = xstrdup(path);
	m->expand_env = expand_env;
	m->interval_ns = interval_ns;
	m->kinds[RECONCILE_STATIC] = entries;
	m->kinds[RECONCILE_FEDERATED] = federated;
	m->timer = loop_timer_new(l, on_timer, m);
	loop_timer_set(m->timer, 0);
	return m;
}

void manifests_free(struct manifests *m)
{
	if (!m)
		return;
	loop_timer_free(m->timer);
	free(m->path);
	free(m->failure);
	free(m);
}

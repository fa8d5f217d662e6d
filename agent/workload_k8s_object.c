/*
 * Kubernetes objects other than pods that a broker refers to: found by the API's discovery, and
 * described by their metadata.
 */
#include <stdlib.h>
#include <string.h>

#include "agent/workload_k8s_internal.h"

#define RESOURCE_AGE_NS (600 * NS_PER_SEC)
enum { LIST_PAGE = 100, LIST_PAGES_MAX = 1000 };

static const char *text_of(const json_t *o, const char *key)
{
	const char *s = json_string_value(json_object_get(o, key));

	return s ? s : "";
}

static const json_t *metadata_of(const json_t *o)
{
	return json_object_get(o, "metadata");
}

/* ---- their selectors ---- */

static void add(struct selectors *s, const char *name, const char *value)
{
	AUTO(free) char *text = xasprintf("%s:%s", name, value);

	selectors_add(s, "k8s", text);
}

/* The group of "group/version"; a lone version is the core's, as is what is neither. */
static char *owner_group(const char *api_version)
{
	const char *slash = strchr(api_version, '/');

	if (!slash || slash == api_version || strchr(slash + 1, '/'))
		return xstrdup("core");
	return xstrndup(api_version, (size_t)(slash - api_version));
}

static void add_owner(struct selectors *s, const json_t *owner)
{
	AUTO(free) char *group = owner_group(text_of(owner, "apiVersion"));
	const char *kind = text_of(owner, "kind");
	AUTO(free) char *key = xasprintf("%s/%s/%s", group, kind, text_of(owner, "name"));
	AUTO(free) char *uid = xasprintf("%s/%s/%s", group, kind, text_of(owner, "uid"));

	add(s, "owner-key", key);
	add(s, "owner-uid", uid);
	if (!json_is_true(json_object_get(owner, "controller")))
		return;
	add(s, "controller-key", key);
	add(s, "controller-uid", uid);
}

static void add_object(struct k8s_reference_op *op, const json_t *meta)
{
	struct selectors *s = &op->selectors;
	const char *ns = op->found_namespace, *group = k8s_api_group(op), *key;
	AUTO(free) char *resource = xasprintf("%s.%s", op->plural, op->group);
	AUTO(free)
	char *version = xasprintf("%s%s%s", group, *group ? "/" : "", op->res.version);
	AUTO(free) char *full = xasprintf("%s%s%s", ns, *ns ? "/" : "", op->found_name);
	size_t i;
	json_t *v;

	add(s, "uid", op->found_uid);
	add(s, "resource", resource);
	add(s, "plural", op->plural);
	add(s, "group", op->group);
	add(s, "version", op->res.version);
	add(s, "apiVersion", version);
	add(s, "kind", op->res.kind);
	add(s, "name", op->found_name);
	if (*ns)
		add(s, "namespace", ns);
	add(s, "key", full);
	json_object_foreach(json_object_get(meta, "labels"), key, v)
	{
		AUTO(free)
		char *label =
			xasprintf("%s:%s", key, text_of(json_object_get(meta, "labels"), key));

		add(s, "label", label);
	}
	json_array_foreach(json_object_get(meta, "ownerReferences"), i, v) add_owner(s, v);
}

static void object_found(struct k8s_reference_op *op, const json_t *meta)
{
	k8s_reference_remember(
		op, text_of(meta, "namespace"), text_of(meta, "name"), text_of(meta, "uid"));
	if (*op->uid && strcmp(op->uid, op->found_uid) != 0) {
		FAIL(op, ERR_NOT_FOUND, "%s.%s %s/%s has UID %s, expected %s", op->plural,
			op->group, op->found_namespace, op->found_name, op->found_uid, op->uid);
		return;
	}
	add_object(op, meta);
	k8s_reference_found(op);
}

/* ---- from the API ---- */

/* "/api/v1" or "/apis/group/version"; caller frees. */
static char *api_base(const struct k8s_reference_op *op)
{
	if (!*k8s_api_group(op))
		return kube_path("/api/%s", op->res.version);
	return kube_path("/apis/%s/%s", op->group, op->res.version);
}

static const json_t *with_uid(const json_t *list, const char *uid)
{
	const json_t *items = json_object_get(list, "items");
	size_t i;
	json_t *v;

	json_array_foreach(
		items, i, v) if (strcmp(text_of(metadata_of(v), "uid"), uid) == 0) return v;
	return NULL;
}

static void on_list(void *arg, int status, json_t *object, const struct err *e)
{
	struct k8s_reference_op *op = arg;
	const json_t *it = e->code ? NULL : with_uid(object, op->uid);
	const char *more = e->code ? "" : text_of(metadata_of(object), "continue");

	(void)status;
	op->call = NULL;
	if (e->code) {
		FAIL(op, ERR_INTERNAL, "unable to list %s: %s", op->res.kind, e->msg);
	} else if (it && k8s_is_pod(op)) {
		k8s_reference_remember(op, text_of(metadata_of(it), "namespace"),
			text_of(metadata_of(it), "name"), op->uid);
		k8s_reference_get_pod(op, op->k->kube, op->found_namespace, op->found_name);
	} else if (it) {
		object_found(op, metadata_of(it));
	} else if (*more && op->pages < LIST_PAGES_MAX) {
		free(op->go_on);
		op->go_on = xstrdup(more);
		k8s_object_list_for_uid(op);
	} else {
		FAIL(op, ERR_NOT_FOUND, "%s with UID %s not found", op->res.kind, op->uid);
	}
}

/* The API cannot be asked for a uid: all of them are looked through, in pages. */
void k8s_object_list_for_uid(struct k8s_reference_op *op)
{
	AUTO(free) char *base = api_base(op);
	AUTO(free) char *plural = kube_path("%s", op->plural);
	AUTO(free) char *query = op->go_on ? kube_path("&continue=%s", op->go_on) : xstrdup("");
	AUTO(free) char *path = xasprintf("%s/%s?limit=%d%s", base, plural, LIST_PAGE, query);
	struct kube_call_options o = { .path = path, .done = on_list, .arg = op };

	op->pages++;
	op->call = kube_call(op->k->kube, &o);
}

static void on_object(void *arg, int status, json_t *object, const struct err *e)
{
	struct k8s_reference_op *op = arg;

	(void)status;
	op->call = NULL;
	if (e->code == ERR_NOT_FOUND)
		FAIL(op, ERR_NOT_FOUND, "%s %s/%s not found", op->res.kind, op->namespace,
			op->name);
	else if (e->code)
		FAIL(op, ERR_INTERNAL, "unable to get %s: %s", op->res.kind, e->msg);
	else
		object_found(op, metadata_of(object));
}

static void get_object(struct k8s_reference_op *op)
{
	AUTO(free) char *base = api_base(op);
	AUTO(free)
	char *in = op->res.namespaced ? kube_path("/namespaces/%s", op->namespace) : xstrdup("");
	AUTO(free) char *what = kube_path("/%s/%s", op->plural, op->name);
	AUTO(free) char *path = xasprintf("%s%s%s", base, in, what);
	struct kube_call_options o = { .path = path, .done = on_object, .arg = op };

	op->call = kube_call(op->k->kube, &o);
}

static void resource_known(struct k8s_reference_op *op)
{
	if (op->res.namespaced && *op->name && !*op->namespace)
		FAIL(op, ERR_INVALID,
			"namespace is required when name is set for a namespaced resource");
	else if (!op->res.namespaced && *op->namespace)
		FAIL(op, ERR_INVALID, "namespace must be empty for cluster-scoped resource");
	else if (*op->name)
		get_object(op);
	else
		k8s_object_list_for_uid(op);
}

/* ---- what the API calls them ---- */

static void unknown(struct k8s_reference_op *op, const struct err *e)
{
	if (e && e->code != ERR_NOT_FOUND)
		FAIL(op, e->code == ERR_DENIED ? ERR_INTERNAL : ERR_UNAVAILABLE,
			"unable to look up Kubernetes resource %s.%s: %s", op->plural, op->group,
			e->msg);
	else
		FAIL(op, ERR_INVALID,
			"unknown Kubernetes resource %s.%s: no matches for %s/, Resource=%s",
			op->plural, op->group, k8s_api_group(op), op->plural);
}

void k8s_resource_deinit(struct resource *r)
{
	free(r->version);
	free(r->kind);
}

void k8s_resources_free(struct map *resources)
{
	struct bytes key;
	void *v;

	for (size_t i = 0; resources && map_next(resources, &i, &key, &v);) {
		k8s_resource_deinit(v);
		free(v);
	}
	map_free(resources);
}

static void learn(struct k8s_reference_op *op, const json_t *r, const char *version)
{
	AUTO(free) char *key = xasprintf("%s.%s", op->plural, op->group);
	struct resource *known = xcalloc(1, sizeof(*known)), *old;

	op->res = (struct resource){ .version = xstrdup(version),
		.kind = xstrdup(text_of(r, "kind")),
		.namespaced = json_is_true(json_object_get(r, "namespaced")) };
	*known = op->res;
	known->version = xstrdup(op->res.version);
	known->kind = xstrdup(op->res.kind);
	known->asked_ns = clock_mono().ns;
	if (map_len(op->k->resources) >= RESOURCES_MAX) {
		k8s_resources_free(op->k->resources);
		op->k->resources = map_new();
	}
	old = map_put_str(op->k->resources, key, known);
	if (old)
		k8s_resource_deinit(old);
	free(old);
}

static void next_version(struct k8s_reference_op *op);

static void on_resources(void *arg, int status, json_t *object, const struct err *e)
{
	struct k8s_reference_op *op = arg;
	const char *first = json_string_value(json_array_get(op->versions, 0));
	AUTO(free) char *version = xstrdup(first ? first : "");
	size_t i;
	json_t *r;

	(void)status;
	op->call = NULL;
	if (e->code && e->code != ERR_NOT_FOUND) {
		unknown(op, e);
		return;
	}
	json_array_remove(op->versions, 0);
	json_array_foreach(json_object_get(object, "resources"), i, r)
	{
		if (e->code || strcmp(text_of(r, "name"), op->plural) != 0 ||
			strchr(op->plural, '/'))
			continue;
		learn(op, r, version);
		resource_known(op);
		return;
	}
	next_version(op);
}

static void next_version(struct k8s_reference_op *op)
{
	const char *version = json_string_value(json_array_get(op->versions, 0));
	AUTO(free) char *path = NULL;
	struct kube_call_options o = { .done = on_resources, .arg = op };

	if (!version) {
		unknown(op, NULL);
		return;
	}
	path = *k8s_api_group(op) ? kube_path("/apis/%s/%s", op->group, version)
				  : kube_path("/api/%s", version);
	o.path = path;
	op->call = kube_call(op->k->kube, &o);
}

static void on_group(void *arg, int status, json_t *object, const struct err *e)
{
	struct k8s_reference_op *op = arg;
	const char *best = text_of(json_object_get(object, "preferredVersion"), "version");
	size_t i;
	json_t *v;

	(void)status;
	op->call = NULL;
	if (e->code) {
		unknown(op, e);
		return;
	}
	if (*best)
		json_array_append_new(op->versions, json_string(best));
	json_array_foreach(json_object_get(object, "versions"), i, v)
	{
		const char *version = text_of(v, "version");

		if (*version && strcmp(version, best) != 0)
			json_array_append_new(op->versions, json_string(version));
	}
	next_version(op);
}

static bool known_resource(struct k8s_reference_op *op)
{
	AUTO(free) char *key = xasprintf("%s.%s", op->plural, op->group);
	const struct resource *r = map_get_str(op->k->resources, key);

	if (!r || clock_mono().ns - r->asked_ns > RESOURCE_AGE_NS)
		return false;
	op->res = (struct resource){ .version = xstrdup(r->version),
		.kind = xstrdup(r->kind),
		.namespaced = r->namespaced };
	return true;
}

void k8s_object_begin(struct k8s_reference_op *op)
{
	AUTO(free) char *path = kube_path("/apis/%s", op->group);
	struct kube_call_options o = { .path = path, .done = on_group, .arg = op };
	struct kube *kube;
	struct err e = ERR_INIT;

	if (k8s_kube(op->k, &kube, &e)) {
		FAIL(op, ERR_INTERNAL, "unable to set up Kubernetes client: %s", e.msg);
		return;
	}
	if (known_resource(op)) {
		resource_known(op);
		return;
	}
	op->versions = json_array();
	if (*k8s_api_group(op)) {
		op->call = kube_call(kube, &o);
		return;
	}
	json_array_append_new(op->versions, json_string("v1"));
	next_version(op);
}

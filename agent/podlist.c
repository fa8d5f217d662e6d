#include "agent/podlist.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "lib/jsonstream.h"

/* Where in the document a token stands: one for each level that is looked into. */
enum place {
	TOP,
	ITEMS,
	POD,
	METADATA,
	LABELS,
	OWNERS,
	OWNER,
	SPEC,
	STATUS,
	CONTAINERS,
	CONTAINER,
};
enum { LEVELS = 8 };

enum shape { TEXT, OBJECT, ARRAY };

struct field {
	enum place in;
	const char *key;
	enum shape shape;
	enum place to;
	size_t offset; /* of the text, or of the list, in its struct */
};

#define OF_POD(m) offsetof(struct pod, m)
#define OF_ITEM(m) offsetof(struct pod_item, m)
static const struct field fields[] = {
	{ TOP, "items", ARRAY, ITEMS, 0 },
	{ POD, "metadata", OBJECT, METADATA, 0 },
	{ POD, "spec", OBJECT, SPEC, 0 },
	{ POD, "status", OBJECT, STATUS, 0 },
	{ METADATA, "uid", TEXT, 0, OF_POD(uid) },
	{ METADATA, "name", TEXT, 0, OF_POD(name) },
	{ METADATA, "namespace", TEXT, 0, OF_POD(namespace) },
	{ METADATA, "labels", OBJECT, LABELS, OF_POD(labels) },
	{ METADATA, "ownerReferences", ARRAY, OWNERS, OF_POD(owners) },
	{ OWNER, "kind", TEXT, 0, OF_ITEM(owner.kind) },
	{ OWNER, "name", TEXT, 0, OF_ITEM(owner.name) },
	{ OWNER, "uid", TEXT, 0, OF_ITEM(owner.uid) },
	{ SPEC, "serviceAccountName", TEXT, 0, OF_POD(service_account) },
	{ SPEC, "nodeName", TEXT, 0, OF_POD(node_name) },
	{ STATUS, "containerStatuses", ARRAY, CONTAINERS, OF_POD(containers) },
	{ STATUS, "initContainerStatuses", ARRAY, CONTAINERS, OF_POD(init_containers) },
	{ STATUS, "ephemeralContainerStatuses", ARRAY, CONTAINERS, OF_POD(ephemeral_containers) },
	{ CONTAINER, "name", TEXT, 0, OF_ITEM(container.name) },
	{ CONTAINER, "image", TEXT, 0, OF_ITEM(container.image) },
	{ CONTAINER, "imageID", TEXT, 0, OF_ITEM(container.image_id) },
	{ CONTAINER, "containerID", TEXT, 0, OF_ITEM(container.id) },
};
/* The value of a label has no row: any key is one. */
static const struct field label_value = { LABELS, NULL, TEXT, 0, OF_ITEM(label.value) };

static const char unfit[] = "a text is too long, or not one";

struct podlist {
	struct jsonstream *json;
	bool (*pod_done)(void *arg, struct pod *p);
	void *arg;
	enum place places[LEVELS]; /* by the number of containers around */
	const struct field *field; /* whose value comes next */
	struct pod *pod;           /* that is being read */
	struct pod_items *list;    /* of it, that is being read */
	bool has_items;
	size_t pods, without_uid;
	struct err failed;
};

void pod_free(struct pod *p)
{
	if (!p)
		return;
	buf_deinit(&p->text);
	free(p->labels.v);
	free(p->owners.v);
	free(p->containers.v);
	free(p->init_containers.v);
	free(p->ephemeral_containers.v);
	free(p);
}

static struct pod *pod_new(void)
{
	struct pod *p = xcalloc(1, sizeof(*p));

	p->text = BUF_INIT_MAX(PODLIST_POD_TEXT_MAX);
	buf_byte(&p->text, 0); /* offset 0 is the empty text */
	return p;
}

/* ---- reading ---- */

static void broken(struct podlist *l, const char *why)
{
	if (l->pod && !l->pod->broken)
		l->pod->broken = why;
}

static uint32_t keep_text(struct podlist *l, struct bytes v)
{
	struct buf *b = &l->pod->text;
	size_t at = b->len;

	if (v.n == 0)
		return 0;
	if (at + v.n + 1 > PODLIST_POD_TEXT_MAX) {
		broken(l, "it has more text than 1 MB");
		return 0;
	}
	buf_bytes(b, v);
	buf_byte(b, 0);
	return (uint32_t)at;
}

static bool add_item(struct podlist *l)
{
	struct pod_items *i = l->list;

	if (i->n == PODLIST_ITEMS_MAX) {
		broken(l, "it has more than 1000 labels, owners or containers");
		return false;
	}
	if (i->n == i->cap) {
		i->cap = i->cap ? 2 * i->cap : 4;
		i->v = xreallocarray(i->v, i->cap, sizeof(*i->v));
	}
	/* An initialiser would be that of the union's first member only. */
	memset(&i->v[i->n++], 0, sizeof(*i->v));
	return true;
}

static bool of_item(enum place p)
{
	return p == LABELS || p == OWNER || p == CONTAINER;
}

static void set_text(struct podlist *l, struct bytes v)
{
	void *base = l->pod;

	if (of_item(l->field->in))
		base = &l->list->v[l->list->n - 1];
	*(uint32_t *)(void *)((char *)base + l->field->offset) = keep_text(l, v);
}

static enum js_want on_key(struct podlist *l, struct bytes key, enum place in)
{
	if (in == LABELS) {
		if (!key.p)
			broken(l, unfit);
		if (!key.p || !add_item(l))
			return JS_SKIP;
		l->list->v[l->list->n - 1].label.key = keep_text(l, key);
		l->field = &label_value;
		return JS_ON;
	}
	for (size_t i = 0; key.p && i < ARRAY_LEN(fields); i++)
		if (fields[i].in == in && strcmp(fields[i].key, (const char *)key.p) == 0) {
			l->field = &fields[i];
			return JS_ON;
		}
	return JS_SKIP;
}

static enum js_want refuse(struct podlist *l, const char *what)
{
	err_set(&l->failed, ERR_INVALID, "invalid kubelet response: expected an %s", what);
	return JS_STOP;
}

/* A value that is not what its place wants. */
static enum js_want mismatch(struct podlist *l, unsigned depth)
{
	if (depth == 0)
		return refuse(l, "object");
	if (l->places[depth] == TOP)
		return refuse(l, "items array");
	if (l->places[depth] == ITEMS) { /* no object, so it has no uid */
		l->without_uid++;
		return JS_SKIP;
	}
	broken(l, "a field is of the wrong kind");
	return JS_SKIP;
}

static enum js_want enter(struct podlist *l, unsigned depth, enum place to)
{
	INVARIANT(depth + 1 < LEVELS);
	l->places[depth + 1] = to;
	return JS_ON;
}

static enum js_want on_object(struct podlist *l, unsigned depth)
{
	enum place in = l->places[depth];

	if (depth == 0)
		return enter(l, depth, TOP);
	if (in == ITEMS) {
		pod_free(l->pod);
		l->pod = pod_new();
		return enter(l, depth, POD);
	}
	if (in == OWNERS || in == CONTAINERS)
		return add_item(l) ? enter(l, depth, in == OWNERS ? OWNER : CONTAINER) : JS_SKIP;
	if (l->field->shape != OBJECT)
		return mismatch(l, depth);
	if (l->field->to == LABELS)
		l->list = &l->pod->labels;
	return enter(l, depth, l->field->to);
}

static enum js_want on_array(struct podlist *l, unsigned depth)
{
	enum place in = l->places[depth];

	if (depth == 0 || in == ITEMS || in == OWNERS || in == CONTAINERS ||
		l->field->shape != ARRAY)
		return mismatch(l, depth);
	if (l->field->to == ITEMS)
		l->has_items = true;
	else
		l->list = (struct pod_items *)(void *)((char *)l->pod + l->field->offset);
	return enter(l, depth, l->field->to);
}

/* As if the key had not been given; in a list, an item with nothing in it. */
static enum js_want on_null(struct podlist *l, unsigned depth)
{
	enum place in = l->places[depth];

	if (depth == 0 || in == ITEMS)
		return mismatch(l, depth);
	if (in == TOP)
		l->has_items = true;
	if (in == OWNERS || in == CONTAINERS)
		add_item(l);
	return JS_ON;
}

static enum js_want on_string(struct podlist *l, struct bytes text, unsigned depth)
{
	enum place in = l->places[depth];

	if (depth == 0 || in == ITEMS || in == OWNERS || in == CONTAINERS ||
		l->field->shape != TEXT)
		return mismatch(l, depth);
	if (text.p)
		set_text(l, text);
	else
		broken(l, unfit);
	return JS_ON;
}

static enum js_want on_pod_end(struct podlist *l)
{
	struct pod *p = l->pod;

	l->pod = NULL;
	if (!p->uid) {
		l->without_uid++;
		pod_free(p);
		return JS_ON;
	}
	if (++l->pods > PODLIST_PODS_MAX) {
		pod_free(p);
		err_set(&l->failed, ERR_EXHAUSTED,
			"unable to parse kubelet response: more than %d pods", PODLIST_PODS_MAX);
		return JS_STOP;
	}
	return l->pod_done(l->arg, p) ? JS_ON : JS_STOP;
}

static enum js_want on_token(void *arg, enum js_token t, struct bytes text, unsigned depth)
{
	struct podlist *l = arg;

	switch (t) {
	case JS_KEY:
		return on_key(l, text, l->places[depth]);
	case JS_OBJECT:
		return on_object(l, depth);
	case JS_ARRAY:
		return on_array(l, depth);
	case JS_STRING:
		return on_string(l, text, depth);
	case JS_NULL:
		return on_null(l, depth);
	case JS_OBJECT_END:
		return depth && l->places[depth] == ITEMS ? on_pod_end(l) : JS_ON;
	case JS_ARRAY_END:
		return JS_ON;
	default:
		return mismatch(l, depth);
	}
}

struct podlist *podlist_new(bool (*pod)(void *arg, struct pod *p), void *arg)
{
	struct podlist *l = xcalloc(1, sizeof(*l));
	struct jsonstream_options o = { .string_max = PODLIST_STRING_MAX,
		.document_max = PODLIST_BYTES_MAX,
		.token = on_token,
		.arg = l };

	l->json = jsonstream_new(&o);
	l->pod_done = pod;
	l->arg = arg;
	return l;
}

void podlist_free(struct podlist *l)
{
	if (!l)
		return;
	jsonstream_free(l->json);
	pod_free(l->pod);
	free(l);
}

static int outcome(struct podlist *l, int r, struct err *e)
{
	if (l->failed.code)
		return err_set(e, l->failed.code, "%s", l->failed.msg);
	return r ? err_wrap(e, "unable to parse kubelet response") : 0;
}

int podlist_feed(struct podlist *l, struct bytes part, struct err *e)
{
	return outcome(l, jsonstream_feed(l->json, part, e), e);
}

int podlist_end(struct podlist *l, struct err *e)
{
	int r = outcome(l, jsonstream_end(l->json, e), e);

	if (r || jsonstream_stopped(l->json) || l->has_items)
		return r;
	return err_set(e, ERR_INVALID, "invalid kubelet response: expected an items array");
}

bool podlist_stopped(const struct podlist *l)
{
	return jsonstream_stopped(l->json);
}

size_t podlist_without_uid(const struct podlist *l)
{
	return l->without_uid;
}

static bool take_one(void *arg, struct pod *p)
{
	*(struct pod **)arg = p;
	return false;
}

int pod_parse(struct bytes object, struct pod **ret, struct err *e)
{
	struct pod *p = NULL;
	AUTO(podlist_free) struct podlist *l = podlist_new(take_one, &p);
	int r = podlist_feed(l, bytes_str("{\"items\":["), e);

	if (!r)
		r = podlist_feed(l, object, e);
	if (!r && !p)
		r = podlist_feed(l, bytes_str("]}"), e);
	if (r) {
		pod_free(p);
		return r;
	}
	if (!p)
		return err_set(e, ERR_INVALID, "the object has no uid");
	*ret = p;
	return 0;
}

/* ---- what it says ---- */

/* The id is the host of a URL: containerd://<id>. */
static bool is_container(const char *url, const char *id)
{
	const char *at = strstr(url, "://");
	size_t n = strlen(id);

	if (!at || !n)
		return false;
	at += 3;
	return strncmp(at, id, n) == 0 && (at[n] == '\0' || strchr("/?#", at[n]));
}

const struct pod_item *pod_container(const struct pod *p, const char *container_id)
{
	const struct pod_items *lists[] = { &p->containers, &p->init_containers,
		&p->ephemeral_containers };

	for (size_t i = 0; i < ARRAY_LEN(lists); i++)
		for (size_t k = 0; k < lists[i]->n; k++) {
			const struct pod_item *c = &lists[i]->v[k];

			if (is_container(pod_text(p, c->container.id), container_id))
				return c;
		}
	return NULL;
}

static void add(struct selectors *ret, const char *name, const char *a, const char *b)
{
	AUTO(free) char *value = xasprintf("%s:%s%s%s", name, a, b ? ":" : "", b ? b : "");

	selectors_add(ret, "k8s", value);
}

static void add_count(struct selectors *ret, const char *name, size_t n)
{
	AUTO(free) char *value = xasprintf("%s:%zu", name, n);

	selectors_add(ret, "k8s", value);
}

/* By tag and by digest. */
static void add_image(
	const struct pod *p, const struct pod_item *c, const char *name, struct selectors *ret)
{
	add(ret, name, pod_text(p, c->container.image_id), NULL);
	add(ret, name, pod_text(p, c->container.image), NULL);
}

void pod_selectors(const struct pod *p, struct selectors *ret)
{
	add(ret, "sa", pod_text(p, p->service_account), NULL);
	add(ret, "ns", pod_text(p, p->namespace), NULL);
	add(ret, "node-name", pod_text(p, p->node_name), NULL);
	add(ret, "pod-uid", pod_text(p, p->uid), NULL);
	add(ret, "pod-name", pod_text(p, p->name), NULL);
	add_count(ret, "pod-image-count", p->containers.n);
	add_count(ret, "pod-init-image-count", p->init_containers.n);
	for (size_t i = 0; i < p->containers.n; i++)
		add_image(p, &p->containers.v[i], "pod-image", ret);
	for (size_t i = 0; i < p->init_containers.n; i++)
		add_image(p, &p->init_containers.v[i], "pod-init-image", ret);
	for (size_t i = 0; i < p->labels.n; i++)
		add(ret, "pod-label", pod_text(p, p->labels.v[i].label.key),
			pod_text(p, p->labels.v[i].label.value));
	for (size_t i = 0; i < p->owners.n; i++) {
		const struct pod_item *o = &p->owners.v[i];
		const char *kind = pod_text(p, o->owner.kind);

		add(ret, "pod-owner", kind, pod_text(p, o->owner.name));
		add(ret, "pod-owner-uid", kind, pod_text(p, o->owner.uid));
	}
	selectors_normalize(ret);
}

void pod_container_selectors(
	const struct pod *p, const struct pod_item *container, struct selectors *ret)
{
	add(ret, "container-name", pod_text(p, container->container.name), NULL);
	add_image(p, container, "container-image", ret);
	selectors_normalize(ret);
}

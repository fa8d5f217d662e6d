/* Why a pod has the entries that it has. */
#include <stdlib.h>
#include <string.h>

#include "server/reconcile_internal.h"

static char *rule_text(const struct label_rule *rule, const char *have)
{
	static const char *const names[] = { "In", "NotIn", "Exists", "DoesNotExist" };
	AUTO_BUF struct buf b = BUF_INIT_MAX(RECONCILE_MESSAGE_MAX);

	buf_printf(&b, "%s %s", rule->key, names[rule->op]);
	for (size_t i = 0; i < rule->values.n; i++)
		buf_printf(&b, "%s%s%s", i ? ", " : " [", rule->values.v[i],
			i + 1 == rule->values.n ? "]" : "");
	if (have)
		buf_printf(&b, ", but it is \"%s\"", have);
	else
		buf_str(&b, ", but there is no such label");
	return xstrdup(buf_cstr(&b));
}

/* The first rule that does not hold; NULL: all do. */
static char *missing(const struct label_selector *s, const json_t *labels, const char *what)
{
	for (size_t i = 0; i < s->n; i++) {
		struct label_selector one = { .v = &s->v[i], .n = 1 };

		if (!label_selector_matches(&one, labels)) {
			const char *have = json_string_value(json_object_get(labels, s->v[i].key));
			AUTO(free) char *text = rule_text(&s->v[i], have);

			return xasprintf("%s: %s", what, text);
		}
	}
	return NULL;
}

static void add(struct reconcile_explanation *x, const struct reconcile_object *o,
	const char *state, char *reason, const char *entry_id)
{
	x->lines = xreallocarray(x->lines, x->n_lines + 1, sizeof(*x->lines));
	x->lines[x->n_lines++] = (struct reconcile_line){ .object = xstrdup(o->name),
		.state = state,
		.reason = reason ? reason : xstrdup(""),
		.entry_id = xstrdup(entry_id ? entry_id : "") };
}

static char *not_selected(
	const struct reconcile_object *o, const struct pod *p, const json_t *labels)
{
	char *why;

	if (p->ns->ignored)
		return xasprintf("the namespace %s is ignored", p->ns->name);
	if (!p->ns->exists)
		return xasprintf("the namespace %s is not known", p->ns->name);
	why = missing(&o->id.namespaces, p->ns->labels, "namespaceSelector");
	return why ? why : missing(&o->id.pods, labels, "podSelector");
}

static void explain_slot(
	struct reconcile_explanation *x, const struct reconcile_object *o, const struct decl *d)
{
	const struct slot *s = d->slot;

	if (d->masked) {
		const struct reconcile_object *by = NULL;

		list_each (other, &s->decls, struct decl, slot_node)
			if (!other->masked)
				by = other->by;
		add(x, o, "masked",
			by ? xasprintf("%s declares the same entry, and is older", by->name) : NULL,
			NULL);
	} else if (d->refused) {
		add(x, o, "failed", o->write_problem ? xstrdup(o->write_problem) : NULL, NULL);
	} else if (list_empty(&s->currents)) {
		add(x, o, "waiting", NULL, NULL);
	} else {
		add(x, o, "entry", NULL,
			container_of(s->currents.next, struct current, slot_node)->id);
	}
}

static void explain_one(struct reconcile *r, struct reconcile_explanation *x,
	const struct reconcile_object *o, const struct pod *p, const json_t *labels)
{
	struct decl *d = NULL;
	struct entry en;
	struct err e;

	list_each (one, &p->decls, struct decl, pod_node)
		if (one->by == o)
			d = one;
	if (!o->ours)
		add(x, o, "other class", NULL, NULL);
	else if (o->problem)
		add(x, o, "failed", xstrdup(o->problem), NULL);
	else if (!d)
		add(x, o, p->dirty ? "waiting" : "not selected", not_selected(o, p, labels), NULL);
	else if (d->slot)
		explain_slot(x, o, d);
	else if (!d->failed)
		add(x, o, "not needed", xstrdup("a fallback, and another object gives an entry"),
			NULL);
	else if (render_pod(r, o, p, &en, &e))
		add(x, o, "failed", xstrdup(e.msg), NULL);
	else {
		entry_deinit(&en);
		add(x, o, "waiting", NULL, NULL);
	}
}

static void note(struct reconcile *r, struct reconcile_explanation *x)
{
	if (!r->leading)
		strings_add(&x->notes, "another server leads: this one writes nothing");
	for (int k = 0; k < RECONCILE_KINDS; k++)
		if (r->o.kinds[k] && !r->synced[k] && (k != RECONCILE_SLICE || r->needs_services)) {
			AUTO(free)
			char *text = xasprintf(
				"not all objects of kind %s are known yet: nothing is written",
				reconcile_kind_name((enum reconcile_kind)k));

			strings_add(&x->notes, text);
		}
}

void reconcile_explain(struct reconcile *r, const char *namespace, const char *name,
	struct reconcile_explanation *ret)
{
	AUTO(free) char *key = xasprintf("%s/%s", namespace, name);
	const struct pod *p = map_get_str(r->pods, key);
	struct bytes object;
	json_t *j;
	void *v;

	*ret = (struct reconcile_explanation){ .known = p != NULL };
	note(r, ret);
	if (!p)
		return;
	ret->uid = xstrdup(p->uid);
	ret->node = xstrdup(p->node ? p->node->name : "");
	ret->parent_id = xstrdup(p->node && p->node->parent ? p->node->parent : "");
	if (p->node && p->node->problem)
		strings_add(&ret->notes, p->node->problem);
	j = json_loads(p->json, 0, NULL);
	for (size_t i = 0; map_next(r->objects[RECONCILE_ID], &i, &object, &v);)
		explain_one(r, ret, v, p, json_object_get(json_object_get(j, "PodMeta"), "labels"));
	json_decref(j);
}

void reconcile_explanation_deinit(struct reconcile_explanation *x)
{
	for (size_t i = 0; i < x->n_lines; i++) {
		free(x->lines[i].object);
		free(x->lines[i].reason);
		free(x->lines[i].entry_id);
	}
	free(x->lines);
	strings_deinit(&x->notes);
	free(x->uid);
	free(x->node);
	free(x->parent_id);
	*x = (struct reconcile_explanation){ .known = false };
}

/* Label selectors of Kubernetes: matchLabels and matchExpressions, all of which must hold. */
#include <stdlib.h>
#include <string.h>

#include "lib/text.h"
#include "server/reconcile_internal.h"

static struct label_rule *add_rule(struct label_selector *s, const char *key)
{
	s->v = xreallocarray(s->v, s->n + 1, sizeof(*s->v));
	s->v[s->n] = (struct label_rule){ .key = xstrdup(key) };
	return &s->v[s->n++];
}

static int read_labels(struct label_selector *s, const json_t *j, struct err *e)
{
	const char *key;
	json_t *v;

	json_object_foreach((json_t *)(uintptr_t)j, key, v)
	{
		struct label_rule *rule = add_rule(s, key);

		if (!json_is_string(v))
			return err_set(e, ERR_INVALID, "matchLabels \"%.100s\" is not a text", key);
		strings_add(&rule->values, json_string_value(v));
	}
	return 0;
}

static int read_operator(struct label_rule *rule, const json_t *j, struct err *e)
{
	static const char *const names[] = { "In", "NotIn", "Exists", "DoesNotExist" };
	const char *op = json_string_value(json_object_get(j, "operator"));

	for (size_t i = 0; op && i < ARRAY_LEN(names); i++)
		if (strcmp(op, names[i]) == 0) {
			rule->op = i;
			return 0;
		}
	return err_set(
		e, ERR_INVALID, "\"%.100s\" is not a valid label selector operator", op ? op : "");
}

static int read_expression(struct label_selector *s, const json_t *j, struct err *e)
{
	const char *key = json_string_value(json_object_get(j, "key"));
	const json_t *values = json_object_get(j, "values");
	struct label_rule *rule;
	int r;

	if (!key || !*key)
		return err_set(e, ERR_INVALID, "a label selector's expression has no key");
	rule = add_rule(s, key);
	r = read_operator(rule, j, e);
	if (r)
		return r;
	for (size_t i = 0; i < json_array_size(values); i++)
		if (json_is_string(json_array_get(values, i)))
			strings_add(&rule->values, json_string_value(json_array_get(values, i)));
	if ((rule->op == LABEL_IN || rule->op == LABEL_NOT_IN) && !rule->values.n)
		return err_set(e, ERR_INVALID,
			"values: Invalid value: []: for 'in', 'notin' operators, values set can't "
			"be "
			"empty");
	if ((rule->op == LABEL_EXISTS || rule->op == LABEL_ABSENT) && rule->values.n)
		return err_set(e, ERR_INVALID,
			"values: Invalid value: values set must be empty for exists and does not "
			"exist");
	return 0;
}

int label_selector_parse(struct label_selector *ret, const json_t *j, struct err *e)
{
	struct label_selector s = { .n = 0 };
	const json_t *expressions = json_object_get(j, "matchExpressions");
	int r = read_labels(&s, json_object_get(j, "matchLabels"), e);

	for (size_t i = 0; !r && i < json_array_size(expressions); i++)
		r = read_expression(&s, json_array_get(expressions, i), e);
	if (r)
		label_selector_deinit(&s);
	else
		*ret = s;
	return r;
}

void label_selector_deinit(struct label_selector *s)
{
	for (size_t i = 0; i < s->n; i++) {
		free(s->v[i].key);
		strings_deinit(&s->v[i].values);
	}
	free(s->v);
	*s = (struct label_selector){ .n = 0 };
}

bool label_selector_matches(const struct label_selector *s, const json_t *labels)
{
	for (size_t i = 0; i < s->n; i++) {
		const struct label_rule *rule = &s->v[i];
		const char *v = json_string_value(json_object_get(labels, rule->key));
		bool in = v && strings_has(&rule->values, v);

		/* NotIn holds too for what has no such label. */
		if ((rule->op == LABEL_IN && !in) || (rule->op == LABEL_NOT_IN && in) ||
			(rule->op == LABEL_EXISTS && !v) || (rule->op == LABEL_ABSENT && v))
			return false;
	}
	return true;
}

/* Sprig's functions on lists and maps. */
#include <stdlib.h>

#include "lib/template_args.h"

/* ---- lists ---- */

static int want_list(struct execution *x, const struct value *v)
{
	return json_is_array(v->json) ? template_steps(x, json_array_size(v->json))
				      : want(x, "list", v);
}

static int give_list(struct execution *x, json_t *j, const struct value *like, struct value *ret)
{
	int r = template_own(x, j, ret);

	ret->type = like ? like->type : NULL;
	return r;
}

FN(fn_list)
{
	json_t *j = json_array();

	for (size_t i = 0; i < n; i++)
		json_array_append(j, a[i].json ? a[i].json : json_null());
	return give_list(x, j, NULL, ret);
}

FN(fn_split_list)
{
	int r = strings(x, a, n);
	struct bytes sep = text(&a[0]), v = text(&a[1]);
	json_t *j;
	size_t from = 0;

	if (!r && !sep.n)
		r = err_set(x->e, ERR_INVALID, "the separator is empty");
	if (!r)
		r = template_steps(x, v.n);
	if (r)
		return r;
	j = json_array();
	for (size_t i = 0; i <= v.n; i++)
		if (i == v.n || starts(bytes_of(v.p + i, v.n - i), sep)) {
			json_array_append_new(
				j, json_stringn_nocheck((const char *)v.p + from, i - from));
			from = i + sep.n;
			i = from ? from - 1 : 0;
		}
	if (ends(v, sep) && from == v.n && v.n)
		json_array_append_new(j, json_string(""));
	return give_list(x, j, NULL, ret);
}

FN(fn_to_strings)
{
	int r = want_list(x, &a[0]);
	json_t *j;

	(void)n;
	if (r)
		return r;
	j = json_array();
	for (size_t i = 0; !r && i < json_array_size(a[0].json); i++) {
		AUTO_BUF struct buf b = OUT_INIT;
		struct value el = template_element(&a[0], i);

		if (is_nil(&el))
			continue;
		r = template_print(x, &b, &el);
		json_array_append_new(j, json_stringn_nocheck(buf_cstr(&b), b.len));
	}
	if (r) {
		json_decref(j);
		return r;
	}
	return give_list(x, j, NULL, ret);
}

FN(fn_join)
{
	struct buf b = OUT_INIT;
	struct value list;
	int r = strings(x, a, 1);

	(void)n;
	if (!r && !json_is_array(a[1].json)) {
		if (is_nil(&a[1]))
			return template_own_str(x, "", 0, ret);
		r = template_print(x, &b, &a[1]);
		return give_or(x, r, &b, ret);
	}
	if (!r)
		r = fn_to_strings(x, &a[1], 1, &list);
	for (size_t i = 0; !r && i < json_array_size(list.json); i++) {
		const json_t *el = json_array_get(list.json, i);

		if (i)
			buf_bytes(&b, text(&a[0]));
		buf_append(&b, json_string_value(el), json_string_length(el));
	}
	return give_or(x, r, &b, ret);
}

static int by_json_text(const void *a, const void *b)
{
	const json_t *l = *(json_t *const *)a, *r = *(json_t *const *)b;

	return bytes_compare(bytes_of(json_string_value(l), json_string_length(l)),
		bytes_of(json_string_value(r), json_string_length(r)));
}

FN(fn_sort_alpha)
{
	struct value list;
	json_t **v, *j;
	size_t size;
	int r = fn_to_strings(x, a, n, &list);

	if (r)
		return r;
	size = json_array_size(list.json);
	v = xcalloc(size + 1, sizeof(json_t *));
	for (size_t i = 0; i < size; i++)
		v[i] = json_array_get(list.json, i);
	qsort(v, size, sizeof(json_t *), by_json_text);
	j = json_array();
	for (size_t i = 0; i < size; i++)
		json_array_append(j, v[i]);
	free(v);
	return give_list(x, j, NULL, ret);
}

/* from .. to - 1, clamped. */
static int part(
	struct execution *x, const struct value *v, size_t from, size_t to, struct value *ret)
{
	int r = want_list(x, v);
	json_t *j;

	if (r)
		return r;
	j = json_array();
	for (size_t i = from; i < to && i < json_array_size(v->json); i++)
		json_array_append(j, json_array_get(v->json, i));
	return give_list(x, j, v, ret);
}

static int one(struct execution *x, const struct value *v, size_t i, struct value *ret)
{
	int r = want_list(x, v);

	if (r)
		return r;
	*ret = template_element(v, i);
	return ret->json ? 0 : template_own(x, json_null(), ret);
}

FN(fn_first)
{
	(void)n;
	return one(x, &a[0], 0, ret);
}

FN(fn_last)
{
	(void)n;
	return one(x, &a[0], json_array_size(a[0].json) - 1, ret);
}

FN(fn_rest)
{
	(void)n;
	return part(x, &a[0], 1, SIZE_MAX, ret);
}

FN(fn_initial)
{
	size_t size = json_array_size(a[0].json);

	(void)n;
	return part(x, &a[0], 0, size ? size - 1 : 0, ret);
}

FN(fn_append)
{
	int r = part(x, &a[0], 0, SIZE_MAX, ret);

	(void)n;
	if (!r)
		json_array_append(ret->json, a[1].json ? a[1].json : json_null());
	return r;
}

FN(fn_prepend)
{
	int r = part(x, &a[0], 0, SIZE_MAX, ret);

	(void)n;
	if (!r)
		json_array_insert(ret->json, 0, a[1].json ? a[1].json : json_null());
	return r;
}

FN(fn_concat)
{
	json_t *j = json_array();
	int r = 0;

	for (size_t i = 0; !r && i < n; i++) {
		r = want_list(x, &a[i]);
		if (!r)
			json_array_extend(j, a[i].json);
	}
	if (r) {
		json_decref(j);
		return r;
	}
	return give_list(x, j, NULL, ret);
}

FN(fn_reverse)
{
	int r = want_list(x, &a[0]);
	json_t *j;

	(void)n;
	if (r)
		return r;
	j = json_array();
	for (size_t i = json_array_size(a[0].json); i > 0; i--)
		json_array_append(j, json_array_get(a[0].json, i - 1));
	return give_list(x, j, &a[0], ret);
}

static bool list_has(const json_t *list, const json_t *v)
{
	for (size_t i = 0; i < json_array_size(list); i++)
		if (json_equal(json_array_get(list, i), v))
			return true;
	return false;
}

/* Those that fn takes. */
static int filter(struct execution *x, const struct value *v,
	bool (*fn)(const json_t *el, const json_t *so_far, const struct value *a, size_t n),
	const struct value *a, size_t n, struct value *ret)
{
	int r = want_list(x, v);
	json_t *j;

	if (r)
		return r;
	j = json_array();
	for (size_t i = 0; !r && i < json_array_size(v->json); i++) {
		r = template_steps(x, json_array_size(j) / 8 + n);
		if (!r && fn(json_array_get(v->json, i), j, a, n))
			json_array_append(j, json_array_get(v->json, i));
	}
	if (r) {
		json_decref(j);
		return r;
	}
	return give_list(x, j, v, ret);
}

static bool keep_new(const json_t *el, const json_t *so_far, const struct value *a, size_t n)
{
	(void)a;
	(void)n;
	return !list_has(so_far, el);
}

static bool keep_full(const json_t *el, const json_t *so_far, const struct value *a, size_t n)
{
	(void)so_far;
	(void)a;
	(void)n;
	return template_truth(&(struct value){ .json = (json_t *)(uintptr_t)el });
}

static bool keep_others(const json_t *el, const json_t *so_far, const struct value *a, size_t n)
{
	(void)so_far;
	for (size_t i = 0; i < n; i++)
		if (json_equal(el, a[i].json))
			return false;
	return true;
}

FN(fn_uniq)
{
	return filter(x, &a[0], keep_new, a, n - 1, ret);
}

FN(fn_compact)
{
	return filter(x, &a[0], keep_full, a, n - 1, ret);
}

FN(fn_without)
{
	return filter(x, &a[0], keep_others, a + 1, n - 1, ret);
}

FN(fn_has)
{
	int r;

	(void)n;
	if (is_nil(&a[1]))
		return give_bool(x, false, ret);
	r = want_list(x, &a[1]);
	return r ? r : give_bool(x, list_has(a[1].json, a[0].json), ret);
}

FN(fn_chunk)
{
	json_int_t size = json_integer_value(a[0].json);
	int r = want_list(x, &a[1]);
	json_t *j;

	(void)n;
	if (r)
		return r;
	if (!json_is_integer(a[0].json) || size < 1)
		return err_set(x->e, ERR_INVALID, "a chunk has at least one element");
	j = json_array();
	for (size_t i = 0; i < json_array_size(a[1].json); i++) {
		if (i % (size_t)size == 0)
			json_array_append_new(j, json_array());
		json_array_append(
			json_array_get(j, json_array_size(j) - 1), json_array_get(a[1].json, i));
	}
	return give_list(x, j, NULL, ret);
}

/* ---- maps ---- */

static int want_map(struct execution *x, const struct value *v)
{
	return json_is_object(v->json) && !v->type ? template_steps(x, json_object_size(v->json))
						   : want(x, "map", v);
}

FN(fn_dict)
{
	json_t *j = json_object();

	for (size_t i = 0; i < n; i += 2) {
		AUTO_BUF struct buf key = OUT_INIT;
		int r = template_print(x, &key, &a[i]);

		if (r) {
			json_decref(j);
			return r;
		}
		if (i + 1 == n)
			json_object_set_new_nocheck(j, buf_cstr(&key), json_string(""));
		else
			json_object_set_nocheck(
				j, buf_cstr(&key), a[i + 1].json ? a[i + 1].json : json_null());
	}
	return template_own(x, j, ret);
}

FN(fn_get)
{
	int r = want_map(x, &a[0]);

	if (!r)
		r = strings(x, a + 1, n - 1);
	if (r)
		return r;
	*ret = (struct value){ .json = json_object_get(a[0].json, str(&a[1])) };
	return ret->json ? 0 : template_own_str(x, "", 0, ret);
}

FN(fn_has_key)
{
	int r = want_map(x, &a[0]);

	if (!r)
		r = strings(x, a + 1, n - 1);
	return r ? r : give_bool(x, json_object_get(a[0].json, str(&a[1])) != NULL, ret);
}

static int map_parts(struct execution *x, const struct value *v, bool keys, struct value *ret)
{
	int r = want_map(x, v);
	const char **sorted;
	json_t *j;
	size_t size;

	if (r)
		return r;
	sorted = template_sorted_keys(v->json, &size);
	j = json_array();
	for (size_t i = 0; i < size; i++)
		if (keys)
			json_array_append_new(
				j, json_stringn_nocheck(sorted[i], strlen(sorted[i])));
		else
			json_array_append(j, json_object_get(v->json, sorted[i]));
	free(sorted);
	return give_list(x, j, NULL, ret);
}

FN(fn_keys)
{
	(void)n;
	return map_parts(x, &a[0], true, ret);
}

FN(fn_values)
{
	(void)n;
	return map_parts(x, &a[0], false, ret);
}

/* What pick takes and omit leaves. */
static int choose(
	struct execution *x, const struct value *a, size_t n, bool named, struct value *ret)
{
	int r = want_map(x, &a[0]);
	json_t *j;

	if (!r)
		r = strings(x, a + 1, n - 1);
	if (r)
		return r;
	j = named ? json_object() : json_copy(a[0].json);
	for (size_t i = 1; i < n; i++) {
		json_t *v = json_object_get(a[0].json, str(&a[i]));

		if (named && v)
			json_object_set_nocheck(j, str(&a[i]), v);
		else if (!named)
			json_object_del(j, str(&a[i]));
	}
	return template_own(x, j, ret);
}

FN(fn_pick)
{
	return choose(x, a, n, true, ret);
}

FN(fn_omit)
{
	return choose(x, a, n, false, ret);
}

static const struct template_func funcs[] = {
	{ "append", fn_append, 2, 2 },
	{ "chunk", fn_chunk, 2, 2 },
	{ "compact", fn_compact, 1, 1 },
	{ "concat", fn_concat, 0, -1 },
	{ "dict", fn_dict, 0, -1 },
	{ "first", fn_first, 1, 1 },
	{ "get", fn_get, 2, 2 },
	{ "has", fn_has, 2, 2 },
	{ "hasKey", fn_has_key, 2, 2 },
	{ "initial", fn_initial, 1, 1 },
	{ "join", fn_join, 2, 2 },
	{ "keys", fn_keys, 1, 1 },
	{ "last", fn_last, 1, 1 },
	{ "list", fn_list, 0, -1 },
	{ "mustAppend", fn_append, 2, 2 },
	{ "mustChunk", fn_chunk, 2, 2 },
	{ "mustCompact", fn_compact, 1, 1 },
	{ "mustFirst", fn_first, 1, 1 },
	{ "mustHas", fn_has, 2, 2 },
	{ "mustInitial", fn_initial, 1, 1 },
	{ "mustLast", fn_last, 1, 1 },
	{ "mustPrepend", fn_prepend, 2, 2 },
	{ "mustPush", fn_append, 2, 2 },
	{ "mustRest", fn_rest, 1, 1 },
	{ "mustReverse", fn_reverse, 1, 1 },
	{ "mustUniq", fn_uniq, 1, 1 },
	{ "mustWithout", fn_without, 1, -1 },
	{ "omit", fn_omit, 1, -1 },
	{ "pick", fn_pick, 1, -1 },
	{ "prepend", fn_prepend, 2, 2 },
	{ "push", fn_append, 2, 2 },
	{ "rest", fn_rest, 1, 1 },
	{ "reverse", fn_reverse, 1, 1 },
	{ "sortAlpha", fn_sort_alpha, 1, 1 },
	{ "splitList", fn_split_list, 2, 2 },
	{ "toStrings", fn_to_strings, 1, 1 },
	{ "tuple", fn_list, 0, -1 },
	{ "uniq", fn_uniq, 1, 1 },
	{ "values", fn_values, 1, 1 },
	{ "without", fn_without, 1, -1 },
};

const struct template_func *template_list_find(const char *name)
{
	for (size_t i = 0; i < ARRAY_LEN(funcs); i++)
		if (strcmp(funcs[i].name, name) == 0)
			return &funcs[i];
	return NULL;
}

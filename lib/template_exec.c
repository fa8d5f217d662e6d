/* Runs a template's tree over a JSON value. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "lib/entry.h"
#include "lib/template_internal.h"

/* ---- values ---- */

int template_steps(struct execution *x, size_t n)
{
	if (n > TEMPLATE_STEPS_MAX || (x->steps += (int)n) > TEMPLATE_STEPS_MAX)
		return err_set(x->e, ERR_EXHAUSTED, "template takes too many steps, at most %d",
			TEMPLATE_STEPS_MAX);
	return 0;
}

int template_own(struct execution *x, json_t *j, struct value *ret)
{
	INVARIANT(j);
	json_array_append_new(x->made, j);
	*ret = (struct value){ .json = j };
	return template_steps(x, 1);
}

int template_own_str(struct execution *x, const char *s, size_t n, struct value *ret)
{
	x->bytes += n;
	if (x->bytes > TEMPLATE_VALUES_MAX)
		return err_set(x->e, ERR_EXHAUSTED, "template makes too long texts");
	return template_own(x, json_stringn_nocheck(s ? s : "", n), ret);
}

int template_own_buf(struct execution *x, struct buf *b, struct value *ret)
{
	int r = b->failed ? err_set(x->e, ERR_EXHAUSTED, "template makes too long texts")
			  : template_own_str(x, buf_cstr(b), b->len, ret);

	buf_deinit(b);
	return r;
}

static bool is_struct(const struct value *v)
{
	return v->type && json_is_object(v->json);
}

bool template_truth(const struct value *v)
{
	switch (v->json ? json_typeof(v->json) : JSON_NULL) {
	case JSON_OBJECT:
		return is_struct(v) || json_object_size(v->json) > 0;
	case JSON_ARRAY:
		return json_array_size(v->json) > 0;
	case JSON_STRING:
		return json_string_length(v->json) > 0;
	case JSON_INTEGER:
		return json_integer_value(v->json) != 0;
	case JSON_REAL:
		return json_real_value(v->json) != 0;
	case JSON_TRUE:
		return true;
	default:
		return false;
	}
}

const char *template_kind_name(const struct value *v)
{
	switch (v->json ? json_typeof(v->json) : JSON_NULL) {
	case JSON_OBJECT:
		return v->type ? v->type->name : "map";
	case JSON_ARRAY:
		return "slice";
	case JSON_STRING:
		return "string";
	case JSON_INTEGER:
		return "int";
	case JSON_REAL:
		return "float64";
	case JSON_TRUE:
	case JSON_FALSE:
		return "bool";
	default:
		return "nil";
	}
}

struct value template_element(const struct value *list, size_t i)
{
	json_t *j = json_array_get(list->json, i);

	return (struct value){ .json = j, .type = json_is_object(j) ? list->type : NULL };
}

static int by_text(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

const char **template_sorted_keys(const json_t *o, size_t *ret_n)
{
	size_t n = 0;
	const char **v = xcalloc(json_object_size(o) + 1, sizeof(*v));

	for (void *it = json_object_iter((json_t *)(uintptr_t)o); it;
		it = json_object_iter_next((json_t *)(uintptr_t)o, it))
		v[n++] = json_object_iter_key(it);
	qsort(v, n, sizeof(*v), by_text);
	*ret_n = n;
	return v;
}

/* As fmt's %v: the shortest text that gives the number back, with an exponent from 1e6 on. */
static void print_real(struct buf *b, double v)
{
	char text[40];
	int precision = 1;
	double abs = v < 0 ? -v : v;

	do
		snprintf(text, sizeof(text), "%.*g", precision, v);
	while (strtod(text, NULL) != v && precision++ < 17);
	if (abs >= 1e6 || (abs != 0 && abs < 1e-4)) {
		snprintf(text, sizeof(text), "%.*e", precision - 1, v);
		buf_str(b, text);
	} else if (strchr(text, 'e')) { /* 1e+05: few digits */
		buf_printf(b, "%.0f", v);
	} else {
		buf_str(b, text);
	}
}

static int print_list(struct execution *x, struct buf *b, const struct value *v)
{
	size_t n = json_array_size(v->json);
	int r = template_steps(x, n);

	buf_byte(b, '[');
	for (size_t i = 0; !r && i < n; i++) {
		struct value el = template_element(v, i);

		if (i)
			buf_byte(b, ' ');
		r = template_print(x, b, &el);
	}
	buf_byte(b, ']');
	return r;
}

static int print_map(struct execution *x, struct buf *b, const struct value *v)
{
	size_t n;
	const char **keys = template_sorted_keys(v->json, &n);
	int r = template_steps(x, n);

	buf_str(b, "map[");
	for (size_t i = 0; !r && i < n; i++) {
		struct value el = { .json = json_object_get(v->json, keys[i]) };

		buf_printf(b, "%s%s:", i ? " " : "", keys[i]);
		r = template_print(x, b, &el);
	}
	buf_byte(b, ']');
	free(keys);
	return r;
}

int template_print(struct execution *x, struct buf *b, const struct value *v)
{
	int r = 0;

	if (++x->depth > 2 * TEMPLATE_DEPTH_MAX)
		return err_set(x->e, ERR_EXHAUSTED, "value is too deep to be printed");
	switch (v->json ? json_typeof(v->json) : JSON_NULL) {
	case JSON_OBJECT:
		r = v->type ? err_set(x->e, ERR_INVALID,
				      "a whole %s cannot be printed: name the field", v->type->name)
			    : print_map(x, b, v);
		break;
	case JSON_ARRAY:
		r = print_list(x, b, v);
		break;
	case JSON_STRING:
		buf_append(b, json_string_value(v->json), json_string_length(v->json));
		break;
	case JSON_INTEGER:
		buf_printf(b, "%lld", (long long)json_integer_value(v->json));
		break;
	case JSON_REAL:
		print_real(b, json_real_value(v->json));
		break;
	case JSON_TRUE:
	case JSON_FALSE:
		buf_str(b, json_is_true(v->json) ? "true" : "false");
		break;
	default:
		buf_str(b, v->json ? "<nil>" : "<no value>");
	}
	x->depth--;
	return r;
}

/* ---- fields ---- */

static int source_error(struct execution *x, const struct operand *o)
{
	return err_wrap(x->e, "at <%.*s>", (int)o->source.n, (const char *)o->source.p);
}

/* "DNSPolicy" → "dnsPolicy", "UID" → "uid", "HostIP" → "hostIP", "SELinuxOptions" →
 * "seLinuxOptions": how the JSON names of Kubernetes follow from Go's. */
static void json_name(const char *name, char ret[static 128])
{
	size_t n = 0, caps = 0;

	while (isupper((unsigned char)name[caps]))
		caps++;
	if (caps > 1 && name[caps] && islower((unsigned char)name[caps]))
		caps--;
	for (; n < 127 && name[n]; n++)
		ret[n] = (char)(n < caps ? tolower((unsigned char)name[n]) : name[n]);
	ret[n] = 0;
}

static int zero_value(struct execution *x, const struct template_field *f, struct value *ret)
{
	switch (f->kind) {
	case TEMPLATE_STRING:
	case TEMPLATE_TIME:
		return template_own(x, json_string(""), ret);
	case TEMPLATE_INT:
		return template_own(x, json_integer(0), ret);
	case TEMPLATE_BOOL:
		return template_own(x, json_false(), ret);
	case TEMPLATE_MAP:
		return template_own(x, json_object(), ret);
	case TEMPLATE_LIST:
		return template_own(x, json_array(), ret);
	case TEMPLATE_STRUCT:
	case TEMPLATE_INLINE: {
		int r = template_own(x, json_object(), ret);

		ret->type = f->type;
		return r;
	}
	default:
		return template_own(x, json_null(), ret);
	}
}

/* "2026-01-02T03:04:05Z" as time.Time prints it. */
static int time_value(struct execution *x, const json_t *j, struct value *ret)
{
	const char *s = json_string_value(j);
	char text[40];

	if (!s || strlen(s) != 20 || s[10] != 'T')
		return template_own_str(x, s, s ? strlen(s) : 0, ret);
	snprintf(text, sizeof(text), "%.10s %.8s +0000 UTC", s, s + 11);
	return template_own_str(x, text, strlen(text), ret);
}

static int struct_field(
	struct execution *x, const struct value *v, const char *name, struct value *ret)
{
	const struct template_field *f = v->type->fields;
	char made[128];
	json_t *j;

	while (f && f->name && strcmp(f->name, name) != 0)
		f++;
	if (f && !f->name)
		f = NULL;
	if (!f && !v->type->open)
		return err_set(x->e, ERR_INVALID, "can't evaluate field %.100s in type %s", name,
			v->type->name);
	if (f && f->kind == TEMPLATE_INLINE) {
		*ret = (struct value){ .json = v->json, .type = f->type };
		return 0;
	}
	json_name(name, made);
	j = json_object_get(v->json, f && f->json ? f->json : made);
	if (!f) {
		static const struct template_type any = { .name = "struct", .open = true };

		if (!j)
			return template_own(x, json_null(), ret);
		*ret = (struct value){ .json = j, .type = &any };
		if (!json_is_object(j) && !json_is_array(j))
			ret->type = NULL;
		return 0;
	}
	if (!j || json_is_null(j))
		return zero_value(x, f, ret);
	if (f->kind == TEMPLATE_TIME)
		return time_value(x, j, ret);
	*ret = (struct value){ .json = j, .type = f->type };
	return 0;
}

static int get_field(
	struct execution *x, const struct value *v, const char *name, struct value *ret)
{
	if (!v->json) {
		if (x->t->flags & TEMPLATE_MISSING_ERROR)
			return err_set(
				x->e, ERR_INVALID, "nil data; no entry for key \"%s\"", name);
		*ret = *v;
		return 0;
	}
	if (json_is_null(v->json))
		return err_set(x->e, ERR_INVALID, "nil pointer evaluating field %.100s", name);
	if (!json_is_object(v->json))
		return err_set(x->e, ERR_INVALID, "can't evaluate field %.100s in type %s", name,
			template_kind_name(v));
	if (v->type)
		return struct_field(x, v, name, ret);
	*ret = (struct value){ .json = json_object_get(v->json, name) };
	if (!ret->json && (x->t->flags & TEMPLATE_MISSING_ERROR))
		return err_set(x->e, ERR_INVALID, "map has no entry for key \"%.100s\"", name);
	return 0;
}

static int get_chain(
	struct execution *x, const struct operand *o, struct value from, struct value *ret)
{
	for (size_t i = 0; i < o->n_chain; i++) {
		struct value next;

		if (get_field(x, &from, o->chain[i], &next))
			return source_error(x, o);
		from = next;
	}
	*ret = from;
	return 0;
}

/* ---- pipelines ---- */

static int run_pipe(struct execution *x, const struct pipe *p, struct value *ret);

static struct variable *find_var(struct execution *x, const char *name)
{
	for (size_t i = x->n_vars; i > 0; i--)
		if (strcmp(x->vars[i - 1].name, name) == 0)
			return &x->vars[i - 1];
	INVARIANT(!"variable of a parsed template");
	return NULL;
}

static void push_var(struct execution *x, const char *name, struct value v)
{
	x->vars = xreallocarray(x->vars, x->n_vars + 1, sizeof(*x->vars));
	x->vars[x->n_vars++] = (struct variable){ name, v };
}

static int call(struct execution *x, const struct operand *o, const struct value *v, size_t n,
	struct value *ret)
{
	const struct template_func *f = o->func;
	int r;

	if ((int)n < f->min || (f->max >= 0 && (int)n > f->max))
		r = err_set(x->e, ERR_INVALID, "wrong number of args for %s: want %s%d got %zu",
			f->name, f->max < 0 ? "at least " : "", f->min, n);
	else
		r = f->fn(x, v, n, ret);
	return r ? err_wrap(x->e, "error calling %s", f->name) : 0;
}

static int run_operand(struct execution *x, const struct operand *o, struct value *ret)
{
	struct value v = { NULL, NULL };
	int r = 0;

	switch (o->kind) {
	case OPERAND_DOT:
		*ret = x->dot;
		return 0;
	case OPERAND_NIL:
		return template_own(x, json_null(), ret);
	case OPERAND_CONST:
		*ret = (struct value){ .json = o->value };
		return 0;
	case OPERAND_FUNC:
		return call(x, o, NULL, 0, ret);
	case OPERAND_FIELD:
		return get_chain(x, o, x->dot, ret);
	case OPERAND_VAR:
		return get_chain(x, o, find_var(x, o->name)->v, ret);
	case OPERAND_PIPE:
		r = run_pipe(x, o->pipe, &v);
		return r ? r : get_chain(x, o, v, ret);
	}
	return r;
}

/* and, or: no more operands are looked at than needed. */
static int run_lazy(struct execution *x, const struct command *c, const struct value *last,
	bool is_or, struct value *ret)
{
	size_t n = c->n - 1 + (last ? 1 : 0);
	struct value v = { NULL, NULL };

	if (n == 0)
		return err_set(x->e, ERR_INVALID, "wrong number of args for %s: want at least 1",
			c->args[0].func->name);
	for (size_t i = 0; i < n; i++) {
		int r = i + 1 < c->n ? run_operand(x, &c->args[i + 1], &v) : 0;

		if (r)
			return r;
		if (i + 1 >= c->n)
			v = *last;
		if (template_truth(&v) == is_or)
			break;
	}
	*ret = v;
	return 0;
}

static int run_command(
	struct execution *x, const struct command *c, const struct value *last, struct value *ret)
{
	size_t n = c->n - 1 + (last ? 1 : 0);
	struct value *v;
	bool is_or;
	int r = template_steps(x, 1);

	if (r)
		return r;
	if (c->args[0].kind != OPERAND_FUNC)
		return run_operand(x, &c->args[0], ret);
	if (template_func_lazy_or(c->args[0].func, &is_or))
		return run_lazy(x, c, last, is_or, ret);
	v = xcalloc(n + 1, sizeof(*v));
	for (size_t i = 0; !r && i + 1 < c->n; i++)
		r = run_operand(x, &c->args[i + 1], &v[i]);
	if (!r && last)
		v[n - 1] = *last;
	if (!r)
		r = call(x, &c->args[0], v, n, ret);
	free(v);
	return r;
}

static int run_pipe(struct execution *x, const struct pipe *p, struct value *ret)
{
	struct value v = { NULL, NULL }, last;
	int r = 0;

	for (size_t i = 0; !r && i < p->n; i++) {
		last = v;
		r = run_command(x, &p->commands[i], i ? &last : NULL, &v);
	}
	if (r)
		return r;
	*ret = v;
	return 0;
}

/* ---- actions ---- */

static int run_nodes(struct execution *x, const struct nodes *v);

static void bind(struct execution *x, const struct pipe *p, struct value v)
{
	for (size_t i = 0; i < p->n_decl; i++) {
		if (p->assign)
			find_var(x, p->decl[i])->v = v;
		else
			push_var(x, p->decl[i], v);
	}
}

static int run_branch(struct execution *x, const struct node *n)
{
	size_t vars = x->n_vars;
	struct value v, dot = x->dot;
	int r = run_pipe(x, n->pipe, &v);

	if (r)
		return r;
	bind(x, n->pipe, v);
	if (template_truth(&v)) {
		if (n->kind == NODE_WITH)
			x->dot = v;
		r = run_nodes(x, &n->body);
		x->dot = dot;
	} else {
		r = run_nodes(x, &n->other);
	}
	x->n_vars = vars;
	return r;
}

/* One round of a range. */
static int run_round(struct execution *x, const struct node *n, struct value key, struct value el)
{
	const struct pipe *p = n->pipe;
	size_t vars = x->n_vars;
	struct value dot = x->dot, both[2] = { p->n_decl == 2 ? key : el, el };
	int r = template_steps(x, 1);

	if (r)
		return r;
	for (size_t i = 0; i < p->n_decl; i++) {
		if (p->assign)
			find_var(x, p->decl[i])->v = both[i];
		else
			push_var(x, p->decl[i], both[i]);
	}
	x->dot = el;
	r = run_nodes(x, &n->body);
	x->dot = dot;
	x->n_vars = vars;
	x->next_round = false;
	return r;
}

static int range_list(struct execution *x, const struct node *n, const struct value *v)
{
	size_t size = json_array_size(v->json);
	int r = 0;

	for (size_t i = 0; !r && !x->stop_loop && i < size; i++) {
		struct value key;

		r = template_own(x, json_integer((json_int_t)i), &key);
		if (!r)
			r = run_round(x, n, key, template_element(v, i));
	}
	return r;
}

static int range_map(struct execution *x, const struct node *n, const struct value *v)
{
	size_t size;
	const char **keys = template_sorted_keys(v->json, &size);
	int r = 0;

	for (size_t i = 0; !r && !x->stop_loop && i < size; i++) {
		struct value key;

		r = template_own_str(x, keys[i], strlen(keys[i]), &key);
		if (!r)
			r = run_round(x, n, key,
				(struct value){ .json = json_object_get(v->json, keys[i]) });
	}
	free(keys);
	return r;
}

static int range_int(struct execution *x, const struct node *n, json_int_t count)
{
	int r = 0;

	for (json_int_t i = 0; !r && !x->stop_loop && i < count; i++) {
		struct value v;

		r = template_own(x, json_integer(i), &v);
		if (!r)
			r = run_round(x, n, v, v);
	}
	return r;
}

static int run_range(struct execution *x, const struct node *n)
{
	struct value v;
	int r = run_pipe(x, n->pipe, &v);

	if (r)
		return r;
	if (v.json && !json_is_null(v.json) && !json_is_array(v.json) && !json_is_integer(v.json) &&
		(!json_is_object(v.json) || v.type))
		return err_set(
			x->e, ERR_INVALID, "range can't iterate over a %s", template_kind_name(&v));
	if (!template_truth(&v) || (json_is_integer(v.json) && json_integer_value(v.json) < 0))
		return run_nodes(x, &n->other);
	if (json_is_array(v.json))
		r = range_list(x, n, &v);
	else if (json_is_object(v.json))
		r = range_map(x, n, &v);
	else
		r = range_int(x, n, json_integer_value(v.json));
	x->stop_loop = false;
	return r;
}

static int run_node(struct execution *x, const struct node *n)
{
	struct value v;
	int r = template_steps(x, 1);

	if (r)
		return r;
	switch (n->kind) {
	case NODE_TEXT:
		buf_bytes(&x->out, n->text);
		return 0;
	case NODE_ACTION:
		r = run_pipe(x, n->pipe, &v);
		if (r)
			return r;
		bind(x, n->pipe, v);
		return n->pipe->n_decl ? 0 : template_print(x, &x->out, &v);
	case NODE_IF:
	case NODE_WITH:
		return run_branch(x, n);
	case NODE_RANGE:
		return run_range(x, n);
	case NODE_BREAK:
		x->stop_loop = true;
		return 0;
	case NODE_CONTINUE:
		x->next_round = true;
		return 0;
	}
	return r;
}

static int run_nodes(struct execution *x, const struct nodes *v)
{
	int r = 0;

	for (size_t i = 0; !r && !x->stop_loop && !x->next_round && i < v->n; i++)
		r = run_node(x, &v->v[i]);
	return r;
}

int template_execute(const struct template *t, json_t *data, const struct template_type *type,
	struct buf *ret, struct err *e)
{
	struct err local = ERR_INIT;
	struct execution x = { .t = t,
		.out = BUF_INIT_MAX(TEMPLATE_OUTPUT_MAX),
		.made = json_array(),
		.dot = { .json = data, .type = type },
		.e = &local };
	int r;

	push_var(&x, "$", x.dot);
	r = run_nodes(&x, &t->root);
	if (!r && x.out.failed)
		r = err_set(&local, ERR_EXHAUSTED,
			"template's output is too long, at most %d bytes", TEMPLATE_OUTPUT_MAX);
	if (!r && !buf_bytes(ret, buf_view(&x.out)))
		r = err_set(&local, ERR_EXHAUSTED, "template's output is too long");
	buf_deinit(&x.out);
	json_decref(x.made);
	free(x.vars);
	return r ? err_set(e, r, "%s", local.msg) : 0;
}

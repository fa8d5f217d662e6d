/* The functions that text/template has of its own. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "lib/template_internal.h"
#include "lib/text.h"

#define FN(name)                                                                                   \
	static int name(struct execution *x, const struct value *a, size_t n, struct value *ret)

static bool is_nil(const struct value *v)
{
	return !v->json || json_is_null(v->json);
}

/* ---- logic ---- */

FN(fn_lazy) /* and, or: see template_func_lazy_or() */
{
	*ret = a[n - 1];
	return template_steps(x, 1);
}

FN(fn_not)
{
	(void)n;
	return template_own(x, json_boolean(!template_truth(&a[0])), ret);
}

FN(fn_call)
{
	(void)a;
	(void)n;
	(void)ret;
	return err_set(x->e, ERR_INVALID, "there are no functions to call");
}

/* ---- comparison ---- */

enum basic { BASIC_NONE, BASIC_NIL, BASIC_BOOL, BASIC_INT, BASIC_REAL, BASIC_STRING };

static enum basic basic_of(const struct value *v)
{
	switch (v->json ? json_typeof(v->json) : JSON_NULL) {
	case JSON_NULL:
		return BASIC_NIL;
	case JSON_TRUE:
	case JSON_FALSE:
		return BASIC_BOOL;
	case JSON_INTEGER:
		return BASIC_INT;
	case JSON_REAL:
		return BASIC_REAL;
	case JSON_STRING:
		return BASIC_STRING;
	default:
		return BASIC_NONE;
	}
}

static int text_compare(const struct value *a, const struct value *b)
{
	return bytes_compare(bytes_of(json_string_value(a->json), json_string_length(a->json)),
		bytes_of(json_string_value(b->json), json_string_length(b->json)));
}

static int equal(struct execution *x, const struct value *a, const struct value *b, bool *ret)
{
	enum basic ka = basic_of(a), kb = basic_of(b);

	if (ka == BASIC_NONE || kb == BASIC_NONE)
		return err_set(x->e, ERR_INVALID, "non-comparable type %s",
			template_kind_name(ka == BASIC_NONE ? a : b));
	if (ka != kb && ka != BASIC_NIL && kb != BASIC_NIL)
		return err_set(x->e, ERR_INVALID, "incompatible types for comparison");
	*ret = ka == kb && (ka == BASIC_STRING       ? text_compare(a, b) == 0
				   : ka == BASIC_NIL ? true
						     : json_equal(a->json, b->json) == 1);
	return 0;
}

FN(fn_eq)
{
	bool same = false;
	int r = 0;

	for (size_t i = 1; !r && !same && i < n; i++)
		r = equal(x, &a[0], &a[i], &same);
	return r ? r : template_own(x, json_boolean(same), ret);
}

FN(fn_ne)
{
	bool same;
	int r = equal(x, &a[0], &a[1], &same);

	(void)n;
	return r ? r : template_own(x, json_boolean(!same), ret);
}

static int compare(struct execution *x, const struct value *a, int *ret)
{
	enum basic ka = basic_of(&a[0]), kb = basic_of(&a[1]);

	if (ka == BASIC_NONE || ka == BASIC_BOOL || ka == BASIC_NIL)
		return err_set(x->e, ERR_INVALID, "invalid type for comparison");
	if (ka != kb)
		return err_set(x->e, ERR_INVALID, "incompatible types for comparison");
	if (ka == BASIC_STRING) {
		*ret = text_compare(&a[0], &a[1]);
	} else if (ka == BASIC_INT) {
		json_int_t l = json_integer_value(a[0].json), r = json_integer_value(a[1].json);

		*ret = (l > r) - (l < r);
	} else {
		double l = json_real_value(a[0].json), r = json_real_value(a[1].json);

		*ret = (l > r) - (l < r);
	}
	return 0;
}

#define ORDER(fn, test)                                                                            \
	FN(fn)                                                                                     \
	{                                                                                          \
		int c, r = compare(x, a, &c);                                                      \
                                                                                                   \
		(void)n;                                                                           \
		return r ? r : template_own(x, json_boolean(c test 0), ret);                       \
	}
ORDER(fn_lt, <)
ORDER(fn_le, <=)
ORDER(fn_gt, >)
ORDER(fn_ge, >=)

/* ---- parts ---- */

static int index_one(
	struct execution *x, const struct value *v, const struct value *key, struct value *ret)
{
	if (is_nil(v))
		return err_set(x->e, ERR_INVALID, "index of untyped nil");
	if (json_is_object(v->json) && !v->type) {
		if (!json_is_string(key->json))
			return err_set(x->e, ERR_INVALID, "cannot index map with type %s",
				template_kind_name(key));
		*ret = (struct value){ .json = json_object_get(
					       v->json, json_string_value(key->json)) };
		/* The zero value: the maps of Kubernetes hold texts. */
		return ret->json ? 0 : template_own_str(x, "", 0, ret);
	}
	if (json_is_array(v->json) || json_is_string(v->json)) {
		json_int_t i = json_integer_value(key->json);
		size_t size = json_is_array(v->json) ? json_array_size(v->json)
						     : json_string_length(v->json);

		if (!json_is_integer(key->json))
			return err_set(x->e, ERR_INVALID, "cannot index slice/array with type %s",
				template_kind_name(key));
		if (i < 0 || (size_t)i >= size)
			return err_set(x->e, ERR_INVALID, "index out of range: %lld", (long long)i);
		if (json_is_string(v->json))
			return template_own(
				x, json_integer((unsigned char)json_string_value(v->json)[i]), ret);
		*ret = template_element(v, (size_t)i);
		return 0;
	}
	return err_set(x->e, ERR_INVALID, "can't index item of type %s", template_kind_name(v));
}

FN(fn_index)
{
	struct value v = a[0];
	int r = 0;

	for (size_t i = 1; !r && i < n; i++) {
		struct value next;

		r = index_one(x, &v, &a[i], &next);
		v = next;
	}
	if (!r)
		*ret = v;
	return r;
}

FN(fn_slice)
{
	bool text = json_is_string(a[0].json);
	size_t size = text ? json_string_length(a[0].json) : json_array_size(a[0].json);
	json_int_t from = n > 1 ? json_integer_value(a[1].json) : 0;
	json_int_t to = n > 2 ? json_integer_value(a[2].json) : (json_int_t)size;
	json_t *j;

	if (!text && !json_is_array(a[0].json))
		return err_set(x->e, ERR_INVALID, "can't slice item of type %s",
			template_kind_name(&a[0]));
	for (size_t i = 1; i < n; i++)
		if (!json_is_integer(a[i].json))
			return err_set(x->e, ERR_INVALID, "cannot index slice/array with type %s",
				template_kind_name(&a[i]));
	if (from < 0 || to < from || (size_t)to > size)
		return err_set(x->e, ERR_INVALID, "index out of range: %lld",
			(long long)(from < 0 || (size_t)from > size ? from : to));
	if (text)
		return template_own_str(
			x, json_string_value(a[0].json) + from, (size_t)(to - from), ret);
	j = json_array();
	for (json_int_t i = from; i < to; i++)
		json_array_append(j, json_array_get(a[0].json, (size_t)i));
	from = template_own(x, j, ret);
	ret->type = a[0].type;
	return (int)from;
}

FN(fn_len)
{
	size_t len;

	(void)n;
	if (json_is_string(a[0].json))
		len = json_string_length(a[0].json);
	else if (json_is_array(a[0].json))
		len = json_array_size(a[0].json);
	else if (json_is_object(a[0].json) && !a[0].type)
		len = json_object_size(a[0].json);
	else
		return err_set(x->e, ERR_INVALID, "len of type %s", template_kind_name(&a[0]));
	return template_own(x, json_integer((json_int_t)len), ret);
}

/* ---- text ---- */

static int print_all(
	struct execution *x, const struct value *a, size_t n, bool line, struct value *ret)
{
	struct buf b = BUF_INIT_MAX(TEMPLATE_VALUES_MAX);
	int r = 0;

	for (size_t i = 0; !r && i < n; i++) {
		/* Print puts spaces between operands when neither is a string; Println always. */
		if (i && (line || (!json_is_string(a[i].json) && !json_is_string(a[i - 1].json))))
			buf_byte(&b, ' ');
		r = template_print(x, &b, &a[i]);
	}
	if (line)
		buf_byte(&b, '\n');
	if (r)
		buf_deinit(&b);
	return r ? r : template_own_buf(x, &b, ret);
}

FN(fn_print)
{
	return print_all(x, a, n, false, ret);
}

FN(fn_println)
{
	return print_all(x, a, n, true, ret);
}

/* One verb of Printf: %[flags][width][.precision]verb. */
struct verb {
	bool minus, zero, plus, sharp, space;
	int width, precision; /* -1: none */
	char letter;
};

enum { FORMAT_WIDTH_MAX = 1000 };

static const char *read_digits(const char *s, int *ret)
{
	int v = 0;

	while (isdigit((unsigned char)*s) && v <= FORMAT_WIDTH_MAX)
		v = v * 10 + (*s++ - '0');
	*ret = v;
	return s;
}

static int read_verb(struct execution *x, const char **s, struct verb *v)
{
	const char *p = *s;

	*v = (struct verb){ .width = 0, .precision = -1 };
	for (;; p++) {
		if (*p == '-')
			v->minus = true;
		else if (*p == '0')
			v->zero = true;
		else if (*p == '+')
			v->plus = true;
		else if (*p == '#')
			v->sharp = true;
		else if (*p == ' ')
			v->space = true;
		else
			break;
	}
	p = read_digits(p, &v->width);
	if (*p == '.')
		p = read_digits(p + 1, &v->precision);
	if (v->width > FORMAT_WIDTH_MAX || v->precision > FORMAT_WIDTH_MAX)
		return err_set(x->e, ERR_INVALID, "printf: a width is too large");
	if (!*p || !strchr("sdvqxXtcfeEgGob%U", *p) || *p == 'U')
		return err_set(x->e, ERR_INVALID, "printf: verb %%%.1s is not supported", p);
	v->letter = *p;
	*s = p + 1;
	return 0;
}

static void put_hex(struct buf *b, const char *s, size_t n, bool upper)
{
	for (size_t i = 0; i < n; i++)
		buf_printf(b, upper ? "%02X" : "%02x", (unsigned)(unsigned char)s[i]);
}

static void put_int(struct buf *b, const struct verb *v, long long i)
{
	unsigned long long u = i < 0 ? 0ULL - (unsigned long long)i : (unsigned long long)i;
	char digits[72];
	size_t n = sizeof(digits) - 1;
	unsigned base = v->letter == 'x' || v->letter == 'X' ? 16
			: v->letter == 'o'                   ? 8
			: v->letter == 'b'                   ? 2
							     : 10;
	int len;

	digits[n] = 0;
	do
		digits[--n] =
			(v->letter == 'X' ? "0123456789ABCDEF" : "0123456789abcdef")[u % base];
	while (u /= base);
	if (i < 0)
		buf_byte(b, '-');
	else if (v->plus)
		buf_byte(b, '+');
	else if (v->space)
		buf_byte(b, ' ');
	if (v->sharp && base == 16)
		buf_str(b, v->letter == 'X' ? "0X" : "0x");
	len = (int)(sizeof(digits) - 1 - n);
	/* Zeros come between sign and digits. */
	for (int z = v->precision >= 0      ? v->precision
		     : v->zero && !v->minus ? v->width - (i < 0 || v->plus || v->space ? 1 : 0)
					    : 0;
		z > len; z--)
		buf_byte(b, '0');
	buf_str(b, digits + n);
}

static void put_real(struct buf *b, const struct verb *v, double d)
{
	char format[16], text[400];
	int precision = v->precision < 0 ? 6 : v->precision > 50 ? 50 : v->precision;

	snprintf(format, sizeof(format), "%%%s.*%c", v->plus ? "+" : "", v->letter);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
	snprintf(text, sizeof(text), format, precision, d);
#pragma GCC diagnostic pop
	buf_str(b, text);
}

static void put_text(struct buf *b, const struct verb *v, const json_t *j)
{
	const char *s = json_string_value(j);
	size_t len = json_string_length(j);

	if (v->precision >= 0) { /* in runes */
		size_t at = 0;

		for (int runes = 0; at < len; at++)
			if (((unsigned char)s[at] & 0xc0) != 0x80 && runes++ == v->precision)
				break;
		len = at;
	}
	if (v->letter == 'x' || v->letter == 'X') {
		put_hex(b, s, len, v->letter == 'X');
	} else if (v->letter == 'q') {
		AUTO(free) char *cut = xstrndup(s, len);
		AUTO(free) char *quoted = text_quote(cut);

		buf_str(b, quoted);
	} else {
		buf_append(b, s, len);
	}
}

/* Go's %!d(string=x) for a verb that does not fit is an error here: nobody wants it in a name. */
static int put_value(
	struct execution *x, struct buf *b, const struct verb *v, const struct value *a)
{
	enum basic kind = basic_of(a);
	char l = v->letter;

	if (l == 'v' && kind != BASIC_INT)
		return template_print(x, b, a);
	if (kind == BASIC_STRING && strchr("sqxX", l))
		put_text(b, v, a->json);
	else if (kind == BASIC_INT && strchr("dxXobv", l))
		put_int(b, v, json_integer_value(a->json));
	else if (kind == BASIC_INT && l == 'c' && json_integer_value(a->json) < 128 &&
		 json_integer_value(a->json) > 0)
		buf_byte(b, (uint8_t)json_integer_value(a->json));
	else if (kind == BASIC_BOOL && l == 't')
		return template_print(x, b, a);
	else if (kind == BASIC_REAL && strchr("feEgG", l))
		put_real(b, v, json_real_value(a->json));
	else if (l == 's' && kind == BASIC_NONE)
		return template_print(x, b, a);
	else
		return err_set(x->e, ERR_INVALID, "printf: verb %%%c does not fit a %s", l,
			template_kind_name(a));
	return 0;
}

static void pad(struct buf *to, const struct verb *v, const struct buf *what)
{
	int runes = 0, missing;
	bool zero = v->zero && !v->minus && strchr("sqv", v->letter);

	for (size_t i = 0; i < what->len; i++)
		runes += (what->p[i] & 0xc0) != 0x80;
	missing = v->width - runes;
	for (int i = 0; !v->minus && i < missing; i++)
		buf_byte(to, zero ? '0' : ' ');
	buf_bytes(to, buf_view(what));
	for (int i = 0; v->minus && i < missing; i++)
		buf_byte(to, ' ');
}

static int format(
	struct execution *x, const char *s, const struct value *a, size_t n, struct buf *ret)
{
	size_t used = 0;

	while (*s) {
		AUTO_BUF struct buf one = BUF_INIT_MAX(TEMPLATE_VALUES_MAX);
		struct verb v;
		int r;

		if (*s != '%') {
			buf_byte(ret, (uint8_t)*s++);
			continue;
		}
		s++;
		r = read_verb(x, &s, &v);
		if (r)
			return r;
		if (v.letter == '%') {
			buf_byte(ret, '%');
			continue;
		}
		if (used == n)
			return err_set(
				x->e, ERR_INVALID, "printf: missing value for %%%c", v.letter);
		r = template_steps(x, 1);
		if (!r)
			r = put_value(x, &one, &v, &a[used++]);
		if (r)
			return r;
		pad(ret, &v, &one);
	}
	if (used < n)
		return err_set(x->e, ERR_INVALID, "printf: more values than verbs");
	return 0;
}

FN(fn_printf)
{
	struct buf b = BUF_INIT_MAX(TEMPLATE_VALUES_MAX);
	int r;

	if (!json_is_string(a[0].json))
		return err_set(x->e, ERR_INVALID, "wrong type for value; expected string; got %s",
			template_kind_name(&a[0]));
	r = format(x, json_string_value(a[0].json), a + 1, n - 1, &b);
	if (r)
		buf_deinit(&b);
	return r ? r : template_own_buf(x, &b, ret);
}

/* ---- escapers: of all arguments printed ---- */

static int printed(struct execution *x, const struct value *a, size_t n, struct buf *ret)
{
	struct value v;
	int r;

	if (n == 1 && json_is_string(a[0].json))
		v = a[0];
	else if ((r = print_all(x, a, n, false, &v)))
		return r;
	buf_append(ret, json_string_value(v.json), json_string_length(v.json));
	return 0;
}

FN(fn_html)
{
	static const struct {
		char c;
		const char *as;
	} rows[] = { { '"', "&#34;" }, { '\'', "&#39;" }, { '&', "&amp;" }, { '<', "&lt;" },
		{ '>', "&gt;" } };
	AUTO_BUF struct buf in = BUF_INIT_MAX(TEMPLATE_VALUES_MAX);
	struct buf out = BUF_INIT_MAX(TEMPLATE_VALUES_MAX);
	int r = printed(x, a, n, &in);

	for (size_t i = 0; i < in.len; i++) {
		const char *as = NULL;

		for (size_t k = 0; k < ARRAY_LEN(rows); k++)
			if (rows[k].c == (char)in.p[i])
				as = rows[k].as;
		if (as)
			buf_str(&out, as);
		else
			buf_byte(&out, in.p[i]);
	}
	if (r)
		buf_deinit(&out);
	return r ? r : template_own_buf(x, &out, ret);
}

FN(fn_js)
{
	static const char special[] = "\\'\"<>&=";
	AUTO_BUF struct buf in = BUF_INIT_MAX(TEMPLATE_VALUES_MAX);
	struct buf out = BUF_INIT_MAX(TEMPLATE_VALUES_MAX);
	int r = printed(x, a, n, &in);

	for (size_t i = 0; i < in.len; i++) {
		const char *at = in.p[i] ? strchr(special, in.p[i]) : NULL;

		if (at && at < special + 3)
			buf_printf(&out, "\\%c", in.p[i]);
		else if (at || in.p[i] < ' ')
			buf_printf(&out, "\\u%04X", (unsigned)in.p[i]);
		else
			buf_byte(&out, in.p[i]);
	}
	if (r)
		buf_deinit(&out);
	return r ? r : template_own_buf(x, &out, ret);
}

FN(fn_urlquery)
{
	AUTO_BUF struct buf in = BUF_INIT_MAX(TEMPLATE_VALUES_MAX);
	struct buf out = BUF_INIT_MAX(TEMPLATE_VALUES_MAX);
	int r = printed(x, a, n, &in);

	for (size_t i = 0; i < in.len; i++) {
		if (isalnum(in.p[i]) || (in.p[i] && strchr("-_.~", in.p[i])))
			buf_byte(&out, in.p[i]);
		else if (in.p[i] == ' ')
			buf_byte(&out, '+');
		else
			buf_printf(&out, "%%%02X", (unsigned)in.p[i]);
	}
	if (r)
		buf_deinit(&out);
	return r ? r : template_own_buf(x, &out, ret);
}

static const struct template_func funcs[] = {
	{ "and", fn_lazy, 1, -1 },
	{ "call", fn_call, 1, -1 },
	{ "eq", fn_eq, 2, -1 },
	{ "ge", fn_ge, 2, 2 },
	{ "gt", fn_gt, 2, 2 },
	{ "html", fn_html, 0, -1 },
	{ "index", fn_index, 1, -1 },
	{ "js", fn_js, 0, -1 },
	{ "le", fn_le, 2, 2 },
	{ "len", fn_len, 1, 1 },
	{ "lt", fn_lt, 2, 2 },
	{ "ne", fn_ne, 2, 2 },
	{ "not", fn_not, 1, 1 },
	{ "or", fn_lazy, 1, -1 },
	{ "print", fn_print, 0, -1 },
	{ "printf", fn_printf, 1, -1 },
	{ "println", fn_println, 0, -1 },
	{ "slice", fn_slice, 1, 3 },
	{ "urlquery", fn_urlquery, 0, -1 },
};

bool template_func_lazy_or(const struct template_func *f, bool *ret_or)
{
	*ret_or = f->name[0] == 'o';
	return f->fn == fn_lazy;
}

const struct template_func *template_func_find(const char *name)
{
	for (size_t i = 0; i < ARRAY_LEN(funcs); i++)
		if (strcmp(funcs[i].name, name) == 0)
			return &funcs[i];
	return template_sprig_find(name);
}

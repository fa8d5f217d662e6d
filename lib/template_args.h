/* What the functions on texts and those on lists share: checks of arguments, results. */
#ifndef ASSAY_LIB_TEMPLATE_ARGS_H
#define ASSAY_LIB_TEMPLATE_ARGS_H

#include <string.h>

#include "lib/template_internal.h"

#define FN(name)                                                                                   \
	static int name(struct execution *x, const struct value *a, size_t n, struct value *ret)
#define OUT_INIT BUF_INIT_MAX(TEMPLATE_VALUES_MAX)

static inline int want(struct execution *x, const char *type, const struct value *got)
{
	return err_set(x->e, ERR_INVALID, "wrong type for value; expected %s; got %s", type,
		template_kind_name(got));
}

static inline int strings(struct execution *x, const struct value *a, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (!json_is_string(a[i].json))
			return want(x, "string", &a[i]);
	return 0;
}

static inline const char *str(const struct value *v)
{
	return json_string_value(v->json);
}

static inline struct bytes text(const struct value *v)
{
	return bytes_of(json_string_value(v->json), json_string_length(v->json));
}

static inline int give_bytes(struct execution *x, struct bytes v, struct value *ret)
{
	return template_own_str(x, (const char *)v.p, v.n, ret);
}

static inline int give_bool(struct execution *x, bool v, struct value *ret)
{
	return template_own(x, json_boolean(v), ret);
}

static inline int give_or(struct execution *x, int r, struct buf *b, struct value *ret)
{
	if (!r)
		return template_own_buf(x, b, ret);
	buf_deinit(b);
	return r;
}

static inline bool is_nil(const struct value *v)
{
	return !v->json || json_is_null(v->json);
}

static inline bool starts(struct bytes v, struct bytes with)
{
	return v.n >= with.n && (!with.n || memcmp(v.p, with.p, with.n) == 0);
}

static inline bool ends(struct bytes v, struct bytes with)
{
	return v.n >= with.n && (!with.n || memcmp(v.p + v.n - with.n, with.p, with.n) == 0);
}

#endif

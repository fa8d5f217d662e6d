#include "lib/entry.h"

#include <stdlib.h>
#include <string.h>

#include "lib/mem.h"

void selectors_deinit(struct selectors *s)
{
	for (size_t i = 0; i < s->n; i++) {
		free(s->v[i].type);
		free(s->v[i].value);
	}
	free(s->v);
	*s = (struct selectors){ .n = 0 };
}

/* Arrays grow by doubling: their capacity is the next power of two, so it need not be kept. */
static void *grow(void *v, size_t n, size_t size)
{
	return n & (n - 1) ? v : xreallocarray(v, n ? n * 2 : 1, size);
}

static void add_owned(struct selectors *s, char *type, char *value)
{
	s->v = grow(s->v, s->n, sizeof(*s->v));
	s->v[s->n++] = (struct selector){ .type = type, .value = value };
}

void selectors_add(struct selectors *s, const char *type, const char *value)
{
	add_owned(s, xstrdup(type), xstrdup(value));
}

int selectors_add_text(struct selectors *s, const char *text, struct err *e)
{
	const char *colon = strchr(text, ':');

	if (!colon || colon == text || !colon[1])
		return err_set(e, ERR_INVALID,
			"selector \"%.200s\" must be formatted as type:value", text);
	add_owned(s, xstrndup(text, (size_t)(colon - text)), xstrdup(colon + 1));
	return 0;
}

int selector_compare(const struct selector *a, const struct selector *b)
{
	int c = strcmp(a->type, b->type);

	return c ? c : strcmp(a->value, b->value);
}

static int compare_void(const void *a, const void *b)
{
	return selector_compare(a, b);
}

void selectors_normalize(struct selectors *s)
{
	size_t kept = 0;

	if (s->n < 2)
		return;
	qsort(s->v, s->n, sizeof(*s->v), compare_void);
	for (size_t i = 1; i < s->n; i++) {
		if (selector_compare(&s->v[kept], &s->v[i]) != 0) {
			s->v[++kept] = s->v[i];
			continue;
		}
		free(s->v[i].type);
		free(s->v[i].value);
	}
	s->n = kept + 1;
}

struct selectors selectors_dup(const struct selectors *s)
{
	struct selectors d = { .n = 0 };

	for (size_t i = 0; i < s->n; i++)
		selectors_add(&d, s->v[i].type, s->v[i].value);
	return d;
}

bool selectors_equal(const struct selectors *a, const struct selectors *b)
{
	if (a->n != b->n)
		return false;
	for (size_t i = 0; i < a->n; i++)
		if (selector_compare(&a->v[i], &b->v[i]) != 0)
			return false;
	return true;
}

bool selectors_subset(const struct selectors *a, const struct selectors *b)
{
	size_t j = 0;

	if (a->n > b->n)
		return false;
	for (size_t i = 0; i < a->n; i++, j++) {
		int c = 1;

		while (j < b->n && (c = selector_compare(&a->v[i], &b->v[j])) > 0)
			j++;
		if (j == b->n || c != 0)
			return false;
	}
	return true;
}

bool selectors_intersect(const struct selectors *a, const struct selectors *b)
{
	size_t i = 0;
	size_t j = 0;

	while (i < a->n && j < b->n) {
		int c = selector_compare(&a->v[i], &b->v[j]);

		if (c == 0)
			return true;
		if (c < 0)
			i++;
		else
			j++;
	}
	return false;
}

void strings_add(struct strings *s, const char *v)
{
	s->v = grow(s->v, s->n, sizeof(*s->v));
	s->v[s->n++] = xstrdup(v);
}

void strings_deinit(struct strings *s)
{
	for (size_t i = 0; i < s->n; i++)
		free(s->v[i]);
	free(s->v);
	*s = (struct strings){ .n = 0 };
}

struct strings strings_dup(const struct strings *s)
{
	struct strings d = { .n = 0 };

	for (size_t i = 0; i < s->n; i++)
		strings_add(&d, s->v[i]);
	return d;
}

bool strings_has(const struct strings *s, const char *v)
{
	for (size_t i = 0; i < s->n; i++)
		if (strcmp(s->v[i], v) == 0)
			return true;
	return false;
}

void entry_deinit(struct entry *e)
{
	free(e->id);
	free(e->spiffe_id);
	free(e->parent_id);
	free(e->hint);
	selectors_deinit(&e->selectors);
	strings_deinit(&e->federates_with);
	strings_deinit(&e->dns_names);
	*e = (struct entry){ .id = NULL };
}

static char *dup_or_null(const char *s)
{
	return s ? xstrdup(s) : NULL;
}

struct entry entry_dup(const struct entry *e)
{
	struct entry d = *e;

	d.id = dup_or_null(e->id);
	d.spiffe_id = dup_or_null(e->spiffe_id);
	d.parent_id = dup_or_null(e->parent_id);
	d.hint = dup_or_null(e->hint);
	d.selectors = selectors_dup(&e->selectors);
	d.federates_with = strings_dup(&e->federates_with);
	d.dns_names = strings_dup(&e->dns_names);
	return d;
}

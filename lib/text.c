#include "lib/text.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/clock.h"

enum { NEAREST_MAX = 64 }; /* longer words are not compared */

static size_t min3(size_t a, size_t b, size_t c)
{
	size_t m = a < b ? a : b;

	return m < c ? m : c;
}

/* Edits (insert, delete, replace, swap of neighbours) between a and b. */
static size_t distance(const char *a, const char *b)
{
	size_t n = strlen(a), m = strlen(b);
	size_t row[3][NEAREST_MAX + 1];

	if (n > NEAREST_MAX || m > NEAREST_MAX)
		return SIZE_MAX;
	for (size_t j = 0; j <= m; j++)
		row[0][j] = j;
	for (size_t i = 1; i <= n; i++) {
		size_t *cur = row[i % 3], *prev = row[(i + 2) % 3], *before = row[(i + 1) % 3];

		cur[0] = i;
		for (size_t j = 1; j <= m; j++) {
			int x = tolower((unsigned char)a[i - 1]);
			int y = tolower((unsigned char)b[j - 1]);

			cur[j] = min3(prev[j] + 1, cur[j - 1] + 1, prev[j - 1] + (x != y));
			if (i > 1 && j > 1 && x == tolower((unsigned char)b[j - 2]) &&
				y == tolower((unsigned char)a[i - 2]) && before[j - 2] + 1 < cur[j])
				cur[j] = before[j - 2] + 1;
		}
	}
	return row[n % 3][m];
}

const char *text_nearest(const char *typed, const char *const *names, size_t n)
{
	const char *best = NULL;
	size_t best_d = SIZE_MAX;

	for (size_t i = 0; i < n; i++) {
		size_t d = distance(typed, names[i]);
		size_t len = strlen(names[i]);

		if (d < best_d && d <= (len < 3 ? 1 : (len + 2) / 3)) {
			best = names[i];
			best_d = d;
		}
	}
	return best;
}

const char *text_plural(size_t n, const char *one, const char *many)
{
	return n == 1 ? one : many;
}

char *text_quote(const char *s)
{
	struct buf b = BUF_INIT;

	buf_byte(&b, '"');
	for (; *s; s++) {
		unsigned char c = (unsigned char)*s;

		if (c == '"' || c == '\\')
			buf_printf(&b, "\\%c", c);
		else if (c == '\n')
			buf_str(&b, "\\n");
		else if (c == '\t')
			buf_str(&b, "\\t");
		else if (c == '\r')
			buf_str(&b, "\\r");
		else if (c < 0x20 || c == 0x7f)
			buf_printf(&b, "\\x%02x", c);
		else
			buf_byte(&b, c);
	}
	buf_byte(&b, '"');
	return buf_take_str(&b);
}

/* ---- durations ---- */

struct unit {
	const char *name;
	int64_t ns;
};
static const struct unit units[] = {
	{ "ns", 1 },
	{ "us", 1000 },
	{ "\xc2\xb5s", 1000 },
	{ "\xce\xbcs", 1000 },
	{ "ms", NS_PER_MS },
	{ "s", NS_PER_SEC },
	{ "m", 60 * NS_PER_SEC },
	{ "h", 3600 * NS_PER_SEC },
};

static const struct unit *find_unit(const char *s, size_t n)
{
	for (size_t i = 0; i < ARRAY_LEN(units); i++)
		if (strlen(units[i].name) == n && memcmp(units[i].name, s, n) == 0)
			return &units[i];
	return NULL;
}

/* Reads digits into *v; false when they do not fit. */
static bool read_digits(const char **s, int64_t *v)
{
	for (; isdigit((unsigned char)**s); (*s)++)
		if (__builtin_mul_overflow(*v, 10, v) || __builtin_add_overflow(*v, **s - '0', v))
			return false;
	return true;
}

/* One "1.5h" of a duration. Digits of the fraction beyond what a nanosecond can show are dropped.
 */
static int read_part(const char **s, int64_t *ret, const char *whole, struct err *e)
{
	const char *start = *s, *name;
	int64_t v = 0, frac = 0, scale = 1;
	const struct unit *u;
	bool digits;

	if (!read_digits(s, &v))
		return err_set(e, ERR_INVALID, "invalid duration \"%s\"", whole);
	digits = *s > start;
	if (**s == '.') {
		(*s)++;
		for (; isdigit((unsigned char)**s); (*s)++) {
			digits = true;
			if (scale < INT64_C(1000000000000)) {
				frac = frac * 10 + (**s - '0');
				scale *= 10;
			}
		}
	}
	if (!digits)
		return err_set(e, ERR_INVALID, "invalid duration \"%s\"", whole);
	name = *s;
	while (**s && **s != '.' && !isdigit((unsigned char)**s))
		(*s)++;
	if (*s == name)
		return err_set(e, ERR_INVALID, "missing unit in duration \"%s\"", whole);
	u = find_unit(name, (size_t)(*s - name));
	if (!u)
		return err_set(e, ERR_INVALID, "unknown unit \"%.*s\" in duration \"%s\"",
			(int)(*s - name), name, whole);
	if (__builtin_mul_overflow(v, u->ns, &v) ||
		__builtin_add_overflow(v, (int64_t)((__int128)frac * u->ns / scale), &v))
		return err_set(e, ERR_INVALID, "invalid duration \"%s\"", whole);
	*ret = v;
	return 0;
}

int duration_parse(const char *s, int64_t *ret_ns, struct err *e)
{
	const char *whole = s;
	int64_t sum = 0, part = 0;
	bool negative = false;
	int r;

	if (*s == '-' || *s == '+')
		negative = *s++ == '-';
	if (strcmp(s, "0") == 0) {
		*ret_ns = 0;
		return 0;
	}
	if (!*s)
		return err_set(e, ERR_INVALID, "invalid duration \"%s\"", whole);
	while (*s) {
		r = read_part(&s, &part, whole, e);
		if (r)
			return r;
		if (__builtin_add_overflow(sum, part, &sum))
			return err_set(e, ERR_INVALID, "invalid duration \"%s\"", whole);
	}
	*ret_ns = negative ? -sum : sum;
	return 0;
}

/* v / unit with up to `places` decimals and no trailing zeros. */
static void print_fraction(struct buf *b, uint64_t v, uint64_t unit, int places)
{
	char text[32];
	size_t n;

	buf_printf(b, "%" PRIu64, v / unit);
	if (v % unit == 0)
		return;
	n = (size_t)snprintf(text, sizeof(text), "%0*" PRIu64, places, v % unit);
	while (n && text[n - 1] == '0')
		text[--n] = 0;
	buf_printf(b, ".%s", text);
}

char *duration_format(int64_t ns)
{
	struct buf b = BUF_INIT;
	uint64_t v = ns < 0 ? -(uint64_t)ns : (uint64_t)ns;
	uint64_t s = NS_PER_SEC;

	if (ns < 0)
		buf_byte(&b, '-');
	if (v == 0) {
		buf_str(&b, "0s");
	} else if (v < 1000) {
		buf_printf(&b, "%" PRIu64 "ns", v);
	} else if (v < 1000000) {
		print_fraction(&b, v, 1000, 3);
		buf_str(&b, "\xc2\xb5s");
	} else if (v < s) {
		print_fraction(&b, v, 1000000, 6);
		buf_str(&b, "ms");
	} else {
		if (v >= 3600 * s)
			buf_printf(&b, "%" PRIu64 "h", v / (3600 * s));
		if (v >= 60 * s)
			buf_printf(&b, "%" PRIu64 "m", v / (60 * s) % 60);
		print_fraction(&b, v % (60 * s), s, 9);
		buf_byte(&b, 's');
	}
	return buf_take_str(&b);
}

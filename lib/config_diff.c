#include <string.h>

#include "lib/config_internal.h"
#include "lib/map.h"

/* What differs between two printouts of config_print(). */

static char *next_line(char **rest, char **ret_value)
{
	char *line, *mid;

	while ((line = strsep(rest, "\n")) != NULL) {
		mid = strstr(line, " = ");
		if (!mid)
			continue;
		*mid = '\0';
		*ret_value = mid + 3;
		return line;
	}
	return NULL;
}

void config_changes(const char *was, const char *is,
	void (*fn)(void *arg, const char *key, const char *was, const char *is), void *arg)
{
	AUTO(free) char *old = xstrdup(was);
	AUTO(free) char *new = xstrdup(is);
	struct map *values = map_new();
	char *rest = old, *key, *value;
	struct bytes k;
	void *v;

	while ((key = next_line(&rest, &value)) != NULL)
		map_put_str(values, key, value);
	rest = new;
	while ((key = next_line(&rest, &value)) != NULL) {
		const char *before = map_del_str(values, key);

		if (!before || strcmp(before, value) != 0)
			fn(arg, key, before, value);
	}
	for (size_t i = 0; map_next(values, &i, &k, &v);) {
		AUTO(free) char *gone = xstrndup((const char *)k.p, k.n);

		fn(arg, gone, v, NULL);
	}
	map_free(values);
}

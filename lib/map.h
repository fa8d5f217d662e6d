/*
 * Hash map from byte strings to pointers. Open addressing; keys are copied; values are borrowed.
 * Keyed by a random seed (SipHash-like), so that hostile keys do not collide on purpose.
 */
#ifndef ASSAY_LIB_MAP_H
#define ASSAY_LIB_MAP_H

#include <stdbool.h>
#include <stddef.h>

#include "lib/buf.h"

struct map;

struct map *map_new(void);
void map_free(struct map *m); /* NULL is fine; the values stay the caller's */
size_t map_len(const struct map *m);

void *map_get(const struct map *m, struct bytes key); /* NULL when absent */
void *map_get_str(const struct map *m, const char *key);

/* Puts value (not NULL) and returns the one it replaced, or NULL. */
void *map_put(struct map *m, struct bytes key, void *value);
void *map_put_str(struct map *m, const char *key, void *value);

/* Takes the value out and returns it, or NULL. Allowed for the current key while iterating. */
void *map_del(struct map *m, struct bytes key);
void *map_del_str(struct map *m, const char *key);

/* for (size_t i = 0; map_next(m, &i, &key, &value);) — the key view is valid until the map changes.
 */
bool map_next(const struct map *m, size_t *cursor, struct bytes *ret_key, void **ret_value);

#endif

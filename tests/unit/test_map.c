#include "lib/map.h"

#include "tests/test.h"

static void test_put_get_del(void)
{
	struct map *m = map_new();
	int a, b;

	CHECK(map_get_str(m, "a") == NULL);
	CHECK(map_del_str(m, "a") == NULL);
	CHECK(map_put_str(m, "a", &a) == NULL);
	CHECK(map_put_str(m, "a", &b) == &a);
	CHECK(map_get_str(m, "a") == &b);
	CHECK(map_put(m, bytes_of("a\0b", 3), &a) == NULL);
	CHECK(map_put(m, bytes_of(NULL, 0), &a) == NULL);
	CHECK(map_get(m, bytes_of("a\0b", 3)) == &a);
	CHECK(map_get_str(m, "") == &a);
	CHECK_INT(map_len(m), 3);
	CHECK(map_del_str(m, "a") == &b);
	CHECK(map_get_str(m, "a") == NULL);
	CHECK_INT(map_len(m), 2);
	map_free(m);
	map_free(NULL);
}

/* Against an array, with many deletions, so that marks of deleted keys pile up. */
static void test_random(void)
{
	enum { KEYS = 500, STEPS = 200000 };
	static char have[KEYS];
	struct map *m = map_new();
	size_t n = 0;
	unsigned seed = 1;

	for (int i = 0; i < STEPS; i++) {
		int k = rand_r(&seed) % KEYS;
		char key[16];

		snprintf(key, sizeof(key), "key-%d", k);
		if (rand_r(&seed) % 2) {
			CHECK(map_put_str(m, key, &have[k]) == (have[k] ? &have[k] : NULL));
			n += !have[k];
			have[k] = 1;
		} else {
			CHECK(map_del_str(m, key) == (have[k] ? &have[k] : NULL));
			n -= (size_t)have[k];
			have[k] = 0;
		}
		CHECK_INT(map_len(m), n);
	}
	map_free(m);
}

static void test_each_with_deletion(void)
{
	enum { KEYS = 1000 };
	static int v[KEYS];
	struct map *m = map_new();
	struct bytes key;
	void *value;
	int seen = 0;

	for (int i = 0; i < KEYS; i++)
		map_put(m, bytes_of(&i, sizeof(i)), &v[i]);
	for (size_t i = 0; map_next(m, &i, &key, &value);) {
		*(int *)value += 1;
		seen++;
		CHECK(map_del(m, key) == value);
	}
	CHECK_INT(seen, KEYS);
	CHECK_INT(map_len(m), 0);
	for (int i = 0; i < KEYS; i++)
		CHECK_INT(v[i], 1);
	map_free(m);
}

TEST_MAIN(TEST(test_put_get_del), TEST(test_random), TEST(test_each_with_deletion))

/* Who has seen which version of the bundle. */
#include "server/witness.h"

#include <string.h>

#include "tests/test.h"

#define SEC(n) ((struct mono){ 1000 * NS_PER_SEC + (int64_t)((n) * (double)NS_PER_SEC) })

static struct witness *w;
static int told;

static void on_change(void *arg)
{
	(void)arg;
	told++;
}

static void begin(void)
{
	w = witness_new();
	told = 0;
	witness_on_change(w, on_change, NULL);
}

static size_t missing(uint64_t sequence, struct mono now)
{
	struct strings names = { .n = 0 };
	size_t n = witness_missing(w, sequence, now, &names, 1);

	CHECK_INT(names.n, n ? 1 : 0);
	strings_deinit(&names);
	return n;
}

static void test_stream(void)
{
	begin();
	CHECK_INT(missing(5, SEC(0)), 0);
	witness_opened(w, "a", 4, SEC(0));
	CHECK_INT(told, 1);
	CHECK_INT(missing(4, SEC(0)), 0);
	CHECK_INT(missing(5, SEC(0)), 1);
	CHECK_INT(missing(5, SEC(1000)), 1);
	witness_acked(w, "a", 5, SEC(1));
	CHECK_INT(told, 2);
	CHECK_INT(missing(5, SEC(1)), 0);
	witness_acked(w, "a", 5, SEC(2));
	CHECK_INT(told, 2);
	witness_free(w);
}

/* While it renews its own SVID an agent has no stream for a moment. */
static void test_reconnecting(void)
{
	begin();
	witness_opened(w, "a", 4, SEC(0));
	witness_closed(w, "a", SEC(1));
	CHECK_INT(missing(5, SEC(2)), 1);
	CHECK_INT(missing(5, SEC(30)), 1);
	CHECK_INT(missing(5, SEC(32)), 0);
	witness_opened(w, "a", 4, SEC(33));
	CHECK_INT(missing(5, SEC(33)), 1);
	/* The new stream before the end of the old one. */
	witness_opened(w, "a", 5, SEC(34));
	witness_closed(w, "a", SEC(35));
	CHECK_INT(missing(5, SEC(100)), 0);
	CHECK_INT(missing(6, SEC(100)), 1);
	witness_free(w);
}

static void test_expected(void)
{
	begin();
	witness_expect(w, "a", SEC(0));
	witness_expect(w, "b", SEC(0));
	CHECK_INT(missing(5, SEC(1)), 2);
	witness_opened(w, "a", 5, SEC(2));
	witness_polled(w, "b", 5, SEC(3));
	CHECK_INT(missing(5, SEC(4)), 0);
	witness_expect(w, "c", SEC(0));
	CHECK_INT(missing(5, SEC(29)), 1);
	CHECK_INT(missing(5, SEC(31)), 0);
	witness_free(w);
}

static void test_polling(void)
{
	begin();
	witness_polled(w, "a", 4, SEC(0));
	CHECK_INT(missing(5, SEC(1)), 1);
	witness_polled(w, "a", 5, SEC(5));
	CHECK_INT(missing(5, SEC(5.5)), 1);
	CHECK_INT(missing(5, SEC(6)), 0);
	witness_polled(w, "a", 5, SEC(10));
	CHECK_INT(missing(5, SEC(10)), 0);
	CHECK_INT(missing(6, SEC(24)), 1);
	CHECK_INT(missing(6, SEC(26)), 0);
	witness_free(w);
}

static void test_gone(void)
{
	begin();
	witness_opened(w, "a", 1, SEC(0));
	witness_opened(w, "b", 1, SEC(0));
	CHECK_INT(missing(2, SEC(0)), 2);
	witness_gone(w, "a");
	CHECK_INT(missing(2, SEC(0)), 1);
	witness_gone(w, "a");
	CHECK_INT(told, 3);
	witness_closed(w, "a", SEC(1));
	CHECK_INT(missing(2, SEC(1)), 1);
	witness_free(w);
}

TEST_MAIN(TEST(test_stream), TEST(test_reconnecting), TEST(test_expected), TEST(test_polling),
	TEST(test_gone))

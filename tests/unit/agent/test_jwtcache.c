#include "agent/jwtcache.h"
#include "tests/test.h"

static int fetches;
static void *tickets[16];

static void fetch(void *arg, const char *entry_id, const struct strings *audience, void *ticket)
{
	(void)arg;
	(void)entry_id;
	(void)audience;
	tickets[fetches++ % 16] = ticket;
}

static char *last;
static int answers, failures;

static void on_token(void *arg, const char *token, const struct err *e)
{
	(void)arg;
	(void)e;
	free(last);
	last = token ? xstrdup(token) : NULL;
	answers++;
	failures += !token;
}

static void give(struct jwtcache *c, int i, const char *token, int64_t ago, int64_t life)
{
	AUTO(free) char *t = xstrdup(token);
	int64_t now = clock_wall().sec;
	struct jwt_svid j = { .token = t, .issued_at = now - ago, .expires_at = now - ago + life };

	jwtcache_fetched(c, tickets[i], &j, NULL);
}

static char id[] = "e1", spiffe_id[] = "spiffe://example.org/a";
static const struct entry en = { .id = id, .spiffe_id = spiffe_id };

static void ask(struct jwtcache *c, const char *a, const char *b)
{
	struct strings s = { 0 };

	strings_add(&s, a);
	if (b)
		strings_add(&s, b);
	jwtcache_get(c, &en, &s, on_token, NULL);
	strings_deinit(&s);
}

static void test_share_and_keep(void)
{
	struct loop *l = loop_new();
	struct jwtcache *c = jwtcache_new(l, 10, fetch, NULL);

	ask(c, "x", "y");
	ask(c, "y", "x");
	CHECK_INT(fetches, 1);
	give(c, 0, "t1", 0, 300);
	CHECK_INT(answers, 2);
	CHECK_STR(last, "t1");
	ask(c, "x", "y");
	CHECK_INT(fetches, 1);
	CHECK_INT(answers, 3);
	ask(c, "x", NULL);
	CHECK_INT(fetches, 2);
	give(c, 1, "t2", 0, 300);
	CHECK_STR(last, "t2");
	jwtcache_free(c);
	loop_free(l);
}

static void test_refreshes_behind(void)
{
	struct loop *l = loop_new();
	struct jwtcache *c = jwtcache_new(l, 10, fetch, NULL);
	struct err e = ERR_INIT;

	ask(c, "x", NULL);
	give(c, 0, "old", 160, 300); /* past half of its life */
	ask(c, "x", NULL);
	CHECK_STR(last, "old");
	CHECK_INT(answers, 2);
	CHECK_INT(fetches, 2);
	err_set(&e, ERR_UNAVAILABLE, "away");
	jwtcache_fetched(c, tickets[1], NULL, &e);
	ask(c, "x", NULL);
	CHECK_STR(last, "old");
	CHECK_INT(fetches, 3);
	give(c, 2, "new", 0, 300);
	ask(c, "x", NULL);
	CHECK_STR(last, "new");
	CHECK_INT(fetches, 3);
	CHECK_INT(failures, 0);
	jwtcache_free(c);
	loop_free(l);
}

static void stop(void *arg)
{
	loop_stop(arg);
}

static void test_last_quarter_waits_a_little(void)
{
	struct loop *l = loop_new();
	struct jwtcache *c = jwtcache_new(l, 10, fetch, NULL);
	struct loop_timer *t = loop_timer_new(l, stop, l);

	ask(c, "x", NULL);
	give(c, 0, "old", 280, 300);
	ask(c, "x", NULL);
	CHECK_INT(answers, 1);
	loop_timer_set(t, 1300 * NS_PER_MS);
	loop_run(l);
	CHECK_INT(answers, 2);
	CHECK_STR(last, "old");
	give(c, 1, "new", 0, 300);
	CHECK_INT(answers, 2);
	loop_timer_free(t);
	jwtcache_free(c);
	loop_free(l);
}

static void test_failure_and_limit(void)
{
	struct loop *l = loop_new();
	struct jwtcache *c = jwtcache_new(l, 2, fetch, NULL);
	struct err e = ERR_INIT;

	err_set(&e, ERR_UNAVAILABLE, "away");
	ask(c, "x", NULL);
	jwtcache_fetched(c, tickets[0], NULL, &e);
	CHECK_INT(failures, 1);
	CHECK_INT(jwtcache_count(c), 0);
	for (int i = 1; i <= 4; i++) {
		AUTO(free) char *a = xasprintf("a%d", i);

		ask(c, a, NULL);
		give(c, i, a, 0, 300);
	}
	CHECK_INT(jwtcache_count(c), 2);
	ask(c, "a4", NULL);
	CHECK_INT(fetches, 5);
	ask(c, "a1", NULL);
	CHECK_INT(fetches, 6);
	jwtcache_free(c); /* the one who waits is told */
	CHECK_INT(failures, 2);
	loop_free(l);
}

static void test_unique(void)
{
	struct loop *l = loop_new();
	struct jwtcache *c = jwtcache_new(l, 2, fetch, NULL);
	struct entry jti = en;
	struct strings s = { 0 };

	jti.jwt_svid_include_jti = true;
	strings_add(&s, "x");
	jwtcache_get(c, &jti, &s, on_token, NULL);
	jwtcache_get(c, &jti, &s, on_token, NULL);
	CHECK_INT(fetches, 2);
	give(c, 0, "a", 0, 300);
	CHECK_STR(last, "a");
	give(c, 1, "b", 0, 300);
	CHECK_STR(last, "b");
	CHECK_INT(jwtcache_count(c), 0);
	strings_deinit(&s);
	jwtcache_free(c);
	loop_free(l);
}

TEST_MAIN(TEST(test_share_and_keep), TEST(test_refreshes_behind),
	TEST(test_last_quarter_waits_a_little), TEST(test_failure_and_limit), TEST(test_unique))

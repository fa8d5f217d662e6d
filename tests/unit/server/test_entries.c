/* The index against a naive model of the same rules, under thousands of random operations; and its
 * edges one by one. */
#include "server/entries.h"

#include <time.h>

#include "lib/crypto.h"
#include "tests/test.h"

#define TD "example.org"
#define SERVER "spiffe://example.org/spire/server"
#define AGENT(n) "spiffe://example.org/spire/agent/x/" n

/* ---- building ---- */

static struct entry entry_of(const char *id, const char *parent, const char *spiffe, ...)
{
	struct entry en = { .id = xstrdup(id),
		.parent_id = xstrdup(parent),
		.spiffe_id = xstrdup(spiffe),
		.hint = xstrdup("") };
	struct err e;
	const char *sel;
	va_list ap;

	va_start(ap, spiffe);
	while ((sel = va_arg(ap, const char *)) != NULL)
		CHECK_OK(selectors_add_text(&en.selectors, sel, &e));
	va_end(ap);
	selectors_normalize(&en.selectors);
	return en;
}

static void put(struct entries *x, struct entry en)
{
	entries_set_change(x, entries_change(x) + 1);
	entries_put(x, &en);
	entry_deinit(&en);
}

static void drop(struct entries *x, const char *id)
{
	entries_set_change(x, entries_change(x) + 1);
	entries_remove(x, id);
}

static void put_node(struct entries *x, const char *id, ...)
{
	char empty[] = "";
	char type[] = "x";
	char serial[] = "1";
	struct node n = { .spiffe_id = xstrdup(id),
		.attestation_type = type,
		.serial = serial,
		.new_serial = empty,
		.agent_version = empty };
	struct err e;
	const char *sel;
	va_list ap;

	va_start(ap, id);
	while ((sel = va_arg(ap, const char *)) != NULL)
		CHECK_OK(selectors_add_text(&n.selectors, sel, &e));
	va_end(ap);
	selectors_normalize(&n.selectors);
	entries_set_change(x, entries_change(x) + 1);
	entries_put_node(x, &n);
	free(n.spiffe_id);
	selectors_deinit(&n.selectors);
}

static void append_id(void *arg, const struct entry *en)
{
	strings_add(arg, en->id);
}

static int compare_text(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static void join_sorted(struct strings *s, struct buf *ret)
{
	if (s->n)
		qsort(s->v, s->n, sizeof(s->v[0]), compare_text);
	for (size_t i = 0; i < s->n; i++) {
		buf_str(ret, i ? " " : "");
		buf_str(ret, s->v[i]);
	}
	strings_deinit(s);
}

static const char *authorized(const struct entries *x, const char *agent)
{
	static struct buf text = { .max = 1 << 20 };
	struct strings s = { .n = 0 };

	entries_authorized(x, agent, append_id, &s);
	buf_reset(&text);
	join_sorted(&s, &text);
	return buf_cstr(&text);
}

static bool may_have(const struct entries *x, const char *agent, const char *id)
{
	struct entry en;
	struct err e;
	int r = entries_authorized_view(x, agent, id, &en, &e);

	CHECK(r == 0 || r == ERR_NOT_FOUND);
	if (r == 0)
		CHECK_STR(en.id, id);
	return r == 0;
}

/* ---- edges ---- */

static void test_fields(void)
{
	struct entries *x = entries_new(TD, false);
	struct entry en = entry_of("id1", AGENT("a"), "spiffe://example.org/w", "unix:uid:0",
		"unix:path:/bin/x", NULL);
	struct entry got;
	struct err e;

	en.x509_svid_ttl = 60;
	en.jwt_svid_ttl = 61;
	en.admin = en.store_svid = en.jwt_svid_include_jti = true;
	en.has_additional_attributes = true;
	en.expires_at = INT64_C(1) << 40;
	en.revision_number = 7;
	en.created_at = 1234567;
	free(en.hint);
	en.hint = xstrdup("hint");
	strings_add(&en.federates_with, "other.org");
	strings_add(&en.dns_names, "z.example.org");
	strings_add(&en.dns_names, "a.example.org");
	entries_put(x, &en);
	CHECK_OK(entries_get(x, "id1", &got, &e));
	CHECK_STR(got.spiffe_id, en.spiffe_id);
	CHECK_STR(got.parent_id, en.parent_id);
	CHECK(selectors_equal(&got.selectors, &en.selectors));
	CHECK_INT(got.x509_svid_ttl, 60);
	CHECK_INT(got.jwt_svid_ttl, 61);
	CHECK(got.admin && !got.downstream && got.store_svid && !got.disable_x509_svid_prefetch);
	CHECK(got.jwt_svid_include_jti && got.has_additional_attributes);
	CHECK_INT(got.expires_at, en.expires_at);
	CHECK_INT(got.revision_number, 7);
	CHECK_INT(got.created_at, 1234567);
	CHECK_STR(got.hint, "hint");
	CHECK_INT(got.federates_with.n, 1);
	CHECK_STR(got.federates_with.v[0], "other.org");
	CHECK_INT(got.dns_names.n, 2);
	CHECK_STR(got.dns_names.v[0], "z.example.org");
	CHECK_STR(got.dns_names.v[1], "a.example.org");
	CHECK(entries_is_admin(x, "spiffe://example.org/w"));
	CHECK(!entries_is_downstream(x, "spiffe://example.org/w"));
	entry_deinit(&got);
	CHECK_ERR(entries_get(x, "id", &got, &e), ERR_NOT_FOUND);
	entries_remove(x, "id1");
	CHECK_ERR(entries_get(x, "id1", &got, &e), ERR_NOT_FOUND);
	CHECK(!entries_is_admin(x, "spiffe://example.org/w"));
	CHECK_INT(entries_count(x), 0);
	entry_deinit(&en);
	entries_free(x);
}

static void test_nodes(void)
{
	struct entries *x = entries_new(TD, false);
	struct node got;
	struct err e;

	put_node(x, AGENT("a"), "x:1", "x:2", NULL);
	CHECK_OK(entries_get_node(x, AGENT("a"), &got, &e));
	CHECK_STR(got.attestation_type, "x");
	CHECK_STR(got.serial, "1");
	CHECK_INT(got.selectors.n, 2);
	CHECK_STR(got.selectors.v[1].value, "2");
	node_deinit(&got);
	put_node(x, AGENT("a"), NULL);
	CHECK_OK(entries_node_view(x, AGENT("a"), &got, &e));
	CHECK_STR(got.spiffe_id, AGENT("a"));
	CHECK_INT(entries_count_nodes(x), 1);
	entries_remove_node(x, AGENT("a"));
	CHECK_ERR(entries_get_node(x, AGENT("a"), &got, &e), ERR_NOT_FOUND);
	CHECK_INT(entries_count_nodes(x), 0);
	entries_free(x);
}

static void test_aliases_and_chains(void)
{
	struct entries *x = entries_new(TD, false);

	put(x, entry_of("w1", AGENT("a"), "spiffe://example.org/w1", "u:1", NULL));
	put(x, entry_of("w2", "spiffe://example.org/w1", "spiffe://example.org/w2", "u:2", NULL));
	put(x, entry_of("g", SERVER, "spiffe://example.org/group", "n:a", "n:b", NULL));
	put(x, entry_of(
		       "w3", "spiffe://example.org/group", "spiffe://example.org/w3", "u:3", NULL));
	CHECK_STR(authorized(x, AGENT("a")), "w1 w2");
	CHECK_STR(authorized(x, AGENT("b")), "");
	put_node(x, AGENT("a"), "n:a", NULL);
	CHECK_STR(authorized(x, AGENT("a")), "w1 w2");
	put_node(x, AGENT("a"), "n:a", "n:b", "n:c", NULL);
	CHECK_STR(authorized(x, AGENT("a")), "w1 w2 w3");
	CHECK(may_have(x, AGENT("a"), "w3"));
	CHECK(!may_have(x, AGENT("a"), "g"));
	CHECK(!may_have(x, AGENT("b"), "w3"));
	CHECK(!may_have(x, "spiffe://example.org/nobody", "w3"));
	/* A cycle ends. */
	put(x, entry_of("w4", "spiffe://example.org/w2", "spiffe://example.org/w1", "u:4", NULL));
	CHECK_STR(authorized(x, AGENT("a")), "w1 w2 w3 w4");
	CHECK(may_have(x, AGENT("a"), "w4"));
	CHECK(!may_have(x, AGENT("b"), "w4"));
	drop(x, "w1");
	CHECK_STR(authorized(x, AGENT("a")), "w3");
	drop(x, "g");
	CHECK_STR(authorized(x, AGENT("a")), "");
	entries_free(x);
}

static void test_agent_id_as_selector(void)
{
	struct entries *x = entries_new(TD, true);

	put(x, entry_of("g", SERVER, "spiffe://example.org/group", "spiffe_id:" AGENT("a"), NULL));
	put(x, entry_of("w", "spiffe://example.org/group", "spiffe://example.org/w", "u:3", NULL));
	put_node(x, AGENT("a"), NULL);
	put_node(x, AGENT("b"), "n:1", NULL);
	CHECK_STR(authorized(x, AGENT("a")), "w");
	CHECK(may_have(x, AGENT("a"), "w"));
	CHECK_STR(authorized(x, AGENT("b")), "");
	/* One that has it already. */
	put_node(x, AGENT("a"), "spiffe_id:" AGENT("a"), NULL);
	CHECK_STR(authorized(x, AGENT("a")), "w");
	entries_free(x);
}

/* One id with many aliases, of which one meets the node: found from either side. */
static void test_many_aliases(void)
{
	struct entries *x = entries_new(TD, false);

	for (int i = 0; i < 500; i++) {
		AUTO(free) char *id = xasprintf("g%d", i);
		AUTO(free) char *sel = xasprintf("n:%d", i);

		put(x, entry_of(id, SERVER, "spiffe://example.org/group", sel, "n:all", NULL));
	}
	put(x, entry_of("w", "spiffe://example.org/group", "spiffe://example.org/w", "u:1", NULL));
	put_node(x, AGENT("a"), "n:all", "n:77", NULL);
	put_node(x, AGENT("b"), "n:all", "n:777", NULL);
	CHECK_STR(authorized(x, AGENT("a")), "w");
	CHECK(may_have(x, AGENT("a"), "w"));
	CHECK_STR(authorized(x, AGENT("b")), "");
	CHECK(!may_have(x, AGENT("b"), "w"));
	for (int i = 0; i < 500; i++) {
		AUTO(free) char *id = xasprintf("g%d", i);

		drop(x, id);
	}
	CHECK(!may_have(x, AGENT("a"), "w"));
	entries_free(x);
}

/* ---- lists ---- */

struct page {
	struct strings ids;
	size_t max;
};

static bool page_fn(void *arg, const struct entry *en)
{
	struct page *p = arg;

	if (p->ids.n == p->max)
		return false;
	strings_add(&p->ids, en->id);
	return true;
}

static const struct entries_filter any = { .downstream = -1 };

static size_t list_count(const struct entries *x, const struct entries_filter *f)
{
	struct page p = { .max = SIZE_MAX };
	char *next;
	struct err e;
	size_t n;

	CHECK_OK(entries_list(x, f, "", page_fn, &p, &next, &e));
	CHECK(!next);
	n = p.ids.n;
	strings_deinit(&p.ids);
	return n;
}

static void test_list_pages(void)
{
	struct entries *x = entries_new(TD, false);
	char *token = xstrdup("");
	int last = -1;
	size_t n = 0;
	struct err e;

	/* In the order in which they came, whatever their ids; one that is put again keeps its
	 * place. */
	for (int i = 0; i < 3000; i++) {
		AUTO(free) char *id = xasprintf("%04d", i * 7919 % 3000);

		if (i == 1000) /* the order is kept from here on, not built at once */
			CHECK_INT(list_count(x, &any), 1000);
		put(x, entry_of(id, AGENT("a"), "spiffe://example.org/w", "u:1", NULL));
	}
	for (int i = 0; i < 3000; i += 3) {
		AUTO(free) char *id = xasprintf("%04d", i);
		AUTO(free) char *again = xasprintf("%04d", i + 1);

		drop(x, id);
		put(x, entry_of(again, AGENT("a"), "spiffe://example.org/w", "u:2", NULL));
	}
	while (token) {
		struct page p = { .max = 7 };
		char *next = NULL;

		CHECK_OK(entries_list(x, &any, token, page_fn, &p, &next, &e));
		for (size_t i = 0; i < p.ids.n; i++) {
			/* 7919 * 1679 is 1 modulo 3000: the place of this id. */
			int place = (int)(strtol(p.ids.v[i], NULL, 10) * 1679 % 3000);

			CHECK(place > last);
			last = place;
		}
		n += p.ids.n;
		strings_deinit(&p.ids);
		free(token);
		token = next;
	}
	CHECK_INT(n, 2000);
	CHECK_INT(entries_count(x), 2000);
	for (int i = 0; i < 3000; i++) {
		AUTO(free) char *id = xasprintf("%04d", i);

		drop(x, id);
	}
	CHECK_INT(list_count(x, &any), 0);
	CHECK_ERR(entries_list(x, &any, "garbage", page_fn, NULL, &token, &e), ERR_INTERNAL);
	CHECK_STR(e.msg, "could not parse token 'garbage'");
	CHECK_ERR(entries_list(x, &any, "-1", page_fn, NULL, &token, &e), ERR_INTERNAL);
	entries_free(x);
}

/* The store's numbers decide, so that a page's token is good after a restart too. */
static void test_list_numbers(void)
{
	struct entries *x = entries_new(TD, false);
	struct page p = { .max = 2 };
	char *token;
	struct err e;

	for (int i = 0; i < 4; i++) {
		static const char *const ids[] = { "d", "b", "c", "a" };
		struct entry en =
			entry_of(ids[i], AGENT("a"), "spiffe://example.org/w", "u:1", NULL);

		en.num = 10 * (4 - i);
		put(x, en);
	}
	CHECK_OK(entries_list(x, &any, "10", page_fn, &p, &token, &e));
	CHECK_STR(p.ids.v[0], "c");
	CHECK_STR(p.ids.v[1], "b");
	CHECK_STR(token, "30");
	strings_deinit(&p.ids);
	free(token);
	p = (struct page){ .max = 2 };
	CHECK_OK(entries_list(x, &any, "999999", page_fn, &p, &token, &e));
	CHECK(!token && p.ids.n == 0);
	CHECK_ERR(entries_list(x, &any, "99999999999999999999", page_fn, &p, &token, &e),
		ERR_INTERNAL);
	entries_free(x);
}

static struct selectors sels(const char *a, const char *b)
{
	struct selectors s = { .n = 0 };
	struct err e;

	CHECK_OK(selectors_add_text(&s, a, &e));
	if (b)
		CHECK_OK(selectors_add_text(&s, b, &e));
	return s;
}

static size_t count_selectors(const struct entries *x, const char *a, const char *b, enum match m)
{
	struct selectors s = sels(a, b);
	struct entries_filter f = any;
	size_t n;

	f.selectors = &s;
	f.selectors_match = m;
	n = list_count(x, &f);
	selectors_deinit(&s);
	return n;
}

static void test_list_filters(void)
{
	struct entries *x = entries_new(TD, false);
	struct entries_filter f;
	struct strings fed = { .n = 0 };
	struct entry en;

	put(x, entry_of("1", AGENT("a"), "spiffe://example.org/p", "u:1", NULL));
	put(x, entry_of("2", AGENT("a"), "spiffe://example.org/p", "u:1", "u:2", NULL));
	put(x, entry_of("3", AGENT("b"), "spiffe://example.org/q", "u:1", "u:2", "u:3", NULL));
	put(x, entry_of("4", SERVER, "spiffe://example.org/p", "u:9", NULL));
	en = entry_of("5", AGENT("b"), "spiffe://example.org/r", "u:3", NULL);
	en.downstream = true;
	free(en.hint);
	en.hint = xstrdup("h");
	strings_add(&en.federates_with, "one.org");
	strings_add(&en.federates_with, "two.org");
	put(x, en);

	CHECK_INT(list_count(x, &any), 5);
	CHECK_INT(count_selectors(x, "u:1", "u:2", MATCH_EXACT), 1);
	CHECK_INT(count_selectors(x, "u:1", "u:2", MATCH_SUBSET), 2);
	CHECK_INT(count_selectors(x, "u:1", "u:2", MATCH_SUPERSET), 2);
	CHECK_INT(count_selectors(x, "u:1", "u:2", MATCH_ANY), 3);
	CHECK_INT(count_selectors(x, "u:1", "u:77", MATCH_SUPERSET), 0);
	CHECK_INT(count_selectors(x, "u:1", "u:77", MATCH_SUBSET), 1);
	CHECK_INT(count_selectors(x, "u:1", "u:1", MATCH_EXACT), 1);
	f = any;
	f.spiffe_id = "spiffe://example.org/p";
	CHECK_INT(list_count(x, &f), 3);
	f.parent_id = AGENT("a");
	CHECK_INT(list_count(x, &f), 2);
	f = any;
	f.parent_id = SERVER;
	CHECK_INT(list_count(x, &f), 1);
	f.parent_id = "spiffe://example.org/unknown";
	CHECK_INT(list_count(x, &f), 0);
	f = any;
	f.hint = "h";
	CHECK_INT(list_count(x, &f), 1);
	f = any;
	f.downstream = 1;
	CHECK_INT(list_count(x, &f), 1);
	f.downstream = 0;
	CHECK_INT(list_count(x, &f), 4);
	f = any;
	strings_add(&fed, "one.org");
	f.federates_with = &fed;
	f.federates_match = MATCH_EXACT;
	CHECK_INT(list_count(x, &f), 0);
	f.federates_match = MATCH_SUPERSET;
	CHECK_INT(list_count(x, &f), 1);
	f.federates_match = MATCH_ANY;
	CHECK_INT(list_count(x, &f), 1);
	f.federates_match = MATCH_SUBSET;
	CHECK_INT(list_count(x, &f), 0); /* those that federate with none are not meant */
	strings_add(&fed, "two.org");
	CHECK_INT(list_count(x, &f), 1);
	strings_deinit(&fed);
	entries_free(x);
}

static bool node_fn(void *arg, const struct node *n)
{
	size_t *left = arg;

	(void)n;
	if (*left == 0)
		return false;
	--*left;
	return true;
}

static void test_list_nodes(void)
{
	struct entries *x = entries_new(TD, false);
	struct nodes_filter f = { .banned = -1, .can_reattest = -1 };
	struct selectors s = sels("x:1", NULL);
	size_t left = 2;
	char *token;
	char *next;
	struct err e;

	put_node(x, AGENT("c"), "x:1", NULL);
	put_node(x, AGENT("a"), NULL);
	put_node(x, AGENT("b"), "x:1", "x:2", NULL);
	CHECK_OK(entries_list_nodes(x, &f, "", node_fn, &left, &token, &e));
	CHECK_STR(token, "2");
	left = 2;
	CHECK_OK(entries_list_nodes(x, &f, token, node_fn, &left, &next, &e));
	CHECK(!next);
	CHECK_INT(left, 1);
	free(token);
	left = 10;
	f.selectors = &s;
	f.selectors_match = MATCH_SUPERSET;
	CHECK_OK(entries_list_nodes(x, &f, "", node_fn, &left, &next, &e));
	CHECK_INT(left, 8);
	left = 10;
	f = (struct nodes_filter){ .banned = 1, .can_reattest = -1 };
	CHECK_OK(entries_list_nodes(x, &f, "", node_fn, &left, &next, &e));
	CHECK_INT(left, 10);
	selectors_deinit(&s);
	entries_free(x);
}

/* ---- watches ---- */

static void count_call(void *arg)
{
	++*(int *)arg;
}

static void test_watch(void)
{
	struct entries *x = entries_new(TD, false);
	struct entries_watch *w;
	struct entries_delta d;
	uint64_t at;
	int calls = 0;

	put(x, entry_of("w1", AGENT("a"), "spiffe://example.org/w1", "u:1", NULL));
	w = entries_watch_new(x, AGENT("a"), count_call, &calls);
	entries_watch_take(w, 0, false, &d);
	CHECK(d.full);
	CHECK_INT(d.n_put, 1);
	at = d.change;
	entries_delta_deinit(&d);
	/* Of no concern. */
	put(x, entry_of("v1", AGENT("b"), "spiffe://example.org/v1", "u:1", NULL));
	CHECK_INT(calls, 0);
	put(x, entry_of("w2", AGENT("a"), "spiffe://example.org/w2", "u:2", NULL));
	drop(x, "w1");
	CHECK_INT(calls, 1);
	entries_watch_take(w, at, true, &d);
	CHECK(!d.full);
	CHECK_INT(d.n_put, 1);
	CHECK_STR(d.put[0].id, "w2");
	CHECK_INT(d.removed.n, 1);
	CHECK_STR(d.removed.v[0], "w1");
	CHECK_INT(d.change, 4);
	at = d.change;
	entries_delta_deinit(&d);
	/* Removed and made anew under one id is one put. */
	drop(x, "w2");
	put(x, entry_of("w2", AGENT("a"), "spiffe://example.org/w2", "u:3", NULL));
	CHECK_INT(calls, 2);
	entries_watch_take(w, at, true, &d);
	CHECK_INT(d.n_put, 1);
	CHECK_INT(d.removed.n, 0);
	at = d.change;
	entries_delta_deinit(&d);
	/* A number that is not known means everything. */
	entries_watch_take(w, at - 1, true, &d);
	CHECK(d.full);
	entries_delta_deinit(&d);
	entries_watch_free(w);
	entries_free(x);
}

/* An agent that comes back with the number it had gets what it missed. */
static void test_watch_resume(void)
{
	struct entries *x = entries_new(TD, false);
	struct entries_watch *w;
	struct entries_delta d;
	uint64_t at;
	int calls = 0;

	put(x, entry_of("w1", AGENT("a"), "spiffe://example.org/w1", "u:1", NULL));
	put(x, entry_of("w2", AGENT("a"), "spiffe://example.org/w2", "u:1", NULL));
	w = entries_watch_new(x, AGENT("a"), count_call, &calls);
	entries_watch_take(w, 0, false, &d);
	at = d.change;
	entries_delta_deinit(&d);
	entries_watch_free(w);
	drop(x, "w1");
	put(x, entry_of("w3", AGENT("a"), "spiffe://example.org/w3", "u:1", NULL));
	w = entries_watch_new(x, AGENT("a"), count_call, &calls);
	entries_watch_take(w, at, true, &d);
	CHECK(!d.full);
	CHECK_INT(d.n_put, 1);
	CHECK_INT(d.removed.n, 1);
	CHECK_STR(d.removed.v[0], "w1");
	at = d.change;
	entries_delta_deinit(&d);
	/* The connection broke and the delta was lost: the old number is behind what was sent. */
	entries_watch_free(w);
	w = entries_watch_new(x, AGENT("a"), count_call, &calls);
	entries_watch_take(w, at - 1, true, &d);
	CHECK(d.full);
	CHECK_INT(d.n_put, 2);
	entries_delta_deinit(&d);
	entries_watch_free(w);
	/* Nothing known of this agent, but nothing has changed either (a server just started). */
	w = entries_watch_new(x, AGENT("z"), count_call, &calls);
	entries_watch_take(w, entries_change(x), true, &d);
	CHECK(!d.full);
	CHECK_INT(d.n_put, 0);
	entries_delta_deinit(&d);
	entries_watch_free(w);
	entries_free(x);
}

/* More deaths than are remembered. */
static void test_watch_many_removed(void)
{
	struct entries *x = entries_new(TD, false);
	struct entries_watch *w;
	struct entries_delta d;
	uint64_t at;
	int calls = 0;

	put(x, entry_of("w1", AGENT("a"), "spiffe://example.org/w1", "u:1", NULL));
	w = entries_watch_new(x, AGENT("a"), count_call, &calls);
	entries_watch_take(w, 0, false, &d);
	at = d.change;
	entries_delta_deinit(&d);
	for (int i = 0; i < 70000; i++) {
		put(x, entry_of("v", AGENT("b"), "spiffe://example.org/v", "u:1", NULL));
		drop(x, "v");
	}
	/* None of them was ours. */
	CHECK_INT(calls, 0);
	entries_watch_take(w, at, true, &d);
	CHECK(!d.full);
	at = d.change;
	entries_delta_deinit(&d);
	drop(x, "w1");
	for (int i = 0; i < 70000; i++) {
		put(x, entry_of("v", AGENT("b"), "spiffe://example.org/v", "u:1", NULL));
		drop(x, "v");
	}
	entries_watch_take(w, at, true, &d);
	CHECK(d.full);
	CHECK_INT(d.n_put, 0);
	entries_delta_deinit(&d);
	entries_watch_free(w);
	entries_free(x);
}

/* ---- the model ---- */

enum { M_ENTRIES = 60, M_IDS = 12, M_NODES = 5, M_SELECTORS = 5 };

struct model {
	struct {
		bool live;
		int parent, spiffe; /* ids: 0 server, 1..M_NODES agents, then others */
		unsigned sel;
		int revision;
	} entry[M_ENTRIES];
	struct {
		bool live;
		unsigned sel;
	} node[M_NODES + 1];
};

static const char *model_id(int i)
{
	static char text[4][80];
	static int turn;
	char *t = text[turn++ % 4];

	if (i == 0)
		return SERVER;
	snprintf(t, sizeof(text[0]), i <= M_NODES ? AGENT("%d") : "spiffe://example.org/id/%d", i);
	return t;
}

/* By the definition, as plainly as possible. */
static void model_authorized(const struct model *m, int agent, bool *may)
{
	bool reached[M_IDS] = { false };
	bool more = true;

	memset(may, 0, M_ENTRIES);
	reached[agent] = true;
	for (int i = 0; i < M_ENTRIES; i++)
		if (m->entry[i].live && m->entry[i].parent == 0 && m->node[agent].live &&
			(m->entry[i].sel & ~m->node[agent].sel) == 0)
			reached[m->entry[i].spiffe] = true;
	while (more) {
		more = false;
		for (int i = 0; i < M_ENTRIES; i++) {
			if (!m->entry[i].live || m->entry[i].parent == 0 || may[i] ||
				!reached[m->entry[i].parent])
				continue;
			may[i] = true;
			reached[m->entry[i].spiffe] = true;
			more = true;
		}
	}
}

static struct selectors model_selectors(unsigned bits)
{
	struct selectors s = { .n = 0 };

	for (int i = 0; i < M_SELECTORS; i++)
		if (bits & 1u << i) {
			AUTO(free) char *v = xasprintf("%d", i);

			selectors_add(&s, "s", v);
		}
	selectors_normalize(&s);
	return s;
}

static void model_put_entry(struct entries *x, const struct model *m, int i)
{
	struct entry en = {
		.id = xasprintf("e%02d", i),
		.parent_id = xstrdup(model_id(m->entry[i].parent)),
		.spiffe_id = xstrdup(model_id(m->entry[i].spiffe)),
		.hint = xstrdup(""),
		.revision_number = m->entry[i].revision,
		.selectors = model_selectors(m->entry[i].sel),
	};

	entries_put(x, &en);
	entry_deinit(&en);
}

static void model_put_node(struct entries *x, const struct model *m, int i)
{
	char empty[] = "";
	char *id = xstrdup(model_id(i));
	struct node n = {
		.spiffe_id = id,
		.attestation_type = empty,
		.serial = empty,
		.new_serial = empty,
		.agent_version = empty,
		.selectors = model_selectors(m->node[i].sel),
	};

	entries_put_node(x, &n);
	selectors_deinit(&n.selectors);
	free(id);
}

static unsigned rnd(unsigned n)
{
	return (unsigned)random() % n;
}

static void model_step(struct entries *x, struct model *m)
{
	entries_set_change(x, entries_change(x) + 1);
	if (rnd(5) == 0) {
		int i = 1 + (int)rnd(M_NODES);

		m->node[i].live = rnd(4) != 0;
		m->node[i].sel = rnd(1u << M_SELECTORS);
		if (m->node[i].live)
			model_put_node(x, m, i);
		else
			entries_remove_node(x, model_id(i));
		return;
	}
	int i = (int)rnd(M_ENTRIES);

	if (rnd(3) == 0) {
		AUTO(free) char *id = xasprintf("e%02d", i);

		m->entry[i].live = false;
		entries_remove(x, id);
		return;
	}
	if (!m->entry[i].live || rnd(2)) {
		m->entry[i].parent = (int)rnd(M_IDS);
		m->entry[i].spiffe = M_NODES + 1 + (int)rnd(M_IDS - M_NODES - 1);
		m->entry[i].sel = 1 + rnd((1u << M_SELECTORS) - 1);
	}
	m->entry[i].live = true;
	m->entry[i].revision++;
	model_put_entry(x, m, i);
}

struct watcher { /* what an agent at the other end believes */
	struct entries_watch *w;
	bool have[M_ENTRIES];
	int revision[M_ENTRIES];
	uint64_t at;
	bool have_at;
	int called;
};

static void watcher_take(struct watcher *v)
{
	struct entries_delta d;

	entries_watch_take(v->w, v->at, v->have_at, &d);
	if (d.full)
		memset(v->have, 0, sizeof(v->have));
	for (size_t i = 0; i < d.removed.n; i++) {
		int k = (int)strtol(d.removed.v[i] + 1, NULL, 10);

		CHECK(v->have[k]);
		v->have[k] = false;
	}
	for (size_t i = 0; i < d.n_put; i++) {
		int k = (int)strtol(d.put[i].id + 1, NULL, 10);

		v->have[k] = true;
		v->revision[k] = (int)d.put[i].revision_number;
	}
	v->at = d.change;
	v->have_at = true;
	v->called = 0;
	entries_delta_deinit(&d);
}

static void watcher_check(const struct watcher *v, const struct model *m, int agent)
{
	bool may[M_ENTRIES];

	model_authorized(m, agent, may);
	if (v->called)
		return; /* knows that there is news */
	for (int i = 0; i < M_ENTRIES; i++) {
		CHECK(may[i] == v->have[i]);
		CHECK(!may[i] || m->entry[i].revision == v->revision[i]);
	}
}

static void check_against(const struct entries *x, const struct model *m)
{
	for (int a = 1; a <= M_NODES; a++) {
		bool may[M_ENTRIES];
		AUTO_BUF struct buf want = BUF_INIT;

		model_authorized(m, a, may);
		for (int i = 0; i < M_ENTRIES; i++) {
			char id[16];

			snprintf(id, sizeof(id), "e%02d", i);
			CHECK(may_have(x, model_id(a), id) == may[i]);
			if (may[i])
				buf_printf(&want, "%s%s", want.len ? " " : "", id);
		}
		CHECK_STR(authorized(x, model_id(a)), buf_cstr(&want));
	}
}

static void random_run(unsigned seed, int steps)
{
	struct entries *x = entries_new(TD, false);
	struct watcher v[M_NODES + 1] = { 0 };
	struct model m = { 0 };

	srandom(seed);
	for (int a = 1; a <= M_NODES; a++)
		v[a].w = entries_watch_new(x, model_id(a), count_call, &v[a].called);
	for (int a = 1; a <= M_NODES; a++)
		watcher_take(&v[a]);
	for (int step = 0; step < steps; step++) {
		int a = 1 + (int)rnd(M_NODES);

		model_step(x, &m);
		check_against(x, &m);
		for (int i = 1; i <= M_NODES; i++)
			watcher_check(&v[i], &m, i);
		if (rnd(4) == 0) {
			watcher_take(&v[a]);
			watcher_check(&v[a], &m, a);
		}
		if (rnd(20) == 0) { /* goes away, and comes back later */
			entries_watch_free(v[a].w);
			for (int k = (int)rnd(4); k > 0; k--)
				model_step(x, &m);
			v[a].w = entries_watch_new(x, model_id(a), count_call, &v[a].called);
			if (rnd(5) == 0)
				v[a].have_at = false;
			watcher_take(&v[a]);
			watcher_check(&v[a], &m, a);
		}
	}
	for (int a = 1; a <= M_NODES; a++)
		entries_watch_free(v[a].w);
	entries_free(x);
}

static void test_random(void)
{
	for (unsigned seed = 1; seed <= 12; seed++)
		random_run(seed, 1500);
}

TEST_MAIN(TEST(test_fields), TEST(test_nodes), TEST(test_aliases_and_chains),
	TEST(test_agent_id_as_selector), TEST(test_many_aliases), TEST(test_list_pages),
	TEST(test_list_numbers), TEST(test_list_filters), TEST(test_list_nodes), TEST(test_watch),
	TEST(test_watch_resume), TEST(test_watch_many_removed), TEST(test_random))

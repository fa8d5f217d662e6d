#include "lib/entry.h"

#include "spire/api/types/entry.pb-c.h"
#include "tests/test.h"

static struct selectors sel(const char *a, const char *b, const char *c)
{
	struct selectors s = { .n = 0 };
	struct err e = ERR_INIT;

	if (a)
		CHECK_OK(selectors_add_text(&s, a, &e));
	if (b)
		CHECK_OK(selectors_add_text(&s, b, &e));
	if (c)
		CHECK_OK(selectors_add_text(&s, c, &e));
	selectors_normalize(&s);
	return s;
}

static void test_selectors(void)
{
	struct selectors abc = sel("u:b", "u:a", "k:x:y"), ab = sel("u:a", "k:x:y", "u:a");
	struct selectors d = sel("u:d", NULL, NULL), none = { .n = 0 }, copy = selectors_dup(&abc);
	struct err e = ERR_INIT;

	CHECK_INT(abc.n, 3);
	CHECK_INT(ab.n, 2);
	CHECK_STR(abc.v[0].type, "k");
	CHECK_STR(abc.v[0].value, "x:y");
	CHECK(selectors_equal(&abc, &copy) && !selectors_equal(&abc, &ab));
	CHECK(selectors_subset(&ab, &abc) && !selectors_subset(&abc, &ab));
	CHECK(selectors_subset(&none, &d) && selectors_subset(&abc, &copy));
	CHECK(!selectors_subset(&d, &abc));
	CHECK(selectors_intersect(&ab, &abc) && !selectors_intersect(&d, &abc));
	CHECK(!selectors_intersect(&none, &abc));
	CHECK_ERR(selectors_add_text(&d, "nocolon", &e), ERR_INVALID);
	CHECK_STR(e.msg, "selector \"nocolon\" must be formatted as type:value");
	CHECK_ERR(selectors_add_text(&d, ":v", &e), ERR_INVALID);
	CHECK_ERR(selectors_add_text(&d, "t:", &e), ERR_INVALID);
	CHECK_INT(d.n, 1);
	/* grows on after it shrank */
	for (int i = 0; i < 40; i++)
		selectors_add(&ab, "u", i % 2 ? "z" : "y");
	selectors_normalize(&ab);
	CHECK_INT(ab.n, 4);
	for (int i = 0; i < 40; i++)
		selectors_add(&ab, "w", "z");
	selectors_deinit(&abc);
	selectors_deinit(&ab);
	selectors_deinit(&d);
	selectors_deinit(&copy);
}

static struct entry sample(void)
{
	struct entry en = { .id = xstrdup("id"),
		.spiffe_id = xstrdup("spiffe://td/a"),
		.parent_id = xstrdup("spiffe://td/p/q"),
		.x509_svid_ttl = 1,
		.jwt_svid_ttl = 2,
		.admin = true,
		.downstream = true,
		.store_svid = true,
		.has_additional_attributes = true,
		.jwt_svid_include_jti = true,
		.expires_at = 3,
		.revision_number = 4,
		.created_at = 5,
		.hint = xstrdup("h") };

	selectors_add(&en.selectors, "unix", "uid:1");
	selectors_add(&en.selectors, "unix", "gid:1");
	selectors_normalize(&en.selectors);
	strings_add(&en.federates_with, "other");
	strings_add(&en.dns_names, "b.x");
	strings_add(&en.dns_names, "a.x");
	return en;
}

static void check_sample(const struct entry *en)
{
	struct entry s = sample();

	CHECK_STR(en->id, s.id);
	CHECK_STR(en->spiffe_id, s.spiffe_id);
	CHECK_STR(en->parent_id, s.parent_id);
	CHECK_STR(en->hint, s.hint);
	CHECK(selectors_equal(&en->selectors, &s.selectors));
	CHECK_INT(en->x509_svid_ttl, 1);
	CHECK_INT(en->jwt_svid_ttl, 2);
	CHECK(en->admin && en->downstream && en->store_svid && en->has_additional_attributes);
	CHECK(en->jwt_svid_include_jti && !en->disable_x509_svid_prefetch);
	CHECK_INT(en->expires_at, 3);
	CHECK_INT(en->revision_number, 4);
	CHECK_INT(en->created_at, 5);
	CHECK_INT(en->dns_names.n, 2);
	CHECK_STR(en->dns_names.v[0], "b.x");
	CHECK(strings_has(&en->federates_with, "other") && !strings_has(&en->dns_names, "c"));
	entry_deinit(&s);
}

static void test_proto_and_back(void)
{
	struct entry en = sample(), back = { .id = NULL }, dup;
	Spire__Api__Types__Entry *m = entry_to_proto(&en);
	struct err e = ERR_INIT;

	CHECK_OK(entry_from_proto(&back, m, &e));
	check_sample(&back);
	dup = entry_dup(&back);
	entry_deinit(&back);
	check_sample(&dup);
	entry_deinit(&dup);
	entry_deinit(&en);
	spire__api__types__entry__free_unpacked(m, NULL);
}

static void test_proto_shape(void)
{
	Spire__Api__Types__Entry m;
	Spire__Api__Types__SPIFFEID id;
	char td[] = "td", td_uri[] = "spiffe://td", path[] = "no/slash", bad[] = "\xc3(";
	struct entry en = { .id = NULL };
	struct err e = ERR_INIT;

	spire__api__types__entry__init(&m);
	spire__api__types__spiffeid__init(&id);
	id.trust_domain = td;
	id.path = path;
	m.spiffe_id = &id;
	CHECK_OK(entry_from_proto(&en, &m, &e));
	CHECK_STR(en.spiffe_id, "spiffe://td/no/slash");
	CHECK_STR(en.parent_id, "");
	CHECK(!en.has_additional_attributes);
	entry_deinit(&en);
	id.trust_domain = td_uri;
	CHECK_OK(entry_from_proto(&en, &m, &e));
	CHECK_STR(en.spiffe_id, "spiffe://td/no/slash");
	entry_deinit(&en);
	m.hint = bad;
	CHECK_ERR(entry_from_proto(&en, &m, &e), ERR_INVALID);
	CHECK_STR(e.msg, "hint is not valid UTF-8");
}

TEST_MAIN(TEST(test_selectors), TEST(test_proto_and_back), TEST(test_proto_shape))

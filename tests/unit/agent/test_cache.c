#include "agent/cache.h"
#include "agent/sealed.h"
#include "tests/test.h"

static int wanted_calls, changed_calls;

static void on_wanted(void *arg)
{
	(void)arg;
	wanted_calls++;
}

static void on_changed(void *arg)
{
	(void)arg;
	changed_calls++;
}

struct rig {
	struct loop *loop;
	struct cache *cache;
};

static struct rig rig_new(size_t max)
{
	struct rig r;
	struct cache_options o = { .trust_domain = "example.org",
		.x509_max = max,
		.wanted = on_wanted,
		.changed = on_changed };

	crypto_init();
	r.loop = o.loop = loop_new();
	r.cache = cache_new(&o);
	return r;
}

static void rig_free(struct rig *r)
{
	cache_free(r->cache);
	loop_free(r->loop);
}

static struct entry entry_of(const char *id, const char *path, const char *selectors)
{
	struct entry en = { .id = xstrdup(id), .parent_id = xstrdup(""), .hint = xstrdup("") };
	char *copy = xstrdup(selectors), *save = NULL;
	struct err e = ERR_INIT;

	en.spiffe_id = xasprintf("spiffe://example.org/%s", path);
	for (char *s = strtok_r(copy, " ", &save); s; s = strtok_r(NULL, " ", &save))
		CHECK_OK(selectors_add_text(&en.selectors, s, &e));
	free(copy);
	return en;
}

static void put(struct cache *c, struct entry en)
{
	struct cache_update u = { 0 };

	u.entries = xmalloc(sizeof(en));
	u.entries[0] = en;
	u.n_entries = 1;
	cache_apply(c, &u);
	cache_update_deinit(&u);
}

static void drop(struct cache *c, const char *id)
{
	struct cache_update u = { 0 };

	strings_add(&u.removed, id);
	cache_apply(c, &u);
	cache_update_deinit(&u);
}

static struct selectors sel(const char *text)
{
	struct entry en = entry_of("x", "x", text);
	struct selectors s = selectors_dup(&en.selectors);

	selectors_normalize(&s);
	entry_deinit(&en);
	return s;
}

static struct view *view_of(struct cache *c, const char *text)
{
	struct selectors s = sel(text);
	struct view *v = cache_view(c, &s);

	selectors_deinit(&s);
	return v;
}

static int sign(void *arg, enum hash h, struct bytes d, struct buf *ret, struct err *e)
{
	return key_sign(arg, h, d, SIG_X509, ret, e);
}

/* A self-made SVID; the key in it need not be the certificate's. */
static struct svid *svid_for(const char *id, int64_t not_before, int64_t not_after)
{
	struct key *k;
	struct buf der = BUF_INIT, name = BUF_INIT;
	struct err e = ERR_INIT;
	uint8_t serial[16];
	struct x509_name n = { .country = "US", .organization = "SPIRE" };
	const char *uris[] = { id };
	struct svid *s;
	struct bytes cert;

	CHECK_OK(key_generate(KEY_EC_P256, &k, &e));
	x509_random_serial(serial);
	x509_name_der(&n, &name);
	struct x509_template t = { .serial = bytes_of(serial, 16),
		.subject_raw = buf_view(&name),
		.issuer_raw = buf_view(&name),
		.not_before = wall_of_sec(not_before),
		.not_after = wall_of_sec(not_after),
		.spki = pubkey_spki(key_public(k)),
		.key_usage = KU_DIGITAL_SIGNATURE,
		.eku_server_client = true,
		.uris = uris,
		.n_uris = 1 };
	struct x509_signer signer = { .type = KEY_EC_P256, .sign = sign, .arg = k };
	CHECK_OK(x509_build(&t, &signer, &der, &e));
	cert = buf_view(&der);
	CHECK_OK(svid_new(&cert, 1, bytes_str("key"), pubkey_spki(key_public(k)), id, &s, &e));
	buf_deinit(&der);
	buf_deinit(&name);
	key_unref(k);
	return s;
}

static void sign_all(struct cache *c)
{
	struct record *r;
	int64_t now = clock_wall().sec;

	while ((r = cache_next_wanted(c)) != NULL) {
		struct svid *s = svid_for(r->entry.spiffe_id, now - 10, now + 3600);

		cache_signed(c, r->entry.id, r->entry.revision_number, s);
		svid_unref(s);
	}
}

static void test_matching(void)
{
	struct rig r = rig_new(100);
	struct view *v;

	put(r.cache, entry_of("1", "a", "unix:uid:1"));
	put(r.cache, entry_of("2", "b", "unix:uid:1 unix:gid:2"));
	put(r.cache, entry_of("3", "c", "unix:uid:1 unix:gid:3"));
	put(r.cache, entry_of("4", "d", "k8s:uid:1"));
	v = view_of(r.cache, "unix:gid:2 unix:uid:1");
	CHECK_INT(v->n_matches, 2);
	CHECK_STR(v->matches[0]->entry.id, "1");
	CHECK_STR(v->matches[1]->entry.id, "2");
	/* A change reaches a view that is open. */
	put(r.cache, entry_of("0", "z", "unix:gid:2"));
	CHECK_INT(v->n_matches, 3);
	CHECK_STR(v->matches[0]->entry.id, "0");
	drop(r.cache, "1");
	CHECK_INT(v->n_matches, 2);
	view_unref(v);
	v = view_of(r.cache, "unix:uid:9");
	CHECK_INT(v->n_matches, 0);
	view_unref(v);
	rig_free(&r);
}

static void test_full_set_removes(void)
{
	struct rig r = rig_new(100);
	struct cache_update u = { .full = true };
	struct view *v;

	put(r.cache, entry_of("1", "a", "unix:uid:1"));
	put(r.cache, entry_of("2", "b", "unix:uid:1"));
	sign_all(r.cache);
	v = view_of(r.cache, "unix:uid:1");
	view_use_x509(v);
	CHECK(view_ready(v));
	u.entries = xmalloc(sizeof(struct entry));
	u.entries[0] = entry_of("2", "b", "unix:uid:1");
	u.n_entries = 1;
	cache_apply(r.cache, &u);
	cache_update_deinit(&u);
	CHECK_INT(cache_count(r.cache), 1);
	CHECK_INT(cache_count_svids(r.cache), 1);
	CHECK_INT(v->n_matches, 1);
	CHECK(view_ready(v));
	CHECK_INT(cache_wanted(r.cache), 0);
	view_unuse_x509(v);
	view_unref(v);
	rig_free(&r);
}

static void test_hint_and_store(void)
{
	struct rig r = rig_new(100);
	struct entry a = entry_of("1", "a", "unix:uid:1"), b = entry_of("2", "b", "unix:uid:1"),
		     c = entry_of("3", "c", "unix:uid:1");
	struct view *v;

	free(a.hint);
	free(b.hint);
	a.hint = xstrdup("h");
	b.hint = xstrdup("h");
	a.created_at = 200;
	b.created_at = 100;
	c.store_svid = true;
	put(r.cache, a);
	put(r.cache, b);
	put(r.cache, c);
	v = view_of(r.cache, "unix:uid:1");
	CHECK_INT(v->n_matches, 1);
	CHECK_STR(v->matches[0]->entry.id, "2");
	view_unref(v);
	rig_free(&r);
}

static void test_prefetch_and_evict(void)
{
	struct rig r = rig_new(2);
	struct entry no = entry_of("9", "no", "unix:uid:9");
	struct view *v;

	no.disable_x509_svid_prefetch = true;
	put(r.cache, no);
	CHECK_INT(cache_wanted(r.cache), 0);
	put(r.cache, entry_of("1", "a", "unix:uid:1"));
	put(r.cache, entry_of("2", "b", "unix:uid:2"));
	put(r.cache, entry_of("3", "c", "unix:uid:3"));
	CHECK_INT(cache_wanted(r.cache), 2);
	sign_all(r.cache);
	CHECK_INT(cache_count_svids(r.cache), 2);
	/* Whoever asks gets one beyond the limit; the one least lately used goes. */
	v = view_of(r.cache, "unix:uid:3");
	view_use_x509(v);
	CHECK_INT(cache_wanted(r.cache), 1);
	CHECK(!view_ready(v));
	sign_all(r.cache);
	CHECK(view_ready(v));
	CHECK_INT(cache_count_svids(r.cache), 2);
	CHECK(cache_find(r.cache, "3")->svid);
	view_unuse_x509(v);
	view_unref(v);
	v = view_of(r.cache, "unix:uid:9");
	view_use_x509(v);
	sign_all(r.cache);
	CHECK(view_ready(v));
	view_unuse_x509(v);
	view_unref(v);
	rig_free(&r);
}

static void test_revision_resigns(void)
{
	struct rig r = rig_new(100);
	struct view *v;
	struct entry en = entry_of("1", "a", "unix:uid:1");
	struct svid *old;

	put(r.cache, en);
	v = view_of(r.cache, "unix:uid:1");
	view_use_x509(v);
	sign_all(r.cache);
	old = svid_ref(v->matches[0]->svid);
	/* The same again changes nothing. */
	put(r.cache, entry_of("1", "a", "unix:uid:1"));
	CHECK_INT(cache_wanted(r.cache), 0);
	en = entry_of("1", "a", "unix:uid:1");
	en.revision_number = 1;
	put(r.cache, en);
	CHECK_INT(cache_wanted(r.cache), 1);
	CHECK(v->matches[0]->svid == old); /* served until the new one is there */
	sign_all(r.cache);
	CHECK(v->matches[0]->svid != old);
	/* Another id: the old SVID is not served under it. */
	en = entry_of("1", "b", "unix:uid:1");
	en.revision_number = 2;
	put(r.cache, en);
	CHECK(!v->matches[0]->svid);
	CHECK(!view_ready(v));
	sign_all(r.cache);
	CHECK(view_ready(v));
	svid_unref(old);
	view_unuse_x509(v);
	view_unref(v);
	rig_free(&r);
}

static void test_changed_while_signing(void)
{
	struct rig r = rig_new(100);
	struct record *rec;
	struct entry en;
	struct svid *s;

	put(r.cache, entry_of("1", "a", "unix:uid:1"));
	rec = cache_next_wanted(r.cache);
	CHECK(rec);
	s = svid_for("spiffe://example.org/a", clock_wall().sec - 10, clock_wall().sec + 60);
	en = entry_of("1", "b", "unix:uid:1");
	en.revision_number = 5;
	put(r.cache, en);
	cache_signed(r.cache, "1", 0, s);
	CHECK(!cache_find(r.cache, "1")->svid);
	CHECK_INT(cache_wanted(r.cache), 1);
	svid_unref(s);
	/* Removed while signing: the answer falls on nothing. */
	rec = cache_next_wanted(r.cache);
	CHECK(rec);
	drop(r.cache, "1");
	s = svid_for("spiffe://example.org/b", clock_wall().sec - 10, clock_wall().sec + 60);
	cache_signed(r.cache, "1", 5, s);
	CHECK_INT(cache_count_svids(r.cache), 0);
	svid_unref(s);
	rig_free(&r);
}

static void stop(void *arg)
{
	loop_stop(arg);
}

static void test_renews_at_half_life(void)
{
	struct rig r = rig_new(100);
	struct record *rec;
	struct svid *s;
	struct loop_timer *t = loop_timer_new(r.loop, stop, r.loop);
	int64_t now = clock_wall().sec;

	put(r.cache, entry_of("1", "a", "unix:uid:1"));
	rec = cache_next_wanted(r.cache);
	s = svid_for(rec->entry.spiffe_id, now - 10, now + 4);
	cache_signed(r.cache, "1", 0, s);
	CHECK_INT(cache_wanted(r.cache), 0);
	loop_timer_set(t, 300 * NS_PER_MS);
	loop_run(r.loop);
	CHECK_INT(cache_wanted(r.cache), 0);
	loop_timer_set(t, 2300 * NS_PER_MS);
	loop_run(r.loop);
	CHECK_INT(cache_wanted(r.cache), 1);
	CHECK(cache_find(r.cache, "1")->svid == s);
	svid_unref(s);
	loop_timer_free(t);
	rig_free(&r);
}

struct counter {
	struct view_watch w;
	int n;
};

static void count(struct view_watch *w)
{
	container_of(w, struct counter, w)->n++;
}

/* ---- taint ---- */

struct root {
	struct key *key;
	struct x509_cert *cert;
};

static struct buf build(const struct root *by, const char *id, struct bytes spki, bool ca)
{
	struct buf der = BUF_INIT, name = BUF_INIT;
	struct x509_signer signer = { .type = KEY_EC_P256, .sign = sign, .arg = by->key };
	struct x509_name n = { .country = "US", .organization = "SPIFFE" };
	int64_t now = clock_wall().sec;
	struct err e = ERR_INIT;
	uint8_t serial[16];

	x509_random_serial(serial);
	x509_name_der(&n, &name);
	CHECK_OK(x509_build(&(struct x509_template){ .serial = bytes_of(serial, 16),
				    .subject_raw = buf_view(&name),
				    .issuer_raw = buf_view(&name),
				    .not_before = wall_of_sec(now - 10),
				    .not_after = wall_of_sec(now + 3600),
				    .spki = spki,
				    .is_ca = ca,
				    .key_usage = ca ? KU_CERT_SIGN : KU_DIGITAL_SIGNATURE,
				    .eku_server_client = !ca,
				    .uris = &id,
				    .n_uris = 1 },
		&signer, &der, &e));
	buf_deinit(&name);
	return der;
}

static struct root root_new(void)
{
	struct root r;
	struct err e = ERR_INIT;
	struct buf der;

	CHECK_OK(key_generate(KEY_EC_P256, &r.key, &e));
	der = build(&r, "spiffe://example.org", pubkey_spki(key_public(r.key)), true);
	CHECK_OK(x509_parse(buf_view(&der), &r.cert, &e));
	buf_deinit(&der);
	return r;
}

static void root_free(struct root *r)
{
	key_unref(r->key);
	x509_unref(r->cert);
}

static struct svid *svid_by(const struct root *by, const char *id)
{
	struct err e = ERR_INIT;
	struct svid *s;
	struct key *k;
	struct buf der;
	struct bytes cert;

	CHECK_OK(key_generate(KEY_EC_P256, &k, &e));
	der = build(by, id, pubkey_spki(key_public(k)), false);
	cert = buf_view(&der);
	CHECK_OK(svid_new(&cert, 1, bytes_str("key"), bytes_of(NULL, 0), id, &s, &e));
	buf_deinit(&der);
	key_unref(k);
	return s;
}

static void put_bundle(struct rig *r, const struct root *a, bool tainted, const struct root *b)
{
	struct cache_update u = { .bundle = bundle_new("example.org") };

	bundle_add_root(u.bundle, a->cert, tainted);
	bundle_add_root(u.bundle, b->cert, false);
	cache_apply(r->cache, &u);
	cache_update_deinit(&u);
	loop_drain(r->loop);
}

static void sign_by(struct rig *r, const struct root *by, const char *entry_id)
{
	const struct record *rec = cache_find(r->cache, entry_id);
	struct svid *s = svid_by(by, rec->entry.spiffe_id);

	cache_signed(r->cache, entry_id, rec->entry.revision_number, s);
	svid_unref(s);
}

static int64_t due_in_ms(struct rig *r, const char *entry_id)
{
	return (cache_find(r->cache, entry_id)->due - wall_ns(clock_wall())) / NS_PER_MS;
}

static void test_taint(void)
{
	struct rig r = rig_new(100);
	struct root old = root_new(), new = root_new();
	struct view *v;

	put_bundle(&r, &old, false, &new);
	for (const char *const *id = (const char *const[]){ "1", "2", "3", "4", NULL }; *id; id++)
		put(r.cache, entry_of(*id, *id, **id == '1' ? "unix:uid:1" : "unix:uid:2"));
	v = view_of(r.cache, "unix:uid:1");
	view_use_x509(v);
	while (cache_next_wanted(r.cache))
		;
	sign_by(&r, &old, "1");
	sign_by(&r, &old, "2");
	sign_by(&r, &new, "3");
	CHECK_INT(cache_find(r.cache, "4")->state, RECORD_SIGNING);
	CHECK(due_in_ms(&r, "1") > 1000000);
	put_bundle(&r, &old, true, &new);
	/* Those in use first; nothing at once; what is good stays. */
	CHECK(due_in_ms(&r, "1") <= 1600);
	CHECK(due_in_ms(&r, "2") > 1300 && due_in_ms(&r, "2") <= 3200);
	CHECK(due_in_ms(&r, "3") > 1000000);
	CHECK_INT(cache_wanted(r.cache), 0);
	/* Signed before the taint, arrived after it. */
	sign_by(&r, &old, "4");
	CHECK(due_in_ms(&r, "4") <= 3200);
	CHECK(!cache_find(r.cache, "4")->again);
	view_unuse_x509(v);
	view_unref(v);
	root_free(&old);
	root_free(&new);
	rig_free(&r);
}

static void test_told_of_changes_only(void)
{
	struct rig r = rig_new(100);
	struct counter k = { .w.changed = count };
	struct view *v;

	put(r.cache, entry_of("1", "a", "unix:uid:1"));
	v = view_of(r.cache, "unix:uid:1");
	view_use_x509(v);
	sign_all(r.cache);
	list_append(&v->watchers, &k.w.link);
	put(r.cache, entry_of("2", "b", "unix:uid:2"));
	sign_all(r.cache);
	CHECK_INT(k.n, 0);
	put(r.cache, entry_of("3", "c", "unix:uid:1"));
	CHECK(k.n > 0);
	list_remove(&k.w.link);
	view_unuse_x509(v);
	view_unref(v);
	rig_free(&r);
}

static void test_nearest(void)
{
	struct rig r = rig_new(100);
	struct near_miss m[2];
	struct selectors s = sel("unix:uid:1 unix:gid:1");

	put(r.cache, entry_of("1", "a", "unix:uid:2 unix:gid:2"));
	put(r.cache, entry_of("2", "b", "unix:uid:1 unix:gid:2"));
	put(r.cache, entry_of("3", "c", "unix:uid:1"));
	put(r.cache, entry_of("4", "d", "unix:uid:3 unix:gid:4 unix:user:x"));
	CHECK_INT(cache_nearest(r.cache, &s, m, 2), 2);
	CHECK_STR(m[0].record->entry.id, "2");
	CHECK_INT(m[0].missing, 1);
	CHECK_STR(m[1].record->entry.id, "1");
	selectors_deinit(&s);
	rig_free(&r);
}

static void test_failed_does_not_hold_others_back(void)
{
	struct rig r = rig_new(100);
	struct view *v;
	struct record *rec;

	put(r.cache, entry_of("1", "a", "unix:uid:1"));
	sign_all(r.cache);
	put(r.cache, entry_of("2", "b", "unix:uid:1"));
	v = view_of(r.cache, "unix:uid:1");
	view_use_x509(v);
	CHECK(!view_ready(v));
	rec = cache_next_wanted(r.cache);
	CHECK_STR(rec->entry.id, "2");
	cache_sign_failed(r.cache, "2", false);
	CHECK(view_ready(v));
	CHECK_INT(cache_wanted(r.cache), 0); /* later, not at once */
	view_unuse_x509(v);
	view_unref(v);
	rig_free(&r);
}

static void test_export_import(void)
{
	struct rig a = rig_new(100), b = rig_new(100);
	AUTO_BUF struct buf plain = BUF_INIT_SECRET;

	put(a.cache, entry_of("1", "a", "unix:uid:1"));
	put(a.cache, entry_of("2", "b", "unix:uid:2 unix:gid:1"));
	sign_all(a.cache);
	cache_export(a.cache, &plain);
	cache_import(b.cache, buf_view(&plain));
	CHECK_INT(cache_count(b.cache), 2);
	CHECK_INT(cache_count_svids(b.cache), 2);
	CHECK_INT(cache_wanted(b.cache), 0);
	CHECK_STR(cache_find(b.cache, "2")->svid->serial, cache_find(a.cache, "2")->svid->serial);
	/* Cut anywhere: what is whole is taken, nothing breaks. */
	for (size_t n = 0; n < plain.len; n += 7) {
		struct rig c = rig_new(100);

		cache_import(c.cache, bytes_of(plain.p, n));
		rig_free(&c);
	}
	rig_free(&a);
	rig_free(&b);
}

static void test_many_entries_match_fast(void)
{
	enum { N = 10000 };
	struct rig r = rig_new(10);
	struct cache_update u = { .full = true };
	struct view *v;
	struct mono t;

	u.entries = xcalloc(N, sizeof(struct entry));
	for (int i = 0; i < N; i++) {
		AUTO(free) char *id = xasprintf("%d", i);
		AUTO(free) char *s = xasprintf("unix:uid:0 k8s:ns:x k8s:pod-uid:%d", i);

		u.entries[u.n_entries++] = entry_of(id, id, s);
	}
	cache_apply(r.cache, &u);
	cache_update_deinit(&u);
	t = clock_mono();
	for (int i = 0; i < 1000; i++) {
		AUTO(free) char *s = xasprintf("unix:uid:0 k8s:ns:x k8s:pod-uid:%d", i);

		v = view_of(r.cache, s);
		CHECK_INT(v->n_matches, 1);
		view_unref(v);
	}
	fprintf(stderr, "%.1f us a match\n", (double)(clock_mono().ns - t.ns) / 1e6);
	rig_free(&r);
}

TEST_MAIN(TEST(test_matching), TEST(test_full_set_removes), TEST(test_hint_and_store),
	TEST(test_prefetch_and_evict), TEST(test_revision_resigns),
	TEST(test_changed_while_signing), TEST(test_renews_at_half_life), TEST(test_taint),
	TEST(test_told_of_changes_only), TEST(test_nearest),
	TEST(test_failed_does_not_hold_others_back), TEST(test_export_import),
	TEST(test_many_entries_match_fast))

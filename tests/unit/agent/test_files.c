/* Covers: agent/files_argv.c agent/files_options.c agent/files_options_table.c
 * agent/files_content.c agent/files_disk.c agent/files_notify.c agent/files_out.c
 * agent/files_health.c */
#include "agent/files.h"

#include <sys/resource.h>
#include <sys/stat.h>

#include "agent/files_argv.h"
#include "agent/files_internal.h"
#include "lib/jwt.h"
#include "tests/unit/config_golden.inc"
#include "tests/unit/x509_make.inc"

/* ---- arguments ---- */

static void test_argv(void)
{
	/* Each is what encoding/csv of Go makes of it with a blank for the comma. */
	static const struct {
		const char *text, *want; /* joined by "|"; NULL: an error */
	} cases[] = {
		{ "", "" },
		{ "a", "a|" },
		{ "a b", "a|b|" },
		{ "a  b", "a||b|" },
		{ " a", "|a|" },
		{ "a ", "a||" },
		{ "-c \"echo hello\"", "-c|echo hello|" },
		{ "\"say \"\"hi\"\" now\" x", "say \"hi\" now|x|" },
		{ "'one two'", "'one|two'|" },
		{ "\"\"", "|" },
		{ "\"\" \"\"", "||" },
		{ "\"a\" ", "a||" },
		{ "a\\ b", "a\\|b|" },
		{ "a\tb", "a\tb|" },
		{ "\"a\nb\" c", "a\nb|c|" },
		{ "\"a\r\nb\" c", "a\nb|c|" },
		{ "a\nb", "a|" },
		{ "\n\r\na b\n", "a|b|" },
		{ "a\r", "a|" },
		{ "a\rb", "a\rb|" },
		{ "a\"b", NULL },
		{ "\"a", NULL },
		{ "\"a\"b", NULL },
		{ "\"a\n", NULL },
		{ "\n", NULL },
		{ "\r", NULL },
	};

	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct strings args = { NULL, 0 };
		AUTO_BUF struct buf got = BUF_INIT;
		struct err e = ERR_INIT;
		int r = files_argv_parse(cases[i].text, &args, &e);

		if (!cases[i].want) {
			CHECK_INT(r, ERR_INVALID);
			CHECK_INT(args.n, 0);
			continue;
		}
		CHECK_INT(r, 0);
		for (size_t k = 0; k < args.n; k++)
			buf_printf(&got, "%s|", args.v[k]);
		CHECK_STR(buf_cstr(&got), cases[i].want);
		strings_deinit(&args);
	}
}

static void test_argv_bounds(void)
{
	AUTO(free) char *long_text = xmalloc(FILES_ARGV_MAX + 2);
	struct strings args = { NULL, 0 };
	struct err e;

	memset(long_text, 'a', FILES_ARGV_MAX + 1);
	long_text[FILES_ARGV_MAX + 1] = 0;
	CHECK_ERR(files_argv_parse(long_text, &args, &e), ERR_INVALID);
	long_text[FILES_ARGV_MAX] = 0;
	CHECK_OK(files_argv_parse(long_text, &args, &e));
	CHECK_INT(args.n, 1);
	CHECK_INT(strlen(args.v[0]), FILES_ARGV_MAX);
	strings_deinit(&args);
	memset(long_text, ' ', FILES_ARGS_MAX);
	long_text[FILES_ARGS_MAX] = 0;
	CHECK_ERR(files_argv_parse(long_text, &args, &e), ERR_INVALID);
	long_text[FILES_ARGS_MAX - 1] = 0;
	CHECK_OK(files_argv_parse(long_text, &args, &e));
	CHECK_INT(args.n, FILES_ARGS_MAX);
	strings_deinit(&args);
}

/* ---- options ---- */

static void golden_load(const char *file, struct buf *ret)
{
	struct files_flags f = { .config = file, .daemon = -1 };
	AUTO_BUF struct buf problems = BUF_INIT;
	struct files_options o;
	struct err e;

	unsetenv("SPIFFE_ENDPOINT_SOCKET");
	unsetenv("SPIRE_AGENT_ADDRESS");
	if (files_options_load(&o, &f, &problems, &e)) {
		buf_printf(ret, "%s%s\n", buf_cstr(&problems), e.msg);
		return;
	}
	files_options_print(&o, ret);
	golden_warnings(&o.warnings, ret);
	files_options_deinit(&o);
}

static void test_golden(void)
{
	golden_all("tests/config/files");
}

static void load(const char *text, int daemon, struct files_options *o)
{
	AUTO(free) char *path = xasprintf("%s/helper.conf", test_dir());
	struct files_flags f = { .config = path, .daemon = daemon };
	AUTO_BUF struct buf problems = BUF_INIT;
	struct err e;

	CHECK_OK(buf_write_file(bytes_str(text), path, 0600, &e));
	if (files_options_load(o, &f, &problems, &e))
		TEST_FAIL("%s%s", buf_cstr(&problems), e.msg);
	unlink(path);
}

#define X509 "svid_file_name=\"a\" svid_key_file_name=\"b\" svid_bundle_file_name=\"c\" "

/* The flag goes before the file, the file before the environment. */
static void test_options_flags(void)
{
	struct files_options o;

	setenv("SPIFFE_ENDPOINT_SOCKET", "unix:///run/env.sock", 1);
	load(X509, -1, &o);
	CHECK(o.daemon);
	CHECK_STR(o.agent_path, "/run/env.sock");
	files_options_deinit(&o);
	load(X509 "agent_address=\"/run/f\" daemon_mode=true", 0, &o);
	CHECK(!o.daemon);
	CHECK_STR(o.agent_path, "/run/f");
	files_options_deinit(&o);
	unsetenv("SPIFFE_ENDPOINT_SOCKET");
	load(X509 "daemon_mode=false", 1, &o);
	CHECK(o.daemon);
	CHECK_STR(o.agent_path, FILES_AGENT_DEFAULT);
	files_options_deinit(&o);
	rmdir(test_dir());
}

static void test_signal_names(void)
{
	CHECK_INT(files_signal("SIGHUP"), SIGHUP);
	CHECK_INT(files_signal("USR1"), SIGUSR1);
	CHECK_INT(files_signal("SIGWINCH"), SIGWINCH);
	CHECK_INT(files_signal("SIGPOLL"), SIGIO);
	CHECK_INT(files_signal("sighup"), 0);
	CHECK_INT(files_signal(""), 0);
	CHECK_INT(files_signal("1"), 0);
}

static void test_describe(void)
{
	AUTO_BUF struct buf b = BUF_INIT;

	files_options_describe(&b);
	CHECK_CONTAINS(buf_cstr(&b), "| `agent_address` |");
	CHECK_CONTAINS(buf_cstr(&b), "## `health_checks`");
	CHECK_CONTAINS(buf_cstr(&b), "| `svid_combined_file_name` |");
	CHECK_CONTAINS(buf_cstr(&b), "| `jwt_extra_audiences` |");
}

/* ---- on the disk ---- */

static char *file(const char *name)
{
	return xasprintf("%s/%s", test_dir(), name);
}

static char *content(const char *name)
{
	AUTO(free) char *path = file(name);
	struct buf b = BUF_INIT;
	struct err e;

	return buf_read_file(&b, path, &e) ? xstrdup(e.msg) : buf_take_str(&b);
}

static void put_file(const char *name, const char *text, unsigned mode)
{
	AUTO(free) char *path = file(name);
	struct err e;

	CHECK_OK(buf_write_file(bytes_str(text), path, mode, &e));
}

static bool is_link(const char *name)
{
	AUTO(free) char *path = file(name);
	struct stat st;

	return lstat(path, &st) == 0 && S_ISLNK(st.st_mode);
}

static int count(const char *shell)
{
	AUTO(free) char *cmd = xasprintf("cd %s && %s", test_dir(), shell);
	AUTO(free) char *out = xasprintf("%s.count", test_dir());
	AUTO_BUF struct buf b = BUF_INIT;
	struct err e;
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		CHECK(freopen(out, "w", stdout));
		execl("/bin/sh", "sh", "-c", cmd, (char *)NULL);
		_exit(1);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK_OK(buf_read_file(&b, out, &e));
	unlink(out);
	return (int)strtol(buf_cstr(&b), NULL, 10);
}

static int write_two(struct files_disk *d, const char *a, const char *b, struct err *e)
{
	struct files_item items[] = { { "cert", 0644, bytes_str(a) },
		{ "key", 0600, bytes_str(b) } };

	return files_disk_write(d, items, 2, (uid_t)-1, (gid_t)-1, e);
}

static void check_two(const char *a, const char *b)
{
	AUTO(free) char *cert = content("cert");
	AUTO(free) char *key = content("key");

	CHECK_STR(cert, a);
	CHECK_STR(key, b);
	CHECK(is_link("cert") && is_link("key"));
}

static void remove_dir(void)
{
	AUTO(free) char *cmd = xasprintf("rm -rf %s; echo 1", test_dir());

	CHECK_INT(count(cmd), 1);
}

static void test_disk_changes_together(void)
{
	struct files_disk *d;
	struct stat st;
	struct err e;
	AUTO(free) char *key = file("key");
	AUTO_BUF struct buf b = BUF_INIT;

	CHECK_OK(files_disk_open(test_dir(), "", &d, &e));
	CHECK(!files_disk_read(d, "cert", 0644, (uid_t)-1, (gid_t)-1, &b));
	CHECK_OK(write_two(d, "c1", "k1", &e));
	check_two("c1", "k1");
	CHECK(stat(key, &st) == 0);
	CHECK_INT(st.st_mode & 07777, 0600);
	CHECK(files_disk_read(d, "cert", 0644, (uid_t)-1, (gid_t)-1, &b));
	CHECK_STR(buf_cstr(&b), "c1");
	buf_reset(&b);
	CHECK(!files_disk_read(d, "cert", 0640, (uid_t)-1, (gid_t)-1, &b));
	CHECK_STR(buf_cstr(&b), "c1");
	CHECK_OK(write_two(d, "c2", "k2", &e));
	check_two("c2", "k2");
	/* those before stay for their time, and not more of them than so many */
	CHECK_INT(count("ls -d ..data.????* | grep -v lock | wc -l"), 2);
	CHECK(files_disk_sweep(d, 3600 * NS_PER_SEC));
	for (int i = 0; i < FILES_DISK_KEPT + 3; i++)
		CHECK_OK(write_two(d, "c3", "k3", &e));
	CHECK_INT(count("ls -d ..data.????* | grep -v lock | wc -l"), FILES_DISK_KEPT + 1);
	CHECK(!files_disk_sweep(d, 0));
	CHECK_INT(count("ls -d ..data.????* | grep -v lock | wc -l"), 1);
	check_two("c3", "k3");
	files_disk_close(d);
	remove_dir();
}

/* Files of another program become links, with the same content until the set changes. */
static void test_disk_takes_over(void)
{
	struct files_disk *d;
	struct err e;
	struct files_item nested = { "sub/x.pem", 0644, bytes_str("deep") };
	AUTO(free) char *sub = file("sub");
	AUTO(free) char *deep = NULL;

	put_file("cert", "old cert", 0644);
	put_file("key", "old key", 0600);
	put_file("other", "not ours", 0644);
	CHECK_OK(files_disk_open(test_dir(), "", &d, &e));
	CHECK_OK(write_two(d, "c1", "k1", &e));
	check_two("c1", "k1");
	CHECK(!is_link("other"));
	CHECK_INT(count("cat ..data.*/cert | grep -c 'old cert'"), 1); /* the set before */
	/* Somebody has put a plain file there again: it is mended with the next set. */
	put_file("cert", "by hand", 0644);
	CHECK(!is_link("cert"));
	CHECK_OK(write_two(d, "c2", "k2", &e));
	check_two("c2", "k2");
	files_disk_close(d);
	CHECK(mkdir(sub, 0755) == 0);
	CHECK_OK(files_disk_open(test_dir(), "more", &d, &e));
	CHECK_OK(files_disk_write(d, &nested, 1, (uid_t)-1, (gid_t)-1, &e));
	deep = content("sub/x.pem");
	CHECK_STR(deep, "deep");
	check_two("c2", "k2"); /* two sets in one folder */
	files_disk_close(d);
	remove_dir();
}

static void test_disk_after_a_kill(void)
{
	struct files_disk *d, *second;
	AUTO(free) char *half = file("..data.0123456789abcdef");
	AUTO(free) char *link = file("..data.new");
	AUTO(free) char *not_ours = file("..data.backup");
	struct err e;

	CHECK_OK(files_disk_open(test_dir(), "", &d, &e));
	CHECK_OK(write_two(d, "c1", "k1", &e));
	CHECK_ERR(files_disk_open(test_dir(), "", &second, &e), ERR_PRECONDITION);
	CHECK_CONTAINS(e.msg, "another process keeps files in");
	files_disk_close(d);
	CHECK(mkdir(half, 0700) == 0 && mkdir(not_ours, 0700) == 0);
	put_file("..data.0123456789abcdef/cert", "half", 0600);
	CHECK(symlink("..data.0123456789abcdef", link) == 0);
	CHECK_OK(files_disk_open(test_dir(), "", &d, &e));
	check_two("c1", "k1");
	CHECK(access(half, F_OK) != 0 && access(link, F_OK) != 0 && access(not_ours, F_OK) == 0);
	files_disk_close(d);
	remove_dir();
}

/* No room for the second file: the old set stays, and nothing of the new one. */
static void test_disk_full(void)
{
	AUTO(free) char *big = xcalloc(1, 65537);
	struct rlimit was, small;
	struct files_disk *d;
	struct err e;

	memset(big, 'x', 65536);
	signal(SIGXFSZ, SIG_IGN);
	CHECK_OK(files_disk_open(test_dir(), "", &d, &e));
	CHECK_OK(write_two(d, "c1", "k1", &e));
	CHECK(getrlimit(RLIMIT_FSIZE, &was) == 0);
	small = was;
	small.rlim_cur = 4096;
	CHECK(setrlimit(RLIMIT_FSIZE, &small) == 0);
	CHECK(write_two(d, "c2", big, &e) != 0);
	CHECK_CONTAINS(e.msg, "cannot write key");
	CHECK(setrlimit(RLIMIT_FSIZE, &was) == 0);
	check_two("c1", "k1");
	CHECK_INT(count("ls -d ..data.????* | grep -v lock | wc -l"), 1);
	CHECK_OK(write_two(d, "c2", big, &e));
	check_two("c2", big);
	files_disk_close(d);
	remove_dir();
}

/* What somebody has linked into the present set is not taken for our own. */
static void test_disk_foreign_link(void)
{
	AUTO(free) char *secret = file("secret");
	AUTO(free) char *token = file("..data/token");
	AUTO_BUF struct buf b = BUF_INIT;
	struct files_disk *d;
	struct err e;

	CHECK_OK(files_disk_open(test_dir(), "", &d, &e));
	CHECK_OK(write_two(d, "c1", "k1", &e));
	put_file("secret", "of somebody else", 0600);
	CHECK(link(secret, token) == 0);
	CHECK(!files_disk_read(d, "token", 0600, (uid_t)-1, (gid_t)-1, &b));
	CHECK_INT(b.len, 0);
	unlink(token);
	CHECK(symlink(secret, token) == 0);
	CHECK(!files_disk_read(d, "token", 0600, (uid_t)-1, (gid_t)-1, &b));
	CHECK_INT(b.len, 0);
	files_disk_close(d);
	remove_dir();
}

static void test_disk_drops_links(void)
{
	struct files_item one = { "cert", 0644, bytes_str("c2") };
	AUTO(free) char *key = file("key");
	struct files_disk *d;
	struct stat st;
	struct err e;

	CHECK_OK(files_disk_open(test_dir(), "", &d, &e));
	CHECK_OK(write_two(d, "c1", "k1", &e));
	CHECK_OK(files_disk_write(d, &one, 1, (uid_t)-1, (gid_t)-1, &e));
	CHECK(lstat(key, &st) != 0);
	files_disk_close(d);
	remove_dir();
}

/* ---- content ---- */

struct world {
	struct test_ca ca, other;
	struct key *key;
	struct buf leaf, root, foreign, pkcs8;
	X509SVID svids[2], *list[2];
	X509SVIDResponse m;
	X509SVIDResponse__FederatedBundlesEntry fed, *feds[1];
};

static ProtobufCBinaryData data_of(struct buf *b)
{
	return (ProtobufCBinaryData){ .len = b->len, .data = b->p };
}

static void world_init(struct world *w)
{
	struct x509_cert *leaf;

	*w = (struct world){
		.leaf = BUF_INIT, .root = BUF_INIT, .foreign = BUF_INIT, .pkcs8 = BUF_INIT_SECRET
	};
	w->ca = test_ca(KEY_EC_P256, "ca", NULL, test_now);
	w->other = test_ca(KEY_EC_P256, "other", NULL, test_now);
	w->key = test_key(KEY_EC_P256);
	leaf = test_cert(w->key, NULL, "spiffe://example.org/a", false, &w->ca, test_now);
	buf_bytes(&w->leaf, x509_der(leaf));
	buf_bytes(&w->leaf, x509_der(w->ca.cert)); /* as if it were an intermediate */
	buf_bytes(&w->root, x509_der(w->ca.cert));
	buf_bytes(&w->foreign, x509_der(w->other.cert));
	key_to_pkcs8(w->key, &w->pkcs8);
	x509_unref(leaf);
	w->m = (X509SVIDResponse)X509_SVIDRESPONSE__INIT;
	for (int i = 0; i < 2; i++) {
		w->svids[i] = (X509SVID)X509_SVID__INIT;
		w->svids[i].spiffe_id = (char *)(uintptr_t) "spiffe://example.org/a";
		w->svids[i].hint = (char *)(uintptr_t)(i ? "second" : "");
		w->svids[i].x509_svid = data_of(&w->leaf);
		w->svids[i].x509_svid_key = data_of(&w->pkcs8);
		w->svids[i].bundle = data_of(&w->root);
		w->list[i] = &w->svids[i];
	}
	w->m.svids = w->list;
	w->m.n_svids = 2;
	w->fed = (X509SVIDResponse__FederatedBundlesEntry)
		X509_SVIDRESPONSE__FEDERATED_BUNDLES_ENTRY__INIT;
	w->fed.key = (char *)(uintptr_t) "spiffe://other.org";
	w->fed.value = data_of(&w->foreign);
	w->feds[0] = &w->fed;
	w->m.federated_bundles = w->feds;
	w->m.n_federated_bundles = 1;
}

static void world_deinit(struct world *w)
{
	test_ca_free(&w->ca);
	test_ca_free(&w->other);
	key_unref(w->key);
	buf_deinit(&w->leaf);
	buf_deinit(&w->root);
	buf_deinit(&w->foreign);
	buf_deinit(&w->pkcs8);
}

static int certs_in(const struct buf *pem)
{
	int n = 0;

	for (const char *p = buf_cstr(pem); (p = strstr(p, "BEGIN CERT")) != NULL; p++)
		n++;
	return n;
}

static void check_made(
	struct world *w, const struct files_set_options *o, int certs, int bundle, int combined)
{
	struct files_x509 x;
	struct err e;

	CHECK_OK(files_x509_make(&x, o, &w->m, test_now, &e));
	CHECK_INT(certs_in(&x.svid), certs);
	CHECK_INT(certs_in(&x.bundle), bundle);
	CHECK_INT(certs_in(&x.combined), combined);
	CHECK_CONTAINS(buf_cstr(&x.key), "-----BEGIN PRIVATE KEY-----");
	CHECK_CONTAINS(buf_cstr(&x.combined), "-----BEGIN PRIVATE KEY-----");
	CHECK_STR(x.spiffe_id, "spiffe://example.org/a");
	files_x509_deinit(&x);
}

static void test_content_x509(void)
{
	struct files_set_options o = { NULL };
	struct files_x509 x = { .spiffe_id = NULL };
	struct world w;
	struct err e;

	world_init(&w);
	check_made(&w, &o, 2, 1, 2);
	o.add_intermediates = true;
	check_made(&w, &o, 1, 2, 2);
	o.include_federated = true;
	check_made(&w, &o, 1, 3, 2);
	o.hint = (char *)(uintptr_t) "second";
	check_made(&w, &o, 1, 3, 2);
	o.hint = (char *)(uintptr_t) "third";
	CHECK_ERR(files_x509_make(&x, &o, &w.m, test_now, &e), ERR_NOT_FOUND);
	CHECK_CONTAINS(e.msg, "failed to find the hinted x509 SVID");
	o.hint = NULL;
	o.spiffe_id = (char *)(uintptr_t) "spiffe://example.org/b";
	CHECK_ERR(files_x509_make(&x, &o, &w.m, test_now, &e), ERR_NOT_FOUND);
	CHECK_CONTAINS(e.msg, "spiffe://example.org/b");
	o = (struct files_set_options){ .omit_expired = true };
	CHECK_OK(files_x509_make(&x, &o, &w.m, wall_add_ns(test_now, 7200 * NS_PER_SEC), &e));
	CHECK_INT(certs_in(&x.svid) + certs_in(&x.bundle), 0);
	files_x509_deinit(&x);
	world_deinit(&w);
}

/* What is not whole is no set. */
static void test_content_refused(void)
{
	struct files_set_options o = { .include_federated = true };
	struct key *stranger = test_key(KEY_EC_P256);
	AUTO_BUF struct buf pkcs8 = BUF_INIT_SECRET;
	struct files_x509 x = { .spiffe_id = NULL };
	struct world w;
	struct err e;

	key_to_pkcs8(stranger, &pkcs8);
	key_unref(stranger);
	world_init(&w);
	w.svids[0].x509_svid_key = data_of(&pkcs8);
	CHECK_ERR(files_x509_make(&x, &o, &w.m, test_now, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "the key is not the certificate's");
	w.svids[0].x509_svid_key = data_of(&w.pkcs8);
	w.svids[0].spiffe_id = (char *)(uintptr_t) "spiffe://example.org/else";
	CHECK_ERR(files_x509_make(&x, &o, &w.m, test_now, &e), ERR_INVALID);
	w.svids[0].spiffe_id = (char *)(uintptr_t) "spiffe://example.org/a";
	w.svids[0].bundle.len = 0;
	CHECK_ERR(files_x509_make(&x, &o, &w.m, test_now, &e), ERR_INVALID);
	w.svids[0].bundle = data_of(&w.root);
	w.fed.value.len--;
	CHECK_ERR(files_x509_make(&x, &o, &w.m, test_now, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "other.org");
	w.m.n_svids = 0;
	CHECK_ERR(files_x509_make(&x, &o, &w.m, test_now, &e), ERR_NOT_FOUND);
	CHECK(!x.spiffe_id);
	world_deinit(&w);
}

static void test_content_jwt_bundle(void)
{
	JWTBundlesResponse__BundlesEntry b = JWTBUNDLES_RESPONSE__BUNDLES_ENTRY__INIT;
	JWTBundlesResponse__BundlesEntry *list[] = { &b };
	JWTBundlesResponse m = JWTBUNDLES_RESPONSE__INIT;
	static const char jwks[] = "{ \"keys\": [ ] }";
	AUTO_BUF struct buf got = BUF_INIT;
	struct err e;

	b.key = (char *)(uintptr_t) "spiffe://example.org";
	b.value = (ProtobufCBinaryData){ .len = strlen(jwks), .data = (uint8_t *)(uintptr_t)jwks };
	m.bundles = list;
	m.n_bundles = 1;
	CHECK_OK(files_jwt_bundle_make(&got, &m, &e));
	CHECK_STR(buf_cstr(&got), "{\"example.org\":\"eyJrZXlzIjpbXX0=\"}");
	b.value.len--;
	buf_reset(&got);
	CHECK_ERR(files_jwt_bundle_make(&got, &m, &e), ERR_INVALID);
	CHECK_INT(got.len, 0);
}

static void test_content_jwt(void)
{
	static const char *const aud[] = { "a", "b" };
	struct jwt_claims c = { .sub = "spiffe://example.org/a",
		.aud = aud,
		.n_aud = 2,
		.iat = test_now.sec,
		.exp = test_now.sec + 300 };
	struct files_set_options o = { NULL };
	struct key *k = test_key(KEY_EC_P256);
	struct x509_signer s = { .type = KEY_EC_P256, .sign = test_sign, .arg = k };
	AUTO_BUF struct buf token = BUF_INIT, got = BUF_INIT;
	struct files_jwt j = { .file = NULL };
	JWTSVID svid = JWTSVID__INIT, *list[] = { &svid };
	JWTSVIDResponse m = JWTSVIDRESPONSE__INIT;
	int64_t expires = 0;
	struct err e;

	strings_add(&j.audience, "a");
	CHECK_OK(jwt_sign(&c, "kid", &s, &token, &e));
	svid.spiffe_id = (char *)(uintptr_t)c.sub;
	svid.svid = (char *)(uintptr_t)buf_cstr(&token);
	m.svids = list;
	m.n_svids = 1;
	CHECK_OK(files_jwt_make(&got, &expires, &o, &j, &m, test_now, &e));
	CHECK_BYTES(buf_view(&got), buf_view(&token));
	CHECK_INT(expires, c.exp);
	CHECK_ERR(files_jwt_make(&got, &expires, &o, &j, &m, wall_of_sec(c.exp), &e), ERR_INVALID);
	strings_deinit(&j.audience);
	strings_add(&j.audience, "c");
	CHECK_ERR(files_jwt_make(&got, &expires, &o, &j, &m, test_now, &e), ERR_INVALID);
	o.hint = (char *)(uintptr_t) "no";
	CHECK_ERR(files_jwt_make(&got, &expires, &o, &j, &m, test_now, &e), ERR_NOT_FOUND);
	CHECK_CONTAINS(e.msg, "failed to find the hinted JWT SVID");
	strings_deinit(&j.audience);
	key_unref(k);
}

/* ---- telling ---- */

static volatile sig_atomic_t got_signal;

static void on_usr1(int signo)
{
	got_signal = signo;
}

static void test_pid_file(void)
{
	static const char *const wrong[] = { "", "x", "0", "-1", "1 2", "99999999999" };
	AUTO(free) char *path = file("pid");
	AUTO(free) char *own = xasprintf(" %d\n", (int)getpid());
	pid_t pid = 0, child = fork();
	struct err e;

	if (child == 0)
		_exit(0);
	CHECK(waitpid(child, NULL, 0) == child);
	signal(SIGUSR1, on_usr1);
	CHECK_ERR(files_signal_pid_file(path, SIGUSR1, &pid, &e), ERR_NOT_FOUND);
	CHECK_CONTAINS(e.msg, "failed to read pid file");
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
		put_file("pid", wrong[i], 0600);
		CHECK_ERR(files_signal_pid_file(path, SIGUSR1, &pid, &e), ERR_INVALID);
	}
	CHECK(!got_signal && !pid);
	put_file("pid", own, 0600);
	CHECK_OK(files_signal_pid_file(path, SIGUSR1, &pid, &e));
	CHECK_INT(got_signal, SIGUSR1);
	CHECK_INT(pid, getpid());
	free(own);
	own = xasprintf("%d", (int)child);
	put_file("pid", own, 0600);
	CHECK_ERR(files_signal_pid_file(path, SIGUSR1, &pid, &e), ERR_NOT_FOUND);
	remove_dir();
}

static void stop_loop(void *arg)
{
	loop_stop(arg);
}

static void run_for(struct loop *l, int ms)
{
	struct loop_timer *t = loop_timer_new(l, stop_loop, l);

	loop_timer_set(t, ms * NS_PER_MS);
	loop_run(l);
	loop_timer_free(t);
}

static void wait_count(struct loop *l, const char *shell, int want)
{
	for (int i = 0; i < 200 && count(shell) != want; i++)
		run_for(l, 20);
	CHECK_INT(count(shell), want);
}

/* Started once, then signalled; started again when it has ended. */
static void test_program(void)
{
	AUTO(free)
	char *script = xasprintf("cd %s; echo start >>log; trap 'echo hup >>log' HUP; "
				 "while [ ! -e stop ]; do sleep 0.05; done; echo end >>log",
		test_dir());
	struct files_set_options o = { .signo = SIGHUP, .cmd = (char *)(uintptr_t) "sh" };
	struct loop *l = loop_new();
	struct files_notify *n;

	strings_add(&o.argv, "sh");
	strings_add(&o.argv, "-c");
	strings_add(&o.argv, script);
	n = files_notify_new(l, &o);
	files_notify(n);
	wait_count(l, "grep -c start log", 1);
	run_for(l, 100); /* until its trap is set */
	files_notify(n);
	wait_count(l, "grep -c hup log", 1);
	put_file("stop", "", 0600);
	wait_count(l, "grep -c end log", 1);
	run_for(l, 100);
	CHECK_INT(count("grep -c start log"), 1);
	files_notify(n);
	wait_count(l, "grep -c end log", 2);
	run_for(l, 100);
	files_notify_free(n);
	loop_run(l);
	loop_free(l);
	strings_deinit(&o.argv);
	remove_dir();
}

/* Without a signal, what changed while it ran is made up for when it ends. */
static void test_program_missed(void)
{
	AUTO(free) char *script = xasprintf("cd %s; echo start >>log; sleep 0.3", test_dir());
	struct files_set_options o = { .cmd = (char *)(uintptr_t) "/bin/sh" };
	struct loop *l = loop_new();
	struct files_notify *n;

	strings_add(&o.argv, "sh");
	strings_add(&o.argv, "-c");
	strings_add(&o.argv, script);
	n = files_notify_new(l, &o);
	files_notify(n);
	files_notify(n);
	files_notify(n);
	wait_count(l, "grep -c start log", 2);
	run_for(l, 600);
	CHECK_INT(count("grep -c start log"), 2);
	files_notify_free(n);
	loop_run(l);
	loop_free(l);
	strings_deinit(&o.argv);
	remove_dir();
}

/* ---- health ---- */

static void test_health(void)
{
	struct files_options options = { .daemon = true };
	struct files_set_options set = { .cert_dir = (char *)(uintptr_t) "/c/" };
	struct files_slot slots[] = { { .kind = FILES_SVID, .name = "a" },
		{ .kind = FILES_JWT, .name = "t" } };
	struct files_out out = { .o = &set, .slots = slots, .n_slots = 2 };
	struct files f = { .o = &options, .outs = &out, .n_outs = 1 };
	AUTO_BUF struct buf b = BUF_INIT;

	CHECK(files_is_live(&f) && !files_is_ready(&f));
	slots[0].status = FILES_WRITTEN;
	slots[1].status = FILES_FAILED;
	CHECK(!files_is_live(&f) && !files_is_ready(&f));
	files_health_json(&f, false, &b);
	CHECK_STR(buf_cstr(&b), "{\"status\":\"Service Unavailable\",\"health\":{\"file_write_"
				"statuses\":{\"x509_write_status\":\"written\",\"jwt_write_"
				"status\":{\"/c/t\":\"failed\"}}}}");
	slots[1].status = FILES_WRITTEN;
	CHECK(files_is_live(&f) && files_is_ready(&f));
	out.n_slots = 1;
	slots[0].kind = FILES_JWT_BUNDLE;
	buf_reset(&b);
	files_health_json(&f, true, &b);
	CHECK_STR(buf_cstr(&b), "{\"status\":\"OK\",\"health\":{\"file_write_statuses\":{\"jwt_"
				"write_status\":{\"/c/a\":\"written\"}}}}");
}

TEST_MAIN(TEST(test_argv), TEST(test_argv_bounds), TEST(test_golden), TEST(test_options_flags),
	TEST(test_signal_names), TEST(test_describe), TEST(test_disk_changes_together),
	TEST(test_disk_takes_over), TEST(test_disk_after_a_kill), TEST(test_disk_full),
	TEST(test_disk_foreign_link), TEST(test_disk_drops_links), TEST(test_content_x509),
	TEST(test_content_refused), TEST(test_content_jwt_bundle), TEST(test_content_jwt),
	TEST(test_pid_file), TEST(test_program), TEST(test_program_missed), TEST(test_health))

#include "lib/keymgr.h"

#include <sys/stat.h>

#include "tests/test.h"

/* Made with: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -outform DER */
#define SPIRE_FILE                                                                                 \
	"{\"keys\":{\"x509-CA-A\":"                                                                \
	"\"MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgtt86160iN3uxea8IcCnyQ9jBMB2IWj8oaG8vn8" \
	"zps2ChRANCAAQVM+UEZGsRM9R9sCB2yJJrz4pBo1k+"                                               \
	"aCxS2LIPMFPazCoMESh6fMhEyF08F0evpfLtlXBdyQAEkwk0kAecpGl1\"}}\n"

static const char *keys_path(void)
{
	static char path[100];

	snprintf(path, sizeof(path), "%s/keys.json", test_dir());
	return path;
}

static void put_file(const char *text, unsigned mode)
{
	struct err e = ERR_INIT;

	CHECK_OK(buf_write_file(bytes_str(text), keys_path(), mode, &e));
}

static void check_signs(struct keymgr_signer *s, struct pubkey *p)
{
	AUTO_BUF struct buf sig = BUF_INIT;
	struct err e = ERR_INIT;
	enum hash h = key_type_hash(keymgr_signer_type(s));
	uint8_t digest[HASH_MAX];

	hash_of(h, bytes_str("hello"), digest);
	CHECK_OK(keymgr_sign(s, h, bytes_of(digest, hash_size(h)), SIG_X509, &sig, &e));
	CHECK_OK(pubkey_verify(p, h, bytes_of(digest, hash_size(h)), SIG_X509, buf_view(&sig), &e));
}

static void exercise(struct keymgr *m)
{
	AUTO(pubkey_unref) struct pubkey *a = NULL, *b = NULL, *p = NULL;
	AUTO(keymgr_signer_unref) struct keymgr_signer *s = NULL;
	struct strings names = { .n = 0 };
	struct err e = ERR_INIT;

	CHECK_ERR(keymgr_public(m, "x", &p, &e), ERR_NOT_FOUND);
	CHECK_OK(keymgr_generate(m, "x", KEY_EC_P256, &a, &e));
	CHECK_OK(keymgr_signer(m, "x", &s, &e));
	check_signs(s, a);
	/* The handle stays with its key. */
	CHECK_OK(keymgr_generate(m, "x", KEY_EC_P384, &b, &e));
	check_signs(s, a);
	CHECK_INT(keymgr_signer_type(s), KEY_EC_P256);
	CHECK_OK(keymgr_public(m, "x", &p, &e));
	CHECK_BYTES(pubkey_spki(p), pubkey_spki(b));
	CHECK_OK(keymgr_generate(m, "w", KEY_EC_P256, NULL, &e));
	CHECK_OK(keymgr_list(m, &names, &e));
	CHECK_INT(names.n, 2);
	CHECK_STR(names.v[0], "w");
	strings_deinit(&names);
	CHECK_OK(keymgr_delete(m, "w", &e));
	CHECK_ERR(keymgr_delete(m, "w", &e), ERR_NOT_FOUND);
	CHECK_ERR(keymgr_signer(m, "w", &s, &e), ERR_NOT_FOUND);
	check_signs(s, a);
}

static void test_memory(void)
{
	AUTO(keymgr_free) struct keymgr *m = NULL;
	struct err e = ERR_INIT;

	crypto_init();
	CHECK_OK(keymgr_memory_new(&m, &e));
	exercise(m);
}

static void test_disk(void)
{
	AUTO(pubkey_unref) struct pubkey *before = NULL, *after = NULL;
	struct keymgr *m = NULL;
	struct err e = ERR_INIT;
	struct stat st;

	crypto_init();
	CHECK_OK(keymgr_disk_new(keys_path(), &m, &e));
	exercise(m);
	CHECK_OK(keymgr_public(m, "x", &before, &e));
	keymgr_free(m);
	CHECK_INT(stat(keys_path(), &st), 0);
	CHECK_INT(st.st_mode & 07777, 0600);
	CHECK_OK(keymgr_disk_new(keys_path(), &m, &e));
	CHECK_OK(keymgr_public(m, "x", &after, &e));
	CHECK_BYTES(pubkey_spki(before), pubkey_spki(after));
	keymgr_free(m);
}

static void test_spire_file(void)
{
	AUTO(keymgr_signer_unref) struct keymgr_signer *s = NULL;
	AUTO(keymgr_free) struct keymgr *m = NULL;
	struct err e = ERR_INIT;

	crypto_init();
	put_file(SPIRE_FILE, 0600);
	CHECK_OK(keymgr_disk_new(keys_path(), &m, &e));
	CHECK_OK(keymgr_signer(m, "x509-CA-A", &s, &e));
	CHECK_INT(keymgr_signer_type(s), KEY_EC_P256);
	check_signs(s, keymgr_signer_public(s));
}

static void test_unsafe_mode(void)
{
	struct keymgr *m = NULL;
	struct err e = ERR_INIT;

	crypto_init();
	put_file(SPIRE_FILE, 0640);
	CHECK_ERR(keymgr_disk_new(keys_path(), &m, &e), ERR_DENIED);
	CHECK_CONTAINS(e.msg, keys_path());
	CHECK_CONTAINS(e.msg, "chmod 600");
	CHECK(m == NULL);
}

static void test_damaged(void)
{
	static const char *const bad[] = {
		"",
		"{",
		"[]",
		"{\"keys\":[]}",
		"{\"keys\":{\"a\":1}}",
		"{\"keys\":{\"a\":\"!!\"}}",
		"{\"keys\":{\"a\":\"AAAA\"}}",
		"{\"keys\":{\"a\":\"MIGH\"}} trailing",
	};
	struct keymgr *m = NULL;
	struct err e = ERR_INIT;

	crypto_init();
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		AUTO_BUF struct buf now = BUF_INIT;

		put_file(bad[i], 0600);
		CHECK_ERR(keymgr_disk_new(keys_path(), &m, &e), ERR_DATA_LOSS);
		CHECK_CONTAINS(e.msg, keys_path());
		CHECK(m == NULL);
		CHECK_OK(buf_read_file(&now, keys_path(), &e));
		CHECK_STR(buf_cstr(&now), bad[i]);
	}
	put_file("{\"keys\":null}", 0600);
	CHECK_OK(keymgr_disk_new(keys_path(), &m, &e));
	keymgr_free(m);
}

/* What cannot be saved did not happen. */
static void test_save_fails(void)
{
	AUTO(pubkey_unref) struct pubkey *before = NULL, *after = NULL, *none = NULL;
	AUTO(keymgr_free) struct keymgr *m = NULL;
	struct err e = ERR_INIT;
	char dir[120], path[160];

	crypto_init();
	snprintf(dir, sizeof(dir), "%s/d", test_dir());
	snprintf(path, sizeof(path), "%s/keys.json", dir);
	CHECK_INT(mkdir(dir, 0700), 0);
	CHECK_OK(keymgr_disk_new(path, &m, &e));
	CHECK_OK(keymgr_generate(m, "x", KEY_EC_P256, &before, &e));
	CHECK_INT(unlink(path) | rmdir(dir), 0);
	CHECK(keymgr_generate(m, "x", KEY_EC_P256, &none, &e) != 0);
	CHECK(keymgr_generate(m, "y", KEY_EC_P256, &none, &e) != 0);
	CHECK(keymgr_delete(m, "x", &e) != 0);
	CHECK(none == NULL);
	CHECK_OK(keymgr_public(m, "x", &after, &e));
	CHECK_BYTES(pubkey_spki(before), pubkey_spki(after));
	CHECK_ERR(keymgr_public(m, "y", &none, &e), ERR_NOT_FOUND);
}

/* Another program's file is read whoever owns it, and is not written to. */
static void test_read_and_put(void)
{
	struct keymgr *from = NULL, *to = NULL;
	AUTO_BUF struct buf before = BUF_INIT, after = BUF_INIT;
	AUTO(key_unref) struct key *k = NULL;
	AUTO(pubkey_unref) struct pubkey *p = NULL;
	struct err e = ERR_INIT;
	char path[120];

	CHECK_ERR(keymgr_file_read(keys_path(), &from, &e), ERR_NOT_FOUND);
	put_file(SPIRE_FILE, 0640);
	CHECK_OK(keymgr_file_read(keys_path(), &from, &e));
	CHECK_OK(buf_read_file(&before, keys_path(), &e));
	CHECK_OK(keymgr_key(from, "x509-CA-A", &k, &e));
	CHECK_OK(keymgr_put(from, "x", k, &e));
	CHECK_OK(buf_read_file(&after, keys_path(), &e));
	CHECK_BYTES(buf_view(&before), buf_view(&after));
	snprintf(path, sizeof(path), "%s/ours.json", test_dir());
	CHECK_OK(keymgr_disk_new(path, &to, &e));
	CHECK_OK(keymgr_generate(to, "x", KEY_EC_P256, NULL, &e));
	CHECK_OK(keymgr_put(to, "x", k, &e));
	keymgr_free(to);
	CHECK_OK(keymgr_disk_new(path, &to, &e));
	CHECK_OK(keymgr_public(to, "x", &p, &e));
	CHECK_BYTES(pubkey_spki(p), pubkey_spki(key_public(k)));
	keymgr_free(to);
	keymgr_free(from);
}

TEST_MAIN(TEST(test_read_and_put), TEST(test_memory), TEST(test_disk), TEST(test_spire_file),
	TEST(test_unsafe_mode), TEST(test_damaged), TEST(test_save_fails))

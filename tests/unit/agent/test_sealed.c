#include "agent/sealed.h"
#include "tests/test.h"
#include "tests/unit/x509_make.inc"

static struct key *new_key(void)
{
	struct key *k;
	struct err e = ERR_INIT;

	crypto_init();
	CHECK_OK(key_generate(KEY_EC_P256, &k, &e));
	return k;
}

static void test_seal(void)
{
	struct key *k[2] = { new_key(), new_key() };
	AUTO(free) char *path = xasprintf("%s/sealed.bin", test_dir());
	AUTO_BUF struct buf plain = BUF_INIT_SECRET, back = BUF_INIT_SECRET, file = BUF_INIT;
	struct err e = ERR_INIT;

	CHECK_ERR(sealed_read(path, k, 2, &back, &e), ERR_NOT_FOUND);
	sealed_add(&plain, SEALED_STATE, bytes_str("secret words"));
	CHECK_OK(sealed_write(path, k[1], buf_view(&plain), &e));
	CHECK_OK(buf_read_file(&file, path, &e));
	CHECK(!memmem(file.p, file.len, "secret", 6));
	CHECK_OK(sealed_read(path, k, 2, &back, &e));
	CHECK_BYTES(buf_view(&back), buf_view(&plain));
	buf_reset(&back);
	CHECK_ERR(sealed_read(path, k, 1, &back, &e), ERR_DATA_LOSS);
	CHECK_CONTAINS(e.msg, path);
	/* One bit, anywhere. */
	for (size_t i = 0; i < file.len; i += 5) {
		file.p[i] ^= 1;
		CHECK_OK(buf_write_file(buf_view(&file), path, 0600, &e));
		CHECK_ERR(sealed_read(path, k, 2, &back, &e), ERR_DATA_LOSS);
		file.p[i] ^= 1;
	}
	for (size_t n = 0; n < file.len; n += 3) {
		CHECK_OK(buf_write_file(bytes_of(file.p, n), path, 0600, &e));
		CHECK_ERR(sealed_read(path, k, 2, &back, &e), ERR_DATA_LOSS);
	}
	key_unref(k[0]);
	key_unref(k[1]);
}

static void test_records(void)
{
	AUTO_BUF struct buf rec = BUF_INIT, all = BUF_INIT;
	struct bytes rest, v, part;
	enum sealed_kind k;
	int64_t i = 0;

	sealed_add_part(&rec, bytes_str("one"));
	sealed_add_i64(&rec, -5);
	sealed_add_part(&rec, bytes_str(""));
	sealed_add(&all, SEALED_SVID, buf_view(&rec));
	rest = buf_view(&all);
	CHECK(sealed_next(&rest, &k, &v));
	CHECK_INT(k, SEALED_SVID);
	CHECK(sealed_part(&v, &part));
	CHECK_BYTES(part, bytes_str("one"));
	CHECK(sealed_i64(&v, &i));
	CHECK_INT(i, -5);
	CHECK(sealed_part(&v, &part));
	CHECK_INT(part.n, 0);
	CHECK(!sealed_part(&v, &part));
	CHECK(!sealed_next(&rest, &k, &v));
	for (size_t n = 0; n < all.len; n++) {
		rest = bytes_of(all.p, n);
		CHECK(!sealed_next(&rest, &k, &v));
	}
}

static void write_data(const char *text)
{
	AUTO(free) char *path = xasprintf("%s/agent-data.json", test_dir());
	struct err e = ERR_INIT;

	CHECK_OK(buf_write_file(bytes_str(text), path, 0600, &e));
}

static void test_agent_data(void)
{
	AUTO(free) char *path = xasprintf("%s/agent-data.json", test_dir());
	AUTO_BUF struct buf after = BUF_INIT;
	struct agent_data d = { 0 };
	struct err e = ERR_INIT;

	crypto_init();
	CHECK_OK(agent_data_load(test_dir(), &d, &e));
	CHECK_INT(d.svid.n, 0);
	d.reattestable = true;
	CHECK_OK(agent_data_store(test_dir(), &d, &e));
	agent_data_deinit(&d);
	CHECK_OK(agent_data_load(test_dir(), &d, &e));
	CHECK(d.reattestable);
	/* Go writes null for an empty list, and fields that we do not know. */
	write_data("{\"svid\":null,\"bundle\":[],\"reattestable\":false,\"new\":1}");
	CHECK_OK(agent_data_load(test_dir(), &d, &e));
	CHECK(!d.reattestable);
	write_data("{\"svid\":[\"AAAA\"]");
	CHECK_ERR(agent_data_load(test_dir(), &d, &e), ERR_DATA_LOSS);
	CHECK_CONTAINS(e.msg, path);
	write_data("{\"svid\":[\"AAAA\"]}");
	CHECK_ERR(agent_data_load(test_dir(), &d, &e), ERR_DATA_LOSS);
	CHECK_OK(buf_read_file(&after, path, &e));
	CHECK_BYTES(buf_view(&after), bytes_str("{\"svid\":[\"AAAA\"]}"));
}

static char *pem_base64(const struct x509_cert *c)
{
	AUTO_BUF struct buf pem = BUF_INIT;
	struct buf b = BUF_INIT;

	pem_write(&pem, "CERTIFICATE", x509_der(c));
	base64_encode(&b, buf_view(&pem));
	return buf_take_str(&b);
}

/* What a spire-agent 1.15 left is taken as it is. */
static void test_spire_agent_data(void)
{
	struct key *k = test_key(KEY_EC_P256);
	struct x509_cert *root = test_cert(k, "root", "spiffe://td", true, NULL, test_now);
	struct test_ca ca = { .key = k, .cert = root };
	struct x509_cert *leaf =
		test_cert(k, "agent", "spiffe://td/spire/agent/x/y", false, &ca, test_now);
	AUTO(free) char *r = pem_base64(root);
	AUTO(free) char *l = pem_base64(leaf);
	AUTO(free)
	char *text =
		xasprintf("{\"svid\":[\"%s\"],\"bundle\":[\"%s\",\"%s\"],\"reattestable\":true,"
			  "\"bootstrap_use\":2,\"bootstrap_start_time\":\"2026-11-22T13:30:56.5Z\","
			  "\"connection_attempts\":3}",
			l, r, r);
	struct agent_data d = { 0 };
	struct err e = ERR_INIT;

	write_data(text);
	CHECK_OK(agent_data_load(test_dir(), &d, &e));
	CHECK_INT(d.svid.n, 1);
	CHECK_BYTES(x509_der(d.svid.v[0]), x509_der(leaf));
	CHECK_INT(d.bundle.n, 2);
	CHECK_BYTES(x509_der(d.bundle.v[0]), x509_der(root));
	CHECK(d.reattestable);
	agent_data_deinit(&d);
	x509_unref(root);
	x509_unref(leaf);
	key_unref(k);
}

TEST_MAIN(TEST(test_seal), TEST(test_records), TEST(test_agent_data), TEST(test_spire_agent_data))

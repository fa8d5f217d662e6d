#include "tests/test.h"

#include "lib/der.h"

static void test_strictness(void)
{
	struct bytes in, body;
	unsigned v;
	bool flag;

	in = DER_BYTES(0x02, 0x02, 0x00, 0x7f); /* not minimal */
	CHECK(!der_get_uint(&in, &body));
	in = DER_BYTES(0x02, 0x01, 0x80); /* negative */
	CHECK(!der_get_uint(&in, &body));
	in = DER_BYTES(0x02, 0x02, 0x00, 0x80);
	CHECK(der_get_small(&in, &v) && v == 128 && in.n == 0);
	in = DER_BYTES(0x04, 0x81, 0x01, 0x00); /* length not minimal */
	CHECK(!der_get(&in, DER_OCTET_STRING, &body) && in.n == 4);
	in = DER_BYTES(0x04, 0x80, 0x00, 0x00); /* indefinite */
	CHECK(!der_get(&in, DER_OCTET_STRING, &body));
	in = DER_BYTES(0x04, 0x05, 0x00);
	CHECK(!der_get(&in, DER_OCTET_STRING, &body));
	in = DER_BYTES(0x1f, 0x81, 0x01, 0x00);
	CHECK(!der_next(&in, &(uint8_t){ 0 }, &body));
	in = DER_BYTES(0x01, 0x01, 0x01);
	CHECK(!der_get_bool(&in, &flag));
	in = DER_BYTES(0x03, 0x02, 0x01, 0x01); /* padding bit set */
	CHECK(!der_get_bits(&in, &body, &v));
	in = DER_BYTES(0x04, 0x84, 0xff, 0xff, 0xff, 0xff);
	CHECK(!der_get(&in, DER_OCTET_STRING, &body));
}

static void test_writing(void)
{
	AUTO_BUF struct buf b = BUF_INIT;
	struct bytes in, body, whole;
	size_t outer, inner;
	bool flag = false;
	unsigned v = 0;

	/* A body of each size where the length's own size changes. */
	for (size_t n = 0; n < 70000; n = n < 300 ? n + 1 : n * 2 - 1) {
		buf_reset(&b);
		outer = der_open(&b, DER_SEQUENCE);
		inner = der_open(&b, DER_OCTET_STRING);
		for (size_t i = 0; i < n; i++)
			buf_byte(&b, (uint8_t)i);
		der_close(&b, inner);
		der_put_bool(&b, true);
		der_close(&b, outer);
		in = buf_view(&b);
		CHECK(der_get_whole(&in, DER_SEQUENCE, &body, &whole) && in.n == 0);
		CHECK_BYTES(whole, buf_view(&b));
		CHECK(der_get(&body, DER_OCTET_STRING, &whole) && whole.n == n);
		CHECK(n == 0 || whole.p[n - 1] == (uint8_t)(n - 1));
		CHECK(der_get_bool(&body, &flag) && flag && body.n == 0);
	}
	for (unsigned n = 0; n < 0x70000000; n = n * 3 + 1) {
		buf_reset(&b);
		der_put_small(&b, n);
		in = buf_view(&b);
		CHECK(der_get_small(&in, &v) && v == n && in.n == 0);
	}
	buf_reset(&b);
	der_put_uint(&b, DER_BYTES(0, 0, 0x80));
	CHECK_BYTES(buf_view(&b), DER_BYTES(2, 2, 0, 0x80));
	buf_reset(&b);
	der_put_bits(&b, DER_BYTES(1, 2));
	CHECK_BYTES(buf_view(&b), DER_BYTES(3, 3, 0, 1, 2));
}

/* A buffer that is full stays failed and is never written past. */
static void test_no_room(void)
{
	struct buf b = BUF_INIT_MAX(130);
	size_t mark = der_open(&b, DER_SEQUENCE);

	for (int i = 0; i < 128; i++)
		buf_byte(&b, 1);
	der_close(&b, mark);
	CHECK(b.failed);
	buf_deinit(&b);
}

TEST_MAIN(TEST(test_strictness), TEST(test_writing), TEST(test_no_room))

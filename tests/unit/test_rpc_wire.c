/* Hostile messages, as bytes. */
#include "tests/test.h"

#include "google/protobuf/struct.pb-c.h"
#include "grpc/health/v1/health.pb-c.h"
#include "lib/rpc.h"
#include "lib/rpc_wire.h"

static int wire_check(const ProtobufCMessageDescriptor *d, struct bytes v, struct err *e)
{
	return rpc_wire_check(d, v, 1 << 20, e);
}

static void test_wire(void)
{
	const ProtobufCMessageDescriptor *d = &grpc__health__v1__health_check_request__descriptor;
	struct err e = ERR_INIT;

	CHECK_OK(wire_check(d, bytes_of(NULL, 0), &e));
	CHECK_OK(wire_check(d, bytes_of("\x0a\x01x", 3), &e));
	CHECK_OK(wire_check(d, bytes_of("\x10\x01\x0a\x01x", 5), &e)); /* unknown field */
	CHECK_ERR(wire_check(d, bytes_of("\x0a\x01\x00", 3), &e), ERR_INVALID);
	CHECK_ERR(wire_check(d, bytes_of("\x0a\x02x", 3), &e), ERR_INTERNAL);
	CHECK_ERR(wire_check(d, bytes_of("\x0a", 1), &e), ERR_INTERNAL);
	CHECK_ERR(wire_check(d, bytes_of("\x00\x00", 2), &e), ERR_INTERNAL); /* field 0 */
	CHECK_ERR(wire_check(d, bytes_of("\x0b\x0c", 2), &e), ERR_INTERNAL); /* group */
	CHECK_ERR(wire_check(d, bytes_of("\xff\xff\xff\xff\xff\x01", 6), &e), ERR_INTERNAL);
	/* overlong, surrogate, beyond U+10FFFF, cut short */
	CHECK_ERR(wire_check(d, bytes_of("\x0a\x02\xc0\x80", 4), &e), ERR_INTERNAL);
	CHECK_ERR(wire_check(d, bytes_of("\x0a\x03\xed\xa0\x80", 5), &e), ERR_INTERNAL);
	CHECK_ERR(wire_check(d, bytes_of("\x0a\x04\xf4\x90\x80\x80", 6), &e), ERR_INTERNAL);
	CHECK_ERR(wire_check(d, bytes_of("\x0a\x02\xe2\x82", 4), &e), ERR_INTERNAL);
}

/* Nested google.protobuf.Value lists; protobuf-c alone would overflow the stack. */
static void test_wire_depth(void)
{
	AUTO_BUF struct buf b = BUF_INIT;
	struct err e = ERR_INIT;

	for (int i = 0; i < 60; i++) {
		AUTO_BUF struct buf list = BUF_INIT, value = BUF_INIT;
		size_t n = b.len;

		CHECK(n < 16000);
		buf_byte(&list, 0x0a); /* ListValue.values */
		buf_byte(&list, (uint8_t)(0x80 | (n & 0x7f)));
		buf_byte(&list, (uint8_t)(n >> 7));
		buf_bytes(&list, buf_view(&b));
		buf_byte(&value, 0x32); /* Value.list_value */
		buf_byte(&value, (uint8_t)(0x80 | (list.len & 0x7f)));
		buf_byte(&value, (uint8_t)(list.len >> 7));
		buf_bytes(&value, buf_view(&list));
		buf_reset(&b);
		buf_bytes(&b, buf_view(&value));
		if (i == 40)
			CHECK_OK(
				wire_check(&google__protobuf__value__descriptor, buf_view(&b), &e));
	}
	CHECK_ERR(
		wire_check(&google__protobuf__value__descriptor, buf_view(&b), &e), ERR_EXHAUSTED);
	CHECK_STR(e.msg, "message is nested too deep");
}

/* Two bytes on the wire are a whole struct in memory. */
static void test_wire_amplification(void)
{
	AUTO_BUF struct buf b = BUF_INIT;
	struct err e = ERR_INIT;
	ProtobufCMessage *m = NULL;

	for (int i = 0; i < 30000; i++)
		buf_append(&b, "\x0a\x00", 2);
	CHECK_ERR(rpc_unpack(&google__protobuf__list_value__descriptor, buf_view(&b), 64 << 10, &m,
			  &e),
		ERR_EXHAUSTED);
	CHECK(!m);
}

static void test_payload(void)
{
	Grpc__Health__V1__HealthCheckRequest rq = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
	struct rpc_payload *a, *b;

	rq.service = (char *)(uintptr_t)("a service with a longer name than fits inline");
	a = rpc_payload_new(&rq.base);
	b = rpc_payload_new(&rq.base);
	CHECK(rpc_payload_equal(a, b));
	CHECK_INT(rpc_payload_size(a), strlen(rq.service) + 2);
	rpc_payload_unref(b);
	rq.service = (char *)(uintptr_t)("");
	b = rpc_payload_new(&rq.base);
	CHECK_INT(rpc_payload_size(b), 0);
	CHECK(!rpc_payload_equal(a, b));
	rpc_payload_unref(rpc_payload_ref(a));
	rpc_payload_unref(a);
	rpc_payload_unref(b);
}

TEST_MAIN(TEST(test_wire), TEST(test_wire_depth), TEST(test_wire_amplification), TEST(test_payload))

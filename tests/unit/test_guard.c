#include "lib/door_guard.h"

#include "lib/door.h"
#include "tests/h2.h"
#include "tests/test.h"

static struct guard g;
static struct buf b = { .max = BUF_MAX_DEFAULT };
static int64_t now = 5000;

/* What was gathered, at once. */
static enum guard_fault feed(void)
{
	enum guard_fault r = guard_client(&g, buf_view(&b), now);

	buf_reset(&b);
	return r;
}

static void server(void)
{
	guard_server(&g, buf_view(&b), now);
	buf_reset(&b);
}

static void begin(void)
{
	guard_deinit(&g);
	guard_init(&g, 1000);
	h2_hello(&b);
	CHECK_INT(feed(), GUARD_FINE);
	CHECK(guard_open(&g));
	h2_head(&b, 0, H2_SETTINGS, 0, 0);
	h2_head(&b, 0, H2_SETTINGS, H2_ACK, 0);
	server();
}

static void open_stream(uint32_t id)
{
	h2_open(&b, id, 0, "/a/b");
	CHECK_INT(feed(), GUARD_FINE);
}

static void test_preface(void)
{
	static const char *const bad[] = { "GET / HTTP/1.1\r\n", "\x16\x03\x01\x02",
		"PRI * HTTP/2.0\r\n\r\nSN", "\n" };

	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		guard_init(&g, 1000);
		buf_str(&b, bad[i]);
		CHECK_INT(feed(), GUARD_PREFACE);
		CHECK(!guard_open(&g));
	}
	guard_init(&g, 1000);
	buf_append(&b, h2_preface, 10);
	CHECK_INT(feed(), GUARD_FINE);
	CHECK(!guard_open(&g));
	CHECK_INT(guard_preface(&g).n, 10);
	buf_str(&b, h2_preface + 10);
	CHECK_INT(feed(), GUARD_FINE);
	CHECK(guard_open(&g));
	h2_zeros(&b, H2_PING, 0, 0, 8);
	CHECK_INT(feed(), GUARD_PREFACE); /* SETTINGS comes first */
}

static void test_frame_sizes(void)
{
	struct {
		int type;
		uint32_t id, len;
		enum guard_fault want;
	} const cases[] = {
		{ H2_PING, 0, 8, GUARD_FINE },
		{ H2_PING, 0, 7, GUARD_FRAME_SIZE },
		{ H2_PING, 1, 8, GUARD_STREAM_ID },
		{ H2_SETTINGS, 0, 12, GUARD_FINE },
		{ H2_SETTINGS, 0, 5, GUARD_FRAME_SIZE },
		{ H2_SETTINGS, 1, 6, GUARD_STREAM_ID },
		{ H2_WINDOW_UPDATE, 0, 4, GUARD_FINE },
		{ H2_WINDOW_UPDATE, 0, 3, GUARD_FRAME_SIZE },
		{ H2_PRIORITY, 1, 5, GUARD_FINE },
		{ H2_PRIORITY, 1, 4, GUARD_FRAME_SIZE },
		{ H2_RST_STREAM, 1, 4, GUARD_FINE },
		{ H2_RST_STREAM, 1, 5, GUARD_FRAME_SIZE },
		{ H2_RST_STREAM, 3, 4, GUARD_STREAM_ID },
		{ H2_GOAWAY, 0, 8, GUARD_FINE },
		{ H2_GOAWAY, 0, 7, GUARD_FRAME_SIZE },
		{ H2_PUSH_PROMISE, 1, 4, GUARD_SEQUENCE },
		{ H2_CONTINUATION, 1, 4, GUARD_SEQUENCE },
		{ 0x77, 5, 100, GUARD_FINE },
		{ 0x77, 5, DOOR_FRAME_MAX + 1, GUARD_FRAME_SIZE },
		{ H2_DATA, 0, 4, GUARD_STREAM_ID },
		{ H2_DATA, 3, 4, GUARD_STREAM_ID },
		{ H2_HEADERS, 0, 4, GUARD_STREAM_ID },
		{ H2_HEADERS, 2, 4, GUARD_STREAM_ID },
	};

	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		begin();
		open_stream(1);
		h2_zeros(&b, cases[i].type, H2_END_HEADERS, cases[i].id, cases[i].len);
		CHECK_INT(feed(), cases[i].want);
	}
}

static void test_any_cut(void)
{
	AUTO_BUF struct buf all = BUF_INIT;

	h2_hello(&all);
	h2_call(&all, 1, "/a/b");
	h2_open(&all, 3, 0, "/a/c");
	h2_zeros(&all, H2_RST_STREAM, 0, 3, 4);
	h2_frame(&all, H2_DATA, 0, 1, "\0\0\0\0\3abc\0\0\0", 11);
	h2_frame(&all, H2_DATA, H2_END_STREAM, 1, "\0\1x", 3);
	guard_init(&g, 1000);
	for (size_t i = 0; i < all.len; i++)
		CHECK_INT(guard_client(&g, bytes_of(all.p + i, 1), now), GUARD_FINE);
	CHECK_INT(guard_streams(&g), 1);
	CHECK_INT(g.incomplete, 0);
	h2_zeros(&b, H2_HEADERS, H2_END_HEADERS | H2_END_STREAM, 1, 3);
	for (size_t i = 0; i < b.len; i++)
		guard_server(&g, bytes_of(b.p + i, 1), now);
	CHECK_INT(guard_streams(&g), 0);
	buf_deinit(&b);
}

static void test_streams_are_followed(void)
{
	begin();
	open_stream(1);
	open_stream(3);
	open_stream(5);
	open_stream(7);
	CHECK_INT(guard_streams(&g), 4);
	/* ended by the server only: the client may still send */
	h2_zeros(&b, H2_HEADERS, H2_END_HEADERS | H2_END_STREAM, 3, 3);
	server();
	CHECK_INT(guard_streams(&g), 4);
	h2_frame(&b, H2_DATA, H2_END_STREAM, 3, NULL, 0);
	CHECK_INT(feed(), GUARD_FINE);
	CHECK_INT(guard_streams(&g), 3);
	/* reset by the server, by the client */
	h2_zeros(&b, H2_RST_STREAM, 0, 5, 4);
	server();
	CHECK_INT(guard_streams(&g), 2);
	h2_zeros(&b, H2_RST_STREAM, 0, 1, 4);
	CHECK_INT(feed(), GUARD_FINE);
	CHECK_INT(guard_streams(&g), 1);
	/* late frames on closed streams are no fault */
	h2_frame(&b, H2_DATA, 0, 5, "\0\0\0\0\0", 5);
	h2_zeros(&b, H2_RST_STREAM, 0, 5, 4);
	h2_zeros(&b, H2_HEADERS, H2_END_HEADERS | H2_END_STREAM, 5, 3);
	CHECK_INT(feed(), GUARD_FINE);
	/* trailers */
	h2_zeros(&b, H2_HEADERS, H2_END_HEADERS | H2_END_STREAM, 7, 3);
	CHECK_INT(feed(), GUARD_FINE);
	h2_frame(&b, H2_DATA, H2_END_STREAM, 7, "x", 1);
	server();
	CHECK_INT(guard_streams(&g), 0);
}

static void test_stream_limit(void)
{
	uint32_t id = 1;

	begin();
	for (int i = 0; i < DOOR_STREAMS_MAX + GUARD_STREAMS_SLACK; i++, id += 2)
		open_stream(id);
	h2_open(&b, id, 0, "/a/b");
	CHECK_INT(feed(), GUARD_STREAMS);
	/* any number one after the other */
	begin();
	for (id = 1; id < 20000; id += 2) {
		h2_call(&b, id, "/a/b");
		CHECK_INT(feed(), GUARD_FINE);
		h2_zeros(&b, H2_HEADERS, H2_END_HEADERS | H2_END_STREAM, id, 3);
		server();
		CHECK_INT(guard_streams(&g), 0);
	}
}

static void test_header_block(void)
{
	begin();
	h2_zeros(&b, H2_HEADERS, 0, 1, DOOR_HEADER_BLOCK_MAX - 10);
	h2_zeros(&b, H2_CONTINUATION, H2_END_HEADERS, 1, 10);
	CHECK_INT(feed(), GUARD_FINE);
	h2_zeros(&b, H2_HEADERS, 0, 3, DOOR_HEADER_BLOCK_MAX - 10);
	h2_zeros(&b, H2_CONTINUATION, H2_END_HEADERS, 3, 11);
	CHECK_INT(feed(), GUARD_HEADER_BLOCK);
	begin();
	h2_zeros(&b, H2_HEADERS, 0, 1, 10);
	for (int i = 0; i < GUARD_CONTINUATIONS_MAX; i++)
		h2_zeros(&b, H2_CONTINUATION, 0, 1, 0);
	CHECK_INT(feed(), GUARD_FINE);
	h2_zeros(&b, H2_CONTINUATION, 0, 1, 0);
	CHECK_INT(feed(), GUARD_HEADER_BLOCK);
}

static void test_header_block_sequence(void)
{
	begin();
	h2_zeros(&b, H2_HEADERS, 0, 1, 10);
	h2_zeros(&b, H2_PING, 0, 0, 8);
	CHECK_INT(feed(), GUARD_SEQUENCE);
	begin();
	h2_zeros(&b, H2_HEADERS, 0, 1, 10);
	h2_zeros(&b, H2_CONTINUATION, 0, 3, 8);
	CHECK_INT(feed(), GUARD_SEQUENCE);
}

static void test_resets(void)
{
	uint32_t id = 1;

	begin();
	for (int second = 0; second < 3; second++, now += 1000) {
		for (int i = 0; i < DOOR_RESETS_PER_SECOND; i++, id += 2) {
			open_stream(id);
			h2_zeros(&b, H2_RST_STREAM, 0, id, 4);
			CHECK_INT(feed(), GUARD_FINE);
		}
	}
	now -= 1000;
	h2_zeros(&b, H2_RST_STREAM, 0, 1, 4);
	CHECK_INT(feed(), GUARD_RESETS);
}

/* A client that makes the server reset (PROTOCOL_ERROR) does no better. */
static void test_resets_provoked(void)
{
	begin();
	for (uint32_t i = 0; i <= DOOR_RESETS_PER_SECOND; i++) {
		open_stream(1 + 2 * i);
		h2_frame(&b, H2_RST_STREAM, 0, 1 + 2 * i, "\0\0\0\1", 4);
		server();
	}
	h2_open(&b, 9999, 0, "/a/b");
	CHECK_INT(feed(), GUARD_RESETS);
	/* NO_ERROR and CANCEL are the server's own */
	begin();
	for (uint32_t i = 0; i <= 2 * DOOR_RESETS_PER_SECOND; i++) {
		open_stream(1 + 2 * i);
		h2_frame(&b, H2_RST_STREAM, 0, 1 + 2 * i, i % 2 ? "\0\0\0\0" : "\0\0\0\10", 4);
		server();
	}
	h2_open(&b, 9999, 0, "/a/b");
	CHECK_INT(feed(), GUARD_FINE);
}

static void test_control_flood(void)
{
	static const int types[] = { H2_PING, H2_SETTINGS, H2_PRIORITY, H2_WINDOW_UPDATE, 0x55 };
	static const uint32_t lens[] = { 8, 0, 5, 4, 0 };

	for (size_t t = 0; t < ARRAY_LEN(types); t++) {
		enum guard_fault r = GUARD_FINE;
		int n = 0;

		begin();
		for (; n < 10 * DOOR_CONTROL_PER_SECOND && r == GUARD_FINE; n++) {
			h2_zeros(&b, types[t], 0, types[t] == H2_PRIORITY ? 1 : 0, lens[t]);
			r = feed();
		}
		CHECK_INT(r, GUARD_CONTROL);
		CHECK(n >= DOOR_CONTROL_PER_SECOND - 1 && n <= DOOR_CONTROL_PER_SECOND + 10);
	}
	/* empty DATA */
	begin();
	open_stream(1);
	for (int i = 0; i < DOOR_CONTROL_PER_SECOND * 2; i++)
		h2_head(&b, 0, H2_DATA, 0, 1);
	CHECK_INT(feed(), GUARD_CONTROL);
}

/* grpc-go measures with a PING and gives two WINDOW_UPDATEs for what it receives. */
static void test_control_with_progress_is_fine(void)
{
	begin();
	open_stream(1);
	for (int i = 0; i < 20000; i++) {
		h2_zeros(&b, H2_DATA, 0, 1, 100);
		server();
		h2_zeros(&b, H2_WINDOW_UPDATE, 0, 0, 4);
		h2_zeros(&b, H2_WINDOW_UPDATE, 0, 1, 4);
		h2_zeros(&b, H2_PING, 0, 0, 8);
		h2_zeros(&b, H2_PING, H2_ACK, 0, 8);
		CHECK_INT(feed(), GUARD_FINE);
	}
}

static void test_message_length(void)
{
	begin();
	open_stream(1);
	h2_frame(&b, H2_DATA, 0, 1, "\0\xff\xff\xff\xff", 5);
	CHECK_INT(feed(), GUARD_MESSAGE);
	/* in pieces, as the second message */
	begin();
	open_stream(1);
	h2_frame(&b, H2_DATA, 0, 1, "\0\0\0\3\xe8", 5); /* 1000: allowed */
	h2_zeros(&b, H2_DATA, 0, 1, 1000);
	h2_frame(&b, H2_DATA, 0, 1, "\0\0", 2);
	h2_frame(&b, H2_DATA, 0, 1, "\0\3", 2);
	CHECK_INT(feed(), GUARD_FINE);
	CHECK_INT(g.incomplete, 0);
	h2_frame(&b, H2_DATA, 0, 1, "\xe9", 1);
	CHECK_INT(feed(), GUARD_MESSAGE);
}

static void test_messages_under_way(void)
{
	begin();
	for (uint32_t id = 1; id <= 3; id += 2) {
		open_stream(id);
		h2_frame(&b, H2_DATA, 0, id, "\0\0\0\3\xe8", 5);
		CHECK_INT(feed(), GUARD_FINE);
	}
	CHECK_INT(g.incomplete, 2000);
	/* the sum has a limit; a stream that ends gives its part back */
	h2_zeros(&b, H2_RST_STREAM, 0, 1, 4);
	CHECK_INT(feed(), GUARD_FINE);
	CHECK_INT(g.incomplete, 1000);
	h2_zeros(&b, H2_DATA, 0, 3, 400);
	CHECK_INT(feed(), GUARD_FINE);
	CHECK_INT(g.incomplete, 600);
	h2_zeros(&b, H2_DATA, H2_END_STREAM, 3, 1);
	CHECK_INT(feed(), GUARD_FINE);
	CHECK_INT(g.incomplete, 0);
	for (uint32_t id = 5; id <= 9; id += 2) {
		open_stream(id);
		h2_frame(&b, H2_DATA, 0, id, "\0\0\0\3\xe8", 5);
		CHECK_INT(feed(), id == 9 ? GUARD_MESSAGE : GUARD_FINE);
	}
}

static void test_goaway(void)
{
	static const uint8_t want[] = { 0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0xb };
	uint8_t frame[GUARD_GOAWAY_LEN];

	guard_init(&g, 1000);
	CHECK(!guard_goaway(&g, true, frame)); /* not HTTP/2 yet */
	begin();
	open_stream(5);
	CHECK(guard_goaway(&g, true, frame));
	CHECK_BYTES(bytes_of(frame, sizeof(frame)), bytes_of(want, sizeof(want)));
	CHECK(guard_goaway(&g, false, frame));
	CHECK_INT(frame[16], 0);
	h2_head(&b, 100, H2_DATA, 0, 5);
	buf_str(&b, "part");
	server();
	CHECK(!guard_goaway(&g, true, frame)); /* in the middle of the server's frame */
}

static void test_texts(void)
{
	for (int i = 0; i < GUARD_FAULTS; i++)
		CHECK(strlen(guard_fault_text((enum guard_fault)i)) > 3);
}

TEST_MAIN(TEST(test_preface), TEST(test_frame_sizes), TEST(test_any_cut),
	TEST(test_streams_are_followed), TEST(test_stream_limit), TEST(test_header_block),
	TEST(test_header_block_sequence), TEST(test_resets), TEST(test_resets_provoked),
	TEST(test_control_flood), TEST(test_control_with_progress_is_fine),
	TEST(test_message_length), TEST(test_messages_under_way), TEST(test_goaway),
	TEST(test_texts))

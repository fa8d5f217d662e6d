#include "lib/proxy.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include "tests/test.h"

static char address[PROXY_ADDRESS];
static size_t len;

static enum proxy_result parse(const void *p, size_t n)
{
	snprintf(address, sizeof(address), "balancer");
	len = 0;
	return proxy_parse(bytes_of(p, n), &len, address);
}

static enum proxy_result line(const char *s)
{
	return parse(s, strlen(s));
}

static void test_text(void)
{
	CHECK_INT(line("PROXY TCP4 198.51.100.7 10.0.0.1 4000 8081\r\n\x16"), PROXY_OK);
	CHECK_STR(address, "198.51.100.7");
	CHECK_INT(len, 44);
	CHECK_INT(line("PROXY TCP6 2001:db8::1 ::1 1 65535\r\n"), PROXY_OK);
	CHECK_STR(address, "2001:db8::1");
	CHECK_INT(line("PROXY TCP6 ::ffff:198.51.100.7 ::1 1 1\r\n"), PROXY_OK);
	CHECK_STR(address, "198.51.100.7");
	CHECK_INT(line("PROXY UNKNOWN\r\n"), PROXY_OK);
	CHECK_STR(address, "balancer");
	CHECK_INT(line("PROXY UNKNOWN whatever it is\r\n"), PROXY_OK);
	CHECK_INT(line(""), PROXY_MORE);
	CHECK_INT(line("PRO"), PROXY_MORE);
	CHECK_INT(line("PROXY TCP4 198.51.100.7"), PROXY_MORE);
	CHECK_INT(line("\x16\x03\x01"), PROXY_NONE);
	CHECK_INT(line("PRI * HTTP/2.0"), PROXY_NONE);
}

static void test_bad_text(void)
{
	static const char *const bad[] = { "PROXY TCP4 198.51.100.7 10.0.0.1 4000 8081\n",
		"PROXY TCP4 198.51.100.7 10.0.0.1 4000\r\n", "PROXY \r\n",
		"PROXY TCP4 198.51.100.7 10.0.0.1 4000 8081 9\r\n",
		"PROXY TCP4 198.51.100.7  10.0.0.1 4000\r\n", "PROXY TCP4 ::1 ::1 4000 8081\r\n",
		"PROXY TCP4 1.2.3.4 1.2.3.4 70000 1\r\n", "PROXY TCP4 1.2.3.4 1.2.3.4 01 1\r\n",
		"PROXY UDP4 1.2.3.4 1.2.3.4 1 1\r\n", "PROXY UNKNOWNX\r\n" };
	char many[200];

	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		CHECK_INT(line(bad[i]), PROXY_BAD);
		CHECK_STR(address, "balancer");
	}
	memset(many, 'x', sizeof(many));
	memcpy(many, "PROXY UNKNOWN ", 14);
	CHECK_INT(parse(many, PROXY_V1_MAX - 1), PROXY_MORE);
	CHECK_INT(parse(many, sizeof(many)), PROXY_BAD);
	many[20] = '\0';
	memcpy(many + 30, "\r\n", 2);
	CHECK_INT(parse(many, sizeof(many)), PROXY_BAD);
}

static void test_binary(void)
{
	uint8_t h[80] =
		"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0f\xc6\x33\x64\x07\x0a\0\0\x01\x0f\xa0\x1f\x91TLV";

	CHECK_INT(parse(h, sizeof(h)), PROXY_OK);
	CHECK_INT(len, 31);
	CHECK_STR(address, "198.51.100.7");
	for (size_t n = 0; n < 31; n++)
		CHECK_INT(parse(h, n), PROXY_MORE);
	h[12] = 0x20; /* LOCAL: the balancer itself */
	CHECK_INT(parse(h, sizeof(h)), PROXY_OK);
	CHECK_STR(address, "balancer");
	h[12] = 0x21;
	h[13] = 0; /* AF_UNSPEC */
	CHECK_INT(parse(h, sizeof(h)), PROXY_OK);
	CHECK_STR(address, "balancer");
	h[13] = 0x21; /* IPv6 needs 36 bytes */
	CHECK_INT(parse(h, sizeof(h)), PROXY_BAD);
	h[15] = 36;
	memset(h + 16, 0, 36);
	h[31] = 1;
	CHECK_INT(parse(h, sizeof(h)), PROXY_OK);
	CHECK_STR(address, "::1");
	h[12] = 0x11; /* version 1 in binary */
	CHECK_INT(parse(h, sizeof(h)), PROXY_BAD);
	h[12] = 0x22;
	CHECK_INT(parse(h, sizeof(h)), PROXY_BAD);
	h[12] = 0x21;
	h[14] = 0x10; /* 4 KB of it */
	CHECK_INT(parse(h, sizeof(h)), PROXY_BAD);
	h[3] = 'x';
	CHECK_INT(parse(h, sizeof(h)), PROXY_NONE);
}

static bool has(const char *net, const char *host)
{
	struct sockaddr_in6 six = { .sin6_family = AF_INET6 };
	struct sockaddr_in four = { .sin_family = AF_INET };
	struct network n;
	struct err e;

	CHECK_OK(network_parse(net, &n, &e));
	if (inet_pton(AF_INET, host, &four.sin_addr) == 1)
		return network_has(&n, (struct sockaddr *)&four);
	CHECK_INT(inet_pton(AF_INET6, host, &six.sin6_addr), 1);
	return network_has(&n, (struct sockaddr *)&six);
}

static void test_networks(void)
{
	static const char *const bad[] = { "", "10.0.0.0", "10.0.0.0/", "10.0.0.0/33", "::/129",
		"x/8", "10.0.0.0/-1", "10.0.0.0/8 ", "/8", "10.0.0.0/0008" };
	struct network n;
	struct err e;

	CHECK(has("10.0.0.0/8", "10.200.0.1"));
	CHECK(!has("10.0.0.0/8", "11.0.0.1"));
	CHECK(has("10.1.2.3/32", "10.1.2.3"));
	CHECK(!has("10.1.2.3/32", "10.1.2.2"));
	CHECK(has("10.1.2.0/31", "10.1.2.1"));
	CHECK(has("0.0.0.0/0", "203.0.113.9"));
	CHECK(!has("0.0.0.0/0", "2001:db8::1"));
	/* A listener for both kinds gives IPv4 so. */
	CHECK(has("10.0.0.0/8", "::ffff:10.0.0.1"));
	CHECK(has("fd00::/8", "fd12::1"));
	CHECK(!has("fd00::/8", "fe80::1"));
	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		CHECK_ERR(network_parse(bad[i], &n, &e), ERR_INVALID);
}

TEST_MAIN(TEST(test_text), TEST(test_bad_text), TEST(test_binary), TEST(test_networks))

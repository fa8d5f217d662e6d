#include "lib/proxy.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The numbers are those of https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt */

enum { V2_HEAD = 16, V2_IPV4 = 12, V2_IPV6 = 36, MAPPED_BITS = 96 };

static const uint8_t v2_signature[12] = { '\r', '\n', '\r', '\n', 0, '\r', '\n', 'Q', 'U', 'I', 'T',
	'\n' };
static const char v1_signature[] = "PROXY ";

static bool begins(struct bytes in, const void *with, size_t n)
{
	return memcmp(in.p, with, in.n < n ? in.n : n) == 0;
}

static void put(char address[PROXY_ADDRESS], int family, const void *from)
{
	const struct in6_addr *six = from;

	/* The same client has one name, whichever way it came. */
	if (family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(six))
		inet_ntop(AF_INET, &six->s6_addr[12], address, PROXY_ADDRESS);
	else
		inet_ntop(family, from, address, PROXY_ADDRESS);
}

/* ---- version 1: one line of text (2.1) ---- */

static bool is_port(const char *s)
{
	size_t n = strlen(s);

	if (n == 0 || n > 5 || strspn(s, "0123456789") != n || (n > 1 && s[0] == '0'))
		return false;
	return strtol(s, NULL, 10) <= 65535;
}

static enum proxy_result v1_line(char *line, char address[PROXY_ADDRESS])
{
	uint8_t from[sizeof(struct in6_addr)], to[sizeof(struct in6_addr)];
	char *part[6] = { NULL };
	size_t n = 0;
	int family;

	if (strncmp(line, "PROXY UNKNOWN", 13) == 0 && (line[13] == '\0' || line[13] == ' '))
		return PROXY_OK;
	for (char *s = line; s; n++) {
		if (n == ARRAY_LEN(part))
			return PROXY_BAD;
		part[n] = strsep(&s, " ");
	}
	if (n != ARRAY_LEN(part))
		return PROXY_BAD;
	family = strcmp(part[1], "TCP4") == 0 ? AF_INET : AF_INET6;
	if (family == AF_INET6 && strcmp(part[1], "TCP6") != 0)
		return PROXY_BAD;
	if (inet_pton(family, part[2], from) != 1 || inet_pton(family, part[3], to) != 1 ||
		!is_port(part[4]) || !is_port(part[5]))
		return PROXY_BAD;
	put(address, family, from);
	return PROXY_OK;
}

static enum proxy_result parse_v1(struct bytes in, size_t *ret_len, char address[PROXY_ADDRESS])
{
	char line[PROXY_V1_MAX + 1];
	size_t n = in.n < PROXY_V1_MAX ? in.n : PROXY_V1_MAX;
	const uint8_t *end = memchr(in.p, '\n', n);

	if (!end)
		return n < PROXY_V1_MAX ? PROXY_MORE : PROXY_BAD;
	n = (size_t)(end - in.p);
	if (n == 0 || in.p[n - 1] != '\r' || memchr(in.p, '\0', n))
		return PROXY_BAD;
	memcpy(line, in.p, n - 1);
	line[n - 1] = '\0';
	*ret_len = n + 1;
	return v1_line(line, address);
}

/* ---- version 2: binary (2.2) ---- */

static enum proxy_result parse_v2(struct bytes in, size_t *ret_len, char address[PROXY_ADDRESS])
{
	enum { LOCAL = 0x20, PROXY = 0x21, TCP4 = 0x11, TCP6 = 0x21 };
	size_t rest;

	if (in.n < V2_HEAD)
		return PROXY_MORE;
	if (in.p[12] != LOCAL && in.p[12] != PROXY)
		return PROXY_BAD;
	rest = (size_t)in.p[14] << 8 | in.p[15];
	if (V2_HEAD + rest > PROXY_MAX)
		return PROXY_BAD;
	if (in.p[12] == PROXY &&
		((in.p[13] == TCP4 && rest < V2_IPV4) || (in.p[13] == TCP6 && rest < V2_IPV6)))
		return PROXY_BAD;
	if (in.n < V2_HEAD + rest)
		return PROXY_MORE;
	*ret_len = V2_HEAD + rest;
	if (in.p[12] == PROXY && in.p[13] == TCP4)
		put(address, AF_INET, in.p + V2_HEAD);
	if (in.p[12] == PROXY && in.p[13] == TCP6)
		put(address, AF_INET6, in.p + V2_HEAD);
	return PROXY_OK;
}

enum proxy_result proxy_parse(struct bytes in, size_t *ret_len, char address[PROXY_ADDRESS])
{
	if (in.n == 0)
		return PROXY_MORE;
	if (begins(in, v1_signature, strlen(v1_signature)))
		return in.n < strlen(v1_signature) ? PROXY_MORE : parse_v1(in, ret_len, address);
	if (begins(in, v2_signature, sizeof(v2_signature)))
		return parse_v2(in, ret_len, address);
	return PROXY_NONE;
}

/* ---- networks ---- */

static void map_four(const void *four, uint8_t six[16])
{
	memset(six, 0, 10);
	memset(six + 10, 0xff, 2);
	memcpy(six + 12, four, 4);
}

static bool same_bits(const uint8_t *a, const uint8_t *b, int bits)
{
	int whole = bits / 8, left = bits % 8;

	if (memcmp(a, b, (size_t)whole) != 0)
		return false;
	return left == 0 || ((a[whole] ^ b[whole]) & (0xff << (8 - left)) & 0xff) == 0;
}

int network_parse(const char *text, struct network *ret, struct err *e)
{
	const char *slash = strchr(text, '/');
	AUTO(free) char *host = xstrndup(text, slash ? (size_t)(slash - text) : strlen(text));
	struct network n = { .bits = -1 };
	uint8_t four[4];
	int max = 0;

	if (inet_pton(AF_INET, host, four) == 1) {
		map_four(four, n.prefix);
		max = 32;
	} else if (inet_pton(AF_INET6, host, n.prefix) == 1) {
		max = 128;
	}
	if (max && slash && strlen(slash + 1) <= 3 && slash[1] &&
		strspn(slash + 1, "0123456789") == strlen(slash + 1))
		n.bits = (int)strtol(slash + 1, NULL, 10);
	if (n.bits < 0 || n.bits > max)
		return err_set(e, ERR_INVALID, "invalid CIDR address: %s", text);
	if (max == 32)
		n.bits += MAPPED_BITS;
	*ret = n;
	return 0;
}

bool network_has(const struct network *n, const struct sockaddr *sa)
{
	const struct sockaddr_in6 *six = (const void *)sa;
	const struct sockaddr_in *four = (const void *)sa;
	uint8_t a[16];

	if (sa->sa_family == AF_INET)
		map_four(&four->sin_addr, a);
	else if (sa->sa_family == AF_INET6)
		memcpy(a, &six->sin6_addr, sizeof(a));
	else
		return false;
	return same_bits(a, n->prefix, n->bits);
}

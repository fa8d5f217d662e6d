/* What a load balancer says before the client's first byte. */
#include "lib/proxy.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void header(struct bytes in)
{
	char address[PROXY_ADDRESS] = "", again[PROXY_ADDRESS] = "";
	uint8_t a[16];
	size_t len = 0, len2 = 0;
	enum proxy_result r = proxy_parse(in, &len, address);

	if (r != PROXY_OK) {
		INVARIANT(!address[0]);
		return;
	}
	INVARIANT(len > 0 && len <= in.n && len <= PROXY_MAX);
	INVARIANT(!address[0] || inet_pton(AF_INET, address, a) == 1 ||
		  inet_pton(AF_INET6, address, a) == 1);
	/* What follows does not matter, and nothing less is taken. */
	INVARIANT(proxy_parse(bytes_of(in.p, len), &len2, again) == PROXY_OK && len2 == len);
	INVARIANT(strcmp(address, again) == 0);
	INVARIANT(proxy_parse(bytes_of(in.p, len - 1), &len2, again) == PROXY_MORE);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	AUTO(free) char *s = xstrndup((const char *)data, n);
	struct network net;
	struct err e;

	header(bytes_of(data, n));
	if (network_parse(s, &net, &e) == 0)
		INVARIANT(net.bits >= 0 && net.bits <= 128);
	return 0;
}

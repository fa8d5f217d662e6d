/* URLs of bundle endpoints and issuers, addresses to listen on. */
#include <stdlib.h>
#include <string.h>

#include "server/federation.h"
#include "server/oidc.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* What is taken is taken again, and stays what it is. */
static void endpoint(const char *s)
{
	AUTO(free) char *url = NULL;
	AUTO(free) char *host = NULL;
	AUTO(free) char *again = NULL;
	struct err e;

	if (federation_url(s, &url, &host, &e))
		return;
	INVARIANT(*host && strncmp(url, "https://", 8) == 0);
	INVARIANT(federation_url(url, &again, NULL, &e) == 0 && strcmp(url, again) == 0);
}

static void issuer(const char *s)
{
	AUTO(free) char *origin = NULL;
	AUTO(free) char *path = NULL;
	struct err e;

	if (oidc_url(s, &origin, &path, &e) == 0)
		INVARIANT(strstr(origin, "://") && (!*path || *path == '/'));
}

static void address(const char *s)
{
	AUTO(free) char *host = NULL;
	struct err e;
	int port;

	if (oidc_address(s, &host, &port, &e) == 0)
		INVARIANT(port >= 0 && port <= 65535);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	AUTO(free) char *s = xstrndup((const char *)data, n);

	endpoint(s);
	issuer(s);
	address(s);
	return 0;
}

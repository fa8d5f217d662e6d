#include "server/federation.h"
#include "server/oidc.h"

#include "tests/test.h"

static struct err e;

static void good(const char *url, const char *want, const char *want_host)
{
	AUTO(free) char *got = NULL;
	AUTO(free) char *host = NULL;

	CHECK_OK(federation_url(url, &got, &host, &e));
	CHECK_STR(got, want);
	CHECK_STR(host, want_host);
	CHECK_OK(federation_url(url, NULL, NULL, &e));
}

static void bad(const char *url, const char *text)
{
	char *got = NULL, *host = NULL;

	CHECK_ERR(federation_url(url, &got, &host, &e), ERR_INVALID);
	CHECK_STR(e.msg, text);
	CHECK(!got && !host);
}

static void test_good(void)
{
	good("https://a", "https://a", "a");
	good("HTTPS://A.b:8443/x?y#z", "https://A.b:8443/x?y#z", "A.b");
	good("https://[::1]:443/", "https://[::1]:443/", "::1");
	good("https://[::1]", "https://[::1]", "::1");
	good("https://a:", "https://a:", "a");
	good("https://a/%20", "https://a/%20", "a");
}

/* As Go's net/url and SPIRE say it. */
static void test_bad(void)
{
#define PARSE "failed to parse bundle endpoint URL: parse "
	bad("", "bundle endpoint URL must use the https scheme");
	bad("a.org", "bundle endpoint URL must use the https scheme");
	bad("http://a", "bundle endpoint URL must use the https scheme");
	bad("httpsx://a", "bundle endpoint URL must use the https scheme");
	bad("https:a", "bundle endpoint URL must specify the host");
	bad("https:///x", "bundle endpoint URL must specify the host");
	bad("https://[]/", "bundle endpoint URL must specify the host");
	bad("https://:80/", "bundle endpoint URL must specify the host");
	bad("https://u@a/", "bundle endpoint URL must not contain user info");
	bad("https://u:p@a/", "bundle endpoint URL must not contain user info");
	bad("::x", PARSE "\"::x\": missing protocol scheme");
	bad("1:x", PARSE "\"1:x\": first path segment in URL cannot contain colon");
	bad("https://a b/", PARSE "\"https://a b/\": invalid character \" \" in host name");
	bad("https://a:x/", PARSE "\"https://a:x/\": invalid port \":x\" after host");
	bad("https://[::1/", PARSE "\"https://[::1/\": missing ']' in host");
	bad("https://a/%zz", PARSE "\"https://a/%zz\": invalid URL escape \"%zz\"");
	bad("https://a/%", PARSE "\"https://a/%\": invalid URL escape \"%\"");
	bad("https://a/\n", PARSE "\"https://a/\\n\": net/url: invalid control character in URL");
}

static void test_long(void)
{
	char url[FEDERATION_URL_MAX + 100];

	memset(url, 'a', sizeof(url));
	memcpy(url, "https://", 8);
	url[sizeof(url) - 1] = 0;
	CHECK_ERR(federation_url(url, NULL, NULL, &e), ERR_INVALID);
	url[FEDERATION_URL_MAX] = 0;
	CHECK_OK(federation_url(url, NULL, NULL, &e));
}

static void address(const char *s, const char *host, int port)
{
	AUTO(free) char *h = NULL;
	int p = -1;

	CHECK_OK(oidc_address(s, &h, &p, &e));
	CHECK_STR(h, host);
	CHECK_INT(p, port);
}

static void test_address(void)
{
	char *h = NULL;
	int p = -1;

	address(":443", "0.0.0.0", 443);
	address("localhost:1", "localhost", 1);
	address("[::1]:65535", "::1", 65535);
	CHECK_ERR(oidc_address("", &h, &p, &e), ERR_INVALID);
	CHECK_ERR(oidc_address("a", &h, &p, &e), ERR_INVALID);
	CHECK_ERR(oidc_address("a:", &h, &p, &e), ERR_INVALID);
	CHECK_ERR(oidc_address("a:1x", &h, &p, &e), ERR_INVALID);
	CHECK_ERR(oidc_address("a:65536", &h, &p, &e), ERR_INVALID);
	CHECK(!h && p == -1);
}

static void test_issuer(void)
{
	AUTO(free) char *origin = NULL;
	AUTO(free) char *path = NULL;
	char *o = NULL, *p = NULL;

	CHECK_OK(oidc_url("https://a.b:1/x/y/?q", &origin, &path, &e));
	CHECK_STR(origin, "https://a.b:1");
	CHECK_STR(path, "/x/y");
	CHECK_ERR(oidc_url("a.b", &o, &p, &e), ERR_INVALID);
	CHECK_ERR(oidc_url("https:", &o, &p, &e), ERR_INVALID);
	CHECK_ERR(oidc_url("https:///x", &o, &p, &e), ERR_INVALID);
	CHECK_ERR(oidc_url("https://a b", &o, &p, &e), ERR_INVALID);
	CHECK(!o && !p);
}

TEST_MAIN(TEST(test_good), TEST(test_bad), TEST(test_long), TEST(test_address), TEST(test_issuer))

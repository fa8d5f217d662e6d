/* URLs of bundle endpoints: what Go's net/url and SPIRE refuse is refused, in their words. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "lib/text.h"
#include "server/federation.h"

static int unparsable(struct err *e, const char *url, const char *fmt, const char *what)
{
	AUTO(free) char *q = text_quote(url);
	AUTO(free) char *why = xasprintf("%s%s", fmt, what);

	return err_set(e, ERR_INVALID, "failed to parse bundle endpoint URL: parse %s: %s", q, why);
}

/* RFC 3986 3.1. The length of the scheme; 0: none. */
static size_t scheme_length(const char *url)
{
	size_t n = 0;

	if (!isalpha((unsigned char)url[0]))
		return 0;
	while (isalnum((unsigned char)url[n]) || (url[n] && strchr("+-.", url[n])))
		n++;
	return url[n] == ':' ? n : 0;
}

static int check_escapes(const char *url, struct err *e)
{
	for (const char *p = strchr(url, '%'); p; p = strchr(p + 1, '%'))
		if (!isxdigit((unsigned char)p[1]) || !isxdigit((unsigned char)p[2])) {
			AUTO(free) char *cut = xstrndup(p, strnlen(p, 3));
			AUTO(free) char *q = text_quote(cut);

			return unparsable(e, url, "invalid URL escape ", q);
		}
	return 0;
}

static int check_port(const char *url, const char *port, struct err *e)
{
	if (port[0] == 0 || (port[0] == ':' && port[1 + strspn(port + 1, "0123456789")] == 0))
		return 0;

	AUTO(free) char *q = text_quote(port);
	AUTO(free) char *why = xasprintf("%s after host", q);

	return unparsable(e, url, "invalid port ", why);
}

/* authority, without user info: host, "host:port", "[::1]:port". */
static int check_host(const char *url, const char *authority, char **ret_host, struct err *e)
{
	const char *end = strchr(authority, ']'), *port;
	bool v6 = authority[0] == '[';

	for (const char *p = authority; *p; p++)
		if (strchr(" \"<>\\^`{|}", *p)) {
			char c[2] = { *p, 0 };
			AUTO(free) char *q = text_quote(c);
			AUTO(free) char *why = xasprintf("%s in host name", q);

			return unparsable(e, url, "invalid character ", why);
		}
	if (v6 && !end)
		return unparsable(e, url, "missing ']' in host", "");
	port = v6 ? end + 1 : authority + strcspn(authority, ":");
	if (check_port(url, port, e))
		return e->code;
	if (port == authority || (v6 && end == authority + 1))
		return err_set(e, ERR_INVALID, "bundle endpoint URL must specify the host");
	*ret_host = v6 ? xstrndup(authority + 1, (size_t)(end - authority - 1))
		       : xstrndup(authority, (size_t)(port - authority));
	return 0;
}

static int check_shape(const char *url, size_t *ret_scheme, struct err *e)
{
	size_t n = scheme_length(url);

	if (strlen(url) > FEDERATION_URL_MAX)
		return err_set(e, ERR_INVALID,
			"failed to parse bundle endpoint URL: longer than %d bytes",
			FEDERATION_URL_MAX);
	for (const char *p = url; *p; p++)
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			return unparsable(e, url, "net/url: invalid control character in URL", "");
	if (url[0] == ':')
		return unparsable(e, url, "missing protocol scheme", "");
	if (!n && strcspn(url, ":") < strcspn(url, "/?#"))
		return unparsable(e, url, "first path segment in URL cannot contain colon", "");
	*ret_scheme = n;
	return check_escapes(url, e);
}

int federation_url(const char *url, char **ret, char **ret_host, struct err *e)
{
	AUTO(free) char *authority = NULL;
	AUTO(free) char *host = NULL;
	const char *rest;
	size_t n = 0;
	int r = check_shape(url, &n, e);

	if (r)
		return r;
	rest = url + n + (n ? 1 : 0);
	authority = strncmp(rest, "//", 2) == 0 ? xstrndup(rest + 2, strcspn(rest + 2, "/?#"))
						: xstrdup("");
	if (n != 5 || strncasecmp(url, "https", 5) != 0)
		return err_set(e, ERR_INVALID, "bundle endpoint URL must use the https scheme");
	if (!*authority)
		return err_set(e, ERR_INVALID, "bundle endpoint URL must specify the host");
	r = strchr(authority, '@')
		    ? err_set(e, ERR_INVALID, "bundle endpoint URL must not contain user info")
		    : check_host(url, authority, &host, e);
	if (r)
		return r;
	if (ret)
		*ret = xasprintf("https:%s", rest);
	if (ret_host) {
		*ret_host = host;
		host = NULL;
	}
	return 0;
}

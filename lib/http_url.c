#include <stdlib.h>
#include <string.h>

#include "lib/http_client_internal.h"

static char *url_part(
	const char *url, const struct http_parser_url *u, enum http_parser_url_fields f)
{
	return xstrndup(url + u->field_data[f].off, u->field_data[f].len);
}

static bool has(const struct http_parser_url *u, enum http_parser_url_fields f)
{
	return (u->field_set & (1 << f)) != 0;
}

static void take(struct http_url *ret, const char *text, const struct http_parser_url *u)
{
	AUTO(free) char *path = has(u, UF_PATH) ? url_part(text, u, UF_PATH) : xstrdup("/");
	AUTO(free) char *query = has(u, UF_QUERY) ? url_part(text, u, UF_QUERY) : NULL;
	bool v6;

	ret->path = query ? xasprintf("%s?%s", path, query) : xstrdup(path);
	ret->has_query = query != NULL;
	ret->host = url_part(text, u, UF_HOST);
	ret->port = has(u, UF_PORT) ? u->port : ret->https ? 443 : 80;
	v6 = strchr(ret->host, ':') != NULL;
	ret->authority = has(u, UF_PORT) ? xasprintf(v6 ? "[%s]:%d" : "%s:%d", ret->host, ret->port)
					 : xasprintf(v6 ? "[%s]" : "%s", ret->host);
}

int http_url_parse(struct http_url *url, const char *text, bool plain, struct err *e)
{
	struct http_parser_url u;
	struct http_url got = { 0 };
	size_t n = strlen(text);

	http_parser_url_init(&u);
	if (n > HTTP_HEAD_MAX / 2 || strpbrk(text, " \t\r\n") ||
		http_parser_parse_url(text, n, 0, &u) != 0 || !has(&u, UF_HOST) ||
		!has(&u, UF_SCHEMA) || has(&u, UF_USERINFO))
		return err_set(e, ERR_INVALID, "not a URL: %s", text);
	got.https = strncmp(text, "https://", 8) == 0;
	if (!got.https && strncmp(text, "http://", 7) != 0)
		return err_set(e, ERR_INVALID, "not an https URL: %s", text);
	if (!got.https && !plain)
		return err_set(e, ERR_INVALID, "plain http is not allowed here: %s", text);
	take(&got, text, &u);
	*url = got;
	return 0;
}

void http_url_deinit(struct http_url *url)
{
	free(url->host);
	free(url->authority);
	free(url->path);
	memset(url, 0, sizeof(*url));
}

bool http_host_is_address(const char *host)
{
	unsigned char a[16];

	return uv_inet_pton(AF_INET, host, a) == 0 || uv_inet_pton(AF_INET6, host, a) == 0;
}

/*
 * OIDC discovery: lets whoever knows OpenID Connect verify JWT-SVIDs. Two documents, as SPIRE's
 * oidc-discovery-provider serves them: /.well-known/openid-configuration and /keys, over HTTPS, or
 * in plain HTTP for a gateway in front. Loop thread.
 */
#ifndef ASSAY_SERVER_OIDC_H
#define ASSAY_SERVER_OIDC_H

#include "server/api.h"
#include "server/options.h"

struct oidc;

/* a and o are borrowed. */
int oidc_open(struct loop *l, const struct server_options *o, const struct api *a,
	struct oidc **ret, struct err *e) MUST_USE;
void oidc_close(struct oidc *d); /* the loop must run on */
int oidc_port(const struct oidc *d);

/* "host:port", "[::1]:port", ":port" (every IPv4 address). ERR_INVALID. */
int oidc_address(const char *s, char **ret_host, int *ret_port, struct err *e) MUST_USE;
/* A URL with a scheme and a host, taken apart; path: without a slash at its end. ERR_INVALID. */
int oidc_url(const char *s, char **ret_origin, char **ret_path, struct err *e) MUST_USE;

#endif

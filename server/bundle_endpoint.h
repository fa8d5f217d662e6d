/*
 * The bundle endpoint (SPIFFE Federation, 5): the own bundle over HTTPS, for other trust domains to
 * fetch. Profile https_spiffe shows the server's SVID, https_web a certificate from files. GET /
 * and nothing else. Loop thread.
 */
#ifndef ASSAY_SERVER_BUNDLE_ENDPOINT_H
#define ASSAY_SERVER_BUNDLE_ENDPOINT_H

#include "server/api.h"
#include "server/options.h"

struct bundle_endpoint;

/* The server's SVID must be there. a and o are borrowed. */
int bundle_endpoint_open(struct loop *l, const struct server_options *o, const struct api *a,
	struct bundle_endpoint **ret, struct err *e) MUST_USE;
void bundle_endpoint_close(struct bundle_endpoint *b); /* the loop must run on */
int bundle_endpoint_port(const struct bundle_endpoint *b);

#endif

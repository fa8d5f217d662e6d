/*
 * The PROXY protocol, versions 1 and 2: what a load balancer says about the client before the
 * client's first byte. And networks, by which one says who may say so. Pure functions.
 */
#ifndef ASSAY_LIB_PROXY_H
#define ASSAY_LIB_PROXY_H

#include <stdbool.h>
#include <sys/socket.h>

#include "lib/buf.h"

enum {
	PROXY_V1_MAX = 107, /* with the line's end (2.1) */
	PROXY_MAX = 2048,   /* of version 2, with its TLVs */
	PROXY_ADDRESS = 64, /* as struct peer has it */
};

enum proxy_result {
	PROXY_NONE, /* something else begins here */
	PROXY_MORE, /* so far it is one */
	PROXY_BAD,
	PROXY_OK,
};
/* *ret_len: bytes of the header. address stays as it is when the header names none (a health check
 * of the balancer itself, an unknown protocol). */
enum proxy_result proxy_parse(struct bytes in, size_t *ret_len, char address[PROXY_ADDRESS]);

struct network {
	uint8_t prefix[16]; /* IPv4 as ::ffff:a.b.c.d */
	int bits;
};
/* "10.0.0.0/8", "fd00::/8". */
int network_parse(const char *text, struct network *ret, struct err *e) MUST_USE;
bool network_has(const struct network *n, const struct sockaddr *sa);

#endif

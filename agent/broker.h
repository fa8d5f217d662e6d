/*
 * The SPIFFE Broker Endpoint: mutual TLS by X509-SVIDs on a Unix socket, a TCP address or both,
 * open to the brokers of the configuration (experimental.broker) and nobody else. What they may ask
 * is agent/api_broker's.
 */
#ifndef ASSAY_AGENT_BROKER_H
#define ASSAY_AGENT_BROKER_H

#include "agent/api.h"

struct broker_options {
	struct api *api;
	struct bytes descriptors; /* for reflection; borrowed */
	/* The context of a new connection, as door_options.tls. */
	struct tls_ctx *(*tls)(void *arg);
	void *tls_arg;
};
struct broker;
/* Opens what is configured; *ret is NULL when nothing is, and else to be closed, even after an
 * error. */
int broker_open(const struct broker_options *o, struct broker **ret, struct err *e) MUST_USE;
/* Ends the streams; done(arg) when all is closed, and broker_free() may follow. */
void broker_close(struct broker *b, int grace_ms, void (*done)(void *arg), void *arg);
void broker_free(struct broker *b);      /* NULL is fine */
int broker_port(const struct broker *b); /* of the TCP address; 0: none */

#endif

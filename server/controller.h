/*
 * The Kubernetes controller: watches a cluster's pods, nodes, namespaces, EndpointSlices and the
 * objects of spire.spiffe.io, gives what it hears to server/reconcile.c, and writes back statuses
 * and events. With leader election several servers may run it, of which one writes. Loop thread.
 */
#ifndef ASSAY_SERVER_CONTROLLER_H
#define ASSAY_SERVER_CONTROLLER_H

#include "server/api.h"
#include "server/options.h"

enum {
	CONTROLLER_STATUS_MS = 300,        /* statuses that change within it go out together */
	CONTROLLER_STATUS_RETRY_MS = 5000, /* after a failure */
	CONTROLLER_CALLS_MAX = 16,         /* statuses and events under way */
	CONTROLLER_EVENTS_PER_MINUTE = 60,
};

struct controller;
/* ERR_INVALID, ERR_NOT_FOUND: the configuration, the kubeconfig. */
int controller_new(const struct server_options *o, struct api *a, struct controller **ret,
	struct err *e) MUST_USE;
/* Once the server serves. */
void controller_start(struct controller *c);
/* Stops writing at once and gives the lease back; done(arg) once, later. */
void controller_stop(struct controller *c, void (*done)(void *arg), void *arg);
/* After controller_stop() and loop_drain(). NULL is fine. */
void controller_free(struct controller *c);

struct reconcile_explanation;
void controller_explain(struct controller *c, const char *namespace, const char *name,
	struct reconcile_explanation *ret);

/* The store's observer tells. */
void controller_entry(struct controller *c, const char *id, const struct entry *en);
void controller_bundle(struct controller *c);
void controller_relationship(struct controller *c);

#endif

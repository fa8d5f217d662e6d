/* grpc.health.v1: what is up, for load balancers and `healthcheck`. */
#ifndef ASSAY_LIB_RPC_HEALTH_H
#define ASSAY_LIB_RPC_HEALTH_H

#include "lib/rpc.h"

enum rpc_serving { RPC_SERVING_UNKNOWN, RPC_SERVING, RPC_NOT_SERVING };

struct rpc_health;
struct rpc_health *rpc_health_new(void);
void rpc_health_free(struct rpc_health *h); /* after the servers it was added to */
/* Service "" is the whole server. Those that Watch learn of a change at once. */
void rpc_health_set(struct rpc_health *h, const char *service, enum rpc_serving st);
/* Before rpc_server_start(); one may serve several servers. */
void rpc_health_add(struct rpc_health *h, struct rpc_server *s);

#endif

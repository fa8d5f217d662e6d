/* Service grpc.health.v1.Health on the server's Unix socket: serving when the own bundle is there
 * and the CA signs. */
#include "server/api.h"

#include "grpc/health/v1/health.pb-c.h"

static void check(struct rpc_call *c, const ProtobufCMessage *req)
{
	const Grpc__Health__V1__HealthCheckRequest *rq = (const void *)req;
	Grpc__Health__V1__HealthCheckResponse rs = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
	const struct api *a = rpc_call_data(c);
	struct err e;

	if (rq->service[0]) {
		rpc_fail(c, ERR_INVALID, "per-service health is not supported");
		return;
	}
	rs.status = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING;
	if (!api_ready(a, &e)) {
		rs.status = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING;
		log_event(LOG_WARN, "health", "health check failed", "reason", e.msg, NULL);
	}
	rpc_reply(c, &rs.base);
}

static const struct rpc_method methods[] = { { "Check", RPC_UNARY, check } };

struct rpc_service api_health_service(struct api *a)
{
	return (struct rpc_service){ .desc = &grpc__health__v1__health__descriptor,
		.methods = methods,
		.n_methods = ARRAY_LEN(methods),
		.data = a };
}

/* Service spire.api.server.logger.v1.Logger: the log level, looked at and changed while running. */
#include "server/api.h"

#include "spire/api/server/logger/v1/logger.pb-c.h"
#include "spire/api/types/logger.pb-c.h"

/* Our levels and the wire's are in the same order, the wire's begin at 1. */
static Spire__Api__Types__LogLevel to_wire(enum log_level l)
{
	return (Spire__Api__Types__LogLevel)((int)l + 1);
}

static void answer(struct rpc_call *c)
{
	const struct api *a = rpc_call_data(c);
	Spire__Api__Types__Logger rs = SPIRE__API__TYPES__LOGGER__INIT;

	rs.current_level = to_wire(log_level());
	rs.launch_level = to_wire(a->launch_level);
	rpc_reply(c, &rs.base);
}

static void get_logger(struct rpc_call *c, const ProtobufCMessage *req)
{
	(void)req;
	answer(c);
}

static void set_level(struct rpc_call *c, const ProtobufCMessage *req)
{
	const Spire__Api__Server__Logger__V1__SetLogLevelRequest *rq = (const void *)req;
	int n = (int)rq->new_level;

	if (n == SPIRE__API__TYPES__LOG_LEVEL__UNSPECIFIED) {
		rpc_fail(c, ERR_INVALID, "newLevel value cannot be LogLevel_UNSPECIFIED");
		return;
	}
	if (n < 0 || n > SPIRE__API__TYPES__LOG_LEVEL__TRACE) {
		rpc_fail(c, ERR_INVALID, "unsupported log level");
		return;
	}
	log_set_level((enum log_level)(n - 1));
	log_event(LOG_INFO, "logger", "log level set", "level", log_level_name(log_level()), NULL);
	api_audit(rpc_call_data(c), c, 0, NULL, "new_log_level", log_level_name(log_level()), NULL);
	answer(c);
}

static void reset_level(struct rpc_call *c, const ProtobufCMessage *req)
{
	const struct api *a = rpc_call_data(c);

	(void)req;
	log_set_level(a->launch_level);
	log_event(
		LOG_INFO, "logger", "log level reset", "level", log_level_name(log_level()), NULL);
	api_audit(a, c, 0, NULL, "new_log_level", log_level_name(log_level()), NULL);
	answer(c);
}

static const struct rpc_method methods[] = {
	{ "GetLogger", RPC_UNARY, get_logger },
	{ "SetLogLevel", RPC_UNARY, set_level },
	{ "ResetLogLevel", RPC_UNARY, reset_level },
};

struct rpc_service api_logger_service(struct api *a)
{
	return (struct rpc_service){ .desc = &spire__api__server__logger__v1__logger__descriptor,
		.methods = methods,
		.n_methods = ARRAY_LEN(methods),
		.data = a };
}

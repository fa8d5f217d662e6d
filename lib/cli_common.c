#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "grpc/health/v1/health.pb-c.h"
#include "lib/cli_internal.h"
#include "lib/log.h"
#include "spire/api/server/logger/v1/logger.pb-c.h"
#include "spire/api/types/spiffeid.pb-c.h"

const struct cli_flag cli_healthcheck_flags[] = {
	{ .name = "shallow", .type = CLI_BOOL, .help = "Perform a less stringent health check" },
	{ .name = "verbose", .type = CLI_BOOL, .help = "Print verbose information" },
	CLI_END,
};

/* "SERVING" or why not, in e. */
static int check_health(struct cli *c, const char *who, struct err *e)
{
	Grpc__Health__V1__HealthCheckRequest rq = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
	Grpc__Health__V1__HealthCheckResponse *rs = NULL;
	ProtobufCMessage *m = NULL;
	int r;

	r = cli_call(c, "/grpc.health.v1.Health/Check", &rq.base,
		&grpc__health__v1__health_check_response__descriptor, &m, e);
	if (r) {
		if (cli_bool(c, "verbose"))
			cli_errorf(c, "Failed to check health: %s\n", e->msg);
		return err_set(e, r, "unable to determine health");
	}
	rs = (Grpc__Health__V1__HealthCheckResponse *)m;
	if (rs->status != GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING) {
		const ProtobufCEnumValue *v = protobuf_c_enum_descriptor_get_value(
			&grpc__health__v1__health_check_response__serving_status__descriptor,
			(int)rs->status);

		r = err_set(e, ERR_UNAVAILABLE, "%s returned status \"%s\"", who,
			v ? v->name : "unknown");
	}
	protobuf_c_message_free_unpacked(m, NULL);
	return r;
}

int cli_healthcheck(struct cli *c, const char *what)
{
	AUTO(free) char *lower = xstrdup(what);
	struct err e;

	lower[0] = (char)(lower[0] | 0x20);
	if (cli_bool(c, "verbose"))
		cli_printf(c, "Checking %s health...\n", lower);
	if (!check_health(c, lower, &e)) {
		cli_printf(c, "%s is healthy.\n", what);
		return 0;
	}
	/* The two of SPIRE word it differently, and probes look for it. */
	if (strcmp(what, "Server") == 0)
		cli_errorf(c, "Error: server is unhealthy: %s\n", e.msg);
	else
		cli_errorf(c, "%s is unhealthy: %s\n", what, e.msg);
	return 1;
}

/* ---- logger ---- */

static const char *const levels[] = {
	[SPIRE__API__TYPES__LOG_LEVEL__PANIC] = "panic",
	[SPIRE__API__TYPES__LOG_LEVEL__FATAL] = "fatal",
	[SPIRE__API__TYPES__LOG_LEVEL__ERROR] = "error",
	[SPIRE__API__TYPES__LOG_LEVEL__WARN] = "warning",
	[SPIRE__API__TYPES__LOG_LEVEL__INFO] = "info",
	[SPIRE__API__TYPES__LOG_LEVEL__DEBUG] = "debug",
	[SPIRE__API__TYPES__LOG_LEVEL__TRACE] = "trace",
};

static const char *level_text(int l)
{
	return l > 0 && l < (int)ARRAY_LEN(levels) ? levels[l] : "undefined";
}

int cli_print_logger(struct cli *c, const struct Spire__Api__Types__Logger *l)
{
	const ProtobufCMessage *m = &l->base;

	if (cli_json(c))
		cli_print_json(c, &m, 1);
	else
		cli_printf(c, "Logger Level : %s\nLaunch Level : %s\n\n",
			level_text((int)l->current_level), level_text((int)l->launch_level));
	return 0;
}

int cli_log_level(const char *name, int *ret, struct err *e)
{
	if (!*name)
		return err_set(e, ERR_INVALID, "a value (-level) must be set");
	if (strcasecmp(name, "warn") == 0)
		name = "warning";
	for (int i = 1; i < (int)ARRAY_LEN(levels); i++)
		if (strcasecmp(levels[i], name) == 0) {
			*ret = i;
			return 0;
		}
	return err_set(e, ERR_INVALID, "the value \"%s\" is not a valid setting", name);
}

const struct cli_flag cli_logger_set_flags[] = {
	{ .name = "level",
		.type = CLI_STRING,
		.choices = "panic|fatal|error|warn|info|debug|trace",
		.help = "The new log level, one of (panic, fatal, error, warn, info, debug, "
			"trace)" },
	CLI_END,
};

static int logger_call(struct cli *c, const char *service, const char *method,
	const ProtobufCMessage *rq, const char *what)
{
	AUTO(free) char *path = xasprintf("/%s/%s", service, method);
	ProtobufCMessage *m = NULL;
	struct err e;

	if (cli_call(c, path, rq, &spire__api__types__logger__descriptor, &m, &e)) {
		err_wrap(&e, "%s", what);
		return cli_fail(c, &e);
	}
	cli_print_logger(c, (const Spire__Api__Types__Logger *)m);
	protobuf_c_message_free_unpacked(m, NULL);
	return 0;
}

int cli_logger_get(struct cli *c, const char *service)
{
	Spire__Api__Server__Logger__V1__GetLoggerRequest rq =
		SPIRE__API__SERVER__LOGGER__V1__GET_LOGGER_REQUEST__INIT;

	return logger_call(c, service, "GetLogger", &rq.base, "error fetching logger");
}

int cli_logger_set(struct cli *c, const char *service)
{
	Spire__Api__Server__Logger__V1__SetLogLevelRequest rq =
		SPIRE__API__SERVER__LOGGER__V1__SET_LOG_LEVEL_REQUEST__INIT;
	struct err e;
	int level = 0;

	if (cli_log_level(cli_str(c, "level"), &level, &e))
		return cli_fail(c, &e);
	rq.new_level = (Spire__Api__Types__LogLevel)level;
	return logger_call(c, service, "SetLogLevel", &rq.base, "failed to set log level");
}

int cli_logger_reset(struct cli *c, const char *service)
{
	Spire__Api__Server__Logger__V1__ResetLogLevelRequest rq =
		SPIRE__API__SERVER__LOGGER__V1__RESET_LOG_LEVEL_REQUEST__INIT;

	return logger_call(c, service, "ResetLogLevel", &rq.base, "failed to reset logger");
}

/* ---- configuration ---- */

int cli_invalid(struct cli *c, const char *prefix, const struct buf *problems, const struct err *e)
{
	if (problems->len)
		cli_errorf(c, "%s%s", prefix, buf_cstr(problems));
	else
		cli_errorf(c, "%s%s\n", prefix, e->msg);
	return 1;
}

/* ---- texts ---- */

enum { TIME_TEXT_MAX = 80 };

char *cli_time(int64_t unix_seconds, bool utc)
{
	time_t t = (time_t)unix_seconds;
	struct tm tm = { 0 };
	char text[TIME_TEXT_MAX];

	if (utc) {
		gmtime_r(&t, &tm);
		strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S +0000 UTC", &tm);
	} else {
		localtime_r(&t, &tm);
		strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S %z %Z", &tm);
	}
	return xstrdup(text);
}

char *cli_time_rfc3339(int64_t unix_seconds)
{
	time_t t = (time_t)unix_seconds;
	struct tm tm = { 0 };
	char text[TIME_TEXT_MAX];

	gmtime_r(&t, &tm);
	strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &tm);
	return xstrdup(text);
}

char *cli_id_text(const struct Spire__Api__Types__SPIFFEID *id)
{
	return id ? xasprintf("spiffe://%s%s", id->trust_domain, id->path) : xstrdup("");
}

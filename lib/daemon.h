/*
 * What both daemons are set up with: the log, the health checks and the metrics over HTTP; their
 * rows of the option tables, their flags, and the begin of `run`.
 */
#ifndef ASSAY_LIB_DAEMON_H
#define ASSAY_LIB_DAEMON_H

#include "lib/cli.h"
#include "lib/config.h"
#include "lib/log.h"

struct daemon_options {
	char *log_file; /* NULL: stderr */
	enum log_level log_level;
	bool log_json, log_source_location;
	bool health_enabled;
	char *health_address;
	int health_port;
	char *health_live_path, *health_ready_path;
	bool prometheus_enabled;
	char *prometheus_host;
	int prometheus_port;
	char *metric_prefix;
	bool metric_host, metric_trust_domain; /* labels */
	struct strings allowed_prefixes, blocked_prefixes, allowed_labels, blocked_labels;
	struct strings warnings; /* "file:line: text": what was accepted but is not as it seems */
};

/* The file mode, signals and log that a daemon begins with; logs the warnings. */
int daemon_begin(const struct daemon_options *o, struct err *e) MUST_USE;

/* The metrics of the process, with the shape that the options give. program: "assay-server". */
void daemon_metrics(const struct daemon_options *o, const char *program, const char *trust_domain);

/* ---- flags ---- */

struct daemon_flags {
	const char *log_file, *log_format, *log_level;
	bool log_source_location, expand_env;
};
#define DAEMON_FLAGS                                                                               \
	{ .name = "logFile",                                                                       \
		.type = CLI_STRING,                                                                \
		.choices = "@file",                                                                \
		.help = "File to write logs to" },                                                 \
		{ .name = "logFormat",                                                             \
			.type = CLI_STRING,                                                        \
			.choices = "text|json",                                                    \
			.help = "'text' or 'json'" },                                              \
		{ .name = "logLevel",                                                              \
			.type = CLI_STRING,                                                        \
			.choices = "debug|info|warn|error",                                        \
			.help = "'debug', 'info', 'warn', or 'error'" },                           \
		{ .name = "logSourceLocation",                                                     \
			.type = CLI_BOOL,                                                          \
			.help = "Include source file and line number in log lines" },              \
	{                                                                                          \
		.name = "expandEnv", .type = CLI_BOOL,                                             \
		.help = "Expand environment variables in the config file"                          \
	}
struct daemon_flags daemon_read_flags(const struct cli *c);
/* section: "server" or "agent". */
void daemon_override(struct config *c, const char *section, const struct daemon_flags *f);

/* ---- rows ---- */

/* s: the struct that the table's offsets count in; d: its member of type struct daemon_options. */
#define DAEMON_AT(s, d, member) .offset = offsetof(s, d.member)

#define DAEMON_LOG_ROWS(section, s, d)                                                             \
	{ .path = section ".log_file",                                                             \
		.type = CONFIG_T_STRING,                                                           \
		.flags = CONFIG_EMPTY_IS_UNSET,                                                    \
		DAEMON_AT(s, d, log_file),                                                         \
		.doc = "File to append the log to, opened anew on SIGUSR2. Not given: stderr." },  \
		{ .path = section ".log_format",                                                   \
			.type = CONFIG_T_CHOICE_BOOL,                                              \
			DAEMON_AT(s, d, log_json),                                                 \
			.value = "text",                                                           \
			.choices = "text|json",                                                    \
			.doc = "Shape of log lines." },                                            \
		{ .path = section ".log_level",                                                    \
			.type = CONFIG_T_LOG_LEVEL,                                                \
			DAEMON_AT(s, d, log_level),                                                \
			.value = "INFO",                                                           \
			.doc = "Least severe events to log: DEBUG, INFO, WARN, ERROR." },          \
	{                                                                                          \
		.path = section ".log_source_location", .type = CONFIG_T_BOOL,                     \
		DAEMON_AT(s, d, log_source_location), .value = "false",                            \
		.doc = "File and line in log lines."                                               \
	}

#define DAEMON_HEALTH_ROWS(s, d)                                                                   \
	{ .path = "health_checks",                                                                 \
		.type = CONFIG_T_SECTION,                                                          \
		.doc = "Liveness and readiness over HTTP." },                                      \
		{ .path = "health_checks.listener_enabled",                                        \
			.type = CONFIG_T_BOOL,                                                     \
			DAEMON_AT(s, d, health_enabled),                                           \
			.value = "false",                                                          \
			.doc = "Serve them." },                                                    \
		{ .path = "health_checks.bind_address",                                            \
			.type = CONFIG_T_STRING,                                                   \
			.flags = CONFIG_EMPTY_IS_UNSET,                                            \
			DAEMON_AT(s, d, health_address),                                           \
			.value = "localhost",                                                      \
			.doc = "Address." },                                                       \
		{ .path = "health_checks.bind_port",                                               \
			.type = CONFIG_T_INT,                                                      \
			DAEMON_AT(s, d, health_port),                                              \
			.value = "80",                                                             \
			.min = 1,                                                                  \
			.max = 65535,                                                              \
			.doc = "Port." },                                                          \
		{ .path = "health_checks.live_path",                                               \
			.type = CONFIG_T_STRING,                                                   \
			.flags = CONFIG_EMPTY_IS_UNSET,                                            \
			DAEMON_AT(s, d, health_live_path),                                         \
			.value = "/live",                                                          \
			.doc = "Path of liveness." },                                              \
	{                                                                                          \
		.path = "health_checks.ready_path", .type = CONFIG_T_STRING,                       \
		.flags = CONFIG_EMPTY_IS_UNSET, DAEMON_AT(s, d, health_ready_path),                \
		.value = "/ready", .doc = "Path of readiness."                                     \
	}

#define DAEMON_NOTE_METRICS "only Prometheus is built in; remove it"
#define DAEMON_NOTE_METRICS_TLS                                                                    \
	"metrics are served in plain HTTP; bind them to localhost and put a proxy before them"
#define DAEMON_ROW(p, t, why)                                                                      \
	{                                                                                          \
		.path = p, .type = t, .note = why                                                  \
	}
#define DAEMON_TELEMETRY_ROWS(s, d)                                                                \
	{ .path = "telemetry",                                                                     \
		.type = CONFIG_T_SECTION,                                                          \
		.flags = CONFIG_LENIENT,                                                           \
		.doc = "Metrics." },                                                               \
		DAEMON_ROW("telemetry.DogStatsd", CONFIG_T_REFUSED, DAEMON_NOTE_METRICS),          \
		DAEMON_ROW("telemetry.Statsd", CONFIG_T_REFUSED, DAEMON_NOTE_METRICS),             \
		DAEMON_ROW("telemetry.M3", CONFIG_T_REFUSED, DAEMON_NOTE_METRICS),                 \
		DAEMON_ROW("telemetry.InMem", CONFIG_T_IGNORED, DAEMON_NOTE_METRICS),              \
		{ .path = "telemetry.MetricPrefix",                                                \
			.type = CONFIG_T_STRING,                                                   \
			.flags = CONFIG_EMPTY_IS_UNSET,                                            \
			DAEMON_AT(s, d, metric_prefix),                                            \
			.doc = "What the names of this program's metrics begin with in place of "  \
			       "`assay_server` or `assay_agent`, such as `spire_server`." },       \
		{ .path = "telemetry.EnableTrustDomainLabel",                                      \
			.type = CONFIG_T_BOOL,                                                     \
			DAEMON_AT(s, d, metric_trust_domain),                                      \
			.value = "false",                                                          \
			.doc = "A label `trust_domain` on all metrics." },                         \
		{ .path = "telemetry.EnableHostnameLabel",                                         \
			.type = CONFIG_T_BOOL,                                                     \
			DAEMON_AT(s, d, metric_host),                                              \
			.value = "false",                                                          \
			.doc = "A label `host` on all metrics." },                                 \
		{ .path = "telemetry.AllowedPrefixes",                                             \
			.type = CONFIG_T_STRINGS,                                                  \
			DAEMON_AT(s, d, allowed_prefixes),                                         \
			.doc = "Beginnings of names, written with dots or underscores, that stay " \
			       "although a shorter one of BlockedPrefixes fits." },                \
		{ .path = "telemetry.BlockedPrefixes",                                             \
			.type = CONFIG_T_STRINGS,                                                  \
			DAEMON_AT(s, d, blocked_prefixes),                                         \
			.doc = "Beginnings of names of metrics that are not given out." },         \
		{ .path = "telemetry.AllowedLabels",                                               \
			.type = CONFIG_T_STRINGS,                                                  \
			DAEMON_AT(s, d, allowed_labels),                                           \
			.doc = "If there are any, no other labels are given out." },               \
		{ .path = "telemetry.BlockedLabels",                                               \
			.type = CONFIG_T_STRINGS,                                                  \
			DAEMON_AT(s, d, blocked_labels),                                           \
			.doc = "Labels that are not given out." },                                 \
		{ .path = "telemetry.Prometheus",                                                  \
			.type = CONFIG_T_SECTION,                                                  \
			.flags = CONFIG_PRESENT,                                                   \
			DAEMON_AT(s, d, prometheus_enabled),                                       \
			.doc = "Metrics in Prometheus' text format, over HTTP." },                 \
		{ .path = "telemetry.Prometheus.host",                                             \
			.type = CONFIG_T_STRING,                                                   \
			.flags = CONFIG_EMPTY_IS_UNSET,                                            \
			DAEMON_AT(s, d, prometheus_host),                                          \
			.value = "localhost",                                                      \
			.doc = "Address." },                                                       \
		{ .path = "telemetry.Prometheus.port",                                             \
			.type = CONFIG_T_INT,                                                      \
			DAEMON_AT(s, d, prometheus_port),                                          \
			.value = "9988",                                                           \
			.min = 1,                                                                  \
			.max = 65535,                                                              \
			.doc = "Port." },                                                          \
		DAEMON_ROW("telemetry.Prometheus.tls", CONFIG_T_REFUSED, DAEMON_NOTE_METRICS_TLS)

#endif

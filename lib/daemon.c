#include "lib/daemon.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/mem.h"
#include "lib/metrics.h"

int daemon_begin(const struct daemon_options *o, struct err *e)
{
	int r;

	log_set_level(o->log_level);
	log_set_json(o->log_json);
	log_set_source_location(o->log_source_location);
	r = o->log_file ? log_set_file(o->log_file, e) : 0;
	if (r)
		return r;
	/* What the daemon writes is never for others, and a peer that goes away is no reason to
	 * die. */
	umask(umask(0) | 027);
	signal(SIGPIPE, SIG_IGN);
	for (size_t i = 0; i < o->warnings.n; i++)
		log_event(LOG_WARN, "config", o->warnings.v[i], NULL);
	return 0;
}

void daemon_metrics(const struct daemon_options *o, const char *program, const char *trust_domain)
{
	static char host[256], name[32];

	if (gethostname(host, sizeof(host) - 1))
		host[0] = 0;
	snprintf(name, sizeof(name), "%s", program);
	if (strchr(name, '-'))
		*strchr(name, '-') = '_';
	metrics_configure(&(struct metrics_options){ .program = name,
		.prefix = o->metric_prefix,
		.host = o->metric_host ? host : NULL,
		.trust_domain = o->metric_trust_domain ? trust_domain : NULL,
		.allowed_prefixes = &o->allowed_prefixes,
		.blocked_prefixes = &o->blocked_prefixes,
		.allowed_labels = &o->allowed_labels,
		.blocked_labels = &o->blocked_labels });
	metrics_add_process(program, ASSAY_VERSION);
}

struct daemon_flags daemon_read_flags(const struct cli *c)
{
	return (struct daemon_flags){
		.log_file = cli_str(c, "logFile"),
		.log_format = cli_str(c, "logFormat"),
		.log_level = cli_str(c, "logLevel"),
		.log_source_location = cli_bool(c, "logSourceLocation"),
		.expand_env = cli_bool(c, "expandEnv"),
	};
}

void daemon_override(struct config *c, const char *section, const struct daemon_flags *f)
{
	const struct {
		const char *key, *value, *flag;
	} rows[] = {
		{ "log_file", f->log_file, "-logFile" },
		{ "log_format", f->log_format, "-logFormat" },
		{ "log_level", f->log_level, "-logLevel" },
		{ "log_source_location", f->log_source_location ? "true" : NULL,
			"-logSourceLocation" },
	};

	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		AUTO(free) char *path = xasprintf("%s.%s", section, rows[i].key);

		if (rows[i].value && *rows[i].value)
			config_override(c, path, rows[i].value, rows[i].flag);
	}
}

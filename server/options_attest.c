/* Checks across the keys of the newer node attestors. */
#include "lib/pattern.h"
#include "lib/ssh.h"
#include "server/options_internal.h"

#define SSHPOP "plugins.NodeAttestor.sshpop"

void options_check_sshpop(struct config *c, struct server_options *o)
{
	const char *tpl = o->sshpop_agent_path_template;

	if (!o->attest_sshpop)
		return;
	if (!o->sshpop_cert_authorities.n && !o->sshpop_cert_authorities_path)
		config_problem(c, SSHPOP,
			"one of cert_authorities or cert_authorities_path must be configured");
	for (size_t i = 0; i < o->sshpop_cert_authorities.n; i++) {
		AUTO_BUF struct buf blob = BUF_INIT;
		const char *line = o->sshpop_cert_authorities.v[i];
		struct err e;

		if (ssh_line_parse(bytes_str(line), &blob, &e))
			config_problem(c, SSHPOP ".cert_authorities",
				"failed to parse public key \"%s\": %s", line, e.msg);
	}
	if (tpl && tpl[0] != '/')
		config_problem(c, SSHPOP ".agent_path_template",
			"agent_path_template must begin with \"/\"");
}

#define HTTP_CHALLENGE "plugins.NodeAttestor.http_challenge"

/* Any user of a host can listen on a port from 1024 on, so there the first one to come must be the
 * last one. */
static bool needs_tofu(const struct server_options *o)
{
	if (o->http_challenge_required_port)
		return o->http_challenge_required_port >= 1024;
	return o->http_challenge_allow_non_root_ports;
}

void options_check_http_challenge(struct config *c, struct server_options *o)
{
	if (!o->attest_http_challenge)
		return;
	for (size_t i = 0; i < o->http_challenge_allowed_dns_patterns.n; i++) {
		const char *text = o->http_challenge_allowed_dns_patterns.v[i];
		struct pattern *p;
		struct err e;

		if (pattern_new(text, &p, &e))
			config_problem(c, HTTP_CHALLENGE ".allowed_dns_patterns",
				"cannot compile allowed_dns_pattern: \"%s\": %s", text, e.msg);
		else
			pattern_free(p);
	}
	if (!o->http_challenge_tofu && needs_tofu(o))
		config_problem(c, HTTP_CHALLENGE ".tofu",
			"you can not turn off trust on first use (TOFU) when non-root ports are "
			"allowed");
}

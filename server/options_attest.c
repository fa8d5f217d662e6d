/* Checks across the keys of the newer node attestors. */
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

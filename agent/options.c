/* From file and flags to options; checks across keys. */
#include "agent/options.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/attest.h"
#include "agent/docker.h"
#include "agent/options_internal.h"
#include "lib/config.h"
#include "lib/spiffeid.h"
#include "lib/text.h"

static void check_bundle_url(struct config *c, const struct agent_options *o)
{
	if (o->trust_bundle_unix_socket && !o->trust_bundle_url)
		config_problem(c, "agent.trust_bundle_unix_socket",
			"if trust_bundle_unix_socket is specified, so must be trust_bundle_url");
	if (!o->trust_bundle_url)
		return;
	if (o->trust_bundle_unix_socket && strncmp(o->trust_bundle_url, "http://", 7) != 0)
		config_problem(c, "agent.trust_bundle_url",
			"trust bundle URL must start with http:// when used with trust bundle unix "
			"socket");
	if (!o->trust_bundle_unix_socket && strncmp(o->trust_bundle_url, "https://", 8) != 0)
		config_problem(
			c, "agent.trust_bundle_url", "trust bundle URL must start with https://");
}

static void check_bundle_one_of(struct config *c, const struct agent_options *o, int n)
{
	AUTO_BUF struct buf which = BUF_INIT;

	if (n == 0)
		config_problem(c, "agent",
			"trust_bundle_path, trust_bundle_url or "
			"trust_bundle_spiffe_workload_api must be configured unless "
			"insecure_bootstrap is set");
	if (n > 1) {
		if (o->insecure_bootstrap)
			buf_str(&which, "insecure_bootstrap");
		if (o->trust_bundle_url)
			buf_printf(&which, "%strust_bundle_url",
				!which.len ? ""
				: n == 3   ? ", "
					   : " or ");
		if (o->trust_bundle_path)
			buf_printf(&which, "%strust_bundle_path", which.len ? " or " : "");
		config_problem(c,
			o->trust_bundle_url ? "agent.trust_bundle_url" : "agent.trust_bundle_path",
			"only one of %s can be specified, not %s", buf_cstr(&which),
			n == 3 ? "the three options" : "both");
	}
}

static void check_bundle_workload(struct config *c, const struct agent_options *o)
{
	static const char path[] = "agent.trust_bundle_spiffe_workload_api";
	const char *other = o->insecure_bootstrap  ? "insecure_bootstrap"
			    : o->trust_bundle_url  ? "trust_bundle_url"
			    : o->trust_bundle_path ? "trust_bundle_path"
						   : NULL;

	if (other)
		config_problem(c, path,
			"only one of %s or trust_bundle_spiffe_workload_api can be specified, not "
			"both",
			other);
	if (o->trust_bundle_unix_socket)
		config_problem(c, path,
			"trust_bundle_unix_socket can not be used with "
			"trust_bundle_spiffe_workload_api");
	if (!workload_api_path(o->trust_bundle_workload_api))
		config_problem(c, path, "not an address of the form unix:///path");
}

static void check_bootstrap(struct config *c, const struct agent_options *o)
{
	int n = (o->trust_bundle_path != NULL) + (o->trust_bundle_url != NULL) +
		o->insecure_bootstrap;

	if (o->trust_bundle_workload_api) {
		check_bundle_workload(c, o);
		return;
	}
	check_bundle_one_of(c, o, n);
	check_bundle_url(c, o);
}

static void check_rebootstrap(struct config *c, const struct agent_options *o)
{
	if (o->rebootstrap_mode != REBOOTSTRAP_NEVER && o->insecure_bootstrap)
		config_problem(c, "agent.rebootstrap_mode",
			"insecure_bootstrap option can not be used with rebootstrapping");
	if (o->rebootstrap_delay_ns < 0)
		config_problem(c, "agent.rebootstrap_delay", "must not be negative");
}

char *options_absolute(const char *path)
{
	AUTO(free) char *cwd = NULL;

	if (path[0] == '/')
		return xstrdup(path);
	cwd = getcwd(NULL, 0);
	return xasprintf("%s/%s", cwd ? cwd : "", strncmp(path, "./", 2) == 0 ? path + 2 : path);
}

static void check_sockets(struct config *c, const struct agent_options *o)
{
	AUTO(free) char *public = options_absolute(o->socket_path);
	AUTO(free) char *admin = NULL;
	size_t folder = (size_t)(strrchr(public, '/') - public) + 1;

	if (!o->admin_socket_path || (o->disable_workload_api && o->disable_sds_api))
		return;
	admin = options_absolute(o->admin_socket_path);
	if (strncmp(admin, public, folder) == 0)
		config_problem(c, "agent.admin_socket_path",
			"admin socket cannot be in the same directory or a subdirectory as that "
			"containing the Workload API socket");
}

static void check_delegates(struct config *c, const struct agent_options *o)
{
	for (size_t i = 0; i < o->authorized_delegates.n; i++) {
		const char *text = o->authorized_delegates.v[i];
		struct spiffeid id = SPIFFEID_INIT;
		struct err e;

		if (spiffeid_parse_str(&id, text, &e))
			config_problem(c, "agent.authorized_delegates",
				"error validating authorized delegate \"%s\": %s", text, e.msg);
		else if (o->trust_domain && !spiffeid_member_of(&id, o->trust_domain))
			config_problem(c, "agent.authorized_delegates",
				"error validating authorized delegate \"%s\": it is not a member "
				"of "
				"trust domain \"%s\"",
				text, o->trust_domain);
		spiffeid_deinit(&id);
	}
}

/* Is a plugin of this type simply missing, rather than misspelt? */
static bool nothing_wrong(const struct config *c, const char *type)
{
	return !config_given(c, type) || !c->n_problems;
}

static void check_keymgr(struct config *c, struct agent_file *f)
{
	if (f->has_keymgr_disk && f->has_keymgr_memory)
		config_problem(c, "plugins.KeyManager",
			"exactly one KeyManager is needed, not both \"disk\" and \"memory\"");
	else if (!f->has_keymgr_disk && !f->has_keymgr_memory &&
		 nothing_wrong(c, "plugins.KeyManager"))
		config_problem(c, "plugins.KeyManager",
			"exactly one KeyManager plugin is needed: \"disk\" or \"memory\"");
	f->o.keymgr_memory = f->has_keymgr_memory;
	if (!f->o.keys_dir)
		f->o.keys_dir = xstrdup(f->o.data_dir);
}

static void check_node_attestor(struct config *c, struct agent_options *o)
{
	struct {
		const char *name;
		bool *on;
	} rows[] = {
		{ "join_token", &o->attest_join_token },
		{ "x509pop", &o->attest_x509pop },
		{ "sshpop", &o->attest_sshpop },
		{ "http_challenge", &o->attest_http_challenge },
		{ "k8s_psat", &o->attest_psat },
	};
	const char *first = NULL;
	int n = 0;

	if (o->join_token && o->join_token_file)
		config_problem(c, "agent.join_token_file",
			"only one of join_token or join_token_file can be specified, not both");
	/* A token given by the operator decides, as in SPIRE. */
	if ((o->join_token || o->join_token_file) && !o->attest_join_token) {
		for (size_t i = 0; i < ARRAY_LEN(rows); i++)
			if (*rows[i].on) {
				AUTO(free)
				char *path = xasprintf("plugins.NodeAttestor.%s", rows[i].name);

				config_warning(c, path, "not used: a join token was given");
				*rows[i].on = false;
			}
		o->attest_join_token = true;
		return;
	}
	for (size_t i = 0; i < ARRAY_LEN(rows); i++)
		if (*rows[i].on) {
			if (n++)
				config_problem(c, "plugins.NodeAttestor",
					"exactly one NodeAttestor is needed, not both \"%s\" and "
					"\"%s\"",
					first, rows[i].name);
			first = first ? first : rows[i].name;
		}
	if (!n && nothing_wrong(c, "plugins.NodeAttestor"))
		config_problem(c, "plugins.NodeAttestor",
			"exactly one NodeAttestor plugin is needed: \"join_token\", \"x509pop\", "
			"\"sshpop\", \"http_challenge\" or \"k8s_psat\"");
}

static void check_docker_address(struct config *c, const char *path, const char *address)
{
	AUTO(free) char *url = NULL;
	AUTO(free) char *unix_path = NULL;
	struct err e;

	if (docker_address(address, &url, &unix_path, &e))
		config_problem(c, path, "%s", e.msg);
}

#define DOCKER "plugins.WorkloadAttestor.docker"

static void check_docker(struct config *c, const struct agent_options *o)
{
	struct err e;

	if (!o->attestor_docker)
		return;
	check_docker_address(c, DOCKER ".docker_socket_path", o->docker_socket_path);
	check_docker_address(c, DOCKER ".podman_socket_path", o->docker_podman_socket_path);
	if (docker_template_check(o->docker_podman_socket_path_template, &e))
		config_problem(c, DOCKER ".podman_socket_path_template", "%s", e.msg);
	if (o->docker_version && docker_version_check(o->docker_version, &e))
		config_problem(c, DOCKER ".docker_version", "%s", e.msg);
	if (!o->docker_cgroup_matchers.n)
		return;
	if (o->docker_use_new_container_locator)
		config_problem(c, DOCKER ".container_id_cgroup_matchers",
			"the new container locator and custom cgroup matchers cannot both be "
			"used; to use matchers set use_new_container_locator=false");
	else if (docker_matchers_check(&o->docker_cgroup_matchers, &e))
		config_problem(c, DOCKER ".container_id_cgroup_matchers", "%s", e.msg);
	else
		config_warning(c, DOCKER ".container_id_cgroup_matchers",
			"the locator that needs no patterns knows more; they may go in a later "
			"version");
}

static void check_attestors(struct config *c, struct agent_options *o)
{
	check_node_attestor(c, o);
	if (o->attest_x509pop && !o->x509pop_private_key_path)
		config_problem(
			c, "plugins.NodeAttestor.x509pop", "private_key_path must be configured");
	if (o->attest_x509pop && !o->x509pop_certificate_path)
		config_problem(
			c, "plugins.NodeAttestor.x509pop", "certificate_path must be configured");
	check_docker(c, o);
	if (o->attest_psat && !o->psat_cluster)
		config_problem(
			c, "plugins.NodeAttestor.k8s_psat", "missing required cluster block");
	if (!o->attestor_unix && !o->k8s.on && !o->attestor_docker && !o->attestor_systemd &&
		nothing_wrong(c, "plugins.WorkloadAttestor"))
		config_problem(c, "plugins.WorkloadAttestor",
			"at least one WorkloadAttestor plugin is needed: \"unix\", "
			"\"k8s\", \"docker\" or \"systemd\"");
}

static void check(struct config *c, struct agent_file *f)
{
	config_check_required(c);
	if (!f->has_plugins)
		config_problem(c, "plugins", "plugins section must be configured");
	check_bootstrap(c, &f->o);
	check_rebootstrap(c, &f->o);
	check_sockets(c, &f->o);
	check_delegates(c, &f->o);
	check_attestors(c, &f->o);
	check_keymgr(c, f);
	options_k8s(c, f);
	options_broker(c, f);
}

static void override(struct config *c, const struct agent_flags *f)
{
	const struct {
		const char *path, *value, *flag;
	} rows[] = {
		{ "agent.server_address", f->server_address, "-serverAddress" },
		{ "agent.trust_domain", f->trust_domain, "-trustDomain" },
		{ "agent.data_dir", f->data_dir, "-dataDir" },
		{ "agent.socket_path", f->socket_path, "-socketPath" },
		{ "agent.join_token", f->join_token, "-joinToken" },
		{ "agent.join_token_file", f->join_token_file, "-joinTokenFile" },
		{ "agent.trust_bundle_path", f->trust_bundle, "-trustBundle" },
		{ "agent.trust_bundle_url", f->trust_bundle_url, "-trustBundleUrl" },
		{ "agent.trust_bundle_format", f->trust_bundle_format, "-trustBundleFormat" },
		{ "agent.rebootstrap_mode", f->rebootstrap_mode, "-rebootstrapMode" },
		{ "agent.rebootstrap_delay", f->rebootstrap_delay, "-rebootstrapDelay" },
	};
	const struct {
		const char *path;
		bool on;
		const char *flag;
	} switches[] = {
		{ "agent.insecure_bootstrap", f->insecure_bootstrap, "-insecureBootstrap" },
		{ "agent.allow_unauthenticated_verifiers", f->allow_unauthenticated_verifiers,
			"-allowUnauthenticatedVerifiers" },
		{ "agent.disable_workload_api", f->disable_workload_api, "-disableWorkloadAPI" },
		{ "agent.disable_sds_api", f->disable_sds_api, "-disableSDSAPI" },
	};

	daemon_override(c, "agent", &f->daemon);
	for (size_t i = 0; i < ARRAY_LEN(rows); i++)
		if (rows[i].value && *rows[i].value)
			config_override(c, rows[i].path, rows[i].value, rows[i].flag);
	for (size_t i = 0; i < ARRAY_LEN(switches); i++)
		if (switches[i].on)
			config_override(c, switches[i].path, "true", switches[i].flag);
	if (f->server_port) {
		AUTO(free) char *port = xasprintf("%d", f->server_port);

		config_override(c, "agent.server_port", port, "-serverPort");
	}
}

int agent_options_load(
	struct agent_options *ret, const struct agent_flags *f, struct buf *problems, struct err *e)
{
	struct agent_file file = { 0 };
	struct config c;
	int r;

	config_init(&c, agent_option_table, &file);
	r = config_load(&c, f->config && *f->config ? f->config : AGENT_CONFIG_DEFAULT,
		f->daemon.expand_env, e);
	if (!r) {
		override(&c, f);
		if (!c.broken)
			check(&c, &file);
		r = config_finish(&c, problems, e);
	}
	config_take_warnings(&c, &file.o.daemon.warnings);
	free(file.k8s_brokers.v);
	free(file.brokers.v);
	config_deinit(&c);
	if (r)
		agent_options_deinit(&file.o);
	else
		*ret = file.o;
	return r;
}

void agent_options_deinit(struct agent_options *o)
{
	struct agent_file f = { .o = *o };

	config_free_values(agent_option_table, &f);
	options_k8s_deinit(&o->k8s);
	options_broker_deinit(o);
	strings_deinit(&o->daemon.warnings);
	*o = (struct agent_options){ 0 };
}

void agent_options_print(const struct agent_options *o, struct buf *ret)
{
	struct agent_file f = { .o = *o,
		.has_plugins = true,
		.has_keymgr_memory = o->keymgr_memory,
		.has_keymgr_disk = !o->keymgr_memory };

	config_print(agent_option_table, &f, ret);
	options_k8s_print(&o->k8s, ret);
	options_broker_print(o, ret);
}

void agent_options_describe(struct buf *ret)
{
	config_describe(agent_option_table, ret);
}

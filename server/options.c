/* From file and flags to options; checks across keys. */
#include "server/options.h"

#include <stdlib.h>
#include <string.h>

#include "lib/config.h"
#include "lib/proxy.h"
#include "lib/spiffeid.h"
#include "lib/text.h"
#include "server/options_internal.h"

enum { DAYS_7 = 7 * 24 * 3600 };

static void check_subject(struct config *c, struct server_file *f)
{
	if (f->country.n > 1)
		config_problem(c, "server.ca_subject.country", "only one country is supported");
	if (f->organization.n > 1)
		config_problem(
			c, "server.ca_subject.organization", "only one organization is supported");
	if (f->country.n)
		f->o.ca_subject_country = xstrdup(f->country.v[0]);
	if (f->organization.n)
		f->o.ca_subject_organization = xstrdup(f->organization.v[0]);
	if (f->country.n || f->organization.n || f->o.ca_subject_common_name)
		return;
	/* RFC 5280, 4.1.2.4: "The issuer field MUST contain a non-empty distinguished name". */
	if (f->has_ca_subject)
		config_warning(
			c, "server.ca_subject", "ca_subject is empty; C=US, O=SPIFFE will be used");
	f->o.ca_subject_country = xstrdup("US");
	f->o.ca_subject_organization = xstrdup("SPIFFE");
}

static void check_ttl(struct config *c, const char *path, int64_t ttl, int64_t ca_ttl)
{
	int64_t most = ca_ttl / 6;

	if (most > DAYS_7 * NS_PER_SEC)
		most = DAYS_7 * NS_PER_SEC;
	if (ttl > most) {
		AUTO(free) char *text = duration_format(most / NS_PER_SEC * NS_PER_SEC);

		config_warning(c, path,
			"%s is too high for the configured ca_ttl: SVIDs may be cut short when the "
			"CA rotates; set it to %s or less, or raise ca_ttl (an SVID of over 168h "
			"is "
			"never sure to be whole)",
			strrchr(path, '.') + 1, text);
	}
}

static void default_ttl(int64_t *v, int64_t otherwise)
{
	if (*v == 0)
		*v = otherwise;
}

static void check_ttls(struct config *c, struct server_options *o)
{
	/* Zero means the default, as in SPIRE. */
	default_ttl(&o->ca_ttl_ns, 24 * 3600 * NS_PER_SEC);
	default_ttl(&o->default_x509_svid_ttl_ns, 3600 * NS_PER_SEC);
	default_ttl(&o->default_jwt_svid_ttl_ns, 300 * NS_PER_SEC);
	check_ttl(c, "server.default_x509_svid_ttl", o->default_x509_svid_ttl_ns, o->ca_ttl_ns);
	check_ttl(c, "server.default_jwt_svid_ttl", o->default_jwt_svid_ttl_ns, o->ca_ttl_ns);
	if (o->agent_ttl_ns)
		check_ttl(c, "server.agent_ttl", o->agent_ttl_ns, o->ca_ttl_ns);
}

static void check_proxies(struct config *c, const struct server_options *o)
{
	for (size_t i = 0; i < o->proxy_protocol_trusted_cidrs.n; i++) {
		const char *text = o->proxy_protocol_trusted_cidrs.v[i];
		struct network n;
		struct err e = ERR_INIT;

		if (network_parse(text, &n, &e))
			config_problem(c, "server.proxy_protocol_trusted_cidrs",
				"invalid proxy_protocol_trusted_cidrs value \"%s\": %s", text,
				e.msg);
	}
}

static void check_admin_ids(struct config *c, const struct server_options *o)
{
	for (size_t i = 0; i < o->admin_ids.n; i++) {
		struct spiffeid id = SPIFFEID_INIT;
		struct err e;

		if (spiffeid_parse_str(&id, o->admin_ids.v[i], &e))
			config_problem(c, "server.admin_ids", "could not parse admin ID \"%s\": %s",
				o->admin_ids.v[i], e.msg);
		spiffeid_deinit(&id);
	}
}

/* Is a plugin of this type simply missing, rather than misspelt? */
static bool nothing_wrong(const struct config *c, const char *type)
{
	return !config_given(c, type) || !c->n_problems;
}

static void check_keymgr(struct config *c, struct server_file *f)
{
	if (f->has_keymgr_disk && f->has_keymgr_memory)
		config_problem(c, "plugins.KeyManager",
			"exactly one KeyManager is needed, not both \"disk\" and \"memory\"");
	else if (!f->has_keymgr_disk && !f->has_keymgr_memory &&
		 nothing_wrong(c, "plugins.KeyManager"))
		config_problem(c, "plugins.KeyManager",
			"exactly one KeyManager plugin is needed: \"disk\" or \"memory\"");
	f->o.keymgr_memory = f->has_keymgr_memory;
	if (!f->o.keys_path)
		f->o.keys_path = xasprintf("%s/keys.json", f->o.data_dir);
}

#define X509POP "plugins.NodeAttestor.x509pop"

static void check_x509pop(struct config *c, struct server_options *o)
{
	const char *tpl = o->x509pop_agent_path_template;

	if (!o->attest_x509pop)
		return;
	if (config_given(c, X509POP ".ca_bundle_path") &&
		config_given(c, X509POP ".ca_bundle_paths"))
		config_problem(c, X509POP ".ca_bundle_path",
			"only one of ca_bundle_path or ca_bundle_paths can be configured, not "
			"both");
	if (!o->x509pop_mode_spiffe && !o->x509pop_ca_bundle_paths.n)
		config_problem(
			c, X509POP, "one of ca_bundle_path or ca_bundle_paths must be configured");
	if (o->x509pop_mode_spiffe && o->x509pop_ca_bundle_paths.n)
		config_problem(c, X509POP ".ca_bundle_path",
			"you can not use ca_bundle_path or ca_bundle_paths in spiffe mode");
	if (tpl && tpl[0] != '/')
		config_problem(c, X509POP ".agent_path_template",
			"agent_path_template must begin with \"/\"");
}

#define UPSTREAM "plugins.UpstreamAuthority"

static void need(struct config *c, bool given, const char *section, const char *key)
{
	AUTO(free) char *path = xasprintf(UPSTREAM ".%s", section);

	if (!given)
		config_problem(c, path, "%s must be configured", key);
}

static void check_upstream(struct config *c, struct server_options *o)
{
	if (o->upstream_disk && o->upstream_spire)
		config_problem(c, UPSTREAM, "at most one UpstreamAuthority can be configured");
	if (o->upstream_disk) {
		need(c, o->upstream_cert_path, "disk", "cert_file_path");
		need(c, o->upstream_key_path, "disk", "key_file_path");
	}
	if (o->upstream_spire) {
		need(c, o->upstream_server_address, "spire", "server_address");
		need(c, o->upstream_server_port, "spire", "server_port");
		need(c, o->upstream_workload_api_socket, "spire", "workload_api_socket");
	}
}

/* SPIRE hands SQLite a path or a "file:" URI with a query; here it is the path. */
static void check_database(struct config *c, struct server_options *o)
{
	char *s = o->db_connection_string, *query;

	if (!s) {
		o->db_connection_string = xasprintf("%s/datastore.sqlite3", o->data_dir);
		return;
	}
	if (strncmp(s, "file:", 5) == 0) {
		memmove(s, s + 5, strlen(s + 5) + 1);
		if (strncmp(s, "///", 3) == 0)
			memmove(s, s + 2, strlen(s + 2) + 1);
	}
	query = strchr(s, '?');
	if (query) {
		config_warning(c, "plugins.DataStore.sql.connection_string",
			"\"%s\" has no effect: SQLite is used in the one safe way", query);
		*query = 0;
	}
}

static void check(struct config *c, struct server_file *f)
{
	config_check_required(c);
	if (!f->has_plugins)
		config_problem(c, "plugins", "plugins section must be configured");
	check_subject(c, f);
	check_ttls(c, &f->o);
	check_admin_ids(c, &f->o);
	check_proxies(c, &f->o);
	check_keymgr(c, f);
	check_x509pop(c, &f->o);
	check_upstream(c, &f->o);
	options_check_sshpop(c, &f->o);
	options_check_http_challenge(c, &f->o);
	options_check_k8s(c, f);
	check_database(c, &f->o);
	options_check_federation(c, f);
	options_check_oidc(c, &f->o);
	options_check_controller(c, f);
	if (f->has_plugins && !f->o.attest_join_token && !f->o.attest_x509pop &&
		!f->o.attest_sshpop && !f->o.attest_http_challenge && !f->o.attest_psat &&
		!c->n_problems)
		config_warning(c, "plugins", "there is no NodeAttestor: no agent can attest");
}

static void override(struct config *c, const struct server_flags *f)
{
	const struct {
		const char *path, *value, *flag;
	} rows[] = {
		{ "server.bind_address", f->bind_address, "-bindAddress" },
		{ "server.socket_path", f->socket_path, "-socketPath" },
		{ "server.trust_domain", f->trust_domain, "-trustDomain" },
		{ "server.data_dir", f->data_dir, "-dataDir" },
	};

	daemon_override(c, "server", &f->daemon);
	for (size_t i = 0; i < ARRAY_LEN(rows); i++)
		if (rows[i].value && *rows[i].value)
			config_override(c, rows[i].path, rows[i].value, rows[i].flag);
	if (f->server_port) {
		AUTO(free) char *port = xasprintf("%d", f->server_port);

		config_override(c, "server.bind_port", port, "-serverPort");
	}
}

int server_options_load(struct server_options *ret, const struct server_flags *f,
	struct buf *problems, struct err *e)
{
	struct server_file file = { 0 };
	struct config c;
	int r;

	config_init(&c, server_option_table, &file);
	r = config_load(&c, f->config && *f->config ? f->config : SERVER_CONFIG_DEFAULT,
		f->daemon.expand_env, e);
	if (!r) {
		override(&c, f);
		if (!c.broken)
			check(&c, &file);
		r = config_finish(&c, problems, e);
	}
	config_take_warnings(&c, &file.o.daemon.warnings);
	strings_deinit(&file.country);
	strings_deinit(&file.organization);
	free(file.federates_with.v);
	free(file.psat_clusters.v);
	free(file.publish_clusters.v);
	free(file.notify_clusters.v);
	free(file.notify_namespace);
	free(file.notify_config_map);
	free(file.notify_key);
	free(file.notify_kubeconfig);
	config_deinit(&c);
	if (r)
		server_options_deinit(&file.o);
	else
		*ret = file.o;
	return r;
}

void server_options_deinit(struct server_options *o)
{
	struct server_file f = { .o = *o };

	config_free_values(server_option_table, &f);
	options_free_peers(o);
	options_free_k8s(o);
	free(o->ca_subject_country);
	free(o->ca_subject_organization);
	strings_deinit(&o->daemon.warnings);
	*o = (struct server_options){ 0 };
}

void server_options_print(const struct server_options *o, struct buf *ret)
{
	struct server_file f = { .o = *o,
		.has_plugins = true,
		.has_ca_subject = true,
		.has_reconcile = o->controller.enabled,
		.has_profile = true,
		.has_web = o->bundle_endpoint_web,
		.has_web_cert = o->bundle_endpoint_web,
		.has_keymgr_memory = o->keymgr_memory,
		.has_keymgr_disk = !o->keymgr_memory };

	if (o->ca_subject_country)
		strings_add(&f.country, o->ca_subject_country);
	if (o->ca_subject_organization)
		strings_add(&f.organization, o->ca_subject_organization);
	config_print(server_option_table, &f, ret);
	options_print_peers(o, ret);
	options_print_k8s(o, ret);
	strings_deinit(&f.country);
	strings_deinit(&f.organization);
}

void server_options_describe(struct buf *ret)
{
	config_describe(server_option_table, ret);
}

/* The blocks server.federation and server.oidc: checks, and the peers of federates_with. */
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "lib/text.h"
#include "server/federation.h"
#include "server/oidc.h"
#include "server/options_internal.h"

enum { HINT_LONG_S = 24 * 3600 };

/* ---- federates_with ---- */

static const struct config_node *child(const struct config_node *n, const char *key)
{
	for (size_t i = 0; n->kind == CONFIG_OBJECT && i < n->n; i++)
		if (strcasecmp(n->children[i]->key, key) == 0)
			return n->children[i];
	return NULL;
}

/* JSON and HCL both may give a block as a list of one. */
static const struct config_node *only(const struct config_node *n)
{
	return n && n->kind == CONFIG_LIST && n->n == 1 ? n->children[0] : n;
}

static void check_keys(struct config *c, const struct config_node *n, const char *td,
	const char *const *names, size_t count)
{
	for (size_t i = 0; n->kind == CONFIG_OBJECT && i < n->n; i++) {
		const char *key = n->children[i]->key, *near;
		bool known = false;

		for (size_t k = 0; k < count; k++)
			known |= strcasecmp(key, names[k]) == 0;
		if (known)
			continue;
		near = text_nearest(key, names, count);
		config_problem_at(c, n->children[i],
			"unknown key \"%s\" in federates_with \"%s\"%s%s%s", key, td,
			near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
	}
}

static const char *string_of(const struct config_node *n)
{
	return n && n->kind == CONFIG_STRING ? n->text : "";
}

/* NULL: a problem was reported. */
static char *read_endpoint_id(struct config *c, const struct config_node *block, const char *td,
	const struct config_node *p)
{
	static const char *const names[] = { "endpoint_spiffe_id" };
	struct spiffeid id = SPIFFEID_INIT;
	struct err e;

	check_keys(c, p, td, names, ARRAY_LEN(names));
	if (spiffeid_parse_str(&id, string_of(child(p, "endpoint_spiffe_id")), &e) == 0)
		return id.text;
	config_problem_at(c, block,
		"error parsing federation relationship for trust domain \"%s\": could not get "
		"endpoint SPIFFE ID: %s",
		td, e.msg);
	return NULL;
}

static char *read_profile(struct config *c, const struct config_node *block, const char *td)
{
	const struct config_node *p = only(child(block, "bundle_endpoint_profile")), *web, *spiffe;

	if (!p || p->kind != CONFIG_OBJECT) {
		config_problem_at(c, block,
			"federation configuration for trust domain \"%s\": missing bundle endpoint "
			"configuration (bundle_endpoint_profile)",
			td);
		return NULL;
	}
	web = only(child(p, "https_web"));
	spiffe = only(child(p, "https_spiffe"));
	if (p->n != 1 || (!web && !spiffe)) {
		config_problem_at(c, p,
			"error parsing federation relationship for trust domain \"%s\": %s", td,
			p->n > 1 ? "exactly one bundle endpoint profile is expected"
				 : "no bundle endpoint profile defined; current supported "
				   "profiles are \"https_spiffe\" and \"https_web\"");
		return NULL;
	}
	return web ? xstrdup("") : read_endpoint_id(c, block, td, spiffe);
}

static char *read_url(struct config *c, const struct config_node *block, const char *td)
{
	const char *url = string_of(child(block, "bundle_endpoint_url"));
	char *ret = NULL;
	struct err e;

	if (!*url)
		config_problem_at(c, block,
			"federation.federates_with[\"%s\"].bundle_endpoint_url must be configured",
			td);
	else if (strncasecmp(url, "https://", 8) != 0)
		config_problem_at(c, block,
			"federation.federates_with[\"%s\"].bundle_endpoint_url must use the HTTPS "
			"protocol; URL found: \"%s\"",
			td, url);
	else if (federation_url(url, &ret, NULL, &e))
		config_problem_at(c, block,
			"federation.federates_with[\"%s\"].bundle_endpoint_url: %s", td, e.msg);
	return ret;
}

static bool known_peer(const struct server_options *o, const char *td)
{
	for (size_t i = 0; i < o->n_peers; i++)
		if (strcmp(o->peers[i].trust_domain, td) == 0)
			return true;
	return false;
}

static char *read_name(
	struct config *c, const struct server_options *o, const struct config_node *block)
{
	char *td = NULL;
	struct err e;

	if (trust_domain_parse(block->key, &td, &e)) {
		config_problem_at(c, block, "federates_with \"%s\": %s", block->key, e.msg);
		return NULL;
	}
	if (o->trust_domain && strcmp(td, o->trust_domain) == 0)
		config_problem_at(c, block,
			"federates_with \"%s\": that is this server's own trust domain", td);
	else if (known_peer(o, td))
		config_problem_at(c, block, "federates_with \"%s\" is given twice", td);
	else
		return td;
	free(td);
	return NULL;
}

static void read_peer(struct config *c, struct server_options *o, const struct config_node *n)
{
	static const char *const names[] = { "bundle_endpoint_url", "bundle_endpoint_profile" };
	const struct config_node *block = only(n);
	struct server_peer p = { .url = NULL };

	if (block->kind != CONFIG_OBJECT) {
		config_problem_at(c, n, "federates_with \"%s\" must be a block", n->key);
		return;
	}
	p.trust_domain = read_name(c, o, n);
	check_keys(c, block, n->key, names, ARRAY_LEN(names));
	p.url = read_url(c, block, n->key);
	p.endpoint_id = read_profile(c, block, n->key);
	if (p.trust_domain && p.url && p.endpoint_id) {
		o->peers = xreallocarray(o->peers, o->n_peers + 1, sizeof(*o->peers));
		o->peers[o->n_peers++] = p;
		return;
	}
	free(p.trust_domain);
	free(p.url);
	free(p.endpoint_id);
}

void options_free_peers(struct server_options *o)
{
	for (size_t i = 0; i < o->n_peers; i++) {
		free(o->peers[i].trust_domain);
		free(o->peers[i].url);
		free(o->peers[i].endpoint_id);
	}
	free(o->peers);
	o->peers = NULL;
	o->n_peers = 0;
}

void options_print_peers(const struct server_options *o, struct buf *ret)
{
	for (size_t i = 0; i < o->n_peers; i++) {
		const struct server_peer *p = &o->peers[i];
		AUTO(free) char *url = text_quote(p->url);

		buf_printf(ret,
			"server.federation.federates_with.\"%s\".bundle_endpoint_url = %s\n",
			p->trust_domain, url);
		buf_printf(ret,
			"server.federation.federates_with.\"%s\".bundle_endpoint_profile = "
			"\"%s\"\n",
			p->trust_domain, *p->endpoint_id ? "https_spiffe" : "https_web");
		if (*p->endpoint_id)
			buf_printf(ret,
				"server.federation.federates_with.\"%s\".endpoint_spiffe_id = "
				"\"%s\"\n",
				p->trust_domain, p->endpoint_id);
	}
}

/* ---- bundle_endpoint ---- */

#define ENDPOINT "server.federation.bundle_endpoint"

static void check_files(struct config *c, const char *section, const char *cert, const char *key)
{
	if (!cert)
		config_problem(c, section, "cert_file_path must be configured");
	if (!key)
		config_problem(c, section, "key_file_path must be configured");
}

static void default_interval(int64_t *v, int64_t otherwise_s)
{
	if (*v == 0)
		*v = otherwise_s * NS_PER_SEC;
}

static void check_hint(struct config *c, const struct server_options *o)
{
	if (o->bundle_refresh_hint_ns >= HINT_LONG_S * NS_PER_SEC)
		config_warning(c, ENDPOINT ".refresh_hint",
			"refresh_hint is long: others may not see an unforeseen change of the "
			"bundle in time; 5m is a good value");
	if (o->bundle_refresh_hint_ns < FEDERATION_HINT_MIN_S * NS_PER_SEC)
		config_warning(c, ENDPOINT ".refresh_hint",
			"refresh_hint is short: others take anything below 1m for 1m");
}

static void check_endpoint(struct config *c, struct server_file *f)
{
	struct server_options *o = &f->o;

	if (!o->bundle_endpoint)
		return;
	check_hint(c, o);
	if (f->has_spiffe && f->has_web)
		config_problem(
			c, ENDPOINT ".profile", "exactly one bundle endpoint profile is expected");
	else if (f->has_profile && !f->has_spiffe && !f->has_web)
		config_problem(c, ENDPOINT ".profile",
			"unknown bundle endpoint profile configured; current supported profiles "
			"are \"https_spiffe\" and \"https_web\"");
	else if (!f->has_profile && !config_given(c, ENDPOINT ".acme"))
		config_warning(c, ENDPOINT, "no profile is set; \"https_spiffe\" will be used");
	if (f->has_web && !f->has_web_cert && !config_given(c, ENDPOINT ".profile.https_web.acme"))
		config_problem(c, ENDPOINT ".profile.https_web",
			"malformed https_web profile configuration: 'serving_cert_file' is "
			"required");
	if (f->has_web_cert)
		check_files(c, ENDPOINT ".profile.https_web.serving_cert_file", o->bundle_cert_file,
			o->bundle_key_file);
	default_interval(&o->bundle_file_sync_ns, 3600);
	o->bundle_endpoint_web = f->has_web;
}

void options_check_federation(struct config *c, struct server_file *f)
{
	check_endpoint(c, f);
	for (size_t i = 0; i < f->federates_with.n; i++)
		read_peer(c, &f->o, f->federates_with.v[i]);
}

/* ---- oidc ---- */

static void check_address(struct config *c, const char *path, const char *value)
{
	AUTO(free) char *host = NULL;
	struct err e;
	int port;

	if (value && oidc_address(value, &host, &port, &e))
		config_problem(c, path, "%s: %s", strrchr(path, '.') + 1, e.msg);
}

static void check_url(struct config *c, const char *path, const char *value)
{
	AUTO(free) char *origin = NULL;
	AUTO(free) char *rest = NULL;
	struct err e;

	if (value && oidc_url(value, &origin, &rest, &e))
		config_problem(c, path, "the %s %s", strrchr(path, '.') + 1, e.msg);
}

void options_check_oidc(struct config *c, struct server_options *o)
{
	int ways = o->oidc_serving_cert + !!o->oidc_insecure_addr + !!o->oidc_listen_socket_path;

	if (!o->oidc)
		return;
	if (o->oidc_domains.n == 0)
		config_problem(c, "server.oidc.domains", "at least one domain must be configured");
	if (ways == 0 && !config_given(c, "server.oidc.acme"))
		config_problem(c, "server.oidc",
			"either serving_cert_file, insecure_addr or listen_socket_path must be "
			"configured");
	if (ways > 1)
		config_problem(c, "server.oidc",
			"serving_cert_file, insecure_addr and listen_socket_path are mutually "
			"exclusive");
	if (o->oidc_serving_cert) {
		check_files(
			c, "server.oidc.serving_cert_file", o->oidc_cert_file, o->oidc_key_file);
		check_address(c, "server.oidc.serving_cert_file.addr", o->oidc_addr);
	}
	check_address(c, "server.oidc.insecure_addr", o->oidc_insecure_addr);
	check_url(c, "server.oidc.jwt_issuer", o->oidc_jwt_issuer);
	check_url(c, "server.oidc.jwks_uri", o->oidc_jwks_uri);
	default_interval(&o->oidc_file_sync_ns, 60);
}

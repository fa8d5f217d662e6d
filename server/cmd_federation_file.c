/* What `federation create` and `update` are told, by flags or a file, as messages. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "lib/bundle.h"
#include "lib/spiffeid.h"
#include "server/cmd_federation.h"

enum { FILE_MAX = 16 << 20 };

#define PROFILE(name) SPIRE__API__TYPES__FEDERATION_RELATIONSHIP__BUNDLE_ENDPOINT_PROFILE_##name

typedef Spire__Api__Types__FederationRelationship Relationship;

/* One relationship as given. */
struct given {
	const char *trust_domain, *url, *profile, *endpoint_id, *format;
	const char *path;     /* of the bundle; "": none */
	const json_t *bundle; /* of a file; NULL: none */
};

static int parse_bundle(struct bytes text, const char *format, const char *td,
	Spire__Api__Types__Bundle **ret, struct err *e)
{
	AUTO(bundle_unref) struct bundle *b = NULL;
	bool pem = strcmp(format, "pem") == 0;
	int r = pem ? bundle_from_pem(td, text, &b, e) : bundle_from_json(td, text, &b, e);

	if (r)
		return err_wrap(e,
			pem ? "unable to parse bundle data" : "unable to parse to spiffe bundle");
	*ret = bundle_to_proto(b);
	return 0;
}

static int bundle_of_path(struct cli *c, const struct given *g, const char *td,
	Spire__Api__Types__Bundle **ret, struct err *e)
{
	AUTO_BUF struct buf text = BUF_INIT_MAX(FILE_MAX);

	if (cmd_read(c, g->path, &text, e))
		return err_wrap(e, "cannot read bundle file");
	if (parse_bundle(buf_view(&text), g->format, td, ret, e))
		return err_wrap(e, "cannot parse bundle file");
	return 0;
}

static int bundle_of_json(
	const struct given *g, const char *td, Spire__Api__Types__Bundle **ret, struct err *e)
{
	AUTO(free) char *text = NULL;
	int r;

	if (strcasecmp(g->format, "pem") == 0) {
		if (!json_is_string(g->bundle))
			r = err_set(e, ERR_INVALID,
				"failed to unmarshal json: a PEM bundle is a string");
		else
			r = parse_bundle(
				bytes_str(json_string_value(g->bundle)), "pem", td, ret, e);
	} else if (strcasecmp(g->format, "spiffe") == 0) {
		text = json_dumps(g->bundle, JSON_ENCODE_ANY);
		r = parse_bundle(bytes_str(text), "spiffe", td, ret, e);
	} else {
		AUTO(free) char *q = text_quote(g->format);

		r = err_set(e, ERR_INVALID, "bundle format %s is unsupported", q);
	}
	return r ? err_wrap(e, "cannot parse bundle raw message") : 0;
}

/* *ret_td: the trust domain that the bundle is taken to be of. */
static int take_profile(Relationship *m, const struct given *g, char **ret_td, struct err *e)
{
	struct spiffeid id = SPIFFEID_INIT;
	struct bytes td;

	if (strcmp(g->profile, "https_web") == 0) {
		m->bundle_endpoint_profile_case = PROFILE(HTTPS_WEB);
		m->https_web = xmalloc(sizeof(*m->https_web));
		spire__api__types__httpsweb_profile__init(m->https_web);
		*ret_td = xstrdup(g->trust_domain);
		return 0;
	}
	if (strcmp(g->profile, "https_spiffe") != 0) {
		AUTO(free) char *q = text_quote(g->profile);

		return err_set(e, ERR_INVALID, "unknown bundle endpoint profile type: %s", q);
	}
	if (!*g->endpoint_id)
		return err_set(e, ERR_INVALID,
			"endpoint SPIFFE ID is required if 'https_spiffe' endpoint profile is set");
	if (spiffeid_parse_str(&id, g->endpoint_id, e))
		return err_wrap(e, "cannot parse bundle endpoint SPIFFE ID");
	m->bundle_endpoint_profile_case = PROFILE(HTTPS_SPIFFE);
	m->https_spiffe = xmalloc(sizeof(*m->https_spiffe));
	spire__api__types__httpsspiffeprofile__init(m->https_spiffe);
	m->https_spiffe->endpoint_spiffe_id = xstrdup(g->endpoint_id);
	td = spiffeid_td(&id);
	*ret_td = xstrndup((const char *)td.p, td.n);
	spiffeid_deinit(&id);
	return 0;
}

static int convert(
	struct cli *c, const struct given *g, struct cmd_relationships *to, struct err *e)
{
	Relationship *m;
	AUTO(free) char *td = NULL;
	int r;

	if (!*g->trust_domain)
		return err_set(e, ERR_INVALID, "trust domain is required");
	if (!*g->url)
		return err_set(e, ERR_INVALID, "bundle endpoint URL is required");
	m = xmalloc(sizeof(*m));
	spire__api__types__federation_relationship__init(m);
	to->v = xreallocarray(to->v, to->n + 1, sizeof(Relationship *));
	to->v[to->n++] = m;
	m->trust_domain = xstrdup(g->trust_domain);
	m->bundle_endpoint_url = xstrdup(g->url);
	r = take_profile(m, g, &td, e);
	if (!r && *g->path)
		r = bundle_of_path(c, g, td, &m->trust_domain_bundle, e);
	else if (!r && g->bundle)
		r = bundle_of_json(g, td, &m->trust_domain_bundle, e);
	return r;
}

/* ---- the file ---- */

/* Names are matched as Go's encoding/json does: case is not looked at. */
static const json_t *member(const json_t *o, const char *name)
{
	const char *key;
	json_t *v;

	json_object_foreach((json_t *)(uintptr_t)o, key,
		v) if (strcasecmp(key, name) == 0 && !json_is_null(v)) return v;
	return NULL;
}

static int text_of(const json_t *o, const char *name, const char **ret, struct err *e)
{
	const json_t *v = member(o, name);

	if (v && !json_is_string(v))
		return err_set(
			e, ERR_INVALID, "failed to parse JSON: \"%s\" is not a string", name);
	*ret = v ? json_string_value(v) : "";
	return 0;
}

static int read_one(
	struct cli *c, const json_t *o, size_t i, struct cmd_relationships *to, struct err *e)
{
	struct given g = { .trust_domain = "",
		.url = "",
		.profile = "",
		.endpoint_id = "",
		.format = "",
		.path = "",
		.bundle = member(o, "trustDomainBundle") };
	int r = json_is_object(o) ? 0
				  : err_set(e, ERR_INVALID,
					    "failed to parse JSON: a relationship is an object");

	if (!r)
		r = text_of(o, "trustDomain", &g.trust_domain, e);
	if (!r)
		r = text_of(o, "bundleEndpointURL", &g.url, e);
	if (!r)
		r = text_of(o, "bundleEndpointProfile", &g.profile, e);
	if (!r)
		r = text_of(o, "endpointSPIFFEID", &g.endpoint_id, e);
	if (!r)
		r = text_of(o, "trustDomainBundleFormat", &g.format, e);
	if (r)
		return r;
	return convert(c, &g, to, e) ? err_wrap(e, "could not parse item %zu", i) : 0;
}

static int read_file(struct cli *c, const char *path, struct cmd_relationships *to, struct err *e)
{
	AUTO_BUF struct buf text = BUF_INIT_MAX(FILE_MAX);
	const json_t *all;
	json_error_t why;
	json_t *doc;
	int r = cmd_read(c, path, &text, e);

	if (r)
		return r;
	doc = json_loadb((const char *)text.p, text.len, 0, &why);
	if (!doc)
		return err_set(
			e, ERR_INVALID, "failed to parse JSON: %s (line %d)", why.text, why.line);
	all = member(doc, "federationRelationships");
	if (!json_is_object(doc) || (all && !json_is_array(all)))
		r = err_set(e, ERR_INVALID,
			"failed to parse JSON: \"federationRelationships\" must be a list");
	for (size_t i = 0; !r && i < json_array_size(all); i++)
		r = read_one(c, json_array_get(all, i), i, to, e);
	json_decref(doc);
	return r;
}

static bool none_given(const struct given *g)
{
	return !*g->trust_domain && !*g->url && !*g->profile && !*g->endpoint_id && !*g->path &&
	       strcmp(g->format, "pem") == 0;
}

int cmd_relationships_read(struct cli *c, struct cmd_relationships *ret, struct err *e)
{
	struct given g = { .trust_domain = cli_str(c, "trustDomain"),
		.url = cli_str(c, "bundleEndpointURL"),
		.profile = cli_str(c, "bundleEndpointProfile"),
		.endpoint_id = cli_str(c, "endpointSpiffeID"),
		.path = cli_str(c, "trustDomainBundlePath"),
		.format = cli_str(c, "trustDomainBundleFormat") };
	const char *data = cli_str(c, "data");

	if (!*data)
		return convert(c, &g, ret, e);
	if (!none_given(&g))
		return err_set(e, ERR_INVALID,
			"cannot use other flags to specify relationship fields when 'data' flag is "
			"set");
	return read_file(c, data, ret, e);
}

void cmd_relationships_deinit(struct cmd_relationships *v)
{
	for (size_t i = 0; i < v->n; i++)
		spire__api__types__federation_relationship__free_unpacked(v->v[i], NULL);
	free(v->v);
	*v = (struct cmd_relationships){ .n = 0 };
}

/* Where the API server is and who we are: a kubeconfig file, or what a pod is given. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lib/crypto.h"
#include "lib/kube_internal.h"
#include "lib/text.h"
#include "lib/yaml.h"

static const char pod_folder[] = "/var/run/secrets/kubernetes.io/serviceaccount";

bool kube_source_is(const struct kube_source *s)
{
	return s->path || s->data.len > 0;
}

static void source_deinit(struct kube_source *s)
{
	free(s->path);
	buf_deinit(&s->data);
}

void kube_config_deinit(struct kube_config *c)
{
	free(c->origin);
	free(c->server);
	free(c->tls_server_name);
	free(c->namespace);
	source_deinit(&c->ca);
	source_deinit(&c->cert);
	source_deinit(&c->key);
	source_deinit(&c->token);
	buf_deinit(&c->token_fallback);
	free(c->user);
	if (c->password)
		mem_wipe(c->password, strlen(c->password));
	free(c->password);
	memset(c, 0, sizeof(*c));
}

static void config_init(struct kube_config *c, const char *origin)
{
	memset(c, 0, sizeof(*c));
	c->origin = xstrdup(origin);
	c->ca.data = c->cert.data = c->key.data = c->token.data = c->token_fallback =
		BUF_INIT_SECRET;
}

/* ---- a kubeconfig file ---- */

static const char *text(const json_t *o, const char *key)
{
	const char *s = json_string_value(json_object_get(o, key));

	return s ? s : "";
}

/* The member of [{name: …, what: {…}}] of that name. */
static int find(const json_t *file, const char *list, const char *what, const char *name,
	const json_t **ret, struct err *e)
{
	const json_t *entry, *v;
	size_t i;

	json_array_foreach(json_object_get(file, list), i, entry)
	{
		if (strcmp(text(entry, "name"), name) != 0)
			continue;
		v = json_object_get(entry, what);
		if (!json_is_object(v))
			return err_set(e, ERR_INVALID, "%s \"%s\" is empty", what, name);
		*ret = v;
		return 0;
	}
	return err_set(e, ERR_INVALID, "there is no %s \"%s\"", what, name);
}

static bool yes(const json_t *o, const char *key)
{
	return strcmp(text(o, key), "true") == 0;
}

/* Paths in the file are relative to it. */
static char *beside(const char *file, const char *path)
{
	const char *slash = strrchr(file, '/');

	if (path[0] == '/' || !slash)
		return xstrdup(path);
	return xasprintf("%.*s/%s", (int)(slash - file), file, path);
}

/* key-data, in base64, goes before key. */
static int take_source(struct kube_config *c, const json_t *o, const char *key,
	struct kube_source *ret, struct err *e)
{
	AUTO(free) char *data_key = xasprintf("%s-data", key);
	AUTO_BUF struct buf tight = BUF_INIT_SECRET;
	const char *data = text(o, data_key);

	if (!*data) {
		if (*text(o, key))
			ret->path = beside(c->origin, text(o, key));
		return 0;
	}
	for (; *data; data++) /* it may stand in several lines */
		if (!strchr(" \t\r\n", *data))
			buf_byte(&tight, (uint8_t)*data);
	if (base64_decode(&ret->data, buf_view(&tight), e))
		return err_wrap(e, "%s", data_key);
	return 0;
}

static int take_cluster(struct kube_config *c, const json_t *o, struct err *e)
{
	c->server = xstrdup(text(o, "server"));
	if (!*c->server)
		return err_set(e, ERR_INVALID, "the cluster has no server");
	if (*text(o, "proxy-url"))
		return err_set(e, ERR_INVALID, "proxy-url is not supported");
	if (*text(o, "tls-server-name"))
		c->tls_server_name = xstrdup(text(o, "tls-server-name"));
	c->insecure = yes(o, "insecure-skip-tls-verify");
	if (take_source(c, o, "certificate-authority", &c->ca, e))
		return e->code;
	if (c->insecure && kube_source_is(&c->ca))
		return err_set(e, ERR_INVALID,
			"insecure-skip-tls-verify contradicts certificate-authority");
	return 0;
}

static int refuse_plugins(const json_t *o, struct err *e)
{
	static const char *const keys[] = { "exec", "auth-provider", "as", "as-uid", "as-groups",
		"as-user-extra" };

	for (size_t i = 0; i < ARRAY_LEN(keys); i++)
		if (json_object_get(o, keys[i]))
			return err_set(e, ERR_INVALID,
				"%s is not supported: use a token, tokenFile or a client "
				"certificate",
				keys[i]);
	return 0;
}

static int take_user(struct kube_config *c, const json_t *o, struct err *e)
{
	if (refuse_plugins(o, e) || take_source(c, o, "client-certificate", &c->cert, e) ||
		take_source(c, o, "client-key", &c->key, e))
		return e->code;
	if (kube_source_is(&c->cert) != kube_source_is(&c->key))
		return err_set(e, ERR_INVALID,
			"client-certificate and client-key go together: one is missing");
	if (*text(o, "tokenFile")) {
		c->token.path = beside(c->origin, text(o, "tokenFile"));
		buf_str(&c->token_fallback, text(o, "token"));
	} else {
		buf_str(&c->token.data, text(o, "token"));
	}
	if (*text(o, "username")) {
		c->user = xstrdup(text(o, "username"));
		c->password = xstrdup(text(o, "password"));
	}
	return 0;
}

static int take_file(struct kube_config *c, const json_t *file, const char *context, struct err *e)
{
	const json_t *o = NULL, *cluster = NULL, *user = NULL;
	const char *name = context ? context : text(file, "current-context");

	if (!*name)
		return err_set(e, ERR_INVALID, "there is no current-context");
	if (find(file, "contexts", "context", name, &o, e) ||
		find(file, "clusters", "cluster", text(o, "cluster"), &cluster, e))
		return e->code;
	if (*text(o, "user") && find(file, "users", "user", text(o, "user"), &user, e))
		return e->code;
	c->namespace = xstrdup(*text(o, "namespace") ? text(o, "namespace") : "default");
	if (take_cluster(c, cluster, e))
		return e->code;
	return user ? take_user(c, user, e) : 0;
}

static void wipe_strings(json_t *v)
{
	const char *key;
	json_t *member;
	size_t i;

	if (json_is_string(v)) {
		/* jansson gives no other way to reach its copy */
		mem_wipe((void *)(uintptr_t)json_string_value(v), json_string_length(v));
		return;
	}
	json_object_foreach(v, key, member) wipe_strings(member);
	json_array_foreach(v, i, member) wipe_strings(member);
}

int kube_config_parse(struct bytes yaml, const char *path, const char *context,
	struct kube_config *ret, struct err *e)
{
	struct kube_config c;
	json_t *file = NULL;
	int r;

	if (yaml_parse(yaml, YAML_STRINGS, &file, e))
		return err_wrap(e, "%s", path);
	config_init(&c, path);
	r = json_is_object(file) ? take_file(&c, file, context, e)
				 : err_set(e, ERR_INVALID, "not a kubeconfig file");
	wipe_strings(file);
	json_decref(file);
	if (r) {
		kube_config_deinit(&c);
		return err_wrap(e, "%s", path);
	}
	*ret = c;
	return 0;
}

int kube_config_read(const char *path, const char *context, struct kube_config *ret, struct err *e)
{
	AUTO_BUF struct buf b = BUF_INIT_SECRET;
	int r;

	b.max = YAML_TEXT_MAX;
	r = buf_read_file(&b, path, e);
	return r ? r : kube_config_parse(buf_view(&b), path, context, ret, e);
}

/* ---- a pod ---- */

static char *read_namespace(const char *folder)
{
	AUTO(free) char *path = xasprintf("%s/namespace", folder);
	AUTO_BUF struct buf b = BUF_INIT_MAX(256);
	struct err ignored;

	if (buf_read_file(&b, path, &ignored))
		return xstrdup("default");
	while (b.len > 0 && strchr(" \t\r\n", b.p[b.len - 1]))
		b.p[--b.len] = 0;
	return xstrdup(b.len ? buf_cstr(&b) : "default");
}

int kube_config_pod(const char *folder, struct kube_config *ret, struct err *e)
{
	const char *host = getenv("KUBERNETES_SERVICE_HOST");
	const char *port = getenv("KUBERNETES_SERVICE_PORT");
	struct kube_config c;

	if (!folder)
		folder = pod_folder;
	if (!host || !*host || !port || !*port)
		return err_set(e, ERR_NOT_FOUND,
			"unable to load in-cluster configuration, KUBERNETES_SERVICE_HOST and "
			"KUBERNETES_SERVICE_PORT must be defined");
	config_init(&c, "in-cluster configuration");
	c.server = xasprintf(strchr(host, ':') ? "https://[%s]:%s" : "https://%s:%s", host, port);
	c.namespace = read_namespace(folder);
	c.ca.path = xasprintf("%s/ca.crt", folder);
	c.token.path = xasprintf("%s/token", folder);
	*ret = c;
	return 0;
}

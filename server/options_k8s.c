/* What names Kubernetes clusters: NodeAttestor "k8s_psat", BundlePublisher "k8s_configmap",
 * Notifier "k8sbundle". Each cluster is read by a table of its own. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "lib/text.h"
#include "server/options_internal.h"

#define PSAT "plugins.NodeAttestor.k8s_psat"
#define CONFIGMAP "plugins.BundlePublisher.k8s_configmap"
#define NOTIFIER "plugins.Notifier.k8sbundle"

enum { HINT_LONG_S = 24 * 3600, HINT_SHORT_S = 60 };

/* JSON and HCL both may give a block as a list of one. */
static const struct config_node *only(const struct config_node *n)
{
	return n->kind == CONFIG_LIST && n->n == 1 ? n->children[0] : n;
}

/* The reading of a cluster becomes part of that of the file. */
static bool adopt(struct config *c, struct config *sub)
{
	bool fine = sub->n_problems == 0;

	buf_bytes(&c->problems, buf_view(&sub->problems));
	buf_bytes(&c->warnings, buf_view(&sub->warnings));
	c->n_problems += sub->n_problems;
	config_deinit(sub);
	return fine;
}

/* ---- k8s_psat ---- */

#define AT(member) .offset = offsetof(struct psat_cluster, member)

static const struct config_option psat_table[] = {
	{ .path = "service_account_allow_list", .type = CONFIG_T_STRINGS, AT(service_accounts) },
	{ .path = "audience", .type = CONFIG_T_STRINGS, AT(audience) },
	{ .path = "kube_config_file",
		.type = CONFIG_T_STRING,
		.flags = CONFIG_EMPTY_IS_UNSET,
		AT(kubeconfig) },
	{ .path = "allowed_node_label_keys", .type = CONFIG_T_STRINGS, AT(node_labels) },
	{ .path = "allowed_pod_label_keys", .type = CONFIG_T_STRINGS, AT(pod_labels) },
	{ .path = "use_pod_uid_for_agent_id", .type = CONFIG_T_BOOL, AT(use_pod_uid) },
	CONFIG_OPTIONS_END,
};

static void psat_free(struct psat_cluster *p)
{
	config_free_values(psat_table, p);
	free(p->name);
}

static bool has_psat(const struct server_options *o, const char *name)
{
	for (size_t i = 0; i < o->n_psat_clusters; i++)
		if (strcmp(o->psat_clusters[i].name, name) == 0)
			return true;
	return false;
}

/* The name is part of agents' SPIFFE IDs. */
static void check_cluster_name(
	struct config *c, const struct server_options *o, const struct config_node *n)
{
	struct spiffeid id = SPIFFEID_INIT;
	AUTO(free) char *path = xasprintf("/spire/agent/k8s_psat/%s/x", n->key);
	struct err e;

	if (strchr(n->key, '/') ||
		spiffeid_make(&id, o->trust_domain ? o->trust_domain : "x", path, &e))
		config_problem_at(c, n,
			"the name of cluster \"%s\" cannot be part of a SPIFFE ID: letters, "
			"digits, "
			"\".\", \"-\" and \"_\" can",
			n->key);
	else if (has_psat(o, n->key))
		config_problem_at(c, n, "cluster \"%s\" is given twice", n->key);
	spiffeid_deinit(&id);
}

static void read_psat(struct config *c, struct server_options *o, const struct config_node *n)
{
	struct psat_cluster p = { .name = NULL };
	const struct config_node *block = only(n);
	struct config sub;

	if (block->kind != CONFIG_OBJECT) {
		config_problem_at(c, n, "cluster \"%s\" must be a block", n->key);
		return;
	}
	config_init(&sub, psat_table, &p);
	config_load_object(&sub, block);
	if (!config_given(&sub, "audience"))
		strings_add(&p.audience, "spire-server");
	if (!p.service_accounts.n)
		config_problem_at(&sub, block,
			"cluster \"%s\" configuration must have at least one service account "
			"allowed",
			n->key);
	check_cluster_name(&sub, o, n);
	if (adopt(c, &sub)) {
		p.name = xstrdup(n->key);
		o->psat_clusters = xreallocarray(
			o->psat_clusters, o->n_psat_clusters + 1, sizeof(*o->psat_clusters));
		o->psat_clusters[o->n_psat_clusters++] = p;
	} else {
		psat_free(&p);
	}
}

static void check_psat(struct config *c, struct server_file *f)
{
	if (!f->o.attest_psat)
		return;
	if (!f->psat_clusters.n)
		config_warning(c, PSAT,
			"No clusters configured, PSAT attestation is effectively disabled");
	for (size_t i = 0; i < f->psat_clusters.n; i++)
		read_psat(c, &f->o, f->psat_clusters.v[i]);
}

#undef AT

/* ---- ConfigMaps ---- */

static void target_free(struct publish_target *t)
{
	free(t->cluster);
	free(t->namespace);
	free(t->configmap);
	free(t->key);
	free(t->kubeconfig);
}

static void target_add(struct server_options *o, struct publish_target t)
{
	o->publish_targets = xreallocarray(
		o->publish_targets, o->n_publish_targets + 1, sizeof(*o->publish_targets));
	o->publish_targets[o->n_publish_targets++] = t;
}

struct configmap_block {
	struct publish_target t;
	char *format, *refresh_hint;
};

#define AT(member) .offset = offsetof(struct configmap_block, member)
#define TEXT(name, member)                                                                         \
	{                                                                                          \
		.path = name, .type = CONFIG_T_STRING, .flags = CONFIG_EMPTY_IS_UNSET, AT(member)  \
	}

static const struct config_option configmap_table[] = {
	TEXT("format", format),
	TEXT("namespace", t.namespace),
	TEXT("configmap_name", t.configmap),
	TEXT("configmap_key", t.key),
	TEXT("kubeconfig_path", t.kubeconfig),
	TEXT("refresh_hint", refresh_hint),
	CONFIG_OPTIONS_END,
};

static const char *const formats[] = { "spiffe", "jwks", "pem" };

static void check_format(struct config *c, const struct config_node *block, const char *name,
	struct configmap_block *b)
{
	for (size_t i = 0; i < ARRAY_LEN(formats); i++)
		if (strcasecmp(b->format, formats[i]) == 0) {
			b->t.format = (enum publish_format)i;
			return;
		}
	config_problem_at(c, block,
		"could not parse bundle format from cluster \"%s\": unknown bundle format: \"%s\"",
		name, b->format);
}

static void check_hint(struct config *c, const struct config_node *block, const char *name,
	struct configmap_block *b)
{
	struct err e;
	int64_t ns;

	if (duration_parse(b->refresh_hint, &ns, &e)) {
		config_problem_at(c, block,
			"could not parse refresh_hint from cluster \"%s\": could not parse refresh "
			"hint \"%s\": %s",
			name, b->refresh_hint, e.msg);
		return;
	}
	b->t.refresh_hint_s = ns / NS_PER_SEC;
	if (b->t.refresh_hint_s >= HINT_LONG_S)
		config_warning(c, "refresh_hint",
			"refresh_hint is long: others may not see an unforeseen change of the "
			"bundle in time; 5m is a good value");
	else if (b->t.refresh_hint_s < HINT_SHORT_S)
		config_warning(c, "refresh_hint",
			"refresh_hint is short: others take anything below 1m for 1m");
}

static void check_configmap(struct config *c, const struct config_node *block, const char *name,
	struct configmap_block *b)
{
	const struct {
		const char *value, *what;
	} needed[] = {
		{ b->format, "bundle format" },
		{ b->t.namespace, "namespace" },
		{ b->t.configmap, "configmap name" },
		{ b->t.key, "configmap key" },
	};

	for (size_t i = 0; i < ARRAY_LEN(needed); i++)
		if (!needed[i].value)
			config_problem_at(
				c, block, "missing %s in cluster \"%s\"", needed[i].what, name);
	if (b->format)
		check_format(c, block, name, b);
	if (b->refresh_hint)
		check_hint(c, block, name, b);
}

static void read_configmap(struct config *c, struct server_options *o, const struct config_node *n)
{
	struct configmap_block b = { .format = NULL };
	const struct config_node *block = only(n);
	struct config sub;

	if (block->kind != CONFIG_OBJECT) {
		config_problem_at(c, n, "cluster \"%s\" must be a block", n->key);
		return;
	}
	config_init(&sub, configmap_table, &b);
	config_load_object(&sub, block);
	check_configmap(&sub, block, n->key, &b);
	free(b.format);
	free(b.refresh_hint);
	if (adopt(c, &sub)) {
		b.t.cluster = xstrdup(n->key);
		target_add(o, b.t);
	} else {
		target_free(&b.t);
	}
}

static void check_publisher(struct config *c, struct server_file *f)
{
	if (!f->has_publisher)
		return;
	if (!f->publish_clusters.n)
		config_warning(
			c, CONFIGMAP, "No clusters configured, bundle will not be published");
	for (size_t i = 0; i < f->publish_clusters.n; i++)
		read_configmap(c, &f->o, f->publish_clusters.v[i]);
}

/* ---- the notifier ---- */

#undef AT
#define AT(member) .offset = offsetof(struct publish_target, member)

static const struct config_option notifier_table[] = {
	TEXT("namespace", namespace),
	TEXT("config_map", configmap),
	TEXT("config_map_key", key),
	TEXT("kube_config_file_path", kubeconfig),
	{ .path = "webhook_label",
		.type = CONFIG_T_REFUSED,
		.flags = CONFIG_EMPTY_OK,
		.note = "CA bundles of webhooks are not rotated" },
	{ .path = "api_service_label",
		.type = CONFIG_T_REFUSED,
		.flags = CONFIG_EMPTY_OK,
		.note = "CA bundles of API services are not rotated" },
	CONFIG_OPTIONS_END,
};

static void otherwise(char **s, const char *value)
{
	if (!*s && value)
		*s = xstrdup(value);
}

static void notifier_defaults(struct publish_target *t, const char *cluster)
{
	otherwise(&t->namespace, "spire");
	otherwise(&t->configmap, "spire-bundle");
	otherwise(&t->key, "bundle.crt");
	t->cluster = xstrdup(cluster);
	t->format = PUBLISH_PEM;
}

static void read_notified(
	struct config *c, struct server_options *o, const struct config_node *n, size_t i)
{
	AUTO(free) char *name = xasprintf("k8sbundle/%zu", i + 1);
	struct publish_target t = { .cluster = NULL };
	struct config sub;

	config_init(&sub, notifier_table, &t);
	config_load_object(&sub, n);
	if (!t.kubeconfig)
		config_problem_at(
			&sub, n, "cluster configuration is missing kube_config_file_path");
	if (adopt(c, &sub)) {
		notifier_defaults(&t, name);
		target_add(o, t);
	} else {
		target_free(&t);
	}
}

static void check_notifier(struct config *c, struct server_file *f)
{
	struct publish_target t = { .cluster = NULL };

	if (!f->has_notifier)
		return;
	config_warning(c, NOTIFIER,
		"Notifier plugins are deprecated; use BundlePublisher \"k8s_configmap\" with "
		"format "
		"\"pem\", which does the same");
	for (size_t i = 0; i < f->notify_clusters.n; i++)
		read_notified(c, &f->o, f->notify_clusters.v[i], i);
	/* What stands outside of clusters is one too, if there is anything, or nothing else. */
	if (f->notify_clusters.n && !config_given(c, NOTIFIER ".namespace") &&
		!config_given(c, NOTIFIER ".config_map") &&
		!config_given(c, NOTIFIER ".config_map_key") &&
		!config_given(c, NOTIFIER ".kube_config_file_path"))
		return;
	otherwise(&t.namespace, f->notify_namespace);
	otherwise(&t.configmap, f->notify_config_map);
	otherwise(&t.key, f->notify_key);
	otherwise(&t.kubeconfig, f->notify_kubeconfig);
	notifier_defaults(&t, "k8sbundle");
	target_add(&f->o, t);
}

/* ---- all of them ---- */

void options_check_k8s(struct config *c, struct server_file *f)
{
	check_psat(c, f);
	check_publisher(c, f);
	check_notifier(c, f);
}

void options_free_k8s(struct server_options *o)
{
	for (size_t i = 0; i < o->n_psat_clusters; i++)
		psat_free(&o->psat_clusters[i]);
	free(o->psat_clusters);
	o->psat_clusters = NULL;
	o->n_psat_clusters = 0;
	for (size_t i = 0; i < o->n_publish_targets; i++)
		target_free(&o->publish_targets[i]);
	free(o->publish_targets);
	o->publish_targets = NULL;
	o->n_publish_targets = 0;
}

/* Each line of text with a prefix. */
static void print_under(const char *prefix, struct buf *text, struct buf *ret)
{
	char *save = NULL;
	AUTO(free) char *all = buf_take_str(text);

	for (char *line = strtok_r(all, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
		buf_printf(ret, "%s.%s\n", prefix, line);
}

static void print_target(const struct publish_target *t, struct buf *ret)
{
	AUTO(free) char *prefix = xasprintf(CONFIGMAP ".clusters.\"%s\"", t->cluster);
	AUTO(free) char *hint = NULL;
	AUTO_BUF struct buf text = BUF_INIT;
	struct configmap_block b = { .t = *t };

	if (t->refresh_hint_s)
		b.refresh_hint = hint = duration_format(t->refresh_hint_s * NS_PER_SEC);
	b.format = (char *)(uintptr_t)formats[t->format];
	config_print(configmap_table, &b, &text);
	print_under(prefix, &text, ret);
}

void options_print_k8s(const struct server_options *o, struct buf *ret)
{
	for (size_t i = 0; i < o->n_psat_clusters; i++) {
		const struct psat_cluster *p = &o->psat_clusters[i];
		AUTO(free) char *prefix = xasprintf(PSAT ".clusters.\"%s\"", p->name);
		AUTO_BUF struct buf text = BUF_INIT;

		config_print(psat_table, p, &text);
		print_under(prefix, &text, ret);
	}
	for (size_t i = 0; i < o->n_publish_targets; i++)
		print_target(&o->publish_targets[i], ret);
}

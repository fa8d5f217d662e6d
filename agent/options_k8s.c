/* WorkloadAttestor "k8s": checks across its keys, and the list of brokers. */
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "agent/options_internal.h"
#include "lib/spiffeid.h"
#include "lib/text.h"

#define K8S "plugins.WorkloadAttestor.k8s"
#define BROKER K8S ".experimental.broker"

enum { POLL_ATTEMPTS = 60 };
#define POLL_RETRY_INTERVAL_NS (500 * NS_PER_MS)
#define RELOAD_INTERVAL_NS (60 * NS_PER_SEC)

/* ---- brokers ---- */

static const char *const broker_keys[] = { "id", "pod_reference_scope" };

static const char *text_of(const struct config_node *n, const char *key)
{
	for (size_t i = 0; i < n->n; i++)
		if (strcasecmp(n->children[i]->key, key) == 0 &&
			n->children[i]->kind == CONFIG_STRING)
			return n->children[i]->text;
	return "";
}

static void check_broker_keys(struct config *c, const struct config_node *n)
{
	for (size_t i = 0; i < n->n; i++) {
		const char *key = n->children[i]->key, *near;
		bool known = false;

		for (size_t k = 0; k < ARRAY_LEN(broker_keys); k++)
			known |= strcasecmp(key, broker_keys[k]) == 0;
		if (known && n->children[i]->kind != CONFIG_STRING)
			config_problem_at(c, n->children[i], "\"%s\" must be a string", key);
		if (known)
			continue;
		near = text_nearest(key, broker_keys, ARRAY_LEN(broker_keys));
		config_problem_at(c, n->children[i],
			"unknown key \"%s\" in experimental.broker.brokers%s%s%s", key,
			near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
	}
}

static bool known_broker(const struct k8s_options *o, const char *id)
{
	for (size_t i = 0; i < o->n_brokers; i++)
		if (strcmp(o->brokers[i].id, id) == 0)
			return true;
	return false;
}

static void read_broker(
	struct config *c, struct k8s_options *o, const struct config_node *n, size_t i)
{
	const char *id = text_of(n, "id"), *scope = text_of(n, "pod_reference_scope");
	struct spiffeid parsed = SPIFFEID_INIT;
	struct err e;

	check_broker_keys(c, n);
	if (!*id)
		config_problem_at(
			c, n, "experimental.broker.brokers[%zu].id: must be specified", i);
	else if (known_broker(o, id))
		config_problem_at(
			c, n, "experimental.broker.brokers[%s].id: duplicate broker id", id);
	else if (spiffeid_parse_str(&parsed, id, &e))
		config_problem_at(c, n, "experimental.broker.brokers[%s].id: %s", id, e.msg);
	else if (*scope && strcmp(scope, "agent_node") != 0 && strcmp(scope, "cluster") != 0)
		config_problem_at(c, n,
			"experimental.broker.brokers[%s].pod_reference_scope: unsupported value "
			"\"%s\"; must be one of [agent_node, cluster]",
			id, scope);
	else {
		o->brokers = xreallocarray(o->brokers, o->n_brokers + 1, sizeof(*o->brokers));
		o->brokers[o->n_brokers++] = (struct k8s_broker){ .id = xstrdup(id),
			.cluster_scope = strcmp(scope, "cluster") == 0 };
	}
	spiffeid_deinit(&parsed);
}

static void read_brokers(struct config *c, struct agent_file *f)
{
	struct k8s_options *o = &f->o.k8s;
	const char *policy = o->broker_access_policy;

	if (!policy)
		config_problem(c, BROKER ".access_policy",
			"experimental.broker.access_policy: must be specified as one of "
			"[permissive, enforced]");
	else if (strcmp(policy, "permissive") != 0 && strcmp(policy, "enforced") != 0)
		config_problem(c, BROKER ".access_policy",
			"experimental.broker.access_policy: unsupported value \"%s\"; must be one "
			"of [permissive, enforced]",
			policy);
	if (!f->k8s_brokers.n)
		config_problem(c, BROKER ".brokers",
			"experimental.broker.brokers: at least one broker is required");
	for (size_t i = 0; i < f->k8s_brokers.n; i++)
		read_broker(c, o, f->k8s_brokers.v[i], i);
}

/* ---- no kubelet ---- */

static void check_no_kubelet(struct config *c, const struct k8s_options *o)
{
	const struct {
		const char *name;
		bool set;
	} conflicts[] = {
		{ "kubelet_read_only_port", o->kubelet_read_only_port > 0 },
		{ "kubelet_secure_port", o->kubelet_secure_port > 0 },
		{ "kubelet_ca_path", config_given(c, K8S ".kubelet_ca_path") },
		{ "skip_kubelet_verification", o->skip_kubelet_verification },
		{ "token_path", config_given(c, K8S ".token_path") },
		{ "certificate_path", o->certificate_path },
		{ "private_key_path", o->private_key_path },
		{ "use_anonymous_authentication", o->use_anonymous_authentication },
		{ "node_name_env", config_given(c, K8S ".node_name_env") },
		{ "node_name", o->node_name },
		{ "reload_interval", config_given(c, K8S ".reload_interval") },
	};

	for (size_t i = 0; i < ARRAY_LEN(conflicts); i++)
		if (conflicts[i].set)
			config_problem(c, K8S ".disable_kubelet_client",
				"disable_kubelet_client cannot be used with %s", conflicts[i].name);
	for (size_t i = 0; i < o->n_brokers; i++)
		if (!o->brokers[i].cluster_scope)
			config_problem(c, K8S ".disable_kubelet_client",
				"experimental.broker.brokers[%s].pod_reference_scope must be "
				"\"cluster\" when disable_kubelet_client is true",
				o->brokers[i].id);
}

void options_k8s(struct config *c, struct agent_file *f)
{
	struct k8s_options *o = &f->o.k8s;

	if (!o->on)
		return;
	if (o->has_broker)
		read_brokers(c, f);
	if (o->disable_kubelet_client)
		check_no_kubelet(c, o);
	if (o->kubelet_secure_port > 0 && o->kubelet_read_only_port > 0)
		config_problem(c, K8S ".kubelet_read_only_port",
			"cannot use both the read-only and secure port");
	/* Nothing and less is the default, as in SPIRE. */
	if (o->max_poll_attempts <= 0)
		o->max_poll_attempts = POLL_ATTEMPTS;
	o->poll_quickly = !config_given(c, K8S ".poll_retry_interval");
	if (o->poll_retry_interval_ns <= 0)
		o->poll_retry_interval_ns = POLL_RETRY_INTERVAL_NS;
	if (o->reload_interval_ns <= 0)
		o->reload_interval_ns = RELOAD_INTERVAL_NS;
}

void options_k8s_deinit(struct k8s_options *o)
{
	for (size_t i = 0; i < o->n_brokers; i++)
		free(o->brokers[i].id);
	free(o->brokers);
}

/* The lists of objects that config_print() leaves out, one line for each. */
void options_k8s_print(const struct k8s_options *o, struct buf *ret)
{
	for (size_t i = 0; i < o->n_brokers; i++)
		buf_printf(ret, BROKER ".brokers.\"%s\".pod_reference_scope = \"%s\"\n",
			o->brokers[i].id, o->brokers[i].cluster_scope ? "cluster" : "agent_node");
}

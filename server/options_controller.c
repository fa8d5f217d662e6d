/* The block `controller`: checks across its keys. */
#include <string.h>

#include "lib/pattern.h"
#include "lib/template.h"
#include "server/options_internal.h"

static const char *const ignored[] = { "kube-system", "kube-public", "spire-system" };

static void check_prefix(struct config *c, struct server_controller *o)
{
	const char *prefix = o->entry_id_prefix, *cleanup = o->entry_id_prefix_cleanup;
	size_t n = strlen(prefix);

	/* As there, the dot may be given or not. */
	if (n && prefix[n - 1] == '.')
		o->entry_id_prefix[--n] = 0;
	if (!n || n > 100 ||
		strspn(prefix, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
			       "0123456789-_.") != n)
		config_problem(c, "controller.entry_id_prefix",
			"entry_id_prefix must be of 1 to 100 letters, digits, dots, hyphens and "
			"underscores: it tells which entries are the controller's");
	if (!cleanup)
		return;
	n = strlen(cleanup);
	if (n && cleanup[n - 1] == '.')
		o->entry_id_prefix_cleanup[n - 1] = 0;
	if (strcmp(prefix, cleanup) == 0)
		config_problem(c, "controller.entry_id_prefix_cleanup",
			"if entry_id_prefix_cleanup is specified, it can not be the same value as "
			"entry_id_prefix");
}

static void check_namespaces(struct config *c, struct server_controller *o)
{
	struct pattern *p;
	struct err e;

	if (!config_given(c, "controller.ignore_namespaces"))
		for (size_t i = 0; i < ARRAY_LEN(ignored); i++)
			strings_add(&o->ignore_namespaces, ignored[i]);
	for (size_t i = 0; i < o->ignore_namespaces.n; i++) {
		if (pattern_new(o->ignore_namespaces.v[i], &p, &e))
			config_problem(c, "controller.ignore_namespaces",
				"unable to compile ignore namespaces regex: \"%s\": %s",
				o->ignore_namespaces.v[i], e.msg);
		else
			pattern_free(p);
	}
}

static void check_lease(struct config *c, const struct server_controller *o)
{
	if (o->lease_duration_ns <= o->renew_deadline_ns)
		config_problem(c, "controller.leader_election.lease_duration",
			"lease_duration must be greater than renew_deadline");
	if (o->renew_deadline_ns <= o->retry_period_ns * 12 / 10)
		config_problem(c, "controller.leader_election.renew_deadline",
			"renew_deadline must be greater than retry_period * 1.2");
}

void options_check_controller(struct config *c, struct server_file *f)
{
	struct server_controller *o = &f->o.controller;
	struct template *t;
	struct err e;

	if (!f->o.controller.enabled)
		return;
	if (!o->cluster_name)
		config_problem(c, "controller", "cluster_name must be configured");
	check_prefix(c, o);
	check_namespaces(c, o);
	if (o->parent_id_template) {
		if (template_parse(o->parent_id_template, 0, &t, &e))
			config_problem(c, "controller.parent_id_template",
				"unable to parse parent ID template: %s", e.msg);
		else
			template_free(t);
	}
	if (o->gc_interval_ns <= 0)
		o->gc_interval_ns = 10 * NS_PER_SEC;
	if (!f->has_reconcile) {
		o->static_entries = o->federated = true;
		o->spiffe_ids = !o->static_path;
	}
	if (o->static_path && o->leader_elect)
		config_problem(c, "controller.leader_election.leader_elect",
			"the Leader election is not possible with static manifests");
	if (o->static_path && o->spiffe_ids)
		config_problem(c, "controller.reconcile.cluster_spiffe_ids",
			"ClusterSPIFFEID reconciliation is not possible with static manifests");
	check_lease(c, o);
}

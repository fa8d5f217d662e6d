/* From a pod and a ClusterSPIFFEID to an entry. */
#include <stdlib.h>
#include <string.h>

#include "lib/crypto.h"
#include "server/reconcile_internal.h"

/* ---- Kubernetes' types, as templates see them ---- */

#define END                                                                                        \
	{                                                                                          \
		NULL, NULL, 0, NULL                                                                \
	}
#define STR(name)                                                                                  \
	{                                                                                          \
		name, NULL, TEMPLATE_STRING, NULL                                                  \
	}
#define INT(name)                                                                                  \
	{                                                                                          \
		name, NULL, TEMPLATE_INT, NULL                                                     \
	}
#define BOOL(name)                                                                                 \
	{                                                                                          \
		name, NULL, TEMPLATE_BOOL, NULL                                                    \
	}
#define PTR(name)                                                                                  \
	{                                                                                          \
		name, NULL, TEMPLATE_POINTER, NULL                                                 \
	}
#define MAP(name)                                                                                  \
	{                                                                                          \
		name, NULL, TEMPLATE_MAP, NULL                                                     \
	}
#define LIST(name, type)                                                                           \
	{                                                                                          \
		name, NULL, TEMPLATE_LIST, type                                                    \
	}
#define STRUCT(name, type)                                                                         \
	{                                                                                          \
		name, NULL, TEMPLATE_STRUCT, type                                                  \
	}
#define TYPE(var, name, ...)                                                                       \
	static const struct template_field var##_fields[] = { __VA_ARGS__, END };                  \
	static const struct template_type var = { name, var##_fields, true }

static const struct template_type any = { "struct", NULL, true };

/* Lists without a type of their own hold texts or maps. */
TYPE(owner_reference, "OwnerReference", STR("APIVersion"), STR("Kind"), STR("Name"), STR("UID"),
	PTR("Controller"), PTR("BlockOwnerDeletion"));
static const struct template_field object_meta_fields[] = { STR("Name"), STR("GenerateName"),
	STR("Namespace"), STR("SelfLink"), STR("UID"), STR("ResourceVersion"), INT("Generation"),
	{ "CreationTimestamp", NULL, TEMPLATE_TIME, NULL }, PTR("DeletionTimestamp"),
	PTR("DeletionGracePeriodSeconds"), MAP("Labels"), MAP("Annotations"),
	LIST("OwnerReferences", &owner_reference), LIST("Finalizers", NULL), END };
static const struct template_type object_meta = { "*v1.ObjectMeta", object_meta_fields, false };

TYPE(container_port, "ContainerPort", STR("Name"), INT("HostPort"), INT("ContainerPort"),
	STR("Protocol"), STR("HostIP"));
TYPE(env_var, "EnvVar", STR("Name"), STR("Value"), PTR("ValueFrom"));
TYPE(volume_mount, "VolumeMount", STR("Name"), BOOL("ReadOnly"), STR("MountPath"), STR("SubPath"),
	STR("SubPathExpr"), PTR("MountPropagation"));
TYPE(container, "Container", STR("Name"), STR("Image"), LIST("Command", NULL), LIST("Args", NULL),
	STR("WorkingDir"), LIST("Ports", &container_port), LIST("EnvFrom", &any),
	LIST("Env", &env_var), STRUCT("Resources", &any), LIST("VolumeMounts", &volume_mount),
	STR("TerminationMessagePath"), STR("TerminationMessagePolicy"), STR("ImagePullPolicy"),
	BOOL("Stdin"), BOOL("StdinOnce"), BOOL("TTY"));
TYPE(volume, "Volume", STR("Name"), { "VolumeSource", NULL, TEMPLATE_INLINE, &any });
TYPE(local_reference, "LocalObjectReference", STR("Name"));
TYPE(toleration, "Toleration", STR("Key"), STR("Operator"), STR("Value"), STR("Effect"),
	PTR("TolerationSeconds"));
TYPE(host_alias, "HostAlias", STR("IP"), LIST("Hostnames", NULL));
static const struct template_field pod_spec_fields[] = { LIST("Volumes", &volume),
	LIST("InitContainers", &container), LIST("Containers", &container),
	LIST("EphemeralContainers", &container), STR("RestartPolicy"),
	PTR("TerminationGracePeriodSeconds"), PTR("ActiveDeadlineSeconds"), STR("DNSPolicy"),
	MAP("NodeSelector"), STR("ServiceAccountName"),
	{ "DeprecatedServiceAccount", "serviceAccount", TEMPLATE_STRING, NULL },
	PTR("AutomountServiceAccountToken"), STR("NodeName"), BOOL("HostNetwork"), BOOL("HostPID"),
	BOOL("HostIPC"), PTR("ShareProcessNamespace"),
	{ "SecurityContext", NULL, TEMPLATE_POINTER, &any },
	LIST("ImagePullSecrets", &local_reference), STR("Hostname"), STR("Subdomain"),
	{ "Affinity", NULL, TEMPLATE_POINTER, &any }, STR("SchedulerName"),
	LIST("Tolerations", &toleration), LIST("HostAliases", &host_alias),
	STR("PriorityClassName"), PTR("Priority"), { "DNSConfig", NULL, TEMPLATE_POINTER, &any },
	LIST("ReadinessGates", &any), PTR("RuntimeClassName"), PTR("EnableServiceLinks"),
	PTR("PreemptionPolicy"), MAP("Overhead"), LIST("TopologySpreadConstraints", &any),
	PTR("SetHostnameAsFQDN"), { "OS", NULL, TEMPLATE_POINTER, &local_reference },
	PTR("HostUsers"), LIST("SchedulingGates", &local_reference), LIST("ResourceClaims", &any),
	{ "Resources", NULL, TEMPLATE_POINTER, &any }, PTR("HostnameOverride"), END };
static const struct template_type pod_spec = { "*v1.PodSpec", pod_spec_fields, false };

TYPE(taint, "Taint", STR("Key"), STR("Value"), STR("Effect"));
static const struct template_field node_spec_fields[] = { STR("PodCIDR"), LIST("PodCIDRs", NULL),
	STR("ProviderID"), BOOL("Unschedulable"), LIST("Taints", &taint),
	{ "ConfigSource", NULL, TEMPLATE_POINTER, &any },
	{ "DoNotUseExternalID", "externalID", TEMPLATE_STRING, NULL }, END };
static const struct template_type node_spec = { "*v1.NodeSpec", node_spec_fields, false };

#define ROOT(name, kind, type)                                                                     \
	{                                                                                          \
		name, name, kind, type                                                             \
	}
static const struct template_field root_fields[] = { ROOT("TrustDomain", TEMPLATE_STRING, NULL),
	ROOT("ClusterName", TEMPLATE_STRING, NULL), ROOT("ClusterDomain", TEMPLATE_STRING, NULL),
	ROOT("PodMeta", TEMPLATE_POINTER, &object_meta),
	ROOT("PodSpec", TEMPLATE_POINTER, &pod_spec),
	ROOT("NodeMeta", TEMPLATE_POINTER, &object_meta),
	ROOT("NodeSpec", TEMPLATE_POINTER, &node_spec), END };
static const struct template_type root = { "*spireentry.templateData", root_fields, false };

/* ---- one template ---- */

/* Adds the cluster's names, and what is known of the node. */
static json_t *template_data(struct reconcile *r, const char *pod_json, const char *node_json)
{
	json_t *j = pod_json ? json_loads(pod_json, 0, NULL) : json_object();
	json_t *node = node_json ? json_loads(node_json, 0, NULL) : NULL;

	if (!j)
		j = json_object();
	if (node)
		json_object_update(j, node);
	json_decref(node);
	json_object_set_new(j, "TrustDomain", json_string(r->api->trust_domain));
	json_object_set_new(j, "ClusterName", json_string(r->o.cluster_name));
	json_object_set_new(j, "ClusterDomain", json_string(r->o.cluster_domain));
	return j;
}

static int expand(const struct template *t, json_t *data, struct buf *ret, struct err *e)
{
	int r;

	buf_reset(ret);
	r = template_execute(t, data, &root, ret, e);
	if (r)
		return err_wrap(e, "failed to execute template");
	if (strlen(buf_cstr(ret)) != ret->len)
		return err_set(e, ERR_INVALID, "the template's result has a zero byte");
	return 0;
}

static int expand_id(
	struct reconcile *r, const struct template *t, json_t *data, char **ret, struct err *e)
{
	AUTO_BUF struct buf b = BUF_INIT;
	struct spiffeid id = SPIFFEID_INIT;
	int code = expand(t, data, &b, e);

	if (code)
		return code;
	if (spiffeid_parse_str(&id, buf_cstr(&b), e))
		return err_wrap(e, "invalid SPIFFE ID");
	if (!spiffeid_member_of(&id, r->api->trust_domain)) {
		struct bytes td = spiffeid_td(&id);

		code = err_set(e, ERR_INVALID,
			"invalid SPIFFE ID: expected trust domain \"%s\" but got \"%.*s\"",
			r->api->trust_domain, (int)td.n, (const char *)td.p);
		spiffeid_deinit(&id);
		return code;
	}
	*ret = id.text;
	return 0;
}

int render_parent(struct reconcile *r, const char *node_json, char **ret, struct err *e)
{
	json_t *data = template_data(r, NULL, node_json);
	int code = expand_id(r, r->parent, data, ret, e);

	json_decref(data);
	return code ? err_wrap(e, "failed to render parent ID") : 0;
}

/* ---- the entry ---- */

static int by_text(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The names that the pod's services have in the cluster, sorted, behind those of the templates. */
static void add_services(struct reconcile *r, const struct pod *p, struct strings *ret)
{
	const struct strings *services = map_get_str(r->services, p->uid);
	struct strings all = { .n = 0 };

	for (size_t i = 0; services && i < services->n; i++) {
		const char *name = services->v[i], *ns = p->ns->name;
		AUTO(free) char *in_ns = xasprintf("%s.%s", name, ns);
		AUTO(free) char *in_svc = xasprintf("%s.svc", in_ns);
		AUTO(free) char *whole = xasprintf("%s.%s", in_svc, r->o.cluster_domain);

		strings_add(&all, name);
		strings_add(&all, in_ns);
		strings_add(&all, in_svc);
		if (*r->o.cluster_domain)
			strings_add(&all, whole);
	}
	if (all.n > 1)
		qsort(all.v, all.n, sizeof(*all.v), by_text);
	for (size_t i = 0; i < all.n; i++)
		if (!strings_has(ret, all.v[i]))
			strings_add(ret, all.v[i]);
	strings_deinit(&all);
}

static int render_dns(struct reconcile *r, const struct reconcile_object *o, const struct pod *p,
	json_t *data, struct entry *ret, struct err *e)
{
	AUTO_BUF struct buf b = BUF_INIT;

	for (size_t i = 0; i < o->id.n_dns; i++) {
		if (expand(o->id.dns[i], data, &b, e))
			return err_wrap(e, "failed to render DNS name");
		if (!strings_has(&ret->dns_names, buf_cstr(&b)))
			strings_add(&ret->dns_names, buf_cstr(&b));
	}
	if (o->id.services)
		add_services(r, p, &ret->dns_names);
	return 0;
}

static int render_selectors(const struct reconcile_object *o, const struct pod *p, json_t *data,
	struct entry *ret, struct err *e)
{
	AUTO(free) char *uid = xasprintf("pod-uid:%s", p->uid);
	AUTO_BUF struct buf b = BUF_INIT;

	selectors_add(&ret->selectors, "k8s", uid);
	for (size_t i = 0; i < o->id.n_selectors; i++) {
		int r = expand(o->id.selectors[i], data, &b, e);

		if (!r && selectors_add_text(&ret->selectors, buf_cstr(&b), e))
			r = err_wrap(e, "invalid workload selector \"%.200s\"", buf_cstr(&b));
		if (r)
			return err_wrap(e, "failed to render workload selector");
	}
	return 0;
}

static int render_data(struct reconcile *r, const struct reconcile_object *o, const struct pod *p,
	json_t *data, struct entry *ret, struct err *e)
{
	int code;

	ret->id = xstrdup("");
	ret->hint = xstrdup(o->id.hint);
	ret->parent_id = xstrdup(p->node->parent);
	code = expand_id(r, o->id.id, data, &ret->spiffe_id, e);
	if (code)
		return err_wrap(e, "failed to render SPIFFE ID");
	code = render_dns(r, o, p, data, ret, e);
	if (!code)
		code = render_selectors(o, p, data, ret, e);
	if (code)
		return code;
	ret->x509_svid_ttl = o->id.ttl;
	ret->jwt_svid_ttl = o->id.jwt_ttl;
	ret->federates_with = strings_dup(&o->id.federates);
	ret->admin = o->id.admin;
	ret->downstream = o->id.downstream;
	return render_check(r, ret, e);
}

int render_pod(struct reconcile *r, const struct reconcile_object *o, const struct pod *p,
	struct entry *ret, struct err *e)
{
	struct entry en = { .id = NULL };
	json_t *data;
	int code;

	if (!p->node || !p->node->json)
		return err_set(e, ERR_NOT_FOUND, "the pod is not on a node yet");
	if (!p->node->parent)
		return err_set(e, ERR_INVALID, "%s", p->node->problem);
	data = template_data(r, p->json, o->id.needs_node ? p->node->json : NULL);
	code = render_data(r, o, p, data, &en, e);
	json_decref(data);
	if (code)
		entry_deinit(&en);
	else
		*ret = en;
	return code;
}

int render_check(struct reconcile *r, struct entry *en, struct err *e)
{
	Spire__Api__Types__Entry *m = entry_to_proto(en);
	struct entry parsed;
	int code = api_entry_parse(&parsed, m, NULL, r->api->trust_domain, e);

	spire__api__types__entry__free_unpacked(m, NULL);
	if (code)
		return code;
	code = api_entry_check(&parsed, ENTRY_ALL, e);
	if (code) {
		entry_deinit(&parsed);
		return code;
	}
	entry_deinit(en);
	*en = parsed;
	return 0;
}

/* ---- digests ---- */

static void put_text(struct buf *b, const char *s)
{
	buf_append(b, s ? s : "", s ? strlen(s) + 1 : 1);
}

/* What makes two entries similar: id, parent, and selectors in any order. */
void entry_key(const struct entry *en, uint8_t ret[KEY_SIZE])
{
	AUTO_BUF struct buf b = BUF_INIT;
	struct selectors s = selectors_dup(&en->selectors);

	selectors_normalize(&s);
	put_text(&b, en->spiffe_id);
	put_text(&b, en->parent_id);
	for (size_t i = 0; i < s.n; i++) {
		put_text(&b, s.v[i].type);
		put_text(&b, s.v[i].value);
	}
	selectors_deinit(&s);
	hash_of(HASH_SHA256, buf_view(&b), ret);
}

/* All else that an object can say. The order of DNS names counts, as the first becomes the common
 * name; that of trust domains does not. */
void entry_content(const struct entry *en, uint8_t ret[KEY_SIZE])
{
	AUTO_BUF struct buf b = BUF_INIT;
	struct strings federates = strings_dup(&en->federates_with);

	if (federates.n > 1)
		qsort(federates.v, federates.n, sizeof(*federates.v), by_text);
	buf_printf(&b, "%d %d %d %d %d", en->x509_svid_ttl, en->jwt_svid_ttl, en->admin,
		en->downstream, en->store_svid);
	put_text(&b, en->hint);
	for (size_t i = 0; i < federates.n; i++)
		put_text(&b, federates.v[i]);
	put_text(&b, "");
	for (size_t i = 0; i < en->dns_names.n; i++)
		put_text(&b, en->dns_names.v[i]);
	strings_deinit(&federates);
	hash_of(HASH_SHA256, buf_view(&b), ret);
}

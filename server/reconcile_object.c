/* The three kinds of objects: what their JSON says, and the status that it comes to. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "lib/crypto.h"
#include "lib/text.h"
#include "server/federation.h"
#include "server/reconcile_internal.h"

/* ---- parts of a spec ---- */

static const char *text_of(const json_t *j, const char *key)
{
	const char *s = json_string_value(json_object_get(j, key));

	return s ? s : "";
}

static bool flag_of(const json_t *j, const char *key)
{
	return json_is_true(json_object_get(j, key));
}

/* metav1.Duration: as Go writes it. Cut to seconds, as the API has them. */
static int read_ttl(const json_t *j, const char *key, int32_t *ret, struct err *e)
{
	const json_t *v = json_object_get(j, key);
	int64_t ns;

	if (!v || json_is_null(v))
		return 0;
	if (!json_is_string(v))
		return err_set(e, ERR_INVALID, "invalid %s value: not a duration", key);
	if (duration_parse(json_string_value(v), &ns, e))
		return err_wrap(e, "invalid %s value", key);
	if (ns < 0 || ns / NS_PER_SEC > INT32_MAX)
		return err_set(e, ERR_INVALID, "invalid %s value: \"%.50s\" is out of range", key,
			json_string_value(v));
	*ret = (int32_t)(ns / NS_PER_SEC);
	return 0;
}

static int read_strings(const json_t *j, const char *key, struct strings *ret, struct err *e)
{
	const json_t *v = json_object_get(j, key);

	for (size_t i = 0; i < json_array_size(v); i++) {
		if (!json_is_string(json_array_get(v, i)))
			return err_set(e, ERR_INVALID, "invalid %s value: not a text", key);
		strings_add(ret, json_string_value(json_array_get(v, i)));
	}
	return 0;
}

static int read_federates(const json_t *j, struct strings *ret, struct err *e)
{
	struct strings names = { .n = 0 };
	int r = read_strings(j, "federatesWith", &names, e);

	for (size_t i = 0; !r && i < names.n; i++) {
		AUTO(free) char *td = NULL;

		r = trust_domain_parse(names.v[i], &td, e);
		if (r)
			err_wrap(e, "invalid federatesWith value");
		else if (!strings_has(ret, td))
			strings_add(ret, td);
	}
	strings_deinit(&names);
	return r;
}

static int read_templates(const json_t *j, const char *key, const char *what,
	struct template ***ret, size_t *ret_n, struct err *e)
{
	const json_t *v = json_object_get(j, key);
	size_t n = json_array_size(v);

	if (n > RECONCILE_TEMPLATES_MAX)
		return err_set(e, ERR_INVALID, "too many %s, at most %d are allowed", key,
			RECONCILE_TEMPLATES_MAX);
	*ret = xcalloc(n + 1, sizeof(**ret));
	for (; *ret_n < n; ++*ret_n) {
		const char *text = json_string_value(json_array_get(v, *ret_n));

		if (template_parse(text ? text : "", 0, &(*ret)[*ret_n], e))
			return err_wrap(e, "invalid %s value", what);
	}
	return 0;
}

/* ---- ClusterSPIFFEID ---- */

/* What of a pod must be kept for this template: labels and the like always are. */
static void note_field(void *arg, const char *const *names, size_t n)
{
	static const char *const kept[] = { "ServiceAccountName", "NodeName", "Hostname",
		"Subdomain" };
	struct id_spec *s = arg;
	bool known = false;

	if (strcmp(names[0], "NodeMeta") == 0 || strcmp(names[0], "NodeSpec") == 0)
		s->needs_node = true;
	if (strcmp(names[0], "PodSpec") == 0) {
		for (size_t i = 0; n > 1 && i < ARRAY_LEN(kept); i++)
			known |= strcmp(names[1], kept[i]) == 0;
		s->needs_spec |= !known;
	}
	if (strcmp(names[0], "PodMeta") == 0 && (n < 2 || strcmp(names[1], "Annotations") == 0))
		s->needs_annotations = true;
}

static void note_needs(struct id_spec *s)
{
	template_fields(s->id, note_field, s);
	for (size_t i = 0; i < s->n_dns; i++)
		template_fields(s->dns[i], note_field, s);
	for (size_t i = 0; i < s->n_selectors; i++)
		template_fields(s->selectors[i], note_field, s);
}

static int read_id(struct id_spec *s, const json_t *j, struct err *e)
{
	const char *id = text_of(j, "spiffeIDTemplate");
	int r;

	if (!*id)
		return err_set(e, ERR_INVALID, "empty SPIFFEID template");
	if (template_parse(id, 0, &s->id, e))
		return err_wrap(e, "invalid SPIFFEID template");
	r = label_selector_parse(&s->namespaces, json_object_get(j, "namespaceSelector"), e);
	if (r)
		return err_wrap(e, "invalid namespaceSelector value");
	r = label_selector_parse(&s->pods, json_object_get(j, "podSelector"), e);
	if (r)
		return err_wrap(e, "invalid podSelector value");
	r = read_federates(j, &s->federates, e);
	if (!r)
		r = read_templates(j, "dnsNameTemplates", "dnsNameTemplate", &s->dns, &s->n_dns, e);
	if (!r)
		r = read_templates(j, "workloadSelectorTemplates", "workloadSelectorTemplates",
			&s->selectors, &s->n_selectors, e);
	if (!r)
		r = read_ttl(j, "ttl", &s->ttl, e);
	if (!r)
		r = read_ttl(j, "jwtTtl", &s->jwt_ttl, e);
	if (r)
		return r;
	s->admin = flag_of(j, "admin");
	s->downstream = flag_of(j, "downstream");
	s->services = flag_of(j, "autoPopulateDNSNames");
	s->hint = xstrdup(text_of(j, "hint"));
	note_needs(s);
	return 0;
}

static void free_templates(struct template **v, size_t n)
{
	for (size_t i = 0; i < n; i++)
		template_free(v[i]);
	free(v);
}

static void id_deinit(struct id_spec *s)
{
	template_free(s->id);
	free_templates(s->dns, s->n_dns);
	free_templates(s->selectors, s->n_selectors);
	label_selector_deinit(&s->namespaces);
	label_selector_deinit(&s->pods);
	strings_deinit(&s->federates);
	free(s->hint);
	*s = (struct id_spec){ .id = NULL };
}

/* ---- ClusterStaticEntry ---- */

static int read_member(
	const json_t *j, const char *key, const char *what, char **ret, struct err *e)
{
	struct spiffeid id = SPIFFEID_INIT;

	if (spiffeid_parse_str(&id, text_of(j, key), e))
		return err_wrap(e, "failed to parse %s", what);
	*ret = id.text;
	return 0;
}

static int read_selectors(const json_t *j, struct selectors *ret, struct err *e)
{
	struct strings texts = { .n = 0 };
	int r = read_strings(j, "selectors", &texts, e);

	for (size_t i = 0; !r && i < texts.n; i++)
		r = selectors_add_text(ret, texts.v[i], e);
	strings_deinit(&texts);
	return r ? err_wrap(e, "failed to parse Selectors") : 0;
}

static int read_static(struct reconcile *r, struct entry *ret, const json_t *j, struct err *e)
{
	struct entry en = { .id = xstrdup(""), .hint = xstrdup(text_of(j, "hint")) };
	int code = read_member(j, "spiffeID", "SPIFFEID", &en.spiffe_id, e);

	if (!code)
		code = read_member(j, "parentID", "ParentID", &en.parent_id, e);
	if (!code)
		code = read_selectors(j, &en.selectors, e);
	if (!code)
		code = read_federates(j, &en.federates_with, e);
	if (!code)
		code = read_ttl(j, "x509SVIDTTL", &en.x509_svid_ttl, e);
	if (!code)
		code = read_ttl(j, "jwtSVIDTTL", &en.jwt_svid_ttl, e);
	if (!code)
		code = read_strings(j, "dnsNames", &en.dns_names, e);
	if (!code) {
		en.admin = flag_of(j, "admin");
		en.downstream = flag_of(j, "downstream");
		en.store_svid = flag_of(j, "storeSVID");
		code = render_check(r, &en, e);
	}
	if (code)
		entry_deinit(&en);
	else
		*ret = en;
	return code;
}

/* ---- ClusterFederatedTrustDomain ---- */

static int read_profile(struct relationship *ret, const json_t *j, struct err *e)
{
	const char *type = text_of(j, "type"), *id = text_of(j, "endpointSPIFFEID");
	struct spiffeid parsed = SPIFFEID_INIT;

	if (strcmp(type, "https_web") == 0) {
		if (*id)
			return err_set(e, ERR_INVALID,
				"invalid bundle endpoint profile endpointSPIFFEID value: not "
				"applicable to the \"https_web\" profile");
		ret->endpoint_id = xstrdup("");
		return 0;
	}
	if (strcmp(type, "https_spiffe") != 0)
		return err_set(e, ERR_INVALID,
			"invalid bundle endpoint profile type value \"%.50s\"", type);
	if (spiffeid_parse_str(&parsed, id, e))
		return err_wrap(e, "invalid bundle endpoint profile endpointSPIFFEID value");
	ret->endpoint_id = parsed.text;
	return 0;
}

static int read_federated(
	struct reconcile *r, struct reconcile_object *o, const json_t *j, struct err *e)
{
	const char *bundle = text_of(j, "trustDomainBundle");
	struct bytes text = bytes_str(bundle);
	uint8_t digest[KEY_SIZE];
	bool first;
	int code = trust_domain_parse(text_of(j, "trustDomain"), &o->relationship.trust_domain, e);

	if (code)
		return err_wrap(e, "invalid trustDomain value");
	if (strcmp(o->relationship.trust_domain, r->api->trust_domain) == 0)
		return err_set(e, ERR_INVALID,
			"invalid trustDomain value: unable to create federation relationship for "
			"server trust domain");
	if (federation_url(text_of(j, "bundleEndpointURL"), &o->relationship.url, NULL, e))
		return err_wrap(e, "invalid bundleEndpointURL value");
	code = read_profile(&o->relationship, json_object_get(j, "bundleEndpointProfile"), e);
	if (code)
		return code;
	if (*bundle && bundle_from_json(o->relationship.trust_domain, text, &o->bundle, e))
		return err_wrap(e, "invalid trustDomainBundle value");
	hash_of(HASH_SHA256, text, digest);
	/* The object's bundle is for the beginning: what was fetched since then stays, also over
	 * a restart, until the object brings another. */
	first = memcmp(o->bundle_digest, (uint8_t[KEY_SIZE]){ 0 }, KEY_SIZE) == 0;
	o->bundle_new = o->bundle && memcmp(digest, o->bundle_digest, KEY_SIZE) != 0 &&
			(!first || !api_bundle(r->api, o->relationship.trust_domain));
	memcpy(o->bundle_digest, digest, KEY_SIZE);
	return 0;
}

/* ---- any ---- */

static bool class_is_ours(const struct reconcile *r, const char *name)
{
	return (!*name && r->o.watch_classless) || strcmp(name, r->o.class_name) == 0;
}

static char *replace(char *old, const char *s)
{
	free(old);
	return xstrdup(s);
}

void object_read(struct reconcile *r, struct reconcile_object *o, const json_t *j)
{
	const json_t *meta = json_object_get(j, "metadata"), *spec = json_object_get(j, "spec");
	struct err e = ERR_INIT;

	object_spec_deinit(o);
	o->name = replace(o->name, text_of(meta, "name"));
	o->uid = replace(o->uid, text_of(meta, "uid"));
	o->created = replace(o->created, text_of(meta, "creationTimestamp"));
	o->deleted = replace(o->deleted, text_of(meta, "deletionTimestamp"));
	o->generation = json_integer_value(json_object_get(meta, "generation"));
	o->ours = class_is_ours(r, text_of(spec, "className"));
	o->tried = false;
	json_decref(o->shown);
	o->shown = json_deep_copy(json_object_get(j, "status"));
	if (!o->ours)
		return;
	if (o->kind == RECONCILE_ID) {
		o->id.fallback = flag_of(spec, "fallback");
		(void)!read_id(&o->id, spec, &e);
	} else if (o->kind == RECONCILE_STATIC) {
		(void)!read_static(r, &o->entry, spec, &e);
	} else {
		(void)!read_federated(r, o, spec, &e);
	}
	if (e.code)
		object_set_problem(&o->problem, e.msg);
}

void object_spec_deinit(struct reconcile_object *o)
{
	id_deinit(&o->id);
	entry_deinit(&o->entry);
	o->entry = (struct entry){ .id = NULL };
	relationship_deinit(&o->relationship);
	if (o->bundle)
		bundle_unref(o->bundle);
	o->bundle = NULL;
	object_set_problem(&o->problem, NULL);
}

void object_free(struct reconcile_object *o)
{
	INVARIANT(list_empty(&o->decls));
	list_remove(&o->status_node);
	object_spec_deinit(o);
	free(o->name);
	free(o->uid);
	free(o->created);
	free(o->deleted);
	free(o->conflict);
	free(o->render_problem);
	free(o->write_problem);
	free(o->told);
	json_decref(o->shown);
	free(o);
}

/* The older one; of those that are being deleted the one that goes last; then by uid. */
int object_compare(const struct reconcile_object *a, const struct reconcile_object *b)
{
	int c = strcmp(a->created, b->created);

	if (c)
		return c;
	if (!*a->deleted != !*b->deleted)
		return *a->deleted ? 1 : -1;
	c = strcmp(b->deleted, a->deleted);
	return c ? c : strcmp(a->uid, b->uid);
}

void object_set_problem(char **p, const char *text)
{
	if (text && *p && strcmp(*p, text) == 0)
		return;
	free(*p);
	*p = text ? xstrndup(text, RECONCILE_MESSAGE_MAX) : NULL;
}

/* ---- status ---- */

struct condition {
	const char *reason, *message; /* reason "Applied": all is well */
};

static struct condition condition_of(const struct reconcile_object *o)
{
	if (o->problem)
		return (struct condition){ "InvalidSpec", o->problem };
	if (o->conflict)
		return (struct condition){ "Conflict", o->conflict };
	if (o->render_problem)
		return (struct condition){ "RenderFailed", o->render_problem };
	if (o->write_problem)
		return (struct condition){ "WriteFailed", o->write_problem };
	return (struct condition){ "Applied", "" };
}

static json_t *make_condition(const struct reconcile_object *o, const struct condition *c)
{
	const json_t *was = json_array_get(json_object_get(o->shown, "conditions"), 0);
	const char *status = strcmp(c->reason, "Applied") == 0 ? "True" : "False";
	const char *since = text_of(was, "lastTransitionTime");
	char now[40];

	if (!*since || strcmp(text_of(was, "status"), status) != 0) {
		time_t t = (time_t)clock_wall().sec;
		struct tm tm;

		gmtime_r(&t, &tm);
		strftime(now, sizeof(now), "%Y-%m-%dT%H:%M:%SZ", &tm);
		since = now;
	}
	return json_pack("{ss ss ss# ss ss sI}", "type", "Ready", "status", status, "message",
		c->message, (int)strlen(c->message), "reason", c->reason, "lastTransitionTime",
		since, "observedGeneration", o->generation);
}

static bool is_set(const struct reconcile_object *o)
{
	struct decl *d =
		list_empty(&o->decls) ? NULL : container_of(o->decls.next, struct decl, by_node);

	return d && d->slot && !d->masked && !d->refused && !list_empty(&d->slot->currents);
}

json_t *object_status(const struct reconcile_object *o)
{
	struct condition c = condition_of(o);
	json_t *j = json_object(), *conditions = json_array();

	if (o->kind == RECONCILE_ID)
		json_object_set_new(j, "stats",
			json_pack("{sI sI sI sI sI sI sI}", "namespacesSelected",
				(json_int_t)o->namespaces_selected, "namespacesIgnored",
				(json_int_t)o->namespaces_ignored, "podsSelected",
				(json_int_t)o->selected, "podEntryRenderFailures",
				(json_int_t)o->render_failures, "entriesMasked",
				(json_int_t)o->masked, "entriesToSet", (json_int_t)o->to_set,
				"entryFailures", (json_int_t)o->failures));
	if (o->kind == RECONCILE_STATIC) {
		json_object_set_new(j, "rendered", json_boolean(!o->problem));
		json_object_set_new(j, "masked", json_boolean(o->masked > 0));
		json_object_set_new(j, "set", json_boolean(is_set(o)));
	}
	json_array_append_new(conditions, make_condition(o, &c));
	json_object_set_new(j, "conditions", conditions);
	return j;
}

/* Once for each new trouble. */
static void tell(struct reconcile *r, struct reconcile_object *o)
{
	struct condition c = condition_of(o);

	if (strcmp(c.reason, "Applied") == 0) {
		object_set_problem(&o->told, NULL);
		return;
	}
	if (o->told && strcmp(o->told, c.message) == 0)
		return;
	object_set_problem(&o->told, c.message);
	if (r->o.event)
		r->o.event(r->o.arg, o, c.reason, c.message);
}

void object_changed(struct reconcile *r, struct reconcile_object *o)
{
	if (!o->ours || o->status_changed)
		return;
	o->status_changed = true;
	list_append(&r->changed_status, &o->status_node);
	if (r->o.status)
		r->o.status(r->o.arg);
}

bool reconcile_take_status(struct reconcile *r, struct reconcile_status *ret)
{
	if (!reconcile_may_write(r) || !list_empty(&r->dirty_pods))
		return false;
	while (!list_empty(&r->changed_status)) {
		struct reconcile_object *o =
			container_of(r->changed_status.next, struct reconcile_object, status_node);
		json_t *j = object_status(o);

		o->status_changed = false;
		list_remove(&o->status_node);
		tell(r, o);
		if (json_equal(j, o->shown)) {
			json_decref(j);
			continue;
		}
		json_decref(o->shown);
		o->shown = json_incref(j);
		*ret = (struct reconcile_status){ .kind = o->kind,
			.name = xstrdup(o->name),
			.uid = xstrdup(o->uid),
			.status = j };
		return true;
	}
	return false;
}

bool reconcile_status_waits(const struct reconcile *r)
{
	return r->leading && !r->stopped && !list_empty(&r->changed_status);
}

void reconcile_status_deinit(struct reconcile_status *s)
{
	free(s->name);
	free(s->uid);
	json_decref(s->status);
	*s = (struct reconcile_status){ .name = NULL };
}

void reconcile_return_status(struct reconcile *r, const struct reconcile_status *s)
{
	struct reconcile_object *o = map_get_str(r->objects[s->kind], s->name);

	if (!o || strcmp(o->uid, s->uid) != 0)
		return;
	json_decref(o->shown);
	o->shown = NULL;
	object_changed(r, o);
}

const char *reconcile_object_name(const struct reconcile_object *o)
{
	return o->name;
}

const char *reconcile_object_uid(const struct reconcile_object *o)
{
	return o->uid;
}

enum reconcile_kind reconcile_object_kind(const struct reconcile_object *o)
{
	return o->kind;
}

const char *reconcile_kind_name(enum reconcile_kind k)
{
	static const char *const names[] = { "Namespace", "Node", "Pod", "EndpointSlice",
		"ClusterSPIFFEID", "ClusterStaticEntry", "ClusterFederatedTrustDomain" };

	return names[k];
}

/*
 * Node attestor k8s_psat: the agent shows the projected token of its pod's service account, and the
 * API server of its cluster says whose it is. Payload, selectors, ids and texts as SPIRE's plugin
 * of that name has them.
 *
 * The token is reviewed; the pod that it is bound to is looked up, since API servers remember
 * reviews for seconds after a pod is gone, and must be the very one; then its node. Clients of the
 * API servers are made at the first use and kept; one whose kubeconfig file has changed is replaced
 * for new sessions.
 */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/kube.h"
#include "server/attest_internal.h"

enum { TOKEN_MAX = 32 << 10 };

#define EXTRA "authentication.kubernetes.io/"

struct psat_client {
	int refs;
	struct kube *kube;
	struct stat seen; /* its kubeconfig file */
};

struct psat {
	struct loop *loop;
	const char *trust_domain;
	const struct psat_cluster *clusters;
	size_t n;
	struct psat_client **clients; /* one for each cluster; NULL: not made yet */
};

struct psat_state {
	const struct psat_cluster *cluster;
	struct psat_client *client;
	struct kube_call *call;
	char *token; /* secret */
	char *namespace, *account, *pod_name, *pod_uid;
	char *review_node_name, *review_node_uid; /* "": an older API server does not say */
	char *node_name, *host_ip;
	json_t *pod_labels;
	struct err e; /* told soon */
};

/* ---- clients ---- */

void psat_new(const struct attest_options *o, struct psat **ret)
{
	struct psat *p = xcalloc(1, sizeof(*p));

	p->loop = o->loop;
	p->trust_domain = o->trust_domain;
	p->clusters = o->config->psat_clusters;
	p->n = o->config->n_psat_clusters;
	p->clients = xcalloc(p->n + 1, sizeof(*p->clients));
	*ret = p;
}

static void client_unref(struct psat_client *c)
{
	if (!c || --c->refs > 0)
		return;
	kube_free(c->kube);
	free(c);
}

void psat_free(struct psat *p)
{
	if (!p)
		return;
	for (size_t i = 0; i < p->n; i++)
		client_unref(p->clients[i]);
	free(p->clients);
	free(p);
}

static bool same_file(const struct stat *a, const struct stat *b)
{
	return a->st_ino == b->st_ino && a->st_dev == b->st_dev && a->st_size == b->st_size &&
	       a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

/* A new reference to the client of the cluster. */
static int client_get(
	struct psat *p, const struct psat_cluster *cluster, struct psat_client **ret, struct err *e)
{
	struct kube_options o = { .kubeconfig = cluster->kubeconfig };
	struct psat_client **slot = &p->clients[cluster - p->clusters], *c = *slot;
	struct stat now = { 0 };
	struct kube *kube;

	if (cluster->kubeconfig)
		(void)stat(cluster->kubeconfig, &now);
	if (!c || !same_file(&now, &c->seen)) {
		if (kube_new(p->loop, &o, &kube, e))
			return err_wrap(
				e, "unable to get clientset: unable to create client config");
		client_unref(c);
		*slot = c = xcalloc(1, sizeof(*c));
		c->refs = 1;
		c->kube = kube;
		c->seen = now;
	}
	c->refs++;
	*ret = c;
	return 0;
}

/* ---- a session ---- */

static struct psat_state *state(struct attest_session *s)
{
	return s->state;
}

static void free_state(void *arg)
{
	struct psat_state *st = arg;

	kube_call_cancel(st->call);
	client_unref(st->client);
	if (st->token)
		mem_wipe(st->token, strlen(st->token));
	free(st->token);
	free(st->namespace);
	free(st->account);
	free(st->pod_name);
	free(st->pod_uid);
	free(st->review_node_name);
	free(st->review_node_uid);
	free(st->node_name);
	free(st->host_ip);
	json_decref(st->pod_labels);
	free(st);
}

static void tell_failed(struct attest_session *s)
{
	struct err *e = &state(s)->e;

	err_wrap(e, "nodeattestor(k8s_psat)");
	attest_step_failed(s, e);
}

static bool cancel(struct attest_session *s)
{
	struct psat_state *st = state(s);

	if (!st->call)
		return false;
	kube_call_cancel(st->call);
	st->call = NULL;
	return true;
}

/* A failure after the API server was asked: Internal, as SPIRE has it. */
static void fail_asked(struct attest_session *s, const char *what, const struct err *e)
{
	struct psat_state *st = state(s);

	err_set(&st->e, ERR_INTERNAL, "%s for cluster \"%s\": %s", what, st->cluster->name, e->msg);
	tell_failed(s);
}

static const char *member(const json_t *o, const char *key)
{
	const char *s = json_string_value(json_object_get(o, key));

	return s ? s : "";
}

static void ask(struct attest_session *s, const struct kube_call_options *with, const char *path,
	void (*done)(void *arg, int status, json_t *object, const struct err *e))
{
	struct psat_state *st = state(s);
	struct kube_call_options o = *with;

	o.path = path;
	o.done = done;
	o.arg = s;
	st->call = kube_call(st->client->kube, &o);
}

/* ---- the node ---- */

static void add_labels(
	struct selectors *to, const char *kind, const json_t *labels, const struct strings *allowed)
{
	for (size_t i = 0; i < allowed->n; i++) {
		const json_t *v = json_object_get(labels, allowed->v[i]);
		AUTO(free) char *value = NULL;

		if (!json_is_string(v))
			continue;
		value = xasprintf("%s:%s:%s", kind, allowed->v[i], json_string_value(v));
		selectors_add(to, "k8s_psat", value);
	}
}

static void add_selectors(const struct psat_state *st, const char *node_uid, const json_t *node,
	struct selectors *ret)
{
	const struct {
		const char *kind, *value;
	} rows[] = {
		{ "cluster", st->cluster->name },
		{ "agent_ns", st->namespace },
		{ "agent_sa", st->account },
		{ "agent_pod_name", st->pod_name },
		{ "agent_pod_uid", st->pod_uid },
		{ "agent_node_ip", st->host_ip },
		{ "agent_node_name", st->node_name },
		{ "agent_node_uid", node_uid },
	};

	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		AUTO(free) char *v = xasprintf("%s:%s", rows[i].kind, rows[i].value);

		selectors_add(ret, "k8s_psat", v);
	}
	add_labels(ret, "agent_node_label",
		json_object_get(json_object_get(node, "metadata"), "labels"),
		&st->cluster->node_labels);
	add_labels(ret, "agent_pod_label", st->pod_labels, &st->cluster->pod_labels);
}

static int check_node(const struct psat_state *st, const char *uid, struct err *e)
{
	if (!*uid)
		return err_set(
			e, ERR_INTERNAL, "node UID is empty for cluster \"%s\"", st->cluster->name);
	if (strchr(uid, '/') || strchr(st->pod_uid, '/'))
		return err_set(e, ERR_INTERNAL, "failed to make spiffe id: a UID has a slash");
	if (*st->review_node_uid && strcmp(st->review_node_uid, uid) != 0)
		return err_set(e, ERR_DENIED,
			"node UID mismatch for pod \"%s\" in cluster \"%s\": token bound to node "
			"UID \"%s\"",
			st->pod_name, st->cluster->name, st->review_node_uid);
	return 0;
}

static void on_node(void *arg, int status, json_t *object, const struct err *e)
{
	struct attest_session *s = arg;
	struct psat_state *st = state(s);
	const char *uid = member(json_object_get(object, "metadata"), "uid");
	struct selectors selectors = { 0 };
	struct spiffeid id = SPIFFEID_INIT;
	AUTO(free) char *path = NULL;
	struct err why = *e;

	(void)status;
	st->call = NULL;
	if (e->code) {
		err_wrap(&why, "unable to query nodes API");
		fail_asked(s, "failed to get node from k8s API server", &why);
		return;
	}
	path = st->cluster->use_pod_uid
		       ? xasprintf(
				 "/spire/agent/k8s_psat/%s/pod/%s", st->cluster->name, st->pod_uid)
		       : xasprintf("/spire/agent/k8s_psat/%s/%s", st->cluster->name, uid);
	if (check_node(st, uid, &st->e)) {
		tell_failed(s);
	} else if (spiffeid_make(&id, s->attest->psat->trust_domain, path, &st->e)) {
		st->e.code = ERR_INTERNAL;
		err_wrap(&st->e, "failed to make spiffe id");
		tell_failed(s);
	} else {
		add_selectors(st, uid, object, &selectors);
		attest_step_done(s, id.text, &selectors, true);
		selectors_deinit(&selectors);
	}
	spiffeid_deinit(&id);
}

/* ---- the pod ---- */

static int take_pod(struct psat_state *st, const json_t *pod, struct err *e)
{
	const json_t *meta = json_object_get(pod, "metadata");

	st->node_name = xstrdup(member(json_object_get(pod, "spec"), "nodeName"));
	st->host_ip = xstrdup(member(json_object_get(pod, "status"), "hostIP"));
	st->pod_labels = json_incref(json_object_get(meta, "labels"));
	if (strcmp(member(meta, "uid"), st->pod_uid) != 0)
		return err_set(e, ERR_DENIED,
			"pod UID mismatch for pod \"%s\" in cluster \"%s\": token bound to pod UID "
			"\"%s\"",
			st->pod_name, st->cluster->name, st->pod_uid);
	if (*st->review_node_name && strcmp(st->review_node_name, st->node_name) != 0)
		return err_set(e, ERR_DENIED,
			"node mismatch for pod \"%s\" in cluster \"%s\": token bound to node "
			"\"%s\"",
			st->pod_name, st->cluster->name, st->review_node_name);
	if (!*st->node_name)
		return err_set(e, ERR_INTERNAL,
			"failed to get node from k8s API server for cluster \"%s\": empty node "
			"name",
			st->cluster->name);
	return 0;
}

static void on_pod(void *arg, int status, json_t *object, const struct err *e)
{
	struct attest_session *s = arg;
	struct psat_state *st = state(s);
	AUTO(free) char *path = NULL;
	struct err why = *e;

	(void)status;
	st->call = NULL;
	if (e->code) {
		err_wrap(&why, "unable to query pods API");
		fail_asked(s, "failed to get pod from k8s API server", &why);
	} else if (take_pod(st, object, &st->e)) {
		tell_failed(s);
	} else {
		path = kube_path("/api/v1/nodes/%s", st->node_name);
		ask(s, &(struct kube_call_options){ 0 }, path, on_node);
	}
}

/* ---- the token ---- */

/* "system:serviceaccount:namespace:name" */
static int take_username(struct psat_state *st, const char *username, struct err *e)
{
	static const char prefix[] = "system:serviceaccount:";
	const char *ns = username + sizeof(prefix) - 1, *colon;

	if (!*username)
		return err_set(e, ERR_INTERNAL, "empty username");
	colon = strncmp(username, prefix, sizeof(prefix) - 1) == 0 ? strchr(ns, ':') : NULL;
	if (!colon || strchr(colon + 1, ':'))
		return err_set(e, ERR_INTERNAL, "unexpected username format: %.200s", username);
	if (colon == ns)
		return err_set(e, ERR_INTERNAL, "missing namespace");
	if (!colon[1])
		return err_set(e, ERR_INTERNAL, "missing service account name");
	st->namespace = xstrndup(ns, (size_t)(colon - ns));
	st->account = xstrdup(colon + 1);
	return 0;
}

/* The one value of user.extra[key]. */
static int take_extra(const json_t *extra, const char *key, const char *what, const char *unit,
	char **ret, struct err *e)
{
	const json_t *v = json_object_get(extra, key);
	const char *s = json_string_value(json_array_get(v, 0));

	if (!v)
		return err_set(e, ERR_INTERNAL, "missing %s", what);
	if (json_array_size(v) != 1)
		return err_set(
			e, ERR_INTERNAL, "expected 1 %s but got: %zu", unit, json_array_size(v));
	if (!s || !*s)
		return err_set(e, ERR_INTERNAL, "%s is empty", what);
	*ret = xstrdup(s);
	return 0;
}

static char *optional_extra(const json_t *extra, const char *key)
{
	const char *s = json_string_value(json_array_get(json_object_get(extra, key), 0));

	return xstrdup(s ? s : "");
}

static bool shares(const struct strings *wanted, const json_t *got)
{
	const json_t *v;
	size_t i;

	json_array_foreach(got, i,
		v) if (json_is_string(v) && strings_has(wanted, json_string_value(v))) return true;
	return false;
}

/* As Go's %q of a list: ["a" "b"]. */
static void put_quoted(struct buf *b, size_t i, const char *s)
{
	buf_printf(b, "%s\"%.100s\"", i ? " " : "", s);
}

static int check_audience(const struct psat_cluster *c, const json_t *status, struct err *e)
{
	const json_t *got = json_object_get(status, "audiences"), *v;
	AUTO_BUF struct buf a = BUF_INIT_MAX(400), b = BUF_INIT_MAX(400);
	size_t i;

	/* An API server that knows nothing of audiences gives none. */
	if (c->audience.n == 0 || shares(&c->audience, got))
		return 0;
	for (i = 0; i < c->audience.n; i++)
		put_quoted(&a, i, c->audience.v[i]);
	json_array_foreach(got, i, v)
		put_quoted(&b, i, json_is_string(v) ? json_string_value(v) : "");
	return err_set(e, ERR_INTERNAL,
		"token review API did not validate audience: wanted one of [%s] but got [%s]",
		buf_cstr(&a), buf_cstr(&b));
}

/* What makes the review of no use at all. */
static int check_review(const struct psat_cluster *c, const json_t *status, struct err *e)
{
	const char *error = member(status, "error");

	if (*error)
		return err_set(
			e, ERR_INTERNAL, "token review API response contains an error: %s", error);
	return json_is_true(json_object_get(status, "authenticated")) ? check_audience(c, status, e)
								      : 0;
}

static int prefixed(struct err *e, const char *what, const struct psat_cluster *c)
{
	return err_wrap(e, "%s for cluster \"%s\"", what, c->name);
}

static int take_review(struct psat_state *st, const json_t *status, struct err *e)
{
	const struct psat_cluster *c = st->cluster;
	const json_t *user = json_object_get(status, "user");
	const json_t *extra = json_object_get(user, "extra");
	AUTO(free) char *full = NULL;

	if (check_review(c, status, e))
		return prefixed(e, "unable to validate token with TokenReview API", c);
	if (!json_is_true(json_object_get(status, "authenticated")))
		return err_set(e, ERR_DENIED,
			"token not authenticated according to TokenReview API for cluster \"%s\"",
			c->name);
	if (take_username(st, member(user, "username"), e))
		return prefixed(e, "failed to parse username from token review status", c);
	full = xasprintf("%s:%s", st->namespace, st->account);
	if (!strings_has(&c->service_accounts, full))
		return err_set(e, ERR_DENIED,
			"\"%s\" is not an allowed service account for cluster \"%s\"", full,
			c->name);
	if (take_extra(extra, EXTRA "pod-name", "pod name", "name", &st->pod_name, e))
		return prefixed(e, "failed to get pod name from token review status", c);
	if (take_extra(extra, EXTRA "pod-uid", "pod UID", "UID", &st->pod_uid, e))
		return prefixed(e, "failed to get pod UID from token review status", c);
	st->review_node_name = optional_extra(extra, EXTRA "node-name");
	st->review_node_uid = optional_extra(extra, EXTRA "node-uid");
	return 0;
}

static void on_review(void *arg, int status, json_t *object, const struct err *e)
{
	struct attest_session *s = arg;
	struct psat_state *st = state(s);
	AUTO(free) char *path = NULL;
	struct err why = *e;

	(void)status;
	st->call = NULL;
	if (e->code) {
		err_wrap(&why, "unable to query token review API");
		fail_asked(s, "unable to validate token with TokenReview API", &why);
	} else if (take_review(st, json_object_get(object, "status"), &st->e)) {
		tell_failed(s);
	} else {
		path = kube_path("/api/v1/namespaces/%s/pods/%s", st->namespace, st->pod_name);
		ask(s, &(struct kube_call_options){ 0 }, path, on_pod);
	}
}

static void ask_review(struct attest_session *s)
{
	struct psat_state *st = state(s);
	const struct strings *audience = &st->cluster->audience;
	json_t *spec = json_pack("{s:s}", "token", st->token), *list = json_array(), *review;

	for (size_t i = 0; i < audience->n; i++)
		json_array_append_new(list, json_string(audience->v[i]));
	if (audience->n)
		json_object_set(spec, "audiences", list);
	json_decref(list);
	review = json_pack("{s:s, s:s, s:o}", "apiVersion", "authentication.k8s.io/v1", "kind",
		"TokenReview", "spec", spec);
	ask(s, &(struct kube_call_options){ .method = "POST", .body = review, .repeatable = true },
		"/apis/authentication.k8s.io/v1/tokenreviews", on_review);
	json_decref(review);
}

/* ---- the payload ---- */

static const struct psat_cluster *find(const struct psat *p, const char *name)
{
	for (size_t i = 0; i < p->n; i++)
		if (strcmp(p->clusters[i].name, name) == 0)
			return &p->clusters[i];
	return NULL;
}

int psat_payload(const struct psat *p, struct bytes payload, const struct psat_cluster **ret,
	char **ret_token, struct err *e)
{
	json_error_t je;
	json_t *root;
	const char *name, *token;
	int r = 0;

	if (payload.n == 0)
		return err_set(e, ERR_INVALID, "missing attestation payload");
	root = json_loadb((const char *)payload.p, payload.n, 0, &je);
	if (!json_is_object(root)) {
		json_decref(root);
		return err_set(e, ERR_INVALID, "failed to unmarshal data payload: %s",
			root ? "not an object" : je.text);
	}
	name = member(root, "cluster");
	token = member(root, "token");
	if (!*name)
		r = err_set(e, ERR_INVALID, "missing cluster in attestation data");
	else if (!*token)
		r = err_set(e, ERR_INVALID, "missing token in attestation data");
	else if (strlen(token) > TOKEN_MAX)
		r = err_set(e, ERR_INVALID, "the token in attestation data is too large");
	else if (!(*ret = find(p, name)))
		r = err_set(e, ERR_INVALID, "not configured for cluster \"%.200s\"", name);
	else
		*ret_token = xstrdup(token);
	json_decref(root);
	return r;
}

static void begin(struct attest_session *s, struct bytes payload)
{
	struct psat *p = s->attest->psat;
	struct psat_state *st = xcalloc(1, sizeof(*st));

	s->state = st;
	if (psat_payload(p, payload, &st->cluster, &st->token, &st->e)) {
		attest_later(s, tell_failed);
	} else if (client_get(p, st->cluster, &st->client, &st->e)) {
		st->e.code = ERR_INTERNAL;
		prefixed(&st->e, "unable to validate token with TokenReview API", st->cluster);
		attest_later(s, tell_failed);
	} else {
		ask_review(s);
	}
}

const struct attestor attestor_k8s_psat = {
	.type = "k8s_psat", .begin = begin, .free_state = free_state, .cancel = cancel
};

/*
 * The Kubernetes API as a client: where it is and who we are (a kubeconfig file, or what a pod is
 * given), single calls, and watches that go on for ever.
 *
 * Credentials in files are read again before they are a minute old, certificates when their file
 * changed. Every answer is bounded. Loop thread only; nothing here blocks but the reading of small
 * local files.
 */
#ifndef ASSAY_LIB_KUBE_H
#define ASSAY_LIB_KUBE_H

#include <jansson.h>

#include "lib/http.h"

enum {
	KUBE_BODY_MAX = 16 << 20, /* of one answer that is gathered */
	KUBE_EVENT_MAX = 4 << 20, /* one line of a watch; an object in etcd has at most 1.5 MB */
	KUBE_LIST_PAGE = 500,
	KUBE_TOKEN_AGE_S = 60, /* a token from a file is read again after that */
	KUBE_TIMEOUT_MS = 30000,
	KUBE_CALLS_MAX = 32,  /* under way at once, watches not counted */
	KUBE_WATCH_S = 300,   /* a watch is asked for anew after that, ±20 % */
	KUBE_RETRIES_MAX = 4, /* of a call that was told to come later (429) */
};

struct kube;
struct kube_options {
	const char *kubeconfig; /* file; NULL: the pod's own service account */
	const char *context;    /* NULL: the file's current one */
	/* Where a pod's service account is mounted, with files token, ca.crt and namespace; NULL:
	 * /var/run/secrets/kubernetes.io/serviceaccount */
	const char *service_account;
};
/* ERR_NOT_FOUND: no such file, or this is no pod. ERR_INVALID: it says what is wrong in which file,
 * also for what is not supported (exec and auth-provider plug-ins, proxies). */
int kube_new(
	struct loop *l, const struct kube_options *o, struct kube **ret, struct err *e) MUST_USE;
void kube_free(struct kube *k);                   /* cancels calls and watches. NULL is fine */
const char *kube_server(const struct kube *k);    /* URL, for messages */
const char *kube_namespace(const struct kube *k); /* of the context or pod; "default" */

/*
 * One call. object: the answer's JSON object, borrowed; NULL if it has none. An answer of 4xx or
 * 5xx is an error whose text is the Status object's message and whose code is: 400, 422
 * ERR_INVALID; 401 ERR_UNAUTHENTICATED; 403 ERR_DENIED; 404 ERR_NOT_FOUND; 409 ERR_EXISTS; 410
 * ERR_ABORTED; 429 ERR_EXHAUSTED; 5xx and no answer ERR_UNAVAILABLE. status 0: no answer.
 */
struct kube_call;
struct kube_call_options {
	const char *method;       /* NULL: GET */
	const char *path;         /* "/api/v1/nodes/n1?…": names in it escaped by kube_path() */
	const char *content_type; /* NULL: application/json; for PATCH one of the patch types */
	const json_t *body;       /* NULL: none */
	int timeout_ms;           /* 0: KUBE_TIMEOUT_MS */
	bool repeatable;          /* as http_call_options: a review, an apply */
	void (*done)(void *arg, int status, json_t *object, const struct err *e);
	void *arg;
};
struct kube_call *kube_call(struct kube *k, const struct kube_call_options *o);
void kube_call_cancel(struct kube_call *c); /* NULL is fine */

/* printf for paths: %s is escaped as a path segment or query value; else %d and %% only. Caller
 * frees. */
char *kube_path(const char *format, ...) __attribute__((format(printf, 1, 2)));

/*
 * All objects of one kind, and what becomes of them: a list in pages, then a watch from its
 * resource version with bookmarks; a broken stream goes on where it was, 410 Gone lists anew
 * (and then tells also what was deleted meanwhile). Back-off with jitter. event is called for each
 * object (borrowed) that is new, changed (by resourceVersion) or gone (as it was last seen, if
 * keep, else only its metadata); synced after the first and each later whole list. failed tells of
 * a failure once, and again when its text changes; working, that it is over.
 */
enum kube_event { KUBE_ADDED, KUBE_MODIFIED, KUBE_DELETED };
struct kube_watch;
struct kube_watch_options {
	const char *path; /* "/api/v1/pods"; may have a query: labelSelector, fieldSelector */
	bool keep;        /* whole objects are kept: else name, namespace, uid, version */
	void (*event)(void *arg, enum kube_event event, json_t *object);
	void (*synced)(void *arg);
	void (*failed)(void *arg, const struct err *e);
	void (*working)(void *arg);
	void *arg;
	int watch_s; /* 0: KUBE_WATCH_S */
	/* A stream that is silent for so long is taken for dead. 0: watch_s and half a minute; once
	 * it had a bookmark, of which API servers send one a minute, 150 s. */
	int idle_ms;
};
struct kube_watch *kube_watch(struct kube *k, const struct kube_watch_options *o);
void kube_watch_free(struct kube_watch *w); /* NULL is fine; not from inside its callbacks */

#endif

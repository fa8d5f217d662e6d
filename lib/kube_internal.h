/* Inside of kube only. */
#ifndef ASSAY_LIB_KUBE_INTERNAL_H
#define ASSAY_LIB_KUBE_INTERNAL_H

#include <sys/stat.h>

#include "lib/kube.h"
#include "lib/list.h"

enum { KUBE_FILE_MAX = 1 << 20, KUBE_TOKEN_MAX = 64 << 10 };

/* What is in a file, or was in the configuration itself. */
struct kube_source {
	char *path;      /* NULL: data */
	struct buf data; /* secret; empty and no path: there is none */
	struct stat seen;
};
bool kube_source_is(const struct kube_source *s);

struct kube_config {
	char *origin; /* the file's name, for messages */
	char *server;
	char *tls_server_name; /* NULL: the URL's host */
	char *namespace;
	bool insecure;
	struct kube_source ca, cert, key;
	struct kube_source token;  /* of a file, if there is one, else of data */
	struct buf token_fallback; /* secret: of the configuration, beside a file */
	char *user, *password;     /* NULL: none */
};
int kube_config_read(
	const char *path, const char *context, struct kube_config *ret, struct err *e) MUST_USE;
int kube_config_parse(struct bytes yaml, const char *path, const char *context,
	struct kube_config *ret, struct err *e) MUST_USE;
int kube_config_pod(const char *folder, struct kube_config *ret, struct err *e) MUST_USE;
void kube_config_deinit(struct kube_config *c);

struct kube {
	struct loop *loop;
	struct kube_config config;
	struct http_client *http;
	const char *host; /* of the server's URL */
	struct tls_ctx *tls;
	struct x509_chain roots;
	struct buf authorization; /* secret: the header line, "" when there is none */
	struct mono looked;       /* when files were looked at */
	struct list calls;
	struct list watches;
};
/* The header lines of a call, as they are at this minute. */
const char *kube_headers(struct kube *k);
/* The credentials were refused: files are looked at before the next call. */
void kube_distrust(struct kube *k);
/* e of an answer; body may be NULL. */
void kube_status_error(int status, json_t *object, struct err *e);
/* Bytes of the stream, for the fuzzer. False: the stream is of no further use. */
bool kube_watch_feed(struct kube_watch *w, struct bytes v);
void kube_watch_stop(struct kube_watch *w); /* when the client goes */

struct kube_watch {
	struct list node;
	struct kube *kube; /* NULL: gone */
	struct kube_watch_options o;
	char *path;
	struct map *objects; /* "namespace/name" → struct item */
	unsigned round;      /* of listing */
	int page;            /* how many objects are asked for at once */
	char *go_on;         /* the list's next page; NULL: its first */
	char *version;       /* where the watch goes on; NULL: by a list */
	bool bookmarked;     /* the server sends bookmarks */
	bool in_callback;
	struct kube_call *list;
	struct http_call *stream;
	bool gone;         /* the stream said that the version is too old */
	bool moved;        /* the stream brought something */
	struct mono began; /* the stream */
	struct buf line;
	struct err stream_error;
	struct loop_timer *timer;
	struct backoff backoff;
	char *failure; /* what failed() was told last; NULL: working */
};

#endif

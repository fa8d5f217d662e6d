/*
 * The composition root: the server's parts, started and stopped in one visible order. server_run()
 * is declared in server/cmd.h.
 */
#ifndef ASSAY_SERVER_SERVER_H
#define ASSAY_SERVER_SERVER_H

#include "server/api.h"
#include "server/options.h"

enum {
	SERVER_STOP_GRACE_MS = 8000, /* for running calls */
	SERVER_STOP_MAX_S = 10,      /* for the whole stop: then the process ends all the same */
	SERVER_UMASK = 0027,
	SERVER_SOCKET_MODE = 0770,
};

/* server_prune.c: what expires leaves the store. */
struct prune;
struct prune *prune_new(
	struct loop *l, struct store *s, const struct entries *x, const struct server_options *o);
void prune_free(struct prune *p);
/* The store's observer tells of each entry's expires_at, also while loading. */
void prune_note(struct prune *p, int64_t expires_at);

/* server_http.c: health and Prometheus. */
struct server_http;
int server_http_open(struct loop *l, const struct server_options *o, const struct api *a,
	struct server_http **ret, struct err *e) MUST_USE;
void server_http_close(struct server_http *h);

/* The process's own limits: no core files, no ptrace, umask, file descriptors. */
void server_harden(void);

#endif

/*
 * Istio's names for secrets in files: "file-cert:CERTIFICATE~KEY" and "file-root:ROOTS". Istio's
 * proxies ask for them on the socket where they find an SDS server, so whoever replaces Istio's own
 * must answer.
 *
 * A file is the caller's: it is looked up below the caller's root folder and opened as the caller's
 * user and groups without any capability, so that nobody gets what he could not read himself. Loop
 * thread only; reading is done on a thread of its own, whose credentials are changed.
 */
#ifndef ASSAY_AGENT_SDS_FILES_H
#define ASSAY_AGENT_SDS_FILES_H

#include "agent/sds.h"

enum {
	SDS_FILE_MAX = 1 << 20,
	SDS_FILES_LOOK_MS = 10 * 1000, /* how often it is looked whether they changed */
};

bool sds_is_file(const char *name);
/* All of them are, and there is at least one. */
bool sds_are_files(const struct strings *names);

struct sds_files;
struct sds_files_options {
	struct loop *loop;
	struct peer *peer;           /* the caller; borrowed */
	const struct strings *names; /* copied */
	int look_ms;                 /* 0: SDS_FILES_LOOK_MS; negative: once only */
	/* The first time, and whenever a file's content is another one; s is valid until it returns
	 * and NULL on an error, which ends it. */
	void (*changed)(void *arg, const struct sds_secrets *s, const struct err *e);
	void *arg;
};
struct sds_files *sds_files_open(const struct sds_files_options *o);
void sds_files_close(struct sds_files *f); /* NULL is fine */

#endif

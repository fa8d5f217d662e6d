/*
 * A certificate and its key in files, for HTTPS: read at start, looked at again at an interval.
 * What cannot be used (half-written, another key) leaves the old one in use. Loop thread.
 */
#ifndef ASSAY_SERVER_CERTFILE_H
#define ASSAY_SERVER_CERTFILE_H

#include "lib/loop.h"
#include "lib/tls.h"

struct certfile;

/* Reads the files now. ERR_NOT_FOUND, ERR_DENIED, ERR_INVALID, with the file's name. */
int certfile_open(struct loop *l, const char *cert_path, const char *key_path, int64_t interval_ns,
	struct certfile **ret, struct err *e) MUST_USE;
void certfile_close(struct certfile *f);
/* For http_server_options.tls (arg: struct certfile): a new reference. */
struct tls_ctx *certfile_tls(void *certfile);

#endif

/*
 * SIGHUP, SIGUSR1: reads the configuration again, with the files that its node attestors name,
 * checks it as a start would, and takes what can be taken while the server runs. Each change is
 * logged, with whether it has effect now. Loop thread.
 */
#ifndef ASSAY_SERVER_RELOAD_H
#define ASSAY_SERVER_RELOAD_H

#include "server/api.h"

struct reload;
struct reload *reload_new(struct loop *l, const struct server_options *o, struct api *a);
void reload_start(struct reload *r);
/* Before api.attest is freed; sessions must have ended. */
void reload_free(struct reload *r);

#endif

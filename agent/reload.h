/*
 * SIGHUP, SIGUSR1: reads the configuration again, checks it as a start would, and takes what can be
 * taken while the agent runs. Each change is logged, with whether it has effect now. Loop thread.
 */
#ifndef ASSAY_AGENT_RELOAD_H
#define ASSAY_AGENT_RELOAD_H

#include "agent/api.h"

struct reload;
/* o is changed in place; everything in it that is not for the loop thread alone stays. */
struct reload *reload_new(struct loop *l, struct agent_options *o, struct api *a);
void reload_start(struct reload *r);
void reload_free(struct reload *r);

#endif

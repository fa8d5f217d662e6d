/*
 * `files`: keeps X.509-SVIDs, JWT-SVIDs and bundles of the Workload API in files, for programs that
 * read files. One X.509 stream and one of JWT bundles serve all sets; what changes is written by a
 * worker thread, one set after the other, whole or not at all.
 */
#ifndef ASSAY_AGENT_FILES_H
#define ASSAY_AGENT_FILES_H

#include "agent/files_options.h"

/* Until told to stop by SIGINT or SIGTERM, or, without daemon_mode, until everything is written
 * once. The exit code; what went wrong is logged. */
int files_run(const struct files_options *o);

#endif

/* Shared by files_options*.c only. */
#ifndef ASSAY_AGENT_FILES_OPTIONS_INTERNAL_H
#define ASSAY_AGENT_FILES_OPTIONS_INTERNAL_H

#include "agent/files_options.h"

/* What stands at the top level, or in a block `identity`. */
struct files_set_file {
	struct files_set_options o; /* first: the table's offsets count from here */
	struct config_blocks jwts;
	char *cmd_args, *renew_signal, *owner, *group;
};

struct files_file {
	struct files_set_file set; /* first, likewise */
	struct config_blocks identities;
	struct files_options o;
};

struct files_jwt_file {
	char *audience, *file;
	struct strings extra;
};

/* The keys of one set; those of the whole file (set's not among them); those of jwt_svids. */
extern const struct config_option files_set_table[], files_top_table[], files_jwt_table[];
/* Both of the first two, for the top level. Allocated once. */
const struct config_option *files_whole_table(void);

#endif

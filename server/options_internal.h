/* Shared by options.c and options_table.c only. */
#ifndef ASSAY_SERVER_OPTIONS_INTERNAL_H
#define ASSAY_SERVER_OPTIONS_INTERNAL_H

#include "lib/config.h"
#include "server/options.h"

/* What the file says and the options hold in another shape. */
struct server_file {
	struct server_options o; /* first: the table's offsets count from here */
	struct strings country, organization;
	bool has_plugins, has_keymgr_memory, has_keymgr_disk, has_ca_subject;
};

extern const struct config_option server_option_table[];

#endif

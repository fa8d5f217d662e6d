/* Shared by options.c and options_table.c only. */
#ifndef ASSAY_AGENT_OPTIONS_INTERNAL_H
#define ASSAY_AGENT_OPTIONS_INTERNAL_H

#include "agent/options.h"
#include "lib/config.h"

/* What the file says and the options hold in another shape. */
struct agent_file {
	struct agent_options o; /* first: the table's offsets count from here */
	bool has_plugins, has_keymgr_memory, has_keymgr_disk;
	struct config_blocks k8s_brokers, brokers;
};

extern const struct config_option agent_option_table[];

/* WorkloadAttestor "k8s": what the table cannot say. */
void options_k8s(struct config *c, struct agent_file *f);
void options_k8s_deinit(struct k8s_options *o);
void options_k8s_print(const struct k8s_options *o, struct buf *ret);

/* experimental.broker. */
void options_broker(struct config *c, struct agent_file *f);
void options_broker_deinit(struct agent_options *o);
void options_broker_print(const struct agent_options *o, struct buf *ret);

/* Caller frees. */
char *options_absolute(const char *path);

#endif

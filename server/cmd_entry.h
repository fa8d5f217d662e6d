/* Shared by the files of cmd_entry only. */
#ifndef ASSAY_SERVER_CMD_ENTRY_H
#define ASSAY_SERVER_CMD_ENTRY_H

#include <stdio.h>

#include "server/cmd_util.h"
#include "spire/api/server/entry/v1/entry.pb-c.h"

enum {
	ENTRY_FILE_MAX = 64 << 20, /* -data, -file */
	ENTRY_BATCH = 500,         /* entries per call, so that no call passes gRPC's 4 MB */
	ENTRY_PAGE = 1000,
};

/* Entries of a command or a file. Owns them; NULL ones were handed on. */
struct entry_list {
	Spire__Api__Types__Entry **v;
	size_t n;
};
void entry_list_add(struct entry_list *l, Spire__Api__Types__Entry *en); /* takes it */
void entry_list_deinit(struct entry_list *l);

void entry_print(FILE *to, const Spire__Api__Types__Entry *en);
/* The JSON of -data: {"entries": [{"spiffe_id": …, "parent_id": …, "selectors": [{"type",
 * "value"}], …}]}.
 */
int entry_read_data(
	struct cli *c, const char *path, struct entry_list *ret, struct err *e) MUST_USE;
/* The JSON of -file: {"ids": […]}. */
int entry_read_ids(struct cli *c, const char *path, struct strings *ret, struct err *e) MUST_USE;

/* cmd_entry_show.c */
extern const struct cli_flag entry_show_flags[], entry_count_flags[];
int entry_show(struct cli *c);
int entry_count(struct cli *c);

#endif

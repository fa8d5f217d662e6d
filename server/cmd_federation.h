/* Shared by the two files of `federation`. */
#ifndef ASSAY_SERVER_CMD_FEDERATION_H
#define ASSAY_SERVER_CMD_FEDERATION_H

#include "server/cmd_util.h"
#include "spire/api/types/federationrelationship.pb-c.h"

struct cmd_relationships {
	Spire__Api__Types__FederationRelationship **v;
	size_t n;
};
/* By the flags, or the file of -data. To be freed on failure too. */
int cmd_relationships_read(struct cli *c, struct cmd_relationships *ret, struct err *e) MUST_USE;
void cmd_relationships_deinit(struct cmd_relationships *v);

#endif

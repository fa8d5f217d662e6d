/* The values of store.h. */
#include <stdlib.h>

#include "server/store.h"

void node_deinit(struct node *n)
{
	free(n->spiffe_id);
	free(n->attestation_type);
	free(n->serial);
	free(n->new_serial);
	free(n->agent_version);
	selectors_deinit(&n->selectors);
	*n = (struct node){ .spiffe_id = NULL };
}

static char *dup_text(const char *s)
{
	return xstrdup(s ? s : "");
}

struct node node_dup(const struct node *n)
{
	struct node d = *n;

	d.spiffe_id = dup_text(n->spiffe_id);
	d.attestation_type = dup_text(n->attestation_type);
	d.serial = dup_text(n->serial);
	d.new_serial = dup_text(n->new_serial);
	d.agent_version = dup_text(n->agent_version);
	d.selectors = selectors_dup(&n->selectors);
	return d;
}

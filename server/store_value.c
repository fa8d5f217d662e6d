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

void relationship_deinit(struct relationship *r)
{
	free(r->trust_domain);
	free(r->url);
	free(r->endpoint_id);
	*r = (struct relationship){ .num = 0 };
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

struct relationship relationship_dup(const struct relationship *r)
{
	return (struct relationship){ .num = r->num,
		.trust_domain = dup_text(r->trust_domain),
		.url = dup_text(r->url),
		.endpoint_id = dup_text(r->endpoint_id) };
}

#include "server/authz.h"

#include <stdlib.h>
#include <string.h>

#include "lib/log.h"
#include "lib/map.h"
#include "spire/api/types/status.pb-c.h"

/* ---- the table ---- */

enum { ADMIN_LOCAL = AUTHZ_ADMIN | AUTHZ_LOCAL };

#define AGENT_API "/spire.api.server.agent.v1.Agent/"
#define BUNDLE_API "/spire.api.server.bundle.v1.Bundle/"
#define ENTRY_API "/spire.api.server.entry.v1.Entry/"
#define SVID_API "/spire.api.server.svid.v1.SVID/"
#define TRUST_DOMAIN_API "/spire.api.server.trustdomain.v1.TrustDomain/"
#define AUTHORITY_API "/spire.api.server.localauthority.v1.LocalAuthority/"
#define ASSAY_AUTHORITY_API "/assay.server.v1.Authority/"
#define CONTROLLER_API "/assay.server.v1.Controller/"
#define LOGGER_API "/spire.api.server.logger.v1.Logger/"
#define DEBUG_API "/spire.api.server.debug.v1.Debug/"
#define HEALTH_API "/grpc.health.v1.Health/"
#define SYNC_API "/assay.agent.v1.Sync/"

static const struct authz_method table[] = {
	{ AGENT_API "AttestAgent", AUTHZ_ANY, false },
	{ AGENT_API "RenewAgent", AUTHZ_AGENT, false },
	{ AGENT_API "PostStatus", AUTHZ_AGENT, false },
	{ AGENT_API "CountAgents", ADMIN_LOCAL, false },
	{ AGENT_API "ListAgents", ADMIN_LOCAL, false },
	{ AGENT_API "GetAgent", ADMIN_LOCAL, false },
	{ AGENT_API "DeleteAgent", ADMIN_LOCAL, false },
	{ AGENT_API "BanAgent", ADMIN_LOCAL, false },
	{ AGENT_API "CreateJoinToken", ADMIN_LOCAL, false },

	{ BUNDLE_API "GetBundle", AUTHZ_ANY, false },
	{ BUNDLE_API "GetFederatedBundle", ADMIN_LOCAL | AUTHZ_AGENT, false },
	{ BUNDLE_API "PublishJWTAuthority", AUTHZ_DOWNSTREAM, false },
	{ BUNDLE_API "PublishWITAuthority", AUTHZ_DOWNSTREAM, false },
	{ BUNDLE_API "CountBundles", ADMIN_LOCAL, false },
	{ BUNDLE_API "AppendBundle", ADMIN_LOCAL, false },
	{ BUNDLE_API "ListFederatedBundles", ADMIN_LOCAL, false },
	{ BUNDLE_API "BatchCreateFederatedBundle", ADMIN_LOCAL, false },
	{ BUNDLE_API "BatchUpdateFederatedBundle", ADMIN_LOCAL, false },
	{ BUNDLE_API "BatchSetFederatedBundle", ADMIN_LOCAL, false },
	{ BUNDLE_API "BatchDeleteFederatedBundle", ADMIN_LOCAL, false },

	{ ENTRY_API "GetAuthorizedEntries", AUTHZ_AGENT, false },
	{ ENTRY_API "SyncAuthorizedEntries", AUTHZ_AGENT, false },
	{ ENTRY_API "CountEntries", ADMIN_LOCAL, false },
	{ ENTRY_API "ListEntries", ADMIN_LOCAL, false },
	{ ENTRY_API "GetEntry", ADMIN_LOCAL, false },
	{ ENTRY_API "BatchCreateEntry", ADMIN_LOCAL, false },
	{ ENTRY_API "BatchUpdateEntry", ADMIN_LOCAL, false },
	{ ENTRY_API "BatchDeleteEntry", ADMIN_LOCAL, false },

	{ SVID_API "BatchNewX509SVID", AUTHZ_AGENT, false },
	{ SVID_API "NewJWTSVID", AUTHZ_AGENT, false },
	{ SVID_API "BatchNewWITSVID", AUTHZ_AGENT, false },
	{ SVID_API "NewDownstreamX509CA", AUTHZ_DOWNSTREAM, false },
	{ SVID_API "MintX509SVID", ADMIN_LOCAL, false },
	{ SVID_API "MintJWTSVID", ADMIN_LOCAL, false },
	{ SVID_API "MintWITSVID", ADMIN_LOCAL, false },

	{ TRUST_DOMAIN_API "ListFederationRelationships", ADMIN_LOCAL, false },
	{ TRUST_DOMAIN_API "GetFederationRelationship", ADMIN_LOCAL, false },
	{ TRUST_DOMAIN_API "BatchCreateFederationRelationship", ADMIN_LOCAL, false },
	{ TRUST_DOMAIN_API "BatchUpdateFederationRelationship", ADMIN_LOCAL, false },
	{ TRUST_DOMAIN_API "BatchDeleteFederationRelationship", ADMIN_LOCAL, false },
	{ TRUST_DOMAIN_API "RefreshBundle", ADMIN_LOCAL, false },

	{ AUTHORITY_API "GetJWTAuthorityState", ADMIN_LOCAL, false },
	{ AUTHORITY_API "PrepareJWTAuthority", ADMIN_LOCAL, false },
	{ AUTHORITY_API "ActivateJWTAuthority", ADMIN_LOCAL, false },
	{ AUTHORITY_API "TaintJWTAuthority", ADMIN_LOCAL, false },
	{ AUTHORITY_API "RevokeJWTAuthority", ADMIN_LOCAL, false },
	{ AUTHORITY_API "GetX509AuthorityState", ADMIN_LOCAL, false },
	{ AUTHORITY_API "PrepareX509Authority", ADMIN_LOCAL, false },
	{ AUTHORITY_API "ActivateX509Authority", ADMIN_LOCAL, false },
	{ AUTHORITY_API "TaintX509Authority", ADMIN_LOCAL, false },
	{ AUTHORITY_API "TaintX509UpstreamAuthority", ADMIN_LOCAL, false },
	{ AUTHORITY_API "RevokeX509Authority", ADMIN_LOCAL, false },
	{ AUTHORITY_API "RevokeX509UpstreamAuthority", ADMIN_LOCAL, false },
	{ AUTHORITY_API "GetWITAuthorityState", ADMIN_LOCAL, false },
	{ AUTHORITY_API "PrepareWITAuthority", ADMIN_LOCAL, false },
	{ AUTHORITY_API "ActivateWITAuthority", ADMIN_LOCAL, false },
	{ AUTHORITY_API "TaintWITAuthority", ADMIN_LOCAL, false },
	{ AUTHORITY_API "RevokeWITAuthority", ADMIN_LOCAL, false },
	{ ASSAY_AUTHORITY_API "GetDistribution", ADMIN_LOCAL, false },

	{ CONTROLLER_API "ExplainPod", ADMIN_LOCAL, false },

	{ LOGGER_API "GetLogger", AUTHZ_LOCAL, true },
	{ LOGGER_API "SetLogLevel", AUTHZ_LOCAL, true },
	{ LOGGER_API "ResetLogLevel", AUTHZ_LOCAL, true },
	{ DEBUG_API "GetInfo", AUTHZ_LOCAL, true },
	{ HEALTH_API "Check", AUTHZ_LOCAL, true },
	{ HEALTH_API "List", AUTHZ_LOCAL, true },
	{ HEALTH_API "Watch", AUTHZ_LOCAL, true },

	{ SYNC_API "Watch", AUTHZ_AGENT, false },
};

const struct authz_method *authz_table(size_t *ret_n)
{
	*ret_n = ARRAY_LEN(table);
	return table;
}

/* Some sixty strings that begin alike: their lengths tell most of them apart. */
const struct authz_method *authz_find(const char *method)
{
	static size_t lengths[ARRAY_LEN(table)]; /* filled at first use; loop thread */
	size_t n = strlen(method);

	if (!lengths[0])
		for (size_t i = 0; i < ARRAY_LEN(table); i++)
			lengths[i] = strlen(table[i].method);
	for (size_t i = 0; i < ARRAY_LEN(table); i++)
		if (lengths[i] == n && memcmp(table[i].method, method, n) == 0)
			return &table[i];
	return NULL;
}

const char *authz_class_name(unsigned as)
{
	switch (as) {
	case AUTHZ_LOCAL:
		return "local";
	case AUTHZ_ADMIN:
		return "admin";
	case AUTHZ_DOWNSTREAM:
		return "downstream";
	case AUTHZ_AGENT:
		return "agent";
	default:
		return "nobody";
	}
}

/* ---- the authorizer ---- */

struct authz {
	struct store *store;
	const struct entries *entries;
	const struct strings *admin_ids;
	struct map *promotions; /* agent's id → struct promotion under way */
};

/* An agent's new serial number on its way to become the only one. */
struct promotion {
	struct authz *authz; /* NULL: gone meanwhile */
	char *id;
	char *serial;
};

struct authz *authz_new(const struct authz_options *o)
{
	struct authz *a = xcalloc(1, sizeof(*a));

	a->store = o->store;
	a->entries = o->entries;
	a->admin_ids = o->admin_ids;
	a->promotions = map_new();
	return a;
}

void authz_free(struct authz *a)
{
	struct bytes key;
	void *p;

	if (!a)
		return;
	for (size_t i = 0; map_next(a->promotions, &i, &key, &p);)
		((struct promotion *)p)->authz = NULL;
	map_free(a->promotions);
	free(a);
}

static void promoted(void *arg, int code, const char *msg)
{
	struct promotion *p = arg;

	/* After ABORTED the agent has renewed once more, after NOT_FOUND it was evicted. */
	if (code && code != ERR_ABORTED && code != ERR_NOT_FOUND)
		log_event(LOG_WARN, "authz", "cannot activate the agent's new SVID", "agent_id",
			p->id, "error", msg, NULL);
	if (p->authz)
		map_del_str(p->authz->promotions, p->id);
	free(p->id);
	free(p->serial);
	free(p);
}

/* The first use of a renewed SVID ends the old one. The agent does not wait for the disk: what it
 * came with counts at once. */
static void promote(struct authz *a, const struct node *n)
{
	static const int64_t never = 0;
	struct node_update u = {
		.serial = n->new_serial,
		.expires_at = &n->new_expires_at,
		.new_serial = "",
		.new_expires_at = &never,
		.expect_serial = n->new_serial,
	};
	struct promotion *p;

	if (!a->store)
		return;
	p = xcalloc(1, sizeof(*p));
	p->authz = a;
	p->id = xstrdup(n->spiffe_id);
	p->serial = xstrdup(n->new_serial);
	map_put_str(a->promotions, p->id, p);
	store_node_update(a->store, n->spiffe_id, &u, promoted, p);
}

static int refuse(struct authz_verdict *v, int reason, const char *fmt, ...) PRINTF_LIKE(3, 4);
static int refuse(struct authz_verdict *v, int reason, const char *fmt, ...)
{
	struct err e;
	va_list ap;

	va_start(ap, fmt);
	err_setv(&e, ERR_DENIED, fmt, ap);
	va_end(ap);
	v->reason = reason;
	memcpy(v->detail, e.msg, sizeof(v->detail) - 1);
	v->detail[sizeof(v->detail) - 1] = 0;
	return ERR_DENIED;
}

#define REASON(name) SPIRE__API__TYPES__PERMISSION_DENIED_DETAILS__REASON__##name

static int check_serial(
	struct authz *a, const struct node *n, const char *serial, struct authz_verdict *v)
{
	const struct promotion *p = map_get_str(a->promotions, n->spiffe_id);
	const char *active = p ? p->serial : n->serial;

	if (strcmp(serial, active) == 0)
		return 0;
	if (!n->new_serial[0] || strcmp(serial, n->new_serial) != 0)
		return refuse(v, REASON(AGENT_NOT_ACTIVE),
			"agent \"%.200s\" expected to have serial number %.60s; has %.60s",
			n->spiffe_id, active, serial);
	/* Renewed once more while the one before is on its way: that is for the next call. */
	if (!p)
		promote(a, n);
	return 0;
}

static int check_agent(struct authz *a, const struct peer *p, struct authz_verdict *v)
{
	AUTO_BUF struct buf serial = BUF_INIT;
	struct node n;

	if (p->is_unix || p->chain.n == 0 || !p->id.text)
		return refuse(v, 0, "caller does not have an X509-SVID");
	if (wall_sub_ns(clock_wall(), x509_not_after(p->chain.v[0])) > 0)
		return refuse(
			v, REASON(AGENT_EXPIRED), "agent \"%.200s\" SVID is expired", p->id.text);
	if (entries_node_view(a->entries, p->id.text, &n, NULL))
		return refuse(v, REASON(AGENT_NOT_ATTESTED), "agent \"%.200s\" is not attested",
			p->id.text);
	if (node_banned(&n))
		return refuse(v, REASON(AGENT_BANNED), "agent \"%.200s\" is banned", p->id.text);
	x509_serial_decimal(p->chain.v[0], &serial);
	return check_serial(a, &n, buf_cstr(&serial), v);
}

/* The same order as SPIRE's, from cheap to dear. */
static int classify(
	struct authz *a, const struct peer *p, unsigned allowed, struct authz_verdict *v)
{
	const char *id = p->is_unix ? NULL : p->id.text;
	int r;

	if (allowed & AUTHZ_ANY) {
		v->as = AUTHZ_ANY;
		return 0;
	}
	if ((allowed & AUTHZ_LOCAL) && p->is_unix)
		v->as = AUTHZ_LOCAL;
	else if ((allowed & AUTHZ_ADMIN) && id &&
		 (strings_has(a->admin_ids, id) || entries_is_admin(a->entries, id)))
		v->as = AUTHZ_ADMIN;
	else if ((allowed & AUTHZ_DOWNSTREAM) && id && entries_is_downstream(a->entries, id))
		v->as = AUTHZ_DOWNSTREAM;
	if (v->as)
		return 0;
	if (!(allowed & AUTHZ_AGENT))
		return refuse(v, 0, "caller %.200s may not", id ? id : "without an SVID");
	r = check_agent(a, p, v);
	if (!r)
		v->as = AUTHZ_AGENT;
	return r;
}

/* As grpc-go words it, which SPIRE's clients know. */
static int unimplemented(const char *method, struct err *e)
{
	const char *slash = strrchr(method, '/');
	size_t n;

	if (method[0] != '/' || slash == method)
		return err_set(e, ERR_UNIMPLEMENTED, "malformed method name: \"%.200s\"", method);
	n = (size_t)(slash - method);
	for (size_t i = 0; i < ARRAY_LEN(table); i++)
		if (!table[i].unix_only && strncmp(table[i].method, method, n + 1) == 0)
			return err_set(e, ERR_UNIMPLEMENTED,
				"unknown method %.200s for service %.*s", slash + 1, (int)n - 1,
				method + 1);
	return err_set(e, ERR_UNIMPLEMENTED, "unknown service %.*s", (int)n - 1, method + 1);
}

int authz_check(struct authz *a, const struct peer *p, const char *method, struct authz_verdict *v,
	struct err *e)
{
	const struct authz_method *m = authz_find(method);

	*v = (struct authz_verdict){ .as = 0 };
	if (!m || (m->unix_only && !p->is_unix))
		return unimplemented(method, e);
	if (classify(a, p, m->allowed, v) == 0)
		return 0;
	return err_set(e, ERR_DENIED, "authorization denied for method %s", method);
}

void authz_answer(struct rpc_call *c, const struct authz_verdict *v, const struct err *e)
{
	Spire__Api__Types__PermissionDeniedDetails d =
		SPIRE__API__TYPES__PERMISSION_DENIED_DETAILS__INIT;

	if (!v->reason) {
		rpc_fail_err(c, e);
		return;
	}
	d.reason = (Spire__Api__Types__PermissionDeniedDetails__Reason)v->reason;
	rpc_fail_details(c, e->code, e->msg, &d.base);
}

bool authz_rpc(void *authz, struct rpc_call *c, const char *method)
{
	struct authz_verdict v;
	struct err e;

	if (authz_check(authz, rpc_call_peer(c), method, &v, &e) == 0)
		return true;
	log_event(LOG_DEBUG, "authz", "refused a call", "method", method, "reason",
		v.detail[0] ? v.detail : e.msg, NULL);
	authz_answer(c, &v, &e);
	return false;
}

/*
 * Envoy's secrets: what a view's callers may have, in the shape of SDS v3 (SPIRE's names).
 *
 * A name is a SPIFFE ID (certificate and key), a trust domain ID (its roots), or one of the three
 * of `sds {}` in the configuration. Roots come with Envoy's SPIFFE validator, or (plain) as a bare
 * list of CAs.
 */
#ifndef ASSAY_AGENT_SDS_H
#define ASSAY_AGENT_SDS_H

#include "agent/api.h"
#include "envoy/service/discovery/v3/discovery.pb-c.h"

enum {
	SDS_NAMES_MAX = 1000, /* in one request, or subscribed to by one stream */
	SDS_NONCE_SIZE = 9,   /* 8 hex digits and the zero */
};

struct sds_secret {
	char *name;
	struct buf body; /* an envoy…tls.v3.Secret, packed; secret */
};
struct sds_secrets {
	struct sds_secret *v;
	size_t n;
};
void sds_secrets_deinit(struct sds_secrets *s);
#define AUTO_SDS_SECRETS __attribute__((cleanup(sds_secrets_deinit)))

/* What a request asks for. Names are sorted, each once, none empty; none at all: everything. */
struct sds_query {
	struct strings names;
	char *type_url;
	bool plain;
};
void sds_query_deinit(struct sds_query *q);
/* Of a request that says nothing of its sender, plain stays as given. ERR_INVALID: too many. */
int sds_query_of(const struct agent_options *o,
	const Envoy__Service__Discovery__V3__DiscoveryRequest *rq, bool plain,
	struct sds_query *ret, struct err *e) MUST_USE;
/* Whether the sender wants roots without the validator: because it says so in its metadata, the
 * configuration does, or it is too old to know it. */
bool sds_wants_plain(const struct agent_options *o, const Envoy__Config__Core__V3__Node *n);

/* The view has what these names could mean. */
bool sds_ready(const struct view *v, const struct agent_options *o, const struct strings *names);
/* All that is asked for. ERR_INVALID: a name that these callers may not have; ERR_INTERNAL: all
 * bundles for an Envoy that cannot have them. */
int sds_select(struct view *v, const struct agent_options *o, const struct sds_query *q,
	struct sds_secrets *ret, struct err *e) MUST_USE;
/* Appends the one of that name; false when there is none. */
bool sds_pick(struct view *v, const struct agent_options *o, const char *name, bool plain,
	struct sds_secrets *ret);

/* A secret of contents in PEM: roots as a bare list of CAs, or certificate and key. */
void sds_add_roots(struct sds_secrets *to, const char *name, struct bytes pem);
void sds_add_certificate(
	struct sds_secrets *to, const char *name, struct bytes chain, struct bytes key);

/* Borrows. */
Google__Protobuf__Any sds_any(const struct sds_secret *s);
void sds_nonce(char ret[static SDS_NONCE_SIZE]);

/* Logs and counts that Envoy did not take what it was sent; why may be NULL. */
void sds_refused(struct rpc_call *c, const char *names, const char *why);
void sds_metrics(void);
/* StreamSecrets' incremental sister (api_sds_delta.c). */
void sds_delta(struct rpc_call *c, const ProtobufCMessage *req);

#endif

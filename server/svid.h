/*
 * The server's own X509-SVID, spiffe://<trust domain>/spire/server: a fresh key each time, renewed
 * at half life and whenever another authority signs; the TLS context of new connections follows by
 * pointer swap. Loop thread.
 */
#ifndef ASSAY_SERVER_SVID_H
#define ASSAY_SERVER_SVID_H

#include "lib/bundle.h"
#include "lib/loop.h"
#include "lib/tls.h"
#include "server/ca.h"

struct server_svid;

struct server_svid_options {
	struct loop *loop;
	struct ca *ca;
	const char *trust_domain;
	enum key_type key_type;
	int64_t ttl_ns;
	bool require_pq; /* of whoever connects: X25519MLKEM768 */
};
/* ready(arg) once, when the first one is there (the CA must be ready). Failures are logged and
 * tried again with back-off. */
struct server_svid *server_svid_new(
	const struct server_svid_options *o, void (*ready)(void *arg), void *arg);
void server_svid_free(struct server_svid *s);
void server_svid_renew(struct server_svid *s); /* now */
/* Renews it when only tainted roots vouch for it any more. */
void server_svid_bundle_changed(struct server_svid *s, const struct bundle *b);

/* A new reference; NULL before ready. For door_options.tls (arg: struct server_svid). */
struct tls_ctx *server_svid_tls(void *svid);
/* The same certificate for HTTPS, as the bundle endpoint of profile https_spiffe shows it. */
struct tls_ctx *server_svid_https_tls(void *svid);
/* Leaf first; borrowed until the next renewal; n = 0 before ready. */
const struct x509_chain *server_svid_chain(const struct server_svid *s);

#endif

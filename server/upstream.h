/*
 * The upstream authority: who signs this server's CA when it does not do so itself.
 *
 * "disk" signs with a key and a certificate in files, read again for each CA. "spire" asks the
 * server above (NewDownstreamX509CA), known to it by an X509-SVID from the local agent's Workload
 * API, publishes JWT keys there and follows its bundle. Loop thread.
 */
#ifndef ASSAY_SERVER_UPSTREAM_H
#define ASSAY_SERVER_UPSTREAM_H

#include "lib/bundle.h"
#include "lib/loop.h"

struct upstream;

/* Borrowed for the call. chain: the new CA first, then what leads to the roots; b: the upstream's
 * bundle. chain and b are NULL on failure, chain also for what is no certificate. */
typedef void upstream_done(
	void *arg, const struct x509_chain *chain, struct bundle *b, const struct err *e);
typedef void upstream_news(void *arg, struct bundle *b);

/* One kind; publish and on_bundle may be NULL. */
struct upstream_kind {
	const char *name;
	/* Its bundle is the tree's: what leaves it, leaves ours; what it taints is given up. */
	bool follows;
	void (*mint)(struct upstream *u, struct bytes csr, int64_t ttl_ns, upstream_done *done,
		void *arg);
	void (*publish)(
		struct upstream *u, const struct bundle_jwt_key *k, upstream_done *done, void *arg);
	void (*on_bundle)(struct upstream *u, upstream_news *fn, void *arg);
	int (*health)(struct upstream *u, struct err *e);
	void (*free)(struct upstream *u);
};

/* The head of each kind's own struct. */
struct upstream {
	const struct upstream_kind *kind;
};

struct upstream_disk_options {
	struct loop *loop;
	const char *trust_domain;
	const char *cert_path, *key_path;
	const char *bundle_path; /* NULL: the certificate is its own root */
};
/* Reads the files (blocking): at start, what is wrong with them is an error. */
int upstream_disk_new(
	const struct upstream_disk_options *o, struct upstream **ret, struct err *e) MUST_USE;

struct upstream_spire_options {
	struct loop *loop;
	const char *trust_domain;
	const char *server_address;
	int server_port;
	const char *workload_api_socket;
	bool require_pq;
};
struct upstream *upstream_spire_new(const struct upstream_spire_options *o);

/* done is called exactly once, after this returns; on upstream_free() perhaps from inside. */
void upstream_mint(
	struct upstream *u, struct bytes csr, int64_t ttl_ns, upstream_done *done, void *arg);
bool upstream_publishes(const struct upstream *u);
void upstream_publish(
	struct upstream *u, const struct bundle_jwt_key *k, upstream_done *done, void *arg);
/* fn(arg, b) for each bundle that comes without being asked for. fn NULL: no more. */
void upstream_on_bundle(struct upstream *u, upstream_news *fn, void *arg);
bool upstream_follows(const struct upstream *u);
/* 0, or what is wrong with it, although the server may still sign. */
int upstream_health(struct upstream *u, struct err *e);
void upstream_free(struct upstream *u); /* NULL is fine */

#endif

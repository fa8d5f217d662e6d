/* Shared by the files of cmd_api only. */
#ifndef ASSAY_AGENT_CMD_API_H
#define ASSAY_AGENT_CMD_API_H

#include "lib/cli.h"
#include "lib/crypto.h"
#include "lib/pbjson.h"
#include "lib/x509.h"
#include "spiffe/workload/workload.pb-c.h"

/* The header that the Workload API asks for. */
const char *const *api_metadata(void);

/* X509SVIDResponse, parsed and verified. */
struct api_bundle {
	char *trust_domain; /* as it came */
	struct x509_chain certs;
};
struct api_svid {
	char *spiffe_id, *hint;
	struct x509_chain certs, bundle;
	struct key *key;
};
struct api_svids {
	struct api_svid *v;
	size_t n;
	struct api_bundle *federated;
	size_t n_federated;
};
int api_svids_parse(struct api_svids *ret, const X509SVIDResponse *m, struct err *e) MUST_USE;
void api_svids_deinit(struct api_svids *s);
void api_svids_print(struct cli *c, const struct api_svids *s, int64_t took_ns);
/* svid.N.pem, svid.N.key, bundle.N.pem, federated_bundle.N.M.pem */
int api_svids_write(
	struct cli *c, const struct api_svids *s, const char *dir, struct err *e) MUST_USE;
/* Frees, and wipes the keys. */
void api_free_x509(X509SVIDResponse *m);

/* `api watch` (cmd_api_watch.c) */
int api_watch(struct cli *c);

#endif

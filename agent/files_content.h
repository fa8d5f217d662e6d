/* From the Workload API's answers to the bytes of files, in the forms that spiffe-helper writes. */
#ifndef ASSAY_AGENT_FILES_CONTENT_H
#define ASSAY_AGENT_FILES_CONTENT_H

#include "agent/files_options.h"
#include "lib/buf.h"
#include "lib/clock.h"
#include "spiffe/workload/workload.pb-c.h"

struct files_x509 {
	struct buf svid, key, bundle, combined; /* PEM; key and combined are secret */
	char *spiffe_id;
	struct wall expires;
};

/* The identity that the set wants (the first, the one with the hint, the one of that name), checked
 * to be whole: certificates that parse, a key that is the first one's. ERR_NOT_FOUND when there is
 * none such. */
int files_x509_make(struct files_x509 *ret, const struct files_set_options *o,
	const X509SVIDResponse *m, struct wall now, struct err *e) MUST_USE;
void files_x509_deinit(struct files_x509 *x);

/* The token, and when it ends. */
int files_jwt_make(struct buf *ret, int64_t *ret_expires, const struct files_set_options *o,
	const struct files_jwt *j, const JWTSVIDResponse *m, struct wall now,
	struct err *e) MUST_USE;
/* {"example.org":"<JWK Set in base64>"} */
int files_jwt_bundle_make(struct buf *ret, const JWTBundlesResponse *m, struct err *e) MUST_USE;

#endif

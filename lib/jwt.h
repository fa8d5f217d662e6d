/*
 * Compact JWS and JWT-SVIDs (RFC 7515, RFC 7519, the JWT-SVID standard). Algorithms: ES256, ES384,
 * ES512, RS256/384/512, PS256/384/512 for verification; ES256, ES384, RS256 for signing.
 */
#ifndef ASSAY_LIB_JWT_H
#define ASSAY_LIB_JWT_H

#include "lib/bundle.h"
#include "lib/x509.h"

enum { JWT_MAX = 64 << 10, JWT_MAX_AUDIENCES = 100 };

struct jwt_claims {
	const char *sub;        /* SPIFFE ID */
	const char *const *aud; /* always written as a list */
	size_t n_aud;
	int64_t exp, iat;
	const char *iss; /* NULL: none */
	const char *jti; /* NULL: none */
};
/* header: alg, kid, typ "JWT". The signer signs with SIG_JWS layout. */
int jwt_sign(const struct jwt_claims *c, const char *key_id, const struct x509_signer *s,
	struct buf *ret, struct err *e) MUST_USE;

/* A token, parsed but not verified. */
struct jwt {
	char *alg, *kid;
	struct spiffeid sub;
	struct strings aud;
	int64_t exp, iat, nbf;      /* seconds; iat, nbf 0: absent */
	char *claims_json;          /* the whole payload */
	struct bytes signing_input; /* into text */
	struct buf signature;
	char *text;
};
/* Checks shape, size, typ ("JWT", "JOSE" or absent), alg in the list above, sub a SPIFFE ID, aud
 * and exp present. ERR_INVALID. */
int jwt_parse(struct bytes text, struct jwt *ret, struct err *e) MUST_USE;
void jwt_deinit(struct jwt *j);
/* Signature by the bundle's key of that kid; not at or after exp; nbf and iat not more than 10 s
 * ahead; audience contained. ERR_INVALID with the reason. */
int jwt_verify(const struct jwt *j, const struct bundle *b, const char *audience, struct wall now,
	struct err *e) MUST_USE;

#endif

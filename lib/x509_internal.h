/* Inside of x509 only. */
#ifndef ASSAY_LIB_X509_INTERNAL_H
#define ASSAY_LIB_X509_INTERNAL_H

#include <stdatomic.h>

#include "lib/der.h"
#include "lib/x509.h"

/* AlgorithmIdentifier of a signature, understood. */
struct sig_alg {
	bool known;
	bool for_ec; /* else RSA, or Ed25519 */
	bool for_ed25519;
	enum hash hash;
	enum sig_scheme scheme;
};

/* What the extensions say; of a certificate, or asked for by a CSR. Bytes point into the DER. */
struct extensions {
	unsigned seen; /* bits by the table in x509_ext.c: none comes twice */
	bool is_ca, has_basic_constraints;
	int path_len; /* -1: no limit */
	bool has_key_usage;
	unsigned key_usage;
	bool has_eku, eku_server, eku_client, eku_any;
	struct bytes ski, aki;
	bool has_san;
	struct strings uris, dns_names, emails;
	struct bytes *ips;
	size_t n_ips;
	struct bytes constraints; /* NameConstraints' body; p = NULL: none */
	bool constraints_critical;
	char unknown_critical[64]; /* dotted OID of the first that we do not understand; "" */
};

struct x509_cert {
	atomic_int refs;
	int version; /* 1 or 3 */
	struct bytes der;
	struct bytes tbs;
	struct bytes serial;
	struct bytes issuer, subject; /* whole Names */
	struct wall not_before, not_after;
	struct pubkey *pubkey;
	struct sig_alg alg;
	struct bytes signature;
	char *cn;
	struct extensions ext;
};

/* The body of an Extensions sequence. ext must be zeroed with path_len -1 before. */
int extensions_parse(struct bytes body, struct extensions *ext, struct err *e) MUST_USE;
void extensions_deinit(struct extensions *ext);
#define EXTENSIONS_INIT ((struct extensions){ .path_len = -1 })

/* whole: an AlgorithmIdentifier with its header. */
struct sig_alg sig_alg_parse(struct bytes whole);
void sig_alg_put(struct buf *b, enum key_type signer);
int signature_check(const struct pubkey *p, const struct sig_alg *alg, struct bytes message,
	struct bytes sig, struct err *e) MUST_USE;

/* body of a Name's SEQUENCE is well-formed. */
bool name_check(struct bytes body);
char *name_cn(struct bytes whole); /* "" when none */
void oid_text(struct bytes oid, struct buf *ret);

/* Writes an Extension that holds a SAN; nothing when there are no names. */
void san_put(struct buf *b, bool critical, const char *const *uris, size_t n_uris,
	const char *const *dns, size_t n_dns);

struct bytes oid_extension(uint8_t last); /* 2.5.29.last, valid for ever */

/* Names of path[i] within all constraints above it. *budget counts comparisons down. */
int constraints_check(const struct extensions *of_ca, const struct x509_cert *below, int *budget,
	struct err *e) MUST_USE;

#endif

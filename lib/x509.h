/*
 * X.509: parse, build, verify — certificates and CSRs as RFC 5280 and the X509-SVID standard want
 * them.
 *
 * Our own DER writer and our own path validation stand on wolfCrypt's primitives; wolfSSL's parser
 * is used to parse, with our own bounds before it.
 */
#ifndef ASSAY_LIB_X509_H
#define ASSAY_LIB_X509_H

#include <stdbool.h>

#include "lib/buf.h"
#include "lib/clock.h"
#include "lib/crypto.h"
#include "lib/entry.h"
#include "lib/spiffeid.h"

enum { X509_MAX_DER = 64 << 10, X509_MAX_CHAIN = 10, X509_MAX_ROOTS = 1000 };

enum x509_ku { /* keyUsage bits, RFC 5280 4.2.1.3 */
	KU_DIGITAL_SIGNATURE = 1 << 0,
	KU_CONTENT_COMMITMENT = 1 << 1,
	KU_KEY_ENCIPHERMENT = 1 << 2,
	KU_DATA_ENCIPHERMENT = 1 << 3,
	KU_KEY_AGREEMENT = 1 << 4,
	KU_CERT_SIGN = 1 << 5,
	KU_CRL_SIGN = 1 << 6,
};

/* A parsed certificate. Immutable, counted, any thread. */
struct x509_cert;
/* Exactly one DER certificate: trailing bytes are refused. ERR_INVALID. */
int x509_parse(struct bytes der, struct x509_cert **ret, struct err *e) MUST_USE;
struct x509_cert *x509_ref(struct x509_cert *c);
void x509_unref(struct x509_cert *c);
struct bytes x509_der(const struct x509_cert *c);
struct bytes x509_serial(const struct x509_cert *c); /* big-endian, no leading zeros */
void x509_serial_decimal(const struct x509_cert *c, struct buf *ret);
void x509_serial_hex(const struct x509_cert *c, struct buf *ret);
struct wall x509_not_before(const struct x509_cert *c);
struct wall x509_not_after(const struct x509_cert *c);
struct bytes x509_subject_raw(const struct x509_cert *c); /* DER Name */
struct bytes x509_issuer_raw(const struct x509_cert *c);
const char *x509_subject_cn(const struct x509_cert *c);             /* "" when none */
void x509_subject_text(const struct x509_cert *c, struct buf *ret); /* RFC 4514-like, for people */
struct bytes x509_ski(const struct x509_cert *c);                   /* n = 0 when absent */
struct bytes x509_aki(const struct x509_cert *c);
struct pubkey *x509_pubkey(
	const struct x509_cert *c); /* borrowed; NULL when of a kind that we do not know */
bool x509_is_ca(const struct x509_cert *c);
unsigned x509_key_usage(const struct x509_cert *c, bool *ret_present);
const struct strings *x509_uris(const struct x509_cert *c);
const struct strings *x509_dns_names(const struct x509_cert *c);
size_t x509_ips(const struct x509_cert *c, const struct bytes **ret); /* raw 4 or 16 bytes each */
bool x509_self_issued(const struct x509_cert *c);

/* A chain or a set of roots: concatenated DER in, array out. */
struct x509_chain {
	struct x509_cert **v;
	size_t n;
};
void x509_chain_deinit(struct x509_chain *ch);
void x509_chain_add(struct x509_chain *ch, struct x509_cert *c); /* takes its own reference */
struct x509_chain x509_chain_dup(const struct x509_chain *ch);
int x509_chain_parse_der(
	struct x509_chain *ret, struct bytes concatenated, size_t max, struct err *e) MUST_USE;
int x509_chain_parse_pem(struct x509_chain *ret, struct bytes pem, size_t max,
	struct err *e) MUST_USE; /* only CERTIFICATE blocks are taken; none: ERR_INVALID */
void x509_chain_der(const struct x509_chain *ch, struct buf *ret);
void x509_chain_pem(const struct x509_chain *ch, struct buf *ret);

/*
 * Path validation, RFC 5280 6.1: ch[0] is the leaf, the others are intermediates in any order;
 * every root with a fitting name is tried. Checked: signatures, names, dates at `now`,
 * basicConstraints, keyCertSign, path length, name constraints (URI, DNS, at every tier), unknown
 * critical extensions. ERR_INVALID with a reason for people ("certificate expired 3 s ago …",
 * "signed by unknown authority").
 */
int x509_verify(const struct x509_chain *ch, const struct x509_chain *roots, struct wall now,
	struct err *e) MUST_USE;
/* As x509_verify, and gives the path found: leaf first, root last. */
int x509_verify_path(const struct x509_chain *ch, const struct x509_chain *roots, struct wall now,
	struct x509_chain *ret, struct err *e) MUST_USE;
/* The signature of c was made by the key of issuer (names not looked at). */
int x509_signed_by(
	const struct x509_cert *c, const struct x509_cert *issuer, struct err *e) MUST_USE;
/* The leaf rules of the X509-SVID standard (4.1 to 4.4): exactly one URI, a SPIFFE ID with a path
 * or none, CA false, digitalSignature, no keyCertSign, no cRLSign. */
int x509_svid_id(const struct x509_cert *leaf, struct spiffeid *ret, struct err *e) MUST_USE;

/* A CSR (PKCS#10), parsed. */
struct x509_csr {
	struct pubkey *pubkey;
	struct buf subject_raw; /* DER Name */
	struct strings uris;
	struct strings dns_names;
	struct buf raw; /* for x509_csr_check_signature */
};
/* Shape only; trailing bytes are refused. Messages begin "malformed CSR: ". */
int x509_csr_parse(struct bytes der, struct x509_csr *ret, struct err *e) MUST_USE;
int x509_csr_check_signature(const struct x509_csr *c, struct err *e) MUST_USE;
void x509_csr_deinit(struct x509_csr *c);
/* Makes one: subject C=US, O=SPIRE; URI SAN when uri is not NULL. */
int x509_csr_make(const struct key *k, const char *uri, struct buf *ret, struct err *e) MUST_USE;
/* The same with DNS names in its SAN. */
int x509_csr_make_dns(const struct key *k, const char *uri, const char *const *dns, size_t n_dns,
	struct buf *ret, struct err *e) MUST_USE;

/* Who signs: a callback, so that keys stay in their key manager. sig as SIG_X509. Called on
 * whatever thread builds. */
struct x509_signer {
	enum key_type type;
	int (*sign)(void *arg, enum hash h, struct bytes digest, struct buf *ret, struct err *e);
	void *arg;
};

/* What goes into a certificate. Everything is borrowed for the call. */
struct x509_template {
	struct bytes serial;      /* 1 to 20 bytes, big-endian, positive */
	struct bytes subject_raw; /* DER Name; n = 0: an empty Name */
	struct bytes issuer_raw;  /* DER Name, copied as it is */
	struct wall not_before;
	struct wall not_after;
	struct bytes spki;
	bool is_ca;         /* basicConstraints is always there and critical; no pathLen */
	unsigned key_usage; /* critical */
	bool eku_server_client;
	struct bytes aki; /* n = 0: none */
	const char *const *uris;
	size_t n_uris;
	const char *const *dns_names;
	size_t n_dns_names;
	/* The SAN is critical only when the subject is empty. The SKI is always there, SHA-1 of the
	 * public key bits. */
};
int x509_build(const struct x509_template *t, const struct x509_signer *s, struct buf *ret,
	struct err *e) MUST_USE;

/* A CSR for a key that stays in its key manager. */
struct x509_csr_template {
	struct bytes subject_raw; /* DER Name */
	struct bytes spki;
	const char *uri; /* NULL: none */
	const char *const *dns_names;
	size_t n_dns_names;
};
int x509_csr_build(const struct x509_csr_template *t, const struct x509_signer *s, struct buf *ret,
	struct err *e) MUST_USE;

/* DER Name from parts, in this order, each left out when NULL: C, O, OU…, serialNumber, CN.
 * Countries printable, others UTF8 or printable as fits. */
struct x509_name {
	const char *country, *organization, *organizational_unit, *serial_number, *common_name;
};
void x509_name_der(const struct x509_name *n, struct buf *ret);
/* raw with its CN replaced by (or, if none, extended with) cn. */
int x509_name_with_cn(struct bytes raw, const char *cn, struct buf *ret, struct err *e) MUST_USE;
/* raw with its OUs replaced by (or, if none, with the addition of) ou, before serialNumber and CN.
 */
int x509_name_with_ou(struct bytes raw, const char *ou, struct buf *ret, struct err *e) MUST_USE;
/* raw with id as its x500UniqueIdentifier (2.5.4.45), last. */
int x509_name_with_unique_id(
	struct bytes raw, const char *id, struct buf *ret, struct err *e) MUST_USE;
/* 16 random bytes, positive, not zero. */
void x509_random_serial(uint8_t ret[16]);

/* An issuing CA made ready for speed: fixed parts of the TBS are encoded once. Optional use inside
 * x509_build is the implementation's business. */

DEFINE_AUTO(x509_unref, struct x509_cert *);

#endif

/*
 * What of OpenSSH node attestation needs: public keys and host certificates in SSH's wire form (RFC
 * 4253, RFC 5656, RFC 8709, OpenSSH's PROTOCOL.certkeys), lines of authorized_keys, private keys in
 * OpenSSH's file format (PROTOCOL.key), and signatures. ssh-ed25519, ecdsa-sha2-nistp256/384/521
 * and ssh-rsa; no DSA, no security keys.
 */
#ifndef ASSAY_LIB_SSH_H
#define ASSAY_LIB_SSH_H

#include "lib/clock.h"
#include "lib/crypto.h"
#include "lib/entry.h"

enum {
	SSH_BLOB_MAX = 32 << 10,  /* a key or certificate in wire form */
	SSH_LINE_MAX = 64 << 10,  /* in a file */
	SSH_PRINCIPALS_MAX = 256, /* as OpenSSH's SSHKEY_CERT_MAX_PRINCIPALS */
	SSH_PRIVATE_FILE_MAX = 64 << 10,
};

/* A plain public key; a certificate is none. ERR_INVALID, ERR_UNIMPLEMENTED. */
int ssh_public_parse(struct bytes blob, struct pubkey **ret, struct err *e) MUST_USE;

/* The key or certificate of a line of authorized_keys, or of a .pub file: options, if any, are
 * skipped. Its wire form is appended to ret. ERR_NOT_FOUND when the line is empty or a comment. */
int ssh_line_parse(struct bytes line, struct buf *ret, struct err *e) MUST_USE;

struct ssh_cert {
	struct buf blob; /* as presented; the views point into it */
	struct pubkey *key;
	struct bytes authority_blob;
	struct pubkey *authority;
	uint64_t serial;
	uint32_t type; /* SSH_CERT_HOST … */
	char *key_id;
	struct strings principals;
	uint64_t valid_after, valid_before; /* seconds since 1970; UINT64_MAX: for ever */
	struct strings critical;            /* names of critical options */
	struct bytes signed_part;
	struct bytes signature;
};
enum { SSH_CERT_USER = 1, SSH_CERT_HOST = 2 };

/* Only the form is checked. ERR_INVALID, ERR_UNIMPLEMENTED. */
int ssh_cert_parse(struct bytes blob, struct ssh_cert *ret, struct err *e) MUST_USE;
void ssh_cert_deinit(struct ssh_cert *c); /* all zero is fine */
/* A host certificate, without critical options that nobody here knows, within its time, and signed
 * by its authority (whether that one is trusted is the caller's to say). ERR_DENIED. */
int ssh_cert_check_host(const struct ssh_cert *c, struct wall now, struct err *e) MUST_USE;

/* A signature: its format ("rsa-sha2-512") and the blob inside. sha1: "ssh-rsa" too. ERR_INVALID.
 */
int ssh_verify(const struct pubkey *k, struct bytes message, struct bytes format, struct bytes sig,
	bool sha1, struct err *e) MUST_USE;
int ssh_sign(const struct key *k, struct bytes message, const char **ret_format, struct buf *ret,
	struct err *e) MUST_USE;

/* A private key's file: OpenSSH's own format, or PEM. Encrypted ones are refused. */
int ssh_key_parse(struct bytes text, struct key **ret, struct err *e) MUST_USE;

#endif

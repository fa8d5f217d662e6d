/* Inside of lib/ssh only: the wire form's atoms (RFC 4251 section 5) and the table of key types. */
#ifndef ASSAY_LIB_SSH_INTERNAL_H
#define ASSAY_LIB_SSH_INTERNAL_H

#include "lib/ssh.h"

struct ssh_type {
	const char *name;
	enum key_type key; /* KEY_RSA_OTHER stands for any RSA */
	const char *curve; /* as the blob names it */
	struct bytes oid;  /* the same in SEC 1 files */
	size_t size;       /* bytes of a coordinate */
	enum hash hash;
};
const struct ssh_type *ssh_type_of(struct bytes name); /* NULL: unknown */
const struct ssh_type *ssh_type_of_key(enum key_type t);

bool ssh_get_u32(struct bytes *in, uint32_t *ret);
bool ssh_get_u64(struct bytes *in, uint64_t *ret);
bool ssh_get_string(struct bytes *in, struct bytes *ret);
/* A number that is not negative, in its one shortest form; the leading zero byte is taken off. */
bool ssh_get_mpint(struct bytes *in, struct bytes *ret);
void ssh_put_mpint(struct buf *b, struct bytes big_endian);
/* The fields of a public key behind its type's name. */
int ssh_fields_parse(
	const struct ssh_type *t, struct bytes *in, struct pubkey **ret, struct err *e);
bool ssh_bytes_are(struct bytes v, const char *text);

#endif

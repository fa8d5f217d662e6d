/*
 * Key manager: named signing keys. Names in, signatures out; private parts never leave it.
 * Kinds: memory, and disk (one JSON file {"keys":{name: base64 PKCS#8}}, mode 0600, replaced
 * atomically, refused when others can read it). Called on the loop or on workers; locks inside.
 */
#ifndef ASSAY_LIB_KEYMGR_H
#define ASSAY_LIB_KEYMGR_H

#include "lib/crypto.h"
#include "lib/x509.h"

struct keymgr;

int keymgr_memory_new(struct keymgr **ret, struct err *e) MUST_USE;
/* Reads the file when it is there. ERR_DATA_LOSS when it is damaged (names the file, changes
 * nothing), ERR_DENIED when its mode or owner is unsafe. */
int keymgr_disk_new(const char *path, struct keymgr **ret, struct err *e) MUST_USE;
/* The keys of another program's file of that kind, whoever it belongs to; changes stay in memory.
 * ERR_NOT_FOUND; else as keymgr_disk_new. */
int keymgr_file_read(const char *path, struct keymgr **ret, struct err *e) MUST_USE;
void keymgr_free(struct keymgr *m);

/* Makes (or replaces) the key of that name; durable when it returns. Slow for RSA: call from a job.
 */
int keymgr_generate(struct keymgr *m, const char *name, enum key_type t, struct pubkey **ret,
	struct err *e) MUST_USE;
/* Takes a key that was made elsewhere, in place of one of that name; durable when it returns. */
int keymgr_put(struct keymgr *m, const char *name, struct key *k, struct err *e) MUST_USE;
/* A new reference; ERR_NOT_FOUND. */
int keymgr_key(struct keymgr *m, const char *name, struct key **ret,
	struct err *e) MUST_USE; /* memory and disk kinds only; for TLS contexts */
int keymgr_public(struct keymgr *m, const char *name, struct pubkey **ret, struct err *e) MUST_USE;
int keymgr_list(struct keymgr *m, struct strings *ret, struct err *e) MUST_USE;
int keymgr_delete(struct keymgr *m, const char *name, struct err *e) MUST_USE;
/* A handle that goes on signing with this very key even if the name is generated anew; signs many
 * at once on many threads. */
struct keymgr_signer;
int keymgr_signer(
	struct keymgr *m, const char *name, struct keymgr_signer **ret, struct err *e) MUST_USE;
int keymgr_sign(struct keymgr_signer *s, enum hash h, struct bytes digest, enum sig_scheme scheme,
	struct buf *ret, struct err *e) MUST_USE;
enum key_type keymgr_signer_type(const struct keymgr_signer *s);
struct pubkey *keymgr_signer_public(const struct keymgr_signer *s); /* borrowed */
struct keymgr_signer *keymgr_signer_ref(struct keymgr_signer *s);
void keymgr_signer_unref(struct keymgr_signer *s);

DEFINE_AUTO(keymgr_free, struct keymgr *);
DEFINE_AUTO(keymgr_signer_unref, struct keymgr_signer *);

#endif

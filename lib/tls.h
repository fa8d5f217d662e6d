/*
 * TLS 1.3 by wolfSSL, as a pure state machine over byte buffers: no sockets here (lib/door and
 * lib/http own those).
 *
 * Contexts are immutable and counted; rotation makes a new one and swaps the pointer, live
 * connections keep the old. Tickets are off, so that every connection verifies its peer. Groups
 * offered: X25519MLKEM768 first, then X25519, P-256, P-384. The peer's chain is verified by us
 * (lib/x509), through a callback, before the handshake completes.
 */
#ifndef ASSAY_LIB_TLS_H
#define ASSAY_LIB_TLS_H

#include "lib/x509.h"

struct tls_ctx; /* one certificate and key, one role */
struct tls_conn;

/* Decides about the peer's chain (leaf first). 0 lets the handshake go on; an error ends it with an
 * alert and becomes the connection's error. */
typedef int tls_verify_fn(void *arg, const struct x509_chain *peer, struct err *e);

enum tls_client_cert { TLS_CLIENT_CERT_NONE, TLS_CLIENT_CERT_OPTIONAL, TLS_CLIENT_CERT_REQUIRED };

struct tls_options {
	bool server;
	const struct x509_chain
		*chain;  /* own certificate, leaf first; NULL on a client without one */
	struct key *key; /* must match the leaf */
	enum tls_client_cert client_cert; /* server only: OPTIONAL = one that is sent must verify */
	const char *alpn; /* "h2", "http/1.1" or NULL; when set, a peer that agrees on nothing is
			     refused (no ALPN at all is refused only for "h2") */
	bool allow_tls12; /* for the public HTTPS endpoints only */
	bool require_pq;  /* no key exchange but X25519MLKEM768, and so TLS 1.3 */
};
int tls_ctx_new(const struct tls_options *o, struct tls_ctx **ret, struct err *e) MUST_USE;
struct tls_ctx *tls_ctx_ref(struct tls_ctx *c);
void tls_ctx_unref(struct tls_ctx *c);

/* verify may be NULL only on a server with TLS_CLIENT_CERT_NONE. sni may be NULL (client only). */
struct tls_conn *tls_conn_new(struct tls_ctx *c, const char *sni, tls_verify_fn *verify, void *arg);
void tls_conn_free(struct tls_conn *t);

/*
 * Feed what came from the network, take what must go there; then read and write plaintext. All
 * non-blocking. tls_step() advances the handshake as far as the input goes. After an error the
 * connection only has output (an alert) to be flushed.
 */
bool tls_feed(struct tls_conn *t,
	struct bytes
		from_net); /* false when more than 64 KB wait unread: stop reading the socket */
int tls_step(struct tls_conn *t, struct err *e)
	MUST_USE; /* 0 and tls_established() tells; error: handshake or verification failed */
bool tls_established(const struct tls_conn *t);
int tls_read(struct tls_conn *t, uint8_t *p, size_t cap, size_t *ret_n, bool *ret_eof,
	struct err *e) MUST_USE; /* *ret_n = 0: needs more input */
int tls_write(struct tls_conn *t, struct bytes plain,
	struct err *e) MUST_USE; /* takes all of it; output grows: see tls_output */
void tls_close_notify(struct tls_conn *t);
struct buf *tls_output(
	struct tls_conn *t); /* pending bytes for the network; consume what was sent */
const struct x509_chain *tls_peer_chain(const struct tls_conn *t); /* n = 0: the peer sent none */

/* Verifies an X509-SVID chain against the roots and gives its id; the building block of the
 * callbacks. */
int tls_verify_svid(const struct x509_chain *peer, const struct x509_chain *roots, struct wall now,
	struct spiffeid *ret, struct err *e) MUST_USE;
/* A server of that name (DNS or IP in the SAN) whose chain ends in one of the roots: for those with
 * a CA of their own, as Kubernetes has. host NULL: any name. */
int tls_verify_host(const struct x509_chain *peer, const struct x509_chain *roots, const char *host,
	struct wall now, struct err *e) MUST_USE;
/* Ordinary WebPKI verification for https_web: roots from the system's bundle (SSL_CERT_FILE
 * honoured), DNS name or IP in the SAN. */
int tls_verify_web(
	const struct x509_chain *peer, const char *host, struct wall now, struct err *e) MUST_USE;

#endif

#include <wolfssl/options.h>

#include <wolfssl/ssl.h>

#include <wolfssl/error-ssl.h>

#include <arpa/inet.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "lib/tls.h"

enum {
	INPUT_PAUSE = 64 << 10, /* unread: tls_feed() asks to stop */
	INPUT_MAX = 1 << 20,    /* a caller that does not stop loses the connection */
	BUFFER_KEEP = 512,      /* an idle connection holds no larger buffers */
	WRITE_CHUNK = 1 << 20,
};

struct tls_ctx {
	atomic_int refs;
	WOLFSSL_CTX *wolf;
	bool server;
	enum tls_client_cert client_cert;
	char *alpn; /* NULL: none */
};

struct tls_conn {
	struct tls_ctx *ctx;
	WOLFSSL *ssl;
	struct buf in, out;
	size_t in_at; /* of in, this much was read */
	tls_verify_fn *verify;
	void *verify_arg;
	bool verified; /* verify was asked */
	struct x509_chain peer;
	struct err error; /* code != 0: failed for good */
	bool established, closed;
};

/* ---- contexts ---- */

static int wolf_failed(struct err *e, const char *what, int r)
{
	const char *why = wolfSSL_ERR_reason_error_string((unsigned long)r);

	return err_set(e, ERR_INVALID, "tls: %s: %s (%d)", what, why ? why : "failed", r);
}

static int set_chain(WOLFSSL_CTX *c, const struct tls_options *o, struct err *e)
{
	AUTO_BUF struct buf chain = BUF_INIT, key = BUF_INIT_SECRET;
	int r;

	if (!o->chain || o->chain->n == 0) {
		if (o->server)
			return err_set(e, ERR_INVALID, "tls: a server needs a certificate");
		return 0;
	}
	if (!o->key)
		return err_set(e, ERR_INVALID, "tls: the certificate has no key");
	x509_chain_der(o->chain, &chain);
	key_to_pkcs8(o->key, &key);
	r = wolfSSL_CTX_use_certificate_chain_buffer_format(
		c, chain.p, (long)chain.len, WOLFSSL_FILETYPE_ASN1);
	if (r != WOLFSSL_SUCCESS)
		return wolf_failed(e, "cannot use the certificate chain", r);
	r = wolfSSL_CTX_use_PrivateKey_buffer(c, key.p, (long)key.len, WOLFSSL_FILETYPE_ASN1);
	if (r != WOLFSSL_SUCCESS)
		return wolf_failed(e, "cannot use the private key", r);
	/* A wrong key loads without an error. */
	if (wolfSSL_CTX_check_private_key(c) != WOLFSSL_SUCCESS)
		return err_set(
			e, ERR_INVALID, "tls: the private key does not belong to the certificate");
	return 0;
}

/*
 * wolfSSL's own verification is only the door to ours. Roots are never loaded, so with
 * WOLFSSL_ALT_CERT_CHAINS only the leaf is reported, and nothing that a peer sends can get into the
 * context's trust store.
 */
static int on_certificate(int ok, WOLFSSL_X509_STORE_CTX *store)
{
	struct tls_conn *t = store->userCtx;
	struct x509_cert *c;

	if (!t)
		return 0;
	if (store->totalCerts == 0)
		return ok && t->ctx->server && t->ctx->client_cert == TLS_CLIENT_CERT_OPTIONAL;
	if (store->error_depth != 0)
		return 0;
	if (t->verified) /* called twice for the leaf */
		return t->error.code == 0;
	t->verified = true;
	if (store->totalCerts > X509_MAX_CHAIN)
		err_set(&t->error, ERR_INVALID, "tls: the peer's chain is too long");
	for (int i = 0; !t->error.code && i < store->totalCerts; i++) {
		struct bytes der = bytes_of(store->certs[i].buffer, store->certs[i].length);

		if (x509_parse(der, &c, &t->error) == 0) {
			x509_chain_add(&t->peer, c);
			x509_unref(c);
		}
	}
	if (!t->error.code && t->verify(t->verify_arg, &t->peer, &t->error) && !t->error.code)
		err_set(&t->error, ERR_INTERNAL, "tls: the peer was refused");
	if (t->error.code)
		x509_chain_deinit(&t->peer);
	return t->error.code == 0;
}

static void set_verify(WOLFSSL_CTX *c, const struct tls_options *o)
{
	int mode = WOLFSSL_VERIFY_PEER | WOLFSSL_VERIFY_FAIL_IF_NO_PEER_CERT;

	if (o->server && o->client_cert == TLS_CLIENT_CERT_OPTIONAL)
		mode = WOLFSSL_VERIFY_PEER;
	if (o->server && o->client_cert == TLS_CLIENT_CERT_NONE)
		mode = WOLFSSL_VERIFY_NONE;
	wolfSSL_CTX_set_verify(c, mode, mode == WOLFSSL_VERIFY_NONE ? NULL : on_certificate);
}

static int recv_from_buffer(WOLFSSL *ssl, char *p, int n, void *arg)
{
	struct tls_conn *t = arg;
	size_t have = t->in.len - t->in_at;
	size_t take = have < (size_t)n ? have : (size_t)n;

	(void)ssl;
	if (take == 0)
		return WOLFSSL_CBIO_ERR_WANT_READ;
	memcpy(p, t->in.p + t->in_at, take);
	t->in_at += take;
	return (int)take;
}

static int send_to_buffer(WOLFSSL *ssl, char *p, int n, void *arg)
{
	struct tls_conn *t = arg;

	(void)ssl;
	return buf_append(&t->out, p, (size_t)n) ? n : WOLFSSL_CBIO_ERR_GENERAL;
}

/* TLS 1.2 has no such key exchange. */
static bool tls12(const struct tls_options *o)
{
	return o->allow_tls12 && !o->require_pq;
}

static int configure(WOLFSSL_CTX *c, const struct tls_options *o, struct err *e)
{
	int groups[] = { WOLFSSL_X25519MLKEM768, WOLFSSL_ECC_X25519, WOLFSSL_ECC_SECP256R1,
		WOLFSSL_ECC_SECP384R1 };
	int r = wolfSSL_CTX_set_groups(c, groups, o->require_pq ? 1 : ARRAY_LEN(groups));

	if (r != WOLFSSL_SUCCESS)
		return wolf_failed(e, "cannot set the key exchange groups", r);
	/* A resumed session has no certificate, and nothing would be verified. */
	wolfSSL_CTX_set_session_cache_mode(c, WOLFSSL_SESS_CACHE_OFF);
	if (o->server) {
		wolfSSL_CTX_no_ticket_TLSv13(c);
		wolfSSL_CTX_NoTicketTLSv12(c);
	}
	if (tls12(o) && wolfSSL_CTX_SetMinVersion(c, WOLFSSL_TLSV1_2) != WOLFSSL_SUCCESS)
		return err_set(e, ERR_INTERNAL, "tls: cannot allow TLS 1.2");
	set_verify(c, o);
	wolfSSL_CTX_SetIORecv(c, recv_from_buffer);
	wolfSSL_CTX_SetIOSend(c, send_to_buffer);
	return set_chain(c, o, e);
}

static WOLFSSL_METHOD *method(const struct tls_options *o)
{
	if (o->server)
		return tls12(o) ? wolfSSLv23_server_method() : wolfTLSv1_3_server_method();
	return tls12(o) ? wolfSSLv23_client_method() : wolfTLSv1_3_client_method();
}

int tls_ctx_new(const struct tls_options *o, struct tls_ctx **ret, struct err *e)
{
	WOLFSSL_CTX *wolf;
	struct tls_ctx *c;
	int r;

	crypto_init();
	wolf = wolfSSL_CTX_new(method(o));
	INVARIANT(wolf);
	r = configure(wolf, o, e);
	if (r) {
		wolfSSL_CTX_free(wolf);
		return r;
	}
	c = xcalloc(1, sizeof(*c));
	atomic_init(&c->refs, 1);
	c->wolf = wolf;
	c->server = o->server;
	c->client_cert = o->client_cert;
	c->alpn = o->alpn ? xstrdup(o->alpn) : NULL;
	*ret = c;
	return 0;
}

struct tls_ctx *tls_ctx_ref(struct tls_ctx *c)
{
	atomic_fetch_add_explicit(&c->refs, 1, memory_order_relaxed);
	return c;
}

void tls_ctx_unref(struct tls_ctx *c)
{
	if (!c || atomic_fetch_sub_explicit(&c->refs, 1, memory_order_acq_rel) != 1)
		return;
	wolfSSL_CTX_free(c->wolf);
	free(c->alpn);
	free(c);
}

/* ---- connections ---- */

/* RFC 6066 3: literal addresses are not permitted in "HostName". */
static bool is_address(const char *host)
{
	uint8_t a[16];

	return inet_pton(AF_INET, host, a) == 1 || inet_pton(AF_INET6, host, a) == 1;
}

struct tls_conn *tls_conn_new(struct tls_ctx *c, const char *sni, tls_verify_fn *verify, void *arg)
{
	struct tls_conn *t = xcalloc(1, sizeof(*t));

	INVARIANT(verify || (c->server && c->client_cert == TLS_CLIENT_CERT_NONE));
	t->ctx = tls_ctx_ref(c);
	t->in = BUF_INIT_MAX(INPUT_MAX);
	t->out = BUF_INIT;
	t->verify = verify;
	t->verify_arg = arg;
	t->error = ERR_INIT;
	t->ssl = wolfSSL_new(c->wolf);
	INVARIANT(t->ssl);
	wolfSSL_SetIOReadCtx(t->ssl, t);
	wolfSSL_SetIOWriteCtx(t->ssl, t);
	wolfSSL_SetCertCbCtx(t->ssl, t);
	if (c->alpn)
		INVARIANT(wolfSSL_UseALPN(t->ssl, c->alpn, (unsigned)strlen(c->alpn),
				  WOLFSSL_ALPN_FAILED_ON_MISMATCH) == WOLFSSL_SUCCESS);
	if (!c->server && sni && *sni && !is_address(sni))
		INVARIANT(wolfSSL_UseSNI(t->ssl, WOLFSSL_SNI_HOST_NAME, sni,
				  (unsigned short)strlen(sni)) == WOLFSSL_SUCCESS);
	return t;
}

void tls_conn_free(struct tls_conn *t)
{
	if (!t)
		return;
	wolfSSL_free(t->ssl);
	tls_ctx_unref(t->ctx);
	buf_deinit(&t->in);
	buf_deinit(&t->out);
	x509_chain_deinit(&t->peer);
	free(t);
}

bool tls_feed(struct tls_conn *t, struct bytes from_net)
{
	if (!buf_bytes(&t->in, from_net) && !t->error.code)
		err_set(&t->error, ERR_EXHAUSTED, "tls: more input than is read");
	return t->in.len - t->in_at <= INPUT_PAUSE;
}

/* Forgets what was read; gives the memory back when the connection falls idle. */
static void trim(struct buf *b, size_t *at)
{
	if (*at == 0)
		return;
	if (*at < b->len && *at < INPUT_PAUSE)
		return;
	buf_consume(b, *at);
	*at = 0;
	if (b->len == 0 && b->cap > BUFFER_KEEP)
		buf_deinit(b);
}

/* Names of the alerts that tell something, RFC 8446 6. */
static const char *alert_name(int code)
{
	static const struct {
		int code;
		const char *name;
	} names[] = {
		{ 40, "handshake failure" },
		{ 42, "bad certificate" },
		{ 43, "unsupported certificate" },
		{ 44, "certificate revoked" },
		{ 45, "expired certificate" },
		{ 46, "unknown certificate" },
		{ 48, "unknown certificate authority" },
		{ 49, "access denied" },
		{ 51, "error decrypting message" },
		{ 70, "protocol version not supported" },
		{ 80, "internal error" },
		{ 112, "unrecognized name" },
		{ 116, "certificate required" },
		{ 120, "no application protocol" },
	};

	for (size_t i = 0; i < ARRAY_LEN(names); i++)
		if (names[i].code == code)
			return names[i].name;
	return "alert";
}

/* Fills t->error from wolfSSL's last result unless something better is in it, and hands it out. */
static int fail(struct tls_conn *t, int wolf, struct err *e)
{
	WOLFSSL_ALERT_HISTORY h = { .last_rx = { -1, -1 } };
	const char *why = wolfSSL_ERR_reason_error_string((unsigned long)wolf);

	if (!t->error.code) {
		if (wolf == FATAL_ERROR &&
			wolfSSL_get_alert_history(t->ssl, &h) == WOLFSSL_SUCCESS &&
			h.last_rx.code > 0)
			err_set(&t->error, ERR_UNAVAILABLE, "remote error: tls: %s (%d)",
				alert_name(h.last_rx.code), h.last_rx.code);
		else
			err_set(&t->error, ERR_UNAVAILABLE, "tls: %s (%d)",
				why ? why : "connection failed", wolf);
	}
	if (e)
		*e = t->error;
	return t->error.code;
}

static int check_alpn(struct tls_conn *t, struct err *e)
{
	const char *want = t->ctx->alpn;
	unsigned short n = 0;
	char *got = NULL;

	if (!want || wolfSSL_ALPN_GetProtocol(t->ssl, &got, &n) == WOLFSSL_SUCCESS)
		return 0;
	/* RFC 9113 3.2: "h2" is agreed on by ALPN, always. */
	if (strcmp(want, "h2") != 0)
		return 0;
	err_set(&t->error, ERR_UNAVAILABLE, "tls: the peer does not speak ALPN \"%s\"", want);
	wolfSSL_shutdown(t->ssl);
	return fail(t, 0, e);
}

int tls_step(struct tls_conn *t, struct err *e)
{
	int r;

	if (t->error.code)
		return fail(t, 0, e);
	if (t->established)
		return 0;
	r = t->ctx->server ? wolfSSL_accept(t->ssl) : wolfSSL_connect(t->ssl);
	trim(&t->in, &t->in_at);
	if (r != WOLFSSL_SUCCESS) {
		r = wolfSSL_get_error(t->ssl, r);
		if ((r == WOLFSSL_ERROR_WANT_READ || r == WOLFSSL_ERROR_WANT_WRITE) &&
			!t->error.code)
			return 0;
		return fail(t, r, e);
	}
	r = check_alpn(t, e);
	t->established = r == 0;
	return r;
}

bool tls_established(const struct tls_conn *t)
{
	return t->established;
}

int tls_read(
	struct tls_conn *t, uint8_t *p, size_t cap, size_t *ret_n, bool *ret_eof, struct err *e)
{
	int r;

	*ret_n = 0;
	*ret_eof = false;
	if (t->error.code)
		return fail(t, 0, e);
	if (!t->established)
		return err_set(e, ERR_PRECONDITION, "tls: the handshake is not done");
	r = wolfSSL_read(t->ssl, p, (int)(cap < WRITE_CHUNK ? cap : WRITE_CHUNK));
	trim(&t->in, &t->in_at);
	if (r > 0) {
		*ret_n = (size_t)r;
		return 0;
	}
	r = wolfSSL_get_error(t->ssl, r);
	if (r == WOLFSSL_ERROR_WANT_READ || r == WOLFSSL_ERROR_WANT_WRITE)
		return 0;
	if (r == WOLFSSL_ERROR_ZERO_RETURN) {
		*ret_eof = true;
		return 0;
	}
	return fail(t, r, e);
}

int tls_write(struct tls_conn *t, struct bytes plain, struct err *e)
{
	if (t->error.code)
		return fail(t, 0, e);
	if (!t->established || t->closed)
		return err_set(e, ERR_PRECONDITION, "tls: the connection is not open");
	while (plain.n) {
		size_t part = plain.n < WRITE_CHUNK ? plain.n : WRITE_CHUNK;
		int r = wolfSSL_write(t->ssl, plain.p, (int)part);

		if (r <= 0)
			return fail(t, wolfSSL_get_error(t->ssl, r), e);
		plain = bytes_of(plain.p + r, plain.n - (size_t)r);
	}
	return 0;
}

void tls_close_notify(struct tls_conn *t)
{
	if (!t->established || t->closed || t->error.code)
		return;
	t->closed = true;
	wolfSSL_shutdown(t->ssl);
}

struct buf *tls_output(struct tls_conn *t)
{
	if (t->out.len == 0 && t->out.cap > BUFFER_KEEP)
		buf_deinit(&t->out);
	return &t->out;
}

const struct x509_chain *tls_peer_chain(const struct tls_conn *t)
{
	return &t->peer;
}

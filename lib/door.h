/*
 * The front door: accepts, learns who the peer is, guards, and hands a clean plaintext HTTP/2 byte
 * stream to whoever serves it.
 *
 *   client ──► accept ──► identity (SO_PEERCRED + SO_PEERPIDFD | TLS 1.3 + SVID) ──► frame guard
 * ──► socketpair fd ──► on_conn
 *
 * Descriptors are shared out, and whoever holds most pays when they run out: connections are
 * counted for a process (Unix), an address (TCP; an IPv6 one by its /64) or, once verified, a
 * SPIFFE ID. None holds more than half of what there is; a full house takes from the one that holds
 * most, idle connections without a call first. New connections are served in turns, one of each
 * holder. Resets, control frames and open calls are limited over all connections of a holder too,
 * and after a fault it stays outside for some seconds. door_share.c has the rules.
 *
 * All on the loop thread.
 */
#ifndef ASSAY_LIB_DOOR_H
#define ASSAY_LIB_DOOR_H

#include <sys/types.h>

#include "lib/loop.h"
#include "lib/proxy.h"
#include "lib/tls.h"

/* Limits, each met by a test with a hostile client. */
enum {
	DOOR_HANDSHAKE_MS = 5000, /* TLS handshake and HTTP/2 preface must be there by then */
	DOOR_HEADER_BLOCK_MAX = 16 << 10, /* HEADERS + CONTINUATION bytes of one block */
	DOOR_STREAMS_MAX = 100,           /* open streams of one connection */
	DOOR_RESETS_PER_SECOND = 200,
	DOOR_FRAME_MAX = 16384,          /* SETTINGS_MAX_FRAME_SIZE we ask for */
	DOOR_CONTROL_PER_SECOND = 1000,  /* PING, SETTINGS, PRIORITY, empty DATA */
	DOOR_IDLE_MS = 5 * 60 * 1000,    /* a connection that never had, or no longer has, a call */
	DOOR_WRITE_STALL_MS = 30 * 1000, /* a peer that reads nothing while output waits */
	DOOR_MESSAGE_MAX = 8 << 20,      /* see door_options.message_max */
	DOOR_PUMP_BUFFER = 64 << 10,     /* bytes held per direction before reading stops */
};

/* Who is on the other side. Immutable after the handshake, counted; belongs to the connection, read
 * by each of its calls. Loop thread. */
struct peer {
	int refs;
	bool is_unix;
	bool privileged; /* came through an admin door */
	/* unix */
	pid_t pid; /* as seen at connect */
	int pidfd; /* owned; -1 when the kernel has none */
	uid_t uid;
	gid_t gid;
	/* tcp */
	char address[64];   /* "198.51.100.7", without the port */
	struct spiffeid id; /* text NULL: no client certificate */
	struct x509_chain chain;
	/* Set by whoever serves the connection (lib/rpc); called once by the door when it has
	 * ended, before the door gives up its reference. */
	void (*on_end)(void *arg, struct peer *p);
	void *on_end_arg;
};
struct peer *peer_ref(struct peer *p);
void peer_unref(struct peer *p);
/* The process still is the one that connected: pidfd not readable (has not exited). */
bool peer_alive(const struct peer *p);

struct door;

struct door_options {
	/* one of the two */
	const char *unix_path; /* folder is made (0755) when missing; a stale socket is replaced, a
				  live one is ERR_EXISTS */
	unsigned unix_mode;
	const char *tcp_host;
	int tcp_port; /* 0: any free port, see door_port() */
	/* TLS: gives the context for a new connection (a new reference; NULL: none yet, and the
	 * connection ends), and judges the client's chain. */
	struct tls_ctx *(*tls)(void *arg);
	tls_verify_fn
		*verify; /* as tls_conn_new; on success the door reads the id by x509_svid_id() */
	/* Networks whose load balancers may say who the client is, by the PROXY protocol before the
	 * TLS handshake; copied. From anywhere else such a header ends the connection. */
	const struct network *proxies;
	size_t n_proxies;
	bool privileged; /* may use the reserve of descriptors */
	bool raw;        /* no HTTP/2 guard (lib/http's own parser is bounded) */
	/* Bytes of one gRPC message that the guard lets through, 0: DOOR_MESSAGE_MAX; C-core, which
	 * holds a message whole before it looks at its own limit, should refuse smaller ones. */
	uint32_t message_max;
	uint32_t pending_max; /* of all messages under way on a connection; 0: twice message_max */
	/* The plaintext side: fd is O_NONBLOCK, now the callee's. peer is borrowed: take a
	 * reference to keep it. */
	void (*on_conn)(void *arg, int fd, struct peer *peer);
	void *arg;
};
int door_open(
	struct loop *l, const struct door_options *o, struct door **ret, struct err *e) MUST_USE;
int door_port(const struct door *d);
/* Stops accepting and closes what is open, after grace_ms for running calls; unlinks a Unix socket.
 * done(arg) when all is closed. */
void door_close(struct door *d, int grace_ms, void (*done)(void *arg), void *arg);

struct door_stats {
	uint64_t accepted, refused_full, evicted_idle, handshake_failed, guard_killed, open;
};
void door_stats(const struct door *d, struct door_stats *ret);
/* Metrics over all doors of the process: assay_connections_*. Read on the loop thread. */
void door_add_metrics(void);

/* The mirror image: connects and gives the plaintext fd of a socketpair (or, for a Unix socket, the
 * connected socket itself). */
struct dial_options {
	const char *unix_path;
	const char *tcp_host; /* name or address, resolved on each dial */
	int tcp_port;
	struct tls_ctx *tls; /* NULL: plaintext */
	const char *sni;
	tls_verify_fn *verify;
	void *verify_arg;
	int timeout_ms; /* for connect and handshake together */
	/* Passes over addresses that mean this host or this link, and multicast: for when a
	 * stranger names the host. */
	bool not_local;
};
/* done(arg, fd, e): fd ≥ 0 is the callee's; or fd = -1 with the reason. The dial may be cancelled
 * until then. */
struct dial;
struct dial *door_dial(struct loop *l, const struct dial_options *o,
	void (*done)(void *arg, int fd, const struct err *e), void *arg);
void dial_cancel(struct dial *d);

#endif

/*
 * Outgoing connections. Names are resolved on each dial; addresses of both families are tried in
 * turn, each 250 ms after the one before or as soon as that has failed (RFC 8305), and the first
 * that answers is taken.
 */
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/un.h>
#include <unistd.h>

#include "lib/door_internal.h"
#include "lib/loop_internal.h"

enum { ATTEMPTS_MAX = 8, NEXT_ATTEMPT_MS = 250, BUSY_RETRY_MS = 10 };

struct attempt {
	struct source source; /* fd -1: over, or not begun */
	struct dial *dial;
	union {
		struct sockaddr sa;
		struct sockaddr_in four;
		struct sockaddr_in6 six;
		struct sockaddr_un un;
	} addr;
	socklen_t len;
};

struct dial {
	struct loop *loop;
	struct hub *hub;
	unsigned refs; /* the caller's, until told or cancelled; a posted function's; the resolver's
			*/
	bool over;
	char *target; /* for messages: "tcp host:port", "unix /path" */
	char *host;
	char *unix_path;
	int port;
	bool not_local;
	struct tls_ctx *tls;
	char *sni;
	tls_verify_fn *verify;
	void *verify_arg;
	void (*done)(void *arg, int fd, const struct err *e);
	void *arg;
	struct loop_timer *timeout;
	struct loop_timer *next;
	uv_getaddrinfo_t resolver;
	struct attempt attempts[ATTEMPTS_MAX];
	int n_attempts;
	int n_begun;
	int n_failed;
	struct err last;
	struct conn *conn; /* in its TLS handshake */
};

/* ---- the end ---- */

static void dial_unref(void *arg)
{
	struct dial *d = arg;

	if (--d->refs > 0)
		return;
	free(d->target);
	free(d->host);
	free(d->unix_path);
	free(d->sni);
	tls_ctx_unref(d->tls);
	free(d);
}

/* A resolver that cannot be stopped keeps the memory, but not the hub. */
static void dial_settled(void *arg)
{
	struct dial *d = arg;

	hub_unref(d->hub);
	d->hub = NULL;
	dial_unref(d);
}

static void attempts_end(struct dial *d)
{
	for (int i = 0; i < d->n_attempts; i++)
		hub_remove(d->hub, &d->attempts[i].source);
}

/* Nothing more happens to it. Its memory stays until events that were taken already are through. */
static void dial_over(struct dial *d)
{
	d->over = true;
	attempts_end(d);
	loop_timer_free(d->timeout);
	loop_timer_free(d->next);
	d->timeout = d->next = NULL;
	if (d->conn) {
		struct conn *c = d->conn;

		d->conn = NULL;
		c->dial = NULL;
		conn_end(c);
	}
	loop_post(d->loop, dial_settled, d);
}

static void tell(struct dial *d, int fd, const struct err *e)
{
	void (*done)(void *arg, int fd, const struct err *e) = d->done;
	void *arg = d->arg;

	dial_over(d);
	done(arg, fd, e);
}

static void fail(struct dial *d, const struct err *e)
{
	struct err copy = *e;

	tell(d, -1, &copy);
}

void dial_cancel(struct dial *d)
{
	if (!d)
		return;
	if (d->resolver.data)
		uv_cancel((uv_req_t *)&d->resolver);
	dial_over(d);
}

static void on_timeout(void *arg)
{
	struct dial *d = arg;

	if (d->n_failed == 0 || d->conn)
		err_set(&d->last, ERR_UNAVAILABLE, "dial %s: %s", d->target,
			d->conn ? "TLS handshake timed out" : "i/o timeout");
	fail(d, &d->last);
}

/* ---- connected ---- */

void dial_conn_failed(struct dial *d, const struct err *e)
{
	d->conn = NULL;
	if (e && e->code)
		err_set(&d->last, e->code, "dial %s: %s", d->target, e->msg);
	else
		err_set(&d->last, ERR_UNAVAILABLE,
			"dial %s: connection closed during the TLS handshake", d->target);
	fail(d, &d->last);
}

void dial_established(struct dial *d, struct conn *c)
{
	int fd = conn_open_local(c);
	int errno_value = errno;

	d->conn = NULL;
	if (fd >= 0) {
		tell(d, fd, NULL);
		return;
	}
	conn_end(c);
	err_errno(&d->last, errno_value, "dial %s: socketpair", d->target);
	fail(d, &d->last);
}

static void connected(struct dial *d, struct attempt *a)
{
	int fd = hub_release(d->hub, &a->source);
	struct conn *c;

	if (d->host)
		door_tcp_options(fd);
	if (!d->tls) {
		tell(d, fd, NULL);
		return;
	}
	attempts_end(d);
	loop_timer_stop(d->next);
	c = conn_new(d->hub, fd);
	c->tls = tls_conn_new(d->tls, d->sni, d->verify, d->verify_arg);
	c->handshaking = true;
	c->dial = d;
	d->conn = c;
	hub_begin(d->hub, c);
}

/* ---- connecting ---- */

static void begin_next(void *arg);

static const char *lower_first(char *text, size_t cap, const char *s)
{
	snprintf(text, cap, "%s", s);
	text[0] = (char)tolower((unsigned char)text[0]);
	return text;
}

static void attempt_name(const struct dial *d, const struct attempt *a, char *ret, size_t cap)
{
	char ip[INET6_ADDRSTRLEN] = "";

	if (a->addr.sa.sa_family == AF_INET) {
		inet_ntop(AF_INET, &a->addr.four.sin_addr, ip, sizeof(ip));
		snprintf(ret, cap, "tcp %s:%d", ip, d->port);
	} else if (a->addr.sa.sa_family == AF_INET6) {
		inet_ntop(AF_INET6, &a->addr.six.sin6_addr, ip, sizeof(ip));
		snprintf(ret, cap, "tcp [%s]:%d", ip, d->port);
	} else {
		snprintf(ret, cap, "%s", d->target);
	}
}

static void attempt_failed(struct dial *d, struct attempt *a, int errno_value)
{
	char name[160], text[128];

	attempt_name(d, a, name, sizeof(name));
	err_set(&d->last, ERR_UNAVAILABLE, "dial %s: connect: %s", name,
		lower_first(text, sizeof(text), strerror(errno_value)));
	if (++d->n_failed == d->n_attempts) {
		fail(d, &d->last);
		return;
	}
	if (d->n_begun < d->n_attempts)
		loop_timer_set(d->next, 0);
}

static void on_attempt(struct source *s, uint32_t events)
{
	struct attempt *a = container_of(s, struct attempt, source);
	struct dial *d = a->dial;
	int error = 0;
	socklen_t len = sizeof(error);

	(void)events;
	if (getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &len) != 0)
		error = errno;
	if (error) {
		hub_remove(d->hub, s);
		attempt_failed(d, a, error);
		return;
	}
	connected(d, a);
}

static void begin(struct dial *d, struct attempt *a)
{
	int fd = socket(a->addr.sa.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int r;

	if (fd < 0) {
		attempt_failed(d, a, errno);
		return;
	}
	a->source = (struct source){ .fd = fd, .ready = on_attempt };
	r = connect(fd, &a->addr.sa, a->len);
	if (r != 0 && errno == EAGAIN && d->unix_path) {
		/* The listener's queue is full, and nothing tells when it no longer is. */
		close(fd);
		a->source.fd = -1;
		d->n_begun--;
		loop_timer_set(d->next, BUSY_RETRY_MS * NS_PER_MS);
		return;
	}
	if (r != 0 && errno != EINPROGRESS) {
		int error = errno;

		close(fd);
		a->source.fd = -1;
		attempt_failed(d, a, error);
		return;
	}
	hub_add(d->hub, &a->source, EPOLLOUT);
	if (d->n_begun < d->n_attempts)
		loop_timer_set(d->next, NEXT_ATTEMPT_MS * NS_PER_MS);
}

static void begin_next(void *arg)
{
	struct dial *d = arg;

	if (d->n_begun < d->n_attempts)
		begin(d, &d->attempts[d->n_begun++]);
}

/* ---- addresses ---- */

static struct attempt *attempt_add(struct dial *d)
{
	struct attempt *a = &d->attempts[d->n_attempts++];

	a->source.fd = -1;
	a->dial = d;
	return a;
}

/* IPv4's "this network", loopback, link-local, multicast and reserved blocks (RFC 6890). */
static bool is_local4(const uint8_t a[static 4])
{
	return a[0] == 0 || a[0] == 127 || (a[0] == 169 && a[1] == 254) || a[0] >= 224;
}

static bool is_local(const struct sockaddr *sa)
{
	struct sockaddr_in four;
	struct sockaddr_in6 six;
	const uint8_t *a = six.sin6_addr.s6_addr;

	if (sa->sa_family == AF_INET) {
		memcpy(&four, sa, sizeof(four));
		return is_local4((const uint8_t *)&four.sin_addr);
	}
	if (sa->sa_family != AF_INET6)
		return false;
	memcpy(&six, sa, sizeof(six));
	if (IN6_IS_ADDR_V4MAPPED(&six.sin6_addr) || IN6_IS_ADDR_V4COMPAT(&six.sin6_addr))
		return is_local4(a + 12);
	return IN6_IS_ADDR_UNSPECIFIED(&six.sin6_addr) || IN6_IS_ADDR_LOOPBACK(&six.sin6_addr) ||
	       IN6_IS_ADDR_LINKLOCAL(&six.sin6_addr) || IN6_IS_ADDR_MULTICAST(&six.sin6_addr);
}

static void attempt_of(struct dial *d, const struct sockaddr *sa, socklen_t len)
{
	struct attempt *a;

	if (d->n_attempts == ATTEMPTS_MAX || len > sizeof(a->addr) ||
		(d->not_local && is_local(sa)))
		return;
	a = attempt_add(d);
	memcpy(&a->addr, sa, len);
	a->len = len;
}

/* Families in turn, beginning with the one that the resolver prefers. */
static void attempts_of(struct dial *d, const struct addrinfo *all)
{
	int family = all ? all->ai_family : AF_INET6;
	const struct addrinfo *a = all, *b = all;

	while (a || b) {
		while (a && a->ai_family != family)
			a = a->ai_next;
		while (b && b->ai_family == family)
			b = b->ai_next;
		if (a) {
			attempt_of(d, a->ai_addr, a->ai_addrlen);
			a = a->ai_next;
		}
		if (b) {
			attempt_of(d, b->ai_addr, b->ai_addrlen);
			b = b->ai_next;
		}
	}
}

static void not_found(struct dial *d, const char *why)
{
	err_set(&d->last, ERR_UNAVAILABLE, "dial %s: lookup %s: %s", d->target, d->host, why);
	fail(d, &d->last);
}

static void on_resolved(uv_getaddrinfo_t *r, int status, struct addrinfo *all)
{
	struct dial *d = container_of(r, struct dial, resolver);

	r->data = NULL;
	if (!d->over) {
		attempts_of(d, status == 0 ? all : NULL);
		if (d->n_attempts > 0)
			begin_next(d);
		else
			not_found(d, status         ? uv_strerror(status)
				     : d->not_local ? "no address that may be dialled"
						    : "no such host");
	}
	uv_freeaddrinfo(all);
	dial_unref(d);
}

static void resolve(struct dial *d)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG };
	char port[16];
	int r;

	snprintf(port, sizeof(port), "%d", d->port);
	r = uv_getaddrinfo(&d->loop->uv, &d->resolver, on_resolved, d->host, port, &hints);
	if (r != 0) {
		not_found(d, uv_strerror(r));
		return;
	}
	d->resolver.data = d;
	d->refs++;
}

/* An address needs no resolver. */
static bool parse_address(struct dial *d)
{
	struct sockaddr_in four = { .sin_family = AF_INET, .sin_port = htons((uint16_t)d->port) };
	struct sockaddr_in6 six = { .sin6_family = AF_INET6,
		.sin6_port = htons((uint16_t)d->port) };

	if (inet_pton(AF_INET, d->host, &four.sin_addr) == 1)
		attempt_of(d, (struct sockaddr *)&four, sizeof(four));
	else if (inet_pton(AF_INET6, d->host, &six.sin6_addr) == 1)
		attempt_of(d, (struct sockaddr *)&six, sizeof(six));
	return d->n_attempts > 0;
}

static void start(void *arg)
{
	struct dial *d = arg;

	if (d->over) {
		;
	} else if (d->unix_path) {
		struct sockaddr_un un = { .sun_family = AF_UNIX };

		if (strlen(d->unix_path) >= sizeof(un.sun_path)) {
			err_set(&d->last, ERR_INVALID, "dial %s: path too long", d->target);
			fail(d, &d->last);
		} else {
			memcpy(un.sun_path, d->unix_path, strlen(d->unix_path));
			attempt_of(d, (struct sockaddr *)&un, sizeof(un));
			begin_next(d);
		}
	} else if (parse_address(d)) {
		begin_next(d);
	} else {
		resolve(d);
	}
	dial_unref(d);
}

struct dial *door_dial(struct loop *l, const struct dial_options *o,
	void (*done)(void *arg, int fd, const struct err *e), void *arg)
{
	struct dial *d = xcalloc(1, sizeof(*d));

	d->loop = l;
	d->hub = hub_get(l);
	d->refs = 2; /* the caller's, start()'s */
	d->port = o->tcp_port;
	d->not_local = o->not_local;
	d->verify = o->verify;
	d->verify_arg = o->verify_arg;
	d->done = done;
	d->arg = arg;
	d->tls = o->tls ? tls_ctx_ref(o->tls) : NULL;
	d->sni = o->sni ? xstrdup(o->sni) : NULL;
	if (o->unix_path) {
		d->unix_path = xstrdup(o->unix_path);
		d->target = xasprintf("unix %s", o->unix_path);
	} else {
		d->host = xstrdup(o->tcp_host);
		d->target = xasprintf(strchr(o->tcp_host, ':') ? "tcp [%s]:%d" : "tcp %s:%d",
			o->tcp_host, o->tcp_port);
	}
	d->timeout = loop_timer_new(l, on_timeout, d);
	d->next = loop_timer_new(l, begin_next, d);
	if (o->timeout_ms > 0)
		loop_timer_set(d->timeout, o->timeout_ms * NS_PER_MS);
	loop_post(l, start, d);
	return d;
}

/*
 * The pump: net socket ↔ [TLS] ↔ [guard] ↔ our end of a socketpair.
 *
 * Each direction reads only when what it read last has been written, so that a slow side stops the
 * other. Nothing is allocated while nothing is in the way: bytes go through the hub's buffers.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "lib/door_internal.h"

enum io { IO_BLOCKED, IO_MOVED, IO_ENDED };

static void net_ready(struct source *s, uint32_t events);
static void local_ready(struct source *s, uint32_t events);

struct conn *conn_new(struct hub *h, int fd)
{
	struct conn *c = xcalloc(1, sizeof(*c));

	c->hub = h;
	h->refs++;
	c->net = (struct source){ .fd = fd, .ready = net_ready };
	c->local = (struct source){ .fd = -1, .ready = local_ready };
	list_init(&c->in_door);
	list_init(&c->turn);
	list_init(&c->opening);
	list_init(&c->holder_link);
	list_init(&c->group_link);
	list_init(&c->life.link);
	list_init(&c->stall.link);
	list_append(&h->conns, &c->in_hub);
	hub_add(h, &c->net, EPOLLIN | EPOLLRDHUP | EPOLLET);
	return c;
}

int conn_open_local(struct conn *c)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0)
		return -1;
	c->local.fd = pair[0];
	c->served = true;
	hub_add(c->hub, &c->local, EPOLLIN | EPOLLRDHUP | EPOLLET);
	return pair[1];
}

/* ---- the end ---- */

static void pending_free(struct pending *p)
{
	free(p->p);
	*p = (struct pending){ 0 };
}

void conn_end(struct conn *c)
{
	struct hub *h = c->hub;

	if (c->ended)
		return;
	c->ended = true;
	list_remove(&c->turn);
	hub_opening(h, c, false);
	hub_deadline(h, &c->life, STAGE_NONE, 0);
	hub_deadline(h, &c->stall, STAGE_NONE, 0);
	hub_remove(h, &c->net);
	hub_remove(h, &c->local);
	tls_conn_free(c->tls);
	c->tls = NULL;
	guard_deinit(&c->guard);
	pending_free(&c->to_net);
	pending_free(&c->to_local);
	share_leave(&h->share, c);
	if (c->peer && c->peer->on_end)
		c->peer->on_end(c->peer->on_end_arg, c->peer);
	peer_unref(c->peer);
	c->peer = NULL;
	if (c->dial)
		dial_conn_failed(c->dial, NULL);
	if (c->door)
		door_conn_ended(c->door, c);
	hub_bury(h, c);
}

/* ---- writing ---- */

static void want_out(struct conn *c, struct source *s, bool *out, bool want)
{
	if (*out == want)
		return;
	*out = want;
	hub_change(c->hub, s, EPOLLIN | EPOLLRDHUP | EPOLLET | (want ? EPOLLOUT : 0));
}

/* As much as goes without waiting; -1: the other side is gone. */
static ssize_t send_some(int fd, const uint8_t *p, size_t n)
{
	size_t done = 0;

	while (done < n) {
		ssize_t r = send(fd, p + done, n - done, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (r >= 0)
			done += (size_t)r;
		else if (errno == EAGAIN)
			break;
		else if (errno != EINTR)
			return -1;
	}
	return (ssize_t)done;
}

static void pending_put(struct pending *q, const uint8_t *p, size_t n)
{
	uint8_t *more = xmalloc(q->len - q->off + n);

	if (q->p)
		memcpy(more, q->p + q->off, q->len - q->off);
	memcpy(more + (q->len - q->off), p, n);
	free(q->p);
	*q = (struct pending){ .p = more, .len = (uint32_t)(q->len - q->off + n) };
}

static bool pending_flush(struct pending *q, int fd, bool *moved)
{
	ssize_t r;

	if (!q->p)
		return true;
	r = send_some(fd, q->p + q->off, q->len - q->off);
	if (r < 0)
		return false;
	*moved = r > 0;
	q->off += (uint32_t)r;
	if (q->off == q->len)
		pending_free(q);
	return true;
}

/* Writes, and keeps what does not go. */
static bool write_or_keep(struct pending *q, int fd, const uint8_t *p, size_t n)
{
	ssize_t r = 0;

	if (!q->p) {
		r = send_some(fd, p, n);
		if (r < 0)
			return false;
	}
	if ((size_t)r < n)
		pending_put(q, p + r, n - (size_t)r);
	return true;
}

static bool net_blocked(const struct conn *c)
{
	return c->to_net.p || (c->tls && tls_output(c->tls)->len > 0);
}

/* Output for the net that waits has DOOR_WRITE_STALL_MS to move. */
static void watch_net_output(struct conn *c, bool moved)
{
	bool blocked = net_blocked(c);

	want_out(c, &c->net, &c->net_out, blocked);
	if (!blocked)
		hub_deadline(c->hub, &c->stall, STAGE_NONE, 0);
	else if (moved || list_empty(&c->stall.link))
		hub_deadline(c->hub, &c->stall, STAGE_STALL, door_times.stall_ms);
}

static enum io flush_net(struct conn *c)
{
	bool moved = false;

	if (c->tls) {
		struct buf *out = tls_output(c->tls);

		if (out->len > 0) {
			ssize_t r = send_some(c->net.fd, out->p, out->len);

			if (r < 0)
				return IO_ENDED;
			moved = r > 0;
			buf_consume(out, (size_t)r);
			/* An idle connection keeps no buffer. */
			if (out->len == 0)
				buf_deinit(out);
		}
	} else if (!pending_flush(&c->to_net, c->net.fd, &moved)) {
		return IO_ENDED;
	}
	watch_net_output(c, moved);
	return net_blocked(c) ? IO_BLOCKED : IO_MOVED;
}

static enum io flush_local(struct conn *c)
{
	bool moved;

	if (!pending_flush(&c->to_local, c->local.fd, &moved))
		return IO_ENDED;
	if (c->local.fd >= 0)
		want_out(c, &c->local, &c->local_out, c->to_local.p != NULL);
	return c->to_local.p ? IO_BLOCKED : IO_MOVED;
}

/* ---- net → local ---- */

static void kill_faulty(struct conn *c)
{
	uint8_t frame[GUARD_GOAWAY_LEN];
	struct err e;

	if (c->door)
		door_counts(c->door)->guard_killed++;
	share_fault(c);
	if (!net_blocked(c) && guard_goaway(&c->guard, true, frame)) {
		if (c->tls && tls_write(c->tls, bytes_of(frame, sizeof(frame)), &e) == 0)
			flush_net(c);
		else if (!c->tls)
			(void)send_some(c->net.fd, frame, sizeof(frame));
	}
	conn_end(c);
}

/* Plaintext of the client's. */
static enum io deliver(struct conn *c, struct bytes b)
{
	size_t before = guard_preface(&c->guard).n;

	if (c->guarded && guard_client(&c->guard, b, hub_now(c->hub)) != GUARD_FINE) {
		kill_faulty(c);
		return IO_ENDED;
	}
	if (c->local.fd < 0) {
		if (c->guarded && !guard_open(&c->guard))
			return IO_MOVED; /* the guard knows what it has seen */
		return door_conn_speaks(c->door, c, before, b) ? IO_MOVED : IO_ENDED;
	}
	return conn_give(c, b) ? IO_MOVED : IO_ENDED;
}

bool conn_give(struct conn *c, struct bytes b)
{
	return write_or_keep(&c->to_local, c->local.fd, b.p, b.n);
}

/* One read. The flag says afterwards whether another makes sense. */
static ssize_t receive(int fd, uint8_t *p, size_t cap, bool *readable, bool hup)
{
	ssize_t n;

	do
		n = recv(fd, p, cap, MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	/* epoll(7): for a stream, a short read means that all was read; but an end may follow, of
	 * which there is no second edge. */
	if (n < (ssize_t)cap)
		*readable = n > 0 && hup;
	return n;
}

static enum io net_ended(struct conn *c)
{
	c->net_eof = true;
	if (c->lingering)
		return IO_ENDED;
	/* The end of an HTTP/2 connection is the end of all its calls. */
	if (c->guarded || c->local.fd < 0)
		return IO_ENDED;
	if (flush_local(c) == IO_ENDED)
		return IO_ENDED;
	if (!c->to_local.p)
		shutdown(c->local.fd, SHUT_WR);
	return IO_BLOCKED;
}

static enum io deliver_tls(struct conn *c)
{
	for (;;) {
		struct err e;
		size_t n = 0;
		bool eof = false;
		enum io r;

		if (tls_read(c->tls, c->hub->plain, sizeof(c->hub->plain), &n, &eof, &e) != 0)
			return IO_ENDED;
		if (n > 0 && (r = deliver(c, bytes_of(c->hub->plain, n))) != IO_MOVED)
			return r;
		if (eof)
			return net_ended(c);
		if (n == 0)
			return IO_MOVED;
	}
}

static enum io pump_in(struct conn *c)
{
	enum io r;
	ssize_t n;

	if (c->to_local.p && (r = flush_local(c)) != IO_MOVED)
		return r;
	if (c->net_eof && !c->guarded && c->local.fd >= 0)
		shutdown(c->local.fd, SHUT_WR);
	if (!c->net_readable || c->net_eof)
		return IO_BLOCKED;
	n = receive(c->net.fd, c->hub->in, c->tls ? HUB_BUFFER / 2 : HUB_BUFFER, &c->net_readable,
		c->net_hup);
	if (n < 0)
		return errno == EAGAIN ? IO_BLOCKED : IO_ENDED;
	if (n == 0)
		return net_ended(c);
	if (c->lingering)
		return IO_MOVED;
	if (!c->tls)
		return deliver(c, bytes_of(c->hub->in, (size_t)n));
	tls_feed(c->tls, bytes_of(c->hub->in, (size_t)n));
	r = deliver_tls(c);
	/* Reading may have made output: an alert, a key update. */
	if (r == IO_MOVED && flush_net(c) == IO_ENDED)
		return IO_ENDED;
	return r;
}

/* ---- local → net ---- */

/* The server has closed: what it wrote goes out, then the connection ends. Over TCP by a shutdown
 * first, since closing with unread input would reset it, last bytes and all. */
static enum io local_ended(struct conn *c)
{
	c->local_eof = true;
	if (net_blocked(c))
		return IO_BLOCKED;
	if (!c->lingering) {
		if ((c->peer && c->peer->is_unix) || c->net_eof)
			return IO_ENDED;
		c->lingering = true;
		hub_remove(c->hub, &c->local);
		hub_deadline(c->hub, &c->life, STAGE_LINGER, door_times.linger_ms);
		if (c->tls) {
			tls_close_notify(c->tls);
			if (flush_net(c) == IO_ENDED)
				return IO_ENDED;
		}
	}
	if (!net_blocked(c))
		shutdown(c->net.fd, SHUT_WR);
	return IO_BLOCKED;
}

static enum io pump_out(struct conn *c)
{
	struct bytes b;
	struct err e;
	enum io r;
	ssize_t n;

	if (net_blocked(c) && (r = flush_net(c)) != IO_MOVED)
		return r;
	if (c->local_eof)
		return local_ended(c);
	if (c->local.fd < 0 || !c->local_readable)
		return IO_BLOCKED;
	n = receive(c->local.fd, c->hub->in, HUB_BUFFER, &c->local_readable, c->local_hup);
	if (n < 0 && errno == EAGAIN)
		return IO_BLOCKED;
	if (n <= 0)
		return local_ended(c);
	b = bytes_of(c->hub->in, (size_t)n);
	hub_opening(c->hub, c, false);
	if (c->guarded)
		guard_server(&c->guard, b, hub_now(c->hub));
	if (c->tls) {
		if (tls_write(c->tls, b, &e) != 0)
			return IO_ENDED;
		return flush_net(c) == IO_ENDED ? IO_ENDED : IO_MOVED;
	}
	if (!write_or_keep(&c->to_net, c->net.fd, b.p, b.n))
		return IO_ENDED;
	watch_net_output(c, true);
	return IO_MOVED;
}

/* ---- turns ---- */

static void handshake(struct conn *c);

static void say_goodbye(struct conn *c)
{
	uint8_t frame[GUARD_GOAWAY_LEN];
	struct err e;

	/* RFC 9113 6.8: a client that is told the last stream that counted can safely try the
	 * others again. */
	if (!c->guarded || c->handshaking || net_blocked(c) ||
		!guard_goaway(&c->guard, false, frame))
		return;
	if (!c->tls) {
		(void)send_some(c->net.fd, frame, sizeof(frame));
	} else if (tls_write(c->tls, bytes_of(frame, sizeof(frame)), &e) == 0) {
		tls_close_notify(c->tls);
		flush_net(c);
	}
}

/* Calls come and go: who has none is idle, and may have to make room. */
static void note_calls(struct conn *c)
{
	bool busy;

	if (!c->guarded || c->lingering || !guard_open(&c->guard))
		return;
	if (!share_watch(c)) {
		kill_faulty(c);
		return;
	}
	if (c->ended)
		return;
	busy = guard_streams(&c->guard) > 0;
	if (busy == c->busy)
		return;
	c->busy = busy;
	share_set_busy(c, busy);
	hub_deadline(c->hub, &c->life, busy ? STAGE_NONE : STAGE_IDLE, door_times.idle_ms);
	if (!busy && door_closing(c->door)) {
		say_goodbye(c);
		conn_end(c);
	}
}

static void run(struct conn *c)
{
	bool more = true;

	for (int i = 0; i < CONN_ROUNDS && more; i++) {
		enum io in = pump_in(c), out;

		if (c->ended)
			return;
		out = in == IO_ENDED ? IO_ENDED : pump_out(c);
		if (c->ended)
			return;
		if (out == IO_ENDED) {
			conn_end(c);
			return;
		}
		more = in == IO_MOVED || out == IO_MOVED;
	}
	if (c->to_local.p && c->local.fd >= 0)
		want_out(c, &c->local, &c->local_out, true);
	note_calls(c);
	if (more && !c->ended)
		hub_more(c->hub, c);
}

void conn_go(struct conn *c)
{
	if (c->ended)
		return;
	if (c->served)
		run(c);
	else if (c->net_readable || net_blocked(c))
		hub_begin(c->hub, c);
}

void conn_begin(struct conn *c)
{
	if (c->ended)
		return;
	if (c->handshaking)
		handshake(c);
	else
		run(c);
}

static void net_ready(struct source *s, uint32_t events)
{
	struct conn *c = container_of(s, struct conn, net);

	if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		c->net_hup = true;
	if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		c->net_readable = true;
	/* It has gone before its turn came, and nobody waits for an answer. */
	if (c->net_hup && c->guarded && !c->served && !c->handshaking)
		conn_end(c);
	else
		conn_go(c);
}

static void local_ready(struct source *s, uint32_t events)
{
	struct conn *c = container_of(s, struct conn, local);

	if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		c->local_hup = true;
	if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		c->local_readable = true;
	conn_go(c);
}

/* ---- TLS ---- */

/* A TLS record of a handshake, or not worth any memory (RFC 8446 5.1). */
static bool looks_like_tls(const uint8_t *p, size_t n)
{
	return p[0] == 0x16 && (n < 2 || p[1] == 3);
}

static void handshake_failed(struct conn *c, const struct err *e)
{
	if (c->door)
		door_counts(c->door)->handshake_failed++;
	if (c->tls)
		flush_net(c); /* the alert */
	if (c->dial) {
		struct dial *d = c->dial;

		c->dial = NULL;
		dial_conn_failed(d, e);
	}
	conn_end(c);
}

static void handshake_complete(struct conn *c)
{
	if (c->door) {
		if (!door_tls_established(c->door, c)) {
			handshake_failed(c, NULL);
			return;
		}
	} else {
		struct dial *d = c->dial;

		c->handshaking = false;
		c->dial = NULL;
		hub_deadline(c->hub, &c->life, STAGE_NONE, 0);
		dial_established(d, c);
		if (c->ended)
			return;
	}
	/* What came with the last flight. */
	if (deliver_tls(c) == IO_ENDED)
		conn_end(c);
	else
		conn_go(c);
}

/* What a load balancer says before the client's first byte. It is looked at, and taken only when it
 * is whole, so that nothing is kept of a connection that never says more. False: wait, or the
 * connection has ended. */
static bool proxy_header(struct conn *c)
{
	struct err e = ERR_INIT;
	char address[PROXY_ADDRESS] = "";
	enum proxy_result r = PROXY_BAD;
	size_t len = 0;
	ssize_t n;

	do
		n = recv(c->net.fd, c->hub->in, PROXY_MAX, MSG_DONTWAIT | MSG_PEEK);
	while (n < 0 && errno == EINTR);
	if (n > 0)
		r = proxy_parse(bytes_of(c->hub->in, (size_t)n), &len, address);
	if ((n < 0 && errno == EAGAIN) || (r == PROXY_MORE && !c->net_hup)) {
		c->net_readable = false; /* the next byte is another edge */
		return false;
	}
	if (r == PROXY_OK && recv(c->net.fd, c->hub->in, len, MSG_DONTWAIT) != (ssize_t)len)
		r = PROXY_BAD;
	if ((r != PROXY_OK && r != PROXY_NONE) ||
		(address[0] && !door_conn_proxied(c->door, c, address))) {
		err_set(&e, ERR_UNAVAILABLE, "no PROXY header");
		handshake_failed(c, &e);
		return false;
	}
	c->proxied = false;
	return true;
}

/* Takes what came from the net. False: nothing to go on with, or the connection has ended. */
static bool handshake_input(struct conn *c)
{
	struct err e = ERR_INIT;
	ssize_t n;

	if (c->proxied && !proxy_header(c))
		return false;
	n = receive(c->net.fd, c->hub->in, HUB_BUFFER / 4, &c->net_readable, c->net_hup);

	if (n < 0 && errno == EAGAIN)
		return !c->spoke;
	if (n <= 0 || (!c->tls && !looks_like_tls(c->hub->in, (size_t)n))) {
		err_set(&e, ERR_UNAVAILABLE, "connection closed during the TLS handshake");
		handshake_failed(c, &e);
		return false;
	}
	if (!c->tls)
		c->tls = door_tls(c->door);
	if (!c->tls) {
		err_set(&e, ERR_UNAVAILABLE, "there is no certificate to serve with yet");
		handshake_failed(c, &e);
		return false;
	}
	tls_feed(c->tls, bytes_of(c->hub->in, (size_t)n));
	return true;
}

static void handshake(struct conn *c)
{
	struct err e = ERR_INIT;

	if (c->tls && net_blocked(c) && flush_net(c) == IO_ENDED) {
		handshake_failed(c, NULL);
		return;
	}
	/* A client speaks first; a server waits. */
	if (c->net_readable ? !handshake_input(c) : c->spoke)
		return;
	c->spoke = true;
	if (tls_step(c->tls, &e) != 0) {
		handshake_failed(c, &e);
		return;
	}
	if (flush_net(c) == IO_ENDED)
		handshake_failed(c, NULL);
	else if (tls_established(c->tls))
		handshake_complete(c);
	else if (c->net_readable)
		hub_begin(c->hub, c);
}

/* ---- time is up ---- */

void conn_close(struct conn *c)
{
	say_goodbye(c);
	conn_end(c);
}

void conn_evict(struct conn *c)
{
	if (c->door)
		door_counts(c->door)->evicted_idle++;
	conn_close(c);
}

void conn_timeout(struct conn *c, enum stage s)
{
	if (s == STAGE_IDLE)
		say_goodbye(c);
	if (s == STAGE_HANDSHAKE && c->door)
		door_counts(c->door)->handshake_failed++;
	conn_end(c);
}

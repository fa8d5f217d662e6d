#include "lib/door.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "lib/door_internal.h"
#include "lib/metrics.h"

enum { BACKLOG = 4096 };

struct door {
	struct source listener;
	struct hub *hub;
	struct loop *loop;
	struct door_options o; /* the strings are not kept */
	char *unix_path;
	struct network *proxies;
	dev_t dev; /* of the socket file, so that a successor's is not unlinked */
	ino_t ino;
	int port;
	struct list conns;
	struct list link; /* in doors */
	struct door_stats stats;
	struct loop_timer *pause;
	struct loop_timer *grace;
	bool closing;
	void (*done)(void *arg);
	void *done_arg;
};

/* For the metrics: all doors of the process, and what those counted that are closed. */
static pthread_mutex_t doors_lock = PTHREAD_MUTEX_INITIALIZER;
static struct list doors = { &doors, &doors };
static struct door_stats past;

static void add_stats(struct door_stats *sum, const struct door_stats *v)
{
	sum->accepted += v->accepted;
	sum->refused_full += v->refused_full;
	sum->evicted_idle += v->evicted_idle;
	sum->handshake_failed += v->handshake_failed;
	sum->guard_killed += v->guard_killed;
	sum->open += v->open;
}

static void doors_add(struct door *d)
{
	pthread_mutex_lock(&doors_lock);
	list_append(&doors, &d->link);
	pthread_mutex_unlock(&doors_lock);
}

static void doors_remove(struct door *d)
{
	pthread_mutex_lock(&doors_lock);
	list_remove(&d->link);
	add_stats(&past, &d->stats);
	pthread_mutex_unlock(&doors_lock);
}

/* ---- connections ---- */

struct door_stats *door_counts(struct door *d)
{
	return &d->stats;
}

bool door_closing(const struct door *d)
{
	return d->closing;
}

/* A dead host must be noticed: by what waits for it, and by what does not. */
void door_tcp_options(int fd)
{
	enum { IDLE_S = 60, INTERVAL_S = 10, PROBES = 3, USER_TIMEOUT_MS = 20 * 1000 };
	const int on = 1, idle = IDLE_S, interval = INTERVAL_S, probes = PROBES,
		  timeout = USER_TIMEOUT_MS;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
	setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout, sizeof(timeout));
}

static struct peer *peer_of(const struct door *d, int fd, const struct sockaddr *sa)
{
	struct peer *p = NULL;

	if (d->unix_path) {
		if (peer_of_unix(fd, &p) != 0)
			return NULL;
	} else {
		door_tcp_options(fd);
		p = peer_new();
		peer_address(p, sa);
	}
	p->privileged = d->o.privileged;
	return p;
}

static bool is_proxy(const struct door *d, const struct sockaddr *sa)
{
	for (size_t i = 0; i < d->o.n_proxies; i++) {
		if (network_has(&d->proxies[i], sa))
			return true;
	}
	return false;
}

static void admit(struct door *d, int fd, const struct sockaddr *sa)
{
	const uint8_t cost = d->unix_path ? CONN_COST_UNIX : CONN_COST_TCP;
	struct peer *p = peer_of(d, fd, sa);
	struct share_holder *h;
	struct conn *c;

	if (!p) {
		close(fd);
		return;
	}
	d->stats.accepted++;
	if (!share_admit(&d->hub->share, p, cost, d->o.tls != NULL, hub_now(d->hub), &h)) {
		d->stats.refused_full++;
		close(fd);
		peer_unref(p);
		return;
	}
	c = conn_new(d->hub, fd);
	c->door = d;
	c->peer = p;
	c->cost = cost;
	c->guarded = !d->o.raw;
	c->handshaking = d->o.tls != NULL;
	c->proxied = d->o.tls && is_proxy(d, sa);
	c->spoke = true;
	guard_init(&c->guard, d->o.message_max ? d->o.message_max : DOOR_MESSAGE_MAX);
	if (d->o.pending_max)
		c->guard.incomplete_max = d->o.pending_max;
	share_enter(&d->hub->share, h, c);
	d->stats.open++;
	list_append(&d->conns, &c->in_door);
	hub_deadline(d->hub, &c->life, STAGE_HANDSHAKE, door_times.handshake_ms);
	/* The first bytes are often there already. */
	c->net_readable = true;
	conn_go(c);
}

static void accept_pause(struct door *d)
{
	hub_change(d->hub, &d->listener, 0);
	loop_timer_set(d->pause, DOOR_ACCEPT_PAUSE_MS * NS_PER_MS);
}

static void accept_again(void *arg)
{
	struct door *d = arg;

	if (!d->closing)
		hub_change(d->hub, &d->listener, EPOLLIN);
}

static void on_listener(struct source *s, uint32_t events)
{
	struct door *d = container_of(s, struct door, listener);

	(void)events;
	for (int i = 0; i < DOOR_ACCEPTS && s->fd >= 0; i++) {
		struct sockaddr_storage sa = { 0 };
		socklen_t len = sizeof(sa);
		int fd = accept4(s->fd, (struct sockaddr *)&sa, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd >= 0) {
			admit(d, fd, (struct sockaddr *)&sa);
		} else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS ||
			   errno == ENOMEM) {
			/* The connection stays readable: without a pause this would spin. */
			share_relieve(&d->hub->share);
			accept_pause(d);
			return;
		} else if (errno == EAGAIN) {
			return;
		}
	}
}

bool door_conn_speaks(struct door *d, struct conn *c, size_t before, struct bytes first)
{
	struct bytes preface = guard_preface(&c->guard);
	int fd = -1;

	if (!c->peer->is_unix || peer_pin(c->peer, c->net.fd) == 0) {
		fd = conn_open_local(c);
		if (fd < 0)
			share_relieve(&d->hub->share);
		if (fd < 0 && !c->ended)
			fd = conn_open_local(c);
	}
	if (fd < 0) {
		d->stats.refused_full++;
		conn_end(c);
		return false;
	}
	if (before > 0)
		(void)conn_give(c, bytes_of(preface.p, before));
	(void)conn_give(c, first);
	if (!d->o.raw)
		hub_opening(d->hub, c, true);
	hub_deadline(d->hub, &c->life, d->o.raw ? STAGE_NONE : STAGE_IDLE, door_times.idle_ms);
	d->o.on_conn(d->o.arg, fd, c->peer);
	return !c->ended;
}

bool door_conn_proxied(struct door *d, struct conn *c, const char *address)
{
	struct share_holder *h;

	if (strcmp(c->peer->address, address) == 0)
		return true;
	share_leave(&d->hub->share, c);
	snprintf(c->peer->address, sizeof(c->peer->address), "%s", address);
	if (!share_admit(&d->hub->share, c->peer, c->cost, true, hub_now(d->hub), &h)) {
		d->stats.refused_full++;
		return false;
	}
	share_enter(&d->hub->share, h, c);
	return true;
}

struct tls_conn *door_tls(struct door *d)
{
	struct tls_ctx *ctx = d->o.tls(d->o.arg);
	struct tls_conn *t;

	if (!ctx)
		return NULL;
	t = tls_conn_new(ctx, NULL, d->o.verify, d->o.arg);
	tls_ctx_unref(ctx);
	return t;
}

bool door_tls_established(struct door *d, struct conn *c)
{
	const struct x509_chain *chain = tls_peer_chain(c->tls);
	struct err e;

	if (chain && chain->n > 0) {
		if (x509_svid_id(chain->v[0], &c->peer->id, &e) != 0)
			return false;
		c->peer->chain = x509_chain_dup(chain);
	}
	if (!share_handshake_done(&d->hub->share, c)) {
		d->stats.refused_full++;
		return false;
	}
	return true;
}

/* ---- closing ---- */

static void finish_close(void *arg)
{
	struct door *d = arg;
	struct hub *h = d->hub;
	void (*done)(void *arg) = d->done;
	void *done_arg = d->done_arg;

	loop_timer_free(d->pause);
	loop_timer_free(d->grace);
	free(d->unix_path);
	free(d->proxies);
	doors_remove(d);
	free(d);
	hub_unref(h);
	if (done)
		done(done_arg);
}

void door_conn_ended(struct door *d, struct conn *c)
{
	list_remove(&c->in_door);
	d->stats.open--;
	if (d->closing && list_empty(&d->conns))
		loop_post(d->loop, finish_close, d);
}

static void unlink_own(const struct door *d)
{
	struct stat st;

	if (d->unix_path && lstat(d->unix_path, &st) == 0 && st.st_dev == d->dev &&
		st.st_ino == d->ino)
		unlink(d->unix_path);
}

static void end_all(void *arg)
{
	struct door *d = arg;

	/* One end may bring about another, so always the first. */
	while (!list_empty(&d->conns))
		conn_close(container_of(d->conns.next, struct conn, in_door));
}

void door_close(struct door *d, int grace_ms, void (*done)(void *arg), void *arg)
{
	if (!d)
		return;
	INVARIANT(!d->closing);
	d->done = done;
	d->done_arg = arg;
	unlink_own(d);
	hub_remove(d->hub, &d->listener);
	loop_timer_stop(d->pause);
	if (list_empty(&d->conns)) {
		d->closing = true;
		loop_post(d->loop, finish_close, d);
		return;
	}
	d->closing = true;
	if (grace_ms <= 0) {
		end_all(d);
		return;
	}
	loop_timer_set(d->grace, grace_ms * NS_PER_MS);
	list_each (c, &d->conns, struct conn, in_door)
		if (!c->busy && !d->o.raw)
			conn_close(c);
}

/* ---- listening ---- */

static int make_folder_of(const char *path, struct err *e)
{
	AUTO(free) char *dir = xstrdup(path);

	for (char *p = dir + 1; (p = strchr(p, '/')); p++) {
		*p = '\0';
		/* Whatever the umask: callers of other uids must get in. */
		if (mkdir(dir, 0755) == 0)
			(void)chmod(dir, 0755);
		else if (errno != EEXIST)
			return err_errno(e, errno, "create folder %s", dir);
		*p = '/';
	}
	return 0;
}

/* Takes a socket away that nobody listens on any more. */
static int remove_stale(const char *path, const struct sockaddr_un *sa, struct err *e)
{
	AUTO(close_fd) int fd = -1;
	struct stat st;

	if (lstat(path, &st) != 0)
		return errno == ENOENT ? 0 : err_errno(e, errno, "look at %s", path);
	if (!S_ISSOCK(st.st_mode))
		return err_set(e, ERR_EXISTS, "%s is there and is not a socket", path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return err_errno(e, errno, "socket");
	/* EAGAIN: somebody listens and is very busy. */
	if (connect(fd, (const struct sockaddr *)sa, sizeof(*sa)) == 0 || errno == EAGAIN)
		return err_set(e, ERR_EXISTS, "another process listens on %s", path);
	if (errno != ECONNREFUSED)
		return errno == ENOENT ? 0 : err_errno(e, errno, "try %s", path);
	if (unlink(path) != 0 && errno != ENOENT)
		return err_errno(e, errno, "remove stale socket %s", path);
	return 0;
}

static int listen_unix(struct door *d, const struct door_options *o, int *ret_fd, struct err *e)
{
	AUTO(close_fd) int fd = -1;
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	struct stat st;
	int r;

	if (strlen(o->unix_path) >= sizeof(sa.sun_path))
		return err_set(e, ERR_INVALID, "socket path is longer than %zu bytes: %s",
			sizeof(sa.sun_path) - 1, o->unix_path);
	memcpy(sa.sun_path, o->unix_path, strlen(o->unix_path));
	if ((r = make_folder_of(o->unix_path, e)) || (r = remove_stale(o->unix_path, &sa, e)))
		return r;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return err_errno(e, errno, "socket");
	/* bind() gives the file the mode of the unbound socket, less the umask: never more than
	 * asked for. chmod() adds what the umask took. */
	if (fchmod(fd, o->unix_mode) != 0 || bind(fd, (struct sockaddr *)&sa, sizeof(sa)) != 0)
		return err_errno(e, errno, "bind %s", o->unix_path);
	if (chmod(o->unix_path, o->unix_mode) != 0 || lstat(o->unix_path, &st) != 0 ||
		listen(fd, BACKLOG) != 0) {
		r = err_errno(e, errno, "listen on %s", o->unix_path);
		unlink(o->unix_path);
		return r;
	}
	d->dev = st.st_dev;
	d->ino = st.st_ino;
	d->unix_path = xstrdup(o->unix_path);
	*ret_fd = fd;
	fd = -1;
	return 0;
}

static int listen_address(const struct addrinfo *ai, int *ret_fd, int *ret_port)
{
	AUTO(close_fd) int fd = -1;
	const int on = 1, off = 0;
	union {
		struct sockaddr sa;
		struct sockaddr_in four;
		struct sockaddr_in6 six;
	} bound = { .six = { 0 } };
	socklen_t len = sizeof(bound);

	fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return errno;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (ai->ai_family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
	if (bind(fd, ai->ai_addr, ai->ai_addrlen) != 0 || listen(fd, BACKLOG) != 0 ||
		getsockname(fd, &bound.sa, &len) != 0)
		return errno;
	*ret_port = ntohs(ai->ai_family == AF_INET6 ? bound.six.sin6_port : bound.four.sin_port);
	*ret_fd = fd;
	fd = -1;
	return 0;
}

static int listen_tcp(struct door *d, const struct door_options *o, int *ret_fd, struct err *e)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE };
	const char *host = o->tcp_host && o->tcp_host[0] ? o->tcp_host : NULL;
	struct addrinfo *all = NULL;
	char port[16];
	int r;

	snprintf(port, sizeof(port), "%d", o->tcp_port);
	r = getaddrinfo(host, port, &hints, &all);
	if (r != 0)
		return err_set(e, ERR_INVALID, "address %s:%s: %s", host ? host : "", port,
			gai_strerror(r));
	for (struct addrinfo *ai = all; ai; ai = ai->ai_next)
		if ((r = listen_address(ai, ret_fd, &d->port)) == 0)
			break;
	freeaddrinfo(all);
	return r == 0 ? 0 : err_errno(e, r, "listen on %s:%s", host ? host : "", port);
}

int door_open(struct loop *l, const struct door_options *o, struct door **ret, struct err *e)
{
	struct door *d = xcalloc(1, sizeof(*d));
	int fd = -1;
	int r = o->unix_path ? listen_unix(d, o, &fd, e) : listen_tcp(d, o, &fd, e);

	if (r) {
		free(d);
		return r;
	}
	d->loop = l;
	d->o = *o;
	d->proxies = xcalloc(o->n_proxies + 1, sizeof(*d->proxies));
	for (size_t i = 0; i < o->n_proxies; i++)
		d->proxies[i] = o->proxies[i];
	d->hub = hub_get(l);
	d->pause = loop_timer_new(l, accept_again, d);
	d->grace = loop_timer_new(l, end_all, d);
	list_init(&d->conns);
	d->listener = (struct source){ .fd = fd, .ready = on_listener };
	hub_add(d->hub, &d->listener, EPOLLIN);
	doors_add(d);
	*ret = d;
	return 0;
}

int door_port(const struct door *d)
{
	return d->port;
}

/* ---- counting ---- */

void door_stats(const struct door *d, struct door_stats *ret)
{
	*ret = d->stats;
}

/* arg: where in struct door_stats. */
static double count_all(void *arg)
{
	struct door_stats sum;
	uint64_t v;

	pthread_mutex_lock(&doors_lock);
	sum = past;
	list_each (d, &doors, struct door, link)
		add_stats(&sum, &d->stats);
	pthread_mutex_unlock(&doors_lock);
	memcpy(&v, (const char *)&sum + (uintptr_t)arg, sizeof(v));
	return (double)v;
}

#define COUNT(f) ((void *)offsetof(struct door_stats, f))

void door_add_metrics(void)
{
	metric_gauge_fn(
		"assay_connections_open", "Connections that are open.", count_all, COUNT(open));
	metric_counter_fn(
		"assay_connections_accepted", "Connections accepted.", count_all, COUNT(accepted));
	metric_counter_fn("assay_connections_refused",
		"Refused or given up because their holder, or all together, held too many.",
		count_all, COUNT(refused_full));
	metric_counter_fn("assay_connections_evicted",
		"Ended, without a call, to make room for another.", count_all, COUNT(evicted_idle));
	metric_counter_fn("assay_connections_handshake_failed",
		"Ended because the TLS handshake failed or took too long.", count_all,
		COUNT(handshake_failed));
	metric_counter_fn("assay_connections_ended_by_guard",
		"Ended because of what they sent: frames against the limits, or no HTTP/2.",
		count_all, COUNT(guard_killed));
}

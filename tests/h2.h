/*
 * Bare HTTP/2 for tests and tools: frames as bytes, blocking sockets, no client library that would
 * refuse to misbehave.
 */
#ifndef ASSAY_TESTS_H2_H
#define ASSAY_TESTS_H2_H

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "lib/buf.h"

enum h2_type {
	H2_DATA,
	H2_HEADERS,
	H2_PRIORITY,
	H2_RST_STREAM,
	H2_SETTINGS,
	H2_PUSH_PROMISE,
	H2_PING,
	H2_GOAWAY,
	H2_WINDOW_UPDATE,
	H2_CONTINUATION,
};
enum { H2_END_STREAM = 1, H2_ACK = 1, H2_END_HEADERS = 4, H2_PADDED = 8 };

static const char h2_preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

static inline void h2_head(struct buf *b, uint32_t len, int type, int flags, uint32_t id)
{
	const uint8_t h[9] = { (uint8_t)(len >> 16), (uint8_t)(len >> 8), (uint8_t)len,
		(uint8_t)type, (uint8_t)flags, (uint8_t)(id >> 24), (uint8_t)(id >> 16),
		(uint8_t)(id >> 8), (uint8_t)id };

	buf_append(b, h, sizeof(h));
}

static inline void h2_frame(
	struct buf *b, int type, int flags, uint32_t id, const void *p, size_t n)
{
	h2_head(b, (uint32_t)n, type, flags, id);
	buf_append(b, p, n);
}

static inline void h2_zeros(struct buf *b, int type, int flags, uint32_t id, size_t n)
{
	h2_head(b, (uint32_t)n, type, flags, id);
	while (n-- > 0)
		buf_byte(b, 0);
}

static inline void h2_hello(struct buf *b)
{
	buf_str(b, h2_preface);
	h2_head(b, 0, H2_SETTINGS, 0, 0);
}

/* RFC 7541: literals without indexing, no Huffman code. */
static inline void h2_block(struct buf *b, const char *path)
{
	size_t n = strlen(path);

	buf_byte(b, 0x83); /* :method POST */
	buf_byte(b, 0x86); /* :scheme http */
	buf_byte(b, 0x04); /* :path */
	buf_byte(b, (uint8_t)n);
	buf_append(b, path, n);
	buf_byte(b, 0x01); /* :authority */
	buf_byte(b, 9);
	buf_str(b, "localhost");
	buf_byte(b, 0x0f); /* content-type */
	buf_byte(b, 0x10);
	buf_byte(b, 16);
	buf_str(b, "application/grpc");
	buf_byte(b, 0x00);
	buf_byte(b, 2);
	buf_str(b, "te");
	buf_byte(b, 8);
	buf_str(b, "trailers");
	buf_byte(b, 0x00);
	buf_byte(b, 18);
	buf_str(b, "workload.spiffe.io");
	buf_byte(b, 4);
	buf_str(b, "true");
}

static inline void h2_open(struct buf *b, uint32_t id, int flags, const char *path)
{
	AUTO_BUF struct buf block = BUF_INIT;

	h2_block(&block, path);
	h2_frame(b, H2_HEADERS, H2_END_HEADERS | flags, id, block.p, block.len);
}

/* A whole unary or server-streaming request with an empty message. */
static inline void h2_call(struct buf *b, uint32_t id, const char *path)
{
	h2_open(b, id, 0, path);
	h2_frame(b, H2_DATA, H2_END_STREAM, id, "\0\0\0\0\0", 5);
}

/* "unix:PATH" or "tcp:HOST:PORT"; -1 and errno. */
static inline int h2_connect(const char *target)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *ai = NULL;
	char host[256];
	const char *port;
	int fd = -1, r;

	if (strncmp(target, "unix:", 5) == 0) {
		memcpy(un.sun_path, target + 5, strnlen(target + 5, sizeof(un.sun_path) - 1));
		fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (fd >= 0 && connect(fd, (struct sockaddr *)&un, sizeof(un)) != 0) {
			r = errno;
			close(fd);
			errno = r;
			return -1;
		}
		return fd;
	}
	snprintf(host, sizeof(host), "%s", target + 4);
	port = strrchr(target, ':') + 1;
	*strrchr(host, ':') = '\0';
	if (getaddrinfo(host, port, &hints, &ai) != 0) {
		errno = EHOSTUNREACH;
		return -1;
	}
	fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 && connect(fd, ai->ai_addr, ai->ai_addrlen) != 0) {
		r = errno;
		close(fd);
		errno = r;
		fd = -1;
	}
	freeaddrinfo(ai);
	return fd;
}

/* All of it, or false: the other side has closed. */
static inline bool h2_write(int fd, const void *p, size_t n)
{
	const uint8_t *at = p;

	while (n > 0) {
		ssize_t r = send(fd, at, n, MSG_NOSIGNAL);

		if (r < 0 && errno == EAGAIN)
			poll(&(struct pollfd){ .fd = fd, .events = POLLOUT }, 1, -1);
		if (r < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (r <= 0)
			return false;
		at += r;
		n -= (size_t)r;
	}
	return true;
}

static inline bool h2_flush(int fd, struct buf *b)
{
	bool ok = h2_write(fd, b->p, b->len);

	buf_reset(b);
	return ok;
}

/* Exactly n bytes within the time; false: closed or too late. */
static inline bool h2_read(int fd, void *p, size_t n, int ms)
{
	uint8_t *at = p;

	while (n > 0) {
		struct pollfd pfd = { .fd = fd, .events = POLLIN };
		ssize_t r;

		if (poll(&pfd, 1, ms) <= 0)
			return false;
		r = recv(fd, at, n, MSG_DONTWAIT);
		if (r < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (r <= 0)
			return false;
		at += r;
		n -= (size_t)r;
	}
	return true;
}

struct h2_got {
	uint32_t len;
	int type;
	int flags;
	uint32_t id;
	uint8_t p[16384];
};

static inline bool h2_next(int fd, struct h2_got *ret, int ms)
{
	uint8_t h[9];

	if (!h2_read(fd, h, sizeof(h), ms))
		return false;
	ret->len = (uint32_t)h[0] << 16 | (uint32_t)h[1] << 8 | h[2];
	ret->type = h[3];
	ret->flags = h[4];
	ret->id = ((uint32_t)h[5] << 24 | (uint32_t)h[6] << 16 | (uint32_t)h[7] << 8 | h[8]) &
		  0x7fffffff;
	return ret->len <= sizeof(ret->p) && h2_read(fd, ret->p, ret->len, ms);
}

/* Waits until the other side has closed; what it still says is dropped. */
static inline bool h2_closed(int fd, int ms)
{
	char drop[4096];

	for (;;) {
		struct pollfd pfd = { .fd = fd, .events = POLLIN };
		ssize_t r;

		if (poll(&pfd, 1, ms) <= 0)
			return false;
		r = recv(fd, drop, sizeof(drop), MSG_DONTWAIT);
		if (r == 0 || (r < 0 && errno != EAGAIN && errno != EINTR))
			return true;
	}
}

static inline double h2_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static inline void h2_sleep_ms(long ms)
{
	nanosleep(&(struct timespec){ .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 }, NULL);
}

#endif

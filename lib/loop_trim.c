/*
 * Memory that only a burst needed goes back to the system when the burst is over. A few hundred
 * proxies that start at once bring 60 KB each; glibc keeps what was freed between what stays, and
 * the process would look, and be charged, three times its size for the rest of its life.
 */
#include <fcntl.h>
#include <malloc.h>
#include <stdio.h>
#include <unistd.h>

#include "lib/loop_internal.h"
#include "lib/mem.h"

enum {
	QUIET_MS = 100,
	BUSY_MAX_MS = 5000, /* without a quiet moment; then in the midst of it */
	GROWN_PAGES = 256,  /* since the last time; 1 MiB */
	KEEP_BYTES = 128 << 10,
};

/* 0 when the system does not say. */
static long resident_pages(void)
{
	char text[64];
	AUTO(close_fd) int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd >= 0 ? read(fd, text, sizeof(text) - 1) : 0;
	long pages = 0;

	text[n > 0 ? n : 0] = '\0';
	return sscanf(text, "%*d %ld", &pages) == 1 ? pages : 0;
}

static void trim(struct loop *l)
{
	long now = resident_pages();

	if (now < l->trim_pages)
		l->trim_pages = now;
	if (now - l->trim_pages < GROWN_PAGES)
		return;
	malloc_trim(KEEP_BYTES);
	l->trim_pages = resident_pages();
}

static void on_quiet(uv_timer_t *h)
{
	struct loop *l = h->data;

	if (l->trim_again && uv_now(&l->uv) - l->trim_from_ms < BUSY_MAX_MS) {
		l->trim_again = false;
		INVARIANT(uv_timer_start(h, on_quiet, QUIET_MS, 0) == 0);
		return;
	}
	l->trim_again = false;
	trim(l);
}

void loop_trim_soon(struct loop *l)
{
	if (uv_is_active((uv_handle_t *)&l->trim)) {
		l->trim_again = true;
		return;
	}
	l->trim_from_ms = uv_now(&l->uv);
	INVARIANT(uv_timer_start(&l->trim, on_quiet, QUIET_MS, 0) == 0);
}

void loop_trim_init(struct loop *l)
{
	INVARIANT(uv_timer_init(&l->uv, &l->trim) == 0);
	l->trim.data = l;
	uv_unref((uv_handle_t *)&l->trim);
}

void loop_trim_close(struct loop *l)
{
	uv_close((uv_handle_t *)&l->trim, NULL);
}

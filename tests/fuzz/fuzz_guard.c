/*
 * Both directions of a connection through the frame guard. The first byte of each piece says whose
 * bytes follow and how many; the verdict does not depend on how bytes are cut, and what the guard
 * counts stays consistent and bounded.
 */
#include "lib/door.h"
#include "lib/door_guard.h"

enum { MESSAGE_MAX = 1000, NOW_MS = 5000 };

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

static void check(const struct guard *g)
{
	uint64_t incomplete = 0;

	INVARIANT(guard_streams(g) <= DOOR_STREAMS_MAX + GUARD_STREAMS_SLACK);
	for (unsigned i = 0; i < g->n_streams; i++) {
		const struct guard_stream *s = &g->streams[i];

		INVARIANT(i == 0 || s[-1].id < s->id);
		INVARIANT(s->id <= g->last_id && s->id % 2 == 1);
		INVARIANT(!(s->client_closed && s->server_closed));
		if (s->prefix == 5)
			incomplete += s->left;
	}
	INVARIANT(incomplete == g->incomplete);
}

static enum guard_fault byte_by_byte(struct guard *g, const uint8_t *p, size_t n)
{
	enum guard_fault r = GUARD_FINE;

	for (size_t i = 0; i < n && r == GUARD_FINE; i++)
		r = guard_client(g, bytes_of(p + i, 1), NOW_MS);
	return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	struct guard g, slow;
	enum guard_fault r = GUARD_FINE;
	uint8_t frame[GUARD_GOAWAY_LEN];

	guard_init(&g, MESSAGE_MAX);
	guard_init(&slow, MESSAGE_MAX);
	while (n > 0 && r == GUARD_FINE) {
		size_t len = *p & 0x7f;
		bool client = !(*p & 0x80);

		p++;
		n--;
		if (len > n)
			len = n;
		if (client) {
			r = guard_client(&g, bytes_of(p, len), NOW_MS);
			INVARIANT(byte_by_byte(&slow, p, len) == r);
		} else {
			guard_server(&g, bytes_of(p, len), NOW_MS);
			guard_server(&slow, bytes_of(p, len), NOW_MS);
		}
		p += len;
		n -= len;
		if (r == GUARD_FINE)
			check(&g);
		if (r == GUARD_FINE)
			INVARIANT(slow.n_streams == g.n_streams && slow.last_id == g.last_id);
	}
	(void)guard_goaway(&g, true, frame);
	guard_deinit(&g);
	guard_deinit(&slow);
	return 0;
}

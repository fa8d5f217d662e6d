#include "lib/door_guard.h"

#include <stdlib.h>
#include <string.h>

#include "lib/door.h"

enum frame_type { /* RFC 9113 6 */
	DATA = 0,
	HEADERS = 1,
	PRIORITY = 2,
	RST_STREAM = 3,
	SETTINGS = 4,
	PUSH_PROMISE = 5,
	PING = 6,
	GOAWAY = 7,
	WINDOW_UPDATE = 8,
	CONTINUATION = 9,
};

enum {
	FLAG_END_STREAM = 0x1,
	FLAG_END_HEADERS = 0x4,
	FLAG_PADDED = 0x8,
	HEAD_LEN = 9,
	PREFIX_LEN = 5,
	/* Control frames that one frame of DATA or HEADERS may bring about: two WINDOW_UPDATEs and
	 * a PING that measures the way, and as much again for what is late. */
	CONTROL_PER_PROGRESS = 6,
};

static const char preface[GUARD_PREFACE_LEN + 1] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

struct frame {
	uint32_t len;
	uint8_t type;
	uint8_t flags;
	uint32_t id;
};

const char *guard_fault_text(enum guard_fault f)
{
	static const char *const texts[GUARD_FAULTS] = {
		[GUARD_FINE] = "fine",
		[GUARD_PREFACE] = "not HTTP/2",
		[GUARD_FRAME_SIZE] = "frame of a wrong size",
		[GUARD_HEADER_BLOCK] = "header block too large",
		[GUARD_SEQUENCE] = "header block out of sequence",
		[GUARD_STREAM_ID] = "wrong stream identifier",
		[GUARD_STREAMS] = "too many open streams",
		[GUARD_RESETS] = "too many streams reset",
		[GUARD_CONTROL] = "too many control frames",
		[GUARD_MESSAGE] = "message too large",
	};

	return f < GUARD_FAULTS ? texts[f] : "unknown";
}

void guard_init(struct guard *g, uint32_t message_max)
{
	*g = (struct guard){ .message_max = message_max, .incomplete_max = message_max * 2 };
	g->streams = g->few;
	g->cap_streams = GUARD_STREAMS_INLINE;
}

void guard_deinit(struct guard *g)
{
	if (g->streams != g->few)
		free(g->streams);
	g->streams = g->few;
	g->n_streams = 0;
}

bool guard_open(const struct guard *g)
{
	return g->preface == GUARD_PREFACE_LEN;
}

/* ---- streams ---- */

/* Where id is, or would be. */
static unsigned stream_place(const struct guard *g, uint32_t id)
{
	unsigned lo = 0, hi = g->n_streams;

	while (lo < hi) {
		unsigned mid = (lo + hi) / 2;

		if (g->streams[mid].id < id)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static struct guard_stream *stream_find(const struct guard *g, uint32_t id)
{
	unsigned i = stream_place(g, id);

	return i < g->n_streams && g->streams[i].id == id ? &g->streams[i] : NULL;
}

static void stream_add(struct guard *g, uint32_t id)
{
	if (g->n_streams == g->cap_streams) {
		uint16_t cap = (uint16_t)(g->cap_streams * 2);
		struct guard_stream *more = xreallocarray(NULL, cap, sizeof(*more));

		memcpy(more, g->streams, g->n_streams * sizeof(*more));
		if (g->streams != g->few)
			free(g->streams);
		g->streams = more;
		g->cap_streams = cap;
	}
	g->streams[g->n_streams++] = (struct guard_stream){ .id = id };
}

static void forget_message(struct guard *g, struct guard_stream *s)
{
	if (s->prefix == PREFIX_LEN)
		g->incomplete -= s->left;
	s->prefix = 0;
	s->left = 0;
}

static void stream_remove(struct guard *g, struct guard_stream *s)
{
	size_t i = (size_t)(s - g->streams);

	forget_message(g, s);
	memmove(s, s + 1, (g->n_streams - i - 1) * sizeof(*s));
	if (--g->n_streams == 0)
		guard_deinit(g);
	if (g->streams == g->few)
		g->cap_streams = GUARD_STREAMS_INLINE;
}

static void stream_end(struct guard *g, struct guard_stream *s, bool by_client)
{
	if (by_client) {
		forget_message(g, s);
		s->client_closed = true;
	} else {
		s->server_closed = true;
	}
	if (s->client_closed && s->server_closed)
		stream_remove(g, s);
}

/* ---- rates ---- */

static void new_second(struct guard *g, int64_t now_ms)
{
	uint32_t second = (uint32_t)(now_ms / 1000);

	if (second == g->second)
		return;
	g->second = second;
	g->resets = g->control = g->progress = 0;
}

static enum guard_fault count_reset(struct guard *g)
{
	g->resets_ever++;
	return ++g->resets > DOOR_RESETS_PER_SECOND ? GUARD_RESETS : GUARD_FINE;
}

static enum guard_fault count_control(struct guard *g)
{
	uint64_t explained = (uint64_t)g->progress * CONTROL_PER_PROGRESS;

	if (++g->control > explained)
		g->control_ever++;
	return g->control > DOOR_CONTROL_PER_SECOND + explained ? GUARD_CONTROL : GUARD_FINE;
}

/* ---- the client's frames ---- */

static enum guard_fault open_stream(struct guard *g, uint32_t id)
{
	/* RFC 9113 5.1.1: "Streams initiated by a client MUST use odd-numbered stream
	 * identifiers". */
	if (id % 2 == 0)
		return GUARD_STREAM_ID;
	if (g->n_streams >= DOOR_STREAMS_MAX + GUARD_STREAMS_SLACK)
		return GUARD_STREAMS;
	g->last_id = id;
	g->progress++;
	stream_add(g, id);
	return GUARD_FINE;
}

static enum guard_fault on_headers(struct guard *g, const struct frame *f)
{
	enum guard_fault r;
	struct guard_stream *s;

	if (f->id == 0)
		return GUARD_STREAM_ID;
	if (f->len > DOOR_HEADER_BLOCK_MAX)
		return GUARD_HEADER_BLOCK;
	/* On a stream that was there before: trailers, or the race with its end. */
	r = f->id > g->last_id ? open_stream(g, f->id) : count_control(g);
	if (r)
		return r;
	s = stream_find(g, f->id);
	if (s && f->flags & FLAG_END_STREAM)
		stream_end(g, s, true);
	if (!(f->flags & FLAG_END_HEADERS)) {
		g->block_stream = f->id;
		g->block_bytes = f->len;
		g->block_pieces = 0;
	}
	return GUARD_FINE;
}

static enum guard_fault on_continuation(struct guard *g, const struct frame *f)
{
	g->block_bytes += f->len;
	if (g->block_bytes > DOOR_HEADER_BLOCK_MAX || ++g->block_pieces > GUARD_CONTINUATIONS_MAX)
		return GUARD_HEADER_BLOCK;
	if (f->flags & FLAG_END_HEADERS)
		g->block_stream = 0;
	return GUARD_FINE;
}

static enum guard_fault on_data(struct guard *g, const struct frame *f)
{
	if (f->id == 0 || f->id > g->last_id)
		return GUARD_STREAM_ID;
	/* The end of the stream is looked at when the payload has passed. */
	if (f->len == 0)
		return f->flags & FLAG_END_STREAM ? GUARD_FINE : count_control(g);
	g->progress++;
	return GUARD_FINE;
}

static enum guard_fault on_reset(struct guard *g, const struct frame *f)
{
	struct guard_stream *s = stream_find(g, f->id);

	if (f->len != 4)
		return GUARD_FRAME_SIZE;
	if (f->id == 0 || f->id > g->last_id)
		return GUARD_STREAM_ID;
	if (s)
		stream_remove(g, s);
	return count_reset(g);
}

static enum guard_fault on_settings(struct guard *g, const struct frame *f)
{
	if (f->id != 0)
		return GUARD_STREAM_ID;
	if (f->len % 6 != 0)
		return GUARD_FRAME_SIZE;
	g->settings_seen = true;
	return count_control(g);
}

static enum guard_fault on_client_frame(struct guard *g, const struct frame *f)
{
	if (f->len > DOOR_FRAME_MAX)
		return GUARD_FRAME_SIZE;
	/* RFC 9113 6.10: "A CONTINUATION frame MUST be preceded by a HEADERS, PUSH_PROMISE or
	 * CONTINUATION frame without the END_HEADERS flag set." */
	if ((f->type == CONTINUATION) != (g->block_stream != 0) ||
		(g->block_stream != 0 && f->id != g->block_stream))
		return GUARD_SEQUENCE;
	/* RFC 9113 3.4: the preface "MUST be followed by a SETTINGS frame". */
	if (!g->settings_seen && f->type != SETTINGS)
		return GUARD_PREFACE;
	switch (f->type) {
	case DATA:
		return on_data(g, f);
	case HEADERS:
		return on_headers(g, f);
	case CONTINUATION:
		return on_continuation(g, f);
	case RST_STREAM:
		return on_reset(g, f);
	case SETTINGS:
		return on_settings(g, f);
	case PUSH_PROMISE: /* RFC 9113 8.4: "A client cannot push." */
		return GUARD_SEQUENCE;
	case PING:
		return f->id != 0    ? GUARD_STREAM_ID
		       : f->len != 8 ? GUARD_FRAME_SIZE
				     : count_control(g);
	case WINDOW_UPDATE:
		return f->len != 4 ? GUARD_FRAME_SIZE : count_control(g);
	case PRIORITY:
		return f->len != 5 ? GUARD_FRAME_SIZE : count_control(g);
	case GOAWAY:
		return f->id != 0   ? GUARD_STREAM_ID
		       : f->len < 8 ? GUARD_FRAME_SIZE
				    : count_control(g);
	default: /* RFC 9113 5.5: unknown types are ignored */
		return count_control(g);
	}
}

/* A message's length is known: five bytes of prefix were seen. */
static enum guard_fault on_prefix(struct guard *g, const struct guard_stream *s)
{
	g->incomplete += s->left;
	return s->left > g->message_max || g->incomplete > g->incomplete_max ? GUARD_MESSAGE
									     : GUARD_FINE;
}

/* Follows the gRPC messages in n bytes of DATA. */
static enum guard_fault follow_messages(
	struct guard *g, struct guard_stream *s, const uint8_t *p, size_t n)
{
	while (n > 0) {
		if (s->prefix < PREFIX_LEN) {
			if (s->prefix > 0) /* the first byte is the compression flag */
				s->left = s->left << 8 | *p;
			p++;
			n--;
			if (++s->prefix == PREFIX_LEN && on_prefix(g, s))
				return GUARD_MESSAGE;
		} else {
			uint32_t part = s->left < n ? s->left : (uint32_t)n;

			s->left -= part;
			g->incomplete -= part;
			p += part;
			n -= part;
		}
		if (s->prefix == PREFIX_LEN && s->left == 0)
			s->prefix = 0;
	}
	return GUARD_FINE;
}

static enum guard_fault on_client_payload(
	struct guard *g, const struct frame *f, const uint8_t *p, size_t n)
{
	struct guard_stream *s;

	if (f->type != DATA)
		return GUARD_FINE;
	/* C-core refuses padded DATA, so there is no message to follow. */
	s = stream_find(g, f->id);
	if (!s || s->client_closed || f->flags & FLAG_PADDED)
		return GUARD_FINE;
	return follow_messages(g, s, p, n);
}

static void on_client_end(struct guard *g, const struct frame *f)
{
	struct guard_stream *s;

	if (f->type != DATA || !(f->flags & FLAG_END_STREAM))
		return;
	s = stream_find(g, f->id);
	if (s)
		stream_end(g, s, true);
}

/* ---- the server's frames ---- */

static void on_server_frame(struct guard *g, const struct frame *f)
{
	struct guard_stream *s;

	if (f->type != DATA && f->type != HEADERS && f->type != RST_STREAM)
		return;
	if (f->type != RST_STREAM)
		g->progress++;
	s = stream_find(g, f->id);
	if (!s)
		return;
	if (f->type == RST_STREAM)
		stream_remove(g, s);
	else if (f->flags & FLAG_END_STREAM)
		stream_end(g, s, false);
}

/* Resets that the client made the server send (malformed frames on a stream) count as its own:
 * PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR. */
static void on_server_reset(struct guard *g, uint32_t code)
{
	if (code == 1 || code == 3 || code == 5 || code == 6)
		(void)count_reset(g);
}

/* ---- both ---- */

static struct frame frame_of(const uint8_t h[HEAD_LEN])
{
	return (struct frame){
		.len = (uint32_t)h[0] << 16 | (uint32_t)h[1] << 8 | h[2],
		.type = h[3],
		.flags = h[4],
		.id = ((uint32_t)h[5] << 24 | (uint32_t)h[6] << 16 | (uint32_t)h[7] << 8 | h[8]) &
		      0x7fffffff,
	};
}

/* Gathers the frame's header. True when it is complete. */
static bool take_head(struct guard_half *h, const uint8_t **p, size_t *n)
{
	size_t want = (size_t)HEAD_LEN - h->n_head;
	size_t part = *n < want ? *n : want;

	memcpy(h->head + h->n_head, *p, part);
	h->n_head = (uint8_t)(h->n_head + part);
	*p += part;
	*n -= part;
	return h->n_head == HEAD_LEN;
}

static enum guard_fault take_preface(struct guard *g, const uint8_t **p, size_t *n)
{
	while (g->preface<GUARD_PREFACE_LEN && * n> 0) {
		if (**p != (uint8_t)preface[g->preface])
			return GUARD_PREFACE;
		g->preface++;
		(*p)++;
		(*n)--;
	}
	return GUARD_FINE;
}

enum guard_fault guard_client(struct guard *g, struct bytes b, int64_t now_ms)
{
	struct guard_half *h = &g->client;
	const uint8_t *p = b.p;
	size_t n = b.n;
	enum guard_fault r;

	new_second(g, now_ms);
	if (g->resets > DOOR_RESETS_PER_SECOND)
		return GUARD_RESETS;
	if ((r = take_preface(g, &p, &n)))
		return r;
	while (n > 0) {
		struct frame f;
		size_t part;

		if (h->n_head < HEAD_LEN) {
			if (!take_head(h, &p, &n))
				break;
			f = frame_of(h->head);
			h->left = f.len;
			if ((r = on_client_frame(g, &f)))
				return r;
		}
		f = frame_of(h->head);
		part = n < h->left ? n : h->left;
		if (part > 0 && (r = on_client_payload(g, &f, p, part)))
			return r;
		h->left -= (uint32_t)part;
		p += part;
		n -= part;
		if (h->left > 0)
			break;
		on_client_end(g, &f);
		h->n_head = 0;
	}
	return GUARD_FINE;
}

static void look_at_reset(struct guard *g, struct guard_half *h, const uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n && h->n_seen < 4; i++, h->n_seen++) {
		h->seen = h->seen << 8 | p[i];
		if (h->n_seen == 3)
			on_server_reset(g, h->seen);
	}
}

void guard_server(struct guard *g, struct bytes b, int64_t now_ms)
{
	struct guard_half *h = &g->server;
	const uint8_t *p = b.p;
	size_t n = b.n;

	new_second(g, now_ms);
	while (n > 0) {
		size_t part;

		if (h->n_head < HEAD_LEN) {
			struct frame f;

			if (!take_head(h, &p, &n))
				return;
			f = frame_of(h->head);
			h->left = f.len;
			h->n_seen = 0;
			on_server_frame(g, &f);
		}
		part = n < h->left ? n : h->left;
		if (h->head[3] == RST_STREAM)
			look_at_reset(g, h, p, part);
		h->left -= (uint32_t)part;
		p += part;
		n -= part;
		if (h->left > 0)
			return;
		h->n_head = 0;
	}
}

struct bytes guard_preface(const struct guard *g)
{
	return bytes_of(preface, g->preface);
}

bool guard_goaway(const struct guard *g, bool calm, uint8_t ret[GUARD_GOAWAY_LEN])
{
	enum { ENHANCE_YOUR_CALM = 0xb };
	const uint8_t frame[GUARD_GOAWAY_LEN] = { 0, 0, 8, GOAWAY, 0, 0, 0, 0, 0,
		(uint8_t)(g->last_id >> 24), (uint8_t)(g->last_id >> 16),
		(uint8_t)(g->last_id >> 8), (uint8_t)g->last_id, 0, 0, 0,
		calm ? ENHANCE_YOUR_CALM : 0 };

	if (!guard_open(g) || g->server.n_head != 0)
		return false;
	memcpy(ret, frame, sizeof(frame));
	return true;
}

/*
 * The frame guard: watches both directions of one HTTP/2 connection (RFC 9113) and says when the
 * client does what no honest client does. It changes no byte and keeps no payload.
 *
 * It reads frame headers, and of DATA also the five-byte prefix of gRPC messages: C-core buffers a
 * message whole before it looks at its limit, so a length that is too large must end here.
 */
#ifndef ASSAY_LIB_DOOR_GUARD_H
#define ASSAY_LIB_DOOR_GUARD_H

#include "lib/buf.h"

enum guard_fault {
	GUARD_FINE,
	GUARD_PREFACE,      /* not HTTP/2 with prior knowledge */
	GUARD_FRAME_SIZE,   /* longer than DOOR_FRAME_MAX, or wrong for its type */
	GUARD_HEADER_BLOCK, /* longer than DOOR_HEADER_BLOCK_MAX, or in too many pieces */
	GUARD_SEQUENCE,     /* CONTINUATION without HEADERS, or something else inside a block */
	GUARD_STREAM_ID,    /* even, not growing, or not opened */
	GUARD_STREAMS,      /* more than DOOR_STREAMS_MAX open */
	GUARD_RESETS,
	GUARD_CONTROL,
	GUARD_MESSAGE, /* a gRPC message larger than allowed */
	GUARD_FAULTS,
};
const char *guard_fault_text(enum guard_fault f);

enum {
	/* On top of DOOR_STREAMS_MAX: opened before our SETTINGS had reached the client. */
	GUARD_STREAMS_SLACK = 28,
	GUARD_CONTINUATIONS_MAX = 8,
	GUARD_STREAMS_INLINE = 2,
	GUARD_PREFACE_LEN = 24,
	GUARD_GOAWAY_LEN = 17,
};

struct guard_stream {
	uint32_t id;
	uint32_t left;      /* of the message that is under way; while prefix < 5 its length so
			       far */
	uint8_t prefix;     /* bytes of the message's prefix that were seen */
	bool client_closed; /* END_STREAM was sent */
	bool server_closed;
};

/* Parser of one direction. */
struct guard_half {
	uint8_t head[9];
	uint8_t n_head; /* bytes of head that are there; 9: inside the payload */
	uint8_t n_seen; /* payload bytes looked at (of RST_STREAM: its code) */
	uint32_t left;  /* of the payload */
	uint32_t seen;
};

struct guard {
	struct guard_half client;
	struct guard_half server;
	uint32_t message_max;
	uint32_t incomplete_max; /* of incomplete, below */
	uint32_t last_id;        /* highest stream the client opened */
	uint32_t block_stream;   /* whose header block is open; 0: none */
	uint32_t block_bytes;
	uint8_t block_pieces;
	uint8_t preface; /* bytes of it seen */
	bool settings_seen;
	/* what was counted in this second */
	uint32_t second;
	uint32_t resets;
	uint32_t control;
	uint32_t progress;
	/* what was counted ever, for limits over all connections of a peer */
	uint32_t resets_ever;
	uint32_t control_ever; /* those that no progress explains */
	uint64_t incomplete;   /* announced bytes of messages that are under way */
	/* open streams, by id */
	uint16_t n_streams;
	uint16_t cap_streams;
	struct guard_stream *streams; /* few or many */
	struct guard_stream few[GUARD_STREAMS_INLINE];
};

/* message_max: bytes of one gRPC message; twice as much may be under way on one connection, unless
 * incomplete_max is set to more afterwards. */
void guard_init(struct guard *g, uint32_t message_max);
void guard_deinit(struct guard *g);

/* Bytes as they come; any cut. After a fault the connection is to be ended, and nothing of these
 * bytes may be passed on. */
enum guard_fault guard_client(struct guard *g, struct bytes b, int64_t now_ms);
void guard_server(struct guard *g, struct bytes b, int64_t now_ms);

bool guard_open(const struct guard *g); /* the preface is complete */
static inline unsigned guard_streams(const struct guard *g)
{
	return g->n_streams;
}

/* The bytes of the preface that were taken so far. */
struct bytes guard_preface(const struct guard *g);

/* A GOAWAY frame for the client: NO_ERROR, or ENHANCE_YOUR_CALM. False when one does not fit where
 * the server's bytes stop. */
bool guard_goaway(const struct guard *g, bool calm, uint8_t ret[GUARD_GOAWAY_LEN]);

#endif

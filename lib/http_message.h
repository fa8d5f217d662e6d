/*
 * One HTTP/1.1 message being read: libhttp-parser with every size bounded. No sockets, so that it
 * can be fuzzed; lib/http_server and lib/http_client feed it.
 */
#ifndef ASSAY_LIB_HTTP_MESSAGE_H
#define ASSAY_LIB_HTTP_MESSAGE_H

#include <http_parser.h>

#include "lib/http.h"

enum {
	HTTP_FIELD_NAME_MAX = 64,    /* a longer header name is none that we read */
	HTTP_INFORMATIONAL_MAX = 16, /* answers of 1xx before the real one */
};

struct http_message {
	http_parser parser;
	bool complete;
	bool keep_alive;
	int bad; /* the status to refuse with: 400, 413, 431; 0: none */
	struct buf url;
	struct buf host;
	struct buf forwarded_host;
	struct buf forwarded_proto;
	struct buf content_type; /* of a response, as retry_after */
	struct buf retry_after;
	const char *want; /* a response header whose value goes to wanted; NULL: none */
	struct buf wanted;
	struct buf body;
	/* Of a response, set before it is fed: it has no body, whatever it says (HEAD). */
	bool no_body;
	/* Takes the body of a 2xx in place of `body`. False: enough; the message is complete then,
	 * and the connection of no further use. */
	bool (*part)(void *arg, struct bytes v);
	void (*begun)(void *arg); /* with part: before the first one. NULL is fine */
	void *part_arg;
	bool head_done; /* what follows are trailers */
	bool enough;
	int informational;
	/* the header at hand */
	char field[HTTP_FIELD_NAME_MAX];
	size_t field_len;
	bool in_value;
	struct buf *value; /* where its value goes; NULL: nowhere */
	int hosts;
	/* taken apart once it is complete */
	char *path;
	char *query;
};

void http_message_init(struct http_message *m, bool request, size_t body_max);
void http_message_deinit(struct http_message *m);
/* Empties it for the next message of the connection. */
void http_message_next(struct http_message *m);
/* Takes bytes in and returns how many, fewer than there are when the message is complete or bad. */
size_t http_message_feed(struct http_message *m, struct bytes v);
/* The connection has ended: completes a response that runs until then. */
void http_message_eof(struct http_message *m);
/* What a handler gets; points into m. Only once complete and not bad. */
struct http_request http_message_request(const struct http_message *m);
const char *http_status_text(int status);

#endif

/* What the server's commands share. */
#ifndef ASSAY_SERVER_CMD_UTIL_H
#define ASSAY_SERVER_CMD_UTIL_H

#include "lib/cli.h"
#include "spire/api/types/selector.pb-c.h"
#include "spire/api/types/spiffeid.pb-c.h"
#include "spire/api/types/status.pb-c.h"

/* A SPIFFE ID as its message, which the caller frees. ERR_INVALID. */
int cmd_id(const char *text, Spire__Api__Types__SPIFFEID **ret, struct err *e) MUST_USE;
/* "type:value" each; the list is the caller's (a message that takes it frees it). */
int cmd_selectors(const struct strings *texts, Spire__Api__Types__Selector ***ret, size_t *ret_n,
	struct err *e) MUST_USE;
/* Copies, in the shape of a repeated string field. */
void cmd_strings(const struct strings *s, char ***ret, size_t *ret_n);
/* exact, any, superset, subset → the number that selector and federation matches share. */
int cmd_match(const char *text, int *ret, struct err *e) MUST_USE;
/* 32 bits of a flag's value; ERR_INVALID 'invalid value for <what>: …'. */
int cmd_int32(int64_t v, const char *what, int32_t *ret, struct err *e) MUST_USE;
/* Seconds of a duration, a fraction rounded up. */
int cmd_ttl(int64_t ns, int32_t *ret, struct err *e) MUST_USE;
/* A path that could not be opened, in SPIRE's words: "open <path>: no such file or directory". */
int cmd_read(struct cli *c, const char *path, struct buf *ret, struct err *e) MUST_USE;
/* Prints m as JSON if -output json asks for it. */
bool cmd_printed_json(struct cli *c, const void *m);

static inline void auto_cmd_free_message(void *p)
{
	ProtobufCMessage *m = *(ProtobufCMessage **)p;

	if (m)
		protobuf_c_message_free_unpacked(m, NULL);
}

#endif

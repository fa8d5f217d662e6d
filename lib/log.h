/*
 * Log: one line per event on stderr (or a file), as key=value text or JSON.
 *
 * Only the boundary logs (an RPC handler, the end of a job, a timer, main); library code returns
 * errors. Secrets, tokens and keys are never passed here. Lines that a peer can cause go through
 * log_limited().
 */
#ifndef ASSAY_LIB_LOG_H
#define ASSAY_LIB_LOG_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/err.h"

enum log_level { LOG_PANIC, LOG_FATAL, LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG, LOG_TRACE };

/* Any of "panic" … "trace", in any case ("warning" too). ERR_INVALID. */
int log_level_parse(const char *s, enum log_level *ret, struct err *e) MUST_USE;
const char *log_level_name(enum log_level l); /* lower case; LOG_WARN is "warning" */

void log_set_level(enum log_level l);
enum log_level log_level(void);
void log_set_json(bool json);
void log_set_source_location(bool on);

/* Appends to a file instead of stderr; log_reopen() opens it anew (after SIGUSR2). */
int log_set_file(const char *path, struct err *e) MUST_USE;
int log_reopen(struct err *e) MUST_USE;

/*
 * log_event(LOG_INFO, "ca", "prepared authority", "authority_id", id, "expires_at", when, NULL)
 * Pairs of strings after the message, ended by NULL; a pair whose value is NULL is left out. Safe
 * from any thread.
 */
void log_event_at(const char *file, int line, enum log_level l, const char *subsystem,
	const char *msg, ...) __attribute__((sentinel));
#define log_event(l, subsystem, ...)                                                               \
	do {                                                                                       \
		if ((l) <= log_level())                                                            \
			log_event_at(__FILE__, __LINE__, l, subsystem, __VA_ARGS__);               \
	} while (0)

/* An audit record: like an INFO event whatever the level, with type=audit. */
void log_audit(const char *msg, ...) __attribute__((sentinel));

/* True at most `burst` times per second and call site; a line about what was dropped follows by
 * itself. */
struct log_limit {
	long long second;
	int count;
	int dropped;
};
bool log_allowed(struct log_limit *l, int per_second);

/* Formats into one of a few thread-local buffers, for values: log_fmt("%d", n). */
const char *log_fmt(const char *fmt, ...) PRINTF_LIKE(1, 2);
/* The same for a point of time: RFC 3339 in UTC. */
const char *log_time(int64_t unix_seconds);

#endif

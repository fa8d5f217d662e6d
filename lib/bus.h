/*
 * D-Bus, as far as a client of one service needs it: a connection, and calls that take simple
 * arguments and give one text back. On libdbus. Everything here blocks, within its timeout: for a
 * lane or a job. A connection belongs to one thread at a time.
 */
#ifndef ASSAY_LIB_BUS_H
#define ASSAY_LIB_BUS_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/err.h"

struct bus;

/* address NULL: the system bus, at DBUS_SYSTEM_BUS_ADDRESS if that is set. ERR_UNAVAILABLE. */
int bus_open(const char *address, int timeout_ms, struct bus **ret, struct err *e) MUST_USE;
void bus_close(struct bus *b); /* NULL is fine */
bool bus_is_open(const struct bus *b);
/* Descriptors can be sent on it. */
bool bus_passes_fds(const struct bus *b);

enum bus_type { BUS_TEXT, BUS_UINT32, BUS_FD };
struct bus_arg {
	enum bus_type type;
	const char *text;
	uint32_t number;
	int fd; /* a duplicate is sent */
};
struct bus_call {
	const char *destination, *path, *interface, *method;
	struct bus_arg args[3];
	int n_args;
	int timeout_ms;
};
/* The first thing of the answer, which is a string or an object's path, or a variant of those;
 * caller frees. ERR_UNIMPLEMENTED: there is no such method. ERR_DEADLINE. ERR_INTERNAL: an error in
 * the service's words, or an answer of another form. ERR_UNAVAILABLE: the connection is gone. */
int bus_call(struct bus *b, const struct bus_call *c, char **ret, struct err *e) MUST_USE;

#endif

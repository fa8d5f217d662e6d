/*
 * Errors. Everything that can fail returns 0 or an error code, and describes the failure in a
 * caller-owned struct err with a fixed buffer, so that reporting a failure never allocates and
 * never fails itself.
 *
 * Codes are numbered as gRPC's status codes
 * (https://grpc.github.io/grpc/core/md_doc_statuscodes.html), so an error can be handed to a remote
 * caller as it is. A function's comment names the codes that its caller must handle; any other is
 * wrapped with context and passed up.
 */
#ifndef ASSAY_LIB_ERR_H
#define ASSAY_LIB_ERR_H

#include <stdarg.h>

enum err_code {
	ERR_OK = 0,
	ERR_CANCELLED = 1,
	ERR_UNKNOWN = 2,
	ERR_INVALID = 3,  /* INVALID_ARGUMENT */
	ERR_DEADLINE = 4, /* DEADLINE_EXCEEDED */
	ERR_NOT_FOUND = 5,
	ERR_EXISTS = 6,       /* ALREADY_EXISTS */
	ERR_DENIED = 7,       /* PERMISSION_DENIED */
	ERR_EXHAUSTED = 8,    /* RESOURCE_EXHAUSTED */
	ERR_PRECONDITION = 9, /* FAILED_PRECONDITION */
	ERR_ABORTED = 10,
	ERR_RANGE = 11, /* OUT_OF_RANGE */
	ERR_UNIMPLEMENTED = 12,
	ERR_INTERNAL = 13,
	ERR_UNAVAILABLE = 14,
	ERR_DATA_LOSS = 15,
	ERR_UNAUTHENTICATED = 16,
};

struct err {
	int code; /* enum err_code */
	char msg[1000];
};

#define ERR_INIT ((struct err){ .code = ERR_OK })

#define MUST_USE __attribute__((warn_unused_result))
#define PRINTF_LIKE(f, a) __attribute__((format(printf, f, a)))

/* Fills *e (which may be NULL) and returns code. A text that does not fit is cut. */
int err_set(struct err *e, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);
int err_setv(struct err *e, int code, const char *fmt, va_list ap);

/* As err_set, with ": <strerror(errno)>" appended; the code follows from errno_value (ENOENT:
 * ERR_NOT_FOUND, EACCES and EPERM: ERR_DENIED, EEXIST: ERR_EXISTS, ENOSPC and EMFILE:
 * ERR_EXHAUSTED, any other: ERR_INTERNAL). */
int err_errno(struct err *e, int errno_value, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* Puts "<text>: " in front of the message already in *e. Returns e->code, so `return err_wrap(e,
 * ...)` passes an error up. */
int err_wrap(struct err *e, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* gRPC's CamelCase name of a code ("NotFound"), as Go clients and SPIRE's tools print it. Never
 * NULL. */
const char *err_code_name(int code);

#endif

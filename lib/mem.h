/*
 * Memory: allocation that cannot fail, clean-up on scope exit, and wiping.
 *
 * When the system is out of memory the process aborts (gRPC's core does the same), so callers need
 * no error path for small allocations. A size that comes from outside must be checked against a
 * limit before it reaches these functions.
 */
#ifndef ASSAY_LIB_MEM_H
#define ASSAY_LIB_MEM_H

#include <stddef.h>
#include <stdint.h>

#include "lib/err.h"

void *xmalloc(size_t n) __attribute__((malloc, returns_nonnull));
void *xcalloc(size_t n, size_t size) __attribute__((malloc, returns_nonnull));
void *xreallocarray(void *p, size_t n, size_t size) __attribute__((returns_nonnull));
char *xstrdup(const char *s) __attribute__((malloc, returns_nonnull));
char *xstrndup(const char *s, size_t n) __attribute__((malloc, returns_nonnull));
void *xmemdup(const void *p, size_t n) __attribute__((malloc, returns_nonnull));
char *xasprintf(const char *fmt, ...) PRINTF_LIKE(1, 2) __attribute__((malloc, returns_nonnull));

/* Overwrites n bytes in a way that the compiler does not remove. */
void mem_wipe(void *p, size_t n);

/* Equal in constant time. */
int mem_equal_secret(const void *a, const void *b, size_t n);

/* Writes "prog: broken invariant ..." to stderr and aborts, in release builds too. */
_Noreturn void mem_panic(const char *file, int line, const char *what);

/* Checks an invariant of our own (never of input). */
#define INVARIANT(cond) ((cond) ? (void)0 : mem_panic(__FILE__, __LINE__, #cond))

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define container_of(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

/*
 * Clean-up at the end of the scope: `AUTO(free) char *s = ...`. The function takes the variable's
 * value; DEFINE_AUTO(fn, type) makes a function usable so, and stands in the header of the module
 * that owns the type.
 */
#define AUTO(fn) __attribute__((cleanup(auto_##fn)))
#define DEFINE_AUTO(fn, type)                                                                      \
	static inline void auto_##fn(type *p)                                                      \
	{                                                                                          \
		if (*p)                                                                            \
			fn(*p);                                                                    \
	}                                                                                          \
	struct auto_semicolon_##fn

static inline void auto_free(void *p)
{
	extern void free(void *);
	free(*(void **)p);
}

/* For `AUTO(close_fd) int fd = -1`. */
void auto_close_fd(const int *fd);

#endif

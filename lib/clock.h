/*
 * Time: wall clock and monotonic clock as distinct types, so that they cannot be mixed; both
 * replaceable in tests.
 */
#ifndef ASSAY_LIB_CLOCK_H
#define ASSAY_LIB_CLOCK_H

#include <stdbool.h>
#include <stdint.h>

/* Seconds and nanoseconds since 1970 (UTC). Certificates and claims are cut to whole seconds. */
struct wall {
	int64_t sec;
	int32_t nsec;
};

/* Nanoseconds since some fixed point; goes on while the wall clock jumps. */
struct mono {
	int64_t ns;
};

#define NS_PER_SEC INT64_C(1000000000)
#define NS_PER_MS INT64_C(1000000)

struct wall clock_wall(void);
struct mono clock_mono(void);

int64_t wall_ns(struct wall t); /* since 1970; good until 2262 */
struct wall wall_of_ns(int64_t ns);
struct wall wall_of_sec(int64_t sec);
struct wall wall_add_ns(struct wall t, int64_t ns);
int64_t wall_sub_ns(struct wall a, struct wall b); /* a - b */

/* For tests: while set, clock_wall() gives this. NULL gives the system's clock back. */
void clock_set_wall_for_test(const struct wall *t);
bool clock_is_set_for_test(void);
/* fn is called after each clock_set_wall_for_test(); lib/loop looks at its timers then. */
void clock_on_set_for_test(void (*fn)(void));

/* RFC 3339 in UTC with milliseconds, "2026-01-02T03:04:05.678Z"; cap of at least 32. */
void wall_format(struct wall t, char *ret, int cap);

#endif

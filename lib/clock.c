#include "lib/clock.h"

#include <stdio.h>
#include <time.h>

static bool fixed;
static struct wall fixed_wall;
static void (*on_set)(void);

struct wall clock_wall(void)
{
	struct timespec ts;

	if (fixed)
		return fixed_wall;
	clock_gettime(CLOCK_REALTIME, &ts);
	return (struct wall){ .sec = ts.tv_sec, .nsec = (int32_t)ts.tv_nsec };
}

struct mono clock_mono(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (struct mono){ .ns = ts.tv_sec * NS_PER_SEC + ts.tv_nsec };
}

int64_t wall_ns(struct wall t)
{
	return t.sec * NS_PER_SEC + t.nsec;
}

struct wall wall_of_ns(int64_t ns)
{
	int64_t sec = ns / NS_PER_SEC;
	int64_t rest = ns % NS_PER_SEC;

	if (rest < 0) {
		rest += NS_PER_SEC;
		sec--;
	}
	return (struct wall){ .sec = sec, .nsec = (int32_t)rest };
}

struct wall wall_of_sec(int64_t sec)
{
	return (struct wall){ .sec = sec };
}

struct wall wall_add_ns(struct wall t, int64_t ns)
{
	return wall_of_ns(wall_ns(t) + ns);
}

int64_t wall_sub_ns(struct wall a, struct wall b)
{
	return wall_ns(a) - wall_ns(b);
}

void clock_set_wall_for_test(const struct wall *t)
{
	fixed = t != NULL;
	if (t)
		fixed_wall = *t;
	if (on_set)
		on_set();
}

bool clock_is_set_for_test(void)
{
	return fixed;
}

void clock_on_set_for_test(void (*fn)(void))
{
	on_set = fn;
}

void wall_format(struct wall t, char *ret, int cap)
{
	time_t sec = t.sec;
	struct tm tm;
	char date[24];

	gmtime_r(&sec, &tm);
	strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%S", &tm);
	snprintf(ret, (size_t)cap, "%s.%03dZ", date, (int)(t.nsec / 1000000));
}

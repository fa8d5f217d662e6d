#include "lib/metrics.h"

#include <dirent.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "lib/clock.h"
#include "lib/map.h"

enum {
	LABELS_MAX = 4,
	SERIES_MAX = 1000, /* per metric; what comes after falls into "other" */
	METRICS_MAX = 500,
};

/* Upper bounds of a histogram's buckets, in seconds. */
static const double bounds[] = { 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
	0.1, 0.25, 0.5, 1, 2.5, 5, 10 };
enum { N_BOUNDS = sizeof(bounds) / sizeof(bounds[0]) };

enum kind { COUNTER, GAUGE, HISTOGRAM };

struct series {
	char *values[LABELS_MAX];
	double value; /* of a histogram: the sum */
	uint64_t buckets[N_BOUNDS + 1];
};

struct metric {
	char *name, *help;
	enum kind kind;
	char *labels[LABELS_MAX];
	size_t n_labels;
	pthread_mutex_t lock; /* of what follows */
	struct series **series;
	size_t n_series;
	struct map *by_values;
	double (*fn)(void *arg);
	void *fn_arg;
};

static struct metrics_options shape;

static pthread_mutex_t all_lock = PTHREAD_MUTEX_INITIALIZER;
static struct metric *all[METRICS_MAX];
static size_t n_all;

/* ---- making ---- */

static struct metric *find_locked(const char *name)
{
	for (size_t i = 0; i < n_all; i++)
		if (strcmp(all[i]->name, name) == 0)
			return all[i];
	return NULL;
}

/* One that exists already is given again. */
static struct metric *make(
	enum kind kind, const char *name, const char *help, const char *const *labels)
{
	struct metric *m;

	pthread_mutex_lock(&all_lock);
	m = find_locked(name);
	if (!m) {
		INVARIANT(n_all < METRICS_MAX);
		m = xcalloc(1, sizeof(*m));
		m->name = xstrdup(name);
		m->help = xstrdup(help);
		m->kind = kind;
		m->by_values = map_new();
		pthread_mutex_init(&m->lock, NULL);
		for (; labels && labels[m->n_labels]; m->n_labels++) {
			INVARIANT(m->n_labels < LABELS_MAX);
			m->labels[m->n_labels] = xstrdup(labels[m->n_labels]);
		}
		all[n_all++] = m;
	}
	INVARIANT(m->kind == kind);
	pthread_mutex_unlock(&all_lock);
	return m;
}

struct metric *metric_counter(const char *name, const char *help, const char *const *labels)
{
	return make(COUNTER, name, help, labels);
}

struct metric *metric_gauge(const char *name, const char *help, const char *const *labels)
{
	return make(GAUGE, name, help, labels);
}

struct metric *metric_histogram(const char *name, const char *help, const char *const *labels)
{
	return make(HISTOGRAM, name, help, labels);
}

static void make_fn(
	enum kind kind, const char *name, const char *help, double (*fn)(void *arg), void *arg)
{
	struct metric *m = make(kind, name, help, NULL);

	pthread_mutex_lock(&m->lock);
	m->fn = fn;
	m->fn_arg = arg;
	pthread_mutex_unlock(&m->lock);
}

void metric_gauge_fn(const char *name, const char *help, double (*fn)(void *arg), void *arg)
{
	make_fn(GAUGE, name, help, fn, arg);
}

void metric_counter_fn(const char *name, const char *help, double (*fn)(void *arg), void *arg)
{
	make_fn(COUNTER, name, help, fn, arg);
}

/* ---- counting ---- */

static void key_of(const struct metric *m, const char *const *values, struct buf *ret)
{
	for (size_t i = 0; i < m->n_labels; i++)
		buf_append(ret, values[i], strlen(values[i]) + 1);
}

/* The series with these label values; the metric is locked. */
static struct series *series_of(struct metric *m, const char *const *values)
{
	static const char *const other[LABELS_MAX] = { "other", "other", "other", "other" };
	AUTO_BUF struct buf key = BUF_INIT;
	struct series *s;

	key_of(m, values, &key);
	s = map_get(m->by_values, buf_view(&key));
	if (s)
		return s;
	if (m->n_series >= SERIES_MAX && values != other)
		return series_of(m, other);
	s = xcalloc(1, sizeof(*s));
	for (size_t i = 0; i < m->n_labels; i++)
		s->values[i] = xstrdup(values[i]);
	if (!(m->n_series & (m->n_series - 1)))
		m->series = xreallocarray(
			m->series, m->n_series ? m->n_series * 2 : 1, sizeof(struct series *));
	m->series[m->n_series++] = s;
	map_put(m->by_values, buf_view(&key), s);
	return s;
}

static struct series *lock_series(struct metric *m, va_list ap)
{
	const char *values[LABELS_MAX] = { NULL };

	for (size_t i = 0; i < m->n_labels; i++) {
		values[i] = va_arg(ap, const char *);
		if (!values[i])
			values[i] = "";
	}
	pthread_mutex_lock(&m->lock);
	return series_of(m, values);
}

void metric_add(struct metric *m, double v, ...)
{
	va_list ap;

	va_start(ap, v);
	lock_series(m, ap)->value += v;
	pthread_mutex_unlock(&m->lock);
	va_end(ap);
}

void metric_set(struct metric *m, double v, ...)
{
	va_list ap;

	va_start(ap, v);
	lock_series(m, ap)->value = v;
	pthread_mutex_unlock(&m->lock);
	va_end(ap);
}

void metric_observe(struct metric *m, double seconds, ...)
{
	struct series *s;
	size_t i = 0;
	va_list ap;

	INVARIANT(m->kind == HISTOGRAM);
	while (i < N_BOUNDS && seconds > bounds[i])
		i++;
	va_start(ap, seconds);
	s = lock_series(m, ap);
	s->value += seconds;
	s->buckets[i]++;
	pthread_mutex_unlock(&m->lock);
	va_end(ap);
}

/* ---- writing ---- */

/* https://prometheus.io/docs/instrumenting/exposition_formats/ ("Comments, help text, and type
 * information"): backslash and line feed are escaped, in label values the double quote too. */
static void put_escaped(struct buf *b, const char *s, bool quote)
{
	for (; *s; s++) {
		if (*s == '\\' || (quote && *s == '"'))
			buf_printf(b, "\\%c", *s);
		else if (*s == '\n')
			buf_str(b, "\\n");
		else
			buf_byte(b, (uint8_t)*s);
	}
}

static void put_number(struct buf *b, double v)
{
	char text[40];

	if (isnan(v) || isinf(v)) {
		buf_str(b, isnan(v) ? "NaN" : v > 0 ? "+Inf" : "-Inf");
		return;
	}
	snprintf(text, sizeof(text), "%.15g", v);
	if (strtod(text, NULL) != v)
		snprintf(text, sizeof(text), "%.17g", v);
	buf_str(b, text);
}

static bool has(const struct strings *list, const char *text)
{
	for (size_t i = 0; list && i < list->n; i++)
		if (strcmp(list->v[i], text) == 0)
			return true;
	return false;
}

static void put_label(struct buf *b, const char **sep, const char *name, const char *value)
{
	bool only_some = shape.allowed_labels && shape.allowed_labels->n;

	if (!value || has(shape.blocked_labels, name) ||
		(only_some && !has(shape.allowed_labels, name)))
		return;
	buf_printf(b, "%s%s=\"", *sep, name);
	put_escaped(b, value, true);
	buf_byte(b, '"');
	*sep = ",";
}

/* {a="x",le="0.1"}; le may be NULL. */
static void put_labels(
	struct buf *b, const struct metric *m, const struct series *s, const char *le)
{
	const char *sep = "{";

	for (size_t i = 0; i < m->n_labels; i++)
		put_label(b, &sep, m->labels[i], s->values[i]);
	put_label(b, &sep, "host", shape.host);
	put_label(b, &sep, "trust_domain", shape.trust_domain);
	if (le) {
		buf_printf(b, "%sle=\"%s\"", sep, le);
		sep = ",";
	}
	if (*sep == ',')
		buf_byte(b, '}');
}

/* Does `name` begin with `prefix`, whose dots are underscores? Its length, or 0. */
static size_t begins(const char *name, const char *prefix)
{
	size_t i = 0;

	for (; prefix[i]; i++)
		if (name[i] != (prefix[i] == '.' ? '_' : prefix[i]))
			return 0;
	return i;
}

static size_t longest(const struct strings *prefixes, const char *name)
{
	size_t best = 0;

	for (size_t i = 0; prefixes && i < prefixes->n; i++) {
		size_t n = begins(name, prefixes->v[i]);

		best = n > best ? n : best;
	}
	return best;
}

/* The name as it is written. */
static void name_of(const struct metric *m, struct buf *ret)
{
	size_t own = shape.program ? begins(m->name, shape.program) : 0;

	if (own && shape.prefix && m->name[own] == '_')
		buf_printf(ret, "%s%s", shape.prefix, m->name + own);
	else
		buf_str(ret, m->name);
}

static void put_line(struct buf *b, const struct metric *m, const struct series *s,
	const char *suffix, const char *le, double v)
{
	name_of(m, b);
	buf_str(b, suffix);
	put_labels(b, m, s, le);
	buf_byte(b, ' ');
	put_number(b, v);
	buf_byte(b, '\n');
}

static void put_histogram(struct buf *b, const struct metric *m, const struct series *s)
{
	uint64_t sum = 0;

	for (size_t i = 0; i <= N_BOUNDS; i++) {
		char le[32] = "+Inf";

		if (i < N_BOUNDS)
			snprintf(le, sizeof(le), "%g", bounds[i]);
		sum += s->buckets[i];
		put_line(b, m, s, "_bucket", le, (double)sum);
	}
	put_line(b, m, s, "_sum", NULL, s->value);
	put_line(b, m, s, "_count", NULL, (double)sum);
}

static void put_metric(struct buf *b, struct metric *m)
{
	static const char *const kinds[] = { "counter", "gauge", "histogram" };
	const struct series none = { .value = 0 };

	AUTO_BUF struct buf name = BUF_INIT;

	name_of(m, &name);
	if (longest(shape.blocked_prefixes, buf_cstr(&name)) >
		longest(shape.allowed_prefixes, buf_cstr(&name)))
		return;
	buf_printf(b, "# HELP %s ", buf_cstr(&name));
	put_escaped(b, m->help, false);
	buf_printf(b, "\n# TYPE %s %s\n", buf_cstr(&name), kinds[m->kind]);
	pthread_mutex_lock(&m->lock);
	if (m->fn)
		put_line(b, m, &none, "", NULL, m->fn(m->fn_arg));
	else if (!m->n_labels && !m->n_series && m->kind == HISTOGRAM)
		put_histogram(b, m, &none);
	else if (!m->n_labels && !m->n_series)
		put_line(b, m, &none, "", NULL, 0);
	for (size_t i = 0; i < m->n_series; i++) {
		if (m->kind == HISTOGRAM)
			put_histogram(b, m, m->series[i]);
		else
			put_line(b, m, m->series[i], "", NULL, m->series[i]->value);
	}
	pthread_mutex_unlock(&m->lock);
}

void metrics_configure(const struct metrics_options *o)
{
	shape = *o;
}

void metrics_write(struct buf *ret)
{
	size_t n;

	pthread_mutex_lock(&all_lock);
	n = n_all;
	pthread_mutex_unlock(&all_lock);
	for (size_t i = 0; i < n; i++)
		put_metric(ret, all[i]);
}

/* ---- the process ---- */

/* Field `number` (from 1) of /proc/self/stat; the name in field 2 may hold blanks. */
static double stat_field(int number)
{
	AUTO_BUF struct buf b = BUF_INIT;
	const char *p;

	if (buf_read_file(&b, "/proc/self/stat", NULL))
		return 0;
	p = strrchr(buf_cstr(&b), ')');
	for (int i = 2; p && i < number; i++)
		p = strchr(p + 1, ' ');
	return p ? strtod(p, NULL) : 0;
}

static double resident_bytes(void *arg)
{
	(void)arg;
	return stat_field(24) * (double)sysconf(_SC_PAGESIZE);
}

static double cpu_seconds(void *arg)
{
	struct timespec t = { 0 };

	(void)arg;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static double open_fds(void *arg)
{
	DIR *d = opendir("/proc/self/fd");
	double n = 0;

	(void)arg;
	if (!d)
		return 0;
	while (readdir(d))
		n++;
	closedir(d);
	return n - 3; /* ".", ".." and the folder itself */
}

static double start_time(void *arg)
{
	struct timespec up = { 0 };
	struct wall now = clock_wall();
	double started = stat_field(22) / (double)sysconf(_SC_CLK_TCK);

	(void)arg;
	clock_gettime(CLOCK_BOOTTIME, &up);
	return floor((double)now.sec + (double)now.nsec / 1e9 -
		     ((double)up.tv_sec + (double)up.tv_nsec / 1e9 - started) + 0.5);
}

void metrics_add_process(const char *program, const char *version)
{
	static const char *const labels[] = { "program", "version", NULL };

	make_fn(GAUGE, "process_resident_memory_bytes", "Resident memory.", resident_bytes, NULL);
	make_fn(COUNTER, "process_cpu_seconds_total", "User and system time.", cpu_seconds, NULL);
	make_fn(GAUGE, "process_open_fds", "Open file descriptors.", open_fds, NULL);
	make_fn(GAUGE, "process_start_time_seconds", "Start of the process, Unix seconds.",
		start_time, NULL);
	metric_set(metric_gauge("assay_build_info", "1, with what was built as labels.", labels), 1,
		program, version);
}

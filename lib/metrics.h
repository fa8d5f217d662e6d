/*
 * Metrics: counters, gauges, histograms; written out as Prometheus text (exposition format 0.0.4).
 * Counting is atomic and safe from any thread; making is for the loop thread.
 */
#ifndef ASSAY_LIB_METRICS_H
#define ASSAY_LIB_METRICS_H

#include <stdint.h>

#include "lib/buf.h"
#include "lib/entry.h"

struct metric;

/* labels: up to 4 names, NULL-terminated; the series come into being when first used, at most 1,000
 * per metric (others fall into label value "other"). */
struct metric *metric_counter(const char *name, const char *help, const char *const *labels);
struct metric *metric_gauge(const char *name, const char *help, const char *const *labels);
/* bounds in seconds are fixed: 100 us … 10 s */
struct metric *metric_histogram(const char *name, const char *help, const char *const *labels);

void metric_add(struct metric *m, double v,
	...); /* label values as const char *, as many as there are labels */
void metric_set(struct metric *m, double v, ...);
void metric_observe(struct metric *m, double seconds, ...);
/* Computed when asked for. */
void metric_gauge_fn(const char *name, const char *help, double (*fn)(void *arg), void *arg);
void metric_counter_fn(const char *name, const char *help, double (*fn)(void *arg), void *arg);

/* How they are written out, for those who have dashboards already. Borrowed, and not changed while
 * metrics are written. A metric whose name begins with one of blocked_prefixes is left out, unless
 * a longer one of allowed_prefixes says otherwise; dots in them stand for underscores.
 * allowed_labels: if there are any, no others are written; blocked_labels are not. */
struct metrics_options {
	const char *program; /* "assay_server": what prefix stands for */
	const char *prefix;  /* NULL: program */
	const char *host;    /* value of a label "host" on all; NULL: none */
	const char *trust_domain;
	const struct strings *allowed_prefixes, *blocked_prefixes, *allowed_labels, *blocked_labels;
};
void metrics_configure(const struct metrics_options *o);

void metrics_write(struct buf *ret);
/* process_resident_memory_bytes, process_cpu_seconds_total, process_open_fds,
 * process_start_time_seconds, assay_build_info. */
void metrics_add_process(const char *program, const char *version);

#endif

#include "lib/metrics.h"

#include <pthread.h>

#include "tests/test.h"

static const char *text(struct buf *b)
{
	metrics_write(b);
	return buf_cstr(b);
}

static void test_counter(void)
{
	static const char *const labels[] = { "method", "status", NULL };
	struct metric *m = metric_counter("calls_total", "Calls.\nAll of them.", labels);
	AUTO_BUF struct buf b = BUF_INIT;

	metric_add(m, 1, "Get", "OK");
	metric_add(m, 2, "Get", "OK");
	metric_add(m, 1, "a\"b\\c\n", "NotFound");
	CHECK_CONTAINS(
		text(&b), "# HELP calls_total Calls.\\nAll of them.\n# TYPE calls_total counter\n");
	CHECK_CONTAINS(buf_cstr(&b), "calls_total{method=\"Get\",status=\"OK\"} 3\n");
	CHECK_CONTAINS(
		buf_cstr(&b), "calls_total{method=\"a\\\"b\\\\c\\n\",status=\"NotFound\"} 1\n");
}

static void test_plain(void)
{
	struct metric *m = metric_counter("plain_total", "P.", NULL);
	AUTO_BUF struct buf b = BUF_INIT;
	AUTO_BUF struct buf c = BUF_INIT;

	CHECK_CONTAINS(text(&b), "\nplain_total 0\n");
	metric_add(m, 0.5);
	CHECK_CONTAINS(text(&c), "\nplain_total 0.5\n");
	CHECK(metric_counter("plain_total", "P.", NULL) == m);
}

static void test_gauge(void)
{
	static const char *const labels[] = { "kind", NULL };
	struct metric *m = metric_gauge("entries", "E.", labels);
	AUTO_BUF struct buf b = BUF_INIT;

	metric_set(m, 1e6, "x");
	metric_set(m, 1234567890123.0, "y");
	metric_add(m, -1, "x");
	CHECK_CONTAINS(text(&b), "entries{kind=\"x\"} 999999\n");
	CHECK_CONTAINS(buf_cstr(&b), "entries{kind=\"y\"} 1234567890123\n");
}

static double seven(void *arg)
{
	return *(const double *)arg;
}

static void test_gauge_fn(void)
{
	static double v = 7.25;
	AUTO_BUF struct buf b = BUF_INIT;

	metric_gauge_fn("computed", "C.", seven, &v);
	CHECK_CONTAINS(text(&b), "# TYPE computed gauge\ncomputed 7.25\n");
}

static void test_histogram(void)
{
	static const char *const labels[] = { "m", NULL };
	struct metric *m = metric_histogram("took_seconds", "T.", labels);
	AUTO_BUF struct buf b = BUF_INIT;

	metric_observe(m, 0.0001, "a");
	metric_observe(m, 0.003, "a");
	metric_observe(m, 99, "a");
	CHECK_CONTAINS(text(&b), "took_seconds_bucket{m=\"a\",le=\"0.0001\"} 1\n");
	CHECK_CONTAINS(buf_cstr(&b), "took_seconds_bucket{m=\"a\",le=\"0.0025\"} 1\n");
	CHECK_CONTAINS(buf_cstr(&b), "took_seconds_bucket{m=\"a\",le=\"0.005\"} 2\n");
	CHECK_CONTAINS(buf_cstr(&b), "took_seconds_bucket{m=\"a\",le=\"10\"} 2\n");
	CHECK_CONTAINS(buf_cstr(&b), "took_seconds_bucket{m=\"a\",le=\"+Inf\"} 3\n");
	CHECK_CONTAINS(buf_cstr(&b), "took_seconds_sum{m=\"a\"} 99.0031\n");
	CHECK_CONTAINS(buf_cstr(&b), "took_seconds_count{m=\"a\"} 3\n");
}

/* A caller who chooses label values cannot fill the memory. */
static void test_series_limit(void)
{
	static const char *const labels[] = { "who", NULL };
	struct metric *m = metric_counter("many_total", "M.", labels);
	AUTO_BUF struct buf b = BUF_INIT;
	size_t lines = 0;

	for (int i = 0; i < 5000; i++) {
		char who[16];

		snprintf(who, sizeof(who), "w%d", i);
		metric_add(m, 1, who);
	}
	for (const char *p = text(&b); (p = strstr(p, "many_total{")); p++)
		lines++;
	CHECK_INT(lines, 1001);
	CHECK_CONTAINS(buf_cstr(&b), "many_total{who=\"other\"} 4000\n");
}

static void *count(void *arg)
{
	for (int i = 0; i < 10000; i++)
		metric_add(arg, 1, "t");
	return NULL;
}

static void test_threads(void)
{
	static const char *const labels[] = { "l", NULL };
	struct metric *m = metric_counter("threads_total", "T.", labels);
	AUTO_BUF struct buf b = BUF_INIT;
	pthread_t t[4];

	for (size_t i = 0; i < ARRAY_LEN(t); i++)
		pthread_create(&t[i], NULL, count, m);
	for (size_t i = 0; i < ARRAY_LEN(t); i++)
		pthread_join(t[i], NULL);
	CHECK_CONTAINS(text(&b), "threads_total{l=\"t\"} 40000\n");
}

static double number_after(const char *text, const char *name)
{
	const char *p = strstr(text, name);

	CHECK(p);
	return strtod(p + strlen(name), NULL);
}

static void test_process(void)
{
	AUTO_BUF struct buf b = BUF_INIT;

	metrics_add_process("assay-test", "1.2");
	text(&b);
	CHECK(number_after(buf_cstr(&b), "\nprocess_resident_memory_bytes ") > 100000);
	CHECK(number_after(buf_cstr(&b), "\nprocess_open_fds ") >= 2);
	CHECK(number_after(buf_cstr(&b), "\nprocess_cpu_seconds_total ") >= 0);
	CHECK(number_after(buf_cstr(&b), "\nprocess_start_time_seconds ") > 1.6e9);
	CHECK_CONTAINS(
		buf_cstr(&b), "assay_build_info{program=\"assay-test\",version=\"1.2\"} 1\n");
	CHECK_CONTAINS(buf_cstr(&b), "# TYPE process_cpu_seconds_total counter\n");
}

static void test_shape(void)
{
	static const char *const labels[] = { "status", "kind", NULL };
	struct strings blocked = { 0 }, allowed = { 0 }, no_labels = { 0 }, only = { 0 };
	struct metrics_options o = { .program = "assay_server",
		.prefix = "spire_server",
		.host = "h\"1",
		.trust_domain = "td",
		.blocked_prefixes = &blocked,
		.allowed_prefixes = &allowed,
		.blocked_labels = &no_labels,
		.allowed_labels = &only };
	AUTO_BUF struct buf b = BUF_INIT;

	strings_add(&blocked, "spire_server.rpc");
	strings_add(&allowed, "spire_server.rpc.entry");
	strings_add(&no_labels, "kind");
	metric_add(metric_counter("assay_server_rpc_entry_x", "X.", labels), 1, "OK", "k");
	metric_add(metric_counter("assay_server_rpc_agent_x", "X.", labels), 1, "OK", "k");
	metric_add(metric_counter("assay_connections_x", "X.", NULL), 2);
	metrics_configure(&o);
	metrics_write(&b);
	CHECK_CONTAINS(buf_cstr(&b), "# HELP spire_server_rpc_entry_x X.\n");
	CHECK_CONTAINS(buf_cstr(&b),
		"spire_server_rpc_entry_x{status=\"OK\",host=\"h\\\"1\",trust_domain=\"td\"} 1\n");
	CHECK_CONTAINS(
		buf_cstr(&b), "\nassay_connections_x{host=\"h\\\"1\",trust_domain=\"td\"} 2\n");
	CHECK(!strstr(buf_cstr(&b), "rpc_agent_x"));
	strings_add(&only, "host");
	buf_reset(&b);
	metrics_write(&b);
	CHECK_CONTAINS(buf_cstr(&b), "spire_server_rpc_entry_x{host=\"h\\\"1\"} 1\n");
	strings_deinit(&blocked);
	strings_deinit(&allowed);
	strings_deinit(&no_labels);
	strings_deinit(&only);
}

TEST_MAIN(TEST(test_shape), TEST(test_counter), TEST(test_plain), TEST(test_gauge),
	TEST(test_gauge_fn), TEST(test_histogram), TEST(test_series_limit), TEST(test_threads),
	TEST(test_process))

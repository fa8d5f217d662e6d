#include "lib/log.h"

#include <jansson.h>
#include <pthread.h>

#include "lib/clock.h"
#include "tests/test.h"

static char *path;
static struct buf text = BUF_INIT;

static void begin(void)
{
	struct wall t = { .sec = 1767323045, .nsec = 678000000 };
	struct err e = ERR_INIT;

	path = xasprintf("%s/log", test_dir());
	clock_set_wall_for_test(&t);
	CHECK_OK(log_set_file(path, &e));
}

static const char *lines(void)
{
	struct err e = ERR_INIT;

	buf_reset(&text);
	CHECK_OK(buf_read_file(&text, path, &e));
	return buf_cstr(&text);
}

static void test_text(void)
{
	begin();
	log_event(LOG_INFO, "ca", "Prepared", "authority_id", "ab cd", "left_out", NULL, "n", "7",
		NULL);
	log_event(LOG_WARN, NULL, "say \"hi\"\n", "bad", "\xff\x01", "e", "", "utf", "\xc3\xa9",
		NULL);
	log_event(LOG_DEBUG, NULL, "not there", NULL);
	CHECK_STR(lines(),
		"time=\"2026-01-02T03:04:05.678Z\" level=info msg=Prepared "
		"subsystem_name=ca authority_id=\"ab cd\" n=7\n"
		"time=\"2026-01-02T03:04:05.678Z\" level=warning msg=\"say \\\"hi\\\"\\n\" "
		"bad=\"\\ufffd\\x01\" e= utf=\"\xc3\xa9\"\n");
}

static void test_json(void)
{
	json_t *j;

	begin();
	log_set_json(true);
	log_event(LOG_ERROR, "api", "it \"broke\"\x01", "k", "\xed\xa0\x80\\", "l",
		"\xf0\x9f\x98\x80", NULL);
	j = json_loads(lines(), 0, NULL);
	CHECK(j != NULL);
	CHECK_STR(json_string_value(json_object_get(j, "level")), "error");
	CHECK_STR(json_string_value(json_object_get(j, "msg")), "it \"broke\"\x01");
	CHECK_STR(json_string_value(json_object_get(j, "subsystem_name")), "api");
	CHECK_STR(json_string_value(json_object_get(j, "k")),
		"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\\");
	CHECK_STR(json_string_value(json_object_get(j, "l")), "\xf0\x9f\x98\x80");
	json_decref(j);
}

static void test_audit_and_location(void)
{
	begin();
	log_set_level(LOG_FATAL);
	log_set_source_location(true);
	log_audit("API accessed", "status", "OK", NULL);
	CHECK_STR(lines(), "time=\"2026-01-02T03:04:05.678Z\" level=info msg=\"API accessed\" "
			   "type=audit status=OK\n");
	log_event(LOG_FATAL, NULL, "x", NULL);
	CHECK_CONTAINS(lines(), "file=\"tests/unit/test_log.c:");
}

static void test_long_value(void)
{
	AUTO_BUF struct buf b = BUF_INIT;

	begin();
	log_set_json(true);
	for (int i = 0; i < 20000; i++)
		buf_byte(&b, i % 3 ? 'x' : '\n');
	log_event(LOG_INFO, NULL, buf_cstr(&b), "1", buf_cstr(&b), "2", buf_cstr(&b), "3",
		buf_cstr(&b), "4", buf_cstr(&b), "5", buf_cstr(&b), "6", buf_cstr(&b), "7",
		buf_cstr(&b), NULL);
	CHECK(strlen(lines()) < 70000 && text.p[text.len - 1] == '\n');
}

static void test_levels(void)
{
	enum log_level l = LOG_PANIC;
	struct err e = ERR_INIT;

	CHECK_OK(log_level_parse("WARNING", &l, &e));
	CHECK_INT(l, LOG_WARN);
	CHECK_OK(log_level_parse("Debug", &l, &e));
	CHECK_INT(l, LOG_DEBUG);
	CHECK_STR(log_level_name(LOG_WARN), "warning");
	CHECK_ERR(log_level_parse("loud", &l, &e), ERR_INVALID);
}

static void test_reopen(void)
{
	struct err e = ERR_INIT;
	AUTO(free) char *old = NULL;

	begin();
	log_event(LOG_INFO, NULL, "one", NULL);
	old = xasprintf("%s.1", path);
	CHECK_INT(rename(path, old), 0);
	log_event(LOG_INFO, NULL, "two", NULL);
	CHECK_OK(log_reopen(&e));
	log_event(LOG_INFO, NULL, "three", NULL);
	CHECK(!strstr(lines(), "two") && strstr(lines(), "msg=three"));
	CHECK_ERR(log_set_file("/nonexistent/x", &e), ERR_NOT_FOUND);
	log_event(LOG_INFO, NULL, "four", NULL);
	CHECK_CONTAINS(lines(), "msg=four");
}

static void test_time(void)
{
	CHECK_STR(log_time(0), "1970-01-01T00:00:00.000Z");
	CHECK_STR(log_time(1795366990), "2026-11-22T17:03:10.000Z");
}

static void test_limit(void)
{
	struct log_limit l = { 0 };
	int allowed = 0;

	begin();
	for (int i = 0; i < 1000; i++)
		allowed += log_allowed(&l, 3);
	CHECK(allowed == 3 || allowed == 6);
	l.second -= 5;
	CHECK(log_allowed(&l, 3));
	CHECK_CONTAINS(lines(), "count=99");
}

static void *writer(void *arg)
{
	for (int i = 0; i < 2000; i++)
		log_event(LOG_INFO, "t", log_fmt("%s-%d", (const char *)arg, i), "k", "v v", NULL);
	return NULL;
}

static void test_threads(void)
{
	pthread_t a, b;
	struct err e = ERR_INIT;
	size_t n = 0;

	begin();
	pthread_create(&a, NULL, writer, (void *)(uintptr_t) "a");
	pthread_create(&b, NULL, writer, (void *)(uintptr_t) "b");
	for (int i = 0; i < 50; i++)
		CHECK_OK(log_reopen(&e));
	pthread_join(a, NULL);
	pthread_join(b, NULL);
	for (const char *s = lines(); *s; s = strchr(s, '\n') + 1, n++)
		CHECK(strncmp(s, "time=\"2026", 10) == 0);
	CHECK_INT(n, 4000);
}

TEST_MAIN(TEST(test_text), TEST(test_json), TEST(test_audit_and_location), TEST(test_long_value),
	TEST(test_levels), TEST(test_reopen), TEST(test_time), TEST(test_limit), TEST(test_threads))

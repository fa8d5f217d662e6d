#include "server/reload.h"

#include "lib/log.h"
#include "tests/test.h"

static void write_conf(const char *path, const char *lines, const char *attestor)
{
	AUTO_BUF struct buf b = BUF_INIT;
	struct err e;

	buf_printf(&b,
		"server {\n trust_domain = \"td\"\n data_dir = \"%s\"\n%s}\nplugins {\n"
		" DataStore \"sql\" { plugin_data { database_type = \"sqlite3\"\n"
		"  connection_string = \"%s/datastore.sqlite3\" } }\n"
		" KeyManager \"memory\" {}\n NodeAttestor \"join_token\" {}\n%s}\n",
		test_dir(), lines, test_dir(), attestor);
	CHECK_OK(buf_write_file(buf_view(&b), path, 0600, &e));
}

static void test_reload(void)
{
	AUTO(free) char *path = xasprintf("%s/server.conf", test_dir());
	AUTO_BUF struct buf problems = BUF_INIT;
	struct server_flags f = { .config = path };
	struct loop *l = loop_new();
	struct server_options o;
	struct api a = { .loop = l };
	struct attest_options with = { .loop = l, .trust_domain = "td" };
	struct attest *first, *second;
	struct reload *r;
	struct err e;

	log_set_level(LOG_FATAL);
	write_conf(path, " log_level = \"FATAL\"\n", "");
	CHECK_OK(server_options_load(&o, &f, &problems, &e));
	o.flags = &f;
	r = reload_new(l, &o, &a);
	reload_start(r); /* too early: there is nothing to replace */
	with.config = &o;
	CHECK_OK(attest_new(&with, &first, &e));
	a.attest = first;

	/* A problem in the configuration, then one in a file that it names: nothing is taken. */
	write_conf(path, " nonsense = 1\n log_level = \"PANIC\"\n", "");
	reload_start(r);
	loop_run(l);
	CHECK(a.attest == first);
	write_conf(path, " log_level = \"PANIC\"\n",
		" NodeAttestor \"x509pop\" { plugin_data { ca_bundle_path = \"/nowhere.pem\" } "
		"}\n");
	reload_start(r);
	loop_run(l);
	CHECK(a.attest == first);
	CHECK_INT(log_level(), LOG_FATAL);

	write_conf(path, " log_level = \"PANIC\"\n", "");
	reload_start(r);
	reload_start(r);
	loop_run(l);
	second = a.attest;
	CHECK(second && second != first);
	CHECK_INT(log_level(), LOG_PANIC);
	CHECK_INT(a.launch_level, LOG_PANIC);
	reload_free(r);
	CHECK(a.attest == NULL);
	server_options_deinit(&o);
	loop_free(l);
}

TEST_MAIN(TEST(test_reload))

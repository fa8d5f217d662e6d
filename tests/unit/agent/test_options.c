#include "agent/options.h"

#include "tests/unit/config_golden.inc"

static void golden_load(const char *file, struct buf *ret)
{
	struct agent_flags f = { .config = file,
		.daemon.expand_env = strstr(file, "expand") != NULL };
	AUTO_BUF struct buf problems = BUF_INIT;
	struct agent_options o;
	struct err e;

	if (agent_options_load(&o, &f, &problems, &e)) {
		buf_printf(ret, "%s%s\n", buf_cstr(&problems), e.msg);
		return;
	}
	agent_options_print(&o, ret);
	golden_warnings(&o.daemon.warnings, ret);
	agent_options_deinit(&o);
}

static void test_golden(void)
{
	golden_all("tests/config/agent");
}

static const char minimal[] =
	"agent { trust_domain = \"example.org\" server_address = \"s\" server_port = 1\n"
	"trust_bundle_path = \"/b\" }\n"
	"plugins { KeyManager \"memory\" {} WorkloadAttestor \"unix\" {}\n"
	"NodeAttestor \"x509pop\" { plugin_data { private_key_path = \"k\" certificate_path = "
	"\"c\" }"
	" } }\n";

/* What the flags say goes before what the file says; a token decides how to attest. */
static void test_flags(void)
{
	AUTO(free) char *path = xasprintf("%s/agent.conf", test_dir());
	struct agent_flags f = { .config = path,
		.server_address = "other",
		.server_port = 99,
		.socket_path = "/s/p",
		.trust_domain = "other.org",
		.data_dir = "/d",
		.join_token = "abc",
		.trust_bundle = "/c",
		.daemon.log_level = "trace" };
	AUTO_BUF struct buf problems = BUF_INIT;
	struct agent_options o;
	struct err e;

	CHECK_OK(buf_write_file(bytes_str(minimal), path, 0600, &e));
	CHECK_OK(agent_options_load(&o, &f, &problems, &e));
	CHECK_STR(o.server_address, "other");
	CHECK_INT(o.server_port, 99);
	CHECK_STR(o.socket_path, "/s/p");
	CHECK_STR(o.trust_domain, "other.org");
	CHECK_STR(o.keys_dir, "/d");
	CHECK_STR(o.join_token, "abc");
	CHECK_STR(o.trust_bundle_path, "/c");
	CHECK_INT(o.daemon.log_level, LOG_TRACE);
	CHECK(o.attest_join_token);
	CHECK(!o.attest_x509pop);
	agent_options_deinit(&o);
	f.insecure_bootstrap = true;
	CHECK_ERR(agent_options_load(&o, &f, &problems, &e), ERR_INVALID);
	CHECK_CONTAINS(buf_cstr(&problems), "-trustBundle: only one of insecure_bootstrap or "
					    "trust_bundle_path can be specified, "
					    "not both");
	unlink(path);
	rmdir(test_dir());
}

TEST_MAIN(TEST(test_golden), TEST(test_flags))

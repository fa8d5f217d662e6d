#include "agent/reload.h"

#include "tests/test.h"

static const char plugins[] =
	"plugins {\n KeyManager \"memory\" {}\n NodeAttestor \"join_token\" {}\n"
	" WorkloadAttestor \"unix\" {}\n}\n";

/* The configuration file, with these lines of the agent's block. */
static void write_conf(const char *path, const char *lines)
{
	AUTO_BUF struct buf b = BUF_INIT;
	struct err e;

	buf_printf(&b,
		"agent {\n trust_domain = \"td\"\n server_address = \"x\"\n server_port = 1\n"
		" insecure_bootstrap = true\n%s}\n%s",
		lines, plugins);
	CHECK_OK(buf_write_file(buf_view(&b), path, 0600, &e));
}

static void read_again(struct reload *r, struct loop *l)
{
	reload_start(r);
	reload_start(r); /* a second signal meanwhile */
	loop_run(l);
}

static void test_reload(void)
{
	AUTO(free) char *path = xasprintf("%s/agent.conf", test_dir());
	AUTO_BUF struct buf problems = BUF_INIT;
	struct agent_flags f = { .config = path };
	struct loop *l = loop_new();
	struct agent_options o;
	struct api a = { .loop = l, .launch_level = LOG_FATAL };
	struct reload *r;
	struct err e;

	log_set_level(LOG_FATAL);
	write_conf(path, " log_level = \"FATAL\"\n");
	CHECK_OK(agent_options_load(&o, &f, &problems, &e));
	r = reload_new(l, &o, &a);
	read_again(r, l); /* nobody said with what it was read: nothing */
	o.flags = &f;
	a.limits = limits_new(o.rate_limits);

	write_conf(path, " nonsense = 2\n log_selectors = [\"unix\"]\n"
			 " allowed_foreign_jwt_claims = [\"iss\"]\n log_level = \"PANIC\"\n"
			 " allow_unauthenticated_verifiers = true\n"
			 " experimental { ratelimit { fetch_x509_svid = 1 } }\n");
	read_again(r, l);
	/* Nothing of it is taken. */
	CHECK_INT(o.log_selectors.n, 0);
	CHECK(!o.allow_unauthenticated_verifiers);

	write_conf(path, " log_selectors = [\"unix\"]\n data_dir = \"/elsewhere\"\n"
			 " allowed_foreign_jwt_claims = [\"iss\"]\n log_level = \"PANIC\"\n"
			 " allow_unauthenticated_verifiers = true\n"
			 " experimental { ratelimit { fetch_x509_svid = 1 } }\n");
	read_again(r, l);
	CHECK(strings_has(&o.log_selectors, "unix"));
	CHECK(strings_has(&o.allowed_foreign_jwt_claims, "iss"));
	CHECK(o.allow_unauthenticated_verifiers);
	CHECK_INT(o.rate_limits[LIMIT_FETCH_X509_SVID], 1);
	CHECK(limits_take(a.limits, LIMIT_FETCH_X509_SVID, bytes_str("x"), clock_mono()));
	CHECK(!limits_take(a.limits, LIMIT_FETCH_X509_SVID, bytes_str("x"), clock_mono()));
	CHECK_INT(log_level(), LOG_PANIC);
	CHECK_INT(a.launch_level, LOG_PANIC);
	/* What others than the loop thread read stays. */
	CHECK_STR(o.data_dir, AGENT_DATA_DEFAULT);

	/* A level that was set otherwise stays; so do the buckets. */
	log_set_level(LOG_FATAL);
	read_again(r, l);
	CHECK_INT(log_level(), LOG_FATAL);
	CHECK(!limits_take(a.limits, LIMIT_FETCH_X509_SVID, bytes_str("x"), clock_mono()));
	reload_free(r);
	reload_free(NULL);
	limits_free(a.limits);
	agent_options_deinit(&o);
	loop_free(l);
}

TEST_MAIN(TEST(test_reload))

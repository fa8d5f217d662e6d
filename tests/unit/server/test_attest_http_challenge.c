/* Node attestor http_challenge: payloads and answers, and the fetch itself over a loop. */
#include "tests/test.h"

#include "server/attest_internal.h"

struct world {
	struct server_options c;
	struct attest_options o;
	struct http_challenge *h;
	struct http_challenge_state st;
	struct buf challenge;
};

static void setup(struct world *w, const char *pattern)
{
	struct err e;

	*w = (struct world){ .challenge = BUF_INIT };
	w->c.attest_http_challenge = true;
	w->c.http_challenge_allow_non_root_ports = true;
	w->c.http_challenge_tofu = true;
	if (pattern)
		strings_add(&w->c.http_challenge_allowed_dns_patterns, pattern);
	w->o = (struct attest_options){ .trust_domain = "example.org", .config = &w->c };
	CHECK_OK(http_challenge_new(&w->o, &w->h, &e));
	w->st.config = w->h;
}

static void finish(struct world *w)
{
	http_challenge_state_deinit(&w->st);
	http_challenge_free(w->h);
	strings_deinit(&w->c.http_challenge_allowed_dns_patterns);
	buf_deinit(&w->challenge);
}

static int begin(struct world *w, const char *payload, struct err *e)
{
	http_challenge_state_deinit(&w->st);
	buf_reset(&w->challenge);
	w->st.config = w->h;
	return http_challenge_begin(&w->st, bytes_str(payload), &w->challenge, e);
}

#define P(host, agent, port)                                                                       \
	"{\"hostname\":\"" host "\",\"agentname\":\"" agent "\",\"port\":" port "}"

static void test_good(void)
{
	struct world w;
	AUTO(free) char *body = NULL, *want = NULL;
	struct err e;

	setup(&w, NULL);
	CHECK_OK(begin(&w, P("p1.example.com", "default", "8080"), &e));
	CHECK_STR(w.st.url, "http://p1.example.com:8080/.well-known/spiffe/nodeattestor/"
			    "http_challenge/default/challenge");
	CHECK_STR(w.st.agent_id, "spiffe://example.org/spire/agent/http_challenge/p1.example.com");
	CHECK_INT(w.st.selectors.n, 1);
	CHECK_STR(w.st.selectors.v[0].type, "http_challenge");
	CHECK_STR(w.st.selectors.v[0].value, "hostname:p1.example.com");
	CHECK(w.st.not_local);
	CHECK_INT(strlen(w.st.nonce), 44);
	want = xasprintf("{\"nonce\":\"%s\"}", w.st.nonce);
	CHECK_STR(buf_cstr(&w.challenge), want);
	body = xasprintf(" %s\r\n", w.st.nonce);
	CHECK_OK(http_challenge_check(&w.st, 200, bytes_str(body), &e));
	CHECK_ERR(http_challenge_check(&w.st, 404, bytes_str(body), &e), ERR_DENIED);
	body[5] ^= 1;
	CHECK_ERR(http_challenge_check(&w.st, 200, bytes_str(body), &e), ERR_DENIED);
	CHECK_CONTAINS(e.msg, "expected nonce was not found");
	CHECK_ERR(http_challenge_check(&w.st, 200, bytes_of(NULL, 0), &e), ERR_DENIED);
	finish(&w);
}

static void test_bad(void)
{
	static const struct {
		const char *payload;
		int code;
		const char *why;
	} bad[] = {
		{ "{{", ERR_INVALID, "failed to unmarshal data" },
		{ "[]", ERR_INVALID, "failed to unmarshal data" },
		{ "{}", ERR_INVALID, "port is invalid" },
		{ P("a.org", "default", "\"80\""), ERR_INVALID, "failed to unmarshal data" },
		{ P("a.org", "default", "0"), ERR_INVALID, "port is invalid" },
		{ P("a.org", "default", "65536"), ERR_INVALID, "port is invalid" },
		{ P("a.org", "", "80"), ERR_INVALID, "agent name is not valid" },
		{ P("a.org", "1a", "80"), ERR_INVALID, "agent name is not valid" },
		{ P("a.org", "a/../b", "80"), ERR_INVALID, "agent name is not valid" },
		{ P("a.org", "a23456789012345678901234567890123", "80"), ERR_INVALID,
			"agent name is not valid" },
		{ P("localhost", "a", "80"), ERR_DENIED, "localhost" },
		{ P("LocalHost.", "a", "80"), ERR_DENIED, "localhost" },
		{ P("x.localhost", "a", "80"), ERR_DENIED, "localhost" },
		{ P("", "a", "80"), ERR_INVALID, "hostname is not valid" },
		{ P("a/b", "a", "80"), ERR_INVALID, "hostname is not valid" },
		{ P("a:81", "a", "80"), ERR_INVALID, "hostname is not valid" },
		{ P("u@a", "a", "80"), ERR_INVALID, "hostname is not valid" },
		{ P("a?", "a", "80"), ERR_INVALID, "hostname is not valid" },
		{ P("a%2e", "a", "80"), ERR_INVALID, "hostname is not valid" },
		{ P("a\\u0000b", "a", "80"), ERR_INVALID, "failed to unmarshal data" },
	};
	struct world w;
	struct err e;

	setup(&w, NULL);
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		CHECK_ERR(begin(&w, bad[i].payload, &e), bad[i].code);
		CHECK_CONTAINS(e.msg, bad[i].why);
	}
	finish(&w);
}

static void test_policy(void)
{
	struct world w;
	struct err e;

	setup(&w, "^p[0-9]\\.example\\.com$");
	CHECK_OK(begin(&w, P("p1.example.com", "a", "8080"), &e));
	CHECK(w.st.not_local);
	CHECK_ERR(begin(&w, P("p1.example.com.org", "a", "8080"), &e), ERR_DENIED);
	CHECK_STR(e.msg, "the requested hostname is not allowed to connect");
	w.h->required_port = 80;
	CHECK_ERR(begin(&w, P("p1.example.com", "a", "81"), &e), ERR_INVALID);
	CHECK_STR(e.msg, "port 81 is not allowed to be used by this server");
	w.h->required_port = 0;
	w.h->allow_non_root_ports = false;
	CHECK_ERR(begin(&w, P("p1.example.com", "a", "1024"), &e), ERR_INVALID);
	CHECK_STR(e.msg, "port 1024 is not allowed to be >= 1024");
	CHECK_OK(begin(&w, P("p1.example.com", "a", "1023"), &e));
	finish(&w);
	setup(&w, "^127\\.0\\.0\\.1$");
	CHECK_OK(begin(&w, P("127.0.0.1", "a", "80"), &e));
	CHECK(!w.st.not_local);
	finish(&w);
	setup(&w, NULL);
	CHECK_OK(begin(&w, P("127.0.0.1", "a", "80"), &e));
	CHECK(w.st.not_local);
	strings_add(&w.c.http_challenge_allowed_dns_patterns, "(");
	http_challenge_free(w.h);
	w.h = NULL;
	CHECK_ERR(http_challenge_new(&w.o, &w.h, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "cannot compile allowed_dns_pattern: \"(\"");
	finish(&w);
}

/* ---- sessions ---- */

static struct loop *loop;
static struct http_server *server;
static struct attest *attest;
static struct attest_session *session;
static char *nonce;   /* of the challenge */
static char *verdict; /* the result's agent id, or the error's text */
static bool first_use, answer_well, end_early;

static void handle(void *arg, const struct http_request *rq, struct http_response *rs)
{
	(void)arg;
	CHECK_STR(rq->path, "/.well-known/spiffe/nodeattestor/http_challenge/a/challenge");
	buf_printf(&rs->body, "%s\n", answer_well ? nonce : "nonsense");
}

static void stop(void *arg)
{
	(void)arg;
	http_server_close(server);
	server = NULL;
}

static void on_step(void *arg, const struct attest_step *st, const struct err *e)
{
	(void)arg;
	if (st->challenge.n) {
		nonce = xstrndup((const char *)st->challenge.p + 10, 44);
		attest_respond(session, bytes_str("\n"));
		if (end_early) {
			attest_end(session); /* with the fetch under way */
			session = NULL;
			stop(NULL);
		}
		return;
	}
	first_use = st->first_use;
	verdict = xstrdup(e->code ? e->msg : st->agent_id);
	stop(NULL);
}

static void run(struct world *w)
{
	struct http_server_options so = { .host = "127.0.0.1", .handle = handle };
	AUTO(free) char *payload = NULL;
	struct err e;

	signal(SIGPIPE, SIG_IGN);
	verdict = NULL;
	loop = loop_new();
	w->o.loop = loop;
	CHECK_OK(http_server_open(loop, &so, &server, &e));
	CHECK_OK(attest_new(&w->o, &attest, &e));
	payload = xasprintf("{\"hostname\":\"127.0.0.1\",\"agentname\":\"a\",\"port\":%d}",
		http_server_port(server));
	CHECK_OK(attest_begin(attest, "http_challenge", bytes_str(payload), "192.0.2.1", on_step,
		NULL, &session, &e));
	loop_run(loop);
	attest_end(session);
	attest_free(attest);
	loop_free(loop);
	free(nonce);
	nonce = NULL;
}

static void test_fetch(void)
{
	struct world w;

	setup(&w, "^127\\.0\\.0\\.1$");
	answer_well = true;
	run(&w);
	CHECK_STR(verdict, "spiffe://example.org/spire/agent/http_challenge/127.0.0.1");
	CHECK(first_use);
	free(verdict);
	answer_well = false;
	run(&w);
	CHECK_STR(verdict, "nodeattestor(http_challenge): challenge verification failed: expected "
			   "nonce was not found in HTTP response");
	free(verdict);
	finish(&w);
	/* Not named by a pattern, loopback is never dialled. */
	setup(&w, NULL);
	answer_well = true;
	run(&w);
	CHECK_CONTAINS(verdict, "could not be fetched");
	free(verdict);
	finish(&w);
}

static void test_end_early(void)
{
	struct world w;

	setup(&w, "^127\\.0\\.0\\.1$");
	end_early = answer_well = true;
	run(&w);
	end_early = false;
	CHECK(verdict == NULL);
	finish(&w);
}

TEST_MAIN(
	TEST(test_good), TEST(test_bad), TEST(test_policy), TEST(test_fetch), TEST(test_end_early))

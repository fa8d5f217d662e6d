/* `api watch`: prints every update of the X509-SVIDs until it is interrupted. */
#include <signal.h>
#include <stdlib.h>

#include "agent/cmd_api.h"
#include "lib/clock.h"

struct watch {
	struct cli *cli;
	struct loop *loop;
	struct rpc_client *client;
	struct rpc_stream *stream;
	struct loop_timer *retry;
	struct backoff backoff;
	struct mono last;
	bool stopping;
	int exit_code;
};

static void open_stream(struct watch *w);

static void on_message(void *arg, struct rpc_stream *s, const ProtobufCMessage *m)
{
	struct watch *w = arg;
	struct api_svids svids = { NULL, 0 };
	struct mono now = clock_mono();
	struct err e;

	(void)s;
	backoff_reset(&w->backoff);
	if (api_svids_parse(&svids, (const X509SVIDResponse *)m, &e))
		cli_errorf(w->cli, "%s\n", e.msg);
	else
		api_svids_print(w->cli, &svids, now.ns - w->last.ns);
	fflush(cli_out(w->cli));
	w->last = now;
	api_svids_deinit(&svids);
}

static void on_ended(void *arg, struct rpc_stream *s, const struct rpc_status *st)
{
	struct watch *w = arg;
	struct err e;

	(void)s;
	w->stream = NULL;
	if (w->stopping)
		return;
	cli_rpc_error(st->code, st->message, &e);
	cli_errorf(w->cli, "%s\n", e.msg);
	/* As other clients: this one error will not go away by itself. */
	if (st->code == ERR_INVALID) {
		w->exit_code = 1;
		loop_stop(w->loop);
		return;
	}
	loop_timer_set(w->retry, backoff_next(&w->backoff));
}

static void open_stream(struct watch *w)
{
	X509SVIDRequest rq = X509_SVIDREQUEST__INIT;
	struct rpc_stream_options o = {
		.method = "/SpiffeWorkloadAPI/FetchX509SVID",
		.response = &x509_svidresponse__descriptor,
		.metadata = api_metadata(),
		.fail_fast = true,
		.message = on_message,
		.ended = on_ended,
		.arg = w,
	};

	w->stream = rpc_stream_open(w->client, &o);
	rpc_stream_send(w->stream, &rq.base);
	rpc_stream_half_close(w->stream);
}

static void on_retry(void *arg)
{
	open_stream(arg);
}

static void on_signal(void *arg, int signo)
{
	struct watch *w = arg;

	(void)signo;
	w->stopping = true;
	loop_stop(w->loop);
}

int api_watch(struct cli *c)
{
	struct watch w = { .cli = c,
		.backoff = { .first_ns = NS_PER_SEC, .max_ns = 30 * NS_PER_SEC },
		.last = clock_mono() };
	struct err e;

	if (cli_connect(c, &w.loop, &w.client, &e)) {
		cli_errorf(c, "%s\n", e.msg);
		return 1;
	}
	w.retry = loop_timer_new(w.loop, on_retry, &w);
	loop_on_signal(w.loop, SIGINT, on_signal, &w);
	loop_on_signal(w.loop, SIGTERM, on_signal, &w);
	open_stream(&w);
	loop_run(w.loop);
	w.stopping = true;
	loop_timer_free(w.retry);
	if (w.stream)
		rpc_stream_cancel(w.stream);
	return w.exit_code;
}

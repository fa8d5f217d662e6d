#include "agent/files.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "agent/files_internal.h"
#include "lib/log.h"

enum {
	DIAL_MS = 5000,
	CALL_MS = 30000,
	WATCH_FIRST_MS = 100,
	WATCH_MAX_MS = 5000,
	ONCE_FIRST_MS = 10,
	ONCE_PATIENCE_S = 300, /* without daemon_mode: for an identity that is not there yet */
	MESSAGE_MAX = 64 << 20,
};

/* Callers must send this (SPIFFE Workload API, 4.1). */
static const char *const metadata[] = { "workload.spiffe.io", "true", NULL };

void files_stop(struct files *f, int exit_code)
{
	if (f->stopping)
		return;
	f->stopping = true;
	f->exit_code = exit_code;
	loop_stop(f->loop);
}

void files_written(struct files *f)
{
	if (f->ready)
		return;
	for (size_t i = 0; i < f->n_outs; i++)
		if (f->outs[i].busy || !files_out_complete(&f->outs[i]))
			return;
	f->ready = true;
	if (f->o->daemon)
		files_say_ready();
	else
		files_stop(f, 0);
}

/* Without daemon_mode: is this failure the end? An identity may still be on its way. */
static bool is_final(const struct files *f, int code)
{
	if (f->o->daemon)
		return code == ERR_INVALID; /* as go-spiffe: it will not go away by itself */
	return code != ERR_DENIED || clock_mono().ns - f->started.ns > ONCE_PATIENCE_S * NS_PER_SEC;
}

/* ---- X.509 ---- */

static void put(struct files_out *out, enum files_kind kind, struct buf *data)
{
	struct files_slot *s = files_slot_of(out, kind);

	if (s)
		files_slot_set(out, s, data);
}

static void take_x509_of(struct files_out *out, const X509SVIDResponse *m)
{
	struct files_x509 x;
	struct err e;
	char until[40];

	if (files_x509_make(&x, out->o, m, clock_wall(), &e)) {
		log_event(LOG_ERROR, "files", "Unable to make X.509 files", "set",
			*out->o->name ? out->o->name : NULL, "error", e.msg, NULL);
		files_out_failed(out, true, NULL);
		if (!out->files->o->daemon)
			files_stop(out->files, 1);
		return;
	}
	wall_format(x.expires, until, sizeof(until));
	log_event(LOG_INFO, "files", "Received update", "spiffe_id", x.spiffe_id, "expires_at",
		until, NULL);
	files_out_expires(out, x.expires);
	put(out, FILES_SVID, &x.svid);
	put(out, FILES_KEY, &x.key);
	put(out, FILES_BUNDLE, &x.bundle);
	put(out, FILES_COMBINED, &x.combined);
	files_x509_deinit(&x);
	files_out_flush(out);
}

/* Nobody looks at the message after this. */
static void wipe_keys(const X509SVIDResponse *m)
{
	for (size_t i = 0; i < m->n_svids; i++)
		if (m->svids[i]->x509_svid_key.len)
			mem_wipe(m->svids[i]->x509_svid_key.data, m->svids[i]->x509_svid_key.len);
}

static void take_x509(struct files *f, const ProtobufCMessage *m)
{
	for (size_t i = 0; i < f->n_outs; i++)
		if (files_wants_x509(f->outs[i].o))
			take_x509_of(&f->outs[i], (const X509SVIDResponse *)m);
	wipe_keys((const X509SVIDResponse *)m);
}

/* ---- JWT bundles ---- */

static void take_jwt_bundles(struct files *f, const ProtobufCMessage *m)
{
	for (size_t i = 0; i < f->n_outs; i++) {
		struct files_out *out = &f->outs[i];
		struct files_slot *s = files_slot_of(out, FILES_JWT_BUNDLE);
		struct buf data = BUF_INIT_SECRET;
		struct err e;

		if (!s)
			continue;
		if (files_jwt_bundle_make(&data, (const JWTBundlesResponse *)m, &e)) {
			log_event(LOG_ERROR, "files", "Error writing JWT Bundle", "error", e.msg,
				NULL);
			files_out_failed(out, false, s);
			buf_deinit(&data);
			continue;
		}
		files_slot_set(out, s, &data);
		files_out_flush(out);
	}
}

/* ---- the two streams ---- */

static void on_message(void *arg, struct rpc_stream *s, const ProtobufCMessage *m)
{
	struct files_watch *w = arg;

	(void)s;
	if (w->files->stopping)
		return;
	backoff_reset(&w->backoff);
	free(w->said);
	w->said = NULL;
	w->take(w->files, m);
}

static void on_ended(void *arg, struct rpc_stream *s, const struct rpc_status *st)
{
	struct files_watch *w = arg;
	struct files *f = w->files;
	AUTO(free)
	char *text = xasprintf("%s: %s", err_code_name(st->code), st->message ? st->message : "");

	(void)s;
	w->stream = NULL;
	if (f->stopping)
		return;
	/* the same failure, attempt after attempt, is said once */
	if (!w->said || strcmp(w->said, text) != 0) {
		log_event(is_final(f, st->code) ? LOG_ERROR : LOG_WARN, "files",
			log_fmt("Error while watching %s", w->what), "error", text, NULL);
		free(w->said);
		w->said = text;
		text = NULL;
	}
	if (is_final(f, st->code))
		files_stop(f, 1);
	else
		loop_timer_set(w->timer, backoff_next(&w->backoff));
}

static void watch_open(void *arg)
{
	struct files_watch *w = arg;
	X509SVIDRequest rq = X509_SVIDREQUEST__INIT;
	JWTBundlesRequest bundles = JWTBUNDLES_REQUEST__INIT;
	struct rpc_stream_options o = {
		.method = w->method,
		.response = w->response,
		.metadata = metadata,
		.fail_fast = true,
		.message = on_message,
		.ended = on_ended,
		.arg = w,
	};

	w->stream = rpc_stream_open(w->files->client, &o);
	rpc_stream_send(w->stream,
		w->response == &x509_svidresponse__descriptor ? &rq.base : &bundles.base);
	rpc_stream_half_close(w->stream);
}

static void watch_init(struct files *f, struct files_watch *w)
{
	w->files = f;
	w->backoff = (struct backoff){ .first_ns = (f->o->daemon ? WATCH_FIRST_MS : ONCE_FIRST_MS) *
						   NS_PER_MS,
		.max_ns = WATCH_MAX_MS * NS_PER_MS };
	w->timer = loop_timer_new(f->loop, watch_open, w);
	watch_open(w);
}

/* ---- JWT-SVIDs ---- */

static void fetch_again(struct files_fetch *fe, int code, const char *why)
{
	struct files *f = fe->out->files;

	log_event(LOG_WARN, "files", "Unable to update JWT SVID", "audience",
		fe->jwt->audience.v[0], "error", why, NULL);
	if (!f->o->daemon && is_final(f, code))
		files_stop(f, 1);
	else
		loop_timer_set(fe->timer, backoff_next(&fe->backoff));
}

static void on_jwt(void *arg, const struct rpc_status *st, const ProtobufCMessage *m)
{
	struct files_fetch *fe = arg;
	struct buf data = BUF_INIT_SECRET;
	struct wall now = clock_wall();
	int64_t expires = 0;
	struct err e;
	int r;

	fe->calling = false;
	if (fe->out->files->stopping)
		return;
	if (st->code) {
		AUTO(free) char *text = xasprintf("%s: %s", err_code_name(st->code), st->message);

		fetch_again(fe, st->code, text);
		return;
	}
	r = files_jwt_make(
		&data, &expires, fe->out->o, fe->jwt, (const JWTSVIDResponse *)m, now, &e);
	if (r) {
		buf_deinit(&data);
		files_out_failed(fe->out, false, fe->slot);
		fetch_again(fe, r, e.msg);
		return;
	}
	backoff_reset(&fe->backoff);
	/* At half life, and a second: spiffe-helper's. */
	loop_timer_set(fe->timer, wall_sub_ns(wall_of_sec(expires), now) / 2 + NS_PER_SEC);
	files_slot_set(fe->out, fe->slot, &data);
	files_out_flush(fe->out);
}

static void fetch_jwt(void *arg)
{
	struct files_fetch *fe = arg;
	JWTSVIDRequest rq = JWTSVIDREQUEST__INIT;
	struct rpc_unary_options o = {
		.method = "/SpiffeWorkloadAPI/FetchJWTSVID",
		.request = &rq.base,
		.response = &jwtsvidresponse__descriptor,
		.metadata = metadata,
		.timeout_ms = CALL_MS,
		.fail_fast = true,
	};

	if (fe->calling)
		return;
	fe->calling = true;
	rq.audience = fe->jwt->audience.v;
	rq.n_audience = fe->jwt->audience.n;
	if (fe->out->o->spiffe_id)
		rq.spiffe_id = fe->out->o->spiffe_id;
	rpc_unary(fe->out->files->client, &o, on_jwt, fe);
}

static void fetches_init(struct files_out *out)
{
	size_t first = out->n_slots - out->o->n_jwts;

	out->fetches = xcalloc(out->o->n_jwts + 1, sizeof(*out->fetches));
	for (size_t i = 0; i < out->o->n_jwts; i++) {
		struct files_fetch *fe = &out->fetches[i];

		*fe = (struct files_fetch){ .out = out,
			.jwt = &out->o->jwts[i],
			.slot = &out->slots[first + i],
			.backoff = { .first_ns = (out->files->o->daemon ? 1000 : ONCE_FIRST_MS) *
						 NS_PER_MS,
				.max_ns = (out->files->o->daemon ? 60 : 5) * NS_PER_SEC } };
		fe->timer = loop_timer_new(out->files->loop, fetch_jwt, fe);
		fetch_jwt(fe);
	}
}

/* ---- all of it ---- */

static int dial(void *arg, struct dial_options *o, struct err *e)
{
	const struct files *f = arg;

	(void)e;
	*o = (struct dial_options){ .unix_path = f->o->agent_path, .timeout_ms = DIAL_MS };
	return 0;
}

static void on_signal(void *arg, int signo)
{
	(void)signo;
	files_stop(arg, 0);
}

static int open_outs(struct files *f)
{
	struct err e;

	f->outs = xcalloc(f->o->n_sets, sizeof(*f->outs));
	for (size_t i = 0; i < f->o->n_sets; i++) {
		if (files_out_init(&f->outs[i], f, &f->o->sets[i], &e)) {
			log_event(
				LOG_ERROR, "files", "Unable to use cert_dir", "error", e.msg, NULL);
			return 1;
		}
		f->n_outs++;
	}
	return 0;
}

static void begin(struct files *f)
{
	bool x509 = false, bundles = false;
	struct rpc_client_options o = {
		.dial = dial, .arg = f, .message_max = MESSAGE_MAX, .lazy = true
	};

	f->client = rpc_client_new(f->loop, &o);
	for (size_t i = 0; i < f->n_outs; i++) {
		x509 = x509 || files_wants_x509(f->outs[i].o);
		bundles = bundles || f->outs[i].o->jwt_bundle_file;
	}
	f->x509 = (struct files_watch){ .method = "/SpiffeWorkloadAPI/FetchX509SVID",
		.what = "x509 context",
		.response = &x509_svidresponse__descriptor,
		.take = take_x509 };
	f->jwt_bundles = (struct files_watch){ .method = "/SpiffeWorkloadAPI/FetchJWTBundles",
		.what = "JWT bundles",
		.response = &jwtbundles_response__descriptor,
		.take = take_jwt_bundles };
	if (x509)
		watch_init(f, &f->x509);
	if (bundles)
		watch_init(f, &f->jwt_bundles);
	for (size_t i = 0; i < f->n_outs; i++)
		fetches_init(&f->outs[i]);
	if (f->o->daemon && f->o->health)
		files_health_open(f);
}

static void end(struct files *f)
{
	f->stopping = true;
	if (f->client)
		rpc_client_free(f->client);
	if (f->health)
		http_server_close(f->health);
	loop_timer_free(f->x509.timer);
	loop_timer_free(f->jwt_bundles.timer);
	for (size_t i = 0; i < f->n_outs; i++)
		for (size_t k = 0; f->outs[i].fetches && k < f->outs[i].o->n_jwts; k++)
			loop_timer_free(f->outs[i].fetches[k].timer);
	/* A set that is being written is written to its end. */
	loop_drain(f->loop);
	for (size_t i = 0; i < f->n_outs; i++) {
		files_out_deinit(&f->outs[i]);
		free(f->outs[i].fetches);
	}
	loop_run(f->loop); /* what was closed says so */
	free(f->outs);
	free(f->x509.said);
	free(f->jwt_bundles.said);
	loop_free(f->loop);
}

int files_run(const struct files_options *o)
{
	struct files f = { .o = o, .loop = loop_new(), .started = clock_mono() };

	loop_on_signal(f.loop, SIGINT, on_signal, &f);
	loop_on_signal(f.loop, SIGTERM, on_signal, &f);
	f.exit_code = open_outs(&f);
	if (!f.exit_code) {
		log_event(LOG_INFO, "files",
			o->daemon ? "Launching daemon" : "Daemon mode disabled", "agent_address",
			o->agent_path, NULL);
		begin(&f);
		loop_run(f.loop);
		log_event(LOG_INFO, "files", "Exiting", NULL);
	}
	end(&f);
	return f.exit_code;
}

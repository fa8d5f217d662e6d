#include <stdlib.h>
#include <string.h>

#include "agent/attest_internal.h"
#include "lib/rpc.h"
#include "spiffe/workload/workload.pb-c.h"

/* The first trust from another Workload API, for instance that of the agent above in a nest. */

#define FETCH "/SpiffeWorkloadAPI/FetchX509Bundles"
#define SCHEME "unix:"

enum { DIAL_MS = 10000, FETCH_MS = 60000 };

struct bundle_fetch {
	struct loop *loop;
	char *path, *trust_domain;
	struct rpc_client *client;
	struct rpc_stream *stream;
	struct bundle *bundle;
	struct err err;
	bool cancelled, over;
	void (*done)(void *arg, struct bundle *b, const struct err *e);
	void *arg;
};

const char *workload_api_path(const char *address)
{
	if (strncmp(address, SCHEME, strlen(SCHEME)) != 0)
		return NULL;
	address += strlen(SCHEME);
	/* SPIFFE Workload Endpoint 4: "unix:///path", an absolute path without an authority. */
	if (strncmp(address, "//", 2) == 0)
		address += 2;
	return address[0] == '/' && !strpbrk(address, "?#") ? address : NULL;
}

static int is_ours(const struct bundle_fetch *f, const char *key)
{
	static const char scheme[] = "spiffe://";

	if (strncmp(key, scheme, strlen(scheme)) == 0)
		key += strlen(scheme);
	return strcmp(key, f->trust_domain) == 0;
}

static int take(struct bundle_fetch *f, struct bytes der, struct err *e)
{
	struct x509_chain roots = { 0 };
	int r = x509_chain_parse_der(&roots, der, X509_MAX_ROOTS, e);

	if (r)
		return r;
	if (roots.n == 0)
		return err_set(e, ERR_INVALID, "no certificates in it");
	f->bundle = bundle_new(f->trust_domain);
	for (size_t i = 0; i < roots.n; i++)
		bundle_add_root(f->bundle, roots.v[i], false);
	x509_chain_deinit(&roots);
	return 0;
}

static void on_message(void *arg, struct rpc_stream *s, const ProtobufCMessage *m)
{
	const X509BundlesResponse *rs = (const void *)m;
	struct bundle_fetch *f = arg;

	if (f->over)
		return;
	f->over = true;
	err_set(&f->err, ERR_NOT_FOUND, "it has no trust bundle for trust domain \"%s\"",
		f->trust_domain);
	for (size_t i = 0; i < rs->n_bundles; i++) {
		const ProtobufCBinaryData *d = &rs->bundles[i]->value;

		if (!is_ours(f, rs->bundles[i]->key))
			continue;
		f->err = ERR_INIT;
		(void)!take(f, bytes_of(d->data, d->len), &f->err);
		break;
	}
	rpc_stream_cancel(s); /* one is enough */
}

static void fetch_free(void *arg)
{
	struct bundle_fetch *f = arg;

	rpc_client_free(f->client);
	if (f->bundle)
		bundle_unref(f->bundle);
	free(f->path);
	free(f->trust_domain);
	free(f);
}

static void on_ended(void *arg, struct rpc_stream *s, const struct rpc_status *st)
{
	struct bundle_fetch *f = arg;

	(void)s;
	f->stream = NULL;
	if (!f->over)
		err_set(&f->err, st->code ? st->code : ERR_UNAVAILABLE, "%s",
			st->code ? st->message : "the stream ended without a bundle");
	if (f->err.code)
		err_wrap(&f->err, "trust_bundle_spiffe_workload_api %s", f->path);
	if (!f->cancelled)
		f->done(f->arg, f->err.code ? NULL : f->bundle, &f->err);
	/* The client is on the stack. */
	loop_post(f->loop, fetch_free, f);
}

static int dial(void *arg, struct dial_options *d, struct err *e)
{
	const struct bundle_fetch *f = arg;

	(void)e;
	d->unix_path = f->path;
	d->timeout_ms = DIAL_MS;
	return 0;
}

struct bundle_fetch *bundle_fetch_start(struct loop *l, const char *address,
	const char *trust_domain, void (*done)(void *arg, struct bundle *b, const struct err *e),
	void *arg)
{
	/* SPIFFE Workload Endpoint, 3 */
	static const char *const metadata[] = { "workload.spiffe.io", "true", NULL };
	static const X509BundlesRequest rq = X509_BUNDLES_REQUEST__INIT;
	struct bundle_fetch *f = xcalloc(1, sizeof(*f));
	const char *path = workload_api_path(address);
	struct rpc_client_options co = { .dial = dial, .arg = f, .lazy = true };
	struct rpc_stream_options so = { .method = FETCH,
		.response = &x509_bundles_response__descriptor,
		.metadata = metadata,
		.timeout_ms = FETCH_MS,
		.fail_fast = true,
		.message = on_message,
		.ended = on_ended,
		.arg = f };

	f->loop = l;
	f->path = xstrdup(path ? path : address);
	f->trust_domain = xstrdup(trust_domain);
	f->done = done;
	f->arg = arg;
	f->client = rpc_client_new(l, &co);
	f->stream = rpc_stream_open(f->client, &so);
	rpc_stream_send(f->stream, &rq.base);
	rpc_stream_half_close(f->stream);
	return f;
}

void bundle_fetch_cancel(struct bundle_fetch *f)
{
	f->cancelled = true;
	if (f->stream)
		rpc_stream_cancel(f->stream);
}

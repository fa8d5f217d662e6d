#include "server/bundle_endpoint.h"

#include <stdlib.h>
#include <string.h>

#include "lib/http.h"
#include "server/certfile.h"

struct bundle_endpoint {
	const struct api *api;
	struct http_server *http;
	struct certfile *cert; /* NULL: https_spiffe */
	int64_t hint;          /* seconds */
	struct bundle *of;     /* what the text is of */
	struct buf text;
};

static struct tls_ctx *tls(void *arg)
{
	struct bundle_endpoint *b = arg;

	return b->cert ? certfile_tls(b->cert) : server_svid_https_tls(b->api->svid);
}

/* Written anew only when the bundle has changed. */
static void refresh(struct bundle_endpoint *b, struct bundle *own)
{
	AUTO(bundle_unref) struct bundle *hinted = NULL;

	if (b->of == own)
		return;
	if (b->of)
		bundle_unref(b->of);
	b->of = bundle_ref(own);
	hinted = bundle_dup(own);
	hinted->refresh_hint = b->hint;
	buf_reset(&b->text);
	bundle_to_json(hinted, &b->text);
}

static void refuse(struct http_response *rs, int status, const char *text)
{
	rs->status = status;
	buf_str(&rs->body, text);
}

static void handle(void *arg, const struct http_request *rq, struct http_response *rs)
{
	struct bundle_endpoint *b = arg;
	struct bundle *own = api_bundle(b->api, b->api->trust_domain);

	if (strcmp(rq->method, "GET") != 0) {
		refuse(rs, 405, "405 method not allowed\n");
		rs->headers = "Allow: GET\r\n";
	} else if (strcmp(rq->path, "/") != 0) {
		refuse(rs, 404, "404 page not found\n");
	} else if (!own) {
		refuse(rs, 500, "500 unable to retrieve local bundle\n");
	} else {
		refresh(b, own);
		rs->content_type = "application/json";
		buf_bytes(&rs->body, buf_view(&b->text));
	}
}

int bundle_endpoint_open(struct loop *l, const struct server_options *o, const struct api *a,
	struct bundle_endpoint **ret, struct err *e)
{
	struct bundle_endpoint *b = xcalloc(1, sizeof(*b));
	struct http_server_options ho = { .host = o->bundle_endpoint_address,
		.port = o->bundle_endpoint_port,
		.tls = tls,
		.handle = handle,
		.arg = b };
	int r = 0;

	b->api = a;
	b->hint = o->bundle_refresh_hint_ns / NS_PER_SEC;
	b->text = BUF_INIT;
	if (o->bundle_endpoint_web)
		r = certfile_open(l, o->bundle_cert_file, o->bundle_key_file,
			o->bundle_file_sync_ns, &b->cert, e);
	if (!r)
		r = http_server_open(l, &ho, &b->http, e);
	if (r) {
		bundle_endpoint_close(b);
		return err_wrap(e, "bundle endpoint");
	}
	log_event(LOG_INFO, "bundle_endpoint", "listening", "address", ho.host, "port",
		log_fmt("%d", http_server_port(b->http)), "profile",
		b->cert ? "https_web" : "https_spiffe", NULL);
	*ret = b;
	return 0;
}

int bundle_endpoint_port(const struct bundle_endpoint *b)
{
	return http_server_port(b->http);
}

void bundle_endpoint_close(struct bundle_endpoint *b)
{
	if (!b)
		return;
	http_server_close(b->http);
	certfile_close(b->cert);
	if (b->of)
		bundle_unref(b->of);
	buf_deinit(&b->text);
	free(b);
}

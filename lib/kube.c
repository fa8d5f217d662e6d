#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "lib/kube_internal.h"

enum {
	PARSE_HERE_MAX = 128 << 10, /* a longer answer is parsed on a worker */
	RETRY_AFTER_DEFAULT_S = 1,
	RETRY_AFTER_MAX_S = 10,
};

struct kube_call {
	struct list node;
	struct kube *kube; /* NULL: cancelled, while a worker parses */
	struct http_call *http;
	struct loop_timer *timer; /* until it is sent again */
	char *method, *path, *content_type;
	struct buf body;
	struct mono until;
	bool repeatable;
	int retries;
	bool parsing; /* a worker has it */
	int status;
	struct buf answer; /* for the worker */
	json_t *object;
	void (*done)(void *arg, int status, json_t *object, const struct err *e);
	void *arg;
};

/* ---- credentials ---- */

/* Bytes of a source, as they are now. */
static int source_read(const struct kube_source *s, struct buf *ret, struct err *e)
{
	if (!s->path) {
		buf_bytes(ret, buf_view(&s->data));
		return 0;
	}
	return buf_read_file(ret, s->path, e);
}

static int load_roots(struct kube *k, struct x509_chain *ret, struct err *e)
{
	const struct kube_source *ca = &k->config.ca;
	AUTO_BUF struct buf b = BUF_INIT_MAX(KUBE_FILE_MAX);

	if (!kube_source_is(ca))
		return 0;
	if (source_read(ca, &b, e))
		return e->code;
	if (x509_chain_parse_pem(ret, buf_view(&b), X509_MAX_ROOTS, e)) {
		e->code = ERR_INVALID;
		return err_wrap(e, "%s", ca->path ? ca->path : "certificate-authority-data");
	}
	return 0;
}

static int load_tls(struct kube *k, struct tls_ctx **ret, struct err *e)
{
	const struct kube_config *c = &k->config;
	AUTO_BUF struct buf cert = BUF_INIT_MAX(KUBE_FILE_MAX), pem = BUF_INIT_SECRET;
	AUTO(key_unref) struct key *key = NULL;
	struct x509_chain chain = { 0 };
	struct tls_options t = { .alpn = "http/1.1", .allow_tls12 = true };
	int r = 0;

	pem.max = KUBE_FILE_MAX;
	if (kube_source_is(&c->cert)) {
		r = source_read(&c->cert, &cert, e);
		if (!r)
			r = source_read(&c->key, &pem, e);
		if (!r && x509_chain_parse_pem(&chain, buf_view(&cert), X509_MAX_CHAIN, e))
			r = err_wrap(
				e, "%s", c->cert.path ? c->cert.path : "client-certificate-data");
		if (!r && key_from_pem(buf_view(&pem), &key, e))
			r = err_wrap(e, "%s", c->key.path ? c->key.path : "client-key-data");
		t.chain = &chain;
		t.key = key;
	}
	if (!r)
		r = tls_ctx_new(&t, ret, e);
	x509_chain_deinit(&chain);
	return r;
}

static bool source_changed(struct kube_source *s)
{
	struct stat now;

	/* While a file is being replaced it may be away. */
	if (!s->path || stat(s->path, &now) != 0)
		return false;
	if (now.st_ino == s->seen.st_ino && now.st_dev == s->seen.st_dev &&
		now.st_size == s->seen.st_size && now.st_mtim.tv_sec == s->seen.st_mtim.tv_sec &&
		now.st_mtim.tv_nsec == s->seen.st_mtim.tv_nsec)
		return false;
	s->seen = now;
	return true;
}

/* They are looked at again whether they change or not. */
static void forget_seen(struct kube_config *c)
{
	memset(&c->ca.seen, 0, sizeof(c->ca.seen));
	memset(&c->cert.seen, 0, sizeof(c->cert.seen));
	memset(&c->key.seen, 0, sizeof(c->key.seen));
}

/* Certificates anew; what cannot be read, or does not fit together yet, leaves the old ones in use.
 */
static int refresh_certificates(struct kube *k, struct err *e)
{
	bool ca = source_changed(&k->config.ca), own = source_changed(&k->config.cert);
	struct x509_chain roots = { 0 };
	struct tls_ctx *tls = NULL;

	own |= source_changed(&k->config.key);
	if (!ca && !own && k->tls)
		return 0;
	if (load_roots(k, &roots, e) || load_tls(k, &tls, e)) {
		x509_chain_deinit(&roots);
		forget_seen(&k->config);
		return e->code;
	}
	x509_chain_deinit(&k->roots);
	k->roots = roots;
	tls_ctx_unref(k->tls);
	k->tls = tls;
	if (k->http)
		http_client_renew(k->http);
	return 0;
}

/* RFC 6750 section 2.1: b64token. Anything that is visible will do, a line's end will not. */
static bool token_fine(struct buf *b)
{
	while (b->len > 0 && isspace(b->p[b->len - 1]))
		b->p[--b->len] = 0;
	for (size_t i = 0; i < b->len; i++)
		if (b->p[i] <= ' ' || b->p[i] >= 0x7f)
			return false;
	return b->len > 0;
}

static void set_authorization(struct kube *k, const char *kind, struct bytes value)
{
	buf_deinit(&k->authorization);
	k->authorization = BUF_INIT_SECRET;
	buf_printf(&k->authorization, "Accept: application/json\r\n");
	if (kind)
		buf_printf(&k->authorization, "Authorization: %s %.*s\r\n", kind, (int)value.n,
			(const char *)value.p);
}

static int refresh_token(struct kube *k, struct err *e)
{
	const struct kube_config *c = &k->config;
	AUTO_BUF struct buf b = BUF_INIT_SECRET, basic = BUF_INIT_SECRET;
	int r;

	b.max = KUBE_TOKEN_MAX;
	if (!kube_source_is(&c->token) && c->user) {
		buf_printf(&b, "%s:%s", c->user, c->password);
		base64_encode(&basic, buf_view(&b));
		set_authorization(k, "Basic", buf_view(&basic));
		return 0;
	}
	if (!kube_source_is(&c->token)) {
		set_authorization(k, NULL, (struct bytes){ 0 });
		return 0;
	}
	r = source_read(&c->token, &b, e);
	if (r && c->token_fallback.len > 0) {
		r = 0;
		buf_bytes(&b, buf_view(&c->token_fallback));
	}
	if (r)
		return r;
	if (!token_fine(&b))
		return err_set(
			e, ERR_INVALID, "%s: not a token", c->token.path ? c->token.path : "token");
	set_authorization(k, "Bearer", buf_view(&b));
	return 0;
}

const char *kube_headers(struct kube *k)
{
	struct mono now = clock_mono();
	struct err ignored = ERR_INIT;

	if (k->looked.ns == 0 || now.ns - k->looked.ns >= KUBE_TOKEN_AGE_S * NS_PER_SEC) {
		k->looked = now;
		(void)!refresh_certificates(k, &ignored);
		(void)!refresh_token(k, &ignored);
	}
	return buf_cstr(&k->authorization);
}

void kube_distrust(struct kube *k)
{
	k->looked.ns = 0;
}

static struct tls_ctx *next_tls(void *arg)
{
	struct kube *k = arg;

	return tls_ctx_ref(k->tls);
}

static int verify_ca(void *arg, const struct x509_chain *peer, struct err *e)
{
	struct kube *k = arg;
	const struct kube_config *c = &k->config;

	return tls_verify_host(peer, &k->roots, c->tls_server_name ? c->tls_server_name : k->host,
		clock_wall(), e);
}

/* insecure-skip-tls-verify: whoever wrote the file wants it so. */
static int verify_nothing(void *arg, const struct x509_chain *peer, struct err *e)
{
	(void)arg;
	(void)peer;
	(void)e;
	return 0;
}

/* ---- the client ---- */

static int client_begin(struct kube *k, struct err *e)
{
	struct http_client_options o = {
		.url = k->config.server,
		/* as client-go: for tests, and for "kubectl proxy" on this host */
		.allow_plain = true,
		.tls = next_tls,
		.verify = k->config.insecure              ? verify_nothing
			  : kube_source_is(&k->config.ca) ? verify_ca
							  : NULL,
		.verify_arg = k,
		.sni = k->config.tls_server_name,
		.calls_max = KUBE_CALLS_MAX,
		.arg = k,
	};

	if (refresh_certificates(k, e) || refresh_token(k, e) ||
		http_client_new(k->loop, &o, &k->http, e))
		return err_wrap(e, "%s", k->config.origin);
	k->looked = clock_mono();
	k->host = http_client_host(k->http);
	return 0;
}

int kube_new(struct loop *l, const struct kube_options *o, struct kube **ret, struct err *e)
{
	struct kube *k = xcalloc(1, sizeof(*k));
	int r = o->kubeconfig ? kube_config_read(o->kubeconfig, o->context, &k->config, e)
			      : kube_config_pod(o->service_account, &k->config, e);

	if (r) {
		free(k);
		return r;
	}
	k->loop = l;
	list_init(&k->calls);
	list_init(&k->watches);
	r = client_begin(k, e);
	if (r)
		kube_free(k);
	else
		*ret = k;
	return r;
}

void kube_free(struct kube *k)
{
	if (!k)
		return;
	list_each (c, &k->calls, struct kube_call, node)
		kube_call_cancel(c);
	list_each (w, &k->watches, struct kube_watch, node)
		kube_watch_stop(w);
	http_client_free(k->http);
	tls_ctx_unref(k->tls);
	x509_chain_deinit(&k->roots);
	buf_deinit(&k->authorization);
	kube_config_deinit(&k->config);
	free(k);
}

const char *kube_server(const struct kube *k)
{
	return k->config.server;
}

const char *kube_namespace(const struct kube *k)
{
	return k->config.namespace;
}

/* ---- calls ---- */

static int code_of(int status)
{
	switch (status) {
	case 400:
	case 422:
		return ERR_INVALID;
	case 401:
		return ERR_UNAUTHENTICATED;
	case 403:
		return ERR_DENIED;
	case 404:
		return ERR_NOT_FOUND;
	case 409:
		return ERR_EXISTS;
	case 410:
		return ERR_ABORTED;
	case 429:
		return ERR_EXHAUSTED;
	default:
		return status >= 500 ? ERR_UNAVAILABLE : ERR_INTERNAL;
	}
}

void kube_status_error(int status, json_t *object, struct err *e)
{
	const char *text = json_string_value(json_object_get(object, "message"));

	if (text && *text)
		err_set(e, code_of(status), "%s", text);
	else
		err_set(e, code_of(status), "the API server answered %d", status);
}

static void call_free(struct kube_call *c)
{
	free(c->method);
	free(c->path);
	free(c->content_type);
	buf_deinit(&c->body);
	buf_deinit(&c->answer);
	json_decref(c->object);
	loop_timer_free(c->timer);
	free(c);
}

static void call_tell(struct kube_call *c, int status, json_t *object, const struct err *e)
{
	list_remove(&c->node);
	c->done(c->arg, status, object, e);
	call_free(c);
}

static void call_parsed(struct kube_call *c)
{
	struct err e = ERR_INIT;

	if (c->status / 100 != 2)
		kube_status_error(c->status, c->object, &e);
	else if (!c->object && c->answer.len > 0)
		err_set(&e, ERR_UNAVAILABLE, "the API server's answer is not JSON");
	call_tell(c, c->status, c->object, &e);
}

static void parse_work(void *arg)
{
	struct kube_call *c = arg;

	c->object = json_loadb((const char *)c->answer.p, c->answer.len, 0, NULL);
	if (c->object && !json_is_object(c->object)) {
		json_decref(c->object);
		c->object = NULL;
	}
}

static void parse_done(void *arg)
{
	struct kube_call *c = arg;

	if (c->kube)
		call_parsed(c);
	else
		call_free(c);
}

static void call_send(struct kube_call *c);

static void call_again(void *arg)
{
	call_send(arg);
}

/* 429: nothing was done; the server says when to come again. */
static bool wait_for_turn(struct kube_call *c, const struct http_answer *a)
{
	int s = a->retry_after_s < 0 ? RETRY_AFTER_DEFAULT_S : a->retry_after_s;
	int64_t left = c->until.ns - clock_mono().ns;

	if (a->status != 429 || c->retries >= KUBE_RETRIES_MAX)
		return false;
	s = s > RETRY_AFTER_MAX_S ? RETRY_AFTER_MAX_S : s;
	if (left < (s + 1) * NS_PER_SEC)
		return false;
	c->retries++;
	if (!c->timer)
		c->timer = loop_timer_new(c->kube->loop, call_again, c);
	loop_timer_set(c->timer, s * NS_PER_SEC);
	return true;
}

static void call_answered(void *arg, const struct http_answer *a, const struct err *e)
{
	struct kube_call *c = arg;
	struct err unavailable;

	c->http = NULL;
	if (e->code) {
		unavailable = *e;
		if (e->code != ERR_EXHAUSTED && e->code != ERR_INVALID)
			unavailable.code = ERR_UNAVAILABLE;
		call_tell(c, 0, NULL, &unavailable);
		return;
	}
	if (wait_for_turn(c, a))
		return;
	if (a->status == 401)
		kube_distrust(c->kube);
	c->status = a->status;
	buf_bytes(&c->answer, a->body);
	if (a->body.n > PARSE_HERE_MAX) {
		c->parsing = true;
		loop_job(c->kube->loop, parse_work, parse_done, c);
		return;
	}
	if (a->body.n > 0)
		parse_work(c);
	call_parsed(c);
}

static void call_send(struct kube_call *c)
{
	int64_t left = (c->until.ns - clock_mono().ns) / NS_PER_MS;
	struct http_call_options o = {
		.method = c->method,
		.path = c->path,
		.headers = kube_headers(c->kube),
		.content_type = c->content_type,
		.body = buf_view(&c->body),
		.timeout_ms = left < 1 ? 1 : (int)left,
		.body_max = KUBE_BODY_MAX,
		.repeatable = c->repeatable,
		.done = call_answered,
		.arg = c,
	};

	c->http = http_call(c->kube->http, &o);
}

static int add_text(const char *p, size_t n, void *arg)
{
	return buf_append(arg, p, n) ? 0 : -1;
}

struct kube_call *kube_call(struct kube *k, const struct kube_call_options *o)
{
	struct kube_call *c = xcalloc(1, sizeof(*c));

	c->kube = k;
	c->method = xstrdup(o->method ? o->method : "GET");
	c->path = xstrdup(o->path);
	c->body = BUF_INIT_SECRET; /* a token to be reviewed, say */
	c->answer = BUF_INIT_SECRET;
	if (o->body) {
		c->content_type = xstrdup(o->content_type ? o->content_type : "application/json");
		INVARIANT(json_dump_callback(o->body, add_text, &c->body, JSON_COMPACT) == 0);
	}
	c->repeatable = o->repeatable;
	c->until = clock_mono();
	c->until.ns += (o->timeout_ms ? o->timeout_ms : KUBE_TIMEOUT_MS) * NS_PER_MS;
	c->done = o->done;
	c->arg = o->arg;
	list_append(&k->calls, &c->node);
	call_send(c);
	return c;
}

void kube_call_cancel(struct kube_call *c)
{
	if (!c)
		return;
	list_remove(&c->node);
	if (c->parsing) {
		c->kube = NULL; /* freed when the worker is done */
		return;
	}
	http_call_cancel(c->http);
	call_free(c);
}

/* ---- paths ---- */

static void put_escaped(struct buf *b, const char *s)
{
	/* RFC 3986 section 2.3: unreserved; but no segment of dots alone, which means another. */
	bool dots = s[strspn(s, ".")] == 0;

	for (; *s; s++)
		if (isalnum((unsigned char)*s) || (strchr("-._~", *s) && !dots))
			buf_byte(b, (uint8_t)*s);
		else
			buf_printf(b, "%%%02X", (unsigned char)*s);
}

char *kube_path(const char *format, ...)
{
	struct buf b = BUF_INIT;
	va_list ap;

	va_start(ap, format);
	for (const char *p = format; *p; p++) {
		if (*p != '%') {
			buf_byte(&b, (uint8_t)*p);
			continue;
		}
		p++;
		INVARIANT(*p == 's' || *p == 'd' || *p == '%');
		if (*p == 's')
			put_escaped(&b, va_arg(ap, const char *));
		else if (*p == 'd')
			buf_printf(&b, "%d", va_arg(ap, int));
		else
			buf_byte(&b, '%');
	}
	va_end(ap);
	return buf_take_str(&b);
}

/* What the server's gRPC services share: calls, audit records, messages. */
#include "server/api.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/metrics.h"

/* ---- bundles ---- */

void api_bundle_changed(struct api *a, const char *trust_domain, struct bundle *b)
{
	struct bundle *old = b ? map_put_str(a->bundles, trust_domain, bundle_ref(b))
			       : map_del_str(a->bundles, trust_domain);

	bundle_unref(old);
}

struct bundle *api_bundle(const struct api *a, const char *trust_domain)
{
	return map_get_str(a->bundles, trust_domain);
}

bool api_ready(const struct api *a, struct err *e)
{
	if (!api_bundle(a, a->trust_domain))
		return err_set(e, ERR_UNAVAILABLE, "bundle is missing") == 0;
	if (!ca_ready(a->ca) || server_svid_chain(a->svid)->n == 0)
		return err_set(e, ERR_UNAVAILABLE, "server is initializing") == 0;
	return ca_self_test(a->ca, e) == 0;
}

/* ---- calls ---- */

void api_reply(struct rpc_call *c, void *m)
{
	rpc_reply(c, m);
	protobuf_c_message_free_unpacked(m, NULL);
}

const char *api_caller(const struct rpc_call *c)
{
	const struct peer *p = rpc_call_peer(c);

	return p->id.text ? p->id.text : "";
}

/* A caller that waits for its tokens. */
struct limited {
	struct rpc_call *c;
	struct ratelimit_wait *wait;
	ProtobufCMessage *req;
	void (*next)(struct rpc_call *c, ProtobufCMessage *req);
};

static void limited_free(struct limited *l)
{
	rpc_call_set_user(l->c, NULL);
	rpc_call_unref(l->c);
	free(l);
}

static void limited_ready(void *arg)
{
	struct limited *l = arg;

	rpc_call_on_end(l->c, NULL);
	rpc_call_set_user(l->c, NULL);
	l->next(l->c, l->req);
	rpc_call_unref(l->c);
	free(l);
}

static void limited_gone(struct rpc_call *c)
{
	struct limited *l = rpc_call_user(c);

	ratelimit_cancel(l->wait);
	if (l->req)
		protobuf_c_message_free_unpacked(l->req, NULL);
	limited_free(l);
}

void api_limited(struct rpc_call *c, const ProtobufCMessage *req, enum ratelimit_kind k, size_t n,
	void (*next)(struct rpc_call *c, ProtobufCMessage *req))
{
	struct api *a = rpc_call_data(c);
	struct limited *l = xcalloc(1, sizeof(*l));
	struct err e;

	l->c = rpc_call_ref(c);
	l->next = next;
	if (ratelimit_take(a->limits, k, rpc_call_peer(c), n, rpc_call_deadline_ns(c),
		    limited_ready, l, &l->wait, &e)) {
		rpc_fail_err(c, &e);
		limited_free(l);
		return;
	}
	l->req = req ? rpc_call_take_request(c) : NULL;
	if (!l->wait) {
		l->next(c, l->req);
		rpc_call_unref(c);
		free(l);
		return;
	}
	rpc_call_set_user(c, l);
	rpc_call_on_end(c, limited_gone);
}

/* ---- names, audit, metrics ---- */

/* "/spire.api.server.agent.v1.Agent/AttestAgent": "agent.v1.Agent" and "AttestAgent". */
static char *split_method(const char *method, const char **ret_name)
{
	static const char *const prefixes[] = { "/grpc.health.v1.", "/spire.api.server.logger.v1.",
		"/spire.api.server.", "/spire.api.", "/" };
	const char *slash = strrchr(method, '/');

	*ret_name = slash ? slash + 1 : method;
	for (size_t i = 0; slash && i < ARRAY_LEN(prefixes); i++) {
		size_t n = strlen(prefixes[i]);

		if (strncmp(method, prefixes[i], n) == 0 && slash > method + n)
			return xstrndup(method + n, (size_t)(slash - method) - n);
	}
	return xstrdup("");
}

/* CamelCase to snake_case by SPIRE's rule: "BatchNewX509SVID" is batch_new_x509svid. */
static void snake(struct buf *ret, const char *s)
{
	for (size_t i = 0; s[i]; i++) {
		if (s[i] == '.') {
			buf_byte(ret, '_');
			continue;
		}
		if (isupper((unsigned char)s[i]) && i > 0 && s[i - 1] != '.' && s[i + 1] &&
			(islower((unsigned char)s[i + 1]) || islower((unsigned char)s[i - 1])))
			buf_byte(ret, '_');
		buf_byte(ret, (uint8_t)tolower((unsigned char)s[i]));
	}
}

char *api_metric_key(const char *method)
{
	const char *name;
	AUTO(free) char *service = split_method(method, &name);
	struct buf b = BUF_INIT_MAX(1024);

	snake(&b, service);
	buf_byte(&b, '_');
	snake(&b, name);
	return buf_take_str(&b);
}

/* Who calls, in the audit record's words. */
struct caller_text {
	char uid[16], gid[16], pid[16];
	const char *address, *id;
};

static void describe(const struct rpc_call *c, struct caller_text *t)
{
	const struct peer *p = rpc_call_peer(c);

	if (!p->is_unix) {
		t->address = p->address;
		t->id = p->id.text;
		return;
	}
	snprintf(t->uid, sizeof(t->uid), "%u", (unsigned)p->uid);
	snprintf(t->gid, sizeof(t->gid), "%u", (unsigned)p->gid);
	snprintf(t->pid, sizeof(t->pid), "%d", (int)p->pid);
}

static const char *some(const char *s)
{
	return s && s[0] ? s : NULL;
}

void api_audit(const struct api *a, struct rpc_call *c, int code, const char *message, ...)
{
	const char *k[API_AUDIT_FIELDS_MAX], *v[API_AUDIT_FIELDS_MAX] = { NULL }, *key, *method;
	struct caller_text t = { .id = NULL };
	AUTO(free) char *service = NULL;
	size_t n = 0;
	va_list ap;

	if (!a->audit)
		return;
	va_start(ap, message);
	while (n < API_AUDIT_FIELDS_MAX && (key = va_arg(ap, const char *))) {
		k[n] = key;
		v[n++] = va_arg(ap, const char *);
	}
	va_end(ap);
	while (n < API_AUDIT_FIELDS_MAX)
		k[n++] = "-"; /* its value is NULL: left out */
	service = split_method(rpc_call_method(c), &method);
	describe(c, &t);
	log_audit("API accessed", "service", service, "method", method, "caller_uid", some(t.uid),
		"caller_gid", some(t.gid), "caller_pid", some(t.pid), "caller_addr",
		some(t.address), "caller_id", some(t.id), "status", code ? "error" : "success",
		"status_code", code ? err_code_name(code) : NULL, "status_message",
		code ? some(message) : NULL, k[0], v[0], k[1], v[1], k[2], v[2], k[3], v[3], k[4],
		v[4], k[5], v[5], k[6], v[6], k[7], v[7], NULL);
}

/* Per method: a counter and a histogram, made when it is first called. Only methods of the table
 * come here with a name, so there are few. */
struct method_metrics {
	struct metric *calls, *elapsed;
};

static struct method_metrics *metrics_of(const char *method)
{
	static const char *const labels[] = { "status", NULL };
	static struct map *known;
	struct method_metrics *m;
	AUTO(free) char *key = NULL, *calls = NULL, *elapsed = NULL;

	if (!known)
		known = map_new();
	m = map_get_str(known, method);
	if (m)
		return m;
	key = api_metric_key(method);
	calls = xasprintf("assay_server_rpc_%s", key);
	elapsed = xasprintf("assay_server_rpc_%s_elapsed_seconds", key);
	m = xmalloc(sizeof(*m));
	m->calls = metric_counter(calls, "Calls, by gRPC status.", labels);
	m->elapsed = metric_histogram(elapsed, "Time from call to answer.", labels);
	map_put_str(known, method, m);
	return m;
}

static enum log_level level_of(int code)
{
	switch (code) {
	case ERR_OK:
	case ERR_CANCELLED:
	case ERR_UNIMPLEMENTED:
		return LOG_DEBUG;
	case ERR_INTERNAL:
	case ERR_UNKNOWN:
	case ERR_DATA_LOSS:
		return LOG_ERROR;
	default:
		return LOG_WARN;
	}
}

void api_finished(void *arg, struct rpc_call *c, const char *method, int code, const char *message,
	int64_t elapsed_ns)
{
	static struct log_limit limit;
	const struct api *a = arg;
	struct caller_text t = { .id = NULL };
	enum log_level l = level_of(code);

	if (authz_find(method)) {
		struct method_metrics *m = metrics_of(method);

		metric_add(m->calls, 1, err_code_name(code));
		metric_observe(
			m->elapsed, (double)elapsed_ns / (double)NS_PER_SEC, err_code_name(code));
	}
	if (l > log_level() && !(code && a->audit))
		return;
	describe(c, &t);
	if (l > LOG_WARN || log_allowed(&limit, 20))
		log_event(l, "api", code ? "call failed" : "call", "method", method, "code",
			code ? err_code_name(code) : NULL, "error", code ? some(message) : NULL,
			"caller_uid", some(t.uid), "caller_pid", some(t.pid), "caller_addr",
			some(t.address), "caller_id", some(t.id), "elapsed_us",
			log_fmt("%lld", (long long)(elapsed_ns / 1000)), NULL);
	if (code && code != ERR_CANCELLED)
		api_audit(a, c, code, message, NULL);
}

/* ---- messages ---- */

void *pb_new(const ProtobufCMessageDescriptor *d)
{
	void *m = xcalloc(1, d->sizeof_message);

	protobuf_c_message_init(d, m);
	return m;
}

char *pb_str(const char *s)
{
	/* The library's own empty string, which it does not free. */
	return s && s[0] ? xstrdup(s) : (char *)(uintptr_t)protobuf_c_empty_string;
}

void pb_set_bytes(ProtobufCBinaryData *ret, struct bytes v)
{
	ret->len = v.n;
	ret->data = v.n ? xmemdup(v.p, v.n) : NULL;
}

void pb_append(void *array, size_t *n, void *item)
{
	void **v;

	memcpy(&v, array, sizeof(v));
	if ((*n & (*n - 1)) == 0) { /* 0, 1, 2, 4, 8 …: full */
		v = xreallocarray(v, *n ? 2 * *n : 1, sizeof(*v));
		memcpy(array, &v, sizeof(v));
	}
	v[(*n)++] = item;
}

Spire__Api__Types__SPIFFEID *pb_id(const char *spiffe_id)
{
	Spire__Api__Types__SPIFFEID *m = pb_new(&spire__api__types__spiffeid__descriptor);
	const char *td = strncmp(spiffe_id, "spiffe://", 9) == 0 ? spiffe_id + 9 : spiffe_id;
	size_t n = strcspn(td, "/");

	m->trust_domain = xstrndup(td, n);
	m->path = pb_str(td + n);
	return m;
}

Spire__Api__Types__Status *pb_status(int code, const char *fmt, ...)
{
	Spire__Api__Types__Status *m = pb_new(&spire__api__types__status__descriptor);
	struct err e;
	va_list ap;

	va_start(ap, fmt);
	err_setv(&e, code, fmt, ap);
	va_end(ap);
	m->code = code;
	m->message = pb_str(e.msg);
	return m;
}

Spire__Api__Types__Status *pb_ok(void)
{
	return pb_status(ERR_OK, "OK");
}

Spire__Api__Types__Status *pb_status_wrap(int code, const char *text, const char *inner)
{
	if (code == ERR_NOT_FOUND || !inner || !inner[0])
		return pb_status(code, "%s", text);
	return pb_status(code, "%s: %s", text, inner);
}

/* The length of the DER element at the front, or 0. */
static size_t der_element(struct bytes v)
{
	size_t len, k;

	if (v.n < 2)
		return 0;
	if (v.p[1] < 0x80)
		return v.p[1] + (size_t)2 <= v.n ? v.p[1] + (size_t)2 : 0;
	k = v.p[1] & 0x7f;
	if (k == 0 || k > 3 || v.n < 2 + k)
		return 0;
	len = 0;
	for (size_t i = 0; i < k; i++)
		len = len << 8 | v.p[2 + i];
	return len <= v.n - 2 - k ? 2 + k + len : 0;
}

Spire__Api__Types__X509SVID *pb_x509_svid(const char *spiffe_id, const struct ca_x509_svid *s)
{
	Spire__Api__Types__X509SVID *m = pb_new(&spire__api__types__x509_svid__descriptor);
	struct bytes rest = buf_view(&s->chain);
	size_t n;

	m->id = pb_id(spiffe_id);
	m->expires_at = s->expires_at;
	m->cert_chain = NULL;
	for (size_t count = 0; (n = der_element(rest)); count++) {
		m->cert_chain = xreallocarray(m->cert_chain, count + 1, sizeof(*m->cert_chain));
		pb_set_bytes(&m->cert_chain[count], bytes_of(rest.p, n));
		m->n_cert_chain = count + 1;
		rest = bytes_of(rest.p + n, rest.n - n);
	}
	return m;
}

static void add_selectors(Spire__Api__Types__Selector ***v, size_t *n, const struct selectors *s)
{
	for (size_t i = 0; i < s->n; i++) {
		Spire__Api__Types__Selector *m = pb_new(&spire__api__types__selector__descriptor);

		m->type = pb_str(s->v[i].type);
		m->value = pb_str(s->v[i].value);
		pb_append(v, n, m);
	}
}

Spire__Api__Types__Agent *pb_agent(const struct node *n, const Spire__Api__Types__AgentMask *m)
{
	Spire__Api__Types__Agent *a = pb_new(&spire__api__types__agent__descriptor);

	a->id = pb_id(n->spiffe_id);
	if (!m || m->attestation_type)
		a->attestation_type = pb_str(n->attestation_type);
	if (!m || m->x509svid_serial_number)
		a->x509svid_serial_number = pb_str(n->serial);
	if (!m || m->x509svid_expires_at)
		a->x509svid_expires_at = n->expires_at;
	if (!m || m->selectors)
		add_selectors(&a->selectors, &a->n_selectors, &n->selectors);
	if (!m || m->banned)
		a->banned = node_banned(n);
	if (!m || m->can_reattest)
		a->can_reattest = n->can_reattest;
	if (!m || m->agent_version)
		a->agent_version = pb_str(n->agent_version);
	return a;
}

static void copy_strings(char ***v, size_t *n, const struct strings *s)
{
	for (size_t i = 0; i < s->n; i++)
		pb_append(v, n, pb_str(s->v[i]));
}

static void entry_lists(
	Spire__Api__Types__Entry *p, const struct entry *en, const Spire__Api__Types__EntryMask *m)
{
	if (!m || m->selectors)
		add_selectors(&p->selectors, &p->n_selectors, &en->selectors);
	if (!m || m->federates_with)
		copy_strings(&p->federates_with, &p->n_federates_with, &en->federates_with);
	if (!m || m->dns_names)
		copy_strings(&p->dns_names, &p->n_dns_names, &en->dns_names);
	if ((!m || m->additional_attributes) && en->has_additional_attributes) {
		p->additional_attributes =
			pb_new(&spire__api__types__entry__additional_attributes__descriptor);
		p->additional_attributes->disable_x509_svid_prefetch =
			en->disable_x509_svid_prefetch;
		p->additional_attributes->jwt_svid_include_jti = en->jwt_svid_include_jti;
	}
}

Spire__Api__Types__Entry *pb_entry(const struct entry *en, const Spire__Api__Types__EntryMask *m)
{
	Spire__Api__Types__Entry *p = pb_new(&spire__api__types__entry__descriptor);

	p->id = pb_str(en->id);
	if (!m || m->spiffe_id)
		p->spiffe_id = pb_id(en->spiffe_id);
	if (!m || m->parent_id)
		p->parent_id = pb_id(en->parent_id);
	if (!m || m->x509_svid_ttl)
		p->x509_svid_ttl = en->x509_svid_ttl;
	if (!m || m->jwt_svid_ttl)
		p->jwt_svid_ttl = en->jwt_svid_ttl;
	if (!m || m->admin)
		p->admin = en->admin;
	if (!m || m->downstream)
		p->downstream = en->downstream;
	if (!m || m->expires_at)
		p->expires_at = en->expires_at;
	if (!m || m->revision_number)
		p->revision_number = en->revision_number;
	if (!m || m->store_svid)
		p->store_svid = en->store_svid;
	if (!m || m->hint)
		p->hint = pb_str(en->hint);
	if (!m || m->created_at)
		p->created_at = en->created_at;
	entry_lists(p, en, m);
	return p;
}

Spire__Api__Types__Bundle *pb_bundle(const struct bundle *b, const Spire__Api__Types__BundleMask *m)
{
	Spire__Api__Types__Bundle *p = bundle_to_proto(b);

	if (!m)
		return p;
	if (!m->refresh_hint)
		p->refresh_hint = 0;
	if (!m->sequence_number)
		p->sequence_number = 0;
	if (!m->x509_authorities) {
		for (size_t i = 0; i < p->n_x509_authorities; i++)
			spire__api__types__x509_certificate__free_unpacked(
				p->x509_authorities[i], NULL);
		p->n_x509_authorities = 0;
	}
	if (!m->jwt_authorities) {
		for (size_t i = 0; i < p->n_jwt_authorities; i++)
			spire__api__types__jwtkey__free_unpacked(p->jwt_authorities[i], NULL);
		p->n_jwt_authorities = 0;
	}
	return p;
}

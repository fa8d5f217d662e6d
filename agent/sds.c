#include "agent/sds.h"

#include <stdlib.h>
#include <string.h>

#include "envoy/extensions/transport_sockets/tls/v3/secret.pb-c.h"
#include "envoy/extensions/transport_sockets/tls/v3/tls_spiffe_validator_config.pb-c.h"
#include "lib/der.h"
#include "lib/log.h"
#include "lib/metrics.h"
#include "lib/text.h"

#define TLS_V3(name) Envoy__Extensions__TransportSockets__Tls__V3__##name
#define TLS_V3_TYPE "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
#define VALIDATOR "envoy.tls.cert_validator.spiffe"
#define PLAIN_KEY "disable_spiffe_cert_validation"

enum {
	VALIDATOR_MAJOR = 1,
	VALIDATOR_MINOR = 17, /* the last Envoy without the validator */
	LOGGED_NAMES_MAX = 1024,
	LOGGED_REASON_MAX = 1024,
};

static struct metric *refused;

void sds_secrets_deinit(struct sds_secrets *s)
{
	for (size_t i = 0; i < s->n; i++) {
		free(s->v[i].name);
		buf_deinit(&s->v[i].body);
	}
	free(s->v);
	*s = (struct sds_secrets){ 0 };
}

void sds_query_deinit(struct sds_query *q)
{
	strings_deinit(&q->names);
	free(q->type_url);
	*q = (struct sds_query){ 0 };
}

/* ---- the request ---- */

/* As Go's strconv.ParseBool; false when it is none. */
static bool parse_bool(const char *s, bool *ret)
{
	static const char *const yes[] = { "1", "t", "T", "true", "TRUE", "True" };
	static const char *const no[] = { "0", "f", "F", "false", "FALSE", "False" };

	for (size_t i = 0; i < ARRAY_LEN(yes); i++) {
		if (strcmp(s, yes[i]) == 0 || strcmp(s, no[i]) == 0) {
			*ret = strcmp(s, yes[i]) == 0;
			return true;
		}
	}
	return false;
}

static bool bool_of(const Google__Protobuf__Value *v, bool *ret)
{
	if (v && v->kind_case == GOOGLE__PROTOBUF__VALUE__KIND_BOOL_VALUE) {
		*ret = v->bool_value;
		return true;
	}
	return v && v->kind_case == GOOGLE__PROTOBUF__VALUE__KIND_STRING_VALUE &&
	       parse_bool(v->string_value, ret);
}

static bool knows_validator(const Envoy__Config__Core__V3__Node *n)
{
	const Envoy__Type__V3__SemanticVersion *v;

	if (n->user_agent_version_type_case !=
			ENVOY__CONFIG__CORE__V3__NODE__USER_AGENT_VERSION_TYPE_USER_AGENT_BUILD_VERSION ||
		!n->user_agent_build_version->version)
		return true;
	v = n->user_agent_build_version->version;
	return v->major_number > VALIDATOR_MAJOR ||
	       (v->major_number == VALIDATOR_MAJOR && v->minor_number > VALIDATOR_MINOR);
}

bool sds_wants_plain(const struct agent_options *o, const Envoy__Config__Core__V3__Node *n)
{
	bool plain = o->sds_plain_ca;

	if (!n)
		return plain;
	for (size_t i = 0; n->metadata && i < n->metadata->n_fields; i++) {
		if (strcmp(n->metadata->fields[i]->key, PLAIN_KEY) == 0)
			bool_of(n->metadata->fields[i]->value, &plain);
	}
	return plain || !knows_validator(n);
}

static int by_name(const void *a, const void *b)
{
	char *const *x = a, *const *y = b;

	return strcmp(*x, *y);
}

int sds_query_of(const struct agent_options *o,
	const Envoy__Service__Discovery__V3__DiscoveryRequest *rq, bool plain,
	struct sds_query *ret, struct err *e)
{
	struct sds_query q = { .plain = rq->node ? sds_wants_plain(o, rq->node) : plain };
	AUTO(free) char **sorted = NULL;

	if (rq->n_resource_names > SDS_NAMES_MAX)
		return err_set(e, ERR_INVALID, "more than %d resource names", SDS_NAMES_MAX);
	sorted = xcalloc(rq->n_resource_names + 1, sizeof(*sorted));
	for (size_t i = 0; i < rq->n_resource_names; i++)
		sorted[i] = rq->resource_names[i];
	if (rq->n_resource_names)
		qsort(sorted, rq->n_resource_names, sizeof(sorted[0]), by_name);
	for (size_t i = 0; i < rq->n_resource_names; i++) {
		if (sorted[i][0] && (i == 0 || strcmp(sorted[i], sorted[i - 1]) != 0))
			strings_add(&q.names, sorted[i]);
	}
	q.type_url = xstrdup(rq->type_url);
	*ret = q;
	return 0;
}

/* ---- secrets ---- */

static void add(struct sds_secrets *to, const char *name, ProtobufCMessage *m)
{
	struct sds_secret *s;
	size_t n = protobuf_c_message_get_packed_size(m);

	to->v = xreallocarray(to->v, to->n + 1, sizeof(*to->v));
	s = &to->v[to->n++];
	s->name = xstrdup(name);
	s->body = BUF_INIT_SECRET;
	INVARIANT(buf_reserve(&s->body, n + 1));
	s->body.len = protobuf_c_message_pack(m, s->body.p);
}

static void inline_bytes(Envoy__Config__Core__V3__DataSource *d, struct bytes b)
{
	envoy__config__core__v3__data_source__init(d);
	d->specifier_case = ENVOY__CONFIG__CORE__V3__DATA_SOURCE__SPECIFIER_INLINE_BYTES;
	d->inline_bytes = (ProtobufCBinaryData){ .data = (uint8_t *)(uintptr_t)b.p, .len = b.n };
}

static void add_context(
	struct sds_secrets *to, const char *name, TLS_V3(CertificateValidationContext) * context)
{
	TLS_V3(Secret) s;

	envoy__extensions__transport_sockets__tls__v3__secret__init(&s);
	s.name = (char *)(uintptr_t)name;
	s.type_case =
		ENVOY__EXTENSIONS__TRANSPORT_SOCKETS__TLS__V3__SECRET__TYPE_VALIDATION_CONTEXT;
	s.validation_context = context;
	add(to, name, &s.base);
}

void sds_add_roots(struct sds_secrets *to, const char *name, struct bytes pem)
{
	TLS_V3(CertificateValidationContext) context;
	Envoy__Config__Core__V3__DataSource ca;

	inline_bytes(&ca, pem);
	envoy__extensions__transport_sockets__tls__v3__certificate_validation_context__init(
		&context);
	context.trusted_ca = &ca;
	add_context(to, name, &context);
}

static void add_plain(struct sds_secrets *to, const char *name, const struct bundle *b)
{
	AUTO_BUF struct buf pem = BUF_INIT;

	bundle_to_pem(b, &pem);
	sds_add_roots(to, name, buf_view(&pem));
}

static int by_domain(const void *a, const void *b)
{
	const struct bundle *const *x = a, *const *y = b;

	return strcmp((*x)->trust_domain, (*y)->trust_domain);
}

static void pack_any(const ProtobufCMessage *m, struct buf *ret)
{
	INVARIANT(buf_reserve(ret, protobuf_c_message_get_packed_size(m) + 1));
	ret->len = protobuf_c_message_pack(m, ret->p);
}

/* Sorts v. */
static void add_validator(
	struct sds_secrets *to, const char *name, const struct bundle **v, size_t n)
{
	typedef TLS_V3(SPIFFECertValidatorConfig__TrustDomain) domain;
	AUTO(free) domain *td = xcalloc(n + 1, sizeof(*td));
	AUTO(free) domain **tdp = xcalloc(n + 1, sizeof(*tdp));
	AUTO(free) Envoy__Config__Core__V3__DataSource *source = xcalloc(n + 1, sizeof(*source));
	AUTO(free) struct buf *pem = xcalloc(n + 1, sizeof(*pem));
	AUTO_BUF struct buf packed = BUF_INIT;
	TLS_V3(SPIFFECertValidatorConfig) config;
	TLS_V3(CertificateValidationContext) context;
	Envoy__Config__Core__V3__TypedExtensionConfig typed;
	Google__Protobuf__Any any = GOOGLE__PROTOBUF__ANY__INIT;

	qsort(v, n, sizeof(v[0]), by_domain);
	for (size_t i = 0; i < n; i++) {
		pem[i] = BUF_INIT;
		bundle_to_pem(v[i], &pem[i]);
		inline_bytes(&source[i], buf_view(&pem[i]));
		envoy__extensions__transport_sockets__tls__v3__spiffecert_validator_config__trust_domain__init(
			&td[i]);
		td[i].name = v[i]->trust_domain;
		td[i].trust_bundle = &source[i];
		tdp[i] = &td[i];
	}
	envoy__extensions__transport_sockets__tls__v3__spiffecert_validator_config__init(&config);
	config.n_trust_domains = n;
	config.trust_domains = tdp;
	pack_any(&config.base, &packed);
	any.type_url = (char *)(uintptr_t)TLS_V3_TYPE "SPIFFECertValidatorConfig";
	any.value = (ProtobufCBinaryData){ .data = packed.p, .len = packed.len };
	envoy__config__core__v3__typed_extension_config__init(&typed);
	typed.name = (char *)(uintptr_t)VALIDATOR;
	typed.typed_config = &any;
	envoy__extensions__transport_sockets__tls__v3__certificate_validation_context__init(
		&context);
	context.custom_validator_config = &typed;
	add_context(to, name, &context);
	for (size_t i = 0; i < n; i++)
		buf_deinit(&pem[i]);
}

static void add_bundle(struct sds_secrets *to, const char *name, const struct bundle *b, bool plain)
{
	if (plain)
		add_plain(to, name, b);
	else
		add_validator(to, name, &b, 1);
}

void sds_add_certificate(
	struct sds_secrets *to, const char *name, struct bytes chain_pem, struct bytes key_pem)
{
	TLS_V3(Secret) s;
	TLS_V3(TlsCertificate) tls;
	Envoy__Config__Core__V3__DataSource chain, key;

	inline_bytes(&chain, chain_pem);
	inline_bytes(&key, key_pem);
	envoy__extensions__transport_sockets__tls__v3__tls_certificate__init(&tls);
	tls.certificate_chain = &chain;
	tls.private_key = &key;
	envoy__extensions__transport_sockets__tls__v3__secret__init(&s);
	s.name = (char *)(uintptr_t)name;
	s.type_case = ENVOY__EXTENSIONS__TRANSPORT_SOCKETS__TLS__V3__SECRET__TYPE_TLS_CERTIFICATE;
	s.tls_certificate = &tls;
	add(to, name, &s.base);
}

static void add_identity(struct sds_secrets *to, const char *name, const struct svid *svid)
{
	AUTO_BUF struct buf chain = BUF_INIT;
	AUTO_BUF struct buf key = BUF_INIT_SECRET;
	struct bytes in = buf_view(&svid->chain), body, whole;

	while (in.n && der_get_whole(&in, DER_SEQUENCE, &body, &whole))
		pem_write(&chain, "CERTIFICATE", whole);
	pem_write(&key, "PRIVATE KEY", buf_view(&svid->key));
	sds_add_certificate(to, name, buf_view(&chain), buf_view(&key));
}

Google__Protobuf__Any sds_any(const struct sds_secret *s)
{
	Google__Protobuf__Any any = GOOGLE__PROTOBUF__ANY__INIT;

	any.type_url = (char *)(uintptr_t)TLS_V3_TYPE "Secret";
	any.value = (ProtobufCBinaryData){ .data = s->body.p, .len = s->body.len };
	return any;
}

/* ---- names to secrets ---- */

struct bundles {
	const struct bundle **v;
	size_t n;
};

static void collect(void *arg, const struct bundle *b)
{
	struct bundles *l = arg;

	l->v = xreallocarray(l->v, l->n + 1, sizeof(*l->v));
	l->v[l->n++] = b;
}

/* Names still to be answered. */
struct asked {
	const struct strings *names;
	bool *done;
	bool all;
};

static bool take(struct asked *a, const char *name)
{
	for (size_t i = 0; i < a->names->n; i++) {
		if (!a->done[i] && strcmp(a->names->v[i], name) == 0) {
			a->done[i] = true;
			return true;
		}
	}
	return a->all;
}

static bool take_named(struct asked *a, const char *name)
{
	return !a->all && take(a, name);
}

/* Of the own trust domain, one request gets one of three. */
static int select_own(struct asked *a, const struct agent_options *o, struct bundles *l, bool plain,
	struct sds_secrets *ret, struct err *e)
{
	const struct bundle *own = l->v[0];
	AUTO(free) char *id = xasprintf("spiffe://%s", own->trust_domain);

	if (take(a, id)) {
		add_bundle(ret, id, own, plain);
	} else if (take_named(a, o->sds_bundle_name)) {
		add_bundle(ret, o->sds_bundle_name, own, plain);
	} else if (take_named(a, o->sds_all_bundles_name)) {
		if (plain)
			return err_set(e, ERR_INTERNAL,
				"unable to use \"SPIFFE validator\" on Envoy below 1.17");
		add_validator(ret, o->sds_all_bundles_name, l->v, l->n);
	}
	return 0;
}

static void select_identities(
	struct view *v, struct asked *a, const struct agent_options *o, struct sds_secrets *ret)
{
	bool first = true;

	for (size_t i = 0; i < v->n_matches; i++) {
		const struct record *r = v->matches[i];

		if (!r->svid)
			continue;
		if (take(a, r->entry.spiffe_id))
			add_identity(ret, r->entry.spiffe_id, r->svid);
		else if (first && take_named(a, o->sds_svid_name))
			add_identity(ret, o->sds_svid_name, r->svid);
		first = false;
	}
}

static int check_all_taken(const struct asked *a, struct err *e)
{
	AUTO_BUF struct buf list = BUF_INIT_MAX(LOGGED_NAMES_MAX);

	for (size_t i = 0; i < a->names->n; i++) {
		AUTO(free) char *quoted = a->done[i] ? NULL : text_quote(a->names->v[i]);

		if (quoted)
			buf_printf(&list, "%s%s", list.len ? " " : "", quoted);
	}
	if (!list.len && !list.failed)
		return 0;
	return err_set(e, ERR_INVALID,
		"workload is not authorized for the requested identities [%s]", buf_cstr(&list));
}

int sds_select(struct view *v, const struct agent_options *o, const struct sds_query *q,
	struct sds_secrets *ret, struct err *e)
{
	AUTO(free) bool *done = xcalloc(q->names.n + 1, sizeof(*done));
	AUTO_SDS_SECRETS struct sds_secrets out = { 0 };
	struct asked a = { .names = &q->names, .done = done, .all = q->names.n == 0 };
	struct bundles l = { 0 };
	int r;

	view_each_bundle(v, collect, &l);
	r = l.n ? select_own(&a, o, &l, q->plain, &out, e) : 0;
	/* The list may have been sorted by name meanwhile: whatever is named is found there. */
	for (size_t i = 0; !r && i < l.n; i++) {
		AUTO(free) char *id = xasprintf("spiffe://%s", l.v[i]->trust_domain);

		if (l.v[i] != cache_bundle(v->cache) && take(&a, id))
			add_bundle(&out, id, l.v[i], q->plain);
	}
	free(l.v);
	if (r)
		return r;
	select_identities(v, &a, o, &out);
	r = check_all_taken(&a, e);
	if (r)
		return r;
	*ret = out;
	out = (struct sds_secrets){ 0 };
	return 0;
}

bool sds_pick(struct view *v, const struct agent_options *o, const char *name, bool plain,
	struct sds_secrets *ret)
{
	char *one = (char *)(uintptr_t)name;
	struct sds_query q = { .names = { .v = &one, .n = 1 }, .plain = plain };
	struct sds_secrets got;
	struct err e = ERR_INIT;

	if (sds_select(v, o, &q, &got, &e))
		return false;
	ret->v = xreallocarray(ret->v, ret->n + got.n + 1, sizeof(*ret->v));
	for (size_t i = 0; i < got.n; i++)
		ret->v[ret->n++] = got.v[i];
	free(got.v);
	return true;
}

bool sds_ready(const struct view *v, const struct agent_options *o, const struct strings *names)
{
	bool have = false;

	if (!cache_bundle(v->cache))
		return false;
	for (size_t i = 0; i < v->n_matches; i++) {
		const struct record *r = v->matches[i];

		if (r->svid)
			have = true;
		else if (!r->failed || strings_has(names, r->entry.spiffe_id))
			return false;
	}
	return have || v->n_matches == 0 || !strings_has(names, o->sds_svid_name);
}

/* ---- small things ---- */

void sds_nonce(char ret[static SDS_NONCE_SIZE])
{
	static const char digits[] = "0123456789abcdef";
	uint8_t r[(SDS_NONCE_SIZE - 1) / 2];

	crypto_random(r, sizeof(r));
	for (size_t i = 0; i < sizeof(r); i++) {
		ret[2 * i] = digits[r[i] >> 4];
		ret[2 * i + 1] = digits[r[i] & 15];
	}
	ret[SDS_NONCE_SIZE - 1] = '\0';
}

void sds_refused(struct rpc_call *c, const char *names, const char *why)
{
	static struct log_limit limit;
	const struct peer *p = rpc_call_peer(c);

	if (refused)
		metric_add(refused, 1);
	if (log_allowed(&limit, 5))
		log_event(LOG_ERROR, "sds", "Envoy refused the secrets it was sent", "pid",
			p ? log_fmt("%d", (int)p->pid) : NULL, "resource_names",
			log_fmt("%.*s", LOGGED_NAMES_MAX, names), "error",
			why ? log_fmt("%.*s", LOGGED_REASON_MAX, why)
			    : "no reason given, but another version is in force",
			NULL);
}

void sds_metrics(void)
{
	refused = metric_counter(
		"assay_agent_sds_refused_total", "Secrets that Envoy refused (NACK)", NULL);
}

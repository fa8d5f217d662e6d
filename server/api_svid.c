/*
 * Service spire.api.server.svid.v1.SVID: the signing of X509-SVIDs and JWT-SVIDs.
 *
 * A batch is authorized from memory on the loop, cut into pieces for the workers (CSR parsed, its
 * signature verified, the certificate signed and checked there), and answered when the last piece
 * is done. No step of it reads the database.
 */
#include "server/api.h"

#include <stdlib.h>
#include <string.h>

#include "lib/metrics.h"

#include "spire/api/server/svid/v1/svid.pb-c.h"

#define V1(name) Spire__Api__Server__Svid__V1__##name

enum {
	PIECE_MAX = 32, /* CSRs of one job: so that others' calls come in between */
	CSR_MAX = 16 << 10,
};

static int64_t seconds(int32_t s)
{
	return s > 0 ? s * NS_PER_SEC : 0;
}

/* Signatures made, by SPIRE's names of these metrics. */
static void count(struct metric **m, const char *name)
{
	if (!*m)
		*m = metric_counter(name, "Signatures made.", NULL);
	metric_add(*m, 1);
}

static void log_signed(const struct rpc_call *c, const char *entry_id, const char *spiffe_id,
	const struct ca_x509_svid *s)
{
	static struct metric *signatures;

	count(&signatures, "assay_server_server_ca_sign_x509_svid");
	log_event(LOG_DEBUG, "svid", "signed X509-SVID", "spiffe_id", spiffe_id, "entry_id",
		entry_id, "serial", s->serial, "expires_at", log_time(s->expires_at), "caller_id",
		api_caller(c), NULL);
}

static void audit_signed(const struct api *a, struct rpc_call *c, const char *entry_id,
	const char *spiffe_id, const struct ca_x509_svid *s)
{
	api_audit(a, c, 0, NULL, "entry_id", entry_id, "spiffe_id", spiffe_id, "serial", s->serial,
		"expires_at", log_fmt("%lld", (long long)s->expires_at), NULL);
}

/* ---- BatchNewX509SVID ---- */

/* One CSR. Inputs are the batch's own copies or in its request. */
struct item {
	const char *entry_id; /* in the request */
	struct bytes csr;     /* in the request */
	char *spiffe_id;      /* NULL: status is set already */
	struct strings dns_names;
	int64_t ttl_ns;
	struct ca_x509_svid svid;
	Spire__Api__Types__Status *status;
	Spire__Api__Types__X509SVID *message;
};

struct batch {
	struct rpc_call *c;
	struct api *api;
	ProtobufCMessage *req;
	struct ca_issuer *issuer;
	struct item *items;
	size_t n, pieces_left;
	struct wall now;
};

struct piece {
	struct batch *b;
	size_t from, to;
};

static int sign_item(struct item *it, struct ca_issuer *issuer, struct wall now, struct err *e)
{
	struct ca_x509_params p = { .spiffe_id = it->spiffe_id,
		.workload = true,
		.dns_names = (const char *const *)it->dns_names.v,
		.n_dns_names = it->dns_names.n,
		.ttl_ns = it->ttl_ns,
		.now = now };
	struct x509_csr csr;
	int r = x509_csr_parse(it->csr, &csr, e);

	if (r) {
		e->code = ERR_INVALID;
		return ERR_INVALID;
	}
	if (x509_csr_check_signature(&csr, e)) {
		x509_csr_deinit(&csr);
		e->code = ERR_INVALID;
		return err_wrap(e, "invalid CSR signature");
	}
	p.spki = pubkey_spki(csr.pubkey);
	r = ca_sign_x509_svid(issuer, &p, &it->svid, e);
	x509_csr_deinit(&csr);
	if (r == 0)
		return 0;
	e->code = ERR_INTERNAL;
	return err_wrap(e, "failed to sign X509-SVID");
}

static void piece_work(void *arg)
{
	struct piece *p = arg;

	for (size_t i = p->from; i < p->to; i++) {
		struct item *it = &p->b->items[i];
		struct err e;

		if (!it->spiffe_id)
			continue;
		if (sign_item(it, p->b->issuer, p->b->now, &e)) {
			it->status = pb_status(e.code, "%s", e.msg);
			continue;
		}
		it->message = pb_x509_svid(it->spiffe_id, &it->svid);
		it->status = pb_ok();
	}
}

static void batch_free(struct batch *b)
{
	for (size_t i = 0; i < b->n; i++) {
		free(b->items[i].spiffe_id);
		strings_deinit(&b->items[i].dns_names);
		ca_x509_svid_deinit(&b->items[i].svid);
	}
	free(b->items);
	ca_issuer_unref(b->issuer);
	protobuf_c_message_free_unpacked(b->req, NULL);
	rpc_call_unref(b->c);
	free(b);
}

static void batch_answer(struct batch *b)
{
	V1(BatchNewX509SVIDResponse) *rs =
		pb_new(&spire__api__server__svid__v1__batch_new_x509_svidresponse__descriptor);

	for (size_t i = 0; i < b->n; i++) {
		struct item *it = &b->items[i];
		V1(BatchNewX509SVIDResponse__Result) *m = pb_new(
			&spire__api__server__svid__v1__batch_new_x509_svidresponse__result__descriptor);

		m->status = it->status;
		m->svid = it->message;
		pb_append(&rs->results, &rs->n_results, m);
		if (it->message) {
			log_signed(b->c, it->entry_id, it->spiffe_id, &it->svid);
			audit_signed(b->api, b->c, it->entry_id, it->spiffe_id, &it->svid);
		} else {
			api_audit(b->api, b->c, it->status->code, it->status->message, "entry_id",
				it->entry_id, NULL);
		}
	}
	api_reply(b->c, rs);
	batch_free(b);
}

static void piece_done(void *arg)
{
	struct piece *p = arg;
	struct batch *b = p->b;

	free(p);
	if (--b->pieces_left == 0)
		batch_answer(b);
}

/* Decides whether the caller may have it, and copies what the signing needs. */
static void item_prepare(
	struct item *it, const struct api *a, const char *caller, const V1(NewX509SVIDParams) * m)
{
	struct entry en;
	struct err e;

	it->entry_id = m->entry_id;
	it->csr = bytes_of(m->csr.data, m->csr.len);
	if (!m->entry_id[0])
		it->status = pb_status(ERR_INVALID, "missing entry ID");
	else if (m->csr.len == 0)
		it->status = pb_status(ERR_INVALID, "missing CSR");
	else if (m->csr.len > CSR_MAX)
		it->status = pb_status(ERR_INVALID, "malformed CSR: too large");
	else if (entries_authorized_view(a->entries, caller, m->entry_id, &en, &e))
		it->status = pb_status(ERR_NOT_FOUND, "entry not found or not authorized");
	else {
		it->spiffe_id = xstrdup(en.spiffe_id);
		it->dns_names = strings_dup(&en.dns_names);
		it->ttl_ns = seconds(en.x509_svid_ttl);
	}
}

static void batch_start(struct batch *b)
{
	size_t workers = (size_t)loop_workers(), size = (b->n + workers - 1) / workers;

	if (size > PIECE_MAX)
		size = PIECE_MAX;
	b->pieces_left = (b->n + size - 1) / size;
	for (size_t from = 0; from < b->n; from += size) {
		struct piece *p = xmalloc(sizeof(*p));

		*p = (struct piece){
			.b = b, .from = from, .to = from + size < b->n ? from + size : b->n
		};
		loop_job(b->api->loop, piece_work, piece_done, p);
	}
}

static void batch_new_x509(struct rpc_call *c, ProtobufCMessage *req)
{
	V1(BatchNewX509SVIDRequest) *rq = (void *)req;
	struct api *a = rpc_call_data(c);
	struct ca_issuer *issuer = ca_issuer(a->ca);
	struct batch *b;

	if (!issuer) {
		rpc_fail(c, ERR_UNAVAILABLE, "server is initializing");
		protobuf_c_message_free_unpacked(req, NULL);
		return;
	}
	b = xcalloc(1, sizeof(*b));
	*b = (struct batch){ .c = rpc_call_ref(c),
		.api = a,
		.req = req,
		.issuer = issuer,
		.n = rq->n_params,
		.items = xcalloc(rq->n_params, sizeof(*b->items)),
		.now = clock_wall() };
	for (size_t i = 0; i < b->n; i++)
		item_prepare(&b->items[i], a, api_caller(c), rq->params[i]);
	batch_start(b);
}

static void start_batch_new_x509(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(BatchNewX509SVIDRequest) *rq = (const void *)req;

	if (rq->n_params == 0)
		rpc_fail(c, ERR_INVALID, "missing parameters");
	else if (rq->n_params > API_BATCH_MAX)
		rpc_fail(c, ERR_INVALID, "too many items in one batch, at most %d are allowed",
			API_BATCH_MAX);
	else
		api_limited(c, req, RATELIMIT_X509, rq->n_params, batch_new_x509);
}

/* ---- MintX509SVID ---- */

struct mint {
	struct rpc_call *c;
	struct api *api;
	struct ca_issuer *issuer;
	struct buf csr;
	int64_t ttl_ns;
	struct spiffeid id;
	struct ca_x509_svid svid;
	struct err e;
	int r;
};

/* The one URI and the DNS names of the CSR. */
static int mint_check(struct mint *m, const struct x509_csr *csr, struct err *e)
{
	int r;

	if (csr->uris.n == 0)
		return err_set(e, ERR_INVALID, "CSR URI SAN is required");
	if (csr->uris.n > 1)
		return err_set(e, ERR_INVALID, "only one URI SAN is expected");
	r = spiffeid_parse_str(&m->id, csr->uris.v[0], e);
	if (r == 0)
		r = api_id_check(&m->id, API_ID_WORKLOAD, m->api->trust_domain, e);
	if (r)
		return err_wrap(e, "CSR URI SAN is invalid");
	for (size_t i = 0; i < csr->dns_names.n; i++)
		if (api_dns_check(csr->dns_names.v[i], e))
			return err_wrap(e, "CSR DNS name is invalid");
	if (api_dns_check_overlap(&csr->dns_names, e))
		return err_wrap(e,
			"CSR DNS name contains a wildcard that covers another non-wildcard name");
	return 0;
}

/* RFC 5280 4.1.2.4: an empty Name is an empty SEQUENCE. */
static bool is_empty_name(const struct buf *raw)
{
	return raw->len <= 2;
}

static int mint_sign(struct mint *m, const struct x509_csr *csr, struct err *e)
{
	struct ca_x509_params p = { .spiffe_id = m->id.text,
		.workload = true,
		.spki = pubkey_spki(csr->pubkey),
		.dns_names = (const char *const *)csr->dns_names.v,
		.n_dns_names = csr->dns_names.n,
		.ttl_ns = m->ttl_ns,
		.now = clock_wall() };
	AUTO_BUF struct buf subject = BUF_INIT_MAX(X509_MAX_DER);
	int r = 0;

	if (!is_empty_name(&csr->subject_raw)) {
		p.subject_raw = buf_view(&csr->subject_raw);
		/* The first DNS name becomes the CN even over the CSR's own. */
		if (csr->dns_names.n) {
			r = x509_name_with_cn(p.subject_raw, csr->dns_names.v[0], &subject, e);
			p.subject_raw = buf_view(&subject);
		}
	}
	if (r == 0)
		r = ca_sign_x509_svid(m->issuer, &p, &m->svid, e);
	if (r == 0)
		return 0;
	e->code = ERR_INTERNAL;
	return err_wrap(e, "failed to sign X509-SVID");
}

static int mint_run(struct mint *m, struct err *e)
{
	struct x509_csr csr;
	int r = x509_csr_parse(buf_view(&m->csr), &csr, e);

	if (r) {
		e->code = ERR_INVALID;
		return ERR_INVALID;
	}
	r = x509_csr_check_signature(&csr, e);
	if (r) {
		e->code = ERR_INVALID;
		err_wrap(e, "failed to verify CSR signature");
		r = ERR_INVALID;
	}
	if (r == 0)
		r = mint_check(m, &csr, e);
	if (r == 0)
		r = mint_sign(m, &csr, e);
	x509_csr_deinit(&csr);
	return r;
}

static void mint_work(void *arg)
{
	struct mint *m = arg;

	m->r = mint_run(m, &m->e);
}

static void mint_done(void *arg)
{
	struct mint *m = arg;

	if (m->r) {
		rpc_fail_err(m->c, &m->e);
	} else {
		V1(MintX509SVIDResponse) *rs =
			pb_new(&spire__api__server__svid__v1__mint_x509_svidresponse__descriptor);

		rs->svid = pb_x509_svid(m->id.text, &m->svid);
		log_signed(m->c, NULL, m->id.text, &m->svid);
		audit_signed(m->api, m->c, NULL, m->id.text, &m->svid);
		api_reply(m->c, rs);
	}
	ca_x509_svid_deinit(&m->svid);
	spiffeid_deinit(&m->id);
	buf_deinit(&m->csr);
	ca_issuer_unref(m->issuer);
	rpc_call_unref(m->c);
	free(m);
}

static void mint_x509(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(MintX509SVIDRequest) *rq = (const void *)req;
	struct api *a = rpc_call_data(c);
	struct ca_issuer *issuer;
	struct mint *m;

	if (rq->csr.len == 0 || rq->csr.len > CSR_MAX) {
		rpc_fail(c, ERR_INVALID, rq->csr.len ? "malformed CSR: too large" : "missing CSR");
		return;
	}
	issuer = ca_issuer(a->ca);
	if (!issuer) {
		rpc_fail(c, ERR_UNAVAILABLE, "server is initializing");
		return;
	}
	m = xcalloc(1, sizeof(*m));
	m->c = rpc_call_ref(c);
	m->api = a;
	m->issuer = issuer;
	m->ttl_ns = seconds(rq->ttl);
	m->csr = BUF_INIT_MAX(CSR_MAX);
	buf_bytes(&m->csr, bytes_of(rq->csr.data, rq->csr.len));
	loop_job(a->loop, mint_work, mint_done, m);
}

/* ---- JWT-SVIDs ---- */

struct jwt_job {
	struct rpc_call *c;
	struct api *api;
	struct ca_jwt_issuer *issuer;
	char *entry_id; /* NULL: minted */
	char *spiffe_id;
	struct strings aud;
	int64_t ttl_ns;
	bool jti;
	struct buf token;
	int64_t iat, exp;
	struct err e;
	int r;
};

static void jwt_work(void *arg)
{
	struct jwt_job *j = arg;
	struct ca_jwt_params p = { .spiffe_id = j->spiffe_id,
		.aud = (const char *const *)j->aud.v,
		.n_aud = j->aud.n,
		.ttl_ns = j->ttl_ns,
		.jti = j->jti,
		.now = clock_wall() };

	j->r = ca_sign_jwt_svid(j->issuer, &p, &j->token, &j->iat, &j->exp, &j->e);
}

static void jwt_job_free(struct jwt_job *j)
{
	if (j->issuer)
		ca_jwt_issuer_unref(j->issuer);
	free(j->entry_id);
	free(j->spiffe_id);
	strings_deinit(&j->aud);
	buf_deinit(&j->token);
	rpc_call_unref(j->c);
	free(j);
}

/* Both responses have one field, the SVID. */
static void jwt_reply(struct jwt_job *j)
{
	Spire__Api__Types__JWTSVID *m = pb_new(&spire__api__types__jwtsvid__descriptor);
	V1(NewJWTSVIDResponse) *rs = pb_new(
		j->entry_id ? &spire__api__server__svid__v1__new_jwtsvidresponse__descriptor
			    : &spire__api__server__svid__v1__mint_jwtsvidresponse__descriptor);
	AUTO(free) char *aud = NULL;
	AUTO_BUF struct buf list = BUF_INIT_MAX(64 << 10);
	static struct metric *signatures;

	count(&signatures, "assay_server_server_ca_sign_jwt_svid");
	m->token = pb_str(buf_cstr(&j->token));
	m->id = pb_id(j->spiffe_id);
	m->issued_at = j->iat;
	m->expires_at = j->exp;
	rs->svid = m;
	for (size_t i = 0; i < j->aud.n; i++)
		buf_printf(&list, "%s%s", i ? "," : "", j->aud.v[i]);
	log_event(LOG_DEBUG, "svid", "signed JWT-SVID", "spiffe_id", j->spiffe_id, "entry_id",
		j->entry_id, "audience", buf_cstr(&list), "caller_id", api_caller(j->c), NULL);
	api_audit(j->api, j->c, 0, NULL, "entry_id", j->entry_id, "spiffe_id", j->spiffe_id,
		"audience", buf_cstr(&list), "expires_at", log_fmt("%lld", (long long)j->exp),
		NULL);
	api_reply(j->c, rs);
}

static void jwt_done(void *arg)
{
	struct jwt_job *j = arg;

	if (j->r) {
		j->e.code = j->r == ERR_INVALID ? ERR_INVALID : ERR_INTERNAL;
		err_wrap(&j->e, "failed to sign JWT-SVID");
		rpc_fail_err(j->c, &j->e);
	} else {
		jwt_reply(j);
	}
	jwt_job_free(j);
}

static bool all_empty(char *const *v, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (v[i][0])
			return false;
	return true;
}

/* Takes over j, whose id and TTL are set. */
static void jwt_start(struct jwt_job *j, char *const *aud, size_t n)
{
	if (n == 0) {
		rpc_fail(j->c, ERR_INVALID, "at least one audience is required");
		jwt_job_free(j);
		return;
	}
	if (all_empty(aud, n)) { /* not what one would expect, but SPIRE's code and text */
		rpc_fail(j->c, ERR_INTERNAL,
			"failed to sign JWT-SVID: invalid JWT-SVID audience: cannot be empty");
		jwt_job_free(j);
		return;
	}
	if (n > JWT_MAX_AUDIENCES) {
		rpc_fail(j->c, ERR_INVALID, "too many audiences, at most %d are allowed",
			JWT_MAX_AUDIENCES);
		jwt_job_free(j);
		return;
	}
	for (size_t i = 0; i < n; i++)
		strings_add(&j->aud, aud[i]);
	j->issuer = ca_jwt_issuer(j->api->ca);
	if (!j->issuer) {
		rpc_fail(j->c, ERR_UNAVAILABLE, "server is initializing");
		jwt_job_free(j);
		return;
	}
	loop_job(j->api->loop, jwt_work, jwt_done, j);
}

static struct jwt_job *jwt_job_new(struct rpc_call *c)
{
	struct jwt_job *j = xcalloc(1, sizeof(*j));

	j->c = rpc_call_ref(c);
	j->api = rpc_call_data(c);
	j->token = BUF_INIT_MAX(JWT_MAX);
	return j;
}

static bool jwt_is_off(struct rpc_call *c)
{
	const struct api *a = rpc_call_data(c);

	if (a->jwt_disabled)
		rpc_fail(c, ERR_UNIMPLEMENTED, "JWT functionality is disabled");
	return a->jwt_disabled;
}

static void mint_jwt(struct rpc_call *c, const ProtobufCMessage *req)
{
	const V1(MintJWTSVIDRequest) *rq = (const void *)req;
	const struct api *a = rpc_call_data(c);
	struct spiffeid id;
	struct jwt_job *j;
	struct err e;

	if (jwt_is_off(c))
		return;
	if (api_id_parse(&id, rq->id, API_ID_WORKLOAD, a->trust_domain, &e)) {
		rpc_fail(c, ERR_INVALID, "invalid SPIFFE ID: %s", e.msg);
		return;
	}
	j = jwt_job_new(c);
	j->spiffe_id = id.text;
	j->ttl_ns = seconds(rq->ttl);
	jwt_start(j, rq->audience, rq->n_audience);
}

static void new_jwt(struct rpc_call *c, ProtobufCMessage *req)
{
	V1(NewJWTSVIDRequest) *rq = (void *)req;
	const struct api *a = rpc_call_data(c);
	struct entry en;
	struct jwt_job *j;
	struct err e;

	if (jwt_is_off(c))
		goto out;
	if (entries_authorized_view(a->entries, api_caller(c), rq->entry_id, &en, &e)) {
		rpc_fail(c, ERR_NOT_FOUND, "entry not found or not authorized");
		goto out;
	}
	j = jwt_job_new(c);
	j->entry_id = xstrdup(rq->entry_id);
	j->spiffe_id = xstrdup(en.spiffe_id);
	j->ttl_ns = seconds(en.jwt_svid_ttl);
	j->jti = en.jwt_svid_include_jti;
	jwt_start(j, rq->audience, rq->n_audience);
out:
	protobuf_c_message_free_unpacked(req, NULL);
}

static void start_new_jwt(struct rpc_call *c, const ProtobufCMessage *req)
{
	api_limited(c, req, RATELIMIT_JWT, 1, new_jwt);
}

/* ---- what is not there ---- */

static void no_wit(struct rpc_call *c, const ProtobufCMessage *req)
{
	(void)req;
	rpc_fail(c, ERR_UNIMPLEMENTED, "WIT functionality is disabled");
}

static const struct rpc_method methods[] = {
	{ "MintX509SVID", RPC_UNARY, mint_x509 },
	{ "MintJWTSVID", RPC_UNARY, mint_jwt },
	{ "MintWITSVID", RPC_UNARY, no_wit },
	{ "BatchNewX509SVID", RPC_UNARY, start_batch_new_x509 },
	{ "NewJWTSVID", RPC_UNARY, start_new_jwt },
	{ "BatchNewWITSVID", RPC_UNARY, no_wit },
	{ "NewDownstreamX509CA", RPC_UNARY, api_new_downstream },
};

struct rpc_service api_svid_service(struct api *a)
{
	return (struct rpc_service){ .desc = &spire__api__server__svid__v1__svid__descriptor,
		.methods = methods,
		.n_methods = ARRAY_LEN(methods),
		.data = a };
}

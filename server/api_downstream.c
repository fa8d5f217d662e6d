/* NewDownstreamX509CA, of the SVID service: the CA of a server below this one. */
#include "server/api.h"

#include <stdlib.h>
#include <string.h>

#include "spire/api/server/svid/v1/svid.pb-c.h"

#define V1(name) Spire__Api__Server__Svid__V1__##name

enum { CSR_MAX = 16 << 10 };

struct downstream {
	struct rpc_call *c;
	struct api *api;
	struct ca_issuer *issuer;
	struct buf csr;
	int64_t ttl_ns;
	struct x509_chain chain;
	struct err e;
	int r;
};

static int sign(struct downstream *d, const struct x509_csr *csr, struct err *e)
{
	if (x509_csr_check_signature(csr, e)) {
		e->code = ERR_INVALID;
		return err_wrap(e, "invalid CSR signature");
	}
	if (ca_sign_downstream(d->issuer, pubkey_spki(csr->pubkey), d->ttl_ns, &d->chain, e)) {
		e->code = ERR_INTERNAL;
		return err_wrap(e, "failed to sign downstream X.509 CA");
	}
	return 0;
}

static void work(void *arg)
{
	struct downstream *d = arg;
	struct x509_csr csr;

	d->r = x509_csr_parse(buf_view(&d->csr), &csr, &d->e);
	if (d->r)
		return;
	d->r = sign(d, &csr, &d->e);
	x509_csr_deinit(&csr);
}

static void add_der(ProtobufCBinaryData **v, size_t *n, const struct x509_cert *c)
{
	*v = xreallocarray(*v, *n + 1, sizeof(**v));
	pb_set_bytes(&(*v)[(*n)++], x509_der(c));
}

static void answer(struct downstream *d)
{
	const struct bundle *b = api_bundle(d->api, d->api->trust_domain);
	const struct x509_cert *c = d->chain.v[0];
	const char *expires = log_fmt("%lld", (long long)x509_not_after(c).sec);
	V1(NewDownstreamX509CAResponse) * rs;
	AUTO_BUF struct buf id = BUF_INIT;

	if (!b) {
		rpc_fail(d->c, ERR_NOT_FOUND, "bundle not found");
		return;
	}
	rs = pb_new(&spire__api__server__svid__v1__new_downstream_x509_caresponse__descriptor);
	for (size_t i = 0; i < d->chain.n; i++)
		add_der(&rs->ca_cert_chain, &rs->n_ca_cert_chain, d->chain.v[i]);
	for (size_t i = 0; i < b->n_roots; i++)
		add_der(&rs->x509_authorities, &rs->n_x509_authorities, b->roots[i].cert);
	hex_encode(&id, x509_ski(c));
	log_event(LOG_INFO, "svid", "signed a downstream X.509 CA", "caller_id", api_caller(d->c),
		"subject_key_id", buf_cstr(&id), "expires_at", log_time(x509_not_after(c).sec),
		NULL);
	api_audit(d->api, d->c, 0, NULL, "trust_domain_id", d->api->trust_domain, "subject_key_id",
		buf_cstr(&id), "expires_at", expires, NULL);
	api_reply(d->c, rs);
}

static void done(void *arg)
{
	struct downstream *d = arg;

	if (d->r)
		rpc_fail_err(d->c, &d->e);
	else
		answer(d);
	x509_chain_deinit(&d->chain);
	buf_deinit(&d->csr);
	ca_issuer_unref(d->issuer);
	rpc_call_unref(d->c);
	free(d);
}

static void start(struct rpc_call *c, ProtobufCMessage *req)
{
	const V1(NewDownstreamX509CARequest) *rq = (const void *)req;
	struct api *a = rpc_call_data(c);
	struct ca_issuer *issuer = ca_issuer(a->ca);
	struct downstream *d;

	if (!issuer || rq->csr.len > CSR_MAX) {
		rpc_fail(c, issuer ? ERR_INVALID : ERR_UNAVAILABLE,
			issuer ? "malformed CSR: too large" : "server is initializing");
		ca_issuer_unref(issuer);
		protobuf_c_message_free_unpacked(req, NULL);
		return;
	}
	d = xcalloc(1, sizeof(*d));
	*d = (struct downstream){ .c = rpc_call_ref(c),
		.api = a,
		.issuer = issuer,
		.csr = BUF_INIT_MAX(CSR_MAX),
		.ttl_ns = rq->preferred_ttl > 0 ? rq->preferred_ttl * NS_PER_SEC : 0 };
	buf_bytes(&d->csr, bytes_of(rq->csr.data, rq->csr.len));
	protobuf_c_message_free_unpacked(req, NULL);
	loop_job(a->loop, work, done, d);
}

void api_new_downstream(struct rpc_call *c, const ProtobufCMessage *req)
{
	api_limited(c, req, RATELIMIT_DOWNSTREAM, 1, start);
}

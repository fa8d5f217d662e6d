/* Service spire.api.server.debug.v1.Debug: counts, uptime, the server's own chain. */
#include "server/api.h"

#include <stdlib.h>

#include "spire/api/server/debug/v1/debug.pb-c.h"

#define V1(name) Spire__Api__Server__Debug__V1__##name

/* The certificate's one URI, if it is a SPIFFE ID (a CA's too). */
static Spire__Api__Types__SPIFFEID *id_of(const struct x509_cert *c)
{
	const struct strings *uris = x509_uris(c);
	struct spiffeid id = SPIFFEID_INIT;
	Spire__Api__Types__SPIFFEID *m = NULL;

	if (uris->n == 1 && spiffeid_parse_str(&id, uris->v[0], NULL) == 0)
		m = pb_id(id.text);
	spiffeid_deinit(&id);
	return m;
}

static void add_cert(V1(GetInfoResponse) * rs, const struct x509_cert *c)
{
	V1(GetInfoResponse__Cert) *m =
		pb_new(&spire__api__server__debug__v1__get_info_response__cert__descriptor);
	AUTO_BUF struct buf subject = BUF_INIT;

	x509_subject_text(c, &subject);
	m->id = id_of(c);
	m->expires_at = x509_not_after(c).sec;
	m->subject = pb_str(buf_cstr(&subject));
	pb_append(&rs->svid_chain, &rs->n_svid_chain, m);
}

static int add_chain(const struct api *a, V1(GetInfoResponse) * rs, struct err *e)
{
	struct x509_chain roots = bundle_roots(api_bundle(a, a->trust_domain));
	struct x509_chain path = { .n = 0 };
	int r = x509_verify_path(server_svid_chain(a->svid), &roots, clock_wall(), &path, e);

	for (size_t i = 0; r == 0 && i < path.n; i++)
		add_cert(rs, path.v[i]);
	x509_chain_deinit(&path);
	x509_chain_deinit(&roots);
	if (r == 0)
		return 0;
	e->code = ERR_INTERNAL;
	return err_wrap(e, "failed verification against bundle");
}

static void get_info(struct rpc_call *c, const ProtobufCMessage *req)
{
	const struct api *a = rpc_call_data(c);
	V1(GetInfoResponse) *rs =
		pb_new(&spire__api__server__debug__v1__get_info_response__descriptor);
	struct err e;
	int r;

	(void)req;
	rs->agents_count = (int32_t)entries_count_nodes(a->entries);
	rs->entries_count = (int32_t)entries_count(a->entries);
	rs->federated_bundles_count = (int32_t)map_len(a->bundles);
	rs->uptime = (int32_t)((clock_mono().ns - a->started.ns) / NS_PER_SEC);
	if (!api_bundle(a, a->trust_domain))
		r = err_set(&e, ERR_NOT_FOUND, "trust domain bundle not found");
	else if (server_svid_chain(a->svid)->n == 0)
		r = err_set(&e, ERR_UNAVAILABLE, "server is initializing");
	else
		r = add_chain(a, rs, &e);
	if (r == 0) {
		api_reply(c, rs);
		return;
	}
	rpc_fail_err(c, &e);
	protobuf_c_message_free_unpacked(&rs->base, NULL);
}

static const struct rpc_method methods[] = { { "GetInfo", RPC_UNARY, get_info } };

struct rpc_service api_debug_service(struct api *a)
{
	return (struct rpc_service){ .desc = &spire__api__server__debug__v1__debug__descriptor,
		.methods = methods,
		.n_methods = ARRAY_LEN(methods),
		.data = a };
}

/*
 * A broker: asks an agent's Broker API for the JWT-SVIDs of a workload, and prints their SPIFFE
 * IDs, one a line; or the refusal, "CODE message", and ends with status 1.
 *
 *   broker PORT CHAIN.pem KEY.pem pid N
 *   broker PORT CHAIN.pem KEY.pem object PLURAL GROUP NAMESPACE NAME UID     ("" for what is not
 * said)
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/loop.h"
#include "lib/rpc.h"
#include "lib/tls.h"
#include "lib/x509.h"
#include "spiffe/broker/broker.pb-c.h"

#define TYPE "type.googleapis.com/spiffe.broker."
enum { FILE_MAX = 1 << 20 };

static int port;
static struct tls_ctx *tls;
static struct err e;

static void must(int r)
{
	if (r) {
		fprintf(stderr, "broker: %s\n", e.msg);
		exit(2);
	}
}

/* Who the agent is, is no question here. */
static int any(void *arg, const struct x509_chain *peer, struct err *er)
{
	(void)arg;
	(void)peer;
	(void)er;
	return 0;
}

static int dial(void *arg, struct dial_options *d, struct err *er)
{
	(void)arg;
	(void)er;
	d->tcp_host = "127.0.0.1";
	d->tcp_port = port;
	d->tls = tls;
	d->verify = any;
	return 0;
}

static void load(const char *chain_file, const char *key_file)
{
	AUTO_BUF struct buf chain_pem = BUF_INIT_MAX(FILE_MAX), key_pem = BUF_INIT_SECRET;
	struct x509_chain chain = { 0 };
	struct key *key = NULL;
	struct tls_options o = { .alpn = "h2" };

	must(buf_read_file(&chain_pem, chain_file, &e));
	must(buf_read_file(&key_pem, key_file, &e));
	must(x509_chain_parse_pem(&chain, buf_view(&chain_pem), X509_MAX_CHAIN, &e));
	must(key_from_pem(buf_view(&key_pem), &key, &e));
	o.chain = &chain;
	o.key = key;
	must(tls_ctx_new(&o, &tls, &e));
	x509_chain_deinit(&chain);
	key_unref(key);
}

static int ask(struct loop *l, struct rpc_client *c, const char *type, const ProtobufCMessage *m)
{
	static const char *const metadata[] = { "broker.spiffe.io", "true", NULL };
	Google__Protobuf__Any any_ref = GOOGLE__PROTOBUF__ANY__INIT;
	Spiffe__Broker__WorkloadReference ref = SPIFFE__BROKER__WORKLOAD_REFERENCE__INIT;
	Spiffe__Broker__FetchJWTSVIDRequest rq = SPIFFE__BROKER__FETCH_JWTSVIDREQUEST__INIT;
	const Spiffe__Broker__FetchJWTSVIDResponse *rs;
	char audience[] = "test", *audiences[] = { audience };
	AUTO(free) char *url = xstrdup(type);
	struct rpc_unary_options o = { .method = "/spiffe.broker.API/FetchJWTSVID",
		.request = &rq.base,
		.response = &spiffe__broker__fetch_jwtsvidresponse__descriptor,
		.metadata = metadata,
		.timeout_ms = 20000 };
	ProtobufCMessage *got = NULL;
	int r;

	any_ref.type_url = url;
	any_ref.value.len = protobuf_c_message_get_packed_size(m);
	any_ref.value.data = xmalloc(any_ref.value.len + 1);
	protobuf_c_message_pack(m, any_ref.value.data);
	ref.reference = &any_ref;
	rq.reference = &ref;
	rq.n_audience = 1;
	rq.audience = audiences;
	r = rpc_unary_sync(l, c, &o, &got, &e);
	free(any_ref.value.data);
	if (r) {
		printf("%s %s\n", err_code_name(r), e.msg);
		return 1;
	}
	rs = (const Spiffe__Broker__FetchJWTSVIDResponse *)got;
	for (size_t i = 0; i < rs->n_svids; i++)
		puts(rs->svids[i]->spiffe_id);
	protobuf_c_message_free_unpacked(got, NULL);
	return 0;
}

static int ask_pid(struct loop *l, struct rpc_client *c, char **argv)
{
	Spiffe__Broker__WorkloadPIDReference m = SPIFFE__BROKER__WORKLOAD_PIDREFERENCE__INIT;

	m.pid = (int32_t)strtol(argv[0], NULL, 10);
	return ask(l, c, TYPE "WorkloadPIDReference", &m.base);
}

static int ask_object(struct loop *l, struct rpc_client *c, char **argv)
{
	Spiffe__Broker__KubernetesObjectReference m =
		SPIFFE__BROKER__KUBERNETES_OBJECT_REFERENCE__INIT;
	Spiffe__Broker__KubernetesObjectType type = SPIFFE__BROKER__KUBERNETES_OBJECT_TYPE__INIT;
	Spiffe__Broker__KubernetesObjectKey key = SPIFFE__BROKER__KUBERNETES_OBJECT_KEY__INIT;

	type.plural = argv[0];
	type.group = argv[1];
	key.namespace_ = argv[2];
	key.name = argv[3];
	m.type = &type;
	m.key = *argv[3] ? &key : NULL;
	m.uid = argv[4];
	return ask(l, c, TYPE "KubernetesObjectReference", &m.base);
}

int main(int argc, char **argv)
{
	struct rpc_client_options o = { .dial = dial };
	struct rpc_client *c;
	struct loop *l;
	int r;

	if (argc < 6 || (strcmp(argv[4], "object") == 0 && argc < 10)) {
		fprintf(stderr, "see the comment at the top of tests/tools/broker.c\n");
		return 2;
	}
	crypto_init();
	port = (int)strtol(argv[1], NULL, 10);
	load(argv[2], argv[3]);
	l = loop_new();
	c = rpc_client_new(l, &o);
	r = strcmp(argv[4], "pid") == 0 ? ask_pid(l, c, argv + 5) : ask_object(l, c, argv + 5);
	rpc_client_free(c);
	loop_drain(l);
	tls_ctx_unref(tls);
	return r;
}

/* `x509 mint`: an X509-SVID for a key made here. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "lib/clock.h"
#include "lib/crypto.h"
#include "lib/x509.h"
#include "server/cmd.h"
#include "server/cmd_util.h"
#include "spire/api/server/bundle/v1/bundle.pb-c.h"
#include "spire/api/server/svid/v1/svid.pb-c.h"

static const struct cli_flag mint_flags[] = {
	{ .name = "spiffeID", .type = CLI_STRING, .help = "SPIFFE ID of the X509-SVID" },
	{ .name = "ttl", .type = CLI_DURATION, .help = "TTL of the X509-SVID" },
	{ .name = "dns",
		.type = CLI_STRINGS,
		.help = "DNS name that will be included in SVID. Can be used more than once." },
	{ .name = "write",
		.type = CLI_STRING,
		.choices = "@dir",
		.help = "Directory to write output to instead of stdout" },
	CLI_END,
};

/* What was minted. */
struct minted {
	struct buf key; /* PKCS#8 */
	Spire__Api__Types__X509SVID *svid;
	ProtobufCMessage *svid_message, *bundle;
};

static void minted_deinit(struct minted *m)
{
	buf_deinit(&m->key);
	if (m->svid_message)
		protobuf_c_message_free_unpacked(m->svid_message, NULL);
	if (m->bundle)
		protobuf_c_message_free_unpacked(m->bundle, NULL);
}

static int make_csr(struct cli *c, struct buf *csr, struct minted *ret, struct err *e)
{
	AUTO(key_unref) struct key *k = NULL;
	struct spiffeid id = SPIFFEID_INIT;
	const struct strings *dns = cli_strings(c, "dns");
	int r;

	if (!*cli_str(c, "spiffeID"))
		return err_set(e, ERR_INVALID, "spiffeID must be specified");
	r = spiffeid_parse_str(&id, cli_str(c, "spiffeID"), e);
	if (r)
		return r;
	spiffeid_deinit(&id);
	r = key_generate(KEY_EC_P256, &k, e);
	if (r)
		return err_wrap(e, "unable to generate key");
	key_to_pkcs8(k, &ret->key);
	r = x509_csr_make_dns(
		k, cli_str(c, "spiffeID"), (const char *const *)dns->v, dns->n, csr, e);
	return r ? err_wrap(e, "unable to generate CSR") : 0;
}

static int mint_svid(struct cli *c, struct minted *ret, struct err *e)
{
	Spire__Api__Server__Svid__V1__MintX509SVIDRequest rq =
		SPIRE__API__SERVER__SVID__V1__MINT_X509_SVIDREQUEST__INIT;
	AUTO_BUF struct buf csr = BUF_INIT;
	int r = make_csr(c, &csr, ret, e);

	if (!r)
		r = cmd_ttl(cli_duration_ns(c, "ttl"), &rq.ttl, e);
	if (r)
		return r;
	rq.csr = (ProtobufCBinaryData){ .len = csr.len, .data = csr.p };
	r = cli_call(c, "/spire.api.server.svid.v1.SVID/MintX509SVID", &rq.base,
		&spire__api__server__svid__v1__mint_x509_svidresponse__descriptor,
		&ret->svid_message, e);
	if (r)
		return err_wrap(e, "unable to mint SVID");
	ret->svid = ((Spire__Api__Server__Svid__V1__MintX509SVIDResponse *)ret->svid_message)->svid;
	if (!ret->svid || !ret->svid->n_cert_chain)
		return err_set(e, ERR_INTERNAL, "server response missing SVID chain");
	return 0;
}

static int get_bundle(struct cli *c, struct minted *ret, struct err *e)
{
	Spire__Api__Server__Bundle__V1__GetBundleRequest rq =
		SPIRE__API__SERVER__BUNDLE__V1__GET_BUNDLE_REQUEST__INIT;
	int r = cli_call(c, "/spire.api.server.bundle.v1.Bundle/GetBundle", &rq.base,
		&spire__api__types__bundle__descriptor, &ret->bundle, e);

	if (r)
		return err_wrap(e, "unable to get bundle");
	if (!((Spire__Api__Types__Bundle *)ret->bundle)->n_x509_authorities)
		return err_set(e, ERR_INTERNAL, "server response missing X509 Authorities");
	return 0;
}

static void warn_capped(struct cli *c, const struct minted *m)
{
	int64_t left = wall_sub_ns(wall_of_sec(m->svid->expires_at), clock_wall());
	AUTO(free) char *when = cli_time_rfc3339(m->svid->expires_at);

	if (left < cli_duration_ns(c, "ttl"))
		cli_errorf(c,
			"X509-SVID lifetime was capped shorter than specified ttl; expires "
			"\"%s\"\n",
			when);
}

/* ---- output ---- */

static struct bytes view(const ProtobufCBinaryData *d)
{
	return bytes_of(d->data, d->len);
}

static void svid_pem(const struct minted *m, struct buf *ret)
{
	for (size_t i = 0; i < m->svid->n_cert_chain; i++)
		pem_write(ret, "CERTIFICATE", view(&m->svid->cert_chain[i]));
}

static void bundle_pem(const struct minted *m, struct buf *ret)
{
	const Spire__Api__Types__Bundle *b = (const Spire__Api__Types__Bundle *)m->bundle;

	for (size_t i = 0; i < b->n_x509_authorities; i++)
		pem_write(ret, "CERTIFICATE", view(&b->x509_authorities[i]->asn1));
}

static json_t *base64_json(struct bytes v)
{
	AUTO_BUF struct buf b = BUF_INIT_SECRET;

	base64_encode(&b, v);
	return json_string(buf_cstr(&b));
}

static void print_json(struct cli *c, const struct minted *m)
{
	const Spire__Api__Types__Bundle *b = (const Spire__Api__Types__Bundle *)m->bundle;
	json_t *root = json_object(), *svid = json_array(), *roots = json_array();

	for (size_t i = 0; i < m->svid->n_cert_chain; i++)
		json_array_append_new(svid, base64_json(view(&m->svid->cert_chain[i])));
	for (size_t i = 0; i < b->n_x509_authorities; i++)
		json_array_append_new(roots, base64_json(view(&b->x509_authorities[i]->asn1)));
	json_object_set_new(root, "x509_svid", svid);
	json_object_set_new(root, "private_key", base64_json(buf_view(&m->key)));
	json_object_set_new(root, "root_cas", roots);
	json_dumpf(root, cli_out(c), JSON_COMPACT);
	json_decref(root);
	cli_printf(c, "\n");
}

static void print_pretty(struct cli *c, const struct minted *m)
{
	AUTO_BUF struct buf svid = BUF_INIT;
	AUTO_BUF struct buf key = BUF_INIT_SECRET;
	AUTO_BUF struct buf roots = BUF_INIT;

	svid_pem(m, &svid);
	pem_write(&key, "PRIVATE KEY", buf_view(&m->key));
	bundle_pem(m, &roots);
	cli_printf(c, "X509-SVID:\n%s\n", buf_cstr(&svid));
	cli_printf(c, "Private key:\n%s\n", buf_cstr(&key));
	cli_printf(c, "Root CAs:\n%s\n", buf_cstr(&roots));
}

static int write_one(struct cli *c, const char *name, const struct buf *text, unsigned mode,
	const char *what, const char *short_name, struct err *e)
{
	const char *dir = cli_str(c, "write");
	AUTO(free)
	char *path = xasprintf("%s%s%s", dir, dir[strlen(dir) - 1] == '/' ? "" : "/", name);
	int r = buf_write_file(buf_view(text), path, mode, e);

	if (r)
		return err_wrap(e, "unable to write %s", short_name);
	cli_printf(c, "%s written to %s\n", what, path);
	return 0;
}

static int write_files(struct cli *c, const struct minted *m, struct err *e)
{
	AUTO_BUF struct buf svid = BUF_INIT;
	AUTO_BUF struct buf key = BUF_INIT_SECRET;
	AUTO_BUF struct buf roots = BUF_INIT;
	int r;

	svid_pem(m, &svid);
	pem_write(&key, "PRIVATE KEY", buf_view(&m->key));
	bundle_pem(m, &roots);
	r = write_one(c, "svid.pem", &svid, 0644, "X509-SVID", "SVID", e);
	if (!r)
		r = write_one(c, "key.pem", &key, 0600, "Private key", "key", e);
	return r ? r : write_one(c, "bundle.pem", &roots, 0644, "Root CAs", "bundle", e);
}

static int mint(struct cli *c)
{
	struct minted m = { .key = BUF_INIT_SECRET };
	struct err e;
	int r = mint_svid(c, &m, &e);

	if (!r)
		r = get_bundle(c, &m, &e);
	if (!r) {
		warn_capped(c, &m);
		if (*cli_str(c, "write"))
			r = write_files(c, &m, &e);
		else if (cli_json(c))
			print_json(c, &m);
		else
			print_pretty(c, &m);
	}
	minted_deinit(&m);
	return r ? cli_fail(c, &e) : 0;
}

const struct cli_command cmd_x509[] = {
	{ "x509 mint", "Mints an X509-SVID", mint_flags, CLI_WITH_SOCKET | CLI_WITH_OUTPUT, mint },
	{ .name = NULL },
};

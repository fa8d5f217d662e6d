/*
 * certs DIR: writes one certificate of each kind that lib/x509 makes, with its root, for a foreign
 * verifier to judge: NAME.root.pem, NAME.middle.pem, NAME.leaf.pem, NAME.key.pem, NAME.csr.
 */
#include <stdio.h>
#include <stdlib.h>

#include "lib/x509.h"

static const char *dir;
static struct err e;

static void must(int r)
{
	if (r) {
		fprintf(stderr, "certs: %s\n", e.msg);
		exit(1);
	}
}

static void save(const char *name, const char *what, struct bytes v)
{
	AUTO(free) char *path = xasprintf("%s/%s.%s", dir, name, what);

	must(buf_write_file(v, path, 0600, &e));
}

static int sign(void *arg, enum hash h, struct bytes digest, struct buf *ret, struct err *er)
{
	return key_sign(arg, h, digest, SIG_X509, ret, er);
}

/* Makes a certificate for k from t, signed by `by` (NULL: itself); saves and returns it. */
static struct x509_cert *make(struct x509_template t, struct key *k, struct key *by,
	const struct x509_cert *issuer, const char *name, const char *what)
{
	AUTO_BUF struct buf der = BUF_INIT, pem = BUF_INIT;
	struct x509_signer s = {
		.type = key_get_type(by ? by : k), .sign = sign, .arg = by ? by : k
	};
	struct x509_cert *c = NULL;
	uint8_t serial[16];

	x509_random_serial(serial);
	t.serial = bytes_of(serial, sizeof(serial));
	t.spki = pubkey_spki(key_public(k));
	t.issuer_raw = issuer ? x509_subject_raw(issuer) : t.subject_raw;
	t.aki = issuer ? x509_ski(issuer) : bytes_of(NULL, 0);
	must(x509_build(&t, &s, &der, &e));
	must(x509_parse(buf_view(&der), &c, &e));
	pem_write(&pem, "CERTIFICATE", buf_view(&der));
	save(name, what, buf_view(&pem));
	return c;
}

static void family(enum key_type type, const char *name, bool subject, int64_t seconds)
{
	static const char *const root_uri[] = { "spiffe://example.org" };
	static const char *const uri[] = { "spiffe://example.org/ns/a/sa/b" };
	static const char *const dns[] = { "a.example.org", "b.example.org" };
	struct x509_name ca_name = {
		.country = "US", .organization = "SPIFFE", .serial_number = "77"
	};
	struct x509_name mid_name = {
		.country = "US", .organization = "SPIFFE", .organizational_unit = "DOWNSTREAM-1"
	};
	struct x509_name leaf_name = {
		.country = "US", .organization = "SPIRE", .common_name = "a.example.org"
	};
	AUTO_BUF struct buf ca_raw = BUF_INIT, mid_raw = BUF_INIT, leaf_raw = BUF_INIT,
			    csr = BUF_INIT;
	AUTO_BUF struct buf pem = BUF_INIT;
	struct buf pkcs8 = BUF_INIT_SECRET;
	struct key *root_key = NULL, *mid_key = NULL, *leaf_key = NULL;
	struct x509_cert *root, *mid, *leaf;
	struct wall now = clock_wall();
	struct x509_template ca = { .is_ca = true,
		.key_usage = KU_CERT_SIGN | KU_CRL_SIGN,
		.uris = root_uri,
		.n_uris = 1,
		.not_before = wall_of_sec(now.sec - 10),
		.not_after = wall_of_sec(now.sec + seconds) };
	struct x509_template svid = { .key_usage = KU_DIGITAL_SIGNATURE | KU_KEY_ENCIPHERMENT |
						   KU_KEY_AGREEMENT,
		.eku_server_client = true,
		.uris = uri,
		.n_uris = 1,
		.dns_names = dns,
		.n_dns_names = 2,
		.not_before = wall_of_sec(now.sec - 10),
		.not_after = wall_of_sec(now.sec + seconds) };

	must(key_generate(type, &root_key, &e));
	must(key_generate(type, &mid_key, &e));
	must(key_generate(type, &leaf_key, &e));
	x509_name_der(&ca_name, &ca_raw);
	x509_name_der(&mid_name, &mid_raw);
	x509_name_der(&leaf_name, &leaf_raw);
	ca.subject_raw = buf_view(&ca_raw);
	root = make(ca, root_key, NULL, NULL, name, "root.pem");
	ca.subject_raw = buf_view(&mid_raw);
	mid = make(ca, mid_key, root_key, root, name, "middle.pem");
	svid.subject_raw = subject ? buf_view(&leaf_raw) : bytes_of(NULL, 0);
	leaf = make(svid, leaf_key, mid_key, mid, name, "leaf.pem");
	must(x509_csr_make(leaf_key, uri[0], &csr, &e));
	save(name, "csr", buf_view(&csr));
	key_to_pkcs8(leaf_key, &pkcs8);
	pem_write(&pem, "PRIVATE KEY", buf_view(&pkcs8));
	save(name, "key.pem", buf_view(&pem));
	buf_deinit(&pkcs8);
	x509_unref(root);
	x509_unref(mid);
	x509_unref(leaf);
	key_unref(root_key);
	key_unref(mid_key);
	key_unref(leaf_key);
}

int main(int argc, char **argv)
{
	if (argc != 2) {
		fprintf(stderr, "usage: certs DIR\n");
		return 2;
	}
	dir = argv[1];
	crypto_init();
	family(KEY_EC_P256, "ec-p256", true, 3600);
	family(KEY_EC_P384, "ec-p384", true, 3600);
	family(KEY_EC_P521, "ec-p521", true, 3600);
	family(KEY_RSA_2048, "rsa-2048", true, 3600);
	family(KEY_RSA_4096, "rsa-4096", true, 3600);
	family(KEY_EC_P256, "no-subject", false, 3600);
	family(KEY_EC_P256, "past-2050", true, INT64_C(86400) * 365 * 40);
	return 0;
}

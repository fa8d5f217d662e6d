#include "tests/test.h"

#include "tests/unit/x509_make.inc"

static struct err e;

static void test_build_and_parse(void)
{
	static const enum key_type types[] = { KEY_EC_P256, KEY_EC_P384, KEY_EC_P521,
		KEY_RSA_2048 };

	for (size_t i = 0; i < ARRAY_LEN(types); i++) {
		struct test_ca root = test_ca(types[i], "root", NULL, test_now);
		struct key *k = test_key(KEY_EC_P256);
		struct x509_cert *c =
			test_cert(k, NULL, "spiffe://example.org/a", false, &root, test_now);
		struct x509_chain ch = { 0 }, roots = { 0 };
		struct spiffeid id = SPIFFEID_INIT;
		uint8_t skid[20];
		bool present;

		CHECK_INT(x509_not_before(c).sec, test_now.sec - 10);
		CHECK_INT(x509_not_after(c).sec, test_now.sec + 3600);
		CHECK(!x509_is_ca(c) && x509_is_ca(root.cert));
		CHECK_INT(x509_key_usage(c, &present),
			KU_DIGITAL_SIGNATURE | KU_KEY_ENCIPHERMENT | KU_KEY_AGREEMENT);
		CHECK(present);
		CHECK_INT(x509_key_usage(root.cert, NULL), KU_CERT_SIGN | KU_CRL_SIGN);
		pubkey_key_id(key_public(k), skid);
		CHECK_BYTES(x509_ski(c), bytes_of(skid, 20));
		CHECK_BYTES(x509_aki(c), x509_ski(root.cert));
		CHECK_INT(x509_aki(root.cert).n, 0);
		CHECK_STR(x509_subject_cn(c), "");
		CHECK_STR(x509_subject_cn(root.cert), "root");
		CHECK(x509_self_issued(root.cert) && !x509_self_issued(c));
		CHECK_BYTES(pubkey_spki(x509_pubkey(c)), pubkey_spki(key_public(k)));
		CHECK_OK(x509_signed_by(c, root.cert, &e));
		CHECK_OK(x509_signed_by(root.cert, root.cert, &e));
		CHECK_ERR(x509_signed_by(c, c, &e), ERR_INVALID);
		CHECK_OK(x509_svid_id(c, &id, &e));
		CHECK_STR(id.text, "spiffe://example.org/a");
		CHECK_ERR(x509_svid_id(root.cert, &id, &e), ERR_INVALID);
		x509_chain_add(&ch, c);
		x509_chain_add(&roots, root.cert);
		CHECK_OK(x509_verify(&ch, &roots, test_now, &e));
		spiffeid_deinit(&id);
		x509_chain_deinit(&ch);
		x509_chain_deinit(&roots);
		x509_unref(c);
		key_unref(k);
		test_ca_free(&root);
	}
}

static void test_csr(void)
{
	static const enum key_type types[] = { KEY_EC_P256, KEY_EC_P384, KEY_RSA_2048 };

	for (size_t i = 0; i < ARRAY_LEN(types); i++) {
		struct key *k = test_key(types[i]);
		AUTO_BUF struct buf der = BUF_INIT;
		struct x509_csr c;

		CHECK_OK(x509_csr_make(k, "spiffe://td/x", &der, &e));
		CHECK_OK(x509_csr_parse(buf_view(&der), &c, &e));
		CHECK_OK(x509_csr_check_signature(&c, &e));
		CHECK_INT(c.uris.n, 1);
		CHECK_STR(c.uris.v[0], "spiffe://td/x");
		CHECK_BYTES(pubkey_spki(c.pubkey), pubkey_spki(key_public(k)));
		x509_csr_deinit(&c);
		der.p[der.len - 1] ^= 1;
		CHECK_OK(x509_csr_parse(buf_view(&der), &c, &e));
		CHECK_ERR(x509_csr_check_signature(&c, &e), ERR_INVALID);
		x509_csr_deinit(&c);
		for (size_t n = 0; n < der.len; n++)
			CHECK_ERR(x509_csr_parse(bytes_of(der.p, n), &c, &e), ERR_INVALID);
		CHECK_CONTAINS(e.msg, "malformed CSR: ");
		buf_byte(&der, 0);
		CHECK_ERR(x509_csr_parse(buf_view(&der), &c, &e), ERR_INVALID);
		key_unref(k);
	}
}

TEST_MAIN(TEST(test_build_and_parse), TEST(test_csr))

#include "tests/test.h"

#include "lib/der.h"
#include "tests/unit/x509_make.inc"
#include "tests/unit/x509_vectors.inc"

static struct err e;

/* ---- certificates with any extensions ---- */

struct raw_ext {
	struct bytes oid;
	bool critical;
	struct bytes value;
};

struct raw_cert {
	struct bytes subject, issuer; /* Names */
	int version;
	const struct raw_ext *ext;
	size_t n_ext;
	struct bytes not_before, not_after; /* elements; n = 0: around test_now */
};

#define OID_BC DER_BYTES(0x55, 0x1d, 0x13)
#define OID_KU DER_BYTES(0x55, 0x1d, 0x0f)
#define OID_SAN DER_BYTES(0x55, 0x1d, 0x11)
#define OID_NC DER_BYTES(0x55, 0x1d, 0x1e)
#define BC_CA DER_BYTES(0x30, 3, 1, 1, 0xff)
#define BC_CA_PATH0 DER_BYTES(0x30, 6, 1, 1, 0xff, 2, 1, 0)
#define BC_LEAF DER_BYTES(0x30, 0)
#define KU_CA DER_BYTES(3, 2, 1, 6)
#define KU_LEAF DER_BYTES(3, 2, 7, 0x80)
#define EXT(o, c, v)                                                                               \
	{                                                                                          \
		.oid = o, .critical = c, .value = v                                                \
	}

static struct bytes text(const char *s)
{
	return bytes_str(s);
}

static struct bytes name_of(const char *cn)
{
	static struct buf pool[64];
	static int next;
	struct buf *b = &pool[next++ % 64];
	struct x509_name n = { .common_name = cn };

	buf_deinit(b);
	*b = BUF_INIT;
	x509_name_der(&n, b);
	return buf_view(b);
}

static void raw_der(const struct raw_cert *rc, struct key *k, struct key *by, struct buf *ret)
{
	static const uint8_t alg[] = { 0x30, 0x0a, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2 };
	AUTO_BUF struct buf tbs = BUF_INIT, sig = BUF_INIT;
	uint8_t digest[32];
	size_t all, v;

	all = der_open(&tbs, DER_SEQUENCE);
	if (rc->version != 1)
		buf_append(&tbs, (const uint8_t[]){ 0xa0, 3, 2, 1, 2 }, 5);
	der_put_small(&tbs, 77);
	buf_append(&tbs, alg, sizeof(alg));
	buf_bytes(&tbs, rc->issuer);
	v = der_open(&tbs, DER_SEQUENCE);
	if (rc->not_before.n)
		buf_bytes(&tbs, rc->not_before);
	else
		der_put(&tbs, DER_UTC_TIME, text("251231235950Z"));
	if (rc->not_after.n)
		buf_bytes(&tbs, rc->not_after);
	else
		der_put(&tbs, DER_UTC_TIME, text("260101010000Z"));
	der_close(&tbs, v);
	buf_bytes(&tbs, rc->subject);
	buf_bytes(&tbs, pubkey_spki(key_public(k)));
	if (rc->n_ext) {
		size_t field = der_open(&tbs, DER_CONTEXT_CONSTRUCTED(3));
		size_t seq = der_open(&tbs, DER_SEQUENCE);

		for (size_t i = 0; i < rc->n_ext; i++) {
			size_t one = der_open(&tbs, DER_SEQUENCE);

			der_put(&tbs, DER_OID, rc->ext[i].oid);
			if (rc->ext[i].critical)
				der_put_bool(&tbs, true);
			der_put(&tbs, DER_OCTET_STRING, rc->ext[i].value);
			der_close(&tbs, one);
		}
		der_close(&tbs, seq);
		der_close(&tbs, field);
	}
	der_close(&tbs, all);
	hash_of(HASH_SHA256, buf_view(&tbs), digest);
	CHECK_OK(key_sign(by, HASH_SHA256, bytes_of(digest, 32), SIG_X509, &sig, &e));
	buf_reset(ret);
	all = der_open(ret, DER_SEQUENCE);
	buf_bytes(ret, buf_view(&tbs));
	buf_append(ret, alg, sizeof(alg));
	der_put_bits(ret, buf_view(&sig));
	der_close(ret, all);
}

static struct x509_cert *raw(const struct raw_cert *rc, struct key *k, struct key *by)
{
	AUTO_BUF struct buf der = BUF_INIT;
	struct x509_cert *c = NULL;

	raw_der(rc, k, by, &der);
	CHECK_OK(x509_parse(buf_view(&der), &c, &e));
	return c;
}

/* A tower: root, some CAs below it, a leaf, each with the extensions given. */
enum { FLOORS = 4 };
struct tower {
	struct key *keys[FLOORS];
	struct x509_chain ch, roots;
};

static const char *const floor_names[FLOORS] = { "leaf", "ca1", "ca2", "root" };

static const uint8_t oid_bc[] = { 0x55, 0x1d, 0x13 }, oid_ku[] = { 0x55, 0x1d, 0x0f };
static const uint8_t bc_ca[] = { 0x30, 3, 1, 1, 0xff }, ku_ca[] = { 3, 2, 1, 6 };
static const uint8_t bc_leaf[] = { 0x30, 0 }, ku_leaf[] = { 3, 2, 7, 0x80 };
#define FIXED(o, v)                                                                                \
	{                                                                                          \
		{ o, sizeof(o) }, true,                                                            \
		{                                                                                  \
			v, sizeof(v)                                                               \
		}                                                                                  \
	}
static const struct raw_ext plain_ca[] = { FIXED(oid_bc, bc_ca), FIXED(oid_ku, ku_ca) };
static const struct raw_ext plain_leaf[] = { FIXED(oid_bc, bc_leaf), FIXED(oid_ku, ku_leaf) };

struct floor {
	const struct raw_ext *ext;
	size_t n;
	const char *subject; /* NULL: as floor_names */
};

static void tower_init(struct tower *t, const struct floor plan[FLOORS])
{
	*t = (struct tower){ 0 };
	for (int i = 0; i < FLOORS; i++)
		t->keys[i] = test_key(KEY_EC_P256);
	for (int i = 0; i < FLOORS; i++) {
		int up = i == FLOORS - 1 ? i : i + 1;
		const struct floor *f = &plan[i];
		struct raw_cert rc = {
			.subject = name_of(f->subject ? f->subject : floor_names[i]),
			.issuer = name_of(plan[up].subject ? plan[up].subject : floor_names[up]),
			.ext = f->ext ? f->ext
			       : i    ? plain_ca
				      : plain_leaf,
			.n_ext = f->ext ? f->n : 2,
		};
		struct x509_cert *c = raw(&rc, t->keys[i], t->keys[up]);

		x509_chain_add(i == FLOORS - 1 ? &t->roots : &t->ch, c);
		x509_unref(c);
	}
}

static void tower_deinit(struct tower *t)
{
	for (int i = 0; i < FLOORS; i++)
		key_unref(t->keys[i]);
	x509_chain_deinit(&t->ch);
	x509_chain_deinit(&t->roots);
}

/* NULL: it verifies; else the reason that is given. */
static void check_tower(const struct floor plan[FLOORS], const char *why)
{
	struct tower t;

	tower_init(&t, plan);
	if (why) {
		CHECK_ERR(x509_verify(&t.ch, &t.roots, test_now, &e), ERR_INVALID);
		CHECK_CONTAINS(e.msg, why);
	} else {
		CHECK_OK(x509_verify(&t.ch, &t.roots, test_now, &e));
	}
	tower_deinit(&t);
}

/* ---- building and parsing ---- */

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

static void test_mutilated(void)
{
	struct test_ca root = test_ca(KEY_EC_P256, "root", NULL, test_now);
	AUTO_BUF struct buf der = BUF_INIT;
	struct x509_cert *c = NULL;

	buf_bytes(&der, x509_der(root.cert));
	for (size_t n = 0; n < der.len; n++)
		CHECK_ERR(x509_parse(bytes_of(der.p, n), &c, &e), ERR_INVALID);
	CHECK(!c);
	for (size_t i = 0; i < der.len; i++) {
		der.p[i] ^= 0x41;
		if (x509_parse(buf_view(&der), &c, &e) == 0) {
			CHECK(x509_signed_by(c, root.cert, &e) != 0);
			x509_unref(c);
		}
		der.p[i] ^= 0x41;
	}
	buf_byte(&der, 0);
	CHECK_ERR(x509_parse(buf_view(&der), &c, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "trailing data");
	test_ca_free(&root);
}

static struct x509_template template_of(struct key *k, const uint8_t *serial)
{
	return (struct x509_template){
		.serial = bytes_of(serial, 16),
		.issuer_raw = bytes_of(bc_leaf, 2), /* an empty Name looks the same */
		.not_before = test_now,
		.not_after = test_now,
		.spki = pubkey_spki(key_public(k)),
	};
}

static void test_times(void)
{
	static const int64_t times[] = { -631152000, -1, 0, 951782400, 1709164800, 2524607999,
		2524608000, 4107542400, 253402300799 };
	struct key *k = test_key(KEY_EC_P256);
	struct x509_signer s = test_signer(k);
	uint8_t serial[16] = { 1 };

	for (size_t i = 0; i < ARRAY_LEN(times); i++) {
		AUTO_BUF struct buf der = BUF_INIT;
		struct x509_template t = template_of(k, serial);
		struct x509_cert *c;

		t.issuer_raw = name_of("x");
		t.not_before = t.not_after = wall_of_sec(times[i]);
		CHECK_OK(x509_build(&t, &s, &der, &e));
		CHECK_OK(x509_parse(buf_view(&der), &c, &e));
		CHECK_INT(x509_not_before(c).sec, times[i]);
		CHECK_INT(x509_not_after(c).sec, times[i]);
		/* RFC 5280 4.1.2.5: UTCTime through the year 2049. */
		CHECK_INT(memmem(der.p, der.len, "\x17\x0d", 2) != NULL, times[i] < 2524608000);
		x509_unref(c);
	}
	for (int64_t day = -7000; day < 60000; day += 37) {
		AUTO_BUF struct buf der = BUF_INIT;
		struct x509_template t = template_of(k, serial);
		struct x509_cert *c;

		t.issuer_raw = name_of("x");
		t.not_before = t.not_after = wall_of_sec(day * 86400 + 3661);
		CHECK_OK(x509_build(&t, &s, &der, &e));
		CHECK_OK(x509_parse(buf_view(&der), &c, &e));
		CHECK_INT(x509_not_after(c).sec, day * 86400 + 3661);
		x509_unref(c);
	}
	key_unref(k);
}

static void test_bad_times(void)
{
	static const char *const bad[] = { "261301000000Z", "260001000000Z", "260230000000Z",
		"260101240000Z", "260101006000Z", "260101000060Z", "2601010000Z",
		"260101000000+0000", "260101000000", "26010100000aZ", "270229000000Z", "" };
	struct key *k = test_key(KEY_EC_P256);
	AUTO_BUF struct buf der = BUF_INIT;
	struct x509_cert *c;

	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		AUTO_BUF struct buf when = BUF_INIT;
		struct raw_cert rc = { .subject = name_of("a"), .issuer = name_of("a") };

		der_put(&when, DER_UTC_TIME, text(bad[i]));
		rc.not_after = buf_view(&when);
		raw_der(&rc, k, k, &der);
		CHECK_ERR(x509_parse(buf_view(&der), &c, &e), ERR_INVALID);
		CHECK_CONTAINS(e.msg, "validity");
	}
	key_unref(k);
}

static void test_template_checks(void)
{
	struct key *k = test_key(KEY_EC_P256);
	struct x509_signer s = test_signer(k);
	AUTO_BUF struct buf der = BUF_INIT;
	uint8_t serial[21] = { 0 };
	const char *umlaut = "spiffe://td/\xc3\xa4";
	struct x509_template t = template_of(k, serial);

	CHECK_ERR(x509_build(&t, &s, &der, &e), ERR_INVALID); /* serial 0 */
	serial[20] = 1;
	t.serial = bytes_of(serial, 21);
	CHECK_ERR(x509_build(&t, &s, &der, &e), ERR_INVALID);
	t.serial = bytes_of(serial + 20, 1);
	t.uris = &umlaut;
	t.n_uris = 1;
	CHECK_ERR(x509_build(&t, &s, &der, &e), ERR_INVALID);
	t.n_uris = 0;
	t.not_after = wall_of_sec(test_now.sec - 1);
	CHECK_ERR(x509_build(&t, &s, &der, &e), ERR_INVALID);
	t.not_after = wall_of_sec(INT64_C(253402300800));
	CHECK_ERR(x509_build(&t, &s, &der, &e), ERR_INVALID);
	t.not_after = test_now;
	t.spki = bytes_of("\x30\x00", 2);
	CHECK_ERR(x509_build(&t, &s, &der, &e), ERR_INVALID);
	CHECK_INT(der.len, 0);
	key_unref(k);
}

static void test_serials(void)
{
	static const struct {
		const char *bytes;
		size_t n;
		const char *decimal, *hex;
	} cases[] = {
		{ "\x01", 1, "1", "01" },
		{ "\x00\xff", 2, "255", "ff" },
		{ "\x80\x00", 2, "32768", "8000" },
		{ "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 16,
			"340282366920938463463374607431768211455",
			"ffffffffffffffffffffffffffffffff" },
	};
	struct key *k = test_key(KEY_EC_P256);
	struct x509_signer s = test_signer(k);

	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		AUTO_BUF struct buf der = BUF_INIT, dec = BUF_INIT, hex = BUF_INIT;
		struct x509_template t = template_of(k, NULL);
		struct x509_cert *c;

		t.serial = bytes_of(cases[i].bytes, cases[i].n);
		t.issuer_raw = name_of("x");
		CHECK_OK(x509_build(&t, &s, &der, &e));
		CHECK_OK(x509_parse(buf_view(&der), &c, &e));
		x509_serial_decimal(c, &dec);
		x509_serial_hex(c, &hex);
		CHECK_STR(buf_cstr(&dec), cases[i].decimal);
		CHECK_STR(buf_cstr(&hex), cases[i].hex);
		x509_unref(c);
	}
	key_unref(k);
}

static void test_names(void)
{
	struct x509_name n = { .country = "US",
		.organization = "A, \"B\"",
		.organizational_unit = "\xc3\xa4",
		.serial_number = "12",
		.common_name = " x" };
	AUTO_BUF struct buf raw_name = BUF_INIT, other = BUF_INIT, again = BUF_INIT,
			    shown = BUF_INIT;
	struct key *k = test_key(KEY_EC_P256);
	struct raw_cert rc;
	struct x509_cert *c;

	x509_name_der(&n, &raw_name);
	rc = (struct raw_cert){ .subject = buf_view(&raw_name), .issuer = name_of("i") };
	c = raw(&rc, k, k);
	x509_subject_text(c, &shown);
	CHECK_STR(buf_cstr(&shown), "CN=\\ x,SERIALNUMBER=12,OU=\xc3\xa4,O=A\\, \\\"B\\\",C=US");
	CHECK_STR(x509_subject_cn(c), " x");
	x509_unref(c);
	CHECK_OK(x509_name_with_cn(buf_view(&raw_name), "new", &other, &e));
	n.common_name = "new";
	x509_name_der(&n, &again);
	CHECK_BYTES(buf_view(&other), buf_view(&again));
	buf_reset(&other);
	CHECK_OK(x509_name_with_cn(DER_BYTES(0x30, 0), "new", &other, &e));
	CHECK_BYTES(buf_view(&other), name_of("new"));
	CHECK_ERR(x509_name_with_cn(DER_BYTES(0x30, 1), "new", &other, &e), ERR_INVALID);
	n.organizational_unit = "DOWN-1";
	buf_reset(&other);
	CHECK_OK(x509_name_with_ou(buf_view(&raw_name), "DOWN-1", &other, &e));
	n.common_name = " x";
	buf_reset(&again);
	x509_name_der(&n, &again);
	CHECK_BYTES(buf_view(&other), buf_view(&again));
	buf_reset(&other);
	CHECK_OK(x509_name_with_ou(DER_BYTES(0x30, 0), "u", &other, &e));
	buf_reset(&again);
	x509_name_der(&(struct x509_name){ .organizational_unit = "u" }, &again);
	CHECK_BYTES(buf_view(&other), buf_view(&again));
	CHECK_ERR(x509_name_with_ou(DER_BYTES(0x30, 1), "u", &other, &e), ERR_INVALID);
	CHECK_ERR(x509_name_with_cn(DER_BYTES(0x30, 2, 0x31, 0), "new", &other, &e), ERR_INVALID);
	key_unref(k);
}

static void test_shapes(void)
{
	const struct raw_ext twice[] = { EXT(OID_BC, true, BC_CA), EXT(OID_BC, true, BC_CA) };
	const struct raw_ext bad_bc[] = { EXT(OID_BC, true, DER_BYTES(0x30, 1)) };
	const struct raw_ext nul_uri[] = { EXT(
		OID_SAN, false, DER_BYTES(0x30, 5, 0x86, 3, 'a', 0, 'b')) };
	const struct raw_ext ip5[] = { EXT(
		OID_SAN, false, DER_BYTES(0x30, 7, 0x87, 5, 1, 2, 3, 4, 5)) };
	const struct raw_ext empty_san[] = { EXT(OID_SAN, false, DER_BYTES(0x30, 0)) };
	const struct {
		const struct raw_ext *ext;
		size_t n;
		int version;
		const char *why;
	} cases[] = {
		{ twice, 2, 3, "twice" },
		{ bad_bc, 1, 3, "basicConstraints" },
		{ nul_uri, 1, 3, "subjectAltName" },
		{ ip5, 1, 3, "subjectAltName" },
		{ empty_san, 1, 3, "subjectAltName" },
		{ plain_ca, 2, 1, "extensions" },
	};
	struct key *k = test_key(KEY_EC_P256);
	AUTO_BUF struct buf der = BUF_INIT;
	struct x509_cert *c;

	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct raw_cert rc = { .subject = name_of("a"),
			.issuer = name_of("a"),
			.ext = cases[i].ext,
			.n_ext = cases[i].n,
			.version = cases[i].version };

		raw_der(&rc, k, k, &der);
		CHECK_ERR(x509_parse(buf_view(&der), &c, &e), ERR_INVALID);
		CHECK_CONTAINS(e.msg, cases[i].why);
	}
	key_unref(k);
}

static void test_chains(void)
{
	struct test_ca a = test_ca(KEY_EC_P256, "a", NULL, test_now);
	struct test_ca b = test_ca(KEY_EC_P256, "b", NULL, test_now);
	AUTO_BUF struct buf der = BUF_INIT, pem = BUF_INIT, key = BUF_INIT;
	struct x509_chain ch = { 0 }, back = { 0 }, copy;

	x509_chain_add(&ch, a.cert);
	x509_chain_add(&ch, b.cert);
	x509_chain_der(&ch, &der);
	CHECK_OK(x509_chain_parse_der(&back, buf_view(&der), 2, &e));
	CHECK_INT(back.n, 2);
	CHECK_BYTES(x509_der(back.v[1]), x509_der(b.cert));
	x509_chain_deinit(&back);
	CHECK_ERR(x509_chain_parse_der(&back, buf_view(&der), 1, &e), ERR_INVALID);
	CHECK_ERR(x509_chain_parse_der(&back, bytes_of(der.p, der.len - 1), 2, &e), ERR_INVALID);
	CHECK_ERR(x509_chain_parse_der(&back, bytes_of(NULL, 0), 2, &e), ERR_INVALID);
	pem_write(&key, "PRIVATE KEY", bytes_str("not looked at"));
	buf_bytes(&pem, buf_view(&key));
	x509_chain_pem(&ch, &pem);
	CHECK_OK(x509_chain_parse_pem(&back, buf_view(&pem), 2, &e));
	CHECK_INT(back.n, 2);
	copy = x509_chain_dup(&back);
	x509_chain_deinit(&back);
	CHECK_BYTES(x509_der(copy.v[0]), x509_der(a.cert));
	CHECK_ERR(x509_chain_parse_pem(&back, buf_view(&key), 2, &e), ERR_INVALID);
	x509_chain_deinit(&copy);
	x509_chain_deinit(&ch);
	test_ca_free(&a);
	test_ca_free(&b);
}

/* ---- CSRs ---- */

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

static void test_csr_dns(void)
{
	static const char *const dns[] = { "a.example.org", "b" };
	struct key *k = test_key(KEY_EC_P256);
	AUTO_BUF struct buf der = BUF_INIT;
	struct x509_csr c;

	CHECK_OK(x509_csr_make_dns(k, "spiffe://td/x", dns, 2, &der, &e));
	CHECK_OK(x509_csr_parse(buf_view(&der), &c, &e));
	CHECK_OK(x509_csr_check_signature(&c, &e));
	CHECK_INT(c.uris.n, 1);
	CHECK_INT(c.dns_names.n, 2);
	CHECK_STR(c.dns_names.v[0], "a.example.org");
	x509_csr_deinit(&c);
	key_unref(k);
}

static struct x509_csr foreign_csr(const char *base64)
{
	AUTO_BUF struct buf der = BUF_INIT;
	struct x509_csr c;

	CHECK_OK(base64_decode(&der, bytes_str(base64), &e));
	CHECK_OK(x509_csr_parse(buf_view(&der), &c, &e));
	return c;
}

static void test_foreign_csrs(void)
{
	struct x509_csr c;

	crypto_init();
	c = foreign_csr(csr_pss);
	CHECK_OK(x509_csr_check_signature(&c, &e));
	CHECK_STR(c.uris.v[0], "spiffe://td/pss");
	CHECK_STR(c.dns_names.v[0], "a.td");
	x509_csr_deinit(&c);
	c = foreign_csr(csr_ed25519);
	CHECK_INT(pubkey_type(c.pubkey), KEY_ED25519);
	CHECK_OK(x509_csr_check_signature(&c, &e));
	x509_csr_deinit(&c);
	c = foreign_csr(csr_p384);
	CHECK_OK(x509_csr_check_signature(&c, &e));
	CHECK_BYTES(buf_view(&c.subject_raw), DER_BYTES(0x30, 0));
	CHECK_INT(c.uris.n, 2);
	CHECK_STR(c.uris.v[1], "spiffe://td/2");
	CHECK_STR(c.dns_names.v[0], "b.td"); /* in the order given */
	x509_csr_deinit(&c);
	c = foreign_csr(csr_sha1);
	CHECK_ERR(x509_csr_check_signature(&c, &e), ERR_INVALID);
	x509_csr_deinit(&c);
}

/* ---- verification ---- */

static void test_paths(void)
{
	static const struct floor plan[FLOORS] = { { 0 } };
	struct x509_chain path = { 0 }, shuffled = { 0 }, no_roots = { 0 };
	struct tower t, other;

	check_tower(plan, NULL);
	tower_init(&t, plan);
	tower_init(&other, plan);
	/* any order, with the root and strangers between */
	x509_chain_add(&shuffled, t.ch.v[0]);
	x509_chain_add(&shuffled, t.roots.v[0]);
	x509_chain_add(&shuffled, other.ch.v[1]);
	x509_chain_add(&shuffled, t.ch.v[2]);
	x509_chain_add(&shuffled, t.ch.v[1]);
	CHECK_OK(x509_verify_path(&shuffled, &t.roots, test_now, &path, &e));
	CHECK_INT(path.n, 4);
	CHECK_BYTES(x509_der(path.v[0]), x509_der(t.ch.v[0]));
	CHECK_BYTES(x509_der(path.v[3]), x509_der(t.roots.v[0]));
	x509_chain_deinit(&path);
	/* several roots of one name, only one of them the right one */
	x509_chain_add(&other.roots, t.roots.v[0]);
	CHECK_OK(x509_verify(&t.ch, &other.roots, test_now, &e));
	/* another root of the same name, no root, a hole in the chain, no chain */
	x509_unref(other.roots.v[--other.roots.n]);
	CHECK_ERR(x509_verify(&t.ch, &other.roots, test_now, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "x509: certificate signed by unknown authority");
	CHECK_ERR(x509_verify(&t.ch, &no_roots, test_now, &e), ERR_INVALID);
	CHECK_STR(e.msg, "x509: certificate signed by unknown authority");
	x509_unref(t.ch.v[--t.ch.n]);
	CHECK_ERR(x509_verify(&t.ch, &t.roots, test_now, &e), ERR_INVALID);
	CHECK_ERR(x509_verify(&no_roots, &t.roots, test_now, &e), ERR_INVALID);
	/* what is trusted itself */
	CHECK_OK(x509_verify(&t.roots, &t.roots, test_now, &e));
	for (int i = 0; i < X509_MAX_CHAIN; i++)
		x509_chain_add(&t.ch, t.ch.v[0]);
	CHECK_ERR(x509_verify(&t.ch, &t.roots, test_now, &e), ERR_INVALID);
	x509_chain_deinit(&shuffled);
	tower_deinit(&t);
	tower_deinit(&other);
}

static void test_dates(void)
{
	static const struct floor plan[FLOORS] = { { 0 } };
	struct tower t;

	tower_init(&t, plan);
	CHECK_OK(x509_verify(&t.ch, &t.roots, wall_of_sec(test_now.sec - 10), &e));
	CHECK_OK(x509_verify(&t.ch, &t.roots, wall_of_sec(test_now.sec + 3600), &e));
	CHECK_ERR(x509_verify(&t.ch, &t.roots, wall_of_sec(test_now.sec - 11), &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "x509: certificate has expired or is not yet valid: ");
	CHECK_CONTAINS(e.msg, "is before 2025-12-31T23:59:50");
	CHECK_ERR(x509_verify(&t.ch, &t.roots, wall_of_sec(test_now.sec + 3603), &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "expired 3 s ago");
	tower_deinit(&t);
}

static void test_expired_above(void)
{
	struct test_ca root = test_ca(KEY_EC_P256, "root", NULL, wall_of_sec(test_now.sec - 5000));
	struct key *k = test_key(KEY_EC_P256);
	struct x509_cert *c = test_cert(k, NULL, "spiffe://td/a", false, &root, test_now);
	struct x509_chain ch = { 0 }, roots = { 0 };

	x509_chain_add(&ch, c);
	x509_chain_add(&roots, root.cert);
	CHECK_ERR(x509_verify(&ch, &roots, test_now, &e), ERR_INVALID);
	CHECK_CONTAINS(e.msg, "expired");
	x509_chain_deinit(&ch);
	x509_chain_deinit(&roots);
	x509_unref(c);
	key_unref(k);
	test_ca_free(&root);
}

static void test_issuer_rules(void)
{
	const struct raw_ext not_ca[] = { EXT(OID_BC, true, BC_LEAF) };
	const struct raw_ext no_bc[] = { EXT(OID_KU, true, KU_CA) };
	const struct raw_ext no_sign[] = { EXT(OID_BC, true, BC_CA), EXT(OID_KU, true, KU_LEAF) };
	const struct raw_ext only_bc[] = { EXT(OID_BC, true, BC_CA) };
	const struct raw_ext path0[] = { EXT(OID_BC, true, BC_CA_PATH0), EXT(OID_KU, true, KU_CA) };
	const struct raw_ext strange[] = { EXT(OID_BC, true, BC_CA),
		EXT(DER_BYTES(0x2a, 0x03, 0x04), true, DER_BYTES(5, 0)) };
	const struct raw_ext strange_leaf[] = { EXT(
		DER_BYTES(0x2a, 0x03, 0x04), true, DER_BYTES(5, 0)) };
	const struct raw_ext harmless[] = { EXT(
		DER_BYTES(0x2a, 0x03, 0x04), false, DER_BYTES(5, 0)) };

	for (int i = 1; i < FLOORS; i++) {
		struct floor plan[FLOORS] = { { 0 } };

		plan[i] = (struct floor){ not_ca, 1, NULL };
		check_tower(plan, "it is no CA");
		plan[i] = (struct floor){ no_bc, 1, NULL };
		check_tower(plan, "it is no CA");
		plan[i] = (struct floor){ no_sign, 2, NULL };
		check_tower(plan, "keyCertSign");
		plan[i] = (struct floor){ strange, 2, NULL };
		check_tower(plan, "unhandled critical extension (1.2.3.4)");
		plan[i] = (struct floor){ only_bc, 1, NULL };
		check_tower(plan, NULL);
		plan[i] = (struct floor){ path0, 2, NULL };
		check_tower(plan, i == 1 ? NULL : "path length");
	}
	check_tower((struct floor[FLOORS]){ { strange_leaf, 1, NULL } }, "unhandled critical");
	check_tower((struct floor[FLOORS]){ { harmless, 1, NULL } }, NULL);
	/* Self-issued intermediates do not count (RFC 5280 4.2.1.9). */
	check_tower(
		(struct floor[FLOORS]){ { 0 }, { NULL, 0, "same" }, { path0, 2, "same" } }, NULL);
	check_tower((struct floor[FLOORS]){ { 0 }, { NULL, 0, "same" }, { NULL, 0, "same" },
			    { path0, 2, "same" } },
		NULL);
}

/* SAN with one name of a kind. */
static struct bytes one_name(uint8_t tag, const char *name)
{
	static struct buf pool[8];
	static int next;
	struct buf *b = &pool[next++ % 8];
	size_t seq;

	buf_deinit(b);
	*b = BUF_INIT;
	seq = der_open(b, DER_SEQUENCE);
	der_put(b, tag, text(name));
	der_close(b, seq);
	return buf_view(b);
}

/* NameConstraints with one subtree; list 0: permitted, 1: excluded. */
static struct bytes constraint(int list, uint8_t tag, struct bytes base)
{
	static struct buf pool[8];
	static int next;
	struct buf *b = &pool[next++ % 8];
	size_t all, l, sub;

	buf_deinit(b);
	*b = BUF_INIT;
	all = der_open(b, DER_SEQUENCE);
	l = der_open(b, (uint8_t)DER_CONTEXT_CONSTRUCTED(list));
	sub = der_open(b, DER_SEQUENCE);
	der_put(b, tag, base);
	der_close(b, sub);
	der_close(b, l);
	der_close(b, all);
	return buf_view(b);
}

enum { EMAIL = 0x81, DNS = 0x82, URI = 0x86, IP = 0x87, DIRECTORY = 0xa4 };

static void check_constraint(int list, uint8_t tag, const char *base, const char *name, bool ok)
{
	for (int i = 1; i < FLOORS; i++) { /* at every tier */
		struct floor plan[FLOORS] = { { 0 } };
		struct raw_ext ca[] = { EXT(OID_BC, true, BC_CA),
			EXT(OID_NC, true, constraint(list, tag, text(base))) };
		struct raw_ext leaf[] = { EXT(OID_SAN, false, one_name(tag, name)) };

		plan[0] = (struct floor){ leaf, 1, NULL };
		plan[i] = (struct floor){ ca, 2, NULL };
		check_tower(plan, ok ? NULL : "not permitted by the name constraints");
	}
}

static void test_name_constraints(void)
{
	static const struct {
		int list;
		uint8_t tag;
		const char *base, *name;
		bool ok;
	} cases[] = {
		{ 0, URI, "example.org", "spiffe://example.org/a", true },
		{ 0, URI, "example.org", "spiffe://EXAMPLE.org", true },
		{ 0, URI, "example.org", "spiffe://other.org/a", false },
		{ 0, URI, "example.org", "spiffe://a.example.org/a", false },
		{ 0, URI, "example.org", "spiffe://xexample.org/a", false },
		{ 0, URI, "example.org", "spiffe://other.org/@example.org", false },
		{ 0, URI, "example.org", "spiffe://other.org?@example.org", false },
		{ 0, URI, "example.org", "https://u@example.org:8/a", true },
		{ 0, URI, "example.org", "urn:example.org", false },
		{ 0, URI, "example.org", "https://[::1]/", false },
		{ 0, URI, ".example.org", "spiffe://a.b.example.org/a", true },
		{ 0, URI, ".example.org", "spiffe://example.org/a", false },
		{ 1, URI, "example.org", "spiffe://example.org/a", false },
		{ 1, URI, "example.org", "spiffe://a.example.org/a", false },
		{ 1, URI, "example.org", "spiffe://other.org/a", true },
		{ 1, URI, "example.org", "urn:x", false },
		{ 0, DNS, "example.org", "a.example.org", true },
		{ 0, DNS, "example.org", "example.org", true },
		{ 0, DNS, "example.org", "*.example.org", true },
		{ 0, DNS, "example.org", "example.com", false },
		{ 0, DNS, "", "example.com", true },
		{ 1, DNS, "a.example.org", "a.example.org", false },
		{ 1, DNS, "a.example.org", "*.example.org", false },
		{ 1, DNS, "a.example.org", "b.example.org", true },
		{ 0, EMAIL, "example.org", "a@example.org", true },
		{ 0, EMAIL, "example.org", "a@b.example.org", false },
		{ 0, EMAIL, "a@example.org", "b@example.org", false },
		{ 0, EMAIL, "a@example.org", "a@Example.org", true },
		{ 1, EMAIL, "a@example.org", "a@example.org", false },
		{ 0, IP, "\x0a\x01\x01\x01\xff\xff\x01\x01", "\x0a\x01\x05\x07", true },
		{ 0, IP, "\x0a\x01\x01\x01\xff\xff\x01\x01", "\x0a\x02\x05\x07", false },
		{ 1, IP, "\x0a\x01\x01\x01\xff\xff\x01\x01", "\x0a\x01\x05\x07", false },
	};
	const struct raw_ext directory[] = { EXT(OID_BC, true, BC_CA),
		EXT(OID_NC, true, DER_BYTES(0x30, 8, 0xa0, 6, 0x30, 4, 0xa4, 2, 0x30, 0)) };
	const struct raw_ext odd_uri[] = { EXT(
		OID_SAN, false, DER_BYTES(0x30, 9, 0x86, 7, 'u', 'r', 'n', ':', 'a', ':', 'b')) };

	for (size_t i = 0; i < ARRAY_LEN(cases); i++)
		check_constraint(
			cases[i].list, cases[i].tag, cases[i].base, cases[i].name, cases[i].ok);
	check_tower((struct floor[FLOORS]){ { odd_uri, 1, NULL }, { 0 }, { directory, 2, NULL } },
		"name constraints that are not understood");
	check_tower((struct floor[FLOORS]){ { odd_uri, 1, NULL } }, NULL);
}

/* 300 roots of one name: the one that the key identifier names is found, at little cost; without a
 * key identifier the search still ends. */
static void test_many_roots(void)
{
	struct x509_chain roots = { 0 }, ch = { 0 };
	struct test_ca last = { 0 };
	struct key *k = test_key(KEY_EC_P256);
	struct x509_cert *c;
	struct raw_cert rc;

	for (int i = 0; i < 300; i++) {
		test_ca_free(&last);
		last = test_ca(KEY_EC_P256, "same", NULL, test_now);
		x509_chain_add(&roots, last.cert);
	}
	c = test_cert(k, NULL, "spiffe://td/a", false, &last, test_now);
	x509_chain_add(&ch, c);
	CHECK_OK(x509_verify(&ch, &roots, test_now, &e));
	x509_unref(c);
	x509_chain_deinit(&ch);
	rc = (struct raw_cert){ .subject = name_of("x"), .issuer = x509_subject_raw(last.cert) };
	c = raw(&rc, k, k);
	x509_chain_add(&ch, c);
	CHECK_ERR(x509_verify(&ch, &roots, test_now, &e), ERR_INVALID);
	x509_unref(c);
	x509_chain_deinit(&ch);
	x509_chain_deinit(&roots);
	test_ca_free(&last);
	key_unref(k);
}

/* CAs that all sign one another: bounded work, and the way out is found. */
static void test_cross_signed(void)
{
	enum { N = 3 };
	struct key *k[N], *leaf = test_key(KEY_EC_P256), *root = test_key(KEY_EC_P256);
	struct x509_chain ch = { 0 }, roots = { 0 }, none = { 0 };
	struct raw_cert rc = {
		.subject = name_of("leaf"), .issuer = name_of("ca"), .ext = plain_leaf, .n_ext = 2
	};
	struct x509_cert *c;

	for (int i = 0; i < N; i++)
		k[i] = test_key(KEY_EC_P256);
	c = raw(&rc, leaf, k[0]);
	x509_chain_add(&ch, c);
	x509_unref(c);
	rc = (struct raw_cert){
		.subject = name_of("ca"), .issuer = name_of("ca"), .ext = plain_ca, .n_ext = 2
	};
	for (int i = 0; i < N; i++)
		for (int j = 0; j < N; j++) {
			if (i == j)
				continue;
			c = raw(&rc, k[i], k[j]);
			x509_chain_add(&ch, c);
			x509_unref(c);
		}
	CHECK_ERR(x509_verify(&ch, &none, test_now, &e), ERR_INVALID);
	rc.issuer = name_of("root");
	c = raw(&rc, k[N - 1], root);
	x509_chain_add(&ch, c);
	x509_unref(c);
	rc.subject = name_of("root");
	c = raw(&rc, root, root);
	x509_chain_add(&roots, c);
	x509_unref(c);
	CHECK_OK(x509_verify(&ch, &roots, test_now, &e));
	x509_chain_deinit(&ch);
	x509_chain_deinit(&roots);
	for (int i = 0; i < N; i++)
		key_unref(k[i]);
	key_unref(leaf);
	key_unref(root);
}

static void check_svid(const struct raw_ext *ext, size_t n, const char *why)
{
	struct key *k = test_key(KEY_EC_P256);
	struct raw_cert rc = {
		.subject = name_of("a"), .issuer = name_of("b"), .ext = ext, .n_ext = n
	};
	struct x509_cert *c = raw(&rc, k, k);
	struct spiffeid id = SPIFFEID_INIT;

	if (why) {
		CHECK_ERR(x509_svid_id(c, &id, &e), ERR_INVALID);
		CHECK_CONTAINS(e.msg, why);
		CHECK(!id.text);
	} else {
		CHECK_OK(x509_svid_id(c, &id, &e));
		spiffeid_deinit(&id);
	}
	x509_unref(c);
	key_unref(k);
}

static void test_svid_rules(void)
{
	struct raw_ext x[3] = { EXT(OID_BC, true, BC_LEAF), EXT(OID_KU, true, KU_LEAF),
		EXT(OID_SAN, false, one_name(URI, "spiffe://td/a")) };

	crypto_init();
	check_svid(x, 3, NULL);
	x[2].value = one_name(URI, "spiffe://td");
	check_svid(x, 3, NULL);
	check_svid(x, 2, "no URI SAN");
	x[2].value = DER_BYTES(0x30, 30, 0x86, 13, 's', 'p', 'i', 'f', 'f', 'e', ':', '/', '/', 't',
		'd', '/', 'a', 0x86, 13, 's', 'p', 'i', 'f', 'f', 'e', ':', '/', '/', 't', 'd', '/',
		'b');
	check_svid(x, 3, "more than one URI SAN");
	x[2].value = one_name(URI, "https://td/a");
	check_svid(x, 3, "SPIFFE ID");
	x[2].value = one_name(URI, "spiffe://td/a");
	x[0].value = BC_CA;
	check_svid(x, 3, "CA flag");
	x[0].value = BC_LEAF;
	x[1].value = DER_BYTES(3, 2, 1, 0x82);
	check_svid(x, 3, "KeyCrlSign");
	x[1].value = DER_BYTES(3, 2, 2, 0x84);
	check_svid(x, 3, "KeyCertSign");
	x[1].value = DER_BYTES(3, 2, 3, 8);
	check_svid(x, 3, "DigitalSignature");
}

TEST_MAIN(TEST(test_build_and_parse), TEST(test_mutilated), TEST(test_times), TEST(test_bad_times),
	TEST(test_template_checks), TEST(test_serials), TEST(test_names), TEST(test_shapes),
	TEST(test_chains), TEST(test_csr), TEST(test_csr_dns), TEST(test_foreign_csrs),
	TEST(test_paths), TEST(test_dates), TEST(test_expired_above), TEST(test_issuer_rules),
	TEST(test_name_constraints), TEST(test_many_roots), TEST(test_cross_signed),
	TEST(test_svid_rules))

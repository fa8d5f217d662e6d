/* SSH: first byte 0: a line of a file, 1: a certificate, 2: a private key's file, 3: a public key.
 */
#include "lib/ssh.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void line(struct bytes v)
{
	AUTO_BUF struct buf b = BUF_INIT;
	struct err e;

	if (ssh_line_parse(v, &b, &e))
		INVARIANT(b.len == 0);
}

static void cert(struct bytes v)
{
	struct ssh_cert c;
	struct err e;

	if (ssh_cert_parse(v, &c, &e))
		return;
	INVARIANT(c.signed_part.n < v.n);
	(void)!ssh_cert_check_host(&c, wall_of_sec(1767225600), &e);
	ssh_cert_deinit(&c);
}

static void private(struct bytes v)
{
	struct key *k;
	struct err e;

	if (ssh_key_parse(v, &k, &e) == 0)
		key_unref(k);
}

static void public(struct bytes v)
{
	struct pubkey *k;
	struct err e;

	if (ssh_public_parse(v, &k, &e) == 0)
		pubkey_unref(k);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	static void (*const parsers[])(struct bytes) = { line, cert, private, public };

	crypto_init();
	if (n)
		parsers[data[0] % ARRAY_LEN(parsers)](bytes_of(data + 1, n - 1));
	return 0;
}

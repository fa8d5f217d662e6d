/* A CSR that parses keeps its bytes, its signature can be asked for, its subject can be used. */
#include "lib/x509.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

/* Either answer is right; what counts is that there is one. */
static void ignore(int r)
{
	(void)r;
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	AUTO_BUF struct buf name = BUF_INIT;
	struct x509_csr c;
	struct err e;

	if (x509_csr_parse(bytes_of(p, n), &c, &e))
		return 0;
	INVARIANT(bytes_equal(buf_view(&c.raw), bytes_of(p, n)));
	ignore(x509_csr_check_signature(&c, &e));
	INVARIANT(x509_name_with_cn(buf_view(&c.subject_raw), "a.example.org", &name, &e) == 0);
	x509_csr_deinit(&c);
	return 0;
}

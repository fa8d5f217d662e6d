/* A bundle that is read is written and read again as the same. */
#include "lib/bundle.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	static bool begun;
	AUTO(bundle_unref) struct bundle *b = NULL;
	AUTO(bundle_unref) struct bundle *again = NULL;
	AUTO_BUF struct buf text = BUF_INIT;
	struct err e = ERR_INIT;

	if (!begun)
		crypto_init();
	begun = true;
	if (bundle_from_json("td", bytes_of(p, n), &b, &e) != 0)
		return 0;
	bundle_to_json(b, &text);
	INVARIANT(bundle_from_json("td", buf_view(&text), &again, &e) == 0);
	INVARIANT(bundle_equal_content(b, again) && b->sequence == again->sequence);
	return 0;
}

/* A SPIFFE ID that parses prints as it was read, and its parts make it again. */
#include <stdlib.h>
#include <string.h>

#include "lib/spiffeid.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	struct spiffeid id = SPIFFEID_INIT;
	struct spiffeid again = SPIFFEID_INIT;
	struct err e = ERR_INIT;
	char *td = NULL;
	char *text;

	if (spiffeid_parse(&id, bytes_of(p, n), &e) == 0) {
		struct bytes name = spiffeid_td(&id);
		char *name_text = xstrndup((const char *)name.p, name.n);

		INVARIANT(strlen(id.text) == n && memcmp(id.text, p, n) == 0);
		INVARIANT(spiffeid_make(&again, name_text, spiffeid_path(&id), &e) == 0);
		INVARIANT(spiffeid_equal(&id, &again));
		free(name_text);
	}
	spiffeid_deinit(&id);
	spiffeid_deinit(&again);
	text = xstrndup((const char *)p, n);
	if (trust_domain_parse(text, &td, &e) == 0)
		INVARIANT(trust_domain_check(bytes_str(td), &e) == 0);
	free(td);
	free(text);
	return 0;
}

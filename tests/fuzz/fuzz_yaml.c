/* A YAML document becomes JSON that can be written and read again, or is refused. */
#include "lib/yaml.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

static void try(struct bytes text, enum yaml_scalars scalars)
{
	struct err e = ERR_INIT;
	json_t *v = NULL, *again;
	char *s;

	if (yaml_parse(text, scalars, &v, &e) != 0) {
		INVARIANT(e.code == ERR_INVALID && !v);
		return;
	}
	s = json_dumps(v, JSON_ENCODE_ANY);
	INVARIANT(s);
	again = json_loads(s, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, NULL);
	INVARIANT(again);
	json_decref(again);
	json_decref(v);
	free(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	try(bytes_of(p, n), YAML_TYPED);
	try(bytes_of(p, n), YAML_STRINGS);
	return 0;
}

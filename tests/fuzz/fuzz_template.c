/* Templates over JSON: the text, a zero byte, the value. */
#include <string.h>

#include "lib/template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct template_field fields[] = { { "Name", NULL, TEMPLATE_STRING, NULL },
	{ "UID", NULL, TEMPLATE_STRING, NULL }, { "Labels", NULL, TEMPLATE_MAP, NULL },
	{ "Time", NULL, TEMPLATE_TIME, NULL }, { "P", NULL, TEMPLATE_POINTER, NULL },
	{ NULL, NULL, 0, NULL } };
static const struct template_type type = { "Struct", fields, true };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const uint8_t *zero = size ? memchr(data, 0, size) : NULL;
	size_t n = zero ? (size_t)(zero - data) : size;
	AUTO(free) char *text = xstrndup((const char *)data, n);
	AUTO_BUF struct buf out = BUF_INIT;
	struct template *t;
	json_t *j;

	if (template_parse(text, 0, &t, NULL))
		return 0;
	j = zero ? json_loadb((const char *)zero + 1, size - n - 1, JSON_DECODE_ANY, NULL) : NULL;
	if (!j)
		j = json_object();
	for (int typed = 0; typed < 2; typed++)
		if (template_execute(t, j, typed ? &type : NULL, &out, NULL))
			buf_reset(&out);
	json_decref(j);
	template_free(t);
	return 0;
}

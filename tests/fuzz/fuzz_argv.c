/* The arguments of a command in one string, and the file with the number of a process. */
#include "agent/files_argv.h"

#include <stdlib.h>
#include <string.h>

#include "lib/buf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* What was read, written so that it reads as the same. */
static void again(const struct strings *args)
{
	AUTO_BUF struct buf text = BUF_INIT;
	struct strings same = { NULL, 0 };
	struct err e;

	for (size_t i = 0; i < args->n; i++) {
		buf_str(&text, i ? " \"" : "\"");
		for (const char *p = args->v[i]; *p; p++) {
			if (*p == '"')
				buf_byte(&text, '"');
			buf_byte(&text, (uint8_t)*p);
		}
		buf_byte(&text, '"');
		/* A CR before a LF would not come back. */
		if (strstr(args->v[i], "\r\n"))
			return;
	}
	if (text.len > FILES_ARGV_MAX)
		return;
	INVARIANT(files_argv_parse(buf_cstr(&text), &same, &e) == 0);
	INVARIANT(same.n == args->n);
	for (size_t i = 0; i < same.n; i++)
		INVARIANT(strcmp(same.v[i], args->v[i]) == 0);
	strings_deinit(&same);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	AUTO(free) char *s = xstrndup((const char *)data, n);
	struct strings args = { NULL, 0 };
	struct err e;

	if (files_argv_parse(s, &args, &e)) {
		INVARIANT(!args.n && e.msg[0]);
		return 0;
	}
	INVARIANT(args.n <= FILES_ARGS_MAX && (args.n > 0) == (*s != 0));
	if (args.n)
		again(&args);
	strings_deinit(&args);
	return 0;
}

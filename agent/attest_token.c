#include <ctype.h>

#include "agent/attest.h"

/* join_token: the payload is the token's text; there is no challenge. */

enum { TOKEN_MAX = 4096 };

static int token_payload(const struct agent_options *o, struct buf *ret, struct err *e)
{
	AUTO_BUF struct buf file = { .max = TOKEN_MAX, .secret = true };
	int r;

	if (o->join_token && o->join_token[0]) {
		buf_str(ret, o->join_token);
		return 0;
	}
	if (!o->join_token_file || !o->join_token_file[0])
		return err_set(e, ERR_INVALID, "join token was not provided");
	r = buf_read_file(&file, o->join_token_file, e);
	if (r)
		return err_wrap(e, "join_token_file");
	while (file.len && isspace(file.p[file.len - 1]))
		file.len--;
	if (!file.len)
		return err_set(
			e, ERR_PRECONDITION, "join_token_file %s is empty", o->join_token_file);
	buf_bytes(ret, buf_view(&file));
	return 0;
}

const struct node_attestor attest_token = { .name = "join_token", .payload = token_payload };

#include "server/cmd_util.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/clock.h"
#include "lib/spiffeid.h"
#include "spire/api/types/federateswith.pb-c.h"

int cmd_id(const char *text, Spire__Api__Types__SPIFFEID **ret, struct err *e)
{
	struct spiffeid id = SPIFFEID_INIT;
	Spire__Api__Types__SPIFFEID *m;
	struct bytes td;
	int r = spiffeid_parse_str(&id, text, e);

	if (r)
		return r;
	m = xmalloc(sizeof(*m));
	spire__api__types__spiffeid__init(m);
	td = spiffeid_td(&id);
	m->trust_domain = xstrndup((const char *)td.p, td.n);
	m->path = xstrdup(spiffeid_path(&id));
	spiffeid_deinit(&id);
	*ret = m;
	return 0;
}

int cmd_selectors(const struct strings *texts, Spire__Api__Types__Selector ***ret, size_t *ret_n,
	struct err *e)
{
	Spire__Api__Types__Selector **v;

	for (size_t i = 0; i < texts->n; i++)
		if (!strchr(texts->v[i], ':'))
			return err_set(e, ERR_INVALID,
				"selector \"%s\" must be formatted as type:value", texts->v[i]);
	v = xcalloc(texts->n + 1, sizeof(*v));
	for (size_t i = 0; i < texts->n; i++) {
		const char *colon = strchr(texts->v[i], ':');

		v[i] = xmalloc(sizeof(*v[i]));
		spire__api__types__selector__init(v[i]);
		v[i]->type = xstrndup(texts->v[i], (size_t)(colon - texts->v[i]));
		v[i]->value = xstrdup(colon + 1);
	}
	*ret = v;
	*ret_n = texts->n;
	return 0;
}

void cmd_strings(const struct strings *s, char ***ret, size_t *ret_n)
{
	char **v = xcalloc(s->n + 1, sizeof(*v));

	for (size_t i = 0; i < s->n; i++)
		v[i] = xstrdup(s->v[i]);
	*ret = v;
	*ret_n = s->n;
}

#define SELECTOR(x) SPIRE__API__TYPES__SELECTOR_MATCH__MATCH_BEHAVIOR__MATCH_##x
#define FEDERATES(x) SPIRE__API__TYPES__FEDERATES_WITH_MATCH__MATCH_BEHAVIOR__MATCH_##x
static_assert((int)SELECTOR(EXACT) == (int)FEDERATES(EXACT), "one number for both");
static_assert((int)SELECTOR(SUBSET) == (int)FEDERATES(SUBSET), "one number for both");
static_assert((int)SELECTOR(SUPERSET) == (int)FEDERATES(SUPERSET), "one number for both");
static_assert((int)SELECTOR(ANY) == (int)FEDERATES(ANY), "one number for both");

int cmd_match(const char *text, int *ret, struct err *e)
{
	static const struct {
		const char *name;
		int value;
	} all[] = {
		{ "exact", SELECTOR(EXACT) },
		{ "any", SELECTOR(ANY) },
		{ "superset", SELECTOR(SUPERSET) },
		{ "subset", SELECTOR(SUBSET) },
	};

	for (size_t i = 0; i < ARRAY_LEN(all); i++)
		if (strcmp(all[i].name, text) == 0) {
			*ret = all[i].value;
			return 0;
		}
	return err_set(e, ERR_INVALID, "match behavior \"%s\" unknown", text);
}

int cmd_int32(int64_t v, const char *what, int32_t *ret, struct err *e)
{
	if (v < INT32_MIN || v > INT32_MAX)
		return err_set(e, ERR_INVALID,
			"invalid value for %s: overflow converting %lld to "
			"int32",
			what, (long long)v);
	*ret = (int32_t)v;
	return 0;
}

int cmd_ttl(int64_t ns, int32_t *ret, struct err *e)
{
	int64_t up;

	if (__builtin_add_overflow(ns, NS_PER_SEC - 1, &up))
		up = ns;
	return cmd_int32(up / NS_PER_SEC, "TTL", ret, e);
}

int cmd_read(struct cli *c, const char *path, struct buf *ret, struct err *e)
{
	if (strcmp(path, "-") != 0 && access(path, R_OK) < 0) {
		AUTO(free) char *reason = xstrdup(strerror(errno));

		reason[0] = (char)tolower((unsigned char)reason[0]);
		return err_set(e, ERR_NOT_FOUND, "open %s: %s", path, reason);
	}
	return cli_read(c, path, ret, e);
}

bool cmd_printed_json(struct cli *c, const void *m)
{
	const ProtobufCMessage *one = m;

	if (cli_json(c))
		cli_print_json(c, &one, 1);
	return cli_json(c);
}

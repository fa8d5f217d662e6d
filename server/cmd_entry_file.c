/* Files of entries, in SPIRE's JSON; and how an entry is printed. */
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "lib/spiffeid.h"
#include "server/cmd_entry.h"

void entry_list_add(struct entry_list *l, Spire__Api__Types__Entry *en)
{
	l->v = xreallocarray(l->v, l->n + 1, sizeof(Spire__Api__Types__Entry *));
	l->v[l->n++] = en;
}

void entry_list_deinit(struct entry_list *l)
{
	for (size_t i = 0; i < l->n; i++)
		if (l->v[i])
			spire__api__types__entry__free_unpacked(l->v[i], NULL);
	free(l->v);
	*l = (struct entry_list){ NULL, 0 };
}

/* ---- printing ---- */

static void print_ttl(FILE *to, const char *label, int32_t ttl)
{
	if (ttl)
		fprintf(to, "%s%d\n", label, (int)ttl);
	else
		fprintf(to, "%sdefault\n", label);
}

static void print_flag(FILE *to, const char *label, bool on)
{
	if (on)
		fprintf(to, "%strue\n", label);
}

void entry_print(FILE *to, const Spire__Api__Types__Entry *en)
{
	AUTO(free) char *id = cli_id_text(en->spiffe_id);
	AUTO(free) char *parent = cli_id_text(en->parent_id);
	const Spire__Api__Types__Entry__AdditionalAttributes *aa = en->additional_attributes;

	fprintf(to, "Entry ID                : %s\n", *en->id ? en->id : "(none)");
	fprintf(to, "SPIFFE ID               : %s\n", id);
	fprintf(to, "Parent ID               : %s\n", parent);
	fprintf(to, "Revision                : %" PRId64 "\n", en->revision_number);
	print_flag(to, "Downstream              : ", en->downstream);
	print_ttl(to, "X509-SVID TTL           : ", en->x509_svid_ttl);
	print_ttl(to, "JWT-SVID TTL            : ", en->jwt_svid_ttl);
	if (en->expires_at) {
		AUTO(free) char *when = cli_time(en->expires_at, true);

		fprintf(to, "Expiration time         : %s\n", when);
	}
	for (size_t i = 0; i < en->n_selectors; i++)
		fprintf(to, "Selector                : %s:%s\n", en->selectors[i]->type,
			en->selectors[i]->value);
	for (size_t i = 0; i < en->n_federates_with; i++)
		fprintf(to, "FederatesWith           : %s\n", en->federates_with[i]);
	for (size_t i = 0; i < en->n_dns_names; i++)
		fprintf(to, "DNS name                : %s\n", en->dns_names[i]);
	print_flag(to, "Admin                   : ", en->admin);
	print_flag(to, "StoreSvid               : ", en->store_svid);
	if (*en->hint)
		fprintf(to, "Hint                    : %s\n", en->hint);
	print_flag(to, "DisableX509SvidPrefetch : ", aa && aa->disable_x509_svid_prefetch);
	print_flag(to, "JwtSvidIncludeJti       : ", aa && aa->jwt_svid_include_jti);
	fprintf(to, "\n");
}

/* ---- reading ---- */

/* As Go's encoding/json: names are compared without case, unknown ones ignored, null is absent. */
static const json_t *member(const json_t *o, const char *name)
{
	const char *key;
	json_t *v;

	json_object_foreach((json_t *)(uintptr_t)o, key,
		v) if (strcasecmp(key, name) == 0 && !json_is_null(v)) return v;
	return NULL;
}

static int wrong(const char *name, const char *want, struct err *e)
{
	return err_set(e, ERR_INVALID, "\"%s\" must be %s", name, want);
}

static int take_string(const json_t *o, const char *name, char **ret, struct err *e)
{
	const json_t *v = member(o, name);

	if (!v)
		return 0;
	if (!json_is_string(v))
		return wrong(name, "a string", e);
	*ret = xstrdup(json_string_value(v));
	return 0;
}

static int take_bool(const json_t *o, const char *name, protobuf_c_boolean *ret, struct err *e)
{
	const json_t *v = member(o, name);

	if (v && !json_is_boolean(v))
		return wrong(name, "true or false", e);
	if (v)
		*ret = json_is_true(v);
	return 0;
}

static int take_int(const json_t *o, const char *name, int64_t *ret, struct err *e)
{
	const json_t *v = member(o, name);

	if (v && !json_is_integer(v))
		return wrong(name, "a whole number", e);
	if (v)
		*ret = json_integer_value(v);
	return 0;
}

static int take_int32(const json_t *o, const char *name, int32_t *ret, struct err *e)
{
	int64_t v = *ret;
	int r = take_int(o, name, &v, e);

	return r ? r : cmd_int32(v, name, ret, e);
}

static int take_list(const json_t *o, const char *name, const json_t **ret, struct err *e)
{
	*ret = member(o, name);
	return *ret && !json_is_array(*ret) ? wrong(name, "a list", e) : 0;
}

static int take_id(const json_t *o, const char *name, const char *what,
	Spire__Api__Types__SPIFFEID **ret, struct err *e)
{
	AUTO(free) char *text = NULL;
	int r = take_string(o, name, &text, e);

	if (r)
		return r;
	r = cmd_id(text ? text : "", ret, e);
	return r ? err_wrap(e, "invalid %s", what) : 0;
}

static int take_strings(const json_t *o, const char *name, struct strings *ret, struct err *e)
{
	const json_t *list, *v;
	size_t i;
	int r = take_list(o, name, &list, e);

	if (r)
		return r;
	json_array_foreach(list, i, v)
	{
		if (!json_is_string(v))
			return wrong(name, "a list of strings", e);
		strings_add(ret, json_string_value(v));
	}
	return 0;
}

static int take_selectors(const json_t *o, Spire__Api__Types__Entry *en, struct err *e)
{
	const json_t *list, *v;
	size_t i;
	int r = take_list(o, "selectors", &list, e);

	if (r)
		return r;
	en->selectors = xcalloc(json_array_size(list) + 1, sizeof(*en->selectors));
	json_array_foreach(list, i, v)
	{
		Spire__Api__Types__Selector *s = xmalloc(sizeof(*s));

		spire__api__types__selector__init(s);
		en->selectors[en->n_selectors++] = s;
		if (!json_is_object(v))
			return wrong("selectors", "a list of objects", e);
		r = take_string(v, "type", &s->type, e);
		if (!r)
			r = take_string(v, "value", &s->value, e);
		if (r)
			return r;
	}
	return 0;
}

static int take_federates_with(const json_t *o, Spire__Api__Types__Entry *en, struct err *e)
{
	struct strings names = { NULL, 0 };
	int r = take_strings(o, "federates_with", &names, e);

	for (size_t i = 0; !r && i < names.n; i++) {
		char *td = NULL;

		r = trust_domain_parse(names.v[i], &td, e);
		if (r) {
			err_wrap(e, "invalid federated trust domain");
			break;
		}
		free(names.v[i]);
		names.v[i] = td;
	}
	if (!r)
		cmd_strings(&names, &en->federates_with, &en->n_federates_with);
	strings_deinit(&names);
	return r;
}

static int take_dns_names(const json_t *o, Spire__Api__Types__Entry *en, struct err *e)
{
	struct strings names = { NULL, 0 };
	int r = take_strings(o, "dns_names", &names, e);

	if (!r)
		cmd_strings(&names, &en->dns_names, &en->n_dns_names);
	strings_deinit(&names);
	return r;
}

static int take_attributes(const json_t *o, Spire__Api__Types__Entry *en, struct err *e)
{
	const json_t *v = member(o, "additional_attributes");
	Spire__Api__Types__Entry__AdditionalAttributes *aa;
	int r;

	if (!v)
		return 0;
	if (!json_is_object(v))
		return wrong("additional_attributes", "an object", e);
	aa = xmalloc(sizeof(*aa));
	spire__api__types__entry__additional_attributes__init(aa);
	en->additional_attributes = aa;
	r = take_bool(v, "disable_x509_svid_prefetch", &aa->disable_x509_svid_prefetch, e);
	return r ? r : take_bool(v, "jwt_svid_include_jti", &aa->jwt_svid_include_jti, e);
}

/* Mind entryExpiry, which alone is written so. */
static int take_entry(const json_t *o, Spire__Api__Types__Entry *en, struct err *e)
{
	int r = take_id(o, "spiffe_id", "SPIFFE ID", &en->spiffe_id, e);

	if (!r)
		r = take_id(o, "parent_id", "parent ID", &en->parent_id, e);
	if (!r)
		r = take_string(o, "entry_id", &en->id, e);
	if (!r)
		r = take_string(o, "hint", &en->hint, e);
	if (!r)
		r = take_int32(o, "x509_svid_ttl", &en->x509_svid_ttl, e);
	if (!r)
		r = take_int32(o, "jwt_svid_ttl", &en->jwt_svid_ttl, e);
	if (!r)
		r = take_int(o, "entryExpiry", &en->expires_at, e);
	if (!r)
		r = take_int(o, "revision_number", &en->revision_number, e);
	if (!r)
		r = take_int(o, "created_at", &en->created_at, e);
	if (!r)
		r = take_bool(o, "admin", &en->admin, e);
	if (!r)
		r = take_bool(o, "downstream", &en->downstream, e);
	if (!r)
		r = take_bool(o, "store_svid", &en->store_svid, e);
	if (!r)
		r = take_selectors(o, en, e);
	if (!r)
		r = take_federates_with(o, en, e);
	if (!r)
		r = take_dns_names(o, en, e);
	return r ? r : take_attributes(o, en, e);
}

static int load_json(struct cli *c, const char *path, json_t **ret, struct err *e)
{
	AUTO_BUF struct buf text = BUF_INIT_MAX(ENTRY_FILE_MAX);
	json_error_t je;
	int r = cmd_read(c, path, &text, e);

	if (r)
		return r;
	*ret = json_loadb(buf_cstr(&text), text.len, 0, &je);
	if (!*ret)
		return err_set(e, ERR_INVALID, "%s:%d: %s", path, je.line, je.text);
	if (!json_is_object(*ret)) {
		json_decref(*ret);
		*ret = NULL;
		return err_set(e, ERR_INVALID, "%s: a JSON object is needed", path);
	}
	return 0;
}

int entry_read_data(struct cli *c, const char *path, struct entry_list *ret, struct err *e)
{
	json_t *root = NULL;
	const json_t *list, *v;
	size_t i;
	int r = load_json(c, path, &root, e);

	if (r)
		return r;
	r = take_list(root, "entries", &list, e);
	for (i = 0; !r && i < json_array_size(list); i++) {
		Spire__Api__Types__Entry *en = xmalloc(sizeof(*en));

		spire__api__types__entry__init(en);
		entry_list_add(ret, en);
		v = json_array_get(list, i);
		r = json_is_object(v) ? take_entry(v, en, e)
				      : err_set(e, ERR_INVALID, "missing registration entry");
		if (r)
			err_wrap(e, "%s: entry %zu", path, i);
	}
	json_decref(root);
	return r;
}

int entry_read_ids(struct cli *c, const char *path, struct strings *ret, struct err *e)
{
	json_t *root = NULL;
	int r = load_json(c, path, &root, e);

	if (r)
		return r;
	r = take_strings(root, "ids", ret, e);
	json_decref(root);
	return r ? err_wrap(e, "%s", path) : 0;
}

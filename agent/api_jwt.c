#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "agent/api.h"
#include "google/protobuf/struct.pb-c.h"
#include "lib/jwt.h"
#include "lib/log.h"
#include "spiffe/workload/workload.pb-c.h"

/* The Workload API: FetchJWTSVID and ValidateJWTSVID. */

enum { CLAIMS_DEPTH_MAX = 32 };

static inline void auto_json_decref(json_t **p)
{
	json_decref(*p);
}

/* ---- FetchJWTSVID ---- */

struct jwt_fetch {
	struct strings audience;
	char *spiffe_id; /* "": all */
};

static void fetch_free(struct jwt_fetch *f)
{
	free(f->spiffe_id);
	strings_deinit(&f->audience);
	free(f);
}

static void fetch_reply(struct rpc_call *c, const struct api_token *tokens, size_t n)
{
	JWTSVIDResponse rs = JWTSVIDRESPONSE__INIT;
	AUTO(free) JWTSVID *v = xcalloc(n, sizeof(*v));
	AUTO(free) JWTSVID **vp = xcalloc(n, sizeof(*vp));

	for (size_t i = 0; i < n; i++) {
		jwtsvid__init(&v[i]);
		v[i].spiffe_id = tokens[i].spiffe_id;
		v[i].svid = tokens[i].text;
		v[i].hint = tokens[i].hint;
		vp[i] = &v[i];
	}
	rs.svids = vp;
	rs.n_svids = n;
	rpc_reply(c, &rs.base);
}

static void fetch_for(void *arg, struct rpc_call *c, struct view *v)
{
	struct jwt_fetch *f = arg;
	struct api_tokens_wanted w = { .audience = &f->audience, .spiffe_id = f->spiffe_id };

	if (v && !api_tokens(c, rpc_call_data(c), v, &w, fetch_reply))
		api_no_identity(c, v);
	view_unref(v);
	fetch_free(f);
}

void api_fetch_jwt(struct rpc_call *c, const ProtobufCMessage *req)
{
	const JWTSVIDRequest *rq = (const JWTSVIDRequest *)req;
	struct jwt_fetch *f;

	if (!api_tokens_asked_well(c, rq->n_audience, rq->spiffe_id))
		return;
	f = xcalloc(1, sizeof(*f));
	f->spiffe_id = xstrdup(rq->spiffe_id);
	for (size_t i = 0; i < rq->n_audience; i++)
		strings_add(&f->audience, rq->audience[i]);
	api_attest(c, fetch_for, f);
}

/* ---- ValidateJWTSVID ---- */

struct jwt_check {
	char *audience, *token;
};

struct bundle_search {
	struct bytes trust_domain;
	const struct bundle *found;
};

static void match_bundle(void *arg, const struct bundle *b)
{
	struct bundle_search *s = arg;

	if (bytes_equal(bytes_str(b->trust_domain), s->trust_domain))
		s->found = b;
}

static Google__Protobuf__Value *value_of(const json_t *j, int depth);

static void struct_of(const json_t *j, Google__Protobuf__Struct *ret, int depth)
{
	const char *key;
	json_t *v;
	void *it;

	ret->fields = xcalloc(
		json_object_size(j) + 1, sizeof(struct Google__Protobuf__Struct__FieldsEntry *));
	for (it = json_object_iter((json_t *)(uintptr_t)j); it;
		it = json_object_iter_next((json_t *)(uintptr_t)j, it)) {
		Google__Protobuf__Struct__FieldsEntry *f = xmalloc(sizeof(*f));

		key = json_object_iter_key(it);
		v = json_object_iter_value(it);
		google__protobuf__struct__fields_entry__init(f);
		f->key = xstrdup(key);
		f->value = value_of(v, depth + 1);
		ret->fields[ret->n_fields++] = f;
	}
}

static void list_of(const json_t *j, Google__Protobuf__ListValue *ret, int depth)
{
	size_t n = json_array_size(j);

	ret->values = xcalloc(n + 1, sizeof(struct Google__Protobuf__Value *));
	for (size_t i = 0; i < n; i++)
		ret->values[ret->n_values++] = value_of(json_array_get(j, i), depth + 1);
}

static Google__Protobuf__Value *value_of(const json_t *j, int depth)
{
	Google__Protobuf__Value *v = xmalloc(sizeof(*v));

	google__protobuf__value__init(v);
	v->kind_case = GOOGLE__PROTOBUF__VALUE__KIND_NULL_VALUE;
	if (depth > CLAIMS_DEPTH_MAX)
		return v;
	switch (json_typeof(j)) {
	case JSON_STRING:
		v->kind_case = GOOGLE__PROTOBUF__VALUE__KIND_STRING_VALUE;
		v->string_value = xstrdup(json_string_value(j));
		break;
	case JSON_INTEGER:
	case JSON_REAL:
		v->kind_case = GOOGLE__PROTOBUF__VALUE__KIND_NUMBER_VALUE;
		v->number_value = json_number_value(j);
		break;
	case JSON_TRUE:
	case JSON_FALSE:
		v->kind_case = GOOGLE__PROTOBUF__VALUE__KIND_BOOL_VALUE;
		v->bool_value = json_is_true(j);
		break;
	case JSON_OBJECT:
		v->kind_case = GOOGLE__PROTOBUF__VALUE__KIND_STRUCT_VALUE;
		v->struct_value = xmalloc(sizeof(*v->struct_value));
		google__protobuf__struct__init(v->struct_value);
		struct_of(j, v->struct_value, depth);
		break;
	case JSON_ARRAY:
		v->kind_case = GOOGLE__PROTOBUF__VALUE__KIND_LIST_VALUE;
		v->list_value = xmalloc(sizeof(*v->list_value));
		google__protobuf__list_value__init(v->list_value);
		list_of(j, v->list_value, depth);
		break;
	default:
		break;
	}
	return v;
}

/* Of a foreign token only what every validator needs, and what the operator allows. */
static void strip_foreign(const struct api *a, json_t *claims)
{
	const char *key;
	json_t *v;
	void *tmp;

	json_object_foreach_safe(claims, tmp, key, v)
	{
		if (strcmp(key, "sub") != 0 && strcmp(key, "exp") != 0 && strcmp(key, "aud") != 0 &&
			!strings_has(&a->options->allowed_foreign_jwt_claims, key))
			json_object_del(claims, key);
	}
}

static int verify_token(struct api *a, const struct jwt_check *k, struct view *v, struct jwt *j,
	json_t **ret, struct err *e)
{
	struct bundle_search s = { 0 };
	json_error_t je;
	json_t *aud;
	int r = jwt_parse(bytes_str(k->token), j, e);

	if (r)
		return r;
	s.trust_domain = spiffeid_td(&j->sub);
	view_each_bundle(v, match_bundle, &s);
	if (!s.found)
		return err_set(e, ERR_INVALID, "no keys found for trust domain \"%.*s\"",
			(int)s.trust_domain.n, s.trust_domain.p);
	r = jwt_verify(j, s.found, k->audience, clock_wall(), e);
	if (r)
		return r;
	*ret = json_loads(j->claims_json, 0, &je);
	if (!json_is_object(*ret))
		return err_set(e, ERR_INVALID, "the claims are not a JSON object");
	aud = json_object_get(*ret, "aud");
	if (json_is_string(aud))
		json_object_set_new(*ret, "aud", json_pack("[O]", aud));
	if (!spiffeid_member_of(&j->sub, a->options->trust_domain))
		strip_foreign(a, *ret);
	return 0;
}

static void check_reply(struct rpc_call *c, const struct jwt *j, const json_t *claims)
{
	ValidateJWTSVIDResponse *rs = xmalloc(sizeof(*rs));

	validate_jwtsvidresponse__init(rs);
	rs->spiffe_id = xstrdup(j->sub.text);
	rs->claims = xmalloc(sizeof(*rs->claims));
	google__protobuf__struct__init(rs->claims);
	struct_of(claims, rs->claims, 0);
	rpc_reply(c, &rs->base);
	validate_jwtsvidresponse__free_unpacked(rs, NULL);
}

static void check_for(void *arg, struct rpc_call *c, struct view *v)
{
	struct jwt_check *k = arg;
	AUTO(json_decref) json_t *claims = NULL;
	struct jwt j = { 0 };
	struct err e = ERR_INIT;

	if (v) {
		if (verify_token(rpc_call_data(c), k, v, &j, &claims, &e))
			rpc_fail(c, ERR_INVALID, "%s", e.msg);
		else
			check_reply(c, &j, claims);
		jwt_deinit(&j);
		view_unref(v);
	}
	mem_wipe(k->token, strlen(k->token));
	free(k->token);
	free(k->audience);
	free(k);
}

void api_validate_jwt(struct rpc_call *c, const ProtobufCMessage *req)
{
	const ValidateJWTSVIDRequest *rq = (const ValidateJWTSVIDRequest *)req;
	struct jwt_check *k;

	if (!rq->audience[0]) {
		rpc_fail(c, ERR_INVALID, "audience must be specified");
		return;
	}
	if (!rq->svid[0]) {
		rpc_fail(c, ERR_INVALID, "svid must be specified");
		return;
	}
	k = xcalloc(1, sizeof(*k));
	k->audience = xstrdup(rq->audience);
	k->token = xstrdup(rq->svid);
	api_attest(c, check_for, k);
}

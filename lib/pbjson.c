#include "lib/pbjson.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "google/protobuf/struct.pb-c.h"
#include "lib/crypto.h"

#define AT(type, p) (*(type const *)(p))

static json_t *message_json(const ProtobufCMessage *m);

static json_t *string_json(const char *s)
{
	/* What is not UTF-8 cannot stand in JSON; a message from the wire may hold it. */
	json_t *v = json_string(s ? s : "");

	return v ? v : json_string("\xef\xbf\xbd");
}

static json_t *bytes_json(const ProtobufCBinaryData *d)
{
	AUTO_BUF struct buf b = BUF_INIT_SECRET;

	base64_encode(&b, bytes_of(d->data, d->len));
	return json_string(buf_cstr(&b));
}

static json_t *int64_json(int64_t v, bool is_unsigned)
{
	char text[32];

	if (is_unsigned)
		snprintf(text, sizeof(text), "%" PRIu64, (uint64_t)v);
	else
		snprintf(text, sizeof(text), "%" PRId64, v);
	return json_string(text);
}

static json_t *double_json(double v)
{
	if (isnan(v))
		return json_string("NaN");
	if (isinf(v))
		return json_string(v > 0 ? "Infinity" : "-Infinity");
	if (fabs(v) < 1e15 && floor(v) == v)
		return json_integer((json_int_t)v);
	return json_real(v);
}

static json_t *enum_json(const ProtobufCEnumDescriptor *d, int v)
{
	const ProtobufCEnumValue *ev = protobuf_c_enum_descriptor_get_value(d, v);

	return ev ? json_string(ev->name) : json_integer(v);
}

static json_t *value_json(const ProtobufCFieldDescriptor *f, const void *p)
{
	switch (f->type) {
	case PROTOBUF_C_TYPE_INT32:
	case PROTOBUF_C_TYPE_SINT32:
	case PROTOBUF_C_TYPE_SFIXED32:
		return json_integer(AT(int32_t, p));
	case PROTOBUF_C_TYPE_UINT32:
	case PROTOBUF_C_TYPE_FIXED32:
		return json_integer(AT(uint32_t, p));
	case PROTOBUF_C_TYPE_INT64:
	case PROTOBUF_C_TYPE_SINT64:
	case PROTOBUF_C_TYPE_SFIXED64:
		return int64_json(AT(int64_t, p), false);
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_FIXED64:
		return int64_json(AT(int64_t, p), true);
	case PROTOBUF_C_TYPE_FLOAT:
		return double_json((double)AT(float, p));
	case PROTOBUF_C_TYPE_DOUBLE:
		return double_json(AT(double, p));
	case PROTOBUF_C_TYPE_BOOL:
		return json_boolean(AT(protobuf_c_boolean, p));
	case PROTOBUF_C_TYPE_ENUM:
		return enum_json(f->descriptor, AT(int, p));
	case PROTOBUF_C_TYPE_STRING:
		return string_json(AT(char *, p));
	case PROTOBUF_C_TYPE_BYTES:
		return bytes_json(p);
	case PROTOBUF_C_TYPE_MESSAGE:
		return AT(ProtobufCMessage *, p) ? message_json(AT(ProtobufCMessage *, p)) : NULL;
	}
	return NULL;
}

static size_t value_size(ProtobufCType t)
{
	switch (t) {
	case PROTOBUF_C_TYPE_INT64:
	case PROTOBUF_C_TYPE_SINT64:
	case PROTOBUF_C_TYPE_SFIXED64:
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_FIXED64:
	case PROTOBUF_C_TYPE_DOUBLE:
		return 8;
	case PROTOBUF_C_TYPE_BOOL:
		return sizeof(protobuf_c_boolean);
	case PROTOBUF_C_TYPE_STRING:
	case PROTOBUF_C_TYPE_MESSAGE:
		return sizeof(void *);
	case PROTOBUF_C_TYPE_BYTES:
		return sizeof(ProtobufCBinaryData);
	default:
		return 4;
	}
}

/* protobuf-c does not mark the entries of a map; protoc gives them these names and fields. */
static bool is_map_entry(const ProtobufCFieldDescriptor *f)
{
	const ProtobufCMessageDescriptor *d = f->descriptor;
	size_t n;

	if (f->type != PROTOBUF_C_TYPE_MESSAGE || d->n_fields != 2)
		return false;
	n = strlen(d->name);
	return n > 5 && strcmp(d->name + n - 5, "Entry") == 0 &&
	       strcmp(d->fields[0].name, "key") == 0 && strcmp(d->fields[1].name, "value") == 0;
}

static json_t *map_json(const ProtobufCFieldDescriptor *f, const void *items, size_t n)
{
	json_t *o = json_object();

	(void)f;
	for (size_t i = 0; i < n; i++) {
		const ProtobufCMessage *en = ((ProtobufCMessage *const *)items)[i];
		const ProtobufCFieldDescriptor *k = &en->descriptor->fields[0];
		const ProtobufCFieldDescriptor *v = &en->descriptor->fields[1];
		json_t *key = value_json(k, (const char *)en + k->offset);
		json_t *val = value_json(v, (const char *)en + v->offset);

		if (json_is_string(key) && val)
			json_object_set(o, json_string_value(key), val);
		json_decref(key);
		json_decref(val);
	}
	return o;
}

static json_t *repeated_json(const ProtobufCFieldDescriptor *f, const ProtobufCMessage *m)
{
	size_t n = AT(size_t, (const char *)m + f->quantifier_offset);
	const char *items = AT(char *, (const char *)m + f->offset);
	json_t *a;

	if (is_map_entry(f))
		return map_json(f, items, n);
	a = json_array();
	for (size_t i = 0; i < n; i++)
		json_array_append_new(a, value_json(f, items + i * value_size(f->type)));
	return a;
}

static json_t *field_json(const ProtobufCFieldDescriptor *f, const ProtobufCMessage *m)
{
	if (f->label == PROTOBUF_C_LABEL_REPEATED)
		return repeated_json(f, m);
	if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF &&
		AT(uint32_t, (const char *)m + f->quantifier_offset) != f->id)
		return NULL;
	return value_json(f, (const char *)m + f->offset);
}

/* ---- well-known types ---- */

static json_t *struct_json(const Google__Protobuf__Struct *s);

static json_t *dynamic_json(const Google__Protobuf__Value *v)
{
	json_t *a;

	switch (v->kind_case) {
	case GOOGLE__PROTOBUF__VALUE__KIND_NUMBER_VALUE:
		return double_json(v->number_value);
	case GOOGLE__PROTOBUF__VALUE__KIND_STRING_VALUE:
		return string_json(v->string_value);
	case GOOGLE__PROTOBUF__VALUE__KIND_BOOL_VALUE:
		return json_boolean(v->bool_value);
	case GOOGLE__PROTOBUF__VALUE__KIND_STRUCT_VALUE:
		return struct_json(v->struct_value);
	case GOOGLE__PROTOBUF__VALUE__KIND_LIST_VALUE:
		a = json_array();
		for (size_t i = 0; i < v->list_value->n_values; i++)
			json_array_append_new(a, dynamic_json(v->list_value->values[i]));
		return a;
	default:
		return json_null();
	}
}

static json_t *struct_json(const Google__Protobuf__Struct *s)
{
	json_t *o = json_object();

	for (size_t i = 0; i < s->n_fields; i++)
		if (s->fields[i]->value)
			json_object_set_new(
				o, s->fields[i]->key, dynamic_json(s->fields[i]->value));
	return o;
}

/* google.protobuf.BoolValue and its like are their bare value. */
static bool is_wrapper(const ProtobufCMessageDescriptor *d)
{
	size_t n = strlen(d->name);

	return strncmp(d->name, "google.protobuf.", 16) == 0 && n > 5 &&
	       strcmp(d->name + n - 5, "Value") == 0 && d->n_fields == 1;
}

static json_t *message_json(const ProtobufCMessage *m)
{
	const ProtobufCMessageDescriptor *d = m->descriptor;
	json_t *o;

	if (d == &google__protobuf__struct__descriptor)
		return struct_json((const Google__Protobuf__Struct *)m);
	if (d == &google__protobuf__value__descriptor)
		return dynamic_json((const Google__Protobuf__Value *)m);
	if (is_wrapper(d))
		return field_json(&d->fields[0], m);
	o = json_object();
	for (unsigned i = 0; i < d->n_fields; i++) {
		json_t *v = field_json(&d->fields[i], m);

		if (v)
			json_object_set_new(o, d->fields[i].name, v);
	}
	return o;
}

static int to_buf(const char *p, size_t n, void *arg)
{
	return buf_append(arg, p, n) ? 0 : -1;
}

static void dump(json_t *v, struct buf *ret)
{
	json_dump_callback(v, to_buf, ret, JSON_COMPACT | JSON_SORT_KEYS | JSON_ENCODE_ANY);
	json_decref(v);
}

void pbjson_write(const ProtobufCMessage *m, struct buf *ret)
{
	dump(message_json(m), ret);
}

void pbjson_write_list(const ProtobufCMessage *const *m, size_t n, struct buf *ret)
{
	json_t *a = json_array();

	for (size_t i = 0; i < n; i++)
		json_array_append_new(a, message_json(m[i]));
	dump(a, ret);
}

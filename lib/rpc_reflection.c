/*
 * grpc.reflection v1 and v1alpha (the same messages on the wire, so one handler serves both) from
 * the FileDescriptorSet that protoc wrote. Files are indexed on the first question.
 */
#include "lib/rpc_internal.h"

#include <stdlib.h>
#include <string.h>

#include "grpc/reflection/v1/reflection.pb-c.h"
#include "grpc/reflection/v1alpha/reflection.pb-c.h"
#include "lib/map.h"

enum { /* of google/protobuf/descriptor.proto */
	SET_FILE = 1,
	FILE_NAME = 1,
	FILE_PACKAGE = 2,
	FILE_DEPENDENCY = 3,
	FILE_MESSAGE = 4,
	FILE_ENUM = 5,
	FILE_SERVICE = 6,
	ANY_NAME = 1,
	MESSAGE_FIELD = 2,
	MESSAGE_NESTED = 3,
	MESSAGE_ENUM = 4,
	MESSAGE_ONEOF = 8,
	ENUM_VALUE = 2,
	SERVICE_METHOD = 2,
};

struct file {
	struct file *next;
	struct bytes raw;
	struct bytes name;
	bool sent; /* in the answer that is being built */
};

struct rpc_reflection {
	struct rpc_server *server;
	struct bytes set;
	struct file *files;
	struct map *by_name;
	struct map *by_symbol;
};

static struct bytes name_of(struct bytes v)
{
	struct wire_field f;

	while (wire_next(&v, &f))
		if (f.tag == ANY_NAME)
			return f.bytes;
	return (struct bytes){ 0 };
}

/* Enters "scope.name"; the caller frees what it returns. */
static char *add_symbol(
	struct rpc_reflection *r, struct file *file, const char *scope, struct bytes name)
{
	char *full = scope[0] ? xasprintf("%s.%.*s", scope, (int)name.n, (const char *)name.p)
			      : xstrndup((const char *)name.p, name.n);

	map_put_str(r->by_symbol, full, file);
	return full;
}

/* The named children in v that have that tag. */
static void add_children(struct rpc_reflection *r, struct file *file, const char *scope,
	struct bytes v, uint32_t tag)
{
	struct wire_field f;

	while (wire_next(&v, &f))
		if (f.tag == tag && f.type == 2)
			free(add_symbol(r, file, scope, name_of(f.bytes)));
}

/* The set is our own, so its nesting needs no limit. */
static void add_message(
	struct rpc_reflection *r, struct file *file, const char *scope, struct bytes v)
{
	AUTO(free) char *full = add_symbol(r, file, scope, name_of(v));
	struct bytes all = v;
	struct wire_field f;

	add_children(r, file, full, v, MESSAGE_FIELD);
	add_children(r, file, full, v, MESSAGE_ENUM);
	add_children(r, file, full, v, MESSAGE_ONEOF);
	while (wire_next(&all, &f))
		if (f.tag == MESSAGE_NESTED && f.type == 2)
			add_message(r, file, full, f.bytes);
}

static void add_symbols(struct rpc_reflection *r, struct file *file, const char *package)
{
	struct bytes v = file->raw;
	struct wire_field f;

	while (wire_next(&v, &f)) {
		AUTO(free) char *full = NULL;

		if (f.tag == FILE_MESSAGE) {
			add_message(r, file, package, f.bytes);
		} else if (f.tag == FILE_ENUM) {
			full = add_symbol(r, file, package, name_of(f.bytes));
			/* Values of an enum live beside it. */
			add_children(r, file, package, f.bytes, ENUM_VALUE);
		} else if (f.tag == FILE_SERVICE) {
			full = add_symbol(r, file, package, name_of(f.bytes));
			add_children(r, file, full, f.bytes, SERVICE_METHOD);
		}
	}
}

static void add_file(struct rpc_reflection *r, struct bytes raw)
{
	struct file *file = xcalloc(1, sizeof(*file));
	AUTO(free) char *package = xstrdup("");
	struct bytes v = raw;
	struct wire_field f;

	file->raw = raw;
	file->next = r->files;
	r->files = file;
	while (wire_next(&v, &f)) {
		if (f.tag == FILE_NAME) {
			file->name = f.bytes;
		} else if (f.tag == FILE_PACKAGE) {
			free(package);
			package = xstrndup((const char *)f.bytes.p, f.bytes.n);
		}
	}
	map_put(r->by_name, file->name, file);
	add_symbols(r, file, package);
}

static void build_index(struct rpc_reflection *r)
{
	struct bytes v = r->set;
	struct wire_field f;

	if (r->by_name)
		return;
	r->by_name = map_new();
	r->by_symbol = map_new();
	while (wire_next(&v, &f))
		if (f.tag == SET_FILE && f.type == 2)
			add_file(r, f.bytes);
}

/* ---- answers ---- */

struct files {
	ProtobufCBinaryData *v;
	size_t n;
	size_t cap;
};

/* The file and all it imports, each once, importers first. */
static void collect(struct rpc_reflection *r, struct file *file, struct files *out)
{
	struct bytes v = file->raw;
	struct wire_field f;

	if (file->sent)
		return;
	file->sent = true;
	if (out->n == out->cap) {
		out->cap = out->cap ? out->cap * 2 : 8;
		out->v = xreallocarray(out->v, out->cap, sizeof(*out->v));
	}
	out->v[out->n++] = (ProtobufCBinaryData){ file->raw.n, (uint8_t *)(uintptr_t)file->raw.p };
	while (wire_next(&v, &f)) {
		struct file *dep;

		if (f.tag == FILE_DEPENDENCY && (dep = map_get(r->by_name, f.bytes)))
			collect(r, dep, out);
	}
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

typedef Grpc__Reflection__V1__ServerReflectionResponse response;

static void send_services(struct rpc_reflection *r, struct rpc_call *c, response *out)
{
	Grpc__Reflection__V1__ListServiceResponse list =
		GRPC__REFLECTION__V1__LIST_SERVICE_RESPONSE__INIT;
	AUTO(free) const char **names = NULL;
	AUTO(free) Grpc__Reflection__V1__ServiceResponse *svc = NULL;
	AUTO(free) Grpc__Reflection__V1__ServiceResponse **ptrs = NULL;
	size_t n = 0;

	while (rpc_server_service(r->server, n))
		n++;
	names = xcalloc(n, sizeof(*names));
	svc = xcalloc(n, sizeof(*svc));
	ptrs = xcalloc(n, sizeof(struct Grpc__Reflection__V1__ServiceResponse *));
	for (size_t i = 0; i < n; i++)
		names[i] = rpc_server_service(r->server, i);
	qsort(names, n, sizeof(*names), compare_names);
	for (size_t i = 0; i < n; i++) {
		grpc__reflection__v1__service_response__init(&svc[i]);
		svc[i].name = (char *)(uintptr_t)names[i];
		ptrs[i] = &svc[i];
	}
	list.n_service = n;
	list.service = ptrs;
	out->message_response_case =
		GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_LIST_SERVICES_RESPONSE;
	out->list_services_response = &list;
	rpc_send(c, &out->base);
}

static void send_error(struct rpc_call *c, response *out, int code, const char *text)
{
	Grpc__Reflection__V1__ErrorResponse er = GRPC__REFLECTION__V1__ERROR_RESPONSE__INIT;

	er.error_code = code;
	er.error_message = (char *)(uintptr_t)text;
	out->message_response_case =
		GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ERROR_RESPONSE;
	out->error_response = &er;
	rpc_send(c, &out->base);
}

static void send_files(struct rpc_reflection *r, struct rpc_call *c, response *out,
	struct file *file, const char *what, const char *name)
{
	Grpc__Reflection__V1__FileDescriptorResponse fd =
		GRPC__REFLECTION__V1__FILE_DESCRIPTOR_RESPONSE__INIT;
	AUTO(free) char *text = NULL;
	struct files files = { 0 };

	if (!file) {
		text = xasprintf("%s not found: %s", what, name);
		send_error(c, out, ERR_NOT_FOUND, text);
		return;
	}
	for (struct file *f = r->files; f; f = f->next)
		f->sent = false;
	collect(r, file, &files);
	fd.n_file_descriptor_proto = files.n;
	fd.file_descriptor_proto = files.v;
	out->message_response_case =
		GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_FILE_DESCRIPTOR_RESPONSE;
	out->file_descriptor_response = &fd;
	rpc_send(c, &out->base);
	free(files.v);
}

static void on_request(struct rpc_call *c, const ProtobufCMessage *m);

static void next_request(struct rpc_call *c)
{
	rpc_read(c, on_request);
}

static void answer_request(struct rpc_reflection *r, struct rpc_call *c,
	Grpc__Reflection__V1__ServerReflectionRequest *rq)
{
	response out = GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__INIT;

	out.valid_host = rq->host;
	out.original_request = rq;
	switch (rq->message_request_case) {
	case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_LIST_SERVICES:
		send_services(r, c, &out);
		break;
	case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_BY_FILENAME:
		send_files(r, c, &out, map_get_str(r->by_name, rq->file_by_filename), "file",
			rq->file_by_filename);
		break;
	case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_SYMBOL:
		send_files(r, c, &out, map_get_str(r->by_symbol, rq->file_containing_symbol),
			"symbol", rq->file_containing_symbol);
		break;
	case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_EXTENSION:
	case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_ALL_EXTENSION_NUMBERS_OF_TYPE:
		send_error(c, &out, ERR_NOT_FOUND, "no extensions here"); /* proto3 has none */
		break;
	default:
		rpc_fail(c, ERR_INVALID, "invalid MessageRequest");
	}
}

static void on_request(struct rpc_call *c, const ProtobufCMessage *m)
{
	struct rpc_reflection *r = rpc_call_data(c);
	Grpc__Reflection__V1__ServerReflectionRequest *rq;

	if (!m) {
		rpc_finish(c);
		return;
	}
	/* v1alpha's request has the same fields and layout but another descriptor; by way of its
	 * bytes it becomes a v1 one. It has been checked already. */
	if (m->descriptor == &grpc__reflection__v1__server_reflection_request__descriptor) {
		rq = (Grpc__Reflection__V1__ServerReflectionRequest *)(uintptr_t)m;
		answer_request(r, c, rq);
		return;
	}
	struct rpc_payload *p = rpc_payload_new(m);
	struct bytes v = rpc_slice_bytes(&p->slice);

	rq = grpc__reflection__v1__server_reflection_request__unpack(NULL, v.n, v.p);
	INVARIANT(rq);
	answer_request(r, c, rq);
	grpc__reflection__v1__server_reflection_request__free_unpacked(rq, NULL);
	rpc_payload_unref(p);
}

static void start_info(struct rpc_call *c, const ProtobufCMessage *req)
{
	(void)req;
	build_index(rpc_call_data(c));
	rpc_on_writable(c, next_request);
	rpc_read(c, on_request);
}

static const struct rpc_method methods[] = {
	{ "ServerReflectionInfo", RPC_BIDI, start_info },
};

struct rpc_reflection *rpc_reflection_new(struct rpc_server *s, const char *set, size_t len)
{
	struct rpc_reflection *r = xcalloc(1, sizeof(*r));
	struct rpc_service svc = {
		.methods = methods,
		.n_methods = ARRAY_LEN(methods),
		.data = r,
	};

	r->server = s;
	r->set = bytes_of(set, len);
	svc.desc = &grpc__reflection__v1__server_reflection__descriptor;
	rpc_server_add(s, &svc);
	svc.desc = &grpc__reflection__v1alpha__server_reflection__descriptor;
	rpc_server_add(s, &svc);
	return r;
}

void rpc_reflection_free(struct rpc_reflection *r)
{
	struct file *f;

	if (!r)
		return;
	while ((f = r->files)) {
		r->files = f->next;
		free(f);
	}
	map_free(r->by_name);
	map_free(r->by_symbol);
	free(r);
}

/* experimental.broker: where the Broker API is served, and who may ask for what. */
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "agent/options_internal.h"
#include "lib/spiffeid.h"
#include "lib/text.h"

#define BROKER "agent.experimental.broker"
#define BROKERS "experimental.broker.brokers"
#define ANY_TYPE "*"

enum { PORT_MAX = 65535 };

static const struct config_node *child(const struct config_node *n, const char *key)
{
	for (size_t i = 0; i < n->n; i++)
		if (strcasecmp(n->children[i]->key, key) == 0)
			return n->children[i];
	return NULL;
}

static const char *text_of(struct config *c, const struct config_node *n, const char *key)
{
	const struct config_node *v = child(n, key);

	if (v && v->kind != CONFIG_STRING)
		config_problem_at(c, v, "\"%s\" must be a string", key);
	return v && v->kind == CONFIG_STRING ? v->text : "";
}

static bool bool_of(struct config *c, const struct config_node *n, const char *key)
{
	const struct config_node *v = child(n, key);

	if (v && v->kind != CONFIG_BOOL)
		config_problem_at(c, v, "\"%s\" must be true or false", key);
	return v && v->kind == CONFIG_BOOL && strcmp(v->text, "true") == 0;
}

static void check_keys(struct config *c, const struct config_node *n, const char *where,
	const char *const *keys, size_t n_keys)
{
	for (size_t i = 0; i < n->n; i++) {
		const char *key = n->children[i]->key, *near;
		bool known = false;

		for (size_t k = 0; k < n_keys; k++)
			known |= strcasecmp(key, keys[k]) == 0;
		if (known)
			continue;
		near = text_nearest(key, keys, n_keys);
		config_problem_at(c, n->children[i], "unknown key \"%s\" in %s%s%s%s", key, where,
			near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
	}
}

/* ---- where ---- */

/* "host:port", "[v6]:port" or ":port". */
static bool split_address(const char *text, char **ret_host, int *ret_port)
{
	const char *colon = strrchr(text, ':'), *from = text, *to = colon;
	char *end;
	long port;

	if (!colon || !colon[1])
		return false;
	port = strtol(colon + 1, &end, 10);
	if (*end || port < 0 || port > PORT_MAX || colon[1] == '-' || colon[1] == '+')
		return false;
	if (*text == '[') {
		if (to == from || to[-1] != ']')
			return false;
		from++;
		to--;
	} else if (memchr(from, ':', (size_t)(to - from))) {
		return false;
	}
	*ret_host = to > from ? xstrndup(from, (size_t)(to - from)) : xstrdup("::");
	*ret_port = (int)port;
	return true;
}

static void check_places(struct config *c, struct agent_options *o)
{
	AUTO(free) char *public = options_absolute(o->socket_path);
	AUTO(free) char *own = NULL;
	size_t folder = (size_t)(strrchr(public, '/') - public) + 1;

	if (!o->broker_socket_path && !o->broker_bind_address)
		config_problem(c, BROKER,
			"experimental.broker requires socket_path, bind_address, or both");
	if (o->broker_bind_address &&
		!split_address(o->broker_bind_address, &o->broker_host, &o->broker_port))
		config_problem(c, BROKER ".bind_address",
			"invalid experimental.broker.bind_address \"%s\": not an address and a "
			"port, as in \"127.0.0.1:8443\"",
			o->broker_bind_address);
	if (!o->broker_socket_path || (o->disable_workload_api && o->disable_sds_api))
		return;
	own = options_absolute(o->broker_socket_path);
	if (strncmp(own, public, folder) == 0)
		config_problem(c, BROKER ".socket_path",
			"broker socket cannot be in the same directory or a subdirectory as that "
			"containing the Workload API socket");
}

/* ---- who ---- */

static void read_type(struct config *c, struct broker_peer *b, const struct config_node *n,
	size_t i, size_t n_all)
{
	static const char *const keys[] = { "type_url", "allow_over_tcp" };
	const char *url;

	if (n->kind != CONFIG_OBJECT) {
		config_problem_at(
			c, n, "\"allowed_reference_types\" must be a list of { type_url = … }");
		return;
	}
	check_keys(c, n, BROKERS "[].allowed_reference_types", keys, ARRAY_LEN(keys));
	url = text_of(c, n, "type_url");
	if (!*url)
		config_problem_at(c, n,
			BROKERS "[%s].allowed_reference_types[%zu].type_url: must be specified",
			b->id, i);
	else if (strcmp(url, ANY_TYPE) == 0 && n_all != 1)
		config_problem_at(c, n,
			BROKERS "[%s].allowed_reference_types: wildcard \"*\" must be the only "
				"allowed reference type",
			b->id);
	b->types = xreallocarray(b->types, b->n_types + 1, sizeof(*b->types));
	b->types[b->n_types++] = (struct broker_reference){ .type_url = xstrdup(url),
		.over_tcp = bool_of(c, n, "allow_over_tcp") };
}

/* A list of objects, or blocks of that name: HCL takes one for the other. */
static void read_types(struct config *c, struct broker_peer *b, const struct config_node *n)
{
	const struct config_node *all[BROKER_TYPES_MAX];
	size_t n_all = 0;

	for (size_t i = 0; i < n->n; i++) {
		const struct config_node *v = n->children[i];

		if (strcasecmp(v->key, "allowed_reference_types") != 0)
			continue;
		for (size_t k = 0; k < (v->kind == CONFIG_LIST ? v->n : 1); k++) {
			if (n_all == BROKER_TYPES_MAX) {
				config_problem_at(
					c, v, "more than %d reference types", BROKER_TYPES_MAX);
				return;
			}
			all[n_all++] = v->kind == CONFIG_LIST ? v->children[k] : v;
		}
	}
	if (!n_all)
		config_problem_at(c, n,
			BROKERS "[%s].allowed_reference_types: must list at least one reference "
				"type URL",
			b->id);
	for (size_t i = 0; i < n_all; i++)
		read_type(c, b, all[i], i, n_all);
}

const struct broker_peer *options_broker_find(const struct agent_options *o, const char *id)
{
	for (size_t i = 0; i < o->n_brokers; i++)
		if (strcmp(o->brokers[i].id, id) == 0)
			return &o->brokers[i];
	return NULL;
}

const struct broker_reference *options_broker_reference(
	const struct broker_peer *b, const char *type_url)
{
	for (size_t i = 0; i < b->n_types; i++)
		if (strcmp(b->types[i].type_url, type_url) == 0 ||
			strcmp(b->types[i].type_url, ANY_TYPE) == 0)
			return &b->types[i];
	return NULL;
}

static void read_broker(
	struct config *c, struct agent_options *o, const struct config_node *n, size_t i)
{
	static const char *const keys[] = { "id", "allowed_reference_types" };
	struct spiffeid parsed = SPIFFEID_INIT;
	struct broker_peer *b;
	const char *id;
	struct err e;

	check_keys(c, n, BROKERS, keys, ARRAY_LEN(keys));
	id = text_of(c, n, "id");
	if (!*id)
		config_problem_at(c, n, BROKERS "[%zu].id: must be specified", i);
	else if (options_broker_find(o, id))
		config_problem_at(c, n, BROKERS "[%s].id: duplicate broker id", id);
	else if (spiffeid_parse_str(&parsed, id, &e))
		config_problem_at(c, n, BROKERS "[%s].id: %s", id, e.msg);
	spiffeid_deinit(&parsed);
	o->brokers = xreallocarray(o->brokers, o->n_brokers + 1, sizeof(*o->brokers));
	b = &o->brokers[o->n_brokers++];
	*b = (struct broker_peer){ .id = xstrdup(id) };
	if (*id)
		read_types(c, b, n);
}

void options_broker(struct config *c, struct agent_file *f)
{
	struct agent_options *o = &f->o;

	if (!o->has_broker)
		return;
	check_places(c, o);
	if (!f->brokers.n)
		config_problem(c, BROKER ".brokers", "at least one broker is required");
	for (size_t i = 0; i < f->brokers.n; i++)
		read_broker(c, o, f->brokers.v[i], i);
}

void options_broker_deinit(struct agent_options *o)
{
	for (size_t i = 0; i < o->n_brokers; i++) {
		for (size_t k = 0; k < o->brokers[i].n_types; k++)
			free(o->brokers[i].types[k].type_url);
		free(o->brokers[i].types);
		free(o->brokers[i].id);
	}
	free(o->brokers);
	free(o->broker_host);
}

/* What config_print() leaves out. */
void options_broker_print(const struct agent_options *o, struct buf *ret)
{
	for (size_t i = 0; i < o->n_brokers; i++) {
		const struct broker_peer *b = &o->brokers[i];

		for (size_t k = 0; k < b->n_types; k++)
			buf_printf(ret,
				BROKER
				".brokers.\"%s\".allowed_reference_types.\"%s\".allow_over_tcp = "
				"%s\n",
				b->id, b->types[k].type_url,
				b->types[k].over_tcp ? "true" : "false");
	}
}

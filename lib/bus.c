#include "lib/bus.h"

#include <dbus/dbus.h>
#include <errno.h>
#include <stdlib.h>

#include "lib/clock.h"
#include "lib/mem.h"

#define SYSTEM_BUS "unix:path=/var/run/dbus/system_bus_socket"

struct bus {
	DBusConnection *conn;
};

/*
 * libdbus as a static library also has the parts of a bus daemon, which ask systemd for sockets
 * that it handed over. This program is none and links no libsystemd: there are none.
 */
int sd_listen_fds(int unset_environment);
int sd_is_socket(int fd, int family, int type, int listening);

int sd_listen_fds(int unset_environment)
{
	(void)unset_environment;
	return 0;
}

int sd_is_socket(int fd, int family, int type, int listening)
{
	(void)fd;
	(void)family;
	(void)type;
	(void)listening;
	return -ENOSYS;
}

static int take_error(DBusError *de, struct err *e)
{
	int code = ERR_INTERNAL;

	if (dbus_error_has_name(de, DBUS_ERROR_UNKNOWN_METHOD))
		code = ERR_UNIMPLEMENTED;
	else if (dbus_error_has_name(de, DBUS_ERROR_NO_REPLY) ||
		 dbus_error_has_name(de, DBUS_ERROR_TIMEOUT))
		code = ERR_DEADLINE;
	else if (dbus_error_has_name(de, DBUS_ERROR_DISCONNECTED))
		code = ERR_UNAVAILABLE;
	err_set(e, code, "%s", de->message && *de->message ? de->message : de->name);
	dbus_error_free(de);
	return code;
}

/* A call to a bus that has not let us in would wait without end, whatever its timeout. */
static int authenticate(struct bus *b, int timeout_ms, struct err *e)
{
	int64_t until = clock_mono().ns + timeout_ms * NS_PER_MS;

	while (!dbus_connection_get_is_authenticated(b->conn)) {
		int64_t left = (until - clock_mono().ns) / NS_PER_MS;

		if (left <= 0)
			return err_set(e, ERR_UNAVAILABLE, "the bus did not answer in time");
		if (!dbus_connection_read_write(b->conn, (int)left))
			return err_set(e, ERR_UNAVAILABLE, "the bus closed the connection");
	}
	return 0;
}

/* The bus's own name for the connection; libdbus would wait for it as long as it likes. */
static int hello(struct bus *b, int timeout_ms, struct err *e)
{
	struct bus_call c = { .destination = DBUS_SERVICE_DBUS,
		.path = DBUS_PATH_DBUS,
		.interface = DBUS_INTERFACE_DBUS,
		.method = "Hello",
		.timeout_ms = timeout_ms };
	AUTO(free) char *name = NULL;
	int r = bus_call(b, &c, &name, e);

	if (!r)
		dbus_bus_set_unique_name(b->conn, name);
	return r;
}

int bus_open(const char *address, int timeout_ms, struct bus **ret, struct err *e)
{
	const char *given = getenv("DBUS_SYSTEM_BUS_ADDRESS");
	struct bus *b;
	DBusError de;

	if (!address)
		address = given && *given ? given : SYSTEM_BUS;
	dbus_error_init(&de);
	b = xcalloc(1, sizeof(*b));
	b->conn = dbus_connection_open_private(address, &de);
	if (!b->conn) {
		free(b);
		take_error(&de, e);
		return e->code = ERR_UNAVAILABLE;
	}
	dbus_connection_set_exit_on_disconnect(b->conn, FALSE);
	if (authenticate(b, timeout_ms, e) || hello(b, timeout_ms, e)) {
		bus_close(b);
		return e->code = ERR_UNAVAILABLE;
	}
	*ret = b;
	return 0;
}

void bus_close(struct bus *b)
{
	if (!b)
		return;
	dbus_connection_close(b->conn);
	dbus_connection_unref(b->conn);
	free(b);
}

bool bus_is_open(const struct bus *b)
{
	return dbus_connection_get_is_connected(b->conn);
}

bool bus_passes_fds(const struct bus *b)
{
	return dbus_connection_can_send_type(b->conn, DBUS_TYPE_UNIX_FD);
}

static bool put_arg(DBusMessageIter *it, const struct bus_arg *a)
{
	const char *text = a->text;
	dbus_uint32_t number = a->number;
	int fd = a->fd;

	switch (a->type) {
	case BUS_TEXT:
		return dbus_message_iter_append_basic(it, DBUS_TYPE_STRING, &text);
	case BUS_UINT32:
		return dbus_message_iter_append_basic(it, DBUS_TYPE_UINT32, &number);
	case BUS_FD:
		return dbus_message_iter_append_basic(it, DBUS_TYPE_UNIX_FD, &fd);
	}
	return false;
}

static DBusMessage *message_of(const struct bus_call *c)
{
	DBusMessage *m =
		dbus_message_new_method_call(c->destination, c->path, c->interface, c->method);
	DBusMessageIter it;
	bool ok = m != NULL;

	if (ok)
		dbus_message_iter_init_append(m, &it);
	for (int i = 0; i < c->n_args && ok; i++)
		ok = put_arg(&it, &c->args[i]);
	INVARIANT(ok); /* else there is no memory, or a descriptor is none */
	return m;
}

static int first_text(DBusMessage *m, char **ret, struct err *e)
{
	DBusMessageIter top, inner, *it = &top;
	const char *text = NULL;

	if (!dbus_message_iter_init(m, &top))
		return err_set(e, ERR_INTERNAL, "the answer is empty");
	if (dbus_message_iter_get_arg_type(it) == DBUS_TYPE_VARIANT) {
		dbus_message_iter_recurse(it, &inner);
		it = &inner;
	}
	if (dbus_message_iter_get_arg_type(it) != DBUS_TYPE_STRING &&
		dbus_message_iter_get_arg_type(it) != DBUS_TYPE_OBJECT_PATH)
		return err_set(e, ERR_INTERNAL, "the answer is not a string: of type \"%c\"",
			dbus_message_iter_get_arg_type(it));
	dbus_message_iter_get_basic(it, &text);
	*ret = xstrdup(text);
	return 0;
}

int bus_call(struct bus *b, const struct bus_call *c, char **ret, struct err *e)
{
	DBusMessage *m = message_of(c), *answer;
	DBusError de;
	int r;

	dbus_error_init(&de);
	answer = dbus_connection_send_with_reply_and_block(b->conn, m, c->timeout_ms, &de);
	dbus_message_unref(m);
	if (!answer)
		return take_error(&de, e);
	r = first_text(answer, ret, e);
	dbus_message_unref(answer);
	/* Signals that nobody asked for (NameAcquired) would gather. */
	while ((m = dbus_connection_pop_message(b->conn)))
		dbus_message_unref(m);
	return r;
}

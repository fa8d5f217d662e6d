/* Against a bus daemon of the test's own; skipped where there is none. */
#include <sys/socket.h>
#include <sys/un.h>

#include "lib/bus.h"
#include "lib/clock.h"
#include "tests/test.h"

#define DBUS "org.freedesktop.DBus"

static const struct bus_call get_id = { .destination = DBUS,
	.path = "/org/freedesktop/DBus",
	.interface = DBUS,
	.method = "GetId",
	.timeout_ms = 2000 };

static pid_t start_daemon(char **ret_address)
{
	static const char config[] =
		"<busconfig><type>session</type><listen>unix:path=%s</listen><auth>EXTERNAL</auth>"
		"<policy context=\"default\"><allow send_destination=\"*\" "
		"eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/>"
		"</policy></busconfig>";
	AUTO(free) char *socket_path = xasprintf("%s/bus", test_dir());
	AUTO(free) char *file = xasprintf("%s/bus.conf", test_dir());
	AUTO(free) char *option = xasprintf("--config-file=%s", file);
	AUTO_BUF struct buf text = BUF_INIT;
	struct err e = ERR_INIT;
	pid_t pid;

	if (access("/usr/bin/dbus-daemon", X_OK) != 0)
		SKIP("no dbus-daemon here (Debian: dbus)");
	buf_printf(&text, config, socket_path);
	CHECK_OK(buf_write_file(buf_view(&text), file, 0644, &e));
	pid = fork();
	if (pid == 0) {
		execl("/usr/bin/dbus-daemon", "dbus-daemon", option, "--nofork", "--nosyslog",
			(char *)NULL);
		_exit(127);
	}
	for (int i = 0; i < 500 && access(socket_path, F_OK) != 0; i++)
		usleep(10000);
	*ret_address = xasprintf("unix:path=%s", socket_path);
	return pid;
}

static void test_calls(void)
{
	AUTO(free) char *address = NULL;
	AUTO(free) char *id = NULL;
	AUTO(free) char *again = NULL;
	AUTO(free) char *owner = NULL;
	pid_t daemon = start_daemon(&address);
	struct bus_call c = get_id;
	struct bus *b = NULL, *silent = NULL;
	struct err e = ERR_INIT;
	int64_t start;

	CHECK_OK(bus_open(address, 2000, &b, &e));
	CHECK(bus_is_open(b) && bus_passes_fds(b));
	CHECK_OK(bus_call(b, &c, &id, &e));
	CHECK_INT(strlen(id), 32);
	CHECK_OK(bus_call(b, &c, &again, &e));
	CHECK_STR(again, id);
	c.method = "NoSuch";
	CHECK_ERR(bus_call(b, &c, &owner, &e), ERR_UNIMPLEMENTED);
	/* Arguments; an error in the service's words; an answer that is no text. */
	c.method = "GetNameOwner";
	c.args[0] = (struct bus_arg){ .type = BUS_TEXT, .text = "org.example.Nobody" };
	c.n_args = 1;
	CHECK_ERR(bus_call(b, &c, &owner, &e), ERR_INTERNAL);
	CHECK_CONTAINS(e.msg, "org.example.Nobody");
	c.args[0].text = DBUS;
	CHECK_OK(bus_call(b, &c, &owner, &e));
	CHECK_STR(owner, DBUS);
	c.method = "NameHasOwner";
	CHECK_ERR(bus_call(b, &c, &owner, &e), ERR_INTERNAL);
	CHECK_CONTAINS(e.msg, "not a string");
	c.args[0] = (struct bus_arg){ .type = BUS_FD, .fd = 0 };
	CHECK_ERR(bus_call(b, &c, &owner, &e), ERR_INTERNAL);
	/* Who never answers is not waited for longer than said. */
	CHECK_OK(bus_open(address, 2000, &silent, &e));
	c = (struct bus_call){ .destination = ":1.1",
		.path = "/x",
		.interface = "org.example.X",
		.method = "X",
		.timeout_ms = 200 };
	start = clock_mono().ns;
	CHECK_ERR(bus_call(b, &c, &owner, &e), ERR_DEADLINE);
	CHECK(clock_mono().ns - start >= 200 * NS_PER_MS);
	CHECK(clock_mono().ns - start < 5 * NS_PER_SEC);
	bus_close(silent);
	kill(daemon, SIGTERM);
	CHECK(waitpid(daemon, NULL, 0) == daemon);
	c = get_id;
	CHECK(bus_call(b, &c, &owner, &e) != 0);
	CHECK(!bus_is_open(b));
	CHECK_ERR(bus_call(b, &c, &owner, &e), ERR_UNAVAILABLE);
	bus_close(b);
	bus_close(NULL);
}

static void test_no_daemon(void)
{
	AUTO(free) char *path = xasprintf("%s/mute", test_dir());
	AUTO(free) char *address = xasprintf("unix:path=%s", path);
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	struct bus *b = NULL;
	struct err e = ERR_INIT;
	int64_t start = clock_mono().ns;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	CHECK_ERR(bus_open(address, 200, &b, &e), ERR_UNAVAILABLE);
	CHECK_ERR(bus_open("nonsense", 200, &b, &e), ERR_UNAVAILABLE);
	CHECK(setenv("DBUS_SYSTEM_BUS_ADDRESS", address, 1) == 0);
	CHECK_ERR(bus_open(NULL, 200, &b, &e), ERR_UNAVAILABLE);
	CHECK_CONTAINS(e.msg, "No such file");
	/* One that takes connections and says nothing. */
	snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
	CHECK(bind(fd, (struct sockaddr *)&a, sizeof(a)) == 0 && listen(fd, 5) == 0);
	CHECK_ERR(bus_open(address, 200, &b, &e), ERR_UNAVAILABLE);
	CHECK(clock_mono().ns - start < 5 * NS_PER_SEC);
	CHECK(!b);
	close(fd);
}

TEST_MAIN(TEST(test_calls), TEST(test_no_daemon))

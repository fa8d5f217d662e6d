/* The front door: identity, limits and lifetimes, with hostile clients. */
#include "lib/metrics.h"
#include "tests/unit/door.inc"

static void calls(void)
{
	int fd = hello();

	for (uint32_t id = 1; id < 200; id += 2)
		CHECK(call_on(fd, id));
	close(fd);
	CHECK(fresh_call());
	SOON(stats().open == 0);
	CHECK_INT(stats().accepted, 2);
	CHECK_INT(stats().guard_killed, 0);
	CHECK_INT(peer_ends, 2);
}

static void test_calls(void)
{
	run(calls);
}

static void write_metrics(void *arg)
{
	metrics_write(arg);
}

static void metrics(void)
{
	AUTO_BUF struct buf b = BUF_INIT;
	int fd = hello();

	CHECK(call_on(fd, 1));
	door_add_metrics();
	on_loop(write_metrics, &b);
	CHECK(strstr(buf_cstr(&b), "\nassay_connections_open 1\n"));
	CHECK(strstr(buf_cstr(&b), "\nassay_connections_accepted 1\n"));
	CHECK(strstr(buf_cstr(&b), "# TYPE assay_connections_ended_by_guard counter\n"));
	close(fd);
}

/* What a closed door counted is not forgotten. */
static void test_metrics(void)
{
	AUTO_BUF struct buf b = BUF_INIT;

	run(metrics);
	metrics_write(&b);
	CHECK(strstr(buf_cstr(&b), "\nassay_connections_open 0\n"));
	CHECK(strstr(buf_cstr(&b), "\nassay_connections_accepted 1\n"));
}

static void check_peer(void *arg)
{
	(void)arg;
	CHECK(last_peer->is_unix);
	CHECK(!last_peer->privileged);
	CHECK_INT(last_peer->pid, getpid());
	CHECK_INT(last_peer->uid, getuid());
	CHECK_INT(last_peer->gid, getgid());
	CHECK(last_peer->pidfd >= 0);
	CHECK(peer_alive(last_peer));
}

static void check_peer_dead(void *arg)
{
	CHECK(last_peer->pidfd >= 0);
	CHECK_INT(last_peer->pid, *(pid_t *)arg);
	CHECK(!peer_alive(last_peer));
}

static void identity(void)
{
	int fd = hello();
	pid_t pid;

	CHECK(call_on(fd, 1));
	on_loop(check_peer, NULL);
	close(fd);
	pid = fork();
	if (pid == 0)
		_exit(fresh_call() ? 0 : 1);
	waitpid(pid, NULL, 0);
	on_loop(check_peer_dead, &pid);
}

static void test_identity(void)
{
	run(identity);
}

static void test_identity_on_older_kernels(void)
{
	door_no_peerpidfd_for_test = true;
	run(identity);
}

static void socket_file(void)
{
	struct door *second = NULL;
	struct door_options o = options();
	struct stat st;

	CHECK(stat(o.unix_path, &st) == 0);
	CHECK_INT(st.st_mode & 07777, 0777);
	CHECK_ERR(door_open(loop, &o, &second, &e), ERR_EXISTS);
	CHECK_CONTAINS(e.msg, "another process listens");
}

static void test_socket_file(void)
{
	struct door_options o = options();
	AUTO(free) char *path = xstrdup(o.unix_path);
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	struct stat st;
	char text[200];
	int fd;

	umask(077);
	/* a stale one */
	snprintf(text, sizeof(text), "%s/deep", test_dir());
	CHECK(mkdir(text, 0700) == 0);
	snprintf(text, sizeof(text), "%s/deep/er", test_dir());
	CHECK(mkdir(text, 0700) == 0);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	memcpy(un.sun_path, path, strlen(path));
	CHECK(bind(fd, (struct sockaddr *)&un, sizeof(un)) == 0);
	close(fd);
	run(socket_file);
	CHECK(stat(path, &st) != 0); /* unlinked */
	/* not a socket */
	fd = open(path, O_CREAT | O_WRONLY, 0600);
	close(fd);
	loop = loop_new();
	CHECK_ERR(door_open(loop, &o, &door, &e), ERR_EXISTS);
	loop_free(loop);
}

static void folder(void)
{
	char dir[128];
	struct stat st;

	snprintf(dir, sizeof(dir), "%s/deep/er", test_dir());
	CHECK(stat(dir, &st) == 0);
	CHECK_INT(st.st_mode & 07777, 0755);
}

static void test_folder_is_made_for_all(void)
{
	umask(077);
	run(folder);
}

static void test_path_too_long(void)
{
	char path[200];
	struct door_options o = { .unix_path = path };

	memset(path, 'x', sizeof(path) - 1);
	path[sizeof(path) - 1] = '\0';
	loop = loop_new();
	CHECK_ERR(door_open(loop, &o, &door, &e), ERR_INVALID);
	loop_free(loop);
}

static void killed(int fd, uint64_t kills)
{
	check_goaway(fd, 0xb);
	close(fd);
	SOON(stats().guard_killed == kills);
	CHECK(fresh_call());
}

static void guard_limits(void)
{
	int fd = connect_now(), victim = holding();
	static struct h2_got got;

	/* not HTTP/2: not even a descriptor is spent on it */
	CHECK(h2_write(fd, "GET / HTTP/1.1\r\n\r\n", 18));
	CHECK(h2_closed(fd, 10000));
	close(fd);
	SOON(stats().guard_killed == 1);

	fd = hello(); /* CONTINUATION without end */
	h2_zeros(&out, H2_HEADERS, 0, 1, 10);
	for (int i = 0; i < 100; i++)
		h2_zeros(&out, H2_CONTINUATION, 0, 1, 1000);
	h2_flush(fd, &out);
	killed(fd, 2);

	fd = hello(); /* streams without reading what we ask for */
	for (uint32_t id = 1; id < 2000; id += 2)
		h2_open(&out, id, 0, "/x/hold");
	h2_flush(fd, &out);
	killed(fd, 3);

	fd = hello(); /* rapid reset */
	for (uint32_t id = 1; id < 2000; id += 2) {
		h2_open(&out, id, 0, "/x/hold");
		h2_zeros(&out, H2_RST_STREAM, 0, id, 4);
	}
	h2_flush(fd, &out);
	killed(fd, 4);

	fd = hello(); /* PING flood */
	for (int i = 0; i < 20 * DOOR_CONTROL_PER_SECOND; i++)
		h2_zeros(&out, H2_PING, 0, 0, 8);
	h2_flush(fd, &out);
	killed(fd, 5);

	fd = hello(); /* a frame larger than asked for */
	h2_head(&out, 1 << 23, H2_DATA, 0, 1);
	h2_flush(fd, &out);
	killed(fd, 6);

	fd = hello(); /* a message of 4 GB */
	h2_open(&out, 1, 0, "/x/hold");
	h2_frame(&out, H2_DATA, 0, 1, "\0\xff\xff\xff\xff", 5);
	h2_flush(fd, &out);
	killed(fd, 7);

	/* the victim's stream is there all the time */
	h2_zeros(&out, H2_PING, 0, 0, 8);
	CHECK(h2_flush(victim, &out));
	do
		CHECK(h2_next(victim, &got, 10000));
	while (got.type != H2_PING);
	CHECK_INT(stats().open, 1);
	close(victim);
}

static void test_guard_limits(void)
{
	door_times.penalty_ms = 0;
	run(guard_limits);
}

static void deadlines(void)
{
	int silent = connect_now(), slow = connect_now(), idle, held;

	CHECK(h2_write(slow, h2_preface, 10));
	idle = hello();
	held = holding();
	CHECK(h2_closed(silent, 10000));
	CHECK(h2_closed(slow, 10000));
	SOON(stats().handshake_failed == 2);
	/* an idle one is told NO_ERROR */
	check_goaway(idle, 0);
	/* a call that says nothing is not idle */
	h2_sleep_ms(500);
	CHECK_INT(stats().open, 1);
	/* once it has ended, it is */
	h2_zeros(&out, H2_RST_STREAM, 0, 1, 4);
	CHECK(h2_flush(held, &out));
	check_goaway(held, 0);
	close(silent);
	close(slow);
	close(idle);
	close(held);
}

static void test_deadlines(void)
{
	door_times.handshake_ms = 100;
	door_times.idle_ms = 300;
	run(deadlines);
}

static void slow_reader(void)
{
	int fd = hello();

	h2_open(&out, 1, H2_END_STREAM, "/x/flood");
	CHECK(h2_flush(fd, &out));
	SOON(stats().open == 0);
	CHECK(fresh_call());
	close(fd);
}

static void test_slow_reader(void)
{
	door_times.stall_ms = 200;
	run(slow_reader);
}

/* Bytes come out as they went in, whatever the pace, through both directions at once. */
static void *echo_writer(void *arg)
{
	uint8_t part[30011];
	int fd = *(int *)arg;

	for (uint32_t sent = 0; sent < 300; sent++) {
		for (size_t i = 0; i < sizeof(part); i++)
			part[i] = (uint8_t)(sent * 7 + i);
		CHECK(h2_write(fd, part, sizeof(part)));
	}
	shutdown(fd, SHUT_WR);
	return NULL;
}

static void echo(void)
{
	uint8_t part[30011];
	int fd = connect_now();
	pthread_t writer;

	pthread_create(&writer, NULL, echo_writer, &fd);
	h2_sleep_ms(100); /* all buffers fill */
	for (uint32_t got = 0; got < 300; got++) {
		CHECK(h2_read(fd, part, sizeof(part), 10000));
		for (size_t i = 0; i < sizeof(part); i += 97)
			CHECK_INT(part[i], (uint8_t)(got * 7 + i));
	}
	CHECK(h2_closed(fd, 10000)); /* the half-close went through */
	pthread_join(writer, NULL);
	close(fd);
}

static void test_raw_echo_with_back_pressure(void)
{
	struct door_options o = options();

	o.raw = stub_raw = true;
	run_with(&o, echo);
}

static void test_raw_echo_tcp(void)
{
	struct door_options o = options();

	o.raw = stub_raw = true;
	o.unix_path = NULL;
	o.tcp_host = "127.0.0.1";
	run_with(&o, echo);
}

static void check_peer_tcp(void *arg)
{
	(void)arg;
	CHECK(!last_peer->is_unix);
	CHECK_STR(last_peer->address, "127.0.0.1");
	CHECK(last_peer->id.text == NULL);
	CHECK(peer_alive(last_peer));
}

static void tcp(void)
{
	CHECK(fresh_call());
	on_loop(check_peer_tcp, NULL);
	guard_limits();
}

static void test_tcp(void)
{
	struct door_options o = options();

	door_times.penalty_ms = 0;
	o.unix_path = NULL;
	o.tcp_host = "::";
	run_with(&o, tcp);
}

/* ---- closing ---- */

static bool closed_with_grace;

static void close_gently(void *arg)
{
	(void)arg;
	door_close(door, 10000, on_closed, &closed_with_grace);
}

static void open_again(void *arg)
{
	struct door_options o = options();

	(void)arg;
	CHECK_OK(door_open(loop, &o, &door, &e));
}

static void is_closed(void *arg)
{
	*(bool *)arg = closed_with_grace;
}

static bool gently_closed(void)
{
	bool b;

	on_loop(is_closed, &b);
	return b;
}

static void grace(void)
{
	int idle = hello(), held = holding();

	CHECK(call_on(idle, 1));
	SOON(stats().open == 2);
	h2_sleep_ms(50);
	on_loop(close_gently, NULL);
	CHECK(h2_closed(idle, 10000));
	CHECK(h2_connect(target) < 0);
	CHECK(!gently_closed());
	/* the call ends, and then the door has closed */
	h2_zeros(&out, H2_RST_STREAM, 0, 1, 4);
	CHECK(h2_flush(held, &out));
	CHECK(h2_closed(held, 10000));
	SOON(gently_closed());
	close(idle);
	close(held);
	on_loop(open_again, NULL); /* for the end of the test */
}

static void test_close_with_grace(void)
{
	run(grace);
}

TEST_MAIN(TEST(test_calls), TEST(test_metrics), TEST(test_identity),
	TEST(test_identity_on_older_kernels), TEST(test_socket_file),
	TEST(test_folder_is_made_for_all), TEST(test_path_too_long), TEST(test_guard_limits),
	TEST(test_deadlines), TEST(test_slow_reader), TEST(test_raw_echo_with_back_pressure),
	TEST(test_raw_echo_tcp), TEST(test_tcp), TEST(test_close_with_grace))

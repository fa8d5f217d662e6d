/*
 * The front door with hostile clients. The loop runs in the main thread; what is served is a small
 * HTTP/2 stand-in on a thread of its own; the test itself is a client on a third, with blocking
 * sockets.
 */
#include "lib/door.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "lib/door_internal.h"
#include "tests/h2.h"
#include "tests/test.h"

static struct loop *loop;
static struct door *door;
static char target[160];
static struct err e;
static void (*client)(void);

/* libuv opens a pipe for signals with the first loop, for ever. */
static void warm_up(void)
{
	loop_free(loop_new());
}

static int open_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int n = 0;

	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

/* ---- what is behind the door ---- */

/* Paths: "/hold" is never answered, "/flood" with endless DATA, any other with trailers. */
struct stub_conn {
	int fd;
	struct buf in;
	bool settled;
	bool flood;
	bool hold;
};

static int stub_epoll;
static bool stub_raw; /* echoes */
static int stub_conns;

static void stub_end(struct stub_conn *s)
{
	/* a forked client may have a copy */
	epoll_ctl(stub_epoll, EPOLL_CTL_DEL, s->fd, NULL);
	close(s->fd);
	buf_deinit(&s->in);
	free(s);
	__atomic_sub_fetch(&stub_conns, 1, __ATOMIC_SEQ_CST);
}

static void stub_frame(struct stub_conn *s, const uint8_t *f, uint32_t len)
{
	AUTO_BUF struct buf out = BUF_INIT;
	uint32_t id = (uint32_t)f[5] << 24 | (uint32_t)f[6] << 16 | (uint32_t)f[7] << 8 | f[8];
	int type = f[3], flags = f[4];

	if (!s->settled)
		h2_head(&out, 0, H2_SETTINGS, 0, 0);
	s->settled = true;
	if (type == H2_SETTINGS && !(flags & H2_ACK))
		h2_head(&out, 0, H2_SETTINGS, H2_ACK, 0);
	if (type == H2_PING && !(flags & H2_ACK))
		h2_frame(&out, H2_PING, H2_ACK, 0, f + 9, 8);
	if (type == H2_HEADERS && memmem(f + 9, len, "/flood", 6)) {
		struct epoll_event ev = { .events = EPOLLIN | EPOLLOUT, .data.ptr = s };

		s->flood = true;
		epoll_ctl(stub_epoll, EPOLL_CTL_MOD, s->fd, &ev);
	}
	if (type == H2_HEADERS)
		s->hold = memmem(f + 9, len, "/hold", 5) != NULL;
	if ((type == H2_HEADERS || type == H2_DATA) && flags & H2_END_STREAM && !s->hold)
		h2_zeros(&out, H2_HEADERS, H2_END_HEADERS | H2_END_STREAM, id, 3);
	h2_flush(s->fd, &out);
}

static void stub_input(struct stub_conn *s)
{
	uint8_t part[65536];
	ssize_t n = recv(s->fd, part, sizeof(part), MSG_DONTWAIT);

	if (n < 0 && errno == EAGAIN)
		return;
	if (n <= 0) {
		stub_end(s);
		return;
	}
	if (stub_raw) {
		h2_write(s->fd, part, (size_t)n);
		return;
	}
	buf_append(&s->in, part, (size_t)n);
	if (!s->settled && s->in.len >= 24 && memcmp(s->in.p, h2_preface, 24) == 0)
		buf_consume(&s->in, 24);
	while (s->in.len >= 9) {
		uint32_t len = (uint32_t)s->in.p[0] << 16 | (uint32_t)s->in.p[1] << 8 | s->in.p[2];

		if (s->in.len < 9 + len)
			break;
		stub_frame(s, s->in.p, len);
		buf_consume(&s->in, 9 + len);
	}
}

static void *stub_main(void *arg)
{
	for (;;) {
		struct epoll_event ev[64];
		int n = epoll_wait(stub_epoll, ev, 64, -1);

		for (int i = 0; i < n; i++) {
			struct stub_conn *s = ev[i].data.ptr;

			if (ev[i].events & EPOLLOUT && s->flood) {
				static const uint8_t data[9 + 1000] = { 0, 3, 232, H2_DATA, 0, 0, 0,
					0, 1 };

				(void)!send(s->fd, data, sizeof(data), MSG_NOSIGNAL | MSG_DONTWAIT);
			}
			if (ev[i].events & ~(uint32_t)EPOLLOUT)
				stub_input(s);
		}
	}
	return arg;
}

static struct peer *last_peer; /* a reference */
static int peer_ends;

static void on_peer_end(void *arg, struct peer *p)
{
	CHECK(arg == &peer_ends);
	CHECK(p->refs > 0);
	peer_ends++;
}

static void on_conn(void *arg, int fd, struct peer *peer)
{
	struct stub_conn *s = xcalloc(1, sizeof(*s));
	struct epoll_event ev = { .events = EPOLLIN, .data.ptr = s };

	CHECK(arg == &door);
	CHECK(fcntl(fd, F_GETFL) & O_NONBLOCK);
	CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	s->fd = fd;
	s->in = BUF_INIT;
	peer_unref(last_peer);
	last_peer = peer_ref(peer);
	peer->on_end = on_peer_end;
	peer->on_end_arg = &peer_ends;
	__atomic_add_fetch(&stub_conns, 1, __ATOMIC_SEQ_CST);
	epoll_ctl(stub_epoll, EPOLL_CTL_ADD, fd, &ev);
}

/* ---- the run of a test ---- */

static void on_closed(void *arg)
{
	*(bool *)arg = true;
}

static struct loop_timer *keep; /* the loop running between one door and the next */

static void close_door(void *arg)
{
	loop_timer_free(keep);
	door_close(door, 0, on_closed, arg);
}

static bool closed;

static void *client_main(void *arg)
{
	client();
	loop_post(loop, close_door, &closed);
	return arg;
}

/* What the client asks of the loop thread. */
struct ask {
	void (*fn)(void *arg);
	void *arg;
	bool done;
	pthread_mutex_t lock;
	pthread_cond_t cond;
};

static void answer(void *arg)
{
	struct ask *a = arg;

	a->fn(a->arg);
	pthread_mutex_lock(&a->lock);
	a->done = true;
	pthread_cond_signal(&a->cond);
	pthread_mutex_unlock(&a->lock);
}

static void on_loop(void (*fn)(void *arg), void *arg)
{
	struct ask a = { .fn = fn,
		.arg = arg,
		.lock = PTHREAD_MUTEX_INITIALIZER,
		.cond = PTHREAD_COND_INITIALIZER };

	loop_post(loop, answer, &a);
	pthread_mutex_lock(&a.lock);
	while (!a.done)
		pthread_cond_wait(&a.cond, &a.lock);
	pthread_mutex_unlock(&a.lock);
}

static void get_stats(void *arg)
{
	door_stats(door, arg);
}

static struct door_stats stats(void)
{
	struct door_stats s;

	on_loop(get_stats, &s);
	return s;
}

/* Waits until cond holds. */
#define SOON(cond)                                                                                 \
	do {                                                                                       \
		double until_ = h2_now() + 20;                                                     \
		while (!(cond)) {                                                                  \
			if (h2_now() > until_)                                                     \
				TEST_FAIL("not in time: %s", #cond);                               \
			h2_sleep_ms(2);                                                            \
		}                                                                                  \
	} while (0)

static struct door_options options(void)
{
	static char path[128];

	snprintf(path, sizeof(path), "%s/deep/er/door.sock", test_dir());
	snprintf(target, sizeof(target), "unix:%s", path);
	return (struct door_options){
		.unix_path = path, .unix_mode = 0777, .on_conn = on_conn, .arg = &door
	};
}

static void run_with(const struct door_options *o, void (*fn)(void))
{
	pthread_t stub, thread;
	int before, after;

	warm_up();
	before = open_fds();
	client = fn;
	stub_epoll = epoll_create1(EPOLL_CLOEXEC);
	pthread_create(&stub, NULL, stub_main, NULL);
	loop = loop_new();
	keep = loop_timer_new(loop, on_closed, &closed);
	loop_timer_set(keep, 3600 * NS_PER_SEC);
	CHECK_OK(door_open(loop, o, &door, &e));
	if (!o->unix_path)
		snprintf(target, sizeof(target), "tcp:127.0.0.1:%d", door_port(door));
	pthread_create(&thread, NULL, client_main, NULL);
	loop_run(loop);
	pthread_join(thread, NULL);
	CHECK(closed);
	SOON(__atomic_load_n(&stub_conns, __ATOMIC_SEQ_CST) == 0);
	peer_unref(last_peer);
	last_peer = NULL;
	loop_free(loop);
	close(stub_epoll);
	after = open_fds();
	CHECK_INT(after, before);
}

static void run(void (*fn)(void))
{
	struct door_options o = options();

	run_with(&o, fn);
}

/* ---- clients ---- */

static struct buf out = { .max = BUF_MAX_DEFAULT };

static int connect_now(void)
{
	int fd = h2_connect(target);

	if (fd < 0)
		TEST_FAIL("connect %s: %s", target, strerror(errno));
	return fd;
}

static int hello(void)
{
	int fd = connect_now();

	h2_hello(&out);
	CHECK(h2_flush(fd, &out));
	return fd;
}

/* One call on that connection ends with trailers. */
static bool call_on(int fd, uint32_t id)
{
	static struct h2_got got;
	AUTO_BUF struct buf b = BUF_INIT;

	h2_call(&b, id, "/x/quick");
	if (!h2_flush(fd, &b))
		return false;
	do
		if (!h2_next(fd, &got, 10000))
			return false;
	while (got.type != H2_HEADERS || got.id != id);
	return true;
}

static bool fresh_call(void)
{
	int fd = h2_connect(target);
	AUTO_BUF struct buf b = BUF_INIT;
	bool ok;

	if (fd < 0)
		return false;
	h2_hello(&b);
	ok = h2_flush(fd, &b) && call_on(fd, 1);
	close(fd);
	return ok;
}

static int holding(void)
{
	int fd = hello();

	h2_call(&out, 1, "/x/hold");
	CHECK(h2_flush(fd, &out));
	return fd;
}

static void check_goaway(int fd, int code)
{
	static struct h2_got got;

	do
		CHECK(h2_next(fd, &got, 10000));
	while (got.type != H2_GOAWAY);
	CHECK_INT(got.p[7], code);
	CHECK(h2_closed(fd, 10000));
}

/* ---- tests ---- */

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
	snprintf(text, sizeof(text), "mkdir -p $(dirname %s)", path);
	CHECK(system(text) == 0);
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

	o.unix_path = NULL;
	o.tcp_host = "::";
	run_with(&o, tcp);
}

/* ---- shares ---- */

static void raise_limit(void)
{
	struct rlimit rl;

	getrlimit(RLIMIT_NOFILE, &rl);
	rl.rlim_cur = rl.rlim_max;
	setrlimit(RLIMIT_NOFILE, &rl);
	if (rl.rlim_cur < 4000)
		SKIP("needs 4,000 descriptors, the limit is %ld", (long)rl.rlim_cur);
}

/* Another process of the same uid; true when its call succeeds. */
static bool other_process(bool (*fn)(void))
{
	pid_t pid = fork();
	int status;

	if (pid == 0)
		_exit(fn() ? 0 : 1);
	waitpid(pid, &status, 0);
	return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

enum { LIMIT = 1000, BUDGET = 850, MANY = 1000 };

static void idle_flood(void)
{
	static int fds[MANY];
	struct door_stats s;

	for (int i = 0; i < MANY; i++) {
		fds[i] = hello();
		if (i % 100 == 99)
			CHECK(other_process(fresh_call));
	}
	SOON((s = stats()).accepted == MANY + 10);
	CHECK_INT(s.open, BUDGET / 2 / 4);
	CHECK_INT(s.refused_full, 0);
	CHECK(s.evicted_idle >= MANY - BUDGET / 2 / 4);
	/* the oldest went, the newest are there */
	CHECK(h2_closed(fds[0], 10000));
	CHECK(call_on(fds[MANY - 1], 1));
	for (int i = 0; i < MANY; i++)
		close(fds[i]);
}

static void test_share_idle_flood_of_one_process(void)
{
	raise_limit();
	door_limit_for_test = LIMIT;
	run(idle_flood);
}

static void busy_flood(void)
{
	static int fds[MANY];
	uint64_t want = BUDGET / 2 / 4;
	int idle = hello();

	CHECK(call_on(idle, 1));
	for (int i = 0; i < MANY; i++) {
		fds[i] = hello();
		h2_call(&out, 1, "/x/hold");
		h2_flush(fds[i], &out); /* may be refused already */
	}
	SOON(stats().accepted == MANY + 1);
	/* calls are not ended for newcomers of the same process; the idle one was */
	CHECK_INT(stats().open, want);
	CHECK_INT(stats().refused_full, MANY - want);
	CHECK(h2_closed(idle, 10000));
	CHECK(!h2_closed(fds[0], 0));
	for (int i = 0; i < 20; i++)
		CHECK(other_process(fresh_call));
	CHECK(!h2_closed(fds[0], 0));
	for (int i = 0; i < MANY; i++)
		close(fds[i]);
	close(idle);
}

static void test_share_busy_flood_of_one_process(void)
{
	raise_limit();
	door_limit_for_test = LIMIT;
	run(busy_flood);
}

/* Ten processes of one uid with many calls each fill the budget; an eleventh still comes in. */
static void many_processes(void)
{
	enum { PROCESSES = 10, EACH = 60 };
	pid_t pids[PROCESSES];
	int ready[2];
	char c;

	CHECK(pipe(ready) == 0);
	for (int i = 0; i < PROCESSES; i++) {
		pids[i] = fork();
		if (pids[i] == 0) {
			for (int j = 0; j < EACH; j++) {
				int fd = h2_connect(target);

				h2_hello(&out);
				h2_call(&out, 1, "/x/hold");
				h2_flush(fd, &out);
			}
			CHECK_INT(write(ready[1], "x", 1), 1);
			pause();
		}
	}
	for (int i = 0; i < PROCESSES; i++)
		CHECK_INT(read(ready[0], &c, 1), 1);
	SOON(stats().accepted == PROCESSES * EACH);
	CHECK(stats().open <= BUDGET / 4);
	for (int i = 0; i < 50; i++)
		CHECK(other_process(fresh_call));
	for (int i = 0; i < PROCESSES; i++) {
		kill(pids[i], SIGKILL);
		waitpid(pids[i], NULL, 0);
	}
	SOON(stats().open == 0);
	close(ready[0]);
	close(ready[1]);
}

static void test_share_many_processes_of_one_uid(void)
{
	raise_limit();
	door_limit_for_test = LIMIT;
	run(many_processes);
}

static bool as_nobody(void)
{
	if (setgid(65534) != 0 || setuid(65534) != 0)
		return false;
	for (int i = 0; i < 20; i++)
		if (!fresh_call())
			return false;
	return true;
}

/* A hundred processes of one uid with a few calls each: nobody else is shut out. */
static void many_small_processes(void)
{
	enum { PROCESSES = 100 };
	pid_t pids[PROCESSES];
	int ready[2];
	char c;

	if (getuid() != 0)
		SKIP("needs root, for a second uid");
	CHECK(chmod(test_dir(), 0755) == 0);
	CHECK(pipe(ready) == 0);
	for (int i = 0; i < PROCESSES; i++) {
		pids[i] = fork();
		if (pids[i] == 0) {
			for (int j = 0; j < 4; j++) {
				int fd = h2_connect(target);

				h2_hello(&out);
				h2_call(&out, 1, "/x/hold");
				h2_flush(fd, &out);
			}
			CHECK_INT(write(ready[1], "x", 1), 1);
			pause();
		}
	}
	for (int i = 0; i < PROCESSES; i++)
		CHECK_INT(read(ready[0], &c, 1), 1);
	SOON(stats().accepted == PROCESSES * 4);
	CHECK(other_process(as_nobody));
	for (int i = 0; i < PROCESSES; i++) {
		kill(pids[i], SIGKILL);
		waitpid(pids[i], NULL, 0);
	}
	close(ready[0]);
	close(ready[1]);
}

static void test_share_other_uid(void)
{
	raise_limit();
	door_limit_for_test = LIMIT;
	run(many_small_processes);
}

static void privileged(void)
{
	enum { MOST = (LIMIT - BUDGET) / 2 / 4 };
	static int fds[MOST + 5];

	for (int i = 0; i < MOST + 5; i++)
		fds[i] = holding();
	SOON(stats().accepted == MOST + 5);
	CHECK_INT(stats().open, MOST);
	for (int i = 0; i < MOST + 5; i++)
		close(fds[i]);
	SOON(stats().open == 0);
	CHECK(fresh_call());
}

static void test_privileged_has_the_reserve(void)
{
	struct door_options o = options();

	raise_limit();
	door_limit_for_test = LIMIT;
	o.privileged = true;
	run_with(&o, privileged);
}

/* accept() fails for want of descriptors: no spinning, and it goes on afterwards. */
static void emfile(void)
{
	struct rlimit rl, old;
	struct rusage a, b;
	int fds[20];
	bool ok;
	pid_t pid;

	CHECK(fresh_call());
	for (int i = 0; i < 20; i++)
		fds[i] = h2_connect(target);
	SOON(stats().accepted == 21);
	getrlimit(RLIMIT_NOFILE, &old);
	rl = old;
	rl.rlim_cur = (rlim_t)open_fds() - 3;
	pid = fork();
	if (pid == 0) {
		h2_sleep_ms(100);
		ok = fresh_call();
		h2_sleep_ms(100);
		_exit(ok ? 0 : 1);
	}
	setrlimit(RLIMIT_NOFILE, &rl);
	getrusage(RUSAGE_SELF, &a);
	h2_sleep_ms(400);
	getrusage(RUSAGE_SELF, &b);
	CHECK((b.ru_utime.tv_sec - a.ru_utime.tv_sec) * 1000000 + b.ru_utime.tv_usec -
			a.ru_utime.tv_usec <
		100000);
	setrlimit(RLIMIT_NOFILE, &old);
	CHECK(waitpid(pid, &(int){ 0 }, 0) == pid);
	CHECK(fresh_call());
	for (int i = 0; i < 20; i++)
		close(fds[i]);
}

static void test_no_descriptors(void)
{
	run(emfile);
}

static void churn(void)
{
	int start = open_fds();

	for (int i = 0; i < 20000; i++) {
		int fd = connect_now();

		if (i % 3 != 0) {
			h2_hello(&out);
			if (i % 3 == 1)
				h2_call(&out, 1, i % 2 ? "/x/quick" : "/x/hold");
			CHECK(h2_flush(fd, &out));
		}
		if (i % 5 == 0)
			shutdown(fd, SHUT_RDWR);
		close(fd);
	}
	SOON(stats().accepted == 20000 && stats().open == 0);
	SOON(__atomic_load_n(&stub_conns, __ATOMIC_SEQ_CST) == 0);
	SOON(open_fds() <= start + 1); /* the last peer's pidfd */
}

static void test_churn_leaves_nothing(void)
{
	run(churn);
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

/* ---- dialling ---- */

static int dialled = -2;
static struct err dial_err;

static void on_dialled(void *arg, int fd, const struct err *err)
{
	CHECK(arg == &dialled);
	dialled = fd;
	if (fd < 0)
		dial_err = *err;
	else
		close(fd);
	loop_stop(loop);
}

static void dial_now(const struct dial_options *o)
{
	dialled = -2;
	door_dial(loop, o, on_dialled, &dialled);
	CHECK_INT(dialled, -2);
	loop_run(loop);
}

static int listen_tcp_somewhere(int *ret_port)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000001) };
	socklen_t len = sizeof(sa);
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	CHECK(bind(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0 && listen(fd, 5) == 0);
	getsockname(fd, (struct sockaddr *)&sa, &len);
	*ret_port = ntohs(sa.sin_port);
	return fd;
}

static void test_dial(void)
{
	struct dial_options o = { .tcp_host = "127.0.0.1", .timeout_ms = 5000 };
	struct dial *d;
	char text[100];
	int before, fd;

	warm_up();
	before = open_fds();
	fd = listen_tcp_somewhere(&o.tcp_port);
	loop = loop_new();
	dial_now(&o);
	CHECK(dialled >= 0);
	o.tcp_host = "localhost"; /* [::1] fails first, perhaps */
	dial_now(&o);
	CHECK(dialled >= 0);
	close(fd);
	o.tcp_host = "127.0.0.1";
	dial_now(&o);
	CHECK_INT(dialled, -1);
	CHECK_INT(dial_err.code, ERR_UNAVAILABLE);
	snprintf(text, sizeof(text), "dial tcp 127.0.0.1:%d: connect: connection refused",
		o.tcp_port);
	CHECK_STR(dial_err.msg, text);
	o.tcp_host = "no-such-host.invalid";
	dial_now(&o);
	CHECK_INT(dialled, -1);
	CHECK_CONTAINS(dial_err.msg, "lookup no-such-host.invalid");
	o = (struct dial_options){ .unix_path = "/nowhere/door.sock" };
	dial_now(&o);
	CHECK_INT(dialled, -1);
	CHECK_STR(dial_err.msg, "dial unix /nowhere/door.sock: connect: no such file or directory");
	/* cancelled: at once, and while it resolves */
	dialled = -2;
	d = door_dial(loop, &o, on_dialled, &dialled);
	dial_cancel(d);
	dial_cancel(NULL);
	o = (struct dial_options){ .tcp_host = "no-such-host.invalid", .tcp_port = 1 };
	d = door_dial(loop, &o, on_dialled, &dialled);
	uv_run(loop_uv(loop), UV_RUN_NOWAIT);
	dial_cancel(d);
	loop_run(loop);
	CHECK_INT(dialled, -2);
	loop_free(loop);
	CHECK_INT(open_fds(), before);
}

static void test_dial_timeout(void)
{
	struct dial_options o = { .unix_path = NULL, .timeout_ms = 200 };
	char path[128];
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0), filler[3];

	/* a listener whose queue is full */
	snprintf(path, sizeof(path), "%s/full.sock", test_dir());
	memcpy(un.sun_path, path, strlen(path));
	CHECK(bind(fd, (struct sockaddr *)&un, sizeof(un)) == 0 && listen(fd, 0) == 0);
	for (int i = 0; i < 3; i++) {
		filler[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
		(void)!connect(filler[i], (struct sockaddr *)&un, sizeof(un));
	}
	o.unix_path = path;
	loop = loop_new();
	dial_now(&o);
	CHECK_INT(dialled, -1);
	CHECK_CONTAINS(dial_err.msg, "i/o timeout");
	loop_free(loop);
}

TEST_MAIN(TEST(test_calls), TEST(test_identity), TEST(test_identity_on_older_kernels),
	TEST(test_socket_file), TEST(test_path_too_long), TEST(test_guard_limits),
	TEST(test_deadlines), TEST(test_slow_reader), TEST(test_raw_echo_with_back_pressure),
	TEST(test_raw_echo_tcp), TEST(test_tcp), TEST(test_share_idle_flood_of_one_process),
	TEST(test_share_busy_flood_of_one_process), TEST(test_share_many_processes_of_one_uid),
	TEST(test_share_other_uid), TEST(test_privileged_has_the_reserve),
	TEST(test_no_descriptors), TEST(test_churn_leaves_nothing), TEST(test_close_with_grace),
	TEST(test_dial), TEST(test_dial_timeout))

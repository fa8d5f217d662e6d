/*
 * What the front door and lib/rpc cost, without a server or an agent behind them: a process that
 * serves grpc.health.v1 on a Unix socket, and this one as its client, bare HTTP/2.
 *
 *   door [N]           figures, one a line ("name value unit")
 *   door serve PATH    only the serving process, until it is killed
 *   door probe TARGET SECONDS   calls one after the other, each on a fresh connection; their
 *                               number, failures, median, 99th percentile, longest
 */
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "lib/door.h"
#include "lib/log.h"
#include "lib/rpc.h"
#include "lib/rpc_health.h"
#include "tests/h2.h"

static struct loop *loop;
static struct rpc_server *server;
static const char watch[] = "/grpc.health.v1.Health/Watch";
static const char check[] = "/grpc.health.v1.Health/Check";

static void on_conn(void *arg, int fd, struct peer *peer)
{
	rpc_server_conn(arg, fd, peer);
}

static int serve(const char *path)
{
	struct rpc_server_options so = { .message_max = RPC_MESSAGE_MAX_WORKLOAD };
	struct door_options o = { .unix_path = path,
		.unix_mode = 0777,
		.message_max = 4 * RPC_MESSAGE_MAX_WORKLOAD,
		.on_conn = on_conn };
	struct rpc_health *health;
	struct door *door;
	struct err e;

	log_set_level(LOG_ERROR);
	loop = loop_new();
	health = rpc_health_new();
	if (rpc_server_new(loop, &so, &server, &e) != 0) {
		fprintf(stderr, "%s\n", e.msg);
		return 1;
	}
	rpc_health_set(health, "", RPC_SERVING);
	rpc_health_add(health, server);
	rpc_server_start(server);
	o.arg = server;
	if (door_open(loop, &o, &door, &e) != 0) {
		fprintf(stderr, "%s\n", e.msg);
		return 1;
	}
	loop_run(loop);
	return 0;
}

/* ---- the client ---- */

static char target[128];

static int connect_or_die(void)
{
	int fd = h2_connect(target);

	if (fd < 0) {
		fprintf(stderr, "connect %s: %s\n", target, strerror(errno));
		exit(1);
	}
	return fd;
}

/* Until the first DATA of that stream. */
static bool first_message(int fd, uint32_t id)
{
	static struct h2_got got;

	do
		if (!h2_next(fd, &got, 10000))
			return false;
	while (got.type != H2_DATA || got.id != id);
	return true;
}

static bool fresh_call(double *ret_us)
{
	static struct buf b = { .max = 1 << 20 };
	double begun = h2_now();
	int fd = h2_connect(target);
	bool ok;

	if (fd < 0)
		return false;
	h2_hello(&b);
	h2_call(&b, 1, watch);
	ok = h2_flush(fd, &b) && first_message(fd, 1);
	*ret_us = (h2_now() - begun) * 1e6;
	close(fd);
	return ok;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static long status_kb(pid_t pid, const char *what)
{
	char path[64], line[256];
	long kb = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		if (strncmp(line, what, strlen(what)) == 0)
			kb = strtol(line + strlen(what) + 1, NULL, 10);
	if (f)
		fclose(f);
	return kb;
}

static long switches(pid_t pid)
{
	return status_kb(pid, "voluntary_ctxt_switches");
}

static void fresh(int n)
{
	double *us = xcalloc((size_t)n, sizeof(*us));

	for (int i = 0; i < n / 10 + 10; i++)
		(void)fresh_call(&us[0]);
	for (int i = 0; i < n; i++)
		if (!fresh_call(&us[i]))
			fprintf(stderr, "a call failed\n");
	qsort(us, (size_t)n, sizeof(*us), by_value);
	printf("fresh_p50 %.0f us\nfresh_p99 %.0f us\n", us[n / 2], us[n * 99 / 100]);
	free(us);
}

static void unary(int n)
{
	static struct buf b = { .max = 1 << 20 };
	double *us = xcalloc((size_t)n, sizeof(*us));
	int fd = connect_or_die();

	h2_hello(&b);
	for (int i = 0; i < n; i++) {
		double begun = h2_now();

		h2_call(&b, (uint32_t)i * 2 + 1, check);
		if (!h2_flush(fd, &b) || !first_message(fd, (uint32_t)i * 2 + 1))
			fprintf(stderr, "a call failed\n");
		us[i] = (h2_now() - begun) * 1e6;
	}
	close(fd);
	qsort(us, (size_t)n, sizeof(*us), by_value);
	printf("unary_p50 %.0f us\nunary_p99 %.0f us\n", us[n / 2], us[n * 99 / 100]);
	free(us);
}

/* kind: 0 nothing is sent, 1 hello only, 2 an open stream */
static void crowd(pid_t pid, int n, int kind, const char *name)
{
	static struct buf b = { .max = 1 << 20 };
	int *fds = xcalloc((size_t)n, sizeof(*fds));
	long before = status_kb(pid, "VmRSS"), wakeups;

	for (int i = 0; i < n; i++) {
		fds[i] = connect_or_die();
		if (kind > 0)
			h2_hello(&b);
		if (kind == 2)
			h2_call(&b, 1, watch);
		h2_flush(fds[i], &b);
		if (kind == 2 && !first_message(fds[i], 1))
			fprintf(stderr, "stream %d did not open\n", i);
	}
	h2_sleep_ms(500);
	printf("%s %.2f KiB\n", name, (double)(status_kb(pid, "VmRSS") - before) / n);
	if (kind == 2) {
		wakeups = switches(pid);
		h2_sleep_ms(2000);
		printf("idle_wakeups %.1f /s\n", (double)(switches(pid) - wakeups) / 2);
	}
	for (int i = 0; i < n; i++)
		close(fds[i]);
	free(fds);
	h2_sleep_ms(300);
}

static int probe(double seconds)
{
	enum { MOST = 1 << 20 };
	double until = h2_now() + seconds;
	double *us = xcalloc(MOST, sizeof(*us));
	int n = 0, failed = 0;

	while (h2_now() < until && n < MOST) {
		if (fresh_call(&us[n]))
			n++;
		else
			failed++;
		h2_sleep_ms(1);
	}
	qsort(us, (size_t)n, sizeof(*us), by_value);
	printf("calls %d, failed %d, p50 %.2f ms, p99 %.2f ms, longest %.2f ms\n", n, failed,
		n ? us[n / 2] / 1e3 : 0, n ? us[n * 99 / 100] / 1e3 : 0, n ? us[n - 1] / 1e3 : 0);
	free(us);
	return 0;
}

static pid_t server_start(void)
{
	const char *path = target + 5;
	pid_t pid;

	unlink(path);
	fflush(stdout);
	pid = fork();
	if (pid == 0)
		_exit(serve(path));
	for (int i = 0; i < 500 && access(path, F_OK) != 0; i++)
		h2_sleep_ms(10);
	return pid;
}

static void server_stop(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	unlink(target + 5);
}

static int figures(int n)
{
	static const char *const names[] = { "rss_per_silent_connection", "rss_per_idle_connection",
		"rss_per_open_stream" };
	pid_t pid;

	snprintf(target, sizeof(target), "unix:/tmp/assay-bench-door-%d.sock", (int)getpid());
	pid = server_start();
	printf("rss_at_rest %ld KiB\n", status_kb(pid, "VmRSS"));
	fresh(n);
	unary(n * 2);
	server_stop(pid);
	for (int kind = 0; kind < 3; kind++) {
		double us;

		pid = server_start();
		(void)fresh_call(&us);
		crowd(pid, n / 2, kind, names[kind]);
		server_stop(pid);
	}
	return 0;
}

int main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	if (argc == 3 && strcmp(argv[1], "serve") == 0)
		return serve(argv[2]);
	if (argc == 4 && strcmp(argv[1], "probe") == 0) {
		snprintf(target, sizeof(target), "%s", argv[2]);
		return probe(strtod(argv[3], NULL));
	}
	return figures(argc > 1 ? (int)strtol(argv[1], NULL, 10) : 2000);
}

#include "agent/agent.h"

#include <errno.h>
#include <link.h>
#include <malloc.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/attest.h"
#include "agent/broker.h"
#include "agent/cmd.h"
#include "lib/descriptors.h"
#include "lib/log.h"
#include "lib/metrics.h"

enum {
	PUBLIC_MODE = 0777,
	PUBLIC_DIR_MODE = 0755,
	ADMIN_MODE = 0770,
	ADMIN_DIR_MODE = 0750,
	DATA_DIR_MODE = 0700,
	UMASK_LEAST = 0027,
	STOP_GRACE_MS = 2000,
	/* Announced by a peer; above what is taken, so that most get a status. */
	PUBLIC_MESSAGE_MAX = 256 << 10,
	ENVOY_MESSAGE_MAX = 512 << 10,
	PUBLIC_READ_CHUNK = 1 << 10, /* 450 proxies' streams at 32 KiB each */
	HEAP_PIECE_MAX = 32 << 10,   /* what is larger comes and goes in pages of its own */
	/* An Envoy opens a stream per secret, up to a hundred on a connection, all at once. */
	ENVOY_PENDING_MAX = 8 << 20,
};

/* ---- the process ---- */

/* One heap for all threads, without large holes: little of it can be in use in many places, and the
 * threads seldom meet there. Before the first thread is made. */
static void set_up_memory(void)
{
	mallopt(M_ARENA_MAX, 1);
	mallopt(M_MMAP_THRESHOLD, HEAP_PIECE_MAX);
}

static void harden(void)
{
	struct rlimit files, none = { 0 };

	umask(umask(0777) | UMASK_LEAST);
	/* Private keys of all workloads are in this memory: no core dumps, no ptrace by peers. */
	setrlimit(RLIMIT_CORE, &none);
#ifndef __SANITIZE_ADDRESS__
	prctl(PR_SET_DUMPABLE, 0);
#endif
	if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	signal(SIGPIPE, SIG_IGN);
}

/* What only starting needed is not kept: the program's own read-only pages come back from its file
 * when they are wanted again. */
static int drop_pages(struct dl_phdr_info *info, size_t size, void *arg)
{
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);

	(void)size;
	(void)arg;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *p = &info->dlpi_phdr[i];
		uintptr_t from = (info->dlpi_addr + p->p_vaddr + page - 1) & ~(page - 1);
		uintptr_t to = (info->dlpi_addr + p->p_vaddr + p->p_memsz) & ~(page - 1);

		if (p->p_type == PT_LOAD && !(p->p_flags & PF_W) && to > from)
			madvise((void *)from, to - from, MADV_DONTNEED);
	}
	return 0;
}

static void trim_memory(void)
{
	malloc_trim(0);
	dl_iterate_phdr(drop_pages, NULL);
}

/* The last folder gets its mode whatever the umask says; those that exist stay as they are. */
static int make_dirs(const char *path, mode_t mode, struct err *e)
{
	AUTO(free) char *p = xstrdup(path);
	int r;

	for (char *s = p + 1;; s++) {
		char c = *s;

		if (c != '/' && c != '\0')
			continue;
		*s = '\0';
		r = mkdir(p, PUBLIC_DIR_MODE);
		if (r && errno != EEXIST)
			return err_errno(e, errno, "creating %s", p);
		if (!r)
			chmod(p, c ? PUBLIC_DIR_MODE : mode);
		*s = c;
		if (!c)
			return 0;
	}
}

/* The folder of a path; caller frees. */
static char *dir_of(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash && slash != path ? xstrndup(path, (size_t)(slash - path)) : xstrdup("/");
}

/* Who may enter the public socket's folder must not find the admin socket there. */
static int check_sockets(const struct agent_options *o, struct err *e)
{
	AUTO(free) char *public_dir = NULL;
	AUTO(free) char *admin_dir = NULL;
	size_t n;

	if (!o->admin_socket_path)
		return 0;
	public_dir = dir_of(o->socket_path);
	admin_dir = dir_of(o->admin_socket_path);
	n = strlen(public_dir);
	if (strncmp(admin_dir, public_dir, n) == 0 &&
		(admin_dir[n] == '\0' || admin_dir[n] == '/' || strcmp(public_dir, "/") == 0))
		return err_set(e, ERR_INVALID,
			"admin socket cannot be in the same directory or a subdirectory as that "
			"containing the Workload API socket");
	return 0;
}

/* ---- doors ---- */

static void public_conn(void *arg, int fd, struct peer *peer)
{
	struct agent *a = arg;

	rpc_server_conn(a->public_rpc, fd, peer);
}

static void admin_conn(void *arg, int fd, struct peer *peer)
{
	struct agent *a = arg;

	rpc_server_conn(a->admin_rpc, fd, peer);
}

static struct bytes reflected(void)
{
	return bytes_of(descriptors, (size_t)((uintptr_t)descriptors_end - (uintptr_t)descriptors));
}

static int open_public(struct agent *a, struct err *e)
{
	bool envoy = !a->o->disable_sds_api;
	struct rpc_server_options ro = { .message_max = envoy ? RPC_MESSAGE_MAX_ENVOY
							      : RPC_MESSAGE_MAX_WORKLOAD,
		.local = true,
		.read_chunk = PUBLIC_READ_CHUNK,
		.authorize = api_public_authorize,
		.finished = api_finished,
		.arg = &a->api };
	struct door_options d = { .unix_path = a->o->socket_path,
		.unix_mode = PUBLIC_MODE,
		.message_max = envoy ? ENVOY_MESSAGE_MAX : PUBLIC_MESSAGE_MAX,
		.pending_max = envoy ? ENVOY_PENDING_MAX : 0,
		.on_conn = public_conn,
		.arg = a };
	AUTO(free) char *dir = NULL;
	int r;

	ro.reflection_descriptors = (const char *)reflected().p;
	ro.reflection_descriptors_len = reflected().n;
	r = rpc_server_new(a->loop, &ro, &a->public_rpc, e);
	if (r)
		return r;
	if (!a->o->disable_workload_api)
		api_workload_add(a->public_rpc, &a->api);
	if (envoy)
		api_sds_add(a->public_rpc, &a->api);
	api_health_add(a->public_rpc, &a->api);
	rpc_server_start(a->public_rpc);
	dir = dir_of(a->o->socket_path);
	r = make_dirs(dir, PUBLIC_DIR_MODE, e);
	if (!r)
		r = door_open(a->loop, &d, &a->public_door, e);
	if (r)
		return err_wrap(e, "socket_path %s", a->o->socket_path);
	log_event(
		LOG_INFO, "endpoints", "Starting Workload API", "address", a->o->socket_path, NULL);
	return 0;
}

static int open_admin(struct agent *a, struct err *e)
{
	struct rpc_server_options ro = { .local = true,
		.authorize = api_admin_authorize,
		.finished = api_finished,
		.arg = &a->api };
	struct door_options d = { .unix_path = a->o->admin_socket_path,
		.unix_mode = ADMIN_MODE,
		.privileged = true,
		.on_conn = admin_conn,
		.arg = a };
	AUTO(free) char *dir = NULL;
	int r;

	if (!a->o->admin_socket_path)
		return 0;
	dir = dir_of(a->o->admin_socket_path);
	r = make_dirs(dir, ADMIN_DIR_MODE, e);
	if (!r)
		r = rpc_server_new(a->loop, &ro, &a->admin_rpc, e);
	if (r)
		return r;
	api_admin_add(a->admin_rpc, &a->api);
	api_delegated_add(a->admin_rpc, &a->api);
	rpc_server_start(a->admin_rpc);
	r = door_open(a->loop, &d, &a->admin_door, e);
	if (r)
		return err_wrap(e, "admin_socket_path %s", a->o->admin_socket_path);
	log_event(LOG_INFO, "endpoints", "Starting admin API", "address", a->o->admin_socket_path,
		NULL);
	return 0;
}

static struct tls_ctx *serving_tls(void *arg)
{
	struct agent *a = arg;

	return sync_serving_tls(a->sync);
}

static int open_broker(struct agent *a, struct err *e)
{
	struct broker_options b = {
		.api = &a->api, .descriptors = reflected(), .tls = serving_tls, .tls_arg = a
	};

	return broker_open(&b, &a->broker, e);
}

/* ---- HTTP: health and metrics ---- */

static void serve_health(void *arg, const struct http_request *rq, struct http_response *rs)
{
	struct agent *a = arg;
	bool ready = strcmp(rq->path, a->o->daemon.health_ready_path) == 0;
	bool live = strcmp(rq->path, a->o->daemon.health_live_path) == 0;
	struct sync_state st;
	bool ok;

	if (!ready && !live) {
		rs->status = 404;
		buf_str(&rs->body, "404 page not found\n");
		return;
	}
	sync_state(a->sync, &st);
	/* Live while the loop turns: who is read here turns it. Names as SPIRE's; in_step is ours.
	 */
	ok = live || api_healthy(&a->api);
	rs->status = ok ? 200 : 500;
	rs->content_type = "application/json";
	buf_printf(&rs->body, "{\"agent\":{%s%s%s}}\n",
		ok ? "" : "\"make_new_x509_err\":\"workload api is unavailable\"",
		ok || live ? "" : ",",
		live                           ? ""
		: st.connected && !st.error[0] ? "\"in_step\":true"
					       : "\"in_step\":false");
}

static void serve_metrics(void *arg, const struct http_request *rq, struct http_response *rs)
{
	(void)arg;
	if (strcmp(rq->path, "/metrics") != 0 && strcmp(rq->path, "/") != 0) {
		rs->status = 404;
		buf_str(&rs->body, "404 page not found\n");
		return;
	}
	rs->content_type = "text/plain; version=0.0.4; charset=utf-8";
	metrics_write(&rs->body);
}

static int open_http(struct agent *a, struct err *e)
{
	struct http_server_options h = { .host = a->o->daemon.health_address,
		.port = a->o->daemon.health_port,
		.handle = serve_health,
		.arg = a };
	struct http_server_options m = { .host = a->o->daemon.prometheus_host,
		.port = a->o->daemon.prometheus_port,
		.handle = serve_metrics,
		.arg = a };

	if (a->o->daemon.health_enabled && http_server_open(a->loop, &h, &a->health, e))
		return err_wrap(e, "health_checks");
	if (a->o->daemon.prometheus_enabled && http_server_open(a->loop, &m, &a->metrics, e))
		return err_wrap(e, "telemetry Prometheus");
	return 0;
}

/* ---- the end ---- */

/* The servers hold on to the loop until they are freed. */
static void all_closed(void *arg)
{
	struct agent *a = arg;

	if (a->public_rpc)
		rpc_server_free(a->public_rpc);
	if (a->admin_rpc)
		rpc_server_free(a->admin_rpc);
	broker_free(a->broker);
	a->public_rpc = a->admin_rpc = NULL;
	a->broker = NULL;
}

static void part_closed(void *arg)
{
	struct agent *a = arg;

	if (--a->closing == 0)
		loop_post(a->loop, all_closed, a);
}

static void stop(struct agent *a)
{
	if (a->stopping)
		return;
	a->stopping = true;
	a->closing++; /* this function itself */
	if (a->cache)
		cache_stop(a->cache);
	if (a->sync)
		sync_stop(a->sync);
	workload_stop(a->workload);
	if (a->health)
		http_server_close(a->health);
	if (a->metrics)
		http_server_close(a->metrics);
	if (a->public_rpc) {
		a->closing++;
		rpc_server_stop(a->public_rpc, STOP_GRACE_MS, part_closed, a);
	}
	if (a->admin_rpc) {
		a->closing++;
		rpc_server_stop(a->admin_rpc, STOP_GRACE_MS, part_closed, a);
	}
	if (a->broker) {
		a->closing++;
		broker_close(a->broker, STOP_GRACE_MS, part_closed, a);
	}
	if (a->public_door) {
		a->closing++;
		door_close(a->public_door, STOP_GRACE_MS, part_closed, a);
	}
	if (a->admin_door) {
		a->closing++;
		door_close(a->admin_door, STOP_GRACE_MS, part_closed, a);
	}
	part_closed(a);
}

static void on_signal(void *arg, int signo)
{
	struct agent *a = arg;
	struct err e = ERR_INIT;

	if (signo == SIGUSR2) {
		if (log_reopen(&e))
			log_event(LOG_ERROR, "agent", "Could not reopen the log", "error", e.msg,
				NULL);
		return;
	}
	if (signo == SIGUSR1 || signo == SIGHUP) {
		if (a->reload && !a->stopping)
			reload_start(a->reload);
		return;
	}
	if (a->stopping) /* asked twice: at once */
		_exit(a->exit_code);
	log_event(LOG_INFO, "agent", "Stopping", "signal", strsignal(signo), NULL);
	stop(a);
}

static void on_fatal(void *arg, const char *msg)
{
	struct agent *a = arg;

	log_event(LOG_ERROR, "agent", "Agent crashed", "error", msg, NULL);
	a->exit_code = 1;
	stop(a);
}

static void on_ready(void *arg)
{
	struct agent *a = arg;
	struct err e = ERR_INIT;

	if (a->stopping)
		return;
	if (open_public(a, &e) || open_broker(a, &e))
		on_fatal(a, e.msg);
	else
		trim_memory();
}

/* ---- parts ---- */

static void on_wanted(void *arg)
{
	struct agent *a = arg;

	if (a->sync)
		sync_wanted(a->sync);
}

static void on_changed(void *arg)
{
	struct agent *a = arg;

	if (a->sync)
		sync_changed(a->sync);
}

static void fetch_jwt(void *arg, const char *entry_id, const struct strings *audience, void *ticket)
{
	struct agent *a = arg;

	sync_fetch_jwt(a->sync, entry_id, audience, ticket);
}

static int open_keys(struct agent *a, struct err *e)
{
	AUTO(free) char *path = NULL;
	const char *dir = a->o->keys_dir ? a->o->keys_dir : a->o->data_dir;
	int r;

	if (a->o->keymgr_memory)
		return keymgr_memory_new(&a->keys, e);
	r = make_dirs(dir, DATA_DIR_MODE, e);
	if (r)
		return r;
	path = xasprintf("%s/keys.json", dir);
	return keymgr_disk_new(path, &a->keys, e);
}

static int open_parts(struct agent *a, struct err *e)
{
	struct cache_options co = { .loop = a->loop,
		.trust_domain = a->o->trust_domain,
		.x509_max =
			(size_t)(a->o->x509_svid_cache_max_size > 0 ? a->o->x509_svid_cache_max_size
								    : 1000),
		.availability_target_ns = a->o->availability_target_ns,
		.wanted = on_wanted,
		.changed = on_changed,
		.arg = a };
	struct sync_options so = {
		.loop = a->loop, .options = a->o, .ready = on_ready, .fatal = on_fatal, .arg = a
	};
	int r = check_sockets(a->o, e);

	if (!r && !node_attestor_of(a->o))
		r = err_set(e, ERR_INVALID, "no NodeAttestor plugin is configured");
	if (!r)
		r = make_dirs(a->o->data_dir, DATA_DIR_MODE, e);
	if (!r)
		r = open_keys(a, e);
	if (r)
		return r;
	a->cache = cache_new(&co);
	a->jwt = jwtcache_new(a->loop,
		(size_t)(a->o->jwt_svid_cache_max_size > 0 ? a->o->jwt_svid_cache_max_size : 1000),
		fetch_jwt, a);
	r = workload_new(a->loop, a->o, &a->workload, e);
	if (r)
		return r;
	so.keys = a->keys;
	so.cache = a->cache;
	so.jwt = a->jwt;
	r = sync_new(&so, &a->sync, e);
	if (r)
		return r;
	a->api = (struct api){ .loop = a->loop,
		.options = a->o,
		.cache = a->cache,
		.jwt = a->jwt,
		.sync = a->sync,
		.workload = a->workload,
		.limits = limits_new(a->o->rate_limits),
		.started = clock_mono(),
		.launch_level = log_level() };
	api_metrics(&a->api);
	workload_metrics();
	r = open_admin(a, e);
	return r ? r : open_http(a, e);
}

static void close_parts(struct agent *a)
{
	INVARIANT(a->closing == 0);
	jwtcache_free(a->jwt);
	sync_free(a->sync);
	workload_free(a->workload);
	limits_free(a->api.limits);
	reload_free(a->reload);
	cache_free(a->cache);
	if (a->keys)
		keymgr_free(a->keys);
}

int agent_run(struct agent_options *o)
{
	static const int signals[] = { SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 };
	struct agent a = { .o = o };
	struct err e = ERR_INIT;

	set_up_memory();
	harden();
	a.loop = loop_new();
	log_event(LOG_INFO, "agent", "Starting agent", "version", ASSAY_VERSION, "trust_domain",
		o->trust_domain, "data_dir", o->data_dir, NULL);
	for (size_t i = 0; i < ARRAY_LEN(signals); i++)
		loop_on_signal(a.loop, signals[i], on_signal, &a);
	if (open_parts(&a, &e)) {
		on_fatal(&a, e.msg);
	} else {
		a.reload = reload_new(a.loop, o, &a.api);
		sync_start(a.sync);
	}
	/* Ends by itself once stop() has closed everything and the last job is done. */
	loop_run(a.loop);
	close_parts(&a);
	loop_free(a.loop);
	log_event(LOG_INFO, "agent", "Agent stopped", NULL);
	return a.exit_code;
}

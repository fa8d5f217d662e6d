#include "agent/csi.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "agent/cmd.h"
#include "lib/door.h"
#include "lib/log.h"
#include "lib/loop.h"
#include "lib/rpc.h"
#include "lib/rpc_health.h"
#include "pluginregistration/api.pb-c.h"

enum { SOCKET_MODE = 0600, STOP_GRACE_MS = 2000, LOG_LINES_PER_SECOND = 20 };

#define CSI_VERSION "1.0.0" /* what the kubelet knows a CSI 1.x driver by */

struct csi {
	const struct csi_options *o;
	struct loop *loop;
	struct lane *lane; /* mounts, one after the other: two calls for one path do not meet */
	struct rpc_server *rpc, *registration_rpc;
	struct rpc_health *health;
	struct door *door, *registration_door;
	int closing;
	bool stopping;
	int exit_code;
};

static void stop(struct csi *d);

/* protobuf-c's strings are not const. */
static char *unconst(const char *s)
{
	return (char *)(uintptr_t)s;
}

/* ---- Identity ---- */

static void get_plugin_info(struct rpc_call *c, const ProtobufCMessage *req)
{
	const struct csi *d = rpc_call_data(c);
	Csi__V1__GetPluginInfoResponse rs = CSI__V1__GET_PLUGIN_INFO_RESPONSE__INIT;
	char version[] = ASSAY_VERSION;

	(void)req;
	rs.name = unconst(d->o->plugin_name);
	rs.vendor_version = version;
	rpc_reply(c, &rs.base);
}

static void get_plugin_capabilities(struct rpc_call *c, const ProtobufCMessage *req)
{
	Csi__V1__GetPluginCapabilitiesResponse rs = CSI__V1__GET_PLUGIN_CAPABILITIES_RESPONSE__INIT;

	(void)req;
	rpc_reply(c, &rs.base);
}

static void probe(struct rpc_call *c, const ProtobufCMessage *req)
{
	Csi__V1__ProbeResponse rs = CSI__V1__PROBE_RESPONSE__INIT;

	(void)req;
	rpc_reply(c, &rs.base);
}

static const struct rpc_method identity_methods[] = {
	{ "GetPluginInfo", RPC_UNARY, get_plugin_info },
	{ "GetPluginCapabilities", RPC_UNARY, get_plugin_capabilities },
	{ "Probe", RPC_UNARY, probe },
};

/* ---- Node ---- */

/* A call on its way through the lane. */
struct job {
	struct csi *d;
	struct rpc_call *call;
	ProtobufCMessage *req;
	void (*work)(struct job *j);
	void (*answer)(struct job *j);
	int code;
	bool source_gone;
	struct err e;
};

static void job_work(void *arg)
{
	struct job *j = arg;

	j->work(j);
}

static void job_done(void *arg)
{
	struct job *j = arg;
	struct csi *d = j->d;
	bool gone = j->source_gone;

	j->answer(j);
	protobuf_c_message_free_unpacked(j->req, NULL);
	rpc_call_unref(j->call);
	free(j);
	if (!gone || d->stopping)
		return;
	/* A container that is started anew is given the folder that is there now. */
	log_event(LOG_ERROR, "csi", "The Workload API socket directory was deleted; ending",
		"workload_api_socket_dir", d->o->workload_dir, NULL);
	d->exit_code = 1;
	stop(d);
}

static void job_start(
	struct rpc_call *c, void (*work)(struct job *j), void (*answer)(struct job *j))
{
	struct job *j = xcalloc(1, sizeof(*j));

	j->d = rpc_call_data(c);
	j->call = rpc_call_ref(c);
	j->req = rpc_call_take_request(c);
	j->work = work;
	j->answer = answer;
	lane_job(j->d->lane, job_work, job_done, j);
}

static void log_volume(const struct job *j, const char *volume, const char *path, const char *good,
	const char *bad)
{
	if (j->code)
		log_event(LOG_ERROR, "csi", bad, "volume_id", log_fmt("%.128s", volume),
			"target_path", log_fmt("%.512s", path), "error", j->e.msg, NULL);
	else
		log_event(LOG_INFO, "csi", good, "volume_id", log_fmt("%.128s", volume),
			"target_path", log_fmt("%.512s", path), NULL);
}

static void publish_work(struct job *j)
{
	j->code = csi_publish(j->d->o, (const Csi__V1__NodePublishVolumeRequest *)j->req, &j->e);
	j->source_gone = j->code == ERR_INTERNAL && csi_source_is_gone(j->d->o);
}

static void publish_answer(struct job *j)
{
	const Csi__V1__NodePublishVolumeRequest *rq =
		(const Csi__V1__NodePublishVolumeRequest *)j->req;
	Csi__V1__NodePublishVolumeResponse rs = CSI__V1__NODE_PUBLISH_VOLUME_RESPONSE__INIT;

	log_volume(
		j, rq->volume_id, rq->target_path, "Volume published", "Failed to publish volume");
	if (j->code)
		rpc_fail_err(j->call, &j->e);
	else
		rpc_reply(j->call, &rs.base);
}

static void node_publish_volume(struct rpc_call *c, const ProtobufCMessage *req)
{
	(void)req;
	job_start(c, publish_work, publish_answer);
}

static void unpublish_work(struct job *j)
{
	j->code =
		csi_unpublish(j->d->o, (const Csi__V1__NodeUnpublishVolumeRequest *)j->req, &j->e);
}

static void unpublish_answer(struct job *j)
{
	const Csi__V1__NodeUnpublishVolumeRequest *rq =
		(const Csi__V1__NodeUnpublishVolumeRequest *)j->req;
	Csi__V1__NodeUnpublishVolumeResponse rs = CSI__V1__NODE_UNPUBLISH_VOLUME_RESPONSE__INIT;

	log_volume(j, rq->volume_id, rq->target_path, "Volume unpublished",
		"Failed to unpublish volume");
	if (j->code)
		rpc_fail_err(j->call, &j->e);
	else
		rpc_reply(j->call, &rs.base);
}

static void node_unpublish_volume(struct rpc_call *c, const ProtobufCMessage *req)
{
	(void)req;
	job_start(c, unpublish_work, unpublish_answer);
}

static void stats_work(struct job *j)
{
	j->code = csi_condition(j->d->o, (const Csi__V1__NodeGetVolumeStatsRequest *)j->req, &j->e);
}

static void stats_answer(struct job *j)
{
	static struct log_limit limit;
	const Csi__V1__NodeGetVolumeStatsRequest *rq =
		(const Csi__V1__NodeGetVolumeStatsRequest *)j->req;
	Csi__V1__NodeGetVolumeStatsResponse rs = CSI__V1__NODE_GET_VOLUME_STATS_RESPONSE__INIT;
	Csi__V1__VolumeCondition condition = CSI__V1__VOLUME_CONDITION__INIT;

	condition.abnormal = j->code != 0;
	condition.message = unconst(j->code ? j->e.msg : "mounted");
	rs.volume_condition = &condition;
	if (j->code && log_allowed(&limit, LOG_LINES_PER_SECOND))
		log_event(LOG_WARN, "csi", "Volume is unhealthy", "volume_id",
			log_fmt("%.128s", rq->volume_id), "volume_path",
			log_fmt("%.512s", rq->volume_path), "error", j->e.msg, NULL);
	rpc_reply(j->call, &rs.base);
}

static void node_get_volume_stats(struct rpc_call *c, const ProtobufCMessage *req)
{
	(void)req;
	job_start(c, stats_work, stats_answer);
}

static void node_get_capabilities(struct rpc_call *c, const ProtobufCMessage *req)
{
	static const int types[] = { CSI__V1__NODE_SERVICE_CAPABILITY__RPC__TYPE__VOLUME_CONDITION,
		CSI__V1__NODE_SERVICE_CAPABILITY__RPC__TYPE__GET_VOLUME_STATS };
	Csi__V1__NodeGetCapabilitiesResponse rs = CSI__V1__NODE_GET_CAPABILITIES_RESPONSE__INIT;
	Csi__V1__NodeServiceCapability__RPC rpc[ARRAY_LEN(types)];
	Csi__V1__NodeServiceCapability one[ARRAY_LEN(types)];
	Csi__V1__NodeServiceCapability *all[ARRAY_LEN(types)];

	(void)req;
	for (size_t i = 0; i < ARRAY_LEN(types); i++) {
		csi__v1__node_service_capability__rpc__init(&rpc[i]);
		rpc[i].type = types[i];
		csi__v1__node_service_capability__init(&one[i]);
		one[i].type_case = CSI__V1__NODE_SERVICE_CAPABILITY__TYPE_RPC;
		one[i].rpc = &rpc[i];
		all[i] = &one[i];
	}
	rs.n_capabilities = ARRAY_LEN(types);
	rs.capabilities = all;
	rpc_reply(c, &rs.base);
}

static void node_get_info(struct rpc_call *c, const ProtobufCMessage *req)
{
	const struct csi *d = rpc_call_data(c);
	Csi__V1__NodeGetInfoResponse rs = CSI__V1__NODE_GET_INFO_RESPONSE__INIT;

	(void)req;
	rs.node_id = unconst(d->o->node_id);
	rpc_reply(c, &rs.base);
}

static const struct rpc_method node_methods[] = {
	{ "NodePublishVolume", RPC_UNARY, node_publish_volume },
	{ "NodeUnpublishVolume", RPC_UNARY, node_unpublish_volume },
	{ "NodeGetVolumeStats", RPC_UNARY, node_get_volume_stats },
	{ "NodeGetCapabilities", RPC_UNARY, node_get_capabilities },
	{ "NodeGetInfo", RPC_UNARY, node_get_info },
};

/* ---- Registration: the kubelet asks who we are ---- */

static void get_info(struct rpc_call *c, const ProtobufCMessage *req)
{
	const struct csi *d = rpc_call_data(c);
	Pluginregistration__PluginInfo rs = PLUGINREGISTRATION__PLUGIN_INFO__INIT;
	char type[] = "CSIPlugin", version[] = CSI_VERSION;
	char *versions[] = { version };

	(void)req;
	rs.type = type;
	rs.name = unconst(d->o->plugin_name);
	rs.endpoint = unconst(d->o->kubelet_path);
	rs.n_supported_versions = ARRAY_LEN(versions);
	rs.supported_versions = versions;
	rpc_reply(c, &rs.base);
}

/* After a refusal the kubelet asks again by itself, as long as the socket is there. */
static void notify_registration_status(struct rpc_call *c, const ProtobufCMessage *req)
{
	const Pluginregistration__RegistrationStatus *st =
		(const Pluginregistration__RegistrationStatus *)req;
	Pluginregistration__RegistrationStatusResponse rs =
		PLUGINREGISTRATION__REGISTRATION_STATUS_RESPONSE__INIT;

	if (st->plugin_registered)
		log_event(LOG_INFO, "csi", "Registered with the kubelet", NULL);
	else
		log_event(LOG_ERROR, "csi", "The kubelet refused to register the driver", "error",
			log_fmt("%.512s", st->error), NULL);
	rpc_reply(c, &rs.base);
}

static const struct rpc_method registration_methods[] = {
	{ "GetInfo", RPC_UNARY, get_info },
	{ "NotifyRegistrationStatus", RPC_UNARY, notify_registration_status },
};

/* ---- start and end ---- */

static void on_finished(void *arg, struct rpc_call *c, const char *method, int code,
	const char *message, int64_t elapsed_ns)
{
	(void)arg;
	(void)c;
	(void)elapsed_ns;
	if (code && code != ERR_CANCELLED)
		log_event(LOG_DEBUG, "csi", "RPC failed", "method", method, "code",
			err_code_name(code), "error", message, NULL);
}

static void csi_conn(void *arg, int fd, struct peer *peer)
{
	struct csi *d = arg;

	rpc_server_conn(d->rpc, fd, peer);
}

static void registration_conn(void *arg, int fd, struct peer *peer)
{
	struct csi *d = arg;

	rpc_server_conn(d->registration_rpc, fd, peer);
}

static int open_csi(struct csi *d, struct err *e)
{
	const struct rpc_service identity = { &csi__v1__identity__descriptor, identity_methods,
		ARRAY_LEN(identity_methods), d };
	const struct rpc_service node = { &csi__v1__node__descriptor, node_methods,
		ARRAY_LEN(node_methods), d };
	struct rpc_server_options ro = {
		.message_max = CSI_MESSAGE_MAX, .local = true, .finished = on_finished
	};
	struct door_options door = { .unix_path = d->o->socket_path,
		.unix_mode = SOCKET_MODE,
		.message_max = 2 * CSI_MESSAGE_MAX,
		.on_conn = csi_conn,
		.arg = d };
	int r = rpc_server_new(d->loop, &ro, &d->rpc, e);

	if (r)
		return r;
	rpc_server_add(d->rpc, &identity);
	rpc_server_add(d->rpc, &node);
	d->health = rpc_health_new();
	rpc_health_set(d->health, "", RPC_SERVING);
	rpc_health_add(d->health, d->rpc);
	rpc_server_start(d->rpc);
	if (door_open(d->loop, &door, &d->door, e))
		return err_wrap(e, "csi-socket-path %s", d->o->socket_path);
	log_event(LOG_INFO, "csi", "Listening", "address", d->o->socket_path, NULL);
	return 0;
}

/* Opened last: from then on the kubelet comes. */
static int open_registration(struct csi *d, struct err *e)
{
	const struct rpc_service registration = { &pluginregistration__registration__descriptor,
		registration_methods, ARRAY_LEN(registration_methods), d };
	struct rpc_server_options ro = {
		.message_max = CSI_MESSAGE_MAX, .local = true, .finished = on_finished
	};
	AUTO(free)
	char *path = xasprintf("%s/%s-reg.sock", d->o->registration_dir, d->o->plugin_name);
	struct door_options door = { .unix_path = path,
		.unix_mode = SOCKET_MODE,
		.message_max = 2 * CSI_MESSAGE_MAX,
		.on_conn = registration_conn,
		.arg = d };
	int r;

	if (!d->o->kubelet_path[0])
		return 0;
	r = rpc_server_new(d->loop, &ro, &d->registration_rpc, e);
	if (r)
		return r;
	rpc_server_add(d->registration_rpc, &registration);
	rpc_server_start(d->registration_rpc);
	if (door_open(d->loop, &door, &d->registration_door, e))
		return err_wrap(e, "plugin-registration-path %s", path);
	log_event(LOG_INFO, "csi", "Waiting for the kubelet", "address", path, "endpoint",
		d->o->kubelet_path, NULL);
	return 0;
}

static void all_closed(void *arg)
{
	struct csi *d = arg;

	if (d->rpc)
		rpc_server_free(d->rpc);
	if (d->registration_rpc)
		rpc_server_free(d->registration_rpc);
	d->rpc = d->registration_rpc = NULL;
}

static void part_closed(void *arg)
{
	struct csi *d = arg;

	if (--d->closing == 0)
		loop_post(d->loop, all_closed, d);
}

static void stop(struct csi *d)
{
	struct rpc_server *servers[] = { d->rpc, d->registration_rpc };
	struct door *doors[] = { d->registration_door, d->door };

	if (d->stopping)
		return;
	d->stopping = true;
	d->closing++; /* this function itself */
	for (size_t i = 0; i < ARRAY_LEN(servers); i++)
		if (servers[i]) {
			d->closing++;
			rpc_server_stop(servers[i], STOP_GRACE_MS, part_closed, d);
		}
	for (size_t i = 0; i < ARRAY_LEN(doors); i++)
		if (doors[i]) {
			d->closing++;
			door_close(doors[i], STOP_GRACE_MS, part_closed, d);
		}
	part_closed(d);
}

static void on_signal(void *arg, int signo)
{
	struct csi *d = arg;

	if (d->stopping) /* asked twice: at once */
		_exit(d->exit_code);
	log_event(LOG_INFO, "csi", "Stopping", "signal", strsignal(signo), NULL);
	stop(d);
}

static int check_name(const char *name, struct err *e)
{
	size_t n = strlen(name);

	/* "63 characters or less, beginning and ending with an alphanumeric character with dashes,
	 * dots, and alphanumerics between" (CSI, GetPluginInfo) */
	if (n == 0 || n > CSI_NAME_MAX ||
		strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-") !=
			n ||
		strchr(".-", name[0]) || strchr(".-", name[n - 1]))
		return err_set(e, ERR_INVALID,
			"plugin-name must have 1 to %d letters, digits, dots and dashes, and begin "
			"and end with a letter or digit",
			CSI_NAME_MAX);
	return 0;
}

int csi_options_check(const struct csi_options *o, struct err *e)
{
	struct stat st;
	int r;

	if (!o->node_id[0])
		return err_set(e, ERR_INVALID, "node ID is required");
	if (!o->workload_dir[0])
		return err_set(e, ERR_INVALID, "workload API socket directory is required");
	if (!o->socket_path[0])
		return err_set(e, ERR_INVALID, "CSI socket path is required");
	r = check_name(o->plugin_name, e);
	if (!r && o->kubelet_path[0])
		r = csi_path_check(o->kubelet_path, "kubelet registration", e);
	if (r)
		return r;
	if (stat(o->workload_dir, &st) != 0)
		return err_errno(e, errno, "workload API socket directory %s", o->workload_dir);
	if (!S_ISDIR(st.st_mode))
		return err_set(e, ERR_INVALID, "workload API socket directory %s is no directory",
			o->workload_dir);
	return 0;
}

int csi_run(const struct csi_options *o)
{
	static const int signals[] = { SIGINT, SIGTERM };
	struct csi d = { .o = o };
	struct err e = ERR_INIT;

	signal(SIGPIPE, SIG_IGN);
	umask(umask(0777) | 0027);
	log_event(LOG_INFO, "csi", "Starting", "version", ASSAY_VERSION, "node_id", o->node_id,
		"workload_api_socket_dir", o->workload_dir, "csi_socket_path", o->socket_path,
		NULL);
	d.loop = loop_new();
	d.lane = lane_new(d.loop, "mounts");
	for (size_t i = 0; i < ARRAY_LEN(signals); i++)
		loop_on_signal(d.loop, signals[i], on_signal, &d);
	if (csi_options_check(o, &e) || open_csi(&d, &e) || open_registration(&d, &e)) {
		log_event(LOG_ERROR, "csi", "Failed to serve", "error", e.msg, NULL);
		d.exit_code = 1;
		stop(&d);
	}
	loop_run(d.loop);
	INVARIANT(d.closing == 0);
	lane_free(d.lane);
	loop_drain(d.loop);
	rpc_health_free(d.health);
	loop_free(d.loop);
	log_event(LOG_INFO, "csi", "Done", NULL);
	return d.exit_code;
}

/*
 * The composition root. Start, in this order: process limits, lock of the data folder, keys,
 * memory, store, authorities; when those are ready the server's own SVID; when that is there the
 * doors. Stop is the reverse.
 */
#include "server/server.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/log.h"
#include "server/bundle_endpoint.h"
#include "server/cmd.h"
#include "server/controller.h"
#include "server/federation.h"
#include "server/oidc.h"
#include "server/publisher.h"
#include "server/reload.h"

enum { FACE_TCP, FACE_UNIX, FACES };

/* A door and who answers behind it. */
struct face {
	struct server *server;
	struct door *door;
	struct rpc_server *rpc;
	struct rpc_service services[16];
	size_t n_services;
};

struct server {
	const struct server_options *o;
	struct loop *loop;
	int lock_fd;
	struct keymgr *keymgr;
	struct prune *prune;
	struct server_http *http;
	struct bundle_endpoint *bundle_endpoint;
	struct oidc *oidc;
	struct publisher *publisher;
	struct reload *reload;
	struct api api;
	struct face faces[FACES];
	struct x509_chain roots; /* of the own bundle, for the handshakes */
	int closing;             /* parts of the faces that have not closed yet */
	bool stopping;
	int exit_code;
};

/* ---- process ---- */

void server_harden(void)
{
	struct rlimit none = { 0, 0 }, files;

	umask(umask(0777) | SERVER_UMASK);
	setrlimit(RLIMIT_CORE, &none);
	prctl(PR_SET_DUMPABLE, 0);
	signal(SIGPIPE, SIG_IGN);
	if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
}

static int make_folder(const char *path, struct err *e)
{
	AUTO(free) char *p = xstrdup(path);

	for (char *s = strchr(p + 1, '/'); s; s = strchr(s + 1, '/')) {
		*s = 0;
		mkdir(p, 0755); /* what is wrong shows at the last one */
		*s = '/';
	}
	if (mkdir(p, 0750) && errno != EEXIST)
		return err_errno(e, errno, "data_dir %s", path);
	return 0;
}

/* A server that was killed may hold its lock for a moment, until its last thread is gone. */
enum { LOCK_TRIES = 60, LOCK_WAIT_US = 50000 };

static bool lock_soon(int fd)
{
	for (int i = 0; i < LOCK_TRIES; i++) {
		if (flock(fd, LOCK_EX | LOCK_NB) == 0)
			return true;
		usleep(LOCK_WAIT_US);
	}
	return false;
}

/* Held as long as the process lives: two servers would sign from one journal. */
static int lock_folder(struct server *s, struct err *e)
{
	AUTO(free) char *path = xasprintf("%s/server.lock", s->o->data_dir);
	int r = make_folder(s->o->data_dir, e);

	if (r)
		return r;
	s->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0640);
	if (s->lock_fd < 0)
		return err_errno(e, errno, "%s", path);
	if (!lock_soon(s->lock_fd))
		return err_set(
			e, ERR_EXISTS, "data_dir %s is in use by another server", s->o->data_dir);
	return 0;
}

/* ---- the store's observer ---- */

static void on_entry(void *arg, uint64_t change, const char *id, const struct entry *en)
{
	struct server *s = arg;

	entries_set_change(s->api.entries, change);
	if (en)
		entries_put(s->api.entries, en);
	else
		entries_remove(s->api.entries, id);
	if (en && s->prune)
		prune_note(s->prune, en->expires_at);
	if (s->api.controller)
		controller_entry(s->api.controller, id, en);
}

static void on_node(void *arg, uint64_t change, const char *spiffe_id, const struct node *n)
{
	struct server *s = arg;

	entries_set_change(s->api.entries, change);
	if (n)
		entries_put_node(s->api.entries, n);
	else
		entries_remove_node(s->api.entries, spiffe_id);
	if (s->api.sync)
		sync_hub_node_changed(s->api.sync, spiffe_id, n);
	else if (n && !node_banned(n) && n->expires_at > clock_wall().sec)
		witness_expect(s->api.witness, spiffe_id, clock_mono());
}

static void on_bundle(void *arg, uint64_t change, const char *trust_domain, struct bundle *b)
{
	struct server *s = arg;

	entries_set_change(s->api.entries, change);
	api_bundle_changed(&s->api, trust_domain, b);
	if (b && strcmp(trust_domain, s->o->trust_domain) == 0) {
		x509_chain_deinit(&s->roots);
		s->roots = bundle_roots(b);
		if (s->api.ca)
			ca_bundle_changed(s->api.ca, b);
		if (s->api.svid)
			server_svid_bundle_changed(s->api.svid, b);
		if (s->publisher)
			publisher_bundle_changed(s->publisher, b);
	}
	if (s->api.sync)
		sync_hub_bundle_changed(s->api.sync, trust_domain);
	if (b && s->api.federation)
		federation_bundle_changed(s->api.federation, trust_domain);
	if (b && s->api.controller)
		controller_bundle(s->api.controller);
}

static void on_relationship(
	void *arg, uint64_t change, const char *trust_domain, const struct relationship *r)
{
	struct server *s = arg;

	entries_set_change(s->api.entries, change);
	if (s->api.federation)
		federation_changed(s->api.federation, trust_domain, r);
	if (s->api.controller)
		controller_relationship(s->api.controller);
}

/* ---- doors ---- */

static struct tls_ctx *face_tls(void *arg)
{
	const struct face *f = arg;

	return server_svid_tls(f->server->api.svid);
}

/* A client's chain: of the own trust domain, or of a foreign one whose id is an admin. */
static int face_verify(void *arg, const struct x509_chain *peer, struct err *e)
{
	const struct face *f = arg;
	const struct server *s = f->server;
	struct spiffeid claimed = SPIFFEID_INIT, id = SPIFFEID_INIT;
	AUTO(free) char *td = NULL;
	struct x509_chain roots;
	int r = x509_svid_id(peer->v[0], &claimed, e);

	if (r)
		return r;
	if (spiffeid_member_of(&claimed, s->o->trust_domain)) {
		r = tls_verify_svid(peer, &s->roots, clock_wall(), &id, e);
	} else {
		struct bytes name = spiffeid_td(&claimed);

		td = xstrndup((const char *)name.p, name.n);
		if (!strings_has(&s->o->admin_ids, claimed.text) || !api_bundle(&s->api, td)) {
			r = err_set(e, ERR_INVALID, "no bundle for trust domain \"%s\"", td);
		} else {
			roots = bundle_roots(api_bundle(&s->api, td));
			r = tls_verify_svid(peer, &roots, clock_wall(), &id, e);
			x509_chain_deinit(&roots);
		}
	}
	spiffeid_deinit(&id);
	spiffeid_deinit(&claimed);
	return r;
}

/* Is one of the process's supplementary groups ours? */
static bool in_our_group(const struct peer *p)
{
	AUTO(free) char *path = xasprintf("/proc/%d/status", (int)p->pid);
	char line[4096];
	bool found = false;
	FILE *f;

	if (p->gid == getegid())
		return true;
	f = fopen(path, "re");
	while (f && !found && fgets(line, sizeof(line), f)) {
		char *rest = line + 7;

		if (strncmp(line, "Groups:", 7) != 0)
			continue;
		for (char *end; !found; rest = end) {
			unsigned long g = strtoul(rest, &end, 10);

			if (end == rest)
				break;
			found = g == getegid();
		}
	}
	if (f)
		fclose(f);
	return found;
}

static void face_conn(void *arg, int fd, struct peer *peer)
{
	static struct log_limit limit;
	const struct face *f = arg;

	/* The file mode says the same; it must not be the only one that does. */
	if (peer->is_unix && peer->uid != 0 && peer->uid != geteuid() && !in_our_group(peer)) {
		if (log_allowed(&limit, 5))
			log_event(LOG_WARN, "server", "refused a caller on the admin socket", "uid",
				log_fmt("%u", (unsigned)peer->uid), "pid",
				log_fmt("%d", (int)peer->pid), NULL);
		close(fd);
		return;
	}
	rpc_server_conn(f->rpc, fd, peer);
}

static bool authorize(void *arg, struct rpc_call *c, const char *method)
{
	const struct api *a = arg;

	return authz_rpc(a->authz, c, method);
}

static int face_serve(struct server *s, struct face *f, struct err *e)
{
	struct rpc_server_options o = { .local = f == &s->faces[FACE_UNIX],
		.authorize = authorize,
		.finished = api_finished,
		.arg = &s->api };
	int r = rpc_server_new(s->loop, &o, &f->rpc, e);

	if (r)
		return r;
	f->server = s;
	f->services[f->n_services++] = api_agent_service(&s->api);
	f->services[f->n_services++] = api_entry_service(&s->api);
	f->services[f->n_services++] = api_bundle_service(&s->api);
	f->services[f->n_services++] = api_svid_service(&s->api);
	f->services[f->n_services++] = api_trustdomain_service(&s->api);
	f->services[f->n_services++] = api_local_authority_service(&s->api);
	f->services[f->n_services++] = api_authority_service(&s->api);
	f->services[f->n_services++] = api_controller_service(&s->api);
	if (f == &s->faces[FACE_TCP]) {
		f->services[f->n_services++] = api_sync_service(&s->api);
	} else {
		f->services[f->n_services++] = api_debug_service(&s->api);
		f->services[f->n_services++] = api_logger_service(&s->api);
		f->services[f->n_services++] = api_health_service(&s->api);
	}
	for (size_t i = 0; i < f->n_services; i++)
		rpc_server_add(f->rpc, &f->services[i]);
	rpc_server_start(f->rpc);
	return 0;
}

/* Checked with the configuration. */
static struct network *networks(const struct strings *s)
{
	struct network *ret = xcalloc(s->n + 1, sizeof(*ret));
	struct err e;

	for (size_t i = 0; i < s->n; i++)
		INVARIANT(network_parse(s->v[i], &ret[i], &e) == 0);
	return ret;
}

static int open_doors(struct server *s, struct err *e)
{
	const struct strings *proxies = &s->o->proxy_protocol_trusted_cidrs;
	AUTO(free) struct network *nets = networks(proxies);
	struct face *tcp = &s->faces[FACE_TCP], *local = &s->faces[FACE_UNIX];
	struct door_options t = { .tcp_host = s->o->bind_address,
		.tcp_port = s->o->bind_port,
		.tls = face_tls,
		.verify = face_verify,
		.proxies = nets,
		.n_proxies = proxies->n,
		.on_conn = face_conn,
		.arg = tcp };
	struct door_options u = { .unix_path = s->o->socket_path,
		.unix_mode = SERVER_SOCKET_MODE,
		.privileged = true,
		.on_conn = face_conn,
		.arg = local };
	int r = face_serve(s, local, e);

	if (r == 0)
		r = face_serve(s, tcp, e);
	if (r == 0)
		r = door_open(s->loop, &t, &tcp->door, e);
	if (r == 0)
		r = door_open(s->loop, &u, &local->door, e);
	if (r)
		return r;
	log_event(LOG_INFO, "server", "listening", "address", s->o->bind_address, "port",
		log_fmt("%d", door_port(tcp->door)), NULL);
	log_event(LOG_INFO, "server", "listening", "socket", s->o->socket_path, NULL);
	return 0;
}

/* ---- stop ---- */

static void closed_one(void *arg)
{
	struct server *s = arg;

	if (--s->closing == 0)
		loop_stop(s->loop);
}

/* Nothing acknowledged is lost by it: the store is durable at any time. */
static void too_late(int signo)
{
	static const char text[] = "assay-server: could not stop in time\n";

	(void)signo;
	if (write(STDERR_FILENO, text, sizeof(text) - 1) < 0)
		_exit(2);
	_exit(1);
}

static void stop(struct server *s, int exit_code)
{
	if (s->stopping)
		return;
	signal(SIGALRM, too_late);
	alarm(SERVER_STOP_MAX_S);
	s->stopping = true;
	s->exit_code = exit_code;
	s->closing = 1;
	if (s->api.federation)
		federation_stop(s->api.federation);
	publisher_free(s->publisher);
	s->publisher = NULL;
	if (s->api.controller) {
		s->closing++;
		controller_stop(s->api.controller, closed_one, s);
	}
	for (size_t i = 0; i < FACES; i++) {
		struct face *f = &s->faces[i];

		if (f->door) {
			s->closing++;
			door_close(f->door, SERVER_STOP_GRACE_MS, closed_one, s);
		}
		if (f->rpc) {
			s->closing++;
			rpc_server_stop(f->rpc, SERVER_STOP_GRACE_MS - 1000, closed_one, s);
		}
	}
	closed_one(s);
}

static void fatal(struct server *s, const struct err *e)
{
	log_event(LOG_FATAL, "server", "could not start", "error", e->msg, NULL);
	stop(s, 1);
}

static void on_signal(void *arg, int signo)
{
	struct server *s = arg;
	struct err e;

	if (signo == SIGUSR2) {
		if (log_reopen(&e))
			log_event(LOG_ERROR, "server", "could not reopen the log", "error", e.msg,
				NULL);
		return;
	}
	if (signo == SIGUSR1 || signo == SIGHUP) {
		if (s->reload && !s->stopping)
			reload_start(s->reload);
		return;
	}
	if (s->stopping) { /* asked twice */
		log_event(LOG_WARN, "server", "stopping at once", NULL);
		_exit(1);
	}
	log_event(LOG_INFO, "server", "stopping", "signal", signo == SIGINT ? "INT" : "TERM", NULL);
	stop(s, 0);
}

/* ---- start ---- */

/* What anybody may read over HTTPS. */
static int open_public(struct server *s, struct err *e)
{
	int r = 0;

	if (s->o->bundle_endpoint)
		r = bundle_endpoint_open(s->loop, s->o, &s->api, &s->bundle_endpoint, e);
	if (!r && s->o->oidc)
		r = oidc_open(s->loop, s->o, &s->api, &s->oidc, e);
	return r;
}

static void on_svid(void *arg)
{
	struct server *s = arg;
	struct err e;

	if (s->stopping)
		return;
	if (open_doors(s, &e) || open_public(s, &e)) {
		fatal(s, &e);
		return;
	}
	federation_start(s->api.federation);
	s->publisher = publisher_new(s->loop, s->o);
	publisher_bundle_changed(s->publisher, api_bundle(&s->api, s->o->trust_domain));
	if (s->api.controller)
		controller_start(s->api.controller);
	log_event(LOG_INFO, "server", "ready", "entries",
		log_fmt("%zu", entries_count(s->api.entries)), "agents",
		log_fmt("%zu", entries_count_nodes(s->api.entries)), NULL);
}

static void on_activate(void *arg)
{
	struct server *s = arg;

	if (s->api.svid)
		server_svid_renew(s->api.svid);
}

static void on_ca(void *arg, const struct err *e)
{
	struct server *s = arg;
	struct server_svid_options o = { .loop = s->loop,
		.ca = s->api.ca,
		.trust_domain = s->o->trust_domain,
		.key_type = s->o->ca_key_type,
		.ttl_ns = s->o->default_x509_svid_ttl_ns,
		.require_pq = s->o->require_pq_kem };

	if (s->stopping || s->api.svid)
		return;
	if (e && e->code) {
		fatal(s, e);
		return;
	}
	s->api.svid = server_svid_new(&o, on_svid, s);
	ca_on_activate(s->api.ca, on_activate, s);
}

static int start_keys(struct server *s, struct err *e)
{
	if (s->o->keymgr_memory)
		return keymgr_memory_new(&s->keymgr, e);
	return keymgr_disk_new(s->o->keys_path, &s->keymgr, e);
}

static int start_store(struct server *s, struct err *e)
{
	struct store_observer o = { .entry = on_entry,
		.node = on_node,
		.bundle = on_bundle,
		.relationship = on_relationship,
		.arg = s };
	struct mono from = clock_mono();
	int r;

	s->api.bundles = map_new();
	s->api.witness = witness_new();
	s->api.federation = federation_new(&s->api);
	for (size_t i = 0; i < s->o->n_peers; i++) {
		const struct server_peer *p = &s->o->peers[i];
		struct relationship fixed = { .trust_domain = p->trust_domain,
			.url = p->url,
			.endpoint_id = p->endpoint_id };

		federation_add_fixed(s->api.federation, &fixed);
	}
	s->api.entries = entries_new(s->o->trust_domain, s->o->agent_spiffe_id_as_selector);
	r = store_open(s->loop, s->o->db_connection_string, &o, &s->api.store, e);
	if (r)
		return r;
	s->prune = prune_new(s->loop, s->api.store, s->api.entries, s->o);
	r = store_load(s->api.store, e);
	if (r)
		return r;
	entries_set_change(s->api.entries, store_change(s->api.store));
	log_event(LOG_INFO, "store", "loaded", "entries",
		log_fmt("%zu", entries_count(s->api.entries)), "agents",
		log_fmt("%zu", entries_count_nodes(s->api.entries)), "change",
		log_fmt("%llu", (unsigned long long)store_change(s->api.store)), "elapsed_ms",
		log_fmt("%lld", (long long)((clock_mono().ns - from.ns) / NS_PER_MS)), NULL);
	return 0;
}

enum { MISSING_NAMED = 5 };

static size_t missing(void *arg, uint64_t sequence, struct strings *ret)
{
	const struct server *s = arg;

	return witness_missing(s->api.witness, sequence, clock_mono(), ret, MISSING_NAMED);
}

static void seen(void *arg)
{
	const struct server *s = arg;

	ca_seen(s->api.ca);
}

static int start_upstream(struct server *s, struct err *e)
{
	const struct server_options *o = s->o;
	struct upstream_disk_options disk = { .loop = s->loop,
		.trust_domain = o->trust_domain,
		.cert_path = o->upstream_cert_path,
		.key_path = o->upstream_key_path,
		.bundle_path = o->upstream_bundle_path };
	struct upstream_spire_options spire = { .loop = s->loop,
		.trust_domain = o->trust_domain,
		.server_address = o->upstream_server_address,
		.server_port = o->upstream_server_port,
		.workload_api_socket = o->upstream_workload_api_socket,
		.require_pq = o->upstream_require_pq_kem };

	if (o->upstream_disk)
		return upstream_disk_new(&disk, &s->api.upstream, e);
	if (o->upstream_spire)
		s->api.upstream = upstream_spire_new(&spire);
	return 0;
}

static int start_ca(struct server *s, struct err *e)
{
	const struct server_options *o = s->o;
	struct ca_options co = { .loop = s->loop,
		.store = s->api.store,
		.keymgr = s->keymgr,
		.trust_domain = o->trust_domain,
		.x509_key_type = o->ca_key_type,
		.jwt_key_type = o->jwt_key_type == KEY_NONE ? o->ca_key_type : o->jwt_key_type,
		.country = o->ca_subject_country,
		.organization = o->ca_subject_organization,
		.common_name = o->ca_subject_common_name,
		.ca_ttl_ns = o->ca_ttl_ns,
		.x509_svid_ttl_ns = o->default_x509_svid_ttl_ns,
		.jwt_svid_ttl_ns = o->default_jwt_svid_ttl_ns,
		.agent_ttl_ns = o->agent_ttl_ns,
		.jwt_issuer = o->jwt_issuer,
		.disable_jwt = o->disable_jwt_svids,
		.unique_id = o->composer_uniqueid };
	struct bundle *own = api_bundle(&s->api, o->trust_domain);
	int r = start_upstream(s, e);

	if (r)
		return err_wrap(e, "upstream authority");
	co.upstream = s->api.upstream;
	r = ca_new(&co, on_ca, s, &s->api.ca, e);

	if (r)
		return r;
	ca_on_missing(s->api.ca, missing, s);
	witness_on_change(s->api.witness, seen, s);
	if (own)
		ca_bundle_changed(s->api.ca, own);
	return 0;
}

static int start_api(struct server *s, struct err *e)
{
	const struct server_options *o = s->o;
	struct authz_options ao = {
		.store = s->api.store, .entries = s->api.entries, .admin_ids = &o->admin_ids
	};
	struct attest_options to = { .loop = s->loop,
		.store = s->api.store,
		.ca = s->api.ca,
		.trust_domain = o->trust_domain,
		.config = o };

	s->api.authz = authz_new(&ao);
	s->api.limits = ratelimit_new(s->loop, o->ratelimit_attestation, o->ratelimit_signing);
	s->api.sync = sync_hub_new(&s->api);
	s->reload = reload_new(s->loop, o, &s->api);
	return attest_new(&to, &s->api.attest, e);
}

static int start_controller(struct server *s, struct err *e)
{
	return s->o->controller.enabled ? controller_new(s->o, &s->api, &s->api.controller, e) : 0;
}

static int start_http(struct server *s, struct err *e)
{
	return server_http_open(s->loop, s->o, &s->api, &s->http, e);
}

static const struct {
	const char *what;
	int (*start)(struct server *s, struct err *e);
} parts[] = {
	{ "data folder", lock_folder },
	{ "key manager", start_keys },
	{ "store", start_store },
	{ "authorities", start_ca },
	{ "API", start_api },
	{ "controller", start_controller },
	{ "HTTP", start_http },
};

static int start(struct server *s, struct err *e)
{
	for (size_t i = 0; i < ARRAY_LEN(parts); i++)
		if (parts[i].start(s, e))
			return err_wrap(e, "%s", parts[i].what);
	return 0;
}

/* Everything that start() may have begun, in reverse; the loop no longer runs calls. */
static void teardown(struct server *s)
{
	struct bytes key;
	void *b;

	server_http_close(s->http);
	bundle_endpoint_close(s->bundle_endpoint);
	oidc_close(s->oidc);
	loop_drain(s->loop); /* signing and writes under way */
	for (size_t i = 0; i < FACES; i++)
		rpc_server_free(s->faces[i].rpc);
	loop_drain(s->loop);
	controller_free(s->api.controller);
	s->api.controller = NULL;
	sync_hub_free(s->api.sync);
	s->api.sync = NULL;
	server_svid_free(s->api.svid);
	s->api.svid = NULL;
	reload_free(s->reload);
	attest_free(s->api.attest);
	if (s->api.limits)
		ratelimit_free(s->api.limits);
	prune_free(s->prune);
	s->prune = NULL;
	ca_free(s->api.ca);
	s->api.ca = NULL;
	upstream_free(s->api.upstream);
	s->api.upstream = NULL;
	federation_free(s->api.federation);
	s->api.federation = NULL;
	witness_free(s->api.witness);
	if (s->api.authz)
		authz_free(s->api.authz);
	if (s->api.store)
		store_close(s->api.store);
	loop_drain(s->loop);
	for (size_t i = 0; s->api.bundles && map_next(s->api.bundles, &i, &key, &b);)
		bundle_unref(b);
	map_free(s->api.bundles);
	if (s->api.entries)
		entries_free(s->api.entries);
	keymgr_free(s->keymgr);
	x509_chain_deinit(&s->roots);
	if (s->lock_fd >= 0)
		close(s->lock_fd);
}

static void init(struct server *s, const struct server_options *o)
{
	*s = (struct server){ .o = o, .loop = loop_new(), .lock_fd = -1 };
	s->api.loop = s->loop;
	s->api.trust_domain = o->trust_domain;
	s->api.audit = o->audit_log_enabled;
	s->api.jwt_disabled = o->disable_jwt_svids;
	s->api.agent_id_as_selector = o->agent_spiffe_id_as_selector;
	s->api.launch_level = log_level();
	s->api.started = clock_mono();
	loop_on_signal(s->loop, SIGINT, on_signal, s);
	loop_on_signal(s->loop, SIGTERM, on_signal, s);
	loop_on_signal(s->loop, SIGHUP, on_signal, s);
	loop_on_signal(s->loop, SIGUSR1, on_signal, s);
	loop_on_signal(s->loop, SIGUSR2, on_signal, s);
}

int server_run(const struct server_options *o)
{
	struct server s;
	struct err e;

	server_harden();
	log_event(LOG_INFO, "server", "starting", "version", ASSAY_VERSION, "trust_domain",
		o->trust_domain, "data_dir", o->data_dir, NULL);
	init(&s, o);
	if (start(&s, &e))
		fatal(&s, &e);
	loop_run(s.loop);
	teardown(&s);
	loop_free(s.loop);
	alarm(0);
	log_event(LOG_INFO, "server", "stopped", NULL);
	return s.exit_code;
}

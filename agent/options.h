/* The agent's configuration: SPIRE's agent.conf keys and defaults. */
#ifndef ASSAY_AGENT_OPTIONS_H
#define ASSAY_AGENT_OPTIONS_H

#include "agent/limits.h"
#include "lib/clock.h"
#include "lib/crypto.h"
#include "lib/daemon.h"
#include "lib/entry.h"

#define AGENT_SOCKET_DEFAULT "/run/assay/agent/public/api.sock"
#define AGENT_ADMIN_SOCKET_DEFAULT "/run/assay/agent/private/admin.sock"
#define AGENT_CONFIG_DEFAULT "/etc/assay/agent.conf"
#define AGENT_DATA_DEFAULT "/var/lib/assay/agent"

enum rebootstrap_mode { REBOOTSTRAP_NEVER, REBOOTSTRAP_AUTO, REBOOTSTRAP_ALWAYS };

/* WorkloadAttestor "k8s", as SPIRE's of that name. */
struct k8s_broker {
	char *id;           /* SPIFFE ID */
	bool cluster_scope; /* pods of other nodes too */
};
struct k8s_options {
	bool on;
	int kubelet_read_only_port, kubelet_secure_port; /* 0: not given */
	char *kubelet_ca_path, *token_path;              /* NULL: those of a pod */
	char *certificate_path, *private_key_path;
	char *node_name, *node_name_env;
	bool skip_kubelet_verification, use_anonymous_authentication, disable_kubelet_client;
	int max_poll_attempts; /* at least 1 */
	int64_t poll_retry_interval_ns, reload_interval_ns;
	bool poll_quickly; /* the interval was not given: it is the most, not the least */
	bool disable_container_selectors, enable_namespace_labels;
	bool use_new_container_locator, verbose_container_locator_logs;
	/* experimental */
	bool api_server_cache;
	bool has_broker;
	char *broker_access_policy; /* "permissive", or "enforced": by a SubjectAccessReview */
	struct k8s_broker *brokers;
	size_t n_brokers;
};

/* Who may use the Broker API, and which references in it. */
enum { BROKER_TYPES_MAX = 100 };
struct broker_reference {
	char *type_url; /* "*": any */
	bool over_tcp;  /* also from other hosts */
};
struct broker_peer {
	char *id; /* SPIFFE ID */
	struct broker_reference *types;
	size_t n_types;
};

struct agent_options {
	char *trust_domain;
	char *server_address;
	int server_port;
	char *data_dir;
	char *socket_path;
	char *admin_socket_path; /* NULL: off */
	bool allow_unauthenticated_verifiers;
	struct strings allowed_foreign_jwt_claims;
	struct strings authorized_delegates;
	int64_t availability_target_ns;
	bool insecure_bootstrap;
	char *join_token, *join_token_file;
	char *trust_bundle_path, *trust_bundle_url, *trust_bundle_unix_socket;
	bool trust_bundle_spiffe_format; /* else PEM */
	char *trust_bundle_workload_api; /* a Workload API that hands it out */
	enum rebootstrap_mode rebootstrap_mode;
	int64_t rebootstrap_delay_ns;
	bool require_pq_kem;
	int rate_limits[LIMIT_KINDS]; /* calls per second; 0: no limit */
	int jwt_svid_cache_max_size, x509_svid_cache_max_size;
	enum key_type workload_key_type;
	int64_t sync_interval_ns; /* against servers without Sync/Watch */
	bool use_sync_authorized_entries;
	bool disable_workload_api, disable_sds_api;
	char *sds_svid_name, *sds_bundle_name, *sds_all_bundles_name;
	bool sds_plain_ca;            /* roots without Envoy's SPIFFE validator */
	struct strings log_selectors; /* "type" or "type:value" prefixes that may stand in logs */

	/* experimental.broker */
	bool has_broker;
	char *broker_socket_path, *broker_bind_address; /* NULL: not there */
	char *broker_host;                              /* of the latter */
	int broker_port;
	struct broker_peer *brokers;
	size_t n_brokers;

	/* plugins */
	bool keymgr_memory;
	char *keys_dir; /* disk key manager: <directory>/keys.json; default data_dir */
	bool attest_join_token, attest_x509pop, attest_sshpop, attest_http_challenge,
		attest_psat; /* exactly one */
	char *x509pop_private_key_path, *x509pop_certificate_path, *x509pop_intermediates_path;
	char *sshpop_host_key_path, *sshpop_host_cert_path;
	char *psat_cluster, *psat_token_path;
	char *http_challenge_hostname; /* NULL: the system's */
	char *http_challenge_agentname;
	int http_challenge_port;            /* 0: any free one */
	int http_challenge_advertised_port; /* 0: the same */
	bool attestor_unix;
	bool unix_discover_workload_path;
	int64_t unix_workload_size_limit; /* 0: no limit, negative: no hash */
	struct k8s_options k8s;
	bool attestor_docker;
	char *docker_socket_path, *docker_podman_socket_path, *docker_podman_socket_path_template;
	char *docker_version; /* of the API; NULL: the engine's */
	struct strings docker_cgroup_matchers;
	bool docker_use_new_container_locator, docker_verbose_container_locator_logs;
	bool attestor_systemd;

	/* What they were read with, borrowed, to read them again; NULL: they are not. */
	const struct agent_flags *flags;
	struct daemon_options daemon;
};

struct agent_flags {
	const char *config, *server_address, *trust_domain, *data_dir, *socket_path, *join_token,
		*join_token_file, *trust_bundle, *trust_bundle_url, *trust_bundle_format,
		*rebootstrap_mode, *rebootstrap_delay;
	int server_port;
	bool insecure_bootstrap, allow_unauthenticated_verifiers, disable_workload_api,
		disable_sds_api;
	struct daemon_flags daemon;
};
int agent_options_load(struct agent_options *ret, const struct agent_flags *f, struct buf *problems,
	struct err *e) MUST_USE;
void agent_options_deinit(struct agent_options *o);
/* The values in force, "path = value" each. */
void agent_options_print(const struct agent_options *o, struct buf *ret);
/* Every key, for docs/CONFIG. */
void agent_options_describe(struct buf *ret);

/* NULL: none of that ID, or not of that type. */
const struct broker_peer *options_broker_find(const struct agent_options *o, const char *id);
const struct broker_reference *options_broker_reference(
	const struct broker_peer *b, const char *type_url);

#endif

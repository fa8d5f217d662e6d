/* The server's configuration: SPIRE's server.conf keys and defaults, as one table (options.c) that
 * yields parsing, checks, `validate` and docs/CONFIG. */
#ifndef ASSAY_SERVER_OPTIONS_H
#define ASSAY_SERVER_OPTIONS_H

#include "lib/clock.h"
#include "lib/crypto.h"
#include "lib/daemon.h"
#include "lib/entry.h"

#define SERVER_SOCKET_DEFAULT "/run/assay/server/api.sock"
#define SERVER_CONFIG_DEFAULT "/etc/assay/server.conf"
#define SERVER_DATA_DEFAULT "/var/lib/assay/server"

/* A federation relationship of the configuration. */
struct server_peer {
	char *trust_domain, *url;
	char *endpoint_id; /* "": https_web */
};

/* A cluster of NodeAttestor "k8s_psat". */
struct psat_cluster {
	char *name;
	struct strings service_accounts; /* "namespace:name" */
	struct strings audience;         /* none: the API server's own */
	char *kubeconfig;                /* NULL: the pod's service account */
	struct strings node_labels, pod_labels;
	bool use_pod_uid;
};

/* A ConfigMap that the bundle is put into: of BundlePublisher "k8s_configmap" or Notifier
 * "k8sbundle". */
enum publish_format { PUBLISH_SPIFFE, PUBLISH_JWKS, PUBLISH_PEM };
struct publish_target {
	char *cluster; /* the operator's name for it */
	char *namespace, *configmap, *key;
	char *kubeconfig; /* NULL: the pod's service account */
	enum publish_format format;
	int64_t refresh_hint_s; /* 0: the bundle's own */
};

/* The Kubernetes controller: the keys of spire-controller-manager's configuration. */
struct server_controller {
	bool enabled;
	char *kubeconfig_path, *kubeconfig_context; /* NULL: the pod's own account */
	char *cluster_name;
	char *cluster_domain; /* NULL: by /etc/resolv.conf */
	char *class_name;     /* NULL: objects without a class */
	bool watch_classless;
	struct strings ignore_namespaces;                /* regular expressions */
	char *parent_id_template;                        /* NULL: of k8s_psat */
	char *entry_id_prefix, *entry_id_prefix_cleanup; /* without the dot */
	int64_t gc_interval_ns;
	bool spiffe_ids, static_entries, federated;
	char *static_path; /* NULL: the cluster */
	bool static_expand_env;
	bool leader_elect;
	char *lease_name, *lease_namespace;
	int64_t lease_duration_ns, renew_deadline_ns, retry_period_ns;
};

struct server_options {
	char *trust_domain; /* bare name */
	char *bind_address;
	int bind_port;
	char *socket_path;
	char *data_dir;
	struct strings admin_ids;
	struct strings proxy_protocol_trusted_cidrs;
	bool require_pq_kem, upstream_require_pq_kem;
	int64_t agent_ttl_ns; /* 0: as default_x509_svid_ttl */
	bool audit_log_enabled;
	enum key_type ca_key_type;
	enum key_type jwt_key_type; /* KEY_NONE: as ca_key_type */
	char *ca_subject_country, *ca_subject_organization, *ca_subject_common_name;
	int64_t ca_ttl_ns;
	int64_t default_x509_svid_ttl_ns;
	int64_t default_jwt_svid_ttl_ns;
	bool disable_jwt_svids;
	char *jwt_issuer;                            /* NULL: none */
	int64_t prune_attested_nodes_expired_for_ns; /* 0: off */
	int prune_attested_nodes_batch_size;
	bool prune_tofu_nodes;
	bool ratelimit_attestation, ratelimit_signing;
	bool agent_spiffe_id_as_selector;

	/* plugins */
	char *db_connection_string; /* path of the SQLite file; default <data_dir>/datastore.sqlite3
				     */
	bool keymgr_memory;
	bool composer_uniqueid;
	char *keys_path; /* disk key manager; default <data_dir>/keys.json */
	bool attest_join_token;
	bool attest_x509pop;
	struct strings x509pop_ca_bundle_paths;
	char *x509pop_agent_path_template; /* NULL: /x509pop/<fingerprint> */
	int x509pop_max_intermediates;     /* 4 */
	int x509pop_max_rsa_key_size;      /* bits; 8192 */
	bool x509pop_verify_client_ip;
	bool x509pop_mode_spiffe;
	char *x509pop_svid_prefix;
	bool attest_sshpop;
	struct strings sshpop_cert_authorities; /* lines of authorized_keys */
	char *sshpop_cert_authorities_path;
	char *sshpop_canonical_domain;
	char *sshpop_agent_path_template; /* NULL: /sshpop/<fingerprint> */
	bool attest_http_challenge;
	struct strings http_challenge_allowed_dns_patterns;
	int http_challenge_required_port; /* 0: any */
	bool http_challenge_allow_non_root_ports;
	bool http_challenge_tofu;

	bool attest_psat;
	struct psat_cluster *psat_clusters;
	size_t n_psat_clusters;
	struct publish_target *publish_targets;
	size_t n_publish_targets;

	/* federation */
	bool bundle_endpoint;
	char *bundle_endpoint_address;
	int bundle_endpoint_port;
	int64_t bundle_refresh_hint_ns;
	bool bundle_endpoint_web; /* https_web with a certificate of files; else https_spiffe */
	char *bundle_cert_file, *bundle_key_file;
	int64_t bundle_file_sync_ns;
	struct server_peer *peers;
	size_t n_peers;

	/* oidc: one of serving_cert, insecure_addr, listen_socket_path */
	bool oidc, oidc_serving_cert;
	struct strings oidc_domains;
	char *oidc_addr, *oidc_insecure_addr, *oidc_listen_socket_path;
	char *oidc_cert_file, *oidc_key_file;
	int64_t oidc_file_sync_ns;
	char *oidc_jwt_issuer, *oidc_jwks_uri, *oidc_server_path_prefix;
	bool oidc_set_key_use, oidc_allow_insecure_scheme, oidc_log_requests;

	/* upstream authority */
	bool upstream_disk, upstream_spire; /* one of them, or none: the server signs its CA */
	char *upstream_cert_path, *upstream_key_path;
	char *upstream_bundle_path; /* NULL: the certificate is its own root */
	char *upstream_server_address;
	int upstream_server_port;
	char *upstream_workload_api_socket;

	struct server_controller controller;

	/* What they were read with, borrowed, to read them again; NULL: they are not. */
	const struct server_flags *flags;
	struct daemon_options daemon;
};

/* File and command-line overrides together; all problems at once, one a line, each "file:line:
 * text". ERR_INVALID. */
struct server_flags { /* NULL / 0: not given */
	const char *config, *bind_address, *socket_path, *trust_domain, *data_dir;
	int server_port;
	struct daemon_flags daemon;
};
int server_options_load(struct server_options *ret, const struct server_flags *f,
	struct buf *problems, struct err *e) MUST_USE;
void server_options_deinit(struct server_options *o);
/* The values in force, "path = value" each. */
void server_options_print(const struct server_options *o, struct buf *ret);
/* Every key, for docs/CONFIG. */
void server_options_describe(struct buf *ret);

#endif

/* Shared by options.c and options_table.c only. */
#ifndef ASSAY_SERVER_OPTIONS_INTERNAL_H
#define ASSAY_SERVER_OPTIONS_INTERNAL_H

#include "lib/config.h"
#include "server/options.h"

/* What the file says and the options hold in another shape. */
struct server_file {
	struct server_options o; /* first: the table's offsets count from here */
	struct strings country, organization;
	struct config_blocks federates_with;
	struct config_blocks psat_clusters, publish_clusters, notify_clusters;
	bool has_publisher, has_notifier;
	char *notify_namespace, *notify_config_map, *notify_key, *notify_kubeconfig;
	bool has_profile, has_spiffe, has_web, has_web_cert;
	bool has_plugins, has_keymgr_memory, has_keymgr_disk, has_ca_subject;
	bool has_reconcile;
};

/* options_federation.c: the blocks server.federation and server.oidc. */
void options_check_federation(struct config *c, struct server_file *f);
void options_check_oidc(struct config *c, struct server_options *o);
void options_free_peers(struct server_options *o);
void options_print_peers(const struct server_options *o, struct buf *ret);

/* options_attest.c: the blocks of NodeAttestor "sshpop" and "http_challenge". */
void options_check_sshpop(struct config *c, struct server_options *o);
void options_check_http_challenge(struct config *c, struct server_options *o);

/* options_k8s.c: the clusters of NodeAttestor "k8s_psat" and of what publishes to ConfigMaps. */
void options_check_k8s(struct config *c, struct server_file *f);
void options_free_k8s(struct server_options *o);
void options_print_k8s(const struct server_options *o, struct buf *ret);

/* options_controller.c: the block controller. */
void options_check_controller(struct config *c, struct server_file *f);

extern const struct config_option server_option_table[];

#endif

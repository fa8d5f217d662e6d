/* Shared by kubelet*.c only: who we are to the kubelet. */
#ifndef ASSAY_AGENT_KUBELET_INTERNAL_H
#define ASSAY_AGENT_KUBELET_INTERNAL_H

#include "agent/kubelet.h"
#include "lib/tls.h"

struct kubelet_login {
	struct x509_chain roots; /* empty: not verified */
	struct tls_ctx *tls;     /* NULL: plain HTTP */
	struct buf token;        /* secret; empty: none */
	struct buf files;        /* secret: CA, certificate and key as they were read */
};
#define KUBELET_LOGIN_INIT                                                                         \
	((struct kubelet_login){ .token = BUF_INIT_SECRET, .files = BUF_INIT_SECRET })

/* "https://host:port"; caller frees. */
char *kubelet_url(const struct k8s_options *o);
/* Its name as configured, by which its certificate is checked; NULL: none. */
const char *kubelet_node_name(const struct k8s_options *o);
bool kubelet_secure(const struct k8s_options *o);

/* Reads the files. *ret_renewed: no new connection would be as those before. Texts are SPIRE's. */
int kubelet_login_read(const struct k8s_options *o, struct kubelet_login *l, bool *ret_renewed,
	struct err *e) MUST_USE;
void kubelet_login_deinit(struct kubelet_login *l);

#endif

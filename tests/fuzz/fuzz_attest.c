/* First messages of agents. First byte modulo 3 0: sshpop's, 1: http_challenge's, 2: k8s_psat's. */
#include <stdlib.h>
#include <string.h>

#include "lib/crypto.h"
#include "server/attest_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void sshpop(struct bytes v)
{
	static struct sshpop config;
	struct sshpop_state st = { .config = &config };
	AUTO_BUF struct buf out = BUF_INIT;
	struct err e;

	config.canonical_domain = (char *)(uintptr_t) "";
	INVARIANT(sshpop_challenge(&st, v, wall_of_sec(1767225600), &out, &e) != 0); /* no CAs */
	sshpop_state_deinit(&st);
}

static void http_challenge(struct bytes v)
{
	static struct http_challenge config = { .allow_non_root_ports = true };
	struct http_challenge_state st = { .config = &config };
	AUTO_BUF struct buf out = BUF_INIT;
	struct err e;

	config.trust_domain = (char *)(uintptr_t) "example.org";
	if (http_challenge_begin(&st, v, &out, &e) == 0) {
		INVARIANT(strpbrk(st.hostname, ":/@?#%\\ ") == NULL);
		INVARIANT(st.not_local && st.agent_id);
	}
	http_challenge_state_deinit(&st);
}

static void psat(struct bytes v)
{
	static struct psat_cluster cluster = { .name = (char *)(uintptr_t) "c" };
	static struct server_options config = { .psat_clusters = &cluster, .n_psat_clusters = 1 };
	struct attest_options o = { .trust_domain = "example.org", .config = &config };
	const struct psat_cluster *found = NULL;
	char *token = NULL;
	struct psat *p;
	struct err e;

	psat_new(&o, &p);
	if (psat_payload(p, v, &found, &token, &e) == 0)
		INVARIANT(found == &cluster && *token);
	free(token);
	psat_free(p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	static void (*const kinds[])(struct bytes v) = { sshpop, http_challenge, psat };

	crypto_init();
	if (n)
		kinds[data[0] % 3](bytes_of(data + 1, n - 1));
	return 0;
}

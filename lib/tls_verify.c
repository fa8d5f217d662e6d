/* Whom to believe: X509-SVIDs against a bundle, web servers against the system's roots. */
#include <arpa/inet.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "lib/tls.h"
#include "lib/x509_internal.h"

enum { SYSTEM_ROOTS_FILE_MAX = 4 << 20 };

int tls_verify_svid(const struct x509_chain *peer, const struct x509_chain *roots, struct wall now,
	struct spiffeid *ret, struct err *e)
{
	struct spiffeid id = SPIFFEID_INIT;
	int r;

	if (peer->n == 0)
		return err_set(e, ERR_INVALID, "the peer sent no certificate");
	r = x509_svid_id(peer->v[0], &id, e);
	if (!r)
		r = x509_verify(peer, roots, now, e);
	if (r)
		spiffeid_deinit(&id);
	else
		*ret = id;
	return r;
}

/* ---- the web ---- */

/* The system's roots, read again when the file has changed. */
static struct {
	pthread_mutex_t lock;
	struct x509_chain roots;
	char *path;
	struct stat seen;
} web = { .lock = PTHREAD_MUTEX_INITIALIZER };

static const char *roots_path(void)
{
	static const char *const places[] = { "/etc/ssl/certs/ca-certificates.crt",
		"/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
		"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "/etc/ssl/cert.pem" };
	const char *env = getenv("SSL_CERT_FILE");
	struct stat st;

	if (env && *env)
		return env;
	for (size_t i = 0; i < ARRAY_LEN(places); i++)
		if (stat(places[i], &st) == 0)
			return places[i];
	return places[0];
}

/* One odd certificate in the system's file does not make the others useless. */
static int take_root(void *arg, const char *label, struct bytes der, struct err *e)
{
	struct x509_chain *ch = arg;
	struct x509_cert *c;

	(void)e;
	if (strcmp(label, "CERTIFICATE") == 0 && ch->n < X509_MAX_ROOTS &&
		x509_parse(der, &c, NULL) == 0) {
		x509_chain_add(ch, c);
		x509_unref(c);
	}
	return 0;
}

static int load_roots(const char *path, struct x509_chain *ret, struct err *e)
{
	AUTO_BUF struct buf text = BUF_INIT_MAX(SYSTEM_ROOTS_FILE_MAX);
	struct x509_chain ch = { 0 };
	int r = buf_read_file(&text, path, e);

	if (!r)
		r = pem_each(buf_view(&text), take_root, &ch, e);
	if (r) {
		x509_chain_deinit(&ch);
		return err_wrap(e, "cannot load the system's root certificates");
	}
	*ret = ch;
	return 0;
}

/* The clock behind mtime is coarse, so that alone would miss a second change in 4 ms. */
static bool same_file(const struct stat *a, const struct stat *b)
{
	return a->st_ino == b->st_ino && a->st_dev == b->st_dev && a->st_size == b->st_size &&
	       a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

static int system_roots(struct x509_chain *ret, struct err *e)
{
	const char *path = roots_path();
	struct x509_chain fresh;
	struct stat st = { 0 };
	int r = 0;

	pthread_mutex_lock(&web.lock);
	(void)stat(path, &st);
	if (!web.path || strcmp(web.path, path) != 0 || !same_file(&web.seen, &st)) {
		r = load_roots(path, &fresh, e);
		if (!r) {
			x509_chain_deinit(&web.roots);
			free(web.path);
			web.roots = fresh;
			web.path = xstrdup(path);
			web.seen = st;
		}
	}
	if (!r)
		*ret = x509_chain_dup(&web.roots);
	pthread_mutex_unlock(&web.lock);
	return r;
}

/* RFC 6125 6.4: "*" as the whole leftmost label stands for one label. */
static bool dns_matches(const char *pattern, const char *host)
{
	const char *rest;

	if (strcasecmp(pattern, host) == 0)
		return strchr(pattern, '*') == NULL;
	if (pattern[0] != '*' || pattern[1] != '.' || !strchr(pattern + 2, '.'))
		return false;
	rest = strchr(host, '.');
	return rest && rest != host && strcasecmp(pattern + 1, rest) == 0;
}

static bool ip_matches(const struct x509_cert *c, const uint8_t *ip, size_t n)
{
	const struct bytes *ips;
	size_t count = x509_ips(c, &ips);

	for (size_t i = 0; i < count; i++)
		if (bytes_equal(ips[i], bytes_of(ip, n)))
			return true;
	return false;
}

static bool host_matches(const struct x509_cert *c, const char *host)
{
	const struct strings *names = x509_dns_names(c);
	uint8_t ip[16];
	char name[256];
	size_t n = strlen(host);

	if (inet_pton(AF_INET, host, ip) == 1)
		return ip_matches(c, ip, 4);
	if (inet_pton(AF_INET6, host, ip) == 1)
		return ip_matches(c, ip, 16);
	if (n == 0 || n >= sizeof(name))
		return false;
	memcpy(name, host, n + 1);
	if (name[n - 1] == '.')
		name[n - 1] = 0;
	for (size_t i = 0; i < names->n; i++)
		if (dns_matches(names->v[i], name))
			return true;
	return false;
}

int tls_verify_host(const struct x509_chain *peer, const struct x509_chain *roots, const char *host,
	struct wall now, struct err *e)
{
	const struct x509_cert *leaf;

	if (peer->n == 0)
		return err_set(e, ERR_INVALID, "the server sent no certificate");
	leaf = peer->v[0];
	if (host && !host_matches(leaf, host))
		return err_set(
			e, ERR_INVALID, "x509: certificate is not valid for \"%.200s\"", host);
	if (leaf->ext.has_eku && !leaf->ext.eku_server && !leaf->ext.eku_any)
		return err_set(e, ERR_INVALID,
			"x509: certificate specifies an incompatible key usage: not for servers");
	return x509_verify(peer, roots, now, e);
}

int tls_verify_web(const struct x509_chain *peer, const char *host, struct wall now, struct err *e)
{
	struct x509_chain roots;
	int r = system_roots(&roots, e);

	if (r)
		return r;
	r = tls_verify_host(peer, &roots, host, now, e);
	x509_chain_deinit(&roots);
	return r;
}

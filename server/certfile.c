#include "server/certfile.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/log.h"

enum { FILE_MAX = 1 << 20, JITTER_PERCENT = 5 };

struct certfile {
	struct loop *loop;
	char *cert_path, *key_path;
	int64_t interval_ns;
	struct loop_timer *timer;
	struct look *look; /* NULL: none under way */
	struct tls_ctx *tls;
	struct stat cert_seen, key_seen; /* of what is in use */
	char *told;                      /* the failure that was logged last */
};

/* One look at the files; owner NULL: closed meanwhile. */
struct look {
	struct certfile *owner;
	char *cert_path, *key_path;
	struct stat cert, key; /* in: as seen last; out: as they are */
	struct tls_ctx *tls;   /* NULL: not changed, or failed */
	struct err e;
};

static bool same(const struct stat *a, const struct stat *b)
{
	return a->st_ino == b->st_ino && a->st_dev == b->st_dev && a->st_size == b->st_size &&
	       a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

static int load(struct look *k)
{
	AUTO_BUF struct buf cert = BUF_INIT_MAX(FILE_MAX);
	AUTO_BUF struct buf pem = BUF_INIT_SECRET;
	AUTO(key_unref) struct key *key = NULL;
	struct x509_chain chain = { 0 };
	struct tls_options o = {
		.server = true, .chain = &chain, .alpn = "http/1.1", .allow_tls12 = true
	};
	int r = buf_read_file(&cert, k->cert_path, &k->e);

	pem.max = FILE_MAX;
	if (!r)
		r = buf_read_file(&pem, k->key_path, &k->e);
	if (!r && x509_chain_parse_pem(&chain, buf_view(&cert), X509_MAX_CHAIN, &k->e))
		r = err_wrap(&k->e, "%s", k->cert_path);
	if (!r && key_from_pem(buf_view(&pem), &key, &k->e))
		r = err_wrap(&k->e, "%s", k->key_path);
	o.key = key;
	if (!r && tls_ctx_new(&o, &k->tls, &k->e))
		r = err_wrap(&k->e, "%s, %s", k->cert_path, k->key_path);
	x509_chain_deinit(&chain);
	return r;
}

static void work(void *arg)
{
	struct look *k = arg;
	struct stat cert, key;

	k->e = ERR_INIT;
	if (stat(k->cert_path, &cert)) {
		err_errno(&k->e, errno, "%s", k->cert_path);
		return;
	}
	if (stat(k->key_path, &key)) {
		err_errno(&k->e, errno, "%s", k->key_path);
		return;
	}
	if (same(&cert, &k->cert) && same(&key, &k->key))
		return;
	k->cert = cert;
	k->key = key;
	if (load(k))
		k->tls = NULL;
}

static void look_free(struct look *k)
{
	free(k->cert_path);
	free(k->key_path);
	if (k->tls)
		tls_ctx_unref(k->tls);
	free(k);
}

static void take(struct certfile *f, struct look *k)
{
	if (f->tls)
		tls_ctx_unref(f->tls);
	f->tls = k->tls;
	k->tls = NULL;
	f->cert_seen = k->cert;
	f->key_seen = k->key;
	free(f->told);
	f->told = NULL;
}

static void done(void *arg)
{
	struct look *k = arg;
	struct certfile *f = k->owner;

	if (f) {
		f->look = NULL;
		if (k->tls) {
			take(f, k);
			log_event(LOG_INFO, "certfile", "certificate reloaded", "file",
				f->cert_path, NULL);
		} else if (k->e.code && (!f->told || strcmp(f->told, k->e.msg) != 0)) {
			log_event(LOG_ERROR, "certfile",
				"could not load the certificate; the old one stays in use", "error",
				k->e.msg, NULL);
			free(f->told);
			f->told = xstrdup(k->e.msg);
		}
		loop_timer_set(f->timer, loop_jitter(f->interval_ns, JITTER_PERCENT));
	}
	look_free(k);
}

static struct look *look_new(struct certfile *f)
{
	struct look *k = xcalloc(1, sizeof(*k));

	k->owner = f;
	k->cert_path = xstrdup(f->cert_path);
	k->key_path = xstrdup(f->key_path);
	k->cert = f->cert_seen;
	k->key = f->key_seen;
	return k;
}

static void due(void *arg)
{
	struct certfile *f = arg;

	f->look = look_new(f);
	loop_job(f->loop, work, done, f->look);
}

int certfile_open(struct loop *l, const char *cert_path, const char *key_path, int64_t interval_ns,
	struct certfile **ret, struct err *e)
{
	struct certfile *f = xcalloc(1, sizeof(*f));
	struct look *k;

	f->loop = l;
	f->cert_path = xstrdup(cert_path);
	f->key_path = xstrdup(key_path);
	f->interval_ns = interval_ns;
	f->timer = loop_timer_new(l, due, f);
	k = look_new(f);
	work(k);
	if (!k->tls) {
		*e = k->e;
		look_free(k);
		certfile_close(f);
		return err_wrap(e, "failed to load certificate");
	}
	take(f, k);
	look_free(k);
	loop_timer_set(f->timer, loop_jitter(interval_ns, JITTER_PERCENT));
	*ret = f;
	return 0;
}

void certfile_close(struct certfile *f)
{
	if (!f)
		return;
	if (f->look)
		f->look->owner = NULL;
	loop_timer_free(f->timer);
	if (f->tls)
		tls_ctx_unref(f->tls);
	free(f->cert_path);
	free(f->key_path);
	free(f->told);
	free(f);
}

struct tls_ctx *certfile_tls(void *certfile)
{
	struct certfile *f = certfile;

	return tls_ctx_ref(f->tls);
}

#include "server/import.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/mem.h"
#include "server/ca_import.h"
#include "server/spire.h"

struct import {
	const struct import_options *o;
	char *datastore, *keys_path; /* SPIRE's */
	struct spire spire;
	struct keymgr *keys;
	struct ca_import *authorities;
	struct buf journal;
	struct strings left;
	size_t n_entries;
	int lock_fd;
	struct buf *report;
};

static void import_deinit(struct import *im)
{
	free(im->datastore);
	free(im->keys_path);
	spire_deinit(&im->spire);
	keymgr_free(im->keys);
	ca_import_free(im->authorities);
	buf_deinit(&im->journal);
	strings_deinit(&im->left);
	if (im->lock_fd >= 0)
		close(im->lock_fd);
}

/* ---- the source ---- */

static bool same_file(const char *a, const char *b)
{
	struct stat x, y;

	return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static int check_places(struct import *im, struct err *e)
{
	const struct server_options *s = im->o->server;

	if (s->keymgr_memory)
		return err_set(e, ERR_PRECONDITION,
			"KeyManager \"memory\" keeps no keys from one start to the next: configure "
			"KeyManager \"disk\" to take over SPIRE's");
	if (same_file(im->datastore, s->db_connection_string))
		return err_set(e, ERR_PRECONDITION,
			"the configured datastore is SPIRE's own file %s, which is left as it is: "
			"give connection_string another path",
			im->datastore);
	if (same_file(im->keys_path, s->keys_path))
		return err_set(e, ERR_PRECONDITION,
			"the configured keys_path is SPIRE's own file %s, which is left as it is: "
			"give it another path",
			im->keys_path);
	return 0;
}

static int check_stopped(struct import *im, struct err *e)
{
	if (!spire_in_use(im->datastore))
		return 0;
	if (!im->o->dry_run)
		return err_set(e, ERR_PRECONDITION,
			"SPIRE's datastore %s is in use: stop the SPIRE server first",
			im->datastore);
	buf_str(im->report, "The SPIRE server is running: what follows may change until it is "
			    "stopped.\n");
	return 0;
}

static int read_source(struct import *im, struct err *e)
{
	const char *td = im->o->server->trust_domain;
	int r = spire_read(im->datastore, td, &im->spire, e);

	if (r)
		return r;
	if (spire_bundle(&im->spire, td))
		return 0;
	if (im->spire.n_bundles == 0)
		return err_set(e, ERR_PRECONDITION,
			"SPIRE's datastore %s holds no trust bundle: its server never ran",
			im->datastore);
	return err_set(e, ERR_PRECONDITION,
		"SPIRE's datastore %s holds no bundle of trust domain \"%s\", which is configured; "
		"it holds that of \"%s\"",
		im->datastore, td, im->spire.bundles[0]->trust_domain);
}

static int read_keys(struct import *im, struct err *e)
{
	int r = keymgr_file_read(im->keys_path, &im->keys, e);

	if (r != ERR_NOT_FOUND)
		return r ? err_wrap(e, "SPIRE's keys") : 0;
	spire_leave(&im->left,
		"private keys: there is no file %s (SPIRE's KeyManager is not \"disk\", or has "
		"another keys_path: -spireKeys)",
		im->keys_path);
	return 0;
}

static int read_authorities(struct import *im, struct err *e)
{
	int r = ca_import_new(&im->spire, im->o->server->trust_domain, im->keys, clock_wall().sec,
		&im->left, &im->authorities, e);

	if (r)
		return r;
	ca_import_journal(im->authorities, &im->journal);
	if (ca_import_can_sign(im->authorities) || im->o->without_authorities)
		return 0;
	for (size_t i = 0; i < im->left.n; i++)
		buf_printf(im->report, "Not taken: %s\n", im->left.v[i]);
	return err_set(e, ERR_PRECONDITION,
		"SPIRE's active X.509 authority cannot be taken over, so its agents would have to "
		"attest anew. Give its keys by -spireKeys, or accept that by "
		"-withoutAuthorities");
}

/* ---- the target ---- */

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

/* As the server itself: two would sign from one journal. */
static int lock_target(struct import *im, struct err *e)
{
	const char *dir = im->o->server->data_dir;
	AUTO(free) char *path = xasprintf("%s/server.lock", dir);
	int r = make_folder(dir, e);

	if (r)
		return r;
	im->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0640);
	if (im->lock_fd < 0)
		return err_errno(e, errno, "%s", path);
	if (flock(im->lock_fd, LOCK_EX | LOCK_NB) != 0)
		return err_set(e, ERR_PRECONDITION,
			"data_dir %s is in use: stop the server that uses it first", dir);
	return 0;
}

static int check_state(struct import *im, bool *ret_done, struct err *e)
{
	const char *path = im->o->server->db_connection_string;
	enum store_import_state state = STORE_IMPORT_EMPTY;
	int r = 0;

	*ret_done = false;
	if (!im->o->dry_run || access(path, F_OK) == 0)
		r = store_import_state(path, im->spire.fingerprint, &state, e);
	if (r)
		return r;
	*ret_done = state == STORE_IMPORT_SAME;
	if (state == STORE_IMPORT_OTHER)
		return err_set(e, ERR_PRECONDITION,
			"datastore %s was taken over already, from another state of a SPIRE "
			"server: SPIRE has run since, or this is another one. Move the datastore "
			"and %s away to begin anew",
			path, im->o->server->keys_path);
	if (state == STORE_IMPORT_USED)
		return err_set(e, ERR_PRECONDITION,
			"datastore %s holds other data: an import needs an empty one. Move it and "
			"%s away, or configure other paths",
			path, im->o->server->keys_path);
	return 0;
}

static int check_keys(struct import *im, struct keymgr *m, struct err *e)
{
	int r = ca_import_check_keys(im->authorities, m, e);

	if (r == ERR_EXISTS) {
		err_wrap(e, "key file %s is of another server", im->o->server->keys_path);
		e->code = ERR_PRECONDITION;
	}
	return r ? e->code : 0;
}

/* Who runs the server owns its folder; an operator may import as root. */
static void give_to_owner(const struct server_options *s)
{
	AUTO(free) char *lock = xasprintf("%s/server.lock", s->data_dir);
	const char *const paths[] = { lock, s->db_connection_string, s->keys_path };
	struct stat st;

	if (geteuid() != 0 || stat(s->data_dir, &st) != 0 || st.st_uid == 0)
		return;
	for (size_t i = 0; i < ARRAY_LEN(paths); i++)
		(void)!lchown(paths[i], st.st_uid, st.st_gid);
}

/* The keys go first: a journal without them would be worth nothing, while keys without a journal
 * are taken for what they are when this is tried again. */
static int write_all(struct import *im, struct keymgr *m, struct err *e)
{
	const struct server_options *s = im->o->server;
	int r = ca_import_put_keys(im->authorities, m, e);

	if (!r)
		r = store_import(s->db_connection_string, &im->spire, buf_view(&im->journal),
			&im->left, &im->n_entries, e);
	give_to_owner(s);
	return r;
}

/* The same into a folder that is thrown away. */
static int write_nowhere(struct import *im, struct err *e)
{
	AUTO(free) char *dir = NULL;
	AUTO(free) char *path = NULL;
	int r = store_scratch_make(&dir, e);

	if (r)
		return r;
	path = xasprintf("%s/db", dir);
	r = store_import(path, &im->spire, buf_view(&im->journal), &im->left, &im->n_entries, e);
	store_scratch_remove(dir);
	return r;
}

/* ---- the report ---- */

static size_t count_banned(const struct spire *s)
{
	size_t n = 0;

	for (size_t i = 0; i < s->n_nodes; i++)
		n += node_banned(&s->nodes[i]);
	return n;
}

static void report_bundles(struct import *im)
{
	for (size_t i = 0; i < im->spire.n_bundles; i++) {
		const struct bundle *b = im->spire.bundles[i];

		buf_printf(im->report,
			"  bundle of %s: %zu X.509 roots, %zu JWT keys, sequence %llu\n",
			b->trust_domain, b->n_roots, b->n_jwt_keys,
			(unsigned long long)b->sequence);
	}
}

static void report_all(struct import *im)
{
	const struct spire *s = &im->spire;
	struct buf *b = im->report;

	buf_printf(b, "%s from %s (SPIRE %s, schema version %d):\n",
		im->o->dry_run ? "To be taken" : "Taken", im->datastore, s->code_version,
		s->schema);
	report_bundles(im);
	ca_import_describe(im->authorities, b);
	buf_printf(b, "  registration entries: %zu\n", im->n_entries);
	buf_printf(b, "  attested agents: %zu, %zu of them banned\n", s->n_nodes, count_banned(s));
	buf_printf(b, "  join tokens: %zu\n", s->n_tokens);
	buf_printf(b, "  federation relationships: %zu\n", s->n_relationships);
	for (size_t i = 0; i < s->left.n; i++)
		buf_printf(b, "Not taken: %s\n", s->left.v[i]);
	for (size_t i = 0; i < im->left.n; i++)
		buf_printf(b, "Not taken: %s\n", im->left.v[i]);
	if (im->o->dry_run)
		buf_str(b, "Nothing was written.\n");
}

/* ---- all of it ---- */

static int run_source(struct import *im, struct err *e)
{
	int r = check_places(im, e);

	if (!r)
		r = check_stopped(im, e);
	if (!r)
		r = read_source(im, e);
	if (!r)
		r = read_keys(im, e);
	return r ? r : read_authorities(im, e);
}

static int run_target(struct import *im, struct err *e)
{
	AUTO(keymgr_free) struct keymgr *m = NULL;
	bool done = false;
	int r = im->o->dry_run ? 0 : lock_target(im, e);

	if (!r)
		r = check_state(im, &done, e);
	if (r || done) {
		if (done)
			buf_printf(im->report,
				"%s has been taken over already. Nothing was written.\n",
				im->datastore);
		return r;
	}
	r = keymgr_disk_new(im->o->server->keys_path, &m, e);
	if (!r)
		r = check_keys(im, m, e);
	if (!r)
		r = im->o->dry_run ? write_nowhere(im, e) : write_all(im, m, e);
	if (!r)
		report_all(im);
	return r;
}

static char *or_usual(const char *given, const char *dir, const char *usual)
{
	return *given ? xstrdup(given) : xasprintf("%s/%s", dir, usual);
}

int import_run(const struct import_options *o, struct buf *ret, struct err *e)
{
	struct import im = {
		.o = o,
		.datastore = or_usual(o->datastore, o->data_dir, "datastore.sqlite3"),
		.keys_path = or_usual(o->keys, o->data_dir, "keys.json"),
		.journal = BUF_INIT,
		.lock_fd = -1,
		.report = ret,
	};
	int r = run_source(&im, e);

	if (!r)
		r = run_target(&im, e);
	import_deinit(&im);
	return r;
}

/* What the Node service's calls do. The checks, their order, codes and texts are
 * spiffe-csi-driver's. */
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/csi.h"
#include "lib/mem.h"
#include "lib/text.h"

enum { TARGET_MODE = 0750 };

#define EPHEMERAL_KEY "csi.storage.k8s.io/ephemeral"
#define ACCESS_NONE CSI__V1__VOLUME_CAPABILITY__ACCESS_TYPE__NOT_SET
#define ACCESS_MOUNT CSI__V1__VOLUME_CAPABILITY__ACCESS_TYPE_MOUNT
#define READER_ONLY CSI__V1__VOLUME_CAPABILITY__ACCESS_MODE__MODE__SINGLE_NODE_READER_ONLY

/* ---- checks ---- */

int csi_path_check(const char *path, const char *what, struct err *e)
{
	size_t n = strlen(path);

	if (n >= PATH_MAX)
		return err_set(e, ERR_INVALID, "%s path is longer than %d bytes", what, PATH_MAX);
	if (path[0] != '/')
		return err_set(e, ERR_INVALID, "%s path must be absolute", what);
	for (const char *s = path; s; s = strchr(s, '/')) {
		size_t len;

		s += *s == '/';
		len = strcspn(s, "/");
		if (len == 0)
			return err_set(e, ERR_INVALID,
				"%s path must not have empty elements or end in a slash", what);
		if ((len == 1 && s[0] == '.') || (len == 2 && s[0] == '.' && s[1] == '.'))
			return err_set(e, ERR_INVALID,
				"%s path must not have \".\" or \"..\" as an element", what);
	}
	return 0;
}

static bool plain_mount(const Csi__V1__VolumeCapability *c)
{
	return c->access_type_case == ACCESS_MOUNT && c->mount && !c->mount->fs_type[0] &&
	       c->mount->n_mount_flags == 0;
}

static bool ephemeral(const Csi__V1__NodePublishVolumeRequest *rq)
{
	bool yes = false;

	/* The last of two with the same key counts, as everywhere with maps. */
	for (size_t i = 0; i < rq->n_volume_context; i++)
		if (strcmp(rq->volume_context[i]->key, EPHEMERAL_KEY) == 0)
			yes = strcmp(rq->volume_context[i]->value, "true") == 0;
	return yes;
}

static const char *capability_problem(const Csi__V1__VolumeCapability *c)
{
	if (!c)
		return "request missing required volume capability";
	if (c->access_type_case == ACCESS_NONE)
		return "request missing required volume capability access type";
	if (!plain_mount(c))
		return "request volume capability access type must be a simple mount";
	if (!c->access_mode)
		return "request missing required volume capability access mode";
	if (c->access_mode->mode == READER_ONLY)
		return "request volume capability access mode is not valid";
	return NULL;
}

static int check_names(const char *volume_id, const char *target, struct err *e)
{
	if (!volume_id[0])
		return err_set(e, ERR_INVALID, "request missing required volume id");
	if (!target[0])
		return err_set(e, ERR_INVALID, "request missing required target path");
	return 0;
}

static int check_publish(const Csi__V1__NodePublishVolumeRequest *rq, struct err *e)
{
	const char *problem;
	int r = check_names(rq->volume_id, rq->target_path, e);

	if (r)
		return r;
	problem = capability_problem(rq->volume_capability);
	if (!problem && !rq->readonly)
		problem = "pod.spec.volumes[].csi.readOnly must be set to 'true'";
	if (!problem && !ephemeral(rq))
		problem = "only ephemeral volumes are supported";
	if (problem)
		return err_set(e, ERR_INVALID, "%s", problem);
	return csi_path_check(rq->target_path, "target", e);
}

/* "<what> \"<path>\": <why>", INTERNAL. */
static int failed(struct err *e, const char *what, const char *path)
{
	AUTO(free) char *quoted = text_quote(path);

	e->code = ERR_INTERNAL;
	return err_wrap(e, "%s %s", what, quoted);
}

static int failed_errno(
	struct err *e, int errnum, const char *what, const char *op, const char *path)
{
	AUTO(free) char *why = xstrdup(strerror(errnum));

	why[0] = (char)tolower((unsigned char)why[0]);
	err_set(e, ERR_INTERNAL, "%s %s: %s", op, path, why);
	return failed(e, what, path);
}

bool csi_source_is_gone(const struct csi_options *o)
{
	struct stat st;

	return stat(o->workload_dir, &st) != 0 || st.st_nlink == 0;
}

/* ---- calls ---- */

int csi_publish(
	const struct csi_options *o, const Csi__V1__NodePublishVolumeRequest *rq, struct err *e)
{
	const char *target = rq->target_path;
	enum csi_mounted state;
	int r = check_publish(rq, e);

	if (r)
		return r;
	if (mkdir(target, TARGET_MODE) != 0 && errno != EEXIST)
		return failed_errno(e, errno, "unable to create target path", "mkdir", target);
	if (csi_mount_look(target, o->workload_dir, &state, e))
		return failed(e, "unable to verify mount point", target);
	if (state == CSI_MOUNTED)
		return 0;
	if (state == CSI_MOUNTED_OTHER)
		return err_set(e, ERR_INTERNAL,
			"unable to mount \"%s\": something else is mounted there", target);
	if (csi_source_is_gone(o))
		return err_set(e, ERR_INTERNAL,
			"unable to mount \"%s\": the Workload API socket directory was deleted",
			target);
	/* Of a folder that is no more: nobody can use it. */
	if (state == CSI_MOUNTED_STALE && csi_mount_release(target, e))
		return failed(e, "unable to unmount", target);
	if (csi_mount_bind(o->workload_dir, target, o->host_writable, e))
		return failed(e, "unable to mount", target);
	return 0;
}

int csi_unpublish(
	const struct csi_options *o, const Csi__V1__NodeUnpublishVolumeRequest *rq, struct err *e)
{
	const char *target = rq->target_path;
	int r = check_names(rq->volume_id, target, e);

	(void)o;
	if (!r)
		r = csi_path_check(target, "target", e);
	if (r)
		return r;
	r = csi_mount_release(target, e);
	if (r == ERR_NOT_FOUND)
		return 0; /* done before */
	if (r)
		return failed(e, "unable to unmount", target);
	/* Only ever the empty folder itself, or what lies in its place. */
	if (rmdir(target) == 0 || errno == ENOENT)
		return 0;
	if (errno == ENOTDIR && unlink(target) == 0)
		return 0;
	return failed_errno(e, errno, "unable to remove target path", "remove", target);
}

int csi_condition(
	const struct csi_options *o, const Csi__V1__NodeGetVolumeStatsRequest *rq, struct err *e)
{
	enum csi_mounted state = CSI_NOT_MOUNTED;
	int r = csi_path_check(rq->volume_path, "volume", e);

	if (!r)
		r = csi_mount_look(rq->volume_path, o->workload_dir, &state, e);
	if (r && r != ERR_NOT_FOUND)
		return err_wrap(e, "failed to determine root for volume path mount");
	if (r || state == CSI_NOT_MOUNTED)
		return err_set(e, ERR_NOT_FOUND, "volume path is not mounted");
	if (csi_mount_read(rq->volume_path, e))
		return err_wrap(e, "unable to list contents of volume path");
	if (state == CSI_MOUNTED_STALE)
		return err_set(e, ERR_NOT_FOUND,
			"the mounted Workload API socket directory was deleted; restart the pod");
	if (state == CSI_MOUNTED_OTHER && !csi_source_is_gone(o))
		return err_set(e, ERR_NOT_FOUND,
			"volume path is not a mount of the Workload API socket directory");
	return 0;
}

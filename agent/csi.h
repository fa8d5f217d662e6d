/*
 * The CSI driver csi.spiffe.io: gives a pod the folder of the Workload API's socket as an ephemeral
 * inline volume, so that pods need no hostPath. A program of its own beside the agent (`assay-agent
 * csi`), since mounting needs rights that the agent must not have.
 *
 * Nothing is kept: what is published is what is mounted, so the driver, the kubelet and the agent
 * may each be restarted at any time. Names, flags, codes and texts are those of spiffe-csi-driver;
 * what that leaves to a second container (node-driver-registrar) is done here too.
 */
#ifndef ASSAY_AGENT_CSI_H
#define ASSAY_AGENT_CSI_H

#include <stdbool.h>
#include <sys/stat.h>

#include "csi/v1/csi.pb-c.h"
#include "lib/err.h"

#define CSI_SOCKET_DEFAULT "/spiffe-csi/csi.sock"
#define CSI_NAME_DEFAULT "csi.spiffe.io"
#define CSI_REGISTRATION_DEFAULT "/registration"

enum {
	CSI_NAME_MAX = 63,          /* the standard's, "Plugin name" */
	CSI_MESSAGE_MAX = 64 << 10, /* of a request; the kubelet's are some hundred bytes */
};

struct csi_options {
	const char *node_id;
	const char *plugin_name;
	const char *socket_path;
	const char *workload_dir; /* what is mounted */
	/* Where the kubelet finds socket_path, in its own view of the files; "": the kubelet is not
	 * told of the driver. */
	const char *kubelet_path;
	const char *registration_dir; /* the kubelet's plugins_registry, in ours */
	bool host_writable;           /* leave the mount writable for the host */
};
/* Serves until told to stop; the exit code. Logs by itself. */
int csi_run(const struct csi_options *o);

/* ---- the parts, for tests ---- */

int csi_options_check(const struct csi_options *o, struct err *e) MUST_USE;

/* The calls, as far as they may block: they look at the files and at nothing else. Errors are those
 * that the caller is given. */
int csi_publish(const struct csi_options *o, const Csi__V1__NodePublishVolumeRequest *rq,
	struct err *e) MUST_USE;
int csi_unpublish(const struct csi_options *o, const Csi__V1__NodeUnpublishVolumeRequest *rq,
	struct err *e) MUST_USE;
/* 0: the volume is as it should be; any other: what is wrong with it, in e. */
int csi_condition(const struct csi_options *o, const Csi__V1__NodeGetVolumeStatsRequest *rq,
	struct err *e) MUST_USE;
/* The folder to be mounted was deleted under us: only a new start finds the one that took its
 * place. */
bool csi_source_is_gone(const struct csi_options *o);

/* Absolute, without "." and "..", of a length that the system takes. ERR_INVALID. what: "target".
 */
int csi_path_check(const char *path, const char *what, struct err *e) MUST_USE;

/* Mounts (csi_mount.c). None follows a symbolic link at the end of the path. */
enum csi_mounted {
	CSI_NOT_MOUNTED,
	CSI_MOUNTED,       /* our folder */
	CSI_MOUNTED_STALE, /* a folder that was deleted since */
	CSI_MOUNTED_OTHER,
};
/* ERR_NOT_FOUND: there is no such path. */
int csi_mount_look(
	const char *path, const char *source, enum csi_mounted *ret, struct err *e) MUST_USE;
int csi_mount_bind(const char *source, const char *target, bool writable, struct err *e) MUST_USE;
int csi_mount_release(const char *target, struct err *e) MUST_USE;
/* Reads the folder: a mount whose file system went away fails here. */
int csi_mount_read(const char *path, struct err *e) MUST_USE;

#endif

/*
 * From a pinned process to its container, by what the kernel says of its control groups.
 *
 * /proc/PID/cgroup is the kernel's and cannot be forged by the process, so what it names counts.
 * Only when it names no container (a caller in the agent's own container shows "0::/") are the
 * roots of the cgroup mounts in /proc/PID/mountinfo looked at. A process with a mount namespace of
 * its own can arrange those as it likes, so this is not done where it can tell nothing true: in the
 * initial cgroup namespace the kernel shows whole paths, and a process that they place in no
 * container is in none. (There any user of the host could bind-mount a container's group and pass
 * for it.)
 *
 * A container's id is the last 64 hexadecimal digits that stand alone in a path, as every runtime
 * names it so; a pod's uid is what follows "pod" before that, in the form with dashes (or systemd's
 * underscores). A static pod has a uid of 32 digits without dashes and so none here: its container
 * id has to do.
 */
#ifndef ASSAY_AGENT_CONTAINER_H
#define ASSAY_AGENT_CONTAINER_H

#include "agent/caller.h"

enum {
	CONTAINER_ID_LEN = 64,
	CONTAINER_POD_UID_LEN = 36,
	CONTAINER_MOUNTINFO_MAX = 16 << 20,
};

struct container {
	char id[CONTAINER_ID_LEN + 1];           /* "": in no container */
	char pod_uid[CONTAINER_POD_UID_LEN + 1]; /* with dashes; "": none, or not asked for */
};

/* What is wanted. */
enum {
	CONTAINER_POD = 1, /* the pod's uid too; paths of pods then count for more than others */
	CONTAINER_NO_MOUNTS = 2, /* /proc/PID/cgroup only: quick. Mounts may be many: in a job. */
	CONTAINER_VERBOSE = 4,   /* log at debug what is looked at */
};

/* No container is no error: ret->id is then "". ERR_PRECONDITION: different answers, of which none
 * is taken. */
int container_find(const struct caller *c, int want, struct container *ret, struct err *e) MUST_USE;

/* Whether this process is in the initial cgroup namespace, where mounts are never looked at. */
bool container_sees_all(void);

/* The same of the files' text. */
int container_from_cgroup(
	struct bytes text, int want, struct container *ret, struct err *e) MUST_USE;
int container_from_mountinfo(
	struct bytes text, int want, struct container *ret, struct err *e) MUST_USE;

/* The paths in /proc/PID/cgroup, one after the other: fn returns false to end. ERR_INTERNAL when a
 * line is not of the form id:controllers:path. */
int container_each_path(struct bytes cgroup, bool (*fn)(void *arg, struct bytes path), void *arg,
	struct err *e) MUST_USE;

#endif

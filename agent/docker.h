/*
 * What the docker attestor knows of container engines, without talking to one: addresses of their
 * sockets, whose container a control group's path is, which container patterns of the operator
 * name, and what their answers mean. Nothing here waits or blocks.
 */
#ifndef ASSAY_AGENT_DOCKER_H
#define ASSAY_AGENT_DOCKER_H

#include <sys/types.h>

#include "lib/buf.h"
#include "lib/entry.h"
#include "lib/err.h"

#define DOCKER_SOCKET_DEFAULT "unix:///var/run/docker.sock"
#define PODMAN_SOCKET_DEFAULT "unix:///run/podman/podman.sock"
#define PODMAN_SOCKET_TEMPLATE_DEFAULT "unix:///run/user/%d/podman/podman.sock"

enum {
	DOCKER_ANSWER_MAX = 4 << 20,
	DOCKER_MATCHERS_MAX = 100,
	DOCKER_ID_MAX = 255, /* of a pattern's id; others have 64 digits */
};

/* "unix:///path", or "tcp://host:port" and "http://host:port" without TLS. ERR_INVALID. The caller
 * frees both; *ret_unix is NULL for TCP. */
int docker_address(const char *text, char **ret_url, char **ret_unix, struct err *e) MUST_USE;
/* "1.41", "v1.41". ERR_INVALID. */
int docker_version_check(const char *text, struct err *e) MUST_USE;

/* The path of rootless podman's socket has one %d, the user's id; %% is a percent sign.
 * ERR_INVALID. */
int docker_template_check(const char *text, struct err *e) MUST_USE;
char *docker_template_path(const char *text, uint32_t uid); /* of one that was checked */

enum docker_engine { ENGINE_DOCKER, ENGINE_PODMAN, ENGINE_PODMAN_ROOTLESS };
/* Which engine's container, by the text of /proc/PID/cgroup: podman names its control groups
 * libpod, below the user's slice when rootless. */
int docker_engine_of(
	struct bytes cgroup, enum docker_engine *ret, uint32_t *ret_uid, struct err *e) MUST_USE;

/*
 * The operator's patterns (container_id_cgroup_matchers): paths in which a segment "*" is any and
 * "<id>" the container's id. No two may fit the same path. ERR_INVALID.
 */
int docker_matchers_check(const struct strings *patterns, struct err *e) MUST_USE;
/* The id that they find in the text of /proc/PID/cgroup; *ret NULL: none fits. Caller frees. */
int docker_matchers_find(
	const struct strings *patterns, struct bytes cgroup, char **ret, struct err *e) MUST_USE;

/* The path, up to the end of the id, in which a control group first names it. NULL: none does.
 * Caller frees. */
char *docker_place_of(struct bytes cgroup, const char *id);

/* An answer of GET /containers/ID/json, as far as it is of use. */
struct docker_facts {
	struct selectors selectors; /* label, env, image_id; type docker; normalized */
	char *image;                /* its name, as the container was created with; "": none */
	char *image_digest;         /* the image that it really has, "sha256:…"; NULL: not said */
	bool stopped;               /* said to be not running */
	pid_t pid;                  /* its first process, as the engine numbers it; 0: not said */
};
int docker_facts_parse(struct bytes json, struct docker_facts *ret, struct err *e) MUST_USE;
void docker_facts_deinit(struct docker_facts *f);
/* The Id of GET /images/NAME/json; *ret NULL: none. Caller frees. */
int docker_image_parse(struct bytes json, char **ret, struct err *e) MUST_USE;
/* What an engine says of an error, for people; an empty text when it says nothing. */
char *docker_message(struct bytes json);
/* The version to put into paths, for an engine whose answer to /_ping names `header` ("": none).
 * Caller frees. */
#define DOCKER_VERSION_MAX "1.55" /* the newest that is known to say what is read here */
char *docker_version_of(const char *header);
/* "/containers/…", with what may not stand in a path as it is in percent. Caller frees. */
char *docker_path(const char *version, const char *kind, const char *name);

#endif

/*
 * What `files` shall keep in files: the keys of spiffe-helper, and ours. The table is the
 * specification; `files validate` and docs/CONFIG come from it.
 */
#ifndef ASSAY_AGENT_FILES_OPTIONS_H
#define ASSAY_AGENT_FILES_OPTIONS_H

#include <stdbool.h>
#include <sys/types.h>

#include "lib/config.h"
#include "lib/log.h"

#define FILES_CONFIG_DEFAULT "helper.conf"
#define FILES_AGENT_DEFAULT "/tmp/spire-agent/public/api.sock"

enum { FILES_JWT_MAX = 100, FILES_SETS_MAX = 100, FILES_NAME_MAX = 64 };

struct files_jwt {
	char *file;
	struct strings audience; /* the first, then the extra ones */
};

/* One set of files: an identity, where it goes, and who is told. */
struct files_set_options {
	char *name; /* "": the keys at the top level */
	char *cert_dir;
	/* NULL: none of it */
	char *svid_file, *key_file, *bundle_file, *combined_file, *jwt_bundle_file;
	struct files_jwt *jwts;
	size_t n_jwts;
	int cert_mode, key_mode, jwt_bundle_mode, jwt_svid_mode;
	uid_t uid; /* (uid_t)-1: as they come */
	gid_t gid;
	bool add_intermediates, include_federated, omit_expired;
	char *hint, *spiffe_id; /* NULL: the first */
	char *cmd;              /* NULL: none */
	struct strings argv;    /* cmd itself first */
	char *pid_file;
	int signo;       /* 0: none */
	bool jwt_renews; /* new JWT files too start the command and send the signal */
};

struct files_options {
	char *agent_path; /* of the Workload API's socket */
	bool daemon;
	bool health;
	char *health_address; /* "": all */
	int health_port;
	char *live_path, *ready_path;
	enum log_level log_level;
	bool log_json;
	struct files_set_options *sets;
	size_t n_sets;
	struct strings warnings;
};

struct files_flags {
	const char *config;
	int daemon; /* -1: not given */
};

/* Problems, one per line, are added to *problems; ERR_INVALID when there are any. */
int files_options_load(struct files_options *ret, const struct files_flags *f, struct buf *problems,
	struct err *e) MUST_USE;
void files_options_deinit(struct files_options *o);
void files_options_print(const struct files_options *o, struct buf *ret);
void files_options_describe(struct buf *ret);

/* Any X.509 among the files? */
bool files_wants_x509(const struct files_set_options *o);
/* "SIGHUP", or "HUP"; 0 for what is none. */
int files_signal(const char *name);

#endif

/* Shared by files.c, files_out.c and files_health.c only. */
#ifndef ASSAY_AGENT_FILES_INTERNAL_H
#define ASSAY_AGENT_FILES_INTERNAL_H

#include "agent/files_content.h"
#include "agent/files_disk.h"
#include "agent/files_notify.h"
#include "lib/http.h"
#include "lib/loop.h"
#include "lib/rpc.h"

enum files_status { FILES_UNWRITTEN, FILES_FAILED, FILES_WRITTEN };

enum files_kind {
	FILES_SVID,
	FILES_KEY,
	FILES_BUNDLE,
	FILES_COMBINED,
	FILES_JWT_BUNDLE,
	FILES_JWT
};

/* One file as it shall be. */
struct files_slot {
	enum files_kind kind;
	const char *name;
	unsigned mode;
	struct buf data; /* empty: not known yet, so there is no file */
	bool dirty;      /* not so on the disk */
	bool fresh;      /* from the agent, not from a run before this one */
	enum files_status status;
};

/* One set of files: what it shall hold, what is on the disk, who is told. */
struct files_out {
	struct files *files;
	const struct files_set_options *o;
	struct files_disk *disk;
	struct files_notify *notify;
	struct files_slot *slots;
	size_t n_slots;
	bool former;            /* sets before the present one are left */
	bool busy;              /* a job is under way */
	bool x509_new, jwt_new; /* since those who want to know were told */
	bool x509_seen;
	struct loop_timer *retry, *sweep, *expiry;
	struct backoff backoff;
	struct files_fetch *fetches; /* of JWT-SVIDs, one each */
};

struct files_fetch {
	struct files_out *out;
	const struct files_jwt *jwt;
	struct files_slot *slot;
	struct loop_timer *timer;
	struct backoff backoff;
	bool calling;
};

struct files_watch {
	struct files *files;
	const char *method, *what;
	const ProtobufCMessageDescriptor *response;
	void (*take)(struct files *f, const ProtobufCMessage *m);
	struct rpc_stream *stream;
	struct loop_timer *timer;
	struct backoff backoff;
	char *said; /* the failure that was logged last */
};

struct files {
	const struct files_options *o;
	struct loop *loop;
	struct rpc_client *client;
	struct files_watch x509, jwt_bundles;
	struct files_out *outs;
	size_t n_outs;
	struct http_server *health;
	struct mono started;
	bool ready; /* everything was written once */
	bool stopping;
	int exit_code;
};

/* files_out.c: opens the folder, and reads what is there. */
int files_out_init(struct files_out *out, struct files *f, const struct files_set_options *o,
	struct err *e) MUST_USE;
void files_out_deinit(struct files_out *out);
/* The slot shall hold this; takes the bytes. */
void files_slot_set(struct files_out *out, struct files_slot *slot, struct buf *data);
struct files_slot *files_slot_of(struct files_out *out, enum files_kind kind);
/* After one or several of those: writes what has changed and tells who wants to know. */
void files_out_flush(struct files_out *out);
void files_out_failed(struct files_out *out, bool x509, struct files_slot *slot);
/* Says so when the certificate ends and no other has come. */
void files_out_expires(struct files_out *out, struct wall at);
/* Everything that the set wants is written. */
bool files_out_complete(const struct files_out *out);

/* files.c: something was written. */
void files_written(struct files *f);
/* Ends the run. */
void files_stop(struct files *f, int exit_code);

/* files_health.c */
void files_health_open(struct files *f);
bool files_is_live(const struct files *f);
bool files_is_ready(const struct files *f);
/* spiffe-helper's JSON. */
void files_health_json(const struct files *f, bool good, struct buf *ret);

#endif

/* Private to sync*.c. */
#ifndef ASSAY_AGENT_SYNC_INTERNAL_H
#define ASSAY_AGENT_SYNC_INTERNAL_H

#include "agent/attest.h"
#include "agent/sealed.h"
#include "agent/sync.h"
#include "lib/log.h"
#include "lib/metrics.h"

enum {
	SYNC_CALL_MS = 30000,
	SYNC_JWT_MS = 5000,
	SYNC_KICK_MS = 3000, /* a waiting caller makes a connection be tried this often */
	SYNC_DIAL_MS = 10000,
	TELL_AGAIN_S = 10,    /* another reason why the server is not reached is logged so often */
	SIGN_BATCH_MAX = 500, /* SPIRE's servers refuse more in one call */
	SIGN_BATCHES = 2,     /* calls under way */
};

struct pooled_key;
struct poll;

struct sync {
	struct sync_options o;
	bool stopped, started, ready;

	/* who we are */
	struct agent_data data; /* SVID and roots as stored */
	struct key *key;        /* of data.svid; NULL: none */
	char *key_name;         /* its slot, or the slot that opened the sealed store */
	struct tls_ctx *tls;
	struct tls_ctx *serving; /* made when wanted, of that generation */
	unsigned serving_generation;
	struct server_trust trust;
	struct rpc_client *client;
	unsigned generation; /* grows with each new identity */
	struct mono kicked;
	struct loop_timer *renew_timer;
	struct backoff renew_backoff;
	bool renewing;
	bool renew_due; /* its time has come, and it did not work yet */

	/* attesting */
	bool attesting;
	struct loop_timer *attest_timer;
	struct backoff attest_backoff;
	struct key *new_key;
	char *new_key_name;
	struct bootstrap *bootstrap;
	struct attest *attest;
	int jobs; /* that point here */

	/* sync_rebootstrap.c */
	struct loop_timer *rebootstrap_timer;
	int64_t strange_since; /* the server is one that the bundle does not vouch for; 0: it does
				*/
	bool rebootstrap;      /* the next trust comes from the first bundle's source */
	bool for_rebootstrap;  /* attesting only because of that */
	bool no_rebootstrap;
	int rebootstrap_tries;

	/* what state is told */
	enum sync_mode mode;
	char *epoch;
	uint64_t change;
	int64_t last_success;
	struct err error;
	struct mono told; /* when the log last had it */

	/* sync_watch.c */
	struct rpc_stream *watch;
	bool watch_live;    /* a whole set came on this stream */
	bool watch_unknown; /* the server has no such method */
	struct cache_update set;
	bool set_open;
	size_t set_cap;
	struct loop_timer *watch_timer;
	struct backoff watch_backoff;

	/* sync_poll.c */
	struct poll *poll;

	/* sync_sign.c */
	struct list pool;
	size_t n_pool, n_making;
	int batches;
	size_t batch_max;
	struct loop_timer *sign_timer;
	bool sign_waits;
	struct backoff sign_backoff;

	/* sync_store.c */
	char *sealed_path; /* NULL: nothing is sealed (keys in memory) */
	struct loop_timer *store_timer;
	bool store_armed, store_running, store_again;
	struct lane *data_lane; /* agent-data.json is written in order */
};

/* sync.c */
void sync_online(struct sync *s);
void sync_begin_attest(struct sync *s);
/* A call was refused with PERMISSION_DENIED and a reason about this agent: acts on it. generation:
 * of the identity the call was made with. True: handled, do not retry. */
bool sync_refused(struct sync *s, const struct rpc_status *st, unsigned generation);
/* A complete set was applied. */
void sync_succeeded(struct sync *s, enum sync_mode m);
void sync_failed(struct sync *s, int code, const char *what, const char *msg);
void sync_bundle_changed(struct sync *s);

/* sync_identity.c: attesting, renewing */
int identity_load(struct sync *s, struct err *e) MUST_USE;
void identity_arm_renewal(struct sync *s);
/* Renews the agent's SVID soon when only tainted roots vouch for it; or_gone: also when none does.
 */
void identity_check_trust(struct sync *s, bool or_gone);
void identity_stop(struct sync *s);
void identity_renew(void *arg);
void identity_discard(struct sync *s);

/* sync_rebootstrap.c */
void rebootstrap_stranger(struct sync *s); /* met one */
void rebootstrap_agreed(struct sync *s);   /* the bundle vouches for the server */
void rebootstrap_due(void *arg);
bool rebootstrap_possible(struct sync *s); /* false: the agent ends */

/* sync_watch.c */
void watch_open(void *arg);
void watch_close(struct sync *s);

/* sync_poll.c */
void poll_start(struct sync *s);
void poll_stop(struct sync *s);

/* sync_sign.c */
void sign_init(struct sync *s);
void sign_pump(void *arg);
void sign_again(struct sync *s); /* the server is back: no more waiting */
void sign_free(struct sync *s);

/* sync_store.c */
int store_load(struct sync *s, struct key *const *keys, char *const *names, size_t n,
	struct err *e) MUST_USE;
void store_touch(struct sync *s);
void store_flush(struct sync *s);
/* Writes agent-data.json in a job, then calls then(s). */
void store_data(struct sync *s, void (*then)(struct sync *s));

#endif

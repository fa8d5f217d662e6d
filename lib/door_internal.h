/* What the files of lib/door share. */
#ifndef ASSAY_LIB_DOOR_INTERNAL_H
#define ASSAY_LIB_DOOR_INTERNAL_H

#include <netinet/in.h>
#include <sys/socket.h>
#include <uv.h>

#include "lib/door.h"
#include "lib/door_guard.h"
#include "lib/list.h"
#include "lib/map.h"

enum {
	HUB_BUFFER = DOOR_PUMP_BUFFER, /* one read */
	HUB_EVENTS = 128,              /* events taken at once */
	HUB_HANDSHAKES = 4,            /* TLS handshake steps per turn of the loop, 0.6 ms each */
	HUB_OPENS = 4,         /* connections handed to their server per turn, 0.15 ms each */
	HUB_OPENING = 16,      /* handed over, but the server has not said anything yet */
	HUB_OPENING_MS = 1000, /* if it says nothing for so long, others go on */
	HUB_PACE_MS = 10,
	DOOR_ACCEPTS = 512,         /* accepted per turn of the loop */
	DOOR_ACCEPT_PAUSE_MS = 100, /* after EMFILE and the like */
	DOOR_LINGER_MS = 1000,      /* TCP: so that the last bytes are not lost by a reset */
	CONN_ROUNDS = 4,            /* reads of one connection before the others' turn */
	CONN_COST_UNIX = 4,         /* descriptors: socket, pair, pidfd */
	CONN_COST_TCP = 3,
	SHARE_HANDSHAKES = 200,      /* handshakes under way from one address */
	SHARE_HANDSHAKES_ALL = 2000, /* and in all */
	SHARE_YOUNG_MS = 1000,       /* a connection this new may be about to make its call */
	SHARE_FEW = 8, /* connections with calls that a holder never loses to its equals */
	SHARE_RESERVE_MIN = 64,
	/* Over all connections of one holder: */
	SHARE_OPENS_PER_SECOND = 2000, /* more wait for their turn */
	SHARE_OPENS_BURST = 4000,
	SHARE_RESETS_PER_SECOND = 5 * DOOR_RESETS_PER_SECOND,
	SHARE_CONTROL_PER_SECOND = 20 * DOOR_CONTROL_PER_SECOND,
	SHARE_STREAMS = 4000, /* open calls, besides one for each connection */
	SHARE_GROUP_STREAMS = 16000,
	/* A holder whose connection the guard ended stays outside for so long, by its faults. */
	SHARE_PENALTY_MS = 1000,
	SHARE_PENALTY_MAX = 5, /* times the above; also how long a holder is remembered */
	SHARE_REMEMBERED = 4096,
};

/* Times can be made short in tests. */
struct door_times {
	int handshake_ms;
	int idle_ms;
	int stall_ms;
	int linger_ms;
	int penalty_ms;
	int young_ms;
};
extern struct door_times door_times;
extern bool door_no_peerpidfd_for_test;
extern long door_limit_for_test; /* of descriptors, instead of RLIMIT_NOFILE, for hubs to come */

/* ---- who holds how many descriptors (door_share.c) ---- */

/* One uid, all anonymous TCP clients together, or all authenticated ones. */
struct share_group {
	char key[16];
	enum { GROUP_UID, GROUP_ANONYMOUS, GROUP_AUTHENTICATED } kind;
	unsigned used;
	unsigned streams; /* open calls */
	struct list link; /* in share.groups */
	struct list holders;
	struct list idle; /* conn.group_link: connections without a call, oldest first */
};
/* One process, one address, one SPIFFE ID. */
struct share_holder {
	char *key;
	struct share_group *group; /* NULL while it is only remembered */
	unsigned used;
	unsigned conns;
	unsigned handshakes;
	unsigned streams;
	struct list link; /* in group.holders, or in share.remembered */
	struct list idle; /* conn.holder_link: without a call, oldest first */
	struct list busy; /* with one, oldest first */
	/* turns at being opened (door_hub.c) */
	struct list turn;    /* in hub.waiting or hub.paced */
	struct list waiting; /* conn.turn */
	int64_t tokens;      /* thousandths of an opening */
	int64_t tokens_ms;
	/* what it did */
	int64_t second;
	uint32_t resets;
	uint32_t control;
	unsigned faults;
	int64_t outside_until_ms;
	int64_t left_ms;
};
struct share {
	unsigned limit;   /* descriptors the process may have */
	unsigned reserve; /* kept for privileged doors and everything else in the process */
	unsigned used;
	unsigned privileged_used;
	unsigned handshakes;
	struct list groups;
	struct list remembered; /* holders without a connection, first to have left first */
	unsigned n_remembered;
	struct map *holders; /* by key */
};

struct conn;
void share_init(struct share *s);
void share_deinit(struct share *s);
/* Room for one more of that peer, by taking it from whoever holds most. False: there is none.
 * *ret is NULL for a privileged peer. */
bool share_admit(struct share *s, const struct peer *p, unsigned cost, bool handshaking,
	int64_t now_ms, struct share_holder **ret);
void share_enter(struct share *s, struct share_holder *h, struct conn *c);
void share_leave(struct share *s, struct conn *c);
void share_set_busy(struct conn *c, bool busy);
/* The handshake is over: the connection now counts for its SPIFFE ID, if it has one. False: no
 * room there. */
bool share_handshake_done(struct share *s, struct conn *c);
/* Counts what the guard has seen since last time. False: too much over all its connections. */
bool share_watch(struct conn *c);
void share_fault(struct conn *c); /* the guard has ended it */
bool share_take_token(struct share_holder *h, int64_t now_ms);
/* Frees one somewhere after the kernel said that there are none. */
void share_relieve(struct share *s);

/* ---- the hub: one per loop (door_hub.c) ---- */

/* Something in the hub's epoll set. */
struct source {
	int fd;
	void (*ready)(struct source *s, uint32_t events);
};

enum stage { STAGE_NONE, STAGE_HANDSHAKE, STAGE_IDLE, STAGE_LINGER, STAGE_STALL, STAGES };
struct deadline {
	struct list link;
	int64_t at_ms;
};

struct hub {
	struct list link; /* among hubs */
	struct loop *loop;
	unsigned refs; /* doors, connections, dials */
	int epfd;
	uv_poll_t poll;
	uv_idle_t again;        /* runs while one of the next two lists has members */
	struct list more;       /* conn.turn: stopped for fairness */
	struct list handshakes; /* conn.turn: those without a holder */
	struct list waiting;    /* share_holder.turn: first input of new connections, in turns */
	struct list paced;      /* the same, but they had their part of this moment */
	struct loop_timer *pace;
	int opens_left;      /* in this turn of the loop */
	struct list opening; /* conn.opening, oldest first */
	unsigned n_opening;
	bool blocked;    /* waiting for an opening to be over */
	bool pacing;     /* the timer is set */
	unsigned n_open; /* handles whose close is under way */
	bool dispatching;
	struct list dead; /* freed after the events that were taken at once */
	struct list conns;
	struct list stages[STAGES]; /* each in order of time */
	struct loop_timer *timer;
	int64_t armed_ms; /* 0: not set */
	struct share share;
	uint8_t in[HUB_BUFFER];
	uint8_t plain[HUB_BUFFER];
};

struct hub *hub_get(struct loop *l); /* a reference */
void hub_unref(struct hub *h);
int64_t hub_now(const struct hub *h);
void hub_add(struct hub *h, struct source *s, uint32_t events);
void hub_change(struct hub *h, struct source *s, uint32_t events);
void hub_remove(struct hub *h, struct source *s); /* and closes the descriptor */
int hub_release(struct hub *h, struct source *s); /* gives the descriptor back */
void hub_more(struct hub *h, struct conn *c);     /* conn_go() soon */
/* A new connection has input, or output of its handshake: conn_begin() now or in its turn. */
void hub_begin(struct hub *h, struct conn *c);
void hub_opening(struct hub *h, struct conn *c, bool opening);
void hub_deadline(struct hub *h, struct deadline *d, enum stage s, int ms);
void hub_bury(struct hub *h, struct conn *c); /* frees it when nobody can see it any more */

/* ---- a connection (door_pump.c) ---- */

struct pending { /* bytes that could not be written yet */
	uint8_t *p;
	uint32_t len;
	uint32_t off;
};

struct conn {
	struct source net;
	struct source local; /* our end of the pair; fd -1 until it is opened */
	struct hub *hub;
	struct door *door; /* NULL: dialled, or its door is gone */
	struct dial *dial; /* until it was told */
	struct peer *peer; /* NULL: dialled */
	struct tls_conn *tls;
	struct pending to_net;
	struct pending to_local;
	struct list in_hub;
	struct list in_door;
	struct list turn;
	struct list opening; /* in hub.opening until the server has said something */
	int64_t opening_ms;
	struct list holder_link;
	struct list group_link;
	struct share_holder *holder; /* NULL: not counted, or privileged */
	struct deadline life;
	struct deadline stall;
	int64_t idle_since_ms;
	uint32_t resets_seen; /* of guard.resets_ever and so on, by share_watch() */
	uint32_t control_seen;
	uint32_t streams_seen;
	uint8_t cost;
	bool guarded;
	bool is_tls;
	bool served; /* handed to on_conn or to whoever dialled */
	bool handshaking;
	bool proxied;      /* a PROXY header may come first */
	bool spoke;        /* in the handshake; a server is taken to have */
	bool busy;         /* has a call */
	bool net_readable; /* until a read says otherwise */
	bool net_hup;
	bool net_eof;
	bool net_out; /* EPOLLOUT is asked for */
	bool local_readable;
	bool local_hup;
	bool local_eof;
	bool local_out;
	bool lingering;
	bool ended;
	struct guard guard;
};

struct conn *conn_new(struct hub *h, int fd);
/* Reads and writes as far as it goes. The connection may have ended afterwards. */
void conn_go(struct conn *c);
void conn_begin(struct conn *c); /* the same for one that is not yet served */
/* Hands the local end out: makes the pair. -1 when there are no descriptors. */
int conn_open_local(struct conn *c);
void conn_end(struct conn *c);
bool conn_give(struct conn *c, struct bytes b); /* to the local end; false: that is gone */
void conn_close(struct conn *c);                /* with a GOAWAY, if that goes without waiting */
void conn_evict(struct conn *c);                /* the same, counted */
void conn_timeout(struct conn *c, enum stage s);

/* ---- door.c, door_dial.c, door_peer.c ---- */

void door_conn_ended(struct door *d, struct conn *c);
/* The client has spoken: serve it. `before` bytes of the preface came earlier. False: the
 * connection has ended. */
bool door_conn_speaks(struct door *d, struct conn *c, size_t before, struct bytes first);
/* The balancer said who the client is: from now on it counts for that address. False: no room. */
bool door_conn_proxied(struct door *d, struct conn *c, const char *address);
bool door_closing(const struct door *d);
struct tls_conn *door_tls(struct door *d); /* NULL: no certificate yet */
/* The handshake is complete: who is it? False: nobody, the connection is to be ended. */
bool door_tls_established(struct door *d, struct conn *c);
struct door_stats *door_counts(struct door *d);

void door_tcp_options(int fd);
void dial_established(struct dial *d, struct conn *c);
void dial_conn_failed(struct dial *d, const struct err *e);

struct peer *peer_new(void);
int peer_of_unix(int fd, struct peer **ret);
int peer_pin(struct peer *p, int fd); /* gets the pidfd; -1: the process is gone */
void peer_address(struct peer *p, const struct sockaddr *sa);

#endif

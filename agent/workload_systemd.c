#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/workload.h"
#include "lib/bus.h"

/*
 * Selectors id and fragment_path: the systemd unit of a process, as SPIRE's attestor of that name.
 *
 * systemd is asked over the system bus, on a thread of its own that holds the connection. By the
 * pidfd where systemd knows that (version 255): a pid may have become another process's, which the
 * look at the caller afterwards would notice. Nothing is remembered, as a process may be moved to
 * another unit.
 */

enum { CALL_TIMEOUT_MS = 5000 };

#define SYSTEMD "org.freedesktop.systemd1"

struct systemd {
	struct loop *loop;
	struct lane *lane;
	/* of the lane */
	struct bus *bus;
	bool no_pidfd; /* this systemd does not know the call */
};

struct question {
	struct systemd *s;
	pid_t pid;
	int pidfd; /* owned; -1 */
	struct mono until;
	char *id, *fragment_path;
	struct err err;
	/* of the loop */
	bool cancelled;
	struct finding *ret;
	void (*done)(void *arg);
	void *arg;
};

static int connect_bus(struct systemd *s, struct err *e)
{
	if (s->bus && bus_is_open(s->bus))
		return 0;
	bus_close(s->bus);
	s->bus = NULL;
	s->no_pidfd = false; /* systemd may be a newer one by now */
	if (bus_open(NULL, CALL_TIMEOUT_MS, &s->bus, e)) {
		err_wrap(e, "failed to open dbus connection");
		return e->code = ERR_INTERNAL;
	}
	return 0;
}

static int left_ms(const struct question *q)
{
	int64_t ms = (q->until.ns - clock_mono().ns) / NS_PER_MS;

	return ms > 1 ? (int)ms : 1;
}

static int find_unit(struct question *q, char **ret, struct err *e)
{
	struct systemd *s = q->s;
	struct bus_call c = { .destination = SYSTEMD,
		.path = "/org/freedesktop/systemd1",
		.interface = SYSTEMD ".Manager",
		.method = "GetUnitByPIDFD",
		.args = { { .type = BUS_FD, .fd = q->pidfd } },
		.n_args = 1,
		.timeout_ms = left_ms(q) };
	int r = ERR_UNIMPLEMENTED;

	if (q->pidfd >= 0 && !s->no_pidfd && bus_passes_fds(s->bus)) {
		r = bus_call(s->bus, &c, ret, e);
		s->no_pidfd = r == ERR_UNIMPLEMENTED;
	}
	if (r == ERR_UNIMPLEMENTED) {
		c.method = "GetUnitByPID";
		c.args[0] = (struct bus_arg){ .type = BUS_UINT32, .number = (uint32_t)q->pid };
		c.timeout_ms = left_ms(q);
		r = bus_call(s->bus, &c, ret, e);
	}
	return r ? err_wrap(e, "failed to get unit by pid %d", (int)q->pid) : 0;
}

static int property(
	struct question *q, const char *unit, const char *name, char **ret, struct err *e)
{
	struct bus_call c = { .destination = SYSTEMD,
		.path = unit,
		.interface = "org.freedesktop.DBus.Properties",
		.method = "Get",
		.args = { { .type = BUS_TEXT, .text = SYSTEMD ".Unit" },
			{ .type = BUS_TEXT, .text = name } },
		.n_args = 2,
		.timeout_ms = left_ms(q) };
	int r = bus_call(q->s->bus, &c, ret, e);

	return r ? err_wrap(e, "error getting value for %s", name) : 0;
}

/* Those that waited behind a bus that does not answer do not begin to wait for it again. */
static int ask(struct question *q, struct err *e)
{
	AUTO(free) char *unit = NULL;
	int r;

	if (clock_mono().ns >= q->until.ns)
		return err_set(e, ERR_DEADLINE, "systemd did not answer in time");
	r = connect_bus(q->s, e);
	if (!r)
		r = find_unit(q, &unit, e);
	if (!r)
		r = property(q, unit, "Id", &q->id, e);
	if (!r)
		r = property(q, unit, "FragmentPath", &q->fragment_path, e);
	return r;
}

static void hang_up(struct systemd *s)
{
	bus_close(s->bus);
	s->bus = NULL;
}

static void ask_work(void *arg)
{
	struct question *q = arg;
	struct systemd *s = q->s;
	int r = ask(q, &q->err);
	bool gone = r && s->bus && !bus_is_open(s->bus);

	/* What answers late would be read as the next answer's past; and a bus that was started
	 * anew since the last call is worth another try. */
	if (gone || r == ERR_DEADLINE)
		hang_up(s);
	if (!gone)
		return;
	free(q->id);
	q->id = NULL;
	q->err = ERR_INIT;
	(void)!ask(q, &q->err);
}

static void add(struct finding *ret, const char *kind, const char *value)
{
	AUTO(free) char *text = xasprintf("%s:%s", kind, value);

	selectors_add(&ret->selectors, "systemd", text);
}

static void ask_done(void *arg)
{
	struct question *q = arg;

	if (!q->cancelled) {
		q->ret->waited_for = xstrdup("systemd on the system bus");
		q->ret->err = q->err;
		if (!q->err.code) {
			add(q->ret, "id", q->id);
			add(q->ret, "fragment_path", q->fragment_path);
			selectors_normalize(&q->ret->selectors);
		}
		q->done(q->arg);
	}
	if (q->pidfd >= 0)
		close(q->pidfd);
	free(q->id);
	free(q->fragment_path);
	free(q);
}

/* ---- the attestor ---- */

static bool systemd_enabled(const struct agent_options *o)
{
	return o->attestor_systemd;
}

static int systemd_open(struct loop *l, const struct agent_options *o, void **ret, struct err *e)
{
	struct systemd *s = xcalloc(1, sizeof(*s));

	(void)o;
	(void)e;
	s->loop = l;
	s->lane = lane_new(l, "systemd");
	*ret = s;
	return 0;
}

static void systemd_close(void *state)
{
	struct systemd *s = state;

	lane_free(s->lane);
	bus_close(s->bus);
	free(s);
}

static enum attest_next systemd_attest(
	void *state, const struct caller *c, bool blocking, struct finding *ret)
{
	(void)state;
	(void)c;
	(void)blocking;
	(void)ret;
	return ATTEST_WAITS;
}

static void *systemd_start(void *state, const struct caller *c, struct finding *ret,
	void (*done)(void *arg), void *arg)
{
	struct systemd *s = state;
	struct question *q = xcalloc(1, sizeof(*q));

	*q = (struct question){ .s = s, .pid = c->pid, .ret = ret, .done = done, .arg = arg };
	q->pidfd = c->pidfd >= 0 ? fcntl(c->pidfd, F_DUPFD_CLOEXEC, 3) : -1;
	q->until.ns = clock_mono().ns + CALL_TIMEOUT_MS * NS_PER_MS;
	lane_job(s->lane, ask_work, ask_done, q);
	return q;
}

/* The lane cannot be stopped in the middle: it ends within the timeout, and nobody hears of it. */
static void systemd_cancel(void *op)
{
	struct question *q = op;

	q->cancelled = true;
}

const struct attestor workload_systemd = { .name = "systemd",
	.enabled = systemd_enabled,
	.open = systemd_open,
	.close = systemd_close,
	.attest = systemd_attest,
	.start = systemd_start,
	.cancel = systemd_cancel };

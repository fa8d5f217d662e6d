#include "lib/rpc_internal.h"

#include <fcntl.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/support/log.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <uv.h>

#include "lib/log.h"

enum { BATCH = 64 };

struct event {
	struct rpc_tag *tag;
	bool ok;
};
struct events {
	struct event *v;
	size_t n;
	size_t cap;
};

struct rpc_core {
	struct rpc_core *next; /* in `cores` */
	struct loop *loop;
	int refs; /* on the loop thread */
	grpc_completion_queue *cq;
	pthread_t thread;
	int wake_fd; /* an eventfd: uv_async_t's callback may spin until its sender goes on */
	uv_poll_t wake;
	pthread_mutex_t lock; /* not gpr_mu: abseil's lock-order check may abort */
	struct events in;     /* under lock */
	struct events out;    /* the loop's */
	unsigned turn;
};

static pthread_mutex_t cores_lock = PTHREAD_MUTEX_INITIALIZER;
static struct rpc_core *cores;

static void core_log(gpr_log_func_args *a)
{
	log_event(LOG_DEBUG, "grpc", a->message, NULL);
}

static void core_push(struct rpc_core *core, const struct event *v, size_t n)
{
	struct events *q = &core->in;
	bool was_empty;

	pthread_mutex_lock(&core->lock);
	if (q->cap - q->n < n) {
		q->cap = q->cap * 2 + BATCH;
		q->v = xreallocarray(q->v, q->cap, sizeof(*q->v));
	}
	was_empty = q->n == 0;
	memcpy(q->v + q->n, v, n * sizeof(*v));
	q->n += n;
	pthread_mutex_unlock(&core->lock);
	if (was_empty)
		INVARIANT(eventfd_write(core->wake_fd, 1) == 0);
}

/* Takes what is there, up to a batch, before it wakes the loop: under load that halves the work. */
static void *core_thread(void *arg)
{
	const gpr_timespec never = gpr_inf_future(GPR_CLOCK_MONOTONIC);
	const gpr_timespec now = gpr_inf_past(GPR_CLOCK_MONOTONIC);
	struct rpc_core *core = arg;
	bool running = true;

	pthread_setname_np(pthread_self(), "rpc");
	while (running) {
		struct event v[BATCH];
		size_t n = 0;

		while (n < BATCH) {
			grpc_event ev =
				grpc_completion_queue_next(core->cq, n == 0 ? never : now, NULL);

			running = ev.type != GRPC_QUEUE_SHUTDOWN;
			if (ev.type != GRPC_OP_COMPLETE)
				break;
			v[n++] = (struct event){ ev.tag, ev.success != 0 };
		}
		if (n > 0)
			core_push(core, v, n);
	}
	return NULL;
}

static void core_dispatch(uv_poll_t *p, int status, int events)
{
	struct rpc_core *core = p->data;
	struct events q;
	eventfd_t n;

	(void)status;
	(void)events;
	core->refs++;
	core->turn++;
	(void)eventfd_read(core->wake_fd, &n);
	pthread_mutex_lock(&core->lock);
	q = core->in;
	core->in = core->out;
	core->out = (struct events){ 0 };
	pthread_mutex_unlock(&core->lock);
	for (size_t i = 0; i < q.n; i++)
		q.v[i].tag->fn(q.v[i].tag, q.v[i].ok);
	q.n = 0;
	core->out = q;
	rpc_core_put(core);
}

static struct rpc_core *core_new(struct loop *l)
{
	struct rpc_core *core = xcalloc(1, sizeof(*core));

	/* One thread less; and no 64 KiB for each connection on which much came at once, kept for
	 * what comes next (Debian's build has on by default what is for debugging). Read once, by
	 * grpc_init(). */
	setenv("GRPC_EXPERIMENTS", "-posix_event_engine_enable_polling,-tcp_read_chunks", 0);
	gpr_set_log_function(core_log);
	grpc_init();
	core->loop = l;
	core->refs = 1;
	core->cq = grpc_completion_queue_create_for_next(NULL);
	pthread_mutex_init(&core->lock, NULL);
	core->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	INVARIANT(core->wake_fd >= 0);
	INVARIANT(uv_poll_init(loop_uv(l), &core->wake, core->wake_fd) == 0);
	INVARIANT(uv_poll_start(&core->wake, UV_READABLE, core_dispatch) == 0);
	core->wake.data = core;
	INVARIANT(pthread_create(&core->thread, NULL, core_thread, core) == 0);
	return core;
}

struct rpc_core *rpc_core_get(struct loop *l)
{
	struct rpc_core *core;

	pthread_mutex_lock(&cores_lock);
	for (core = cores; core && core->loop != l; core = core->next)
		;
	if (core) {
		core->refs++;
	} else {
		core = core_new(l);
		core->next = cores;
		cores = core;
	}
	pthread_mutex_unlock(&cores_lock);
	return core;
}

static void core_closed(uv_handle_t *h)
{
	struct rpc_core *core = h->data;

	close(core->wake_fd);
	pthread_mutex_destroy(&core->lock);
	free(core->in.v);
	free(core->out.v);
	free(core);
}

static void core_unlink(struct rpc_core *core)
{
	struct rpc_core **p = &cores;

	pthread_mutex_lock(&cores_lock);
	while (*p != core)
		p = &(*p)->next;
	*p = core->next;
	pthread_mutex_unlock(&cores_lock);
}

void rpc_core_put(struct rpc_core *core)
{
	if (--core->refs > 0)
		return;
	core_unlink(core);
	grpc_completion_queue_shutdown(core->cq);
	pthread_join(core->thread, NULL);
	grpc_completion_queue_destroy(core->cq);
	grpc_shutdown_blocking();
	INVARIANT(core->in.n == 0);
	uv_close((uv_handle_t *)&core->wake, core_closed);
}

grpc_completion_queue *rpc_core_cq(const struct rpc_core *core)
{
	return core->cq;
}

unsigned rpc_core_turn(const struct rpc_core *core)
{
	return core->turn;
}

void rpc_core_post(struct rpc_core *core, struct rpc_tag *t)
{
	struct event ev = { t, true };

	core_push(core, &ev, 1);
}

/* ---- messages ---- */

grpc_slice rpc_pack(const ProtobufCMessage *m)
{
	grpc_slice s = grpc_slice_malloc(protobuf_c_message_get_packed_size(m));

	protobuf_c_message_pack(m, GRPC_SLICE_START_PTR(s));
	return s;
}

grpc_byte_buffer *rpc_buffer_of(grpc_slice s)
{
	return grpc_raw_byte_buffer_create(&s, 1);
}

struct bytes rpc_slice_bytes(const grpc_slice *s)
{
	return bytes_of(GRPC_SLICE_START_PTR(*s), GRPC_SLICE_LENGTH(*s));
}

char *rpc_slice_str(const grpc_slice *s)
{
	return xstrndup((const char *)GRPC_SLICE_START_PTR(*s), GRPC_SLICE_LENGTH(*s));
}

int rpc_unpack_buffer(const ProtobufCMessageDescriptor *d, grpc_byte_buffer *bb, size_t message_max,
	ProtobufCMessage **ret, struct err *e)
{
	grpc_byte_buffer_reader rd;
	grpc_slice all;
	int r;

	if (!bb)
		return err_set(e, ERR_INTERNAL, "no message");
	/* Compression is switched off (a small message could grow to gigabytes). */
	if (bb->data.raw.compression != GRPC_COMPRESS_NONE)
		return err_set(e, ERR_UNIMPLEMENTED, "grpc: Decompressor is not installed");
	if (bb->data.raw.slice_buffer.count == 1)
		return rpc_unpack(d, rpc_slice_bytes(&bb->data.raw.slice_buffer.slices[0]),
			message_max, ret, e);
	if (!grpc_byte_buffer_reader_init(&rd, bb))
		return err_set(e, ERR_INTERNAL, "unreadable message");
	all = grpc_byte_buffer_reader_readall(&rd);
	r = rpc_unpack(d, rpc_slice_bytes(&all), message_max, ret, e);
	grpc_slice_unref(all);
	grpc_byte_buffer_reader_destroy(&rd);
	return r;
}

struct rpc_payload *rpc_payload_new(const ProtobufCMessage *m)
{
	struct rpc_payload *p = xmalloc(sizeof(*p));

	p->refs = 1;
	p->slice = rpc_pack(m);
	return p;
}

struct rpc_payload *rpc_payload_ref(struct rpc_payload *p)
{
	p->refs++;
	return p;
}

void rpc_payload_unref(struct rpc_payload *p)
{
	if (!p || --p->refs > 0)
		return;
	grpc_slice_unref(p->slice);
	free(p);
}

size_t rpc_payload_size(const struct rpc_payload *p)
{
	return GRPC_SLICE_LENGTH(p->slice);
}

bool rpc_payload_equal(const struct rpc_payload *a, const struct rpc_payload *b)
{
	return a == b || bytes_equal(rpc_slice_bytes(&a->slice), rpc_slice_bytes(&b->slice));
}

/* gRPC does not do this itself, and a blocking descriptor stops its thread. */
void rpc_nonblocking(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags >= 0 && !(flags & O_NONBLOCK))
		fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

#include "lib/rpc_internal.h"

#include <fcntl.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/support/log.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#include "lib/log.h"

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
	uv_async_t async;
	pthread_mutex_t lock; /* not gpr_mu: abseil's lock-order check may abort */
	struct events in;     /* under lock */
	struct events out;    /* the loop's */
};

static pthread_mutex_t cores_lock = PTHREAD_MUTEX_INITIALIZER;
static struct rpc_core *cores;

static void core_log(gpr_log_func_args *a)
{
	log_event(LOG_DEBUG, "grpc", a->message, NULL);
}

static void core_push(struct rpc_core *core, struct rpc_tag *t, bool ok)
{
	struct events *q = &core->in;
	bool was_empty;

	pthread_mutex_lock(&core->lock);
	if (q->n == q->cap) {
		q->cap = q->cap ? q->cap * 2 : 64;
		q->v = xreallocarray(q->v, q->cap, sizeof(*q->v));
	}
	was_empty = q->n == 0;
	q->v[q->n++] = (struct event){ t, ok };
	pthread_mutex_unlock(&core->lock);
	if (was_empty)
		uv_async_send(&core->async);
}

static void *core_thread(void *arg)
{
	struct rpc_core *core = arg;

	pthread_setname_np(pthread_self(), "rpc");
	for (;;) {
		grpc_event ev = grpc_completion_queue_next(
			core->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);

		if (ev.type == GRPC_QUEUE_SHUTDOWN)
			return NULL;
		core_push(core, ev.tag, ev.success != 0);
	}
}

/* uv_async_t may join several sends to one callback, so all that waits is taken each time. */
static void core_dispatch(uv_async_t *a)
{
	struct rpc_core *core = a->data;
	struct events q;

	core->refs++;
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

	/* One thread less; read once by grpc_init(). */
	setenv("GRPC_EXPERIMENTS", "-posix_event_engine_enable_polling", 0);
	gpr_set_log_function(core_log);
	grpc_init();
	core->loop = l;
	core->refs = 1;
	core->cq = grpc_completion_queue_create_for_next(NULL);
	pthread_mutex_init(&core->lock, NULL);
	INVARIANT(uv_async_init(loop_uv(l), &core->async, core_dispatch) == 0);
	core->async.data = core;
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
	uv_close((uv_handle_t *)&core->async, core_closed);
}

grpc_completion_queue *rpc_core_cq(const struct rpc_core *core)
{
	return core->cq;
}

void rpc_core_post(struct rpc_core *core, struct rpc_tag *t)
{
	core_push(core, t, true);
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

/* One set of files: from what it shall hold to the disk, by a worker thread. */
#include <stdlib.h>
#include <string.h>

#include "agent/files_internal.h"
#include "lib/log.h"

enum { SWEEP_S = 10, RETRY_MAX_S = 60 };

/* ---- what it shall hold ---- */

static bool is_x509(const struct files_slot *s)
{
	return s->kind <= FILES_COMBINED;
}

static void add_slot(struct files_out *out, enum files_kind kind, const char *name, int mode)
{
	const struct files_set_options *o = out->o;
	struct files_slot *s = &out->slots[out->n_slots];

	if (!name)
		return;
	out->n_slots++;
	*s = (struct files_slot){
		.kind = kind, .name = name, .mode = (unsigned)mode, .data = BUF_INIT_SECRET
	};
	s->dirty = !files_disk_read(out->disk, name, s->mode, o->uid, o->gid, &s->data);
}

struct files_slot *files_slot_of(struct files_out *out, enum files_kind kind)
{
	for (size_t i = 0; i < out->n_slots; i++)
		if (out->slots[i].kind == kind)
			return &out->slots[i];
	return NULL;
}

void files_slot_set(struct files_out *out, struct files_slot *slot, struct buf *data)
{
	bool same = bytes_equal(buf_view(&slot->data), buf_view(data));

	slot->fresh = true;
	if (!same)
		slot->dirty = true;
	if (is_x509(slot)) {
		out->x509_new = out->x509_new || !same || !out->x509_seen;
	} else {
		out->jwt_new = out->jwt_new || !same;
	}
	buf_deinit(&slot->data);
	slot->data = *data;
	slot->data.secret = true;
	*data = BUF_INIT;
}

void files_out_failed(struct files_out *out, bool x509, struct files_slot *slot)
{
	for (size_t i = 0; i < out->n_slots; i++)
		if (x509 ? is_x509(&out->slots[i]) : &out->slots[i] == slot)
			out->slots[i].status = FILES_FAILED;
}

bool files_out_complete(const struct files_out *out)
{
	for (size_t i = 0; i < out->n_slots; i++)
		if (out->slots[i].status != FILES_WRITTEN)
			return false;
	return true;
}

/* ---- writing ---- */

struct write_job {
	struct files_out *out;
	struct files_item *items;
	struct buf *data; /* of the items */
	size_t n;
	bool x509_new, jwt_new;
	int r;
	struct err e;
};

static void work(void *arg)
{
	struct write_job *j = arg;

	j->r = files_disk_write(
		j->out->disk, j->items, j->n, j->out->o->uid, j->out->o->gid, &j->e);
}

static void job_free(struct write_job *j)
{
	for (size_t i = 0; i < j->n; i++)
		buf_deinit(&j->data[i]);
	free(j->data);
	free(j->items);
	free(j);
}

static void mark_written(struct files_out *out)
{
	for (size_t i = 0; i < out->n_slots; i++)
		if (out->slots[i].fresh && !out->slots[i].dirty)
			out->slots[i].status = FILES_WRITTEN;
}

static void tell(struct files_out *out, bool x509_new, bool jwt_new)
{
	if (x509_new)
		out->x509_seen = true;
	if (out->files->o->daemon && !out->files->stopping &&
		(x509_new || (jwt_new && out->o->jwt_renews)))
		files_notify(out->notify);
}

static void failed(struct files_out *out, const struct write_job *j)
{
	for (size_t i = 0; i < out->n_slots; i++)
		if (out->slots[i].fresh) {
			out->slots[i].dirty = true;
			out->slots[i].status = FILES_FAILED;
		}
	out->x509_new = out->x509_new || j->x509_new;
	out->jwt_new = out->jwt_new || j->jwt_new;
	log_event(LOG_ERROR, "files", "Unable to write the files; the old ones stay", "set",
		*out->o->name ? out->o->name : NULL, "error", j->e.msg, NULL);
	if (!out->files->o->daemon)
		files_stop(out->files, 1);
	else
		loop_timer_set(out->retry, backoff_next(&out->backoff));
}

static void done(void *arg)
{
	struct write_job *j = arg;
	struct files_out *out = j->out;

	out->busy = false;
	if (j->r) {
		failed(out, j);
		job_free(j);
		return;
	}
	backoff_reset(&out->backoff);
	if (!out->former)
		loop_timer_set(out->sweep, SWEEP_S * NS_PER_SEC);
	out->former = true;
	log_event(LOG_INFO, "files", "Files updated", "set", *out->o->name ? out->o->name : NULL,
		"cert_dir", out->o->cert_dir, NULL);
	mark_written(out);
	tell(out, j->x509_new, j->jwt_new);
	job_free(j);
	files_out_flush(out);
}

static void start(struct files_out *out)
{
	struct write_job *j = xcalloc(1, sizeof(*j));

	j->out = out;
	j->items = xcalloc(out->n_slots, sizeof(*j->items));
	j->data = xcalloc(out->n_slots, sizeof(*j->data));
	for (size_t i = 0; i < out->n_slots; i++) {
		struct files_slot *s = &out->slots[i];
		size_t k = j->n;

		s->dirty = false;
		if (!s->data.len && !s->fresh)
			continue;
		j->data[k] = BUF_INIT_SECRET;
		buf_bytes(&j->data[k], buf_view(&s->data));
		j->items[k] = (struct files_item){
			.name = s->name, .mode = s->mode, .data = buf_view(&j->data[k])
		};
		j->n++;
	}
	j->x509_new = out->x509_new;
	j->jwt_new = out->jwt_new;
	out->x509_new = out->jwt_new = false;
	out->busy = true;
	loop_timer_stop(out->retry);
	loop_job(out->files->loop, work, done, j);
}

void files_out_flush(struct files_out *out)
{
	bool dirty = false;

	if (out->busy || out->files->stopping)
		return; /* done() looks again */
	for (size_t i = 0; i < out->n_slots; i++)
		dirty = dirty || (out->slots[i].dirty && out->slots[i].fresh);
	if (dirty) {
		start(out);
		return;
	}
	/* All is there as it should be, from a run before this one perhaps. */
	mark_written(out);
	if (out->x509_new || out->jwt_new) {
		bool x509_new = out->x509_new, jwt_new = out->jwt_new;

		out->x509_new = out->jwt_new = false;
		tell(out, x509_new, jwt_new);
	}
	files_written(out->files);
}

static void on_retry(void *arg)
{
	files_out_flush(arg);
}

/* ---- the end of a certificate ---- */

static void on_expiry(void *arg)
{
	struct files_out *out = arg;

	log_event(LOG_ERROR, "files",
		"The certificate in the files has expired; the agent gives no other", "set",
		*out->o->name ? out->o->name : NULL, "cert_dir", out->o->cert_dir, NULL);
}

void files_out_expires(struct files_out *out, struct wall at)
{
	loop_timer_set_wall(out->expiry, at);
}

/* ---- the sets before the present one ---- */

static void sweep_work(void *arg)
{
	struct files_out *out = arg;

	out->former = files_disk_sweep(out->disk, SWEEP_S * NS_PER_SEC);
}

static void sweep_done(void *arg)
{
	struct files_out *out = arg;

	out->busy = false;
	if (out->former)
		loop_timer_set(out->sweep, NS_PER_SEC);
	files_out_flush(out);
}

static void on_sweep(void *arg)
{
	struct files_out *out = arg;

	if (out->busy) {
		loop_timer_set(out->sweep, NS_PER_SEC);
		return;
	}
	out->busy = true;
	loop_job(out->files->loop, sweep_work, sweep_done, out);
}

/* ---- */

int files_out_init(
	struct files_out *out, struct files *f, const struct files_set_options *o, struct err *e)
{
	int r = files_disk_open(o->cert_dir, o->name, &out->disk, e);

	if (r)
		return r;
	out->files = f;
	out->o = o;
	out->slots = xcalloc(5 + o->n_jwts, sizeof(*out->slots));
	add_slot(out, FILES_SVID, o->svid_file, o->cert_mode);
	add_slot(out, FILES_KEY, o->key_file, o->key_mode);
	add_slot(out, FILES_BUNDLE, o->bundle_file, o->cert_mode);
	add_slot(out, FILES_COMBINED, o->combined_file, o->key_mode);
	add_slot(out, FILES_JWT_BUNDLE, o->jwt_bundle_file, o->jwt_bundle_mode);
	for (size_t i = 0; i < o->n_jwts; i++)
		add_slot(out, FILES_JWT, o->jwts[i].file, o->jwt_svid_mode);
	out->notify = files_notify_new(f->loop, o);
	out->retry = loop_timer_new(f->loop, on_retry, out);
	out->sweep = loop_timer_new(f->loop, on_sweep, out);
	out->expiry = loop_timer_new(f->loop, on_expiry, out);
	out->backoff =
		(struct backoff){ .first_ns = NS_PER_SEC, .max_ns = RETRY_MAX_S * NS_PER_SEC };
	return 0;
}

void files_out_deinit(struct files_out *out)
{
	if (out->disk)
		files_disk_sweep(out->disk, 0);
	files_disk_close(out->disk);
	files_notify_free(out->notify);
	loop_timer_free(out->retry);
	loop_timer_free(out->sweep);
	loop_timer_free(out->expiry);
	for (size_t i = 0; i < out->n_slots; i++)
		buf_deinit(&out->slots[i].data);
	free(out->slots);
}

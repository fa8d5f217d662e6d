/* The health endpoint: what was written, in spiffe-helper's form. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "agent/files_internal.h"
#include "lib/log.h"

static const char *const names[] = {
	[FILES_UNWRITTEN] = "unwritten",
	[FILES_FAILED] = "failed",
	[FILES_WRITTEN] = "written",
};

static bool any(const struct files *f, enum files_status s)
{
	for (size_t i = 0; i < f->n_outs; i++)
		for (size_t k = 0; k < f->outs[i].n_slots; k++)
			if (f->outs[i].slots[k].status == s)
				return true;
	return false;
}

bool files_is_live(const struct files *f)
{
	return !any(f, FILES_FAILED);
}

bool files_is_ready(const struct files *f)
{
	return !any(f, FILES_FAILED) && !any(f, FILES_UNWRITTEN);
}

/* As path.Join() writes it. */
static char *path_of(const struct files_out *out, const struct files_slot *s)
{
	const char *dir = out->o->cert_dir;
	size_t n = strlen(dir);

	while (n > 1 && dir[n - 1] == '/')
		n--;
	if (strcmp(dir, ".") == 0)
		return xstrdup(s->name);
	return xasprintf("%.*s/%s", (int)n, dir, s->name);
}

void files_health_json(const struct files *f, bool good, struct buf *ret)
{
	json_t *all = json_object(), *health = json_object(), *files = json_object();
	json_t *jwt = json_object();
	bool seen = false;
	enum files_status x509 = FILES_WRITTEN;
	char *text;

	for (size_t i = 0; i < f->n_outs; i++)
		for (size_t k = 0; k < f->outs[i].n_slots; k++) {
			const struct files_slot *s = &f->outs[i].slots[k];
			AUTO(free) char *path = path_of(&f->outs[i], s);

			if (s->kind > FILES_COMBINED) {
				json_object_set_new(jwt, path, json_string(names[s->status]));
				continue;
			}
			seen = true;
			/* the worst of all sets; failed is worse than not written yet */
			if (s->status == FILES_FAILED || x509 == FILES_WRITTEN)
				x509 = s->status;
		}
	if (seen)
		json_object_set_new(files, "x509_write_status", json_string(names[x509]));
	json_object_set_new(files, "jwt_write_status", jwt);
	json_object_set_new(health, "file_write_statuses", files);
	json_object_set_new(all, "status", json_string(good ? "OK" : "Service Unavailable"));
	json_object_set_new(all, "health", health);
	text = json_dumps(all, JSON_COMPACT);
	json_decref(all);
	buf_str(ret, text ? text : "{}");
	free(text);
}

static void handle(void *arg, const struct http_request *rq, struct http_response *rs)
{
	const struct files *f = arg;
	bool live = strcmp(rq->path, f->o->live_path) == 0, good;

	if (!live && strcmp(rq->path, f->o->ready_path) != 0) {
		rs->status = 404;
		buf_str(&rs->body, "404 page not found\n");
		return;
	}
	good = live ? files_is_live(f) : files_is_ready(f);
	rs->status = good ? 200 : 503;
	rs->content_type = "application/json";
	files_health_json(f, good, &rs->body);
}

void files_health_open(struct files *f)
{
	struct http_server_options o = { .host = f->o->health_address ? f->o->health_address : "::",
		.port = f->o->health_port,
		.handle = handle,
		.arg = f };
	struct err e;
	int r = http_server_open(f->loop, &o, &f->health, &e);

	if (r && !f->o->health_address) { /* no IPv6 here */
		o.host = "0.0.0.0";
		r = http_server_open(f->loop, &o, &f->health, &e);
	}
	if (r)
		log_event(LOG_WARN, "files", "Error serving health checks", "error", e.msg, NULL);
	else
		log_event(LOG_INFO, "files", "Serving health checks", "port",
			log_fmt("%d", http_server_port(f->health)), NULL);
}

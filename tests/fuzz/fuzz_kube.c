/* A kubeconfig file; the events of a watch, in one piece and byte by byte. */
#include "lib/kube_internal.h"

#include <stdlib.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

static struct loop *loop;
static struct kube *kube;

static void begin(void)
{
	static const char text[] = "{current-context: c, contexts: [{name: c, context: {cluster: "
				   "k}}], clusters: [{name: k, cluster: {server: 'http://h'}}]}";
	char path[] = "/tmp/assay-fuzz-XXXXXX";
	struct kube_options o = { .kubeconfig = path };
	struct err e = ERR_INIT;
	int fd = mkstemp(path);

	INVARIANT(fd >= 0 && write(fd, text, sizeof(text) - 1) == sizeof(text) - 1);
	close(fd);
	loop = loop_new();
	INVARIANT(kube_new(loop, &o, &kube, &e) == 0);
	unlink(path);
}

static void config(struct bytes v)
{
	struct kube_config c;
	struct err e = ERR_INIT;

	if (kube_config_parse(v, "dir/config", NULL, &c, &e) != 0)
		return;
	INVARIANT(c.server && *c.server && c.namespace && *c.namespace);
	INVARIANT(kube_source_is(&c.cert) == kube_source_is(&c.key));
	kube_config_deinit(&c);
}

static void on_event(void *arg, enum kube_event event, json_t *object)
{
	int *balance = arg;

	INVARIANT(json_string_value(json_object_get(json_object_get(object, "metadata"), "name")));
	*balance += event == KUBE_ADDED ? 1 : event == KUBE_DELETED ? -1 : 0;
	INVARIANT(*balance >= 0);
}

static void stop(void *arg)
{
	(void)arg;
	loop_stop(loop);
}

static int events(struct bytes v, size_t step)
{
	int balance = 0;
	struct kube_watch_options o = { .path = "/x", .event = on_event, .arg = &balance };
	struct kube_watch *w = kube_watch(kube, &o);

	w->line = BUF_INIT_MAX(1000);
	while (v.n > 0) {
		size_t n = v.n < step ? v.n : step;

		if (!kube_watch_feed(w, bytes_of(v.p, n)))
			break;
		v = bytes_of(v.p + n, v.n - n);
	}
	kube_watch_free(w);
	return balance;
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	if (!kube)
		begin();
	config(bytes_of(p, n));
	INVARIANT(events(bytes_of(p, n), n + 1) == events(bytes_of(p, n), 1));
	loop_post(loop, stop, NULL); /* timers come back when it has run */
	loop_run(loop);
	return 0;
}

/* kubewatch KUBECONFIG PATH: what becomes of the objects there, a line each, until it is ended. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/kube.h"

static void on_event(void *arg, enum kube_event event, json_t *object)
{
	const json_t *meta = json_object_get(object, "metadata");

	(void)arg;
	printf("%c %s\n", "+*-"[event], json_string_value(json_object_get(meta, "name")));
}

static void on_synced(void *arg)
{
	(void)arg;
	puts("synced");
}

static void on_failed(void *arg, const struct err *e)
{
	(void)arg;
	printf("failed: %s\n", e->msg);
}

static void on_working(void *arg)
{
	(void)arg;
	puts("working");
}

static void on_signal(void *arg, int signo)
{
	(void)signo;
	loop_stop(arg);
}

int main(int argc, char **argv)
{
	struct kube_options o = { .kubeconfig = argc == 3 ? argv[1] : NULL };
	struct kube_watch_options w = { .path = argc == 3 ? argv[2] : NULL,
		.event = on_event,
		.synced = on_synced,
		.failed = on_failed,
		.working = on_working };
	struct loop *loop;
	struct kube *kube;
	struct kube_watch *watch;
	struct err e = ERR_INIT;

	if (argc != 3)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGPIPE, SIG_IGN);
	crypto_init();
	loop = loop_new();
	if (kube_new(loop, &o, &kube, &e)) {
		fprintf(stderr, "%s\n", e.msg);
		return 1;
	}
	loop_on_signal(loop, SIGTERM, on_signal, loop);
	watch = kube_watch(kube, &w);
	loop_run(loop);
	kube_watch_free(watch);
	kube_free(kube);
	loop_free(loop);
	return 0;
}

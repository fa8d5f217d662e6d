/*
 * Store and index without the network: entries per second written in batches, the time to load them
 * into the index, memory, and what signing asks of the index.
 *
 *   server_store N [FOLDER]
 *
 * Entries have four selectors: the name and namespace of a pod's account, its uid, and a label. One
 * tenth of N agents' worth of parents, no more than 1,000.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/crypto.h"
#include "server/entries.h"
#include "server/store.h"

enum { BATCH = 500 };

static struct loop *loop;
static struct entries *index_;
static struct store *store;
static struct err e;
static long n_entries, n_done;
static long n_agents;

static double seconds(void)
{
	return (double)clock_mono().ns / 1e9;
}

static double rss_mib(void)
{
	long pages = 0;
	long resident = 0;
	FILE *f = fopen("/proc/self/statm", "r");

	if (!f || fscanf(f, "%ld %ld", &pages, &resident) != 2)
		resident = 0;
	if (f)
		fclose(f);
	return (double)(resident * sysconf(_SC_PAGESIZE)) / (1 << 20);
}

static void saw_entry(void *arg, uint64_t change, const char *id, const struct entry *en)
{
	(void)arg;
	entries_set_change(index_, change);
	if (en)
		entries_put(index_, en);
	else
		entries_remove(index_, id);
}

static const struct store_observer observer = { .entry = saw_entry };

static void open_store(const char *path)
{
	loop = loop_new();
	index_ = entries_new("example.org", false);
	if (store_open(loop, path, &observer, &store, &e)) {
		fprintf(stderr, "%s\n", e.msg);
		exit(1);
	}
}

static void make_entry(long i, struct entry *ret)
{
	AUTO(free) char *uid = xasprintf("pod-uid:%08lx-0000-4000-8000-%012lx", i, i * 7);
	AUTO(free) char *app = xasprintf("pod-label:app:app-%ld", i % 200);
	AUTO(free) char *sa = xasprintf("sa:account-%ld", i % 500);

	*ret = (struct entry){
		.id = xstrdup(""),
		.spiffe_id = xasprintf(
			"spiffe://example.org/ns/ns-%ld/sa/account-%ld/%ld", i % 50, i % 500, i),
		.parent_id = xasprintf(
			"spiffe://example.org/spire/agent/k8s_psat/prod/%ld", i % n_agents),
		.hint = xstrdup(""),
	};
	selectors_add(&ret->selectors, "k8s", uid);
	selectors_add(&ret->selectors, "k8s", app);
	selectors_add(&ret->selectors, "k8s", sa);
	selectors_add(&ret->selectors, "k8s", "ns:production");
}

static void next_batch(void);

static void on_batch(void *arg, struct store_result *r, size_t n)
{
	(void)arg;
	for (size_t i = 0; i < n; i++)
		if (r[i].code) {
			fprintf(stderr, "%s\n", r[i].message);
			exit(1);
		}
	n_done += (long)n;
	next_batch();
}

static void next_batch(void)
{
	struct entry v[BATCH];
	long n = n_entries - n_done < BATCH ? n_entries - n_done : BATCH;

	if (n == 0) {
		loop_stop(loop);
		return;
	}
	for (long i = 0; i < n; i++)
		make_entry(n_done + i, &v[i]);
	store_entries_create(store, v, (size_t)n, on_batch, NULL);
	for (long i = 0; i < n; i++)
		entry_deinit(&v[i]);
}

static void bench_write(const char *path)
{
	double t = seconds();

	open_store(path);
	next_batch();
	loop_run(loop);
	printf("entries_created_in_batches_of_500 %.0f /s\n", (double)n_entries / (seconds() - t));
	store_close(store);
	entries_free(index_);
	loop_free(loop);
}

static void count_entry(void *arg, const struct entry *en)
{
	(void)en;
	++*(long *)arg;
}

static bool keep_ids(void *arg, const struct entry *en)
{
	struct strings *s = arg;

	if (s->n == 1000)
		return false;
	strings_add(s, en->id);
	return true;
}

static void bench_index(void)
{
	static const struct entries_filter any = { .downstream = -1 };
	struct strings ids = { .n = 0 };
	struct entry en;
	char *token;
	double t = seconds();
	long found = 0;
	long calls = 200000;

	if (entries_list(index_, &any, "", keep_ids, &ids, &token, &e))
		exit(1);
	free(token);
	printf("first_list %.1f ms\n", (seconds() - t) * 1e3);
	t = seconds();
	for (long i = 0; i < n_agents; i++) {
		AUTO(free)
		char *agent = xasprintf("spiffe://example.org/spire/agent/k8s_psat/prod/%ld", i);

		entries_authorized(index_, agent, count_entry, &found);
	}
	printf("authorized_all_agents %.1f ns per entry\n", (seconds() - t) * 1e9 / (double)found);
	if (found != n_entries)
		exit(1);
	t = seconds();
	for (long i = 0; i < calls; i++) {
		if (entries_get(index_, ids.v[i % 1000], &en, &e))
			exit(1);
		entry_deinit(&en);
	}
	printf("get_copy %.0f ns\n", (seconds() - t) * 1e9 / (double)calls);
	t = seconds();
	for (long i = 0; i < calls; i++)
		(void)!entries_authorized_view(index_,
			"spiffe://example.org/spire/agent/k8s_psat/prod/1", ids.v[i % 1000], &en,
			&e);
	printf("authorized_view %.0f ns\n", (seconds() - t) * 1e9 / (double)calls);
	strings_deinit(&ids);
}

static void bench_load(const char *path)
{
	double before = rss_mib();
	double t = seconds();

	open_store(path);
	printf("open %.3f s\n", seconds() - t);
	if (store_load(store, &e)) {
		fprintf(stderr, "%s\n", e.msg);
		exit(1);
	}
	printf("open_and_load %.3f s\n", seconds() - t);
	printf("rss_after_load %.1f MiB\n", rss_mib());
	printf("memory_per_entry %.0f B\n", (rss_mib() - before) * (1 << 20) / (double)n_entries);
	entries_set_change(index_, store_change(store));
	bench_index();
	store_close(store);
	entries_free(index_);
	loop_free(loop);
}

/* Each in a process of its own, so that memory is only what the one thing needs. */
static void apart(void (*fn)(const char *path), const char *path)
{
	pid_t pid = fork();
	int status = 1;

	if (pid == 0) {
		fn(path);
		fflush(NULL);
		_exit(0);
	}
	if (waitpid(pid, &status, 0) != pid || status != 0)
		exit(1);
}

int main(int argc, char **argv)
{
	char folder[] = "/tmp/assay-bench-XXXXXX";
	AUTO(free) char *path = NULL;
	AUTO(free) char *clean = NULL;

	n_entries = argc > 1 ? strtol(argv[1], NULL, 10) : 100000;
	n_agents = n_entries / 10 < 1000 ? n_entries / 10 + 1 : 1000;
	if (argc <= 2 && !mkdtemp(folder))
		return 1;
	path = xasprintf("%s/bench.db", argc > 2 ? argv[2] : folder);
	crypto_init();
	printf("entries %ld\n", n_entries);
	fflush(NULL);
	apart(bench_write, path);
	apart(bench_load, path);
	unlink(path);
	clean = xasprintf("%s-wal", path);
	unlink(clean);
	if (argc <= 2)
		rmdir(folder);
	return 0;
}

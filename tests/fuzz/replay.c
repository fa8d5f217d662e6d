/*
 * Runs a fuzzer without libFuzzer: over the files and folders given, and over a fixed number of
 * changed copies of each file, the same ones every time. One file is one test. What crashes is
 * written to a file that is named.
 */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/buf.h"

enum { MUTATIONS = 2000, INPUT_LIMIT = 1 << 20, SEED_TIMEOUT_S = 240 };

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);
void __sanitizer_set_death_callback(void (*fn)(void)) __attribute__((weak));

static const char *seed_name;
static struct buf input = { .max = INPUT_LIMIT };
static int round_number;
static int passed, failed;

/* Deterministic; xorshift64*. */
static uint64_t state;

static size_t rnd(size_t below)
{
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return below ? (size_t)((state * UINT64_C(2685821657736338717)) >> 33) % below : 0;
}

static void tell(void)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/tmp/assay-crash-%d", (int)getpid());
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd >= 0 && write(fd, input.p, input.len) == (ssize_t)input.len)
		fprintf(stderr, "input kept in %s\n", path);
	fprintf(stderr, "%s, mutation %d\n", seed_name, round_number);
}

static void on_signal(int sig)
{
	tell();
	signal(sig, SIG_DFL);
	raise(sig);
}

static void insert(size_t at, const uint8_t *p, size_t n)
{
	struct buf next = { .max = INPUT_LIMIT };

	buf_append(&next, input.p, at);
	buf_append(&next, p, n);
	buf_append(&next, input.p + at, input.len - at);
	if (next.failed) {
		buf_deinit(&next);
		return;
	}
	buf_deinit(&input);
	input = next;
}

static void cut(size_t at, size_t n)
{
	memmove(input.p + at, input.p + at + n, input.len - at - n);
	input.len -= n;
}

static void change_once(void)
{
	static const uint8_t odd[] = { 0, 1, 0x7f, 0x80, 0xff, ' ', '/', '{', '"', '=', '\n',
		0x30 };
	uint8_t piece[64];
	size_t n = 1 + rnd(sizeof(piece));
	size_t at = rnd(input.len);

	if (input.len == 0) {
		piece[0] = (uint8_t)rnd(256);
		insert(0, piece, 1);
		return;
	}
	if (n > input.len - at)
		n = input.len - at;
	switch (rnd(7)) {
	case 0:
		input.p[at] ^= (uint8_t)(1u << rnd(8));
		break;
	case 1:
		input.p[at] = (uint8_t)rnd(256);
		break;
	case 2:
		input.p[at] = odd[rnd(sizeof(odd))];
		break;
	case 3:
		input.p[at] = (uint8_t)(input.p[at] + (rnd(2) ? 1 : -1));
		break;
	case 4:
		cut(at, n);
		break;
	case 5:
		memcpy(piece, input.p + at, n);
		insert(rnd(input.len + 1), piece, n);
		break;
	default:
		input.len = at;
		break;
	}
}

static void run_seed(const char *path)
{
	struct buf seed = { .max = INPUT_LIMIT };
	struct err e;

	if (buf_read_file(&seed, path, &e)) {
		fprintf(stderr, "%s\n", e.msg);
		failed++;
		return;
	}
	seed_name = path;
	state = UINT64_C(88172645463325252) + seed.len;
	alarm(SEED_TIMEOUT_S);
	for (round_number = 0; round_number <= MUTATIONS; round_number++) {
		buf_deinit(&input);
		buf_bytes(&input, buf_view(&seed));
		for (size_t i = round_number ? 1 + rnd(4) : 0; i; i--)
			change_once();
		LLVMFuzzerTestOneInput(input.p, input.len);
	}
	alarm(0);
	buf_deinit(&input);
	buf_deinit(&seed);
	passed++;
}

static int is_visible(const struct dirent *d)
{
	return d->d_name[0] != '.';
}

static void run_path(const char *path)
{
	struct dirent **names;
	struct stat st;
	int n;

	if (stat(path, &st) == 0 && !S_ISDIR(st.st_mode)) {
		run_seed(path);
		return;
	}
	n = scandir(path, &names, is_visible, alphasort);
	if (n < 0) {
		perror(path);
		failed++;
		return;
	}
	for (int i = 0; i < n; i++) {
		char *child = xasprintf("%s/%s", path, names[i]->d_name);

		run_path(child);
		free(child);
		free(names[i]);
	}
	free(names);
}

int main(int argc, char **argv)
{
	signal(SIGABRT, on_signal);
	signal(SIGALRM, on_signal);
	if (__sanitizer_set_death_callback)
		__sanitizer_set_death_callback(tell);
	for (int i = 1; i < argc; i++)
		run_path(argv[i]);
	printf("%d passed, %d failed, 0 skipped\n", passed, failed);
	return failed != 0;
}

/* The file: what is acknowledged survives kill -9, a full disk loses nothing, a damaged file is not
 * touched, the logs do not grow for ever. */
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>

#include "tests/unit/server/store_world.inc"

/* ---- files that are not as they should be ---- */

static void copy_file(const char *from, const char *to)
{
	AUTO_BUF struct buf b = BUF_INIT;

	CHECK_OK(buf_read_file(&b, from, &e));
	CHECK_OK(buf_write_file(buf_view(&b), to, 0600, &e));
}

static void fill(int n)
{
	for (int i = 0; i < n; i++) {
		AUTO(free) char *sel = xasprintf("u:%d", i);

		CHECK_INT(create(entry_of("", "w", sel)), 0);
	}
}

static void expect_refused(int expected, const char *text)
{
	AUTO_BUF struct buf before = BUF_INIT;
	AUTO_BUF struct buf after = BUF_INIT;
	int r;

	CHECK_OK(buf_read_file(&before, file, &e));
	r = try_open();
	if (r == 0) {
		r = store_load(store, &e);
		store_close(store);
	}
	CHECK_INT(r, expected);
	CHECK_CONTAINS(e.msg, file);
	CHECK_CONTAINS(e.msg, text);
	CHECK_OK(buf_read_file(&after, file, &e));
	CHECK_BYTES(buf_view(&before), buf_view(&after));
	loop_free(loop);
	forget();
}

static void test_damaged(void)
{
	AUTO(free) char *good = NULL;
	struct stat st;
	int fd;

	open_store();
	good = xasprintf("%s.good", file);
	fill(400);
	close_store();
	copy_file(file, good);
	CHECK(stat(file, &st) == 0);
	CHECK_INT(st.st_mode & 0777, 0600);
	/* Cut short, at every kind of place. */
	for (off_t n = st.st_size - 1; n > 0; n = n * 2 / 3) {
		CHECK(truncate(file, n) == 0);
		expect_refused(ERR_DATA_LOSS, "damaged");
	}
	/* Overwritten in the middle. */
	copy_file(good, file);
	for (off_t at = 4096; at < st.st_size; at += 4096) {
		char junk[4096];

		memset(junk, 0xa5, sizeof(junk));
		fd = open(file, O_WRONLY);
		CHECK(pwrite(fd, junk, sizeof(junk), at) == (ssize_t)sizeof(junk));
		close(fd);
		expect_refused(ERR_DATA_LOSS, "damaged");
		copy_file(good, file);
	}
	CHECK_OK(buf_write_file(bytes_str("hello"), file, 0600, &e));
	expect_refused(ERR_DATA_LOSS, "damaged");
	copy_file(good, file);
	open_store();
	CHECK_INT(map_len(entries), 400);
	close_store();
	free_got();
}

/* As another program would. */
static void run_sql(const char *sql)
{
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		int null = open("/dev/null", O_WRONLY);

		dup2(null, STDOUT_FILENO);
		execlp("sqlite3", "sqlite3", "-bail", file, sql, (char *)NULL);
		_exit(127);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	if (WEXITSTATUS(status) == 127)
		SKIP("there is no sqlite3 command");
	CHECK_INT(status, 0);
}

static void test_other_version(void)
{
	open_store();
	close_store();
	run_sql("UPDATE meta SET value = '999' WHERE name = 'schema'");
	expect_refused(ERR_PRECONDITION, "newer version");
	CHECK(unlink(file) == 0);
	run_sql("CREATE TABLE registered_entries (id INTEGER)");
	expect_refused(ERR_PRECONDITION, "another program");
}

/* Of version 2: nodes get their numbers in the order in which they came. */
static void test_upgrade(void)
{
	open_store();
	close_store();
	run_sql("DROP INDEX node_num; ALTER TABLE node DROP COLUMN num;"
		"UPDATE meta SET value = '2' WHERE name = 'schema';"
		"INSERT INTO node VALUES ('spiffe://" TD "/b', 'x', '1', 1, '', 0, 0, '', x'');"
		"INSERT INTO node VALUES ('spiffe://" TD "/a', 'x', '1', 1, '', 0, 0, '', x'')");
	open_store();
	CHECK_INT(node_seen("spiffe://" TD "/b")->num, 1);
	CHECK_INT(node_seen("spiffe://" TD "/a")->num, 2);
	close_store();
}

static void test_in_use(void)
{
	pid_t pid;
	int status;

	open_store();
	pid = fork();
	if (pid == 0) {
		struct loop *l = loop_new();
		struct store *s;
		int r = store_open(l, file, &observer, &s, &e);

		_exit(r == ERR_UNAVAILABLE && strstr(e.msg, "in use by another process") ? 0 : 1);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK_INT(status, 0);
	CHECK_INT(create(entry_of("a", "w", "u:1")), 0);
	close_store();
	free_got();
}

static void test_cannot_open(void)
{
	snprintf(file, sizeof(file), "%s/no/such/store.db", test_dir());
	CHECK_ERR(try_open(), ERR_NOT_FOUND);
	CHECK_CONTAINS(e.msg, file);
	loop_free(loop);
	forget();
}

/* The disk is full (as far as this process is concerned): an error that names the file, nothing
 * applied, and life goes on when there is room again. */
static void test_full_disk(void)
{
	struct rlimit old;
	struct rlimit now;
	AUTO(free) char *big = xmalloc(1 << 20);
	size_t before;
	uint64_t change;

	signal(SIGXFSZ, SIG_IGN);
	open_store();
	fill(20);
	memset(big, 'x', (1 << 20) - 1);
	big[(1 << 20) - 1] = 0;
	before = map_len(entries);
	change = store_change(store);
	CHECK(getrlimit(RLIMIT_FSIZE, &old) == 0);
	now = old;
	now.rlim_cur = 256 << 10;
	CHECK(setrlimit(RLIMIT_FSIZE, &now) == 0);
	for (int i = 0; i < 3; i++) {
		struct entry v[2] = { entry_of("a", "small", "u:1"), entry_of("b", "big", "u:2") };

		strings_add(&v[1].dns_names, big);
		store_entries_create(store, v, 2, on_results, NULL);
		entry_deinit(&v[0]);
		entry_deinit(&v[1]);
		loop_run(loop);
		for (int k = 0; k < 2; k++) {
			CHECK_CONTAINS(got[k].message, file);
			CHECK_STR(err_code_name(got[k].code), "ResourceExhausted");
		}
		CHECK_INT(map_len(entries), before);
		CHECK_INT(store_change(store), change);
	}
	CHECK(setrlimit(RLIMIT_FSIZE, &old) == 0);
	CHECK_INT(create(entry_of("a", "small", "u:1")), 0);
	CHECK_INT(store_change(store), change + 1);
	reopen();
	CHECK_INT(map_len(entries), before + 1);
	close_store();
	free_got();
}

/* ---- the change log is trimmed, the log file does not grow for ever ---- */

static void test_maintenance(void)
{
	enum { N = 500, ROUNDS = 260 };
	struct entry *v = xcalloc(N, sizeof(v[0]));
	AUTO(free) char *wal = NULL;
	struct store_stats stats;
	struct stat st;

	open_store();
	wal = xasprintf("%s-wal", file);
	for (int i = 0; i < N; i++) {
		AUTO(free) char *sel = xasprintf("u:%d", i);
		AUTO(free) char *id = xasprintf("e%d", i);

		v[i] = entry_of(id, "w", sel);
	}
	store_entries_create(store, v, N, on_results, NULL);
	loop_run(loop);
	for (int i = 0; i < ROUNDS; i++) {
		store_entries_update(store, v, N, ENTRY_X509_TTL, on_results, NULL);
		loop_run(loop);
		CHECK_INT(got[N - 1].code, 0);
	}
	store_stats(store, &stats);
	CHECK(stats.changes == (ROUNDS + 1) * N);
	CHECK(stat(wal, &st) == 0);
	CHECK(st.st_size < 100 << 20);
	close_store();
	run_sql("CREATE TABLE t AS SELECT 1 FROM change WHERE (SELECT count(*) FROM change) > "
		"115000 "
		"OR (SELECT max(seq) FROM change) <> 130500; "
		"SELECT CASE count(*) WHEN 0 THEN 1 ELSE abs(-9223372036854775808) END FROM t; "
		"DROP TABLE t");
	open_store();
	CHECK_INT(store_change(store), (ROUNDS + 1) * N);
	CHECK_INT(entry_seen("e7")->revision_number, ROUNDS);
	close_store();
	for (int i = 0; i < N; i++)
		entry_deinit(&v[i]);
	free(v);
	free_got();
}

/* ---- what was acknowledged survives kill -9 ---- */

struct ack {                    /* shared with the child that writes */
	volatile int acked;     /* entries 0 … acked-1 were acknowledged */
	volatile int submitted; /* those from here on were never asked for */
};

static struct ack *ack;
static int next_entry;

static void write_more(void);

static void on_written(void *arg, struct store_result *r, size_t n)
{
	(void)arg;
	for (size_t i = 0; i < n; i++)
		CHECK_INT(r[i].code, 0);
	ack->acked += (int)n;
	write_more();
}

static void write_more(void)
{
	struct entry v[7];
	int n = 1 + next_entry % 7;

	for (int i = 0; i < n; i++) {
		AUTO(free) char *id = xasprintf("e%d", next_entry + i);

		v[i] = entry_of(id, id, "u:1");
	}
	next_entry += n;
	ack->submitted = next_entry;
	store_entries_create(store, v, (size_t)n, on_written, NULL);
	for (int i = 0; i < n; i++)
		entry_deinit(&v[i]);
}

static void child_writes(int from)
{
	open_store();
	next_entry = from;
	write_more();
	loop_run(loop);
	_exit(1);
}

static void test_kill(void)
{
	srandom((unsigned)time(NULL));
	ack = mmap(NULL, sizeof(*ack), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	snprintf(file, sizeof(file), "%s/store.db", test_dir());
	for (int round = 0; round < 25; round++) {
		int start = ack->acked;
		uint64_t n;
		pid_t pid = fork();
		int status;

		if (pid == 0)
			child_writes(start);
		nanosleep(&(struct timespec){ .tv_nsec = 10000000 + random() % 100000000 }, NULL);
		kill(pid, SIGKILL);
		CHECK(waitpid(pid, &status, 0) == pid);
		CHECK(WIFSIGNALED(status));
		open_store();
		for (int i = 0; i < ack->acked; i++) {
			AUTO(free) char *id = xasprintf("e%d", i);

			CHECK(entry_seen(id));
		}
		/* Transactions are whole: what is there beyond is all of the last one, or nothing.
		 */
		n = map_len(entries);
		CHECK(n == (uint64_t)ack->acked || n == (uint64_t)ack->submitted);
		CHECK_INT(store_change(store), n);
		ack->acked = (int)n;
		close_store();
	}
	CHECK(ack->acked > 0);
}

TEST_MAIN(TEST(test_damaged), TEST(test_other_version), TEST(test_upgrade), TEST(test_in_use),
	TEST(test_cannot_open), TEST(test_full_disk), TEST(test_maintenance), TEST(test_kill))

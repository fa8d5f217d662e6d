#include "lib/log.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "lib/buf.h"
#include "lib/clock.h"

enum {
	LINE_MAX_BYTES = 64 << 10,
	VALUE_MAX = 8 << 10, /* a longer value is cut */
	PAIRS_MAX = 64,
	FMT_SLOTS = 16,
	FMT_SIZE = 512,
};

static const struct {
	const char *name;
	enum log_level level;
} names[] = {
	{ "panic", LOG_PANIC },
	{ "fatal", LOG_FATAL },
	{ "error", LOG_ERROR },
	{ "warning", LOG_WARN },
	{ "info", LOG_INFO },
	{ "debug", LOG_DEBUG },
	{ "trace", LOG_TRACE },
	{ "warn", LOG_WARN },
};

static _Atomic int current = LOG_INFO;
static _Atomic bool json;
static _Atomic bool source_location;
static _Atomic int out_fd = STDERR_FILENO;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* file_path, and the limits */
static char *file_path;

int log_level_parse(const char *s, enum log_level *ret, struct err *e)
{
	for (size_t i = 0; i < ARRAY_LEN(names); i++)
		if (strcasecmp(s, names[i].name) == 0) {
			*ret = names[i].level;
			return 0;
		}
	return err_set(e, ERR_INVALID,
		"not a valid log level: \"%.64s\" (panic, fatal, error, warn, info, debug, trace)",
		s);
}

const char *log_level_name(enum log_level l)
{
	return names[l].name;
}

void log_set_level(enum log_level l)
{
	current = (int)l;
}

enum log_level log_level(void)
{
	return (enum log_level)current;
}

void log_set_json(bool on)
{
	json = on;
}

void log_set_source_location(bool on)
{
	source_location = on;
}

static int open_log(const char *path, struct err *e)
{
	int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0640);

	if (fd < 0)
		(void)err_errno(e, errno, "unable to open log file %s", path);
	return fd;
}

int log_set_file(const char *path, struct err *e)
{
	int fd = open_log(path, e);

	if (fd < 0)
		return e ? e->code : ERR_INTERNAL;
	pthread_mutex_lock(&lock);
	free(file_path);
	file_path = xstrdup(path);
	if (out_fd == STDERR_FILENO) {
		out_fd = fd;
	} else {
		/* The number stays, so that a writer on another thread never meets a closed one. */
		dup3(fd, out_fd, O_CLOEXEC);
		close(fd);
	}
	pthread_mutex_unlock(&lock);
	return 0;
}

int log_reopen(struct err *e)
{
	char *path;
	int r;

	pthread_mutex_lock(&lock);
	path = file_path ? xstrdup(file_path) : NULL;
	pthread_mutex_unlock(&lock);
	if (!path)
		return 0;
	r = log_set_file(path, e);
	free(path);
	return r;
}

/* ---- one line ---- */

/* Bytes of the UTF-8 sequence at p, or 0 when it is not one (RFC 3629 4). */
static size_t utf8_len(const uint8_t *p, size_t n)
{
	static const struct {
		uint8_t mask, lead;
		uint32_t least;
	} forms[] = { { 0xe0, 0xc0, 0x80 }, { 0xf0, 0xe0, 0x800 }, { 0xf8, 0xf0, 0x10000 } };

	if (p[0] < 0x80)
		return 1;
	for (size_t len = 2; len <= 4; len++) {
		uint32_t cp = (uint32_t)(p[0] & ~forms[len - 2].mask);

		if ((p[0] & forms[len - 2].mask) != forms[len - 2].lead)
			continue;
		if (n < len)
			return 0;
		for (size_t i = 1; i < len; i++) {
			if ((p[i] & 0xc0) != 0x80)
				return 0;
			cp = cp << 6 | (p[i] & 0x3f);
		}
		if (cp < forms[len - 2].least || cp > 0x10ffff || (cp >= 0xd800 && cp <= 0xdfff))
			return 0;
		return len;
	}
	return 0;
}

static const char *short_escape(uint8_t c)
{
	switch (c) {
	case '"':
		return "\\\"";
	case '\\':
		return "\\\\";
	case '\n':
		return "\\n";
	case '\r':
		return "\\r";
	case '\t':
		return "\\t";
	default:
		return NULL;
	}
}

/* Both formats quote alike, except for what has no short escape. */
static void put_quoted(struct buf *b, const char *s, bool as_json)
{
	const uint8_t *p = (const uint8_t *)s;
	size_t n = strnlen(s, VALUE_MAX + 1);
	bool cut = n > VALUE_MAX;

	if (cut)
		n = VALUE_MAX;
	buf_byte(b, '"');
	for (size_t i = 0; i < n;) {
		size_t len = utf8_len(p + i, n - i);
		const char *esc = short_escape(p[i]);

		if (esc)
			buf_str(b, esc);
		else if (len == 0)
			buf_str(b, "\\ufffd");
		else if (p[i] < 0x20 || p[i] == 0x7f)
			buf_printf(b, as_json ? "\\u%04x" : "\\x%02x", p[i]);
		else
			buf_append(b, p + i, len);
		i += len ? len : 1;
	}
	buf_str(b, cut ? "...\"" : "\"");
}

static bool needs_quotes(const char *s)
{
	for (; *s; s++)
		if (!(*s >= 'a' && *s <= 'z') && !(*s >= 'A' && *s <= 'Z') &&
			!(*s >= '0' && *s <= '9') && !strchr("-._/@^+", *s))
			return true;
	return false;
}

static void put_pair(struct buf *b, const char *key, const char *value, bool as_json)
{
	if (as_json) {
		buf_str(b, b->len > 1 ? "," : "");
		put_quoted(b, key, true);
		buf_byte(b, ':');
		put_quoted(b, value, true);
		return;
	}
	buf_printf(b, "%s%s=", b->len ? " " : "", key);
	if (needs_quotes(value))
		put_quoted(b, value, false);
	else
		buf_str(b, value);
}

static void put_time(struct buf *b, bool as_json)
{
	char now[40];

	wall_format(clock_wall(), now, sizeof(now));
	put_pair(b, "time", now, as_json);
}

static void put_pairs(struct buf *b, va_list ap, bool as_json)
{
	for (int i = 0; i < PAIRS_MAX; i++) {
		const char *key = va_arg(ap, const char *);
		const char *value;

		if (!key)
			return;
		value = va_arg(ap, const char *);
		if (value)
			put_pair(b, key, value, as_json);
	}
}

static void put_location(struct buf *b, const char *file, int line, bool as_json)
{
	char text[256];

	snprintf(text, sizeof(text), "%s:%d", file, line);
	put_pair(b, "file", text, as_json);
}

/* One write(2) for one line: lines of several threads, or processes, do not mix. */
static void emit(struct buf *b)
{
	if (b->failed) {
		b->failed = false;
		b->max += 64;
	}
	buf_byte(b, '\n');
	while (write(out_fd, b->p, b->len) < 0 && errno == EINTR)
		;
}

struct event {
	const char *file;
	int line;
	enum log_level level;
	const char *subsystem;
	const char *type;
	const char *msg;
};

static void write_event(const struct event *ev, va_list ap)
{
	AUTO_BUF struct buf b = BUF_INIT_MAX(LINE_MAX_BYTES);
	bool as_json = json;
	int saved = errno;

	if (as_json)
		buf_byte(&b, '{');
	put_time(&b, as_json);
	put_pair(&b, "level", log_level_name(ev->level), as_json);
	put_pair(&b, "msg", ev->msg, as_json);
	if (ev->subsystem)
		put_pair(&b, "subsystem_name", ev->subsystem, as_json);
	if (ev->type)
		put_pair(&b, "type", ev->type, as_json);
	if (ev->file && source_location)
		put_location(&b, ev->file, ev->line, as_json);
	put_pairs(&b, ap, as_json);
	if (as_json) {
		b.max += b.failed ? 64 : 0;
		b.failed = false;
		buf_byte(&b, '}');
	}
	emit(&b);
	errno = saved;
}

void log_event_at(
	const char *file, int line, enum log_level l, const char *subsystem, const char *msg, ...)
{
	struct event ev = {
		.file = file, .line = line, .level = l, .subsystem = subsystem, .msg = msg
	};
	va_list ap;

	va_start(ap, msg);
	write_event(&ev, ap);
	va_end(ap);
}

void log_audit(const char *msg, ...)
{
	struct event ev = { .level = LOG_INFO, .type = "audit", .msg = msg };
	va_list ap;

	va_start(ap, msg);
	write_event(&ev, ap);
	va_end(ap);
}

bool log_allowed(struct log_limit *l, int per_second)
{
	long long now = clock_mono().ns / NS_PER_SEC;
	int dropped = 0;
	bool ok;

	pthread_mutex_lock(&lock);
	if (l->second != now) {
		dropped = l->dropped;
		*l = (struct log_limit){ .second = now };
	}
	ok = l->count < per_second;
	if (ok)
		l->count++;
	else
		l->dropped++;
	pthread_mutex_unlock(&lock);
	if (dropped)
		log_event(LOG_WARN, NULL, "log lines like the next were left out", "count",
			log_fmt("%d", dropped), NULL);
	return ok;
}

const char *log_fmt(const char *fmt, ...)
{
	static _Thread_local char slots[FMT_SLOTS][FMT_SIZE];
	static _Thread_local unsigned next;
	char *s = slots[next++ % FMT_SLOTS];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(s, FMT_SIZE, fmt, ap);
	va_end(ap);
	return s;
}

const char *log_time(int64_t unix_seconds)
{
	char text[32];

	wall_format(wall_of_sec(unix_seconds), text, sizeof(text));
	return log_fmt("%s", text);
}

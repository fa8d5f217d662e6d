/*
 * Who is told that files have changed: a program that this process starts and keeps an eye on, and
 * a process whose number is in a file. As spiffe-helper does it: the program is started with the
 * first files; while it runs it gets the signal; when it has ended it is started again with the
 * next change. Beyond that, a change that met a running program which has no signal is made up for
 * when that ends.
 */
#ifndef ASSAY_AGENT_FILES_NOTIFY_H
#define ASSAY_AGENT_FILES_NOTIFY_H

#include "agent/files_options.h"
#include "lib/loop.h"

enum { FILES_PID_TRIES = 10 }; /* from 100 ms on, each twice the one before */

struct files_notify;

/* Borrows o. */
struct files_notify *files_notify_new(struct loop *l, const struct files_set_options *o);
/* The files have changed. Logs what does not work. */
void files_notify(struct files_notify *n);
/* The program goes on. */
void files_notify_free(struct files_notify *n);

/* To systemd, if it waits for it (sd_notify(3)): all files are there. */
void files_say_ready(void);

/* One attempt: reads the file, signals the process. ERR_NOT_FOUND when there is none. */
int files_signal_pid_file(const char *path, int signo, pid_t *ret_pid, struct err *e) MUST_USE;

#endif
